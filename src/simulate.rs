//! `weighhouse simulate`: a job at so many made-up sites on this machine, without a network.

use crate::demo::datasets::{Dataset, Partition};
use crate::demo::yardstick;
use crate::job::read_job_file;
use crate::members;
use crate::output::{Format, FormatArgument, print_json, table};
use crate::simulation::{
    Cohorts, Customers, Deal, Generated, Holdout, OwnSites, Simulation, Split, Work, cores, own_tests,
};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weighhouse_shared::evaluation::Figure;
use weighhouse_shared::job::{FederationSchedule, JobContract, JobFile, ModeName};
use weighhouse_shared::model::Network;
use weighhouse_shared::privacy::{Generator, accountant};
use weighhouse_shared::schema::Schema;

/// Arguments of `weighhouse simulate`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  weighhouse simulate configs/branches.job.toml --sites 1000 --rounds 5\n  weighhouse simulate configs/branches.job.toml --sites 10000 --participation 0.05\n  weighhouse simulate job.toml --data customers.csv --sites 50 --alpha 0.3 --format json\n\nRuns the job's own training, privacy and aggregation, without a network and without a ledger. The seed is for customers, splits and cohorts; noise never has one."
)]
pub struct SimulateArguments {
    /// Job file (TOML)
    job: PathBuf,
    /// Sites
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000), value_name = "N")]
    sites: u32,
    /// Customers of each site; with --data the most of one [default: the job's expected_customers; with --data all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000), value_name = "N")]
    customers: Option<u32>,
    /// Rounds, instead of the job's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    rounds: Option<u32>,
    /// Share of the sites that takes part in a round, above 0 to 1
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    participation: f64,
    /// Real customers instead of generated ones: a CSV file, or a folder of them, of the job's schema
    #[arg(long, conflicts_with = "no_op", value_name = "PATH")]
    data: Option<PathBuf>,
    /// How alike the sites' labels are when --data is dealt out, by a Dirichlet distribution: 0.1 hardly, 100 very
    /// [default: 1]
    #[arg(long, requires = "data", value_name = "ALPHA")]
    alpha: Option<f64>,
    /// Sites as they are instead of dealt out: --data is a folder with one folder a site, each with train.csv, perhaps
    /// valid.csv, and test.csv, on which the model is judged; --sites is then the most of them
    #[arg(long, requires = "data", conflicts_with_all = ["alpha", "customers"])]
    own_sites: bool,
    /// With --own-sites, sites by the values of this column instead of by folder
    #[arg(long, requires = "own_sites", value_name = "COLUMN")]
    partition: Option<String>,
    /// With --partition, leave out sites with fewer customers
    #[arg(long, default_value_t = 15, requires = "partition", value_name = "N")]
    min_customers: usize,
    /// What customers, splits and cohorts are drawn from
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Sites do nothing and return a constant: how fast all the rest is
    #[arg(long)]
    no_op: bool,
    #[command(flatten)]
    format: FormatArgument,
}

/// What a simulation came to.
#[derive(Debug, Serialize)]
struct Report {
    job: String,
    strategy: &'static str,
    parameters: usize,
    sites: usize,
    sites_a_round: usize,
    rounds: u32,
    no_op: bool,
    seed: u64,
    #[serde(flatten)]
    ground: Ground,
    #[serde(flatten)]
    privacy: Option<Cost>,
    /// Which figure the qualities are.
    figure: &'static str,
    best_possible: Option<f64>,
    /// Of the initial model.
    quality_at_start: Option<f64>,
    quality_by_round: Vec<Option<f64>>,
    /// Of the job's final model: the last, or an average.
    quality_in_the_end: Option<f64>,
    /// Sites' rounds in a second, from the round's model to the next.
    sites_a_second: f64,
    /// One site's round on one core, in milliseconds.
    site_milliseconds: f64,
    cores: usize,
    /// The most memory that the process had; None where the system does not say.
    peak_memory_bytes: Option<u64>,
    notes: Vec<String>,
}

/// On whom it was run.
#[derive(Debug, Clone, Serialize)]
struct Ground {
    customers: String,
    customers_least: usize,
    customers_most: usize,
    alpha: Option<f64>,
    /// The share of a site's customers that have its commonest label, the mean over sites.
    commonest_label_share: Option<f64>,
    held_out_customers: Option<usize>,
    /// The same figure of one model without privacy on all sites' rows in one place; with --own-sites.
    pooled: Option<f64>,
}

