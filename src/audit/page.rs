//! A ledger's report as one page for the screen and for A4 paper.

use super::verify::{Outcome, Verification};
use super::{JOB_HEADER, RELEASE_HEADER, figure_rows, job_row, release_row};
use crate::page::{Axis, Plane, document, escape, step_for};
use std::fmt::Write;
use weighhouse_shared::clock::{DAY_S, utc_date, utc_text};
use weighhouse_shared::ledger::{PolicyVersion, Report, short};

/// Jobs and releases on the page, each; all of them are in `audit export`.
const MAX_ROWS: usize = 1000;

/// Policies on the page.
const MAX_POLICIES: usize = 20;

const INK: &str = "#1d4f6e";
const CAP: &str = "#a4453a";

const STYLE: &str = "\
body{color:#22303a;background:#f6f5f1}main{max-width:60rem;background:#fff;padding:2.6rem 3rem;box-shadow:0 1px 12px #22303a14}\
h1{font:600 1.7rem/1.25 Georgia,serif;margin:0}h2{font:600 1.15rem/1.3 Georgia,serif;margin:2.4rem 0 .6rem;color:#1d4f6e}\
.sub{color:#5d6b75;margin:.3rem 0 1.6rem}.sub code,td code{font-size:.85em;word-break:break-all}\
.words{background:#f1f5f7;border-left:3px solid #1d4f6e;padding:.4rem 1.2rem;margin:0}.words p{margin:.65rem 0}\
.meter{position:relative;height:.9rem;background:#e9eef1;border-radius:.45rem;overflow:hidden;margin:.5rem 0 .3rem}\
.meter i{position:absolute;left:0;top:0;bottom:0;background:#1d4f6e}.meter i.held{background:#9fbccb}\
.state{display:inline-block;padding:.1rem .7rem;border-radius:1rem;font-size:.85rem;background:#e4f0e8;color:#22633e}.state.bad{background:#f8e6e3;color:#a4453a}\
table{font-size:.82rem;font-variant-numeric:tabular-nums}th{font-weight:600;color:#5d6b75}\
td.ok{color:#22633e;font-weight:600}td.bad{color:#a4453a;font-weight:600}td.none{color:#8a959d}\
.wide{overflow-x:auto}.wide table{font-size:.74rem}.wide td,.wide th{padding:.2rem .35rem}.wide td{white-space:nowrap}td.n,th.n{text-align:right}pre{font-size:.78rem;line-height:1.4;white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f5f1;padding:.8rem 1rem}\
@page{size:A4;margin:16mm 14mm}\
@media print{body{background:#fff;font-size:10.5pt}main{max-width:none;margin:0;padding:0;box-shadow:none}\
h2{break-after:avoid}tr,svg,.words{break-inside:avoid}thead{display:table-header-group}.wide{overflow:visible}.wide table{font-size:6.5pt}.wide td,.wide th{padding:.15rem .25rem}\
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}";

/// The page; `name` is what the site is called, if that is known.
pub fn page(report: &Report, verification: &Verification, name: &Option<String>) -> String {
    let site = name.clone().unwrap_or_else(|| report.site.short());
    let title = format!("Privacy report of {site}");
    let mut body = format!(
        "<h1>{}</h1><p class=\"sub\">As of {} UTC · ledger of {} entries since {} · site <code>{}</code> · {}</p>",
        escape(&title),
        utc_text(report.as_of_s),
        report.entries,
        utc_date(report.began_s),
        report.site,
        match verification.holds {
            true => "<span class=\"state\">verified</span>",
            false => "<span class=\"state bad\">does not hold</span>",
        }
    );
    body += "<h2>What is guaranteed</h2><div class=\"words\">";
    for paragraph in report.guarantee() {
        let _ = write!(body, "<p>{}</p>", escape(&paragraph));
    }
    body += "</div><h2>What is spent</h2>";
    body += &meter(report);
    body += &plain_table(&["", "epsilon", ""], figure_rows(report).iter());
    body += "<h2>Spending over time</h2>";
    body += &spending_chart(report);
    body += &match report.period_days {
        Some(days) => format!(
            "<p class=\"note\">Epsilon over the {days} days that end on each day, by the period now in force. The dashed \
             line is the cap.</p>"
        ),
        None => "<p class=\"note\">Epsilon since the ledger began, as its entries state it. The dashed line is the cap.</p>"
            .to_owned(),
    };
    body += "<h2>Verification</h2>";
    body += &checks(verification);
    let jobs = latest(&report.jobs, MAX_ROWS);
    let _ = write!(body, "<h2>Jobs ({})</h2>", report.jobs.len());
    body += &wide_table(&JOB_HEADER, jobs.iter().map(job_row));
    body += "<p class=\"note\">Epsilon alone: what the job's own releases come to; jobs together come to less than the \
             sum. Wasted: paid for, but a crash kept the bytes from leaving.</p>";
    let releases = latest(&report.releases, MAX_ROWS);
    let _ = write!(body, "<h2>Releases ({})</h2>", report.releases.len());
    body += &wide_table(&RELEASE_HEADER, releases.iter().map(release_row));
    body += "<p class=\"note\">Noise: standard deviation over the most that one customer changes. Sigma: the same in the \
             integers that leave. Rate: how likely a customer is in a step. Epsilon after: as enforced, over the cap's \
             period.</p>";
    let versions = latest(&report.policies, MAX_POLICIES);
    let _ = write!(body, "<h2>Policies ({})</h2>", report.policies.len());
    body += &policies(versions);
    if jobs.len() + releases.len() + versions.len()
        < report.jobs.len() + report.releases.len() + report.policies.len()
    {
        body += "<p class=\"note\">Only the latest are on this page; <code>weighhouse audit export</code> has all.</p>";
    }
    document(&title, STYLE, &body)
}

