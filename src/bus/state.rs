//! The bus, pure: where users are, what is on its way to other nodes, who lives. [`Bus::handle`] and [`Bus::turn`] are
//! its doors; what follows leaves through [`Effects`].
//!
//! The state is one struct; what happens to it stands in a module for each subject: `held` (users of this node in the
//! directory), `routes` (users of other nodes), `deliver` (to this node's connections, in the order that `streams`
//! keep), `peers` (other nodes and the links to them), `inbound` (what they send), `members` (our lease and the dead).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;

use crate::hub::bus::{FromBus, Stamp, ToBus, Via};
use crate::hub::envelope::{UserKey, home_of};
use crate::ids::{ConnRef, ShardId};
use crate::time::Micros;

use super::call::{Call, CallId, Holder, Incarnation, NodeId, Reply};
use super::contract::{self, Order};
use super::held::Held;
use super::members::Membership;
use super::peers::Peer;
use super::routes::Route;
use super::streams::{Begin, Sent};
use super::table::UserTable;

/// How long a user may wait to be registered before the client is answered 503.
pub(super) const REGISTER_WITHIN: Duration = Duration::from_secs(1);
/// How long after a failure a call is tried again, while Redis can be reached.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

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
    /// Bytes kept for one other node until it acknowledges them, at most; as many wait for answers of the directory.
    pub link_bytes_max: usize,
    /// How long Redis may be out of reach before new clients are sent elsewhere.
    pub lost_after: Duration,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A shard says something.
    Shard(ToBus),
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
    /// Says something to a shard.
    fn push(&mut self, shard: ShardId, message: FromBus);
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
    /// Times that messages waited for earlier ones of the same node in vain.
    pub gaps: u64,
}

/// What a call was for.
#[derive(Debug)]
pub(super) enum Purpose {
    Acquire,
    RenewLease,
    Release,
    Register(UserKey),
    Unregister(UserKey),
    EndGrace(UserKey),
    Route(UserKey),
    /// With the peer that has sent a copy back.
    Refresh(UserKey, Option<u32>),
    Rejoin(UserKey),
    Renew(Vec<UserKey>),
    Restored(UserKey),
    Look,
    DeclareDead(u32, Incarnation),
    Reap(NodeId, Incarnation),
    ReapOwn(Incarnation),
    PublishLink(u32),
    PublishContract,
    HearEvents,
}

/// What is looked at again later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Later {
    /// A user whose call failed.
    Step(UserKey),
    /// A user who should have been registered by now.
    RegisterDeadline(UserKey),
    /// A route whose user is on the move.
    Locate(UserKey),
    /// A user for whom messages wait that came before earlier ones.
    Gap(UserKey),
    /// A user whose grace ends.
    EndGrace(UserKey),
    /// A reaped life, in case something of it came late.
    ReapAgain(NodeId, Incarnation),
    /// A life of our own id.
    ReapOwn(Incarnation),
    /// Our lease is to be taken.
    Acquire,
}

/// A message on its way to a user whose place is not settled.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) frame: Bytes,
    /// [`super::wire::SENDER_HOLDS`] or nothing.
    pub(super) flags: u8,
    pub(super) stamp: Stamp,
}

/// [`Stamp::origin`] of this node's own messages; of others it is their place in the list of peers.
pub(super) const ORIGIN_SELF: u32 = u32::MAX;

/// The answer that a peer waits for until what it sent before has been handled.
#[derive(Debug)]
pub(super) struct PendingAnswer {
    pub(super) peer: u32,
    pub(super) life: Incarnation,
    pub(super) kind: super::wire::Kind,
    pub(super) user: UserKey,
    pub(super) number: u64,
    /// The peer will send nothing more by this way: what is to come back to it has to be on its way.
    pub(super) ends_a_route: bool,
    /// Whether the user's home has handled everything before.
    pub(super) home: AtHome,
    /// Questions of ours, by their numbers, that have to be answered first.
    pub(super) waits: Vec<u64>,
    /// Where the streams begin for who joins.
    pub(super) begins: Vec<Begin>,
}

impl PendingAnswer {
    /// One of this kind, about a user, to the question of this number of a life of a peer.
    pub(super) fn new((peer, life): (u32, Incarnation), kind: super::wire::Kind, user: &UserKey, number: u64) -> Self {
        let user = user.clone();
        let (waits, begins) = (Vec::new(), Vec::new());
        Self { peer, life, kind, user, number, ends_a_route: false, home: AtHome::HeldUp, waits, begins }
    }
}

/// How far a fence is that goes to a user's home behind everything that was handed to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AtHome {
    /// Something waits for earlier messages, and is to go first.
    HeldUp,
    UnderWay,
    Passed,
}

/// What an answer of a peer is for.
#[derive(Debug)]
pub(super) enum Asked {
    /// The end of a route.
    Fence(UserKey),
    Join(UserKey),
    /// Copies that this node has passed on.
    Copies(UserKey),
}

