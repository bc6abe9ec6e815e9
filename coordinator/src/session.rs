//! One connected site: frames and streams on one side, the driver's events on the other.

use crate::admission::Arriving;
use crate::driver::{Inbox, Input, ToSite};
use crate::roster::SharedRoster;
use crate::spool::Spool;
use quinn::{Connection, RecvStream, SendStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::tls::{self, Peer};
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Hello, LedgerHead, Outcome, Receipt, SiteToCoordinator, VersionRefused, Welcome,
};
use weighhouse_shared::wire::stream::{self, StreamError};
use weighhouse_shared::wire::{PROTOCOL_VERSION, common_version};

/// Uploads read at a time, over all sites: more only fight for the same processors.
pub const MAX_UPLOADS: usize = 8;

/// How long a last message may take to arrive.
const GOODBYE: Duration = Duration::from_secs(5);

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    /// The driver.
    pub inbox: Inbox,
    /// Permits for reading uploads.
    pub uploads: Semaphore,
    /// Where long updates wait.
    pub spool: Arc<Spool>,
    /// Who may be here.
    pub roster: SharedRoster,
}

impl Shared {
    /// Returns once `site` is not on the roster, or no more.
    async fn revoked(&self, site: SiteId) {
        let roster = || self.roster.read().unwrap_or_else(std::sync::PoisonError::into_inner);
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
    /// Updates cannot be kept.
    #[error("cannot write to the spool folder; is the disk full?")]
    Spool(#[from] std::io::Error),
    /// The coordinator is shutting down.
    #[error("the coordinator is shutting down")]
    Closing,
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
    let (mut send, mut receive) = connection.accept_bi().await.map_err(StreamError::from)?;
    let first = stream::receive::<SiteToCoordinator>(&mut receive).await?;
    match (peer, first) {
        (Peer::Enrolling { public_key, invite, proof }, Some(SiteToCoordinator::Enrol(_))) => {
            let (reply, answer) = oneshot::channel();
            let input = Input::Enrol { public_key, invite, proof, reply };
            shared.inbox.send(input).await.map_err(|_| SessionError::Closing)?;
            match answer.await.map_err(|_| SessionError::Closing)? {
                Some(enrolled) => {
                    stream::send(&mut send, &CoordinatorToSite::Enrolled(enrolled)).await?;
                    let _ = send.finish();
                    // The site closes once it has its certificate.
                    connection.closed().await;
                    Ok(())
                }
                None => Err(SessionError::Protocol),
            }
        }
        (Peer::Site(site), Some(SiteToCoordinator::Hello(hello))) => {
            if common_version(hello.protocol).is_none() {
                let versions = VersionRefused { coordinator: PROTOCOL_VERSION, site: hello.protocol };
                stream::send(&mut send, &CoordinatorToSite::VersionRefused(versions)).await?;
                let _ = send.finish();
                let _ = send.stopped().await;
                return Ok(());
            }
            serve_site(connection, site, session, hello, send, receive, shared).await
        }
        _ => Err(SessionError::Protocol),
    }
}

async fn serve_site(
    connection: Connection,
    site: SiteId,
    session: u64,
    hello: Hello,
    mut send: SendStream,
    mut receive: RecvStream,
    shared: Arc<Shared>,
) -> Result<(), SessionError> {
    tracing::info!(site = %site.short(), release = %hello.release.escape_debug(), "a site connected");
    let release = env!("CARGO_PKG_VERSION").to_owned();
    let protocol = common_version(hello.protocol).ok_or(SessionError::Protocol)?;
    let welcome = CoordinatorToSite::Welcome(Welcome { protocol, release });
    stream::send(&mut send, &welcome).await?;
    let certificate = tls::connected_certificate(&connection).map_err(|_| SessionError::Protocol)?;
    let public_key = tls::public_key_of(&certificate).map_err(|_| SessionError::Protocol)?;
    let head = match stream::receive::<SiteToCoordinator>(&mut receive).await? {
        Some(SiteToCoordinator::LedgerHead(head)) => checked_head(head, &public_key)?,
        _ => return Err(SessionError::Protocol),
    };
    let (outbox, commands) = mpsc::unbounded_channel();
    let connected = Input::Connected { site, session, head, outbox };
    shared.inbox.send(connected).await.map_err(|_| SessionError::Closing)?;
    let outcome = tokio::select! {
        outcome = read_control(receive, site, session, &public_key, &shared) => outcome,
        outcome = read_uploads(&connection, site, &shared) => outcome,
        outcome = write(&connection, send, commands) => outcome,
    };
    connection.close(0u8.into(), b"");
    let disconnected = Input::Disconnected { site, session };
    shared.inbox.send(disconnected).await.map_err(|_| SessionError::Closing)?;
    outcome
}

/// A head that the site signed.
fn checked_head(head: LedgerHead, public_key: &[u8; 32]) -> Result<LedgerHead, SessionError> {
    let signed = head.head.is_signed_by(public_key, &head.signature);
    signed.then_some(head).ok_or(SessionError::Protocol)
}

async fn read_control(
    mut receive: RecvStream,
    site: SiteId,
    session: u64,
    public_key: &[u8; 32],
    shared: &Shared,
) -> Result<(), SessionError> {
    while let Some(message) = stream::receive::<SiteToCoordinator>(&mut receive).await? {
        let input = match message {
            SiteToCoordinator::JobAnswer(answer) => Input::Answer(site, answer),
            SiteToCoordinator::Evaluation(evaluation) => Input::Evaluation(site, evaluation),
            SiteToCoordinator::RoundSkipped(skipped) => Input::Skipped(site, skipped),
            SiteToCoordinator::Standing(standing) => Input::Standing(site, standing),
            SiteToCoordinator::Renew(_) => Input::Renew(site),
            SiteToCoordinator::LedgerHead(head) => {
                Input::Head { site, session, head: checked_head(head, public_key)? }
            }
            SiteToCoordinator::Debited(debited) => Input::Debited { site, session, debited },
            SiteToCoordinator::Hello(_) | SiteToCoordinator::Enrol(_) => return Err(SessionError::Protocol),
        };
        shared.inbox.send(input).await.map_err(|_| SessionError::Closing)?;
    }
    Ok(())
}

/// Carries out what the driver wants sent, in order; a model is sent beside the control stream.
async fn write(
    connection: &Connection,
    mut send: SendStream,
    mut commands: mpsc::UnboundedReceiver<ToSite>,
) -> Result<(), SessionError> {
    let mut models = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(ToSite::Message(message)) => stream::send(&mut send, &message).await?,
                Some(ToSite::Model { job, round, model }) => {
                    let connection = connection.clone();
                    models.spawn(async move {
                        let hash = model.hash;
                        // A lost link shows on the control stream; the round is started again then.
                        let _ = stream::send_content(&connection, job, round, hash, hash, &model.bytes).await;
                    });
                }
                Some(ToSite::Last(message)) => {
                    stream::send(&mut send, &message).await?;
                    let _ = send.finish();
                    // A peer that does not read it in time learns why when it connects again.
                    let _ = tokio::time::timeout(GOODBYE, send.stopped()).await;
                    return Ok(());
                }
                Some(ToSite::Close) | None => return Ok(()),
            },
            Some(_) = models.join_next() => {}
        }
    }
}

