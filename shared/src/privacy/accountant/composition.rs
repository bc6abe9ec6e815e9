//! A running composition of releases, read as certified epsilons.
//!
//! Enters: a plan (which fixes the grid) and then events, one at a time. Leaves: [`EpsilonBounds`]. The figures
//! hold whatever is added; they are sharp while what is added stays near the plan. A composition
//! of privacy loss distributions is valid for events fixed before the first of them is released; stopping
//! early is fine, and for events chosen on the way `renyi` is the figure to enforce.

use super::loss::Release;
use super::outlook::{LossWindow, Outlook};
use super::spectrum::{Composed, Frame, StepSpectrum, Window};
use super::{EpsilonBounds, GaussianEvent, RenyiCurve, closed_form};
use crate::privacy::Delta;

/// Tilted probability allowed above the window.
const ABOVE_WINDOW: f64 = 1e-12;

/// Share of delta that losses beyond the lattices may use, over all planned steps.
const ESCAPING_SHARE: f64 = 1e-10;

/// By how much, relative, the grid of a running composition may raise the upper figure.
const RUNNING_TOLERANCE: f64 = 1e-4;

/// Relative error of one step's tilted masses: those of the lattice, and the tilt's exponents up to 1e4.
const STEP_ERROR: f64 = 1e-11;

/// Grid points in the shortest and the longest window.
const WINDOW_LENGTHS: (f64, f64) = (4096.0, 2_097_152.0);

/// Longest grid step, in nats: `exp` of it is far from overflowing.
const WIDEST_STEP: f64 = 50.0;

/// Grid points in the longest lattice of one release.
const LONGEST_LATTICE: f64 = 1e6;

/// A composition to which releases can be added, and whose epsilon can be read after each.
///
/// Adding a release of a kind (noise multiplier and sampling rate) seen before, and reading the epsilon,
/// takes milliseconds; a new kind is first put on the grid, which takes tens of them.
#[derive(Clone)]
pub struct Composition {
    frame: Frame,
    reach: f64,
    kinds: Vec<Kind>,
    removal: Composed,
    addition: Composed,
    floor: Composed,
    totals: Totals,
    renyi: RenyiCurve,
}

/// One kind of release, on the composition's grid.
#[derive(Clone)]
struct Kind {
    noise_multiplier: f64,
    sampling_rate: f64,
    removal: StepSpectrum,
    addition: StepSpectrum,
    floor: StepSpectrum,
    base: f64,
    escaped: f64,
    drift: f64,
    renyi: RenyiCurve,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    steps: f64,
    base: f64,
    escaped: f64,
    drift: f64,
    /// Sum of steps over squared noise multiplier, rounded up, and how many terms it has.
    inverse_variance: f64,
    terms: f64,
    sampled: bool,
}

impl Composition {
    /// An empty composition on a grid suited to `plan` read at `delta`.
    pub fn planned(plan: &[GaussianEvent], delta: Delta) -> Self {
        let outlook = Self::outlook(plan, delta);
        Self::fitted(&outlook, delta, outlook.epsilon(delta), RUNNING_TOLERANCE)
    }

    pub(super) fn outlook(plan: &[GaussianEvent], delta: Delta) -> Outlook {
        Outlook::new(plan, ESCAPING_SHARE * delta.value())
    }

