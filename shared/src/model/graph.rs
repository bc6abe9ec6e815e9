//! What a network computes: nodes in a straight line, each from slots to a slot, and the taps of their parameters.
//!
//! A [`Slot`] is a matrix of so many columns, whose rows are those of its [`Level`]. A parameter is made only together
//! with the node that uses it and the [`Tap`] through which its gradient is clipped ([`Builder`]): one whose norm is not
//! counted cannot be made. Everything that runs a model walks the same nodes.

use super::{
    ModelError,
    layers::{Activation, Attention, Dropout, Embedding, Factors, LayerNorm, Linear, Lstm, Pooling, Unfold},
};

/// Most parameters of a network.
pub const MAX_PARAMETERS: usize = 1 << 28;
/// Most linear layers of a network, those inside other layers included.
pub const MAX_LINEAR_TAPS: usize = 64;
/// Most outputs of a linear layer.
pub const MAX_OUTPUTS: usize = 4096;
/// Most inputs of a linear layer.
pub const MAX_INPUTS: usize = 65_536;

/// What the rows of a slot are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One for each row of the batch.
    Row,
    /// One for each step of each row's sequence.
    Step,
    /// While a model learns to rank, for each row the item of its label and then the sampled negatives; while it
    /// scores, one for each item there is. If items are rated and not ranked, the item of each row.
    Candidate,
}

/// Which matrix of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub(super) usize);

/// Size of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotShape {
    pub level: Level,
    pub width: usize,
    /// Whether a parameter had a part in it, so that gradients go on through it.
    pub learned: bool,
    /// Whether its gradients are written over its values, of which none are left behind the way back.
    pub overwritten: bool,
}

impl SlotShape {
    /// Matrices that it takes while a model learns.
    pub fn matrices(&self) -> usize {
        1 + usize::from(self.learned && !self.overwritten)
    }
}

/// Where the ids come from that an embedding looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdSource {
    /// A categorical column of the rows.
    Column(usize),
    /// A categorical column of the steps.
    StepColumn(usize),
    /// The step's place in its sequence, from 0.
    Position,
    /// The item of a [`Level::Candidate`]; if items are rated, the rows' first categorical column.
    Candidate,
}

/// Where a parameterised layer hands the factors of its gradient to the clipping. The taps of a network own all its
/// parameters between them, one after the other without gaps in the flat layout.
///
/// A *factor row* is a row of the slots' [`Level`]. A customer's gradient is the sum over its factor rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Weight `[outputs, inputs]`, to which a factor row adds the outer product of the output's gradient and the input's
    /// value; then, if `biased`, the bias `[outputs]`, to which it adds the output's gradient.
    Linear {
        /// Whose values are the inputs.
        input: Slot,
        /// Whose gradients are those of the layer's output before its activation.
        output: Slot,
        /// Whether there is a bias.
        biased: bool,
    },
    /// A table `[vocabulary, dim]`: a factor row adds the output's gradient to the vector of its id.
    Embedding {
        /// Which ids.
        ids: usize,
        /// Whose gradients are those of the vectors looked up.
        output: Slot,
        /// Vectors in the table.
        vocabulary: usize,
    },
    /// A weight `[width]`, to which a factor row adds the product, entry by entry, of the output's gradient and the
    /// input's value; then a bias `[width]`, to which it adds the output's gradient.
    Scale {
        /// Whose values are scaled.
        input: Slot,
        /// Whose gradients are those of the result.
        output: Slot,
    },
}

impl Tap {
    /// Parameters that it owns, in a network whose slots have these widths.
    pub fn parameters(&self, width: impl Fn(Slot) -> usize) -> usize {
        match *self {
            Self::Linear { input, output, biased } => width(output) * (width(input) + usize::from(biased)),
            Self::Embedding { output, vocabulary, .. } => width(output) * vocabulary,
            Self::Scale { output, .. } => 2 * width(output),
        }
    }

    /// Whose gradients are the tap's factors.
    pub fn output(&self) -> Slot {
        match *self {
            Self::Linear { output, .. } | Self::Embedding { output, .. } | Self::Scale { output, .. } => {
                output
            }
        }
    }

    /// Whose values are the tap's other factors, if it has such.
    pub fn input(&self) -> Option<Slot> {
        match *self {
            Self::Linear { input, .. } | Self::Scale { input, .. } => Some(input),
            Self::Embedding { .. } => None,
        }
    }
}

