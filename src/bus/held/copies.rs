//! Copies: what a holder of a user passes on to the others, who get it once and in its order ([`super::super::streams`]).

use super::super::call::{Call, Incarnation, Reply};
use super::super::deliver::has_come_from;
use super::super::state::{Bus, Effects, Parcel, Purpose};
use super::super::wire::{FORWARDED, Kind, ONLY, SENDER_HOLDS, STALE};
use super::Stage;
use crate::hub::bus::Via;
use crate::hub::envelope::UserKey;

impl Bus {
    /// A peer has begun to hold the user too, by this version; whether this node does, so that it passes on what comes.
    pub(in crate::bus) fn joined_by(&mut self, user: &UserKey, peer: u32, version: u64, fx: &mut dyn Effects) -> bool {
        let life = self.peers[peer as usize].life;
        let Some(held) = self.held.get_mut(user).filter(|held| held.is_here()) else { return false };
        let was_elsewhere = !held.others.is_empty();
        if !held.others.contains(&(peer, life)) {
            held.others.push((peer, life));
        }
        held.joined.retain(|(joined, _)| *joined != peer);
        held.joined.push((peer, version));
        held.version = held.version.max(version);
        // What waits here for messages before it was passed on when it came, and not to this peer. It has what it has said
        // or passed on itself.
        let kept = held.until_joined.iter().map(|(parcel, via)| (parcel.clone(), *via));
        let early = held.streams.early().map(|(frame, via)| {
            let parcel = Parcel { frame: frame.clone(), flags: 0, stamp: via.stamp };
            (parcel, *via)
        });
        let lacks = |(parcel, via): &(Parcel, Via)| parcel.stamp.origin != peer && !has_come_from(*via, peer);
        let waiting: Vec<Parcel> = kept.chain(early).filter(lacks).map(|(parcel, _)| parcel).collect();
        for parcel in waiting {
            self.push_message(peer, Kind::Unicast, FORWARDED, user, version, &parcel);
        }
        self.tell_elsewhere(user, was_elsewhere, fx);
        true
    }

    /// A copy has come from a holder that knew the others by this version: those who have joined since have it from here.
    pub(in crate::bus) fn forward_to_later(&mut self, user: &UserKey, from: u32, version: u64, parcel: &Parcel) {
        let Some(held) = self.held.get(user).filter(|held| held.joined.iter().any(|(_, since)| *since > version))
        else {
            return;
        };
        let later = held
            .joined
            .iter()
            .filter(|(peer, since)| *since > version && *peer != parcel.stamp.origin && *peer != from);
        let later: Vec<(u32, u64)> = later.copied().collect();
        for (peer, since) in later {
            self.push_message(peer, Kind::Unicast, FORWARDED | parcel.flags & SENDER_HOLDS, user, since, parcel);
            self.counters.unicasts_out += 1;
        }
    }

    /// Passes copies on to the other holders, but not to the one whose client said it: that one has delivered it, or has
    /// no connection open until it has been handled. How many.
    pub(in crate::bus) fn forward(&mut self, user: &UserKey, parcel: &Parcel, via: Via) -> usize {
        let Some(held) = self.held.get_mut(user) else { return 0 };
        if held.stage == Stage::Registering {
            // Who else holds the user is known in a moment. It is not handed back as shared: that is not certain.
            held.unforwarded.get_or_insert_default().push((parcel.clone(), via));
            return 0;
        }
        if let Some(unforwarded) = &mut held.unforwarded {
            unforwarded.push((parcel.clone(), via));
            return 1;
        }
        let sender_holds = parcel.flags & SENDER_HOLDS;
        let peers = &self.peers;
        let holds = |&&(peer, life): &&(u32, Incarnation)| {
            let other = &peers[peer as usize];
            peer != parcel.stamp.origin && other.life == life && other.dead < life
        };
        let to: Vec<u32> = held.others.iter().filter(holds).map(|&(peer, _)| peer).collect();
        let flags = sender_holds | if to.len() == 1 { FORWARDED | ONLY } else { FORWARDED };
        let version = held.version;
        for &peer in &to {
            self.push_message(peer, Kind::Unicast, flags, user, version, parcel);
            self.counters.unicasts_out += 1;
        }
        to.len()
    }

    /// A sender knows of a later version of the user's holders than this node: copies wait until it has read them too.
    pub(in crate::bus) fn refresh_if_older(&mut self, user: &UserKey, version: u64, fx: &mut dyn Effects) {
        let Some(held) = self.held.get_mut(user) else { return };
        if held.version < version {
            self.refresh(user, None, fx);
        }
    }

    /// Copies wait until the holders have been read, which a peer that has sent a copy back seems to be no more. It may
    /// have become one again since, so it is not for the copy to say.
    pub(in crate::bus) fn refresh(&mut self, user: &UserKey, bouncer: Option<u32>, fx: &mut dyn Effects) {
        let Some(held) = self.held.get_mut(user).filter(|held| held.is_open() && held.unforwarded.is_none()) else {
            return;
        };
        held.unforwarded = Some(Vec::new());
        let call = Call::Locate { user: user.name.clone() };
        self.call(Purpose::Refresh(user.clone(), bouncer), call, fx);
    }

    pub(in crate::bus) fn refreshed(
        &mut self,
        user: &UserKey,
        bouncer: Option<u32>,
        reply: Reply,
        fx: &mut dyn Effects,
    ) {
        if let Reply::Located(location) = reply {
            self.learn_holders(user, &location, fx);
            // If it does not even know of the user, Redis has lost a removal.
            if let Some(peer) = bouncer.map(|at| &mut self.peers[at as usize])
                && location.holders.iter().any(|holder| holder.node == peer.node)
            {
                peer.link.push(Kind::Fence, STALE, &user.name, 0, b"");
            }
        }
        self.forward_what_waited(user, fx);
    }

    pub(super) fn forward_what_waited(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let Some(waiting) = self.held.get_mut(user).and_then(|held| held.unforwarded.take()) else { return };
        for (parcel, via) in waiting {
            if self.forward(user, &parcel, via) == 0 {
                self.one_way_failed(user.clone(), parcel, None, fx);
            }
        }
    }
}
