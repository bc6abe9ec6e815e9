//! The accountant turned round: which noise, or how many steps, reach a wanted epsilon.
//!
//! Enters: the epsilon and delta to be kept, and the plan's other parameters. Leaves: the smallest noise
//! multiplier or the largest number of steps for which the certified upper figure keeps them, or why
//! there is none.

use super::{GaussianEvent, RenyiCurve, epsilon as figures, renyi_epsilon};
use crate::privacy::{Delta, Epsilon, NoiseMultiplier, SamplingRate};

/// Width, relative to the answer, at which the search for a noise multiplier ends.
const NOISE_TOLERANCE: f64 = 1e-4;

/// Why no noise multiplier keeps the wanted epsilon.
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
/// samples at `sampling_rate` keep `epsilon` at `delta`, by the certified upper figure.
///
/// Errors if even the largest noise multiplier there is does not suffice.
pub fn noise_for(
    epsilon: Epsilon,
    delta: Delta,
    sampling_rate: SamplingRate,
    steps: u32,
) -> Result<NoiseMultiplier, OutOfReach> {
    let (smallest, largest) = (0.1, 1e6);
    let event = |value| GaussianEvent { noise_multiplier: noise(value), sampling_rate, steps };
    let renyi = |value| renyi_epsilon(&[event(value)], delta);
    let certified = |value| figures(&[event(value)], delta).upper;
    // The Renyi figure is the cheaper one: it finds a noise multiplier that suffices.
    let enough = if renyi(largest) <= epsilon.value() {
        narrow(smallest, largest, 1e-3, |value| renyi(value) <= epsilon.value()).1
    } else {
        let reached = certified(largest);
        if reached > epsilon.value() {
            return Err(OutOfReach { largest, epsilon: epsilon.value(), reached });
        }
        largest
    };
    let keeps = |value: f64| certified(value) <= epsilon.value();
    // From there down in growing strides to one that does not.
    let (mut above, mut below, mut stride) = (enough, enough, 0.99);
    loop {
        below = (below * stride).max(smallest);
        if !keeps(below) {
            break;
        }
        above = below;
        if below == smallest {
            return Ok(noise(smallest));
        }
        stride *= stride;
    }
    Ok(noise(narrow(below, above, NOISE_TOLERANCE, keeps).1))
}

/// [`noise_for`] by the Renyi figure: a little more noise, and valid also where what follows is chosen
/// after seeing what came before, as a site's budget over many jobs is.
pub fn renyi_noise_for(
    epsilon: Epsilon,
    delta: Delta,
    sampling_rate: SamplingRate,
    steps: u32,
) -> Result<NoiseMultiplier, OutOfReach> {
    let (smallest, largest) = (0.1, 1e6);
    let figure = |value| {
        renyi_epsilon(&[GaussianEvent { noise_multiplier: noise(value), sampling_rate, steps }], delta)
    };
    let reached = figure(largest);
    if reached > epsilon.value() {
        return Err(OutOfReach { largest, epsilon: epsilon.value(), reached });
    }
    Ok(noise(narrow(smallest, largest, NOISE_TOLERANCE, |value| figure(value) <= epsilon.value()).1))
}

/// The largest number of steps at `noise_multiplier` and `sampling_rate` that keeps `epsilon` at `delta`, by the
/// certified upper figure; 0 if a single one does not, `u32::MAX` if that many do.
pub fn steps_for(
    epsilon: Epsilon,
    delta: Delta,
    noise_multiplier: NoiseMultiplier,
    sampling_rate: SamplingRate,
) -> u32 {
    let event = |steps| GaussianEvent { noise_multiplier, sampling_rate, steps };
    let keeps = |steps| figures(&[event(steps)], delta).upper <= epsilon.value();
    let enough = renyi_steps_for(epsilon, delta, noise_multiplier, sampling_rate);
    let (mut below, mut above, mut stride) = (enough, enough, 1);
    while above < u32::MAX {
        above = above.saturating_add(stride.max(enough / 64));
        if !keeps(above) {
            return largest_that(below, above - 1, keeps);
        }
        below = above;
        stride = stride.saturating_mul(4);
    }
    below
}

/// [`steps_for`] by the Renyi figure: no more steps, valid also where what follows is chosen after seeing what came
/// before.
pub fn renyi_steps_for(
    epsilon: Epsilon,
    delta: Delta,
    noise_multiplier: NoiseMultiplier,
    sampling_rate: SamplingRate,
) -> u32 {
    let step = RenyiCurve::of_one_step(noise_multiplier, sampling_rate);
    largest_that(0, u32::MAX, |steps| step.clone().scaled(steps).epsilon(delta) <= epsilon.value())
}

/// The largest number from `low`, which is taken to pass, to `high` that passes.
fn largest_that(mut low: u32, mut high: u32, passes: impl Fn(u32) -> bool) -> u32 {
    while low < high {
        let middle = high - (high - low) / 2;
        if passes(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Two numbers within `tolerance` of each other, relative, the upper of which passes; `above` is taken to.
fn narrow(mut below: f64, mut above: f64, tolerance: f64, passes: impl Fn(f64) -> bool) -> (f64, f64) {
    while above / below > 1.0 + tolerance {
        let middle = (below * above).sqrt();
        if passes(middle) { above = middle } else { below = middle }
    }
    (below, above)
}

/// A noise multiplier known to be in range.
fn noise(value: f64) -> NoiseMultiplier {
    NoiseMultiplier::new(value).expect("between the smallest and the largest noise multiplier")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(noise_multiplier: f64, rate: SamplingRate, steps: u32, delta: Delta) -> f64 {
        let noise_multiplier = NoiseMultiplier::new(noise_multiplier).unwrap();
        figures(&[GaussianEvent { noise_multiplier, sampling_rate: rate, steps }], delta).upper
    }

    #[test]
    fn solved_noise_keeps_epsilon_and_a_little_less_does_not() {
        let (epsilon, delta) = (Epsilon::new(2.0).unwrap(), Delta::new(1e-6).unwrap());
        for rate in [0.05, 1.0].map(|rate| SamplingRate::new(rate).unwrap()) {
            let solved = noise_for(epsilon, delta, rate, 200).unwrap().value();
            assert!(spent(solved, rate, 200, delta) <= 2.0);
            assert!(spent(solved * (1.0 - 2e-4), rate, 200, delta) > 2.0);
        }
    }

    #[test]
    fn solved_steps_keep_epsilon_and_one_more_does_not() {
        let (epsilon, delta) = (Epsilon::new(1.0).unwrap(), Delta::new(1e-6).unwrap());
        let (multiplier, rate) = (NoiseMultiplier::new(2.0).unwrap(), SamplingRate::new(0.05).unwrap());
        let solved = steps_for(epsilon, delta, multiplier, rate);
        assert!(spent(2.0, rate, solved, delta) <= 1.0);
        assert!(spent(2.0, rate, solved + 1, delta) > 1.0);
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
