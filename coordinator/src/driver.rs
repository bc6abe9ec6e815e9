//! The coordinator's one decider: takes what sessions and operators say, asks the state machines, saves,
//! then sends. Everything it holds in memory can be rebuilt from the store.

mod committing;
mod counting;
mod ending;
mod members;
mod outbox;
mod refusals;
mod requests;
mod server_state;
mod summing;
mod witnessing;

pub use committing::Closed;
pub use outbox::{Outbox, Outgoing, ToSite, outbox};

use crate::admission::{Expected, FaultRate, ParsedUpdate};
use crate::aggregate::Aggregate;
use crate::authority::Issuer;
use crate::global_model::GlobalModel;
use crate::job::{Action, Event, JobMachine};
use crate::roster::SharedRoster;
use crate::secure_sum::JobSums;
use crate::spool::Spool;
use crate::store::{Alarm, JobRecord, StandingRecord, Store, StoreError};
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use weighhouse_shared::clock;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::job::{JobContract, Rule};
use weighhouse_shared::ledger::{MAX_STANDING_CHARGES, Standing};
use weighhouse_shared::model::ServerState;
use weighhouse_shared::telemetry::{self, CoordinatorMetrics};
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, CoordinatorToSite, Debited, Enrolled, Evaluation, JobAnswer, JobEnded, JobEvent,
    JobStatus, LedgerHead, OperatorToCoordinator, Outcome, Receipt, Refused, RoundSkipped, RoundStart,
    SignedContract, SumAnswer, SumKey, SumOffer,
};
use weighhouse_shared::wire::stream::Piece;

/// Messages that may wait for the driver.
const QUEUE_LEN: usize = 256;
/// Events that may wait for one watcher before it is dropped.
const WATCH_LEN: usize = 4096;
/// What a joined site is told once.
pub type EnrolReply = Option<Enrolled>;

/// What happened in a job so far, and what goes on happening.
pub type Watched = (Vec<JobEvent>, mpsc::Receiver<JobEvent>);

/// What sessions and operators say.
#[derive(Debug)]
pub enum Input {
    /// A new site shows its invite.
    Enrol {
        /// The key made at the site.
        public_key: [u8; 32],
        /// The invite it claims.
        invite: [u8; 16],
        /// Its proof.
        proof: [u8; 32],
        /// The answer; None if refused.
        reply: oneshot::Sender<EnrolReply>,
    },
    /// A site's control stream is open.
    Connected {
        /// The site.
        site: SiteId,
        /// Counts sessions, so that an old one's end does not end the new one.
        session: u64,
        /// How far its ledger has come; the signature was checked.
        head: LedgerHead,
        /// Where to send.
        outbox: Outbox,
    },
    /// A site's session ended.
    Disconnected {
        /// The site.
        site: SiteId,
        /// Which session.
        session: u64,
    },
    /// A site tells how far its ledger has come; the signature was checked.
    Head {
        /// The site.
        site: SiteId,
        /// In which session.
        session: u64,
        /// The head.
        head: LedgerHead,
    },
    /// A site tells what it debited for its next contribution.
    Debited {
        /// The site.
        site: SiteId,
        /// In which session.
        session: u64,
        /// What was debited.
        debited: Debited,
    },
    /// A site answered an offer.
    Answer(SiteId, JobAnswer),
    /// A site's key for a job's secure sums.
    SumKey(SiteId, SumKey),
    /// A site's part in a batch of a job's secure sums.
    SumOffer(SiteId, SumOffer),
    /// A site's answer about a round's survivors.
    SumAnswer(SiteId, SumAnswer),
    /// A site's certificate is about to expire.
    Renew(SiteId),
    /// A site measured quality.
    Evaluation(SiteId, Evaluation),
    /// A site will not contribute.
    Skipped(SiteId, RoundSkipped),
    /// A site says what its budget still allows.
    Standing(SiteId, Standing),
    /// One more piece of a site's update to a job came in.
    Arriving(SiteId, JobId),
    /// A site's update is whole.
    Update(SiteId, ParsedUpdate),
    /// What arrived from a site is no update of this job.
    Refused(SiteId, Receipt),
    /// Says when everything before it was handled.
    Counted(oneshot::Sender<()>),
    /// An update begins to arrive: shall it be read?
    Announced {
        /// From whom.
        site: SiteId,
        /// What its sender says of it.
        piece: Piece,
        /// What an update of its job is as bytes; or why it is not read.
        reply: oneshot::Sender<Result<Expected, Outcome>>,
    },
    /// An operator's request.
    Request {
        /// What is asked.
        request: OperatorToCoordinator,
        /// The answer, with a model's bytes behind it if one was asked for.
        reply: oneshot::Sender<(CoordinatorToOperator, Option<Bytes>)>,
    },
    /// An operator watches a job.
    Watch {
        /// The job.
        job: JobId,
        /// What happened so far, then what happens; None if there is no such job.
        reply: oneshot::Sender<Option<Watched>>,
    },
}

