//! The slow truth for tests: the loss of one customer in f64 by plain loops, its gradient by central differences of
//! that loss, and batches with a seed.
//!
//! Nothing here shares code with the layers: a wrong backward shows.

use super::{
    ActivationName, Batch, ModelSpec, Network, Rows,
    graph::{IdSource, Level, Node},
    layers::{Activation, LEAK, Pooling},
};
use crate::schema::{DataShape, InputShape, SequenceShape, Target};

/// Every kind of model, with numbers, with categories, with sequences, with several of them.
pub(crate) fn zoo() -> Vec<(ModelSpec, DataShape)> {
    let active =
        |hidden: &[u32], activation| ModelSpec::Mlp { hidden: hidden.into(), dropout: 0.0, activation };
    let mlp = |hidden: &[u32]| active(hidden, ActivationName::Relu);
    let wide_and_deep = |hidden: &[u32]| ModelSpec::WideAndDeep { hidden: hidden.into(), embedding_dim: 3 };
    let mixed = InputShape { numbers: 4, vocabularies: vec![3, 6], sequence: None };
    let ids_only = InputShape { vocabularies: vec![5, 2], ..InputShape::default() };
    let steps = SequenceShape { length: 6, numbers: 2, vocabularies: vec![7] };
    let sequence = InputShape { sequence: Some(steps.clone()), ..InputShape::default() };
    let everything = InputShape { sequence: Some(steps), ..mixed.clone() };
    let step_numbers = InputShape {
        sequence: Some(SequenceShape { length: 4, numbers: 3, vocabularies: vec![] }),
        ..InputShape::default()
    };
    let lstm = |hidden: &[u32], dropout| ModelSpec::Lstm {
        hidden: hidden.into(),
        dropout,
        embedding_dim: 2,
        negatives: 3,
    };
    let stepwise = |numbers, vocabularies: &[usize]| InputShape {
        sequence: Some(SequenceShape { length: 5, numbers, vocabularies: vocabularies.into() }),
        ..InputShape::default()
    };
    let (numeric_steps, id_steps) = (stepwise(3, &[]), stepwise(0, &[7, 4]));
    let transformer = |layers, width, heads, dropout| ModelSpec::Transformer {
        layers,
        width,
        heads,
        feed_forward: 5,
        dropout,
        negatives: 3,
    };
    let cnn = |channels: &[u32], kernel, dropout| ModelSpec::Cnn {
        channels: channels.into(),
        kernel,
        dropout,
        embedding_dim: 2,
        negatives: 3,
    };
    let of = |inputs: &InputShape, target| DataShape { inputs: inputs.clone(), target };
    let history = |numbers| {
        let sequence = Some(SequenceShape { length: 6, numbers, vocabularies: vec![7] });
        InputShape { sequence, ..InputShape::default() }
    };
    let factorisation = |factors| ModelSpec::MatrixFactorisation { factors, negatives: 5, ridge: 0.5 };
    let binary = |inputs: &InputShape| of(inputs, Target::Binary);
    vec![
        (ModelSpec::Logistic {}, 5.into()),
        (mlp(&[7]), 4.into()),
        (mlp(&[19, 8, 1]), 33.into()),
        (ModelSpec::Logistic {}, binary(&mixed)),
        (ModelSpec::Logistic {}, binary(&ids_only)),
        (ModelSpec::Logistic {}, binary(&everything)),
        (mlp(&[6, 5]), binary(&mixed)),
        (mlp(&[1, 4]), binary(&ids_only)),
        (mlp(&[6]), binary(&sequence)),
        (
            ModelSpec::Mlp { hidden: vec![9, 7], dropout: 0.25, activation: ActivationName::Tanh },
            binary(&everything),
        ),
        (active(&[5, 4], ActivationName::LeakyRelu), binary(&mixed)),
        (active(&[5, 4], ActivationName::Sigmoid), binary(&mixed)),
        (wide_and_deep(&[9, 4]), binary(&mixed)),
        (wide_and_deep(&[6]), binary(&ids_only)),
        (wide_and_deep(&[5]), 4.into()),
        (wide_and_deep(&[5]), binary(&everything)),
        (ModelSpec::Logistic {}, of(&mixed, Target::Classes(3))),
        (mlp(&[6]), of(&mixed, Target::Classes(4))),
        (wide_and_deep(&[6]), of(&everything, Target::Classes(3))),
        (mlp(&[6]), of(&mixed, Target::Count)),
        (ModelSpec::Logistic {}, of(&mixed, Target::Number)),
        (factorisation(4), of(&history(0), Target::Item(7))),
        (factorisation(3), of(&InputShape { vocabularies: vec![7, 2], ..history(1) }, Target::Number)),
        (ModelSpec::TwoTower { hidden: vec![6], dim: 4, negatives: 3 }, of(&everything, Target::Item(9))),
        (lstm(&[3], 0.0), binary(&sequence)),
        (lstm(&[5, 3], 0.25), binary(&everything)),
        (lstm(&[4], 0.0), of(&step_numbers, Target::Number)),
        (lstm(&[3, 2], 0.0), of(&sequence, Target::Classes(3))),
        (lstm(&[4], 0.5), of(&step_numbers, Target::Count)),
        (lstm(&[4], 0.0), of(&everything, Target::Item(9))),
        (transformer(1, 4, 2, 0.0), binary(&everything)),
        (transformer(2, 6, 3, 0.0), of(&sequence, Target::Number)),
        (transformer(1, 4, 1, 0.25), of(&numeric_steps, Target::Classes(3))),
        (transformer(1, 6, 2, 0.0), of(&id_steps, Target::Count)),
        (transformer(1, 4, 2, 0.0), of(&id_steps, Target::Item(9))),
        (transformer(1, 4, 2, 0.25), of(&everything, Target::Item(9))),
        (cnn(&[4], 3, 0.0), binary(&sequence)),
        (cnn(&[5, 3], 3, 0.25), binary(&everything)),
        (cnn(&[4], 5, 0.0), of(&step_numbers, Target::Number)),
        (cnn(&[6], 1, 0.0), of(&sequence, Target::Classes(3))),
        (cnn(&[4], 3, 0.0), of(&everything, Target::Item(9))),
    ]
}

