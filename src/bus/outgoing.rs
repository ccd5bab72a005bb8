//! Messages of this node's clients and of services: into the user's queue, and on to the user's relay.

use bytes::Bytes;

use crate::hub::bus::FromBus;
use crate::hub::envelope::UserKey;
use crate::ids::ConnRef;

use super::call::{Call, NodeId, Reply};
use super::contract;
use super::later::Later;
use super::message::{OriginId, PeerId, Relayed, Source, Stamp, Target, USER_ID_BYTES_MAX};
use super::routes::{FOREIGN_FOR, Outgoing, Relay, Way};
use super::state::{Bus, Effects, Purpose, RETRY_AFTER};

impl Bus {
    /// A message of one of our clients.
    pub(super) fn unicast_out(
        &mut self,
        target: UserKey,
        frame: Bytes,
        sender: ConnRef,
        delivered_here: bool,
        fx: &mut dyn Effects,
    ) {
        if target.name.len() > USER_ID_BYTES_MAX {
            // Nobody can have such a name.
            self.counters.offline += 1;
            return;
        }
        let connection = self.connection;
        if delivered_here && self.directory.get(&target).is_none_or(|held| held.is_alone(connection)) {
            return;
        }
        let Some(slot) = self.slot_with_room(target) else {
            self.counters.overloaded += 1;
            return self.tell(sender.shard, FromBus::Overloaded { sender }, fx);
        };
        self.enqueue(slot, frame, delivered_here, fx);
    }

    /// A message of a service.
    pub(super) fn contract_unicast(&mut self, user: UserKey, frame: Bytes, fx: &mut dyn Effects) {
        let is_held_up = self.directory.is_open(&user) && !fx.has_room(self.home(&user));
        let Some(slot) = self.slot_with_room(user).filter(|_| !is_held_up) else {
            self.counters.lost += 1;
            return;
        };
        self.enqueue(slot, frame, false, fx);
    }

    /// The slot of a user's route, which begins if there is none. `None`: what is kept for the user, for the user's relay, or
    /// for all has reached its bound.
    fn slot_with_room(&mut self, user: UserKey) -> Option<usize> {
        let bytes_max = self.config.link_bytes_max;
        if self.routes.bytes() + self.kept_bytes >= bytes_max.saturating_mul(1 + self.peers.live().count()) {
            return None;
        }
        let Some(slot) = self.routes.slot_of(&user) else {
            let has_room = self.routes.waiting_bytes() < bytes_max;
            return has_room.then(|| {
                let random = self.config.hasher.hash_one(self.now.0);
                self.routes.begin(user, random)
            });
        };
        let is_full = self.routes.is_full(slot, bytes_max)
            || self.routes.target(slot).is_some_and(|target| self.peers.unacked_bytes_of(target.peer) >= bytes_max);
        (!is_full).then_some(slot)
    }

    fn enqueue(&mut self, slot: usize, frame: Bytes, delivered_here: bool, fx: &mut dyn Effects) {
        self.routes.enqueue(slot, frame, delivered_here);
        match self.routes.way(slot) {
            // Where connections are open the way is known to be this node's.
            Way::To(_) | Way::Own(_) => self.counters.cache_hits += 1,
            _ => {
                self.counters.cache_misses += 1;
                if self.routes.user(slot).is_some_and(|user| self.directory.is_open(user)) {
                    _ = self.routes.go_own(slot);
                }
            }
        }
        self.send_waiting(slot, fx);
    }

    /// Sends on what waits in a queue, or finds out where to.
    pub(super) fn send_waiting(&mut self, slot: usize, fx: &mut dyn Effects) {
        match self.routes.way(slot) {
            Way::Locating { .. } => {}
            Way::To(target) => {
                if !self.peers.is_present(target.peer, target.life) {
                    self.counters.rerouted += self.routes.lose_way(slot);
                    return self.locate(slot, fx);
                }
                self.send_to(slot, target);
            }
            Way::Own(time) => {
                let Some(user) = self.routes.user(slot).cloned() else { return };
                if !self.directory.is_open(&user) {
                    self.routes.lose_way(slot);
                    return self.locate(slot, fx);
                }
                self.relay_own(slot, &user, time, false, fx);
            }
            Way::Foreign { node, until } if self.now < until => self.send_foreign(slot, &node, fx),
            Way::Foreign { .. } => {
                self.routes.lose_way(slot);
                self.locate(slot, fx);
            }
            Way::Unknown => self.locate(slot, fx),
        }
    }

    fn send_to(&mut self, slot: usize, target: Target) {
        let mut waiting = std::mem::take(&mut self.outgoing);
        self.routes.take_waiting(slot, Relay::Peer(target.peer), &mut waiting);
        if let Some(user) = self.routes.user(slot) {
            for Outgoing { place, frame, .. } in waiting.drain(..) {
                self.counters.unicasts_out += 1;
                self.peers.push_unicast(target, &user.name, &frame, slot, place);
            }
        }
        self.outgoing = waiting;
    }

    /// This node holds the user: it is the relay of its own messages.
    pub(super) fn relay_own(&mut self, slot: usize, user: &UserKey, time: u32, early: bool, fx: &mut dyn Effects) {
        let mut waiting = Vec::new();
        self.routes.take_waiting(slot, Relay::Own(time), &mut waiting);
        for Outgoing { place, frame, delivered_here } in waiting {
            let stamp = Stamp { origin: OriginId::SELF, place };
            let source = Source::Own { route: slot, place, time };
            self.relay(user, Relayed { stamp, frame, source, delivered_here }, early, fx);
        }
    }

