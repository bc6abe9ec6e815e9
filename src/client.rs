//! `weighhouse client …`: join a federation, run a site's daemon, see where it stands, decide about jobs, score customers.

mod jobs;
mod predict;

use crate::metrics;
use crate::output::{Format, FormatArgument, print_json, table};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt;
use tracing::Instrument;
use weighhouse_client::approvals::{Approvals, Verdict};
use weighhouse_client::budget::{Budget, read_ledger};
use weighhouse_client::contribute::Workplace;
use weighhouse_client::enrol::join;
use weighhouse_client::feedback::Feedback;
use weighhouse_client::home::{Home, NewConfig};
use weighhouse_client::membership::Membership;
use weighhouse_client::outbox::Outbox;
use weighhouse_client::policy;
use weighhouse_client::records::{self, Split};
use weighhouse_client::secure_sum::Sums;
use weighhouse_client::session::{self, Notice, Site};
use weighhouse_client::witnesses::Witnesses;
use weighhouse_shared::clock;
use weighhouse_shared::config::write_whole;
use weighhouse_shared::ids::{JobId, RoundId};
use weighhouse_shared::invite::Invite;
use weighhouse_shared::ledger::{Body, ReleaseKind};
use weighhouse_shared::model::Engine;
use weighhouse_shared::policy::Approval;
use weighhouse_shared::privacy::{Delta, Epsilon};
use weighhouse_shared::telemetry::{self, SiteMetrics};
use weighhouse_shared::tls;
use weighhouse_shared::wire::messages::{Decision, Outcome};

