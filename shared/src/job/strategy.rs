//! How a round's updates become one step of the global model: the strategy by its usual name, with its numbers.
//!
//! A strategy is one rule over the sites' updates and one step of the coordinator with what the rule gives. The
//! averaging ones differ in the step, the robust ones in the rule; `norm_bound` goes with all of them.

use super::{JobError, range};
use crate::model::ServerOptimizer;
use serde::{Deserialize, Serialize};

/// The most sites in a job whose strategy compares every update with every other.
pub const MAX_COMPARED_SITES: u32 = 1_000;

/// The strategies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StrategyName {
    /// [`Strategy::FedAvg`].
    #[default]
    FedAvg,
    /// [`Strategy::FedProx`].
    FedProx,
    /// [`Strategy::FedAvgM`].
    FedAvgM,
    /// [`Strategy::FedAdagrad`].
    FedAdagrad,
    /// [`Strategy::FedAdam`].
    FedAdam,
    /// [`Strategy::FedYogi`].
    FedYogi,
    /// [`Strategy::FedMedian`].
    FedMedian,
    /// [`Strategy::TrimmedMean`].
    #[serde(rename = "trimmed_mean")]
    TrimmedMean,
    /// [`Strategy::Krum`].
    Krum,
    /// [`Strategy::MultiKrum`].
    #[serde(rename = "multi_krum")]
    MultiKrum,
    /// [`Strategy::Bulyan`].
    Bulyan,
}

/// A strategy with every number fixed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Strategy {
    /// The mean is added to the model (McMahan et al. 2017).
    #[default]
    FedAvg,
    /// The same, with local steps pulled back to the round's model by `training.proximal` (Li et al. 2020).
    FedProx,
    /// The mean with momentum over rounds (Hsu et al. 2019).
    FedAvgM {
        /// Step size.
        learning_rate: f64,
        /// What is kept of earlier rounds' means.
        momentum: f64,
    },
    /// The mean over the root of all squares so far (Reddi et al. 2021).
    FedAdagrad {
        /// Step size.
        learning_rate: f64,
        /// The paper's tau.
        epsilon: f64,
    },
    /// Adam over rounds (Reddi et al. 2021).
    FedAdam {
        /// Step size.
        learning_rate: f64,
        /// Decay of the means' running mean.
        beta1: f64,
        /// Decay of their squares' running mean.
        beta2: f64,
        /// The paper's tau.
        epsilon: f64,
    },
    /// Yogi over rounds (Reddi et al. 2021).
    FedYogi {
        /// Step size.
        learning_rate: f64,
        /// Decay of the means' running mean.
        beta1: f64,
        /// Decay of their squares' running mean.
        beta2: f64,
        /// The paper's tau.
        epsilon: f64,
    },
    /// The median of each parameter (Yin et al. 2018).
    FedMedian,
    /// The mean of each parameter without its largest and smallest values (Yin et al. 2018).
    #[serde(rename = "trimmed_mean")]
    TrimmedMean {
        /// Share of the updates left out at each end.
        trim_share: f64,
    },
    /// The one update that is closest to its neighbours (Blanchard et al. 2017).
    Krum {
        /// Hostile sites that it allows for.
        hostile_sites: u32,
    },
    /// The mean of the updates that are closest to their neighbours (Blanchard et al. 2017).
    #[serde(rename = "multi_krum")]
    MultiKrum {
        /// Hostile sites that it allows for.
        hostile_sites: u32,
    },
    /// Krum again and again, then in each parameter the mean around the median (El Mhamdi et al. 2018).
    Bulyan {
        /// Hostile sites that it allows for.
        hostile_sites: u32,
    },
}

/// What one update is made of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Their mean.
    Mean,
    /// Each parameter's median.
    Median,
    /// Each parameter's mean without this share of the values at each end.
    TrimmedMean(f64),
    /// Of n updates the one whose n - f - 2 nearest others are nearest, f this number.
    Krum(u32),
    /// The mean of the n - f best by the same score.
    MultiKrum(u32),
    /// Of the n - 2 f that Krum picks one after the other, each parameter's mean of the n - 4 f values that are closest
    /// to their median.
    Bulyan(u32),
}

impl Rule {
    /// The fewest updates of which it withstands what it allows for.
    pub fn min_updates(self) -> u32 {
        match self {
            Self::Mean | Self::Median => 1,
            Self::TrimmedMean(share) => (1.0 / share).ceil() as u32,
            Self::Krum(hostile) | Self::MultiKrum(hostile) => hostile.saturating_mul(2).saturating_add(3),
            Self::Bulyan(hostile) => hostile.saturating_mul(4).saturating_add(3),
        }
    }

