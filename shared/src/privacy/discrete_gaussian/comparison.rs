//! The comparison on which every draw ends: is a uniform real below a ratio of Gaussian weights?
//!
//! In: the first 64 binary digits of the uniform, a magnitude, the integer height of its block. Out: yes or no.
//! Promised: the answer is that of the exact real numbers, whatever rounding happened on the way, and it is
//! reached with probability one.

use super::exponential::Sigma;
use super::natural::Natural;

const FIRST_PRECISION_BITS: u64 = 128;

/// Acceptance at `magnitude` under an envelope of `height / 2^halvings` where weights are scaled by `scale`.
pub(super) struct Acceptance<'a> {
    pub(super) sigma: &'a Sigma,
    pub(super) scale: u32,
    pub(super) height: u32,
    pub(super) halvings: u64,
    pub(super) magnitude: u64,
}

impl Acceptance<'_> {
    /// Whether `uniform * height / 2^halvings < scale * exp(-magnitude^2 / (2 sigma^2))`, exactly.
    ///
    /// `first_digits` are the first 64 binary digits of the uniform; `draw_word` gives the next 64, and so on.
    /// The uniform lies between two neighbours of its drawn digits, the exponential between two integers:
    /// when those intervals (multiplied out, all in integers) do not overlap, the order of the real numbers
    /// is known. Otherwise more digits are drawn and the precision doubles. Both
    /// intervals shrink to a point, and the two points are equal with probability zero, so this ends with
    /// probability one; in a block a second round is reached with probability below 2^-90.
    pub(super) fn decide(&self, first_digits: u64, mut draw_word: impl FnMut() -> u64) -> bool {
        let mut digits = 64;
        let mut drawn = Natural::from(first_digits);
        let mut precision = FIRST_PRECISION_BITS;
        loop {
            while digits < precision {
                drawn = drawn.shifted_left(64).plus(&Natural::from(draw_word()));
                digits += 64;
            }
            let (weight_low, weight_high) = self.sigma.weight_between(self.magnitude, precision);
            let height = Natural::from(u64::from(self.height)).shifted_left(precision);
            let scale = Natural::from(u64::from(self.scale)).shifted_left(self.halvings + digits);
            if drawn.plus(&Natural::from(1)).times(&height) <= weight_low.times(&scale) {
                return true;
            }
            if drawn.times(&height) >= weight_high.times(&scale) {
                return false;
            }
            precision *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// floor(2^256 exp(-1/2)), a word at a time from the highest, from the interval of 512 bits.
    fn digits_of_the_weight_at_sigma() -> [u64; 4] {
        let (low, high) = Sigma::new(8.0).weight_between(8, 512);
        let (low, high) = (low.floor_shifted_right(256), high.floor_shifted_right(256));
        assert_eq!(low, high);
        let mut rest = low;
        let mut words = [0; 4];
        for (place, word) in words.iter_mut().enumerate() {
            let shift = 64 * (3 - place as u64);
            for bit in (0..64).rev() {
                let part = Natural::from(1u64 << bit).shifted_left(shift);
                if part <= rest {
                    rest = rest.minus(&part);
                    *word |= 1 << bit;
                }
            }
        }
        words
    }

    #[test]
    fn a_uniform_within_2_to_the_minus_200_of_the_weight_is_decided_rightly() {
        let sigma = Sigma::new(8.0);
        let acceptance =
            Acceptance { sigma: &sigma, scale: 1 << 30, height: 1 << 30, halvings: 0, magnitude: 8 };
        let [first, second, third, fourth] = digits_of_the_weight_at_sigma();
        assert_eq!(first, 0x9b45_97e3_7cb0_4ff3, "the first digits of exp(-1/2)");
        for (change, expected) in [(-1, true), (1, false)] {
            let last = fourth.wrapping_add_signed(change << 8);
            let mut later = [second, third, last].into_iter();
            let decided = acceptance.decide(first, || later.next().unwrap_or(u64::MAX / 3));
            assert_eq!(decided, expected, "{change}");
            assert_eq!(later.len(), 0, "all prepared digits were needed");
        }
    }

    #[test]
    fn halvings_scale_the_envelope_of_a_tail_block() {
        let sigma = Sigma::new(8.0);
        // exp(-1/2) against uniform / 2^halvings: with one halving every uniform is below.
        for (halvings, drawn, expected) in
            [(0, 0.60, true), (0, 0.61, false), (1, 0.999, true), (64, 0.999, true)]
        {
            let acceptance = Acceptance { sigma: &sigma, scale: 9, height: 9, halvings, magnitude: 8 };
            let first_digits = (drawn * 2f64.powi(64)) as u64;
            assert_eq!(acceptance.decide(first_digits, || 1 << 63), expected, "{halvings} {drawn}");
        }
    }

    #[test]
    fn weight_zero_sigmas_away_is_one_and_far_away_is_nothing() {
        let sigma = Sigma::new(0.5);
        let at = |magnitude, height, drawn| {
            Acceptance { sigma: &sigma, scale: 1000, height, halvings: 0, magnitude }.decide(drawn, || 0)
        };
        assert!(at(0, 1000, u64::MAX));
        assert!(!at(0, 2000, 1 << 63));
        assert!(at(0, 2000, (1 << 63) - 1));
        assert!(!at((1 << 62) - 1, 1000, 1));
    }
}