/// How sessions reach the driver.
pub type Inbox = mpsc::Sender<Input>;

/// Why the driver stopped.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The state cannot be saved, so nothing may be sent.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored job is not valid.
    #[error("a stored job is not valid: {reason}")]
    Job {
        /// Why.
        reason: String,
    },
}

struct Connected {
    session: u64,
    outbox: Outbox,
}

/// A job under way: what is not in the store can be rebuilt from it.
struct Job {
    number: u64,
    signed: SignedContract,
    machine: JobMachine,
    model: Option<GlobalModel>,
    /// What goes into the round that comes next beside the model; None until it is needed, and if nothing is kept.
    state: Option<ServerState>,
    /// Kept from round to round: fresh pages cost more than the sum.
    aggregate: Option<Aggregate>,
    /// In a secure sum.
    sums: Option<JobSums>,
    /// Counts of this round's histograms, and how many there are.
    histogram: Option<(Vec<i64>, u32)>,
    /// Contributions refused so far.
    refused: BTreeMap<Outcome, u64>,
    /// Whom it was offered to; None where a process before this one offered it to sites of which nothing is kept.
    offered: Option<BTreeSet<SiteId>>,
    watchers: Vec<mpsc::Sender<JobEvent>>,
}

/// What the driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// The durable state.
    pub store: Store,
    /// Where long updates wait.
    pub spool: Arc<Spool>,
    /// Who may come in.
    pub roster: SharedRoster,
    /// Signs certificates of sites.
    pub issuer: Issuer,
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
    /// Signs witnesses of sites' ledgers: the coordinator's own key.
    pub identity: Identity,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Host and port that go into invites.
    pub public_address: String,
    /// What is counted.
    pub metrics: CoordinatorMetrics,
}

/// The decider.
pub struct Driver {
    parts: Parts,
    /// Milliseconds since the process began, as of what is being handled.
    now: u64,
    jobs: BTreeMap<JobId, Job>,
    online: BTreeMap<SiteId, Connected>,
    /// Of every site that was there since this coordinator started.
    ledgers: BTreeMap<SiteId, witnessing::SiteLedger>,
    /// Those that said something since witnesses were written last.
    heard: BTreeSet<SiteId>,
    alarms: BTreeMap<SiteId, Alarm>,
    faults: BTreeMap<SiteId, FaultRate>,
    /// Rounds whose updates are to be combined elsewhere.
    closed: VecDeque<Closed>,
    inbox: mpsc::Receiver<Input>,
}

