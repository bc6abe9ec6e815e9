//! Customers as the model sees them: numbers on -1 to 1, ids of categories, steps of sequences, labels, and which rows
//! are whose.

use std::fmt;
use weighhouse_shared::model::{Batch, Network};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::schema::{InputShape, RowTable};

/// Rows of many customers, each customer's adjacent.
pub struct FeatureTable {
    shape: InputShape,
    rows: RowTable,
    /// Customer i owns rows `starts[i]..starts[i + 1]`.
    starts: Vec<usize>,
    /// Customer i's rows own steps `step_starts[i]..step_starts[i + 1]`.
    step_starts: Vec<usize>,
}

/// Rows copied out for one step.
pub struct FeatureBatch {
    rows: RowTable,
    starts: Vec<u32>,
    step_starts: Vec<u32>,
    draws: Vec<u8>,
}

impl FeatureTable {
    /// The table of `customers`, each with its rows of `shape`.
    pub(crate) fn new(shape: InputShape, customers: impl IntoIterator<Item = RowTable>) -> Self {
        let mut table = Self { shape, rows: RowTable::default(), starts: vec![0], step_starts: vec![0] };
        let mut steps = 0;
        for mut customer in customers {
            steps += customer.steps(0..customer.len());
            table.rows.append(&mut customer);
            table.starts.push(table.rows.len());
            table.step_starts.push(steps);
        }
        table
    }

    /// The table of `rows` of `shape`; customer i has the rows `starts[i]..starts[i + 1]`.
    ///
    /// # Panics
    /// If `starts` does not rise from 0 to the number of rows.
    pub fn of_rows(shape: InputShape, rows: RowTable, starts: Vec<usize>) -> Self {
        assert!(starts.first() == Some(&0) && starts.is_sorted() && starts.last() == Some(&rows.len()));
        let mut steps = 0;
        let of_customers = starts.windows(2).map(|of| {
            steps += rows.steps(of[0]..of[1]);
            steps
        });
        let step_starts = std::iter::once(0).chain(of_customers).collect();
        Self { shape, rows, starts, step_starts }
    }

    /// The customers at `chosen`, with all their rows.
    pub fn of_some(&self, chosen: &[u32]) -> Self {
        let mut some = RowTable::default();
        let mut starts = vec![0];
        for &customer in chosen {
            let customer = customer as usize;
            let rows = self.starts[customer]..self.starts[customer + 1];
            some.extend_from(&self.rows, &self.shape, rows, self.step_starts[customer]);
            starts.push(some.len());
        }
        Self::of_rows(self.shape.clone(), some, starts)
    }

    /// The label of each customer's first row.
    pub fn first_labels(&self) -> impl Iterator<Item = f32> {
        self.starts.windows(2).map(|of| self.rows.labels[of[0]])
    }

    /// `customers[i]` holds that customer's rows, each `width` numbers and then the label.
    #[cfg(test)]
    pub(crate) fn from_customers(width: usize, customers: &[Vec<f32>]) -> Self {
        let rows = customers.iter().map(|customer| {
            let mut rows = RowTable::default();
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
        let rows = self.starts[customer]..self.starts[customer + 1];
        let counted = rows.start..rows.end.min(rows.start + max_rows);
        (counted.len(), self.rows.steps(counted))
    }

    /// The rows of the customers at `chosen`, the first `max_rows` of each.
    ///
    /// # Panics
    /// If these rows, or their steps, are 2^32 or more.
    pub fn gather(&self, chosen: &[usize], max_rows: usize) -> FeatureBatch {
        let mut rows = RowTable::default();
        let mut starts = vec![0];
        for &customer in chosen {
            let first = self.starts[customer];
            let end = self.starts[customer + 1].min(first + max_rows);
            rows.extend_from(&self.rows, &self.shape, first..end, self.step_starts[customer]);
            starts.push(u32::try_from(rows.len()).expect("micro-batches of fewer than 2^32 rows"));
        }
        let step_starts = match &self.shape.sequence {
            Some(_) if rows.is_empty() => vec![0],
            _ => rows.step_starts(),
        };
        FeatureBatch { rows, starts, step_starts, draws: Vec::new() }
    }
}

impl FeatureBatch {
    /// As the model takes it.
    pub fn as_batch(&self) -> Batch<'_> {
        let rows = self.rows.as_rows(&self.step_starts);
        Batch { rows, labels: &self.rows.labels, customer_starts: &self.starts, draws: &self.draws }
    }

    /// The same with fresh draws for what `network` does at random while it learns.
    pub fn with_draws(mut self, network: &Network, generator: &mut Generator) -> Self {
        let steps = self.step_starts.last().map_or(0, |&end| end as usize);
        self.draws.resize(network.draws(self.rows.len(), steps), 0);
        generator.fill(&mut self.draws);
        self
    }
}

impl fmt::Debug for FeatureTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.shape.sequence.as_ref().map_or(0, |sequence| sequence.length);
        write!(
            f,
            "FeatureTable[{} numbers, {} categories, {steps} steps]",
            self.shape.numbers,
            self.shape.columns()
        )
    }
}

impl fmt::Debug for FeatureBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeatureBatch")
    }
}