#[derive(Debug, Subcommand)]
pub enum ClientVerb {
    /// Join a federation with an invite; makes this site's key and home folder
    #[command(
        after_help = "Example:\n  weighhouse client join weighhouse-1-… --home berlin --data records.csv --schema campaign.schema.toml --cap-epsilon 8\n\nIn the new folder: client.toml for who runs the site, policy.toml for its data-protection officer (cap and its period, largest job, approval, models)."
    )]
    Join {
        /// What `weighhouse site invite` printed
        invite: Invite,
        /// Folder to make
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "site-home", value_name = "DIR")]
        home: PathBuf,
        /// CSV files with this site's records
        #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
        data: Vec<PathBuf>,
        /// What the columns mean
        #[arg(long, value_name = "FILE")]
        schema: PathBuf,
        /// The most epsilon any customer may ever be charged; goes into policy.toml
        #[arg(long, default_value = "8", value_name = "EPSILON")]
        cap_epsilon: Epsilon,
        /// The cap's delta
        #[arg(long, default_value = "1e-5", value_name = "DELTA")]
        cap_delta: Delta,
    },
    /// Run this site's daemon
    #[command(after_help = "Example:\n  weighhouse client serve --home berlin")]
    Serve {
        /// Folder made by `weighhouse client join`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "site-home", value_name = "DIR")]
        home: PathBuf,
        /// End when standard input closes, as when the program that started it is gone
        #[arg(long, hide = true)]
        end_with_stdin: bool,
    },
    /// Show the policy, the budget, the connection and the latest releases of this site
    #[command(after_help = "Example:\n  weighhouse client status --home berlin --format json")]
    Status {
        /// Folder made by `weighhouse client join`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "site-home", value_name = "DIR")]
        home: PathBuf,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show the jobs that were offered here: what each asks, and what was decided
    #[command(after_help = "Example:\n  weighhouse client jobs --home berlin")]
    Jobs {
        /// Folder made by `weighhouse client join`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "site-home", value_name = "DIR")]
        home: PathBuf,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Let a job run that waits for approval; a running daemon takes it at once
    #[command(after_help = "Example:\n  weighhouse client approve 3f2a --home berlin")]
    Approve {
        /// The beginning of the job's identifier
        #[arg(required_unless_present = "all")]
        job: Option<String>,
        /// All that wait, oldest first
        #[arg(long, conflicts_with = "job")]
        all: bool,
        /// Folder made by `weighhouse client join`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "site-home", value_name = "DIR")]
        home: PathBuf,
    },
    /// Refuse a job that waits for approval, or leave one that was approved; for good
    #[command(after_help = "Example:\n  weighhouse client refuse 3f2a --home berlin")]
    Refuse {
        /// The beginning of the job's identifier
        job: String,
        /// Folder made by `weighhouse client join`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "site-home", value_name = "DIR")]
        home: PathBuf,
    },
    /// Score this site's customers with a model, and say why (marketing)
    #[command(after_help = predict::HELP)]
    Predict(predict::PredictArguments),
}

pub fn run(verb: ClientVerb) -> Result<()> {
    match verb {
        ClientVerb::Join { invite, home, data, schema, cap_epsilon, cap_delta } => {
            let absolute = |path: &PathBuf| {
                std::path::absolute(path).with_context(|| format!("cannot use the path {}", path.display()))
            };
            let files = data.iter().map(absolute).collect::<Result<Vec<_>>>()?;
            let schema = absolute(&schema)?;
            let settings =
                |name, coordinator| NewConfig { name, coordinator, files, schema, cap_epsilon, cap_delta };
            let joined = crate::operator::block_on(async { Ok(join(&home, &invite, settings).await?) })?;
            println!("joined as {} (key {})", joined.name, joined.site.short());
            println!("next: weighhouse client serve --home {}", home.display());
            Ok(())
        }
        ClientVerb::Serve { home, end_with_stdin } => serve(&home, end_with_stdin),
        ClientVerb::Status { home, format } => {
            let status = SiteState::read(&home)?;
            match format.format {
                Format::Json => print_json(&status)?,
                Format::Text => println!("{}", status.to_text()),
            }
            Ok(())
        }
        ClientVerb::Jobs { home, format } => jobs::list(&home, format.format),
        ClientVerb::Approve { job, home, .. } => jobs::approve(&home, job.as_deref()),
        ClientVerb::Refuse { job, home } => jobs::refuse(&home, &job),
        ClientVerb::Predict(arguments) => predict::run(arguments),
    }
}

/// Returns when the user, the system, or (if `with_stdin`) the starting program asks this one to end.
pub async fn asked_to_end(with_stdin: bool) {
    let stdin_closed = async {
        if !with_stdin {
            return std::future::pending().await;
        }
        let (mut stdin, mut byte) = (tokio::io::stdin(), [0]);
        while !matches!(stdin.read(&mut byte).await, Ok(0) | Err(_)) {}
    };
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stdin_closed => {}
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Contributions to one job that the coordinator did not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// How many, by reason.
    pub counts: BTreeMap<Outcome, u64>,
    /// The round of the last.
    pub last_round: RoundId,
    /// Its reason.
    pub last: Outcome,
}

impl Refusals {
    fn note(known: &mut BTreeMap<JobId, Self>, job: JobId, round: RoundId, outcome: Outcome) {
        if known.len() >= MAX_REFUSED_JOBS && !known.contains_key(&job) {
            known.pop_first();
        }
        let fresh = Self { counts: BTreeMap::new(), last_round: round, last: outcome };
        let refusals = known.entry(job).or_insert(fresh);
        // A round that closed without the site, and then its update that came too late, are one.
        let told = (refusals.last_round, refusals.last) == (round, outcome) && !refusals.counts.is_empty();
        if told && outcome == Outcome::Late {
            return;
        }
        *refusals.counts.entry(outcome).or_default() += 1;
        (refusals.last_round, refusals.last) = (round, outcome);
    }

    /// The counts for people, such as "2 late, 1 corrupt".
    pub fn counts_text(&self) -> String {
        let texts: Vec<_> = self.counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        texts.join(", ")
    }
}

/// Jobs of which refusals are kept.
const MAX_REFUSED_JOBS: usize = 256;

/// What the daemon of the home last told of refusals, by job.
pub fn noted_refusals(home: &Home) -> BTreeMap<JobId, Refusals> {
    Connection::noted(home).map(|connection| connection.refused).unwrap_or_default()
}

/// What the running daemon tells `client status`: constants and labels.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Connection {
    /// "connected", or why not.
    state: String,
    /// When that began, in seconds since 1970.
    since_s: u64,
    /// The last job that was accepted or refused.
    job: Option<String>,
    /// Contributions that the coordinator did not count, by job.
    #[serde(default)]
    refused: BTreeMap<JobId, Refusals>,
    /// The last of them, for people.
    #[serde(default)]
    refusal: Option<String>,
}

