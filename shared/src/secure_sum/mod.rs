//! Secure sum: the coordinator learns the sum of the sites' integers modulo 2^32 and nothing else of them.
//!
//! The protocol, its threat model and the proofs stand in the [manual](crate::manual::secure_sum). All here is pure: no
//! network, no disk, no clock, no randomness but the one job secret a site.
//!
//! - [`keys`]: a site's job secret and all that derives from it.
//! - [`graph`]: who shares masks with whom.
//! - [`roster`]: the sites of one job's sums, with keys that their identities signed.
//! - [`shamir`]: a secret in shares.
//! - [`masks`]: seeds expanded and added.
//! - [`batch`]: what is shared out ahead, for [`BATCH_ROUNDS`] rounds at a time.
//! - [`agreement`]: one list of survivors a round, and answers that open only if all who were asked agree on it.
//! - [`site`]: the site's side; it never makes a second answer for other survivors.
//! - [`coordinator`]: the coordinator's side; it opens the answers and takes the masks off the sum.

pub mod agreement;
pub mod batch;
pub mod coordinator;
pub mod graph;
pub mod keys;
pub mod masks;
pub mod roster;
pub mod shamir;
pub mod site;

#[cfg(test)]
mod tests;

use crate::ids::RoundId;

/// Rounds whose secrets are shared out in one message.
pub const BATCH_ROUNDS: u32 = 8;

/// The batch that `round` is in.
pub fn batch_of(round: RoundId) -> u32 {
    round.0 / BATCH_ROUNDS
}

/// The place of `round` in its batch.
pub fn place_of(round: RoundId) -> usize {
    (round.0 % BATCH_ROUNDS) as usize
}
