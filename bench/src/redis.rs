//! A redis-server of the harness' own: on a free port of loopback, in a temporary folder, with nothing kept on disk; and
//! as much of its protocol as the harness speaks.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::server::free_address;

/// Ports that are tried.
const START_ATTEMPTS: usize = 3;
/// How long it may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why there is no Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// No program.
    #[error("redis-server is not installed: `make test-tools` installs it, or `apt-get install redis-server`")]
    NotInstalled,
    /// It does not start.
    #[error("redis-server: {0}")]
    Io(#[from] io::Error),
    /// It starts, but nobody answers.
    #[error("redis-server does not answer on {0}")]
    Silent(SocketAddr),
    /// It answers what it should not.
    #[error("Redis answers {0} to {1}")]
    Answer(String, String),
}

/// A running redis-server. It is ended, and its folder removed, when this is dropped.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    folder: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Redis {
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed, does not start, or does not answer in time.
    pub fn start() -> Result<Self, RedisError> {
        // The port was free, but somebody may have been quicker: another one then.
        let mut result = Self::start_once(0);
        for attempt in 1..START_ATTEMPTS {
            if !matches!(result, Err(RedisError::Silent(_))) {
                break;
            }
            result = Self::start_once(attempt);
        }
        result
    }

    fn start_once(attempt: usize) -> Result<Self, RedisError> {
        let address = free_address()?;
        let name = format!("ringmesh-bench-redis-{}-{}-{attempt}", std::process::id(), address.port());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder)?;
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no", "--logfile", "redis.log", "--dir"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                // It is empty.
                let _ = std::fs::remove_dir(&folder);
                return Err(if error.kind() == io::ErrorKind::NotFound {
                    RedisError::NotInstalled
                } else {
                    RedisError::Io(error)
                });
            }
        };
        let mut redis = Self { child, folder, address };
        let own = format!("process_id:{}\r", redis.pid());
        let deadline = Instant::now() + ANSWERS_WITHIN;
        loop {
            // Another one may have the port.
            let info = redis.connect().and_then(|mut client| client.ask(&[b"INFO", b"server"]));
            if matches!(info, Ok(Answer::Bulk(text)) if String::from_utf8_lossy(&text).contains(&own)) {
                return Ok(redis);
            }
            if redis.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(RedisError::Silent(address));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What nodes are told.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn connect(&self) -> Result<Client, RedisError> {
        let stream = TcpStream::connect_timeout(&self.address, ANSWERS_WITHIN)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        Ok(Client { reader: BufReader::with_capacity(1 << 20, stream) })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is as well; it keeps nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What is left of it would be found in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// An answer of Redis (RESP 2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// `+OK`.
    Status(String),
    /// `-ERR …`.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// `$3`; nothing for `$-1`.
    Bulk(Vec<u8>),
    /// `*2`.
    Array(Vec<Answer>),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// The connection, when nothing is to be asked any more; answers that have come with the last one are lost.
    pub fn into_stream(self) -> TcpStream {
        self.reader.into_inner()
    }

    /// One command and its answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn ask(&mut self, command: &[&[u8]]) -> Result<Answer, RedisError> {
        let mut bytes = Vec::new();
        encode(command, &mut bytes);
        self.send(&bytes)?;
        self.answer()
    }

    /// Sends commands that [`encode`] has written.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn send(&mut self, commands: &[u8]) -> Result<(), RedisError> {
        Ok(self.reader.get_mut().write_all(commands)?)
    }

    /// The next answer.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no answer.
    pub fn answer(&mut self) -> Result<Answer, RedisError> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| malformed(line))?;
        let number = || rest.parse::<i64>().map_err(|_| malformed(line));
        Ok(match kind {
            "+" => Answer::Status(rest.to_owned()),
            "-" => Answer::Error(rest.to_owned()),
            ":" => Answer::Integer(number()?),
            "$" => {
                let Ok(length) = usize::try_from(number()?) else { return Ok(Answer::Bulk(Vec::new())) };
                let mut bytes = vec![0; length + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Answer::Bulk(bytes)
            }
            "*" => {
                let parts = (0..number()?.max(0)).map(|_| self.answer()).collect::<Result<_, _>>()?;
                Answer::Array(parts)
            }
            _ => return Err(malformed(line)),
        })
    }
}

fn malformed(line: &str) -> RedisError {
    io::Error::new(io::ErrorKind::InvalidData, format!("no answer of Redis: {line:?}")).into()
}

/// Appends a command, as RESP wants it.
pub fn encode(command: &[&[u8]], out: &mut Vec<u8>) {
    out.extend(format!("*{}\r\n", command.len()).bytes());
    for part in command {
        out.extend(format!("${}\r\n", part.len()).bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_byte_strings() {
        let mut out = Vec::new();
        encode(&[b"SET", b"k", b"a\r\nb"], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn a_redis_of_its_own_answers_and_leaves_nothing_behind() {
        let redis = Redis::start().expect("redis-server is installed: make test-tools");
        let mut client = redis.connect().expect("it answers");
        let mut ask = |command: &[&[u8]]| client.ask(command).expect("it answers");
        assert_eq!(ask(&[b"SET", b"k", b"v"]), Answer::Status("OK".to_owned()));
        assert_eq!(ask(&[b"GET", b"k"]), Answer::Bulk(b"v".to_vec()));
        assert_eq!(ask(&[b"DEL", b"k", b"none"]), Answer::Integer(1));
        assert_eq!(ask(&[b"GET", b"k"]), Answer::Bulk(Vec::new()));
        assert!(matches!(ask(&[b"NONSENSE"]), Answer::Error(text) if text.starts_with("ERR")));
        let array = ask(&[b"EVAL", b"return {1, {'a'}}", b"0"]);
        assert_eq!(array, Answer::Array(vec![Answer::Integer(1), Answer::Array(vec![Answer::Bulk(b"a".to_vec())])]));
        let folder = redis.folder.clone();
        assert!(folder.is_dir());
        drop(redis);
        assert!(!folder.exists());
    }
}
