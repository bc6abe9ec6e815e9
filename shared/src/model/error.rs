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
    /// A label that is not a probability.
    #[error("the label of row {row} is not between 0 and 1")]
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
