//! From a scenario's command line to its report.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::cli::{CrowdArgs, Load, PairingArgs, Scenario, Talk};
use crate::handshake::{Target, TargetError};
use crate::net::Driver;
use crate::report::{Asked, Report};
use crate::run::{self, Outcome, Part, Plan, RunError, Window};
use crate::scenario::{Crowd, Echo, Fanout, Idle, Load as Sending, Pacing, Pairs, Question, Roles, Storm, Unicast};
use crate::shards::{Shards, ShardsError};
use crate::sys;
use crate::threshold::{Threshold, ThresholdError};

/// Why a scenario gave no report.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No such server.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No such threshold.
    #[error("--threshold: {0}")]
    Threshold(#[from] ThresholdError),
    /// Nobody answers, or the generator failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// On which shards the connections are.
    #[error(transparent)]
    Shards(#[from] ShardsError),
    /// The arguments contradict each other.
    #[error("{0}")]
    Usage(&'static str),
}

/// Runs a scenario once.
///
/// # Errors
/// When it could not be run; what the server did wrong is in the report.
pub fn report(scenario: &Scenario) -> Result<Report, LaunchError> {
    let asked = asked(scenario)?;
    Ok(Report::new(&asked, outcome(scenario, &|| {})?))
}

/// How a scenario was asked for.
///
/// # Errors
/// When its thresholds make no sense.
pub fn asked(scenario: &Scenario) -> Result<Asked, LaunchError> {
    let load = scenario.load();
    let crowd = |crowd: &CrowdArgs| {
        let defaults = Defaults::of(scenario);
        let broadcasts = crowd.broadcasts.unwrap_or(defaults.broadcasts);
        let talks = crowd.active.unwrap_or(defaults.active(load.connections)) > 1;
        broadcasts + if talks { load.rate.unwrap_or(defaults.rate) } else { 0.0 }
    };
    let rate = match scenario {
        Scenario::Churn { crowd: args, .. }
        | Scenario::Slow { crowd: args, .. }
        | Scenario::Reconnect { crowd: args, .. }
        | Scenario::Mixed { crowd: args, .. } => Some(crowd(args)).filter(|rate| *rate > 0.0),
        _ => load.rate,
    };
    Ok(Asked {
        name: load.name.clone().unwrap_or_else(|| scenario.name().to_owned()),
        scenario: scenario.name().to_owned(),
        connections: load.connections,
        rate,
        thresholds: Threshold::parse_list(&load.threshold)?,
    })
}

/// Runs a scenario once; `gate` is passed between connecting and traffic.
///
/// # Errors
/// When it could not be run.
pub fn outcome(scenario: &Scenario, gate: &dyn Fn()) -> Result<Outcome, LaunchError> {
    let load = scenario.load();
    let question = if load.raw { Question::Raw(load.payload) } else { Question::Ping };
    match scenario {
        Scenario::Echo { talk, .. } => {
            let active = talk.active.map_or(u32::MAX, |active| load.users_from + active);
            let driver = |part: Part| Echo::new(question, sending(load, talk, &part, active), active, part.users.len());
            carry_out(load, Window::Traffic, |_| driver, gate)
        }
        Scenario::Unicast { talk, pairing, .. } => {
            let active = talk.active.map_or(u32::MAX, |active| load.users_from + active);
            if load.raw || load.connections < 2 || talk.active.is_some_and(|active| active < 2) {
                return Err(LaunchError::Usage("unicast needs the gateway's JSON and at least two users"));
            }
            let shards = shards(load, pairing)?;
            let mut load = load.clone();
            if shards.is_some() {
                load.concurrency = 1;
            }
            let load = &load;
            let driver = |part: Part| {
                let sending = sending(load, talk, &part, active);
                let driver = Unicast::new(&load.user_prefix, load.payload, sending, active, part.users.len());
                match &shards {
                    Some(shards) => driver.paired_by_shard(pairing.pairs, shards.clone()),
                    None => driver,
                }
            };
            carry_out(load, Window::Traffic, |_| driver, gate)
        }
        Scenario::Fanout { outstanding, burst, .. } => {
            let pacing = match (load.rate, burst) {
                (Some(rate), _) => Pacing::Rate(rate),
                (None, Some(burst)) => Pacing::Burst(*burst),
                (None, None) => Pacing::Outstanding(*outstanding),
            };
            let drivers = |workers: usize| {
                let progress = Arc::new((0..workers).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
                move |part: Part| {
                    let progress = Arc::clone(&progress);
                    Fanout::new(load.payload, load.raw, pacing, part.worker, progress, part.users.len())
                }
            };
            carry_out(load, Window::Traffic, drivers, gate)
        }
        Scenario::Storm { .. } | Scenario::Ramp { .. } => {
            let mut load = load.clone();
            if matches!(scenario, Scenario::Ramp { .. }) {
                load.connect_rate.get_or_insert(1_000.0);
            }
            carry_out(&load, Window::Connecting, |_| |part: Part| Storm::new(question, part.users.len()), gate)
        }
        Scenario::Idle { .. } => {
            carry_out(load, Window::Traffic, |_| |part: Part| Idle::new(question, part.users.len()), gate)
        }
        Scenario::Churn { crowd, .. }
        | Scenario::Slow { crowd, .. }
        | Scenario::Reconnect { crowd, .. }
        | Scenario::Mixed { crowd, .. } => {
            if load.raw {
                return Err(LaunchError::Usage("mixed connections need the gateway's JSON"));
            }
            let defaults = Defaults::of(scenario);
            let mut load = load.clone();
            if defaults.storm {
                // The cut is what is measured: the window begins with it.
                load.warmup = Duration::ZERO;
            }
            let load = &load;
            carry_out(load, Window::Traffic, |_| |part: Part| mixed(load, crowd, &defaults, &part), gate)
        }
    }
}

/// What tells the connections' shards; `None` when the pairs do not depend on them.
fn shards(load: &Load, args: &PairingArgs) -> Result<Option<Shards>, LaunchError> {
    if args.pairs == Pairs::Mixed {
        return Ok(None);
    }
    let url = args.metrics_url.as_ref().ok_or(LaunchError::Usage("--pairs same and other need --metrics-url"))?;
    let workers = run::workers_needed(load.threads, load.connections, sys::raise_descriptor_limit());
    if workers > 1 || load.url.len() > 1 {
        let reason = "--pairs same and other need one URL, one thread, and connections within its descriptor limit";
        return Err(LaunchError::Usage(reason));
    }
    let shards = Shards::begin(url)?;
    if args.pairs == Pairs::Other && shards.len() == 1 {
        return Err(ShardsError::OneShard.into());
    }
    Ok(Some(shards))
}

/// What mixed connections do unless the command line says otherwise.
struct Defaults {
    active_percent: u32,
    rate: f64,
    broadcasts: f64,
    leave_percent: f64,
    slow: u32,
    storm: bool,
}

impl Defaults {
    fn of(scenario: &Scenario) -> Self {
        let none = Self { active_percent: 0, rate: 0.0, broadcasts: 0.0, leave_percent: 0.0, slow: 0, storm: false };
        match scenario {
            Scenario::Churn { .. } => Self { active_percent: 10, rate: 1_000.0, leave_percent: 2.0, ..none },
            Scenario::Slow { .. } => Self { broadcasts: 200.0, slow: 10, ..none },
            Scenario::Reconnect { .. } => Self { storm: true, ..none },
            Scenario::Mixed { .. } => {
                Self { active_percent: 10, rate: 5_000.0, broadcasts: 1.0, leave_percent: 0.5, ..none }
            }
            _ => none,
        }
    }

    fn active(&self, connections: u32) -> u32 {
        connections / 100 * self.active_percent
    }
}

fn mixed(load: &Load, args: &CrowdArgs, defaults: &Defaults, part: &Part) -> Crowd {
    let connections = load.connections;
    let talkers = load.users_from + (args.active.unwrap_or(defaults.active(connections)).min(connections) & !1);
    let slow_from = load.users_from + connections.saturating_sub(args.slow.unwrap_or(defaults.slow)).max(1);
    let leaves = args.leave_percent.unwrap_or(defaults.leave_percent) / 100.0 * f64::from(connections);
    let churners = f64::from(slow_from.saturating_sub(talkers).max(1));
    let roles = Roles {
        talkers,
        slow_from,
        broadcasts_per_second: args.broadcasts.unwrap_or(defaults.broadcasts),
        leaves_per_second: leaves * f64::from(part.users_within(talkers, slow_from)) / churners,
        storm: defaults.storm,
    };
    let rate = load.rate.unwrap_or(defaults.rate);
    let talk =
        Unicast::new(&load.user_prefix, load.payload, open_loop(rate, load, part, talkers), talkers, part.users.len());
    Crowd::new(roles, talk, load.payload, part.users.len())
}

fn sending(load: &Load, talk: &Talk, part: &Part, active: u32) -> Sending {
    match load.rate {
        Some(rate) => open_loop(rate, load, part, active),
        None => Sending::Closed { inflight: talk.inflight },
    }
}

/// A worker's share of a rate: that of the active users it has, which are those below `active`.
fn open_loop(rate: f64, load: &Load, part: &Part, active: u32) -> Sending {
    let all = active.min(load.users_from + load.connections).saturating_sub(load.users_from);
    let share = f64::from(part.users_within(load.users_from, active)) / f64::from(all.max(1));
    Sending::Open { per_second: rate * share, phase: part.worker as f64 / part.workers as f64 }
}

fn carry_out<D: Driver, F: Fn(Part) -> D>(
    load: &Load,
    window: Window,
    drivers: impl FnOnce(usize) -> F,
    gate: &dyn Fn(),
) -> Result<Outcome, LaunchError> {
    let workers = run::workers_needed(load.threads, load.connections, sys::raise_descriptor_limit());
    let targets = load.url.iter().map(|url| Target::parse(url)).collect::<Result<_, _>>()?;
    let plan = Plan {
        targets,
        connections: load.connections,
        cpus: load.cpu.clone().map_or_else(Vec::new, |list| list.0),
        concurrency: load.concurrency as usize,
        connect_rate: load.connect_rate,
        connect_timeout: load.connect_timeout,
        warmup: load.warmup,
        duration: load.duration,
        drain: load.drain,
        user_prefix: load.user_prefix.clone(),
        server_pids: load.server_pid.clone(),
        redis_pids: load.redis_pid.clone(),
        window,
        live: !load.quiet,
        users_from: load.users_from,
    };
    Ok(run::run(&plan, workers, drivers(workers), gate)?)
}
