//! The job contract: a declarative, content-addressed statement of what is learned, from what, how,
//! and at what cost in privacy. A person writes a [`JobFile`]; [`JobFile::contract`] fixes every
//! number in it; the operator signs the result. No code travels.

mod federation;
mod secure_sum;
mod strategy;
mod sum_groups;
mod training;

pub use federation::{
    CompressionName, Federation, FederationAsked, FederationSchedule, ModeName, ProtectionMode, ScheduleName,
    WHOLE_WEIGHT, staleness_weight,
};
pub use secure_sum::{MAX_MEMBERS, MIN_MEMBERS, SecureSum};
pub use strategy::{MAX_COMPARED_SITES, Rule, Strategy, StrategyName};
pub use sum_groups::{MAX_GROUPS, SumGroups};
pub use training::{OptimizerName, Training, TrainingAsked};

use crate::compression::Encoding;
use crate::ids::{JobId, SiteId};
use crate::model::{ModelSpec, Network, ServerState};
use crate::privacy::accountant::{self, GaussianEvent};
use crate::privacy::grid::{Clipping, Grid, MAX_CUSTOMER_ROWS};
use crate::privacy::noise_share::{SumEncodingError, left_for_noise};
use crate::privacy::{ClipNorm, Delta, Epsilon, NoiseMultiplier, SamplingRate};
use crate::schema::{LabelKind, Schema, SchemaError};
use crate::secure_sum::graph::GraphError;
use crate::wire::codec;
use serde::{Deserialize, Serialize};

/// One unit of an update's integers, in units of the model's parameters.
///
/// Updates travel as 32-bit integers at this step: a public constant, so no scale leaks and sums are
/// exact. Values beyond [`UPDATE_LIMIT`] steps are saturated at the site.
pub const UPDATE_STEP: f64 = 1.0 / (1 << 20) as f64;

/// The largest magnitude of one integer of an update: a change of 512 in one parameter. Sums over
/// fewer than 2^34 sites cannot overflow 64 bits.
pub const UPDATE_LIMIT: i32 = 1 << 29;

/// Version of the contract's meaning; a site refuses others.
pub const CONTRACT_FORMAT: u16 = 1;

/// What the operator writes (TOML). Everything but the schema and the privacy asked for has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// What people call it.
    pub name: String,
    /// Path of the schema file, relative to the job file.
    pub schema: String,
    /// Which model of the zoo.
    #[serde(default = "default_model")]
    pub model: ModelSpec,
    /// How it is trained.
    #[serde(default)]
    pub training: TrainingAsked,
    /// What it may cost.
    pub privacy: PrivacyAsked,
    /// How its quality is measured at the sites.
    #[serde(default)]
    pub evaluation: EvaluationAsked,
    /// Who takes part, and how long a round waits.
    #[serde(default)]
    pub federation: FederationAsked,
}

fn default_model() -> ModelSpec {
    ModelSpec::Logistic {}
}

/// The privacy an operator asks for, for each customer of each site, over the whole job: either the
/// epsilon that the noise is made for, or the noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyAsked {
    /// Largest privacy loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<Epsilon>,
    /// Noise of each training step, in units of the clip norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_multiplier: Option<NoiseMultiplier>,
    /// Probability with which the privacy loss may be larger.
    pub delta: Delta,
    /// L2 norm to which a customer's gradient is clipped; left out: 0.5, by automatic clipping unless with mode =
    /// "secure_sum".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<ClipNorm>,
}

/// The clip norm of those who do not choose one.
const DEFAULT_CLIP_NORM: f64 = 0.5;

/// How quality is measured at the sites: noised histograms of how predictions for held-out customers meet their labels,
/// see [`evaluation`](crate::evaluation).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationAsked {
    /// Rounds between evaluations; 0 for none. The final model is always evaluated unless this is 0.
    pub every: u32,
    /// Bins of each side of the histogram.
    pub bins: u32,
}

impl Default for EvaluationAsked {
    fn default() -> Self {
        Self { every: 5, bins: 20 }
    }
}

