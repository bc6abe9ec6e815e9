//! Sites that send what they should not, or too late; and jobs that are made for such.

use crate::federation::{Daemon, Federation, output, records};
use crate::watch::Watch;
use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use std::path::Path;
use std::process::Command;
use weighhouse_client::session::connect;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::{Charge, Head, Population};
use weighhouse_shared::privacy::accountant::GaussianEvent;
use weighhouse_shared::tls::Trust;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Debited, Decision, Hello, JobAnswer, LedgerHead, Outcome, RoundStart,
    SiteToCoordinator,
};
use weighhouse_shared::wire::stream::{self, Content, Taken};

/// A site with a good certificate that keeps to the protocol as far as it likes.
struct Rogue {
    _endpoint: quinn::Endpoint,
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    identity: Identity,
    entries: u64,
    start: RoundStart,
    contract: JobContract,
}

impl Rogue {
    /// Connects with the keys in `home`, accepts the job it is offered and waits for its first round.
    async fn join(federation: &Federation, home: &Path) -> Self {
        let (authority, credentials) = weighhouse_client::home::Home::at(home).credentials().unwrap();
        let identity = weighhouse_client::home::Home::at(home).identity().unwrap();
        let to = std::fs::read_to_string(federation.home().join("address")).unwrap().parse().unwrap();
        let (endpoint, connection) = connect(to, &credentials, Trust::Authority(authority)).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let hello = SiteToCoordinator::Hello(Hello { protocol: 1, release: "x".into() });
        stream::send(&mut send, &hello).await.unwrap();
        stream::send(&mut send, &told(&identity, 1, None)).await.unwrap();
        let (mut offered, mut begun) = (None, None);
        while begun.is_none() {
            match stream::receive(&mut receive).await.unwrap().unwrap() {
                CoordinatorToSite::JobOffer(offer) => {
                    let contract: JobContract = codec::decode(&offer.contract).unwrap();
                    let answer = JobAnswer { job: contract.id(), decision: Decision::Accepted };
                    offered = Some(contract);
                    stream::send(&mut send, &SiteToCoordinator::JobAnswer(answer)).await.unwrap();
                }
                CoordinatorToSite::RoundStart(start) => begun = Some(start),
                _ => {}
            }
        }
        let (start, contract) = (begun.unwrap(), offered.unwrap());
        Self { _endpoint: endpoint, connection, send, receive, identity, entries: 1, start, contract }
    }

    /// Tells what was debited, if it likes, and that its ledger covers the next contribution.
    async fn announce(&mut self, event: Option<GaussianEvent>) {
        let (job, round) = (self.start.job, self.start.round);
        if let Some(event) = event {
            let charge = Charge { population: Population::Training, event };
            let debited = SiteToCoordinator::Debited(Debited { job, round, charge });
            stream::send(&mut self.send, &debited).await.unwrap();
        }
        self.entries += 1;
        let head = told(&self.identity, self.entries, Some((job, round)));
        stream::send(&mut self.send, &head).await.unwrap();
    }

    /// Sends an update; what becomes of it.
    async fn update(&mut self, body: Vec<u8>) -> Outcome {
        let RoundStart { job, round, model, .. } = self.start;
        let content = ContentHash::of(&body);
        // A stream that is stopped was refused; the receipt says why.
        let content = Content { job, round, base: model, hash: content, bytes: Bytes::from(body) };
        let _ = stream::send_content(&self.connection, &content, 0, Taken::InTurn).await;
        loop {
            match stream::receive(&mut self.receive).await.unwrap().unwrap() {
                CoordinatorToSite::Receipt(receipt) => return receipt.outcome,
                _ => continue,
            }
        }
    }
}

fn told(identity: &Identity, entries: u64, contribution: Option<(JobId, RoundId)>) -> SiteToCoordinator {
    let head = Head { entries, hash: ContentHash::of(&entries.to_le_bytes()) };
    let signature = head.sign(identity).into();
    SiteToCoordinator::LedgerHead(LedgerHead { contribution, head, signature })
}

fn integers(values: [i32; 4]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn jobs(federation: &Federation) -> serde_json::Value {
    serde_json::from_str(&federation.operator(&["job", "list", "--format", "json"])).unwrap()
}

/// A job of four parameters. Each bad update gets its own label, counts for nothing, and the good one at the end counts.
#[test]
fn what_a_rogue_site_sends_is_refused_by_label_and_the_job_goes_on() {
    let federation = Federation::start();
    let honest = federation.join("berlin", &records(60), &["--cap-delta", "1e-4"]);
    let rogue = federation.join("mallory", &records(60), &[]);
    let _daemon = federation.serve_site(&honest);
    let job = federation.job(1, 2.0, "[federation]\nmin_sites = 2\n[evaluation]\nevery = 0");
    federation.operator(&["job", "submit", &job]);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut rogue = Rogue::join(&federation, &rogue).await;
        let due = rogue.contract.round_charge();
        let nan = [f32::NAN.to_le_bytes(); 4].concat();
        assert_eq!(rogue.update(nan).await, Outcome::NotFinite);
        assert_eq!(rogue.update(integers([0, i32::MIN, 0, 0])).await, Outcome::OutOfRange);
        assert_eq!(rogue.update(vec![0; 12]).await, Outcome::WrongShape);
        assert_eq!(rogue.update(vec![0; 5 << 20]).await, Outcome::TooLong);
        rogue.announce(None).await;
        assert_eq!(rogue.update(integers([1; 4])).await, Outcome::WrongCharge);
        rogue.announce(Some(GaussianEvent { steps: due.steps - 1, ..due })).await;
        assert_eq!(rogue.update(integers([1; 4])).await, Outcome::WrongCharge);
        rogue.announce(Some(due)).await;
        assert_eq!(rogue.update(integers([1; 4])).await, Outcome::Admitted);
        rogue.announce(None).await;
        let again = rogue.update(integers([1; 4])).await;
        assert!([Outcome::Repeated, Outcome::Late].contains(&again), "{again}");
    });
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    assert!(watched.contains("refused so far: 1 wrong_shape, 1 out_of_range"), "{watched}");
    let refused = &jobs(&federation)[0]["refused"];
    for (label, count) in [("not_finite", 1), ("out_of_range", 1), ("too_long", 1), ("wrong_charge", 2)] {
        assert_eq!(refused[label], count, "{refused}");
    }
    assert!(federation.operator(&["job", "list"]).contains("1 not_finite"));
}

