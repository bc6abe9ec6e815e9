//! What a site sent becomes an [`AdmittedUpdate`] or a labelled refusal, which is an [`Outcome`].
//!
//! The checks, in order: rate ([`FaultRate`]), size and shape, round, replay and base model version, all before the
//! body is read; then, as it arrives, finiteness, range and the hash that the sender gave; at last that the ledger's
//! head came first and that its debit is the contract's charge. Memory stays bounded however long an update is.

use crate::spool::{Spool, SpoolFile};
use std::cmp::Ordering;
use std::io;
use std::sync::Arc;
use weighhouse_shared::compression::{Compression, Decoder, Encoding, Malformed};
use weighhouse_shared::ids::{ContentHash, ContentHasher, JobId, RoundId};
use weighhouse_shared::job::UPDATE_LIMIT;
use weighhouse_shared::model::vectorised;
use weighhouse_shared::wire::messages::{Holding, Outcome};
use weighhouse_shared::wire::stream::Piece;

/// Updates up to this many bytes wait in memory, longer ones in a file.
const MEMORY_LEN: u64 = 4 << 20;

/// Faulty contributions of one site that are read one right after the other.
pub const MAX_FAULTS: u64 = 10;

/// Milliseconds after which one more is.
pub const FAULT_PAUSE_MS: u64 = 6_000;

/// How often a site was at fault lately: at most [`MAX_FAULTS`] contributions that are refused for a fault are read at
/// once, and one more every [`FAULT_PAUSE_MS`]. Until then nothing of the site is read. Contributions that
/// count, however many, do not count against it. Pure: times are milliseconds of any steady clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultRate {
    /// When all faults so far are forgotten.
    clear_at: u64,
}

impl FaultRate {
    /// Whether nothing of the site is read at `now`.
    pub fn is_exceeded(self, now: u64) -> bool {
        self.clear_at.saturating_sub(now) > (MAX_FAULTS - 1) * FAULT_PAUSE_MS
    }

    /// The site was at fault at `now`.
    pub fn note(&mut self, now: u64) {
        self.clear_at = self.clear_at.max(now) + FAULT_PAUSE_MS;
    }
}

/// What an update of a job is: public constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// As bytes.
    pub encoding: Encoding,
    /// Masked for a secure sum: every integer is as likely as any other.
    pub masked: bool,
}

impl From<Encoding> for Expected {
    fn from(encoding: Encoding) -> Self {
        Self { encoding, masked: false }
    }
}

/// Where the body of an arriving update waits for its end.
#[derive(Debug)]
enum Body {
    Memory(Vec<u8>),
    File(SpoolFile),
}

/// An update that is still arriving.
#[derive(Debug)]
pub struct Arriving {
    first: Piece,
    received: u64,
    hasher: Hashing,
    values: Values,
}

/// The integers of an update as its bytes come: decoded, checked, kept.
#[derive(Debug)]
struct Values {
    fault: Option<Outcome>,
    masked: bool,
    /// For updates that are compressed.
    decoder: Option<Decoder>,
    body: Body,
    /// Bytes of a value that was cut by the end of a chunk.
    carry: Vec<u8>,
}

/// A hasher that can be shown in `Debug`.
struct Hashing(ContentHasher);

impl std::fmt::Debug for Hashing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContentHasher")
    }
}

/// An update that is whole, has the contract's length and only values in range.
#[derive(Debug)]
pub struct ParsedUpdate {
    /// The job it is for.
    pub job: JobId,
    /// The round it is for.
    pub round: RoundId,
    /// The model it was trained from.
    pub base: ContentHash,
    /// Hash of its bytes.
    pub content: ContentHash,
    /// How many they are, as they came.
    pub len: u64,
    /// 32-bit integers.
    body: Body,
}

/// Whether an update of `len` bytes can be one of a job whose updates have `expected`.
pub fn check_len(len: u64, expected: u64) -> Result<(), Outcome> {
    match len.cmp(&expected) {
        Ordering::Less => Err(Outcome::WrongShape),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(Outcome::TooLong),
    }
}

