//! What is shared out ahead, for [`BATCH_ROUNDS`] rounds at a time: of each round's self-mask seed
//! and X25519 key, a share to every member of the site's circle, sealed for that member alone.
//!
//! The coordinator passes on what came: the sites whose secrets can be put together again are the batch's, and masks of its
//! rounds are made among them only.

use super::keys::Secret;
use super::roster::Roster;
use super::{BATCH_ROUNDS, keys::BadKey};
use crate::ids::{ContentHash, SiteId};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

/// Shares of one round's two secrets of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundShares {
    /// Of the self-mask's seed.
    pub(super) self_mask: [u8; 32],
    /// Of the private half of the round's key.
    pub(super) round_key: [u8; 32],
}

/// Bytes of the shares of a batch for one member of a circle.
const TEXT_LEN: usize = 64 * BATCH_ROUNDS as usize;
/// ... and sealed.
pub const SEALED_LEN: usize = TEXT_LEN + 16;

/// A site's part in a batch: to the coordinator, who can read none of the shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Which batch.
    pub batch: u32,
    /// The round keys' public halves, one a round.
    pub publics: Vec<[u8; 32]>,
    /// Hashes of the self-masks' seeds, one a round: what the coordinator puts together is held against them.
    pub commitments: Vec<[u8; 32]>,
    /// Shares for each other member of the site's circle, ascending.
    pub sealed: Vec<Vec<u8>>,
}

/// One site's part in a batch, for one member of its circle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerOffer {
    /// The round keys' public halves, one a round.
    pub publics: Vec<[u8; 32]>,
    /// Shares for the receiver.
    pub sealed: Vec<u8>,
}

/// A batch as the coordinator fixed it, for one of its sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which batch.
    pub batch: u32,
    /// Numbers of its sites, ascending.
    pub present: Vec<u16>,
    /// Of each other member of the receiver's circle that is present, ascending.
    pub offers: Vec<PeerOffer>,
}

impl Offer {
    /// Whether it has the shape of an offer of the site with this number.
    pub fn fits(&self, roster: &Roster, number: u16) -> bool {
        let rounds = BATCH_ROUNDS as usize;
        self.publics.len() == rounds
            && self.commitments.len() == rounds
            && self.sealed.len() + 1 == roster.graph().circle(number).len()
            && self.sealed.iter().all(|sealed| sealed.len() == SEALED_LEN)
    }

    /// What it holds for `receiver`; None if that is not in the circle of the site `number`, whose offer it is.
    pub fn for_peer(&self, roster: &Roster, number: u16, receiver: u16) -> Option<PeerOffer> {
        let circle = roster.graph().circle(number);
        let place = circle.iter().filter(|peer| **peer != number).position(|peer| *peer == receiver)?;
        Some(PeerOffer { publics: self.publics.clone(), sealed: self.sealed.get(place)?.clone() })
    }
}

/// Names a batch's sites under a roster.
pub(super) fn hash_of(roster: &Roster, batch: u32, present: &[u16]) -> [u8; 32] {
    let mut bytes = b"weighhouse secure sum batch v1\0".to_vec();
    bytes.extend_from_slice(roster.hash());
    bytes.extend_from_slice(&batch.to_le_bytes());
    bytes.extend(present.iter().flat_map(|number| number.to_le_bytes()));
    *ContentHash::of(&bytes).as_bytes()
}

/// What commits a site to a self-mask's seed: the seed is uniform, so its hash says nothing of it.
pub(super) fn commitment(seed: &Secret) -> [u8; 32] {
    *seed.derive(b"commitment\0", &[]).as_bytes()
}

/// The secret by which two sites of a roster seal and agree.
pub(super) fn pair_context(roster: &Roster, a: SiteId, b: SiteId) -> [[u8; 32]; 3] {
    [*roster.hash(), *a.min(b).as_bytes(), *a.max(b).as_bytes()]
}

/// Seals `text` with a key that is used for no other text.
pub(super) fn seal(key: &Secret, context: &[u8], mut text: Vec<u8>) -> Vec<u8> {
    let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("32 bytes are a key of AES-256");
    LessSafeKey::new(key)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(context), &mut text)
        .expect("a text is far shorter than 64 GiB");
    text
}

/// What was sealed; None if it was not sealed with this key and context.
pub(super) fn open(key: &Secret, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).ok()?;
    let mut text = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let len = LessSafeKey::new(key).open_in_place(nonce, Aad::from(context), &mut text).ok()?.len();
    text.truncate(len);
    Some(text)
}

/// The key that `sender` seals a batch's shares with, from what it shares with the receiver.
fn sealing_key(pair: &Secret, sender: SiteId, batch: u32) -> Secret {
    pair.derive(b"shares\0", &[sender.as_bytes(), &batch.to_le_bytes()])
}

fn context(roster: &Roster, batch: u32, publics: &[[u8; 32]]) -> Vec<u8> {
    let mut context = roster.hash().to_vec();
    context.extend_from_slice(&batch.to_le_bytes());
    context.extend_from_slice(publics.as_flattened());
    context
}

/// Seals the shares of `sender` for one peer; the public halves are bound to them.
pub(super) fn seal_shares(
    roster: &Roster,
    pair: &Secret,
    sender: SiteId,
    batch: u32,
    publics: &[[u8; 32]],
    shares: &[RoundShares],
) -> Vec<u8> {
    let text = shares.iter().flat_map(|round| [round.self_mask, round.round_key]).flatten().collect();
    seal(&sealing_key(pair, sender, batch), &context(roster, batch, publics), text)
}

/// The shares of `sender`, one pair a round; None if it did not seal them so.
pub(super) fn open_shares(
    roster: &Roster,
    pair: &Secret,
    sender: SiteId,
    batch: u32,
    offer: &PeerOffer,
) -> Option<Vec<RoundShares>> {
    let context = context(roster, batch, &offer.publics);
    let text = open(&sealing_key(pair, sender, batch), &context, &offer.sealed)?;
    let (pairs, rest) = text.as_chunks::<64>();
    let whole = rest.is_empty() && pairs.len() == BATCH_ROUNDS as usize;
    let halves = |pair: &[u8; 64]| {
        let (self_mask, round_key) = pair.split_first_chunk::<32>()?;
        Some(RoundShares { self_mask: *self_mask, round_key: round_key.try_into().ok()? })
    };
    whole.then(|| pairs.iter().map(halves).collect())?
}

/// The seed of the mask that two sites share in a round, from the round key of one and the public half of the other.
pub(super) fn pair_seed(
    roster: &Roster,
    batch: &[u8; 32],
    round: crate::ids::RoundId,
    own: &super::keys::ExchangeKey,
    sites: (SiteId, SiteId),
    theirs: &[u8; 32],
) -> Result<Secret, BadKey> {
    let [hash, low, high] = pair_context(roster, sites.0, sites.1);
    own.agreed(theirs, b"mask\0", &[&hash, batch, &round.0.to_le_bytes(), &low, &high])
}
