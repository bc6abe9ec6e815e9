//! `weighhouse job plan`: what a job would cost each site and what it would be worth, before any budget
//! is spent.

mod trial;

use crate::job::read_job_file;
use crate::members;
use crate::operator::{Operator, block_on};
use crate::output::{Format, print_json, table};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::Path;
use trial::Ground;
use weighhouse_shared::evaluation::Figure;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::job::{
    FederationSchedule, JobContract, JobFile, MAX_GROUPS, MAX_MEMBERS, MIN_MEMBERS, ModeName,
};
use weighhouse_shared::privacy::accountant::{self, GaussianEvent};
use weighhouse_shared::privacy::{Delta, Epsilon, Generator};
use weighhouse_shared::schema::Schema;
use weighhouse_shared::wire::messages::{
    AskRoom, CoordinatorToOperator, OperatorToCoordinator, SiteRoom, SiteStatus,
};

/// Sites of the simulation when the coordinator names none.
const DEFAULT_SITES: usize = 10;
/// The most sites simulated.
const MAX_SITES: usize = 50;
/// Multiplications and additions up to which a job is simulated without being asked to.
const SIMULATED_OPERATIONS: f64 = 2e11;

/// What is planned for.
#[derive(Debug, Clone, clap::Args)]
pub struct PlanArguments {
    /// Upload speed of a site, in Mbit/s, for the time of a round
    #[arg(long, default_value_t = 20.0, value_name = "MBIT")]
    pub uplink: f64,
    /// Simulate also a model so large that it takes minutes
    #[arg(long)]
    pub simulate: bool,
    /// Plan without asking the coordinator what budget the sites have left
    #[arg(long)]
    pub offline: bool,
}

/// A job's plan.
#[derive(Debug, Clone, Serialize)]
struct Plan {
    name: String,
    parameters: u64,
    unit: &'static str,
    relation: &'static str,
    /// Bytes of the model to each site, each round.
    bytes_down: u64,
    /// Bytes of the update from each site, each round.
    bytes_up: u64,
    /// The job as written, then what else could be asked for.
    choices: Vec<Choice>,
    /// How much of the job as written each site's budget allows.
    sites: Vec<SitePlan>,
    /// The site whose budget is the first to run out under jobs like this one.
    first_to_run_dry: Option<String>,
    /// The groups of a secure sum, if it has any.
    groups: Option<PlannedGroups>,
    simulated_on: Option<String>,
    notes: Vec<String>,
}

/// What a secure sum by groups comes to.
#[derive(Debug, Clone, Copy, Serialize)]
struct PlannedGroups {
    groups: u32,
    /// Groups whose sums a round needs.
    min_groups: u32,
    /// Members of the smallest group.
    members_least: usize,
    /// Of each group, the fewest in a sum.
    min_sites: u32,
    /// Of each group, those that may collude.
    colluding_sites: u32,
    /// Noise of the mean over all groups over that of one sum over all sites, at the same epsilon.
    noise_times_one_sum: f64,
}

impl PlannedGroups {
    fn of(contract: &JobContract) -> Option<Self> {
        let groups = contract.federation.sum_groups()?;
        Some(Self {
            groups: groups.groups,
            min_groups: groups.min_groups,
            members_least: groups.sizes().0,
            min_sites: contract.federation.min_sites,
            colluding_sites: groups.sum.colluding_sites,
            noise_times_one_sum: groups.noise_factor(),
        })
    }
}

/// One way to run the job.
#[derive(Debug, Clone, Serialize)]
struct Choice {
    what: &'static str,
    rounds: u32,
    epsilon: f64,
    delta: f64,
    /// Noise of a training step over the clip norm.
    noise_multiplier: f64,
    /// What the training steps cost at that noise, by the accountant for plans fixed beforehand.
    certified_epsilon: f64,
    /// What they would cost if the masks of a secure sum protected nothing: each site's share of the noise alone.
    epsilon_without_masks: Option<f64>,
    /// Noise of each quality histogram.
    evaluation_noise_multiplier: Option<f64>,
    /// Sites whose budget allows the whole job, of those that have told.
    sites_that_can: Option<(u32, u32)>,
    first_signal_to_noise: Option<f64>,
    last_signal_to_noise: Option<f64>,
    #[serde(flatten)]
    quality: Expected,
    /// One site's computing and upload in a round, in seconds.
    round_seconds: Option<f64>,
}

/// What the simulated model and the best possible one come to: the figure of the label's kind under its own name, the
/// others none.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Expected {
    expected_auc: Option<f64>,
    best_possible_auc: Option<f64>,
    expected_accuracy: Option<f64>,
    best_possible_accuracy: Option<f64>,
    expected_hit_rate_at_10: Option<f64>,
    best_possible_hit_rate_at_10: Option<f64>,
    /// Of a number in its own units.
    expected_mean_absolute_error: Option<f64>,
    best_possible_mean_absolute_error: Option<f64>,
}

