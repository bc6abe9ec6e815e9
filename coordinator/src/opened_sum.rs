//! What is made of secure sums once they are open: one step of the global model.
//!
//! In: the sum of the survivors' noised integers modulo 2^32, and how many they are. Out: the next model. The step is that
//! of private gradient descent with one large batch: `d = -rate sum unit / (survivors batch)`, with the rate of the round's
//! place in the schedule and the public batch of the contract, handed to the job's server optimiser as the mean update
//! of a round.
//!
//! With groups each opened sum comes to such a step of its own, in the integers of a site's update, and the job's strategy is
//! applied to these: all count the same, however many survived in each. None can be other than finite and in range, since
//! an opened sum is integers.

use crate::admission::AdmittedUpdate;
use crate::aggregate::{Aggregate, Combined};
use crate::global_model::GlobalModel;
use crate::secure_sum::OpenedSum;
use std::io;
use weighhouse_shared::ids::RoundId;
use weighhouse_shared::job::{JobContract, JobError, UPDATE_LIMIT, UPDATE_STEP};
use weighhouse_shared::model::ServerState;

/// The next model after `model` from the opened `sum` of `survivors` sites in round `round` of `contract`; `state` is what
/// its server optimiser keeps. Model and state are unchanged if nobody survived.
///
/// Errors if `sum` has not one integer for each of the model's parameters or the contract has no secure sum.
pub fn step(
    model: GlobalModel,
    contract: &JobContract,
    round: RoundId,
    sum: &[u32],
    survivors: u32,
    state: Option<&mut ServerState>,
) -> Result<GlobalModel, StepError> {
    if 4 * sum.len() != model.bytes.len() {
        return Err(StepError::Length { expected: model.bytes.len() / 4, got: sum.len() });
    }
    let unit = unit(contract, round, sum.len())?;
    if survivors == 0 {
        return Ok(model);
    }
    // Two's complement: the noised sum itself, unless it wrapped.
    let sums: Vec<i64> = sum.iter().map(|value| i64::from(*value as i32)).collect();
    Ok(model.moved_by(Some(Combined { sums: &sums, divisor: survivors.into(), unit }), state))
}

/// Adds the mean of each group in `opened`, as one update, to the `aggregate` of round `round` of `contract`. Returns of how
/// many sites they are.
///
/// Errors if the contract has no secure sum, or the aggregate's disk fails.
pub fn add_groups(
    aggregate: &mut Aggregate,
    contract: &JobContract,
    round: RoundId,
    opened: Vec<OpenedSum>,
) -> Result<u32, StepError> {
    let mut sites = 0;
    for OpenedSum { values, sites: survivors } in opened {
        let scale = unit(contract, round, values.len())? / f64::from(survivors.max(1)) / UPDATE_STEP;
        let limit = f64::from(UPDATE_LIMIT);
        let step = |value: &u32| (f64::from(*value as i32) * scale).round().clamp(-limit, limit) as i32;
        let bytes = values.iter().flat_map(|value| step(value).to_le_bytes()).collect();
        aggregate.add(AdmittedUpdate::of_group(bytes), 0)?;
        sites += survivors;
    }
    Ok(sites)
}

/// What one integer of a sum moves a parameter of the model by, were it one survivor's alone.
fn unit(contract: &JobContract, round: RoundId, parameters: usize) -> Result<f64, StepError> {
    let encoding = contract.sum_encoding(parameters).map_err(JobError::from)?.ok_or(StepError::Mode)?;
    let training = &contract.training;
    Ok(-training.rate(round.0, 0) * encoding.unit() / training.expected_batch())
}

