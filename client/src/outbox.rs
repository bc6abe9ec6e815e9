//! What was noised and paid for, kept until its job ends, so that a retry sends the same bytes.
//!
//! One file an item: base model (32 bytes), hash of the bytes (32), the bytes. A file is written aside and
//! renamed, so it is whole or absent after a kill. It is not synced: should a power cut lose it, the
//! debit is lost with it, which wastes budget but hides nothing.
//!
//! A job's next update is written over the file and into the memory of the one before: fresh pages cost
//! the processor more than what is put on them.

use bytes::Bytes;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::ledger::ReleaseKind;
use weighhouse_shared::privacy::ClipNorm;

/// The folder of one site's outgoing items.
#[derive(Debug)]
pub struct Outbox {
    folder: PathBuf,
    /// The update stored last.
    last: Mutex<Bytes>,
}

/// A file of an update that is over, under a name that is no item's.
const SPARE: &str = "spare";

/// An item found in the outbox.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// The model it was made from.
    pub base: ContentHash,
    /// Hash of the bytes.
    pub content: ContentHash,
    /// The bytes that leave.
    pub bytes: Bytes,
}

impl Outbox {
    /// Opens or makes the folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.into(), last: Mutex::default() })
    }

    fn last(&self) -> MutexGuard<'_, Bytes> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory of the update stored last, with whatever it holds; empty if that may still be sent.
    pub fn memory(&self) -> Vec<u8> {
        let last = std::mem::take(&mut *self.last());
        if last.is_unique() { last.into() } else { Vec::new() }
    }

    fn clip_path(&self, job: JobId) -> PathBuf {
        // Under a round that never comes: kept until the whole job is forgotten.
        self.folder.join(format!("{job}-{last:08}-clip-norm", last = u32::MAX))
    }

    /// The clip norm that the job's next round begins with, if one was kept: it was made from noised sums alone.
    pub fn clip_norm(&self, job: JobId) -> Option<ClipNorm> {
        let text = std::fs::read_to_string(self.clip_path(job)).ok()?;
        ClipNorm::new(text.trim().parse().ok()?).ok()
    }

    /// Keeps it. After a power cut it may be one of an earlier round.
    pub fn keep_clip_norm(&self, job: JobId, clip_norm: ClipNorm) -> io::Result<()> {
        let path = self.clip_path(job);
        let draft = path.with_extension("new");
        std::fs::write(&draft, clip_norm.value().to_string())?;
        std::fs::rename(draft, path)
    }

    fn path(&self, job: JobId, round: RoundId, kind: ReleaseKind) -> PathBuf {
        let kind = match kind {
            ReleaseKind::Update => "update",
            ReleaseKind::Evaluation => "evaluation",
        };
        self.folder.join(format!("{job}-{round:08}-{kind}", round = round.0))
    }

    /// Keeps `bytes`, whose hash is `content`.
    pub fn store(
        &self,
        job: JobId,
        round: RoundId,
        kind: ReleaseKind,
        base: ContentHash,
        content: ContentHash,
        bytes: &Bytes,
    ) -> io::Result<()> {
        use io::Write;
        let path = self.path(job, round, kind);
        let draft = path.with_extension("new");
        if kind == ReleaseKind::Update {
            *self.last() = bytes.clone();
            // There is none before the second round.
            let _ = std::fs::rename(self.folder.join(SPARE), &draft);
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&draft)?;
        file.write_all(base.as_bytes())?;
        file.write_all(content.as_bytes())?;
        file.write_all(bytes)?;
        file.set_len((base.as_bytes().len() + content.as_bytes().len() + bytes.len()) as u64)?;
        std::fs::rename(&draft, &path)
    }

    /// The item, if it is there and whole.
    pub fn find(&self, job: JobId, round: RoundId, kind: ReleaseKind) -> io::Result<Option<Stored>> {
        let file = match std::fs::read(self.path(job, round, kind)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let file = Bytes::from(file);
        let Some((base, rest)) = file.split_first_chunk::<32>() else { return Ok(None) };
        let Some((hash, bytes)) = rest.split_first_chunk::<32>() else { return Ok(None) };
        let content = ContentHash::of(bytes);
        if content.as_bytes() != hash {
            return Ok(None);
        }
        Ok(Some(Stored { base: ContentHash::from_bytes(*base), content, bytes: file.slice_ref(bytes) }))
    }

    /// Drops the items of `job` before `round`; of all its rounds if None.
    pub fn forget(&self, job: JobId, before: Option<RoundId>) -> io::Result<()> {
        let prefix = format!("{job}-");
        for item in std::fs::read_dir(&self.folder)? {
            let item = item?;
            let name = item.file_name().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(&prefix) else { continue };
            let round = rest.split('-').next().and_then(|round| round.parse::<u32>().ok());
            if before.is_none_or(|before| round.is_none_or(|round| round < before.0)) {
                if before.is_some() && rest.ends_with("-update") {
                    std::fs::rename(item.path(), self.folder.join(SPARE))?;
                } else {
                    std::fs::remove_file(item.path())?;
                }
            }
        }
        if before.is_none() {
            *self.last() = Bytes::new();
            match std::fs::remove_file(self.folder.join(SPARE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_reads_back_whole_and_a_damaged_one_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let (job, base) = (JobId::from_bytes([1; 32]), ContentHash::of(b"model"));
        let kind = ReleaseKind::Update;
        let content = ContentHash::of(b"noised");
        outbox.store(job, RoundId(3), kind, base, content, &Bytes::from_static(b"noised")).unwrap();
        let stored = outbox.find(job, RoundId(3), kind).unwrap().unwrap();
        assert_eq!(stored, Stored { base, content, bytes: b"noised".as_slice().into() });
        assert_eq!(outbox.find(job, RoundId(3), ReleaseKind::Evaluation).unwrap(), None);

        let path = outbox.path(job, RoundId(3), kind);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(outbox.find(job, RoundId(3), kind).unwrap(), None);
    }

    #[test]
    fn forgetting_spares_later_rounds_and_other_jobs() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let (job, other) = (JobId::from_bytes([1; 32]), JobId::from_bytes([2; 32]));
        let (base, kind) = (ContentHash::of(b"model"), ReleaseKind::Update);
        for round in 0..3 {
            outbox
                .store(job, RoundId(round), kind, base, ContentHash::of(b"a"), &Bytes::from_static(b"a"))
                .unwrap();
        }
        outbox
            .store(other, RoundId(0), kind, base, ContentHash::of(b"b"), &Bytes::from_static(b"b"))
            .unwrap();
        outbox.forget(job, Some(RoundId(2))).unwrap();
        let there = |job, round| outbox.find(job, RoundId(round), kind).unwrap().is_some();
        assert_eq!(
            [there(job, 0), there(job, 1), there(job, 2), there(other, 0)],
            [false, false, true, true]
        );
        outbox.forget(job, None).unwrap();
        assert!(!there(job, 2) && there(other, 0));
    }

    #[test]
    fn a_kept_clip_norm_outlives_its_round_but_not_its_job_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let job = JobId::from_bytes([1; 32]);
        assert_eq!(outbox.clip_norm(job), None);
        let clip_norm = ClipNorm::new(0.1 + 0.2).unwrap();
        outbox.keep_clip_norm(job, clip_norm).unwrap();
        outbox.forget(job, Some(RoundId(9))).unwrap();
        assert_eq!(outbox.clip_norm(job), Some(clip_norm));
        for damaged in ["", "NaN", "-1", "x"] {
            std::fs::write(outbox.clip_path(job), damaged).unwrap();
            assert_eq!(outbox.clip_norm(job), None);
        }
        outbox.forget(job, None).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_shorter_update_written_over_a_longer_one_reads_back_as_itself() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let (job, base, kind) = (JobId::from_bytes([1; 32]), ContentHash::of(b"model"), ReleaseKind::Update);
        for (round, body) in [b"a long update".as_slice(), b"short", b"longer than short"].iter().enumerate()
        {
            let (round, bytes) = (RoundId(round as u32), Bytes::from_static(body));
            outbox.forget(job, Some(round)).unwrap();
            outbox.store(job, round, kind, base, ContentHash::of(body), &bytes).unwrap();
            assert_eq!(outbox.find(job, round, kind).unwrap().unwrap().bytes, bytes);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
        outbox.forget(job, Some(RoundId(9))).unwrap();
        outbox.forget(job, None).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn memory_is_lent_again_only_when_nobody_holds_the_update() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let (job, base, kind) = (JobId::from_bytes([1; 32]), ContentHash::of(b"model"), ReleaseKind::Update);
        let bytes = Bytes::from(b"noised".to_vec());
        let store = || outbox.store(job, RoundId(0), kind, base, ContentHash::of(&bytes), &bytes).unwrap();
        store();
        assert!(outbox.memory().is_empty());
        store();
        drop(bytes);
        assert_eq!(outbox.memory(), b"noised");
        assert!(outbox.memory().is_empty());
    }
}
