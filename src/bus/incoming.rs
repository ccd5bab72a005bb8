//! What other nodes of our kind send, and what follows from their lives and from our own.

use bytes::Bytes;

use crate::hub::bus::FromBus;
use crate::ids::ShardId;

use super::call::Incarnation;
use super::inbound::Next;
use super::lives::Meeting;
use super::message::PeerId;
use super::peers::Ended;
use super::routes::{Relay, Way};
use super::state::{Bus, Effects};
use super::wire::{self, Item, Kind};

impl Bus {
    /// An envelope has come.
    pub(super) fn envelope(&mut self, envelope: &Bytes, fx: &mut dyn Effects) {
        let Some((header, items)) = wire::read(envelope) else {
            self.counters.invalid += 1;
            return;
        };
        if header.from == self.config.node_id || self.members.life() == 0 {
            return;
        }
        let from = self.peers.id(&header.from);
        if !self.met(from, header.from_incarnation, fx) {
            return;
        }
        let (receipts, accepted) = self.peers.accept(self.now, from, &header);
        receipts.into_iter().for_each(|receipt| self.done(receipt));
        if let Some(skip) = accepted {
            self.peers.inbound(from).take_in(items, skip, header.count);
            self.drain(from, fx);
        }
    }

    /// Handles what has come from a peer, as far as there is room.
    pub(super) fn drain(&mut self, from: PeerId, fx: &mut dyn Effects) {
        loop {
            let item = match self.peers.inbound(from).next() {
                Next::Item(item) => item,
                Next::Missing(count) => {
                    // Items that were announced and are not there would shift all that follow.
                    let link = self.peers.link_number(from);
                    (0..count).for_each(|_| self.peers.handled(from, link));
                    self.counters.invalid += u64::from(count > 0);
                    continue;
                }
                Next::Nothing => return,
            };
            if !self.has_room_for(&item, fx) {
                return self.peers.inbound(from).put_back(item);
            }
            let link = self.peers.link_number(from);
            self.item(from, item, fx);
            self.peers.handled(from, link);
        }
    }

    fn has_room_for(&self, item: &Item, fx: &mut dyn Effects) -> bool {
        match item.kind {
            Some(Kind::Unicast | Kind::Push) => fx.has_room(self.home(&self.key(&item.user))),
            Some(Kind::Broadcast) => (0..self.config.shards).map(ShardId).all(|shard| fx.has_broadcast_room(shard)),
            _ => true,
        }
    }

    fn item(&mut self, from: PeerId, item: Item, fx: &mut dyn Effects) {
        let Some(kind) = item.kind else {
            self.counters.invalid += 1;
            return;
        };
        match kind {
            Kind::Unicast => self.unicast_in(from, item, fx),
            Kind::Push => self.push_in(from, item, fx),
            Kind::Broadcast => {
                if !self.peers.is_new_broadcast(from, item.place) {
                    self.counters.duplicates += 1;
                    return;
                }
                self.counters.broadcasts_in += 1;
                for shard in (0..self.config.shards).map(ShardId) {
                    fx.push(shard, FromBus::Broadcast { frame: item.frame.clone() });
                }
            }
            Kind::Settled => {
                let routes = &mut self.routes;
                self.peers.settled(from, &item.frame, |route, place| routes.settled(route, place, Relay::Peer(from)));
            }
            Kind::Delivered => {
                let routes = &mut self.routes;
                self.peers.delivered(from, &item.frame, |route, place| routes.delivered(route, place));
            }
            Kind::Returned => {
                if let Some((route, place)) = self.peers.returned(from, item.number) {
                    self.came_back(route, place, Relay::Peer(from));
                }
            }
            Kind::Join => {
                let user = self.key(&item.user);
                self.join_in(from, user, item.number, item.place, fx);
            }
            Kind::Holds => self.answer_in(from, &self.key(&item.user), item.number, Some(item.place), fx),
            Kind::HoldsNot => self.answer_in(from, &self.key(&item.user), item.number, None, fx),
            Kind::Left => self.left_in(from, &self.key(&item.user), item.number, fx),
            Kind::Hello if item.number == 1 => self.peers.get_mut(from).seen.entered_run = self.members.run(),
            Kind::Hello => {}
            Kind::Bye => self.died(from, self.peers.life(from), fx),
        }
    }

    // Lives.

    /// A life of a peer has been seen; a later one than before ends that. Whether it may go on.
    pub(super) fn met(&mut self, peer: PeerId, life: Incarnation, fx: &mut dyn Effects) -> bool {
        match self.peers.meet(peer, life) {
            Meeting::Past => false,
            Meeting::Present => true,
            Meeting::New => {
                let before = self.peers.life(peer);
                let ended = self.peers.begin_link(peer, life, false);
                // While it started it may have been taken for a node of another kind.
                let node = self.peers.node(peer);
                self.foreign.retain(|foreign| foreign != node);
                self.link_ended(peer, before, ended, fx);
                true
            }
        }
    }

    /// A life of a peer, and all before it, are over.
    pub(super) fn died(&mut self, peer: PeerId, life: Incarnation, fx: &mut dyn Effects) {
        if life < self.peers.life(peer) || self.peers.was_declared_dead(peer, life) {
            return;
        }
        let ended = self.peers.begin_link(peer, life, true);
        self.link_ended(peer, life, ended, fx);
    }

    /// What was under way to a life of a peer finds another way, or is not waited for any more.
    fn link_ended(&mut self, peer: PeerId, life: Incarnation, ended: Ended, fx: &mut dyn Effects) {
        self.holder_ended(peer, life, fx);
        ended.pushes.into_iter().for_each(|receipt| self.done(receipt));
        let mut slots: Vec<usize> = ended.in_flight.iter().filter_map(|message| message.route).collect();
        slots.sort_unstable();
        slots.dedup();
        for slot in slots {
            if self.routes.is_sent_to(slot, peer) {
                self.counters.rerouted += self.routes.lose_way(slot);
                self.send_waiting(slot, fx);
            }
        }
    }

    /// This node has a new life. Links begin anew; what it has not settled of its own goes again, and what others gave the
    /// life before finds its way by them.
    pub(super) fn begin_own_life(&mut self, life: Incarnation, fx: &mut dyn Effects) {
        self.peers.begin_own_life(life);
        self.deliveries.forget_all();
        self.answers.clear();
        self.kept_bytes = 0;
        self.directory.users.iter_mut().for_each(|(_, held)| held.begins_life());
        let busy = self.routes.busy();
        for &slot in &busy {
            self.routes.lose_way(slot);
        }
        self.peers.greet(false);
        for slot in busy {
            self.resume_own_or_locate(slot, fx);
        }
    }

    /// After a new life, or a new connection: the user's messages go on.
    pub(super) fn resume_own_or_locate(&mut self, slot: usize, fx: &mut dyn Effects) {
        let is_open = self.routes.user(slot).is_some_and(|user| self.directory.is_open(user));
        if is_open && !matches!(self.routes.way(slot), Way::Own(_)) {
            _ = self.routes.go_own(slot);
        }
        self.send_waiting(slot, fx);
    }
}
