//! What a job would come to on generated customers: the contract's own clipping, grid, noise, local steps, compression,
//! admission and strategy, without a ledger, since no record of anyone is touched.

mod uplink;

use anyhow::Result;
use candle_core::Device;
use std::time::{Duration, Instant};
use uplink::Uplink;
use weighhouse_shared::evaluation::auc;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::{self, Batch, LocalOptimizer, Network, ServerState, score};
use weighhouse_shared::privacy::grid::{SumWorkspace, clipped_sum};
use weighhouse_shared::privacy::{DiscreteGaussian, Generator, SamplingRate};
use weighhouse_shared::schema::InputShape;

/// Customers whose scores are compared with their labels in the end.
const TEST_CUSTOMERS: usize = 4000;
/// Standard deviation of the true log odds: they would reach an AUC of about 0.80.
const SPREAD: f64 = 1.5;
/// Mean of the true log odds.
const CENTRE: f64 = -0.5;
/// Fresh noise is drawn so many times, and the figures are means.
const REPEATS: u32 = 3;

/// Customers that never were: numbers uniform on -1 to 1, ids uniform over each vocabulary, a label that a law linear in
/// the numbers and the categories explains in part.
pub struct Customers {
    shape: InputShape,
    sites: Vec<Rows>,
    test: Rows,
    /// AUC of the law itself on the test customers: no model does better on average.
    pub ceiling: Option<f64>,
}

#[derive(Default)]
struct Rows {
    numbers: Vec<f32>,
    ids: Vec<u32>,
    labels: Vec<f32>,
}

/// What a simulated job came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simulated {
    /// AUC of the final model on customers of no site; None if they have one label.
    pub auc: Option<f64>,
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
    let batch = training.sampling_rate.value() * f64::from(training.expected_customers);
    6.0 * network.parameter_count() as f64 * (batch + 10.0) * steps * f64::from(REPEATS)
}

fn uniform(generator: &mut Generator) -> f64 {
    let mut bytes = [0; 4];
    generator.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / 4_294_967_296.0
}

/// What the label depends on: a weight for each number and each category.
struct Law {
    numbers: Vec<f64>,
    categories: Vec<Vec<f64>>,
    scale: f64,
}

impl Law {
    fn draw(shape: &InputShape, generator: &mut Generator) -> Self {
        let mut weights =
            |count: usize| -> Vec<f64> { (0..count).map(|_| 2.0 * uniform(generator) - 1.0).collect() };
        let numbers = weights(shape.numbers);
        let mut categories: Vec<Vec<f64>> = shape.vocabularies.iter().map(|&ids| weights(ids)).collect();
        // A number uniform on -1 to 1 has variance 1/3; a column's weights are centred, its ids uniform.
        let mut variance = numbers.iter().map(|weight| weight * weight / 3.0).sum::<f64>();
        for weights in &mut categories {
            let count = weights.len() as f64;
            let mean = weights.iter().sum::<f64>() / count;
            weights.iter_mut().for_each(|weight| *weight -= mean);
            variance += weights.iter().map(|weight| weight * weight).sum::<f64>() / count;
        }
        Self { numbers, categories, scale: SPREAD / variance.sqrt().max(1e-9) }
    }

    fn log_odds(&self, numbers: &[f64], ids: &[u32]) -> f64 {
        let of_numbers: f64 = numbers.iter().zip(&self.numbers).map(|(number, weight)| number * weight).sum();
        let of_ids: f64 = ids.iter().zip(&self.categories).map(|(id, weights)| weights[*id as usize]).sum();
        CENTRE + self.scale * (of_numbers + of_ids)
    }
}

