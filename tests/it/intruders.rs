//! Peers that must get nowhere: no certificate, another federation's, a revoked one, a used invite,
//! another protocol.

use crate::federation::{Federation, failure, records};
use rcgen::CertificateParams;
use std::net::SocketAddr;
use std::sync::Arc;
use weighhouse_client::session::{ConnectError, connect};
use weighhouse_coordinator::home::Home;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::tls::{Credentials, Trust};
use weighhouse_shared::wire::messages::{CoordinatorToSite, Hello, SiteToCoordinator};
use weighhouse_shared::wire::{stream, transport};

pub fn address(federation: &Federation) -> SocketAddr {
    std::fs::read_to_string(federation.home().join("address")).unwrap().parse().unwrap()
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Says hello with `credentials`; what the coordinator answers, if anything.
fn hello(
    federation: &Federation,
    credentials: &Credentials,
) -> Result<Option<CoordinatorToSite>, ConnectError> {
    hello_as(federation, credentials, 1)
}

/// Says hello as a site of version `protocol`.
pub fn hello_as(
    federation: &Federation,
    credentials: &Credentials,
    protocol: u16,
) -> Result<Option<CoordinatorToSite>, ConnectError> {
    let authority = Home::at(&federation.home()).authority().unwrap();
    let to = address(federation);
    runtime().block_on(async {
        let (_endpoint, connection) = connect(to, credentials, Trust::Authority(authority)).await?;
        let lost = |error: stream::StreamError| ConnectError::from_stream(error);
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| lost(error.into()))?;
        let hello = SiteToCoordinator::Hello(Hello { protocol, release: "x".into() });
        stream::send(&mut send, &hello).await.map_err(lost)?;
        stream::receive(&mut receive).await.map_err(lost)
    })
}

#[test]
fn a_self_made_certificate_gets_nowhere() {
    let federation = Federation::start();
    let identity = Identity::generate().unwrap();
    let params = CertificateParams::new(vec!["site".to_owned()]).unwrap();
    let certificate = params.self_signed(identity.certificate_key()).unwrap().der().clone();
    let credentials = Credentials { chain: vec![certificate], identity };
    let refused = hello(&federation, &credentials);
    assert!(matches!(refused, Err(ConnectError::CertificateRefused)), "{refused:?}");
}

#[test]
fn another_federations_site_gets_nowhere() {
    let (federation, other) = (Federation::start(), Federation::start());
    let home = other.join("spy", &records(20), &[]);
    let (_, credentials) = weighhouse_client::home::Home::at(&home).credentials().unwrap();
    let refused = hello(&federation, &credentials);
    assert!(matches!(refused, Err(ConnectError::CertificateRefused)), "{refused:?}");
}

#[test]
fn a_site_cannot_speak_as_an_operator_nor_an_operator_as_a_site() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let (_, site) = weighhouse_client::home::Home::at(&home).credentials().unwrap();
    assert!(matches!(hello(&federation, &site), Ok(Some(CoordinatorToSite::Welcome(_)))));
    // The operator's stream is read as a request; a site's hello is none, and the stream is cut.
    let operator = Home::at(&federation.home()).credentials("operator").unwrap();
    assert!(!matches!(hello(&federation, &operator), Ok(Some(_))));
}

#[test]
fn a_revoked_site_is_cut_off_at_once_and_stays_out() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let mut daemon = federation.serve_site(&home);
    federation.operator(&["site", "revoke", "shop"]);
    assert_eq!(daemon.wait(), Some(1));
    let error = failure(&["client", "serve", "--home", home.to_str().unwrap()]);
    assert!(error.contains("revoked or has expired"), "{error}");
    assert!(federation.operator(&["site", "list"]).contains("revoked"));
}

#[test]
fn an_invite_works_once() {
    let federation = Federation::start();
    let invite = federation.operator(&["site", "invite", "shop"]);
    let path = |name: &str| federation.path(name).to_str().unwrap().to_owned();
    std::fs::write(federation.path("r.csv"), records(20)).unwrap();
    let (first, second, data, schema) = (path("first"), path("second"), path("r.csv"), path("schema.toml"));
    let join = |home: &str| {
        crate::federation::run(&[
            "client",
            "join",
            invite.trim(),
            "--home",
            home,
            "--data",
            &data,
            "--schema",
            &schema,
        ])
    };
    assert!(join(&first).status.success());
    let again = join(&second);
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("ask the operator for a new one"));
    assert!(!federation.path("second").exists() && !federation.path("second.joining").exists());
}

#[test]
fn no_certificate_at_all_and_another_protocol_fail_in_the_handshake() {
    let federation = Federation::start();
    let to = address(&federation);
    let home = federation.join("shop", &records(20), &[]);
    let (authority, good) = weighhouse_client::home::Home::at(&home).credentials().unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).unwrap();
    let builder = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let key = std::fs::read(home.join("site.key")).unwrap();
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(&key).unwrap();
    let mut nameless = builder().with_no_client_auth();
    nameless.alpn_protocols = vec![b"weighhouse/1".to_vec()];
    let mut foreign = builder().with_client_auth_cert(good.chain.clone(), key).unwrap();
    foreign.alpn_protocols = vec![b"h3".to_vec()];
    for config in [nameless, foreign] {
        runtime().block_on(async {
            let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
            let endpoint = transport::dial(to, tls).unwrap();
            let connecting = endpoint.connect(to, weighhouse_shared::tls::COORDINATOR_NAME).unwrap();
            // TLS 1.3 tells the client of a refused certificate after its own part is done.
            if let Ok(connection) = connecting.await {
                let ended = connection.closed().await;
                assert!(matches!(ended, quinn::ConnectionError::ConnectionClosed(_)), "{ended:?}");
                assert!(connection.open_bi().await.is_err());
            }
        });
    }
}
