//! All parties of a job's secure sums in one process: every dropout, and every lie there is a name for.

use super::agreement::{Answer, BadQuestion, Question};
use super::coordinator::{Batch, OpenError};
use super::graph::Graph;
use super::keys::{JobSecret, SignedKey};
use super::roster::{Roster, Terms};
use super::site::{Member, Record, Refusal};
use super::{BATCH_ROUNDS, batch_of};
use crate::identity::Identity;
use crate::ids::{JobId, RoundId, SiteId};
use crate::wire::codec;
use std::collections::{BTreeMap, BTreeSet};

const JOB: JobId = JobId::from_bytes([7; 32]);
/// Integers of an update.
const LEN: usize = 37;

/// A job's sites and its coordinator.
struct World {
    identities: Vec<Identity>,
    members: Vec<SiteId>,
    sites: Vec<Member>,
    roster: Roster,
    threshold: u32,
    colluding: u32,
}

impl World {
    /// With the complete graph.
    fn new(count: usize, threshold: u32, colluding: u32) -> Self {
        Self::on(count, threshold, colluding, |roster| roster)
    }

    fn on(count: usize, threshold: u32, colluding: u32, graph: impl Fn(Roster) -> Roster) -> Self {
        let mut identities: Vec<Identity> = (0..count).map(|_| Identity::generate().unwrap()).collect();
        identities.sort_by_key(Identity::site);
        let members: Vec<SiteId> = identities.iter().map(Identity::site).collect();
        let secret = |number: usize| JobSecret::from_bytes([number as u8 + 1; 32]);
        let mut sites: Vec<Member> = members
            .iter()
            .enumerate()
            .map(|(number, site)| Member::new(JOB, *site, Record::new(secret(number))))
            .collect();
        let keys: Vec<SignedKey> =
            sites.iter().zip(&identities).map(|(site, identity)| site.signed_key(identity)).collect();
        let terms = Terms { members: &members, threshold, colluding };
        let roster = graph(Roster::new(JOB, terms, keys).unwrap());
        for site in &mut sites {
            site.join(roster.clone()).unwrap();
        }
        Self { identities, members, sites, roster, threshold, colluding }
    }

    fn terms(&self) -> Terms<'_> {
        Terms { members: &self.members, threshold: self.threshold, colluding: self.colluding }
    }

    fn all(&self) -> Vec<u16> {
        (0..self.sites.len() as u16).collect()
    }

    /// The batch of the offers of `present`, granted to each.
    fn batch(&mut self, number: u32, present: &[u16]) -> Result<Batch, Refusal> {
        let offer = |site: &u16| {
            let offer = self.sites[usize::from(*site)].offer(number).unwrap();
            assert!(offer.fits(&self.roster, *site));
            (*site, offer)
        };
        let batch = Batch { number, offers: present.iter().map(offer).collect() };
        for site in present {
            let grant = batch.grant(&self.roster, *site).unwrap();
            self.sites[usize::from(*site)].take_batch(grant)?;
        }
        Ok(batch)
    }

    /// What the site contributes to a round before any mask: spread over all of the ring.
    fn values(site: u16, round: RoundId) -> Vec<u32> {
        let value =
            |at: usize| (at as u32).wrapping_mul(2_654_435_761).wrapping_add(u32::from(site) * 977 + round.0);
        (0..LEN).map(value).collect()
    }

    fn masked(&self, site: u16, round: RoundId) -> Vec<u32> {
        let mut values = Self::values(site, round);
        self.sites[usize::from(site)].masks(round).unwrap().apply(&mut values, 1);
        values
    }

    fn sum(parts: impl Iterator<Item = Vec<u32>>) -> Vec<u32> {
        parts.fold(vec![0; LEN], |mut sum, part| {
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
            sum
        })
    }

    fn masked_sum(&self, survivors: &[u16], round: RoundId) -> Vec<u32> {
        Self::sum(survivors.iter().map(|site| self.masked(*site, round)))
    }

    fn plain_sum(survivors: &[u16], round: RoundId) -> Vec<u32> {
        Self::sum(survivors.iter().map(|site| Self::values(*site, round)))
    }

    fn ask(&mut self, question: &Question, who: &[u16]) -> Result<BTreeMap<u16, Answer>, Refusal> {
        who.iter().map(|site| Ok((*site, self.sites[usize::from(*site)].answer(question)?))).collect()
    }

    /// A daemon killed and started again: what is left is the record as it was kept.
    fn restart(&mut self, site: u16, batch: Option<&Batch>) {
        let place = usize::from(site);
        let kept = codec::encode(self.sites[place].record());
        let mut back = Member::new(JOB, self.members[place], codec::decode(&kept).unwrap());
        back.join(self.roster.clone()).unwrap();
        if let Some(batch) = batch {
            back.take_batch(batch.grant(&self.roster, site).unwrap()).unwrap();
        }
        self.sites[place] = back;
    }
}

