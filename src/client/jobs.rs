//! `weighhouse client jobs`, `approve`, `refuse`: what was offered to a site, and what its people decide.

use crate::client::{Refusals, noted_refusals};
use crate::output::{Format, print_json, table};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use weighhouse_client::approvals::{Approvals, Case, Verdict};
use weighhouse_client::budget::{preview, read_ledger};
use weighhouse_client::home::Home;
use weighhouse_client::policy::{asked_epsilon, charges, check};
use weighhouse_shared::clock;
use weighhouse_shared::ids::JobId;
use weighhouse_shared::ledger::{Balance, Body, Charge, LedgerRule};
use weighhouse_shared::policy::{ModelKind, Policy};

/// Where an offered job stands at this site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Waiting,
    Approved,
    Refused,
    Running,
    Ended,
}

/// An offered job.
#[derive(Debug, Serialize)]
struct SiteJob {
    job: JobId,
    name: String,
    /// None for a job that ran without being asked about: the ledger keeps its charges only.
    model: Option<ModelKind>,
    /// What it asks of the customers who pay most, at the cap's delta.
    epsilon: f64,
    /// What a waiting job would bring the site to.
    epsilon_would_be: Option<f64>,
    epsilon_cap: f64,
    delta: f64,
    state: State,
    offered_s: u64,
    decided_s: Option<u64>,
    /// What the coordinator did not count; None if it told of nothing.
    refused: Option<Refusals>,
}

/// What deciding needs to know of a site.
struct Desk {
    approvals: Approvals,
    policy: Policy,
    balance: Balance,
    /// Reservations in the ledger: when, name, charges.
    reserved: BTreeMap<JobId, (u64, String, Vec<Charge>)>,
    refused: BTreeMap<JobId, Refusals>,
}

impl Desk {
    fn read(folder: &Path) -> Result<Self> {
        let home = Home::at(folder);
        home.config()?;
        let approvals = Approvals::at(&home.approvals());
        let mut reserved = BTreeMap::new();
        if !home.ledger().exists() {
            bail!(
                "nothing was offered here yet: start the daemon with `weighhouse client serve --home {}`",
                folder.display()
            );
        }
        let chain = read_ledger(&home.ledger(), |entry| {
            if let Body::Reserved { job, name, charges } = &entry.body {
                reserved.insert(*job, (entry.time_s, name.clone(), charges.clone()));
            }
        })?;
        let balance = chain.balance().clone();
        let policy = balance.policy().cloned().context("the ledger has no policy yet; start the daemon")?;
        let refused = noted_refusals(&home);
        Ok(Self { approvals, policy, balance, reserved, refused })
    }

    fn is_running(&self, job: JobId) -> bool {
        self.balance.running_jobs().any(|running| running == job)
    }

    /// What approving `case` would bring the site to.
    fn preview(&self, case: &Case) -> Result<f64, LedgerRule> {
        let name = &case.contract.name;
        preview(&self.balance, case.job, name, charges(&case.contract), clock::unix_time_s())
    }

    fn row(&self, case: &Case) -> SiteJob {
        let state = match case.verdict {
            Verdict::Waiting => State::Waiting,
            Verdict::Refused => State::Refused,
            Verdict::Approved if self.is_running(case.job) => State::Running,
            Verdict::Approved => State::Approved,
            Verdict::Ended => State::Ended,
        };
        let would_be = (state == State::Waiting).then(|| match self.preview(case) {
            Ok(would_be) => Some(would_be),
            Err(LedgerRule::OverCap { would_be, .. }) => Some(would_be),
            Err(_) => None,
        });
        SiteJob {
            job: case.job,
            name: case.contract.name.clone(),
            model: Some(ModelKind::from(&case.contract.model)),
            epsilon: asked_epsilon(&charges(&case.contract), self.policy.cap.delta).0,
            epsilon_would_be: would_be.flatten(),
            epsilon_cap: self.policy.cap.epsilon.value(),
            delta: self.policy.cap.delta.value(),
            state,
            offered_s: case.offered_s,
            decided_s: case.decided_s,
            refused: self.refused.get(&case.job).cloned(),
        }
    }

    /// All jobs, oldest first: those put before the site's people, and those that ran without.
    fn jobs(&self) -> Result<Vec<SiteJob>> {
        let cases = self.approvals.all()?;
        let unasked = |job: &JobId| cases.iter().all(|case| case.job != *job);
        let from_ledger = self.reserved.iter().filter(|(job, _)| unasked(job));
        let mut jobs: Vec<SiteJob> = from_ledger
            .map(|(job, (time_s, name, charges))| SiteJob {
                job: *job,
                name: name.clone(),
                model: None,
                epsilon: asked_epsilon(charges, self.policy.cap.delta).0,
                epsilon_would_be: None,
                epsilon_cap: self.policy.cap.epsilon.value(),
                delta: self.policy.cap.delta.value(),
                state: if self.is_running(*job) { State::Running } else { State::Ended },
                offered_s: *time_s,
                decided_s: Some(*time_s),
                refused: self.refused.get(job).cloned(),
            })
            .collect();
        jobs.extend(cases.iter().map(|case| self.row(case)));
        jobs.sort_by_key(|job| (job.offered_s, job.job));
        Ok(jobs)
    }

