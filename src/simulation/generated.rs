//! Customers that never were, made site by site from a seed; one row each.

use super::holdout::PREDICTIONS;
use super::{Draw, Holdout};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use weighhouse_client::features::FeatureTable;
use weighhouse_shared::evaluation::{Figure, Quality};
use weighhouse_shared::schema::{InputShape, LabelKind, RowTable, Schema, SequenceShape, Target};

/// Held-out customers, at most.
const HELD_OUT: usize = 4000;
/// Standard deviation of the true log odds: of a binary label they would reach an AUC of about 0.80.
const SPREAD: f64 = 1.5;
/// Mean of the true log odds of a binary label.
const CENTRE: f64 = -0.5;
/// Directions in which customers differ by what class or item they choose.
const TASTES: usize = 4;
/// Items that are ever chosen, at most.
const SOLD_ITEMS: usize = 512;

/// Customers that never were: numbers uniform on -1 to 1, ids uniform over each vocabulary, sequences of 1 to their most
/// steps, and a label that a law explains in part; the law is linear in the numbers, the categories and their means over
/// the steps.
pub struct Generated {
    shape: InputShape,
    label: LabelKind,
    law: Law,
    customers: usize,
    seed: u64,
}

impl std::fmt::Debug for Generated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Generated({} customers a site)", self.customers)
    }
}

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.random::<u32>()) / 4_294_967_296.0
}

fn signed(rng: &mut ChaCha8Rng) -> f64 {
    2.0 * uniform(rng) - 1.0
}

fn some_id(ids: usize, rng: &mut ChaCha8Rng) -> u32 {
    (uniform(rng) * ids as f64) as u32
}

/// A weight for each number and each category, of a row or of a step.
struct Weights {
    numbers: Vec<f64>,
    categories: Vec<Vec<f64>>,
}

impl Weights {
    /// Drawn, and the variance of [`value`](Self::value).
    fn draw(numbers: usize, vocabularies: &[usize], rng: &mut ChaCha8Rng) -> (Self, f64) {
        let mut weights = |count: usize| -> Vec<f64> { (0..count).map(|_| signed(rng)).collect() };
        let numbers = weights(numbers);
        let mut categories: Vec<Vec<f64>> = vocabularies.iter().map(|&ids| weights(ids)).collect();
        // A number uniform on -1 to 1 has variance 1/3; a column's weights are centred, its ids uniform.
        let mut variance = numbers.iter().map(|weight| weight * weight / 3.0).sum::<f64>();
        for weights in &mut categories {
            let count = weights.len() as f64;
            let mean = weights.iter().sum::<f64>() / count;
            weights.iter_mut().for_each(|weight| *weight -= mean);
            variance += weights.iter().map(|weight| weight * weight).sum::<f64>() / count;
        }
        (Self { numbers, categories }, variance)
    }

    fn value(&self, numbers: &[f32], ids: &[u32]) -> f64 {
        let numbers = numbers.iter().zip(&self.numbers).map(|(number, weight)| f64::from(*number) * weight);
        let ids = ids.iter().zip(&self.categories).map(|(id, weights)| weights[*id as usize]);
        numbers.sum::<f64>() + ids.sum::<f64>()
    }
}

/// One direction in which customers differ: about standard normal over customers.
struct Direction {
    of_row: Weights,
    of_step: Weights,
    /// Of the mean over a row's steps.
    step_scale: f64,
    scale: f64,
}

impl Direction {
    fn draw(shape: &InputShape, rng: &mut ChaCha8Rng) -> Self {
        let none = SequenceShape::default();
        let steps = shape.sequence.as_ref().unwrap_or(&none);
        let (of_row, row_variance) = Weights::draw(shape.numbers, &shape.vocabularies, rng);
        let (of_step, step_variance) = Weights::draw(steps.numbers, &steps.vocabularies, rng);
        // The mean of n entries has an n-th of their variance, n being 1 to the length.
        let length = steps.length.max(1);
        let share = (1..=length).map(|n| 1.0 / n as f64).sum::<f64>() / length as f64;
        let variance = row_variance + step_variance;
        Self { of_row, of_step, step_scale: share.sqrt().recip(), scale: variance.sqrt().max(1e-9).recip() }
    }

    /// Of the last row of `rows`, whose steps are the last `steps`.
    fn of_last(&self, rows: &RowTable, shape: &InputShape, steps: usize) -> f64 {
        let numbers = &rows.numbers[rows.numbers.len() - shape.numbers..];
        let mut value = self.of_row.value(numbers, &rows.ids[rows.ids.len() - shape.columns()..]);
        if let Some(sequence) = &shape.sequence {
            let (width, columns) = (sequence.numbers, sequence.columns());
            let numbers = &rows.step_numbers[rows.step_numbers.len() - steps * width..];
            let ids = &rows.step_ids[rows.step_ids.len() - steps * columns..];
            let of_step = |step: usize| {
                let numbers = &numbers[step * width..(step + 1) * width];
                self.of_step.value(numbers, &ids[step * columns..(step + 1) * columns])
            };
            value += self.step_scale * (0..steps).map(of_step).sum::<f64>() / steps.max(1) as f64;
        }
        self.scale * value
    }
}

/// What the label depends on.
struct Law {
    target: Target,
    directions: Vec<Direction>,
    /// What each class or item is like: `[classes or items that are sold][TASTES]`.
    choices: Vec<[f64; TASTES]>,
}

