//! From a closed round to its commit: what its updates come to is worked out, stored, and only then told.
//!
//! Rules that compare all updates take long on a large round. They are worked out apart from the driver
//! ([`Closed::combine`]), which goes on with other jobs and all sites meanwhile. The job itself waits: its machine is
//! committing, so nothing of it counts, and nothing of the round is on disk before [`Driver::combined`]; a process that is
//! killed until then begins the round again. A mean is ready with its last update and is committed at once.

use super::{Action, Driver, DriverError, Event, JobEvent, spool_failed, tell};
use crate::aggregate::Aggregate;
use crate::global_model::GlobalModel;
use crate::opened_sum::{self, StepError};
use crate::secure_sum::{JobSums, OpenedSum};
use std::io;
use weighhouse_shared::evaluation::Quality;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::ServerState;
use weighhouse_shared::privacy::accountant::{self, GaussianEvent};
use weighhouse_shared::wire::messages::RoundSummary;

/// A closed round on its way to the disk.
#[derive(Debug)]
pub struct Closed {
    job: JobId,
    round: RoundId,
    /// The model that the round started from.
    base: ContentHash,
    /// That model, and then the next one.
    model: GlobalModel,
    state: Option<ServerState>,
    aggregate: Option<Aggregate>,
    /// In a secure sum: what came of it.
    summed: Option<Summed>,
    /// Counts of the round's histograms, and how many there are.
    histogram: Option<(Vec<i64>, u32)>,
}

/// What came of the secure sums of a round.
#[derive(Debug)]
struct Summed {
    /// Whose updates are in them.
    sites: u32,
    /// The one sum over all; those of groups are in the aggregate.
    whole: Option<Vec<u32>>,
}

impl Closed {
    /// Moves the model by what the round's updates come to. Needs nothing of the driver.
    pub fn combine(mut self) -> io::Result<Self> {
        if let Some(aggregate) = &mut self.aggregate {
            self.model = self.model.moved_by(aggregate.combine()?, self.state.as_mut());
        }
        Ok(self)
    }
}

impl Driver {
    /// Closes the round; nothing of it counts if it is given up.
    pub(super) fn commit(&mut self, id: JobId, round: RoundId, counts: bool) -> Result<(), DriverError> {
        // From the store, if it is not in memory.
        let base = self.model(id)?.hash;
        let task = self.jobs.get(&id).and_then(|job| job.machine.contract().task(round));
        let trains = task.is_some_and(|task| task.train);
        let state = if trains { self.take_server_state(id)? } else { None };
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let (mut aggregate, histogram) = (job.aggregate.take(), job.histogram.take());
        let opened = job.sums.as_mut().filter(|_| trains).map(JobSums::take_opened).filter(|_| counts);
        if !counts && let Some(aggregate) = &mut aggregate {
            aggregate.clear().map_err(spool_failed)?;
        }
        let contract = job.machine.contract().clone();
        let Some(model) = job.model.take() else { return Ok(()) };
        let histogram = histogram.filter(|_| counts);
        let summed = match opened {
            None => None,
            Some(opened) if contract.federation.sum_groups().is_none() => {
                opened.into_iter().next().map(|sum| Summed { sites: sum.sites, whole: Some(sum.values) })
            }
            Some(opened) => {
                let mut groups = match aggregate.take() {
                    Some(aggregate) => aggregate,
                    None => self.aggregate(&contract)?,
                };
                let sites = add_groups(&mut groups, &contract, round, opened)?;
                aggregate = Some(groups);
                Some(Summed { sites, whole: None })
            }
        };
        let closed = Closed { job: id, round, base, model, state, aggregate, summed, histogram };
        if closed.aggregate.as_ref().is_some_and(Aggregate::compares) {
            self.closed.push_back(closed);
            return Ok(());
        }
        let combined = tokio::task::block_in_place(|| closed.combine());
        self.store_round(combined.map_err(spool_failed)?)
    }

    /// A closed round whose updates are to be combined, on whatever thread, and handed to
    /// [`combined`](Self::combined).
    pub fn next_closed(&mut self) -> Option<Closed> {
        self.closed.pop_front()
    }

