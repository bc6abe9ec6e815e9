//! What a ledger's entries add up to. The site's budget asks it before it writes an entry; an auditor
//! replays the same rules over a finished ledger.
//!
//! # The filter
//! A job's charges may be chosen after seeing what earlier jobs released, so no figure for a plan fixed
//! beforehand would do. Enforced is a Renyi filter: at one order, fixed before the first release, the
//! divergences of all charges add up to no more than the cap allows at that order. That is valid for
//! charges chosen adaptively (Feldman and Zrnic 2021, "Individual privacy accounting via a Renyi filter",
//! theorem 4.3), and (epsilon, delta) follows at that order (Canonne, Kamath and Steinke 2020,
//! proposition 12). Taking the best of several orders afterwards would not be covered by the theorem: which
//! order is best could depend on what was released.
//!
//! The order is the roomiest one for the charges of the first reservation ([`RenyiCurve::roomiest_order`]), and
//! is chosen anew when the officer sets another cap; all earlier charges are then counted at the new order
//! as well. The officer's choice of a cap must not depend on what was released.
//!
//! With a period, the same holds for any window of so many days: the charges in it, and what is
//! set aside for later, add up to no more than the cap whenever one is added.

use super::entry::{Body, Charge, Population};
use crate::ids::JobId;
use crate::policy::{Policy, PolicyError, PolicyText};
use crate::privacy::accountant::{GaussianEvent, RenyiCurve, RenyiOrder, StepCurves};
use crate::privacy::{Delta, Epsilon};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Seconds of a day of the cap's period.
const DAY_S: u64 = 86_400;

/// The most charges of one reservation: a job has one a kind of release.
const MAX_CHARGES: usize = 8;

/// The most jobs that hold a reservation at once.
const MAX_HELD: usize = 256;

/// The most unlike charges of one ledger: decades of several jobs a day.
const MAX_KINDS: usize = 65_536;

/// A rule of the ledger that an entry would break.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LedgerRule {
    /// `Opened` is missing, or comes twice.
    #[error("a ledger is opened once, by its first entry")]
    Opening,
    /// The entry is older than the one before.
    #[error("time runs backwards in it")]
    Time,
    /// The policy is not one.
    #[error("the policy is not valid: {0}")]
    Policy(PolicyError),
    /// The policy in force names an officer, who has not signed the new one.
    #[error(
        "the policy is not signed by the data-protection officer whose key is {officer}: have the officer \
         sign it with `weighhouse policy sign`, or put the signed policy back"
    )]
    Unsigned {
        /// The officer's public key, in hexadecimal.
        officer: String,
    },
    /// The job has a reservation already.
    #[error("job {} already holds a reservation", job.short())]
    ReservedTwice {
        /// The job.
        job: JobId,
    },
    /// More at once than any honest site has: a reader's time is bounded.
    #[error(
        "a reservation has at most {MAX_CHARGES} charges, at most {MAX_HELD} jobs hold one at once, and a ledger has at \
         most {MAX_KINDS} kinds of charges"
    )]
    TooMany,
    /// The job has no reservation, or not enough left in it.
    #[error("job {} has not reserved this charge", job.short())]
    NotReserved {
        /// The job.
        job: JobId,
    },
    /// The noise recorded is not the noise charged.
    #[error("the mechanism of a debit of job {} is not what it was charged for", job.short())]
    Mechanism {
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

/// Renyi epsilon figures at one delta, each for the customer who pays most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spent {
    /// By debits, over the cap's period.
    pub spent: f64,
    /// By debits over the cap's period and by what running jobs still hold.
    pub reserved: f64,
    /// By all debits since the ledger began.
    pub lifetime: f64,
}

/// The sum of a ledger.
#[derive(Debug, Clone, Default)]
pub struct Balance {
    policy: Option<(PolicyText, Policy)>,
    holdout_permille: u32,
    time_s: u64,
    accounts: BTreeMap<Population, Account>,
    held: BTreeMap<JobId, Vec<Charge>>,
    unused_debits: BTreeMap<u64, JobId>,
    curves: StepCurves,
}

