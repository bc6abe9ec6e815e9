//! The sites of one secure sum, all of a job's or one group's, and who is asked after a round's uploads. Pure.
//!
//! The roster is fixed once, before the first round: the members whose keys are here, as soon as that is all who may
//! still come or patience is over. A batch is fixed before its first round: those of the roster that are there and
//! have made their offers; one that was missed is fixed late, so that the next can be offered. A round then goes through three steps: masked updates come in; the survivors are fixed, on
//! disk, and asked; once all who were asked have answered, the sum is opened. Who of the asked leaves or does not answer
//! within [`ANSWER_MS`] is left out, and the others are asked anew about the same survivors. While fewer than the
//! threshold are there the round waits for them, until its time is over.

use std::collections::{BTreeMap, BTreeSet};
use weighhouse_shared::ids::{RoundId, SiteId};
use weighhouse_shared::secure_sum::batch_of;

/// How long a site that was asked may take to answer, in milliseconds.
pub const ANSWER_MS: u64 = 30_000;

/// How far the opening of a round's sum is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// Its survivors are asked.
    #[default]
    Pending,
    /// All have answered.
    BeingOpened,
    Opened,
    /// It cannot be opened.
    Lost,
}

/// Where the secure sums of some sites stand.
#[derive(Debug)]
pub(super) struct Cohort {
    members: BTreeSet<SiteId>,
    threshold: usize,
    /// Those whose keys are here.
    keyed: BTreeSet<SiteId>,
    roster: Option<BTreeSet<SiteId>>,
    batch: Option<(u32, BTreeSet<SiteId>)>,
    /// The batch of each site's newest offer.
    offered: BTreeMap<SiteId, u32>,
    /// Whether the round that is open, or was last, is for them.
    in_round: bool,
    stage: Stage,
    /// Of the round that is being opened.
    survivors: BTreeSet<SiteId>,
    asked: BTreeSet<SiteId>,
    answered: BTreeSet<SiteId>,
    asked_at: u64,
    /// Whose answers did not open, or did not come in time.
    faulty: BTreeSet<SiteId>,
}

/// What has to be done before a round can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Preparation {
    /// Wait: for sites that may still come, or say something.
    Wait,
    /// Too few are there, and nobody is known to come.
    Short,
    /// Fix the roster: these sites.
    Roster(BTreeSet<SiteId>),
    /// Fix this batch: these sites.
    Batch(u32, BTreeSet<SiteId>),
    /// Nothing: the round is for these sites.
    Ready(BTreeSet<SiteId>),
}

/// What to do while a round is being opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait.
    Wait,
    /// Ask these sites.
    Ask(BTreeSet<SiteId>),
    /// All have answered: open the sum.
    Open,
    /// It cannot be opened any more.
    GiveUp,
}

impl Cohort {
    /// Of `members`, at least `threshold` in each sum; nothing is fixed yet.
    pub fn new(members: impl IntoIterator<Item = SiteId>, threshold: usize) -> Self {
        Self {
            members: members.into_iter().collect(),
            threshold,
            keyed: BTreeSet::new(),
            roster: None,
            batch: None,
            offered: BTreeMap::new(),
            in_round: false,
            stage: Stage::Pending,
            survivors: BTreeSet::new(),
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            asked_at: 0,
            faulty: BTreeSet::new(),
        }
    }

    /// After a restart: what was fixed before.
    pub fn resume(
        &mut self,
        roster: Option<BTreeSet<SiteId>>,
        batch: Option<(u32, BTreeSet<SiteId>)>,
        survivors: Option<BTreeSet<SiteId>>,
    ) {
        (self.roster, self.batch) = (roster, batch);
        self.survivors = survivors.unwrap_or_default();
    }

    /// Who may take part.
    pub fn members(&self) -> &BTreeSet<SiteId> {
        &self.members
    }

    /// Whether the roster is fixed.
    pub fn has_roster(&self) -> bool {
        self.roster.is_some()
    }

    /// The fewest sites of a sum.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Whether so many updates are enough for a sum.
    pub fn is_enough(&self, updates: &BTreeSet<SiteId>) -> bool {
        updates.len() >= self.threshold
    }

    /// Whether the round that opens is for these sites.
    pub fn enter_round(&mut self, enters: bool) {
        self.in_round = enters;
    }

    /// The site's key is here.
    pub fn keyed(&mut self, site: SiteId) {
        self.keyed.insert(site);
    }

    /// The site's part in a batch is here.
    pub fn offered(&mut self, site: SiteId, batch: u32) {
        self.offered.insert(site, batch);
    }

    /// Whether `site` takes part in the masks of `round`, which is open.
    pub fn is_in(&self, site: SiteId, round: RoundId) -> bool {
        let of_round = self.batch.as_ref().filter(|(batch, _)| *batch == batch_of(round));
        self.in_round && of_round.is_some_and(|(_, sites)| sites.contains(&site))
    }

