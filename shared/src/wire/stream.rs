//! Frames and pieces of contents on QUIC streams.
//!
//! A unidirectional stream carries one piece: a header frame ([`Piece`]), then its bytes. A content
//! longer than [`PIECE_LEN`] is several pieces, so that what has arrived need not be sent again.

use super::codec;
use super::frame::{self, FrameError, Message};
use crate::ids::{ContentHash, JobId, RoundId};
use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Liveness is one rule: a peer from which what was begun does not go on by a block in this time is given up.
pub const PROGRESS: Duration = Duration::from_secs(30);

/// The most bytes of a content on one stream.
pub const PIECE_LEN: usize = 4 << 20;

/// The bytes taken from a stream at a time: one wakeup and one system call serve many packets, and a block
/// is still in the processor's cache when it is hashed, checked and written. Whole values: a multiple of 8.
pub const BLOCK_LEN: usize = 128 << 10;

/// The longest encoded [`Piece`] header.
const MAX_PIECE_HEADER_LEN: usize = 256;

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer's bytes are not a frame.
    #[error("the peer does not keep to the protocol")]
    Frame(#[from] FrameError),
    /// The peer's bytes are not a piece's header.
    #[error("the peer does not keep to the protocol")]
    Header(#[from] codec::DecodeError),
    /// Reading failed.
    #[error("the connection was lost while reading")]
    Read(#[from] quinn::ReadError),
    /// The stream ended inside something.
    #[error("the connection was lost while reading")]
    ReadExact(#[from] quinn::ReadExactError),
    /// Writing failed.
    #[error("the connection was lost while writing")]
    Write(#[from] quinn::WriteError),
    /// The connection is gone.
    #[error("the connection was lost")]
    Connection(#[from] quinn::ConnectionError),
    /// Nothing went on for [`PROGRESS`].
    #[error("the peer does not take or send what was begun")]
    Stalled,
    /// A piece says something impossible of itself.
    #[error("a piece of {len} bytes at {offset} of {total} is not possible")]
    Piece {
        /// Its length.
        len: u64,
        /// Where it begins.
        offset: u64,
        /// The content's length.
        total: u64,
    },
}

/// What `step` gives, if it is done within [`PROGRESS`].
async fn in_time<T, E>(step: impl Future<Output = Result<T, E>>) -> Result<T, StreamError>
where
    StreamError: From<E>,
{
    Ok(tokio::time::timeout(PROGRESS, step).await.map_err(|_| StreamError::Stalled)??)
}

/// Writes one message; a peer that does not read it in time is given up.
pub async fn send<M: Message>(stream: &mut SendStream, message: &M) -> Result<(), StreamError> {
    in_time(stream.write_all(&frame::encode(message))).await
}

/// Reads one message; None at the end of the stream. One may come at any time; once begun, it goes on. Its memory
/// grows with what comes, not with what was announced.
pub async fn receive<M: Message>(stream: &mut RecvStream) -> Result<Option<M>, StreamError> {
    let mut len = [0; 4];
    match stream.read_exact(&mut len[..1]).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    in_time(stream.read_exact(&mut len[1..])).await?;
    let len = frame::checked_len(u32::from_le_bytes(len))?;
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let known = bytes.len();
        bytes.resize(len.min(known + BLOCK_LEN), 0);
        in_time(stream.read_exact(&mut bytes[known..])).await?;
    }
    Ok(Some(frame::decode(&bytes)?))
}

/// What a unidirectional stream carries: `len` bytes of a content, from `offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// What the content is for.
    pub job: JobId,
    /// And for which round: a model starts it, an update is for it.
    pub round: RoundId,
    /// For an update, the model it was trained from; for a model, itself.
    pub base: ContentHash,
    /// Hash of the whole content.
    pub content: ContentHash,
    /// Length of the whole content, in bytes.
    pub total: u64,
    /// Where this piece begins.
    pub offset: u64,
    /// Its length.
    pub len: u32,
}

impl Piece {
    fn check(&self) -> Result<(), StreamError> {
        let (len, offset, total) = (u64::from(self.len), self.offset, self.total);
        let fits = self.len as usize <= PIECE_LEN && offset.checked_add(len).is_some_and(|end| end <= total);
        if fits { Ok(()) } else { Err(StreamError::Piece { len, offset, total }) }
    }
}

/// A model or an update to be sent.
#[derive(Debug, Clone)]
pub struct Content {
    /// What it is for.
    pub job: JobId,
    /// And for which round.
    pub round: RoundId,
    /// For an update, the model it was trained from; for a model, itself.
    pub base: ContentHash,
    /// Hash of the bytes.
    pub hash: ContentHash,
    /// The bytes.
    pub bytes: Bytes,
}

/// How a peer takes a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// As it comes: one that does not take a block in time is given up.
    AtOnce,
    /// When its turn is there.
    InTurn,
}

/// Sends a content from byte `from` on in pieces, each on a stream of its own, without copying it. `from` is what the
/// peer says it holds: whatever it says, whole 8 byte values are sent.
pub async fn send_content(
    connection: &Connection,
    content: &Content,
    from: u64,
    taken: Taken,
) -> Result<(), StreamError> {
    let Content { job, round, base, hash, ref bytes } = *content;
    let total = bytes.len() as u64;
    let mut offset = usize::try_from(from).map_or(bytes.len(), |from| from.min(bytes.len()));
    if offset < bytes.len() {
        offset -= offset % 8;
    }
    while offset < bytes.len() {
        let mut part = bytes.slice(offset..bytes.len().min(offset + PIECE_LEN));
        let (at, len) = (offset as u64, part.len() as u32);
        let header = codec::encode(&Piece { job, round, base, content: hash, total, offset: at, len });
        offset += part.len();
        let mut stream = connection.open_uni().await?;
        stream.write_all(&(header.len() as u16).to_le_bytes()).await?;
        stream.write_all(&header).await?;
        match taken {
            Taken::InTurn => stream.write_chunk(part).await?,
            Taken::AtOnce => {
                while !part.is_empty() {
                    let block = part.split_to(part.len().min(BLOCK_LEN));
                    in_time(stream.write_chunk(block)).await?;
                }
            }
        }
        // A stream already stopped by the peer was read or refused there: nothing is left to do on it.
        let _ = stream.finish();
    }
    Ok(())
}

/// The next piece's stream, of a content that has begun.
pub async fn next_piece(connection: &Connection) -> Result<RecvStream, StreamError> {
    in_time(connection.accept_uni()).await
}

/// Reads a piece's header; its bytes follow on `stream`.
pub async fn receive_piece(stream: &mut RecvStream) -> Result<Piece, StreamError> {
    let mut len = [0; 2];
    in_time(stream.read_exact(&mut len)).await?;
    let len = usize::from(u16::from_le_bytes(len));
    if len > MAX_PIECE_HEADER_LEN {
        return Err(FrameError::Length { len }.into());
    }
    let mut header = [0; MAX_PIECE_HEADER_LEN];
    in_time(stream.read_exact(&mut header[..len])).await?;
    let piece: Piece = codec::decode(&header[..len])?;
    piece.check()?;
    Ok(piece)
}

/// Reads the bytes of a piece of `len` bytes and hands them over in blocks of up to [`BLOCK_LEN`].
pub async fn receive_blocks<E: From<StreamError>>(
    stream: &mut RecvStream,
    len: u32,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut left = len as usize;
    let mut block = vec![0; left.min(BLOCK_LEN)];
    while left > 0 {
        let part = &mut block[..left.min(BLOCK_LEN)];
        in_time(stream.read_exact(part)).await?;
        left -= part.len();
        take(part)?;
    }
    Ok(())
}
