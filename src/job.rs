//! `weighhouse job …`: plan, submit, list, watch, stop.

use crate::error::JobDidNotFinish;
use crate::members;
use crate::operator::{HomeArgument, Operator, block_on};
use crate::output::{Format, FormatArgument, print_json, table};
use crate::plan::PlanArguments;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weighhouse_client::home::load_schema;
use weighhouse_coordinator::home::Home;
use weighhouse_shared::config;
use weighhouse_shared::identity::Purpose;
use weighhouse_shared::ids::{JobId, SiteId};
use weighhouse_shared::job::{JobContract, JobFile};
use weighhouse_shared::policy::PolicyRule;
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::schema::Schema;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, Decision, JobEvent, JobRefusals, JobStatus, JobSummary, OperatorToCoordinator,
    Outcome, SignedContract, StopJob,
};

#[derive(Debug, Subcommand)]
pub enum JobVerb {
    /// Check, sign and start a job; each site then decides for itself
    #[command(after_help = "Example:\n  weighhouse job submit configs/campaign-response.job.toml --watch")]
    Submit {
        /// Job file (TOML)
        file: PathBuf,
        /// Stay and show progress
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// What a job would cost each site and be worth, before any budget is spent
    #[command(
        after_help = "Example:\n  weighhouse job plan configs/campaign-response.job.toml\n\nNoise for the asked epsilon (or epsilon for the given noise), rounds left at each site, simulated quality."
    )]
    Plan {
        /// Job file (TOML)
        file: PathBuf,
        #[command(flatten)]
        plan: PlanArguments,
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show all jobs
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show a job's progress until it ends
    #[command(
        after_help = "Example:\n  weighhouse job watch 3f2a\n\nWithout a job: the newest. Exit code 3 if the job did not finish."
    )]
    Watch {
        /// The beginning of the job's identifier
        job: Option<String>,
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// End a job now; sites give back what it did not spend
    #[command(after_help = "Example:\n  weighhouse job stop 3f2a")]
    Stop {
        /// The beginning of the job's identifier
        job: String,
        #[command(flatten)]
        home: HomeArgument,
    },
}

pub fn run(verb: JobVerb) -> Result<()> {
    match verb {
        JobVerb::Submit { file, watch: stay, home, format } => {
            let (asked, schema) = read_job_file(&file)?;
            block_on(async {
                let operator = Operator::connect(&home.home).await?;
                let members = members::joined(&operator, &asked).await?;
                let contract = contract_of(&file, &asked, schema, &members)?;
                let job = submit(&operator, &home.home, &contract).await?;
                match format.format {
                    Format::Text => {
                        println!("submitted job {} ({})", job.short(), contract.name);
                        members::describe(&contract).inspect(|members| println!("{members}"));
                    }
                    Format::Json if stay => {}
                    Format::Json => print_json(&serde_json::json!({ "job": job, "name": contract.name }))?,
                }
                if stay { watch(&operator, job, format.format).await } else { Ok(()) }
            })
        }
        JobVerb::Plan { file, plan, home, format } => {
            crate::plan::run(&file, &home.home, &plan, format.format)
        }
        JobVerb::List { home, format } => {
            let jobs = block_on(async {
                let operator = Operator::connect(&home.home).await?;
                Ok(listed(operator.jobs().await?, &operator.refusals().await?))
            })?;
            match format.format {
                Format::Json => print_json(&jobs)?,
                Format::Text => println!("{}", job_table(&jobs)),
            }
            Ok(())
        }
        JobVerb::Watch { job, home, format } => block_on(async {
            let operator = Operator::connect(&home.home).await?;
            let job = operator.find_job(job.as_deref()).await?;
            watch(&operator, job, format.format).await
        }),
        JobVerb::Stop { job, home } => block_on(async {
            let operator = Operator::connect(&home.home).await?;
            let job = operator.find_job(Some(&job)).await?;
            match operator.request(&OperatorToCoordinator::StopJob(StopJob { job })).await? {
                CoordinatorToOperator::Stopped(summary) => {
                    println!("job {} is {}", job.short(), summary.status);
                    Ok(())
                }
                _ => bail!("the coordinator answered another question"),
            }
        }),
    }
}