    /// The updates of a closed round were combined; it is `now`, as in [`handle`](Self::handle).
    pub fn combined(&mut self, closed: io::Result<Closed>, now: u64) -> Result<(), DriverError> {
        self.now = now;
        self.store_round(closed.map_err(spool_failed)?)
    }

    /// Stores what the closed round came to, then goes on.
    fn store_round(&mut self, closed: Closed) -> Result<(), DriverError> {
        let Closed { job: id, round, base, model: mut new, mut state, aggregate, summed, histogram } = closed;
        let now = self.now;
        // It may have been stopped in the meantime.
        let committing = self.jobs.get_mut(&id).filter(|job| job.machine.is_committing(round));
        let Some(job) = committing else { return Ok(()) };
        let contract = job.machine.contract().clone();
        let trains = contract.task(round).is_some_and(|task| task.train);
        let concludes = trains && round.0 + 1 == contract.training.rounds;
        let evaluations = histogram.as_ref().map_or(0, |(_, sites)| *sites);
        let updates = match &summed {
            Some(summed) => summed.sites,
            None => aggregate.as_ref().map_or(0, Aggregate::updates),
        };
        let sites = if trains { updates } else { evaluations };
        job.aggregate = aggregate;
        if let Some(aggregate) = &mut job.aggregate {
            aggregate.clear().map_err(spool_failed)?;
        }
        if let Some(Summed { sites, whole: Some(sum) }) = summed {
            let step = || opened_sum::step(new, &contract, round, &sum, sites, state.as_mut());
            new = tokio::task::block_in_place(step).map_err(step_failed)?;
        }
        // From here on the model is what is measured and exported.
        if concludes {
            new = new.concluded(state.take().as_ref());
        }
        let quality = histogram.map(|(counts, _)| Quality::of_counts(&contract.schema.label.kind, &counts));
        // With the buffered schedule a quick site has released more updates than there were steps.
        let most = job.machine.released().map(|released| released.values().max().copied().unwrap_or(0));
        let trained = most.unwrap_or(round.0 + 1).min(contract.training.rounds);
        let steps = trained * contract.training.local_steps;
        let charge = GaussianEvent { steps, ..contract.training_charge() };
        let epsilon = accountant::renyi_epsilon(&[charge], contract.privacy.delta);
        let summary = RoundSummary { round, sites, model: new.hash, quality, epsilon };
        let changed = new.hash != base;
        if changed {
            self.parts.store.put_model(new.hash, &new.bytes)?;
        }
        if let Some(state) = &state {
            self.parts.store.put_server_state(id, round.next(), state)?;
        }
        self.parts.store.put_round(id, &summary)?;
        let actions = job.machine.handle(Event::Committed(new.hash), now);
        job.model = Some(new);
        let keeps_state = state.is_some();
        job.state = state;
        self.save_with_witnesses(id)?;
        tracing::info!(sites, "a round is committed");
        // Only now: until the sync, a restart begins from the old model and state.
        // Jobs of one kind start from one model.
        let shared = self.jobs.values().any(|job| job.machine.model() == base);
        if changed && !shared {
            self.parts.store.forget_model(base)?;
        }
        let sums = self.jobs.get(&id).and_then(|job| job.sums.as_ref()).filter(|_| trains);
        if let Some(sums) = sums {
            sums.forget_round(&self.parts.store)?;
        }
        if keeps_state || concludes {
            self.parts.store.forget_server_states(id, keeps_state.then(|| round.next()))?;
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            tell(&mut job.watchers, JobEvent::Committed(summary));
        }
        self.parts.metrics.rounds_committed.inc();
        for action in actions {
            match action {
                Action::StartRound(site, round, task) => self.start_round(id, site, round, task)?,
                Action::End(status) => self.end(id, status)?,
                Action::FixBatch(group, number, sites) => self.fix_sum_batch(id, group, number, &sites)?,
                Action::FixRoster(group, sites) => self.fix_sum_roster(id, group, &sites)?,
                Action::Save
                | Action::Brief(_)
                | Action::KeepSums(..)
                | Action::Ask(..)
                | Action::OpenSum(..)
                | Action::Offer(_)
                | Action::Commit(_)
                | Action::GiveUp(_)
                | Action::Late(..)
                | Action::Dismiss(_) => {}
            }
        }
        Ok(())
    }
}

