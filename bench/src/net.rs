//! One worker's connections: connecting, upgrading, reading frames, writing batches. What the messages mean is the
//! business of a [`Driver`].

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::frame::{self, Opcode};
use crate::handshake::{self, Target};
use crate::stats::{Latencies, Tally};
use crate::sys::{self, Epoll, Readiness};

/// Bytes read at once. What is left of a frame waits in a buffer of its connection's own.
const READ_BYTES: usize = 256 << 10;
/// Events taken at once: few enough that the phase and the schedule are looked at often.
const EVENTS_MAX: usize = 256;
/// Connections from one loopback source address, below the 28,000 ports of the usual range.
const CONNECTIONS_PER_SOURCE: u32 = 15_000;

/// Events handled between two looks at the schedule of an open loop.
const EVENTS_BETWEEN_TURNS: usize = 32;
/// Connecting is hopeless when so many attempts failed and fewer succeeded: the rest is not tried.
const FAILURES_HOPELESS: u64 = 200;

/// Different unexpected messages shown, lest a confused server fills the report.
const ERROR_NAMES_MAX: usize = 32;

/// A scenario's part in a worker: what to send, and what to make of what comes.
pub trait Driver: Send {
    /// A connection was upgraded. Return false when more must happen (and [`Net::ready`] be called) until it counts.
    fn opened(&mut self, _net: &mut Net, _index: usize) -> bool {
        true
    }
    /// Every connection is up: traffic may begin.
    fn start(&mut self, _net: &mut Net) {}
    /// A whole text or binary message came at `now_ns`.
    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]);
    /// A connection ended before the run did.
    fn closed(&mut self, _net: &mut Net, _index: usize) {}
    /// A connection is gone that the scenario itself had ended with [`Net::leave`].
    fn left(&mut self, _net: &mut Net, _index: usize) {}
    /// At least once a turn.
    fn turn(&mut self, _net: &mut Net, _now_ns: u64) {}
    /// When [`Driver::turn`] must be called at the latest, in nanoseconds of the monotonic clock.
    fn next_due_ns(&self) -> u64 {
        u64::MAX
    }
    /// True once the scenario has nothing left to do within the window.
    fn is_finished(&self) -> bool {
        false
    }
    /// No new messages from now on; what is under way may still come.
    fn stop(&mut self, _net: &mut Net) {}
    /// True while the scenario has more to do after [`Driver::stop`].
    fn is_busy(&self) -> bool {
        false
    }
}

/// How a worker connects.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The servers, used in turn: pairs of users are split, so that their messages cross.
    pub targets: Vec<Target>,
    /// The users of this worker's connections, by number.
    pub users: Range<u32>,
    /// What stands before the number in a user id.
    pub user_prefix: String,
    /// Connections under way at the same time.
    pub concurrency: usize,
    /// Nanoseconds from one attempt to the next at least.
    pub connect_interval_ns: u64,
    /// A connection that is not ready by then has failed.
    pub connect_timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not begun, failed or ended.
    Down,
    /// connect(2) is under way.
    Connecting,
    /// The request is sent.
    Upgrading,
    /// Upgraded; `ready` may have to be said yet.
    Open,
    /// Close was sent at the end of the run.
    Closing,
    /// Close was sent because the scenario wants this connection to go.
    Leaving,
}

struct Connection {
    state: State,
    ready: bool,
    /// It was open before.
    again: bool,
    /// A reader that does not read: what comes stays in the socket.
    paused: bool,
    /// It was paused once.
    slow: bool,
    dirty: bool,
    generation: u32,
    socket: Option<OwnedFd>,
    /// connect(2) was called, then: the upgrade request was sent.
    since_ns: u64,
    started_ns: u64,
    out: Vec<u8>,
    /// Bytes of `out` that are written already.
    written: usize,
    /// The beginning of a frame or response head whose rest has not come.
    partial: Vec<u8>,
    /// The fragments of a message whose last one has not come.
    fragments: Vec<u8>,
}

