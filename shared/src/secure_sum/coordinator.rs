//! The coordinator's side: from the offers of a batch to what each site is granted, and from the answers of a round to
//! the masks that come off the sum.

use super::agreement::{self, Answer, Question, Told};
use super::batch::{self, Grant, Offer};
use super::keys::{ExchangeKey, Secret};
use super::masks::{Masks, Sign};
use super::place_of;
use super::roster::Roster;
use super::shamir::Recipe;
use crate::wire::codec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A batch as the coordinator fixed it: the offers of the sites whose secrets can be put together again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Which one.
    pub number: u32,
    /// By the sites' numbers; each fits the roster.
    pub offers: BTreeMap<u16, Offer>,
}

/// Why the masks do not come off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not all who were asked answered this question.
    #[error("{missing} sites have not answered the question")]
    Unanswered {
        /// How many are missing.
        missing: usize,
    },
    /// These sites' answers are not what they should be: others may be asked without them.
    #[error("the answers of {} sites do not open", .0.len())]
    Faulty(BTreeSet<u16>),
    /// Too few whole shares of this site's secret are left, whoever is asked.
    #[error("too few whole shares of site {0}'s secret came together")]
    Lost(u16),
}

impl Batch {
    /// Numbers of its sites, ascending.
    pub fn present(&self) -> Vec<u16> {
        self.offers.keys().copied().collect()
    }

    /// What the site `receiver` is told of it; None if it is not in it.
    pub fn grant(&self, roster: &Roster, receiver: u16) -> Option<Grant> {
        self.offers.get(&receiver)?;
        let circle = roster.graph().circle(receiver);
        let peers = circle.iter().filter(|peer| **peer != receiver && self.offers.contains_key(peer));
        let offers = peers.map(|peer| self.offers.get(peer)?.for_peer(roster, *peer, receiver));
        Some(Grant { batch: self.number, present: self.present(), offers: offers.collect::<Option<_>>()? })
    }

    /// The hash that an answer to `question` names.
    pub fn question_hash(&self, roster: &Roster, question: &Question) -> [u8; 32] {
        question.hash(&batch::hash_of(roster, self.number, &self.present()))
    }

    /// The masks that, added to the sum of the survivors' masked integers, leave the sum of their integers. `answers`
    /// are by number, of all who were asked.
    pub fn unmask(
        &self,
        roster: &Roster,
        question: &Question,
        answers: &BTreeMap<u16, Answer>,
    ) -> Result<Masks, OpenError> {
        let told = self.open(roster, question, answers)?;
        let present = self.present();
        let batch = batch::hash_of(roster, self.number, &present);
        let mut masks = Masks::default();
        let mut recipes = Recipes::default();
        let mut lost_keys = Vec::new();
        for number in &present {
            let survives = question.survives(*number);
            if !survives && !borders_on(roster, *number, question) {
                continue;
            }
            let secret = self.put_together(roster, question, &told, *number, &mut recipes)?;
            if survives {
                masks.push(&secret, Sign::Minus);
            } else {
                lost_keys.push((*number, ExchangeKey::of(&secret)));
            }
        }
        for (lost, key) in lost_keys {
            for neighbour in roster.graph().circle(lost).iter().filter(|number| question.survives(**number)) {
                let offer = self.offers.get(neighbour).ok_or(OpenError::Lost(*neighbour))?;
                let sites = (roster.sites()[usize::from(lost)], roster.sites()[usize::from(*neighbour)]);
                let public =
                    offer.publics.get(place_of(question.round)).ok_or(OpenError::Lost(*neighbour))?;
                let seed = batch::pair_seed(roster, &batch, question.round, &key, sites, public)
                    .map_err(|_| OpenError::Lost(*neighbour))?;
                // The neighbour added it with this sign: towards the later of two it is plus.
                let added = if *neighbour < lost { Sign::Plus } else { Sign::Minus };
                masks.push(&seed, added.inverted());
            }
        }
        Ok(masks)
    }

