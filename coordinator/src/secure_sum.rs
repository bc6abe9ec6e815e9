//! What the coordinator holds of one job's secure sums: keys, offers, masked integers, answers. It can be rebuilt from the
//! store but for what comes again: keys and offers that nothing is fixed of yet, and the answers.
//!
//! **Memory**, for n sites and p parameters: 4 p bytes for the sum, and 600 bytes a pair of neighbours for a batch.

use crate::admission::AdmittedUpdate;
use crate::store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::secure_sum::agreement::{Answer, Question};
use weighhouse_shared::secure_sum::batch::{Grant, Offer};
use weighhouse_shared::secure_sum::coordinator::{Batch, OpenError};
use weighhouse_shared::secure_sum::keys::SignedKey;
use weighhouse_shared::secure_sum::masks;
use weighhouse_shared::secure_sum::roster::{Roster, RosterError, Terms};

/// Bytes that an answer may hold for each member of a circle.
const TOLD_LEN: usize = 40;

/// The masked sum of a round so far.
#[derive(Debug)]
pub struct RoundSum {
    round: RoundId,
    values: Vec<u32>,
    sites: BTreeSet<SiteId>,
}

/// A question and the answers so far.
#[derive(Debug)]
struct Asked {
    question: Question,
    hash: [u8; 32],
    answers: BTreeMap<u16, Answer>,
}

/// One job's secure sums.
#[derive(Debug, Default)]
pub struct JobSums {
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

fn terms(contract: &JobContract) -> Option<Terms<'_>> {
    let sum = contract.federation.secure_sum()?;
    let (threshold, colluding) = (contract.federation.min_sites, sum.colluding_sites);
    Some(Terms { members: &sum.members, threshold, colluding })
}

impl JobSums {
    /// None yet, for a job of `contract`; None in other modes.
    pub fn of(contract: &JobContract) -> Option<Self> {
        contract.federation.secure_sum().map(|_| Self::default())
    }

    /// As they were kept; `awaited` is the round that comes next.
    pub fn restore(
        job: JobId,
        contract: &JobContract,
        awaited: RoundId,
        store: &Store,
    ) -> Result<Option<(Self, Fixed)>, StoreError> {
        let (Some(mut sums), Some(terms)) = (Self::of(contract), terms(contract)) else { return Ok(None) };
        let mut fixed = Fixed::default();
        if let Some(keys) = store.sum_roster(job)? {
            sums.roster = Roster::new(job, terms, keys).ok();
        }
        let Some(roster) = &sums.roster else { return Ok(Some((sums, fixed))) };
        fixed.roster = Some(roster.sites().iter().copied().collect());
        if let Some(batch) = store.sum_batch(job)? {
            let sites = batch.offers.keys().filter_map(|number| roster.site(*number)).collect();
            fixed.batch = Some((batch.number, sites));
            sums.batch = Some(batch);
        }
        match store.kept_sum(job)? {
            Some(kept) if kept.round == awaited => {
                let sites: BTreeSet<SiteId> = kept.survivors.iter().copied().collect();
                fixed.survivors = Some(sites.clone());
                let values = store.sum_values(job, &kept)?;
                sums.round = Some(RoundSum { round: kept.round, values, sites });
            }
            // What a process that was killed right after a commit did not get to.
            Some(_) => store.forget_sum(job)?,
            None => {}
        }
        Ok(Some((sums, fixed)))
    }

    /// A site's key: whether it may be on the roster with it.
    pub fn take_key(&mut self, job: JobId, contract: &JobContract, site: SiteId, key: SignedKey) -> bool {
        let is_member = contract.federation.secure_sum().is_some_and(|sum| sum.is_member(site));
        let taken = is_member && key.site() == site && key.is_signed_for(job);
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
        job: JobId,
        contract: &JobContract,
        sites: &BTreeSet<SiteId>,
        store: &Store,
    ) -> Result<Result<(), RosterError>, StoreError> {
        let Some(terms) = terms(contract) else { return Ok(Ok(())) };
        let keys: Vec<SignedKey> = sites.iter().filter_map(|site| self.keys.remove(site)).collect();
        match Roster::new(job, terms, keys) {
            Ok(roster) => {
                store.put_sum_roster(job, roster.keys())?;
                self.roster = Some(roster);
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// Fixes a batch and keeps it.
    pub fn fix_batch(
        &mut self,
        job: JobId,
        number: u32,
        sites: &BTreeSet<SiteId>,
        store: &Store,
    ) -> Result<(), StoreError> {
        let Some(roster) = &self.roster else { return Ok(()) };
        let mut offers = std::mem::take(&mut self.offers);
        offers.retain(|at, _| roster.site(*at).is_some_and(|site| sites.contains(&site)));
        let batch = Batch { number, offers };
        store.put_sum_batch(job, &batch)?;
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
        let fresh = || RoundSum { round, values: vec![0; parameters], sites: BTreeSet::new() };
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
    pub fn keep(&self, job: JobId, round: RoundId, store: &Store) -> Result<(), StoreError> {
        match self.round.as_ref().filter(|sum| sum.round == round) {
            Some(sum) => store.put_sum(job, round, sum.sites.iter().copied().collect(), &sum.values),
            None => Ok(()),
        }
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
        let sum = self.round.as_mut().filter(|sum| sum.round == asked.question.round);
        let sum = sum.ok_or(OpenError::Unanswered { missing: 0 })?;
        let masks = batch.unmask(roster, &asked.question, &asked.answers)?;
        masks.apply(&mut sum.values, threads);
        self.asked = None;
        Ok(())
    }

    /// The sites with these numbers.
    pub fn sites(&self, numbers: &BTreeSet<u16>) -> BTreeSet<SiteId> {
        let roster = self.roster.as_ref();
        numbers.iter().filter_map(|number| roster?.site(*number)).collect()
    }

    /// The opened sum of a round and how many sites are in it.
    pub fn take_opened(&mut self) -> Option<(Vec<u32>, u32)> {
        self.asked = None;
        self.round.take().map(|sum| (sum.values, sum.sites.len() as u32))
    }
}
