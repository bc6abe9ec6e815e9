//! What a site shows the coordinator: its certificate, which it has renewed before it expires, for the key it has.

use crate::home::{Home, HomeError};
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, Mutex, PoisonError};
use weighhouse_shared::config::write_whole;
use weighhouse_shared::tls::{self, Credentials, Peer, UnknownCertificate};

/// Why a certificate was not taken in the place of the present one.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// It is no certificate of a federation.
    #[error("what the coordinator sent is no certificate")]
    Unknown(#[from] UnknownCertificate),
    /// It is not this site's.
    #[error("the certificate that the coordinator sent is not for this site's key")]
    OtherKey,
    /// It is not good for longer.
    #[error("the certificate that the coordinator sent does not end after the present one")]
    NotLonger,
    /// It cannot be kept.
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// A site's certificate and key, of which the certificate changes.
#[derive(Debug)]
pub struct Membership {
    home: Home,
    credentials: Mutex<Arc<Credentials>>,
}

impl Membership {
    /// What `home` holds, which is `credentials`.
    pub fn new(home: Home, credentials: Credentials) -> Self {
        Self { home, credentials: Mutex::new(Arc::new(credentials)) }
    }

    /// What to show now.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the certificate should be renewed at `now_s`.
    pub fn renewal_is_due(&self, now_s: u64) -> bool {
        let own = self.credentials();
        tls::validity_of(&own.chain[0]).is_ok_and(|validity| validity.renewal_is_due(now_s))
    }

    /// Takes `certificate` (DER), which the coordinator sent, in the place of the present one: on disk first.
    pub fn renew(&self, certificate: Vec<u8>, now_s: u64) -> Result<(), RenewalError> {
        let certificate = CertificateDer::from(certificate);
        let own = self.credentials();
        let (new, present) = (tls::validity_of(&certificate)?, tls::validity_of(&own.chain[0])?);
        if tls::peer_of(&certificate)? != Peer::Site(own.identity.site()) {
            return Err(RenewalError::OtherKey);
        }
        if new.not_after_s <= present.not_after_s || now_s < new.not_before_s {
            return Err(RenewalError::NotLonger);
        }
        let path = self.home.path("site.crt");
        write_whole(&path, tls::to_pem(&certificate).as_bytes())
            .map_err(|source| HomeError::Write { path, source })?;
        let (_, renewed) = self.home.credentials()?;
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(renewed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};
    use weighhouse_shared::identity::Identity;

    /// A self-signed certificate of a site; who signed it is the handshake's question.
    fn certificate(key: &KeyPair, until: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::OrganizationalUnitName, "site");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.self_signed(key).unwrap().der().clone()
    }

    #[test]
    fn only_a_longer_certificate_for_the_same_key_is_taken_and_it_is_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let (identity, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        identity.save_new(&home.path("site.key")).unwrap();
        let own = |until| certificate(identity.certificate_key(), until);
        let pem = tls::to_pem(&own(2030));
        std::fs::write(home.path("site.crt"), &pem).unwrap();
        std::fs::write(home.path("authority.crt"), &pem).unwrap();
        let membership = Membership::new(home.clone(), home.credentials().unwrap().1);
        let in_2029 = 1_861_920_000;
        assert!(membership.renewal_is_due(in_2029) && !membership.renewal_is_due(in_2029 - 4 * 365 * 86_400));
        let renew = |certificate: &[u8]| membership.renew(certificate.to_vec(), in_2029);
        assert!(matches!(renew(b"none"), Err(RenewalError::Unknown(_))));
        let foreign = certificate(other.certificate_key(), 2040);
        assert!(matches!(renew(&foreign), Err(RenewalError::OtherKey)));
        assert!(matches!(renew(&own(2030)), Err(RenewalError::NotLonger)));
        assert_eq!(std::fs::read_to_string(home.path("site.crt")).unwrap(), pem);
        renew(&own(2040)).unwrap();
        assert_eq!(membership.credentials().chain[0], own(2040));
        assert_eq!(home.credentials().unwrap().1.chain[0], own(2040));
    }
}
