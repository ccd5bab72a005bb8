//! The command line, made from the table of settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::format::{Format, HOUR_MS, Time};
use super::settings::SETTINGS;
use super::sources::CONFIG_VARIABLE;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Run a node.
    Serve,
    /// Print the settings in force.
    Config,
    /// Check the host.
    Preflight,
    /// Check the host, and all around it that can be seen.
    Doctor {
        /// As JSON, for programs.
        json: bool,
    },
    /// Show all nodes.
    Cluster(ClusterArguments),
    /// Show a running node.
    Top(TopArguments),
}

/// What `ringmesh cluster` is told beside the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterArguments {
    /// As JSON, for programs.
    pub json: bool,
    /// Go on in the terminal.
    pub watch: bool,
}

/// What `ringmesh top` is told. It takes no settings: it looks at a node from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopArguments {
    /// The node's admin listener, as it was written.
    pub admin: String,
    /// From one scrape to the next.
    pub interval: Duration,
    /// Print once as plain text.
    pub once: bool,
}

/// One command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What is asked for.
    pub verb: Verb,
    /// The file that `--config` names.
    pub config_path: Option<PathBuf>,
    /// Values of the other flags, by the key of their setting.
    pub flags: BTreeMap<&'static str, String>,
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// It is wrong, or it asks for help or the version; `clap::Error::use_stderr` tells the two apart.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let (verb, matches) = match matches.subcommand() {
        Some(("serve", matches)) => (Verb::Serve, matches),
        Some(("config", matches)) => (Verb::Config, matches),
        Some(("preflight", matches)) => (Verb::Preflight, matches),
        Some(("doctor", matches)) => (Verb::Doctor { json: matches.get_flag("json") }, matches),
        Some(("cluster", matches)) => {
            let arguments = ClusterArguments { json: matches.get_flag("json"), watch: matches.get_flag("watch") };
            (Verb::Cluster(arguments), matches)
        }
        Some(("top", matches)) => {
            let verb = Verb::Top(top_arguments(matches));
            return Ok(Invocation { verb, config_path: None, flags: BTreeMap::new() });
        }
        _ => unreachable!("a subcommand is required, and these are all"),
    };
    Ok(Invocation { verb, config_path: matches.get_one("config").cloned(), flags: flags(matches) })
}

fn top_arguments(matches: &ArgMatches) -> TopArguments {
    TopArguments {
        admin: matches.get_one::<String>("admin").cloned().unwrap_or_default(),
        interval: matches.get_one("interval").copied().unwrap_or_default(),
        once: matches.get_flag("once"),
    }
}

fn flags(matches: &ArgMatches) -> BTreeMap<&'static str, String> {
    let given = |key| Some(matches.get_many::<String>(key)?.map(String::as_str).collect::<Vec<_>>().join(","));
    SETTINGS.iter().filter_map(|setting| Some((setting.key, given(setting.key)?))).collect()
}

fn command() -> Command {
    Command::new("ringmesh")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A WebSocket gateway: one pinned io_uring executor for each core, Redis between the nodes")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(HELP_WIDTH)
        .after_help("`ringmesh serve --help` lists every setting. A first node: ringmesh serve --listen :8080")
        .subcommand(with_settings("serve", "Run a node until SIGTERM or SIGINT").after_help(SERVE_NOTES))
        .subcommand(
            with_settings("config", "Print the settings in force, as a file that --config takes")
                .after_help(CONFIG_NOTES),
        )
        .subcommand(with_settings("preflight", "Check what the host must give").after_help(PREFLIGHT_NOTES))
        .subcommand(
            with_settings("doctor", "Check the host and all around it that can be seen, with a remedy for each lack")
                .arg(switch("json").help("Print one JSON object instead of the table"))
                .after_help(DOCTOR_NOTES),
        )
        .subcommand(
            with_settings("cluster", "Show all nodes, their leases, connections and lag, by asking Redis")
                .arg(switch("json").conflicts_with("watch").help("Print one JSON object instead of the table"))
                .arg(switch("watch").help("Look again every second, in the terminal, until q or Ctrl-C"))
                .after_help(CLUSTER_NOTES),
        )
        .subcommand(top())
}

fn switch(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue)
}