/// What one group of customers has paid.
#[derive(Debug, Clone, Default)]
struct Account {
    /// By day since 1970, ascending.
    paid: Vec<(u64, GaussianEvent)>,
    /// The curve of what was paid since a day: an entry costs the same to check however long the ledger is.
    total: Option<(u64, RenyiCurve)>,
    /// The order of the filter, once something was reserved under the cap in force.
    order: Option<RenyiOrder>,
}

impl Account {
    /// Like events of `days`, together.
    fn within(&self, days: RangeInclusive<u64>) -> Vec<GaussianEvent> {
        let events = self.paid.iter().filter(|(day, _)| days.contains(day)).map(|(_, event)| *event);
        events.collect::<Kinds>().events()
    }

    /// Like events since `from_day`, together.
    fn since(&self, from_day: u64) -> Vec<GaussianEvent> {
        self.within(from_day..=u64::MAX)
    }

    fn pay(&mut self, today: u64, event: GaussianEvent, curves: &StepCurves) {
        if let Some((_, total)) = &mut self.total {
            curves.add_to(total, [&event]);
        }
        let same_day = self.paid.iter_mut().rev().take_while(|(day, _)| *day == today);
        let fits = |known: &&mut GaussianEvent| {
            known.kind() == event.kind() && known.steps.checked_add(event.steps).is_some()
        };
        match same_day.map(|(_, known)| known).find(fits) {
            Some(known) => known.steps += event.steps,
            None => self.paid.push((today, event)),
        }
    }
}

/// Events with like ones together, however many steps that makes.
#[derive(Debug, Clone, Default)]
pub(super) struct Kinds(BTreeMap<(u64, u64), (GaussianEvent, u64)>);

impl Kinds {
    /// Adds one.
    pub fn add(&mut self, event: GaussianEvent) {
        let (_, steps) = self.0.entry(event.kind()).or_insert((event, 0));
        *steps = steps.saturating_add(event.steps.into());
    }

    /// An event a kind, or several for more steps than one holds.
    pub fn events(&self) -> Vec<GaussianEvent> {
        let parts = |(event, steps): &(GaussianEvent, u64)| {
            let (event, steps) = (*event, *steps);
            let starts = (0..steps).step_by(u32::MAX as usize);
            starts.map(move |start| GaussianEvent {
                steps: (steps - start).min(u32::MAX.into()) as u32,
                ..event
            })
        };
        self.0.values().flat_map(parts).collect()
    }
}

impl FromIterator<GaussianEvent> for Kinds {
    fn from_iter<I: IntoIterator<Item = GaussianEvent>>(events: I) -> Self {
        let mut kinds = Self::default();
        events.into_iter().for_each(|event| kinds.add(event));
        kinds
    }
}

