//! The noise of a sum that nobody holds alone: each site adds a share of it to integers of 32 bits, and what the sum of
//! all of them promises.
//!
//! In: constants of a job contract ([`SumTerms`]). Out: the grid and the range of its integers ([`SumEncoding`]), the
//! mechanism of one share, and what the claim pays for errors.
//!
//! # How a site's integers are made
//!
//! The clipped sum of a batch has integers of `C 2^-24` ([`Grid`](super::grid::Grid)) that one customer changes by at most
//! `2^24` in L2 norm. Each is divided by `2^shift` and rounded, then held between minus and plus [`SumEncoding::limit`],
//! then gets its share of the noise, and then is taken modulo `2^32`.
//!
//! - **Rounding** moves the difference of two neighbouring sums, entry by entry, by less than one unit: `round(a) -
//!   round(b)` is within `ceil(|a - b|)`. By the triangle inequality one customer changes the rounded sum by at most
//!   `2^(24 - shift) + sqrt(d)` in L2 norm, with `d` entries. That, its root rounded up, is the
//!   [`sensitivity`](SumEncoding::sensitivity) that the noise is made for.
//! - **The range** is a projection of each entry to an interval, which brings no two values further apart: the sensitivity
//!   stays.
//! - **The wrap** to 32 bits is a function of the noised integer. It commutes with adding, so the opened sum is the noised
//!   sum of the survivors modulo `2^32`, which costs no privacy even if it wraps (post-processing).
//!
//! # What the noise promises
//!
//! A share is a discrete Gaussian of `sigma_share = z S / sqrt(h)`: `z` the contract's noise multiplier, `S` the
//! sensitivity, `h` the honest shares that are in every sum that is opened. Of `h` independent shares the sum has nearly
//! the law of one discrete Gaussian of `sigma = z S`: by Kairouz, Liu and Steinke 2021 ("The distributed discrete Gaussian
//! mechanism for federated learning with secure aggregation", proposition 14, `sigma_share >= 1/2`) the logarithm of
//! the ratio of their probabilities is, at every integer, at most
//!
//! `tau = 10 sum over k from 1 to h - 1 of exp(-2 pi^2 sigma_share^2 k / (k + 1))`
//!
//! in magnitude. With `d` entries the densities of a round are within `exp(d tau)` of those that are accounted for, sampled
//! or not, so a claim (epsilon, delta) over `R` rounds becomes (epsilon + 2 d R tau, exp(d R tau) delta): [`SumEncoding::error_epsilon`]
//! is added to the claim, and is far below the accountant's own rounding for any `sigma_share` above 3. Shares beyond
//! those `h` are independent noise on top, which takes nothing away.
//!
//! # Why nothing wraps
//!
//! A discrete Gaussian is sub-Gaussian with its sigma (Canonne, Kamath and Steinke 2020, lemma 24), so of `n` shares an
//! entry is beyond `T = sigma_share sqrt(2 n ln(2 d R / beta))` with a probability below `beta / (d R)`. The grid is chosen
//! so that `n limit + T < 2^31`: over the whole job an entry wraps with a probability below `beta`, a millionth of the
//! claim's delta, and the claim is charged for it though it need not be.

use super::grid::{Grid, SENSITIVITY};
use super::{ClipNorm, Delta, Epsilon, Mechanism, NoiseMultiplier};

/// The claim's delta over the probability that anything wraps.
const WRAP_PART: f64 = 1e6;

/// Batches of the expected size, all pulling one parameter one way, whose sum is not held back, to begin with.
const WIDEST_RANGE: f64 = 8.0;
/// The same, where a finer grid is worth more.
const NARROWEST_RANGE: f64 = 0.5;
/// Customers more, so that small batches may vary.
const SPARE_CUSTOMERS: f64 = 64.0;
/// The range is narrowed before rounding adds more than one part of so many to the noise.
const FINE: u64 = 64;
/// No grid is coarser: rounding adds at most one part of so many.
const COARSEST: u64 = 4;
/// Errors of the law of the sum that the claim bears.
const MAX_ERROR_EPSILON: f64 = 1e-12;

