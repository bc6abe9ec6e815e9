//! `weighhouse audit` on ledgers good, tampered with and hostile.

use crate::federation::{Federation, PROGRAM, failure, output, records, run};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::ledger::{
    Body, Chain, Charge, Head, Population, Received, ReleaseKind, SignedWitness, Witness,
};
use weighhouse_shared::policy::{PolicyText, first_policy};
use weighhouse_shared::privacy::accountant::GaussianEvent;
use weighhouse_shared::privacy::grid::Grid;
use weighhouse_shared::privacy::{ClipNorm, Delta, Epsilon, Mechanism, NoiseMultiplier, SamplingRate};

const JOB: JobId = JobId::from_bytes([3; 32]);
const NAME: &str = "=1+1 <script>\u{1b}[2J";

/// A ledger as it is written, line by line, and who writes it.
struct Ledger {
    identity: Identity,
    chain: Chain,
    lines: Vec<Vec<u8>>,
    time_s: u64,
}

fn charge(noise: f64, rate: f64, steps: u32) -> Charge {
    let (noise_multiplier, sampling_rate) =
        (NoiseMultiplier::new(noise).unwrap(), SamplingRate::new(rate).unwrap());
    let event = GaussianEvent { noise_multiplier, sampling_rate, steps };
    Charge { population: Population::Training, event }
}

fn policy(epsilon: f64) -> String {
    first_policy(Epsilon::new(epsilon).unwrap(), Delta::new(1e-5).unwrap())
}

impl Ledger {
    fn opened(policy: String) -> Self {
        let identity = Identity::generate().unwrap();
        let mut ledger = Self { identity, chain: Chain::default(), lines: Vec::new(), time_s: 1_772_000_000 };
        let public_key = hex(&ledger.identity.public_key());
        let policy = PolicyText::unsigned(policy);
        ledger.write(Body::Opened { public_key, holdout_permille: 150, policy });
        ledger
    }

    /// With one job of `rounds` rounds.
    fn of_rounds(rounds: u32) -> Self {
        let mut ledger = Self::opened(policy(1000.0));
        ledger.write(Body::Reserved {
            job: JOB,
            name: NAME.into(),
            charges: vec![charge(30.0, 1.0, rounds)],
        });
        (0..rounds).for_each(|round| ledger.round(JOB, round, charge(30.0, 1.0, 1)));
        ledger.write(Body::Returned { job: JOB });
        ledger
    }

    fn write(&mut self, body: Body) {
        self.time_s += 60;
        let (chain, _, line) = self.chain.next(body, &self.identity, self.time_s).unwrap();
        self.chain = chain;
        self.lines.push(line.as_bytes().to_vec());
    }

    fn round(&mut self, job: JobId, round: u32, charge: Charge) {
        let mechanism = Mechanism::clipped_gradient_sum(
            &Grid::new(ClipNorm::new(0.5).unwrap()),
            charge.event.noise_multiplier,
        );
        let (debit, round) = (self.chain.len(), RoundId(round));
        self.write(Body::Debited { job, round, charge, mechanism });
        let bytes = item(round.0);
        let (kind, content, len) = (ReleaseKind::Update, ContentHash::of(&bytes), bytes.len() as u64);
        self.write(Body::Released { job, round, kind, debit, content, len });
    }

    fn bytes(&self) -> Vec<u8> {
        self.lines.concat()
    }
}

/// The bytes that a round releases.
fn item(round: u32) -> Vec<u8> {
    format!("noised bytes of round {round}").into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder with a ledger, and how `audit verify` ends there.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn with(ledger: &[u8]) -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        desk.put("ledger.jsonl", ledger);
        desk
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ledger(&self) -> String {
        self.path("ledger.jsonl").to_str().unwrap().to_owned()
    }

    /// What `audit verify` tells people, whatever the width of its lines.
    fn told(&self) -> String {
        output(&["audit", "verify", &self.ledger()]).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Whether it holds, and the line named as faulty; the JSON says the same as the exit code.
    fn verify(&self, more: &[&str]) -> (bool, Option<u64>, String) {
        let ledger = self.ledger();
        let ran = run(&[&["audit", "verify", &ledger, "--format", "json"], more].concat());
        let error = String::from_utf8(ran.stderr).unwrap();
        let result: serde_json::Value =
            serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("no result: {error}"));
        let holds = result["holds"].as_bool().unwrap();
        assert_eq!(ran.status.code(), Some(i32::from(!holds)), "{error}");
        let checks = result["checks"].as_array().unwrap();
        let failed = checks.iter().find(|check| check["outcome"] == "failed");
        (holds, failed.and_then(|check| check["line"].as_u64()), error)
    }

    fn fault_line(&self) -> u64 {
        let (holds, line, error) = self.verify(&[]);
        assert!(!holds && error.starts_with("error: the ledger does not hold: line "), "{error}");
        line.unwrap()
    }
}

