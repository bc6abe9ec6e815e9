//! The QUIC shell of a site: connects, turns what comes into events for the [`SessionMachine`], carries out its
//! actions in their order.

mod connect;
pub mod machine;

pub use connect::{ConnectError, connect, probe, resolve};

use crate::approvals::Approvals;
use crate::budget::Budget;
use crate::contribute::{Contribution, WorkError, Workplace};
use crate::global_model::{ArrivingModel, GlobalModel};
use crate::membership::Membership;
use crate::offer;
use crate::payment::PaidBytes;
use crate::secure_sum::SumError;
use crate::witnesses::Witnesses;
use machine::{Action, Event, Judged, SessionMachine, job_of};
use quinn::{Connection, ConnectionError, Endpoint, ReadError, ReadExactError, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use weighhouse_shared::clock;
use weighhouse_shared::ids::{JobId, RoundId};
use weighhouse_shared::policy::Policy;
use weighhouse_shared::schema::Schema;
use weighhouse_shared::telemetry;
use weighhouse_shared::tls::{self, Trust};
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Decision, HeadVerdict, JobAnswer, LedgerHead, Outcome, SignedContract,
    SiteToCoordinator, Witnessed,
};
use weighhouse_shared::wire::stream::{self, Content, Piece, StreamError, Taken};

/// How often a connected site looks whether its certificate should be renewed.
const RENEWAL_CHECK: Duration = Duration::from_secs(86_400);

/// What others may want to know of a running site: constants and labels only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The coordinator knows this site.
    Connected,
    /// The link is down; the next try comes after a pause.
    Disconnected {
        /// Why, for people.
        reason: String,
    },
    /// A job was accepted or refused, or waits for approval.
    Decided {
        /// The job.
        job: JobId,
        /// Its name.
        name: String,
        /// What was decided.
        decision: Decision,
        /// Why, if it was not accepted.
        reason: Option<String>,
    },
    /// A contribution was sent.
    Sent {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
    },
    /// The coordinator did not count a contribution, or closed a round without it.
    Refused {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
        /// Why.
        outcome: Outcome,
    },
    /// This site has a new certificate.
    Renewed,
    /// A job is over.
    JobEnded {
        /// The job.
        job: JobId,
    },
}

/// A site ready to run.
#[derive(Debug)]
pub struct Site {
    /// Host and port of the coordinator.
    pub coordinator: String,
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
    /// What the site shows, renewed in time.
    pub membership: Membership,
    /// Its columns.
    pub schema: Schema,
    /// What it allows.
    pub policy: Policy,
    /// Jobs that its people decide about.
    pub approvals: Arc<Approvals>,
    /// Its records, budget and outbox.
    pub workplace: Arc<Workplace>,
    /// What the coordinator saw of its ledger.
    pub witnesses: Mutex<Witnesses>,
}

/// A round's work that is done, and the model it was done with: its memory serves the next.
type Worked = (JobId, RoundId, Result<Contribution, WorkError>, Vec<f32>);

/// Runs until trying again cannot help. Dropping the future ends it at any point safely: what is
/// promised is on disk.
pub async fn run(site: &Site, mut notice: impl FnMut(Notice)) -> Result<(), ConnectError> {
    let started = Instant::now();
    let now = || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (worked, mut finished) = mpsc::unbounded_channel();
    let arrivals = Arc::new(Mutex::new(Arrivals::default()));
    let mut machine = SessionMachine::new(now());
    loop {
        if let Some(due) = machine.next_timeout() {
            tokio::time::sleep(Duration::from_millis(due.saturating_sub(now()))).await;
        }
        // It is down, and its time has come: all that it wants is to connect.
        machine.handle(Event::Tick, now());
        let session = async {
            let mut link = Link::connect(site, &worked, &arrivals, &mut notice).await?;
            link.run(&mut machine, &mut finished, now).await
        };
        let Err(error) = session.await;
        if error.is_final() {
            return Err(error);
        }
        for action in machine.handle(Event::Lost(error.to_string()), now()) {
            if let Action::Notice(event) = action {
                notice(event);
            }
        }
    }
}