impl Expected {
    fn new(figure: Figure, expected: Option<f64>, best_possible: Option<f64>) -> Self {
        let mut all = Self::default();
        let (one, best) = match figure {
            Figure::Auc => (&mut all.expected_auc, &mut all.best_possible_auc),
            Figure::Accuracy => (&mut all.expected_accuracy, &mut all.best_possible_accuracy),
            Figure::HitRateAt10 => (&mut all.expected_hit_rate_at_10, &mut all.best_possible_hit_rate_at_10),
            Figure::MeanAbsoluteError => {
                (&mut all.expected_mean_absolute_error, &mut all.best_possible_mean_absolute_error)
            }
        };
        (*one, *best) = (expected, best_possible);
        all
    }

    fn expected(&self) -> Option<f64> {
        let figures = [self.expected_auc, self.expected_accuracy, self.expected_hit_rate_at_10];
        figures.into_iter().flatten().next().or(self.expected_mean_absolute_error)
    }

    fn best_possible(&self) -> Option<f64> {
        let figures =
            [self.best_possible_auc, self.best_possible_accuracy, self.best_possible_hit_rate_at_10];
        figures.into_iter().flatten().next().or(self.best_possible_mean_absolute_error)
    }
}

/// What the job as written would mean for one site.
#[derive(Debug, Clone, Serialize)]
struct SitePlan {
    name: String,
    status: SiteStatus,
    cap_epsilon: Option<f64>,
    spent_epsilon: Option<f64>,
    /// When the site said so, in seconds since 1970.
    as_of_s: Option<u64>,
    /// Rounds like the job's that its budget still allows.
    rounds_left: Option<u32>,
    /// Whether its budget and its policy's cap on one job allow the whole job.
    can_run: Option<bool>,
}

