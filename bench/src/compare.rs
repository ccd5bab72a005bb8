//! Two result files against each other: what changed by more than chance does. Pure.

use std::fmt::Write as _;

use crate::report::Report;
use crate::results::Results;

/// Two sides whose ranks come out like this or more extreme by chance less often than that differ.
const SIGNIFICANCE: f64 = 0.05;
/// Smaller changes of the median are of no interest, even when they are no accident.
const CHANGE_MIN: f64 = 0.01;
/// Up to so many ways to deal the values out, all of them are counted.
const ARRANGEMENTS_MAX: f64 = 200_000.0;

/// A number that is compared, and whether more of it is better.
struct Metric {
    name: &'static str,
    more_is_better: bool,
    value: fn(&Report) -> Option<f64>,
}

const METRICS: [Metric; 7] = [
    Metric {
        name: "messages/CPU-s",
        more_is_better: true,
        value: |run| Some(run.server.as_ref()?.messages_per_cpu_second).filter(|value| *value > 0.0),
    },
    Metric {
        name: "messages/s",
        more_is_better: true,
        // An open loop has the rate it was asked for.
        value: |run| Some(run.messages_per_second).filter(|value| *value > 0.0 && run.rate_asked.is_none()),
    },
    Metric { name: "p50 us", more_is_better: false, value: |run| Some(run.latency.get("message")?.p50_us) },
    Metric { name: "p99 us", more_is_better: false, value: |run| Some(run.latency.get("message")?.p99_us) },
    Metric { name: "ready p99 us", more_is_better: false, value: |run| Some(run.latency.get("ready")?.p99_us) },
    Metric { name: "resume p99 us", more_is_better: false, value: |run| Some(run.latency.get("resume")?.p99_us) },
    Metric {
        name: "RSS B/conn",
        more_is_better: false,
        value: |run| {
            run.server.as_ref()?;
            Some(run.memory.server_rss_bytes_per_connection).filter(|value| *value > 0.0)
        },
    },
];

/// What a comparison says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// The second is better.
    Better,
    /// The second is worse.
    Worse,
    /// What there is may well be chance, or is too small to matter.
    NoDifference,
    /// So few runs that no difference could be told from chance.
    TooFewRuns,
}

/// The table of all metrics that both files have.
pub fn table(before: &Results, after: &Results) -> String {
    let mut out = format!("A  {}\nB  {}\n\n", before.machine.line(), after.machine.line());
    let heading = ["run", "metric", "A median", "B median", "change", "p"];
    let [run, metric, a, b, change, p] = heading;
    let _ = writeln!(out, "{run:<24} {metric:<15} {a:>12} {b:>12} {change:>8} {p:>7}  verdict");
    for name in before.names() {
        for metric in &METRICS {
            let values = |results: &Results| {
                let runs = results.runs.iter().filter(|run| run.name == name);
                runs.filter_map(metric.value).collect::<Vec<_>>()
            };
            let (a, b) = (values(before), values(after));
            if a.is_empty() || b.is_empty() {
                continue;
            }
            let (finding, p) = judge(&a, &b, metric.more_is_better);
            let change = median(&b) / median(&a) - 1.0;
            let runs = format!("{} v {} runs", a.len(), b.len());
            let finding = match finding {
                Finding::Better => "better".to_owned(),
                Finding::Worse => "WORSE".to_owned(),
                Finding::NoDifference => "no difference".to_owned(),
                Finding::TooFewRuns => format!("too few runs to tell ({runs})"),
            };
            let (a, b) = (median(&a), median(&b));
            let _ = writeln!(
                out,
                "{name:<24} {:<15} {a:>12.1} {b:>12.1} {:>+7.1}% {p:>7.3}  {finding}",
                metric.name,
                change * 100.0
            );
        }
    }
    let invalid = before.runs.iter().chain(&after.runs);
    let invalid = invalid.filter(|run| run.verdict.outcome == crate::verdict::Outcome::Invalid).count();
    if invalid > 0 {
        let _ = writeln!(out, "\n{invalid} of the runs are INVALID: their latencies say nothing.");
    }
    out
}

