//! One linear layer, with or without a ReLU behind it: forward, and the gradient handed to the layer before.
//!
//! Every output row depends on its own input row and the parameters alone, to the last bit
//! (see [`product`](super::product)).

use super::product::{Packing, View, add_dots, add_product, add_rows, add_weighted_rows, rectify};

/// `y = x W^T + b`, or without the `b`, then ReLU if `rectified`. The weight is `[outputs, inputs]`, as in PyTorch.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    /// Offset of the weight in the flat parameters; the bias follows it.
    pub offset: usize,
    pub biased: bool,
    pub rectified: bool,
}

impl Linear {
    /// Parameters of the layer: weight, then bias.
    pub fn parameter_count(&self) -> usize {
        self.outputs * (self.inputs + usize::from(self.biased))
    }

    /// `[outputs, inputs]`.
    pub fn weight<'a>(&self, parameters: &'a [f32]) -> &'a [f32] {
        &parameters[self.offset..][..self.outputs * self.inputs]
    }

    /// `[outputs]`, or nothing.
    pub fn bias<'a>(&self, parameters: &'a [f32]) -> &'a [f32] {
        &parameters[self.offset..][..self.parameter_count()][self.outputs * self.inputs..]
    }

    /// `[rows, inputs]` to `[rows, outputs]`; `output` is resized. A NaN passes the ReLU.
    pub fn forward(
        &self,
        parameters: &[f32],
        input: &[f32],
        output: &mut Vec<f32>,
        packing: &mut Packing<f32>,
    ) {
        output.clear();
        output.resize(input.len() / self.inputs * self.outputs, 0.0);
        self.accumulate(parameters, input, output, packing);
        if self.rectified {
            rectify(output);
        }
    }

    /// Adds the layer's output before its ReLU to `output`, `[rows, outputs]`.
    pub fn accumulate(
        &self,
        parameters: &[f32],
        input: &[f32],
        output: &mut [f32],
        packing: &mut Packing<f32>,
    ) {
        let (weight, bias) = (self.weight(parameters), self.bias(parameters));
        for row in output.chunks_exact_mut(self.outputs) {
            row.iter_mut().zip(bias).for_each(|(slot, bias)| *slot += bias);
        }
        if self.outputs == 1 {
            add_dots(input, weight, output);
        } else {
            let weight = View::transpose(weight, self.inputs);
            add_product(
                [output.len() / self.outputs, self.inputs, self.outputs],
                View::rows(input, self.inputs),
                weight,
                output,
                packing,
            );
        }
    }

    /// The gradient by the inputs from `first` on.
    ///
    /// `output_gradients` is `[rows, outputs]`; `input_gradients` is resized to `[rows, inputs - first]`.
    pub fn backward(
        &self,
        parameters: &[f32],
        output_gradients: &[f32],
        first: usize,
        input_gradients: &mut Vec<f32>,
        packing: &mut Packing<f32>,
    ) {
        let weight = &self.weight(parameters)[first..];
        let columns = self.inputs - first;
        let rows = output_gradients.len() / self.outputs;
        if self.outputs == 1 {
            input_gradients.resize(rows * columns, 0.0);
            for (row, &gradient) in input_gradients.chunks_exact_mut(columns).zip(output_gradients) {
                for (slot, &weight) in row.iter_mut().zip(weight) {
                    *slot = gradient * weight;
                }
            }
        } else {
            input_gradients.clear();
            input_gradients.resize(rows * columns, 0.0);
            let gradients = View::rows(output_gradients, self.outputs);
            let weight = View::rows(weight, self.inputs);
            add_product([rows, self.outputs, columns], gradients, weight, input_gradients, packing);
        }
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
        if self.biased {
            add_rows(output_gradients, bias);
        }
    }
}
