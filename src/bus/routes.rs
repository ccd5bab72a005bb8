//! Routes: where users are whom this node does not hold, or not alone.
//!
//! A route leads to the user's primary, the oldest holder that can be reached; it passes copies on to the others. What
//! a node sends to a user takes one way at a time. When that node answers that it no longer holds the user, further
//! messages wait, a *fence* is sent after those that are under way, and only when all of them have been handled or have
//! come back is the directory read again, and everything goes on in its order.

use std::time::Duration;

use bytes::Bytes;

use crate::hub::bus::Stamp;
use crate::hub::envelope::UserKey;
use crate::ids::ConnRef;
use crate::time::Micros;

use super::call::{Call, Holder, Incarnation, Location, NodeId, Reply};
use super::contract;
use super::state::{Asked, Bus, Effects, Later, ORIGIN_SELF, Parcel, Purpose, RETRY_AFTER};
use super::streams::Sent;
use super::table::UserTable;
use super::wire::{Draft, FORWARDED, Item, Kind, ONLY, SENDER_HOLDS, STALE};

/// How long what is known of a user of a foreign node is believed, unless that node says on `user:events` that the user
/// has left: it need not, and what it says may be missed.
const FOREIGN_FOR: Duration = Duration::from_secs(1);
/// How long the directory is given when it names a node that has just said the user is not there…
const PATIENCE: Duration = Duration::from_millis(10);
/// …and how often, before the user counts as offline.
const ATTEMPTS_MAX: u32 = 300;
/// Attempts after which that node is told what the directory says.
const ATTEMPTS_UNTIL_TOLD: u32 = 50;
/// How long copies to a holder that can't be reached hold up what is newer.
const DRAIN_WITHIN: Duration = Duration::from_secs(3);
const _: () = assert!(ATTEMPTS_UNTIL_TOLD < ATTEMPTS_MAX);
/// Routes that are kept; beyond that the ones met first on a walk make room.
const ROUTES_MAX: usize = 1_000_000;
/// Bytes that a parcel counts for beside its frame.
const PARCEL_BYTES: usize = 64;

/// The way to a user.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) state: RouteState,
    /// How often the directory has named a node that did not hold the user.
    attempts: u32,
    /// Those nodes, each with the user's version when it did not hold the user.
    avoid: Vec<(Holder, u64)>,
}

#[derive(Debug)]
pub(super) enum RouteState {
    /// The directory is being asked. It was asked for the first `asked_for` of these: an answer that there is nobody says
    /// nothing of what came later.
    Locating { queue: Vec<Parcel>, asked_for: usize },
    /// The directory will be asked again in a moment.
    Waiting(Vec<Parcel>),
    /// This node was the user's primary, and copies that it passed on are under way: what is newer waits for them.
    Draining { until: Micros, waits: Vec<u64>, queue: Vec<Parcel> },
    /// To a node of our kind.
    Settled { peer: u32, life: Incarnation, version: u64 },
    /// To a foreign node.
    Foreign { node: NodeId, until: Micros },
    /// The node does not hold the user any more: what was under way comes back, what is new waits.
    Fencing {
        peer: u32,
        /// The user's version as the messages under way have it.
        version: u64,
        /// The fence's number.
        fence: u64,
        returned: Vec<(u64, Parcel)>,
        queue: Vec<Parcel>,
    },
}

impl RouteState {
    fn locating(queue: Vec<Parcel>) -> Self {
        let asked_for = queue.len();
        Self::Locating { queue, asked_for }
    }
}

impl Route {
    fn new(state: RouteState) -> Self {
        Self { state, attempts: 0, avoid: Vec::new() }
    }

