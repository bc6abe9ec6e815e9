//! The sites of a job's secure sums, and who is asked after a round's uploads. Pure.
//!
//! The roster is fixed once, before the first round: the members whose keys are here, as soon as that is all who may
//! still come or patience is over. A batch is fixed before its first round: those of the roster that are there and
//! have made their offers. A round then goes through three steps: masked updates come in; the survivors are fixed, on
//! disk, and asked; once all who were asked have answered, the sum is opened. Who of the asked leaves or does not answer
//! within [`ANSWER_MS`] is left out, and the others are asked anew about the same survivors. While fewer than the
//! threshold are there the round waits for them, until its time is over.

use std::collections::{BTreeMap, BTreeSet};
use weighhouse_shared::ids::{RoundId, SiteId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::secure_sum::batch_of;

/// How long a site that was asked may take to answer, in milliseconds.
pub const ANSWER_MS: u64 = 30_000;

/// Where a job's secure sums stand.
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
    /// Wait for more sites.
    Wait,
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
    /// At the start of `contract`; None in other modes.
    pub fn of(contract: &JobContract) -> Option<Self> {
        let sum = contract.federation.secure_sum()?;
        Some(Self {
            members: sum.members.iter().copied().collect(),
            threshold: contract.federation.min_sites as usize,
            keyed: BTreeSet::new(),
            roster: None,
            batch: None,
            offered: BTreeMap::new(),
            survivors: BTreeSet::new(),
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            asked_at: 0,
            faulty: BTreeSet::new(),
        })
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

    /// Whether `site` may take part.
    pub fn is_member(&self, site: SiteId) -> bool {
        self.members.contains(&site)
    }

    /// The members that nothing is known of yet.
    pub fn unseen(&self, seen: impl Fn(&SiteId) -> bool) -> bool {
        self.roster.is_none() && self.members.iter().any(|member| !seen(member))
    }

    /// The site's key is here.
    pub fn keyed(&mut self, site: SiteId) {
        self.keyed.insert(site);
    }

    /// The site's part in a batch is here.
    pub fn offered(&mut self, site: SiteId, batch: u32) {
        self.offered.insert(site, batch);
    }

    /// Whether `site` takes part in the masks of `round`.
    pub fn is_in(&self, site: SiteId, round: RoundId) -> bool {
        let of_round = self.batch.as_ref().filter(|(batch, _)| *batch == batch_of(round));
        of_round.is_some_and(|(_, sites)| sites.contains(&site))
    }

    /// What `round` still needs, with these sites there. `others` may still come, while we are `patient`.
    pub fn prepare(
        &self,
        round: RoundId,
        ready: &BTreeSet<SiteId>,
        others: bool,
        patient: bool,
    ) -> Preparation {
        let enough = |sites: &BTreeSet<SiteId>| sites.len() >= self.threshold;
        let Some(roster) = &self.roster else {
            let sites: BTreeSet<SiteId> = ready & &(&self.members & &self.keyed);
            return if enough(&sites) && !(patient && others) {
                Preparation::Roster(sites)
            } else {
                Preparation::Wait
            };
        };
        let number = batch_of(round);
        let Some((_, batch)) = self.batch.as_ref().filter(|(batch, _)| *batch == number) else {
            let there = ready & roster;
            let offered = |site: &SiteId| self.offered.get(site) == Some(&number);
            let sites: BTreeSet<SiteId> = there.iter().copied().filter(offered).collect();
            let awaited = (others || there.len() > sites.len()) && sites.len() < roster.len();
            let fixes = enough(&sites) && !(patient && awaited);
            return if fixes { Preparation::Batch(number, sites) } else { Preparation::Wait };
        };
        let sites = ready & batch;
        let opens = enough(&sites) && !(patient && others && sites.len() < batch.len());
        if opens { Preparation::Ready(sites) } else { Preparation::Wait }
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
        self.asked.clear();
        self.answered.clear();
    }

    /// When [`next`](Self::next) may want something else, if nothing else happens.
    pub fn answers_due(&self) -> Option<u64> {
        (!self.asked.is_empty()).then_some(self.asked_at + ANSWER_MS)
    }

    /// What to do at `now` with these sites there.
    pub fn next(&mut self, ready: &BTreeSet<SiteId>, now: u64) -> Next {
        if !self.asked.is_empty() && self.answered == self.asked {
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
    use weighhouse_shared::job::{JobFile, SecureSum};

    fn site(number: u8) -> SiteId {
        SiteId::from_bytes([number; 32])
    }

    fn sites(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<SiteId> {
        numbers.into_iter().map(site).collect()
    }

    /// Five members, threshold 4.
    fn cohort() -> Cohort {
        let schema = "name = \"x\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
                      features = [{ column = \"a\", min = 0.0, max = 1.0 }]";
        let file: JobFile = toml::from_str(
            "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\n\
             [federation]\nmode = \"secure_sum\"\nmin_sites = 4",
        )
        .unwrap();
        let members: Vec<SiteId> = (0..5).map(site).collect();
        let contract = file.contract_among(toml::from_str(schema).unwrap(), [0; 16], &members).unwrap();
        let _: &SecureSum = contract.federation.secure_sum().unwrap();
        Cohort::of(&contract).unwrap()
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
        assert_eq!(prepare(&cohort, 7, &sites(0..3), true), Preparation::Wait);
        assert_eq!(prepare(&cohort, 7, &all, true), Preparation::Ready(sites(0..4)));
        assert_eq!(prepare(&cohort, 7, &sites(0..3), false), Preparation::Wait);
        assert_eq!(prepare(&cohort, 8, &all, false), Preparation::Wait, "nobody has offered for it yet");
        assert!(cohort.is_in(site(3), RoundId(7)) && !cohort.is_in(site(4), RoundId(7)));
        assert!(!cohort.is_in(site(3), RoundId(8)));
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
