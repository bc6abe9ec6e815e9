//! The zoo: a spec becomes a network; flat parameters become named tensors; rows become logits and factors.
//!
//! What leaves a site is never made here: this module computes in floats, per row, and leaves the
//! factors of each layer's gradient in a [`Workspace`], tap by tap, from which
//! [`privacy::grid`](crate::privacy::grid) makes exact integer sums. A spec becomes nodes in a straight line (`zoo`,
//! `graph`); training runs them on hand-written layers ([`Network`]), evaluation and prediction on candle tensors
//! ([`score()`]).

mod aligned;
mod artifact;
mod batch;
mod device;
mod error;
mod gram;
mod graph;
mod layers;
mod loss;
mod network;
mod optimizer;
mod product;
#[cfg(test)]
pub(crate) mod reference;
mod score;
mod server_optimizer;
mod spec;
mod tensors;
mod vectors;
mod weights;
mod workspace;
mod zoo;

pub(crate) use aligned::Aligned;
pub use artifact::{ArtifactError, MAX_HEADER_BYTES, ModelArtifact};
pub use batch::{Batch, Rows};
pub use device::{DeviceChoice, DeviceError, Engine};
pub use error::ModelError;
pub(crate) use gram::{GramElement, gram_error, push_gram};
pub use graph::{Level, MAX_INPUTS, MAX_LINEAR_TAPS, MAX_OUTPUTS, MAX_PARAMETERS, Slot, Tap, TensorSpec};
pub use loss::{binary_cross_entropy, loss, predict};
pub use network::Network;
pub use optimizer::{LocalOptimizer, Optimizer, Schedule};
pub use product::TILE_ROWS;
pub(crate) use product::{
    DEPTH_BLOCK, Packing, SQUARES_ERROR, Size, add_outer_products, write_outer_products,
};
pub use score::score;
pub use server_optimizer::{ServerOptimizer, ServerState};
pub use spec::{
    ActivationName, DEFAULT_EMBEDDING_DIM, DEFAULT_NEGATIVES, MAX_DROPOUT, MAX_EMBEDDING_DIM,
    MAX_HIDDEN_LAYERS, MAX_HIDDEN_UNITS, MAX_KERNEL, MAX_NEGATIVES, MAX_RIDGE, MAX_TRANSFORMER_LAYERS,
    MAX_TRANSFORMER_WIDTH, ModelSpec,
};
pub(crate) use vectors::{
    INTEGER_LIMIT, add_rows, add_weighted_rows, dot, dot_error, integer, largest_magnitude,
};
pub use vectors::{all_finite, vectorised};
pub use workspace::Workspace;
pub use zoo::{MAX_STEPS, MAX_VOCABULARY};
