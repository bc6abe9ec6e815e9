//! The federation's certificates. The authority vouches for the coordinator, for operators and for an issuer; the
//! issuer, whose key is the coordinator's, vouches for sites and for nobody else. So the authority's key is needed only to
//! renew these three, and may be kept elsewhere, or be another organisation's.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer as Signer, KeyUsagePurpose, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use weighhouse_shared::identity::Identity;
use weighhouse_shared::tls::{
    COORDINATOR_NAME, Role, validity_of, verified_coordinator_key, verified_operator_key, verified_site_key,
};

const AUTHORITY_LIFE: Duration = Duration::days(20 * 365);
const ISSUER_LIFE: Duration = Duration::days(5 * 365);
const CERTIFICATE_LIFE: Duration = Duration::days(2 * 365);
/// Peers' clocks may be behind ours by this much.
const CLOCK_SLACK: Duration = Duration::days(1);

/// The fixed DER head of an Ed25519 public key (RFC 8410, section 4); the 32 key bytes follow.
const ED25519_KEY_INFO: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the certificate")]
pub struct AuthorityError(#[from] rcgen::Error);

/// A key that may sign certificates, and the certificate that says so: the authority's own, or an issuer's.
#[derive(Debug)]
pub struct Issuer {
    /// The key.
    pub key: Identity,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// To show who one is.
    Member(Role),
    /// To sign certificates of sites.
    Issuer,
}

/// The three for which the authority vouches, by the names of their files.
pub const VOUCHED_FOR: [(&str, Use); 3] = [
    ("coordinator", Use::Member(Role::Coordinator)),
    ("operator", Use::Member(Role::Operator)),
    ("issuer", Use::Issuer),
];

fn name(common: &str, unit: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Weighhouse");
    if let Some(unit) = unit {
        name.push(DnType::OrganizationalUnitName, unit);
    }
    name.push(DnType::CommonName, common);
    name
}

/// What the holder's certificate says of it.
fn params(holder: Use, common_name: &str) -> Result<CertificateParams, AuthorityError> {
    let coordinator = holder == Use::Member(Role::Coordinator);
    let names = if coordinator { vec![COORDINATOR_NAME.to_owned()] } else { Vec::new() };
    let mut params = CertificateParams::new(names)?;
    match holder {
        Use::Issuer => {
            params.distinguished_name = name(common_name, None);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }
        Use::Member(role) => {
            params.distinguished_name = name(common_name, Some(role.unit()));
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![match role {
                Role::Coordinator => ExtendedKeyUsagePurpose::ServerAuth,
                Role::Site | Role::Operator => ExtendedKeyUsagePurpose::ClientAuth,
            }];
        }
    }
    Ok(params)
}

/// The authority's own certificate.
pub fn authority_certificate(key: &Identity) -> Result<CertificateDer<'static>, AuthorityError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = name(&format!("authority {}", key.site().short()), None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - CLOCK_SLACK, now + AUTHORITY_LIFE);
    Ok(params.self_signed(key.certificate_key())?.der().clone())
}

impl Issuer {
    /// Vouches for a site.
    pub fn issue_site(
        &self,
        name: &str,
        public_key: &[u8; 32],
        now_s: u64,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        issue(&self.key, &self.certificate, Role::Site, name, public_key, now_s)
    }
}

/// Vouches that the holder of `public_key` (Ed25519) is `role`. `now_s` is in seconds since 1970. The certificate ends
/// no later than the signer's own.
pub fn issue(
    signer_key: &Identity,
    signer: &CertificateDer<'static>,
    role: Role,
    common_name: &str,
    public_key: &[u8; 32],
    now_s: u64,
) -> Result<CertificateDer<'static>, AuthorityError> {
    sign(signer_key, signer, Use::Member(role), common_name, public_key, now_s)
}

/// Vouches that the holder of `public_key` is what `holder` says, as [`issue`] does.
pub fn sign(
    signer_key: &Identity,
    signer: &CertificateDer<'static>,
    holder: Use,
    common_name: &str,
    public_key: &[u8; 32],
    now_s: u64,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let mut params = params(holder, common_name)?;
    params.use_authority_key_identifier_extension = true;
    let time = |seconds: u64| {
        i64::try_from(seconds).ok().and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok())
    };
    let now = time(now_s).unwrap_or_else(OffsetDateTime::now_utc);
    let life = if holder == Use::Issuer { ISSUER_LIFE } else { CERTIFICATE_LIFE };
    let end = validity_of(signer).ok().and_then(|signer| time(signer.not_after_s));
    params.not_before = now - CLOCK_SLACK;
    params.not_after = end.map_or(now + life, |end| end.min(now + life));
    let signer = Signer::from_ca_cert_der(signer, signer_key.certificate_key())?;
    let holder = SubjectPublicKeyInfo::from_der(&[ED25519_KEY_INFO.as_slice(), public_key].concat())?;
    let certificate: Certificate = params.signed_by(&holder, &signer)?;
    Ok(certificate.der().clone())
}