/// One step of the computation.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// The rows' numbers.
    Numbers { output: Slot },
    /// The steps' numbers.
    StepNumbers { output: Slot },
    /// The vectors of ids.
    Embedding { ids: usize, table: Embedding, output: Slot },
    /// Columns side by side.
    Concat { inputs: Vec<Slot>, output: Slot },
    /// The sum of slots of one shape.
    Sum { inputs: Vec<Slot>, output: Slot },
    /// A linear layer and its activation.
    Linear { input: Slot, layer: Linear, output: Slot },
    /// One row for each sequence.
    Pool { input: Slot, pooling: Pooling, output: Slot },
    /// Zeroes entries while a model learns.
    Dropout { input: Slot, layer: Dropout, output: Slot },
    /// Each row's factors, from the items of its steps, whose ids are `history`, and the ratings of the steps, if they
    /// have any. No gradient goes through them.
    Factors { history: usize, ratings: Option<Slot>, layer: Factors, output: Slot },
    /// The inner product of each row with each of its candidates, and the candidate's bias.
    Dot { rows: Slot, candidates: Slot, biases: Slot, output: Slot },
    /// The hidden state of each step.
    Lstm { input: Slot, layer: Lstm, states: LstmSlots, output: Slot },
    /// Each step with its neighbours.
    Unfold { input: Slot, layer: Unfold, output: Slot },
    /// Normalised rows, and what their gain and bias make of them.
    LayerNorm { input: Slot, layer: LayerNorm, normal: Slot, output: Slot },
    /// Each step from those of its row; the input holds queries, keys and values.
    Attention { input: Slot, layer: Attention, output: Slot },
}

/// What an LSTM layer keeps of each step beside its hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LstmSlots {
    /// `[steps, 4 x hidden]`. Gradients are those before the gates' activation; they overwrite the gates.
    pub gates: Slot,
    /// `[steps, hidden]`: the hidden state of the step before, zeros at the first.
    pub previous: Slot,
    /// `[steps, hidden]`.
    pub cells: Slot,
}

impl Node {
    /// Whether the forward writes every entry of its slots, whatever they held; else it adds to zeros.
    pub(super) fn overwrites(&self) -> bool {
        matches!(
            self,
            Self::Numbers { .. }
                | Self::StepNumbers { .. }
                | Self::Embedding { .. }
                | Self::Concat { .. }
                | Self::Sum { .. }
                | Self::Linear { .. }
                | Self::Lstm { .. }
                | Self::LayerNorm { .. }
                | Self::Attention { .. }
        )
    }

    /// Where the result is.
    pub(super) fn output(&self) -> Slot {
        match *self {
            Self::Numbers { output }
            | Self::StepNumbers { output }
            | Self::Embedding { output, .. }
            | Self::Concat { output, .. }
            | Self::Sum { output, .. }
            | Self::Linear { output, .. }
            | Self::Pool { output, .. }
            | Self::Dropout { output, .. }
            | Self::Factors { output, .. }
            | Self::Dot { output, .. }
            | Self::Lstm { output, .. }
            | Self::LayerNorm { output, .. }
            | Self::Attention { output, .. }
            | Self::Unfold { output, .. } => output,
        }
    }
}

/// How a tensor's entries start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Init {
    Zeros,
    Ones,
    /// Uniform between plus and minus this.
    Uniform(f64),
    /// Ones in the second quarter, the forget gate's, else zeros (Jozefowicz et al. 2015): memory begins long.
    ForgetGate,
}

/// One named tensor inside the flat parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// As in PyTorch where there is such a module: `layers.0.weight`, `lstm.0.weight_ih_l0`, ...
    pub name: String,
    /// `[outputs, inputs]` of a weight, `[outputs, inputs, kernel]` of a convolution's, `[outputs]` of a bias, `[ids,
    /// entries]` of an embedding, as in PyTorch.
    pub shape: Vec<usize>,
    /// Position of its first entry in the flat parameters.
    pub offset: usize,
    pub(super) init: Init,
}

impl TensorSpec {
    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A whole network: nodes in order, and what they need.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub slots: Vec<SlotShape>,
    pub nodes: Vec<Node>,
    /// In the order of the flat parameters.
    pub taps: Vec<Tap>,
    /// Which ids are looked up.
    pub ids: Vec<IdSource>,
    /// What the loss is of.
    pub output: Slot,
    pub tensors: Vec<TensorSpec>,
    pub parameter_count: usize,
    /// Negatives sampled for each row, if the model ranks.
    pub negatives: usize,
}

/// Builds a [`Graph`] node by node.
#[derive(Default)]
pub(super) struct Builder {
    slots: Vec<SlotShape>,
    nodes: Vec<Node>,
    taps: Vec<Tap>,
    ids: Vec<IdSource>,
    tensors: Vec<TensorSpec>,
    end: usize,
    pub(super) negatives: usize,
}