impl Arriving {
    /// Begins with the first piece of what is `expected`; what is kept is the 32-bit integers, in a file of `spool` if
    /// they are long.
    pub fn begin(
        first: Piece,
        expected: impl Into<Expected>,
        spool: &Arc<Spool>,
    ) -> io::Result<Result<Self, Outcome>> {
        let expected = expected.into();
        if let Err(outcome) = check_len(first.total, expected.encoding.len()) {
            return Ok(Err(outcome));
        }
        if first.offset != 0 {
            return Ok(Err(Outcome::Corrupt));
        }
        let hasher = Hashing(ContentHasher::default());
        Ok(Ok(Self { first, received: 0, hasher, values: Values::new(expected, spool)? }))
    }

    /// Whether `piece` is the next one.
    pub fn continues_with(&self, piece: &Piece) -> bool {
        let Piece { job, round, base, content, total, offset, .. } = *piece;
        let first = &self.first;
        (job, round, base, content, total, offset)
            == (first.job, first.round, first.base, first.content, first.total, self.received)
    }

    /// How much of it is here.
    pub fn holding(&self) -> Holding {
        let Piece { job, round, content, .. } = self.first;
        Holding { job, round, content, received: self.received }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.0.update(bytes);
        self.received += bytes.len() as u64;
        self.values.push(bytes)
    }

    /// Whether all bytes are there.
    pub fn is_complete(&self) -> bool {
        self.received >= self.first.total
    }

    /// The update, or why it is none.
    pub fn finish(self) -> io::Result<Result<ParsedUpdate, Outcome>> {
        let Self { first, received, hasher, mut values } = self;
        values.end()?;
        if received != first.total || !values.carry.is_empty() || hasher.0.finish() != first.content {
            return Ok(Err(Outcome::Corrupt));
        }
        if let Some(fault) = values.fault {
            return Ok(Err(fault));
        }
        let Piece { job, round, base, content, total: len, .. } = first;
        Ok(Ok(ParsedUpdate { job, round, base, content, len, body: values.body }))
    }
}

impl Values {
    /// None yet, of an update that is `expected` to be so.
    fn new(expected: Expected, spool: &Arc<Spool>) -> io::Result<Self> {
        let Expected { encoding: Encoding { compression, parameters }, masked } = expected;
        let decoder = (compression != Compression::None).then(|| Decoder::new(compression, parameters));
        let len = 4 * parameters;
        let body = if len <= MEMORY_LEN {
            Body::Memory(Vec::with_capacity(len as usize))
        } else {
            Body::File(spool.file()?)
        };
        Ok(Self { fault: None, masked, decoder, body, carry: Vec::new() })
    }

    /// Takes the next bytes.
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(mut decoder) = self.decoder.take() else { return self.keep(bytes) };
        // Bytes that stand for nothing are hashed to their end, so that damage on the way shows as such.
        if self.fault != Some(Outcome::WrongShape) {
            let decoded = decoder.push(bytes, |values| Ok(self.keep(values)?));
            self.judge(decoded)?;
        }
        self.decoder = Some(decoder);
        Ok(())
    }

    /// Checks integers and keeps them.
    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.check_range(bytes);
        match &mut self.body {
            Body::Memory(body) => body.extend_from_slice(bytes),
            Body::File(file) => file.write(bytes)?,
        }
        Ok(())
    }

    fn judge(&mut self, decoded: Result<(), Undecoded>) -> io::Result<()> {
        match decoded {
            Ok(()) => {}
            Err(Undecoded::Malformed(_)) => self.fault = Some(Outcome::WrongShape),
            Err(Undecoded::Disk(error)) => return Err(error),
        }
        Ok(())
    }

    fn check_range(&mut self, mut bytes: &[u8]) {
        if !self.carry.is_empty() {
            let missing = (4 - self.carry.len()).min(bytes.len());
            self.carry.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            let Ok(value) = <[u8; 4]>::try_from(self.carry.as_slice()) else { return };
            self.fault = self.fault.max(fault_of(&[value], self.limit()));
            self.carry.clear();
        }
        let (values, rest) = bytes.as_chunks::<4>();
        self.fault = self.fault.max(fault_of(values, self.limit()));
        self.carry.extend_from_slice(rest);
    }

    /// Largest magnitude of a value. A masked one may be any.
    fn limit(&self) -> u32 {
        if self.masked { u32::MAX } else { UPDATE_LIMIT as u32 }
    }

    /// There are no more bytes.
    fn end(&mut self) -> io::Result<()> {
        if let (Some(decoder), None) = (self.decoder.take(), self.fault) {
            let decoded = decoder.finish(|values| Ok(self.keep(values)?));
            self.judge(decoded)?;
        }
        Ok(())
    }
}

