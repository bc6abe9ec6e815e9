//! From noised sums to what leaves: a model that moves by noised sums only, its change as integers, and
//! both kinds of release as bytes.

use crate::budget::Debit;
use crate::feedback::Feedback;
use crate::noise::{NoisedHistogram, NoisedSum};
use crate::payer::Simulated;
use std::marker::PhantomData;
use weighhouse_shared::compression::Compression;
use weighhouse_shared::ids::JobId;
use weighhouse_shared::job::{Training, UPDATE_LIMIT, UPDATE_STEP};
use weighhouse_shared::model::{LocalOptimizer, all_finite, vectorised};
use weighhouse_shared::privacy::{Generator, GeneratorError};
use weighhouse_shared::wire::messages::Evaluation;

/// A model on its way through a site's local steps. It starts at the public global model and can move
/// only by noised sums, and the optimiser's state sees nothing else either, so it is itself safe to leave.
#[derive(Debug)]
pub struct LocalModel<'a, P = Debit> {
    global: &'a [f32],
    parameters: Vec<f32>,
    optimizer: LocalOptimizer,
    batch: f64,
    payer: PhantomData<P>,
}

impl<'a, P> LocalModel<'a, P> {
    /// Starts a round at `global`, with the optimiser of `training` at its start as well. The parameters are kept in
    /// `memory`.
    pub fn start(global: &'a [f32], training: &Training, mut memory: Vec<f32>) -> Self {
        let optimizer = LocalOptimizer::start(training.optimizer, training.proximal, global.len());
        let batch = training.expected_batch();
        memory.clear();
        memory.extend_from_slice(global);
        Self { global, parameters: memory, optimizer, batch, payer: PhantomData }
    }

    /// Where it stands.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// One step of size `rate` along the mean gradient: `sum` over the contract's expected batch, never over the
    /// batch's own size.
    pub fn step(&mut self, sum: &NoisedSum<P>, rate: f64) {
        let gradient = (sum.gradient(), sum.unit() / self.batch);
        self.optimizer.step(&mut self.parameters, self.global, gradient, rate);
    }

    /// Whether every parameter is a number; a step size that is too large ends in infinity.
    pub fn is_finite(&self) -> bool {
        all_finite(&self.parameters) && self.optimizer.is_finite()
    }

    /// The change since the start, on the public update grid, saturated at its limit; written into `memory`. Beside it
    /// the memory that the parameters were in.
    pub fn into_update(self, memory: Vec<u8>) -> (ModelUpdate<P>, Vec<f32>) {
        let Self { global, parameters, .. } = self;
        let change = |(local, global): (&f32, &f32)| {
            whole_steps((f64::from(*local) - f64::from(*global)) * UPDATE_STEP.recip())
        };
        let update = ModelUpdate::of(parameters.iter().zip(global).map(change), memory);
        (update, parameters)
    }
}