/// What the job costs each customer of a site that takes part in all its rounds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cost {
    epsilon: f64,
    delta: f64,
    noise_multiplier: f64,
    /// What the training steps cost at that noise, by the accountant for plans fixed beforehand.
    certified_epsilon: f64,
}

/// The customers of a simulation, and how its model is judged.
struct Setting {
    customers: Customers,
    holdout: Option<Holdout>,
    best_possible: Option<f64>,
    ground: Ground,
}

/// Runs the job and prints what it came to.
pub fn run(mut arguments: SimulateArguments) -> Result<()> {
    let share = arguments.participation;
    if !(share > 0.0 && share <= 1.0) {
        bail!("--participation must be above 0 and at most 1, got {share}");
    }
    let alpha = arguments.alpha.unwrap_or(1.0);
    if !(alpha > 0.0 && alpha.is_finite()) {
        bail!("--alpha must be above 0, got {alpha}");
    }
    let (mut file, schema) = read_job_file(&arguments.job)?;
    let own = own_sites(&arguments, &file)?;
    if let Some(dataset) = &own {
        arguments.sites = dataset.sites.len() as u32;
    }
    let sites = arguments.sites as usize;
    let of_round = ((sites as f64 * share).round() as usize).max(1);
    let mut notes = Vec::new();
    let contract = contract(&arguments, of_round, &mut file, &schema, &mut notes)?;
    let network = contract.network()?;
    let setting = match &own {
        Some(dataset) => own_setting(&arguments, dataset, &contract, &network)?,
        None => setting(&arguments, alpha, &contract, &schema)?,
    };
    let report = simulate(&arguments, of_round, &contract, &network, setting, notes)?;
    match arguments.format.format {
        Format::Json => print_json(&report),
        Format::Text => {
            println!("{}", report.to_text());
            Ok(())
        }
    }
}

/// The job's contract with what the arguments change.
fn contract(
    arguments: &SimulateArguments,
    of_round: usize,
    file: &mut JobFile,
    schema: &Schema,
    notes: &mut Vec<String>,
) -> Result<JobContract> {
    if arguments.rounds.is_some() {
        file.training.rounds = arguments.rounds;
    }
    let sites = u32::try_from(of_round).context("there are too many sites in a round")?;
    if file.federation.mode == ModeName::Site && sites > file.federation.max_sites.unwrap_or(10_000) {
        notes.push("the job takes fewer sites at most; more are simulated".into());
        file.federation.max_sites = Some(sites);
    }
    let members = match file.federation.mode {
        ModeName::Site => Vec::new(),
        ModeName::SecureSum => members::stand_ins(arguments.sites as usize),
    };
    // Always the same job, so that it starts from the same model.
    let contract = file
        .contract_among(schema.clone(), [0; 16], &members)
        .with_context(|| format!("{} is not a job that can run", arguments.job.display()))?;
    let fewest = contract.federation.fewest_sites();
    if sites < fewest {
        let by = contract.federation.sum_groups().map_or("min_sites", |_| "min_groups x min_sites");
        bail!(
            "the job needs {fewest} sites in a round ({by}), and {sites} would take part; raise --sites or --participation"
        );
    }
    notes.extend(members::noise_of_groups(&contract));
    if contract.federation.sum_groups().is_some() && arguments.participation < 1.0 {
        notes.push("a group with fewer than min_sites of a round's cohort adds nothing to it".into());
    }
    if contract.federation.schedule != FederationSchedule::Synchronous {
        notes.push("simulated in rounds: a buffered job's updates are a little older than that".into());
    }
    if arguments.participation < 1.0 && !arguments.no_op {
        notes.push(
            "epsilon is of a site that takes part in every round; those here take part in fewer".into(),
        );
    }
    Ok(contract)
}

