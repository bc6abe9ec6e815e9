//! One entry of a ledger.

use crate::ids::{ContentHash, JobId, RoundId, SiteId};
use crate::policy::PolicyText;
use crate::privacy::Mechanism;
use crate::privacy::accountant::GaussianEvent;
use serde::{Deserialize, Serialize};

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counted from 0.
    pub sequence: u64,
    /// Hash of the line before; for the first entry, of nothing.
    pub previous: ContentHash,
    /// When it was written, in seconds since 1970 by the site's clock; never less than the entry before.
    pub time_s: u64,
    /// Whose ledger it is.
    pub site: SiteId,
    /// What happened.
    pub body: Body,
    /// Epsilon spent after this entry by the customer who paid most, at the cap's delta, over the cap's
    /// period: the Renyi figure.
    pub spent_epsilon: f64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Body {
    /// The ledger begins. Always the first entry, and only that.
    Opened {
        /// The site's Ed25519 public key, in hexadecimal; signs every entry.
        public_key: String,
        /// Customers held out for evaluation, in thousandths. Fixed for the ledger's life: a customer
        /// who moved between the two groups would have to pay for both.
        holdout_permille: u32,
        /// The policy that holds from now on.
        policy: PolicyText,
    },
    /// Another policy holds from now on.
    PolicySet {
        /// The policy.
        policy: PolicyText,
    },
    /// A job's worst case was set aside.
    Reserved {
        /// The job.
        job: JobId,
        /// What its operator calls it.
        name: String,
        /// All it may charge.
        charges: Vec<Charge>,
    },
    /// Part of a reservation was spent. Written before the noise is drawn.
    Debited {
        /// The job.
        job: JobId,
        /// Its round.
        round: RoundId,
        /// What was spent.
        charge: Charge,
        /// What each of its steps draws.
        mechanism: Mechanism,
    },
    /// Bytes that a debit paid for may leave from now on. Written before the first of them does.
    Released {
        /// The job.
        job: JobId,
        /// Its round.
        round: RoundId,
        /// What they are.
        kind: ReleaseKind,
        /// The debit's sequence number.
        debit: u64,
        /// Hash of the bytes.
        content: ContentHash,
        /// How many they are.
        len: u64,
    },
    /// A job ended; what it did not spend is free again.
    Returned {
        /// The job.
        job: JobId,
    },
}

/// Which of a site's customers a release depends on. The split is a fixed function of the customer's
/// name, so a customer pays for one of the two only (parallel composition; McSherry 2009, theorem 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Population {
    /// Customers that models learn from.
    Training,
    /// Customers held out, on whom quality is measured.
    Holdout,
}

/// A cost, and who bears it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// Who bears it.
    pub population: Population,
    /// What is composed.
    pub event: GaussianEvent,
}

/// What left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseKind {
    /// A model update.
    Update,
    /// A histogram of held-out customers' scores.
    Evaluation,
}
