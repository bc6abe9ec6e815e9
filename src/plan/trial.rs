//! What a job would come to on generated customers: some repeats with fresh noise, and how much of a signal there is.

use crate::simulation::{Customers, Generated, Holdout, Simulation, Work};
use anyhow::Result;
use std::time::Duration;
use weighhouse_client::sampling::poisson_sample;
use weighhouse_shared::ids::JobId;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::Network;
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::grid::{SumWorkspace, clipped_sum};
use weighhouse_shared::schema::Schema;

/// Fresh noise is drawn so many times, and the figures are means.
const REPEATS: u32 = 3;
/// Customers whose gradients are worked on at a time.
const MICRO_BATCH: usize = 256;

/// Where jobs are tried.
#[derive(Debug)]
pub struct Ground {
    customers: Customers,
    sites: usize,
    holdout: Holdout,
    /// The label's figure of the law itself on the held-out customers: no model does better on average.
    pub ceiling: Option<f64>,
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tried {
    /// The label's figure of the final model on customers of no site; None if it is not defined on them.
    pub figure: Option<f64>,
    /// Norm of the sites' clipped gradients, summed, over the expected norm of their noise: first step.
    pub first_signal_to_noise: f64,
    /// The same at the last round's first step.
    pub last_signal_to_noise: f64,
    /// One site's work in one round on one core of this machine.
    pub site_round: Duration,
}

/// Multiplications and additions of trying `contract`.
pub fn operations(contract: &JobContract, network: &Network, sites: usize) -> f64 {
    let training = &contract.training;
    let steps = f64::from(training.rounds) * f64::from(training.local_steps) * sites as f64;
    let of_row =
        network.inputs().sequence.as_ref().map_or(1.0, |sequence| 1.0 + sequence.length as f64 / 2.0);
    let batch = training.sampling_rate.value() * f64::from(training.expected_customers) * of_row;
    6.0 * network.parameter_count() as f64 * (batch + 10.0) * steps * f64::from(REPEATS)
}

impl Ground {
    /// `sites` generated sites of `customers` customers of `schema` each.
    pub fn new(schema: &Schema, sites: usize, customers: usize, seed: u64) -> Self {
        let generated = Generated::new(schema, customers, seed);
        let (holdout, ceiling) = generated.holdout();
        Self { customers: Customers::Generated(generated), sites, holdout, ceiling }
    }

    /// Runs `contract` here. `progress` is told after each round, with the share done, 0 to 1.
    pub fn run(
        &self,
        contract: &JobContract,
        network: &Network,
        generator: &mut Generator,
        mut progress: impl FnMut(f64),
    ) -> Result<Tried> {
        let mut sum = Tried {
            figure: Some(0.0),
            first_signal_to_noise: 0.0,
            last_signal_to_noise: 0.0,
            site_round: Duration::ZERO,
        };
        let (rounds, share) = (contract.training.rounds, 1.0 / f64::from(REPEATS));
        for repeat in 0..REPEATS {
            let mut start = [0; 32];
            generator.fill(&mut start);
            let start = JobId::from_bytes(start);
            let mut simulation = Simulation::new(contract, network, &self.customers, Work::Train, start)?;
            let mut spent = Duration::ZERO;
            for round in 0..rounds {
                if round == 0 || round + 1 == rounds {
                    let heard =
                        self.signal_to_noise(contract, network, &simulation.parameters(), generator)?;
                    if round == 0 {
                        sum.first_signal_to_noise += share * heard;
                    }
                    if round + 1 == rounds {
                        sum.last_signal_to_noise += share * heard;
                    }
                }
                spent += simulation.round(0..self.sites, generator, || ())?;
                progress(share * (f64::from(repeat) + f64::from(round + 1) / f64::from(rounds)));
            }
            let site_rounds = rounds as usize * self.sites.max(1);
            sum.site_round += spent.div_f64(site_rounds as f64).mul_f64(share);
            let found = self.holdout.figure(network, &simulation.concluded())?;
            sum.figure = sum.figure.zip(found).map(|(sum, found)| sum + share * found);
        }
        Ok(sum)
    }