/// The sites of --own-sites.
fn own_sites(arguments: &SimulateArguments, file: &JobFile) -> Result<Option<Dataset>> {
    let Some(data) = arguments.data.as_ref().filter(|_| arguments.own_sites) else { return Ok(None) };
    let min_customers = arguments.min_customers;
    let partition = arguments.partition.clone().map(|column| Partition { column, min_customers });
    let schema = arguments.job.parent().unwrap_or(Path::new(".")).join(&file.schema);
    Dataset::read(data, Some(&schema), partition, Some(arguments.sites)).map(Some)
}

fn own_setting(
    arguments: &SimulateArguments,
    dataset: &Dataset,
    contract: &JobContract,
    network: &Network,
) -> Result<Setting> {
    let own = OwnSites::new(dataset, contract.evaluation.is_some(), arguments.seed);
    let (tests, label) = (own_tests(dataset, &contract.schema), dataset.schema.label.kind.clone());
    let holdout = Holdout::new(tests, label, contract.training.max_rows_per_customer as usize);
    let (least, most) = own.sizes();
    let ground = Ground {
        customers: dataset.name.clone(),
        customers_least: least,
        customers_most: most,
        alpha: None,
        commonest_label_share: None,
        held_out_customers: Some(holdout.customers()),
        pooled: yardstick::pooled(dataset, contract, network)?,
    };
    Ok(Setting { customers: Customers::Own(own), holdout: Some(holdout), best_possible: None, ground })
}

fn setting(
    arguments: &SimulateArguments,
    alpha: f64,
    contract: &JobContract,
    schema: &Schema,
) -> Result<Setting> {
    let (sites, seed) = (arguments.sites as usize, arguments.seed);
    if let Some(path) = &arguments.data {
        let customers = arguments.customers.map_or(usize::MAX, |most| most as usize);
        let max_rows = contract.training.max_rows_per_customer as usize;
        let (split, holdout) = Split::read(path, schema, max_rows, Deal { sites, customers, alpha, seed })?;
        let (least, most) = split.sizes();
        let ground = Ground {
            customers: path.display().to_string(),
            customers_least: least,
            customers_most: most,
            alpha: Some(alpha),
            commonest_label_share: Some(split.skew()),
            held_out_customers: Some(holdout.customers()),
            pooled: None,
        };
        let customers = Customers::Split(split);
        return Ok(Setting { customers, holdout: Some(holdout), best_possible: None, ground });
    }
    let of_site = arguments.customers.unwrap_or(contract.training.expected_customers) as usize;
    let generated = Generated::new(schema, of_site, seed);
    let judged = (!arguments.no_op).then(|| generated.holdout());
    let (holdout, best_possible) = judged.map_or((None, None), |(holdout, best)| (Some(holdout), best));
    let ground = Ground {
        customers: "generated".into(),
        customers_least: of_site,
        customers_most: of_site,
        alpha: None,
        commonest_label_share: None,
        held_out_customers: holdout.as_ref().map(Holdout::customers),
        pooled: None,
    };
    Ok(Setting { customers: Customers::Generated(generated), holdout, best_possible, ground })
}

fn simulate(
    arguments: &SimulateArguments,
    of_round: usize,
    contract: &JobContract,
    network: &Network,
    setting: Setting,
    notes: Vec<String>,
) -> Result<Report> {
    let Setting { customers, holdout, best_possible, ground } = setting;
    let (sites, rounds) = (arguments.sites as usize, contract.training.rounds);
    let figure = |parameters: Vec<f32>| match &holdout {
        Some(holdout) => holdout.figure(network, &parameters),
        None => Ok(None),
    };
    let work = if arguments.no_op { Work::Nothing } else { Work::Train };
    let mut simulation = Simulation::new(contract, network, &customers, work, contract.id())?;
    let mut cohorts = Cohorts::new(sites, of_round, arguments.seed);
    let mut generator = Generator::from_system()?;
    let bar = progress(of_round as u64 * u64::from(rounds));
    let quality_at_start = figure(simulation.parameters())?;
    let mut quality_by_round = Vec::new();
    let (mut elapsed, mut spent) = (Duration::ZERO, Duration::ZERO);
    for round in 1..=rounds {
        let begun = Instant::now();
        spent += simulation.round(cohorts.draw(), &mut generator, || bar.inc(1))?;
        elapsed += begun.elapsed();
        if holdout.is_some() {
            let quality = figure(simulation.parameters())?;
            quality_by_round.push(quality);
            bar.set_message(format!("round {round}: {} {}", name(network), text_of(quality)));
        }
    }
    bar.finish_and_clear();
    let site_rounds = of_round as f64 * f64::from(rounds);
    Ok(Report {
        job: contract.name.clone(),
        strategy: contract.federation.strategy.name(),
        parameters: network.parameter_count(),
        sites,
        sites_a_round: of_round,
        rounds,
        no_op: arguments.no_op,
        seed: arguments.seed,
        ground,
        privacy: (!arguments.no_op).then(|| cost(contract)),
        figure: name(network),
        best_possible,
        quality_at_start,
        quality_by_round,
        quality_in_the_end: figure(simulation.concluded())?,
        sites_a_second: site_rounds / elapsed.as_secs_f64().max(1e-9),
        site_milliseconds: spent.as_secs_f64() * 1e3 / site_rounds,
        cores: cores(),
        peak_memory_bytes: peak_memory(),
        notes,
    })
}

