//! Who is a member and for how long: invites that expire, certificates that renew themselves, revocation of live
//! connections, mixed versions, an authority that is elsewhere.

use crate::federation::{Daemon, Federation, failure, output, records, run};
use crate::intruders::{address, hello_as, runtime};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use weighhouse_client::session::{ConnectError, connect};
use weighhouse_coordinator::authority::{self, Use};
use weighhouse_coordinator::home::Home;
use weighhouse_shared::clock;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::tls::{self, Credentials, Role, Trust};
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, CoordinatorToSite, Invite, OperatorToCoordinator, VersionRefused, Welcome,
};
use weighhouse_shared::wire::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, stream, transport};

const DAY_S: u64 = 86_400;

fn site_credentials(home: &Path) -> Credentials {
    weighhouse_client::home::Home::at(home).credentials().unwrap().1
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn expires_s(path: &Path) -> u64 {
    tls::validity_of(&certificate(path)).unwrap().not_after_s
}

/// Replaces the certificate of `name` by one that the authority signed long ago, with six hours left.
fn age(home: &Home, authority_key: &Path, name: &str) {
    let (key, authority) = (Identity::load(authority_key).unwrap(), home.authority().unwrap());
    let (holder, life) = match name {
        "issuer" => (Use::Issuer, 5 * 365 * DAY_S),
        "operator" => (Use::Member(Role::Operator), 2 * 365 * DAY_S),
        _ => (Use::Member(Role::Coordinator), 2 * 365 * DAY_S),
    };
    let public_key = Identity::load(&home.path(&format!("{name}.key"))).unwrap().public_key();
    let then = clock::unix_time_s() - life + DAY_S / 4;
    let aged = authority::sign(&key, &authority, holder, name, &public_key, then).unwrap();
    std::fs::write(home.path(&format!("{name}.crt")), tls::to_pem(&aged)).unwrap();
}

#[test]
fn an_invite_that_has_expired_lets_nobody_in() {
    let federation = Federation::start();
    let home = Home::at(&federation.home());
    let (operator, authority) = (home.credentials("operator").unwrap(), home.authority().unwrap());
    // The command line gives invites of whole hours; the protocol also ones that have expired at once.
    let invite = runtime().block_on(async {
        let trust = Trust::Authority(authority);
        let (_endpoint, connection) = connect(address(&federation), &operator, trust).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let invite = OperatorToCoordinator::Invite(Invite { name: "late".into(), valid_s: 0 });
        stream::send(&mut send, &invite).await.unwrap();
        match stream::receive(&mut receive).await.unwrap() {
            Some(CoordinatorToOperator::Invited(invited)) => invited.invite,
            other => panic!("{other:?}"),
        }
    });
    std::fs::write(federation.path("r.csv"), records(20)).unwrap();
    let path = |name: &str| federation.path(name).to_str().unwrap().to_owned();
    let (late, data, schema) = (path("late"), path("r.csv"), path("schema.toml"));
    let refused =
        failure(&["client", "join", &invite, "--home", &late, "--data", &data, "--schema", &schema]);
    assert!(refused.contains("used, expired or unknown"), "{refused}");
    assert!(!federation.path("late").exists());
    assert!(federation.operator(&["site", "list"]).contains("expired"));
}

/// While the authority's key is away nobody renews the issuer, and a site that joins has a certificate as short as the
/// issuer's. With the key back the coordinator renews its own when it starts, and the site's as soon as the site is
/// connected: for the same key, on disk, and good for the next connection.
#[test]
fn certificates_renew_themselves_before_they_expire() {
    let mut federation = Federation::start();
    federation.end_coordinator();
    let coordinator = Home::at(&federation.home());
    let (kept, elsewhere) = (coordinator.path("authority.key"), federation.path("safe.key"));
    std::fs::rename(&kept, &elsewhere).unwrap();
    let names = ["coordinator", "operator", "issuer"];
    for name in names {
        age(&coordinator, &elsewhere, name);
    }
    let tomorrow = clock::unix_time_s() + DAY_S;
    federation.serve();
    let home = federation.join("shop", &records(20), &[]);
    let own = home.join("site.crt");
    assert!(names.iter().all(|name| expires_s(&coordinator.path(&format!("{name}.crt"))) < tomorrow));
    assert!(expires_s(&own) < tomorrow);

    std::fs::rename(&elsewhere, &kept).unwrap();
    federation.end_coordinator();
    federation.serve();
    let in_a_year = clock::unix_time_s() + 365 * DAY_S;
    assert!(names.iter().all(|name| expires_s(&coordinator.path(&format!("{name}.crt"))) > in_a_year));
    let key = tls::public_key_of(&certificate(&own)).unwrap();
    let serve = ["client", "serve", "--home", home.to_str().unwrap()];
    let _daemon = Daemon::start(&serve, "has a new certificate");
    assert!(expires_s(&own) > in_a_year);
    assert_eq!(tls::public_key_of(&certificate(&own)).unwrap(), key);
    let welcome = hello_as(&federation, &site_credentials(&home), PROTOCOL_VERSION);
    assert!(matches!(welcome, Ok(Some(CoordinatorToSite::Welcome(_)))), "{welcome:?}");
}

/// A connection that says nothing is not known to be a site's until it does; revocation ends it all the same.
#[test]
fn revocation_ends_a_live_connection_that_has_said_nothing_yet() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let (to, credentials) = (address(&federation), site_credentials(&home));
    let authority = Home::at(&federation.home()).authority().unwrap();
    runtime().block_on(async {
        let (_endpoint, silent) = connect(to, &credentials, Trust::Authority(authority)).await.unwrap();
        federation.operator(&["site", "revoke", "shop"]);
        let ended = silent.closed().await;
        assert!(matches!(ended, quinn::ConnectionError::ApplicationClosed(_)), "{ended:?}");
    });
}

