//! Choice among at most 2048 blocks with probabilities that are exact multiples of 2^-32.
//!
//! In: integer weights whose sum is 2^32, and a label of each block. Out: a block and its label for each 32 uniform bits,
//! by Walker's alias method as Vose builds it. Promised: of the 2^32 possible choices exactly `weights[block]` lead to
//! `block`; the arithmetic is on integers only.

use std::hint::select_unpredictable;

const SLOT_BITS: u32 = 11;
pub(super) const SLOTS: usize = 1 << SLOT_BITS;

const PLACE_BITS: u32 = 32 - SLOT_BITS;
const CAPACITY: u32 = 1 << PLACE_BITS;

/// Each slot holds 2^21 choices: those whose low 21 bits are below the slot's threshold lead to the block of
/// the slot's own number, the others to the block it names. From the lowest bit, an entry has the name (11 bits), the
/// threshold (21), the label of the own block (16) and that of the named one (16): one look-up gives all.
pub(super) struct AliasTable(Box<[u64; SLOTS]>);

impl AliasTable {
    /// Weights beyond `weights.len()` are zero. Panics unless the weights, at most 2048, sum to 2^32.
    pub(super) fn new(weights: &[u32], labels: &[u16; SLOTS]) -> Self {
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        assert!(total == 1 << 32 && weights.len() <= SLOTS, "{} weights sum to {total}", weights.len());
        let mut left = [0; SLOTS];
        left[..weights.len()].copy_from_slice(weights);
        let (mut short, mut long): (Vec<usize>, Vec<usize>) =
            (0..SLOTS).partition(|&block| left[block] < CAPACITY);
        let entry = |slot: usize, threshold: u32, name: usize| {
            let labels = u64::from(labels[name]) << 16 | u64::from(labels[slot]);
            labels << 32 | u64::from(threshold) << SLOT_BITS | name as u64
        };
        let mut slots = Box::new(std::array::from_fn(|slot| entry(slot, 0, slot)));
        while let Some(slot) = short.pop() {
            // What is left fills the slots not yet made, on average to the brim: below it, someone is above.
            let donor = *long.last().expect("the weights sum to the capacity of all slots");
            slots[slot] = entry(slot, left[slot], donor);
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

    /// The block that 32 uniform bits choose, a number below 2048, and its label.
    #[inline(always)]
    pub(super) fn choose(&self, choice: u32) -> (usize, u16) {
        let slot = (choice >> PLACE_BITS) as usize;
        let entry = self.0[slot];
        let place = choice & (CAPACITY - 1);
        let own = place < entry as u32 >> SLOT_BITS;
        let block = select_unpredictable(own, slot, entry as usize % SLOTS);
        (block, select_unpredictable(own, entry >> 32, entry >> 48) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A label for each block, all different.
    fn labels() -> [u16; SLOTS] {
        std::array::from_fn(|block| 65_535 - 7 * block as u16)
    }

    fn choices_of_each_block(table: &AliasTable) -> Vec<u32> {
        let mut choices = vec![0; SLOTS];
        for (slot, entry) in table.0.iter().enumerate() {
            let threshold = *entry as u32 >> SLOT_BITS;
            choices[slot] += threshold;
            choices[*entry as usize % SLOTS] += CAPACITY - threshold;
        }
        choices
    }

    /// `weights` and what is left of 2^32, in halves.
    fn completed(mut weights: Vec<u32>) -> Vec<u32> {
        let left = (1 << 32) - weights.iter().map(|&weight| u64::from(weight)).sum::<u64>();
        weights
            .extend([left / 2, left - left / 2].map(|half| u32::try_from(half).expect("half of 2^32 fits")));
        weights
    }

    proptest! {
        #[test]
        fn every_block_is_chosen_by_exactly_its_weight_of_choices(
            weights in prop::collection::vec(
                prop_oneof![0..CAPACITY, 0..10u32, CAPACITY - 2..CAPACITY + 2], 0..2000)
        ) {
            let weights = completed(weights);
            let choices = choices_of_each_block(&AliasTable::new(&weights, &labels()));
            for (block, choices) in choices.into_iter().enumerate() {
                prop_assert_eq!(choices, weights.get(block).copied().unwrap_or(0));
            }
        }

    }

    #[test]
    fn a_choice_leads_by_its_place_in_its_slot_to_the_last_place_and_the_label_is_the_blocks() {
        let table =
            AliasTable::new(&completed(vec![1 << 31, 3 << 29, 5, CAPACITY - 1, CAPACITY + 1]), &labels());
        let mut thresholds = 0;
        for (slot, entry) in table.0.iter().enumerate() {
            let (threshold, name) = (*entry as u32 >> SLOT_BITS, *entry as usize % SLOTS);
            thresholds += u32::from(threshold > 0);
            for place in [0, threshold.saturating_sub(1), threshold, (threshold + 1) % CAPACITY, CAPACITY - 1]
            {
                let choice = (slot as u32) << PLACE_BITS | place;
                let block = if place < threshold { slot } else { name };
                assert_eq!(table.choose(choice), (block, labels()[block]), "{slot} {place}");
            }
        }
        assert!(thresholds > 1);
    }
}
