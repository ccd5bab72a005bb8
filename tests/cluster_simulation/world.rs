//! The world: processes and a Redis, event by event on a virtual clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use ringmesh::bus::Input as BusInput;
use ringmesh::bus::call::{Incarnation, NodeId, Reply};
use ringmesh::bus::wire;
use ringmesh::metrics::ShardMetrics;

use crate::process::{Process, Shape};
use crate::redis::{Data, Redis};

mod calls;
mod clients;
mod faults;
mod outages;

use calls::Flight;
pub use clients::{Broadcast, Client, Message, name};
pub use faults::{Faults, Play};
pub use outages::{ENTERED_WITHIN, Loss, Outage, Upheaval};

pub const MS: u64 = 1_000;
pub const S: u64 = 1_000_000;

const NODES: usize = 3;
/// How long after the last fault and the last action everything has to have come to rest.
const QUIET: u64 = 130 * S;
/// How long a bus that stops waits for what is under way.
const STOP_WITHIN: u64 = 3 * S;

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
    /// Lives that were declared dead: who knows of it does it again where Redis has lost it.
    dead_lives: BTreeSet<(NodeId, Incarnation)>,
    pub losses: Vec<Loss>,
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
            dead_lives: BTreeSet::new(),
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
        world.at(faults.first_at(), What::Fault);
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
            let (node, delay) = (self.processes[at].node.clone(), self.rng.below(10 * S));
            self.at(self.now + delay, What::Restart(node));
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
        // Nothing is lost with a process that stops, unless time was up.
        let has_time = |since: u64| now - since < STOP_WITHIN;
        if self.processes[at].bus.incarnation() != 0 && !self.processes[at].stops_since.is_some_and(has_time) {
            self.upheavals.push(Upheaval { process: at, since: now, until: u64::MAX, was_declared: false });
        }
        self.ends_outage(at);
        for client in self.clients.iter_mut().filter(|client| client.process == at && client.closed_at.is_none()) {
            client.closed_at = Some(now);
        }
        self.orphan_flights(at);
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
        let stamp = format!("{}:{}:{}", item.origin.node, item.origin.process % 1000, item.place);
        told += &format!(" {kind} {} {} {stamp} {number};", item.user, item.number);
    }
    told
}
