//! The real binary and real sockets: what a user sees, what an intruder gets.

mod audit;
mod bad_input;
mod categories;
mod cluster;
mod demo;
mod durability;
mod federation;
mod flood;
mod go_between;
mod hostile;
mod intruders;
mod kill_loop;
mod kills;
mod known_faults;
mod link;
mod ledger_file;
mod malformed;
mod outages;
mod plan;
mod policy;
mod privacy;
mod restart;
mod strace;
mod walkthrough;
mod watch;
mod witness;
