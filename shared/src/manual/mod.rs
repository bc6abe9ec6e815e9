//! The manual: how it works and why it is so, beside the code it speaks of.

pub mod decisions;
pub mod prediction;
pub mod privacy;
pub mod production;
pub mod protocol;
pub mod robustness;
pub mod secure_sum;