impl Driver {
    /// Reads all jobs from the store. Returns the driver and how to reach it.
    pub fn restore(parts: Parts) -> Result<(Self, Inbox), DriverError> {
        let (sender, inbox) = mpsc::channel(QUEUE_LEN);
        let mut jobs = BTreeMap::new();
        for (id, record) in parts.store.jobs()? {
            let contract: JobContract = codec::decode(&record.signed.contract)
                .map_err(|error| DriverError::Job { reason: error.to_string() })?;
            let mut machine = JobMachine::restore(
                contract.into(),
                record.status,
                record.round,
                record.model,
                &record.answers,
                0,
            );
            if machine.released().is_some() {
                let first = GlobalModel::initial(id, machine.contract());
                let first = first.map_err(|error| DriverError::Job { reason: error.to_string() })?.hash;
                let later = parts.store.rounds(id)?.into_iter().map(|round| round.model);
                machine.resume(parts.store.released(id)?, std::iter::once(first).chain(later));
            }
            // What a process that was killed right after a commit did not get to.
            let awaited = (!machine.status().is_final()).then(|| machine.round());
            let mut sums = None;
            match awaited {
                None => parts.store.forget_sums(id)?,
                Some(round) => {
                    if let Some((kept, fixed)) =
                        JobSums::restore(id, machine.contract(), round, &parts.store)?
                    {
                        machine.resume_sums(fixed);
                        sums = Some(kept);
                    }
                }
            }
            parts.store.forget_server_states(id, awaited)?;
            let JobRecord { signed, number, .. } = record;
            let job = Job {
                number,
                signed,
                machine,
                model: None,
                state: None,
                aggregate: None,
                sums,
                histogram: None,
                refused: parts.store.refusals(id)?,
                offered: parts.store.unanswered(id)?,
                watchers: Vec::new(),
            };
            jobs.insert(id, job);
        }
        let alarms = parts.store.alarms()?;
        let (online, ledgers, heard) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let (faults, closed) = (BTreeMap::new(), VecDeque::new());
        Ok((Self { parts, now: 0, jobs, online, ledgers, heard, alarms, faults, closed, inbox }, sender))
    }

    /// Runs until the state can no longer be saved, or nobody can reach it any more.
    pub async fn run(mut self) -> Result<(), DriverError> {
        let started = Instant::now();
        let now = || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut combining = JoinSet::new();
        loop {
            self.measure();
            while let Some(closed) = self.next_closed() {
                combining.spawn_blocking(|| closed.combine());
            }
            let pause = self.next_timeout().map(|due| Duration::from_millis(due.saturating_sub(now())));
            tokio::select! {
                input = self.inbox.recv() => match input {
                    Some(input) => self.handle(input, now())?,
                    None => return Ok(()),
                },
                Some(combined) = combining.join_next() => {
                    let combined = combined.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                    self.combined(combined, now())?;
                }
                () = tokio::time::sleep(pause.unwrap_or(Duration::MAX)), if pause.is_some() => {
                    self.tick(now())?;
                }
            }
        }
    }

    /// When [`Driver::tick`] is due, in milliseconds since the process began, if nothing else happens first.
    pub fn next_timeout(&self) -> Option<u64> {
        self.jobs.values().filter_map(|job| job.machine.next_timeout()).min()
    }

    /// Time has passed: it is `now`, in milliseconds since the process began.
    pub fn tick(&mut self, now: u64) -> Result<(), DriverError> {
        self.now = now;
        self.for_all_jobs(Event::Tick)
    }

    /// Takes what was said at `now`, in milliseconds since the process began: saves, then puts what is to be sent into
    /// the outboxes. Waits for nothing and reads no clock that a decision depends on. After an error it is of no more
    /// use: a new one goes on from the store.
    pub fn handle(&mut self, input: Input, now: u64) -> Result<(), DriverError> {
        self.now = now;
        self.take(input)
    }

