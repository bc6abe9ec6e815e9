//! Lines of a ledger: how an entry is written, and how a file is read, checked and mended.

use super::balance::{Balance, LedgerRule};
use super::entry::{Body, Entry};
use super::witness::Head;
use crate::identity::{Identity, Purpose, is_signed_by, public_key_from_hex};
use crate::ids::ContentHash;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest line a reader accepts, in bytes.
const MAX_LINE_LEN: usize = 1 << 20;

/// An entry as it stands in the file: its exact text, and the signature over that text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedLine<'a> {
    #[serde(borrow)]
    entry: &'a RawValue,
    signature: String,
}

/// A finished line, with its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    text: String,
}

impl Line {
    /// The bytes to append.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    fn hash(&self) -> ContentHash {
        hash_of_line(self.text.trim_end_matches('\n'))
    }
}

fn hash_of_line(text: &str) -> ContentHash {
    ContentHash::of(text.as_bytes())
}

/// The end of a ledger, to which the next entry is fastened.
#[derive(Debug, Clone)]
pub struct Chain {
    balance: Balance,
    next_sequence: u64,
    head: ContentHash,
    public_key: Option<[u8; 32]>,
}

/// What is wrong with a ledger, and where.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("line {line} of the ledger {fault}")]
pub struct LedgerFault {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Not an entry in its one canonical form.
    #[error("is not a ledger entry")]
    Unreadable,
    /// The signature is not the site's over these bytes.
    #[error("does not carry the site's signature")]
    Signature,
    /// It does not follow the line before.
    #[error("does not follow the line before it: a line is missing, repeated or out of order")]
    Order,
    /// It is another site's.
    #[error("belongs to another site's ledger")]
    Site,
    /// It breaks a rule, such as the cap.
    #[error("breaks a rule: {0}")]
    Rule(LedgerRule),
    /// The epsilon it states is not what its entries add up to.
    #[error("states epsilon {stated}, its entries add up to {actual}")]
    Epsilon {
        /// What it says.
        stated: f64,
        /// What the accountant says.
        actual: f64,
    },
}

/// The bytes of a last line whose writing was cut off: it was not yet a promise, nothing left on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// How many bytes at the end are to be cut away.
    pub bytes: usize,
}

impl Default for Chain {
    fn default() -> Self {
        Self { balance: Balance::default(), next_sequence: 0, head: hash_of_line(""), public_key: None }
    }
}

impl Chain {
    /// What the entries add up to.
    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    /// How many entries there are; the next one's sequence number.
    pub fn len(&self) -> u64 {
        self.next_sequence
    }

    /// Whether there is no entry yet.
    pub fn is_empty(&self) -> bool {
        self.next_sequence == 0
    }

    /// How far the ledger has come.
    pub fn head(&self) -> Head {
        Head { entries: self.next_sequence, hash: self.head }
    }

    /// The Ed25519 key that signs, once the ledger is opened.
    pub fn public_key(&self) -> Option<&[u8; 32]> {
        self.public_key.as_ref()
    }

    /// Makes the next line, if the rules allow `body` to come next. Returns the chain as it is with the
    /// line, to be used once the line is on disk.
    pub fn next(
        &self,
        body: Body,
        identity: &Identity,
        time_s: u64,
    ) -> Result<(Self, Entry, Line), LedgerRule> {
        let mut chain = self.clone();
        // A clock that was set back does not turn the ledger's time back.
        let time_s = time_s.max(self.balance.time_s());
        let spent_epsilon = chain.balance.apply(self.next_sequence, time_s, &body)?;
        let (sequence, previous, site) = (self.next_sequence, self.head, identity.site());
        let entry = Entry { sequence, previous, time_s, site, body, spent_epsilon };
        let text = serde_json::to_string(&entry).expect("an entry has string keys and finite numbers");
        let signature = HEXLOWER.encode(&identity.sign(Purpose::LedgerEntry, text.as_bytes()));
        let line = Line { text: format!("{{\"entry\":{text},\"signature\":\"{signature}\"}}\n") };
        chain.next_sequence += 1;
        chain.head = line.hash();
        chain.public_key = Some(identity.public_key());
        Ok((chain, entry, line))
    }

