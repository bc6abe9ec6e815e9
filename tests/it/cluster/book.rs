//! What must hold, whatever happens: kept apart from the machines, by what leaves them and by what is on disk.

use super::keys::{Job, keys};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use weighhouse_client::budget::read_ledger;
use weighhouse_coordinator::global_model::GlobalModel;
use weighhouse_coordinator::opened_sum;
use weighhouse_coordinator::store::{MemoryDisk, Store};
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::job::UPDATE_STEP;
use weighhouse_shared::ledger::{Body, Population, ReleaseKind};
use weighhouse_shared::model::ServerState;
use weighhouse_shared::secure_sum::agreement::Question;
use weighhouse_shared::secure_sum::keys::SignedKey;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, JobEnded, JobStatus, Outcome, Receipt, RoundStart, SumQuestion, SumRoster,
};

type Purpose = (usize, JobId, RoundId, ReleaseKind);

/// A job as its admitted updates imply it.
struct Implied {
    job: Job,
    round: RoundId,
    model: Vec<f32>,
    state: Option<ServerState>,
    over: bool,
}

impl Implied {
    fn hash(&self) -> ContentHash {
        let bytes: Vec<u8> = self.model.iter().flat_map(|parameter| parameter.to_le_bytes()).collect();
        ContentHash::of(&bytes)
    }

    /// The step of a secure sum over what its survivors added before their masks.
    fn sum_step(&mut self, added: &[[u32; 2]]) {
        if added.is_empty() {
            return;
        }
        let sum =
            added.iter().fold([0u32; 2], |sum, values| [0, 1].map(|at| sum[at].wrapping_add(values[at])));
        let bytes: Vec<u8> = self.model.iter().flat_map(|parameter| parameter.to_le_bytes()).collect();
        let model = GlobalModel { hash: ContentHash::of(&bytes), bytes: bytes.into() };
        let (contract, survivors) = (&self.job.contract, added.len() as u32);
        let next =
            opened_sum::step(model, contract, self.round, &sum, survivors, self.state.as_mut()).unwrap();
        let (values, _) = next.bytes.as_chunks::<4>();
        self.model = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    }

    /// After the last round of training: the average of the rounds' models, if the job keeps one.
    fn conclude(&mut self) {
        let last = self.round.0 + 1 == self.job.contract.training.rounds;
        if let (true, Some(average)) = (last, self.state.as_ref().and_then(ServerState::average)) {
            self.model = average.to_vec();
        }
    }

    fn step(&mut self, updates: &[Vec<u8>]) {
        if updates.is_empty() {
            return;
        }
        if let Some(state) = &mut self.state {
            state.begin_round();
        }
        for (at, parameter) in self.model.iter_mut().enumerate() {
            let values = updates.iter().map(|bytes| bytes.as_chunks::<4>().0[at]);
            let sum: i64 = values.map(|value| i64::from(i32::from_le_bytes(value))).sum();
            let mean = sum as f64 * (UPDATE_STEP / updates.len() as f64);
            *parameter = match &mut self.state {
                Some(state) => state.moved(at, *parameter, mean),
                None => (f64::from(*parameter) + mean) as f32,
            };
        }
    }
}

#[derive(Default)]
pub struct Book {
    jobs: BTreeMap<JobId, Implied>,
    /// The model from which each round was started.
    started: BTreeMap<(JobId, RoundId), ContentHash>,
    ended: BTreeMap<JobId, JobStatus>,
    /// Admitted in the coordinator's present life.
    admitted: BTreeMap<(JobId, RoundId), BTreeSet<usize>>,
    /// What is handled now is an evaluation.
    pub evaluates: bool,
    debited: BTreeSet<(usize, JobId, RoundId, Population)>,
    made: BTreeSet<Purpose>,
    left: BTreeMap<Purpose, (ContentHash, Vec<u8>)>,
    /// In secure sums: what each site added before its masks.
    added: BTreeMap<(usize, JobId, RoundId), [u32; 2]>,
    rosters: BTreeMap<JobId, Vec<SiteId>>,
    /// Of each round, by their numbers on the roster.
    survivors: BTreeMap<(JobId, RoundId), Vec<u16>>,
    /// For the report: how many of each.
    pub commits: u32,
    pub contributions: u32,
}