    /// What each who was asked told of each in the batch.
    fn open(
        &self,
        roster: &Roster,
        question: &Question,
        answers: &BTreeMap<u16, Answer>,
    ) -> Result<BTreeMap<u16, BTreeMap<u16, Told>>, OpenError> {
        let hash = self.question_hash(roster, question);
        let fits = |answer: &&Answer| answer.question == hash && answer.pads.len() == question.asked.len();
        let all: Vec<(u16, &Answer)> = question
            .asked
            .iter()
            .filter_map(|number| Some((*number, answers.get(number).filter(fits)?)))
            .collect();
        if all.len() < question.asked.len() {
            return Err(OpenError::Unanswered { missing: question.asked.len() - all.len() });
        }
        let keys = agreement::keys(all.len(), all.iter().map(|(_, answer)| answer.pads.as_slice()));
        let mut told = BTreeMap::new();
        let mut faulty = BTreeSet::new();
        for ((number, answer), key) in all.iter().zip(&keys) {
            match self.told_by(roster, question, &hash, *number, answer, key) {
                Some(said) => {
                    told.insert(*number, said);
                }
                None => {
                    faulty.insert(*number);
                }
            }
        }
        if faulty.is_empty() { Ok(told) } else { Err(OpenError::Faulty(faulty)) }
    }

    fn told_by(
        &self,
        roster: &Roster,
        question: &Question,
        hash: &[u8; 32],
        number: u16,
        answer: &Answer,
        key: &Secret,
    ) -> Option<BTreeMap<u16, Told>> {
        let site = roster.site(number)?;
        let text = batch::open(key, &agreement::context(hash, site), &answer.sealed)?;
        let told: Vec<Told> = codec::decode(&text).ok()?;
        let circle = roster.graph().circle(number).iter().copied();
        let peers: Vec<u16> = circle.filter(|peer| self.offers.contains_key(peer)).collect();
        let kind_holds = |(peer, told): (&u16, &Told)| match told {
            Told::SelfMask(_) => question.survives(*peer),
            Told::RoundKey(_) => !question.survives(*peer),
        };
        let fits = told.len() == peers.len() && peers.iter().zip(&told).all(kind_holds);
        fits.then(|| peers.into_iter().zip(told).collect())
    }

    /// The secret of the site `owner` that its circle told of, held against what the site committed itself to. One share
    /// that is wrong is left out.
    fn put_together(
        &self,
        roster: &Roster,
        question: &Question,
        told: &BTreeMap<u16, BTreeMap<u16, Told>>,
        owner: u16,
        recipes: &mut Recipes,
    ) -> Result<Secret, OpenError> {
        let graph = roster.graph();
        let offer = self.offers.get(&owner).ok_or(OpenError::Lost(owner))?;
        let (mut points, mut shares) = (Vec::new(), Vec::new());
        for holder in graph.circle(owner) {
            let of_owner = told.get(holder).and_then(|said| said.get(&owner));
            if let (Some(Told::SelfMask(share) | Told::RoundKey(share)), Some(point)) =
                (of_owner, graph.point(owner, *holder))
            {
                points.push(point);
                shares.push(share);
            }
        }
        let needed = graph.threshold();
        if points.len() < needed {
            return Err(OpenError::Lost(owner));
        }
        let at = place_of(question.round);
        let survives = question.survives(owner);
        let is_right = |secret: &Secret| match survives {
            true => offer.commitments.get(at) == Some(&batch::commitment(secret)),
            false => offer.publics.get(at) == Some(&ExchangeKey::of(secret).public()),
        };
        let first = recipes.of(&points[..needed]).secret(shares[..needed].iter().copied());
        if is_right(&first) {
            return Ok(first);
        }
        let without = |left_out: usize| {
            let kept = (0..points.len()).filter(|at| *at != left_out).take(needed);
            let (points, shares): (Vec<u8>, Vec<_>) = kept.map(|at| (points[at], shares[at])).unzip();
            (points.len() == needed).then(|| Recipe::of(&points).map(|recipe| recipe.secret(shares)))?
        };
        let found = (0..needed).filter_map(without).find(|secret| is_right(secret));
        found.ok_or(OpenError::Lost(owner))
    }
}

/// Whether a site that is not in the sum shares a mask with one that is.
fn borders_on(roster: &Roster, lost: u16, question: &Question) -> bool {
    roster.graph().circle(lost).iter().any(|number| question.survives(*number))
}

/// The recipe made last: with a complete graph all secrets come from the same points.
#[derive(Default)]
struct Recipes(Option<(Vec<u8>, Recipe)>);

impl Recipes {
    /// # Panics
    /// If the points are not those of a circle.
    fn of(&mut self, points: &[u8]) -> &Recipe {
        if self.0.as_ref().is_none_or(|(of, _)| of != points) {
            let recipe = Recipe::of(points).expect("the members of a circle have points of their own");
            self.0 = Some((points.to_vec(), recipe));
        }
        &self.0.get_or_insert_with(|| (Vec::new(), Recipe::of(&[]).expect("no point meets another"))).1
    }
}
