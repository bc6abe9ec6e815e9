//! What daemons tell whoever runs them: the names of spans and metrics, and the counters behind these. Nothing here
//! depends on anyone's records: counts of connections, jobs and rounds, epsilon as the contracts say it, dates of
//! certificates. No durations and sizes of a site's work: these grow with its customers.
//!
//! Spans carry `site`, `job` and `round`, cut to the first characters as everywhere people read them. Metrics are
//! served on loopback and nowhere else, and only if `metrics` is set in the daemon's settings
//! ([`manual::production`](crate::manual::production) has the table).

use crate::ids::{JobId, RoundId, SiteId};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use tracing::Span;

/// What a daemon does for one site, or the site itself.
pub fn site_span(site: SiteId) -> Span {
    tracing::info_span!("site", site = %site.short())
}

/// What is done for a job.
pub fn job_span(job: JobId) -> Span {
    tracing::info_span!("job", job = %job.short())
}

/// What is done for a round of a job.
pub fn round_span(job: JobId, round: RoundId) -> Span {
    tracing::info_span!("round", job = %job.short(), round = round.0)
}

/// An address on loopback: nobody but this machine can connect to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SocketAddr")]
pub struct LoopbackAddress(SocketAddr);

/// An address that others can connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "metrics are served on loopback only, such as 127.0.0.1:9464, not on {got}; let a local agent fetch them"
)]
pub struct NotLoopback {
    got: SocketAddr,
}

impl TryFrom<SocketAddr> for LoopbackAddress {
    type Error = NotLoopback;

    fn try_from(address: SocketAddr) -> Result<Self, NotLoopback> {
        if address.ip().is_loopback() { Ok(Self(address)) } else { Err(NotLoopback { got: address }) }
    }
}

impl From<LoopbackAddress> for SocketAddr {
    fn from(address: LoopbackAddress) -> Self {
        address.0
    }
}

/// One label of a counter.
type Label = [(&'static str, &'static str); 1];

/// A site's daemon.
#[derive(Debug, Clone, Default)]
pub struct SiteMetrics {
    /// `weighhouse_site_connected`: 1 while the coordinator knows this site.
    pub connected: Gauge,
    /// `weighhouse_site_connections_total`: times it came to be connected.
    pub connections: Counter,
    /// `weighhouse_site_decisions_total`, by `decision`: answers to jobs.
    pub decisions: Family<Label, Counter>,
    /// `weighhouse_site_jobs_ended_total`: jobs it took part in that are over.
    pub jobs_ended: Counter,
    /// `weighhouse_site_contributions_total`: rounds for which something was sent or skipped.
    pub contributions: Counter,
    /// `weighhouse_site_epsilon_spent`: what the customer who paid most has paid, as `client status` says it.
    pub epsilon_spent: Gauge<f64, AtomicU64>,
    /// `weighhouse_site_epsilon_reserved`: the same with what running jobs have set aside.
    pub epsilon_reserved: Gauge<f64, AtomicU64>,
    /// `weighhouse_site_epsilon_cap`: the policy's cap.
    pub epsilon_cap: Gauge<f64, AtomicU64>,
    /// `weighhouse_site_certificate_expiry_timestamp_seconds`: when its certificate ends.
    pub certificate_expiry: Gauge,
}

impl SiteMetrics {
    /// Counts a decision: `accepted`, `refused` or `waiting`.
    pub fn decided(&self, decision: &'static str) {
        self.decisions.get_or_create(&[("decision", decision)]).inc();
    }

    /// All of them under their names.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("weighhouse_site");
        let all = self.clone();
        registry.register("connected", "1 while the coordinator knows this site", all.connected);
        registry.register("connections", "Times it came to be connected", all.connections);
        registry.register("decisions", "Answers to jobs", all.decisions);
        registry.register("jobs_ended", "Jobs it took part in that are over", all.jobs_ended);
        registry.register(
            "contributions",
            "Rounds for which something was sent or skipped",
            all.contributions,
        );
        registry.register("epsilon_spent", "Paid by the customer who paid most", all.epsilon_spent);
        registry.register(
            "epsilon_reserved",
            "The same with what running jobs set aside",
            all.epsilon_reserved,
        );
        registry.register("epsilon_cap", "The cap of the policy", all.epsilon_cap);
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When its certificate ends",
            all.certificate_expiry,
        );
        registry
    }
}

