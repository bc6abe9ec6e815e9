//! What sites, the coordinator and an auditor's laptop have in common: pure types and functions.
//!
//! Modules stand in the order in which data flows; each uses only those above it.

pub mod clock;
pub mod config;
pub mod ids;
pub mod identity;
pub mod schema;
pub mod model;
pub mod privacy;
pub mod compression;
pub mod evaluation;
pub mod job;
pub mod secure_sum;
pub mod policy;
pub mod ledger;
pub mod wire;
pub mod tls;
pub mod invite;
pub mod telemetry;
pub mod fuzzing;
pub mod manual;
