//! The site's part of a secure sum's round: one private gradient at the round's model, as a share.

use super::{LocalRound, Tools, TrainError};
use crate::budget::Debit;
use crate::clip::{Step, Workers, clip_and_sum};
use crate::noise::{NoisedShare, noise_share};
use crate::payer::Payer;
use crate::sampling::poisson_sample;
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::noise_share::SumEncoding;

/// [`share_step`] with buffers of its own, paid by `debit`.
pub fn share_round(
    round: LocalRound<'_>,
    encoding: &SumEncoding,
    debit: Debit,
    generator: &mut Generator,
) -> Result<NoisedShare, TrainError> {
    let mut tools = Tools::new(Workers::new(round.base.engine));
    share_step(round, encoding, debit, &mut tools, generator)
}

/// Sums the clipped gradients of a Poisson sample of the site's customers at the round's model, and adds the site's share
/// of the noise. Clip norm, sampling and noise are the contract's; the step is made by whoever has the sum.
pub fn share_step<P: Payer>(
    round: LocalRound<'_>,
    encoding: &SumEncoding,
    mut payer: P,
    tools: &mut Tools,
    generator: &mut Generator,
) -> Result<NoisedShare<P>, TrainError> {
    let LocalRound { contract, network, base, table } = round;
    let Tools { workers, sampler, .. } = tools;
    let training = &contract.training;
    let chosen = poisson_sample(table.customers(), training.sampling_rate, generator);
    let max_rows = training.max_rows_per_customer as usize;
    let step = Step { network, parameters: base.parameters, max_rows, grid: &contract.grid() };
    let clipped = clip_and_sum(step, table, &chosen, workers, generator)?;
    Ok(noise_share(clipped, encoding, &mut payer, sampler, workers, generator)?)
}
