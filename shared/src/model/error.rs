//! Why a model could not be built, run, differentiated or read.

/// Why a model could not be built, run or differentiated. Names sizes and rows, never values.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Too few or too many hidden layers.
    #[error("the model must have 1 to 8 hidden layers, got {got}")]
    HiddenLayers {
        /// Layers in the spec.
        got: usize,
    },
    /// A hidden layer that is empty or too wide.
    #[error("hidden layer {layer} must have 1 to 4096 units, got {got}")]
    HiddenUnits {
        /// Position of the layer, from 0.
        layer: usize,
        /// Units in the spec.
        got: u32,
    },
    /// An embedding that is empty or too wide.
    #[error("embedding_dim must be 1 to 256, got {got}")]
    EmbeddingDim {
        /// Entries in the spec.
        got: u32,
    },
    /// No items to tell the right one from, or too many.
    #[error("negatives must be 1 to 1024, got {got}")]
    Negatives {
        /// Sampled items in the spec.
        got: u32,
    },
    /// A dropout that leaves too little.
    #[error("dropout must be 0 to 0.9, got {got}")]
    Dropout {
        /// The probability in the spec.
        got: f64,
    },
    /// No layers of a transformer, or too many.
    #[error("a transformer has 1 to 12 layers, got {got}")]
    TransformerLayers {
        /// Layers in the spec.
        got: u32,
    },
    /// Steps' vectors that are empty, too wide, or not of whole heads.
    #[error(
        "the width of a transformer must be 2 to 512 and a multiple of its heads, got {width} for {heads} heads"
    )]
    TransformerWidth {
        /// Entries in the spec.
        width: u32,
        /// Heads in the spec.
        heads: u32,
    },
    /// A feed-forward part that is empty or too wide.
    #[error("feed_forward must be 1 to 4096 units, got {got}")]
    FeedForward {
        /// Units in the spec.
        got: u32,
    },
    /// A layer that is empty or too wide.
    #[error("a layer has 1 to {limit} outputs, got {got}: choose smaller sizes for the model")]
    Outputs {
        /// Most outputs.
        limit: usize,
        /// Outputs asked for.
        got: usize,
    },
    /// More layers than a network may have.
    #[error("a model has at most {limit} linear layers, got {got}: choose fewer layers")]
    Layers {
        /// Most layers.
        limit: usize,
        /// Layers asked for.
        got: usize,
    },
    /// Sequences that are empty or too long.
    #[error("a sequence has a length of 1 to 1024 steps, got {got}")]
    Steps {
        /// Most steps asked for.
        got: usize,
    },
    /// One class, or too many.
    #[error("a label has 2 to 4096 classes, got {got}")]
    Classes {
        /// Classes asked for.
        got: usize,
    },
    /// One item, or too many.
    #[error("2 to 1048576 items can be ranked, got {got}")]
    Items {
        /// Items asked for.
        got: usize,
    },
    /// A model without vectors to rank by.
    #[error(
        "this model cannot rank items: choose two_tower, matrix_factorisation or a model of sequences for a label of kind item"
    )]
    CannotRank,
    /// A history that is not one of items.
    #[error(
        "matrix_factorisation needs one sequence feature of items: with the items of the label if that is of kind item; with a number besides, and a first categorical feature of the same items, if the label is a number"
    )]
    History,
    /// A penalty that is none or too large.
    #[error("ridge must be above 0 and at most 1e6, got {got}")]
    Ridge {
        /// The penalty in the spec.
        got: f64,
    },
    /// A model of sequences without any.
    #[error("this model reads sequences, and the schema has no feature with a `length`")]
    NoSequence,
    /// No inputs, or too many.
    #[error("a model takes 1 to 65536 inputs, got {got}: check the columns of the schema")]
    Inputs {
        /// Inputs asked for, those from embeddings among them.
        got: usize,
    },
    /// A categorical column without ids, or with too many.
    #[error("categorical column {column} must have 1 to {limit} ids, got {got}")]
    Vocabulary {
        /// Position among the categorical columns, from 0.
        column: usize,
        /// Ids asked for.
        got: usize,
        /// Most ids.
        limit: usize,
    },
    /// More parameters than the zoo allows.
    #[error(
        "a model has at most {limit} parameters, got {got}: choose narrower hidden layers, smaller embeddings or fewer categories"
    )]
    Parameters {
        /// The limit.
        limit: usize,
        /// Parameters that the spec would have.
        got: usize,
    },
    /// A slice whose length does not fit the network.
    #[error("expected {expected} {what}, got {got}")]
    Length {
        /// What the slice holds.
        what: &'static str,
        /// Length that fits.
        expected: usize,
        /// Length given.
        got: usize,
    },
    /// `customer_starts` is not 0, ..., rows with at least one row each.
    #[error(
        "customer {customer} of the batch has no row or rows that are out of order: customer_starts must rise from 0 to the number of rows"
    )]
    CustomerStarts {
        /// Position of the customer in the batch.
        customer: usize,
    },
    /// More rows than one customer may have.
    #[error("customer {customer} of the batch has {got} rows, at most {limit} are allowed")]
    CustomerRows {
        /// Position of the customer in the batch.
        customer: usize,
        /// Rows of that customer.
        got: usize,
        /// Most rows.
        limit: usize,
    },
    /// An id that is not in its column's vocabulary.
    #[error("the id of row {row} in categorical column {column} is outside its vocabulary of {vocabulary}")]
    Id {
        /// Row of the batch.
        row: usize,
        /// Position among the categorical columns, from 0.
        column: usize,
        /// Ids of that column.
        vocabulary: usize,
    },
    /// `step_starts` is not 0, ..., steps with at most the sequence's length each.
    #[error("the steps of row {row} are out of order or more than {limit}")]
    StepStarts {
        /// Row of the batch.
        row: usize,
        /// Most steps.
        limit: usize,
    },
    /// A label that the target does not have.
    #[error("the label of row {row} is out of range")]
    Label {
        /// Row of the batch.
        row: usize,
    },
    /// A NaN or an infinity.
    #[error("{what} {row} is not finite")]
    NotFinite {
        /// What is counted by `row`: `input row`, `gradient of row` or `parameter`.
        what: &'static str,
        /// Row of the batch, or position of the parameter.
        row: usize,
    },
    /// candle refused a tensor operation.
    #[error("tensor operation failed")]
    Tensor(#[source] Box<candle_core::Error>),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(Box::new(error))
    }
}

/// Fails unless `got == expected`.
pub(super) fn expect_length(what: &'static str, expected: usize, got: usize) -> Result<(), ModelError> {
    if got == expected { Ok(()) } else { Err(ModelError::Length { what, expected, got }) }
}