/// The contract of one job: every number fixed. Its canonical bytes are what is hashed and signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobContract {
    /// [`CONTRACT_FORMAT`].
    pub format: u16,
    /// What people call it.
    pub name: String,
    /// Makes two submissions of one file two jobs.
    pub nonce: [u8; 16],
    /// The columns it needs.
    pub schema: Schema,
    /// Which model of the zoo.
    pub model: ModelSpec,
    /// How it is trained.
    pub training: Training,
    /// What it costs.
    pub privacy: Privacy,
    /// How quality is measured, if it is.
    pub evaluation: Option<Evaluation>,
    /// Who takes part.
    pub federation: Federation,
}

/// What a job costs each customer, and the noise that pays for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// The claim for the whole job.
    pub epsilon: Epsilon,
    /// The claim's failure probability.
    pub delta: Delta,
    /// L2 norm to which a customer's gradient is clipped.
    pub clip_norm: ClipNorm,
    /// Noise of each training step, in units of the clip norm.
    pub noise_multiplier: NoiseMultiplier,
}

/// When quality is measured, and the noise that pays for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Rounds between evaluations.
    pub every: u32,
    /// Bins of each side of the histogram.
    pub bins: u32,
    /// Noise of each histogram, in units of one customer's contribution.
    pub noise_multiplier: NoiseMultiplier,
}

/// What a site does in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTask {
    /// Train, and send an update.
    pub train: bool,
    /// Score held-out customers with the round's model, and send a histogram.
    pub evaluate: bool,
}

/// Why a job cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JobError {
    /// The schema is at fault.
    #[error("the job's schema is not valid")]
    Schema(#[from] SchemaError),
    /// The model is at fault.
    #[error("the job's model is not valid: {reason}")]
    Model {
        /// What the model builder said.
        reason: String,
    },
    /// The name is empty, too long, or could draw on the terminals of those who decide about the job.
    #[error("the job's name must be 1 to 128 bytes of text on one line, without control characters")]
    Name,
    /// A number out of its range.
    #[error("{field} must be {range}, got {got}")]
    Range {
        /// Where it stands in the job file.
        field: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it is.
        got: f64,
    },
    /// More of one customer than a clipped sum takes.
    #[error(
        "training.max_rows_per_customer = {rows} with {each} {what} a row is more than {MAX_CUSTOMER_ROWS} a customer; \
         lower max_rows_per_customer to {}, or {instead}",
        MAX_CUSTOMER_ROWS / each
    )]
    CustomerRows {
        /// Rows of a customer.
        rows: usize,
        /// What each has several of.
        what: &'static str,
        /// How many of it.
        each: usize,
        /// What else could be lower.
        instead: &'static str,
    },
    /// A key that does nothing with what was chosen beside it.
    #[error("{field} goes with {belongs_to} only; leave it out")]
    Stray {
        /// Where it stands in the job file.
        field: &'static str,
        /// What it goes with.
        belongs_to: &'static str,
    },
    /// The fewest sites of a round are too few for what the strategy has to withstand.
    #[error(
        "strategy \"{strategy}\" needs at least {needs} sites in a round ({why}), federation.min_sites is {min_sites}; raise it"
    )]
    TooFewSites {
        /// The strategy's name.
        strategy: &'static str,
        /// How many it needs.
        needs: u32,
        /// By which rule.
        why: &'static str,
        /// How many there may be.
        min_sites: u32,
    },
    /// The fewest groups of a round are too few for what the strategy has to withstand.
    #[error(
        "strategy \"{strategy}\" needs the sums of at least {needs} groups in a round ({why}), federation.min_groups is {min_groups} \
         of {groups} groups; raise it, with more groups if need be"
    )]
    TooFewGroups {
        /// The strategy's name.
        strategy: &'static str,
        /// How many it needs.
        needs: u32,
        /// By which rule.
        why: &'static str,
        /// How few may be opened.
        min_groups: u32,
        /// How many there are.
        groups: u32,
    },
    /// The strategy compares updates of one model, which buffered ones are not.
    #[error(
        "strategy \"{strategy}\" does not go with schedule = \"buffered\"; use one that averages, or synchronous"
    )]
    NotBuffered {
        /// The strategy's name.
        strategy: &'static str,
    },
    /// Too few or too many sites for a secure sum.
    #[error(
        "mode = \"secure_sum\" needs {MIN_MEMBERS} to {MAX_MEMBERS} sites that have joined, there are {got}; invite more with \
         `weighhouse site invite`, or use mode = \"site\""
    )]
    Members {
        /// How many there are.
        got: usize,
    },
    /// A group would have too few members.
    #[error(
        "federation.groups = {groups} leaves a group with fewer than {MIN_MEMBERS} of {members} members; use at most {most} \
         group{}, or invite more sites with `weighhouse site invite`",
        if *most == 1 { "" } else { "s" }
    )]
    Groups {
        /// How many members there are.
        members: usize,
        /// How many groups are asked for.
        groups: u32,
        /// How many there may be.
        most: usize,
    },
    /// They cannot share masks.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Members out of order, or one twice.
    #[error("the contract's members must ascend, each once; make it anew with `weighhouse job submit`")]
    MemberOrder,
    /// Two lists of survivors could both be agreed upon, or no share of the noise would be honest.
    #[error(
        "with {members} members{whose} of which {colluding} may collude, federation.min_sites must be at least {least}, got \
         {min_sites}; raise it, or lower federation.colluding_sites"
    )]
    Threshold {
        /// How many may take part in one sum.
        members: u32,
        /// Where they are: "" or " in a group".
        whose: &'static str,
        /// How many may collude.
        colluding: u32,
        /// How few are to commit a round.
        min_sites: u32,
        /// The fewest that may.
        least: u32,
    },
    /// The integers of the secure sum cannot be.
    #[error(transparent)]
    Encoding(#[from] SumEncodingError),
    /// What cannot be beside a secure sum.
    #[error("mode = \"secure_sum\" does not go with {what}; {cure}")]
    NotSummed {
        /// What it is, and why.
        what: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// Neither or both of epsilon and noise are asked for.
    #[error("[privacy] needs either `epsilon` or `noise_multiplier`, and not both")]
    Asked,
    /// The noise asked for gives no usable epsilon.
    #[error("noise multiplier {noise_multiplier} gives epsilon {got}: ask for more noise or fewer rounds", noise_multiplier = noise_multiplier.value())]
    NoEpsilon {
        /// The noise asked for.
        noise_multiplier: NoiseMultiplier,
        /// What it gives.
        got: f64,
    },
    /// No noise reaches the claim.
    #[error(
        "no noise multiplier up to {max} gives epsilon {epsilon} at delta {delta} over {steps} steps; ask for a larger epsilon or fewer rounds"
    )]
    NoNoise {
        /// The claim asked for.
        epsilon: Epsilon,
        /// Its failure probability.
        delta: Delta,
        /// How many releases must share it.
        steps: u32,
        /// The largest noise tried.
        max: f64,
    },
    /// The noise does not pay for the claim.
    #[error("the contract claims epsilon {claimed} but its noise gives {actual}")]
    UnderNoised {
        /// The claim.
        claimed: f64,
        /// What the accountant says.
        actual: f64,
    },
    /// A contract of another version.
    #[error(
        "the contract has format {got}, this release reads format {CONTRACT_FORMAT}; use the same release on both sides"
    )]
    Format {
        /// Its format.
        got: u16,
    },
}

