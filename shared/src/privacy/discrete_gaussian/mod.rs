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
//! 1. The high 32 bits of a word choose a block by an integer alias table: a block of height `h` with
//!    probability exactly `h / 2^32`, a tail of first height `h` with `2 h 2^(t - b) / 2^32`, where blocks have
//!    `2^b` integers and tail blocks `2^t`.
//! 2. `b` further bits, independent of those, choose an integer of the block, each with probability `2^-b`: the
//!    lowest of the same word for `b` up to 24, those of another word beyond. In a tail, the number of zero
//!    bits before the first one chooses tail block `q` with probability `2^-(q+1)`; `t` more bits choose an
//!    integer of it.
//! 3. The integer is kept if `U h < S w(x)` (`U h 2^-q < S w(x)` in a tail) for a uniform real `U`, whose first
//!    digits are what is left of the first word (in a tail, a fresh word) and whose others are drawn when needed.
//!    Otherwise all starts again.
//!
//! Since heights are at least `S w(x)` ([`envelope`] proves it), a given `x` is kept in one turn with
//! probability
//!
//! - in a block: `h / 2^32 * 2^-b * S w(x) / h`,
//! - in a tail: `2 h 2^(t - b) / 2^32 * 2^-(q+1) * 2^-t * S w(x) 2^q / h`,
//!
//! both equal to `w(x) * S / 2^(32 + b)`: proportional to `w(x)` with one constant for all integers. Turns are
//! independent, so the kept integer has exactly the law wanted.
//!
//! # How step 3 is decided
//!
//! Exactly, in three ways that never disagree, since each answers only when it is sure:
//!
//! - all digits that `U` may still have lie below a lower bound of `S w(x) / h` for the whole block (99 % of
//!   draws or more),
//! - the first 53 digits of `U` lie on one side of an `f64` estimate by more than its proved error (all but
//!   one in 10^11 of all draws),
//! - integer interval arithmetic with as many digits of `U` as it takes ([`comparison`]).
//!
//! A vector's draws are answered in the first way as they come; what is not sure is gathered and estimated side by side.
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

use self::alias::{AliasTable, SLOTS};
use self::comparison::Acceptance;
use self::envelope::Envelope;
use self::exponential::Sigma;
use super::Generator;
use crate::model::vectorised;
use pulp::{Arch, Simd, WithSimd};

/// Samples are below this in magnitude.
const MAGNITUDE_LIMIT: u128 = 1 << 62;

/// How far an acceptance's `f64` estimate must be from the first 53 digits of the uniform to decide. The estimate errs by
/// less than 2^-43 (weight 2^-44, two roundings), the digits left out and the difference's rounding are 2^-53 each.
const ESTIMATE_MARGIN: f64 = 1.0 / (1u64 << 40) as f64;

/// Blocks of up to `2^24` integers take the choice of one from the low half of the word that chose the block,
/// which leaves 8 digits or more of the uniform: these do not decide for one draw in 2^8 more, at most.
const WIDEST_BITS_IN_A_WORD: u32 = 24;

/// Samples that [`DiscreteGaussian::add_to`] draws side by side.
const BATCH: usize = 32;

/// Draws that are settled side by side.
const LANES: usize = 16;

/// Why there is no sampler for a standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("sigma of a discrete Gaussian must be from 0.5 to 2^40, got {got}")]
pub struct SigmaOutOfRange {
    got: f64,
}

/// The discrete Gaussian `N_Z(0, sigma^2)`: tables of 28 KiB, made in a fifth of a millisecond.
pub struct DiscreteGaussian {
    sigma: Sigma,
    table: AliasTable,
    envelope: Envelope,
    /// Of the low half of a word, the bits that choose an integer of the block; none where another word does.
    offset_bits: u32,
}

/// A choice of block and integer, and what the same word says of the uniform.
#[derive(Clone, Copy)]
struct Candidate {
    block: usize,
    /// Of the block, see [`Envelope::sure`].
    sure: u16,
    sample: i64,
    /// The first `32 - offset_bits` digits of the uniform; the low bits are not digits.
    digits: u32,
}

impl DiscreteGaussian {
    /// `sigma` is a number of integer steps from 0.5 to 2^40 and is taken at the exact value of the `f64`.
    ///
    /// It is the parameter of the law. The standard deviation is below it (Canonne, Kamath and Steinke show it):
    /// by 7.3 % at 0.5, 0.034 % at 0.75, a ten-millionth at 1, and less than an `f64` shows from 2 on.
    /// Errors if `sigma` is outside the range or not a number.
    pub fn new(sigma: f64) -> Result<Self, SigmaOutOfRange> {
        if !(0.5..=(1u64 << 40) as f64).contains(&sigma) {
            return Err(SigmaOutOfRange { got: sigma });
        }
        let sigma = Sigma::new(sigma);
        Ok(Self::under(Envelope::new(&sigma), sigma))
    }

    fn under(envelope: Envelope, sigma: Sigma) -> Self {
        let table = AliasTable::new(&envelope.block_weights(), &envelope.sure);
        let offset_bits = Some(envelope.width_bits).filter(|&bits| bits <= WIDEST_BITS_IN_A_WORD);
        Self { sigma, table, envelope, offset_bits: offset_bits.unwrap_or(0) }
    }

