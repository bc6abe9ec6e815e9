//! `weighhouse audit …`: what left a site, what it cost, and whether its ledger holds. Needs no network, no daemon and no
//! private key; `verify` needs no home either.

mod export;
mod outgoing;
mod page;
mod verify;

use crate::output::{Format, FormatArgument, plain, print_json, table, wrapped};
use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weighhouse_client::home::Home;
use weighhouse_shared::clock;
use weighhouse_shared::config::write_whole;
use weighhouse_shared::ledger::{Audited, Entry, JobTotal, LedgerFault, Release, ReleaseKind, Report, short};

/// The largest ledger that is read, in bytes: some three hundred thousand entries.
const MAX_LEDGER_LEN: u64 = 256 << 20;

/// How long a read goes on in silence.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Show what left, when, for which job and at what cost, and what the guarantee means
    #[command(
        after_help = "Examples:\n  weighhouse audit show --home berlin\n  weighhouse audit show berlin/ledger.jsonl --job spring-coupons --since 2026-03-01 --format json"
    )]
    Show {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Check a ledger offline: signatures, rules, every figure, witnesses, outgoing bytes
    #[command(
        after_help = "Ends with 1 if anything does not hold, and names the line.\n\nExamples:\n  weighhouse audit verify berlin/ledger.jsonl\n  weighhouse audit verify ledger.jsonl --key site.key.hex --witnesses witnesses.jsonl --coordinator coordinator.crt --authority authority.crt\n  weighhouse audit verify berlin/ledger.jsonl --outgoing berlin/outbox --policy berlin/policy.toml"
    )]
    Verify(verify::VerifyArguments),
    /// Write one page for the file: guarantee, spending, jobs, releases, policies, verification
    #[command(
        after_help = "Examples:\n  weighhouse audit report --html berlin.html --home berlin\n  weighhouse audit report --html berlin.html ledger.jsonl"
    )]
    Report {
        /// Page to write
        #[arg(long, value_name = "FILE")]
        html: PathBuf,
        #[command(flatten)]
        source: Source,
    },
    /// Write every entry, flat, for spreadsheets and programs
    #[command(
        after_help = "Example:\n  weighhouse audit export --home berlin --format csv --output berlin.csv"
    )]
    Export {
        #[command(flatten)]
        source: Source,
        /// How to write
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        format: ExportFormat,
        /// File to write; else standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// How entries are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// One JSON array
    #[default]
    Json,
    /// Comma-separated values with a header
    Csv,
}

/// Which ledger.
#[derive(Debug, Clone, clap::Args)]
pub struct Source {
    /// A ledger's file; else that of the home
    #[arg(value_name = "LEDGER")]
    ledger: Option<PathBuf>,
    /// Folder made by `weighhouse client join`
    #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "site-home", value_name = "DIR")]
    home: PathBuf,
}

/// Which releases.
#[derive(Debug, Clone, clap::Args)]
pub struct Filter {
    /// Only this job: its name, or the first digits of its identifier
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Only since this day (UTC)
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = first_second_of)]
    since: Option<u64>,
}

fn first_second_of(text: &str) -> Result<u64, String> {
    clock::first_second_of(text).ok_or_else(|| format!("`{text}` is not a day such as 2026-03-01"))
}

impl Filter {
    fn is_of_job(&self, id: &str, name: &str) -> bool {
        self.job.as_ref().is_none_or(|wanted| name == wanted || (wanted.len() >= 4 && id.starts_with(wanted)))
    }

    fn keep(&self, report: &mut Report) {
        let since = self.since.unwrap_or(0);
        report.releases.retain(|release| {
            release.time_s >= since && self.is_of_job(&release.job.to_string(), &release.name)
        });
        report.jobs.retain(|job| job.last_s >= since && self.is_of_job(&job.job.to_string(), &job.name));
    }
}

