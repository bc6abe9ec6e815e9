//! A secure sum's rounds at simulated sites: shares added up in the open, group by group, since all of them are in this process.
//!
//! The bits are those of the protocol, whose masks cancel: what comes out is the same sums modulo 2^32. As there, a sum
//! of fewer than `min_sites` is not opened, and a round with fewer than `min_groups` sums moves nothing.

use anyhow::Result;
use std::sync::{Arc, Mutex};
use weighhouse_client::payer::Simulated;
use weighhouse_client::train::{LocalRound, Tools, share_step};
use weighhouse_coordinator::aggregate::Aggregate;
use weighhouse_coordinator::global_model::GlobalModel;
use weighhouse_coordinator::opened_sum;
use weighhouse_coordinator::secure_sum::OpenedSum;
use weighhouse_coordinator::spool::Spool;
use weighhouse_shared::ids::RoundId;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::ServerState;
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::noise_share::SumEncoding;

use super::lock;

/// The sums of a round so far.
#[derive(Debug)]
pub struct PlainSums {
    encoding: SumEncoding,
    /// The group of each simulated site: of the contract's members in their order.
    group_of: Vec<usize>,
    sums: Vec<Mutex<OpenedSum>>,
    /// Of the groups' means, if there are groups.
    aggregate: Option<Mutex<Aggregate>>,
}

impl PlainSums {
    /// Of no site yet; None if the contract is of another mode.
    pub fn new(contract: &JobContract, parameters: usize, spool: &Arc<Spool>) -> Result<Option<Self>> {
        let Some(encoding) = contract.sum_encoding(parameters)? else { return Ok(None) };
        let lists = contract.grouped_members();
        let members = contract.federation.secure_sum().map_or(&[][..], |sum| &sum.members);
        let group = |site| lists.iter().position(|list| list.binary_search(site).is_ok());
        let group_of = members.iter().filter_map(group).collect();
        let empty = |_| OpenedSum { values: vec![0; parameters], sites: 0 };
        let sums = (0..lists.len()).map(empty).map(Mutex::new).collect();
        let aggregate = match contract.federation.sum_groups() {
            None => None,
            Some(_) => Some(Mutex::new(Aggregate::new(parameters, &contract.federation, spool)?)),
        };
        Ok(Some(Self { encoding, group_of, sums, aggregate }))
    }

    /// The grid of their integers.
    pub fn encoding(&self) -> SumEncoding {
        self.encoding
    }

    /// Adds the integers of site `number`.
    pub fn add(&self, number: usize, share: &[u32]) {
        let group = self.group_of.get(number).copied().unwrap_or(0);
        let mut sum = lock(&self.sums[group]);
        sum.values.iter_mut().zip(share).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
        sum.sites += 1;
    }

    /// Makes the round's step and begins the next sums.
    pub fn step(
        &self,
        model: GlobalModel,
        contract: &JobContract,
        round: RoundId,
        state: Option<&mut ServerState>,
    ) -> Result<GlobalModel> {
        let next = match (&self.aggregate, contract.federation.sum_groups()) {
            (Some(aggregate), Some(groups)) => {
                let opened: Vec<OpenedSum> = self.sums.iter().map(|sum| lock(sum).clone()).collect();
                let opens = |sum: &OpenedSum| sum.sites >= contract.federation.min_sites;
                let opened: Vec<OpenedSum> = opened.into_iter().filter(opens).collect();
                if opened.len() < groups.min_groups as usize {
                    model
                } else {
                    let mut aggregate = lock(aggregate);
                    opened_sum::add_groups(&mut aggregate, contract, round, opened)?;
                    let next = model.moved_by(aggregate.combine()?, state);
                    aggregate.clear()?;
                    next
                }
            }
            _ => {
                let sum = lock(&self.sums[0]);
                opened_sum::step(model, contract, round, &sum.values, sum.sites, state)?
            }
        };
        for sum in &self.sums {
            let mut sum = lock(sum);
            sum.values.fill(0);
            sum.sites = 0;
        }
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
