//! Programs in Python that stand in for what others write: `make test-tools` installs what they import.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A script of this folder that runs until its standard input ends. Dropping it ends it.
pub struct Script {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Script {
    /// Starts `tests/support/{name}`.
    pub fn spawn(name: &str, arguments: &[&str]) -> Script {
        let mut command = Command::new(interpreter());
        command.arg(path(name)).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python: run `make test-tools`, or set TEST_PYTHON");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Script { child, stdout }
    }

    /// The next line that it prints.
    ///
    /// # Panics
    /// When it ends first; it says why on standard error.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let bytes = self.stdout.read_line(&mut line).expect("a line of UTF-8");
        assert!(bytes > 0, "the script ends, and says why above");
        line.trim_end().to_owned()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The interpreter that has what the scripts import.
pub fn interpreter() -> PathBuf {
    match std::env::var_os("TEST_PYTHON") {
        Some(path) => path.into(),
        None => concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-venv/bin/python").into(),
    }
}

/// Where a script of this folder is.
pub fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "support", name].iter().collect()
}
