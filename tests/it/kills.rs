//! Coordinator and sites killed (SIGKILL) at random, some sixty times, during one job of thirty rounds on real sockets.
//! The job ends, each round is committed once, and its result is the undisturbed one: the model to which the very
//! updates that left the sites lead, each counted once, in a coordinator that nobody killed.

use crate::federation::{Daemon, Federation, PROGRAM, records};
use crate::go_between::{Book, GoBetween, Seen};
use crate::kill_loop::check;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use weighhouse_coordinator::global_model::GlobalModel;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::job::{JobContract, UPDATE_STEP};
use weighhouse_shared::ledger::ReleaseKind;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::CoordinatorToSite;

const ROUNDS: u32 = 30;
const KILLS: u32 = 60;
/// What a stuck federation is given before the test fails; nothing waits for it otherwise.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the killer listens to a site that has nothing to say.
const MOMENT: Duration = Duration::from_millis(200);

struct Site {
    home: PathBuf,
    between: GoBetween,
    daemon: Option<Daemon>,
}

impl Site {
    fn serve(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["client", "serve", "--home"]).arg(&self.home);
        let (daemon, stdout) = Daemon::spawn(command);
        std::thread::spawn(move || std::io::copy(&mut { stdout }, &mut std::io::sink()));
        self.daemon = Some(daemon);
    }

    fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }
}

/// The update that left a site for a round, whole.
fn update(book: &Book, job: JobId, round: u32) -> Option<Vec<i32>> {
    let contents = book.get(&(job, RoundId(round), ReleaseKind::Update))?;
    let (content, copies) = contents.first_key_value()?;
    let whole = copies.iter().find(|copy| ContentHash::of(copy) == *content)?;
    let (values, _) = whole.as_chunks::<4>();
    Some(values.iter().map(|value| i32::from_le_bytes(*value)).collect())
}

/// `model` moved by the mean of `updates`.
fn moved(model: &[f32], updates: &[&Vec<i32>]) -> Vec<f32> {
    let scale = UPDATE_STEP / updates.len().max(1) as f64;
    let sum = |at: usize| updates.iter().map(|update| i64::from(update[at])).sum::<i64>();
    let parameter = |(at, parameter): (usize, &f32)| (f64::from(*parameter) + sum(at) as f64 * scale) as f32;
    model.iter().enumerate().map(parameter).collect()
}

fn hash(model: &[f32]) -> ContentHash {
    let bytes: Vec<u8> = model.iter().flat_map(|parameter| parameter.to_le_bytes()).collect();
    ContentHash::of(&bytes)
}

#[test]
fn a_job_of_thirty_rounds_over_fifty_kills_ends_with_the_model_of_an_undisturbed_one() {
    let mut federation = Federation::start();
    let caps = ["--cap-epsilon", "1000", "--cap-delta", "1e-4"];
    let mut sites: Vec<Site> = ["berlin", "bonn", "kiel"]
        .map(|name| {
            let home = federation.join(name, &records(40), &caps);
            let between = GoBetween::start(&federation, &home);
            Site { home, between, daemon: None }
        })
        .into();
    sites.iter_mut().for_each(Site::serve);
    let job = federation.job(ROUNDS, 8.0, "[federation]\nmin_sites = 1");
    federation.operator(&["job", "submit", &job]);

    let seed = rand::random();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut contract: Option<JobContract> = None;
    let mut of_coordinator = 0;
    for kill in 0..KILLS {
        // The job goes no further than the killing: two deaths a round.
        sites.iter().for_each(|site| site.between.pass_until(kill * ROUNDS / KILLS));
        // Some things pass at some site, or a moment does; then someone dies, the one that was listened to or another.
        let heard = random.random_range(0..sites.len());
        for _ in 0..random.random_range(1..12) {
            match sites[heard].between.seen.recv_timeout(MOMENT) {
                Ok(Seen::ToSite(CoordinatorToSite::JobOffer(offer))) => {
                    contract = Some(codec::decode(&offer.contract).unwrap());
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        for _ in 0..random.random_range(0..200_000) {
            std::hint::spin_loop();
        }
        match random.random_range(0..4) {
            0 => {
                federation.kill_coordinator();
                federation.serve();
                of_coordinator += 1;
            }
            _ => {
                let victim = random.random_range(0..sites.len());
                sites[victim].kill();
                sites[victim].serve();
            }
        }
    }
    sites.iter().for_each(|site| site.between.pass_until(u32::MAX));
    for site in &sites {
        loop {
            match site.between.seen.recv_timeout(PATIENCE).expect("the job ends at every site") {
                Seen::ToSite(CoordinatorToSite::JobOffer(offer)) => {
                    contract = Some(codec::decode(&offer.contract).unwrap());
                }
                Seen::ToSite(CoordinatorToSite::JobEnded(_)) => break,
                _ => {}
            }
        }
    }
    let contract = contract.expect("the job was offered");
    let id = contract.id();
    let watched = federation.operator(&["job", "watch", "--format", "json"]);
    assert!(watched.contains("finished"), "{watched}");

    // What left each site is paid for, byte for byte.
    sites.iter_mut().for_each(Site::kill);
    let books: Vec<Book> = sites.iter().map(|site| site.between.book()).collect();
    sites.iter().zip(&books).for_each(|(site, book)| check(&site.home, book));

    // Each round once, from the model before it, by some of the updates that left for it: as many as were counted.
    let events = watched.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let committed: Vec<_> = events.filter_map(|event| event.get("committed").cloned()).collect();
    assert_eq!(committed.len() as u32, ROUNDS + 1);
    let start = GlobalModel::initial(id, &contract).unwrap();
    let (parameters, _) = start.bytes.as_chunks::<4>();
    let mut model: Vec<f32> = parameters.iter().map(|parameter| f32::from_le_bytes(*parameter)).collect();
    let mut full = 0;
    for (round, summary) in (0..).zip(&committed) {
        assert_eq!(summary["round"], round);
        let told = summary["model"].as_str().unwrap();
        let updates: Vec<_> = books.iter().filter_map(|book| update(book, id, round)).collect();
        let counted = if round < ROUNDS { summary["sites"].as_u64().unwrap() as usize } else { 0 };
        let subsets = (0..1usize << updates.len()).filter(|subset| subset.count_ones() as usize == counted);
        let next = subsets.map(|subset| {
            let of = updates.iter().enumerate().filter(|(at, _)| subset >> at & 1 == 1);
            moved(&model, &of.map(|(_, update)| update).collect::<Vec<_>>())
        });
        let Some(next) = next.into_iter().find(|next| hash(next).to_string() == told) else {
            panic!("round {round} is not what {counted} of its {} updates lead to", updates.len())
        };
        model = next;
        full += u32::from(counted == sites.len());
    }
    println!(
        "{KILLS} kills, {of_coordinator} of them of the coordinator; {full} of {ROUNDS} rounds with all sites"
    );
    assert!(full >= ROUNDS / 2, "a killed site comes back into its round");
}
