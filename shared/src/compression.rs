//! Fewer bytes for a model update: integers in, bytes out, and back. What is compressed is noised and paid for, so
//! nothing here costs privacy: it is post-processing, and its randomness is drawn apart from any record.
//!
//! | | bytes of p parameters | error |
//! | --- | --- | --- |
//! | `none` | 4 p | none |
//! | `int8` | p + 4 for each 256 | unbiased, at most 1/127 of the largest in the block |
//! | `int4` | p / 2 + 4 for each 256 | unbiased, at most 1/7 of the largest in the block |
//! | `top_k` | 8 for each kept | what is not sent is added to the site's next update |
//!
//! Quantisation is stochastic (Alistarh et al. 2017, "QSGD"): a value between two levels goes to either, with
//! probabilities that keep its mean. What `top_k` leaves out is kept at the site (error feedback; Stich et al. 2018,
//! "Sparsified SGD with memory").
//!
//! Ten generated sites of 500 customers, 30 features, 30 rounds, epsilon 8 (`cargo bench --bench compression`): bytes of one
//! site's update, their share of an uncompressed one's, and how far the AUC ends under the best possible, the mean of five
//! runs with the least and the most:
//!
//! | model | parameters | compression | bytes a round | share | AUC under the best possible |
//! | --- | --- | --- | --- | --- | --- |
//! | logistic | 31 | none | 124 | 1.000 | 0.003 (0.001 to 0.006) |
//! | logistic | 31 | int8 | 35 | 0.282 | 0.002 (0.002 to 0.003) |
//! | logistic | 31 | int4 | 20 | 0.161 | 0.003 (0.002 to 0.004) |
//! | logistic | 31 | top_k, 0.25 | 64 | 0.516 | 0.004 (0.002 to 0.005) |
//! | logistic | 31 | top_k, 0.1 | 32 | 0.258 | 0.003 (0.003 to 0.004) |
//! | logistic | 31 | top_k, 0.02 | 8 | 0.065 | 0.009 (0.007 to 0.011) |
//! | mlp | 4097 | none | 16388 | 1.000 | 0.025 (0.021 to 0.031) |
//! | mlp | 4097 | int8 | 4165 | 0.254 | 0.026 (0.022 to 0.028) |
//! | mlp | 4097 | int4 | 2117 | 0.129 | 0.023 (0.019 to 0.027) |
//! | mlp | 4097 | top_k, 0.25 | 8200 | 0.500 | 0.023 (0.018 to 0.025) |
//! | mlp | 4097 | top_k, 0.1 | 3280 | 0.200 | 0.027 (0.020 to 0.030) |
//! | mlp | 4097 | top_k, 0.02 | 656 | 0.040 | 0.036 (0.033 to 0.040) |
//!
//! A [`Decoder`] believes nothing: it takes the bytes in any cuts, holds less than [`MAX_UNIT_LEN`] of them beside a block of
//! values, and never gives out more values than the model has.

use crate::privacy::Generator;
use serde::{Deserialize, Serialize};

/// Values that share a step.
const BLOCK: usize = 256;

/// The longest part of a compressed update that is decoded at once: a step and 256 levels.
pub const MAX_UNIT_LEN: usize = 4 + BLOCK;

/// Values that a decoder hands over at once, at most.
const VALUES_AT_ONCE: usize = 32 << 10;

/// How an update travels.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Compression {
    /// 32-bit integers.
    #[default]
    None,
    /// A step for each 256 values and 8 bits a value.
    Int8,
    /// A step for each 256 values and 4 bits a value.
    Int4,
    /// The largest values with their places; the others wait at the site.
    TopK {
        /// Share of the values that are sent, rounded up.
        share: f64,
    },
}

/// What an update of a job is as bytes: public constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Encoding {
    /// How it travels.
    pub compression: Compression,
    /// Values in it.
    pub parameters: u64,
}

impl Encoding {
    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a model has parameters")]
    pub fn len(&self) -> u64 {
        self.compression.len(self.parameters)
    }
}

/// Bytes that are no update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not a compressed update")]
pub struct Malformed;

impl Compression {
    /// Bytes of an update of `parameters` values: a public constant of the job.
    pub fn len(self, parameters: u64) -> u64 {
        let steps = 4 * parameters.div_ceil(BLOCK as u64);
        match self {
            Self::None => 4 * parameters,
            Self::Int8 => steps + parameters,
            // A block's odd value has a byte of its own.
            Self::Int4 => steps + parameters.div_ceil(2),
            Self::TopK { share } => 8 * kept(share, parameters),
        }
    }

