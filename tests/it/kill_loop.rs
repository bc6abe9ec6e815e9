//! The site's daemon killed (SIGKILL) at every step of reserve, debit, store, release, send and
//! give-back, some two hundred times. After each death the ledger must cover what left, byte for byte as the
//! far side received it; and with nothing but a restart the site goes on and its jobs come to their end.

use crate::federation::{Daemon, Federation, PROGRAM, records};
use crate::go_between::{Book, GoBetween, Pass, Seen};
use crate::strace;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use weighhouse_client::budget::read_ledger;
use weighhouse_shared::clock;
use weighhouse_shared::ids::ContentHash;
use weighhouse_shared::ledger::{Body, Charge, Population, ReleaseKind};
use weighhouse_shared::privacy::accountant::{GaussianEvent, renyi_epsilon};
use weighhouse_shared::wire::messages::{CoordinatorToSite, SiteToCoordinator};

/// Rounds of one job.
const ROUNDS: u32 = 25;
/// What a stuck site is given before the test fails; nothing waits for it otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// Steps each of which must have been the one that a dying daemon did not do any more. Dying before the first
/// write of an entry is the same as dying after the step before.
const STEPS: [&str; 10] = [
    "sync reserved",
    "write debited",
    "sync debited",
    "store: write",
    "store: rename",
    "write released",
    "sync released",
    "send after release",
    "forget the round before",
    "sync returned",
];

/// One federation with one site, and the go-between.
struct Loop {
    federation: Federation,
    home: PathBuf,
    between: GoBetween,
    /// The job that runs, by the beginning of its identifier.
    job: String,
    daemons: u32,
    kills: u32,
}

impl Loop {
    fn start() -> Self {
        let federation = Federation::start();
        let home = federation.join("shop", &records(30), &["--cap-epsilon", "1000", "--cap-delta", "1e-4"]);
        let between = GoBetween::start(&federation, &home);
        let mut site = Self { federation, home, between, job: String::new(), daemons: 0, kills: 0 };
        site.submit();
        site
    }

    fn submit(&mut self) {
        let more = "[evaluation]\nevery = 3\n[federation]\nmin_sites = 1";
        let job = self.federation.job(ROUNDS, 1.0, more);
        let submitted = self.federation.operator(&["job", "submit", &job]);
        self.job = submitted.split(' ').nth(2).unwrap().to_owned();
    }

    /// Starts the site's daemon under `command`; its end is told by the number it gets here.
    fn daemon(&mut self, mut command: Command) -> Daemon {
        while self.between.seen.try_recv().is_ok() {}
        self.daemons += 1;
        command.args(["client", "serve", "--home"]).arg(&self.home);
        let (daemon, mut stdout) = Daemon::spawn(command);
        let (news, number) = (self.between.news(), self.daemons);
        std::thread::spawn(move || {
            let _ = stdout.read_to_end(&mut Vec::new());
            let _ = news.send(Seen::Ended(number));
        });
        daemon
    }

    /// The next thing that passes between site and coordinator; None once the daemon has ended.
    fn next(&self) -> Option<Seen> {
        loop {
            match self.between.seen.recv_timeout(PATIENCE).expect("neither site nor coordinator goes on") {
                Seen::Ended(number) if number == self.daemons => return None,
                Seen::Ended(_) => {}
                seen => return Some(seen),
            }
        }
    }

    fn ends_the_job(&self, seen: &Seen) -> bool {
        matches!(seen, Seen::ToSite(CoordinatorToSite::JobEnded(ended)) if ended.job.short() == self.job)
    }

    /// Lets a daemon run under `strace` until it dies at the `nth` call of `calls` in one of its threads;
    /// gives the step that it was at. A job that ends before is followed by the next.
    fn kill_at(&mut self, calls: &str, nth: u32) -> String {
        let log = self.federation.path("strace.log");
        let inject = format!("inject={calls}:signal=KILL:when={nth}");
        let mut tracer = strace::tracer(&log, &["-e", &inject]);
        tracer.arg(PROGRAM);
        let daemon = self.daemon(tracer);
        while let Some(seen) = self.next() {
            if self.ends_the_job(&seen) {
                self.submit();
            }
        }
        self.kill(daemon);
        step_of_death(&log)
    }

