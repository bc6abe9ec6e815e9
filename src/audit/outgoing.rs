//! Captured items, held against what a ledger released. An item is a file as the outbox keeps it: base model (32 bytes),
//! hash of the bytes (32), the bytes.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use weighhouse_shared::ids::{ContentHash, ContentHasher, JobId, RoundId};
use weighhouse_shared::ledger::{ReleaseKind, Trail};

/// The longest list of items.
const MAX_ITEMS: usize = 1_000_000;

/// What came of it.
pub struct Checked {
    /// Items in the folder.
    pub items: usize,
    /// What is wrong, a line an item.
    pub faults: Vec<String>,
}

/// Holds each file of `folder` against `trail`: its bytes must be those of a release; of that very release, if its
/// name is one that the outbox gives.
pub fn check(folder: &Path, trail: &Trail) -> Result<Checked> {
    let cannot = || format!("cannot read {}", folder.display());
    let mut paths = Vec::new();
    for item in std::fs::read_dir(folder).with_context(cannot)? {
        paths.push(item.with_context(cannot)?.path());
        if paths.len() > MAX_ITEMS {
            bail!("{} holds more than {MAX_ITEMS} items; pass them in several folders", folder.display());
        }
    }
    paths.sort();
    let released: BTreeSet<(ContentHash, u64)> = trail.released().collect();
    let mut faults = Vec::new();
    for path in &paths {
        faults.extend(fault_of(path, trail, &released)?);
    }
    Ok(Checked { items: paths.len(), faults })
}

fn fault_of(path: &Path, trail: &Trail, released: &BTreeSet<(ContentHash, u64)>) -> Result<Option<String>> {
    let shown = path.display();
    let cannot = || format!("cannot read {shown}");
    if !std::fs::symlink_metadata(path).with_context(cannot)?.is_file() {
        return Ok(Some(format!("{shown} is not a plain file")));
    }
    let Some((content, len)) = hash_item(path).with_context(cannot)? else {
        return Ok(Some(format!("{shown} is not a whole item: its bytes are not those its header names")));
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_released = match item_of(&name) {
        Some(what) => trail.has_released(what, content, len),
        None => released.contains(&(content, len)),
    };
    Ok((!is_released).then(|| format!("{shown}: no entry released these {len} bytes with hash {content}")))
}

/// An item's hash and length; None if its header names another hash.
fn hash_item(path: &Path) -> io::Result<Option<(ContentHash, u64)>> {
    let mut file = File::open(path)?;
    let mut header = [0; 64];
    match file.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (mut hasher, mut len, mut buffer) = (ContentHasher::default(), 0, vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                len += read as u64;
            }
        }
    }
    let content = hasher.finish();
    Ok((content.as_bytes() == &header[32..]).then_some((content, len)))
}

/// What an item is, by the name of its file in an outbox.
fn item_of(name: &str) -> Option<(JobId, RoundId, ReleaseKind)> {
    let (job, rest) = name.split_once('-')?;
    let (round, kind) = rest.split_once('-')?;
    let kind = match kind {
        "update" => ReleaseKind::Update,
        "evaluation" => ReleaseKind::Evaluation,
        _ => return None,
    };
    Some((job.parse::<JobId>().ok()?, RoundId(round.parse().ok()?), kind))
}
