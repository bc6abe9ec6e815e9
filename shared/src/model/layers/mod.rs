//! The layers, each with its forward and its backward by hand over row-major slices.
//!
//! Every output row depends on its own input row (or its own row's steps or candidates) and the parameters alone, to
//! the last bit: what [`product`](super::product) promises for products, and plain loops keep.

mod attention;
mod dropout;
mod elementwise;
mod embedding;
mod factors;
mod layer_norm;
mod linear;
mod lstm;
mod pool;
mod squash;
mod unfold;

pub(super) use attention::{Attention, AttentionScratch};
pub(super) use dropout::Dropout;
pub(super) use embedding::{Embedding, add_embedding_gradient};
pub(super) use factors::Factors;
pub(super) use layer_norm::{EPSILON, LayerNorm};
pub(super) use linear::{Activation, LEAK, Linear, add_linear_gradient};
pub(super) use lstm::{InputGradients, Lstm, LstmStates, Recurrence};
pub(super) use pool::Pooling;
pub(super) use unfold::Unfold;
