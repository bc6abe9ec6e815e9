//! The zoo: a spec becomes a network; flat parameters become named tensors; rows become logits and factors.
//!
//! What leaves a site is never made here: this module computes in floats, per row, and leaves the
//! factors of each layer's gradient in a [`Workspace`], tap by tap, from which
//! [`privacy::grid`](crate::privacy::grid) makes exact integer sums. Training runs on hand-written layers
//! ([`Network`]); evaluation and prediction run the same forward on candle tensors ([`score()`]).

mod artifact;
mod batch;
mod embedding;
mod error;
mod layout;
mod linear;
mod network;
mod optimizer;
mod product;
#[cfg(test)]
pub(crate) mod reference;
mod score;
mod server_optimizer;
mod spec;
mod workspace;

pub use artifact::{ArtifactError, MAX_HEADER_BYTES, ModelArtifact};
pub use batch::Batch;
pub use error::ModelError;
pub use layout::TensorSpec;
pub use network::{MAX_INPUTS, MAX_PARAMETERS, MAX_VOCABULARY, Network, binary_cross_entropy};
pub use optimizer::{LocalOptimizer, Optimizer, Schedule};
pub(crate) use product::{Packing, View, add_product, add_rows, add_weighted_rows, dot};
pub use score::score;
pub use server_optimizer::{ServerOptimizer, ServerState};
pub use spec::{DEFAULT_EMBEDDING_DIM, MAX_EMBEDDING_DIM, MAX_HIDDEN_LAYERS, MAX_HIDDEN_UNITS, ModelSpec};
pub use workspace::{EmbeddingFactors, LinearFactors, Workspace};
