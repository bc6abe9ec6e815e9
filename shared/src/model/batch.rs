//! Rows as a network takes them.

/// Rows of some customers; those of one customer are adjacent.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// `[rows, numbers]`, row-major, finite.
    pub rows: &'a [f32],
    /// `[rows, categorical columns]`, row-major, each below its column's vocabulary.
    pub ids: &'a [u32],
    /// `[rows]`, each 0 or 1 (or a probability between).
    pub labels: &'a [f32],
    /// Customer `i` owns rows `customer_starts[i] .. customer_starts[i + 1]`, at least one: starts at 0, rises,
    /// ends at the number of rows. `[0]` is the batch of nobody.
    pub customer_starts: &'a [u32],
}

impl Batch<'_> {
    /// Customers in the batch.
    pub fn customers(&self) -> usize {
        self.customer_starts.len().saturating_sub(1)
    }
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} customers, {} rows)", self.customers(), self.labels.len())
    }
}