    fn send_foreign(&mut self, slot: usize, node: &NodeId, fx: &mut dyn Effects) {
        let Some(user) = self.routes.user(slot).cloned() else { return };
        for Outgoing { frame, .. } in self.routes.drop_up_to(slot, u64::MAX) {
            match contract::write_order(Some(&user.name), &frame) {
                Some(json) => {
                    self.counters.contract_out += 1;
                    self.call(Purpose::PublishContract, Call::PublishContract { node: node.clone(), json }, fx);
                }
                None => self.counters.invalid += 1,
            }
        }
    }

    /// Reads the directory, if there is something to send and nothing is known.
    fn locate(&mut self, slot: usize, fx: &mut dyn Effects) {
        let Some(user) = self.routes.user(slot).cloned() else { return };
        let may_read = self.connected && self.members.life() != 0 && !self.routes.is_paused(slot);
        // Who is about to open gets them when it has.
        if !may_read
            || self.directory.is_opening(&user)
            || self.routes.busy_slot_of(&user).is_none()
            || self.routes.waits_for_home(slot)
        {
            return;
        }
        let (waits, begins) = self.routes.waits_for_relay(slot, self.now);
        if let Some(wait) = begins {
            self.later(wait, Later::Send(user.clone()));
        }
        if waits {
            return;
        }
        let asked = self.routes.locates(slot);
        let call = Call::Locate { user: user.name.clone() };
        self.call(Purpose::Route(user, asked), call, fx);
    }

    /// The directory has said where a user is.
    pub(super) fn located(&mut self, user: &UserKey, asked: u64, reply: Reply, fx: &mut dyn Effects) {
        let Some(slot) = self.routes.slot_of(user) else { return };
        // An answer to an earlier question says nothing of what was said since.
        if !matches!(self.routes.way(slot), Way::Locating { asked: last } if last == asked) {
            return;
        }
        let Reply::Located(location) = reply else {
            self.routes.not_located(slot);
            return self.try_again(slot, user, None);
        };
        self.note_run(location.run, fx);
        if !matches!(self.routes.way(slot), Way::Locating { .. }) {
            return;
        }
        if self.directory.is_open(user) {
            _ = self.routes.go_own(slot);
            return self.send_waiting(slot, fx);
        }
        let names_us = location.holders.iter().any(|holder| holder.node == self.config.node_id);
        if names_us {
            self.take_off_if_unknown(user);
        }
        let mut holders = Vec::new();
        let own = self.config.node_id.clone();
        for holder in location.holders.iter().filter(|holder| holder.node != own) {
            if let Some(target) = self.peers.usable(holder) {
                self.met(target.peer, target.life, fx);
                holders.push((target, self.peers.unheard_since(target.peer).is_none()));
            }
        }
        let (chosen, only_refused) = self.routes.choose(slot, &holders);
        if let Some(target) = chosen {
            self.counters.rerouted += self.routes.go_to(slot, target);
            return self.send_waiting(slot, fx);
        }
        let foreign = location.foreign.filter(|node| !self.peers.is_present_node(node) && *node != self.config.node_id);
        if let Some(node) = foreign.filter(|_| location.holders.is_empty()) {
            self.routes.go_foreign(slot, node, self.now.after(FOREIGN_FOR));
            return self.send_waiting(slot, fx);
        }
        if only_refused || names_us || self.directory.is_opening(user) {
            self.routes.not_located(slot);
            return self.try_again(slot, user, None);
        }
        if self.is_in_doubt(location.run) {
            self.routes.not_located(slot);
            return self.try_again(slot, user, Some(RETRY_AFTER));
        }
        let dropped = self.routes.nowhere(slot, asked);
        self.counters.offline += dropped.iter().filter(|message| !message.delivered_here).count() as u64;
        self.send_waiting(slot, fx);
    }

    fn try_again(&mut self, slot: usize, user: &UserKey, at_least: Option<std::time::Duration>) {
        if let Some(delay) = self.routes.pause(slot) {
            self.later(at_least.map_or(delay, |least| least.max(delay)), Later::Send(user.clone()));
        }
    }

    /// A route that was left alone for a while.
    pub(super) fn send_again(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        if let Some(slot) = self.routes.slot_of(user) {
            self.routes.resume(slot);
            self.send_waiting(slot, fx);
        }
    }

    /// Sends on what waits for a user, if anything does.
    pub(super) fn send_waiting_of(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        if let Some(slot) = self.routes.busy_slot_of(user) {
            self.send_waiting(slot, fx);
        }
    }

    /// A message of this node found its user gone.
    pub(super) fn came_back(&mut self, slot: usize, place: u64, relay: Relay) {
        let Some(user) = self.routes.user(slot).cloned() else { return };
        self.counters.rerouted += 1;
        if let Some(delay) = self.routes.returned(slot, place, relay) {
            self.later(delay, Later::Send(user));
        }
    }

    /// What is published for a peer reaches nobody: its users' messages look for another relay.
    pub(super) fn go_around(&mut self, peer: PeerId, fx: &mut dyn Effects) {
        for slot in self.peers.waiting_routes(peer) {
            if self.routes.doubt_way(slot, peer) {
                self.send_waiting(slot, fx);
            }
        }
    }

    /// A foreign node has said that a user came or left: where the user is now is to be asked.
    pub(super) fn forget_foreign(&mut self, user: &UserKey) {
        self.routes.forget_foreign(user);
    }
}
