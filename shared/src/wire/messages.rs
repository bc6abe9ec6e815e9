//! What is said, by direction. A variant holds one struct; its frame number stands in [`super::frame`].
//!
//! What a site says is a constant, or was noised and paid for: each struct says which.

use crate::evaluation::Quality;
use crate::ids::{ContentHash, JobId, RoundId, SiteId};
use crate::job::RoundTask;
use crate::ledger::{Charge, Head, SignedWitness, Standing};
use crate::policy::PolicyRule;
use crate::privacy::accountant::GaussianEvent;
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

/// From an operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum OperatorToCoordinator {
    /// Let one new site in.
    Invite(Invite),
    /// Which sites are there?
    ListSites(ListSites),
    /// Keep a site out from now on.
    Revoke(Revoke),
    /// Run this job.
    SubmitJob(SignedContract),
    /// Which jobs are there?
    ListJobs(ListJobs),
    /// Tell all that happened in a job, and go on telling until it ends.
    WatchJob(WatchJob),
    /// End a job now.
    StopJob(StopJob),
    /// Which models are there?
    ListModels(ListModels),
    /// Send a model.
    ExportModel(ExportModel),
    /// How much of a job's kind does each site's budget still allow?
    AskRoom(AskRoom),
    /// What has been witnessed of a site's ledger?
    ListWitnesses(ListWitnesses),
    /// What was refused in each job?
    ListRefusals(ListRefusals),
}

/// To an operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CoordinatorToOperator {
    /// Answers [`Invite`].
    Invited(Invited),
    /// Answers [`ListSites`].
    Sites(Vec<SiteSummary>),
    /// Answers [`Revoke`].
    Revoked(SiteSummary),
    /// Answers a submission.
    Submitted(JobId),
    /// Answers [`ListJobs`].
    Jobs(Vec<JobSummary>),
    /// Answers [`WatchJob`], once for each thing that happened.
    Progress(JobEvent),
    /// Answers [`StopJob`].
    Stopped(JobSummary),
    /// Answers [`ListModels`].
    Models(Vec<ModelSummary>),
    /// Answers [`ExportModel`]; the parameters follow on the same stream.
    Model(ModelHeader),
    /// The request cannot be met; says why.
    Refused(Refused),
    /// Answers [`AskRoom`].
    Room(Vec<SiteRoom>),
    /// Answers [`ListWitnesses`]; the lines follow on the same stream.
    Witnesses(WitnessesHeader),
    /// Answers [`ListRefusals`]: the jobs in which something was refused.
    Refusals(Vec<JobRefusals>),
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

/// What became of what a site sent: counted, or refused for the first check that it fails. A refusal loses the site
/// its own vote in the round and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It counts.
    Admitted,
    /// It does not have the model's number of parameters or the histogram's number of bins.
    WrongShape,
    /// A value is outside the encoding's range.
    OutOfRange,
    /// The round has not begun, has no such part, or goes without this site.
    WrongRound,
    /// It was trained from another model than the round's.
    WrongModel,
    /// The site has already contributed to this round.
    Repeated,
    /// What arrived is not what the sender said it would be.
    Corrupt,
    /// No head of the ledger that released it came before it.
    Unwitnessed,
    /// It is longer than any contribution to the job.
    TooLong,
    /// Where integers belong there are floats, and some are no finite numbers.
    NotFinite,
    /// The round closed before it came: the site was slow, which is no fault.
    Late,
    /// The site's ledger did not debit what the contract says it costs.
    WrongCharge,
    /// Too many contributions of the site were refused lately; this one was not read.
    RateLimited,
}

impl Outcome {
    /// Every way to be refused.
    pub const REFUSALS: [Self; 12] = [
        Self::WrongShape,
        Self::OutOfRange,
        Self::WrongRound,
        Self::WrongModel,
        Self::Repeated,
        Self::Corrupt,
        Self::Unwitnessed,
        Self::TooLong,
        Self::NotFinite,
        Self::Late,
        Self::WrongCharge,
        Self::RateLimited,
    ];

