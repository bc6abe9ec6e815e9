//! Contributions that sites send: held against the job's state and the site's debit, then added to the round or refused.

use super::{Driver, DriverError, spool_failed, tell};
use crate::admission::{ParsedUpdate, check_len};
use crate::aggregate::Aggregate;
use crate::job::{Event, Part};
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::Population;
use weighhouse_shared::wire::messages::{Evaluation, JobEvent, Outcome};

impl Driver {
    pub(super) fn count_update(&mut self, site: SiteId, update: ParsedUpdate) -> Result<(), DriverError> {
        let Some(update) = self.received_update(site, update)? else { return Ok(()) };
        let (id, round, base) = (update.job, update.round, update.base);
        let Some(job) = self.jobs.get(&id) else {
            return self.refuse(site, id, round, Outcome::WrongRound);
        };
        let verdict = job.machine.verdict(site, round, Some(base), Part::Update);
        let verdict = verdict.and_then(|()| self.check_charge(site, id, round, Population::Training));
        match update.admit(verdict) {
            Err(outcome) => self.refuse(site, id, round, outcome),
            Ok(admitted) if self.jobs.get(&id).is_some_and(|job| job.sums.is_some()) => {
                self.add_to_sum(id, site, round, admitted)?;
                self.admitted(site, id, round);
                self.counted(id, site, Part::Update, round)
            }
            Ok(admitted) => {
                let contract = job.machine.contract().clone();
                let new = if job.aggregate.is_none() { Some(self.aggregate(&contract)?) } else { None };
                let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
                job.aggregate = new.or_else(|| job.aggregate.take());
                let staleness = job.machine.staleness(base);
                let Some(aggregate) = &mut job.aggregate else { return Ok(()) };
                // Reading back what was spooled fails only with the disk; the aggregate is then unusable.
                tokio::task::block_in_place(|| aggregate.add(admitted, staleness)).map_err(spool_failed)?;
                self.admitted(site, id, round);
                self.counted(id, site, Part::Update, round)
            }
        }
    }

    /// Of no update yet, for a round of `contract`.
    pub(super) fn aggregate(&self, contract: &JobContract) -> Result<Aggregate, DriverError> {
        let parameters = contract.network().map(|network| network.parameter_count()).unwrap_or_default();
        Aggregate::new(parameters, &contract.federation, &self.parts.spool).map_err(spool_failed)
    }

    pub(super) fn count_evaluation(
        &mut self,
        site: SiteId,
        evaluation: Evaluation,
    ) -> Result<(), DriverError> {
        let (id, round) = (evaluation.job, evaluation.round);
        let Some(job) = self.jobs.get(&id) else { return Ok(()) };
        let bins = job.machine.contract().evaluation.as_ref().map_or(0, |plan| plan.bins as usize);
        let mut verdict = match self.faults(site).is_exceeded(self.now) {
            true => Err(Outcome::RateLimited),
            false => job.machine.verdict(site, round, None, Part::Evaluation),
        };
        if !self.received_evaluation(site, &evaluation)? && verdict.is_ok() {
            verdict = Err(Outcome::Unwitnessed);
        }
        // Counts of at most 2^40 units each keep any sum of sites within 64 bits.
        let histogram = evaluation.histogram;
        let verdict = verdict
            .and_then(|()| check_len(histogram.len() as u64, 2 * bins as u64))
            .and_then(|()| {
                let in_range = histogram.iter().all(|count| count.unsigned_abs() <= 1 << 40);
                in_range.then_some(()).ok_or(Outcome::OutOfRange)
            })
            .and_then(|()| self.check_charge(site, id, round, Population::Holdout));
        match verdict {
            Err(outcome) => self.refuse(site, id, round, outcome),
            Ok(()) => {
                let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
                let (sum, sites) = job.histogram.get_or_insert_with(|| (vec![0; 2 * bins], 0));
                sum.iter_mut().zip(&histogram).for_each(|(sum, count)| *sum += count);
                *sites += 1;
                self.admitted(site, id, round);
                self.counted(id, site, Part::Evaluation, round)
            }
        }
    }

    fn counted(&mut self, id: JobId, site: SiteId, part: Part, round: RoundId) -> Result<(), DriverError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let trains = job.machine.contract().task(round).is_some_and(|task| task.train);
        if trains == (part == Part::Update) {
            let (sites_in, sites) = job.machine.contributions();
            let (sites_in, round) = ((sites_in + 1).min(sites), job.machine.round());
            tell(&mut job.watchers, JobEvent::Contributed { round, sites_in, sites });
        }
        self.step(id, Event::Counted(site, part))
    }
}
