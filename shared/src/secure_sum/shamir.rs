//! A secret in shares (Shamir 1979, "How to Share a Secret"): each of 32 bytes is the value at 0 of a polynomial over
//! GF(2^8) of degree `threshold - 1`, and a share is its values at another public point. Any `threshold` shares give the
//! secret back; fewer say nothing of it.
//!
//! Secrets are never an index or a branch: they are multiplied by public points, as 32 bytes at a time in four words.

use super::keys::Secret;
use super::masks::keystream;

/// The most shares of one secret: points are the field's elements but 0.
pub const MAX_SHARES: usize = 255;

/// 32 elements of GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1.
#[derive(Clone, Copy)]
struct Lanes([u64; 4]);

impl Lanes {
    const ZERO: Self = Self([0; 4]);

    fn of(bytes: &[u8; 32]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Self(std::array::from_fn(|at| u64::from_le_bytes(words[at])))
    }

    fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0).for_each(|(to, word)| *to = word.to_le_bytes());
        bytes
    }

    fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] ^ other.0[at]))
    }

    /// Times the element x.
    fn doubled(self) -> Self {
        Self(self.0.map(|word| {
            let carries = (word >> 7) & 0x0101_0101_0101_0101;
            ((word & 0x7f7f_7f7f_7f7f_7f7f) << 1) ^ (carries * 0x1b)
        }))
    }

    /// Times `factor`, which is public.
    fn times(self, factor: u8) -> Self {
        let (mut power, mut product) = (self, Self::ZERO);
        for bit in 0..8 {
            if factor >> bit & 1 == 1 {
                product = product.plus(power);
            }
            power = power.doubled();
        }
        product
    }
}

/// The product of two public elements.
fn product(a: u8, b: u8) -> u8 {
    let (mut power, mut product) = (a, 0);
    for bit in 0..8 {
        if b >> bit & 1 == 1 {
            product ^= power;
        }
        power = (power << 1) ^ if power & 0x80 == 0 { 0 } else { 0x1b };
    }
    product
}

/// The inverse of a public element but 0: its 254th power.
fn inverse(a: u8) -> u8 {
    let (mut power, mut inverse) = (a, 1);
    for _ in 0..7 {
        power = product(power, power);
        inverse = product(inverse, power);
    }
    inverse
}

/// The shares of `secret` at the points 1 to `count`, any `threshold` of which give it back. Its polynomials' other
/// coefficients are the keystream of `coefficients`, which is for this secret alone.
///
/// # Panics
/// If `threshold` is 0 or above `count`, or `count` above [`MAX_SHARES`]: a graph has neither.
pub fn shares(secret: &Secret, coefficients: &Secret, threshold: usize, count: usize) -> Vec<[u8; 32]> {
    assert!((1..=count).contains(&threshold) && count <= MAX_SHARES, "the graph fixes the threshold");
    let mut drawn = vec![0; 32 * (threshold - 1)];
    keystream(coefficients, &mut drawn);
    let higher: Vec<Lanes> = drawn.as_chunks::<32>().0.iter().map(Lanes::of).collect();
    let at = |point: usize| {
        let point = point as u8;
        let value = higher.iter().rev().fold(Lanes::ZERO, |value, next| value.plus(*next).times(point));
        value.plus(Lanes::of(secret.as_bytes())).bytes()
    };
    (1..=count).map(at).collect()
}

/// How to put together secrets shared at these points: one factor a point.
#[derive(Debug, Clone)]
pub struct Recipe(Vec<u8>);

impl Recipe {
    /// For shares at `points`: each from 1 to 255, none twice; else None.
    pub fn of(points: &[u8]) -> Option<Self> {
        let mut seen = [false; 256];
        let twice = |point: &u8| *point == 0 || std::mem::replace(&mut seen[usize::from(*point)], true);
        if points.iter().any(twice) {
            return None;
        }
        // Lagrange at 0; minus is plus.
        let factor = |own: &u8| {
            let others = points.iter().filter(|point| *point != own);
            let (above, below) = others
                .fold((1, 1), |(above, below), other| (product(above, *other), product(below, own ^ other)));
            product(above, inverse(below))
        };
        Some(Self(points.iter().map(factor).collect()))
    }

    /// The secret of these shares, in the order of the points.
    pub fn secret<'a>(&self, shares: impl IntoIterator<Item = &'a [u8; 32]>) -> Secret {
        let terms = self.0.iter().zip(shares).map(|(factor, share)| Lanes::of(share).times(*factor));
        Secret::from_bytes(terms.fold(Lanes::ZERO, Lanes::plus).bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, section 4.2.
        assert_eq!(product(0x57, 0x83), 0xc1);
        for a in 1..=255 {
            assert_eq!(product(a, inverse(a)), 1);
            for b in 0..=255 {
                assert_eq!(Lanes::of(&[a; 32]).times(b).bytes(), [product(a, b); 32]);
            }
        }
    }

    proptest! {
        #[test]
        fn any_threshold_of_the_shares_give_the_secret_back(
            secret: [u8; 32], coefficients: [u8; 32], threshold in 1usize..40, more in 0usize..20, skip in 0usize..20,
        ) {
            let (secret, coefficients) = (Secret::from_bytes(secret), Secret::from_bytes(coefficients));
            let count = threshold + more;
            let shares = shares(&secret, &coefficients, threshold, count);
            let chosen: Vec<usize> = (0..count).map(|at| (at + skip) % count).take(threshold).collect();
            let points: Vec<u8> = chosen.iter().map(|at| *at as u8 + 1).collect();
            let recipe = Recipe::of(&points).unwrap();
            prop_assert_eq!(recipe.secret(chosen.iter().map(|at| &shares[*at])), secret);
        }
    }

    /// With one share fewer every secret is as likely: for each there is exactly one polynomial through the others.
    #[test]
    fn one_share_fewer_fits_every_secret() {
        let dealt = shares(&Secret::from_bytes([42; 32]), &Secret::from_bytes([1; 32]), 3, 3);
        let mut seen = [false; 256];
        for guess in 0..=255 {
            let with = Recipe::of(&[1, 2, 3]).unwrap().secret([&dealt[0], &dealt[1], &[guess; 32]]);
            seen[usize::from(with.as_bytes()[0])] = true;
        }
        assert!(seen.into_iter().all(|seen| seen), "a last share leads to every secret");
    }

    #[test]
    fn points_that_meet_or_are_zero_give_no_recipe() {
        for points in [[0, 1], [7, 7]] {
            assert!(Recipe::of(&points).is_none());
        }
    }
}