/// Plans the job in `path` and prints the plan.
pub fn run(path: &Path, home: &Path, arguments: &PlanArguments, format: Format) -> Result<()> {
    if !(arguments.uplink.is_finite() && arguments.uplink > 0.0) {
        bail!("--uplink must be above 0 Mbit/s, got {}", arguments.uplink);
    }
    let (file, schema) = read_job_file(path)?;
    let mut notes = Vec::new();
    let members = members_of(&file, home, arguments, &mut notes);
    let written = file.contract_among(schema.clone(), [0; 16], &members)?;
    let others = alternatives(&file, &schema, &written, &members);
    let choices: Vec<(&'static str, JobContract)> =
        [("as written", written.clone())].into_iter().chain(others).collect();
    let mut rooms = vec![Vec::new(); choices.len()];
    if !arguments.offline {
        match block_on(ask_rooms(home, &choices)) {
            Ok(found) => rooms = found,
            Err(error) => notes.push(format!("the sites' budgets are not known: {error:#}")),
        }
    }
    let network = written.network()?;
    let parameters = network.parameter_count() as u64;
    let (bytes_down, bytes_up) = (4 * parameters, written.update_encoding()?.len());
    let sites: Vec<SitePlan> = rooms[0].iter().map(|room| site_plan(room, &written)).collect();
    let count = match sites.len() {
        _ if !members.is_empty() => members.len(),
        0 => DEFAULT_SITES.max(written.federation.min_sites as usize),
        count => count.max(written.federation.min_sites as usize),
    }
    // All of each group, or its sum would not be opened.
    .min(if written.federation.sum_groups().is_some() { MAX_MEMBERS } else { MAX_SITES });
    let customers = written.training.expected_customers as usize;
    let work: f64 = choices.iter().map(|(_, contract)| trial::operations(contract, &network, count)).sum();
    let simulated = arguments.simulate || work <= SIMULATED_OPERATIONS;
    if !simulated {
        notes.push("not simulated, the model is large: add --simulate, and a few minutes".into());
    }
    if simulated && written.federation.schedule != FederationSchedule::Synchronous {
        notes.push("simulated in rounds: a buffered job's updates are a little older than that".into());
    }
    let mut generator = Generator::from_system()?;
    let ground = simulated.then(|| Ground::new(&written.schema, count, customers, generator.next_u64()));
    let upload_seconds = bytes_up as f64 * 8.0 / (arguments.uplink * 1e6);
    let bar = progress(choices.len());
    let mut planned = Vec::new();
    for (index, ((what, contract), room)) in choices.iter().zip(&rooms).enumerate() {
        let outcome = match &ground {
            Some(ground) => Some(ground.run(contract, &network, &mut generator, |share| {
                bar.set_position((1000.0 * (index as f64 + share)) as u64);
            })?),
            None => None,
        };
        let told: Vec<bool> = room.iter().filter_map(|room| site_plan(room, contract).can_run).collect();
        let can = told.iter().filter(|can| **can).count() as u32;
        planned.push(Choice {
            what,
            rounds: contract.training.rounds,
            epsilon: contract.privacy.epsilon.value(),
            delta: contract.privacy.delta.value(),
            noise_multiplier: contract.privacy.noise_multiplier.value(),
            certified_epsilon: accountant::epsilon(&[contract.training_charge()], contract.privacy.delta)
                .upper,
            epsilon_without_masks: contract
                .local_charge()
                .map(|charge| accountant::renyi_epsilon(&[charge], contract.privacy.delta)),
            evaluation_noise_multiplier: contract
                .evaluation
                .as_ref()
                .map(|evaluation| evaluation.noise_multiplier.value()),
            sites_that_can: (!told.is_empty()).then_some((can, told.len() as u32)),
            first_signal_to_noise: outcome.map(|outcome| outcome.first_signal_to_noise),
            last_signal_to_noise: outcome.map(|outcome| outcome.last_signal_to_noise),
            quality: Expected::new(
                Figure::of(network.target()),
                outcome.and_then(|outcome| outcome.figure),
                ground.as_ref().and_then(|ground| ground.ceiling),
            ),
            round_seconds: outcome.map(|outcome| outcome.site_round.as_secs_f64() + upload_seconds),
        });
    }
    bar.finish_and_clear();
    let driest = sites.iter().filter(|site| site.rounds_left.is_some()).min_by_key(|site| site.rounds_left);
    let plan = Plan {
        name: written.name.clone(),
        parameters,
        unit: "one customer at one site",
        relation: "one customer more or less",
        bytes_down,
        bytes_up,
        choices: planned,
        first_to_run_dry: driest.map(|site| site.name.clone()),
        sites,
        groups: PlannedGroups::of(&written),
        simulated_on: ground.map(|_| format!("{count} generated sites of {customers} customers each")),
        notes,
    };
    match format {
        Format::Json => print_json(&plan),
        Format::Text => {
            println!("{}", plan.to_text(&written));
            Ok(())
        }
    }
}

/// Who would take part in a secure sum: the sites that have joined, or else as many stand-ins as are planned for.
fn members_of(
    file: &JobFile,
    home: &Path,
    arguments: &PlanArguments,
    notes: &mut Vec<String>,
) -> Vec<SiteId> {
    if file.federation.mode != ModeName::SecureSum {
        return Vec::new();
    }
    let joined = match arguments.offline {
        true => Vec::new(),
        false => block_on(async { members::joined(&Operator::connect(home).await?, file).await })
            .unwrap_or_default(),
    };
    let groups = file.federation.groups.unwrap_or(1).clamp(1, MAX_GROUPS) as usize;
    if joined.len() >= MIN_MEMBERS * groups {
        return joined;
    }
    let in_each = (file.federation.min_sites.unwrap_or(0) as usize).max(MIN_MEMBERS);
    let count = DEFAULT_SITES.max(groups.saturating_mul(in_each)).min(MAX_MEMBERS);
    notes.push(format!(
        "planned for {count} members: fewer than {} sites are known to have joined",
        MIN_MEMBERS * groups
    ));
    members::stand_ins(count)
}

/// What else could be asked for; whatever is not a job that can run is left out.
fn alternatives(
    file: &JobFile,
    schema: &Schema,
    written: &JobContract,
    members: &[SiteId],
) -> Vec<(&'static str, JobContract)> {
    let with_epsilon = |epsilon: f64, rounds: u32| {
        let mut other = file.clone();
        other.privacy.epsilon = Some(Epsilon::new(epsilon).ok()?);
        other.privacy.noise_multiplier = None;
        other.training.rounds = Some(rounds);
        other.contract_among(schema.clone(), [0; 16], members).ok()
    };
    let (epsilon, rounds) = (written.privacy.epsilon.value(), written.training.rounds);
    let half = rounds.div_ceil(2);
    [
        ("half the epsilon", with_epsilon(epsilon / 2.0, rounds)),
        ("half the rounds", with_epsilon(epsilon, half).filter(|_| half < rounds)),
    ]
    .into_iter()
    .filter_map(|(what, contract)| Some((what, contract?)))
    .collect()
}

/// What each site's budget allows of each choice.
async fn ask_rooms(home: &Path, choices: &[(&'static str, JobContract)]) -> Result<Vec<Vec<SiteRoom>>> {
    let operator = Operator::connect(home).await?;
    let one = |event: GaussianEvent| GaussianEvent { steps: 1, ..event };
    let mut rooms = Vec::new();
    for (_, contract) in choices {
        let training = one(contract.training_charge());
        let asked = AskRoom { training, holdout: contract.evaluation_charge().map(one) };
        match operator.request(&OperatorToCoordinator::AskRoom(asked)).await? {
            CoordinatorToOperator::Room(found) => rooms.push(found),
            _ => bail!("the coordinator answered another question"),
        }
    }
    Ok(rooms)
}

fn site_plan(site: &SiteRoom, contract: &JobContract) -> SitePlan {
    let room = site.room.as_ref();
    let (training, holdout) = (contract.training_charge(), contract.evaluation_charge());
    let can_run = room.and_then(|room| {
        let delta = Delta::new(room.cap_delta).ok()?;
        let costs = [Some(training), holdout].into_iter().flatten();
        let asks = costs.map(|event| accountant::renyi_epsilon(&[event], delta)).fold(0.0, f64::max);
        let evaluations = holdout.zip(room.evaluations);
        let fits = room.training_steps >= training.steps
            && evaluations.is_none_or(|(event, left)| left >= event.steps);
        Some(fits && asks <= room.job_epsilon)
    });
    SitePlan {
        name: site.name.clone(),
        status: site.status,
        cap_epsilon: room.map(|room| room.cap_epsilon),
        spent_epsilon: room.map(|room| room.epsilon),
        as_of_s: room.map(|room| room.as_of_s),
        rounds_left: room.map(|room| room.training_steps / contract.training.local_steps),
        can_run,
    }
}

fn progress(choices: usize) -> ProgressBar {
    let bar = ProgressBar::new(1000 * choices as u64);
    let style = ProgressStyle::with_template("simulating {wide_bar} {percent}%");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}

impl Plan {
    fn to_text(&self, written: &JobContract) -> String {
        let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let row = |choice: &Choice| {
            vec![
                choice.what.to_owned(),
                choice.rounds.to_string(),
                format!("{:.3}", choice.epsilon),
                format!("{:.3}", choice.noise_multiplier),
                choice.sites_that_can.map_or_else(|| "-".to_owned(), |(can, all)| format!("{can} of {all}")),
                match (choice.first_signal_to_noise, choice.last_signal_to_noise) {
                    (Some(first), Some(last)) => format!("{first:.2} to {last:.2}"),
                    _ => "-".to_owned(),
                },
                figure(choice.quality.expected()),
                choice.round_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2} s")),
            ]
        };
        let name = Figure::of(written.schema.label.kind.target()).name();
        let header =
            ["choice", "rounds", "epsilon", "noise", "sites that can", "signal to noise", name, "a round"];
        let mut lines = vec![
            format!(
                "{}: {} parameters, {} down and {} up for each site and round",
                self.name,
                self.parameters,
                bytes_text(self.bytes_down),
                bytes_text(self.bytes_up)
            ),
            format!(
                "epsilon at delta {:e}, for {}; neighbours differ in {}; nothing has been spent",
                written.privacy.delta.value(),
                self.unit,
                self.relation
            ),
            String::new(),
            table(&header, &self.choices.iter().map(row).collect::<Vec<_>>()),
        ];
        if let Some(epsilon) = self.choices.first().and_then(|choice| choice.epsilon_without_masks) {
            lines.push(String::new());
            lines.push(format!(
                "If the secure sum were broken, each site's own share of the noise would still bound the loss by epsilon \
                 {epsilon:.3}."
            ));
        }
        if let Some(cost) = members::noise_of_groups(written) {
            lines.push(format!("\n{cost}."));
        }
        if let Some(ground) = &self.simulated_on {
            let ceiling = figure(self.choices.first().and_then(|choice| choice.quality.best_possible()));
            lines.push(String::new());
            lines.push(format!(
                "Signal to noise (all sites' clipped gradients over their noise, first step to last) and {name} are \
                 simulated on {ground}, where the best possible {name} is {ceiling}. Your records will differ."
            ));
        }
        if !self.sites.is_empty() {
            let dash = || "-".to_owned();
            let row = |site: &SitePlan| {
                vec![
                    site.name.clone(),
                    site.status.to_string(),
                    site.spent_epsilon
                        .zip(site.cap_epsilon)
                        .map_or_else(dash, |(spent, cap)| format!("{spent:.3} of {cap}")),
                    site.rounds_left.map_or_else(dash, |rounds| rounds.to_string()),
                    site.can_run.map_or_else(dash, |can| if can { "yes" } else { "no" }.to_owned()),
                ]
            };
            lines.push(String::new());
            lines.push(table(
                &["site", "status", "epsilon set aside", "such rounds left", "can run it"],
                &self.sites.iter().map(row).collect::<Vec<_>>(),
            ));
            if let Some(name) = &self.first_to_run_dry {
                lines.push(String::new());
                lines.push(format!("First to run dry under jobs like this: {name}."));
            }
        }
        lines.extend(self.notes.iter().map(|note| format!("\n{note}")));
        lines.join("\n")
    }
}
