//! What a job would come to on generated customers: the contract's own clipping, grid, noise, local steps, compression,
//! admission and strategy, without a ledger, since no record of anyone is touched.

mod uplink;

use anyhow::Result;
use candle_core::Device;
use std::time::{Duration, Instant};
use uplink::Uplink;
use weighhouse_shared::evaluation::{Figure, Quality};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::{Batch, LocalOptimizer, Network, ServerState, score};
use weighhouse_shared::privacy::grid::{COUNT, Grid, SumWorkspace, clipped_sum};
use weighhouse_shared::privacy::{DiscreteGaussian, Generator, SamplingRate};
use weighhouse_shared::schema::{InputShape, LabelKind, RowTable, Schema, SequenceShape, Target};

/// Customers whose predictions are compared with their labels in the end, at most.
const TEST_CUSTOMERS: usize = 4000;
/// Predictions made for them, about at most.
const TEST_PREDICTIONS: usize = 1 << 24;
/// Standard deviation of the true log odds: of a binary label they would reach an AUC of about 0.80.
const SPREAD: f64 = 1.5;
/// Mean of the true log odds of a binary label.
const CENTRE: f64 = -0.5;
/// Directions in which customers differ by what class or item they choose.
const TASTES: usize = 4;
/// Items that are ever chosen, at most.
const SOLD_ITEMS: usize = 512;
/// Fresh noise is drawn so many times, and the figures are means.
const REPEATS: u32 = 3;
/// Customers whose gradients are worked on at a time, as at a site.
const MICRO_BATCH: usize = 256;

/// Customers that never were: numbers uniform on -1 to 1, ids uniform over each vocabulary, sequences of 1 to their most
/// steps, and a label that a law explains in part; the law is linear in the numbers, the categories and their means over
/// the steps.
pub struct Customers {
    shape: InputShape,
    label: LabelKind,
    sites: Vec<Site>,
    test: RowTable,
    /// The figure of the law itself on the test customers: no model does better on average.
    pub ceiling: Option<f64>,
}

/// One row a customer.
struct Site {
    rows: RowTable,
    /// Customer i has the steps from `step_starts[i]` on.
    step_starts: Vec<usize>,
}

/// What a simulated job came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simulated {
    /// The label's [`Figure`] of the final model on customers of no site; None if it is not defined on them.
    pub figure: Option<f64>,
    /// Norm of the sites' clipped gradients, summed, over the expected norm of their noise: first step.
    pub first_signal_to_noise: f64,
    /// The same at the last round's first step.
    pub last_signal_to_noise: f64,
    /// One site's work in one round on one core of this machine.
    pub site_round: Duration,
}

/// Multiplications and additions of simulating `contract` once for each repeat.
pub fn operations(contract: &JobContract, network: &Network, sites: usize) -> f64 {
    let training = &contract.training;
    let steps = f64::from(training.rounds) * f64::from(training.local_steps) * sites as f64;
    let of_row =
        network.inputs().sequence.as_ref().map_or(1.0, |sequence| 1.0 + sequence.length as f64 / 2.0);
    let batch = training.sampling_rate.value() * f64::from(training.expected_customers) * of_row;
    6.0 * network.parameter_count() as f64 * (batch + 10.0) * steps * f64::from(REPEATS)
}

fn uniform(generator: &mut Generator) -> f64 {
    let mut bytes = [0; 4];
    generator.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / 4_294_967_296.0
}

fn signed(generator: &mut Generator) -> f64 {
    2.0 * uniform(generator) - 1.0
}

fn some_id(ids: usize, generator: &mut Generator) -> u32 {
    (uniform(generator) * ids as f64) as u32
}

/// A weight for each number and each category, of a row or of a step.
struct Weights {
    numbers: Vec<f64>,
    categories: Vec<Vec<f64>>,
}

