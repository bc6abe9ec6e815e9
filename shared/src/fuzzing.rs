//! Every way by which strangers' bytes come in, one function each: whatever they are, it must return, and soon. What
//! is taken must be what was meant: it is written again as the same bytes. The fuzzers under `fuzz/` call these, and
//! so does the test that feeds them mutated good ones.

use crate::compression::{Compression, Decoder, Malformed};
use crate::invite::Invite;
use crate::job::{JobContract, JobFile};
use crate::ledger;
use crate::policy::Policy;
use crate::schema::Schema;
use crate::wire::codec;
use crate::wire::frame::{self, Message};
use crate::wire::messages::{
    CoordinatorToOperator, CoordinatorToSite, OperatorToCoordinator, SiteToCoordinator,
};
use crate::wire::stream::Piece;
use rustls::pki_types::CertificateDer;

/// A frame of any direction, and all that has an encoding of its own. Whether it is anything.
///
/// # Panics
/// If what was read is written as other bytes.
pub fn decode(bytes: &[u8]) -> bool {
    let frames = [
        framed::<SiteToCoordinator>(bytes),
        framed::<CoordinatorToSite>(bytes),
        framed::<OperatorToCoordinator>(bytes),
        framed::<CoordinatorToOperator>(bytes),
    ];
    let contract = encoded(bytes, |contract: &JobContract| contract.validate().is_ok());
    let piece = encoded(bytes, |_: &Piece| true);
    let certificate = crate::tls::peer_of(&CertificateDer::from(bytes)).is_ok();
    contract || piece || certificate || frames.into_iter().any(|frame| frame)
}

fn framed<M: Message>(bytes: &[u8]) -> bool {
    let Ok(message) = frame::decode::<M>(bytes) else { return false };
    assert_eq!(&frame::encode(&message)[4..], bytes, "a frame has one form");
    true
}

fn encoded<T: serde::Serialize + serde::de::DeserializeOwned>(
    bytes: &[u8],
    good: impl Fn(&T) -> bool,
) -> bool {
    let Ok(value) = codec::decode::<T>(bytes) else { return false };
    assert_eq!(codec::encode(&value), bytes, "a value has one form");
    good(&value)
}

/// A compressed update: its first byte chooses how it is compressed, the next two how many parameters it is of, the
/// fourth where its bytes are cut. Whether it is one.
///
/// # Panics
/// If there are more values in it than parameters, or if it matters where it is cut.
pub fn update(bytes: &[u8]) -> bool {
    let Some(([kind, low, high, cut], update)) = bytes.split_first_chunk() else { return false };
    let kinds = [Compression::None, Compression::Int8, Compression::Int4, Compression::TopK { share: 0.1 }];
    let (compression, parameters) = (kinds[usize::from(kind % 4)], u16::from_le_bytes([*low, *high]));
    let decoded = |at: usize| {
        let (mut decoder, mut values) = (Decoder::new(compression, parameters.into()), Vec::new());
        let mut keep = |part: &[u8]| {
            values.extend_from_slice(part);
            assert!(values.len() <= 4 * usize::from(parameters), "more values than parameters");
            Ok::<(), Malformed>(())
        };
        let (first, rest) = update.split_at(at.min(update.len()));
        decoder.push(first, &mut keep).ok()?;
        decoder.push(rest, &mut keep).ok()?;
        decoder.finish(&mut keep).ok()?;
        Some(values)
    };
    let whole = decoded(0);
    assert_eq!(whole, decoded((*cut).into()), "a cut matters");
    whole.is_some()
}

/// A ledger, and witnesses. Whether any line of it is good.
pub fn ledger(bytes: &[u8]) -> bool {
    let mut entries = 0;
    let read = ledger::read(bytes, |_| entries += 1);
    let witnesses = ledger::read_witnesses(bytes, &[7; 32]).filter(Result::is_ok).count();
    entries > 0 || witnesses > 0 || read.is_ok_and(|(chain, _)| !chain.is_empty())
}

/// A job file, a schema or a policy. Whether it is one that holds.
pub fn job_file(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let job = toml::from_str::<JobFile>(text).is_ok();
    let schema = toml::from_str::<Schema>(text).is_ok_and(|schema| schema.validate().is_ok());
    job || schema || Policy::parse(text).is_ok()
}

/// An invite. Whether it is whole.
///
/// # Panics
/// If what was read is written as another text.
pub fn invite(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(invite) = text.parse::<Invite>() else { return false };
    assert_eq!(invite.to_string(), text.trim().to_lowercase(), "an invite has one form");
    true
}