/// One worker's connections and what it has seen of them.
pub struct Net {
    config: NetConfig,
    epoll: Epoll,
    connections: Vec<Connection>,
    /// Connections with bytes to write.
    dirty: Vec<usize>,
    /// Connections begun, in order, for the timeout; an entry may be out of date.
    begun: VecDeque<(u64, usize, u32)>,
    next: usize,
    /// Connections to begin once more.
    again: VecDeque<usize>,
    /// Connections that read again; the edges of what lies in their sockets are past.
    resumed: Vec<usize>,
    /// When the next connection may be begun, in nanoseconds of the monotonic clock.
    next_begin_ns: u64,
    under_way: usize,
    open: usize,
    closing: bool,
    /// Latencies of the current interval of the window.
    interval: Latencies,
    /// The measured window, in nanoseconds of the monotonic clock.
    pub window: Range<u64>,
    /// What was seen.
    pub tally: Tally,
}

impl Net {
    /// A worker's connections, none of them begun.
    ///
    /// # Errors
    /// When there is no epoll set to be had.
    pub fn new(config: NetConfig) -> io::Result<Self> {
        let connection = |_| Connection {
            state: State::Down,
            ready: true,
            again: false,
            paused: false,
            slow: false,
            dirty: false,
            generation: 0,
            socket: None,
            since_ns: 0,
            started_ns: 0,
            out: Vec::new(),
            written: 0,
            partial: Vec::new(),
            fragments: Vec::new(),
        };
        let connections = config.users.clone().map(connection).collect();
        Ok(Self {
            config,
            epoll: Epoll::new(EVENTS_MAX)?,
            connections,
            dirty: Vec::new(),
            begun: VecDeque::new(),
            next: 0,
            again: VecDeque::new(),
            resumed: Vec::new(),
            next_begin_ns: 0,
            under_way: 0,
            open: 0,
            closing: false,
            interval: Latencies::default(),
            window: u64::MAX..u64::MAX,
            tally: Tally::default(),
        })
    }

    /// How many connections this worker has, in whatever state.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Connections that are upgraded now.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Every connection has been tried.
    pub fn is_settled(&self) -> bool {
        self.next == self.connections.len() && self.under_way == 0
    }

    /// The number of this connection's user.
    pub fn user(&self, index: usize) -> u32 {
        self.config.users.start + index as u32
    }

    fn target(&self, index: usize) -> &Target {
        &self.config.targets[self.user(index) as usize % self.config.targets.len()]
    }

    /// This connection is upgraded and not ended.
    pub fn is_open(&self, index: usize) -> bool {
        self.connections[index].state == State::Open
    }

    /// When connect(2) was called for this connection.
    pub fn started_ns(&self, index: usize) -> u64 {
        self.connections[index].started_ns
    }