impl Builder {
    fn slot(&mut self, level: Level, width: usize, learned: bool) -> Slot {
        self.slots.push(SlotShape { level, width, learned, overwritten: false });
        Slot(self.slots.len() - 1)
    }

    fn shape(&self, slot: Slot) -> SlotShape {
        self.slots[slot.0]
    }

    /// Columns of a slot.
    pub(super) fn width(&self, slot: Slot) -> usize {
        self.shape(slot).width
    }

    /// The next tensor of the flat parameters, which the caller must give a tap; its offset.
    fn tensor(&mut self, name: String, shape: &[usize], init: Init) -> usize {
        let offset = self.end;
        self.end =
            self.end.saturating_add(shape.iter().fold(1, |entries: usize, &n| entries.saturating_mul(n)));
        self.tensors.push(TensorSpec { name, shape: shape.to_vec(), offset, init });
        offset
    }

    fn source(&mut self, source: IdSource) -> usize {
        self.ids.iter().position(|&known| known == source).unwrap_or_else(|| {
            self.ids.push(source);
            self.ids.len() - 1
        })
    }

    /// The rows' numbers, so many.
    pub(super) fn numbers(&mut self, width: usize) -> Slot {
        let output = self.slot(Level::Row, width, false);
        self.nodes.push(Node::Numbers { output });
        output
    }

    /// The steps' numbers, so many.
    pub(super) fn step_numbers(&mut self, width: usize) -> Slot {
        let output = self.slot(Level::Step, width, false);
        self.nodes.push(Node::StepNumbers { output });
        output
    }

    /// `name.weight`, a table `[vocabulary, dim]`, looked up.
    pub(super) fn embedding(
        &mut self,
        name: &str,
        source: IdSource,
        [vocabulary, dim]: [usize; 2],
        init: Init,
    ) -> Slot {
        let offset = self.tensor(format!("{name}.weight"), &[vocabulary, dim], init);
        let level = match source {
            IdSource::Column(_) => Level::Row,
            IdSource::StepColumn(_) | IdSource::Position => Level::Step,
            IdSource::Candidate => Level::Candidate,
        };
        let (ids, output) = (self.source(source), self.slot(level, dim, true));
        self.nodes.push(Node::Embedding { ids, table: Embedding { vocabulary, dim, offset }, output });
        self.taps.push(Tap::Embedding { ids, output, vocabulary });
        output
    }

    /// All columns of `inputs`, at least one slot, side by side.
    pub(super) fn concat(&mut self, inputs: Vec<Slot>) -> Slot {
        if let [only] = inputs[..] {
            return only;
        }
        let shapes = || inputs.iter().map(|&input| self.shape(input));
        let (level, width) =
            (shapes().next().expect("a slot").level, shapes().map(|shape| shape.width).sum());
        let learned = shapes().any(|shape| shape.learned);
        assert!(shapes().all(|shape| shape.level == level), "slots of different levels side by side");
        let output = self.slot(level, width, learned);
        self.nodes.push(Node::Concat { inputs, output });
        output
    }

    /// The sum of `inputs`, at least one slot, of one shape.
    pub(super) fn sum(&mut self, inputs: Vec<Slot>) -> Slot {
        if let [only] = inputs[..] {
            return only;
        }
        let shapes = || inputs.iter().map(|&input| self.shape(input));
        let SlotShape { level, width, .. } = shapes().next().expect("a slot");
        let learned = shapes().any(|shape| shape.learned);
        assert!(
            shapes().all(|shape| (shape.level, shape.width) == (level, width)),
            "sum of different shapes"
        );
        let output = self.slot(level, width, learned);
        self.nodes.push(Node::Sum { inputs, output });
        output
    }

    /// `name.weight` `[outputs, inputs]`, and `name.bias` `[outputs]` of zeros if `biased`.
    pub(super) fn linear(
        &mut self,
        name: &str,
        input: Slot,
        outputs: usize,
        biased: bool,
        activation: Activation,
        init: Init,
    ) -> Slot {
        let inputs = self.width(input);
        let bias = biased.then(|| (format!("{name}.bias"), Init::Zeros));
        self.linear_of(format!("{name}.weight"), &[outputs, inputs], bias, input, activation, init)
    }

