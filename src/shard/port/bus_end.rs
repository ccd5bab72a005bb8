//! The bus's end.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};

use crate::hub::bus::{FromBus, ToBus};
use crate::hub::envelope::Weigh;
use crate::ids::ShardId;

use super::{BusBell, FromBusBatch, Shared, ToBusBatch, broadcast_weight};

/// Batches taken from one shard before the others have their turn.
pub(super) const BATCHES_MAX: usize = 64;

/// The bus's ends of the queues of all shards.
#[derive(Debug)]
pub struct BusPort {
    bell: Arc<BusBell>,
    /// In the order of the ports; which shard has which is known once it runs.
    lanes: Vec<Lane>,
    /// For each shard its lane, once it runs.
    lane_of: Vec<Option<usize>>,
    /// For each shard.
    outboxes: Vec<Outbox>,
    /// The lane to begin with.
    first: usize,
}

/// One shard's queues.
#[derive(Debug)]
pub(super) struct Lane {
    shared: Arc<Shared>,
    from_shard: mpsc::Receiver<ToBusBatch>,
    to_shard: mpsc::Sender<FromBusBatch>,
}

/// What was said to one shard, and how far the shard is with it.
#[derive(Debug, Default)]
struct Outbox {
    batch: FromBusBatch,
    /// Bytes so far.
    sent: u64,
    sent_broadcasts: u64,
    /// Directed messages so far.
    messages: u64,
    /// Of these, those that are handled and whose answers have been drained: 0 <= handled <= messages.
    handled: u64,
}

impl Lane {
    pub(super) fn new(
        shared: Arc<Shared>,
        from_shard: mpsc::Receiver<ToBusBatch>,
        to_shard: mpsc::Sender<FromBusBatch>,
    ) -> Self {
        Self { shared, from_shard, to_shard }
    }

    fn shard(&self) -> Option<ShardId> {
        self.shared.shard.get().map(|&(shard, _)| shard)
    }

    /// Has the shard look again, if it sleeps.
    fn wake(&self) {
        if self.shared.bell.ring()
            && let Some((_, wake)) = self.shared.shard.get()
        {
            // An eventfd that is full has woken it already.
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }
}

impl BusPort {
    pub(super) fn new(bell: Arc<BusBell>, lanes: Vec<Lane>) -> Self {
        let shards = lanes.len();
        let outboxes = (0..shards).map(|_| Outbox::default()).collect();
        Self { bell, lanes, lane_of: vec![None; shards], outboxes, first: 0 }
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// Waits until a shard has said something, or has handled some of what left no room for more. May be dropped and
    /// called again at any time; it says so once, until the next [`Self::drain`].
    pub async fn ready(&self) {
        while self.bell.bell.sleep() {
            self.bell.notify.notified().await;
        }
    }

    /// Takes what the shards have said, each shard's in order, and gives them its room back. What is too much for one
    /// turn leaves [`Self::ready`] ready.
    pub fn drain(&mut self, mut take: impl FnMut(ShardId, ToBus)) {
        self.bell.bell.look();
        self.first = (self.first + 1) % self.lanes.len().max(1);
        let mut is_rest = false;
        for at in 0..self.lanes.len() {
            let lane = &self.lanes[(self.first + at) % self.lanes.len()];
            let Some(shard) = lane.shard() else { continue };
            // Before the queue is emptied: what was said while these were handled is in it, or was taken before.
            let published = lane.shared.handled_messages.load(SeqCst);
            let mut handled = self.outboxes[shard.index()].handled;
            let mut batches = 0;
            while batches < BATCHES_MAX
                && let Ok(batch) = lane.from_shard.try_recv()
            {
                batches += 1;
                handled = batch.handled;
                let weight = batch.said.iter().map(Weigh::weight).sum();
                if lane.shared.taken.give(weight) {
                    lane.wake();
                }
                batch.said.into_iter().for_each(|message| take(shard, message));
            }
            match batches {
                // Something may be left of what was said while those were handled that were published since.
                BATCHES_MAX => is_rest = true,
                _ => handled = handled.max(published),
            }
            self.outboxes[shard.index()].handled = handled;
        }
        if is_rest {
            self.bell.bell.ring();
        }
    }

    /// Whether one more message, no broadcast, may go to `shard`. When there is no room, [`Self::ready`] says when there
    /// is again.
    pub fn has_room(&self, shard: ShardId) -> bool {
        let sent = self.outboxes[shard.index()].sent;
        self.shared(shard).is_none_or(|shared| shared.handled.leave_room(sent))
    }

    /// The same for a broadcast.
    pub fn has_broadcast_room(&self, shard: ShardId) -> bool {
        let sent = self.outboxes[shard.index()].sent_broadcasts;
        self.shared(shard).is_none_or(|shared| shared.handled_broadcasts.leave_room(sent))
    }

    /// Puts something into the outbox towards `shard`: in order, but for broadcasts, which are in order among
    /// themselves. The caller has asked for room where it can wait for it.
    ///
    /// Returns the message's number among those pushed to this shard, from 1, for [`Self::handled`]; 0 for a broadcast,
    /// which has none.
    pub fn push(&mut self, shard: ShardId, message: FromBus) -> u64 {
        let outbox = &mut self.outboxes[shard.index()];
        match message {
            FromBus::Broadcast { frame } => {
                outbox.sent_broadcasts += broadcast_weight(&frame);
                outbox.batch.broadcasts.push(frame);
                0
            }
            message => {
                outbox.sent += message.weight();
                outbox.batch.directed.push(message);
                outbox.messages += 1;
                outbox.messages
            }
        }
    }

    /// How many directed messages `shard` had handled before the last [`Self::drain`] that emptied its queue: what the
    /// shard said while handling them has been drained. Nothing wakes the bus when this grows.
    pub fn handled(&self, shard: ShardId) -> u64 {
        self.outboxes[shard.index()].handled
    }

    /// Hands over what was pushed, and wakes the shards that sleep.
    pub fn flush(&mut self) {
        for shard in 0..self.outboxes.len() {
            let batch = &self.outboxes[shard].batch;
            if batch.directed.is_empty() && batch.broadcasts.is_empty() {
                continue;
            }
            let Some(lane) = self.lane(shard) else { continue };
            let batch = std::mem::take(&mut self.outboxes[shard].batch);
            // A shard that has ended takes nothing any more.
            if self.lanes[lane].to_shard.send(batch).is_ok() {
                self.lanes[lane].wake();
            }
        }
    }

    fn shared(&self, shard: ShardId) -> Option<&Shared> {
        self.lane_of[shard.index()].map(|lane| &*self.lanes[lane].shared)
    }

    fn lane(&mut self, shard: usize) -> Option<usize> {
        if self.lane_of[shard].is_none() {
            self.lane_of[shard] = self.lanes.iter().position(|lane| lane.shard().is_some_and(|id| id.index() == shard));
        }
        self.lane_of[shard]
    }
}
