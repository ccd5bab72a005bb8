//! Results as one page that needs nothing but itself. Pure.

use std::fmt::Write as _;

use crate::chart::{Axis, Chart, Series, escape};
use crate::report::Report;
use crate::results::Results;
use crate::table;
use crate::timeline::Point;
use crate::verdict::Outcome;

/// Colours follow what the reader's system is set to; nothing is loaded from anywhere.
const STYLE: &str = ":root{color-scheme:light dark;--ink:#1c2126;--soft:#4a5560;--line:#d5dbe1;--panel:#f4f6f8;--paper:#fff}\
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#a7b1bb;--line:#38414a;--panel:#1e242a;--paper:#14181c}}\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:82rem;padding:0 1rem;color:var(--ink);\
background:var(--paper)}h2{margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}a{color:inherit}\
pre,.wide{overflow-x:auto}pre{background:var(--panel);padding:1rem;font-size:13px}code{overflow-wrap:anywhere}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .7rem;text-align:right;\
border-bottom:1px solid var(--line)}td{white-space:nowrap}th{vertical-align:bottom}td:first-child,th:first-child{text-align:left}\
.charts{display:grid;gap:1.5rem;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr))}figure{margin:0}\
figcaption{font-weight:600}figure p{margin:.2rem 0}svg{width:100%}svg text{font-size:12px;fill:var(--soft)}\
.grid{stroke:var(--line)}polyline{fill:none;stroke-width:1.8}.pass{color:#3a9d54}.fail{color:#d1495b}\
.invalid{color:#c77d0a}";

/// A line's name, and its value at a point.
type Line = (&'static str, fn(&Point) -> f64);
/// The same in bytes.
type Bytes = (&'static str, fn(&Point) -> u64);

/// The page. `extra` charts, such as a search's knee, stand in front.
pub fn page(title: &str, results: &Results, extra: &[Chart]) -> String {
    let mut out = String::new();
    write_page(title, results, extra, &mut out).expect("writing to a string does not fail");
    out
}

fn write_page(title: &str, results: &Results, extra: &[Chart], out: &mut String) -> std::fmt::Result {
    let title = escape(title);
    writeln!(out, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">")?;
    writeln!(out, "<meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>")?;
    writeln!(out, "<style>{STYLE}</style><h1>{title}</h1><p>{}</p>", escape(&results.machine.line()))?;
    for chart in extra {
        writeln!(out, "{}", chart.render())?;
    }
    write_overview(&results.runs, out)?;
    for (number, run) in results.runs.iter().enumerate() {
        let (name, numbers) = (escape(&run.name), escape(&table::render(run)));
        writeln!(out, "<h2 id=\"run-{number}\">{name}</h2><pre>{numbers}</pre><div class=\"charts\">")?;
        // Runs that are over within a second or two have nothing to show over time.
        for chart in charts(run).iter().filter(|chart| chart.has_lines()) {
            writeln!(out, "{}", chart.render())?;
        }
        writeln!(out, "</div><p><code>{}</code></p>", escape(&run.command.join(" ")))?;
    }
    writeln!(out, "<h2>Machine</h2><table>")?;
    for (name, value) in &results.machine.sysctls {
        writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value))?;
    }
    writeln!(out, "</table></html>")
}