fn add_groups(
    aggregate: &mut Aggregate,
    contract: &JobContract,
    round: RoundId,
    opened: Vec<OpenedSum>,
) -> Result<u32, DriverError> {
    tracing::info!(groups = opened.len(), "the sums of groups are open");
    tokio::task::block_in_place(|| opened_sum::add_groups(aggregate, contract, round, opened))
        .map_err(step_failed)
}

fn step_failed(error: StepError) -> DriverError {
    match error {
        StepError::Spool(error) => spool_failed(error),
        error => DriverError::Job { reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::super::witnessing::tests::{
        SITE, accept, announce, connect, drain, driver, receipts, submit, update,
    };
    use super::super::{Input, JobStatus};
    use super::*;
    use std::path::Path;
    use weighhouse_shared::wire::messages::{OperatorToCoordinator, Outcome, StopJob};

    const COMPARES: &str = "strategy = \"fedmedian\"\n[training]\nrounds = 2";

    /// The one site's update to round 0 of `job` comes in; `entries` counts up.
    fn contribute(driver: &mut Driver, entries: u64, job: JobId, spool: &Path) {
        announce(driver, entries, job, RoundId(0));
        let update = update(driver, job, RoundId(0), [1 << 20, -5], spool);
        driver.take(Input::Update(SITE, update)).unwrap();
    }

    #[test]
    fn while_the_updates_of_one_job_are_compared_another_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(&folder.path().join("state"));
        let mut sent = connect(&mut driver, 1, 3);
        let slow = submit(&mut driver, COMPARES);
        let quick = submit(&mut driver, "[training]\nrounds = 2");
        let start = driver.jobs[&slow].machine.model();
        contribute(&mut driver, 10, slow, folder.path());
        let closed = driver.next_closed().expect("the round is closed");
        assert!(driver.next_closed().is_none());
        drain(&mut sent);

        contribute(&mut driver, 11, quick, folder.path());
        assert_eq!(driver.jobs[&quick].machine.round(), RoundId(1));
        contribute(&mut driver, 12, slow, folder.path());
        assert_eq!(receipts(&drain(&mut sent)), [Outcome::Admitted, Outcome::Repeated]);
        assert_eq!(driver.jobs[&slow].machine.model(), start);
        assert!(driver.parts.store.rounds(slow).unwrap().is_empty(), "nothing is on disk before its time");

        driver.combined(closed.combine(), 1).unwrap();
        assert_eq!(driver.jobs[&slow].machine.round(), RoundId(1));
        assert_eq!(driver.parts.store.rounds(slow).unwrap().len(), 1);
        // Of one update, median and mean are the same.
        assert_eq!(driver.jobs[&slow].machine.model(), driver.jobs[&quick].machine.model());
        assert_ne!(driver.jobs[&slow].machine.model(), start);
    }

    #[test]
    fn a_job_that_is_stopped_while_its_updates_are_compared_keeps_the_model_that_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(&folder.path().join("state"));
        let _sent = connect(&mut driver, 1, 3);
        let job = submit(&mut driver, COMPARES);
        let start = driver.jobs[&job].machine.model();
        contribute(&mut driver, 10, job, folder.path());
        let closed = driver.next_closed().unwrap();
        driver.request(OperatorToCoordinator::StopJob(StopJob { job })).ok().unwrap();
        driver.combined(closed.combine(), 1).unwrap();
        let machine = &driver.jobs[&job].machine;
        assert_eq!((machine.status(), machine.model()), (&JobStatus::Stopped, start));
        assert!(driver.parts.store.rounds(job).unwrap().is_empty());
    }

    #[test]
    fn a_coordinator_killed_while_updates_are_compared_takes_the_round_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut first = driver(&state);
        let sent = connect(&mut first, 1, 3);
        let job = submit(&mut first, COMPARES);
        contribute(&mut first, 10, job, folder.path());
        assert!(first.next_closed().is_some());
        drop((first, sent));

        let mut second = driver(&state);
        let _sent = connect(&mut second, 1, 11);
        accept(&mut second, job);
        contribute(&mut second, 12, job, folder.path());
        let closed = second.next_closed().unwrap();
        second.combined(closed.combine(), 1).unwrap();
        assert_eq!(second.jobs[&job].machine.round(), RoundId(1));
    }
}
