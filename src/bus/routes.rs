//! The queues of this node's messages to users: each message stands in its user's queue, in the order in which it was
//! said, until the user's relay says that it has arrived everywhere.
//!
//! The relay is this node itself where it holds the user, else the oldest holder that can be reached. When messages come
//! back, or nobody hears the relay, or its life is over, the directory is read, and the whole queue goes to the next
//! relay, in order: what has arrived before is told by its number.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::hub::envelope::UserKey;
use crate::time::Micros;

use super::call::NodeId;
use super::message::{PeerId, Target, weight};
use super::table::UserTable;

/// How long what is known of a user of a foreign node is believed, unless that node says on `user:events` that the user
/// has left: it need not, and what it says may be missed.
pub(super) const FOREIGN_FOR: Duration = Duration::from_secs(1);
/// How long the directory is given when it names a holder that has just said the user is not there; doubled each time.
const PATIENCE: Duration = Duration::from_millis(5);
const PATIENCE_MAX: Duration = Duration::from_millis(160);
/// After so many answers, one after the other, that name only such a holder, it is asked again: it may not know that the
/// directory names it, and takes itself off then.
const ASKED_AGAIN_AFTER: u32 = 8;
/// How long a relay whose user has left is given to say of each message that it has what has become of it, before all
/// of them go again by another way.
const RELAY_ANSWERS_WITHIN: Duration = Duration::from_millis(300);
/// The part of all that may be kept that one user's queue may take.
const USER_SHARE: usize = 4;
/// Routes that are kept; beyond that the ones met first on a walk make room.
const ROUTES_MAX: usize = 1_000_000;

/// All routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    users: UserTable<Route>,
    /// The number of this process' last message.
    place: u64,
    /// Bytes of all queues.
    bytes: usize,
    /// Of these: bytes that have not been sent to a relay.
    waiting_bytes: usize,
    /// Messages in all queues.
    messages: usize,
    /// How often a queue was sent to this node's own connections.
    times: u32,
    /// Slots of routes whose way is not known, and of whose messages something was said since the last turn.
    answered: Vec<usize>,
}

/// Who has a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Relay {
    /// This node holds the user: by the number of the time that the queue was sent this way.
    Own(u32),
    Peer(PeerId),
}

/// A message in a queue.
#[derive(Debug)]
struct Queued {
    place: u64,
    frame: Bytes,
    /// The relay that it was sent to; `None`: it waits.
    sent: Option<Relay>,
    /// This node's connections need not get it: they have it, or others of the user had it before they opened.
    delivered_here: bool,
}

/// The way of a user's messages.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Not known.
    Unknown,
    /// The directory is being read. That there is nobody is believed of messages up to this place, which it was asked for.
    Locating { asked: u64 },
    /// This node holds the user; as in [`Relay::Own`].
    Own(u32),
    /// Another node of our kind does.
    To(Target),
    /// A foreign node does, as far as was known not long ago.
    Foreign { node: NodeId, until: Micros },
}

/// A user's queue, and its way.
#[derive(Debug)]
struct Route {
    way: Way,
    queue: VecDeque<Queued>,
    /// Messages of the queue that wait.
    waiting: usize,
    bytes: usize,
    /// The registration that has what was sent of the queue. When the next one is another, all of it is sent again.
    before: Option<Target>,
    /// A registration that has sent messages back.
    refused: Option<Target>,
    /// How often, one time after the other, the directory has named only that one.
    attempts: u32,
    /// The directory is not read before a timer has fired.
    is_paused: bool,
    /// Until when the relay before is given time to answer; `None`: it has not been waited for yet.
    answers_until: Option<Micros>,
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) place: u64,
    pub(super) frame: Bytes,
    pub(super) delivered_here: bool,
}

impl Route {
    fn new() -> Self {
        Self {
            way: Way::Unknown,
            queue: VecDeque::new(),
            waiting: 0,
            bytes: 0,
            before: None,
            refused: None,
            attempts: 0,
            is_paused: false,
            answers_until: None,
        }
    }

