//! A `ringmesh` process: its standard error is read all the time, its end is waited for, and it never outlives its test.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{DEADLINE, eventually};

/// A child process whose log is kept for the failure message.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    /// Every line read so far.
    log: RefCell<Vec<String>>,
    /// How many lines of `log` earlier calls of `wait_for` have passed over.
    looked: Cell<usize>,
}

impl Process {
    /// Starts the binary under test with these arguments and none of the variables that could configure it.
    pub fn spawn<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Process {
        Process::spawn_with(arguments, &[])
    }

    /// The same, with these variables added to its environment.
    pub fn spawn_with<I: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = I>,
        variables: &[(&str, &OsStr)],
    ) -> Process {
        let mut child = Self::begin(arguments, variables, Stdio::piped());
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Process { child, lines, log: RefCell::default(), looked: Cell::new(0) }
    }

    /// A process that has this in the place of standard error. Nothing of its log is seen.
    pub fn spawn_with_stderr<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>, stderr: Stdio) -> Process {
        let child = Self::begin(arguments, &[], stderr);
        Process { child, lines: channel().1, log: RefCell::default(), looked: Cell::new(0) }
    }

    fn begin<I: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = I>,
        variables: &[(&str, &OsStr)],
        stderr: Stdio,
    ) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringmesh"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RINGMESH_") || text.starts_with("REDIS_") || text == "NODE_ID" || text == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        command.envs(variables.iter().copied());
        command.spawn().expect("the gateway's binary starts")
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the process is there to be signalled");
    }

    /// Sends a signal again and again until the process has ended, with this exit code.
    pub fn signal_until_it_ends(&mut self, signal: Signal, code: i32) {
        let status = eventually("the end of the process", DEADLINE, || {
            self.signal(signal);
            self.child.try_wait().expect("a child of ours")
        });
        assert_eq!(status.code(), Some(code), "{status}");
    }

    /// The first line, of those that no earlier call has passed, that is a JSON log record for which `matches` holds.
    ///
    /// # Panics
    /// When the process ends or the deadline passes without one.
    pub fn wait_for(&self, what: &str, deadline: Duration, matches: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + deadline;
        loop {
            while let Some(line) = self.log.borrow().get(self.looked.get()) {
                self.looked.set(self.looked.get() + 1);
                if let Ok(record) = serde_json::from_str::<Value>(line)
                    && matches(&record)
                {
                    return record;
                }
            }
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.log.borrow_mut().push(line),
                Err(RecvTimeoutError::Timeout) => panic!("{what}: not logged within {deadline:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("{what}: the process ended without it"),
            }
        }
    }

    /// Waits until every thread of the process has closed its standard error, which only its end does.
    ///
    /// # Panics
    /// When the deadline passes first.
    pub fn wait_for_end_of_log(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.log.borrow_mut().push(line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("the process still runs after {deadline:?}"),
            }
        }
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// When the deadline passes first.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> ExitStatus {
        self.wait_for_end_of_log(deadline);
        eventually("the end of the process", deadline, || self.child.try_wait().expect("a child of ours"))
    }

    /// All that the process has written to standard error and that has been read.
    pub fn log(&self) -> String {
        self.log.borrow_mut().extend(self.lines.try_iter());
        self.log.borrow().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- standard error of the gateway ---\n{}\n---", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
