//! An invite: one line of text that lets one site join, once. It carries where the coordinator is, whose
//! certificates to believe, and a secret; the site's private key is made at the site.

use crate::ids::ContentHash;
use crate::tls::INVITE_ID_LEN;
use crate::wire::codec;
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Marks the text and its version.
const PREFIX: &str = "weighhouse-1-";
/// The longest text read as an invite.
const MAX_LEN: usize = 1024;

/// What an invite says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Host and port of the coordinator.
    pub address: String,
    /// Hash of the authority's certificate.
    pub authority: ContentHash,
    /// Which invite it is.
    pub id: [u8; INVITE_ID_LEN],
    /// What only the operator and the invited know.
    pub secret: [u8; 32],
}

/// Text that is not a whole invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a whole invite: copy the line that `weighhouse site invite` printed, from `{PREFIX}` to its end"
)]
pub struct NotAnInvite;

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = codec::encode(self);
        let hash = ContentHash::of(&bytes);
        bytes.extend_from_slice(&hash.as_bytes()[..4]);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_lowercase())
    }
}

impl FromStr for Invite {
    type Err = NotAnInvite;
    fn from_str(text: &str) -> Result<Self, NotAnInvite> {
        let body = text
            .trim()
            .strip_prefix(PREFIX)
            .filter(|body| body.len() <= MAX_LEN && body.is_ascii())
            .ok_or(NotAnInvite)?;
        let bytes = BASE32_NOPAD.decode(body.to_uppercase().as_bytes()).map_err(|_| NotAnInvite)?;
        let (body, check) = bytes.split_last_chunk::<4>().ok_or(NotAnInvite)?;
        if ContentHash::of(body).as_bytes()[..4] != check[..] {
            return Err(NotAnInvite);
        }
        codec::decode(body).map_err(|_| NotAnInvite)
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invite() -> Invite {
        let authority = ContentHash::of(b"authority");
        Invite { address: "shop.example:7443".into(), authority, id: [3; 16], secret: [9; 32] }
    }

    #[test]
    fn an_invite_reads_back_and_a_cut_or_mistyped_one_does_not() {
        let text = invite().to_string();
        assert_eq!(text.parse::<Invite>().unwrap(), invite());
        assert_eq!(text[..text.len() - 1].parse::<Invite>(), Err(NotAnInvite));
        let typo = text.replacen('a', "b", 1);
        assert!(typo == text || typo.parse::<Invite>().is_err());
        assert!(!format!("{:?}", invite()).contains('9'));
    }

    /// The capital of each of these letters is one of an invite's.
    #[test]
    fn regression_letters_beyond_ascii_are_no_part_of_an_invite() {
        let text = invite().to_string();
        for (letter, other) in [('s', 'ſ'), ('i', 'ı')] {
            let forged = text.rfind(letter).map(|at| format!("{}{other}{}", &text[..at], &text[at + 1..]));
            assert_eq!(forged.unwrap().parse::<Invite>(), Err(NotAnInvite));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = text.parse::<Invite>();
            let _ = format!("{PREFIX}{text}").parse::<Invite>();
        }
    }
}
