//! Other nodes of our kind, and the links to them: their lives, what is on its way to them, what has come from them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;

use crate::time::Micros;

use super::call::{Holder, Incarnation, NodeId};
use super::directory::ANSWERS_WITHIN;
use super::inbound::Inbound;
use super::link::{Accept, Ends, Link};
use super::lives::{Heard, Meeting, SeenPeer};
use super::message::{OriginId, PeerId, Source, Stamp, Target};
use super::wire::{Draft, Header, Item, Kind, Origin};

/// How often messages look for another relay while what is published for theirs reaches nobody.
const GO_AROUND_EVERY: Duration = Duration::from_millis(250);

/// This node among the peers: of messages that an earlier process of it has sent.
const OWN: PeerId = PeerId(u32::MAX);

/// All other nodes that were heard of.
#[derive(Debug)]
pub(super) struct Peers {
    node: NodeId,
    /// This process: its first life; 0 before it has one.
    process: Incarnation,
    /// Its present life.
    life: Incarnation,
    all: Vec<Peer>,
    index: HashMap<NodeId, PeerId, RandomState>,
    origins: HashMap<(PeerId, Incarnation), OriginId, RandomState>,
    /// The same by their places.
    origin_names: Vec<(PeerId, Incarnation)>,
    /// The number of this process' last broadcast.
    broadcast_place: u64,
}

/// Another node of our kind.
#[derive(Debug)]
pub(super) struct Peer {
    node: NodeId,
    /// Its life, as far as is known; 0: not at all.
    life: Incarnation,
    /// That life and all before it are over.
    dead: Incarnation,
    /// It takes broadcasts.
    is_live: bool,
    /// Its process; 0 until it has sent something.
    process: Incarnation,
    /// Messages of that process.
    origin: OriginId,
    /// Since when what was published for it has reached nobody: it is gone, or cut off from Redis.
    unheard_since: Option<Micros>,
    /// When the last publish began that reached nobody.
    unheard_at: Micros,
    /// When its users' messages looked for another relay last, because it is not heard.
    went_around_at: Micros,
    link: Link,
    /// Grows with each link that begins anew.
    link_number: u32,
    inbound: Inbound,
    /// Unicasts of this node's users that the peer has not answered, by their numbers on the link.
    in_flight: VecDeque<InFlight>,
    /// Pushes that the peer has not acknowledged, by their numbers on the link, with their receipts.
    pushes: VecDeque<(u64, u64)>,
    /// The last broadcast of its process that came.
    last_broadcast: u64,
    /// The number of our hello, while we wait for its acknowledgement.
    hello: Option<u64>,
    /// What looks at the registry have seen of it.
    pub(super) seen: SeenPeer,
}

/// A message to a user that a peer has not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    seq: u64,
    /// The slot of the user's route; `None` once it is answered.
    pub(super) route: Option<usize>,
    pub(super) place: u64,
}

/// What was on its way over a link that has ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) in_flight: Vec<InFlight>,
    /// Receipts of pushes.
    pub(super) pushes: Vec<u64>,
    broadcasts: Vec<Item>,
}

impl Peers {
    pub(super) fn new(node: NodeId, hasher: &RandomState) -> Self {
        Self {
            node,
            process: 0,
            life: 0,
            all: Vec::new(),
            index: HashMap::with_hasher(hasher.clone()),
            origins: HashMap::with_hasher(hasher.clone()),
            origin_names: Vec::new(),
            broadcast_place: 0,
        }
    }

    /// The place of a node among the peers.
    pub(super) fn id(&mut self, node: &NodeId) -> PeerId {
        if let Some(&known) = self.index.get(node) {
            return known;
        }
        let id = PeerId(self.all.len() as u32);
        self.all.push(Peer {
            node: node.clone(),
            life: 0,
            dead: 0,
            is_live: false,
            process: 0,
            origin: OriginId::SELF,
            unheard_since: None,
            unheard_at: Micros::default(),
            went_around_at: Micros::default(),
            link: Link::new(self.ends(0)),
            link_number: 0,
            inbound: Inbound::default(),
            in_flight: VecDeque::new(),
            pushes: VecDeque::new(),
            last_broadcast: 0,
            hello: None,
            seen: SeenPeer::default(),
        });
        self.index.insert(node.clone(), id);
        id
    }

    fn ends(&self, to_incarnation: Incarnation) -> Ends {
        Ends { from: self.node.clone(), from_process: self.process, from_incarnation: self.life, to_incarnation }
    }

