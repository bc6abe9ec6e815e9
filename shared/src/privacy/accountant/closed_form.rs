//! Releases over everyone: the Gaussian mechanism's own delta, inverted.
//!
//! Enters: `mu`, the square root of the sum of `steps / noise_multiplier^2`, and a delta. Leaves: an interval
//! that holds the exact epsilon, a few unit round-offs wide. Composing Gaussian releases gives one
//! Gaussian release, so nothing is lost in the composition (Balle and Wang 2018, Theorem 8).

use crate::privacy::Delta;

/// Relative error granted to [`mills`] and to the density beside it.
const ERROR: f64 = 1e-13;

/// The exact epsilon at `delta` lies between the two figures, lower first. `mu` may be off by `error`, relative.
pub(super) fn epsilon(mu: f64, error: f64, delta: Delta) -> (f64, f64) {
    let mu = (mu * (1.0 - error), mu * (1.0 + error));
    let lower = crossing(|epsilon| delta_at(mu.0, epsilon).0 > delta.value()).0;
    let upper = crossing(|epsilon| delta_at(mu.1, epsilon).1 > delta.value()).1;
    (lower, upper)
}

/// The two sides, a few unit round-offs apart, of where `exceeds` turns false; it is true below.
fn crossing(exceeds: impl Fn(f64) -> bool) -> (f64, f64) {
    if !exceeds(0.0) {
        return (0.0, 0.0);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while exceeds(high) {
        (low, high) = (high, 2.0 * high);
        if high > 1e300 {
            return (low, f64::INFINITY);
        }
    }
    for _ in 0..1100 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high || high - low < 1e-14 * low {
            break;
        }
        if exceeds(middle) { low = middle } else { high = middle }
    }
    (low, high)
}

/// Bounds on `Phi(-a) - exp(epsilon) Phi(-b)`, `a = epsilon/mu - mu/2`, `b = epsilon/mu + mu/2`.
///
/// With the density `phi`, `exp(epsilon) phi(b) = phi(a)`: both terms are `phi(a)` times a Mills ratio.
fn delta_at(mu: f64, epsilon: f64) -> (f64, f64) {
    let (a, b) = (epsilon / mu - 0.5 * mu, epsilon / mu + 0.5 * mu);
    // `a` is off by a few units of `b`, which moves the density's exponent by `a` times that.
    let granted = ERROR + 4.0 * f64::EPSILON * (b + a.abs()) * (1.0 + a.abs());
    let density =
        (-0.5 * a * a).exp() * 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    let (tail, rest) = if a > 0.0 {
        (density * mills(a), density * mills(b))
    } else {
        (0.5 * libm::erfc(a * std::f64::consts::FRAC_1_SQRT_2), density * mills(b))
    };
    (tail * (1.0 - granted) - rest * (1.0 + granted), tail * (1.0 + granted) - rest * (1.0 - granted))
}

/// `Phi(-x) / phi(x)` for `x >= 0`.
fn mills(x: f64) -> f64 {
    if x < 8.0 {
        let root = (0.5 * std::f64::consts::PI).sqrt();
        return root * (0.5 * x * x).exp() * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2);
    }
    // Laplace's continued fraction; from x = 8 on forty terms are exact to rounding.
    let mut fraction = x;
    for k in (1..=40).rev() {
        fraction = x + f64::from(k) / fraction;
    }
    1.0 / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `exact` in accounting.json, and the textbook value for mu = 1.
    #[test]
    fn published_closed_forms_are_met() {
        for (mu_squared, delta, exact) in [
            (1.0, 1e-5, 4.3771780956812245),
            (1.0, 1e-6, 4.886554117462212),
            (2.5, 1e-5, 7.511275900744782),
            (100.0, 1e-6, 96.7172719638677),
            (40.0, 1e-5, 46.2112101912181),
        ] {
            let (lower, upper) = epsilon(f64::sqrt(mu_squared), 1e-15, Delta::new(delta).unwrap());
            assert!(lower <= upper && upper - lower < 1e-9 * exact, "{lower} to {upper}");
            assert!((upper - exact).abs() < 1e-8, "mu^2 {mu_squared}: {upper} against {exact}");
        }
    }

    #[test]
    fn a_release_that_moves_nothing_costs_nothing() {
        assert_eq!(epsilon(1e-6, 1e-15, Delta::new(1e-5).unwrap()), (0.0, 0.0));
    }

    #[test]
    fn both_forms_of_the_mills_ratio_agree_where_they_meet() {
        let (below, above) = (mills(8.0 - 1e-12), mills(8.0));
        assert!((below / above - 1.0).abs() < 1e-12, "{below} against {above}");
    }
}
