//! The mesh between shards without its channels: outboxes, inboxes, and the credits that bound them.
//!
//! Every pair of shards has a window of bytes for each class. A sender counts what it has in flight against it, and
//! stops at the source (the connection keeps its message, its reading pauses) when the window is full. A receiver
//! gives the credits back when it has *handled* a message, not when it arrived, so that what waits in inbox and
//! outbox together never passes the window by more than one message.

use std::collections::VecDeque;

use crate::ids::{ConnId, ShardId};

use super::envelope::{Broadcast, CLASSES, Class, ToHome, ToOwner, Weigh};

/// The largest window of one class of one pair of shards, in bytes.
pub const WINDOW_BYTES_MAX: u64 = 1 << 20;
/// The smallest, however many shards there are, in bytes.
pub const WINDOW_BYTES_MIN: u64 = 64 << 10;
/// What the windows of one class towards one shard may sum up to, in bytes.
const WINDOWS_BYTES_MAX: u64 = 64 << 20;
/// Credits travel alone once they pass this part of the window; below it they wait for a message going that way.
const CREDITS_ALONE: u64 = 8;
const _: () = assert!(WINDOW_BYTES_MIN <= WINDOW_BYTES_MAX && CREDITS_ALONE > 1);

/// What one shard sends another in one turn.
#[derive(Debug, Default)]
pub struct Batch {
    /// To-home messages, in order.
    pub home: Vec<ToHome>,
    /// To-owner messages, in order.
    pub owner: Vec<ToOwner>,
    /// Broadcasts, in order.
    pub broadcast: Vec<Broadcast>,
    /// Connections of the receiver whose reading should pause for a while. Advice: it has no credits, and is bounded by
    /// the receiver's connections.
    pub pauses: Vec<ConnId>,
    /// Bytes of each class that the receiver of this batch may send again.
    pub credits: [u64; CLASSES],
}

impl Batch {
    /// How many messages it carries.
    pub fn len(&self) -> usize {
        self.home.len() + self.owner.len() + self.broadcast.len()
    }

    /// Whether it carries credits only.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A shard's ends of all its links.
#[derive(Debug)]
pub struct Links {
    shard: ShardId,
    window_bytes: u64,
    credits_at_once: bool,
    peers: Vec<Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    outbox: Batch,
    /// 0 <= in_flight < window + the weight of one message
    in_flight: [u64; CLASSES],
    home: VecDeque<ToHome>,
    owner: VecDeque<ToOwner>,
    broadcast: VecDeque<Broadcast>,
}

impl Links {
    /// The links of `shard` to the `shards - 1` others.
    pub fn new(shard: ShardId, shards: u16) -> Self {
        Self {
            shard,
            window_bytes: (WINDOWS_BYTES_MAX / u64::from(shards)).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
            credits_at_once: false,
            peers: (0..shards).map(|_| Peer::default()).collect(),
        }
    }

    /// The window of each class of each pair, in bytes.
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes
    }

    /// All other shards.
    pub fn peers(&self) -> impl Iterator<Item = ShardId> + use<> {
        let own = self.shard;
        (0..self.peers.len() as u16).map(ShardId).filter(move |&peer| peer != own)
    }

    /// Whether one more message of this class may go to `peer`. There is always room towards the shard itself.
    pub fn has_room(&self, class: Class, peer: ShardId) -> bool {
        peer == self.shard || self.peers[peer.index()].in_flight[class as usize] < self.window_bytes
    }

    /// Puts a to-home message into the outbox. The caller has asked for room.
    pub fn push_home(&mut self, peer: ShardId, message: ToHome) {
        let peer = self.count_in(Class::Home, peer, message.weight());
        peer.outbox.home.push(message);
    }

    /// Puts a to-owner message into the outbox. The caller has asked for room.
    pub fn push_owner(&mut self, peer: ShardId, message: ToOwner) {
        let peer = self.count_in(Class::Owner, peer, message.weight());
        peer.outbox.owner.push(message);
    }

    /// Puts a broadcast into the outbox. The caller has asked for room.
    pub fn push_broadcast(&mut self, peer: ShardId, message: Broadcast) {
        let peer = self.count_in(Class::Broadcast, peer, message.weight());
        peer.outbox.broadcast.push(message);
    }

    /// Advises `peer` to pause the reading of one of its connections.
    pub fn push_pause(&mut self, peer: ShardId, conn: ConnId) {
        let pauses = &mut self.peers[peer.index()].outbox.pauses;
        // A flood names the same sender again and again.
        if pauses.last() != Some(&conn) && !pauses.contains(&conn) {
            pauses.push(conn);
        }
    }

