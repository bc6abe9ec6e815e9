//! `weighhouse demo`: one coordinator and a dozen branch daemons, each a process of its own with its own
//! home, data and keys, learn together on this machine.
//!
//! The demo plays all three people at once, and one more: the judge, who holds every branch's test rows
//! and compares. No one has the judge's view in real life.

pub mod branches;
pub mod datasets;
mod job;
mod processes;
mod report;
pub mod yardstick;

use crate::error::{Interrupted, JobDidNotFinish};
use crate::job::{describe, submit};
use crate::operator::Operator;
use crate::output::{Format, print_json, table};
use crate::{client, members, model, site};
use anyhow::{Context, Result, bail};
use datasets::{Dataset, Partition};
use indicatif::{ProgressBar, ProgressStyle};
use processes::Processes;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weighhouse_coordinator::home::{Authority, Home};
use weighhouse_shared::config::write_whole;
use weighhouse_shared::evaluation::Figure;
use weighhouse_shared::job::{MIN_MEMBERS, ModeName};
use weighhouse_shared::model::{DEFAULT_EMBEDDING_DIM, DEFAULT_NEGATIVES, ModelSpec};
use weighhouse_shared::privacy::{Delta, Epsilon};
use weighhouse_shared::wire::messages::{JobEvent, JobStatus, RoundSummary};
use yardstick::Yardsticks;

/// Entries of the vectors by which two towers rank.
const RANKING_DIM: u32 = 32;

/// Arguments of `weighhouse demo`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  weighhouse demo\n  weighhouse demo --epsilon 1 --keep demo-run\n  weighhouse demo --epsilon 1 --mode site\n  weighhouse demo --data campaign-response --schema configs/campaign-response.schema.toml"
)]
pub struct DemoArguments {
    /// Branches to make; with --data, how many of its sites take part (default: all)
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=200), value_name = "N")]
    sites: Option<u32>,
    /// Most epsilon any customer may be charged
    #[arg(long, default_value = "8", value_name = "EPSILON")]
    epsilon: Epsilon,
    /// Probability with which that may fail
    #[arg(long, default_value = "1e-4", value_name = "DELTA")]
    delta: Delta,
    /// Rounds of training [default: 50, with --mode site 30]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    rounds: Option<u32>,
    /// Who makes the noise: each site all that its update needs, or all sites together that of their sum, which alone the
    /// coordinator sees
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    mode: Mode,
    /// Model to train: logistic; a multi-layer perceptron's hidden layers, as in 64,32; wide_and_deep:64,32; two_tower:32
    /// to rank items
    #[arg(long, default_value = "logistic", value_name = "MODEL")]
    model: String,
    /// Folder with one folder a site, each with train.csv, perhaps valid.csv, and test.csv
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What the columns of --data mean; by default the file in configs/ named as the folder
    #[arg(long, requires = "data", value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Make sites by the values of this column instead of by folder
    #[arg(long, requires = "data", value_name = "COLUMN")]
    partition: Option<String>,
    /// With --partition, leave out sites with fewer customers
    #[arg(long, default_value_t = 15, requires = "partition", value_name = "N")]
    min_customers: usize,
    /// Makes other branches; the noise is never repeatable
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    seed: u64,
    /// Keep everything in this folder: homes, ledgers, model, report
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Only write the made-up branches' records into this folder, to try the daemons by hand with
    #[arg(long, conflicts_with_all = ["data", "keep"], value_name = "DIR")]
    only_data: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// Where the noise is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Mode {
    /// In each site's update
    #[value(name = "site")]
    Site,
    /// In the sum over all sites
    #[default]
    #[value(name = "secure_sum", alias = "secure-sum")]
    SecureSum,
}

impl From<Mode> for ModeName {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Site => Self::Site,
            Mode::SecureSum => Self::SecureSum,
        }
    }
}

/// One branch in the result.
#[derive(Debug, Clone, Serialize)]
pub struct BranchResult {
    /// Its name.
    pub site: String,
    /// Its customers with training rows (the judge's view).
    pub customers: usize,
    /// Its ledger's epsilon.
    pub epsilon_spent: f64,
    /// Its cap.
    pub epsilon_cap: f64,
    /// Entries in its ledger.
    pub ledger_entries: u64,
    /// [`DemoResult::figure`] of a model it trained alone, without privacy, on its own test rows.
    pub alone_own_rows: Option<f64>,
    /// The same of that model on all branches' test rows.
    pub alone_all_rows: Option<f64>,
    /// The same of the shared model on its own test rows.
    pub shared_own_rows: Option<f64>,
}

