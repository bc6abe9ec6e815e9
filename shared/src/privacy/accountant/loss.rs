//! The privacy loss of one release, put on a grid.
//!
//! Enters: noise multiplier, sampling rate, grid step. Leaves: three [`Lattice`]s of probability over
//! multiples of the step: two that cost at least as much as the release (one for each direction of
//! add/remove) and one that costs at most as much. Every mass carries a relative error below
//! [`MASS_ERROR`]; nothing is found by subtracting nearly equal numbers.
//!
//! **The losses.** With `P` the output law with the customer, `(1-q) N(0,z^2) + q N(1,z^2)`, and `Q` the
//! law without, `N(0,z^2)`, removal has the loss `L(x) = ln(1 - q + q exp((2x-1) / 2z^2))` for `x ~ P`, addition
//! `-L(x)` for `x ~ Q`. `L` ascends in `x`, so a grid cell of losses is an interval of `x`.
//!
//! **Upward** (connect the dots; Doroshenko, Ghazi, Kamath, Kumar and Manurangsi 2022). A loss `l` between the
//! grid points `a` and `a + h` goes up with probability `(1 - exp(a - l)) / (1 - exp(-h))` and down
//! otherwise, which keeps the mean of `exp(-loss)`. `max(0, 1 - exp(epsilon) exp(-loss))` is convex in
//! `exp(-loss)`, so by Jensen the expectation, delta, does not fall, whatever the other releases are.
//!
//! **Downward.** Replacing the losses of a set of outcomes by the one loss whose `exp(-loss)` is their mean
//! lowers delta, again by Jensen. Each grid point merges some of the cell above with just as much of the
//! cell below as makes that loss the grid point itself; what finds no partner is rounded down (see [`merged`]).
//!
//! **Where the grid lies.** At small sampling rates nearly all losses may be in one cell just above the smallest
//! one, with nothing below to merge with. So the grid is shifted until that cell finds its partner.

/// Relative error of each mass: quadrature (below 1e-15, see [`Panels`]), the densities' exponents (at most a
/// few hundred, times the unit round-off) and summation.
const MASS_ERROR: f64 = 1e-12;

/// Probability at consecutive grid points: `masses[k]` at index `first + k`.
#[derive(Clone, Debug)]
pub(super) struct Lattice {
    pub first: i64,
    pub masses: Vec<f64>,
}

/// One release on a grid of step `h`: index `i` stands for the loss `base + i h` in removal, and
/// `-base + i h` in addition. `base` lies within `h` above the smallest loss.
#[derive(Clone, Debug)]
pub(super) struct StepLoss {
    pub base: f64,
    /// At least as costly as removing a customer, but for `escaped`.
    pub removal: Lattice,
    /// At least as costly as adding a customer, but for `escaped`.
    pub addition: Lattice,
    /// At most as costly as removing a customer; the masses sum to less than 1.
    pub floor: Lattice,
    /// Probability, in either direction, of a loss above the lattice.
    pub escaped: f64,
    /// How far rounding may have moved any loss, in nats.
    pub drift: f64,
}

/// One subsampled Gaussian release: noise multiplier `z`, sampling rate `q`, sensitivity 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    z: f64,
    q: f64,
    ln_odds: f64,
}

impl Release {
    pub fn new(z: f64, q: f64) -> Self {
        Self { z, q, ln_odds: q.ln() - (-q).ln_1p() }
    }

    /// The loss from which indices count: the smallest possible one, or 0 without subsampling.
    fn base(&self) -> f64 {
        if self.q < 1.0 { (-self.q).ln_1p() } else { 0.0 }
    }

    fn exponent(&self, x: f64) -> f64 {
        (2.0 * x - 1.0) / (2.0 * self.z * self.z)
    }

    /// `L(x) - base`.
    fn excess(&self, x: f64) -> f64 {
        let exponent = self.exponent(x);
        self.excess_at(exponent, exponent.exp())
    }

    /// [`Self::excess`] where the likelihood ratio of being sampled is `likelihood_ratio = exp(exponent)`.
    fn excess_at(&self, exponent: f64, likelihood_ratio: f64) -> f64 {
        if self.q == 1.0 {
            return exponent;
        }
        let odds = self.q / (1.0 - self.q) * likelihood_ratio;
        if odds > 1.0 { exponent + self.ln_odds + (1.0 / odds).ln_1p() } else { odds.ln_1p() }
    }

