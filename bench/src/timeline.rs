//! What happened when: one point a second, and the line that shows the latest one while a run goes on.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};

use serde::{Deserialize, Serialize};

use crate::proc::{MemorySample, ProcessSample};
use crate::stats::Latencies;

/// The state of the run at the end of one second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Point {
    /// Since the first connect.
    pub at_seconds: f64,
    /// The second of the measured window, from 0 on; none outside of it.
    pub second: Option<u64>,
    /// Upgraded connections.
    pub open: u64,
    /// Messages sent in this second, broadcasts counted once.
    pub sent_per_second: f64,
    /// Messages received in this second.
    pub received_per_second: f64,
    /// Errors so far.
    pub errors: u64,
    /// Median latency of the messages received in this second.
    pub p50_us: f64,
    /// 99th percentile of them.
    pub p99_us: f64,
    /// The longest of them.
    pub max_us: f64,
    /// Share of one CPU that the server used.
    pub server_cpu_percent: f64,
    /// Share of one CPU that the generator used.
    pub generator_cpu_percent: f64,
    /// Memory at the end of the second.
    pub memory: MemorySample,
}

/// Everything that only grows, at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Upgraded connections now.
    pub open: u64,
    /// Messages sent so far.
    pub sent: u64,
    /// Messages received so far.
    pub received: u64,
    /// Errors so far.
    pub errors: u64,
    /// The server's CPU time so far.
    pub server: ProcessSample,
    /// CPU time of the generator's workers so far.
    pub generator: ProcessSample,
}

/// A worker's latencies in one second of the window.
#[derive(Debug)]
pub struct Interval {
    /// Which one, from 0 on.
    pub second: u64,
    /// Its latencies.
    pub latencies: Latencies,
}

/// Collects points while the run goes on.
#[derive(Debug, Default)]
pub struct Timeline {
    points: Vec<Point>,
    latencies: BTreeMap<u64, Latencies>,
    last: Counters,
    live: bool,
}

impl Timeline {
    /// An empty one; `live`: each point is shown on standard error, when that is a terminal.
    pub fn new(live: bool) -> Self {
        Self { live: live && std::io::stderr().is_terminal(), ..Self::default() }
    }

    /// Where the first point starts from.
    pub fn start(&mut self, counters: Counters) {
        self.last = counters;
    }

    /// Adds what one worker measured in one second.
    pub fn add(&mut self, interval: Interval) {
        self.latencies.entry(interval.second).or_default().merge(interval.latencies);
    }

    /// Adds a point.
    pub fn tick(&mut self, at_seconds: f64, second: Option<u64>, now: Counters, memory: MemorySample) {
        let last = std::mem::replace(&mut self.last, now);
        let seconds = now.server.at_ns.saturating_sub(last.server.at_ns).max(1) as f64 / 1e9;
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        let percent = |from: ProcessSample, to: ProcessSample| rate(from.cpu_ns, to.cpu_ns) / 1e7;
        self.points.push(Point {
            at_seconds,
            second,
            open: now.open,
            sent_per_second: rate(last.sent, now.sent),
            received_per_second: rate(last.received, now.received),
            errors: now.errors,
            server_cpu_percent: percent(last.server, now.server),
            generator_cpu_percent: percent(last.generator, now.generator),
            memory,
            ..Point::default()
        });
        self.show();
    }

    /// The points, each with the latencies of its second.
    pub fn finish(mut self) -> Vec<Point> {
        if self.live {
            // The table follows on a line of its own.
            eprint!("\r\x1b[K");
        }
        for point in &mut self.points {
            if let Some(latencies) = point.second.and_then(|second| self.latencies.get_mut(&second)) {
                let summary = latencies.summary();
                (point.p50_us, point.p99_us, point.max_us) = (summary.p50_us, summary.p99_us, summary.max_us);
            }
        }
        self.points
    }

    fn show(&mut self) {
        let (true, Some(point)) = (self.live, self.points.last()) else { return };
        // The newest second whose latencies are known.
        let p99_us = self.latencies.last_entry().map_or(0.0, |mut entry| entry.get_mut().summary().p99_us);
        eprint!(
            "\r\x1b[K{:6.1} s  {} connections  {:.0}/s  p99 {:.2} ms  {} errors  CPU: server {:.0} %, generator {:.0} %",
            point.at_seconds,
            point.open,
            point.received_per_second,
            p99_us / 1_000.0,
            point.errors,
            point.server_cpu_percent,
            point.generator_cpu_percent
        );
        // A terminal that is gone needs no line.
        let _ = std::io::stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_hold_rates_and_the_merged_latencies_of_all_workers() {
        let mut timeline = Timeline::new(false);
        let at = |at_ns, cpu_ns| ProcessSample { at_ns, cpu_ns, wait_ns: 0 };
        timeline.start(Counters { server: at(1_000_000_000, 0), ..Counters::default() });
        for latency in [1_000_000, 3_000_000] {
            let mut latencies = Latencies::default();
            latencies.record(latency);
            timeline.add(Interval { second: 0, latencies });
        }
        let now =
            Counters { open: 7, sent: 10, received: 40, server: at(3_000_000_000, 500_000_000), ..Counters::default() };
        timeline.tick(2.0, Some(0), now, MemorySample::default());
        let points = timeline.finish();
        assert_eq!((points[0].sent_per_second, points[0].received_per_second), (5.0, 20.0));
        assert_eq!((points[0].server_cpu_percent, points[0].open), (25.0, 7));
        assert!((points[0].max_us / 3_000.0 - 1.0).abs() < 0.01, "{points:?}");
    }
}