    /// An empty composition on a grid that raises the upper figure by about `tolerance`, relative, when that
    /// figure is `epsilon` as expected.
    ///
    /// A grid of step `h` adds at most `h^2/6` to the variance of each loss and half that to its mean; at the
    /// order `alpha` that decides epsilon this raises it by about `alpha steps h^2 / 12`.
    pub(super) fn fitted(outlook: &Outlook, delta: Delta, epsilon: f64, tolerance: f64) -> Self {
        let epsilon = epsilon.max(1e-9);
        let LossWindow { tilt, span, probe } = outlook.window_at(epsilon, delta, ABOVE_WINDOW.ln());
        let wanted = (12.0 * tolerance * epsilon / ((1.0 + tilt) * outlook.steps)).sqrt();
        let finest = outlook.widest / LONGEST_LATTICE;
        let wanted = wanted.min(outlook.widest.max(1e-9) / 16.0).max(finest).min(WIDEST_STEP);
        let length = (span / wanted).clamp(WINDOW_LENGTHS.0, WINDOW_LENGTHS.1).log2().ceil().exp2();
        let h = (span / length).max(finest);
        let frame = Frame::new(h, length as usize, tilt, probe);
        Self {
            removal: Composed::nothing(&frame),
            addition: Composed::nothing(&frame),
            floor: Composed::nothing(&frame),
            frame,
            reach: outlook.reach,
            kinds: Vec::new(),
            totals: Totals::default(),
            renyi: RenyiCurve::zero(),
        }
    }

    /// Grid step, in nats.
    pub(super) fn step(&self) -> f64 {
        self.frame.h
    }

    /// Composes all of `event.steps` further releases.
    pub fn add(&mut self, event: &GaussianEvent) {
        if event.steps == 0 {
            return;
        }
        let at = self.kind_of(event);
        let kind = self.kinds.swap_remove(at);
        self.compose(&kind, event);
        self.kinds.push(kind);
    }

    /// As [`Self::add`], but forgets the kind of release: many of them take no memory.
    pub(super) fn add_once(&mut self, event: &GaussianEvent) {
        if event.steps > 0 {
            self.compose(&self.kind(event), event);
        }
    }

    fn compose(&mut self, kind: &Kind, event: &GaussianEvent) {
        self.removal.multiply(&kind.removal, event.steps, &self.frame);
        self.addition.multiply(&kind.addition, event.steps, &self.frame);
        self.floor.multiply(&kind.floor, event.steps, &self.frame);
        let steps = f64::from(event.steps);
        self.totals.steps += steps;
        self.totals.base += steps * kind.base;
        self.totals.escaped += steps * kind.escaped;
        self.totals.drift += steps * kind.drift;
        self.totals.sampled |= kind.sampling_rate < 1.0;
        let inverse_variance = steps / (kind.noise_multiplier * kind.noise_multiplier);
        self.totals.inverse_variance =
            (self.totals.inverse_variance + inverse_variance) * (1.0 + 2.0 * f64::EPSILON);
        self.totals.terms += 1.0;
        self.renyi.add(&kind.renyi.clone().scaled(event.steps));
    }

    fn kind_of(&mut self, event: &GaussianEvent) -> usize {
        let (z, q) = (event.noise_multiplier.value(), event.sampling_rate.value());
        if let Some(at) =
            self.kinds.iter().position(|kind| kind.noise_multiplier == z && kind.sampling_rate == q)
        {
            return at;
        }
        self.kinds.push(self.kind(event));
        self.kinds.len() - 1
    }

    fn kind(&self, event: &GaussianEvent) -> Kind {
        let (noise_multiplier, sampling_rate) = (event.noise_multiplier.value(), event.sampling_rate.value());
        let loss = Release::new(noise_multiplier, sampling_rate).on_grid(self.frame.h, self.reach);
        Kind {
            noise_multiplier,
            sampling_rate,
            removal: StepSpectrum::new(&loss.removal, &self.frame),
            addition: StepSpectrum::new(&loss.addition, &self.frame),
            floor: StepSpectrum::new(&loss.floor, &self.frame),
            base: loss.base,
            escaped: loss.escaped,
            drift: loss.drift,
            renyi: RenyiCurve::of_one_step(event.noise_multiplier, event.sampling_rate),
        }
    }

    /// Certified figures at `delta` for all that was added.
    pub fn epsilon(&self, delta: Delta) -> EpsilonBounds {
        self.read(delta).0
    }

