//! What was noised and paid for, kept until its job ends, so that a retry sends the same bytes.
//!
//! One file an item: base model (32 bytes), hash of the bytes (32), the bytes. A file is written aside and
//! renamed, so it is whole or absent after a kill. It is not synced: should a power cut lose it, the
//! debit is lost with it, which wastes budget but hides nothing.

use std::io;
use std::path::{Path, PathBuf};
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::ledger::ReleaseKind;

/// The folder of one site's outgoing items.
#[derive(Debug)]
pub struct Outbox {
    folder: PathBuf,
}

/// An item found in the outbox.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// The model it was made from.
    pub base: ContentHash,
    /// Hash of the bytes.
    pub content: ContentHash,
    /// The bytes that leave.
    pub bytes: Vec<u8>,
}

impl Outbox {
    /// Opens or makes the folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.into() })
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
        bytes: &[u8],
    ) -> io::Result<()> {
        use io::Write;
        let path = self.path(job, round, kind);
        let draft = path.with_extension("new");
        let mut file = std::fs::File::create(&draft)?;
        file.write_all(base.as_bytes())?;
        file.write_all(content.as_bytes())?;
        file.write_all(bytes)?;
        std::fs::rename(&draft, &path)
    }

    /// The item, if it is there and whole.
    pub fn find(&self, job: JobId, round: RoundId, kind: ReleaseKind) -> io::Result<Option<Stored>> {
        let file = match std::fs::read(self.path(job, round, kind)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((base, rest)) = file.split_first_chunk::<32>() else { return Ok(None) };
        let Some((hash, bytes)) = rest.split_first_chunk::<32>() else { return Ok(None) };
        let content = ContentHash::of(bytes);
        if content.as_bytes() != hash {
            return Ok(None);
        }
        Ok(Some(Stored { base: ContentHash::from_bytes(*base), content, bytes: bytes.to_vec() }))
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
                std::fs::remove_file(item.path())?;
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
        outbox.store(job, RoundId(3), kind, base, content, b"noised").unwrap();
        let stored = outbox.find(job, RoundId(3), kind).unwrap().unwrap();
        assert_eq!(stored, Stored { base, content, bytes: b"noised".to_vec() });
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
            outbox.store(job, RoundId(round), kind, base, ContentHash::of(b"a"), b"a").unwrap();
        }
        outbox.store(other, RoundId(0), kind, base, ContentHash::of(b"b"), b"b").unwrap();
        outbox.forget(job, Some(RoundId(2))).unwrap();
        let there = |job, round| outbox.find(job, RoundId(round), kind).unwrap().is_some();
        assert_eq!(
            [there(job, 0), there(job, 1), there(job, 2), there(other, 0)],
            [false, false, true, true]
        );
        outbox.forget(job, None).unwrap();
        assert!(!there(job, 2) && there(other, 0));
    }
}
