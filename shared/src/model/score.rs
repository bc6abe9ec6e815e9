//! Predictions for evaluation and use: the network's nodes on candle tensors, on any device.
//!
//! Flat parameters and rows enter, the predictions of each row leave. Held together with
//! [`Network::outputs`] to 1e-5 by a test; memory is bounded by a chunk of rows, whatever their number.

use candle_core::{D, DType, Device, Tensor};

use super::{
    ModelError, Network, Rows,
    error::expect_length,
    graph::{IdSource, Node, Slot},
    layers::{Activation, Pooling},
    loss::predict,
};
use crate::schema::SequenceShape;

/// Rows that are on the device at a time, with one output each.
const CHUNK_ROWS: usize = 4096;

/// The prediction for each row: `[rows, outputs of the target]`, row-major: a probability of label 1, of each class, a
/// rate, a number on -1 to 1, or a score of each item.
///
/// `parameters` is `[network.parameter_count()]`. Errors if a length does not fit, an id is outside its vocabulary, an
/// input is not finite, or the device fails.
pub fn score(
    network: &Network,
    parameters: &[f32],
    rows: &Rows,
    device: &Device,
) -> Result<Vec<f32>, ModelError> {
    expect_length("parameters", network.parameter_count(), parameters.len())?;
    let count = network.check_rows(rows)?;
    let outputs = network.target().outputs();
    let tensors = network.tensors().iter().map(|tensor| {
        let entries = &parameters[tensor.offset..][..tensor.entries()];
        Ok((tensor.offset, Tensor::from_slice(entries, tensor.shape.as_slice(), device)?))
    });
    let tensors = tensors.collect::<Result<Vec<_>, ModelError>>()?;
    let chunk = (CHUNK_ROWS / outputs).max(1);
    let mut scores = Vec::with_capacity(count * outputs);
    for first in (0..count).step_by(chunk) {
        let starts = chunk_starts(rows.step_starts, first, count.min(first + chunk));
        let part = part_of(network, rows, first, count.min(first + chunk), &starts);
        let pass =
            Pass { network, tensors: &tensors, rows: &part, count: count.min(first + chunk) - first, device };
        scores.extend(pass.run()?.flatten_all()?.to_vec1::<f32>()?);
    }
    scores.chunks_exact_mut(outputs).for_each(|row| predict(network.target(), row));
    Ok(scores)
}

/// The steps of rows `first .. end`, counted from the first of them.
fn chunk_starts(starts: &[u32], first: usize, end: usize) -> Vec<u32> {
    starts.get(first..=end).unwrap_or_default().iter().map(|start| start - starts[first]).collect()
}

/// Rows `first .. end`, whose steps begin at `starts`.
fn part_of<'a>(network: &Network, rows: &Rows<'a>, first: usize, end: usize, starts: &'a [u32]) -> Rows<'a> {
    let inputs = network.inputs();
    let none = SequenceShape::default();
    let step = inputs.sequence.as_ref().unwrap_or(&none);
    let at = |row: usize| rows.step_starts.get(row).map_or(0, |&start| start as usize);
    Rows {
        numbers: &rows.numbers[first * inputs.numbers..end * inputs.numbers],
        ids: &rows.ids[first * inputs.columns()..end * inputs.columns()],
        step_starts: starts,
        step_numbers: &rows.step_numbers[at(first) * step.numbers..at(end) * step.numbers],
        step_ids: &rows.step_ids[at(first) * step.columns()..at(end) * step.columns()],
    }
}

/// One chunk of rows through the nodes.
struct Pass<'a> {
    network: &'a Network,
    /// With their offsets in the flat parameters.
    tensors: &'a [(usize, Tensor)],
    rows: &'a Rows<'a>,
    count: usize,
    device: &'a Device,
}

type TensorResult = Result<Tensor, candle_core::Error>;