    /// The figures, and whether the window was high enough to hold them.
    pub(super) fn read(&self, delta: Delta) -> (EpsilonBounds, bool) {
        let renyi = self.renyi.epsilon(delta);
        if self.totals.steps == 0.0 {
            return (EpsilonBounds { upper: 0.0, lower: 0.0, renyi }, true);
        }
        if !self.totals.sampled {
            let error = 4.0 * f64::EPSILON * (1.0 + self.totals.terms);
            let (lower, upper) = closed_form::epsilon(self.totals.inverse_variance.sqrt(), error, delta);
            return (EpsilonBounds { upper: upper.min(renyi), lower: lower.min(renyi), renyi }, true);
        }
        let removal = self.upper(&self.removal, self.totals.base, delta);
        let addition = self.upper(&self.addition, -self.totals.base, delta);
        let upper = removal.epsilon.max(addition.epsilon).min(renyi);
        let lower = self.lower(delta).min(upper);
        (EpsilonBounds { upper, lower, renyi }, removal.inside)
    }

    /// The factor by which relative errors of masses and weights may have changed a composed probability.
    fn slack(&self, window: &Window) -> f64 {
        let weight_exponents =
            window.ln_mass.abs() + self.frame.tilt * self.frame.h * window.top.abs() as f64;
        (self.totals.steps * STEP_ERROR + 1e-9 + 4.0 * f64::EPSILON * weight_exponents).exp()
    }

    fn moved(&self, epsilon: f64) -> f64 {
        self.totals.drift + 1e-13 * (epsilon.abs() + self.totals.base.abs())
    }

    /// The smallest epsilon, at least 0, at which the composed law proves `delta`.
    fn upper(&self, composed: &Composed, base: f64, delta: Delta) -> Reading {
        let h = self.frame.h;
        let window = composed.window(&self.frame, ABOVE_WINDOW);
        let mut scan = Scan::new(&window, &self.frame);
        let missing = self.totals.escaped + scan.weight * window.above + SKIPPED.exp();
        let target = delta.value() / self.slack(&window) - 2.0 * missing;
        if target.is_nan() || target <= 0.0 {
            return Reading { epsilon: f64::INFINITY, inside: true };
        }
        for _ in 0..scan.left {
            let here = base + scan.index as f64 * h;
            if here <= 0.0 {
                return Reading { epsilon: 0.0, inside: true };
            }
            scan.step_down(|tilted| tilted.max(0.0) + window.error);
            if scan.delta > target {
                let epsilon = here - h + ((scan.delta - target) / scan.discounted).ln_1p().min(h);
                return Reading { epsilon: (epsilon + self.moved(epsilon)).max(0.0), inside: true };
            }
        }
        let epsilon = base + (window.top - self.frame.length as i64) as f64 * h;
        Reading { epsilon: (epsilon + self.moved(epsilon)).max(0.0), inside: epsilon <= 0.0 }
    }

    /// The largest epsilon, at least 0, at which the downward composition still exceeds `delta`.
    fn lower(&self, delta: Delta) -> f64 {
        let h = self.frame.h;
        let window = self.floor.window(&self.frame, ABOVE_WINDOW);
        let mut scan = Scan::new(&window, &self.frame);
        let target = delta.value() * self.slack(&window) + self.frame.wrapped_from_below();
        for _ in 0..scan.left {
            let here = self.totals.base + scan.index as f64 * h;
            if here <= 0.0 {
                return 0.0;
            }
            scan.step_down(|tilted| (tilted - window.error).max(0.0));
            let target = target + scan.weight * window.above;
            if scan.delta > target {
                let epsilon = here - h + ((scan.delta - target) / scan.discounted).ln_1p().min(h);
                return (epsilon - self.moved(epsilon)).max(0.0);
            }
        }
        0.0
    }
}

struct Reading {
    epsilon: f64,
    inside: bool,
}

