//! What a job says about its model: a choice from the compiled-in zoo and its sizes, nothing that runs.
//!
//! A [`ModelSpec`] enters from a job file (TOML) or the wire (bincode) and is checked by
//! [`Network::new`](super::Network::new), which is the only way to get from it to something that computes.

use serde::{Deserialize, Serialize};

use super::ModelError;

/// Most hidden layers of a multi-layer perceptron.
pub const MAX_HIDDEN_LAYERS: usize = 8;
/// Most units of a hidden layer.
pub const MAX_HIDDEN_UNITS: u32 = 4096;
/// Most entries of a category's embedding.
pub const MAX_EMBEDDING_DIM: u32 = 256;
/// Entries of a category's embedding where the spec does not say.
pub const DEFAULT_EMBEDDING_DIM: u32 = 8;
/// Most items that are sampled to learn a ranking from one row.
pub const MAX_NEGATIVES: u32 = 1024;
/// Items sampled for each row where the spec does not say.
pub const DEFAULT_NEGATIVES: u32 = 16;
/// Largest penalty on a customer's factors.
pub const MAX_RIDGE: f64 = 1e6;
/// Most layers of a transformer.
pub const MAX_TRANSFORMER_LAYERS: u32 = 12;
/// Most entries of a transformer's vectors: normalised, none is past the 32 to which the grid of gradients reads
/// activations.
pub const MAX_TRANSFORMER_WIDTH: u32 = 512;
/// Most steps that a convolution sees at a time.
pub const MAX_KERNEL: u32 = 31;
/// Most of a layer's entries that dropout zeroes.
pub const MAX_DROPOUT: f64 = 0.9;

/// A function between layers, by its usual name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationName {
    /// `max(0, z)`.
    #[default]
    Relu,
    /// `z` above 0, a hundredth of it below.
    LeakyRelu,
    /// The hyperbolic tangent; bounded, which private training of small models likes (Papernot et al. 2021, "Tempered
    /// sigmoid activations for deep learning with differential privacy").
    Tanh,
    /// `1 / (1 + e^-z)`.
    Sigmoid,
}