    /// Whether it compares every update with every other.
    pub fn compares_all(self) -> bool {
        matches!(self, Self::Krum(_) | Self::MultiKrum(_) | Self::Bulyan(_))
    }
}

impl Strategy {
    /// What it makes of a round's updates.
    pub fn rule(self) -> Rule {
        match self {
            Self::FedAvg
            | Self::FedProx
            | Self::FedAvgM { .. }
            | Self::FedAdagrad { .. }
            | Self::FedAdam { .. }
            | Self::FedYogi { .. } => Rule::Mean,
            Self::FedMedian => Rule::Median,
            Self::TrimmedMean { trim_share } => Rule::TrimmedMean(trim_share),
            Self::Krum { hostile_sites } => Rule::Krum(hostile_sites),
            Self::MultiKrum { hostile_sites } => Rule::MultiKrum(hostile_sites),
            Self::Bulyan { hostile_sites } => Rule::Bulyan(hostile_sites),
        }
    }

    /// How the coordinator steps with it.
    pub fn server_optimizer(self) -> ServerOptimizer {
        match self {
            Self::FedAvgM { learning_rate, momentum } => {
                ServerOptimizer::Momentum { learning_rate, momentum }
            }
            Self::FedAdagrad { learning_rate, epsilon } => {
                ServerOptimizer::Adagrad { learning_rate, epsilon }
            }
            Self::FedAdam { learning_rate, beta1, beta2, epsilon } => {
                ServerOptimizer::Adam { learning_rate, beta1, beta2, epsilon }
            }
            Self::FedYogi { learning_rate, beta1, beta2, epsilon } => {
                ServerOptimizer::Yogi { learning_rate, beta1, beta2, epsilon }
            }
            _ => ServerOptimizer::Plain,
        }
    }

    /// Its name in job files.
    pub fn name(self) -> &'static str {
        match self {
            Self::FedAvg => "fedavg",
            Self::FedProx => "fedprox",
            Self::FedAvgM { .. } => "fedavgm",
            Self::FedAdagrad { .. } => "fedadagrad",
            Self::FedAdam { .. } => "fedadam",
            Self::FedYogi { .. } => "fedyogi",
            Self::FedMedian => "fedmedian",
            Self::TrimmedMean { .. } => "trimmed_mean",
            Self::Krum { .. } => "krum",
            Self::MultiKrum { .. } => "multi_krum",
            Self::Bulyan { .. } => "bulyan",
        }
    }

    /// Checks every number. The ranges keep a finite model finite for as many rounds as a job can have.
    pub(super) fn check(self, proximal: f64) -> Result<(), JobError> {
        let rate = |value: f64| {
            let holds = value > 0.0 && value <= 100.0;
            range("federation.server_learning_rate", "above 0 and at most 100", value, holds)
        };
        let decay = |field, value: f64| range(field, "from 0 to below 1", value, (0.0..1.0).contains(&value));
        let tau = |value: f64| {
            range("federation.server_epsilon", "from 1e-12 to 1", value, (1e-12..=1.0).contains(&value))
        };
        match self {
            Self::FedAvg if proximal > 0.0 => {
                let belongs_to = "strategy = \"fedprox\", or another than \"fedavg\",";
                return Err(JobError::Stray { field: "training.proximal", belongs_to });
            }
            Self::FedProx => {
                range("training.proximal", "above 0 with strategy = \"fedprox\"", proximal, proximal > 0.0)?;
            }
            Self::FedAvgM { learning_rate, momentum } => {
                rate(learning_rate)?;
                let holds = (0.0..=0.9999).contains(&momentum);
                range("federation.server_momentum", "from 0 to 0.9999", momentum, holds)?;
            }
            Self::FedAdagrad { learning_rate, epsilon } => {
                rate(learning_rate)?;
                tau(epsilon)?;
            }
            Self::FedAdam { learning_rate, beta1, beta2, epsilon }
            | Self::FedYogi { learning_rate, beta1, beta2, epsilon } => {
                rate(learning_rate)?;
                decay("federation.server_beta1", beta1)?;
                decay("federation.server_beta2", beta2)?;
                tau(epsilon)?;
            }
            Self::TrimmedMean { trim_share } => {
                let holds = (1e-5..0.5).contains(&trim_share);
                range("federation.trim_share", "from 1e-5 to below 0.5", trim_share, holds)?;
            }
            Self::Krum { hostile_sites }
            | Self::MultiKrum { hostile_sites }
            | Self::Bulyan { hostile_sites } => {
                let holds = (1..=MAX_COMPARED_SITES).contains(&hostile_sites);
                range("federation.hostile_sites", "from 1 to 1000", hostile_sites.into(), holds)?;
            }
            Self::FedAvg | Self::FedMedian => {}
        }
        Ok(())
    }
}