#[test]
fn a_flipped_byte_anywhere_is_found_on_its_line() {
    let ledger = Ledger::of_rounds(3);
    let bytes = ledger.bytes();
    let desk = Desk::with(&bytes);
    assert!(desk.verify(&[]).0);
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let spread = (0..bytes.len()).step_by(211);
    for at in ends.chain(spread).collect::<BTreeSet<_>>() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 7);
        desk.put("ledger.jsonl", &bad);
        let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        assert_eq!(desk.fault_line(), line, "byte {at}");
    }
}

#[test]
fn dropped_reordered_duplicated_and_resigned_lines_are_found_where_they_are() {
    let ledger = Ledger::of_rounds(3);
    let lines = &ledger.lines;
    let arranged = |order: &[usize]| order.iter().flat_map(|line| lines[*line].clone()).collect::<Vec<u8>>();
    for (order, fault) in [
        (&[0, 1, 3, 4][..], 3),
        (&[1, 2, 3], 1),
        (&[0, 1, 2, 4, 3], 4),
        (&[0, 1, 2, 2, 3], 4),
        (&[0, 1, 2, 3, 3], 5),
        (&[0, 0, 1], 2),
    ] {
        assert_eq!(Desk::with(&arranged(order)).fault_line(), fault, "{order:?}");
    }

    // The same entries, from the third on signed by another key; then all of them.
    let other = Identity::generate().unwrap();
    let resigned = |line: &[u8]| {
        let text = std::str::from_utf8(line).unwrap();
        let entry = &text["{\"entry\":".len()..text.rfind(",\"signature\"").unwrap()];
        let purpose = weighhouse_shared::identity::Purpose::LedgerEntry;
        let signature = hex(&other.sign(purpose, entry.as_bytes()));
        format!("{{\"entry\":{entry},\"signature\":\"{signature}\"}}\n").into_bytes()
    };
    let mut bad = arranged(&[0, 1]);
    bad.extend(lines[2..].iter().flat_map(|line| resigned(line)));
    assert_eq!(Desk::with(&bad).fault_line(), 3);
    let all: Vec<u8> = lines.iter().flat_map(|line| resigned(line)).collect();
    assert_eq!(Desk::with(&all).fault_line(), 1);
}

#[test]
fn a_ledger_written_anew_with_another_key_is_found_by_the_expected_key() {
    let (ledger, forged) = (Ledger::of_rounds(2), Ledger::of_rounds(2));
    let desk = Desk::with(&ledger.bytes());
    let key = hex(&ledger.identity.public_key());
    let file = desk.put("site.key.hex", format!("{key}\n").as_bytes());
    for expected in [&key, &file] {
        assert!(desk.verify(&["--key", expected]).0);
    }
    assert!(desk.told().contains("trusted on first use"));
    desk.put("ledger.jsonl", &forged.bytes());
    let (holds, line, error) = desk.verify(&["--key", &key]);
    assert!(!holds && line == Some(1) && error.contains("not the one expected"), "{error}");
    assert!(failure(&["audit", "verify", &desk.ledger(), "--key", "0g"]).contains("64 hexadecimal digits"));
}

/// A coordinator's home, made by the program; with it, witnesses can be signed.
fn witnessed(desk: &Desk, ledger: &Ledger, received: u32) -> (Identity, Vec<Witness>) {
    let home = desk.path("hq");
    output(&["coordinator", "init", "--home", home.to_str().unwrap()]);
    for name in ["coordinator.crt", "authority.crt"] {
        std::fs::copy(home.join(name), desk.path(name)).unwrap();
    }
    let coordinator = Identity::load(&home.join("coordinator.key")).unwrap();
    let witness = |round: u32| Witness {
        site: ledger.identity.site(),
        // Two lines before the first round, two a round.
        head: Head {
            entries: u64::from(4 + 2 * round),
            hash: ContentHash::of(ledger.lines[3 + 2 * round as usize].trim_ascii_end()),
        },
        time_s: 1_772_000_000,
        received: vec![Received {
            job: JOB,
            round: RoundId(round),
            kind: ReleaseKind::Update,
            content: ContentHash::of(&item(round)),
            len: item(round).len() as u64,
        }],
    };
    (coordinator, (0..received).map(witness).collect())
}

