//! What one forward and one backward leave behind: the factors of every row's gradient, layer by layer.
//!
//! Buffers are kept between batches and grow to the largest one seen. Nothing here may leave a site:
//! `Debug` prints shapes only.

use super::product::Packing;

/// The factors of one layer's gradient: row `r`'s gradient of the weight is the outer product
/// `output_gradients[r] x activations[r]`, that of the bias is `output_gradients[r]`.
///
/// A layer whose weight is used more than once a row (time steps, positions) will leave that many factor
/// rows for each row of the batch, adjacent, in the same two slices.
#[derive(Clone, Default)]
pub struct LayerFactors {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) activations: Vec<f32>,
    pub(super) output_gradients: Vec<f32>,
}

impl LayerFactors {
    /// Width of the layer's input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of the layer's output.
    pub fn outputs(&self) -> usize {
        self.outputs
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

impl std::fmt::Debug for LayerFactors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = self.activations.len().checked_div(self.inputs).unwrap_or(0);
        write!(f, "LayerFactors([{rows}, {}], [{rows}, {}])", self.inputs, self.outputs)
    }
}

/// Buffers of [`Network::backward`](super::Network::backward): one a thread, kept between batches.
#[derive(Clone, Default)]
pub struct Workspace {
    pub(super) layers: Vec<LayerFactors>,
    pub(super) logits: Vec<f32>,
    pub(super) packing: Packing<f32>,
    pub(super) customers: usize,
}

impl Workspace {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The factors of each layer, first to last, of the batch last differentiated.
    pub fn layers(&self) -> &[LayerFactors] {
        &self.layers
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
        f.debug_struct("Workspace").field("customers", &self.customers).field("layers", &self.layers).finish()
    }
}
