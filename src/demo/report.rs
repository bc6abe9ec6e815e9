//! The demo's result as one self-contained page: no script, no address, figures as drawings.

use super::{BranchResult, DemoResult};
use std::fmt::Write;

/// The page.
pub fn page(result: &DemoResult) -> String {
    let title = format!("Weighhouse: {} branches learn together", result.sites);
    let shared = figure(result.shared);
    let alone = figure(result.alone_own_rows);
    let pooled = figure(result.pooled);
    let lead = format!(
        "{} branches trained one model together. No record left any of them; each customer was charged at most \
         epsilon {} at delta {:e}, and each branch's own ledger holds the proof. On customers that no one trained on, \
         a branch alone ranks its own buyers with AUC {alone}; the shared model reaches {} there and {shared} over all \
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
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body><main>\
         <h1>{title}</h1><p>{lead}</p>\
         <h2>Quality, round by round</h2>{quality}\
         <h2>Privacy spent, round by round</h2>{privacy}\
         <h2>Branch by branch</h2>{dumbbells}\
         <table><tr><th>branch</th><th>customers</th><th>epsilon spent</th><th>ledger entries</th><th>AUC alone</th>\
         <th>AUC shared</th></tr>{rows}</table>\
         <p class=\"note\">AUC: the chance that a customer who responded is ranked above one who did not. Quality is the \
         judge's view, on test rows that only the demo holds; the coordinator sees noised histograms only (open circles). \
         Customers and the comparison with pooling are likewise the judge's view. Data: {data}. Noise multiplier \
         {noise:.3}; federation {seconds:.1} s.</p>\
         </main></body></html>",
        quality = quality_chart(result),
        privacy = privacy_chart(result),
        dumbbells = dumbbell_chart(&result.branches),
        data = escape(&result.data),
        noise = result.noise_multiplier,
        seconds = result.federation_s,
    )
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;color:#1c2733;background:#fff;margin:0}\
main{max-width:52rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #dde3ea}\
svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#46535f}.note{font-size:.85rem;color:#46535f}\
@media print{main{margin:0}}";

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A plane with axes: rounds to the right, values upward.
struct Plane {
    svg: String,
    rounds: f64,
    low: f64,
    high: f64,
}

impl Plane {
    fn new(rounds: usize, low: f64, high: f64, step: f64, label: &str) -> Self {
        let mut plane =
            Self { svg: String::new(), rounds: rounds.max(1) as f64, low, high: high.max(low + step) };
        let _ =
            write!(plane.svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
        let mut value = (low / step).ceil() * step;
        while value <= plane.high + 1e-9 {
            let y = plane.y(value);
            let _ = write!(
                plane.svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e6ebf0\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                (value * 1000.0).round() / 1000.0,
            );
            value += step;
        }
        for round in [0.0, (plane.rounds / 2.0).round(), plane.rounds] {
            let _ = write!(
                plane.svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{round}</text>",
                plane.x(round),
                HEIGHT - BOTTOM + 18.0
            );
        }
        let _ = write!(
            plane.svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">rounds of training</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 3.0
        );
        plane
    }

    fn x(&self, round: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * round / self.rounds
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT
            - BOTTOM
            - (HEIGHT - TOP - BOTTOM) * ((value - self.low) / (self.high - self.low)).clamp(-0.05, 1.05)
    }

    fn level(&mut self, value: Option<f64>, color: &str, name: &str) {
        let Some(value) = value else { return };
        let y = self.y(value);
        let _ = write!(
            self.svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-dasharray=\"5 4\"/>\
             <text x=\"{}\" y=\"{:.1}\" style=\"fill:{color}\">{name} {value:.3}</text>",
            WIDTH - RIGHT,
            WIDTH - RIGHT + 6.0,
            y + 4.0,
        );
    }

    fn curve(&mut self, points: &[(f64, f64)], color: &str) {
        let path: Vec<String> = points
            .iter()
            .map(|(round, value)| format!("{:.1},{:.1}", self.x(*round), self.y(*value)))
            .collect();
        let _ = write!(
            self.svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2.5\"/>",
            path.join(" ")
        );
    }

    fn finish(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}

fn quality_chart(result: &DemoResult) -> String {
    let judged: Vec<(f64, f64)> = (1..)
        .zip(&result.judged_rounds)
        .filter_map(|(round, value)| Some((f64::from(round), (*value)?)))
        .collect();
    let rounds = result.judged_rounds.len().max(1);
    let values = judged.iter().map(|(_, value)| *value);
    let levels = [result.pooled, result.alone_all_rows].into_iter().flatten();
    let (low, high) =
        values.chain(levels).fold((0.7f64, 0.8f64), |(low, high), value| (low.min(value), high.max(value)));
    let (low, high) = ((low * 20.0).floor() / 20.0, ((high * 20.0).ceil() / 20.0).min(1.0));
    let mut plane = Plane::new(rounds, low, high, 0.05, "AUC of the shared model by round");
    plane.level(result.pooled, "#8a5a00", "pooled");
    plane.level(result.alone_all_rows, "#7b8794", "alone (mean)");
    plane.curve(&judged, "#0b6e4f");
    if let Some((round, value)) = judged.last() {
        let (x, y) = (plane.x(*round) + 6.0, plane.y(*value) + 4.0);
        let _ = write!(
            plane.svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" style=\"fill:#0b6e4f;font-weight:600\">shared {value:.3}</text>"
        );
    }
    for round in &result.rounds {
        if let Some(auc) = round.quality.and_then(|quality| quality.auc) {
            // Quality is of the model before the round.
            let (x, y) = (plane.x(f64::from(round.round.0)), plane.y(auc));
            let _ = write!(
                plane.svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"none\" stroke=\"#0b6e4f\"/>"
            );
        }
    }
    plane.finish()
}

fn privacy_chart(result: &DemoResult) -> String {
    let trained = result.judged_rounds.len().max(1);
    let spent =
        result.rounds.iter().take(trained).map(|round| (f64::from(round.round.0) + 1.0, round.epsilon));
    let points: Vec<(f64, f64)> = std::iter::once((0.0, 0.0)).chain(spent).collect();
    let step = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|step| result.epsilon / step <= 5.0)
        .unwrap_or(50.0);
    let mut plane = Plane::new(trained, 0.0, result.epsilon * 1.05, step, "epsilon spent by round");
    plane.level(Some(result.epsilon), "#b3261e", "cap");
    plane.curve(&points, "#3457a6");
    plane.finish()
}

fn dumbbell_chart(branches: &[BranchResult]) -> String {
    let both: Vec<(&str, f64, f64)> = branches
        .iter()
        .filter_map(|branch| Some((branch.site.as_str(), branch.alone_own_rows?, branch.shared_own_rows?)))
        .collect();
    let height = 20.0 * both.len() as f64 + 34.0;
    let x = |value: f64| 130.0 + (WIDTH - 160.0) * ((value - 0.4) / 0.6).clamp(0.0, 1.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"AUC alone and shared by branch\">"
    );
    for value in [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0] {
        let at = x(value);
        let _ = write!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"4\" y2=\"{:.1}\" stroke=\"#e6ebf0\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
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
            noise_multiplier: 4.5,
            rounds: Vec::new(),
            judged_rounds: vec![Some(0.6), Some(0.8)],
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
    }
}