impl Balance {
    /// The policy in force, once the ledger is opened.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref().map(|(_, policy)| policy)
    }

    /// The exact text of the policy in force.
    pub fn policy_text(&self) -> Option<&PolicyText> {
        self.policy.as_ref().map(|(text, _)| text)
    }

    /// The cap in force, once the ledger is opened.
    pub fn cap(&self) -> Option<(Epsilon, Delta)> {
        self.policy().map(|policy| (policy.cap.epsilon, policy.cap.delta))
    }

    /// Customers held out, in thousandths.
    pub fn holdout_permille(&self) -> u32 {
        self.holdout_permille
    }

    /// When the last entry was written, in seconds since 1970.
    pub fn time_s(&self) -> u64 {
        self.time_s
    }

    /// The jobs that hold a reservation.
    pub fn running_jobs(&self) -> impl Iterator<Item = JobId> {
        self.held.keys().copied()
    }

    /// All that `population` has paid since the ledger began, like events together.
    pub fn events(&self, population: Population) -> Vec<GaussianEvent> {
        self.accounts.get(&population).map(|account| account.since(0)).unwrap_or_default()
    }

    /// What `population` has paid in the cap's period that ends at `time_s`, like events together.
    pub fn events_in_period(&self, population: Population, time_s: u64) -> Vec<GaussianEvent> {
        self.accounts
            .get(&population)
            .map(|account| account.since(self.first_day(time_s)))
            .unwrap_or_default()
    }

    /// What `population` has paid in the cap's period that ends at `time_s` or has set aside, like events
    /// together, and the order of its filter, if it is fixed.
    pub fn charged(&self, population: Population, time_s: u64) -> (Vec<GaussianEvent>, Option<RenyiOrder>) {
        let paid = self.events_in_period(population, time_s).into_iter();
        let held = self.held.values().flatten().filter(|charge| charge.population == population);
        let events = paid.chain(held.map(|charge| charge.event)).collect::<Kinds>().events();
        (events, self.accounts.get(&population).and_then(|account| account.order))
    }

    /// The first day that counts at `time_s`.
    fn first_day(&self, time_s: u64) -> u64 {
        let period = self.policy().and_then(|policy| policy.cap.period_days);
        period.map_or(0, |days| (time_s / DAY_S + 1).saturating_sub(days.into()))
    }

    /// Figures at `delta` as of `time_s`.
    pub fn spent_at(&self, time_s: u64, delta: Delta) -> Spent {
        let worst = |from_day, with_held| {
            let of = |population| self.paid_curve(population, from_day, with_held).epsilon(delta);
            POPULATIONS.into_iter().map(of).fold(0.0, f64::max)
        };
        let from_day = self.first_day(time_s);
        Spent { spent: worst(from_day, false), reserved: worst(from_day, true), lifetime: worst(0, false) }
    }

    /// What `population` has paid since `from_day`, and holds in reserve if `with_held`.
    fn paid_curve(&self, population: Population, from_day: u64, with_held: bool) -> RenyiCurve {
        let mut total = match self.accounts.get(&population) {
            Some(Account { total: Some((day, total)), .. }) if *day == from_day => total.clone(),
            Some(account) => self.curves.total(&account.since(from_day)),
            None => RenyiCurve::zero(),
        };
        let held = self.held.values().flatten().filter(|charge| with_held && charge.population == population);
        self.curves.add_to(&mut total, held.map(|charge| &charge.event));
        total
    }

    /// Brings each account's total to the days that count now.
    fn refresh_totals(&mut self) {
        let from_day = self.first_day(self.time_s);
        for account in self.accounts.values_mut() {
            if account.total.as_ref().is_none_or(|(day, _)| *day != from_day) {
                account.total = Some((from_day, self.curves.total(&account.since(from_day))));
            }
        }
    }

    /// Epsilon at `delta` as it stood on the day of `time_s`, by the period now in force.
    pub fn spent_on(&self, time_s: u64, delta: Delta) -> f64 {
        let days = self.first_day(time_s)..=time_s / DAY_S;
        let of = |account: &Account| self.curves.total(&account.within(days.clone())).epsilon(delta);
        self.accounts.values().map(of).fold(0.0, f64::max)
    }

    /// The Renyi epsilon at `delta` of `events` alone: like [`crate::privacy::accountant::renyi_epsilon`],
    /// without making known curves anew.
    pub fn epsilon_of(&self, events: &[GaussianEvent], delta: Delta) -> f64 {
        self.curves.total(events).epsilon(delta)
    }

    fn spent_at_cap(&self) -> f64 {
        self.cap().map_or(0.0, |(_, delta)| {
            let from_day = self.first_day(self.time_s);
            let of = |population| self.paid_curve(population, from_day, false).epsilon(delta);
            POPULATIONS.into_iter().map(of).fold(0.0, f64::max)
        })
    }

    /// Checks that `body` may come next, at `sequence` and `time_s`, and if so counts it. Returns the
    /// epsilon spent after it. On an error the balance is of no more use.
    pub fn apply(&mut self, sequence: u64, time_s: u64, body: &Body) -> Result<f64, LedgerRule> {
        if matches!(body, Body::Opened { .. }) != self.policy.is_none() {
            return Err(LedgerRule::Opening);
        }
        if time_s < self.time_s {
            return Err(LedgerRule::Time);
        }
        self.time_s = time_s;
        self.refresh_totals();
        match body {
            Body::Opened { holdout_permille, policy, .. } => {
                self.set_policy(policy)?;
                self.holdout_permille = *holdout_permille;
            }
            Body::PolicySet { policy } => self.set_policy(policy)?,
            Body::Reserved { job, charges, .. } => self.reserve(*job, charges)?,
            Body::Debited { job, charge, mechanism, .. } => {
                if !mechanism.is_of(charge.event.noise_multiplier) {
                    return Err(LedgerRule::Mechanism { job: *job });
                }
                self.debit(sequence, *job, charge)?;
            }
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
        self.refresh_totals();
        Ok(self.spent_at_cap())
    }

    fn set_policy(&mut self, text: &PolicyText) -> Result<(), LedgerRule> {
        let policy = Policy::parse(&text.text).map_err(LedgerRule::Policy)?;
        let officer = self.policy().and_then(|policy| policy.officer.as_ref()).or(policy.officer.as_ref());
        if let Some(officer) = officer.filter(|officer| !text.is_signed_by(officer)) {
            return Err(LedgerRule::Unsigned { officer: officer.public_key.clone() });
        }
        if self.cap() != Some((policy.cap.epsilon, policy.cap.delta)) {
            for account in self.accounts.values_mut() {
                account.order = None;
            }
        }
        self.policy = Some((text.clone(), policy));
        Ok(())
    }

    fn reserve(&mut self, job: JobId, charges: &[Charge]) -> Result<(), LedgerRule> {
        if self.held.contains_key(&job) {
            return Err(LedgerRule::ReservedTwice { job });
        }
        let kinds = self.curves.kinds();
        if charges.len() > MAX_CHARGES || self.held.len() >= MAX_HELD || kinds > MAX_KINDS {
            return Err(LedgerRule::TooMany);
        }
        self.check_filter(charges, true)?;
        self.held.insert(job, charges.to_vec());
        Ok(())
    }

    /// The filter: what is paid, what is held if `with_held`, and `charges` on top, at the fixed order.
    fn check_filter(&mut self, charges: &[Charge], with_held: bool) -> Result<(), LedgerRule> {
        let (cap, delta) = self.cap().ok_or(LedgerRule::Opening)?;
        for charge in charges {
            self.curves.learn(&charge.event);
        }
        let from_day = self.first_day(self.time_s);
        for population in POPULATIONS {
            let asked = charges.iter().filter(|charge| charge.population == population);
            let asked = self.curves.total(asked.map(|charge| &charge.event));
            if asked == RenyiCurve::zero() {
                continue;
            }
            let mut total = self.paid_curve(population, from_day, with_held);
            let account = self.accounts.entry(population).or_default();
            let order = *account.order.get_or_insert_with(|| asked.roomiest_order(&total, cap, delta));
            total.add(&asked);
            let would_be = total.epsilon_at(order, delta);
            if would_be > cap.value() {
                let Spent { spent, reserved, .. } = self.spent_at(self.time_s, delta);
                return Err(LedgerRule::OverCap { would_be, cap: cap.value(), spent, reserved });
            }
        }
        Ok(())
    }

    fn debit(&mut self, sequence: u64, job: JobId, charge: &Charge) -> Result<(), LedgerRule> {
        let held = self.held.get_mut(&job).ok_or(LedgerRule::NotReserved { job })?;
        let fits = |reserved: &&mut Charge| {
            reserved.population == charge.population
                && reserved.event.kind() == charge.event.kind()
                && reserved.event.steps >= charge.event.steps
        };
        let reserved = held.iter_mut().find(fits).ok_or(LedgerRule::NotReserved { job })?;
        reserved.event.steps -= charge.event.steps;
        held.retain(|charge| charge.event.steps > 0);
        // The cap may have been lowered since the reservation.
        self.check_filter(&[*charge], false)?;
        let account = self.accounts.entry(charge.population).or_default();
        account.pay(self.time_s / DAY_S, charge.event, &self.curves);
        self.unused_debits.insert(sequence, job);
        Ok(())
    }
}

