//! The exact L2 norm of integers.

use weighhouse_shared::model::vectorised;

/// A sum of squares of values of at most 2^30 in magnitude, exact for up to 2^32 of them: high and low half of each square
/// are summed apart, so that the loop is one of wide additions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SquaredNorm {
    high: u64,
    low: u64,
}

impl SquaredNorm {
    /// Adds the squares of `values`, 32-bit little-endian integers.
    pub fn add(&mut self, values: &[[u8; 4]]) {
        vectorised(
            #[inline(always)]
            || values.iter().for_each(|value| self.add_one(i32::from_le_bytes(*value).unsigned_abs())),
        );
    }

    /// Adds the squares of the differences of two rows.
    pub fn add_differences(&mut self, one: &[[u8; 4]], other: &[[u8; 4]]) {
        vectorised(
            #[inline(always)]
            || {
                for (one, other) in one.iter().zip(other) {
                    self.add_one(i32::from_le_bytes(*one).abs_diff(i32::from_le_bytes(*other)));
                }
            },
        );
    }

    #[inline(always)]
    fn add_one(&mut self, value: u32) {
        let square = u64::from(value) * u64::from(value);
        self.high += square >> 32;
        self.low += square & 0xffff_ffff;
    }

    /// The sum.
    pub fn value(self) -> u128 {
        (u128::from(self.high) << 32) + u128::from(self.low)
    }

    /// What to multiply the values by, for a norm of at most `bound`; None if it is not above that.
    pub fn factor_to(self, bound: f64) -> Option<f64> {
        let norm = (self.value() as f64).sqrt();
        (norm > bound).then(|| bound / norm)
    }
}
