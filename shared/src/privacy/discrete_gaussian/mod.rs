//! Exact noise: the discrete Gaussian over the integers.
//!
//! In: sigma, a [`Generator`]. Out: integers `x` with probability exactly proportional to
//! `exp(-x^2 / (2 sigma^2))`, the law of Canonne, Kamath and Steinke ("The Discrete Gaussian for Differential
//! Privacy", 2020, Definition 1) on which the zCDP theorem of the privacy claim rests. Promised: no
//! probability is rounded anywhere, given that the generator's words are uniform; nothing here depends on the
//! values that noise is added to. Time varies with the noise drawn, never with those values.
//!
//! # How a sample is drawn
//!
//! Let `w(x) = exp(-x^2 / (2 sigma^2))`, and `S` the integer `scale` of [`envelope`].
//!
//! 1. One word chooses a block by an integer alias table: a block of height `h` with probability exactly
//!    `h / 2^64`, a tail of first height `h` with `2 h 2^(t - b) / 2^64`, where blocks have `2^b` integers and
//!    tail blocks `2^t`.
//! 2. The low `b` bits of a second word choose an integer of the block, each with probability `2^-b`. In a
//!    tail, the number of zero bits before the first one chooses tail block `q` with probability `2^-(q+1)`;
//!    `t` more bits choose an integer of it.
//! 3. The integer is kept if `U h < S w(x)` (`U h 2^-q < S w(x)` in a tail) for a fresh uniform real `U`, whose
//!    first digits are the remaining bits of the second word. Otherwise all starts again.
//!
//! Since heights are at least `S w(x)` ([`envelope`] proves it), a given `x` is kept in one turn with
//! probability
//!
//! - in a block: `h / 2^64 * 2^-b * S w(x) / h`,
//! - in a tail: `2 h 2^(t - b) / 2^64 * 2^-(q+1) * 2^-t * S w(x) 2^q / h`,
//!
//! both equal to `w(x) * S / 2^(64 + b)`: proportional to `w(x)` with one constant for all integers. Turns are
//! independent, so the kept integer has exactly the law wanted.
//!
//! # How step 3 is decided
//!
//! Exactly, in three ways that never disagree, since each answers only when it is sure:
//! all digits that `U` may still have lie below a lower bound of `S w(x) / h` for the whole block (98.4 % of
//! draws or more); they lie on one side of an `f64` estimate by more than its proved error; or interval
//! arithmetic in integers with as many digits of `U` as it takes ([`comparison`]).
//!
//! # The end of `i64`
//!
//! The law on all integers has a probability below `exp(-2^43)`, which is less than `2^-(10^13)`, at
//! magnitudes of 2^62 and more even for the largest sigma. Those are drawn again, so what is sampled is
//! exactly the law conditioned on `|x| < 2^62`. To account for it one would add `2^-(10^13)` to delta.

mod alias;
mod comparison;
mod envelope;
mod exponential;
mod natural;

use self::alias::AliasTable;
use self::comparison::{Acceptance, Digits};
use self::envelope::{Envelope, TWO_64};
use self::exponential::Sigma;
use super::Generator;

/// Samples are below this in magnitude.
const MAGNITUDE_LIMIT: u128 = 1 << 62;

/// Half the width, in units of 2^-64, of the band around the `f64` estimate of an acceptance where it does not
/// decide. The estimate errs by less than 2^-43 (weight 2^-44, three roundings) and its conversion by one
/// unit: 2^21 + 1 units.
const ESTIMATE_MARGIN: u64 = 1 << 24;

/// Why there is no sampler for a standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("sigma of a discrete Gaussian must be from 0.5 to 2^40, got {got}")]
pub struct SigmaOutOfRange {
    got: f64,
}

/// The discrete Gaussian `N_Z(0, sigma^2)`: tables of 40 KiB at most, made in some tens of microseconds.
pub struct DiscreteGaussian {
    sigma: Sigma,
    table: AliasTable,
    envelope: Envelope,
}

impl DiscreteGaussian {
    /// `sigma` is a number of integer steps from 0.5 to 2^40 and is taken at the exact value of the `f64`.
    ///
    /// It is the parameter of the law. The standard deviation is below it (Canonne, Kamath and Steinke show it):
    /// by 7.3 % at 0.5, 0.034 % at 0.75, a ten-millionth at 1, and less than an `f64` shows from 2 on.
    pub fn new(sigma: f64) -> Result<Self, SigmaOutOfRange> {
        if !(0.5..=(1u64 << 40) as f64).contains(&sigma) {
            return Err(SigmaOutOfRange { got: sigma });
        }
        let sigma = Sigma::new(sigma);
        Ok(Self::under(Envelope::new(&sigma), sigma))
    }

    fn under(envelope: Envelope, sigma: Sigma) -> Self {
        Self {
            sigma,
            table: AliasTable::new(&envelope.block_weights()),
            envelope,
        }
    }

    /// The sigma that this was made for.
    pub fn sigma(&self) -> f64 {
        self.sigma.value()
    }

