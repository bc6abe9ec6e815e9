//! The only room in which privacy randomness for releases is drawn. A value goes in with the [`Debit`] that
//! pays for it and comes out noised; there is no other way to make a [`NoisedSum`] or a
//! [`NoisedHistogram`] that may leave. A simulated site's sum is noised here as well and bears that in its type.

mod share;

pub use share::{NoisedShare, noise_share};

use crate::budget::Debit;
use crate::clip::{ClippedSum, Workers};
use crate::payer::Payer;
use opendp::domains::{AtomDomain, VectorDomain};
use opendp::measurements::make_gaussian;
use opendp::measures::ZeroConcentratedDivergence;
use opendp::metrics::L2Distance;
use std::marker::PhantomData;
use weighhouse_shared::ledger::Population;
use weighhouse_shared::privacy::grid::{COUNT, Grid};
use weighhouse_shared::privacy::{CUSTOMER_UNITS, DiscreteGaussian, Generator, Mechanism};

/// Why noise was refused. None of these depends on records.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The debit's steps are used up, or it pays for other customers' data or another mechanism.
    #[error("the debit does not pay for this release")]
    Unpaid,
    /// The noise is too large or too small to be drawn exactly.
    #[error("the contract's noise cannot be drawn exactly")]
    Sigma(#[from] weighhouse_shared::privacy::SigmaOutOfRange),
    /// The statistics library refused.
    #[error("the histogram mechanism failed: {reason}")]
    Histogram {
        /// What it said.
        reason: String,
    },
}

/// A clipped sum with exact discrete Gaussian noise of the payer's multiplier: safe to leave if that was a debit.
#[derive(Debug)]
pub struct NoisedSum<P = Debit> {
    sum: Vec<i64>,
    grid: Grid,
    payer: PhantomData<P>,
}

impl<P> NoisedSum<P> {
    /// The sum of the gradients, in units of [`Grid::unit`].
    pub fn gradient(&self) -> &[i64] {
        &self.sum[..self.sum.len() - self.grid.clipping().counts()]
    }

    /// The unit of the loss gradient in one integer.
    pub fn unit(&self) -> f64 {
        self.grid.unit()
    }

    /// The memory alone, for another sum.
    pub(crate) fn into_memory(self) -> Vec<i64> {
        self.sum
    }

    /// The share of the batch whose norm was within the clip norm, of a batch of `expected` customers; about one half
    /// plus half the difference, over `expected`, if it had more or fewer. None unless the norm follows a quantile.
    pub fn share_within(&self, expected: f64) -> Option<f64> {
        let count = (self.grid.clipping().counts() > 0).then(|| self.sum.last()).flatten()?;
        Some(0.5 + *count as f64 / (2.0 * COUNT as f64 * expected))
    }
}

/// The tables of the noise that was drawn last, kept for the next steps.
#[derive(Default)]
pub struct Sampler(Option<DiscreteGaussian>);

impl Sampler {
    fn of(&mut self, sigma: f64) -> Result<&DiscreteGaussian, NoiseError> {
        let kept = self.0.take().filter(|kept| kept.sigma() == sigma);
        let found = kept.map_or_else(|| DiscreteGaussian::new(sigma), Ok)?;
        Ok(self.0.insert(found))
    }
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sampler")
    }
}

/// Draws the noise of one step's sum; one step of `payer` pays.
pub fn noise_sum<P: Payer>(
    clipped: ClippedSum,
    payer: &mut P,
    sampler: &mut Sampler,
    workers: &Workers,
    generator: &mut Generator,
) -> Result<NoisedSum<P>, NoiseError> {
    let ClippedSum { mut sum, grid } = clipped;
    let charge = payer.charge();
    let mechanism = Mechanism::clipped_gradient_sum(&grid, charge.event.noise_multiplier);
    let paid = charge.population == Population::Training && *payer.mechanism() == mechanism;
    if !paid || !payer.use_step() {
        return Err(NoiseError::Unpaid);
    }
    let noise = sampler.of(mechanism.sigma())?;
    workers.by_pieces(&mut sum, generator, |piece, generator| noise.add_to(piece, generator));
    Ok(NoisedSum { sum, grid, payer: PhantomData })
}

/// Counts per bin before noise. Each customer adds at most [`CUSTOMER_UNITS`] in all.
pub(crate) struct CustomerHistogram(pub(crate) Vec<i64>);

/// A histogram with exact discrete Gaussian noise: safe to leave.
#[derive(Debug)]
pub struct NoisedHistogram(Vec<i64>);

impl NoisedHistogram {
    /// Counts in units of 1/[`CUSTOMER_UNITS`] customer.
    pub fn into_counts(self) -> Vec<i64> {
        self.0
    }
}

