//! From a spec to its nodes: the one place that knows what each model of the zoo is made of.

use super::{
    ActivationName, ModelError, ModelSpec,
    graph::{Builder, Graph, IdSource, Init, MAX_INPUTS, Slot},
    layers::{Activation, Pooling},
    spec::DEFAULT_EMBEDDING_DIM,
};
use crate::schema::{DataShape, InputShape, SequenceShape, Target};

/// Most ids of a categorical column, and most items.
pub const MAX_VOCABULARY: usize = 1 << 20;
/// Most steps of a sequence.
pub const MAX_STEPS: usize = 1024;

/// The nodes of `spec` for rows of `shape`. Errors name what is out of range.
pub(super) fn build(spec: &ModelSpec, shape: &DataShape) -> Result<Graph, ModelError> {
    spec.check()?;
    check(shape)?;
    let mut zoo = Zoo { builder: Builder::default(), shape };
    let output = match spec {
        ModelSpec::Logistic {} => zoo.wide(true)?,
        ModelSpec::Mlp { hidden, dropout, activation } => {
            let inputs = zoo.row_vector("", DEFAULT_EMBEDDING_DIM as usize)?;
            let activation = match activation {
                ActivationName::Relu => Activation::Relu,
                ActivationName::LeakyRelu => Activation::LeakyRelu,
                ActivationName::Tanh => Activation::Tanh,
                ActivationName::Sigmoid => Activation::Sigmoid,
            };
            let last = zoo.hidden_layers("layers", inputs, hidden, activation, *dropout);
            zoo.head(&format!("layers.{}", hidden.len()), last, None)?
        }
        ModelSpec::MatrixFactorisation { factors, negatives, ridge } => {
            zoo.factorisation(*factors as usize, *negatives as usize, *ridge)?
        }
        ModelSpec::TwoTower { hidden, dim, negatives } => {
            let inputs = zoo.row_vector("", DEFAULT_EMBEDDING_DIM as usize)?;
            let last = zoo.hidden_layers("user", inputs, hidden, Activation::Relu, 0.0);
            let init = kaiming(zoo.builder.width(last), 1.0);
            let name = format!("user.{}", hidden.len());
            let user = zoo.builder.linear(&name, last, *dim as usize, true, Activation::None, init);
            zoo.head("", user, Some(*negatives))?
        }
        ModelSpec::WideAndDeep { hidden, embedding_dim } => {
            let inputs = zoo.row_vector("", *embedding_dim as usize)?;
            let last = zoo.hidden_layers("layers", inputs, hidden, Activation::Relu, 0.0);
            let deep = zoo.head(&format!("layers.{}", hidden.len()), last, None)?;
            let wide = zoo.wide(false)?;
            zoo.builder.sum(vec![deep, wide])
        }
        ModelSpec::Lstm { hidden, dropout, embedding_dim, negatives } => {
            let dim = *embedding_dim as usize;
            let mut steps = zoo.sequence("", dim)?;
            for (index, &units) in hidden.iter().enumerate() {
                if index > 0 {
                    steps = zoo.builder.dropout(steps, *dropout);
                }
                steps = zoo.builder.lstm(&format!("lstm.{index}"), steps, units as usize);
            }
            let last = zoo.builder.pool(steps, Pooling::Last);
            let last = zoo.builder.dropout(last, *dropout);
            zoo.sequence_head(last, dim, *negatives)?
        }
        ModelSpec::Cnn { channels, kernel, dropout, embedding_dim, negatives } => {
            let (dim, kernel) = (*embedding_dim as usize, *kernel as usize);
            let mut steps = zoo.sequence("", dim)?;
            for (index, &channels) in channels.iter().enumerate() {
                if index > 0 {
                    steps = zoo.builder.dropout(steps, *dropout);
                }
                let init = kaiming(zoo.builder.width(steps) * kernel, 2.0);
                let (name, sizes) = (format!("conv.{index}"), [channels as usize, kernel]);
                steps = zoo.builder.convolution(&name, steps, sizes, Activation::Relu, init);
            }
            let largest = zoo.builder.pool(steps, Pooling::Max);
            let largest = zoo.builder.dropout(largest, *dropout);
            zoo.sequence_head(largest, dim, *negatives)?
        }
        ModelSpec::Transformer { layers, width, heads, feed_forward, dropout, negatives } => {
            let ranks = matches!(shape.target, Target::Item(_));
            let steps = zoo.embedded_steps(*width as usize)?;
            let mut last = zoo.builder.dropout(steps, *dropout);
            for layer in 0..*layers {
                let name = format!("encoder.layers.{layer}");
                let sizes = [*heads as usize, *feed_forward as usize];
                last = zoo.encoder_layer(&name, last, sizes, ranks, *dropout);
            }
            let encoded = zoo.builder.layer_norm("encoder.norm", last);
            let pooling = if ranks { Pooling::Last } else { Pooling::Mean };
            let sequence = zoo.builder.pool(encoded, pooling);
            let mut parts = zoo.static_vector("", DEFAULT_EMBEDDING_DIM as usize);
            parts.push(sequence);
            let mut row = zoo.builder.concat(parts);
            if ranks && row != sequence {
                // Items' vectors are as wide as the steps'.
                let init = kaiming(zoo.builder.width(row), 1.0);
                row = zoo.builder.linear("join", row, *width as usize, true, Activation::None, init);
            }
            zoo.head("head", row, ranks.then_some(*negatives))?
        }
    };
    zoo.builder.finish(output)
}