/// What a demo came to.
#[derive(Debug, Clone, Serialize)]
pub struct DemoResult {
    /// The data's name.
    pub data: String,
    /// Sites that took part.
    pub sites: usize,
    /// The job's epsilon.
    pub epsilon: f64,
    /// The job's delta.
    pub delta: f64,
    /// How a branch's contribution was protected.
    pub mode: ModeName,
    /// Noise of each step, in clip norms.
    pub noise_multiplier: f64,
    /// Committed rounds with the noised quality that the coordinator saw.
    pub rounds: Vec<RoundSummary>,
    /// What the quality below is: `AUC`, `accuracy`, `hit rate@10` or `MAE`, as the label is.
    pub figure: Figure,
    /// Quality of the shared model after each round on all branches' test rows, as the judge sees it.
    pub judged_rounds: Vec<Option<f64>>,
    /// The same job in the other mode, simulated; None if that takes long or cannot be.
    pub other_mode: Option<job::OtherMode>,
    /// Quality of the shared model on all branches' test rows.
    pub shared: Option<f64>,
    /// Its log loss there, in nats, of a binary label.
    pub shared_log_loss: Option<f64>,
    /// Mean over branches of a branch alone, on its own test rows.
    pub alone_own_rows: Option<f64>,
    /// Mean over branches of a branch alone, on all branches' test rows.
    pub alone_all_rows: Option<f64>,
    /// Mean over branches of the shared model on the branch's own test rows.
    pub shared_own_rows: Option<f64>,
    /// Quality of a model trained on everyone's rows in one place without privacy.
    pub pooled: Option<f64>,
    /// Each branch.
    pub branches: Vec<BranchResult>,
    /// Seconds from the first process to the stored model.
    pub federation_s: f64,
    /// Seconds in all.
    pub total_s: f64,
    /// Where everything is, if it was kept.
    pub kept: Option<PathBuf>,
}

/// Says what is going on: a moving line on a terminal, plain lines elsewhere, on standard error.
struct Progress {
    bar: ProgressBar,
    plain: bool,
}

impl Progress {
    fn new(rounds: u32) -> Self {
        let plain = !console_is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(u64::from(rounds)) };
        let style = ProgressStyle::with_template("{bar:24} {pos:>3}/{len} rounds  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Self { bar, plain }
    }

    fn say(&self, text: &str) {
        if self.plain { eprintln!("{text}") } else { self.bar.println(text) }
    }

    fn round(&self, done: u64, text: String) {
        if self.plain {
            eprintln!("round {done}: {text}");
        } else {
            self.bar.set_position(done);
            self.bar.set_message(text);
        }
    }

    fn moving(&self, text: String) {
        if !self.plain {
            self.bar.set_message(text);
        }
    }
}

fn console_is_terminal() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal()
}

/// Runs the demo.
pub fn run(arguments: DemoArguments) -> Result<()> {
    let began = Instant::now();
    let spec = parse_model(&arguments.model)?;
    let kept = arguments.keep.clone();
    if let Some(folder) = &kept
        && folder.exists()
        && folder.read_dir().map_or(true, |mut items| items.next().is_some())
    {
        bail!("{} is not an empty folder; choose another with --keep", folder.display());
    }
    let dataset = match &arguments.data {
        Some(folder) => {
            let partition = arguments
                .partition
                .as_ref()
                .map(|column| Partition { column: column.clone(), min_customers: arguments.min_customers });
            Dataset::read(folder, arguments.schema.as_deref(), partition, arguments.sites)?
        }
        None => Dataset::generate(arguments.sites.unwrap_or(12), arguments.seed)?,
    };
    if let Some(folder) = &arguments.only_data {
        return only_data(&dataset, folder);
    }
    let temporary = tempfile::tempdir().context("cannot make a folder for the demo; is the disk full?")?;
    let folder = kept.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = std::path::absolute(&folder)?;

    let rounds = arguments.rounds.unwrap_or(match arguments.mode {
        Mode::Site => 30,
        Mode::SecureSum => 50,
    });
    if arguments.mode == Mode::SecureSum && dataset.sites.len() < MIN_MEMBERS {
        bail!("--mode secure_sum needs at least {MIN_MEMBERS} sites; use --mode site");
    }
    let progress = Progress::new(rounds);
    progress.say(&format!(
        "{} sites of {}; epsilon {} at delta {:e} for each customer, over the whole job",
        dataset.sites.len(),
        dataset.name,
        arguments.epsilon,
        arguments.delta.value()
    ));
    let outcome =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
            tokio::select! {
                outcome = federate(&arguments, &spec, &dataset, &folder, &progress) => outcome,
                () = client::asked_to_end(false) => Err(Interrupted.into()),
            }
        });
    progress.bar.finish_and_clear();
    let federation = outcome?;

    let mut result = judge(&arguments, &dataset, &folder, federation)?;
    result.total_s = began.elapsed().as_secs_f64();
    result.kept = kept.as_ref().map(|_| folder.clone());
    let page = report::page(&result);
    let report_path = match &kept {
        Some(_) => folder.join("report.html"),
        None => PathBuf::from("weighhouse-demo.html"),
    };
    write_whole(&report_path, page.as_bytes())
        .with_context(|| format!("cannot write {}", report_path.display()))?;
    let model_path = match &kept {
        Some(_) => folder.join("model.safetensors"),
        None => {
            let path = PathBuf::from("weighhouse-demo.safetensors");
            std::fs::copy(folder.join("model.safetensors"), &path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            path
        }
    };
    match arguments.format {
        Format::Json => print_json(&result),
        Format::Text => {
            println!("{}", summary(&result, &report_path, &model_path));
            Ok(())
        }
    }
}

