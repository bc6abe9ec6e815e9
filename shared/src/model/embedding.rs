//! One embedding table: looks up a vector for each row's id, and adds gradients to the vectors looked up.
//!
//! A row's vector depends on its own id and the parameters alone, to the last bit.

/// A table `[vocabulary, dim]`, as in PyTorch; a column of ids chooses its rows. With `dim` 1 it is the weight of each
/// category: a linear layer on the one-hot encoding.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    /// Which column of ids.
    pub column: usize,
    pub vocabulary: usize,
    pub dim: usize,
    /// Offset of the table in the flat parameters.
    pub offset: usize,
}

impl Embedding {
    /// Entries of the table.
    pub fn parameter_count(&self) -> usize {
        self.vocabulary * self.dim
    }

    /// The vector of `id`, `[dim]`.
    ///
    /// # Panics
    /// If `id` is not below the vocabulary.
    pub fn vector<'a>(&self, parameters: &'a [f32], id: u32) -> &'a [f32] {
        &parameters[self.offset..][..self.parameter_count()][id as usize * self.dim..][..self.dim]
    }

    /// Adds the sum over rows of the table's gradient to its part of `gradient`.
    ///
    /// `ids` is `[rows]`, `output_gradients` `[rows, dim]`.
    pub fn add_gradient(&self, ids: &[u32], output_gradients: &[f32], gradient: &mut [f32]) {
        let table = &mut gradient[self.offset..][..self.parameter_count()];
        for (&id, from) in ids.iter().zip(output_gradients.chunks_exact(self.dim)) {
            let vector = &mut table[id as usize * self.dim..][..self.dim];
            vector.iter_mut().zip(from).for_each(|(slot, &value)| *slot += value);
        }
    }
}
