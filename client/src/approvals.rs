//! Jobs that someone at the site has to approve: one JSON file a job in the home's `approvals` folder,
//! written whole, so that an offer and what was decided about it survive any kill.
//!
//! The daemon puts an offer there; `weighhouse client approve` and `refuse` decide. Whoever decides rings the
//! daemon over a Unix datagram socket beside the files: the ring says nothing, the daemon then
//! reads the files. One that rings while no daemon runs is not lost either: a daemon reads them when the
//! coordinator offers the job again.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::net::UnixDatagram as Bell;
use std::path::{Path, PathBuf};
use tokio::net::UnixDatagram;
use weighhouse_shared::config::write_whole;
use weighhouse_shared::ids::{ContentHash, JobId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::frame::MAX_FRAME_LEN;
use weighhouse_shared::wire::messages::SignedContract;

/// Jobs kept of those that wait, and as many of the others; the oldest is dropped.
pub const MAX_CASES: usize = 256;

/// The longest file: an offer fits a frame, and hexadecimal doubles it.
const MAX_FILE_LEN: u64 = 2 * MAX_FRAME_LEN as u64 + 4096;

/// The daemon's socket in the folder.
const BELL: &str = "bell";

/// What was decided about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing yet.
    Waiting,
    /// It may run.
    Approved,
    /// It may not; for good.
    Refused,
    /// It was approved and has ended.
    Ended,
}

/// A job that was put before the site's people.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The job.
    pub job: JobId,
    /// What it would do. Its signature and rules are checked when it is offered and before it runs, not here.
    pub contract: JobContract,
    /// As it came.
    pub offer: SignedContract,
    /// When it came, in seconds since 1970.
    pub offered_s: u64,
    /// What was decided.
    pub verdict: Verdict,
    /// When, in seconds since 1970.
    pub decided_s: Option<u64>,
}

/// A case's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    name: String,
    verdict: Verdict,
    offered_s: u64,
    decided_s: Option<u64>,
    contract: Hex,
    certificate: Hex,
    signature: Hex,
}

/// Bytes, in hexadecimal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hex(Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = data_encoding::DecodeError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        data_encoding::HEXLOWER.decode(text.as_bytes()).map(Self)
    }
}

impl From<Hex> for String {
    fn from(bytes: Hex) -> Self {
        data_encoding::HEXLOWER.encode(&bytes.0)
    }
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalsError {
    /// A file cannot be read or written.
    #[error("cannot use {path}; is the disk full, and is it this user's?")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold a case.
    #[error("{path} does not hold an offered job; remove it, and the coordinator's next offer makes it anew")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// No such job waits.
    #[error("no job {text} was put before this site; `weighhouse client jobs` shows all")]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// The text fits several.
    #[error("{text} is the beginning of {jobs} jobs; give more of it")]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// How many.
        jobs: usize,
    },
}

/// The folder of one site's cases.
#[derive(Debug)]
pub struct Approvals {
    folder: PathBuf,
    bell: Option<UnixDatagram>,
}

