//! The coordinator's durable state. One embedded database; a tree's name carries its version.
//!
//! A value that a later promise depends on is flushed *and* its file synced: the database's own flush
//! survives a killed process, not a power cut.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use weighhouse_shared::config::write_whole;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::ledger::Standing;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{Decision, JobStatus, RoundSummary, SignedContract};

/// Bytes of the database's cache: small, since models are read once a round.
const CACHE_BYTES: u64 = 16 << 20;
/// A model up to this long is a value of the database; a longer one a file of its own beside it, since the
/// database would hold it in memory several times over.
const MODEL_VALUE_LEN: usize = 64 << 10;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused.
    #[error(
        "cannot use the coordinator's state in {path}; is the disk full, or does another coordinator run from this home?"
    )]
    Database {
        /// The folder.
        path: PathBuf,
        /// What it said.
        #[source]
        source: sled::Error,
    },
    /// The file could not be synced.
    #[error("cannot read or write the coordinator's state in {path}; is the disk full?")]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A value is not what was stored.
    #[error("the coordinator's state in {path} is damaged at `{what}`; restore it from a backup")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// Where.
        what: &'static str,
    },
}

/// A site as the roster keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct SiteRecord {
    /// What people call it.
    pub name: String,
    /// The invite by which it joins or joined.
    pub invite: InviteRecord,
    /// Its key, once it has joined.
    pub public_key: Option<[u8; 32]>,
    /// Its certificate, DER, once it has joined.
    pub certificate: Option<Vec<u8>>,
    /// Whether it is kept out.
    pub revoked: bool,
}

/// An invite as the roster keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct InviteRecord {
    /// Which one.
    pub id: [u8; 16],
    /// What the invited proves knowledge of.
    pub secret: [u8; 32],
    /// Seconds since 1970.
    pub expires_s: u64,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct JobRecord {
    /// As the operator signed it.
    pub signed: SignedContract,
    /// Counted up with each submission.
    pub number: u64,
    /// Where it stands.
    pub status: JobStatus,
    /// The round that comes next.
    pub round: RoundId,
    /// The model that it starts from.
    pub model: ContentHash,
    /// What the sites answered.
    pub answers: BTreeMap<SiteId, Decision>,
}

/// What a site last said of its budget.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct StandingRecord {
    /// When, in seconds since 1970.
    pub as_of_s: u64,
    /// What it said.
    pub standing: Standing,
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: sled::Db,
    file: File,
    sites: sled::Tree,
    jobs: sled::Tree,
    rounds: sled::Tree,
    models: sled::Tree,
    standings: sled::Tree,
    /// Long models, each in a file named by its hash.
    folder: PathBuf,
}