/// Walks a window from its top down, keeping delta at the grid point reached.
///
/// With `P(i)` the probability at index `i`, at index `j` it holds `delta = sum_{i>j} P(i) (1 - exp(-(i-j) h))`
/// and `discounted = sum_{i>j} P(i) exp(-(i-j) h)`; delta grows by positive terms only.
struct Scan<'a> {
    window: &'a Window,
    index: i64,
    position: usize,
    /// What the tilted probability at `index` is multiplied by.
    weight: f64,
    growth: f64,
    decay: f64,
    gap: f64,
    delta: f64,
    discounted: f64,
    /// Grid points of the window from `index` down.
    left: usize,
}

/// `ln` of a weight below which probability is left out of a [`Scan`]; all of it sums to less than that.
const SKIPPED: f64 = -600.0;

impl<'a> Scan<'a> {
    fn new(window: &'a Window, frame: &Frame) -> Self {
        let slope = frame.tilt * frame.h;
        let too_high = window.top as f64 - (window.ln_mass - SKIPPED) / slope;
        let skipped = too_high.ceil().clamp(0.0, frame.length as f64);
        let index = window.top - skipped as i64;
        Self {
            window,
            index,
            position: index.rem_euclid(frame.length as i64) as usize,
            weight: (window.ln_mass - slope * index as f64).exp(),
            left: frame.length - skipped as usize,
            growth: slope.exp(),
            decay: (-frame.h).exp(),
            gap: -(-frame.h).exp_m1(),
            delta: 0.0,
            discounted: 0.0,
        }
    }

    fn step_down(&mut self, bound: impl Fn(f64) -> f64) {
        let reached = self.discounted + self.weight * bound(self.window.tilted[self.position]);
        self.delta += self.gap * reached;
        self.discounted = self.decay * reached;
        self.weight *= self.growth;
        self.index -= 1;
        self.position = if self.position == 0 { self.window.tilted.len() - 1 } else { self.position - 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::accountant::epsilon;
    use crate::privacy::{NoiseMultiplier, SamplingRate};

    fn event(noise_multiplier: f64, sampling_rate: f64, steps: u32) -> GaussianEvent {
        GaussianEvent {
            noise_multiplier: NoiseMultiplier::new(noise_multiplier).unwrap(),
            sampling_rate: SamplingRate::new(sampling_rate).unwrap(),
            steps,
        }
    }

    fn delta(value: f64) -> Delta {
        Delta::new(value).unwrap()
    }

    #[test]
    fn an_empty_composition_costs_nothing() {
        let empty = Composition::planned(&[event(1.0, 0.1, 100)], delta(1e-6));
        let bounds = empty.epsilon(delta(1e-6));
        assert_eq!((bounds.upper, bounds.lower, bounds.renyi), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_running_composition_brackets_the_figure_after_every_round() {
        let (plan, at) = (event(1.0, 0.02, 400), delta(1e-6));
        let mut running = Composition::planned(&[plan], at);
        let mut last = 0.0;
        for round in 1..=400 {
            running.add(&event(1.0, 0.02, 1));
            if [1, 7, 60, 400].contains(&round) {
                let (found, sharp) = (running.epsilon(at), epsilon(&[event(1.0, 0.02, round)], at));
                assert!(
                    found.upper >= sharp.lower && found.lower <= sharp.upper,
                    "{round}: {found:?} {sharp:?}"
                );
                assert!(found.upper <= sharp.upper * 1.003, "{round}: {found:?} {sharp:?}");
                assert!(found.upper >= last, "{round}: fell from {last} to {}", found.upper);
                last = found.upper;
            }
        }
    }

    #[test]
    fn a_composition_beyond_its_plan_still_gives_true_bounds() {
        let at = delta(1e-6);
        let mut running = Composition::planned(&[event(2.0, 0.01, 50)], at);
        running.add(&event(2.0, 0.01, 5000));
        running.add(&event(1.0, 0.05, 20));
        let sharp = epsilon(&[event(2.0, 0.01, 5000), event(1.0, 0.05, 20)], at);
        let found = running.epsilon(at);
        assert!(found.upper >= sharp.lower && found.lower <= sharp.upper, "{found:?} {sharp:?}");
    }
}