impl Book {
    pub fn submitted(&mut self, job: &Job) {
        let network = job.contract.network().unwrap();
        let model = network.initial_parameters(*job.id.as_bytes());
        let state = job.contract.server_state(network.parameter_count());
        let implied = Implied { job: job.clone(), round: RoundId(0), model, state, over: false };
        self.jobs.entry(job.id).or_insert(implied);
    }

    pub fn jobs(&self) -> Vec<JobId> {
        self.jobs.keys().copied().collect()
    }

    /// A debit is on disk.
    pub fn debited(&mut self, site: usize, job: JobId, round: RoundId, population: Population) {
        let new = self.debited.insert((site, job, round, population));
        assert!(new, "site {site} paid twice for round {round} of {}", job.short());
    }

    /// Noise is drawn.
    pub fn made(&mut self, site: usize, job: JobId, round: RoundId, kind: ReleaseKind) {
        let new = self.made.insert((site, job, round, kind));
        assert!(new, "site {site} made {kind:?} of round {round} anew");
    }

    /// Whether a job is in a secure sum.
    pub fn is_summed(&self, job: JobId) -> bool {
        self.jobs[&job].job.contract.federation.secure_sum().is_some()
    }

    /// What a site adds to a round's sum, before its masks.
    pub fn adds(&mut self, site: usize, job: JobId, round: RoundId, values: [u32; 2]) {
        self.added.insert((site, job, round), values);
    }

    /// What was added by those in a round's sum.
    fn sum_of(&self, job: JobId, round: RoundId) -> Vec<[u32; 2]> {
        let survivors = self.survivors.get(&(job, round)).expect("nobody was asked about the round");
        let site = |number: &u16| self.rosters[&job][usize::from(*number)];
        let place = |id: SiteId| keys().sites.iter().position(|site| *site == id).unwrap();
        survivors.iter().map(|number| self.added[&(place(site(number)), job, round)]).collect()
    }

    /// Bytes leave a site: they are released in its ledger, and are the only ones for their purpose.
    pub fn leaves(
        &mut self,
        site: usize,
        ledger: &Path,
        (job, round, kind): (JobId, RoundId, ReleaseKind),
        bytes: &[u8],
    ) {
        let content = ContentHash::of(bytes);
        let text = std::fs::read_to_string(ledger).unwrap();
        let released = format!("\"content\":\"{content}\"");
        assert!(text.contains(&released), "site {site}: {kind:?} of round {round} left unpaid");
        let known = self.left.entry((site, job, round, kind)).or_insert((content, bytes.to_vec()));
        assert_eq!(known.0, content, "site {site}: {kind:?} of round {round} left in two shapes");
        self.contributions += 1;
    }

    /// The coordinator counts an update; its receipt may be lost with it. Receipts of evaluations look the same.
    pub fn counts(&mut self, site: usize, message: &CoordinatorToSite) {
        if self.evaluates {
            return;
        }
        if let CoordinatorToSite::Receipt(Receipt { job, round, outcome: Outcome::Admitted }) = message {
            let admitted = self.admitted.entry((*job, *round)).or_default();
            assert!(admitted.insert(site), "site {site} was admitted twice to round {round}");
        }
    }

    /// The coordinator says something to a site.
    pub fn says(&mut self, message: &CoordinatorToSite) {
        match message {
            CoordinatorToSite::RoundStart(RoundStart { job, round, model, .. }) => {
                let known = self.started.entry((*job, *round)).or_insert(*model);
                assert_eq!(known, model, "round {round} of {} was started from two models", job.short());
            }
            CoordinatorToSite::SumRoster(SumRoster { job, keys }) => {
                let sites: Vec<SiteId> = keys.iter().map(SignedKey::site).collect();
                let known = self.rosters.entry(*job).or_insert_with(|| sites.clone());
                assert_eq!(*known, sites, "{} has two rosters", job.short());
            }
            CoordinatorToSite::SumQuestion(SumQuestion { job, question }) => {
                let Question { round, survivors, .. } = question;
                let known = self.survivors.entry((*job, *round)).or_insert_with(|| survivors.clone());
                assert_eq!(known, survivors, "round {round} of {} has two lists of survivors", job.short());
            }
            CoordinatorToSite::JobEnded(JobEnded { job, status }) => {
                let known = self.ended.entry(*job).or_insert_with(|| status.clone());
                assert_eq!(known, status, "{} ended in two ways", job.short());
            }
            _ => {}
        }
    }

