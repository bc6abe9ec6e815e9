//! The way forward and the way back through a network's nodes.

use std::mem::take;

use pulp::Arch;

use super::{Mode, NEGATIVE_BYTES, Network};
use crate::model::{
    Batch, Workspace,
    graph::{Level, LstmSlots, Node, Slot},
    layers::{InputGradients, LstmStates},
    vectors::dot,
    workspace::Buffers,
};
use crate::schema::Target;

impl Network {
    /// Fills the values of all slots.
    pub(super) fn run_forward(&self, batch: &Batch, mode: Mode, workspace: &mut Workspace) {
        self.shape_batch(batch, mode, workspace);
        let counts = [Level::Row, Level::Step, Level::Candidate].map(|level| workspace.count(level));
        let rows = counts[Level::Row as usize];
        let mut draws = batch.draws.get(rows * self.graph.negatives * NEGATIVE_BYTES..).unwrap_or_default();
        let Workspace { slots, ids, weights, recurrence, attention, .. } = workspace;
        let parameters = weights.parameters.as_slice();
        slots.resize_with(self.slots.len(), Buffers::default);
        for (shape, buffers) in self.slots.iter().zip(&mut *slots) {
            if shape.overwritten && buffers.values.is_empty() {
                buffers.values = take(&mut buffers.gradients);
            }
            buffers.values.resize(counts[shape.level as usize] * shape.width, 0.0);
        }
        for (node, [weight, _]) in self.graph.nodes.iter().zip(&weights.nodes) {
            let output = node.output();
            let mut values = take(&mut slots[output.0].values);
            if !node.overwrites() {
                values.fill(0.0);
            }
            let of = |slot: &Slot| slots[slot.0].values.as_slice();
            match node {
                Node::Numbers { .. } => values.copy_from_slice(batch.rows.numbers),
                Node::StepNumbers { .. } => values.copy_from_slice(batch.rows.step_numbers),
                Node::Embedding { ids: source, table, .. } => {
                    table.forward(parameters, &ids[*source], &mut values)
                }
                Node::Concat { inputs, .. } => {
                    let width = self.slots[output.0].width;
                    let mut first = 0;
                    for input in inputs {
                        let own = self.slots[input.0].width;
                        let rows = values.chunks_exact_mut(width).zip(of(input).chunks_exact(own));
                        rows.for_each(|(to, from)| to[first..first + own].copy_from_slice(from));
                        first += own;
                    }
                }
                Node::Sum { inputs, .. } => {
                    let (first, others) = inputs.split_first().expect("a sum of something");
                    values.copy_from_slice(of(first));
                    others.iter().for_each(|input| add(of(input), &mut values));
                }
                Node::Linear { input, layer, .. } => {
                    layer.forward(parameters, of(input), &mut values, weight)
                }
                Node::Pool { input, pooling, .. } => pooling.forward(
                    batch.rows.step_starts,
                    self.slots[output.0].width,
                    of(input),
                    &mut values,
                ),
                Node::Dropout { input, .. } if mode == Mode::Score => values.copy_from_slice(of(input)),
                Node::Dropout { input, layer, .. } => {
                    let (own, rest) = draws.split_at(values.len());
                    layer.add(of(input), own, &mut values);
                    draws = rest;
                }
                Node::Factors { history, ratings, layer, .. } => layer.forward(
                    parameters,
                    batch.rows.step_starts,
                    &ids[*history],
                    ratings.as_ref().map(of),
                    &mut values,
                ),
                Node::Dot { rows, candidates, biases, .. } => {
                    let width = self.slots[rows.0].width;
                    // While a ranking is scored every row has the same candidates.
                    let (own, each) = match (mode, self.shape.target) {
                        (Mode::Score, Target::Item(items)) => (0, items),
                        _ => (1 + self.graph.negatives, 1 + self.graph.negatives),
                    };
                    let (candidates, biases) = (of(candidates), of(biases));
                    values.clear();
                    for (at, row) in of(rows).chunks_exact(width).enumerate() {
                        let biases = biases[at * own..][..each].iter();
                        let items = candidates[at * own * width..][..each * width].chunks_exact(width);
                        values.extend(items.zip(biases).map(|(item, bias)| dot::<_, f32>(row, item) + bias));
                    }
                }
                Node::Lstm { input, layer, states, .. } => {
                    let entries = take(&mut slots[input.0].values);
                    let (starts, states) = (batch.rows.step_starts, lstm_states(slots, states));
                    layer.forward((parameters, weight), starts, &entries, states, &mut values, recurrence);
                    slots[input.0].values = entries;
                }
                Node::Unfold { input, layer, .. } => {
                    layer.forward(batch.rows.step_starts, self.slots[input.0].width, of(input), &mut values)
                }
                Node::LayerNorm { input, layer, normal, .. } => {
                    let mut normal_values = take(&mut slots[normal.0].values);
                    let input = &slots[input.0].values;
                    layer.forward(parameters, input, &mut normal_values, &mut values);
                    slots[normal.0].values = normal_values;
                }
                Node::Attention { input, layer, .. } => {
                    layer.forward(batch.rows.step_starts, of(input), &mut values, attention)
                }
            }
            slots[output.0].values = values;
        }
    }

