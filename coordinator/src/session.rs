//! One connected site: frames and streams on one side, the driver's events on the other. What is said is the
//! [`SessionMachine`]'s; here are the streams, and what keeps them within bounds.

pub mod machine;
mod upload;

use crate::driver::{Inbox, Input, Outgoing, ToSite, outbox};
use crate::roster::SharedRoster;
use machine::{Action, Event, Failure, SessionMachine, Who};
use quinn::{Connection, RecvStream, SendStream};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
pub use upload::Uploads;
use upload::{Resumed, Told};
use weighhouse_shared::ids::{JobId, SiteId};
use weighhouse_shared::tls::{self, Peer};
use weighhouse_shared::wire::messages::{CoordinatorToSite, Holding, LedgerHead, SiteToCoordinator};
use weighhouse_shared::wire::stream::{self, Content, StreamError, Taken};

/// How long a last message may take to arrive.
const GOODBYE: Duration = Duration::from_secs(5);

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    /// The driver.
    pub inbox: Inbox,
    /// Updates on their way in.
    pub uploads: Uploads,
    /// Who may be here.
    pub roster: SharedRoster,
}

impl Shared {
    /// Returns once `site` is not on the roster, or no more.
    async fn revoked(&self, site: SiteId) {
        let roster = || self.roster.read().unwrap_or_else(PoisonError::into_inner);
        let mut revocations = roster().revocations();
        while roster().name_of(site).is_some() && revocations.changed().await.is_ok() {}
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection or the protocol failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The peer said something out of turn.
    #[error("the peer does not keep to the protocol")]
    Protocol,
    /// The peer connected and did not greet.
    #[error("the peer does not say who it is in time")]
    Silent,
    /// The peer does not read what it is sent.
    #[error("the peer does not read what it is sent")]
    Slow,
    /// Updates cannot be kept.
    #[error("cannot write to the spool folder; is the disk full?")]
    Spool(#[from] std::io::Error),
    /// The coordinator is shutting down.
    #[error("the coordinator is shutting down")]
    Closing,
}

impl From<Failure> for SessionError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Protocol => Self::Protocol,
            Failure::Silent => Self::Silent,
        }
    }
}

/// Serves one site until its connection ends; a revoked one's ends at once, however far it has come.
pub async fn serve(
    connection: Connection,
    peer: Peer,
    session: u64,
    shared: Arc<Shared>,
) -> Result<(), SessionError> {
    let Peer::Site(site) = peer else { return converse(connection, peer, session, shared).await };
    let revoked = async {
        shared.revoked(site).await;
        // What is under way fails with the connection, and is cleared away as after any lost one.
        connection.close(0u8.into(), b"");
        std::future::pending().await
    };
    tokio::select! {
        outcome = converse(connection.clone(), peer, session, shared.clone()) => outcome,
        () = revoked => Ok(()),
    }
}

async fn converse(
    connection: Connection,
    peer: Peer,
    session: u64,
    shared: Arc<Shared>,
) -> Result<(), SessionError> {
    let certificate = tls::connected_certificate(&connection).map_err(|_| SessionError::Protocol)?;
    let public_key = tls::public_key_of(&certificate).map_err(|_| SessionError::Protocol)?;
    let who = match peer {
        Peer::Site(site) => Who::Site { site, session, public_key },
        Peer::Enrolling { .. } => Who::Enrolling,
        Peer::Operator { .. } | Peer::Coordinator => return Err(SessionError::Protocol),
    };
    let started = Instant::now();
    let now = || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut machine = SessionMachine::new(who, 0);
    let greeting = Duration::from_millis(machine::GREETING_MS);
    let opened = tokio::time::timeout(greeting, connection.accept_bi()).await;
    let (mut send, mut receive) = opened.map_err(|_| SessionError::Silent)?.map_err(StreamError::from)?;
    loop {
        let due = machine.next_timeout().unwrap_or(u64::MAX);
        let left = Duration::from_millis(due.saturating_sub(now()));
        let (event, at) = match tokio::time::timeout(left, heard(&mut receive)).await {
            Ok(message) => (Event::Heard(message?), now()),
            Err(_) => (Event::Tick, due),
        };
        for action in machine.handle(event, at) {
            match action {
                Action::Send(message) => stream::send(&mut send, &message).await?,
                Action::Last(message) => return say_goodbye(&mut send, &message).await,
                Action::Enrol => return enrol(&connection, peer, &mut send, &shared).await,
                Action::Connect(head) => {
                    let (Peer::Site(site), Who::Site { session, .. }) = (peer, who) else {
                        return Err(SessionError::Protocol);
                    };
                    let (resumes, holds) = (machine.resumes(), Mutex::default());
                    let site = Served { connection, site, session, shared, resumes, holds };
                    return site.serve(machine, now, send, receive, head).await;
                }
                Action::Fail(failure) => return Err(failure.into()),
                Action::Tell(_) | Action::Holds(_) => return Err(SessionError::Protocol),
            }
        }
    }
}

/// The next message; a peer that ends its control stream ends the session.
async fn heard(receive: &mut RecvStream) -> Result<SiteToCoordinator, SessionError> {
    stream::receive(receive).await?.ok_or(SessionError::Protocol)
}

/// A peer that does not read a last message in time learns why when it connects again.
async fn say_goodbye(send: &mut SendStream, message: &CoordinatorToSite) -> Result<(), SessionError> {
    stream::send(send, message).await?;
    let _ = send.finish();
    let _ = tokio::time::timeout(GOODBYE, send.stopped()).await;
    Ok(())
}