impl Customers {
    /// Makes `sites` sites of `customers` each, one row of `shape` a customer.
    pub fn generate(shape: &InputShape, sites: usize, customers: usize, generator: &mut Generator) -> Self {
        let law = Law::draw(shape, generator);
        let mut truth = Vec::new();
        let mut rows = |count: usize, generator: &mut Generator| {
            truth.clear();
            let mut rows = Rows::default();
            for _ in 0..count {
                let numbers: Vec<f64> = (0..shape.numbers).map(|_| 2.0 * uniform(generator) - 1.0).collect();
                let vocabularies = shape.vocabularies.iter();
                let ids: Vec<u32> =
                    vocabularies.map(|&ids| (uniform(generator) * ids as f64) as u32).collect();
                let odds = law.log_odds(&numbers, &ids);
                let answered = uniform(generator) < 1.0 / (1.0 + (-odds).exp());
                rows.numbers.extend(numbers.iter().map(|number| *number as f32));
                rows.ids.extend(ids);
                rows.labels.push(f32::from(u8::from(answered)));
                truth.push(odds as f32);
            }
            rows
        };
        let sites = (0..sites).map(|_| rows(customers, generator)).collect();
        let test = rows(TEST_CUSTOMERS, generator);
        let ceiling = auc(&truth, &test.labels);
        Self { shape: shape.clone(), sites, test, ceiling }
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
            auc: Some(0.0),
            first_signal_to_noise: 0.0,
            last_signal_to_noise: 0.0,
            site_round: Duration::ZERO,
        };
        let share = 1.0 / f64::from(REPEATS);
        for repeat in 0..REPEATS {
            generator.fill(&mut seed);
            let mut model = network.initial_parameters(seed);
            let mut state = contract.server_state(model.len());
            let mut uplink = Uplink::of(contract, self.sites.len())?;
            let begun = Instant::now();
            for round in 0..contract.training.rounds {
                let state = state.as_mut();
                let heard =
                    self.round(contract, network, round, &mut model, state, uplink.as_mut(), generator)?;
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
            let scores = score(network, &model, &self.test.as_rows(), &Device::Cpu)?;
            let found = auc(&scores, &self.test.labels);
            sum.auc = sum.auc.zip(found).map(|(sum, found)| sum + share * found);
        }
        Ok(sum)
    }

