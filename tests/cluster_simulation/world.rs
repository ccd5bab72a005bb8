//! The world: processes, a Redis, the ways between them, and what goes wrong, event by event on a virtual clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use ringmesh::bus::Input as BusInput;
use ringmesh::bus::call::{Call, CallId, NodeId, Reply};
use ringmesh::bus::wire;
use ringmesh::client::Command;
use ringmesh::ids::ConnId;
use ringmesh::metrics::ShardMetrics;

use crate::process::{Process, Shape, Told};
use crate::redis::{Data, Outcome, Redis};

pub const MS: u64 = 1_000;
pub const S: u64 = 1_000_000;

const NODES: usize = 3;
const USERS: usize = 6;
/// How long after the last fault and the last action everything has to have come to rest.
const QUIET: u64 = 130 * S;
/// How long after its new life a node has entered its users again.
pub const ENTERED_WITHIN: u64 = 5 * S;
/// A lease, and a little.
const LEASE: u64 = 12 * S;
/// The rim gives an answer so long.
const ANSWER_MAX: u64 = 3 * S;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, odds: u64) -> bool {
        self.next().is_multiple_of(odds)
    }
}

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Answers of Redis take up to so long.
    pub latency: u64,
    /// One published envelope in so many is lost; 0: none.
    pub loses_one_in: u64,
    pub cuts: bool,
    pub short_stalls: bool,
    pub long_stalls: bool,
    pub failovers: bool,
    pub suspensions: bool,
    pub kills: bool,
    /// Shards that handle what the bus brings late.
    pub slow_shards: bool,
    /// Little room on the links.
    pub small_links: bool,
    /// A user's offline waits for so long.
    pub grace_ms: u64,
    pub twins: bool,
    /// One user moves from node to node as fast as can be, and one on each node never stops speaking to that user.
    pub rush: bool,
}

pub struct Client {
    pub process: usize,
    pub conn: ConnId,
    pub user: usize,
    pub asked_at: u64,
    pub opened_at: Option<u64>,
    /// It was let in while another node that has the user could not be asked.
    pub was_let_in: bool,
    pub refused: bool,
    pub closed_at: Option<u64>,
    /// Closes when this one is open.
    closes: Option<usize>,
    pub received: Vec<(u64, u64)>,
    pub broadcasts: Vec<(u64, u64)>,
    pub overloaded: u64,
}

impl Client {
    pub fn is_open(&self) -> bool {
        self.opened_at.is_some() && self.closed_at.is_none()
    }
}

pub struct Message {
    /// `None`: a service said it.
    pub sender: Option<usize>,
    pub target: usize,
    pub sent_at: u64,
}

pub struct Broadcast {
    pub sender: usize,
    pub sent_at: u64,
}

/// A process that died, or that was declared dead though it lived.
pub struct Upheaval {
    pub process: usize,
    /// Since when nothing may have reached it: of who died, the moment of its death.
    pub since: u64,
    /// When it took its new life, or, of who died, when the others knew; `u64::MAX`: not yet.
    pub until: u64,
    /// It lived.
    pub was_declared: bool,
}

/// A process that could not be reached for a while: cut off from Redis, or suspended.
pub struct Outage {
    pub process: usize,
    pub since: u64,
    pub until: u64,
}

enum What {
    Bus(usize),
    Shard(usize),
    Exec(u64),
    Reply(u64, Reply),
    /// To a process, if its session is still this one.
    Published {
        process: usize,
        session: u64,
        is_link: bool,
        bytes: Bytes,
    },
    Connect(usize),
    Act,
    Close(usize),
    Fault,
    Restart(NodeId),
    Unsubscribe(usize),
    Stall,
    Lost(usize, u64),
    Snapshot,
}

struct Flight {
    process: usize,
    id: CallId,
    call: Call,
    /// Nobody waits for the answer any more.
    is_orphan: bool,
    is_executed: bool,
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    pub faults: Faults,
    /// `faults.slow_shards` ends when everything comes to rest.
    pub had_slow_shards: bool,
    pub redis: Redis,
    pub processes: Vec<Process>,
    pub clients: Vec<Client>,
    pub messages: Vec<Message>,
    pub broadcasts: Vec<Broadcast>,
    pub upheavals: Vec<Upheaval>,
    pub outages: Vec<Outage>,
    /// When Redis did not answer: from, to.
    pub stalls: Vec<(u64, u64)>,
    /// Nodes that were declared dead, and when: also those that were.
    pub declared: Vec<(NodeId, u64)>,
    /// When Redis lost data.
    pub losses: Vec<u64>,
    pub disturbances: Vec<u64>,
    pub trace: Option<Vec<String>>,
    by_conn: BTreeMap<(usize, ConnIdKey), usize>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    whats: BTreeMap<u64, What>,
    numbers: u64,
    flights: BTreeMap<u64, Flight>,
    stalled_until: u64,
    down_until: u64,
    snapshots: Vec<(u64, Data)>,
    publish_at: BTreeMap<usize, u64>,
    deliver_at: BTreeMap<usize, u64>,
    actions_left: u64,
    pub rest_from: u64,
    metrics: &'static ShardMetrics,
}