    /// The `x` at which `L(x) - base` is `excess`; minus infinity where there is none.
    fn outcome_at(&self, excess: f64) -> f64 {
        let exponent = if self.q == 1.0 {
            excess
        } else if excess <= 0.0 {
            return f64::NEG_INFINITY;
        } else if excess > 1.0 {
            excess + (-(-excess).exp()).ln_1p() - self.ln_odds
        } else {
            excess.exp_m1().ln() - self.ln_odds
        };
        0.5 + self.z * self.z * exponent
    }

    /// The outcomes kept on the lattice: all but `exp(-reach^2/2)` of the probability, each side.
    fn kept(&self, reach: f64) -> (f64, f64) {
        (-reach * self.z, 1.0 + reach * self.z)
    }

    /// How far apart the lowest and highest loss are, leaving out `exp(-reach^2/2)` on each side.
    pub fn span(&self, reach: f64) -> f64 {
        let (low, high) = self.kept(reach);
        self.excess(high) - self.excess(low)
    }

    /// Losses in removal, in nats, and their probabilities, coarsely: enough to plan by.
    pub fn sketch(&self, reach: f64) -> (Vec<f64>, Vec<f64>) {
        let (low, high) = self.kept(reach);
        let width = (self.z / 6.0).min(self.z * self.z);
        let points = ((high - low) / width).ceil() as usize + 1;
        let half_inverse = 0.5 / (self.z * self.z);
        let at = |k: usize| low + k as f64 * width;
        let losses = (0..points).map(|k| self.base() + self.excess(at(k))).collect();
        let mut masses: Vec<f64> = (0..points)
            .map(|k| {
                let without = (-at(k) * at(k) * half_inverse).exp();
                let with = (-(at(k) - 1.0) * (at(k) - 1.0) * half_inverse).exp();
                (1.0 - self.q) * without + self.q * with
            })
            .collect();
        let total: f64 = masses.iter().sum();
        masses.iter_mut().for_each(|mass| *mass /= total);
        (losses, masses)
    }

    /// How far above the smallest loss to put a grid point of step `h`, so that little is rounded down.
    ///
    /// Any place gives true bounds. This one lets what is below the point just balance what the cells
    /// above it, solved from the top down as [`merged`] does, do not merge among themselves.
    fn shift(&self, h: f64, reach: f64) -> f64 {
        const CELLS: usize = 16;
        if self.q == 1.0 {
            return 0.0;
        }
        let (low, high) = self.kept(reach);
        let overfull = |shift: f64| {
            let mut left = self.outcome_at(shift).clamp(low, high);
            let raised_below = h.exp() * self.cell(low, left, shift - h, h).removal_low;
            let cells: Vec<CellMass> = (0..CELLS)
                .map(|index| {
                    let right = self.outcome_at(shift + (index + 1) as f64 * h).clamp(left, high);
                    let mass = self.cell(left, right, shift + index as f64 * h, h);
                    left = right;
                    mass
                })
                .collect();
            let top = cells[CELLS - 1];
            let flow = cells[..CELLS - 1].iter().rev().fold(0.5 * top.removal_high, |flow, cell| {
                let raised = (h.exp() * cell.removal_low).max(f64::MIN_POSITIVE);
                cell.removal_high * (1.0 - flow / raised)
            });
            raised_below > flow
        };
        // A shift by a whole step turns the balance round, in one sense or the other.
        let (mut below, mut above) = (0.0, h);
        let at_end = overfull(h);
        for _ in 0..20 {
            let middle = 0.5 * (below + above);
            if overfull(middle) == at_end { above = middle } else { below = middle }
        }
        above
    }

