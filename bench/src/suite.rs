//! Suites: lists of scenarios, each against a fresh server, and what they say together.

use std::net::SocketAddr;

use clap::Parser as _;

use crate::cli::{Cli, Command, CpuList, Scenario, SuiteArgs, SuiteName};
use crate::launch::{self, LaunchError};
use crate::nats::{self, Echoes};
use crate::redis::RedisError;
use crate::report::{Asked, Report};
use crate::results::Results;
use crate::server::{Server, ServerError};
use crate::sys;
use crate::{cluster, machine, table};

/// Why a suite ended early.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The server under test.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A scenario.
    #[error("{0}: {1}")]
    Launch(String, LaunchError),
    /// A connection to NATS.
    #[error("nats: {0}")]
    Nats(std::io::Error),
    /// The Redis between nodes.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// A node that says it is not ready, or does not know the others.
    #[error("the node at {0} is not ready, or does not know the others, for too long")]
    NotReady(SocketAddr),
    /// A node whose metrics can't be read.
    #[error("the metrics at {0}: {1}")]
    Metrics(SocketAddr, std::io::Error),
    /// This process cannot say where it may run, or what it is.
    #[error("cannot look at this process: {0}")]
    Own(#[from] std::io::Error),
}

/// Which cores a case uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cores {
    /// One for the server, another one for the generator.
    Apart,
    /// All of them, for both.
    Shared,
}

/// One line of a suite.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    cores: Cores,
    /// The scenario and its arguments.
    arguments: &'static str,
    /// The mode of the control that can be asked the same.
    control: Option<&'static str>,
}

const fn apart(name: &'static str, arguments: &'static str) -> Case {
    Case { name, cores: Cores::Apart, arguments, control: None }
}

const fn controlled(name: &'static str, mode: &'static str, arguments: &'static str) -> Case {
    Case { name, cores: Cores::Apart, arguments, control: Some(mode) }
}

const fn shared(name: &'static str, arguments: &'static str) -> Case {
    Case { name, cores: Cores::Shared, arguments, control: None }
}

/// About two minutes.
const QUICK: &[Case] = &[
    controlled("ping-500x1", "pong", "echo -c 500 -i 1 -d 4s"),
    controlled("ping-500x16", "pong", "echo -c 500 -i 16 -d 4s"),
    apart("unicast-500x1", "unicast -c 500 -i 1 -d 4s"),
    apart("unicast-500x16", "unicast -c 500 -i 16 -d 4s"),
    controlled("fanout-1000", "fanout", "fanout -c 1000 -d 4s"),
    controlled("fanout-1000-burst32", "fanout", "fanout -c 1000 --burst 32 -d 4s"),
    apart("unicast-1000-rate5k", "unicast -c 1000 -r 5k -d 5s --threshold p99<50ms,errors=0"),
    apart("storm-5000", "storm -c 5000 --threshold ready.p99<500ms,errors=0"),
    apart("churn-2000", "churn -c 2000 -d 5s --threshold p99<50ms,errors=0"),
    apart("slow-10-of-500", "slow -c 500 --payload 2000 -d 6s --threshold p99<50ms,errors=0"),
    apart("reconnect-5000", "reconnect -c 5000 -d 20s --threshold resume.max<10s,errors=0"),
    apart("mixed-5000", "mixed -c 5000 -d 5s --threshold p99<200ms,errors=0"),
    apart("idle-10000", "idle -c 10000 -d 5s --threshold errors=0,rss<1024"),
];

