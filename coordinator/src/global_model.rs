//! The global model as bytes, and the step from one version to the next.

use crate::aggregate::Aggregate;
use bytes::Bytes;
use weighhouse_shared::ids::{ContentHash, JobId};
use weighhouse_shared::job::{JobContract, JobError, UPDATE_STEP};

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
    /// Unchanged if there are none.
    pub fn averaged(&self, aggregate: &Aggregate) -> Self {
        if aggregate.updates() == 0 {
            return self.clone();
        }
        let scale = UPDATE_STEP / f64::from(aggregate.updates());
        let (values, _) = self.bytes.as_chunks::<4>();
        let mut bytes = vec![0; self.bytes.len()];
        let (moved, _) = bytes.as_chunks_mut::<4>();
        for ((moved, value), sum) in moved.iter_mut().zip(values).zip(aggregate.sums()) {
            // The range of updates keeps a finite model finite for far more rounds than a job can have.
            let parameter = f64::from(f32::from_le_bytes(*value)) + *sum as f64 * scale;
            *moved = (parameter as f32).to_le_bytes();
        }
        Self { hash: ContentHash::of(&bytes), bytes: bytes.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_moves_by_the_mean_whatever_the_order() {
        use crate::admission::Arriving;
        use weighhouse_shared::ids::RoundId;
        use weighhouse_shared::wire::stream::Piece;
        let folder = tempfile::tempdir().unwrap();
        let update = |values: [i32; 2]| {
            let body: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let piece = Piece {
                job: JobId::from_bytes([0; 32]),
                round: RoundId(0),
                base: ContentHash::of(b""),
                content: ContentHash::of(&body),
                total: 8,
                offset: 0,
                len: 8,
            };
            let mut arriving = Arriving::begin(piece, 8, folder.path()).unwrap().unwrap();
            arriving.push(&body).unwrap();
            arriving.finish().unwrap().admit(Ok(())).unwrap()
        };
        let start = GlobalModel::of(vec![1.0, -1.0]);
        let mut models = Vec::new();
        for order in [[[1 << 20, 0], [0, 1 << 20]], [[0, 1 << 20], [1 << 20, 0]]] {
            let mut aggregate = Aggregate::new(2);
            for values in order {
                aggregate.add(update(values)).unwrap();
            }
            models.push(start.averaged(&aggregate));
        }
        assert_eq!(models[0], GlobalModel::of(vec![1.5, -0.5]));
        assert_eq!(models[0], models[1]);
        assert_eq!(start.averaged(&Aggregate::new(2)), start);
    }
}