    /// Bytes appended here are written at the end of the event that is being handled.
    pub fn out(&mut self, index: usize) -> &mut Vec<u8> {
        let connection = &mut self.connections[index];
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(index);
        }
        &mut connection.out
    }

    /// Writes what was appended for this connection now, instead of with everybody's at the end of the turn.
    pub fn write(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(socket) = &connection.socket else { return };
        // An error shows again at the regular write, which handles it.
        if let Ok(Some(written)) = sys::send(socket, &connection.out[connection.written..]) {
            connection.written += written;
        }
    }

    /// This connection needs no more to count as connected.
    pub fn ready(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.ready {
            connection.ready = true;
            self.under_way -= 1;
        }
    }

    /// One message of the scenario came at `now_ns`, after `latency_ns`.
    pub fn received(&mut self, now_ns: u64, latency_ns: u64, payload_bytes: usize) {
        self.tally.received += 1;
        self.count(now_ns, latency_ns, payload_bytes);
    }

    /// One message came that nobody counted on, such as a broadcast to a connection that comes and goes.
    pub fn received_extra(&mut self, now_ns: u64, latency_ns: u64, payload_bytes: usize) {
        self.tally.received_extra += 1;
        self.count(now_ns, latency_ns, payload_bytes);
    }

    /// One message of an open loop came, whose sender was `lag_ns` late.
    pub fn received_paced(&mut self, now_ns: u64, latency_ns: u64, lag_ns: u64, payload_bytes: usize) {
        self.received(now_ns, latency_ns, payload_bytes);
        if self.window.contains(&now_ns) {
            self.tally.service.record(latency_ns.saturating_sub(lag_ns));
        }
    }

    /// A message of an open loop is on its way, intended for `intended_ns` and stamped at `now_ns`.
    pub fn sent_paced(&mut self, intended_ns: u64, now_ns: u64) {
        if self.window.contains(&intended_ns) {
            self.tally.window_sent += 1;
            self.tally.lag.record(now_ns.saturating_sub(intended_ns));
        }
    }

    /// Ends an interval of the window, and gives its latencies.
    pub fn end_interval(&mut self) -> Latencies {
        let mut interval = std::mem::take(&mut self.interval);
        self.tally.message.merge_buckets(&interval.buckets());
        interval
    }

    fn count(&mut self, now_ns: u64, latency_ns: u64, payload_bytes: usize) {
        if self.window.contains(&now_ns) {
            self.tally.window_received += 1;
            self.tally.window_payload_bytes += payload_bytes as u64;
            self.interval.record(latency_ns);
        }
    }

    /// A message came that the scenario has no use for.
    pub fn unexpected(&mut self, payload: &[u8]) {
        self.tally.unexpected += 1;
        if self.tally.errors.len() < ERROR_NAMES_MAX {
            let shown = String::from_utf8_lossy(&payload[..payload.len().min(100)]);
            self.tally.error(&format!("unexpected: {shown}"));
        }
    }

    /// Stops reading from this connection: the scenario wants a slow reader. That the server ends it is no error then.
    pub fn pause(&mut self, index: usize) {
        self.connections[index].paused = true;
        self.connections[index].slow = true;
    }

    /// Reads from this connection again.
    pub fn resume(&mut self, index: usize) {
        self.connections[index].paused = false;
        self.resumed.push(index);
    }

    /// Ends this connection: with a Close and its answer, or as a crash would. [`Driver::left`] says when it is gone.
    pub fn leave<D: Driver>(&mut self, driver: &mut D, index: usize, politely: bool) {
        if self.connections[index].state != State::Open {
            return;
        }
        if politely {
            self.append_close(index);
            self.connections[index].state = State::Leaving;
        } else {
            self.drop_connection(index);
            driver.left(self, index);
        }
    }

    /// Connects anew with the same identity, as soon as the concurrency allows it.
    pub fn begin_again(&mut self, index: usize) {
        if !self.closing {
            self.connections[index].again = true;
            self.again.push_back(index);
        }
    }

    fn append_close(&mut self, index: usize) {
        // RFC 6455 7.4.1: 1000, a normal closure.
        frame::encode(Opcode::Close, &1000_u16.to_be_bytes(), self.out(index));
    }

    /// Says goodbye on every connection, and begins no more.
    pub fn close_all(&mut self) {
        self.closing = true;
        self.next = self.connections.len();
        self.again.clear();
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Open if self.connections[index].slow => self.drop_connection(index),
                State::Open => {
                    self.append_close(index);
                    self.connections[index].state = State::Closing;
                }
                State::Connecting | State::Upgrading => self.drop_connection(index),
                State::Leaving => self.connections[index].state = State::Closing,
                State::Down | State::Closing => {}
            }
        }
    }

    /// One turn: begins connections, waits at most `timeout` for events, hands them to the driver, writes.
    ///
    /// # Errors
    /// Only what makes the worker useless; what happens to one connection is counted.
    pub fn turn<D: Driver>(&mut self, driver: &mut D, scratch: &mut Scratch, timeout: Duration) -> io::Result<()> {
        self.begin_connections();
        self.flush_dirty(driver);
        while let Some(index) = self.resumed.pop() {
            self.read(driver, index, &mut scratch.read, true);
        }
        let until_due = driver.next_due_ns().saturating_sub(sys::now_ns());
        self.epoll.wait(timeout.min(Duration::from_nanos(until_due)), &mut scratch.events)?;
        let mut events = std::mem::take(&mut scratch.events);
        for (count, event) in events.drain(..).enumerate() {
            self.handle(driver, event, &mut scratch.read);
            if (count + 1) % EVENTS_BETWEEN_TURNS == 0 {
                driver.turn(self, sys::now_ns());
            }
            self.flush_dirty(driver);
        }
        scratch.events = events;
        let now_ns = sys::now_ns();
        self.expire(driver, now_ns);
        driver.turn(self, now_ns);
        self.flush_dirty(driver);
        Ok(())
    }

    fn begin_connections(&mut self) {
        // A bound for each turn, so that answers are read while a storm goes out.
        for _ in 0..64 {
            let interval_ns = self.config.connect_interval_ns;
            let waits = interval_ns > 0 && sys::now_ns() < self.next_begin_ns;
            if waits || self.under_way >= self.config.concurrency {
                return;
            }
            let index = if self.next < self.connections.len() {
                if self.tally.failed >= FAILURES_HOPELESS && self.tally.failed > self.tally.opened {
                    self.tally.failed += (self.connections.len() - self.next) as u64;
                    self.tally.error("connecting given up: more attempts failed than succeeded");
                    self.next = self.connections.len();
                    return;
                }
                self.next += 1;
                self.next - 1
            } else if let Some(index) = self.again.pop_front() {
                index
            } else {
                return;
            };
            let user = self.user(index);
            let address = self.target(index).address;
            let source = source_address(address.ip(), user);
            let started_ns = sys::now_ns();
            // The first attempt sets the schedule, the others keep to it.
            self.next_begin_ns = self.next_begin_ns.max(started_ns.saturating_sub(interval_ns * 64)) + interval_ns;
            let generation = self.connections[index].generation;
            let token = index as u64 | u64::from(generation) << 32;
            let socket =
                sys::connect(address, source).and_then(|socket| self.epoll.add(socket.as_fd(), token).map(|()| socket));
            match socket {
                Ok(socket) => {
                    let connection = &mut self.connections[index];
                    connection.socket = Some(socket);
                    connection.state = State::Connecting;
                    connection.ready = false;
                    connection.started_ns = started_ns;
                    connection.since_ns = started_ns;
                    self.under_way += 1;
                    let deadline_ns = started_ns + self.config.connect_timeout.as_nanos() as u64;
                    self.begun.push_back((deadline_ns, index, generation));
                }
                Err(error) => {
                    self.tally.failed += 1;
                    self.tally.error(&format!("connect: {}", error_name(&error)));
                }
            }
        }
    }

    fn expire<D: Driver>(&mut self, driver: &mut D, now_ns: u64) {
        while let Some(&(deadline_ns, index, generation)) = self.begun.front() {
            let connection = &self.connections[index];
            let done = connection.generation != generation || connection.ready || connection.state == State::Down;
            if !done && deadline_ns > now_ns {
                return;
            }
            self.begun.pop_front();
            if !done {
                self.fail(driver, index, "timed out");
            }
        }
    }

    fn handle<D: Driver>(&mut self, driver: &mut D, event: Readiness, buffer: &mut [u8]) {
        let index = (event.token & 0xffff_ffff) as usize;
        if self.connections[index].generation != (event.token >> 32) as u32 {
            return;
        }
        if self.connections[index].state == State::Connecting && event.writable {
            self.connected(driver, index);
        }
        if event.writable && !self.connections[index].out.is_empty() {
            self.flush(driver, index);
        }
        if !self.connections[index].paused {
            if event.readable {
                self.read(driver, index, buffer, event.half_closed);
            }
        } else if event.ended {
            self.fail(driver, index, "given up by the server");
        }
    }

    fn connected<D: Driver>(&mut self, driver: &mut D, index: usize) {
        let Some(socket) = &self.connections[index].socket else { return };
        if let Err(error) = sys::connect_result(socket) {
            self.fail(driver, index, error_name(&error));
            return;
        }
        let now_ns = sys::now_ns();
        let user = format!("{}{}", self.config.user_prefix, self.user(index));
        let mut request = Vec::new();
        self.target(index).append_request(&user, &mut request);
        self.out(index).extend_from_slice(&request);
        let connection = &mut self.connections[index];
        connection.state = State::Upgrading;
        self.tally.connect.record(now_ns - connection.since_ns);
        connection.since_ns = now_ns;
    }

    /// Reads what is there; `to_the_end` when the end of the stream may be among it.
    fn read<D: Driver>(&mut self, driver: &mut D, index: usize, buffer: &mut [u8], to_the_end: bool) {
        loop {
            let Some(socket) = &self.connections[index].socket else { return };
            let read = match sys::receive(socket, buffer) {
                Ok(None) => return,
                Ok(Some(0)) => return self.fail(driver, index, "closed by the server"),
                Ok(Some(read)) => read,
                Err(error) => return self.fail(driver, index, error_name(&error)),
            };
            let now_ns = sys::now_ns();
            if self.connections[index].partial.is_empty() {
                let used = self.take(driver, index, now_ns, &buffer[..read]);
                self.connections[index].partial.extend_from_slice(&buffer[used..read]);
            } else {
                let mut partial = std::mem::take(&mut self.connections[index].partial);
                partial.extend_from_slice(&buffer[..read]);
                let used = self.take(driver, index, now_ns, &partial);
                partial.drain(..used);
                if !partial.is_empty() {
                    self.connections[index].partial = partial;
                }
            }
            // A short read has emptied the socket: what comes later is a new edge.
            if read < buffer.len() && !to_the_end {
                return;
            }
        }
    }

    /// Takes whole heads and frames off `input`, and says how many bytes they were.
    fn take<D: Driver>(&mut self, driver: &mut D, index: usize, now_ns: u64, input: &[u8]) -> usize {
        let mut used = 0;
        if self.connections[index].state == State::Upgrading {
            match handshake::parse_response(input) {
                Ok(None) => return 0,
                Ok(Some(head)) => {
                    used = head;
                    self.upgraded(driver, index, now_ns);
                }
                Err(error) => {
                    self.fail(driver, index, &error.to_string());
                    return input.len();
                }
            }
        }
        loop {
            match frame::parse(&input[used..]) {
                Ok(None) => return used,
                Ok(Some(frame)) => {
                    used += frame.bytes;
                    self.frame(driver, index, now_ns, &frame);
                    if self.connections[index].socket.is_none() {
                        return input.len();
                    }
                }
                Err(error) => {
                    self.fail(driver, index, &error.to_string());
                    return input.len();
                }
            }
        }
    }

    fn upgraded<D: Driver>(&mut self, driver: &mut D, index: usize, now_ns: u64) {
        let connection = &mut self.connections[index];
        connection.state = State::Open;
        self.tally.upgrade.record(now_ns - connection.since_ns);
        self.tally.opened += u64::from(!connection.again);
        self.tally.reopened += u64::from(connection.again);
        self.open += 1;
        if driver.opened(self, index) {
            self.ready(index);
        }
    }

    fn frame<D: Driver>(&mut self, driver: &mut D, index: usize, now_ns: u64, frame: &frame::Frame<'_>) {
        match frame.opcode {
            Opcode::Text | Opcode::Binary if frame.fin => driver.message(self, index, now_ns, frame.payload),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                let mut fragments = std::mem::take(&mut self.connections[index].fragments);
                fragments.extend_from_slice(frame.payload);
                if frame.fin {
                    driver.message(self, index, now_ns, &fragments);
                    fragments.clear();
                }
                self.connections[index].fragments = fragments;
            }
            Opcode::Ping => {
                self.tally.server_pings += 1;
                frame::encode(Opcode::Pong, frame.payload, self.out(index));
            }
            Opcode::Pong => {}
            Opcode::Close if self.connections[index].state == State::Closing => self.drop_connection(index),
            Opcode::Close if self.connections[index].state == State::Leaving => {
                self.drop_connection(index);
                driver.left(self, index);
            }
            Opcode::Close => {
                let code = frame.payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                let name = code.map_or("close without a code".to_owned(), |code| format!("close {code}"));
                self.fail(driver, index, &name);
            }
        }
    }

    fn flush_dirty<D: Driver>(&mut self, driver: &mut D) {
        while let Some(index) = self.dirty.pop() {
            self.connections[index].dirty = false;
            self.flush(driver, index);
        }
    }

    fn flush<D: Driver>(&mut self, driver: &mut D, index: usize) {
        loop {
            let connection = &mut self.connections[index];
            let Some(socket) = &connection.socket else { return connection.out.clear() };
            if connection.written == connection.out.len() {
                connection.out.clear();
                connection.written = 0;
                return;
            }
            match sys::send(socket, &connection.out[connection.written..]) {
                Ok(Some(written)) => connection.written += written,
                // The socket's next edge brings the rest.
                Ok(None) => return,
                Err(error) => return self.fail(driver, index, error_name(&error)),
            }
        }
    }

    /// A connection ended for this reason; while the run closes anyway, that is no error.
    fn fail<D: Driver>(&mut self, driver: &mut D, index: usize, reason: &str) {
        let Connection { state, slow, again, .. } = self.connections[index];
        self.drop_connection(index);
        if self.closing {
            return;
        }
        match state {
            State::Down | State::Closing => {}
            State::Connecting | State::Upgrading => {
                self.tally.failed += 1;
                let stage = if state == State::Connecting { "connect" } else { "upgrade" };
                self.tally.error(&format!("{stage}: {reason}"));
                if again {
                    driver.closed(self, index);
                }
            }
            State::Leaving => driver.left(self, index),
            State::Open if slow => self.tally.slow_closed += 1,
            State::Open => {
                self.tally.closed_early += 1;
                self.tally.error(&format!("open: {reason}"));
                driver.closed(self, index);
            }
        }
    }

    fn drop_connection(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.state == State::Down {
            return;
        }
        if matches!(connection.state, State::Open | State::Closing | State::Leaving) {
            self.open -= 1;
        }
        if !connection.ready {
            connection.ready = true;
            self.under_way -= 1;
        }
        connection.state = State::Down;
        connection.paused = false;
        connection.socket = None;
        connection.generation += 1;
        connection.out = Vec::new();
        connection.written = 0;
        connection.partial = Vec::new();
        connection.fragments = Vec::new();
    }
}

