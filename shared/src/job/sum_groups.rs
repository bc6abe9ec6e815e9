//! Secure sums by groups: the members are split into groups, each of which has a secure sum of its own, and the strategy
//! is applied to the groups' means.
//!
//! What the mode promises it promises in each group: `min_sites` and `colluding_sites` are of every group, so all that
//! collude may be in one. A customer's data is in one group's sum, so it costs what it would in one sum over all; the mean
//! over G groups carries the noise of G sums, [`noise_factor`](SumGroups::noise_factor) times that of one.
//!
//! The split is a function of the contract: members in the order of the SHA-256 of its nonce and their identifier, dealt out one
//! by one ([`JobContract::grouped_members`]). The nonce is drawn by the operator when the members are known, so no member can
//! choose an identifier for a group, and the coordinator can change neither.

use super::secure_sum::{MIN_MEMBERS, SecureSum};
use super::{Federation, JobContract, JobError, range};
use crate::ids::{ContentHash, SiteId};
use crate::secure_sum::roster::Terms;
use serde::{Deserialize, Serialize};

/// Most groups: the coordinator holds a running sum for each.
pub const MAX_GROUPS: u32 = 64;

/// A secure sum by groups, at least two of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumGroups {
    /// The members of all groups, and how many of each group may collude.
    pub sum: SecureSum,
    /// How many groups; their sizes differ by at most one.
    pub groups: u32,
    /// A round of which fewer groups' sums are opened is not committed.
    pub min_groups: u32,
}

impl SumGroups {
    /// Members of the smallest and of the largest group.
    pub fn sizes(&self) -> (usize, usize) {
        sizes(self.sum.members.len(), self.groups)
    }

    /// The noise of the mean over all groups, over that of one sum of all members on the same terms: the root of the number
    /// of groups.
    pub fn noise_factor(&self) -> f64 {
        f64::from(self.groups).sqrt()
    }

    /// Checks its own numbers.
    pub(super) fn check(&self) -> Result<(), JobError> {
        let Self { groups, min_groups, .. } = *self;
        range("federation.groups", "from 1 to 64", groups.into(), (2..=MAX_GROUPS).contains(&groups))?;
        let members = self.sum.members.len();
        let most = members / MIN_MEMBERS;
        if groups as usize > most {
            return Err(JobError::Groups { members, groups, most });
        }
        let holds = (default_min_groups(groups)..=groups).contains(&min_groups);
        range("federation.min_groups", "more than half of groups and at most all", min_groups.into(), holds)
    }
}

/// Members of the smallest and of the largest of so many groups.
pub(super) fn sizes(members: usize, groups: u32) -> (usize, usize) {
    let groups = (groups as usize).max(1);
    (members / groups, members.div_ceil(groups))
}

/// More than half.
pub(super) fn default_min_groups(groups: u32) -> u32 {
    groups / 2 + 1
}

impl Federation {
    /// The groups of a secure sum, if it has more than one.
    pub fn sum_groups(&self) -> Option<&SumGroups> {
        match &self.mode {
            super::ProtectionMode::GroupedSums(groups) => Some(groups),
            _ => None,
        }
    }

    /// The fewest updates that the strategy's rule has of a committed round, and the most: of sites, or of groups.
    pub(super) fn updates(&self) -> (u32, u32) {
        match self.sum_groups() {
            Some(groups) => (groups.min_groups, groups.groups),
            None => (self.min_sites, self.max_sites),
        }
    }

    /// The fewest sites whose contributions can commit a round.
    pub fn fewest_sites(&self) -> u32 {
        self.sum_groups().map_or(1, |groups| groups.min_groups).saturating_mul(self.min_sites)
    }

    /// What the members of one group of a secure sum hold their roster against; None in other modes.
    pub fn sum_terms<'a>(&self, members: &'a [SiteId]) -> Option<Terms<'a>> {
        let colluding = self.secure_sum()?.colluding_sites;
        Some(Terms { members, threshold: self.min_sites, colluding })
    }
}

impl JobContract {
    /// The members of each sum of a round, ascending: one list, or one a group; none in other modes.
    pub fn grouped_members(&self) -> Vec<Vec<SiteId>> {
        let Some(sum) = self.federation.secure_sum() else { return Vec::new() };
        let Some(SumGroups { groups, .. }) = self.federation.sum_groups() else {
            return vec![sum.members.clone()];
        };
        let place = |site: &SiteId| {
            let bytes = [b"weighhouse secure sum groups v1\0", &self.nonce[..], site.as_bytes()].concat();
            (ContentHash::of(&bytes), *site)
        };
        let mut places: Vec<_> = sum.members.iter().map(place).collect();
        places.sort_unstable();
        let mut lists = vec![Vec::new(); (*groups as usize).max(1)];
        let count = lists.len();
        for (at, (_, site)) in places.into_iter().enumerate() {
            lists[at % count].push(site);
        }
        lists.iter_mut().for_each(|members| members.sort_unstable());
        lists
    }

    /// The members of the sum that `site` is in, itself among them; None if it is in none.
    pub fn group_of_member(&self, site: SiteId) -> Option<Vec<SiteId>> {
        self.grouped_members().into_iter().find(|members| members.binary_search(&site).is_ok())
    }
}
