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
//! The baseline is what the schema says of nobody: a number at the middle of its bounds, a category "other", a sequence
//! without steps. No record is looked at for it. All sequences of a row have one entry a step, so a row with one of
//! them at its baseline and another not is none that could be: they are one feature, taken whole or left.

use super::{Rows, Scorer};
use std::num::NonZero;
use weighhouse_shared::ids::{ContentHash, ContentHasher};
use weighhouse_shared::model;
use weighhouse_shared::schema::{InputShape, RowTable, Schema, SequenceShape};

/// Permutations that are drawn for a model that is not additive; each is walked forwards and backwards.
pub const PERMUTATION_PAIRS: usize = 32;

/// Where a feature's value stands in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Number(usize),
    Id(usize),
    /// All its steps.
    Sequence,
}

/// A row on its own.
#[derive(Debug, Clone, Copy, Default)]
struct Point<'a> {
    numbers: &'a [f32],
    ids: &'a [u32],
    step_count: u16,
    step_numbers: &'a [f32],
    step_ids: &'a [u32],
}

/// Explains the predictions of one model.
#[derive(Debug)]
pub struct Explainer {
    features: Vec<String>,
    slots: Vec<Slot>,
    shape: InputShape,
    /// Of the baseline, which has no steps.
    numbers: Vec<f32>,
    ids: Vec<u32>,
    /// The model's outputs at the baseline.
    outputs: Vec<f32>,
    /// Orders in which features take the row's values.
    orders: Vec<Vec<usize>>,
}

/// Why one row's output is what it is; both together add up to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The baseline's output.
    pub base: f64,
    /// What each feature contributed.
    pub contributions: Vec<f64>,
}

impl Explainer {
    /// The explainer of `scorer`, whose rows are of `schema`. The permutations are those of `seed`, the same for every
    /// row, so that an explanation can be repeated; they are public and protect nothing.
    pub fn new(schema: &Schema, scorer: &Scorer, seed: ContentHash) -> Self {
        let (mut features, mut slots) = (Vec::<String>::new(), Vec::new());
        let (mut numbers, mut ids) = (Vec::new(), Vec::new());
        for feature in &schema.features {
            let slot = match (feature.length, feature.vocabulary_len()) {
                (Some(_), _) => Slot::Sequence,
                (None, None) => {
                    numbers.push(0.0);
                    Slot::Number(numbers.len() - 1)
                }
                (None, Some(vocabulary)) => {
                    ids.push(vocabulary as u32 - 1);
                    Slot::Id(ids.len() - 1)
                }
            };
            match slots.iter().position(|&known| slot == Slot::Sequence && known == slot) {
                Some(first) => features[first] = format!("{}+{}", features[first], feature.column),
                None => {
                    features.push(feature.column.clone());
                    slots.push(slot);
                }
            }
        }
        let orders = match scorer.is_additive() {
            true => vec![(0..slots.len()).collect()],
            false => antithetic_orders(slots.len(), PERMUTATION_PAIRS, seed),
        };
        let mut explainer =
            Self { features, slots, shape: schema.input_shape(), numbers, ids, outputs: Vec::new(), orders };
        let mut baseline = RowTable::default();
        explainer.push(
            &mut baseline,
            Point { numbers: &explainer.numbers, ids: &explainer.ids, ..Point::default() },
        );
        explainer.outputs = scorer.raw_outputs(&baseline.as_rows(&baseline.step_starts()));
        explainer
    }

    /// What is explained, in the order of the schema; sequences together at the place of the first, their names with `+`
    /// between them.
    pub fn features(&self) -> &[String] {
        &self.features
    }

