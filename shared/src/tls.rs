//! Mutual TLS 1.3 for one UDP port: configs in, and from a peer's certificate its [`Peer`] out.
//!
//! Both ends are ours, so nothing is negotiable: TLS 1.3, the ALPN `weighhouse/1`, and a key exchange
//! that stays secret if either X25519 or ML-KEM-768 holds. A peer must show a certificate of the
//! federation's authority, or, to enrol once, a self-signed one that proves knowledge of an open
//! invite's secret ([`enrolment_proof`]). Anyone else fails in the handshake and learns nothing but
//! the coordinator's certificate.

use crate::identity::Identity;
use crate::ids::{ContentHash, SiteId};
use crate::wire::ALPN;
use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, danger};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName as CaName, Error, RootCertStore};
use std::fmt::Debug;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name in the coordinator's certificate. Peers are known by the authority that vouches for them,
/// not by where they are, so it is the same at every address.
pub const COORDINATOR_NAME: &str = "coordinator.weighhouse.internal";

/// Private extension of an enrolment certificate: invite identifier (16 bytes), then the proof (32).
const ENROLMENT_OID: [u64; 8] = [1, 3, 6, 1, 4, 1, 58_888, 1];

/// Length of an invite's identifier and of its secret, in bytes.
pub const INVITE_ID_LEN: usize = 16;

/// Who stands at the other end, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A site the authority has vouched for.
    Site(SiteId),
    /// An operator the authority has vouched for.
    Operator {
        /// Its Ed25519 public key.
        public_key: [u8; 32],
    },
    /// A coordinator the authority has vouched for.
    Coordinator,
    /// Someone with a key and an invite, but no certificate yet.
    Enrolling {
        /// The Ed25519 public key made at the site.
        public_key: [u8; 32],
        /// Which invite it claims.
        invite: [u8; INVITE_ID_LEN],
        /// Its proof that it knows the invite's secret.
        proof: [u8; 32],
    },
}

/// The organisational unit by which the authority states what a certificate's holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trains on its own records.
    Site,
    /// Triggers training.
    Operator,
    /// Averages.
    Coordinator,
}

impl Role {
    /// The text in the certificate.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Operator => "operator",
            Self::Coordinator => "coordinator",
        }
    }
}

/// A certificate that is not one of a federation's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is not of a kind this federation issues: {reason}")]
pub struct UnknownCertificate {
    reason: &'static str,
}

/// The certificate and the Ed25519 key in it.
fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<(X509Certificate<'a>, [u8; 32]), UnknownCertificate> {
    let unknown = |reason| UnknownCertificate { reason };
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| unknown("not X.509"))?;
    if !rest.is_empty() {
        return Err(unknown("bytes after its end"));
    }
    let key_info = parsed.public_key();
    if key_info.algorithm.algorithm != x509_parser::oid_registry::OID_SIG_ED25519 {
        return Err(unknown("its key is not Ed25519"));
    }
    let public_key = key_info.subject_public_key.data.as_ref().try_into();
    let public_key = public_key.map_err(|_| unknown("its key is not 32 bytes"))?;
    Ok((parsed, public_key))
}

/// Reads who `certificate` claims to be. The claim holds only after the chain was verified (or, for
/// [`Peer::Enrolling`], the proof).
pub fn peer_of(certificate: &CertificateDer<'_>) -> Result<Peer, UnknownCertificate> {
    let unknown = |reason| UnknownCertificate { reason };
    let (parsed, public_key) = parse(certificate)?;
    let enrolment = parsed.extensions().iter().find(|extension| {
        extension.oid.iter().is_some_and(|mut arcs| arcs.by_ref().eq(ENROLMENT_OID.iter().copied()))
    });
    if let Some(extension) = enrolment {
        let (invite, proof) = extension
            .value
            .split_at_checked(INVITE_ID_LEN)
            .ok_or_else(|| unknown("its enrolment extension is too short"))?;
        return Ok(Peer::Enrolling {
            public_key,
            invite: invite.try_into().expect("split at this length"),
            proof: proof.try_into().map_err(|_| unknown("its enrolment proof is not 32 bytes"))?,
        });
    }
    let mut units = parsed.subject().iter_organizational_unit();
    let unit = units.next().and_then(|unit| unit.as_str().ok());
    match (unit, units.next()) {
        (Some("site"), None) => Ok(Peer::Site(SiteId::of_public_key(&public_key))),
        (Some("operator"), None) => Ok(Peer::Operator { public_key }),
        (Some("coordinator"), None) => Ok(Peer::Coordinator),
        _ => Err(unknown("its subject names no role")),
    }
}

/// The certificate that the other end of an established connection showed for itself.
pub fn connected_certificate(
    connection: &quinn::Connection,
) -> Result<CertificateDer<'static>, UnknownCertificate> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(UnknownCertificate { reason: "none was shown" })?;
    chain.into_iter().next().ok_or(UnknownCertificate { reason: "none was shown" })
}

