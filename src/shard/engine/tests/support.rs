//! A plain thread that drives an engine, and the little application on top of it that most tests need.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::ids::ConnId;
use crate::shard::chunk::Chunk;
use crate::shard::engine::{Engine, EngineConfig, Event, ListenerId};

pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Sizes that let a test reach the limits it wants with few sockets.
pub(super) fn small() -> EngineConfig {
    EngineConfig {
        sockets_max: 64,
        slots_per_ring: 64,
        buffers_per_ring: 32,
        buffer_bytes: 1024,
        submission_entries: 128,
        completion_entries: 512,
        ..EngineConfig::default()
    }
}

/// An engine under test, with what it has said so far.
pub(super) struct Bed {
    pub(super) engine: Engine,
    pub(super) address: SocketAddr,
    pub(super) listener: ListenerId,
    /// Connections in the order in which they were accepted.
    pub(super) accepted: Vec<(ConnId, SocketAddr)>,
    pub(super) received: HashMap<ConnId, Vec<u8>>,
    pub(super) ended: Vec<(ConnId, Option<i32>)>,
    pub(super) sent: Vec<(ConnId, Chunk, Result<usize, i32>)>,
    pub(super) closed: Vec<ConnId>,
    pub(super) accepts_failed: Vec<i32>,
    /// Whether new connections are read from at once.
    pub(super) read_at_once: bool,
    deadline: Instant,
}

impl Bed {
    pub(super) fn new(config: EngineConfig, outstanding: u16) -> Bed {
        let mut engine = Engine::new(config).expect("engine");
        let (socket, address) = listening();
        let listener = engine.listen(socket, outstanding);
        Bed {
            engine,
            address,
            listener,
            accepted: Vec::new(),
            received: HashMap::new(),
            ended: Vec::new(),
            sent: Vec::new(),
            closed: Vec::new(),
            accepts_failed: Vec::new(),
            read_at_once: true,
            deadline: Instant::now() + DEADLINE,
        }
    }

    /// A client, and the name of its connection in the engine.
    pub(super) fn connect(&mut self) -> (TcpStream, ConnId) {
        let client = connect(self.address);
        let local = client.local_addr().expect("address");
        let mut id = None;
        self.until("accepted", |bed| {
            id = bed.accepted.iter().rev().find(|(_, peer)| *peer == local).map(|(id, _)| *id);
            id.is_some()
        });
        (client, id.expect("accepted"))
    }

    pub(super) fn send(&mut self, id: ConnId, bytes: &[u8]) {
        self.engine.send(id, Chunk::from_vec(bytes.to_vec())).expect("no send in flight");
    }

    pub(super) fn received(&self, id: ConnId) -> &[u8] {
        self.received.get(&id).map_or(&[], Vec::as_slice)
    }

    /// One turn and all its events. Answers the number of completions.
    pub(super) fn turn(&mut self) -> usize {
        let ready = self.engine.turn().expect("turn");
        self.take_events();
        ready
    }

    pub(super) fn take_events(&mut self) {
        while let Some(event) = self.engine.next_event() {
            self.note(event);
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Accepted { id, peer, .. } => {
                self.accepted.push((id, peer));
                if self.read_at_once {
                    self.engine.resume_reading(id);
                }
            }
            Event::AcceptFailed { error, .. } => self.accepts_failed.push(error.raw_os_error().unwrap_or(0)),
            Event::Received { id, data } => {
                assert!(!data.is_empty());
                self.received.entry(id).or_default().extend_from_slice(&data);
            }
            Event::ReceiveEnded { id, error } => {
                self.ended.push((id, error.map(|error| error.raw_os_error().unwrap_or(0))));
            }
            Event::Sent { id, chunk, result } => {
                self.sent.push((id, chunk, result.map_err(|error| error.raw_os_error().unwrap_or(0))));
            }
            Event::Closed { id } => self.closed.push(id),
        }
    }

    /// Turns and parks until `done`; fails at the deadline.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Bed) -> bool) {
        while !done(self) {
            if self.turn() == 0 && !self.engine.has_unsubmitted() {
                self.park(what);
            }
            assert!(Instant::now() < self.deadline, "not in time: {what}");
        }
    }

    /// Turns while there is anything to do at once, without waiting for anything else.
    pub(super) fn settle(&mut self) {
        while self.turn() > 0 || self.engine.has_unsubmitted() {
            assert!(Instant::now() < self.deadline, "it never comes to rest");
        }
    }

    fn park(&mut self, what: &str) {
        if !self.engine.before_park().expect("before_park") {
            return;
        }
        let woken = wait_readable(self.engine.wake_fd(), self.deadline.saturating_duration_since(Instant::now()));
        assert!(woken, "slept until the deadline, waiting for: {what}");
        self.engine.after_park();
    }
}

pub(super) fn listening() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    (listener.into(), address)
}

/// A client whose calls fail rather than wait past the deadline.
pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("connect");
    client.set_read_timeout(Some(DEADLINE)).expect("timeout");
    client.set_write_timeout(Some(DEADLINE)).expect("timeout");
    client.set_nodelay(true).expect("nodelay");
    client
}

/// poll(2) for input; answers whether there is some before the time is over.
pub(super) fn wait_readable(fd: impl AsRawFd, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let left = until.saturating_duration_since(Instant::now());
        // SAFETY: one valid entry.
        match unsafe { libc::poll(&raw mut entry, 1, left.as_millis() as i32) } {
            1.. => return true,
            0 => return false,
            // Deferred work of a ring interrupts system calls of its thread.
            _ => assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINTR)),
        }
    }
}

/// `len` bytes that are different from place to place, so that lost or swapped parts are seen.
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

/// Bytes written to a socket that its peer has not acknowledged.
pub(super) fn unsent_bytes(client: &TcpStream) -> i32 {
    let mut unsent = 0;
    // SAFETY: TIOCOUTQ writes one int.
    let answer = unsafe { libc::ioctl(client.as_raw_fd(), libc::TIOCOUTQ, &raw mut unsent) };
    assert_eq!(answer, 0, "TIOCOUTQ");
    unsent
}
