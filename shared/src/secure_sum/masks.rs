//! Masks: seeds expanded by AES-256 in counter mode from zero (NIST SP 800-38A) and added to integers modulo 2^32.
//!
//! A seed makes one mask and is never used for anything else, so counters need no nonce. A mask of 2^34 bytes, the
//! longest there is, stays within 2^30 blocks of one key: distinguishable from uniform with probability below 2^-67.

use super::keys::Secret;
use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;

/// Bytes of keystream made at a time: they stay in the processor's nearest cache.
const BLOCK_BYTES: usize = 16 << 10;
/// Bytes of a block of AES.
const CIPHER_BLOCK_BYTES: usize = 16;

/// Whether a mask is added or taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Added.
    Plus,
    /// Taken off.
    Minus,
}

impl Sign {
    /// The other one.
    pub const fn inverted(self) -> Self {
        match self {
            Self::Plus => Self::Minus,
            Self::Minus => Self::Plus,
        }
    }
}

/// Several masks to be added in one pass.
#[derive(Debug, Default)]
pub struct Masks(Vec<(EncryptingKey, Sign)>);

fn cipher(seed: &Secret) -> EncryptingKey {
    UnboundCipherKey::new(&AES_256, seed.as_bytes())
        .and_then(EncryptingKey::ctr)
        .expect("32 bytes are a key of AES-256, and AES-256 has a counter mode")
}

/// Overwrites `bytes` with the keystream from block `first` on.
fn fill(cipher: &EncryptingKey, first: u128, bytes: &mut [u8]) {
    bytes.fill(0);
    let counter = EncryptionContext::Iv128(FixedLength::from(first.to_be_bytes()));
    cipher
        .less_safe_encrypt(bytes, counter)
        .expect("AES-CTR takes any length, and the type fixes that of the counter");
}

/// Overwrites `bytes` with the keystream of `seed`.
pub(super) fn keystream(seed: &Secret, bytes: &mut [u8]) {
    fill(&cipher(seed), 0, bytes);
}

impl Masks {
    /// Adds the mask of `seed` to those there are.
    pub fn push(&mut self, seed: &Secret, sign: Sign) {
        self.0.push((cipher(seed), sign));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds all masks to `values` with up to `threads` threads; a word of keystream is little-endian.
    pub fn apply(&self, values: &mut [u32], threads: usize) {
        const VALUES: usize = BLOCK_BYTES / 4;
        let blocks = values.len().div_ceil(VALUES);
        let each = blocks.div_ceil(threads.max(1)).max(1);
        if blocks <= each {
            return self.apply_from(0, values);
        }
        std::thread::scope(|scope| {
            for (at, part) in values.chunks_mut(each * VALUES).enumerate() {
                scope.spawn(move || self.apply_from(at * each, part));
            }
        });
    }

    /// As [`apply`](Masks::apply), to values that begin at block `first` of all.
    fn apply_from(&self, first: usize, values: &mut [u32]) {
        let mut stream = vec![0; BLOCK_BYTES];
        for (at, block) in values.chunks_mut(BLOCK_BYTES / 4).enumerate() {
            let counter = (first + at) as u128 * (BLOCK_BYTES / CIPHER_BLOCK_BYTES) as u128;
            let stream = &mut stream[..4 * block.len()];
            for (cipher, sign) in &self.0 {
                fill(cipher, counter, stream);
                let (words, _) = stream.as_chunks::<4>();
                match sign {
                    Sign::Plus => combine(block, words, u32::wrapping_add),
                    Sign::Minus => combine(block, words, u32::wrapping_sub),
                }
            }
        }
    }
}

#[inline]
fn combine(values: &mut [u32], words: &[[u8; 4]], op: impl Fn(u32, u32) -> u32) {
    for (value, word) in values.iter_mut().zip(words) {
        *value = op(*value, u32::from_le_bytes(*word));
    }
}

/// Adds `words`, 32-bit little-endian integers, to `sum`, modulo 2^32.
pub fn add(sum: &mut [u32], words: &[[u8; 4]]) {
    combine(sum, words, u32::wrapping_add);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_the_keystream_of_aes_256_ctr_from_zero() {
        let mut masks = Masks::default();
        masks.push(&Secret::from_bytes([0; 32]), Sign::Plus);
        let mut values = [0; 4];
        masks.apply(&mut values, 1);
        // NIST AESAVS, GFSbox zero vector.
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), "dc95c078a2408989ad48a21492842087");
    }

    #[test]
    fn masks_are_the_same_on_any_number_of_threads_and_come_off_again() {
        let mut masks = Masks::default();
        let mut inverse = Masks::default();
        for byte in 1..4 {
            masks.push(&Secret::from_bytes([byte; 32]), Sign::Plus);
            inverse.push(&Secret::from_bytes([byte; 32]), Sign::Plus.inverted());
        }
        let start: Vec<u32> = (0..3 * BLOCK_BYTES as u32 / 4 + 5).collect();
        let mut first = start.clone();
        masks.apply(&mut first, 1);
        for threads in [0, 2, 3, 9] {
            let mut masked = start.clone();
            masks.apply(&mut masked, threads);
            assert_eq!(masked, first);
            inverse.apply(&mut masked, threads);
            assert_eq!(masked, start);
        }
    }
}