impl JobFile {
    /// [`JobFile::contract_among`] nobody in particular: for jobs that any site may take part in.
    pub fn contract(&self, schema: Schema, nonce: [u8; 16]) -> Result<JobContract, JobError> {
        self.contract_among(schema, nonce, &[])
    }

    /// Fixes every number: solves for the noise that the asked epsilon needs. `nonce` makes this
    /// submission a job of its own; draw it at random. `members` are the sites that may take part in a secure sum;
    /// other modes do not look at them.
    pub fn contract_among(
        &self,
        schema: Schema,
        nonce: [u8; 16],
        members: &[SiteId],
    ) -> Result<JobContract, JobError> {
        let PrivacyAsked { delta, clip_norm, .. } = self.privacy;
        let mode = self.federation.mode;
        let rate = match (&schema.label.kind, mode) {
            // Counts and numbers have no link that flattens: longer steps overshoot.
            (LabelKind::Count | LabelKind::Number { .. }, _) => 0.3,
            (_, ModeName::Site) => 1.5,
            (_, ModeName::SecureSum) => 4.5,
        };
        // Who does not choose a norm needs a clipping that does not depend on it; but where noise is little, scores
        // that are near to probabilities are worth more.
        let clipping = match mode {
            ModeName::Site if clip_norm.is_none() => Clipping::Automatic,
            ModeName::Site | ModeName::SecureSum => Clipping::Fixed,
        };
        let clip_norm = clip_norm.unwrap_or(ClipNorm::new(DEFAULT_CLIP_NORM).expect("0.5 is a norm"));
        let training = self.training.fixed(clipping, rate, mode)?;
        let federation = self.federation.fixed(members)?;
        training.check()?;
        federation.check(&training)?;
        let training_steps = training.rounds * training.local_steps;
        let sampling_rate = training.sampling_rate;
        // What a sum of shares costs beside its noise is set aside.
        let left = |epsilon| match federation.secure_sum() {
            None => (epsilon, delta),
            Some(_) => left_for_noise(epsilon, delta),
        };
        let epsilon = match (self.privacy.epsilon, self.privacy.noise_multiplier) {
            (Some(epsilon), None) => epsilon,
            (None, Some(noise_multiplier)) => {
                let event = GaussianEvent { noise_multiplier, sampling_rate, steps: training_steps };
                let most = Epsilon::new(1.0).expect("1 is an epsilon");
                let (part, delta) = left(most);
                let epsilon = accountant::renyi_epsilon(&[event], delta) / part.value();
                Epsilon::new(epsilon).map_err(|_| JobError::NoEpsilon { noise_multiplier, got: epsilon })?
            }
            _ => return Err(JobError::Asked),
        };
        let noise = |(epsilon, delta): (Epsilon, Delta), rate: SamplingRate, steps: u32| {
            accountant::renyi_noise_for(epsilon, delta, rate, steps).map_err(|_| JobError::NoNoise {
                epsilon,
                delta,
                steps,
                max: 1e6,
            })
        };
        let noise_multiplier = match self.privacy.noise_multiplier {
            Some(noise_multiplier) => noise_multiplier,
            None => noise(left(epsilon), sampling_rate, training_steps)?,
        };
        let evaluation = match self.evaluation.every {
            0 => None,
            every => {
                let count = evaluation_count(federation.schedule, training.rounds, every);
                let noise_multiplier =
                    noise((epsilon, delta), SamplingRate::new(1.0).expect("1 is a rate"), count)?;
                Some(Evaluation { every, bins: self.evaluation.bins, noise_multiplier })
            }
        };
        let contract = JobContract {
            format: CONTRACT_FORMAT,
            name: self.name.clone(),
            nonce,
            schema,
            model: self.model.clone(),
            training,
            privacy: Privacy { epsilon, delta, clip_norm, noise_multiplier },
            evaluation,
            federation,
        };
        contract.validate()?;
        Ok(contract)
    }
}

