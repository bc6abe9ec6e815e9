//! A network with its parameters outside: flat f32 in, logits, factors or gradients out.
//!
//! Promised: a row's logit and factors depend on that row, its label, its customer's number of rows and the
//! parameters alone, to the last bit, whoever else is in the batch (the layers' row independence).

use aws_lc_rs::digest::{SHA256, digest};

use super::{
    Batch, EmbeddingFactors, LinearFactors, ModelError, ModelSpec, TensorSpec, Workspace,
    embedding::Embedding,
    error::expect_length,
    layout::Layout,
    linear::Linear,
    product::{Packing, first_not_finite, mask},
    spec::Parts,
};
use crate::schema::InputShape;

/// Most inputs of a network: numbers, and the entries of the embeddings of its deep part.
pub const MAX_INPUTS: usize = 65_536;
/// Most ids of a categorical column.
pub const MAX_VOCABULARY: usize = 1 << 20;
/// Most parameters of a network.
pub const MAX_PARAMETERS: usize = 1 << 28;

/// A model of the zoo, ready to compute: layer sizes and where each tensor lies, no values.
///
/// The logit is the sum of two parts, of which a model has one or both: a *deep* part, linear layers with ReLU
/// between them over the numbers and the embeddings of the ids; and a *wide* part, one linear layer over the numbers and
/// one weight for each id. Logistic regression is a wide part alone.
#[derive(Clone, Debug)]
pub struct Network {
    inputs: InputShape,
    /// The deep part's, first to last, then the wide part's if there is one and there are numbers.
    linear: Vec<Linear>,
    /// How many of `linear` are deep.
    deep: usize,
    /// The wide part's weights of categories, then the deep part's embeddings: each part has one a column, or none.
    embeddings: Vec<Embedding>,
    /// How many of `embeddings` are wide.
    wide_embeddings: usize,
    tensors: Vec<TensorSpec>,
    parameter_count: usize,
}

impl Network {
    /// Builds the network of `spec` for rows of `inputs`, or of so many numbers.
    ///
    /// Errors if the numbers and the embeddings' entries are not 1 to 65536 inputs, a size in the spec or a
    /// vocabulary is out of range, or the network would have more than 2^28 parameters.
    pub fn new(spec: &ModelSpec, inputs: impl Into<InputShape>) -> Result<Self, ModelError> {
        let inputs = inputs.into();
        let Parts { wide, hidden, embedding_dim } = spec.parts()?;
        let InputShape { numbers, vocabularies } = &inputs;
        let limit = MAX_VOCABULARY;
        if let Some(column) = vocabularies.iter().position(|&ids| ids == 0 || ids > limit) {
            return Err(ModelError::Vocabulary { column, got: vocabularies[column], limit });
        }
        let entries = vocabularies.len().saturating_mul(embedding_dim.max(1));
        let width = numbers.saturating_add(entries);
        if width == 0 || width > MAX_INPUTS {
            return Err(ModelError::Inputs { got: width });
        }

        let mut layout = Layout::default();
        let mut linear = Vec::new();
        let mut before = width;
        if !hidden.is_empty() {
            for (index, outputs) in hidden.iter().map(|&units| units as usize).chain([1]).enumerate() {
                let rectified = index < hidden.len();
                linear.push(layout.linear(&format!("layers.{index}"), [before, outputs], true, rectified));
                before = outputs;
            }
        }
        let deep = linear.len();
        let mut embeddings = Vec::new();
        if wide {
            // Beside a deep part, whose last bias does, the wide part needs none; without numbers neither, as the
            // weights of a column's categories can all rise by the same.
            if *numbers > 0 {
                let name = if deep > 0 { "wide" } else { "layers.0" };
                linear.push(layout.linear(name, [*numbers, 1], deep == 0, false));
            }
            embeddings = layout.embeddings("categories", vocabularies, 1);
        }
        let wide_embeddings = embeddings.len();
        if deep > 0 {
            embeddings.extend(layout.embeddings("embeddings", vocabularies, embedding_dim));
        }
        let Layout { tensors, end: parameter_count } = layout;
        if parameter_count > MAX_PARAMETERS {
            return Err(ModelError::Parameters { limit: MAX_PARAMETERS, got: parameter_count });
        }
        Ok(Self { inputs, linear, deep, embeddings, wide_embeddings, tensors, parameter_count })
    }

