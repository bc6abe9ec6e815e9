//! Witnesses: what makes a ledger that was set back be found out. A site tells the coordinator, signed, how
//! far its ledger has come ([`Head`]); the coordinator keeps it, and answers with its own signature
//! ([`Witness`]), which also names what it received for that round. A ledger that is shorter than a witness says, or has
//! another line there, was set back or rewritten; something received that no entry paid for left unpaid.
//!
//! A head depends on entries only: on times, contracts and the hashes of noised bytes. It says nothing
//! about records that was not released.

use super::entry::{Body, Entry, ReleaseKind};
use crate::identity::{Identity, Purpose, is_signed_by};
use crate::ids::{ContentHash, JobId, RoundId, SiteId};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far a site's ledger has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Entries in it.
    pub entries: u64,
    /// Hash of the last line.
    pub hash: ContentHash,
}

impl Head {
    fn signed_bytes(&self, site: &SiteId) -> Vec<u8> {
        [site.as_bytes().as_slice(), &self.entries.to_le_bytes(), self.hash.as_bytes()].concat()
    }

    /// The site's signature of this head of its ledger; 64 bytes.
    pub fn sign(&self, identity: &Identity) -> [u8; 64] {
        identity.sign(Purpose::LedgerHead, &self.signed_bytes(&identity.site()))
    }

    /// Whether the holder of `public_key`, which is a site's, signed this head of its ledger.
    pub fn is_signed_by(&self, public_key: &[u8; 32], signature: &[u8]) -> bool {
        let site = SiteId::of_public_key(public_key);
        is_signed_by(public_key, Purpose::LedgerHead, &self.signed_bytes(&site), signature)
    }
}

/// Something that reached the coordinator from a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Received {
    /// The job it was for.
    pub job: JobId,
    /// Its round.
    pub round: RoundId,
    /// What it is.
    pub kind: ReleaseKind,
    /// Hash of the bytes.
    pub content: ContentHash,
    /// How many they are.
    pub len: u64,
}

/// What the coordinator saw of one site's ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Whose ledger.
    pub site: SiteId,
    /// How far it had come, by the site's own signature.
    pub head: Head,
    /// When, in seconds since 1970 by the coordinator's clock.
    pub time_s: u64,
    /// What came with it, if anything did.
    pub received: Vec<Received>,
}

/// A witness as it stands in a file and travels: the coordinator's signature over its JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedWitness {
    /// What was seen.
    pub witness: Witness,
    /// The coordinator's Ed25519 signature, 64 bytes in hexadecimal.
    pub signature: String,
}

impl SignedWitness {
    /// Signs with the coordinator's key.
    pub fn sign(witness: Witness, coordinator: &Identity) -> Self {
        let signature = HEXLOWER.encode(&coordinator.sign(Purpose::LedgerWitness, &text(&witness)));
        Self { witness, signature }
    }

    /// Whether the coordinator with this Ed25519 public key signed it.
    pub fn is_signed_by(&self, public_key: &[u8; 32]) -> bool {
        let signature = HEXLOWER.decode(self.signature.as_bytes()).unwrap_or_default();
        is_signed_by(public_key, Purpose::LedgerWitness, &text(&self.witness), &signature)
    }

    /// The line of a witness file, with its newline.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a witness has string keys and whole numbers") + "\n"
    }
}

fn text(witness: &Witness) -> Vec<u8> {
    serde_json::to_vec(witness).expect("a witness has string keys and whole numbers")
}

/// How a ledger and a witness contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WitnessFault {
    /// The witness is not one, or not signed by the coordinator.
    #[error("line {line} of the witnesses is not signed by the coordinator")]
    Signature {
        /// Counted from 1.
        line: usize,
    },
    /// It is about another site's ledger.
    #[error("line {line} of the witnesses is about another site")]
    Site {
        /// Counted from 1.
        line: usize,
    },
    /// The ledger is an older copy.
    #[error(
        "the ledger has {entries} entries, the coordinator saw {witnessed}: it is an older copy, and what was spent \
         since is missing"
    )]
    SetBack {
        /// What the ledger has.
        entries: u64,
        /// What was seen.
        witnessed: u64,
    },
    /// The ledger has other entries than were seen.
    #[error("line {entry} of the ledger is not the one that the coordinator saw: the ledger was rewritten")]
    Rewritten {
        /// The last entry seen, counted from 1.
        entry: u64,
    },
    /// Something left that no entry released.
    #[error(
        "{len} bytes with hash {content} reached the coordinator for job {} round {}, and no entry released them",
        job.short(), round.0
    )]
    Unpaid {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
        /// Hash of the bytes.
        content: ContentHash,
        /// How many they were.
        len: u64,
    },
}

