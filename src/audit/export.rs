//! Entries as flat rows, for spreadsheets and programs.

use super::kind_text;
use anyhow::Result;
use serde::Serialize;
use weighhouse_shared::clock;
use weighhouse_shared::ledger::{Body, Charge, Entry, Population};
use weighhouse_shared::policy::{Policy, PolicyText};
use weighhouse_shared::privacy::Mechanism;

/// An entry; a reservation of several charges is several rows with the same line. What an entry does not have is
/// null, or empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// Counted from 1.
    line: u64,
    time_utc: String,
    time_s: u64,
    entry: &'static str,
    job: Option<String>,
    name: Option<String>,
    round: Option<u32>,
    release: Option<&'static str>,
    bytes: Option<u64>,
    content: Option<String>,
    /// Line of the debit that paid.
    paid_by_line: Option<u64>,
    customers: Option<&'static str>,
    noise_multiplier: Option<f64>,
    sampling_rate: Option<f64>,
    steps: Option<u32>,
    statistic: Option<&'static str>,
    sigma: Option<f64>,
    sensitivity: Option<u64>,
    clip_norm: Option<f64>,
    cap_epsilon: Option<f64>,
    cap_delta: Option<f64>,
    period_days: Option<u32>,
    policy: Option<String>,
    epsilon_after: f64,
    previous: String,
}

impl Row {
    fn charged(self, charge: &Charge) -> Self {
        Self {
            customers: Some(match charge.population {
                Population::Training => "training",
                Population::Holdout => "holdout",
            }),
            noise_multiplier: Some(charge.event.noise_multiplier.value()),
            sampling_rate: Some(charge.event.sampling_rate.value()),
            steps: Some(charge.event.steps),
            ..self
        }
    }

    fn drawn(self, mechanism: &Mechanism) -> Self {
        let (statistic, sensitivity, clip_norm) = match mechanism {
            Mechanism::ClippedGradientSum { sensitivity, clip_norm, .. } => {
                ("clipped_gradient_sum", *sensitivity, Some(clip_norm.value()))
            }
            Mechanism::NoiseShare { sensitivity, clip_norm, .. } => {
                ("noise_share", *sensitivity, Some(clip_norm.value()))
            }
            Mechanism::Histogram { sensitivity, .. } => ("histogram", *sensitivity, None),
        };
        let (statistic, sensitivity) = (Some(statistic), Some(sensitivity));
        Self { statistic, sigma: Some(mechanism.sigma()), sensitivity, clip_norm, ..self }
    }

    fn ruled(self, policy: &PolicyText) -> Self {
        let cap = Policy::parse(&policy.text).ok().map(|policy| policy.cap);
        Self {
            cap_epsilon: cap.map(|cap| cap.epsilon.value()),
            cap_delta: cap.map(|cap| cap.delta.value()),
            period_days: cap.and_then(|cap| cap.period_days),
            policy: Some(policy.text.clone()),
            ..self
        }
    }
}

/// The rows of one entry.
pub fn rows(entry: &Entry) -> Vec<Row> {
    let row = |kind| Row {
        line: entry.sequence + 1,
        time_utc: clock::utc_text(entry.time_s),
        time_s: entry.time_s,
        entry: kind,
        epsilon_after: entry.spent_epsilon,
        previous: entry.previous.to_string(),
        ..Row::default()
    };
    match &entry.body {
        Body::Opened { policy, .. } => vec![row("opened").ruled(policy)],
        Body::PolicySet { policy } => vec![row("policy_set").ruled(policy)],
        Body::Reserved { job, name, charges } => {
            let reserved = Row { job: Some(job.to_string()), name: Some(name.clone()), ..row("reserved") };
            match charges.is_empty() {
                true => vec![reserved],
                false => charges.iter().map(|charge| reserved.clone().charged(charge)).collect(),
            }
        }
        Body::Debited { job, round, charge, mechanism } => {
            let debited = Row { job: Some(job.to_string()), round: Some(round.0), ..row("debited") };
            vec![debited.charged(charge).drawn(mechanism)]
        }
        Body::Released { job, round, kind, debit, content, len } => vec![Row {
            job: Some(job.to_string()),
            round: Some(round.0),
            release: Some(kind_text(*kind)),
            bytes: Some(*len),
            content: Some(content.to_string()),
            paid_by_line: Some(debit + 1),
            ..row("released")
        }],
        Body::Returned { job } => vec![Row { job: Some(job.to_string()), ..row("returned") }],
    }
}

/// `rows` as CSV with a header. A text that a spreadsheet would take for a formula begins with an apostrophe.
pub fn csv(rows: &[Row]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        let name = row.name.as_deref().map(as_text);
        let policy = row.policy.as_deref().map(as_text);
        writer.serialize(Row { name, policy, ..row.clone() })?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// CSV injection: a cell whose first character is one of these is run by spreadsheets (OWASP, "CSV Injection").
fn as_text(text: &str) -> String {
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠') => {
            format!("'{text}")
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ids::{ContentHash, JobId, SiteId};

    fn reserved(name: &str) -> Entry {
        Entry {
            sequence: 6,
            previous: ContentHash::of(b""),
            time_s: 0,
            site: SiteId::of_public_key(&[0; 32]),
            body: Body::Reserved { job: JobId::from_bytes([1; 32]), name: name.into(), charges: Vec::new() },
            spent_epsilon: 0.5,
        }
    }

    #[test]
    fn a_job_name_cannot_become_a_formula_and_comes_back_whole() {
        for name in ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"] {
            let text = csv(&rows(&reserved(name))).unwrap();
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            let at = reader.headers().unwrap().iter().position(|column| column == "name").unwrap();
            let record = reader.records().next().unwrap().unwrap();
            assert_eq!(record[at], format!("'{name}"));
        }
        let text = csv(&rows(&reserved("a \"b\", c"))).unwrap();
        assert!(text.contains("7,1970-01-01 00:00:00,0,reserved"), "{text}");
        assert!(text.contains("\"a \"\"b\"\", c\""), "{text}");
    }
}
