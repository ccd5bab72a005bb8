//! A server process that a suite starts, measures and stops.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// Ports that are tried.
const START_ATTEMPTS: usize = 3;
/// How long a server may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// How long it may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is put behind a command that is a path and nothing else: the settings of this project's node under test.
const NODE_ARGUMENTS: &str =
    "serve --listen {listen} --admin-listen off --shards {shards} --connects-per-address-max 0 --log-level warn";

/// Why a server cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No program.
    #[error("the server's command is empty")]
    Empty,
    /// It does not start.
    #[error("cannot start {0}: {1}")]
    Start(String, io::Error),
    /// It starts, but nobody answers.
    #[error("{0} does not listen on {1}")]
    Silent(String, SocketAddr),
}

/// A running server. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts `command` on the cores `cpus` (none: wherever it likes) and waits until it listens. In the command,
    /// `{listen}` stands for the address, `{port}` for its port and `{shards}` for the number of cores it has.
    ///
    /// # Errors
    /// When it does not start, or does not listen in time.
    pub fn start(command: &str, cpus: &[usize]) -> Result<Self, ServerError> {
        // The port was free, but somebody may have been quicker: another one then.
        let mut attempts = (0..START_ATTEMPTS).map(|_| Self::start_once(command, cpus));
        let mut result = attempts.next().unwrap_or(Err(ServerError::Empty));
        while matches!(result, Err(ServerError::Silent(..)))
            && let Some(next) = attempts.next()
        {
            result = next;
        }
        result
    }

    fn start_once(command: &str, cpus: &[usize]) -> Result<Self, ServerError> {
        let address = free_address().map_err(|error| ServerError::Start(command.to_owned(), error))?;
        let words = command_line(command, address, cpus.len().max(1));
        let (program, arguments) = words.split_first().ok_or(ServerError::Empty)?;
        let failed = |error| ServerError::Start(program.clone(), error);
        // A child inherits the cores of the thread that starts it.
        let own = sys::affinity().map_err(failed)?;
        if !cpus.is_empty() {
            sys::pin_to_all(cpus).map_err(failed)?;
        }
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        sys::pin_to_all(&own).map_err(failed)?;
        let mut server = Self { child: child.map_err(failed)?, address };
        let deadline = Instant::now() + LISTENS_WITHIN;
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait().map_err(failed)?.is_some();
            if ended || Instant::now() > deadline {
                return Err(ServerError::Silent(words.join(" "), address));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ask_to_end(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // A process that is gone needs no signal.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask_to_end();
        let deadline = Instant::now() + ENDS_WITHIN;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
        // It had its time; a child that ended meanwhile cannot be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of loopback that nobody listens on at the moment.
///
/// # Errors
/// When there is none left.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn command_line(command: &str, address: SocketAddr, shards: usize) -> Vec<String> {
    let bare = command.split_ascii_whitespace().count() == 1;
    let command = if bare { format!("{command} {NODE_ARGUMENTS}") } else { command.to_owned() };
    let fill = |word: &str| {
        let word = word.replace("{listen}", &address.to_string()).replace("{port}", &address.port().to_string());
        word.replace("{shards}", &shards.to_string())
    };
    command.split_ascii_whitespace().map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_get_address_and_shards() {
        let address = "127.0.0.1:4000".parse().expect("an address");
        assert_eq!(command_line("node ws.js {port}", address, 1), ["node", "ws.js", "4000"]);
        let ours = command_line("target/release/ringmesh", address, 2).join(" ");
        assert!(ours.starts_with("target/release/ringmesh serve --listen 127.0.0.1:4000"), "{ours}");
        assert!(ours.contains("--shards 2"), "{ours}");
    }

    #[test]
    fn a_server_that_ends_or_does_not_exist_is_reported() {
        assert!(matches!(Server::start("/bin/true {port}", &[]), Err(ServerError::Silent(..))));
        assert!(matches!(Server::start("/nonexistent {port}", &[]), Err(ServerError::Start(..))));
    }
}
