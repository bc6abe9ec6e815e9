//! Renyi accounting of Poisson-subsampled Gaussian releases.
//!
//! Enters: events, or their [`RenyiCurve`]s. Leaves: an epsilon at a delta. Promises an upper bound
//! that also holds when each event's parameters were chosen after seeing earlier releases (a filter),
//! which a privacy loss distribution does not give.
//!
//! **What is bounded.** With `L` the likelihood ratio of one release with and without the customer,
//! the curve holds the cumulants `g(alpha) = ln E[L^alpha] = (alpha - 1) RDP(alpha)`, which add up under
//! composition (Mironov 2017). Both directions of add/remove are covered: for noise symmetric under
//! a reflection that swaps the two centres, the direction used here is the larger one (Mironov, Talwar
//! and Zhang 2019, Theorem 5), and the reflection `x -> s - x` maps the integer lattice to itself.
//!
//! **Why the figure holds for the discrete Gaussian.** At integer `alpha` the subsampled moment is a
//! binomial sum, with positive weights, of the plain moments `E[(P/Q)^k]`, `k <= alpha`. For an
//! integer shift `s` of the discrete Gaussian each of those is at most, and at integer `k` equal to, the
//! continuous `exp((k^2 - k) |s|^2 / (2 sigma^2))` (Canonne, Kamath and Steinke 2020), in any dimension, and
//! grows with `|s|`. Without subsampling the same paper bounds every real `alpha`.
//!
//! **Fractional orders.** With subsampling a fractional power is not a positive sum of moments, so the
//! argument above says nothing. But `g` is convex (Hoelder), so the chord between the two
//! neighbouring integers bounds it from above; `g(1) = 0`. The chord is what is used.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::GaussianEvent;
use crate::privacy::{Delta, Epsilon, NoiseMultiplier, SamplingRate};

/// Highest order at which the binomial sum is evaluated; above it a release counts as unsampled.
const HIGHEST_SAMPLED_ORDER: u32 = 4096;

/// The orders of every curve, ascending, all above 1.
static ORDERS: LazyLock<Vec<Order>> = LazyLock::new(|| {
    let near_one = (0..72).map(|i| 1.0 + f64::exp2(f64::from(i - 72) / 8.0));
    let quarters = (8..48).map(|i| f64::from(i) / 4.0);
    let halves = (24..64).map(|i| f64::from(i) / 2.0);
    let every = (32..128).map(f64::from);
    let sparse = (56..=160).map(|i| f64::exp2(f64::from(i) / 8.0).round());
    near_one.chain(quarters).chain(halves).chain(every).chain(sparse).map(Order::new).collect()
});

/// An order and what the conversion to epsilon needs of it.
struct Order {
    alpha: f64,
    /// `1 / (alpha - 1)`.
    inverse_gap: f64,
    /// `ln(1 - 1/alpha) - ln(alpha) / (alpha - 1)`.
    offset: f64,
}

impl Order {
    fn new(alpha: f64) -> Self {
        let inverse_gap = 1.0 / (alpha - 1.0);
        Self { alpha, inverse_gap, offset: (-1.0 / alpha).ln_1p() - alpha.ln() * inverse_gap }
    }
}

/// One of the orders of every [`RenyiCurve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct RenyiOrder(usize);

impl TryFrom<u32> for RenyiOrder {
    type Error = String;
    fn try_from(index: u32) -> Result<Self, String> {
        let known = (index as usize) < ORDERS.len();
        known.then_some(Self(index as usize)).ok_or_else(|| format!("there is no Renyi order {index}"))
    }
}

impl From<RenyiOrder> for u32 {
    fn from(order: RenyiOrder) -> u32 {
        order.0 as u32
    }
}

/// An upper bound on `g(alpha) = (alpha - 1) RDP(alpha)` at a fixed ascending list of orders above 1.
///
/// Adding curves composes the releases they stand for. Reading [`RenyiCurve::epsilon`] or adding a
/// curve takes about a microsecond; building one takes about a millisecond, so a running job builds the
/// curve of its round once and adds it again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct RenyiCurve {
    cumulants: Vec<f64>,
}

impl RenyiCurve {
    /// The curve of having released nothing.
    pub fn zero() -> Self {
        Self { cumulants: vec![0.0; ORDERS.len()] }
    }