type ConnIdKey = u32;

impl World {
    pub fn new(seed: u64, faults: Faults, actions: u64, metrics: &'static ShardMetrics, traces: bool) -> Self {
        let mut world = Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 0,
            faults,
            had_slow_shards: faults.slow_shards,
            redis: Redis::default(),
            processes: Vec::new(),
            clients: Vec::new(),
            messages: Vec::new(),
            broadcasts: Vec::new(),
            upheavals: Vec::new(),
            outages: Vec::new(),
            stalls: Vec::new(),
            declared: Vec::new(),
            losses: Vec::new(),
            disturbances: Vec::new(),
            trace: traces.then(Vec::new),
            by_conn: BTreeMap::new(),
            events: BinaryHeap::new(),
            whats: BTreeMap::new(),
            numbers: 0,
            flights: BTreeMap::new(),
            stalled_until: 0,
            down_until: 0,
            snapshots: Vec::new(),
            publish_at: BTreeMap::new(),
            deliver_at: BTreeMap::new(),
            actions_left: actions,
            rest_from: u64::MAX,
            metrics,
        };
        for _ in 0..10 {
            world.rng.next();
        }
        for number in 0..NODES {
            let delay = world.rng.below(if number == 0 { 1 } else { 3 * S });
            world.at(delay, What::Restart(NodeId::from(format!("n{number}"))));
        }
        world.at(4 * S, What::Act);
        world.at(30 * S, What::Fault);
        world.at(S, What::Snapshot);
        world
    }

    pub fn run(&mut self) {
        while let Some(Reverse((at, number))) = self.events.pop() {
            let Some(what) = self.whats.remove(&number) else { continue };
            assert!(at >= self.now, "time goes on");
            self.now = at;
            if self.actions_left == 0 && at > self.rest_from.saturating_add(QUIET) {
                return;
            }
            self.happens(what);
        }
    }

    fn at(&mut self, at: u64, what: What) {
        self.numbers += 1;
        self.events.push(Reverse((at, self.numbers)));
        self.whats.insert(self.numbers, what);
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>11.6} {}", now as f64 / 1e6, text()));
        }
    }

    fn happens(&mut self, what: What) {
        match what {
            What::Bus(at) => self.run_bus(at),
            What::Shard(at) => self.run_shard(at),
            What::Exec(flight) => self.execute(flight),
            What::Reply(flight, reply) => {
                if let Some(flight) = self.flights.remove(&flight)
                    && !flight.is_orphan
                {
                    self.processes[flight.process].from_redis.push_back(BusInput::Reply(flight.id, reply));
                    self.wake_bus(flight.process);
                }
            }
            What::Published { process, session, is_link, bytes } => self.deliver(process, session, is_link, bytes),
            What::Connect(process) => self.connect(process),
            What::Act => self.act(),
            What::Close(client) => self.close(client),
            What::Fault => self.fault(),
            What::Restart(node) => self.start(node),
            What::Unsubscribe(process) => self.processes[process].is_subscribed = false,
            What::Stall => {}
            What::Lost(process, session) => {
                if self.processes[process].session == session {
                    self.lose(process);
                }
            }
            What::Snapshot => {
                if self.faults.failovers && self.rest_from == u64::MAX {
                    self.snapshots.push((self.now, self.redis.data.clone()));
                    if self.snapshots.len() > 8 {
                        self.snapshots.remove(0);
                    }
                    let delay = 200 * MS + self.rng.below(S);
                    self.at(self.now + delay, What::Snapshot);
                }
            }
        }
    }

    // Processes.

    fn start(&mut self, node: NodeId) {
        self.numbers += 1;
        let token = self.numbers;
        let shape = Shape {
            offline_grace_ms: self.faults.grace_ms,
            link_bytes_max: if self.faults.small_links { 2_000 } else { 8 << 20 },
        };
        let process = Process::new(node.clone(), token, &shape, self.metrics);
        self.processes.push(process);
        let at = self.processes.len() - 1;
        self.note(|| format!("process {at} starts as {node}"));
        let delay = self.rng.below(50 * MS);
        self.at(self.now + delay, What::Connect(at));
    }

    fn wake_bus(&mut self, at: usize) {
        let delay = self.rng.below(200);
        self.run_bus_at(at, self.now + delay);
    }

    fn run_bus_at(&mut self, at: usize, when: u64) {
        let process = &mut self.processes[at];
        let when = when.max(process.suspended_until).max(self.now);
        if process.is_alive && process.runs_at.is_none_or(|runs_at| when < runs_at) {
            process.runs_at = Some(when);
            self.at(when, What::Bus(at));
        }
    }

    fn wake_shard(&mut self, at: usize) {
        let most = if self.faults.slow_shards && self.rng.one_in(20) { 80 * MS } else { MS };
        let delay = self.rng.below(most);
        let process = &mut self.processes[at];
        let when = (self.now + delay).max(process.suspended_until);
        if process.is_alive && process.shard_runs_at.is_none() {
            process.shard_runs_at = Some(when);
            self.at(when, What::Shard(at));
        }
    }

    fn run_bus(&mut self, at: usize) {
        if !self.processes[at].is_alive || self.processes[at].runs_at != Some(self.now) {
            return;
        }
        self.processes[at].runs_at = None;
        if self.processes[at].suspended_until > self.now {
            return self.run_bus_at(at, self.now);
        }
        let calls = self.processes[at].run_bus(self.now);
        for (id, call) in calls {
            self.begin(at, id, call);
        }
        if self.processes[at].bus.fatal().is_some() {
            self.note(|| format!("process {at} finds its id taken"));
            return self.end(at, true);
        }
        if self.processes[at].bus.is_finished() {
            self.note(|| format!("process {at} has finished"));
            return self.end(at, true);
        }
        if self.processes[at].has_for_shard() {
            self.wake_shard(at);
        }
        let due = self.processes[at].due();
        assert!(due > self.now, "process {at} is due at {due}, and it is {}", self.now);
        self.run_bus_at(at, due);
    }

    fn run_shard(&mut self, at: usize) {
        if !self.processes[at].is_alive {
            return;
        }
        self.processes[at].shard_runs_at = None;
        if self.processes[at].suspended_until > self.now {
            return self.wake_shard(at);
        }
        let most = 1 + self.rng.below(if self.faults.slow_shards { 4 } else { 64 });
        self.processes[at].run_shard(self.now, most as usize);
        self.hear(at);
        if self.processes[at].has_for_bus() {
            self.wake_bus(at);
        }
        if self.processes[at].has_for_shard() {
            self.wake_shard(at);
        } else {
            // What waits for room in the shard goes on.
            self.wake_bus(at);
        }
    }

    /// What its clients were told.
    fn hear(&mut self, at: usize) {
        for (conn, told) in self.processes[at].take_told() {
            let client = self.by_conn[&(at, conn.index)];
            self.note(|| format!("client {client} is told {told:?}"));
            let now = self.now;
            let user = self.clients[client].user;
            let is_cut_off = |other: &Client| {
                let process = &self.processes[other.process];
                let is_away = !process.is_connected || process.suspended_until > now || self.is_declared(other.process);
                other.user == user && other.is_open() && other.process != at && is_away
            };
            let was_let_in =
                told == Told::Open && (now - self.clients[client].asked_at >= S || self.clients.iter().any(is_cut_off));
            let heard = &mut self.clients[client];
            match told {
                Told::Open => {
                    assert!(heard.opened_at.is_none() && !heard.refused, "client {client} gets two verdicts");
                    heard.opened_at = Some(now);
                    heard.was_let_in = was_let_in;
                    if let Some(before) = heard.closes.take() {
                        let long = if self.faults.rush { 20 * MS } else { 300 * MS };
                        let most = if self.rng.one_in(2) { 3 * MS } else { long };
                        let delay = self.rng.below(most);
                        self.at(now + delay, What::Close(before));
                    }
                }
                Told::Unavailable => {
                    assert!(heard.opened_at.is_none() && !heard.refused, "client {client} gets two verdicts");
                    heard.refused = true;
                    heard.closed_at = Some(now);
                    self.processes[at].clients -= 1;
                }
                Told::Message(number) => heard.received.push((number, now)),
                Told::Broadcast(number) => heard.broadcasts.push((number, now)),
                Told::Overloaded => heard.overloaded += 1,
            }
            let heard = &self.clients[client];
            let since = heard.asked_at.max(self.processes[at].woke_at);
            if matches!(told, Told::Open | Told::Unavailable) {
                let waited = now.saturating_sub(since);
                let bound = 1_100 * MS + if self.faults.slow_shards { 2 * S } else { 0 };
                assert!(waited <= bound, "client {client} of process {at} waited for {waited} us");
            }
        }
    }

    /// The process is gone, with its connections.
    fn end(&mut self, at: usize, is_clean: bool) {
        self.processes[at].is_alive = false;
        self.processes[at].is_connected = false;
        if is_clean || self.rng.one_in(2) {
            self.processes[at].is_subscribed = false;
        } else {
            // Its host is gone: the server of Redis does not know yet.
            let delay = self.rng.below(40 * S);
            self.at(self.now + delay, What::Unsubscribe(at));
        }
        let now = self.now;
        if self.processes[at].bus.incarnation() != 0 {
            self.upheavals.push(Upheaval { process: at, since: now, until: u64::MAX, was_declared: false });
        }
        self.ends_outage(at);
        for client in self.clients.iter_mut().filter(|client| client.process == at && client.closed_at.is_none()) {
            client.closed_at = Some(now);
        }
        self.orphan_flights(at);
    }

    fn ends_outage(&mut self, at: usize) {
        let now = self.now;
        let of_process = self.outages.iter_mut().filter(|outage| outage.process == at && outage.until > now);
        of_process.for_each(|outage| outage.until = now);
        let of_process = self.upheavals.iter_mut().filter(|upheaval| upheaval.process == at && upheaval.until > now);
        of_process.filter(|upheaval| upheaval.was_declared).for_each(|upheaval| upheaval.until = now);
    }

    /// Whether a process was declared dead, lives, and has no new life yet, or has not entered its users again.
    fn is_declared(&self, at: usize) -> bool {
        let is_now = |upheaval: &Upheaval| upheaval.until.saturating_add(ENTERED_WITHIN) > self.now;
        self.upheavals.iter().any(|upheaval| upheaval.process == at && upheaval.was_declared && is_now(upheaval))
    }

    /// Of the calls under way, some are executed, now or later, and some never.
    fn orphan_flights(&mut self, at: usize) {
        let under_way: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.process == at && !flight.is_orphan)
            .map(|(&number, _)| number)
            .collect();
        for number in under_way {
            let Some(flight) = self.flights.get_mut(&number) else { continue };
            flight.is_orphan = true;
            let id = flight.id;
            let was_executed = flight.is_executed;
            if self.processes[at].is_alive {
                self.processes[at].from_redis.push_back(BusInput::Reply(id, Reply::Failed));
            }
            if was_executed || self.rng.one_in(2) {
                self.flights.remove(&number);
            } else if self.rng.one_in(3) {
                // The entry that stands in the queue finds nothing; this one comes late.
                if let Some(flight) = self.flights.remove(&number) {
                    self.numbers += 1;
                    let late = self.numbers;
                    self.flights.insert(late, flight);
                    let delay = self.rng.below(20 * S);
                    self.at(self.now + delay, What::Exec(late));
                }
            }
        }
    }

    // Redis.

    fn connect(&mut self, at: usize) {
        if !self.processes[at].is_alive || self.processes[at].is_connected {
            return;
        }
        let opens_at = self.down_until.max(self.stalled_until);
        if opens_at > self.now || self.processes[at].suspended_until > self.now {
            let delay = MS + self.rng.below(400 * MS);
            let when = opens_at.max(self.processes[at].suspended_until).max(self.now) + delay;
            return self.at(when, What::Connect(at));
        }
        let process = &mut self.processes[at];
        process.is_connected = true;
        process.is_subscribed = true;
        let now = self.now;
        let of_process = self.outages.iter_mut().filter(|outage| outage.process == at && outage.until == u64::MAX);
        of_process.for_each(|outage| outage.until = now);
        let process = &mut self.processes[at];
        process.session += 1;
        process.from_redis.push_back(BusInput::Connected);
        self.note(|| format!("process {at} is connected"));
        self.wake_bus(at);
    }

    fn lose(&mut self, at: usize) {
        if !self.processes[at].is_connected {
            return;
        }
        self.note(|| format!("process {at} has lost Redis"));
        self.outages.push(Outage { process: at, since: self.now, until: u64::MAX });
        self.processes[at].is_connected = false;
        self.processes[at].is_subscribed = false;
        self.processes[at].session += 1;
        self.orphan_flights(at);
        self.processes[at].from_redis.push_back(BusInput::Lost);
        self.wake_bus(at);
        let delay = 50 * MS + self.rng.below(2 * S);
        self.at(self.now + delay, What::Connect(at));
    }

    fn begin(&mut self, at: usize, id: CallId, call: Call) {
        if !self.processes[at].is_connected {
            self.processes[at].from_redis.push_back(BusInput::Reply(id, Reply::Failed));
            return self.wake_bus(at);
        }
        self.numbers += 1;
        let number = self.numbers;
        let mut when = self.now + 20 + self.rng.below(self.faults.latency.max(100));
        if matches!(call, Call::PublishLink { .. } | Call::PublishContract { .. }) {
            let last = self.publish_at.entry(at).or_default();
            when = when.max(*last + 1);
            *last = when;
        } else {
            self.note(|| format!("process {at} calls {id:?} {call:?}"));
        }
        self.flights.insert(number, Flight { process: at, id, call, is_orphan: false, is_executed: false });
        self.at(when, What::Exec(number));
        if self.stalled_until > self.now + ANSWER_MAX {
            let session = self.processes[at].session;
            self.at(self.now + ANSWER_MAX, What::Lost(at, session));
        }
    }

    fn execute(&mut self, number: u64) {
        let Some(flight) = self.flights.get(&number).filter(|flight| !flight.is_executed) else { return };
        if self.stalled_until > self.now || self.down_until > self.now {
            let when = self.stalled_until.max(self.down_until) + 1 + self.rng.below(5 * MS);
            return self.at(when, What::Exec(number));
        }
        let (at, call) = (flight.process, flight.call.clone());
        let reply = match &call {
            Call::PublishLink { node, envelope } => self.publish(at, node, true, envelope),
            Call::PublishContract { node, json } => self.publish(at, node, false, json),
            _ => {
                let subscribed: Vec<NodeId> = self
                    .processes
                    .iter()
                    .filter(|process| process.is_subscribed)
                    .map(|process| process.node.clone())
                    .collect();
                let (node, token) = (self.processes[at].node.clone(), self.processes[at].token);
                let events = self.redis.events.len();
                match self.redis.execute(self.now, &node, token, &call, &subscribed) {
                    Outcome::Again(ms) => return self.at(self.now + ms * MS, What::Exec(number)),
                    Outcome::Answer(reply) => {
                        self.note(|| format!("of process {at} Redis has {call:?}: {reply:?}"));
                        for event in events..self.redis.events.len() {
                            let event = self.redis.events[event].clone();
                            self.note(|| format!("event: {} {}", event.user, event.is_online));
                        }
                        self.check_declared();
                        if matches!(reply, Reply::Acquired { .. }) {
                            self.begins_life(at);
                        }
                        reply
                    }
                }
            }
        };
        let Some(flight) = self.flights.get_mut(&number) else { return };
        flight.is_executed = true;
        if flight.is_orphan {
            self.flights.remove(&number);
            return;
        }
        let delay = 20 + self.rng.below(self.faults.latency.max(100));
        self.at(self.now + delay, What::Reply(number, reply));
    }

    /// The first life of a process is no upheaval, nor is the next one of a node whose process has died: that was.
    fn begins_life(&mut self, at: usize) {
        let now = self.now;
        if let Some(upheaval) = self.upheavals.iter_mut().rfind(|upheaval| upheaval.process == at) {
            upheaval.until = now;
        }
        let node = self.processes[at].node.clone();
        self.is_known_dead(&node);
    }

    /// The others know that what died of this node is dead.
    fn is_known_dead(&mut self, node: &NodeId) {
        let (now, processes) = (self.now, &self.processes);
        let died = self.upheavals.iter_mut().filter(|upheaval| {
            let process = &processes[upheaval.process];
            !upheaval.was_declared && process.node == *node && !process.is_alive
        });
        died.for_each(|upheaval| upheaval.until = upheaval.until.min(now));
    }

    /// A node is declared dead only if it is gone, or has been out of reach for long by its own fault.
    fn check_declared(&mut self) {
        for (node, incarnation) in std::mem::take(&mut self.redis.declared) {
            self.note(|| format!("{node} of life {incarnation} is declared dead"));
            self.declared.push((node.clone(), self.now));
            let alive = self.processes.iter().position(|process| {
                process.node == node && process.is_alive && process.bus.incarnation() == incarnation
            });
            if alive.is_none() {
                self.is_known_dead(&node);
            }
            if let Some(process) = alive {
                let was_out =
                    |outage: &&Outage| outage.process == process && outage.until.saturating_add(2 * LEASE) > self.now;
                let since = self.outages.iter().filter(was_out).map(|outage| outage.since).min();
                let since = since.unwrap_or(self.now);
                self.upheavals.push(Upheaval { process, since, until: u64::MAX, was_declared: true });
            }
            let innocent = self.processes.iter().enumerate().find(|(_, process)| {
                process.node == node
                    && process.is_alive
                    && process.suspended_until + 25 * S < self.now
                    && process.cut_off_at + 25 * S < self.now
                    && process.bus.incarnation() == incarnation
            });
            assert!(innocent.is_none(), "{node} lives, and is declared dead");
        }
    }

    fn publish(&mut self, _from: usize, node: &NodeId, is_link: bool, bytes: &Bytes) -> Reply {
        let subscribers: Vec<usize> = (0..self.processes.len())
            .filter(|&at| self.processes[at].is_subscribed && self.processes[at].node == *node)
            .collect();
        for &process in &subscribers {
            if self.faults.loses_one_in > 0 && self.rest_from > self.now && self.rng.one_in(self.faults.loses_one_in) {
                self.note(|| format!("what is published for process {process} is lost"));
                continue;
            }
            let when = self.now + 20 + self.rng.below(self.faults.latency.max(100));
            let last = self.deliver_at.entry(process).or_default();
            let when = when.max(*last + 1);
            *last = when;
            let session = self.processes[process].session;
            self.at(when, What::Published { process, session, is_link, bytes: bytes.clone() });
        }
        Reply::Published { receivers: subscribers.len() as u64 }
    }

    fn deliver(&mut self, at: usize, session: u64, is_link: bool, bytes: Bytes) {
        let process = &mut self.processes[at];
        if !process.is_alive || process.session != session {
            return;
        }
        if is_link {
            process.from_redis.push_back(BusInput::Envelope(bytes.clone()));
            self.note(|| format!("process {at} gets {}", story(&bytes)));
        } else {
            process.contract(bytes);
            self.note(|| format!("process {at} gets an order"));
        }
        self.wake_bus(at);
    }

    // Clients.

    fn act(&mut self) {
        if self.actions_left == 0 {
            return;
        }
        self.actions_left -= 1;
        if self.faults.rush {
            self.rush();
            let most = if self.rng.one_in(20) { 30 * MS } else { 500 };
            let delay = 1 + self.rng.below(most);
            return match self.actions_left {
                0 => self.rest(),
                _ => self.at(self.now + delay, What::Act),
            };
        }
        match self.rng.below(16) {
            0 => {
                self.open(None);
            }
            1 => self.move_user(),
            2 => {
                if let Some(client) = self.any_open().filter(|_| self.rng.one_in(2)) {
                    self.close(client);
                }
            }
            3 => self.serve(),
            4 if self.rng.one_in(4) => self.broadcast(),
            _ => {
                for _ in 0..1 + self.rng.below(5) {
                    self.speak();
                }
            }
        }
        if self.actions_left == 0 {
            self.rest();
        } else {
            let most = if self.rng.one_in(3) {
                200
            } else if self.rng.one_in(60) {
                20 * S
            } else {
                60 * MS
            };
            let delay = 1 + self.rng.below(most);
            self.at(self.now + delay, What::Act);
        }
    }

    /// User 0 moves, and those of the other numbers speak to that user.
    fn rush(&mut self) {
        let of = |user| move |client: &Client| client.user == user && client.closed_at.is_none();
        for user in 0..=NODES {
            if !self.clients.iter().any(of(user)) {
                self.open_for(user, None);
            }
        }
        let open: Vec<usize> = (0..self.clients.len()).filter(|&at| of(0)(&self.clients[at])).collect();
        if let &[client] = &open[..]
            && self.clients[client].is_open()
            && self.rng.one_in(10)
        {
            return self.open_for(0, Some(client));
        }
        for _ in 0..1 + self.rng.below(4) {
            let user = 1 + self.rng.below(NODES as u64) as usize;
            if let Some(sender) = self.clients.iter().position(|client| client.user == user && client.is_open()) {
                self.say_to(sender, 0);
            }
        }
    }

    fn rest(&mut self) {
        self.note(|| "everything comes to rest".to_owned());
        self.rest_from = self.now;
        for at in 0..self.processes.len() {
            let process = &mut self.processes[at];
            process.suspended_until = process.suspended_until.min(self.now);
            self.run_bus_at(at, self.now);
            self.processes[at].shard_runs_at = None;
            self.wake_shard(at);
        }
        let now = self.now;
        let suspensions = self.outages.iter_mut().filter(|outage| outage.until != u64::MAX);
        suspensions.for_each(|outage| outage.until = outage.until.min(now));
        self.stalled_until = self.stalled_until.min(self.now);
        self.down_until = self.down_until.min(self.now);
        self.faults.slow_shards = false;
        // Those who were waiting for the end of a stall.
        for at in 0..self.processes.len() {
            let delay = self.rng.below(S);
            self.at(self.now + delay, What::Connect(at));
        }
    }

    fn up_process(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.processes.len())
            .filter(|&at| self.processes[at].is_up() && self.processes[at].suspended_until <= self.now)
            .collect();
        (!up.is_empty()).then(|| up[self.rng.below(up.len() as u64) as usize])
    }

    fn open(&mut self, closes: Option<usize>) {
        let open = self.clients.iter().filter(|client| client.closed_at.is_none()).count();
        if closes.is_none() && open >= 2 * USERS {
            return;
        }
        let user = closes.map_or_else(|| self.rng.below(USERS as u64) as usize, |before| self.clients[before].user);
        self.open_for(user, closes);
    }

    fn open_for(&mut self, user: usize, closes: Option<usize>) {
        let Some(at) = self.up_process() else { return };
        let conn = self.processes[at].ask(self.now, &name(user));
        let client = self.clients.len();
        self.note(|| format!("client {client} of {} asks process {at}", name(user)));
        self.clients.push(Client {
            process: at,
            conn,
            user,
            asked_at: self.now,
            opened_at: None,
            was_let_in: false,
            refused: false,
            closed_at: None,
            closes,
            received: Vec::new(),
            broadcasts: Vec::new(),
            overloaded: 0,
        });
        self.by_conn.insert((at, conn.index), client);
        self.hear(at);
        self.wake_bus(at);
    }

    /// To another connection, perhaps on another node: opened before the first one is closed, or after.
    fn move_user(&mut self) {
        let Some(client) = self.any_open() else { return };
        if self.rng.one_in(4) {
            self.close(client);
            self.open(Some(client));
        } else {
            self.open(Some(client));
        }
    }

    fn close(&mut self, client: usize) {
        let Client { process, conn, closed_at, .. } = self.clients[client];
        if closed_at.is_some() {
            return;
        }
        // A suspended process reads nothing; its clients are gone all the same once it does.
        if self.processes[process].suspended_until > self.now {
            return self.at(self.processes[process].suspended_until + 1, What::Close(client));
        }
        self.note(|| format!("client {client} of process {process} closes"));
        self.clients[client].closed_at = Some(self.now);
        self.processes[process].close(self.now, conn);
        self.hear(process);
        self.wake_bus(process);
    }

    fn any_open(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.clients.len())
            .filter(|&at| {
                let client = &self.clients[at];
                client.is_open() && self.processes[client.process].suspended_until <= self.now
            })
            .collect();
        (!open.is_empty()).then(|| open[self.rng.below(open.len() as u64) as usize])
    }

    fn speak(&mut self) {
        if let Some(client) = self.any_open() {
            let target = self.rng.below(USERS as u64) as usize;
            self.say_to(client, target);
        }
    }

    fn say_to(&mut self, client: usize, target: usize) {
        let (at, conn) = (self.clients[client].process, self.clients[client].conn);
        let number = self.messages.len();
        let content = format!("\"{number}/{}\"", "x".repeat(self.rng.below(60) as usize));
        let said = Command::SendMessage { target: name(target).into(), content: &content };
        self.note(|| format!("client {client} of process {at} says {number} to {}", name(target)));
        assert!(self.processes[at].say(self.now, conn, said), "one shard has always room for itself");
        self.messages.push(Message { sender: Some(client), target, sent_at: self.now });
        self.hear(at);
        self.wake_bus(at);
    }

    fn broadcast(&mut self) {
        let Some(client) = self.any_open() else { return };
        let (at, conn) = (self.clients[client].process, self.clients[client].conn);
        let content = format!("\"{}\"", self.broadcasts.len());
        let number = self.broadcasts.len();
        self.note(|| format!("client {client} of process {at} says {number} to all"));
        let is_taken = self.processes[at].say(self.now, conn, Command::Broadcast { content: &content });
        assert!(is_taken, "one shard has always room for itself");
        self.broadcasts.push(Broadcast { sender: client, sent_at: self.now });
        self.hear(at);
        self.wake_bus(at);
    }

    /// A service sends a user something, as the contract has it: it reads the node, and publishes there.
    fn serve(&mut self) {
        let target = self.rng.below(USERS as u64) as usize;
        if self.stalled_until > self.now || self.down_until > self.now {
            return;
        }
        let Some(node) = self.redis.named(&name(target)).cloned() else { return };
        let number = self.messages.len();
        self.note(|| format!("a service says {number} to {} on {node}", name(target)));
        let json = format!(
            r#"{{"action":"send_to_user","user_id":"{}","message":{{"type":"message","from":"service","content":"{number}"}}}}"#,
            name(target)
        );
        self.messages.push(Message { sender: None, target, sent_at: self.now });
        self.publish(usize::MAX, &node, false, &json.into());
    }

    // Faults.

    fn fault(&mut self) {
        if self.rest_from < u64::MAX {
            return;
        }
        let kinds = [
            self.faults.cuts,
            self.faults.short_stalls,
            self.faults.long_stalls,
            self.faults.failovers,
            self.faults.suspensions,
            self.faults.kills,
            self.faults.twins,
        ];
        let kinds: Vec<usize> = (0..kinds.len()).filter(|&kind| kinds[kind]).collect();
        if !kinds.is_empty() {
            let kind = kinds[self.rng.below(kinds.len() as u64) as usize];
            self.disturbances.push(self.now);
            self.fault_of(kind);
        }
        let most = if self.rng.one_in(3) { 3 * S } else { 20 * S };
        let delay = 100 * MS + self.rng.below(most);
        self.at(self.now + delay, What::Fault);
    }

    fn fault_of(&mut self, kind: usize) {
        let Some(at) = self.up_process() else { return };
        match kind {
            0 => {
                self.processes[at].cut_off_at = self.now;
                self.lose(at);
            }
            1 => self.stall(1 + self.rng.0 % (2_500 * MS)),
            2 => {
                let stall = 4 * S + self.rng.below(16 * S);
                self.stall(stall);
            }
            3 => {
                let Some((since, data)) =
                    self.snapshots.get(self.rng.0 as usize % self.snapshots.len().max(1)).cloned()
                else {
                    return;
                };
                self.note(|| format!("a failover loses what was written since {since}"));
                self.losses.push(self.now);
                self.redis.data = data;
                let delay = self.rng.below(12 * S);
                self.down_until = self.now + delay;
                self.stalls.push((self.now, self.down_until));
                for at in 0..self.processes.len() {
                    self.lose(at);
                }
            }
            4 => {
                let most = if self.rng.one_in(2) { 3 * S } else { 30 * S };
                let until = self.now + self.rng.below(most);
                self.note(|| format!("process {at} is suspended until {until}"));
                let process = &mut self.processes[at];
                process.suspended_until = until;
                process.woke_at = until;
                self.outages.push(Outage { process: at, since: self.now, until });
                let process = &mut self.processes[at];
                process.runs_at = None;
                self.run_bus_at(at, until);
                self.processes[at].shard_runs_at = None;
                self.wake_shard(at);
            }
            5 => {
                self.note(|| format!("process {at} is killed"));
                self.end(at, false);
                let node = self.processes[at].node.clone();
                let most = if self.rng.one_in(2) { S } else { 40 * S };
                let delay = self.rng.below(most);
                self.at(self.now + delay, What::Restart(node));
            }
            _ => {
                let node = self.processes[at].node.clone();
                self.start(node);
            }
        }
    }

    fn stall(&mut self, length: u64) {
        self.note(|| format!("Redis stalls for {length} us"));
        self.stalled_until = self.stalled_until.max(self.now + length);
        self.stalls.push((self.now, self.stalled_until));
        self.at(self.stalled_until, What::Stall);
        if length > ANSWER_MAX {
            for at in 0..self.processes.len() {
                if self.processes[at].is_connected {
                    let (session, jitter) = (self.processes[at].session, self.rng.below(S));
                    self.at(self.now + ANSWER_MAX + jitter, What::Lost(at, session));
                }
            }
        }
    }
}

/// What an envelope carries.
fn story(envelope: &Bytes) -> String {
    let Some((header, mut items)) = wire::read(envelope) else { return "junk".to_owned() };
    let mut told = format!("{} of {} acks {}:", header.first_seq, header.from, header.ack);
    while let Some(item) = wire::take_item(&mut items) {
        let text = String::from_utf8_lossy(&item.frame);
        let number =
            text.rsplit_once("content\":\"").map_or("", |(_, number)| number.split(['/', '"']).next().unwrap_or(""));
        let kind = item.kind.map_or_else(|| "?".to_owned(), |kind| format!("{kind:?}"));
        let stamp = format!("{}:{}:{}", item.origin, item.stream % 1000, item.place);
        told += &format!(" {kind}/{} {} {} {stamp} {number};", item.flags, item.user, item.number);
    }
    told
}

pub fn name(user: usize) -> String {
    format!("u{user}")
}
