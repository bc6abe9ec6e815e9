//! The generator behind all noise and all sampling of customers.
//!
//! In: 44 bytes from the system's generator, once. Out: the keystream of AES-256 in counter mode under them, as words,
//! bytes and coins of an exact rate. Promised: a key makes at most 16 MiB of keystream (2^20 blocks, where
//! counter mode is distinguishable from uniform with probability below 2^-88) and is then replaced by 44 bytes of its
//! own keystream, so that a stolen state does not give back the keystream of earlier keys. Nothing here reads
//! data: what is drawn depends on the key and on how much was drawn before, and on nothing else.
//!
//! The keystream is that under which GCM encrypts (NIST SP 800-38D, section 7.1): each buffer is zeros encrypted under the
//! next 96-bit nonce, that is the blocks numbered from 2 on behind this nonce; the tag is thrown away. The library makes
//! this with wider instructions than its plain counter mode.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::SamplingRate;

const BLOCK_BYTES: usize = 16;
const BUFFER_BYTES: usize = 8192;
const KEY_BYTES: usize = 32;
/// A key and the first nonce.
const SECRET_BYTES: usize = KEY_BYTES + NONCE_LEN;
const BLOCKS_PER_KEY: u64 = 1 << 20;

/// Why there is no generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeneratorError {
    /// The operating system gave no random bytes.
    #[error(
        "the system's random generator gave no key: check that its entropy source is ready, then start again"
    )]
    NoEntropy,
}

/// Cryptographic generator: AES-256 in counter mode, keyed by the system's generator.
///
/// Not `Clone`: two copies would give the same noise twice.
pub struct Generator {
    key: LessSafeKey,
    /// Of the next buffer; of 96 bits.
    nonce: u128,
    blocks_left: u64,
    buffer: Box<Buffer>,
    used: usize,
}

/// On whole lines of the cache, so that loads of many words seldom lie across two.
#[repr(align(64))]
struct Buffer([u8; BUFFER_BYTES]);

