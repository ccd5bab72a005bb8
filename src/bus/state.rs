//! The bus, pure: where users are, what is on its way to other nodes, who lives. [`Bus::handle`] and [`Bus::turn`] are
//! its doors; what follows leaves through [`Effects`].
//!
//! It is composed of parts, each with a state of its own: [`Directory`] (users of this node, and their other holders),
//! [`Routes`] (queues of messages to users), [`Deliveries`] (what the homes have and what waits for it), [`Peers`] (other
//! nodes, their lives, the links) and [`Membership`] (our life, and the run of Redis). What happens stands in a file for
//! each subject: `outgoing`, `relay`, `holding`, `incoming`, `members`, `renewal`.
//!
//! # How a message goes
//! The node on which a message begins (its *origin*) numbers all its messages in one row and keeps each in its user's queue
//! until the user's *relay* says that it has arrived. The relay is the origin itself if it holds the user, else the oldest
//! holder. It delivers the message and pushes it to all other holders. A holder delivers what is later than all that it has
//! had of the same origin, so what comes by two ways is delivered once and in order. See `README.md` in this folder.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;

use crate::hub::bus::{FromBus, ToBus};
use crate::hub::envelope::{UserKey, home_of};
use crate::ids::ShardId;
use crate::time::Micros;

use super::call::{Call, CallId, Incarnation, NodeId, Reply};
use super::contract::{self, Order};
use super::deliveries::{Deliveries, Receipt};
use super::directory::{ANSWERS_WITHIN, Directory, Held};
use super::later::{Due, Later};
use super::lives::Heard;
use super::members::Membership;
use super::message::PeerId;
use super::peers::Peers;
use super::routes::{Outgoing, Routes};
use super::wire;

/// How long after a failure a call is tried again, while Redis can be reached.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How often what the homes have handled is looked at though nothing else happens.
const CONFIRM_EVERY: Duration = Duration::from_millis(10);
/// How soon a walk over all users goes on.
const WALK_STEP: Duration = Duration::from_millis(1);

/// What the bus needs to know.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// This node.
    pub node_id: NodeId,
    /// Its shards.
    pub shards: u16,
    /// Hashes user ids, as the hubs do.
    pub hasher: RandomState,
    /// How long a user may be gone before that counts, in milliseconds.
    pub offline_grace_ms: u64,
    /// Bytes kept for one other node until it acknowledges them, at most; as many wait for answers of the directory. One
    /// user's messages take a quarter of it at most.
    pub link_bytes_max: usize,
    /// How long Redis may be out of reach before new clients are sent elsewhere.
    pub lost_after: Duration,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A shard says something.
    Shard(ShardId, ToBus),
    /// A call was answered.
    Reply(CallId, Reply),
    /// An envelope stood on our link channel.
    Envelope(Bytes),
    /// Something stood on the contract's channel `node:<id>`.
    Contract(Bytes),
    /// Something stood on `user:events`.
    UserEvent(Bytes),
    /// Redis can be reached, for the first time or again: subscriptions stand, scripts are loaded.
    Connected,
    /// Redis can't be reached. All calls were answered.
    Lost,
    /// The node stops: its users are gone, or soon will be.
    Stop,
}

/// What the bus can do.
pub trait Effects {
    /// Asks something of Redis; the reply comes as [`Input::Reply`], always.
    fn call(&mut self, id: CallId, call: Call);
    /// Whether a shard has room for one more message.
    fn has_room(&self, shard: ShardId) -> bool;
    /// Whether a shard has room for one more broadcast.
    fn has_broadcast_room(&self, shard: ShardId) -> bool;
    /// Says something to a shard; its number among all that it was told, broadcasts aside, counted from 1.
    fn push(&mut self, shard: ShardId, message: FromBus) -> u64;
    /// The number of the last message, broadcasts aside, that a shard has handled. All that the shard has said while it
    /// handled those has been handed to the bus.
    fn handled(&self, shard: ShardId) -> u64;
}

