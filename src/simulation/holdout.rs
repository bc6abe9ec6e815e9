//! Customers of no site, on whom a simulated model is judged.

use anyhow::Result;
use candle_core::Device;
use weighhouse_client::features::FeatureTable;
use weighhouse_shared::evaluation::{Figure, Quality};
use weighhouse_shared::model::{Network, score};
use weighhouse_shared::schema::LabelKind;

/// Customers scored at a time.
const AT_A_TIME: usize = 256;
/// Predictions made for one figure, about at most: 64 MB.
pub const PREDICTIONS: usize = 1 << 24;

/// Held-out customers.
#[derive(Debug)]
pub struct Holdout {
    table: FeatureTable,
    label: LabelKind,
    max_rows: usize,
}

impl Holdout {
    /// The customers of `table`, whose labels are of kind `label`; of each the first `max_rows` rows count.
    pub fn new(table: FeatureTable, label: LabelKind, max_rows: usize) -> Self {
        Self { table, label, max_rows }
    }

    /// How many there are.
    pub fn customers(&self) -> usize {
        self.table.customers()
    }

    /// The label's [`Figure`] of the model at `parameters`, without noise, on as many of them as [`PREDICTIONS`] allows;
    /// None if it is not defined on them.
    pub fn figure(&self, network: &Network, parameters: &[f32]) -> Result<Option<f64>> {
        let target = network.target();
        let most = (PREDICTIONS / (target.outputs() * self.max_rows)).max(AT_A_TIME);
        let customers: Vec<usize> = (0..self.customers().min(most)).collect();
        let (mut predictions, mut labels) = (Vec::new(), Vec::new());
        for chosen in customers.chunks(AT_A_TIME) {
            let gathered = self.table.gather(chosen, self.max_rows);
            let batch = gathered.as_batch();
            predictions.extend(score(network, parameters, &batch.rows, &Device::Cpu)?);
            labels.extend_from_slice(batch.labels);
        }
        Ok(Figure::of(target).in_quality(&Quality::of_rows(&self.label, &predictions, &labels)))
    }
}
