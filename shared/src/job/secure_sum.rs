//! The protection mode `secure_sum`: who may take part, how few survivors commit a round, and how many sites may collude
//! with the coordinator without the noise falling short.
//!
//! Written with n members, a threshold t (`federation.min_sites`) and c colluding sites. `h = t - c` shares of the noise
//! are honest in every sum that is ever opened, so each site's share is made for that number. `2 t > n + c`: two lists
//! of survivors that t sites each agreed to have more than c sites in common, one of them honest, and an honest site
//! agrees to one list a round.

use super::{Federation, FederationSchedule, JobContract, JobError, Rule, Training, range};
use crate::compression::Compression;
use crate::ids::SiteId;
use crate::model::Optimizer;
use crate::privacy::NoiseMultiplier;
use crate::privacy::accountant::GaussianEvent;
use crate::privacy::grid::Clipping;
use crate::privacy::noise_share::{SumEncoding, SumEncodingError, SumTerms};
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
    /// Members that may be in league with the coordinator.
    pub colluding_sites: u32,
}

/// Survivors below which a round of `members` comes to nothing, of who does not say: 85 %, rounded up.
pub(super) fn default_threshold(members: usize) -> u32 {
    u32::try_from((members * 85).div_ceil(100)).unwrap_or(u32::MAX)
}

/// The mode as asked for.
pub(super) fn fixed(members: &[SiteId], colluding_sites: Option<u32>) -> SecureSum {
    let mut members = members.to_vec();
    members.sort_unstable();
    members.dedup();
    let third = u32::try_from(members.len() / 3).unwrap_or(u32::MAX);
    SecureSum { members, colluding_sites: colluding_sites.unwrap_or(third) }
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
        let (n, t, c) = (count as u32, federation.min_sites, self.colluding_sites);
        range("federation.min_sites", "from 1 to the number of members", t.into(), (1..=n).contains(&t))?;
        let least = (n.saturating_add(c) / 2 + 1).max(c.saturating_add(1));
        if t < least {
            return Err(JobError::Threshold { members: n, colluding: c, min_sites: t, least });
        }
        let all = federation.max_sites == n;
        range("federation.max_sites", "the number of members", federation.max_sites.into(), all)?;
        check_beside(federation, training)
    }
}

impl JobContract {
    /// The grid and range of the secure sum's integers, for a model of `parameters` parameters; None in other modes.
    pub fn sum_encoding(&self, parameters: usize) -> Result<Option<SumEncoding>, SumEncodingError> {
        let Some(sum) = self.federation.secure_sum() else { return Ok(None) };
        let terms = SumTerms {
            members: self.federation.max_sites,
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
    let averages = federation.strategy.rule() == Rule::Mean;
    refuse(averages, "a robust strategy: nobody sees the sites' updates", "use one that averages")?;
    let unbounded = federation.norm_bound.is_none();
    refuse(unbounded, "federation.norm_bound: nobody sees the sites' updates", "leave it out")?;
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
