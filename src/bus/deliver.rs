//! Messages on their last stretch: to the connections of this node, each in its turn and once, and back when nobody was
//! there to take them.

use std::time::Duration;

use bytes::Bytes;

use crate::hub::bus::{FromBus, Via};
use crate::hub::envelope::UserKey;

use super::routes::weight;
use super::state::{Bus, Effects, Later, ORIGIN_SELF, Parcel};
use super::streams::{GAP_WITHIN, Verdict};
use super::wire::{FORWARDED, Kind, ONLY, SENDER_HOLDS};

/// How long after one of two ways has failed the other one may.
const HALF_FAILED_FOR: Duration = Duration::from_secs(60);

/// [`Via::link`] of a message that came from no link: from this node's own routes.
const VIA_SELF: u32 = u32::MAX;
/// Marks in [`Via::link`], beside the peer's place: the message is a copy that another holder passed on…
pub(super) const VIA_FORWARDED: u32 = 1 << 31;
/// …or copies of it were passed on to other holders…
pub(super) const VIA_SHARED: u32 = 1 << 30;
/// …or the node it came from holds the user too, and has delivered it.
pub(super) const VIA_SENDER_HOLDS: u32 = 1 << 29;
/// …or it is a copy, and the only one.
pub(super) const VIA_ONLY: u32 = 1 << 28;
/// …or it goes on to the user's primary.
const VIA_LEADS_ON: u32 = 1 << 27;
const VIA_MARKS: u32 = VIA_FORWARDED | VIA_SHARED | VIA_SENDER_HOLDS | VIA_ONLY | VIA_LEADS_ON;

impl Bus {
    /// To the connections of this node, and to the other holders.
    pub(super) fn deliver_and_forward(&mut self, user: UserKey, parcel: Parcel, fx: &mut dyn Effects) {
        let mut via = self.via_self(0, &parcel);
        if self.forward(&user, &parcel, via) > 0 {
            via.link |= VIA_SHARED;
        }
        self.deliver(user, parcel, via, fx);
    }

    pub(super) fn via_self(&mut self, marks: u32, parcel: &Parcel) -> Via {
        let sender_holds = if parcel.flags & SENDER_HOLDS != 0 { VIA_SENDER_HOLDS } else { 0 };
        Via { link: VIA_SELF & !VIA_MARKS | marks | sender_holds, seq: self.next_number(), stamp: parcel.stamp }
    }

    /// To the connections of this node, when its turn has come, and once. Not what one of this node's own clients said
    /// when the user was here: they have it.
    pub(super) fn deliver(&mut self, user: UserKey, parcel: Parcel, via: Via, fx: &mut dyn Effects) {
        let Parcel { frame, flags, stamp } = parcel;
        if stamp.origin == ORIGIN_SELF {
            if flags & SENDER_HOLDS == 0 {
                self.hand_over(&user, frame, via, fx);
            }
            return;
        }
        let Some(held) = self.held.get_mut(&user) else { return };
        let parcel = Parcel { frame, flags, stamp };
        if self.waiting_bytes < self.config.link_bytes_max && held.keep_until_joined(&parcel, via) {
            self.waiting_bytes += weight(&parcel.frame);
            return;
        }
        let is_copy = via.link & VIA_FORWARDED != 0 && !is_from_here(via);
        let Parcel { frame, .. } = parcel;
        let mut freed = Vec::new();
        let verdict = held.streams.judge(stamp, is_copy, &mut freed);
        self.hand_over_kept(&user, freed, fx);
        match verdict {
            Verdict::Deliver => {
                self.hand_over(&user, frame, via, fx);
                self.deliver_ready(&user, stamp.origin, fx);
            }
            Verdict::Duplicate => self.counters.duplicates += 1,
            // As if it had found nobody.
            Verdict::Past => self.returned(user, frame, via, fx),
            Verdict::Early if self.waiting_bytes < self.config.link_bytes_max => {
                self.waiting_bytes += weight(&frame);
                let Some(held) = self.held.get_mut(&user) else { return };
                let waits_already = !held.streams.is_settled();
                held.streams.keep(self.now, stamp, (frame, via));
                if !waits_already {
                    self.later(GAP_WITHIN, Later::Gap(user));
                }
            }
            Verdict::Early => {
                let Some(held) = self.held.get_mut(&user) else { return };
                let before = held.streams.skip_to(stamp);
                self.counters.gaps += 1;
                self.hand_over_kept(&user, before, fx);
                self.hand_over(&user, frame, via, fx);
                self.deliver_ready(&user, stamp.origin, fx);
            }
        }
    }

    fn deliver_ready(&mut self, user: &UserKey, origin: u32, fx: &mut dyn Effects) {
        while let Some(held) = self.held.get_mut(user)
            && let Some(ready) = held.streams.take_ready(self.now, origin)
        {
            self.hand_over_kept(user, vec![ready], fx);
        }
    }

    fn hand_over_kept(&mut self, user: &UserKey, kept: Vec<(Bytes, Via)>, fx: &mut dyn Effects) {
        for (frame, via) in kept {
            self.waiting_bytes -= weight(&frame);
            self.hand_over(user, frame, via, fx);
        }
    }