/// A model of the zoo.
///
/// ```
/// # use weighhouse_shared::model::{ActivationName, ModelSpec};
/// #[derive(serde::Deserialize)]
/// struct Job { model: ModelSpec }
/// let job: Job = toml::from_str("[model.mlp]\nhidden = [32]").unwrap();
/// assert_eq!(job.model, ModelSpec::Mlp { hidden: vec![32], dropout: 0.0, activation: ActivationName::Relu });
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSpec {
    /// Logistic regression: one weight for each numeric feature and one for each category, added to one logit.
    Logistic {},
    /// Multi-layer perceptron: linear layers with ReLU between them, the last to one logit. Each categorical
    /// column enters the first as an embedding of [`DEFAULT_EMBEDDING_DIM`].
    Mlp {
        /// Units of each hidden layer, first to last: 1 to 8 layers, each of 1 to 4096 units.
        hidden: Vec<u32>,
        /// Probability with which an entry of a hidden layer is zeroed while the model learns: 0 to 0.9, in steps of
        /// 1/256.
        #[serde(default)]
        dropout: f64,
        /// What is between the layers.
        #[serde(default)]
        activation: ActivationName,
    },
    /// The sum of both logits, learned together (Cheng et al. 2016, "Wide & Deep Learning for Recommender
    /// Systems"): the wide part remembers single categories, the deep part generalises over them.
    WideAndDeep {
        /// Units of each hidden layer of the deep part, as in `mlp`.
        hidden: Vec<u32>,
        /// Entries of each category's embedding in the deep part: 1 to 256.
        #[serde(default = "default_embedding_dim")]
        embedding_dim: u32,
    },
    /// Ranks or rates items by the inner product of a customer's factors and the item's, and the item's bias (Koren et
    /// al. 2009, "Matrix factorization techniques for recommender systems"). A row's history is its sequence of items. The
    /// customer's factors stay at the site: they are found from the history anew by ridge regression, so a new
    /// customer needs no training; the items' factors and biases are what is shared and learned.
    ///
    /// For labels of kind item, the sequence has one categorical column of as many ids; for a number, the rating, it has
    /// in addition one number, the item's rating, and the row's first categorical column is the item to be rated.
    MatrixFactorisation {
        /// Factors of an item: 1 to 256.
        #[serde(default = "default_dim")]
        factors: u32,
        /// Items sampled for each row to rank against: 1 to 1024.
        #[serde(default = "default_negatives")]
        negatives: u32,
        /// Penalty on a customer's factors, above 0, at most 1e6.
        #[serde(default = "default_ridge")]
        ridge: f64,
    },
    /// Ranks items (Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations"): one tower turns a row into
    /// a vector, the other, an embedding and a bias, an item; their inner product is the item's score. For labels of kind
    /// item. Learned by the cross-entropy of the right item among itself and items sampled uniformly.
    TwoTower {
        /// Units of each hidden layer of the row's tower, as in `mlp`.
        hidden: Vec<u32>,
        /// Entries of both vectors: 1 to 256.
        #[serde(default = "default_dim")]
        dim: u32,
        /// Items sampled for each row: 1 to 1024.
        #[serde(default = "default_negatives")]
        negatives: u32,
    },
    /// Long short-term memory (Hochreiter & Schmidhuber 1997): reads each row's sequence step by step, its last hidden
    /// state goes to the output with the row's other features. For rows with a sequence, and any label; items are
    /// ranked by the inner product with the vector of each.
    Lstm {
        /// Units of each layer, first to last: 1 to 8 layers, each of 1 to 1024 units.
        hidden: Vec<u32>,
        /// Probability with which an entry of a hidden state is zeroed on its way to the next layer and to the output
        /// while the model learns: 0 to 0.9, in steps of 1/256.
        #[serde(default = "default_sequence_dropout")]
        dropout: f64,
        /// Entries of each category's embedding, of steps and of rows: 1 to 256.
        #[serde(default = "default_dim")]
        embedding_dim: u32,
        /// Items sampled for each row if the label is of kind item: 1 to 1024.
        #[serde(default = "default_negatives")]
        negatives: u32,
    },
    /// Encoder over each row's sequence (Vaswani et al. 2017, "Attention Is All You Need", with the normalisation before
    /// each part, Xiong et al. 2020). A step is the sum of the embeddings of its categories, a linear layer of its numbers
    /// and the embedding of its place; the mean of the encoded steps, and what the row holds beside them, enter a linear
    /// layer. For labels of kind item it ranks the next one (Kang & McAuley 2018, "Self-Attentive Sequential
    /// Recommendation"): a step sees only those before it, and the last one's vector meets the items' as in `two_tower`.
    Transformer {
        /// Layers of attention and feed-forward: 1 to 12.
        #[serde(default = "default_layers")]
        layers: u32,
        /// Entries of a step's vector: 2 to 512, a multiple of `heads`.
        #[serde(default = "default_width")]
        width: u32,
        /// Heads of the attention, each of `width / heads` entries.
        #[serde(default = "default_heads")]
        heads: u32,
        /// Units between the two linear layers of a feed-forward part: 1 to 4096.
        #[serde(default = "default_feed_forward")]
        feed_forward: u32,
        /// Probability with which an entry of the embedded steps and behind each attention and feed-forward part is
        /// zeroed while the model learns: 0 to 0.9, in steps of 1/256.
        #[serde(default = "default_dropout")]
        dropout: f64,
        /// Items sampled for each row if it ranks: 1 to 1024.
        #[serde(default = "default_negatives")]
        negatives: u32,
    },
    /// Convolutions along each row's sequence with ReLU (Kim 2014, "Convolutional Neural Networks for Sentence
    /// Classification"; Tang & Wang 2018 for sequences of purchases): the largest value of each channel over the steps
    /// goes to the output with the row's other features. For the same rows and labels as `lstm`.
    Cnn {
        /// Channels of each convolution, first to last: 1 to 8, each of 1 to 4096 channels.
        channels: Vec<u32>,
        /// Steps that a convolution sees at a time, an odd number from 1 to 31; the sequence has zeros around it.
        #[serde(default = "default_kernel")]
        kernel: u32,
        /// Probability with which an entry of a channel is zeroed on its way to the next layer and to the output while
        /// the model learns: 0 to 0.9, in steps of 1/256.
        #[serde(default = "default_sequence_dropout")]
        dropout: f64,
        /// Entries of each category's embedding, of steps and of rows: 1 to 256.
        #[serde(default = "default_dim")]
        embedding_dim: u32,
        /// Items sampled for each row if the label is of kind item: 1 to 1024.
        #[serde(default = "default_negatives")]
        negatives: u32,
    },
}

