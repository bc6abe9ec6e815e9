//! Contributions that do not count: told to the site, counted by reason, and no longer read from a site at fault
//! again and again.

use super::{Driver, DriverError, Job, tell};
use crate::admission::{Expected, FaultRate, check_len};
use crate::job::Part;
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::ledger::{Charge, Population};
use weighhouse_shared::privacy::accountant::GaussianEvent;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, JobEvent, JobRefusals, Outcome, Receipt, RefusalCount,
};
use weighhouse_shared::wire::stream::Piece;

impl Job {
    /// How many contributions were refused, by reason.
    pub(super) fn refusal_counts(&self) -> Vec<RefusalCount> {
        self.refused
            .iter()
            .map(|(outcome, count)| RefusalCount { outcome: *outcome, count: *count })
            .collect()
    }

    /// The same for watchers; None if there are none.
    pub(super) fn refusals_event(&self) -> Option<JobEvent> {
        (!self.refused.is_empty()).then(|| JobEvent::Refusals(self.refusal_counts()))
    }
}

impl Driver {
    /// How often `site` was at fault lately.
    pub(super) fn faults(&self, site: SiteId) -> FaultRate {
        self.faults.get(&site).copied().unwrap_or_default()
    }

    /// Whether the update that `piece` begins is read: what the job's updates are as bytes, or why not. What needs no
    /// body is checked here, so that a refused update costs no bandwidth.
    pub(super) fn announced(&self, site: SiteId, piece: &Piece) -> Result<Expected, Outcome> {
        if self.faults(site).is_exceeded(self.now) {
            return Err(Outcome::RateLimited);
        }
        let job = self.jobs.get(&piece.job).ok_or(Outcome::WrongRound)?;
        let encoding = job.machine.contract().update_encoding().map_err(|_| Outcome::WrongRound)?;
        check_len(piece.total, encoding.len())?;
        job.machine.verdict(site, piece.round, Some(piece.base), Part::Update)?;
        Ok(Expected { encoding, masked: job.sums.is_some() })
    }

    /// Whether the ledger of `site` debited for its contribution what the contract says.
    pub(super) fn check_charge(
        &self,
        site: SiteId,
        id: JobId,
        round: RoundId,
        population: Population,
    ) -> Result<(), Outcome> {
        let contract = self.jobs.get(&id).map(|job| job.machine.contract());
        let event = contract.and_then(|contract| match population {
            Population::Training => Some(contract.round_charge()),
            Population::Holdout => {
                contract.evaluation_charge().map(|charge| GaussianEvent { steps: 1, ..charge })
            }
        });
        let due = event.map(|event| (round, Charge { population, event }));
        let paid = self.debited(site, id, population);
        if due.is_some() && paid == due { Ok(()) } else { Err(Outcome::WrongCharge) }
    }

    /// A contribution counts.
    pub(super) fn admitted(&self, site: SiteId, job: JobId, round: RoundId) {
        self.parts.metrics.contributed(Outcome::Admitted.label());
        self.send(site, CoordinatorToSite::Receipt(Receipt { job, round, outcome: Outcome::Admitted }));
    }

    /// A contribution does not count: its site is told why, watchers are told, and its job's counters are on their way to
    /// disk. The sync of the next commit makes them durable. Of one that counted before, its site alone is told.
    pub(super) fn refuse(
        &mut self,
        site: SiteId,
        id: JobId,
        round: RoundId,
        outcome: Outcome,
    ) -> Result<(), DriverError> {
        self.parts.metrics.contributed(outcome.label());
        if outcome == Outcome::Repeated {
            // It counted when it came first: sent again after a lost link, it is nobody's concern but the site's.
            self.send(site, CoordinatorToSite::Receipt(Receipt { job: id, round, outcome }));
            return Ok(());
        }
        tracing::warn!(site = %site.short(), job = %id.short(), round = round.0, %outcome, "a contribution was refused");
        let (now, name) = (self.now, self.site_name(site));
        if outcome.is_fault() {
            self.faults.entry(site).or_default().note(now);
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            *job.refused.entry(outcome).or_default() += 1;
            // Those are the ones that come as fast as the site can send.
            if outcome != Outcome::RateLimited {
                tell(&mut job.watchers, JobEvent::Refused { site: name, round, outcome });
                self.parts.store.put_refusals(id, &job.refused)?;
            }
        }
        self.send(site, CoordinatorToSite::Receipt(Receipt { job: id, round, outcome }));
        Ok(())
    }