/// Loss and flat gradient of the mean loss over all rows of `batch` as one customer's, in f64, with the parameters as
/// given.
pub(crate) fn gradient(network: &Network, parameters: &[f64], batch: &OwnedBatch) -> (f64, Vec<f64>) {
    const STEP: f64 = 1e-6;
    let mut moved = parameters.to_vec();
    let still = forward(network, parameters, batch, None);
    let mut slope = |at: usize| {
        let mut loss_at = |value: f64| {
            moved[at] = value;
            loss(network, &moved, batch, Some(&still))
        };
        let difference = loss_at(parameters[at] + STEP) - loss_at(parameters[at] - STEP);
        moved[at] = parameters[at];
        difference / (2.0 * STEP)
    };
    let gradient = (0..parameters.len()).map(&mut slope).collect();
    (loss(network, parameters, batch, None), gradient)
}

/// The mean loss over all rows of `batch` as one customer's; what no gradient goes through is taken from `still`.
fn loss(network: &Network, parameters: &[f64], batch: &OwnedBatch, still: Option<&[Matrix]>) -> f64 {
    let graph = network.graph();
    let rows = batch.labels.len();
    let slots = forward(network, parameters, batch, still);
    let outputs = &slots[graph.output.0];
    let each = outputs.len() / rows;
    let of_row = |(row, &label): (usize, &f32)| {
        let outputs: Vec<f64> = outputs[row * each..(row + 1) * each].concat();
        let label64 = f64::from(label);
        let cross_entropy = |right: usize| {
            let total: f64 = outputs.iter().map(|output| output.exp()).sum();
            total.ln() - outputs[right]
        };
        match network.target() {
            Target::Binary => {
                let z = outputs[0];
                z.max(0.0) - z * label64 + (-z.abs()).exp().ln_1p()
            }
            Target::Count => outputs[0].exp() - label64 * outputs[0],
            Target::Number => (outputs[0] - label64).powi(2) / 2.0,
            Target::Classes(_) => cross_entropy(label as usize),
            Target::Item(_) => cross_entropy(0),
        }
    };
    batch.labels.iter().enumerate().map(of_row).sum::<f64>() / rows as f64
}

type Matrix = Vec<Vec<f64>>;