pub fn run(verb: AuditVerb) -> Result<()> {
    match verb {
        AuditVerb::Show { source, filter, format } => {
            let mut report =
                report_of(&read_sound(&source.path())?, &source.path(), Some(clock::unix_time_s()))?;
            filter.keep(&mut report);
            match format.format {
                Format::Json => print_json(&Shown { guarantee: report.guarantee(), report: &report }),
                Format::Text => {
                    println!("{}", to_text(&report));
                    Ok(())
                }
            }
        }
        AuditVerb::Verify(arguments) => verify::run(&arguments),
        AuditVerb::Report { html, source } => {
            let path = source.path();
            let (verification, audited) = verify::verify(&verify::VerifyArguments::of_ledger(path.clone()))?;
            let Some(audited) = audited else { return verification.outcome() };
            let report = report_of(&audited, &path, Some(clock::unix_time_s()))?;
            let page = page::page(&report, &verification, &source.name());
            write_whole(&html, page.as_bytes())
                .with_context(|| format!("cannot write {}", html.display()))?;
            println!("wrote {}", html.display());
            verification.outcome()
        }
        AuditVerb::Export { source, format, output } => {
            let (mut rows, path) = (Vec::new(), source.path());
            sound(&path, read(&path, |entry| rows.extend(export::rows(entry)))?)?;
            let text = match format {
                ExportFormat::Json => serde_json::to_string_pretty(&rows)? + "\n",
                ExportFormat::Csv => export::csv(&rows)?,
            };
            match output {
                Some(file) => write_whole(&file, text.as_bytes())
                    .with_context(|| format!("cannot write {}", file.display())),
                None => {
                    print!("{text}");
                    Ok(())
                }
            }
        }
    }
}

impl Source {
    fn path(&self) -> PathBuf {
        self.ledger.clone().unwrap_or_else(|| Home::at(&self.home).ledger())
    }

    /// What the site is called, as far as its home says.
    fn name(&self) -> Option<String> {
        let folder = match &self.ledger {
            Some(ledger) => ledger.parent()?.to_owned(),
            None => self.home.clone(),
        };
        Home::at(&folder).config().ok().map(|config| config.name)
    }
}

/// The bytes of a plain file of at most `limit` bytes.
fn read_plain(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let metadata = std::fs::metadata(path).with_context(cannot)?;
    if !metadata.is_file() {
        bail!("{} is not a plain file", path.display());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .with_context(cannot)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(cannot)?;
    if bytes.len() as u64 > limit {
        bail!("{} is longer than {limit} bytes", path.display());
    }
    Ok(bytes)
}

/// Reads and checks the ledger at `path`, and says how far it is if that takes long.
fn read(path: &Path, mut each: impl FnMut(&Entry)) -> Result<Result<Audited, LedgerFault>> {
    let bytes = read_plain(path, MAX_LEDGER_LEN)?;
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    let mut said = Instant::now();
    Ok(Audited::read(&bytes, |entry| {
        each(entry);
        if said.elapsed() > PATIENCE {
            said = Instant::now();
            eprintln!("checked {} of {lines} lines", entry.sequence + 1);
        }
    }))
}

fn sound(path: &Path, audited: Result<Audited, LedgerFault>) -> Result<Audited> {
    audited.with_context(|| {
        format!(
            "the privacy ledger {} has been damaged or tampered with; see `weighhouse audit verify`",
            path.display()
        )
    })
}

fn read_sound(path: &Path) -> Result<Audited> {
    sound(path, read(path, |_| ())?)
}

fn report_of(audited: &Audited, path: &Path, as_of_s: Option<u64>) -> Result<Report> {
    audited.report(as_of_s).with_context(|| {
        format!(
            "the ledger {} is empty: the site's daemon writes its first entry when it first runs",
            path.display()
        )
    })
}

/// What `show` prints as JSON.
#[derive(serde::Serialize)]
struct Shown<'a> {
    guarantee: Vec<String>,
    #[serde(flatten)]
    report: &'a Report,
}

/// A name from elsewhere, at a length that fits a table.
fn short_name(name: &str) -> String {
    let name = plain(name);
    match name.char_indices().nth(32) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

fn kind_text(kind: ReleaseKind) -> &'static str {
    match kind {
        ReleaseKind::Update => "update",
        ReleaseKind::Evaluation => "evaluation",
    }
}

/// `digits` digits that say something.
fn significant(value: f64, digits: usize) -> String {
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if (-4..7).contains(&magnitude) {
        format!("{value:.*}", (digits as i32 - 1 - magnitude).max(0) as usize)
    } else {
        format!("{value:.*e}", digits - 1)
    }
}