    fn at(&self, place: u64) -> Option<usize> {
        match self.queue.front() {
            Some(first) if first.place == place => Some(0),
            _ => self.queue.binary_search_by_key(&place, |queued| queued.place).ok(),
        }
    }
}

impl Routes {
    fn route(&self, slot: usize) -> Option<&Route> {
        self.users.at(slot).map(|(_, route)| route)
    }

    fn route_mut(&mut self, slot: usize) -> Option<&mut Route> {
        self.users.at_mut(slot).map(|(_, route)| route)
    }

    pub(super) fn slot_of(&self, user: &UserKey) -> Option<usize> {
        self.users.slot_of(user)
    }

    pub(super) fn user(&self, slot: usize) -> Option<&UserKey> {
        self.users.at(slot).map(|(user, _)| user)
    }

    pub(super) fn way(&self, slot: usize) -> Way {
        self.route(slot).map_or(Way::Unknown, |route| route.way.clone())
    }

    /// The relay that has the user's messages now, if that is another node of our kind.
    pub(super) fn target(&self, slot: usize) -> Option<Target> {
        match self.route(slot)?.way {
            Way::To(target) => Some(target),
            _ => None,
        }
    }

    /// Whether a user's queue has its share of `bytes_max`, or what waits for the directory has all of it.
    pub(super) fn is_full(&self, slot: usize, bytes_max: usize) -> bool {
        self.route(slot).is_some_and(|route| {
            let is_known = matches!(route.way, Way::To(_) | Way::Foreign { .. });
            route.bytes >= bytes_max / USER_SHARE || (!is_known && self.waiting_bytes >= bytes_max)
        })
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// Begins a route; its slot.
    pub(super) fn begin(&mut self, user: UserKey, random: u64) -> usize {
        self.make_room(random);
        self.users.insert(user.clone(), Route::new());
        self.users.slot_of(&user).unwrap_or_default()
    }

    /// Puts a message at the end of a queue.
    pub(super) fn enqueue(&mut self, slot: usize, frame: Bytes, delivered_here: bool) {
        self.place += 1;
        let (place, bytes) = (self.place, weight(&frame));
        let Some((_, route)) = self.users.at_mut(slot) else { return };
        self.bytes += bytes;
        self.waiting_bytes += bytes;
        self.messages += 1;
        route.bytes += bytes;
        route.waiting += 1;
        route.queue.push_back(Queued { place, frame, sent: None, delivered_here });
    }

    /// Forgets some routes when there are too many. Which ones does not matter much: the directory is asked again.
    fn make_room(&mut self, random: u64) {
        if self.users.len() < ROUTES_MAX {
            return;
        }
        let slots = self.users.slots();
        let start = random as usize % slots;
        let is_idle = |route: &Route| route.queue.is_empty() && !matches!(route.way, Way::Locating { .. });
        let forgotten: Vec<UserKey> = (0..64)
            .filter_map(|step| self.users.at((start + step) % slots))
            .filter(|(_, route)| is_idle(route))
            .map(|(user, _)| user.clone())
            .collect();
        forgotten.iter().for_each(|user| _ = self.users.remove(user));
    }

    /// Takes the messages that wait, in order; they count as sent to this relay.
    pub(super) fn take_waiting(&mut self, slot: usize, relay: Relay, out: &mut Vec<Outgoing>) {
        let Some((_, route)) = self.users.at_mut(slot) else { return };
        // Mostly the last ones wait.
        let mut from = route.queue.len();
        let mut left = route.waiting;
        while left > 0 && from > 0 {
            from -= 1;
            left -= usize::from(route.queue[from].sent.is_none());
        }
        for queued in route.queue.range_mut(from..).filter(|queued| queued.sent.is_none()) {
            queued.sent = Some(relay);
            self.waiting_bytes -= weight(&queued.frame);
            let Queued { place, ref frame, delivered_here, .. } = *queued;
            out.push(Outgoing { place, frame: frame.clone(), delivered_here });
        }
        route.waiting = 0;
        route.attempts = 0;
    }

    /// Whether a relay has a message.
    pub(super) fn is_sent(&self, slot: usize, place: u64, relay: Relay) -> bool {
        self.route(slot).is_some_and(|route| route.at(place).is_some_and(|at| route.queue[at].sent == Some(relay)))
    }

    /// A relay says that a message has arrived everywhere; one that is not the present one does not count.
    pub(super) fn settled(&mut self, slot: usize, place: u64, relay: Relay) {
        let Some(route) = self.route_mut(slot) else { return };
        let Some(at) = route.at(place).filter(|&at| route.queue[at].sent == Some(relay)) else { return };
        let removed = if at == 0 { route.queue.pop_front() } else { route.queue.remove(at) };
        let bytes = removed.map_or(0, |queued| weight(&queued.frame));
        route.bytes -= bytes;
        self.bytes -= bytes;
        self.messages -= 1;
        self.note_answer(slot);
    }

    /// A relay has delivered a message. Connections that open on this node from now on are too late for it.
    pub(super) fn delivered(&mut self, slot: usize, place: u64) {
        if let Some(route) = self.route_mut(slot)
            && let Some(at) = route.at(place)
        {
            route.queue[at].delivered_here = true;
            self.note_answer(slot);
        }
    }

    /// The queue may have waited for what was said of one of its messages.
    fn note_answer(&mut self, slot: usize) {
        let is_waiting = |route: &Route| matches!(route.way, Way::Unknown) && !route.queue.is_empty();
        if self.route(slot).is_some_and(is_waiting) && self.answered.last() != Some(&slot) {
            self.answered.push(slot);
        }
    }

    /// Routes whose queues may have waited for an answer that has come.
    pub(super) fn take_answered(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.answered)
    }

