//! What a site sent becomes an [`AdmittedUpdate`] or a labelled refusal. Updates are parsed as they
//! arrive: length, range and hash are known before the round is asked, and memory stays bounded however
//! long an update is.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use weighhouse_shared::ids::{ContentHash, ContentHasher, JobId, RoundId};
use weighhouse_shared::job::UPDATE_LIMIT;
use weighhouse_shared::wire::messages::Outcome;
use weighhouse_shared::wire::stream::Piece;

/// Updates up to this many bytes wait in memory, longer ones in a file.
const MEMORY_LEN: u64 = 4 << 20;

/// Where the body of an arriving update waits for its end.
#[derive(Debug)]
enum Spool {
    Memory(Vec<u8>),
    File(File),
}

/// An update that is still arriving.
#[derive(Debug)]
pub struct Arriving {
    first: Piece,
    received: u64,
    hasher: Hashing,
    in_range: bool,
    spool: Spool,
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
    /// How many they are.
    pub len: u64,
    body: Spool,
}

impl Arriving {
    /// Begins with the first piece. `expected_len` is the length of the job's updates; a longer body is
    /// kept in a nameless file in `folder`.
    pub fn begin(first: Piece, expected_len: u64, folder: &Path) -> io::Result<Result<Self, Outcome>> {
        if first.total != expected_len || first.offset != 0 {
            return Ok(Err(Outcome::WrongShape));
        }
        let spool = if first.total <= MEMORY_LEN {
            Spool::Memory(Vec::with_capacity(first.total as usize))
        } else {
            Spool::File(tempfile::tempfile_in(folder)?)
        };
        let hasher = Hashing(ContentHasher::default());
        Ok(Ok(Self { first, received: 0, hasher, in_range: true, spool, carry: Vec::new() }))
    }

    /// Whether `piece` is the next one.
    pub fn continues_with(&self, piece: &Piece) -> bool {
        let Piece { job, round, base, content, total, offset, .. } = *piece;
        let first = &self.first;
        (job, round, base, content, total, offset)
            == (first.job, first.round, first.base, first.content, first.total, self.received)
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.0.update(bytes);
        self.received += bytes.len() as u64;
        self.check_range(bytes);
        match &mut self.spool {
            Spool::Memory(body) => body.extend_from_slice(bytes),
            Spool::File(file) => file.write_all(bytes)?,
        }
        Ok(())
    }

    fn check_range(&mut self, mut bytes: &[u8]) {
        let in_range = |value: [u8; 4]| i32::from_le_bytes(value).unsigned_abs() <= UPDATE_LIMIT as u32;
        if !self.carry.is_empty() {
            let missing = (4 - self.carry.len()).min(bytes.len());
            self.carry.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            let Ok(value) = <[u8; 4]>::try_from(self.carry.as_slice()) else { return };
            self.in_range &= in_range(value);
            self.carry.clear();
        }
        let (values, rest) = bytes.as_chunks::<4>();
        // Without an early end, so that the loop is one pass of wide comparisons.
        self.in_range &= values.iter().fold(true, |all, value| all & in_range(*value));
        self.carry.extend_from_slice(rest);
    }

    /// Whether all bytes are there.
    pub fn is_complete(&self) -> bool {
        self.received >= self.first.total
    }

    /// The update, or why it is none.
    pub fn finish(self) -> Result<ParsedUpdate, Outcome> {
        let Self { first, received, hasher, in_range, spool, carry } = self;
        if received != first.total || !carry.is_empty() || hasher.0.finish() != first.content {
            return Err(Outcome::Corrupt);
        }
        if !in_range {
            return Err(Outcome::OutOfRange);
        }
        let Piece { job, round, base, content, total: len, .. } = first;
        Ok(ParsedUpdate { job, round, base, content, len, body: spool })
    }
}

/// An update that counts: its round is open, its site is expected and has not contributed yet.
#[derive(Debug)]
pub struct AdmittedUpdate {
    body: Spool,
}

impl ParsedUpdate {
    /// Admits the update if the round says so: `verdict` is the round's answer for its site, round and base.
    pub fn admit(self, verdict: Result<(), Outcome>) -> Result<AdmittedUpdate, Outcome> {
        verdict.map(|()| AdmittedUpdate { body: self.body })
    }
}

impl AdmittedUpdate {
    /// Hands the body over in parts of whole values.
    pub fn read(self, mut part: impl FnMut(&[u8])) -> io::Result<()> {
        match self.body {
            Spool::Memory(body) => part(&body),
            Spool::File(mut file) => {
                file.seek(SeekFrom::Start(0))?;
                let mut buffer = vec![0; 1 << 18];
                loop {
                    let mut filled = 0;
                    while filled < buffer.len() {
                        match file.read(&mut buffer[filled..])? {
                            0 => break,
                            read => filled += read,
                        }
                    }
                    if filled == 0 {
                        break;
                    }
                    part(&buffer[..filled]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    fn bytes(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn parse(piece: Piece, body: &[u8], chunk: usize) -> Result<ParsedUpdate, Outcome> {
        let folder = tempfile::tempdir().unwrap();
        let mut arriving = Arriving::begin(piece, body.len() as u64, folder.path()).unwrap()?;
        for part in body.chunks(chunk) {
            arriving.push(part).unwrap();
        }
        arriving.finish()
    }

    #[test]
    fn a_long_update_reads_back_from_its_file() {
        let body = bytes(&(0..1_500_000).collect::<Vec<i32>>());
        let update = parse(piece(&body), &body, 65_000).unwrap().admit(Ok(())).unwrap();
        let mut read = Vec::new();
        update.read(|part| read.extend_from_slice(part)).unwrap();
        assert_eq!(read, body);
    }

    #[test]
    fn values_out_of_range_wrong_hashes_and_wrong_lengths_are_refused() {
        let limit = UPDATE_LIMIT;
        for bad in [limit + 1, -limit - 1, i32::MIN, i32::MAX] {
            let body = bytes(&[0, bad, 0]);
            assert_eq!(parse(piece(&body), &body, 5).unwrap_err(), Outcome::OutOfRange);
        }
        let body = bytes(&[limit, -limit]);
        assert!(parse(piece(&body), &body, 3).is_ok());
        let other = Piece { content: ContentHash::of(b"other"), ..piece(&body) };
        assert_eq!(parse(other, &body, 8).unwrap_err(), Outcome::Corrupt);
        let longer = Piece { total: 12, ..piece(&body) };
        assert_eq!(parse(longer, &body, 8).unwrap_err(), Outcome::WrongShape);
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
