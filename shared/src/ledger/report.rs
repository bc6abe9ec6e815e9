//! What a checked ledger says, for people: what left, when, why, what it cost, and what that means.
//!
//! Enters: a ledger's bytes. Leaves: [`Audited`], the ledger read and checked once, and from it a [`Report`] with
//! every figure worked out anew. Nothing here reads a clock, a file or the network.

mod alone;

use self::alone::Alone;
use super::balance::{Balance, Kinds, Spent};
use super::chain::{Chain, LedgerFault, Torn, read};
use super::entry::{Body, Charge, Entry, Population, ReleaseKind};
use super::witness::Trail;
use crate::clock::DAY_S;
use crate::ids::{ContentHash, JobId, RoundId, SiteId};
use crate::policy::{Policy, PolicyText};
use crate::privacy::accountant::{self, GaussianEvent, continuous_equivalent};
use crate::privacy::{Delta, Mechanism, NoiseMultiplier, SamplingRate};
use data_encoding::HEXLOWER;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Kinds of releases that are put on the certified accountant's grid one by one; more are rounded together.
const MAX_KINDS: usize = 24;

/// Points of the spending curve, at most.
const MAX_POINTS: u64 = 400;

/// A ledger that was read and checked, line by line.
#[derive(Debug, Clone)]
pub struct Audited {
    /// Its end.
    pub chain: Chain,
    /// A last line whose writing was cut off, if there is one.
    pub torn: Option<Torn>,
    /// Its lines and releases, to hold witnesses and outgoing bytes against.
    pub trail: Trail,
    notes: Notes,
}

/// Bytes that left.
#[derive(Debug, Clone, Serialize)]
pub struct Release {
    /// Line of the ledger, counted from 1.
    pub line: u64,
    /// When, in seconds since 1970 by the site's clock.
    pub time_s: u64,
    /// The job.
    pub job: JobId,
    /// What its operator calls it.
    pub name: String,
    /// Its round.
    pub round: RoundId,
    /// What they are.
    pub kind: ReleaseKind,
    /// How many they are.
    pub bytes: u64,
    /// Their hash.
    pub content: ContentHash,
    /// The customers who paid.
    pub population: Population,
    /// Standard deviation of the noise over the sensitivity.
    pub noise_multiplier: f64,
    /// Standard deviation of the noise, in integers.
    pub sigma: f64,
    /// Probability with which each customer was in a step's batch.
    pub sampling_rate: f64,
    /// Noised steps that they hold.
    pub steps: u32,
    /// Epsilon spent after it, over the cap's period: the Renyi figure.
    pub epsilon_after: f64,
}

/// A job's part in a ledger.
#[derive(Debug, Clone, Serialize)]
pub struct JobTotal {
    /// The job.
    pub job: JobId,
    /// What its operator calls it.
    pub name: String,
    /// When it reserved, in seconds since 1970.
    pub began_s: u64,
    /// When it last wrote an entry.
    pub last_s: u64,
    /// Updates that left.
    pub updates: u64,
    /// Evaluations that left.
    pub evaluations: u64,
    /// Bytes that left.
    pub bytes: u64,
    /// Debits for which nothing left: a crash wastes budget, it hides none.
    pub wasted: u64,
    /// Whether it holds a reservation.
    pub running: bool,
    /// What its debits alone come to: the Renyi figure at the cap's delta.
    pub epsilon: f64,
    /// The same if its secure sum's masks protected nothing, so that the site's share of the noise stood alone; None if it
    /// is no secure sum.
    pub epsilon_without_masks: Option<f64>,
    #[serde(skip)]
    paid: BTreeMap<Population, Kinds>,
    #[serde(skip)]
    alone: Alone,
}

/// A policy that was in force.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyVersion {
    /// Line of the ledger, counted from 1.
    pub line: u64,
    /// Since when, in seconds since 1970.
    pub since_s: u64,
    /// The cap on epsilon.
    pub epsilon: f64,
    /// Its delta.
    pub delta: f64,
    /// Over so many days; None: for good.
    pub period_days: Option<u32>,
    /// Whether it carries a signature, which the ledger's rules have then checked if an officer was named.
    pub signed: bool,
    /// The exact text.
    pub text: String,
}

/// What some releases cost, by both accountants, for the customer who paid most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// The Renyi figure: what is enforced. Holds also for jobs that were chosen after seeing earlier releases.
    pub renyi: f64,
    /// The certified figure of the privacy loss distributions, from above: holds for the recorded releases
    /// as a plan fixed beforehand.
    pub certified_upper: f64,
    /// No figure below this one could be claimed for them, with continuous noise of the same size; 0 if not known.
    pub certified_lower: f64,
}