/// How it stands with the bus, as the node's HTTP side needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Not ready for clients yet.
    Warming,
    /// Ready.
    Up,
    /// Redis has been out of reach for too long.
    Lost,
}

/// Why the node has to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fatal {
    /// Another process has this node's id.
    IdTaken,
}

/// What has been counted, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Messages to users, handed to a link.
    pub unicasts_out: u64,
    /// Broadcasts, each counted once for each node.
    pub broadcasts_out: u64,
    /// Orders to foreign nodes.
    pub contract_out: u64,
    /// Messages that other nodes sent to users.
    pub unicasts_in: u64,
    /// Broadcasts of other nodes.
    pub broadcasts_in: u64,
    /// Orders on the contract's channel.
    pub contract_in: u64,
    /// Messages of clients that were refused.
    pub overloaded: u64,
    /// Messages that were accepted and are known to be lost.
    pub lost: u64,
    /// Messages whose user was nowhere.
    pub offline: u64,
    /// What stood on channels and was no message.
    pub invalid: u64,
    /// Messages whose user's place was known.
    pub cache_hits: u64,
    /// Messages whose user's place had to be asked for.
    pub cache_misses: u64,
    /// Messages that followed a user to another node.
    pub rerouted: u64,
    /// Items that were sent again over a link.
    pub resent: u64,
    /// Lives of other nodes that this node has reaped.
    pub reaped: u64,
    /// Users that had to be entered in the directory again.
    pub restored: u64,
    /// Messages that came a second time, by another way, and were dropped.
    pub duplicates: u64,
    /// Envelopes that came although an earlier one of their link had not: that one comes again.
    pub gaps: u64,
}

/// What a call was for.
#[derive(Debug)]
pub(super) enum Purpose {
    Acquire,
    /// Of this life.
    RenewLease(Incarnation),
    Release,
    /// As of this connection to Redis.
    Register(UserKey, u32),
    Unregister(UserKey),
    EndGrace(UserKey),
    /// For messages up to this place.
    Route(UserKey, u64),
    /// As of this connection to Redis.
    Holders(UserKey, u32),
    /// In this life.
    Renew(Vec<UserKey>, Incarnation),
    Look,
    DeclareDead(PeerId, Incarnation),
    Reap(NodeId, Incarnation),
    ReapOwn(Incarnation),
    /// When it began.
    PublishLink(PeerId, Micros),
    PublishContract,
    HearEvents,
}

/// An answer to a peer that waits until a home has handled everything before.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) peer: PeerId,
    /// The state of the link that the question came by.
    pub(super) link: u32,
    pub(super) user: UserKey,
    /// The question's.
    pub(super) number: u64,
    /// The fence's number among what the home was told.
    pub(super) told: u64,
}

/// The bus of a node.
pub struct Bus {
    pub(super) config: BusConfig,
    pub(super) now: Micros,
    pub(super) counters: Counters,
    /// Items of each envelope that was published since somebody asked.
    batches: Vec<u32>,
    pub(super) fatal: Option<Fatal>,

    pub(super) connected: bool,
    /// Counts connections to Redis, their losses, and lapses of the lease.
    pub(super) connection: u32,
    pub(super) members: Membership,
    pub(super) peers: Peers,
    pub(super) directory: Directory,
    pub(super) routes: Routes,
    pub(super) deliveries: Deliveries,
    pub(super) foreign: Vec<NodeId>,

    /// Users who have left since the last turn.
    pub(super) departed: Vec<UserKey>,
    /// Answers that peers wait for, by their fences.
    pub(super) answers: BTreeMap<u64, Answer>,
    /// Bytes of peers' messages that wait here until a user opens, or until the other holders are sure.
    pub(super) kept_bytes: usize,

    calls: HashMap<u64, Purpose, RandomState>,
    next_number: u64,
    later: BinaryHeap<Reverse<Due>>,
    /// Empty between uses; they keep their room.
    pub(super) outgoing: Vec<Outgoing>,
    pub(super) arrived: Vec<Receipt>,
}

