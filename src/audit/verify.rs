//! `weighhouse audit verify`: one line a check, each passed, failed with its place, or not made and why.

use super::outgoing::{self, Checked};
use super::{MAX_LEDGER_LEN, read, read_plain};
use crate::output::{Format, FormatArgument, plain, print_json, wrapped};
use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use weighhouse_shared::clock;
use weighhouse_shared::config::load_text;
use weighhouse_shared::identity::public_key_from_hex;
use weighhouse_shared::ids::{ContentHash, SiteId};
use weighhouse_shared::ledger::{Audited, Report, WitnessFault, read_witnesses, short};
use weighhouse_shared::tls;

/// The largest file of a key or a certificate, in bytes.
const MAX_CERTIFICATE_LEN: u64 = 1 << 16;

#[derive(Debug, clap::Args)]
pub struct VerifyArguments {
    /// The ledger's file
    #[arg(value_name = "LEDGER")]
    ledger: PathBuf,
    /// The site's public key, got from elsewhere: 64 hexadecimal digits, or a file with them or with its certificate
    #[arg(long, value_name = "HEX|FILE")]
    key: Option<String>,
    /// What the coordinator witnessed [default: witnesses.jsonl beside the ledger]
    #[arg(long, value_name = "FILE")]
    witnesses: Option<PathBuf>,
    /// The coordinator's certificate [default: coordinator.crt beside the ledger]
    #[arg(long, value_name = "FILE")]
    coordinator: Option<PathBuf>,
    /// The federation's authority, which signed the coordinator's [default: authority.crt beside the ledger]
    #[arg(long, value_name = "FILE")]
    authority: Option<PathBuf>,
    /// Folder of captured items, or a copy of the site's outbox: each must have been released
    #[arg(long, value_name = "FOLDER")]
    outgoing: Option<PathBuf>,
    /// The policy that ought to be in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgument,
}

impl VerifyArguments {
    /// With nothing but the ledger, and what is beside it.
    pub fn of_ledger(ledger: PathBuf) -> Self {
        Self {
            ledger,
            key: None,
            witnesses: None,
            coordinator: None,
            authority: None,
            outgoing: None,
            policy: None,
            format: FormatArgument { format: Format::Text },
        }
    }

    /// A file named on the command line, else the one beside the ledger if it is there.
    fn beside(&self, named: &Option<PathBuf>, name: &str) -> Option<PathBuf> {
        named.clone().or_else(|| Some(self.ledger.parent()?.join(name)).filter(|path| path.exists()))
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// It was not made; the text says why.
    NotChecked,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// The line of the ledger at fault, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// In plain words.
    pub text: String,
}

/// All checks of a ledger.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Whether nothing failed.
    pub holds: bool,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// Hash of the last line: what to compare with a copy kept elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<ContentHash>,
    /// Entries in it.
    pub entries: u64,
}

/// Something did not hold.
#[derive(Debug)]
struct DoesNotHold(String);

impl fmt::Display for DoesNotHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the ledger does not hold: {}", self.0)
    }
}

impl std::error::Error for DoesNotHold {}

impl Verification {
    fn note(&mut self, name: &'static str, outcome: Outcome, text: impl Into<String>) {
        self.holds &= outcome != Outcome::Failed;
        self.checks.push(Check { name, outcome, line: None, text: text.into() });
    }

    fn fail_at(&mut self, name: &'static str, line: u64, text: impl Into<String>) {
        self.holds = false;
        self.checks.push(Check { name, outcome: Outcome::Failed, line: Some(line), text: text.into() });
    }

    /// Ok if all holds, else the first fault.
    pub fn outcome(&self) -> Result<()> {
        match self.checks.iter().find(|check| check.outcome == Outcome::Failed) {
            Some(check) => Err(DoesNotHold(plain(&check.text)).into()),
            None => Ok(()),
        }
    }

    fn to_text(&self) -> String {
        let word = |outcome| match outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAULT",
            Outcome::NotChecked => "--",
        };
        let line = |check: &Check| {
            let words = wrapped(&plain(&check.text), 18);
            format!("{:<5}  {:<9}  {words}", word(check.outcome), check.name)
        };
        let mut text = self.checks.iter().map(line).collect::<Vec<_>>().join("\n");
        if let Some(head) = self.head {
            text += &format!("\n\n{} entries; the last line's hash is {head}", self.entries);
        }
        text
    }
}

pub fn run(arguments: &VerifyArguments) -> Result<()> {
    let (verification, _) = verify(arguments)?;
    match arguments.format.format {
        Format::Json => print_json(&verification)?,
        Format::Text => println!("{}", verification.to_text()),
    }
    verification.outcome()
}

