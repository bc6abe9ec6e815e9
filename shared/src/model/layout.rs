//! Where each tensor lies in a network's flat parameters.

use super::{embedding::Embedding, linear::Linear};

/// One named tensor inside the flat parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// `layers.0.weight`, `layers.0.bias`, ...; `embeddings.0.weight`, ... by categorical column; of a wide part
    /// `categories.0.weight`, ..., and `wide.weight` beside a deep part.
    pub name: String,
    /// `[outputs, inputs]` of a weight, `[outputs]` of a bias, `[ids, entries]` of embeddings and of a wide part's
    /// categories, as in PyTorch.
    pub shape: Vec<usize>,
    /// Position of its first entry in the flat parameters.
    pub offset: usize,
}

impl TensorSpec {
    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Lays tensors one after the other into the flat parameters: the only source of offsets.
#[derive(Default)]
pub(super) struct Layout {
    pub(super) tensors: Vec<TensorSpec>,
    /// Where the next one begins: the number of parameters so far.
    pub(super) end: usize,
}

impl Layout {
    fn add(&mut self, name: String, shape: &[usize]) -> usize {
        let offset = self.end;
        self.end += shape.iter().product::<usize>();
        self.tensors.push(TensorSpec { name, shape: shape.to_vec(), offset });
        offset
    }

    pub(super) fn linear(
        &mut self,
        name: &str,
        [inputs, outputs]: [usize; 2],
        biased: bool,
        rectified: bool,
    ) -> Linear {
        let offset = self.add(format!("{name}.weight"), &[outputs, inputs]);
        if biased {
            self.add(format!("{name}.bias"), &[outputs]);
        }
        Linear { inputs, outputs, offset, biased, rectified }
    }

    pub(super) fn embeddings(&mut self, name: &str, vocabularies: &[usize], dim: usize) -> Vec<Embedding> {
        let table = |(column, &vocabulary): (usize, &usize)| {
            let offset = self.add(format!("{name}.{column}.weight"), &[vocabulary, dim]);
            Embedding { column, vocabulary, dim, offset }
        };
        vocabularies.iter().enumerate().map(table).collect()
    }
}