/// What is wrong with `values`, 32-bit little-endian integers, if one of them is of a magnitude past `limit`.
fn fault_of(values: &[[u8; 4]], limit: u32) -> Option<Outcome> {
    let in_range = |value: &[u8; 4]| i32::from_le_bytes(*value).unsigned_abs() <= limit;
    // Without an early end, so that the loop is one pass of wide comparisons.
    let all_in_range = vectorised(
        #[inline(always)]
        || values.iter().fold(true, |all, value| all & in_range(value)),
    );
    if all_in_range {
        return None;
    }
    let mut out = values.iter().filter(|value| !in_range(value));
    let finite = out.all(|value| f32::from_le_bytes(*value).is_finite());
    Some(if finite { Outcome::OutOfRange } else { Outcome::NotFinite })
}

/// Why compressed bytes did not become integers that are kept.
enum Undecoded {
    Malformed(Malformed),
    Disk(io::Error),
}

impl From<Malformed> for Undecoded {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<io::Error> for Undecoded {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// An update that counts: its round is open, its site is expected and has not contributed yet.
#[derive(Debug)]
pub struct AdmittedUpdate {
    /// Hash of its bytes: what orders a round's updates, whichever came first.
    pub content: ContentHash,
    body: Body,
}

impl ParsedUpdate {
    /// Admits the update if the round says so: `verdict` is the round's answer for its site, round and base.
    pub fn admit(self, verdict: Result<(), Outcome>) -> Result<AdmittedUpdate, Outcome> {
        verdict.map(|()| AdmittedUpdate { content: self.content, body: self.body })
    }
}

impl AdmittedUpdate {
    /// The update of simulated site `number`: `bytes` that were made in this process and did not travel. Their shape and
    /// range are checked as of those that did; there is no sender's hash to hold them to, and the site's number orders a
    /// round's updates in its place. Bytes that are not compressed stay where they are.
    pub fn simulated(
        number: u64,
        bytes: Vec<u8>,
        encoding: Encoding,
        spool: &Arc<Spool>,
    ) -> io::Result<Result<Self, Outcome>> {
        if let Err(outcome) = check_len(bytes.len() as u64, encoding.len()) {
            return Ok(Err(outcome));
        }
        let (fault, body) = match encoding.compression {
            Compression::None => {
                (fault_of(bytes.as_chunks::<4>().0, UPDATE_LIMIT as u32), Body::Memory(bytes))
            }
            _ => {
                let mut values = Values::new(encoding.into(), spool)?;
                values.push(&bytes)?;
                values.end()?;
                (values.fault, values.body)
            }
        };
        if let Some(fault) = fault {
            return Ok(Err(fault));
        }
        let mut content = [0; 32];
        content[..8].copy_from_slice(&number.to_be_bytes());
        Ok(Ok(Self { content: ContentHash::from_bytes(content), body }))
    }

    /// What a group's opened sum comes to, made in this process: 32-bit integers in range by construction. Their hash orders
    /// a round's updates.
    pub(crate) fn of_group(bytes: Vec<u8>) -> Self {
        Self { content: ContentHash::of(&bytes), body: Body::Memory(bytes) }
    }

    /// The memory of the body, if it is there.
    pub fn into_memory(self) -> Vec<u8> {
        match self.body {
            Body::Memory(body) => body,
            Body::File(_) => Vec::new(),
        }
    }

    /// Hands the body over from its beginning, in parts of whole values.
    pub fn read(&mut self, mut part: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match &mut self.body {
            Body::Memory(body) => part(body),
            Body::File(file) => file.read(part),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_simulated_update_is_checked_as_one_that_travelled_and_ordered_by_its_site() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path().into());
        let encoding = Encoding { compression: Compression::None, parameters: 3 };
        let simulated = |number, values: &[i32]| {
            AdmittedUpdate::simulated(number, bytes(values), encoding, &spool).unwrap()
        };
        let mut first = simulated(1, &[1, -2, 3]).unwrap();
        assert_eq!(read(&mut first), bytes(&[1, -2, 3]));
        assert!(first.content < simulated(256, &[0; 3]).unwrap().content);
        assert_eq!(simulated(1, &[1, 2]).unwrap_err(), Outcome::WrongShape);
        assert_eq!(simulated(1, &[1; 4]).unwrap_err(), Outcome::TooLong);
        assert_eq!(simulated(1, &[0, UPDATE_LIMIT + 1, 0]).unwrap_err(), Outcome::OutOfRange);
    }

