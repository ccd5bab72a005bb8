//! A shard's end.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};

use bytes::Bytes;

use crate::hub::bus::{FromBus, ToBus};
use crate::hub::envelope::Weigh;
use crate::ids::ShardId;

use super::{BusBell, FromBusBatch, Shared, ToBusBatch, broadcast_weight};

/// A shard's end of its queues to and from the bus. Before the shard runs, it may cross threads.
#[derive(Debug)]
pub struct ShardPort {
    shared: Arc<Shared>,
    bus_bell: Arc<BusBell>,
    to_bus: mpsc::Sender<ToBusBatch>,
    from_bus: mpsc::Receiver<FromBusBatch>,
    /// Said in this turn.
    outbox: Vec<ToBus>,
    /// Bytes said so far.
    sent: u64,
    /// What has come and is to be handled, oldest first.
    inbox: VecDeque<FromBus>,
    broadcasts: VecDeque<Bytes>,
    /// Bytes handled in this turn.
    handled: u64,
    handled_broadcasts: u64,
    /// Directed messages handled so far; 0 <= published <= handled_messages.
    handled_messages: u64,
    /// Of these, those that the bus can read.
    published: u64,
}

impl ShardPort {
    pub(super) fn new(
        shared: Arc<Shared>,
        bus_bell: Arc<BusBell>,
        to_bus: mpsc::Sender<ToBusBatch>,
        from_bus: mpsc::Receiver<FromBusBatch>,
    ) -> Self {
        Self {
            shared,
            bus_bell,
            to_bus,
            from_bus,
            outbox: Vec::new(),
            sent: 0,
            inbox: VecDeque::new(),
            broadcasts: VecDeque::new(),
            handled: 0,
            handled_broadcasts: 0,
            handled_messages: 0,
            published: 0,
        }
    }

    /// The shard runs: which one it is, and the eventfd that wakes it. What the bus has said before waits here.
    ///
    /// # Panics
    /// If it runs already.
    pub fn attach(&self, shard: ShardId, wake: OwnedFd) {
        self.shared.shard.set((shard, wake)).expect("a shard begins once");
        self.bus_bell.ring();
    }

    /// Whether one more message may go to the bus. When there is no room, the bus wakes the shard once there is again.
    pub fn has_room(&self) -> bool {
        self.shared.taken.leave_room(self.sent)
    }

    /// Puts something into the outbox, in order.
    pub fn push(&mut self, message: ToBus) {
        self.sent += message.weight();
        self.outbox.push(message);
    }

    /// Hands over what this turn has said, and gives back what it has handled; whether anything was said.
    pub fn flush(&mut self) -> bool {
        let mut rings = false;
        if self.handled > 0 {
            rings |= self.shared.handled.give(std::mem::take(&mut self.handled));
        }
        if self.handled_broadcasts > 0 {
            rings |= self.shared.handled_broadcasts.give(std::mem::take(&mut self.handled_broadcasts));
        }
        let has_said = !self.outbox.is_empty();
        if has_said {
            // Without a bus thread nobody listens: the process is ending.
            let batch = ToBusBatch { said: std::mem::take(&mut self.outbox), handled: self.handled_messages };
            let _ = self.to_bus.send(batch);
        }
        // Only now: whoever reads the count finds in the queue what was said while handling. It wakes nobody.
        if self.published != self.handled_messages {
            self.published = self.handled_messages;
            self.shared.handled_messages.store(self.published, SeqCst);
        }
        if rings || has_said {
            self.bus_bell.ring();
        }
        has_said
    }

    /// Takes in what the bus has handed over.
    pub fn pull(&mut self) {
        if !self.shared.bell.is_rung() {
            return;
        }
        self.shared.bell.look();
        while let Ok(batch) = self.from_bus.try_recv() {
            self.inbox.extend(batch.directed);
            self.broadcasts.extend(batch.broadcasts);
        }
    }

    /// The oldest that has come, broadcasts aside. Taken out, so that handling it may use the port;
    /// [`Self::handled`] or [`Self::unhandled`] follows.
    pub fn take(&mut self) -> Option<FromBus> {
        self.inbox.pop_front()
    }

    /// It was handled: its bytes go back, and it counts among the handled, both with the next [`Self::flush`].
    pub fn handled(&mut self, message: &FromBus) {
        self.handled_messages += 1;
        self.handled += message.weight();
    }

    /// It could not be handled: it stays the oldest.
    pub fn unhandled(&mut self, message: FromBus) {
        self.inbox.push_front(message);
    }

    /// The oldest broadcast that has come; its bytes go back.
    pub fn take_broadcast(&mut self) -> Option<FromBus> {
        let frame = self.broadcasts.pop_front()?;
        self.handled_broadcasts += broadcast_weight(&frame);
        Some(FromBus::Broadcast { frame })
    }

    /// Whether nothing waits here in either direction.
    pub fn is_quiet(&self) -> bool {
        self.outbox.is_empty() && self.inbox.is_empty() && self.broadcasts.is_empty()
    }

    /// Before the shard sleeps: true, and from here on the bus wakes it; false when something has come.
    pub fn before_park(&self) -> bool {
        self.shared.bell.sleep()
    }

    /// The shard is up again.
    pub fn after_park(&self) {
        self.shared.bell.wake();
    }
}