/// What a ledger says.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whose ledger.
    pub site: SiteId,
    /// The key in its first entry, in hexadecimal.
    pub public_key: String,
    /// Entries in it.
    pub entries: u64,
    /// Hash of its last line.
    pub head: ContentHash,
    /// When it began, in seconds since 1970.
    pub began_s: u64,
    /// When its last entry was written.
    pub last_s: u64,
    /// The moment to which the period's figures belong.
    pub as_of_s: u64,
    /// Customers held out for evaluation, in thousandths.
    pub holdout_permille: u32,
    /// The cap on epsilon now in force.
    pub cap_epsilon: f64,
    /// Its delta, that of every figure here.
    pub delta: f64,
    /// Its period in days; None: for good.
    pub period_days: Option<u32>,
    /// Sites at which one customer is assumed to be known, by the policy.
    pub max_sites: u32,
    /// The enforced figures.
    pub spent: Spent,
    /// By both accountants, over the cap's period.
    pub period: Figures,
    /// By both accountants, since the ledger began.
    pub lifetime: Figures,
    /// As `lifetime`, for a customer known at `max_sites` sites, each of which released as much.
    pub at_max_sites: Figures,
    /// As `lifetime`, by Renyi, if what protects the other sites' part of secure sums' noise were broken, so that each of
    /// this site's shares stood alone; None if there is no such share.
    pub without_masks: Option<f64>,
    /// Policies, in order.
    pub policies: Vec<PolicyVersion>,
    /// Jobs, in order of their first reservation.
    pub jobs: Vec<JobTotal>,
    /// Releases, in order.
    pub releases: Vec<Release>,
    /// Time in seconds since 1970, and epsilon spent over the cap's period from then on.
    pub curve: Vec<(u64, f64)>,
}

#[derive(Debug, Clone, Default)]
struct Notes {
    began_s: u64,
    releases: Vec<Release>,
    jobs: BTreeMap<JobId, JobTotal>,
    order: Vec<JobId>,
    /// Debits that nothing left for yet.
    unused: BTreeMap<u64, (Charge, Mechanism)>,
    policies: Vec<(u64, u64, PolicyText)>,
    /// Least standard deviation in integers, by the bits of noise multiplier and sampling rate.
    sigmas: BTreeMap<(u64, u64), f64>,
    curve: Vec<(u64, f64)>,
    alone: Alone,
}

impl Notes {
    fn note(&mut self, entry: &Entry) {
        let (line, time_s) = (entry.sequence + 1, entry.time_s);
        if self.curve.last().is_none_or(|(_, epsilon)| *epsilon != entry.spent_epsilon) {
            self.curve.push((time_s, entry.spent_epsilon));
        }
        match &entry.body {
            Body::Opened { policy, .. } => {
                self.began_s = time_s;
                self.policies.push((line, time_s, policy.clone()));
            }
            Body::PolicySet { policy } => self.policies.push((line, time_s, policy.clone())),
            Body::Reserved { job, name, .. } => {
                if let std::collections::btree_map::Entry::Vacant(new) = self.jobs.entry(*job) {
                    new.insert(JobTotal::new(*job, name, time_s));
                    self.order.push(*job);
                }
            }
            Body::Debited { job, charge, mechanism, .. } => {
                self.unused.insert(entry.sequence, (*charge, *mechanism));
                let least = self.sigmas.entry(charge.event.kind()).or_insert(f64::INFINITY);
                *least = least.min(mechanism.paid_sigma());
                self.alone.add(charge, mechanism);
                if let Some(total) = self.jobs.get_mut(job) {
                    total.wasted += 1;
                    total.paid.entry(charge.population).or_default().add(charge.event);
                    total.alone.add(charge, mechanism);
                }
            }
            Body::Released { job, round, kind, debit, content, len } => {
                let paid = self.unused.remove(debit);
                if let (Some(total), Some((charge, mechanism))) = (self.jobs.get_mut(job), paid) {
                    total.wasted -= 1;
                    total.bytes = total.bytes.saturating_add(*len);
                    match kind {
                        ReleaseKind::Update => total.updates += 1,
                        ReleaseKind::Evaluation => total.evaluations += 1,
                    }
                    self.releases.push(Release {
                        line,
                        time_s,
                        job: *job,
                        name: total.name.clone(),
                        round: *round,
                        kind: *kind,
                        bytes: *len,
                        content: *content,
                        population: charge.population,
                        noise_multiplier: charge.event.noise_multiplier.value(),
                        sigma: mechanism.sigma(),
                        sampling_rate: charge.event.sampling_rate.value(),
                        steps: charge.event.steps,
                        epsilon_after: entry.spent_epsilon,
                    });
                }
            }
            Body::Returned { .. } => {}
        }
        if let Body::Reserved { job, .. } | Body::Debited { job, .. } | Body::Released { job, .. } =
            &entry.body
            && let Some(total) = self.jobs.get_mut(job)
        {
            total.last_s = time_s;
        }
    }
}