fn write_overview(runs: &[Report], out: &mut String) -> std::fmt::Result {
    writeln!(out, "<div class=\"wide\"><table><tr><th>run<th>verdict<th>messages/s<th>for each server CPU-second")?;
    writeln!(out, "<th>latency of<th>p50 ms<th>p99 ms<th>max ms<th>lost<th>server CPU %<th>generator %</tr>")?;
    for (number, run) in runs.iter().enumerate() {
        let (per_cpu, cpu) = run.server.as_ref().map_or((0.0, 0.0), |s| (s.messages_per_cpu_second, s.cpu_percent));
        let class = match run.verdict.outcome {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Invalid => "invalid",
        };
        let name = escape(&run.name);
        write!(out, "<tr><td><a href=\"#run-{number}\">{name}</a><td class=\"{class}\">{class}")?;
        write!(out, "<td>{}<td>{}", grouped(run.messages_per_second), grouped(per_cpu))?;
        match run.headline() {
            Some((stage, latency)) => {
                write!(out, "<td>{stage}")?;
                for micros in [latency.p50_us, latency.p99_us, latency.max_us] {
                    write!(out, "<td>{:.3}", micros / 1e3)?;
                }
            }
            None => write!(out, "<td>–<td>–<td>–<td>–")?,
        }
        let generator = run.generator.busiest_thread_percent;
        writeln!(out, "<td>{}<td>{cpu:.0}<td>{generator:.0}</tr>", grouped(run.truth.lost as f64))?;
    }
    writeln!(out, "</table></div>")?;
    let troubled: Vec<_> = runs.iter().filter(|run| run.verdict.outcome != Outcome::Pass).collect();
    if !troubled.is_empty() {
        writeln!(out, "<p>What did not pass, and why:</p><ul>")?;
        for run in troubled {
            writeln!(out, "<li>{}: {}</li>", escape(&run.name), escape(&run.verdict.to_string()))?;
        }
        writeln!(out, "</ul>")?;
    }
    Ok(())
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && out != "-" {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn charts(run: &Report) -> Vec<Chart> {
    let over_time = |title: &str, lines: &[Line], within: bool| Chart {
        title: title.to_owned(),
        across: "seconds since the first connect",
        axis: Axis::Plain,
        series: lines
            .iter()
            .map(|(name, value)| {
                let points = run.timeline.iter().filter(|point| !within || point.second.is_some());
                let points = points.map(|point| (point.at_seconds, value(point))).collect();
                Series { name: (*name).to_owned(), points }
            })
            .collect(),
    };
    let mib = 1024.0 * 1024.0;
    let curve = run.curve.iter().map(|(quantile, micros)| (*quantile, micros / 1e3)).collect();
    let mut memory = over_time("Memory, MiB", &[], false);
    let lines: [Bytes; 3] = [
        ("server RSS", |point| point.memory.rss_bytes),
        ("kernel slab", |point| point.memory.slab_bytes),
        ("cgroup", |point| point.memory.cgroup_bytes),
    ];
    for (name, value) in lines {
        let points: Vec<_> = run.timeline.iter().map(|point| (point.at_seconds, value(point) as f64 / mib)).collect();
        if points.iter().any(|point| point.1 > 0.0) {
            memory.series.push(Series { name: name.to_owned(), points });
        }
    }
    vec![
        Chart {
            title: "Latency by percentile, ms".to_owned(),
            across: "percentile",
            axis: Axis::Nines,
            series: vec![Series { name: "message".to_owned(), points: curve }],
        },
        over_time(
            "Messages a second",
            &[("received", |point| point.received_per_second), ("sent", |point| point.sent_per_second)],
            false,
        ),
        over_time(
            "Latency over time, ms",
            &[("p99", |point| point.p99_us / 1e3), ("p50", |point| point.p50_us / 1e3)],
            true,
        ),
        over_time(
            "CPU, percent of one core",
            &[("server", |point| point.server_cpu_percent), ("generator", |point| point.generator_cpu_percent)],
            false,
        ),
        memory,
        over_time(
            "Connections and errors",
            &[("open", |point| point.open as f64), ("errors", |point| point.errors as f64)],
            false,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::machine::Machine;
    use crate::report::fixture;

    #[test]
    fn the_page_stands_alone() {
        let mut run = fixture();
        run.name = "<b>".to_owned();
        run.curve = vec![(0.0, 10.0), (0.9, 20.0)];
        let page = page("results", &Results { machine: Machine::default(), runs: vec![run] }, &[]);
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"));
        check(&page);
        assert_eq!(page.matches("<figure>").count(), 1, "charts without points are left out");
    }

    #[test]
    fn thousands_stand_apart() {
        let texts = [0.0, 999.4, 1_000.0, 4_686_333.0, -1_234.0, -123.0].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "4,686,333", "-1,234", "-123"]);
    }

    #[test]
    fn every_kept_result_becomes_a_sound_page() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        let files = std::fs::read_dir(kept).expect("results are kept").map(|file| file.expect("a file").path());
        let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect();
        assert!(!files.is_empty());
        for file in files {
            let results = Results::read(&file).expect("a result file");
            let page = page("kept", &results, &[]);
            check(&page);
            assert_eq!(page.matches("<h2 id=").count(), results.runs.len(), "{}", file.display());
            assert!(page.matches("<polyline").count() > results.runs.len(), "{}: hardly a line", file.display());
        }
    }

    /// What can be said of a page without a browser: it loads nothing, its elements are closed in order, its links lead
    /// somewhere, and its lines lie within their pictures.
    fn check(page: &str) {
        for remote in ["http:", "https:", "src=", "url(", "@import", "<script", "<link"] {
            assert!(!page.contains(remote), "{remote} in a page that is to need nothing");
        }
        for link in page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(page.contains(&format!("id=\"{link}\"")), "nothing is called {link}");
        }
        let mut open: Vec<&str> = Vec::new();
        for element in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default()) {
            let name = element.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
            // Those that HTML lets one leave open, or that have no end.
            if matches!(name, "!doctype" | "meta" | "td" | "th" | "html") || element.ends_with('/') {
                continue;
            }
            if element.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "elements end in the order that they begin");
            } else {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?} never end");
        for picture in page.split("<svg ").skip(1).filter_map(|rest| rest.split("</svg>").next()) {
            let mut frame = picture.split('"').nth(1).expect("a viewBox").split(' ').skip(2);
            let mut side = || frame.next().expect("a side").parse::<f64>().expect("a number");
            let (width, height) = (side(), side());
            for text in picture.split("<text x=\"").skip(1).filter_map(|rest| rest.split("</text>").next()) {
                let (x, label) = (text.split('"').next(), text.rsplit('>').next());
                let (x, label) = (x.unwrap_or_default().parse::<f64>().expect("x"), label.unwrap_or_default());
                let right = if text.contains("\"end\"") { x } else { x + label.chars().count() as f64 * 3.5 };
                assert!(right <= width + 0.1, "{label} is cut");
            }
            for line in picture.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                for point in line.split(' ') {
                    let (x, y) = point.split_once(',').expect("two numbers");
                    let (x, y): (f64, f64) = (x.parse().expect("x"), y.parse().expect("y"));
                    assert!((0.0..=width).contains(&x) && (0.0..=height).contains(&y), "{point} is off the picture");
                }
            }
        }
    }
}
