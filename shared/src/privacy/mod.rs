//! What a privacy claim is made of: checked parameters, the integer grid, exact noise, the accountant.

pub mod accountant;
pub mod grid;
mod parameters;

pub use parameters::{ClipNorm, Delta, Epsilon, NoiseMultiplier, OutOfRange, SamplingRate};
