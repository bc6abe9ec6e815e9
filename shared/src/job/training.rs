//! How a model is trained: what a person asks for, where most keys may be left out, and what the contract fixes.

use super::{JobError, ModeName, range};
use crate::model::{Optimizer, Schedule};
use crate::privacy::grid::Clipping;
use crate::privacy::{ClipNorm, SamplingRate};
use serde::{Deserialize, Serialize};

/// The `[training]` of a job file. A key that its `optimizer` does not know is refused, not ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingAsked {
    /// Rounds of the job; each ends with one new global model. Left out: 30, with mode = "secure_sum" 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
    /// Private gradient steps a site makes in one round; left out: 3, with mode = "secure_sum" 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_steps: Option<u32>,
    /// Step size at the sites; left out: 1.5 for sgd, with mode = "secure_sum" 4.5, 0.3 if the label is a count or a
    /// number, 0.1 for adam and adamw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Probability with which a customer is in a step's batch; left out: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling_rate: Option<SamplingRate>,
    /// The denominator of every site's gradient, in customers.
    pub expected_customers: u32,
    /// Rows of one customer that count; a customer's later rows are left out.
    pub max_rows_per_customer: u32,
    /// The rule of the sites' steps.
    pub optimizer: OptimizerName,
    /// For sgd; left out: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// For adam and adamw; left out: 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,
    /// For adam and adamw; left out: 0.999.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f64>,
    /// For adam and adamw; left out: 1e-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// For all; left out: 0, for adamw 0.01.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// How the step size changes over all local steps of the job.
    pub schedule: Schedule,
    /// Local steps over which the step size rises first.
    pub warmup_steps: u32,
    /// FedProx's mu: how strongly local steps are pulled back to the round's global model; 0 for not at all.
    pub proximal: f64,
    /// Decay, a round, of the average of the rounds' models that becomes the final model; 0 for none. Left out: 0, with mode
    /// = "secure_sum" 1 - 5 / rounds, about the last fifth of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_weights: Option<f64>,
    /// How gradients are scaled to the clip norm; left out: fixed if there is a `clip_norm` or with mode = "secure_sum", else
    /// automatic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clipping: Option<Clipping>,
    /// For clipping by quantile: the share of customers whose norm is to be within the clip norm; left out: 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_quantile: Option<f64>,
    /// For clipping by quantile: how fast the norm follows, a step, in its logarithm; left out: 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_rate: Option<f64>,
}

/// The rules by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// [`Optimizer::Sgd`].
    #[default]
    Sgd,
    /// [`Optimizer::Adam`].
    Adam,
    /// [`Optimizer::AdamW`].
    AdamW,
}

impl Default for TrainingAsked {
    fn default() -> Self {
        Self {
            rounds: None,
            local_steps: None,
            learning_rate: None,
            sampling_rate: None,
            expected_customers: 100,
            max_rows_per_customer: 25,
            optimizer: OptimizerName::Sgd,
            momentum: None,
            beta1: None,
            beta2: None,
            epsilon: None,
            weight_decay: None,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            proximal: 0.0,
            average_weights: None,
            clipping: None,
            clip_quantile: None,
            clip_rate: None,
        }
    }
}

/// How the model is trained at each site: every number fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Rounds of the job; each ends with one new global model.
    pub rounds: u32,
    /// Private gradient steps a site makes in one round.
    pub local_steps: u32,
    /// Step size of the site's optimiser.
    pub learning_rate: f64,
    /// Probability with which a customer is in a step's batch.
    pub sampling_rate: SamplingRate,
    /// The denominator of every site's gradient, in customers: a public constant, the same at every
    /// site, so that no store's size shows and none is under-noised.
    pub expected_customers: u32,
    /// Rows of one customer that count; a customer's later rows are left out.
    pub max_rows_per_customer: u32,
    /// The rule of the site's steps.
    pub optimizer: Optimizer,
    /// How the step size changes over all local steps of the job.
    pub schedule: Schedule,
    /// Local steps over which the step size rises first.
    pub warmup_steps: u32,
    /// FedProx's mu.
    pub proximal: f64,
    /// Decay of the average of the rounds' models that becomes the final model; 0 for none.
    pub average_weights: f64,
    /// How gradients are scaled to the clip norm.
    pub clipping: Clipping,
    /// For clipping by quantile: the share of customers whose norm is to be within the clip norm.
    pub clip_quantile: f64,
    /// For clipping by quantile: how fast the norm follows, a step, in its logarithm.
    pub clip_rate: f64,
}