fn signal(daemon: &Daemon, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &daemon.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The slow site is a daemon that is stopped in the middle of the job and goes on after a round closed without it.
#[test]
fn a_slow_site_is_not_waited_for_without_end_and_is_told_why() {
    let federation = Federation::start();
    let homes = ["berlin", "bonn"].map(|name| federation.join(name, &records(60), &["--cap-delta", "1e-4"]));
    let _quick = federation.serve_site(&homes[0]);
    let slow = federation.serve_site(&homes[1]);
    let keys = "[federation]\nmin_sites = 1\nmax_idle_s = 1\n[evaluation]\nevery = 0";
    let job = federation.job(300, 8.0, keys);
    federation.operator(&["job", "submit", &job]);
    let mut watch = Watch::start(&federation);
    watch.until("committed: 2 sites");
    signal(&slow, "STOP");
    watch.until("closed without bonn");
    signal(&slow, "CONT");
    watch.until("committed: 2 sites");
    watch.until("job is finished");
    let home = homes[1].to_str().unwrap();
    let seen = || -> serde_json::Value {
        serde_json::from_str(&output(&["client", "jobs", "--home", home, "--format", "json"])).unwrap()
    };
    let late = std::iter::repeat_with(seen)
        .take(1000)
        .find_map(|jobs| jobs[0]["refused"]["counts"]["late"].as_u64());
    assert!(late.unwrap() >= 1);
    let status = output(&["client", "status", "--home", home]);
    assert!(
        status.contains("late: the round closed before it came; nothing is held against the site"),
        "{status}"
    );
}

#[test]
fn jobs_with_robust_strategies_and_compressed_updates_run_to_their_end() {
    let federation = Federation::start();
    let _sites: Vec<Daemon> = (0..5)
        .map(|site| {
            let home = federation.join(&format!("site-{site}"), &records(60), &["--cap-delta", "1e-4"]);
            federation.serve_site(&home)
        })
        .collect();
    let keys = "min_sites = 5\nmax_sites = 100\nnorm_bound = 5.0";
    for (strategy, compression) in
        [("multi_krum", "int8"), ("fedmedian", "int4"), ("trimmed_mean", "top_k"), ("fedavg", "top_k")]
    {
        let keys = format!("{keys}\nstrategy = \"{strategy}\"\ncompression = \"{compression}\"");
        let job = federation.job(4, 1.5, &format!("[federation]\n{keys}"));
        let watched = federation.operator(&["job", "submit", &job, "--watch"]);
        assert!(watched.contains("job is finished"), "{strategy}: {watched}");
        assert!(!watched.contains("refused"), "{strategy}: {watched}");
    }
    assert!(federation.operator(&["model", "list"]).contains("test"));
}

/// One of three daemons is killed again and again; the others do not wait for it, and nobody pays for more updates than the
/// contract allows.
#[test]
fn a_buffered_job_runs_at_each_sites_pace_and_over_kills_of_site_and_coordinator() {
    let mut federation = Federation::start();
    let homes = ["berlin", "bonn", "bremen"]
        .map(|name| federation.join(name, &records(60), &["--cap-delta", "1e-4"]));
    let _stay = [federation.serve_site(&homes[0]), federation.serve_site(&homes[1])];
    let mut killed = federation.serve_site(&homes[2]);
    let keys = "[federation]\nmin_sites = 2\nschedule = \"buffered\"";
    let job = federation.job(150, 8.0, keys);
    federation.operator(&["job", "submit", &job]);
    for _ in 0..3 {
        let mut watch = Watch::start(&federation);
        watch.until_times("sites in", 6);
        killed.kill();
        watch.until_times("sites in", 4);
        drop(watch);
        federation.kill_coordinator();
        federation.serve();
        killed = federation.serve_site(&homes[2]);
    }
    let watched = federation.operator(&["job", "watch"]);
    assert!(watched.contains("job is finished"), "{watched}");
    let committed = watched.lines().filter(|line| line.contains("committed")).count();
    assert_eq!(committed, 151, "150 steps and the evaluation of the last model");
    for home in &homes {
        let status = federation.status(home);
        assert!(status["epsilon_spent"].as_f64().unwrap() <= 8.0);
        assert!(status["updates_released"].as_u64().unwrap() <= 150);
        assert!(status["evaluations_released"].as_u64().unwrap() <= 1);
    }
}