impl Connection {
    /// What the home's daemon noted last.
    fn noted(home: &Home) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(home.path("status.json")).ok()?).ok()
    }
}

fn serve(folder: &Path, end_with_stdin: bool) -> Result<()> {
    let home = Home::at(folder);
    let config = home.config()?;
    let schema = home.schema(&config)?;
    let (authority, credentials) = home.credentials()?;
    let holdout_permille = (config.data.holdout * 1000.0).round() as u32;
    let split = Split { site: credentials.identity.site(), holdout_permille };
    let records = records::load(&home.data_files(&config), &schema, split)?;
    let (policy_text, policy) = home.policy()?;
    let customers = records.training.customers() + records.holdout.customers();
    policy::check_customers(&policy, customers as u64)?;
    let witnesses = Witnesses::open(&home, &authority, clock::unix_time_s())?;
    let (ledger, identity) = (home.ledger(), home.identity()?);
    let budget =
        Budget::open_witnessed(&ledger, identity, &policy_text, holdout_permille, witnesses.newest())?;
    let witnesses = Mutex::new(witnesses);
    let budget = Mutex::new(budget);
    let outbox =
        Outbox::open(&home.path("outbox")).context("cannot make the outbox folder; is the disk full?")?;
    let feedback = Feedback::open(&home.path("feedback"))
        .context("cannot make the feedback folder; is the disk full?")?;
    let engine = Engine::new(config.device).context("cannot use the `device` in client.toml")?;
    let sums = Sums::open(&home.path("secure_sums"))
        .context("cannot make the secure_sums folder; is the disk full?")?;
    let workplace = Arc::new(Workplace { records, budget, outbox, feedback, sums, engine });
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(2).enable_all().build()?;
    let approvals = match policy.jobs.approval {
        Approval::Auto => Approvals::at(&home.approvals()),
        Approval::Ask => {
            let _inside = runtime.enter();
            Approvals::listen(&home.approvals())?
        }
    };
    let (coordinator, approvals) = (config.coordinator.clone(), Arc::new(approvals));
    let membership = Membership::new(home.clone(), credentials);
    let site = Site { coordinator, authority, membership, schema, policy, approvals, workplace, witnesses };

    let status_path = home.path("status.json");
    let (refused, refusal) =
        Connection::noted(&home).map_or_else(Default::default, |last| (last.refused, last.refusal));
    let (state, since_s) = ("connecting".into(), clock::unix_time_s());
    let mut connection = Connection { state, since_s, job: None, refused, refusal };
    let counted = SiteMetrics::default();
    let counters = counted.clone();
    let (name, serves_metrics) = (config.name.clone(), config.metrics);
    let mut note = move |notice: Notice| {
        count(&counters, &notice);
        match notice {
            Notice::Connected => {
                connection.state = "connected".into();
                connection.since_s = clock::unix_time_s();
                println!("{} is connected to {}", config.name, config.coordinator);
            }
            Notice::Disconnected { reason } => {
                tracing::warn!("{reason}; trying again");
                connection.state = reason;
                connection.since_s = clock::unix_time_s();
            }
            Notice::Decided { name, decision: Decision::Accepted, .. } => {
                tracing::info!("took part in job {name}");
                connection.job = Some(format!("{name}: accepted"));
            }
            Notice::Decided { job, name, decision: Decision::Waiting, reason } => {
                tracing::warn!("job {name} ({}): {}", job.short(), reason.unwrap_or_default());
                connection.job = Some(format!("{name}: waiting for approval"));
            }
            Notice::Decided { name, reason, .. } => {
                let reason = reason.unwrap_or_default();
                tracing::warn!("refused job {name}: {reason}");
                connection.job = Some(format!("{name}: refused: {reason}"));
            }
            Notice::Renewed => {
                println!("{} has a new certificate", config.name);
                return;
            }
            Notice::JobEnded { job } => tracing::info!("job {} ended", job.short()),
            Notice::Refused { job, round, outcome } => {
                let text = format!("round {round} of job {}: {outcome}: {}", job.short(), outcome.reason());
                tracing::warn!("not counted: {text}");
                Refusals::note(&mut connection.refused, job, round, outcome);
                connection.refusal = Some(text);
            }
            Notice::Sent { .. } => return,
        }
        let text = serde_json::to_string(&connection).unwrap_or_default();
        if let Err(error) = write_whole(&status_path, text.as_bytes()) {
            tracing::warn!(%error, "status.json could not be written");
        }
    };
    let span = telemetry::site_span(site.membership.credentials().identity.site());
    let outcome = runtime.block_on(async {
        let measured = async {
            let Some(address) = serves_metrics else { return std::future::pending().await };
            let (listener, address) = metrics::listen(address).await?;
            println!("{name} serves metrics on http://{address}/metrics");
            match metrics::serve(listener, || measure(&site, &counted)).await {}
        };
        tokio::select! {
            outcome = session::run(&site, &mut note).instrument(span) => Ok(outcome?),
            outcome = measured => outcome,
            () = asked_to_end(end_with_stdin) => Ok(()),
        }
    });
    runtime.shutdown_background();
    outcome
}

