//! The local loop of one round: private gradient steps from the global model, each paid by one step of
//! the round's debit. A simulated site goes through the same loop; what it ends with cannot be sent.

use crate::budget::Debit;
use crate::clip::{Step, Workers, clip_and_sum};
use crate::features::FeatureTable;
use crate::noise::{NoiseError, Sampler, noise_sum};
use crate::payer::Payer;
use crate::sampling::poisson_sample;
use crate::update::{LocalModel, ModelUpdate};
use weighhouse_shared::ids::RoundId;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::{Engine, ModelError, Network};
use weighhouse_shared::privacy::grid::Clipping;
use weighhouse_shared::privacy::{ClipNorm, Generator};

/// Why a round's training gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model and the records do not go together.
    #[error("training failed")]
    Model(#[from] ModelError),
    /// The debit did not pay, or the noise could not be drawn.
    #[error("training failed")]
    Noise(#[from] NoiseError),
    /// The step size is too large.
    #[error("the model diverged to infinity; the job's learning_rate is too large")]
    Diverged,
}

/// Where a round starts.
#[derive(Debug, Clone, Copy)]
pub struct RoundBase<'a> {
    /// Which round: the schedule's place.
    pub round: RoundId,
    /// The global model.
    pub parameters: &'a [f32],
    /// What to learn on.
    pub engine: &'a Engine,
    /// The clip norm that the site ended its last round with, if that follows a quantile.
    pub clip_norm: Option<ClipNorm>,
}

/// What a round comes to.
#[derive(Debug)]
pub struct RoundEnd<P = Debit> {
    /// The model's change.
    pub update: ModelUpdate<P>,
    /// The clip norm for the next round.
    pub clip_norm: ClipNorm,
}

/// What a round is worked out on.
#[derive(Debug, Clone, Copy)]
pub struct LocalRound<'a> {
    /// The job.
    pub contract: &'a JobContract,
    /// Its network.
    pub network: &'a Network,
    /// Where it starts.
    pub base: RoundBase<'a>,
    /// The site's customers.
    pub table: &'a FeatureTable,
}

/// What rounds are worked out with, kept from one to the next by who has many.
#[derive(Debug)]
pub struct Tools {
    workers: Workers,
    sampler: Sampler,
    parameters: Vec<f32>,
}

impl Tools {
    /// With buffers for `workers`.
    pub fn new(workers: Workers) -> Self {
        Self { workers, sampler: Sampler::default(), parameters: Vec::new() }
    }
}

/// Makes the round's steps, which `debit` pays for, and returns the model's change, written into `memory`; see
/// [`local_steps`].
pub fn train_round(
    contract: &JobContract,
    network: &Network,
    base: RoundBase<'_>,
    table: &FeatureTable,
    debit: Debit,
    generator: &mut Generator,
    memory: Vec<u8>,
) -> Result<RoundEnd, TrainError> {
    let mut tools = Tools::new(Workers::new(base.engine));
    local_steps(LocalRound { contract, network, base, table }, debit, &mut tools, generator, memory)
}

