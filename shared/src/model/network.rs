//! A network with its parameters outside: flat f32 in, logits, factors or gradients out.
//!
//! Promised: a row's logit and factors depend on that row, its label, its customer's number of rows and the
//! parameters alone, to the last bit, whoever else is in the batch (the layers' row independence).

use aws_lc_rs::digest::{SHA256, digest};

use super::{
    LayerFactors, ModelError, ModelSpec, Workspace, error::expect_length, linear::Linear,
    product::first_not_finite,
};

/// Most inputs of a network.
pub const MAX_INPUTS: usize = 65_536;
/// Most parameters of a network.
pub const MAX_PARAMETERS: usize = 1 << 28;

/// One named tensor inside the flat parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// `layers.0.weight`, `layers.0.bias`, ...
    pub name: String,
    /// `[outputs, inputs]` of a weight, `[outputs]` of a bias, as in PyTorch.
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

/// Rows of some customers; those of one customer are adjacent.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// `[rows, inputs]`, row-major, finite.
    pub rows: &'a [f32],
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

/// A model of the zoo, ready to compute: layer sizes and where each tensor lies, no values.
#[derive(Clone, Debug)]
pub struct Network {
    layers: Vec<Linear>,
    tensors: Vec<TensorSpec>,
    inputs: usize,
    parameter_count: usize,
    /// Whether initial weights are drawn (a network with hidden layers cannot start at zero).
    drawn: bool,
}

impl Network {
    /// Builds the network of `spec` for rows of `inputs` numbers.
    ///
    /// Errors if `inputs` is not 1 to 65536, a size in the spec is out of range, or the network would have more
    /// than 2^28 parameters.
    pub fn new(spec: &ModelSpec, inputs: usize) -> Result<Self, ModelError> {
        let hidden = spec.hidden_units()?;
        if inputs == 0 || inputs > MAX_INPUTS {
            return Err(ModelError::Inputs { got: inputs });
        }
        let mut layers = Vec::new();
        let mut tensors = Vec::new();
        let mut offset = 0;
        let mut width = inputs;
        for (index, outputs) in hidden.iter().map(|&units| units as usize).chain([1]).enumerate() {
            let layer = Linear { inputs: width, outputs, offset, rectified: index < hidden.len() };
            let bias = offset + outputs * width;
            tensors.push(TensorSpec {
                name: format!("layers.{index}.weight"),
                shape: vec![outputs, width],
                offset,
            });
            tensors.push(TensorSpec {
                name: format!("layers.{index}.bias"),
                shape: vec![outputs],
                offset: bias,
            });
            offset += layer.parameter_count();
            layers.push(layer);
            width = outputs;
        }
        if offset > MAX_PARAMETERS {
            return Err(ModelError::Parameters { limit: MAX_PARAMETERS, got: offset });
        }
        Ok(Self { layers, tensors, inputs, parameter_count: offset, drawn: !hidden.is_empty() })
    }

