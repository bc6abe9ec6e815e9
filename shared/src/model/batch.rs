//! Rows as a network takes them.

/// Inputs of some rows. What a network does not take is empty.
#[derive(Clone, Copy, Default)]
pub struct Rows<'a> {
    /// `[rows, numbers]`, row-major, finite.
    pub numbers: &'a [f32],
    /// `[rows, categorical columns]`, row-major, each below its column's vocabulary.
    pub ids: &'a [u32],
    /// Row `i` has the steps `step_starts[i] .. step_starts[i + 1]` of its sequence, maybe none: `[rows + 1]`,
    /// starts at 0, never falls. Empty if rows have no sequence.
    pub step_starts: &'a [u32],
    /// `[steps, numbers of a step]`, row-major, finite.
    pub step_numbers: &'a [f32],
    /// `[steps, categorical columns of a step]`, row-major, each below its column's vocabulary.
    pub step_ids: &'a [u32],
}

/// Rows of some customers with what is learned from them; those of one customer are adjacent.
#[derive(Clone, Copy, Default)]
pub struct Batch<'a> {
    /// The inputs.
    pub rows: Rows<'a>,
    /// `[rows]`, each as the network's [`Target`](crate::schema::Target) says.
    pub labels: &'a [f32],
    /// Customer `i` owns rows `customer_starts[i] .. customer_starts[i + 1]`, at least one: starts at 0, rises,
    /// ends at the number of rows. `[0]` is the batch of nobody.
    pub customer_starts: &'a [u32],
    /// Uniform bytes for dropout and for sampled negatives, as many as
    /// [`Network::draws`](super::Network::draws) says: from a cryptographic generator, anew for each batch.
    pub draws: &'a [u8],
}

impl Batch<'_> {
    /// Customers in the batch.
    pub fn customers(&self) -> usize {
        self.customer_starts.len().saturating_sub(1)
    }
}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rows")
    }
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} customers, {} rows)", self.customers(), self.labels.len())
    }
}