    /// What is stored is what was told, and each committed round is what its updates imply.
    pub fn check(&mut self, disk: &MemoryDisk) {
        let store = Store::in_memory(disk).unwrap();
        let records: BTreeMap<_, _> = store.jobs().unwrap().into_iter().collect();
        let mut jobs = std::mem::take(&mut self.jobs);
        for (id, implied) in &mut jobs {
            let Some(record) = records.get(id) else {
                let told = self.started.keys().any(|(job, _)| job == id) || self.ended.contains_key(id);
                assert!(!told && implied.round == RoundId(0), "{} is forgotten", id.short());
                continue;
            };
            assert!(record.round >= implied.round, "round {} of {} is lost", implied.round, id.short());
            assert!(!implied.over || record.status.is_final(), "{} goes on after its end", id.short());
            implied.over = record.status.is_final();
            let rounds = if record.round > implied.round { store.rounds(*id).unwrap() } else { Vec::new() };
            while implied.round < record.round {
                let round = implied.round;
                let sites = self.admitted.remove(&(*id, round)).unwrap_or_default();
                let federation = &implied.job.contract.federation;
                let trains = implied.job.contract.task(round).is_some_and(|task| task.train);
                let enough = trains && sites.len() >= federation.min_sites as usize;
                // A round with too few is given up, and nothing of it counts.
                let counted = sites.iter().filter(|_| enough);
                let update = |site: &usize| self.left[&(*site, *id, round, ReleaseKind::Update)].1.clone();
                let summary = &rounds[round.0 as usize];
                let summed = trains && implied.job.contract.federation.secure_sum().is_some();
                let count = if summed {
                    let added = if summary.sites == 0 { Vec::new() } else { self.sum_of(*id, round) };
                    implied.sum_step(&added);
                    added.len()
                } else {
                    let updates: Vec<Vec<u8>> = counted.map(update).collect();
                    implied.step(&updates);
                    updates.len()
                };
                implied.conclude();
                assert_eq!(summary.round, round);
                assert_eq!(summary.model, implied.hash(), "round {round} of {} is another model", id.short());
                assert!(!trains || summary.sites as usize == count);
                implied.round = round.next();
                self.commits += 1;
            }
            assert_eq!(record.model, implied.hash(), "{} goes on from another model", id.short());
            assert!(store.model(record.model).is_ok(), "the model of {} is lost", id.short());
        }
        self.jobs = jobs;
        for ((job, round), model) in &self.started {
            let implied = &self.jobs[job];
            assert!(*round <= implied.round, "round {round} was started before the one before was on disk");
            assert!(*round < implied.round || *model == implied.hash());
        }
        for (job, status) in &self.ended {
            assert_eq!(
                &records[job].status,
                status,
                "the end of {} was told before it was on disk",
                job.short()
            );
        }
    }

    /// The coordinator died: what it admitted and did not commit must come again.
    pub fn coordinator_died(&mut self) {
        self.admitted.clear();
    }

    /// A site's ledger holds each debit once, and for each release the debit that pays for it.
    pub fn audit(&self, site: usize, ledger: &Path) {
        let (mut debits, mut released) = (BTreeMap::new(), BTreeMap::new());
        let mut twice = None;
        let read = read_ledger(ledger, |entry| match &entry.body {
            Body::Debited { job, round, charge, .. } => {
                let purpose = (*job, *round, charge.population);
                if debits.values().any(|known| *known == purpose) {
                    twice = Some(purpose);
                }
                debits.insert(entry.sequence, purpose);
            }
            Body::Released { job, round, kind, debit, content, .. } => {
                let population = match kind {
                    ReleaseKind::Update => Population::Training,
                    ReleaseKind::Evaluation => Population::Holdout,
                };
                assert_eq!(debits[debit], (*job, *round, population));
                released.insert((*job, *round, *kind), *content);
            }
            _ => {}
        });
        read.unwrap();
        assert_eq!(twice, None, "site {site} paid twice");
        for (_, job, round, population) in self.debited.iter().filter(|(of, ..)| *of == site) {
            let there = debits.values().any(|known| *known == (*job, *round, *population));
            assert!(there, "site {site}: the debit of round {round} is lost");
        }
        for ((_, job, round, kind), (content, _)) in self.left.iter().filter(|((of, ..), _)| *of == site) {
            assert_eq!(
                released.get(&(*job, *round, *kind)),
                Some(content),
                "site {site} sent what it did not pay"
            );
        }
    }

    /// Whether all jobs are over, as far as the disk tells.
    pub fn all_over(&self) -> bool {
        self.jobs.values().all(|implied| implied.over)
    }
}