impl Store {
    /// Opens or makes the database in the folder `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Database { path: path.into(), source };
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let database = config.open().map_err(failed)?;
        let tree = |name| database.open_tree(name).map_err(failed);
        let (sites, jobs, rounds, models) =
            (tree("sites-1")?, tree("jobs-1")?, tree("rounds-1")?, tree("models-1")?);
        let standings = tree("standings-1")?;
        let file_path = path.join("db");
        let file = File::open(&file_path).map_err(|source| StoreError::Sync { path: file_path, source })?;
        let folder = path.join("models");
        std::fs::create_dir_all(&folder)
            .map_err(|source| StoreError::Sync { path: folder.clone(), source })?;
        Ok(Self { path: path.into(), database, file, sites, jobs, rounds, models, standings, folder })
    }

    fn failed(&self, source: sled::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), source }
    }

    /// On return, everything written before is on disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.database.flush().map_err(|source| self.failed(source))?;
        self.file.sync_data().map_err(|source| StoreError::Sync { path: self.path.join("db"), source })
    }

    fn put<T: Serialize>(&self, tree: &sled::Tree, key: &[u8], value: &T) -> Result<(), StoreError> {
        tree.insert(key, codec::encode(value)).map(|_| ()).map_err(|source| self.failed(source))
    }

    fn all<T: DeserializeOwned>(
        &self,
        entries: sled::Iter,
        what: &'static str,
    ) -> Result<Vec<(sled::IVec, T)>, StoreError> {
        let read = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = entry.map_err(|source| self.failed(source))?;
            let value =
                codec::decode(&value).map_err(|_| StoreError::Damaged { path: self.path.clone(), what })?;
            Ok((key, value))
        };
        entries.map(read).collect()
    }

    /// Keeps a site.
    pub fn put_site(&self, site: &SiteRecord) -> Result<(), StoreError> {
        self.put(&self.sites, site.name.as_bytes(), site)
    }

    /// All sites.
    pub fn sites(&self) -> Result<Vec<SiteRecord>, StoreError> {
        Ok(self.all(self.sites.iter(), "sites-1")?.into_iter().map(|(_, site)| site).collect())
    }

    /// Keeps what `site` says of its budget.
    pub fn put_standing(&self, site: SiteId, record: &StandingRecord) -> Result<(), StoreError> {
        self.put(&self.standings, site.as_bytes(), record)
    }

    /// What `site` last said of its budget.
    pub fn standing(&self, site: SiteId) -> Result<Option<StandingRecord>, StoreError> {
        let value = self.standings.get(site.as_bytes()).map_err(|source| self.failed(source))?;
        let what = "standings-1";
        let damaged = |_| StoreError::Damaged { path: self.path.clone(), what };
        value.map(|value| codec::decode(&value).map_err(damaged)).transpose()
    }

    /// Keeps a job.
    pub fn put_job(&self, id: JobId, job: &JobRecord) -> Result<(), StoreError> {
        self.put(&self.jobs, id.as_bytes(), job)
    }

    /// All jobs.
    pub fn jobs(&self) -> Result<Vec<(JobId, JobRecord)>, StoreError> {
        let damaged = || StoreError::Damaged { path: self.path.clone(), what: "jobs-1" };
        let jobs = self.all(self.jobs.iter(), "jobs-1")?;
        let with_id = |(key, job): (sled::IVec, JobRecord)| {
            let id = key.as_ref().try_into().map_err(|_| damaged())?;
            Ok((JobId::from_bytes(id), job))
        };
        jobs.into_iter().map(with_id).collect()
    }

    /// Keeps what a committed round came to.
    pub fn put_round(&self, job: JobId, round: &RoundSummary) -> Result<(), StoreError> {
        let key = [job.as_bytes().as_slice(), &round.round.0.to_be_bytes()].concat();
        self.put(&self.rounds, &key, round)
    }

    /// The committed rounds of `job`, in order.
    pub fn rounds(&self, job: JobId) -> Result<Vec<RoundSummary>, StoreError> {
        let rounds = self.all(self.rounds.scan_prefix(job.as_bytes()), "rounds-1")?;
        Ok(rounds.into_iter().map(|(_, round)| round).collect())
    }

    /// Keeps a model under its hash. A long one is on disk on return, a short one after [`Store::sync`].
    pub fn put_model(&self, hash: ContentHash, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.len() > MODEL_VALUE_LEN {
            let path = self.folder.join(hash.to_string());
            return write_whole(&path, bytes).map_err(|source| StoreError::Sync { path, source });
        }
        self.models.insert(hash.as_bytes(), bytes).map(|_| ()).map_err(|source| self.failed(source))
    }

    /// The model with this hash, checked.
    pub fn model(&self, hash: ContentHash) -> Result<Bytes, StoreError> {
        let value = self.models.get(hash.as_bytes()).map_err(|source| self.failed(source))?;
        let path = self.folder.join(hash.to_string());
        let bytes = match value {
            Some(value) => value.to_vec(),
            None => std::fs::read(&path).map_err(|source| StoreError::Sync { path, source })?,
        };
        if ContentHash::of(&bytes) != hash {
            return Err(StoreError::Damaged { path: self.path.clone(), what: "models-1" });
        }
        Ok(bytes.into())
    }

    /// Drops a model.
    pub fn forget_model(&self, hash: ContentHash) -> Result<(), StoreError> {
        let value = self.models.remove(hash.as_bytes()).map_err(|source| self.failed(source))?;
        if value.is_some() {
            return Ok(());
        }
        let path = self.folder.join(hash.to_string());
        std::fs::remove_file(&path).map_err(|source| StoreError::Sync { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_and_a_job_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        for parameters in [1_000, 16_384, 200_000] {
            survives(parameters, &folder.path().join(parameters.to_string()));
        }
    }

    fn survives(parameters: u32, path: &Path) {
        let model: Vec<u8> = (0..parameters).flat_map(u32::to_le_bytes).collect();
        let hash = ContentHash::of(&model);
        let record = JobRecord {
            signed: SignedContract { contract: vec![1], certificate: vec![2], signature: vec![3] },
            number: 4,
            status: JobStatus::Running,
            round: RoundId(5),
            model: hash,
            answers: BTreeMap::from([(SiteId::from_bytes([6; 32]), Decision::Accepted)]),
        };
        let id = JobId::from_bytes([9; 32]);
        {
            let store = Store::open(path).unwrap();
            store.put_model(hash, &model).unwrap();
            store.put_job(id, &record).unwrap();
            store.sync().unwrap();
        }
        // Within one process the database lets go of its lock a moment after it is dropped.
        let store = std::iter::repeat_with(|| Store::open(path)).take(100_000).find_map(Result::ok).unwrap();
        assert_eq!(store.model(hash).unwrap(), model);
        assert_eq!(store.jobs().unwrap(), [(id, record)]);
        store.forget_model(hash).unwrap();
        assert!(store.model(hash).is_err());
    }
}
