//! The layers, each with its forward and its backward by hand over row-major slices.
//!
//! Every output row depends on its own input row (or its own row's steps or candidates) and the parameters alone, to
//! the last bit: what [`product`](super::product) promises for products, and plain loops keep.

mod dropout;
mod embedding;
mod linear;
mod lstm;
mod pool;
mod squash;
mod unfold;

pub(super) use dropout::Dropout;
pub(super) use embedding::{Embedding, add_embedding_gradient};
pub(super) use linear::{Activation, Linear, add_linear_gradient};
pub(super) use lstm::{Lstm, LstmStates, Recurrence};
pub(super) use pool::Pooling;
pub(super) use unfold::Unfold;
