//! The secure sums of one group of a job's members: keys, offers, masked integers, answers.

use crate::admission::AdmittedUpdate;
use crate::store::{Store, StoreError, SumGroup};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use weighhouse_shared::ids::{RoundId, SiteId};
use weighhouse_shared::job::Federation;
use weighhouse_shared::secure_sum::agreement::{Answer, Question};
use weighhouse_shared::secure_sum::batch::{Grant, Offer};
use weighhouse_shared::secure_sum::coordinator::{Batch, OpenError};
use weighhouse_shared::secure_sum::keys::SignedKey;
use weighhouse_shared::secure_sum::masks;
use weighhouse_shared::secure_sum::roster::{Roster, RosterError};

/// Bytes that an answer may hold for each member of a circle.
const TOLD_LEN: usize = 40;

/// The masked sum of a round so far.
#[derive(Debug)]
struct RoundSum {
    round: RoundId,
    values: Vec<u32>,
    sites: BTreeSet<SiteId>,
    /// The masks are off.
    opened: bool,
}

/// A sum without its masks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedSum {
    /// The survivors' noised integers modulo 2^32, one a parameter.
    pub values: Vec<u32>,
    /// How many survived.
    pub sites: u32,
}

/// A question and the answers so far.
#[derive(Debug)]
struct Asked {
    question: Question,
    hash: [u8; 32],
    answers: BTreeMap<u16, Answer>,
}

/// The secure sums of one group.
#[derive(Debug)]
pub struct GroupSums {
    of: SumGroup,
    /// Ascending.
    members: Vec<SiteId>,
    /// Of sites that may be on the roster.
    keys: BTreeMap<SiteId, SignedKey>,
    roster: Option<Roster>,
    batch: Option<Batch>,
    /// For the batch after that.
    offers: BTreeMap<u16, Offer>,
    round: Option<RoundSum>,
    asked: Option<Asked>,
}

/// What was fixed before a restart.
#[derive(Debug, Default)]
pub struct Fixed {
    /// The sites of the roster.
    pub roster: Option<BTreeSet<SiteId>>,
    /// The newest batch and its sites.
    pub batch: Option<(u32, BTreeSet<SiteId>)>,
    /// Of the round that is being opened.
    pub survivors: Option<BTreeSet<SiteId>>,
}

impl GroupSums {
    /// None yet, of these members.
    pub fn new(of: SumGroup, members: Vec<SiteId>) -> Self {
        Self {
            of,
            members,
            keys: BTreeMap::new(),
            roster: None,
            batch: None,
            offers: BTreeMap::new(),
            round: None,
            asked: None,
        }
    }

    fn make_roster(
        &self,
        federation: &Federation,
        keys: Vec<SignedKey>,
    ) -> Option<Result<Roster, RosterError>> {
        Some(Roster::new(self.of.job, federation.sum_terms(&self.members)?, keys))
    }

    /// As they were kept; `awaited` is the round that comes next.
    pub fn restore(
        &mut self,
        federation: &Federation,
        awaited: RoundId,
        store: &Store,
    ) -> Result<Fixed, StoreError> {
        let mut fixed = Fixed::default();
        if let Some(keys) = store.sum_roster(self.of)? {
            self.roster = self.make_roster(federation, keys).and_then(Result::ok);
        }
        let Some(roster) = &self.roster else { return Ok(fixed) };
        fixed.roster = Some(roster.sites().iter().copied().collect());
        if let Some(batch) = store.sum_batch(self.of)? {
            let sites = batch.offers.keys().filter_map(|number| roster.site(*number)).collect();
            fixed.batch = Some((batch.number, sites));
            self.batch = Some(batch);
        }
        match store.kept_sum(self.of)? {
            Some(kept) if kept.round == awaited => {
                let sites: BTreeSet<SiteId> = kept.survivors.iter().copied().collect();
                fixed.survivors = Some(sites.clone());
                let values = store.sum_values(self.of, &kept)?;
                self.round = Some(RoundSum { round: kept.round, values, sites, opened: false });
            }
            // What a process that was killed right after a commit did not get to.
            Some(_) => store.forget_sum(self.of)?,
            None => {}
        }
        Ok(fixed)
    }

    /// Whether `site` is one of the group.
    pub fn is_of(&self, site: SiteId) -> bool {
        self.members.binary_search(&site).is_ok()
    }

    /// A member's key: whether it may be on the roster with it.
    pub fn take_key(&mut self, site: SiteId, key: SignedKey) -> bool {
        let taken = key.site() == site && key.is_signed_for(self.of.job);
        if taken && self.roster.is_none() {
            self.keys.insert(site, key);
        }
        taken
    }

    /// A site's part in the next batch; None if it is not one.
    pub fn take_offer(&mut self, site: SiteId, offer: Offer) -> Option<u32> {
        let roster = self.roster.as_ref()?;
        let number = roster.number_of(site)?;
        let next = self.batch.as_ref().map_or(0, |batch| batch.number + 1);
        if offer.batch != next || !offer.fits(roster, number) {
            return None;
        }
        self.offers.insert(number, offer);
        Some(next)
    }

    /// A site's answer to the question that is open; whether it is one.
    pub fn take_answer(&mut self, site: SiteId, answer: Answer) -> bool {
        let (Some(roster), Some(asked)) = (&self.roster, &mut self.asked) else { return false };
        let Some(number) = roster.number_of(site) else { return false };
        let circle = roster.graph().circle(number).len();
        let fits = asked.question.asked.binary_search(&number).is_ok()
            && answer.question == asked.hash
            && answer.pads.len() == asked.question.asked.len()
            && answer.sealed.len() <= TOLD_LEN * (circle + 1);
        if fits {
            asked.answers.insert(number, answer);
        }
        fits
    }