fn signed(coordinator: &Identity, witnesses: &[Witness]) -> Vec<u8> {
    let line = |witness: &Witness| SignedWitness::sign(witness.clone(), coordinator).to_line().into_bytes();
    witnesses.iter().flat_map(line).collect()
}

#[test]
fn witnesses_find_a_truncated_and_a_rewritten_ledger_and_unpaid_bytes() {
    let ledger = Ledger::of_rounds(3);
    let desk = Desk::with(&ledger.bytes());
    let (coordinator, witnesses) = witnessed(&desk, &ledger, 3);
    desk.put("witnesses.jsonl", &signed(&coordinator, &witnesses));
    let told = desk.told();
    assert!(told.contains("the coordinator's 3 agree") && told.contains("up to line 8 of 9"), "{told}");

    // Truncated at a line's end it is whole in itself; only the witnesses know better.
    desk.put("ledger.jsonl", &ledger.lines[..6].concat());
    let (holds, line, error) = desk.verify(&[]);
    assert!(!holds && line == Some(7) && error.contains("older copy"), "{error}");
    desk.put("ledger.jsonl", b"");
    assert!(!desk.verify(&[]).0);

    // The holder of the key set it back and went on from there.
    let mut rewritten = Ledger::opened(policy(1000.0));
    rewritten.identity = Identity::load(&{
        let path = desk.path("again.key");
        ledger.identity.save_new(&path).unwrap();
        path
    })
    .unwrap();
    rewritten.chain = Chain::default();
    rewritten.lines.clear();
    let public_key = hex(&rewritten.identity.public_key());
    let policy = PolicyText::unsigned(policy(1000.0));
    rewritten.write(Body::Opened { public_key, holdout_permille: 150, policy });
    rewritten.write(Body::Reserved { job: JOB, name: "other".into(), charges: vec![charge(30.0, 1.0, 9)] });
    (0..5).for_each(|round| rewritten.round(JOB, round, charge(30.0, 1.0, 1)));
    desk.put("ledger.jsonl", &rewritten.bytes());
    let (holds, line, error) = desk.verify(&[]);
    assert!(!holds && line == Some(4) && error.contains("rewritten"), "{error}");

    desk.put("ledger.jsonl", &ledger.bytes());
    let mut unpaid = witnesses.clone();
    unpaid[1].received[0].len += 1;
    desk.put("witnesses.jsonl", &signed(&coordinator, &unpaid));
    let (holds, _, error) = desk.verify(&[]);
    assert!(!holds && error.contains("no entry released them"), "{error}");

    desk.put("witnesses.jsonl", &signed(&ledger.identity, &witnesses));
    let (holds, _, error) = desk.verify(&[]);
    assert!(!holds && error.contains("line 1 of the witnesses is not signed"), "{error}");

    // Nor does another federation's authority vouch for this coordinator.
    desk.put("witnesses.jsonl", &signed(&coordinator, &witnesses));
    let foreign = desk.path("other-hq");
    output(&["coordinator", "init", "--home", foreign.to_str().unwrap()]);
    let authority = foreign.join("authority.crt");
    let (holds, _, error) = desk.verify(&["--authority", authority.to_str().unwrap()]);
    assert!(!holds && error.contains("is not a coordinator's certificate"), "{error}");

    std::fs::remove_file(desk.path("coordinator.crt")).unwrap();
    assert!(desk.told().contains("coordinator.crt or authority.crt is missing"));
    std::fs::remove_file(desk.path("witnesses.jsonl")).unwrap();
    assert!(desk.told().contains("no witnesses.jsonl"));
}

#[test]
fn every_captured_item_must_be_one_that_an_entry_released() {
    let desk = Desk::with(&Ledger::of_rounds(2).bytes());
    let stored = |bytes: &[u8], header: &[u8]| {
        [&[0; 32], ContentHash::of(header).as_bytes().as_slice(), bytes].concat()
    };
    let good = stored(&item(1), &item(1));
    desk.put(&format!("captured/{JOB}-00000001-update"), &good);
    desk.put("captured/packet-17", &stored(&item(0), &item(0)));
    let folder = desk.path("captured");
    let folder = folder.to_str().unwrap();
    assert!(desk.verify(&["--outgoing", folder]).0);
    for (name, bytes, says) in [
        ("packet-18", stored(b"unpaid", b"unpaid"), "no entry released these 6 bytes"),
        (&*format!("{JOB}-00000000-update"), good.clone(), "no entry released"),
        (&*format!("{JOB}-00000001-evaluation"), good.clone(), "no entry released"),
        ("packet-19", stored(&item(0), &item(1)), "not a whole item"),
        ("packet-20", vec![0; 63], "not a whole item"),
    ] {
        let path = desk.put(&format!("captured/{name}"), &bytes);
        let (holds, _, error) = desk.verify(&["--outgoing", folder]);
        assert!(!holds && error.contains(says) && error.contains(name), "{error}");
        std::fs::remove_file(path).unwrap();
    }
    std::os::unix::fs::symlink("/dev/zero", desk.path("captured/link")).unwrap();
    assert!(desk.verify(&["--outgoing", folder]).2.contains("not a plain file"));
    assert!(
        failure(&["audit", "verify", &desk.ledger(), "--outgoing", "/none"]).contains("cannot read /none")
    );
}