async fn enrol(
    connection: &Connection,
    peer: Peer,
    send: &mut SendStream,
    shared: &Shared,
) -> Result<(), SessionError> {
    let Peer::Enrolling { public_key, invite, proof } = peer else { return Err(SessionError::Protocol) };
    let (reply, answer) = oneshot::channel();
    let input = Input::Enrol { public_key, invite, proof, reply };
    shared.inbox.send(input).await.map_err(|_| SessionError::Closing)?;
    let enrolled = answer.await.map_err(|_| SessionError::Closing)?.ok_or(SessionError::Protocol)?;
    stream::send(send, &CoordinatorToSite::Enrolled(enrolled)).await?;
    let _ = send.finish();
    // The site closes once it has its certificate.
    let _ = tokio::time::timeout(GOODBYE, connection.closed()).await;
    Ok(())
}

/// A site that has greeted.
struct Served {
    connection: Connection,
    site: SiteId,
    session: u64,
    shared: Arc<Shared>,
    /// Whether it goes on with an upload that was cut off.
    resumes: bool,
    /// What it holds of each job's model.
    holds: Mutex<BTreeMap<JobId, Holding>>,
}

impl Served {
    async fn serve(
        self,
        machine: SessionMachine,
        now: impl Fn() -> u64,
        send: SendStream,
        receive: RecvStream,
        head: LedgerHead,
    ) -> Result<(), SessionError> {
        let (site, session) = (self.site, self.session);
        let (outbox, commands) = outbox();
        self.tell(Input::Connected { site, session, head, outbox }).await?;
        let (resumed, told) = (Resumed::default(), Told::default());
        let outcome = tokio::select! {
            outcome = self.read_control(machine, now, receive, &told) => outcome,
            outcome = self.shared.uploads.read(&self.connection, site, &self.shared.inbox, &resumed, &told) => outcome,
            outcome = self.write(send, commands, &resumed) => outcome,
        };
        self.connection.close(0u8.into(), b"");
        self.shared.uploads.park(site, &resumed);
        self.tell(Input::Disconnected { site, session }).await?;
        outcome
    }

    async fn tell(&self, input: Input) -> Result<(), SessionError> {
        self.shared.inbox.send(input).await.map_err(|_| SessionError::Closing)
    }

    async fn read_control(
        &self,
        mut machine: SessionMachine,
        now: impl Fn() -> u64,
        mut receive: RecvStream,
        told: &Told,
    ) -> Result<(), SessionError> {
        while let Some(message) = stream::receive::<SiteToCoordinator>(&mut receive).await? {
            let contribution = match &message {
                SiteToCoordinator::LedgerHead(head) => head.contribution,
                _ => None,
            };
            for action in machine.handle(Event::Heard(message), now()) {
                match action {
                    Action::Tell(input) => self.tell(input).await?,
                    Action::Holds(holding) => self.note(holding),
                    Action::Fail(failure) => return Err(failure.into()),
                    _ => return Err(SessionError::Protocol),
                }
            }
            if let Some(contribution) = contribution {
                told.note(contribution);
            }
        }
        Ok(())
    }

    /// Notes what the site holds of a model: of one job, since a site downloads one after the other.
    fn note(&self, holding: Holding) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        *holds = BTreeMap::from([(holding.job, holding)]);
    }

    /// How much of `content` the site holds.
    fn held(&self, content: &Content) -> u64 {
        let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let held = holds.get(&content.job);
        let same = held.filter(|held| (held.round, held.content) == (content.round, content.hash));
        same.map_or(0, |held| held.received)
    }

    /// Carries out what the driver wants sent, in order; a model is sent beside the control stream, and a newer one
    /// of its job takes its place.
    async fn write(
        &self,
        mut send: SendStream,
        mut commands: Outgoing,
        resumed: &Resumed,
    ) -> Result<(), SessionError> {
        let mut models = tokio::task::JoinSet::new();
        let mut sending = BTreeMap::<JobId, tokio::task::AbortHandle>::new();
        loop {
            tokio::select! {
                command = commands.next() => match command {
                    Some(ToSite::Message(message)) => {
                        if let CoordinatorToSite::RoundStart(start) = &message
                            && self.resumes
                            && let Some(holding) = self.shared.uploads.resume(self.site, start, resumed)
                        {
                            stream::send(&mut send, &CoordinatorToSite::Holding(holding)).await?;
                        }
                        stream::send(&mut send, &message).await?;
                    }
                    Some(ToSite::Model { job, round, model }) => {
                        let hash = model.hash;
                        let content = Content { job, round, base: hash, hash, bytes: model.bytes };
                        let (connection, from) = (self.connection.clone(), self.held(&content));
                        let task = models.spawn(async move {
                            stream::send_content(&connection, &content, from, Taken::AtOnce).await
                        });
                        if let Some(older) = sending.insert(job, task) {
                            older.abort();
                        }
                    }
                    Some(ToSite::Last(message)) => return say_goodbye(&mut send, &message).await,
                    Some(ToSite::Close) => return Ok(()),
                    None => return Err(SessionError::Slow),
                },
                // A lost link shows on the control stream too; the round is started again then.
                Some(sent) = models.join_next() => if let Ok(Err(StreamError::Stalled)) = sent {
                    return Err(SessionError::Slow);
                },
            }
        }
    }
}
