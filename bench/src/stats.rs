//! Counts and latency histograms of one worker, which merge without loss. Pure.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency told apart, in nanoseconds: ten minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// The shortest one told apart, in nanoseconds.
const LATENCY_NS_MIN: u64 = 100;

/// A latency histogram that records runs of equal values, as batches have them, at once.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    pending_ns: u64,
    pending: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, 3).expect("constant, valid bounds");
        Self { histogram, pending_ns: 0, pending: 0 }
    }
}

impl Latencies {
    /// Records one latency in nanoseconds.
    pub fn record(&mut self, latency_ns: u64) {
        if latency_ns != self.pending_ns {
            self.settle();
            self.pending_ns = latency_ns;
        }
        self.pending += 1;
    }

    /// Adds another worker's latencies.
    pub fn merge(&mut self, mut other: Self) {
        other.settle();
        self.settle();
        self.histogram.add(&other.histogram).expect("the bounds of all histograms are equal");
    }

    /// The percentiles.
    pub fn summary(&mut self) -> Summary {
        self.settle();
        let micros = |ns: u64| ns as f64 / 1_000.0;
        let at = |quantile: f64| micros(self.histogram.value_at_quantile(quantile));
        Summary {
            count: self.histogram.len(),
            mean_us: self.histogram.mean() / 1_000.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            p99_99_us: at(0.9999),
            max_us: micros(self.histogram.max()),
        }
    }

    fn settle(&mut self) {
        if self.pending > 0 {
            let value = self.pending_ns.clamp(LATENCY_NS_MIN, LATENCY_NS_MAX);
            self.histogram.record_n(value, self.pending).expect("the value is within the bounds");
            self.pending = 0;
        }
    }
}

/// The percentiles of one histogram, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Summary {
    /// Values recorded.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p99_9_us: f64,
    /// 99.99th percentile.
    pub p99_99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// What one worker saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Messages sent, warm-up and drain included.
    pub sent: u64,
    /// Different messages received, warm-up and drain included.
    pub received: u64,
    /// Messages received within the measured window.
    pub window_received: u64,
    /// Payload bytes of those.
    pub window_payload_bytes: u64,
    /// Messages that came again.
    pub duplicated: u64,
    /// Messages that came after one sent later.
    pub reordered: u64,
    /// Answers whose content is not what was sent.
    pub corrupt: u64,
    /// Messages of no use to the scenario, such as error frames.
    pub unexpected: u64,
    /// Pings that the server sent, all answered.
    pub server_pings: u64,
    /// Upgraded connections.
    pub opened: u64,
    /// Attempts that did not end in an upgrade.
    pub failed: u64,
    /// Connections that ended before the run did.
    pub closed_early: u64,
    /// What went wrong, and how often.
    pub errors: BTreeMap<String, u64>,
    /// From connect(2) to the TCP connection.
    pub connect: Latencies,
    /// From the upgrade request to the 101.
    pub upgrade: Latencies,
    /// From the first message to its answer.
    pub first_reply: Latencies,
    /// From connect(2) to the first answer.
    pub ready: Latencies,
    /// From the intended send time to the receipt.
    pub message: Latencies,
}

impl Tally {
    /// Counts one error under its name.
    pub fn error(&mut self, name: &str) {
        match self.errors.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                self.errors.insert(name.to_owned(), 1);
            }
        }
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.window_received += other.window_received;
        self.window_payload_bytes += other.window_payload_bytes;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.unexpected += other.unexpected;
        self.server_pings += other.server_pings;
        self.opened += other.opened;
        self.failed += other.failed;
        self.closed_early += other.closed_early;
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        self.connect.merge(other.connect);
        self.upgrade.merge(other.upgrade);
        self.first_reply.merge(other.first_reply);
        self.ready.merge(other.ready);
        self.message.merge(other.message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_histograms_hold_every_value_of_both() {
        let (mut low, mut high) = (Latencies::default(), Latencies::default());
        (0..99).for_each(|_| low.record(1_000_000));
        high.record(50_000_000);
        low.merge(high);
        let summary = low.summary();
        assert_eq!(summary.count, 100);
        let near = |value: f64, wanted: f64| (value / wanted - 1.0).abs() < 0.002;
        assert!(near(summary.p99_us, 1_000.0) && near(summary.max_us, 50_000.0), "{summary:?}");
    }

    #[test]
    fn values_beyond_the_bounds_count_as_the_bounds() {
        let mut latencies = Latencies::default();
        latencies.record(0);
        latencies.record(u64::MAX);
        let summary = latencies.summary();
        assert_eq!(summary.count, 2);
        assert!(summary.max_us >= LATENCY_NS_MAX as f64 / 1_000.0);
    }
}
