//! How good a model is on held-out customers: a histogram of scores by label, noised before it leaves.

use crate::budget::Debit;
use crate::features::FeatureTable;
use crate::noise::{CustomerHistogram, NoiseError, NoisedHistogram, noise_histogram};
use candle_core::Device;
use weighhouse_shared::model::{ModelError, Network, score};
use weighhouse_shared::privacy::CUSTOMER_UNITS;

/// Customers scored at a time: bounds memory whatever the site's size.
const MICRO_BATCH: usize = 1024;

/// Why no histogram was made.
#[derive(Debug, thiserror::Error)]
pub enum QualityError {
    /// The model and the records do not go together.
    #[error("scoring held-out customers failed")]
    Model(#[from] ModelError),
    /// The debit did not pay, or the noise could not be drawn.
    #[error("scoring held-out customers failed")]
    Noise(#[from] NoiseError),
}

/// Scores the customers of `table`, counts them in `bins` bins of the score by label, adds noise.
///
/// A customer's weight is spread over its rows: of n rows each counts floor(1024 / n) units, so a
/// customer adds at most 1024 units in all and changes the histogram by at most 1024 in L2 norm (its
/// L1 norm bounds its L2 norm). The first `bins` counts are of label 1, the others of label 0.
pub fn measure(
    network: &Network,
    parameters: &[f32],
    table: &FeatureTable,
    max_rows: usize,
    bins: usize,
    mut debit: Debit,
) -> Result<NoisedHistogram, QualityError> {
    let mut counts = vec![0i64; 2 * bins];
    let customers: Vec<usize> = (0..table.customers()).collect();
    for chosen in customers.chunks(MICRO_BATCH) {
        let gathered = table.gather(chosen, max_rows);
        let batch = gathered.as_batch();
        let scores = score(network, parameters, &batch.rows, &Device::Cpu)?;
        for rows in batch.customer_starts.windows(2) {
            let rows = rows[0] as usize..rows[1] as usize;
            let weight = CUSTOMER_UNITS as i64 / rows.len() as i64;
            for row in rows {
                // A cast from float to integer saturates and takes NaN to 0: every row has a bin.
                let bin = ((scores[row] * bins as f32) as usize).min(bins - 1);
                counts[if batch.labels[row] > 0.5 { bin } else { bins + bin }] += weight;
            }
        }
    }
    Ok(noise_histogram(CustomerHistogram(counts), &mut debit)?)
}