/// Makes the round's steps and returns the model's change, written into `memory`.
///
/// Step: the contract's optimiser and schedule, along noised_sum / (sampling_rate * expected_customers); the
/// denominator is the contract's, never the batch's size. The optimiser starts anew with each round.
pub fn local_steps<P: Payer>(
    round: LocalRound<'_>,
    mut payer: P,
    tools: &mut Tools,
    generator: &mut Generator,
    memory: Vec<u8>,
) -> Result<RoundEnd<P>, TrainError> {
    let LocalRound { contract, network, base, table } = round;
    let Tools { workers, sampler, parameters } = tools;
    let training = &contract.training;
    let mut grid = contract.grid();
    if let (Clipping::Quantile, Some(clip_norm)) = (training.clipping, base.clip_norm) {
        grid = grid.with_clip(clip_norm);
    }
    let max_rows = training.max_rows_per_customer as usize;
    let mut model = LocalModel::start(base.parameters, training, std::mem::take(parameters));
    for step in 0..training.local_steps {
        let chosen = poisson_sample(table.customers(), training.sampling_rate, generator);
        let of = Step { network, parameters: model.parameters(), max_rows, grid: &grid };
        let clipped = clip_and_sum(of, table, &chosen, workers, generator)?;
        let noised = noise_sum(clipped, &mut payer, sampler, workers, generator)?;
        model.step(&noised, training.rate(base.round.0, step));
        if let Some(share) = noised.share_within(training.expected_batch()) {
            grid = grid.with_clip(training.next_clip_norm(grid.clip(), share));
        }
        workers.keep(noised.into_memory());
        if !model.is_finite() {
            return Err(TrainError::Diverged);
        }
    }
    let (update, memory) = model.into_update(memory);
    *parameters = memory;
    Ok(RoundEnd { update, clip_norm: grid.clip() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::job::{JobFile, UPDATE_STEP};
    use weighhouse_shared::ledger::{Charge, Population};
    use weighhouse_shared::model::Optimizer;
    use weighhouse_shared::privacy::{Mechanism, SamplingRate};

    const FEATURES: usize = 400;

    /// A contract of one step on 400 features, with a batch of 50 customers expected.
    fn contract() -> JobContract {
        let features: Vec<String> =
            (0..FEATURES).map(|at| format!("{{ column = \"f{at}\", min = 0.0, max = 1.0 }}")).collect();
        let schema = format!(
            "name = \"test\"\ncustomer = \"id\"\nlabel = {{ column = \"y\", kind = \"binary\" }}\nfeatures = [{}]",
            features.join(", ")
        );
        let file: JobFile = toml::from_str(
            "name = \"test\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n\
             [training]\nrounds = 1\nlocal_steps = 1\nsampling_rate = 0.5\nexpected_customers = 100",
        )
        .unwrap();
        file.contract(toml::from_str(&schema).unwrap(), [0; 16]).unwrap()
    }

    /// One round of a site with so many customers, whose features are all 0: all but the intercept's
    /// gradient is noise.
    fn round(contract: &JobContract, customers: usize, seed: u64) -> Result<Vec<f64>, TrainError> {
        let bytes = end_of_round(contract, customers, seed)?.update.into_bytes();
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values.iter().map(|value| f64::from(i32::from_le_bytes(*value)) * UPDATE_STEP).collect())
    }

    fn end_of_round(contract: &JobContract, customers: usize, seed: u64) -> Result<RoundEnd, TrainError> {
        let customer = [vec![0.0; FEATURES], vec![1.0]].concat();
        let table = FeatureTable::from_customers(FEATURES, &vec![customer; customers]);
        let network = contract.network().unwrap();
        let global = vec![0.0; network.parameter_count()];
        let charge = Charge { population: Population::Training, event: contract.round_charge() };
        let mechanism = Mechanism::clipped_gradient_sum(&contract.grid(), charge.event.noise_multiplier);
        let (debit, mut generator) = (Debit::for_test(charge, mechanism), Generator::from_seed(seed));
        let engine = &Engine::Processor;
        let base = RoundBase { round: RoundId(0), parameters: &global, engine, clip_norm: None };
        train_round(contract, &network, base, &table, debit, &mut generator, Vec::new())
    }

    /// The noise in an update has standard deviation learning_rate x z x clip norm / (rate x expected
    /// customers), with 10 customers as with 2000: neither the batch's size nor the site's is in it. 400
    /// samples, seeds 1 and 2; bounds at 5 standard errors (alpha below 1e-6).
    #[test]
    fn noise_and_denominator_are_the_contracts_whatever_the_batch_and_the_site() {
        let contract = contract();
        let (training, noise) = (&contract.training, contract.round_charge().noise_multiplier);
        let scale = training.learning_rate / (0.5 * 100.0);
        let expected = scale * noise.value() * contract.privacy.clip_norm.value();
        for (customers, seed) in [(10, 1), (2000, 2)] {
            let update = round(&contract, customers, seed).unwrap();
            let variance =
                update[..FEATURES].iter().map(|value| value * value).sum::<f64>() / FEATURES as f64;
            let ratio = variance / (expected * expected);
            assert!((ratio - 1.0).abs() < 5.0 * (2.0 / FEATURES as f64).sqrt(), "{customers}: {ratio}");
        }
    }

    /// The intercept's gradient of each drawn customer is the same, so its sum tells how many were drawn:
    /// about half of 2000, not all, and not the same number each time. Without noise to speak of.
    #[test]
    fn a_step_draws_its_customers_at_the_contracts_rate_anew_each_time() {
        let contract = contract();
        let intercepts: Vec<f64> =
            (0..20).map(|seed| round(&contract, 2000, seed).unwrap()[FEATURES]).collect();
        // Each customer moves the intercept by at most its clip norm; sigma of the batch's size is 22.4.
        let scale = contract.training.learning_rate / (0.5 * 100.0);
        let drawn: Vec<f64> =
            intercepts.iter().map(|value| value / scale / contract.privacy.clip_norm.value()).collect();
        let noise = contract.round_charge().noise_multiplier.value();
        for drawn in &drawn {
            assert!((drawn - 1000.0).abs() < 5.0 * (22.4 + noise) + 15.0, "{drawn}");
        }
        let mean = drawn.iter().sum::<f64>() / 20.0;
        let spread = (drawn.iter().map(|drawn| (drawn - mean).powi(2)).sum::<f64>() / 19.0).sqrt();
        assert!(spread > 5.0 * noise.max(2.0), "{spread}");
    }

    /// The first step of each rule, and the state it leaves behind, passes what a model can hold.
    #[test]
    fn a_model_that_diverges_gives_no_update_whatever_the_optimizer() {
        let (beta1, beta2, epsilon, weight_decay) = (0.9, 0.999, 1e-8, 0.01);
        for optimizer in [
            Optimizer::Sgd { momentum: 0.0, weight_decay },
            Optimizer::Sgd { momentum: 0.9, weight_decay },
            Optimizer::Adam { beta1, beta2, epsilon, weight_decay },
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay },
        ] {
            let mut contract = contract();
            contract.training.optimizer = optimizer;
            assert!(round(&contract, 10, 3).is_ok(), "{optimizer:?}");
            contract.training.learning_rate = 1e300;
            assert!(matches!(round(&contract, 10, 3), Err(TrainError::Diverged)), "{optimizer:?}");
        }
        // Squares that overflow would only make the step 0.
        let mut contract = contract();
        contract.training.optimizer = Optimizer::Adam { beta1, beta2, epsilon, weight_decay };
        contract.training.expected_customers = 1;
        contract.training.sampling_rate = SamplingRate::new(1e-30).unwrap();
        assert!(matches!(round(&contract, 10, 3), Err(TrainError::Diverged)));
    }

    /// All customers have the same gradient, of a norm near 1/2 at the start, and there are as many as expected, so
    /// the clip norm comes down from above, or up from below, towards it; noise of the count included.
    #[test]
    fn a_clip_norm_by_quantile_follows_the_norms_and_the_noise_in_integers_stays_the_same() {
        let ends = [4.0, 0.02].map(|start| {
            let mut contract = contract();
            contract.training.clipping = Clipping::Quantile;
            contract.training.local_steps = 30;
            contract.training.learning_rate = 1e-6;
            contract.training.sampling_rate = SamplingRate::new(1.0).unwrap();
            contract.training.expected_customers = 2000;
            contract.privacy.clip_norm = ClipNorm::new(start).unwrap();
            end_of_round(&contract, 2000, 5).unwrap().clip_norm.value()
        });
        // 30 steps of 0.2 / 2 each in the logarithm, then to and fro about 1/2.
        assert!(ends[0] < 4.0 / 4.0 && ends[0] > 0.2, "{ends:?}");
        assert!(ends[1] > 0.02 * 4.0 && ends[1] < 1.0, "{ends:?}");
    }

    /// The noise of a step is the same for the same seed, so what is between two runs is the rule alone.
    #[test]
    fn the_schedules_factor_and_the_rounds_place_in_it_scale_the_step() {
        let mut contract = contract();
        let plain = round(&contract, 10, 4).unwrap();
        contract.training.rounds = 4;
        contract.training.warmup_steps = 2;
        let warming = round(&contract, 10, 4).unwrap();
        for (plain, warming) in plain.iter().zip(&warming) {
            assert!((0.5 * plain - warming).abs() <= UPDATE_STEP, "{plain} {warming}");
        }
    }
}
