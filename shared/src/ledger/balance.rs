//! What a ledger's entries add up to. The site's budget asks it before it writes an entry; an auditor
//! replays the same rules over a finished ledger.
//!
//! Composition is over the recorded events, by Renyi divergence at every order: adding up to a bound
//! fixed beforehand is valid even when later charges are chosen after seeing earlier releases
//! (Feldman and Zrnic 2021, "Individual privacy accounting via a Renyi filter", theorem 4.3).

use super::entry::{Body, Charge, Entry, Population};
use crate::ids::JobId;
use crate::privacy::accountant::{self, GaussianEvent};
use crate::privacy::{Delta, Epsilon};
use std::collections::BTreeMap;

/// A rule of the ledger that an entry would break.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LedgerRule {
    /// `Opened` is missing, or comes twice.
    #[error("a ledger is opened once, by its first entry")]
    Opening,
    /// The job has a reservation already.
    #[error("job {} already holds a reservation", job.short())]
    ReservedTwice {
        /// The job.
        job: JobId,
    },
    /// The job has no reservation, or not enough left in it.
    #[error("job {} has not reserved this charge", job.short())]
    NotReserved {
        /// The job.
        job: JobId,
    },
    /// The cap would be passed.
    #[error(
        "epsilon would reach {would_be:.4}, over the cap of {cap}: {spent:.4} is spent, {reserved:.4} with what \
         running jobs hold; ask for less, wait for a job to end, or have the data-protection officer raise the cap"
    )]
    OverCap {
        /// What all charges together would come to.
        would_be: f64,
        /// The cap.
        cap: f64,
        /// What is spent.
        spent: f64,
        /// What is spent or set aside.
        reserved: f64,
    },
    /// A release names a debit that does not exist, or one that paid for other bytes already.
    #[error("no unused debit {debit} of job {} pays for this release", job.short())]
    Unpaid {
        /// The job.
        job: JobId,
        /// The debit named.
        debit: u64,
    },
}

/// Epsilon figures at one delta, each for the customer who pays most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    /// By debits.
    pub spent: f64,
    /// By debits and by what running jobs still hold.
    pub reserved: f64,
}

/// The sum of a ledger.
#[derive(Debug, Clone, Default)]
pub struct Balance {
    cap: Option<(Epsilon, Delta)>,
    holdout_permille: u32,
    spent: BTreeMap<Population, Vec<GaussianEvent>>,
    held: BTreeMap<JobId, Vec<Charge>>,
    unused_debits: BTreeMap<u64, JobId>,
}

/// Adds `event` to `events`, as more steps of a like event where there is one.
fn compose(events: &mut Vec<GaussianEvent>, event: GaussianEvent) {
    let like = events.iter_mut().find(|known| {
        (known.noise_multiplier, known.sampling_rate) == (event.noise_multiplier, event.sampling_rate)
    });
    match like {
        Some(known) => known.steps = known.steps.saturating_add(event.steps),
        None => events.push(event),
    }
}

impl Balance {
    /// The cap in force, once the ledger is opened.
    pub fn cap(&self) -> Option<(Epsilon, Delta)> {
        self.cap
    }

    /// Customers held out, in thousandths.
    pub fn holdout_permille(&self) -> u32 {
        self.holdout_permille
    }

    /// The jobs that hold a reservation.
    pub fn running_jobs(&self) -> impl Iterator<Item = JobId> {
        self.held.keys().copied()
    }

    /// Epsilon spent and set aside at `delta`.
    pub fn spent_at(&self, delta: Delta) -> Spent {
        Spent { spent: self.worst(delta, &[], false), reserved: self.worst(delta, &[], true) }
    }

    fn spent_at_cap(&self) -> f64 {
        self.cap.map_or(0.0, |(_, delta)| self.worst(delta, &[], false))
    }