/// One connection.
struct Link<'a, N> {
    site: &'a Site,
    notice: &'a mut N,
    worked: &'a mpsc::UnboundedSender<Worked>,
    arrivals: &'a Arc<Mutex<Arrivals>>,
    _endpoint: Endpoint,
    connection: Connection,
    send: SendStream,
    coordinator_key: [u8; 32],
    incoming: mpsc::Receiver<Incoming>,
    tasks: tokio::task::JoinSet<()>,
}

impl<'a, N: FnMut(Notice)> Link<'a, N> {
    /// Connects, opens the control stream, and begins to read.
    async fn connect(
        site: &'a Site,
        worked: &'a mpsc::UnboundedSender<Worked>,
        arrivals: &'a Arc<Mutex<Arrivals>>,
        notice: &'a mut N,
    ) -> Result<Self, ConnectError> {
        let address = resolve(&site.coordinator).await?;
        let trust = Trust::Authority(site.authority.clone());
        let (endpoint, connection) = connect(address, &site.membership.credentials(), trust).await?;
        let lost = |error: ConnectionError| ConnectError::from_stream(error.into());
        let (send, receive) = connection.open_bi().await.map_err(lost)?;
        let coordinator_key = coordinator_key(site, &connection)?;
        let (inbox, incoming) = mpsc::channel(16);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(read_messages(receive, inbox.clone()));
        tasks.spawn(hear_the_bell(site.approvals.clone(), inbox.clone()));
        tasks.spawn(read_models(connection.clone(), arrivals.clone(), inbox));
        Ok(Self {
            site,
            notice,
            worked,
            arrivals,
            _endpoint: endpoint,
            connection,
            send,
            coordinator_key,
            incoming,
            tasks,
        })
    }

    /// Carries out what `machine` wants, until the connection is lost.
    async fn run(
        &mut self,
        machine: &mut SessionMachine,
        finished: &mut mpsc::UnboundedReceiver<Worked>,
        now: impl Fn() -> u64,
    ) -> Result<Infallible, ConnectError> {
        let mut events = VecDeque::from([Event::Linked]);
        let mut days = tokio::time::interval(RENEWAL_CHECK);
        loop {
            while let Some(event) = events.pop_front() {
                for action in machine.handle(event, now()) {
                    events.extend(self.carry_out(action).await?);
                }
            }
            let pause = machine.next_timeout().map(|due| Duration::from_millis(due.saturating_sub(now())));
            events.extend(tokio::select! {
                Some(incoming) = self.incoming.recv() => Some(self.take(incoming).await?),
                Some(worked) = finished.recv() => Some(self.take_work(machine, worked)),
                Some(_) = self.tasks.join_next() => None,
                _ = days.tick(), if machine.is_up() => {
                    self.site.membership.renewal_is_due(clock::unix_time_s()).then_some(Event::Expiring)
                }
                () = tokio::time::sleep(pause.unwrap_or(Duration::MAX)), if pause.is_some() => Some(Event::Tick),
                error = self.connection.closed() => return Err(ConnectError::from_stream(error.into())),
            });
        }
    }

    async fn take(&self, incoming: Incoming) -> Result<Event, ConnectError> {
        match incoming {
            Incoming::Message(Ok(Some(message))) => Ok(Event::Heard(message)),
            Incoming::Message(Ok(None)) => {
                Err(ConnectError::from_stream(self.connection.closed().await.into()))
            }
            Incoming::Message(Err(error)) | Incoming::Model(Err(error)) => {
                Err(ConnectError::from_stream(error))
            }
            Incoming::Rung(job, offer) => Ok(Event::Rung(job, offer)),
            Incoming::Model(Ok(model)) => Ok(Event::ModelArrived(model)),
        }
    }

    fn take_work(&self, machine: &SessionMachine, worked: Worked) -> Event {
        let (job, round, result, model) = worked;
        if machine.takes_part(&job) {
            lock(self.arrivals).memory = model;
        }
        let contribution = result
            .inspect_err(|error| tracing::error!(job = %job.short(), round = round.0, error = %describe(error), "the round's work failed"))
            .ok();
        Event::Worked { job, round, contribution }
    }

