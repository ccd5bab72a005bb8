//! Results as one page that needs nothing but itself. Pure.

use std::fmt::Write as _;

use crate::chart::{Axis, Chart, Series, escape};
use crate::report::Report;
use crate::results::Results;
use crate::table;
use crate::timeline::Point;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:82rem;padding:0 1rem;\
color:#1c2126}h2{margin-top:2.5rem;border-top:1px solid #ccd2d8;padding-top:1rem}pre{background:#f4f6f8;padding:1rem;\
overflow-x:auto;font-size:13px}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;\
border-bottom:1px solid #e2e6ea}td:first-child,th:first-child{text-align:left}.charts{display:grid;gap:1rem;\
grid-template-columns:repeat(auto-fit,minmax(24rem,1fr))}figure{margin:0}figcaption{font-weight:600}svg{width:100%}\
svg text{font-size:11px;fill:#4a5560}.grid{stroke:#e2e6ea}polyline{fill:none;stroke-width:1.8}\
.pass{color:#3a7d44}.fail{color:#d1495b}.invalid{color:#c77d0a}";

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
    writeln!(out, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>")?;
    writeln!(out, "<style>{STYLE}</style><h1>{title}</h1><p>{}</p>", escape(&results.machine.line()))?;
    for chart in extra {
        writeln!(out, "{}", chart.render())?;
    }
    write_overview(&results.runs, out)?;
    for run in &results.runs {
        writeln!(
            out,
            "<h2>{}</h2><pre>{}</pre><div class=\"charts\">",
            escape(&run.name),
            escape(&table::render(run))
        )?;
        for chart in charts(run) {
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
    writeln!(out, "<table><tr><th>run<th>verdict<th>messages/s<th>for each server CPU-second<th>p50 ms<th>p99 ms")?;
    writeln!(out, "<th>max ms<th>lost<th>server CPU %<th>generator %</tr>")?;
    for run in runs {
        let message = run.latency.get("message").copied().unwrap_or_default();
        let (per_cpu, cpu) = run.server.as_ref().map_or((0.0, 0.0), |s| (s.messages_per_cpu_second, s.cpu_percent));
        let class = match run.verdict.outcome {
            crate::verdict::Outcome::Pass => "pass",
            crate::verdict::Outcome::Fail => "fail",
            crate::verdict::Outcome::Invalid => "invalid",
        };
        writeln!(
            out,
            "<tr><td>{}<td class={class}>{class}<td>{:.0}<td>{per_cpu:.0}<td>{:.3}<td>{:.3}<td>{:.3}<td>{}<td>{cpu:.0}\
             <td>{:.0}</tr>",
            escape(&run.name),
            run.messages_per_second,
            message.p50_us / 1e3,
            message.p99_us / 1e3,
            message.max_us / 1e3,
            run.truth.lost,
            run.generator.busiest_thread_percent
        )?;
    }
    writeln!(out, "</table>")
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
        assert!(!page.contains("http") && !page.contains("<script") && !page.contains("<link"));
        assert!(page.contains("<polyline"));
    }
}
