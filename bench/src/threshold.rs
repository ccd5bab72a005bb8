//! What a run must hold, as `p99<100ms,errors=0`. Pure.

use std::fmt;

use crate::report::Report;
use crate::stats::Summary;

/// Latencies whose percentiles can be asked for; a bare percentile is the message's.
const STAGES: [&str; 8] =
    ["connect", "upgrade", "first_reply", "ready", "resume", "message", "service", "schedule_lag"];

/// A value of a summary, in microseconds.
type Micros = fn(&Summary) -> f64;

/// Percentiles, and how their values are found.
const PERCENTILES: [(&str, Micros); 7] = [
    ("p50", |summary| summary.p50_us),
    ("p90", |summary| summary.p90_us),
    ("p99", |summary| summary.p99_us),
    ("p99.9", |summary| summary.p99_9_us),
    ("p99.99", |summary| summary.p99_99_us),
    ("max", |summary| summary.max_us),
    ("mean", |summary| summary.mean_us),
];

/// A number of a report; `None` when the run did not measure it.
type Number = fn(&Report) -> Option<f64>;

/// Numbers that can be asked for by name.
const NUMBERS: [(&str, Number); 14] = [
    ("errors", |report| Some(report.errors_total as f64)),
    ("lost", |report| Some(report.truth.lost as f64)),
    ("duplicated", |report| Some(report.truth.duplicated as f64)),
    ("reordered", |report| Some(report.truth.reordered as f64)),
    ("failed", |report| Some(report.connections_failed as f64)),
    ("opened", |report| Some(report.connections_opened as f64)),
    ("slow_closed", |report| Some(report.slow_closed as f64)),
    ("rate", |report| Some(report.messages_per_second)),
    ("connect_rate", |report| Some(report.connections_opened as f64 / report.connecting_seconds.max(1e-9))),
    ("per_cpu", |report| report.server.as_ref().map(|server| server.messages_per_cpu_second)),
    ("server_cpu", |report| report.server.as_ref().map(|server| server.cpu_percent)),
    ("cpu_us", Report::server_cpu_us_per_connection_second),
    ("rss", |report| report.server.as_ref().map(|_| report.memory.server_rss_bytes_per_connection)),
    ("slab", |report| Some(report.memory.slab_bytes_per_connection)),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relation {
    Below,
    AtMost,
    Equal,
    AtLeast,
    Above,
}

impl Relation {
    /// In an order in which no sign is cut short by another.
    const SIGNS: [(&str, Self); 5] =
        [("<=", Self::AtMost), (">=", Self::AtLeast), ("<", Self::Below), (">", Self::Above), ("=", Self::Equal)];

    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Below => left < right,
            Self::AtMost => left <= right,
            Self::Equal => (left - right).abs() < f64::EPSILON,
            Self::AtLeast => left >= right,
            Self::Above => left > right,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Metric {
    /// Stage and percentile, in microseconds.
    Latency(usize, usize),
    /// One of [`NUMBERS`].
    Number(usize),
}

/// One condition.
#[derive(Clone, PartialEq, Debug)]
pub struct Threshold {
    text: String,
    metric: Metric,
    relation: Relation,
    /// In the metric's unit: microseconds for latencies.
    bound: f64,
}

/// Why a threshold cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ThresholdError {
    /// None of the signs.
    #[error("{0:?} has none of < <= = >= >")]
    Relation(String),
    /// No such metric.
    #[error("{0:?}: the metrics are p50 to p99.99, max, mean, with a stage before them or not (ready.p99), and {known}", known = NUMBERS.map(|(name, _)| name).join(", "))]
    Metric(String),
    /// No number, or a latency without a unit.
    #[error("{0:?} is no number, or lacks its unit (us, ms, s)")]
    Bound(String),
}

impl Threshold {
    /// Reads conditions that commas separate.
    ///
    /// # Errors
    /// For the first one that makes no sense.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, ThresholdError> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Self::parse).collect()
    }

    fn parse(text: &str) -> Result<Self, ThresholdError> {
        let sign = Relation::SIGNS.iter().find_map(|(sign, relation)| Some((text.split_once(sign)?, *relation)));
        let ((name, bound), relation) = sign.ok_or_else(|| ThresholdError::Relation(text.to_owned()))?;
        let (name, bound) = (name.trim(), bound.trim());
        let metric = parse_metric(name).ok_or_else(|| ThresholdError::Metric(name.to_owned()))?;
        let bound = match metric {
            Metric::Latency(..) => parse_micros(bound),
            Metric::Number(_) => parse_count(bound),
        };
        let bound = bound.ok_or_else(|| ThresholdError::Bound(text.to_owned()))?;
        Ok(Self { text: text.to_owned(), metric, relation, bound })
    }

    /// It is about a latency, which a generator without time to spare would falsify.
    pub fn is_latency(&self) -> bool {
        matches!(self.metric, Metric::Latency(..))
    }

    /// It says how many errors there may be.
    pub fn is_errors(&self) -> bool {
        self.metric == Metric::Number(0)
    }

    /// What broke, if it does not hold.
    pub fn broken_by(&self, report: &Report) -> Option<String> {
        let value = match self.metric {
            Metric::Latency(stage, percentile) => {
                report.latency.get(STAGES[stage]).map(|summary| PERCENTILES[percentile].1(summary))
            }
            Metric::Number(number) => NUMBERS[number].1(report),
        };
        match value {
            None => Some(format!("{self}: not measured")),
            Some(value) if self.relation.holds(value, self.bound) => None,
            Some(value) if self.is_latency() => Some(format!("{self}: it was {:.3} ms", value / 1_000.0)),
            Some(value) => Some(format!("{self}: it was {}", round(value))),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

fn round(value: f64) -> String {
    if value.fract() == 0.0 || value > 1_000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn parse_metric(name: &str) -> Option<Metric> {
    if let Some(number) = NUMBERS.iter().position(|(known, _)| *known == name) {
        return Some(Metric::Number(number));
    }
    let (stage, percentile) = match name.split_once('.') {
        Some((stage, rest)) if STAGES.contains(&stage) => (stage, rest),
        _ => ("message", name),
    };
    let percentile = PERCENTILES.iter().position(|(known, _)| *known == percentile)?;
    Some(Metric::Latency(STAGES.iter().position(|known| *known == stage)?, percentile))
}

fn parse_micros(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    units.into_iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.trim().parse::<f64>().ok()? * factor))
}

fn parse_count(text: &str) -> Option<f64> {
    let units = [("k", 1e3), ("M", 1e6)];
    let scaled = units.into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (digits, factor) = scaled.unwrap_or((text, 1.0));
    Some(digits.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    fn broken(text: &str, report: &Report) -> usize {
        let thresholds = Threshold::parse_list(text).expect("well formed");
        thresholds.iter().filter_map(|threshold| threshold.broken_by(report)).count()
    }

    #[test]
    fn conditions_are_held_against_the_report() {
        let mut report = fixture();
        report.errors_total = 2;
        report.messages_per_second = 250_000.0;
        report.latency.insert("message".to_owned(), Summary { p99_us: 1_500.0, ..Summary::default() });
        assert_eq!(broken("p99<2ms, message.p99>=1500us,rate>=250k,errors<=2", &report), 0);
        assert_eq!(broken("p99<1ms,errors=0,rate>1M,opened>0", &report), 4);
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        assert_eq!(broken("resume.p99<10s", &fixture()), 1);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let error = |text: &str| Threshold::parse_list(text).expect_err("nonsense");
        assert_eq!(error("p99"), ThresholdError::Relation("p99".to_owned()));
        assert_eq!(error("p98<1ms"), ThresholdError::Metric("p98".to_owned()));
        assert_eq!(error("p99<5"), ThresholdError::Bound("p99<5".to_owned()));
        assert_eq!(error("errors=few"), ThresholdError::Bound("errors=few".to_owned()));
    }
}
