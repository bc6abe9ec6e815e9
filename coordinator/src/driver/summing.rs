//! Jobs in a secure sum: keys, offers and answers in; rosters, batches and questions out, each kept before it is sent.

use super::{Driver, DriverError, spool_failed};
use crate::admission::AdmittedUpdate;
use crate::job::Event;
use std::collections::BTreeSet;
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::secure_sum::coordinator::OpenError;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, SumAnswer, SumBatch, SumKey, SumOffer, SumQuestion, SumRoster,
};

impl Driver {
    pub(super) fn take_sum_key(&mut self, site: SiteId, told: SumKey) -> Result<(), DriverError> {
        let SumKey { job: id, key } = told;
        let sums = self.jobs.get_mut(&id).and_then(|job| job.sums.as_mut());
        if sums.is_some_and(|sums| sums.take_key(site, key)) {
            return self.step(id, Event::Keyed(site));
        }
        tracing::warn!(site = %site.short(), job = %id.short(), "a key for secure sums was refused");
        Ok(())
    }

    pub(super) fn take_sum_offer(&mut self, site: SiteId, told: SumOffer) -> Result<(), DriverError> {
        let SumOffer { job: id, offer } = told;
        let sums = self.jobs.get_mut(&id).and_then(|job| job.sums.as_mut());
        match sums.and_then(|sums| sums.take_offer(site, offer)) {
            Some(batch) => self.step(id, Event::Offered(site, batch)),
            None => Ok(()),
        }
    }

    pub(super) fn take_sum_answer(&mut self, site: SiteId, told: SumAnswer) -> Result<(), DriverError> {
        let SumAnswer { job: id, answer } = told;
        let sums = self.jobs.get_mut(&id).and_then(|job| job.sums.as_mut());
        if sums.is_some_and(|sums| sums.take_answer(site, answer)) {
            return self.step(id, Event::SumAnswered(site));
        }
        tracing::debug!(site = %site.short(), job = %id.short(), "an answer to another question was ignored");
        Ok(())
    }

    pub(super) fn fix_sum_roster(
        &mut self,
        id: JobId,
        group: usize,
        sites: &BTreeSet<SiteId>,
    ) -> Result<(), DriverError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let contract = job.machine.contract().clone();
        let Some(sums) = &mut job.sums else { return Ok(()) };
        if let Err(error) = sums.fix_roster(&contract, group, sites, &self.parts.store)? {
            // Each key was checked when it came: what is left is a graph that cannot be.
            return self.step(id, Event::Fail(error.to_string()));
        }
        self.parts.store.sync()?;
        tracing::info!(job = %id.short(), group, sites = sites.len(), "the roster of the secure sums is fixed");
        sites.iter().for_each(|site| self.tell_sum_roster(id, *site));
        Ok(())
    }

    pub(super) fn fix_sum_batch(
        &mut self,
        id: JobId,
        group: usize,
        number: u32,
        sites: &BTreeSet<SiteId>,
    ) -> Result<(), DriverError> {
        let sums = self.jobs.get_mut(&id).and_then(|job| job.sums.as_mut());
        let Some(sums) = sums else { return Ok(()) };
        sums.fix_batch(group, number, sites, &self.parts.store)?;
        self.parts.store.sync()?;
        sites.iter().for_each(|site| self.tell_sum_batch(id, *site));
        Ok(())
    }

    /// Tells a site what is fixed.
    pub(super) fn brief(&self, id: JobId, site: SiteId) {
        self.tell_sum_roster(id, site);
        self.tell_sum_batch(id, site);
    }

    fn tell_sum_roster(&self, job: JobId, site: SiteId) {
        let sums = self.jobs.get(&job).and_then(|job| job.sums.as_ref());
        if let Some(keys) = sums.and_then(|sums| sums.roster_for(site)) {
            self.send(site, CoordinatorToSite::SumRoster(SumRoster { job, keys }));
        }
    }

    fn tell_sum_batch(&self, job: JobId, site: SiteId) {
        let sums = self.jobs.get(&job).and_then(|job| job.sums.as_ref());
        if let Some(grant) = sums.and_then(|sums| sums.batch_for(site)) {
            self.send(site, CoordinatorToSite::SumBatch(SumBatch { job, grant }));
        }
    }

    /// Adds masked integers to the round's sum.
    pub(super) fn add_to_sum(
        &mut self,
        id: JobId,
        site: SiteId,
        round: RoundId,
        update: AdmittedUpdate,
    ) -> Result<(), DriverError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let network = job.machine.contract().network();
        let parameters = network.map(|network| network.parameter_count()).unwrap_or_default();
        let Some(sums) = &mut job.sums else { return Ok(()) };
        tokio::task::block_in_place(|| sums.add(site, round, parameters, update)).map_err(spool_failed)
    }

    pub(super) fn keep_sums(
        &mut self,
        id: JobId,
        round: RoundId,
        groups: &[usize],
    ) -> Result<(), DriverError> {
        let sums = self.jobs.get_mut(&id).and_then(|job| job.sums.as_mut());
        let Some(sums) = sums else { return Ok(()) };
        tokio::task::block_in_place(|| sums.keep(round, groups, &self.parts.store))?;
        Ok(self.parts.store.sync()?)
    }

    pub(super) fn ask(
        &mut self,
        id: JobId,
        group: usize,
        round: RoundId,
        sites: &BTreeSet<SiteId>,
    ) -> Result<(), DriverError> {
        let sums = self.jobs.get_mut(&id).and_then(|job| job.sums.as_mut());
        let Some(question) = sums.and_then(|sums| sums.ask(group, round, sites)) else {
            return self.step(id, Event::SumLost(group));
        };
        for site in sites {
            let question = question.clone();
            self.send(*site, CoordinatorToSite::SumQuestion(SumQuestion { job: id, question }));
        }
        Ok(())
    }

    /// Opens the round's sum of a group, away from the other sites' messages.
    pub(super) fn open_sum(&mut self, id: JobId, group: usize) -> Result<(), DriverError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let Some(sums) = &mut job.sums else { return Ok(()) };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let opened = tokio::task::block_in_place(|| sums.open(group, threads));
        let event = match opened {
            Ok(()) => Event::SumOpened(group),
            Err(OpenError::Faulty(numbers)) => {
                let sites = sums.sites(group, &numbers);
                tracing::warn!(job = %id.short(), group, sites = sites.len(), "answers did not open");
                Event::SumFaulty(group, sites)
            }
            Err(error) => {
                tracing::warn!(job = %id.short(), group, %error, "a round's sum could not be opened");
                Event::SumLost(group)
            }
        };
        self.step(id, event)
    }
}