    fn hand_over(&mut self, user: &UserKey, frame: Bytes, via: Via, fx: &mut dyn Effects) {
        let early = !self.held.get(user).is_some_and(|held| held.is_open());
        let home = self.home(user);
        fx.push(home, FromBus::Unicast { target: user.clone(), frame, via, early });
    }

    /// Messages have waited for earlier ones long enough.
    pub(super) fn give_up_gaps(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let Some(held) = self.held.get_mut(user) else { return };
        for origin in held.streams.give_up(self.now) {
            self.counters.gaps += 1;
            self.deliver_ready(user, origin, fx);
        }
        if let Some(until) = self.held.get(user).and_then(|held| held.streams.waits_until()) {
            self.later(until.since(self.now), Later::Gap(user.clone()));
        }
    }

    /// Delivers to this node's connections what they have not got yet; what is left to do is for the other holders.
    pub(super) fn deliver_first(&mut self, user: &UserKey, queue: Vec<Parcel>, fx: &mut dyn Effects) -> Vec<Parcel> {
        let mut rest = queue;
        for parcel in &mut rest {
            let via = self.via_self(VIA_LEADS_ON, parcel);
            self.deliver(user.clone(), parcel.clone(), via, fx);
            if parcel.stamp.origin == ORIGIN_SELF {
                parcel.flags |= SENDER_HOLDS;
            }
        }
        rest
    }

    /// A message that was handed to the user's home found the user gone.
    pub(super) fn returned(&mut self, user: UserKey, frame: Bytes, via: Via, fx: &mut dyn Effects) {
        self.begin_not_after(&user, via.stamp);
        if via.link & VIA_LEADS_ON != 0 {
            return;
        }
        let sender_holds = if via.link & VIA_SENDER_HOLDS != 0 { SENDER_HOLDS } else { 0 };
        let parcel = Parcel { frame, flags: sender_holds, stamp: via.stamp };
        if via.link & VIA_SHARED != 0 {
            return self.one_way_failed(user, parcel, Some(via), fx);
        }
        if !is_from_here(via) && via.link & VIA_FORWARDED != 0 {
            let flags = sender_holds | if via.link & VIA_ONLY != 0 { FORWARDED | ONLY } else { FORWARDED };
            return self.bounce(via.link & !VIA_MARKS, &user, via.seq, flags, &parcel);
        }
        self.go_back(user, parcel, Some(via), fx);
    }

    /// Sends a message back to the node that it came from, which puts it in its place among what it has sent since; or
    /// on its way, when it is this node's own.
    pub(super) fn go_back(&mut self, user: UserKey, parcel: Parcel, via: Option<Via>, fx: &mut dyn Effects) {
        let came_from = via.filter(|via| !is_from_here(*via)).map(|via| (via.link & !VIA_MARKS, via.seq));
        let is_there = |at: u32| self.peers[at as usize].dead < self.peers[at as usize].life;
        match came_from.filter(|(at, _)| is_there(*at)) {
            Some((at, seq)) => self.bounce(at, &user, seq, parcel.flags & SENDER_HOLDS, &parcel),
            None => {
                self.counters.rerouted += 1;
                self.route(user, parcel, fx);
            }
        }
    }

    /// A message went to this node's connections and, as the only copy, to another holder, and one of the two has found
    /// nobody. When both have, it follows the user. How it came is known where this node's connections were not there.
    pub(super) fn one_way_failed(&mut self, user: UserKey, parcel: Parcel, via: Option<Via>, fx: &mut dyn Effects) {
        if parcel.flags & SENDER_HOLDS != 0 {
            // The connections of the node on which it was said have it.
            return;
        }
        let (now, stamp) = (self.now, parcel.stamp);
        while let Some((since, _)) = self.half_failed_since.front()
            && now.since(*since) > HALF_FAILED_FOR
        {
            let oldest = self.half_failed_since.pop_front();
            oldest.map(|(_, message)| self.half_failed.remove(&message));
        }
        let message = (user.name.clone(), stamp);
        match self.half_failed.remove(&message) {
            Some(other) => self.go_back(user, parcel, via.or(other), fx),
            None => {
                self.half_failed.insert(message.clone(), via);
                self.half_failed_since.push_back((now, message));
            }
        }
    }

    /// Sends a peer's message back to it.
    pub(super) fn bounce(&mut self, at: u32, user: &UserKey, seq: u64, flags: u8, parcel: &Parcel) {
        self.push_message(at, Kind::Bounce, flags, user, seq, parcel);
        // Until its fence comes, whatever else it has sent goes the same way, though the user should come back.
        let has_fenced =
            self.answers.values().any(|answer| answer.peer == at && answer.ends_a_route && answer.user == *user);
        if flags & FORWARDED == 0 && !has_fenced {
            self.bouncing.insert((at, user.name.clone()));
        }
    }
}

/// Whether a message came by the link of this peer.
pub(super) fn has_come_from(via: Via, peer: u32) -> bool {
    !is_from_here(via) && via.link & !VIA_MARKS == peer
}

/// Whether a message came by this node's own routes.
fn is_from_here(via: Via) -> bool {
    via.link | VIA_MARKS == VIA_SELF
}