    /// Approves one waiting job; what became of it, for people.
    fn approve(&mut self, case: &Case) -> Result<String> {
        let (job, name) = (case.job, case.contract.name.as_str());
        match case.verdict {
            Verdict::Waiting => {}
            Verdict::Approved => return Ok(format!("job {} ({name}) is approved already", job.short())),
            Verdict::Refused => bail!(
                "job {} ({name}) was refused here, for good; its operator may submit it again",
                job.short()
            ),
            Verdict::Ended => bail!("job {} ({name}) has ended", job.short()),
        }
        let cannot = || format!("job {} ({name}) cannot be approved", job.short());
        check(&case.contract, &self.policy).with_context(cannot)?;
        let would_be = self.preview(case).with_context(cannot)?;
        let heard = self.approvals.decide(case, Verdict::Approved, clock::unix_time_s())?;
        // With --all, the next one comes on top of it.
        let body = Body::Reserved { job, name: name.into(), charges: charges(&case.contract) };
        if !self.is_running(job) {
            self.balance.apply(u64::MAX, self.balance.time_s(), &body)?;
        }
        let when = if heard { "at once" } else { "when the daemon runs" };
        let cap = self.policy.cap.epsilon;
        Ok(format!(
            "approved job {} ({name}): it starts {when}; epsilon may reach {would_be:.3} of {cap}",
            job.short()
        ))
    }
}

/// `client jobs`.
pub fn list(folder: &Path, format: Format) -> Result<()> {
    let jobs = Desk::read(folder)?.jobs()?;
    match format {
        Format::Json => print_json(&jobs)?,
        Format::Text if jobs.is_empty() => println!("no job was offered here yet"),
        Format::Text => println!("{}", jobs_table(&jobs)),
    }
    Ok(())
}

/// `client approve`: one job, or all that wait. Those that can be paid are approved even if others cannot.
pub fn approve(folder: &Path, job: Option<&str>) -> Result<()> {
    let mut desk = Desk::read(folder)?;
    let Some(job) = job else {
        let mut waiting = desk.approvals.all()?;
        waiting.retain(|case| case.verdict == Verdict::Waiting);
        if waiting.is_empty() {
            println!("no job waits for approval");
        }
        let mut refused = Vec::new();
        for case in &waiting {
            match desk.approve(case) {
                Ok(line) => println!("{line}"),
                Err(error) => refused.push(format!("{error:#}")),
            }
        }
        return if refused.is_empty() { Ok(()) } else { bail!("{}", refused.join("; ")) };
    };
    let case = desk.approvals.named(job)?;
    println!("{}", desk.approve(&case)?);
    Ok(())
}

/// `client refuse`.
pub fn refuse(folder: &Path, job: &str) -> Result<()> {
    let desk = Desk::read(folder)?;
    let case = desk.approvals.named(job)?;
    let (short, name) = (case.job.short(), &case.contract.name);
    match case.verdict {
        Verdict::Ended => bail!("job {short} ({name}) has ended; there is nothing left to refuse"),
        Verdict::Refused => println!("job {short} ({name}) is refused already"),
        Verdict::Waiting | Verdict::Approved => {
            let heard = desk.approvals.decide(&case, Verdict::Refused, clock::unix_time_s())?;
            let when = if heard { "now" } else { "when the daemon runs" };
            println!("refused job {short} ({name}); the coordinator is told {when}, without a reason");
        }
    }
    Ok(())
}

fn jobs_table(jobs: &[SiteJob]) -> String {
    let row = |job: &SiteJob| {
        let would_be = job.epsilon_would_be.map_or_else(
            || "-".to_owned(),
            |would_be| match would_be > job.epsilon_cap {
                true => format!("{would_be:.3}, over the cap of {}", job.epsilon_cap),
                false => format!("{would_be:.3} of {}", job.epsilon_cap),
            },
        );
        vec![
            job.job.short(),
            job.name.clone(),
            job.model.map_or_else(|| "-".to_owned(), |model| model.to_string()),
            format!("{:.3} at {:e}", job.epsilon, job.delta),
            would_be,
            format!("{:?}", job.state).to_lowercase(),
            job.refused.as_ref().map_or_else(|| "-".to_owned(), Refusals::counts_text),
        ]
    };
    let header = ["job", "name", "model", "epsilon at delta", "would reach", "state", "not counted"];
    table(&header, &jobs.iter().map(row).collect::<Vec<_>>())
}