    /// Whether what is not sent is to be added to the site's next update.
    pub fn has_feedback(self) -> bool {
        matches!(self, Self::TopK { .. })
    }

    /// The bytes of `values`, which are left with what was not sent, the errors of quantisation among it. Each value
    /// is at most 2^30 in magnitude; of what is sent, each is saturated at `limit`.
    pub fn encode(self, values: &mut [i32], limit: i32, generator: &mut Generator) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len(values.len() as u64) as usize);
        match self {
            Self::None => {
                for value in values {
                    let sent = (*value).clamp(-limit, limit);
                    bytes.extend(sent.to_le_bytes());
                    *value -= sent;
                }
            }
            Self::Int8 => {
                for block in values.chunks_mut(BLOCK) {
                    let levels = quantised(block, 127, limit, &mut bytes, generator);
                    bytes.extend(levels.iter().map(|level| level.cast_unsigned()));
                }
            }
            Self::Int4 => {
                for block in values.chunks_mut(BLOCK) {
                    let levels = quantised(block, 7, limit, &mut bytes, generator);
                    let nibble = |level: &i8| level.cast_unsigned() & 0x0f;
                    let pair = |pair: &[i8]| nibble(&pair[0]) | (pair.get(1).map_or(0, nibble) << 4);
                    bytes.extend(levels.chunks(2).map(pair));
                }
            }
            Self::TopK { share } => {
                let count = (kept(share, values.len() as u64) as usize).min(values.len());
                let mut order: Vec<u32> = (0..values.len() as u32).collect();
                if count < order.len() && count > 0 {
                    // Of equal ones the first, so that the choice is a function of the values.
                    let rank = |at: &u32| (std::cmp::Reverse(values[*at as usize].unsigned_abs()), *at);
                    order.select_nth_unstable_by_key(count - 1, rank);
                }
                order.truncate(count);
                order.sort_unstable();
                for at in order {
                    let value = &mut values[at as usize];
                    let sent = (*value).clamp(-limit, limit);
                    bytes.extend(at.to_le_bytes());
                    bytes.extend(sent.to_le_bytes());
                    *value -= sent;
                }
            }
        }
        bytes
    }
}

/// How many of `parameters` values are kept: at least one.
fn kept(share: f64, parameters: u64) -> u64 {
    ((share * parameters as f64).ceil() as u64).clamp(1.min(parameters), parameters)
}

/// Writes the step of `block` and gives its levels, at most `top` in magnitude; the block keeps the errors.
fn quantised(
    block: &mut [i32],
    top: i64,
    limit: i32,
    bytes: &mut Vec<u8>,
    generator: &mut Generator,
) -> Vec<i8> {
    let largest = block.iter().map(|value| i64::from(value.unsigned_abs())).max().unwrap_or(0);
    // Rounded down where the last level would be over the limit.
    let step =
        (largest.min(i64::from(limit)) as u64).div_ceil(top as u64).min(limit as u64 / top as u64) as i64;
    bytes.extend((step as u32).to_le_bytes());
    if step == 0 {
        return vec![0; block.len()];
    }
    let mut random = [0; 4 * BLOCK];
    generator.fill(&mut random[..4 * block.len()]);
    let quantise = |(value, random): (&mut i32, &[u8; 4])| {
        // Uniform on 0 to step - 1, but for a bias below 2^-8 x step / 2^24.
        let dither = (i64::from(u32::from_le_bytes(*random)) * step) >> 32;
        let level = (i64::from(*value) + dither).div_euclid(step).clamp(-top, top);
        *value -= (level * step) as i32;
        level as i8
    };
    block.iter_mut().zip(random.as_chunks::<4>().0).map(quantise).collect()
}

/// Compressed bytes back to integers, as they arrive.
#[derive(Debug)]
pub struct Decoder {
    compression: Compression,
    parameters: u64,
    /// Values given out.
    given: u64,
    /// Of a unit that is not whole yet.
    carry: Vec<u8>,
    values: Vec<u8>,
}

impl Decoder {
    /// For an update of `parameters` values.
    pub fn new(compression: Compression, parameters: u64) -> Self {
        Self { compression, parameters, given: 0, carry: Vec::new(), values: Vec::new() }
    }

    /// Bytes of the next unit; None if no more may come.
    fn unit_len(&self) -> Option<usize> {
        let left = self.parameters.checked_sub(self.given).filter(|left| *left > 0)?;
        let block = left.min(BLOCK as u64) as usize;
        Some(match self.compression {
            Compression::None => 4,
            Compression::Int8 => 4 + block,
            Compression::Int4 => 4 + block.div_ceil(2),
            Compression::TopK { .. } => 8,
        })
    }

