//! `exp(-m^2 / (2 sigma^2))` twice over: in `f64` with a proved error, and between two integers as close as asked.
//!
//! In: a magnitude, sigma. Out: the Gaussian weight of that magnitude, 1 at zero. Promised: the bounds proved
//! beside [`exp_minus`], [`Sigma::weight`] and [`Sigma::weight_between`]; no function of the platform's
//! mathematics library is used, so the proofs need only IEEE 754's four operations and hold on every platform.

use super::natural::Natural;

/// The largest exponent that [`exp_minus`] is proved for.
const LARGEST_EXPONENT: f64 = 32.0;

/// `exp(-y)` for `y` from 0 to 32, with a relative error below 2^-46.
///
/// Write `u = 2^-53`, and `y = k ln 2 + r` with `k` the integer nearest to `y / ln 2` as it is computed, so `k <= 47` and
/// `|r| < 0.35`. `LN_2_HIGH` has 32 significant bits, so `k LN_2_HIGH` is exact; the two subtractions round by
/// less than `0.36 u` each and `k LN_2_LOW < 1e-8` adds less than `1e-7 u`: the computed `r` is off by less
/// than `u`. The polynomial leaves out less than `0.35^14 / 14! exp(0.35) < 2^-57`. Horner's rule of degree
/// 13 with coefficients rounded by `u` errs by at most `(28 + 1) u exp(0.35)`, which is less than
/// `59 u exp(-0.35)`. Together: relative error below `(59 + 1 + 1) 1.01 u < 2^-47`. The last product is
/// exact, its factor being a power of two and the result far from the subnormals.
#[inline(always)]
pub(super) fn exp_minus(y: f64) -> f64 {
    // With 1.5 * 2^52 added, the last bits of the f64 are the nearest integer: vectorises where a cast does not.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN_2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    debug_assert!((0.0..=LARGEST_EXPONENT).contains(&y), "exp_minus is proved from 0 to 32, got {y}");
    let shifted = y * std::f64::consts::LOG2_E + SHIFT;
    let k = shifted - SHIFT;
    let rest = -(y - k * LN_2_HIGH - k * LN_2_LOW);
    let sum = INVERSE_FACTORIALS.iter().rev().fold(0.0, |sum, coefficient| sum * rest + coefficient);
    // 2^-k: of the shifted number's bits, all but those of k leave at the top.
    sum * f64::from_bits((1023 << 52) - (shifted.to_bits() << 52))
}

/// `1 / i!` for `i` from 0 to 13, correctly rounded: each factorial and each quotient is one rounding.
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut inverses = [1.0; 14];
    let (mut i, mut factorial) = (1, 1u64);
    while i < 14 {
        factorial *= i as u64;
        inverses[i] = 1.0 / factorial as f64;
        i += 1;
    }
    inverses
};

/// A standard deviation, at the exact value `significand * 2^exponent` of its `f64`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sigma {
    value: f64,
    inverse: f64,
    significand: u64,
    exponent: i32,
}

impl Sigma {
    /// `value` is from 0.5 to 2^40.
    pub(super) fn new(value: f64) -> Self {
        let bits = value.to_bits();
        Self {
            value,
            inverse: 1.0 / value,
            significand: bits & ((1 << 52) - 1) | 1 << 52,
            exponent: (bits >> 52) as i32 - 1075,
        }
    }

    pub(super) fn value(&self) -> f64 {
        self.value
    }

    /// `exp(-magnitude^2 / (2 sigma^2))` with a relative error below 2^-44.
    ///
    /// `magnitude` is below 2^53 and at most `6.7 sigma`, so that the exponent is at most 22.5. Its square root
    /// is rounded twice (inverse, product), the square and the half once more: a relative error of the
    /// exponent below `5.01 * 2^-53`, an absolute one below `113 * 2^-53 < 2^-46`. With that of [`exp_minus`]:
    /// below 2^-45.
    #[inline(always)]
    pub(super) fn weight(&self, magnitude: u64) -> f64 {
        let ratio = magnitude as f64 * self.inverse;
        exp_minus(0.5 * ratio * ratio)
    }