    /// The largest epsilon any one customer would have with `extra` on top.
    fn worst(&self, delta: Delta, extra: &[Charge], with_held: bool) -> f64 {
        let populations = [Population::Training, Population::Holdout];
        let of = |population| {
            let mut events = self.spent.get(&population).cloned().unwrap_or_default();
            let held = self.held.values().flatten().filter(|_| with_held);
            for charge in held.chain(extra).filter(|charge| charge.population == population) {
                compose(&mut events, charge.event);
            }
            accountant::renyi_epsilon(&events, delta)
        };
        populations.into_iter().map(of).fold(0.0, f64::max)
    }

    /// Checks that `body` may come next, at `sequence`, and if so counts it. Returns the epsilon spent
    /// after it. On an error nothing has changed.
    pub fn apply(&mut self, sequence: u64, body: &Body) -> Result<f64, LedgerRule> {
        if matches!(body, Body::Opened { .. }) != self.cap.is_none() {
            return Err(LedgerRule::Opening);
        }
        match body {
            Body::Opened { holdout_permille, cap_epsilon, cap_delta, .. } => {
                self.cap = Some((*cap_epsilon, *cap_delta));
                self.holdout_permille = *holdout_permille;
            }
            Body::CapSet { cap_epsilon, cap_delta } => self.cap = Some((*cap_epsilon, *cap_delta)),
            Body::Reserved { job, charges } => self.reserve(*job, charges)?,
            Body::Debited { job, charge, .. } => self.debit(sequence, *job, charge)?,
            Body::Released { job, debit, .. } => {
                if self.unused_debits.get(debit) != Some(job) {
                    return Err(LedgerRule::Unpaid { job: *job, debit: *debit });
                }
                self.unused_debits.remove(debit);
            }
            Body::Returned { job } => {
                self.held.remove(job).ok_or(LedgerRule::NotReserved { job: *job })?;
                self.unused_debits.retain(|_, owner| owner != job);
            }
        }
        Ok(self.spent_at_cap())
    }

    fn reserve(&mut self, job: JobId, charges: &[Charge]) -> Result<(), LedgerRule> {
        if self.held.contains_key(&job) {
            return Err(LedgerRule::ReservedTwice { job });
        }
        let (cap, delta) = self.cap.ok_or(LedgerRule::Opening)?;
        let would_be = self.worst(delta, charges, true);
        if would_be > cap.value() {
            let Spent { spent, reserved } = self.spent_at(delta);
            return Err(LedgerRule::OverCap { would_be, cap: cap.value(), spent, reserved });
        }
        self.held.insert(job, charges.to_vec());
        Ok(())
    }

    fn debit(&mut self, sequence: u64, job: JobId, charge: &Charge) -> Result<(), LedgerRule> {
        let held = self.held.get_mut(&job).ok_or(LedgerRule::NotReserved { job })?;
        let fits = |reserved: &&mut Charge| {
            let (reserved_event, event) = (&reserved.event, &charge.event);
            reserved.population == charge.population
                && reserved_event.noise_multiplier == event.noise_multiplier
                && reserved_event.sampling_rate == event.sampling_rate
                && reserved_event.steps >= event.steps
        };
        let reserved = held.iter_mut().find(fits).ok_or(LedgerRule::NotReserved { job })?;
        reserved.event.steps -= charge.event.steps;
        held.retain(|charge| charge.event.steps > 0);
        compose(self.spent.entry(charge.population).or_default(), charge.event);
        self.unused_debits.insert(sequence, job);
        Ok(())
    }

    /// Replays one entry and checks the epsilon it states.
    pub fn replay(&mut self, entry: &Entry) -> Result<(), LedgerRule> {
        self.apply(entry.sequence, &entry.body).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ContentHash, RoundId};
    use crate::ledger::ReleaseKind;
    use crate::privacy::{NoiseMultiplier, SamplingRate};

    fn opened(cap: f64) -> Balance {
        let mut balance = Balance::default();
        let body = Body::Opened {
            public_key: String::new(),
            holdout_permille: 150,
            cap_epsilon: Epsilon::new(cap).unwrap(),
            cap_delta: Delta::new(1e-5).unwrap(),
        };
        balance.apply(0, &body).unwrap();
        balance
    }

