//! Why a score is what it is: what each feature contributed to it.
//!
//! The method is Shapley values by sampled permutations (Strumbelj and Kononenko 2014, "Explaining prediction models
//! and individual predictions with feature contributions", Knowledge and Information Systems 41, algorithm 1) against one
//! public baseline row. A permutation is walked from the baseline to the row, one feature at a time taking the row's value;
//! a feature's contribution is the mean, over permutations, of how far its step moved the output. Every walk ends at the
//! row, so the contributions and the baseline's output add up to the row's output, whatever the sample: the sampling
//! error only shifts between features that interact. Each permutation is walked backwards too (antithetic pairs;
//! Mitchell et al. 2022, "Sampling permutations for Shapley value estimation"), which makes pairwise interactions exact.
//! In an additive model a step is the same in every walk, and one walk is exact.
//!
//! The baseline is what the schema says of nobody: a number at the middle of its bounds, a category "other". No
//! record is looked at for it.

use super::{Rows, Scorer};
use std::num::NonZero;
use weighhouse_shared::ids::{ContentHash, ContentHasher};
use weighhouse_shared::schema::{Schema, Values};

/// Permutations that are drawn for a model that is not additive; each is walked forwards and backwards.
pub const PERMUTATION_PAIRS: usize = 32;
/// The most inputs that are computed at once on one thread.
const BLOCK_INPUTS: usize = 1 << 18;

/// Where a feature's value stands in a row.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Number(usize),
    Id(usize),
}

/// A row on its own.
#[derive(Debug, Clone, PartialEq)]
struct Point {
    numbers: Vec<f32>,
    ids: Vec<u32>,
}

/// Explains the scores of one model.
#[derive(Debug)]
pub struct Explainer {
    slots: Vec<Slot>,
    baseline: Point,
    base: f64,
    /// Orders in which features take the row's values.
    orders: Vec<Vec<usize>>,
}

impl Explainer {
    /// The explainer of `scorer`, whose rows are of `schema`. The permutations are those of `seed`, the same for every
    /// row, so that an explanation can be repeated; they are public and protect nothing.
    pub fn new(schema: &Schema, scorer: &Scorer, seed: ContentHash) -> Self {
        let mut baseline = Point { numbers: Vec::new(), ids: Vec::new() };
        let mut slot = |values: &Values, vocabulary: Option<usize>| match (values, vocabulary) {
            (Values::Numeric { .. }, _) | (_, None) => {
                baseline.numbers.push(0.0);
                Slot::Number(baseline.numbers.len() - 1)
            }
            (_, Some(vocabulary)) => {
                baseline.ids.push(vocabulary as u32 - 1);
                Slot::Id(baseline.ids.len() - 1)
            }
        };
        let features = schema.features.iter();
        let slots: Vec<Slot> =
            features.map(|feature| slot(&feature.values, feature.vocabulary_len())).collect();
        let orders = match scorer.is_additive() {
            true => vec![(0..slots.len()).collect()],
            false => antithetic_orders(slots.len(), PERMUTATION_PAIRS, seed),
        };
        let base = scorer.explain(&baseline.numbers, &baseline.ids)[0];
        Self { slots, baseline, base, orders }
    }

    /// The baseline's output.
    pub fn base(&self) -> f64 {
        self.base
    }

