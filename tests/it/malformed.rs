//! What is almost right: good frames, updates, ledgers, job files and invites, changed a little, two hundred thousand
//! times and more. The same functions stand behind the fuzzers under `fuzz/`.

use crate::federation::SCHEMA;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use weighhouse_coordinator::authority;
use weighhouse_shared::compression::Compression;
use weighhouse_shared::fuzzing;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::invite::Invite;
use weighhouse_shared::job::JobFile;
use weighhouse_shared::ledger::{Body, Chain};
use weighhouse_shared::policy::{PolicyText, first_policy};
use weighhouse_shared::privacy::{Delta, Epsilon, Generator};
use weighhouse_shared::tls::{self, Role};
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::stream::Piece;

/// One change: bits, bytes, lengths, cuts, repetitions, or a part of another good one.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut ChaCha8Rng) {
    let at = random.random_range(0..=bytes.len());
    let len = random.random_range(0..=16.min(bytes.len() - at));
    match random.random_range(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = random.random(),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.random()),
        4 => _ = bytes.drain(at..at + len),
        5 => {
            let part = bytes[at..at + len].to_vec();
            bytes.splice(at..at, part.repeat(random.random_range(1..4)));
        }
        6 => {
            let from = random.random_range(0..=other.len());
            bytes.splice(at..at + len, other[from..].iter().copied());
        }
        // A length or a number at its edges.
        _ if at + 8 <= bytes.len() => {
            let edges = [0, 1, u64::MAX, i64::MAX as u64, 1 << 20, (4 << 20) + 1, u64::from(u32::MAX)];
            bytes[at..at + 8].copy_from_slice(&edges[random.random_range(0..edges.len())].to_le_bytes());
        }
        _ => {}
    }
}

/// Feeds `times` changed ones to `take`; how many were good all the same.
fn feed(goods: &[Vec<u8>], times: u32, seed: u64, take: impl Fn(&[u8]) -> bool) -> u32 {
    goods.iter().for_each(|good| assert!(take(good), "a good one is refused: {good:?}"));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut taken = 0;
    for _ in 0..times {
        let mut bytes = goods[random.random_range(0..goods.len())].clone();
        let other = &goods[random.random_range(0..goods.len())];
        for _ in 0..random.random_range(1..6) {
            change(&mut bytes, other, &mut random);
        }
        taken += u32::from(take(&bytes));
    }
    taken
}

/// Golden frames, without their lengths, a piece's header, a job's contract, and certificates.
fn frames() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire/v1");
    let mut frames = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let hex = line.rsplit(' ').next().unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let frame: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            frames.push(frame[4..].to_vec());
        }
    }
    let hash = ContentHash::of(b"x");
    let (job, round) = (JobId::from_bytes([1; 32]), RoundId(2));
    let piece = Piece { job, round, base: hash, content: hash, total: 1 << 20, offset: 4096, len: 8192 };
    frames.push(codec::encode(&piece));

    let file =
        "name = \"x\"\nschema = \"x\"\n[model.mlp]\nhidden = [4]\n[privacy]\nepsilon = 1.0\ndelta = 1e-5";
    let file: JobFile = toml::from_str(file).unwrap();
    frames.push(codec::encode(&file.contract(toml::from_str(SCHEMA).unwrap(), [0; 16]).unwrap()));

    let (key, site) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let root = authority::authority_certificate(&key).unwrap();
    let issued = authority::issue(&key, &root, Role::Site, "x", &site.public_key(), 1_700_000_000).unwrap();
    let enrolling = tls::enrolment_certificate(&site, &[3; 16], &[9; 32]).unwrap();
    frames.extend([issued.to_vec(), enrolling.to_vec()]);
    frames
}

/// A ledger of two entries, and its first alone.
fn ledgers() -> Vec<Vec<u8>> {
    let identity = Identity::generate().unwrap();
    let policy = policy();
    let public_key = hex(&identity.public_key());
    let text = PolicyText::unsigned(policy.clone());
    let opened = Body::Opened { public_key, holdout_permille: 150, policy: text };
    let (chain, _, first) = Chain::default().next(opened, &identity, 1).unwrap();
    let text = PolicyText::unsigned(format!("{policy}\n"));
    let (_, _, second) = chain.next(Body::PolicySet { policy: text }, &identity, 2).unwrap();
    vec![[first.as_bytes(), second.as_bytes()].concat(), first.as_bytes().to_vec()]
}

fn policy() -> String {
    first_policy(Epsilon::new(8.0).unwrap(), Delta::new(1e-5).unwrap())
}

/// The job files and schemas that are shipped, a policy, and a small schema.
fn texts() -> Vec<Vec<u8>> {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let files = std::fs::read_dir(configs).unwrap().map(|file| file.unwrap().path());
    let tomls = files.filter(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".job.toml") || name.ends_with(".schema.toml")
    });
    let mut texts: Vec<Vec<u8>> = tomls.map(|path| std::fs::read(path).unwrap()).collect();
    texts.extend([policy().into_bytes(), SCHEMA.into()]);
    texts
}

/// An update of 300 parameters each way, under what [`fuzzing::update`] wants to know of it.
fn updates() -> Vec<Vec<u8>> {
    let kinds = [Compression::None, Compression::Int8, Compression::Int4, Compression::TopK { share: 0.1 }];
    let mut generator = Generator::from_system().unwrap();
    let mut update = |(number, compression): (u8, &Compression)| {
        let mut values: Vec<i32> = (0..300).map(|at| at * (at - 150)).collect();
        let head = [number, 300u16.to_le_bytes()[0], 300u16.to_le_bytes()[1], 7];
        [head.to_vec(), compression.encode(&mut values, 1 << 29, &mut generator)].concat()
    };
    (0..).zip(&kinds).map(&mut update).collect()
}

fn invites() -> Vec<Vec<u8>> {
    let authority = ContentHash::of(b"authority");
    let invite = Invite { address: "shop.example:7443".into(), authority, id: [3; 16], secret: [9; 32] };
    vec![invite.to_string().into_bytes()]
}

#[test]
fn two_hundred_thousand_malformed_frames_find_nothing() {
    let frames = frames();
    assert!(frames.len() > 30);
    let taken = feed(&frames, 200_000, 1, fuzzing::decode);
    assert!(taken < 100_000, "{taken} of them were good");
}

#[test]
fn malformed_updates_find_nothing() {
    let taken = feed(&updates(), 100_000, 5, fuzzing::update);
    assert!(taken < 90_000, "{taken} of them were good");
}

#[test]
fn malformed_ledgers_job_files_and_invites_find_nothing() {
    feed(&ledgers(), 20_000, 2, fuzzing::ledger);
    feed(&texts(), 20_000, 3, fuzzing::job_file);
    let taken = feed(&invites(), 100_000, 4, fuzzing::invite);
    // One whose changes undo each other, or only its case or the spaces around it.
    assert!(taken < 5_000, "{taken} were taken for whole");
}

#[test]
#[ignore = "writes fuzz/corpus, from which the fuzzers under fuzz/ start"]
fn the_good_ones_are_written_for_the_fuzzers() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let targets = [
        ("decode", frames()),
        ("update", updates()),
        ("ledger", ledgers()),
        ("job_file", texts()),
        ("invite", invites()),
    ];
    for (target, goods) in targets {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (number, good) in goods.iter().enumerate() {
            std::fs::write(folder.join(format!("good-{number:02}")), good).unwrap();
        }
    }
}

/// Hexadecimal, lower case.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
