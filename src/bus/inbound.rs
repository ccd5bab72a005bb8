//! What other nodes of our kind send.

use bytes::Bytes;
use compact_str::CompactString;

use crate::hub::bus::{FromBus, Via};
use crate::ids::ShardId;

use super::deliver::{VIA_FORWARDED, VIA_ONLY, VIA_SENDER_HOLDS, VIA_SHARED};
use super::link::Accept;
use super::state::{Asked, Bus, Effects, Parcel, PendingAnswer};
use super::streams::Begin;
use super::wire::{self, FORWARDED, Item, Kind, ONLY, RELAYED, SENDER_HOLDS, STALE};

/// Bytes of one peer that wait for room in a shard; beyond that envelopes are not taken, and come again.
const INBOUND_BYTES_MAX: usize = 4 << 20;

impl Bus {
    /// An envelope has come.
    pub(super) fn envelope(&mut self, envelope: &Bytes, fx: &mut dyn Effects) {
        let Some((header, items)) = wire::read(envelope) else {
            self.counters.invalid += 1;
            return;
        };
        if header.from == self.config.node_id || self.members.incarnation == 0 {
            return;
        }
        let at = self.peer(&header.from);
        let peer = &self.peers[at as usize];
        if header.from_incarnation <= peer.dead || header.from_incarnation < peer.life {
            return;
        }
        self.met(at, header.from_incarnation, fx);
        let peer = &mut self.peers[at as usize];
        if header.to_incarnation != self.members.incarnation {
            // It is for an earlier life of ours: any envelope of ours tells the sender so.
            peer.link.acknowledge_at(self.now);
            return;
        }
        peer.link.acked(self.now, header.ack, header.gap);
        if header.count > 0 && peer.inbound_bytes > INBOUND_BYTES_MAX {
            return;
        }
        if let Accept::Items { skip } = peer.link.accept(self.now, &header) {
            let mut items = items;
            for _ in 0..skip {
                wire::take_item(&mut items);
            }
            peer.inbound_bytes += items.len();
            peer.inbound.push_back((items, header.count - skip));
            self.drain(at, fx);
        }
    }

    /// Handles what has come from a peer, as far as there is room.
    pub(super) fn drain(&mut self, at: u32, fx: &mut dyn Effects) {
        loop {
            let peer = &mut self.peers[at as usize];
            let item = match peer.waiting.take() {
                Some(item) => item,
                None => {
                    let Some((items, left)) = peer.inbound.front_mut() else { return };
                    let before = items.len();
                    let Some(item) = wire::take_item(items).filter(|_| *left > 0) else {
                        // Items that were announced and are not there would shift all that follow.
                        let (rest, left) = (items.len(), *left);
                        peer.inbound_bytes -= rest;
                        peer.inbound.pop_front();
                        if left > 0 {
                            self.counters.invalid += 1;
                            (0..left).for_each(|_| _ = self.peers[at as usize].link.handled());
                        }
                        continue;
                    };
                    peer.inbound_bytes -= before - items.len();
                    *left -= 1;
                    if *left == 0 {
                        peer.inbound_bytes -= items.len();
                        peer.inbound.pop_front();
                    }
                    item
                }
            };
            if !self.has_room_for(&item, fx) {
                self.peers[at as usize].waiting = Some(item);
                return;
            }
            let seq = self.peers[at as usize].link.handled();
            self.item(at, seq, item, fx);
        }
    }

    fn has_room_for(&self, item: &Item, fx: &mut dyn Effects) -> bool {
        match item.kind {
            Some(Kind::Unicast) => fx.has_room(self.home(&self.key(&item.user))),
            Some(Kind::Broadcast) => (0..self.config.shards).map(ShardId).all(|shard| fx.has_broadcast_room(shard)),
            _ => true,
        }
    }

