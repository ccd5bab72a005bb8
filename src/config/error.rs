//! What can be wrong with what a node was told. Each problem names the setting, its origin, and what is expected.

use std::fmt;

use super::sources::Origin;

/// Everything that is wrong, at once, so that one round of corrections is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.problems.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A text that is no value of its setting.
    #[error("{origin}: \"{text}\" is not a value of {key}; expected {expected}")]
    BadValue {
        /// The setting.
        key: &'static str,
        /// Where the text came from.
        origin: Origin,
        /// The text, its secrets masked.
        text: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A TOML value of a kind that no setting has.
    #[error("{path}:{line}: {key} is {kind}; expected a string or a whole number")]
    BadKind {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The setting.
        key: String,
        /// What TOML calls the value.
        kind: String,
    },
    /// A key of the file that is no setting.
    #[error("{path}:{line}: unknown key {key}{hint}", hint = nearest_hint(.nearest))]
    UnknownKey {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The setting that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {message}")]
    BadSyntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// The file that was asked for cannot be read.
    #[error("{origin}: cannot read {path}: {reason}")]
    Unreadable {
        /// Who asked for it.
        origin: Origin,
        /// The file.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// REDIS_PORT without REDIS_HOST.
    #[error(
        "environment REDIS_PORT is set without REDIS_HOST, so it is not clear which Redis is meant; set REDIS_HOST too, \
         or RINGMESH_REDIS=redis://host:port, or unset REDIS_PORT"
    )]
    LonelyRedisPort,
    /// Two settings that do not go together.
    #[error("{broken} {rule} {other}")]
    Contradiction {
        /// The setting that breaks the rule.
        broken: Box<InForce>,
        /// The rule: `must be longer than`.
        rule: &'static str,
        /// The setting that it is measured against.
        other: Box<InForce>,
    },
}

/// A setting, its value and where that came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The setting.
    pub key: &'static str,
    /// Its value, without secrets.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.key, self.value, self.origin)
    }
}

fn nearest_hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(|| "; `ringmesh serve --help` lists all".to_owned(), |key| format!("; did you mean {key}?"))
}
