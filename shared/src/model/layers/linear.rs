//! One linear layer with the activation behind it: forward, and the gradient handed to the layer before.

use super::squash::{sigmoid, tanh};
use crate::model::product::{PackedRight, Packing, Start, View, add_outer_products, packed_product};
use crate::model::vectors::{add_dots, add_rows, add_weighted_rows, mask, rectify, vectorised};

/// What is done to each entry of a layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Activation {
    /// Nothing.
    None,
    /// `max(0, z)`; a NaN passes.
    Relu,
    /// `z` above 0, a hundredth of it below.
    LeakyRelu,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-z)`.
    Sigmoid,
}

/// What a leaky ReLU leaves of what is below 0.
pub(in crate::model) const LEAK: f32 = 0.01;

impl Activation {
    /// In place.
    pub fn forward(self, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Relu => rectify(values),
            Self::LeakyRelu => each(values, |z| if z < 0.0 { LEAK * z } else { z }),
            Self::Tanh => each(values, tanh),
            Self::Sigmoid => each(values, sigmoid),
        }
    }

    /// The gradient by the output before the activation, in place, from that behind it and the output `values`.
    pub fn backward(self, values: &[f32], gradients: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Relu => mask(gradients, values),
            Self::LeakyRelu => scale(values, gradients, |y| if y > 0.0 { 1.0 } else { LEAK }),
            Self::Tanh => scale(values, gradients, |y| 1.0 - y * y),
            Self::Sigmoid => scale(values, gradients, |y| y * (1.0 - y)),
        }
    }
}

/// `values[i] = of(values[i])`.
#[inline(always)]
fn each(values: &mut [f32], of: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || values.iter_mut().for_each(|value| *value = of(*value)),
    );
}

/// `gradients[i] *= slope(values[i])`.
#[inline(always)]
fn scale(values: &[f32], gradients: &mut [f32], slope: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || gradients.iter_mut().zip(values).for_each(|(gradient, &value)| *gradient *= slope(value)),
    );
}

/// `y = x W^T + b`, or without the `b`, then the activation. The weight is `[outputs, inputs]`, as in PyTorch.
#[derive(Clone, Debug)]
pub(in crate::model) struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    /// Offset of the weight in the flat parameters; the bias follows it.
    pub offset: usize,
    pub biased: bool,
    pub activation: Activation,
}

impl Linear {
    /// Parameters of the layer: weight, then bias.
    fn parameter_count(&self) -> usize {
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

    /// Packs the weight for [`forward`](Self::forward) and [`backward`](Self::backward).
    pub fn pack(&self, parameters: &[f32], [forward, backward]: &mut [PackedRight<f32>; 2]) {
        if self.outputs > 1 {
            let weight = self.weight(parameters);
            forward.pack([self.inputs, self.outputs], View::transpose(weight, self.inputs));
            backward.pack([self.outputs, self.inputs], View::rows(weight, self.inputs));
        }
    }

    /// `[rows, inputs]` to `[rows, outputs]`, whatever it held.
    pub fn forward(&self, parameters: &[f32], input: &[f32], output: &mut [f32], packed: &PackedRight<f32>) {
        let bias = self.bias(parameters);
        if self.outputs == 1 {
            output.fill(bias.first().copied().unwrap_or(0.0));
            add_dots(input, self.weight(parameters), output);
        } else {
            let start = if self.biased { Start::Row(bias) } else { Start::Zero };
            let rows = output.len() / self.outputs;
            packed_product(rows, View::rows(input, self.inputs), packed, start, output);
        }
        self.activation.forward(output);
    }

    /// Adds the gradient by the inputs, `[rows, inputs]`, from that by the outputs before the activation,
    /// `[rows, outputs]`; to zeros whatever it holds if it is `fresh`.
    pub fn backward(
        &self,
        parameters: &[f32],
        output_gradients: &[f32],
        input_gradients: &mut [f32],
        fresh: bool,
        packed: &PackedRight<f32>,
    ) {
        if self.outputs == 1 {
            let weight = self.weight(parameters);
            if fresh {
                input_gradients.fill(0.0);
            }
            for (row, &gradient) in input_gradients.chunks_exact_mut(self.inputs).zip(output_gradients) {
                row.iter_mut().zip(weight).for_each(|(slot, &weight)| *slot += gradient * weight);
            }
        } else {
            let rows = output_gradients.len() / self.outputs;
            let start = if fresh { Start::Zero } else { Start::Kept };
            packed_product(rows, View::rows(output_gradients, self.outputs), packed, start, input_gradients);
        }
    }
}

/// Adds the sum over rows of a linear layer's gradient to `weight`, `[outputs, inputs]`, and to `bias`, `[outputs]` or
/// empty. `inputs` is `[rows, inputs]`, `output_gradients` `[rows, outputs]`.
pub(in crate::model) fn add_linear_gradient(
    [inputs, outputs]: [usize; 2],
    activations: &[f32],
    output_gradients: &[f32],
    weight: &mut [f32],
    bias: &mut [f32],
    packing: &mut Packing<f32>,
) {
    if outputs == 1 {
        add_weighted_rows(output_gradients, activations, weight);
    } else {
        add_outer_products([outputs, inputs], output_gradients, activations, weight, packing);
    }
    if !bias.is_empty() {
        add_rows(output_gradients, bias);
    }
}