    /// What each feature contributed to each row's output, `[rows][features]`; with the base they add up to it but
    /// for the rounding of a 64-bit sum. Computed on all cores; the result does not depend on their number.
    pub fn contributions(&self, scorer: &Scorer, rows: &Rows) -> Vec<Vec<f64>> {
        let (width, columns) = (self.baseline.numbers.len(), self.baseline.ids.len());
        let explained = |row: usize| {
            let numbers = rows.numbers[row * width..(row + 1) * width].to_vec();
            let ids = rows.ids[row * columns..(row + 1) * columns].to_vec();
            self.explain(&Point { numbers, ids }, |numbers, ids| scorer.explain(numbers, ids))
        };
        let mut contributions = vec![Vec::new(); rows.len()];
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let share = rows.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for (part, contributions) in contributions.chunks_mut(share).enumerate() {
                let explained = &explained;
                scope.spawn(move || {
                    for (at, contribution) in contributions.iter_mut().enumerate() {
                        *contribution = explained(part * share + at);
                    }
                });
            }
        });
        contributions
    }

    /// The contributions to one row's output under `output`, which computes points row by row.
    fn explain(&self, row: &Point, output: impl Fn(&[f32], &[u32]) -> Vec<f64>) -> Vec<f64> {
        // A feature that is at its baseline moves nothing in any walk.
        let differs = |feature: &usize| match self.slots[*feature] {
            Slot::Number(at) => row.numbers[at] != self.baseline.numbers[at],
            Slot::Id(at) => row.ids[at] != self.baseline.ids[at],
        };
        let block = (BLOCK_INPUTS / self.slots.len().max(1)).max(1);
        let mut contributions = vec![0.0; self.slots.len()];
        let mut walk = Walk { previous: self.base, steps: Vec::new(), numbers: Vec::new(), ids: Vec::new() };
        for order in &self.orders {
            let mut point = self.baseline.clone();
            let mut first = true;
            for feature in order.iter().copied().filter(differs) {
                match self.slots[feature] {
                    Slot::Number(at) => point.numbers[at] = row.numbers[at],
                    Slot::Id(at) => point.ids[at] = row.ids[at],
                }
                walk.numbers.extend_from_slice(&point.numbers);
                walk.ids.extend_from_slice(&point.ids);
                walk.steps.push((feature, first));
                first = false;
                if walk.steps.len() == block {
                    walk.settle(self.base, &mut contributions, &output);
                }
            }
        }
        walk.settle(self.base, &mut contributions, &output);
        contributions.iter_mut().for_each(|contribution| *contribution /= self.orders.len() as f64);
        contributions
    }
}

/// Points that were walked to and are not yet computed.
struct Walk {
    /// The output at the point before the first of these.
    previous: f64,
    /// The feature that changed, and whether its walk begins here.
    steps: Vec<(usize, bool)>,
    numbers: Vec<f32>,
    ids: Vec<u32>,
}

impl Walk {
    /// Computes the points and adds each step's difference to its feature.
    fn settle(&mut self, base: f64, sums: &mut [f64], output: impl Fn(&[f32], &[u32]) -> Vec<f64>) {
        if self.steps.is_empty() {
            return;
        }
        for ((feature, first), value) in self.steps.drain(..).zip(output(&self.numbers, &self.ids)) {
            sums[feature] += value - if first { base } else { self.previous };
            self.previous = value;
        }
        self.numbers.clear();
        self.ids.clear();
    }
}

/// `pairs` permutations of so many features, each followed by itself backwards; the same for the same seed. One pair,
/// if there are not two features to permute.
fn antithetic_orders(features: usize, pairs: usize, seed: ContentHash) -> Vec<Vec<usize>> {
    let mut draws = Draws { seed, block: 0, words: Vec::new() };
    let mut orders = Vec::new();
    for _ in 0..pairs {
        let mut order: Vec<usize> = (0..features).collect();
        // Fisher and Yates; the bias of a 64-bit number modulo a few thousand is below 2^-51.
        for at in (1..features).rev() {
            order.swap(at, (draws.next() % (at as u64 + 1)) as usize);
        }
        let backwards = order.iter().rev().copied().collect();
        orders.extend([order, backwards]);
    }
    orders
}

/// Public uniform words: SHA-256 over seed and counter.
struct Draws {
    seed: ContentHash,
    block: u64,
    words: Vec<u64>,
}

