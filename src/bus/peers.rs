//! Other nodes of our kind, and the links to them.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::hub::bus::{FromBus, Stamp};
use crate::hub::envelope::UserKey;
use crate::time::Micros;

use super::call::{Call, Incarnation, NodeId, Reply};
use super::contract;
use super::held::Held;
use super::link::Link;
use super::routes::RouteState;
use super::state::{Asked, AtHome, Bus, Effects, ORIGIN_SELF, Parcel, PendingAnswer, Purpose};
use super::streams::Begin;
use super::table::UserTable;
use super::wire::{self, Draft, FORWARDED, Item, Kind, ONLY, RELAYED, SENDER_HOLDS};

/// Another node of our kind.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    /// Its life, as far as is known; 0: not at all.
    pub(super) life: Incarnation,
    /// That life and all before it are over.
    pub(super) dead: Incarnation,
    /// It takes broadcasts.
    pub(super) is_live: bool,
    /// Nobody listened on its channel when we published there last: its process is gone, or cut off from Redis.
    pub(super) is_unreachable: bool,
    pub(super) link: Link,
    /// What has come and waits for room in a shard.
    pub(super) inbound: VecDeque<(Bytes, u32)>,
    /// The first item of it.
    pub(super) waiting: Option<Item>,
    pub(super) inbound_bytes: usize,
    /// Looks, one after the other, that saw no lease; when the last one was.
    pub(super) looks_without_lease: u32,
    pub(super) missed_at: Micros,
    /// Looks, one after the other, that did not see it at all.
    pub(super) looks_without_it: u32,
    /// The number of our hello, while we wait for its acknowledgement.
    pub(super) hello: Option<u64>,
}

impl Bus {
    /// The place of a node in the list of peers.
    pub(super) fn peer(&mut self, node: &NodeId) -> u32 {
        if let Some(&known) = self.peer_index.get(node) {
            return known;
        }
        let at = self.peers.len() as u32;
        self.peers.push(Peer {
            node: node.clone(),
            life: 0,
            dead: 0,
            is_live: false,
            is_unreachable: false,
            link: Link::new(self.config.node_id.clone(), self.members.incarnation, 0),
            inbound: VecDeque::new(),
            waiting: None,
            inbound_bytes: 0,
            looks_without_lease: 0,
            missed_at: Micros::default(),
            looks_without_it: 0,
            hello: None,
        });
        self.peer_index.insert(node.clone(), at);
        at
    }

    /// A life of a peer has been seen; a later one than before ends that.
    pub(super) fn met(&mut self, at: u32, life: Incarnation, fx: &mut dyn Effects) {
        let peer = &self.peers[at as usize];
        if life <= peer.dead || life < peer.life || (life == peer.life && peer.is_live) {
            return;
        }
        if life > peer.life {
            self.end_life(at, life, fx);
        }
        let peer = &mut self.peers[at as usize];
        peer.is_live = true;
        peer.is_unreachable = false;
        peer.looks_without_lease = 0;
        peer.looks_without_it = 0;
    }

    /// A life of a peer is over.
    pub(super) fn died(&mut self, at: u32, life: Incarnation, fx: &mut dyn Effects) {
        let peer = &mut self.peers[at as usize];
        if life < peer.life {
            return;
        }
        peer.dead = peer.dead.max(life);
        peer.is_live = false;
        self.end_life(at, life, fx);
    }

    /// Begins a link to another life of a peer. What the one before it has not acknowledged finds another way.
    fn end_life(&mut self, at: u32, life: Incarnation, fx: &mut dyn Effects) {
        let fresh = Link::new(self.config.node_id.clone(), self.members.incarnation, life);
        let peer = &mut self.peers[at as usize];
        let before = peer.life;
        let old = std::mem::replace(&mut peer.link, fresh);
        peer.life = life;
        peer.inbound.clear();
        peer.inbound_bytes = 0;
        peer.waiting = None;
        peer.hello = None;
        // What was lost with it would be waited for.
        self.sent = UserTable::default();
        self.bouncing.retain(|(peer, _)| *peer != at);
        self.answers.retain(|_, answer| answer.peer != at);
        let mut users: Vec<UserKey> = Vec::new();
        for (seq, item) in old.into_unacked() {
            self.find_another_way(at, seq, item, &mut users, fx);
        }
        // Fences and joins that this life will not answer.
        let unanswered: Vec<u64> =
            self.asked.iter().filter(|(_, (peer, _, _))| *peer == at).map(|(&number, _)| number).collect();
        for number in unanswered {
            match self.asked.remove(&number) {
                Some((_, _, Asked::Fence(user))) => users.push(user),
                Some((_, _, Asked::Join(user))) => self.join_or_open(&user, fx),
                Some((_, _, Asked::Copies(_))) | None => {}
            }
        }
        for user in users {
            self.fence_passed(&user, at, before, None, fx);
        }
    }

