//! What one forward and one backward leave behind: the factors of every row's gradient, tap by tap.
//!
//! A *tap* is where a parameterised layer hands its gradient's factors to the clipping. There are two kinds, and the
//! taps of a network own all its parameters between them: first those of [`Workspace::linear`], in order, then those of
//! [`Workspace::embeddings`], without gaps in the flat layout. Buffers are kept between batches and grow to the
//! largest one seen. Nothing here may leave a site: `Debug` prints shapes only.

use super::product::Packing;

/// The factors of one linear layer's gradient: row `r`'s gradient of the weight is the outer product
/// `output_gradients[r] x activations[r]`, that of the bias, if it has one, is `output_gradients[r]`.
///
/// A layer whose weight is used more than once a row (time steps, positions) will leave that many factor
/// rows for each row of the batch, adjacent, in the same two slices.
#[derive(Clone, Default)]
pub struct LinearFactors {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) biased: bool,
    pub(super) activations: Vec<f32>,
    pub(super) output_gradients: Vec<f32>,
}

impl LinearFactors {
    /// Width of the layer's input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of the layer's output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether a bias follows the weight.
    pub fn biased(&self) -> bool {
        self.biased
    }

    /// What the layer was given, `[rows, inputs]`.
    pub fn activations(&self) -> &[f32] {
        &self.activations
    }

    /// Derivative of the batch's loss by the layer's output before its ReLU, `[rows, outputs]`. It carries
    /// the `1 / rows of the customer` of the mean over a customer's rows.
    pub fn output_gradients(&self) -> &[f32] {
        &self.output_gradients
    }
}

impl std::fmt::Debug for LinearFactors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = self.output_gradients.len().checked_div(self.outputs).unwrap_or(0);
        write!(f, "LinearFactors([{rows}, {}], [{rows}, {}])", self.inputs, self.outputs)
    }
}

/// The factors of one embedding table's gradient: row `r` adds `output_gradients[r]` to the gradient of the vector of
/// `ids[r]`. Rows with one id add up.
#[derive(Clone, Default)]
pub struct EmbeddingFactors {
    pub(super) vocabulary: usize,
    pub(super) dim: usize,
    pub(super) ids: Vec<u32>,
    pub(super) output_gradients: Vec<f32>,
}

impl EmbeddingFactors {
    /// Vectors in the table.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Entries of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Which vector each row looked up, `[rows]`, below [`vocabulary`](Self::vocabulary).
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Derivative of the batch's loss by the vector looked up, `[rows, dim]`, with the same share of the mean as in
    /// [`LinearFactors::output_gradients`].
    pub fn output_gradients(&self) -> &[f32] {
        &self.output_gradients
    }
}

impl std::fmt::Debug for EmbeddingFactors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = self.ids.len();
        write!(f, "EmbeddingFactors([{rows}] of {}, [{rows}, {}])", self.vocabulary, self.dim)
    }
}

/// Buffers of [`Network::backward`](super::Network::backward): one a thread, kept between batches.
#[derive(Clone, Default)]
pub struct Workspace {
    pub(super) linear: Vec<LinearFactors>,
    pub(super) embeddings: Vec<EmbeddingFactors>,
    pub(super) logits: Vec<f32>,
    pub(super) logit_gradients: Vec<f32>,
    pub(super) input_gradients: Vec<f32>,
    pub(super) packing: Packing<f32>,
    pub(super) customers: usize,
}

impl Workspace {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The factors of each linear layer of the batch last differentiated.
    pub fn linear(&self) -> &[LinearFactors] {
        &self.linear
    }

    /// The factors of each embedding table of the batch last differentiated.
    pub fn embeddings(&self) -> &[EmbeddingFactors] {
        &self.embeddings
    }

    /// The logit of each row of the batch last differentiated.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Customers in the batch last differentiated.
    pub fn customers(&self) -> usize {
        self.customers
    }
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace")
            .field("customers", &self.customers)
            .field("linear", &self.linear)
            .field("embeddings", &self.embeddings)
            .finish()
    }
}