impl JobTotal {
    fn new(job: JobId, name: &str, began_s: u64) -> Self {
        Self {
            job,
            name: name.to_owned(),
            began_s,
            last_s: began_s,
            updates: 0,
            evaluations: 0,
            bytes: 0,
            wasted: 0,
            running: false,
            epsilon: 0.0,
            epsilon_without_masks: None,
            paid: BTreeMap::new(),
            alone: Alone::default(),
        }
    }
}

impl Audited {
    /// Reads and checks all of `file`; `each` sees every good entry in order. The time this takes grows with the
    /// file, whoever wrote it.
    pub fn read(file: &[u8], mut each: impl FnMut(&Entry)) -> Result<Self, LedgerFault> {
        let (mut notes, mut trail) = (Notes::default(), Trail::default());
        let (chain, torn) = read(file, |entry| {
            notes.note(entry);
            trail.note(entry);
            each(entry);
        })?;
        if !chain.is_empty() {
            trail.end(chain.head().hash);
        }
        Ok(Self { chain, torn, trail, notes })
    }

    /// The policy in force and the line that set it; None for an empty ledger.
    pub fn policy(&self) -> Option<(u64, &PolicyText)> {
        self.notes.policies.last().map(|(line, _, policy)| (*line, policy))
    }

    /// Works out every figure, with the period that ends at `as_of_s`, which is never taken to be before the last
    /// entry. None for an empty ledger.
    pub fn report(&self, as_of_s: Option<u64>) -> Option<Report> {
        let balance = self.chain.balance();
        let public_key = self.chain.public_key()?;
        let policy = balance.policy()?;
        let (delta, period_days) = (policy.cap.delta, policy.cap.period_days);
        let last_s = balance.time_s();
        let as_of_s = as_of_s.unwrap_or(last_s).max(last_s);
        let max_sites = policy.customers.max_sites;
        let events = |population| balance.events(population);
        let lifetime = self.figures(events, 1, delta);
        let period = match period_days {
            Some(_) => self.figures(|population| balance.events_in_period(population, as_of_s), 1, delta),
            None => lifetime,
        };
        let at_max_sites = if max_sites == 1 { lifetime } else { self.figures(events, max_sites, delta) };
        Some(Report {
            site: SiteId::of_public_key(public_key),
            public_key: HEXLOWER.encode(public_key),
            entries: self.chain.len(),
            head: self.chain.head().hash,
            began_s: self.notes.began_s,
            last_s,
            as_of_s,
            holdout_permille: balance.holdout_permille(),
            cap_epsilon: policy.cap.epsilon.value(),
            delta: delta.value(),
            period_days,
            max_sites,
            spent: balance.spent_at(as_of_s, delta),
            period,
            lifetime,
            at_max_sites,
            without_masks: self.notes.alone.epsilon(balance, delta),
            policies: self.policies(),
            jobs: self.jobs(delta),
            releases: self.notes.releases.clone(),
            curve: self.curve(balance, as_of_s, delta, period_days.is_some()),
        })
    }

    fn policies(&self) -> Vec<PolicyVersion> {
        let version = |(line, since_s, text): &(u64, u64, PolicyText)| {
            let cap = Policy::parse(&text.text).ok()?.cap;
            Some(PolicyVersion {
                line: *line,
                since_s: *since_s,
                epsilon: cap.epsilon.value(),
                delta: cap.delta.value(),
                period_days: cap.period_days,
                signed: text.signature.is_some(),
                text: text.text.clone(),
            })
        };
        self.notes.policies.iter().filter_map(version).collect()
    }