/// The peer at the other end of an established connection.
pub fn connected_peer(connection: &quinn::Connection) -> Result<Peer, UnknownCertificate> {
    peer_of(&connected_certificate(connection)?)
}

/// The Ed25519 key in `certificate`, which the handshake or the caller has verified.
pub fn public_key_of(certificate: &CertificateDer<'_>) -> Result<[u8; 32], UnknownCertificate> {
    Ok(parse(certificate)?.1)
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub not_before_s: u64,
    /// Until then.
    pub not_after_s: u64,
}

impl Validity {
    /// Whether a certificate should be renewed at `now_s`: less than a third of its life is left.
    pub fn renewal_is_due(&self, now_s: u64) -> bool {
        let life_s = self.not_after_s.saturating_sub(self.not_before_s);
        self.not_after_s.saturating_sub(now_s) < life_s / 3
    }
}

/// When `certificate` is valid, whoever issued it.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Result<Validity, UnknownCertificate> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| UnknownCertificate { reason: "not X.509" })?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = parsed.validity();
    Ok(Validity { not_before_s: seconds(validity.not_before), not_after_s: seconds(validity.not_after) })
}

/// The public key in a site certificate that `authority` signed, itself or through one of `issuers`, and that is valid at
/// `now_s` (seconds since 1970).
pub fn verified_site_key(
    authority: &CertificateDer<'static>,
    issuers: &[CertificateDer<'static>],
    certificate: &CertificateDer<'_>,
    now_s: u64,
) -> Result<[u8; 32], Error> {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s));
    member_verifier(authority)?.verify_client_cert(certificate, issuers, now)?;
    match (peer_of(certificate), public_key_of(certificate)) {
        (Ok(Peer::Site(_)), Ok(public_key)) => Ok(public_key),
        _ => Err(Error::InvalidCertificate(CertificateError::InvalidPurpose)),
    }
}

/// The public key in an operator certificate that `authority` signed and that is valid at `now`
/// (seconds since 1970): the check a site makes before it believes a job's signature.
pub fn verified_operator_key(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'_>,
    now_s: u64,
) -> Result<[u8; 32], Error> {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s));
    member_verifier(authority)?.verify_client_cert(certificate, &[], now)?;
    match peer_of(certificate) {
        Ok(Peer::Operator { public_key }) => Ok(public_key),
        _ => Err(Error::InvalidCertificate(CertificateError::InvalidPurpose)),
    }
}

/// The public key in a coordinator certificate that `authority` signed and that is valid at `now_s`
/// (seconds since 1970): what an auditor needs before believing a witness.
pub fn verified_coordinator_key(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'_>,
    now_s: u64,
) -> Result<[u8; 32], Error> {
    let name = ServerName::try_from(COORDINATOR_NAME).map_err(|error| Error::General(error.to_string()))?;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s));
    coordinator_verifier(authority)?.verify_server_cert(certificate, &[], &name, &[], now)?;
    match (peer_of(certificate), public_key_of(certificate)) {
        (Ok(Peer::Coordinator), Ok(public_key)) => Ok(public_key),
        _ => Err(Error::InvalidCertificate(CertificateError::InvalidPurpose)),
    }
}

/// The first certificate in a text (RFC 7468).
pub fn from_pem(text: &[u8]) -> Result<CertificateDer<'static>, UnknownCertificate> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(text).map_err(|_| UnknownCertificate { reason: "not PEM" })
}

/// A certificate as text (RFC 7468).
pub fn to_pem(certificate: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(certificate);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// HMAC-SHA256 of the site's public key under the invite's secret: shows knowledge of the secret
/// without sending it, and is of no use with any other key.
pub fn enrolment_proof(secret: &[u8], public_key: &[u8; 32]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, &[b"weighhouse enrolment v1\0", public_key.as_slice()].concat());
    tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
}

/// Whether `proof` is the one for `secret` and `public_key`; constant time.
pub fn enrolment_proof_holds(secret: &[u8], public_key: &[u8; 32], proof: &[u8; 32]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(&enrolment_proof(secret, public_key), proof).is_ok()
}

/// Makes the self-signed certificate that an invited site shows once.
pub fn enrolment_certificate(
    identity: &Identity,
    invite: &[u8; INVITE_ID_LEN],
    secret: &[u8],
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "enrolling site");
    let proof = enrolment_proof(secret, &identity.public_key());
    let content = [invite.as_slice(), &proof].concat();
    params.custom_extensions.push(CustomExtension::from_oid_content(&ENROLMENT_OID, content));
    Ok(params.self_signed(identity.certificate_key())?.der().clone())
}

/// Certificates and key with which a party shows who it is.
#[derive(Debug)]
pub struct Credentials {
    /// The party's own certificate first, its authority's last.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first.
    pub identity: Identity,
}

/// Decides in the handshake whether a peer with a well-formed certificate may come in now.
pub trait Gate: Debug + Send + Sync {
    /// For a site or operator the authority vouches for: is it known and not revoked? For an
    /// enrolling one: does its proof fit an invite that is open or was redeemed by the same key?
    fn admits(&self, peer: &Peer) -> bool;
}