/// Reads a job file and its schema.
pub fn read_job_file(path: &Path) -> Result<(JobFile, Schema)> {
    let file: JobFile = config::load(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let schema = load_schema(&folder.join(&file.schema))?;
    Ok((file, schema))
}

/// Fixes every number of the job file that was read from `path`.
fn contract_of(path: &Path, file: &JobFile, schema: Schema, members: &[SiteId]) -> Result<JobContract> {
    let mut nonce = [0; 16];
    Generator::from_system()?.fill(&mut nonce);
    file.contract_among(schema, nonce, members)
        .with_context(|| format!("{} is not a job that can run", path.display()))
}

/// Signs `contract` with the operator's key in `home` and hands it to the coordinator.
pub async fn submit(operator: &Operator, home: &Path, contract: &JobContract) -> Result<JobId> {
    let credentials = Home::at(home).credentials("operator")?;
    let bytes = codec::encode(contract);
    let signature = credentials.identity.sign(Purpose::JobContract, &bytes).to_vec();
    let certificate = credentials.chain[0].to_vec();
    let signed = SignedContract { contract: bytes, certificate, signature };
    match operator.request(&OperatorToCoordinator::SubmitJob(signed)).await? {
        CoordinatorToOperator::Submitted(job) => Ok(job),
        _ => bail!("the coordinator answered another question"),
    }
}

async fn watch(operator: &Operator, job: JobId, format: Format) -> Result<()> {
    let mut last = None;
    let outcome = operator.watch(job, |event| {
        match format {
            Format::Text => println!("{}", describe(event)),
            // One document a line, so that a program can follow.
            Format::Json => println!("{}", serde_json::to_string(event).unwrap_or_default()),
        }
        if let JobEvent::Status(status) = event {
            last = Some(status.clone());
        }
    });
    outcome.await?;
    match last {
        Some(JobStatus::Finished) => Ok(()),
        Some(status) => Err(JobDidNotFinish(format!("the job is {status}")).into()),
        None => bail!("the coordinator told nothing of the job"),
    }
}

/// One line for people.
pub fn describe(event: &JobEvent) -> String {
    match event {
        JobEvent::Status(status) => format!("job is {status}"),
        JobEvent::Answered { site, decision: Decision::Accepted } => format!("{site} takes part"),
        JobEvent::Answered { site, decision: Decision::Waiting } => {
            format!("{site} waits for approval by its own people")
        }
        JobEvent::Answered { site, decision } => {
            let why = match decision {
                Decision::RefusedSchema => "its columns differ".to_owned(),
                Decision::RefusedBudget => "its privacy budget does not allow it".to_owned(),
                Decision::RefusedPolicy(PolicyRule::Approval) => "someone there refused it".to_owned(),
                Decision::RefusedPolicy(rule) => format!("`{rule}` in its policy does not allow it"),
                _ => "it does not accept the contract".to_owned(),
            };
            format!("{site} refused: {why}")
        }
        JobEvent::Contributed { round, sites_in, sites } => {
            format!("round {round}: {sites_in} of {sites} sites in")
        }
        JobEvent::LedgerSetBack { site } => {
            format!(
                "{site} came back with an older or another ledger: nothing of it counts until the newest is back"
            )
        }
        JobEvent::Refused { site, round, outcome } => {
            format!("round {round}: a contribution of {site} was refused: {outcome}")
        }
        JobEvent::LeftOut { site, round } => {
            format!("round {round} closed without {site}, which is in the next")
        }
        JobEvent::Refusals(refused) => {
            format!("refused so far: {}", counts_text(refused.iter().map(|each| (each.outcome, each.count))))
        }
        JobEvent::Committed(summary) => {
            let headline = summary.quality.and_then(|quality| quality.headline());
            let quality = headline.map_or_else(String::new, |(figure, value)| {
                format!(", {} {value:.3} (noised, model before it)", figure.name())
            });
            format!(
                "round {} committed: {} sites, epsilon {:.3} spent{quality}",
                summary.round, summary.sites, summary.epsilon
            )
        }
    }
}

/// A job and what was refused in it.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    summary: JobSummary,
    /// Contributions refused, by reason.
    refused: BTreeMap<Outcome, u64>,
}

