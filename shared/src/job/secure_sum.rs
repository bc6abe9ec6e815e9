//! The protection mode `secure_sum`: who may take part, how few survivors commit a round, and how many sites may collude
//! with the coordinator without the noise falling short.
//!
//! Written with n members, a threshold t (`federation.min_sites`) and c colluding sites. `h = t - c` shares of the noise
//! are honest in every sum that is ever opened, so each site's share is made for that number. `2 t > n + c`: two lists
//! of survivors that t sites each agreed to have more than c sites in common, one of them honest, and an honest site
//! agrees to one list a round. With several groups all of this is of each: n is the members of the largest one, and t is at
//! most those of the smallest ([`sum_groups`](super::sum_groups)).

use super::sum_groups::{self, SumGroups};
use super::{Federation, FederationSchedule, JobContract, JobError, ProtectionMode, Rule, Training, range};
use crate::compression::Compression;
use crate::ids::SiteId;
use crate::model::Optimizer;
use crate::privacy::NoiseMultiplier;
use crate::privacy::accountant::GaussianEvent;
use crate::privacy::grid::Clipping;
use crate::privacy::noise_share::{SumEncoding, SumEncodingError, SumTerms};
use crate::secure_sum::graph::Graph;
use serde::{Deserialize, Serialize};

/// Fewest members: below three, whoever knows one addend knows the other.
pub const MIN_MEMBERS: usize = 3;

/// Most members: each takes its part of the 32 bits of a sum's integers, and the contract names all of them, 32 bytes
/// each, to all of them.
pub const MAX_MEMBERS: usize = 1024;

/// What the mode fixes beside the rest of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecureSum {
    /// The sites that may take part, ascending, each once: hashes of the keys that sign what the sites say of their
    /// exchange keys. The operator signs them with the contract, so the coordinator alone can add none.
    pub members: Vec<SiteId>,
    /// Members that may be in league with the coordinator; with groups, of each group.
    pub colluding_sites: u32,
}

/// Survivors below which a round of `members` comes to nothing, of who does not say: 85 %, rounded up.
fn default_threshold(members: usize) -> u32 {
    u32::try_from((members * 85).div_ceil(100)).unwrap_or(u32::MAX)
}

/// The mode's keys as asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub min_sites: Option<u32>,
    pub colluding_sites: Option<u32>,
    /// 1 if there are none.
    pub groups: u32,
    pub min_groups: Option<u32>,
}

/// The mode with every number fixed but what its strategy needs.
#[derive(Debug)]
pub(super) struct Fixed {
    pub mode: ProtectionMode,
    pub min_sites: u32,
    pub max_sites: u32,
    /// Updates that the strategy is sure to have: of sites, or of groups.
    pub updates: u32,
}

impl Asked {
    /// None checked. What is left out follows from the smallest group.
    pub fn fixed(self, members: &[SiteId]) -> Fixed {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        let max_sites = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let (smallest, _) = sum_groups::sizes(members.len(), self.groups);
        let third = u32::try_from(smallest / 3).unwrap_or(u32::MAX);
        let min_sites = self.min_sites.unwrap_or(default_threshold(smallest));
        let sum = SecureSum { members, colluding_sites: self.colluding_sites.unwrap_or(third) };
        if self.groups == 1 {
            return Fixed { mode: ProtectionMode::SecureSum(sum), min_sites, max_sites, updates: min_sites };
        }
        let groups = self.groups;
        let min_groups = self.min_groups.unwrap_or(sum_groups::default_min_groups(groups));
        let mode = ProtectionMode::GroupedSums(SumGroups { sum, groups, min_groups });
        Fixed { mode, min_sites, max_sites, updates: min_groups }
    }
}

impl SecureSum {
    /// Whether `site` may take part.
    pub fn is_member(&self, site: SiteId) -> bool {
        self.members.binary_search(&site).is_ok()
    }

    /// Shares of the noise that are in every opened sum and unknown to those who collude, if at least `threshold`
    /// survivors make one: 0 if there is none.
    pub fn honest_shares(&self, threshold: u32) -> u32 {
        threshold.saturating_sub(self.colluding_sites)
    }