/// Draws the noise of one histogram; one step of `debit` pays. The mechanism and its privacy map are
/// OpenDP's; the map must say no more than the debit was charged, or nothing is released.
pub(crate) fn noise_histogram(
    histogram: CustomerHistogram,
    debit: &mut Debit,
) -> Result<NoisedHistogram, NoiseError> {
    let charge = debit.charge();
    let multiplier = charge.event.noise_multiplier.value();
    let recorded = Mechanism::histogram(charge.event.noise_multiplier);
    let paid = charge.population == Population::Holdout && *debit.mechanism() == recorded;
    if !paid || !debit.use_step() {
        return Err(NoiseError::Unpaid);
    }
    let failed = |error: opendp::error::Error| NoiseError::Histogram { reason: error.to_string() };
    let domain = VectorDomain::new(AtomDomain::<i64>::default());
    let distance = L2Distance::<i64>::default();
    let mechanism =
        make_gaussian::<_, _, ZeroConcentratedDivergence>(domain, distance, recorded.sigma(), None)
            .map_err(failed)?;
    let rho = mechanism.map(&(CUSTOMER_UNITS as i64)).map_err(failed)?;
    // zCDP rho of a Gaussian release is 1 / (2 multiplier^2), which the debit's Renyi curve charges.
    if rho > 0.5 / (multiplier * multiplier) * (1.0 + 1e-9) {
        return Err(NoiseError::Unpaid);
    }
    mechanism.invoke(&histogram.0).map(NoisedHistogram).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ledger::Charge;
    use weighhouse_shared::model::Engine;
    use weighhouse_shared::privacy::accountant::GaussianEvent;
    use weighhouse_shared::privacy::grid::Grid;
    use weighhouse_shared::privacy::{ClipNorm, NoiseMultiplier, SamplingRate};

    fn debit(population: Population, steps: u32) -> Debit {
        let (noise_multiplier, sampling_rate) =
            (NoiseMultiplier::new(2.0).unwrap(), SamplingRate::new(1.0).unwrap());
        let mechanism = match population {
            Population::Training => {
                Mechanism::clipped_gradient_sum(&Grid::new(ClipNorm::new(0.5).unwrap()), noise_multiplier)
            }
            Population::Holdout => Mechanism::histogram(noise_multiplier),
        };
        let event = GaussianEvent { noise_multiplier, sampling_rate, steps };
        Debit::for_test(Charge { population, event }, mechanism)
    }

    fn zeros() -> ClippedSum {
        ClippedSum { sum: vec![0; 4000], grid: Grid::new(ClipNorm::new(0.5).unwrap()) }
    }

    #[test]
    fn a_debit_pays_for_its_steps_and_its_population_only() {
        let (mut sampler, mut generator) = (Sampler::default(), Generator::from_seed(3));
        let workers = Workers::with_threads(&Engine::Processor, 1);
        let mut noise = |clipped: ClippedSum, debit: &mut Debit| {
            noise_sum(clipped, debit, &mut sampler, &workers, &mut generator)
        };
        let mut training = debit(Population::Training, 1);
        noise(zeros(), &mut training).unwrap();
        assert!(matches!(noise(zeros(), &mut training), Err(NoiseError::Unpaid)));
        let mut holdout = debit(Population::Holdout, 1);
        assert!(matches!(noise(zeros(), &mut holdout), Err(NoiseError::Unpaid)));
        let wider = ClippedSum { sum: vec![0], grid: Grid::new(ClipNorm::new(1.0).unwrap()) };
        let mut training = debit(Population::Training, 1);
        assert!(matches!(noise(wider, &mut training), Err(NoiseError::Unpaid)));
    }

    /// The noise of a sum of zeros has the standard deviation that was paid for: multiplier times clip
    /// norm. 4000 samples, seed 4; bounds at 5 standard errors (alpha below 1e-6).
    #[test]
    fn the_noise_has_the_paid_standard_deviation() {
        let (mut sampler, mut generator) = (Sampler::default(), Generator::from_seed(4));
        let workers = Workers::with_threads(&Engine::Processor, 1);
        // Of another noise, whose tables must not be used.
        sampler.of(3.0).unwrap();
        let mut debit = debit(Population::Training, 1);
        let noised = noise_sum(zeros(), &mut debit, &mut sampler, &workers, &mut generator).unwrap();
        let variance =
            noised.gradient().iter().map(|&value| (value as f64 * noised.unit()).powi(2)).sum::<f64>()
                / 4000.0;
        assert!((variance.sqrt() / (2.0 * 0.5) - 1.0).abs() < 5.0 / 8000f64.sqrt(), "{}", variance.sqrt());
    }

    #[test]
    fn a_histogram_is_noised_by_a_mechanism_whose_own_map_fits_the_charge() {
        let mut debit = debit(Population::Holdout, 1);
        let noised = noise_histogram(CustomerHistogram(vec![0; 64]), &mut debit).unwrap().into_counts();
        assert_eq!(noised.len(), 64);
        assert!(noised.iter().any(|count| *count != 0));
    }
}
