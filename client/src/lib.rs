//! One site: its records, its privacy budget, its side of the rounds.
//!
//! Modules stand in the order in which data flows; each uses only those above it.

pub mod home;
pub mod records;
pub mod features;
pub mod sampling;
mod threads;
pub mod clip;
pub mod witnesses;
pub mod budget;
pub mod payer;
pub mod noise;
pub mod feedback;
pub mod update;
pub mod outbox;
pub mod payment;
pub mod train;
pub mod quality;
pub mod policy;
pub mod approvals;
pub mod offer;
pub mod predict;
pub mod global_model;
pub mod round;
pub mod secure_sum;
pub mod contribute;
pub mod membership;
pub mod enrol;
pub mod session;