    /// The curve of all `event.steps` releases of `event`.
    pub fn of(event: &GaussianEvent) -> Self {
        Self::of_one_step(event.noise_multiplier, event.sampling_rate).scaled(event.steps)
    }

    /// The curve of a single release.
    pub fn of_one_step(noise_multiplier: NoiseMultiplier, sampling_rate: SamplingRate) -> Self {
        let z = noise_multiplier.value();
        let plain = |alpha: f64| up(alpha * (alpha - 1.0) / (2.0 * z * z), 4.0);
        let q = sampling_rate.value();
        if q == 1.0 {
            return Self { cumulants: ORDERS.iter().map(|order| plain(order.alpha)).collect() };
        }
        let sampled = SampledMoments::new(z, q);
        let mut known: Option<(f64, f64)> = None;
        let mut at_integer = |alpha: f64| match known {
            Some((order, cumulant)) if order == alpha => cumulant,
            _ => {
                let cumulant = sampled.cumulant(alpha as u32).min(plain(alpha));
                known = Some((alpha, cumulant));
                cumulant
            }
        };
        let cumulants = ORDERS.iter().map(|order| {
            let (below, above) = (order.alpha.floor(), order.alpha.ceil());
            if above > f64::from(HIGHEST_SAMPLED_ORDER) {
                plain(order.alpha)
            } else if below == above {
                at_integer(below)
            } else {
                let weight = order.alpha - below;
                let low = if below == 1.0 { 0.0 } else { sampled.cumulant(below as u32) };
                let chord = (1.0 - weight) * low + weight * at_integer(above);
                up(chord, 4.0).min(plain(order.alpha))
            }
        });
        Self { cumulants: cumulants.collect() }
    }

    /// This curve, `steps` times over.
    pub fn scaled(mut self, steps: u32) -> Self {
        for cumulant in &mut self.cumulants {
            *cumulant = up(*cumulant * f64::from(steps), 1.0);
        }
        self
    }

    /// Composes the releases behind `other` with those behind this curve.
    pub fn add(&mut self, other: &RenyiCurve) {
        for (mine, theirs) in self.cumulants.iter_mut().zip(&other.cumulants) {
            *mine = up(*mine + theirs, 1.0);
        }
    }

    /// The smallest epsilon, at least 0, that the orders prove at `delta`.
    ///
    /// Canonne, Kamath and Steinke 2020, Proposition 12:
    /// `epsilon = RDP(alpha) + ln(1 - 1/alpha) - (ln(delta) + ln(alpha)) / (alpha - 1)`.
    /// 0 if nothing was released; infinite if no order bounds it.
    pub fn epsilon(&self, delta: Delta) -> f64 {
        if self.cumulants.iter().all(|&cumulant| cumulant == 0.0) {
            return 0.0;
        }
        let claims = (0..ORDERS.len()).map(|index| self.claim(index, delta));
        // `min` passes over a NaN, which an overflowing order may give.
        claims.fold(f64::INFINITY, f64::min).max(0.0)
    }

    /// The epsilon, at least 0, that one order proves at `delta`; 0 if nothing was released. A bound on
    /// this figure at an order fixed beforehand is a privacy filter (see the ledger's balance).
    pub fn epsilon_at(&self, order: RenyiOrder, delta: Delta) -> f64 {
        if self.cumulants.iter().all(|&cumulant| cumulant == 0.0) {
            return 0.0;
        }
        let claim = self.claim(order.0, delta);
        if claim.is_nan() { f64::INFINITY } else { claim.max(0.0) }
    }

    /// The order at which most releases like this curve's fit under (`cap`, `delta`) on top of `spent`.
    pub fn roomiest_order(&self, spent: &RenyiCurve, cap: Epsilon, delta: Delta) -> RenyiOrder {
        let copies = |index: usize| {
            let room = (cap.value() - spent.claim(index, delta)) / ORDERS[index].inverse_gap;
            let copies = room / self.cumulants[index];
            if copies.is_nan() { f64::NEG_INFINITY } else { copies }
        };
        let best = (0..ORDERS.len()).max_by(|&one, &other| copies(one).total_cmp(&copies(other)));
        RenyiOrder(best.unwrap_or(0))
    }