fn only_data(dataset: &Dataset, folder: &Path) -> Result<()> {
    for site in &dataset.sites {
        let path = folder.join(&site.name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        site.write(&dataset.header, &path)?;
    }
    write_whole(&folder.join("schema.toml"), dataset.schema_toml.as_bytes())?;
    println!("wrote the records of {} branches to {}", dataset.sites.len(), folder.display());
    Ok(())
}

fn parse_model(text: &str) -> Result<ModelSpec> {
    if text == "logistic" {
        return Ok(ModelSpec::Logistic {});
    }
    let (name, widths) = text.split_once(':').unwrap_or(("mlp", text));
    let hidden = widths.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>().ok();
    match (name, hidden) {
        ("mlp", Some(hidden)) => Ok(ModelSpec::Mlp { hidden, dropout: 0.0, activation: Default::default() }),
        ("wide_and_deep", Some(hidden)) => {
            Ok(ModelSpec::WideAndDeep { hidden, embedding_dim: DEFAULT_EMBEDDING_DIM })
        }
        ("two_tower", Some(hidden)) => {
            Ok(ModelSpec::TwoTower { hidden, dim: RANKING_DIM, negatives: DEFAULT_NEGATIVES })
        }
        _ => bail!(
            "`{text}` is not a model; write logistic, the widths of hidden layers, as in --model 64,32, or \
             --model wide_and_deep:64,32, or to rank items --model two_tower:32"
        ),
    }
}

/// What the federation left behind.
struct Federated {
    contract: weighhouse_shared::job::JobContract,
    rounds: Vec<RoundSummary>,
    parameters: Vec<f32>,
    after_rounds: Vec<Vec<f32>>,
    seconds: f64,
}

/// The part that real people would do: init, invite, join, serve, submit, watch, export.
async fn federate(
    arguments: &DemoArguments,
    spec: &ModelSpec,
    dataset: &Dataset,
    folder: &Path,
    progress: &Progress,
) -> Result<Federated> {
    let began = Instant::now();
    let home = folder.join("coordinator");
    Home::init(&home, ([127, 0, 0, 1], 0).into(), "127.0.0.1:0", Authority::Own)?;
    let mut processes = Processes::new()?;
    processes.start(&["coordinator", "serve"], &home, "listening").await?;
    let operator = Operator::connect(&home).await?;

    let schema_path = folder.join("schema.toml");
    write_whole(&schema_path, dataset.schema_toml.as_bytes())?;
    let mut homes = Vec::new();
    for (index, site) in dataset.sites.iter().enumerate() {
        progress.moving(format!("{} joins", site.name));
        let data = folder.join("data").join(&site.name);
        std::fs::create_dir_all(&data)?;
        site.write(&dataset.header, &data)?;
        let invite = site::invite(&operator, &site.name, 1).await?;
        let home = folder.join(&site.name);
        processes.join(&invite, &home, &data.join("train.csv"), &schema_path, arguments).await?;
        homes.push(home);
        if index % 4 == 3 {
            tokio::task::yield_now().await;
        }
    }
    processes.start_all(&["client", "serve"], &homes, "is connected").await?;
    progress.say(&format!(
        "{} daemons joined by invite and connected in {:.1} s",
        homes.len(),
        began.elapsed().as_secs_f64()
    ));

    let file = job::file(arguments, spec, dataset, arguments.mode.into())?;
    let members = members::joined(&operator, &file).await?;
    let mut nonce = [0; 16];
    weighhouse_shared::privacy::Generator::from_system()?.fill(&mut nonce);
    let contract = file.contract_among(dataset.schema.clone(), nonce, &members)?;
    let id = submit(&operator, &home, &contract).await?;

    let (events, mut changed) = tokio::sync::mpsc::unbounded_channel();
    let watcher = Operator::connect(&home).await?;
    let watching = watcher.watch(id, move |event| {
        // The receiver lives until the watch ends.
        let _ = events.send(event.clone());
    });
    let following = async {
        let (mut rounds, mut models, mut last) = (Vec::new(), Vec::new(), None);
        while let Some(event) = changed.recv().await {
            match event {
                JobEvent::Committed(round) => {
                    let headline = round.quality.and_then(|quality| quality.headline());
                    let quality = headline.map_or_else(String::new, |(figure, value)| {
                        format!(", quality (noised {}) {value:.3}", figure.name())
                    });
                    let done = u64::from(round.round.0) + 1;
                    if done <= u64::from(contract.training.rounds) {
                        progress.round(
                            done,
                            format!(
                                "{} sites in, epsilon {:.2} of {}{quality}",
                                round.sites, round.epsilon, arguments.epsilon
                            ),
                        );
                        if let Ok((_, header, parameters)) = operator.model(id).await {
                            // A fast federation may be further on: the judge then sees that model.
                            models.push((header.rounds, parameters));
                        }
                    }
                    rounds.push(round);
                }
                JobEvent::Contributed { round, sites_in, sites } => {
                    progress.moving(format!("round {}: {sites_in} of {sites} sites in", round.0 + 1));
                }
                JobEvent::Answered { .. } => progress.moving(describe(&event)),
                JobEvent::Status(status) => last = Some(status),
                JobEvent::LedgerSetBack { .. }
                | JobEvent::Refused { .. }
                | JobEvent::Refusals(_)
                | JobEvent::LeftOut { .. } => {}
            }
        }
        (rounds, models, last)
    };
    let (watched, (rounds, models, last)) = tokio::join!(watching, following);
    watched?;
    if last != Some(JobStatus::Finished) {
        let status = last.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
        return Err(JobDidNotFinish(format!("the job is {status}")).into());
    }
    let (contract, _, parameters) = operator.model(id).await?;
    model::save(&folder.join("model.safetensors"), &contract, parameters.clone())?;
    // Every site gives back what it did not spend before it is asked to end.
    processes.end(Duration::from_secs(5)).await?;
    let after_rounds = (1..=contract.training.rounds)
        .filter_map(|round| models.iter().rev().find(|(rounds, _)| *rounds == round))
        .map(|(_, parameters)| parameters.clone())
        .collect();
    Ok(Federated { contract, rounds, parameters, after_rounds, seconds: began.elapsed().as_secs_f64() })
}

/// The part that nobody can do in real life: compare on everyone's test rows.
fn judge(
    arguments: &DemoArguments,
    dataset: &Dataset,
    folder: &Path,
    federation: Federated,
) -> Result<DemoResult> {
    let Federated { contract, rounds, parameters, after_rounds, seconds } = federation;
    let network = contract.network()?;
    let label = &dataset.schema.label.kind;
    let figure_of = |parameters: &[f32], tests: &[&datasets::Rows]| {
        yardstick::figure_of(&network, label, parameters, tests)
    };
    let yardsticks = Yardsticks::measure(dataset, &contract, &network)?;
    let mut branches = Vec::new();
    for (site, alone) in dataset.sites.iter().zip(&yardsticks.alone) {
        let state = client::SiteState::read(&folder.join(&site.name))?;
        branches.push(BranchResult {
            site: site.name.clone(),
            customers: site.train_customers(),
            epsilon_spent: state.epsilon_spent,
            epsilon_cap: state.epsilon_cap,
            ledger_entries: state.ledger_entries,
            alone_own_rows: alone.own_rows,
            alone_all_rows: alone.all_rows,
            shared_own_rows: figure_of(&parameters, &[&site.test])?,
        });
    }
    let tests: Vec<_> = dataset.sites.iter().map(|site| &site.test).collect();
    let judged_rounds =
        after_rounds.iter().map(|parameters| figure_of(parameters, &tests)).collect::<Result<Vec<_>>>()?;
    let mean = |value: fn(&BranchResult) -> Option<f64>| {
        let values: Vec<f64> = branches.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Ok(DemoResult {
        data: dataset.name.clone(),
        sites: dataset.sites.len(),
        epsilon: arguments.epsilon.value(),
        delta: arguments.delta.value(),
        mode: arguments.mode.into(),
        noise_multiplier: contract.privacy.noise_multiplier.value(),
        rounds,
        figure: Figure::of(label.target()),
        judged_rounds,
        other_mode: job::other_mode(arguments, dataset, &contract)?,
        shared: figure_of(&parameters, &tests)?,
        shared_log_loss: yardstick::quality_of(&network, label, &parameters, &tests)?.log_loss,
        alone_own_rows: mean(|branch| branch.alone_own_rows),
        alone_all_rows: mean(|branch| branch.alone_all_rows),
        shared_own_rows: mean(|branch| branch.shared_own_rows),
        pooled: yardsticks.pooled,
        branches,
        federation_s: seconds,
        total_s: 0.0,
        kept: None,
    })
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn summary(result: &DemoResult, report: &Path, model: &Path) -> String {
    let row = |branch: &BranchResult| {
        vec![
            branch.site.clone(),
            branch.customers.to_string(),
            format!("{:.2} of {}", branch.epsilon_spent, branch.epsilon_cap),
            branch.ledger_entries.to_string(),
            figure(branch.alone_own_rows),
            figure(branch.shared_own_rows),
        ]
    };
    let [alone, shared] = ["alone", "shared"].map(|whose| format!("{} {whose}", result.figure.name()));
    let header = ["branch", "customers", "epsilon spent", "ledger entries", &alone, &shared];
    let branches = table(&header, &result.branches.iter().map(row).collect::<Vec<_>>());
    let other = result.other_mode.as_ref().map(|other| {
        let name = format!("shared model, {}", job::name(other.mode));
        vec![name, String::new(), figure(other.shared), "simulated, the same epsilon".into()]
    });
    let rows: Vec<Vec<String>> = [
        vec![
            "a branch alone (mean)".into(),
            figure(result.alone_own_rows),
            figure(result.alone_all_rows),
            "not private, never leaves".into(),
        ],
        vec![
            format!("shared model, {}", job::name(result.mode)),
            figure(result.shared_own_rows),
            figure(result.shared),
            format!("epsilon {} at delta {:e}", result.epsilon, result.delta),
        ],
    ]
    .into_iter()
    .chain(other)
    .chain([vec![
        "pooled model".into(),
        String::new(),
        figure(result.pooled),
        "not private: what privacy forbids in real life".into(),
    ]])
    .collect();
    let held_out = format!("held-out quality ({})", result.figure.name());
    let quality = table(&[&held_out, "own rows", "all rows", ""], &rows);
    let next = match &result.kept {
        Some(folder) => {
            let home = folder.join(&result.branches[0].site);
            let home = home.display();
            format!(
                "weighhouse audit verify {home}/ledger.jsonl\n  weighhouse audit report --html privacy.html --home {home}"
            )
        }
        None => "weighhouse demo --keep demo-run   (keeps homes and ledgers to look into)".to_owned(),
    };
    format!(
        "{branches}\n\n{quality}\n\n{rounds} rounds over {sites} sites in {seconds:.1} s ({total:.1} s in all)\n\
         report  {report}\nmodel   {model}\n\nwhat to try next\n  weighhouse demo --epsilon 1       (stricter: more noise)\n  {next}",
        rounds = result.judged_rounds.len().max(result.rounds.len().saturating_sub(1)),
        sites = result.sites,
        seconds = result.federation_s,
        total = result.total_s,
        report = report.display(),
        model = model.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_or_given_by_its_widths() {
        assert_eq!(parse_model("logistic").unwrap(), ModelSpec::Logistic {});
        assert_eq!(
            parse_model("64,32").unwrap(),
            ModelSpec::Mlp { hidden: vec![64, 32], dropout: 0.0, activation: Default::default() }
        );
        let wide_and_deep = ModelSpec::WideAndDeep { hidden: vec![16], embedding_dim: DEFAULT_EMBEDDING_DIM };
        assert_eq!(parse_model("wide_and_deep:16").unwrap(), wide_and_deep);
        let ranking = ModelSpec::TwoTower { hidden: vec![8], dim: RANKING_DIM, negatives: DEFAULT_NEGATIVES };
        assert_eq!(parse_model("two_tower:8").unwrap(), ranking);
        for bad in ["big", "wide_and_deep", "wide_and_deep:", "64,", "two_tower", "oracle:4"] {
            assert!(parse_model(bad).is_err(), "{bad}");
        }
    }
}