    fn wait_again(&mut self, slot: usize, is_meant: impl Fn(&Queued) -> bool) -> u64 {
        let Some((_, route)) = self.users.at_mut(slot) else { return 0 };
        let mut count = 0;
        for queued in route.queue.iter_mut().filter(|queued| queued.sent.is_some() && is_meant(queued)) {
            queued.sent = None;
            self.waiting_bytes += weight(&queued.frame);
            count += 1;
        }
        route.waiting += count;
        count as u64
    }

    /// A message came back from a relay; how long to leave the directory alone before it is read, if it is to be read.
    pub(super) fn returned(&mut self, slot: usize, place: u64, relay: Relay) -> Option<Duration> {
        let (_, route) = self.users.at_mut(slot)?;
        let at = route.at(place).filter(|&at| route.queue[at].sent == Some(relay))?;
        route.queue[at].sent = None;
        route.waiting += 1;
        self.waiting_bytes += weight(&route.queue[at].frame);
        match (&route.way, relay) {
            (&Way::To(target), Relay::Peer(peer)) if target.peer == peer => {
                route.before = Some(target);
                route.refused = Some(target);
                route.loses_way();
            }
            (Way::Own(_), Relay::Own(_)) => {
                route.before = None;
                route.loses_way();
            }
            (Way::Unknown, Relay::Own(_)) => route.before = None,
            (Way::Unknown, Relay::Peer(_)) => {
                self.note_answer(slot);
                return None;
            }
            _ => return None,
        }
        route.pause()
    }

    /// The user's messages go to this node's own connections, and by it to the other holders: all of them again.
    /// The number of this time.
    pub(super) fn go_own(&mut self, slot: usize) -> u32 {
        self.wait_again(slot, |_| true);
        self.times = self.times.wrapping_add(1);
        let time = self.times;
        if let Some(route) = self.route_mut(slot) {
            (route.way, route.before, route.refused) = (Way::Own(time), None, None);
        }
        time
    }

    /// This node's connections are gone. The home says of each message that it was handed whether it has been delivered.
    pub(super) fn leave_own(&mut self, slot: usize) {
        if let Some(route) = self.route_mut(slot)
            && matches!(route.way, Way::Own(_))
        {
            route.before = None;
            route.loses_way();
        }
    }

