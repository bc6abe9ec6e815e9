//! The network's nodes on candle tensors, on any device: for predictions, and for learning where there is an
//! accelerator.
//!
//! Layers are made of operations whose gradients candle has: its fused normalisation and softmax lose them without a word.

use candle_core::{D, DType, Device, Tensor, Var};

use super::{
    Network, Rows,
    graph::{Node, Slot},
    layers::{Activation, Attention, EPSILON, LEAK, Pooling},
};
use crate::schema::Target;

/// Some rows on their way through the nodes.
pub(super) struct Pass<'a> {
    pub network: &'a Network,
    pub parameters: &'a [f32],
    /// On the device, with their offsets in the flat parameters; see [`load`].
    pub tensors: &'a [(usize, Tensor)],
    pub rows: &'a Rows<'a>,
    /// How many.
    pub count: usize,
    /// By source of ids.
    pub ids: &'a [Vec<u32>],
    pub device: &'a Device,
    /// What a model does only while it learns.
    pub learning: Option<Learning<'a>>,
}

/// The random and the observed side of learning.
pub(super) struct Learning<'a> {
    /// Bytes of dropout, node after node.
    pub dropout: &'a [u8],
    /// By slot: zeros that are added to what a tap's gradients are by.
    pub taps: &'a [Option<Var>],
}

pub(super) type TensorResult = Result<Tensor, candle_core::Error>;

/// The named tensors of flat parameters on a device, with their offsets.
pub(super) fn load(
    network: &Network,
    parameters: &[f32],
    device: &Device,
) -> Result<Vec<(usize, Tensor)>, candle_core::Error> {
    let tensors = network.tensors().iter().map(|tensor| {
        let entries = &parameters[tensor.offset..][..tensor.entries()];
        Ok((tensor.offset, Tensor::from_slice(entries, tensor.shape.as_slice(), device)?))
    });
    tensors.collect()
}