    fn take(&mut self, input: Input) -> Result<(), DriverError> {
        match input {
            Input::Enrol { public_key, invite, proof, reply } => {
                let _ = reply.send(self.enrol(&public_key, &invite, &proof)?);
            }
            Input::Connected { site, session, head, outbox } => {
                self.connect(site, Connected { session, outbox }, &head)?;
            }
            Input::Head { site, session, head } => self.take_head(site, session, &head)?,
            Input::Debited { site, session, debited } => self.take_debited(site, session, &debited)?,
            Input::Disconnected { site, session } => {
                if self.online.get(&site).is_some_and(|connected| connected.session == session) {
                    self.online.remove(&site);
                    self.for_all_jobs(Event::SiteOffline(site))?;
                }
            }
            Input::Answer(site, _) if !self.online.contains_key(&site) => {
                tracing::debug!(site = %site.short(), "the answer of a site that was turned away was ignored");
            }
            Input::Answer(site, JobAnswer { job, decision }) => {
                let name = self.site_name(site);
                if let Some(found) = self.jobs.get_mut(&job)
                    && found.machine.answers().get(&site) != Some(&decision)
                {
                    tell(&mut found.watchers, JobEvent::Answered { site: name, decision });
                }
                self.step(job, Event::Answered(site, decision))?;
            }
            Input::SumKey(site, told) => self.take_sum_key(site, told)?,
            Input::SumOffer(site, told) => self.take_sum_offer(site, told)?,
            Input::SumAnswer(site, told) => self.take_sum_answer(site, told)?,
            Input::Renew(site) => self.renew(site)?,
            Input::Evaluation(site, evaluation) => self.count_evaluation(site, evaluation)?,
            Input::Skipped(site, RoundSkipped { job, round }) => {
                self.step(job, Event::Skipped(site, round))?;
            }
            Input::Standing(site, standing) => {
                let charged = [&standing.training, &standing.holdout];
                if charged.iter().all(|charged| charged.events.len() <= MAX_STANDING_CHARGES) {
                    let record = StandingRecord { as_of_s: clock::unix_time_s(), standing };
                    self.parts.store.put_standing(site, &record)?;
                }
            }
            Input::Update(site, update) => self.count_update(site, update)?,
            Input::Refused(site, Receipt { job, round, outcome }) => {
                self.refuse(site, job, round, outcome)?
            }
            Input::Counted(reply) => {
                let _ = reply.send(());
            }
            Input::Announced { site, piece, reply } => {
                let answer = self.announced(site, &piece);
                let wanted = answer.is_ok();
                let _ = reply.send(answer);
                if wanted {
                    self.step(piece.job, Event::Progress(site))?;
                }
            }
            Input::Arriving(site, job) => self.step(job, Event::Progress(site))?,
            Input::Request { request, reply } => {
                let answer = match self.request(request) {
                    Ok(answer) => answer,
                    Err(requests::RequestError::Refused(reason)) => {
                        (CoordinatorToOperator::Refused(Refused { reason }), None)
                    }
                    Err(requests::RequestError::Driver(error)) => return Err(error),
                };
                let _ = reply.send(answer);
            }
            Input::Watch { job, reply } => {
                let _ = reply.send(self.watch(job)?);
            }
        }
        Ok(())
    }

    /// What metrics say of the present.
    fn measure(&self) {
        let metrics = &self.parts.metrics;
        let running = self.jobs.values().filter(|job| !job.machine.status().is_final()).count();
        metrics.sites_online.set(self.online.len() as i64);
        metrics.jobs_running.set(running as i64);
    }

    fn site_name(&self, site: SiteId) -> String {
        let roster = self.parts.roster.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        roster.name_of(site).map_or_else(|| site.short(), str::to_owned)
    }

    fn send(&self, site: SiteId, message: CoordinatorToSite) {
        if let Some(connected) = self.online.get(&site) {
            connected.outbox.send(ToSite::Message(message));
        }
    }

    fn for_all_jobs(&mut self, event: Event) -> Result<(), DriverError> {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        ids.into_iter().try_for_each(|job| self.step(job, event.clone()))
    }

