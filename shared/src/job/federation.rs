//! Who takes part in a job's rounds, when they close, and what is made of them: what a person asks for, where most keys may
//! be left out, and what the contract fixes.

use super::secure_sum::{self, SecureSum};
use super::strategy::StrategyAsked;
use super::sum_groups::SumGroups;
use super::{JobError, MAX_COMPARED_SITES, Rule, Strategy, StrategyName, Training, range};
use crate::compression::Compression;
use crate::ids::SiteId;
use serde::{Deserialize, Serialize};

/// The `[federation]` of a job file. A key that its `strategy` does not know is refused, not ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FederationAsked {
    /// How a site's contribution is protected.
    pub mode: ModeName,
    /// A round with fewer contributions is not committed; left out: 2, for secure_sum 85 % of the members. With groups
    /// this is of each group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_sites: Option<u32>,
    /// For site: a job takes the first this many sites that accept it; left out: 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sites: Option<u32>,
    /// For secure_sum: sites that may be in league with the coordinator; left out: a third of the members. With groups
    /// this is of each group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colluding_sites: Option<u32>,
    /// For secure_sum: groups of members, each with a sum of its own, to whose means the strategy is applied; left out: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<u32>,
    /// For groups above 1: a round of which fewer groups' sums are opened is not committed; left out: more than half, or
    /// what the strategy needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_groups: Option<u32>,
    /// Seconds a round stays open at least; a site that comes in that time takes part in it.
    pub min_time_s: u32,
    /// Seconds after which a round closes, whoever is missing.
    pub max_time_s: u32,
    /// Seconds that a round with enough contributions waits for the others after the last sign of progress.
    pub max_idle_s: u32,
    /// When the coordinator steps.
    pub schedule: ScheduleName,
    /// For buffered: updates in a step; left out: `min_sites`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_size: Option<u32>,
    /// How the sites' updates move the global model.
    pub strategy: StrategyName,
    /// For fedavgm, fedadagrad, fedadam and fedyogi; left out: 0.1 for fedavgm, 0.05 for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_learning_rate: Option<f64>,
    /// For fedavgm; left out: 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_momentum: Option<f64>,
    /// For fedadam and fedyogi; left out: 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_beta1: Option<f64>,
    /// For fedadam and fedyogi; left out: 0.99.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_beta2: Option<f64>,
    /// For fedadagrad, fedadam and fedyogi; left out: 1e-3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_epsilon: Option<f64>,
    /// For trimmed_mean: share of the updates left out at each end of each parameter; left out: 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trim_share: Option<f64>,
    /// For krum, multi_krum and bulyan: hostile sites allowed for, or with groups groups that have any; left out: as many
    /// as `min_sites` or `min_groups` allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostile_sites: Option<u32>,
    /// L2 norm to which the coordinator scales down each site's update, or with groups each group's; left out: as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_bound: Option<f64>,
    /// How updates travel.
    pub compression: CompressionName,
    /// For top_k: share of the values that are sent; left out: 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k_share: Option<f64>,
}

/// Ways to protect a site's contribution, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeName {
    /// [`ProtectionMode::Site`].
    #[default]
    Site,
    /// [`ProtectionMode::SecureSum`].
    SecureSum,
}

/// When the coordinator steps, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// [`FederationSchedule::Synchronous`].
    #[default]
    Synchronous,
    /// [`FederationSchedule::Buffered`].
    Buffered,
}

/// Ways for updates to travel, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompressionName {
    /// [`Compression::None`].
    #[default]
    None,
    /// [`Compression::Int8`].
    Int8,
    /// [`Compression::Int4`].
    Int4,
    /// [`Compression::TopK`].
    TopK,
}

impl Default for FederationAsked {
    fn default() -> Self {
        Self {
            mode: ModeName::Site,
            min_sites: None,
            max_sites: None,
            colluding_sites: None,
            groups: None,
            min_groups: None,
            min_time_s: 0,
            max_time_s: 600,
            max_idle_s: 120,
            schedule: ScheduleName::Synchronous,
            buffer_size: None,
            strategy: StrategyName::FedAvg,
            server_learning_rate: None,
            server_momentum: None,
            server_beta1: None,
            server_beta2: None,
            server_epsilon: None,
            trim_share: None,
            hostile_sites: None,
            norm_bound: None,
            compression: CompressionName::None,
            top_k_share: None,
        }
    }
}

