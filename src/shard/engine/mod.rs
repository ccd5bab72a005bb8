//! The engine: a shard's sockets, driven by io_uring.
//!
//! The user calls [`Engine::turn`], takes events with [`Engine::next_event`] until there is none, calls engine methods
//! meanwhile, and parks when a turn brings nothing:
//!
//! ```text
//! loop {
//!     let ready = engine.turn()?;
//!     while let Some(event) = engine.next_event() { … }
//!     if ready == 0 && !engine.has_unsubmitted() && engine.before_park()? {
//!         wait until engine.wake_fd() is readable;
//!         engine.after_park();
//!     }
//! }
//! ```
//!
//! # Layout
//! `ring` is one io_uring, `slot` what is known of each socket, `token` what names an operation, `buffers` what is
//! received into, `accept` the listeners, `turn` what each turn does, `complete` what follows from a completion, `drain`
//! the end.
//!
//! # Rules, each of which closes a fault that was seen
//! - The engine chooses the slot of an accept, and frees it only when nothing of its connection is in flight; CLOSE is
//!   the last operation of a slot's use. A late send would otherwise reach the next client.
//! - Every operation carries the generation of its slot; completions of another generation only give their buffer back.
//! - One send in flight a socket: two interleave when the first is short.
//! - Whatever ends a multishot recv without ending the stream (no buffer, a full completion queue, too many bytes in one
//!   turn) arms it again in a later turn.
//! - A slot is taken before its accept is armed, so the table can't be full when a client comes.
//! - An engine is used on the thread that made it (the kernel insists), and the types in it are not `Send`.

mod accept;
mod buffers;
mod complete;
mod config;
mod drain;
mod event;
mod ring;
mod slot;
mod token;
mod turn;
mod wake;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use accept::ListenerId;
pub use buffers::RecvBuf;
pub use config::{EngineConfig, EngineError};
pub use event::Event;

use crate::ids::ConnId;
use crate::shard::chunk::Chunk;
use accept::{Cells, Listener, ListenerState};
use ring::{Completion, Ring};
use slot::{Fin, Phase, Recv, Slot};
use token::Op;
use wake::Wake;

/// A shard's sockets, as one or more io_urings of one thread.
pub struct Engine {
    config: EngineConfig,
    rings: Vec<Ring>,
    listeners: Vec<Listener>,
    cells: Cells,
    wake: Wake,
    /// Whether rings signal `wake`.
    notifying: bool,
    /// Completions taken from the rings in this turn.
    ready: VecDeque<Completion>,
    /// Those of sockets that had their bytes of this turn: for the next one.
    deferred: VecDeque<Completion>,
    /// Events that no completion causes.
    failures: VecDeque<Event>,
    /// Connections that get a new recv in the next turn.
    rearm: Vec<ConnId>,
    /// An accept may have to be armed.
    accepts_due: bool,
    /// Counts turns, modulo 2^16.
    turn: u16,
    /// The ring to be served first in the next turn.
    first_ring: usize,
}

impl Engine {
    /// An engine with one ring; more are opened as sockets need them.
    ///
    /// # Errors
    /// Sizes that can't be, or what the kernel refused, with the remedy where it is known.
    pub fn new(config: EngineConfig) -> Result<Engine, EngineError> {
        config.check()?;
        let wake = Wake::new().map_err(|source| EngineError::kernel("eventfd", source))?;
        let mut engine = Engine {
            ready: VecDeque::with_capacity(config.turn_events_max + usize::from(config.buffers_per_ring)),
            config,
            rings: Vec::new(),
            listeners: Vec::new(),
            cells: Cells::new(),
            wake,
            notifying: false,
            deferred: VecDeque::new(),
            failures: VecDeque::new(),
            rearm: Vec::new(),
            accepts_due: false,
            turn: 0,
            first_ring: 0,
        };
        engine.open_ring()?;
        Ok(engine)
    }

    /// Accepts clients of a listening socket from now on, with `outstanding` accepts in flight as long as slots are
    /// free. Options that its connections shall have (TCP_NODELAY, …) are to be set on it: they are inherited.
    pub fn listen(&mut self, socket: OwnedFd, outstanding: u16) -> ListenerId {
        let id = ListenerId(self.listeners.len() as u16);
        let state = ListenerState::Accepting;
        self.listeners.push(Listener { fd: Some(socket), wanted: outstanding, outstanding: 0, state });
        self.accepts_due = true;
        id
    }