    /// Carries out one action; what happened by that, if anything.
    async fn carry_out(&mut self, action: Action) -> Result<Option<Event>, ConnectError> {
        let site = self.site;
        match action {
            // Done already: this is a connection.
            Action::Connect => {}
            Action::Send(message) => self.send(&message).await?,
            Action::TellHead(contribution) => self.send(&told_head(site, contribution)).await?,
            Action::TellStanding => {
                let standing = lock(&site.workplace.budget).balance().standing(clock::unix_time_s());
                if let Some(standing) = standing {
                    self.send(&SiteToCoordinator::Standing(standing)).await?;
                }
            }
            Action::TellPart(job) => {
                let part = lock(self.arrivals).begun.as_ref().map(ArrivingModel::holding);
                if let Some(part) = part.filter(|part| part.job == job && part.received > 0) {
                    self.send(&SiteToCoordinator::Holding(part)).await?;
                }
            }
            Action::TakeWitness(witnessed) => take_witness(site, &self.coordinator_key, &witnessed)?,
            Action::Judge { offer, rung } => {
                let Site { authority, schema, policy, approvals, workplace, .. } = site;
                let terms = Terms { authority, schema, policy, approvals };
                let mut budget = lock(&workplace.budget);
                let judged = judge(terms, &mut budget, &offer, rung, clock::unix_time_s());
                return Ok(Some(Event::Judged(judged)));
            }
            Action::Expect { job, len } => lock(self.arrivals).expect(job, len),
            Action::Work { contract, start, model } => {
                let (workplace, worked) = (site.workplace.clone(), self.worked.clone());
                let span = telemetry::round_span(start.job, start.round);
                tokio::task::spawn_blocking(move || {
                    let result = span.in_scope(|| workplace.work(&contract, &start, &model));
                    // The receiver lives as long as the daemon.
                    let _ = worked.send((start.job, start.round, result, model));
                });
            }
            Action::TellSumKey(contract) => {
                let key = site.workplace.sums.key(&contract, &site.membership.credentials().identity);
                if let Some(key) = self.done(contract.job, key) {
                    self.send(&SiteToCoordinator::SumKey(key)).await?;
                }
            }
            Action::TakeSumRoster(told) => {
                let job = told.job;
                let offer = site.workplace.sums.take_roster(told);
                if let Some(offer) = self.done(job, offer).flatten() {
                    self.send(&SiteToCoordinator::SumOffer(offer)).await?;
                }
            }
            Action::TakeSumBatch(told) => {
                let job = told.job;
                let offer = site.workplace.sums.take_batch(told);
                if let Some(offer) = self.done(job, offer).flatten() {
                    self.send(&SiteToCoordinator::SumOffer(offer)).await?;
                }
            }
            Action::AnswerSum(told) => {
                let answer = site.workplace.sums.answer(&told);
                if let Some(answer) = self.done(told.job, answer) {
                    self.send(&SiteToCoordinator::SumAnswer(answer)).await?;
                }
            }
            Action::Upload { job, round, paid, from } => {
                let PaidBytes { base, content: hash, bytes } = paid;
                let content = Content { job, round, base, hash, bytes };
                let connection = self.connection.clone();
                self.tasks.spawn(async move {
                    // A lost link shows on the connection; the bytes are sent again then.
                    let _ = stream::send_content(&connection, &content, from, Taken::InTurn).await;
                });
            }
            Action::Ended { job, known } => {
                if let Err(error) = site.approvals.ended(job) {
                    tracing::warn!(error = %describe(&error), "an ended job stays among those to approve");
                }
                // The coordinator says so of every old job when a site is back.
                if known || lock(&site.workplace.budget).holds(job) {
                    (self.notice)(Notice::JobEnded { job });
                }
            }
            Action::Close(job) => {
                if let Err(error) = lock(&site.workplace.budget).give_back(job) {
                    tracing::error!(error = %describe(&error), "the job's reservation could not be given back");
                }
                if let Err(error) = site.workplace.outbox.forget(job, None) {
                    tracing::warn!(%error, "the outbox could not be cleared");
                }
                if let Err(error) = site.workplace.feedback.forget(job) {
                    tracing::warn!(%error, "the feedback folder could not be cleared");
                }
                if let Err(error) = site.workplace.sums.forget(job) {
                    tracing::error!(%error, "the job's secret for secure sums could not be deleted");
                }
            }
            Action::KeepCertificate(certificate) => {
                match site.membership.renew(certificate, clock::unix_time_s()) {
                    Ok(()) => (self.notice)(Notice::Renewed),
                    Err(error) => {
                        tracing::warn!(error = %describe(&error), "the certificate was not renewed");
                    }
                }
            }
            Action::Notice(event) => (self.notice)(event),
            Action::Fail(failure) => return Err(failure.into()),
        }
        Ok(None)
    }

