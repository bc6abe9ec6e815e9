//! The QUIC shell of a site: connects, turns messages into events for [`crate::round`], carries out its
//! actions, reconnects with growing pauses when the link is lost.

use crate::approvals::Approvals;
use crate::contribute::{Contribution, PaidBytes, WorkError, Workplace};
use crate::global_model::{ArrivingModel, GlobalModel};
use crate::membership::Membership;
use crate::offer;
use crate::round::{Action, Event, Rounds};
use crate::witnesses::{Contradiction, Witnesses};
use quinn::{Connection, ConnectionError, Endpoint, SendStream};
use rustls::pki_types::CertificateDer;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use weighhouse_shared::clock;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::policy::Policy;
use weighhouse_shared::schema::Schema;
use weighhouse_shared::telemetry;
use weighhouse_shared::tls::{self, COORDINATOR_NAME, Credentials, Trust};
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Debited, Decision, Evaluation, HeadVerdict, Hello, JobAnswer, LedgerHead, Outcome,
    Receipt, Renew, RoundSkipped, SignedContract, SiteToCoordinator, Witnessed,
};
use weighhouse_shared::wire::stream::{self, StreamError};
use weighhouse_shared::wire::transport;
use weighhouse_shared::wire::{ALPN, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, common_version};

/// First pause before connecting anew; doubled up to [`MAX_PAUSE`] while the link stays down.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often a connected site looks whether its certificate should be renewed.
const RENEWAL_CHECK: Duration = Duration::from_secs(86_400);
/// The protocol version that brought renewal.
const RENEWAL_VERSION: u16 = 2;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot find the address of `{name}`; check `coordinator` in client.toml and the name service")]
    Resolve {
        /// Host and port.
        name: String,
    },
    /// No socket, or no TLS.
    #[error("cannot open a connection")]
    Local(#[source] std::io::Error),
    /// TLS cannot be set up with these keys.
    #[error("the key or certificate of this home cannot be used; join again with a new invite")]
    Tls(#[source] rustls::Error),
    /// No answer.
    #[error("the coordinator at {address} does not answer; is it running, and is UDP to that port allowed?")]
    Unreachable {
        /// Where it should be.
        address: SocketAddr,
        /// What the transport said.
        #[source]
        source: ConnectionError,
    },
    /// The coordinator does not take this site's certificate.
    #[error(
        "the coordinator refuses this site's certificate: it was revoked or has expired; ask the operator for a new invite"
    )]
    CertificateRefused,
    /// The coordinator's certificate is of another federation.
    #[error(
        "the coordinator at {address} is not the one this site joined: its certificate is of another authority"
    )]
    WrongCoordinator {
        /// Where it is.
        address: SocketAddr,
    },
    /// Versions differ.
    #[error(
        "the coordinator speaks protocol version {coordinator}, this release {OLDEST_PROTOCOL_VERSION} to {site}; update the older side"
    )]
    Version {
        /// The coordinator's.
        coordinator: u16,
        /// Ours.
        site: u16,
    },
    /// Not even the handshake has a version in common.
    #[error(
        "the coordinator at {address} does not speak `{}`, the only protocol this release speaks; update the older side",
        String::from_utf8_lossy(ALPN)
    )]
    OtherProtocol {
        /// Where it is.
        address: SocketAddr,
    },
    /// The connection ended.
    #[error("the connection to the coordinator was lost")]
    Lost(#[source] StreamError),
    /// The ledger was set back or rewritten.
    #[error(transparent)]
    Ledger(#[from] Contradiction),
    /// The coordinator said something out of turn.
    #[error("the coordinator does not keep to the protocol")]
    Protocol,
}

impl ConnectError {
    /// Tells a refused certificate from a lost link.
    pub fn from_stream(error: StreamError) -> Self {
        let connection = match &error {
            StreamError::Connection(error)
            | StreamError::Read(quinn::ReadError::ConnectionLost(error))
            | StreamError::ReadExact(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(
                error,
            )))
            | StreamError::Write(quinn::WriteError::ConnectionLost(error)) => Some(error),
            _ => None,
        };
        match connection {
            Some(ConnectionError::ConnectionClosed(close)) if is_crypto(close.error_code) => {
                Self::CertificateRefused
            }
            _ => Self::Lost(error),
        }
    }

    /// Whether trying again cannot help.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Resolve { .. } | Self::Unreachable { .. } | Self::Lost(_) | Self::Local(_))
    }
}

/// TLS's alert that no application protocol is common (RFC 7301, section 3.2), as a transport error.
const NO_COMMON_PROTOCOL: u64 = 0x100 + 120;