#[test]
fn sites_of_older_and_newer_versions_are_spoken_to_in_the_older_of_both() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let credentials = site_credentials(&home);
    for theirs in [OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, PROTOCOL_VERSION + 7] {
        let answer = hello_as(&federation, &credentials, theirs).unwrap();
        let Some(CoordinatorToSite::Welcome(Welcome { protocol, .. })) = answer else {
            panic!("{theirs}: {answer:?}")
        };
        assert_eq!(protocol, theirs.min(PROTOCOL_VERSION));
    }
    let too_old = OLDEST_PROTOCOL_VERSION - 1;
    let refused = VersionRefused { coordinator: PROTOCOL_VERSION, site: too_old };
    let answer = hello_as(&federation, &credentials, too_old).unwrap();
    assert_eq!(answer, Some(CoordinatorToSite::VersionRefused(refused)));
}

/// A coordinator of another major version, in whose handshake no protocol is common.
#[test]
fn a_site_that_meets_another_major_version_is_told_so() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let credentials = site_credentials(&home);
    let coordinator = Home::at(&federation.home());
    let own = coordinator.credentials("coordinator").unwrap();
    let key = std::fs::read(coordinator.path("coordinator.key")).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&key).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(own.chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"weighhouse/2".to_vec()];
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
    let refused = runtime().block_on(async {
        let endpoint = transport::listen(([127, 0, 0, 1], 0).into(), tls, &[1; 32]).unwrap();
        let to = endpoint.local_addr().unwrap();
        let trust = Trust::Authority(coordinator.authority().unwrap());
        let accept = async {
            while let Some(incoming) = endpoint.accept().await {
                let _ = incoming.await;
            }
        };
        tokio::select! {
            outcome = connect(to, &credentials, trust) => outcome.map(|_| ()),
            () = accept => Ok(()),
        }
    });
    let Err(error @ ConnectError::OtherProtocol { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("does not speak `weighhouse/1`"), "{error}");
}

