//! A site's part of a secure sum: its clipped sum on the sum's grid, held in range, with its share of the noise.

use super::{NoiseError, Sampler};
use crate::budget::Debit;
use crate::clip::{ClippedSum, Workers};
use crate::payer::{Payer, Simulated};
use std::fmt;
use std::marker::PhantomData;
use weighhouse_shared::ledger::Population;
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::noise_share::SumEncoding;

/// Integers modulo 2^32 that hold one site's share of the noise, and no more: what is claimed of a sum holds once they
/// are masked and others' shares are in it. So they become bytes only together with masks ([`masked`](Self::masked)),
/// and only if a debit paid. Not to be cloned: one debit, one vector.
pub struct NoisedShare<P = Debit> {
    values: Vec<u32>,
    payer: PhantomData<P>,
}

impl<P> fmt::Debug for NoisedShare<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoisedShare[{}]", self.values.len())
    }
}

/// Rounds and holds `clipped` in the range of `encoding`, and draws its share of the noise; one step of `payer` pays.
pub fn noise_share<P: Payer>(
    clipped: ClippedSum,
    encoding: &SumEncoding,
    payer: &mut P,
    sampler: &mut Sampler,
    workers: &Workers,
    generator: &mut Generator,
) -> Result<NoisedShare<P>, NoiseError> {
    let ClippedSum { mut sum, grid } = clipped;
    let charge = payer.charge();
    let mechanism = encoding.mechanism();
    let paid = charge.population == Population::Training
        && *payer.mechanism() == mechanism
        && mechanism.is_of(charge.event.noise_multiplier)
        && encoding.is_on(&grid, sum.len());
    if !paid || !payer.use_step() {
        return Err(NoiseError::Unpaid);
    }
    encoding.round_and_clamp(&mut sum);
    let noise = sampler.of(mechanism.sigma())?;
    workers.by_pieces(&mut sum, generator, |piece, generator| noise.add_to(piece, generator));
    // Modulo 2^32, as all sums of them are.
    let values = sum.into_iter().map(|value| value as u32).collect();
    Ok(NoisedShare { values, payer: PhantomData })
}

impl NoisedShare {
    /// What leaves: 32-bit little-endian integers, once `mask` has added the round's masks, modulo 2^32. `memory` is used
    /// again.
    pub fn masked(mut self, mask: impl FnOnce(&mut [u32]), mut memory: Vec<u8>) -> Vec<u8> {
        mask(&mut self.values);
        memory.resize(4 * self.values.len(), 0);
        let (cells, _) = memory.as_chunks_mut::<4>();
        cells.iter_mut().zip(&self.values).for_each(|(cell, value)| *cell = value.to_le_bytes());
        memory
    }

    /// A constant, without any record: what a no-training round sends.
    #[cfg(feature = "constant-update")]
    pub fn constant(parameters: usize, value: u32) -> Self {
        Self { values: vec![value; parameters], payer: PhantomData }
    }
}

impl NoisedShare<Simulated> {
    /// To be summed in this process; nothing paid for them.
    pub fn values(&self) -> &[u32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ledger::Charge;
    use weighhouse_shared::model::Engine;
    use weighhouse_shared::privacy::accountant::GaussianEvent;
    use weighhouse_shared::privacy::grid::Grid;
    use weighhouse_shared::privacy::noise_share::SumTerms;
    use weighhouse_shared::privacy::{ClipNorm, Delta, NoiseMultiplier, SamplingRate};

    const ENTRIES: usize = 4000;

    fn encoding(multiplier: f64) -> SumEncoding {
        SumEncoding::new(SumTerms {
            members: 10,
            honest_shares: 4,
            batch: 100.0,
            parameters: ENTRIES as u64,
            rounds: 10,
            noise_multiplier: NoiseMultiplier::new(multiplier).unwrap(),
            delta: Delta::new(1e-5).unwrap(),
            clip_norm: ClipNorm::new(0.5).unwrap(),
        })
        .unwrap()
    }

    fn debit(multiplier: f64) -> Debit {
        let noise_multiplier = NoiseMultiplier::new(multiplier).unwrap();
        let event =
            GaussianEvent { noise_multiplier, sampling_rate: SamplingRate::new(1.0).unwrap(), steps: 1 };
        Debit::for_test(Charge { population: Population::Training, event }, encoding(multiplier).mechanism())
    }

    fn clipped(value: i64, clip: f64) -> ClippedSum {
        ClippedSum { sum: vec![value; ENTRIES], grid: Grid::new(ClipNorm::new(clip).unwrap()) }
    }

    fn share(clipped: ClippedSum, debit: &mut Debit) -> Result<Vec<i32>, NoiseError> {
        let (mut sampler, mut generator) = (Sampler::default(), Generator::from_seed(5));
        let workers = Workers::with_threads(&Engine::Processor, 1);
        let share = noise_share(clipped, &encoding(6.0), debit, &mut sampler, &workers, &mut generator)?;
        let bytes = share.masked(|values| values.iter_mut().for_each(|value| *value ^= 1 << 31), vec![9; 3]);
        let (values, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        Ok(values.iter().map(|value| (u32::from_le_bytes(*value) ^ 1 << 31) as i32).collect())
    }

    #[test]
    fn a_debit_pays_for_one_share_of_its_own_mechanism_only() {
        let mut right = debit(6.0);
        share(clipped(0, 0.5), &mut right).unwrap();
        assert!(matches!(share(clipped(0, 0.5), &mut right), Err(NoiseError::Unpaid)));
        assert!(matches!(share(clipped(0, 0.5), &mut debit(6.1)), Err(NoiseError::Unpaid)));
        assert!(matches!(share(clipped(0, 1.0), &mut debit(6.0)), Err(NoiseError::Unpaid)));
        let short = ClippedSum { sum: vec![0; 3], grid: Grid::new(ClipNorm::new(0.5).unwrap()) };
        assert!(matches!(share(short, &mut debit(6.0)), Err(NoiseError::Unpaid)));
    }

    /// A site's own noise is a share: half of what four make. 4000 samples, seed 5; bounds at 5 standard errors (alpha below
    /// 1e-6).
    #[test]
    fn a_share_has_the_noise_of_its_part_around_a_sum_that_is_held_in_range() {
        let encoding = encoding(6.0);
        for (sum, middle) in [(0, 0), (1 << 60, encoding.limit()), (-(1 << 60), -encoding.limit())] {
            let values = share(clipped(sum, 0.5), &mut debit(6.0)).unwrap();
            let off = values.iter().map(|value| (i64::from(*value) - middle) as f64);
            let deviation = (off.map(|off| off * off).sum::<f64>() / ENTRIES as f64).sqrt();
            let wanted = 6.0 / 2.0 * encoding.sensitivity() as f64;
            assert!((deviation / wanted - 1.0).abs() < 5.0 / 8000f64.sqrt(), "{deviation} is not {wanted}");
        }
    }
}