    /// What `round` still needs, with these sites there. `others` may still come, while we are `patient`.
    pub fn prepare(
        &self,
        round: RoundId,
        ready: &BTreeSet<SiteId>,
        others: bool,
        patient: bool,
    ) -> Preparation {
        let enough = |sites: &BTreeSet<SiteId>| self.is_enough(sites);
        let waits = |may_be: bool| if may_be { Preparation::Wait } else { Preparation::Short };
        let Some(roster) = &self.roster else {
            let there = ready & &self.members;
            let sites = &there & &self.keyed;
            return if enough(&sites) && !(patient && others) {
                Preparation::Roster(sites)
            } else {
                waits(others || enough(&there))
            };
        };
        let wanted = batch_of(round);
        let Some((_, batch)) = self.batch.as_ref().filter(|(batch, _)| *batch == wanted) else {
            let number = self.batch.as_ref().map_or(0, |(batch, _)| batch + 1);
            let there = ready & roster;
            let offered = |site: &SiteId| self.offered.get(site) == Some(&number);
            let sites: BTreeSet<SiteId> = there.iter().copied().filter(offered).collect();
            let awaited = (others || there.len() > sites.len()) && sites.len() < roster.len();
            let fixes = enough(&sites) && !(patient && awaited);
            return if fixes { Preparation::Batch(number, sites) } else { waits(others || enough(&there)) };
        };
        let sites = ready & batch;
        let opens = enough(&sites) && !(patient && others && sites.len() < batch.len());
        if opens { Preparation::Ready(sites) } else { waits(others) }
    }

    /// The roster is fixed.
    pub fn fix_roster(&mut self, sites: BTreeSet<SiteId>) {
        self.roster = Some(sites);
    }

    /// A batch is fixed.
    pub fn fix_batch(&mut self, number: u32, sites: BTreeSet<SiteId>) {
        self.batch = Some((number, sites));
    }

    /// The round's uploads are over: these are in its sum.
    pub fn survived(&mut self, survivors: BTreeSet<SiteId>) {
        self.survivors = survivors;
        self.stage = Stage::Pending;
        self.asked.clear();
        self.answered.clear();
        self.faulty.clear();
    }

    /// A site that was asked has answered.
    pub fn answered(&mut self, site: SiteId) {
        if self.asked.contains(&site) {
            self.answered.insert(site);
        }
    }

    /// The answers of these sites did not open: they are not asked again.
    pub fn faulty(&mut self, sites: BTreeSet<SiteId>) {
        self.faulty.extend(sites);
        self.stage = Stage::Pending;
        self.asked.clear();
        self.answered.clear();
    }

    /// The sum is open, or cannot be opened.
    pub fn settle(&mut self, opened: bool) {
        self.stage = if opened { Stage::Opened } else { Stage::Lost };
        self.asked.clear();
        self.answered.clear();
    }

