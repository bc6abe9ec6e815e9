//! The coordinator's durable state. One embedded database; a tree's name carries its version.
//!
//! A value that a later promise depends on is flushed *and* its file synced: the database's own flush
//! survives a killed process, not a power cut.

mod sums;
mod tree;

pub use sums::{KeptSum, SumGroup};
pub use tree::MemoryDisk;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tree::{Entries, Tree};
use weighhouse_shared::config::write_whole;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::ledger::{Head, SignedWitness, Standing};
use weighhouse_shared::model::ServerState;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{
    Decision, HeadVerdict, JobStatus, Outcome, RoundSummary, SignedContract,
};

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

/// That a site told a head that cannot follow what was witnessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Alarm {
    /// What is wrong with it.
    pub verdict: HeadVerdict,
    /// The head.
    pub head: Head,
    /// The site's signature of it.
    pub signature: Vec<u8>,
    /// When it was told, in seconds since 1970.
    pub time_s: u64,
    /// Whether the site has not yet come back with its newest ledger.
    pub standing: bool,
}

/// Where the trees are.
#[derive(Debug)]
enum Medium {
    /// In the embedded database, whose file is synced.
    Database(sled::Db, File),
    /// In memory.
    Memory(MemoryDisk),
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    medium: Medium,
    sites: Tree,
    jobs: Tree,
    rounds: Tree,
    models: Tree,
    /// Job, then the round that comes next (4 bytes, big-endian): the hash under which its server state is kept.
    server_states: Tree,
    standings: Tree,
    /// Job with the buffered schedule: the number of each site's next update.
    released: Tree,
    /// Job: contributions refused, by reason.
    refusals: Tree,
    /// Job that is over: sites that it was offered to and that did not answer.
    unanswered: Tree,
    /// Site, then the head's entries (8 bytes, big-endian).
    witnesses: Tree,
    /// The latest of each site.
    alarms: Tree,
    /// Job, then what it is: of its secure sums.
    sums: Tree,
    /// Long models, each in a file named by its hash; in memory they are values like the others.
    folder: Option<PathBuf>,
}

