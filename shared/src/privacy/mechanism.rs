//! A release's mechanism as it is recorded and drawn: exact discrete Gaussian noise on an integer
//! statistic. A constructor a statistic: sensitivity follows from the statistic, it is never an input.

use super::grid::{Grid, SENSITIVITY};
use super::{ClipNorm, NoiseMultiplier, noise_share};
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
    /// One site's share of the noise of a secure sum, on its clipped sum rounded to a coarser grid: see
    /// [`noise_share`](super::noise_share). What is paid for is the noise of `shares` such shares together.
    NoiseShare {
        /// Standard deviation of the site's noise alone, in integers.
        sigma: f64,
        /// L2 sensitivity to one customer, in integers.
        sensitivity: u64,
        /// L2 norm to which a customer's gradient is clipped.
        clip_norm: ClipNorm,
        /// Units of the loss gradient in one integer.
        granularity: f64,
        /// Binary digits that the sum loses.
        shift: u32,
        /// Entries of the sum.
        parameters: u64,
        /// Honest shares in every sum that is opened.
        shares: u32,
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

    /// Of one of `shares` shares of the noise of a sum of `parameters` entries, rounded by `shift` binary digits.
    pub fn noise_share(
        clip_norm: ClipNorm,
        shift: u32,
        parameters: u64,
        shares: u32,
        noise: NoiseMultiplier,
    ) -> Self {
        let (shift, shares) = (shift.min(SENSITIVITY.ilog2()), shares.max(1));
        let sensitivity = noise_share::sensitivity(shift, parameters);
        Self::NoiseShare {
            sigma: noise_share::share_sigma(noise, sensitivity, shares),
            sensitivity,
            clip_norm,
            granularity: clip_norm.value() / (SENSITIVITY >> shift) as f64,
            shift,
            parameters,
            shares,
        }
    }

    /// Of a histogram to which each customer adds at most [`CUSTOMER_UNITS`].
    pub fn histogram(noise: NoiseMultiplier) -> Self {
        Self::Histogram { sigma: noise.value() * CUSTOMER_UNITS as f64, sensitivity: CUSTOMER_UNITS }
    }

    /// Standard deviation of the noise, in integers.
    pub fn sigma(&self) -> f64 {
        match self {
            Self::ClippedGradientSum { sigma, .. }
            | Self::NoiseShare { sigma, .. }
            | Self::Histogram { sigma, .. } => *sigma,
        }
    }

    /// Standard deviation of the noise that is paid for, in integers: of all honest shares together if it is a share.
    pub fn paid_sigma(&self) -> f64 {
        match self {
            Self::NoiseShare { sigma, shares, .. } => sigma * f64::from(*shares).sqrt(),
            Self::ClippedGradientSum { sigma, .. } | Self::Histogram { sigma, .. } => *sigma,
        }
    }

    /// Of a share, its own noise over the sensitivity: what would be left of the guarantee if masks protected nothing.
    /// None of other mechanisms, which rest on nobody else.
    pub fn local_multiplier(&self) -> Option<f64> {
        match self {
            Self::NoiseShare { sigma, sensitivity, .. } => Some(sigma / *sensitivity as f64),
            Self::ClippedGradientSum { .. } | Self::Histogram { .. } => None,
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
                Self::NoiseShare { clip_norm, shift, parameters, shares, .. } => {
                    Self::noise_share(*clip_norm, *shift, *parameters, *shares, noise)
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
        let share = Mechanism::noise_share(clip_norm, 10, 100, 25, noise);
        assert!(share.is_of(noise) && !share.is_of(NoiseMultiplier::new(4.3).unwrap()));
        assert!((share.local_multiplier().unwrap() * 5.0 / 4.2 - 1.0).abs() < 1e-12);
        assert!((share.paid_sigma() / (4.2 * f64::from((1 << 14) + 10)) - 1.0).abs() < 1e-12);
        for shares in [0, 1, 26] {
            let Mechanism::NoiseShare { sigma, sensitivity, granularity, .. } = share else { panic!() };
            let (shift, parameters) = (10, 100);
            let other = Mechanism::NoiseShare {
                sigma,
                sensitivity,
                clip_norm,
                granularity,
                shift,
                parameters,
                shares,
            };
            assert!(!other.is_of(noise), "{shares}");
        }
    }
}
