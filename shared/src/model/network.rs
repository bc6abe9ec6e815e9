//! A network with its parameters outside: flat f32 in, outputs, factors or gradients out.
//!
//! Promised: a row's outputs and factors depend on that row, its label, its customer's other rows, its own draws and the
//! parameters alone, to the last bit, whoever else is in the batch (the layers' row independence).

mod passes;

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::{
    Batch, ModelError, ModelSpec, Rows, Tap, TensorSpec, Workspace,
    error::expect_length,
    graph::{Graph, IdSource, Init, Level, Node, SlotShape},
    layers::{add_embedding_gradient, add_linear_gradient},
    loss,
    vectors::first_not_finite,
    workspace::Buffers,
    zoo,
};
use crate::schema::{DataShape, InputShape, SequenceShape, Target};
use passes::add;

/// Bytes of draw for each sampled negative.
const NEGATIVE_BYTES: usize = 4;

/// A model of the zoo, ready to compute: its nodes and where each tensor lies, no values.
#[derive(Clone, Debug)]
pub struct Network {
    shape: DataShape,
    graph: Graph,
    taps: Arc<[Tap]>,
    slots: Arc<[SlotShape]>,
}

/// What a forward is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Dropout is on, and candidates are the label's item and sampled negatives.
    Learn,
    /// Dropout is off, and candidates are all items.
    Score,
}

impl Network {
    /// Builds the network of `spec` for rows of `shape`: an [`InputShape`], or so many numbers, for a probability, or a
    /// [`DataShape`] for any target.
    ///
    /// Errors if a size in the spec or the shape is out of range, the model does not go with the shape, or it would
    /// have more than 2^28 parameters.
    pub fn new(spec: &ModelSpec, shape: impl Into<DataShape>) -> Result<Self, ModelError> {
        let shape = shape.into();
        let graph = zoo::build(spec, &shape)?;
        let (taps, slots) = (graph.taps.clone().into(), graph.slots.clone().into());
        Ok(Self { shape, graph, taps, slots })
    }

    /// Length of the flat parameters.
    pub fn parameter_count(&self) -> usize {
        self.graph.parameter_count
    }

    /// What a row holds.
    pub fn inputs(&self) -> &InputShape {
        &self.shape.inputs
    }

    /// What is learned from it.
    pub fn target(&self) -> Target {
        self.shape.target
    }