/// What the integers of a secure sum follow from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SumTerms {
    /// Sites whose shares may be in one sum.
    pub members: u32,
    /// Shares that are in every opened sum and known to nobody who colludes; at least 1.
    pub honest_shares: u32,
    /// Customers in a site's batch on average.
    pub batch: f64,
    /// Entries of the sum.
    pub parameters: u64,
    /// Sums that are opened.
    pub rounds: u32,
    /// Noise of the sum of the honest shares, over the sensitivity.
    pub noise_multiplier: NoiseMultiplier,
    /// The claim's.
    pub delta: Delta,
    /// Norm to which a customer's gradient is clipped.
    pub clip_norm: ClipNorm,
}

/// Why there are no such integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SumEncodingError {
    /// What fits into 32 bits would be too coarse.
    #[error(
        "a secure sum of so many customers, parameters and so much noise does not fit into 32 bits; lower expected_customers, \
         sampling_rate or the model's size, or ask for less noise"
    )]
    TooCoarse,
    /// The shares are too small for their sum to have the law of one.
    #[error("the noise is too little to be made of shares; ask for a smaller epsilon")]
    TooLittleNoise,
}

/// The grid and the range of a secure sum's integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SumEncoding {
    terms: SumTerms,
    shift: u32,
    limit: i64,
}

impl SumEncoding {
    /// The finest grid whose range is wide enough, or the widest range whose grid is fine enough: see the module's head.
    pub fn new(terms: SumTerms) -> Result<Self, SumEncodingError> {
        let mut range = WIDEST_RANGE;
        let found = loop {
            let narrow = range <= NARROWEST_RANGE;
            let fineness = if narrow { COARSEST } else { FINE };
            let found = (0..=24).map(|shift| Self::of(terms, shift, range)).find(Self::fits);
            match found.filter(|found| found.is_finer_than(fineness)) {
                Some(found) => break found,
                None if narrow => return Err(SumEncodingError::TooCoarse),
                None => range /= 2.0,
            }
        };
        if found.error_epsilon() > MAX_ERROR_EPSILON {
            return Err(SumEncodingError::TooLittleNoise);
        }
        Ok(found)
    }

    fn of(terms: SumTerms, shift: u32, range: f64) -> Self {
        let customers = range * terms.batch + SPARE_CUSTOMERS;
        // At most 2^24 times 8e9 customers.
        let limit = (customers * (SENSITIVITY >> shift) as f64).ceil() as i64;
        Self { terms, shift, limit }
    }

    /// Whether the sum of all members stays within 32 bits but for the probability that is charged.
    fn fits(&self) -> bool {
        f64::from(self.terms.members) * self.limit as f64 + self.noise_tail() < f64::from(1u32 << 31)
    }

    fn is_finer_than(&self, parts: u64) -> bool {
        let root = self.sensitivity() - (SENSITIVITY >> self.shift);
        (SENSITIVITY >> self.shift) >= parts * root
    }

    /// Magnitude that no entry of the noise of all members has in any round, but for [`wrap_delta`](Self::wrap_delta).
    fn noise_tail(&self) -> f64 {
        let SumTerms { members, parameters, rounds, .. } = self.terms;
        let entries = parameters as f64 * f64::from(rounds.max(1));
        let nats = (2.0 * entries / self.wrap_delta()).ln();
        self.share_sigma() * (2.0 * f64::from(members) * nats).sqrt()
    }

    /// Units of the loss gradient in one integer: `C 2^(shift - 24)`.
    pub fn unit(&self) -> f64 {
        self.terms.clip_norm.value() / (SENSITIVITY >> self.shift) as f64
    }

    /// Largest magnitude of an integer of a site before noise.
    pub fn limit(&self) -> i64 {
        self.limit
    }

