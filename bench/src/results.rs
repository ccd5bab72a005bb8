//! Result files: runs with the machine that they were measured on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::report::Report;

/// What a result file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where and when.
    pub machine: Machine,
    /// The runs, in the order they were made; runs of equal names repeat each other.
    pub runs: Vec<Report>,
}

/// Why a result file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// It cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is none.
    #[error("{path} is no result file: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Results {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is not there, or no result file.
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let failed = |source| ResultsError::Read { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(failed)?;
        serde_json::from_str(&text).map_err(|source| ResultsError::Format { path: path.to_owned(), source })
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When that fails.
    pub fn write(&self, path: &Path) -> Result<(), ResultsError> {
        let text = serde_json::to_string_pretty(self);
        let text = text.map_err(|source| ResultsError::Format { path: path.to_owned(), source })?;
        write_text(path, &(text + "\n"))
    }

    /// The file name that sorts results by date, without its ending.
    pub fn stem(&self, name: &str) -> String {
        format!("{}-{name}", self.machine.date.replace([':', '-'], "").replace('T', "-").trim_end_matches('Z'))
    }

    /// Names of the runs, each once, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for run in &self.runs {
            if !names.contains(&run.name.as_str()) {
                names.push(run.name.as_str());
            }
        }
        names
    }
}

/// Writes a text file, with the folders it needs.
///
/// # Errors
/// When that fails.
pub fn write_text(path: &Path, text: &str) -> Result<(), ResultsError> {
    let failed = |source| ResultsError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}
