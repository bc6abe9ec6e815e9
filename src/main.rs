//! The one binary: parses, calls a library, prints.

mod audit;
mod client;
mod coordinator;
mod demo;
mod doctor;
mod error;
mod job;
mod members;
mod metrics;
mod model;
mod operator;
mod output;
mod page;
mod plan;
mod policy;
mod privacy;
mod simulate;
mod simulation;
mod site;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Federated, privacy-preserving learning for retail.
///
/// Shops and branches train one model together; records never leave, and each site's privacy budget is a
/// lock that the site itself holds. Begin with `weighhouse demo`.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the whole of it: a coordinator and a dozen branches learn together on this machine
    Demo(demo::DemoArguments),
    /// The coordinator's daemon
    #[command(subcommand)]
    Coordinator(coordinator::CoordinatorVerb),
    /// Who may take part (operator)
    #[command(subcommand)]
    Site(site::SiteVerb),
    /// A site's daemon (branch IT)
    #[command(subcommand)]
    Client(client::ClientVerb),
    /// What a site allows (data-protection officer)
    #[command(subcommand)]
    Policy(policy::PolicyVerb),
    /// Training jobs (operator)
    #[command(subcommand)]
    Job(job::JobVerb),
    /// A job at thousands of made-up sites on this machine, without a network (operator)
    Simulate(simulate::SimulateArguments),
    /// What left a site, what it cost, and whether its ledger holds (data-protection officer, auditor)
    #[command(subcommand)]
    Audit(audit::AuditVerb),
    /// Trained models (operator)
    #[command(subcommand)]
    Model(model::ModelVerb),
    /// Check a home, of a site or a coordinator, and what is around it; say what is wrong and how to cure it
    #[command(
        after_help = "Examples:\n  weighhouse doctor --home berlin\n  weighhouse doctor --home hq --format json\n\nLooks at settings, clock, port, keys, certificates, disk, policy, ledger, schema, data and state. Ends with 1 if there is a problem. A daemon may be running."
    )]
    Doctor(doctor::DoctorArguments),
    /// What a plan costs in privacy: epsilon, noise, steps (operator, data-protection officer)
    #[command(subcommand)]
    Privacy(privacy::PrivacyVerb),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    output::init_log();
    #[cfg(feature = "constant-update")]
    eprintln!(
        "warning: built with the bench feature constant-update: sites add a constant and learn nothing"
    );
    let outcome = match arguments.verb {
        Verb::Demo(arguments) => demo::run(arguments),
        Verb::Coordinator(verb) => coordinator::run(verb),
        Verb::Site(verb) => site::run(verb),
        Verb::Client(verb) => client::run(verb),
        Verb::Policy(verb) => policy::run(verb),
        Verb::Job(verb) => job::run(verb),
        Verb::Simulate(arguments) => simulate::run(arguments),
        Verb::Audit(verb) => audit::run(verb),
        Verb::Model(verb) => model::run(verb),
        Verb::Doctor(arguments) => doctor::run(arguments),
        Verb::Privacy(verb) => privacy::run(verb),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error),
    }
}
