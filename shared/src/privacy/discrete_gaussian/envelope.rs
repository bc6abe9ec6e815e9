//! The steps above the Gaussian: where blocks lie and how high each stands.
//!
//! In: sigma. Out: block width, an integer height for each block, the share of it that lies below the Gaussian
//! everywhere in the block, two tails. Promised: every height is at least `scale` times the weight of every
//! integer of its block, every sure share is at most what the least weight allows, and the weights of all
//! blocks sum to exactly 2^32. Only these bounds enter the law, not how near they are: heights of a few units
//! cost a redraw in a million, no exactness.

use super::alias::SLOTS;
use super::exponential::Sigma;

/// Blocks to one sigma, at least, unless blocks have one integer each.
const BLOCKS_PER_SIGMA: f64 = 100.0;

/// Blocks reach this many sigmas to either side; the tails, chosen once in 2 million draws, do the rest.
const REACH_IN_SIGMAS: f64 = 5.0;

const TWO_16: f64 = 65_536.0;
const TWO_32: f64 = 4_294_967_296.0;

/// Blocks `0..2 * side` cover the integers from `-side * width` to `side * width - 1` in order; block
/// `2 * side` is the tail above, `2 * side + 1` the tail below, `2 * side + 2` is no integer: draw again.
pub(super) struct Envelope {
    /// Blocks to either side of zero, at most 1010.
    pub(super) side: u64,
    /// log2 of the width of a block, in integers; at most 33.
    pub(super) width_bits: u32,
    /// What a weight of one is in units of height.
    pub(super) scale: u32,
    /// Of each block, not zero; one for the tails and for whatever is no block.
    pub(super) heights: Box<[u32; SLOTS]>,
    /// For each block `2^16` times a share of its height that lies below every weight in it, rounded down;
    /// zero for the tails and for whatever is no block.
    pub(super) sure: Box<[u16; SLOTS]>,
    /// log2 of the width of a tail block.
    pub(super) tail_width_bits: u32,
    /// Height of the first block of either tail; each further block is half as high.
    pub(super) tail_height: u32,
}

impl Envelope {
    pub(super) fn new(sigma: &Sigma) -> Self {
        Self::reaching(sigma, REACH_IN_SIGMAS)
    }

    /// An envelope whose blocks end at `reach` sigmas, from 0.5 to 5.
    ///
    /// A tail block's width `t` makes `start * t >= sigma^2 ln 2`, so that `(start + q t)^2 >= start^2 + 2 q
    /// start t` makes the weight at `start + q t` at most `2^-q` of that at `start`: halving heights stay
    /// above the Gaussian, and all blocks of a tail weigh twice the first. (0.75 is above ln 2 by more than
    /// the rounding of this search.)
    ///
    /// [`Sigma::weight`] errs by less than 2^-44, products and the conversion of a height by 2^-53 each: raising
    /// by 2^-40 makes an upper bound, lowering a share by 2^-39 a lower one.
    pub(super) fn reaching(sigma: &Sigma, reach: f64) -> Self {
        const RAISED: f64 = 1.0 + 1.0 / (1u64 << 40) as f64;
        const LOWERED: f64 = 1.0 - 1.0 / (1u64 << 39) as f64;
        let width_bits = ((sigma.value() / BLOCKS_PER_SIGMA).log2().floor()).max(0.0) as u32;
        let width = 1u64 << width_bits;
        let side = (reach * sigma.value() / width as f64).ceil() as u64;
        let start = side * width;
        let mut tail_width_bits = width_bits;
        while start as f64 * ((1u64 << tail_width_bits) as f64) < 0.75 * sigma.value() * sigma.value() {
            tail_width_bits += 1;
        }
        // A block from a to b above zero is highest at a and lowest at b; below zero the other way round.
        let edges = |block: u64| match block.checked_sub(side) {
            Some(above) => (above * width, (above + 1) * width - 1),
            None => ((side - block - 1) * width + 1, (side - block) * width),
        };
        let upper: Vec<f64> = (0..2 * side).map(|block| sigma.weight(edges(block).0) * RAISED).collect();
        let upper_tail = sigma.weight(start) * RAISED;
        let tail_share = 1u64 << (tail_width_bits - width_bits + 1);

        // Just low enough that heights, each rounded up by one at most, stay within 2^32 in all.
        let total = upper.iter().sum::<f64>() + 2.0 * tail_share as f64 * upper_tail;
        let scale = ((TWO_32 - (2 * side + 2 * tail_share + 2) as f64) / total) as u32;
        let height = |upper: f64| (f64::from(scale) * upper) as u32 + 1;
        let (mut heights, mut sure) = (Box::new([1; SLOTS]), Box::new([0; SLOTS]));
        for (block, upper) in upper.into_iter().enumerate() {
            heights[block] = height(upper);
            let least = f64::from(scale) * sigma.weight(edges(block as u64).1) * LOWERED;
            sure[block] = (least / f64::from(heights[block]) * TWO_16) as u16;
        }
        Self { side, width_bits, scale, heights, sure, tail_width_bits, tail_height: height(upper_tail) }
    }