    /// Length of the flat parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameter_count
    }

    /// Numbers in a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The tensors inside the flat parameters, in their order there, without gaps.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    pub(super) fn layers(&self) -> &[Linear] {
        &self.layers
    }

    /// Where a job starts: zeros for logistic regression; for networks with hidden layers Kaiming-uniform weights
    /// (He et al. 2015: variance `2 / inputs` before a ReLU, `1 / inputs` before the logit) and zero biases.
    ///
    /// Everybody with the seed gets the same bits: the draws are SHA-256 over seed and counter. They are public
    /// and protect nothing; privacy noise never comes from here.
    pub fn initial_parameters(&self, seed: [u8; 32]) -> Vec<f32> {
        let mut parameters = vec![0.0; self.parameter_count];
        if !self.drawn {
            return parameters;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let gain = if layer.rectified { 6.0 } else { 3.0 };
            let bound = (gain / layer.inputs as f64).sqrt();
            let weight = &mut parameters[layer.offset..][..layer.outputs * layer.inputs];
            for (block, weights) in weight.chunks_mut(8).enumerate() {
                let mut message = [0; 80];
                message[..32].copy_from_slice(b"weighhouse initial parameters 1:");
                message[32..64].copy_from_slice(&seed);
                message[64..72].copy_from_slice(&(index as u64).to_le_bytes());
                message[72..].copy_from_slice(&(block as u64).to_le_bytes());
                let hash = digest(&SHA256, &message);
                for (weight, word) in weights.iter_mut().zip(hash.as_ref().as_chunks::<4>().0) {
                    // The middle of one of 2^24 equal intervals of (-1, 1).
                    let unit = (f64::from(u32::from_le_bytes(*word) >> 8) + 0.5) / f64::from(1 << 23) - 1.0;
                    *weight = (unit * bound) as f32;
                }
            }
        }
        parameters
    }

    /// The logit of each row; `rows` is `[n, inputs]` row-major, the result `[n]`.
    ///
    /// # Panics
    /// If `parameters` is not of [`parameter_count`](Self::parameter_count) or `rows` not of whole rows.
    pub fn logits(&self, parameters: &[f32], rows: &[f32]) -> Vec<f32> {
        assert_eq!(parameters.len(), self.parameter_count, "parameters of another network");
        assert!(rows.len().is_multiple_of(self.inputs), "rows must hold {} numbers each", self.inputs);
        let mut packing = Default::default();
        let (mut input, mut output) = (rows.to_vec(), Vec::new());
        for layer in &self.layers {
            layer.forward(parameters, &input, &mut output, &mut packing);
            std::mem::swap(&mut input, &mut output);
        }
        input
    }

    /// One forward and one backward for the loss "sum over customers of the mean over the customer's rows of the
    /// binary cross-entropy"; leaves each layer's factors in `workspace`.
    ///
    /// Errors if shapes do not fit, and if a parameter, an input, a label or anything computed is not finite,
    /// naming the parameter or row.
    pub fn backward(
        &self,
        parameters: &[f32],
        batch: &Batch,
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        self.check(parameters, batch)?;
        self.differentiate(parameters, batch, workspace);
        let refusal = |row| ModelError::NotFinite { what: "gradient of row", row };
        for layer in &workspace.layers {
            if let Some(entry) = first_not_finite(&layer.activations) {
                return Err(refusal(entry / layer.inputs));
            }
            if let Some(entry) = first_not_finite(&layer.output_gradients) {
                return Err(refusal(entry / layer.outputs));
            }
        }
        first_not_finite(&workspace.logits).map_or(Ok(()), |row| Err(refusal(row)))
    }

    /// Refuses what does not fit this network or is not finite before anything is computed.
    pub(crate) fn check(&self, parameters: &[f32], batch: &Batch) -> Result<(), ModelError> {
        expect_length("parameters", self.parameter_count, parameters.len())?;
        let rows = batch.labels.len();
        expect_length("numbers in rows", rows * self.inputs, batch.rows.len())?;
        let starts = batch.customer_starts;
        if starts.first() != Some(&0) {
            return Err(ModelError::CustomerStarts { customer: 0 });
        }
        if let Some(customer) = starts.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(ModelError::CustomerStarts { customer });
        }
        expect_length("rows owned by customers", rows, starts[starts.len() - 1] as usize)?;
        if let Some(row) = first_not_finite(parameters) {
            return Err(ModelError::NotFinite { what: "parameter", row });
        }
        if let Some(entry) = first_not_finite(batch.rows) {
            return Err(ModelError::NotFinite { what: "input row", row: entry / self.inputs });
        }
        match batch.labels.iter().position(|label| !(0.0..=1.0).contains(label)) {
            Some(row) => Err(ModelError::Label { row }),
            None => Ok(()),
        }
    }

    /// [`backward`](Self::backward) on checked arguments; does not look at the results.
    pub(crate) fn differentiate(&self, parameters: &[f32], batch: &Batch, workspace: &mut Workspace) {
        let Workspace { layers, logits, packing, customers } = workspace;
        *customers = batch.customers();
        layers.resize_with(self.layers.len(), LayerFactors::default);
        layers[0].activations.clear();
        layers[0].activations.extend_from_slice(batch.rows);
        for (index, layer) in self.layers.iter().enumerate() {
            (layers[index].inputs, layers[index].outputs) = (layer.inputs, layer.outputs);
            match &mut layers[index..] {
                [here, next, ..] => {
                    layer.forward(parameters, &here.activations, &mut next.activations, packing)
                }
                [here] => layer.forward(parameters, &here.activations, logits, packing),
                [] => unreachable!("one factor buffer for each layer"),
            }
        }

        let last = layers.len() - 1;
        let gradients = &mut layers[last].output_gradients;
        gradients.clear();
        for span in batch.customer_starts.windows(2) {
            let span = span[0] as usize..span[1] as usize;
            let share = 1.0 / span.len() as f32;
            let rows = logits[span.clone()].iter().zip(&batch.labels[span]);
            gradients.extend(rows.map(|(&logit, &label)| (sigmoid(logit) - label) * share));
        }
        for index in (1..self.layers.len()).rev() {
            let (before, here) = layers.split_at_mut(index);
            let here = &here[0];
            let before = &mut before[index - 1].output_gradients;
            self.layers[index].backward(
                parameters,
                &here.output_gradients,
                &here.activations,
                before,
                packing,
            );
        }
    }

    /// The plain gradient of the batch last differentiated: the mean over its customers of each customer's gradient,
    /// neither clipped nor noised, for non-private baselines. `out` is resized to `[parameters]`; zeros if the
    /// batch had no customer.
    ///
    /// # Panics
    /// If `workspace` was filled by another network.
    pub fn mean_gradient(&self, workspace: &mut Workspace, out: &mut Vec<f32>) {
        let Workspace { layers, packing, customers, .. } = workspace;
        assert_eq!(layers.len(), self.layers.len(), "workspace of another network");
        out.clear();
        out.resize(self.parameter_count, 0.0);
        for (layer, factors) in self.layers.iter().zip(layers) {
            layer.add_gradient(&factors.activations, &factors.output_gradients, out, packing);
        }
        let share = 1.0 / (*customers).max(1) as f32;
        out.iter_mut().for_each(|entry| *entry *= share);
    }
}

