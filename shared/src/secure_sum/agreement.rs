//! One list of survivors a round: what the coordinator asks, and answers that open only if all who were asked answered
//! the same question.
//!
//! Each who is asked seals its answer with a key of its own, and says a row of pads, one for each who is asked: the pad
//! for k is the exclusive or, over the others who are asked, of a pseudorandom string of the pair for this question
//! and k; into its own pad goes its key. The pads for k of all who were asked add up to the key of k, since each pair's
//! string is in two of them. While one honest site's pads for this very question are missing, its strings with each
//! other honest site cover the keys of all.

use super::keys::Secret;
use super::masks::keystream;
use super::roster::Roster;
use crate::ids::{ContentHash, RoundId, SiteId};
use serde::{Deserialize, Serialize};

/// The coordinator's question after a round's uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The round.
    pub round: RoundId,
    /// Numbers of the sites whose masked integers are in the sum, ascending.
    pub survivors: Vec<u16>,
    /// Numbers of those who are to answer, ascending: all survivors, or those left of them.
    pub asked: Vec<u16>,
}

/// What a site tells of one other (or itself) for one round: by its type, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Of a survivor: a share of its self-mask's seed.
    SelfMask([u8; 32]),
    /// Of one whose upload is not in the sum: a share of its round key.
    RoundKey([u8; 32]),
}

/// A site's answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The round.
    pub round: RoundId,
    /// The hash of the question as the site understood it.
    pub question: [u8; 32],
    /// What it tells of each present member of its circle, sealed with its key for this answer.
    pub sealed: Vec<u8>,
    /// 32 bytes for each who is asked, in their order.
    pub pads: Vec<[u8; 32]>,
}

/// Why a question is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadQuestion {
    /// Not ascending, of sites not in the batch, or too few.
    #[error("the survivors are not enough sites of the round's batch, in order")]
    Survivors,
    /// Not ascending, not among the survivors, or too few.
    #[error("those who are to answer are not enough of the survivors, in order")]
    Asked,
    /// Some survivor's circle did not survive enough.
    #[error("a survivor would be cut off from the others")]
    CutOff,
}

impl Question {
    /// Checks it for a batch whose sites are `present`.
    pub fn check(&self, roster: &Roster, present: &[u16]) -> Result<(), BadQuestion> {
        let among = |some: &[u16], all: &[u16]| some.iter().all(|number| all.binary_search(number).is_ok());
        if !roster.is_quorum(&self.survivors) || !among(&self.survivors, present) {
            return Err(BadQuestion::Survivors);
        }
        if !roster.is_quorum(&self.asked) || !among(&self.asked, &self.survivors) {
            return Err(BadQuestion::Asked);
        }
        if !roster.graph().holds_among(&self.survivors) {
            return Err(BadQuestion::CutOff);
        }
        Ok(())
    }

    /// Names the survivors of the round: what a site answers for once and for all.
    pub fn survivors_hash(&self, batch: &[u8; 32]) -> [u8; 32] {
        hash(b"weighhouse secure sum survivors v1\0", batch, self.round, &[&self.survivors])
    }

    /// Names the whole question.
    pub fn hash(&self, batch: &[u8; 32]) -> [u8; 32] {
        hash(b"weighhouse secure sum question v1\0", batch, self.round, &[&self.survivors, &self.asked])
    }

    /// Whether `site` is among the survivors.
    pub fn survives(&self, site: u16) -> bool {
        self.survivors.binary_search(&site).is_ok()
    }
}

fn hash(label: &[u8], batch: &[u8; 32], round: RoundId, lists: &[&[u16]]) -> [u8; 32] {
    let mut bytes = [label, batch, &round.0.to_le_bytes()].concat();
    for list in lists {
        bytes.extend_from_slice(&(list.len() as u32).to_le_bytes());
        bytes.extend(list.iter().flat_map(|number| number.to_le_bytes()));
    }
    *ContentHash::of(&bytes).as_bytes()
}

/// What an answer is sealed for beside its key: the question and who answers.
pub(super) fn context(question: &[u8; 32], site: SiteId) -> Vec<u8> {
    [*question, *site.as_bytes()].concat()
}

/// The pads of one who is asked: its key `own` goes into the place `own_place`; `pairs` are the secrets that it shares
/// with each other who is asked.
pub(super) fn pads<'a>(
    question: &[u8; 32],
    asked: usize,
    pairs: impl Iterator<Item = &'a Secret>,
    own_place: usize,
    own: &Secret,
) -> Vec<[u8; 32]> {
    let mut pads = vec![[0; 32]; asked];
    let mut string = vec![0; 32 * asked];
    for pair in pairs {
        keystream(&pair.derive(b"agree\0", &[question]), &mut string);
        xor(pads.as_flattened_mut(), &string);
    }
    if let Some(pad) = pads.get_mut(own_place) {
        xor(pad, own.as_bytes());
    }
    pads
}

/// The answerers' keys, from the pads of all of them.
pub(super) fn keys<'a>(asked: usize, all: impl Iterator<Item = &'a [[u8; 32]]>) -> Vec<Secret> {
    let mut sum = vec![[0; 32]; asked];
    for pads in all {
        xor(sum.as_flattened_mut(), pads.as_flattened());
    }
    sum.into_iter().map(Secret::from_bytes).collect()
}

fn xor(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to ^= from);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three who are asked, each pair with a secret.
    fn pair(a: u8, b: u8) -> Secret {
        Secret::from_bytes([a.min(b) * 16 + a.max(b); 32])
    }

    fn said(question: &[u8; 32], who: u8, own: &Secret) -> Vec<[u8; 32]> {
        let pairs: Vec<Secret> = (0..3).filter(|other| *other != who).map(|other| pair(who, other)).collect();
        pads(question, 3, pairs.iter(), who.into(), own)
    }

    #[test]
    fn the_keys_come_out_when_all_answer_one_question_and_none_when_one_answers_another() {
        let own = [0, 1, 2].map(|byte| Secret::from_bytes([0xf0 + byte; 32]));
        let all = [0, 1, 2].map(|who| said(&[1; 32], who, &own[usize::from(who)]));
        assert_eq!(keys(3, all.iter().map(Vec::as_slice)), own);
        let other = said(&[2; 32], 2, &own[2]);
        let split = keys(3, [&all[0], &all[1], &other].into_iter().map(Vec::as_slice));
        let missing = keys(3, [&all[0], &all[1]].into_iter().map(Vec::as_slice));
        for place in 0..3 {
            assert!(split[place] != own[place] && missing[place] != own[place]);
        }
    }

    #[test]
    fn lists_of_other_lengths_are_other_questions() {
        let question = |survivors: &[u16], asked: &[u16]| {
            let question =
                Question { round: RoundId(1), survivors: survivors.to_vec(), asked: asked.to_vec() };
            (question.survivors_hash(&[0; 32]), question.hash(&[0; 32]))
        };
        let (first, second) = (question(&[1, 2, 3], &[1]), question(&[1, 2], &[3, 1]));
        assert!(first.0 != second.0 && first.1 != second.1);
        assert_eq!(question(&[1, 2], &[1]).0, question(&[1, 2], &[2]).0);
    }
}
