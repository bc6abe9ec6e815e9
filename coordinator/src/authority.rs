//! The federation's own certificate authority: issues the certificates by which peers know each other.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyUsagePurpose, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use weighhouse_shared::identity::Identity;
use weighhouse_shared::tls::{COORDINATOR_NAME, Role};

const AUTHORITY_LIFE: Duration = Duration::days(20 * 365);
const CERTIFICATE_LIFE: Duration = Duration::days(2 * 365);
/// Peers' clocks may be behind ours by this much.
const CLOCK_SLACK: Duration = Duration::days(1);

/// The fixed DER head of an Ed25519 public key (RFC 8410, section 4); the 32 key bytes follow.
const ED25519_KEY_INFO: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the certificate")]
pub struct AuthorityError(#[from] rcgen::Error);

fn name(common: &str, unit: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Weighhouse");
    if let Some(unit) = unit {
        name.push(DnType::OrganizationalUnitName, unit);
    }
    name.push(DnType::CommonName, common);
    name
}

/// The authority's own certificate.
pub fn authority_certificate(key: &Identity) -> Result<CertificateDer<'static>, AuthorityError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = name(&format!("authority {}", key.site().short()), None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - CLOCK_SLACK, now + AUTHORITY_LIFE);
    Ok(params.self_signed(key.certificate_key())?.der().clone())
}

/// Vouches that the holder of `public_key` (Ed25519) is `role`. `now_s` is in seconds since 1970.
pub fn issue(
    authority_key: &Identity,
    authority: &CertificateDer<'static>,
    role: Role,
    common_name: &str,
    public_key: &[u8; 32],
    now_s: u64,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let names = if role == Role::Coordinator { vec![COORDINATOR_NAME.to_owned()] } else { Vec::new() };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = name(common_name, Some(role.unit()));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        Role::Coordinator => ExtendedKeyUsagePurpose::ServerAuth,
        Role::Site | Role::Operator => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    let now = i64::try_from(now_s).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    let now = now.unwrap_or_else(OffsetDateTime::now_utc);
    (params.not_before, params.not_after) = (now - CLOCK_SLACK, now + CERTIFICATE_LIFE);
    let issuer = Issuer::from_ca_cert_der(authority, authority_key.certificate_key())?;
    let holder = SubjectPublicKeyInfo::from_der(&[ED25519_KEY_INFO.as_slice(), public_key].concat())?;
    let certificate: Certificate = params.signed_by(&holder, &issuer)?;
    Ok(certificate.der().clone())
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

        let other = authority_certificate(&Identity::generate().unwrap()).unwrap();
        assert!(verified_coordinator_key(&other, &coordinator, now).is_err());
        assert!(verified_operator_key(&other, &operator, now).is_err());
    }
}
