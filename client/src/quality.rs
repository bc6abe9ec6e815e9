//! How good a model is on held-out customers: a histogram of how its predictions meet their labels, noised before it
//! leaves.

use crate::budget::Debit;
use crate::features::FeatureTable;
use crate::noise::{CustomerHistogram, NoiseError, NoisedHistogram, noise_histogram};
use candle_core::Device;
use weighhouse_shared::evaluation::{Mark, bin_of, mark};
use weighhouse_shared::model::{ModelError, Network, score};
use weighhouse_shared::privacy::CUSTOMER_UNITS;

/// Most customers scored at a time: bounds memory whatever the site's size.
const MICRO_BATCH: usize = 1024;
/// Predictions made at a time, unless one customer's are more: 64 MB.
const PREDICTIONS: usize = 1 << 24;

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

/// Scores the customers of `table`, counts where each row's prediction meets its label
/// ([`evaluation`](weighhouse_shared::evaluation)) in two sides of `bins` bins, adds noise.
///
/// A customer's weight is spread over its rows: of n rows each counts floor(1024 / n) units in one bin, so a
/// customer adds at most 1024 units in all and changes the histogram by at most 1024 in L2 norm (its
/// L1 norm bounds its L2 norm), whatever is learned. The first `bins` counts are of hits, the others of misses.
pub fn measure(
    network: &Network,
    parameters: &[f32],
    table: &FeatureTable,
    max_rows: usize,
    bins: usize,
    mut debit: Debit,
) -> Result<NoisedHistogram, QualityError> {
    let counts = count(network, parameters, table, max_rows, bins)?;
    Ok(noise_histogram(counts, &mut debit)?)
}

fn count(
    network: &Network,
    parameters: &[f32],
    table: &FeatureTable,
    max_rows: usize,
    bins: usize,
) -> Result<CustomerHistogram, ModelError> {
    let (target, outputs) = (network.target(), network.target().outputs());
    let mut counts = vec![0i64; 2 * bins];
    let customers: Vec<usize> = (0..table.customers()).collect();
    let at_a_time = (PREDICTIONS / (outputs * max_rows)).clamp(1, MICRO_BATCH);
    for chosen in customers.chunks(at_a_time) {
        let gathered = table.gather(chosen, max_rows);
        let batch = gathered.as_batch();
        let predictions = score(network, parameters, &batch.rows, &Device::Cpu)?;
        for rows in batch.customer_starts.windows(2) {
            let rows = rows[0] as usize..rows[1] as usize;
            let weight = CUSTOMER_UNITS as i64 / rows.len() as i64;
            for row in rows {
                let prediction = &predictions[row * outputs..(row + 1) * outputs];
                let Mark { score, hit } = mark(target, prediction, batch.labels[row]);
                counts[bin_of(score, bins) + if hit { 0 } else { bins }] += weight;
            }
        }
    }
    Ok(CustomerHistogram(counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::model::ModelSpec;
    use weighhouse_shared::schema::{DataShape, Target};

    /// Whatever the label's kind and the number of a customer's rows, a customer counts at most 1024 units in all.
    #[test]
    fn a_customer_adds_its_units_and_no_more_whatever_is_learned() {
        for (target, spec) in [
            (Target::Binary, ModelSpec::Logistic {}),
            (Target::Classes(3), ModelSpec::Logistic {}),
            (Target::Count, ModelSpec::Logistic {}),
            (Target::Number, ModelSpec::Logistic {}),
            (Target::Item(12), ModelSpec::TwoTower { hidden: vec![3], dim: 2, negatives: 2 }),
        ] {
            let network = Network::new(&spec, DataShape { inputs: 1.into(), target }).unwrap();
            let parameters = network.initial_parameters([1; 32]);
            for rows in [1, 3, 700, 1024] {
                let customer: Vec<f32> = (0..rows).flat_map(|row| [(row % 5) as f32 / 5.0, 1.0]).collect();
                let table = FeatureTable::from_customers(1, &[customer]);
                let CustomerHistogram(counts) = count(&network, &parameters, &table, 1024, 20).unwrap();
                let total: i64 = counts.iter().sum();
                assert_eq!(total, rows * (1024 / rows), "{target:?}, {rows} rows");
                assert!(counts.iter().all(|&count| count >= 0));
            }
        }
    }

    /// Hand-made: the weights send each row's number to a known prediction.
    #[test]
    fn each_row_counts_where_its_prediction_meets_its_label() {
        let counted = |target, parameters: &[f32], rows: Vec<f32>| {
            let network =
                Network::new(&ModelSpec::Logistic {}, DataShape { inputs: 1.into(), target }).unwrap();
            let table = FeatureTable::from_customers(1, &[rows]);
            let CustomerHistogram(counts) = count(&network, parameters, &table, 25, 2).unwrap();
            counts
        };
        // Probability near 1: one row of label 1, one of label 0.
        assert_eq!(counted(Target::Binary, &[9.0, 0.0], vec![1.0, 1.0, 1.0, 0.0]), [0, 512, 0, 512]);
        // The number itself is predicted: off by 0.25 upwards, by 0.75 downwards.
        assert_eq!(counted(Target::Number, &[1.0, 0.0], vec![0.5, 0.25, 0.0, 0.75]), [512, 0, 0, 512]);
        // Class 1 is predicted with near certainty, rightly and wrongly.
        let class = counted(Target::Classes(2), &[0.0, 9.0, 0.0, 0.0], vec![1.0, 1.0, 1.0, 0.0]);
        assert_eq!(class, [0, 512, 0, 512]);
        // A rate of 1 against counts of 0 and 4: errors of 1 and 3, at 1/2 and 3/4.
        assert_eq!(counted(Target::Count, &[0.0, 0.0], vec![1.0, 0.0, 1.0, 4.0]), [0, 512, 0, 512]);
    }
}