/// A request (PKCS#10, PEM) for a certificate, to another organisation's authority.
pub fn request(key: &Identity, holder: Use, common_name: &str) -> Result<String, AuthorityError> {
    Ok(params(holder, common_name)?.serialize_request(key.certificate_key())?.pem()?)
}

/// Whether `certificate` is what `authority` had to sign for `key` as `holder`, and valid at `now_s`.
pub fn fits(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'static>,
    key: &Identity,
    holder: Use,
    now_s: u64,
) -> bool {
    let verified = match holder {
        Use::Member(Role::Coordinator) => verified_coordinator_key(authority, certificate, now_s),
        Use::Member(Role::Operator) => verified_operator_key(authority, certificate, now_s),
        Use::Member(Role::Site) => verified_site_key(authority, &[], certificate, now_s),
        Use::Issuer => {
            // An issuer is known by what it issues.
            let sample = issue(key, certificate, Role::Site, "sample", &key.public_key(), now_s);
            let Ok(sample) = sample else { return false };
            verified_site_key(authority, std::slice::from_ref(certificate), &sample, now_s)
        }
    };
    verified.is_ok_and(|public_key| public_key == key.public_key())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::tls::{Peer, peer_of, verified_coordinator_key, verified_operator_key};

    #[test]
    fn a_certificate_says_its_holders_role_and_a_site_cannot_sign_jobs() {
        let (key, holder) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let authority = authority_certificate(&key).unwrap();
        let now = weighhouse_shared::clock::unix_time_s();
        let issue = |role| issue(&key, &authority, role, "x", &holder.public_key(), now).unwrap();
        assert_eq!(peer_of(&issue(Role::Site)).unwrap(), Peer::Site(holder.site()));
        assert_eq!(peer_of(&issue(Role::Coordinator)).unwrap(), Peer::Coordinator);
        let operator = issue(Role::Operator);
        assert_eq!(verified_operator_key(&authority, &operator, now).unwrap(), holder.public_key());
        assert!(verified_operator_key(&authority, &issue(Role::Site), now).is_err());
        assert!(verified_operator_key(&authority, &operator, now + 3 * 365 * 86_400).is_err());

        let coordinator = issue(Role::Coordinator);
        assert_eq!(verified_coordinator_key(&authority, &coordinator, now).unwrap(), holder.public_key());
        assert!(verified_coordinator_key(&authority, &issue(Role::Site), now).is_err());
        assert!(verified_coordinator_key(&authority, &operator, now).is_err());

        let sites = [issue(Role::Site)];
        assert_eq!(verified_site_key(&authority, &[], &sites[0], now).unwrap(), holder.public_key());
        let other = authority_certificate(&Identity::generate().unwrap()).unwrap();
        assert!(verified_coordinator_key(&other, &coordinator, now).is_err());
        assert!(verified_operator_key(&other, &operator, now).is_err());
    }

    #[test]
    fn an_issuer_vouches_for_sites_and_for_nobody_else() {
        let [key, issuer_key, holder] = [(); 3].map(|()| Identity::generate().unwrap());
        let authority = authority_certificate(&key).unwrap();
        let now = weighhouse_shared::clock::unix_time_s();
        let certificate =
            sign(&key, &authority, Use::Issuer, "issuer", &issuer_key.public_key(), now).unwrap();
        assert!(fits(&authority, &certificate, &issuer_key, Use::Issuer, now));
        assert!(!fits(&authority, &certificate, &holder, Use::Issuer, now));
        let issuer = Issuer { key: issuer_key, certificate: certificate.clone() };
        let site = issuer.issue_site("shop", &holder.public_key(), now).unwrap();
        let issuers = [certificate.clone()];
        assert_eq!(verified_site_key(&authority, &issuers, &site, now).unwrap(), holder.public_key());
        assert!(verified_site_key(&authority, &[], &site, now).is_err());
        for role in [Role::Operator, Role::Coordinator] {
            let forged = issue(&issuer.key, &certificate, role, "x", &holder.public_key(), now).unwrap();
            assert!(!fits(&authority, &forged, &holder, Use::Member(role), now), "{role:?}");
            assert!(verified_site_key(&authority, &issuers, &forged, now).is_err());
        }
        // Nor may it make further issuers.
        let below = sign(&issuer.key, &certificate, Use::Issuer, "x", &holder.public_key(), now).unwrap();
        let site = issue(&holder, &below, Role::Site, "x", &holder.public_key(), now).unwrap();
        assert!(verified_site_key(&authority, &[below, certificate], &site, now).is_err());
    }

    #[test]
    fn no_certificate_outlives_its_signers() {
        let (key, issuer_key) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let authority = authority_certificate(&key).unwrap();
        let now = weighhouse_shared::clock::unix_time_s();
        let early = now - 4 * 365 * 86_400;
        let certificate =
            sign(&key, &authority, Use::Issuer, "issuer", &issuer_key.public_key(), early).unwrap();
        let site = issue(&issuer_key, &certificate, Role::Site, "x", &[1; 32], now);
        let ends = |certificate: &CertificateDer<'_>| validity_of(certificate).unwrap().not_after_s;
        assert_eq!(ends(&site.unwrap()), ends(&certificate));
    }
}
