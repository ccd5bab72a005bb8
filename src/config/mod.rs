//! What a node is told: flags, environment, file and defaults, in that order of precedence.
//!
//! # Layout
//! `settings` is the one table of settings; `format`, `addresses` and `redis_url` are the syntaxes of their values. `cli`, `file` and
//! `sources` gather what was said, `machine` what the host is; `resolve` makes a [`Config`] of the two without touching
//! either; `show` prints it so that it can be read again.

mod addresses;
mod cli;
mod error;
mod file;
mod format;
pub(crate) mod machine;
mod redis_url;
mod resolve;
mod settings;
mod show;
mod sources;

pub use addresses::ListenAddress;
pub(crate) use addresses::joined;
pub use cli::{ClusterArguments, Invocation, TopArguments, Verb, parse as parse_command_line};
pub use error::{ConfigError, InForce, Problem};
pub use file::ConfigFile;
pub use format::{LogFormat, NODE_ID_BYTES_MAX, duration_text, size_text};
pub use machine::Machine;
pub use redis_url::{RedisKind, RedisUrl};
pub use resolve::{Effective, resolve};
pub use settings::{Config, SETTINGS, Setting};
pub use show::as_toml;
pub use sources::{Environment, Origin, Sources};
