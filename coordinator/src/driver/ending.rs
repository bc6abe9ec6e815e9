//! The end of a job, and who is told of it: those that may have set budget aside, and nobody else.

use super::{Driver, DriverError, Job, tell};
use crate::job::Event;
use std::collections::BTreeSet;
use weighhouse_shared::ids::{JobId, SiteId};
use weighhouse_shared::wire::messages::{CoordinatorToSite, Decision, JobEnded, JobEvent, JobStatus};

impl Job {
    /// Once it is over: the sites that it was offered to and that did not answer, if that is known.
    pub(super) fn unanswered(&self) -> Option<BTreeSet<SiteId>> {
        let offered = self.offered.as_ref().filter(|_| self.machine.status().is_final())?;
        Some(offered.iter().copied().filter(|site| self.machine.answer(*site).is_none()).collect())
    }

    /// Whether `site` may have set budget aside for it: it agreed, or its answer may have got lost.
    fn may_bind(&self, site: SiteId) -> bool {
        match self.machine.answer(site) {
            Some(decision) => awaits_the_end(&decision),
            None => self.offered.as_ref().is_none_or(|offered| offered.contains(&site)),
        }
    }
}

impl Driver {
    /// Ends a job whose state is saved: frees what it held and tells watchers and sites.
    pub(super) fn end(&mut self, id: JobId, status: JobStatus) -> Result<(), DriverError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        job.aggregate = None;
        job.histogram = None;
        job.model = None;
        job.state = None;
        job.sums = None;
        self.parts.spool.clear();
        self.parts.store.forget_sums(id)?;
        self.parts.store.forget_server_states(id, None)?;
        let mut watchers = std::mem::take(&mut job.watchers);
        if let Some(refusals) = job.refusals_event() {
            tell(&mut watchers, refusals);
        }
        tell(&mut watchers, JobEvent::Status(status.clone()));
        for (site, decision) in job.machine.answers() {
            if awaits_the_end(&decision) {
                let status = status.clone();
                self.send(site, CoordinatorToSite::JobEnded(JobEnded { job: id, status }));
            }
        }
        Ok(())
    }

    /// Tells a site that comes back, or whose answer crossed the end, that the job is over.
    pub(super) fn tell_ended(&self, id: JobId, event: &Event) {
        let Some(job) = self.jobs.get(&id) else { return };
        let site = match event {
            Event::SiteOnline(site) if job.may_bind(*site) => *site,
            Event::Answered(site, decision) if awaits_the_end(decision) => *site,
            _ => return,
        };
        let status = job.machine.status().clone();
        self.send(site, CoordinatorToSite::JobEnded(JobEnded { job: id, status }));
    }
}

/// Whether a site that answered so wants to know when the job is over.
fn awaits_the_end(decision: &Decision) -> bool {
    matches!(decision, Decision::Accepted | Decision::Waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::witnessing::tests::{SITE, connect, drain, driver, head, submit};
    use crate::driver::{Input, Outgoing, ToSite, outbox};
    use weighhouse_shared::wire::messages::{OperatorToCoordinator, StopJob};

    const SILENT: SiteId = SiteId::from_bytes([2; 32]);
    const LATER: SiteId = SiteId::from_bytes([3; 32]);

    fn connect_as(driver: &mut Driver, site: SiteId) -> Outgoing {
        let (outbox, sent) = outbox();
        driver.take(Input::Connected { site, session: 1, head: head(3, None), outbox }).unwrap();
        sent
    }

    /// Whether one of the messages is that the job ended.
    fn ends(sent: &mut Outgoing) -> bool {
        drain(sent).iter().any(|sent| matches!(sent, ToSite::Message(CoordinatorToSite::JobEnded(_))))
    }

    #[test]
    fn the_end_of_a_job_is_told_to_those_it_was_offered_to_over_a_restart_and_to_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut first = driver(&state);
        let mut accepted = connect(&mut first, 1, 3);
        let mut silent = connect_as(&mut first, SILENT);
        let job = submit(&mut first, "[training]\nrounds = 2");
        assert!(first.request(OperatorToCoordinator::StopJob(StopJob { job })).is_ok());
        assert!(ends(&mut accepted) && !ends(&mut silent), "an open offer is not yet a reservation");
        assert!(!ends(&mut connect_as(&mut first, LATER)));
        drop(first);
        let mut second = driver(&state);
        for (site, told) in [(SITE, true), (SILENT, true), (LATER, false)] {
            assert_eq!(ends(&mut connect_as(&mut second, site)), told, "{site:?}");
        }
    }
}