fn cost(contract: &JobContract) -> Cost {
    let privacy = &contract.privacy;
    Cost {
        epsilon: privacy.epsilon.value(),
        delta: privacy.delta.value(),
        noise_multiplier: privacy.noise_multiplier.value(),
        certified_epsilon: accountant::epsilon(&[contract.training_charge()], privacy.delta).upper,
    }
}

fn name(network: &Network) -> &'static str {
    Figure::of(network.target()).name()
}

fn text_of(quality: Option<f64>) -> String {
    quality.map_or_else(|| "-".to_owned(), |quality| format!("{quality:.3}"))
}

/// As the system counts it: resident, over the process's life.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn progress(site_rounds: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("simulating {wide_bar} {percent}%, {per_sec} {msg}");
    ProgressBar::new(site_rounds).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Report {
    fn to_text(&self) -> String {
        let Ground { customers, customers_least: least, customers_most: most, .. } = &self.ground;
        let size = if least == most { most.to_string() } else { format!("{least} to {most}") };
        let whose = if customers == "generated" {
            "generated customers".into()
        } else {
            format!("customers of {customers}")
        };
        let mut lines = vec![
            format!(
                "{}: {} parameters, {}, {} rounds",
                self.job, self.parameters, self.strategy, self.rounds
            ),
            format!("{} sites of {size} {whose}, {} in a round", self.sites, self.sites_a_round),
        ];
        if let Some((alpha, share)) = self.ground.alpha.zip(self.ground.commonest_label_share) {
            lines.push(format!(
                "alpha {alpha}: the commonest label of a site is that of {:.0}% of its customers",
                100.0 * share
            ));
        }
        if let Some(held_out) = self.ground.held_out_customers {
            let start = [("start".to_owned(), self.quality_at_start)];
            let rounds = (1..).map(|round: u32| round.to_string()).zip(self.quality_by_round.iter().copied());
            let rows: Vec<Vec<String>> = start
                .into_iter()
                .chain(rounds)
                .chain([("end".to_owned(), self.quality_in_the_end)])
                .map(|(when, quality)| vec![when, text_of(quality)])
                .collect();
            lines.push(format!("\n{}\n", table(&["round", self.figure], &rows)));
            let pooled = self.ground.pooled.map(|pooled| format!("; pooled without privacy {pooled:.3}"));
            let best = self.best_possible.map(|best| format!("; the best possible is {best:.3}"));
            let beside = [best, pooled].into_iter().flatten().collect::<String>();
            lines.push(format!("On {held_out} held-out customers{beside}."));
        }
        if let Some(Cost { epsilon, delta, noise_multiplier, certified_epsilon }) = self.privacy {
            lines.push(format!(
                "Epsilon {epsilon:.3} at delta {delta:e} for one customer of a site (certified {certified_epsilon:.3}), \
                 noise {noise_multiplier:.3}."
            ));
        }
        lines.push(format!(
            "{:.0} sites a second on {} cores, {:.2} ms a site on one.",
            self.sites_a_second, self.cores, self.site_milliseconds
        ));
        if let Some(peak) = self.peak_memory_bytes {
            lines.push(format!("At most {:.0} MB of memory.", peak as f64 / 1e6));
        }
        lines.extend(self.notes.iter().map(|note| format!("Note: {note}.")));
        lines.join("\n")
    }
}