fn range(field: &'static str, range: &'static str, value: f64, holds: bool) -> Result<(), JobError> {
    if holds { Ok(()) } else { Err(JobError::Range { field, range, got: value }) }
}

/// Evaluations in a job of `rounds` rounds: before rounds 0, every, 2 every …, and of the final model; of that alone
/// where sites do not go through rounds together.
fn evaluation_count(schedule: FederationSchedule, rounds: u32, every: u32) -> u32 {
    match schedule {
        FederationSchedule::Synchronous => rounds.div_ceil(every) + 1,
        FederationSchedule::Buffered { .. } => 1,
    }
}

impl JobContract {
    /// Checks every number, and that the noise pays for the claim: a contract from the network is
    /// believed in nothing.
    pub fn validate(&self) -> Result<(), JobError> {
        if self.format != CONTRACT_FORMAT {
            return Err(JobError::Format { got: self.format });
        }
        let len_holds = (1..=crate::schema::MAX_NAME_LEN).contains(&self.name.len());
        if !len_holds || self.name.chars().any(char::is_control) {
            return Err(JobError::Name);
        }
        self.schema.validate()?;
        let network = self.network()?;
        self.training.check()?;
        self.check_customer_rows(&network)?;
        self.federation.check(&self.training)?;
        if let Some(Evaluation { every, bins, .. }) = self.evaluation {
            range("evaluation.every", "from 1 to 100000", every.into(), (1..=100_000).contains(&every))?;
            range("evaluation.bins", "from 2 to 1000", bins.into(), (2..=1000).contains(&bins))?;
        }
        // What a sum of shares costs beside its noise.
        let beside = self.sum_encoding(network.parameter_count())?;
        let beside = beside.map_or((0.0, 0.0), |sum| (sum.error_epsilon(), sum.wrap_delta()));
        let training = Some((self.training_charge(), beside));
        let evaluation = self.evaluation_charge().map(|charge| (charge, (0.0, 0.0)));
        for (charge, (error, wrap)) in [training, evaluation].into_iter().flatten() {
            let delta = (self.privacy.delta.value() - wrap) * (-error).exp();
            let delta = Delta::new(delta).unwrap_or(self.privacy.delta);
            let actual = accountant::renyi_epsilon(&[charge], delta) + error;
            if actual > self.privacy.epsilon.value() {
                return Err(JobError::UnderNoised { claimed: self.privacy.epsilon.value(), actual });
            }
        }
        Ok(())
    }

