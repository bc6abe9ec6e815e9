//! The real binary and real sockets: what a user sees, what an intruder gets.

mod audit;
mod bad_input;
mod demo;
mod federation;
mod intruders;
mod plan;
mod privacy;
mod restart;
mod walkthrough;
mod witness;