    fn item(&mut self, at: u32, seq: u64, item: Item, fx: &mut dyn Effects) {
        let Some(kind) = item.kind else {
            self.counters.invalid += 1;
            return;
        };
        match kind {
            Kind::Unicast => self.unicast_in(at, seq, item, fx),
            Kind::Broadcast => {
                self.counters.broadcasts_in += 1;
                for shard in (0..self.config.shards).map(ShardId) {
                    fx.push(shard, FromBus::Broadcast { frame: item.frame.clone() });
                }
            }
            Kind::Bounce => self.bounced(at, item, fx),
            Kind::Fence => {
                let user = self.key(&item.user);
                if item.flags & STALE != 0 {
                    return self.take_off_if_unknown(&user);
                }
                let ends_a_route = item.flags & RELAYED == 0;
                let mut waits = Vec::new();
                if ends_a_route {
                    self.bouncing.remove(&(at, user.name.clone()));
                    waits = self.fence_copies(&user, at);
                }
                let from = (at, self.peers[at as usize].life);
                let answer = PendingAnswer::new(from, Kind::Fenced, &user, item.number);
                self.answer_after_all_before(PendingAnswer { ends_a_route, waits, ..answer });
            }
            Kind::Join => {
                let user = self.key(&item.user);
                let version = item.frame.as_ref().try_into().map_or(0, u64::from_le_bytes);
                if self.joined_by(&user, at, version, fx) {
                    let begins = self.begins(&user);
                    let from = (at, self.peers[at as usize].life);
                    let answer = PendingAnswer::new(from, Kind::Joined, &user, item.number);
                    self.answer_after_all_before(PendingAnswer { begins, ..answer });
                } else {
                    self.peers[at as usize].link.push(Kind::NotJoined, 0, "", item.number, b"");
                }
            }
            Kind::Fenced | Kind::Joined | Kind::NotJoined => {
                let life = self.peers[at as usize].life;
                match self.asked.remove(&item.number) {
                    Some((_, _, Asked::Fence(user))) => {
                        self.fence_passed(&user, at, life, Some(item.number), fx);
                    }
                    Some((_, _, Asked::Join(user))) if kind == Kind::Joined => self.joined(&user, item.number, fx),
                    Some((_, _, Asked::Join(user))) => self.not_joined(&user, item.number, fx),
                    // What waits for it looks when this turn ends.
                    Some((_, _, Asked::Copies(_))) | None => {}
                }
            }
            Kind::Begins => {
                if let Some((_, _, Asked::Join(user))) = self.asked.get(&item.number) {
                    let user = user.clone();
                    let stamp = self.stamp_of(at, &item);
                    let vouched_from = item.frame.as_ref().try_into().map_or(stamp.place, u64::from_le_bytes);
                    let begin = Begin { stamp, vouched_from };
                    self.stream_begins(&user, item.number, begin);
                }
            }
            Kind::Hello => {}
        }
    }

    /// Whether what a peer sends for a user goes back. Mostly nobody's does, and nothing is hashed for that.
    fn bounces(&self, at: u32, user: &CompactString) -> bool {
        !self.bouncing.is_empty() && self.bouncing.contains(&(at, user.clone()))
    }

    fn unicast_in(&mut self, at: u32, seq: u64, item: Item, fx: &mut dyn Effects) {
        let stamp = self.stamp_of(at, &item);
        let Item { flags, user, number: version, frame, .. } = item;
        let user = self.key(&user);
        let parcel = Parcel { frame, flags: flags & SENDER_HOLDS, stamp };
        self.counters.unicasts_in += 1;
        let is_forwarded = flags & FORWARDED != 0;
        let is_here = self.held.get(&user).is_some_and(|held| held.is_here());
        if !is_here || (!is_forwarded && self.bounces(at, &user.name)) {
            return self.bounce(at, &user, seq, flags, &parcel);
        }
        let mut link = at;
        link |= if flags & SENDER_HOLDS != 0 { VIA_SENDER_HOLDS } else { 0 };
        if is_forwarded {
            link |= if flags & ONLY != 0 { VIA_FORWARDED | VIA_ONLY } else { VIA_FORWARDED };
            self.forward_to_later(&user, at, version, &parcel);
        } else {
            self.refresh_if_older(&user, version, fx);
            if self.forward(&user, &parcel, Via { link, seq, stamp }) > 0 {
                link |= VIA_SHARED;
            }
        }
        self.deliver(user, parcel, Via { link, seq, stamp }, fx);
    }
}
