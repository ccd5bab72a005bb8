//! The hub's side of the bus: registrations that wait for it, messages to users of other nodes, and what it brings.

use bytes::Bytes;

use crate::client::reply;
use crate::hub::arrivals::{Early, Kept};
use crate::hub::bus::{FromBus, Ticket, ToBus};
use crate::hub::effects::{Effects, Origin, Verdict, Wire};
use crate::hub::envelope::{Class, ToOwner, UserKey};
use crate::hub::homes::Presence;
use crate::ids::{ConnId, ConnRef};
use crate::time::Micros;

use super::{Hub, Outcome, Stage};

/// Whether a connection opens now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Registration {
    /// The user can be reached: it does.
    Opens,
    /// The answer of the bus opens it.
    Waits,
}

impl Hub {
    /// One more connection of a user whose home is here.
    pub(super) fn register(&mut self, user: UserKey, conn: ConnRef, fx: &mut impl Effects) -> Registration {
        if self.has_bus {
            let is_here = !self.homes.reach(&user).conns.is_empty();
            // While waiting connections are being opened the user is on both sides; it opens behind them.
            if !is_here || self.arrivals.contains(&user) {
                if self.arrivals.wait(&user, conn) {
                    fx.push_bus(ToBus::Arrived { user });
                }
                return Registration::Waits;
            }
        }
        self.enter(user, conn);
        Registration::Opens
    }

    fn enter(&mut self, user: UserKey, conn: ConnRef) {
        if self.homes.register(user, conn) == Presence::Online {
            self.metrics.users.set(self.homes.len() as u64);
        }
    }

    /// A connection of a user whose home is here is gone.
    pub(super) fn unregister(&mut self, user: &UserKey, conn: ConnRef, fx: &mut impl Effects) {
        let is_last = self.homes.unregister(user, conn) == Presence::Offline;
        if is_last {
            self.metrics.users.set(self.homes.len() as u64);
        }
        if !self.has_bus {
            return;
        }
        if self.arrivals.contains(user) {
            // Whether anybody is left is seen when the bus has answered.
            self.arrivals.stop_waiting(user, conn);
        } else if is_last {
            fx.push_bus(ToBus::Left { user: user.clone() });
        }
    }

    /// A message to a user who has no connection here.
    pub(super) fn pass_on(
        &mut self,
        target: &UserKey,
        frame: &Bytes,
        sender: ConnRef,
        received: Micros,
        fx: &mut impl Effects,
    ) -> Outcome {
        if !self.has_bus {
            self.metrics.dropped_offline.add(1);
            return Outcome::Done;
        }
        if self.arrivals.contains(target) {
            return self.keep(target, frame, sender, received, fx);
        }
        // The bus never waits for Redis, so its room comes back at once: the sender is slowed down, not refused.
        if !fx.bus_has_room() {
            return Outcome::NoRoom;
        }
        fx.push_bus(ToBus::Unicast { target: target.clone(), frame: frame.clone(), sender, delivered_here: false });
        Outcome::Done
    }

    /// A message to a user who waits for the bus.
    pub(super) fn keep(
        &mut self,
        target: &UserKey,
        frame: &Bytes,
        sender: ConnRef,
        received: Micros,
        fx: &mut impl Effects,
    ) -> Outcome {
        match self.arrivals.keep(target, Kept { frame: frame.clone(), sender, received }) {
            true => Outcome::Done,
            false => self.refuse(received, sender, fx),
        }
    }

    /// A message cannot be taken: its sender is told, wherever it is.
    pub(super) fn refuse(&mut self, now: Micros, sender: ConnRef, fx: &mut impl Effects) -> Outcome {
        if !fx.has_room(Class::Owner, sender.shard) {
            return Outcome::NoRoom;
        }
        self.pass_to_owner(now, sender.shard, ToOwner::Refused { conn: sender.conn }, fx);
        Outcome::Done
    }

    /// A message of a connection of this shard was not taken.
    pub(super) fn tell_overloaded(&mut self, now: Micros, conn: ConnId, fx: &mut impl Effects) {
        self.metrics.dropped_overloaded.add(1);
        self.scratch.clear();
        reply::overloaded(&mut self.scratch);
        let delivered = fx.deliver(conn, Wire::Copy(&self.scratch), Origin { sender: None, received: now });
        self.metrics.messages_out_error.add(u64::from(delivered));
    }

    /// The user of a connection that waits could not be registered.
    pub(super) fn unavailable(&mut self, conn: ConnId, fx: &mut impl Effects) {
        if self.session(conn).is_some_and(|session| matches!(session.stage, Stage::Registration(_))) {
            self.set_stage(conn, Stage::Vacant);
            fx.decide(conn, Verdict::Unavailable);
        }
    }

