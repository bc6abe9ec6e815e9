//! What a secure sum costs over a plain round, over real daemons on loopback in the same run: seconds and bytes a round.
//! The sites add a constant instead of training; everything else happens: debit, masks, store, release, upload, sum,
//! question, answers, unmasking, durable commit. And masks beside the bare cipher and a copy of the same bytes.
//!
//! Run with `cargo bench --features constant-update --bench secure_sum`. Bytes are those of the loopback interface: run
//! nothing else on it.

#[path = "../tests/it/federation.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod federation;

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use federation::{Federation, PROGRAM, records};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;
use weighhouse_shared::secure_sum::keys::Secret;
use weighhouse_shared::secure_sum::masks::{Masks, Sign};

const SITES: usize = 10;
/// Hidden layers of a perceptron on three features: some 1e5 and 1e6 parameters.
const HIDDEN: [[u32; 2]; 2] = [[310, 317], [997, 997]];
const ROUNDS: u32 = 12;
/// Jobs of each kind, in turns.
const TURNS: usize = 3;
const MODES: [&str; 2] = ["site", "secure_sum"];

/// What one round took, of a job of [`ROUNDS`] rounds: the first is left out.
struct Cost {
    seconds: f64,
    bytes: f64,
}

/// Bytes sent over the loopback interface so far.
fn loopback_bytes() -> f64 {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn run(federation: &Federation, hidden: [u32; 2], mode: &str) -> Cost {
    let more = format!(
        "[model.mlp]\nhidden = [{}, {}]\n[evaluation]\nevery = 0\n[federation]\nmode = \"{mode}\"\nmin_sites = {}",
        hidden[0],
        hidden[1],
        SITES - 1
    );
    let job = federation.job(ROUNDS, 8.0, &more);
    let home = federation.home();
    let mut watch = Command::new(PROGRAM)
        .args(["job", "submit", &job, "--watch", "--format", "json", "--home", home.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    let commits = lines.filter(|line| line.contains("committed"));
    let times: Vec<(Instant, f64)> = commits
        .map(|line| {
            assert!(line.contains(&format!("\"sites\":{SITES}")), "{line}");
            (Instant::now(), loopback_bytes())
        })
        .collect();
    assert!(watch.wait().unwrap().success());
    assert_eq!(times.len(), ROUNDS as usize);
    let (first, last) = (times[0], times[times.len() - 1]);
    let rounds = f64::from(ROUNDS - 1);
    Cost { seconds: (last.0 - first.0).as_secs_f64() / rounds, bytes: (last.1 - first.1) / rounds }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rounds() {
    let federation = Federation::start();
    let caps = ["--cap-epsilon", "1000", "--cap-delta", "1e-3"];
    let homes: Vec<_> =
        (0..SITES).map(|site| federation.join(&format!("site-{site}"), &records(40), &caps)).collect();
    let _daemons: Vec<_> = homes.iter().map(|home| federation.serve_site(home)).collect();
    for hidden in HIDDEN {
        let [first, second] = hidden.map(u64::from);
        let parameters = 3 * first + first + first * second + second + second + 1;
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (mode, costs) in MODES.iter().zip(&mut costs) {
                costs.push(run(&federation, hidden, mode));
            }
        }
        let [plain, summed] = costs.map(|costs| {
            let seconds = median(costs.iter().map(|cost| cost.seconds).collect());
            let bytes = median(costs.iter().map(|cost| cost.bytes).collect());
            Cost { seconds, bytes }
        });
        println!(
            "{SITES} sites x {parameters}: plain {:.4} s, {:.2} MB a round; secure sum {:.4} s, {:.2} MB: {:.2} times the \
             time, {:.3} times the bytes",
            plain.seconds,
            plain.bytes / 1e6,
            summed.seconds,
            summed.bytes / 1e6,
            summed.seconds / plain.seconds,
            summed.bytes / plain.bytes
        );
    }
}

/// Bytes a second of `work` on `bytes` bytes, the best of several.
fn speed(bytes: usize, mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let began = Instant::now();
        work();
        best = best.min(began.elapsed().as_secs_f64());
    }
    bytes as f64 / best
}

fn masks() {
    const VALUES: usize = 1 << 20;
    let mut values = vec![7u32; VALUES];
    let mut masks = Masks::default();
    for byte in 0..SITES as u8 {
        masks.push(&Secret::from_bytes([byte; 32]), if byte % 2 == 0 { Sign::Plus } else { Sign::Minus });
    }
    let masked = speed(4 * VALUES * SITES, || masks.apply(&mut values, 1));
    let key = EncryptingKey::ctr(UnboundCipherKey::new(&AES_256, &[1; 32]).unwrap()).unwrap();
    let mut bytes = vec![0u8; 4 * VALUES];
    let cipher = speed(4 * VALUES * SITES, || {
        for _ in 0..SITES {
            let counter = EncryptionContext::Iv128(FixedLength::from([0; 16]));
            key.less_safe_encrypt(&mut bytes, counter).unwrap();
        }
    });
    let from = vec![1u8; 4 * VALUES];
    let copied = speed(4 * VALUES * SITES, || {
        for _ in 0..SITES {
            bytes.copy_from_slice(std::hint::black_box(&from));
        }
    });
    println!(
        "{SITES} masks of {VALUES} integers on one core: {:.2} GB/s, which is {:.2} of bare AES-256-CTR ({:.2} GB/s) and \
         {:.2} of a copy ({:.2} GB/s)",
        masked / 1e9,
        masked / cipher,
        cipher / 1e9,
        masked / copied,
        copied / 1e9
    );
}

fn main() {
    // `cargo test` runs benches too, to see that they start.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    masks();
    rounds();
}
