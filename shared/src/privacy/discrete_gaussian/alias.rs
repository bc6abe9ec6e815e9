//! Choice among at most 1024 blocks with probabilities that are exact multiples of 2^-64.
//!
//! In: integer weights whose sum is 2^64. Out: a block for each uniform word, by Walker's alias method as
//! Vose builds it. Promised: of the 2^64 words exactly `weights[block]` choose `block`; the arithmetic is on
//! integers only.

use std::hint::select_unpredictable;

pub(super) const SLOT_BITS: u32 = 10;
pub(super) const SLOTS: usize = 1 << SLOT_BITS;

const PLACE_BITS: u32 = 64 - SLOT_BITS;
const CAPACITY: u64 = 1 << PLACE_BITS;

/// Each slot holds 2^54 words: those whose low 54 bits are below the slot's threshold choose the block of the
/// slot's own number, the others the block it names. Threshold (54 bits) and name (10 bits) share one word.
pub(super) struct AliasTable(Box<[u64; SLOTS]>);

impl AliasTable {
    /// Weights beyond `weights.len()` are zero. Panics unless the weights, at most 1024, sum to 2^64.
    pub(super) fn new(weights: &[u64]) -> Self {
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        assert!(
            total == 1 << 64 && weights.len() <= SLOTS,
            "{} weights sum to {total}",
            weights.len()
        );
        let mut left = [0; SLOTS];
        left[..weights.len()].copy_from_slice(weights);
        let (mut short, mut long): (Vec<usize>, Vec<usize>) =
            (0..SLOTS).partition(|&block| left[block] < CAPACITY);
        let mut slots = Box::new(std::array::from_fn(|slot| slot as u64));
        while let Some(slot) = short.pop() {
            // What is left fills the slots not yet made, on average to the brim: below it, someone is above.
            let donor = *long.last().expect("the weights sum to the capacity of all slots");
            slots[slot] = left[slot] << SLOT_BITS | donor as u64;
            left[donor] -= CAPACITY - left[slot];
            if left[donor] < CAPACITY {
                long.pop();
                short.push(donor);
            }
        }
        // The blocks still long hold exactly one capacity each: their slots keep threshold 0 and their own name.
        debug_assert!(long.iter().all(|&block| left[block] == CAPACITY));
        Self(slots)
    }

    /// The block that `word` chooses.
    #[inline]
    pub(super) fn choose(&self, word: u64) -> usize {
        let slot = (word >> PLACE_BITS) as usize;
        let entry = self.0[slot];
        let place = word & (CAPACITY - 1);
        select_unpredictable(place < entry >> SLOT_BITS, slot, entry as usize % SLOTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words_of_each_block(table: &AliasTable) -> Vec<u128> {
        let mut words = vec![0; SLOTS];
        for (slot, entry) in table.0.iter().enumerate() {
            let threshold = entry >> SLOT_BITS;
            words[slot] += u128::from(threshold);
            words[*entry as usize % SLOTS] += u128::from(CAPACITY - threshold);
        }
        words
    }

    fn completed(mut weights: Vec<u64>) -> Vec<u64> {
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        weights.push(u64::try_from((1 << 64) - total).expect("the sum is below 2^64"));
        weights
    }

    proptest! {
        #[test]
        fn every_block_is_chosen_by_exactly_its_weight_of_words(
            weights in prop::collection::vec(prop_oneof![0..1u64 << 54, 0..10u64, (1u64 << 54) - 2..(1 << 54) + 2], 1..1000)
        ) {
            let weights = completed(weights);
            let table = AliasTable::new(&weights);
            let words = words_of_each_block(&table);
            for (block, words) in words.into_iter().enumerate() {
                prop_assert_eq!(words, weights.get(block).copied().unwrap_or(0).into());
            }
        }

        #[test]
        fn a_word_chooses_by_its_place_in_its_slot(word: u64) {
            let table = AliasTable::new(&completed(vec![1 << 63, 3 << 61, 5]));
            let (slot, place) = ((word >> 54) as usize, word % (1 << 54));
            let (threshold, name) = (table.0[slot] >> 10, table.0[slot] as usize % 1024);
            prop_assert_eq!(table.choose(word), if place < threshold { slot } else { name });
        }
    }
}