/// TLS alerts travel as transport errors 0x100 to 0x1ff (RFC 9001, section 4.8).
fn is_crypto(code: quinn::TransportErrorCode) -> bool {
    (0x100..=0x1ff).contains(&u64::from(code))
}

/// The address of `name`, a host and port.
pub async fn resolve(name: &str) -> Result<SocketAddr, ConnectError> {
    let unknown = || ConnectError::Resolve { name: name.to_owned() };
    tokio::net::lookup_host(name).await.map_err(|_| unknown())?.next().ok_or_else(unknown)
}

/// Connects to the coordinator at `address`.
pub async fn connect(
    address: SocketAddr,
    credentials: &Credentials,
    trust: Trust,
) -> Result<(Endpoint, Connection), ConnectError> {
    let tls = tls::client_config(credentials, trust).map_err(ConnectError::Tls)?;
    let endpoint = transport::dial(address, tls).map_err(ConnectError::Local)?;
    let connecting = endpoint
        .connect(address, COORDINATOR_NAME)
        .map_err(|error| ConnectError::Local(std::io::Error::other(error)))?;
    match connecting.await {
        Ok(connection) => Ok((endpoint, connection)),
        Err(ConnectionError::TransportError(error)) if is_crypto(error.code) => {
            Err(ConnectError::WrongCoordinator { address })
        }
        Err(ConnectionError::ConnectionClosed(close))
            if u64::from(close.error_code) == NO_COMMON_PROTOCOL =>
        {
            Err(ConnectError::OtherProtocol { address })
        }
        Err(ConnectionError::ConnectionClosed(close)) if is_crypto(close.error_code) => {
            Err(ConnectError::CertificateRefused)
        }
        Err(source) => Err(ConnectError::Unreachable { address, source }),
    }
}

fn hello() -> SiteToCoordinator {
    SiteToCoordinator::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        release: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// The version that both speak, from the answer to [`hello`].
fn welcomed(answer: Option<CoordinatorToSite>) -> Result<u16, ConnectError> {
    let differ = |coordinator| ConnectError::Version { coordinator, site: PROTOCOL_VERSION };
    match answer {
        Some(CoordinatorToSite::Welcome(welcome)) => common_version(welcome.protocol)
            .filter(|version| *version == welcome.protocol)
            .ok_or_else(|| differ(welcome.protocol)),
        Some(CoordinatorToSite::VersionRefused(versions)) => Err(differ(versions.coordinator)),
        _ => Err(ConnectError::Protocol),
    }
}

/// Whether the coordinator at `name`, a host and port, answers and takes this site, without taking part: a running
/// daemon of the site is not disturbed.
pub async fn probe(
    name: &str,
    credentials: &Credentials,
    authority: CertificateDer<'static>,
) -> Result<(), ConnectError> {
    let lost = ConnectError::from_stream;
    let address = resolve(name).await?;
    let (_endpoint, connection) = connect(address, credentials, Trust::Authority(authority)).await?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| lost(error.into()))?;
    stream::send(&mut send, &hello()).await.map_err(lost)?;
    let version = welcomed(stream::receive(&mut receive).await.map_err(lost)?);
    connection.close(0u8.into(), b"");
    version.map(|_| ())
}

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
    /// This site has a new certificate.
    Renewed,
    /// The coordinator did not count a contribution, or closed a round without it.
    Refused {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
        /// Why.
        outcome: Outcome,
    },
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
    let mut rounds = Rounds::default();
    let (worked, mut finished) = mpsc::unbounded_channel();
    let mut pause = MIN_PAUSE;
    loop {
        let mut welcomed = false;
        let mut observed = |event| {
            welcomed |= event == Notice::Connected;
            notice(event);
        };
        let Err(error) = session(site, &mut rounds, &worked, &mut finished, &mut observed).await;
        if error.is_final() {
            return Err(error);
        }
        rounds.disconnected();
        pause = if welcomed { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
        notice(Notice::Disconnected { reason: error.to_string() });
        tokio::time::sleep(pause).await;
    }
}

