//! Natural numbers of any size, as far as the exact decision needs them.
//!
//! In and out: [`Natural`]. Promised: every operation is exact, or rounds down where its name says `floor`.
//! Reached about once in a million samples (the tails), so it is written to be checked by eye rather than to
//! be fast.

use std::cmp::Ordering;

/// A natural number: 64-bit limbs, the least significant first, none of the highest being zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Natural(Vec<u64>);

impl Natural {
    /// `2^exponent`.
    pub(super) fn power_of_two(exponent: u64) -> Self {
        Self(vec![1]).shifted_left(exponent)
    }

    fn trimmed(mut limbs: Vec<u64>) -> Self {
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
        Self(limbs)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        let (long, short) = if self.0.len() < other.0.len() { (other, self) } else { (self, other) };
        let mut limbs = long.0.clone();
        let mut carry = false;
        for (place, limb) in limbs.iter_mut().enumerate() {
            let (sum, first) = limb.overflowing_add(short.0.get(place).copied().unwrap_or(0));
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, first | second);
        }
        if carry {
            limbs.push(1);
        }
        Self(limbs)
    }

    /// The difference, or zero if `other` is the larger.
    pub(super) fn minus(&self, other: &Self) -> Self {
        if *self <= *other {
            return Self(Vec::new());
        }
        let mut limbs = self.0.clone();
        let mut borrow = false;
        for (place, limb) in limbs.iter_mut().enumerate() {
            let (rest, first) = limb.overflowing_sub(other.0.get(place).copied().unwrap_or(0));
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (rest, first | second);
        }
        Self::trimmed(limbs)
    }

    pub(super) fn times(&self, other: &Self) -> Self {
        let mut limbs = vec![0; self.0.len() + other.0.len()];
        for (low, &a) in self.0.iter().enumerate() {
            let mut carry = 0;
            for (high, &b) in other.0.iter().enumerate() {
                let sum = u128::from(a) * u128::from(b) + u128::from(limbs[low + high]) + carry;
                limbs[low + high] = sum as u64;
                carry = sum >> 64;
            }
            limbs[low + other.0.len()] = carry as u64;
        }
        Self::trimmed(limbs)
    }

    /// The quotient by `divisor`, rounded down. `divisor` is not zero.
    pub(super) fn floor_divided_by(&self, divisor: u64) -> Self {
        let mut limbs = self.0.clone();
        let mut rest = 0;
        for limb in limbs.iter_mut().rev() {
            let part = rest << 64 | u128::from(*limb);
            *limb = (part / u128::from(divisor)) as u64;
            rest = part % u128::from(divisor);
        }
        Self::trimmed(limbs)
    }

    pub(super) fn shifted_left(&self, bits: u64) -> Self {
        let whole = usize::try_from(bits / 64).expect("a shift fits the memory");
        let part = bits % 64;
        let mut limbs = vec![0; whole];
        let mut carry = 0;
        for &limb in &self.0 {
            limbs.push(limb << part | carry);
            carry = if part == 0 { 0 } else { limb >> (64 - part) };
        }
        limbs.push(carry);
        Self::trimmed(limbs)
    }

    /// The quotient by `2^bits`, rounded down.
    pub(super) fn floor_shifted_right(&self, bits: u64) -> Self {
        let whole = usize::try_from(bits / 64).expect("a shift fits the memory");
        let part = bits % 64;
        let kept = self.0.get(whole..).unwrap_or_default();
        let mut limbs = Vec::with_capacity(kept.len());
        for (place, &limb) in kept.iter().enumerate() {
            let above = kept.get(place + 1).copied().unwrap_or(0);
            limbs.push(if part == 0 { limb } else { limb >> part | above << (64 - part) });
        }
        Self::trimmed(limbs)
    }
}

impl From<u64> for Natural {
    fn from(value: u64) -> Self {
        Self::trimmed(vec![value])
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        let length = self.0.len().cmp(&other.0.len());
        length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(value: u128) -> Natural {
        Natural::trimmed(vec![value as u64, (value >> 64) as u64])
    }

    proptest! {
        #[test]
        fn naturals_agree_with_machine_integers(a in any::<u128>(), b in any::<u128>(), d in 1u64.., s in 0u64..130) {
            let (half_a, half_b) = (a >> 64, b >> 64);
            prop_assert_eq!(of(half_a).times(&of(half_b)), of(half_a * half_b));
            prop_assert_eq!(of(a / 2).plus(&of(b / 2)), of(a / 2 + b / 2));
            prop_assert_eq!(of(a).minus(&of(b)), of(a.saturating_sub(b)));
            prop_assert_eq!(of(a).floor_divided_by(d), of(a / u128::from(d)));
            prop_assert_eq!(of(a).floor_shifted_right(s), of(a.checked_shr(s as u32).unwrap_or(0)));
            prop_assert_eq!(of(half_a).shifted_left(s % 65), of(half_a << (s % 65)));
            prop_assert_eq!(of(a).cmp(&of(b)), a.cmp(&b));
        }

        #[test]
        fn long_naturals_obey_the_laws_of_arithmetic(
            a in prop::collection::vec(any::<u64>(), 0..6),
            b in prop::collection::vec(any::<u64>(), 0..6),
            c in prop::collection::vec(any::<u64>(), 0..6),
            s in 0u64..300,
        ) {
            let (a, b, c) = (Natural::trimmed(a), Natural::trimmed(b), Natural::trimmed(c));
            prop_assert_eq!(a.plus(&b).times(&c), a.times(&c).plus(&b.times(&c)));
            prop_assert_eq!(a.plus(&b).minus(&b), a.clone());
            prop_assert_eq!(a.shifted_left(s), a.times(&Natural::power_of_two(s)));
            prop_assert_eq!(a.shifted_left(s).floor_shifted_right(s), a.clone());
            prop_assert!(a.minus(&b).is_zero() == (a <= b));
        }
    }
}
