//! Nameless files for what is longer than memory should hold: updates on their way in, and those of a round whose rule
//! needs them all.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weighhouse_shared::wire::stream::BLOCK_LEN;

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

    /// How many files are free.
    #[cfg(test)]
    pub(crate) fn spare_files(&self) -> usize {
        self.spare().len()
    }

    /// Gives the space of files that are free back to the system.
    pub fn clear(&self) {
        self.spare().clear();
    }

    /// A file with nothing in it.
    pub fn file(self: &Arc<Self>) -> io::Result<SpoolFile> {
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
pub struct SpoolFile {
    /// There until it is given back.
    file: Option<File>,
    written: u64,
    spool: Arc<Spool>,
}

impl SpoolFile {
    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    /// What was written, from its beginning, in parts of whole values.
    pub fn read(&mut self, mut part: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let len = usize::try_from(self.written).map_err(io::Error::other)?;
        let mut block = vec![0; len.min(BLOCK_LEN)];
        for at in (0..len).step_by(BLOCK_LEN) {
            let block = &mut block[..BLOCK_LEN.min(len - at)];
            self.read_at(at as u64, block)?;
            part(block)?;
        }
        Ok(())
    }

    /// Fills `bytes` with what was written from `offset` on.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        let file = self.file.as_ref().filter(|_| end.is_some_and(|end| end <= self.written));
        file.ok_or(io::ErrorKind::UnexpectedEof)?.read_exact_at(bytes, offset)
    }

    /// Forgets what was written; the space is written over.
    pub fn restart(&mut self) -> io::Result<()> {
        self.written = 0;
        self.file.as_mut().map_or(Ok(()), |file| file.rewind())
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