    fn piece(body: &[u8]) -> Piece {
        Piece {
            job: JobId::from_bytes([1; 32]),
            round: RoundId(0),
            base: ContentHash::of(b"model"),
            content: ContentHash::of(body),
            total: body.len() as u64,
            offset: 0,
            len: body.len() as u32,
        }
    }

    /// What a file of the spool holds, as if it had been parsed.
    pub fn admitted_file(file: SpoolFile) -> AdmittedUpdate {
        AdmittedUpdate { content: ContentHash::of(b"a file"), body: Body::File(file) }
    }

    fn bytes(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn parse(piece: Piece, body: &[u8], chunk: usize) -> Result<ParsedUpdate, Outcome> {
        let folder = tempfile::tempdir().unwrap();
        parse_in(&Spool::new(folder.path().into()), piece, body, chunk)
    }

    fn read(update: &mut AdmittedUpdate) -> Vec<u8> {
        let mut read = Vec::new();
        let append = |part: &[u8]| {
            read.extend_from_slice(part);
            Ok(())
        };
        update.read(append).unwrap();
        read
    }

    fn parse_in(
        spool: &Arc<Spool>,
        piece: Piece,
        body: &[u8],
        chunk: usize,
    ) -> Result<ParsedUpdate, Outcome> {
        let parameters = (body.len() / 4) as u64;
        parse_as(Encoding { compression: Compression::None, parameters }, spool, piece, body, chunk)
    }

    fn parse_as(
        encoding: Encoding,
        spool: &Arc<Spool>,
        piece: Piece,
        body: &[u8],
        chunk: usize,
    ) -> Result<ParsedUpdate, Outcome> {
        let mut arriving = Arriving::begin(piece, encoding, spool).unwrap()?;
        for part in body.chunks(chunk) {
            arriving.push(part).unwrap();
        }
        arriving.finish().unwrap()
    }

    /// A job of three values, of which one is sent: eight bytes, place and value.
    #[test]
    fn a_compressed_update_is_kept_as_integers_and_each_way_to_be_wrong_has_its_label() {
        let spool = Spool::new("".into());
        let encoding = Encoding { compression: Compression::TopK { share: 0.2 }, parameters: 3 };
        let sent = |at: i32, value: i32| {
            let body = bytes(&[at, value]);
            parse_as(encoding, &spool, piece(&body), &body, 3).map(|update| update.admit(Ok(())).unwrap())
        };
        assert_eq!(read(&mut sent(1, -7).unwrap()), bytes(&[0, -7, 0]));
        assert_eq!(sent(3, 1).unwrap_err(), Outcome::WrongShape);
        assert_eq!(sent(-1, 1).unwrap_err(), Outcome::WrongShape);
        assert_eq!(sent(0, UPDATE_LIMIT + 1).unwrap_err(), Outcome::OutOfRange);
        // A step that makes any level too large.
        let encoding = Encoding { compression: Compression::Int8, parameters: 1 };
        let levels = |step: u32, level: u8| {
            let body = [&step.to_le_bytes()[..], &[level]].concat();
            parse_as(encoding, &spool, piece(&body), &body, 2)
        };
        assert!(levels(UPDATE_LIMIT as u32, 1).is_ok());
        assert_eq!(levels(UPDATE_LIMIT as u32, 2).unwrap_err(), Outcome::OutOfRange);
        assert!(matches!(levels(u32::MAX, 0x80).unwrap_err(), Outcome::OutOfRange));
        assert!(levels(u32::MAX, 127).is_err());
    }

    #[test]
    fn a_long_update_reads_back_from_its_file() {
        let body = bytes(&(0..1_500_000).collect::<Vec<i32>>());
        let mut update = parse(piece(&body), &body, 65_000).unwrap().admit(Ok(())).unwrap();
        for _ in 0..2 {
            assert_eq!(read(&mut update), body);
        }
    }

    #[test]
    fn a_spool_file_that_held_a_longer_update_gives_back_the_shorter_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path().into());
        for parameters in [1_500_000, 1_200_000] {
            let body = bytes(&(0..parameters).map(|value| value + parameters).collect::<Vec<i32>>());
            let mut update = parse_in(&spool, piece(&body), &body, 65_000).unwrap().admit(Ok(())).unwrap();
            assert_eq!(spool.spare_files(), 0);
            assert_eq!(read(&mut update), body);
            drop(update);
            assert_eq!(spool.spare_files(), 1);
        }
        let body = bytes(&[0; 1_200_000]);
        let refused =
            parse_in(&spool, Piece { content: ContentHash::of(b""), ..piece(&body) }, &body, 65_000);
        assert_eq!(refused.unwrap_err(), Outcome::Corrupt);
        assert_eq!(spool.spare_files(), 1);
        spool.clear();
        assert_eq!(spool.spare_files(), 0);
    }

