//! `weighhouse policy …`: the data-protection officer's key, signature and view of a site's policy.

use crate::output::{Format, FormatArgument, print_json, table};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::Serialize;
use std::path::{Path, PathBuf};
use weighhouse_client::budget::read_ledger;
use weighhouse_client::home::{Home, POLICY, load_policy, signature_path};
use weighhouse_client::policy::{Review, Signature, review, rules};
use weighhouse_shared::config::write_whole;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ledger::Chain;
use weighhouse_shared::policy::{Officer, Policy, PolicyText};

#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Make the officer's key; keep it away from the site's machine
    #[command(
        after_help = "Example:\n  weighhouse policy new-key officer.key >> policy.toml\n\nPrints the lines that name the officer, for the end of policy.toml; then sign it."
    )]
    NewKey {
        /// File to write
        file: PathBuf,
    },
    /// Sign a policy; writes policy.toml.sig beside it
    #[command(
        after_help = "Examples:\n  weighhouse policy sign --home berlin --key officer.key\n  weighhouse policy sign policy.toml --key officer.key\n\nA copy of policy.toml elsewhere will do: bring both files back to the site's folder and restart its daemon."
    )]
    Sign {
        #[command(flatten)]
        which: Which,
        /// The officer's key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Say whether a policy is valid, who signed it, what it changes, and whether the daemon takes it
    #[command(
        after_help = "Example:\n  weighhouse policy check --home berlin\n\nExit code 1 if the daemon would refuse it."
    )]
    Check {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show the policy in force
    #[command(after_help = "Example:\n  weighhouse policy show --home berlin --format json")]
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: FormatArgument,
    },
}

/// Which policy is meant.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// Policy file; without it, the one in the site's folder
    file: Option<PathBuf>,
    /// Folder made by `weighhouse client join` [default: site-home, if no file is given]
    #[arg(long, env = "WEIGHHOUSE_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
}

impl Which {
    /// The site's folder; None for a file elsewhere.
    fn home(&self) -> Option<Home> {
        match (&self.file, &self.home) {
            (Some(_), None) => None,
            (_, folder) => Some(Home::at(folder.as_deref().unwrap_or(Path::new("site-home")))),
        }
    }

    fn path(&self) -> PathBuf {
        let in_home = || self.home().map_or_else(|| POLICY.into(), |home| home.path(POLICY));
        self.file.clone().unwrap_or_else(in_home)
    }

    /// The site's ledger, if there is one to be seen.
    fn ledger(&self) -> Result<Option<Chain>> {
        let ledger = self.home().map(|home| home.ledger()).filter(|path| path.exists());
        Ok(ledger.map(|path| read_ledger(&path, |_| {})).transpose()?)
    }
}

pub fn run(verb: PolicyVerb) -> Result<()> {
    match verb {
        PolicyVerb::NewKey { file } => new_key(&file),
        PolicyVerb::Sign { which, key } => sign(&which.path(), &key),
        PolicyVerb::Check { which, format } => check(&which, format.format),
        PolicyVerb::Show { which, format } => show(&which, format.format),
    }
}

/// The lines of policy.toml that name the holder of `key`.
fn officer_lines(key: &Identity) -> String {
    format!("[officer]\npublic_key = \"{}\"", Officer::of(key).public_key)
}

fn new_key(file: &Path) -> Result<()> {
    let key = Identity::generate()?;
    key.save_new(file)?;
    eprintln!("wrote {}; keep it away from the site's machine", file.display());
    // Nothing else on standard output: it can be appended to the policy as it is.
    println!("{}", officer_lines(&key));
    Ok(())
}

fn sign(path: &Path, key: &Path) -> Result<()> {
    let (PolicyText { text, .. }, policy) = load_policy(path)?;
    let key = Identity::load(key)?;
    let own = Officer::of(&key);
    let signed = PolicyText::signed(text, &key);
    let file = signature_path(path);
    let line = signed.signature.unwrap_or_default() + "\n";
    write_whole(&file, line.as_bytes()).with_context(|| format!("cannot write {}", file.display()))?;
    println!("signed {} as officer {}; wrote {}", path.display(), own.short(), file.display());
    match policy.officer {
        Some(named) if named == own => {}
        Some(named) => println!(
            "note: the policy names another officer, {}: once it is in force, only that officer's signature \
             changes it",
            named.short()
        ),
        None => println!(
            "note: the policy names no officer, so anyone may change it once it is in force. To be asked, add \
             these lines at its end and sign again:\n{}",
            officer_lines(&key)
        ),
    }
    Ok(())
}

fn check(which: &Which, format: Format) -> Result<()> {
    let path = which.path();
    let (text, policy) = load_policy(&path)?;
    let chain = which.ledger()?;
    let review = review(&text, &policy, chain.as_ref().map(Chain::balance));
    match format {
        Format::Json => print_json(&review)?,
        Format::Text => print_review(&path, &review, chain.is_some()),
    }
    match review.refusal {
        Some(reason) => bail!("the daemon would refuse {}: {reason}", path.display()),
        None => Ok(()),
    }
}

fn print_review(path: &Path, review: &Review, has_ledger: bool) {
    println!("{} is a valid policy", path.display());
    println!(
        "signed by: {}",
        match &review.signature {
            Signature::Missing => "nobody".to_owned(),
            Signature::Valid { officer } => format!("officer {officer}"),
            Signature::Unknown => "a key that is no officer's, or over another text".to_owned(),
        }
    );
    let value = |value: &Option<serde_json::Value>| {
        value.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
    };
    for change in &review.changes {
        println!("changes: {} from {} to {}", change.key, value(&change.from), value(&change.to));
    }
    match (review.in_force, has_ledger, &review.refusal) {
        (true, ..) => println!("it is the policy in force"),
        (false, false, None) => println!("a site without a ledger takes it; none was looked at here"),
        (false, true, None) => println!("the daemon takes it when it starts next"),
        (.., Some(_)) => {}
    }
}

/// The policy in force.
#[derive(Debug, Serialize)]
struct Shown {
    /// Whether a ledger says so; otherwise this is the file as it stands.
    in_force: bool,
    /// Whether the file is another by now.
    file_differs: bool,
    /// Whether the officer named in it signed it.
    signed: bool,
    policy: Policy,
}

fn show(which: &Which, format: Format) -> Result<()> {
    let (file, policy) = load_policy(&which.path())?;
    let chain = which.ledger()?;
    let balance = chain.as_ref().map(Chain::balance);
    let current = balance.and_then(|balance| balance.policy_text().zip(balance.policy()));
    let (text, policy) = current.map_or((&file, &policy), |current| current);
    let shown = Shown {
        in_force: current.is_some(),
        file_differs: text != &file,
        signed: policy.officer.as_ref().is_some_and(|officer| text.is_signed_by(officer)),
        policy: policy.clone(),
    };
    if format == Format::Json {
        return print_json(&shown);
    }
    let rows: Vec<Vec<String>> =
        rules(&shown.policy).into_iter().map(|(key, value)| vec![key, value.to_string()]).collect();
    println!("{}", table(&["rule", "value"], &rows));
    if !shown.in_force {
        println!("not in force yet: the daemon has not started with it");
    } else if shown.file_differs {
        println!("policy.toml is another by now: see `weighhouse policy check`");
    }
    Ok(())
}