/// `value` if it was given and belongs to the choice made; `default` if it was not given.
fn chosen(
    field: &'static str,
    belongs_to: &'static str,
    belongs: bool,
    value: Option<f64>,
    default: f64,
) -> Result<f64, JobError> {
    match value {
        Some(_) if !belongs => Err(JobError::Stray { field, belongs_to }),
        Some(value) => Ok(value),
        None => Ok(default),
    }
}

impl TrainingAsked {
    /// Every number fixed, none checked but for keys that do not go with the optimizer or the clipping, which is
    /// `clipping` if not said, as sgd's step size is `rate`.
    pub(super) fn fixed(&self, clipping: Clipping, rate: f64, mode: ModeName) -> Result<Training, JobError> {
        let (rounds, local_steps) = match mode {
            ModeName::Site => (30, 3),
            // Few, long steps with little noise each.
            ModeName::SecureSum => (50, 1),
        };
        let rounds = self.rounds.unwrap_or(rounds);
        let average = match mode {
            ModeName::Site => 0.0,
            ModeName::SecureSum => (1.0 - 5.0 / f64::from(rounds)).max(0.0),
        };
        let clipping = self.clipping.unwrap_or(clipping);
        let quantile = |field, value, default| {
            let belongs = clipping == Clipping::Quantile;
            chosen(field, "clipping = \"quantile\"", belongs, value, default)
        };
        let clip_quantile = quantile("training.clip_quantile", self.clip_quantile, 0.5)?;
        let clip_rate = quantile("training.clip_rate", self.clip_rate, 0.2)?;
        let adaptive = self.optimizer != OptimizerName::Sgd;
        let sgd = |field, value, default| chosen(field, "optimizer = \"sgd\"", !adaptive, value, default);
        let adam = |field, value, default| {
            chosen(field, "optimizer = \"adam\" or \"adamw\"", adaptive, value, default)
        };
        let momentum = sgd("training.momentum", self.momentum, 0.0)?;
        let beta1 = adam("training.beta1", self.beta1, 0.9)?;
        let beta2 = adam("training.beta2", self.beta2, 0.999)?;
        let epsilon = adam("training.epsilon", self.epsilon, 1e-8)?;
        let decays = self.optimizer == OptimizerName::AdamW;
        let weight_decay = self.weight_decay.unwrap_or(if decays { 0.01 } else { 0.0 });
        let optimizer = match self.optimizer {
            OptimizerName::Sgd => Optimizer::Sgd { momentum, weight_decay },
            OptimizerName::Adam => Optimizer::Adam { beta1, beta2, epsilon, weight_decay },
            OptimizerName::AdamW => Optimizer::AdamW { beta1, beta2, epsilon, weight_decay },
        };
        Ok(Training {
            rounds,
            local_steps: self.local_steps.unwrap_or(local_steps),
            learning_rate: self.learning_rate.unwrap_or(if adaptive { 0.1 } else { rate }),
            sampling_rate: self.sampling_rate.unwrap_or(SamplingRate::new(1.0).expect("1 is a rate")),
            expected_customers: self.expected_customers,
            max_rows_per_customer: self.max_rows_per_customer,
            optimizer,
            schedule: self.schedule,
            warmup_steps: self.warmup_steps,
            proximal: self.proximal,
            average_weights: self.average_weights.unwrap_or(average),
            clipping,
            clip_quantile,
            clip_rate,
        })
    }
}