    /// The tensors inside the flat parameters, in their order there, without gaps.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.graph.tensors
    }

    /// The taps, shared with what is worked out for this network.
    pub(super) fn shared_taps(&self) -> &Arc<[Tap]> {
        &self.taps
    }

    /// The nodes.
    pub(super) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Where a job starts, everybody with the seed at the same bits: weights uniform within a bound of their layer
    /// (Kaiming-uniform before a ReLU, He et al. 2015), biases zero but for forget gates, whose are one, gains one,
    /// embeddings within `1 / sqrt(entries)`, or of variance 1 before a transformer, a wide part zero.
    ///
    /// The draws are SHA-256 over seed, tensor name and counter. They are public and protect nothing; privacy noise
    /// never comes from here.
    pub fn initial_parameters(&self, seed: [u8; 32]) -> Vec<f32> {
        let mut parameters = vec![0.0; self.parameter_count()];
        for tensor in self.tensors() {
            let entries = &mut parameters[tensor.offset..][..tensor.entries()];
            match tensor.init {
                Init::Zeros => {}
                Init::Ones => entries.fill(1.0),
                Init::Uniform(bound) => draw_uniform(&seed, &tensor.name, bound, entries),
                Init::ForgetGate => {
                    let quarter = entries.len() / 4;
                    entries[quarter..2 * quarter].fill(1.0);
                }
            }
        }
        parameters
    }

    /// Factor rows that a row has at a tap, but for its steps.
    pub(crate) fn factor_rows(&self) -> usize {
        1 + self.graph.negatives
    }

    /// About how many bytes of buffers a row with so many steps takes while the model learns: values and gradients.
    pub fn buffer_bytes(&self, rows: usize, steps: usize) -> usize {
        let floats = self.slots.iter().map(|shape| {
            let rows = match shape.level {
                Level::Row => rows,
                Level::Step => steps,
                Level::Candidate => rows * (1 + self.graph.negatives),
            };
            rows * shape.width * shape.matrices()
        });
        floats.sum::<usize>() * size_of::<f32>()
    }

    /// How many bytes of [`Batch::draws`] so many rows with so many steps take while the model learns.
    pub fn draws(&self, rows: usize, steps: usize) -> usize {
        let negatives = rows * self.graph.negatives * NEGATIVE_BYTES;
        let dropout = self.graph.nodes.iter().map(|node| match node {
            Node::Dropout { output, .. } => {
                let SlotShape { level, width, .. } = self.slots[output.0];
                width * if level == Level::Step { steps } else { rows }
            }
            _ => 0,
        });
        negatives + dropout.sum::<usize>()
    }

    /// The outputs of each row before the link to a prediction: `[rows, outputs of the target]`, row-major.
    ///
    /// # Panics
    /// If `parameters` is not of [`parameter_count`](Self::parameter_count) or not finite, or `rows` does not fit.
    pub fn outputs(&self, parameters: &[f32], rows: &Rows, workspace: &mut Workspace) -> Vec<f32> {
        assert_eq!(parameters.len(), self.parameter_count(), "parameters of another network");
        let count = self.check_rows(rows).unwrap_or_else(|error| panic!("{error}"));
        workspace.weights.load(self, parameters, true).unwrap_or_else(|error| panic!("{error}"));
        let starts: Vec<u32> = (0..=count as u32).collect();
        let batch = Batch { rows: *rows, customer_starts: &starts, ..Batch::default() };
        self.run_forward(&batch, Mode::Score, workspace);
        workspace.slots[self.graph.output.0].values.clone()
    }

    /// One forward and one backward for the loss "sum over customers of the mean over the customer's rows of the
    /// target's loss"; leaves each tap's factors in `workspace`.
    ///
    /// Errors if shapes do not fit, and if a parameter, an input, a label or anything computed is not finite,
    /// naming the parameter or row.
    pub fn backward(
        &self,
        parameters: &[f32],
        batch: &Batch,
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        self.load(parameters, workspace)?;
        self.check(batch)?;
        self.differentiate(batch, workspace);
        for (shape, buffers) in self.slots.iter().zip(&workspace.slots) {
            for matrix in [&buffers.values, &buffers.gradients] {
                if let Some(entry) = first_not_finite(matrix) {
                    return Err(ModelError::NotFinite { what: "gradient of row", row: entry / shape.width });
                }
            }
        }
        Ok(())
    }

    /// Refuses a batch that does not fit this network or is not finite before anything is computed.
    pub(crate) fn check(&self, batch: &Batch) -> Result<(), ModelError> {
        let rows = self.check_rows(&batch.rows)?;
        expect_length("labels", rows, batch.labels.len())?;
        let steps = batch.rows.step_starts.last().map_or(0, |&end| end as usize);
        expect_length("bytes of draws", self.draws(rows, steps), batch.draws.len())?;
        let starts = batch.customer_starts;
        if starts.first() != Some(&0) {
            return Err(ModelError::CustomerStarts { customer: 0 });
        }
        if let Some(customer) = starts.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(ModelError::CustomerStarts { customer });
        }
        expect_length("rows owned by customers", rows, starts[starts.len() - 1] as usize)?;
        let place =
            |outputs: usize, label: f32| label.fract() == 0.0 && (0.0..outputs as f32).contains(&label);
        let holds = |label: f32| match self.shape.target {
            Target::Binary => (0.0..=1.0).contains(&label),
            Target::Number => (-1.0..=1.0).contains(&label),
            Target::Count => label >= 0.0 && label.is_finite(),
            Target::Classes(outputs) | Target::Item(outputs) => place(outputs, label),
        };
        match batch.labels.iter().position(|&label| !holds(label)) {
            Some(row) => Err(ModelError::Label { row }),
            None => Ok(()),
        }
    }

    /// Refuses rows that do not fit; how many there are.
    pub(super) fn check_rows(&self, rows: &Rows) -> Result<usize, ModelError> {
        let InputShape { numbers, vocabularies, sequence } = &self.shape.inputs;
        let by_steps = rows.step_starts.len().saturating_sub(1);
        let by_ids = rows.ids.len().checked_div(vocabularies.len()).unwrap_or(by_steps);
        let count = rows.numbers.len().checked_div(*numbers).unwrap_or(by_ids);
        expect_length("numbers in rows", count * numbers, rows.numbers.len())?;
        expect_length("ids in rows", count * vocabularies.len(), rows.ids.len())?;
        check_ids(rows.ids, vocabularies)?;
        let none = SequenceShape::default();
        let of_step = sequence.as_ref().unwrap_or(&none);
        let starts = rows.step_starts;
        expect_length("step_starts", if sequence.is_some() { count + 1 } else { 0 }, starts.len())?;
        let limit = of_step.length;
        let in_order = |pair: &[u32]| pair[0] <= pair[1] && (pair[1] - pair[0]) as usize <= limit;
        if let Some(row) = starts.windows(2).position(|pair| !in_order(pair)) {
            return Err(ModelError::StepStarts { row, limit });
        }
        if starts.first().is_some_and(|&first| first != 0) {
            return Err(ModelError::StepStarts { row: 0, limit });
        }
        let steps = starts.last().map_or(0, |&end| end as usize);
        expect_length("numbers in steps", steps * of_step.numbers, rows.step_numbers.len())?;
        expect_length("ids in steps", steps * of_step.columns(), rows.step_ids.len())?;
        check_ids(rows.step_ids, &of_step.vocabularies)?;
        if let Some(entry) = first_not_finite(rows.numbers) {
            return Err(ModelError::NotFinite { what: "input row", row: entry / numbers });
        }
        if let Some(entry) = first_not_finite(rows.step_numbers) {
            return Err(ModelError::NotFinite { what: "input step", row: entry / of_step.numbers });
        }
        Ok(count)
    }

    /// Prepares [`differentiate`](Self::differentiate) at `parameters`, for any number of batches. Errors if they do not fit or
    /// are not finite.
    pub(crate) fn load(&self, parameters: &[f32], workspace: &mut Workspace) -> Result<(), ModelError> {
        workspace.weights.load(self, parameters, true)
    }

    /// [`backward`](Self::backward) of a checked batch, at the parameters that are loaded; does not look at the results.
    ///
    /// # Panics
    /// If another network is loaded.
    pub(crate) fn differentiate(&self, batch: &Batch, workspace: &mut Workspace) {
        assert!(workspace.weights.is_of(self), "weights of another network");
        self.run_forward(batch, Mode::Learn, workspace);
        for (shape, Buffers { values, gradients }) in self.slots.iter().zip(&mut workspace.slots) {
            gradients.resize(if shape.matrices() == 2 { values.len() } else { 0 }, 0.0);
        }
        let Buffers { values, gradients } = &mut workspace.slots[self.graph.output.0];
        gradients.fill(0.0);
        self.differentiate_loss(values, batch, gradients);
        self.run_backward(batch, workspace);
    }

    /// The gradient by the outputs while the model learns.
    pub(super) fn differentiate_loss(&self, outputs: &[f32], batch: &Batch, gradients: &mut [f32]) {
        let width = self.slots[self.graph.output.0].width * (1 + self.graph.negatives);
        let (labels, starts) = (batch.labels, batch.customer_starts);
        loss::differentiate(self.shape.target, width, outputs, labels, starts, gradients);
    }

    /// The dropout's part of a batch's draws.
    pub(super) fn dropout_draws<'a>(&self, batch: &Batch<'a>) -> &'a [u8] {
        batch.draws.get(batch.labels.len() * self.graph.negatives * NEGATIVE_BYTES..).unwrap_or_default()
    }

    /// The ids that are looked up to score so many rows, by source.
    pub(super) fn scoring_ids<'a>(
        &self,
        rows: &Rows,
        count: usize,
        workspace: &'a mut Workspace,
    ) -> &'a [Vec<u32>] {
        let customer_starts: Vec<u32> = (0..=count as u32).collect();
        let batch = Batch { rows: *rows, customer_starts: &customer_starts, ..Batch::default() };
        self.shape_batch(&batch, Mode::Score, workspace);
        &workspace.ids
    }

    /// How many rows each level has for each customer, and the ids that are looked up.
    pub(super) fn shape_batch(&self, batch: &Batch, mode: Mode, workspace: &mut Workspace) {
        (workspace.taps, workspace.shapes) = (self.taps.clone(), self.slots.clone());
        workspace.customers = batch.customers();
        let step_starts = batch.rows.step_starts;
        let rows = batch.customer_starts.last().copied().unwrap_or(0);
        for (level, starts) in workspace.starts.iter_mut().enumerate() {
            starts.clear();
            let customers = batch.customer_starts.iter();
            match level {
                level if level == Level::Row as usize => starts.extend(customers),
                level if level == Level::Step as usize && !step_starts.is_empty() => {
                    starts.extend(customers.map(|&row| step_starts[row as usize]))
                }
                level if level == Level::Candidate as usize => match (mode, self.shape.target) {
                    (Mode::Learn, _) => {
                        starts.extend(customers.map(|row| row * (1 + self.graph.negatives as u32)))
                    }
                    (Mode::Score, Target::Item(items)) => starts.extend([0, items as u32]),
                    (Mode::Score, _) => starts.extend(customers),
                },
                _ => starts.push(0),
            }
        }
        workspace.ids.resize_with(self.graph.ids.len(), Vec::new);
        let inputs = &self.shape.inputs;
        for (source, ids) in self.graph.ids.iter().zip(&mut workspace.ids) {
            ids.clear();
            match *source {
                IdSource::Column(column) => {
                    ids.extend(batch.rows.ids.iter().skip(column).step_by(inputs.columns()))
                }
                IdSource::StepColumn(column) => {
                    let columns = inputs.sequence.as_ref().map_or(1, SequenceShape::columns);
                    ids.extend(batch.rows.step_ids.iter().skip(column).step_by(columns));
                }
                IdSource::Position => {
                    step_starts.windows(2).for_each(|span| ids.extend(0..span[1] - span[0]));
                }
                IdSource::Candidate if !matches!(self.shape.target, Target::Item(_)) => {
                    ids.extend(batch.rows.ids.iter().step_by(inputs.columns()))
                }
                IdSource::Candidate if mode == Mode::Score => {
                    ids.extend(0..self.shape.target.outputs() as u32)
                }
                IdSource::Candidate => {
                    let items = self.shape.target.outputs() as u64;
                    let negatives = self.graph.negatives;
                    let draws = &batch.draws[..rows as usize * negatives * NEGATIVE_BYTES];
                    let mut draws = draws.as_chunks::<NEGATIVE_BYTES>().0.iter();
                    for &label in batch.labels {
                        let label = label as u32;
                        ids.push(label);
                        // Any item but the label's, within 2^-12 of uniform for 2^20 items.
                        let item = |draw: &[u8; 4]| {
                            let other = ((u64::from(u32::from_le_bytes(*draw)) * (items - 1)) >> 32) as u32;
                            other + u32::from(other >= label)
                        };
                        ids.extend(draws.by_ref().take(negatives).map(item));
                    }
                }
            }
        }
    }

    /// The plain gradient of the batch last differentiated: the mean over its customers of each customer's gradient,
    /// neither clipped nor noised, for non-private baselines. `out` is resized to `[parameters]`; zeros if the
    /// batch had no customer.
    ///
    /// # Panics
    /// If `workspace` was filled by another network.
    pub fn mean_gradient(&self, workspace: &mut Workspace, out: &mut Vec<f32>) {
        assert_eq!(workspace.taps, self.taps, "workspace of another network");
        out.clear();
        out.resize(self.parameter_count(), 0.0);
        let Workspace { slots, ids, packing, customers, .. } = workspace;
        let mut rest = out.as_mut_slice();
        for tap in self.taps.iter() {
            let width = self.slots[tap.output().0].width;
            let gradients = &slots[tap.output().0].gradients;
            match *tap {
                Tap::Linear { input, biased, .. } => {
                    let inputs = self.slots[input.0].width;
                    let weight = rest.split_off_mut(..width * inputs).expect("the taps fill the parameters");
                    let bias = rest.split_off_mut(..if biased { width } else { 0 }).expect("likewise");
                    let values = &slots[input.0].values;
                    add_linear_gradient([inputs, width], values, gradients, weight, bias, packing);
                }
                Tap::Embedding { ids: source, vocabulary, .. } => {
                    let table = rest.split_off_mut(..vocabulary * width).expect("likewise");
                    add_embedding_gradient(&ids[source], gradients, table, width);
                }
                Tap::Scale { input, .. } => {
                    let weight = rest.split_off_mut(..width).expect("likewise");
                    let bias = rest.split_off_mut(..width).expect("likewise");
                    let normal = slots[input.0].values.chunks_exact(width);
                    for (gradient, normal) in gradients.chunks_exact(width).zip(normal) {
                        add(gradient, bias);
                        for ((slot, gradient), normal) in weight.iter_mut().zip(gradient).zip(normal) {
                            *slot += gradient * normal;
                        }
                    }
                }
            }
        }
        let share = 1.0 / (*customers).max(1) as f32;
        out.iter_mut().for_each(|entry| *entry *= share);
    }
}