impl Store {
    /// Opens or makes the database in the folder `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Database { path: path.into(), source };
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let database = config.open().map_err(failed)?;
        let file_path = path.join("db");
        let file = File::open(&file_path).map_err(|source| StoreError::Sync { path: file_path, source })?;
        let folder = path.join("models");
        std::fs::create_dir_all(&folder)
            .map_err(|source| StoreError::Sync { path: folder.clone(), source })?;
        let tree = |name| database.open_tree(name).map(Tree::Database).map_err(failed);
        Self::of(path, tree, Medium::Database(database.clone(), file), Some(folder))
    }

    /// The store on `disk`, as it was left there.
    pub fn in_memory(disk: &MemoryDisk) -> Result<Self, StoreError> {
        let tree = |name| Ok(Tree::Memory(name, disk.clone()));
        Self::of(Path::new("memory"), tree, Medium::Memory(disk.clone()), None)
    }

    fn of(
        path: &Path,
        tree: impl Fn(&'static str) -> Result<Tree, StoreError>,
        medium: Medium,
        folder: Option<PathBuf>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.to_owned(),
            medium,
            sites: tree("sites-1")?,
            jobs: tree("jobs-1")?,
            rounds: tree("rounds-1")?,
            models: tree("models-1")?,
            server_states: tree("server-states-1")?,
            standings: tree("standings-1")?,
            released: tree("released-1")?,
            refusals: tree("refusals-1")?,
            unanswered: tree("unanswered-1")?,
            witnesses: tree("witnesses-1")?,
            alarms: tree("ledger-alarms-1")?,
            sums: tree("secure-sums-1")?,
            folder,
        })
    }

    fn failed(&self, source: sled::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), source }
    }

    /// On return, everything written before is on disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        match &self.medium {
            Medium::Database(database, file) => {
                database.flush().map_err(|source| self.failed(source))?;
                file.sync_data().map_err(|source| StoreError::Sync { path: self.path.join("db"), source })
            }
            Medium::Memory(disk) => disk.sync().map_err(|source| self.failed(source)),
        }
    }

    fn put<T: Serialize>(&self, tree: &Tree, key: &[u8], value: &T) -> Result<(), StoreError> {
        tree.insert(key, codec::encode(value)).map_err(|source| self.failed(source))
    }

    fn all<T: DeserializeOwned>(
        &self,
        entries: Entries,
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

    /// Keeps the number of each site's next update of a job.
    pub fn put_released(&self, id: JobId, released: &BTreeMap<SiteId, u32>) -> Result<(), StoreError> {
        self.put(&self.released, id.as_bytes(), released)
    }

    /// The number of each site's next update of a job, as of its last commit.
    pub fn released(&self, id: JobId) -> Result<BTreeMap<SiteId, u32>, StoreError> {
        let value = self.released.get(id.as_bytes()).map_err(|source| self.failed(source))?;
        let damaged = |_| StoreError::Damaged { path: self.path.clone(), what: "released-1" };
        Ok(value.map(|value| codec::decode(&value).map_err(damaged)).transpose()?.unwrap_or_default())
    }

    /// Keeps how many contributions to a job were refused, by reason.
    pub fn put_refusals(&self, id: JobId, refused: &BTreeMap<Outcome, u64>) -> Result<(), StoreError> {
        self.put(&self.refusals, id.as_bytes(), refused)
    }

    /// How many contributions to a job were refused, by reason.
    pub fn refusals(&self, id: JobId) -> Result<BTreeMap<Outcome, u64>, StoreError> {
        let value = self.refusals.get(id.as_bytes()).map_err(|source| self.failed(source))?;
        let damaged = |_| StoreError::Damaged { path: self.path.clone(), what: "refusals-1" };
        Ok(value.map(|value| codec::decode(&value).map_err(damaged)).transpose()?.unwrap_or_default())
    }

    /// Keeps which sites a job that is over was offered to without an answer.
    pub fn put_unanswered(&self, id: JobId, sites: &BTreeSet<SiteId>) -> Result<(), StoreError> {
        self.put(&self.unanswered, id.as_bytes(), sites)
    }

    /// Which sites a job that is over was offered to without an answer; None if that was not kept.
    pub fn unanswered(&self, id: JobId) -> Result<Option<BTreeSet<SiteId>>, StoreError> {
        let value = self.unanswered.get(id.as_bytes()).map_err(|source| self.failed(source))?;
        let damaged = |_| StoreError::Damaged { path: self.path.clone(), what: "unanswered-1" };
        value.map(|value| codec::decode(&value).map_err(damaged)).transpose()
    }

    /// Keeps what a committed round came to.
    pub fn put_round(&self, job: JobId, round: &RoundSummary) -> Result<(), StoreError> {
        self.put(&self.rounds, &round_key(job, round.round), round)
    }

    /// The committed rounds of `job`, in order.
    pub fn rounds(&self, job: JobId) -> Result<Vec<RoundSummary>, StoreError> {
        let rounds = self.all(self.rounds.scan_prefix(job.as_bytes()), "rounds-1")?;
        Ok(rounds.into_iter().map(|(_, round)| round).collect())
    }

    /// Keeps what was witnessed of a site's ledger; one of the same head is replaced.
    pub fn put_witness(&self, signed: &SignedWitness) -> Result<(), StoreError> {
        self.put(&self.witnesses, &witness_key(signed.witness.site, signed.witness.head.entries), signed)
    }

    /// The newest witness of a site's ledger.
    pub fn newest_witness(&self, site: SiteId) -> Result<Option<SignedWitness>, StoreError> {
        let last = self.witnesses.scan_prefix(site.as_bytes()).next_back();
        let Some(entry) = last else { return Ok(None) };
        let (_, value) = entry.map_err(|source| self.failed(source))?;
        let damaged = |_| StoreError::Damaged { path: self.path.clone(), what: "witnesses-1" };
        codec::decode(&value).map(Some).map_err(damaged)
    }

    /// Witnesses of a site's ledger whose head has more than `after` entries, oldest first, at most `limit`.
    pub fn witnesses(
        &self,
        site: SiteId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<SignedWitness>, StoreError> {
        let Some(first) = after.checked_add(1) else { return Ok(Vec::new()) };
        let range = witness_key(site, first)..=witness_key(site, u64::MAX);
        let read = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (_, value) = entry.map_err(|source| self.failed(source))?;
            codec::decode(&value)
                .map_err(|_| StoreError::Damaged { path: self.path.clone(), what: "witnesses-1" })
        };
        self.witnesses.range(range).take(limit).map(read).collect()
    }

    /// Keeps a site's latest alarm.
    pub fn put_alarm(&self, site: SiteId, alarm: &Alarm) -> Result<(), StoreError> {
        self.put(&self.alarms, site.as_bytes(), alarm)
    }

    /// Every site's latest alarm.
    pub fn alarms(&self) -> Result<BTreeMap<SiteId, Alarm>, StoreError> {
        let damaged = || StoreError::Damaged { path: self.path.clone(), what: "ledger-alarms-1" };
        let alarms = self.all(self.alarms.iter(), "ledger-alarms-1")?;
        let with_site = |(key, alarm): (sled::IVec, Alarm)| {
            let site = key.as_ref().try_into().map_err(|_| damaged())?;
            Ok((SiteId::from_bytes(site), alarm))
        };
        alarms.into_iter().map(with_site).collect()
    }

    /// Keeps a model under its hash. A long one is on disk on return, a short one after [`Store::sync`].
    pub fn put_model(&self, hash: ContentHash, bytes: &[u8]) -> Result<(), StoreError> {
        if let (true, Some(path)) = (bytes.len() > MODEL_VALUE_LEN, self.model_path(hash)) {
            return write_whole(&path, bytes).map_err(|source| StoreError::Sync { path, source });
        }
        self.models.insert(hash.as_bytes(), bytes).map_err(|source| self.failed(source))
    }

    /// The file of a long model.
    fn model_path(&self, hash: ContentHash) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(hash.to_string()))
    }

    fn damaged(&self, what: &'static str) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }

    /// The model with this hash, checked.
    pub fn model(&self, hash: ContentHash) -> Result<Bytes, StoreError> {
        let value = self.models.get(hash.as_bytes()).map_err(|source| self.failed(source))?;
        let bytes = match (value, self.model_path(hash)) {
            (Some(value), _) => value.to_vec(),
            (None, Some(path)) => std::fs::read(&path).map_err(|source| StoreError::Sync { path, source })?,
            (None, None) => return Err(self.damaged("models-1")),
        };
        if ContentHash::of(&bytes) != hash {
            return Err(self.damaged("models-1"));
        }
        Ok(bytes.into())
    }

    /// Keeps what `job` goes into `round` with beside its model. It counts only once the job's record with that round
    /// is on disk: until then, the state of the round before is there as well.
    pub fn put_server_state(
        &self,
        job: JobId,
        round: RoundId,
        state: &ServerState,
    ) -> Result<(), StoreError> {
        let key = round_key(job, round);
        // With the key in front, no two states have one hash, and one job cannot drop another's.
        let mut bytes = key.clone();
        state.append_to(&mut bytes);
        let hash = ContentHash::of(&bytes);
        self.put_model(hash, &bytes)?;
        let inserted = self.server_states.insert(key, hash.as_bytes().as_slice());
        inserted.map_err(|source| self.failed(source))
    }

    /// What `job` goes into `round` with, checked; `start` before its first round. A state that is not there is an
    /// error: to go on from the start would be another training.
    pub fn server_state(
        &self,
        job: JobId,
        round: RoundId,
        start: ServerState,
    ) -> Result<ServerState, StoreError> {
        let key = round_key(job, round);
        let damaged = || StoreError::Damaged { path: self.path.clone(), what: "server-states-1" };
        let hash = match self.server_states.get(&key).map_err(|source| self.failed(source))? {
            None if round == RoundId(0) => return Ok(start),
            None => return Err(damaged()),
            Some(hash) => ContentHash::from_bytes(hash.as_ref().try_into().map_err(|_| damaged())?),
        };
        let bytes = self.model(hash)?;
        let state = bytes.strip_prefix(key.as_slice()).and_then(|state| start.with_bytes(state));
        state.ok_or_else(damaged)
    }

    /// Drops the server states of `job`, but for that of the round `keep`.
    pub fn forget_server_states(&self, job: JobId, keep: Option<RoundId>) -> Result<(), StoreError> {
        let kept = keep.map(|round| round_key(job, round));
        for entry in self.server_states.scan_prefix(job.as_bytes()) {
            let (key, hash) = entry.map_err(|source| self.failed(source))?;
            if kept.as_deref() == Some(key.as_ref()) {
                continue;
            }
            let damaged = |_| StoreError::Damaged { path: self.path.clone(), what: "server-states-1" };
            let hash = ContentHash::from_bytes(hash.as_ref().try_into().map_err(damaged)?);
            match self.forget_model(hash) {
                // Its key was to go right after it, and the process was killed between the two.
                Err(StoreError::Sync { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
            self.server_states.remove(key).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// Drops a model.
    pub fn forget_model(&self, hash: ContentHash) -> Result<(), StoreError> {
        let value = self.models.remove(hash.as_bytes()).map_err(|source| self.failed(source))?;
        if value.is_some() {
            return Ok(());
        }
        let path = self.model_path(hash).ok_or_else(|| self.damaged("models-1"))?;
        std::fs::remove_file(&path).map_err(|source| StoreError::Sync { path, source })
    }
}

fn round_key(job: JobId, round: RoundId) -> Vec<u8> {
    [job.as_bytes().as_slice(), &round.0.to_be_bytes()].concat()
}

fn witness_key(site: SiteId, entries: u64) -> Vec<u8> {
    [site.as_bytes().as_slice(), &entries.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ledger::Witness;
    use weighhouse_shared::model::ServerOptimizer;

    #[test]
    fn witnesses_of_a_site_are_found_in_order_and_the_newest_first_hand() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let sign = |site: u8, entries: u64| {
            let head = Head { entries, hash: ContentHash::of(&entries.to_le_bytes()) };
            let witness = Witness { site: SiteId::from_bytes([site; 32]), head, time_s: 1, received: vec![] };
            SignedWitness { witness, signature: "00".into() }
        };
        for (site, entries) in [(2, 300), (2, 4), (1, 70_000), (3, 1), (2, 255), (2, 256)] {
            store.put_witness(&sign(site, entries)).unwrap();
        }
        let site = SiteId::from_bytes([2; 32]);
        assert_eq!(store.newest_witness(site).unwrap(), Some(sign(2, 300)));
        assert_eq!(store.newest_witness(SiteId::from_bytes([4; 32])).unwrap(), None);
        assert_eq!(store.witnesses(site, 4, 2).unwrap(), [sign(2, 255), sign(2, 256)]);
        assert_eq!(store.witnesses(site, 0, 9).unwrap().len(), 4);
        assert!(store.witnesses(site, 300, 9).unwrap().is_empty());
        assert!(store.witnesses(site, u64::MAX, 9).unwrap().is_empty());
    }

    #[test]
    fn a_model_and_a_job_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        for parameters in [1_000, 16_384, 200_000] {
            survives(parameters, &folder.path().join(parameters.to_string()));
        }
    }

    #[test]
    fn a_server_state_counts_from_its_round_and_is_there_after_a_restart_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        // A short one is kept in the database, a long one in a file.
        for parameters in [100, 100_000] {
            server_state_survives(parameters, &folder.path().join(parameters.to_string()));
        }
    }

    fn server_state_survives(parameters: usize, path: &Path) {
        let rule = ServerOptimizer::Momentum { learning_rate: 1.0, momentum: 0.9 };
        let start = || ServerState::start(rule, 0.0, parameters).unwrap();
        let [first, other] = [1, 2].map(|byte| JobId::from_bytes([byte; 32]));
        let moved = |by: f64| {
            let mut state = start();
            state.begin_round();
            for at in 0..parameters {
                state.moved(at, 0.0, by);
            }
            state
        };
        {
            let store = Store::open(path).unwrap();
            assert_eq!(store.server_state(first, RoundId(0), start()).unwrap(), start());
            assert!(store.server_state(first, RoundId(1), start()).is_err(), "it would start anew");
            store.put_server_state(first, RoundId(1), &moved(1.0)).unwrap();
            store.put_server_state(first, RoundId(2), &moved(2.0)).unwrap();
            store.put_server_state(other, RoundId(1), &moved(1.0)).unwrap();
            store.sync().unwrap();
        }
        let store = std::iter::repeat_with(|| Store::open(path)).take(100_000).find_map(Result::ok).unwrap();
        assert_eq!(store.server_state(first, RoundId(1), start()).unwrap(), moved(1.0));
        assert_eq!(store.server_state(first, RoundId(2), start()).unwrap(), moved(2.0));
        let kept_files =
            || std::fs::read_dir(path.join("models")).unwrap().count() + store.models.iter().count();
        assert_eq!(kept_files(), 3);
        store.forget_server_states(first, Some(RoundId(2))).unwrap();
        assert!(store.server_state(first, RoundId(1), start()).is_err());
        assert_eq!(store.server_state(first, RoundId(2), start()).unwrap(), moved(2.0));
        store.forget_server_states(first, None).unwrap();
        assert!(store.server_state(first, RoundId(2), start()).is_err());
        assert_eq!(store.server_state(other, RoundId(1), start()).unwrap(), moved(1.0));
        assert_eq!(kept_files(), 1);
        let wider = ServerState::start(rule, 0.0, parameters + 1).unwrap();
        assert!(store.server_state(other, RoundId(1), wider).is_err());
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
