//! Each customer of a batch in turn: its norm, its clip factor, the rounding of its factors and the check of what they come
//! to; see [`grid`](super).

use pulp::{Simd, WithSimd};

use super::norm::NormScratch;
use super::whole::{self, WholeGradients, WholeTaps};
use super::{ACTIVATION_STEPS, Clipping, FACTOR_LIMIT, GRADIENT_STEPS, SENSITIVITY, entries};
use crate::model::{Slot, Workspace};

/// What a clipped norm stays below the clip norm by, so that rounding seldom pushes it past.
const MARGIN: f64 = 1.0 - 1.0 / 1024.0;
/// Times the clip factor is shrunk before rounding goes towards zero.
const ATTEMPTS: usize = 4;

/// The work on a batch, compiled for each instruction set. Float factors are written over with the integer
/// factors, as f32 that hold integers of at most [`FACTOR_LIMIT`], which f32 has exactly: the values of the slots that are
/// a tap's input, in units of `alpha`, and the gradients of those that are a tap's output, in units of `gamma`. What is a
/// factor of none but whole gradients stays.
/// Whole gradients are added to `sum`, now or when they are flushed. Returns how many of the customers had a norm within
/// the clip norm.
pub(super) struct Clip<'a> {
    pub clip: f64,
    pub clipping: Clipping,
    pub factors: &'a mut Workspace,
    pub forms: &'a mut Vec<WholeTaps>,
    pub slots: &'a mut [Vec<Slot>; 2],
    pub scratch: &'a mut NormScratch,
    pub whole: &'a mut WholeGradients,
    pub sum: &'a mut [i64],
}

impl WithSimd for Clip<'_> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> usize {
        self.forms.clear();
        let mut within = 0;
        for customer in 0..self.factors.customers() {
            let taps = WholeTaps::of(self.factors, customer);
            if self.forms.last() != Some(&taps) {
                self.fill_slots(taps);
            }
            self.forms.push(taps);
            within += usize::from(self.clip_customer(customer, taps));
        }
        within
    }
}

impl Clip<'_> {
    /// The slots whose values, and those whose gradients are factors, each once: what is rounded is not to be rounded again.
    fn fill_slots(&mut self, whole: WholeTaps) {
        let [inputs, outputs] = &mut *self.slots;
        inputs.clear();
        outputs.clear();
        for tap in whole.others(self.factors.taps()) {
            inputs.extend(tap.input());
            outputs.push(tap.output());
        }
        for slots in [inputs, outputs] {
            slots.sort_unstable();
            slots.dedup();
        }
    }

    /// Calls `write` with the gradients of one customer, slot by slot.
    #[inline(always)]
    fn rewrite_gradients(&mut self, customer: usize, write: impl Fn(&mut [f32])) {
        for &slot in &self.slots[1] {
            let [start, end] = entries(self.factors, slot, customer);
            write(&mut self.factors.gradients_mut(slot)[start..end]);
        }
    }

    /// Writes integer factors over one customer's, and adds its whole gradients to the sum; the norm of its integer gradient
    /// is at most what the clipping allows. Whether the norm was within the clip norm before.
    #[inline(always)]
    fn clip_customer(&mut self, customer: usize, taps: WholeTaps) -> bool {
        let (clip, limit) = (self.clip, self.clipping.squared_limit());
        let bound = clip * (limit as f64).sqrt() / SENSITIVITY as f64;
        // Integers below 2^53: exact, as is their product with a power of two.
        let below = (limit as f64).next_down();
        let made = if taps.any() { self.whole.make(self.factors, customer, taps) } else { 0.0 };
        for &slot in &self.slots[0] {
            let [start, end] = entries(self.factors, slot, customer);
            round_activations(&mut self.factors.values_mut(slot)[start..end]);
        }
        self.scratch.measure_inputs::<f64>(self.factors, customer, taps);
        // In units of the activation's integers. Where rows cancel it may come out below zero.
        let squared: f64 = self.scratch.squared_norm(self.factors, customer, taps);
        let steps = f64::from(ACTIVATION_STEPS);
        let squared = if squared < 0.0 { 0.0 } else { squared } / (steps * steps) + made;
        let norm = squared.sqrt();
        if norm.is_finite() {
            let factor = self.clipping.factor(norm, bound * MARGIN);
            let mut scale = factor * (GRADIENT_STEPS / clip);
            // Of a whole gradient, which keeps its floats, since the first attempt.
            let mut whole_scale = steps;
            for attempt in 0..=ATTEMPTS {
                if attempt < ATTEMPTS {
                    self.rewrite_gradients(customer, |own| round_gradients(own, scale as f32));
                } else {
                    self.rewrite_gradients(customer, |own| truncate_gradients(own, scale as f32));
                }
                whole_scale *= scale;
                let whole = whole::largest_squared_norm(made, whole_scale as f32);
                let near: f64 = self.scratch.squared_norm(self.factors, customer, taps);
                let mut fits = near + self.scratch.uncertainty(near) + whole <= below;
                if !fits {
                    let squared = self.scratch.exact_squared_norm(self.factors, customer, taps);
                    // Infinite or NaN it is not within anything.
                    fits = whole <= below && squared + whole.ceil() as i128 <= limit;
                    scale = MARGIN * (limit as f64 / (squared as f64 + whole)).sqrt();
                }
                if fits {
                    if taps.any() {
                        self.whole.add(whole_scale as f32, self.sum);
                    }
                    return norm <= bound;
                }
            }
        }
        self.rewrite_gradients(customer, |own| own.fill(0.0));
        false
    }
}

/// Saturates; NaN, which only a customer that counts as zero has, becomes an integer as well. Comparisons and not
/// `clamp`, which would let it through.
#[inline(always)]
fn saturate(value: f32) -> f32 {
    let value = if value > -FACTOR_LIMIT { value } else { -FACTOR_LIMIT };
    if value < FACTOR_LIMIT { value } else { FACTOR_LIMIT }
}

#[inline(always)]
fn round_activations(factors: &mut [f32]) {
    factors.iter_mut().for_each(|factor| *factor = saturate((*factor * ACTIVATION_STEPS).round_ties_even()));
}

#[inline(always)]
fn round_gradients(factors: &mut [f32], scale: f32) {
    factors.iter_mut().for_each(|factor| *factor = saturate((*factor * scale).round_ties_even()));
}

#[inline(always)]
fn truncate_gradients(factors: &mut [f32], scale: f32) {
    factors.iter_mut().for_each(|factor| *factor = saturate((*factor * scale).trunc()));
}
