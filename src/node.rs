//! Runs a node.

use std::process::ExitCode;

use crate::config::Config;

/// Why a node ended otherwise than it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("this build has no node")]
pub struct NodeError;

impl NodeError {
    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(70)
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// Always, in this build.
pub fn run(_config: Config) -> Result<(), NodeError> {
    Err(NodeError)
}