impl Bus {
    /// A bus that has not reached Redis yet.
    pub fn new(config: BusConfig) -> Self {
        let hasher = config.hasher.clone();
        Self {
            now: Micros::default(),
            counters: Counters::default(),
            batches: Vec::new(),
            fatal: None,
            connected: false,
            connection: 1,
            members: Membership::default(),
            peers: Peers::new(config.node_id.clone(), &hasher),
            directory: Directory::default(),
            routes: Routes::default(),
            deliveries: Deliveries::new(config.shards, &hasher),
            foreign: Vec::new(),
            departed: Vec::new(),
            answers: BTreeMap::new(),
            kept_bytes: 0,
            calls: HashMap::with_hasher(hasher),
            next_number: 1,
            later: BinaryHeap::new(),
            outgoing: Vec::new(),
            arrived: Vec::new(),
            config,
        }
    }

    fn begin(&mut self, now: Micros) {
        self.now = now;
        if self.members.lapses(now) {
            // As after a cut: others may hold this node's users, and not know of it any more.
            self.connection += 1;
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Micros, input: Input, fx: &mut dyn Effects) {
        self.begin(now);
        match input {
            Input::Shard(shard, message) => self.shard(shard, message, fx),
            Input::Reply(id, reply) => self.reply(id, reply, fx),
            Input::Envelope(envelope) => self.envelope(&envelope, fx),
            Input::Contract(text) => self.contract(&text, fx),
            Input::UserEvent(text) => self.user_event(&text, fx),
            Input::Connected => self.reached(fx),
            Input::Lost => self.lost(),
            Input::Stop => self.members.stop(now),
        }
    }

    /// Does what is due: publishes what has gathered, goes on with what waited for room, looks at what passes with
    /// time. Called after each lot of inputs, and at [`Self::due`] at the latest. `connections` are those of the node.
    pub fn turn(&mut self, now: Micros, connections: u64, fx: &mut dyn Effects) {
        self.begin(now);
        while self.later.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(Due { what, .. })) = self.later.pop() else { break };
            self.is_due(what, fx);
        }
        for peer in self.peers.ids() {
            self.drain(peer, fx);
        }
        self.confirm(fx);
        self.follow_departed(fx);
        self.keep_membership(connections, fx);
        self.walk_held(fx);
        self.publish(fx);
    }

    /// When [`Self::turn`] is to be called though nothing has happened.
    pub fn due(&self) -> Micros {
        let mut due = self.members.due(self.now);
        if let Some(Reverse(later)) = self.later.peek() {
            due = due.min(later.at);
        }
        if self.deliveries.waits_for_homes() {
            due = due.min(self.now.after(CONFIRM_EVERY));
        }
        if self.connected && self.members.life() != 0 {
            let walk = self.walk_due().map(|at| at.max(self.now.after(WALK_STEP)));
            due = [self.peers.due(), walk].into_iter().flatten().fold(due, Micros::min);
        }
        due
    }

    /// How it stands.
    pub fn health(&self) -> Health {
        self.members.health(self.now, self.connected, self.config.lost_after)
    }

    /// Whether broadcasts of this node's clients are taken: all links have room.
    pub fn takes_broadcasts(&self) -> bool {
        self.peers.fullest() <= self.config.link_bytes_max / 4 * 3
    }

    /// Why the node has to end, if it has.
    pub fn fatal(&self) -> Option<Fatal> {
        self.fatal
    }

    /// Whether a bus that was told to stop has left nothing behind.
    pub fn is_finished(&self) -> bool {
        self.members.is_released()
    }

    /// So many messages of the contract's channel were dropped before they came here.
    pub fn contract_dropped(&mut self, count: u64) {
        self.counters.lost += count;
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many messages each envelope carried that was published since this was asked last.
    pub fn take_batches(&mut self) -> std::vec::Drain<'_, u32> {
        self.batches.drain(..)
    }

    /// Users of this node that the directory has, or is about to have.
    pub fn registrations(&self) -> usize {
        self.directory.users.len()
    }

    /// Other nodes of our kind that live, and foreign ones.
    pub fn nodes(&self) -> (usize, usize) {
        (self.peers.live().count(), self.foreign.len())
    }

    /// Bytes that peers have not acknowledged, and bytes of messages that have not arrived, whether they wait for an answer
    /// of the directory or of a relay.
    pub fn kept_bytes(&self) -> (usize, usize) {
        (self.peers.unacked_bytes(), self.routes.bytes() + self.kept_bytes)
    }

    /// Our life; 0: none yet.
    pub fn incarnation(&self) -> Incarnation {
        self.members.life()
    }

    /// Users, messages and answers that something is still to follow for; 0 when nothing is under way.
    pub fn unsettled(&self) -> usize {
        let held = self.directory.users.iter().filter(|(_, held)| !Held::is_settled(held)).count();
        held + self.routes.messages() + self.deliveries.unconfirmed() + self.peers.unanswered() + self.answers.len()
    }

    /// How long our lease lasts.
    pub fn lease_remaining(&self, now: Micros) -> Duration {
        self.members.lease_until().since(now)
    }

    fn shard(&mut self, shard: ShardId, message: ToBus, fx: &mut dyn Effects) {
        match message {
            ToBus::Arrived { user } => self.arrived(user, fx),
            ToBus::Left { user } => self.left(&user, fx),
            ToBus::Unicast { target, frame, sender, delivered_here } => {
                self.unicast_out(target, frame, sender, delivered_here, fx);
            }
            ToBus::Returned { ticket } => self.returned(shard, ticket),
            ToBus::Broadcast { frame } => self.broadcast_out(&frame, fx),
            ToBus::Fenced { fence } => self.fenced(shard, fence),
        }
    }

    fn contract(&mut self, text: &[u8], fx: &mut dyn Effects) {
        match contract::read_order(text) {
            Some(Order::SendToUser { user, message }) => {
                self.counters.contract_in += 1;
                let user = self.key(&user);
                self.contract_unicast(user, contract::frame_of(message), fx);
            }
            Some(Order::Broadcast { message }) => {
                self.counters.contract_in += 1;
                let shards = (0..self.config.shards).map(ShardId);
                if shards.clone().all(|shard| fx.has_broadcast_room(shard)) {
                    let frame = contract::frame_of(message);
                    for shard in shards {
                        fx.push(shard, FromBus::Broadcast { frame: frame.clone() });
                    }
                } else {
                    self.counters.lost += 1;
                }
            }
            None => self.counters.invalid += 1,
        }
    }

    fn user_event(&mut self, text: &[u8], fx: &mut dyn Effects) {
        // A foreign node may have overwritten, or deleted, what stands in the directory for a user of ours.
        if let Some(user) = contract::foreign_event(text) {
            let user = self.key(&user);
            self.forget_foreign(&user);
            self.put_back(&user, fx);
        }
    }

    fn reply(&mut self, id: CallId, reply: Reply, fx: &mut dyn Effects) {
        let Some(purpose) = self.calls.remove(&id.0) else { return };
        if reply == Reply::Failed {
            self.members.failed(self.now);
        }
        match purpose {
            Purpose::PublishLink(peer, begun_at) => self.published(peer, begun_at, &reply, fx),
            Purpose::PublishContract => {
                if reply == Reply::Failed {
                    self.counters.lost += 1;
                }
            }
            Purpose::Route(user, asked) => self.located(&user, asked, reply, fx),
            Purpose::Holders(user, connection) => self.holders_read(&user, connection, reply, fx),
            Purpose::Register(user, connection) => self.registered(&user, connection, reply, fx),
            Purpose::Unregister(user) => self.unregistered(user, reply, fx),
            Purpose::EndGrace(user) => {
                if reply == Reply::Failed {
                    self.later(RETRY_AFTER, Later::EndGrace(user));
                }
            }
            Purpose::Renew(users, life) => self.renewed(&users, life, reply, fx),
            Purpose::Acquire => self.acquired(reply, fx),
            Purpose::RenewLease(life) => self.lease(life, &reply, fx),
            Purpose::Release => self.members.released(),
            Purpose::Look => self.looked(reply, fx),
            Purpose::DeclareDead(peer, life) => self.declared(peer, life, &reply, fx),
            Purpose::Reap(node, life) => self.reaped(node, life, &reply),
            Purpose::ReapOwn(life) => self.reaped_own(life, &reply),
            Purpose::HearEvents => {}
        }
    }

    fn is_due(&mut self, what: Later, fx: &mut dyn Effects) {
        match what {
            Later::Step(user) => self.step(&user, fx),
            Later::RegisterDeadline(user) => self.register_deadline(&user, fx),
            Later::Send(user) => self.send_again(&user, fx),
            Later::ReadHolders(user) => self.read_holders(&user, fx),
            Later::EndGrace(user) => {
                let call = Call::EndGrace { user: user.name.clone(), incarnation: self.members.life() };
                self.call(Purpose::EndGrace(user), call, fx);
            }
            Later::ReapAgain(node, life) => {
                let call = Call::Reap { node: node.clone(), incarnation: life };
                self.call(Purpose::Reap(node, life), call, fx);
            }
            Later::ReapOwn(life) => self.reap_own(life, fx),
            Later::Acquire => self.acquire(fx),
            Later::OpenWithout(peer) => self.open_without(peer, fx),
            Later::OpenUnheard(user) => self.open_if_given_up(&user, fx),
        }
    }

    // Links.

    /// A message of one of our clients for all users.
    fn broadcast_out(&mut self, frame: &Bytes, fx: &mut dyn Effects) {
        self.counters.broadcasts_out += self.peers.push_broadcast(frame);
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
    fn publish(&mut self, fx: &mut dyn Effects) {
        if !self.connected || self.members.life() == 0 {
            return;
        }
        for peer in self.peers.ids() {
            while let Some(envelope) = self.peers.poll(self.now, peer) {
                match wire::count(&self.config.node_id, &envelope) {
                    0 => {}
                    items => self.batches.push(items),
                }
                let call = Call::PublishLink { node: self.peers.node(peer).clone(), envelope };
                self.call(Purpose::PublishLink(peer, self.now), call, fx);
            }
            let (resent, gaps) = self.peers.take_counts(peer);
            self.counters.resent += resent;
            self.counters.gaps += gaps;
        }
    }

    fn published(&mut self, peer: PeerId, begun_at: Micros, reply: &Reply, fx: &mut dyn Effects) {
        let receivers = match reply {
            Reply::Published { receivers } => Some(*receivers),
            _ => None,
        };
        match self.peers.published(self.now, peer, begun_at, receivers) {
            Heard::Yes => {}
            Heard::NoLonger => {
                self.later(ANSWERS_WITHIN, Later::OpenWithout(peer));
                self.go_around(peer, fx);
            }
            Heard::No => {
                self.open_without(peer, fx);
                if self.peers.may_go_around(self.now, peer) {
                    self.go_around(peer, fx);
                }
            }
        }
    }

    /// Says something to a home, but for broadcasts.
    pub(super) fn tell(&mut self, home: ShardId, message: FromBus, fx: &mut dyn Effects) {
        let number = fx.push(home, message);
        self.deliveries.told(home, number);
    }

    /// The name with its hash.
    pub(super) fn key(&self, user: &str) -> UserKey {
        UserKey { hash: self.config.hasher.hash_one(user), name: user.into() }
    }

    /// The shard that decides about a user of this node.
    pub(super) fn home(&self, user: &UserKey) -> ShardId {
        home_of(user.hash, self.config.shards)
    }

    /// A number that was not used before: of a call, an operation, a fence.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn call(&mut self, purpose: Purpose, call: Call, fx: &mut dyn Effects) {
        let id = self.next_number();
        self.calls.insert(id, purpose);
        fx.call(CallId(id), call);
    }

    pub(super) fn later(&mut self, delay: Duration, what: Later) {
        let number = self.next_number();
        self.later.push(Reverse(Due { at: self.now.after(delay), number, what }));
    }
}