/// With the authority's key gone from the coordinator, sites join, train and are renewed; with the key at hand for a
/// moment, the coordinator's own certificates are.
#[test]
fn the_authoritys_key_can_be_kept_elsewhere() {
    let mut federation = Federation::start();
    let (kept, elsewhere) = (federation.home().join("authority.key"), federation.path("safe.key"));
    std::fs::rename(&kept, &elsewhere).unwrap();
    federation.end_coordinator();
    federation.serve();
    let home = federation.join("shop", &records(60), &[]);
    let _site = federation.serve_site(&home);
    let job = federation.job(1, 2.0, "[federation]\nmin_sites = 1");
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("finished"), "{watched}");

    let coordinator = Home::at(&federation.home());
    age(&coordinator, &elsewhere, "issuer");
    let hq = federation.home();
    let renew = ["coordinator", "renew", "--home", hq.to_str().unwrap()];
    assert!(failure(&renew).contains("authority.key"));
    let other = federation.home().join("operator.key");
    let wrong = failure(&[&renew[..], &["--authority-key", other.to_str().unwrap()]].concat());
    assert!(wrong.contains("is not the key of this federation's authority"), "{wrong}");
    let renewed = output(&[&renew[..], &["--authority-key", elsewhere.to_str().unwrap()]].concat());
    assert!(renewed.contains("coordinator, operator, issuer"), "{renewed}");
    assert!(expires_s(&coordinator.path("issuer.crt")) > clock::unix_time_s() + 365 * DAY_S);
    assert!(!kept.exists());
    federation.end_coordinator();
    federation.serve();
    let welcome = hello_as(&federation, &site_credentials(&home), PROTOCOL_VERSION);
    assert!(matches!(welcome, Ok(Some(CoordinatorToSite::Welcome(_)))), "{welcome:?}");
}

/// What the issuer's key can make is sites, and nothing else: a coordinator that is taken over speaks as no operator.
#[test]
fn an_operator_whom_only_the_issuer_vouches_for_gets_nowhere() {
    let federation = Federation::start();
    let coordinator = Home::at(&federation.home());
    let identity = Identity::generate().unwrap();
    let issuer = coordinator.issuer().unwrap();
    let forge = |role| {
        let now_s = clock::unix_time_s();
        authority::issue(&issuer.key, &issuer.certificate, role, "x", &identity.public_key(), now_s).unwrap()
    };
    let chain = vec![forge(Role::Operator), issuer.certificate.clone(), coordinator.authority().unwrap()];
    let forged = Credentials { chain, identity };
    let refused = hello_as(&federation, &forged, PROTOCOL_VERSION);
    assert!(matches!(refused, Err(ConnectError::CertificateRefused)), "{refused:?}");
}

/// Another organisation's authority, with a key of another kind, signs the three requests; sites join and train.
#[test]
fn an_external_authority_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let hq = path("hq");
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let init = ["coordinator", "init", "--home", &hq, "--listen", &port, "--public-address", &port];
    output(&[&init[..], &["--external-authority"]].concat());
    let unsigned = failure(&["coordinator", "serve", "--home", &hq]);
    assert!(unsigned.contains("have its .csr files signed"), "{unsigned}");

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Corporate Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap();
    std::fs::write(path("root.pem"), root.pem()).unwrap();
    let signer = Issuer::new(params, &key);
    let files = ["coordinator", "operator", "issuer"].map(|name| {
        let request = std::fs::read_to_string(format!("{hq}/{name}.csr")).unwrap();
        let mut request = CertificateSigningRequestParams::from_pem(&request).unwrap();
        if name == "issuer" {
            request.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        }
        let file = path(&format!("{name}.pem"));
        std::fs::write(&file, request.signed_by(&signer).unwrap().pem()).unwrap();
        file
    });
    let root = path("root.pem");
    let install = ["coordinator", "install", "--home", &hq, "--authority", &root, "--certificates"];
    let missing = failure(&[&install[..], &[&files[0], &files[1]]].concat());
    assert!(missing.contains("is the one for issuer.csr"), "{missing}");
    output(&[&install[..], &[&files[2], &files[0], &files[1]]].concat());

    let federation = Federation::at(folder);
    let home = federation.join("shop", &records(60), &[]);
    let _site = federation.serve_site(&home);
    let job = federation.job(1, 2.0, "[federation]\nmin_sites = 1");
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("finished"), "{watched}");
    assert!(run(&["doctor", "--home", &hq]).status.success());
}