fn default_layers() -> u32 {
    2
}

fn default_width() -> u32 {
    64
}

fn default_heads() -> u32 {
    4
}

fn default_feed_forward() -> u32 {
    256
}

fn default_dropout() -> f64 {
    0.1
}

fn default_embedding_dim() -> u32 {
    DEFAULT_EMBEDDING_DIM
}

fn default_dim() -> u32 {
    32
}

fn default_ridge() -> f64 {
    1.0
}

fn default_negatives() -> u32 {
    DEFAULT_NEGATIVES
}

fn default_kernel() -> u32 {
    3
}

fn default_sequence_dropout() -> f64 {
    0.2
}

impl ModelSpec {
    /// Checks every size. Errors name the layer and the range.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        match self {
            Self::Logistic {} => Ok(()),
            Self::Mlp { hidden, dropout, .. } => {
                check_hidden(hidden)?;
                check_dropout(*dropout)
            }
            Self::WideAndDeep { hidden, embedding_dim } => {
                check_hidden(hidden)?;
                check_embedding(*embedding_dim)
            }
            Self::MatrixFactorisation { factors, negatives, ridge } => {
                check_embedding(*factors)?;
                check_negatives(*negatives)?;
                let holds = *ridge > 0.0 && *ridge <= MAX_RIDGE;
                if holds { Ok(()) } else { Err(ModelError::Ridge { got: *ridge }) }
            }
            Self::TwoTower { hidden, dim, negatives } => {
                check_hidden(hidden)?;
                check_embedding(*dim)?;
                check_negatives(*negatives)
            }
            Self::Lstm { hidden, dropout, embedding_dim, negatives } => {
                check_hidden(hidden)?;
                check_dropout(*dropout)?;
                check_embedding(*embedding_dim)?;
                check_negatives(*negatives)
            }
            Self::Transformer { layers, width, heads, feed_forward, dropout, negatives } => {
                if *layers == 0 || *layers > MAX_TRANSFORMER_LAYERS {
                    return Err(ModelError::TransformerLayers { got: *layers });
                }
                let whole = width.checked_rem(*heads) == Some(0);
                if !whole || !(2..=MAX_TRANSFORMER_WIDTH).contains(width) {
                    return Err(ModelError::TransformerWidth { width: *width, heads: *heads });
                }
                if *feed_forward == 0 || *feed_forward > MAX_HIDDEN_UNITS {
                    return Err(ModelError::FeedForward { got: *feed_forward });
                }
                check_dropout(*dropout)?;
                check_negatives(*negatives)
            }
            Self::Cnn { channels, kernel, dropout, embedding_dim, negatives } => {
                check_hidden(channels)?;
                if kernel % 2 == 0 || *kernel > MAX_KERNEL {
                    return Err(ModelError::Kernel { got: *kernel });
                }
                check_dropout(*dropout)?;
                check_embedding(*embedding_dim)?;
                check_negatives(*negatives)
            }
        }
    }
}

fn check_hidden(hidden: &[u32]) -> Result<(), ModelError> {
    if hidden.is_empty() || hidden.len() > MAX_HIDDEN_LAYERS {
        return Err(ModelError::HiddenLayers { got: hidden.len() });
    }
    match hidden.iter().position(|&units| units == 0 || units > MAX_HIDDEN_UNITS) {
        Some(layer) => Err(ModelError::HiddenUnits { layer, got: hidden[layer] }),
        None => Ok(()),
    }
}

fn check_embedding(got: u32) -> Result<(), ModelError> {
    if got == 0 || got > MAX_EMBEDDING_DIM { Err(ModelError::EmbeddingDim { got }) } else { Ok(()) }
}

fn check_negatives(got: u32) -> Result<(), ModelError> {
    if got == 0 || got > MAX_NEGATIVES { Err(ModelError::Negatives { got }) } else { Ok(()) }
}