/// The Mann-Whitney test's finding and its two-sided p.
fn judge(a: &[f64], b: &[f64], more_is_better: bool) -> (Finding, f64) {
    let smallest_p = 2.0 / arrangements(a.len() + b.len(), a.len());
    let p = mann_whitney(a, b);
    let change = median(b) / median(a) - 1.0;
    let finding = if smallest_p > SIGNIFICANCE {
        Finding::TooFewRuns
    } else if p >= SIGNIFICANCE || change.abs() < CHANGE_MIN {
        Finding::NoDifference
    } else if (change > 0.0) == more_is_better {
        Finding::Better
    } else {
        Finding::Worse
    };
    (finding, p)
}

/// The probability that two samples of one population differ in rank as much as these (two-sided).
fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let ranks = ranks(a, b);
    let expected = ranks.iter().sum::<f64>() * a.len() as f64 / ranks.len() as f64;
    let distance = (ranks[..a.len()].iter().sum::<f64>() - expected).abs();
    if arrangements(ranks.len(), a.len()) <= ARRANGEMENTS_MAX {
        let (mut extreme, mut all) = (0u64, 0u64);
        deal(&ranks, a.len(), 0.0, &mut |sum| {
            all += 1;
            extreme += u64::from((sum - expected).abs() >= distance - 1e-9);
        });
        return extreme as f64 / all as f64;
    }
    // So many that the sum of ranks is normally distributed.
    let (n, m) = (a.len() as f64, b.len() as f64);
    let deviation = (n * m * (n + m + 1.0) / 12.0).sqrt();
    2.0 * normal_tail(distance / deviation)
}

/// Calls `found` with the sum of every choice of `count` of these ranks.
fn deal(ranks: &[f64], count: usize, sum: f64, found: &mut impl FnMut(f64)) {
    if count == 0 {
        return found(sum);
    }
    for at in 0..=ranks.len() - count {
        deal(&ranks[at + 1..], count - 1, sum + ranks[at], found);
    }
}

/// The rank of each value, first those of `a`, then those of `b`; equal values share the mean of their ranks.
fn ranks(a: &[f64], b: &[f64]) -> Vec<f64> {
    let values: Vec<f64> = a.iter().chain(b).copied().collect();
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| *other < value).count();
        let equal = values.iter().filter(|other| *other == value).count();
        below as f64 + (equal as f64 + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

/// Ways to choose `chosen` out of `all`.
fn arrangements(all: usize, chosen: usize) -> f64 {
    (0..chosen).map(|step| (all - step) as f64 / (step + 1) as f64).product()
}

/// The share of a normal distribution above `z`: Abramowitz and Stegun 26.2.17, whose error is below 1e-7.
fn normal_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let terms = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let polynomial = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * polynomial
}

/// The median.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_samples_differ_and_mixed_ones_do_not() {
        let slow = [100.0, 101.0, 99.0, 102.0, 98.0];
        let fast = [111.0, 112.0, 110.0, 113.0, 109.0];
        // Of the 252 ways to deal ten ranks out, two are as extreme: tables of the test have the same 0.0079.
        assert!((mann_whitney(&slow, &fast) - 2.0 / 252.0).abs() < 1e-9);
        assert_eq!(judge(&slow, &fast, true).0, Finding::Better);
        assert_eq!(judge(&slow, &fast, false).0, Finding::Worse);
        assert_eq!(judge(&slow, &[100.5, 98.5, 101.5, 99.5, 100.0], true).0, Finding::NoDifference);
    }

    #[test]
    fn differences_too_small_to_matter_and_runs_too_few_are_named() {
        let a = [100.0, 100.01, 100.02, 100.03];
        let b = [100.1, 100.11, 100.12, 100.13];
        assert_eq!(judge(&a, &b, true).0, Finding::NoDifference);
        assert_eq!(judge(&[1.0, 1.1, 1.2], &[2.0, 2.1, 2.2], true).0, Finding::TooFewRuns);
        assert_eq!(judge(&[1.0], &[1.0], true).0, Finding::TooFewRuns);
    }

    #[test]
    fn many_runs_take_the_normal_approximation() {
        let a: Vec<f64> = (0..30).map(f64::from).collect();
        let b: Vec<f64> = (0..30).map(|value| f64::from(value) + 0.5).collect();
        assert!(mann_whitney(&a, &b) > 0.5);
        let b: Vec<f64> = (0..30).map(|value| f64::from(value) + 20.0).collect();
        assert!(mann_whitney(&a, &b) < 1e-6);
        assert!((normal_tail(1.959_964) - 0.025).abs() < 1e-5);
    }
}
