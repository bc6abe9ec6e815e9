//! The demo's result as one self-contained page: no script, no address, figures as drawings.

use super::DemoResult;
use crate::page::{Axis, Plane, WIDTH, document, escape, step_for};
use std::fmt::Write;
use weighhouse_shared::evaluation::Figure;
use weighhouse_shared::job::ModeName;

/// The page.
pub fn page(result: &DemoResult) -> String {
    let title = format!("Weighhouse: {} branches learn together", result.sites);
    let (name, shared) = (result.figure.name(), figure(result.shared));
    let alone = figure(result.alone_own_rows);
    let pooled = figure(result.pooled);
    let lead = format!(
        "{} branches trained one model together. No record left any of them; each customer was charged at most \
         epsilon {} at delta {:e}, and each branch's own ledger holds the proof. On customers that no one trained on, \
         a branch alone reaches {name} {alone} on its own; the shared model reaches {} there and {shared} over all \
         branches. Pooling everyone's records without privacy, which privacy forbids in real life, would give {pooled}.",
        result.sites,
        result.epsilon,
        result.delta,
        figure(result.shared_own_rows),
    );
    let mut rows = String::new();
    for branch in &result.branches {
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{:.2} of {}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&branch.site),
            branch.customers,
            branch.epsilon_spent,
            branch.epsilon_cap,
            branch.ledger_entries,
            figure(branch.alone_own_rows),
            figure(branch.shared_own_rows),
        );
    }
    let body = format!(
        "<h1>{title}</h1><p>{lead}</p>\
         <h2>Quality, round by round</h2>{quality}\
         <h2>Privacy spent, round by round</h2>{privacy}\
         <h2>Branch by branch</h2>{dumbbells}\
         <table><tr><th>branch</th><th>customers</th><th>epsilon spent</th><th>ledger entries</th><th>{name} alone</th>\
         <th>{name} shared</th></tr>{rows}</table>\
         <p class=\"note\">{meaning} Quality is the \
         judge's view, on test rows that only the demo holds; the coordinator sees noised histograms only (open circles). \
         Customers and the comparison with pooling are likewise the judge's view.{other} Data: {data}. Noise multiplier \
         {noise:.3}; federation {seconds:.1} s.</p>",
        other = other_text(result),
        meaning = result.figure.meaning(),
        quality = quality_chart(result),
        privacy = privacy_chart(result),
        dumbbells = dumbbell_chart(result),
        data = escape(&result.data),
        noise = result.noise_multiplier,
        seconds = result.federation_s,
    );
    document(&title, "", &body)
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// A plane with rounds to the right, from 0, and values upward, with a line every `step`.
fn rounds_plane(rounds: usize, low: f64, high: f64, step: f64, label: &str) -> Plane {
    let rounds = rounds.max(1) as f64;
    let ticks = [0.0, (rounds / 2.0).round(), rounds].map(|round| (round, round.to_string()));
    let across = Axis { low: 0.0, high: rounds, ticks: ticks.into(), label: "rounds of training" };
    Plane::new(across, Axis::of_steps(low, high.max(low + step), step), label)
}

fn quality_chart(result: &DemoResult) -> String {
    let judged: Vec<(f64, f64)> = (1..)
        .zip(&result.judged_rounds)
        .filter_map(|(round, value)| Some((f64::from(round), (*value)?)))
        .collect();
    let other: Vec<(f64, f64)> = (1..)
        .zip(result.other_mode.iter().flat_map(|other| &other.judged_rounds))
        .filter_map(|(round, value)| Some((f64::from(round), (*value)?)))
        .collect();
    let others = result.other_mode.as_ref().map_or(0, |other| other.judged_rounds.len());
    let rounds = result.judged_rounds.len().max(others).max(1);
    let values = judged.iter().chain(&other).map(|(_, value)| *value);
    let levels = [result.pooled, result.alone_all_rows].into_iter().flatten();
    let values = values.chain(levels);
    let (low, high, step) = match result.figure {
        Figure::Auc => {
            let (low, high) =
                values.fold((0.7f64, 0.8f64), |(low, high), value| (low.min(value), high.max(value)));
            ((low * 20.0).floor() / 20.0, ((high * 20.0).ceil() / 20.0).min(1.0), 0.05)
        }
        _ => {
            let high = values.fold(0.0, f64::max);
            (0.0, high, step_for(high))
        }
    };
    let mut plane = rounds_plane(
        rounds,
        low,
        high,
        step,
        &format!("{} of the shared model by round", result.figure.name()),
    );
    plane.level(result.pooled, "#8a5a00", "pooled");
    plane.level(result.alone_all_rows, "#7b8794", "alone (mean)");
    plane.curve(&other, "#7b5ea7");
    plane.curve(&judged, "#0b6e4f");
    if let Some(((round, value), mode)) = other.last().zip(result.other_mode.as_ref().map(|other| other.mode))
    {
        plane.name((*round, *value), "#7b5ea7", &format!("{} {value:.3}", short_name(mode)));
    }
    if let Some((round, value)) = judged.last() {
        plane.name((*round, *value), "#0b6e4f", &format!("{} {value:.3}", short_name(result.mode)));
    }
    for round in &result.rounds {
        if let Some((_, value)) = round.quality.and_then(|quality| quality.headline()) {
            // Quality is of the model before the round.
            plane.circle((f64::from(round.round.0), value), "#0b6e4f");
        }
    }
    plane.finish()
}

