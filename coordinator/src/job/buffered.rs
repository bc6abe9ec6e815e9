//! The buffered schedule (Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation"): which update
//! of which site comes next, and from which model it may come. Pure.
//!
//! The coordinator's round is the number of a step, and so of a model version. A site's round is the number of its own update:
//! what its ledger debits, what is replayed at most once, and what the contract bounds by `training.rounds`. A site trains
//! from the newest model when its turn begins; the model may be older by the time its update is in, and it
//! counts less then ([`staleness_weight`](weighhouse_shared::job::staleness_weight)). A site that lost its link is asked for
//! the same update again; it sends the bytes it has stored, whichever version they were made from. One that has
//! lost them skips that number: a debit wasted, none hidden.

use std::collections::{BTreeMap, BTreeSet};
use weighhouse_shared::ids::{ContentHash, RoundId, SiteId};
use weighhouse_shared::job::{FederationSchedule, JobContract};
use weighhouse_shared::wire::messages::Outcome;

/// Where each site is, and what is in the buffer.
#[derive(Debug)]
pub(super) struct Buffered {
    size: u32,
    /// Updates that one site releases at most.
    most: u32,
    filled: u32,
    /// The number of each site's next update.
    next: BTreeMap<SiteId, u32>,
    /// Sites whose turn has begun.
    busy: BTreeSet<SiteId>,
    /// Sites that skipped since the last step: they wait for the next one.
    resting: BTreeSet<SiteId>,
    /// By model, which version it is; the newest one of equal models.
    versions: BTreeMap<ContentHash, u32>,
    newest: u32,
}

impl Buffered {
    /// At the start of `contract`, or where version `round` is the model `model`; None with another schedule.
    pub fn of(contract: &JobContract, round: RoundId, model: ContentHash) -> Option<Self> {
        let FederationSchedule::Buffered { buffer_size } = contract.federation.schedule else { return None };
        Some(Self {
            size: buffer_size,
            most: contract.training.rounds,
            filled: 0,
            next: BTreeMap::new(),
            busy: BTreeSet::new(),
            resting: BTreeSet::new(),
            versions: BTreeMap::from([(model, round.0)]),
            newest: round.0,
        })
    }

    /// After a restart: the buffer is empty, and what was in it comes again if its sites still have it.
    pub fn resume(&mut self, released: BTreeMap<SiteId, u32>, models: impl IntoIterator<Item = ContentHash>) {
        self.next = released;
        for (version, model) in (0..self.newest).zip(models) {
            self.versions.entry(model).or_insert(version);
        }
    }

    pub fn released(&self) -> &BTreeMap<SiteId, u32> {
        &self.next
    }

    /// Updates in the buffer, and its size.
    pub fn filling(&self) -> (u32, u32) {
        (self.filled, self.size)
    }

    /// How many versions before step `round` the model `base` was the newest.
    pub fn staleness(&self, base: ContentHash, round: RoundId) -> Option<u32> {
        self.versions.get(&base).map(|version| round.0.saturating_sub(*version))
    }

    fn next_of(&self, site: SiteId) -> u32 {
        self.next.get(&site).copied().unwrap_or(0)
    }

    /// Whether update `round` of `site`, made from `base`, counts in step `step`.
    pub fn verdict(
        &self,
        site: SiteId,
        round: RoundId,
        base: Option<ContentHash>,
        step: RoundId,
    ) -> Result<(), Outcome> {
        let next = self.next_of(site);
        if round.0 < next {
            return Err(Outcome::Repeated);
        }
        if round.0 > next || next >= self.most {
            return Err(Outcome::WrongRound);
        }
        let known = base.is_some_and(|base| self.staleness(base, step).is_some());
        if known { Ok(()) } else { Err(Outcome::WrongModel) }
    }

    /// The site's update is in the buffer. Whether that is full.
    pub fn counted(&mut self, site: SiteId) -> bool {
        self.done(site);
        self.filled += 1;
        self.filled >= self.size
    }

    /// The site will not send update `round`.
    pub fn skipped(&mut self, site: SiteId, round: RoundId) {
        if round.0 == self.next_of(site) && self.busy.contains(&site) {
            self.done(site);
            self.resting.insert(site);
        }
    }

    fn done(&mut self, site: SiteId) {
        *self.next.entry(site).or_default() += 1;
        self.busy.remove(&site);
    }

    /// The site is gone, or back: it has no turn.
    pub fn stopped(&mut self, site: SiteId) {
        self.busy.remove(&site);
    }

    /// A step made `model` the newest.
    pub fn committed(&mut self, model: ContentHash) {
        self.newest += 1;
        self.versions.insert(model, self.newest);
        self.filled = 0;
        self.resting.clear();
    }

    /// Whether none of `sites` has an update left, of which there is at least one.
    pub fn all_released(&self, sites: impl Iterator<Item = SiteId>) -> bool {
        let mut sites = sites.peekable();
        sites.peek().is_some() && sites.all(|site| self.next_of(site) >= self.most)
    }

    /// Begins the turn of each of `sites` that has none and updates left. One that skipped waits for a step, unless nobody
    /// works at all.
    pub fn turns(&mut self, sites: impl Iterator<Item = SiteId>) -> Vec<(SiteId, RoundId)> {
        let idle: Vec<SiteId> =
            sites.filter(|site| !self.busy.contains(site) && self.next_of(*site) < self.most).collect();
        let mut begun: Vec<SiteId> =
            idle.iter().filter(|site| !self.resting.contains(site)).copied().collect();
        if begun.is_empty() && self.busy.is_empty() {
            begun = idle;
            self.resting.clear();
        }
        self.busy.extend(&begun);
        begun.into_iter().map(|site| (site, RoundId(self.next_of(site)))).collect()
    }
}