    /// Why each row's output `subjects[row]` is what it is; None where there is no such. Base and contributions add up
    /// to the output but for the rounding of a 64-bit sum. Computed on all cores; the result does not depend on their
    /// number.
    pub fn explanations(
        &self,
        scorer: &Scorer,
        rows: &Rows,
        subjects: &[Option<usize>],
    ) -> Vec<Option<Explanation>> {
        let starts = rows.table.step_starts();
        let starts = starts.as_slice();
        let mut explanations = vec![None; rows.len()];
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let share = rows.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for (part, explanations) in explanations.chunks_mut(share).enumerate() {
                scope.spawn(move || {
                    let mut probe = scorer.probe();
                    for (at, explanation) in explanations.iter_mut().enumerate() {
                        let row = part * share + at;
                        let Some(subject) = subjects[row] else { continue };
                        probe.aim(subject);
                        let (base, point) =
                            (scorer.quantity(&self.outputs, subject), self.point(rows, starts, row));
                        let block = probe.block(usize::from(point.step_count));
                        let contributions = self.explain(point, base, block, |points| probe.explain(points));
                        *explanation = Some(Explanation { base, contributions });
                    }
                });
            }
        });
        explanations
    }

    /// One of `rows`, whose steps begin at `starts`.
    fn point<'a>(&self, rows: &'a Rows, starts: &[u32], row: usize) -> Point<'a> {
        let (table, none) = (&rows.table, SequenceShape::default());
        let step = self.shape.sequence.as_ref().unwrap_or(&none);
        let steps = starts.get(row..row + 2).map_or(0..0, |span| span[0] as usize..span[1] as usize);
        fn of<T>(values: &[T], width: usize, rows: std::ops::Range<usize>) -> &[T] {
            &values[rows.start * width..rows.end * width]
        }
        Point {
            numbers: of(&table.numbers, self.shape.numbers, row..row + 1),
            ids: of(&table.ids, self.shape.columns(), row..row + 1),
            step_count: steps.len() as u16,
            step_numbers: of(&table.step_numbers, step.numbers, steps.clone()),
            step_ids: of(&table.step_ids, step.columns(), steps),
        }
    }

    /// Adds a row to `table`.
    fn push(&self, table: &mut RowTable, point: Point) {
        table.numbers.extend_from_slice(point.numbers);
        table.ids.extend_from_slice(point.ids);
        if self.shape.sequence.is_some() {
            table.step_counts.push(point.step_count);
            table.step_numbers.extend_from_slice(point.step_numbers);
            table.step_ids.extend_from_slice(point.step_ids);
        }
    }

    /// The contributions to one row's output under `output`, which computes at most `block` points at once and gives
    /// `base` for the baseline.
    fn explain(
        &self,
        row: Point,
        base: f64,
        block: usize,
        mut output: impl FnMut(&model::Rows) -> Vec<f64>,
    ) -> Vec<f64> {
        // A feature that is at its baseline moves nothing in any walk.
        let differs = |feature: &usize| match self.slots[*feature] {
            Slot::Number(at) => row.numbers[at] != self.numbers[at],
            Slot::Id(at) => row.ids[at] != self.ids[at],
            Slot::Sequence => row.step_count > 0,
        };
        let mut contributions = vec![0.0; self.slots.len()];
        let mut walk = Walk { previous: base, steps: Vec::new(), points: RowTable::default() };
        for order in &self.orders {
            let (mut numbers, mut ids) = (self.numbers.clone(), self.ids.clone());
            let mut sequence = Point::default();
            let mut first = true;
            for feature in order.iter().copied().filter(differs) {
                match self.slots[feature] {
                    Slot::Number(at) => numbers[at] = row.numbers[at],
                    Slot::Id(at) => ids[at] = row.ids[at],
                    Slot::Sequence => sequence = row,
                }
                self.push(&mut walk.points, Point { numbers: &numbers, ids: &ids, ..sequence });
                walk.steps.push((feature, first));
                first = false;
                if walk.steps.len() == block {
                    walk.settle(base, &mut contributions, &mut output);
                }
            }
        }
        walk.settle(base, &mut contributions, &mut output);
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
    points: RowTable,
}

impl Walk {
    /// Computes the points and adds each step's difference to its feature.
    fn settle(&mut self, base: f64, sums: &mut [f64], output: &mut impl FnMut(&model::Rows) -> Vec<f64>) {
        if self.steps.is_empty() {
            return;
        }
        let values = output(&self.points.as_rows(&self.points.step_starts()));
        for ((feature, first), value) in self.steps.drain(..).zip(values) {
            sums[feature] += value - if first { base } else { self.previous };
            self.previous = value;
        }
        self.points = RowTable::default();
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

    /// Contributions of so many numbers under `output`, in blocks of 100 points.
    fn explained(features: &[f32], pairs: usize, output: impl Fn(&[f32]) -> f64) -> Vec<f64> {
        let width = features.len();
        let explainer = Explainer {
            features: vec![String::new(); width],
            slots: (0..width).map(Slot::Number).collect(),
            shape: width.into(),
            numbers: vec![0.0; width],
            ids: Vec::new(),
            outputs: Vec::new(),
            orders: antithetic_orders(width, pairs, ContentHash::of(b"test")),
        };
        let (base, row) = (output(&vec![0.0; width]), Point { numbers: features, ..Point::default() });
        explainer.explain(row, base, 100, |points| points.numbers.chunks_exact(width).map(&output).collect())
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

    /// The row's steps are all there or none is; they share an interaction with a number as any two features do.
    #[test]
    fn a_sequence_is_taken_whole_or_left() {
        let sequence = Some(SequenceShape { length: 4, numbers: 1, vocabularies: vec![5] });
        let explainer = Explainer {
            features: vec!["age".into(), "paid+shop".into()],
            slots: vec![Slot::Number(0), Slot::Sequence],
            shape: InputShape { numbers: 1, sequence, ..InputShape::default() },
            numbers: vec![0.0],
            ids: Vec::new(),
            outputs: Vec::new(),
            orders: antithetic_orders(2, 1, ContentHash::of(b"test")),
        };
        let row = Point {
            numbers: &[2.0],
            step_count: 3,
            step_numbers: &[1.0, 2.0, 4.0],
            step_ids: &[0, 4, 1],
            ..Point::default()
        };
        let mut walked = Vec::new();
        let contributions = explainer.explain(row, 10.0, 3, |points| {
            let spans = points.step_starts.windows(2).map(|span| span[0] as usize..span[1] as usize);
            let outputs = spans.zip(points.numbers).map(|(span, &age)| {
                assert_eq!(points.step_ids[span.clone()].len(), span.len());
                walked.push(span.len());
                let paid: f32 = points.step_numbers[span].iter().sum();
                10.0 + f64::from(age * paid + age)
            });
            outputs.collect()
        });
        assert_eq!(contributions, [2.0 + 7.0, 7.0]);
        walked.sort_unstable();
        assert_eq!(walked, [0, 3, 3, 3]);
        let none = Point { numbers: &[2.0], ..Point::default() };
        let alone = explainer.explain(none, 10.0, 3, |points| vec![12.0; points.numbers.len()]);
        assert_eq!(alone, [2.0, 0.0]);
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