impl FederationAsked {
    /// Every number fixed, none checked but for keys that do not go with what was chosen; `members` is who may take part
    /// in a secure sum.
    pub(super) fn fixed(&self, members: &[SiteId]) -> Result<Federation, JobError> {
        let Self { min_time_s, max_time_s, max_idle_s, norm_bound, .. } = *self;
        let stray = |field, belongs_to| Err(JobError::Stray { field, belongs_to });
        let summed = "mode = \"secure_sum\"";
        let fixed = match self.mode {
            ModeName::Site if self.colluding_sites.is_some() => {
                return stray("federation.colluding_sites", summed);
            }
            ModeName::Site if self.groups.is_some() => return stray("federation.groups", summed),
            ModeName::Site | ModeName::SecureSum
                if self.min_groups.is_some() && self.groups.is_none_or(|groups| groups == 1) =>
            {
                return stray("federation.min_groups", "federation.groups above 1");
            }
            ModeName::SecureSum if self.max_sites.is_some() => {
                return stray("federation.max_sites", "mode = \"site\"");
            }
            ModeName::Site => {
                let (min_sites, max_sites) = (self.min_sites.unwrap_or(2), self.max_sites.unwrap_or(10_000));
                secure_sum::Fixed { mode: ProtectionMode::Site, min_sites, max_sites, updates: min_sites }
            }
            ModeName::SecureSum => secure_sum::Asked {
                min_sites: self.min_sites,
                colluding_sites: self.colluding_sites,
                groups: self.groups.unwrap_or(1),
                min_groups: self.min_groups,
            }
            .fixed(members),
        };
        let secure_sum::Fixed { mut mode, min_sites, max_sites, updates } = fixed;
        let strategy = StrategyAsked {
            name: self.strategy,
            learning_rate: self.server_learning_rate,
            momentum: self.server_momentum,
            beta1: self.server_beta1,
            beta2: self.server_beta2,
            epsilon: self.server_epsilon,
            trim_share: self.trim_share,
            hostile_sites: self.hostile_sites,
        }
        .fixed(updates)?;
        if let (ProtectionMode::GroupedSums(sums), None) = (&mut mode, self.min_groups) {
            sums.min_groups = updates.max(strategy.rule().min_updates()).min(sums.groups);
        }
        let schedule = match (self.schedule, self.buffer_size) {
            (ScheduleName::Buffered, size) => {
                FederationSchedule::Buffered { buffer_size: size.unwrap_or(min_sites) }
            }
            (ScheduleName::Synchronous, None) => FederationSchedule::Synchronous,
            (ScheduleName::Synchronous, Some(_)) => {
                return stray("federation.buffer_size", "schedule = \"buffered\"");
            }
        };
        let compression = match (self.compression, self.top_k_share) {
            (CompressionName::TopK, share) => Compression::TopK { share: share.unwrap_or(0.1) },
            (_, Some(_)) => return stray("federation.top_k_share", "compression = \"top_k\""),
            (CompressionName::None, None) => Compression::None,
            (CompressionName::Int8, None) => Compression::Int8,
            (CompressionName::Int4, None) => Compression::Int4,
        };
        Ok(Federation {
            mode,
            min_sites,
            max_sites,
            min_time_s,
            max_time_s,
            max_idle_s,
            schedule,
            strategy,
            norm_bound,
            compression,
        })
    }
}

/// Who takes part in a round, when it closes, and what is made of it: every number fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Federation {
    /// How a site's contribution is protected.
    pub mode: ProtectionMode,
    /// A round with fewer contributions is not committed; in a secure sum by groups, a group's sum of fewer is not opened.
    pub min_sites: u32,
    /// A job takes the first this many sites that accept it.
    pub max_sites: u32,
    /// Seconds a round stays open at least; a site that comes in that time takes part in it.
    pub min_time_s: u32,
    /// Seconds after which a round closes, whoever is missing.
    pub max_time_s: u32,
    /// Seconds that a round with enough contributions waits for the others after the last sign of progress.
    pub max_idle_s: u32,
    /// When the coordinator steps.
    pub schedule: FederationSchedule,
    /// How the sites' updates move the global model.
    pub strategy: Strategy,
    /// L2 norm, in units of the model's parameters, to which the coordinator scales down each site's update, or in a
    /// secure sum by groups each group's.
    pub norm_bound: Option<f64>,
    /// How updates travel.
    pub compression: Compression,
}

impl Federation {
    /// The secure sum, if that is the mode, in however many groups.
    pub fn secure_sum(&self) -> Option<&SecureSum> {
        match &self.mode {
            ProtectionMode::Site => None,
            ProtectionMode::SecureSum(sum) | ProtectionMode::GroupedSums(SumGroups { sum, .. }) => Some(sum),
        }
    }