/// The strategy and its numbers as asked for: keys of `[federation]`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct StrategyAsked {
    pub name: StrategyName,
    pub learning_rate: Option<f64>,
    pub momentum: Option<f64>,
    pub beta1: Option<f64>,
    pub beta2: Option<f64>,
    pub epsilon: Option<f64>,
    pub trim_share: Option<f64>,
    pub hostile_sites: Option<u32>,
}

impl StrategyAsked {
    /// Every number fixed, none checked but for keys that do not go with the strategy. Hostile sites that are left out
    /// are as many as `updates` of a round allow.
    pub fn fixed(self, updates: u32) -> Result<Strategy, JobError> {
        use StrategyName as N;
        let name = self.name;
        let adaptive = matches!(name, N::FedAdam | N::FedYogi);
        let steps = adaptive || matches!(name, N::FedAvgM | N::FedAdagrad);
        let compares = matches!(name, N::Krum | N::MultiKrum | N::Bulyan);
        stray(
            "federation.server_learning_rate",
            "strategy = \"fedavgm\", \"fedadagrad\", \"fedadam\" or \"fedyogi\"",
            steps,
            self.learning_rate.is_some(),
        )?;
        let heavy = name == N::FedAvgM;
        stray("federation.server_momentum", "strategy = \"fedavgm\"", heavy, self.momentum.is_some())?;
        let adam = "strategy = \"fedadam\" or \"fedyogi\"";
        stray("federation.server_beta1", adam, adaptive, self.beta1.is_some())?;
        stray("federation.server_beta2", adam, adaptive, self.beta2.is_some())?;
        stray(
            "federation.server_epsilon",
            "strategy = \"fedadagrad\", \"fedadam\" or \"fedyogi\"",
            steps && !heavy,
            self.epsilon.is_some(),
        )?;
        let trims = name == N::TrimmedMean;
        stray("federation.trim_share", "strategy = \"trimmed_mean\"", trims, self.trim_share.is_some())?;
        stray(
            "federation.hostile_sites",
            "strategy = \"krum\", \"multi_krum\" or \"bulyan\"",
            compares,
            self.hostile_sites.is_some(),
        )?;
        let learning_rate = self.learning_rate.unwrap_or(if heavy { 0.1 } else { 0.05 });
        let (beta1, beta2) = (self.beta1.unwrap_or(0.9), self.beta2.unwrap_or(0.99));
        let epsilon = self.epsilon.unwrap_or(1e-3);
        let share = if name == N::Bulyan { 4 } else { 2 };
        let allowed = (updates.saturating_sub(3) / share).max(1);
        let hostile_sites = self.hostile_sites.unwrap_or(allowed);
        Ok(match name {
            N::FedAvg => Strategy::FedAvg,
            N::FedProx => Strategy::FedProx,
            N::FedAvgM => Strategy::FedAvgM { learning_rate, momentum: self.momentum.unwrap_or(0.9) },
            N::FedAdagrad => Strategy::FedAdagrad { learning_rate, epsilon },
            N::FedAdam => Strategy::FedAdam { learning_rate, beta1, beta2, epsilon },
            N::FedYogi => Strategy::FedYogi { learning_rate, beta1, beta2, epsilon },
            N::FedMedian => Strategy::FedMedian,
            N::TrimmedMean => Strategy::TrimmedMean { trim_share: self.trim_share.unwrap_or(0.2) },
            N::Krum => Strategy::Krum { hostile_sites },
            N::MultiKrum => Strategy::MultiKrum { hostile_sites },
            N::Bulyan => Strategy::Bulyan { hostile_sites },
        })
    }
}

fn stray(field: &'static str, belongs_to: &'static str, belongs: bool, given: bool) -> Result<(), JobError> {
    if given && !belongs { Err(JobError::Stray { field, belongs_to }) } else { Ok(()) }
}
