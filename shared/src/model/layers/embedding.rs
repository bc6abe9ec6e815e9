//! One embedding table: looks up a vector for each id.

/// A table `[vocabulary, dim]`, as in PyTorch. With `dim` 1 it is the weight of each category: a linear layer on the
/// one-hot encoding.
#[derive(Clone, Debug)]
pub(in crate::model) struct Embedding {
    pub vocabulary: usize,
    pub dim: usize,
    /// Offset of the table in the flat parameters.
    pub offset: usize,
}

impl Embedding {
    /// The table's part of the flat parameters.
    pub fn table<'a>(&self, parameters: &'a [f32]) -> &'a [f32] {
        &parameters[self.offset..][..self.vocabulary * self.dim]
    }

    /// `[rows]` of ids to `[rows, dim]`.
    ///
    /// # Panics
    /// If an id is not below the vocabulary.
    pub fn forward(&self, parameters: &[f32], ids: &[u32], output: &mut [f32]) {
        let table = self.table(parameters);
        for (&id, to) in ids.iter().zip(output.chunks_exact_mut(self.dim)) {
            to.copy_from_slice(&table[id as usize * self.dim..][..self.dim]);
        }
    }
}

/// Adds the sum over rows of a table's gradient to it: `ids` is `[rows]`, `output_gradients` `[rows, dim]`, `table`
/// `[vocabulary, dim]`.
pub(in crate::model) fn add_embedding_gradient(
    ids: &[u32],
    output_gradients: &[f32],
    table: &mut [f32],
    dim: usize,
) {
    for (&id, from) in ids.iter().zip(output_gradients.chunks_exact(dim)) {
        let vector = &mut table[id as usize * dim..][..dim];
        vector.iter_mut().zip(from).for_each(|(slot, &value)| *slot += value);
    }
}
