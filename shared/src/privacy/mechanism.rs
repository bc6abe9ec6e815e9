//! A release's mechanism as it is recorded and drawn: exact discrete Gaussian noise on an integer
//! statistic. A constructor a statistic: sensitivity follows from the statistic, it is never an input.

use super::grid::Grid;
use super::{ClipNorm, NoiseMultiplier};
use serde::{Deserialize, Serialize};

/// A customer's whole weight in a histogram, in its integer units.
pub const CUSTOMER_UNITS: u64 = 1024;

/// Discrete Gaussian noise of standard deviation `sigma` on integers that one customer changes by at most
/// `sensitivity` in L2 norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "statistic", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mechanism {
    /// The sum of clipped gradients of a batch of customers, on the grid of the clip norm.
    ClippedGradientSum {
        /// Standard deviation of the noise, in integers.
        sigma: f64,
        /// L2 sensitivity to one customer, in integers.
        sensitivity: u64,
        /// L2 norm to which a customer's gradient is clipped; the first of them, if the norm follows a quantile.
        clip_norm: ClipNorm,
        /// Units of the loss gradient in one integer.
        granularity: f64,
    },
    /// Counts of customers by score and label.
    Histogram {
        /// Standard deviation of the noise, in integers.
        sigma: f64,
        /// L2 sensitivity to one customer, in integers.
        sensitivity: u64,
    },
}

impl Mechanism {
    /// Of a sum on `grid`.
    pub fn clipped_gradient_sum(grid: &Grid, noise: NoiseMultiplier) -> Self {
        Self::ClippedGradientSum {
            sigma: noise.value() * grid.sensitivity() as f64,
            sensitivity: grid.sensitivity(),
            clip_norm: grid.recorded_clip(),
            granularity: grid.with_clip(grid.recorded_clip()).unit(),
        }
    }

    /// Of a histogram to which each customer adds at most [`CUSTOMER_UNITS`].
    pub fn histogram(noise: NoiseMultiplier) -> Self {
        Self::Histogram { sigma: noise.value() * CUSTOMER_UNITS as f64, sensitivity: CUSTOMER_UNITS }
    }

    /// Standard deviation of the noise, in integers.
    pub fn sigma(&self) -> f64 {
        match self {
            Self::ClippedGradientSum { sigma, .. } | Self::Histogram { sigma, .. } => *sigma,
        }
    }

    /// Whether this is, to the last bit, what its statistic and `noise` imply: what an entry from an
    /// untrusted file must be.
    pub fn is_of(&self, noise: NoiseMultiplier) -> bool {
        *self
            == match self {
                Self::ClippedGradientSum { clip_norm, .. } => {
                    Self::clipped_gradient_sum(&Grid::new(*clip_norm), noise)
                }
                Self::Histogram { .. } => Self::histogram(noise),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mechanism_that_does_not_follow_from_its_statistic_is_found() {
        let noise = NoiseMultiplier::new(4.2).unwrap();
        let good = Mechanism::clipped_gradient_sum(&Grid::new(ClipNorm::new(0.5).unwrap()), noise);
        assert!(good.is_of(noise) && Mechanism::histogram(noise).is_of(noise));
        assert!(!good.is_of(NoiseMultiplier::new(4.3).unwrap()));
        let Mechanism::ClippedGradientSum { sigma, clip_norm, granularity, .. } = good else { panic!() };
        let halved = Mechanism::ClippedGradientSum { sigma, sensitivity: 1 << 23, clip_norm, granularity };
        assert!(!halved.is_of(noise));
    }
}