    /// Takes the next `bytes`; hands over 32-bit little-endian integers in order, in parts of whole values.
    pub fn push<E: From<Malformed>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let len = self.unit_len().ok_or(Malformed)?;
            let (now, later) = bytes.split_at(bytes.len().min(len - self.carry.len()));
            self.carry.extend_from_slice(now);
            bytes = later;
            if self.carry.len() == len {
                let unit = std::mem::take(&mut self.carry);
                self.decode(&unit, &mut each)?;
                self.carry = unit;
                self.carry.clear();
            }
        }
        Ok(())
    }

    fn decode<E: From<Malformed>>(
        &mut self,
        unit: &[u8],
        each: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (head, rest) = unit.split_first_chunk::<4>().ok_or(Malformed)?;
        let head = u32::from_le_bytes(*head);
        let scaled = |level: i64| (level * i64::from(head)).clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        match self.compression {
            Compression::None => self.give(head.cast_signed(), each),
            Compression::Int8 => {
                rest.iter().try_for_each(|level| self.give(scaled(i64::from(level.cast_signed())), each))
            }
            Compression::Int4 => {
                for pair in rest {
                    for nibble in [pair << 4, *pair] {
                        let level = i64::from(nibble.cast_signed() >> 4);
                        match self.given < self.parameters {
                            true => self.give(scaled(level), each)?,
                            false if level == 0 => {}
                            false => return Err(Malformed.into()),
                        }
                    }
                }
                Ok(())
            }
            Compression::TopK { .. } => {
                let value = <[u8; 4]>::try_from(rest).map_err(|_| Malformed)?;
                let at = u64::from(head);
                if at < self.given || at >= self.parameters {
                    return Err(Malformed.into());
                }
                self.give_zeros(at - self.given, each)?;
                self.give(i32::from_le_bytes(value), each)
            }
        }
    }

    fn give<E>(&mut self, value: i32, each: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.values.extend(value.to_le_bytes());
        self.given += 1;
        if self.values.len() >= 4 * VALUES_AT_ONCE { self.flush(each) } else { Ok(()) }
    }

    fn give_zeros<E>(
        &mut self,
        mut count: u64,
        each: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while count > 0 {
            let room = (VALUES_AT_ONCE - self.values.len() / 4) as u64;
            let now = count.min(room.max(1));
            self.values.resize(self.values.len() + 4 * now as usize, 0);
            self.given += now;
            count -= now;
            if self.values.len() >= 4 * VALUES_AT_ONCE {
                self.flush(each)?;
            }
        }
        Ok(())
    }

    fn flush<E>(&mut self, each: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let outcome = each(&self.values);
        self.values.clear();
        outcome
    }

    /// Hands over what is left. Errors if the values are not as many as the model has parameters.
    pub fn finish<E: From<Malformed>>(
        mut self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Compression::TopK { .. } = self.compression {
            let rest = self.parameters.saturating_sub(self.given);
            self.give_zeros(rest, &mut each)?;
        }
        if self.given != self.parameters || !self.carry.is_empty() {
            return Err(Malformed.into());
        }
        self.flush(&mut each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: i32 = 1 << 29;
    const KINDS: [Compression; 4] =
        [Compression::None, Compression::Int8, Compression::Int4, Compression::TopK { share: 0.1 }];

    fn decode(
        compression: Compression,
        parameters: u64,
        bytes: &[u8],
        cut: usize,
    ) -> Result<Vec<i32>, Malformed> {
        let mut decoder = Decoder::new(compression, parameters);
        let mut values = Vec::new();
        let mut take = |part: &[u8]| -> Result<(), Malformed> {
            assert!(part.len() <= 4 * VALUES_AT_ONCE);
            values.extend(part.as_chunks::<4>().0.iter().map(|value| i32::from_le_bytes(*value)));
            Ok(())
        };
        for part in bytes.chunks(cut) {
            decoder.push(part, &mut take)?;
            assert!(decoder.carry.len() < MAX_UNIT_LEN && decoder.values.len() < 4 * VALUES_AT_ONCE);
        }
        decoder.finish(&mut take)?;
        assert_eq!(values.len() as u64, parameters);
        Ok(values)
    }

    proptest! {
        #[test]
        fn what_was_sent_and_what_was_left_add_up_to_the_update_however_the_bytes_are_cut(
            values in proptest::collection::vec(-LIMIT..=LIMIT, 1..700),
            cut in 1usize..900,
            seed in any::<u64>(),
        ) {
            for compression in KINDS {
                let mut left = values.clone();
                let bytes = compression.encode(&mut left, LIMIT, &mut Generator::from_seed(seed));
                prop_assert_eq!(bytes.len() as u64, compression.len(values.len() as u64));
                let sent = decode(compression, values.len() as u64, &bytes, cut).unwrap();
                for ((value, sent), left) in values.iter().zip(&sent).zip(&left) {
                    prop_assert_eq!(*value, sent + left);
                    prop_assert!(sent.unsigned_abs() <= LIMIT as u32);
                }
            }
        }

        #[test]
        fn no_bytes_make_a_decoder_panic_or_give_out_more_than_the_model_has(
            bytes in proptest::collection::vec(any::<u8>(), 0..900),
            parameters in 0u64..600,
            cut in 1usize..300,
        ) {
            for compression in KINDS {
                let _ = decode(compression, parameters, &bytes, cut);
            }
        }
    }

    /// 20000 draws, seed 5; five standard errors of a value that is uniform within a step.
    #[test]
    fn quantisation_keeps_the_mean_of_every_value() {
        let values = [1000, -999, 137, -13, 5, 0];
        let mut generator = Generator::from_seed(5);
        for (compression, step) in [(Compression::Int8, 8.0), (Compression::Int4, 143.0)] {
            let mut sums = [0i64; 6];
            let draws = 20_000;
            for _ in 0..draws {
                let mut left = values;
                compression.encode(&mut left, LIMIT, &mut generator);
                for ((sum, value), left) in sums.iter_mut().zip(values).zip(left) {
                    *sum += i64::from(value - left);
                    assert!(f64::from(left.abs()) < step);
                }
            }
            for (sum, value) in sums.iter().zip(values) {
                let off = (*sum as f64 / f64::from(draws) - f64::from(value)).abs();
                assert!(
                    off < 5.0 * step / 2.0 / f64::from(draws).sqrt(),
                    "{compression:?}: {value} is off by {off}"
                );
            }
        }
    }

    #[test]
    fn the_largest_are_sent_and_the_others_wait() {
        let mut values = vec![1, -9, 3, 8, -2, 0, 7, 7, 0, 0];
        let compression = Compression::TopK { share: 0.25 };
        let bytes = compression.encode(&mut values, LIMIT, &mut Generator::from_seed(1));
        assert_eq!(decode(compression, 10, &bytes, 3).unwrap(), [0, -9, 0, 8, 0, 0, 7, 0, 0, 0]);
        assert_eq!(values, [1, 0, 3, 0, -2, 0, 0, 7, 0, 0]);
    }

    #[test]
    fn places_out_of_order_or_beyond_the_model_and_wrong_lengths_are_refused() {
        let entry = |at: u32| [at.to_le_bytes(), 5i32.to_le_bytes()].concat();
        let top = Compression::TopK { share: 0.5 };
        let of = |places: &[u32]| places.iter().flat_map(|at| entry(*at)).collect::<Vec<u8>>();
        assert_eq!(decode(top, 4, &of(&[0, 3]), 5).unwrap(), [5, 0, 0, 5]);
        for places in [&[3, 0][..], &[1, 1], &[0, 4], &[u32::MAX]] {
            assert_eq!(decode(top, 4, &of(places), 5), Err(Malformed));
        }
        for compression in KINDS {
            let len = compression.len(300) as usize;
            assert!(decode(compression, 300, &vec![0; len + 1], 64).is_err(), "{compression:?}");
            assert!(compression.has_feedback() || decode(compression, 300, &vec![0; len - 1], 64).is_err());
        }
        // The half byte after a block's last value is nothing.
        assert_eq!(decode(Compression::Int4, 1, &[3, 0, 0, 0, 0x02], 9).unwrap(), [6]);
        assert_eq!(decode(Compression::Int4, 1, &[3, 0, 0, 0, 0x12], 9), Err(Malformed));
    }

    /// A million places after one another in eight bytes.
    #[test]
    fn a_few_bytes_that_stand_for_many_values_are_given_out_in_blocks() {
        let parameters = 3_000_000;
        let bytes = [2_999_999u32.to_le_bytes(), 7i32.to_le_bytes()].concat();
        let values = decode(Compression::TopK { share: 1e-6 }, parameters, &bytes, 8).unwrap();
        assert_eq!(values.last(), Some(&7));
    }
}
