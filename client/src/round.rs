//! What this site does on each message: pure, no clock, no network. [`crate::session`] carries it out.
//!
//! One round is worked on at a time; a round that the coordinator starts anew replaces the one before.

use crate::contribute::{Contribution, is_buffered};
use crate::global_model::GlobalModel;
use crate::offer::CheckedContract;
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
    ModelArrived(GlobalModel),
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
        /// The parameters it starts from.
        model: Vec<f32>,
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
    working: bool,
}

#[derive(Debug)]
struct Job {
    contract: CheckedContract,
    current: Option<Current>,
    /// The model that came last, not yet worked with: it may come before its round's start, since the two
    /// travel on different streams.
    model: Option<GlobalModel>,
    /// What was sent last: asked for again, it is sent again.
    sent: Option<(RoundStart, Contribution)>,
}

impl Job {
    /// Begins the work once the round's start and its model are both there.
    fn begin(&mut self) -> Vec<Action> {
        let Some(current) = self.current.as_mut().filter(|current| !current.working) else {
            return Vec::new();
        };
        let wanted = (current.start.round, current.start.model);
        let Some(model) = self.model.take_if(|model| (model.round, model.hash) == wanted) else {
            return Vec::new();
        };
        let model = model.parameters;
        current.working = true;
        vec![Action::Work { contract: self.contract.clone(), start: current.start.clone(), model }]
    }
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

    /// The round and hash of the model of `job` that is here, or was worked with: it need not come again.
    pub fn holds(&self, job: &JobId) -> Option<(RoundId, ContentHash)> {
        let job = self.jobs.get(job)?;
        let model = job.model.as_ref().map(|model| (model.round, model.hash));
        let working = job.current.as_ref().filter(|current| current.working).map(|current| &current.start);
        let start = working.or(job.sent.as_ref().map(|(start, _)| start));
        model.or(start.map(|start| (start.round, start.model)))
    }