fn top() -> Command {
    let interval = |text: &str| Interval::read(text).ok_or_else(|| format!("expected {}", Interval::expected()));
    Command::new("top")
        .about("Show what a running node is doing, live, from its metrics")
        .arg(
            Arg::new("admin")
                .long("admin")
                .value_name("URL")
                .default_value("http://127.0.0.1:8081")
                .help("The node's admin listener; host:port will do"),
        )
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name(Interval::PLACEHOLDER)
                .default_value("2s")
                .value_parser(interval)
                .help("From one look to the next"),
        )
        .arg(switch("once").help("Print one look as plain text and end; rates are those of one interval"))
        .after_help(TOP_NOTES)
}

/// Between two looks at a node.
type Interval = Time<100, HOUR_MS>;

/// Columns of the help at most.
const HELP_WIDTH: usize = 110;

fn with_settings(name: &'static str, about: &'static str) -> Command {
    let config_help = format!("The configuration file, TOML\n[default: none] [env: {CONFIG_VARIABLE}]");
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help_heading("Settings")
        .help(config_help);
    let settings = SETTINGS.iter().map(|setting| {
        let default = if setting.default.is_empty() { "\"\"" } else { setting.default };
        let arg = match setting.alone {
            Some(alone) => Arg::new(setting.key).num_args(0..=1).default_missing_value(alone),
            None => Arg::new(setting.key),
        };
        arg.long(setting.flag())
            .value_name(setting.placeholder)
            .action(if setting.is_list { ArgAction::Append } else { ArgAction::Set })
            .help_heading(setting.group)
            // `-1` is a bad value, and its error is the setting's own.
            .allow_negative_numbers(true)
            .help(format!("{}\n[default: {default}] [env: {}]", setting.help(), setting.variable()))
    });
    Command::new(name).about(about).arg(config).args(settings)
}

const SERVE_NOTES: &str = "\
Who is heard first: a flag, then the environment, then the file, then the default. An empty variable
is unset. The keys of the file are the flags with _ for -: ping_interval = \"30s\". An example with
every key is tuning/ringmesh.toml; `ringmesh config` shows what is in force.
Durations: 500ms, 30s, 2m, 1h; a bare number is seconds.
Sizes: bytes, 64KiB, 64k, 1MiB; units are powers of 1024.
Other variables that are read: NODE_ID; REDIS_HOST and REDIS_PORT, which mean redis://HOST:PORT.

Signals: SIGTERM or SIGINT drains and stops; a second one stops at once.

Exit codes:
   0  stopped as asked
   1  another process has this node's id
  64  the command line, the environment or the file is wrong
  69  Redis is required and can't be reached; or the host does not give what is needed: an address in use, io_uring forbidden, a limit too low
  70  a fault in ringmesh itself";

const CONFIG_NOTES: &str = "\
Each line ends with where its value came from. What was left to the machine is filled in. The
password of a Redis URL is shown as ***; put it in again before you use the output.

Exit codes: 0, or 64 when a setting is wrong.";

const PREFLIGHT_NOTES: &str = "\
Prints what the host must give, line by line, and a remedy where it does not. The settings say how
much is needed. `ringmesh serve` runs the same checks before it starts.

Exit codes: 0 when a node would start (warnings or not), 1 when not, 64 when a setting is wrong.";

const DOCTOR_NOTES: &str = "\
Looks at all that `ringmesh preflight` looks at, and at what no node is held back for: kernel
settings, clock, processors, ports in use, drops so far, Redis. The settings say what is judged.
It changes nothing.

Exit codes: 0 all is well, 1 there are warnings, 2 there are failures (a node would not start, or
would never be ready), 64 when a setting is wrong.";

const CLUSTER_NOTES: &str = "\
Needs no more than --redis, in any of the ways that `ringmesh serve` takes it, and runs wherever
Redis can be reached. It takes no lease and writes nothing to Redis.

state: up; no lease (it has lapsed, and the node may come back; or it starts or ends); dead (a life that has ended, and has
users in the directory that other nodes take off). users: those in the directory; who is on two
nodes counts twice. listens: somebody hears what is published for the node. lag: the slowest of the
node's own messages to itself through Redis, one a second, in the last 3 s. What a server that is out
of reach would have to say is shown as ?.