fn question(round: u32, survivors: &[u16], asked: &[u16]) -> Question {
    Question { round: RoundId(round), survivors: survivors.to_vec(), asked: asked.to_vec() }
}

/// How far each site comes in a round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Reach {
    Nothing,
    Batch,
    Upload,
    Answer,
}

const REACHES: [Reach; 4] = [Reach::Nothing, Reach::Batch, Reach::Upload, Reach::Answer];

/// Every site may be lost before the batch, before its upload, before its answer or not at all: all combinations. If
/// the threshold is there at each stage the sum is that of the survivors, bit for bit; if not nothing opens.
fn every_dropout(world: impl Fn() -> World) {
    let count = world().sites.len();
    let (mut summed, mut abandoned) = (0, 0);
    for code in 0..4usize.pow(count as u32) {
        let reach = |site: u16| REACHES[code / 4usize.pow(site.into()) % 4];
        let mut world = world();
        let least = |least: Reach| (0..count as u16).filter(|site| reach(*site) >= least).collect::<Vec<_>>();
        let [present, survivors, able] = [Reach::Batch, Reach::Upload, Reach::Answer].map(least);
        let enough = |sites: &[u16]| sites.len() >= world.threshold as usize;
        if !enough(&present) {
            if !present.is_empty() {
                assert_eq!(world.batch(0, &present).unwrap_err(), Refusal::Batch);
            }
            abandoned += 1;
            continue;
        }
        let [enough_survive, enough_answer] = [enough(&survivors), enough(&able)];
        let batch = world.batch(0, &present).unwrap();
        let round = RoundId(3);
        let mut sum = world.masked_sum(&survivors, round);
        let first = question(3, &survivors, &survivors);
        let cut_off = !world.roster.graph().holds_among(&survivors);
        if !enough_survive || cut_off {
            assert!(survivors.is_empty() || world.ask(&first, &survivors).is_err());
            abandoned += 1;
            continue;
        }
        // Those who are left answer the first question, and then one among themselves.
        let mut answers = world.ask(&first, &able).unwrap();
        if able.len() < survivors.len() {
            let missing = survivors.len() - able.len();
            assert_eq!(
                batch.unmask(&world.roster, &first, &answers).unwrap_err(),
                OpenError::Unanswered { missing }
            );
            let second = question(3, &survivors, &able);
            if !enough_answer {
                assert!(able.is_empty() || world.ask(&second, &able).is_err());
                abandoned += 1;
                continue;
            }
            answers = world.ask(&second, &able).unwrap();
        }
        match batch.unmask(&world.roster, &question(3, &survivors, &able), &answers) {
            Ok(masks) => {
                masks.apply(&mut sum, 2);
                assert_eq!(sum, World::plain_sum(&survivors, round), "code {code}");
                summed += 1;
            }
            Err(OpenError::Lost(_)) => {
                assert!(world.roster.graph().circle(0).len() < count, "a complete graph loses nothing");
                abandoned += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(summed > 0 && abandoned > 0);
}

#[test]
fn whoever_is_lost_at_whatever_stage_the_sum_is_that_of_the_survivors_or_nothing_opens() {
    for (count, threshold, colluding) in [(3, 3, 1), (4, 3, 1), (5, 3, 0)] {
        every_dropout(|| World::new(count, threshold, colluding));
    }
}

#[test]
fn on_a_graph_with_fewer_neighbours_too() {
    let thin = |roster: Roster| roster.thinned(Graph::thin(1, 5, 2, &[1; 32]));
    every_dropout(|| World::on(5, 3, 0, thin));
    // Larger: 20 sites with at most 6 neighbours each, four lost before and two after their uploads.
    let mut world = World::on(20, 13, 3, |roster| roster.thinned(Graph::thin(3, 20, 2, &[2; 32])));
    let batch = world.batch(0, &world.all()).unwrap();
    let survivors: Vec<u16> = (0..20).filter(|site| site % 5 != 2).collect();
    let asked: Vec<u16> = survivors.iter().copied().filter(|site| ![4, 13].contains(site)).collect();
    let round = RoundId(7);
    let mut sum = world.masked_sum(&survivors, round);
    let last = question(7, &survivors, &asked);
    let answers = world.ask(&last, &asked).unwrap();
    batch.unmask(&world.roster, &last, &answers).unwrap().apply(&mut sum, 1);
    assert_eq!(sum, World::plain_sum(&survivors, round));
}

#[test]
fn every_round_of_every_batch_has_masks_of_its_own() {
    let mut world = World::new(3, 3, 1);
    let mut seen = BTreeSet::new();
    for round in (0..2 * BATCH_ROUNDS).map(RoundId) {
        if round.0 % BATCH_ROUNDS == 0 {
            assert_eq!(world.sites[0].next_batch(), batch_of(round));
            world.batch(batch_of(round), &[0, 1, 2]).unwrap();
        }
        for site in 0..3 {
            let mut mask = vec![0; LEN];
            world.sites[site].masks(round).unwrap().apply(&mut mask, 1);
            assert!(seen.insert(mask));
        }
        assert!(world.sites[0].masks(RoundId(round.0 + BATCH_ROUNDS)).is_err(), "no batch yet");
    }
}

#[test]
fn a_site_answers_for_one_list_of_survivors_a_round_also_after_a_restart() {
    let mut world = World::new(5, 4, 1);
    let batch = world.batch(0, &world.all()).unwrap();
    let first = question(2, &[0, 1, 2, 3], &[0, 1, 2, 3]);
    let answer = world.sites[0].answer(&first).unwrap();
    for restart in [false, true] {
        if restart {
            world.restart(0, Some(&batch));
        }
        // Both shares of site 4, or of site 3: refused, and so is an older round.
        for other in [question(2, &[0, 1, 2, 3, 4], &[0, 1, 2, 3]), question(2, &[0, 1, 2, 4], &[0, 1, 2, 4])]
        {
            assert_eq!(world.sites[0].answer(&other).unwrap_err(), Refusal::OtherSurvivors);
        }
        let older = question(1, &[0, 1, 2, 3], &[0, 1, 2, 3]);
        assert_eq!(world.sites[0].answer(&older).unwrap_err(), Refusal::OtherSurvivors);
        // The same question gets the same bytes.
        assert_eq!(world.sites[0].answer(&first).unwrap(), answer);
    }
}

#[test]
fn two_lists_of_survivors_open_neither() {
    // 2 t > n + c: 2 * 4 > 5 + 1. Site 4 colludes: it answers both ways, as two sites would.
    let mut world = World::new(5, 4, 1);
    let batch = world.batch(0, &world.all()).unwrap();
    let [all, without] =
        [question(0, &[0, 1, 2, 3, 4], &[0, 1, 2, 4]), question(0, &[0, 1, 2, 4], &[0, 1, 2, 4])];
    let mut colluding = Member::new(JOB, world.members[4], world.sites[4].record().clone());
    colluding.join(world.roster.clone()).unwrap();
    colluding.take_batch(batch.grant(&world.roster, 4).unwrap()).unwrap();
    // Sites 0 and 1 are told that site 3 survived, site 2 that it did not.
    let told_all = world.ask(&all, &[0, 1, 4]).unwrap();
    let mut told_without = world.ask(&without, &[2]).unwrap();
    told_without.insert(4, colluding.answer(&without).unwrap());
    let unanswered = |question, answers| batch.unmask(&world.roster, question, answers).unwrap_err();
    assert_eq!(unanswered(&all, &told_all), OpenError::Unanswered { missing: 1 });
    assert_eq!(unanswered(&without, &told_without), OpenError::Unanswered { missing: 2 });
    // Passed off as answers to the other question, no answer opens, not even of those who did answer it.
    for (question, answers, others) in
        [(&all, &told_all, &told_without), (&without, &told_without, &told_all)]
    {
        let mut answers = answers.clone();
        for (site, answer) in others {
            answers.entry(*site).or_insert_with(|| answer.clone());
        }
        let hash = batch.question_hash(&world.roster, question);
        answers.values_mut().for_each(|answer| answer.question = hash);
        let all_of_them: BTreeSet<u16> = question.asked.iter().copied().collect();
        assert_eq!(
            batch.unmask(&world.roster, question, &answers).unwrap_err(),
            OpenError::Faulty(all_of_them)
        );
    }
}

#[test]
fn questions_that_are_none_are_refused() {
    let mut world = World::new(5, 4, 1);
    world.batch(0, &[0, 1, 2, 3]).unwrap();
    let bad = |error| Refusal::Question(error);
    for (asks, refusal) in [
        (question(0, &[0, 1, 2], &[0, 1, 2]), bad(BadQuestion::Survivors)),
        // Not in the batch, and not on the roster at all.
        (question(0, &[0, 1, 2, 4], &[0, 1, 2, 4]), bad(BadQuestion::Survivors)),
        (question(0, &[0, 1, 2, 900], &[0, 1, 2, 900]), bad(BadQuestion::Survivors)),
        (question(0, &[0, 1, 1, 2, 3], &[0, 1, 2, 3]), bad(BadQuestion::Survivors)),
        (question(0, &[1, 0, 2, 3], &[0, 1, 2, 3]), bad(BadQuestion::Survivors)),
        (question(0, &[0, 1, 2, 3], &[0, 1, 2]), bad(BadQuestion::Asked)),
        (question(0, &[0, 1, 2, 3], &[0, 1, 2, 4]), bad(BadQuestion::Asked)),
        (question(0, &[], &[]), bad(BadQuestion::Survivors)),
        (question(8, &[0, 1, 2, 3], &[0, 1, 2, 3]), Refusal::NoBatch),
    ] {
        assert_eq!(world.sites[0].answer(&asks).unwrap_err(), refusal, "{asks:?}");
    }
    let mut five = World::new(5, 4, 1);
    five.batch(0, &five.all()).unwrap();
    let without = question(0, &[0, 1, 2, 3, 4], &[1, 2, 3, 4]);
    assert_eq!(five.sites[0].answer(&without).unwrap_err(), Refusal::NotAsked);
    // A refused question commits the site to nothing.
    assert!(five.sites[0].answer(&question(0, &[0, 1, 2, 3], &[0, 1, 2, 3])).is_ok());
}

#[test]
fn messages_before_their_turn_are_refused() {
    let mut world = World::new(3, 3, 1);
    let fresh = || Member::new(JOB, world.members[0], Record::new(JobSecret::from_bytes([1; 32])));
    assert_eq!(fresh().offer(0).unwrap_err(), Refusal::NotInRoster);
    assert_eq!(fresh().masks(RoundId(0)).unwrap_err(), Refusal::NotInRoster);
    let asks = question(0, &[0, 1, 2], &[0, 1, 2]);
    assert_eq!(fresh().answer(&asks).unwrap_err(), Refusal::NotInRoster);
    assert_eq!(world.sites[0].masks(RoundId(0)).unwrap_err(), Refusal::NoBatch);
    assert_eq!(world.sites[0].answer(&asks).unwrap_err(), Refusal::NoBatch);
}

#[test]
fn a_site_takes_one_roster_for_a_job_and_only_with_its_own_key() {
    let mut world = World::new(4, 3, 1);
    let keys = world.roster.keys().to_vec();
    let kept = world.sites[0].record().clone();
    let again = |keys: &[SignedKey]| {
        let mut back = Member::new(JOB, world.members[0], kept.clone());
        back.take_roster(world.terms(), keys.to_vec())
    };
    assert_eq!(again(&keys), Ok(()));
    assert_eq!(again(&keys[..3]), Err(Refusal::OtherRoster));
    let mut strange = Member::new(JOB, world.members[0], Record::new(JobSecret::from_bytes([99; 32])));
    assert_eq!(strange.take_roster(world.terms(), keys.clone()), Err(Refusal::NotInRoster), "a lost secret");
    let mut left_out = Member::new(JOB, world.members[0], Record::new(JobSecret::from_bytes([1; 32])));
    assert_eq!(left_out.take_roster(world.terms(), keys[1..].to_vec()), Err(Refusal::NotInRoster));
    // A key whose agreement is no secret.
    let mut weak = keys;
    weak[1] = SignedKey::sign(&world.identities[1], JOB, [0; 32]);
    let mut fresh = Member::new(JOB, world.members[0], Record::new(JobSecret::from_bytes([1; 32])));
    assert!(matches!(fresh.take_roster(world.terms(), weak), Err(Refusal::Key(_))));
    assert!(world.batch(0, &[0, 1, 2, 3]).is_ok());
}

#[test]
fn a_site_takes_one_list_of_sites_for_a_batch_and_only_what_they_sealed() {
    let mut world = World::new(4, 3, 1);
    let all = world.batch(1, &[0, 1, 2, 3]).unwrap();
    let roster = world.roster.clone();
    let fewer = Batch { offers: all.offers.clone().into_iter().take(3).collect(), number: 1 };
    let older = Batch { number: 0, ..all.clone() };
    let mut take = |grant| world.sites[0].take_batch(grant);
    assert_eq!(take(fewer.grant(&roster, 0).unwrap()), Err(Refusal::OtherBatch));
    assert_eq!(take(older.grant(&roster, 0).unwrap()), Err(Refusal::OtherBatch));
    assert_eq!(take(all.grant(&roster, 0).unwrap()), Ok(()));
    let granted = |change: &dyn Fn(&mut super::batch::Grant)| {
        let mut grant = all.grant(&roster, 0).unwrap();
        change(&mut grant);
        grant
    };
    // The coordinator's own key in the place of a site's; a bit of the shares; those of another batch, of another site.
    for changed in [
        granted(&|grant| grant.offers[1].publics[0] = [9; 32]),
        granted(&|grant| grant.offers[1].sealed[5] ^= 1),
        granted(&|grant| grant.batch = 2),
        granted(&|grant| grant.offers.swap(0, 1)),
        granted(&|grant| grant.offers[0].publics.truncate(3)),
        granted(&|grant| grant.offers.truncate(2)),
        granted(&|grant| grant.present[0] = 1),
    ] {
        assert_eq!(take(changed), Err(Refusal::Batch));
    }
}

#[test]
fn what_was_tampered_with_is_found_and_the_others_open_without_it() {
    let mut world = World::new(4, 3, 0);
    let batch = world.batch(0, &world.all()).unwrap();
    let roster = world.roster.clone();
    let asks = question(0, &[0, 1, 2, 3], &[0, 1, 2, 3]);
    let answers = world.ask(&asks, &[0, 1, 2, 3]).unwrap();
    let tampered = |change: &dyn Fn(&mut Answer)| {
        let mut answers = answers.clone();
        answers.values_mut().nth(1).into_iter().for_each(change);
        batch.unmask(&roster, &asks, &answers).unwrap_err()
    };
    let only = |site| OpenError::Faulty(BTreeSet::from([site]));
    assert_eq!(tampered(&|answer| answer.sealed[0] ^= 1), only(1));
    assert_eq!(tampered(&|answer| answer.sealed.clear()), only(1));
    assert_eq!(tampered(&|answer| answer.pads[3][31] ^= 1), only(3));
    assert_eq!(tampered(&|answer| answer.pads.truncate(2)), OpenError::Unanswered { missing: 1 });
    // The answer of another site in its name.
    let other = answers[&2].clone();
    assert!(matches!(tampered(&|answer| *answer = other.clone()), OpenError::Faulty(_)));
    let rest = question(0, &[0, 1, 2, 3], &[0, 2, 3]);
    let answers = world.ask(&rest, &[0, 2, 3]).unwrap();
    let mut sum = world.masked_sum(&[0, 1, 2, 3], RoundId(0));
    batch.unmask(&roster, &rest, &answers).unwrap().apply(&mut sum, 1);
    assert_eq!(sum, World::plain_sum(&[0, 1, 2, 3], RoundId(0)));
}

#[test]
fn an_answer_to_another_round_is_no_answer() {
    let mut world = World::new(3, 3, 1);
    let batch = world.batch(0, &world.all()).unwrap();
    let old = world.ask(&question(0, &[0, 1, 2], &[0, 1, 2]), &[0, 1, 2]).unwrap();
    let asks = question(1, &[0, 1, 2], &[0, 1, 2]);
    let missing = OpenError::Unanswered { missing: 3 };
    assert_eq!(batch.unmask(&world.roster, &asks, &old).unwrap_err(), missing);
}

/// A member in league with nobody whose shares are wrong: the others' are enough.
#[test]
fn one_wrong_share_more_than_the_threshold_is_found_and_left_out() {
    let mut world = World::new(5, 3, 0);
    let mut batch = world.batch(0, &world.all()).unwrap();
    let asks = question(0, &[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4]);
    let answers = world.ask(&asks, &world.all()).unwrap();
    assert!(batch.unmask(&world.roster, &asks, &answers).is_ok());
    // A commitment that nothing fits: the secret counts as lost, and is not taken for what it is not.
    batch.offers.get_mut(&2).unwrap().commitments[0] = [0; 32];
    assert_eq!(batch.unmask(&world.roster, &asks, &answers).unwrap_err(), OpenError::Lost(2));
}

#[test]
fn a_site_that_starts_anew_says_the_same_again() {
    let mut world = World::new(4, 3, 1);
    let offer = world.sites[2].offer(0).unwrap();
    world.restart(2, None);
    assert_eq!(world.sites[2].offer(0).unwrap(), offer);
    let batch = world.batch(0, &world.all()).unwrap();
    let masked = world.masked(2, RoundId(5));
    world.restart(2, Some(&batch));
    assert_eq!(world.masked(2, RoundId(5)), masked);
}

/// Chi-square over the bytes of masked zeros, 255 degrees of freedom, each of 5 sites in 4 rounds, and over the
/// differences of masks two and two: below 404 with probability above 1 - 1e-8 a test (alpha below 1e-6 over all). Job
/// secrets are fixed; identities are not, and enter the masks.
#[test]
fn masked_integers_pass_a_test_of_uniformity_and_do_not_hang_together() {
    let mut world = World::new(5, 4, 1);
    world.batch(0, &world.all()).unwrap();
    let mask = |site: usize, round: u32| {
        let mut mask = vec![0; 64_000];
        world.sites[site].masks(RoundId(round)).unwrap().apply(&mut mask, 1);
        mask
    };
    let all: Vec<Vec<u32>> = (0..20).map(|at| mask(at % 5, (at / 5) as u32)).collect();
    let uniform = |words: &[u32]| {
        let mut counts = [0u32; 256];
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        bytes.for_each(|byte| counts[usize::from(byte)] += 1);
        let expected = 4.0 * words.len() as f64 / 256.0;
        let square: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        assert!(square < 404.0, "{square}");
    };
    for (at, one) in all.iter().enumerate() {
        uniform(one);
        let next = &all[(at + 1) % all.len()];
        let difference: Vec<u32> = one.iter().zip(next).map(|(a, b)| a.wrapping_sub(*b)).collect();
        uniform(&difference);
    }
}