/// Refuses rows that are empty or larger than the zoo takes, and classes or items out of range.
fn check(shape: &DataShape) -> Result<(), ModelError> {
    let InputShape { numbers, vocabularies, sequence } = &shape.inputs;
    let none = SequenceShape::default();
    let steps = sequence.as_ref().unwrap_or(&none);
    let limit = MAX_VOCABULARY;
    let all = vocabularies.iter().chain(&steps.vocabularies);
    if let Some((column, &got)) = all.enumerate().find(|&(_, &ids)| ids == 0 || ids > limit) {
        return Err(ModelError::Vocabulary { column, got, limit });
    }
    if sequence.is_some() && !(1..=MAX_STEPS).contains(&steps.length) {
        return Err(ModelError::Steps { got: steps.length });
    }
    let columns = [*numbers, vocabularies.len(), steps.numbers, steps.vocabularies.len()];
    let got = columns.iter().fold(0, |total: usize, &columns| total.saturating_add(columns));
    if got == 0 || got > MAX_INPUTS {
        return Err(ModelError::Inputs { got });
    }
    match shape.target {
        Target::Classes(classes) if !(2..=4096).contains(&classes) => {
            Err(ModelError::Classes { got: classes })
        }
        Target::Item(items) if !(2..=MAX_VOCABULARY).contains(&items) => {
            Err(ModelError::Items { got: items })
        }
        _ => Ok(()),
    }
}

struct Zoo<'a> {
    builder: Builder,
    shape: &'a DataShape,
}

