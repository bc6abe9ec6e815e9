//! What can happen to a job, and what it then wants done.

use std::collections::BTreeSet;
use weighhouse_shared::ids::{ContentHash, RoundId, SiteId};
use weighhouse_shared::job::RoundTask;
use weighhouse_shared::wire::messages::{Decision, JobStatus};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A site connected.
    SiteOnline(SiteId),
    /// A site's connection is gone.
    SiteOffline(SiteId),
    /// A site answered the offer.
    Answered(SiteId, Decision),
    /// A site will not contribute to the round.
    Skipped(SiteId, RoundId),
    /// A part of a site's contribution came in.
    Progress(SiteId),
    /// A site's admitted contribution was counted.
    Counted(SiteId, Part),
    /// A site's key for the job's secure sums is here.
    Keyed(SiteId),
    /// A site's part in a batch of the job's secure sums is here.
    Offered(SiteId, u32),
    /// A site that was asked about the round's survivors has answered.
    SumAnswered(SiteId),
    /// A group's sum could not be opened because of these sites' answers.
    SumFaulty(usize, BTreeSet<SiteId>),
    /// A group's sum cannot be opened, whoever is asked.
    SumLost(usize),
    /// A group's sum is open.
    SumOpened(usize),
    /// The job cannot go on, for this reason.
    Fail(String),
    /// The round that was closed is stored, with this model.
    Committed(ContentHash),
    /// The operator ends the job.
    Stop,
    /// Time has passed.
    Tick,
}

/// What a site contributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A model update.
    Update,
    /// A histogram of scores.
    Evaluation,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Offer the job to a site.
    Offer(SiteId),
    /// Start the round for a site.
    StartRound(SiteId, RoundId, RoundTask),
    /// Fix the roster of a group's secure sums, and tell those on it.
    FixRoster(usize, BTreeSet<SiteId>),
    /// Fix a batch of a group's secure sums, and tell those in it.
    FixBatch(usize, u32, BTreeSet<SiteId>),
    /// Tell a site what of the job's secure sums is fixed.
    Brief(SiteId),
    /// Store the round's masked sums of these groups and whose updates are in them: from now on they are of these sites and
    /// no others. Those of other groups are dropped.
    KeepSums(RoundId, Vec<usize>),
    /// Ask these sites about the round's survivors in their group.
    Ask(usize, RoundId, BTreeSet<SiteId>),
    /// Open the round's sum of a group with the answers, then say how that went.
    OpenSum(usize, RoundId),
    /// Store what the round came to, then say [`Event::Committed`].
    Commit(RoundId),
    /// Store that the round came to nothing and the model is as it was, then say [`Event::Committed`].
    GiveUp(RoundId),
    /// Tell a site that the round closed without it.
    Late(SiteId, RoundId),
    /// Save the job's state: a site's answer or its status changed.
    Save,
    /// The job has all the sites it takes: this one, which accepted, is told that it is over for it.
    Dismiss(SiteId),
    /// The job is over: tell everyone.
    End(JobStatus),
}
