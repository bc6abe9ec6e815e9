//! What daemons tell whoever runs them: metrics on loopback, spans in the log, and nothing about anyone's records.

use crate::federation::{Federation, PROGRAM, failure, records, run};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A daemon whose log is kept.
struct Logged {
    child: Child,
    /// Where it serves metrics.
    address: String,
    log: std::thread::JoinHandle<String>,
}

/// Sets `metrics` in a home's settings.
fn serve_metrics_on(settings: &Path, address: &str) {
    let text = std::fs::read_to_string(settings).unwrap();
    let off = "# metrics = \"127.0.0.1:9464\"";
    assert!(text.contains(off), "{text}");
    std::fs::write(settings, text.replace(off, &format!("metrics = \"{address}\""))).unwrap();
}

impl Logged {
    /// Runs `side`'s daemon from `home` until it has said `ready` and where its metrics are.
    fn start(side: &str, home: &Path, ready: &str) -> Self {
        let mut program = Command::new(PROGRAM);
        program.args([side, "serve", "--end-with-stdin", "--home"]).arg(home);
        program.env("RUST_LOG", "weighhouse=debug");
        let program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (mut address, mut is_ready) = (None, false);
        while address.is_none() || !is_ready {
            let line = lines.next().expect("the daemon says where its metrics are");
            is_ready |= line.contains(ready);
            let found =
                line.split_once("metrics on http://").and_then(|(_, url)| url.strip_suffix("/metrics"));
            address = address.or(found.map(str::to_owned));
        }
        std::thread::spawn(move || lines.for_each(drop));
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        Self { child, address: address.unwrap(), log }
    }

    /// The answer to a request for `path`.
    fn asked(&self, path: &str) -> String {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The value of a metric; waits until it is at least `expected`.
    fn reaches(&self, metric: &str, expected: f64) -> f64 {
        loop {
            let text = self.asked("/metrics");
            let value = text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse::<f64>().ok());
            if let Some(value) = value.filter(|value| *value >= expected) {
                return value;
            }
        }
    }

    /// Ends it; its log.
    fn end(mut self) -> String {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
        self.log.join().unwrap()
    }
}

#[test]
fn metrics_and_spans_tell_of_jobs_and_rounds_and_nothing_of_records() {
    let mut federation = Federation::start();
    // One branch has three times the customers, and other ones.
    let other: String =
        records(180).replace("\nc", "\nother").replace(",1\n", ",0\n").replacen(",0\n", ",1\n", 60);
    let homes = [("berlin", records(60)), ("bonn", other)]
        .map(|(name, records)| federation.join(name, &records, &[]));
    federation.end_coordinator();
    serve_metrics_on(&federation.home().join("coordinator.toml"), "127.0.0.1:0");
    for home in &homes {
        serve_metrics_on(&home.join("client.toml"), "[::1]:0");
    }
    let coordinator = Logged::start("coordinator", &federation.home(), "listening");
    let sites = homes.each_ref().map(|home| Logged::start("client", home, "is connected"));
    let job = federation.job(3, 4.0, "[evaluation]\nevery = 1");
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("finished"), "{watched}");

    assert_eq!(coordinator.reaches("weighhouse_coordinator_sites_online", 2.0), 2.0);
    assert!(coordinator.reaches("weighhouse_coordinator_rounds_committed_total", 3.0) < 6.0);
    coordinator.reaches("weighhouse_coordinator_contributions_total{outcome=\"admitted\"}", 6.0);
    let [berlin, bonn] = sites.each_ref().map(|site| {
        site.reaches("weighhouse_site_jobs_ended_total", 1.0);
        assert!(site.reaches("weighhouse_site_epsilon_spent", 1.0) <= 8.0);
        assert!(site.asked("/").starts_with("HTTP/1.1 404"));
        let text = site.asked("/metrics");
        let lines = text.lines().filter(|line| line.starts_with("weighhouse_") && !line.contains("expiry"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(berlin, bonn, "what metrics say does not depend on records");
    assert!(berlin.contains(&"weighhouse_site_decisions_total{decision=\"accepted\"} 1".to_owned()));

    let logs = sites.map(Logged::end);
    let log = coordinator.end();
    let spanned = |log: &str, span: &str| log.lines().any(|line| line.contains(span));
    assert!(spanned(&log, "site{site="), "{log}");
    assert!(spanned(&log, "round{job="), "{log}");
    for log in logs {
        assert!(spanned(&log, "site{site="), "{log}");
        assert!(!log.contains("other17"), "{log}");
    }
}

#[test]
fn metrics_are_off_unless_asked_for_and_never_beyond_loopback() {
    let mut federation = Federation::start();
    federation.end_coordinator();
    let home = federation.home();
    serve_metrics_on(&home.join("coordinator.toml"), "0.0.0.0:9464");
    let refused = failure(&["coordinator", "serve", "--home", home.to_str().unwrap()]);
    assert!(refused.contains("on loopback only"), "{refused}");
    let doctor = run(&["doctor", "--home", home.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("on loopback only"));
}