impl Zoo<'_> {
    /// All that a row holds as one vector: its numbers, the embedding of each of its ids, and the mean of its
    /// sequence's steps.
    fn row_vector(&mut self, prefix: &str, dim: usize) -> Result<Slot, ModelError> {
        let InputShape { numbers, vocabularies, sequence } = &self.shape.inputs;
        let width = vocabularies.len().saturating_mul(dim).saturating_add(*numbers);
        if width > MAX_INPUTS {
            return Err(ModelError::Inputs { got: width });
        }
        let mut parts = self.static_vector(prefix, dim);
        if sequence.is_some() {
            let steps = self.step_vector(prefix, dim);
            parts.push(self.builder.pool(steps, Pooling::Mean));
        }
        Ok(self.builder.concat(parts))
    }

    /// The row's numbers and embeddings, without its sequence; maybe nothing.
    fn static_vector(&mut self, prefix: &str, dim: usize) -> Vec<Slot> {
        let InputShape { numbers, vocabularies, .. } = &self.shape.inputs;
        let mut parts = Vec::new();
        if *numbers > 0 {
            parts.push(self.builder.numbers(*numbers));
        }
        for (column, &vocabulary) in vocabularies.iter().enumerate() {
            let (name, source) = (format!("{prefix}embeddings.{column}"), IdSource::Column(column));
            parts.push(self.builder.embedding(&name, source, [vocabulary, dim], embedding_init(dim)));
        }
        parts
    }

    /// Each step's numbers and embeddings as one vector; rows have a sequence.
    fn step_vector(&mut self, prefix: &str, dim: usize) -> Slot {
        let SequenceShape { numbers, vocabularies, .. } =
            self.shape.inputs.sequence.as_ref().expect("rows with a sequence");
        let mut parts = Vec::new();
        if *numbers > 0 {
            parts.push(self.builder.step_numbers(*numbers));
        }
        for (column, &vocabulary) in vocabularies.iter().enumerate() {
            let (name, source) = (format!("{prefix}step_embeddings.{column}"), IdSource::StepColumn(column));
            parts.push(self.builder.embedding(&name, source, [vocabulary, dim], embedding_init(dim)));
        }
        self.builder.concat(parts)
    }

    /// The steps that a model of sequences reads.
    fn sequence(&mut self, prefix: &str, dim: usize) -> Result<Slot, ModelError> {
        match self.shape.inputs.sequence {
            Some(_) => Ok(self.step_vector(prefix, dim)),
            None => Err(ModelError::NoSequence),
        }
    }

    /// The outputs of a model of sequences, from what it made of a row's sequence and the row's other features.
    fn sequence_head(&mut self, summary: Slot, dim: usize, negatives: u32) -> Result<Slot, ModelError> {
        let mut parts = vec![summary];
        parts.extend(self.static_vector("", dim));
        let last = self.builder.concat(parts);
        self.head("head", last, Some(negatives))
    }

    /// A vector of each step: the sum of its ids' embeddings, a linear layer of its numbers and the embedding of its
    /// place. Embeddings start with variance 1, as PyTorch's: before a normalisation smaller ones would have gradients
    /// that much larger.
    fn embedded_steps(&mut self, width: usize) -> Result<Slot, ModelError> {
        let sequence = self.shape.inputs.sequence.as_ref().ok_or(ModelError::NoSequence)?;
        let SequenceShape { length, numbers, vocabularies } = sequence;
        let init = Init::Uniform(3f64.sqrt());
        let mut parts = Vec::new();
        if *numbers > 0 {
            let input = self.builder.step_numbers(*numbers);
            let init = kaiming(*numbers, 1.0);
            parts.push(self.builder.linear("step_numbers", input, width, true, Activation::None, init));
        }
        for (column, &vocabulary) in vocabularies.iter().enumerate() {
            let (name, source) = (format!("step_embeddings.{column}"), IdSource::StepColumn(column));
            parts.push(self.builder.embedding(&name, source, [vocabulary, width], init));
        }
        parts.push(self.builder.embedding("positions", IdSource::Position, [*length, width], init));
        Ok(self.builder.sum(parts))
    }

    /// One layer of a transformer's encoder, with the names of PyTorch's `TransformerEncoderLayer`, `norm_first`:
    /// `x + out_proj(attention(norm1(x)))`, then `y + linear2(relu(linear1(norm2(y))))`.
    fn encoder_layer(
        &mut self,
        name: &str,
        input: Slot,
        [heads, feed_forward]: [usize; 2],
        causal: bool,
        dropout: f64,
    ) -> Slot {
        let builder = &mut self.builder;
        let width = builder.width(input);
        let normal = builder.layer_norm(&format!("{name}.norm1"), input);
        let init = kaiming(width, 1.0);
        let attended = builder.attention(&format!("{name}.self_attn"), normal, heads, causal, init);
        let attended = builder.dropout(attended, dropout);
        let between = builder.sum(vec![input, attended]);
        let normal = builder.layer_norm(&format!("{name}.norm2"), between);
        let linear1 = format!("{name}.linear1");
        let inner =
            builder.linear(&linear1, normal, feed_forward, true, Activation::Relu, kaiming(width, 2.0));
        let inner = builder.dropout(inner, dropout);
        let linear2 = format!("{name}.linear2");
        let outer =
            builder.linear(&linear2, inner, width, true, Activation::None, kaiming(feed_forward, 1.0));
        let outer = builder.dropout(outer, dropout);
        builder.sum(vec![between, outer])
    }

    /// Linear layers `name.0`, `name.1`, ... with an activation, each with dropout behind it.
    fn hidden_layers(
        &mut self,
        name: &str,
        input: Slot,
        hidden: &[u32],
        activation: Activation,
        dropout: f64,
    ) -> Slot {
        let gain = if let Activation::Relu | Activation::LeakyRelu = activation { 2.0 } else { 1.0 };
        let layers = hidden.iter().enumerate();
        layers.fold(input, |input, (index, &units)| {
            let init = kaiming(self.builder.width(input), gain);
            let name = format!("{name}.{index}");
            let output = self.builder.linear(&name, input, units as usize, true, activation, init);
            self.builder.dropout(output, dropout)
        })
    }

    /// The outputs of the target from a row's last vector: a linear layer; or, to rank, the inner product with each
    /// item's vector and the item's bias, learned against so many sampled negatives a row.
    fn head(&mut self, name: &str, last: Slot, negatives: Option<u32>) -> Result<Slot, ModelError> {
        let width = self.builder.width(last);
        match (self.shape.target, negatives) {
            (Target::Item(items), Some(negatives)) => {
                let candidate = IdSource::Candidate;
                let vectors =
                    self.builder.embedding("items", candidate, [items, width], embedding_init(width));
                let biases = self.builder.embedding("item_biases", candidate, [items, 1], Init::Zeros);
                self.builder.negatives = negatives as usize;
                Ok(self.builder.dot(last, vectors, biases))
            }
            (Target::Item(_), None) => Err(ModelError::CannotRank),
            (target, _) => {
                let (outputs, init) = (target.outputs(), kaiming(width, 1.0));
                Ok(self.builder.linear(name, last, outputs, true, Activation::None, init))
            }
        }
    }

    /// The inner product of the row's factors, found from its history, with the item's factors, and the item's bias.
    fn factorisation(&mut self, dim: usize, negatives: usize, ridge: f64) -> Result<Slot, ModelError> {
        let InputShape { vocabularies, sequence, .. } = &self.shape.inputs;
        let steps = sequence.as_ref().ok_or(ModelError::NoSequence)?;
        let &[history] = steps.vocabularies.as_slice() else { return Err(ModelError::History) };
        let (items, rated) = match (self.shape.target, vocabularies.first(), steps.numbers) {
            (Target::Item(items), _, 0) => (items, false),
            (Target::Number, Some(&items), 1) => (items, true),
            _ => return Err(ModelError::History),
        };
        if items != history {
            return Err(ModelError::History);
        }
        let candidate = IdSource::Candidate;
        let vectors = self.builder.embedding("items", candidate, [items, dim], embedding_init(dim));
        let biases = self.builder.embedding("item_biases", candidate, [items, 1], Init::Zeros);
        self.builder.negatives = if rated { 0 } else { negatives };
        let factors = self.builder.factors(vectors, biases, rated, ridge);
        Ok(self.builder.dot(factors, vectors, biases))
    }

    /// One linear layer over the numbers and one weight for each category, for each output.
    ///
    /// Beside a deep part, whose last bias does, it needs no bias; without numbers neither, as the weights of a
    /// column's categories can all rise by the same.
    fn wide(&mut self, alone: bool) -> Result<Slot, ModelError> {
        if let Target::Item(_) = self.shape.target {
            return Err(ModelError::CannotRank);
        }
        let InputShape { numbers, vocabularies, sequence } = &self.shape.inputs;
        let outputs = self.shape.target.outputs();
        let mut parts = Vec::new();
        let layer = |zoo: &mut Self, name: &str, input: Slot, biased: bool| {
            zoo.builder.linear(name, input, outputs, biased, Activation::None, Init::Zeros)
        };
        if *numbers > 0 {
            let input = self.builder.numbers(*numbers);
            parts.push(layer(self, if alone { "layers.0" } else { "wide" }, input, alone));
        }
        for (column, &vocabulary) in vocabularies.iter().enumerate() {
            let (name, source) = (format!("categories.{column}"), IdSource::Column(column));
            parts.push(self.builder.embedding(&name, source, [vocabulary, outputs], Init::Zeros));
        }
        if let Some(steps) = sequence {
            if steps.numbers > 0 {
                let input = self.builder.step_numbers(steps.numbers);
                let mean = self.builder.pool(input, Pooling::Mean);
                parts.push(layer(self, "step_numbers", mean, false));
            }
            for (column, &vocabulary) in steps.vocabularies.iter().enumerate() {
                let (name, source) = (format!("step_categories.{column}"), IdSource::StepColumn(column));
                let weights = self.builder.embedding(&name, source, [vocabulary, outputs], Init::Zeros);
                parts.push(self.builder.pool(weights, Pooling::Mean));
            }
        }
        Ok(self.builder.sum(parts))
    }
}

/// Uniform with variance `gain / inputs` (He et al. 2015: gain 2 before a ReLU, 1 before an output).
fn kaiming(inputs: usize, gain: f64) -> Init {
    Init::Uniform((3.0 * gain / inputs as f64).sqrt())
}

/// Uniform within `1 / sqrt(entries)`, so that an id weighs no more than one number.
fn embedding_init(dim: usize) -> Init {
    Init::Uniform(1.0 / (dim as f64).sqrt())
}
