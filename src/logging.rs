//! Logs: structured events to standard error, as lines for a person or as JSON.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The directives are no log level; the configuration refuses such directives before they come here.
    #[error("cannot read the log level: {0}")]
    Directives(#[from] tracing_subscriber::filter::ParseError),
    /// Another logger was installed before.
    #[error("cannot install the logger: {0}")]
    AlreadyInstalled(#[from] tracing_subscriber::util::TryInitError),
}

/// Installs the logger of this process. What glommio says through the `log` crate goes the same way.
///
/// # Errors
/// The directives cannot be read, or there is a logger already.
pub fn start(directives: &str, format: LogFormat) -> Result<(), LoggingError> {
    let filter = EnvFilter::builder().parse(directives)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Text => lines.compact().with_ansi(stderr().is_terminal()).finish().try_init()?,
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}
