//! What a site sent becomes an [`AdmittedUpdate`] or a labelled refusal. Updates are parsed as they
//! arrive: length, range and hash are known before the round is asked, and memory stays bounded however
//! long an update is.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weighhouse_shared::ids::{ContentHash, ContentHasher, JobId, RoundId};
use weighhouse_shared::job::UPDATE_LIMIT;
use weighhouse_shared::wire::messages::{Holding, Outcome};
use weighhouse_shared::wire::stream::{BLOCK_LEN, Piece};

/// Updates up to this many bytes wait in memory, longer ones in a file.
const MEMORY_LEN: u64 = 4 << 20;

/// How many files that are free are kept for the next updates.
const MAX_SPARE_FILES: usize = 8;

/// Nameless files in one folder for what is longer than memory should hold. A file that has served is
/// written over: fresh pages cost the processor more than what is put on them.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    spare: Mutex<Vec<File>>,
}

impl Spool {
    /// Files in `folder`; none is made yet.
    pub fn new(folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { folder, spare: Mutex::default() })
    }

    fn spare(&self) -> MutexGuard<'_, Vec<File>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the space of files that are free back to the system.
    pub fn clear(&self) {
        self.spare().clear();
    }

    fn file(self: &Arc<Self>) -> io::Result<SpoolFile> {
        let spare = self.spare().pop();
        let file = match spare {
            Some(mut file) => {
                file.rewind()?;
                file
            }
            None => tempfile::tempfile_in(&self.folder)?,
        };
        Ok(SpoolFile { file: Some(file), written: 0, spool: self.clone() })
    }
}

/// A file of the spool, given back to it at the end. What it held before lies behind what was written.
#[derive(Debug)]
struct SpoolFile {
    /// There until it is given back.
    file: Option<File>,
    written: u64,
    spool: Arc<Spool>,
}

impl SpoolFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    /// What was written, in parts of whole values.
    fn read(mut self, mut part: impl FnMut(&[u8])) -> io::Result<()> {
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        file.rewind()?;
        let mut left = usize::try_from(self.written).map_err(io::Error::other)?;
        let mut block = vec![0; left.min(BLOCK_LEN)];
        while left > 0 {
            let block = &mut block[..left.min(BLOCK_LEN)];
            file.read_exact(block)?;
            part(block);
            left -= block.len();
        }
        Ok(())
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        let mut spare = self.spool.spare();
        if spare.len() < MAX_SPARE_FILES {
            spare.extend(self.file.take());
        }
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
    in_range: bool,
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
    /// How many they are.
    pub len: u64,
    body: Body,
}

impl Arriving {
    /// Begins with the first piece. `expected_len` is the length of the job's updates; a longer body is
    /// kept in a file of `spool`.
    pub fn begin(first: Piece, expected_len: u64, spool: &Arc<Spool>) -> io::Result<Result<Self, Outcome>> {
        if first.total != expected_len || first.offset != 0 {
            return Ok(Err(Outcome::WrongShape));
        }
        let body = if first.total <= MEMORY_LEN {
            Body::Memory(Vec::with_capacity(first.total as usize))
        } else {
            Body::File(spool.file()?)
        };
        let hasher = Hashing(ContentHasher::default());
        Ok(Ok(Self { first, received: 0, hasher, in_range: true, body, carry: Vec::new() }))
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
        self.check_range(bytes);
        match &mut self.body {
            Body::Memory(body) => body.extend_from_slice(bytes),
            Body::File(file) => file.write(bytes)?,
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
        let Self { first, received, hasher, in_range, body, carry } = self;
        if received != first.total || !carry.is_empty() || hasher.0.finish() != first.content {
            return Err(Outcome::Corrupt);
        }
        if !in_range {
            return Err(Outcome::OutOfRange);
        }
        let Piece { job, round, base, content, total: len, .. } = first;
        Ok(ParsedUpdate { job, round, base, content, len, body })
    }
}

/// An update that counts: its round is open, its site is expected and has not contributed yet.
#[derive(Debug)]
pub struct AdmittedUpdate {
    body: Body,
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
            Body::Memory(body) => part(&body),
            Body::File(file) => file.read(part)?,
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
        parse_in(&Spool::new(folder.path().into()), piece, body, chunk)
    }

    fn parse_in(
        spool: &Arc<Spool>,
        piece: Piece,
        body: &[u8],
        chunk: usize,
    ) -> Result<ParsedUpdate, Outcome> {
        let mut arriving = Arriving::begin(piece, body.len() as u64, spool).unwrap()?;
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
    fn a_spool_file_that_held_a_longer_update_gives_back_the_shorter_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path().into());
        for parameters in [1_500_000, 1_200_000] {
            let body = bytes(&(0..parameters).map(|value| value + parameters).collect::<Vec<i32>>());
            let update = parse_in(&spool, piece(&body), &body, 65_000).unwrap().admit(Ok(())).unwrap();
            assert_eq!(spool.spare().len(), 0);
            let mut read = Vec::new();
            update.read(|part| read.extend_from_slice(part)).unwrap();
            assert_eq!(read, body);
            assert_eq!(spool.spare().len(), 1);
        }
        let body = bytes(&[0; 1_200_000]);
        let refused =
            parse_in(&spool, Piece { content: ContentHash::of(b""), ..piece(&body) }, &body, 65_000);
        assert_eq!(refused.unwrap_err(), Outcome::Corrupt);
        assert_eq!(spool.spare().len(), 1);
        spool.clear();
        assert_eq!(spool.spare().len(), 0);
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