    /// Takes what happened, returns what to do.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::JobAccepted(contract) => {
                self.jobs.entry(contract.job).or_insert(Job {
                    contract,
                    current: None,
                    model: None,
                    sent: None,
                });
                Vec::new()
            }
            Event::RoundStarted(start) => {
                let Some(job) = self.jobs.get_mut(&start.job) else { return Vec::new() };
                if job.contract.contract.task(start.round) != Some(start.task) {
                    return vec![Action::Skip { job: start.job, round: start.round }];
                }
                // Where each site goes at its own pace, its update counts also if the model has moved on since.
                let buffered = is_buffered(&job.contract.contract);
                let same = |old: &RoundStart| *old == start || (buffered && old.round == start.round);
                if let Some((_, contribution)) = job.sent.as_ref().filter(|(sent, _)| same(sent)) {
                    return vec![Action::Send { start, contribution: contribution.clone() }];
                }
                job.sent = None;
                let working = job.current.take_if(|current| current.working && same(&current.start));
                job.current = Some(working.unwrap_or(Current { start, working: false }));
                job.begin()
            }
            Event::ModelArrived(model) => {
                let Some(job) = self.jobs.get_mut(&model.job) else { return Vec::new() };
                job.model = Some(model);
                job.begin()
            }
            Event::Worked { job: id, round, contribution } => {
                let Some(job) = self.jobs.get_mut(&id) else { return Vec::new() };
                let Some(current) = job.current.take_if(|current| current.start.round == round) else {
                    return Vec::new();
                };
                match contribution {
                    Some(contribution) => {
                        job.sent = Some((current.start.clone(), contribution.clone()));
                        vec![Action::Send { start: current.start, contribution }]
                    }
                    None => vec![Action::Skip { job: id, round }],
                }
            }
            Event::JobEnded(job) => {
                self.jobs.remove(&job);
                vec![Action::Close(job)]
            }
        }
    }

    /// The connection is gone: rounds will be started again. What is whole is kept.
    pub fn disconnected(&mut self) {
        for job in self.jobs.values_mut() {
            job.current.take_if(|current| !current.working);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contribute::Contribution;
    use std::sync::Arc;
    use weighhouse_shared::job::{FederationSchedule, JobContract, RoundTask};

    fn accepted() -> (Rounds, CheckedContract) {
        let contract: Arc<JobContract> = Arc::new(crate::offer::sample_contract());
        let checked = CheckedContract { job: contract.id(), contract };
        let mut rounds = Rounds::default();
        rounds.handle(Event::JobAccepted(checked.clone()));
        (rounds, checked)
    }

    fn start(job: JobId, round: u32) -> RoundStart {
        let task = RoundTask { train: true, evaluate: round.is_multiple_of(5) };
        RoundStart { job, round: RoundId(round), task, model: ContentHash::of(&[round as u8]) }
    }

    fn arrived(job: JobId, round: u32) -> Event {
        let hash = ContentHash::of(&[round as u8]);
        Event::ModelArrived(GlobalModel { job, round: RoundId(round), hash, parameters: Vec::new() })
    }

    #[test]
    fn work_begins_whichever_of_start_and_model_comes_first() {
        for model_first in [false, true] {
            let (mut rounds, checked) = accepted();
            let mut events = vec![Event::RoundStarted(start(checked.job, 0)), arrived(checked.job, 0)];
            if model_first {
                events.reverse();
            }
            let actions: Vec<Action> = events.into_iter().flat_map(|event| rounds.handle(event)).collect();
            assert!(matches!(actions.as_slice(), [Action::Work { .. }]), "{actions:?}");
        }
    }

    #[test]
    fn a_round_started_again_while_it_is_worked_on_is_not_worked_on_twice() {
        let (mut rounds, checked) = accepted();
        rounds.handle(Event::RoundStarted(start(checked.job, 0)));
        rounds.handle(arrived(checked.job, 0));
        rounds.disconnected();
        assert!(rounds.handle(Event::RoundStarted(start(checked.job, 0))).is_empty());
        assert!(rounds.handle(arrived(checked.job, 0)).is_empty());
        let contribution = Some(Contribution { evaluation: None, update: None, charges: Vec::new() });
        let worked = Event::Worked { job: checked.job, round: RoundId(0), contribution };
        assert!(matches!(rounds.handle(worked).as_slice(), [Action::Send { .. }]));
    }

    #[test]
    fn what_was_sent_is_sent_again_without_its_model_and_a_model_outlives_a_lost_connection() {
        let (mut rounds, checked) = accepted();
        let held = |rounds: &Rounds| rounds.holds(&checked.job).map(|(round, _)| round.0);
        assert_eq!(held(&rounds), None);
        rounds.handle(arrived(checked.job, 0));
        rounds.disconnected();
        assert_eq!(held(&rounds), Some(0));
        assert!(matches!(
            rounds.handle(Event::RoundStarted(start(checked.job, 0))).as_slice(),
            [Action::Work { .. }]
        ));
        assert_eq!(held(&rounds), Some(0));
        let contribution = Some(Contribution { evaluation: None, update: None, charges: Vec::new() });
        rounds.handle(Event::Worked { job: checked.job, round: RoundId(0), contribution });
        rounds.disconnected();
        assert_eq!(held(&rounds), Some(0));
        let again = rounds.handle(Event::RoundStarted(start(checked.job, 0)));
        assert!(matches!(again.as_slice(), [Action::Send { .. }]));
        rounds.handle(Event::RoundStarted(start(checked.job, 1)));
        assert_eq!(held(&rounds), None);
    }

    #[test]
    fn work_for_a_round_that_is_over_is_dropped_and_a_task_outside_the_contract_is_skipped() {
        let (mut rounds, checked) = accepted();
        rounds.handle(Event::RoundStarted(start(checked.job, 0)));
        rounds.handle(arrived(checked.job, 0));
        rounds.handle(Event::RoundStarted(start(checked.job, 1)));
        let worked = Event::Worked { job: checked.job, round: RoundId(0), contribution: None };
        assert!(rounds.handle(worked).is_empty());
        let beyond = start(checked.job, 10_000);
        assert!(matches!(rounds.handle(Event::RoundStarted(beyond)).as_slice(), [Action::Skip { .. }]));
        let mut other = start(checked.job, 1);
        other.task.evaluate = true;
        assert!(matches!(rounds.handle(Event::RoundStarted(other)).as_slice(), [Action::Skip { .. }]));
    }

    #[test]
    fn at_its_own_pace_a_site_is_not_asked_twice_for_one_update_though_the_model_moves_on() {
        for (schedule, again) in [
            (FederationSchedule::Buffered { buffer_size: 1 }, false),
            (FederationSchedule::Synchronous, true),
        ] {
            let mut contract = crate::offer::sample_contract();
            contract.federation.schedule = schedule;
            let checked = CheckedContract { job: contract.id(), contract: contract.into() };
            let task = checked.contract.task(RoundId(1)).unwrap();
            let first = RoundStart { task, ..start(checked.job, 1) };
            let model = ContentHash::of(b"newer");
            let newer = RoundStart { model, ..first.clone() };
            let arrived = |start: &RoundStart| {
                let (job, round, hash) = (start.job, start.round, start.model);
                Event::ModelArrived(GlobalModel { job, round, hash, parameters: Vec::new() })
            };
            let mut rounds = Rounds::default();
            rounds.handle(Event::JobAccepted(checked.clone()));
            rounds.handle(Event::RoundStarted(first.clone()));
            assert!(matches!(rounds.handle(arrived(&first)).as_slice(), [Action::Work { .. }]));
            rounds.disconnected();
            rounds.handle(Event::RoundStarted(newer.clone()));
            let worked = rounds.handle(arrived(&newer));
            assert_eq!(matches!(worked.as_slice(), [Action::Work { .. }]), again);
            let contribution = Some(Contribution { evaluation: None, update: None, charges: Vec::new() });
            rounds.handle(Event::Worked { job: checked.job, round: RoundId(1), contribution });
            let sent = rounds.handle(Event::RoundStarted(first));
            assert_eq!(matches!(sent.as_slice(), [Action::Send { .. }]), !again);
        }
    }

    #[test]
    fn a_job_that_was_not_accepted_gets_nothing() {
        let mut rounds = Rounds::default();
        let job = JobId::from_bytes([1; 32]);
        assert!(rounds.handle(Event::RoundStarted(start(job, 0))).is_empty());
        assert!(rounds.handle(arrived(job, 0)).is_empty());
        assert_eq!(rounds.model_len(&job), None);
    }
}
