//! The global model as bytes, and the step from one version to the next.

use crate::aggregate::Combined;
use bytes::Bytes;
use weighhouse_shared::ids::{ContentHash, ContentHasher, JobId};
use weighhouse_shared::job::{JobContract, JobError};
use weighhouse_shared::model::ServerState;
use weighhouse_shared::wire::stream::BLOCK_LEN;

/// A model's parameters, 32-bit little-endian floats, and their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalModel {
    /// Hash of the bytes.
    pub hash: ContentHash,
    /// The parameters.
    pub bytes: Bytes,
}

impl GlobalModel {
    /// The model that a job starts from: a public function of its contract.
    pub fn initial(job: JobId, contract: &JobContract) -> Result<Self, JobError> {
        Ok(Self::of(contract.network()?.initial_parameters(*job.as_bytes())))
    }

    pub(crate) fn of(parameters: Vec<f32>) -> Self {
        let mut bytes = Vec::with_capacity(4 * parameters.len());
        bytes.extend(parameters.iter().flat_map(|parameter| parameter.to_le_bytes()));
        Self { hash: ContentHash::of(&bytes), bytes: bytes.into() }
    }

    /// The next version: moved by what the round's updates come to, as the job's server optimiser says; without a
    /// `state`, each parameter moves by just that (federated averaging). Model and state are unchanged if there were no
    /// updates. The model's memory is used again if nobody else holds it.
    pub fn moved_by(self, combined: Option<Combined<'_>>, mut state: Option<&mut ServerState>) -> Self {
        let Some(Combined { sums, divisor, unit }) = combined else { return self };
        let scale = unit / divisor as f64;
        let mut bytes = self.bytes.try_into_mut().unwrap_or_else(|shared| shared.as_ref().into());
        let mut hasher = ContentHasher::default();
        let sums = sums.chunks(BLOCK_LEN / 4);
        if let Some(state) = &mut state {
            state.begin_round();
        }
        let mut at = 0;
        // Hashed block by block, while a block is still in the processor's cache.
        for (block, sums) in bytes.chunks_mut(BLOCK_LEN).zip(sums) {
            let (values, _) = block.as_chunks_mut::<4>();
            // The ranges of updates and optimisers keep a finite model finite for far more rounds than a job can have.
            match &mut state {
                None => {
                    for (value, sum) in values.iter_mut().zip(sums) {
                        let parameter = f64::from(f32::from_le_bytes(*value)) + *sum as f64 * scale;
                        *value = (parameter as f32).to_le_bytes();
                    }
                }
                Some(state) => {
                    for (place, (value, sum)) in (at..).zip(values.iter_mut().zip(sums)) {
                        let parameter = state.moved(place, f32::from_le_bytes(*value), *sum as f64 * scale);
                        *value = parameter.to_le_bytes();
                    }
                }
            }
            at += values.len();
            hasher.update(block);
        }
        Self { hash: hasher.finish(), bytes: bytes.freeze() }
    }

    /// What a job ends with: the average of its rounds' models if `state` keeps one, else this model.
    pub fn concluded(self, state: Option<&ServerState>) -> Self {
        match state.and_then(ServerState::average) {
            Some(average) => Self::of(average.to_vec()),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::aggregate_of;
    use weighhouse_shared::job::UPDATE_STEP;
    use weighhouse_shared::model::ServerOptimizer;

    #[test]
    fn the_model_moves_by_the_mean_whatever_the_order() {
        let start = GlobalModel::of(vec![1.0, -1.0]);
        let mut models = Vec::new();
        for order in [[[1 << 20, 0], [0, 1 << 20]], [[0, 1 << 20], [1 << 20, 0]]] {
            let mut aggregate = aggregate_of("", &order.map(Vec::from));
            models.push(start.clone().moved_by(aggregate.combine().unwrap(), None));
        }
        assert_eq!(models[0], GlobalModel::of(vec![1.5, -0.5]));
        assert_eq!(models[0], models[1]);
        assert_eq!(start.clone().moved_by(None, None), start);
    }

    /// More parameters than a block holds, so that places go on from block to block.
    #[test]
    fn a_state_moves_the_model_as_it_would_parameter_by_parameter() {
        let count = BLOCK_LEN / 4 + 5;
        let rule = ServerOptimizer::Adam { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-3 };
        let start = || ServerState::start(rule, 0.5, count).unwrap();
        let parameters: Vec<f32> = (0..count).map(|at| at as f32 * 1e-3).collect();
        let (mut state, mut slow, mut expected) = (start(), start(), parameters.clone());
        let mut model = GlobalModel::of(parameters);
        for round in 1..4 {
            let values: Vec<i32> = (0..count as i32).map(|at| ((at % 7 - 3) * round) << 16).collect();
            let mut aggregate = aggregate_of("", &[values.clone(), values.clone()]);
            model = model.moved_by(aggregate.combine().unwrap(), Some(&mut state));
            slow.begin_round();
            for (at, parameter) in expected.iter_mut().enumerate() {
                *parameter = slow.moved(at, *parameter, f64::from(values[at]) * UPDATE_STEP);
            }
        }
        assert_eq!(model, GlobalModel::of(expected));
        let before = (model.clone(), state.clone());
        let model = model.moved_by(None, Some(&mut state));
        assert_eq!((&model, &state), (&before.0, &before.1), "a round that everyone skipped moves nothing");
        assert_eq!(model.clone().concluded(None), model);
        assert_eq!(model.concluded(Some(&state)), GlobalModel::of(slow.average().unwrap().to_vec()));
    }

    #[test]
    fn a_model_that_is_still_being_sent_is_left_as_it_is() {
        let start = GlobalModel::of(vec![1.0; 3]);
        let sending = start.bytes.slice(4..);
        let mut aggregate = aggregate_of("", &[vec![1 << 20; 3]]);
        let after = start.clone().moved_by(aggregate.combine().unwrap(), None);
        assert_ne!(after, start);
        assert_eq!(sending, GlobalModel::of(vec![1.0; 2]).bytes);
        // Alone, the same comes out in the same memory.
        drop(sending);
        let place = start.bytes.as_ptr();
        let again = start.moved_by(aggregate.combine().unwrap(), None);
        assert_eq!((again.bytes.as_ptr(), &again), (place, &after));
    }
}