/// A ledger's lines and releases, to hold witnesses against.
#[derive(Debug, Clone, Default)]
pub struct Trail {
    heads: Vec<ContentHash>,
    released: BTreeMap<(JobId, RoundId, ReleaseKind), Vec<(ContentHash, u64)>>,
}

impl Trail {
    /// Takes the next entry of a checked ledger, which fixes the hash of the line before it.
    pub fn note(&mut self, entry: &Entry) {
        if let Some(before) = entry.sequence.checked_sub(1) {
            // A trail that was ended and goes on has that hash already.
            self.heads.truncate(before as usize);
            self.heads.push(entry.previous);
        }
        if let Body::Released { job, round, kind, content, len, .. } = &entry.body {
            self.released.entry((*job, *round, *kind)).or_default().push((*content, *len));
        }
    }

    /// Takes the hash of the last line, after the last entry; more entries may follow later.
    pub fn end(&mut self, head: ContentHash) {
        self.heads.push(head);
    }

    /// Hash and length of everything that was released.
    pub fn released(&self) -> impl Iterator<Item = (ContentHash, u64)> {
        self.released.values().flatten().copied()
    }

    /// Whether exactly these bytes were released as `kind` for the round.
    pub fn has_released(
        &self,
        (job, round, kind): (JobId, RoundId, ReleaseKind),
        content: ContentHash,
        len: u64,
    ) -> bool {
        self.released.get(&(job, round, kind)).is_some_and(|released| released.contains(&(content, len)))
    }

    /// Compares one witness, from `line` of its file, with the ledger of `site`.
    pub fn check(&self, site: SiteId, witness: &Witness, line: usize) -> Result<(), WitnessFault> {
        if witness.site != site {
            return Err(WitnessFault::Site { line });
        }
        let (entries, witnessed) = (self.heads.len() as u64, witness.head.entries);
        if witnessed > entries {
            return Err(WitnessFault::SetBack { entries, witnessed });
        }
        let seen = witnessed.checked_sub(1).map(|last| self.heads[last as usize]);
        if seen.is_some_and(|hash| hash != witness.head.hash) {
            return Err(WitnessFault::Rewritten { entry: witnessed });
        }
        let unpaid = witness.received.iter().find(|received| {
            let what = (received.job, received.round, received.kind);
            !self.has_released(what, received.content, received.len)
        });
        match unpaid {
            Some(Received { job, round, content, len, .. }) => {
                Err(WitnessFault::Unpaid { job: *job, round: *round, content: *content, len: *len })
            }
            None => Ok(()),
        }
    }
}

/// The longest line of a witness file, in bytes.
pub const MAX_WITNESS_LEN: usize = 1 << 16;

/// The lines of a witness file, with their numbers counted from 1. A last line without its newline was cut off while
/// it was written: it is no witness, and no fault.
pub fn read_witnesses(
    lines: &[u8],
    public_key: &[u8; 32],
) -> impl Iterator<Item = Result<(usize, Witness), WitnessFault>> {
    let whole = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    lines[..whole].split_inclusive(|byte| *byte == b'\n').enumerate().map(move |(index, text)| {
        let line = index + 1;
        let signed =
            (text.len() <= MAX_WITNESS_LEN).then(|| serde_json::from_slice::<SignedWitness>(text).ok());
        match signed.flatten() {
            Some(signed) if signed.is_signed_by(public_key) => Ok((line, signed.witness)),
            _ => Err(WitnessFault::Signature { line }),
        }
    })
}

