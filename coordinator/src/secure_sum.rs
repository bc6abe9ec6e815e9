//! What the coordinator holds of one job's secure sums, group by group. It can be rebuilt from the store but for what comes
//! again: keys and offers that nothing is fixed of yet, and the answers.
//!
//! **Memory**, for n sites and p parameters: 4 p bytes for the sum of each group, and 600 bytes a pair of neighbours for a
//! batch.

mod group;

pub use group::{Fixed, OpenedSum};

use crate::admission::AdmittedUpdate;
use crate::store::{Store, StoreError, SumGroup};
use group::GroupSums;
use std::collections::BTreeSet;
use std::io;
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::secure_sum::agreement::{Answer, Question};
use weighhouse_shared::secure_sum::batch::{Grant, Offer};
use weighhouse_shared::secure_sum::coordinator::OpenError;
use weighhouse_shared::secure_sum::keys::SignedKey;
use weighhouse_shared::secure_sum::roster::RosterError;

/// One job's secure sums: of all members, or of each group.
#[derive(Debug)]
pub struct JobSums {
    groups: Vec<GroupSums>,
}

impl JobSums {
    /// None yet, for `job` of `contract`; None in other modes.
    pub fn of(job: JobId, contract: &JobContract) -> Option<Self> {
        contract.federation.secure_sum()?;
        let lists = contract.grouped_members().into_iter();
        let groups =
            (0u16..).zip(lists).map(|(group, members)| GroupSums::new(SumGroup { job, group }, members));
        Some(Self { groups: groups.collect() })
    }

    /// As they were kept; `awaited` is the round that comes next.
    pub fn restore(
        job: JobId,
        contract: &JobContract,
        awaited: RoundId,
        store: &Store,
    ) -> Result<Option<(Self, Vec<Fixed>)>, StoreError> {
        let Some(mut sums) = Self::of(job, contract) else { return Ok(None) };
        let groups = sums.groups.iter_mut();
        let fixed = groups.map(|group| group.restore(&contract.federation, awaited, store));
        let fixed = fixed.collect::<Result<_, _>>()?;
        Ok(Some((sums, fixed)))
    }

    fn of_site(&self, site: SiteId) -> Option<&GroupSums> {
        self.groups.iter().find(|group| group.is_of(site))
    }

    fn of_site_mut(&mut self, site: SiteId) -> Option<&mut GroupSums> {
        self.groups.iter_mut().find(|group| group.is_of(site))
    }

    /// A site's key: whether it may be on a roster with it.
    pub fn take_key(&mut self, site: SiteId, key: SignedKey) -> bool {
        self.of_site_mut(site).is_some_and(|group| group.take_key(site, key))
    }

    /// A site's part in the next batch; None if it is not one.
    pub fn take_offer(&mut self, site: SiteId, offer: Offer) -> Option<u32> {
        self.of_site_mut(site)?.take_offer(site, offer)
    }

    /// A site's answer to the question that is open; whether it is one.
    pub fn take_answer(&mut self, site: SiteId, answer: Answer) -> bool {
        self.of_site_mut(site).is_some_and(|group| group.take_answer(site, answer))
    }

    /// Fixes the roster of a group and keeps it.
    pub fn fix_roster(
        &mut self,
        contract: &JobContract,
        group: usize,
        sites: &BTreeSet<SiteId>,
        store: &Store,
    ) -> Result<Result<(), RosterError>, StoreError> {
        let group = self.groups.get_mut(group);
        group.map_or(Ok(Ok(())), |group| group.fix_roster(&contract.federation, sites, store))
    }

    /// Fixes a batch of a group and keeps it.
    pub fn fix_batch(
        &mut self,
        group: usize,
        number: u32,
        sites: &BTreeSet<SiteId>,
        store: &Store,
    ) -> Result<(), StoreError> {
        self.groups.get_mut(group).map_or(Ok(()), |group| group.fix_batch(number, sites, store))
    }

    /// The keys of its roster, for a site that is on it.
    pub fn roster_for(&self, site: SiteId) -> Option<Vec<SignedKey>> {
        self.of_site(site)?.roster_for(site)
    }

    /// Its newest batch, for a site that is in it.
    pub fn batch_for(&self, site: SiteId) -> Option<Grant> {
        self.of_site(site)?.batch_for(site)
    }

    /// Adds a site's masked integers to the round's sum of its group.
    pub fn add(
        &mut self,
        site: SiteId,
        round: RoundId,
        parameters: usize,
        update: AdmittedUpdate,
    ) -> io::Result<()> {
        self.of_site_mut(site).map_or(Ok(()), |group| group.add(site, round, parameters, update))
    }

    /// Keeps the round's masked sums of these groups: from now on they are of their sites and no others. What came of other
    /// groups is forgotten.
    pub fn keep(&mut self, round: RoundId, groups: &[usize], store: &Store) -> Result<(), StoreError> {
        for (at, group) in self.groups.iter_mut().enumerate() {
            match groups.contains(&at) {
                true => group.keep(round, store)?,
                false => group.drop_round(),
            }
        }
        Ok(())
    }

    /// Drops the kept sums of a round that is committed, or given up.
    pub fn forget_round(&self, store: &Store) -> Result<(), StoreError> {
        self.groups.iter().try_for_each(|group| group.forget_round(store))
    }

    /// Asks these sites about the round's survivors in their group.
    pub fn ask(&mut self, group: usize, round: RoundId, sites: &BTreeSet<SiteId>) -> Option<Question> {
        self.groups.get_mut(group)?.ask(round, sites)
    }

    /// Takes the masks off the round's sum of a group with the answers that are here.
    pub fn open(&mut self, group: usize, threads: usize) -> Result<(), OpenError> {
        let group = self.groups.get_mut(group).ok_or(OpenError::Unanswered { missing: 0 })?;
        group.open(threads)
    }

    /// The sites of a group with these numbers.
    pub fn sites(&self, group: usize, numbers: &BTreeSet<u16>) -> BTreeSet<SiteId> {
        self.groups.get(group).map(|group| group.sites(numbers)).unwrap_or_default()
    }

    /// The round's sums that are open, in the order of their groups; the others are dropped.
    pub fn take_opened(&mut self) -> Vec<OpenedSum> {
        self.groups.iter_mut().filter_map(GroupSums::take_opened).collect()
    }
}
