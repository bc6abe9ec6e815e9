//! The Ed25519 key a party makes for itself and never gives away: it is the party's TLS key and signs
//! its ledger or its jobs. Every other signature starts with a text that names its purpose, so none
//! can pass for another or for a TLS handshake.

use crate::ids::SiteId;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use rcgen::{KeyPair, PKCS_ED25519};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a signature is for; part of the signed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An entry of a site's privacy ledger.
    LedgerEntry,
    /// A job contract, by an operator.
    JobContract,
    /// A site's policy, by its data-protection officer: over the file's text.
    Policy,
    /// How far a site's ledger has come, by the site.
    LedgerHead,
    /// That a ledger had come so far, by the coordinator.
    LedgerWitness,
    /// The exchange key of a site for the secure sums of one job.
    SecureSumKey,
}

impl Purpose {
    const fn context(self) -> &'static [u8] {
        match self {
            Self::LedgerEntry => b"weighhouse ledger entry v1\0",
            Self::JobContract => b"weighhouse job contract v1\0",
            Self::Policy => b"weighhouse policy v1\0",
            Self::LedgerHead => b"weighhouse ledger head v1\0",
            Self::LedgerWitness => b"weighhouse ledger witness v1\0",
            Self::SecureSumKey => b"weighhouse secure sum key v1\0",
        }
    }

    fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.context(), bytes].concat()
    }
}

/// Why a key could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The generator or the encoder failed.
    #[error("cannot make a key")]
    Make(#[source] rcgen::Error),
    /// The file cannot be read or written.
    #[error("cannot use key file {path}")]
    File {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file's content is not an Ed25519 private key.
    #[error("{path} does not hold an Ed25519 private key in PKCS#8 PEM; restore it from a backup")]
    NotAKey {
        /// The key file.
        path: PathBuf,
    },
}

/// An Ed25519 key pair. Its `Debug` shows the public half only.
pub struct Identity {
    certificate_key: KeyPair,
    signing_key: Ed25519KeyPair,
}

impl Identity {
    /// Makes a new key from the system's generator.
    pub fn generate() -> Result<Self, IdentityError> {
        let certificate_key = KeyPair::generate_for(&PKCS_ED25519).map_err(IdentityError::Make)?;
        Ok(Self::from_certificate_key(certificate_key).expect("a key just made as Ed25519 is Ed25519"))
    }

    fn from_certificate_key(certificate_key: KeyPair) -> Option<Self> {
        let signing_key = Ed25519KeyPair::from_pkcs8(certificate_key.serialized_der()).ok()?;
        Some(Self { certificate_key, signing_key })
    }

    /// Reads the key at `path`.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let pem = std::fs::read_to_string(path)
            .map_err(|source| IdentityError::File { path: path.into(), source })?;
        let not_a_key = || IdentityError::NotAKey { path: path.into() };
        let key = KeyPair::from_pem(&pem).map_err(|_| not_a_key())?;
        Self::from_certificate_key(key).ok_or_else(not_a_key)
    }

    /// Writes the key to `path`, readable by its owner only; refuses to overwrite.
    pub fn save_new(&self, path: &Path) -> Result<(), IdentityError> {
        crate::config::write_private(path, self.certificate_key.serialize_pem().as_bytes())
            .map_err(|source| IdentityError::File { path: path.into(), source })
    }

    /// The 32-byte public half.
    pub fn public_key(&self) -> [u8; 32] {
        let bytes = self.signing_key.public_key().as_ref();
        bytes.try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// The site that holds this key.
    pub fn site(&self) -> SiteId {
        SiteId::of_public_key(&self.public_key())
    }

    /// Signs `bytes` for `purpose`; 64 bytes.
    pub fn sign(&self, purpose: Purpose, bytes: &[u8]) -> [u8; 64] {
        let signature = self.signing_key.sign(&purpose.message(bytes));
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    /// A secret for `use_`, the same each time and of no use for anything else.
    pub fn derived_secret(&self, use_: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.certificate_key.serialized_der());
        let tag = hmac::sign(&key, &[b"weighhouse derived secret v1\0", use_.as_bytes()].concat());
        tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }

    /// The key as certificate tools want it.
    pub fn certificate_key(&self) -> &KeyPair {
        &self.certificate_key
    }

    pub(crate) fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.certificate_key.serialize_der()).into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("site", &self.site()).finish_non_exhaustive()
    }
}

/// A public key from its 64 lower-case hexadecimal digits; None if `text` is anything else.
pub fn public_key_from_hex(text: &str) -> Option<[u8; 32]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Whether `signature` is `public_key`'s over `bytes` for `purpose`.
pub fn is_signed_by(public_key: &[u8; 32], purpose: Purpose, bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(&purpose.message(bytes), signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_its_bytes_and_its_purpose_only() {
        let (key, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let signature = key.sign(Purpose::LedgerEntry, b"entry");
        assert!(is_signed_by(&key.public_key(), Purpose::LedgerEntry, b"entry", &signature));
        assert!(!is_signed_by(&key.public_key(), Purpose::JobContract, b"entry", &signature));
        assert!(!is_signed_by(&key.public_key(), Purpose::LedgerEntry, b"entrz", &signature));
        assert!(!is_signed_by(&other.public_key(), Purpose::LedgerEntry, b"entry", &signature));
    }

    #[test]
    fn the_debug_text_of_a_key_shows_no_private_half() {
        let key = Identity::generate().unwrap();
        assert!(!format!("{key:?}").contains("PRIVATE"));
        assert!(format!("{key:?}").len() < 80);
    }
}
