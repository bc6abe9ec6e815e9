//! The global model as bytes, and the step from one version to the next.

use crate::aggregate::Aggregate;
use bytes::Bytes;
use weighhouse_shared::ids::{ContentHash, ContentHasher, JobId};
use weighhouse_shared::job::{JobContract, JobError, UPDATE_STEP};
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

    fn of(parameters: Vec<f32>) -> Self {
        let mut bytes = Vec::with_capacity(4 * parameters.len());
        bytes.extend(parameters.iter().flat_map(|parameter| parameter.to_le_bytes()));
        Self { hash: ContentHash::of(&bytes), bytes: bytes.into() }
    }

    /// Federated averaging with uniform weights: each parameter moves by the mean of the updates.
    /// Unchanged if there are none. The model's memory is used again if nobody else holds it.
    pub fn averaged(self, aggregate: &Aggregate) -> Self {
        if aggregate.updates() == 0 {
            return self;
        }
        let scale = UPDATE_STEP / f64::from(aggregate.updates());
        let mut bytes = self.bytes.try_into_mut().unwrap_or_else(|shared| shared.as_ref().into());
        let mut hasher = ContentHasher::default();
        let sums = aggregate.sums().chunks(BLOCK_LEN / 4);
        // Hashed block by block, while a block is still in the processor's cache.
        for (block, sums) in bytes.chunks_mut(BLOCK_LEN).zip(sums) {
            let (values, _) = block.as_chunks_mut::<4>();
            for (value, sum) in values.iter_mut().zip(sums) {
                // The range of updates keeps a finite model finite for far more rounds than a job can have.
                let parameter = f64::from(f32::from_le_bytes(*value)) + *sum as f64 * scale;
                *value = (parameter as f32).to_le_bytes();
            }
            hasher.update(block);
        }
        Self { hash: hasher.finish(), bytes: bytes.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{AdmittedUpdate, Arriving, Spool};
    use weighhouse_shared::ids::RoundId;
    use weighhouse_shared::wire::stream::Piece;

    fn update(values: &[i32]) -> AdmittedUpdate {
        let body: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let piece = Piece {
            job: JobId::from_bytes([0; 32]),
            round: RoundId(0),
            base: ContentHash::of(b""),
            content: ContentHash::of(&body),
            total: body.len() as u64,
            offset: 0,
            len: body.len() as u32,
        };
        // Short updates never reach the folder.
        let mut arriving = Arriving::begin(piece, piece.total, &Spool::new("".into())).unwrap().unwrap();
        arriving.push(&body).unwrap();
        arriving.finish().unwrap().admit(Ok(())).unwrap()
    }

    #[test]
    fn the_model_moves_by_the_mean_whatever_the_order() {
        let start = GlobalModel::of(vec![1.0, -1.0]);
        let mut models = Vec::new();
        for order in [[[1 << 20, 0], [0, 1 << 20]], [[0, 1 << 20], [1 << 20, 0]]] {
            let mut aggregate = Aggregate::new(2);
            for values in order {
                aggregate.add(update(&values)).unwrap();
            }
            models.push(start.clone().averaged(&aggregate));
        }
        assert_eq!(models[0], GlobalModel::of(vec![1.5, -0.5]));
        assert_eq!(models[0], models[1]);
        assert_eq!(start.clone().averaged(&Aggregate::new(2)), start);
    }
    #[test]
    fn a_model_that_is_still_being_sent_is_left_as_it_is() {
        let start = GlobalModel::of(vec![1.0; 3]);
        let sending = start.bytes.slice(4..);
        let mut aggregate = Aggregate::new(3);
        aggregate.add(update(&[1 << 20; 3])).unwrap();
        let after = start.clone().averaged(&aggregate);
        assert_ne!(after, start);
        assert_eq!(sending, GlobalModel::of(vec![1.0; 2]).bytes);
        // Alone, the same comes out in the same memory.
        drop(sending);
        let place = start.bytes.as_ptr();
        let again = start.averaged(&aggregate);
        assert_eq!((again.bytes.as_ptr(), &again), (place, &after));
    }
}