/// Refuses ids outside their column's vocabulary; `ids` is of whole rows.
fn check_ids(ids: &[u32], vocabularies: &[usize]) -> Result<(), ModelError> {
    for (row, ids) in ids.chunks_exact(vocabularies.len().max(1)).enumerate() {
        for (column, (&id, &vocabulary)) in ids.iter().zip(vocabularies).enumerate() {
            if id as usize >= vocabulary {
                return Err(ModelError::Id { row, column, vocabulary });
            }
        }
    }
    Ok(())
}

/// Fills `weights` with draws uniform on (-`bound`, `bound`), public and the same for everyone with the seed.
fn draw_uniform(seed: &[u8; 32], name: &str, bound: f64, weights: &mut [f32]) {
    let stream = digest(&SHA256, name.as_bytes());
    for (block, weights) in weights.chunks_mut(8).enumerate() {
        let mut message = [0; 104];
        message[..32].copy_from_slice(b"weighhouse initial parameters 2:");
        message[32..64].copy_from_slice(seed);
        message[64..96].copy_from_slice(stream.as_ref());
        message[96..].copy_from_slice(&(block as u64).to_le_bytes());
        let hash = digest(&SHA256, &message);
        for (weight, word) in weights.iter_mut().zip(hash.as_ref().as_chunks::<4>().0) {
            // The middle of one of 2^24 equal intervals of (-1, 1).
            let unit = (f64::from(u32::from_le_bytes(*word) >> 8) + 0.5) / f64::from(1 << 23) - 1.0;
            *weight = (unit * bound) as f32;
        }
    }
}

#[cfg(test)]
mod tests;