    /// Canonne, Kamath and Steinke 2020, Proposition 12, at one order, raised by its roundings.
    fn claim(&self, index: usize, delta: Delta) -> f64 {
        let order = &ORDERS[index];
        let (rdp, failure) =
            (self.cumulants[index] * order.inverse_gap, delta.value().ln() * order.inverse_gap);
        let epsilon = rdp - failure + order.offset;
        epsilon + 8.0 * f64::EPSILON * (rdp.abs() + failure.abs() + order.offset.abs())
    }
}

/// Curves of single releases, by the bits of noise multiplier and sampling rate: making one takes a
/// millisecond, and a ledger asks for the same few at every entry.
#[derive(Debug, Clone, Default)]
pub struct StepCurves(BTreeMap<(u64, u64), Arc<RenyiCurve>>);

impl StepCurves {
    /// The curve of one release like those of `event`, kept from now on.
    pub fn learn(&mut self, event: &GaussianEvent) -> &RenyiCurve {
        self.0.entry(event.kind()).or_insert_with(|| Arc::new(Self::make(event)))
    }

    /// How many unlike releases were learnt; each curve takes a few kilobytes.
    pub fn kinds(&self) -> usize {
        self.0.len()
    }

    /// The curve of all `events` together; those not learnt are made for the occasion.
    pub fn total<'a>(&self, events: impl IntoIterator<Item = &'a GaussianEvent>) -> RenyiCurve {
        let mut total = RenyiCurve::zero();
        self.add_to(&mut total, events);
        total
    }

    /// Composes `events` with what `total` stands for.
    pub fn add_to<'a>(&self, total: &mut RenyiCurve, events: impl IntoIterator<Item = &'a GaussianEvent>) {
        for event in events {
            let known = self.0.get(&event.kind());
            let step = known.map_or_else(|| Self::make(event), |curve| (**curve).clone());
            total.add(&step.scaled(event.steps));
        }
    }

    fn make(event: &GaussianEvent) -> RenyiCurve {
        RenyiCurve::of_one_step(event.noise_multiplier, event.sampling_rate)
    }
}

/// The epsilon that all of `events` together do not exceed at `delta`; 0 for no events, infinite when
/// it cannot be bounded. Also valid when later events were chosen in sight of earlier releases.
pub fn renyi_epsilon(events: &[GaussianEvent], delta: Delta) -> f64 {
    let mut total = RenyiCurve::zero();
    for event in events {
        total.add(&RenyiCurve::of(event));
    }
    total.epsilon(delta)
}

/// `value` moved up by `operations` relative roundings.
fn up(value: f64, operations: f64) -> f64 {
    value * (1.0 + operations * f64::EPSILON)
}

/// The binomial sum of one subsampled release: noise multiplier `z`, sampling rate `q < 1`.
struct SampledMoments {
    half_inverse_variance: f64,
    ln_sampled: f64,
    ln_skipped: f64,
}

impl SampledMoments {
    fn new(z: f64, q: f64) -> Self {
        Self { half_inverse_variance: 0.5 / (z * z), ln_sampled: q.ln(), ln_skipped: (-q).ln_1p() }
    }

    /// An upper bound on `ln E[(1 - q + q P/Q)^order]` for an integer `order` of 2 or more.
    ///
    /// The binomial weights sum to 1, so the moment is
    /// `1 + sum_{k>=2} C(order, k) (1-q)^(order-k) q^k (exp((k^2-k) / 2z^2) - 1)`: every term is positive,
    /// nothing cancels, and small sampling rates keep their relative precision. Each term's
    /// logarithm is raised by the rounding of the additions behind it.
    fn cumulant(&self, order: u32) -> f64 {
        let n = f64::from(order);
        let mut ln_choose = n.ln();
        let mut total = LnSum::default();
        for k in 2..=order {
            let k = f64::from(k);
            ln_choose += ((n - k + 1.0) / k).ln();
            let exponent = k * (k - 1.0) * self.half_inverse_variance;
            let ln_moment_less_one =
                if exponent > 1.0 { exponent + (-(-exponent).exp()).ln_1p() } else { exponent.exp_m1().ln() };
            let sampled = k * self.ln_sampled;
            let skipped = (n - k) * self.ln_skipped;
            let size = n * 0.7 + exponent + ln_moment_less_one.abs() - sampled - skipped;
            let slack = f64::EPSILON * ((k + 4.0) * (n * 0.7 + 1.0) + 8.0 * size);
            total.add(ln_choose + sampled + skipped + ln_moment_less_one + slack);
        }
        let ln_excess = total.ln() + f64::EPSILON * (n + 8.0);
        let cumulant =
            if ln_excess > 0.0 { ln_excess + (-ln_excess).exp().ln_1p() } else { ln_excess.exp().ln_1p() };
        up(cumulant, 8.0)
    }
}

