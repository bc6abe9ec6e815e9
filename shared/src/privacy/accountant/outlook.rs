//! Where a plan is heading: what the grid of a composition is fit to.
//!
//! Enters: a plan and a delta. Leaves: the epsilon to expect, and the tilt and height at which to look at the
//! composed losses. These are estimates, not bounds: a poor one makes the certified figures
//! slower or looser, never wrong.

use super::GaussianEvent;
use super::loss::Release;
use crate::privacy::Delta;

/// `ln E[exp(tilt x loss)]` of a plan's composed loss in removal, at ascending tilts.
pub(super) struct Outlook {
    cumulants: Vec<f64>,
    /// Spread of losses that the widest release of the plan has, in nats.
    pub widest: f64,
    pub steps: f64,
    /// Each release's outcomes are followed up to `exp(-reach^2/2)` of the probability, each side.
    pub reach: f64,
}

/// A tilt of the loss distribution, and how long a window it takes to hold the tilted law.
#[derive(Clone, Copy, Debug)]
pub(super) struct LossWindow {
    pub tilt: f64,
    /// In nats.
    pub span: f64,
    /// The further tilt that best bounds what lies above the window.
    pub probe: f64,
}

const TILTS: usize = 132;

fn tilt(at: usize) -> f64 {
    f64::exp2((at as f64 - 60.0) / 5.0)
}

impl Outlook {
    /// Follows all of each release's losses but a share `escaping` of probability over the whole plan.
    pub fn new(plan: &[GaussianEvent], escaping: f64) -> Self {
        let steps = plan.iter().map(|event| f64::from(event.steps)).sum::<f64>().max(1.0);
        let reach = (-2.0 * (escaping / steps).max(1e-200).ln()).sqrt();
        let mut cumulants = vec![0.0; TILTS];
        let mut widest = 0.0_f64;
        for event in plan.iter().filter(|event| event.steps > 0) {
            let release = Release::new(event.noise_multiplier.value(), event.sampling_rate.value());
            widest = widest.max(release.span(reach));
            let (losses, masses) = release.sketch(reach);
            for (at, cumulant) in cumulants.iter_mut().enumerate() {
                let largest = losses.iter().zip(&masses).fold(f64::NEG_INFINITY, |largest, (loss, mass)| {
                    largest.max(if *mass > 0.0 { tilt(at) * loss + mass.ln() } else { largest })
                });
                // The masses sum to 1, so small cumulants come from the differences, without cancellation.
                *cumulant += f64::from(event.steps)
                    * if largest < 0.0 {
                        let excess = |(loss, mass): (&f64, &f64)| mass * (tilt(at) * loss).exp_m1();
                        losses.iter().zip(&masses).map(excess).sum::<f64>().ln_1p()
                    } else {
                        let share =
                            |(loss, mass): (&f64, &f64)| (tilt(at) * loss + mass.ln() - largest).exp();
                        largest + losses.iter().zip(&masses).map(share).sum::<f64>().ln()
                    };
            }
        }
        Self { cumulants, widest, steps, reach }
    }

    /// The epsilon to expect at `delta`, from above.
    pub fn epsilon(&self, delta: Delta) -> f64 {
        let ln_delta = delta.value().ln();
        (0..TILTS)
            .map(|at| {
                let alpha = 1.0 + tilt(at);
                (self.cumulants[at] - ln_delta - alpha.ln()) / tilt(at) + (-1.0 / alpha).ln_1p()
            })
            .fold(f64::INFINITY, f64::min)
            .max(0.0)
    }

    /// The tilt and height at which to look for `epsilon` at `delta` in the shortest window.
    ///
    /// The sharpest tilt makes `epsilon` the mean of the tilted loss: it minimises `ln E[exp(tilt (loss -
    /// epsilon))]`. Round-off grows by as much as another tilt's value is above that minimum, of which there is
    /// some to spare. The height is where no more than `exp(ln_above)` of the tilted probability lies
    /// above (Chernoff), and the length such that what wraps round from below is far less than `delta`.
    pub fn window_at(&self, epsilon: f64, delta: Delta, ln_above: f64) -> LossWindow {
        let chernoff = |at: usize| self.cumulants[at] - tilt(at) * epsilon;
        let sharpest = (0..TILTS - 1).map(chernoff).fold(f64::INFINITY, f64::min);
        let spare = (1e-7 / (self.steps * 3e-14)).ln().clamp(1.0, 12.0);
        let passing = 18.0 - delta.value().ln();
        let window = |at: usize| {
            let tops = (at + 1..TILTS).map(|above| {
                let probe = tilt(above) - tilt(at);
                ((self.cumulants[above] - self.cumulants[at] - ln_above) / probe, probe)
            });
            let (top, probe) =
                tops.fold((f64::INFINITY, 1.0), |best, next| if next.0 < best.0 { next } else { best });
            LossWindow { tilt: tilt(at), span: (passing / tilt(at)).max(1.25 * (top - epsilon)), probe }
        };
        (0..TILTS - 1)
            .filter(|&at| chernoff(at) <= sharpest + spare)
            .map(window)
            .min_by(|left, right| left.span.total_cmp(&right.span))
            .expect("the sharpest tilt is among them")
    }
}
