//! What each strategy withstands: a small federation learns with three hostile sites of ten, for each strategy and each
//! attack. The table of what comes out stands in the manual's `robustness`, and is held to what comes out here.

use super::tests::federation;
use super::*;
use crate::admission::Arriving;
use crate::global_model::GlobalModel;
use weighhouse_shared::compression::{Compression, Encoding};
use weighhouse_shared::ids::{JobId, RoundId};
use weighhouse_shared::model::ServerState;
use weighhouse_shared::wire::messages::Outcome;
use weighhouse_shared::wire::stream::Piece;

const SITES: usize = 10;
const HOSTILE: usize = 3;
const ROUNDS: usize = 40;
const CUSTOMERS: usize = 200;
pub const FEATURES: usize = 8;
/// Share of the attack-free gain in log loss over the untrained model that has to be left.
pub const KEPT: f64 = 0.75;

/// What the hostile sites do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    None,
    /// The update times -4.
    SignFlip,
    /// The update times 100.
    Scaled,
    /// Gaussian noise of standard deviation 4 in place of the update.
    Noise,
    /// The update as floats that are no numbers.
    Nan,
    /// Honest training on labels turned over.
    LabelFlip,
    /// All hostile sites send the same: their mean update times -3.
    Colluding,
}

const ATTACKS: [(Attack, &str); 7] = [
    (Attack::None, "none"),
    (Attack::SignFlip, "sign flip"),
    (Attack::Scaled, "scaled"),
    (Attack::Noise, "noise"),
    (Attack::Nan, "NaN"),
    (Attack::LabelFlip, "label flip"),
    (Attack::Colluding, "colluding"),
];

/// A job may count on the seven honest sites alone, so `min_sites` is 7 where it is not said; how many hostile sites are
/// allowed for follows from it.
const STRATEGIES: [(&str, &str); 13] = [
    ("fedavg", "strategy = \"fedavg\""),
    ("fedprox", "strategy = \"fedprox\""),
    ("fedavgm", "strategy = \"fedavgm\""),
    ("fedadagrad", "strategy = \"fedadagrad\"\nserver_learning_rate = 0.3"),
    ("fedadam", "strategy = \"fedadam\""),
    ("fedyogi", "strategy = \"fedyogi\""),
    ("fedavg, norm_bound = 0.2", "strategy = \"fedavg\"\nnorm_bound = 0.2"),
    ("fedmedian", "strategy = \"fedmedian\""),
    ("trimmed_mean, trim_share = 0.3", "strategy = \"trimmed_mean\"\ntrim_share = 0.3"),
    ("krum, hostile_sites = 2", "strategy = \"krum\""),
    ("multi_krum, hostile_sites = 2", "strategy = \"multi_krum\""),
    ("bulyan, hostile_sites = 1", "strategy = \"bulyan\""),
    (
        "multi_krum, hostile_sites = 3, min_sites = 9",
        "strategy = \"multi_krum\"\nhostile_sites = 3\nmin_sites = 9",
    ),
];

/// SplitMix64, for data and noise of a test.
pub struct Random(pub u64);

