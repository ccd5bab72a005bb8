//! `ringmesh-bench`: a load generator and benchmark harness for WebSocket gateways.
//!
//! # Layout
//! Pure: [`frame`], [`handshake`], [`stamp`], [`sequence`], [`pace`], [`stats`], [`timeline`], [`report`], [`threshold`],
//! [`verdict`], [`table`], [`chart`], [`html`], [`compare`]. The rim: [`sys`] (the only unsafe code), [`net`] (one worker's sockets), [`run`] (the workers
//! and their phases), [`proc`] and [`machine`] (what /proc says), [`results`] (files), [`control`] (a server to compare
//! with), [`shards`] (what its metrics tell). [`scenario`] says what the connections do, [`launch`] makes a report of a command line;
//! [`search`], [`suite`], [`cluster`] and [`costs`] (with [`redis`]), [`peers`] (with [`server`] and [`nats`]) and [`agent`] make many.
#![warn(missing_docs)]

mod agent;
mod chart;
mod cli;
mod cluster;
mod compare;
mod control;
mod costs;
mod frame;
mod handshake;
mod html;
mod launch;
mod machine;
mod nats;
mod net;
mod pace;
mod peers;
mod proc;
mod redis;
mod report;
mod results;
mod run;
mod scenario;
mod search;
mod sequence;
mod server;
mod shards;
mod stamp;
mod stats;
mod suite;
mod sys;
mod table;
mod threshold;
mod timeline;
mod verdict;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use agent::AgentError;
use chart::Chart;
use cli::{Cli, Command, Scenario, SearchArgs, SuiteName};
use launch::LaunchError;
use results::{Results, ResultsError};
use run::RunError;
use shards::ShardsError;
use suite::SuiteError;
use verdict::Outcome;

