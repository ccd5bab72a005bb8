//! The command line, made from the table of settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::settings::SETTINGS;
use super::sources::CONFIG_VARIABLE;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Run a node.
    Serve,
    /// Print the settings in force.
    Config,
    /// Check the host.
    Preflight,
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
        _ => unreachable!("a subcommand is required, and these are all"),
    };
    Ok(Invocation { verb, config_path: matches.get_one("config").cloned(), flags: flags(matches) })
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
}

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
        for (name, verb) in [("serve", Verb::Serve), ("config", Verb::Config), ("preflight", Verb::Preflight)] {
            let every: Vec<String> = SETTINGS.iter().map(|setting| format!("--{} 1", setting.flag())).collect();
            let invocation = parse_line(&format!("ringmesh {name} {}", every.join(" "))).expect("right");
            assert_eq!((invocation.verb, invocation.flags.len()), (verb, SETTINGS.len()));
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
