//! What happens in each turn, whatever the completions are: buffers, recvs and accepts go out, completions come in.

use std::os::fd::AsFd;

use super::accept::ListenerState;
use super::config::EngineError;
use super::ring::Ring;
use super::{Engine, Event, ListenerId};

impl Engine {
    /// Queues what this turn owes: buffers given back, recvs to be armed again, accepts.
    pub(super) fn prepare_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        // What was put off came before what is still to be looked at.
        while let Some(completion) = self.deferred.pop_back() {
            self.ready.push_front(completion);
        }
        for ring in &mut self.rings {
            ring.buffers.provide_returned();
            ring.feed_starved();
        }
        let mut rearm = std::mem::take(&mut self.rearm);
        for id in rearm.drain(..) {
            let (ring, index) = self.place(id);
            self.rings[ring].rearm(index, id.generation);
        }
        self.rearm = rearm;
        if std::mem::take(&mut self.accepts_due) {
            self.arm_accepts();
        }
    }

    /// Takes completions, as many as a turn may have, from each ring its share first. Answers what there is to look at.
    pub(super) fn reap(&mut self) -> usize {
        let turn_events_max = self.config.turn_events_max;
        // Those put off mustn't keep all others from their turn.
        let mut room = turn_events_max.saturating_sub(self.ready.len()).max(turn_events_max.div_ceil(4));
        let rings = self.rings.len();
        self.first_ring = (self.first_ring + 1) % rings;
        for share in [room.div_ceil(rings), room] {
            for ring in (0..rings).map(|i| (self.first_ring + i) % rings) {
                room -= self.rings[ring].reap(ring as u16, share.min(room), &mut self.ready);
            }
        }
        self.ready.len() + self.failures.len()
    }

    /// Arms the accepts that listeners want, one for each in turns, while there are slots.
    fn arm_accepts(&mut self) {
        loop {
            let mut armed = false;
            for number in 0..self.listeners.len() {
                let listener = &self.listeners[number];
                if listener.state == ListenerState::Accepting && listener.outstanding < listener.wanted {
                    let Some(ring) = self.ring_with_room(ListenerId(number as u16)) else { return };
                    armed |= self.arm_accept(ListenerId(number as u16), ring);
                }
            }
            if !armed {
                return;
            }
        }
    }

    fn arm_accept(&mut self, id: ListenerId, ring: usize) -> bool {
        let listener = &mut self.listeners[id.index()];
        let ring = &mut self.rings[ring];
        let Some(fd) = &listener.fd else { return false };
        let Some(slot) = ring.slots.take() else { return false };
        listener.outstanding += 1;
        ring.accept(fd.as_fd(), slot, self.cells.take(id));
        true
    }

    /// The first ring that has a free slot, opened if need be and allowed. If that fails, the listener rests.
    fn ring_with_room(&mut self, listener: ListenerId) -> Option<usize> {
        if let Some(ring) = self.rings.iter().position(|ring| ring.slots.has_free()) {
            return Some(ring);
        }
        if self.rings.len() as u64 * u64::from(self.config.slots_per_ring) >= u64::from(self.config.sockets_max) {
            return None;
        }
        match self.open_ring() {
            Ok(()) => Some(self.rings.len() - 1),
            Err(error) => {
                self.listeners[listener.index()].state = ListenerState::Resting;
                self.failures.push_back(Event::AcceptFailed { listener, error: error.into() });
                None
            }
        }
    }

    /// Opens one more ring, with as many slots as it may have.
    pub(super) fn open_ring(&mut self) -> Result<(), EngineError> {
        let before = self.rings.len() as u32 * self.config.slots_per_ring;
        let slots = self.config.slots_per_ring.min(self.config.sockets_max - before);
        let mut ring = Ring::open(&self.config, slots, self.wake.as_fd())?;
        // It may be opened on the way to a park.
        ring.notify(self.notifying);
        self.rings.push(ring);
        Ok(())
    }

    /// Whether rings are to signal the eventfd.
    pub(super) fn notify(&mut self, enabled: bool) {
        self.notifying = enabled;
        for ring in &mut self.rings {
            ring.notify(enabled);
        }
    }
}