/// The integer nearest to `steps`, the even one of two; saturated at [`UPDATE_LIMIT`], and a limit for what is no
/// number.
#[inline(always)]
fn whole_steps(steps: f64) -> i32 {
    // With 1.5 * 2^52 added, the last bits of the f64 are the integer: vectorises where `round` and a cast do not.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let limit = f64::from(UPDATE_LIMIT);
    let within = steps.max(-limit).min(limit);
    (within + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i32
}

const _: () = assert!(UPDATE_STEP * UPDATE_STEP.recip() == 1.0);

/// Why an update could not be compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// What is left cannot be read or kept.
    #[error("cannot use the feedback folder; is the disk full?")]
    Feedback(#[from] std::io::Error),
    /// The system's generator failed.
    #[error("no randomness to be had from the system")]
    Generator(#[from] GeneratorError),
}

/// The change of a model in units of the public update step: made of noised sums only. What may leave is one that a
/// debit paid for.
#[derive(Debug)]
pub struct ModelUpdate<P = Debit> {
    bytes: Vec<u8>,
    payer: PhantomData<P>,
}

impl<P> ModelUpdate<P> {
    fn of(values: impl ExactSizeIterator<Item = i32> + Clone, mut memory: Vec<u8>) -> Self {
        memory.resize(4 * values.len(), 0);
        let (cells, _) = memory.as_chunks_mut::<4>();
        // Zipped with the values themselves: through a reference to them they would come one by one.
        vectorised(
            #[inline(always)]
            || cells.iter_mut().zip(values.clone()).for_each(|(cell, value)| *cell = value.to_le_bytes()),
        );
        Self { bytes: memory, payer: PhantomData }
    }

    fn encoded(
        self,
        job: JobId,
        compression: Compression,
        feedback: &Feedback,
    ) -> Result<Vec<u8>, CompressError> {
        if compression == Compression::None {
            return Ok(self.bytes);
        }
        let (cells, _) = self.bytes.as_chunks::<4>();
        let mut values: Vec<i32> = cells.iter().map(|cell| i32::from_le_bytes(*cell)).collect();
        if compression.has_feedback() {
            feedback.add_to(job, &mut values)?;
        }
        // A generator of its own: what it draws protects nobody.
        let bytes = compression.encode(&mut values, UPDATE_LIMIT, &mut Generator::from_system()?);
        if compression.has_feedback() {
            feedback.store(job, &values)?;
        }
        Ok(bytes)
    }
}

impl ModelUpdate {
    /// As it travels uncompressed: 32-bit little-endian integers.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// As it travels in a job with this compression. What that leaves out goes into `feedback`, from where what earlier
    /// updates of the job left out is added.
    pub fn compressed(
        self,
        job: JobId,
        compression: Compression,
        feedback: &Feedback,
    ) -> Result<Vec<u8>, CompressError> {
        self.encoded(job, compression, feedback)
    }

    /// Adds a constant to the public model, without any record: what a no-training round sends.
    #[cfg(feature = "constant-update")]
    pub fn constant(parameters: usize, value: i32, memory: Vec<u8>) -> Self {
        Self::of(std::iter::repeat_n(value, parameters), memory)
    }
}

impl ModelUpdate<Simulated> {
    /// A constant, without any record: of a site that does nothing.
    pub fn of_nothing(parameters: usize, memory: Vec<u8>) -> Self {
        Self::of(std::iter::repeat_n(1, parameters), memory)
    }

    /// As [`compressed`](ModelUpdate::compressed), for this process alone.
    pub fn simulated(
        self,
        job: JobId,
        compression: Compression,
        feedback: &Feedback,
    ) -> Result<SimulatedUpdate, CompressError> {
        Ok(SimulatedUpdate(self.encoded(job, compression, feedback)?))
    }
}

/// A simulated site's update as it would travel. Nothing paid for it, so no message is made of it.
#[derive(Debug)]
pub struct SimulatedUpdate(Vec<u8>);

impl SimulatedUpdate {
    /// To be read where it was made.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A histogram's counts as they travel: 64-bit little-endian integers.
pub fn histogram_bytes(histogram: NoisedHistogram) -> Vec<u8> {
    Evaluation::released_bytes(&histogram.into_counts())
}

/// The counts in bytes made by [`histogram_bytes`].
pub fn histogram_counts(bytes: &[u8]) -> Vec<i64> {
    let (counts, _) = bytes.as_chunks::<8>();
    counts.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::model::Optimizer;

    #[test]
    fn a_change_beyond_the_encoding_is_saturated_never_wrapped() {
        let global = [0.0f32, 0.0, 0.0, 1.0];
        let optimizer = Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 };
        let optimizer = LocalOptimizer::start(optimizer, 0.0, 4);
        let parameters = vec![1e30, -1e30, 0.5, 1.0];
        let payer = PhantomData::<Debit>;
        let model = LocalModel { global: &global, parameters, optimizer, batch: 1.0, payer };
        let limit = UPDATE_LIMIT;
        let bytes = model.into_update(vec![7; 30]).0.into_bytes();
        let (values, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        assert!(values.iter().map(|value| i32::from_le_bytes(*value)).eq([limit, -limit, 1 << 19, 0]));
    }

    /// What each update leaves out is in a later one: after the last that changes nothing, all has been sent.
    #[test]
    fn what_top_k_leaves_out_is_sent_later_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let (job, compression) = (JobId::from_bytes([1; 32]), Compression::TopK { share: 0.25 });
        let updates: [[i32; 8]; 2] = [[9, -8, 7, -6, 5, -4, 3, -2], [1; 8]];
        let mut sum = [0i32; 8];
        for round in 0..5 {
            let values = updates.get(round).copied().unwrap_or_default();
            let update = <ModelUpdate>::of(values.into_iter(), Vec::new());
            let feedback = Feedback::open(folder.path()).unwrap();
            let bytes = update.compressed(job, compression, &feedback).unwrap();
            assert_eq!(bytes.len(), 16);
            for entry in bytes.as_chunks::<8>().0 {
                let (at, value) = entry.split_first_chunk::<4>().unwrap();
                sum[u32::from_le_bytes(*at) as usize] += i32::from_le_bytes(value.try_into().unwrap());
            }
        }
        assert_eq!(sum, std::array::from_fn(|at| updates[0][at] + updates[1][at]));
    }

    #[test]
    fn histogram_bytes_read_back() {
        let counts = vec![-3i64, 0, i64::MAX, i64::MIN];
        assert_eq!(histogram_counts(&Evaluation::released_bytes(&counts)), counts);
    }
}