    /// Handle, persist, then send.
    fn step(&mut self, id: JobId, event: Event) -> Result<(), DriverError> {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            if let Event::SiteOnline(_) | Event::SiteOffline(_) | Event::Tick = event {
                return Ok(());
            }
            tracing::debug!(job = %id.short(), "an event for an unknown job was ignored");
            return Ok(());
        };
        let _span = telemetry::round_span(id, job.machine.round()).entered();
        if let (true, Event::SiteOnline(_) | Event::Answered(..)) = (job.machine.status().is_final(), &event)
        {
            self.tell_ended(id, &event);
            return Ok(());
        }
        let actions = job.machine.handle(event, now);
        let must_save = actions.iter().any(|action| matches!(action, Action::Save | Action::End(_)));
        // The commit saves as well, if it comes now.
        let compares = job.machine.contract().federation.strategy.rule() != Rule::Mean;
        let closes = |action: &Action| matches!(action, Action::Commit(_) | Action::GiveUp(_));
        if must_save && (compares || !actions.iter().any(closes)) {
            self.save_with_witnesses(id)?;
        }
        for action in actions {
            match action {
                Action::Save => {}
                Action::Offer(site) => self.offer(id, site),
                Action::StartRound(site, round, task) => self.start_round(id, site, round, task)?,
                Action::FixRoster(group, sites) => self.fix_sum_roster(id, group, &sites)?,
                Action::FixBatch(group, number, sites) => self.fix_sum_batch(id, group, number, &sites)?,
                Action::Brief(site) => self.brief(id, site),
                Action::KeepSums(round, groups) => self.keep_sums(id, round, &groups)?,
                Action::Ask(group, round, sites) => self.ask(id, group, round, &sites)?,
                Action::OpenSum(group, _) => self.open_sum(id, group)?,
                Action::Commit(round) => self.commit(id, round, true)?,
                Action::GiveUp(round) => self.commit(id, round, false)?,
                Action::Late(site, round) => self.left_out(id, site, round),
                Action::Dismiss(site) => {
                    let reason = "it has all the sites it takes".to_owned();
                    let ended = JobEnded { job: id, status: JobStatus::Failed { reason } };
                    self.send(site, CoordinatorToSite::JobEnded(ended));
                }
                Action::End(status) => self.end(id, status)?,
            }
        }
        Ok(())
    }

    fn offer(&mut self, id: JobId, site: SiteId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.offered.iter_mut().for_each(|offered| _ = offered.insert(site));
        let signed = job.signed.clone();
        self.send(site, CoordinatorToSite::JobOffer(signed));
    }

    fn start_round(
        &mut self,
        id: JobId,
        site: SiteId,
        round: RoundId,
        task: weighhouse_shared::job::RoundTask,
    ) -> Result<(), DriverError> {
        let model = self.model(id)?;
        self.send(
            site,
            CoordinatorToSite::RoundStart(RoundStart { job: id, round, task, model: model.hash }),
        );
        if let Some(connected) = self.online.get(&site) {
            connected.outbox.send(ToSite::Model { job: id, round, model });
        }
        Ok(())
    }

    fn model(&mut self, id: JobId) -> Result<GlobalModel, DriverError> {
        let Some(job) = self.jobs.get_mut(&id) else {
            return Err(DriverError::Job { reason: "it is gone".into() });
        };
        match &job.model {
            Some(model) if model.hash == job.machine.model() => Ok(model.clone()),
            _ => {
                let hash = job.machine.model();
                let model = GlobalModel { hash, bytes: self.parts.store.model(hash)? };
                job.model = Some(model.clone());
                Ok(model)
            }
        }
    }

    fn save(&self, id: JobId) -> Result<(), DriverError> {
        let job = &self.jobs[&id];
        let record = JobRecord {
            signed: job.signed.clone(),
            number: job.number,
            status: job.machine.status().clone(),
            round: job.machine.round(),
            model: job.machine.model(),
            answers: job.machine.answers(),
        };
        if let Some(released) = job.machine.released() {
            self.parts.store.put_released(id, released)?;
        }
        if let Some(unanswered) = job.unanswered() {
            self.parts.store.put_unanswered(id, &unanswered)?;
        }
        Ok(self.parts.store.put_job(id, &record)?)
    }

    /// Saves the job and what was seen of sites' ledgers at the price of one sync.
    fn save_with_witnesses(&mut self, id: JobId) -> Result<(), DriverError> {
        self.save(id)?;
        let witnessed = self.stage_witnesses()?;
        self.parts.store.sync()?;
        self.tell_witnessed(witnessed)
    }

    fn watch(&mut self, id: JobId) -> Result<Option<Watched>, DriverError> {
        let Some(job) = self.jobs.get(&id) else { return Ok(None) };
        let answers = job.machine.answers().into_iter();
        let answered = |(site, decision)| JobEvent::Answered { site: self.site_name(site), decision };
        let mut past: Vec<JobEvent> = answers.map(answered).collect();
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(None) };
        past.extend(self.parts.store.rounds(id)?.into_iter().map(JobEvent::Committed));
        past.extend(job.refusals_event());
        past.push(JobEvent::Status(job.machine.status().clone()));
        let (sender, receiver) = mpsc::channel(WATCH_LEN);
        if !job.machine.status().is_final() {
            job.watchers.push(sender);
        }
        Ok(Some((past, receiver)))
    }
}

/// The disk under the spool folder failed.
fn spool_failed(source: std::io::Error) -> DriverError {
    DriverError::Store(StoreError::Sync { path: "spool".into(), source })
}

/// Tells all watchers; one that does not keep up is dropped, and may ask again.
fn tell(watchers: &mut Vec<mpsc::Sender<JobEvent>>, event: JobEvent) {
    watchers.retain(|watcher| watcher.try_send(event.clone()).is_ok());
}