impl Weights {
    /// Drawn, and the variance of [`value`](Self::value).
    fn draw(numbers: usize, vocabularies: &[usize], generator: &mut Generator) -> (Self, f64) {
        let mut weights = |count: usize| -> Vec<f64> { (0..count).map(|_| signed(generator)).collect() };
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
    fn draw(shape: &InputShape, generator: &mut Generator) -> Self {
        let none = SequenceShape::default();
        let steps = shape.sequence.as_ref().unwrap_or(&none);
        let (of_row, row_variance) = Weights::draw(shape.numbers, &shape.vocabularies, generator);
        let (of_step, step_variance) = Weights::draw(steps.numbers, &steps.vocabularies, generator);
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
    fn draw(shape: &InputShape, target: Target, generator: &mut Generator) -> Self {
        let (directions, choices) = match target {
            Target::Binary | Target::Count | Target::Number => (1, 0),
            Target::Classes(classes) => (TASTES, classes),
            Target::Item(items) => (TASTES, items.min(SOLD_ITEMS)),
        };
        let directions = (0..directions).map(|_| Direction::draw(shape, generator)).collect();
        let mut choice = || [(); TASTES].map(|()| 3.0f64.sqrt() * signed(generator));
        Self { target, directions, choices: (0..choices).map(|_| choice()).collect() }
    }

    /// Draws the label of the last row of `rows`; the best prediction that there is goes behind `truth`.
    fn label(
        &self,
        rows: &RowTable,
        shape: &InputShape,
        steps: usize,
        generator: &mut Generator,
        truth: &mut Vec<f32>,
    ) -> f32 {
        let directions = self.directions.iter().map(|direction| direction.of_last(rows, shape, steps));
        let values: Vec<f64> = directions.collect();
        match self.target {
            Target::Binary => {
                let probability = 1.0 / (1.0 + (-CENTRE - SPREAD * values[0]).exp());
                truth.push(probability as f32);
                f32::from(u8::from(uniform(generator) < probability))
            }
            Target::Count => {
                let rate = (0.5 + 0.5 * values[0]).clamp(-5.0, 4.0).exp();
                truth.push(rate as f32);
                poisson(rate, generator)
            }
            Target::Number => {
                let mean = (0.4 * values[0]).clamp(-1.0, 1.0);
                truth.push(mean as f32);
                (mean + 0.3 * signed(generator)).clamp(-1.0, 1.0) as f32
            }
            Target::Classes(outputs) | Target::Item(outputs) => {
                let odds = |choice: &[f64; TASTES]| {
                    choice.iter().zip(&values).map(|(choice, value)| choice * value).sum::<f64>().exp()
                };
                let weights: Vec<f64> = self.choices.iter().map(odds).collect();
                let total: f64 = weights.iter().sum();
                truth.extend(weights.iter().map(|weight| (weight / total) as f32));
                truth.extend(std::iter::repeat_n(0.0, outputs - weights.len()));
                let mut left = uniform(generator) * total;
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
fn poisson(rate: f64, generator: &mut Generator) -> f32 {
    let (mut left, mut probability, mut count) = (uniform(generator), (-rate).exp(), 0.0);
    while left >= probability && count < 1000.0 {
        left -= probability;
        count += 1.0;
        probability *= rate / count;
    }
    count as f32
}

/// Adds one row; how many steps it has.
fn draw_inputs(shape: &InputShape, rows: &mut RowTable, generator: &mut Generator) -> usize {
    rows.numbers.extend((0..shape.numbers).map(|_| signed(generator) as f32));
    rows.ids.extend(shape.vocabularies.iter().map(|&ids| some_id(ids, generator)));
    let Some(sequence) = &shape.sequence else { return 0 };
    let steps = 1 + some_id(sequence.length, generator) as usize;
    rows.step_counts.push(steps as u16);
    rows.step_numbers.extend((0..steps * sequence.numbers).map(|_| signed(generator) as f32));
    for _ in 0..steps {
        rows.step_ids.extend(sequence.vocabularies.iter().map(|&ids| some_id(ids, generator)));
    }
    steps
}

/// Which round of what.
#[derive(Clone, Copy)]
struct Round<'a> {
    contract: &'a JobContract,
    network: &'a Network,
    round: u32,
}

impl Customers {
    /// Makes `sites` sites of `customers` each, one row of `schema` a customer.
    pub fn generate(schema: &Schema, sites: usize, customers: usize, generator: &mut Generator) -> Self {
        let (shape, label) = (schema.input_shape(), schema.label.kind.clone());
        let target = label.target();
        let law = Law::draw(&shape, target, generator);
        let mut truth = Vec::new();
        let mut site = |count: usize, generator: &mut Generator| {
            truth.clear();
            let mut rows = RowTable::default();
            let mut step_starts = vec![0];
            for _ in 0..count {
                let steps = draw_inputs(&shape, &mut rows, generator);
                let label = law.label(&rows, &shape, steps, generator, &mut truth);
                rows.labels.push(label);
                step_starts.push(step_starts[step_starts.len() - 1] + steps);
                // Only of the test customers is it needed.
                if truth.len() > 2 * TEST_PREDICTIONS {
                    truth.clear();
                }
            }
            Site { rows, step_starts }
        };
        let sites = (0..sites).map(|_| site(customers, generator)).collect();
        let count = (TEST_PREDICTIONS / target.outputs()).clamp(100, TEST_CUSTOMERS);
        let test = site(count, generator).rows;
        let ceiling = Figure::of(target).in_quality(&Quality::of_rows(&label, &truth, &test.labels));
        Self { shape, label, sites, test, ceiling }
    }

    /// Runs `contract` on them. `progress` is told after each round, with the share done, 0 to 1.
    pub fn run(
        &self,
        contract: &JobContract,
        network: &Network,
        generator: &mut Generator,
        mut progress: impl FnMut(f64),
    ) -> Result<Simulated> {
        let mut seed = [0; 32];
        let mut sum = Simulated {
            figure: Some(0.0),
            first_signal_to_noise: 0.0,
            last_signal_to_noise: 0.0,
            site_round: Duration::ZERO,
        };
        let share = 1.0 / f64::from(REPEATS);
        for repeat in 0..REPEATS {
            generator.fill(&mut seed);
            let mut model = network.initial_parameters(seed);
            let mut state = contract.server_state(model.len());
            let mut grids = vec![contract.grid(); self.sites.len()];
            let mut uplink = Uplink::of(contract, self.sites.len())?;
            let begun = Instant::now();
            for round in 0..contract.training.rounds {
                let at = Round { contract, network, round };
                let (state, uplink) = (state.as_mut(), uplink.as_mut());
                let heard = self.round(at, &mut model, &mut grids, state, uplink, generator)?;
                if round == 0 {
                    sum.first_signal_to_noise += share * heard;
                }
                if round + 1 == contract.training.rounds {
                    sum.last_signal_to_noise += share * heard;
                }
                let done = f64::from(round + 1) / f64::from(contract.training.rounds);
                progress(share * (f64::from(repeat) + done));
            }
            if let Some(average) = state.as_ref().and_then(ServerState::average) {
                model.copy_from_slice(average);
            }
            let site_rounds = contract.training.rounds as usize * self.sites.len().max(1);
            sum.site_round += begun.elapsed().div_f64(site_rounds as f64).mul_f64(share);
            let starts = self.test.step_starts();
            let predictions = score(network, &model, &self.test.as_rows(&starts), &Device::Cpu)?;
            let quality = Quality::of_rows(&self.label, &predictions, &self.test.labels);
            let found = Figure::of(network.target()).in_quality(&quality);
            sum.figure = sum.figure.zip(found).map(|(sum, found)| sum + share * found);
        }
        Ok(sum)
    }

    /// One round of all sites, each with its grid of `grids`; returns the first step's signal to noise.
    fn round(
        &self,
        Round { contract, network, round }: Round<'_>,
        model: &mut [f32],
        grids: &mut [Grid],
        state: Option<&mut ServerState>,
        mut uplink: Option<&mut Uplink>,
        generator: &mut Generator,
    ) -> Result<f64> {
        let training = &contract.training;
        let sigma = contract.privacy.noise_multiplier.value() * contract.grid().sensitivity() as f64;
        let noise = DiscreteGaussian::new(sigma)?;
        let expected = training.expected_batch();
        let mut workspace = SumWorkspace::new();
        let mut signal = vec![0i64; model.len()];
        let mut change = vec![0.0f64; model.len()];
        for (number, (site, grid)) in self.sites.iter().zip(grids).enumerate() {
            let mut local = model.to_vec();
            let mut optimizer = LocalOptimizer::start(training.optimizer, training.proximal, model.len());
            for index in 0..training.local_steps {
                let mut sum = vec![0i64; model.len() + grid.clipping().counts()];
                for chosen in site.sample(training.sampling_rate, generator).chunks(MICRO_BATCH) {
                    let gathered = site.gather(&self.shape, chosen);
                    let starts: Vec<u32> = (0..=gathered.len() as u32).collect();
                    let step_starts = gathered.step_starts();
                    let steps = step_starts.last().map_or(0, |&end| end as usize);
                    let mut draws = vec![0; network.draws(gathered.len(), steps)];
                    generator.fill(&mut draws);
                    let (rows, labels) = (gathered.as_rows(&step_starts), gathered.labels.as_slice());
                    let batch = Batch { rows, labels, customer_starts: &starts, draws: &draws };
                    clipped_sum(network, &local, &batch, grid, &mut workspace, &mut sum)?;
                }
                if index == 0 {
                    signal.iter_mut().zip(&sum).for_each(|(total, value)| *total += value);
                }
                noise.add_to(&mut sum, generator);
                let (sum, count) = sum.split_at(model.len());
                let scale = grid.unit() / expected;
                let gradient = sum.iter().map(|value| *value as f64 * scale);
                optimizer.step(&mut local, model, gradient, training.rate(round, index));
                if let [count] = count {
                    // The norm follows a quantile, as at a site.
                    let share = 0.5 + *count as f64 / (2.0 * COUNT as f64 * expected);
                    *grid = grid.with_clip(training.next_clip_norm(grid.clip(), share));
                }
            }
            let changes =
                local.iter().zip(model.iter()).map(|(local, global)| f64::from(*local) - f64::from(*global));
            match uplink.as_deref_mut() {
                Some(uplink) => uplink.send(number, changes, generator)?,
                None => change.iter_mut().zip(changes).for_each(|(sum, change)| *sum += change),
            }
        }
        let sites = self.sites.len() as f64;
        match uplink {
            Some(uplink) => uplink.receive(&mut change)?,
            None => change.iter_mut().for_each(|change| *change /= sites),
        }
        move_model(model, &change, state);
        let norm = signal.iter().map(|value| (*value as f64).powi(2)).sum::<f64>().sqrt();
        Ok(norm / (sigma * (sites * model.len() as f64).sqrt()))
    }
}

/// The coordinator's step by the mean update `change`.
fn move_model(model: &mut [f32], change: &[f64], state: Option<&mut ServerState>) {
    if let Some(state) = state {
        state.begin_round();
        for (at, (parameter, change)) in model.iter_mut().zip(change).enumerate() {
            *parameter = state.moved(at, *parameter, *change);
        }
    } else {
        for (parameter, change) in model.iter_mut().zip(change) {
            *parameter = (f64::from(*parameter) + change) as f32;
        }
    }
}

impl Site {
    /// A Poisson sample of customers at `rate`.
    fn sample(&self, rate: SamplingRate, generator: &mut Generator) -> Vec<usize> {
        (0..self.rows.len()).filter(|_| generator.bernoulli(rate)).collect()
    }

    /// The rows of the customers at `chosen`.
    fn gather(&self, shape: &InputShape, chosen: &[usize]) -> RowTable {
        let mut rows = RowTable::default();
        for &customer in chosen {
            rows.extend_from(&self.rows, shape, customer..customer + 1, self.step_starts[customer]);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::compression::Compression;
    use weighhouse_shared::job::{JobFile, Strategy};
    use weighhouse_shared::model::{Optimizer, Schedule};
    use weighhouse_shared::privacy::grid::Clipping;
    use weighhouse_shared::schema::Schema;

    fn schema(label: &str, features: &str) -> Schema {
        let text = format!(
            "name = \"test\"\ncustomer = \"id\"\nlabel = {{ column = \"y\", {label} }}\nfeatures = [{features}]"
        );
        toml::from_str(&text).unwrap()
    }

    fn numbers() -> Schema {
        let columns = (0..8).map(|i| format!("{{ column = \"f{i}\", min = -1.0, max = 1.0 }}"));
        schema("kind = \"binary\"", &columns.collect::<Vec<_>>().join(", "))
    }

    fn contract_of(schema: Schema, epsilon: f64, more: &str) -> (JobContract, Network) {
        let file = format!(
            "name = \"test\"\nschema = \"x\"\n[training]\nrounds = 10\n{more}\n\
             [privacy]\nepsilon = {epsilon:?}\ndelta = 1e-4"
        );
        let contract = toml::from_str::<JobFile>(&file).unwrap().contract(schema, [0; 16]).unwrap();
        let network = contract.network().unwrap();
        (contract, network)
    }

    fn contract(epsilon: f64) -> (JobContract, Network) {
        contract_of(numbers(), epsilon, "")
    }

    /// Seed 5. With epsilon 50 at six sites of 300 the law is found; with 0.02 nothing is.
    #[test]
    fn more_privacy_means_less_signal_and_a_worse_model() {
        let mut generator = Generator::from_seed(5);
        let customers = Customers::generate(&numbers(), 6, 300, &mut generator);
        let mut run = |epsilon| {
            let (contract, network) = contract(epsilon);
            customers.run(&contract, &network, &mut generator, |_| ()).unwrap()
        };
        let (loud, faint) = (run(50.0), run(0.02));
        let ceiling = customers.ceiling.unwrap();
        assert!((0.75..0.85).contains(&ceiling), "{ceiling}");
        assert!(loud.figure.unwrap() > ceiling - 0.03, "{loud:?} under {ceiling}");
        assert!(faint.figure.unwrap() < 0.65, "{faint:?}");
        let ratio = loud.first_signal_to_noise / faint.first_signal_to_noise;
        assert!(ratio > 100.0 && faint.first_signal_to_noise < 0.1, "{loud:?} {faint:?}");
    }

    /// Seed 6 for each run, so only the rules differ.
    #[test]
    fn the_simulation_follows_the_contracts_rules() {
        let customers = Customers::generate(&numbers(), 3, 100, &mut Generator::from_seed(6));
        let (plain, network) = contract_of(numbers(), 8.0, "clipping = \"fixed\"");
        let run = |change: &dyn Fn(&mut JobContract)| {
            let mut changed = plain.clone();
            change(&mut changed);
            customers.run(&changed, &network, &mut Generator::from_seed(6), |_| ()).unwrap().figure.unwrap()
        };
        let (same, rate) = (run(&|_| ()), 1.0);
        // Rules that come to plain averaging.
        let server = |momentum| Strategy::FedAvgM { learning_rate: rate, momentum };
        assert_eq!(run(&|job| job.federation.strategy = server(0.0)), same);
        assert_eq!(run(&|job| job.training.average_weights = 1e-300), same);
        // Rules that do not.
        let (beta1, beta2, epsilon, weight_decay) = (0.9, 0.999, 1e-8, 0.0);
        let changes: [&dyn Fn(&mut JobContract); 11] = [
            &|job| job.federation.strategy = server(0.9),
            &|job| job.training.average_weights = 0.9,
            &|job| job.training.optimizer = Optimizer::Adam { beta1, beta2, epsilon, weight_decay },
            &|job| job.training.schedule = Schedule::Linear,
            &|job| job.training.proximal = 0.5,
            &|job| job.training.clipping = Clipping::Automatic,
            &|job| job.training.clipping = Clipping::Quantile,
            &|job| job.federation.strategy = Strategy::FedMedian,
            &|job| job.federation.norm_bound = Some(0.1),
            &|job| job.federation.compression = Compression::Int4,
            &|job| job.federation.compression = Compression::TopK { share: 0.3 },
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert_ne!(run(change), same, "change {index} made none");
        }
    }

    /// Seed 6. Two columns of four categories explain all of the label; logistic regression finds them at epsilon 50.
    #[test]
    fn categories_that_explain_the_label_are_learned() {
        let mut generator = Generator::from_seed(6);
        let schema = schema(
            "kind = \"binary\"",
            "{ column = \"tier\", categories = [\"a\", \"b\", \"c\"] }, { column = \"shop\", hash_buckets = 3 }",
        );
        let customers = Customers::generate(&schema, 6, 300, &mut generator);
        let (contract, network) = contract_of(schema, 50.0, "");
        let simulated = customers.run(&contract, &network, &mut generator, |_| ()).unwrap();
        assert!(simulated.figure.unwrap() > customers.ceiling.unwrap() - 0.03, "{simulated:?}");
    }

    /// Seed 7. Whatever is learned, a model at epsilon 50 does better on it than one at 0.02, and about what the law does.
    #[test]
    fn every_kind_of_label_and_sequences_are_learned() {
        let features = "{ column = \"a\", min = 0.0, max = 1.0 }, { column = \"b\", min = 0.0, max = 1.0, length = 4 }, \
                        { column = \"c\", categories = [\"x\", \"y\"], length = 4 }";
        let tower = "learning_rate = 4.0\n[model.two_tower]\nhidden = [16]\ndim = 8";
        for (label, more, lower_is_better, near) in [
            ("kind = \"binary\"", "", false, 0.05),
            ("kind = \"classes\", categories = [\"u\", \"v\", \"w\"]", "", false, 0.08),
            ("kind = \"item\", hash_buckets = 40", tower, false, 0.25),
            ("kind = \"count\"", "learning_rate = 0.3", true, 0.15),
            ("kind = \"number\", min = 0.0, max = 10.0", "", true, 0.3),
        ] {
            let schema = schema(label, features);
            let mut generator = Generator::from_seed(7);
            let customers = Customers::generate(&schema, 4, 300, &mut generator);
            let mut run = |epsilon| {
                let (contract, network) = contract_of(schema.clone(), epsilon, more);
                customers.run(&contract, &network, &mut generator, |_| ()).unwrap().figure.unwrap()
            };
            let (loud, faint, best) = (run(50.0), run(0.02), customers.ceiling.unwrap());
            let better = if lower_is_better { faint - loud } else { loud - faint };
            assert!(better > 0.0, "{label}: {loud} at 50, {faint} at 0.02, {best} at best");
            assert!((loud - best).abs() < near, "{label}: {loud} at 50, {faint} at 0.02, {best} at best");
        }
    }
}