/// The table of speeds, about ten minutes.
const FULL: &[Case] = &[
    controlled("ping-500x1", "pong", "echo -c 500 -i 1 -d 10s"),
    controlled("ping-500x16", "pong", "echo -c 500 -i 16 -d 10s"),
    apart("unicast-500x1", "unicast -c 500 -i 1 -d 10s"),
    apart("unicast-500x16", "unicast -c 500 -i 16 -d 10s"),
    controlled("fanout-1000", "fanout", "fanout -c 1000 -d 10s"),
    controlled("fanout-5000", "fanout", "fanout -c 5000 -d 10s"),
    controlled("fanout-15000", "fanout", "fanout -c 15000 -d 10s"),
    controlled("fanout-1000-burst32", "fanout", "fanout -c 1000 --burst 32 -d 10s"),
    controlled("fanout-5000-burst32", "fanout", "fanout -c 5000 --burst 32 -d 10s"),
    controlled("fanout-15000-burst32", "fanout", "fanout -c 15000 --burst 32 -d 10s"),
    apart("unicast-1000-rate20k", "unicast -c 1000 -r 20k -d 20s --threshold p99<100ms,errors=0"),
    apart("storm-18000", "storm -c 18000 --concurrency 64 --threshold ready.p99<50ms,errors=0"),
    apart("ramp-10000", "ramp -c 10000 --connect-rate 2k --threshold ready.p99<50ms,errors=0"),
    apart("churn-10000", "churn -c 10000 -r 5k -d 20s --threshold p99<100ms,errors=0"),
    apart("slow-10-of-500", "slow -c 500 --payload 2000 -d 15s --threshold p99<50ms,errors=0"),
    apart("reconnect-18000", "reconnect -c 18000 -d 60s --threshold resume.max<30s,errors=0"),
    apart("mixed-15000", "mixed -c 15000 -d 20s --threshold p99<200ms,errors=0"),
    shared("deliveries-1M", "fanout -c 1000 -r 1000 -d 30s --threshold p99<100ms,errors=0,rate>=990k"),
    apart("idle-15000", "idle -c 15000 -d 20s --threshold errors=0,rss<1024"),
];

/// The headline: 100,000 connections, about five minutes.
const HUNDRED_K: &[Case] = &[
    apart("ping-500x1", "echo -c 500 -i 1 -d 10s"),
    controlled("ping-500x1-of-100k", "pong", "echo -c 100000 --active 500 -i 1 -d 10s --connect-timeout 30s"),
    controlled("ping-500x16-of-100k", "pong", "echo -c 100000 --active 500 -i 16 -d 10s --connect-timeout 30s"),
    apart(
        "idle-100k",
        "idle -c 100000 -d 65s --drain 30s --connect-timeout 30s --threshold errors=0,rss<1024,cpu_us<2",
    ),
    shared(
        "unicast-100k-rate20k",
        "unicast -c 100000 -r 20k -d 60s --warmup 5s --connect-timeout 30s --threshold p99<100ms,errors=0",
    ),
    shared("mixed-100k", "mixed -c 100000 -r 10k -d 30s --warmup 5s --connect-timeout 30s --threshold p99<2s,errors=0"),
];

/// Runs a suite, prints each table and at last the verdicts.
///
/// # Errors
/// When a server does not start, or nobody answers.
pub fn run(args: &SuiteArgs) -> Result<Results, SuiteError> {
    let cases = match args.suite {
        SuiteName::Quick => QUICK,
        SuiteName::Full => FULL,
        SuiteName::HundredK => HUNDRED_K,
        SuiteName::Cluster => return cluster::run(args),
    };
    let mut results = Results { machine: machine::describe(), runs: Vec::new() };
    let own = std::env::current_exe()?;
    let control = |mode: &str, connections: u32| {
        format!("{} control --listen {{listen}} --mode {mode} --connections-max {connections}", own.display())
    };
    for case in
        cases.iter().filter(|case| args.only.is_empty() || args.only.iter().any(|only| case.name.contains(only)))
    {
        for _ in 0..args.repeat {
            results.runs.push(measure(case, case.name, &args.server_cmd, "")?);
            if let Some(mode) = case.control.filter(|_| !args.without_control) {
                let name = format!("{}{}", case.name, CONTROL_SUFFIX);
                // Some more, for sockets that are on their way out.
                let connections = scenario(case.arguments).load().connections + 100;
                let raw = if mode == "fanout" { " --raw" } else { "" };
                results.runs.push(measure(case, &name, &control(mode, connections), raw)?);
            }
        }
    }
    print!("{}", verdicts(&results));
    Ok(results)
}

/// What the name of a run against the control ends with.
const CONTROL_SUFFIX: &str = "/control";

fn measure(case: &Case, name: &str, server_cmd: &str, more: &str) -> Result<Report, SuiteError> {
    let report = measure_on(case.cores, name, &format!("{}{more}", case.arguments), server_cmd)?;
    println!("{}", table::render(&report));
    Ok(report)
}

/// Starts a server on one core, and measures a scenario from another one.
///
/// # Errors
/// When the server does not start, or does not answer.
pub fn measure_apart(name: &str, arguments: &str, server_cmd: &str) -> Result<Report, SuiteError> {
    measure_on(Cores::Apart, name, arguments, server_cmd)
}

