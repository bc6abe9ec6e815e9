//! Long short-term memory layer (Hochreiter & Schmidhuber 1997; Gers et al. 2000 for the forget gate), all rows of a batch
//! one step further at a time.

use std::cmp::Reverse;

use super::squash::{sigmoid, tanh};
use crate::model::aligned::Aligned;
use crate::model::product::{PackedRight, Start, View, packed_product};
use crate::model::vectors::vectorised;

/// `W x + b + U h'` for the step's input `x` and the hidden state `h'` of the step before; `i, f, o = sigmoid`, `g = tanh` of
/// its quarters; `c = f c' + i g`; `h = o tanh(c)`. States before the first step are zero.
#[derive(Clone, Debug)]
pub(in crate::model) struct Lstm {
    pub inputs: usize,
    pub hidden: usize,
    /// Offset in the flat parameters of `W`, `[4 x hidden, inputs]`, then `b`, `[4 x hidden]`, then `U`, `[4 x hidden, hidden]`.
    pub offset: usize,
    /// Whether a gradient goes on to the inputs.
    pub passes_on: bool,
}

/// The steps' matrices of one layer, values only: [`LstmSlots`](crate::model::graph::LstmSlots).
pub(in crate::model) struct LstmStates<'a> {
    pub gates: &'a mut [f32],
    pub previous: &'a mut [f32],
    pub cells: &'a mut [f32],
}

/// The gradient by a layer's inputs, `[steps, inputs]`.
pub(in crate::model) struct InputGradients<'a> {
    /// Empty if none goes on.
    pub entries: &'a mut [f32],
    /// Whether it is written over what is there and not added to it.
    pub fresh: bool,
}

/// Buffers of a recurrence, kept between batches.
#[derive(Clone, Default)]
pub(in crate::model) struct Recurrence {
    /// Rows by falling number of steps, so that those with a step at a time come first.
    order: Vec<u32>,
    /// `[rows that have the step, 4 x hidden]`, in this order.
    gates: Aligned<f32>,
    /// `[rows, inputs + hidden]`, in this order: the step's inputs and the hidden state before, or the gradient by both.
    joined: Aligned<f32>,
    /// `[rows, hidden]`, in this order.
    cells: Aligned<f32>,
    /// The state before the first step.
    zeros: Aligned<f32>,
}

impl Recurrence {
    /// Orders the rows, with zeros in all buffers; the number of steps of the longest.
    fn schedule(&mut self, starts: &[u32], [joined, hidden]: [usize; 2]) -> usize {
        let rows = starts.len().saturating_sub(1);
        self.order.clear();
        self.order.extend(0..rows as u32);
        self.order.sort_unstable_by_key(|&row| (Reverse(steps_of(starts, row)), row));
        for (buffer, entries) in
            [(&mut self.joined, rows * joined), (&mut self.cells, rows * hidden), (&mut self.zeros, hidden)]
        {
            buffer.resize(entries).fill(0.0);
        }
        self.order.first().map_or(0, |&row| steps_of(starts, row))
    }

    /// How many rows, first in the order, have a step `step`.
    fn active(&self, starts: &[u32], step: usize) -> usize {
        self.order.partition_point(|&row| steps_of(starts, row) > step)
    }
}

fn steps_of(starts: &[u32], row: u32) -> usize {
    (starts[row as usize + 1] - starts[row as usize]) as usize
}

impl Lstm {
    /// Of `W`, `b` and `U` in the flat parameters.
    pub fn offsets(&self) -> [usize; 3] {
        let bias = self.offset + 4 * self.hidden * self.inputs;
        [self.offset, bias, bias + 4 * self.hidden]
    }

