//! Frames: length (4 bytes, of what follows it), number (2 bytes), the message's canonical bytes; all
//! integers little-endian. The numbers stand in the tables below and are never reused.

use super::codec::{self, DecodeError};
use super::messages::{CoordinatorToOperator, CoordinatorToSite, OperatorToCoordinator, SiteToCoordinator};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest frame in bytes, its number included: bounds what a peer can make the other hold.
pub const MAX_FRAME_LEN: usize = 1 << 20;

/// A frame that is not one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Too short or too long to be a frame.
    #[error("a frame has 2 to {MAX_FRAME_LEN} bytes, this one says {len}")]
    Length {
        /// What it says.
        len: usize,
    },
    /// A number that stands in no table for this direction.
    #[error(
        "frame number {number} is not one of protocol version {}; update the older side",
        super::PROTOCOL_VERSION
    )]
    Unknown {
        /// Its number.
        number: u16,
    },
    /// A known number, and a body that is not its message.
    #[error("frame {number} does not hold its message")]
    Body {
        /// Its number.
        number: u16,
        /// What the decoder said.
        #[source]
        source: DecodeError,
    },
}

/// One direction of talk: an enum with one frame number a variant.
pub trait Message: Sized + Send + 'static {
    /// The number and the body.
    fn to_numbered(&self) -> (u16, Vec<u8>);
    /// The message of this number with this body.
    fn from_numbered(number: u16, body: &[u8]) -> Result<Self, FrameError>;
}

/// The whole frame of `message`, length and all.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    let (number, body) = message.to_numbered();
    let len = u32::try_from(2 + body.len()).expect("a message is far shorter than 4 GiB");
    let mut frame = Vec::with_capacity(4 + 2 + body.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Checks the length a frame states.
pub fn checked_len(len: u32) -> Result<usize, FrameError> {
    let len = len as usize;
    if (2..=MAX_FRAME_LEN).contains(&len) { Ok(len) } else { Err(FrameError::Length { len }) }
}

/// The message in `frame`, which is everything after the length.
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, FrameError> {
    let (number, body) = frame.split_first_chunk::<2>().ok_or(FrameError::Length { len: frame.len() })?;
    M::from_numbered(u16::from_le_bytes(*number), body)
}

fn body<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value)
}

fn value<T: DeserializeOwned>(number: u16, body: &[u8]) -> Result<T, FrameError> {
    codec::decode(body).map_err(|source| FrameError::Body { number, source })
}

macro_rules! frame_numbers {
    ($direction:ident { $($number:literal => $variant:ident,)* }) => {
        impl Message for $direction {
            fn to_numbered(&self) -> (u16, Vec<u8>) {
                match self {
                    $(Self::$variant(message) => ($number, body(message)),)*
                }
            }

            fn from_numbered(number: u16, body: &[u8]) -> Result<Self, FrameError> {
                match number {
                    $($number => Ok(Self::$variant(value(number, body)?)),)*
                    _ => Err(FrameError::Unknown { number }),
                }
            }
        }
    };
}

frame_numbers!(SiteToCoordinator {
    1 => Hello,
    2 => Enrol,
    3 => JobAnswer,
    4 => Evaluation,
    5 => RoundSkipped,
    6 => LedgerHead,
    7 => Standing,
    8 => Renew,
    9 => Holding,
    10 => SumKey,
    11 => SumOffer,
    12 => SumAnswer,
    21 => Debited,
});

frame_numbers!(CoordinatorToSite {
    101 => Welcome,
    102 => VersionRefused,
    103 => Enrolled,
    104 => JobOffer,
    105 => RoundStart,
    106 => Receipt,
    107 => JobEnded,
    108 => Witnessed,
    109 => Renewed,
    110 => Holding,
    111 => SumRoster,
    112 => SumBatch,
    113 => SumQuestion,
});

frame_numbers!(OperatorToCoordinator {
    201 => Invite,
    202 => ListSites,
    203 => Revoke,
    204 => SubmitJob,
    205 => ListJobs,
    206 => WatchJob,
    207 => StopJob,
    208 => ListModels,
    209 => ExportModel,
    210 => ListWitnesses,
    211 => AskRoom,
    221 => ListRefusals,
});

frame_numbers!(CoordinatorToOperator {
    301 => Invited,
    302 => Sites,
    303 => Revoked,
    304 => Submitted,
    305 => Jobs,
    306 => Progress,
    307 => Stopped,
    308 => Models,
    309 => Model,
    310 => Refused,
    311 => Witnesses,
    312 => Room,
    321 => Refusals,
});
