//! What a set of noised releases costs: recorded events in, epsilon at a delta out.
//!
//! Enters: a list of [`GaussianEvent`]s (what was, or will be, released) and a [`Delta`]. Leaves: an
//! epsilon that the composition of all of them does not exceed, for neighbouring data sets that
//! differ in one customer added or removed. Every rounding, series and transform error is bounded and
//! added to the figure, so it is never below the true one. Nothing here reads a clock, a file or the data.
//!
//! Two accountants run side by side. [`renyi_epsilon`] is looser, holds also for releases chosen in sight of
//! earlier ones, and holds for discrete Gaussian noise as it stands. [`epsilon`] composes privacy loss
//! distributions; it is sharp, holds for a plan fixed beforehand, and is about continuous Gaussian noise:
//! [`continuous_equivalent`] gives the noise multiplier to put in for discrete noise.
//!
//! Figures do not fall when steps or sampling rate grow or noise or delta shrink, but for the width of the
//! grid: two calls that differ by less than 1e-4, relative, may come out in either order.

mod closed_form;
mod composition;
mod lattice;
mod loss;
mod outlook;
mod renyi;
mod solve;
mod spectrum;

use serde::{Deserialize, Serialize};

use super::{Delta, NoiseMultiplier, SamplingRate};

pub use composition::Composition;
pub use lattice::continuous_equivalent;
pub use renyi::{RenyiCurve, RenyiOrder, StepCurves, renyi_epsilon};
pub use solve::{OutOfReach, noise_for, renyi_noise_for, steps_for};

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

impl GaussianEvent {
    /// The bits of noise multiplier and sampling rate: the same for releases that cost the same.
    pub(crate) fn kind(&self) -> (u64, u64) {
        (self.noise_multiplier.value().to_bits(), self.sampling_rate.value().to_bits())
    }
}

/// What a composition is known to cost at one delta, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpsilonBounds {
    /// The composition is `(upper, delta)`-private: a true upper bound, never above `renyi`.
    pub upper: f64,
    /// No figure below this one can be claimed: a true lower bound on the epsilon at this delta.
    pub lower: f64,
    /// The Renyi figure: looser, but also valid when later events were chosen in sight of earlier releases.
    pub renyi: f64,
}

/// By how much, relative, the grid of [`epsilon`] may raise the upper figure.
const TOLERANCE: f64 = 4e-5;

/// The same, of the first grid.
const COARSE: f64 = 3e-3;

/// Certified figures for the composition of all `events`, which must have been fixed before the first
/// of them is released. `upper` is infinite when it cannot be bounded; all are 0 for no events.
pub fn epsilon(events: &[GaussianEvent], delta: Delta) -> EpsilonBounds {
    certified(events, delta, TOLERANCE)
}

/// As [`epsilon`], on a grid that may raise the upper figure by `tolerance`, relative.
///
/// A first, coarse grid is fit to the epsilon to be expected; finer ones to what was found. Every pass gives true bounds; the best of them are kept.
fn certified(events: &[GaussianEvent], delta: Delta, tolerance: f64) -> EpsilonBounds {
    let figure = renyi_epsilon(events, delta);
    let mut bounds = EpsilonBounds { upper: figure, lower: 0.0, renyi: figure };
    if figure == 0.0 || !figure.is_finite() {
        return bounds;
    }
    let released = || events.iter().filter(|event| event.steps > 0);
    if released().all(|event| event.sampling_rate.value() == 1.0) {
        let terms = released().map(|event| f64::from(event.steps) / event.noise_multiplier.value().powi(2));
        let error = 4.0 * f64::EPSILON * (1.0 + events.len() as f64);
        let (lower, upper) = closed_form::epsilon(terms.sum::<f64>().sqrt(), error, delta);
        return EpsilonBounds { upper: upper.min(figure), lower: lower.min(figure), renyi: figure };
    }
    let outlook = Composition::outlook(events, delta);
    let mut expected = outlook.epsilon(delta).min(figure);
    let mut fine = false;
    for _ in 0..8 {
        let allowed = if fine { tolerance } else { tolerance.max(COARSE) };
        let mut composition = Composition::fitted(&outlook, delta, expected, allowed);
        for event in events {
            composition.add(event);
        }
        let (found, inside) = composition.read(delta);
        bounds.upper = bounds.upper.min(found.upper);
        bounds.lower = bounds.lower.max(found.lower).min(bounds.upper);
        let fits = inside && bounds.upper > 0.8 * expected;
        let hopeless = found.upper >= found.renyi;
        if bounds.upper == 0.0 || hopeless || (fine && fits) {
            break;
        }
        fine = fits;
        expected = bounds.upper.max(0.02 * expected).min(expected);
    }
    bounds
}

#[cfg(test)]
mod tests;