/// A running sum of positive numbers given by their logarithms.
struct LnSum {
    largest: f64,
    scaled: f64,
}

impl Default for LnSum {
    fn default() -> Self {
        Self { largest: f64::NEG_INFINITY, scaled: 0.0 }
    }
}

impl LnSum {
    fn add(&mut self, ln_term: f64) {
        if ln_term > self.largest {
            self.scaled = self.scaled * (self.largest - ln_term).exp() + 1.0;
            self.largest = ln_term;
        } else {
            self.scaled += (ln_term - self.largest).exp();
        }
    }

    fn ln(&self) -> f64 {
        self.largest + self.scaled.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn nothing_released_costs_nothing() {
        assert_eq!(renyi_epsilon(&[], delta(1e-6)), 0.0);
        assert_eq!(renyi_epsilon(&[event(1.0, 0.1, 0)], delta(1e-6)), 0.0);
    }

    #[test]
    fn orders_ascend_above_one() {
        assert!(ORDERS[0].alpha > 1.0);
        assert!(ORDERS.windows(2).all(|pair| pair[0].alpha < pair[1].alpha));
    }

    /// dp-accounting 0.6.0's Renyi accountant (`renyi` in accounting.json). Ours has more orders, so it may
    /// be lower by what they gain, and higher by the chord that stands for fractional orders.
    #[test]
    fn published_renyi_figures_are_met() {
        for (z, q, steps, at, theirs) in [
            (0.8, 0.001, 100, 1e-5, 1.082100438636862),
            (2.0, 0.01, 100, 1e-5, 0.2571292377435293),
            (1.0, 0.001, 1000, 1e-6, 0.869708),
            (0.7, 0.004, 30000, 1e-5, 10.0242),
            (2.0, 0.01, 100_000, 1e-6, 9.56937),
            (1.0, 1.0, 1, 1e-5, 4.72851),
        ] {
            let ours = renyi_epsilon(&[event(z, q, steps)], delta(at));
            let ratio = ours / theirs;
            assert!((0.95..1.003).contains(&ratio), "z {z} q {q} T {steps}: {ours} against {theirs}");
        }
    }

    /// `E[(1 - q + q P/Q)^2] = 1 + q^2 (exp(1/z^2) - 1)`, and order 3 likewise by hand.
    #[test]
    fn low_moments_match_their_closed_forms() {
        for (z, q) in [(0.5, 0.3), (1.0, 1e-3), (40.0, 1e-7)] {
            let moments = SampledMoments::new(z, q);
            let grown = |k: f64| ((k * k - k) / (2.0 * z * z)).exp_m1();
            let second = (q * q * grown(2.0)).ln_1p();
            let third = (3.0 * (1.0 - q) * q * q * grown(2.0) + q * q * q * grown(3.0)).ln_1p();
            for (order, exact) in [(2, second), (3, third)] {
                let ours = moments.cumulant(order);
                assert!(ours >= exact * (1.0 - 1e-15), "order {order} z {z} q {q}: {ours} below {exact}");
                assert!(ours <= exact * (1.0 + 1e-12), "order {order} z {z} q {q}: {ours} above {exact}");
            }
        }
    }

    #[test]
    fn composing_step_by_step_is_composing_at_once() {
        let round = RenyiCurve::of(&event(1.1, 0.02, 1));
        let mut running = RenyiCurve::zero();
        for _ in 0..50 {
            running.add(&round);
        }
        let at_once = renyi_epsilon(&[event(1.1, 0.02, 50)], delta(1e-6));
        assert!((running.epsilon(delta(1e-6)) / at_once - 1.0).abs() < 1e-12);
    }

    #[test]
    fn sampling_never_costs_more_than_releasing_over_everyone() {
        let everyone = RenyiCurve::of(&event(0.3, 1.0, 1));
        for q in [1e-6, 0.01, 0.5, 1.0 - 1e-9] {
            let sampled = RenyiCurve::of(&event(0.3, q, 1));
            assert!(sampled.cumulants.iter().zip(&everyone.cumulants).all(|(low, high)| low <= high), "{q}");
        }
    }
}