/// What the far end of a connection to the coordinator must show.
#[derive(Debug)]
pub enum Trust {
    /// A certificate of this authority.
    Authority(CertificateDer<'static>),
    /// A certificate of the authority whose certificate hashes to this: all that an invite carries.
    Fingerprint(ContentHash),
}

fn crypto_provider() -> Arc<CryptoProvider> {
    let mut provider = provider::default_provider();
    provider.kx_groups = vec![provider::kx_group::X25519MLKEM768];
    Arc::new(provider)
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(roots)
}

/// The coordinator's side. `authority` signed operators' certificates itself, and sites' itself or through one of
/// `issuers`, which are the coordinator's own; `gate` has the last word. What a peer shows beside its certificate
/// is not looked at, so an issuer's key makes sites and nobody else.
pub fn server_config(
    credentials: &Credentials,
    authority: &CertificateDer<'static>,
    issuers: Vec<CertificateDer<'static>>,
    gate: Arc<dyn Gate>,
) -> Result<QuicServerConfig, Error> {
    let provider = crypto_provider();
    let members = member_verifier(authority)?;
    let verifier = Arc::new(PeerVerifier { members, issuers, gate });
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.identity.tls_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

/// A site's or an operator's side.
pub fn client_config(credentials: &Credentials, trust: Trust) -> Result<QuicClientConfig, Error> {
    let provider = crypto_provider();
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Authority(authority) => coordinator_verifier(&authority)?,
        Trust::Fingerprint(fingerprint) => {
            Arc::new(FingerprintVerifier { fingerprint, provider: provider.clone() })
        }
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(credentials.chain.clone(), credentials.identity.tls_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

fn member_verifier(authority: &CertificateDer<'static>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(roots(authority)?.into(), crypto_provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

fn coordinator_verifier(authority: &CertificateDer<'static>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(roots(authority)?.into(), crypto_provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

/// Lets in members of the federation and, with a valid proof, whoever holds an invite.
#[derive(Debug)]
struct PeerVerifier {
    members: Arc<dyn ClientCertVerifier>,
    issuers: Vec<CertificateDer<'static>>,
    gate: Arc<dyn Gate>,
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[CaName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refused = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let peer = peer_of(end_entity).map_err(|_| refused())?;
        match peer {
            Peer::Coordinator => return Err(refused()),
            Peer::Enrolling { .. } => {}
            Peer::Site(_) => {
                self.members.verify_client_cert(end_entity, &self.issuers, now)?;
            }
            Peer::Operator { .. } => {
                self.members.verify_client_cert(end_entity, &[], now)?;
            }
        }
        if self.gate.admits(&peer) { Ok(ClientCertVerified::assertion()) } else { Err(refused()) }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = crypto_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

/// Trusts the authority certificate at the end of the shown chain if its hash is the invite's.
#[derive(Debug)]
struct FingerprintVerifier {
    fingerprint: ContentHash,
    provider: Arc<CryptoProvider>,
}

impl danger::ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority =
            intermediates.last().ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        if ContentHash::of(authority) != self.fingerprint {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        coordinator_verifier(&authority.clone().into_owned())?.verify_server_cert(
            end_entity,
            &[],
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enrolment_certificate_carries_the_invite_and_a_proof_for_its_own_key() {
        let identity = Identity::generate().unwrap();
        let certificate = enrolment_certificate(&identity, &[7; INVITE_ID_LEN], b"secret").unwrap();
        let Peer::Enrolling { public_key, invite, proof } = peer_of(&certificate).unwrap() else {
            panic!("an enrolment certificate must read as one")
        };
        assert_eq!((public_key, invite), (identity.public_key(), [7; INVITE_ID_LEN]));
        assert!(enrolment_proof_holds(b"secret", &public_key, &proof));
        assert!(!enrolment_proof_holds(b"secreu", &public_key, &proof));
        let other = Identity::generate().unwrap().public_key();
        assert!(!enrolment_proof_holds(b"secret", &other, &proof));
    }

    #[test]
    fn a_certificate_without_a_role_is_nobody() {
        let identity = Identity::generate().unwrap();
        let params = CertificateParams::new(vec!["x".to_owned()]).unwrap();
        let certificate = params.self_signed(identity.certificate_key()).unwrap();
        assert!(peer_of(certificate.der()).is_err());
        assert!(peer_of(&CertificateDer::from(vec![0x30, 0x82])).is_err());
    }

    #[test]
    fn renewal_is_due_when_less_than_a_third_of_a_life_is_left() {
        let validity = Validity { not_before_s: 100, not_after_s: 400 };
        assert!(!validity.renewal_is_due(300));
        assert!(validity.renewal_is_due(301));
        assert!(validity.renewal_is_due(1_000));
    }

    #[test]
    fn the_only_key_exchange_offered_is_the_post_quantum_hybrid() {
        let groups: Vec<_> = crypto_provider().kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [rustls::NamedGroup::X25519MLKEM768]);
    }
}