    fn jobs(&self, delta: Delta) -> Vec<JobTotal> {
        let balance = self.chain.balance();
        let running: BTreeSet<JobId> = balance.running_jobs().collect();
        let total = |job: &JobId| {
            let noted = self.notes.jobs.get(job)?;
            let of = |paid: &Kinds| balance.epsilon_of(&paid.events(), delta);
            let epsilon = noted.paid.values().map(of).fold(0.0, f64::max);
            let epsilon_without_masks = noted.alone.epsilon(balance, delta);
            let running = running.contains(job);
            Some(JobTotal { running, epsilon, epsilon_without_masks, ..noted.clone() })
        };
        self.notes.order.iter().filter_map(total).collect()
    }

    /// Both accountants' figures for `events`, `times` over, of the population that paid most.
    fn figures(
        &self,
        events: impl Fn(Population) -> Vec<GaussianEvent>,
        times: u32,
        delta: Delta,
    ) -> Figures {
        let of = |population| {
            let repeated = |event: GaussianEvent| match event.steps.checked_mul(times) {
                Some(steps) => vec![GaussianEvent { steps, ..event }],
                None => vec![event; times as usize],
            };
            let recorded: Vec<GaussianEvent> = events(population).into_iter().flat_map(repeated).collect();
            let renyi = self.chain.balance().epsilon_of(&recorded, delta);
            let continuous = recorded.iter().map(|event| {
                let sigma = self.notes.sigmas.get(&event.kind()).copied().unwrap_or(0.0);
                let noise_multiplier = continuous_equivalent(event.noise_multiplier, sigma).ok()?;
                Some(GaussianEvent { noise_multiplier, ..*event })
            });
            let bounds = continuous
                .collect::<Option<Vec<_>>>()
                .map(|events| accountant::epsilon(&coarsened(events, MAX_KINDS), delta));
            // The lower figure of coarsened events would be that of others.
            let sharp = recorded.len() <= MAX_KINDS || !is_sampled(&recorded);
            Figures {
                renyi,
                certified_upper: bounds.map_or(renyi, |bounds| bounds.upper.min(renyi)),
                certified_lower: bounds.filter(|_| sharp).map_or(0.0, |bounds| bounds.lower),
            }
        };
        let (one, other) = (of(Population::Training), of(Population::Holdout));
        Figures {
            renyi: one.renyi.max(other.renyi),
            certified_upper: one.certified_upper.max(other.certified_upper),
            certified_lower: one.certified_lower.max(other.certified_lower),
        }
    }

    /// Without a period, what the entries state; with one, what each day's end would have stated by the period
    /// now in force.
    fn curve(&self, balance: &Balance, as_of_s: u64, delta: Delta, with_period: bool) -> Vec<(u64, f64)> {
        let stated = &self.notes.curve;
        if !with_period {
            let stride = stated.len().div_ceil(MAX_POINTS as usize).max(1);
            let kept = |index: usize| index.is_multiple_of(stride) || index + 1 == stated.len();
            return (0..stated.len()).filter(|index| kept(*index)).map(|index| stated[index]).collect();
        }
        let (first, last) = (self.notes.began_s / DAY_S, as_of_s / DAY_S);
        let stride = ((last - first) / MAX_POINTS + 1) as usize;
        let days = (first..=last).step_by(stride).chain([last]);
        days.map(|day| (day * DAY_S, balance.spent_on(day * DAY_S, delta))).collect()
    }
}

fn is_sampled(events: &[GaussianEvent]) -> bool {
    events.iter().any(|event| event.sampling_rate.value() < 1.0)
}

/// At most `most` kinds of events, together at least as costly as `events`: noise multipliers are rounded down
/// and sampling rates up, to ever coarser grids. Releases without sampling cost the accountant nothing, and stay.
///
/// Less noise is never more private, being post-processed into more; nor is a higher sampling rate, since a
/// customer who was drawn may be dropped again.
fn coarsened(events: Vec<GaussianEvent>, most: usize) -> Vec<GaussianEvent> {
    if !is_sampled(&events) {
        return events;
    }
    let kinds_of = |step: Option<f64>| -> Vec<GaussianEvent> {
        let kept = events.iter().map(|event| step.map_or(*event, |step| rounded(event, step)));
        kept.collect::<Kinds>().events()
    };
    // At the coarsest grid only kinds of very many steps are left in parts, which cost the accountant little.
    let (mut kinds, mut step) = (kinds_of(None), 1.0 / 4096.0);
    while kinds.len() > most && step <= 1024.0 {
        kinds = kinds_of(Some(step));
        step *= 2.0;
    }
    kinds
}