    /// A linear layer under any names, whose weight has any `shape` of `[outputs, ..]` with the inputs' entries.
    fn linear_of(
        &mut self,
        weight: String,
        shape: &[usize],
        bias: Option<(String, Init)>,
        input: Slot,
        activation: Activation,
        init: Init,
    ) -> Slot {
        let (biased, outputs) = (bias.is_some(), shape[0]);
        let SlotShape { level, width: inputs, .. } = self.shape(input);
        let offset = self.tensor(weight, shape, init);
        if let Some((bias, init)) = bias {
            self.tensor(bias, &[outputs], init);
        }
        let output = self.slot(level, outputs, true);
        let layer = Linear { inputs, outputs, offset, biased, activation };
        self.nodes.push(Node::Linear { input, layer, output });
        self.taps.push(Tap::Linear { input, output, biased });
        output
    }

    /// Zeroes each entry with probability `rate` while the model learns; none if it is 0.
    pub(super) fn dropout(&mut self, input: Slot, rate: f64) -> Slot {
        if rate == 0.0 {
            return input;
        }
        let SlotShape { level, width, learned, .. } = self.shape(input);
        let output = self.slot(level, width, learned);
        self.nodes.push(Node::Dropout { input, layer: Dropout::new(rate), output });
        output
    }

    /// Each row's factors, from the items of its steps' first categorical column and their first numbers, if `rated`;
    /// `vectors` and `biases` are the items', which [`embedding`](Self::embedding) made.
    pub(super) fn factors(&mut self, vectors: Slot, biases: Slot, rated: bool, ridge: f64) -> Slot {
        let table = |slot: Slot| {
            let of_slot = |node: &Node| match node {
                Node::Embedding { table, output, .. } if *output == slot => Some(table.clone()),
                _ => None,
            };
            self.nodes.iter().find_map(of_slot).expect("an embedding")
        };
        let layer = Factors { items: table(vectors), biases: table(biases), ridge };
        let ratings = rated.then(|| self.step_numbers(1));
        let (history, output) =
            (self.source(IdSource::StepColumn(0)), self.slot(Level::Row, self.width(vectors), false));
        self.nodes.push(Node::Factors { history, ratings, layer, output });
        output
    }

    /// The inner product of each row of `rows` with each of its candidates, and the candidate's bias.
    pub(super) fn dot(&mut self, rows: Slot, candidates: Slot, biases: Slot) -> Slot {
        let (of_rows, of_candidates) = (self.shape(rows), self.shape(candidates));
        assert_eq!(
            (of_rows.level, of_candidates.level),
            (Level::Row, Level::Candidate),
            "rows and candidates"
        );
        assert_eq!(of_rows.width, of_candidates.width, "vectors of one width");
        assert_eq!(self.width(biases), 1, "a bias for each candidate");
        let output = self.slot(Level::Candidate, 1, true);
        self.nodes.push(Node::Dot { rows, candidates, biases, output });
        output
    }

    /// Each row normalised, then `name.weight` `[width]`, of ones, times it and `name.bias` `[width]`, of zeros, added.
    pub(super) fn layer_norm(&mut self, name: &str, input: Slot) -> Slot {
        let SlotShape { level, width, .. } = self.shape(input);
        let offset = self.tensor(format!("{name}.weight"), &[width], Init::Ones);
        self.tensor(format!("{name}.bias"), &[width], Init::Zeros);
        let (normal, output) = (self.slot(level, width, false), self.slot(level, width, true));
        self.nodes.push(Node::LayerNorm { input, layer: LayerNorm { width, offset }, normal, output });
        self.taps.push(Tap::Scale { input: normal, output });
        output
    }

    /// Self-attention of so many heads over the steps of each row, with the names and shapes of PyTorch's
    /// `MultiheadAttention`: `name.in_proj_weight` `[3 width, width]` and its bias make queries, keys and values;
    /// `name.out_proj` is a linear layer behind. If `causal`, a step sees only itself and those before it.
    pub(super) fn attention(
        &mut self,
        name: &str,
        input: Slot,
        heads: usize,
        causal: bool,
        init: Init,
    ) -> Slot {
        let SlotShape { level, width, .. } = self.shape(input);
        assert_eq!(level, Level::Step, "attention is over steps");
        assert_eq!(width % heads, 0, "heads of one width");
        let (weight, bias) = (format!("{name}.in_proj_weight"), format!("{name}.in_proj_bias"));
        let projected = self.linear_of(
            weight,
            &[3 * width, width],
            Some((bias, Init::Zeros)),
            input,
            Activation::None,
            init,
        );
        let output = self.slot(level, width, true);
        let layer = Attention { width, heads, causal };
        self.nodes.push(Node::Attention { input: projected, layer, output });
        self.linear(&format!("{name}.out_proj"), output, width, true, Activation::None, init)
    }