    /// Accepts no more. The socket is closed when the last accept in flight has ended; a client that it had taken by
    /// then is still an [`Event::Accepted`].
    pub fn stop_listening(&mut self, listener: ListenerId) {
        let Some(listening) = self.listeners.get_mut(listener.index()) else { return };
        listening.state = ListenerState::Stopping;
        if listening.outstanding == 0 {
            listening.fd = None;
        }
        if let Some(fd) = &listening.fd {
            for ring in &mut self.rings {
                ring.cancel_accepts(fd.as_fd(), listener.0);
            }
        }
    }

    /// Tries again to accept after an [`Event::AcceptFailed`].
    pub fn resume_listening(&mut self, listener: ListenerId) {
        if let Some(listening) = self.listeners.get_mut(listener.index())
            && listening.state == ListenerState::Resting
        {
            listening.state = ListenerState::Accepting;
            self.accepts_due = true;
        }
    }

    /// Receives from this connection: for the first time, or after a pause.
    pub fn resume_reading(&mut self, id: ConnId) {
        let Some((ring, slot)) = self.open_slot(id) else { return };
        slot.reading = true;
        if slot.may_arm() && !slot.awaits_rearm {
            slot.recv = Recv::Armed;
            let (slot, generation) = (self.slot_of(id), id.generation);
            self.rings[ring].recv(slot, generation);
        }
    }

    /// Stops receiving from this connection. What has arrived by then still comes as [`Event::Received`].
    pub fn pause_reading(&mut self, id: ConnId) {
        if let Some((_, slot)) = self.open_slot(id) {
            slot.reading = false;
            self.cancel_recv(id);
        }
    }

    /// Sends the chunk. [`Event::Sent`] gives it back.
    ///
    /// # Errors
    /// The chunk, when the id is stale, the connection is closing or has sent FIN, or a send is in flight.
    ///
    /// # Panics
    /// If the chunk has 2 GiB or more, which the kernel would cut.
    pub fn send(&mut self, id: ConnId, chunk: Chunk) -> Result<(), Chunk> {
        assert!(chunk.len() <= i32::MAX as usize, "a chunk of {} bytes", chunk.len());
        let (ring, index) = self.place(id);
        let Some(ring) = self.rings.get_mut(ring) else { return Err(chunk) };
        match ring.slots.of(index, id.generation) {
            Some(slot) if slot.phase == Phase::Open && slot.sending.is_none() && slot.fin == Fin::NotWanted => {
                // Another handle of the same bytes: its address is that of the bytes in the slot.
                let bytes = chunk.clone();
                slot.sending = Some(chunk);
                ring.send(index, id.generation, &bytes);
                Ok(())
            }
            _ => Err(chunk),
        }
    }

    /// Whether a send of this connection is in flight.
    pub fn is_sending(&self, id: ConnId) -> bool {
        let (ring, index) = self.place(id);
        self.rings.get(ring).and_then(|ring| ring.slots.get(index, id.generation)).is_some_and(|s| s.sending.is_some())
    }

    /// Ends the send in flight; [`Event::Sent`] tells how many of its bytes were sent.
    pub fn cancel_send(&mut self, id: ConnId) {
        let (ring, index) = self.place(id);
        let Some(ring) = self.rings.get_mut(ring) else { return };
        if let Some(slot) = ring.slots.of(index, id.generation)
            && slot.sending.is_some()
            && !slot.cancelling_send
        {
            slot.cancelling_send = true;
            ring.cancel(Op::CancelSend, index, id.generation);
        }
    }

    /// Sends FIN after the send in flight; later sends are refused, receiving goes on.
    ///
    /// The kernel does this on a worker thread of its own, so it is much dearer than [`Engine::close`], which sends FIN
    /// as well: use it only where the peer's answer must still be read.
    pub fn shutdown_write(&mut self, id: ConnId) {
        let (ring, index) = self.place(id);
        let Some(ring) = self.rings.get_mut(ring) else { return };
        if let Some(slot) = ring.slots.of(index, id.generation)
            && slot.phase == Phase::Open
            && slot.fin == Fin::NotWanted
        {
            if slot.sending.is_some() {
                slot.fin = Fin::Wanted;
            } else {
                slot.fin = Fin::InFlight;
                ring.shutdown_write(index, id.generation);
            }
        }
    }

