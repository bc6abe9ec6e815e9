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
    let federation = &contract.federation;
    let sum = federation.secure_sum()?;
    let (count, min_sites, colluding) = (sum.members.len(), federation.min_sites, sum.colluding_sites);
    let named = |members: &[SiteId]| members.iter().map(SiteId::short).collect::<Vec<_>>().join(" ");
    let Some(groups) = federation.sum_groups() else {
        return Some(format!(
            "{count} members, of which {min_sites} must be in a round's sum and {colluding} may collude: {}",
            named(&sum.members)
        ));
    };
    let mut lines = vec![format!(
        "{count} members in {} groups, of which {} must be in a round; of each group {min_sites} members must be in its sum \
         and {colluding} may collude",
        groups.groups, groups.min_groups
    )];
    let lists = contract.grouped_members();
    lines.extend((1..).zip(&lists).map(|(number, members)| format!("group {number}: {}", named(members))));
    Some(lines.join("\n"))
}

/// What a job's groups cost in noise; None if it has none.
pub fn noise_of_groups(contract: &JobContract) -> Option<String> {
    let groups = contract.federation.sum_groups()?;
    Some(format!(
        "{} groups: each sum keeps the whole promise by itself, at the same epsilon; the mean over all of them has {:.2} times \
         the noise of one sum over all sites",
        groups.groups,
        groups.noise_factor()
    ))
}
