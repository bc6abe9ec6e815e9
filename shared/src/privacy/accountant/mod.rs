//! What a set of noised releases costs: recorded events in, epsilon at a delta out.
//!
//! Enters: a list of [`GaussianEvent`]s (what was, or will be, released) and a [`Delta`]. Leaves: an
//! epsilon that the composition of all of them does not exceed, for neighbouring data sets that
//! differ in one customer added or removed. Every rounding and series error is added to the figure,
//! so it is never below the true one. Nothing here reads a clock, a file or the data.

mod renyi;
mod solve;

use serde::{Deserialize, Serialize};

use super::{NoiseMultiplier, SamplingRate};

pub use renyi::{RenyiCurve, renyi_epsilon};
pub use solve::{OutOfReach, noise_for};

/// One recorded spend: `steps` releases of a discrete Gaussian with standard deviation
/// `noise_multiplier` x sensitivity, each over a Poisson sample at `sampling_rate`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GaussianEvent {
    /// Standard deviation of the noise over the L2 sensitivity of the sum it hides.
    pub noise_multiplier: NoiseMultiplier,
    /// Probability with which each customer enters each release, independently of all others.
    pub sampling_rate: SamplingRate,
    /// Number of releases; 0 costs nothing.
    pub steps: u32,
}