    /// Its name in counters, metrics, logs and JSON; never changed, never reused.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::WrongShape => "wrong_shape",
            Self::OutOfRange => "out_of_range",
            Self::WrongRound => "wrong_round",
            Self::WrongModel => "wrong_model",
            Self::Repeated => "repeated",
            Self::Corrupt => "corrupt",
            Self::Unwitnessed => "unwitnessed",
            Self::TooLong => "too_long",
            Self::NotFinite => "not_finite",
            Self::Late => "late",
            Self::WrongCharge => "wrong_charge",
            Self::RateLimited => "rate_limited",
        }
    }

    /// What it means for the people of the site that sent it, and what they can do.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Admitted => "it counts",
            Self::WrongShape => {
                "it does not have the job's number of values; use the same release as the coordinator"
            }
            Self::OutOfRange => {
                "a value is outside the encoding's range; the job's step size may be too large"
            }
            Self::WrongRound => "the round does not take it from this site; it takes part again in the next",
            Self::WrongModel => "it was trained from another model than the round's",
            Self::Repeated => "the site has contributed to this round already",
            Self::Corrupt => "it arrived damaged; check the network if this goes on",
            Self::Unwitnessed => "the ledger's head that covers it did not come before it",
            Self::TooLong => "it is longer than the job allows; use the same release as the coordinator",
            Self::NotFinite => {
                "it holds floats that are no finite numbers; use the same release as the coordinator"
            }
            Self::Late => "the round closed before it came; nothing is held against the site",
            Self::WrongCharge => {
                "the ledger did not debit what the contract says; use the same release as the coordinator"
            }
            Self::RateLimited => "too much of this site was refused lately; it is read again within a minute",
        }
    }

    /// Whether more of these than a site may have in a while keep its next ones from being read. Slowness and a
    /// repetition after a lost link are no faults, and cost no reading.
    pub fn is_fault(self) -> bool {
        !matches!(self, Self::Admitted | Self::Late | Self::Repeated | Self::RateLimited)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
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

/// Let one new site in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// What people will call it.
    pub name: String,
    /// Seconds for which the invite is good.
    pub valid_s: u32,
}

/// A one-time invite, as text to hand to the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// The invite.
    pub invite: String,
}

/// Which sites are there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSites {}

/// Keep a site out from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// Its name.
    pub name: String,
}

/// A site as the roster has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteSummary {
    /// What people call it.
    pub name: String,
    /// Where it stands.
    pub status: SiteStatus,
    /// Its key's hash, once it has joined.
    pub id: Option<SiteId>,
}

/// Where a site stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteStatus {
    /// Its invite is open.
    Invited,
    /// Its invite ran out unused.
    InviteExpired,
    /// It has joined, and is not connected.
    Offline,
    /// It is connected.
    Online,
    /// It may not come in.
    Revoked,
    /// Its ledger was set back or rewritten, by what was witnessed; nothing of it counts until its newest
    /// ledger is back.
    LedgerSetBack,
}

impl std::fmt::Display for SiteStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invited => "invited",
            Self::InviteExpired => "invite expired",
            Self::Offline => "offline",
            Self::Online => "online",
            Self::Revoked => "revoked",
            Self::LedgerSetBack => "ledger set back",
        })
    }
}

/// Which jobs are there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListJobs {}

/// A job as the coordinator has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// The job.
    pub job: JobId,
    /// What people call it.
    pub name: String,
    /// Where it stands.
    pub status: JobStatus,
    /// Rounds committed.
    pub rounds_done: u32,
    /// Rounds in all.
    pub rounds: u32,
    /// Sites that take part.
    pub sites: u32,
    /// The epsilon it claims.
    pub epsilon: f64,
    /// The claim's delta.
    pub delta: f64,
}

/// Tell all that happened in a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchJob {
    /// The job.
    pub job: JobId,
}

/// Something that happened in a job. `Status` with a final status is the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEvent {
    /// The job stands elsewhere now.
    Status(JobStatus),
    /// A site answered.
    Answered {
        /// Its name.
        site: String,
        /// What it said.
        decision: Decision,
    },
    /// A site's contribution came in.
    Contributed {
        /// The round.
        round: RoundId,
        /// How many are in.
        sites_in: u32,
        /// How many take part.
        sites: u32,
    },
    /// A round was committed: its model is stored.
    Committed(RoundSummary),
    /// A site's ledger was set back or rewritten; nothing of it counts until its newest ledger is back.
    LedgerSetBack {
        /// Its name.
        site: String,
    },
    /// A site's contribution was refused. One that is not even read is counted, not told.
    Refused {
        /// The site's name.
        site: String,
        /// The round it was for.
        round: RoundId,
        /// Why.
        outcome: Outcome,
    },
    /// How many contributions were refused so far, by label; told before and after all else if there are any.
    Refusals(Vec<RefusalCount>),
    /// A round closed without a site that was in it. It is in the next.
    LeftOut {
        /// The site's name.
        site: String,
        /// The round.
        round: RoundId,
    },
}

