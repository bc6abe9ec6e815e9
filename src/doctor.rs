//! `weighhouse doctor`: looks at a home folder, of a site or of a coordinator, and at what is around it. Gathers the
//! facts; what they mean is [`checks`]'s.

mod checks;

use crate::error::Unwell;
use crate::operator::Operator;
use crate::output::{Format, FormatArgument, print_json, table};
use anyhow::{Result, bail};
use checks::{Finding, Subject};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weighhouse_client::budget::read_ledger;
use weighhouse_client::home::Home as SiteHome;
use weighhouse_client::policy::review;
use weighhouse_client::records::{self, Split};
use weighhouse_client::session::probe;
use weighhouse_coordinator::authority::{VOUCHED_FOR, fits};
use weighhouse_coordinator::home::Home as CoordinatorHome;
use weighhouse_coordinator::store::Store;
use weighhouse_shared::clock;
use weighhouse_shared::config::Draft;
use weighhouse_shared::ledger::Chain;
use weighhouse_shared::tls;

/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct DoctorArguments {
    /// Folder made by `weighhouse client join` or `weighhouse coordinator init` [default: site-home, else
    /// coordinator-home, whichever is there]
    #[arg(long, env = "WEIGHHOUSE_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgument,
}

pub fn run(arguments: DoctorArguments) -> Result<()> {
    let homes =
        arguments.home.map_or_else(|| vec!["site-home".into(), "coordinator-home".into()], |home| vec![home]);
    let side = homes.iter().find_map(|home| Side::of(home).map(|side| (home, side)));
    let Some((home, side)) = side else {
        bail!(
            "{} is no home: it has neither client.toml nor coordinator.toml; name one with --home",
            homes[0].display()
        )
    };
    let findings = match side {
        Side::Site => site(home)?,
        Side::Coordinator => coordinator(home)?,
    };
    match arguments.format.format {
        Format::Json => print_json(&findings)?,
        Format::Text => println!("{}", text(&findings)),
    }
    match findings.iter().filter(|finding| finding.cure.is_some()).count() {
        0 => Ok(()),
        problems => Err(Unwell { home: home.clone(), problems }.into()),
    }
}

fn text(findings: &[Finding]) -> String {
    let row = |finding: &Finding| {
        let verdict = if finding.cure.is_some() { "PROBLEM" } else { "PASSED" };
        let cure = finding.cure.as_ref().map_or_else(String::new, |cure| format!("; cure: {cure}"));
        let subject = format!("{:?}", finding.subject).to_lowercase();
        vec![verdict.to_owned(), subject, format!("{}{cure}", finding.found)]
    };
    let rows: Vec<Vec<String>> = findings.iter().map(row).collect();
    table(&["", "", ""], &rows).lines().skip(2).collect::<Vec<_>>().join("\n")
}

/// Whose home a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Site,
    Coordinator,
}

impl Side {
    fn of(home: &Path) -> Option<Self> {
        let sides = [(Self::Site, "client.toml"), (Self::Coordinator, "coordinator.toml")];
        sides.into_iter().find(|(_, file)| home.join(file).exists()).map(|(side, _)| side)
    }
}

