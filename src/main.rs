//! The command line of ringmesh: what a node is told, what its host gives, and then the node.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use ringmesh::cluster::{self, ClusterError};
use ringmesh::config::{
    self, ClusterArguments, Config, Effective, Environment, Invocation, Machine, Sources, TopArguments, Verb,
};
use ringmesh::preflight::{self, Severity};
use ringmesh::top::{self, TopError};
use ringmesh::{doctor, logging, node, signals};

/// The command line, the environment or the file is wrong (sysexits.h: EX_USAGE).
const EXIT_USAGE: u8 = 64;
/// The host does not give what is needed (EX_UNAVAILABLE).
const EXIT_UNAVAILABLE: u8 = 69;
/// A fault of ours (EX_SOFTWARE).
const EXIT_INTERNAL: u8 = 70;
/// `ringmesh preflight` found what keeps a node from starting.
const EXIT_NOT_READY: u8 = 1;
/// `ringmesh doctor` found what a node would fall short by.
const EXIT_WARNINGS: u8 = 1;
/// `ringmesh doctor` found what keeps a node from starting.
const EXIT_FAILURES: u8 = 2;

fn main() -> ExitCode {
    let invocation = match config::parse_command_line(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Standard error is closed: there is nobody left to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Verb::Top(arguments) = &invocation.verb {
        return show_node(arguments);
    }
    if matches!(invocation.verb, Verb::Serve)
        && let Err(error) = signals::watch()
    {
        return fail(&format!("signals cannot be watched: {error}"), EXIT_INTERNAL);
    }
    let effective = match effective(&invocation) {
        Ok(effective) => effective,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    match invocation.verb {
        Verb::Config => print(&config::as_toml(&effective), ExitCode::SUCCESS),
        Verb::Preflight => check_host(&effective.config),
        Verb::Doctor { json } => examine_host(&effective.config, json),
        Verb::Cluster(arguments) => show_cluster(&effective.config, arguments),
        Verb::Serve => serve(effective.config),
        Verb::Top(_) => unreachable!("it takes no settings, and was begun above"),
    }
}

fn effective(invocation: &Invocation) -> Result<Effective, config::ConfigError> {
    let sources = Sources::gather(invocation, Environment::new(std::env::vars_os()))?;
    config::resolve(&sources, &Machine::read())
}

fn check_host(config: &Config) -> ExitCode {
    let report = preflight::run(config);
    let code = if report.severity() == Severity::Fatal { ExitCode::from(EXIT_NOT_READY) } else { ExitCode::SUCCESS };
    print(&report.to_string(), code)
}

fn examine_host(config: &Config, json: bool) -> ExitCode {
    let report = doctor::run(config);
    let code = match report.severity() {
        Severity::Ok => ExitCode::SUCCESS,
        Severity::Warning => ExitCode::from(EXIT_WARNINGS),
        Severity::Fatal => ExitCode::from(EXIT_FAILURES),
    };
    let text = if json { doctor::as_json(&report) } else { doctor::as_table(&report, has_colours()) };
    print(&text, code)
}

/// Whether standard output is a terminal on which colours are welcome.
fn has_colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn show_cluster(config: &Config, arguments: ClusterArguments) -> ExitCode {
    if arguments.watch {
        return cluster::watch(config.redis.as_ref())
            .map_or_else(|error| cluster_ended(&error), |()| ExitCode::SUCCESS);
    }
    let view = match cluster::look(config.redis.as_ref()) {
        Ok(view) => view,
        Err(error) => return cluster_ended(&error),
    };
    let text = match &config.redis {
        Some(redis) if arguments.json => cluster::as_json(&view, redis),
        _ => cluster::as_table(&view, has_colours()),
    };
    let is_whole = view.out_of_reach.is_empty();
    print(&text, if is_whole { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNAVAILABLE) })
}

fn cluster_ended(error: &ClusterError) -> ExitCode {
    match error {
        ClusterError::NoRedis | ClusterError::NoTerminal => fail(error, EXIT_USAGE),
        ClusterError::OutOfReach(_) => fail(error, EXIT_UNAVAILABLE),
        ClusterError::Watch(TopError::Signal(signal)) => signalled(*signal),
        ClusterError::Watch(_) | ClusterError::Runtime(_) => fail(error, EXIT_INTERNAL),
    }
}

/// As a shell tells that a signal has ended a program.
fn signalled(signal: i32) -> ExitCode {
    ExitCode::from(128_u8.saturating_add(signal as u8))
}

fn show_node(arguments: &TopArguments) -> ExitCode {
    let TopArguments { admin, interval, once } = arguments;
    let target = match top::Target::parse(admin) {
        Ok(target) => target,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    match top::run(&top::Options { target, interval: *interval, once: *once }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(TopError::Signal(signal)) => signalled(signal),
        Err(error @ TopError::NoTerminal) => fail(&error, EXIT_USAGE),
        Err(error @ TopError::Fetch(_)) => fail(&error, EXIT_UNAVAILABLE),
        Err(error @ TopError::Io(..)) => fail(&error, EXIT_INTERNAL),
    }
}

fn serve(config: Config) -> ExitCode {
    let ended = run_node(config);
    logging::finish();
    ended
}

fn run_node(config: Config) -> ExitCode {
    if let Err(error) = logging::start(&config.log_level, config.log_format) {
        return fail(&error, EXIT_INTERNAL);
    }
    let report = preflight::run(&config);
    for finding in report.of(Severity::Warning) {
        tracing::warn!(
            what = finding.what,
            found = finding.found,
            wanted = finding.wanted,
            remedy = finding.remedy,
            "preflight"
        );
    }
    if report.severity() == Severity::Fatal {
        for finding in report.of(Severity::Fatal) {
            logging::last_words(finding);
        }
        return ExitCode::from(EXIT_UNAVAILABLE);
    }
    match node::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::last_words(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    complain(error);
    ExitCode::from(code)
}

/// To standard error whatever the log level is, each line under our name.
fn complain(what: &dyn std::fmt::Display) {
    for line in what.to_string().lines() {
        let _ = writeln!(io::stderr(), "ringmesh: {line}");
    }
}

/// To standard output. A reader that has gone, such as `head`, has what it wanted.
fn print(text: &str, code: ExitCode) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error, EXIT_INTERNAL),
        _ => code,
    }
}