fn latest<T>(items: &[T], most: usize) -> &[T] {
    &items[items.len().saturating_sub(most)..]
}

fn meter(report: &Report) -> String {
    let percent = |epsilon: f64| (epsilon / report.cap_epsilon * 100.0).clamp(0.0, 100.0);
    format!(
        "<div class=\"meter\" role=\"img\" aria-label=\"{spent} of {cap} spent\"><i class=\"held\" style=\"width:{:.2}%\"></i>\
         <i style=\"width:{:.2}%\"></i></div><p class=\"note\">epsilon {spent} of {cap} spent, {} with what running jobs hold</p>",
        percent(report.spent.reserved),
        percent(report.spent.spent),
        short(report.spent.reserved),
        spent = short(report.spent.spent),
        cap = report.cap_epsilon,
    )
}

/// A table; columns of nothing but numbers stand to the right.
fn plain_table<'a>(header: &[&str], rows: impl Iterator<Item = &'a Vec<String>> + Clone) -> String {
    let numeric: Vec<bool> = (0..header.len())
        .map(|column| rows.clone().all(|row| row.get(column).is_some_and(|cell| cell.parse::<f64>().is_ok())))
        .collect();
    let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.zip(&numeric).map(|(cell, numeric)| {
            let class = if *numeric { " class=\"n\"" } else { "" };
            format!("<{name}{class}>{}</{name}>", escape(cell))
        });
        format!("<tr>{}</tr>", cells.collect::<String>())
    };
    let head = line("th", &mut header.iter().copied());
    let body: String = rows.clone().map(|row| line("td", &mut row.iter().map(String::as_str))).collect();
    format!("<table><thead>{head}</thead><tbody>{body}</tbody></table>")
}

fn wide_table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    match rows.is_empty() {
        true => "<p class=\"note\">None.</p>".to_owned(),
        false => format!("<div class=\"wide\">{}</div>", plain_table(header, rows.iter())),
    }
}

fn checks(verification: &Verification) -> String {
    let row = |check: &super::verify::Check| {
        let (class, word) = match check.outcome {
            Outcome::Passed => ("ok", "holds"),
            Outcome::Failed => ("bad", "fault"),
            Outcome::NotChecked => ("none", "not checked"),
        };
        format!(
            "<tr><td class=\"{class}\">{}</td><td>{}</td><td>{}</td></tr>",
            word.replace(' ', "&nbsp;"),
            escape(check.name),
            escape(&check.text)
        )
    };
    let rows: String = verification.checks.iter().map(row).collect();
    let head = verification
        .head
        .map(|head| format!("<p class=\"note\">Hash of the last line: <code>{head}</code></p>"));
    format!("<table><tbody>{rows}</tbody></table>{}", head.unwrap_or_default())
}

/// Corners of the stairs through `points`, up to `end`.
fn stairs(points: &[(f64, f64)], end: f64) -> Vec<(f64, f64)> {
    let mut corners: Vec<(f64, f64)> = Vec::with_capacity(2 * points.len() + 1);
    for point in points {
        if let Some(before) = corners.last() {
            corners.push((point.0, before.1));
        }
        corners.push(*point);
    }
    if let Some(last) = corners.last().copied() {
        corners.push((end.max(last.0), last.1));
    }
    corners
}

fn spending_chart(report: &Report) -> String {
    let (first, last) = (report.began_s as f64, (report.as_of_s as f64).max(report.began_s as f64 + 1.0));
    let caps: Vec<(f64, f64)> =
        report.policies.iter().map(|policy| (policy.since_s as f64, policy.epsilon)).collect();
    let points: Vec<(f64, f64)> =
        report.curve.iter().map(|(time_s, epsilon)| ((*time_s as f64).max(first), *epsilon)).collect();
    let values = caps.iter().chain(&points).map(|(_, value)| *value);
    let high = 1.05 * values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let by_day = report.as_of_s - report.began_s >= 3 * DAY_S;
    let name = |time: f64| match by_day {
        true => utc_date(time as u64),
        false => utc_text(time as u64),
    };
    let ticks = [first, (first + last) / 2.0, last].map(|time| (time, name(time)));
    // In the middle a time within the day would run into its neighbours.
    let ticks = if by_day { ticks.to_vec() } else { vec![ticks[0].clone(), ticks[2].clone()] };
    let across = Axis { low: first, high: last, ticks, label: "" };
    let mut plane = Plane::new(across, Axis::of_steps(0.0, high, step_for(high)), "epsilon spent over time");
    let spent = stairs(&points, last);
    plane.area(&spent, "#1d4f6e14");
    plane.curve(&spent, INK);
    plane.dashes(&stairs(&caps, last), CAP);
    if let Some((_, spent)) = spent.last() {
        // Two names that are near each other stand one above the other.
        let place = spent.min(report.cap_epsilon - 0.07 * high).max(0.0);
        plane.name((last, place), INK, &format!("spent {}", short(*spent)));
    }
    plane.name((last, report.cap_epsilon), CAP, &format!("cap {}", report.cap_epsilon));
    plane.finish()
}

fn policies(versions: &[PolicyVersion]) -> String {
    let version = |policy: &PolicyVersion| {
        let period = policy.period_days.map_or("for good".to_owned(), |days| format!("over any {days} days"));
        format!(
            "<p>Since {} UTC (line {}): epsilon {} {period}, delta {:e}, {}</p><pre>{}</pre>",
            utc_text(policy.since_s),
            policy.line,
            policy.epsilon,
            policy.delta,
            if policy.signed { "signed" } else { "unsigned" },
            policy.text.lines().map(escape).collect::<Vec<_>>().join("\n"),
        )
    };
    versions.iter().map(version).collect()
}