    /// Whether the home is yet to say of a message whether it has been delivered. What was said later has to wait for it.
    pub(super) fn waits_for_home(&self, slot: usize) -> bool {
        self.route(slot).is_some_and(|route| {
            let is_open = |queued: &Queued| matches!(queued.sent, Some(Relay::Own(_))) && !queued.delivered_here;
            matches!(route.way, Way::Unknown) && route.queue.iter().any(is_open)
        })
    }

    /// Whether the relay before is yet to say of messages that it has what has become of them. Sent again, they would come
    /// twice to a user who closes there and opens elsewhere. With how long it is waited for, if that begins now.
    pub(super) fn waits_for_relay(&mut self, slot: usize, now: Micros) -> (bool, Option<Duration>) {
        let Some(route) = self.route_mut(slot).filter(|route| route.waiting < route.queue.len()) else {
            return (false, None);
        };
        match route.answers_until {
            Some(until) => (now < until, None),
            None => {
                route.answers_until = Some(now.after(RELAY_ANSWERS_WITHIN));
                (true, Some(RELAY_ANSWERS_WITHIN))
            }
        }
    }

    /// The way is no longer known, and what was sent by it may be lost; all of it goes again.
    pub(super) fn lose_way(&mut self, slot: usize) -> u64 {
        let lost = self.wait_again(slot, |_| true);
        if let Some(route) = self.route_mut(slot) {
            route.before = None;
            if !matches!(route.way, Way::Locating { .. }) {
                route.way = Way::Unknown;
            }
        }
        lost
    }

    /// Whether messages of the queue, or all that follow, go to this peer.
    pub(super) fn is_sent_to(&self, slot: usize, peer: PeerId) -> bool {
        self.route(slot).is_some_and(|route| {
            let is_its = |target: Target| target.peer == peer;
            matches!(route.way, Way::To(target) if is_its(target))
                || route.before.is_some_and(is_its)
                || route.queue.iter().any(|queued| queued.sent == Some(Relay::Peer(peer)))
        })
    }

    /// The present relay is not heard: whether another one is to be looked for.
    pub(super) fn doubt_way(&mut self, slot: usize, peer: PeerId) -> bool {
        let Some(route) = self.route_mut(slot) else { return false };
        match route.way {
            Way::To(target) if target.peer == peer && !route.queue.is_empty() => {
                route.before = Some(target);
                route.loses_way();
                // It has been waited for long enough.
                route.answers_until = Some(Micros::default());
                true
            }
            _ => false,
        }
    }

    /// What was known of a user of a foreign node is not any more.
    pub(super) fn forget_foreign(&mut self, user: &UserKey) {
        if let Some(route) = self.users.get_mut(user)
            && matches!(route.way, Way::Foreign { .. })
        {
            route.way = Way::Unknown;
        }
    }

    pub(super) fn is_paused(&self, slot: usize) -> bool {
        self.route(slot).is_some_and(|route| route.is_paused)
    }

    pub(super) fn resume(&mut self, slot: usize) {
        if let Some(route) = self.route_mut(slot) {
            route.is_paused = false;
        }
    }

    /// Leaves the directory alone for a while; `None` when it is left alone already.
    pub(super) fn pause(&mut self, slot: usize) -> Option<Duration> {
        self.route_mut(slot)?.pause()
    }

    /// The directory is about to be read, for messages up to the place that is returned.
    pub(super) fn locates(&mut self, slot: usize) -> u64 {
        let Some(route) = self.route_mut(slot) else { return 0 };
        let asked = route.queue.back().map_or(0, |queued| queued.place);
        route.way = Way::Locating { asked };
        asked
    }

    /// The directory was not read after all; the messages that were sent are where they were.
    pub(super) fn not_located(&mut self, slot: usize) {
        if let Some(route) = self.route_mut(slot)
            && matches!(route.way, Way::Locating { .. })
        {
            route.way = Way::Unknown;
        }
    }