impl Law {
    fn draw(shape: &InputShape, target: Target, rng: &mut ChaCha8Rng) -> Self {
        let (directions, choices) = match target {
            Target::Binary | Target::Count | Target::Number => (1, 0),
            Target::Classes(classes) => (TASTES, classes),
            Target::Item(items) => (TASTES, items.min(SOLD_ITEMS)),
        };
        let directions = (0..directions).map(|_| Direction::draw(shape, rng)).collect();
        let mut choice = || [(); TASTES].map(|()| 3.0f64.sqrt() * signed(rng));
        Self { target, directions, choices: (0..choices).map(|_| choice()).collect() }
    }

    /// Draws the label of the last row of `rows`; the best prediction that there is goes behind `truth`, if asked for.
    fn label(
        &self,
        rows: &RowTable,
        shape: &InputShape,
        steps: usize,
        rng: &mut ChaCha8Rng,
        truth: Option<&mut Vec<f32>>,
    ) -> f32 {
        let directions = self.directions.iter().map(|direction| direction.of_last(rows, shape, steps));
        let values: Vec<f64> = directions.collect();
        match self.target {
            Target::Binary => {
                let probability = 1.0 / (1.0 + (-CENTRE - SPREAD * values[0]).exp());
                tell(truth, probability);
                f32::from(u8::from(uniform(rng) < probability))
            }
            Target::Count => {
                let rate = (0.5 + 0.5 * values[0]).clamp(-5.0, 4.0).exp();
                tell(truth, rate);
                poisson(rate, rng)
            }
            Target::Number => {
                let mean = (0.4 * values[0]).clamp(-1.0, 1.0);
                tell(truth, mean);
                (mean + 0.3 * signed(rng)).clamp(-1.0, 1.0) as f32
            }
            Target::Classes(outputs) | Target::Item(outputs) => {
                let odds = |choice: &[f64; TASTES]| {
                    choice.iter().zip(&values).map(|(choice, value)| choice * value).sum::<f64>().exp()
                };
                let weights: Vec<f64> = self.choices.iter().map(odds).collect();
                let total: f64 = weights.iter().sum();
                if let Some(truth) = truth {
                    truth.extend(weights.iter().map(|weight| (weight / total) as f32));
                    truth.extend(std::iter::repeat_n(0.0, outputs - weights.len()));
                }
                let mut left = uniform(rng) * total;
                let chosen = weights.iter().position(|weight| {
                    left -= weight;
                    left < 0.0
                });
                chosen.unwrap_or(weights.len() - 1) as f32
            }
        }
    }
}

/// By inversion, for rates up to `e^4`.
fn poisson(rate: f64, rng: &mut ChaCha8Rng) -> f32 {
    let (mut left, mut probability, mut count) = (uniform(rng), (-rate).exp(), 0.0);
    while left >= probability && count < 1000.0 {
        left -= probability;
        count += 1.0;
        probability *= rate / count;
    }
    count as f32
}

/// Adds one row; how many steps it has.
fn draw_inputs(shape: &InputShape, rows: &mut RowTable, rng: &mut ChaCha8Rng) -> usize {
    rows.numbers.extend((0..shape.numbers).map(|_| signed(rng) as f32));
    rows.ids.extend(shape.vocabularies.iter().map(|&ids| some_id(ids, rng)));
    let Some(sequence) = &shape.sequence else { return 0 };
    let steps = 1 + some_id(sequence.length, rng) as usize;
    rows.step_counts.push(steps as u16);
    rows.step_numbers.extend((0..steps * sequence.numbers).map(|_| signed(rng) as f32));
    for _ in 0..steps {
        rows.step_ids.extend(sequence.vocabularies.iter().map(|&ids| some_id(ids, rng)));
    }
    steps
}

/// Puts the best prediction behind `truth`, if that is asked for.
fn tell(truth: Option<&mut Vec<f32>>, best: f64) {
    truth.into_iter().for_each(|truth| truth.push(best as f32));
}

impl Generated {
    /// Sites of `customers` customers each, one row of `schema` a customer, by a law that `seed` draws.
    pub fn new(schema: &Schema, customers: usize, seed: u64) -> Self {
        let (shape, label) = (schema.input_shape(), schema.label.kind.clone());
        let law = Law::draw(&shape, label.target(), &mut Draw::Law.of(seed));
        Self { shape, label, law, customers, seed }
    }

    /// The customers of site `number`: the same each time, and others than any other site's.
    pub fn site(&self, number: usize) -> FeatureTable {
        self.draw(self.customers, &mut Draw::Site(number).of(self.seed), None).0
    }

    /// Customers of no site, and the figure of the law itself on them: no model does better on average.
    pub fn holdout(&self) -> (Holdout, Option<f64>) {
        let target = self.label.target();
        let count = (PREDICTIONS / target.outputs()).clamp(100, HELD_OUT);
        let mut truth = Vec::new();
        let (table, labels) = self.draw(count, &mut Draw::Holdout.of(self.seed), Some(&mut truth));
        let best = Figure::of(target).in_quality(&Quality::of_rows(&self.label, &truth, &labels));
        (Holdout::new(table, self.label.clone(), 1), best)
    }

    /// So many customers, and their labels.
    fn draw(
        &self,
        customers: usize,
        rng: &mut ChaCha8Rng,
        mut truth: Option<&mut Vec<f32>>,
    ) -> (FeatureTable, Vec<f32>) {
        let mut rows = RowTable::default();
        for _ in 0..customers {
            let steps = draw_inputs(&self.shape, &mut rows, rng);
            let label = self.law.label(&rows, &self.shape, steps, rng, truth.as_deref_mut());
            rows.labels.push(label);
        }
        let labels = rows.labels.clone();
        (FeatureTable::of_rows(self.shape.clone(), rows, (0..=customers).collect()), labels)
    }
}
