//! `ringmesh-bench`: a load generator and benchmark harness for WebSocket gateways.
//!
//! # Layout
//! Pure: [`frame`], [`handshake`], [`stamp`], [`sequence`], [`stats`], [`report`]. The rim: [`sys`] (the only unsafe code),
//! [`net`] (one worker's sockets), [`run`] (the workers and their phases), [`proc`] (what /proc says), [`control`]
//! (a server to compare with). [`scenario`] says what the connections do.
#![warn(missing_docs)]

mod cli;
mod control;
mod frame;
mod handshake;
mod net;
mod proc;
mod report;
mod run;
mod scenario;
mod sequence;
mod stamp;
mod stats;
mod sys;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use clap::Parser as _;

use cli::{Cli, Command, Load, Talk};
use handshake::{Target, TargetError};
use net::Driver;
use report::Report;
use run::{Plan, Receivers, RunError, Window};
use scenario::{Echo, Fanout, Idle, Pacing, Question, Storm, Unicast};

/// The run gave a result, but connections or messages went wrong.
const EXIT_BROKEN: u8 = 1;
/// The generator itself failed.
const EXIT_INVALID: u8 = 2;
/// Nobody answers at the address.
const EXIT_UNREACHABLE: u8 = 3;
/// The command line makes no sense (sysexits.h, EX_USAGE).
const EXIT_USAGE: u8 = 64;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("control: {0}")]
    Control(#[from] control::ControlError),
    #[error("cannot write {path}: {source}")]
    Json { path: String, source: std::io::Error },
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Run(RunError::Unreachable { .. }) => EXIT_UNREACHABLE,
            Self::Run(RunError::Worker(_)) | Self::Control(_) | Self::Json { .. } => EXIT_INVALID,
            Self::Target(_) | Self::Usage(_) => EXIT_USAGE,
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Where the help cannot be printed there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match execute(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("ringmesh-bench: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn execute(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Echo { load, talk } => {
            let (question, Talk { inflight, active }) = (question(&load), talk);
            let active = active.unwrap_or(load.connections);
            measure("echo", &load, Window::Traffic, Receivers::One, |_, _| {
                move |_, connections| Echo::new(question, inflight, active, connections)
            })
        }
        Command::Unicast { load, talk } => {
            let active = talk.active.unwrap_or(load.connections);
            if load.raw || active < 2 {
                return Err(Failure::Usage("unicast needs the gateway's JSON and at least two users".to_owned()));
            }
            measure("unicast", &load, Window::Traffic, Receivers::One, |load, _| {
                let (prefix, payload) = (load.user_prefix.clone(), load.payload);
                move |_, connections| Unicast::new(&prefix, payload, talk.inflight, active, connections)
            })
        }
        Command::Fanout { load, outstanding, burst } => {
            let pacing = burst.map_or(Pacing::Outstanding(outstanding), Pacing::Burst);
            measure("fanout", &load, Window::Traffic, Receivers::All, |load, workers| {
                let progress = Arc::new((0..workers).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
                let (payload, raw) = (load.payload, load.raw);
                move |worker, connections| Fanout::new(payload, raw, pacing, worker, Arc::clone(&progress), connections)
            })
        }
        Command::Storm { load } => {
            let question = question(&load);
            measure("storm", &load, Window::Connecting, Receivers::One, |_, _| {
                move |_, connections| Storm::new(question, connections)
            })
        }
        Command::Idle { load } => {
            let question = question(&load);
            measure("idle", &load, Window::Traffic, Receivers::One, |_, _| {
                move |_, connections| Idle::new(question, connections)
            })
        }
        Command::Control(args) => {
            control::serve(&args)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn question(load: &Load) -> Question {
    if load.raw { Question::Raw(load.payload) } else { Question::Ping }
}

/// Runs one scenario, prints its table and writes its JSON.
fn measure<D, F>(
    scenario: &str,
    load: &Load,
    window: Window,
    receivers: Receivers,
    drivers: impl FnOnce(&Load, usize) -> F,
) -> Result<ExitCode, Failure>
where
    D: Driver,
    F: Fn(usize, usize) -> D,
{
    let workers = run::workers_needed(load.threads, load.connections, sys::raise_descriptor_limit());
    let plan = Plan {
        target: Target::parse(&load.url)?,
        connections: load.connections,
        cpus: load.cpu.clone().map_or_else(Vec::new, |list| list.0),
        concurrency: load.concurrency as usize,
        connect_timeout: load.connect_timeout,
        warmup: load.warmup,
        duration: load.duration,
        drain: load.drain,
        user_prefix: load.user_prefix.clone(),
        server_pids: load.server_pid.clone(),
        window,
        receivers,
    };
    let outcome = run::run(&plan, workers, drivers(load, workers))?;
    let report = Report::new(scenario, load.connections, outcome);
    print!("{}", report.table());
    if let Some(path) = &load.json {
        let failed = |source| Failure::Json { path: path.display().to_string(), source };
        let text = serde_json::to_string_pretty(&report).map_err(|error| failed(error.into()))?;
        std::fs::write(path, text + "\n").map_err(failed)?;
    }
    Ok(if report.errors_total == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) })
}
