//! Line charts as SVG, readable without a script or a network. Pure.

use std::fmt::Write as _;

const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// What a character of a label is wide at most.
const CHARACTER: f64 = 7.0;
/// Told apart on white and on black.
const COLOURS: [&str; 6] = ["#2f80c4", "#d1495b", "#3a9d54", "#a06bb0", "#c77d0a", "#7a8794"];
/// Lines after the first are broken, so that one that lies on another does not hide it.
const DASHES: [&str; 3] = ["none", "7 3", "2 3"];

/// How positions on the horizontal axis are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Axis {
    /// As they are.
    Plain,
    /// Quantiles, spread so that each nine has the same width.
    Nines,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows, with the unit of the vertical axis.
    pub title: String,
    /// What the horizontal axis shows.
    pub across: &'static str,
    /// How that axis is divided.
    pub axis: Axis,
    /// The lines.
    pub series: Vec<Series>,
}

impl Chart {
    /// Whether there is something to draw.
    pub fn has_lines(&self) -> bool {
        self.series.iter().any(|series| series.points.len() > 1)
    }

    /// The chart as an `<figure>` with an `<svg>` in it.
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let place = |x: f64| if self.axis == Axis::Nines { -(1.0 - x).max(1e-9).log10() } else { x };
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x_min = points().map(|point| place(point.0)).fold(f64::INFINITY, f64::min);
        let x_max = points().map(|point| place(point.0)).fold(f64::NEG_INFINITY, f64::max);
        let y_max = points().map(|point| point.1).fold(0.0, f64::max);
        writeln!(out, "<figure><figcaption>{}</figcaption>", escape(&self.title))?;
        if points().count() < 2 || x_max <= x_min {
            return writeln!(out, "<p>Too few points for a chart.</p></figure>");
        }
        let step = nice_step(y_max.max(1e-9) / 4.0);
        let y_top = (y_max / step).ceil().max(1.0) * step;
        let x = |value: f64| LEFT + (place(value) - x_min) / (x_max - x_min) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / y_top * (HEIGHT - TOP - BOTTOM);
        writeln!(out, r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#, escape(&self.title))?;
        for line in 0..=(y_top / step).round() as u32 {
            let value = f64::from(line) * step;
            writeln!(
                out,
                r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                WIDTH - RIGHT,
                LEFT - 6.0,
                y(value) + 4.0,
                number(value),
                y = y(value)
            )?;
        }
        for (value, label) in self.ticks(x_min, x_max) {
            // Whatever stands at the edge would be cut in its middle.
            let half = label.chars().count() as f64 * CHARACTER / 2.0;
            let (at, y) = (x(value).min(WIDTH - half), HEIGHT - BOTTOM + 16.0);
            writeln!(out, r#"<text x="{at:.1}" y="{y:.1}" text-anchor="middle">{label}</text>"#)?;
        }
        writeln!(
            out,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            (WIDTH + LEFT) / 2.0,
            HEIGHT - 6.0,
            self.across
        )?;
        for (number, (series, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let path = series.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)));
            let path = path.collect::<Vec<_>>().join(" ");
            let dashes = DASHES[number % DASHES.len()];
            writeln!(out, r#"<polyline points="{path}" stroke="{colour}" stroke-dasharray="{dashes}"/>"#)?;
        }
        writeln!(out, "</svg><p>")?;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let last = series.points.iter().map(|point| point.1).fold(0.0, f64::max);
            let name = escape(&series.name);
            writeln!(out, r#"<span style="color:{colour}">&#9632;</span> {name} (max {})"#, number(last))?;
        }
        writeln!(out, "</p></figure>")
    }

    fn ticks(&self, x_min: f64, x_max: f64) -> Vec<(f64, String)> {
        match self.axis {
            Axis::Nines => {
                let labels = ["0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"];
                let at = |nines: usize| 1.0 - 10f64.powi(-(nines as i32));
                let ticks = labels.iter().enumerate().filter(|(nines, _)| *nines as f64 <= x_max + 1e-6);
                ticks.map(|(nines, label)| (at(nines), (*label).to_owned())).collect()
            }
            Axis::Plain => {
                let step = nice_step((x_max - x_min) / 6.0);
                let first = (x_min / step).ceil() as i64;
                let last = (x_max / step).floor() as i64;
                (first..=last).map(|tick| tick as f64 * step).map(|value| (value, number(value))).collect()
            }
        }
    }
}

/// The number 1, 2 or 5 times a power of ten that is at least `raw`.
fn nice_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.max(1e-12).log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|factor| factor * power).find(|step| *step >= raw * 0.999).unwrap_or(power * 10.0)
}

fn number(value: f64) -> String {
    let scaled = [(1e9, "G"), (1e6, "M"), (1e3, "k")].into_iter().find(|(unit, _)| value.abs() >= *unit);
    let (value, unit) = scaled.map_or((value, ""), |(size, unit)| (value / size, unit));
    let text = format!("{value:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_numbers_are_round() {
        assert_eq!([nice_step(0.13), nice_step(30.0), nice_step(7_000.0)], [0.2, 50.0, 10_000.0]);
        assert_eq!([number(0.25), number(1_500.0), number(2e6), number(0.0)], ["0.25", "1.5k", "2M", "0"]);
    }

    #[test]
    fn points_lie_within_the_picture_and_text_is_escaped() {
        let series = Series { name: "a<b".to_owned(), points: vec![(0.0, 3.0), (0.9, 10.0), (0.999, 90.0)] };
        let chart = Chart { title: "t".to_owned(), across: "q", axis: Axis::Nines, series: vec![series] };
        let svg = chart.render();
        assert!(svg.contains("a&lt;b") && svg.contains("99.9 %") && !svg.contains("99.99 %"), "{svg}");
        let path = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
        for pair in path.split(' ') {
            let (x, y) = pair.split_once(',').expect("two numbers");
            let (x, y): (f64, f64) = (x.parse().expect("x"), y.parse().expect("y"));
            assert!((LEFT..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{pair}");
        }
    }

    #[test]
    fn a_chart_without_points_says_so() {
        let chart = Chart { title: "t".to_owned(), across: "x", axis: Axis::Plain, series: Vec::new() };
        assert!(chart.render().contains("Too few points"));
    }
}