    /// Ends the connection: cancels what is in flight, closes the socket when that has ended, and then says
    /// [`Event::Closed`]. Nothing more is received from it; a send in flight ends with its [`Event::Sent`]. The peer
    /// gets what the socket took, then FIN, or RST if it sent something that was not received. May be repeated.
    pub fn close(&mut self, id: ConnId) {
        // Without SHUTDOWN, which the kernel runs on a worker thread: cancelling ends the operations as surely, and the
        // socket's last reference is gone with CLOSE, which sends FIN.
        let Some((_, slot)) = self.open_slot(id) else { return };
        slot.phase = Phase::Closing;
        self.cancel_recv(id);
        self.cancel_send(id);
        self.close_if_unused(id);
    }

    /// Submits what is queued and takes what has completed, once over all rings. Answers how many completions
    /// [`Engine::next_event`] is to look at; some of them are no event.
    ///
    /// # Errors
    /// The kernel no longer serves a ring: the engine can't go on.
    pub fn turn(&mut self) -> io::Result<usize> {
        self.prepare_turn();
        for ring in &mut self.rings {
            ring.turn()?;
        }
        Ok(self.reap())
    }

    /// The next event of this turn. Between events every method may be called.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(failure) = self.failures.pop_front() {
            return Some(failure);
        }
        while let Some(completion) = self.ready.pop_front() {
            let event = self.complete(completion);
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Whether a turn has something to do even if the kernel has no news: then don't park.
    pub fn has_unsubmitted(&self) -> bool {
        self.accepts_due
            || !(self.ready.is_empty() && self.deferred.is_empty())
            || !(self.failures.is_empty() && self.rearm.is_empty())
            || self.rings.iter().any(|ring| ring.has_unsubmitted() || ring.can_feed_starved())
    }

    /// Submits what is queued, without taking completions.
    ///
    /// # Errors
    /// As [`Engine::turn`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.rings.iter_mut().try_for_each(Ring::flush)
    }

    /// Becomes readable when something completes between [`Engine::before_park`] and [`Engine::after_park`]. Never read
    /// it: the engine does.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Turns notifications on and takes one more turn, so that nothing that came before is missed. True: wait for
    /// [`Engine::wake_fd`], then call [`Engine::after_park`]. False: there is something to do, and notifications are
    /// off again.
    ///
    /// # Errors
    /// As [`Engine::turn`].
    pub fn before_park(&mut self) -> io::Result<bool> {
        self.wake.clear();
        self.notify(true);
        self.prepare_turn();
        for ring in &mut self.rings {
            ring.turn_for_certain()?;
        }
        let quiet = self.reap() == 0 && !self.has_unsubmitted() && self.rings.iter().all(Ring::is_quiet);
        if !quiet {
            self.notify(false);
        }
        Ok(quiet)
    }

    /// Turns notifications off, because an engine that is busy would only be slowed by them.
    pub fn after_park(&mut self) {
        self.notify(false);
    }

    /// Connections that are not closed yet. Accepts that wait for a client are not counted.
    pub fn open_sockets(&self) -> u32 {
        self.rings.iter().map(|ring| ring.slots.open()).sum()
    }

    /// Rings opened so far.
    pub fn rings(&self) -> usize {
        self.rings.len()
    }

    fn cancel_recv(&mut self, id: ConnId) {
        let (ring, index) = self.place(id);
        let ring = &mut self.rings[ring];
        if let Some(slot) = ring.slots.of(index, id.generation)
            && slot.recv == Recv::Armed
        {
            slot.recv = Recv::Cancelling;
            ring.cancel(Op::CancelRecv, index, id.generation);
        }
    }

    /// Pushes CLOSE if the connection is to be closed and nothing of it is in flight any more.
    fn close_if_unused(&mut self, id: ConnId) {
        let (ring, index) = self.place(id);
        let ring = &mut self.rings[ring];
        if let Some(slot) = ring.slots.of(index, id.generation)
            && slot.may_close()
        {
            slot.phase = Phase::Closed;
            ring.close(index, id.generation);
        }
    }

    /// The slot of a connection that is open, and the number of its ring.
    fn open_slot(&mut self, id: ConnId) -> Option<(usize, &mut Slot)> {
        let (ring, index) = self.place(id);
        let slot = self.rings.get_mut(ring)?.slots.of(index, id.generation)?;
        (slot.phase == Phase::Open).then_some((ring, slot))
    }

    /// The ring and the slot of a connection.
    fn place(&self, id: ConnId) -> (usize, u32) {
        ((id.index / self.config.slots_per_ring) as usize, id.index % self.config.slots_per_ring)
    }

    fn slot_of(&self, id: ConnId) -> u32 {
        self.place(id).1
    }

    fn id(&self, ring: u16, slot: u32, generation: u32) -> ConnId {
        ConnId { index: u32::from(ring) * self.config.slots_per_ring + slot, generation }
    }
}