fn release_row(release: &Release) -> Vec<String> {
    vec![
        release.line.to_string(),
        clock::utc_text(release.time_s),
        short_name(&release.name),
        release.round.to_string(),
        kind_text(release.kind).to_owned(),
        release.bytes.to_string(),
        release.content.short(),
        significant(release.noise_multiplier, 4),
        significant(release.sigma, 4),
        release.sampling_rate.to_string(),
        release.steps.to_string(),
        short(release.epsilon_after),
    ]
}

const RELEASE_HEADER: [&str; 12] = [
    "line",
    "when (UTC)",
    "job",
    "round",
    "what",
    "bytes",
    "hash",
    "noise",
    "sigma",
    "rate",
    "steps",
    "epsilon after",
];

fn job_row(job: &JobTotal) -> Vec<String> {
    vec![
        job.job.short(),
        short_name(&job.name),
        clock::utc_text(job.began_s),
        clock::utc_text(job.last_s),
        job.updates.to_string(),
        job.evaluations.to_string(),
        job.wasted.to_string(),
        job.bytes.to_string(),
        short(job.epsilon),
        if job.running { "running" } else { "ended" }.to_owned(),
    ]
}

const JOB_HEADER: [&str; 10] = [
    "job",
    "name",
    "began (UTC)",
    "last",
    "updates",
    "evaluations",
    "wasted",
    "bytes",
    "epsilon alone",
    "state",
];

/// What is enforced and what is certified, a figure a row.
fn figure_rows(report: &Report) -> Vec<Vec<String>> {
    let row = |name: String, value: f64, note: String| vec![name, short(value), note];
    let window = report.period_days.map_or("for good".to_owned(), |days| format!("last {days} days"));
    let certified = |figures: &weighhouse_shared::ledger::Figures| {
        format!(
            "certified: {} to {}, as a plan fixed beforehand",
            short(figures.certified_lower),
            short(figures.certified_upper)
        )
    };
    let mut rows = vec![
        row("cap".into(), report.cap_epsilon, format!("{window}, delta {:e}", report.delta)),
        row("spent".into(), report.spent.spent, certified(&report.period)),
        row("set aside".into(), report.spent.reserved, "spent, with what running jobs still hold".into()),
    ];
    if report.period_days.is_some() {
        rows.push(row("since it began".into(), report.spent.lifetime, certified(&report.lifetime)));
    }
    if let Some(epsilon) = report.without_masks {
        rows.push(row(
            "without masks".into(),
            epsilon,
            "if secure sums protected nothing: the site's own shares alone".into(),
        ));
    }
    rows.push(row(
        format!("at {} site{}", report.max_sites, if report.max_sites == 1 { "" } else { "s" }),
        report.at_max_sites.renyi,
        format!("a customer known at so many (customers.max_sites); {}", certified(&report.at_max_sites)),
    ));
    rows
}

fn to_text(report: &Report) -> String {
    let releases: Vec<Vec<String>> = report.releases.iter().map(release_row).collect();
    let jobs: Vec<Vec<String>> = report.jobs.iter().map(job_row).collect();
    let mut parts = Vec::new();
    if releases.is_empty() {
        parts.push("no release".to_owned());
    } else {
        parts.push(table(&RELEASE_HEADER, &releases));
        parts.push(table(&JOB_HEADER, &jobs));
    }
    parts.push(table(&["", "epsilon", ""], &figure_rows(report)));
    parts.extend(report.guarantee().iter().map(|paragraph| wrapped(paragraph, 0)));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_the_digits_that_say_something() {
        for (value, text) in
            [(4.20312, "4.203"), (70_516_736.0, "7.052e7"), (0.0, "0.000"), (1e-9, "1.000e-9")]
        {
            assert_eq!(significant(value, 4), text);
        }
    }

    #[test]
    fn a_hostile_name_stays_on_its_line() {
        assert_eq!(short_name("\u{1b}[2Ja\nb"), "\u{fffd}[2Ja\u{fffd}b");
        assert_eq!(short_name(&"é".repeat(40)).chars().count(), 33);
    }
}
