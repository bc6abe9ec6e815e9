//! Files a person writes, read with errors that say where; files we write, written whole or not at all.

use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The longest text file read as configuration, in bytes.
const MAX_TEXT_LEN: u64 = 1 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path} is not valid: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, and what was expected.
        reason: String,
    },
}

/// Reads a TOML file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = load_text(path)?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse { path: path.into(), reason: error.to_string() })
}

/// Reads a text file that a person wrote.
pub fn load_text(path: &Path) -> Result<String, ConfigError> {
    let read_error = |source| ConfigError::Read { path: path.into(), source };
    let len = std::fs::metadata(path).map_err(read_error)?.len();
    if len > MAX_TEXT_LEN {
        let reason = format!("it is longer than {MAX_TEXT_LEN} bytes");
        return Err(ConfigError::Parse { path: path.into(), reason });
    }
    std::fs::read_to_string(path).map_err(read_error)
}

/// Creates `path` with `bytes`, readable by its owner only, synced; refuses to overwrite.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replaces `path` by `bytes` in one step: whoever reads sees the old or the new, also after a power cut.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = Draft::create(path)?;
    draft.file().write_all(bytes)?;
    draft.commit()
}

/// As [`write_whole`], for its owner's eyes only.
pub fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let draft = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_private(&draft, bytes)?;
    std::fs::rename(&draft, path)?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// A file that is written piece by piece and takes its place in one step, or never: dropped before
/// [`commit`](Self::commit) it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    file: File,
    /// Where it is written; None once it is in its place.
    draft: Option<PathBuf>,
    path: PathBuf,
}

impl Draft {
    /// Begins the file that will replace `path`, in the same folder.
    pub fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let draft = path.with_file_name(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
        let file = File::create(&draft)?;
        Ok(Self { file, draft: Some(draft), path: path.into() })
    }

    /// What to write into.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in its place, synced with its folder.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(draft) = &self.draft {
            std::fs::rename(draft, &self.path)?;
        }
        self.draft = None;
        sync_folder_of(&self.path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(draft) = &self.draft {
            let _ = std::fs::remove_file(draft);
        }
    }
}