/// One connection, from handshake to loss.
async fn session(
    site: &Site,
    rounds: &mut Rounds,
    worked: &mpsc::UnboundedSender<Worked>,
    finished: &mut mpsc::UnboundedReceiver<Worked>,
    notice: &mut impl FnMut(Notice),
) -> Result<std::convert::Infallible, ConnectError> {
    let address = resolve(&site.coordinator).await?;
    let trust = Trust::Authority(site.authority.clone());
    let (_endpoint, connection) = connect(address, &site.membership.credentials(), trust).await?;
    let lost = ConnectError::from_stream;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| lost(error.into()))?;
    stream::send(&mut send, &hello()).await.map_err(lost)?;
    stream::send(&mut send, &told_head(site, None)).await.map_err(lost)?;
    let version = welcomed(stream::receive(&mut receive).await.map_err(lost)?)?;
    let coordinator_key = coordinator_key(site, &connection)?;
    match stream::receive::<CoordinatorToSite>(&mut receive).await.map_err(lost)? {
        Some(CoordinatorToSite::Witnessed(witnessed)) => take_witness(site, &coordinator_key, &witnessed)?,
        _ => return Err(ConnectError::Protocol),
    }
    notice(Notice::Connected);

    send_standing(site, &mut send).await?;

    let model_lens = Arc::new(Mutex::new(HashMap::new()));
    // A model's, from one round to the next: fresh pages cost more than what is done with them.
    let memory = Arc::new(Mutex::new(Vec::new()));
    let (inbox, mut incoming) = mpsc::channel(16);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let inbox = inbox.clone();
        async move {
            loop {
                let message = stream::receive::<CoordinatorToSite>(&mut receive).await;
                let ended = !matches!(message, Ok(Some(_)));
                if inbox.send(Incoming::Message(message)).await.is_err() || ended {
                    return;
                }
            }
        }
    });
    tasks.spawn({
        let (inbox, approvals) = (inbox.clone(), site.approvals.clone());
        async move {
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
    });
    tasks.spawn({
        let (connection, model_lens, memory) = (connection.clone(), model_lens.clone(), memory.clone());
        async move {
            loop {
                let model = receive_model(&connection, &model_lens, &memory).await;
                let ended = model.is_err();
                if inbox.send(Incoming::Model(model)).await.is_err() || ended {
                    return;
                }
            }
        }
    });

    // What the coordinator knows of this site's answers.
    let mut told: BTreeMap<JobId, Decision> = BTreeMap::new();
    let mut days = tokio::time::interval(RENEWAL_CHECK);
    loop {
        let event = tokio::select! {
            _ = days.tick() => {
                if version >= RENEWAL_VERSION && site.membership.renewal_is_due(clock::unix_time_s()) {
                    stream::send(&mut send, &SiteToCoordinator::Renew(Renew {})).await.map_err(lost)?;
                }
                continue;
            }
            Some(incoming) = incoming.recv() => match incoming {
                Incoming::Message(Ok(Some(message))) => match message {
                    CoordinatorToSite::JobOffer(offer) => {
                        let considered = consider(site, &offer);
                        told.insert(considered.answer.job, considered.answer.decision);
                        match answer(considered, rounds, &model_lens, &mut send, notice).await? {
                            Some(event) => event,
                            None => continue,
                        }
                    }
                    CoordinatorToSite::RoundStart(start) => Event::RoundStarted(start),
                    CoordinatorToSite::JobEnded(ended) => {
                        lock(&model_lens).remove(&ended.job);
                        told.remove(&ended.job);
                        if let Err(error) = site.approvals.ended(ended.job) {
                            tracing::warn!(error = %describe(&error), "an ended job stays among those to approve");
                        }
                        *lock(&memory) = Vec::new();
                        // The coordinator says so of every old job when a site is back.
                        let held = lock(&site.workplace.budget).holds(ended.job);
                        if held || rounds.model_len(&ended.job).is_some() {
                            notice(Notice::JobEnded { job: ended.job });
                        }
                        Event::JobEnded(ended.job)
                    }
                    CoordinatorToSite::Receipt(receipt) => {
                        let Receipt { job, round, outcome } = receipt;
                        tracing::debug!(job = %job.short(), round = round.0, %outcome, "receipt");
                        if outcome != Outcome::Admitted && rounds.model_len(&job).is_some() {
                            notice(Notice::Refused { job, round, outcome });
                        }
                        continue;
                    }
                    CoordinatorToSite::Witnessed(witnessed) => {
                        take_witness(site, &coordinator_key, &witnessed)?;
                        continue;
                    }
                    CoordinatorToSite::Renewed(renewed) => {
                        match site.membership.renew(renewed.certificate, clock::unix_time_s()) {
                            Ok(()) => notice(Notice::Renewed),
                            Err(error) => {
                                tracing::warn!(error = %describe(&error), "the certificate was not renewed");
                            }
                        }
                        continue;
                    }
                    CoordinatorToSite::Welcome(_)
                    | CoordinatorToSite::VersionRefused(_)
                    | CoordinatorToSite::Enrolled(_) => return Err(ConnectError::Protocol),
                },
                // Someone at the site decided: the coordinator is told if that changes the answer.
                Incoming::Rung(job, offer) => {
                    let Some(last) = told.get_mut(&job) else { continue };
                    let considered = consider(site, &offer);
                    if considered.answer.decision == *last {
                        continue;
                    }
                    *last = considered.answer.decision;
                    match answer(considered, rounds, &model_lens, &mut send, notice).await? {
                        Some(event) => event,
                        None => continue,
                    }
                }
                Incoming::Message(Ok(None)) => return Err(lost(connection.closed().await.into())),
                Incoming::Message(Err(error)) => return Err(lost(error)),
                Incoming::Model(Ok(model)) => Event::ModelArrived(model),
                Incoming::Model(Err(error)) => return Err(lost(error)),
            },
            Some((job, round, result, model)) = finished.recv() => {
                if rounds.model_len(&job).is_some() {
                    *lock(&memory) = model;
                }
                let contribution = result
                    .inspect_err(|error| tracing::error!(job = %job.short(), round = round.0, error = %describe(error), "the round's work failed"))
                    .ok();
                Event::Worked { job, round, contribution }
            }
            Some(_) = tasks.join_next() => continue,
            error = connection.closed() => return Err(lost(error.into())),
        };
        for action in rounds.handle(event) {
            match action {
                Action::Work { contract, start, model } => {
                    let (workplace, worked) = (site.workplace.clone(), worked.clone());
                    let span = telemetry::round_span(start.job, start.round);
                    tokio::task::spawn_blocking(move || {
                        let result = span.in_scope(|| workplace.work(&contract, &start, &model));
                        // The receiver lives as long as the daemon.
                        let _ = worked.send((start.job, start.round, result, model));
                    });
                }
                Action::Skip { job, round } => {
                    let skipped = SiteToCoordinator::RoundSkipped(RoundSkipped { job, round });
                    stream::send(&mut send, &skipped).await.map_err(lost)?;
                }
                Action::Send { start, contribution } => {
                    let (job, round) = (start.job, start.round);
                    let Contribution { evaluation, update, charges } = contribution;
                    for charge in charges {
                        let debited = SiteToCoordinator::Debited(Debited { job, round, charge });
                        stream::send(&mut send, &debited).await.map_err(lost)?;
                    }
                    if evaluation.is_some() || update.is_some() {
                        // What released them is on disk, so the head covers it.
                        let head = told_head(site, Some((job, round)));
                        stream::send(&mut send, &head).await.map_err(lost)?;
                    }
                    if let Some(histogram) = evaluation {
                        let evaluation = SiteToCoordinator::Evaluation(Evaluation { job, round, histogram });
                        stream::send(&mut send, &evaluation).await.map_err(lost)?;
                    } else if start.task.evaluate && !start.task.train {
                        let skipped = SiteToCoordinator::RoundSkipped(RoundSkipped { job, round });
                        stream::send(&mut send, &skipped).await.map_err(lost)?;
                    }
                    match update {
                        Some(PaidBytes { base, content, bytes }) => {
                            let connection = connection.clone();
                            tasks.spawn(async move {
                                // A lost link shows on the connection; the bytes are sent again then.
                                let _ = stream::send_content(&connection, job, round, base, content, &bytes)
                                    .await;
                            });
                        }
                        None if start.task.train => {
                            let skipped = SiteToCoordinator::RoundSkipped(RoundSkipped { job, round });
                            stream::send(&mut send, &skipped).await.map_err(lost)?;
                        }
                        None => {}
                    }
                    notice(Notice::Sent { job, round });
                }
                Action::Close(job) => {
                    let closed = {
                        let mut budget = lock(&site.workplace.budget);
                        budget.give_back(job)
                    };
                    if let Err(error) = closed {
                        tracing::error!(error = %describe(&error), "the job's reservation could not be given back");
                    }
                    if let Err(error) = site.workplace.outbox.forget(job, None) {
                        tracing::warn!(%error, "the outbox could not be cleared");
                    }
                    if let Err(error) = site.workplace.feedback.forget(job) {
                        tracing::warn!(%error, "the feedback folder could not be cleared");
                    }
                    send_standing(site, &mut send).await?;
                }
            }
        }
    }
}

