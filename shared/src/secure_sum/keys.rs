//! A site's secret for one job, and what derives from it: X25519 keys (RFC 7748) and HKDF-SHA256 (RFC 5869).
//!
//! All that a site says in a job's secure sums is a function of its job secret and of what the others said, so a site
//! that starts anew says the same again. Every derivation has a label of its own and only parts of fixed length, so no
//! two can meet. Every secret is 256 bits from end to end.

use crate::identity::{Identity, Purpose, is_signed_by};
use crate::ids::{JobId, RoundId, SiteId};
use crate::privacy::GeneratorError;
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use serde::{Deserialize, Serialize};
use std::fmt;

/// 32 bytes that nobody else may know.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Wraps 32 secret bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Another secret for `label`, which ends in a zero byte, and `context`, whose parts have fixed lengths.
    pub(crate) fn derive(&self, label: &[u8], context: &[&[u8]]) -> Self {
        expand(&Prk::new_less_safe(HKDF_SHA256, &self.0), label, context)
    }
}

struct Len32;

impl KeyType for Len32 {
    fn len(&self) -> usize {
        32
    }
}

fn expand(key: &Prk, label: &[u8], context: &[&[u8]]) -> Secret {
    let info = [&[label], context].concat();
    let mut bytes = [0; 32];
    key.expand(&info, Len32)
        .and_then(|material| material.fill(&mut bytes))
        .expect("32 bytes are less than HKDF's 255 blocks");
    Secret(bytes)
}

/// A point that no honest site makes: its agreement would be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a usable X25519 key")]
pub struct BadKey;

/// An X25519 key pair.
pub struct ExchangeKey(PrivateKey);

impl fmt::Debug for ExchangeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExchangeKey")
    }
}

impl ExchangeKey {
    /// The pair whose private half is `secret` (any 32 bytes; X25519 clamps them).
    pub fn of(secret: &Secret) -> Self {
        Self(PrivateKey::from_private_key(&X25519, &secret.0).expect("any 32 bytes are an X25519 key"))
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        let public = self.0.compute_public_key().expect("every X25519 key has a public half");
        public.as_ref().try_into().expect("an X25519 public key has 32 bytes")
    }

    /// What this and the holder of `other` alone know: HKDF of the agreement, bound to `label` and `context`.
    pub(crate) fn agreed(&self, other: &[u8; 32], label: &[u8], context: &[&[u8]]) -> Result<Secret, BadKey> {
        let salt = Salt::new(HKDF_SHA256, b"weighhouse secure sum v1\0");
        agree(&self.0, UnparsedPublicKey::new(&X25519, other), BadKey, |shared| {
            Ok(expand(&salt.extract(shared), label, context))
        })
    }
}

/// What a site's part in one job's secure sums derives from: drawn once, on disk before anything of it leaves, deleted
/// when the job ends. With it go the secrets of all its rounds; that no past round can be opened later rests on that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSecret(Secret);

impl JobSecret {
    /// A new one, from the system's generator.
    pub fn generate() -> Result<Self, GeneratorError> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| GeneratorError::NoEntropy)?;
        Ok(Self(Secret(bytes)))
    }

    /// One of these bytes: for tests.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret(bytes))
    }

    /// The key by which other sites know this one in `job`.
    pub fn exchange_key(&self, job: JobId) -> ExchangeKey {
        ExchangeKey::of(&self.0.derive(b"exchange\0", &[job.as_bytes()]))
    }

    /// A secret for `label` of `round` among the sites of the roster whose hash is `roster`.
    pub(crate) fn of_round(&self, label: &[u8], roster: &[u8; 32], round: RoundId) -> Secret {
        self.0.derive(label, &[roster, &round.0.to_le_bytes()])
    }

    /// The key of an answer: of its question and of what it says, so that no key is used for two texts.
    pub(crate) fn of_answer(&self, question: &[u8; 32], text: &[u8; 32]) -> Secret {
        self.0.derive(b"answer\0", &[question, text])
    }
}

