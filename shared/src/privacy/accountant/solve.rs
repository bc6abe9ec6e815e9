//! The accountant turned round: which noise reaches a wanted epsilon.
//!
//! Enters: the epsilon and delta to be kept, and the plan's other parameters. Leaves: the smallest
//! parameter for which the certified figure keeps them, or why there is none.

use super::{GaussianEvent, renyi_epsilon};
use crate::privacy::{Delta, Epsilon, NoiseMultiplier, SamplingRate};

/// Width, relative to the answer, at which the search for a noise multiplier ends.
const NOISE_TOLERANCE: f64 = 1e-4;

/// Why no parameter keeps the wanted epsilon.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "no noise multiplier up to {largest} keeps epsilon {epsilon}: at the largest it is {reached}; \
     raise epsilon or delta, or plan fewer steps or a lower sampling rate"
)]
pub struct OutOfReach {
    largest: f64,
    epsilon: f64,
    reached: f64,
}

/// The smallest noise multiplier, to 1e-4 relative and rounded up, at which `steps` releases over Poisson
/// samples at `sampling_rate` keep `epsilon` at `delta`.
///
/// Errors if even the largest noise multiplier there is does not suffice.
pub fn noise_for(
    epsilon: Epsilon,
    delta: Delta,
    sampling_rate: SamplingRate,
    steps: u32,
) -> Result<NoiseMultiplier, OutOfReach> {
    let (smallest, largest) = (noise(0.1), noise(1e6));
    let spent =
        |noise_multiplier| renyi_epsilon(&[GaussianEvent { noise_multiplier, sampling_rate, steps }], delta);
    let keeps = |noise_multiplier| spent(noise_multiplier) <= epsilon.value();
    if keeps(smallest) {
        return Ok(smallest);
    }
    if !keeps(largest) {
        return Err(OutOfReach {
            largest: largest.value(),
            epsilon: epsilon.value(),
            reached: spent(largest),
        });
    }
    let (mut below, mut above) = (smallest.value(), largest.value());
    while above / below > 1.0 + NOISE_TOLERANCE {
        let middle = (below * above).sqrt();
        if keeps(noise(middle)) {
            above = middle;
        } else {
            below = middle;
        }
    }
    Ok(noise(above))
}

/// A noise multiplier known to be in range.
fn noise(value: f64) -> NoiseMultiplier {
    NoiseMultiplier::new(value).expect("between the smallest and the largest noise multiplier")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solved_noise_keeps_epsilon_and_a_little_less_does_not() {
        let (epsilon, delta) = (Epsilon::new(2.0).unwrap(), Delta::new(1e-6).unwrap());
        let rate = SamplingRate::new(0.05).unwrap();
        let solved = noise_for(epsilon, delta, rate, 200).unwrap();
        let spent = |value: f64| {
            let noise_multiplier = NoiseMultiplier::new(value).unwrap();
            renyi_epsilon(&[GaussianEvent { noise_multiplier, sampling_rate: rate, steps: 200 }], delta)
        };
        assert!(spent(solved.value()) <= 2.0);
        assert!(spent(solved.value() * (1.0 - 1.1e-4)) > 2.0);
    }

    #[test]
    fn an_epsilon_out_of_reach_is_refused_with_the_figure_reached() {
        let error = noise_for(
            Epsilon::new(1e-9).unwrap(),
            Delta::new(1e-12).unwrap(),
            SamplingRate::new(1.0).unwrap(),
            u32::MAX,
        )
        .unwrap_err();
        assert!(error.to_string().contains("raise epsilon or delta"), "{error}");
    }
}
