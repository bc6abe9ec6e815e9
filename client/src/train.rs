//! The local loop of one round: private gradient steps from the global model, each paid by one step of
//! the round's debit.

use crate::budget::Debit;
use crate::clip::clip_and_sum;
use crate::features::FeatureTable;
use crate::noise::{NoiseError, noise_sum};
use crate::sampling::poisson_sample;
use crate::update::{LocalModel, ModelUpdate};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::{ModelError, Network};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::grid::{Grid, SumWorkspace};

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

/// Makes the round's steps and returns the model's change, written into `memory`.
///
/// Step: w <- w - learning_rate * noised_sum / (sampling_rate * expected_customers); the denominator is
/// the contract's, never the batch's size.
pub fn train_round(
    contract: &JobContract,
    network: &Network,
    global: &[f32],
    table: &FeatureTable,
    mut debit: Debit,
    generator: &mut Generator,
    memory: Vec<u8>,
) -> Result<ModelUpdate, TrainError> {
    let training = &contract.training;
    let grid = Grid::new(contract.privacy.clip_norm);
    let denominator = training.sampling_rate.value() * f64::from(training.expected_customers);
    let step = training.learning_rate / denominator;
    let max_rows = training.max_rows_per_customer as usize;
    let mut workspace = SumWorkspace::new();
    let mut model = LocalModel::start(global);
    for _ in 0..training.local_steps {
        let chosen = poisson_sample(table.customers(), training.sampling_rate, generator);
        let parameters = model.parameters();
        let clipped = clip_and_sum(network, parameters, table, &chosen, max_rows, &grid, &mut workspace)?;
        let noised = noise_sum(clipped, &mut debit, generator)?;
        model.descend(&noised, step);
        if !model.is_finite() {
            return Err(TrainError::Diverged);
        }
    }
    Ok(model.into_update(memory))
}