/// `1 / (1 + exp(-logit))` without overflow.
fn sigmoid(logit: f32) -> f32 {
    let small = (-logit.abs()).exp();
    if logit >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

/// The loss of one row from its logit, in nats: `max(z, 0) - z y + ln(1 + exp(-|z|))`, which does not overflow.
pub fn binary_cross_entropy(logit: f32, label: f32) -> f32 {
    logit.max(0.0) - logit * label + (-logit.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reference::{OwnedBatch, draws, gradient, norm};

    fn networks() -> Vec<(Network, Vec<f32>)> {
        [
            (ModelSpec::Logistic {}, 5),
            (ModelSpec::Mlp { hidden: vec![7] }, 4),
            (ModelSpec::Mlp { hidden: vec![19, 8, 1] }, 33),
        ]
        .into_iter()
        .map(|(spec, inputs)| {
            let network = Network::new(&spec, inputs).unwrap();
            let mut draw = draws(9);
            let mut parameters = network.initial_parameters([7; 32]);
            parameters.iter_mut().for_each(|parameter| *parameter += 0.2 * draw());
            (network, parameters)
        })
        .collect()
    }

    fn widened(parameters: &[f32]) -> Vec<f64> {
        parameters.iter().map(|&parameter| f64::from(parameter)).collect()
    }

    #[test]
    fn tensors_lie_in_the_flat_parameters_without_gaps_under_pytorch_names() {
        let network = Network::new(&ModelSpec::Mlp { hidden: vec![3, 2] }, 4).unwrap();
        let mut end = 0;
        for tensor in network.tensors() {
            assert_eq!(tensor.offset, end, "{}", tensor.name);
            end += tensor.entries();
        }
        assert_eq!(end, network.parameter_count());
        let named: Vec<_> = network.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
        assert_eq!(named[2], ("layers.1.weight", [2, 3].as_slice()));
        assert_eq!(named[5], ("layers.2.bias", [1].as_slice()));
    }

    #[test]
    fn networks_out_of_bounds_are_refused() {
        for inputs in [0, MAX_INPUTS + 1] {
            assert!(matches!(Network::new(&ModelSpec::Logistic {}, inputs), Err(ModelError::Inputs { .. })));
        }
        let wide = ModelSpec::Mlp { hidden: vec![4096, 4096] };
        assert!(matches!(Network::new(&wide, MAX_INPUTS), Err(ModelError::Parameters { .. })));
    }

    #[test]
    fn initial_parameters_are_the_same_for_everyone_and_within_the_kaiming_bounds() {
        let logistic = Network::new(&ModelSpec::Logistic {}, 3).unwrap();
        assert_eq!(logistic.initial_parameters([1; 32]), [0.0; 4]);
        let network = Network::new(&ModelSpec::Mlp { hidden: vec![64] }, 50).unwrap();
        let parameters = network.initial_parameters([1; 32]);
        assert_eq!(parameters, network.initial_parameters([1; 32]));
        assert_ne!(parameters, network.initial_parameters([2; 32]));
        let (weight, bound) = (&parameters[..64 * 50], (6.0f32 / 50.0).sqrt());
        assert!(weight.iter().all(|entry| entry.abs() < bound));
        let variance = weight.iter().map(|x| f64::from(x * x)).sum::<f64>() / weight.len() as f64;
        assert!((variance * 50.0 / 2.0 - 1.0).abs() < 0.05, "{variance}");
        assert!(parameters[64 * 50..][..64].iter().all(|&bias| bias == 0.0));
        // Golden: a change here changes where every job starts.
        assert_eq!(parameters[..2], GOLDEN);
    }

    /// Computed with Python's hashlib from the description above.
    const GOLDEN: [f32; 2] = [-0.073_139_876, 0.211_845_62];

    #[test]
    fn the_reference_gradient_equals_finite_differences() {
        for (network, parameters) in networks() {
            let batch = OwnedBatch::draw(3, network.inputs(), &[3], 1.0);
            let parameters = widened(&parameters);
            let (_, exact) = gradient(&network, &parameters, &batch.rows, &batch.labels);
            for at in (0..parameters.len()).step_by(1 + parameters.len() / 40) {
                let loss = |step: f64| {
                    let mut moved = parameters.clone();
                    moved[at] += step;
                    gradient(&network, &moved, &batch.rows, &batch.labels).0
                };
                let difference = (loss(1e-6) - loss(-1e-6)) / 2e-6;
                assert!((difference - exact[at]).abs() < 1e-7, "{at}: {difference} against {}", exact[at]);
            }
        }
    }

    #[test]
    fn the_mean_gradient_equals_batch_of_one_gradients_in_f64_to_1e_5() {
        for (network, parameters) in networks() {
            // More rows than a block of a product has terms, and customers of several rows.
            let customer_rows: Vec<usize> = (0..200).map(|i| 1 + i % 3).collect();
            let batch = OwnedBatch::draw(4, network.inputs(), &customer_rows, 1.5);
            let mut expected = vec![0.0; network.parameter_count()];
            for customer in 0..batch.customers() {
                let one = batch.only(|other| other == customer);
                let (_, gradient) = gradient(&network, &widened(&parameters), &one.rows, &one.labels);
                expected.iter_mut().zip(gradient).for_each(|(sum, entry)| *sum += entry / 200.0);
            }
            let (mut workspace, mut got) = (Workspace::new(), Vec::new());
            network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
            network.mean_gradient(&mut workspace, &mut got);
            let error: Vec<f64> = expected.iter().zip(&got).map(|(e, &g)| e - f64::from(g)).collect();
            assert!(norm(&error) < 1e-5 * norm(&expected), "{} of {}", norm(&error), norm(&expected));
        }
    }

    #[test]
    fn factors_of_one_customer_are_the_same_bits_alone_and_in_any_batch() {
        for (network, parameters) in networks() {
            let batch = OwnedBatch::draw(5, network.inputs(), &[1, 2, 9, 1, 4, 1, 1, 25], 2.0);
            let mut together = Workspace::new();
            network.backward(&parameters, &batch.batch(), &mut together).unwrap();
            let mut alone = Workspace::new();
            for customer in 0..batch.customers() {
                let one = batch.only(|other| other == customer);
                network.backward(&parameters, &one.batch(), &mut alone).unwrap();
                let span =
                    batch.customer_starts[customer] as usize..batch.customer_starts[customer + 1] as usize;
                for (one, all) in alone.layers().iter().zip(together.layers()) {
                    let of = |width: usize| span.start * width..span.end * width;
                    assert_eq!(one.activations(), &all.activations()[of(all.inputs())]);
                    assert_eq!(one.output_gradients(), &all.output_gradients()[of(all.outputs())]);
                }
            }
        }
    }

    #[test]
    fn logits_are_those_of_the_backward_pass() {
        for (network, parameters) in networks() {
            let batch = OwnedBatch::draw(6, network.inputs(), &[1; 20], 1.0);
            let mut workspace = Workspace::new();
            network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
            assert_eq!(network.logits(&parameters, &batch.rows), workspace.logits());
        }
    }

    #[test]
    fn a_batch_of_nobody_has_a_zero_gradient() {
        for (network, parameters) in networks() {
            let (mut workspace, mut out) = (Workspace::new(), Vec::new());
            let nobody = Batch { rows: &[], labels: &[], customer_starts: &[0] };
            network.backward(&parameters, &nobody, &mut workspace).unwrap();
            network.mean_gradient(&mut workspace, &mut out);
            assert!(out.iter().all(|&entry| entry == 0.0));
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_naming_the_row() {
        let (network, parameters) = networks().swap_remove(1);
        let refusal = |parameters: &[f32], change: &dyn Fn(&mut OwnedBatch)| {
            let mut batch = OwnedBatch::draw(7, network.inputs(), &[2, 1, 3], 1.0);
            change(&mut batch);
            network.backward(parameters, &batch.batch(), &mut Workspace::new()).unwrap_err().to_string()
        };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(
                refusal(&parameters, &|batch| batch.rows[4 * 4 + 1] = bad),
                "input row 4 is not finite"
            );
        }
        assert_eq!(
            refusal(&parameters, &|batch| batch.labels[3] = f32::NAN),
            "the label of row 3 is not between 0 and 1"
        );
        // Finite, but its logit overflows.
        assert_eq!(
            refusal(&parameters, &|batch| batch.rows[8..12].fill(3e38)),
            "gradient of row 2 is not finite"
        );
        let mut broken = parameters.clone();
        broken[6] = f32::NAN;
        assert_eq!(refusal(&broken, &|_| ()), "parameter 6 is not finite");
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        let (network, parameters) = networks().swap_remove(0);
        let batch = OwnedBatch::draw(8, 5, &[2, 1], 1.0);
        for starts in [&[][..], &[1, 3], &[0, 2, 2, 3], &[0, 3, 2], &[0, 2], &[0, 4]] {
            let batch = Batch { customer_starts: starts, ..batch.batch() };
            assert!(network.backward(&parameters, &batch, &mut Workspace::new()).is_err(), "{starts:?}");
        }
        let short = Batch { rows: &batch.rows[1..], ..batch.batch() };
        assert!(network.backward(&parameters, &short, &mut Workspace::new()).is_err());
        assert!(network.backward(&parameters[1..], &batch.batch(), &mut Workspace::new()).is_err());
    }

    #[test]
    fn the_loss_does_not_overflow_at_extreme_logits() {
        assert_eq!(binary_cross_entropy(200.0, 1.0), 0.0);
        assert_eq!(binary_cross_entropy(-200.0, 1.0), 200.0);
        assert!((binary_cross_entropy(0.0, 1.0) - std::f32::consts::LN_2).abs() < 1e-7);
    }
}