/// Every slot's rows.
fn forward(
    network: &Network,
    parameters: &[f64],
    batch: &OwnedBatch,
    still: Option<&[Matrix]>,
) -> Vec<Matrix> {
    let graph = network.graph();
    let inputs = network.inputs();
    let rows = batch.labels.len();
    let none = SequenceShape::default();
    let step_shape = inputs.sequence.as_ref().unwrap_or(&none);
    let spans: Vec<_> = batch.step_starts.windows(2).map(|s| s[0] as usize..s[1] as usize).collect();
    let steps = spans.last().map_or(0, |span| span.end);
    let widen = |values: &[f32], width: usize, count: usize| -> Matrix {
        (0..count)
            .map(|r| values[r * width..(r + 1) * width].iter().map(|&x| f64::from(x)).collect())
            .collect()
    };
    let negatives = graph.negatives;
    let mut draws = batch.draws[rows * negatives * 4..].iter();
    let ids = |source: IdSource| -> Vec<usize> {
        let column = |ids: &[u32], columns: usize, at: usize| -> Vec<usize> {
            ids.iter().skip(at).step_by(columns).map(|&id| id as usize).collect()
        };
        match source {
            IdSource::Column(at) => column(&batch.ids, inputs.columns(), at),
            IdSource::StepColumn(at) => column(&batch.step_ids, step_shape.columns(), at),
            IdSource::Position => spans.iter().flat_map(|span| 0..span.len()).collect(),
            IdSource::Candidate if !matches!(network.target(), Target::Item(_)) => {
                column(&batch.ids, inputs.columns(), 0)
            }
            IdSource::Candidate => {
                let items = network.target().outputs() as u64;
                let mut draws = batch.draws.chunks_exact(4);
                let mut candidates = Vec::new();
                for &label in &batch.labels {
                    candidates.push(label as usize);
                    for _ in 0..negatives {
                        let draw = u32::from_le_bytes(draws.next().unwrap().try_into().unwrap());
                        let other = (u64::from(draw) * (items - 1) / (1 << 32)) as usize;
                        candidates.push(if other < label as usize { other } else { other + 1 });
                    }
                }
                candidates
            }
        }
    };
    let mut slots: Vec<Matrix> = vec![Vec::new(); graph.slots.len()];
    for node in &graph.nodes {
        let value: Matrix = match node {
            Node::Numbers { .. } => widen(&batch.rows, inputs.numbers, rows),
            Node::StepNumbers { .. } => widen(&batch.step_numbers, step_shape.numbers, steps),
            Node::Embedding { ids: source, table, .. } => {
                let vector = |id: usize| parameters[table.offset + id * table.dim..][..table.dim].to_vec();
                ids(graph.ids[*source]).into_iter().map(vector).collect()
            }
            Node::Concat { inputs, .. } => {
                let rows = slots[inputs[0].0].len();
                (0..rows).map(|r| inputs.iter().flat_map(|s| slots[s.0][r].clone()).collect()).collect()
            }
            Node::Sum { inputs, .. } => inputs[1..].iter().fold(slots[inputs[0].0].clone(), |sum, slot| {
                let rows = sum.iter().zip(&slots[slot.0]);
                rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
            }),
            Node::Linear { input, layer, .. } => {
                let output = |row: &Vec<f64>| -> Vec<f64> {
                    let entry = |o: usize| {
                        let weight = &parameters[layer.offset + o * layer.inputs..][..layer.inputs];
                        let bias = layer.offset + layer.outputs * layer.inputs + o;
                        let bias = if layer.biased { parameters[bias] } else { 0.0 };
                        let z = bias + weight.iter().zip(row).map(|(w, x)| w * x).sum::<f64>();
                        match layer.activation {
                            Activation::None => z,
                            Activation::Relu => z.max(0.0),
                            Activation::LeakyRelu => z.max(0.0) + z.min(0.0) * f64::from(LEAK),
                            Activation::Tanh => z.tanh(),
                            Activation::Sigmoid => 1.0 / (1.0 + (-z).exp()),
                        }
                    };
                    (0..layer.outputs).map(entry).collect()
                };
                slots[input.0].iter().map(output).collect()
            }
            Node::Pool { input, pooling, output } => {
                let width = graph.slots[output.0].width;
                let pooled = |span: &std::ops::Range<usize>| {
                    let steps = &slots[input.0][span.clone()];
                    let counted = match pooling {
                        Pooling::Last => &steps[steps.len().saturating_sub(1)..],
                        Pooling::Mean | Pooling::Max => steps,
                    };
                    let entry = |at: usize| {
                        if *pooling == Pooling::Max {
                            return counted.iter().map(|step| step[at]).reduce(f64::max).unwrap_or(0.0);
                        }
                        counted.iter().map(|step| step[at]).sum::<f64>() / counted.len().max(1) as f64
                    };
                    (0..width).map(entry).collect()
                };
                spans.iter().map(pooled).collect()
            }
            Node::Dropout { input, layer, .. } => {
                let mut drop = |x: &f64| x * f64::from(layer.factor(*draws.next().unwrap()));
                slots[input.0].iter().map(|row| row.iter().map(&mut drop).collect()).collect()
            }
            Node::Factors { output, .. } if still.is_some() => still.unwrap()[output.0].clone(),
            Node::Factors { history, ratings, layer, .. } => {
                let (history, dim) = (ids(graph.ids[*history]), layer.items.dim);
                let factors = |span: &std::ops::Range<usize>| {
                    let mut system = vec![vec![0.0; dim + 1]; dim];
                    (0..dim).for_each(|at| system[at][at] = layer.ridge);
                    for step in span.clone() {
                        let vector = &parameters[layer.items.offset + history[step] * dim..][..dim];
                        let bias = parameters[layer.biases.offset + history[step]];
                        let wanted = ratings.map_or(1.0, |slot| slots[slot.0][step][0] - bias);
                        for (line, v) in system.iter_mut().zip(vector) {
                            line.iter_mut().zip(vector).for_each(|(entry, w)| *entry += v * w);
                            line[dim] += v * wanted;
                        }
                    }
                    eliminate(system)
                };
                spans.iter().map(factors).collect()
            }
            Node::Dot { rows: users, candidates, biases, .. } => {
                let score = |(at, item): (usize, &Vec<f64>)| {
                    let user = &slots[users.0][at / (1 + negatives)];
                    vec![slots[biases.0][at][0] + user.iter().zip(item).map(|(u, v)| u * v).sum::<f64>()]
                };
                slots[candidates.0].iter().enumerate().map(score).collect()
            }
            Node::Lstm { input, layer, .. } => {
                let width = layer.hidden;
                let [of_inputs, bias, of_hidden] = layer.tensors(parameters);
                let dot =
                    |weight: &[f64], row: &[f64]| weight.iter().zip(row).map(|(w, x)| w * x).sum::<f64>();
                let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
                let mut states_of_steps = Matrix::new();
                for span in &spans {
                    let (mut hidden, mut cell) = (vec![0.0; width], vec![0.0; width]);
                    for step in span.clone() {
                        let gate = |at: usize| {
                            let own =
                                dot(&of_inputs[at * layer.inputs..][..layer.inputs], &slots[input.0][step]);
                            bias[at] + own + dot(&of_hidden[at * width..][..width], &hidden)
                        };
                        let gates: Vec<f64> = (0..4 * width).map(gate).collect();
                        for at in 0..width {
                            let [i, f, g, o] = [0, 1, 2, 3].map(|quarter| gates[quarter * width + at]);
                            cell[at] = sigmoid(f) * cell[at] + sigmoid(i) * g.tanh();
                            hidden[at] = sigmoid(o) * cell[at].tanh();
                        }
                        states_of_steps.push(hidden.clone());
                    }
                }
                states_of_steps
            }
            Node::Unfold { input, layer, .. } => {
                let of_step = |span: &std::ops::Range<usize>, step: usize| -> Vec<f64> {
                    let width = graph.slots[input.0].width;
                    let entry = |at: usize| {
                        let neighbour = (step + at % layer.kernel).checked_sub(layer.kernel / 2);
                        match neighbour.filter(|neighbour| span.contains(neighbour)) {
                            Some(neighbour) => slots[input.0][neighbour][at / layer.kernel],
                            None => 0.0,
                        }
                    };
                    (0..width * layer.kernel).map(entry).collect()
                };
                spans.iter().flat_map(|span| span.clone().map(move |step| of_step(span, step))).collect()
            }
            Node::LayerNorm { input, layer, .. } => {
                let width = layer.width;
                let normalise = |row: &Vec<f64>| -> Vec<f64> {
                    let mean = row.iter().sum::<f64>() / width as f64;
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    let entry = |at: usize| {
                        let (gain, bias) =
                            (parameters[layer.offset + at], parameters[layer.offset + width + at]);
                        (row[at] - mean) / (variance + 1e-5).sqrt() * gain + bias
                    };
                    (0..width).map(entry).collect()
                };
                slots[input.0].iter().map(normalise).collect()
            }
            Node::Attention { input, layer, .. } => {
                let (width, own) = (layer.width, layer.width / layer.heads);
                let attend = |span: &std::ops::Range<usize>, step: usize| -> Vec<f64> {
                    let rows = &slots[input.0][span.clone()];
                    let seen = if layer.causal { &rows[..=step] } else { rows };
                    let entry = |at: usize| {
                        let head = at / own * own..at / own * own + own;
                        let score = |other: &Vec<f64>| -> f64 {
                            let products = head.clone().map(|at| rows[step][at] * other[width + at]);
                            (products.sum::<f64>() / (own as f64).sqrt()).exp()
                        };
                        let total: f64 = seen.iter().map(score).sum();
                        seen.iter().map(|other| score(other) * other[2 * width + at]).sum::<f64>() / total
                    };
                    (0..width).map(entry).collect()
                };
                let steps = spans.iter().flat_map(|span| (0..span.len()).map(move |step| (span, step)));
                steps.map(|(span, step)| attend(span, step)).collect()
            }
        };
        let shape = graph.slots[node.output().0];
        let expected = match shape.level {
            Level::Row => rows,
            Level::Step => steps,
            Level::Candidate => rows * (1 + negatives),
        };
        assert_eq!(value.len(), expected, "rows of {node:?}");
        slots[node.output().0] = value;
    }
    slots
}