/// Why an opened sum is not a step.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It is not of this model.
    #[error("the opened sum has {got} integers, the model {expected} parameters")]
    Length {
        /// Parameters of the model.
        expected: usize,
        /// Integers of the sum.
        got: usize,
    },
    /// The contract is of another mode.
    #[error("the job's contract has no secure sum")]
    Mode,
    /// The groups' updates cannot be kept.
    #[error("cannot use the spool folder; is the disk full?")]
    Spool(#[from] io::Error),
    /// The contract is at fault.
    #[error(transparent)]
    Contract(#[from] JobError),
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ids::SiteId;
    use weighhouse_shared::job::JobFile;

    fn contract(federation: &str) -> JobContract {
        let members: Vec<_> = (0..5).map(|id| SiteId::from_bytes([id; 32])).collect();
        contract_among(federation, &members)
    }

    fn contract_among(federation: &str, members: &[SiteId]) -> JobContract {
        let schema = "name = \"x\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
                      features = [{ column = \"a\", min = 0.0, max = 1.0 }]";
        let file: JobFile = toml::from_str(&format!(
            "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\n[training]\nrounds = 10\n\
             expected_customers = 100\nsampling_rate = 0.5\nlearning_rate = 2.0\nschedule = \"cosine\"\n\
             [federation]\nmode = \"secure_sum\"\n{federation}"
        ))
        .unwrap();
        file.contract_among(toml::from_str(schema).unwrap(), [0; 16], members).unwrap()
    }

    fn parameters(model: &GlobalModel) -> Vec<f64> {
        let (values, _) = model.bytes.as_chunks::<4>();
        values.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect()
    }

    #[test]
    fn the_model_goes_against_the_mean_gradient_over_the_public_batch_by_the_rounds_rate() {
        let contract = contract("strategy = \"fedavg\"");
        let unit = contract.sum_encoding(2).unwrap().unwrap().unit();
        let start = GlobalModel::of(vec![1.0, -1.0]);
        // Gradients of 3 and -7, 4 survivors with a batch of 50 each.
        let sum = [3.0, -7.0].map(|gradient: f64| (gradient * 200.0 / unit).round() as i32 as u32);
        for round in [0, 7] {
            let rate = contract.training.rate(round, 0);
            let next = step(start.clone(), &contract, RoundId(round), &sum, 4, None).unwrap();
            for (now, wanted) in parameters(&next).iter().zip([1.0 - 3.0 * rate, -1.0 + 7.0 * rate]) {
                assert!((now - wanted).abs() < 1e-4, "{now} is not {wanted}");
            }
        }
        assert_eq!(step(start.clone(), &contract, RoundId(0), &sum, 0, None).unwrap(), start);
    }

    #[test]
    fn groups_count_the_same_however_many_survived_and_the_jobs_rule_is_applied_to_their_means() {
        let spool = crate::spool::Spool::new(std::env::temp_dir());
        for (strategy, wanted) in [("fedavg", 12.0 / 3.0), ("fedmedian", 3.0)] {
            let members: Vec<_> = (0..12).map(|id| SiteId::from_bytes([id; 32])).collect();
            let contract = contract_among(&format!("groups = 3\nstrategy = \"{strategy}\""), &members);
            let unit = contract.sum_encoding(2).unwrap().unwrap().unit();
            // Mean gradients of 1, 3 and 8 over batches of 50.
            let group = |gradient: f64, sites: u32| {
                let sum = (gradient * 50.0 * f64::from(sites) / unit).round() as i32 as u32;
                OpenedSum { values: vec![sum, sum.wrapping_neg()], sites }
            };
            let mut aggregate = Aggregate::new(2, &contract.federation, &spool).unwrap();
            let opened = vec![group(8.0, 2), group(1.0, 4), group(3.0, 3)];
            assert_eq!(add_groups(&mut aggregate, &contract, RoundId(0), opened).unwrap(), 9);
            let next = GlobalModel::of(vec![0.0, 0.0]).moved_by(aggregate.combine().unwrap(), None);
            let rate = contract.training.rate(0, 0);
            for (now, wanted) in parameters(&next).iter().zip([-wanted * rate, wanted * rate]) {
                assert!((now - wanted).abs() < 1e-4, "{strategy}: {now} is not {wanted}");
            }
        }
    }

    /// The rate is so high that no parameter could follow.
    #[test]
    fn whatever_was_added_a_groups_update_is_finite_and_in_range() {
        let spool = crate::spool::Spool::new(std::env::temp_dir());
        let members: Vec<_> = (0..6).map(|id| SiteId::from_bytes([id; 32])).collect();
        let mut contract = contract_among("groups = 2", &members);
        contract.training.learning_rate = 1e3;
        let mut aggregate = Aggregate::new(3, &contract.federation, &spool).unwrap();
        let sum = OpenedSum { values: vec![i32::MIN as u32, i32::MAX as u32, 0], sites: 3 };
        add_groups(&mut aggregate, &contract, RoundId(0), vec![sum]).unwrap();
        let limit = i64::from(UPDATE_LIMIT);
        assert_eq!(aggregate.combine().unwrap().unwrap().sums, [limit, -limit, 0]);
    }

    #[test]
    fn the_jobs_server_optimiser_makes_the_step_and_keeps_its_state() {
        let contract = contract("strategy = \"fedavgm\"\nserver_learning_rate = 0.5\nserver_momentum = 0.5");
        let mut state = contract.server_state(2).unwrap();
        let unit = contract.sum_encoding(2).unwrap().unwrap().unit();
        let sum = [(150.0 / unit) as i32 as u32, 0];
        let mut model = GlobalModel::of(vec![0.0, 0.0]);
        let mut wanted = (0.0, 0.0);
        for round in 0..3 {
            model = step(model, &contract, RoundId(round), &sum, 3, Some(&mut state)).unwrap();
            wanted.0 = 0.5 * wanted.0 - contract.training.rate(round, 0);
            wanted.1 += 0.5 * wanted.0;
        }
        assert!((parameters(&model)[0] - wanted.1).abs() < 1e-4, "{model:?} is not at {wanted:?}");
    }

    #[test]
    fn a_sum_of_another_length_or_a_contract_of_another_mode_is_no_step() {
        let contract = contract("");
        let model = GlobalModel::of(vec![0.0, 0.0]);
        let error = step(model.clone(), &contract, RoundId(0), &[1, 2, 3], 3, None).unwrap_err();
        assert!(matches!(error, StepError::Length { expected: 2, got: 3 }));
        let mut plain = contract;
        plain.federation.mode = weighhouse_shared::job::ProtectionMode::Site;
        assert!(matches!(step(model, &plain, RoundId(0), &[1, 2], 3, None), Err(StepError::Mode)));
    }
}