    /// Fills the gradients of all learned slots, given those of the output and anything elsewhere.
    pub(super) fn run_backward(&self, batch: &Batch, workspace: &mut Workspace) {
        let rows = workspace.count(Level::Row);
        let Workspace { slots, weights, recurrence, attention, line, fresh, .. } = workspace;
        let parameters = weights.parameters.as_slice();
        // The slots whose gradients nothing has been written to: whoever is the first writes over what they hold.
        fresh.clear();
        fresh.resize(slots.len(), true);
        fresh[self.graph.output.0] = false;
        let mut draws = &batch.draws[rows * self.graph.negatives * NEGATIVE_BYTES..];
        for (node, [_, weight]) in self.graph.nodes.iter().zip(&weights.nodes).rev() {
            let output = node.output();
            let shape = self.slots[output.0];
            if !shape.learned {
                continue;
            }
            zero_if_fresh(slots, fresh, output);
            let mut from = take(&mut slots[output.0].gradients);
            let learned = |slot: &&Slot| self.slots[slot.0].learned;
            match node {
                Node::Numbers { .. }
                | Node::StepNumbers { .. }
                | Node::Embedding { .. }
                | Node::Factors { .. } => {}
                Node::Concat { inputs, .. } => {
                    let mut first = 0;
                    for input in inputs {
                        let own = self.slots[input.0].width;
                        if learned(&input) {
                            zero_if_fresh(slots, fresh, *input);
                            let to = slots[input.0].gradients.chunks_exact_mut(own);
                            let rows = to.zip(from.chunks_exact(shape.width));
                            rows.for_each(|(to, from)| add(&from[first..first + own], to));
                        }
                        first += own;
                    }
                }
                Node::Sum { inputs, .. } => {
                    for input in inputs.iter().filter(learned) {
                        let to = &mut slots[input.0].gradients;
                        if take(&mut fresh[input.0]) { to.copy_from_slice(&from) } else { add(&from, to) }
                    }
                }
                Node::Linear { input, layer, .. } => {
                    layer.activation.backward(&slots[output.0].values, &mut from);
                    if learned(&input) {
                        let (to, fresh) = (&mut slots[input.0].gradients, take(&mut fresh[input.0]));
                        layer.backward(parameters, &from, to, fresh, weight);
                    }
                }
                Node::Pool { input, pooling, .. } => {
                    zero_if_fresh(slots, fresh, *input);
                    let Buffers { values, gradients } = &mut slots[input.0];
                    pooling.backward(batch.rows.step_starts, shape.width, values, &from, gradients);
                }
                Node::Dropout { input, layer, .. } => {
                    zero_if_fresh(slots, fresh, *input);
                    let (rest, own) = draws.split_at(draws.len() - from.len());
                    layer.add(&from, own, &mut slots[input.0].gradients);
                    draws = rest;
                }
                Node::Dot { rows, candidates, biases, .. } => {
                    let width = self.slots[rows.0].width;
                    let own = 1 + self.graph.negatives;
                    [rows, candidates, biases]
                        .into_iter()
                        .for_each(|slot| zero_if_fresh(slots, fresh, *slot));
                    add(&from, &mut slots[biases.0].gradients);
                    for (at, (row, &gradient)) in (0..).map(|at| at / own).zip(&from).enumerate() {
                        let (user, item) = (row * width..(row + 1) * width, at * width..(at + 1) * width);
                        if self.slots[rows.0].learned {
                            for (to, item) in user.clone().zip(item.clone()) {
                                slots[rows.0].gradients[to] += gradient * slots[candidates.0].values[item];
                            }
                        }
                        for (user, to) in user.zip(item) {
                            slots[candidates.0].gradients[to] += gradient * slots[rows.0].values[user];
                        }
                    }
                }
                Node::Lstm { input, layer, states, .. } => {
                    let mut entries = take(&mut slots[input.0].gradients);
                    let fresh = layer.passes_on && take(&mut fresh[input.0]);
                    let (starts, of_states) = (batch.rows.step_starts, lstm_states(slots, states));
                    let to = InputGradients { entries: &mut entries, fresh };
                    layer.backward(weight, starts, of_states, &from, to, recurrence);
                    slots[input.0].gradients = entries;
                    let Buffers { values, gradients } = &mut slots[states.gates.0];
                    *gradients = take(values);
                }
                Node::Unfold { input, layer, .. } => {
                    zero_if_fresh(slots, fresh, *input);
                    let (width, to) = (self.slots[input.0].width, &mut slots[input.0].gradients);
                    layer.backward(batch.rows.step_starts, width, &from, to);
                }
                Node::LayerNorm { input, layer, normal, .. } => {
                    if learned(&input) {
                        zero_if_fresh(slots, fresh, *input);
                        let mut to = take(&mut slots[input.0].gradients);
                        let values = [input, normal].map(|slot| slots[slot.0].values.as_slice());
                        layer.backward(parameters, [values[0], values[1], &from], &mut to, line);
                        slots[input.0].gradients = to;
                    }
                }
                Node::Attention { input, layer, .. } => {
                    assert!(take(&mut fresh[input.0]), "queries, keys and values of one attention alone");
                    let Buffers { values, gradients } = &mut slots[input.0];
                    layer.backward(batch.rows.step_starts, values, &from, gradients, attention);
                }
            }
            slots[output.0].gradients = from;
        }
    }
}

/// What an LSTM layer keeps.
fn lstm_states<'a>(slots: &'a mut [Buffers], of: &LstmSlots) -> LstmStates<'a> {
    let places = [of.gates, of.previous, of.cells].map(|slot| slot.0);
    let [gates, previous, cells] = slots.get_disjoint_mut(places).expect("three slots of the network");
    LstmStates { gates: &mut gates.values, previous: &mut previous.values, cells: &mut cells.values }
}

/// Zeroes a slot's gradients, which may be of no entry, if nothing has been written to them.
fn zero_if_fresh(slots: &mut [Buffers], fresh: &mut [bool], slot: Slot) {
    if take(&mut fresh[slot.0]) {
        slots[slot.0].gradients.fill(0.0);
    }
}

/// `to += from`.
pub(super) fn add(from: &[f32], to: &mut [f32]) {
    let entries = to.iter_mut().zip(from);
    Arch::new().dispatch(
        #[inline(always)]
        move || entries.for_each(|(to, from)| *to += from),
    );
}
