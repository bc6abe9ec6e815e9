//! The privacy ledger of one site: what left, when, why, what it cost.
//!
//! A ledger is a text file with one entry a line, so that anyone can read it with any tool. Each entry
//! names the hash of the line before and carries the site's signature, so nothing in it can be changed,
//! dropped, repeated or moved unseen. Everything here is pure: what an auditor's laptop needs. The file
//! itself is kept by the site's budget.

mod entry;
mod witness;
mod balance;
mod chain;
mod report;
mod standing;

pub use balance::{Balance, LedgerRule, Spent};
pub use chain::{Chain, LedgerFault, Line, Torn, read};
pub use entry::{Body, Charge, Entry, Population, ReleaseKind};
pub use report::{Audited, Figures, JobTotal, PolicyVersion, Release, Report, short};
pub use standing::{Charged, MAX_STANDING_CHARGES, Standing};
pub use witness::{
    Head, MAX_WITNESS_LEN, Received, SignedWitness, Trail, Witness, WitnessFault, check_witnesses,
    read_witnesses,
};
