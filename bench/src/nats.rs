//! A minimal client of NATS for the comparison with other servers: each connection subscribes to a subject of its own and
//! publishes to it, so that every message comes back, as a ping's answer does. Closed loop, one thread.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use crate::proc;
use crate::run::{Outcome, Usage};
use crate::sequence::{Arrival, SequenceTracker};
use crate::stamp::{self, Stamp};
use crate::stats::Tally;
use crate::sys::{self, Epoll};

/// Bytes of a message, as in the other echo runs.
const PAYLOAD_BYTES: usize = 32;
const READ_BYTES: usize = 256 << 10;
const EVENTS_MAX: usize = 256;
const WARMUP: Duration = Duration::from_secs(1);
/// How long messages under way at the end may take.
const DRAINS_WITHIN: Duration = Duration::from_secs(5);
/// How long the server may take to answer the greeting.
const GREETS_WITHIN: Duration = Duration::from_secs(10);

/// What is asked of the server.
#[derive(Clone, Copy, Debug)]
pub struct Echoes {
    /// Connections.
    pub connections: u32,
    /// Messages of each connection that are on their way.
    pub inflight: u32,
    /// The measured window.
    pub duration: Duration,
}

/// Measures a server from a thread of its own, on the core `cpu`.
///
/// # Errors
/// When a connection cannot be made or breaks, or the server says that it did not like something.
pub fn measure(address: SocketAddr, pid: u32, cpu: Option<usize>, echoes: Echoes) -> io::Result<Outcome> {
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            cpu.map_or(Ok(()), sys::pin_to)?;
            Client::connect(address, pid, echoes)?.run()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Client {
    echoes: Echoes,
    pid: u32,
    epoll: Epoll,
    connections: Vec<Connection>,
    tally: Tally,
    window_ns: std::ops::Range<u64>,
    connecting_ns: u64,
    memory_before: proc::MemorySample,
    drops_before: u64,
}

struct Connection {
    socket: OwnedFd,
    /// What stands before a message's payload.
    publish: String,
    sent: u64,
    received: SequenceTracker,
    out: Vec<u8>,
    /// A message whose rest has not come.
    partial: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr, pid: u32, echoes: Echoes) -> io::Result<Self> {
        sys::raise_descriptor_limit();
        let (memory_before, drops_before) = (proc::sample_memory(&[pid]), proc::listen_drops());
        let started_ns = sys::now_ns();
        let epoll = Epoll::new(EVENTS_MAX)?;
        let mut connections = Vec::new();
        for user in 0..echoes.connections {
            let socket = greet(address, user)?;
            epoll.add(socket.as_fd(), u64::from(user))?;
            let publish = format!("PUB {} {PAYLOAD_BYTES}\r\n", subject(user));
            let (out, partial) = (Vec::new(), Vec::new());
            connections.push(Connection {
                socket,
                publish,
                sent: 0,
                received: SequenceTracker::default(),
                out,
                partial,
            });
        }
        let tally = Tally { opened: u64::from(echoes.connections), ..Tally::default() };
        let connecting_ns = sys::now_ns() - started_ns;
        let window_ns = u64::MAX..u64::MAX;
        Ok(Self { echoes, pid, epoll, connections, tally, window_ns, connecting_ns, memory_before, drops_before })
    }

    fn run(mut self) -> io::Result<Outcome> {
        let sample = |pid| (proc::sample_processes(&[pid]), proc::sample_own_thread(sys::thread_id()));
        let memory_connected = proc::sample_memory(&[self.pid]);
        let start_ns = sys::now_ns() + WARMUP.as_nanos() as u64;
        self.window_ns = start_ns..start_ns + self.echoes.duration.as_nanos() as u64;
        for user in 0..self.connections.len() {
            (0..self.echoes.inflight).for_each(|_| self.publish(user, sys::now_ns()));
            self.flush(user)?;
        }
        let mut buffer = vec![0; READ_BYTES];
        self.turn_until(self.window_ns.start, &mut buffer, |_| false)?;
        let before = sample(self.pid);
        self.turn_until(self.window_ns.end, &mut buffer, |_| false)?;
        let after = sample(self.pid);
        let memory_end = proc::sample_memory(&[self.pid]);
        let drained_ns = self.window_ns.end + DRAINS_WITHIN.as_nanos() as u64;
        self.turn_until(drained_ns, &mut buffer, |client| client.tally.received == client.tally.sent)?;
        Ok(Outcome {
            tally: self.tally,
            timeline: Vec::new(),
            connecting_seconds: self.connecting_ns as f64 / 1e9,
            window_seconds: self.echoes.duration.as_secs_f64(),
            server: Some(Usage::between(before.0, after.0)),
            redis: None,
            workers: vec![Usage::between(before.1, after.1)],
            memory_before: self.memory_before,
            memory_connected,
            memory_end,
            listen_drops: proc::listen_drops().saturating_sub(self.drops_before),
        })
    }

    fn turn_until(&mut self, until_ns: u64, buffer: &mut [u8], over: impl Fn(&Self) -> bool) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while sys::now_ns() < until_ns && !over(self) {
            let left = Duration::from_nanos(until_ns.saturating_sub(sys::now_ns()));
            self.epoll.wait(left.min(Duration::from_millis(1)), &mut events)?;
            for event in &events {
                let user = event.token as usize;
                if event.readable {
                    self.read(user, buffer)?;
                }
                self.flush(user)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, user: usize, buffer: &mut [u8]) -> io::Result<()> {
        while let Some(read) = sys::receive(&self.connections[user].socket, buffer)? {
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let now_ns = sys::now_ns();
            let mut input = std::mem::take(&mut self.connections[user].partial);
            input.extend_from_slice(&buffer[..read]);
            let mut used = 0;
            while let Some((said, bytes)) = parse(&input[used..]) {
                used += bytes;
                match said {
                    Said::Message(payload) => self.message(user, now_ns, payload),
                    Said::Ping => self.connections[user].out.extend_from_slice(b"PONG\r\n"),
                    Said::Other => {}
                    Said::Error(text) => return Err(io::Error::other(text.to_owned())),
                }
            }
            input.drain(..used);
            self.connections[user].partial = input;
            if read < buffer.len() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn message(&mut self, user: usize, now_ns: u64, payload: &[u8]) {
        let stamp = Stamp::find(payload).filter(|(at, stamp)| *at == 0 && stamp.sender == user as u32);
        let Some((_, stamp)) = stamp.filter(|_| payload.len() == PAYLOAD_BYTES) else {
            self.tally.corrupt += 1;
            return;
        };
        match self.connections[user].received.note(stamp.sequence) {
            Arrival::New => {}
            Arrival::Late => self.tally.reordered += 1,
            Arrival::Duplicate => {
                self.tally.duplicated += 1;
                return;
            }
        }
        self.tally.received += 1;
        if self.window_ns.contains(&now_ns) {
            self.tally.window_received += 1;
            self.tally.window_payload_bytes += payload.len() as u64;
            self.tally.message.record(stamp.age_ns(now_ns));
        }
        if now_ns < self.window_ns.end {
            self.publish(user, now_ns);
        }
    }

    fn publish(&mut self, user: usize, now_ns: u64) {
        let connection = &mut self.connections[user];
        let stamp = Stamp { sender: user as u32, sequence: connection.sent, intended_ns: now_ns, lag_us: 0 };
        let start = connection.out.len() + connection.publish.len();
        connection.out.extend_from_slice(connection.publish.as_bytes());
        connection.out.extend_from_slice(&[b'x'; PAYLOAD_BYTES]);
        connection.out[start..start + stamp::STAMP_BYTES].copy_from_slice(&stamp.encode());
        connection.out.extend_from_slice(b"\r\n");
        connection.sent += 1;
        self.tally.sent += 1;
    }

    /// Writes what the socket takes; the rest follows at its next edge.
    fn flush(&mut self, user: usize) -> io::Result<()> {
        let connection = &mut self.connections[user];
        while !connection.out.is_empty() {
            let Some(written) = sys::send(&connection.socket, &connection.out)? else { break };
            connection.out.drain(..written);
        }
        Ok(())
    }
}

fn subject(user: u32) -> String {
    format!("bench.{user}")
}

/// Connects, subscribes, and waits until the server has understood both.
fn greet(address: SocketAddr, user: u32) -> io::Result<OwnedFd> {
    let mut stream = TcpStream::connect_timeout(&address, GREETS_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETS_WITHIN))?;
    let connect = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";
    stream.write_all(format!("{connect}SUB {} 1\r\nPING\r\n", subject(user)).as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"PONG\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(stream.into())
}

/// What the server said.
#[derive(PartialEq, Eq, Debug)]
enum Said<'a> {
    /// A message of a subscription.
    Message(&'a [u8]),
    /// It wants an answer.
    Ping,
    /// It did not like something.
    Error(&'a str),
    /// Something of no interest here.
    Other,
}

/// The first thing said in `input` and its bytes, or `None` when it is not complete.
fn parse(input: &[u8]) -> Option<(Said<'_>, usize)> {
    let end = memchr::memmem::find(input, b"\r\n")?;
    let line = std::str::from_utf8(&input[..end]).unwrap_or_default();
    let after = end + 2;
    if let Some(rest) = line.strip_prefix("MSG ") {
        // MSG <subject> <subscription> [reply-to] <bytes>
        let Some(bytes) = rest.rsplit(' ').next().and_then(|bytes| bytes.parse::<usize>().ok()) else {
            return Some((Said::Error("a MSG without a length"), after));
        };
        return input.get(after..after + bytes + 2).map(|all| (Said::Message(&all[..bytes]), after + bytes + 2));
    }
    let said = match line {
        "PING" => Said::Ping,
        _ if line.starts_with("-ERR") => Said::Error(line),
        _ => Said::Other,
    };
    Some((said, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_messages_are_taken_and_no_prefix_of_one() {
        let input = b"MSG bench.3 1 4\r\na\r\nb\r\nPING\r\n";
        let whole = input.len() - b"PING\r\n".len();
        assert_eq!(parse(input), Some((Said::Message(b"a\r\nb"), whole)));
        assert_eq!(parse(&input[whole..]), Some((Said::Ping, 6)));
        for cut in 0..whole {
            assert_eq!(parse(&input[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn errors_are_told_from_the_rest() {
        assert_eq!(parse(b"-ERR 'No'\r\n"), Some((Said::Error("-ERR 'No'"), 11)));
        assert_eq!(parse(b"+OK\r\n"), Some((Said::Other, 5)));
        assert!(matches!(parse(b"MSG bench.3 1 x\r\n"), Some((Said::Error(_), _))));
    }
}