impl Generator {
    /// A generator whose key and first nonce come from the operating system.
    ///
    /// Errors if the system has no random bytes to give.
    pub fn from_system() -> Result<Self, GeneratorError> {
        let mut secret = [0; SECRET_BYTES];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| GeneratorError::NoEntropy)?;
        Ok(Self::from_secret(&secret))
    }

    /// A generator that gives the same words for the same `seed`: for tests and benches only.
    ///
    /// Noise made from it protects nobody, since 64 bits (or a guess at the seed) give it all back. The
    /// feature `seeded` is off by default and no crate that ships may turn it on.
    #[cfg(any(test, feature = "seeded"))]
    pub fn from_seed(seed: u64) -> Self {
        let mut secret = [0; SECRET_BYTES];
        secret[..8].copy_from_slice(&seed.to_le_bytes());
        Self::from_secret(&secret)
    }

    /// A generator of its own, keyed by the next 44 bytes of this one's keystream: for another thread.
    pub fn fork(&mut self) -> Self {
        let mut secret = [0; SECRET_BYTES];
        self.fill(&mut secret);
        Self::from_secret(&secret)
    }

    fn from_secret(secret: &[u8; SECRET_BYTES]) -> Self {
        let (key, nonce) = keyed(secret);
        Self {
            key,
            nonce,
            blocks_left: BLOCKS_PER_KEY,
            buffer: Box::new(Buffer([0; BUFFER_BYTES])),
            used: BUFFER_BYTES,
        }
    }

    /// The next 64 bits, uniform over `0..2^64`.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let [word] = self.next_words();
        word
    }

    /// The next `N` words, each uniform over `0..2^64`; `N` is at most 32.
    ///
    /// Words are never split over two buffers; up to `8 N - 1` bytes at a buffer's end stay unused.
    #[inline]
    pub(super) fn next_words<const N: usize>(&mut self) -> [u64; N] {
        const { assert!(N <= 32) };
        if self.used + 8 * N > BUFFER_BYTES {
            self.refill();
        }
        let bytes = &self.buffer.0[self.used..self.used + 8 * N];
        self.used += 8 * N;
        let (words, _) = bytes.as_chunks::<8>();
        std::array::from_fn(|at| u64::from_le_bytes(words[at]))
    }

    /// Overwrites `bytes` with uniform bytes.
    pub fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.used == BUFFER_BYTES {
                self.refill();
            }
            let taken = bytes.len().min(BUFFER_BYTES - self.used);
            let (now, later) = bytes.split_at_mut(taken);
            now.copy_from_slice(&self.buffer.0[self.used..self.used + taken]);
            self.used += taken;
            bytes = later;
        }
    }

    /// True with probability exactly `rate`, the `f64` taken as the binary fraction that it is.
    ///
    /// Compares a uniform real, revealed 64 bits at a time, with the binary digits of `rate`: the first word
    /// that differs decides, and when `rate` has no digits left the uniform is not below it. Scaling by
    /// `2^64` and taking the fraction of a 53-bit number are exact in `f64`, so no probability is rounded.
    pub fn bernoulli(&mut self, rate: SamplingRate) -> bool {
        const TWO_64: f64 = 18_446_744_073_709_551_616.0;
        let mut rest = rate.value();
        if rest == 1.0 {
            return true;
        }
        while rest > 0.0 {
            let scaled = rest * TWO_64;
            let digits = scaled as u64; // exact floor: 0 < rest < 1
            let word = self.next_u64();
            if word != digits {
                return word < digits;
            }
            rest = scaled - scaled.floor();
        }
        false
    }

    #[cold]
    #[inline(never)]
    fn refill(&mut self) {
        const BLOCKS: u64 = (BUFFER_BYTES / BLOCK_BYTES) as u64;
        if self.blocks_left < 2 * BLOCKS {
            self.encrypt_buffer();
            let mut secret = [0; SECRET_BYTES];
            secret.copy_from_slice(&self.buffer.0[..SECRET_BYTES]);
            (self.key, self.nonce) = keyed(&secret);
            self.blocks_left = BLOCKS_PER_KEY;
        }
        self.encrypt_buffer();
        self.blocks_left -= BLOCKS;
        self.used = 0;
    }

    fn encrypt_buffer(&mut self) {
        self.buffer.0.fill(0);
        let [_, _, _, _, nonce @ ..] = self.nonce.to_be_bytes();
        let _tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                self.buffer.0.as_mut_slice(),
            )
            .expect("a buffer is short enough for one nonce");
        // A key makes far fewer buffers than there are nonces.
        self.nonce = (self.nonce + 1) % (1 << (8 * NONCE_LEN));
    }
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").finish_non_exhaustive()
    }
}