Exit codes: 0, 64 when a setting is wrong or no Redis is named, 69 when Redis, or a part of it, is out
of reach, 128 + n when signal n ends --watch.";

const TOP_NOTES: &str = "\
q or Ctrl-C ends it. It asks the admin listener of the node (--admin-listen) for /metrics, and
shows what has changed from one look to the next. A node that does not answer is asked again.

Exit codes: 0, 64 when the command line is wrong or there is no terminal, 69 when --once gets no
answer, 128 + n when signal n ends it.";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Invocation, clap::Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn flags_go_by_the_key_of_their_setting() {
        let invocation = parse_line("ringmesh serve --config a.toml --ping-interval=5s --shards -1").expect("right");
        assert_eq!(invocation.verb, Verb::Serve);
        assert_eq!(invocation.config_path, Some(PathBuf::from("a.toml")));
        let flags = [("ping_interval", "5s".to_owned()), ("shards", "-1".to_owned())];
        assert_eq!(invocation.flags, flags.into());
    }

    #[test]
    fn a_list_is_one_value_however_often_its_flag_is_given() {
        let invocation = parse_line("ringmesh serve --listen 8080 --listen 9000,proxy").expect("right");
        assert_eq!(invocation.flags, [("listen", "8080,9000,proxy".to_owned())].into());
        assert!(parse_line("ringmesh serve --shards 1 --shards 2").is_err());
    }

    #[test]
    fn a_switch_may_stand_alone() {
        let required = |line| parse_line(line).expect("right").flags["redis_required"].clone();
        assert_eq!(required("ringmesh serve --redis-required"), "true");
        assert_eq!(required("ringmesh serve --redis-required --shards 2"), "true");
        assert_eq!(required("ringmesh serve --redis-required=false"), "false");
    }

    #[test]
    fn every_verb_takes_every_flag() {
        for (name, verb) in [
            ("serve", Verb::Serve),
            ("config", Verb::Config),
            ("preflight", Verb::Preflight),
            ("doctor", Verb::Doctor { json: false }),
            ("cluster", Verb::Cluster(ClusterArguments::default())),
        ] {
            let every: Vec<String> = SETTINGS.iter().map(|setting| format!("--{} 1", setting.flag())).collect();
            let invocation = parse_line(&format!("ringmesh {name} {}", every.join(" "))).expect("right");
            assert_eq!((invocation.verb, invocation.flags.len()), (verb, SETTINGS.len()));
        }
    }

    #[test]
    fn the_observers_have_flags_of_their_own() {
        let verb = |line| parse_line(line).map(|invocation| invocation.verb);
        let doctor = parse_line("ringmesh doctor --json --shards 3").expect("right");
        assert_eq!((doctor.verb, doctor.flags.len()), (Verb::Doctor { json: true }, 1));
        let cluster = |json, watch| Verb::Cluster(ClusterArguments { json, watch });
        assert_eq!(verb("ringmesh cluster --redis redis://h --json").expect("right"), cluster(true, false));
        assert_eq!(verb("ringmesh cluster --watch").expect("right"), cluster(false, true));
        assert!(verb("ringmesh cluster --watch --json").expect_err("refused").use_stderr());
        let top = |admin: &str, ms, once| {
            Verb::Top(TopArguments { admin: admin.to_owned(), interval: Duration::from_millis(ms), once })
        };
        assert_eq!(verb("ringmesh top").expect("right"), top("http://127.0.0.1:8081", 2000, false));
        let line = "ringmesh top --admin a:1 --interval 500ms --once";
        assert_eq!(verb(line).expect("right"), top("a:1", 500, true));
        for line in ["ringmesh top --interval 10ms", "ringmesh top --interval x", "ringmesh top --shards 3"] {
            assert!(verb(line).expect_err("refused").use_stderr(), "{line}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors_of_the_user() {
        for line in ["ringmesh --help", "ringmesh --version", "ringmesh serve --help", "ringmesh help config"] {
            assert!(!parse_line(line).expect_err("nothing to run").use_stderr(), "{line}");
        }
        for line in ["ringmesh", "ringmesh fly", "ringmesh serve --fly", "ringmesh serve --shards"] {
            assert!(parse_line(line).expect_err("nothing to run").use_stderr(), "{line}");
        }
    }
}
