//! Strangers in great numbers, and peers that connect and then do nothing: a running round does not feel them.

use crate::federation::{Federation, output, records, talking};
use crate::watch::Watch;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcgen::CertificateParams;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use weighhouse_client::session::connect;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::ContentHash;
use weighhouse_shared::ledger::Head;
use weighhouse_shared::tls::{self, Credentials, Trust};
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Decision, Hello, JobAnswer, LedgerHead, SiteToCoordinator,
};
use weighhouse_shared::wire::{stream, transport};

/// What something that must happen is given before a test fails; nothing waits for it otherwise.
const PATIENCE: Duration = Duration::from_secs(90);

fn address(federation: &Federation) -> SocketAddr {
    std::fs::read_to_string(federation.home().join("address")).unwrap().parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn authority(federation: &Federation) -> Trust {
    Trust::Authority(weighhouse_coordinator::home::Home::at(&federation.home()).authority().unwrap())
}

/// A self-made certificate.
fn stranger() -> Credentials {
    let identity = Identity::generate().unwrap();
    let params = CertificateParams::new(vec!["site".to_owned()]).unwrap();
    let certificate = params.self_signed(identity.certificate_key()).unwrap().der().clone();
    Credentials { chain: vec![certificate], identity }
}

/// The first datagram of a real handshake.
fn first_datagram(federation: &Federation) -> Vec<u8> {
    let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
    ear.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = ear.local_addr().unwrap();
    let runtime = runtime();
    let _inside = runtime.enter();
    let tls = tls::client_config(&stranger(), authority(federation)).unwrap();
    let endpoint = transport::dial(to, tls).unwrap();
    let _connecting = endpoint.connect(to, tls::COORDINATOR_NAME).unwrap();
    let mut datagram = vec![0; 2048];
    let len = ear.recv(&mut datagram).unwrap();
    datagram.truncate(len);
    datagram
}

/// Garbage, and first datagrams that nobody follows up, until `over`.
fn shout(to: SocketAddr, first: &[u8], seed: u64, over: &AtomicBool, sent: &AtomicU64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sockets: Vec<UdpSocket> = (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    while !over.load(Ordering::Relaxed) {
        for socket in &sockets {
            let mut datagram = match random.random_range(0..3) {
                0 => first.to_vec(),
                1 => {
                    let mut changed = first.to_vec();
                    let at = random.random_range(0..changed.len());
                    changed[at] = random.random();
                    changed
                }
                _ => (0..random.random_range(1..1400)).map(|_| random.random()).collect(),
            };
            if random.random_bool(0.1) {
                datagram.truncate(random.random_range(1..=datagram.len()));
            }
            // A full buffer is what this is about.
            let _ = socket.send_to(&datagram, to);
            sent.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::yield_now();
    }
}

/// Whole handshakes with a certificate of nobody's, one after the other, until `over`.
async fn knock(to: SocketAddr, trust: impl Fn() -> Trust, over: &AtomicBool, knocks: &AtomicU64) {
    let credentials = stranger();
    while !over.load(Ordering::Relaxed) {
        if let Ok((_endpoint, connection)) = connect(to, &credentials, trust()).await {
            connection.closed().await;
        }
        knocks.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_unauthenticated_flood_does_not_stop_a_running_round() {
    let federation = Federation::start();
    let homes = ["berlin", "bonn"].map(|name| federation.join(name, &records(60), &["--cap-delta", "1e-4"]));
    let sites = homes.each_ref().map(|home| talking(home));
    let (to, first) = (address(&federation), first_datagram(&federation));
    let (over, sent, knocks) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (first, over, sent) = (&first, &over, &sent);
            scope.spawn(move || shout(to, first, seed, over, sent));
        }
        scope.spawn(|| {
            runtime().block_on(async {
                let knocker = || knock(to, || authority(&federation), &over, &knocks);
                tokio::join!(knocker(), knocker(), knocker(), knocker(), knocker(), knocker())
            })
        });
        let job = federation.job(40, 8.0, "[evaluation]\nevery = 0\n[federation]\nmin_sites = 2");
        federation.operator(&["job", "submit", &job]);
        let mut watch = Watch::start(&federation);
        for round in 0..40 {
            let committed = watch.until(&format!("round {round} committed"));
            assert!(committed.contains("2 sites"), "{committed}");
        }
        watch.until("job is finished");
        over.store(true, Ordering::Relaxed);
    });
    for (_, lines) in &sites {
        let connected = lines.try_iter().filter(|line| line.contains("is connected")).count();
        assert_eq!(connected, 1, "no site lost its connection");
    }
    let (sent, knocks, peak) = (sent.into_inner(), knocks.into_inner(), federation.peak_memory_mb());
    println!("{sent} datagrams and {knocks} handshakes of strangers; the coordinator's peak is {peak:.1} MB");
    assert!(sent > 10_000 && knocks > 10);
    assert!(peak < 150.0, "{peak} MB");
}

#[test]
fn who_has_not_shown_its_address_gets_a_retry_no_longer_than_what_it_sent_and_no_state() {
    let federation = Federation::start();
    let (to, first) = (address(&federation), first_datagram(&federation));
    for _ in 0..200 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&first, to).unwrap();
        let mut answer = [0; 2048];
        let len = socket.recv(&mut answer).unwrap();
        // RFC 9000, section 17.2.5: long header, fixed bit, type 3.
        assert_eq!(answer[0] & 0xf0, 0xf0, "the first answer is a retry");
        assert!(len < first.len() / 4, "{len} bytes for {}", first.len());
    }
}