    /// Discretises the release on a grid of step `h`, leaving `exp(-reach^2/2)` on each side.
    pub fn on_grid(&self, h: f64, reach: f64) -> StepLoss {
        let (low, high) = self.kept(reach);
        let shift = self.shift(h, reach);
        let first = ((self.excess(low) - shift) / h).floor() as i64;
        let last = (((self.excess(high) - shift) / h).ceil() as i64).max(first + 1);
        let tail = 0.5 * (-0.5 * reach * reach).exp();
        let cells = (last - first) as usize;

        let mut removal = vec![0.0; cells + 1];
        let mut addition = vec![0.0; cells + 1];
        let (mut lows, mut highs) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
        let mut left = low;
        for (cell, index) in (first..last).enumerate() {
            let edge = self.outcome_at(shift + (index + 1) as f64 * h).clamp(left, high);
            let right = if index + 1 == last { high } else { edge };
            let mass = self.cell(left, right, shift + index as f64 * h, h);
            removal[cell] += mass.removal_low;
            removal[cell + 1] += mass.removal_high;
            addition[cells - cell] += mass.addition_high;
            addition[cells - cell - 1] += mass.addition_low;
            lows.push(mass.removal_low);
            highs.push(mass.removal_high);
            left = right;
        }
        // Outcomes below the kept ones lose less than the first cell's upper edge in removal; in addition
        // they are what escapes. Outcomes above are the other way round.
        removal[1] += tail;
        addition[1] += tail;

        let largest_exponent = self.exponent(high).abs().max(self.exponent(low).abs());
        let largest_loss = self.excess(high).abs().max(self.excess(low).abs());
        let drift = f64::EPSILON
            * (8.0 * (1.0 + largest_exponent) * largest_loss.min(1.0)
                + 4.0 * largest_loss
                + 4.0 * (self.base().abs() + shift))
            + 4.0 * MASS_ERROR * h;
        StepLoss {
            base: self.base() + shift,
            removal: Lattice { first, masses: removal },
            addition: Lattice { first: -last, masses: addition },
            floor: Lattice { first, masses: merged(&lows, &highs, h) },
            escaped: tail,
            drift,
        }
    }

    /// The probability of the outcomes from `left` to `right`, whose losses lie between `base + low` and
    /// `base + low + h`, parted between the two ends.
    fn cell(&self, left: f64, right: f64, low: f64, h: f64) -> CellMass {
        let mut mass = CellMass::default();
        let scale = 1.0 / -(-h).exp_m1();
        let half_inverse = 0.5 / (self.z * self.z);
        for (x, weight) in Panels::new(self.z, left, right) {
            let exponent = self.exponent(x);
            let likelihood_ratio = exponent.exp();
            let up = (self.excess_at(exponent, likelihood_ratio) - low).clamp(0.0, h);
            let without = weight * (-x * x * half_inverse).exp();
            let with = without * likelihood_ratio;
            let removal = (1.0 - self.q) * without + self.q * with;
            let (from_low, from_high) = (exp_m1(-up), exp_m1(up - h));
            let (towards_high, towards_low) = (-from_low * scale, -from_high * scale);
            // One more than `exp(y) - 1`, where that keeps its relative precision.
            let exp = |y: f64, less_one: f64| if h < 0.5 { 1.0 + less_one } else { y.exp() };
            mass.removal_high += removal * towards_high;
            // `1 - towards_high`, without the subtraction.
            mass.removal_low += removal * towards_low * exp(-up, from_low);
            mass.addition_high += without * towards_low;
            mass.addition_low += without * towards_high * exp(up - h, from_high);
        }
        mass
    }
}

/// `exp(y) - 1` for `y <= 0`.
fn exp_m1(y: f64) -> f64 {
    // The series leaves out `y^5 / 720` of it, relative: below 2^-54.
    if y > -1.0 / 512.0 {
        y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0))))
    } else {
        y.exp_m1()
    }
}

#[derive(Clone, Copy, Default)]
struct CellMass {
    removal_low: f64,
    removal_high: f64,
    addition_low: f64,
    addition_high: f64,
}

/// Nodes and weights, normalised by the Gaussian's `1 / (z sqrt(2 pi))`, of Gauss-Legendre quadrature.
///
/// The integrands are Gaussian densities times functions of the loss, analytic within `r = 2 scale` of the real
/// line, where they exceed their values on the panel at most by a factor of `e^5`. On a panel of width `w` the
/// rule with `n` nodes errs by at most `(64/15) e^5 (4r/w)^(-2n)`, relative: below 1e-15 for
/// 6 nodes at `w <= scale/4`, 3 at `scale/64` and 2 at `scale/1024`.
struct Panels {
    left: f64,
    width: f64,
    panels: usize,
    rule: &'static [(f64, f64)],
    at: usize,
    normaliser: f64,
}