enum Incoming {
    Message(Result<Option<CoordinatorToSite>, StreamError>),
    /// The bell rang, and this job was put before the site's people.
    Rung(JobId, SignedContract),
    Model(Result<GlobalModel, StreamError>),
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

/// Tells what the budget still allows, so that operators can plan.
async fn send_standing(site: &Site, send: &mut quinn::SendStream) -> Result<(), ConnectError> {
    let standing = lock(&site.workplace.budget).balance().standing(clock::unix_time_s());
    match standing {
        Some(standing) => stream::send(send, &SiteToCoordinator::Standing(standing))
            .await
            .map_err(ConnectError::from_stream),
        None => Ok(()),
    }
}

/// A judged offer.
struct Considered {
    answer: JobAnswer,
    /// What it means for the rounds.
    event: Option<Event>,
    decided: Notice,
}

/// Judges an offer and sets its charges aside.
fn consider(site: &Site, signed: &SignedContract) -> Considered {
    let job = JobId::from_bytes(*ContentHash::of(&signed.contract).as_bytes());
    let now_s = clock::unix_time_s();
    let checked = offer::check(signed, &site.authority, &site.schema, now_s);
    let name = checked.as_ref().map_or_else(|_| job.short(), |checked| checked.contract.name.clone());
    let mut budget = lock(&site.workplace.budget);
    let reserved = checked.and_then(|checked| {
        offer::permit(&checked, signed, &site.policy, &site.approvals, &budget, now_s)?;
        offer::reserve(&checked, &mut budget)?;
        Ok(checked)
    });
    let (decision, event, reason) = match reserved {
        Ok(checked) => (Decision::Accepted, Some(Event::JobAccepted(checked)), None),
        Err(error) => {
            let decision = error.decision();
            // A running job that the policy no longer allows ends here. What it held is free before the
            // coordinator hears of it, which will not say that the job has ended.
            let left = matches!(decision, Decision::RefusedPolicy(_));
            if let (true, Err(error)) = (left, budget.give_back(job)) {
                tracing::error!(error = %describe(&error), "the job's reservation could not be given back");
            }
            (decision, left.then_some(Event::JobEnded(job)), Some(describe(&error)))
        }
    };
    let decided = Notice::Decided { job, name, decision, reason };
    Considered { answer: JobAnswer { job, decision }, event, decided }
}

/// Answers an offer. An accepted job is known to the rounds before the coordinator hears of it, so that its
/// model finds it; what else follows is returned.
async fn answer(
    considered: Considered,
    rounds: &mut Rounds,
    model_lens: &Mutex<HashMap<JobId, u64>>,
    send: &mut SendStream,
    notice: &mut impl FnMut(Notice),
) -> Result<Option<Event>, ConnectError> {
    let Considered { answer, event, decided } = considered;
    notice(decided);
    let event = match event {
        Some(Event::JobAccepted(contract)) => {
            rounds.handle(Event::JobAccepted(contract));
            None
        }
        event => event,
    };
    match rounds.model_len(&answer.job) {
        Some(len) if event.is_none() => lock(model_lens).insert(answer.job, len),
        _ => lock(model_lens).remove(&answer.job),
    };
    let answer = SiteToCoordinator::JobAnswer(answer);
    stream::send(send, &answer).await.map_err(ConnectError::from_stream)?;
    Ok(event)
}

/// Receives one whole model, whose job must be known and whose length must be its contract's. Pieces
/// that are not the next of one model are dropped, and with them what was begun. The model is put into
/// `memory`'s.
async fn receive_model(
    connection: &Connection,
    model_lens: &Mutex<HashMap<JobId, u64>>,
    memory: &Mutex<Vec<f32>>,
) -> Result<GlobalModel, StreamError> {
    let mut begun: Option<ArrivingModel> = None;
    loop {
        let mut stream = connection.accept_uni().await?;
        let piece = stream::receive_piece(&mut stream).await?;
        let wanted = lock(model_lens).get(&piece.job) == Some(&piece.total);
        let arriving = match begun.take() {
            _ if !wanted => None,
            Some(arriving) if arriving.continues_with(&piece) => Some(arriving),
            _ => ArrivingModel::begin(piece, std::mem::take(&mut *lock(memory))),
        };
        let Some(mut arriving) = arriving else {
            let _ = stream.stop(0u8.into());
            continue;
        };
        stream::receive_blocks(&mut stream, piece.len, |block| -> Result<(), StreamError> {
            arriving.push(block);
            Ok(())
        })
        .await?;
        if !arriving.is_complete() {
            begun = Some(arriving);
        } else if let Some(model) = arriving.finish() {
            return Ok(model);
        } else {
            tracing::warn!(job = %piece.job.short(), "a model did not match its hash");
        }
    }
}