    /// The holder to go to, of those that the directory names, the oldest first: one that can be heard, if there is one.
    /// One that has just sent messages back is asked again only now and then. `None`, with `true`: only that one is named.
    pub(super) fn choose(&mut self, slot: usize, holders: &[(Target, bool)]) -> (Option<Target>, bool) {
        let Some(route) = self.route_mut(slot) else { return (None, false) };
        let refused = route.refused;
        let others = || holders.iter().filter(|(target, _)| Some(*target) != refused);
        let chosen = others().find(|(_, is_heard)| *is_heard).or_else(|| others().next()).map(|(target, _)| *target);
        if chosen.is_some() || holders.is_empty() {
            return (chosen, false);
        }
        route.attempts += 1;
        if route.attempts.is_multiple_of(ASKED_AGAIN_AFTER) { (refused, false) } else { (None, true) }
    }

    /// The way is known: to this registration. All that was sent goes again, unless it was sent to the same one.
    pub(super) fn go_to(&mut self, slot: usize, target: Target) -> u64 {
        let before = self.route(slot).and_then(|route| route.before);
        // Also what this node has delivered and others have yet to confirm: what is said later must not reach them first.
        let again = if before == Some(target) { 0 } else { self.wait_again(slot, |_| true) };
        if let Some(route) = self.route_mut(slot) {
            (route.way, route.before) = (Way::To(target), None);
            if route.refused != Some(target) {
                route.refused = None;
            }
        }
        again
    }

    /// The user is at a foreign node.
    pub(super) fn go_foreign(&mut self, slot: usize, node: NodeId, until: Micros) {
        self.wait_again(slot, |_| true);
        if let Some(route) = self.route_mut(slot) {
            (route.way, route.before, route.refused) = (Way::Foreign { node, until }, None, None);
        }
    }

    /// Takes all messages up to a place out of the queue.
    pub(super) fn drop_up_to(&mut self, slot: usize, place: u64) -> Vec<Outgoing> {
        self.wait_again(slot, |_| true);
        let Some((_, route)) = self.users.at_mut(slot) else { return Vec::new() };
        let mut dropped = Vec::new();
        while route.queue.front().is_some_and(|queued| queued.place <= place) {
            let Some(queued) = route.queue.pop_front() else { break };
            let bytes = weight(&queued.frame);
            route.bytes -= bytes;
            route.waiting -= 1;
            self.bytes -= bytes;
            self.waiting_bytes -= bytes;
            self.messages -= 1;
            let Queued { place, frame, delivered_here, .. } = queued;
            dropped.push(Outgoing { place, frame, delivered_here });
        }
        dropped
    }

    /// Nobody has the user, of the messages that the directory was asked for; they are dropped.
    pub(super) fn nowhere(&mut self, slot: usize, asked: u64) -> Vec<Outgoing> {
        let dropped = self.drop_up_to(slot, asked);
        if let Some(route) = self.route_mut(slot) {
            (route.way, route.before, route.refused) = (Way::Unknown, None, None);
        }
        // Absence is not remembered: the user may come at any moment.
        if let Some((user, route)) = self.users.at(slot)
            && route.queue.is_empty()
            && !route.is_paused
        {
            let user = user.clone();
            self.users.remove(&user);
        }
        dropped
    }

    /// Slots of all routes that have messages.
    pub(super) fn busy(&self) -> Vec<usize> {
        (0..self.users.slots()).filter(|&slot| self.route(slot).is_some_and(|route| !route.queue.is_empty())).collect()
    }

    /// The slot of a user whose queue has messages.
    pub(super) fn busy_slot_of(&self, user: &UserKey) -> Option<usize> {
        self.slot_of(user).filter(|&slot| self.route(slot).is_some_and(|route| !route.queue.is_empty()))
    }
}

impl Route {
    fn loses_way(&mut self) {
        (self.way, self.answers_until) = (Way::Unknown, None);
    }

    fn pause(&mut self) -> Option<Duration> {
        if self.is_paused {
            return None;
        }
        self.is_paused = true;
        Some((PATIENCE * 2u32.saturating_pow(self.attempts.min(8))).min(PATIENCE_MAX))
    }
}