    fn find_another_way(&mut self, at: u32, seq: u64, item: Item, users: &mut Vec<UserKey>, fx: &mut dyn Effects) {
        let stamp = self.stamp_of(ORIGIN_SELF, &item);
        let Item { kind, flags, user, frame, .. } = item;
        let parcel = Parcel { frame, flags: flags & SENDER_HOLDS, stamp };
        match kind {
            Some(Kind::Unicast) if flags & FORWARDED == 0 => {
                self.counters.rerouted += 1;
                let user = self.key(&user);
                self.hold_for_fence(&user, at, seq, parcel);
                users.push(user);
            }
            Some(Kind::Unicast) if flags & ONLY != 0 => {
                let user = self.key(&user);
                self.one_way_failed(user, parcel, None, fx);
            }
            // The peer's client sent it, and the peer is gone: the message follows its user all the same.
            Some(Kind::Bounce) if flags & FORWARDED == 0 => {
                let user = self.key(&user);
                self.route(user, parcel, fx);
            }
            Some(Kind::Broadcast) if self.peers[at as usize].is_live => {
                self.peers[at as usize].link.push(Kind::Broadcast, 0, "", 0, &parcel.frame);
            }
            _ => {}
        }
    }

    /// Our own life is another one: every link begins anew, and what was not acknowledged goes over it again.
    pub(super) fn begin_links_anew(&mut self) {
        for peer in &mut self.peers {
            let fresh = Link::new(self.config.node_id.clone(), self.members.incarnation, peer.life);
            let old = std::mem::replace(&mut peer.link, fresh);
            for (_, item) in old.into_unacked() {
                let is_asked =
                    self.asked.contains_key(&item.number) && matches!(item.kind, Some(Kind::Fence | Kind::Join));
                if let Some(item) = item.as_draft().filter(|_| !is_asked) {
                    peer.link.push_item(&item);
                }
            }
            peer.inbound.clear();
            peer.inbound_bytes = 0;
            peer.waiting = None;
        }
        // Peers forget what our earlier life has asked them.
        for (number, (at, life, asked)) in std::mem::take(&mut self.asked) {
            self.push_question(at, number, &asked);
            self.asked.insert(number, (at, life, asked));
        }
    }

    /// A message of one of our clients for all users.
    pub(super) fn broadcast_out(&mut self, frame: &Bytes, fx: &mut dyn Effects) {
        for peer in self.peers.iter_mut().filter(|peer| peer.is_live) {
            peer.link.push(Kind::Broadcast, 0, "", 0, frame);
            self.counters.broadcasts_out += 1;
        }
        if !self.foreign.is_empty()
            && let Some(json) = contract::write_order(None, frame)
        {
            for node in self.foreign.clone() {
                self.counters.contract_out += 1;
                self.call(Purpose::PublishContract, Call::PublishContract { node, json: json.clone() }, fx);
            }
        }
    }

    /// Publishes what has gathered.
    pub(super) fn publish(&mut self, fx: &mut dyn Effects) {
        if !self.connected || self.members.incarnation == 0 {
            return;
        }
        for at in 0..self.peers.len() {
            loop {
                let peer = &mut self.peers[at];
                let Some(envelope) = peer.link.poll(self.now) else { break };
                match wire::count(&self.config.node_id, &envelope) {
                    0 => {}
                    items => self.batches.push(items),
                }
                let call = Call::PublishLink { node: peer.node.clone(), envelope };
                self.call(Purpose::PublishLink(at as u32), call, fx);
            }
            self.counters.resent += self.peers[at].link.take_resent();
        }
    }

    pub(super) fn published(&mut self, at: u32, reply: &Reply, fx: &mut dyn Effects) {
        let peer = &mut self.peers[at as usize];
        peer.link.published();
        let &Reply::Published { receivers } = reply else { return };
        let was_unreachable = std::mem::replace(&mut peer.is_unreachable, receivers == 0);
        if receivers > 0 || was_unreachable {
            return;
        }
        // Users who come from there, most likely because it has died, don't wait for it.
        let joins = self.asked.values().filter_map(|(peer, _, asked)| match asked {
            Asked::Join(user) if *peer == at => Some(user.clone()),
            _ => None,
        });
        for user in joins.collect::<Vec<_>>() {
            self.join_or_open(&user, fx);
        }
    }

