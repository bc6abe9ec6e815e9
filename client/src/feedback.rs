//! What compression did not send of a job's updates, kept to be added to the next one: one file a job, of the values as
//! 32-bit little-endian integers under their hash.
//!
//! It is made of noised updates only and never leaves by itself. A file is written aside and renamed, so it is whole or as
//! it was before; like the outbox, it is not synced. What is lost costs quality, not privacy: a missing or damaged file
//! reads as nothing left.

use std::io;
use std::path::{Path, PathBuf};
use weighhouse_shared::ids::{ContentHash, JobId};

/// The folder of one site's leftovers.
#[derive(Debug)]
pub struct Feedback {
    folder: PathBuf,
}

impl Feedback {
    /// Opens or makes the folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.into() })
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.folder.join(job.to_string())
    }

    /// Adds what is left of `job` to `values`; nothing if there is none of their number.
    pub fn add_to(&self, job: JobId, values: &mut [i32]) -> io::Result<()> {
        let file = match std::fs::read(self.path(job)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let Some((hash, bytes)) = file.split_first_chunk::<32>() else { return Ok(()) };
        let (left, _) = bytes.as_chunks::<4>();
        if left.len() != values.len() || ContentHash::of(bytes).as_bytes() != hash {
            return Ok(());
        }
        for (value, left) in values.iter_mut().zip(left) {
            *value = value.saturating_add(i32::from_le_bytes(*left)).clamp(-LIMIT, LIMIT);
        }
        Ok(())
    }

    /// Keeps what is left now.
    pub fn store(&self, job: JobId, left: &[i32]) -> io::Result<()> {
        let bytes: Vec<u8> = left.iter().flat_map(|value| value.to_le_bytes()).collect();
        let draft = self.path(job).with_extension("new");
        std::fs::write(&draft, [ContentHash::of(&bytes).as_bytes().as_slice(), &bytes].concat())?;
        std::fs::rename(&draft, self.path(job))
    }

    /// Drops what is left of `job`, which is over.
    pub fn forget(&self, job: JobId) -> io::Result<()> {
        match std::fs::remove_file(self.path(job)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The largest magnitude of an update and what is left of earlier ones together.
const LIMIT: i32 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_into_the_next_update_over_a_restart_and_a_damaged_file_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (job, other) = (JobId::from_bytes([1; 32]), JobId::from_bytes([2; 32]));
        Feedback::open(folder.path()).unwrap().store(job, &[5, -LIMIT, 0]).unwrap();
        let feedback = Feedback::open(folder.path()).unwrap();
        let added = |job: JobId, mut values: Vec<i32>| {
            feedback.add_to(job, &mut values).unwrap();
            values
        };
        assert_eq!(added(job, vec![1, -LIMIT, 7]), [6, -LIMIT, 7]);
        assert_eq!(added(other, vec![1, 2, 3]), [1, 2, 3]);
        assert_eq!(added(job, vec![1, 2]), [1, 2], "of another model");
        let path = feedback.path(job);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(added(job, vec![1, 2, 3]), [1, 2, 3]);
        feedback.forget(job).unwrap();
        feedback.forget(job).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