/// A coordinator's daemon.
#[derive(Debug, Clone, Default)]
pub struct CoordinatorMetrics {
    /// `weighhouse_coordinator_sites_online`: sites whose session is open.
    pub sites_online: Gauge,
    /// `weighhouse_coordinator_jobs_running`: jobs that are not over.
    pub jobs_running: Gauge,
    /// `weighhouse_coordinator_rounds_committed_total`: rounds whose model is on disk.
    pub rounds_committed: Counter,
    /// `weighhouse_coordinator_contributions_total`, by `outcome`: what became of updates and evaluations.
    pub contributions: Family<Label, Counter>,
    /// `weighhouse_coordinator_certificate_expiry_timestamp_seconds`: when its certificate ends.
    pub certificate_expiry: Gauge,
}

impl CoordinatorMetrics {
    /// Counts a contribution by its outcome.
    pub fn contributed(&self, outcome: &'static str) {
        self.contributions.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// All of them under their names.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("weighhouse_coordinator");
        let all = self.clone();
        registry.register("sites_online", "Sites whose session is open", all.sites_online);
        registry.register("jobs_running", "Jobs that are not over", all.jobs_running);
        registry.register("rounds_committed", "Rounds whose model is on disk", all.rounds_committed);
        registry.register("contributions", "What became of updates and evaluations", all.contributions);
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When its certificate ends",
            all.certificate_expiry,
        );
        registry
    }
}

/// The metrics in the OpenMetrics text format, which Prometheus reads.
pub fn to_text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to a string does not fail");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in `text`, with the suffix that counters have.
    fn names(text: &str) -> Vec<String> {
        let described = |line: &str| {
            let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            Some(if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        };
        text.lines().filter_map(described).collect()
    }

    #[test]
    fn the_manuals_table_has_every_metric_and_no_other() {
        let (site, coordinator) = (SiteMetrics::default(), CoordinatorMetrics::default());
        site.decided("accepted");
        coordinator.contributed("admitted");
        let mut told = names(&to_text(&site.registry()));
        told.extend(names(&to_text(&coordinator.registry())));
        let manual = include_str!("manual/production.rs");
        let mut in_table: Vec<String> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("//! | `weighhouse_")?.split_once('`'))
            .map(|(name, _)| format!("weighhouse_{name}"))
            .collect();
        told.sort();
        in_table.sort();
        assert_eq!(told.len(), 14);
        assert_eq!(told, in_table);
    }

    #[test]
    fn counts_stand_in_the_text() {
        let metrics = SiteMetrics::default();
        metrics.connected.set(1);
        metrics.decided("refused");
        metrics.decided("refused");
        metrics.epsilon_spent.set(1.5);
        let text = to_text(&metrics.registry());
        for line in [
            "weighhouse_site_connected 1",
            "weighhouse_site_decisions_total{decision=\"refused\"} 2",
            "weighhouse_site_epsilon_spent 1.5",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn only_loopback_is_taken() {
        #[derive(Debug, Deserialize)]
        struct Settings {
            metrics: LoopbackAddress,
        }
        let read = |address: &str| toml::from_str::<Settings>(&format!("metrics = \"{address}\""));
        for address in ["127.0.0.1:9464", "[::1]:9464"] {
            assert_eq!(SocketAddr::from(read(address).unwrap().metrics), address.parse().unwrap());
        }
        for address in ["0.0.0.0:9464", "10.0.0.1:9464", "[::]:9464"] {
            assert!(read(address).unwrap_err().to_string().contains("on loopback only"), "{address}");
        }
    }
}
