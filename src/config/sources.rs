//! What was said, by whom, and who is heard first: flag, environment, file, default.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::cli::Invocation;
use super::error::{ConfigError, Problem};
use super::file::ConfigFile;
use super::format::Format;
use super::settings::{SETTINGS, Setting};

/// Names the configuration file when the flag `--config` does not.
pub const CONFIG_VARIABLE: &str = "RINGMESH_CONFIG";

/// Where the value of a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable, or several.
    Environment(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The environment variables that are set. Empty ones count as unset: that is how compose files and unit files unset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// Collects variables, such as those of `std::env::vars_os()`.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
        let named = variables.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Environment(named.filter(|(_, value)| !value.is_empty()).collect())
    }

    fn text(&self, name: &str) -> Option<String> {
        // A value that is not UTF-8 is no value of any setting: with its bad bytes replaced it is refused as such.
        self.0.get(name).map(|value| value.to_string_lossy().into_owned())
    }
}

/// Everything that was said about settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Values of flags, by the key of the setting.
    pub flags: BTreeMap<&'static str, String>,
    /// The environment.
    pub environment: Environment,
    /// The configuration file, if one was named.
    pub file: Option<ConfigFile>,
}

impl Sources {
    /// Reads the file that the command line or the environment names, and keeps the rest as it is.
    ///
    /// # Errors
    /// The file cannot be read, or what [`ConfigFile::parse`] finds wrong with it.
    pub fn gather(invocation: &Invocation, environment: Environment) -> Result<Sources, ConfigError> {
        let by_flag = invocation.config_path.clone().map(|path| (path, Origin::Flag("--config".to_owned())));
        let by_variable = environment.0.get(CONFIG_VARIABLE).map(PathBuf::from);
        let by_variable = by_variable.map(|path| (path, Origin::Environment(CONFIG_VARIABLE.to_owned())));
        let file = match by_flag.or(by_variable) {
            Some((path, origin)) => Some(read_file(&path, origin).map_err(|problems| ConfigError { problems })?),
            None => None,
        };
        Ok(Sources { flags: invocation.flags.clone(), environment, file })
    }

    /// The text that counts for a setting, and its origin.
    fn find(&self, setting: &Setting) -> Result<(String, Origin), Problem> {
        if let Some(text) = self.flags.get(setting.key) {
            return Ok((text.clone(), Origin::Flag(format!("--{}", setting.flag()))));
        }
        let variable = setting.variable();
        if let Some(text) = self.environment.text(&variable) {
            return Ok((text, Origin::Environment(variable)));
        }
        if let Some((text, names)) = self.foreign_variables(setting.key)? {
            return Ok((text, Origin::Environment(names.to_owned())));
        }
        if let Some((file, (text, line))) = self.file.as_ref().and_then(|f| Some((f, f.values.get(setting.key)?))) {
            return Ok((text.clone(), Origin::File { path: file.path.clone(), line: *line }));
        }
        Ok((setting.default.to_owned(), Origin::Default))
    }

    /// Variables that existing deployments set, under names that are not ours.
    fn foreign_variables(&self, key: &str) -> Result<Option<(String, &'static str)>, Problem> {
        match key {
            "node_id" => Ok(self.environment.text("NODE_ID").map(|id| (id, "NODE_ID"))),
            "redis" => self.redis_variables(),
            _ => Ok(None),
        }
    }

    fn redis_variables(&self) -> Result<Option<(String, &'static str)>, Problem> {
        // Kubernetes sets REDIS_PORT=tcp://10.0.0.9:6379 in every pod beside a service called redis. Nobody meant that
        // for us unless REDIS_HOST was set too, and then its port is the one to take.
        let port = self.environment.text("REDIS_PORT");
        let link_port = port.as_deref().and_then(|port| port.strip_prefix("tcp://")?.rsplit_once(':'));
        let by_kubernetes = link_port.is_some();
        let port = link_port.map(|(_, port)| port.to_owned()).or(port);
        match (self.environment.text("REDIS_HOST"), port) {
            (None, Some(_)) if !by_kubernetes => Err(Problem::LonelyRedisPort),
            (None, _) => Ok(None),
            (Some(host), Some(port)) => {
                Ok(Some((format!("redis://{}:{port}", bracketed(&host)), "REDIS_HOST and REDIS_PORT")))
            }
            (Some(host), None) => Ok(Some((format!("redis://{}:6379", bracketed(&host)), "REDIS_HOST"))),
        }
    }
}

/// An IPv6 address stands in brackets in a URL.
fn bracketed(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}

fn read_file(path: &std::path::Path, origin: Origin) -> Result<ConfigFile, Vec<Problem>> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => ConfigFile::parse(&name, &text),
        Err(error) => Err(vec![Problem::Unreadable { origin, path: name, reason: error.to_string() }]),
    }
}

/// Reads settings one after the other, in the order of the table, and goes on after a problem.
pub struct Reader<'a> {
    sources: &'a Sources,
    /// The origin of each setting read so far.
    pub(super) origins: Vec<Origin>,
    /// What was wrong so far.
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources) -> Reader<'a> {
        Reader { sources, origins: Vec::with_capacity(SETTINGS.len()), problems: Vec::new() }
    }

    /// The value of the next setting. A bad one is noted and its default taken, so that the others are looked at too.
    pub(super) fn read<F: Format>(&mut self) -> F::Value {
        let setting = &SETTINGS[self.origins.len()];
        let default = || F::read(setting.default).expect("each default reads as a value of its own setting");
        let (text, origin) = match self.sources.find(setting) {
            Ok(found) => found,
            Err(problem) => {
                self.origins.push(Origin::Default);
                self.problems.push(problem);
                return default();
            }
        };
        self.origins.push(origin.clone());
        F::read(&text).unwrap_or_else(|| {
            let (text, expected) = (F::without_secrets(&text), F::expected());
            self.problems.push(Problem::BadValue { key: setting.key, origin, text, expected });
            default()
        })
    }
}