async fn read_uploads(connection: &Connection, site: SiteId, shared: &Shared) -> Result<(), SessionError> {
    let mut refused = None;
    loop {
        let mut first = connection.accept_uni().await.map_err(StreamError::from)?;
        let _permit = shared.uploads.acquire().await.map_err(|_| SessionError::Closing)?;
        let piece = stream::receive_piece(&mut first).await?;
        let (job, round, content) = (piece.job, piece.round, piece.content);
        if piece.offset > 0 && refused == Some((job, round, content)) {
            // The rest of what was refused already.
            let _ = first.stop(0u8.into());
            continue;
        }
        let input = match read_upload(connection, first, piece, site, shared).await? {
            Ok(update) => Input::Update(site, update),
            Err(outcome) => {
                refused = Some((job, round, content));
                Input::Refused(site, Receipt { job, round, outcome })
            }
        };
        shared.inbox.send(input).await.map_err(|_| SessionError::Closing)?;
    }
}

/// Reads one update from its pieces, if the driver wants it.
async fn read_upload(
    connection: &Connection,
    mut stream: RecvStream,
    mut piece: stream::Piece,
    site: SiteId,
    shared: &Shared,
) -> Result<Result<crate::admission::ParsedUpdate, Outcome>, SessionError> {
    let (reply, answer) = oneshot::channel();
    shared.inbox.send(Input::Announced { site, piece, reply }).await.map_err(|_| SessionError::Closing)?;
    let expected = match answer.await.map_err(|_| SessionError::Closing)? {
        Ok(expected) => expected,
        Err(outcome) => {
            let _ = stream.stop(0u8.into());
            return Ok(Err(outcome));
        }
    };
    let mut arriving = match Arriving::begin(piece, expected, &shared.spool)? {
        Ok(arriving) => arriving,
        Err(outcome) => {
            let _ = stream.stop(0u8.into());
            return Ok(Err(outcome));
        }
    };
    loop {
        let read = stream::receive_blocks(&mut stream, piece.len, |block| Ok(arriving.push(block)?)).await;
        match read {
            Ok(()) => {}
            Err(SessionError::Stream(StreamError::ReadExact(quinn::ReadExactError::FinishedEarly(_)))) => {
                return Ok(Err(Outcome::Corrupt));
            }
            Err(error) => return Err(error),
        }
        if arriving.is_complete() {
            return Ok(arriving.finish()?);
        }
        stream = connection.accept_uni().await.map_err(StreamError::from)?;
        piece = stream::receive_piece(&mut stream).await?;
        if !arriving.continues_with(&piece) {
            let _ = stream.stop(0u8.into());
            return Ok(Err(Outcome::Corrupt));
        }
        let progress = Input::Arriving(site, piece.job);
        shared.inbox.send(progress).await.map_err(|_| SessionError::Closing)?;
    }
}