    fn get(&self, id: PeerId) -> &Peer {
        &self.all[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> &mut Peer {
        &mut self.all[id.0 as usize]
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> + use<> {
        (0..self.all.len() as u32).map(PeerId)
    }

    /// Peers that live, as far as is known.
    pub(super) fn live(&self) -> impl Iterator<Item = PeerId> {
        self.ids().filter(|&id| self.get(id).is_live)
    }

    /// Whether a node is one of our kind that lives. What listens under the name of one that has ended may be of another
    /// kind.
    pub(super) fn is_present_node(&self, node: &NodeId) -> bool {
        self.index.get(node).is_some_and(|&id| self.is_live(id))
    }

    /// The last run of Redis in which a peer was in the registry.
    pub(super) fn entered_run(&self, id: PeerId) -> Option<u64> {
        self.get(id).seen.entered_run
    }

    pub(super) fn node(&self, id: PeerId) -> &NodeId {
        &self.get(id).node
    }

    pub(super) fn life(&self, id: PeerId) -> Incarnation {
        self.get(id).life
    }

    pub(super) fn is_live(&self, id: PeerId) -> bool {
        self.get(id).is_live
    }

    pub(super) fn was_declared_dead(&self, id: PeerId, life: Incarnation) -> bool {
        life <= self.get(id).dead
    }

    /// Whether this life of a peer is its present one and goes on, as far as is known.
    pub(super) fn is_present(&self, id: PeerId, life: Incarnation) -> bool {
        let peer = self.get(id);
        peer.life == life && peer.dead < life
    }

    /// The peer that a holder is, if its life may go on. Not for this node itself.
    pub(super) fn usable(&mut self, holder: &Holder) -> Option<Target> {
        let id = self.id(&holder.node);
        let peer = self.get(id);
        let goes_on = holder.incarnation > peer.dead && holder.incarnation >= peer.life;
        goes_on.then_some(Target { peer: id, life: holder.incarnation, op: holder.op })
    }

    /// Since when what is published for the peer has reached nobody.
    pub(super) fn unheard_since(&self, id: PeerId) -> Option<Micros> {
        self.get(id).unheard_since
    }

    /// Whether what is published for the peer has reached nobody for a while.
    pub(super) fn is_unheard(&self, now: Micros, id: PeerId) -> bool {
        self.get(id).unheard_since.is_some_and(|since| now.since(since) >= ANSWERS_WITHIN)
    }

    /// The same, and what was asked at a time cannot have reached it, or was not answered for as long. It may have come back
    /// just before.
    pub(super) fn is_given_up(&self, now: Micros, id: PeerId, asked_at: Micros) -> bool {
        let was_asked_in_vain = self.get(id).unheard_at >= asked_at || now.since(asked_at) >= ANSWERS_WITHIN;
        was_asked_in_vain && self.is_unheard(now, id)
    }

    /// What a publish for the peer that began at a time has found.
    pub(super) fn published(&mut self, now: Micros, id: PeerId, begun_at: Micros, receivers: Option<u64>) -> Heard {
        let peer = self.get_mut(id);
        peer.link.published();
        if receivers == Some(0) {
            peer.unheard_at = peer.unheard_at.max(begun_at);
        }
        match receivers {
            Some(0) if peer.unheard_since.is_some() => Heard::No,
            Some(0) => {
                peer.unheard_since = Some(now);
                peer.went_around_at = now;
                Heard::NoLonger
            }
            Some(_) => {
                peer.unheard_since = None;
                Heard::Yes
            }
            None => Heard::Yes,
        }
    }

    /// Whether messages may look for another relay again: not with each publish that reaches nobody.
    pub(super) fn may_go_around(&mut self, now: Micros, id: PeerId) -> bool {
        let peer = self.get_mut(id);
        let may = now.since(peer.went_around_at) >= GO_AROUND_EVERY;
        if may {
            peer.went_around_at = now;
        }
        may
    }

    // Lives.

    /// Takes note of a life of a peer. With [`Meeting::New`] the caller ends the one before ([`Self::begin_link`]).
    pub(super) fn meet(&mut self, id: PeerId, life: Incarnation) -> Meeting {
        let peer = self.get_mut(id);
        if life <= peer.dead || life < peer.life {
            return Meeting::Past;
        }
        if life > peer.life {
            return Meeting::New;
        }
        peer.is_live = true;
        Meeting::Present
    }

    /// Begins a link to another life of a peer, which goes on or is over; what was under way to the one before it.
    /// Broadcasts that it has not acknowledged go to the new one.
    pub(super) fn begin_link(&mut self, id: PeerId, life: Incarnation, is_over: bool) -> Ended {
        let fresh = Link::new(self.ends(life));
        let peer = self.get_mut(id);
        peer.life = life;
        peer.is_live = !is_over;
        if is_over {
            peer.dead = peer.dead.max(life);
        }
        peer.unheard_since = None;
        peer.seen.without_lease_since = None;
        peer.seen.looks_without_it = 0;
        let ended = peer.replace_link(fresh);
        if !is_over {
            peer.repeat_broadcasts(&ended);
        }
        ended
    }

    /// This node has a new life: all links begin anew. What was under way goes again by its users' queues.
    pub(super) fn begin_own_life(&mut self, life: Incarnation) {
        if self.process == 0 {
            self.process = life;
        }
        self.life = life;
        for id in self.ids() {
            let fresh = Link::new(self.ends(self.get(id).life));
            let peer = self.get_mut(id);
            let ended = peer.replace_link(fresh);
            peer.repeat_broadcasts(&ended);
        }
    }

    // Items.

    /// Puts an item on the link to a peer; its number there.
    pub(super) fn push(&mut self, id: PeerId, item: &Draft<'_>) -> u64 {
        self.get_mut(id).link.push(item)
    }

    /// Sends a message of this node to a user's relay.
    pub(super) fn push_unicast(&mut self, to: Target, user: &str, frame: &Bytes, route: usize, place: u64) {
        let draft = Draft { frame, ..Draft::about(Kind::Unicast, user, to.op, place) };
        let peer = self.get_mut(to.peer);
        let seq = peer.link.push(&draft);
        peer.in_flight.push_back(InFlight { seq, route: Some(route), place });
    }

    /// Pushes a message to another holder of its user; `receipt` is told when that has it.
    pub(super) fn push_copy(&mut self, to: Target, user: &str, stamp: Stamp, frame: &Bytes, receipt: u64) {
        let (node, process) = match stamp.origin {
            OriginId::SELF => (NodeId::default(), 0),
            OriginId(at) => {
                let (peer, process) = self.origin_names[at as usize];
                (if peer == OWN { self.node.clone() } else { self.node(peer).clone() }, process)
            }
        };
        let origin = Origin { node: node.as_str(), process };
        let draft = Draft { origin, frame, ..Draft::about(Kind::Push, user, to.op, stamp.place) };
        let peer = self.get_mut(to.peer);
        let seq = peer.link.push(&draft);
        peer.pushes.push_back((seq, receipt));
    }

    /// Sends a broadcast to all peers that live; how many.
    pub(super) fn push_broadcast(&mut self, frame: &Bytes) -> u64 {
        self.broadcast_place += 1;
        let draft = Draft { place: self.broadcast_place, frame, ..Draft::of(Kind::Broadcast, 0) };
        let live = self.all.iter_mut().filter(|peer| peer.is_live);
        live.map(|peer| peer.link.push(&draft)).count() as u64
    }

    /// The stamp of an item that came from a peer.
    pub(super) fn stamp_of(&mut self, from: PeerId, item: &Item) -> Stamp {
        let origin = match item.origin.node.as_str() {
            "" => self.get(from).origin,
            node if node == self.node && item.origin.process == self.process => OriginId::SELF,
            node => {
                let peer = if node == self.node { OWN } else { self.id(&item.origin.node) };
                self.origin(peer, item.origin.process)
            }
        };
        Stamp { origin, place: item.place }
    }

    fn origin(&mut self, peer: PeerId, process: Incarnation) -> OriginId {
        *self.origins.entry((peer, process)).or_insert_with(|| {
            self.origin_names.push((peer, process));
            OriginId(self.origin_names.len() as u32 - 1)
        })
    }

    /// The source of the item of a peer that is being handled.
    pub(super) fn source(&self, id: PeerId) -> Source {
        let peer = self.get(id);
        Source::Peer { peer: id, link: peer.link_number, seq: peer.link.handling() }
    }

    /// Tells a peer that its message has reached the user.
    pub(super) fn settle(&mut self, now: Micros, id: PeerId, link: u32, seq: u64) {
        let peer = self.get_mut(id);
        if peer.link_number == link {
            peer.link.settle(now, seq);
        }
    }

    /// Tells a peer that its message has found nobody.
    pub(super) fn give_back(&mut self, id: PeerId, link: u32, seq: u64) {
        let peer = self.get_mut(id);
        if peer.link_number == link {
            peer.link.push(&Draft::of(Kind::Returned, seq));
        }
    }

    /// Tells a peer at once what has settled, and which messages have been delivered here of those that have not; the latter by
    /// the states of the link and their numbers. Who is about to deliver them itself need not.
    pub(super) fn tell_settled(&mut self, id: PeerId, delivered: &[(u32, u64)]) {
        let peer = self.get_mut(id);
        peer.link.push_settled();
        let mut numbers: Vec<(u64, u64)> =
            delivered.iter().filter(|(link, _)| *link == peer.link_number).map(|&(_, seq)| (seq, seq)).collect();
        numbers.sort_unstable();
        peer.link.push_ranges(Kind::Delivered, &numbers);
    }

    /// Our messages that a peer says it has delivered: the ranges of their numbers.
    pub(super) fn delivered(&self, id: PeerId, ranges: &[u8], mut each: impl FnMut(usize, u64)) {
        let in_flight = &self.get(id).in_flight;
        for (first, last) in numbers(ranges) {
            let from = in_flight.partition_point(|message| message.seq < first);
            for message in in_flight.range(from..).take_while(|message| message.seq <= last) {
                if let Some(route) = message.route {
                    each(route, message.place);
                }
            }
        }
    }

    /// Our messages that a peer says have settled: the ranges of their numbers.
    pub(super) fn settled(&mut self, id: PeerId, ranges: &[u8], mut each: impl FnMut(usize, u64)) {
        let peer = self.get_mut(id);
        for (first, last) in numbers(ranges) {
            let from = peer.in_flight.partition_point(|message| message.seq < first);
            for message in peer.in_flight.range_mut(from..) {
                if message.seq > last {
                    break;
                }
                if let Some(route) = message.route.take() {
                    each(route, message.place);
                }
            }
            peer.drop_answered();
        }
    }

    /// One of our messages found nobody at a peer.
    pub(super) fn returned(&mut self, id: PeerId, seq: u64) -> Option<(usize, u64)> {
        let peer = self.get_mut(id);
        let at = peer.in_flight.binary_search_by_key(&seq, |message| message.seq).ok()?;
        let message = &mut peer.in_flight[at];
        let answer = message.route.take().map(|route| (route, message.place));
        peer.drop_answered();
        answer
    }

    /// Slots of the routes that wait for answers of a peer; some may stand there several times.
    pub(super) fn waiting_routes(&self, id: PeerId) -> Vec<usize> {
        let mut routes: Vec<usize> = self.get(id).in_flight.iter().filter_map(|message| message.route).collect();
        routes.sort_unstable();
        routes.dedup();
        routes
    }

    // Envelopes.

    /// Takes an envelope's header in; receipts of pushes that it acknowledges. `None`: its items are not to be handled.
    pub(super) fn accept(&mut self, now: Micros, id: PeerId, header: &Header) -> (Vec<u64>, Option<u32>) {
        let origin = self.origin(id, header.from_process);
        let own_life = self.life;
        let peer = self.get_mut(id);
        if header.from_process != peer.process {
            peer.process = header.from_process;
            peer.origin = origin;
            peer.last_broadcast = 0;
        }
        if header.to_incarnation != own_life {
            // It is for an earlier life of ours: any envelope of ours tells the sender so.
            peer.link.acknowledge_at(now);
            return (Vec::new(), None);
        }
        // Whoever speaks can be heard.
        peer.unheard_since = None;
        peer.link.acked(now, header.ack, header.gap);
        let acked = peer.pushes.partition_point(|(seq, _)| *seq <= header.ack);
        let receipts = peer.pushes.drain(..acked).map(|(_, receipt)| receipt).collect();
        if header.count > 0 && peer.inbound.is_full() {
            return (receipts, None);
        }
        match peer.link.accept(now, header) {
            Accept::Items { skip } => (receipts, Some(skip)),
            Accept::Nothing => (receipts, None),
        }
    }

    pub(super) fn inbound(&mut self, id: PeerId) -> &mut Inbound {
        &mut self.get_mut(id).inbound
    }

    /// An item of a link's state has been handled. Nothing, if the link has begun anew meanwhile.
    pub(super) fn handled(&mut self, id: PeerId, link: u32) {
        let peer = self.get_mut(id);
        if peer.link_number == link {
            peer.link.handled();
        }
    }

    pub(super) fn link_number(&self, id: PeerId) -> u32 {
        self.get(id).link_number
    }

    /// Whether a broadcast of a peer comes for the first time.
    pub(super) fn is_new_broadcast(&mut self, id: PeerId, place: u64) -> bool {
        let peer = self.get_mut(id);
        let is_new = place > peer.last_broadcast;
        peer.last_broadcast = peer.last_broadcast.max(place);
        is_new
    }

    /// The next envelope to publish for a peer.
    pub(super) fn poll(&mut self, now: Micros, id: PeerId) -> Option<Bytes> {
        self.get_mut(id).link.poll(now)
    }

    /// How many items were sent again, and how many envelopes came after a gap, since this was asked last.
    pub(super) fn take_counts(&mut self, id: PeerId) -> (u64, u64) {
        let link = &mut self.get_mut(id).link;
        (link.take_resent(), link.take_gaps())
    }

    /// What was published and not acknowledged may be lost.
    pub(super) fn publish_again(&mut self) {
        self.all.iter_mut().for_each(|peer| peer.link.publish_again());
    }

    /// When a link has something to do.
    pub(super) fn due(&self) -> Option<Micros> {
        self.all.iter().filter_map(|peer| peer.link.due()).min()
    }

    // Greetings.

    /// Says hello to the peers that live; whether this node is in the registry.
    pub(super) fn greet(&mut self, is_entered: bool) {
        for peer in self.all.iter_mut().filter(|peer| peer.is_live) {
            peer.hello = Some(peer.link.push(&Draft::of(Kind::Hello, u64::from(is_entered))));
        }
    }

    /// Whether all that can be reached have acknowledged it.
    pub(super) fn have_been_greeted(&self) -> bool {
        let knows = |peer: &Peer| {
            !peer.is_live || peer.unheard_since.is_some() || peer.hello.is_none_or(|hello| peer.link.is_acked(hello))
        };
        self.all.iter().all(knows)
    }

    /// Says good-bye to the peers that live.
    pub(super) fn say_bye(&mut self) {
        for peer in self.all.iter_mut().filter(|peer| peer.is_live) {
            peer.link.push_settled();
            peer.link.push(&Draft::of(Kind::Bye, 0));
        }
    }

    /// Whether all that can be reached have acknowledged everything.
    pub(super) fn have_everything(&self) -> bool {
        self.all.iter().all(|peer| !peer.is_live || peer.unheard_since.is_some() || peer.link.unacked_bytes() == 0)
    }

    // Numbers.

    /// Bytes that a peer has not acknowledged.
    pub(super) fn unacked_bytes_of(&self, id: PeerId) -> usize {
        self.get(id).link.unacked_bytes()
    }

    /// Bytes that peers have not acknowledged.
    pub(super) fn unacked_bytes(&self) -> usize {
        self.all.iter().map(|peer| peer.link.unacked_bytes()).sum()
    }

    /// The most bytes that one living peer has not acknowledged.
    pub(super) fn fullest(&self) -> usize {
        self.all.iter().filter(|peer| peer.is_live).map(|peer| peer.link.unacked_bytes()).max().unwrap_or(0)
    }

    /// Messages and pushes that peers have not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.all.iter().map(|peer| peer.in_flight.len() + peer.pushes.len()).sum()
    }
}

impl Peer {
    fn replace_link(&mut self, fresh: Link) -> Ended {
        let old = std::mem::replace(&mut self.link, fresh);
        self.link_number += 1;
        self.inbound = Inbound::default();
        self.hello = None;
        Ended {
            in_flight: self.in_flight.drain(..).filter(|message| message.route.is_some()).collect(),
            pushes: self.pushes.drain(..).map(|(_, receipt)| receipt).collect(),
            broadcasts: old.into_unacked(Kind::Broadcast),
        }
    }

    fn repeat_broadcasts(&mut self, ended: &Ended) {
        for item in ended.broadcasts.iter().filter_map(Item::as_draft) {
            self.link.push(&item);
        }
    }

    /// What is answered and has nothing unanswered before it goes.
    fn drop_answered(&mut self) {
        while self.in_flight.front().is_some_and(|message| message.route.is_none()) {
            self.in_flight.pop_front();
        }
    }
}

/// Ranges of numbers, first and last, as an item has them.
fn numbers(ranges: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    ranges.chunks_exact(16).map(move |range| (number(&range[..8]), number(&range[8..])))
}