/// Solves a system by Gauss's elimination; each line ends with its right side.
fn eliminate(mut system: Matrix) -> Vec<f64> {
    let size = system.len();
    for at in 0..size {
        let pivot = system[at].iter().map(|entry| entry / system[at][at]).collect::<Vec<_>>();
        for (other, line) in system.iter_mut().enumerate() {
            let factor = if other == at { 0.0 } else { line[at] };
            line.iter_mut().zip(&pivot).for_each(|(entry, pivot)| *entry -= factor * pivot);
        }
        system[at] = pivot;
    }
    system.into_iter().map(|line| line[size]).collect()
}

/// L2 norm.
pub(crate) fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A batch that owns its data.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnedBatch {
    pub shape: DataShape,
    pub rows: Vec<f32>,
    pub ids: Vec<u32>,
    pub step_starts: Vec<u32>,
    pub step_numbers: Vec<f32>,
    pub step_ids: Vec<u32>,
    pub labels: Vec<f32>,
    pub customer_starts: Vec<u32>,
    pub draws: Vec<u8>,
}

/// Draws in (-1, 1) from a seed (an LCG: tests only).
pub(crate) fn draws(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(2) + 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

impl OwnedBatch {
    /// Customers with the given numbers of rows of entries in (-`size`, `size`), of any ids and sequences of any
    /// length; for a model without draws.
    pub fn draw(seed: u64, shape: impl Into<DataShape>, customer_rows: &[usize], size: f32) -> Self {
        let DataShape { inputs, target } = shape.into();
        let mut draw = draws(seed);
        let mut starts = vec![0];
        for &rows in customer_rows {
            starts.push(starts[starts.len() - 1] + rows as u32);
        }
        let count = starts[starts.len() - 1] as usize;
        let rows = (0..count * inputs.numbers).map(|_| draw() * size).collect();
        let place = |of: usize, draw: f32| ((draw + 1.0) / 2.0 * of as f32) as u32 % of.max(1) as u32;
        let labels = (0..count).map(|_| match target {
            Target::Binary => f32::from(u8::from(draw() > 0.2)),
            Target::Number => draw(),
            Target::Count => place(6, draw()) as f32,
            Target::Classes(of) | Target::Item(of) => place(of, draw()) as f32,
        });
        let labels = labels.collect();
        let any_ids = |vocabularies: &[usize], count: usize, draw: &mut dyn FnMut() -> f32| -> Vec<u32> {
            let all = vocabularies.iter().cycle().take(count * vocabularies.len());
            all.map(|&ids| place(ids, draw())).collect()
        };
        let ids = any_ids(&inputs.vocabularies, count, &mut draw);
        let (mut step_starts, mut step_numbers, mut step_ids) = (vec![], vec![], vec![]);
        if let Some(sequence) = &inputs.sequence {
            step_starts.push(0);
            for _ in 0..count {
                let steps = ((draw() + 1.0) / 2.0 * (sequence.length + 1) as f32) as u32;
                step_starts.push(step_starts[step_starts.len() - 1] + steps.min(sequence.length as u32));
            }
            let steps = step_starts[count] as usize;
            step_numbers = (0..steps * sequence.numbers).map(|_| draw() * size).collect();
            step_ids = any_ids(&sequence.vocabularies, steps, &mut draw);
        }
        let shape = DataShape { inputs, target };
        let draws = vec![];
        Self { shape, rows, ids, step_starts, step_numbers, step_ids, labels, customer_starts: starts, draws }
    }

    /// The same with the draws that `network` asks for.
    pub fn with_draws(mut self, network: &Network, seed: u64) -> Self {
        let mut draw = draws(seed ^ 0x5eed);
        let steps = self.step_starts.last().map_or(0, |&end| end as usize);
        let count = network.draws(self.labels.len(), steps);
        self.draws = (0..count).map(|_| ((draw() + 1.0) * 128.0) as u8).collect();
        self
    }

    pub fn rows(&self) -> Rows<'_> {
        let Self { rows, ids, step_starts, step_numbers, step_ids, .. } = self;
        Rows { numbers: rows, ids, step_starts, step_numbers, step_ids }
    }

    pub fn batch(&self) -> Batch<'_> {
        let Self { labels, customer_starts, draws, .. } = self;
        Batch { rows: self.rows(), labels, customer_starts, draws }
    }

    pub fn customers(&self) -> usize {
        self.customer_starts.len() - 1
    }

    /// The batch of the customers that `keep` says yes to, with their own draws.
    pub fn only(&self, network: &Network, keep: impl Fn(usize) -> bool) -> Self {
        let inputs = &self.shape.inputs;
        let none = SequenceShape::default();
        let of_step = inputs.sequence.as_ref().unwrap_or(&none);
        let mut kept = Self { shape: self.shape.clone(), customer_starts: vec![0], ..Self::default() };
        if inputs.sequence.is_some() {
            kept.step_starts.push(0);
        }
        let mut rows_kept = Vec::new();
        let mut steps_kept = Vec::new();
        for customer in (0..self.customers()).filter(|&customer| keep(customer)) {
            let span = self.customer_starts[customer] as usize..self.customer_starts[customer + 1] as usize;
            kept.rows.extend_from_slice(&self.rows[span.start * inputs.numbers..span.end * inputs.numbers]);
            kept.ids.extend_from_slice(&self.ids[span.start * inputs.columns()..span.end * inputs.columns()]);
            kept.labels.extend_from_slice(&self.labels[span.clone()]);
            kept.customer_starts.push(kept.labels.len() as u32);
            if inputs.sequence.is_some() {
                let steps = self.step_starts[span.start] as usize..self.step_starts[span.end] as usize;
                kept.step_numbers.extend_from_slice(
                    &self.step_numbers[steps.start * of_step.numbers..steps.end * of_step.numbers],
                );
                kept.step_ids.extend_from_slice(
                    &self.step_ids[steps.start * of_step.columns()..steps.end * of_step.columns()],
                );
                for row in span.clone() {
                    let own = self.step_starts[row + 1] - self.step_starts[row];
                    kept.step_starts.push(kept.step_starts[kept.step_starts.len() - 1] + own);
                }
                steps_kept.extend(steps);
            }
            rows_kept.extend(span);
        }
        // Draws lie by row: first the negatives', then dropout's, layer after layer.
        let graph = network.graph();
        let mut first = 0;
        let mut keep_draws = |each: usize, kept_rows: &[usize], all: usize| {
            for &row in kept_rows {
                kept.draws.extend_from_slice(&self.draws[first + row * each..first + (row + 1) * each]);
            }
            first += all * each;
        };
        let steps = self.step_starts.last().map_or(0, |&end| end as usize);
        keep_draws(4 * graph.negatives, &rows_kept, self.labels.len());
        for node in &graph.nodes {
            if let Node::Dropout { output, .. } = node {
                let shape = graph.slots[output.0];
                match shape.level {
                    Level::Step => keep_draws(shape.width, &steps_kept, steps),
                    _ => keep_draws(shape.width, &rows_kept, self.labels.len()),
                }
            }
        }
        kept
    }
}
