//! The distributions that made-up shoppers are drawn from: enters a generator and a parameter, leaves one
//! value.
//!
//! For simulation only: privacy noise is never drawn here.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma, LogNormal, Normal, Poisson};

/// Mean 0.
pub fn normal(deviation: f64, rng: &mut ChaCha8Rng) -> f64 {
    Normal::new(0.0, deviation).expect("deviations are finite constants").sample(rng)
}

/// Median 1.
pub fn lognormal(deviation: f64, rng: &mut ChaCha8Rng) -> f64 {
    LogNormal::new(0.0, deviation).expect("deviations are finite constants").sample(rng)
}

/// Mean `shape`, which must be positive.
pub fn gamma(shape: f64, rng: &mut ChaCha8Rng) -> f64 {
    Gamma::new(shape, 1.0).expect("shapes are positive").sample(rng)
}

/// 0 if `mean` is 0.
pub fn poisson(mean: f64, rng: &mut ChaCha8Rng) -> f64 {
    if mean == 0.0 { 0.0 } else { Poisson::new(mean).expect("means are small and positive").sample(rng) }
}

/// Scales non-negative `weights` to a sum of 1.
pub fn shares<const N: usize>(weights: [f64; N]) -> [f64; N] {
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

/// An index with the probability that `shares`, which sum to 1, give it.
pub fn pick(shares: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let mut left: f64 = rng.random();
    shares
        .iter()
        .position(|share| {
            left -= share;
            left < 0.0
        })
        .unwrap_or(shares.len() - 1)
}

/// The probability that has these log odds.
pub fn logistic(log_odds: f64) -> f64 {
    1.0 / (1.0 + (-log_odds).exp())
}