impl Pass<'_> {
    /// The outputs, `[rows, outputs]`.
    fn run(&self) -> TensorResult {
        let graph = self.network.graph();
        let mut slots: Vec<Option<Tensor>> = vec![None; graph.slots.len()];
        for node in &graph.nodes {
            let value = self.value(node, &slots)?;
            slots[node.output().0] = Some(value);
        }
        Ok(slots.swap_remove(graph.output.0).expect("a node for each slot"))
    }

    /// The tensor at an offset of the flat parameters.
    fn tensor(&self, offset: usize) -> &Tensor {
        let at = self.tensors.binary_search_by_key(&offset, |(offset, _)| *offset);
        &self.tensors[at.expect("a tensor at each layer's offset")].1
    }

    fn value(&self, node: &Node, slots: &[Option<Tensor>]) -> TensorResult {
        let of = |slot: &Slot| slots[slot.0].as_ref().expect("nodes in the order of their slots");
        let steps = self.rows.step_starts.last().map_or(0, |&end| end as usize);
        let width = self.network.graph().slots[node.output().0].width;
        match node {
            Node::Numbers { .. } => Tensor::from_slice(self.rows.numbers, (self.count, width), self.device),
            Node::StepNumbers { .. } => {
                Tensor::from_slice(self.rows.step_numbers, (steps, width), self.device)
            }
            Node::Embedding { ids, table, .. } => {
                self.tensor(table.offset).index_select(&self.ids(self.network.graph().ids[*ids])?, 0)
            }
            Node::Concat { inputs, .. } => Tensor::cat(&inputs.iter().map(of).collect::<Vec<_>>(), D::Minus1),
            Node::Sum { inputs, .. } => {
                let mut parts = inputs.iter().map(of);
                let first = parts.next().expect("a sum has parts").clone();
                parts.try_fold(first, |sum, part| sum + part)
            }
            Node::Linear { input, layer, .. } => {
                let mut value = of(input).matmul(&self.tensor(layer.offset).flatten_from(1)?.t()?)?;
                if layer.biased {
                    let bias = self.tensor(layer.offset + layer.outputs * layer.inputs);
                    value = value.broadcast_add(bias)?;
                }
                match layer.activation {
                    Activation::None => Ok(value),
                    Activation::Relu => value.relu(),
                }
            }
            Node::Pool { input, pooling: Pooling::Max, .. } => self.largest(of(input)),
            Node::Pool { input, pooling, .. } => self.pool(of(input), *pooling, width),
            Node::Dropout { input, .. } => Ok(of(input).clone()),
            Node::Dot { rows, candidates, biases, .. } => {
                of(rows).matmul(&of(candidates).t()?)?.broadcast_add(&of(biases).t()?)
            }
            Node::Lstm { layer, states, .. } => self.lstm(of(&states.gates), layer.offset),
            Node::Unfold { input, layer, .. } => self.unfold(of(input), layer.kernel),
        }
    }

    fn ids(&self, source: IdSource) -> TensorResult {
        let every = |ids: &[u32], columns: usize, column: usize| {
            ids.iter().skip(column).step_by(columns.max(1)).copied().collect::<Vec<_>>()
        };
        let inputs = self.network.inputs();
        let ids = match source {
            IdSource::Column(column) => every(self.rows.ids, inputs.columns(), column),
            IdSource::StepColumn(column) => {
                let columns = inputs.sequence.as_ref().map_or(1, SequenceShape::columns);
                every(self.rows.step_ids, columns, column)
            }
            IdSource::Position => {
                self.rows.step_starts.windows(2).flat_map(|span| 0..span[1] - span[0]).collect()
            }
            IdSource::Candidate => (0..self.network.target().outputs() as u32).collect(),
        };
        let count = ids.len();
        Tensor::from_vec(ids, count, self.device)
    }

    /// The hidden states of an LSTM, from its gates' inputs and the offset of its recurrent weight; all rows that have a
    /// step of the same place go on together.
    fn lstm(&self, gates: &Tensor, offset: usize) -> TensorResult {
        let weight = self.tensor(offset).t()?;
        let (hidden, gates_width) = weight.dims2()?;
        let starts = self.rows.step_starts;
        let order = self.by_length();
        let mut states: Vec<Tensor> = Vec::new();
        let mut cells = Tensor::zeros((self.count, hidden), DType::F32, self.device)?;
        // Where the state of each step lies in `states`.
        let mut places = vec![0u32; gates.dim(0)?];
        let mut made = 0;
        for step in 0.. {
            let active = order.partition_point(|&row| self.length(row) > step);
            if active == 0 {
                break;
            }
            let of_step: Vec<u32> = order[..active].iter().map(|&row| starts[row as usize] + step).collect();
            for (place, &at) in (made..).zip(&of_step) {
                places[at as usize] = place;
            }
            made += active as u32;
            let mut sums = gates.index_select(&Tensor::from_vec(of_step, active, self.device)?, 0)?;
            if let Some(before) = states.last() {
                sums = (sums + before.narrow(0, 0, active)?.contiguous()?.matmul(&weight)?)?;
            }
            let quarter = |at: usize| sums.narrow(1, at * hidden, gates_width / 4);
            let sigmoid = |x: Tensor| ((x * 0.5)?.tanh()? * 0.5)? + 0.5;
            let (i, f, g, o) =
                (sigmoid(quarter(0)?)?, sigmoid(quarter(1)?)?, quarter(2)?.tanh()?, sigmoid(quarter(3)?)?);
            cells = ((f * cells.narrow(0, 0, active)?)? + (i * g)?)?;
            states.push((o * cells.tanh()?)?);
        }
        if states.is_empty() {
            return Tensor::zeros((0, hidden), DType::F32, self.device);
        }
        let count = places.len();
        Tensor::cat(&states, 0)?.index_select(&Tensor::from_vec(places, count, self.device)?, 0)
    }

    /// Of each entry the largest of each row's steps.
    fn largest(&self, steps: &Tensor) -> TensorResult {
        let order = self.by_length();
        let select = |ids: Vec<u32>| {
            let count = ids.len();
            steps.index_select(&Tensor::from_vec(ids, count, self.device)?, 0)
        };
        let starts = self.rows.step_starts;
        let mut largest: Option<Tensor> = None;
        for step in 0.. {
            let active = order.partition_point(|&row| self.length(row) > step);
            if active == 0 {
                break;
            }
            let of_step = select(order[..active].iter().map(|&row| starts[row as usize] + step).collect())?;
            largest = Some(match largest {
                None => of_step,
                Some(before) => {
                    let rest = before.narrow(0, active, before.dim(0)? - active)?;
                    Tensor::cat(&[&before.narrow(0, 0, active)?.maximum(&of_step)?, &rest], 0)?
                }
            });
        }
        let zeros = Tensor::zeros((self.count, steps.dim(1)?), DType::F32, self.device)?;
        let Some(largest) = largest else { return Ok(zeros) };
        let rows = order[..largest.dim(0)?].to_vec();
        zeros.index_add(&Tensor::from_vec(rows, largest.dim(0)?, self.device)?, &largest, 0)
    }

    /// Each step with its neighbours, as [`Unfold`](super::layers::Unfold) lays them side by side.
    fn unfold(&self, steps: &Tensor, kernel: usize) -> TensorResult {
        let (count, width) = steps.dims2()?;
        if count == 0 {
            return Tensor::zeros((0, width * kernel), DType::F32, self.device);
        }
        // One more step, of zeros, for what is past an end.
        let padded = steps.pad_with_zeros(0, 0, 1)?;
        let places = (0..kernel).map(|place| {
            let ids = self.rows.step_starts.windows(2).flat_map(|span| {
                let neighbour = move |step: u32| (step + place as u32).checked_sub(kernel as u32 / 2);
                let inside = move |at: &u32| (span[0]..span[1]).contains(at);
                (span[0]..span[1]).map(move |step| neighbour(step).filter(inside).unwrap_or(count as u32))
            });
            padded.index_select(&Tensor::from_vec(ids.collect::<Vec<_>>(), count, self.device)?, 0)
        });
        let places = places.collect::<Result<Vec<_>, _>>()?;
        Tensor::stack(&places, 2)?.reshape((count, width * kernel))
    }

    fn length(&self, row: u32) -> u32 {
        self.rows.step_starts[row as usize + 1] - self.rows.step_starts[row as usize]
    }

    /// The rows by falling number of steps.
    fn by_length(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.count as u32).collect();
        order.sort_by_key(|&row| std::cmp::Reverse(self.length(row)));
        order
    }

    /// Sums each row's steps, each with its weight.
    fn pool(&self, steps: &Tensor, pooling: Pooling, width: usize) -> TensorResult {
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for (row, span) in (0u32..).zip(self.rows.step_starts.windows(2)) {
            let count = span[1] - span[0];
            rows.extend((0..count).map(|_| row));
            weights.extend((1..=count).map(|step| match pooling {
                Pooling::Mean => 1.0 / count as f32,
                Pooling::Last => f32::from(u8::from(step == count)),
                Pooling::Max => unreachable!("see `largest`"),
            }));
        }
        let zeros = Tensor::zeros((self.count, width), DType::F32, self.device)?;
        if rows.is_empty() {
            return Ok(zeros);
        }
        let (count, weights) = (rows.len(), Tensor::from_vec(weights, (rows.len(), 1), self.device)?);
        zeros.index_add(&Tensor::from_vec(rows, count, self.device)?, &steps.broadcast_mul(&weights)?, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelSpec, Workspace, reference};
    use crate::schema::InputShape;

    #[test]
    fn the_two_forwards_agree_to_1e_5() {
        for (spec, shape) in reference::zoo() {
            let network = Network::new(&spec, shape.clone()).unwrap();
            let mut parameters = network.initial_parameters([3; 32]);
            for (i, parameter) in parameters.iter_mut().enumerate() {
                *parameter += (i as f32 * 0.7).sin() * 0.3;
            }
            let batch = reference::OwnedBatch::draw(5, shape, &[1; 50], 2.0);
            let outputs = network.target().outputs();
            let scores = score(&network, &parameters, &batch.rows(), &Device::Cpu).unwrap();
            assert_eq!(scores.len(), 50 * outputs);
            let mut expected = network.outputs(&parameters, &batch.rows(), &mut Workspace::new());
            expected.chunks_exact_mut(outputs).for_each(|row| predict(network.target(), row));
            for (expected, score) in expected.into_iter().zip(scores) {
                let error = (expected - score).abs() / expected.abs().max(1.0);
                assert!(error < 1e-5, "{spec:?}: {expected} against {score}");
            }
        }
    }

    #[test]
    fn extreme_logits_score_0_and_1_and_more_rows_than_a_chunk_are_all_scored() {
        let network = Network::new(&ModelSpec::Logistic {}, 1).unwrap();
        let numbers: Vec<f32> = (0..CHUNK_ROWS + 3).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let rows = Rows { numbers: &numbers, ..Rows::default() };
        let scores = score(&network, &[1e30, 0.0], &rows, &Device::Cpu).unwrap();
        assert_eq!(scores.len(), numbers.len());
        assert!(scores.iter().enumerate().all(|(i, &score)| score == if i % 2 == 0 { 1.0 } else { 0.0 }));
    }

    #[test]
    fn rows_whose_sequences_are_all_empty_are_scored() {
        for (spec, shape) in reference::zoo().into_iter().filter(|(_, shape)| shape.inputs.sequence.is_some())
        {
            let network = Network::new(&spec, shape.clone()).unwrap();
            let parameters = network.initial_parameters([3; 32]);
            let mut batch = reference::OwnedBatch::draw(5, shape, &[1; 3], 2.0);
            batch.step_starts.fill(0);
            batch.step_numbers.clear();
            batch.step_ids.clear();
            let scores = score(&network, &parameters, &batch.rows(), &Device::Cpu).unwrap();
            assert_eq!(scores.len(), 3 * network.target().outputs());
            assert!(scores.iter().all(|score| score.is_finite()), "{spec:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let network = Network::new(&ModelSpec::Logistic {}, 2).unwrap();
        let scored = |parameters: &[f32], numbers: &[f32], ids: &[u32]| {
            score(&network, parameters, &Rows { numbers, ids, ..Rows::default() }, &Device::Cpu)
        };
        assert!(scored(&[0.0; 2], &[1.0; 2], &[]).is_err());
        assert!(scored(&[0.0; 3], &[1.0; 3], &[]).is_err());
        assert!(scored(&[0.0; 3], &[1.0; 2], &[0]).is_err());
        assert!(scored(&[0.0; 3], &[], &[]).unwrap().is_empty());
        let shape = InputShape { vocabularies: vec![3], ..InputShape::default() };
        let network = Network::new(&ModelSpec::Logistic {}, shape).unwrap();
        let scored = |ids: &[u32]| score(&network, &[0.0; 3], &Rows { ids, ..Rows::default() }, &Device::Cpu);
        assert_eq!(scored(&[0, 2]).unwrap(), [0.5, 0.5]);
        assert!(matches!(scored(&[0, 3]), Err(ModelError::Id { row: 1, column: 0, vocabulary: 3 })));
    }
}