    fn read_line(&mut self, text: &str) -> Result<Entry, Fault> {
        let signed: SignedLine<'_> = serde_json::from_str(text).map_err(|_| Fault::Unreadable)?;
        let entry: Entry = serde_json::from_str(signed.entry.get()).map_err(|_| Fault::Unreadable)?;
        let canonical = serde_json::to_string(&entry).map_err(|_| Fault::Unreadable)?;
        let rewritten = format!("{{\"entry\":{canonical},\"signature\":\"{}\"}}", signed.signature);
        if rewritten != text {
            return Err(Fault::Unreadable);
        }
        let public_key = match (&self.public_key, &entry.body) {
            (Some(known), _) => *known,
            (None, Body::Opened { public_key, .. }) => {
                public_key_from_hex(public_key).ok_or(Fault::Unreadable)?
            }
            (None, _) => return Err(Fault::Rule(LedgerRule::Opening)),
        };
        let signature = HEXLOWER.decode(signed.signature.as_bytes()).map_err(|_| Fault::Unreadable)?;
        if !is_signed_by(&public_key, Purpose::LedgerEntry, canonical.as_bytes(), &signature) {
            return Err(Fault::Signature);
        }
        if entry.site != crate::ids::SiteId::of_public_key(&public_key) {
            return Err(Fault::Site);
        }
        if (entry.sequence, entry.previous) != (self.next_sequence, self.head) {
            return Err(Fault::Order);
        }
        let actual = self.balance.apply(entry.sequence, entry.time_s, &entry.body).map_err(Fault::Rule)?;
        if (actual - entry.spent_epsilon).abs() > 1e-9 * actual.max(1.0) {
            return Err(Fault::Epsilon { stated: entry.spent_epsilon, actual });
        }
        self.next_sequence += 1;
        self.head = hash_of_line(text);
        self.public_key = Some(public_key);
        Ok(entry)
    }
}

