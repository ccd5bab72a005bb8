//! The end of an engine: operations first, then the memory that they use.

use super::Engine;
use super::ring::Completion;
use super::token::{Op, Token};

/// Enters of a ring in which nothing ended, after which the engine leaks memory rather than wait on.
const FRUITLESS_ENTERS_MAX: u32 = 64;

impl Drop for Engine {
    /// Cancels everything and waits until the kernel has let go of our memory. Sockets that are open are closed with
    /// their ring, which the kernel does a little later.
    fn drop(&mut self) {
        while let Some(done) = self.deferred.pop_front().or_else(|| self.ready.pop_front()) {
            self.retire(done);
        }
        for ring in 0..self.rings.len() {
            self.drain(ring);
        }
        if self.rings.iter().any(|ring| ring.in_flight() > 0) {
            self.leak();
        }
    }
}

impl Engine {
    pub(super) fn drain(&mut self, ring: usize) {
        let mut fruitless = 0;
        while self.rings[ring].in_flight() > 0 && fruitless < FRUITLESS_ENTERS_MAX {
            let before = self.rings[ring].in_flight();
            if before > 0 && fruitless.is_multiple_of(8) {
                self.rings[ring].cancel_all();
            }
            if self.rings[ring].turn_for_certain().is_err() {
                return;
            }
            while self.rings[ring].reap(ring as u16, self.config.turn_events_max, &mut self.ready) > 0 {
                while let Some(done) = self.ready.pop_front() {
                    self.retire(done);
                }
            }
            fruitless = if self.rings[ring].in_flight() < before { 0 } else { fruitless + 1 };
        }
    }

    /// Takes note that an operation has ended, without consequences.
    pub(super) fn retire(&mut self, done: Completion) {
        let Some(token) = Token::unpack(done.user_data) else { return };
        let ring = &mut self.rings[usize::from(done.ring)];
        if matches!(token.op, Op::Accept | Op::Recv | Op::Send) {
            ring.take_buffer(&done);
        }
        if token.op == Op::Send
            && let Some(slot) = ring.slots.of(token.slot, token.generation)
        {
            slot.sending = None;
        }
    }

    /// Keeps for ever what the kernel may still touch.
    fn leak(&mut self) {
        self.cells.leak();
        for ring in &mut self.rings {
            ring.buffers.leak();
            for slot in ring.slots.iter_mut() {
                std::mem::forget(slot.sending.take());
            }
        }
    }
}