    /// Checks the mode's own numbers and what stands beside it in the contract.
    pub(super) fn check(&self, federation: &Federation, training: &Training) -> Result<(), JobError> {
        let count = self.members.len();
        if !(MIN_MEMBERS..=MAX_MEMBERS).contains(&count) {
            return Err(JobError::Members { got: count });
        }
        if !self.members.is_sorted_by(|first, second| first < second) {
            return Err(JobError::MemberOrder);
        }
        let all = federation.max_sites as usize == count;
        range("federation.max_sites", "the number of members", federation.max_sites.into(), all)?;
        let (of_all, in_each) =
            ("from 1 to the number of members", "from 1 to the members of the smallest group");
        let (smallest, largest, bounds, whose) = match federation.sum_groups() {
            None => (count, count, of_all, ""),
            Some(groups) => {
                groups.check()?;
                let (smallest, largest) = groups.sizes();
                (smallest, largest, in_each, " in a group")
            }
        };
        let (n, t, c) = (largest as u32, federation.min_sites, self.colluding_sites);
        range("federation.min_sites", bounds, t.into(), (1..=smallest as u32).contains(&t))?;
        let least = (n.saturating_add(c) / 2 + 1).max(c.saturating_add(1));
        if t < least {
            return Err(JobError::Threshold { members: n, whose, colluding: c, min_sites: t, least });
        }
        // The graph of the sites that come is drawn later. If there is none of all members, it is said now.
        Graph::new(largest, t as usize, c as usize, &[0; 32])?;
        check_beside(federation, training)
    }
}

impl JobContract {
    /// The grid and range of the secure sum's integers, for a model of `parameters` parameters; None in other modes.
    pub fn sum_encoding(&self, parameters: usize) -> Result<Option<SumEncoding>, SumEncodingError> {
        let Some(sum) = self.federation.secure_sum() else { return Ok(None) };
        let terms = SumTerms {
            // On one grid, so that the groups' means can be compared.
            members: self.federation.sum_groups().map_or(sum.members.len(), |groups| groups.sizes().1) as u32,
            honest_shares: sum.honest_shares(self.federation.min_sites),
            batch: self.training.expected_batch(),
            parameters: parameters as u64,
            rounds: self.training.rounds,
            noise_multiplier: self.privacy.noise_multiplier,
            delta: self.privacy.delta,
            clip_norm: self.privacy.clip_norm,
        };
        SumEncoding::new(terms).map(Some)
    }

    /// What all training would cost a training customer if the masks of a secure sum protected nothing, so that each
    /// site's share of the noise stood alone; None in other modes, which rest on nobody else.
    pub fn local_charge(&self) -> Option<GaussianEvent> {
        let shares = self.federation.secure_sum()?.honest_shares(self.federation.min_sites);
        let charge = self.training_charge();
        let alone = charge.noise_multiplier.value() / f64::from(shares.max(1)).sqrt();
        // Below the least multiplier there is no figure that says anything.
        let noise_multiplier = NoiseMultiplier::new(alone).ok()?;
        Some(GaussianEvent { noise_multiplier, ..charge })
    }
}

/// What cannot be done with a sum whose addends nobody sees, or in one step.
fn check_beside(federation: &Federation, training: &Training) -> Result<(), JobError> {
    let refuse = |holds: bool, what: &'static str, cure: &'static str| {
        if holds { Ok(()) } else { Err(JobError::NotSummed { what, cure }) }
    };
    let grouped = federation.sum_groups().is_some();
    let averages = federation.strategy.rule() == Rule::Mean;
    let cure = "use one that averages, or let it compare the sums of groups: federation.groups = 5";
    refuse(grouped || averages, "a robust strategy: nobody sees the sites' updates", cure)?;
    let unbounded = federation.norm_bound.is_none();
    let cure = "leave it out, or let it bound the means of groups: federation.groups = 5";
    refuse(grouped || unbounded, "federation.norm_bound: nobody sees the sites' updates", cure)?;
    let plain = federation.compression == Compression::None;
    refuse(plain, "compression: masked integers look like chance", "leave it out")?;
    let together = federation.schedule == FederationSchedule::Synchronous;
    refuse(together, "schedule = \"buffered\": a sum needs all its sites at once", "use synchronous")?;
    let one = training.local_steps == 1;
    refuse(one, "training.local_steps above 1: a round is one step over all sites", "use more rounds")?;
    let sgd = matches!(training.optimizer, Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 });
    let cure = "use a strategy with state at the coordinator, such as \"fedavgm\" or \"fedadam\"";
    refuse(sgd, "momentum, weight decay or adam at the sites: the coordinator makes the step", cure)?;
    let free = training.proximal == 0.0;
    refuse(free, "training.proximal: one step from the shared model has no way to go back", "leave it out")?;
    let constant = training.clipping != Clipping::Quantile;
    refuse(constant, "clipping = \"quantile\": all sites clip to one norm", "use fixed or automatic")
}
