//! The site's part in jobs' secure sums, kept on disk: one file a job with its secret and what the site committed itself
//! to. What is said after a change is given out only once the change is on disk; a job's file goes with the job.
//!
//! The file may be lost, and nothing is: with it goes the secret, and the site is out of the job's sums from then on. It
//! must not be put back from a backup: what the site has answered since would be forgotten.

use crate::offer::CheckedContract;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use weighhouse_shared::config;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{JobId, RoundId};
use weighhouse_shared::privacy::GeneratorError;
use weighhouse_shared::secure_sum::batch_of;
use weighhouse_shared::secure_sum::keys::JobSecret;
use weighhouse_shared::secure_sum::masks::Masks;
use weighhouse_shared::secure_sum::site::{Member, Record, Refusal};
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{SumAnswer, SumBatch, SumKey, SumOffer, SumQuestion, SumRoster};

/// Why the site does not do its part.
#[derive(Debug, thiserror::Error)]
pub enum SumError {
    /// The file cannot be used.
    #[error("cannot use {path}; is the disk full?")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system has no randomness.
    #[error("no randomness to be had from the system")]
    Generator(#[from] GeneratorError),
    /// The job has no secure sums, or the site does not take part in it.
    #[error("this site takes part in no secure sums of the job")]
    Unknown,
    /// What the coordinator says does not hold.
    #[error("the coordinator was refused")]
    Refused(#[from] Refusal),
}

/// A site's secure sums, of all its jobs.
#[derive(Debug)]
pub struct Sums {
    folder: PathBuf,
    jobs: Mutex<BTreeMap<JobId, Job>>,
}

#[derive(Debug)]
struct Job {
    contract: CheckedContract,
    member: Member,
}

impl Sums {
    /// Opens or makes the folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.into(), jobs: Mutex::default() })
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobId, Job>> {
        // A panic elsewhere cannot leave a member half-changed: what it commits itself to is written in one step.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.folder.join(job.to_string())
    }

    fn keep(&self, job: JobId, record: &Record) -> Result<(), SumError> {
        let path = self.path(job);
        config::replace_private(&path, &codec::encode(record))
            .map_err(|source| SumError::File { path, source })
    }

    /// What is on disk, or a new secret that is there from now on. A file that is cut short or damaged holds no secret
    /// any more.
    fn record(&self, job: JobId) -> Result<Record, SumError> {
        let path = self.path(job);
        match std::fs::read(&path) {
            Ok(bytes) => {
                if let Ok(record) = codec::decode(&bytes) {
                    return Ok(record);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(SumError::File { path, source }),
        }
        let record = Record::new(JobSecret::generate()?);
        self.keep(job, &record)?;
        Ok(record)
    }

    /// The site's key for the sums of a job that it takes part in.
    pub fn key(&self, contract: &CheckedContract, identity: &Identity) -> Result<SumKey, SumError> {
        let job = contract.job;
        let mut jobs = self.jobs();
        let known = match jobs.entry(job) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let member = Member::new(job, identity.site(), self.record(job)?);
                new.insert(Job { contract: contract.clone(), member })
            }
        };
        Ok(SumKey { job, key: known.member.signed_key(identity) })
    }

    /// Does `part` for the job and keeps what it committed the site to.
    fn commit<T>(
        &self,
        job: JobId,
        part: impl FnOnce(&CheckedContract, &mut Member) -> Result<T, SumError>,
    ) -> Result<T, SumError> {
        let mut jobs = self.jobs();
        let Job { contract, member } = jobs.get_mut(&job).ok_or(SumError::Unknown)?;
        let before = member.record().clone();
        let said = part(contract, member)?;
        if *member.record() != before {
            self.keep(job, member.record())?;
        }
        Ok(said)
    }

    /// Takes the job's roster; the site's part in its next batch, if there is one more.
    pub fn take_roster(&self, told: SumRoster) -> Result<Option<SumOffer>, SumError> {
        self.commit(told.job, |checked, member| {
            let contract = &checked.contract;
            // Of its own group: with a member of another on it, it is no roster.
            let members = contract.group_of_member(member.site()).ok_or(SumError::Unknown)?;
            let terms = contract.federation.sum_terms(&members).ok_or(SumError::Unknown)?;
            member.take_roster(terms, told.keys)?;
            next_offer(checked, member)
        })
    }

    /// Takes a batch; the site's part in the next one, if there is one more.
    pub fn take_batch(&self, told: SumBatch) -> Result<Option<SumOffer>, SumError> {
        self.commit(told.job, |contract, member| {
            member.take_batch(told.grant)?;
            next_offer(contract, member)
        })
    }

    /// Whether masks for the round can be made.
    pub fn is_prepared(&self, job: JobId, round: RoundId) -> bool {
        self.jobs().get(&job).is_some_and(|job| job.member.is_prepared(round))
    }

    /// The site's masks of a round.
    pub fn masks(&self, job: JobId, round: RoundId) -> Result<Masks, SumError> {
        let jobs = self.jobs();
        Ok(jobs.get(&job).ok_or(SumError::Unknown)?.member.masks(round)?)
    }

    /// The answer to a question; that the site has given it is on disk.
    pub fn answer(&self, told: &SumQuestion) -> Result<SumAnswer, SumError> {
        let job = told.job;
        self.commit(job, |_, member| Ok(SumAnswer { job, answer: member.answer(&told.question)? }))
    }

    /// The job is over: its secret is deleted, and with it what could open its rounds.
    pub fn forget(&self, job: JobId) -> io::Result<()> {
        self.jobs().remove(&job);
        match std::fs::remove_file(self.path(job)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn next_offer(contract: &CheckedContract, member: &Member) -> Result<Option<SumOffer>, SumError> {
    let batch = member.next_batch();
    let last = batch_of(RoundId(contract.contract.training.rounds.saturating_sub(1)));
    if batch > last {
        return Ok(None);
    }
    Ok(Some(SumOffer { job: contract.job, offer: member.offer(batch)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::sample_contract;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use weighhouse_shared::ids::SiteId;
    use weighhouse_shared::job::{ProtectionMode, SecureSum, SumGroups};
    use weighhouse_shared::secure_sum::keys::SignedKey;
    use weighhouse_shared::secure_sum::roster::RosterError;

    fn checked(identity: &Identity) -> CheckedContract {
        let mut contract = sample_contract();
        let members = vec![identity.site()];
        contract.federation.mode = ProtectionMode::SecureSum(SecureSum { members, colluding_sites: 0 });
        CheckedContract { job: contract.id(), contract: Arc::new(contract) }
    }

    #[test]
    fn a_key_is_the_same_after_a_restart_and_another_once_its_job_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::generate().unwrap();
        let contract = checked(&identity);
        let sums = || Sums::open(folder.path()).unwrap();
        let first = sums().key(&contract, &identity).unwrap();
        assert_eq!(sums().key(&contract, &identity).unwrap(), first);
        let path = sums().path(contract.job);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        sums().forget(contract.job).unwrap();
        assert!(!path.exists());
        sums().forget(contract.job).unwrap();
        assert_ne!(sums().key(&contract, &identity).unwrap(), first);
        // Cut short: what it held is gone for good.
        std::fs::write(&path, [1; 7]).unwrap();
        assert_ne!(sums().key(&contract, &identity).unwrap(), first);
    }

    #[test]
    fn a_roster_with_a_member_of_another_group_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut identities: Vec<Identity> = (0..8).map(|_| Identity::generate().unwrap()).collect();
        identities.sort_by_key(Identity::site);
        let mut contract = sample_contract();
        let members = identities.iter().map(Identity::site).collect();
        let sum = SecureSum { members, colluding_sites: 1 };
        let groups = SumGroups { sum, groups: 2, min_groups: 2 };
        (contract.federation.mode, contract.federation.min_sites) = (ProtectionMode::GroupedSums(groups), 3);
        let checked = CheckedContract { job: contract.id(), contract: Arc::new(contract.clone()) };
        let (job, own) = (checked.job, &identities[0]);
        let sums = Sums::open(folder.path()).unwrap();
        let own_key = sums.key(&checked, own).unwrap().key;
        let roster = |sites: &[SiteId]| {
            let of = |site: &&Identity| sites.contains(&site.site());
            let key = |site: &Identity| match site.site() == own.site() {
                true => own_key.clone(),
                false => SignedKey::sign(site, job, [7; 32]),
            };
            SumRoster { job, keys: identities.iter().filter(of).map(key).collect() }
        };
        let group = contract.group_of_member(own.site()).unwrap();
        let stranger = identities.iter().map(Identity::site).find(|site| !group.contains(site)).unwrap();
        let last = *group.iter().rfind(|site| **site != own.site()).unwrap();
        let swapped: Vec<SiteId> =
            group.iter().map(|site| if *site == last { stranger } else { *site }).collect();
        let refused = sums.take_roster(roster(&swapped)).unwrap_err();
        let is_stranger = matches!(
            refused,
            SumError::Refused(Refusal::Roster(RosterError::Stranger(site))) if site == stranger
        );
        assert!(is_stranger, "{refused:?}");
        assert!(sums.take_roster(roster(&group)).unwrap().is_some());
    }

    #[test]
    fn nothing_is_said_of_a_job_that_the_site_does_not_take_part_in() {
        let folder = tempfile::tempdir().unwrap();
        let sums = Sums::open(folder.path()).unwrap();
        let job = JobId::from_bytes([1; 32]);
        let roster = SumRoster { job, keys: Vec::new() };
        assert!(matches!(sums.take_roster(roster), Err(SumError::Unknown)));
        assert!(matches!(sums.masks(job, RoundId(0)), Err(SumError::Unknown)));
        assert!(!sums.is_prepared(job, RoundId(0)));
    }
}