#[test]
fn the_policy_in_force_is_compared() {
    let desk = Desk::with(&Ledger::of_rounds(1).bytes());
    let good = desk.put("policy.toml", policy(1000.0).as_bytes());
    let other = desk.put("other.toml", policy(8.0).as_bytes());
    assert!(desk.verify(&["--policy", &good]).0);
    let (holds, line, error) = desk.verify(&["--policy", &other]);
    assert!(!holds && line == Some(1) && error.contains("the policy in force"), "{error}");
}

#[test]
fn no_hostile_file_makes_it_panic_or_hang() {
    let whole = Ledger::of_rounds(2);
    let first = &whole.lines[0];
    let text = String::from_utf8(whole.lines[2].clone()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        [&whole.lines[..2].concat(), text.replace(from, to).as_bytes()].concat()
    };
    for (bytes, line) in [
        (vec![b'x'; 3 << 20], 1),
        ([vec![b'x'; 3 << 20], b"\n".to_vec()].concat(), 1),
        ([b"[".repeat(500_000), b"\n".to_vec()].concat(), 1),
        ([b"{\"entry\":".to_vec(), b"[".repeat(500_000), b"\n".to_vec()].concat(), 1),
        (vec![b'\n'; 1 << 20], 1),
        (vec![0; 1 << 20], 1),
        ([first.clone(), b"\xff\xfe\n".to_vec()].concat(), 2),
        (with("\"noise_multiplier\":30.0", "\"noise_multiplier\":NaN"), 3),
        (with("\"noise_multiplier\":30.0", "\"noise_multiplier\":1e999"), 3),
        (with("\"noise_multiplier\":30.0", "\"noise_multiplier\":-1.0"), 3),
        (with("\"steps\":1", "\"steps\":99999999999"), 3),
        (with("\"steps\":1", "\"steps\":1,\"steps\":1"), 3),
    ] {
        assert_eq!(Desk::with(&bytes).fault_line(), line, "{:?}", &bytes[..20.min(bytes.len())]);
    }
    let desk = Desk::with(b"");
    assert_eq!(desk.fault_line(), 1);
    std::fs::remove_file(desk.ledger()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", desk.ledger()).unwrap();
    assert!(failure(&["audit", "verify", &desk.ledger()]).contains("not a plain file"));
}

/// What a key's holder may sign and the rules allow, made to be slow: a billion steps, and a noise of its own for each
/// of many jobs.
#[test]
fn a_hostile_ledger_that_keeps_the_rules_is_checked_in_bounded_time() {
    let mut ledger = Ledger::opened(policy(1000.0));
    let many = charge(1e5, 1e-6, 1_000_000_000);
    ledger.write(Body::Reserved { job: JOB, name: "many".into(), charges: vec![many] });
    ledger.round(JOB, 0, many);
    for number in 0..250u32 {
        let mut name = [7; 32];
        name[..4].copy_from_slice(&number.to_le_bytes());
        let job = JobId::from_bytes(name);
        let own = charge(20.0 + f64::from(number) * 0.37, 0.013 + f64::from(number) * 1e-4, 1000);
        ledger.write(Body::Reserved { job, name: "own noise".into(), charges: vec![own] });
        ledger.round(job, 0, own);
    }
    let desk = Desk::with(&ledger.bytes());
    let began = Instant::now();
    let (holds, _, error) = desk.verify(&[]);
    assert!(holds, "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn ten_thousand_entries_are_verified_without_a_wait() {
    let ledger = Ledger::of_rounds(5_000);
    let desk = Desk::with(&ledger.bytes());
    let began = Instant::now();
    assert!(desk.verify(&[]).0);
    let took = began.elapsed();
    println!("verified {} entries in {took:?}", ledger.lines.len());
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn show_tells_releases_totals_and_the_guarantee_and_filters_them() {
    let desk = Desk::with(&Ledger::of_rounds(3).bytes());
    let ledger = desk.ledger();
    let told = output(&["audit", "show", &ledger]);
    assert!(told.contains("An observer's odds about any one customer") && told.contains("cap"), "{told}");
    assert!(!told.contains('\u{1b}'), "a job's name must not reach the terminal as commands");
    let json = |more: &[&str]| -> serde_json::Value {
        let told = output(&[&["audit", "show", &ledger, "--format", "json"], more].concat());
        serde_json::from_str(&told).unwrap()
    };
    let all = json(&[]);
    let releases = |shown: &serde_json::Value| shown["releases"].as_array().unwrap().len();
    assert_eq!((releases(&all), all["jobs"][0]["updates"].as_u64()), (3, Some(3)));
    assert_eq!(all["releases"][2]["epsilon_after"], all["spent"]["spent"]);
    assert_eq!(releases(&json(&["--job", NAME])), 3);
    assert_eq!(releases(&json(&["--job", "03030303"])), 3);
    assert_eq!(releases(&json(&["--job", "another"])), 0);
    assert_eq!(releases(&json(&["--since", "2026-02-25"])), 3);
    assert_eq!(releases(&json(&["--since", "2026-02-26"])), 0);
    assert_eq!(run(&["audit", "show", &ledger, "--since", "yesterday"]).status.code(), Some(2));
    let none = desk.path("none");
    assert!(failure(&["audit", "show", "--home", none.to_str().unwrap()]).contains("cannot read"));
    desk.put("ledger.jsonl", &[&desk_bytes(&desk)[..], b"x\n"].concat());
    assert!(failure(&["audit", "show", &ledger]).contains("damaged or tampered with"));
}

fn desk_bytes(desk: &Desk) -> Vec<u8> {
    std::fs::read(desk.ledger()).unwrap()
}

#[test]
fn the_page_stands_alone_and_shows_a_hostile_name_as_text() {
    let desk = Desk::with(&Ledger::of_rounds(40).bytes());
    let page = desk.path("report.html");
    output(&["audit", "report", "--html", page.to_str().unwrap(), &desk.ledger()]);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script") && !page.contains('\u{1b}'));
    for outside in ["http", "src=", "url(", "@import", "NaN", "inf"] {
        assert!(!page.replace("information", "").contains(outside), "{outside}");
    }
    for part in
        ["What is guaranteed", "<svg", "Verification", "Policies (1)", "@media print", "verified</span>"]
    {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn the_export_has_every_entry_and_no_formula() {
    let desk = Desk::with(&Ledger::of_rounds(3).bytes());
    let json = output(&["audit", "export", &desk.ledger()]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert_eq!((rows.len(), rows[1]["name"].as_str()), (9, Some(NAME)));
    let csv = desk.path("out.csv");
    let csv_text = csv.to_str().unwrap();
    output(&["audit", "export", &desk.ledger(), "--format", "csv", "--output", csv_text]);
    let mut reader = csv::Reader::from_path(&csv).unwrap();
    let records: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
    assert_eq!(records.len(), 9);
    for cell in records.iter().flatten() {
        assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell}");
    }
}

/// A real job's ledger, outbox and witnesses, with the network gone.
#[test]
fn a_real_sites_ledger_verifies_offline_with_all_that_left() {
    let mut federation = Federation::start();
    let homes = ["berlin", "bonn"].map(|name| federation.join(name, &records(60), &["--cap-delta", "1e-4"]));
    let sites = homes.each_ref().map(|home| federation.serve_site(home));
    let job = federation.job(4, 4.0, "");
    federation.operator(&["job", "submit", &job, "--watch"]);
    drop(sites);
    federation.kill_coordinator();
    for home in &homes {
        let file = |name: &str| home.join(name).to_str().unwrap().to_owned();
        let (ledger, outbox, policy) = (file("ledger.jsonl"), file("outbox"), file("policy.toml"));
        let certificate = file("site.crt");
        let told = output(&[
            "audit",
            "verify",
            &ledger,
            "--outgoing",
            &outbox,
            "--policy",
            &policy,
            "--key",
            &certificate,
        ]);
        assert!(!told.contains("FAULT") && told.contains("as expected"), "{told}");
        let html = file("report.html");
        output(&["audit", "report", "--html", &html, "--home", home.to_str().unwrap()]);
        assert!(Path::new(&html).is_file());
    }
}

#[test]
fn every_verb_of_audit_explains_itself_with_an_example() {
    for verb in ["show", "verify", "report", "export"] {
        let help = Command::new(PROGRAM).args(["audit", verb, "--help"]).output().unwrap();
        assert!(
            String::from_utf8_lossy(&help.stdout).contains(&format!("weighhouse audit {verb} ")),
            "{verb}"
        );
    }
}