/// A worker's buffers, outside of [`Net`] so that a message may borrow them while the driver changes the net.
pub struct Scratch {
    read: Vec<u8>,
    events: Vec<Readiness>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { read: vec![0; READ_BYTES], events: Vec::with_capacity(EVENTS_MAX) }
    }
}

/// Where a user's connection comes from: on loopback one of many addresses, so that ports do not run out.
fn source_address(target: IpAddr, user: u32) -> Option<IpAddr> {
    match target {
        IpAddr::V4(address) if address.is_loopback() => {
            let number = 2 + user / CONNECTIONS_PER_SOURCE;
            Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(127, 0, 0, 0)) + number)))
        }
        _ => None,
    }
}

/// A name for the errors that load tests meet, rather than the platform's sentence.
fn error_name(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused",
        Some(libc::ECONNRESET) => "reset",
        Some(libc::EPIPE) => "broken pipe",
        Some(libc::ETIMEDOUT) => "timed out",
        Some(libc::EADDRNOTAVAIL) => "no source port left",
        Some(libc::EADDRINUSE) => "source port in use",
        Some(libc::EMFILE | libc::ENFILE) => "no descriptor left",
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => "unreachable",
        _ => "other error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_spread_over_loopback_and_only_there() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(source_address(loopback, 0), Some("127.0.0.2".parse().expect("an address")));
        assert_eq!(source_address(loopback, 15_000), Some("127.0.0.3".parse().expect("an address")));
        assert_eq!(source_address("10.0.0.1".parse().expect("an address"), 7), None);
    }
}
