//! Pages that stand alone, and the drawings in them: no script, no address. Text from elsewhere goes through
//! [`escape`].

use std::fmt::Write;

/// Width of every drawing, in its own units.
pub const WIDTH: f64 = 760.0;

const HEIGHT: f64 = 260.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;color:#1c2733;background:#fff;margin:0}\
main{max-width:52rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #dde3ea}\
svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#46535f}.note{font-size:.85rem;color:#46535f}\
@media print{main{margin:0}}";

/// A whole page. `title` is text; `style` is more CSS; `body` is markup.
pub fn document(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}{style}</style></head><body><main>\
         {body}</main></body></html>",
        escape(title)
    )
}

/// `text` as it must stand in markup or in a quoted attribute. Controls, and the marks that turn the direction of
/// writing round, show as replacement characters.
pub fn escape(text: &str) -> String {
    let plain = crate::output::plain(text);
    plain
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// A step that cuts 0 to `high` into a few parts.
pub fn step_for(high: f64) -> f64 {
    let steps = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0];
    steps.into_iter().find(|step| high / step <= 5.0).unwrap_or(high.max(1.0) / 4.0)
}

/// One direction of a plane.
pub struct Axis {
    /// Where it begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// Places with a name.
    pub ticks: Vec<(f64, String)>,
    /// What it shows; may be empty.
    pub label: &'static str,
}

impl Axis {
    /// With a tick at every multiple of `step`.
    pub fn of_steps(low: f64, high: f64, step: f64) -> Self {
        let first = (low / step).ceil();
        let values = (0..1000).map(|index| (first + f64::from(index)) * step);
        let ticks = values
            .take_while(|value| *value <= high + 1e-9)
            .map(|value| (value, ((value * 1000.0).round() / 1000.0).to_string()));
        Self { low, high, ticks: ticks.collect(), label: "" }
    }

    fn share(&self, value: f64) -> f64 {
        let length = self.high - self.low;
        if length > 0.0 { (value - self.low) / length } else { 0.0 }
    }
}

/// A plane with axes.
pub struct Plane {
    svg: String,
    across: Axis,
    upward: Axis,
}

impl Plane {
    /// An empty plane; `label` says what it shows to who cannot see it.
    pub fn new(across: Axis, upward: Axis, label: &str) -> Self {
        let mut plane = Self { svg: String::new(), across, upward };
        let mut svg =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(label));
        for (value, name) in &plane.upward.ticks {
            let y = plane.y(*value);
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e6ebf0\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
            );
        }
        for (value, name) in &plane.across.ticks {
            // A long name at an end would leave the drawing or run into its neighbour.
            let anchor = match plane.across.share(*value) {
                share if share <= 0.0 && name.len() > 8 => "start",
                share if share >= 1.0 && name.len() > 8 => "end",
                _ => "middle",
            };
            let (x, y) = (plane.x(*value), HEIGHT - BOTTOM + 18.0);
            let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{name}</text>");
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 3.0,
            plane.across.label
        );
        plane.svg = svg;
        plane
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * self.across.share(value)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.upward.share(value).clamp(-0.05, 1.05)
    }

    /// A dashed line at `value`, named at its end.
    pub fn level(&mut self, value: Option<f64>, color: &str, name: &str) {
        let Some(value) = value else { return };
        let y = self.y(value);
        let _ = write!(
            self.svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-dasharray=\"5 4\"/>\
             <text x=\"{}\" y=\"{:.1}\" style=\"fill:{color}\">{} {value:.3}</text>",
            WIDTH - RIGHT,
            WIDTH - RIGHT + 6.0,
            y + 4.0,
            escape(name),
        );
    }

    /// A line through `points`.
    pub fn curve(&mut self, points: &[(f64, f64)], color: &str) {
        let _ = write!(
            self.svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2.5\"/>",
            self.path(points)
        );
    }

    /// A line through `points`, dashed.
    pub fn dashes(&mut self, points: &[(f64, f64)], color: &str) {
        let _ = write!(
            self.svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-dasharray=\"5 4\"/>",
            self.path(points)
        );
    }

    /// What lies under a line through `points`.
    pub fn area(&mut self, points: &[(f64, f64)], color: &str) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let _ = write!(
            self.svg,
            "<polygon points=\"{:.1},{floor:.1} {} {:.1},{floor:.1}\" fill=\"{color}\"/>",
            self.x(first.0),
            self.path(points),
            self.x(last.0),
            floor = self.y(self.upward.low),
        );
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let place = |(x, y): &(f64, f64)| format!("{:.1},{:.1}", self.x(*x), self.y(*y));
        points.iter().map(place).collect::<Vec<_>>().join(" ")
    }

    /// An open circle.
    pub fn circle(&mut self, (x, y): (f64, f64), color: &str) {
        let (x, y) = (self.x(x), self.y(y));
        let _ = write!(
            self.svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"none\" stroke=\"{color}\"/>"
        );
    }

    /// A name to the right of a point.
    pub fn name(&mut self, (x, y): (f64, f64), color: &str, name: &str) {
        let (x, y) = (self.x(x) + 6.0, self.y(y) + 4.0);
        let _ = write!(
            self.svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" style=\"fill:{color};font-weight:600\">{}</text>",
            escape(name)
        );
    }

    /// The drawing's markup.
    pub fn finish(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup_and_a_point_axis_has_a_place() {
        assert_eq!(
            escape("<a href='x'>&\"\u{202e}\u{7}"),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}"
        );
        let mut plane = Plane::new(Axis::of_steps(3.0, 3.0, 1.0), Axis::of_steps(0.0, 0.0, 1.0), "x");
        plane.curve(&[(3.0, 0.0)], "#000");
        assert!(!plane.finish().contains("NaN"));
    }
}