/// A site's exchange key for a job, signed by the site's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedKey {
    /// The site's Ed25519 public key.
    pub identity: [u8; 32],
    /// Its X25519 public key for the job.
    pub key: [u8; 32],
    /// Ed25519 over job and key, 64 bytes.
    pub signature: Vec<u8>,
}

impl SignedKey {
    /// Signs `key` for `job`.
    pub fn sign(identity: &Identity, job: JobId, key: [u8; 32]) -> Self {
        let signature = identity.sign(Purpose::SecureSumKey, &[*job.as_bytes(), key].concat());
        Self { identity: identity.public_key(), key, signature: signature.to_vec() }
    }

    /// The site whose key it is.
    pub fn site(&self) -> SiteId {
        SiteId::of_public_key(&self.identity)
    }

    /// Whether the site signed it for `job`.
    pub fn is_signed_for(&self, job: JobId) -> bool {
        let bytes = [*job.as_bytes(), self.key].concat();
        is_signed_by(&self.identity, Purpose::SecureSumKey, &bytes, &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748, section 6.1, through our derivation: both sides agree, a third does not.
    #[test]
    fn two_sites_agree_on_a_secret_that_a_third_does_not_know() {
        let [a, b, c] = [1, 2, 3].map(|byte| ExchangeKey::of(&Secret([byte; 32])));
        let agreed =
            |key: &ExchangeKey, other: &ExchangeKey| key.agreed(&other.public(), b"x\0", &[]).unwrap();
        assert_eq!(agreed(&a, &b), agreed(&b, &a));
        assert_ne!(agreed(&a, &b), agreed(&a, &c));
        assert_ne!(agreed(&a, &b), a.agreed(&b.public(), b"y\0", &[]).unwrap());
        assert_eq!(a.agreed(&[0; 32], b"x\0", &[]), Err(BadKey), "a point of small order");
    }

    /// Known fault elsewhere: mask keys folded to 28 bits.
    #[test]
    fn every_byte_of_a_job_secret_changes_every_secret_that_derives_from_it() {
        let secret = |bytes| JobSecret::from_bytes(bytes).of_round(b"self mask\0", &[9; 32], RoundId(3));
        let first = secret([7; 32]);
        for at in 0..32 {
            for bit in [0x01, 0x80] {
                let mut bytes = [7; 32];
                bytes[at] ^= bit;
                let other = secret(bytes);
                let differing = first.0.iter().zip(&other.0).filter(|(a, b)| a != b).count();
                // Of 32 uniform bytes five or more are as they were with probability below 2e-7.
                assert!(differing >= 28, "byte {at}: {differing} of 32 bytes differ");
            }
        }
    }

    /// The same of the other end: the seed of a pair's mask. Also over every bit of the round's key, none of which is folded
    /// away (but those that X25519 clamps).
    #[test]
    fn every_bit_of_an_agreement_changes_the_masks_seed() {
        let theirs = ExchangeKey::of(&Secret([3; 32])).public();
        let seed = |bytes| ExchangeKey::of(&Secret(bytes)).agreed(&theirs, b"mask\0", &[&[0; 32]]).unwrap();
        let first = seed([0x55; 32]);
        let mut seen = vec![first.clone()];
        for bit in (3..254).step_by(5) {
            let mut bytes = [0x55; 32];
            bytes[bit / 8] ^= 1 << (bit % 8);
            let other = seed(bytes);
            let differing = first.0.iter().zip(&other.0).filter(|(a, b)| a != b).count();
            assert!(differing >= 28, "bit {bit}: {differing} of 32 bytes differ");
            assert!(!seen.contains(&other));
            seen.push(other);
        }
    }

    #[test]
    fn a_signed_key_is_good_for_its_job_only() {
        let identity = Identity::generate().unwrap();
        let [job, other] = [1, 2].map(|byte| JobId::from_bytes([byte; 32]));
        let signed = SignedKey::sign(&identity, job, [5; 32]);
        assert!(signed.is_signed_for(job) && !signed.is_signed_for(other));
        assert_eq!(signed.site(), identity.site());
        assert!(!SignedKey { key: [6; 32], ..signed.clone() }.is_signed_for(job));
        assert!(!format!("{:?}", JobSecret::from_bytes([0xab; 32])).contains("ab"));
    }
}
