//! What the engine knows of each slot of a ring's table of sockets. Pure.

use super::token::GENERATION_MASK;
use crate::shard::chunk::Chunk;

/// Where a slot is in its use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Nobody's.
    Free,
    /// An accept will put a socket here.
    Accepting,
    /// A connection.
    Open,
    /// To be closed when no operation is in flight.
    Closing,
    /// CLOSE is in flight: the last operation of this use.
    Closed,
}

/// What the multishot recv of a socket is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recv {
    /// None in flight.
    Idle,
    /// The kernel receives.
    Armed,
    /// The kernel was asked to stop; its last completion is still to come.
    Cancelling,
}

/// One slot. Every idle connection pays for it, so it is kept small.
pub(super) struct Slot {
    /// The bytes of the send in flight, which the kernel reads.
    pub(super) sending: Option<Chunk>,
    pub(super) generation: u32,
    /// Bytes received in the turn `turn`.
    pub(super) turn_bytes: u32,
    /// The turn that `turn_bytes` counts, modulo 2^16. A collision only means that a socket waits a turn too early.
    pub(super) turn: u16,
    pub(super) phase: Phase,
    pub(super) recv: Recv,
    /// The user wants to receive.
    pub(super) reading: bool,
    /// EOF or an error was reported: there is nothing more to receive.
    pub(super) receive_ended: bool,
    /// It stands in one of the queues for a new recv.
    pub(super) awaits_rearm: bool,
    pub(super) cancelling_send: bool,
    pub(super) fin: Fin,
}

/// How far FIN got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fin {
    NotWanted,
    /// After the send in flight.
    Wanted,
    InFlight,
    Done,
}

const _: () = assert!(size_of::<Slot>() <= 32);

impl Slot {
    fn new() -> Slot {
        Slot {
            sending: None,
            generation: 0,
            turn_bytes: 0,
            turn: 0,
            phase: Phase::Free,
            recv: Recv::Idle,
            reading: false,
            receive_ended: false,
            awaits_rearm: false,
            cancelling_send: false,
            fin: Fin::NotWanted,
        }
    }

    fn is_of(&self, generation: u32) -> bool {
        self.generation == generation && matches!(self.phase, Phase::Open | Phase::Closing | Phase::Closed)
    }

    /// Whether a new recv may be armed.
    pub(super) fn may_arm(&self) -> bool {
        self.phase == Phase::Open && self.reading && !self.receive_ended && self.recv == Recv::Idle
    }

    /// Whether nothing of this connection is in flight, so that CLOSE can be its last operation.
    pub(super) fn may_close(&self) -> bool {
        self.phase == Phase::Closing && self.recv == Recv::Idle && self.sending.is_none() && self.fin != Fin::InFlight
    }

    /// Counts received bytes and answers how many there were in turn `turn` so far.
    pub(super) fn count_bytes(&mut self, turn: u16, bytes: u32) -> usize {
        self.turn_bytes = if self.turn == turn { self.turn_bytes.saturating_add(bytes) } else { bytes };
        self.turn = turn;
        self.turn_bytes as usize
    }

    /// Bytes received in turn `turn` so far.
    pub(super) fn bytes_in(&self, turn: u16) -> usize {
        if self.turn == turn { self.turn_bytes as usize } else { 0 }
    }
}

/// The slots of one ring. Those freed last are used first, and memory is touched only as far as slots were ever used.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    count_max: u32,
    /// Slots in phase Open, Closing or Closed.
    open: u32,
}

impl Slots {
    pub(super) fn new(count_max: u32) -> Slots {
        Slots { slots: Vec::with_capacity(count_max as usize), free: Vec::new(), count_max, open: 0 }
    }

    pub(super) fn open(&self) -> u32 {
        self.open
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.count_max as usize
    }

    /// Takes a free slot for an accept.
    pub(super) fn take(&mut self) -> Option<u32> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.count_max as usize => {
                self.slots.push(Slot::new());
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let slot = &mut self.slots[index as usize];
        debug_assert_eq!(slot.phase, Phase::Free);
        slot.phase = Phase::Accepting;
        Some(index)
    }

    /// The accept of this slot brought a connection. Answers its generation.
    pub(super) fn opened(&mut self, index: u32) -> u32 {
        self.open += 1;
        let slot = &mut self.slots[index as usize];
        debug_assert_eq!(slot.phase, Phase::Accepting);
        slot.phase = Phase::Open;
        slot.generation
    }

    /// The accept of this slot brought nothing.
    pub(super) fn not_opened(&mut self, index: u32) {
        debug_assert_eq!(self.slots[index as usize].phase, Phase::Accepting);
        self.slots[index as usize].phase = Phase::Free;
        self.free.push(index);
    }

    /// The slot's CLOSE has completed: names of this use are stale from here.
    pub(super) fn closed(&mut self, index: u32) {
        self.open -= 1;
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.phase == Phase::Closed && slot.sending.is_none() && slot.recv == Recv::Idle);
        *slot = Slot { generation: slot.generation.wrapping_add(1) & GENERATION_MASK, ..Slot::new() };
        self.free.push(index);
    }

    /// The slot, if it is in that generation and a connection has it.
    pub(super) fn of(&mut self, index: u32, generation: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index as usize).filter(|slot| slot.is_of(generation))
    }

    /// As [`Slots::of`], to be looked at.
    pub(super) fn get(&self, index: u32, generation: u32) -> Option<&Slot> {
        self.slots.get(index as usize).filter(|slot| slot.is_of(generation))
    }

    /// Every slot that was ever used.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuses_the_slot_freed_last_under_a_new_generation() {
        let mut slots = Slots::new(3);
        let taken: Vec<u32> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert!(!slots.has_free());
        let generation = slots.opened(1);
        assert!(slots.of(1, generation).is_some());
        assert!(slots.of(0, 0).is_none(), "an accept is not a connection");
        slots.of(1, generation).expect("open").phase = Phase::Closed;
        slots.closed(1);
        assert!(slots.of(1, generation).is_none(), "the name is stale");
        assert_eq!((slots.take(), slots.open()), (Some(1), 0));
        assert_eq!(slots.opened(1), generation + 1);
        slots.not_opened(2);
        assert_eq!(slots.take(), Some(2));
    }

    #[test]
    fn generations_wrap_within_their_bits() {
        let mut slots = Slots::new(1);
        slots.take();
        slots.opened(0);
        let slot = slots.of(0, 0).expect("open");
        (slot.generation, slot.phase) = (GENERATION_MASK, Phase::Closed);
        slots.closed(0);
        slots.take();
        assert_eq!(slots.opened(0), 0);
    }
}
