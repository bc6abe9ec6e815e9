//! Updates on their way in, from all sites: few are read at a time, and what has come in part outlives its
//! connection.

use super::SessionError;
use crate::admission::{Arriving, ParsedUpdate};
use crate::driver::{Inbox, Input};
use crate::spool::Spool;
use quinn::{Connection, ReadExactError, RecvStream, VarInt};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::wire::messages::{Holding, Outcome, Receipt, RoundStart};
use weighhouse_shared::wire::stream::{self, Piece, StreamError};
use weighhouse_shared::wire::transport::{CONNECTION_WINDOW, WAITING_WINDOW};

/// Uploads read at a time, over all sites, until each is counted: more only fight for the same processors, and each
/// may hold its body in memory.
const MAX_UPLOADS: usize = 8;

/// How long a whole update waits for the control stream, which it may have overtaken where packets are lost.
const OVERTAKEN: Duration = Duration::from_secs(10);

/// Jobs of whose contributions a session remembers what was told before.
const MAX_TOLD: usize = 64;

/// Uploads that came in part and are kept for their sites' next connection; the oldest is dropped.
const MAX_PARKED: usize = 16;

/// Updates on their way in.
#[derive(Debug)]
pub struct Uploads {
    turns: Semaphore,
    spool: Arc<Spool>,
    parked: Mutex<VecDeque<(SiteId, Arriving)>>,
}

/// The update that a session goes on with, if its site sends the rest.
#[derive(Debug, Default)]
pub struct Resumed(Mutex<Option<Arriving>>);

impl Resumed {
    fn lock(&self) -> MutexGuard<'_, Option<Arriving>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rounds for which a site has told the head of its ledger in this session, and with it what it debited.
#[derive(Debug)]
pub struct Told(watch::Sender<BTreeMap<JobId, RoundId>>);

impl Default for Told {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Told {
    /// The driver has been told.
    pub fn note(&self, (job, round): (JobId, RoundId)) {
        self.0.send_modify(|told| {
            told.insert(job, round);
            if told.len() > MAX_TOLD {
                told.pop_first();
            }
        });
    }

    /// Waits until it has been told for `round` of `job`, within reason: without it the update is refused. Each update
    /// has a head of its own before it.
    async fn wait(&self, job: JobId, round: RoundId) {
        let mut told = self.0.subscribe();
        let of_it = told.wait_for(|told| told.get(&job) == Some(&round));
        let _ = tokio::time::timeout(OVERTAKEN, of_it).await;
        self.0.send_modify(|told| {
            told.remove(&job);
        });
    }
}

/// An update being read; what has come of it is put back if its reading is cut off.
struct Begun<'a> {
    arriving: Option<Arriving>,
    resumed: &'a Resumed,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(arriving) = self.arriving.take() {
            *self.resumed.lock() = Some(arriving);
        }
    }
}

impl Uploads {
    /// None yet; long ones wait in `spool`.
    pub fn new(spool: Arc<Spool>) -> Self {
        Self { turns: Semaphore::new(MAX_UPLOADS), spool, parked: Mutex::default() }
    }

    fn parked(&self) -> MutexGuard<'_, VecDeque<(SiteId, Arriving)>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is here of the site's update for the round that starts: the session goes on with it.
    pub fn resume(&self, site: SiteId, start: &RoundStart, resumed: &Resumed) -> Option<Holding> {
        let mut parked = self.parked();
        let at = parked.iter().position(|(owner, _)| *owner == site)?;
        let (_, arriving) = parked.remove(at)?;
        let holding = arriving.holding();
        if (holding.job, holding.round) != (start.job, start.round) {
            return None;
        }
        *resumed.lock() = Some(arriving);
        Some(holding)
    }

