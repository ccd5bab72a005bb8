//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::scenario::Pairs;

/// Load generator and benchmark harness for WebSocket gateways.
#[derive(Debug, Parser)]
#[command(name = "ringmesh-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The scenarios, and what is done with their results.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A scenario.
    #[command(flatten)]
    Scenario(Box<Scenario>),
    /// The control: a bare io_uring loop of the gateway's system calls, the limit that the interface sets.
    Control(ControlArgs),
    /// Two result files against each other: what changed by more than chance does.
    Compare {
        /// The result file to compare with.
        before: PathBuf,
        /// The newer one.
        after: PathBuf,
    },
    /// Draws a result file once more, as a page with charts.
    Page {
        /// The result file.
        results: PathBuf,
        /// Where to write the page.
        page: PathBuf,
    },
    /// Steps the rate of a scenario up until a threshold breaks.
    Search(SearchArgs),
    /// Many scenarios, each against a fresh server, with a table of verdicts at the end.
    Suite(SuiteArgs),
    /// What the bus between nodes costs Redis, each thing by itself: an envelope, a registration, an idle node.
    Costs(CostsArgs),
    /// Our node, the control and other servers by the same hand, interleaved.
    Peers(PeersArgs),
    /// Waits for a coordinator, and takes part in its runs.
    Agent(AgentArgs),
    /// Runs a scenario on several agents at once, and merges what they saw.
    Coordinate(CoordinateArgs),
}

/// How a search is done.
#[derive(Clone, Debug, Args)]
pub struct SearchArgs {
    /// The first rate, in messages a second.
    #[arg(long, default_value = "1k", value_parser = parse_rate)]
    pub from: f64,
    /// The last rate.
    #[arg(long, default_value = "10M", value_parser = parse_rate)]
    pub to: f64,
    /// Each rate is so many times the one before.
    #[arg(long, default_value_t = 1.5)]
    pub factor: f64,
    /// Halvings of the interval in which a threshold broke.
    #[arg(long, default_value_t = 3)]
    pub refinements: u32,
    /// The scenario with its arguments, --threshold among them.
    #[arg(last = true, required = true)]
    pub scenario: Vec<String>,
}

/// Which suite, against what.
#[derive(Clone, Debug, Args)]
pub struct SuiteArgs {
    /// Which one.
    #[arg(value_enum)]
    pub suite: SuiteName,
    /// The server's command, with {listen}, {port} and {shards} where they belong; a bare path is this project's node.
    #[arg(long, default_value = "target/release/ringmesh")]
    pub server_cmd: String,
    /// Only the cases whose names contain one of these.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Measure each case so often, for `compare`.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Do not measure the control beside it.
    #[arg(long)]
    pub without_control: bool,
    /// The folder for JSON and HTML.
    #[arg(long, default_value = "bench/results")]
    pub results: PathBuf,
}

/// The suites.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SuiteName {
    /// About two minutes.
    Quick,
    /// The whole table, about ten minutes.
    Full,
    /// 100,000 connections, about five minutes.
    #[value(name = "100k")]
    HundredK,
    /// Two nodes with a Redis between them, beside one, about four minutes.
    Cluster,
}

/// What is asked of Redis.
#[derive(Clone, Debug, Args)]
pub struct CostsArgs {
    /// Our node's command, as for `suite cluster`.
    #[arg(long, default_value = "target/release/ringmesh")]
    pub server_cmd: String,
    /// Users in the directory.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub users: u32,
    /// Only what is asked of Redis directly, nothing with real nodes.
    #[arg(long)]
    pub without_nodes: bool,
}

/// Which servers are measured beside each other.
#[derive(Clone, Debug, Args)]
pub struct PeersArgs {
    /// Our node's command, as for `suite`.
    #[arg(long, default_value = "target/release/ringmesh")]
    pub server_cmd: String,
    /// Where bench/peers/build.sh has put the others.
    #[arg(long, default_value = "bench/peers/target")]
    pub peers: PathBuf,
    /// Rounds: in each, every server has its turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// The measured window of each run.
    #[arg(long, default_value = "4s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Only these servers.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// The folder for JSON and HTML.
    #[arg(long, default_value = "bench/results")]
    pub results: PathBuf,
}

/// Where an agent waits.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Where to listen. Whoever reaches it can have this machine send load anywhere: keep it within a trusted network.
    #[arg(long, default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
}

/// Which agents do what.
#[derive(Clone, Debug, Args)]
pub struct CoordinateArgs {
    /// The agents' addresses.
    #[arg(long, value_delimiter = ',', required = true)]
    pub agents: Vec<SocketAddr>,
    /// The scenario with its arguments; connections and rate are divided among the agents.
    #[arg(last = true, required = true)]
    pub scenario: Vec<String>,
}

/// The scenarios.
#[derive(Clone, Debug, Subcommand)]
pub enum Scenario {
    /// Questions and answers: --inflight for each connection, or --rate in all.
    Echo {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        talk: Talk,
    },
    /// Users in pairs, each with --inflight messages under way to the other, or --rate in all.
    Unicast {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        talk: Talk,
        #[command(flatten)]
        pairing: PairingArgs,
    },
    /// One user broadcasts to all connections, or --rate times a second.
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
    /// The same, --connect-rate connections a second.
    Ramp {
        #[command(flatten)]
        load: Load,
    },
    /// Hold connections, then see whether each one still answers.
    Idle {
        #[command(flatten)]
        load: Load,
    },
    /// Some of the connections leave in each second and come back, beside users that talk.
    Churn {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        crowd: CrowdArgs,
    },
    /// Readers that do not read, among users that do.
    Slow {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        crowd: CrowdArgs,
    },
    /// All silent connections are cut off at once, and come back.
    Reconnect {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        crowd: CrowdArgs,
    },
    /// A day's mixture: an idle mass, pairs that talk, broadcasts, connections that come and go.
    Mixed {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        crowd: CrowdArgs,
    },
}

