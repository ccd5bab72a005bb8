//! How much a server takes: the rate goes up until a threshold breaks, then the knee is looked for in between.

use crate::chart::{Axis, Chart, Series};
use crate::cli::Scenario;
use crate::launch::{self, LaunchError};
use crate::report::Report;
use crate::verdict::Outcome;

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Messages a second that were asked for.
    pub rate: f64,
    /// What became of it.
    pub report: Report,
}

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The first rate, in messages a second.
    pub from: f64,
    /// The last one.
    pub to: f64,
    /// Each rate is so many times the one before.
    pub factor: f64,
    /// Halvings of the interval in which a threshold broke.
    pub refinements: u32,
}

/// Steps the rate up; `each` sees every step as it is done.
///
/// # Errors
/// When a step could not be run at all.
pub fn search(scenario: &Scenario, range: Range, each: impl Fn(&Step)) -> Result<Vec<Step>, LaunchError> {
    let mut steps = Vec::new();
    let mut run = |rate: f64| -> Result<Outcome, LaunchError> {
        let mut scenario = scenario.clone();
        let load = scenario.load_mut();
        load.rate = Some(rate);
        load.name = Some(format!("{} {rate:.0}/s", load.name.as_deref().unwrap_or("search")));
        let step = Step { rate, report: launch::report(&scenario)? };
        each(&step);
        let outcome = step.report.verdict.outcome;
        steps.push(step);
        Ok(outcome)
    };
    let (mut good, mut rate) = (0.0, range.from);
    let mut bad = None;
    while bad.is_none() && rate <= range.to * 1.000_001 {
        match run(rate)? {
            Outcome::Pass => {
                good = rate;
                rate *= range.factor;
            }
            Outcome::Fail | Outcome::Invalid => bad = Some(rate),
        }
    }
    if let Some(mut bad) = bad.filter(|_| good > 0.0) {
        for _ in 0..range.refinements {
            let middle = f64::midpoint(good, bad);
            match run(middle)? {
                Outcome::Pass => good = middle,
                Outcome::Fail | Outcome::Invalid => bad = middle,
            }
        }
    }
    steps.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    Ok(steps)
}

/// The highest rate at which everything held.
pub fn knee(steps: &[Step]) -> Option<f64> {
    let held = steps.iter().filter(|step| step.report.verdict.outcome == Outcome::Pass);
    held.map(|step| step.rate).fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |best| best.max(rate))))
}

/// Latency over rate.
pub fn chart(steps: &[Step]) -> Chart {
    let line = |name: &str, value: fn(&crate::stats::Summary) -> f64| Series {
        name: name.to_owned(),
        points: steps
            .iter()
            .filter_map(|step| Some((step.rate, value(step.report.latency.get("message")?) / 1e3)))
            .collect(),
    };
    Chart {
        title: "The knee: message latency over the rate, ms".to_owned(),
        across: "messages a second asked for",
        axis: Axis::Plain,
        series: vec![line("p99", |summary| summary.p99_us), line("p50", |summary| summary.p50_us)],
    }
}

/// One line of the table.
pub fn line(step: &Step) -> String {
    let message = step.report.latency.get("message").copied().unwrap_or_default();
    let server = step.report.server.as_ref().map_or(0.0, |server| server.cpu_percent);
    format!(
        "{:>10.0}/s  received {:>10.0}/s  p50 {:>8.3} ms  p99 {:>9.3} ms  server {server:>5.1} %  generator {:>5.1} %  {}",
        step.rate,
        step.report.messages_per_second,
        message.p50_us / 1e3,
        message.p99_us / 1e3,
        step.report.generator.busiest_thread_percent,
        step.report.verdict
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn the_knee_is_the_highest_rate_that_held() {
        let step = |rate, outcome| {
            let mut report = fixture();
            report.verdict.outcome = outcome;
            Step { rate, report }
        };
        let steps = [step(10.0, Outcome::Pass), step(20.0, Outcome::Pass), step(30.0, Outcome::Fail)];
        assert_eq!(knee(&steps), Some(20.0));
        assert_eq!(knee(&steps[2..]), None);
    }
}
