//! The real binary and real sockets: what a user sees, what an intruder gets.

mod audit;
mod bad_input;
mod demo;
mod federation;
mod intruders;
mod plan;
mod policy;
mod privacy;
mod restart;
mod walkthrough;
mod witness;
