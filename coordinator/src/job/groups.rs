//! The groups of a job's secure sums, each a [`Cohort`] of its own, and what of them a round needs. Pure. A job with one sum
//! over all has one group.
//!
//! A round is for the groups that are prepared when it opens: at least `min_groups`, and those that may still be while there
//! is patience. A group that stays below its threshold is left out: none of its sites is asked to train. A round's uploads
//! are enough once `min_groups` groups have their threshold of them; a group that has fewer then is never opened. Of the
//! others each is opened by its own survivors. Once `min_groups` sums are open, a group whose survivors are gone is waited
//! for no longer than [`GRACE_MS`](super::GRACE_MS). A group that missed batches makes up for them one by one, and takes part again.

use super::cohort::{Cohort, Next, Preparation};
use crate::secure_sum::Fixed;
use std::collections::{BTreeMap, BTreeSet};
use weighhouse_shared::ids::{RoundId, SiteId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::secure_sum::batch_of;

/// The groups of one job.
#[derive(Debug)]
pub(super) struct Groups {
    cohorts: Vec<Cohort>,
    /// Of each member.
    group_of: BTreeMap<SiteId, usize>,
    min_groups: usize,
}

/// Something of one group that is to be fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fix {
    /// Its roster.
    Roster(usize, BTreeSet<SiteId>),
    /// A batch.
    Batch(usize, u32, BTreeSet<SiteId>),
}

/// What there is to do before a round opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    /// These have to be fixed.
    pub fixes: Vec<Fix>,
    /// Sites have to say something to what is fixed now: patience begins anew.
    pub anew: bool,
    /// The round opens, for these sites.
    pub sites: Option<BTreeSet<SiteId>>,
}

/// What to do while a round's sums are being opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opening {
    /// Ask these, and open those groups' sums.
    GoOn { ask: Vec<(usize, BTreeSet<SiteId>)>, open: Vec<usize> },
    /// Enough sums are open.
    Commit,
    /// Not enough can be opened any more.
    GiveUp,
}

impl Groups {
    /// At the start of `contract`; None in other modes.
    pub fn of(contract: &JobContract) -> Option<Self> {
        contract.federation.secure_sum()?;
        let threshold = contract.federation.min_sites as usize;
        let lists = contract.grouped_members();
        let pairs =
            lists.iter().enumerate().flat_map(|(at, members)| members.iter().map(move |site| (*site, at)));
        Some(Self {
            group_of: pairs.collect(),
            cohorts: lists.into_iter().map(|members| Cohort::new(members, threshold)).collect(),
            min_groups: contract.federation.sum_groups().map_or(1, |groups| groups.min_groups as usize),
        })
    }

    /// After a restart: what of each group was fixed before.
    pub fn resume(&mut self, fixed: Vec<Fixed>) {
        for (cohort, Fixed { roster, batch, survivors }) in self.cohorts.iter_mut().zip(fixed) {
            cohort.resume(roster, batch, survivors);
        }
    }

    fn cohort_of(&mut self, site: SiteId) -> Option<&mut Cohort> {
        self.cohorts.get_mut(*self.group_of.get(&site)?)
    }

    /// The site's key is here.
    pub fn keyed(&mut self, site: SiteId) {
        if let Some(cohort) = self.cohort_of(site) {
            cohort.keyed(site);
        }
    }

    /// The site's part in a batch is here.
    pub fn offered(&mut self, site: SiteId, batch: u32) {
        if let Some(cohort) = self.cohort_of(site) {
            cohort.offered(site, batch);
        }
    }

    /// A site that was asked has answered.
    pub fn answered(&mut self, site: SiteId) {
        if let Some(cohort) = self.cohort_of(site) {
            cohort.answered(site);
        }
    }

    /// The answers of these sites of a group did not open.
    pub fn faulty(&mut self, group: usize, sites: BTreeSet<SiteId>) {
        if let Some(cohort) = self.cohorts.get_mut(group) {
            cohort.faulty(sites);
        }
    }

    /// A group's sum is open, or cannot be opened.
    pub fn settled(&mut self, group: usize, opened: bool) {
        if let Some(cohort) = self.cohorts.get_mut(group) {
            cohort.settle(opened);
        }
    }

    /// Whether `site` takes part in the masks of `round`, which is open.
    pub fn takes_part(&self, site: SiteId, round: RoundId) -> bool {
        let cohort = self.group_of.get(&site).and_then(|group| self.cohorts.get(*group));
        cohort.is_some_and(|cohort| cohort.is_in(site, round))
    }

