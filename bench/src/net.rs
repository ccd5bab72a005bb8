//! One worker's connections: connecting, upgrading, reading frames, writing batches. What the messages mean is the
//! business of a [`Driver`]. `begin` makes connections, `read` takes what comes on them, `end` ends them.

mod begin;
mod end;
mod read;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use end::error_name;

use crate::handshake::Target;
use crate::stats::{Latencies, Tally};
use crate::sys::{self, Epoll, Readiness};

/// Bytes read at once. What is left of a frame waits in a buffer of its connection's own.
const READ_BYTES: usize = 256 << 10;
/// Events taken at once: few enough that the phase and the schedule are looked at often.
const EVENTS_MAX: usize = 256;
/// Events handled between two looks at the schedule of an open loop.
const EVENTS_BETWEEN_TURNS: usize = 32;
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

    /// How many of this worker's connections have users below this number; they are the first ones.
    pub fn users_below(&self, user: u32) -> usize {
        user.saturating_sub(self.config.users.start).min(self.config.users.len() as u32) as usize
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

    /// Connects anew with the same identity, as soon as the concurrency allows it.
    pub fn begin_again(&mut self, index: usize) {
        if !self.closing {
            self.connections[index].again = true;
            self.again.push_back(index);
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