/// Reads a whole ledger, checking every line. `each` sees every good entry in order. A last line
/// without its newline was cut off while it was written: it is reported, not believed.
pub fn read(file: &[u8], mut each: impl FnMut(&Entry)) -> Result<(Chain, Option<Torn>), LedgerFault> {
    let mut chain = Chain::default();
    let whole = file.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    for (index, line) in file[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
        let fault = |fault| LedgerFault { line: index + 1, fault };
        let text = std::str::from_utf8(&line[..line.len() - 1]).map_err(|_| fault(Fault::Unreadable))?;
        if text.len() > MAX_LINE_LEN {
            return Err(fault(Fault::Unreadable));
        }
        each(&chain.read_line(text).map_err(fault)?);
    }
    let torn = (whole < file.len()).then_some(Torn { bytes: file.len() - whole });
    Ok((chain, torn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JobId, RoundId};
    use crate::ledger::{Charge, Population, ReleaseKind};
    use crate::policy::{PolicyText, first_policy};
    use crate::privacy::accountant::GaussianEvent;
    use crate::privacy::grid::Grid;
    use crate::privacy::{ClipNorm, Delta, Epsilon, Mechanism, NoiseMultiplier, SamplingRate};
    use proptest::prelude::*;

    fn sample() -> (Vec<u8>, Identity) {
        let identity = Identity::generate().unwrap();
        let (noise_multiplier, sampling_rate) =
            (NoiseMultiplier::new(4.2).unwrap(), SamplingRate::new(1.0).unwrap());
        let charge = |steps| Charge {
            population: Population::Training,
            event: GaussianEvent { noise_multiplier, sampling_rate, steps },
        };
        let grid = Grid::new(ClipNorm::new(0.5).unwrap());
        let mechanism = Mechanism::clipped_gradient_sum(&grid, noise_multiplier);
        let job = JobId::from_bytes([3; 32]);
        let round = RoundId(0);
        let content = ContentHash::of(b"bytes");
        let bodies = [
            Body::Opened {
                public_key: HEXLOWER.encode(&identity.public_key()),
                holdout_permille: 150,
                policy: PolicyText::unsigned(first_policy(
                    Epsilon::new(8.0).unwrap(),
                    Delta::new(1e-5).unwrap(),
                )),
            },
            Body::Reserved { job, name: "spring coupons".into(), charges: vec![charge(3)] },
            Body::Debited { job, round, charge: charge(1), mechanism },
            Body::Released { job, round, kind: ReleaseKind::Update, debit: 2, content, len: 5 },
            Body::Returned { job },
        ];
        let (mut chain, mut file) = (Chain::default(), Vec::new());
        for (time, body) in bodies.into_iter().enumerate() {
            let (next, _, line) = chain.next(body, &identity, 1_000 + time as u64).unwrap();
            chain = next;
            file.extend_from_slice(line.as_bytes());
        }
        (file, identity)
    }

    #[test]
    fn a_ledger_reads_back_whole_and_its_head_is_the_writers() {
        let (file, _) = sample();
        let mut sequences = Vec::new();
        let (chain, torn) = read(&file, |entry| sequences.push(entry.sequence)).unwrap();
        assert_eq!((sequences, torn, chain.len()), (vec![0, 1, 2, 3, 4], None, 5));
    }

    #[test]
    fn a_torn_last_line_is_recognised_at_every_length() {
        let (file, _) = sample();
        let last = file[..file.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        for end in last + 1..file.len() {
            let (chain, torn) = read(&file[..end], |_| ()).unwrap();
            assert_eq!((chain.len(), torn), (4, Some(Torn { bytes: end - last })));
        }
    }

    #[test]
    fn any_flipped_bit_is_found_on_its_line() {
        let (file, _) = sample();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut bad = file.clone();
                bad[at] ^= 1 << bit;
                let line = file[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
                match read(&bad, |_| ()) {
                    Err(fault) => {
                        assert_eq!(fault.line, line, "{at} {bit}: {fault}")
                    }
                    // The last newline gone is a torn line: found as such.
                    Ok((_, torn)) => assert!(torn.is_some(), "flip of bit {bit} at {at} was not found"),
                }
            }
        }
    }

    #[test]
    fn dropped_repeated_swapped_and_foreign_lines_are_found() {
        let (file, _) = sample();
        let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
        let (other, _) = sample();
        let foreign: Vec<&[u8]> = other.split_inclusive(|byte| *byte == b'\n').collect();
        let orders: [Vec<&[u8]>; 4] = [
            vec![lines[0], lines[2]],
            vec![lines[0], lines[1], lines[1]],
            vec![lines[0], lines[2], lines[1]],
            vec![lines[0], foreign[1]],
        ];
        for order in orders {
            let fault = read(&order.concat(), |_| ()).unwrap_err();
            assert!(fault.line >= 2, "{fault}");
        }
        assert!(read(&lines[1..].concat(), |_| ()).is_err());
    }

    proptest! {
        /// A byte written over, put in or taken out, anywhere.
        #[test]
        fn any_edit_is_found_on_its_line(at in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0..3) {
            let (file, _) = sample();
            let at = at.index(file.len());
            let mut bad = file.clone();
            match how {
                0 => bad[at] = byte,
                1 => bad.insert(at, byte),
                _ => {
                    bad.remove(at);
                }
            }
            prop_assume!(bad != file);
            let line = file[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            match read(&bad, |_| ()) {
                // A second newline after a line is an empty line after it.
                Err(fault) => prop_assert!(fault.line == line || (byte == b'\n' && fault.line == line + 1)),
                Ok((_, torn)) => prop_assert!(torn.is_some()),
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes, |_| ());
        }
    }
}