    /// What the site says in a secure sum; what it refuses to say, it does not say, and its log says why.
    fn done<T>(&self, job: JobId, said: Result<T, SumError>) -> Option<T> {
        said.inspect_err(|error| {
            tracing::error!(job = %job.short(), error = %describe(error), "this site took no part in a secure sum");
        })
        .ok()
    }

    async fn send(&mut self, message: &SiteToCoordinator) -> Result<(), ConnectError> {
        stream::send(&mut self.send, message).await.map_err(ConnectError::from_stream)
    }
}

enum Incoming {
    Message(Result<Option<CoordinatorToSite>, StreamError>),
    /// The bell rang, and this job was put before the site's people.
    Rung(JobId, SignedContract),
    Model(Result<GlobalModel, StreamError>),
}

async fn read_messages(mut receive: RecvStream, inbox: mpsc::Sender<Incoming>) {
    loop {
        let message = stream::receive::<CoordinatorToSite>(&mut receive).await;
        let ended = !matches!(message, Ok(Some(_)));
        if inbox.send(Incoming::Message(message)).await.is_err() || ended {
            return;
        }
    }
}

async fn hear_the_bell(approvals: Arc<Approvals>, inbox: mpsc::Sender<Incoming>) {
    loop {
        approvals.rung().await;
        let cases = approvals.all().inspect_err(|error| {
            tracing::error!(error = %describe(error), "what was decided here cannot be read");
        });
        for case in cases.unwrap_or_default() {
            if inbox.send(Incoming::Rung(case.job, case.offer)).await.is_err() {
                return;
            }
        }
    }
}

/// Models as they arrive. What has come in part outlives the connection: the rest is asked for in the next one.
#[derive(Default)]
struct Arrivals {
    /// Bytes of the models of each job that may come.
    lens: HashMap<JobId, u64>,
    begun: Option<ArrivingModel>,
    /// A model's, from one round to the next: fresh pages cost more than what is done with them.
    memory: Vec<f32>,
}

impl Arrivals {
    fn expect(&mut self, job: JobId, len: Option<u64>) {
        match len {
            Some(len) => {
                self.lens.insert(job, len);
            }
            None => {
                self.lens.remove(&job);
                self.begun.take_if(|begun| begun.holding().job == job);
                self.memory = Vec::new();
            }
        }
    }

    /// Whether `piece` is the next one of the model that has begun, or begins one that may come.
    fn takes(&mut self, piece: &Piece) -> bool {
        if self.lens.get(&piece.job) != Some(&piece.total) {
            return false;
        }
        if self.begun.as_ref().is_some_and(|begun| begun.continues_with(piece)) {
            return true;
        }
        let begun = self.begun.take().map(ArrivingModel::into_memory);
        let memory = begun.unwrap_or_else(|| std::mem::take(&mut self.memory));
        self.begun = ArrivingModel::begin(*piece, memory);
        self.begun.is_some()
    }

    fn push(&mut self, block: &[u8]) {
        if let Some(begun) = &mut self.begun {
            begun.push(block);
        }
    }
}

/// Receives models, whose job must be known and whose length must be its contract's. Pieces that are not the next
/// of one model are dropped, and with them what was begun.
async fn read_models(connection: Connection, arrivals: Arc<Mutex<Arrivals>>, inbox: mpsc::Sender<Incoming>) {
    loop {
        let model = receive_model(&connection, &arrivals).await;
        let ended = model.is_err();
        if inbox.send(Incoming::Model(model)).await.is_err() || ended {
            return;
        }
    }
}