impl Pass<'_> {
    /// The values of all slots: those that only a layer's own backward needs stay empty.
    pub fn run(&self) -> Result<Vec<Option<Tensor>>, candle_core::Error> {
        let graph = self.network.graph();
        let mut slots: Vec<Option<Tensor>> = vec![None; graph.slots.len()];
        let mut dropout = self.learning.as_ref().map_or([].as_slice(), |learning| learning.dropout);
        for node in &graph.nodes {
            let value = match node {
                Node::Dropout { input, layer, .. } if self.learning.is_some() => {
                    let input = slots[input.0].as_ref().expect("nodes in the order of their slots");
                    let (own, rest) = dropout.split_at(input.elem_count());
                    dropout = rest;
                    let factors = own.iter().map(|&draw| layer.factor(draw)).collect::<Vec<_>>();
                    input * Tensor::from_vec(factors, input.shape(), self.device)?
                }
                Node::LayerNorm { input, normal, .. } => {
                    let input = slots[input.0].as_ref().expect("nodes in the order of their slots");
                    slots[normal.0] = Some(normalised(input)?);
                    self.value(node, &slots)
                }
                _ => self.value(node, &slots),
            };
            slots[node.output().0] = Some(value?);
        }
        Ok(slots)
    }

    /// `value`, with the zeros of the slot's tap added if it has one.
    fn tapped(&self, slot: Slot, value: Tensor) -> TensorResult {
        match self.learning.as_ref().and_then(|learning| learning.taps[slot.0].as_ref()) {
            Some(zeros) => value + zeros.as_tensor(),
            None => Ok(value),
        }
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
                let vectors = self.tensor(table.offset).index_select(&self.ids(*ids)?, 0)?;
                self.tapped(node.output(), vectors)
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
                value = self.tapped(node.output(), value)?;
                match layer.activation {
                    Activation::None => Ok(value),
                    Activation::Relu => value.relu(),
                    Activation::LeakyRelu => {
                        let above = value.relu()?;
                        (&above * f64::from(1.0 - LEAK))? + (value * f64::from(LEAK))?
                    }
                    Activation::Tanh => value.tanh(),
                    Activation::Sigmoid => ((value * 0.5)?.tanh()? * 0.5)? + 0.5,
                }
            }
            Node::Pool { input, pooling: Pooling::Max, .. } => self.largest(of(input)),
            Node::Pool { input, pooling, .. } => self.pool(of(input), *pooling, width),
            Node::Dropout { input, .. } => Ok(of(input).clone()),
            Node::Factors { history, ratings, layer, .. } => {
                let ratings = ratings.map(|slot| of(&slot).flatten_all()?.to_vec1()).transpose()?;
                let mut factors = vec![0.0; self.count * width];
                let ids = &self.ids[*history];
                layer.forward(self.parameters, self.rows.step_starts, ids, ratings.as_deref(), &mut factors);
                Tensor::from_vec(factors, (self.count, width), self.device)
            }
            // Each row has candidates of its own, but while a ranking is scored.
            Node::Dot { rows, candidates, biases, .. }
                if self.learning.is_some() || !matches!(self.network.target(), Target::Item(_)) =>
            {
                let (rows, candidates) = (of(rows), of(candidates));
                let each = (candidates.dim(0)? / self.count.max(1)) as u32;
                let owner: Vec<u32> = (0..candidates.dim(0)? as u32).map(|at| at / each).collect();
                let owner = Tensor::from_slice(&owner, owner.len(), self.device)?;
                let products = (rows.index_select(&owner, 0)? * candidates)?.sum_keepdim(D::Minus1)?;
                products + of(biases)
            }
            Node::Dot { rows, candidates, biases, .. } => {
                of(rows).matmul(&of(candidates).t()?)?.broadcast_add(&of(biases).t()?)
            }
            Node::Lstm { input, layer, states, .. } => {
                let [weight, bias, recurrent] = layer.offsets().map(|offset| self.tensor(offset));
                let sums = of(input).matmul(&weight.t()?)?.broadcast_add(bias)?;
                self.lstm(&self.tapped(states.gates, sums)?, recurrent)
            }
            Node::Unfold { input, layer, .. } => self.unfold(of(input), layer.kernel),
            Node::LayerNorm { normal, layer, .. } => {
                let [gain, bias] = [0, layer.width].map(|after| self.tensor(layer.offset + after));
                self.tapped(node.output(), of(normal).broadcast_mul(gain)?.broadcast_add(bias)?)
            }
            Node::Attention { input, layer, .. } => self.attention(of(input), layer),
        }
    }

    fn ids(&self, source: usize) -> TensorResult {
        Tensor::from_slice(&self.ids[source], self.ids[source].len(), self.device)
    }

    /// The hidden states of an LSTM, from the inputs' part of its gates and its recurrent weight; all rows that have a
    /// step of the same place go on together.
    fn lstm(&self, gates: &Tensor, recurrent: &Tensor) -> TensorResult {
        let weight = recurrent.t()?;
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

    /// Each row's steps by themselves, all heads at once.
    fn attention(&self, input: &Tensor, layer: &Attention) -> TensorResult {
        let Attention { width, heads, causal } = *layer;
        let attend = |first: usize, steps: usize| -> TensorResult {
            let parts = input.narrow(0, first, steps)?.reshape((steps, 3, heads, width / heads))?;
            let part = |which: usize| parts.narrow(1, which, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
            let scores = (part(0)?.matmul(&part(1)?.t()?)? * f64::from(layer.scale()))?;
            let hidden = |at: usize| causal && at % steps > at / steps;
            let mask = (0..steps * steps).map(|at| if hidden(at) { f32::NEG_INFINITY } else { 0.0 });
            let mask = Tensor::from_vec(mask.collect::<Vec<_>>(), (steps, steps), self.device)?;
            let scores = scores.broadcast_add(&mask)?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
            let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
            weights.matmul(&part(2)?)?.transpose(0, 1)?.reshape((steps, width))
        };
        let spans = self.rows.step_starts.windows(2).filter(|span| span[0] < span[1]);
        let parts = spans.map(|span| attend(span[0] as usize, (span[1] - span[0]) as usize));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        if parts.is_empty() {
            return Tensor::zeros((0, width), DType::F32, self.device);
        }
        Tensor::cat(&parts, 0)
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

/// Each row less its mean, over its standard deviation.
fn normalised(input: &Tensor) -> TensorResult {
    let centered = input.broadcast_sub(&input.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered.broadcast_div(&(variance + f64::from(EPSILON))?.sqrt()?)
}