impl Approvals {
    /// The cases in `folder`, to read and to decide; the folder need not be there.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.into(), bell: None }
    }

    /// Opens or makes the folder for the daemon, of which a home has one, and hangs up its bell. Must be
    /// called inside a runtime.
    pub fn listen(folder: &Path) -> Result<Self, ApprovalsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| ApprovalsError::File { path, source }
        };
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        let path = folder.join(BELL);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
            _ => {}
        }
        // A path of over a hundred bytes is too long for a socket; everything else works without.
        let bell = UnixDatagram::bind(&path).inspect_err(|error| {
            tracing::warn!(%error, "approvals will be seen only when the site connects anew: {} cannot be made; give the home a shorter path", path.display());
        });
        Ok(Self { folder: folder.into(), bell: bell.ok() })
    }

    /// Returns when someone has decided something, or says so.
    pub async fn rung(&self) {
        match &self.bell {
            Some(bell) => {
                // An error is as good a reason to look as any.
                let _ = bell.recv(&mut [0; 8]).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Rings the daemon. False if none listens.
    fn ring(&self) -> bool {
        let sent = Bell::unbound().and_then(|bell| {
            bell.set_nonblocking(true)?;
            bell.send_to(&[1], self.folder.join(BELL))
        });
        match sent {
            Ok(_) => true,
            // It has rung often enough to be heard.
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.folder.join(format!("{job}.json"))
    }

    /// All cases, oldest first.
    pub fn all(&self) -> Result<Vec<Case>, ApprovalsError> {
        let failed = |source| ApprovalsError::File { path: self.folder.clone(), source };
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut cases = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let job = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            let Some(job) = job else { continue };
            // One decided or dropped meanwhile is no longer there.
            cases.extend(self.find(job)?);
        }
        cases.sort_by_key(|case| (case.offered_s, case.job));
        Ok(cases)
    }

    /// The case of `job`, if it was put before the site.
    pub fn find(&self, job: JobId) -> Result<Option<Case>, ApprovalsError> {
        let path = self.path(job);
        let len = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ApprovalsError::File { path, source }),
        };
        let damaged = || ApprovalsError::Damaged { path: path.clone() };
        if len > MAX_FILE_LEN {
            return Err(damaged());
        }
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ApprovalsError::File { path, source }),
        };
        let file: CaseFile = serde_json::from_slice(&text).map_err(|_| damaged())?;
        let contract: JobContract = codec::decode(&file.contract.0).map_err(|_| damaged())?;
        if ContentHash::of(&file.contract.0).as_bytes() != job.as_bytes() {
            return Err(damaged());
        }
        let offer = SignedContract {
            contract: file.contract.0,
            certificate: file.certificate.0,
            signature: file.signature.0,
        };
        let CaseFile { verdict, offered_s, decided_s, .. } = file;
        Ok(Some(Case { job, contract, offer, offered_s, verdict, decided_s }))
    }

    /// The case that a person means: the beginning of the job's identifier.
    pub fn named(&self, text: &str) -> Result<Case, ApprovalsError> {
        let mut cases = self.all()?;
        cases.retain(|case| case.job.to_string().starts_with(text));
        match cases.len() {
            1 => Ok(cases.remove(0)),
            0 => Err(ApprovalsError::Unknown { text: text.into() }),
            jobs => Err(ApprovalsError::Ambiguous { text: text.into(), jobs }),
        }
    }

    /// Puts a checked offer before the site's people, unless it stands there already; what they decided.
    /// A job that has ended is a new one to them.
    pub fn ask(
        &self,
        job: JobId,
        contract: &JobContract,
        offer: &SignedContract,
        now_s: u64,
    ) -> Result<Verdict, ApprovalsError> {
        match self.find(job) {
            Ok(Some(case)) if case.verdict != Verdict::Ended => return Ok(case.verdict),
            Ok(_) | Err(ApprovalsError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let (contract, offer) = (contract.clone(), offer.clone());
        let verdict = Verdict::Waiting;
        self.write(&Case { job, contract, offer, offered_s: now_s, verdict, decided_s: None })?;
        if let Err(error) = self.drop_oldest() {
            tracing::warn!(%error, "jobs that wait for approval could not be counted");
        }
        Ok(verdict)
    }

    /// Writes a decision and rings the daemon. False if none is running: it learns of it when it next
    /// connects.
    pub fn decide(&self, case: &Case, verdict: Verdict, now_s: u64) -> Result<bool, ApprovalsError> {
        self.write(&Case { verdict, decided_s: Some(now_s), ..case.clone() })?;
        Ok(self.ring())
    }

    /// A job is over: there is nothing left to decide about it.
    pub fn ended(&self, job: JobId) -> Result<(), ApprovalsError> {
        match self.find(job)? {
            Some(case) if case.verdict == Verdict::Waiting => self.remove(job),
            Some(case) if case.verdict == Verdict::Approved => {
                self.write(&Case { verdict: Verdict::Ended, ..case })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, case: &Case) -> Result<(), ApprovalsError> {
        let file = CaseFile {
            name: case.contract.name.clone(),
            verdict: case.verdict,
            offered_s: case.offered_s,
            decided_s: case.decided_s,
            contract: Hex(case.offer.contract.clone()),
            certificate: Hex(case.offer.certificate.clone()),
            signature: Hex(case.offer.signature.clone()),
        };
        let path = self.path(case.job);
        let text = serde_json::to_string_pretty(&file).expect("names and hexadecimal are JSON");
        write_whole(&path, text.as_bytes()).map_err(|source| ApprovalsError::File { path, source })
    }

    fn remove(&self, job: JobId) -> Result<(), ApprovalsError> {
        let path = self.path(job);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ApprovalsError::File { path, source: error })
            }
            _ => Ok(()),
        }
    }

    fn drop_oldest(&self) -> Result<(), ApprovalsError> {
        let (waiting, decided): (Vec<Case>, Vec<Case>) =
            self.all()?.into_iter().partition(|case| case.verdict == Verdict::Waiting);
        for cases in [waiting, decided] {
            let surplus = cases.len().saturating_sub(MAX_CASES);
            cases.iter().take(surplus).try_for_each(|case| self.remove(case.job))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::sample_contract;

    fn sample(number: usize) -> (JobId, JobContract, SignedContract) {
        let mut contract = sample_contract();
        contract.nonce = (number as u128).to_le_bytes();
        let offer =
            SignedContract { contract: codec::encode(&contract), certificate: vec![1], signature: vec![2] };
        (contract.id(), contract, offer)
    }

    fn ask(approvals: &Approvals, number: usize) -> (JobId, Verdict) {
        let (job, contract, offer) = sample(number);
        (job, approvals.ask(job, &contract, &offer, number as u64).unwrap())
    }

    #[test]
    fn a_decision_holds_for_its_job_until_that_ends() {
        let folder = tempfile::tempdir().unwrap();
        let approvals = Approvals::at(folder.path());
        let (job, verdict) = ask(&approvals, 1);
        assert_eq!(verdict, Verdict::Waiting);
        let case = approvals.named(&job.short()).unwrap();
        assert_eq!(case.contract, sample(1).1);
        let heard = approvals.decide(&case, Verdict::Approved, 7).unwrap();
        assert!(!heard, "no daemon listens");
        assert_eq!(ask(&Approvals::at(folder.path()), 1), (job, Verdict::Approved));
        assert_eq!(ask(&approvals, 2).1, Verdict::Waiting);
        approvals.ended(job).unwrap();
        assert_eq!(approvals.find(job).unwrap().unwrap().verdict, Verdict::Ended);
        assert_eq!(ask(&approvals, 1).1, Verdict::Waiting, "offered again after its end, it is a new job");
        approvals.ended(job).unwrap();
        assert_eq!(approvals.find(job).unwrap(), None);
    }

    #[test]
    fn a_refusal_outlives_the_job() {
        let folder = tempfile::tempdir().unwrap();
        let approvals = Approvals::at(folder.path());
        let (job, _) = ask(&approvals, 1);
        approvals.decide(&approvals.find(job).unwrap().unwrap(), Verdict::Refused, 7).unwrap();
        approvals.ended(job).unwrap();
        assert_eq!(ask(&approvals, 1).1, Verdict::Refused);
    }

    #[test]
    fn the_oldest_waiting_jobs_are_dropped_and_decided_ones_spared() {
        let folder = tempfile::tempdir().unwrap();
        let approvals = Approvals::at(folder.path());
        let (decided, _) = ask(&approvals, 0);
        approvals.decide(&approvals.find(decided).unwrap().unwrap(), Verdict::Approved, 7).unwrap();
        for number in 1..=MAX_CASES {
            // Written directly: only the last is put through the whole of it.
            let (job, contract, offer) = sample(number);
            let (offered_s, verdict) = (number as u64, Verdict::Waiting);
            let text = Case { job, contract, offer, offered_s, verdict, decided_s: None };
            approvals.write(&text).unwrap();
        }
        let (newest, _) = ask(&approvals, MAX_CASES + 1);
        let jobs: Vec<JobId> = approvals.all().unwrap().into_iter().map(|case| case.job).collect();
        assert_eq!(jobs.len(), MAX_CASES + 1);
        assert!(jobs.contains(&decided) && jobs.contains(&newest) && !jobs.contains(&sample(1).0));
    }

    #[test]
    fn a_damaged_file_and_one_under_anothers_name_are_told_and_an_offer_mends_them() {
        let folder = tempfile::tempdir().unwrap();
        let approvals = Approvals::at(folder.path());
        let (job, _) = ask(&approvals, 1);
        let other = sample(2).0;
        std::fs::rename(approvals.path(job), approvals.path(other)).unwrap();
        assert!(matches!(approvals.find(other), Err(ApprovalsError::Damaged { .. })));
        std::fs::write(approvals.path(other), "{").unwrap();
        assert!(matches!(approvals.all(), Err(ApprovalsError::Damaged { .. })));
        assert_eq!(ask(&approvals, 2), (other, Verdict::Waiting));
        assert_eq!(approvals.all().unwrap().len(), 1);
        for (text, wrong) in [("ff00", "no job ff00"), ("", "")] {
            let found = approvals.named(text).map_err(|error| error.to_string());
            assert!(found.as_ref().err().is_none_or(|error| error.contains(wrong)), "{found:?}");
        }
    }

    #[tokio::test]
    async fn a_decision_rings_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Approvals::listen(&folder.path().join("approvals")).unwrap();
        let (job, _) = ask(&daemon, 1);
        let person = Approvals::at(&folder.path().join("approvals"));
        let case = person.find(job).unwrap().unwrap();
        assert!(person.decide(&case, Verdict::Approved, 7).unwrap());
        daemon.rung().await;
        assert_eq!(ask(&daemon, 1).1, Verdict::Approved);
        for _ in 0..1000 {
            assert!(person.decide(&case, Verdict::Approved, 7).unwrap(), "a full queue is as good as a ring");
        }
    }
}