impl Training {
    /// Checks every number.
    pub(super) fn check(&self) -> Result<(), JobError> {
        let Self { rounds, local_steps, learning_rate, expected_customers, .. } = *self;
        range("training.rounds", "from 1 to 100000", rounds.into(), (1..=100_000).contains(&rounds))?;
        let steps_hold = (1..=10_000).contains(&local_steps);
        range("training.local_steps", "from 1 to 10000", local_steps.into(), steps_hold)?;
        let rate_holds = learning_rate > 0.0 && learning_rate <= 1e6;
        range("training.learning_rate", "above 0 and at most 1e6", learning_rate, rate_holds)?;
        let customers_hold = (1..=1_000_000_000).contains(&expected_customers);
        range("training.expected_customers", "from 1 to 1e9", expected_customers.into(), customers_hold)?;
        let rows = self.max_rows_per_customer;
        range("training.max_rows_per_customer", "from 1 to 1024", rows.into(), (1..=1024).contains(&rows))?;
        match self.optimizer {
            Optimizer::Sgd { momentum, weight_decay } => {
                decay("training.momentum", momentum)?;
                penalty("training.weight_decay", weight_decay)?;
            }
            Optimizer::Adam { beta1, beta2, epsilon, weight_decay }
            | Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                decay("training.beta1", beta1)?;
                decay("training.beta2", beta2)?;
                small("training.epsilon", epsilon)?;
                penalty("training.weight_decay", weight_decay)?;
            }
        }
        let warmup = self.warmup_steps;
        let warmup_holds = warmup < rounds * local_steps;
        range("training.warmup_steps", "below rounds times local_steps", warmup.into(), warmup_holds)?;
        penalty("training.proximal", self.proximal)?;
        let open = |value: f64| value > 0.0 && value < 1.0;
        range("training.clip_quantile", "between 0 and 1", self.clip_quantile, open(self.clip_quantile))?;
        range("training.clip_rate", "between 0 and 1", self.clip_rate, open(self.clip_rate))?;
        decay("training.average_weights", self.average_weights)
    }

    /// The clip norm after a step in which about this share of customers was within `clip_norm`: `C exp(-rate (share -
    /// quantile))`, the share taken between 0 and 1, and the norm between 1e-6 and 1e6 (Andrew et al. 2021).
    pub fn next_clip_norm(&self, clip_norm: ClipNorm, share: f64) -> ClipNorm {
        let step = -self.clip_rate * (share.clamp(0.0, 1.0) - self.clip_quantile);
        let next = (clip_norm.value() * step.exp()).clamp(1e-6, 1e6);
        ClipNorm::new(next).unwrap_or(clip_norm)
    }

    /// Customers in a step's batch on average at a site of the expected size: the gradient's denominator, whatever
    /// the batch's size.
    pub fn expected_batch(&self) -> f64 {
        self.sampling_rate.value() * f64::from(self.expected_customers)
    }

    /// Step size of local step `step` of round `round`, both from 0.
    pub fn rate(&self, round: u32, step: u32) -> f64 {
        let (at, steps) = (round * self.local_steps + step, self.rounds * self.local_steps);
        self.learning_rate * self.schedule.factor(at, steps, self.warmup_steps)
    }
}

fn decay(field: &'static str, value: f64) -> Result<(), JobError> {
    range(field, "from 0 to below 1", value, (0.0..1.0).contains(&value))
}

fn penalty(field: &'static str, value: f64) -> Result<(), JobError> {
    range(field, "from 0 to 1000", value, (0.0..=1000.0).contains(&value))
}

fn small(field: &'static str, value: f64) -> Result<(), JobError> {
    range(field, "from 1e-12 to 1", value, (1e-12..=1.0).contains(&value))
}