    /// `W`, `b` and `U`.
    pub fn tensors<'a, T>(&self, parameters: &'a [T]) -> [&'a [T]; 3] {
        let [weight, bias, recurrent] = self.offsets();
        let last = recurrent + 4 * self.hidden * self.hidden;
        [&parameters[weight..bias], &parameters[bias..recurrent], &parameters[recurrent..last]]
    }

    /// Packs the weights for [`forward`](Self::forward) and [`backward`](Self::backward).
    pub fn pack(&self, parameters: &[f32], [forward, backward]: &mut [PackedRight<f32>; 2]) {
        let Self { inputs, hidden, passes_on, .. } = *self;
        let [of_inputs, _, of_hidden] = self.tensors(parameters);
        let joined = inputs + hidden;
        let mut weight = vec![0.0; 4 * hidden * joined];
        for (gate, line) in weight.chunks_exact_mut(joined).enumerate() {
            line[..inputs].copy_from_slice(&of_inputs[gate * inputs..][..inputs]);
            line[inputs..].copy_from_slice(&of_hidden[gate * hidden..][..hidden]);
        }
        forward.pack([joined, 4 * hidden], View::transpose(&weight, joined));
        if passes_on {
            backward.pack([4 * hidden, joined], View::rows(&weight, joined));
        } else {
            backward.pack([4 * hidden, hidden], View::rows(of_hidden, hidden));
        }
    }

    /// Fills the hidden states, `[steps, hidden]`, and all other states from the inputs, `[steps, inputs]`; row `r` has the
    /// steps `starts[r] .. starts[r + 1]`. With the flat parameters comes the weight packed for the way forward.
    pub fn forward(
        &self,
        (parameters, weight): (&[f32], &PackedRight<f32>),
        starts: &[u32],
        input: &[f32],
        states: LstmStates<'_>,
        output: &mut [f32],
        buffers: &mut Recurrence,
    ) {
        let Self { inputs, hidden: width, .. } = *self;
        let LstmStates { gates, previous, cells } = states;
        let [_, bias, _] = self.tensors(parameters);
        let joined_width = inputs + width;
        let longest = buffers.schedule(starts, [joined_width, width]);
        for step in 0..longest {
            let active = buffers.active(starts, step);
            let Recurrence { order, gates: sums, joined, zeros, .. } = &mut *buffers;
            let places = || order[..active].iter().map(|&row| (starts[row as usize] as usize + step, row));
            let joined = &mut joined[..active * joined_width];
            for ((at, _), line) in places().zip(joined.chunks_exact_mut(joined_width)) {
                line[..inputs].copy_from_slice(&input[at * inputs..][..inputs]);
            }
            let sums = sums.resize(active * 4 * width);
            packed_product(active, View::rows(joined, joined_width), weight, Start::Row(bias), sums);
            vectorised(
                #[inline(always)]
                || {
                    let of_rows = sums.chunks_exact(4 * width).zip(joined.chunks_exact_mut(joined_width));
                    for ((at, row), (sums, line)) in places().zip(of_rows) {
                        let hidden = &mut line[inputs..];
                        let (before, cells) = cells.split_at_mut(at * width);
                        let before = if step > 0 { &before[(at - 1) * width..] } else { &zeros[..] };
                        let gates = &mut gates[at * 4 * width..][..4 * width];
                        advance(sums, before, gates, cells, hidden);
                        output[at * width..][..width].copy_from_slice(hidden);
                        if step == 0 {
                            previous[at * width..][..width].fill(0.0);
                        }
                        if at + 1 < starts[row as usize + 1] as usize {
                            previous[(at + 1) * width..][..width].copy_from_slice(hidden);
                        }
                    }
                },
            );
        }
    }

    /// Writes over the gates, `[steps, 4 x hidden]`, the gradient by them before their activation, from that by the hidden
    /// states, `[steps, hidden]`, and the states that the forward left; then that by the inputs, if it goes on. `weight` is
    /// packed for the way back.
    pub fn backward(
        &self,
        weight: &PackedRight<f32>,
        starts: &[u32],
        states: LstmStates<'_>,
        output_gradients: &[f32],
        input_gradients: InputGradients<'_>,
        buffers: &mut Recurrence,
    ) {
        let width = self.hidden;
        let inputs = if self.passes_on { self.inputs } else { 0 };
        let LstmStates { gates, cells, .. } = states;
        let joined_width = inputs + width;
        let longest = buffers.schedule(starts, [joined_width, width]);
        for step in (0..longest).rev() {
            let active = buffers.active(starts, step);
            let Recurrence { order, gates: sums, joined, cells: of_cells, zeros } = &mut *buffers;
            let places = || order[..active].iter().map(|&row| starts[row as usize] as usize + step);
            let joined = &mut joined[..active * joined_width];
            let sums = sums.resize(active * 4 * width);
            vectorised(
                #[inline(always)]
                || {
                    let of_rows = joined.chunks_exact_mut(joined_width).zip(of_cells.chunks_exact_mut(width));
                    let of_rows = of_rows.zip(sums.chunks_exact_mut(4 * width));
                    for (at, ((line, of_cell), sums)) in places().zip(of_rows) {
                        let of_hidden = &mut line[inputs..];
                        let before = if step > 0 { &cells[(at - 1) * width..][..width] } else { &zeros[..] };
                        for (to, from) in of_hidden.iter_mut().zip(&output_gradients[at * width..]) {
                            *to += from;
                        }
                        let gates = &mut gates[at * 4 * width..][..4 * width];
                        let cell = &cells[at * width..][..width];
                        retreat(gates, [before, cell], of_hidden, of_cell, sums);
                        gates.copy_from_slice(sums);
                    }
                },
            );
            if step > 0 || inputs > 0 {
                packed_product(active, View::rows(sums, 4 * width), weight, Start::Zero, joined);
            }
            if inputs > 0 {
                for (at, line) in places().zip(joined.chunks_exact(joined_width)) {
                    let to = &mut input_gradients.entries[at * inputs..][..inputs];
                    if input_gradients.fresh {
                        to.copy_from_slice(&line[..inputs]);
                    } else {
                        to.iter_mut().zip(line).for_each(|(to, from)| *to += from);
                    }
                }
            }
        }
    }
}

