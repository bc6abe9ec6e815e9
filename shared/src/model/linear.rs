//! One linear layer, with or without a ReLU behind it: forward, and the gradient handed to the layer before.
//!
//! Every output row depends on its own input row and the parameters alone, to the last bit
//! (see [`product`](super::product)).

use super::product::{Packing, View, add_dots, add_product, add_rows, add_weighted_rows, mask, rectify};

/// `y = x W^T + b`, then ReLU if `rectified`. The weight is `[outputs, inputs]`, as in PyTorch.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    /// Offset of the weight in the flat parameters; the bias follows it.
    pub offset: usize,
    pub rectified: bool,
}

impl Linear {
    /// Parameters of the layer: weight, then bias.
    pub fn parameter_count(&self) -> usize {
        self.outputs * (self.inputs + 1)
    }

    fn weight<'a>(&self, parameters: &'a [f32]) -> &'a [f32] {
        &parameters[self.offset..][..self.outputs * self.inputs]
    }

    fn bias<'a>(&self, parameters: &'a [f32]) -> &'a [f32] {
        &parameters[self.offset + self.outputs * self.inputs..][..self.outputs]
    }

    /// `[rows, inputs]` to `[rows, outputs]`; `output` is resized. A NaN passes the ReLU.
    pub fn forward(
        &self,
        parameters: &[f32],
        input: &[f32],
        output: &mut Vec<f32>,
        packing: &mut Packing<f32>,
    ) {
        let (weight, bias) = (self.weight(parameters), self.bias(parameters));
        let rows = input.len() / self.inputs;
        output.clear();
        output.reserve(rows * self.outputs);
        for _ in 0..rows {
            output.extend_from_slice(bias);
        }
        if self.outputs == 1 {
            add_dots(input, weight, output);
        } else {
            let weight = View::transpose(weight, self.inputs);
            add_product(
                [rows, self.inputs, self.outputs],
                View::rows(input, self.inputs),
                weight,
                output,
                packing,
            );
        }
        if self.rectified {
            rectify(output);
        }
    }

    /// The gradient by the input, masked by the ReLU that made `activations` (whose derivative at 0 is 0).
    ///
    /// `output_gradients` is `[rows, outputs]`, `activations` `[rows, inputs]`; `input_gradients` is resized to
    /// `[rows, inputs]`.
    pub fn backward(
        &self,
        parameters: &[f32],
        output_gradients: &[f32],
        activations: &[f32],
        input_gradients: &mut Vec<f32>,
        packing: &mut Packing<f32>,
    ) {
        let weight = self.weight(parameters);
        let rows = output_gradients.len() / self.outputs;
        if self.outputs == 1 {
            input_gradients.resize(rows * self.inputs, 0.0);
            for (row, &gradient) in input_gradients.chunks_exact_mut(self.inputs).zip(output_gradients) {
                for (slot, &weight) in row.iter_mut().zip(weight) {
                    *slot = gradient * weight;
                }
            }
        } else {
            input_gradients.clear();
            input_gradients.resize(rows * self.inputs, 0.0);
            let gradients = View::rows(output_gradients, self.outputs);
            let weight = View::rows(weight, self.inputs);
            add_product([rows, self.outputs, self.inputs], gradients, weight, input_gradients, packing);
        }
        mask(input_gradients, activations);
    }

    /// Adds the sum over rows of the layer's gradient to its part of `gradient`, weight then bias.
    pub fn add_gradient(
        &self,
        activations: &[f32],
        output_gradients: &[f32],
        gradient: &mut [f32],
        packing: &mut Packing<f32>,
    ) {
        let rows = activations.len() / self.inputs;
        let (weight, bias) =
            gradient[self.offset..][..self.parameter_count()].split_at_mut(self.outputs * self.inputs);
        if self.outputs == 1 {
            add_weighted_rows(output_gradients, activations, weight);
        } else {
            let gradients = View::transpose(output_gradients, self.outputs);
            let activations = View::rows(activations, self.inputs);
            add_product([self.outputs, rows, self.inputs], gradients, activations, weight, packing);
        }
        add_rows(output_gradients, bias);
    }
}
