//! What hostile members of secure sums do to a model: of fifteen sites none, one or two, in groups of their own, with one sum
//! over all and with five groups. The table of what comes out stands in the manual's `secure_sum`, and is held to
//! what comes out here.

use super::*;
use crate::aggregate::hostile::{Customer, FEATURES, KEPT, Random, chance, customers, log_loss};
use crate::spool::Spool;
use std::collections::BTreeMap;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::job::JobFile;
use weighhouse_shared::privacy::noise_share::SumEncoding;

const SITES: u8 = 15;
const ROUNDS: u32 = 40;
const CUSTOMERS: usize = 200;

/// What a hostile member adds in the place of its noised integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Ten times what it should, turned over.
    Turned,
    /// The largest integer that an honest site may add, for each parameter.
    Largest,
    /// Any of the 2^32 integers.
    Chance,
}

const ATTACKS: [(usize, Attack, &str); 7] = [
    (0, Attack::Turned, "none"),
    (1, Attack::Turned, "1 turned"),
    (1, Attack::Largest, "1 largest"),
    (1, Attack::Chance, "1 chance"),
    (2, Attack::Turned, "2 turned"),
    (2, Attack::Largest, "2 largest"),
    (2, Attack::Chance, "2 chance"),
];

const FEDERATIONS: [(&str, &str); 6] = [
    ("fedavg", ""),
    ("groups = 5, fedavg", "groups = 5"),
    ("groups = 5, fedavg, norm_bound = 0.3", "groups = 5\nnorm_bound = 0.3"),
    ("groups = 5, fedmedian", "groups = 5\nstrategy = \"fedmedian\""),
    (
        "groups = 5, trimmed_mean, trim_share = 0.4",
        "groups = 5\nstrategy = \"trimmed_mean\"\ntrim_share = 0.4",
    ),
    ("groups = 5, krum, hostile_sites = 1", "groups = 5\nstrategy = \"krum\""),
];

fn contract(federation: &str) -> JobContract {
    let schema = "name = \"x\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
                  features = [{ column = \"a\", min = 0.0, max = 1.0 }]";
    let file: JobFile = toml::from_str(&format!(
        "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n[training]\nrounds = {ROUNDS}\n\
         expected_customers = {CUSTOMERS}\nsampling_rate = 1.0\n[federation]\nmode = \"secure_sum\"\n{federation}"
    ))
    .unwrap();
    let members: Vec<_> = (0..SITES).map(|id| SiteId::from_bytes([id; 32])).collect();
    file.contract_among(toml::from_str(schema).unwrap(), [0; 16], &members).unwrap()
}

/// A site's integers: clipped gradients at `global`, summed, with its share of the noise.
fn share(
    global: &[f64],
    customers: &[Customer],
    clip: f64,
    encoding: &SumEncoding,
    random: &mut Random,
) -> Vec<i64> {
    let mut sum = vec![0.0; global.len()];
    for customer in customers {
        let error = chance(global, customer) - customer.label;
        let norm = error.abs() * customer.features.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = error * (clip / norm.max(1e-12)).min(1.0);
        sum.iter_mut().zip(&customer.features).for_each(|(sum, x)| *sum += scale * x);
    }
    let integer = |sum: f64| ((sum / encoding.unit()) as i64).clamp(-encoding.limit(), encoding.limit());
    sum.into_iter().map(|sum| integer(sum) + (encoding.share_sigma() * random.bell()) as i64).collect()
}

fn values(model: &GlobalModel) -> Vec<f64> {
    model.bytes.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect()
}

/// Log loss on customers of no site after all rounds. Seed 17 throughout, so that only federation and attack differ.
fn learned(federation: &str, hostile: usize, attack: Attack) -> f64 {
    let contract = contract(federation);
    let mut random = Random(17);
    let sites: BTreeMap<SiteId, Vec<Customer>> = (0..SITES)
        .map(|id| {
            let centre = std::array::from_fn(|_| 0.2 * random.bell());
            (SiteId::from_bytes([id; 32]), customers(CUSTOMERS, &centre, &mut random))
        })
        .collect();
    let test = customers(4000, &[0.0; FEATURES], &mut random);
    let encoding = contract.sum_encoding(FEATURES + 1).unwrap().unwrap();
    let spool = Spool::new(std::env::temp_dir());
    let mut aggregate = Aggregate::new(FEATURES + 1, &contract.federation, &spool).unwrap();
    let mut state = contract.server_state(FEATURES + 1);
    let mut model = GlobalModel::of(vec![0.0; FEATURES + 1]);
    let groups = contract.grouped_members();
    for round in (0..ROUNDS).map(RoundId) {
        let global = values(&model);
        let mut opened = Vec::new();
        for (number, members) in groups.iter().enumerate() {
            let mut sum = OpenedSum { values: vec![0; FEATURES + 1], sites: members.len() as u32 };
            for (place, site) in members.iter().enumerate() {
                let mut added =
                    share(&global, &sites[site], contract.privacy.clip_norm.value(), &encoding, &mut random);
                // In one sum over all they are side by side, else the first of a group each.
                let is_hostile = number + place < hostile && (groups.len() == 1 || place == 0);
                if is_hostile {
                    added.iter_mut().for_each(|value| match attack {
                        Attack::Turned => *value *= -10,
                        Attack::Largest => *value = encoding.limit(),
                        Attack::Chance => *value = (random.uniform() * f64::from(u32::MAX)) as i64,
                    });
                }
                sum.values
                    .iter_mut()
                    .zip(added)
                    .for_each(|(sum, value)| *sum = sum.wrapping_add(value as u32));
            }
            opened.push(sum);
        }
        model = if contract.federation.sum_groups().is_none() {
            let sum = opened.pop().unwrap();
            step(model, &contract, round, &sum.values, sum.sites, state.as_mut()).unwrap()
        } else {
            assert_eq!(add_groups(&mut aggregate, &contract, round, opened).unwrap(), u32::from(SITES));
            let next = model.moved_by(aggregate.combine().unwrap(), state.as_mut());
            aggregate.clear().unwrap();
            next
        };
    }
    log_loss(&values(&model.concluded(state.as_ref())), &test)
}

#[test]
fn what_groups_withstand_of_hostile_members_is_what_the_manual_says() {
    let (untrained, best) = (std::f64::consts::LN_2, learned("", 0, Attack::Turned));
    let header: Vec<&str> = ATTACKS.iter().map(|(.., name)| *name).collect();
    let mut table = vec![
        format!("//! | `[federation]` | {} |", header.join(" | ")),
        format!("//! | --- |{}", " --- |".repeat(ATTACKS.len())),
    ];
    let mut figures = String::new();
    for (name, keys) in FEDERATIONS {
        let kept = ATTACKS
            .map(|(hostile, attack, _)| (untrained - learned(keys, hostile, attack)) / (untrained - best));
        figures += &format!("{name}: {kept:.2?}\n");
        let words = kept.map(|kept| if kept >= KEPT { "holds" } else { "fails" });
        table.push(format!("//! | {name} | {} |", words.join(" | ")));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/src/manual/secure_sum.rs");
    let manual = std::fs::read_to_string(path).unwrap();
    let table = table.join("\n");
    assert!(manual.contains(&table), "the manual should say\n{table}\nshares of the gain kept:\n{figures}");
}