    /// What the bus brings. An answer to an arrival that finds no room half way goes on there when it is tried again.
    pub(super) fn said_by_bus(&mut self, now: Micros, message: &FromBus, fx: &mut impl Effects) -> Outcome {
        match message {
            FromBus::Unicast { target, frame, ticket, early } => {
                let message = Early { frame: frame.clone(), ticket: *ticket };
                self.brought(now, target, message, *early, fx)
            }
            FromBus::Broadcast { frame } => {
                fx.deliver_all(Wire::Shared(frame), now);
                Outcome::Done
            }
            FromBus::Registered { user, elsewhere } => self.registered(now, user, *elsewhere, fx),
            FromBus::NotRegistered { user } => self.not_registered(now, user, fx),
            FromBus::Elsewhere { user, elsewhere } => {
                self.homes.set_elsewhere(user, *elsewhere);
                Outcome::Done
            }
            FromBus::Overloaded { sender } => self.refuse(now, *sender, fx),
            FromBus::Fence { fence } => {
                fx.push_bus(ToBus::Fenced { fence: *fence });
                Outcome::Done
            }
        }
    }

    fn brought(
        &mut self,
        now: Micros,
        target: &UserKey,
        message: Early,
        early: bool,
        fx: &mut impl Effects,
    ) -> Outcome {
        let is_here = !self.homes.reach(target).conns.is_empty();
        if is_here && !self.arrivals.contains(target) {
            return self.deliver_here(target, &message.frame, Origin { sender: None, received: now }, fx);
        }
        if !(early && self.arrivals.keep_early(target, message.clone())) {
            give_back(message.ticket, fx);
        }
        Outcome::Done
    }

    fn registered(&mut self, now: Micros, user: &UserKey, elsewhere: bool, fx: &mut impl Effects) -> Outcome {
        if !self.arrivals.contains(user) {
            // Said again of a user who is here: only the other nodes can be news.
            self.homes.set_elsewhere(user, elsewhere);
            return Outcome::Done;
        }
        while let Some(conn) = self.arrivals.waiting(user) {
            if !fx.has_room(Class::Owner, conn.shard) {
                return Outcome::NoRoom;
            }
            self.arrivals.stop_waiting(user, conn);
            self.enter(user.clone(), conn);
            self.pass_to_owner(now, conn.shard, ToOwner::Registered { conn: conn.conn }, fx);
        }
        if self.homes.reach(user).conns.is_empty() {
            // All have gone while they waited.
            fx.push_bus(ToBus::Left { user: user.clone() });
            self.hand_over_kept(user, fx);
            return Outcome::Done;
        }
        while let Some(Early { frame, .. }) = self.arrivals.oldest_early(user).cloned() {
            if self.deliver_here(user, &frame, Origin { sender: None, received: now }, fx) == Outcome::NoRoom {
                return Outcome::NoRoom;
            }
            self.arrivals.take_early(user);
        }
        while let Some(Kept { frame, sender, received }) = self.arrivals.oldest_kept(user).cloned() {
            let origin = Origin { sender: Some(sender), received };
            if self.deliver_here(user, &frame, origin, fx) == Outcome::NoRoom {
                return Outcome::NoRoom;
            }
            self.arrivals.take_kept(user);
            if elsewhere {
                fx.push_bus(ToBus::Unicast { target: user.clone(), frame, sender, delivered_here: true });
            }
        }
        self.arrivals.remove(user);
        self.homes.set_elsewhere(user, elsewhere);
        Outcome::Done
    }

    fn not_registered(&mut self, now: Micros, user: &UserKey, fx: &mut impl Effects) -> Outcome {
        while let Some(conn) = self.arrivals.waiting(user) {
            if !fx.has_room(Class::Owner, conn.shard) {
                return Outcome::NoRoom;
            }
            self.arrivals.stop_waiting(user, conn);
            self.pass_to_owner(now, conn.shard, ToOwner::Unavailable { conn: conn.conn }, fx);
        }
        self.hand_over_kept(user, fx);
        Outcome::Done
    }

    /// The user does not wait any more and is not here: what was kept goes to the bus. It was accepted, so it does not
    /// ask for room; its bound is that of what is kept.
    fn hand_over_kept(&mut self, user: &UserKey, fx: &mut impl Effects) {
        while let Some(Early { ticket, .. }) = self.arrivals.take_early(user) {
            give_back(ticket, fx);
        }
        while let Some(Kept { frame, sender, .. }) = self.arrivals.take_kept(user) {
            fx.push_bus(ToBus::Unicast { target: user.clone(), frame, sender, delivered_here: false });
        }
        self.arrivals.remove(user);
    }
}

fn give_back(ticket: Ticket, fx: &mut impl Effects) {
    if ticket != 0 {
        fx.push_bus(ToBus::Returned { ticket });
    }
}