/// The bus of a node.
pub struct Bus {
    pub(super) config: BusConfig,
    pub(super) now: Micros,
    pub(super) counters: Counters,
    /// Items of each envelope that was published since somebody asked.
    pub(super) batches: Vec<u32>,
    pub(super) fatal: Option<Fatal>,

    pub(super) connected: bool,
    pub(super) members: Membership,
    pub(super) peers: Vec<Peer>,
    pub(super) peer_index: HashMap<NodeId, u32>,
    pub(super) foreign: Vec<NodeId>,

    pub(super) held: UserTable<Held>,
    pub(super) routes: UserTable<Route>,
    /// Users whom this node has sent something.
    pub(super) sent: UserTable<Sent>,
    /// Users whose copies are under way though they have left.
    pub(super) draining: Vec<UserKey>,
    /// Messages of which one of two ways has found nobody, and how they came, where that is known…
    pub(super) half_failed: HashMap<(compact_str::CompactString, Stamp), Option<Via>, RandomState>,
    /// …and since when, the oldest first; some are not there any more.
    pub(super) half_failed_since: VecDeque<(Micros, (compact_str::CompactString, Stamp))>,
    /// Bytes of parcels that wait in routes.
    pub(super) waiting_bytes: usize,
    /// (peer, user): what this peer sends for the user goes back until it has sent a fence.
    pub(super) bouncing: HashSet<(u32, compact_str::CompactString), RandomState>,
    /// Answers that peers wait for, by the number that the shard's fence has.
    pub(super) answers: BTreeMap<u64, PendingAnswer>,
    /// Answers that we wait for, with the peer and its life.
    pub(super) asked: BTreeMap<u64, (u32, Incarnation, Asked)>,

    pub(super) calls: HashMap<u64, Purpose, RandomState>,
    next_number: u64,
    pub(super) later: BinaryHeap<Reverse<Due>>,
}