impl Draws {
    fn next(&mut self) -> u64 {
        if let Some(word) = self.words.pop() {
            return word;
        }
        let mut hasher = ContentHasher::default();
        hasher.update(b"weighhouse explanation v1\0");
        hasher.update(self.seed.as_bytes());
        hasher.update(&self.block.to_le_bytes());
        self.block += 1;
        let hash = hasher.finish();
        self.words.extend(hash.as_bytes().as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
        self.words.pop().expect("a hash has 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An explainer of `features` numbers.
    fn explainer(features: usize, base: f64, orders: Vec<Vec<usize>>) -> Explainer {
        let baseline = Point { numbers: vec![0.0; features], ids: Vec::new() };
        Explainer { slots: (0..features).map(Slot::Number).collect(), baseline, base, orders }
    }

    fn explained(features: &[f32], pairs: usize, output: impl Fn(&[f32]) -> f64) -> Vec<f64> {
        let orders = antithetic_orders(features.len(), pairs, ContentHash::of(b"test"));
        let base = output(&vec![0.0; features.len()]);
        let row = Point { numbers: features.to_vec(), ids: Vec::new() };
        let width = features.len();
        explainer(width, base, orders)
            .explain(&row, |numbers, _| numbers.chunks_exact(width).map(&output).collect())
    }

    #[test]
    fn orders_are_permutations_each_with_its_reverse_and_depend_on_the_seed_alone() {
        let orders = antithetic_orders(7, 5, ContentHash::of(b"a"));
        assert_eq!(orders.len(), 10);
        for pair in orders.chunks_exact(2) {
            let mut sorted = pair[0].clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>());
            assert_eq!(pair[1], pair[0].iter().rev().copied().collect::<Vec<_>>());
        }
        assert_eq!(orders, antithetic_orders(7, 5, ContentHash::of(b"a")));
        assert_ne!(orders, antithetic_orders(7, 5, ContentHash::of(b"b")));
    }

    /// Shapley values of a product of two are half each, of an additive term its own; one pair is enough for both.
    #[test]
    fn pairwise_interactions_are_shared_exactly_by_one_antithetic_pair() {
        let contributions =
            explained(&[2.0, 3.0, 5.0], 1, |x| f64::from(x[0] * x[1]) + 4.0 * f64::from(x[2]) + 1.0);
        assert_eq!(contributions, [3.0, 3.0, 20.0]);
    }

    /// The product of three has Shapley values of a third each. The share of one feature in an order is 1 if it is last: a
    /// pair contributes to its last and its first. With 400 pairs (800 orders) a share's standard deviation is below
    /// sqrt(1/3 * 2/3 / 400) = 0.024; 0.12 is five of them, alpha below 1e-5, and the seed is fixed.
    #[test]
    fn higher_interactions_converge_and_always_add_up() {
        let contributions = explained(&[1.0, 1.0, 1.0], 400, |x| f64::from(x[0] * x[1] * x[2]));
        assert!((contributions.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(contributions.iter().all(|share| (share - 1.0 / 3.0).abs() < 0.12), "{contributions:?}");
    }

    #[test]
    fn a_feature_at_its_baseline_contributes_nothing() {
        let contributions = explained(&[0.0, 2.0], 3, |x| f64::from((x[0] + 1.0) * x[1]));
        assert_eq!(contributions, [0.0, 2.0]);
    }

    /// So many features that a walk passes from block to block.
    #[test]
    fn walks_that_pass_a_block_add_up_as_others_do() {
        let row: Vec<f32> = (0..1500).map(|i| (i % 7) as f32 - 3.0).collect();
        let output = |x: &[f32]| x.iter().map(|x| f64::from(*x)).sum::<f64>().powi(2);
        let contributions = explained(&row, 1, output);
        assert!((contributions.iter().sum::<f64>() - output(&row)).abs() < 1e-6);
        // The Shapley value of a square of a sum is each term times the sum.
        let sum: f64 = row.iter().map(|x| f64::from(*x)).sum();
        for (x, contribution) in row.iter().zip(contributions) {
            assert!((contribution - f64::from(*x) * sum).abs() < 1e-6);
        }
    }
}
