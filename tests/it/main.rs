//! The real binary and real sockets: what a user sees, what an intruder gets.

mod audit;
mod bad_input;
mod categories;
mod demo;
mod doctor;
mod durability;
mod federation;
mod go_between;
mod intruders;
mod kill_loop;
mod known_faults;
mod ledger_file;
mod membership;
mod models;
mod plan;
mod policy;
mod predict;
mod privacy;
mod restart;
mod strace;
mod targets;
mod telemetry;
mod torch;
mod walkthrough;
mod watch;
mod witness;
