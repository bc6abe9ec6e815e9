//! Values to bytes and back: the only file that names bincode.
//!
//! The encoding is canonical (one value, one byte string: fixed little-endian integers, no optional
//! forms), so hashes and golden bytes can be taken of it. A decoder refuses trailing bytes, claims of
//! lengths above its limit, and never panics.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes one decoded value may claim, counted as it is decoded: bounds memory against
/// forged lengths.
pub const MAX_VALUE_LEN: usize = 4 << 20;

type Canonical = Configuration<LittleEndian, Fixint, Limit<MAX_VALUE_LEN>>;

const CANONICAL: Canonical =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_VALUE_LEN>();

/// Bytes that are not such a value.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the encoding of a value of this type.
    #[error("the bytes are not a valid {what}")]
    Malformed {
        /// The type wanted.
        what: &'static str,
        /// What the decoder said.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// A whole value and then more.
    #[error("{trailing} bytes follow a complete {what}")]
    Trailing {
        /// The type wanted.
        what: &'static str,
        /// How many bytes were left.
        trailing: usize,
    },
}

/// The canonical bytes of `value`.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard().with_fixed_int_encoding())
        .expect("encoding into memory fails only for types without a known length, and we have none")
}

/// The value whose canonical bytes are exactly `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let what = std::any::type_name::<T>().rsplit("::").next().unwrap_or("value");
    let (value, used) = bincode::serde::decode_from_slice(bytes, CANONICAL)
        .map_err(|source| DecodeError::Malformed { what, source })?;
    match bytes.len() - used {
        0 => Ok(value),
        trailing => Err(DecodeError::Trailing { what, trailing }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_and_forged_lengths_are_refused() {
        let mut bytes = encode(&(7u32, "abc"));
        assert_eq!(decode::<(u32, String)>(&bytes).unwrap(), (7, "abc".to_owned()));
        bytes.push(0);
        assert!(matches!(decode::<(u32, String)>(&bytes), Err(DecodeError::Trailing { trailing: 1, .. })));
        assert!(decode::<Vec<u8>>(&encode(&u64::MAX)).is_err());
        assert!(decode::<Vec<u64>>(&encode(&(1u64 << 40))).is_err());
    }
}
