//! What it costs that the noise is a discrete Gaussian: between nothing and next to nothing.
//!
//! Enters: the noise multiplier and the noise's parameter `sigma` on the integer grid. Leaves: the noise multiplier
//! at which the continuous Gaussian is at most as private as the discrete one, so that an upper figure
//! found for the continuous one holds for the discrete one. Lower figures are about continuous noise alone.
//!
//! The Renyi figure needs none of this (see [`super::renyi_epsilon`]). Privacy loss distributions here are
//! those of the continuous Gaussian, and the discrete one is not its post-processing exactly. It is so
//! for a slightly smaller continuous one, but for a factor that no number could show.
//!
//! **What is claimed.** A release adds to an integer vector of `d` coordinates, the sum over a Poisson sample, an
//! independent discrete Gaussian of parameter `sigma > 3` on each coordinate. One customer moves the sum by an
//! integer vector `v` of norm at most `S = sigma / noise_multiplier`, which may depend on earlier releases and
//! not on who else is sampled. Let `n` such releases have `d n <= 1e36`, and let [`super::epsilon`] say `upper` at a
//! `delta` of `1e-24` or more for the same plan at [`continuous_equivalent`]. Then they are `(upper, delta)`-private.
//!
//! **One coordinate.** Draw `y` from the continuous `N(s, sigma^2 - tau^2)`, `s` an integer, and then the integer `x` with
//! probability `exp(-(x - y)^2 / 2 tau^2) / Z(y)`. By Poisson summation `Z(y)` is
//! `tau sqrt(2 pi) (1 + 2 sum_k exp(-2 pi^2 tau^2 k^2) cos(2 pi k y))`: within `1 +- e` of `tau sqrt(2 pi)`,
//! `e = 2.1 exp(-2 pi^2 tau^2)`. With `tau sqrt(2 pi)` in its place, integrating `y` out leaves the density of
//! `N(s, sigma^2)` at `x`. So the law of `x` is that density within `1 / (1 +- e)`; and as it sums to one, the density's
//! sum over the integers is within `1 +- e`, so the law of `x` is the discrete Gaussian with centre `s`
//! within a factor `(1+e)/(1-e)` either way.
//!
//! **A release.** The second draw does not know `s`: it is post-processing, on each coordinate by itself. In `d`
//! coordinates the factor is the `d`-th power, whatever integer vector the centre is; so it holds for
//! mixtures over centres, which Poisson sampling makes, with the same weights on both sides.
//!
//! **All releases.** A transcript's probability is a product of each release's given those before, so the two
//! transcripts' laws are within `exp(eta)`, `eta = d n ln((1+e)/(1-e))`, of one another, and the next release may
//! look at earlier ones. The continuous side, before the second draws, is a composition of sampled Gaussian
//! releases with shifts of at most `S` and deviation `sqrt(sigma^2 - tau^2)`. Given the sample of all others, rotating
//! `v` onto an axis makes each one-dimensional; hockey-stick divergence is jointly convex, so mixing over that sample
//! does not raise it, and a shorter shift is a longer one with noise added. So each is dominated, in either
//! direction, by the pair of laws that [`super::epsilon`] composes, and domination survives adaptive composition
//! of a fixed number of releases with fixed parameters (Zhu, Dong and Wang 2022, Theorem 10).
//!
//! **What the factor does.** Let `P <= exp(eta) P'` and `Q' <= exp(eta) Q`, with `(P', Q')` at `(epsilon, delta')`. On a set
//! `A` where `P(A) > exp(epsilon) Q(A)`, so that the right side is below 1, `P(A) <= exp(epsilon + 2 eta) Q(A) + exp(eta) delta'
//! <= exp(epsilon) Q(A) + exp(2 eta) - 1 + exp(eta) delta'`: delta grows by less than `4 eta`, epsilon not at all. At
//! `tau = 3`, `e < 2e-77`, so `4 eta < 4e-40` while `d n <= 1e36`. The accountant grants its rounding at least 1e-13 of
//! delta, of which rounding takes less than half: at a `delta` of 1e-24 the rest is a hundred times `4 eta`.

use crate::privacy::{NoiseMultiplier, OutOfRange};

/// Standard deviation, in grid units, of the rounding step in the argument above.
const TAU: f64 = 3.0;

/// The noise multiplier to account for, so that figures for the continuous Gaussian hold for discrete
/// Gaussian noise of standard deviation parameter `sigma`, in grid units, at `noise_multiplier`.
///
/// It is `noise_multiplier x sqrt(1 - 9 / sigma^2)`, rounded down: at `sigma` of 2^16 lower by 1.1e-9, relative; at that of a
/// training job, 2^24 times the noise multiplier, by less than `f64` shows.
/// Errors if that is below the smallest noise multiplier, as it is for any `sigma` of 3 or less.
pub fn continuous_equivalent(
    noise_multiplier: NoiseMultiplier,
    sigma: f64,
) -> Result<NoiseMultiplier, OutOfRange> {
    // As a product: near 3 a difference of squares would lose its digits, and more than is taken off below.
    let kept = ((sigma - TAU) * (sigma + TAU)).max(0.0).sqrt() / sigma;
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
        for no_sigma in [f64::NAN, f64::INFINITY, -10.0, 0.0] {
            assert!(continuous_equivalent(multiplier, no_sigma).is_err(), "{no_sigma}");
        }
    }

    /// With `sigma = 3 + u` the root is of `u (6 + u)`, in which nothing cancels.
    #[test]
    fn just_above_the_coarsest_sigma_the_equivalent_is_still_rounded_down() {
        let multiplier = NoiseMultiplier::new(1e6).unwrap();
        for u in [2f64.powi(-10), 2f64.powi(-25), 2f64.powi(-40)] {
            let found = continuous_equivalent(multiplier, 3.0 + u).unwrap().value();
            let exact = 1e6 * (u * (6.0 + u)).sqrt() / (3.0 + u);
            assert!(found < exact && found > exact * (1.0 - 1e-14), "{u:e}: {found} against {exact}");
        }
    }
}