/// `event` on a grid of `step` in the logarithms, on the costlier side.
fn rounded(event: &GaussianEvent, step: f64) -> GaussianEvent {
    let (noise, rate) = (event.noise_multiplier.value(), event.sampling_rate.value());
    let lower = ((noise.ln() / step).floor() * step).exp().min(noise).max(0.1);
    let higher = ((rate.ln() / step).ceil() * step).exp().max(rate).min(1.0);
    GaussianEvent {
        noise_multiplier: NoiseMultiplier::new(lower).unwrap_or(event.noise_multiplier),
        sampling_rate: SamplingRate::new(higher).unwrap_or(event.sampling_rate),
        steps: event.steps,
    }
}

impl Report {
    /// The guarantee in words that need no training, a paragraph each.
    pub fn guarantee(&self) -> Vec<String> {
        let mut paragraphs = vec![
            "Protected is one customer at this site: everything recorded under one customer's number. Whatever left \
             this site, over all jobs and rounds together, would be almost as likely had that customer never \
             been here, or been here in addition."
                .to_owned(),
        ];
        let window = match self.period_days {
            Some(days) => format!("in the last {days} days"),
            None => "since this ledger began".to_owned(),
        };
        let spent = raised(self.spent.spent);
        paragraphs.push(match spent > 0.0 {
            false => format!("{}, nothing left that depends on any customer.", capital(&window)),
            true => format!(
                "{}: epsilon {}, delta {:e}. An observer's odds about any one customer change by at most a factor \
                 e^{} = {}, but for a probability of {}. Someone who thought it even odds that a customer \
                 is in the records can come to be {} sure of it, no more.",
                capital(&window),
                short(spent),
                self.delta,
                short(spent),
                factor(spent),
                chance(self.delta),
                certainty(spent),
            ),
        });
        let cap = self.cap_epsilon;
        paragraphs.push(match self.period_days {
            Some(days) => format!(
                "The site's lock stands at epsilon {cap} over any {days} days (odds by at most a factor {}): a job that \
                 would pass it is refused, whoever asks. Older releases do not become undone: since the ledger \
                 began it is epsilon {} (a factor {}).",
                factor(cap),
                short(self.spent.lifetime),
                factor(raised(self.spent.lifetime)),
            ),
            None => format!(
                "The site's lock stands at epsilon {cap} for good (odds by at most a factor {}): a job that would \
                 pass it is refused, whoever asks.",
                factor(cap),
            ),
        });
        if let Some(epsilon) = self.without_masks {
            paragraphs.push(format!(
                "In secure sums a site adds only its share of the noise: these figures count on the shares of the other \
                 honest sites, as many as each job's contract names, and on the masks. If they were broken, were \
                 more sites in league with the coordinator than the contract allows for, this site's own \
                 shares would still bound the loss since the ledger began by epsilon {} (a factor {}).",
                short(epsilon),
                factor(raised(epsilon)),
            ));
        }
        if self.max_sites > 1 {
            paragraphs.push(format!(
                "A customer known at {} sites, each of which released as much as this one: epsilon {} since the ledger \
                 began (a factor {}).",
                self.max_sites,
                short(self.at_max_sites.renyi),
                factor(raised(self.at_max_sites.renyi)),
            ));
        }
        paragraphs
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// An epsilon in as many digits as say something, rounded up.
pub fn short(epsilon: f64) -> String {
    let raised = raised(epsilon);
    if raised.is_finite() { format!("{raised:.3}") } else { "without bound".to_owned() }
}

/// An epsilon rounded up to thousandths.
fn raised(epsilon: f64) -> f64 {
    ((epsilon * 1000.0 - 1e-6).ceil() / 1000.0).max(0.0)
}

/// `exp(epsilon)`, rounded up.
fn factor(epsilon: f64) -> String {
    let factor = epsilon.exp();
    match factor {
        factor if factor < 10.0 => format!("{:.2}", (factor * 100.0).ceil() / 100.0),
        factor if factor < 1e6 => format!("{:.0}", factor.ceil()),
        factor if factor.is_finite() => format!("{factor:.1e}"),
        _ => "without bound".to_owned(),
    }
}

/// Where even odds can be moved to, in percent, rounded up.
fn certainty(epsilon: f64) -> String {
    let percent = 100.0 / (1.0 + (-epsilon).exp());
    if percent > 99.99 {
        "more than 99.99 %".to_owned()
    } else {
        format!("{:.2} %", (percent * 100.0).ceil() / 100.0)
    }
}

fn chance(delta: f64) -> String {
    format!("1 in {:.0}", (1.0 / delta).floor())
}

#[cfg(test)]
mod tests;
