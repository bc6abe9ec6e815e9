//! A secure sum's rounds at simulated sites: shares added up in the open, since all of them are in this process.
//!
//! The bits are those of the protocol, whose masks cancel: what comes out is the same sum modulo 2^32.

use anyhow::Result;
use weighhouse_client::payer::Simulated;
use weighhouse_client::train::{LocalRound, Tools, share_step};
use weighhouse_coordinator::global_model::GlobalModel;
use weighhouse_coordinator::opened_sum;
use weighhouse_shared::ids::RoundId;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::ServerState;
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::noise_share::SumEncoding;

/// The sum of a round so far.
#[derive(Debug)]
pub struct PlainSum {
    encoding: SumEncoding,
    values: Vec<u32>,
    sites: u32,
}

impl PlainSum {
    /// Of no site yet; None if the contract is of another mode.
    pub fn new(contract: &JobContract, parameters: usize) -> Result<Option<Self>> {
        let encoding = contract.sum_encoding(parameters)?;
        Ok(encoding.map(|encoding| Self { encoding, values: vec![0; parameters], sites: 0 }))
    }

    /// The grid of its integers.
    pub fn encoding(&self) -> SumEncoding {
        self.encoding
    }

    /// Adds a site's integers.
    pub fn add(&mut self, share: &[u32]) {
        self.values.iter_mut().zip(share).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
        self.sites += 1;
    }

    /// Makes the round's step and begins the next sum.
    pub fn step(
        &mut self,
        model: GlobalModel,
        contract: &JobContract,
        round: RoundId,
        state: Option<&mut ServerState>,
    ) -> Result<GlobalModel> {
        let next = opened_sum::step(model, contract, round, &self.values, self.sites, state)?;
        self.values.fill(0);
        self.sites = 0;
        Ok(next)
    }
}

/// One site's share of a round; `encoding` is that of the sum.
pub fn share(
    round: LocalRound<'_>,
    encoding: &SumEncoding,
    tools: &mut Tools,
    generator: &mut Generator,
) -> Result<Vec<u32>> {
    let payer = Simulated::round_of(round.contract, round.base.parameters.len())?;
    Ok(share_step(round, encoding, payer, tools, generator)?.values().to_vec())
}