    /// One row for each sequence of steps.
    pub(super) fn pool(&mut self, input: Slot, pooling: Pooling) -> Slot {
        let SlotShape { level, width, learned, .. } = self.shape(input);
        assert_eq!(level, Level::Step, "steps are pooled");
        let output = self.slot(Level::Row, width, learned);
        self.nodes.push(Node::Pool { input, pooling, output });
        output
    }

    /// The hidden states of an LSTM over the steps of `input`: `name.weight_ih_l0` `[4 x hidden, inputs]`,
    /// `name.bias_ih_l0` `[4 x hidden]` and `name.weight_hh_l0` `[4 x hidden, hidden]`, all gates one below
    /// the other in the order input, forget, cell, output. PyTorch's second bias, `bias_hh_l0`, is zero.
    ///
    /// Both weights have the gates' gradients as their factors: one tap with the steps' inputs, one with the hidden
    /// states before.
    pub(super) fn lstm(&mut self, name: &str, input: Slot, hidden: usize) -> Slot {
        // As in PyTorch.
        let init = Init::Uniform(1.0 / (hidden as f64).sqrt());
        let SlotShape { level, width: inputs, learned: passes_on, .. } = self.shape(input);
        assert_eq!(level, Level::Step, "an LSTM goes along steps");
        let gates_width = hidden.saturating_mul(4);
        let offset = self.tensor(format!("{name}.weight_ih_l0"), &[gates_width, inputs], init);
        self.tensor(format!("{name}.bias_ih_l0"), &[gates_width], Init::ForgetGate);
        self.tensor(format!("{name}.weight_hh_l0"), &[gates_width, hidden], init);
        let gates = self.slot(Level::Step, gates_width, true);
        self.slots[gates.0].overwritten = true;
        let [previous, cells] = [(); 2].map(|()| self.slot(Level::Step, hidden, false));
        let output = self.slot(Level::Step, hidden, true);
        let (layer, states) =
            (Lstm { inputs, hidden, offset, passes_on }, LstmSlots { gates, previous, cells });
        self.nodes.push(Node::Lstm { input, layer, states, output });
        self.taps.push(Tap::Linear { input, output: gates, biased: true });
        self.taps.push(Tap::Linear { input: previous, output: gates, biased: false });
        output
    }

    /// A convolution of `kernel` steps, an odd number, along the steps of `input`, with zeros around each sequence:
    /// `name.weight` `[channels, inputs, kernel]` and `name.bias` `[channels]` of zeros, as PyTorch's `Conv1d`.
    pub(super) fn convolution(
        &mut self,
        name: &str,
        input: Slot,
        [channels, kernel]: [usize; 2],
        activation: Activation,
        init: Init,
    ) -> Slot {
        let SlotShape { level, width, learned, .. } = self.shape(input);
        assert_eq!(level, Level::Step, "a convolution goes along steps");
        let windows = self.slot(Level::Step, width * kernel, learned);
        self.nodes.push(Node::Unfold { input, layer: Unfold { kernel }, output: windows });
        let bias = Some((format!("{name}.bias"), Init::Zeros));
        let shape = [channels, width, kernel];
        self.linear_of(format!("{name}.weight"), &shape, bias, windows, activation, init)
    }

    /// The network whose loss is of `output`. Errors if it is larger than a network may be.
    ///
    /// # Panics
    /// If the taps do not own every parameter once, in order.
    pub(super) fn finish(self, output: Slot) -> Result<Graph, ModelError> {
        let Self { slots, nodes, taps, ids, tensors, end: parameter_count, negatives } = self;
        if parameter_count > MAX_PARAMETERS {
            return Err(ModelError::Parameters { limit: MAX_PARAMETERS, got: parameter_count });
        }
        let mut owned = 0;
        let mut linear = 0;
        for tap in &taps {
            let outputs = slots[tap.output().0].width;
            owned += tap.parameters(|slot| slots[slot.0].width);
            if let Tap::Linear { input, .. } = *tap {
                linear += 1;
                let inputs = slots[input.0].width;
                if inputs == 0 || inputs > MAX_INPUTS {
                    return Err(ModelError::Inputs { got: inputs });
                }
            }
            if outputs == 0 || outputs > MAX_OUTPUTS {
                return Err(ModelError::Outputs { limit: MAX_OUTPUTS, got: outputs });
            }
        }
        assert_eq!(owned, parameter_count, "parameters in no tap");
        if linear > MAX_LINEAR_TAPS {
            return Err(ModelError::Layers { limit: MAX_LINEAR_TAPS, got: linear });
        }
        Ok(Graph { slots, nodes, taps, ids, output, tensors, parameter_count, negatives })
    }
}
