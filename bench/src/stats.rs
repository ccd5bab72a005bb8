//! Counts and latency histograms of one worker, which merge without loss. Pure.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::scenario::Pairing;
use crate::sequence::Arrival;

/// The longest latency told apart, in nanoseconds: ten minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// The shortest one told apart, in nanoseconds.
const LATENCY_NS_MIN: u64 = 100;

/// A latency histogram that records runs of equal values, as batches have them, at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Buckets", into = "Buckets")]
pub struct Latencies {
    histogram: Histogram<u64>,
    pending_ns: u64,
    pending: u64,
}

/// A histogram on its way to another machine.
#[derive(Serialize, Deserialize)]
struct Buckets(Vec<(u64, u64)>);

impl From<Latencies> for Buckets {
    fn from(mut latencies: Latencies) -> Self {
        Self(latencies.buckets())
    }
}

impl From<Buckets> for Latencies {
    fn from(buckets: Buckets) -> Self {
        let mut latencies = Self::default();
        latencies.merge_buckets(&buckets.0);
        latencies
    }
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

    /// Adds another worker's latencies, as [`Latencies::buckets`] gave them.
    pub fn merge_buckets(&mut self, buckets: &[(u64, u64)]) {
        for &(value, count) in buckets {
            let value = value.clamp(LATENCY_NS_MIN, LATENCY_NS_MAX);
            self.histogram.record_n(value, count).expect("the value is within the bounds");
        }
    }

    /// Every bucket that is not empty: a value of it in nanoseconds, and how many were recorded.
    pub fn buckets(&mut self) -> Vec<(u64, u64)> {
        self.settle();
        let recorded = self.histogram.iter_recorded();
        recorded.map(|step| (step.value_iterated_to(), step.count_since_last_iteration())).collect()
    }

    /// The percentile curve: quantiles, ever denser towards 1, with their latencies in microseconds.
    pub fn curve(&mut self) -> Vec<(f64, f64)> {
        self.settle();
        let length = self.histogram.len();
        // Ten points for each nine: 0.9, 0.99, 0.999. Beyond the last value there is nothing to draw.
        let quantiles = (0..=60).map(|step| 1.0 - 10f64.powf(-f64::from(step) / 10.0));
        let quantiles = quantiles.take_while(|quantile| (1.0 - quantile) * length as f64 >= 1.0);
        quantiles.map(|quantile| (quantile, self.histogram.value_at_quantile(quantile) as f64 / 1_000.0)).collect()
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
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Who talks to whom, where that is a question.
    pub pairing: Option<Pairing>,
    /// Messages sent to one receiver each, warm-up and drain included.
    pub sent: u64,
    /// Messages sent to everybody.
    pub broadcasts: u64,
    /// Connections that are to get every broadcast.
    pub listeners: u64,
    /// Different messages received of those expected, warm-up and drain included.
    pub received: u64,
    /// Messages received beyond those: broadcasts to connections that come and go, or read slowly.
    pub received_extra: u64,
    /// Broadcasts missing between two that a connection which comes and goes received.
    pub gaps: u64,
    /// Messages of an open loop that were to be sent within the window, and were.
    pub window_sent: u64,
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
    /// Of those, the ones that had been open before.
    pub reopened: u64,
    /// Slow readers that the server gave up on.
    pub slow_closed: u64,
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
    /// From the real send time to the receipt, in an open loop.
    pub service: Latencies,
    /// From the intended send time to the real one, in an open loop.
    pub lag: Latencies,
    /// From the moment a connection was lost or left to its first answer after it came back.
    pub resume: Latencies,
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

    /// Notes how a numbered message arrived, and says whether it counts as received.
    pub fn counts(&mut self, arrival: Arrival) -> bool {
        self.reordered += u64::from(arrival == Arrival::Late);
        self.duplicated += u64::from(arrival == Arrival::Duplicate);
        arrival != Arrival::Duplicate
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: Self) {
        match (&mut self.pairing, other.pairing) {
            (Some(own), Some(other)) => own.merge(&other),
            (own, other) => *own = own.take().or(other),
        }
        self.sent += other.sent;
        self.broadcasts += other.broadcasts;
        self.listeners += other.listeners;
        self.received_extra += other.received_extra;
        self.gaps += other.gaps;
        self.window_sent += other.window_sent;
        self.reopened += other.reopened;
        self.slow_closed += other.slow_closed;
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
        self.service.merge(other.service);
        self.lag.merge(other.lag);
        self.resume.merge(other.resume);
    }

    /// Messages that have to arrive.
    pub fn expected(&self) -> u64 {
        self.sent + self.broadcasts * self.listeners
    }

    /// Messages that did not.
    pub fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.received) + self.gaps
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
    fn buckets_carry_a_histogram_without_loss() {
        let mut original = Latencies::default();
        (0..5_000).for_each(|step| original.record(step * 7_919));
        let text = serde_json::to_string(&original).expect("buckets are plain numbers");
        let mut copy: Latencies = serde_json::from_str(&text).expect("what was just written");
        assert_eq!(copy.summary().p99_us, original.summary().p99_us);
        assert_eq!(copy.summary().count, 5_000);
        let curve = copy.curve();
        assert!(curve.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{curve:?}");
        assert!(curve.len() > 30 && curve.len() < 40, "{}", curve.len());
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
