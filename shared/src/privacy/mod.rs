//! What a privacy claim is made of: checked parameters, the integer grid, exact noise, the accountant.

pub mod accountant;
pub mod grid;
mod discrete_gaussian;
mod generator;
mod mechanism;
pub mod noise_share;
mod parameters;

pub use discrete_gaussian::{DiscreteGaussian, SigmaOutOfRange};
pub use generator::{Generator, GeneratorError};
pub use mechanism::{CUSTOMER_UNITS, Mechanism};
pub use parameters::{ClipNorm, Delta, Epsilon, NoiseMultiplier, OutOfRange, SamplingRate};
