//! What is said, by direction. A variant holds one struct; its frame number stands in [`super::frame`].
//!
//! What a site says is a constant, or was noised and paid for: each struct says which.

mod operator;
mod outcome;

pub use operator::*;
pub use outcome::Outcome;

use crate::ids::{ContentHash, JobId, RoundId};
use crate::job::RoundTask;
use crate::ledger::{Charge, Head, SignedWitness, Standing};
use crate::policy::PolicyRule;
use crate::secure_sum::agreement::{Answer, Question};
use crate::secure_sum::batch::{Grant, Offer};
use crate::secure_sum::keys::SignedKey;
use serde::{Deserialize, Serialize};

/// From a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SiteToCoordinator {
    /// First on every control stream.
    Hello(Hello),
    /// A new site asks for its certificate.
    Enrol(Enrol),
    /// Whether the site takes part in a job.
    JobAnswer(JobAnswer),
    /// The quality of a model on held-out customers.
    Evaluation(Evaluation),
    /// The site will send nothing for a round.
    RoundSkipped(RoundSkipped),
    /// What the site's budget still allows.
    Standing(Standing),
    /// How far the site's ledger has come: right after [`Hello`], and before each contribution.
    LedgerHead(LedgerHead),
    /// The site's certificate is about to expire; since version 2.
    Renew(Renew),
    /// How much of a model is here, before the answer that starts its round: the rest is sent from there; since version
    /// 2.
    Holding(Holding),
    /// What the site's ledger debited for a contribution: before the [`LedgerHead`] that announces it; since
    /// version 2.
    Debited(Debited),
    /// The site's key for a job's secure sums: before its [`JobAnswer`]; since version 3.
    SumKey(SumKey),
    /// The site's part in a batch of a job's secure sums; since version 3.
    SumOffer(SumOffer),
    /// The site's answer to a [`SumQuestion`]; since version 3.
    SumAnswer(SumAnswer),
}

/// To a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CoordinatorToSite {
    /// The answer to [`Hello`].
    Welcome(Welcome),
    /// The answer to a [`Hello`] of a version that is no longer spoken; the connection ends.
    VersionRefused(VersionRefused),
    /// The answer to [`Enrol`]; the connection ends.
    Enrolled(Enrolled),
    /// A job, as its operator signed it.
    JobOffer(SignedContract),
    /// A round begins for this site.
    RoundStart(RoundStart),
    /// What became of what the site sent.
    Receipt(Receipt),
    /// A job is over.
    JobEnded(JobEnded),
    /// What the coordinator holds of the site's ledger: the answer to the first [`LedgerHead`], and after each
    /// committed round.
    Witnessed(Witnessed),
    /// The answer to [`Renew`].
    Renewed(Renewed),
    /// How much of an update is here, before its round's start: the rest is sent from there; since version 2.
    Holding(Holding),
    /// The sites of a job's secure sums; since version 3.
    SumRoster(SumRoster),
    /// A batch of a job's secure sums: before the start of its rounds; since version 3.
    SumBatch(SumBatch),
    /// Who survived a round of a job's secure sums: since version 3.
    SumQuestion(SumQuestion),
}

/// Constant: versions only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`] of the speaker.
    pub protocol: u16,
    /// Its release, for people.
    pub release: String,
}

/// Constant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {}

/// Constant: asked for by the calendar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {}

/// A constant of the job and the site's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAnswer {
    /// The job.
    pub job: JobId,
    /// Whether the site takes part.
    pub decision: Decision,
}

/// Whether a site takes part in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It does.
    Accepted,
    /// The job is not one an operator of this federation signed, or breaks the contract's own rules.
    RefusedContract,
    /// The job is for other columns than the site has.
    RefusedSchema,
    /// The site's privacy budget does not allow it.
    RefusedBudget,
    /// It breaks this rule of the site's policy.
    RefusedPolicy(PolicyRule),
    /// No answer yet, for good if need be: someone at the site has to approve the job.
    Waiting,
}

/// Noised and paid by the debit of (job, round, evaluation): a histogram of how predictions meet labels, see
/// [`evaluation`](crate::evaluation).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The job.
    pub job: JobId,
    /// The round whose model was scored.
    pub round: RoundId,
    /// Counts of rows that are hits (of label 1, if it is binary), in units of 1/1024 customer, by bin; then of
    /// the others.
    pub histogram: Vec<i64>,
}

impl Evaluation {
    /// A histogram as the site's ledger releases it and a witness names it: 64-bit little-endian integers.
    pub fn released_bytes(histogram: &[i64]) -> Vec<u8> {
        histogram.iter().flat_map(|count| count.to_le_bytes()).collect()
    }
}

