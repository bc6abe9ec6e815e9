//! What must hold, whatever happens: kept apart from the machines, by what leaves them and by what is on disk.

use super::keys::{Job, keys};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use weighhouse_client::budget::read_ledger;
use weighhouse_coordinator::aggregate::Aggregate;
use weighhouse_coordinator::global_model::GlobalModel;
use weighhouse_coordinator::opened_sum;
use weighhouse_coordinator::secure_sum::OpenedSum;
use weighhouse_coordinator::spool::Spool;
use weighhouse_coordinator::store::{MemoryDisk, Store};
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::job::{FederationSchedule, Rule, UPDATE_STEP, WHOLE_WEIGHT, staleness_weight};
use weighhouse_shared::ledger::{Body, Population, ReleaseKind};
use weighhouse_shared::model::ServerState;
use weighhouse_shared::secure_sum::agreement::Question;
use weighhouse_shared::secure_sum::keys::SignedKey;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, JobEnded, JobStatus, Outcome, Receipt, RoundStart, RoundSummary, SumQuestion,
    SumRoster,
};

type Purpose = (usize, JobId, RoundId, ReleaseKind);

/// A job as its admitted updates imply it.
struct Implied {
    job: Job,
    round: RoundId,
    model: Vec<f32>,
    /// Of each model so far, the newest version that it was.
    versions: BTreeMap<ContentHash, RoundId>,
    state: Option<ServerState>,
    over: bool,
    /// With the buffered schedule: the number of each site's last update that is in a model on disk.
    released: BTreeMap<usize, RoundId>,
}

impl Implied {
    fn hash(&self) -> ContentHash {
        let bytes: Vec<u8> = self.model.iter().flat_map(|parameter| parameter.to_le_bytes()).collect();
        ContentHash::of(&bytes)
    }

    /// The step of a secure sum that led to `summary`, over what the survivors of each group that was asked added before their
    /// masks. Any of the groups may have been opened, but enough of them. Returns of how many sites.
    fn sum_step(&mut self, groups: &[Vec<[u32; 2]>], summary: &RoundSummary) -> usize {
        if summary.sites == 0 {
            return 0;
        }
        let least = self.job.contract.federation.sum_groups().map_or(1, |groups| groups.min_groups);
        let before = (self.model.clone(), self.state.clone());
        for chosen in (0u32..1 << groups.len()).filter(|chosen| chosen.count_ones() >= least) {
            let opened: Vec<OpenedSum> = groups
                .iter()
                .enumerate()
                .filter(|(at, _)| chosen & 1 << at != 0)
                .map(|(_, added)| {
                    let sum = |at| added.iter().fold(0u32, |sum, values| sum.wrapping_add(values[at]));
                    OpenedSum { values: vec![sum(0), sum(1)], sites: added.len() as u32 }
                })
                .collect();
            let sites: u32 = opened.iter().map(|sum| sum.sites).sum();
            if sites == summary.sites {
                (self.model, self.state) = before.clone();
                self.opened_step(opened);
                self.conclude();
                if self.hash() == summary.model {
                    return sites as usize;
                }
            }
        }
        panic!(
            "round {} of {} is another model than any groups' sums lead to",
            self.round,
            self.job.id.short()
        );
    }