    /// Of a step of all sites at `parameters`.
    fn signal_to_noise(
        &self,
        contract: &JobContract,
        network: &Network,
        parameters: &[f32],
        generator: &mut Generator,
    ) -> Result<f64> {
        let (grid, training) = (contract.grid(), &contract.training);
        let max_rows = training.max_rows_per_customer as usize;
        let mut workspace = SumWorkspace::new();
        let mut signal = vec![0i64; parameters.len() + grid.clipping().counts()];
        for number in 0..self.sites {
            let table = self.customers.site(number);
            let chosen = poisson_sample(table.customers(), training.sampling_rate, generator);
            for chosen in chosen.chunks(MICRO_BATCH) {
                let batch = table.gather(chosen, max_rows).with_draws(network, generator);
                clipped_sum(network, parameters, &batch.as_batch(), &grid, &mut workspace, &mut signal)?;
            }
        }
        let gradient = &signal[..parameters.len()];
        let norm = gradient.iter().map(|value| (*value as f64).powi(2)).sum::<f64>().sqrt();
        // Of each site: in a secure sum its share.
        let alone = contract.local_charge().unwrap_or(contract.training_charge());
        let sigma = alone.noise_multiplier.value() * grid.sensitivity() as f64;
        Ok(norm / (sigma * (self.sites as f64 * parameters.len() as f64).sqrt()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::compression::Compression;
    use weighhouse_shared::job::{JobFile, Strategy};
    use weighhouse_shared::model::{Optimizer, Schedule};
    use weighhouse_shared::privacy::grid::Clipping;

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
        let ground = Ground::new(&numbers(), 6, 300, 5);
        let mut run = |epsilon| {
            let (contract, network) = contract(epsilon);
            ground.run(&contract, &network, &mut generator, |_| ()).unwrap()
        };
        let (loud, faint) = (run(50.0), run(0.02));
        let ceiling = ground.ceiling.unwrap();
        assert!((0.75..0.85).contains(&ceiling), "{ceiling}");
        assert!(loud.figure.unwrap() > ceiling - 0.03, "{loud:?} under {ceiling}");
        assert!(faint.figure.unwrap() < 0.65, "{faint:?}");
        let ratio = loud.first_signal_to_noise / faint.first_signal_to_noise;
        assert!(ratio > 100.0 && faint.first_signal_to_noise < 0.1, "{loud:?} {faint:?}");
    }

    /// Seed 6 for each run, so only the rules differ.
    #[test]
    fn the_simulation_follows_the_contracts_rules() {
        let ground = Ground::new(&numbers(), 3, 100, 6);
        let (plain, network) = contract_of(numbers(), 8.0, "clipping = \"fixed\"");
        let run = |change: &dyn Fn(&mut JobContract)| {
            let mut changed = plain.clone();
            change(&mut changed);
            ground.run(&changed, &network, &mut Generator::from_seed(6), |_| ()).unwrap().figure.unwrap()
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
        let ground = Ground::new(&schema, 6, 300, 6);
        let (contract, network) = contract_of(schema, 50.0, "");
        let simulated = ground.run(&contract, &network, &mut generator, |_| ()).unwrap();
        assert!(simulated.figure.unwrap() > ground.ceiling.unwrap() - 0.03, "{simulated:?}");
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
            ("kind = \"count\"", "", true, 0.15),
            ("kind = \"number\", min = 0.0, max = 10.0", "", true, 0.3),
        ] {
            let schema = schema(label, features);
            let mut generator = Generator::from_seed(7);
            let ground = Ground::new(&schema, 4, 300, 7);
            let mut run = |epsilon| {
                let (contract, network) = contract_of(schema.clone(), epsilon, more);
                ground.run(&contract, &network, &mut generator, |_| ()).unwrap().figure.unwrap()
            };
            let (loud, faint, best) = (run(50.0), run(0.02), ground.ceiling.unwrap());
            let better = if lower_is_better { faint - loud } else { loud - faint };
            assert!(better > 0.0, "{label}: {loud} at 50, {faint} at 0.02, {best} at best");
            assert!((loud - best).abs() < near, "{label}: {loud} at 50, {faint} at 0.02, {best} at best");
        }
    }
}