/// Holds all witnesses of a file against the ledger of `site`. `lines` has one [`SignedWitness`] as JSON a line, signed
/// by the coordinator with this Ed25519 `public_key`
/// ([`verified_coordinator_key`](crate::tls::verified_coordinator_key)); `trail` is that of the checked ledger. Returns
/// how many there are, none of which contradicts it.
pub fn check_witnesses(
    lines: &[u8],
    public_key: &[u8; 32],
    trail: &Trail,
    site: SiteId,
) -> Result<usize, WitnessFault> {
    read_witnesses(lines, public_key).try_fold(0, |count, read| {
        let (line, witness) = read?;
        trail.check(site, &witness, line)?;
        Ok(count + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64, body: Body) -> Entry {
        let previous = ContentHash::of(&sequence.to_le_bytes());
        let site = SiteId::of_public_key(&[0; 32]);
        Entry { sequence, previous, time_s: 0, site, body, spent_epsilon: 0.0 }
    }

    const JOB: JobId = JobId::from_bytes([1; 32]);

    /// Three entries, the second of which released `paid`; the hash of line n is that of n as bytes.
    fn trail() -> Trail {
        let (round, kind, content) = (RoundId(0), ReleaseKind::Update, ContentHash::of(b"paid"));
        let released = Body::Released { job: JOB, round, kind, debit: 0, content, len: 4 };
        let mut trail = Trail::default();
        for (sequence, body) in
            [Body::Returned { job: JOB }, released, Body::Returned { job: JOB }].into_iter().enumerate()
        {
            trail.note(&entry(sequence as u64, body));
            trail.end(ContentHash::of(&(sequence as u64 + 1).to_le_bytes()));
        }
        trail
    }

    fn witness(entries: u64, received: &[&[u8]]) -> Witness {
        let received = received.iter().map(|bytes| Received {
            job: JOB,
            round: RoundId(0),
            kind: ReleaseKind::Update,
            content: ContentHash::of(bytes),
            len: bytes.len() as u64,
        });
        Witness {
            site: SiteId::of_public_key(&[0; 32]),
            head: Head { entries, hash: ContentHash::of(&entries.to_le_bytes()) },
            time_s: 7,
            received: received.collect(),
        }
    }

    #[test]
    fn a_ledger_set_back_rewritten_or_bypassed_contradicts_its_witness() {
        let trail = trail();
        let site = SiteId::of_public_key(&[0; 32]);
        let check = |witness: &Witness| trail.check(site, witness, 1);
        for entries in 1..=3 {
            assert_eq!(check(&witness(entries, &[b"paid"])), Ok(()));
        }
        assert_eq!(check(&witness(4, &[])), Err(WitnessFault::SetBack { entries: 3, witnessed: 4 }));
        let mut rewritten = witness(2, &[]);
        rewritten.head.hash = ContentHash::of(b"another line");
        assert_eq!(check(&rewritten), Err(WitnessFault::Rewritten { entry: 2 }));
        assert!(matches!(check(&witness(3, &[b"paid", b"free"])), Err(WitnessFault::Unpaid { len: 4, .. })));
        let other = Witness { site: SiteId::of_public_key(&[1; 32]), ..witness(1, &[]) };
        assert_eq!(check(&other), Err(WitnessFault::Site { line: 1 }));
    }

    #[test]
    fn a_file_of_witnesses_holds_line_by_line_and_a_cut_off_last_line_is_none() {
        let (coordinator, site) = (Identity::generate().unwrap(), SiteId::of_public_key(&[0; 32]));
        let line = |entries, received: &[&[u8]]| {
            SignedWitness::sign(witness(entries, received), &coordinator).to_line()
        };
        let check = |file: &[u8]| check_witnesses(file, &coordinator.public_key(), &trail(), site);
        let good = line(1, &[]) + &line(3, &[b"paid"]);
        let last = line(1, &[]).len();
        assert_eq!((check(b""), check(good.as_bytes())), (Ok(0), Ok(2)));
        for end in last..good.len() {
            assert_eq!(check(&good.as_bytes()[..end]), Ok(1));
        }
        let set_back = Err(WitnessFault::SetBack { entries: 3, witnessed: 9 });
        assert_eq!(check((good.clone() + &line(9, &[])).as_bytes()), set_back);
        assert_eq!(check((good.clone() + "\n").as_bytes()), Err(WitnessFault::Signature { line: 3 }));
        let stranger = Identity::generate().unwrap().public_key();
        let by_another = check_witnesses(good.as_bytes(), &stranger, &trail(), site);
        assert_eq!(by_another, Err(WitnessFault::Signature { line: 1 }));
    }

    #[test]
    fn signatures_bind_site_head_and_witness() {
        let (site, coordinator) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let head = witness(2, &[]).head;
        let signature = head.sign(&site);
        assert!(head.is_signed_by(&site.public_key(), &signature));
        assert!(!head.is_signed_by(&coordinator.public_key(), &signature));
        assert!(!Head { entries: 3, ..head }.is_signed_by(&site.public_key(), &signature));

        let signed = SignedWitness::sign(witness(2, &[b"paid"]), &coordinator);
        let read: SignedWitness = serde_json::from_str(&signed.to_line()).unwrap();
        assert!(read.is_signed_by(&coordinator.public_key()) && !read.is_signed_by(&site.public_key()));
        let mut changed = read;
        changed.witness.received.clear();
        assert!(!changed.is_signed_by(&coordinator.public_key()));
    }
}
