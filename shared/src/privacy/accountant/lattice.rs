//! What it costs that the noise is a discrete Gaussian: between nothing and next to nothing.
//!
//! Enters: the noise multiplier and the noise's standard deviation on the integer grid. Leaves: the noise multiplier
//! at which the continuous Gaussian is at most as private as the discrete one.
//!
//! The Renyi figure needs none of this (see [`super::renyi_epsilon`]). Privacy loss distributions here are
//! those of the continuous Gaussian, and the discrete one is not its post-processing exactly. It is so
//! for a slightly smaller continuous one, but for a factor that no number could show:
//!
//! Draw `y` from the continuous `N(s, sigma^2 - tau^2)` and then the integer `x` with probability proportional
//! to `exp(-(x - y)^2 / 2 tau^2)`. By Poisson summation the normaliser of the second draw is
//! `tau sqrt(2 pi) (1 + 2 sum_k exp(-2 pi^2 tau^2 k^2) cos(2 pi k y))`, constant in `y` up to a factor in
//! `1 +- e`, `e = 2.1 exp(-2 pi^2 tau^2)`. Without it, integrating `y` out leaves `exp(-(x - s)^2 / 2 sigma^2)`. So the
//! law of `x` is the discrete Gaussian with centre `s` and parameter `sigma`, each probability within a
//! factor of `((1+e)/(1-e))`; in `d` coordinates and `n` releases within its power `d n`. That
//! holds for each centre, so also for mixtures over centres, which Poisson sampling makes, and for
//! releases that look at earlier ones. Two laws within a factor `exp(eta)` of two others move a
//! claim from `(epsilon, delta)` to `(epsilon + 2 eta, exp(eta) delta)`. At `tau = 3`, `e < 2e-77`: `eta` is below
//! 1e-40 for every `d n` up to 1e36, which is below the rounding granted elsewhere.

use crate::privacy::{NoiseMultiplier, OutOfRange};

/// Standard deviation, in grid units, of the rounding step in the argument above.
const TAU: f64 = 3.0;

/// The noise multiplier to account for, so that figures for the continuous Gaussian hold for discrete
/// Gaussian noise of standard deviation parameter `sigma`, in grid units, at `noise_multiplier`.
///
/// It is `noise_multiplier x sqrt(1 - 9 / sigma^2)`, rounded down: at `sigma` of 2^16 lower by 1e-9, relative.
/// Errors if that is below the smallest noise multiplier, as it is for any `sigma` of 3 or less.
pub fn continuous_equivalent(
    noise_multiplier: NoiseMultiplier,
    sigma: f64,
) -> Result<NoiseMultiplier, OutOfRange> {
    let kept = (1.0 - (TAU / sigma) * (TAU / sigma)).max(0.0).sqrt();
    NoiseMultiplier::new(noise_multiplier.value() * kept * (1.0 - 4.0 * f64::EPSILON))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The construction at `tau = 1`, where `e` is 5.6e-9 and could be seen: one coordinate, off-centre by an
    /// integer, integrated with a step at which the trapezoid rule is exact to rounding.
    #[test]
    fn a_rounded_continuous_gaussian_is_the_discrete_one() {
        let (sigma, tau, shift) = (2.0_f64, 1.0_f64, 3.0);
        let bell = |x: f64, variance: f64| (-x * x / (2.0 * variance)).exp();
        let normaliser: f64 = (-60..=60).map(|x| bell(f64::from(x), sigma * sigma)).sum();
        let inner = sigma * sigma - tau * tau;
        let step = 1.0 / 64.0;
        let density = step / (2.0 * std::f64::consts::PI * inner).sqrt();
        for x in -4..=10 {
            let x = f64::from(x);
            let rounded: f64 = (-2000..=2000)
                .map(|k| {
                    let y = shift + f64::from(k) * step;
                    let reachable: f64 =
                        (-12..=12).map(|near| bell(y.round() + f64::from(near) - y, tau * tau)).sum();
                    density * bell(y - shift, inner) * bell(x - y, tau * tau) / reachable
                })
                .sum();
            let discrete = bell(x - shift, sigma * sigma) / normaliser;
            assert!((rounded / discrete - 1.0).abs() < 1.2e-8, "at {x}: {rounded} against {discrete}");
        }
    }

    #[test]
    fn coarse_noise_has_no_continuous_equivalent() {
        let multiplier = NoiseMultiplier::new(1.0).unwrap();
        assert!(continuous_equivalent(multiplier, 3.0).is_err());
        let fine = continuous_equivalent(multiplier, 65_536.0).unwrap().value();
        assert!(fine < 1.0 && fine > 1.0 - 2e-9);
    }
}