    /// Integers `low <= 2^bits exp(-magnitude^2 / (2 sigma^2)) <= high`, closer together (beside `2^bits`)
    /// without limit as `bits` grows. `bits` is at least 128, `magnitude` at most 2^62.
    ///
    /// Let `z` be the exponent halved until it is at most 1/16. One unit below is `2^-bits`.
    /// `z` is rounded down to `z'` by less than a unit (two floors by `significand` are one floor by its
    /// square), which raises `exp(-z)` by less than a unit. The terms `t_k = t_(k-1) z' / k` of
    /// `exp(-z')` are rounded down twice; if `t_(k-1)` lacks less than 2 units then `t_k` lacks less than
    /// `(2/16 + 1)/k + 1`, which is below 2 for `k >= 2`, and `t_1 = z'` lacks none. The sum stops before the
    /// first term that rounds to zero; alternating and decreasing, the true series differs from its sum up to
    /// there by at most that term, below 2 units. So with `count` terms the sum is within `2 count + 3` units
    /// of `exp(-z)`. Squaring undoes the halving, each bound rounded outwards; the weight is at most 1.
    pub(super) fn weight_between(&self, magnitude: u64, bits: u64) -> (Natural, Natural) {
        let one = Natural::power_of_two(bits);
        if magnitude == 0 {
            return (one.clone(), one);
        }
        // The exponent is magnitude^2 2^binary / significand^2 with significand at least 2^52.
        let binary = -2 * i64::from(self.exponent) - 1;
        let below_two_to = 2 * i64::from(64 - magnitude.leading_zeros()) + binary - 104;
        let halvings = (below_two_to + 4).max(0);
        let shift = bits as i64 + binary - halvings;
        let magnitude = Natural::from(magnitude);
        let z = magnitude
            .times(&magnitude)
            .shifted_left(u64::try_from(shift).expect("128 bits leave room for any magnitude"))
            .floor_divided_by(self.significand)
            .floor_divided_by(self.significand);

        let (mut even, mut odd) = (one.clone(), Natural::from(0));
        let mut term = one.clone();
        let mut count = 0;
        loop {
            count += 1;
            term = term.times(&z).floor_shifted_right(bits).floor_divided_by(count);
            if term.is_zero() {
                break;
            }
            let sum = if count % 2 == 0 { &mut even } else { &mut odd };
            *sum = sum.plus(&term);
        }
        let slack = Natural::from(2 * count + 3);
        let mut low = even.minus(&odd).minus(&slack);
        let mut high = even.minus(&odd).plus(&slack).min(one.clone());
        for _ in 0..halvings {
            low = low.times(&low).floor_shifted_right(bits);
            high = high.times(&high).floor_shifted_right(bits).plus(&Natural::from(1)).min(one.clone());
        }
        (low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest f64 to `value / 2^bits`, good to 2^-52: the highest 64 bits, scaled.
    fn fraction(value: &Natural, bits: u64) -> f64 {
        let mut dropped = 0;
        let mut head = value.clone();
        while head >= Natural::power_of_two(63) {
            head = head.floor_shifted_right(1);
            dropped += 1;
        }
        let mut number = 0u64;
        for bit in (0..63).rev() {
            let candidate = number | 1 << bit;
            if Natural::from(candidate) <= head {
                number = candidate;
            }
        }
        number as f64 * 2f64.powi(dropped - bits as i32)
    }

    #[test]
    fn the_interval_closes_around_the_known_exponential() {
        // exp(-1/2), the magnitude being equal to sigma.
        for sigma in [1.0, 1024.0, 3.0, 1e12] {
            let (low, high) = Sigma::new(sigma).weight_between(sigma as u64, 256);
            assert!((fraction(&low, 256) - 0.606_530_659_712_633_4).abs() < 1e-15);
            assert!(low < high);
            assert!(high.minus(&low) < Natural::power_of_two(32), "sigma {sigma}");
        }
    }

    #[test]
    fn finer_intervals_lie_within_coarser_ones() {
        for (sigma, magnitude) in
            [(0.5, 3), (2.7, 11), (1000.1, 1), (1e6, 6_300_000), (1.0995e12, 1 << 42), (0.7, 1 << 40)]
        {
            let sigma = Sigma::new(sigma);
            let (low, high) = sigma.weight_between(magnitude, 192);
            let (finer_low, finer_high) = sigma.weight_between(magnitude, 512);
            assert!(low.shifted_left(320) <= finer_low && finer_high <= high.shifted_left(320));
            assert!(finer_low <= finer_high);
        }
    }

    #[test]
    fn weights_multiply_as_exponentials_do() {
        // w(5) = w(3) w(4) since 25 = 9 + 16: an identity that a wrong series or a lost halving breaks.
        let sigma = Sigma::new(1.3);
        let [(low3, high3), (low4, high4), (low5, high5)] = [3, 4, 5].map(|m| sigma.weight_between(m, 320));
        assert!(low3.times(&low4).floor_shifted_right(320) <= high5);
        assert!(low5 <= high3.times(&high4).floor_shifted_right(320).plus(&Natural::from(1)));
        assert!(high5.minus(&low5) < Natural::power_of_two(20));
    }

    #[test]
    fn the_float_weight_keeps_its_proved_error() {
        for sigma in [0.5, 0.77, 1.0, 3.0, 64.0, 1000.0, 65536.0, 123_456_789.0, 2f64.powi(40)] {
            let exact = Sigma::new(sigma);
            for step in 0..40 {
                let magnitude = (6.3 * sigma * f64::from(step) / 40.0) as u64;
                let (low, high) = exact.weight_between(magnitude, 192);
                let weight = exact.weight(magnitude);
                let (low, high) = (fraction(&low, 192), fraction(&high, 192));
                let error = ((weight - low) / low).abs().max(((weight - high) / high).abs());
                assert!(error < 2f64.powi(-44), "sigma {sigma}, magnitude {magnitude}: error {error:e}");
            }
        }
    }

    #[test]
    fn the_float_exponential_agrees_with_the_platform() {
        for step in 0..=3200 {
            let y = f64::from(step) / 100.0;
            assert!((exp_minus(y) / (-y).exp() - 1.0).abs() < 2f64.powi(-46), "{y}");
        }
    }
}