    /// Kills a daemon from outside once `until` says so of what passed.
    fn kill_once(&mut self, moment: u32, mut until: impl FnMut(&Self, &Seen) -> bool) {
        let daemon = self.daemon(Command::new(PROGRAM));
        loop {
            let seen = self.next().expect("the daemon must not end by itself");
            if until(self, &seen) {
                break;
            }
            if self.ends_the_job(&seen) {
                self.submit();
            }
        }
        for _ in 0..moment {
            std::hint::spin_loop();
        }
        self.kill(daemon);
    }

    fn kill(&mut self, daemon: Daemon) {
        daemon.kill();
        self.kills += 1;
        check(&self.home, &self.between.book());
    }
}

/// Which step the process in `log` did not do any more.
fn step_of_death(log: &Path) -> String {
    let calls = strace::read(log);
    let entry = |call: &strace::Call| call.ledger_entry().map(str::to_owned);
    let Some(last) = calls.iter().rfind(|call| call.result.is_none()) else { return "none".into() };
    let before = calls.iter().filter(|call| call.lines.0 < last.lines.0);
    let written = before.filter_map(entry).next_back().unwrap_or_default();
    let outbox = last.arguments.contains("/outbox/");
    match last.name.as_str() {
        "write" if last.ledger_entry().is_some() => format!("write {}", entry(last).unwrap()),
        "fdatasync" if last.is_on(&["fdatasync"], "/ledger.jsonl") => format!("sync {written}"),
        "write" if outbox => "store: write".into(),
        name if outbox && name.starts_with("rename") => "store: rename".into(),
        name if outbox && name.starts_with("unlink") => "forget the round before".into(),
        name if name.starts_with("send") && written == "released" => "send after release".into(),
        name => format!("another {name}"),
    }
}

/// Whatever left is released in the ledger, by a debit of the same round for it alone, and what the ledger
/// says is spent is at least the cost of it; nothing left in two shapes.
pub fn check(home: &Path, book: &Book) {
    let mut debits = BTreeMap::new();
    let mut released = BTreeMap::new();
    let chain = read_ledger(&home.join("ledger.jsonl"), |entry| match &entry.body {
        Body::Debited { job, round, charge, .. } => {
            debits.insert(entry.sequence, (*job, *round, *charge));
        }
        Body::Released { job, round, kind, debit, content, len } => {
            let (paid_job, paid_round, charge) = debits[debit];
            let population = match kind {
                ReleaseKind::Update => Population::Training,
                ReleaseKind::Evaluation => Population::Holdout,
            };
            assert_eq!((paid_job, paid_round, charge.population), (*job, *round, population));
            let twice = released.insert((*job, *round, *kind), (*content, *len, charge));
            assert!(twice.is_none(), "{job} {round} {kind:?} was released twice");
        }
        _ => {}
    })
    .unwrap();
    let mut cost: Vec<Charge> = Vec::new();
    for (purpose, contents) in book {
        assert_eq!(contents.len(), 1, "{purpose:?} left in two shapes");
        let (content, copies) = contents.first_key_value().unwrap();
        let Some((bound, len, charge)) = released.get(purpose) else { panic!("{purpose:?} left unpaid") };
        assert_eq!(bound, content, "other bytes than the released ones of {purpose:?} left");
        let longest = copies.iter().max_by_key(|copy| copy.len()).unwrap();
        assert!(copies.iter().all(|copy| longest.starts_with(copy)), "a retry of {purpose:?} differs");
        assert!(longest.len() as u64 <= *len);
        if longest.len() as u64 == *len {
            assert_eq!(ContentHash::of(longest), *content);
        }
        let like = |known: &&mut Charge| {
            let (known, new) = (&known.event, &charge.event);
            known.noise_multiplier == new.noise_multiplier && known.sampling_rate == new.sampling_rate
        };
        match cost.iter_mut().filter(|known| known.population == charge.population).find(like) {
            Some(known) => known.event.steps += charge.event.steps,
            None => cost.push(*charge),
        }
    }
    let Some((_, delta)) = chain.balance().cap() else { return };
    let spent = chain.balance().spent_at(clock::unix_time_s(), delta).spent;
    for population in [Population::Training, Population::Holdout] {
        let of = cost.iter().filter(|charge| charge.population == population);
        let events: Vec<GaussianEvent> = of.map(|charge| charge.event).collect();
        let left = renyi_epsilon(&events, delta);
        assert!(spent >= left * (1.0 - 1e-9), "{spent} spent, but {left} left");
    }
}