    /// Whether the sum is open.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Opened
    }

    /// Whether the sum may still be opened.
    pub fn is_pending(&self) -> bool {
        matches!(self.stage, Stage::Pending | Stage::BeingOpened)
    }

    /// Whether all have answered and the sum is being opened.
    pub fn is_being_opened(&self) -> bool {
        self.stage == Stage::BeingOpened
    }

    /// When [`next`](Self::next) may want something else, if nothing else happens.
    pub fn answers_due(&self) -> Option<u64> {
        (!self.asked.is_empty()).then_some(self.asked_at + ANSWER_MS)
    }

    /// What to do at `now` with these sites there.
    pub fn next(&mut self, ready: &BTreeSet<SiteId>, now: u64) -> Next {
        if self.stage != Stage::Pending {
            return Next::Wait;
        }
        if !self.asked.is_empty() && self.answered == self.asked {
            self.stage = Stage::BeingOpened;
            return Next::Open;
        }
        if !self.asked.is_empty() && now >= self.asked_at + ANSWER_MS {
            let slow: BTreeSet<SiteId> = &self.asked - &self.answered;
            self.faulty(slow);
        }
        let trusted = &self.survivors - &self.faulty;
        if trusted.len() < self.threshold {
            return Next::GiveUp;
        }
        let able = &trusted & ready;
        let goes_on = !self.asked.is_empty() && self.asked.is_subset(&able);
        if goes_on || able.len() < self.threshold {
            return Next::Wait;
        }
        self.asked = able.clone();
        self.answered.clear();
        self.asked_at = now;
        Next::Ask(able)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(number: u8) -> SiteId {
        SiteId::from_bytes([number; 32])
    }

    fn sites(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<SiteId> {
        numbers.into_iter().map(site).collect()
    }

    /// Five members, threshold 4.
    fn cohort() -> Cohort {
        Cohort::new(sites(0..5), 4)
    }

    #[test]
    fn a_roster_takes_the_members_whose_keys_are_here_once_nobody_else_may_come() {
        let mut cohort = cohort();
        let all = sites(0..6);
        for number in [0, 1, 2, 5] {
            cohort.keyed(site(number));
        }
        assert_eq!(
            cohort.prepare(RoundId(0), &all, true, false),
            Preparation::Wait,
            "a stranger does not count"
        );
        assert_eq!(cohort.prepare(RoundId(0), &sites(0..3), false, true), Preparation::Short);
        cohort.keyed(site(3));
        assert_eq!(cohort.prepare(RoundId(0), &all, true, true), Preparation::Wait);
        for (others, patient) in [(true, false), (false, true)] {
            let roster = Preparation::Roster(sites(0..4));
            assert_eq!(cohort.prepare(RoundId(0), &all, others, patient), roster);
        }
    }

    #[test]
    fn a_batch_takes_those_who_offered_and_holds_for_its_rounds() {
        let mut cohort = cohort();
        cohort.fix_roster(sites(0..5));
        for number in 0..4 {
            cohort.offered(site(number), 0);
        }
        fn prepare(cohort: &Cohort, round: u32, ready: &BTreeSet<SiteId>, patient: bool) -> Preparation {
            cohort.prepare(RoundId(round), ready, true, patient)
        }
        let all = sites(0..5);
        let fixed = Preparation::Batch(0, sites(0..4));
        assert_eq!(
            cohort.prepare(RoundId(0), &all, false, true),
            Preparation::Wait,
            "one has not offered yet"
        );
        assert_eq!(prepare(&cohort, 0, &all, false), fixed, "and does not");
        assert_eq!(prepare(&cohort, 0, &sites(0..4), true), Preparation::Wait);
        assert_eq!(prepare(&cohort, 0, &sites(0..4), false), Preparation::Batch(0, sites(0..4)));
        cohort.fix_batch(0, sites(0..4));
        cohort.enter_round(true);
        assert_eq!(prepare(&cohort, 7, &sites(0..3), true), Preparation::Wait);
        assert_eq!(prepare(&cohort, 7, &all, true), Preparation::Ready(sites(0..4)));
        assert_eq!(prepare(&cohort, 7, &sites(0..3), false), Preparation::Wait);
        assert_eq!(prepare(&cohort, 8, &all, false), Preparation::Wait, "nobody has offered for it yet");
        assert!(cohort.is_in(site(3), RoundId(7)) && !cohort.is_in(site(4), RoundId(7)));
        assert!(!cohort.is_in(site(3), RoundId(8)));
        cohort.enter_round(false);
        assert!(!cohort.is_in(site(3), RoundId(7)), "the round opened without its group");
    }

    #[test]
    fn batches_that_were_missed_are_fixed_one_by_one_until_the_rounds_own_is() {
        let mut cohort = cohort();
        cohort.resume(Some(sites(0..4)), Some((0, sites(0..4))), None);
        let all = sites(0..4);
        for number in 1..=3 {
            assert_eq!(cohort.prepare(RoundId(24), &sites(0..3), false, true), Preparation::Short);
            assert_eq!(cohort.prepare(RoundId(24), &all, false, true), Preparation::Wait);
            (0..4).for_each(|site_number| cohort.offered(site(site_number), number));
            let due = Preparation::Batch(number, all.clone());
            assert_eq!(cohort.prepare(RoundId(24), &all, false, true), due);
            cohort.fix_batch(number, all.clone());
        }
        assert_eq!(cohort.prepare(RoundId(24), &all, false, true), Preparation::Ready(all));
    }

    #[test]
    fn who_leaves_or_does_not_answer_is_left_out_until_too_few_are_left() {
        let mut cohort = cohort();
        cohort.survived(sites(0..5));
        let all = sites(0..5);
        assert_eq!(cohort.next(&all, 0), Next::Ask(all.clone()));
        (0..4).for_each(|number| cohort.answered(site(number)));
        assert_eq!(cohort.next(&all, ANSWER_MS - 1), Next::Wait);
        // The fifth leaves; a stranger's answer does not help.
        cohort.answered(site(9));
        assert_eq!(cohort.next(&sites(0..4), 5), Next::Ask(sites(0..4)));
        (0..4).for_each(|number| cohort.answered(site(number)));
        assert_eq!(cohort.next(&sites(0..4), 6), Next::Open);
        cohort.faulty(sites([2]));
        assert_eq!(cohort.next(&sites(0..4), 7), Next::Wait, "three of the four that are needed");
        assert_eq!(cohort.next(&all, 8), Next::Ask(sites([0, 1, 3, 4])));
        assert_eq!(cohort.next(&all, 8 + ANSWER_MS), Next::GiveUp);
    }

    #[test]
    fn after_a_restart_the_survivors_are_asked_as_soon_as_enough_are_there() {
        let mut cohort = cohort();
        cohort.resume(Some(sites(0..5)), Some((0, sites(0..5))), Some(sites(0..5)));
        assert_eq!(cohort.next(&sites(0..3), 0), Next::Wait);
        assert_eq!(cohort.next(&sites(0..4), 1), Next::Ask(sites(0..4)));
        // One more comes: nobody is asked anew for that.
        assert_eq!(cohort.next(&sites(0..5), 2), Next::Wait);
    }
}
