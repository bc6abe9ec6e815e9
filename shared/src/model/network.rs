//! A network with its parameters outside: flat f32 in, logits, factors or gradients out.
//!
//! Promised: a row's logit and factors depend on that row, its label, its customer's number of rows and the
//! parameters alone, to the last bit, whoever else is in the batch (the layers' row independence).

use aws_lc_rs::digest::{SHA256, digest};

use super::{
    EmbeddingFactors, LinearFactors, ModelError, ModelSpec, Workspace,
    embedding::Embedding,
    error::expect_length,
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

/// Rows of some customers; those of one customer are adjacent.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// `[rows, numbers]`, row-major, finite.
    pub rows: &'a [f32],
    /// `[rows, categorical columns]`, row-major, each below its column's vocabulary.
    pub ids: &'a [u32],
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

/// Lays tensors one after the other into the flat parameters: the only source of offsets.
#[derive(Default)]
struct Layout {
    tensors: Vec<TensorSpec>,
    end: usize,
}

impl Layout {
    fn add(&mut self, name: String, shape: &[usize]) -> usize {
        let offset = self.end;
        self.end += shape.iter().product::<usize>();
        self.tensors.push(TensorSpec { name, shape: shape.to_vec(), offset });
        offset
    }

    fn linear(&mut self, name: &str, [inputs, outputs]: [usize; 2], biased: bool, rectified: bool) -> Linear {
        let offset = self.add(format!("{name}.weight"), &[outputs, inputs]);
        if biased {
            self.add(format!("{name}.bias"), &[outputs]);
        }
        Linear { inputs, outputs, offset, biased, rectified }
    }

    fn embeddings(&mut self, name: &str, vocabularies: &[usize], dim: usize) -> Vec<Embedding> {
        let table = |(column, &vocabulary): (usize, &usize)| {
            let offset = self.add(format!("{name}.{column}.weight"), &[vocabulary, dim]);
            Embedding { column, vocabulary, dim, offset }
        };
        vocabularies.iter().enumerate().map(table).collect()
    }
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
mod tests {
    use super::*;
    use crate::model::reference::{OwnedBatch, draws, gradient, norm};

    /// Every kind of model, with numbers, with categories, with both.
    fn networks() -> Vec<(Network, Vec<f32>)> {
        let wide_and_deep =
            |hidden: &[u32]| ModelSpec::WideAndDeep { hidden: hidden.into(), embedding_dim: 3 };
        let mixed = InputShape { numbers: 4, vocabularies: vec![3, 6] };
        let ids_only = InputShape { numbers: 0, vocabularies: vec![5, 2] };
        [
            (ModelSpec::Logistic {}, 5.into()),
            (ModelSpec::Mlp { hidden: vec![7] }, 4.into()),
            (ModelSpec::Mlp { hidden: vec![19, 8, 1] }, 33.into()),
            (ModelSpec::Logistic {}, mixed.clone()),
            (ModelSpec::Logistic {}, ids_only.clone()),
            (ModelSpec::Mlp { hidden: vec![6, 5] }, mixed.clone()),
            (ModelSpec::Mlp { hidden: vec![1, 4] }, ids_only.clone()),
            (wide_and_deep(&[9, 4]), mixed),
            (wide_and_deep(&[6]), ids_only),
            (wide_and_deep(&[5]), 4.into()),
        ]
        .into_iter()
        .map(|(spec, inputs): (_, InputShape)| {
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

    /// Parameters are added to the sum tap by tap; one that lay in no tap, or in two, would be summed unclipped.
    #[test]
    fn the_taps_own_every_parameter_once() {
        for (network, parameters) in networks() {
            let mut owners = vec![0; network.parameter_count()];
            for layer in &network.linear {
                owners[layer.offset..][..layer.parameter_count()].iter_mut().for_each(|owner| *owner += 1);
            }
            for embedding in &network.embeddings {
                owners[embedding.offset..][..embedding.parameter_count()].iter_mut().for_each(|o| *o += 1);
            }
            assert!(owners.iter().all(|&owner| owner == 1), "{:?}", network.tensors());
            let batch = OwnedBatch::draw(1, network.inputs().clone(), &[2, 1], 1.0);
            let mut workspace = Workspace::new();
            network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
            let linear = workspace.linear().iter();
            let linear = linear.map(|tap| tap.outputs() * (tap.inputs() + usize::from(tap.biased())));
            let embeddings = workspace.embeddings().iter().map(|tap| tap.vocabulary() * tap.dim());
            assert_eq!(linear.chain(embeddings).sum::<usize>(), network.parameter_count());
        }
    }

    #[test]
    fn a_wide_part_has_a_weight_for_each_category_and_one_intercept_in_all() {
        let shape = InputShape { numbers: 2, vocabularies: vec![3, 5] };
        let names = |spec: &ModelSpec| {
            let network = Network::new(spec, shape.clone()).unwrap();
            let named = network.tensors().iter().map(|tensor| format!("{}{:?}", tensor.name, tensor.shape));
            named.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            names(&ModelSpec::Logistic {}),
            "layers.0.weight[1, 2] layers.0.bias[1] categories.0.weight[3, 1] categories.1.weight[5, 1]"
        );
        assert_eq!(
            names(&ModelSpec::WideAndDeep { hidden: vec![4], embedding_dim: 2 }),
            "layers.0.weight[4, 6] layers.0.bias[4] layers.1.weight[1, 4] layers.1.bias[1] wide.weight[1, 2] \
             categories.0.weight[3, 1] categories.1.weight[5, 1] embeddings.0.weight[3, 2] embeddings.1.weight[5, 2]"
        );
    }

    #[test]
    fn networks_out_of_bounds_are_refused() {
        for inputs in [0, MAX_INPUTS + 1] {
            assert!(matches!(Network::new(&ModelSpec::Logistic {}, inputs), Err(ModelError::Inputs { .. })));
        }
        let wide = ModelSpec::Mlp { hidden: vec![4096, 4096] };
        assert!(matches!(Network::new(&wide, MAX_INPUTS), Err(ModelError::Parameters { .. })));
        for ids in [0, MAX_VOCABULARY + 1, usize::MAX] {
            let shape = InputShape { numbers: 1, vocabularies: vec![2, ids] };
            let refusal = Network::new(&ModelSpec::Logistic {}, shape);
            assert!(matches!(refusal, Err(ModelError::Vocabulary { column: 1, .. })), "{ids}");
        }
        let shape = InputShape { numbers: 1, vocabularies: vec![2; 300] };
        let spec = ModelSpec::WideAndDeep { hidden: vec![2], embedding_dim: 256 };
        assert!(matches!(Network::new(&spec, shape), Err(ModelError::Inputs { got: 76_801 })));
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

    #[test]
    fn embeddings_start_at_random_within_their_bound_and_a_wide_part_at_zero() {
        let shape = InputShape { numbers: 2, vocabularies: vec![40, 30] };
        let spec = ModelSpec::WideAndDeep { hidden: vec![4], embedding_dim: 16 };
        let network = Network::new(&spec, shape).unwrap();
        let parameters = network.initial_parameters([1; 32]);
        let tensor = |name: &str| {
            let spec = network.tensors().iter().find(|tensor| tensor.name == name).unwrap();
            &parameters[spec.offset..][..spec.entries()]
        };
        for zero in ["wide.weight", "categories.0.weight", "categories.1.weight", "layers.1.bias"] {
            assert!(tensor(zero).iter().all(|&entry| entry == 0.0), "{zero}");
        }
        let (first, second) = (tensor("embeddings.0.weight"), tensor("embeddings.1.weight"));
        assert!(first.iter().chain(second).all(|entry| entry.abs() < 0.25 && *entry != 0.0));
        assert_ne!(first[..8], second[..8]);
        assert_ne!(first[..16], first[16..32]);
    }

    /// Computed with Python's hashlib from the description above.
    const GOLDEN: [f32; 2] = [-0.073_139_876, 0.211_845_62];

    #[test]
    fn the_reference_gradient_equals_finite_differences() {
        for (network, parameters) in networks() {
            let batch = OwnedBatch::draw(3, network.inputs().clone(), &[3], 1.0);
            let parameters = widened(&parameters);
            let (_, exact) = gradient(&network, &parameters, &batch);
            for at in (0..parameters.len()).step_by(1 + parameters.len() / 40) {
                let loss = |step: f64| {
                    let mut moved = parameters.clone();
                    moved[at] += step;
                    gradient(&network, &moved, &batch).0
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
            let batch = OwnedBatch::draw(4, network.inputs().clone(), &customer_rows, 1.5);
            let mut expected = vec![0.0; network.parameter_count()];
            for customer in 0..batch.customers() {
                let one = batch.only(|other| other == customer);
                let (_, gradient) = gradient(&network, &widened(&parameters), &one);
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
            let batch = OwnedBatch::draw(5, network.inputs().clone(), &[1, 2, 9, 1, 4, 1, 1, 25], 2.0);
            let mut together = Workspace::new();
            network.backward(&parameters, &batch.batch(), &mut together).unwrap();
            let mut alone = Workspace::new();
            for customer in 0..batch.customers() {
                let one = batch.only(|other| other == customer);
                network.backward(&parameters, &one.batch(), &mut alone).unwrap();
                let span =
                    batch.customer_starts[customer] as usize..batch.customer_starts[customer + 1] as usize;
                let of = |width: usize| span.start * width..span.end * width;
                for (one, all) in alone.linear().iter().zip(together.linear()) {
                    assert_eq!(one.activations(), &all.activations()[of(all.inputs())]);
                    assert_eq!(one.output_gradients(), &all.output_gradients()[of(all.outputs())]);
                }
                for (one, all) in alone.embeddings().iter().zip(together.embeddings()) {
                    assert_eq!(one.ids(), &all.ids()[span.clone()]);
                    assert_eq!(one.output_gradients(), &all.output_gradients()[of(all.dim())]);
                }
            }
        }
    }

    #[test]
    fn logits_are_those_of_the_backward_pass() {
        for (network, parameters) in networks() {
            let batch = OwnedBatch::draw(6, network.inputs().clone(), &[1; 20], 1.0);
            let mut workspace = Workspace::new();
            network.backward(&parameters, &batch.batch(), &mut workspace).unwrap();
            assert_eq!(network.logits(&parameters, &batch.rows, &batch.ids), workspace.logits());
        }
    }

    #[test]
    fn a_batch_of_nobody_has_a_zero_gradient() {
        for (network, parameters) in networks() {
            let (mut workspace, mut out) = (Workspace::new(), Vec::new());
            let nobody = Batch { rows: &[], ids: &[], labels: &[], customer_starts: &[0] };
            network.backward(&parameters, &nobody, &mut workspace).unwrap();
            network.mean_gradient(&mut workspace, &mut out);
            assert!(out.iter().all(|&entry| entry == 0.0));
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_naming_the_row() {
        let (network, parameters) = networks().swap_remove(1);
        let refusal = |parameters: &[f32], change: &dyn Fn(&mut OwnedBatch)| {
            let mut batch = OwnedBatch::draw(7, network.inputs().clone(), &[2, 1, 3], 1.0);
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
    fn ids_outside_their_vocabulary_and_missing_ids_are_refused() {
        let shape = InputShape { numbers: 4, vocabularies: vec![3, 6] };
        for spec in [ModelSpec::Logistic {}, ModelSpec::Mlp { hidden: vec![2] }] {
            let network = Network::new(&spec, shape.clone()).unwrap();
            let parameters = network.initial_parameters([0; 32]);
            let mut batch = OwnedBatch::draw(8, shape.clone(), &[2, 1], 1.0);
            let short = Batch { ids: &batch.ids[1..], ..batch.batch() };
            let refusal = network.backward(&parameters, &short, &mut Workspace::new());
            assert_eq!(refusal.unwrap_err().to_string(), "expected 6 ids in rows, got 5");
            batch.ids[3] = 6;
            let refusal = network.backward(&parameters, &batch.batch(), &mut Workspace::new());
            assert_eq!(
                refusal.unwrap_err().to_string(),
                "the id of row 1 in categorical column 1 is outside its vocabulary of 6"
            );
        }
    }

    #[test]
    fn rows_with_one_id_share_its_gradient_and_others_have_none() {
        let shape = InputShape { numbers: 0, vocabularies: vec![4] };
        let network = Network::new(&ModelSpec::Logistic {}, shape).unwrap();
        // At zero each row's output gradient is 1/2 less its label, halved again for a customer of two rows.
        let batch =
            Batch { rows: &[], ids: &[2, 2, 1], labels: &[1.0, 1.0, 0.0], customer_starts: &[0, 2, 3] };
        let (mut workspace, mut out) = (Workspace::new(), Vec::new());
        network.backward(&[0.0; 4], &batch, &mut workspace).unwrap();
        network.mean_gradient(&mut workspace, &mut out);
        assert_eq!(out, [0.0, 0.25, -0.25, 0.0]);
    }

    #[test]
    fn the_loss_does_not_overflow_at_extreme_logits() {
        assert_eq!(binary_cross_entropy(200.0, 1.0), 0.0);
        assert_eq!(binary_cross_entropy(-200.0, 1.0), 200.0);
        assert!((binary_cross_entropy(0.0, 1.0) - std::f32::consts::LN_2).abs() < 1e-7);
    }
}