async fn receive_model(
    connection: &Connection,
    arrivals: &Mutex<Arrivals>,
) -> Result<GlobalModel, StreamError> {
    loop {
        let mut stream = connection.accept_uni().await?;
        let piece = stream::receive_piece(&mut stream).await?;
        if !lock(arrivals).takes(&piece) {
            let _ = stream.stop(0u8.into());
            continue;
        }
        let read = stream::receive_blocks(&mut stream, piece.len, |block| -> Result<(), StreamError> {
            lock(arrivals).push(block);
            Ok(())
        });
        match read.await {
            // The coordinator gave it up for a newer one.
            Err(StreamError::ReadExact(
                ReadExactError::FinishedEarly(_) | ReadExactError::ReadError(ReadError::Reset(_)),
            )) => continue,
            read => read?,
        }
        let whole = lock(arrivals).begun.take_if(|begun| begun.is_complete());
        if let Some(model) = whole.map(ArrivingModel::finish) {
            match model {
                Some(model) => return Ok(model),
                None => tracing::warn!(job = %piece.job.short(), "a model did not match its hash"),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How far the ledger has come, before `contribution` leaves.
fn told_head(site: &Site, contribution: Option<(JobId, RoundId)>) -> SiteToCoordinator {
    let (head, signature) = lock(&site.workplace.budget).signed_head();
    SiteToCoordinator::LedgerHead(LedgerHead { contribution, head, signature: signature.into() })
}

/// The coordinator's key, from the certificate that the handshake verified and the home keeps.
fn coordinator_key(site: &Site, connection: &Connection) -> Result<[u8; 32], ConnectError> {
    let certificate = tls::connected_certificate(connection).map_err(|_| ConnectError::Protocol)?;
    if let Err(error) = lock(&site.witnesses).keep_certificate(&certificate) {
        tracing::warn!(error = %describe(&error), "coordinator.crt could not be written");
    }
    tls::public_key_of(&certificate).map_err(|_| ConnectError::Protocol)
}

/// Keeps what the coordinator saw of the ledger. One that the ledger contradicts ends the service, and is on disk by then.
fn take_witness(site: &Site, key: &[u8; 32], witnessed: &Witnessed) -> Result<(), ConnectError> {
    let Some(signed) = &witnessed.witness else {
        let follows = witnessed.verdict == HeadVerdict::Follows;
        return follows.then_some(()).ok_or(ConnectError::Protocol);
    };
    if !signed.is_signed_by(key) || signed.witness.site != site.membership.credentials().identity.site() {
        return Err(ConnectError::Protocol);
    }
    let held = lock(&site.workplace.budget).hold_against(&signed.witness);
    if let Err(error) = lock(&site.witnesses).keep(signed, held.is_err()) {
        tracing::error!(error = %describe(&error), "a witness of the ledger could not be kept");
    }
    held?;
    // A coordinator that ends the connection without a witness that says why.
    if witnessed.verdict == HeadVerdict::Follows { Ok(()) } else { Err(ConnectError::Protocol) }
}

/// An error with its causes, for the site's own log.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What offers are held against beside the budget.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The authority's certificate.
    pub authority: &'a CertificateDer<'static>,
    /// The site's columns.
    pub schema: &'a Schema,
    /// What it allows.
    pub policy: &'a Policy,
    /// What its people decided.
    pub approvals: &'a Approvals,
}

/// Judges an offer at `now_s` (seconds since 1970) and sets its charges aside; `rung` because of a decision at the
/// site.
pub fn judge(
    terms: Terms<'_>,
    budget: &mut Budget,
    signed: &SignedContract,
    rung: bool,
    now_s: u64,
) -> Judged {
    let job = job_of(signed);
    let checked = offer::check(signed, terms.authority, terms.schema, now_s);
    let name = checked.as_ref().map_or_else(|_| job.short(), |checked| checked.contract.name.clone());
    let reserved = checked.and_then(|checked| {
        offer::permit(&checked, signed, terms.policy, terms.approvals, budget, now_s)?;
        offer::reserve(&checked, budget)?;
        Ok(checked)
    });
    let (decision, contract, reason) = match reserved {
        Ok(checked) => (Decision::Accepted, Some(checked), None),
        Err(error) => (error.decision(), None, Some(describe(&error))),
    };
    // A running job that the policy no longer allows ends here. What it held is free before the
    // coordinator hears of it, which will not say that the job has ended.
    let left = matches!(decision, Decision::RefusedPolicy(_));
    if left && let Err(error) = budget.give_back(job) {
        tracing::error!(error = %describe(&error), "the job's reservation could not be given back");
    }
    let notice = Notice::Decided { job, name, decision, reason };
    Judged { answer: JobAnswer { job, decision }, contract, left, notice, rung }
}