    /// A customer's rows, with all their steps and candidate items, must be no more than its clipped gradient is proved
    /// for.
    fn check_customer_rows(&self, network: &Network) -> Result<(), JobError> {
        let rows = self.training.max_rows_per_customer as usize;
        let length = network.inputs().sequence.as_ref().map_or(1, |sequence| sequence.length);
        for (what, each, instead) in [
            ("steps", length, "the schema's `length`"),
            ("candidate items", network.factor_rows(), "the model's `negatives`"),
        ] {
            if rows * each > MAX_CUSTOMER_ROWS {
                return Err(JobError::CustomerRows { rows, what, each, instead });
            }
        }
        Ok(())
    }

    /// The contract's identity.
    pub fn id(&self) -> JobId {
        JobId::from_bytes(*crate::ids::ContentHash::of(&codec::encode(self)).as_bytes())
    }

    /// The network the contract trains.
    pub fn network(&self) -> Result<Network, JobError> {
        Network::new(&self.model, self.schema.shape())
            .map_err(|error| JobError::Model { reason: error.to_string() })
    }

    /// What the contract's updates are as bytes.
    pub fn update_encoding(&self) -> Result<Encoding, JobError> {
        let parameters = self.network()?.parameter_count() as u64;
        Ok(Encoding { compression: self.federation.compression, parameters })
    }

    /// The grid on which the contract's gradients are clipped and summed.
    pub fn grid(&self) -> Grid {
        Grid::new(self.privacy.clip_norm).with_clipping(self.training.clipping)
    }

    /// What the coordinator keeps over the rounds of the contract beside a model of `parameters` parameters, before
    /// the first; None if nothing.
    pub fn server_state(&self, parameters: usize) -> Option<ServerState> {
        let optimizer = self.federation.strategy.server_optimizer();
        ServerState::start(optimizer, self.training.average_weights, parameters)
    }

    /// What all training of the job costs a training customer.
    pub fn training_charge(&self) -> GaussianEvent {
        GaussianEvent {
            noise_multiplier: self.privacy.noise_multiplier,
            sampling_rate: self.training.sampling_rate,
            steps: self.training.rounds * self.training.local_steps,
        }
    }

    /// What one round of training costs a training customer.
    pub fn round_charge(&self) -> GaussianEvent {
        GaussianEvent { steps: self.training.local_steps, ..self.training_charge() }
    }

    /// What all evaluations cost a held-out customer.
    pub fn evaluation_charge(&self) -> Option<GaussianEvent> {
        self.evaluation.as_ref().map(|evaluation| GaussianEvent {
            noise_multiplier: evaluation.noise_multiplier,
            sampling_rate: SamplingRate::new(1.0).expect("1 is a rate"),
            steps: evaluation_count(self.federation.schedule, self.training.rounds, evaluation.every),
        })
    }

    /// What is done in round `round`: rounds 0 to R-1 train, round R only evaluates the final model.
    /// None past the end. With the buffered schedule the round is the number of a site's own update, and only the
    /// final model is evaluated.
    pub fn task(&self, round: crate::ids::RoundId) -> Option<RoundTask> {
        let (rounds, every) = (self.training.rounds, self.evaluation.as_ref().map(|plan| plan.every));
        let train = round.0 < rounds;
        let together = self.federation.schedule == FederationSchedule::Synchronous;
        let evaluate = every
            .is_some_and(|every| round.0 == rounds || (train && together && round.0.is_multiple_of(every)));
        (train || evaluate).then_some(RoundTask { train, evaluate })
    }
}

#[cfg(test)]
mod tests;