    /// What `round` still needs, with these sites there. Of a member, `may_come` says that it is about to come or to say
    /// something, `is_unknown` that it never did; for those the first round alone waits.
    pub fn prepare(
        &mut self,
        round: RoundId,
        ready: &BTreeSet<SiteId>,
        may_come: impl Fn(&SiteId) -> bool,
        is_unknown: impl Fn(&SiteId) -> bool,
        patient: bool,
    ) -> Prepared {
        let (mut fixes, mut all) = (Vec::new(), BTreeSet::new());
        let (mut waits, mut anew, mut count) = (false, false, 0);
        for (group, cohort) in self.cohorts.iter_mut().enumerate() {
            let begins = round == RoundId(0) && !cohort.has_roster();
            let others = cohort.members().iter().any(|site| may_come(site) || begins && is_unknown(site));
            let mut takes = None;
            match cohort.prepare(round, ready, others, patient) {
                Preparation::Wait => waits = true,
                Preparation::Short => {}
                Preparation::Roster(sites) => {
                    cohort.fix_roster(sites.clone());
                    fixes.push(Fix::Roster(group, sites));
                    anew = true;
                }
                Preparation::Batch(number, sites) => {
                    cohort.fix_batch(number, sites.clone());
                    fixes.push(Fix::Batch(group, number, sites.clone()));
                    let is_of_round = number == batch_of(round);
                    anew |= !is_of_round;
                    takes = is_of_round.then_some(sites);
                }
                Preparation::Ready(sites) => takes = Some(sites),
            }
            cohort.enter_round(takes.is_some());
            count += usize::from(takes.is_some());
            all.extend(takes.into_iter().flatten());
        }
        let not_yet = anew || waits && patient || count < self.min_groups;
        Prepared { fixes, anew, sites: (!not_yet).then_some(all) }
    }

    /// The updates of each group that has enough of them.
    fn full(&self, updated: &BTreeSet<SiteId>) -> Vec<(usize, BTreeSet<SiteId>)> {
        let of_group = self.cohorts.iter().map(|cohort| cohort.members() & updated).enumerate();
        of_group.filter(|(group, sites)| self.cohorts[*group].is_enough(sites)).collect()
    }

    /// What the updates of these sites lack to commit a round; None if nothing.
    pub fn shortfall(&self, updated: &BTreeSet<SiteId>) -> Option<String> {
        let full = self.full(updated).len();
        if full >= self.min_groups {
            return None;
        }
        Some(match &self.cohorts[..] {
            [cohort] => {
                format!("{} of at least {} contributions", updated.len(), cohort.threshold())
            }
            _ => format!("enough contributions of {full} groups, of at least {}", self.min_groups),
        })
    }

    /// The round's uploads are over: these are in its sums. The groups whose sums may be opened.
    pub fn survived(&mut self, updated: &BTreeSet<SiteId>) -> Vec<usize> {
        let mut full: BTreeMap<usize, BTreeSet<SiteId>> = self.full(updated).into_iter().collect();
        let groups = full.keys().copied().collect();
        for (group, cohort) in self.cohorts.iter_mut().enumerate() {
            cohort.survived(full.remove(&group).unwrap_or_default());
        }
        groups
    }

    /// When [`open`](Self::open) may want something else, if nothing else happens.
    pub fn answers_due(&self) -> Option<u64> {
        self.cohorts.iter().filter_map(Cohort::answers_due).min()
    }

