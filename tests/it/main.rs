//! The real binary and real sockets: what a user sees, what an intruder gets.

mod bad_input;
mod demo;
mod federation;
mod intruders;
mod policy;
mod restart;
mod walkthrough;