/// Contributions refused for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalCount {
    /// The reason.
    pub outcome: Outcome,
    /// How many.
    pub count: u64,
}

/// What was refused in each job?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRefusals {}

/// What was refused in one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRefusals {
    /// The job.
    pub job: JobId,
    /// By reason; none that is 0.
    pub refused: Vec<RefusalCount>,
}

/// A committed round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundSummary {
    /// The round.
    pub round: RoundId,
    /// Contributions in it.
    pub sites: u32,
    /// The model after it.
    pub model: ContentHash,
    /// Quality of the model before it, from noised counts.
    pub quality: Option<Quality>,
    /// Epsilon each training customer of a contributing site has spent on this job so far.
    pub epsilon: f64,
}

/// End a job now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopJob {
    /// The job.
    pub job: JobId,
}

/// Which models are there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListModels {}

/// A stored model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// The job that made it.
    pub job: JobId,
    /// The job's name.
    pub name: String,
    /// Rounds that went into it.
    pub rounds: u32,
    /// Its content.
    pub model: ContentHash,
    /// Its number of parameters.
    pub parameters: u64,
    /// The last quality known.
    pub quality: Option<Quality>,
}

/// Send a job's latest model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportModel {
    /// The job.
    pub job: JobId,
}

/// What has been witnessed of a site's ledger? Answered in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListWitnesses {
    /// The site's name.
    pub name: String,
    /// Only heads with more entries than this.
    pub after: u64,
}

/// Witnesses on their way, oldest first: one a line on the same stream, as in a witness file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessesHeader {
    /// How many lines; none if there are no more.
    pub count: u32,
    /// Their length in bytes.
    pub len: u64,
    /// Entries of the last one's head, to go on from.
    pub last: u64,
    /// The coordinator's certificate, DER, whose key signed them.
    pub certificate: Vec<u8>,
}

/// A model on its way: the contract that made it, then its parameters on the same stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelHeader {
    /// Canonical bytes of the job contract.
    pub contract: Vec<u8>,
    /// Rounds that went into it.
    pub rounds: u32,
    /// Hash of the parameters.
    pub model: ContentHash,
    /// Their length in bytes: 32-bit floats, little-endian.
    pub len: u64,
}

/// Why a request cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For people; says what to do.
    pub reason: String,
}

/// How much of a job's kind does each site's budget still allow?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AskRoom {
    /// One step of its training.
    pub training: GaussianEvent,
    /// One of its evaluations, if it has any.
    pub holdout: Option<GaussianEvent>,
}

/// What one site's budget allows, as the site last said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteRoom {
    /// The site's name.
    pub name: String,
    /// Where it stands.
    pub status: SiteStatus,
    /// None if it has not said anything yet.
    pub room: Option<Room>,
}

/// What a budget allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Room {
    /// When the site said so, in seconds since 1970.
    pub as_of_s: u64,
    /// The cap.
    pub cap_epsilon: f64,
    /// The cap's delta.
    pub cap_delta: f64,
    /// The most epsilon one job may ask for.
    pub job_epsilon: f64,
    /// Renyi epsilon spent or set aside by the customer who paid most.
    pub epsilon: f64,
    /// Steps of training that still fit.
    pub training_steps: u32,
    /// Evaluations that still fit; None if none were asked about.
    pub evaluations: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_label_of_its_own_that_is_also_its_name_in_json() {
        let labels: std::collections::BTreeSet<_> =
            Outcome::REFUSALS.iter().map(|outcome| outcome.label()).collect();
        assert_eq!(labels.len(), Outcome::REFUSALS.len());
        for outcome in Outcome::REFUSALS {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), format!("\"{outcome}\""));
            assert_ne!(outcome, Outcome::Admitted);
        }
    }
}
