//! The site's side of one job's secure sums: keys and shares out, a mask over its integers, one answer a round.
//!
//! What it says is a function of its [`Record`] and of what it is told, so it says the same again after a restart. The
//! record changes when it commits itself: to a roster, to the sites of a batch, to a round's survivors. The shell
//! keeps the record before anything leaves that was said after a change.

use super::agreement::{self, Answer, BadQuestion, Question, Told};
use super::batch::{self, Grant, Offer, PeerOffer, RoundShares};
use super::keys::{BadKey, ExchangeKey, JobSecret, Secret, SignedKey};
use super::masks::{Masks, Sign};
use super::roster::{Roster, RosterError, Terms};
use super::{BATCH_ROUNDS, batch_of, place_of, shamir};
use crate::identity::Identity;
use crate::ids::{ContentHash, JobId, RoundId, SiteId};
use crate::wire::codec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a site must remember of a job's secure sums for as long as the job lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    secret: JobSecret,
    /// Hash of the only roster.
    roster: Option<[u8; 32]>,
    /// The newest batch, and the hash of its only list of sites.
    batch: Option<(u32, [u8; 32])>,
    /// The newest round that was answered for, and the hash of its only list of survivors.
    answered: Option<(RoundId, [u8; 32])>,
}

impl Record {
    /// Nothing said yet.
    pub const fn new(secret: JobSecret) -> Self {
        Self { secret, roster: None, batch: None, answered: None }
    }
}