/// Counts what happened.
fn count(metrics: &SiteMetrics, notice: &Notice) {
    match notice {
        Notice::Connected => {
            metrics.connected.set(1);
            metrics.connections.inc();
        }
        Notice::Disconnected { .. } => {
            metrics.connected.set(0);
        }
        Notice::Decided { decision, .. } => metrics.decided(match decision {
            Decision::Accepted => "accepted",
            Decision::Waiting => "waiting",
            _ => "refused",
        }),
        Notice::JobEnded { .. } => {
            metrics.jobs_ended.inc();
        }
        Notice::Sent { .. } => {
            metrics.contributions.inc();
        }
        // What became of contributions is counted at the coordinator.
        Notice::Renewed | Notice::Refused { .. } => {}
    }
}

/// The metrics as they are now.
fn measure(site: &Site, metrics: &SiteMetrics) -> String {
    {
        let budget = site.workplace.budget.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cap = budget.balance().policy().map_or(site.policy.cap, |policy| policy.cap);
        let spent = budget.balance().spent_at(clock::unix_time_s(), cap.delta);
        metrics.epsilon_spent.set(spent.spent);
        metrics.epsilon_reserved.set(spent.reserved);
        metrics.epsilon_cap.set(cap.epsilon.value());
    }
    if let Ok(validity) = tls::validity_of(&site.membership.credentials().chain[0]) {
        metrics.certificate_expiry.set(validity.not_after_s as i64);
    }
    telemetry::to_text(&metrics.registry())
}

/// Where a site stands, from its home folder alone.
#[derive(Debug, Clone, Serialize)]
pub struct SiteState {
    /// What the operator calls it.
    pub name: String,
    /// Host and port of the coordinator.
    pub coordinator: String,
    /// "connected", why not, or "not running".
    pub connection: String,
    /// The last job that was accepted or refused.
    pub last_job: Option<String>,
    /// The last contribution that the coordinator did not count, and why.
    pub last_refusal: Option<String>,
    /// Epsilon that the customer who paid most has spent.
    pub epsilon_spent: f64,
    /// The same with what running jobs have set aside.
    pub epsilon_reserved: f64,
    /// The cap.
    pub epsilon_cap: f64,
    /// The cap's delta.
    pub delta: f64,
    /// Days over which the cap holds; None for good.
    pub period_days: Option<u32>,
    /// Epsilon spent since the ledger began.
    pub epsilon_lifetime: f64,
    /// The most epsilon one job may ask for.
    pub epsilon_per_job: f64,
    /// Whether jobs wait for approval.
    pub approval: Approval,
    /// Jobs that wait for it.
    pub jobs_waiting: u64,
    /// Public key of the officer who must sign the next policy.
    pub officer: Option<String>,
    /// Updates that left.
    pub updates_released: u64,
    /// Evaluations that left.
    pub evaluations_released: u64,
    /// Bytes that left, paid for by the ledger.
    pub bytes_released: u64,
    /// Entries in the ledger.
    pub ledger_entries: u64,
}

