//! Seconds a round, over real daemons on loopback with mutual TLS, beside a bare QUIC transfer of the
//! same bytes in the same run. The sites add a constant instead of training; everything else of a round
//! happens: debit, store, release, upload, admission, sum, durable commit.
//!
//! Run with `cargo bench --features constant-update --bench round`. Peak memory and processor time of the
//! daemons are printed behind each figure.

#[path = "../tests/it/federation.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod federation;

#[path = "bare/mod.rs"]
mod bare;

use bare::Bare;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use federation::{Federation, PROGRAM, records};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sites, hidden layers, parameters of the perceptron on three features.
const SHAPES: [(usize, [u32; 2]); 4] =
    [(2, [310, 317]), (8, [997, 997]), (4, [3160, 3160]), (8, [3160, 3160])];

fn parameters([first, second]: [u32; 2]) -> u64 {
    u64::from(3 * first + first + first * second + second + second + 1)
}

/// Runs a job of `rounds` rounds; the time of each commit.
fn commits(federation: &Federation, hidden: [u32; 2], rounds: u64) -> Vec<Instant> {
    let more = format!("[model.mlp]\nhidden = [{}, {}]\n[evaluation]\nevery = 0", hidden[0], hidden[1]);
    let job = federation.job(u32::try_from(rounds).unwrap(), 1.0, &more);
    let mut watch = Command::new(PROGRAM)
        .args([
            "job",
            "submit",
            &job,
            "--watch",
            "--format",
            "json",
            "--home",
            federation.home().to_str().unwrap(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    let times: Vec<Instant> =
        lines.filter(|line| line.contains("committed")).map(|_| Instant::now()).collect();
    assert!(watch.wait().unwrap().success());
    assert_eq!(times.len() as u64, rounds);
    times
}

/// A field of /proc/PID/status in MB, and seconds of processor time, of each process run from `folder`.
fn footprint(folder: &str) -> Vec<(String, f64, f64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if !command.contains(folder) || !command.contains(" serve ") {
            continue;
        }
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak =
            peak.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0;
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let ticks: f64 =
            stat.split_whitespace().skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        let kind = if command.contains(" coordinator ") { "coordinator" } else { "site" };
        found.push((kind.to_owned(), peak, ticks / 100.0));
    }
    found
}

fn rounds(criterion: &mut Criterion) {
    for (sites, hidden) in SHAPES {
        let count = parameters(hidden);
        let name = format!("{sites} sites x {count}");
        let mut group = criterion.benchmark_group("round");
        group.sample_size(10).measurement_time(Duration::from_secs(if count > 5_000_000 { 12 } else { 5 }));
        group.throughput(Throughput::Bytes(2 * 4 * count * sites as u64));

        let bare = Bare::new(sites);
        let bytes = Bytes::from(vec![0u8; 4 * count as usize]);
        group.bench_function(BenchmarkId::new("bare transfer", &name), |bencher| {
            bencher.iter(|| bare.round(&bytes));
        });
        drop(bare);

        let federation = Federation::start();
        let homes: Vec<_> = (0..sites)
            .map(|site| federation.join(&format!("site-{site}"), &records(40), &["--cap-epsilon", "1000"]))
            .collect();
        let daemons: Vec<_> = homes.iter().map(|home| federation.serve_site(home)).collect();
        let folder = federation.home();
        let folder = folder.parent().unwrap().to_str().unwrap().to_owned();
        for (kind, peak, _) in footprint(&folder).iter().take(2) {
            eprintln!("{name}: an idle {kind} has {peak:.1} MB");
        }
        let mut measured = 0;
        group.bench_function(BenchmarkId::new("round", &name), |bencher| {
            bencher.iter_custom(|rounds| {
                let times = commits(&federation, hidden, rounds + 1);
                measured += rounds + 1;
                times[times.len() - 1] - times[0]
            });
        });
        let all = footprint(&folder);
        let moved = 8.0 * count as f64 * sites as f64 * measured as f64 / 1e9;
        let processor: f64 = all.iter().map(|(_, _, seconds)| seconds).sum();
        let peak = |kind: &str| {
            all.iter().filter(|(found, ..)| found == kind).map(|(_, peak, _)| *peak).fold(0.0, f64::max)
        };
        eprintln!(
            "{name}: peak memory coordinator {:.1} MB, site {:.1} MB; {:.2} processor seconds a GB over {moved:.2} GB",
            peak("coordinator"),
            peak("site"),
            processor / moved
        );
        drop(daemons);
        group.finish();
    }
}

/// From nothing to the end of round one: keys, four sites joined by invite, daemons up, 1e6 parameters.
fn from_nothing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("from nothing to the end of round one");
    group.sample_size(10);
    group.bench_function("4 sites x 1e6", |bencher| {
        bencher.iter_custom(|times| {
            (0..times)
                .map(|_| {
                    let began = Instant::now();
                    let federation = Federation::start();
                    // Each site is its own people's machine: they join at the same time.
                    let join = |site: usize| {
                        let name = format!("site-{site}");
                        let home = federation.join(&name, &records(40), &["--cap-epsilon", "1000"]);
                        federation.serve_site(&home)
                    };
                    let _daemons: Vec<_> = std::thread::scope(|scope| {
                        let joining: Vec<_> = (0..4).map(|site| scope.spawn(move || join(site))).collect();
                        joining.into_iter().map(|joined| joined.join().unwrap()).collect()
                    });
                    let done = commits(&federation, [997, 997], 1)[0];
                    done - began
                })
                .sum()
        });
    });
    group.finish();
}

criterion_group!(benches, rounds, from_nothing);
criterion_main!(benches);