const POPULATIONS: [Population; 2] = [Population::Training, Population::Holdout];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::ids::{ContentHash, RoundId};
    use crate::ledger::ReleaseKind;
    use crate::policy::first_policy;
    use crate::privacy::grid::Grid;
    use crate::privacy::{ClipNorm, Mechanism, NoiseMultiplier, SamplingRate, accountant};

    const DELTA: f64 = 1e-5;

    fn delta() -> Delta {
        Delta::new(DELTA).unwrap()
    }

    fn policy(cap: f64) -> String {
        first_policy(Epsilon::new(cap).unwrap(), delta())
    }

    fn set(text: String) -> Body {
        Body::PolicySet { policy: PolicyText::unsigned(text) }
    }

    fn opened_with(text: String) -> Balance {
        let mut balance = Balance::default();
        let policy = PolicyText::unsigned(text);
        let body = Body::Opened { public_key: String::new(), holdout_permille: 150, policy };
        balance.apply(0, 0, &body).unwrap();
        balance
    }

    fn opened(cap: f64) -> Balance {
        opened_with(policy(cap))
    }

    fn noise() -> NoiseMultiplier {
        NoiseMultiplier::new(4.0).unwrap()
    }

    fn charge(population: Population, steps: u32) -> Charge {
        let event = GaussianEvent {
            noise_multiplier: noise(),
            sampling_rate: SamplingRate::new(1.0).unwrap(),
            steps,
        };
        Charge { population, event }
    }

    fn training(steps: u32) -> Charge {
        charge(Population::Training, steps)
    }

    fn job(number: u8) -> JobId {
        JobId::from_bytes([number; 32])
    }

    fn reserve(number: u8, charges: Vec<Charge>) -> Body {
        Body::Reserved { job: job(number), name: "test".into(), charges }
    }

    fn debit(number: u8, round: u32, steps: u32) -> Body {
        let mechanism = Mechanism::clipped_gradient_sum(&Grid::new(ClipNorm::new(0.5).unwrap()), noise());
        Body::Debited { job: job(number), round: RoundId(round), charge: training(steps), mechanism }
    }

    /// What `apply` would say, leaving the balance as it is.
    fn verdict(balance: &Balance, body: &Body) -> Result<f64, LedgerRule> {
        balance.clone().apply(9, balance.time_s(), body)
    }

    fn reserved(balance: &Balance) -> f64 {
        balance.spent_at(balance.time_s(), delta()).reserved
    }

    #[test]
    fn a_reservation_over_the_cap_is_refused_with_figures_and_a_smaller_one_still_fits() {
        let balance = opened(3.0);
        let big = reserve(1, vec![training(1000)]);
        let Err(LedgerRule::OverCap { would_be, cap, .. }) = verdict(&balance, &big) else { panic!() };
        assert!(would_be > cap);
        assert_eq!(verdict(&balance, &reserve(1, vec![training(2)])), Ok(0.0));
    }

    #[test]
    fn concurrent_reservations_cannot_spend_twice() {
        let mut balance = opened(3.0);
        let mut served = 0;
        for number in 0..20 {
            let mut with = balance.clone();
            if with.apply(1, 0, &reserve(number, vec![training(4)])).is_ok() {
                (balance, served) = (with, served + 1);
            }
        }
        assert!(served > 0 && served < 20);
        assert!(reserved(&balance) <= 3.0);
        let all = accountant::renyi_epsilon(&[training(4 * (served + 1)).event], delta());
        assert!(all > 3.0, "one more would have fitted: {all}");
    }

    #[test]
    fn a_small_first_job_leaves_the_room_that_a_large_second_one_needs() {
        let mut balance = opened(8.0);
        balance.apply(1, 0, &reserve(1, vec![training(1)])).unwrap();
        let most = |steps: &u32| accountant::renyi_epsilon(&[training(*steps).event], delta()) <= 8.0;
        let fitting = (1..500).take_while(most).last().unwrap();
        assert!(verdict(&balance, &reserve(2, vec![training(fitting - 2)])).is_ok(), "{fitting}");
        assert!(verdict(&balance, &reserve(2, vec![training(fitting)])).is_err());
    }

    /// Two plans whose best orders differ: at each plan's own best order either alone fits the cap, but
    /// the filter reads both at one order.
    #[test]
    fn charges_of_different_shape_are_added_at_one_order_fixed_before_the_first() {
        let sampled = GaussianEvent {
            noise_multiplier: NoiseMultiplier::new(0.7).unwrap(),
            sampling_rate: SamplingRate::new(0.001).unwrap(),
            steps: 400,
        };
        let sampled = Charge { population: Population::Training, event: sampled };
        let mut balance = opened(2.0);
        balance.apply(1, 0, &reserve(1, vec![sampled])).unwrap();
        let order = balance.accounts[&Population::Training].order;
        balance.apply(2, 0, &reserve(2, vec![training(1)])).unwrap();
        assert_eq!(balance.accounts[&Population::Training].order, order);
        let both = accountant::renyi_epsilon(&[sampled.event, training(1).event], delta());
        assert!((reserved(&balance) - both).abs() < 1e-12 && both <= 2.0);
    }

    #[test]
    fn more_steps_than_an_event_holds_are_still_all_counted() {
        let kinds: Kinds = (0..3).map(|_| training(u32::MAX).event).chain([training(2).event]).collect();
        let steps = kinds.events().iter().map(|event| u64::from(event.steps)).sum::<u64>();
        assert_eq!((kinds.events().len(), steps), (4, 3 * u64::from(u32::MAX) + 2));
        let mut account = Account::default();
        (0..3).for_each(|_| account.pay(7, training(u32::MAX).event, &StepCurves::default()));
        assert_eq!(account.since(0).len(), 3);
    }

    #[test]
    fn the_running_total_is_what_the_payments_add_up_to() {
        let mut balance = opened_with(policy(50.0).replace("# period_days = 365", "period_days = 7"));
        balance.apply(1, 0, &reserve(1, vec![training(40)])).unwrap();
        for round in 0..20 {
            let time_s = u64::from(round / 2) * DAY_S;
            let stated = balance.apply(u64::from(round) + 2, time_s, &debit(1, round, 1)).unwrap();
            let events = balance.events_in_period(Population::Training, time_s);
            let anew = accountant::renyi_epsilon(&events, delta());
            assert!((stated / anew - 1.0).abs() < 1e-12, "round {round}: {stated} against {anew}");
            assert_eq!(balance.spent_on(time_s, delta()), anew);
        }
    }

    #[test]
    fn a_reservation_of_too_many_charges_is_refused() {
        let balance = opened(8.0);
        assert_eq!(verdict(&balance, &reserve(1, vec![training(0); 17])), Err(LedgerRule::TooMany));
    }

    #[test]
    fn a_debit_needs_its_reservation_and_a_release_its_debit() {
        let mut balance = opened(8.0);
        let release = |debit| Body::Released {
            job: job(1),
            round: RoundId(0),
            kind: ReleaseKind::Update,
            debit,
            content: ContentHash::of(b""),
            len: 0,
        };
        assert_eq!(verdict(&balance, &debit(1, 0, 2)), Err(LedgerRule::NotReserved { job: job(1) }));
        balance.apply(1, 0, &reserve(1, vec![training(3)])).unwrap();
        assert!(balance.apply(2, 0, &debit(1, 0, 2)).unwrap() > 0.0);
        assert_eq!(verdict(&balance, &debit(1, 1, 2)), Err(LedgerRule::NotReserved { job: job(1) }));
        assert!(verdict(&balance, &release(1)).is_err());
        balance.apply(3, 0, &release(2)).unwrap();
        assert!(verdict(&balance, &release(2)).is_err(), "one debit pays for one release");
    }

    #[test]
    fn a_debit_whose_noise_is_not_the_noise_charged_is_refused() {
        let mut balance = opened(8.0);
        balance.apply(1, 0, &reserve(1, vec![training(3)])).unwrap();
        let weaker = NoiseMultiplier::new(2.0).unwrap();
        let mechanism = Mechanism::clipped_gradient_sum(&Grid::new(ClipNorm::new(0.5).unwrap()), weaker);
        let body = Body::Debited { job: job(1), round: RoundId(0), charge: training(1), mechanism };
        assert_eq!(verdict(&balance, &body), Err(LedgerRule::Mechanism { job: job(1) }));
    }

    #[test]
    fn an_ended_job_gives_back_what_it_did_not_spend_and_only_that() {
        let mut balance = opened(8.0);
        balance.apply(1, 0, &reserve(1, vec![training(10)])).unwrap();
        balance.apply(2, 0, &debit(1, 0, 4)).unwrap();
        let before = balance.spent_at(0, delta());
        balance.apply(3, 0, &Body::Returned { job: job(1) }).unwrap();
        let after = balance.spent_at(0, delta());
        assert_eq!(before.spent, after.spent);
        assert_eq!(after.reserved, after.spent);
        assert!(before.reserved > after.reserved);
    }

    #[test]
    fn training_and_held_out_customers_pay_apart() {
        let mut balance = opened(8.0);
        let charges = vec![training(10), charge(Population::Holdout, 3)];
        balance.apply(1, 0, &reserve(1, charges)).unwrap();
        let alone = accountant::renyi_epsilon(&[training(10).event], delta());
        assert_eq!(reserved(&balance), alone);
    }

    #[test]
    fn a_cap_lowered_under_a_running_job_stops_its_next_debit() {
        let mut balance = opened(8.0);
        balance.apply(1, 0, &reserve(1, vec![training(30)])).unwrap();
        balance.apply(2, 0, &debit(1, 0, 2)).unwrap();
        balance.apply(3, 0, &set(policy(2.2))).unwrap();
        assert!(verdict(&balance, &debit(1, 1, 1)).is_ok());
        assert!(matches!(verdict(&balance, &debit(1, 1, 25)), Err(LedgerRule::OverCap { .. })));
    }

    #[test]
    fn spending_leaves_the_period_day_by_day_but_never_the_lifetime() {
        let mut balance = opened_with(policy(5.0).replace("# period_days = 365", "period_days = 30"));
        let day = |number: u64| number * DAY_S + 5;
        balance.apply(1, day(100), &reserve(1, vec![training(12)])).unwrap();
        balance.apply(2, day(100), &debit(1, 0, 6)).unwrap();
        balance.apply(3, day(110), &debit(1, 1, 6)).unwrap();
        let at = |number| balance.spent_at(day(number), delta());
        assert!((at(110).spent / at(129).spent - 1.0).abs() < 1e-12);
        assert!(at(130).spent < at(129).spent && at(139).spent > 0.0);
        assert_eq!((at(140).spent, at(140).lifetime), (0.0, at(110).lifetime));
        let more = reserve(2, vec![training(12)]);
        let full = balance.clone().apply(4, day(139), &more);
        assert!(matches!(full, Err(LedgerRule::OverCap { .. })));
        assert!(balance.clone().apply(4, day(140), &more).is_ok());
        assert_eq!(balance.apply(4, day(99), &more), Err(LedgerRule::Time));
    }

    #[test]
    fn once_an_officer_is_named_only_that_officer_changes_the_policy() {
        let (officer, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let naming = |key: &Identity, cap| {
            let key = data_encoding::HEXLOWER.encode(&key.public_key());
            policy(cap)
                .replace("# [officer]\n# public_key = \"…\"", &format!("[officer]\npublic_key = \"{key}\""))
        };
        let signed = |by: &Identity, text| Body::PolicySet { policy: PolicyText::signed(text, by) };
        let mut balance = opened(8.0);
        let forged = signed(&other, naming(&officer, 4.0));
        assert!(matches!(verdict(&balance, &forged), Err(LedgerRule::Unsigned { .. })));
        balance.apply(1, 0, &signed(&officer, naming(&officer, 4.0))).unwrap();
        for bad in [set(policy(9.0)), signed(&other, naming(&other, 9.0)), signed(&other, policy(9.0))] {
            assert!(matches!(verdict(&balance, &bad), Err(LedgerRule::Unsigned { .. })));
        }
        balance.apply(2, 0, &signed(&officer, naming(&other, 5.0))).unwrap();
        balance.apply(3, 0, &signed(&other, policy(6.0))).unwrap();
        assert!(verdict(&balance, &set(policy(7.0))).is_ok(), "the officer has stepped down");
    }
}