const TWO: [(f64, f64); 2] = [(-0.577_350_269_189_625_8, 1.0), (0.577_350_269_189_625_8, 1.0)];
const THREE: [(f64, f64); 3] =
    [(-0.774_596_669_241_483_4, 5.0 / 9.0), (0.0, 8.0 / 9.0), (0.774_596_669_241_483_4, 5.0 / 9.0)];
const SIX: [(f64, f64); 6] = [
    (-0.932_469_514_203_152, 0.171_324_492_379_170_35),
    (-0.661_209_386_466_264_5, 0.360_761_573_048_138_6),
    (-0.238_619_186_083_196_9, 0.467_913_934_572_691_04),
    (0.238_619_186_083_196_9, 0.467_913_934_572_691_04),
    (0.661_209_386_466_264_5, 0.360_761_573_048_138_6),
    (0.932_469_514_203_152, 0.171_324_492_379_170_35),
];

impl Panels {
    fn new(z: f64, left: f64, right: f64) -> Self {
        let farthest = (left.abs().max(right.abs()) + 1.0) / z;
        let scale = (z / (1.0 + farthest)).min(0.5 * z * z);
        let width = right - left;
        let (panels, rule): (f64, &'static [(f64, f64)]) = if width <= scale / 1024.0 {
            (1.0, &TWO)
        } else if width <= scale / 64.0 {
            (1.0, &THREE)
        } else {
            ((4.0 * width / scale).ceil().max(1.0), &SIX)
        };
        let normaliser = 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 / z;
        Self { left, width: width / panels, panels: panels as usize, rule, at: 0, normaliser }
    }
}

impl Iterator for Panels {
    type Item = (f64, f64);

    fn next(&mut self) -> Option<(f64, f64)> {
        let (panel, node) = (self.at / self.rule.len(), self.at % self.rule.len());
        if panel >= self.panels {
            return None;
        }
        self.at += 1;
        let (offset, weight) = self.rule[node];
        let centre = self.left + (panel as f64 + 0.5) * self.width;
        let half = 0.5 * self.width;
        Some((centre + half * offset, half * weight * self.normaliser))
    }
}

