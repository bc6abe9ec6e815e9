//! Names of things that travel: sites, jobs, rounds, contents. Each is its own type, so none can be
//! passed for another.

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Text that is not the 64 hexadecimal digits of a 32-byte identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identifier of 64 hexadecimal digits")]
pub struct NotAnId {
    text: String,
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type([u8; 32]);

        impl $type {
            /// Wraps 32 bytes that already are such an identifier.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight hexadecimal digits: enough for people, never for a decision.
            pub fn short(&self) -> String {
                HEXLOWER.encode(&self.0[..4])
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self.short())
            }
        }

        impl FromStr for $type {
            type Err = NotAnId;
            fn from_str(text: &str) -> Result<Self, NotAnId> {
                let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
                bytes.map(Self).ok_or_else(|| NotAnId { text: text.chars().take(80).collect() })
            }
        }

        // Hexadecimal where people read (TOML, JSON), the bare bytes on the wire.
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

hash_id!(
    /// A site: SHA-256 of the Ed25519 public key made at the site.
    SiteId
);
hash_id!(
    /// A job: SHA-256 of its contract's canonical bytes.
    JobId
);
hash_id!(
    /// Any content, by the SHA-256 of its bytes.
    ContentHash
);

impl ContentHash {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Hashes content that arrives in pieces.
pub struct ContentHasher(digest::Context);

impl Default for ContentHasher {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl ContentHasher {
    /// Adds the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all pieces in order.
    pub fn finish(self) -> ContentHash {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        ContentHash(bytes)
    }
}

impl SiteId {
    /// The site that holds the private half of `public_key` (32 bytes, Ed25519).
    pub fn of_public_key(public_key: &[u8; 32]) -> Self {
        Self(*ContentHash::of(public_key).as_bytes())
    }
}

/// A round of a job, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoundId(pub u32);

impl RoundId {
    /// The round after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_reads_back_from_its_text_and_refuses_anything_else() {
        let id = ContentHash::of(b"goods");
        assert_eq!(id.to_string().parse::<ContentHash>().unwrap(), id);
        for bad in ["", "00", &id.to_string()[1..], &id.to_string().to_uppercase(), &"g".repeat(64)] {
            assert!(bad.parse::<ContentHash>().is_err(), "{bad}");
        }
    }
}
