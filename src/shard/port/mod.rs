//! What joins the shards and the bus: for each shard a queue to the bus and one from it, in order and bounded in bytes.
//!
//! Each end gathers what it has to say and hands it over as one batch a turn. What a side has sent counts against its
//! window until the other has taken it (the bus) or handled it (the shard); broadcasts to a shard have a window of their
//! own, so that a shard which holds them back holds back nothing else. Whoever sleeps is woken, and only then: a shard by
//! its engine's eventfd, the bus by a notification.

mod bell;
mod bus_end;
mod shard_end;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, mpsc};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::hub::bus::{FromBus, ToBus};
use crate::hub::envelope::MESSAGE_WEIGHT;
use crate::ids::ShardId;

use bell::Bell;
pub use bus_end::BusPort;
pub use shard_end::ShardPort;

/// Bytes on their way from one shard to the bus, and bytes of each kind on their way back. One message may pass it, and
/// so may arrivals, departures and answers, which always have room.
pub const WINDOW_BYTES: u64 = 4 << 20;

/// Makes the two sides of a node with so many shards: a port for each shard, whichever takes which, and the bus's.
pub fn ports(shards: u16) -> (Vec<ShardPort>, BusPort) {
    let bus_bell = Arc::new(BusBell::default());
    let ends = (0..shards).map(|_| {
        let (to_bus, from_shard) = mpsc::channel();
        let (to_shard, from_bus) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let shard_end = ShardPort::new(Arc::clone(&shared), Arc::clone(&bus_bell), to_bus, from_bus);
        (shard_end, bus_end::Lane::new(shared, from_shard, to_shard))
    });
    let (shard_ends, lanes) = ends.unzip();
    (shard_ends, BusPort::new(bus_bell, lanes))
}

/// What one shard and the bus both look at.
#[derive(Debug, Default)]
struct Shared {
    /// On the shard.
    bell: Bell,
    /// Bytes that the bus has taken.
    taken: Credits,
    /// Bytes that the shard has handled: of broadcasts, and of all else.
    handled_broadcasts: Credits,
    handled: Credits,
    /// Directed messages that the shard has handled. It is published after what the shard said while handling them: a
    /// bus that reads it and then empties the queue has seen all of that.
    handled_messages: AtomicU64,
    /// Which shard it is, and what wakes it; known once it runs.
    shard: OnceLock<(ShardId, OwnedFd)>,
}

/// Bytes given back so far; they only grow. One side writes, the other reads.
#[derive(Debug, Default)]
struct Credits {
    bytes: AtomicU64,
    /// The other side has found no room and waits for more.
    awaited: AtomicBool,
}

impl Credits {
    /// Gives bytes back; whether the other side waits for them.
    fn give(&self, bytes: u64) -> bool {
        self.bytes.store(self.bytes.load(SeqCst).wrapping_add(bytes), SeqCst);
        self.awaited.load(SeqCst) && self.awaited.swap(false, SeqCst)
    }

    /// Whether what was `sent` so far leaves room. If not, the next bytes given back are said to be awaited.
    fn leave_room(&self, sent: u64) -> bool {
        let has_room = || sent.wrapping_sub(self.bytes.load(SeqCst)) < WINDOW_BYTES;
        has_room() || {
            self.awaited.store(true, SeqCst);
            // They may have come in between.
            has_room()
        }
    }
}

/// The bell on the bus, which all shards ring.
#[derive(Debug, Default)]
struct BusBell {
    bell: Bell,
    notify: Notify,
}

impl BusBell {
    fn ring(&self) {
        if self.bell.ring() {
            self.notify.notify_one();
        }
    }
}

/// What a shard hands over in one turn.
#[derive(Debug)]
struct ToBusBatch {
    said: Vec<ToBus>,
    /// How many messages of the bus the shard has handled by then; it has said nothing else while it handled them.
    handled: u64,
}

/// What the bus hands over in one turn.
#[derive(Debug, Default)]
struct FromBusBatch {
    directed: Vec<FromBus>,
    broadcasts: Vec<Bytes>,
}

/// What a broadcast counts for.
fn broadcast_weight(frame: &Bytes) -> u64 {
    MESSAGE_WEIGHT + frame.len() as u64
}