    /// A round closed without a site that was in it: the site and all watchers are told. It is in the next.
    pub(super) fn left_out(&mut self, id: JobId, site: SiteId, round: RoundId) {
        let name = self.site_name(site);
        if let Some(job) = self.jobs.get_mut(&id) {
            tell(&mut job.watchers, JobEvent::LeftOut { site: name, round });
        }
        self.send(site, CoordinatorToSite::Receipt(Receipt { job: id, round, outcome: Outcome::Late }));
    }

    /// The jobs in which something was refused, oldest first.
    pub(super) fn list_refusals(&self) -> Vec<JobRefusals> {
        let mut jobs: Vec<_> = self.jobs.iter().filter(|(_, job)| !job.refused.is_empty()).collect();
        jobs.sort_by_key(|(_, job)| job.number);
        jobs.into_iter().map(|(id, job)| JobRefusals { job: *id, refused: job.refusal_counts() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::witnessing::tests::{
        SITE, announce, connect, drain, driver, head, receipts, submit, update,
    };
    use super::super::{Debited, Input};
    use super::*;
    use crate::admission::{FAULT_PAUSE_MS, MAX_FAULTS};
    use weighhouse_shared::ids::ContentHash;
    use weighhouse_shared::privacy::NoiseMultiplier;

    const FIRST: RoundId = RoundId(0);

    fn piece(driver: &Driver, job: JobId) -> Piece {
        let base = driver.jobs[&job].machine.model();
        let content = ContentHash::of(b"");
        Piece { job, round: FIRST, base, content, total: 8, offset: 0, len: 8 }
    }

    #[test]
    fn what_needs_no_body_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(&folder.path().join("state"));
        let _sent = connect(&mut driver, 1, 3);
        let job = submit(&mut driver, "[training]\nrounds = 2");
        let good = piece(&driver, job);
        let answer = |driver: &Driver, piece: Piece| driver.announced(SITE, &piece);
        assert_eq!(answer(&driver, good).unwrap().encoding.len(), 8);
        for (bad, outcome) in [
            (Piece { total: 12, ..good }, Outcome::TooLong),
            (Piece { total: 4, ..good }, Outcome::WrongShape),
            (Piece { round: RoundId(1), ..good }, Outcome::WrongRound),
            (Piece { job: JobId::from_bytes([9; 32]), ..good }, Outcome::WrongRound),
            (Piece { base: ContentHash::of(b"other"), ..good }, Outcome::WrongModel),
        ] {
            assert_eq!(answer(&driver, bad), Err(outcome));
        }
        let stranger = SiteId::from_bytes([2; 32]);
        assert_eq!(driver.announced(stranger, &good), Err(Outcome::WrongRound));
        announce(&mut driver, 4, job, FIRST);
        let counted = update(&driver, job, FIRST, [1, 2], folder.path());
        driver.take(Input::Update(SITE, counted)).unwrap();
        assert_eq!(answer(&driver, good), Err(Outcome::Repeated));
    }

    #[test]
    fn an_update_whose_debit_is_not_the_contracts_charge_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(&folder.path().join("state"));
        let mut sent = connect(&mut driver, 1, 3);
        let job = submit(&mut driver, "[training]\nrounds = 2");
        let event = driver.jobs[&job].machine.contract().round_charge();
        let due = Charge { population: Population::Training, event };
        let cheaper = GaussianEvent { noise_multiplier: NoiseMultiplier::new(0.5).unwrap(), ..event };
        let unpaid = [
            None,
            Some((FIRST, Charge { event: cheaper, ..due })),
            Some((FIRST, Charge { event: GaussianEvent { steps: event.steps - 1, ..event }, ..due })),
            Some((FIRST, Charge { population: Population::Holdout, ..due })),
            Some((RoundId(1), due)),
        ];
        for (entries, paid) in (4..).zip(unpaid) {
            if let Some((round, charge)) = paid {
                let debited = Debited { job, round, charge };
                driver.take(Input::Debited { site: SITE, session: 1, debited }).unwrap();
            }
            let head = head(entries, Some((job, FIRST)));
            driver.take(Input::Head { site: SITE, session: 1, head }).unwrap();
            let update = update(&driver, job, FIRST, [1, 2], folder.path());
            driver.take(Input::Update(SITE, update)).unwrap();
            assert_eq!(receipts(&drain(&mut sent)), [Outcome::WrongCharge], "{paid:?}");
        }
        announce(&mut driver, 20, job, FIRST);
        let update = update(&driver, job, FIRST, [1, 2], folder.path());
        driver.take(Input::Update(SITE, update)).unwrap();
        assert_eq!(receipts(&drain(&mut sent)), [Outcome::Admitted]);
    }

    #[test]
    fn refusals_are_told_and_counted_by_label_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut first = driver(&state);
        let mut sent = connect(&mut first, 1, 3);
        let job = submit(&mut first, "[training]\nrounds = 2");
        let (past, mut events) = first.watch(job).unwrap().unwrap();
        assert!(!past.iter().any(|event| matches!(event, JobEvent::Refusals(_))));
        let refused = |outcome| Input::Refused(SITE, Receipt { job, round: FIRST, outcome });
        for outcome in [Outcome::Corrupt, Outcome::OutOfRange, Outcome::Corrupt, Outcome::Late] {
            first.take(refused(outcome)).unwrap();
            assert_eq!(receipts(&drain(&mut sent)), [outcome]);
            let told = JobEvent::Refused { site: SITE.short(), round: FIRST, outcome };
            assert_eq!(events.try_recv().unwrap(), told);
        }
        let counts = [(Outcome::OutOfRange, 1), (Outcome::Corrupt, 2), (Outcome::Late, 1)];
        let counts = counts.map(|(outcome, count)| RefusalCount { outcome, count }).to_vec();
        assert_eq!(first.list_refusals(), [JobRefusals { job, refused: counts.clone() }]);
        first.parts.store.sync().unwrap();
        drop(first);
        let mut second = driver(&state);
        let (past, _) = second.watch(job).unwrap().unwrap();
        assert!(past.contains(&JobEvent::Refusals(counts)));
    }

    /// Being slow, or sending once more after a lost link, is no fault.
    #[test]
    fn a_site_at_fault_again_and_again_is_counted_and_not_read_and_a_slow_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(&folder.path().join("state"));
        let _sent = connect(&mut driver, 1, 3);
        let job = submit(&mut driver, "[training]\nrounds = 2");
        let piece = piece(&driver, job);
        for outcome in [Outcome::Late, Outcome::Repeated] {
            for _ in 0..3 * MAX_FAULTS {
                driver.refuse(SITE, job, FIRST, outcome).unwrap();
            }
        }
        assert!(driver.announced(SITE, &piece).is_ok());
        for _ in 0..MAX_FAULTS {
            driver.refuse(SITE, job, FIRST, Outcome::Corrupt).unwrap();
        }
        assert_eq!(driver.announced(SITE, &piece), Err(Outcome::RateLimited));
        let other = SiteId::from_bytes([2; 32]);
        assert!(!driver.faults(other).is_exceeded(driver.now));
        assert!(!driver.faults(SITE).is_exceeded(driver.now + MAX_FAULTS * FAULT_PAUSE_MS));
    }
}
