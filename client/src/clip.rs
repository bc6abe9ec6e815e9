//! A batch's gradients, each customer's clipped and on the integer grid, summed: the last value that
//! is not yet private. It can go only into [`crate::noise`].

use crate::features::FeatureTable;
use std::fmt;
use weighhouse_shared::model::{ModelError, Network};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::grid::{Grid, SumWorkspace, clipped_sum};

/// Customers whose gradients are worked on at a time: bounds memory whatever the batch.
const MICRO_BATCH: usize = 256;

/// A sum over customers, in units of the grid. One customer more or less changes it by at most
/// [`Grid::sensitivity`] in L2 norm.
pub struct ClippedSum {
    pub(crate) sum: Vec<i64>,
    pub(crate) grid: Grid,
}

impl fmt::Debug for ClippedSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClippedSum[{}]", self.sum.len())
    }
}

/// What the sum is of.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The model.
    pub network: &'a Network,
    /// Where it is.
    pub parameters: &'a [f32],
    /// Rows of one customer that count.
    pub max_rows: usize,
    /// The clip norm.
    pub grid: &'a Grid,
}

/// Sums the clipped gradients of the customers of `table` at `chosen`. `generator` draws what the model does at random
/// while it learns, for each customer by itself.
pub fn clip_and_sum(
    step: Step<'_>,
    table: &FeatureTable,
    chosen: &[usize],
    workspace: &mut SumWorkspace,
    generator: &mut Generator,
) -> Result<ClippedSum, ModelError> {
    let Step { network, parameters, max_rows, grid } = step;
    let mut sum = vec![0; network.parameter_count()];
    for customers in chosen.chunks(MICRO_BATCH) {
        let batch = table.gather(customers, max_rows).with_draws(network, generator);
        clipped_sum(network, parameters, &batch.as_batch(), grid, workspace, &mut sum)?;
    }
    Ok(ClippedSum { sum, grid: *grid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::model::ModelSpec;
    use weighhouse_shared::privacy::ClipNorm;

    #[test]
    fn however_large_the_batch_memory_is_that_of_a_micro_batch() {
        let customers: Vec<Vec<f32>> = (0..2 * MICRO_BATCH + 3).map(|at| vec![at as f32, 1.0]).collect();
        let table = FeatureTable::from_customers(1, &customers);
        let network = Network::new(&ModelSpec::Logistic {}, 1).unwrap();
        let grid = Grid::new(ClipNorm::new(1.0).unwrap());
        let mut workspace = SumWorkspace::new();
        let chosen: Vec<usize> = (0..customers.len()).collect();
        let parameters = [0.0; 2];
        let step = Step { network: &network, parameters: &parameters, max_rows: 25, grid: &grid };
        let mut generator = Generator::from_seed(1);
        let whole = clip_and_sum(step, &table, &chosen, &mut workspace, &mut generator).unwrap();
        assert!(format!("{workspace:?}").contains("customers: 3"), "the last part: {workspace:?}");
        let mut sum = vec![0; 2];
        let batch = table.gather(&chosen, 25);
        clipped_sum(&network, &parameters, &batch.as_batch(), &grid, &mut workspace, &mut sum).unwrap();
        assert_eq!(whole.sum, sum);
    }
}