fn measure_on(cores: Cores, name: &str, arguments: &str, server_cmd: &str) -> Result<Report, SuiteError> {
    let (server_cpus, generator_cpus) = split(cores)?;
    let server = Server::start(server_cmd, &server_cpus)?;
    let mut scenario = scenario(arguments);
    let load = scenario.load_mut();
    load.url = vec![format!("ws://{}/ws", server.address)];
    load.server_pid = vec![server.pid()];
    load.name = Some(name.to_owned());
    load.cpu = Some(generator_cpus).filter(|cpus| !cpus.is_empty()).map(CpuList);
    launch::report(&scenario).map_err(|error| SuiteError::Launch(name.to_owned(), error))
}

/// The same with NATS, which speaks another protocol.
///
/// # Errors
/// When the server does not start, or does not answer as it should.
pub fn measure_nats(name: &str, echoes: Echoes, server_cmd: &str) -> Result<Report, SuiteError> {
    let (server_cpus, generator_cpus) = split(Cores::Apart)?;
    let server = Server::start(server_cmd, &server_cpus)?;
    let cpu = generator_cpus.first().copied();
    let outcome = nats::measure(server.address, server.pid(), cpu, echoes).map_err(SuiteError::Nats)?;
    let asked = Asked {
        name: name.to_owned(),
        scenario: "nats".to_owned(),
        connections: echoes.connections,
        rate: None,
        thresholds: Vec::new(),
    };
    Ok(Report::new(&asked, outcome))
}

/// The cores of the server and of the generator; none: wherever it likes.
fn split(cores: Cores) -> std::io::Result<(Vec<usize>, Vec<usize>)> {
    let own = sys::affinity()?;
    Ok(match (cores, own.as_slice()) {
        (Cores::Apart, [first, second, ..]) => (vec![*first], vec![*second]),
        (Cores::Apart | Cores::Shared, all) => (all.to_vec(), Vec::new()),
    })
}

/// The scenario that these words ask for. They are constants, which a test reads.
pub fn scenario(arguments: &str) -> Scenario {
    let words = std::iter::once("ringmesh-bench").chain(arguments.split_ascii_whitespace());
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Scenario(scenario) }) => *scenario,
        other => unreachable!("a suite has the scenario {arguments:?}: {other:?}"),
    }
}

/// The table at the end of a suite.
fn verdicts(results: &Results) -> String {
    let mut out = format!("{}\n\n", results.machine.line());
    let [run, rate, cpu, per_cpu, of, p99, rss] =
        ["run", "messages/s", "server %", "per CPU-second", "of control", "p99 ms", "RSS B/conn"];
    out += &format!("{run:<28} {rate:>12} {cpu:>9} {per_cpu:>15} {of:>11} {p99:>9} {rss:>11}  verdict\n");
    for run in results.runs.iter().filter(|run| !run.name.ends_with(CONTROL_SUFFIX)) {
        let per_cpu = |run: &Report| run.server.as_ref().map_or(0.0, |server| server.messages_per_cpu_second);
        let control = results.runs.iter().find(|other| other.name == format!("{}{CONTROL_SUFFIX}", run.name));
        let of = control.map_or(String::new(), |other| format!("{:.0} %", per_cpu(run) / per_cpu(other) * 100.0));
        let p99 = run.headline().map_or("-".to_owned(), |(_, latency)| format!("{:.3}", latency.p99_us / 1e3));
        out += &format!(
            "{:<28} {:>12.0} {:>9.1} {:>15.0} {of:>11} {p99:>9} {:>11.0}  {}\n",
            run.name,
            run.messages_per_second,
            run.server.as_ref().map_or(0.0, |server| server.cpu_percent),
            per_cpu(run),
            run.memory.server_rss_bytes_per_connection,
            run.verdict
        );
    }
    let worst = results.runs.iter().map(|run| run.verdict.outcome).max().unwrap_or_default();
    out + &format!("\n{} runs, verdict {worst:?}\n", results.runs.len()).to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_every_suite_is_a_valid_command_with_a_name_of_its_own() {
        for suite in [QUICK, FULL, HUNDRED_K] {
            let mut names: Vec<_> = suite.iter().map(|case| case.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), suite.len());
            for case in suite {
                launch::asked(&scenario(case.arguments)).expect("thresholds that can be read");
            }
        }
    }
}