    /// Length of the flat parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameter_count
    }

    /// What a row holds.
    pub fn inputs(&self) -> &InputShape {
        &self.inputs
    }

    /// The tensors inside the flat parameters, in their order there, without gaps.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The deep part's linear layers, first to last; empty if there is no deep part.
    pub(super) fn deep_layers(&self) -> &[Linear] {
        &self.linear[..self.deep]
    }

    /// The deep part's embeddings, one a column; they follow the numbers in its input.
    pub(super) fn deep_embeddings(&self) -> &[Embedding] {
        &self.embeddings[self.wide_embeddings..]
    }

    /// The wide part's layer over the numbers, if it has one.
    pub(super) fn wide_layer(&self) -> Option<&Linear> {
        self.linear.get(self.deep)
    }

    /// The wide part's weights of categories, one table a column, or none.
    pub(super) fn wide_embeddings(&self) -> &[Embedding] {
        &self.embeddings[..self.wide_embeddings]
    }

    /// Where a job starts: zeros for a wide part; for a deep part Kaiming-uniform weights (He et al. 2015:
    /// variance `2 / inputs` before a ReLU, `1 / inputs` before the logit), zero biases, and embeddings uniform within
    /// `1 / sqrt(entries)`, so that a category weighs no more than one number.
    ///
    /// Everybody with the seed gets the same bits: the draws are SHA-256 over seed and counter. They are public
    /// and protect nothing; privacy noise never comes from here.
    pub fn initial_parameters(&self, seed: [u8; 32]) -> Vec<f32> {
        let mut parameters = vec![0.0; self.parameter_count];
        for (index, layer) in self.deep_layers().iter().enumerate() {
            let gain = if layer.rectified { 6.0 } else { 3.0 };
            let bound = (gain / layer.inputs as f64).sqrt();
            let weight = &mut parameters[layer.offset..][..layer.outputs * layer.inputs];
            draw_uniform(&seed, index as u64, bound, weight);
        }
        for embedding in self.deep_embeddings() {
            let table = &mut parameters[embedding.offset..][..embedding.parameter_count()];
            let stream = 1 << 32 | embedding.column as u64;
            draw_uniform(&seed, stream, 1.0 / (embedding.dim as f64).sqrt(), table);
        }
        parameters
    }

    /// The logit of each row; `rows` is `[n, numbers]` and `ids` `[n, categorical columns]`, row-major, the result `[n]`.
    ///
    /// # Panics
    /// If `parameters` is not of [`parameter_count`](Self::parameter_count), or `rows` and `ids` are not of as many
    /// whole rows, or an id is not in its vocabulary.
    pub fn logits(&self, parameters: &[f32], rows: &[f32], ids: &[u32]) -> Vec<f32> {
        assert_eq!(parameters.len(), self.parameter_count, "parameters of another network");
        let count = self.row_count(rows, ids).unwrap_or_else(|error| panic!("{error}"));
        let mut packing = Default::default();
        let mut logits = vec![0.0; count];
        if self.deep > 0 {
            let (mut input, mut output) = (Vec::new(), Vec::new());
            self.fill_deep_input(parameters, rows, ids, &mut input);
            for layer in self.deep_layers() {
                layer.forward(parameters, &input, &mut output, &mut packing);
                std::mem::swap(&mut input, &mut output);
            }
            logits = input;
        }
        self.add_wide(parameters, rows, ids, &mut logits, &mut packing);
        logits
    }

    /// `[rows, numbers and then the vector of each id]`; `input` is resized.
    fn fill_deep_input(&self, parameters: &[f32], numbers: &[f32], ids: &[u32], input: &mut Vec<f32>) {
        input.clear();
        let embeddings = self.deep_embeddings();
        if embeddings.is_empty() {
            input.extend_from_slice(numbers);
            return;
        }
        let width = self.inputs.numbers;
        for (row, ids) in ids.chunks_exact(embeddings.len()).enumerate() {
            input.extend_from_slice(&numbers[row * width..(row + 1) * width]);
            for (embedding, &id) in embeddings.iter().zip(ids) {
                input.extend_from_slice(embedding.vector(parameters, id));
            }
        }
    }

    /// Adds the wide part's logits, if there is a wide part, to those of each row.
    fn add_wide(
        &self,
        parameters: &[f32],
        numbers: &[f32],
        ids: &[u32],
        logits: &mut [f32],
        packing: &mut Packing<f32>,
    ) {
        if let Some(layer) = self.wide_layer() {
            layer.accumulate(parameters, numbers, logits, packing);
        }
        let embeddings = self.wide_embeddings();
        if !embeddings.is_empty() {
            for (logit, ids) in logits.iter_mut().zip(ids.chunks_exact(embeddings.len())) {
                for (embedding, &id) in embeddings.iter().zip(ids) {
                    *logit += embedding.vector(parameters, id)[0];
                }
            }
        }
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
        for layer in &workspace.linear {
            if let Some(entry) = first_not_finite(&layer.activations) {
                return Err(refusal(entry / layer.inputs));
            }
            if let Some(entry) = first_not_finite(&layer.output_gradients) {
                return Err(refusal(entry / layer.outputs));
            }
        }
        for embedding in &workspace.embeddings {
            if let Some(entry) = first_not_finite(&embedding.output_gradients) {
                return Err(refusal(entry / embedding.dim));
            }
        }
        first_not_finite(&workspace.logits).map_or(Ok(()), |row| Err(refusal(row)))
    }

    /// Refuses what does not fit this network or is not finite before anything is computed.
    pub(crate) fn check(&self, parameters: &[f32], batch: &Batch) -> Result<(), ModelError> {
        expect_length("parameters", self.parameter_count, parameters.len())?;
        let rows = batch.labels.len();
        expect_length("numbers in rows", rows * self.inputs.numbers, batch.rows.len())?;
        expect_length("ids in rows", rows * self.inputs.columns(), batch.ids.len())?;
        self.check_ids(batch.ids)?;
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
            return Err(ModelError::NotFinite { what: "input row", row: entry / self.inputs.numbers });
        }
        match batch.labels.iter().position(|label| !(0.0..=1.0).contains(label)) {
            Some(row) => Err(ModelError::Label { row }),
            None => Ok(()),
        }
    }

    /// How many rows `numbers` and `ids` hold. Errors if they do not hold as many whole rows.
    pub(super) fn row_count(&self, numbers: &[f32], ids: &[u32]) -> Result<usize, ModelError> {
        let (width, columns) = (self.inputs.numbers, self.inputs.columns());
        // A row has a number or an id.
        let rows = numbers.len().checked_div(width).unwrap_or(ids.len() / columns.max(1));
        expect_length("numbers in rows", rows * width, numbers.len())?;
        expect_length("ids in rows", rows * columns, ids.len())?;
        Ok(rows)
    }

    /// Refuses ids outside their column's vocabulary; `ids` is of whole rows.
    pub(super) fn check_ids(&self, ids: &[u32]) -> Result<(), ModelError> {
        let vocabularies = &self.inputs.vocabularies;
        for (row, ids) in ids.chunks_exact(vocabularies.len().max(1)).enumerate() {
            for (column, (&id, &vocabulary)) in ids.iter().zip(vocabularies).enumerate() {
                if id as usize >= vocabulary {
                    return Err(ModelError::Id { row, column, vocabulary });
                }
            }
        }
        Ok(())
    }

    /// [`backward`](Self::backward) on checked arguments; does not look at the results.
    pub(crate) fn differentiate(&self, parameters: &[f32], batch: &Batch, workspace: &mut Workspace) {
        self.shape_factors(batch, workspace);
        self.run_forward(parameters, batch, workspace);
        let Workspace { linear, embeddings, logits, logit_gradients, input_gradients, packing, .. } =
            workspace;

        logit_gradients.clear();
        for span in batch.customer_starts.windows(2) {
            let span = span[0] as usize..span[1] as usize;
            let share = 1.0 / span.len() as f32;
            let rows = logits[span.clone()].iter().zip(&batch.labels[span]);
            logit_gradients.extend(rows.map(|(&logit, &label)| (sigmoid(logit) - label) * share));
        }
        let (wide_embeddings, deep_embeddings) = embeddings.split_at_mut(self.wide_embeddings);
        let (deep, wide) = linear.split_at_mut(self.deep);
        let last = deep.last_mut().map(|layer| &mut layer.output_gradients);
        let wide = wide.iter_mut().map(|layer| &mut layer.output_gradients);
        let categories = wide_embeddings.iter_mut().map(|embedding| &mut embedding.output_gradients);
        for gradients in last.into_iter().chain(wide).chain(categories) {
            gradients.clone_from(logit_gradients);
        }
        for index in (1..self.deep).rev() {
            let (before, here) = deep.split_at_mut(index);
            let here = &here[0];
            let before = &mut before[index - 1].output_gradients;
            self.linear[index].backward(parameters, &here.output_gradients, 0, before, packing);
            mask(before, &here.activations);
        }
        if let [first, ..] = deep
            && !deep_embeddings.is_empty()
        {
            let numbers = self.inputs.numbers;
            self.linear[0].backward(parameters, &first.output_gradients, numbers, input_gradients, packing);
            let width = first.inputs - numbers;
            for (position, embedding) in deep_embeddings.iter_mut().enumerate() {
                let own = position * embedding.dim..(position + 1) * embedding.dim;
                embedding.output_gradients.clear();
                for row in input_gradients.chunks_exact(width) {
                    embedding.output_gradients.extend_from_slice(&row[own.clone()]);
                }
            }
        }
    }

    /// One tap for each parameterised layer, with what the batch alone determines.
    fn shape_factors(&self, batch: &Batch, workspace: &mut Workspace) {
        let Workspace { linear, embeddings, customers, .. } = workspace;
        *customers = batch.customers();
        linear.resize_with(self.linear.len(), LinearFactors::default);
        for (layer, factors) in self.linear.iter().zip(linear) {
            (factors.inputs, factors.outputs) = (layer.inputs, layer.outputs);
            factors.biased = layer.biased;
        }
        embeddings.resize_with(self.embeddings.len(), EmbeddingFactors::default);
        for (embedding, factors) in self.embeddings.iter().zip(embeddings) {
            (factors.vocabulary, factors.dim) = (embedding.vocabulary, embedding.dim);
            factors.ids.clear();
            let own = batch.ids.iter().skip(embedding.column).step_by(self.inputs.columns());
            factors.ids.extend(own);
        }
    }

    /// Fills the activations and the logits.
    fn run_forward(&self, parameters: &[f32], batch: &Batch, workspace: &mut Workspace) {
        let Workspace { linear, logits, packing, .. } = workspace;
        let (deep, wide) = linear.split_at_mut(self.deep);
        match deep {
            [first, ..] => self.fill_deep_input(parameters, batch.rows, batch.ids, &mut first.activations),
            [] => {
                logits.clear();
                logits.resize(batch.labels.len(), 0.0);
            }
        }
        for (index, layer) in self.deep_layers().iter().enumerate() {
            match &mut deep[index..] {
                [here, next, ..] => {
                    layer.forward(parameters, &here.activations, &mut next.activations, packing)
                }
                [here] => layer.forward(parameters, &here.activations, logits, packing),
                [] => unreachable!("one factor buffer for each layer"),
            }
        }
        for factors in wide {
            factors.activations.clear();
            factors.activations.extend_from_slice(batch.rows);
        }
        self.add_wide(parameters, batch.rows, batch.ids, logits, packing);
    }

    /// The plain gradient of the batch last differentiated: the mean over its customers of each customer's gradient,
    /// neither clipped nor noised, for non-private baselines. `out` is resized to `[parameters]`; zeros if the
    /// batch had no customer.
    ///
    /// # Panics
    /// If `workspace` was filled by another network.
    pub fn mean_gradient(&self, workspace: &mut Workspace, out: &mut Vec<f32>) {
        let Workspace { linear, embeddings, packing, customers, .. } = workspace;
        let taps = [linear.len(), embeddings.len()];
        assert_eq!(taps, [self.linear.len(), self.embeddings.len()], "workspace of another network");
        out.clear();
        out.resize(self.parameter_count, 0.0);
        for (layer, factors) in self.linear.iter().zip(linear) {
            layer.add_gradient(&factors.activations, &factors.output_gradients, out, packing);
        }
        for (embedding, factors) in self.embeddings.iter().zip(embeddings) {
            embedding.add_gradient(&factors.ids, &factors.output_gradients, out);
        }
        let share = 1.0 / (*customers).max(1) as f32;
        out.iter_mut().for_each(|entry| *entry *= share);
    }
}

/// Fills `weights` with draws uniform on (-`bound`, `bound`), public and the same for everyone: stream `stream` of a seed.
fn draw_uniform(seed: &[u8; 32], stream: u64, bound: f64, weights: &mut [f32]) {
    for (block, weights) in weights.chunks_mut(8).enumerate() {
        let mut message = [0; 80];
        message[..32].copy_from_slice(b"weighhouse initial parameters 1:");
        message[32..64].copy_from_slice(seed);
        message[64..72].copy_from_slice(&stream.to_le_bytes());
        message[72..].copy_from_slice(&(block as u64).to_le_bytes());
        let hash = digest(&SHA256, &message);
        for (weight, word) in weights.iter_mut().zip(hash.as_ref().as_chunks::<4>().0) {
            // The middle of one of 2^24 equal intervals of (-1, 1).
            let unit = (f64::from(u32::from_le_bytes(*word) >> 8) + 0.5) / f64::from(1 << 23) - 1.0;
            *weight = (unit * bound) as f32;
        }
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
mod tests;