    fn count_in(&mut self, class: Class, peer: ShardId, weight: u64) -> &mut Peer {
        debug_assert!(self.has_room(class, peer) && peer != self.shard);
        let peer = &mut self.peers[peer.index()];
        peer.in_flight[class as usize] += weight;
        peer
    }

    /// What should go to `peer` now, if anything should.
    pub fn take_batch(&mut self, peer: ShardId) -> Option<Batch> {
        let alone = if self.credits_at_once { 1 } else { self.window_bytes / CREDITS_ALONE };
        let outbox = &mut self.peers[peer.index()].outbox;
        let is_due =
            !outbox.is_empty() || !outbox.pauses.is_empty() || outbox.credits.iter().any(|&credits| credits >= alone);
        is_due.then(|| std::mem::take(outbox))
    }

    /// Has credits go back at once from now on, so that the peers see when nothing is on its way any more.
    pub fn return_credits_at_once(&mut self) {
        self.credits_at_once = true;
    }

    /// Whether nothing is on its way to any peer or waits here to be handled. To be believed, the peers must return
    /// their credits at once.
    pub fn is_quiet(&self) -> bool {
        !self.has_inbound() && self.peers.iter().all(|peer| peer.in_flight == [0; CLASSES])
    }

    /// Puts a batch that could not go back in front of what has gathered since.
    pub fn return_batch(&mut self, peer: ShardId, mut batch: Batch) {
        let outbox = &mut self.peers[peer.index()].outbox;
        batch.home.append(&mut outbox.home);
        batch.owner.append(&mut outbox.owner);
        batch.broadcast.append(&mut outbox.broadcast);
        batch.pauses.append(&mut outbox.pauses);
        for (returned, gathered) in batch.credits.iter_mut().zip(outbox.credits) {
            *returned += gathered;
        }
        *outbox = batch;
    }

    /// Takes in a batch from `peer`.
    pub fn receive(&mut self, peer: ShardId, batch: Batch) {
        let peer = &mut self.peers[peer.index()];
        for (in_flight, credits) in peer.in_flight.iter_mut().zip(batch.credits) {
            debug_assert!(*in_flight >= credits, "credits that were never used");
            *in_flight -= credits;
        }
        peer.home.extend(batch.home);
        peer.owner.extend(batch.owner);
        peer.broadcast.extend(batch.broadcast);
    }

    /// The oldest to-home message from `peer`, to be handled or left where it is.
    /// Taken out, so that handling it may use the links; [`Self::handled_home`] or [`Self::unhandled_home`] follows.
    pub fn take_home(&mut self, peer: ShardId) -> Option<ToHome> {
        self.peers[peer.index()].home.pop_front()
    }

    /// The message was handled: its credits go back.
    pub fn handled_home(&mut self, peer: ShardId, message: &ToHome) {
        self.peers[peer.index()].outbox.credits[Class::Home as usize] += message.weight();
    }

    /// The message could not be handled: it stays the oldest.
    pub fn unhandled_home(&mut self, peer: ShardId, message: ToHome) {
        self.peers[peer.index()].home.push_front(message);
    }

    /// The oldest to-owner message from `peer`; its credits go back.
    pub fn pop_owner(&mut self, peer: ShardId) -> Option<ToOwner> {
        let peer = &mut self.peers[peer.index()];
        let message = peer.owner.pop_front()?;
        peer.outbox.credits[Class::Owner as usize] += message.weight();
        Some(message)
    }

    /// The oldest broadcast from `peer`; its credits go back.
    pub fn pop_broadcast(&mut self, peer: ShardId) -> Option<Broadcast> {
        let peer = &mut self.peers[peer.index()];
        let message = peer.broadcast.pop_front()?;
        peer.outbox.credits[Class::Broadcast as usize] += message.weight();
        Some(message)
    }

    /// Whether anything has arrived that was not handled yet.
    pub fn has_inbound(&self) -> bool {
        self.peers.iter().any(|peer| !(peer.home.is_empty() && peer.owner.is_empty() && peer.broadcast.is_empty()))
    }

    /// Whether any message waits to be sent. Credits that wait do not count.
    pub fn has_outbound(&self) -> bool {
        self.peers.iter().map(|peer| &peer.outbox).any(|outbox| !outbox.is_empty())
    }

    /// Bytes in flight towards `peer`, over all classes; for metrics and for the simulation's bounds.
    pub fn in_flight_bytes(&self, class: Class, peer: ShardId) -> u64 {
        self.peers[peer.index()].in_flight[class as usize]
    }
}

#[cfg(test)]
mod tests;