/// A constant of the ledger's state; no reason that depends on records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundSkipped {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundId,
}

/// Depends on contracts, the site's clock and the hashes of noised, paid bytes only: the ledger records
/// nothing about customers that was not released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerHead {
    /// The round whose contribution comes next, released by an entry up to this head; None after [`Hello`].
    pub contribution: Option<(JobId, RoundId)>,
    /// How far the ledger on disk has come.
    pub head: Head,
    /// The site's Ed25519 signature of it, 64 bytes.
    pub signature: Vec<u8>,
}

/// The site's next certificate, for the same key; since version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// DER.
    pub certificate: Vec<u8>,
}

/// A constant of the contract: what the site's ledger debited for one contribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Debited {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundId,
    /// What was debited, and whose it is: training customers pay for an update, held-out ones for an evaluation.
    pub charge: Charge,
}

/// Constant: a key made by chance, for one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumKey {
    /// The job.
    pub job: JobId,
    /// The key.
    pub key: SignedKey,
}

/// Depends on chance only: public halves of keys, hashes of seeds, and shares of both that none but their receivers can
/// read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumOffer {
    /// The job.
    pub job: JobId,
    /// The site's part in a batch.
    pub offer: Offer,
}

/// Depends on chance and on who survived only: shares of masks, see [`secure_sum`](crate::secure_sum).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumAnswer {
    /// The job.
    pub job: JobId,
    /// The answer.
    pub answer: Answer,
}

/// The sites of a job's secure sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumRoster {
    /// The job.
    pub job: JobId,
    /// Their keys, in the order of the sites' identifiers.
    pub keys: Vec<SignedKey>,
}

/// A batch of a job's secure sums, for one of its sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumBatch {
    /// The job.
    pub job: JobId,
    /// What the site is told of it.
    pub grant: Grant,
}

/// Who survived a round of a job's secure sums, and who is to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumQuestion {
    /// The job.
    pub job: JobId,
    /// The question.
    pub question: Question,
}

/// How much of a content has arrived. From a site it depends on the link and a public model only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundId,
    /// Hash of the whole content.
    pub content: ContentHash,
    /// Bytes of it that have arrived, from its beginning.
    pub received: u64,
}

/// The coordinator knows the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// What both speak from here on: the older of both sides' [`super::PROTOCOL_VERSION`].
    pub protocol: u16,
    /// Its release, for people.
    pub release: String,
}

/// Both sides' versions, so that people see which to update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRefused {
    /// What the coordinator speaks.
    pub coordinator: u16,
    /// What the site said it speaks.
    pub site: u16,
}

/// A new site's certificate, DER.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The name the operator invited it by.
    pub name: String,
    /// Its certificate.
    pub certificate: Vec<u8>,
    /// The authority's certificate.
    pub authority: Vec<u8>,
}

/// A job contract with the operator's signature over its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedContract {
    /// Canonical bytes of a job contract.
    pub contract: Vec<u8>,
    /// The operator's certificate, DER; the authority signed it.
    pub certificate: Vec<u8>,
    /// Ed25519, 64 bytes.
    pub signature: Vec<u8>,
}

/// A round begins: the model's parameters follow on streams of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundStart {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundId,
    /// What is to be done.
    pub task: RoundTask,
    /// The model it starts from.
    pub model: ContentHash,
}

/// What became of an update or an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundId,
    /// What became of it.
    pub outcome: Outcome,
}

/// A job is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnded {
    /// The job.
    pub job: JobId,
    /// How it ended.
    pub status: JobStatus,
}

/// What the coordinator holds of a site's ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witnessed {
    /// Whether the head that the site told last can follow it. If not, the connection ends.
    pub verdict: HeadVerdict,
    /// The newest witness, on the coordinator's disk; None if there is none yet.
    pub witness: Option<SignedWitness>,
}

/// Whether a head can follow what was witnessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadVerdict {
    /// It can.
    Follows,
    /// The ledger has fewer entries than were witnessed.
    SetBack,
    /// The ledger has as many entries, and others.
    Rewritten,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waiting until enough sites take part.
    Waiting,
    /// Under way.
    Running,
    /// All rounds committed.
    Finished,
    /// An operator ended it.
    Stopped,
    /// It cannot go on.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

impl JobStatus {
    /// Whether nothing more will happen.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

impl std::fmt::Display for JobStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting"),
            Self::Running => f.write_str("running"),
            Self::Finished => f.write_str("finished"),
            Self::Stopped => f.write_str("stopped"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
        }
    }
}