/// System calls, and the how-manieth of one thread to die at: around a start, a job's acceptance and some
/// rounds. The first ones meet a new ledger, then a new job, then its first round.
fn points() -> Vec<(&'static str, u32)> {
    let each = |calls, nths: std::ops::RangeInclusive<u32>| nths.map(move |nth| (calls, nth));
    let mut points = vec![("write", 1), ("fdatasync", 1), ("fdatasync", 1)];
    points.extend(each("fdatasync", 1..=8));
    points.extend(each("write", 1..=28));
    points.extend(each("?rename,renameat,renameat2", 1..=6));
    points.extend(each("?unlink,unlinkat", 1..=3));
    points.extend(each("sendmsg,sendmmsg,sendto", 1..=28));
    points
}

#[test]
fn a_site_killed_at_every_step_never_spends_less_than_what_left_and_goes_on_by_itself() {
    let mut site = Loop::start();
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);

    // Every step in its order: each daemon dies one system call later than the one before.
    let mut steps = BTreeSet::new();
    for (calls, nth) in points() {
        steps.insert(site.kill_at(calls, nth));
    }

    // The end of a job: its news does not reach a first daemon; the next dies over giving back.
    site.between.pass(Pass::NoEnds);
    site.kill_once(0, |site, seen| site.ends_the_job(seen));
    site.between.pass(Pass::Everything);
    steps.insert(site.kill_at("fdatasync", 1));

    // Any moment, from outside: after some of what passes and a bit. What every other daemon sends is kept
    // from the coordinator, so that the next must send it again.
    while site.kills < 200 {
        let pass = if site.kills.is_multiple_of(2) { Pass::NoContributions } else { Pass::Everything };
        site.between.pass(pass);
        let (mut events, moment) = (random.random_range(1..=40), random.random_range(0..100_000));
        site.kill_once(moment, |_, seen| {
            events -= 1;
            let contributed = matches!(seen, Seen::Update | Seen::FromSite(SiteToCoordinator::Evaluation(_)));
            events == 0 || (pass == Pass::NoContributions && contributed)
        });
    }

    // Which call a daemon reaches first is a race here and there: a step that was missed is tried again.
    site.between.pass(Pass::Everything);
    let missed = |steps: &BTreeSet<String>| STEPS.iter().any(|step| !steps.contains(*step));
    while missed(&steps) && site.kills < 300 {
        let points = points();
        let (calls, nth) = points[random.random_range(3..points.len())];
        steps.insert(site.kill_at(calls, nth));
    }
    assert!(!missed(&steps), "{steps:?}");

    // With nothing but one more start, all is brought to its end.
    let daemon = site.daemon(Command::new(PROGRAM));
    while let Some(seen) = site.next() {
        if site.ends_the_job(&seen) {
            break;
        }
    }
    daemon.end();
    let book = site.between.book();
    check(&site.home, &book);
    let jobs = site.federation.operator(&["job", "list", "--format", "json"]);
    let jobs: serde_json::Value = serde_json::from_str(&jobs).unwrap();
    for job in jobs.as_array().unwrap() {
        assert_eq!(job["status"], "finished", "{job}");
    }
    let resent =
        book.values().flat_map(|contents| contents.values()).filter(|copies| copies.len() > 1).count();
    assert!(resent >= 5, "only {resent} contributions were sent again");
    println!(
        "{} kills, {} contributions left, {resent} of them again; steps: {steps:?}",
        site.kills,
        book.len()
    );
}