    /// Says what peers wait for, once it is true.
    pub(super) fn answer_peers(&mut self, fx: &mut dyn Effects) {
        if self.answers.is_empty() {
            return;
        }
        let mut to_home = Vec::new();
        for (&fence, answer) in self.answers.iter_mut().filter(|(_, answer)| answer.home != AtHome::UnderWay) {
            // What waits for earlier messages has not been handled.
            let held = self.held.get(&answer.user).filter(|_| answer.ends_a_route);
            let has_early = held.is_some_and(|held| !held.has_handled_all());
            match answer.home {
                AtHome::HeldUp if !has_early => {
                    answer.home = AtHome::UnderWay;
                    to_home.push((answer.user.clone(), fence));
                }
                AtHome::Passed if has_early => answer.home = AtHome::HeldUp,
                _ => {}
            }
        }
        for (user, fence) in to_home {
            let home = self.home(&user);
            fx.push(home, FromBus::Fence { fence });
        }
        let is_handled = |answer: &PendingAnswer| {
            answer.home == AtHome::Passed && answer.waits.iter().all(|&number| self.is_answered(number, true))
        };
        let done: Vec<u64> =
            self.answers.iter().filter(|(_, answer)| is_handled(answer)).map(|(&number, _)| number).collect();
        for number in done {
            let Some(answer) = self.answers.remove(&number) else { continue };
            if self.peers[answer.peer as usize].life != answer.life {
                continue;
            }
            for begin in answer.begins {
                self.push_begin(answer.peer, answer.number, begin);
            }
            self.peers[answer.peer as usize].link.push(answer.kind, 0, "", answer.number, b"");
        }
    }

    fn push_begin(&mut self, at: u32, join: u64, Begin { stamp, vouched_from }: Begin) {
        let origin = self.origin_name(stamp.origin);
        let Stamp { stream, place, .. } = stamp;
        let draft = Draft {
            kind: Kind::Begins,
            flags: 0,
            user: "",
            number: join,
            origin: &origin,
            stream,
            place,
            frame: &vouched_from.to_le_bytes(),
        };
        self.peers[at as usize].link.push_item(&draft);
    }

    /// Where the streams to a user who is here begin for who joins: what was before has been handed to the user's home.
    pub(super) fn begins(&self, user: &UserKey) -> Vec<Begin> {
        let Some(held) = self.held.get(user) else { return Vec::new() };
        let own = self.sent.get(user).map(|sent| held.own_begin(sent.clone().next(ORIGIN_SELF)));
        held.streams.begins().chain(own).collect()
    }

    /// A message found the user gone at the home: who joins has it, if it comes before what that peer is to be told.
    pub(super) fn begin_not_after(&mut self, user: &UserKey, stamp: Stamp) {
        let joins = self.answers.values_mut().filter(|answer| answer.kind == Kind::Joined && answer.user == *user);
        joins.flat_map(|answer| &mut answer.begins).for_each(|begin| begin.not_after(stamp));
    }

    /// Asks the other holders, but for `except`, whether the copies that this node has passed on have been handled or have
    /// come back: what to wait for.
    pub(super) fn fence_copies(&mut self, user: &UserKey, except: u32) -> Vec<u64> {
        if let Some(RouteState::Draining { waits, .. }) = self.routes.get(user).map(|route| &route.state) {
            // The user has just left, and they are asked already.
            return waits.clone();
        }
        let others = self.held.get(user).map_or(&[][..], Held::others).to_vec();
        let peers = &self.peers;
        let is_there = |&(at, life): &(u32, Incarnation)| {
            let peer = &peers[at as usize];
            at != except && peer.life == life && peer.dead < life && !peer.is_unreachable
        };
        let to: Vec<u32> = others.into_iter().filter(is_there).map(|(at, _)| at).collect();
        to.into_iter().map(|at| self.ask_peer(at, Asked::Copies(user.clone()))).collect()
    }

    /// Whether the answer to a question has come, or will not.
    pub(super) fn is_answered(&self, number: u64, gives_up_unreachable: bool) -> bool {
        self.asked.get(&number).is_none_or(|&(at, life, _)| {
            let peer = &self.peers[at as usize];
            peer.life != life || peer.dead >= life || (gives_up_unreachable && peer.is_unreachable)
        })
    }

    /// Answers a peer once the user's home has handled everything before, and what the answer waits for has come.
    pub(super) fn answer_after_all_before(&mut self, answer: PendingAnswer) {
        let fence = self.next_number();
        self.answers.insert(fence, answer);
    }

    /// Asks a peer something that it answers in its own time; the number of the question.
    pub(super) fn ask_peer(&mut self, at: u32, asked: Asked) -> u64 {
        let number = self.next_number();
        self.push_question(at, number, &asked);
        self.asked.insert(number, (at, self.peers[at as usize].life, asked));
        number
    }

    fn push_question(&mut self, at: u32, number: u64, asked: &Asked) {
        let link = &mut self.peers[at as usize].link;
        match asked {
            Asked::Fence(user) => link.push(Kind::Fence, 0, &user.name, number, b""),
            Asked::Copies(user) => link.push(Kind::Fence, RELAYED, &user.name, number, b""),
            Asked::Join(user) => {
                let version = self.held.get(user).map_or(0, Held::version).to_le_bytes();
                link.push(Kind::Join, 0, &user.name, number, &version)
            }
        };
    }
}