fn check_dropout(got: f64) -> Result<(), ModelError> {
    if (0.0..=MAX_DROPOUT).contains(&got) { Ok(()) } else { Err(ModelError::Dropout { got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Job {
        model: ModelSpec,
    }

    #[test]
    fn toml_and_bincode_carry_the_same_specs() {
        for (text, spec) in [
            ("[model.logistic]", ModelSpec::Logistic {}),
            (
                "[model.mlp]\nhidden = [64, 16]",
                ModelSpec::Mlp { hidden: vec![64, 16], dropout: 0.0, activation: ActivationName::Relu },
            ),
            (
                "[model.wide_and_deep]\nhidden = [32]",
                ModelSpec::WideAndDeep { hidden: vec![32], embedding_dim: DEFAULT_EMBEDDING_DIM },
            ),
            (
                "[model.wide_and_deep]\nhidden = [32]\nembedding_dim = 4",
                ModelSpec::WideAndDeep { hidden: vec![32], embedding_dim: 4 },
            ),
            (
                "[model.lstm]\nhidden = [128, 64]",
                ModelSpec::Lstm { hidden: vec![128, 64], dropout: 0.2, embedding_dim: 32, negatives: 16 },
            ),
            (
                "[model.cnn]\nchannels = [64, 64]",
                ModelSpec::Cnn {
                    channels: vec![64, 64],
                    kernel: 3,
                    dropout: 0.2,
                    embedding_dim: 32,
                    negatives: 16,
                },
            ),
            (
                "[model.transformer]\nlayers = 1",
                ModelSpec::Transformer {
                    layers: 1,
                    width: 64,
                    heads: 4,
                    feed_forward: 256,
                    dropout: 0.1,
                    negatives: 16,
                },
            ),
        ] {
            let job: Job = toml::from_str(text).unwrap();
            assert_eq!(job.model, spec);
            let again: Job = toml::from_str(&toml::to_string(&job).unwrap()).unwrap();
            assert_eq!(again, job);
            let bytes = bincode::serde::encode_to_vec(&job, bincode::config::standard()).unwrap();
            let (again, read): (Job, usize) =
                bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
            assert_eq!((again, read), (job, bytes.len()));
        }
    }

    #[test]
    fn unknown_models_and_keys_are_refused() {
        for bad in [
            "[model.oracle]",
            "[model.mlp]\nhidden = [4]\nlayers = 2",
            "[model.logistic]\nhidden = [4]",
            "[model.mlp]",
            "[model.mlp]\nhidden = [4]\nembedding_dim = 2",
            "[model.wide_and_deep]",
        ] {
            assert!(toml::from_str::<Job>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused_with_the_layer() {
        let refusal = |hidden: Vec<u32>| {
            ModelSpec::Mlp { hidden, dropout: 0.0, activation: ActivationName::Relu }
                .check()
                .err()
                .unwrap()
                .to_string()
        };
        assert_eq!(refusal(vec![]), "the model must have 1 to 8 hidden layers, got 0");
        assert_eq!(refusal(vec![1; 9]), "the model must have 1 to 8 hidden layers, got 9");
        assert_eq!(refusal(vec![8, 0]), "hidden layer 1 must have 1 to 4096 units, got 0");
        assert_eq!(refusal(vec![4097]), "hidden layer 0 must have 1 to 4096 units, got 4097");
        for embedding_dim in [0, 257] {
            let spec = ModelSpec::WideAndDeep { hidden: vec![4], embedding_dim };
            assert!(matches!(spec.check(), Err(ModelError::EmbeddingDim { got }) if got == embedding_dim));
        }
        for kernel in [0, 2, 33] {
            let spec = format!("[model.cnn]\nchannels = [4]\nkernel = {kernel}");
            let refusal = toml::from_str::<Job>(&spec).unwrap().model.check();
            assert!(matches!(refusal, Err(ModelError::Kernel { got }) if got == kernel));
        }
        let refusal = |text: &str| {
            let job: Job = toml::from_str(&format!("[model.transformer]\n{text}")).unwrap();
            job.model.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refusal(""), "");
        assert_eq!(refusal("layers = 13"), "a transformer has 1 to 12 layers, got 13");
        assert_eq!(refusal("feed_forward = 0"), "feed_forward must be 1 to 4096 units, got 0");
        for (width, heads) in [(64, 0), (64, 5), (0, 4), (516, 4)] {
            assert_eq!(
                refusal(&format!("width = {width}\nheads = {heads}")),
                format!(
                    "the width of a transformer must be 2 to 512 and a multiple of its heads, got {width} for {heads} heads"
                )
            );
        }
    }
}