/// One row's step: its gates' values, and its cell and its hidden state, from the gates' sums and the cell before. Slices
/// by themselves and loops with few of them, so that each vectorises.
#[inline(always)]
fn advance(sums: &[f32], before: &[f32], gates: &mut [f32], cell: &mut [f32], hidden: &mut [f32]) {
    let width = hidden.len();
    let (before, cell) = (&before[..width], &mut cell[..width]);
    for (to, &sum) in gates[..2 * width].iter_mut().zip(&sums[..2 * width]) {
        *to = sigmoid(sum);
    }
    for (to, &sum) in gates[2 * width..3 * width].iter_mut().zip(&sums[2 * width..3 * width]) {
        *to = tanh(sum);
    }
    for (to, &sum) in gates[3 * width..4 * width].iter_mut().zip(&sums[3 * width..4 * width]) {
        *to = sigmoid(sum);
    }
    let [i, f, g, o] = quarters(gates, width);
    for at in 0..width {
        cell[at] = f[at] * before[at] + i[at] * g[at];
    }
    for at in 0..width {
        hidden[at] = o[at] * tanh(cell[at]);
    }
}

/// One row's step back: the gradient by the gates' sums, and by the cell before in place of that by the cell.
#[inline(always)]
fn retreat(
    gates: &[f32],
    [before, cell]: [&[f32]; 2],
    of_hidden: &[f32],
    of_cell: &mut [f32],
    sums: &mut [f32],
) {
    let width = of_cell.len();
    let (before, cell, of_hidden) = (&before[..width], &cell[..width], &of_hidden[..width]);
    let [i, f, g, o] = quarters(gates, width);
    let (of_i, rest) = sums.split_at_mut(width);
    let (of_f, rest) = rest.split_at_mut(width);
    let (of_g, of_o) = rest.split_at_mut(width);
    let of_o = &mut of_o[..width];
    for at in 0..width {
        let squashed = tanh(cell[at]);
        of_cell[at] += of_hidden[at] * o[at] * (1.0 - squashed * squashed);
        of_o[at] = of_hidden[at] * squashed * o[at] * (1.0 - o[at]);
    }
    for at in 0..width {
        of_i[at] = of_cell[at] * g[at] * i[at] * (1.0 - i[at]);
        of_g[at] = of_cell[at] * i[at] * (1.0 - g[at] * g[at]);
    }
    for at in 0..width {
        of_f[at] = of_cell[at] * before[at] * f[at] * (1.0 - f[at]);
    }
    for at in 0..width {
        of_cell[at] *= f[at];
    }
}

/// The gates of one row's step: input, forget, cell, output.
#[inline(always)]
fn quarters(gates: &[f32], width: usize) -> [&[f32]; 4] {
    let (i, rest) = gates.split_at(width);
    let (f, rest) = rest.split_at(width);
    let (g, o) = rest.split_at(width);
    [i, f, g, &o[..width]]
}
