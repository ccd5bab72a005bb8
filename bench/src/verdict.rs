//! What a run is worth: its thresholds hold, or one broke, or the generator was not up to it and nothing is known. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::threshold::Threshold;

/// A generator thread whose CPU and run-queue wait pass this share measures itself.
const GENERATOR_PERCENT_MAX: f64 = 80.0;
/// Less than this share of the asked rate was sent: the load was not the one asked for.
const RATE_SHARE_MIN: f64 = 0.99;
/// The schedule is kept when 99 % of the messages leave within this time of their intended moment.
const SCHEDULE_LAG_P99_US_MAX: f64 = 10_000.0;

/// What a run is worth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All that was asked holds.
    #[default]
    Pass,
    /// A threshold broke.
    Fail,
    /// The generator could not produce the load, or not measure it: the numbers say nothing about the server.
    Invalid,
}

/// The outcome and its reasons.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// What the run is worth.
    pub outcome: Outcome,
    /// What broke, or why the run says nothing.
    pub reasons: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.outcome {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Invalid => "INVALID",
        })?;
        for (index, reason) in self.reasons.iter().enumerate() {
            write!(formatter, "{}{reason}", if index == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

/// Judges a run. Without a threshold on errors there must be none.
pub fn judge(report: &Report, thresholds: &[Threshold]) -> Verdict {
    let mut reasons: Vec<_> = thresholds.iter().filter_map(|threshold| threshold.broken_by(report)).collect();
    if report.errors_total > 0 && !thresholds.iter().any(Threshold::is_errors) {
        reasons.push(format!("{} errors", report.errors_total));
    }
    let mut outcome = if reasons.is_empty() { Outcome::Pass } else { Outcome::Fail };
    let invalid = invalid_reasons(report, thresholds.iter().any(Threshold::is_latency));
    if !invalid.is_empty() {
        outcome = Outcome::Invalid;
        reasons.splice(0..0, invalid);
    }
    Verdict { outcome, reasons }
}

/// Why the numbers say nothing. A closed loop that is not asked for a latency is content with a busy generator: it
/// reports messages for each second of the server's CPU, which a slow generator does not change.
fn invalid_reasons(report: &Report, latency_asked: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let busiest = report.generator.busiest_thread_percent;
    if (report.rate_asked.is_some() || latency_asked) && busiest > GENERATOR_PERCENT_MAX {
        reasons.push(format!("a generator thread's CPU and waiting came to {busiest:.0} %"));
    }
    if let (Some(asked), Some(sent)) = (report.rate_asked, report.rate_sent)
        && sent < asked * RATE_SHARE_MIN
    {
        reasons.push(format!("only {sent:.0} of {asked:.0} messages a second were sent"));
    }
    if let Some(lag) = report.latency.get("schedule_lag").filter(|lag| lag.p99_us > SCHEDULE_LAG_P99_US_MAX) {
        reasons.push(format!("the generator was behind its schedule, p99 {:.1} ms", lag.p99_us / 1_000.0));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;
    use crate::stats::Summary;

    fn thresholds(text: &str) -> Vec<Threshold> {
        Threshold::parse_list(text).expect("well formed")
    }

    #[test]
    fn errors_break_a_run_unless_they_are_allowed() {
        let mut report = fixture();
        assert_eq!(judge(&report, &[]).outcome, Outcome::Pass);
        report.errors_total = 3;
        assert_eq!(judge(&report, &[]).outcome, Outcome::Fail);
        assert_eq!(judge(&report, &thresholds("errors<5")).outcome, Outcome::Pass);
    }

    #[test]
    fn a_busy_generator_spoils_latencies_but_not_closed_loops() {
        let mut report = fixture();
        report.generator.busiest_thread_percent = 97.0;
        report.latency.insert("message".to_owned(), Summary::default());
        assert_eq!(judge(&report, &thresholds("rate>=0")).outcome, Outcome::Pass);
        assert_eq!(judge(&report, &thresholds("p99<1s")).outcome, Outcome::Invalid);
        (report.rate_asked, report.rate_sent) = (Some(100.0), Some(100.0));
        assert_eq!(judge(&report, &[]).outcome, Outcome::Invalid);
    }

    #[test]
    fn a_schedule_that_was_not_kept_spoils_an_open_loop() {
        let mut report = fixture();
        (report.rate_asked, report.rate_sent) = (Some(100.0), Some(98.0));
        assert_eq!(judge(&report, &[]).outcome, Outcome::Invalid);
        report.rate_sent = Some(99.5);
        assert_eq!(judge(&report, &[]).outcome, Outcome::Pass);
        report.latency.insert("schedule_lag".to_owned(), Summary { p99_us: 20_000.0, ..Summary::default() });
        let verdict = judge(&report, &[]);
        assert!(verdict.to_string().starts_with("INVALID: the generator was behind"), "{verdict}");
    }
}