    /// The sigma that this was made for.
    pub fn sigma(&self) -> f64 {
        self.sigma.value()
    }

    /// One sample; `|sample| < 2^62`.
    #[inline]
    pub fn sample(&self, generator: &mut Generator) -> i64 {
        let candidate = self.candidate(generator);
        if self.surely_accepts(&candidate) {
            return candidate.sample;
        }
        self.settle_or_draw_again(candidate, generator)
    }

    /// Adds an independent sample to each of `values`.
    ///
    /// Values of magnitude up to 2^62 cannot overflow, since samples are below 2^62. Beyond, the sum stops at
    /// the ends of `i64` instead of wrapping: that is a function of the exact noisy sum alone, so the
    /// privacy of the sum is kept (post-processing).
    pub fn add_to(&self, values: &mut [i64], generator: &mut Generator) {
        Arch::new().dispatch(AddTo { noise: self, values, generator });
    }

    /// A word, and another in wide blocks.
    #[inline]
    fn candidate(&self, generator: &mut Generator) -> Candidate {
        let [word] = generator.next_words();
        let [offset] = self.offsets([word], generator);
        self.candidate_at(word, offset)
    }

    /// The words whose low bits choose an integer of the block that the high half of each of `words` chooses.
    #[inline(always)]
    fn offsets<const N: usize>(&self, words: [u64; N], generator: &mut Generator) -> [u64; N] {
        if self.offset_bits == self.envelope.width_bits { words } else { generator.next_words() }
    }

    /// The low bits of `offset` choose an integer of the block: `word` itself, or another word for wide blocks.
    #[inline(always)]
    fn candidate_at(&self, word: u64, offset: u64) -> Candidate {
        let Envelope { side, width_bits, .. } = self.envelope;
        let (block, sure) = self.table.choose((word >> 32) as u32);
        let offset = offset & ((1 << width_bits) - 1);
        let sample = ((block as i64 - side as i64) << width_bits) + offset as i64;
        Candidate { block, sure, sample, digits: word as u32 }
    }

    /// True only if the uniform, whatever digits follow those of the candidate, is below the block's sure share.
    ///
    /// Bits of the word that are no digits must not decide: they count as ones, digits to come as well.
    #[inline(always)]
    fn surely_accepts(&self, candidate: &Candidate) -> bool {
        (candidate.digits | ((1 << self.offset_bits) - 1)) >> 16 < u32::from(candidate.sure)
    }

    /// What becomes of a draw that is not surely kept.
    #[cold]
    #[inline(never)]
    fn settle_or_draw_again(&self, mut candidate: Candidate, generator: &mut Generator) -> i64 {
        loop {
            let uniform = self.first_digits(&candidate, generator.next_u64());
            let lead = self.lead(&candidate, uniform);
            if let Some(sample) = self.settle(&candidate, uniform, lead, generator) {
                return sample;
            }
            candidate = self.candidate(generator);
        }
    }

    /// The sample, or `None` if all starts again.
    #[inline]
    fn settle(
        &self,
        candidate: &Candidate,
        uniform: u64,
        lead: f64,
        generator: &mut Generator,
    ) -> Option<i64> {
        if candidate.block >= self.envelope.blocks() {
            return self.sample_tail(candidate.block, generator);
        }
        estimate_accepts(lead)
            .unwrap_or_else(|| self.exactly_accepts(candidate, uniform, generator))
            .then_some(candidate.sample)
    }

    /// The first 64 digits of the uniform: those of the candidate, the others from `word`.
    #[inline(always)]
    fn first_digits(&self, candidate: &Candidate, word: u64) -> u64 {
        let known = 32 - self.offset_bits;
        u64::from(candidate.digits >> self.offset_bits) << (64 - known) | word >> known
    }

    /// The `f64` estimate of the acceptance of a block's integer, less the first 53 digits of the uniform. Without a meaning
    /// for the tails and for whatever is no block.
    #[inline(always)]
    fn lead(&self, candidate: &Candidate, uniform: u64) -> f64 {
        const DIGITS: u32 = f64::MANTISSA_DIGITS;
        let height = self.envelope.heights[candidate.block % SLOTS];
        // Past the blocks there are magnitudes that no weight is proved for.
        let in_block = candidate.block < self.envelope.blocks();
        let weight = self.sigma.weight(if in_block { candidate.sample.unsigned_abs() } else { 0 });
        let ratio = weight * (f64::from(self.envelope.scale) / f64::from(height));
        ratio - (uniform >> (64 - DIGITS)) as f64 / (1u64 << DIGITS) as f64
    }

    #[cold]
    #[inline(never)]
    fn exactly_accepts(&self, candidate: &Candidate, uniform: u64, generator: &mut Generator) -> bool {
        let acceptance = Acceptance {
            sigma: &self.sigma,
            scale: self.envelope.scale,
            height: self.envelope.heights[candidate.block],
            halvings: 0,
            magnitude: candidate.sample.unsigned_abs(),
        };
        acceptance.decide(uniform, || generator.next_u64())
    }