    /// Checks every number; `training` is what stands beside it.
    pub(super) fn check(&self, training: &Training) -> Result<(), JobError> {
        if let Some(sum) = self.secure_sum() {
            sum.check(self, training)?;
        }
        let Federation { min_sites, max_sites, min_time_s, max_time_s, max_idle_s, strategy, .. } = *self;
        range(
            "federation.min_sites",
            "from 1 to 100000",
            min_sites.into(),
            (1..=100_000).contains(&min_sites),
        )?;
        let max_holds = (min_sites..=100_000).contains(&max_sites);
        range("federation.max_sites", "from min_sites to 100000", max_sites.into(), max_holds)?;
        range(
            "federation.max_time_s",
            "from 1 to 1000000",
            max_time_s.into(),
            (1..=1_000_000).contains(&max_time_s),
        )?;
        let min_holds = min_time_s <= max_time_s;
        range("federation.min_time_s", "from 0 to max_time_s", min_time_s.into(), min_holds)?;
        let idle_holds = (1..=1_000_000).contains(&max_idle_s);
        range("federation.max_idle_s", "from 1 to 1000000", max_idle_s.into(), idle_holds)?;
        strategy.check(training.proximal)?;
        self.check_updates()?;
        if let FederationSchedule::Buffered { buffer_size } = self.schedule {
            let holds = (1..=min_sites).contains(&buffer_size);
            range("federation.buffer_size", "from 1 to min_sites", buffer_size.into(), holds)?;
            range(
                "federation.min_time_s",
                "0 with schedule = \"buffered\"",
                min_time_s.into(),
                min_time_s == 0,
            )?;
            if strategy.rule() != Rule::Mean {
                return Err(JobError::NotBuffered { strategy: strategy.name() });
            }
        }
        if let Compression::TopK { share } = self.compression {
            let holds = (1e-6..=1.0).contains(&share);
            range("federation.top_k_share", "from 1e-6 to 1", share, holds)?;
        }
        if let Some(bound) = self.norm_bound {
            let holds = bound > 0.0 && bound <= 1e6;
            range("federation.norm_bound", "above 0 and at most 1e6", bound, holds)?;
        }
        Ok(())
    }

    /// Checks that the strategy's rule has enough updates, and not too many.
    fn check_updates(&self) -> Result<(), JobError> {
        let (fewest, most) = self.updates();
        let (rule, strategy) = (self.strategy.rule(), self.strategy.name());
        if rule.compares_all() {
            let allowed =
                "at most 1000 with krum, multi_krum and bulyan, which compare all updates with one another";
            range("federation.max_sites", allowed, most.into(), most <= MAX_COMPARED_SITES)?;
        }
        let needs = rule.min_updates();
        if fewest >= needs {
            return Ok(());
        }
        let why = match rule {
            Rule::TrimmedMean(_) => "1 / trim_share, or it trims nothing",
            Rule::Bulyan(_) => "4 hostile_sites + 3",
            _ => "2 hostile_sites + 3",
        };
        Err(match self.sum_groups() {
            None => JobError::TooFewSites { strategy, needs, why, min_sites: fewest },
            Some(_) => JobError::TooFewGroups { strategy, needs, why, min_groups: fewest, groups: most },
        })
    }
}

/// When the coordinator steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum FederationSchedule {
    /// Once a round: all sites train from one model, and the round closes.
    #[default]
    Synchronous,
    /// Buffered asynchronous aggregation (Nguyen et al. 2022, "FedBuff"): each site trains from the newest model at its
    /// own pace, and the coordinator steps whenever so many updates have come in. A site's round is then the number of
    /// its own update: it releases, and is charged for, at most `training.rounds` of them, as in the other schedule.
    Buffered {
        /// Updates in a step.
        buffer_size: u32,
    },
}

/// One, in units of [`staleness_weight`].
pub const WHOLE_WEIGHT: u32 = 1 << 16;

/// What an update counts that was trained from a model `staleness` versions old: 1 / sqrt(1 + staleness) as in FedBuff,
/// rounded to units of 1 / [`WHOLE_WEIGHT`]. A public function of public numbers.
pub fn staleness_weight(staleness: u32) -> u32 {
    (f64::from(WHOLE_WEIGHT) / (1.0 + f64::from(staleness)).sqrt()).round() as u32
}

/// How a site's contribution is protected before it leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProtectionMode {
    /// The site's update is differentially private on its own.
    Site,
    /// The coordinator learns only the sum over the sites of a round, which is differentially private.
    SecureSum(SecureSum),
    /// The coordinator learns only the sum over the sites of each group, and applies the strategy to the groups' means.
    GroupedSums(SumGroups),
}
