//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Load generator and benchmark harness for WebSocket gateways.
#[derive(Debug, Parser)]
#[command(name = "ringmesh-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The scenarios, and the control server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every connection keeps --inflight questions unanswered.
    Echo {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        talk: Talk,
    },
    /// Users in pairs, each with --inflight messages under way to the other.
    Unicast {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        talk: Talk,
    },
    /// One user broadcasts to all connections.
    Fanout {
        #[command(flatten)]
        load: Load,
        /// Broadcasts that may be incomplete at the same time.
        #[arg(long, default_value_t = 1, conflicts_with = "burst", value_parser = clap::value_parser!(u64).range(1..))]
        outstanding: u64,
        /// Instead: so many broadcasts in one write, once all before are complete.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        burst: Option<u64>,
    },
    /// Connect, upgrade, one question, its answer, as fast as --concurrency allows.
    Storm {
        #[command(flatten)]
        load: Load,
    },
    /// Hold connections, then see whether each one still answers.
    Idle {
        #[command(flatten)]
        load: Load,
    },
    /// The control: a bare io_uring loop of the gateway's system calls, the limit that the interface sets.
    Control(ControlArgs),
}

/// What every scenario takes.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// Where the server listens; user_id is added to the query.
    #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
    pub url: String,
    /// Connections.
    #[arg(long, short = 'c', default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub connections: u32,
    /// The measured window, such as 10s, 500ms or 2m.
    #[arg(long, short = 'd', default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Traffic before the window.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// How long messages under way at the end may take.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub drain: Duration,
    /// Bytes of a message's content, at least 24: it carries sender, sequence and time.
    #[arg(long, default_value_t = 32)]
    pub payload: usize,
    /// Send bare text rather than the gateway's JSON, and expect what servers that know no JSON do.
    #[arg(long)]
    pub raw: bool,
    /// Worker threads; more are started where the descriptor limit asks for it.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Cores to pin the workers to, in turn: 1 or 1,3 or 2-5.
    #[arg(long, value_parser = parse_cpus)]
    pub cpu: Option<CpuList>,
    /// Connections that are being made at the same time.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: u32,
    /// A connection not ready by then has failed.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// The server's processes, whose CPU and memory are measured.
    #[arg(long, value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// User ids are this and a number.
    #[arg(long, default_value = "bench-")]
    pub user_prefix: String,
    /// Where to write the result as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What scenarios take in which all connections talk.
#[derive(Clone, Debug, Args)]
pub struct Talk {
    /// Unanswered messages of each connection.
    #[arg(long, short = 'i', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub inflight: u32,
    /// Only so many of the connections talk, the others are idle.
    #[arg(long)]
    pub active: Option<u32>,
}

/// How the control server is run.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub listen: SocketAddr,
    /// What to do with each text frame.
    #[arg(long, value_enum, default_value_t = ControlMode::Pong)]
    pub mode: ControlMode,
    /// The core to pin it to.
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Connections at most; one ring has them all, so the descriptor limit bounds it.
    #[arg(long, default_value_t = 18_500)]
    pub connections_max: u32,
}

/// What the control server does with each text frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ControlMode {
    /// Answers it with {"type":"pong"}.
    Pong,
    /// Answers it with itself.
    Echo,
    /// Copies it to every connection.
    Fanout,
}

/// A list of cores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuList(pub Vec<usize>);

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|char: char| char != '.' && !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    let seconds = match unit {
        "ms" => number / 1_000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        _ => return Err(format!("{text:?} needs a unit: ms, s, m or h")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn parse_cpus(text: &str) -> Result<CpuList, String> {
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| format!("{text:?} is no core number"));
    let mut cpus = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => cpus.extend(number(first)?..=number(last)?),
            None => cpus.push(number(part)?),
        }
    }
    if cpus.is_empty() { Err("no core at all".to_owned()) } else { Ok(CpuList(cpus)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_and_cores_are_read() {
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("10").is_err() && parse_duration("s").is_err());
        assert_eq!(parse_cpus("1,3-5"), Ok(CpuList(vec![1, 3, 4, 5])));
        assert!(parse_cpus("a").is_err() && parse_cpus("5-3").is_err());
    }
}
