//! The site's privacy budget: a lock, not a log. Its authority is the ledger file; an entry is on disk,
//! synced, before anything that it pays for may happen.
//!
//! - [`Budget::open`] records the policy in force; one that its officer has not signed opens nothing.
//! - [`Budget::reserve`] sets a job's worst case aside, or refuses with figures.
//! - [`Budget::debit`] spends part of it and hands out a [`Debit`], without which no noise can be drawn.
//! - [`Budget::release`] binds the bytes that the debit paid for, before the first of them leaves.
//! - [`Budget::give_back`] frees what an ended job did not spend.

use crate::witnesses::Contradiction;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use weighhouse_shared::clock;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::ledger::{
    self, Balance, Body, Chain, Charge, Entry, Head, LedgerFault, LedgerRule, Population, ReleaseKind, Torn,
    Trail, Witness,
};
use weighhouse_shared::policy::PolicyText;
use weighhouse_shared::privacy::Mechanism;

/// Why the budget cannot be used or will not pay.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The ledger's file cannot be read or written.
    #[error("cannot use the privacy ledger {path}; nothing more will leave this site until that is mended")]
    File {
        /// The ledger.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process holds the ledger.
    #[error("another daemon already runs in this home: its ledger {path} is locked; stop it first")]
    Locked {
        /// The ledger.
        path: PathBuf,
    },
    /// The ledger was changed or is damaged.
    #[error(
        "the privacy ledger {path} has been damaged or tampered with; restore it from a backup and inform the data-protection officer"
    )]
    Damaged {
        /// The ledger.
        path: PathBuf,
        /// Where, and how.
        #[source]
        source: LedgerFault,
    },
    /// The ledger is another site's.
    #[error("the privacy ledger {path} belongs to another site; each home keeps its own")]
    Foreign {
        /// The ledger.
        path: PathBuf,
    },
    /// The share of held-out customers is fixed for a ledger's life.
    #[error(
        "`data.holdout` was {ledger} thousandths when the ledger began and cannot change: customers would move \
         between the two groups and pay twice; set it back in client.toml"
    )]
    Holdout {
        /// What the ledger says.
        ledger: u32,
    },
    /// The ledger is not the one that the coordinator saw.
    #[error(transparent)]
    Contradicted(#[from] Contradiction),
    /// A rule of the ledger refuses.
    #[error(transparent)]
    Refused(#[from] LedgerRule),
}

/// A paid permission to draw the noise of `steps` releases. Cannot be copied or made elsewhere.
#[derive(Debug)]
pub struct Debit {
    charge: Charge,
    mechanism: Mechanism,
    steps_left: u32,
}

impl Debit {
    /// What it paid for.
    pub fn charge(&self) -> &Charge {
        &self.charge
    }

    /// What each of its steps draws.
    pub fn mechanism(&self) -> &Mechanism {
        &self.mechanism
    }

    /// Uses one step. False when none is left.
    pub(crate) fn use_step(&mut self) -> bool {
        self.steps_left.checked_sub(1).is_some_and(|left| {
            self.steps_left = left;
            true
        })
    }

    #[cfg(test)]
    pub(crate) fn for_test(charge: Charge, mechanism: Mechanism) -> Self {
        Self { charge, mechanism, steps_left: charge.event.steps }
    }
}

/// A debit, and the bytes it was bound to, if it was.
#[derive(Debug, Clone, Copy)]
struct Paid {
    sequence: u64,
    content: Option<ContentHash>,
}

/// The budget of one site; at most one process has it open.
pub struct Budget {
    path: PathBuf,
    file: File,
    chain: Chain,
    /// Of the chain, to hold witnesses against.
    trail: Trail,
    identity: Identity,
    /// Debits of running jobs.
    debits: BTreeMap<(JobId, RoundId, Population), Paid>,
    /// A write failed part-way: the file's end is unknown until it is opened again.
    broken: bool,
}

impl Budget {
    /// Opens the ledger at `path` or begins one, locks it, checks every line, mends a torn last one,
    /// and records `policy` if it is not the one in force. `holdout_permille` are the customers held out.
    pub fn open(
        path: &Path,
        identity: Identity,
        policy: &PolicyText,
        holdout_permille: u32,
    ) -> Result<Self, BudgetError> {
        Self::open_witnessed(path, identity, policy, holdout_permille, None)
    }

    /// The same, if the ledger does not contradict `newest`, the newest witness of it; writes nothing if it does.
    pub fn open_witnessed(
        path: &Path,
        identity: Identity,
        policy: &PolicyText,
        holdout_permille: u32,
        newest: Option<&Witness>,
    ) -> Result<Self, BudgetError> {
        let file_error = |source| BudgetError::File { path: path.into(), source };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(file_error)?;
        if !file.metadata().map_err(file_error)?.is_file() {
            return Err(file_error(io::Error::other("it is not a plain file")));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(BudgetError::Locked { path: path.into() }),
            Err(std::fs::TryLockError::Error(source)) => return Err(file_error(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(file_error)?;
        let (mut debits, mut trail) = (BTreeMap::new(), Trail::default());
        let note = |entry: &Entry| {
            note_debit(&mut debits, entry);
            trail.note(entry);
        };
        let (chain, torn) = ledger::read(&bytes, note)
            .map_err(|source| BudgetError::Damaged { path: path.into(), source })?;
        if !chain.is_empty() {
            trail.end(chain.head().hash);
        }
        if let Some(Torn { bytes: torn }) = torn {
            tracing::warn!(bytes = torn, "cut a torn last line off the ledger: its writing was interrupted");
            file.set_len((bytes.len() - torn) as u64).map_err(file_error)?;
            file.seek(SeekFrom::End(0)).map_err(file_error)?;
            file.sync_data().map_err(file_error)?;
        }
        let mut budget = Self { path: path.into(), file, chain, trail, identity, debits, broken: false };
        if let Some(newest) = newest {
            budget.hold_against(newest)?;
        }
        budget.agree(policy, holdout_permille)?;
        Ok(budget)
    }

    fn agree(&mut self, policy: &PolicyText, holdout_permille: u32) -> Result<(), BudgetError> {
        match self.chain.public_key() {
            None => {
                let public_key = data_encoding::HEXLOWER.encode(&self.identity.public_key());
                self.write(Body::Opened { public_key, holdout_permille, policy: policy.clone() })?;
                let folder = self.path.parent().unwrap_or(Path::new("."));
                let synced = File::open(folder).and_then(|folder| folder.sync_all());
                return synced.map_err(|source| BudgetError::File { path: self.path.clone(), source });
            }
            Some(key) if *key != self.identity.public_key() => {
                return Err(BudgetError::Foreign { path: self.path.clone() });
            }
            Some(_) => {}
        }
        let ledger = self.balance().holdout_permille();
        if ledger != holdout_permille {
            return Err(BudgetError::Holdout { ledger });
        }
        if self.balance().policy_text() != Some(policy) {
            self.write(Body::PolicySet { policy: policy.clone() })?;
        }
        Ok(())
    }

    /// The site whose ledger it is.
    pub fn site(&self) -> SiteId {
        self.identity.site()
    }

    /// How far the ledger on disk has come, with the site's signature.
    pub fn signed_head(&self) -> (Head, [u8; 64]) {
        let head = self.chain.head();
        (head, head.sign(&self.identity))
    }

    /// Whether the ledger is the one that `witness` saw.
    pub fn hold_against(&self, witness: &Witness) -> Result<(), Contradiction> {
        let checked = self.trail.check(self.identity.site(), witness, 1);
        checked.map_err(|fault| Contradiction { ledger: self.path.clone(), fault })
    }

    /// What the ledger adds up to.
    pub fn balance(&self) -> &Balance {
        self.chain.balance()
    }

    /// Sets `charges` aside for `job`, which its operator calls `name`; nothing changes if it holds a reservation already.
    pub fn reserve(&mut self, job: JobId, name: &str, charges: Vec<Charge>) -> Result<(), BudgetError> {
        if self.holds(job) {
            return Ok(());
        }
        self.write(Body::Reserved { job, name: name.into(), charges }).map(|_| ())
    }

    /// Spends `charge` of what `job` reserved, for releases by `mechanism`. On return it is on disk.
    pub fn debit(
        &mut self,
        job: JobId,
        round: RoundId,
        charge: Charge,
        mechanism: Mechanism,
    ) -> Result<Debit, BudgetError> {
        if self.is_debited(job, round, charge.population) {
            return Err(LedgerRule::NotReserved { job }.into());
        }
        self.write(Body::Debited { job, round, charge, mechanism })?;
        Ok(Debit { charge, mechanism, steps_left: charge.event.steps })
    }

    /// Whether the round's debit is spent already: it is never spent twice, so the round's bytes are the
    /// stored ones or none.
    pub fn is_debited(&self, job: JobId, round: RoundId, population: Population) -> bool {
        self.debits.contains_key(&(job, round, population))
    }

    /// Binds the bytes, `len` of them with hash `content`, that the round's debit paid for. On return that is on disk, and they may leave. The
    /// same bytes may be bound again, as for a retry; others are refused.
    pub fn release(
        &mut self,
        job: JobId,
        round: RoundId,
        population: Population,
        kind: ReleaseKind,
        content: ContentHash,
        len: u64,
    ) -> Result<(), BudgetError> {
        match self.debits.get(&(job, round, population)) {
            Some(Paid { content: Some(bound), .. }) if *bound == content => Ok(()),
            Some(Paid { sequence, content: None }) => {
                self.write(Body::Released { job, round, kind, debit: *sequence, content, len })?;
                Ok(())
            }
            Some(Paid { sequence, .. }) => Err(LedgerRule::Unpaid { job, debit: *sequence }.into()),
            None => Err(LedgerRule::NotReserved { job }.into()),
        }
    }

    /// Whether `job` holds a reservation.
    pub fn holds(&self, job: JobId) -> bool {
        self.balance().running_jobs().any(|running| running == job)
    }

    /// Frees what `job` did not spend; nothing changes if it holds no reservation.
    pub fn give_back(&mut self, job: JobId) -> Result<(), BudgetError> {
        if !self.holds(job) {
            return Ok(());
        }
        self.write(Body::Returned { job }).map(|_| ())
    }

    fn write(&mut self, body: Body) -> Result<Entry, BudgetError> {
        let file_error = |source| BudgetError::File { path: self.path.clone(), source };
        if self.broken {
            return Err(file_error(io::Error::other("an earlier write failed; restart the daemon")));
        }
        let (chain, entry, line) = self.chain.next(body, &self.identity, clock::unix_time_s())?;
        // Whatever fails from here on may have left part of a line: only opening anew finds out.
        self.broken = true;
        self.file.write_all(line.as_bytes()).map_err(file_error)?;
        self.file.sync_data().map_err(file_error)?;
        self.broken = false;
        self.chain = chain;
        self.trail.note(&entry);
        self.trail.end(self.chain.head().hash);
        note_debit(&mut self.debits, &entry);
        Ok(entry)
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("path", &self.path).finish_non_exhaustive()
    }
}

fn note_debit(debits: &mut BTreeMap<(JobId, RoundId, Population), Paid>, entry: &Entry) {
    match &entry.body {
        Body::Debited { job, round, charge, .. } => {
            let paid = Paid { sequence: entry.sequence, content: None };
            debits.insert((*job, *round, charge.population), paid);
        }
        Body::Released { debit, content, .. } => {
            let bound = debits.values_mut().find(|paid| paid.sequence == *debit);
            if let Some(paid) = bound {
                paid.content = Some(*content);
            }
        }
        Body::Returned { job } => debits.retain(|(owner, ..), _| owner != job),
        Body::Opened { .. } | Body::PolicySet { .. } | Body::Reserved { .. } => {}
    }
}

/// What `charges` would bring epsilon to at `now_s`, with all that running jobs hold; refuses as
/// [`Budget::reserve`] would. Nothing is written.
pub fn preview(
    balance: &Balance,
    job: JobId,
    name: &str,
    charges: Vec<Charge>,
    now_s: u64,
) -> Result<f64, LedgerRule> {
    let mut with = balance.clone();
    let now_s = now_s.max(balance.time_s());
    if balance.running_jobs().all(|running| running != job) {
        with.apply(u64::MAX, now_s, &Body::Reserved { job, name: name.into(), charges })?;
    }
    Ok(with.cap().map_or(0.0, |(_, delta)| with.spent_at(now_s, delta).reserved))
}

/// Reads a ledger without opening it for writing: for status and audit.
pub fn read_ledger(path: &Path, each: impl FnMut(&Entry)) -> Result<Chain, BudgetError> {
    let bytes = std::fs::read(path).map_err(|source| BudgetError::File { path: path.into(), source })?;
    let (chain, _) =
        ledger::read(&bytes, each).map_err(|source| BudgetError::Damaged { path: path.into(), source })?;
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ledger::Spent;
    use weighhouse_shared::policy::first_policy;
    use weighhouse_shared::privacy::accountant::GaussianEvent;
    use weighhouse_shared::privacy::grid::Grid;
    use weighhouse_shared::privacy::{ClipNorm, Delta, Epsilon, NoiseMultiplier, SamplingRate};

    const JOB: JobId = JobId::from_bytes([5; 32]);

    fn policy(cap: f64) -> PolicyText {
        PolicyText::unsigned(first_policy(Epsilon::new(cap).unwrap(), Delta::new(1e-5).unwrap()))
    }

    fn spent(budget: &Budget) -> Spent {
        budget.balance().spent_at(clock::unix_time_s(), Delta::new(1e-5).unwrap())
    }

    fn mechanism() -> Mechanism {
        let grid = Grid::new(ClipNorm::new(0.5).unwrap());
        Mechanism::clipped_gradient_sum(&grid, NoiseMultiplier::new(5.0).unwrap())
    }

    fn charge(steps: u32) -> Charge {
        let noise_multiplier = NoiseMultiplier::new(5.0).unwrap();
        let event = GaussianEvent { noise_multiplier, sampling_rate: SamplingRate::new(1.0).unwrap(), steps };
        Charge { population: Population::Training, event }
    }

    struct Home {
        folder: tempfile::TempDir,
    }

    impl Home {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Identity::generate().unwrap().save_new(&folder.path().join("site.key")).unwrap();
            Self { folder }
        }

        fn ledger(&self) -> PathBuf {
            self.folder.path().join("ledger.jsonl")
        }

        fn open(&self, cap: f64) -> Result<Budget, BudgetError> {
            let identity = Identity::load(&self.folder.path().join("site.key")).unwrap();
            Budget::open(&self.ledger(), identity, &policy(cap), 100)
        }
    }

    #[test]
    fn restart_never_forgets_a_debit() {
        let home = Home::new();
        let mut budget = home.open(8.0).unwrap();
        budget.reserve(JOB, "test", vec![charge(4)]).unwrap();
        budget.debit(JOB, RoundId(0), charge(1), mechanism()).unwrap();
        let before = spent(&budget);
        drop(budget);
        let budget = home.open(8.0).unwrap();
        assert_eq!(spent(&budget), before);
        assert!(before.spent > 0.0 && before.reserved > before.spent);
    }

    #[test]
    fn spent_budget_refuses_the_next_job_but_not_a_smaller_one() {
        let home = Home::new();
        let mut budget = home.open(2.0).unwrap();
        let refused = budget.reserve(JOB, "test", vec![charge(100)]).unwrap_err();
        assert!(refused.to_string().contains("over the cap of 2"), "{refused}");
        budget.reserve(JOB, "test", vec![charge(1)]).unwrap();
    }

    #[test]
    fn a_preview_says_what_a_reservation_would_come_to_and_reserves_nothing() {
        let home = Home::new();
        let mut budget = home.open(2.0).unwrap();
        let preview = |budget: &Budget, steps| {
            super::preview(budget.balance(), JOB, "test", vec![charge(steps)], clock::unix_time_s())
        };
        assert!(matches!(preview(&budget, 100), Err(LedgerRule::OverCap { .. })));
        let would_be = preview(&budget, 1).unwrap();
        assert_eq!(spent(&budget).reserved, 0.0);
        budget.reserve(JOB, "test", vec![charge(1)]).unwrap();
        assert_eq!(spent(&budget).reserved, would_be);
        assert_eq!(preview(&budget, 1), Ok(would_be), "it holds its reservation already");
    }

    #[test]
    fn a_torn_last_line_is_mended_and_a_changed_one_is_an_alarm() {
        let home = Home::new();
        let mut budget = home.open(8.0).unwrap();
        budget.reserve(JOB, "test", vec![charge(4)]).unwrap();
        drop(budget);
        let whole = std::fs::read(home.ledger()).unwrap();
        std::fs::write(home.ledger(), [&whole[..], b"{\"entry\":{\"seq"].concat()).unwrap();
        drop(home.open(8.0).unwrap());
        assert_eq!(std::fs::read(home.ledger()).unwrap(), whole);

        let mut bad = whole.clone();
        bad[40] ^= 1;
        std::fs::write(home.ledger(), bad).unwrap();
        assert!(matches!(home.open(8.0), Err(BudgetError::Damaged { .. })));
    }

    #[test]
    fn one_home_has_one_daemon_and_one_holdout_share() {
        let home = Home::new();
        let budget = home.open(8.0).unwrap();
        assert!(matches!(home.open(8.0), Err(BudgetError::Locked { .. })));
        drop(budget);
        let identity = Identity::load(&home.folder.path().join("site.key")).unwrap();
        assert!(matches!(
            Budget::open(&home.ledger(), identity, &policy(8.0), 200),
            Err(BudgetError::Holdout { ledger: 100 })
        ));
    }

    #[test]
    fn a_round_is_debited_once_and_its_bytes_are_bound_once_also_after_a_restart() {
        let home = Home::new();
        let mut budget = home.open(8.0).unwrap();
        let (round, training) = (RoundId(0), Population::Training);
        budget.reserve(JOB, "test", vec![charge(4)]).unwrap();
        budget.debit(JOB, round, charge(1), mechanism()).unwrap();
        assert!(budget.debit(JOB, round, charge(1), mechanism()).is_err());
        drop(budget);
        let mut budget = home.open(8.0).unwrap();
        assert!(budget.is_debited(JOB, round, training));
        let release = |budget: &mut Budget, bytes: &[u8]| {
            let (kind, len) = (ReleaseKind::Update, bytes.len() as u64);
            budget.release(JOB, round, training, kind, ContentHash::of(bytes), len)
        };
        release(&mut budget, b"bytes").unwrap();
        let entries = budget.chain.len();
        release(&mut budget, b"bytes").unwrap();
        assert_eq!(budget.chain.len(), entries, "a retry of the same bytes writes nothing");
        assert!(release(&mut budget, b"other").is_err());
    }

    #[test]
    fn a_lower_cap_binds_from_the_next_start_on() {
        let home = Home::new();
        drop(home.open(8.0).unwrap());
        let mut budget = home.open(0.5).unwrap();
        assert!(budget.reserve(JOB, "test", vec![charge(10)]).is_err());
    }
}