    /// Fixes the roster and keeps it.
    pub fn fix_roster(
        &mut self,
        federation: &Federation,
        sites: &BTreeSet<SiteId>,
        store: &Store,
    ) -> Result<Result<(), RosterError>, StoreError> {
        let keys: Vec<SignedKey> = sites.iter().filter_map(|site| self.keys.remove(site)).collect();
        match self.make_roster(federation, keys) {
            None => Ok(Ok(())),
            Some(Ok(roster)) => {
                store.put_sum_roster(self.of, roster.keys())?;
                self.roster = Some(roster);
                Ok(Ok(()))
            }
            Some(Err(error)) => Ok(Err(error)),
        }
    }

    /// Fixes a batch and keeps it.
    pub fn fix_batch(
        &mut self,
        number: u32,
        sites: &BTreeSet<SiteId>,
        store: &Store,
    ) -> Result<(), StoreError> {
        let Some(roster) = &self.roster else { return Ok(()) };
        let mut offers = std::mem::take(&mut self.offers);
        offers.retain(|at, _| roster.site(*at).is_some_and(|site| sites.contains(&site)));
        let batch = Batch { number, offers };
        store.put_sum_batch(self.of, &batch)?;
        self.batch = Some(batch);
        Ok(())
    }

    /// The roster's keys, for a site that is on it.
    pub fn roster_for(&self, site: SiteId) -> Option<Vec<SignedKey>> {
        let roster = self.roster.as_ref()?;
        roster.number_of(site).map(|_| roster.keys().to_vec())
    }

    /// The newest batch, for a site that is in it.
    pub fn batch_for(&self, site: SiteId) -> Option<Grant> {
        let roster = self.roster.as_ref()?;
        self.batch.as_ref()?.grant(roster, roster.number_of(site)?)
    }

    /// Adds a site's masked integers to the round's sum.
    pub fn add(
        &mut self,
        site: SiteId,
        round: RoundId,
        parameters: usize,
        mut update: AdmittedUpdate,
    ) -> io::Result<()> {
        let fresh = || RoundSum { round, values: vec![0; parameters], sites: BTreeSet::new(), opened: false };
        let sum = match self.round.take().filter(|sum| sum.round == round) {
            Some(sum) => self.round.insert(sum),
            None => self.round.insert(fresh()),
        };
        let mut at = 0;
        update.read(|part| {
            let (words, _) = part.as_chunks::<4>();
            masks::add(&mut sum.values[at..], words);
            at += words.len();
            Ok(())
        })?;
        sum.sites.insert(site);
        Ok(())
    }

    /// Keeps the round's masked sum: from now on it is of these sites and no others.
    pub fn keep(&self, round: RoundId, store: &Store) -> Result<(), StoreError> {
        match self.round.as_ref().filter(|sum| sum.round == round) {
            Some(sum) => store.put_sum(self.of, round, sum.sites.iter().copied().collect(), &sum.values),
            None => Ok(()),
        }
    }

    /// Drops the sum that was kept.
    pub fn forget_round(&self, store: &Store) -> Result<(), StoreError> {
        store.forget_sum(self.of)
    }

    /// Forgets the round's sum, which is never opened.
    pub fn drop_round(&mut self) {
        self.round = None;
    }

    /// Asks these sites about the round's survivors.
    pub fn ask(&mut self, round: RoundId, sites: &BTreeSet<SiteId>) -> Option<Question> {
        let (roster, batch) = (self.roster.as_ref()?, self.batch.as_ref()?);
        let sum = self.round.as_ref().filter(|sum| sum.round == round)?;
        let numbers = |sites: &BTreeSet<SiteId>| {
            sites.iter().filter_map(|site| roster.number_of(*site)).collect::<Vec<u16>>()
        };
        let question = Question { round, survivors: numbers(&sum.sites), asked: numbers(sites) };
        let hash = batch.question_hash(roster, &question);
        self.asked = Some(Asked { question: question.clone(), hash, answers: BTreeMap::new() });
        Some(question)
    }

    /// Takes the masks off the round's sum with the answers that are here.
    pub fn open(&mut self, threads: usize) -> Result<(), OpenError> {
        let (Some(roster), Some(batch), Some(asked)) = (&self.roster, &self.batch, &self.asked) else {
            return Err(OpenError::Unanswered { missing: 0 });
        };
        let sum = self.round.as_mut().filter(|sum| sum.round == asked.question.round && !sum.opened);
        let sum = sum.ok_or(OpenError::Unanswered { missing: 0 })?;
        let masks = batch.unmask(roster, &asked.question, &asked.answers)?;
        masks.apply(&mut sum.values, threads);
        sum.opened = true;
        self.asked = None;
        Ok(())
    }

    /// The sites with these numbers.
    pub fn sites(&self, numbers: &BTreeSet<u16>) -> BTreeSet<SiteId> {
        let roster = self.roster.as_ref();
        numbers.iter().filter_map(|number| roster?.site(*number)).collect()
    }

    /// The opened sum of a round; one that is not open is dropped.
    pub fn take_opened(&mut self) -> Option<OpenedSum> {
        self.asked = None;
        let sum = self.round.take().filter(|sum| sum.opened)?;
        Some(OpenedSum { sites: sum.sites.len() as u32, values: sum.values })
    }
}
