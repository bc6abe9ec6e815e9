//! A coordinator with many sites on one machine: a thousand that are connected and idle, and a cohort of two hundred
//! that trains a model of a million parameters. The coordinator is the real daemon; the sites are light connections in
//! this process, which greet, agree, take each model and send a constant in the shape of an update.
//!
//! `cargo bench --bench crowd` prints the coordinator's memory after each stage, the time of each round and the
//! throughput beside that of a bare transfer of the same bytes in the same run.

#[path = "../tests/it/federation.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod federation;

#[path = "bare/mod.rs"]
mod bare;

use bare::Bare;
use bytes::Bytes;
use federation::{Federation, PROGRAM};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use weighhouse_coordinator::home::Home;
use weighhouse_coordinator::store::{InviteRecord, SiteRecord, Store};
use weighhouse_shared::clock;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::{Charge, Head, Population};
use weighhouse_shared::tls::{self, COORDINATOR_NAME, Credentials, Trust};
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Debited, Decision, Hello, JobAnswer, LedgerHead, RoundStart, SiteToCoordinator,
};
use weighhouse_shared::wire::stream::{self, Content, Taken};
use weighhouse_shared::wire::{PROTOCOL_VERSION, codec, transport};

const IDLE: usize = 1_000;
const COHORT: usize = 200;
const ROUNDS: usize = 6;
/// Hidden layers of a perceptron on three features with a million parameters.
const HIDDEN: u64 = 997;
const PARAMETERS: u64 = 3 * HIDDEN + HIDDEN + HIDDEN * HIDDEN + HIDDEN + HIDDEN + 1;
/// Handshakes at a time.
const AT_ONCE: usize = 32;

/// Makes `count` sites known to the coordinator, which must not be running.
fn enlist(home: &Home, count: usize) -> Vec<Credentials> {
    let issuer = home.issuer().unwrap();
    let store = Store::open(&home.path("state")).unwrap();
    let now_s = clock::unix_time_s();
    let made = (0..count).map(|number| {
        let identity = Identity::generate().unwrap();
        let (name, public_key) = (format!("site-{number}"), identity.public_key());
        let certificate = issuer.issue_site(&name, &public_key, now_s).unwrap();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let invite = InviteRecord { id, secret: [0; 32], expires_s: now_s };
        let (public_key, shown) = (Some(public_key), Some(certificate.to_vec()));
        let record = SiteRecord { name, invite, public_key, certificate: shown, revoked: false };
        store.put_site(&record).unwrap();
        Credentials { chain: vec![certificate, issuer.certificate.clone()], identity }
    });
    let made = made.collect();
    store.sync().unwrap();
    made
}

/// A light site.
struct Light {
    identity: Identity,
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    entries: u64,
}

impl Light {
    async fn connect(
        endpoint: Endpoint,
        to: SocketAddr,
        authority: CertificateDer<'static>,
        credentials: Credentials,
    ) -> Self {
        let trust = Trust::Authority(authority);
        let config = transport::client_config(tls::client_config(&credentials, trust).unwrap());
        let connection = endpoint.connect_with(config, to, COORDINATOR_NAME).unwrap().await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut site = Self { identity: credentials.identity, connection, send, receive, entries: 0 };
        let hello = Hello { protocol: PROTOCOL_VERSION, release: "light".into() };
        site.say(SiteToCoordinator::Hello(hello)).await;
        site.tell_head(None).await;
        loop {
            if let CoordinatorToSite::Witnessed(_) = site.hear().await {
                return site;
            }
        }
    }

    async fn say(&mut self, message: SiteToCoordinator) {
        stream::send(&mut self.send, &message).await.unwrap();
    }

    async fn hear(&mut self) -> CoordinatorToSite {
        stream::receive(&mut self.receive).await.unwrap().expect("the coordinator stays")
    }

    async fn tell_head(&mut self, contribution: Option<(JobId, RoundId)>) {
        let hash = ContentHash::of(&self.entries.to_le_bytes());
        let head = Head { entries: self.entries, hash };
        let signature = head.sign(&self.identity).to_vec();
        self.say(SiteToCoordinator::LedgerHead(LedgerHead { contribution, head, signature })).await;
    }

    /// Reads a model to its end.
    async fn take_model(&self, len: usize) {
        let mut received = 0;
        while received < len {
            let mut stream = self.connection.accept_uni().await.unwrap();
            stream::receive_piece(&mut stream).await.unwrap();
            while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.unwrap() {
                received += chunk.bytes.len();
            }
        }
    }

