//! The coordinator: who may join, what is trained, and the averaging. It never sees an un-noised value.
//!
//! Modules stand in the order in which data flows; each uses only those above it.

pub mod home;
pub mod authority;
pub mod roster;
pub mod store;
pub mod spool;
pub mod admission;
pub mod aggregate;
pub mod global_model;
pub mod opened_sum;
pub mod job;
pub mod secure_sum;
pub mod witness;
pub mod driver;
pub mod session;
pub mod operator;
pub mod listener;