impl SiteState {
    /// Reads the home at `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let home = Home::at(folder);
        let config = home.config()?;
        let (_, mut policy) = home.policy()?;
        let mut state = Self {
            name: config.name,
            coordinator: config.coordinator,
            connection: "not running".into(),
            last_job: None,
            last_refusal: None,
            epsilon_spent: 0.0,
            epsilon_reserved: 0.0,
            epsilon_cap: policy.cap.epsilon.value(),
            delta: policy.cap.delta.value(),
            period_days: None,
            epsilon_lifetime: 0.0,
            epsilon_per_job: 0.0,
            approval: Approval::Auto,
            jobs_waiting: 0,
            officer: None,
            updates_released: 0,
            evaluations_released: 0,
            bytes_released: 0,
            ledger_entries: 0,
        };
        if home.ledger().exists() {
            let chain = read_ledger(&home.ledger(), |entry| {
                if let Body::Released { kind, len, .. } = &entry.body {
                    state.bytes_released += len;
                    match kind {
                        ReleaseKind::Update => state.updates_released += 1,
                        ReleaseKind::Evaluation => state.evaluations_released += 1,
                    }
                }
            })?;
            state.ledger_entries = chain.len();
            if let Some(in_force) = chain.balance().policy() {
                policy = in_force.clone();
                let spent = chain.balance().spent_at(clock::unix_time_s(), policy.cap.delta);
                (state.epsilon_spent, state.epsilon_reserved) = (spent.spent, spent.reserved);
                state.epsilon_lifetime = spent.lifetime;
            }
        }
        (state.epsilon_cap, state.delta) = (policy.cap.epsilon.value(), policy.cap.delta.value());
        state.period_days = policy.cap.period_days;
        state.epsilon_per_job = policy.jobs.max_epsilon.value();
        state.approval = policy.jobs.approval;
        state.officer = policy.officer.map(|officer| officer.public_key);
        let cases = Approvals::at(&home.approvals()).all()?;
        state.jobs_waiting = cases.iter().filter(|case| case.verdict == Verdict::Waiting).count() as u64;
        if let Some(connection) = Connection::noted(&home) {
            state.last_job = connection.job;
            state.last_refusal = connection.refusal;
            if is_running(&home) {
                state.connection = connection.state;
            }
        }
        Ok(state)
    }

    fn to_text(&self) -> String {
        let period = match self.period_days {
            Some(days) => {
                format!(" in any {days} days; {:.3} since the ledger began", self.epsilon_lifetime)
            }
            None => " for good".into(),
        };
        let signer = match &self.officer {
            Some(key) => format!("changes signed by officer {}", &key[..8.min(key.len())]),
            None => "no officer signs its changes".into(),
        };
        let waiting = match self.jobs_waiting {
            0 => "none waits".into(),
            jobs => format!("{jobs} waiting, see `weighhouse client jobs`"),
        };
        let rows = [
            ("site", self.name.clone()),
            ("coordinator", format!("{} ({})", self.coordinator, self.connection)),
            (
                "privacy spent",
                format!(
                    "epsilon {:.3} of {} at delta {:e}{period}",
                    self.epsilon_spent, self.epsilon_cap, self.delta
                ),
            ),
            ("set aside", format!("epsilon {:.3} with running jobs", self.epsilon_reserved)),
            (
                "policy",
                format!(
                    "at most epsilon {} a job; approval {} ({waiting}); {signer}",
                    self.epsilon_per_job, self.approval
                ),
            ),
            (
                "released",
                format!(
                    "{} updates, {} evaluations, {} bytes, each paid for in the ledger",
                    self.updates_released, self.evaluations_released, self.bytes_released
                ),
            ),
            ("last job", self.last_job.clone().unwrap_or_else(|| "none yet".into())),
            ("last not counted", self.last_refusal.clone().unwrap_or_else(|| "none".into())),
        ];
        let rows: Vec<Vec<String>> =
            rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        table(&["", ""], &rows).lines().skip(2).collect::<Vec<_>>().join("\n")
    }
}

/// Whether a daemon holds the home's ledger.
fn is_running(home: &Home) -> bool {
    let Ok(file) = std::fs::File::open(home.ledger()) else { return false };
    matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}