fn keyed(secret: &[u8; SECRET_BYTES]) -> (LessSafeKey, u128) {
    let (key, nonce) = secret.split_at(KEY_BYTES);
    let key = UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are a key of AES-256");
    let nonce = nonce.iter().fold(0, |number: u128, &byte| number << 8 | u128::from(byte));
    (LessSafeKey::new(key), nonce)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
    use aws_lc_rs::iv::FixedLength;

    use super::*;

    /// Block by block `AES-256(key, nonce || number)`; the first under the zero key and nonce is in the test cases of the
    /// GCM specification (McGrew and Viega 2005, test case 14).
    #[test]
    fn the_keystream_is_that_of_aes_256_in_counter_mode() {
        let mut bytes = [0; 3 * BUFFER_BYTES];
        Generator::from_seed(0).fill(&mut bytes);
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes[..16]), "cea7403d4d606b6e074ec5d3baf39d18");
        let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!(Generator::from_seed(0).next_u64(), first);

        let mut generator = Generator::from_secret(&[0xff; SECRET_BYTES]);
        generator.fill(&mut bytes);
        // The last nonce there is, and the first two.
        for (bytes, nonce) in bytes.chunks(BUFFER_BYTES).zip([u128::MAX >> 32, 0, 1]) {
            let key = UnboundCipherKey::new(&AES_256, &[0xff; 32]).and_then(EncryptingKey::ctr).unwrap();
            let first = FixedLength::from((nonce << 32 | 2).to_be_bytes());
            let mut expected = vec![0; BUFFER_BYTES];
            key.less_safe_encrypt(&mut expected, EncryptionContext::Iv128(first)).unwrap();
            assert_eq!(bytes, expected, "nonce {nonce:x}");
        }
    }

    #[test]
    fn words_and_bytes_are_the_same_stream_over_many_buffers() {
        let mut words = Generator::from_seed(7);
        let mut bytes = Generator::from_seed(7);
        let mut filled = vec![0; 5 * BUFFER_BYTES];
        bytes.fill(&mut filled);
        for chunk in filled.chunks_exact(8) {
            assert_eq!(words.next_u64().to_le_bytes(), chunk);
        }
    }

    #[test]
    fn a_key_is_replaced_after_its_share_of_blocks_and_no_stream_repeats() {
        let mut generator = Generator::from_seed(3);
        let buffers = BLOCKS_PER_KEY as usize / (BUFFER_BYTES / BLOCK_BYTES);
        let mut first = [0; BUFFER_BYTES];
        generator.fill(&mut first);
        let mut seen = std::collections::HashSet::from([first[..32].to_vec()]);
        let mut buffer = [0; BUFFER_BYTES];
        let mut last_nonce = generator.nonce;
        let mut rekeyed = 0;
        for _ in 0..2 * buffers {
            generator.fill(&mut buffer);
            rekeyed += usize::from(generator.nonce != last_nonce + 1);
            last_nonce = generator.nonce;
            assert!(seen.insert(buffer[..32].to_vec()));
        }
        assert_eq!(rekeyed, 2);
    }

    #[test]
    fn two_generators_from_the_system_differ() {
        let mut one = Generator::from_system().unwrap();
        let mut other = Generator::from_system().unwrap();
        assert_ne!(one.next_words::<4>(), other.next_words::<4>());
    }

    #[test]
    fn a_fork_has_a_stream_of_its_own() {
        let mut generator = Generator::from_seed(1);
        let (mut one, mut other) = (generator.fork(), generator.fork());
        let streams = [generator.next_words::<4>(), one.next_words(), other.next_words()];
        assert!(streams[0] != streams[1] && streams[1] != streams[2] && streams[0] != streams[2]);
    }

    #[test]
    fn debug_shows_no_state() {
        assert_eq!(format!("{:?}", Generator::from_seed(1)), "Generator { .. }");
    }

    /// Binomial counts within 4.9 standard deviations: alpha 1e-6 a rate.
    #[test]
    fn coins_fall_at_their_rate() {
        const DRAWS: u32 = 400_000;
        let mut generator = Generator::from_seed(11);
        for rate in [0.5, 0.01, 1.0 / 3.0, 0.999, 1e-4] {
            let sampling = SamplingRate::new(rate).unwrap();
            let heads = (0..DRAWS).filter(|_| generator.bernoulli(sampling)).count() as f64;
            let mean = f64::from(DRAWS) * rate;
            let deviation = (mean * (1.0 - rate)).sqrt();
            assert!((heads - mean).abs() < 4.9 * deviation, "rate {rate}: {heads} of {DRAWS}");
        }
    }

    #[test]
    fn a_coin_of_rate_one_always_falls_and_the_smallest_rate_never_does() {
        let mut generator = Generator::from_seed(12);
        let (one, least) = (SamplingRate::new(1.0).unwrap(), SamplingRate::new(5e-324).unwrap());
        assert!((0..1000).all(|_| generator.bernoulli(one)));
        assert!(!(0..1000).any(|_| generator.bernoulli(least)));
    }

    /// A word equal to the first 64 digits must not decide: the next digits do, and when they end, `false`.
    #[test]
    fn a_tie_on_the_first_word_is_decided_by_the_next_digits() {
        let tie = |rate: f64, words: &[u64]| {
            let mut generator = Generator::from_seed(0);
            generator.used = 0;
            for (bytes, word) in generator.buffer.0.as_chunks_mut().0.iter_mut().zip(words) {
                *bytes = word.to_le_bytes();
            }
            let heads = generator.bernoulli(SamplingRate::new(rate).unwrap());
            (heads, generator.used / 8)
        };
        assert_eq!(tie(0.5, &[1 << 63]), (false, 1));
        assert_eq!(tie(0.5, &[(1 << 63) - 1]), (true, 1));
        let long = 2f64.powi(-64) + 2f64.powi(-66); // digits 1, then a quarter
        assert_eq!(tie(long, &[1, (1 << 62) - 1]), (true, 2));
        assert_eq!(tie(long, &[1, 1 << 62]), (false, 2));
        assert_eq!(tie(long, &[1, (1 << 62) + 1]), (false, 2));
    }
}