    /// How many blocks there are, without the tails.
    #[inline(always)]
    pub(super) fn blocks(&self) -> usize {
        2 * self.side as usize
    }

    /// The weight of each block, the tails and "draw again": at most 2048, with the sum 2^32.
    ///
    /// In units of height, for one block width: a tail weighs twice its first block, which is
    /// `2^(tail_width_bits - width_bits)` widths wide.
    pub(super) fn block_weights(&self) -> Vec<u32> {
        let mut weights = self.heights[..self.blocks()].to_vec();
        let tail = self.tail_height << (self.tail_width_bits - self.width_bits + 1);
        weights.extend([tail, tail]);
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let again = (1u64 << 32).checked_sub(total).and_then(|rest| u32::try_from(rest).ok());
        weights.push(again.expect("the scale keeps the sum within 2^32"));
        assert!(weights.len() <= SLOTS, "{} blocks", weights.len());
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::super::natural::Natural;
    use super::*;

    const SIGMAS: [f64; 12] =
        [0.5, 0.51, 1.0, 3.0, 7.9, 64.0, 99.99, 100.0, 1000.0, 65536.0, 3.3e9, 1_099_511_627_776.0];

    /// Exactly, with integer bounds of the weight at each edge: not against the floats that made the envelope.
    #[test]
    fn every_height_is_above_its_block_and_every_sure_share_below() {
        for sigma in SIGMAS.map(Sigma::new) {
            let envelope = Envelope::new(&sigma);
            let (side, width) = (envelope.side as i64, 1i64 << envelope.width_bits);
            let every = if cfg!(debug_assertions) { 23 } else { 1 };
            for block in (0..2 * side).step_by(every).chain([side - 1, side, 2 * side - 1]) {
                let first = (block - side) * width;
                let (a, b) = (first.unsigned_abs(), (first + width - 1).unsigned_abs());
                let height = Natural::from(u64::from(envelope.heights[block as usize]));
                let scale = Natural::from(u64::from(envelope.scale));
                let (_, most) = sigma.weight_between(a.min(b), 128);
                assert!(height.shifted_left(128) >= scale.times(&most), "{sigma:?}, block {block}");
                let (least, _) = sigma.weight_between(a.max(b), 128);
                let sure = Natural::from(u64::from(envelope.sure[block as usize])).times(&height);
                assert!(sure.shifted_left(112) <= scale.times(&least), "{sigma:?}, block {block}");
            }
        }
    }

    #[test]
    fn halving_tail_blocks_stay_above_the_gaussian() {
        for (sigma, reach) in SIGMAS.iter().flat_map(|&sigma| [(sigma, 0.5), (sigma, 2.0), (sigma, 5.0)]) {
            let sigma = Sigma::new(sigma);
            let envelope = Envelope::reaching(&sigma, reach);
            for block in 0..24 {
                let nearest = (envelope.side << envelope.width_bits) + (block << envelope.tail_width_bits);
                let (_, weight) = sigma.weight_between(nearest, 512);
                let height = Natural::from(u64::from(envelope.tail_height)).shifted_left(512 - block);
                assert!(
                    height >= weight.times(&Natural::from(u64::from(envelope.scale))),
                    "{sigma:?}, block {block}"
                );
            }
        }
    }

    #[test]
    fn block_weights_fill_the_table_and_few_draws_are_made_again() {
        for sigma in SIGMAS {
            let envelope = Envelope::new(&Sigma::new(sigma));
            let weights = envelope.block_weights();
            assert_eq!(weights.iter().map(|&weight| u64::from(weight)).sum::<u64>(), 1 << 32);
            assert!(*weights.last().unwrap() < 1 << 12, "{sigma}");
            // The part of the words that their block's sure share does not decide.
            let unsure: f64 = weights[..envelope.blocks()]
                .iter()
                .zip(envelope.sure.iter())
                .map(|(&height, &sure)| f64::from(height) / TWO_32 * (1.0 - f64::from(sure) / TWO_16))
                .sum();
            assert!(unsure < 0.0085, "{sigma}: {unsure}");
        }
    }
}