    /// Whether messages wait here.
    pub(super) fn is_unsettled(&self) -> bool {
        !matches!(self.state, RouteState::Settled { .. } | RouteState::Foreign { .. })
    }
}

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
        if self.has_no_room_for(&target) {
            return self.refuse(sender, fx);
        }
        let stamp = self.stamp(&target);
        let parcel = Parcel { frame, flags: if delivered_here { SENDER_HOLDS } else { 0 }, stamp };
        self.send(target, parcel, fx);
    }

    /// Whether what is kept for the user's node, or for users whose place is not known, has reached its bound.
    fn has_no_room_for(&self, user: &UserKey) -> bool {
        let bytes_max = self.config.link_bytes_max;
        match self.routes.get(user).map(|route| &route.state) {
            Some(RouteState::Settled { peer, .. }) => self.peers[*peer as usize].link.unacked_bytes() >= bytes_max,
            Some(RouteState::Foreign { .. }) => false,
            _ => self.waiting_bytes >= bytes_max,
        }
    }

    /// A message on the contract's channel.
    pub(super) fn contract_unicast(&mut self, user: UserKey, frame: Bytes, fx: &mut dyn Effects) {
        let home = self.home(&user);
        if self.held.get(&user).is_some_and(|held| held.is_here()) {
            if !fx.has_room(home) {
                self.counters.lost += 1;
                return;
            }
            let stamp = self.stamp(&user);
            return self.deliver_and_forward(user, Parcel { frame, flags: 0, stamp }, fx);
        }
        if self.waiting_bytes >= self.config.link_bytes_max {
            self.counters.lost += 1;
            return;
        }
        let stamp = self.stamp(&user);
        self.route(user, Parcel { frame, flags: 0, stamp }, fx);
    }

    /// The mark of this node's next message to a user. Only what was accepted has one: a place that nothing stands at
    /// would be waited for.
    fn stamp(&mut self, user: &UserKey) -> Stamp {
        if self.sent.get(user).is_none() {
            let forgotten = self.make_room_in(&self.sent, |_| true);
            forgotten.iter().for_each(|user| _ = self.sent.remove(user));
            let stream = self.new_stream();
            self.sent.insert(user.clone(), stream);
        }
        self.sent.get_mut(user).map(|sent| sent.next(ORIGIN_SELF)).unwrap_or_default()
    }

    /// A stream, later than all before.
    pub(super) fn new_stream(&mut self) -> Sent {
        Sent::new(self.members.incarnation + self.next_number())
    }

    /// The mark of an item of a link: of the one from a peer, or, with [`ORIGIN_SELF`], of one to it.
    pub(super) fn stamp_of(&mut self, from: u32, item: &Item) -> Stamp {
        let origin = match item.origin.as_str() {
            "" => from,
            node if node == self.config.node_id => ORIGIN_SELF,
            _ => self.peer(&item.origin),
        };
        Stamp { origin, stream: item.stream, place: item.place }
    }

    /// What an item says of the node that a stream is of: nothing where that is this one.
    pub(super) fn origin_name(&self, origin: u32) -> NodeId {
        if origin == ORIGIN_SELF { NodeId::default() } else { self.peers[origin as usize].node.clone() }
    }

    /// Puts a message on a link; its number there.
    pub(super) fn push_message(
        &mut self,
        at: u32,
        kind: Kind,
        flags: u8,
        user: &UserKey,
        number: u64,
        parcel: &Parcel,
    ) -> u64 {
        let Parcel { frame, stamp: Stamp { origin, stream, place }, .. } = parcel;
        let origin = self.origin_name(*origin);
        let (stream, place) = (*stream, *place);
        let draft = Draft { kind, flags, user: &user.name, number, origin: &origin, stream, place, frame };
        self.peers[at as usize].link.push_item(&draft)
    }

    /// Sends a message of this node: as a holder of the user, or by the user's route.
    fn send(&mut self, user: UserKey, parcel: Parcel, fx: &mut dyn Effects) {
        if parcel.flags & SENDER_HOLDS != 0 && self.acts_as_primary(&user) {
            // What went by another primary arrives first.
            self.fence_route(&user);
            if !self.routes.get(&user).is_some_and(Route::is_unsettled) {
                let via = self.via_self(0, &parcel);
                self.forward(&user, &parcel, via);
                return;
            }
        }
        self.route(user, parcel, fx);
    }

    /// Takes a message on its user's route.
    pub(super) fn route(&mut self, user: UserKey, parcel: Parcel, fx: &mut dyn Effects) {
        let Some(route) = self.routes.get_mut(&user) else {
            self.counters.cache_misses += 1;
            let forgotten = self.make_room_in(&self.routes, |route| !route.is_unsettled());
            forgotten.iter().for_each(|user| _ = self.routes.remove(user));
            self.waiting_bytes += weight(&parcel.frame);
            self.routes.insert(user.clone(), Route::new(RouteState::locating(vec![parcel])));
            return self.locate(user, fx);
        };
        match &mut route.state {
            RouteState::Settled { peer, life, version } => {
                let (at, life, version) = (*peer, *life, *version);
                let peer = &self.peers[at as usize];
                if peer.life == life && peer.dead < life {
                    self.counters.cache_hits += 1;
                    self.counters.unicasts_out += 1;
                    self.push_message(at, Kind::Unicast, parcel.flags, &user, version, &parcel);
                    return;
                }
            }
            RouteState::Foreign { node, until } => {
                if self.now < *until {
                    self.counters.cache_hits += 1;
                    let node = node.clone();
                    return self.publish_foreign(node, &user, &parcel, fx);
                }
            }
            RouteState::Locating { queue, .. }
            | RouteState::Waiting(queue)
            | RouteState::Draining { queue, .. }
            | RouteState::Fencing { queue, .. } => {
                self.waiting_bytes += weight(&parcel.frame);
                queue.push(parcel);
                return;
            }
        }
        self.counters.cache_misses += 1;
        self.waiting_bytes += weight(&parcel.frame);
        route.state = RouteState::locating(vec![parcel]);
        self.locate(user, fx);
    }

    /// Whom to forget so that there is room for one more user. Which ones does not matter much: who writes to them again
    /// asks again, and begins another stream.
    fn make_room_in<T>(&self, table: &UserTable<T>, may_go: impl Fn(&T) -> bool) -> Vec<UserKey> {
        if table.len() < ROUTES_MAX {
            return Vec::new();
        }
        let slots = table.slots();
        let start = self.config.hasher.hash_one(self.now.0) as usize % slots;
        (0..64)
            .filter_map(|step| table.at((start + step) % slots))
            .filter(|(_, entry)| may_go(entry))
            .map(|(user, _)| user.clone())
            .collect()
    }

    fn locate(&mut self, user: UserKey, fx: &mut dyn Effects) {
        let call = Call::Locate { user: user.name.clone() };
        self.call(Purpose::Route(user), call, fx);
    }

    pub(super) fn locate_again(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        if let Some(route) = self.routes.get_mut(user)
            && let RouteState::Waiting(queue) = &mut route.state
        {
            route.state = RouteState::locating(std::mem::take(queue));
            self.locate(user.clone(), fx);
        }
    }

    /// The directory has said where a user is.
    pub(super) fn located(&mut self, user: &UserKey, reply: Reply, fx: &mut dyn Effects) {
        let Some(route) = self.routes.get_mut(user) else { return };
        let RouteState::Locating { queue, asked_for } = &mut route.state else { return };
        let asked_for = *asked_for;
        let mut queue = std::mem::take(queue);
        let Reply::Located(location) = reply else {
            route.state = RouteState::Waiting(queue);
            return self.later(RETRY_AFTER, Later::Locate(user.clone()));
        };
        let is_here = self.held.get(user).is_some_and(|held| held.is_here());
        route.avoid.retain(|(_, version)| location.version <= *version);
        let avoid: Vec<Holder> = route.avoid.iter().map(|(holder, _)| holder.clone()).collect();
        if location.holders.iter().any(|holder| holder.node == self.config.node_id) {
            self.take_off_if_unknown(user);
        }
        let chosen = self.choose(&location, is_here, &avoid);
        let names_one_that_does_not_hold =
            chosen.is_none() && location.holders.iter().any(|holder| self.is_alive(holder));
        if names_one_that_does_not_hold && self.wait_for_removal(user, &avoid) {
            if let Some(route) = self.routes.get_mut(user) {
                route.state = RouteState::Waiting(queue);
            }
            return self.later(PATIENCE, Later::Locate(user.clone()));
        }
        let is_nowhere = location.holders.is_empty() && location.foreign.is_none() && !is_here;
        if is_nowhere && self.now < self.members.restored_at {
            if let Some(route) = self.routes.get_mut(user) {
                route.state = RouteState::Waiting(queue);
            }
            return self.later(RETRY_AFTER, Later::Locate(user.clone()));
        }
        if is_nowhere && queue.len() > asked_for {
            // What came meanwhile is asked for in its turn.
            let later = queue.split_off(asked_for);
            if let Some(route) = self.routes.get_mut(user) {
                route.state = RouteState::locating(later);
                self.locate(user.clone(), fx);
            }
            self.waiting_bytes -= total_weight(&queue);
            return self.count_offline(&queue);
        }
        self.waiting_bytes -= total_weight(&queue);
        // What has come back by different ways; between nodes no order is promised.
        queue.sort_by_key(|parcel| (parcel.stamp.origin, parcel.stamp.stream, parcel.stamp.place));
        match chosen {
            Some(holder) if holder.node == self.config.node_id => {
                self.routes.remove(user);
                if is_here {
                    self.learn_holders(user, &location, fx);
                    queue.into_iter().for_each(|parcel| self.deliver_and_forward(user.clone(), parcel, fx));
                    self.open_if_ready(user, fx);
                } else {
                    self.count_offline(&queue);
                }
            }
            Some(holder) => {
                // Who holds the user too has the user's own connections get it first, and in order.
                let queue = if is_here { self.deliver_first(user, queue, fx) } else { queue };
                self.settle(user, &holder, location.version, queue, fx);
            }
            None => match location.foreign {
                Some(node) if !self.peer_index.contains_key(&node) && node != self.config.node_id => {
                    let until = self.now.after(FOREIGN_FOR);
                    queue.iter().for_each(|parcel| self.publish_foreign(node.clone(), user, parcel, fx));
                    self.routes.insert(user.clone(), Route::new(RouteState::Foreign { node, until }));
                }
                _ => {
                    // Absence is not remembered: the user may come at any moment.
                    self.routes.remove(user);
                    self.count_offline(&queue);
                    self.open_if_ready(user, fx);
                }
            },
        }
    }

    /// The directory names only holders who have said that they are none: whether to ask it again in a moment. In the
    /// long run they are told, for Redis may have lost a removal.
    fn wait_for_removal(&mut self, user: &UserKey, avoid: &[Holder]) -> bool {
        let Some(route) = self.routes.get_mut(user) else { return false };
        route.attempts += 1;
        let attempts = route.attempts;
        if attempts.is_multiple_of(ATTEMPTS_UNTIL_TOLD) {
            for peer in avoid.iter().filter_map(|holder| self.peer_index.get(&holder.node)) {
                self.peers[*peer as usize].link.push(Kind::Fence, STALE, &user.name, 0, b"");
            }
        }
        attempts < ATTEMPTS_MAX
    }

    /// Which of the holders decides: the oldest that can be reached; without one, the oldest that is not known to be
    /// dead, for it may come back. Not one that has said that it does not hold the user.
    fn choose(&self, location: &Location, is_here: bool, avoid: &[Holder]) -> Option<Holder> {
        let holds = |holder: &Holder| {
            self.is_alive(holder) && !avoid.contains(holder) && (is_here || holder.node != self.config.node_id)
        };
        let alive: Vec<&Holder> = location.holders.iter().filter(|holder| holds(holder)).collect();
        let reachable = alive.iter().find(|holder| self.is_reachable(holder));
        match reachable.or(alive.first()) {
            Some(&holder) => Some(holder.clone()),
            // The user is just about to be registered here.
            None => {
                is_here.then(|| Holder { node: self.config.node_id.clone(), incarnation: self.members.incarnation })
            }
        }
    }

    fn is_reachable(&self, holder: &Holder) -> bool {
        self.peer_index.get(&holder.node).is_none_or(|&peer| !self.peers[peer as usize].is_unreachable)
    }

    fn settle(&mut self, user: &UserKey, holder: &Holder, version: u64, queue: Vec<Parcel>, fx: &mut dyn Effects) {
        let peer = self.peer(&holder.node);
        self.met(peer, holder.incarnation, fx);
        let state = RouteState::Settled { peer, life: holder.incarnation, version };
        if let Some(route) = self.routes.get_mut(user) {
            route.state = state;
            route.attempts = 0;
        }
        let has_sent = !queue.is_empty();
        for parcel in queue {
            self.counters.unicasts_out += 1;
            self.push_message(peer, Kind::Unicast, parcel.flags, user, version, &parcel);
        }
        if has_sent && self.held.get(user).is_some_and(|held| held.is_here() && !held.is_open()) {
            // They come back as copies, before the connections open to what is newer.
            return self.fence_route(user);
        }
        self.open_if_ready(user, fx);
    }

    /// A foreign node has said that a user came or left: where the user is now is to be asked.
    pub(super) fn forget_foreign(&mut self, user: &UserKey) {
        if self.routes.get(user).is_some_and(|route| matches!(route.state, RouteState::Foreign { .. })) {
            self.routes.remove(user);
        }
    }

    fn count_offline(&mut self, queue: &[Parcel]) {
        self.counters.offline += queue.iter().filter(|parcel| parcel.flags & SENDER_HOLDS == 0).count() as u64;
    }

    fn publish_foreign(&mut self, node: NodeId, user: &UserKey, parcel: &Parcel, fx: &mut dyn Effects) {
        match contract::write_order(Some(&user.name), &parcel.frame) {
            Some(json) => {
                self.counters.contract_out += 1;
                self.call(Purpose::PublishContract, Call::PublishContract { node, json }, fx);
            }
            None => self.counters.invalid += 1,
        }
    }

    /// A message of ours found nobody at a peer.
    pub(super) fn bounced(&mut self, at: u32, item: Item, fx: &mut dyn Effects) {
        let stamp = self.stamp_of(at, &item);
        let Item { flags, user, number, frame, .. } = item;
        let user = self.key(&user);
        let parcel = Parcel { frame, flags: flags & SENDER_HOLDS, stamp };
        if flags & FORWARDED != 0 {
            self.refresh(&user, Some(at), fx);
            // Where several copies went, others have arrived.
            if flags & ONLY != 0 {
                self.one_way_failed(user, parcel, None, fx);
            }
            return;
        }
        self.counters.rerouted += 1;
        let begins = self.hold_for_fence(&user, at, number, parcel);
        if begins {
            // Also when the route has gone on: the peer sends everything back until a fence has come.
            self.send_fence(&user, at);
        }
    }

    fn send_fence(&mut self, user: &UserKey, at: u32) {
        let number = self.ask_peer(at, Asked::Fence(user.clone()));
        if let Some(route) = self.routes.get_mut(user)
            && let RouteState::Fencing { peer, fence, .. } = &mut route.state
            && *peer == at
        {
            *fence = number;
        }
    }

    /// Keeps a message that came back; whether a fence is to be sent.
    pub(super) fn hold_for_fence(&mut self, user: &UserKey, at: u32, seq: u64, parcel: Parcel) -> bool {
        self.waiting_bytes += weight(&parcel.frame);
        match self.routes.get_mut(user).map(|route| &mut route.state) {
            Some(RouteState::Fencing { peer, returned, .. }) if *peer == at => {
                returned.push((seq, parcel));
                false
            }
            // The route has gone on without it, which only a lost route can do: it is put in its place once the way is
            // known.
            Some(
                RouteState::Locating { queue, .. }
                | RouteState::Waiting(queue)
                | RouteState::Draining { queue, .. }
                | RouteState::Fencing { queue, .. },
            ) => {
                queue.push(parcel);
                true
            }
            Some(state) => {
                let version = if let RouteState::Settled { version, .. } = state { *version } else { 0 };
                let returned = vec![(seq, parcel)];
                *state = RouteState::Fencing { peer: at, version, fence: 0, returned, queue: Vec::new() };
                true
            }
            None => {
                let returned = vec![(seq, parcel)];
                let state = RouteState::Fencing { peer: at, version: 0, fence: 0, returned, queue: Vec::new() };
                self.routes.insert(user.clone(), Route::new(state));
                true
            }
        }
    }

    /// Has a user's messages wait until those under way have been handled, if there is a route they may be on.
    pub(super) fn fence_route(&mut self, user: &UserKey) {
        if let Some(route) = self.routes.get_mut(user)
            && let RouteState::Settled { peer, life, version } = route.state
            && self.peers[peer as usize].life == life
            && self.peers[peer as usize].dead < life
        {
            route.state = RouteState::Fencing { peer, version, fence: 0, returned: Vec::new(), queue: Vec::new() };
            self.send_fence(user, peer);
        }
    }

    /// The user has left: what this node sends next waits until the copies that it passed on have been handled, or have
    /// come back.
    pub(super) fn drain_copies(&mut self, user: &UserKey) {
        if self.routes.get(user).is_some() {
            return;
        }
        let waits = self.fence_copies(user, ORIGIN_SELF);
        if !waits.is_empty() {
            let until = self.now.after(DRAIN_WITHIN);
            self.routes.insert(user.clone(), Route::new(RouteState::Draining { until, waits, queue: Vec::new() }));
            self.draining.push(user.clone());
        }
    }

    /// Goes on with users whose copies have arrived.
    pub(super) fn keep_draining(&mut self, fx: &mut dyn Effects) {
        for user in std::mem::take(&mut self.draining) {
            let Some(RouteState::Draining { until, waits, .. }) = self.routes.get(&user).map(|route| &route.state)
            else {
                continue;
            };
            let is_late = self.now >= *until;
            if !waits.iter().all(|&number| self.is_answered(number, is_late)) {
                self.draining.push(user);
                continue;
            }
            let Some(RouteState::Draining { queue, .. }) = self.routes.remove(&user).map(|route| route.state) else {
                continue;
            };
            if queue.is_empty() {
                self.open_if_ready(&user, fx);
            } else {
                self.routes.insert(user.clone(), Route::new(RouteState::locating(queue)));
                self.locate(user, fx);
            }
        }
    }

    /// Whether all that messages wait for is an answer of a node that can't be reached.
    pub(super) fn waits_for_unreachable(&self, user: &UserKey) -> bool {
        self.routes.get(user).is_some_and(
            |route| matches!(route.state, RouteState::Fencing { peer, .. } if self.peers[peer as usize].is_unreachable),
        )
    }

    /// Everything that was under way to a peer for a user has been handled or has come back, before this fence, or
    /// because that life is over.
    pub(super) fn fence_passed(
        &mut self,
        user: &UserKey,
        at: u32,
        life: Incarnation,
        number: Option<u64>,
        fx: &mut dyn Effects,
    ) {
        let node = self.peers[at as usize].node.clone();
        let Some(route) = self.routes.get_mut(user) else { return };
        let RouteState::Fencing { peer, version, fence, returned, queue } = &mut route.state else { return };
        if *peer != at || number.is_some_and(|number| number != *fence) {
            return;
        }
        let found_nobody = !returned.is_empty();
        let version = *version;
        returned.sort_by_key(|(seq, _)| *seq);
        let mut all: Vec<Parcel> = returned.drain(..).map(|(_, parcel)| parcel).collect();
        all.append(queue);
        if found_nobody {
            route.avoid.retain(|(holder, _)| holder.node != node);
            route.avoid.push((Holder { node, incarnation: life }, version));
        }
        route.state = RouteState::locating(all);
        self.locate(user.clone(), fx);
    }
}

fn total_weight(queue: &[Parcel]) -> usize {
    queue.iter().map(|parcel| weight(&parcel.frame)).sum()
}

/// What a message that waits counts for, in bytes.
pub(super) fn weight(frame: &Bytes) -> usize {
    PARCEL_BYTES + frame.len()
}