/// The load of a scenario, borrowed as the scenario is.
macro_rules! load_of {
    ($scenario:expr) => {
        match $scenario {
            Scenario::Echo { load, .. }
            | Scenario::Unicast { load, .. }
            | Scenario::Fanout { load, .. }
            | Scenario::Storm { load }
            | Scenario::Ramp { load }
            | Scenario::Idle { load }
            | Scenario::Churn { load, .. }
            | Scenario::Slow { load, .. }
            | Scenario::Reconnect { load, .. }
            | Scenario::Mixed { load, .. } => load,
        }
    };
}

impl Scenario {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Echo { .. } => "echo",
            Self::Unicast { .. } => "unicast",
            Self::Fanout { .. } => "fanout",
            Self::Storm { .. } => "storm",
            Self::Ramp { .. } => "ramp",
            Self::Idle { .. } => "idle",
            Self::Churn { .. } => "churn",
            Self::Slow { .. } => "slow",
            Self::Reconnect { .. } => "reconnect",
            Self::Mixed { .. } => "mixed",
        }
    }

    /// What every scenario takes.
    pub fn load(&self) -> &Load {
        load_of!(self)
    }

    /// The same, to change.
    pub fn load_mut(&mut self) -> &mut Load {
        load_of!(self)
    }
}

/// What every scenario takes.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// Where the server listens; user_id is added to the query. Several URLs (a cluster) are used in turn.
    #[arg(long, default_value = "ws://127.0.0.1:8080/ws", value_delimiter = ',')]
    pub url: Vec<String>,
    /// Connections.
    #[arg(long, short = 'c', default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub connections: u32,
    /// The measured window, such as 10s, 500ms or 2m.
    #[arg(long, short = 'd', default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Open loop: so many messages a second in all, by a schedule; latency counts from the intended send time.
    #[arg(long, short = 'r', value_parser = parse_rate)]
    pub rate: Option<f64>,
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
    /// Connections begun in a second at most.
    #[arg(long, value_parser = parse_rate)]
    pub connect_rate: Option<f64>,
    /// A connection not ready by then has failed.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// The server's processes, whose CPU and memory are measured.
    #[arg(long, value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// Redis' processes: their CPU counts with the server's, and is shown apart; of their memory nothing counts.
    #[arg(long, value_delimiter = ',')]
    pub redis_pid: Vec<u32>,
    /// User ids are this and a number.
    #[arg(long, default_value = "bench-")]
    pub user_prefix: String,
    /// The number of the first user: give several generators ranges of their own.
    #[arg(long, default_value_t = 0)]
    pub users_from: u32,
    /// Conditions for the exit code 0, such as 'p99<100ms,errors=0'.
    #[arg(long, default_value = "")]
    pub threshold: String,
    /// Measure so often, for `compare`.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// What to call the run in tables and result files.
    #[arg(long)]
    pub name: Option<String>,
    /// Where to write the results as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Where to write them as a page with charts.
    #[arg(long)]
    pub html: Option<PathBuf>,
    /// A folder for both, under a name that begins with the date, such as bench/results.
    #[arg(long)]
    pub results: Option<PathBuf>,
    /// Show no line while the run goes on.
    #[arg(long)]
    pub quiet: bool,
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

/// Which users of the gateway talk to each other.
#[derive(Clone, Debug, Args)]
pub struct PairingArgs {
    /// Pairs on one shard, of two shards, or as the users' numbers have it. The first two connect one at a time.
    #[arg(long, value_enum, default_value_t)]
    pub pairs: Pairs,
    /// Where the gateway says how many connections each shard has, such as http://127.0.0.1:8081/metrics.
    #[arg(long)]
    pub metrics_url: Option<String>,
}

/// Who does what among mixed connections; each scenario has its own defaults.
#[derive(Clone, Debug, Args)]
pub struct CrowdArgs {
    /// Connections that talk in pairs, --rate messages a second in all.
    #[arg(long)]
    pub active: Option<u32>,
    /// Broadcasts a second.
    #[arg(long)]
    pub broadcasts: Option<f64>,
    /// Percent of the connections that leave in each second, to come back at once.
    #[arg(long)]
    pub leave_percent: Option<f64>,
    /// Connections that do not read.
    #[arg(long)]
    pub slow: Option<u32>,
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
    /// Connections at most; more than the descriptor limit take several rings.
    #[arg(long, default_value_t = 18_500, value_parser = clap::value_parser!(u32).range(1..4_000_000))]
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

fn parse_rate(text: &str) -> Result<f64, String> {
    let (digits, factor) = match text.strip_suffix('k') {
        Some(digits) => (digits, 1e3),
        None => text.strip_suffix('M').map_or((text, 1.0), |digits| (digits, 1e6)),
    };
    let rate = digits.parse::<f64>().map_err(|_| format!("{text:?} is no number"))? * factor;
    if rate > 0.0 && rate.is_finite() { Ok(rate) } else { Err(format!("{text:?} is not above 0")) }
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