    fn charge(population: Population, steps: u32) -> Charge {
        let noise_multiplier = NoiseMultiplier::new(4.0).unwrap();
        let event = GaussianEvent { noise_multiplier, sampling_rate: SamplingRate::new(1.0).unwrap(), steps };
        Charge { population, event }
    }

    fn job(number: u8) -> JobId {
        JobId::from_bytes([number; 32])
    }

    #[test]
    fn a_reservation_over_the_cap_is_refused_with_figures_and_a_smaller_one_still_fits() {
        let mut balance = opened(3.0);
        let big = Body::Reserved { job: job(1), charges: vec![charge(Population::Training, 1000)] };
        let Err(LedgerRule::OverCap { would_be, cap, .. }) = balance.apply(1, &big) else { panic!() };
        assert!(would_be > cap);
        let small = Body::Reserved { job: job(1), charges: vec![charge(Population::Training, 2)] };
        assert_eq!(balance.apply(1, &small), Ok(0.0));
    }

    #[test]
    fn concurrent_reservations_cannot_spend_twice() {
        let mut balance = opened(3.0);
        let body =
            |number| Body::Reserved { job: job(number), charges: vec![charge(Population::Training, 4)] };
        let mut served = 0;
        for number in 0..20 {
            served += u32::from(balance.apply(1, &body(number)).is_ok());
        }
        let delta = Delta::new(1e-5).unwrap();
        assert!(served > 0 && served < 20);
        assert!(balance.spent_at(delta).reserved <= 3.0);
        assert!(balance.worst(delta, &[charge(Population::Training, 4)], true) > 3.0);
    }

    #[test]
    fn a_debit_needs_its_reservation_and_a_release_its_debit() {
        let mut balance = opened(8.0);
        let debit = Body::Debited { job: job(1), round: RoundId(0), charge: charge(Population::Training, 2) };
        let release = |debit| Body::Released {
            job: job(1),
            round: RoundId(0),
            kind: ReleaseKind::Update,
            debit,
            content: ContentHash::of(b""),
            len: 0,
        };
        assert_eq!(balance.apply(1, &debit), Err(LedgerRule::NotReserved { job: job(1) }));
        let reserve = Body::Reserved { job: job(1), charges: vec![charge(Population::Training, 3)] };
        balance.apply(1, &reserve).unwrap();
        assert!(balance.apply(2, &debit).unwrap() > 0.0);
        assert_eq!(balance.apply(3, &debit), Err(LedgerRule::NotReserved { job: job(1) }));
        assert!(balance.apply(3, &release(1)).is_err());
        balance.apply(3, &release(2)).unwrap();
        assert!(balance.apply(4, &release(2)).is_err(), "one debit pays for one release");
    }

    #[test]
    fn an_ended_job_gives_back_what_it_did_not_spend_and_only_that() {
        let mut balance = opened(8.0);
        let delta = Delta::new(1e-5).unwrap();
        let reserve = Body::Reserved { job: job(1), charges: vec![charge(Population::Training, 10)] };
        balance.apply(1, &reserve).unwrap();
        let debit = Body::Debited { job: job(1), round: RoundId(0), charge: charge(Population::Training, 4) };
        balance.apply(2, &debit).unwrap();
        let before = balance.spent_at(delta);
        balance.apply(3, &Body::Returned { job: job(1) }).unwrap();
        let after = balance.spent_at(delta);
        assert_eq!(before.spent, after.spent);
        assert_eq!(after.reserved, after.spent);
        assert!(before.reserved > after.reserved);
    }

    #[test]
    fn training_and_held_out_customers_pay_apart() {
        let mut balance = opened(8.0);
        let charges = vec![charge(Population::Training, 10), charge(Population::Holdout, 3)];
        balance.apply(1, &Body::Reserved { job: job(1), charges }).unwrap();
        let delta = Delta::new(1e-5).unwrap();
        let alone = accountant::renyi_epsilon(&[charge(Population::Training, 10).event], delta);
        assert_eq!(balance.spent_at(delta).reserved, alone);
    }
}
