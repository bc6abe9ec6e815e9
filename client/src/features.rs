//! Customers as the model sees them: numbers on -1 to 1, ids of categories, labels, and which rows are whose.

use std::fmt;
use weighhouse_shared::model::{Batch, Network, Rows};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::schema::InputShape;

/// Rows of many customers, each customer's adjacent.
pub struct FeatureTable {
    shape: InputShape,
    rows: CustomerRows,
    /// Customer i owns rows `starts[i]..starts[i + 1]`.
    starts: Vec<u32>,
}

/// Rows of one customer, or of several one after the other.
#[derive(Clone, Default)]
pub(crate) struct CustomerRows {
    /// `[rows, numbers]`.
    pub numbers: Vec<f32>,
    /// `[rows, categorical columns]`.
    pub ids: Vec<u32>,
    /// `[rows]`.
    pub labels: Vec<f32>,
}

/// Rows copied out for one step.
pub struct FeatureBatch {
    rows: CustomerRows,
    starts: Vec<u32>,
    draws: Vec<u8>,
}

impl FeatureTable {
    /// The table of `customers`, each with its rows of `shape`.
    pub(crate) fn new(shape: InputShape, customers: impl IntoIterator<Item = CustomerRows>) -> Self {
        let mut table = Self { shape, rows: CustomerRows::default(), starts: vec![0] };
        for mut customer in customers {
            table.rows.numbers.append(&mut customer.numbers);
            table.rows.ids.append(&mut customer.ids);
            table.rows.labels.append(&mut customer.labels);
            table.starts.push(u32::try_from(table.rows.labels.len()).expect("below the limit on customers"));
        }
        table
    }

    /// `customers[i]` holds that customer's rows, each `width` numbers and then the label.
    #[cfg(test)]
    pub(crate) fn from_customers(width: usize, customers: &[Vec<f32>]) -> Self {
        let rows = customers.iter().map(|customer| {
            let mut rows = CustomerRows::default();
            for row in customer.chunks_exact(width + 1) {
                rows.numbers.extend_from_slice(&row[..width]);
                rows.labels.push(row[width]);
            }
            rows
        });
        Self::new(width.into(), rows)
    }

    /// How many customers there are. Never leaves the site.
    pub fn customers(&self) -> usize {
        self.starts.len() - 1
    }

    /// How many rows and steps of a customer count if `max_rows` rows do.
    pub fn size(&self, customer: usize, max_rows: usize) -> (usize, usize) {
        let rows = (self.starts[customer + 1] - self.starts[customer]) as usize;
        (rows.min(max_rows), 0)
    }

    /// The rows of the customers at `chosen`, the first `max_rows` of each.
    pub fn gather(&self, chosen: &[usize], max_rows: usize) -> FeatureBatch {
        let mut batch = FeatureBatch { rows: CustomerRows::default(), starts: vec![0], draws: Vec::new() };
        let (width, columns) = (self.shape.numbers, self.shape.columns());
        for &customer in chosen {
            let first = self.starts[customer] as usize;
            let end = (self.starts[customer + 1] as usize).min(first + max_rows);
            batch.rows.numbers.extend_from_slice(&self.rows.numbers[first * width..end * width]);
            batch.rows.ids.extend_from_slice(&self.rows.ids[first * columns..end * columns]);
            batch.rows.labels.extend_from_slice(&self.rows.labels[first..end]);
            batch.starts.push(batch.rows.labels.len() as u32);
        }
        batch
    }
}

impl FeatureBatch {
    /// As the model takes it.
    pub fn as_batch(&self) -> Batch<'_> {
        let CustomerRows { numbers, ids, labels } = &self.rows;
        let rows = Rows { numbers, ids, ..Rows::default() };
        Batch { rows, labels, customer_starts: &self.starts, draws: &self.draws }
    }

    /// The same with fresh draws for what `network` does at random while it learns.
    pub fn with_draws(mut self, network: &Network, generator: &mut Generator) -> Self {
        self.draws.resize(network.draws(self.rows.labels.len(), 0), 0);
        generator.fill(&mut self.draws);
        self
    }
}

impl fmt::Debug for FeatureTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FeatureTable[{} numbers, {} categories]", self.shape.numbers, self.shape.columns())
    }
}

impl fmt::Debug for FeatureBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeatureBatch")
    }
}