/// Makes every check for which there is something to go by; with the ledger, if all its lines hold. Errors if a file
/// that was asked for cannot be read.
pub fn verify(arguments: &VerifyArguments) -> Result<(Verification, Option<Audited>)> {
    let expected = arguments.key.as_deref().map(expected_key).transpose()?;
    let mut verification = Verification { holds: true, checks: Vec::new(), head: None, entries: 0 };
    // Before the ledger: a daemon that runs meanwhile must not seem to lack the lines it is just writing.
    let witnesses = arguments.beside(&arguments.witnesses, "witnesses.jsonl");
    let witnesses = witnesses.map(|path| read_plain(&path, MAX_LEDGER_LEN)).transpose()?;
    let audited = match read(&arguments.ledger, |_| ())? {
        Ok(audited) => audited,
        Err(fault) => {
            verification.fail_at("lines", fault.line as u64, fault.to_string());
            for name in ["key", "witnesses", "outgoing", "policy"] {
                verification.note(
                    name,
                    Outcome::NotChecked,
                    "only a ledger whose every line holds can be compared",
                );
            }
            return Ok((verification, None));
        }
    };
    verification.entries = audited.chain.len();
    if let Some(torn) = audited.torn {
        verification.fail_at(
            "lines",
            audited.chain.len() + 1,
            format!(
                "line {} of the ledger has no end: {} bytes of an entry whose writing was cut off, or of which \
                 something was cut away; a daemon that was interrupted mends it when it next starts",
                audited.chain.len() + 1,
                torn.bytes
            ),
        );
    }
    // Figures as of the last entry, so that the same ledger always gives the same result.
    match audited.report(None) {
        None => verification.fail_at("lines", 1, "line 1 of the ledger is missing: the ledger is empty"),
        Some(report) => check_lines(&mut verification, &audited, &report, expected),
    }
    check_witnesses(&mut verification, arguments, witnesses.as_deref(), &audited)?;
    check_outgoing(&mut verification, arguments.outgoing.as_deref(), &audited)?;
    check_policy(&mut verification, arguments.policy.as_deref(), &audited)?;
    Ok((verification, Some(audited)))
}

fn check_lines(
    verification: &mut Verification,
    audited: &Audited,
    report: &Report,
    expected: Option<[u8; 32]>,
) {
    verification.head = Some(report.head);
    if audited.torn.is_none() {
        verification.note(
            "lines",
            Outcome::Passed,
            format!(
                "all {} are signed by the site's key and fastened to the line before; {} to {} UTC",
                report.entries,
                clock::utc_text(report.began_s),
                clock::utc_text(report.last_s)
            ),
        );
    }
    let key = &report.public_key;
    match expected {
        Some(expected) if audited.chain.public_key() != Some(&expected) => {
            verification.fail_at(
                "key",
                1,
                format!("line 1 of the ledger names the key {key}, which is not the one expected"),
            );
        }
        Some(_) => verification.note("key", Outcome::Passed, format!("{key}, as expected")),
        None => verification.note(
            "key",
            Outcome::NotChecked,
            format!("{key}, trusted on first use: compare it with one you got elsewhere, or pass --key"),
        ),
    }
    let wasted: u64 = report.jobs.iter().map(|job| job.wasted).sum();
    verification.note(
        "rules",
        Outcome::Passed,
        format!(
            "each of {} releases was set aside, paid and then bound to its bytes, and the cap was never passed{}",
            report.releases.len(),
            if wasted == 0 { String::new() } else { format!("; {wasted} debits were paid for nothing that left") }
        ),
    );
    verification.note(
        "epsilon",
        Outcome::Passed,
        format!(
            "every line states what its entries add up to; spent {} of {} at delta {:e} by the Renyi figure, which is \
             enforced and holds for jobs chosen in sight of earlier releases; since it began {}",
            short(report.spent.spent),
            report.cap_epsilon,
            report.delta,
            short(report.spent.lifetime)
        ),
    );
    // The certified figure never exceeds the Renyi one, and its bounds never cross.
    let (period, lifetime) = (report.period, report.lifetime);
    verification.note(
        "certified",
        Outcome::Passed,
        format!(
            "between {} and {} (since it began: {} and {}) by privacy loss distributions, for exactly these releases as a \
             plan fixed beforehand, with the discreteness of the noise counted",
            short(period.certified_lower),
            short(period.certified_upper),
            short(lifetime.certified_lower),
            short(lifetime.certified_upper)
        ),
    );
}

/// The coordinator's key, by its certificate and the authority's, valid at `at_s`; and the authority's fingerprint.
fn coordinator_key(authority: &Path, coordinator: &Path, at_s: u64) -> Result<([u8; 32], ContentHash)> {
    let certificate = |path: &Path| {
        let pem = read_plain(path, MAX_CERTIFICATE_LEN)?;
        tls::from_pem(&pem).with_context(|| format!("{} does not hold a certificate", path.display()))
    };
    let (authority_certificate, certificate) = (certificate(authority)?, certificate(coordinator)?);
    match tls::verified_coordinator_key(&authority_certificate, &certificate, at_s) {
        Ok(key) => Ok((key, ContentHash::of(&authority_certificate))),
        Err(error) => Err(anyhow!(
            "{} is not a coordinator's certificate by {}: {error}",
            coordinator.display(),
            authority.display()
        )),
    }
}