/// The downward lattice: masses at `cells + 1` grid points from the masses `lows` and `highs` into which each of the
/// cells was split.
///
/// Cell `i` between grid points `i` and `i + 1` has split its mass into `low` and `high` so that the mean
/// of `exp(-loss)` is kept. A share `f` of cell `i` merged with a share `s` of cell `i - 1` has grid
/// point `i` for its loss exactly when `f high(i) = exp(h) s low(i - 1)`, which is the flow at that point. Any flows
/// whose shares of each cell sum to 1 at most give a true lower figure. Those chosen here leave little over but at a
/// peak or trough of the masses, where flows solved from either side meet; a last pass
/// merges what neighbours have left over.
fn merged(lows: &[f64], highs: &[f64], h: f64) -> Vec<f64> {
    let (cells, growth) = (lows.len(), h.exp());
    let raised = |cell: usize| growth * lows[cell];
    let share = |flow: f64, whole: f64| if whole > 0.0 { flow / whole } else { 0.0 };
    // flows[i] is at grid point i, between cells i - 1 and i; there is none at either end.
    let mut flows = vec![0.0; cells + 1];
    for at in 1..cells {
        let (below, above) = (raised(at - 1), highs[at]);
        flows[at] = below * share(above, below + above);
    }
    let load =
        |flows: &[f64], cell: usize| share(flows[cell], highs[cell]) + share(flows[cell + 1], raised(cell));
    // Solved away from where a deviation would grow: downwards where masses fall, upwards where they rise.
    let falls = |at: usize| lows[at - 1] + highs[at - 1] >= lows[at] + highs[at];
    for at in (1..cells).rev().filter(|&at| falls(at)) {
        let used = share(flows[at + 1], raised(at));
        flows[at] = (highs[at] * (1.0 - used).max(0.0)).min(raised(at - 1));
    }
    for at in (1..cells).filter(|&at| !falls(at)) {
        let used = share(flows[at - 1], highs[at - 1]);
        flows[at] = (raised(at - 1) * (1.0 - used).max(0.0)).min(highs[at]);
    }
    let mut below = load(&flows, 0);
    for at in 1..cells {
        let above = load(&flows, at);
        flows[at] /= below.max(above).max(1.0);
        below = above;
    }
    let mut masses = vec![0.0; cells + 1];
    let mut left_below: f64 = 0.0;
    for cell in 0..cells {
        let left = (1.0 - load(&flows, cell)).max(0.0);
        // What this cell and the one below have left over.
        let (below, above) =
            if cell > 0 { (left_below * raised(cell - 1), left * highs[cell]) } else { (0.0, 0.0) };
        let further = below.min(above);
        let lowered = share(flows[cell] + further, highs[cell]);
        masses[cell] += lowered * (lows[cell] + highs[cell]);
        if cell > 0 {
            let total_below = lows[cell - 1] + highs[cell - 1];
            let raised_share = share(flows[cell] + further, raised(cell - 1));
            masses[cell] += raised_share * total_below;
            masses[cell - 1] += (left_below - share(further, raised(cell - 1))).max(0.0) * total_below;
        }
        left_below = left - share(further, highs[cell]);
    }
    masses[cells - 1] += left_below.max(0.0) * (lows[cells - 1] + highs[cells - 1]);
    masses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `P(L > epsilon) - exp(epsilon) Q(L > epsilon)` in removal, by the complementary error function.
    fn exact_delta(z: f64, q: f64, epsilon: f64) -> f64 {
        let tail = |threshold: f64| 0.5 * libm::erfc(threshold / (z * std::f64::consts::SQRT_2));
        let at = Release::new(z, q).outcome_at(epsilon - (-q).ln_1p());
        q * tail(at - 1.0) + ((1.0 - q) - epsilon.exp()) * tail(at)
    }

    fn delta_of(lattice: &Lattice, base: f64, h: f64, epsilon: f64) -> f64 {
        let losses = (lattice.first..).map(|index| base + index as f64 * h);
        losses.zip(&lattice.masses).map(|(loss, mass)| mass * -(epsilon - loss).min(0.0).exp_m1()).sum()
    }

    /// Grids from far finer than the losses' spread to coarser than all of it.
    #[test]
    fn lattices_bracket_the_release_at_every_epsilon() {
        for (z, q) in [(0.5, 1e-3), (0.3, 0.2), (1.0, 0.01), (4.0, 0.5), (0.7, 1e-6), (20.0, 0.999)] {
            let release = Release::new(z, q);
            for h in [0.5, 0.04, 1e-3, 1e-5].into_iter().filter(|h| release.span(8.0) / h < 1e6) {
                let loss = release.on_grid(h, 8.0);
                for lattice in [&loss.removal, &loss.floor] {
                    assert!(lattice.masses.iter().all(|&mass| mass >= 0.0));
                    assert!((lattice.masses.iter().sum::<f64>() - 1.0).abs() < 1e-10);
                }
                for step in 0..200 {
                    let epsilon = release.base() + release.span(8.0) * (f64::from(step) + 0.5) / 200.0;
                    let exact = exact_delta(z, q, epsilon);
                    let upper = delta_of(&loss.removal, loss.base, h, epsilon) + loss.escaped;
                    let lower = delta_of(&loss.floor, loss.base, h, epsilon);
                    let place = format!("z {z} q {q} h {h} epsilon {epsilon}: {lower} {exact} {upper}");
                    let rounding = 2.0 * MASS_ERROR * exact + 1e-15;
                    assert!(lower <= exact + rounding && exact <= upper + rounding, "{place}");
                }
            }
        }
    }

    /// What is rounded down, by a mean of less than a step, is next to nothing: also where nearly all losses are
    /// in the lowest cell (the first two), and where they peak a cell above it (the third).
    #[test]
    fn next_to_nothing_is_rounded_down() {
        for (z, q, h) in [(0.5, 1e-3, 1e-3), (1.0, 1e-5, 1e-4), (0.8, 1e-3, 7e-5), (2.0, 0.05, 1e-3)] {
            let loss = Release::new(z, q).on_grid(h, 8.0);
            let kept = |lattice: &Lattice| {
                let losses = (lattice.first..).map(|index| loss.base + index as f64 * h);
                losses.zip(&lattice.masses).map(|(loss, mass)| mass * -(-loss).exp_m1()).sum::<f64>()
            };
            // The mean of 1 - exp(-loss), which is 0 without rounding down.
            let lost = kept(&loss.removal) - kept(&loss.floor);
            assert!(lost.abs() < 5e-4 * h, "z {z} q {q} h {h}: {:e} of a step", lost / h);
        }
    }
}