    /// The site's session has ended: what came in part is kept for its next one.
    pub fn park(&self, site: SiteId, resumed: &Resumed) {
        let begun = resumed.lock().take().filter(|arriving| arriving.holding().received > 0);
        let Some(arriving) = begun else { return };
        let mut parked = self.parked();
        parked.retain(|(owner, _)| *owner != site);
        parked.push_back((site, arriving));
        if parked.len() > MAX_PARKED {
            parked.pop_front();
        }
    }

    /// Reads a site's updates, one after the other, until its connection ends.
    pub async fn read(
        &self,
        connection: &Connection,
        site: SiteId,
        inbox: &Inbox,
        resumed: &Resumed,
        told: &Told,
    ) -> Result<(), SessionError> {
        let mut refused = None;
        loop {
            let mut first = connection.accept_uni().await.map_err(StreamError::from)?;
            let _turn = self.turns.acquire().await.map_err(|_| SessionError::Closing)?;
            let piece = stream::receive_piece(&mut first).await?;
            let (job, round, content) = (piece.job, piece.round, piece.content);
            if piece.offset > 0 && refused == Some((job, round, content)) {
                // The rest of what was refused already.
                let _ = first.stop(0u8.into());
                continue;
            }
            let read = self.read_one(connection, first, piece, site, inbox, resumed).await?;
            let input = match read {
                Ok(update) => {
                    told.wait(job, round).await;
                    Input::Update(site, update)
                }
                Err(outcome) => {
                    refused = Some((job, round, content));
                    Input::Refused(site, Receipt { job, round, outcome })
                }
            };
            inbox.send(input).await.map_err(|_| SessionError::Closing)?;
            // The turn ends once the update is counted: no more than those of all turns are ever in memory.
            let (reply, counted) = oneshot::channel();
            inbox.send(Input::Counted(reply)).await.map_err(|_| SessionError::Closing)?;
            counted.await.map_err(|_| SessionError::Closing)?;
        }
    }

    /// Reads one update from its pieces, if the driver wants it.
    async fn read_one(
        &self,
        connection: &Connection,
        mut stream: RecvStream,
        mut piece: Piece,
        site: SiteId,
        inbox: &Inbox,
        resumed: &Resumed,
    ) -> Result<Result<ParsedUpdate, Outcome>, SessionError> {
        let (reply, answer) = oneshot::channel();
        inbox.send(Input::Announced { site, piece, reply }).await.map_err(|_| SessionError::Closing)?;
        let expected = match answer.await.map_err(|_| SessionError::Closing)? {
            Ok(expected) => expected,
            Err(outcome) => {
                let _ = stream.stop(0u8.into());
                return Ok(Err(outcome));
            }
        };
        let kept = resumed.lock().take().filter(|arriving| arriving.continues_with(&piece));
        let begun = match kept {
            Some(arriving) => Ok(arriving),
            None => Arriving::begin(piece, expected, &self.spool)?,
        };
        let mut begun = match begun {
            Ok(arriving) => Begun { arriving: Some(arriving), resumed },
            Err(outcome) => {
                let _ = stream.stop(0u8.into());
                return Ok(Err(outcome));
            }
        };
        // Until its turn, and again after it, a peer may have little on its way.
        let mut left = piece.total.saturating_sub(piece.offset);
        let mut allow = |bytes: u64| {
            let bytes = bytes.min(left);
            left -= bytes;
            allow_once(connection, bytes);
        };
        allow(u64::from(CONNECTION_WINDOW));
        loop {
            let read = stream::receive_blocks(&mut stream, piece.len, |block| {
                allow(block.len() as u64);
                Ok(begun.arriving.as_mut().map_or(Ok(()), |arriving| arriving.push(block))?)
            });
            match read.await {
                Ok(()) => {}
                Err(SessionError::Stream(StreamError::ReadExact(ReadExactError::FinishedEarly(_)))) => {
                    begun.arriving = None;
                    return Ok(Err(Outcome::Corrupt));
                }
                Err(error) => return Err(error),
            }
            if begun.arriving.as_ref().is_none_or(Arriving::is_complete) {
                return Ok(begun.arriving.take().map_or(Ok(Err(Outcome::Corrupt)), Arriving::finish)?);
            }
            stream = stream::next_piece(connection).await?;
            piece = stream::receive_piece(&mut stream).await?;
            if begun.arriving.as_ref().is_none_or(|arriving| !arriving.continues_with(&piece)) {
                let _ = stream.stop(0u8.into());
                begun.arriving = None;
                return Ok(Err(Outcome::Corrupt));
            }
            let progress = Input::Arriving(site, piece.job);
            inbox.send(progress).await.map_err(|_| SessionError::Closing)?;
        }
    }
}