impl Random {
    /// Below 1.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Variance 1, by twelve uniform numbers: no two machines differ.
    pub fn bell(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// One customer, the last feature the constant 1.
pub struct Customer {
    pub features: [f64; FEATURES + 1],
    pub label: f64,
}

/// Customers whose answer follows a law of their features, at a site whose customers are around `centre`.
pub fn customers(count: usize, centre: &[f64; FEATURES], random: &mut Random) -> Vec<Customer> {
    let customer = |_| {
        let mut features = [1.0; FEATURES + 1];
        for (feature, centre) in features.iter_mut().zip(centre) {
            *feature = centre + random.bell();
        }
        let odds: f64 = features.iter().enumerate().map(|(at, x)| x * [1.0, -0.8, 0.6][at % 3]).sum();
        let label = f64::from(u8::from(random.uniform() < 1.0 / (1.0 + (-odds).exp())));
        Customer { features, label }
    };
    (0..count).map(customer).collect()
}

/// That the label is 1, by the model.
pub fn chance(model: &[f64], customer: &Customer) -> f64 {
    let odds: f64 = model.iter().zip(&customer.features).map(|(weight, x)| weight * x).sum();
    1.0 / (1.0 + (-odds).exp())
}

/// The mean over these customers.
pub fn log_loss(model: &[f64], customers: &[Customer]) -> f64 {
    let loss = |customer: &Customer| {
        let chance = chance(model, customer).clamp(1e-9, 1.0 - 1e-9);
        -(customer.label * chance.ln() + (1.0 - customer.label) * (1.0 - chance).ln())
    };
    customers.iter().map(loss).sum::<f64>() / customers.len() as f64
}

/// Three noised local steps from `global`; the change.
fn train(global: &[f64], customers: &[Customer], flip: bool, proximal: f64, random: &mut Random) -> Vec<f64> {
    let mut local = global.to_vec();
    for _ in 0..3 {
        let mut gradient = vec![0.0; local.len()];
        for customer in customers {
            let label = if flip { 1.0 - customer.label } else { customer.label };
            let error = chance(&local, customer) - label;
            for (sum, x) in gradient.iter_mut().zip(&customer.features) {
                *sum += error * x / customers.len() as f64;
            }
        }
        for ((weight, start), slope) in local.iter_mut().zip(global).zip(&gradient) {
            *weight -= 0.3 * (slope + 0.02 * random.bell() + proximal * (*weight - start));
        }
    }
    local.iter().zip(global).map(|(local, global)| local - global).collect()
}

/// The bytes that each site sends.
fn sent(changes: &mut [Vec<f64>], attack: Attack, random: &mut Random) -> Vec<Vec<u8>> {
    let first = SITES - HOSTILE;
    let hostile = &mut changes[first..];
    match attack {
        Attack::None | Attack::LabelFlip | Attack::Nan => {}
        Attack::SignFlip => hostile.iter_mut().flatten().for_each(|value| *value *= -4.0),
        Attack::Scaled => hostile.iter_mut().flatten().for_each(|value| *value *= 100.0),
        Attack::Noise => hostile.iter_mut().flatten().for_each(|value| *value = 4.0 * random.bell()),
        Attack::Colluding => {
            let mean: Vec<f64> = (0..=FEATURES)
                .map(|at| hostile.iter().map(|change| change[at]).sum::<f64>() / HOSTILE as f64)
                .collect();
            for change in hostile {
                change.iter_mut().zip(&mean).for_each(|(value, mean)| *value = -3.0 * mean);
            }
        }
    }
    let bytes = |(site, change): (usize, &Vec<f64>)| {
        let nan = attack == Attack::Nan && site >= first;
        let integer = |value: &f64| match nan {
            true => f32::NAN.to_le_bytes(),
            false => ((value / UPDATE_STEP).round() as i32).to_le_bytes(),
        };
        change.iter().flat_map(integer).collect()
    };
    changes.iter().enumerate().map(bytes).collect()
}

fn admit(body: &[u8], spool: &Arc<Spool>) -> Result<AdmittedUpdate, Outcome> {
    let piece = Piece {
        job: JobId::from_bytes([0; 32]),
        round: RoundId(0),
        base: ContentHash::of(b""),
        content: ContentHash::of(body),
        total: body.len() as u64,
        offset: 0,
        len: body.len() as u32,
    };
    let encoding = Encoding { compression: Compression::None, parameters: body.len() as u64 / 4 };
    let mut arriving = Arriving::begin(piece, encoding, spool).unwrap()?;
    arriving.push(body).unwrap();
    arriving.finish().unwrap()?.admit(Ok(()))
}

/// Log loss on customers of no site after all rounds; None if a round did not have enough updates.
fn learned(keys: &str, attack: Attack) -> Option<f64> {
    let min_sites = if keys.contains("min_sites") { "" } else { "min_sites = 7" };
    let federation = federation(&format!("{keys}\n{min_sites}"));
    let proximal = if keys.contains("fedprox") { 0.1 } else { 0.0 };
    // Seed 11 throughout, so that only strategy and attack differ.
    let mut random = Random(11);
    let sites: Vec<Vec<Customer>> = (0..SITES)
        .map(|_| {
            let centre = std::array::from_fn(|_| 0.2 * random.bell());
            customers(CUSTOMERS, &centre, &mut random)
        })
        .collect();
    let test = customers(4000, &[0.0; FEATURES], &mut random);
    let spool = Spool::new(std::env::temp_dir());
    let mut state = ServerState::start(federation.strategy.server_optimizer(), 0.0, FEATURES + 1);
    let mut model = GlobalModel::of(vec![0.0; FEATURES + 1]);
    let mut aggregate = Aggregate::new(FEATURES + 1, &federation, &spool).unwrap();
    let values = |model: &GlobalModel| -> Vec<f64> {
        model.bytes.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect()
    };
    for _ in 0..ROUNDS {
        let global = values(&model);
        let mut changes: Vec<Vec<f64>> = sites
            .iter()
            .enumerate()
            .map(|(site, customers)| {
                let flip = attack == Attack::LabelFlip && site >= SITES - HOSTILE;
                train(&global, customers, flip, proximal, &mut random)
            })
            .collect();
        for body in sent(&mut changes, attack, &mut random) {
            match admit(&body, &spool) {
                Ok(update) => drop(aggregate.add(update, 0).unwrap()),
                Err(outcome) => assert_eq!((attack, outcome), (Attack::Nan, Outcome::NotFinite)),
            }
        }
        if aggregate.updates() < federation.min_sites {
            return None;
        }
        model = model.moved_by(aggregate.combine().unwrap(), state.as_mut());
        aggregate.clear().unwrap();
    }
    Some(log_loss(&values(&model), &test))
}

/// The share of federated averaging's gain without an attack that is left; None if no round was committed.
fn kept(keys: &str, attack: Attack, best: f64) -> Option<f64> {
    let untrained = std::f64::consts::LN_2;
    learned(keys, attack).map(|loss| (untrained - loss) / (untrained - best))
}

/// What each cell claims: "holds", "fails" or "stalls". The figures behind it are shown when it is not what the manual says.
#[test]
fn what_each_strategy_withstands_is_what_the_manual_says() {
    let best = learned("strategy = \"fedavg\"", Attack::None).unwrap();
    let header: Vec<&str> = ATTACKS.iter().map(|(_, name)| *name).collect();
    let mut table = vec![
        format!("//! | strategy | {} |", header.join(" | ")),
        format!("//! | --- |{}", " --- |".repeat(ATTACKS.len())),
    ];
    let mut figures = String::new();
    for (name, keys) in STRATEGIES {
        let kept: Vec<Option<f64>> = ATTACKS.iter().map(|(attack, _)| kept(keys, *attack, best)).collect();
        figures += &format!("{name}: {kept:.2?}\n");
        let word = |kept: &Option<f64>| match kept {
            None => "stalls",
            Some(kept) if *kept >= KEPT => "holds",
            Some(_) => "fails",
        };
        let words: Vec<&str> = kept.iter().map(word).collect();
        table.push(format!("//! | {name} | {} |", words.join(" | ")));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/src/manual/robustness.rs");
    let manual = std::fs::read_to_string(path).unwrap();
    let table = table.join("\n");
    assert!(manual.contains(&table), "the manual should say\n{table}\nshares of the gain kept:\n{figures}");
}