    /// One sample; `|sample| < 2^62`.
    #[inline]
    pub fn sample(&self, generator: &mut Generator) -> i64 {
        loop {
            let [choice, word] = generator.next_words();
            let block = self.table.choose(choice);
            if self.surely_accepts(block, word) {
                return self.integer(block, word);
            }
            if let Some(sample) = self.settle(block, word, generator) {
                return sample;
            }
        }
    }

    /// Adds an independent sample to each of `values`.
    ///
    /// Values of magnitude up to 2^62 cannot overflow, since samples are below 2^62. Beyond, the sum stops at
    /// the ends of `i64` instead of wrapping: that is a function of the exact noisy sum alone, so the
    /// privacy of the sum is kept (post-processing).
    pub fn add_to(&self, values: &mut [i64], generator: &mut Generator) {
        for value in values {
            *value = value.saturating_add(self.sample(generator));
        }
    }

    /// The integer of `block` that the low bits of `word` choose.
    #[inline]
    fn integer(&self, block: usize, word: u64) -> i64 {
        let Envelope { side, width_bits, .. } = self.envelope;
        let offset = word & ((1 << width_bits) - 1);
        ((block as i64 - side as i64) << width_bits) + offset as i64
    }

    /// True only if the high bits of `word`, whatever digits follow them, are below the sure share of `block`.
    ///
    /// The low bits of `word` choose the integer and must not decide: they count as their greatest value.
    #[inline]
    fn surely_accepts(&self, block: usize, word: u64) -> bool {
        let offset_mask = (1 << self.envelope.width_bits) - 1;
        self.envelope
            .sure
            .get(block)
            .is_some_and(|&sure| word | offset_mask < sure)
    }

    /// What becomes of a draw that is not surely kept: `None` if all starts again.
    #[cold]
    #[inline(never)]
    fn settle(&self, block: usize, word: u64, generator: &mut Generator) -> Option<i64> {
        if block >= self.envelope.heights.len() {
            return self.sample_tail(block, generator);
        }
        let accepted = self
            .estimate_accepts(block, word)
            .unwrap_or_else(|| self.exactly_accepts(block, word, generator));
        accepted.then(|| self.integer(block, word))
    }

    /// Whether the `f64` estimate accepts; `None` if it lies too close to say.
    fn estimate_accepts(&self, block: usize, word: u64) -> Option<bool> {
        let height = self.envelope.heights[block];
        let weight = self.sigma.weight(self.integer(block, word).unsigned_abs());
        let ratio = weight * (self.envelope.scale as f64 / height as f64);
        let estimate = (ratio * TWO_64) as u64;
        let offset_mask = (1 << self.envelope.width_bits) - 1;
        let (lowest, highest) = (word & !offset_mask, word | offset_mask);
        if highest < estimate.saturating_sub(ESTIMATE_MARGIN) {
            Some(true)
        } else if estimate
            .checked_add(ESTIMATE_MARGIN)
            .is_some_and(|above| above <= lowest)
        {
            Some(false)
        } else {
            None
        }
    }

    fn exactly_accepts(&self, block: usize, word: u64, generator: &mut Generator) -> bool {
        let width_bits = self.envelope.width_bits;
        let acceptance = Acceptance {
            sigma: &self.sigma,
            scale: self.envelope.scale,
            height: self.envelope.heights[block],
            halvings: 0,
            magnitude: self.integer(block, word).unsigned_abs(),
        };
        let uniform = Digits {
            drawn: word >> width_bits,
            bits: u64::from(64 - width_bits),
        };
        acceptance.decide(uniform, || generator.next_u64())
    }

    fn sample_tail(&self, block: usize, generator: &mut Generator) -> Option<i64> {
        let Envelope {
            side,
            width_bits,
            tail_width_bits,
            tail_height,
            ..
        } = self.envelope;
        let below = match block as u64 - 2 * side {
            0 => false,
            1 => true,
            _ => return None, // the part of 2^64 that no block fills
        };
        let mut halvings = 0;
        loop {
            let word = generator.next_u64();
            halvings += u64::from(word.leading_zeros());
            if word != 0 {
                break;
            }
        }
        let offset = generator.next_u64() & ((1 << tail_width_bits) - 1);
        let start = (side << width_bits) + u64::from(below);
        let magnitude = u128::from(start) + (u128::from(halvings) << tail_width_bits) + u128::from(offset);
        if magnitude >= MAGNITUDE_LIMIT {
            return None;
        }
        let magnitude = magnitude as u64;
        let acceptance = Acceptance {
            sigma: &self.sigma,
            scale: self.envelope.scale,
            height: tail_height,
            halvings,
            magnitude,
        };
        let accepted = acceptance.decide(Digits { drawn: 0, bits: 0 }, || generator.next_u64());
        let magnitude = magnitude as i64;
        accepted.then_some(if below { -magnitude } else { magnitude })
    }
}

impl std::fmt::Debug for DiscreteGaussian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiscreteGaussian")
            .field("sigma", &self.sigma())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