/// Lets the peer send `bytes` more than it may without a turn, at most the window of a turn: once, since a window that
/// shrinks again takes back as much from what is read next.
fn allow_once(connection: &Connection, bytes: u64) {
    let bytes = u32::try_from(bytes).map_or(CONNECTION_WINDOW, |bytes| bytes.min(CONNECTION_WINDOW));
    if bytes > 0 {
        connection.set_receive_window(VarInt::from_u32(WAITING_WINDOW + bytes));
        connection.set_receive_window(VarInt::from_u32(WAITING_WINDOW));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::compression::{Compression, Encoding};
    use weighhouse_shared::ids::ContentHash;
    use weighhouse_shared::job::RoundTask;

    const JOB: JobId = JobId::from_bytes([1; 32]);

    fn site(number: u8) -> SiteId {
        SiteId::from_bytes([number; 32])
    }

    fn start(round: u32) -> RoundStart {
        let task = RoundTask { train: true, evaluate: false };
        RoundStart { job: JOB, round: RoundId(round), task, model: ContentHash::of(b"model") }
    }

    /// An update of two values for round 3, of which `received` bytes came.
    fn begun(uploads: &Uploads, received: usize) -> Resumed {
        let (base, content) = (start(3).model, ContentHash::of(&[0; 8]));
        let piece = Piece { job: JOB, round: RoundId(3), base, content, total: 8, offset: 0, len: 8 };
        let encoding = Encoding { compression: Compression::None, parameters: 2 };
        let mut arriving = Arriving::begin(piece, encoding, &uploads.spool).unwrap().unwrap();
        arriving.push(&[0; 8][..received]).unwrap();
        Resumed(Mutex::new(Some(arriving)))
    }

    #[test]
    fn what_came_in_part_is_kept_for_its_site_and_its_round() {
        let uploads = Uploads::new(Spool::new("".into()));
        uploads.park(site(1), &begun(&uploads, 4));
        let resumed = Resumed::default();
        assert_eq!(uploads.resume(site(2), &start(3), &resumed), None);
        assert_eq!(uploads.resume(site(1), &start(3), &resumed).unwrap().received, 4);
        assert!(resumed.lock().is_some());
        assert_eq!(uploads.resume(site(1), &start(3), &resumed), None, "it is gone on with already");

        uploads.park(site(1), &resumed);
        assert_eq!(uploads.resume(site(1), &start(4), &Resumed::default()), None, "that round is over");
        assert!(uploads.parked().is_empty());
        uploads.park(site(1), &begun(&uploads, 0));
        assert!(uploads.parked().is_empty(), "nothing of it came");
    }

    #[test]
    fn no_more_than_a_few_are_kept_and_one_of_each_site() {
        let uploads = Uploads::new(Spool::new("".into()));
        for number in 0..MAX_PARKED as u8 + 3 {
            uploads.park(site(number), &begun(&uploads, 4));
            uploads.park(site(number), &begun(&uploads, 8));
        }
        assert_eq!(uploads.parked().len(), MAX_PARKED);
        assert_eq!(uploads.resume(site(2), &start(3), &Resumed::default()), None, "the oldest went");
        assert_eq!(uploads.resume(site(3), &start(3), &Resumed::default()).unwrap().received, 8);
    }
}
