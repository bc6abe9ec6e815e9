//! Who may take part in a secure sum: the sites that have joined, or stand-ins where nothing is sent.

use crate::operator::Operator;
use anyhow::{Result, bail};
use weighhouse_shared::ids::{ContentHash, SiteId};
use weighhouse_shared::job::{JobContract, JobFile, ModeName};
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, ListSites, OperatorToCoordinator, SiteStatus,
};

/// The members that `file` needs: for a secure sum all sites that have joined and are not revoked, for other jobs none.
pub async fn joined(operator: &Operator, file: &JobFile) -> Result<Vec<SiteId>> {
    if file.federation.mode != ModeName::SecureSum {
        return Ok(Vec::new());
    }
    let CoordinatorToOperator::Sites(sites) =
        operator.request(&OperatorToCoordinator::ListSites(ListSites {})).await?
    else {
        bail!("the coordinator answered another question")
    };
    let joined = sites.into_iter().filter(|site| site.status != SiteStatus::Revoked);
    Ok(joined.filter_map(|site| site.id).collect())
}

/// `count` members that no site is.
pub fn stand_ins(count: usize) -> Vec<SiteId> {
    let id = |number: usize| ContentHash::of(format!("weighhouse stand-in {number}").as_bytes());
    (0..count).map(|number| SiteId::from_bytes(*id(number).as_bytes())).collect()
}

/// Says whom the operator signed in; None but for secure sums.
pub fn describe(contract: &JobContract) -> Option<String> {
    let sum = contract.federation.secure_sum()?;
    let fingerprints: Vec<String> = sum.members.iter().map(SiteId::short).collect();
    Some(format!(
        "{} members, of which {} must be in a round's sum and {} may collude: {}",
        sum.members.len(),
        contract.federation.min_sites,
        sum.colluding_sites,
        fingerprints.join(" ")
    ))
}
