//! Customers as the model sees them: feature rows on -1 to 1, labels, and which rows are whose.

use std::fmt;
use weighhouse_shared::model::Batch;

/// Rows of many customers, each customer's adjacent.
pub struct FeatureTable {
    width: usize,
    rows: Vec<f32>,
    labels: Vec<f32>,
    /// Customer i owns rows `starts[i]..starts[i + 1]`.
    starts: Vec<u32>,
}

/// Rows copied out for one step.
pub struct FeatureBatch {
    rows: Vec<f32>,
    labels: Vec<f32>,
    starts: Vec<u32>,
}

impl FeatureTable {
    /// `customers[i]` holds that customer's rows, each `width` features and then the label.
    pub(crate) fn from_customers(width: usize, customers: &[Vec<f32>]) -> Self {
        let mut table = Self { width, rows: Vec::new(), labels: Vec::new(), starts: vec![0] };
        for customer in customers {
            for row in customer.chunks_exact(width + 1) {
                table.rows.extend_from_slice(&row[..width]);
                table.labels.push(row[width]);
            }
            table.starts.push(u32::try_from(table.labels.len()).expect("below the limit on customers"));
        }
        table
    }

    /// How many customers there are. Never leaves the site.
    pub fn customers(&self) -> usize {
        self.starts.len() - 1
    }

    /// The rows of the customers at `chosen`, the first `max_rows` of each.
    pub fn gather(&self, chosen: &[usize], max_rows: usize) -> FeatureBatch {
        let mut batch = FeatureBatch { rows: Vec::new(), labels: Vec::new(), starts: vec![0] };
        for &customer in chosen {
            let first = self.starts[customer] as usize;
            let end = (self.starts[customer + 1] as usize).min(first + max_rows);
            batch.rows.extend_from_slice(&self.rows[first * self.width..end * self.width]);
            batch.labels.extend_from_slice(&self.labels[first..end]);
            batch.starts.push(batch.labels.len() as u32);
        }
        batch
    }
}

impl FeatureBatch {
    /// As the model takes it.
    pub fn as_batch(&self) -> Batch<'_> {
        Batch { rows: &self.rows, labels: &self.labels, customer_starts: &self.starts }
    }
}

impl fmt::Debug for FeatureTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FeatureTable[{} features]", self.width)
    }
}

impl fmt::Debug for FeatureBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeatureBatch")
    }
}