/// Why the site does not do what it is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The keys are no roster.
    #[error("the coordinator's roster is not one")]
    Roster(#[from] RosterError),
    /// The roster is another than the one of before.
    #[error("the coordinator told this site another roster of the same job before")]
    OtherRoster,
    /// The site is not in it, or with another key.
    #[error("this site's key is not in the job's roster: it takes no part in this job's sums")]
    NotInRoster,
    /// A key on it is unusable.
    #[error("a key in the roster is not usable")]
    Key(#[from] BadKey),
    /// The batch is not one of the roster, the site is not in it, or some site's part of it is not what that site sealed.
    #[error("the coordinator's batch is not one that this job's sites made, with this site in it")]
    Batch,
    /// The batch is another than the one of before, or an older one.
    #[error("the coordinator told this site other sites of the same batch before, or a later batch")]
    OtherBatch,
    /// There is no batch for the round yet.
    #[error("the round's batch has not come")]
    NoBatch,
    /// The question is not one.
    #[error("the coordinator's question about the round is not one")]
    Question(#[from] BadQuestion),
    /// The site is not asked.
    #[error("the question is not for this site")]
    NotAsked,
    /// It answered for other survivors of this round, or for a later round.
    #[error("this site answered for other survivors of the same round before, or for a later round")]
    OtherSurvivors,
}

/// A batch as this site took it.
#[derive(Debug)]
struct Batch {
    number: u32,
    hash: [u8; 32],
    present: Vec<u16>,
    /// Of each other present member of the circle.
    peers: BTreeMap<u16, Peer>,
}

#[derive(Debug)]
struct Peer {
    publics: Vec<[u8; 32]>,
    shares: Vec<RoundShares>,
}

/// A site's place in a roster.
#[derive(Debug)]
struct Place {
    roster: Roster,
    own: u16,
    site: SiteId,
    /// What it shares with each other site, by number; its own place is empty.
    pairs: Vec<Option<Secret>>,
}

/// A site's part in one job's secure sums.
#[derive(Debug)]
pub struct Member {
    job: JobId,
    site: SiteId,
    record: Record,
    place: Option<Place>,
    batch: Option<Batch>,
}

impl Member {
    /// The part of `site` in `job`, as far as `record` tells.
    pub fn new(job: JobId, site: SiteId, record: Record) -> Self {
        Self { job, site, record, place: None, batch: None }
    }

    /// Whose part it is.
    pub fn site(&self) -> SiteId {
        self.site
    }

    /// What must be on disk before what is said next leaves.
    pub fn record(&self) -> &Record {
        &self.record
    }

    fn exchange_key(&self) -> ExchangeKey {
        self.record.secret.exchange_key(self.job)
    }

    /// The site's key for the job's roster.
    pub fn signed_key(&self, identity: &Identity) -> SignedKey {
        SignedKey::sign(identity, self.job, self.exchange_key().public())
    }

    /// Takes the job's roster; another than before is refused for good.
    pub fn take_roster(&mut self, terms: Terms<'_>, keys: Vec<SignedKey>) -> Result<(), Refusal> {
        self.join(Roster::new(self.job, terms, keys)?)
    }

    pub(super) fn join(&mut self, roster: Roster) -> Result<(), Refusal> {
        if self.record.roster.is_some_and(|known| known != *roster.hash()) {
            return Err(Refusal::OtherRoster);
        }
        if self.place.is_some() {
            return Ok(());
        }
        let exchange = self.exchange_key();
        let own = roster.number_of(self.site).ok_or(Refusal::NotInRoster)?;
        if roster.keys()[usize::from(own)].key != exchange.public() {
            return Err(Refusal::NotInRoster);
        }
        let mut pairs = Vec::with_capacity(roster.sites().len());
        for (site, key) in roster.sites().iter().zip(roster.keys()) {
            let [hash, low, high] = batch::pair_context(&roster, self.site, *site);
            let agreed = || exchange.agreed(&key.key, b"pair\0", &[&hash, &low, &high]);
            pairs.push(if *site == self.site { None } else { Some(agreed()?) });
        }
        self.record.roster = Some(*roster.hash());
        self.place = Some(Place { roster, own, site: self.site, pairs });
        Ok(())
    }

    /// The batch that this site has not taken yet.
    pub fn next_batch(&self) -> u32 {
        self.record.batch.map_or(0, |(number, _)| number + 1)
    }

    fn place(&self) -> Result<&Place, Refusal> {
        self.place.as_ref().ok_or(Refusal::NotInRoster)
    }

    /// The site's part in batch `number`: the same each time.
    pub fn offer(&self, number: u32) -> Result<Offer, Refusal> {
        let Place { roster, own, site, pairs } = self.place()?;
        let graph = roster.graph();
        let circle = graph.circle(*own);
        let (mut publics, mut commitments) = (Vec::new(), Vec::new());
        let mut shares: Vec<Vec<RoundShares>> = vec![Vec::new(); circle.len()];
        for round in rounds_of(number) {
            let secrets = self.round_secrets(roster, round);
            publics.push(ExchangeKey::of(&secrets.round_key).public());
            commitments.push(batch::commitment(&secrets.self_mask));
            let dealt = secrets.shares(graph.threshold(), circle.len());
            shares.iter_mut().zip(dealt).for_each(|(of_peer, dealt)| of_peer.push(dealt));
        }
        let peers = circle.iter().zip(shares).filter(|(peer, _)| *peer != own);
        let sealed = peers.filter_map(|(peer, shares)| {
            let pair = pairs[usize::from(*peer)].as_ref()?;
            Some(batch::seal_shares(roster, pair, *site, number, &publics, &shares))
        });
        Ok(Offer { batch: number, sealed: sealed.collect(), publics, commitments })
    }

    fn round_secrets(&self, roster: &Roster, round: RoundId) -> RoundSecrets {
        let of = |label: &[u8]| self.record.secret.of_round(label, roster.hash(), round);
        RoundSecrets {
            self_mask: of(b"self mask\0"),
            self_mask_polynomial: of(b"self mask polynomial\0"),
            round_key: of(b"round key\0"),
            round_key_polynomial: of(b"round key polynomial\0"),
        }
    }

    /// Takes a batch as the coordinator fixed it; other sites than before are refused for good.
    pub fn take_batch(&mut self, grant: Grant) -> Result<(), Refusal> {
        let Place { roster, own, pairs, .. } = self.place()?;
        let present = &grant.present;
        if !roster.is_quorum(present) || present.binary_search(own).is_err() {
            return Err(Refusal::Batch);
        }
        let circle = roster.graph().circle(*own).iter().copied();
        let peers: Vec<u16> =
            circle.filter(|peer| peer != own && present.binary_search(peer).is_ok()).collect();
        let rounds = BATCH_ROUNDS as usize;
        let fits =
            |offer: &PeerOffer| offer.publics.len() == rounds && offer.sealed.len() == batch::SEALED_LEN;
        if peers.len() != grant.offers.len() || !grant.offers.iter().all(fits) {
            return Err(Refusal::Batch);
        }
        let hash = batch::hash_of(roster, grant.batch, present);
        let known = self.record.batch;
        if known.is_some_and(|(number, known)| grant.batch < number || grant.batch == number && hash != known)
        {
            return Err(Refusal::OtherBatch);
        }
        // A public half that its site did not seal could be anyone's, and with it the mask: then there is no batch.
        let opened = |(number, offer): (u16, &PeerOffer)| {
            let sender = roster.site(number)?;
            let pair = pairs.get(usize::from(number))?.as_ref()?;
            let shares = batch::open_shares(roster, pair, sender, grant.batch, offer)?;
            Some((number, Peer { publics: offer.publics.clone(), shares }))
        };
        let peers: Option<_> = peers.into_iter().zip(&grant.offers).map(opened).collect();
        let peers = peers.ok_or(Refusal::Batch)?;
        self.record.batch = Some((grant.batch, hash));
        self.batch = Some(Batch { number: grant.batch, hash, present: grant.present, peers });
        Ok(())
    }

    fn batch_of(&self, round: RoundId) -> Result<(&Place, &Batch), Refusal> {
        let batch = self.batch.as_ref().filter(|batch| batch.number == batch_of(round));
        Ok((self.place()?, batch.ok_or(Refusal::NoBatch)?))
    }

    /// Whether the round's masks can be made.
    pub fn is_prepared(&self, round: RoundId) -> bool {
        self.batch_of(round).is_ok()
    }

    /// The masks of `round`: the site's own, and one with each present neighbour, plus towards the later one and minus
    /// towards the earlier.
    pub fn masks(&self, round: RoundId) -> Result<Masks, Refusal> {
        let (place, batch) = self.batch_of(round)?;
        let secrets = self.round_secrets(&place.roster, round);
        let round_key = ExchangeKey::of(&secrets.round_key);
        let mut masks = Masks::default();
        masks.push(&secrets.self_mask, Sign::Plus);
        for (number, peer) in &batch.peers {
            let theirs = peer.publics.get(place_of(round)).ok_or(Refusal::NoBatch)?;
            let sites = (place.site, place.roster.sites()[usize::from(*number)]);
            let seed = batch::pair_seed(&place.roster, &batch.hash, round, &round_key, sites, theirs)?;
            masks.push(&seed, if place.own < *number { Sign::Plus } else { Sign::Minus });
        }
        Ok(masks)
    }

    /// The answer to `question`, once the record is kept: for each present member of the circle, of a survivor a share of
    /// its self-mask, of one that is not a share of its round key. For one list of survivors a round and no other, ever.
    pub fn answer(&mut self, question: &Question) -> Result<Answer, Refusal> {
        let (place, batch) = self.batch_of(question.round)?;
        question.check(&place.roster, &batch.present)?;
        let own_place = question.asked.binary_search(&place.own).map_err(|_| Refusal::NotAsked)?;
        let survivors = question.survivors_hash(&batch.hash);
        let other = |(round, known): (RoundId, [u8; 32])| {
            question.round < round || question.round == round && survivors != known
        };
        if self.record.answered.is_some_and(other) {
            return Err(Refusal::OtherSurvivors);
        }
        let hash = question.hash(&batch.hash);
        let text = codec::encode(&self.told(place, batch, question));
        let key = self.record.secret.of_answer(&hash, ContentHash::of(&text).as_bytes());
        let asked = question.asked.iter().filter_map(|number| place.pairs[usize::from(*number)].as_ref());
        let pads = agreement::pads(&hash, question.asked.len(), asked, own_place, &key);
        let sealed = batch::seal(&key, &agreement::context(&hash, place.site), text);
        self.record.answered = Some((question.round, survivors));
        Ok(Answer { round: question.round, question: hash, sealed, pads })
    }

    fn told(&self, place: &Place, batch: &Batch, question: &Question) -> Vec<Told> {
        let graph = place.roster.graph();
        let circle = graph.circle(place.own);
        let at = place_of(question.round);
        let own = self.round_secrets(&place.roster, question.round).shares(graph.threshold(), circle.len());
        let told = circle.iter().zip(own).filter_map(|(number, dealt)| {
            let shares = match batch.peers.get(number) {
                Some(peer) => *peer.shares.get(at)?,
                // A site's place in its own circle is the point of its own share.
                None if *number == place.own => dealt,
                None => return None,
            };
            Some(match question.survives(*number) {
                true => Told::SelfMask(shares.self_mask),
                false => Told::RoundKey(shares.round_key),
            })
        });
        told.collect()
    }
}

/// The secrets of one site and round.
struct RoundSecrets {
    self_mask: Secret,
    self_mask_polynomial: Secret,
    round_key: Secret,
    round_key_polynomial: Secret,
}

impl RoundSecrets {
    fn shares(&self, threshold: usize, count: usize) -> Vec<RoundShares> {
        let self_masks = shamir::shares(&self.self_mask, &self.self_mask_polynomial, threshold, count);
        let round_keys = shamir::shares(&self.round_key, &self.round_key_polynomial, threshold, count);
        let pairs = self_masks.into_iter().zip(round_keys);
        pairs.map(|(self_mask, round_key)| RoundShares { self_mask, round_key }).collect()
    }
}

fn rounds_of(batch: u32) -> impl Iterator<Item = RoundId> {
    let first = batch.saturating_mul(BATCH_ROUNDS);
    (0..BATCH_ROUNDS).map(move |place| RoundId(first.saturating_add(place)))
}
