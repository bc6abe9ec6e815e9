//! A batch's gradients, each customer's clipped and on the integer grid, summed: the last value that
//! is not yet private. It can go only into [`crate::noise`].

use crate::features::FeatureTable;
use std::fmt;
use weighhouse_shared::model::{ModelError, Network};
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

/// Sums the clipped gradients at `parameters` of the customers of `table` at `chosen`.
pub fn clip_and_sum(
    network: &Network,
    parameters: &[f32],
    table: &FeatureTable,
    chosen: &[usize],
    max_rows: usize,
    grid: &Grid,
    workspace: &mut SumWorkspace,
) -> Result<ClippedSum, ModelError> {
    let mut sum = vec![0; network.parameter_count()];
    for customers in chosen.chunks(MICRO_BATCH) {
        let batch = table.gather(customers, max_rows);
        clipped_sum(network, parameters, &batch.as_batch(), grid, workspace, &mut sum)?;
    }
    Ok(ClippedSum { sum, grid: *grid })
}
