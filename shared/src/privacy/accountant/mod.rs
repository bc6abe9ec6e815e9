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
//! The true figure never falls when steps or sampling rate grow or noise or delta shrink, and lies between `lower` and
//! `upper`: two calls can come out in the wrong order only by less than these differ. On plans that training
//! uses (sampling rates from 1e-3, up to 1e5 steps) that is less than 1e-3, relative, and about 1e-4 in `upper`. At sampling rates below
//! 1e-4 over very many steps the rare large losses of many releases are what is left of delta; there the
//! granted round-off of the transforms keeps the two further apart, at worst with no more than the Renyi figure known.

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
pub use solve::{OutOfReach, noise_for, renyi_noise_for, renyi_steps_for, steps_for};

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

/// By how much, relative, the grid of [`epsilon`] is expected to raise the upper figure.
const TOLERANCE: f64 = 4e-5;

/// The same, of the first grid.
const COARSE: f64 = 3e-3;

/// The share of the upper figure by which the lower one may be below it before a finer grid is tried.
const WIDEST_GAP: f64 = 5e-4;

/// Grids tried at most.
const PASSES: usize = 8;

/// Certified figures for the composition of all `events`, which must have been fixed before the first
/// of them is released. `upper` is infinite when it cannot be bounded; all are 0 for no events.
///
/// Takes tens of milliseconds for a usual plan of one kind of release. At extreme arguments it may take seconds, and
/// `lower` may be further below `upper` than the thousandth that is usual; both stay true. Memory does not grow
/// with the number of events: some 300 MB on the longest grid.
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
    let events = &merged(events);
    let outlook = Composition::outlook(events, delta);
    let mut expected = outlook.epsilon(delta).min(figure);
    let mut allowed = tolerance.max(COARSE);
    let (mut last_gap, mut last_step) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..PASSES {
        let mut composition = Composition::fitted(&outlook, delta, expected, allowed);
        for event in events {
            composition.add_once(event);
        }
        let (found, inside) = composition.read(delta);
        bounds.upper = bounds.upper.min(found.upper);
        bounds.lower = bounds.lower.max(found.lower).min(bounds.upper);
        let fits = inside && bounds.upper > 0.8 * expected;
        let hopeless = found.upper >= found.renyi;
        if bounds.upper == 0.0 || hopeless {
            break;
        }
        expected = bounds.upper.max(0.02 * expected).min(expected);
        if !fits {
            continue;
        }
        if allowed > tolerance {
            allowed = tolerance;
            continue;
        }
        // Where one release's losses are far from normal the grid raises more than expected: by its step, or its square.
        let gap = 1.0 - bounds.lower / bounds.upper;
        let finer = composition.step() < 0.99 * last_step;
        if !finer || gap < WIDEST_GAP * (tolerance / TOLERANCE).max(1.0) || gap > 0.9 * last_gap {
            break;
        }
        (last_gap, last_step) = (gap, composition.step());
        allowed *= (0.5 * WIDEST_GAP / gap).powf(1.5).max(1e-3);
    }
    bounds
}

/// `events` with those of one noise multiplier and sampling rate made one.
fn merged(events: &[GaussianEvent]) -> Vec<GaussianEvent> {
    let mut kinds: Vec<GaussianEvent> = Vec::new();
    for event in events.iter().filter(|event| event.steps > 0) {
        let same = |kind: &&mut GaussianEvent| {
            kind.noise_multiplier == event.noise_multiplier
                && kind.sampling_rate == event.sampling_rate
                && kind.steps.checked_add(event.steps).is_some()
        };
        match kinds.iter_mut().find(same) {
            Some(kind) => kind.steps += event.steps,
            None => kinds.push(*event),
        }
    }
    kinds
}

#[cfg(test)]
mod tests;