    /// Digits that the clipped sum's integers lose.
    pub fn shift(&self) -> u32 {
        self.shift
    }

    /// L2 sensitivity of a site's integers to one customer.
    pub fn sensitivity(&self) -> u64 {
        sensitivity(self.shift, self.terms.parameters)
    }

    /// Standard deviation of a site's share of the noise, in integers.
    pub fn share_sigma(&self) -> f64 {
        share_sigma(self.terms.noise_multiplier, self.sensitivity(), self.terms.honest_shares)
    }

    /// What a debit records and a site draws.
    pub fn mechanism(&self) -> Mechanism {
        let SumTerms { honest_shares, parameters, noise_multiplier, clip_norm, .. } = self.terms;
        Mechanism::noise_share(clip_norm, self.shift, parameters, honest_shares, noise_multiplier)
    }

    /// What the claim's epsilon bears over all rounds for the sum of shares being no discrete Gaussian itself.
    pub fn error_epsilon(&self) -> f64 {
        let SumTerms { honest_shares, parameters, rounds, .. } = self.terms;
        2.0 * parameters as f64 * f64::from(rounds) * convolution_error(self.share_sigma(), honest_shares)
    }

    /// What the claim's delta bears over all rounds for entries that wrap.
    pub fn wrap_delta(&self) -> f64 {
        self.terms.delta.value() / WRAP_PART
    }

    /// Noise of a share alone over the sensitivity: what is left if masks protect nothing.
    pub fn local_multiplier(&self) -> f64 {
        self.share_sigma() / self.sensitivity() as f64
    }

    /// Whether it is for sums of `entries` integers on `grid`.
    pub fn is_on(&self, grid: &Grid, entries: usize) -> bool {
        grid.clip() == self.terms.clip_norm && self.terms.parameters == entries as u64
    }

    /// Rounds a clipped sum to this grid and holds it in its range; in place.
    pub fn round_and_clamp(&self, sum: &mut [i64]) {
        let half = (1i64 << self.shift) >> 1;
        for value in sum {
            // The shift rounds towards minus infinity: to the nearest, with the half added.
            *value = (value.saturating_add(half) >> self.shift).clamp(-self.limit, self.limit);
        }
    }
}

/// What is left of a claim for the noise once errors of the law and wrapped entries are set aside.
pub fn left_for_noise(epsilon: Epsilon, delta: Delta) -> (Epsilon, Delta) {
    // At epsilon 1e-3 and more as much as errors may be; below, noise is so much that there are none.
    let left = Epsilon::new(epsilon.value() * (1.0 - 1e3 * MAX_ERROR_EPSILON)).unwrap_or(epsilon);
    (left, Delta::new(delta.value() * (1.0 - 2.0 / WRAP_PART)).unwrap_or(delta))
}

/// See [`SumEncoding::sensitivity`].
pub(super) fn sensitivity(shift: u32, parameters: u64) -> u64 {
    let root = parameters.isqrt() + u64::from(!parameters.isqrt().pow(2).eq(&parameters));
    (SENSITIVITY >> shift) + if shift == 0 { 0 } else { root }
}

/// `z S / sqrt(h)`, and a little more than the rounding of these floats.
pub(super) fn share_sigma(noise: NoiseMultiplier, sensitivity: u64, shares: u32) -> f64 {
    noise.value() * sensitivity as f64 / f64::from(shares.max(1)).sqrt() * (1.0 + 4.0 * f64::EPSILON)
}

/// `tau` of the module's head: how far the logarithms of the probabilities of a sum of `shares` discrete Gaussians of
/// `sigma` are from those of one, at most.
pub fn convolution_error(sigma: f64, shares: u32) -> f64 {
    let term = |k: u32| {
        let k = f64::from(k);
        (-2.0 * std::f64::consts::PI.powi(2) * sigma * sigma * k / (k + 1.0)).exp()
    };
    10.0 * (1..shares).map(term).sum::<f64>()
}

#[cfg(test)]
mod tests;