fn site(folder: &Path) -> Result<Vec<Finding>> {
    let (home, now_s) = (SiteHome::at(folder), clock::unix_time_s());
    let mut findings = Vec::new();
    let config = home.config();
    findings.push(checks::readable(
        Subject::Settings,
        config.as_ref().map(|config| format!("client.toml of {}", config.name)),
        "correct client.toml",
    ));
    let ledger = home.ledger().exists().then(|| read_ledger(&home.ledger(), |_| {}));
    let chain = ledger.as_ref().and_then(|ledger| ledger.as_ref().ok());
    let newest = chain.map(|chain| (chain.balance().time_s(), "the ledger's newest entry"));
    findings.push(checks::clock(now_s, newest));
    findings.push(checks::key(&home.path("site.key"), mode(&home.path("site.key"))));
    let credentials = home.credentials();
    let own = credentials.as_ref().ok().map(|(_, credentials)| credentials);
    let validity = own.and_then(|own| tls::validity_of(&own.chain[0]).ok());
    let key = own.and_then(|own| tls::public_key_of(&own.chain[0]).ok());
    let fits = own.is_some_and(|own| key == Some(own.identity.public_key()));
    let renewal = "run the daemon, which has it renewed; if it has expired, join again with a new invite";
    findings.push(checks::certificate("site.crt", validity, fits, now_s, renewal));
    if let (Ok(config), Ok((authority, credentials))) = (&config, &credentials) {
        let connected = crate::operator::block_on(async {
            let probing = probe(&config.coordinator, credentials, authority.clone());
            Ok(tokio::time::timeout(PATIENCE, probing).await.ok())
        })?;
        let connected = connected.as_ref().map(|connected| connected.as_ref().copied());
        findings.push(checks::coordinator(&config.coordinator, connected));
    }
    findings.push(disk(folder));
    let policy = home.policy();
    findings.push(match &policy {
        Ok((text, policy)) => checks::policy(&review(text, policy, chain.map(Chain::balance))),
        Err(error) => {
            checks::readable(Subject::Policy, Err::<&str, _>(error), "correct it; `weighhouse policy check`")
        }
    });
    if let Some(ledger) = &ledger {
        let found =
            ledger.as_ref().map(|chain| format!("{} entries, each signed and in its place", chain.len()));
        let cure =
            "keep the file as it is and show it to the data-protection officer; `weighhouse audit verify`";
        findings.push(checks::readable(Subject::Ledger, found, cure));
    }
    let Ok(config) = config else { return Ok(findings) };
    let schema = home.schema(&config);
    let described =
        schema.as_ref().map(|schema| format!("{} with {} features", schema.name, schema.features.len()));
    findings.push(checks::readable(Subject::Schema, described, "correct the schema"));
    if let (Ok(schema), Ok((_, policy)), Some(own)) = (&schema, &policy, own) {
        let holdout_permille = (config.data.holdout * 1000.0).round() as u32;
        let split = Split { site: own.identity.site(), holdout_permille };
        findings.push(match records::load(&home.data_files(&config), schema, split) {
            Ok(records) => {
                let customers = records.training.customers() + records.holdout.customers();
                checks::data(policy, customers as u64)
            }
            Err(error) => checks::readable(Subject::Data, Err::<&str, _>(&error), "correct the records"),
        });
    }
    Ok(findings)
}

fn coordinator(folder: &Path) -> Result<Vec<Finding>> {
    let (home, now_s) = (CoordinatorHome::at(folder), clock::unix_time_s());
    let mut findings = Vec::new();
    let config = home.config();
    findings.push(checks::readable(
        Subject::Settings,
        config.as_ref().map(|config| format!("coordinator.toml, reached at {}", config.public_address)),
        "correct coordinator.toml",
    ));
    findings.push(checks::clock(now_s, None));
    for (name, holder) in VOUCHED_FOR {
        let path = home.path(&format!("{name}.key"));
        findings.push(checks::key(&path, mode(&path)));
        let credentials = home.credentials(name).ok();
        let own = credentials.as_ref().map(|credentials| &credentials.chain[0]);
        let validity = own.and_then(|own| tls::validity_of(own).ok());
        // An expired one is told apart from another's: whether it fits is asked for a time within its life.
        let at_s =
            validity.map_or(now_s, |validity| now_s.clamp(validity.not_before_s, validity.not_after_s));
        let fits = credentials.as_ref().is_some_and(|credentials| {
            let authority = home.authority();
            authority.is_ok_and(|authority| {
                fits(&authority, &credentials.chain[0], &credentials.identity, holder, at_s)
            })
        });
        let renewal = "weighhouse coordinator renew --authority-key FILE, or `coordinator install` if another organisation signs";
        findings.push(checks::certificate(&format!("{name}.crt"), validity, fits, now_s, renewal));
    }
    findings.push(disk(folder));
    let Ok(config) = config else { return Ok(findings) };
    let answers = crate::operator::block_on(async {
        let connecting = tokio::time::timeout(PATIENCE, Operator::connect(folder)).await;
        Ok(matches!(connecting, Ok(Ok(_))))
    })?;
    if answers {
        findings.push(checks::answering(&home.noted_address()?.to_string()));
        return Ok(findings);
    }
    let bound = std::net::UdpSocket::bind(config.listen).map(drop).map_err(|error| error.kind());
    findings.push(checks::listening(config.listen, bound));
    let state = home.path("state");
    if state.exists() {
        let opened = Store::open(&state).and_then(|store| store.sites());
        let found = opened.as_ref().map(|sites| format!("{} sites are on the roster", sites.len()));
        findings.push(checks::readable(Subject::State, found, "restore the home from a backup"));
    }
    Ok(findings)
}

fn disk(home: &Path) -> Finding {
    let written = Draft::create(&home.join("doctor")).and_then(|draft| draft.file().sync_all());
    let space = rustix::fs::statvfs(home).ok();
    checks::disk(home, written, space.map(|space| space.f_bavail.saturating_mul(space.f_frsize)))
}

#[cfg(unix)]
fn mode(path: &Path) -> io::Result<u32> {
    std::fs::metadata(path).map(|metadata: Metadata| std::os::unix::fs::MetadataExt::mode(&metadata))
}
