//! What travels between a site or an operator and the coordinator, and how.
//!
//! - [`messages`]: what is said, by direction.
//! - [`codec`]: values to bytes; the only place that names the encoder.
//! - [`frame`]: the table of frame numbers, and a message as a frame.
//! - [`stream`]: frames and contents on QUIC streams.
//!
//! A connection carries one bidirectional control stream opened by the peer, on which frames go both
//! ways, and unidirectional streams that each carry one piece of a content: a model on its way to a
//! site, or an update on its way from one.

pub mod codec;
pub mod frame;
pub mod messages;
pub mod stream;
pub mod transport;

#[cfg(test)]
mod golden;

/// The application protocol of the TLS handshake. A peer that offers another is refused there.
pub const ALPN: &[u8] = b"weighhouse/1";

/// Version of the protocol inside the connection: raised when messages are added.
///
/// 1: the first. 2: sites' certificates are renewed ([`messages::Renew`]), sites tell what they debited
/// ([`messages::Debited`]), and what was cut off goes on ([`messages::Holding`]).
/// 3: secure sums ([`messages::SumKey`]).
pub const PROTOCOL_VERSION: u16 = 3;

/// The oldest version that is still spoken.
pub const OLDEST_PROTOCOL_VERSION: u16 = 1;

/// What this release speaks with a peer of version `theirs`: the older of both. None if that is no longer spoken here.
pub fn common_version(theirs: u16) -> Option<u16> {
    let common = theirs.min(PROTOCOL_VERSION);
    (common >= OLDEST_PROTOCOL_VERSION).then_some(common)
}
