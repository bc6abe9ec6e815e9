//! What operators and the coordinator say to each other.

use super::{Decision, JobStatus, Outcome, SignedContract};
use crate::evaluation::Quality;
use crate::ids::{ContentHash, JobId, RoundId, SiteId};
use crate::privacy::accountant::GaussianEvent;
use serde::{Deserialize, Serialize};

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