/// A threshold broke.
const EXIT_FAIL: u8 = 1;
/// The generator was not up to the load, or failed.
const EXIT_INVALID: u8 = 2;
/// Nobody answers at the address.
const EXIT_UNREACHABLE: u8 = 3;
/// The command line makes no sense (sysexits.h, EX_USAGE).
const EXIT_USAGE: u8 = 64;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("control: {0}")]
    Control(#[from] control::ControlError),
    #[error(transparent)]
    Results(#[from] ResultsError),
    #[error(transparent)]
    Suite(#[from] SuiteError),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Launch(error)
            | Self::Suite(SuiteError::Launch(_, error))
            | Self::Agent(AgentError::Launch(error)) => match error {
                LaunchError::Run(RunError::Unreachable { .. }) => EXIT_UNREACHABLE,
                LaunchError::Run(RunError::Worker(_)) => EXIT_INVALID,
                LaunchError::Shards(ShardsError::Read(..) | ShardsError::Unclear(..)) => EXIT_UNREACHABLE,
                LaunchError::Shards(_) | LaunchError::Target(_) | LaunchError::Threshold(_) | LaunchError::Usage(_) => {
                    EXIT_USAGE
                }
            },
            Self::Suite(
                SuiteError::Server(_) | SuiteError::Redis(_) | SuiteError::NotReady(_) | SuiteError::Metrics(..),
            )
            | Self::Agent(AgentError::Network(..)) => EXIT_UNREACHABLE,
            Self::Agent(AgentError::Part(..) | AgentError::Format(..)) => EXIT_INVALID,
            Self::Suite(SuiteError::Nats(_))
            | Self::Control(_)
            | Self::Results(ResultsError::Write { .. })
            | Self::Suite(SuiteError::Own(_)) => EXIT_INVALID,
            Self::Results(_) | Self::Agent(AgentError::Arguments(_) | AgentError::NotDivisible(_)) => EXIT_USAGE,
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
        Ok(outcome) => ExitCode::from(exit_code(outcome)),
        Err(failure) => {
            eprintln!("ringmesh-bench: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn exit_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Pass => 0,
        Outcome::Fail => EXIT_FAIL,
        Outcome::Invalid => EXIT_INVALID,
    }
}

fn execute(command: Command) -> Result<Outcome, Failure> {
    match command {
        Command::Scenario(scenario) => measure(&scenario),
        Command::Control(args) => {
            control::serve(&args)?;
            Ok(Outcome::Pass)
        }
        Command::Compare { before, after } => {
            print!("{}", compare::table(&Results::read(&before)?, &Results::read(&after)?));
            Ok(Outcome::Pass)
        }
        Command::Page { results, page } => {
            let title = results.file_stem().unwrap_or_default().to_string_lossy();
            results::write_text(&page, &html::page(&title, &Results::read(&results)?, &[]))?;
            Ok(Outcome::Pass)
        }
        Command::Search(args) => search(&args),
        Command::Suite(args) => {
            let results = suite::run(&args)?;
            let name = match args.suite {
                SuiteName::Quick => "quick",
                SuiteName::Full => "full",
                SuiteName::HundredK => "100k",
                SuiteName::Cluster => "cluster",
            };
            keep(&results, &args.results, name, &[])?;
            Ok(worst(&results))
        }
        Command::Costs(args) => {
            costs::run(&args)?;
            Ok(Outcome::Pass)
        }
        Command::Peers(args) => {
            let results = peers::run(&args)?;
            keep(&results, &args.results, "peers", &[])?;
            Ok(worst(&results))
        }
        Command::Agent(args) => {
            agent::serve(&args)?;
            Ok(Outcome::Pass)
        }
        Command::Coordinate(args) => {
            let report = agent::coordinate(&args)?;
            print!("{}", table::render(&report));
            Ok(report.verdict.outcome)
        }
    }
}

fn worst(results: &Results) -> Outcome {
    results.runs.iter().map(|run| run.verdict.outcome).max().unwrap_or_default()
}

/// Writes the results into a folder, as JSON and as a page.
fn keep(results: &Results, folder: &Path, name: &str, charts: &[Chart]) -> Result<(), ResultsError> {
    let stem = folder.join(results.stem(name));
    let (json, page) = (stem.with_extension("json"), stem.with_extension("html"));
    results.write(&json)?;
    results::write_text(&page, &html::page(name, results, charts))?;
    println!("{}\n{}", json.display(), page.display());
    Ok(())
}

/// Steps the rate up, and draws the knee.
fn search(args: &SearchArgs) -> Result<Outcome, Failure> {
    let scenario = agent::parse(&args.scenario)?;
    let range =
        search::Range { from: args.from, to: args.to, factor: args.factor.max(1.01), refinements: args.refinements };
    let steps = search::search(&scenario, range, |step| println!("{}", search::line(step)))?;
    let knee = search::knee(&steps);
    match knee {
        Some(rate) if steps.iter().any(|step| step.rate > rate && step.report.verdict.outcome == Outcome::Invalid) => {
            println!("at least {rate:.0} messages a second: above it, the generator was not up to the load");
        }
        Some(rate) => println!("the knee: {rate:.0} messages a second"),
        None => println!("no rate held"),
    }
    let chart = search::chart(&steps);
    let results = Results { machine: machine::describe(), runs: steps.into_iter().map(|step| step.report).collect() };
    write_files(&results, &scenario, &[chart])?;
    Ok(if knee.is_some() { Outcome::Pass } else { Outcome::Fail })
}

/// Writes the files that the scenario's arguments ask for.
fn write_files(results: &Results, scenario: &Scenario, charts: &[Chart]) -> Result<(), ResultsError> {
    let load = scenario.load();
    if let Some(path) = &load.json {
        results.write(path)?;
    }
    if let Some(path) = &load.html {
        results::write_text(path, &html::page(scenario.name(), results, charts))?;
    }
    match &load.results {
        Some(folder) => keep(results, folder, scenario.name(), charts),
        None => Ok(()),
    }
}

/// Runs one scenario as often as asked, prints its tables and writes its files. The worst outcome counts.
fn measure(scenario: &Scenario) -> Result<Outcome, Failure> {
    let load = scenario.load();
    let mut results = Results { machine: machine::describe(), runs: Vec::new() };
    for _ in 0..load.repeat {
        let report = launch::report(scenario)?;
        print!("{}", table::render(&report));
        results.runs.push(report);
    }
    write_files(&results, scenario, &[])?;
    Ok(worst(&results))
}