fn check_witnesses(
    verification: &mut Verification,
    arguments: &VerifyArguments,
    lines: Option<&[u8]>,
    audited: &Audited,
) -> Result<()> {
    let name = "witnesses";
    let Some(lines) = lines else {
        let text = "there is no witnesses.jsonl beside the ledger; only witnesses show that no later line was cut off";
        verification.note(name, Outcome::NotChecked, text);
        return Ok(());
    };
    let files = (
        arguments.beside(&arguments.authority, "authority.crt"),
        arguments.beside(&arguments.coordinator, "coordinator.crt"),
    );
    let (Some(authority), Some(coordinator)) = files else {
        if arguments.witnesses.is_some() {
            bail!("witnesses need the certificates that signed them: pass --coordinator and --authority");
        }
        let text = "coordinator.crt or authority.crt is missing beside the ledger: pass --coordinator and --authority";
        verification.note(name, Outcome::NotChecked, text);
        return Ok(());
    };
    // An audit may come years later: a certificate need only have been valid when the ledger ended.
    let key = coordinator_key(&authority, &coordinator, audited.chain.balance().time_s())
        .or_else(|_| coordinator_key(&authority, &coordinator, clock::unix_time_s()));
    let (key, fingerprint) = match key {
        Ok(known) => known,
        Err(error) => {
            verification.note(name, Outcome::Failed, format!("{error:#}"));
            return Ok(());
        }
    };
    let mut latest: Option<(u64, u64)> = None;
    let (mut count, mut items) = (0, 0);
    for read in read_witnesses(lines, &key) {
        // An empty ledger has no site: any witness shows that it was set back.
        let checked = read.and_then(|(line, witness)| {
            let site = site_of(audited).unwrap_or(witness.site);
            audited.trail.check(site, &witness, line).map(|()| witness)
        });
        match checked {
            Ok(witness) => {
                count += 1;
                items += witness.received.len();
                latest = latest.max(Some((witness.head.entries, witness.time_s)));
            }
            Err(fault) => {
                let line = match &fault {
                    WitnessFault::SetBack { entries, .. } => Some(entries + 1),
                    WitnessFault::Rewritten { entry } => Some(*entry),
                    _ => None,
                };
                match line {
                    Some(line) => verification.fail_at(name, line, fault.to_string()),
                    None => verification.note(name, Outcome::Failed, fault.to_string()),
                }
                return Ok(());
            }
        }
    }
    match latest {
        None => verification.note(name, Outcome::NotChecked, "the file of witnesses holds none"),
        Some((entries, time_s)) => verification.note(
            name,
            Outcome::Passed,
            format!(
                "the coordinator's {count} agree: the last, of {} UTC, saw the ledger up to line {entries} of {}; each of \
                 {items} items it received was released; the authority's fingerprint is {fingerprint}",
                clock::utc_text(time_s),
                audited.chain.len()
            ),
        ),
    }
    Ok(())
}

fn site_of(audited: &Audited) -> Option<SiteId> {
    audited.chain.public_key().map(SiteId::of_public_key)
}

fn check_outgoing(verification: &mut Verification, folder: Option<&Path>, audited: &Audited) -> Result<()> {
    let name = "outgoing";
    let Some(folder) = folder else {
        let text = "pass --outgoing FOLDER with captured items or the site's outbox";
        verification.note(name, Outcome::NotChecked, text);
        return Ok(());
    };
    let Checked { items, faults } = outgoing::check(folder, &audited.trail)?;
    if items == 0 {
        verification.note(name, Outcome::NotChecked, format!("{} holds no item", folder.display()));
    } else if faults.is_empty() {
        let text = format!("each of {items} items in {} was released, by hash and length", folder.display());
        verification.note(name, Outcome::Passed, text);
    }
    for fault in faults {
        verification.note(name, Outcome::Failed, fault);
    }
    Ok(())
}

fn check_policy(verification: &mut Verification, path: Option<&Path>, audited: &Audited) -> Result<()> {
    let name = "policy";
    let Some((line, policy)) = audited.policy() else { return Ok(()) };
    let Some(path) = path else {
        let text = format!("line {line} set the policy in force; pass --policy FILE to compare it");
        verification.note(name, Outcome::NotChecked, text);
        return Ok(());
    };
    if load_text(path)? == policy.text {
        let text = format!("{} is the policy in force, set by line {line}", path.display());
        verification.note(name, Outcome::Passed, text);
    } else {
        let text =
            format!("the policy in force, set by line {line} of the ledger, is not {}", path.display());
        verification.fail_at(name, line, text);
    }
    Ok(())
}

/// A public key as it is given to an auditor.
fn expected_key(text: &str) -> Result<[u8; 32]> {
    if let Some(key) = public_key_from_hex(text.trim()) {
        return Ok(key);
    }
    let path = Path::new(text);
    if !path.exists() {
        bail!("--key `{text}` is neither 64 hexadecimal digits nor a file");
    }
    let bytes = read_plain(path, MAX_CERTIFICATE_LEN)?;
    let in_hex = std::str::from_utf8(&bytes).ok().and_then(|text| public_key_from_hex(text.trim()));
    let in_certificate = || tls::public_key_of(&tls::from_pem(&bytes).ok()?).ok();
    in_hex
        .or_else(in_certificate)
        .with_context(|| format!("{} holds neither 64 hexadecimal digits nor a certificate", path.display()))
}