    fn opened_step(&mut self, opened: Vec<OpenedSum>) {
        let bytes: Vec<u8> = self.model.iter().flat_map(|parameter| parameter.to_le_bytes()).collect();
        let model = GlobalModel { hash: ContentHash::of(&bytes), bytes: bytes.into() };
        let contract = &self.job.contract;
        let next = if contract.federation.sum_groups().is_none() {
            let OpenedSum { values, sites } = &opened[0];
            opened_sum::step(model, contract, self.round, values, *sites, self.state.as_mut()).unwrap()
        } else {
            let spool = Spool::new(std::env::temp_dir());
            let mut aggregate = Aggregate::new(2, &contract.federation, &spool).unwrap();
            opened_sum::add_groups(&mut aggregate, contract, self.round, opened).unwrap();
            model.moved_by(aggregate.combine().unwrap(), self.state.as_mut())
        };
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

    fn is_buffered(&self) -> bool {
        self.job.contract.federation.schedule != FederationSchedule::Synchronous
    }

    /// What updates, each with its weight, come to in one parameter, and what that is to be divided by.
    fn combined(&self, mut values: Vec<(i32, u32)>) -> (i64, u64) {
        if self.job.contract.federation.strategy.rule() == Rule::Median {
            values.sort_unstable();
            let middle = values[values.len() / 2].0;
            let other = if values.len().is_multiple_of(2) { values[values.len() / 2 - 1].0 } else { middle };
            return (i64::from(middle) + i64::from(other), 2);
        }
        let unit = if self.is_buffered() { WHOLE_WEIGHT } else { 1 };
        let sum = values.iter().map(|(value, weight)| i64::from(*value) * i64::from(*weight)).sum();
        (sum, values.len() as u64 * u64::from(unit))
    }

    /// The step that updates, each with its weight, make.
    fn step(&mut self, updates: &[(Vec<u8>, u32)]) {
        if updates.is_empty() {
            return;
        }
        if let Some(state) = &mut self.state {
            state.begin_round();
        }
        for at in 0..self.model.len() {
            let value = |(bytes, weight): &(Vec<u8>, u32)| {
                (i32::from_le_bytes(bytes.as_chunks::<4>().0[at]), *weight)
            };
            let (sum, divisor) = self.combined(updates.iter().map(value).collect());
            let mean = sum as f64 * (UPDATE_STEP / divisor as f64);
            let parameter = &mut self.model[at];
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
    /// With the buffered schedule: the models from which turns were started since the last check.
    told: BTreeSet<(JobId, ContentHash)>,
    ended: BTreeMap<JobId, JobStatus>,
    /// Admitted in the coordinator's present life, by the number of the update: the round, or the site's own.
    admitted: BTreeMap<(JobId, RoundId), BTreeSet<usize>>,
    /// What is handled now is an evaluation.
    pub evaluates: bool,
    debited: BTreeSet<(usize, JobId, RoundId, Population)>,
    made: BTreeSet<Purpose>,
    left: BTreeMap<Purpose, (ContentHash, Vec<u8>)>,
    /// The models from which updates were made.
    bases: BTreeMap<(usize, JobId, RoundId), ContentHash>,
    /// In secure sums: what each site added before its masks.
    added: BTreeMap<(usize, JobId, RoundId), [u32; 2]>,
    /// Of each group.
    rosters: BTreeMap<(JobId, usize), Vec<SiteId>>,
    /// Of each round and group, by their numbers on the roster.
    survivors: BTreeMap<(JobId, usize, RoundId), Vec<u16>>,
    /// For the report: how many of each.
    pub commits: u32,
    pub contributions: u32,
}

impl Book {
    pub fn submitted(&mut self, job: &Job) {
        let network = job.contract.network().unwrap();
        let model = network.initial_parameters(*job.id.as_bytes());
        let state = job.contract.server_state(network.parameter_count());
        let (job, round, over) = (job.clone(), RoundId(0), false);
        let (versions, released) = (BTreeMap::new(), BTreeMap::new());
        let mut implied = Implied { job, round, model, versions, state, over, released };
        implied.versions.insert(implied.hash(), round);
        self.jobs.entry(implied.job.id).or_insert(implied);
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

    /// What was added by those in a round's sums, of each group that was asked.
    fn sums_of(&self, job: &Job, round: RoundId) -> Vec<Vec<[u32; 2]>> {
        let place = |id: SiteId| keys().sites.iter().position(|site| *site == id).unwrap();
        let of_group = |group: usize| {
            let survivors = self.survivors.get(&(job.id, group, round))?;
            let site = |number: &u16| self.rosters[&(job.id, group)][usize::from(*number)];
            Some(survivors.iter().map(|number| self.added[&(place(site(number)), job.id, round)]).collect())
        };
        (0..job.groups.len()).filter_map(of_group).collect()
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

    /// The update that leaves was made from the model `base`.
    pub fn is_from(&mut self, site: usize, (job, round): (JobId, RoundId), base: ContentHash) {
        let known = *self.bases.entry((site, job, round)).or_insert(base);
        assert_eq!(known, base, "site {site}: the update of round {round} is said to be from two models");
    }

    /// The coordinator counts an update; its receipt may be lost with it. Receipts of evaluations look the same.
    pub fn counts(&mut self, site: usize, message: &CoordinatorToSite) {
        if self.evaluates {
            return;
        }
        if let CoordinatorToSite::Receipt(Receipt { job, round, outcome: Outcome::Admitted }) = message {
            let admitted = self.admitted.entry((*job, *round)).or_default();
            assert!(admitted.insert(site), "site {site} was admitted twice to round {round}");
            let last = self.jobs[job].released.get(&site);
            assert!(last.is_none_or(|last| last < round), "update {round} of site {site} is counted again");
        }
    }

    /// The coordinator says something to `site`.
    pub fn says(&mut self, site: usize, message: &CoordinatorToSite) {
        let group_of = |job: &JobId| {
            let groups = &self.jobs[job].job.groups;
            groups.iter().position(|members| members.contains(&keys().sites[site])).unwrap()
        };
        match message {
            CoordinatorToSite::RoundStart(RoundStart { job, model, task, .. })
                if task.train && self.jobs[job].is_buffered() =>
            {
                self.told.insert((*job, *model));
            }
            CoordinatorToSite::RoundStart(RoundStart { job, round, model, .. }) => {
                let known = self.started.entry((*job, *round)).or_insert(*model);
                assert_eq!(known, model, "round {round} of {} was started from two models", job.short());
            }
            CoordinatorToSite::SumRoster(SumRoster { job, keys }) => {
                let sites: Vec<SiteId> = keys.iter().map(SignedKey::site).collect();
                let group = group_of(job);
                let known = self.rosters.entry((*job, group)).or_insert_with(|| sites.clone());
                assert_eq!(*known, sites, "{} has two rosters of one group", job.short());
                assert!(sites.iter().all(|site| self.jobs[job].job.groups[group].contains(site)));
            }
            CoordinatorToSite::SumQuestion(SumQuestion { job, question }) => {
                let Question { round, survivors, .. } = question;
                let known = (*job, group_of(job), *round);
                let known = self.survivors.entry(known).or_insert_with(|| survivors.clone());
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
                let trains = implied.job.contract.task(round).is_some_and(|task| task.train);
                let buffered = trains && implied.is_buffered();
                let counted: Vec<(usize, RoundId)> = match buffered {
                    // Whatever is in the buffer, whichever numbers its sites gave it.
                    true => {
                        let of_job = |(job, _): &&(JobId, RoundId)| job == id;
                        let numbers: Vec<_> = self.admitted.keys().filter(of_job).copied().collect();
                        let sites = |key| {
                            self.admitted.remove(&key).into_iter().flatten().map(move |site| (site, key.1))
                        };
                        numbers.into_iter().flat_map(sites).collect()
                    }
                    false => {
                        let sites = self.admitted.remove(&(*id, round)).unwrap_or_default();
                        // A round with too few is given up, and nothing of it counts.
                        let enough =
                            trains && sites.len() >= implied.job.contract.federation.min_sites as usize;
                        sites.into_iter().filter(|_| enough).map(|site| (site, round)).collect()
                    }
                };
                let update = |(site, number): &(usize, RoundId)| {
                    let bytes = self.left[&(*site, *id, *number, ReleaseKind::Update)].1.clone();
                    let version = implied.versions[&self.bases[&(*site, *id, *number)]];
                    (bytes, if buffered { staleness_weight(round.0 - version.0) } else { 1 })
                };
                let updates: Vec<(Vec<u8>, u32)> = counted.iter().map(update).collect();
                if let (true, FederationSchedule::Buffered { buffer_size }) =
                    (buffered, implied.job.contract.federation.schedule)
                {
                    assert_eq!(
                        updates.len(),
                        buffer_size as usize,
                        "step {round} of {} is not full",
                        id.short()
                    );
                    implied.released.extend(counted);
                }
                let summary = &rounds[round.0 as usize];
                let summed = trains && implied.job.contract.federation.secure_sum().is_some();
                let count = if summed {
                    let sums = self.sums_of(&implied.job, round);
                    implied.sum_step(&sums, summary)
                } else {
                    implied.step(&updates);
                    updates.len()
                };
                implied.conclude();
                assert_eq!(summary.round, round);
                assert_eq!(summary.model, implied.hash(), "round {round} of {} is another model", id.short());
                assert!(!trains || summary.sites as usize == count);
                implied.round = round.next();
                implied.versions.insert(implied.hash(), implied.round);
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
        for (job, model) in std::mem::take(&mut self.told) {
            let known = self.jobs[&job].versions.contains_key(&model);
            assert!(known, "a turn of {} was started from a model that is not on disk", job.short());
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
