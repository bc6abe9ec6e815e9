//! `weighhouse site …`: who may take part.

use crate::operator::{HomeArgument, Operator, block_on};
use crate::output::{Format, FormatArgument, print_json, table};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::path::{Path, PathBuf};
use weighhouse_shared::config::write_whole;
use weighhouse_shared::tls::to_pem;
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, Invite, ListSites, OperatorToCoordinator, Revoke, SiteSummary,
};

#[derive(Debug, Subcommand)]
pub enum SiteVerb {
    /// Print a one-time invite for a new site
    #[command(after_help = "Example:\n  weighhouse site invite berlin-mitte")]
    Invite {
        /// What you will call the site
        name: String,
        /// Hours for which the invite is good
        #[arg(long, default_value_t = 72, value_parser = clap::value_parser!(u32).range(1..=8760), value_name = "HOURS")]
        valid: u32,
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show all sites and where they stand
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Hand out what the coordinator has witnessed of a site's ledger, for an audit
    #[command(
        after_help = "Example:\n  weighhouse site witnesses berlin-mitte --output witnesses.jsonl --certificate coordinator.crt\n\nOne signed witness a line. An auditor holds them against the ledger with the coordinator's certificate, which the authority signed."
    )]
    Witnesses {
        /// The site's name
        name: String,
        /// File to write instead of standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// File for the coordinator's certificate (PEM), whose key signed them
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Keep a site out from now on; takes effect on its live connection
    #[command(after_help = "Example:\n  weighhouse site revoke berlin-mitte")]
    Revoke {
        /// The site's name
        name: String,
        #[command(flatten)]
        home: HomeArgument,
    },
}

pub fn run(verb: SiteVerb) -> Result<()> {
    match verb {
        SiteVerb::Invite { name, valid, home, format } => {
            let invite =
                block_on(async { invite(&Operator::connect(&home.home).await?, &name, valid).await })?;
            match format.format {
                Format::Text => println!("{invite}"),
                Format::Json => print_json(&serde_json::json!({ "site": name, "invite": invite }))?,
            }
        }
        SiteVerb::List { home, format } => {
            let request = OperatorToCoordinator::ListSites(ListSites {});
            let answer = block_on(async { Operator::connect(&home.home).await?.request(&request).await })?;
            let CoordinatorToOperator::Sites(sites) = answer else {
                bail!("the coordinator answered another question")
            };
            match format.format {
                Format::Json => print_json(&sites)?,
                Format::Text => println!("{}", site_table(&sites)),
            }
        }
        SiteVerb::Witnesses { name, output, certificate, home, format } => {
            let (lines, der) =
                block_on(async { Operator::connect(&home.home).await?.witnesses(&name).await })?;
            let write = |path: &Path, text: &str| {
                write_whole(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
            };
            if let Some(path) = &certificate {
                write(path, &to_pem(&der))?;
            }
            if let Some(path) = &output {
                write(path, &lines)?;
            }
            let count = lines.lines().count();
            match (format.format, &output) {
                (Format::Text, None) => print!("{lines}"),
                (Format::Text, Some(path)) => println!("{count} witnesses of {name} in {}", path.display()),
                (Format::Json, Some(_)) => {
                    print_json(&serde_json::json!({ "site": name, "witnesses": count }))?
                }
                (Format::Json, None) => {
                    let witnesses = lines.lines().map(serde_json::from_str::<serde_json::Value>);
                    let witnesses = witnesses.collect::<Result<Vec<_>, _>>()?;
                    let certificate = to_pem(&der);
                    print_json(
                        &serde_json::json!({ "site": name, "witnesses": witnesses, "certificate": certificate }),
                    )?;
                }
            }
        }
        SiteVerb::Revoke { name, home } => {
            let request = OperatorToCoordinator::Revoke(Revoke { name: name.clone() });
            block_on(async { Operator::connect(&home.home).await?.request(&request).await })?;
            println!("{name} is revoked; to let it in again, invite it anew");
        }
    }
    Ok(())
}

fn site_table(sites: &[SiteSummary]) -> String {
    if sites.is_empty() {
        return "no site yet; invite one with `weighhouse site invite NAME`".to_owned();
    }
    let id = |site: &SiteSummary| site.id.map_or_else(|| "-".to_owned(), |id| id.short());
    let row = |site: &SiteSummary| vec![site.name.clone(), site.status.to_string(), id(site)];
    table(&["site", "status", "key"], &sites.iter().map(row).collect::<Vec<_>>())
}

/// An invite for a new site named `name`.
pub async fn invite(operator: &Operator, name: &str, valid_hours: u32) -> Result<String> {
    let request = OperatorToCoordinator::Invite(Invite { name: name.into(), valid_s: valid_hours * 3600 });
    match operator.request(&request).await? {
        CoordinatorToOperator::Invited(invited) => Ok(invited.invite),
        _ => bail!("the coordinator answered another question"),
    }
}