    #[test]
    fn values_out_of_range_wrong_hashes_and_wrong_lengths_are_refused() {
        let limit = UPDATE_LIMIT;
        // The last is the largest integer whose bits are those of a finite float.
        for bad in [limit + 1, -limit - 1, i32::MIN, 0x7f7f_ffff] {
            let body = bytes(&[0, bad, 0]);
            assert_eq!(parse(piece(&body), &body, 5).unwrap_err(), Outcome::OutOfRange);
        }
        let body = bytes(&[limit, -limit]);
        assert!(parse(piece(&body), &body, 3).is_ok());
        let other = Piece { content: ContentHash::of(b"other"), ..piece(&body) };
        assert_eq!(parse(other, &body, 8).unwrap_err(), Outcome::Corrupt);
        let longer = Piece { total: 12, ..piece(&body) };
        assert_eq!(parse(longer, &body, 8).unwrap_err(), Outcome::TooLong);
        let shorter = Piece { total: 4, ..piece(&body) };
        assert_eq!(parse(shorter, &body, 8).unwrap_err(), Outcome::WrongShape);
        let tail = Piece { offset: 4, ..piece(&body) };
        assert_eq!(parse(tail, &body, 8).unwrap_err(), Outcome::Corrupt);
    }

    /// A site that sends its floats as they are. A negative one that is no number reads as a small integer, and is as
    /// harmless as any other.
    #[test]
    fn floats_that_are_no_finite_numbers_are_refused_as_that() {
        for bad in [f32::NAN, f32::INFINITY, f32::from_bits(0x7f80_0001)] {
            for before in [0, 1, 3] {
                let mut body = bytes(&vec![i32::MAX / 2 + 7; before]);
                body.extend(bad.to_le_bytes());
                assert_eq!(parse(piece(&body), &body, 5).unwrap_err(), Outcome::NotFinite, "{bad}");
            }
        }
        let body = (-f32::NAN).to_le_bytes();
        assert!(parse(piece(&body), &body, 4).is_ok());
    }

    #[test]
    fn a_site_at_fault_again_and_again_is_not_read_for_a_while() {
        let mut rate = FaultRate::default();
        for _ in 0..MAX_FAULTS {
            assert!(!rate.is_exceeded(1000));
            rate.note(1000);
        }
        assert!(rate.is_exceeded(1000));
        assert!(rate.is_exceeded(999 + FAULT_PAUSE_MS));
        assert!(!rate.is_exceeded(1000 + FAULT_PAUSE_MS));
        rate.note(1000 + FAULT_PAUSE_MS);
        assert!(rate.is_exceeded(1000 + FAULT_PAUSE_MS));
        assert!(!rate.is_exceeded(1000 + 20 * FAULT_PAUSE_MS));
    }

    proptest! {
        #[test]
        fn the_range_check_does_not_depend_on_how_bytes_are_cut(
            values in proptest::collection::vec(any::<i32>(), 1..40),
            chunk in 1usize..20,
        ) {
            let body = bytes(&values);
            let all = values.iter().all(|value| value.unsigned_abs() <= UPDATE_LIMIT as u32);
            prop_assert_eq!(parse(piece(&body), &body, chunk).is_ok(), all);
        }
    }
}
