//! What this site does on each message: pure, no clock, no network. [`crate::session`] carries it out.
//!
//! One round is worked on at a time; a round that the coordinator starts anew replaces the one before.

use crate::contribute::Contribution;
use crate::offer::CheckedContract;
use bytes::Bytes;
use std::collections::BTreeMap;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::wire::messages::RoundStart;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// The site has agreed to take part in a job.
    JobAccepted(CheckedContract),
    /// The coordinator starts a round.
    RoundStarted(RoundStart),
    /// A model has come in whole; its hash was checked.
    ModelArrived {
        /// What it was sent for.
        job: JobId,
        /// And for which round.
        round: RoundId,
        /// Its hash.
        model: ContentHash,
        /// The parameters, 32-bit little-endian floats.
        bytes: Bytes,
    },
    /// A round's work is done; None if it gave nothing.
    Worked {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
        /// What may leave.
        contribution: Option<Contribution>,
    },
    /// The job is over.
    JobEnded(JobId),
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Work out this round's contribution.
    Work {
        /// The contract.
        contract: CheckedContract,
        /// The round.
        start: RoundStart,
        /// The model it starts from.
        model: Bytes,
    },
    /// Send a contribution.
    Send {
        /// The round it is for.
        start: RoundStart,
        /// What leaves.
        contribution: Contribution,
    },
    /// Tell the coordinator that nothing will come.
    Skip {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
    },
    /// Free what the job did not spend, and forget what was stored for it.
    Close(JobId),
}

#[derive(Debug)]
struct Current {
    start: RoundStart,
    model: Option<Bytes>,
    working: bool,
}

#[derive(Debug)]
struct Job {
    contract: CheckedContract,
    current: Option<Current>,
}

/// The site's jobs and the round each is in.
#[derive(Debug, Default)]
pub struct Rounds {
    jobs: BTreeMap<JobId, Job>,
}

impl Rounds {
    /// The bytes of the model that the coordinator may send now for `job`; None for a job not accepted.
    pub fn model_len(&self, job: &JobId) -> Option<u64> {
        let contract = &self.jobs.get(job)?.contract.contract;
        contract.network().ok().map(|network| 4 * network.parameter_count() as u64)
    }

    /// Takes what happened, returns what to do.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::JobAccepted(contract) => {
                self.jobs.entry(contract.job).or_insert(Job { contract, current: None });
                Vec::new()
            }
            Event::RoundStarted(start) => {
                let Some(job) = self.jobs.get_mut(&start.job) else { return Vec::new() };
                let known = job.contract.contract.task(start.round);
                if known != Some(start.task) {
                    return vec![Action::Skip { job: start.job, round: start.round }];
                }
                let working =
                    job.current.as_ref().is_some_and(|current| current.start == start && current.working);
                job.current = Some(Current { start, model: None, working });
                Vec::new()
            }
            Event::ModelArrived { job, round, model, bytes } => {
                let Some(job) = self.jobs.get_mut(&job) else { return Vec::new() };
                let Some(current) = &mut job.current else { return Vec::new() };
                if (current.start.round, current.start.model) != (round, model) || current.working {
                    return Vec::new();
                }
                current.model = Some(bytes.clone());
                current.working = true;
                vec![Action::Work {
                    contract: job.contract.clone(),
                    start: current.start.clone(),
                    model: bytes,
                }]
            }
            Event::Worked { job: id, round, contribution } => {
                let Some(job) = self.jobs.get_mut(&id) else { return Vec::new() };
                let Some(current) = job.current.take_if(|current| current.start.round == round) else {
                    return Vec::new();
                };
                match contribution {
                    Some(contribution) => vec![Action::Send { start: current.start, contribution }],
                    None => vec![Action::Skip { job: id, round }],
                }
            }
            Event::JobEnded(job) => {
                self.jobs.remove(&job);
                vec![Action::Close(job)]
            }
        }
    }

    /// The connection is gone: what was being received will be sent again.
    pub fn disconnected(&mut self) {
        for job in self.jobs.values_mut() {
            job.current.take_if(|current| !current.working);
        }
    }
}