    /// Takes part in one job until it ends: each round takes the model, then sends the update.
    async fn take_part(mut self, update: Bytes) {
        let (mut charge, hash) = (None, ContentHash::of(&update));
        loop {
            match self.hear().await {
                CoordinatorToSite::JobOffer(offer) => {
                    let contract: JobContract = codec::decode(&offer.contract).unwrap();
                    let (population, event) = (Population::Training, contract.round_charge());
                    charge = Some(Charge { population, event });
                    let answer = JobAnswer { job: contract.id(), decision: Decision::Accepted };
                    self.say(SiteToCoordinator::JobAnswer(answer)).await;
                }
                CoordinatorToSite::RoundStart(RoundStart { job, round, model, .. }) => {
                    let charge = charge.expect("the offer came first");
                    self.take_model(update.len()).await;
                    self.say(SiteToCoordinator::Debited(Debited { job, round, charge })).await;
                    self.entries += 2;
                    self.tell_head(Some((job, round))).await;
                    let content = Content { job, round, base: model, hash, bytes: update.clone() };
                    stream::send_content(&self.connection, &content, 0, Taken::InTurn).await.unwrap();
                }
                CoordinatorToSite::JobEnded(_) => break,
                _ => {}
            }
        }
    }
}

/// Connects a site for each of `credentials`, [`AT_ONCE`] at a time.
async fn connect_all(
    to: SocketAddr,
    authority: &CertificateDer<'static>,
    endpoints: &[Endpoint],
    credentials: Vec<Credentials>,
) -> Vec<Light> {
    let mut sites = Vec::new();
    let mut left = credentials.into_iter().enumerate();
    loop {
        let mut connecting = JoinSet::new();
        for (number, credentials) in left.by_ref().take(AT_ONCE) {
            let endpoint = endpoints[number % endpoints.len()].clone();
            connecting.spawn(Light::connect(endpoint, to, authority.clone(), credentials));
        }
        if connecting.is_empty() {
            return sites;
        }
        sites.extend(connecting.join_all().await);
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

fn main() {
    let mut federation = Federation::start();
    federation.end_coordinator();
    let home = Home::at(&federation.home());
    let mut credentials = enlist(&home, IDLE + COHORT);
    federation.serve();
    let to: SocketAddr = std::fs::read_to_string(home.path("address")).unwrap().parse().unwrap();
    let memory =
        |what: &str| println!("{what}: the coordinator's peak is {:.1} MB", federation.peak_memory_mb());
    memory("nobody connected");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let inside = runtime.enter();
    let authority = home.authority().unwrap();
    let trust = || Trust::Authority(authority.clone());
    let dial = |_| transport::dial(to, tls::client_config(&credentials[0], trust()).unwrap()).unwrap();
    let endpoints: Vec<Endpoint> = (0..16).map(dial).collect();
    drop(inside);
    let cohort = credentials.split_off(IDLE);
    let idle = runtime.block_on(connect_all(to, &authority, &endpoints, credentials));
    memory(&format!("{} idle sites", idle.len()));
    // They answer offers with a refusal, as a site does that has no such data.
    for mut site in idle {
        runtime.spawn(async move {
            // Until the bench ends.
            while let Ok(Some(message)) = stream::receive::<CoordinatorToSite>(&mut site.receive).await {
                if let CoordinatorToSite::JobOffer(offer) = message {
                    let job = weighhouse_client::session::machine::job_of(&offer);
                    let answer = JobAnswer { job, decision: Decision::RefusedSchema };
                    site.say(SiteToCoordinator::JobAnswer(answer)).await;
                }
            }
        });
    }
    let cohort = runtime.block_on(connect_all(to, &authority, &endpoints, cohort));
    let update = Bytes::from(1i32.to_le_bytes().repeat(PARAMETERS as usize));
    let size = cohort.len();
    for site in cohort {
        runtime.spawn(site.take_part(update.clone()));
    }

    let more = format!(
        "[model.mlp]\nhidden = [{HIDDEN}, {HIDDEN}]\n[evaluation]\nevery = 0\n[federation]\nmin_sites = {size}"
    );
    let job = federation.job(ROUNDS as u32, 1.0, &more);
    let mut watch = Command::new(PROGRAM)
        .args(["job", "submit", &job, "--watch", "--format", "json", "--home"])
        .arg(federation.home())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    let commits: Vec<Instant> =
        lines.filter(|line| line.contains("committed")).map(|_| Instant::now()).collect();
    assert!(watch.wait().unwrap().success() && commits.len() == ROUNDS, "a round failed");
    let rounds: Vec<Duration> = commits.windows(2).map(|pair| pair[1] - pair[0]).collect();
    memory(&format!("{size} sites x {PARAMETERS} parameters, {ROUNDS} rounds"));
    drop(runtime);
    drop(federation);

    let bare = Bare::new(COHORT);
    let transfers = (0..5).map(|_| {
        let began = Instant::now();
        bare.round(&update);
        began.elapsed()
    });
    let (round, transfer) = (median(rounds), median(transfers.collect()));
    let megabytes = 2.0 * 4.0 * PARAMETERS as f64 * size as f64 / 1e6;
    println!(
        "a round takes {round:.2} s ({:.0} MB/s), a bare transfer of the same bytes {transfer:.2} s ({:.0} MB/s): {:.2} of it",
        megabytes / round,
        megabytes / transfer,
        transfer / round
    );
}