    #[cold]
    #[inline(never)]
    fn sample_tail(&self, block: usize, generator: &mut Generator) -> Option<i64> {
        let Envelope { side, width_bits, tail_width_bits, tail_height, .. } = self.envelope;
        let below = match block as u64 - 2 * side {
            0 => false,
            1 => true,
            _ => return None, // the part of 2^32 that no block fills
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
        let uniform = generator.next_u64();
        let accepted = acceptance.decide(uniform, || generator.next_u64());
        let magnitude = magnitude as i64;
        accepted.then_some(if below { -magnitude } else { magnitude })
    }
}

/// Words on whole lines of the cache.
#[repr(align(64))]
struct Batch([u64; BATCH]);

/// The work of [`DiscreteGaussian::add_to`], compiled for each instruction set.
struct AddTo<'a> {
    noise: &'a DiscreteGaussian,
    values: &'a mut [i64],
    generator: &'a mut Generator,
}

impl WithSimd for AddTo<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { noise, values, generator } = self;
        let mut unsure = Unsure::default();
        let batches = values.len() / BATCH;
        for batch in 0..batches {
            let words = Batch(generator.next_words());
            let offsets = Batch(noise.offsets(words.0, generator));
            let (samples, mut not_sure) = noise.surely_kept(&words.0, &offsets.0);
            let start = batch * BATCH;
            add(&mut values[start..start + BATCH], &samples);
            while not_sure != 0 {
                let at = not_sure.trailing_zeros() as usize % BATCH;
                unsure.push(start + at, words.0[at], offsets.0[at]);
                if unsure.count == LANES {
                    unsure.settle(noise, values, generator);
                }
                not_sure &= not_sure - 1;
            }
        }
        unsure.settle(noise, values, generator);
        for value in &mut values[batches * BATCH..] {
            *value = value.saturating_add(noise.sample(generator));
        }
    }
}

impl DiscreteGaussian {
    /// The samples of many words that are surely kept, zeros for the others, and a mask of these; without a branch.
    #[inline(always)]
    fn surely_kept(&self, words: &[u64; BATCH], offsets: &[u64; BATCH]) -> ([i64; BATCH], u32) {
        let (mut samples, mut not_sure) = ([0; BATCH], 0u32);
        for (at, (&word, &offset)) in words.iter().zip(offsets).enumerate() {
            let candidate = self.candidate_at(word, offset);
            let sure = self.surely_accepts(&candidate);
            samples[at] = if sure { candidate.sample } else { 0 };
            not_sure |= u32::from(!sure) << at;
        }
        (samples, not_sure)
    }
}

#[inline(always)]
fn add(values: &mut [i64], samples: &[i64; BATCH]) {
    values.iter_mut().zip(samples).for_each(|(value, sample)| *value = value.saturating_add(*sample));
}

/// Draws of a vector that are not surely kept: places in it, and the words that they come from.
#[derive(Default)]
struct Unsure {
    count: usize,
    places: [usize; LANES],
    words: [u64; LANES],
    offsets: [u64; LANES],
}

impl Unsure {
    #[inline(always)]
    fn push(&mut self, place: usize, word: u64, offset: u64) {
        let at = self.count % LANES;
        (self.places[at], self.words[at], self.offsets[at]) = (place, word, offset);
        self.count += 1;
    }

    /// Adds a sample at each place and forgets the places. All lanes are estimated, those without a draw for nothing.
    #[inline(never)]
    fn settle(&mut self, noise: &DiscreteGaussian, values: &mut [i64], generator: &mut Generator) {
        if self.count == 0 {
            return;
        }
        let fresh: [u64; LANES] = generator.next_words();
        let (mut uniforms, mut leads) = ([0; LANES], [0.0; LANES]);
        vectorised(
            #[inline(always)]
            || {
                for at in 0..LANES {
                    let candidate = noise.candidate_at(self.words[at], self.offsets[at]);
                    uniforms[at] = noise.first_digits(&candidate, fresh[at]);
                    leads[at] = noise.lead(&candidate, uniforms[at]);
                }
            },
        );
        for at in 0..self.count.min(LANES) {
            let candidate = noise.candidate_at(self.words[at], self.offsets[at]);
            let settled = noise.settle(&candidate, uniforms[at], leads[at], generator);
            let sample = settled.unwrap_or_else(|| noise.sample(generator));
            let value = &mut values[self.places[at]];
            *value = value.saturating_add(sample);
        }
        self.count = 0;
    }
}

/// Whether an estimate of the acceptance that leads the uniform's digits by so much accepts; `None` if that is too little to
/// say.
#[inline(always)]
fn estimate_accepts(lead: f64) -> Option<bool> {
    if lead > ESTIMATE_MARGIN {
        Some(true)
    } else if lead < -ESTIMATE_MARGIN {
        Some(false)
    } else {
        None
    }
}

impl std::fmt::Debug for DiscreteGaussian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiscreteGaussian").field("sigma", &self.sigma()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