    /// What to do at `now` with these sites there; `patient`: groups whose survivors are gone are waited for though enough
    /// others are open; `late`: nobody is.
    pub fn open(&mut self, ready: &BTreeSet<SiteId>, now: u64, patient: bool, late: bool) -> Opening {
        let (mut ask, mut open) = (Vec::new(), Vec::new());
        for (group, cohort) in self.cohorts.iter_mut().enumerate() {
            match cohort.next(ready, now) {
                Next::Wait => {}
                Next::Ask(sites) => ask.push((group, sites)),
                Next::Open => open.push(group),
                Next::GiveUp => cohort.settle(false),
            }
        }
        let count = |is: fn(&Cohort) -> bool| self.cohorts.iter().filter(|cohort| is(cohort)).count();
        let (opened, pending) = (count(Cohort::is_open), count(Cohort::is_pending));
        let enough = opened >= self.min_groups;
        // The others' survivors are there and asked, or are still waited for.
        let goes_on = patient || self.answers_due().is_some();
        let decides = late || pending == 0 || opened + pending < self.min_groups || enough && !goes_on;
        // How those that are being opened turn out is said at once.
        match decides && count(Cohort::is_being_opened) == 0 {
            false => Opening::GoOn { ask, open },
            true if enough => Opening::Commit,
            true => Opening::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::cohort::ANSWER_MS;
    use weighhouse_shared::job::JobFile;

    fn site(number: u8) -> SiteId {
        SiteId::from_bytes([number; 32])
    }

    /// Of twelve members in three groups, each of which needs all four; two groups are enough.
    fn groups() -> (Groups, Vec<BTreeSet<SiteId>>) {
        let schema = "name = \"x\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
                      features = [{ column = \"a\", min = 0.0, max = 1.0 }]";
        let file: JobFile = toml::from_str(
            "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\n\
             [federation]\nmode = \"secure_sum\"\ngroups = 3\nstrategy = \"fedmedian\"",
        )
        .unwrap();
        let members: Vec<SiteId> = (0..12).map(site).collect();
        let contract = file.contract_among(toml::from_str(schema).unwrap(), [0; 16], &members).unwrap();
        let lists = contract.grouped_members().into_iter().map(BTreeSet::from_iter).collect();
        (Groups::of(&contract).unwrap(), lists)
    }

    fn all(lists: &[BTreeSet<SiteId>]) -> BTreeSet<SiteId> {
        lists.iter().flatten().copied().collect()
    }

    /// Each with its roster and the batch of the first rounds.
    fn fixed() -> (Groups, Vec<BTreeSet<SiteId>>) {
        let (mut groups, lists) = groups();
        let fixed = |list: &BTreeSet<SiteId>| Fixed {
            roster: Some(list.clone()),
            batch: Some((0, list.clone())),
            survivors: None,
        };
        groups.resume(lists.iter().map(fixed).collect());
        (groups, lists)
    }

    fn prepare(groups: &mut Groups, round: u32, ready: &BTreeSet<SiteId>, patient: bool) -> Prepared {
        groups.prepare(RoundId(round), ready, |_| false, |site| !ready.contains(site), patient)
    }

    #[test]
    fn the_first_round_waits_for_members_who_never_came_and_later_ones_do_not() {
        let (mut groups, lists) = groups();
        let there = all(&lists[..2]);
        there.iter().for_each(|site| groups.keyed(*site));
        let first = prepare(&mut groups, 0, &there, true);
        let rosters = [0, 1].map(|group| Fix::Roster(group, lists[group].clone()));
        assert_eq!(first, Prepared { fixes: rosters.into(), anew: true, sites: None });
        there.iter().for_each(|site| groups.offered(*site, 0));
        let second = prepare(&mut groups, 0, &there, true);
        let batches = [0, 1].map(|group| Fix::Batch(group, 0, lists[group].clone()));
        assert_eq!(
            second,
            Prepared { fixes: batches.into(), anew: false, sites: None },
            "the third may come"
        );
        assert_eq!(prepare(&mut groups, 0, &there, false).sites, Some(there.clone()));
        assert_eq!(prepare(&mut groups, 1, &there, true).sites, Some(there));
    }

    #[test]
    fn a_group_below_its_threshold_is_left_out_and_comes_back_and_too_few_groups_are_no_round() {
        let (mut groups, lists) = fixed();
        let mut there = all(&lists);
        assert_eq!(prepare(&mut groups, 1, &there, true).sites, Some(there.clone()));
        let gone = *lists[0].first().unwrap();
        there.remove(&gone);
        assert_eq!(prepare(&mut groups, 1, &there, true).sites, Some(all(&lists[1..])));
        // While it is open: who is back, or was there alone, has no part in it.
        assert!(lists[0].iter().all(|site| !groups.takes_part(*site, RoundId(1))));
        assert!(lists[1].iter().all(|site| groups.takes_part(*site, RoundId(1))));
        // It may come back: that is waited for with patience.
        let may_come = groups.prepare(RoundId(2), &there, |site| *site == gone, |_| false, true);
        assert_eq!(may_come.sites, None);
        there.remove(lists[1].first().unwrap());
        assert_eq!(prepare(&mut groups, 2, &there, false).sites, None, "one group is no round");
        assert_eq!(prepare(&mut groups, 2, &all(&lists), true).sites, Some(all(&lists)));
    }

    #[test]
    fn uploads_are_enough_with_enough_groups_and_the_others_are_never_asked() {
        let (mut groups, lists) = fixed();
        let without = |missing: &[usize]| {
            let missing: BTreeSet<SiteId> = missing.iter().map(|at| *lists[*at].first().unwrap()).collect();
            &all(&lists) - &missing
        };
        assert_eq!(groups.shortfall(&all(&lists)), None);
        assert_eq!(groups.shortfall(&without(&[1])), None);
        let shortfall = groups.shortfall(&without(&[0, 1])).unwrap();
        assert_eq!(shortfall, "enough contributions of 1 groups, of at least 2");
        assert_eq!(groups.survived(&without(&[1])), [0, 2]);
        let asked = vec![(0, lists[0].clone()), (2, lists[2].clone())];
        assert_eq!(groups.open(&all(&lists), 0, true, false), Opening::GoOn { ask: asked, open: vec![] });
    }

    fn answer(groups: &mut Groups, sites: &BTreeSet<SiteId>) {
        sites.iter().for_each(|site| groups.answered(*site));
    }

    #[test]
    fn a_round_commits_once_all_sums_are_open_or_enough_are_and_the_others_survivors_stay_away() {
        let (mut groups, lists) = fixed();
        let there = all(&lists);
        groups.survived(&there);
        let mut ready = there.clone();
        ready.remove(lists[2].first().unwrap());
        groups.open(&ready, 0, true, false);
        answer(&mut groups, &lists[0]);
        let opens = |group| Opening::GoOn { ask: vec![], open: vec![group] };
        assert_eq!(groups.open(&ready, 1, true, false), opens(0));
        assert_eq!(groups.open(&ready, 1, true, false), Opening::GoOn { ask: vec![], open: vec![] }, "once");
        groups.settled(0, true);
        answer(&mut groups, &lists[1]);
        assert_eq!(groups.open(&ready, 2, true, false), opens(1));
        groups.settled(1, true);
        // The third lacks a survivor, who may come back.
        assert_eq!(groups.open(&ready, 3, true, false), Opening::GoOn { ask: vec![], open: vec![] });
        assert_eq!(groups.open(&ready, 3, false, false), Opening::Commit);
        let ask = vec![(2, lists[2].clone())];
        assert_eq!(groups.open(&there, 3, true, false), Opening::GoOn { ask, open: vec![] });
        // It is asked: that is waited for, but not for ever.
        assert_eq!(groups.open(&there, 4, false, false), Opening::GoOn { ask: vec![], open: vec![] });
        assert_eq!(groups.answers_due(), Some(3 + ANSWER_MS));
        assert_eq!(
            groups.open(&there, 3 + ANSWER_MS, false, false),
            Opening::Commit,
            "one of four did not answer"
        );
    }

    #[test]
    fn a_round_is_given_up_as_soon_as_too_few_sums_can_be_opened_or_when_its_time_is_over() {
        let (mut groups, lists) = fixed();
        let there = all(&lists);
        groups.survived(&there);
        groups.open(&there, 0, true, false);
        groups.settled(0, false);
        assert_eq!(groups.open(&there, 1, true, false), Opening::GoOn { ask: vec![], open: vec![] });
        groups.settled(1, false);
        assert_eq!(groups.open(&there, 2, true, false), Opening::GiveUp);
        groups.survived(&there);
        groups.open(&there, 0, true, false);
        assert_eq!(groups.open(&there, 5, true, true), Opening::GiveUp);
    }

    #[test]
    fn faulty_answers_of_one_group_cost_that_group_only() {
        let (mut groups, lists) = fixed();
        let there = all(&lists);
        groups.survived(&there);
        groups.open(&there, 0, true, false);
        answer(&mut groups, &there);
        let all_open = Opening::GoOn { ask: vec![], open: vec![0, 1, 2] };
        assert_eq!(groups.open(&there, 1, true, false), all_open);
        groups.faulty(0, lists[0].iter().take(1).copied().collect());
        assert_eq!(groups.open(&there, 1, true, false), Opening::GoOn { ask: vec![], open: vec![] });
        groups.settled(1, true);
        groups.settled(2, true);
        assert_eq!(groups.open(&there, 1, true, false), Opening::Commit);
    }
}
