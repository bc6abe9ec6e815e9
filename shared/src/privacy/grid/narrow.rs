//! Sums of integers in f32, as long as it has them exactly: half as much to read and write for each customer as in i64.

use std::ops::Range;

use crate::model::{Aligned, integer, vectorised};

/// Magnitude up to which f32 has every integer.
pub(super) const NARROW_LIMIT: f32 = (1 << 24) as f32;
/// Of larger ones too few have room to be worth it.
const LARGEST_ADDEND: f32 = NARROW_LIMIT / 8.0;

/// What is still to be added to some entries of a sum.
#[derive(Clone, Default)]
pub(super) struct NarrowSum {
    /// Which.
    place: Range<usize>,
    /// Integers. Before the first is added, anything.
    entries: Aligned<f32>,
    /// An integer up to [`NARROW_LIMIT`] that no entry is larger than.
    bound: f32,
}

impl NarrowSum {
    /// Adds `trunc(fl(scale * addends[i]))`, which is at most [`NARROW_LIMIT`], to entry `place.start + i` of `sum`, now or
    /// with [`flush`](Self::flush). No addend's magnitude is above `largest`.
    ///
    /// # Panics
    /// If they are fewer or more than the place has, or if it is not in the sum, or another one than since the last flush.
    pub fn add(&mut self, addends: &[f32], largest: f32, scale: f32, place: &Range<usize>, sum: &mut [i64]) {
        assert_eq!(addends.len(), place.len(), "addends of a place");
        // Products and their integers are in the order of their factors, so no addend's is larger.
        let largest = (largest * scale).trunc();
        if largest == 0.0 {
            return;
        }
        if largest > LARGEST_ADDEND {
            return add_truncated(addends, scale, &mut sum[place.clone()]);
        }
        // Not their sum, which f32 need not have.
        if largest > NARROW_LIMIT - self.bound {
            self.flush(sum);
        }
        let first = self.bound == 0.0;
        if first {
            self.place = place.clone();
            self.entries.resize(place.len());
        }
        assert_eq!(self.place, *place, "one place between flushes");
        self.bound += largest;
        let entries = &mut self.entries[..];
        vectorised(
            #[inline(always)]
            || {
                let pairs = entries.iter_mut().zip(addends);
                if first {
                    pairs.for_each(|(entry, addend)| *entry = (addend * scale).trunc());
                } else {
                    pairs.for_each(|(entry, addend)| *entry += (addend * scale).trunc());
                }
            },
        );
    }

    /// Forgets what is still to be added.
    pub fn forget(&mut self) {
        self.bound = 0.0;
    }

    /// Adds what is not yet in `sum` to it.
    pub fn flush(&mut self, sum: &mut [i64]) {
        if self.bound > 0.0 {
            add_truncated(&self.entries, 1.0, &mut sum[self.place.clone()]);
            self.bound = 0.0;
        }
    }
}

/// `sum[i] += trunc(fl(scale * addends[i]))`.
pub(super) fn add_truncated(addends: &[f32], scale: f32, sum: &mut [i64]) {
    vectorised(
        #[inline(always)]
        || {
            for (slot, &addend) in sum.iter_mut().zip(addends) {
                *slot += integer(f64::from((addend * scale).trunc()));
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_addends_are_rounded_towards_zero_and_added_exactly() {
        let addends: Vec<f32> = (0..77).map(|at| ((at * 37) % 101) as f32 * 0.37 - 18.0).collect();
        let mut sum: Vec<i64> = (0..77).map(|at| (at << 40) - 5).collect();
        let expected: Vec<i64> =
            sum.iter().zip(&addends).map(|(slot, addend)| slot + (addend * 9e5) as i64).collect();
        add_truncated(&addends, 9e5, &mut sum);
        assert_eq!(sum, expected);
    }

    #[test]
    fn nothing_is_lost_where_an_entry_comes_to_the_limit() {
        for (large, small) in [(2_097_152.0, 1.0), (262_144.0, 1.0), (2_097_152.0, 2.0), (2_097_151.0, 3.0)] {
            let (mut narrow, mut sum) = (NarrowSum::default(), vec![0i64]);
            let mut expected = 0;
            let fill = (NARROW_LIMIT / large) as usize;
            for addend in std::iter::repeat_n(large, fill).chain(std::iter::repeat_n(small, 20)) {
                narrow.add(&[addend], addend, 1.0, &(0..1), &mut sum);
                expected += addend as i64;
            }
            narrow.flush(&mut sum);
            assert_eq!(sum, [expected], "{fill} of {large}, then 20 of {small}");
        }
    }

    #[test]
    fn however_many_are_added_of_whatever_size_the_sum_is_exact() {
        let place = 3..36;
        // Largest addends, in turn: nothing, few, as many as have room, more than are worth it.
        for limits in [&[0.7][..], &[900.0], &[2_097_152.0], &[16_777_216.0], &[1.0, 3e6, 0.0, 2e6, 17.0]] {
            let (mut narrow, mut sum) = (NarrowSum::default(), vec![7i64; 40]);
            let mut expected = sum.clone();
            for round in 0..100 {
                let limit: f32 = limits[round % limits.len()];
                let draw = |at: usize| ((at * 2_654_435_761 + round * 977) % 1001) as f32 / 1000.0;
                // All of one sign, so that sums grow as far as they can; the first as large as it may be.
                let addends: Vec<f32> =
                    (0..33).map(|at| if at == 0 { limit } else { limit * draw(at) }).collect();
                for (slot, addend) in expected[place.clone()].iter_mut().zip(&addends) {
                    *slot += (addend * 0.75) as i64;
                }
                narrow.add(&addends, limit, 0.75, &place, &mut sum);
            }
            narrow.flush(&mut sum);
            assert_eq!(sum, expected, "{limits:?}");
            narrow.flush(&mut sum);
            assert_eq!(sum, expected, "a second flush");
        }
    }
}
