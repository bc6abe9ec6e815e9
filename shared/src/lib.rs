//! What sites, the coordinator and an auditor's laptop have in common: pure types and functions.
//!
//! Modules stand in the order in which data flows; each uses only those above it.

pub mod model;
pub mod privacy;

pub mod evaluation;