    /// Round `round` of all sites; returns the first step's signal to noise.
    #[allow(clippy::too_many_arguments, reason = "what a round reads and what it changes")]
    fn round(
        &self,
        contract: &JobContract,
        network: &Network,
        round: u32,
        model: &mut [f32],
        state: Option<&mut ServerState>,
        mut uplink: Option<&mut Uplink>,
        generator: &mut Generator,
    ) -> Result<f64> {
        let training = &contract.training;
        let grid = contract.grid();
        let sigma = contract.privacy.noise_multiplier.value() * grid.sensitivity() as f64;
        let noise = DiscreteGaussian::new(sigma)?;
        let scale = grid.unit() / training.expected_batch();
        let mut workspace = SumWorkspace::new();
        let mut signal = vec![0i64; model.len()];
        let mut change = vec![0.0f64; model.len()];
        for (number, site) in self.sites.iter().enumerate() {
            let mut local = model.to_vec();
            let mut optimizer = LocalOptimizer::start(training.optimizer, training.proximal, model.len());
            for index in 0..training.local_steps {
                let batch = site.sample(&self.shape, training.sampling_rate, generator);
                let starts: Vec<u32> = (0..=batch.labels.len() as u32).collect();
                let mut sum = vec![0i64; model.len()];
                let mut draws = vec![0; network.draws(batch.labels.len(), 0)];
                generator.fill(&mut draws);
                let (rows, labels) = (batch.as_rows(), batch.labels.as_slice());
                let batch = Batch { rows, labels, customer_starts: &starts, draws: &draws };
                clipped_sum(network, &local, &batch, &grid, &mut workspace, &mut sum)?;
                if index == 0 {
                    signal.iter_mut().zip(&sum).for_each(|(total, value)| *total += value);
                }
                noise.add_to(&mut sum, generator);
                let gradient = sum.iter().map(|value| *value as f64 * scale);
                optimizer.step(&mut local, model, gradient, training.rate(round, index));
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

impl Rows {
    /// As the model takes them.
    fn as_rows(&self) -> model::Rows<'_> {
        model::Rows { numbers: &self.numbers, ids: &self.ids, ..model::Rows::default() }
    }

    /// A Poisson sample of customers at `rate`.
    fn sample(&self, shape: &InputShape, rate: SamplingRate, generator: &mut Generator) -> Rows {
        let (width, columns) = (shape.numbers, shape.columns());
        let mut batch = Rows::default();
        for (customer, label) in self.labels.iter().enumerate() {
            if generator.bernoulli(rate) {
                batch.numbers.extend_from_slice(&self.numbers[customer * width..(customer + 1) * width]);
                batch.ids.extend_from_slice(&self.ids[customer * columns..(customer + 1) * columns]);
                batch.labels.push(*label);
            }
        }
        batch
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

    fn contract(epsilon: f64) -> (JobContract, Network) {
        let columns = (0..8).map(|i| format!("{{ column = \"f{i}\", min = -1.0, max = 1.0 }}"));
        let schema = format!(
            "name = \"test\"\ncustomer = \"id\"\nlabel = {{ column = \"y\", kind = \"binary\" }}\nfeatures = [{}]",
            columns.collect::<Vec<_>>().join(", ")
        );
        let schema: Schema = toml::from_str(&schema).unwrap();
        let file = format!(
            "name = \"test\"\nschema = \"x\"\n[training]\nrounds = 10\n[privacy]\nepsilon = {epsilon:?}\ndelta = 1e-4"
        );
        let contract = toml::from_str::<JobFile>(&file).unwrap().contract(schema, [0; 16]).unwrap();
        let network = contract.network().unwrap();
        (contract, network)
    }

    /// Seed 5. With epsilon 50 at six sites of 300 the law is found; with 0.02 nothing is.
    #[test]
    fn more_privacy_means_less_signal_and_a_worse_model() {
        let mut generator = Generator::from_seed(5);
        let customers = Customers::generate(&8.into(), 6, 300, &mut generator);
        let mut run = |epsilon| {
            let (contract, network) = contract(epsilon);
            customers.run(&contract, &network, &mut generator, |_| ()).unwrap()
        };
        let (loud, faint) = (run(50.0), run(0.02));
        let ceiling = customers.ceiling.unwrap();
        assert!((0.75..0.85).contains(&ceiling), "{ceiling}");
        assert!(loud.auc.unwrap() > ceiling - 0.03, "{loud:?} under {ceiling}");
        assert!(faint.auc.unwrap() < 0.65, "{faint:?}");
        let ratio = loud.first_signal_to_noise / faint.first_signal_to_noise;
        assert!(ratio > 100.0 && faint.first_signal_to_noise < 0.1, "{loud:?} {faint:?}");
    }

    /// Seed 6 for each run, so only the rules differ.
    #[test]
    fn the_simulation_follows_the_contracts_rules() {
        let customers = Customers::generate(&8.into(), 3, 100, &mut Generator::from_seed(6));
        let (plain, network) = contract(8.0);
        let run = |change: &dyn Fn(&mut JobContract)| {
            let mut changed = plain.clone();
            change(&mut changed);
            customers.run(&changed, &network, &mut Generator::from_seed(6), |_| ()).unwrap().auc.unwrap()
        };
        let (same, rate) = (run(&|_| ()), 1.0);
        // Rules that come to plain averaging.
        let server = |momentum| Strategy::FedAvgM { learning_rate: rate, momentum };
        assert_eq!(run(&|job| job.federation.strategy = server(0.0)), same);
        assert_eq!(run(&|job| job.training.average_weights = 1e-300), same);
        // Rules that do not.
        let (beta1, beta2, epsilon, weight_decay) = (0.9, 0.999, 1e-8, 0.0);
        let changes: [&dyn Fn(&mut JobContract); 10] = [
            &|job| job.federation.strategy = server(0.9),
            &|job| job.training.average_weights = 0.9,
            &|job| job.training.optimizer = Optimizer::Adam { beta1, beta2, epsilon, weight_decay },
            &|job| job.training.schedule = Schedule::Linear,
            &|job| job.training.proximal = 0.5,
            &|job| job.training.clipping = Clipping::Automatic,
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
        let schema: Schema = toml::from_str(
            "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\nfeatures = [\
             { column = \"tier\", categories = [\"a\", \"b\", \"c\"] }, { column = \"shop\", hash_buckets = 3 }]",
        )
        .unwrap();
        let customers = Customers::generate(&schema.input_shape(), 6, 300, &mut generator);
        let file = "name = \"test\"\nschema = \"x\"\n[training]\nrounds = 10\n[privacy]\nepsilon = 50.0\ndelta = 1e-4";
        let contract = toml::from_str::<JobFile>(file).unwrap().contract(schema, [0; 16]).unwrap();
        let network = contract.network().unwrap();
        let simulated = customers.run(&contract, &network, &mut generator, |_| ()).unwrap();
        assert!(simulated.auc.unwrap() > customers.ceiling.unwrap() - 0.03, "{simulated:?}");
    }
}