/// An entry of the list of what is looked at later, by time.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Due {
    at: Micros,
    number: u64,
    what: Later,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Bus {
    /// A bus that has not reached Redis yet.
    pub fn new(config: BusConfig) -> Self {
        let hasher = config.hasher.clone();
        Self {
            config,
            now: Micros::default(),
            counters: Counters::default(),
            batches: Vec::new(),
            fatal: None,
            connected: false,
            members: Membership::default(),
            peers: Vec::new(),
            peer_index: HashMap::new(),
            foreign: Vec::new(),
            held: UserTable::default(),
            routes: UserTable::default(),
            sent: UserTable::default(),
            draining: Vec::new(),
            half_failed: HashMap::with_hasher(hasher.clone()),
            half_failed_since: VecDeque::new(),
            waiting_bytes: 0,
            bouncing: HashSet::with_hasher(hasher.clone()),
            answers: BTreeMap::new(),
            asked: BTreeMap::new(),
            calls: HashMap::with_hasher(hasher),
            next_number: 1,
            later: BinaryHeap::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Micros, input: Input, fx: &mut dyn Effects) {
        self.now = now;
        match input {
            Input::Shard(message) => self.shard(message, fx),
            Input::Reply(id, reply) => self.reply(id, reply, fx),
            Input::Envelope(envelope) => self.envelope(&envelope, fx),
            Input::Contract(text) => self.contract(&text, fx),
            Input::UserEvent(text) => self.user_event(&text, fx),
            Input::Connected => self.connected(fx),
            Input::Lost => self.lost(),
            Input::Stop => self.members.stopping = Some(now),
        }
    }

    /// Does what is due: publishes what has gathered, goes on with what waited for room, looks at what passes with
    /// time. Called after each lot of inputs, and at [`Self::due`] at the latest. `connections` are those of the node.
    pub fn turn(&mut self, now: Micros, connections: u64, fx: &mut dyn Effects) {
        self.now = now;
        while self.later.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(Due { what, .. })) = self.later.pop() else { break };
            self.is_due(what, fx);
        }
        for peer in 0..self.peers.len() {
            self.drain(peer as u32, fx);
        }
        self.answer_peers(fx);
        self.keep_draining(fx);
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
        if self.connected && self.members.incarnation != 0 {
            for peer in &self.peers {
                due = peer.link.due().map_or(due, |at| at.min(due));
            }
        }
        due
    }

    /// How it stands.
    pub fn health(&self) -> Health {
        self.members.health(self.now, self.connected, self.config.lost_after)
    }

    /// Whether broadcasts of this node's clients are taken: all links have room.
    pub fn takes_broadcasts(&self) -> bool {
        let full = self.config.link_bytes_max / 4 * 3;
        !self.peers.iter().any(|peer| peer.is_live && peer.link.unacked_bytes() > full)
    }

    /// Why the node has to end, if it has.
    pub fn fatal(&self) -> Option<Fatal> {
        self.fatal
    }

    /// Whether a bus that was told to stop has left nothing behind.
    pub fn is_finished(&self) -> bool {
        self.members.is_released
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
        self.held.len()
    }

    /// Other nodes of our kind that live, and foreign ones.
    pub fn nodes(&self) -> (usize, usize) {
        (self.peers.iter().filter(|peer| peer.is_live).count(), self.foreign.len())
    }

    /// Bytes that peers have not acknowledged, and bytes that wait for answers of the directory.
    pub fn kept_bytes(&self) -> (usize, usize) {
        (self.peers.iter().map(|peer| peer.link.unacked_bytes()).sum(), self.waiting_bytes)
    }

    /// Our life; 0: none yet.
    pub fn incarnation(&self) -> Incarnation {
        self.members.incarnation
    }

    /// Users and answers that something is still to follow for; 0 when nothing is under way.
    pub fn unsettled(&self) -> usize {
        let held = self.held.iter().filter(|(_, held)| !held.is_settled()).count();
        let routes = self.routes.iter().filter(|(_, route)| route.is_unsettled()).count();
        held + routes + self.answers.len() + self.asked.len() + self.bouncing.len()
    }

    /// How long our lease lasts.
    pub fn lease_remaining(&self, now: Micros) -> Duration {
        self.members.lease_until.since(now)
    }

    fn shard(&mut self, message: ToBus, fx: &mut dyn Effects) {
        match message {
            ToBus::Arrived { user } => self.arrived(user, fx),
            ToBus::Left { user } => self.left(&user, fx),
            ToBus::Unicast { target, frame, sender, delivered_here } => {
                self.unicast_out(target, frame, sender, delivered_here, fx);
            }
            ToBus::Returned { target, frame, via } => self.returned(target, frame, via, fx),
            ToBus::Broadcast { frame } => self.broadcast_out(&frame, fx),
            ToBus::Fenced { fence } => {
                if let Some(answer) = self.answers.get_mut(&fence) {
                    answer.home = AtHome::Passed;
                }
            }
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
                    shards.for_each(|shard| fx.push(shard, FromBus::Broadcast { frame: frame.clone() }));
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
            Purpose::PublishLink(peer) => self.published(peer, &reply, fx),
            Purpose::PublishContract => {
                if reply == Reply::Failed {
                    self.counters.lost += 1;
                }
            }
            Purpose::Route(user) => self.located(&user, reply, fx),
            Purpose::Refresh(user, bouncer) => self.refreshed(&user, bouncer, reply, fx),
            Purpose::Rejoin(user) => self.rejoin(&user, reply, fx),
            Purpose::Register(user) => self.registered(&user, reply, fx),
            Purpose::Unregister(user) => self.unregistered(user, reply, fx),
            Purpose::Restored(user) => self.restored(&user, reply, fx),
            Purpose::EndGrace(user) => {
                if reply == Reply::Failed {
                    self.later(RETRY_AFTER, Later::EndGrace(user));
                }
            }
            Purpose::Renew(users) => self.renewed(&users, &reply, fx),
            Purpose::Acquire => self.acquired(reply, fx),
            Purpose::RenewLease => self.lease(&reply, fx),
            Purpose::Release => self.members.is_released = true,
            Purpose::Look => self.looked(reply, fx),
            Purpose::DeclareDead(peer, life) => self.declared(peer, life, &reply, fx),
            Purpose::Reap(node, life) => self.reaped(node, life, &reply),
            Purpose::ReapOwn(life) => self.reaped_own(life, &reply, fx),
            Purpose::HearEvents => {}
        }
    }

    fn is_due(&mut self, what: Later, fx: &mut dyn Effects) {
        match what {
            Later::Step(user) => self.step(&user, fx),
            Later::RegisterDeadline(user) => self.register_deadline(&user, fx),
            Later::Locate(user) => self.locate_again(&user, fx),
            Later::Gap(user) => self.give_up_gaps(&user, fx),
            Later::EndGrace(user) => {
                let call = Call::EndGrace { user: user.name.clone(), incarnation: self.members.incarnation };
                self.call(Purpose::EndGrace(user), call, fx);
            }
            Later::ReapAgain(node, life) => {
                let call = Call::Reap { node: node.clone(), incarnation: life };
                self.call(Purpose::Reap(node, life), call, fx);
            }
            Later::ReapOwn(life) => self.reap_own(life, fx),
            Later::Acquire => self.acquire(fx),
        }
    }

    /// Says that one of our clients' messages was not taken.
    pub(super) fn refuse(&mut self, sender: ConnRef, fx: &mut dyn Effects) {
        self.counters.overloaded += 1;
        fx.push(sender.shard, FromBus::Overloaded { sender });
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

    /// Whether a holder is a life that goes on, as far as is known. Ourselves too.
    pub(super) fn is_alive(&self, holder: &Holder) -> bool {
        if holder.node == self.config.node_id {
            return holder.incarnation == self.members.incarnation;
        }
        let Some(&peer) = self.peer_index.get(&holder.node) else { return true };
        let peer = &self.peers[peer as usize];
        holder.incarnation > peer.dead && holder.incarnation >= peer.life
    }
}