#[test]
fn a_site_that_connects_and_does_not_greet_is_dropped_and_cannot_pile_up_connections() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let (_, credentials) = weighhouse_client::home::Home::at(&home).credentials().unwrap();
    runtime().block_on(async {
        let mut silent = Vec::new();
        for _ in 0..16 {
            silent.push(connect(address(&federation), &credentials, authority(&federation)).await.unwrap());
        }
        let one_too_many = connect(address(&federation), &credentials, authority(&federation)).await;
        if let Ok((_endpoint, connection)) = one_too_many {
            connection.closed().await;
        }
        for (_endpoint, connection) in &silent {
            let dropped = tokio::time::timeout(PATIENCE, connection.closed()).await;
            assert!(dropped.is_ok(), "a peer that does not greet keeps its connection");
        }
    });
    let _served = federation.serve_site(&home);
}

#[test]
fn a_site_that_does_not_read_its_model_is_dropped_and_the_others_go_on() {
    let federation = Federation::start();
    let [honest, slow] =
        ["berlin", "bonn"].map(|name| federation.join(name, &records(30), &["--cap-delta", "1e-4"]));
    let _honest = federation.serve_site(&honest);
    let (_, credentials) = weighhouse_client::home::Home::at(&slow).credentials().unwrap();
    let runtime = runtime();
    let (endpoint, connection, send, mut receive) = runtime.block_on(async {
        let (endpoint, connection) =
            connect(address(&federation), &credentials, authority(&federation)).await.unwrap();
        let (mut send, receive) = connection.open_bi().await.unwrap();
        let hello = SiteToCoordinator::Hello(Hello { protocol: 1, release: "x".into() });
        stream::send(&mut send, &hello).await.unwrap();
        let head = Head { entries: 0, hash: ContentHash::of(b"") };
        let signature = head.sign(&credentials.identity).to_vec();
        let head = SiteToCoordinator::LedgerHead(LedgerHead { contribution: None, head, signature });
        stream::send(&mut send, &head).await.unwrap();
        (endpoint, connection, send, receive)
    });
    let more = "[model.mlp]\nhidden = [1500, 1500]\n[evaluation]\nevery = 0\n[federation]\nmin_sites = 1";
    federation.operator(&["job", "submit", &federation.job(3, 1.0, more)]);
    runtime.block_on(async {
        let mut send = send;
        loop {
            match stream::receive(&mut receive).await.unwrap().unwrap() {
                CoordinatorToSite::JobOffer(offer) => {
                    let job = weighhouse_client::session::machine::job_of(&offer);
                    let answer = JobAnswer { job, decision: Decision::Accepted };
                    stream::send(&mut send, &SiteToCoordinator::JobAnswer(answer)).await.unwrap();
                }
                CoordinatorToSite::RoundStart(_) => break,
                _ => {}
            }
        }
        // Its model comes, and is not read.
        let dropped = tokio::time::timeout(PATIENCE, connection.closed()).await;
        assert!(dropped.is_ok(), "a slow reader keeps its connection");
    });
    drop(endpoint);
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
}

#[test]
fn an_operator_runs_one_command_after_another_as_each_says_goodbye() {
    let federation = Federation::start();
    let home = federation.home();
    // More, and in less time, than one key may have connections that nobody says goodbye to.
    for _ in 0..40 {
        output(&["job", "list", "--home", home.to_str().unwrap()]);
    }
}