/// What the second curve is.
fn other_text(result: &DemoResult) -> String {
    result.other_mode.as_ref().map_or_else(String::new, |other| {
        format!(
            " Green: {}. Purple: the same job at the same epsilon with {}, simulated on the same branches.",
            super::job::name(result.mode),
            super::job::name(other.mode)
        )
    })
}

/// On the end of a curve.
fn short_name(mode: ModeName) -> &'static str {
    match mode {
        ModeName::Site => "each site",
        ModeName::SecureSum => "secure sum",
    }
}

fn privacy_chart(result: &DemoResult) -> String {
    let trained = result.judged_rounds.len().max(1);
    let spent =
        result.rounds.iter().take(trained).map(|round| (f64::from(round.round.0) + 1.0, round.epsilon));
    let points: Vec<(f64, f64)> = std::iter::once((0.0, 0.0)).chain(spent).collect();
    let step = step_for(result.epsilon);
    let mut plane = rounds_plane(trained, 0.0, result.epsilon * 1.05, step, "epsilon spent by round");
    plane.level(Some(result.epsilon), "#b3261e", "cap");
    plane.curve(&points, "#3457a6");
    plane.finish()
}

fn dumbbell_chart(result: &DemoResult) -> String {
    let both: Vec<(&str, f64, f64)> = result
        .branches
        .iter()
        .filter_map(|branch| Some((branch.site.as_str(), branch.alone_own_rows?, branch.shared_own_rows?)))
        .collect();
    let height = 20.0 * both.len() as f64 + 34.0;
    let (low, high, step) = match result.figure {
        Figure::Auc => (0.4, 1.0, 0.1),
        _ => {
            let high = both.iter().fold(0.0f64, |high, (_, alone, shared)| high.max(*alone).max(*shared));
            let step = step_for(high);
            (0.0, high.max(step), step)
        }
    };
    let x = |value: f64| 130.0 + (WIDTH - 160.0) * ((value - low) / (high - low)).clamp(0.0, 1.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{} alone and shared by branch\">",
        result.figure.name()
    );
    for (value, name) in Axis::of_steps(low, high, step).ticks {
        let at = x(value);
        let _ = write!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"4\" y2=\"{:.1}\" stroke=\"#e6ebf0\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            height - 26.0,
            height - 10.0
        );
    }
    for (index, (name, alone, shared)) in both.iter().enumerate() {
        let y = 20.0 * index as f64 + 14.0;
        let _ = write!(
            svg,
            "<text x=\"120\" y=\"{:.1}\" text-anchor=\"end\">{}</text><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#c3ccd6\" stroke-width=\"2\"/>\
             <circle cx=\"{:.1}\" cy=\"{y}\" r=\"5\" fill=\"#9aa5b1\"/><circle cx=\"{:.1}\" cy=\"{y}\" r=\"5\" fill=\"#0b6e4f\"/>",
            y + 4.0,
            escape(name),
            x(*alone),
            x(*shared),
            x(*alone),
            x(*shared),
        );
    }
    svg.push_str("</svg><p class=\"note\">Grey: the branch's own model. Green: the shared model. Both on the branch's own test rows.</p>");
    svg
}

#[cfg(test)]
mod tests {
    use super::super::BranchResult;
    use super::super::job::OtherMode;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_shows_names_as_text() {
        let branch = BranchResult {
            site: "<b>\"x\"".into(),
            customers: 10,
            epsilon_spent: 7.9,
            epsilon_cap: 8.0,
            ledger_entries: 40,
            alone_own_rows: Some(0.7),
            alone_all_rows: Some(0.69),
            shared_own_rows: Some(0.8),
        };
        let result = DemoResult {
            data: "test".into(),
            sites: 1,
            epsilon: 8.0,
            delta: 1e-4,
            mode: ModeName::SecureSum,
            noise_multiplier: 4.5,
            rounds: Vec::new(),
            figure: Figure::Auc,
            judged_rounds: vec![Some(0.6), Some(0.8)],
            other_mode: Some(OtherMode {
                mode: ModeName::Site,
                judged_rounds: vec![Some(0.6), Some(0.7), Some(0.75)],
                shared: Some(0.75),
            }),
            shared: Some(0.8),
            shared_log_loss: Some(0.3),
            alone_own_rows: Some(0.7),
            alone_all_rows: Some(0.69),
            shared_own_rows: Some(0.8),
            pooled: Some(0.83),
            branches: vec![branch],
            federation_s: 5.0,
            total_s: 6.0,
            kept: None,
        };
        let page = page(&result);
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"));
        assert!(!page.contains("http") && !page.contains("<script"));
        assert!(page.contains("pooled 0.830"));
        assert!(page.contains("secure sum 0.800") && page.contains("each site 0.750"));
        let mut of_items = result;
        of_items.figure = Figure::HitRateAt10;
        let page = super::page(&of_items);
        assert!(page.contains("hit rate@10 alone") && page.contains("among the 10 that score highest"));
        assert!(!page.contains("AUC") && !page.contains("NaN"), "{page}");
    }
}