fn listed(jobs: Vec<JobSummary>, refusals: &[JobRefusals]) -> Vec<Listed> {
    let refused = |job: JobId| {
        let found = refusals.iter().filter(|refusals| refusals.job == job);
        found.flat_map(|found| &found.refused).map(|refused| (refused.outcome, refused.count)).collect()
    };
    jobs.into_iter().map(|summary| Listed { refused: refused(summary.job), summary }).collect()
}

fn counts_text(counts: impl IntoIterator<Item = (Outcome, u64)>) -> String {
    let texts: Vec<_> = counts.into_iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    texts.join(", ")
}

fn job_table(jobs: &[Listed]) -> String {
    if jobs.is_empty() {
        return "no job yet; submit one with `weighhouse job submit FILE`".to_owned();
    }
    let row = |listed: &Listed| {
        let job = &listed.summary;
        vec![
            job.job.short(),
            job.name.clone(),
            job.status.to_string(),
            format!("{} of {}", job.rounds_done, job.rounds),
            job.sites.to_string(),
            format!("{} at {:e}", job.epsilon, job.delta),
            match listed.refused.is_empty() {
                true => "-".to_owned(),
                false => counts_text(listed.refused.iter().map(|(outcome, count)| (*outcome, *count))),
            },
        ]
    };
    let header = ["job", "name", "status", "rounds", "sites", "epsilon at delta", "refused"];
    table(&header, &jobs.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::job::{EvaluationAsked, FederationAsked, TrainingAsked};
    use weighhouse_shared::model::ModelSpec;
    use weighhouse_shared::policy::Task;

    #[test]
    fn the_job_files_that_explain_every_key_say_the_defaults() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let jobs = ["branches.job.toml", "campaign-response.job.toml"].map(|name| folder.join(name));
        for path in jobs {
            let (written, schema) = read_job_file(&path).unwrap();
            let short = JobFile {
                model: ModelSpec::Logistic {},
                training: TrainingAsked::default(),
                evaluation: EvaluationAsked::default(),
                federation: FederationAsked::default(),
                ..written.clone()
            };
            let contract = |file: JobFile| file.contract(schema.clone(), [0; 16]).unwrap();
            assert_eq!(contract(written), contract(short), "{}", path.display());
        }
    }

    #[test]
    fn every_shipped_job_file_makes_a_contract() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let files = std::fs::read_dir(configs).unwrap().map(|file| file.unwrap().path());
        let (jobs, others): (Vec<_>, Vec<_>) =
            files.partition(|path| path.to_string_lossy().ends_with(".job.toml"));
        assert!(jobs.len() >= 3, "{jobs:?}");
        for job in jobs {
            let (file, schema) = read_job_file(&job).unwrap();
            contract_of(&job, &file, schema, &members::stand_ins(10))
                .unwrap_or_else(|error| panic!("{}: {error:#}", job.display()));
        }
        for schema in others {
            load_schema(&schema).unwrap_or_else(|error| panic!("{}: {error:#}", schema.display()));
        }
    }

    #[test]
    fn every_kind_of_label_that_the_schema_file_explains_is_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/labels.schema.toml");
        let text = std::fs::read_to_string(path).unwrap();
        // Sets each label in turn in place of the one that holds.
        let keys = ["[label]", "column =", "kind =", "categories =", "hash_buckets =", "min =", "max ="];
        let (before, rest) = text.split_once("\n[label]\n").unwrap();
        let (labels, features) = rest.split_once("[[features]]").unwrap();
        let plain: Vec<String> = format!("[label]\n{labels}")
            .lines()
            .map(|line| line.trim_start_matches("# "))
            .filter(|line| keys.iter().any(|key| line.starts_with(key)))
            .map(|line| format!("{line}\n"))
            .collect();
        let plain = plain.concat();
        let kinds: Vec<String> = plain
            .split("[label]\n")
            .skip(1)
            .map(|label| {
                let text = format!("{before}\n[label]\n{label}[[features]]{features}");
                let schema: Schema = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                schema.validate().unwrap();
                Task::from(&schema.label.kind).to_string()
            })
            .collect();
        assert_eq!(kinds, ["binary", "classes", "count", "number", "item"]);
    }
}
