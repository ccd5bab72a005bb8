//! Goal: every accepted message is delivered exactly once and in order to every connection that was open throughout,
//! and no queue passes its bound, however the shards' turns fall.
//!
//! Method: the hubs of several shards on one thread, joined by lists instead of channels, with a virtual clock. Their
//! turns are the real ones (`shard::turn`), and so are their ports to the bus. A seed decides every step: who connects,
//! closes, speaks or floods, whose turn it is, which batches have arrived by then, how much of an inbox is handled, when
//! a shard holds broadcasts back. What a turn says leaves with it; a shard sleeps only when a further turn would find
//! nothing to do, and then has turns only when something wakes it. Every second seed has a bus, which registers users late or not at all,
//! brings messages, and has no room at times: then a connection that waits is answered once, who sends what cannot be
//! taken is told, and what is not delivered here is with the bus. `RINGMESH_SEED=n` repeats one run.

#[path = "simulation/fake_bus.rs"]
mod fake_bus;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringmesh::client::Command;
use ringmesh::hub::bus::{FromBus, ToBus};
use ringmesh::hub::effects::{Effects, Origin, Verdict, Wire};
use ringmesh::hub::envelope::{Broadcast, Class, MESSAGE_WEIGHT, ToHome, ToOwner};
use ringmesh::hub::links::{Batch, Links};
use ringmesh::hub::{Hub, HubConfig, Input, Outcome};
use ringmesh::ids::{ConnId, ShardId};
use ringmesh::shard::port::{ShardPort, ports};
use ringmesh::shard::turn::{self, Next, Queues, Steps};
use ringmesh::time::Micros;

use fake_bus::FakeBus;

const SEEDS: u64 = 60;
const STEPS: usize = 4_000;
const USERS: u64 = 12;
/// Large enough that a few dozen fill a window.
const CONTENT_BYTES_MAX: u64 = 60_000;
/// Batches between two shards before the channel is full.
const CHANNEL_BATCHES_MAX: usize = 4;
/// The sender of what the bus brings.
const FAR: usize = usize::MAX;

#[test]
fn accepted_is_delivered_once_and_in_order_whatever_the_interleaving() {
    let chosen = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut seen = Coverage::default();
    for seed in chosen.map_or(0..SEEDS, |seed: u64| seed..seed + 1) {
        let outcome = std::panic::catch_unwind(|| Sim::new(seed).run());
        match outcome {
            Ok(coverage) => seen.add(&coverage),
            Err(panic) => {
                eprintln!("failed with RINGMESH_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if chosen.is_none() {
        // A simulation that never met what it is about proves nothing.
        assert!(seen.no_room > 100, "backpressure was met {} times", seen.no_room);
        assert!(seen.checked > 10_000, "{} deliveries were checked", seen.checked);
        assert!(seen.full_channels > 100, "a full channel was met {} times", seen.full_channels);
        let Coverage { sleeps, credits_alone, registrations, refusals, returned, overloaded, with_bus, .. } = seen;
        for (what, count) in [
            ("a shard slept", sleeps),
            ("credits came alone to a shard whose clients waited", credits_alone),
            ("a user was registered", registrations),
            ("a user was not registered", refusals),
            ("a message was handed back", returned),
            ("a message was not taken", overloaded),
            ("a message went to the bus", with_bus),
        ] {
            assert!(count > 50, "{what} {count} times");
        }
    }
}

#[derive(Default)]
struct Coverage {
    no_room: u64,
    checked: u64,
    full_channels: u64,
    sleeps: u64,
    /// Turns that took credits in and no message: only they give room then.
    credits_alone: u64,
    /// With a bus: answers of both kinds, messages handed back, and messages that were not taken.
    registrations: u64,
    refusals: u64,
    returned: u64,
    overloaded: u64,
    with_bus: u64,
}

impl Coverage {
    fn add(&mut self, other: &Self) {
        self.no_room += other.no_room;
        self.checked += other.checked;
        self.full_channels += other.full_channels;
        self.sleeps += other.sleeps;
        self.credits_alone += other.credits_alone;
        self.registrations += other.registrations;
        self.refusals += other.refusals;
        self.returned += other.returned;
        self.overloaded += other.overloaded;
        self.with_bus += other.with_bus;
    }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.next().is_multiple_of(odds)
    }
}

/// What a shard's rim would be.
struct Outlet {
    rng: Rng,
    links: Links,
    port: Option<ShardPort>,
    /// Said to the bus since the last time it was handed over.
    said: u64,
    bus_has_room: bool,
    bus_takes_broadcasts: bool,
    /// How often a connection was told that a message of its was not taken.
    overloaded: HashMap<ConnId, u64>,
    answered: HashSet<ConnId>,
    takes_broadcasts: bool,
    postponed: VecDeque<ConnId>,
    open: HashSet<ConnId>,
    refused: Vec<ConnId>,
    received: HashMap<ConnId, Vec<String>>,
}

impl Outlet {
    fn take(&mut self, conn: ConnId, frame: &[u8]) {
        self.received.entry(conn).or_default().push(number_of(frame));
    }
}

impl Effects for Outlet {
    fn decide(&mut self, conn: ConnId, verdict: Verdict) {
        assert!(self.answered.insert(conn), "{conn:?} is answered twice");
        match verdict {
            Verdict::Open => assert!(self.open.insert(conn), "{conn:?} opened twice"),
            Verdict::Nameless | Verdict::TooMany { .. } | Verdict::Unavailable => self.refused.push(conn),
        }
    }

    fn deliver(&mut self, conn: ConnId, frame: Wire<'_>, _origin: Origin) -> bool {
        if number_of(frame.as_slice()).starts_with("error") {
            *self.overloaded.entry(conn).or_default() += 1;
            return self.open.contains(&conn);
        }
        let is_open = self.open.contains(&conn);
        if is_open {
            self.take(conn, frame.as_slice());
        }
        is_open
    }

    fn deliver_all(&mut self, frame: Wire<'_>, _received: Micros) {
        for conn in self.open.clone() {
            self.take(conn, frame.as_slice());
        }
    }

    fn postpone(&mut self, conn: ConnId) {
        self.postponed.push_back(conn);
    }

    fn takes_broadcasts(&self) -> bool {
        self.takes_broadcasts
    }

    fn has_room(&self, class: Class, shard: ShardId) -> bool {
        self.links.has_room(class, shard)
    }

    fn push_home(&mut self, shard: ShardId, message: ToHome) {
        self.links.push_home(shard, message);
    }

    fn push_owner(&mut self, shard: ShardId, message: ToOwner) {
        self.links.push_owner(shard, message);
    }

    fn push_broadcast(&mut self, shard: ShardId, message: Broadcast) {
        self.links.push_broadcast(shard, message);
    }

    fn bus_has_room(&self) -> bool {
        self.bus_has_room && self.port.as_ref().is_some_and(ShardPort::has_room)
    }

    fn push_bus(&mut self, message: ToBus) {
        self.said += 1;
        self.port.as_mut().expect("a hub with a bus").push(message);
    }

    fn bus_takes_broadcasts(&self) -> bool {
        self.bus_takes_broadcasts
    }
}

impl Queues for Outlet {
    fn messages_max(&mut self) -> usize {
        1 + self.rng.below(30)
    }

    fn links(&mut self) -> &mut Links {
        &mut self.links
    }

    fn pull_bus(&mut self) {
        self.port.iter_mut().for_each(ShardPort::pull);
    }

    fn take_bus(&mut self) -> Option<FromBus> {
        self.port.as_mut()?.take()
    }

    fn handled_bus(&mut self, message: &FromBus) {
        self.port.as_mut().expect("it was taken from here").handled(message);
    }

    fn unhandled_bus(&mut self, message: FromBus) {
        self.port.as_mut().expect("it was taken from here").unhandled(message);
    }

    fn take_bus_broadcast(&mut self) -> Option<FromBus> {
        self.port.as_mut()?.take_broadcast()
    }

    fn postponed(&self) -> usize {
        self.postponed.len()
    }

    fn take_postponed(&mut self) -> Option<ConnId> {
        self.postponed.pop_front()
    }
}

/// The server frame of a short text.
fn text_frame(text: &str) -> Vec<u8> {
    let len = u16::try_from(text.len()).expect("a short text");
    let mut frame = vec![0x81, 126];
    frame.extend(len.to_be_bytes());
    frame.extend(text.as_bytes());
    frame
}

/// The number that a simulated message carries, with its kind: `message-7` or `broadcast-9`.
fn number_of(frame: &[u8]) -> String {
    let payload_at = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let payload: serde_json::Value = serde_json::from_slice(&frame[payload_at..]).expect("a frame of JSON");
    let content = payload["content"].as_str().unwrap_or_default();
    let number = content.split('/').next().unwrap_or_default();
    format!("{}-{number}", payload["type"].as_str().unwrap_or_default())
}

struct Client {
    shard: usize,
    conn: ConnId,
    user: String,
    /// The message that found no room: reading is paused, and nothing else is said until it is handled.
    stalled: Option<Say>,
    gone: bool,
}

#[derive(Clone)]
struct Say {
    target: Option<String>,
    content: String,
    number: u64,
}

/// What the ring of a shard would bring. It names a client.
enum Event {
    Ask(usize),
    Close(usize),
    Say(usize, Say),
}

/// What a shard is besides its hub and its outlet.
#[derive(Default)]
struct Rim {
    events: VecDeque<Event>,
    /// Of these, those of the current turn.
    ready: usize,
    /// Becomes readable when the bus wakes the shard.
    wake: Option<UnixStream>,
    is_asleep: bool,
    /// It has no turns.
    is_stuck: bool,
    /// Something that only passes with time has changed: the next tick shows it.
    is_tick_due: bool,
    /// In the last turn: a channel was full, and whether nothing of the shard was said to be on its way.
    was_full: bool,
    is_quiet: bool,
}

/// An accepted message and who must get it: connections that were open then and still are at the end.
struct Accepted {
    number: u64,
    sender: usize,
    target: Option<String>,
    must_get: Vec<usize>,
}

struct Sim {
    rng: Rng,
    now: Micros,
    hubs: Vec<Hub>,
    outlets: Vec<Outlet>,
    rims: Vec<Rim>,
    /// Nobody connects, speaks or goes any more, and the bus only answers.
    is_over: bool,
    /// Nothing arrives, for one turn.
    is_frozen: bool,
    /// `channels[from][to]`
    channels: Vec<Vec<VecDeque<Batch>>>,
    clients: Vec<Client>,
    /// Connection indexes that may be used again, with the generation that comes next.
    vacant: Vec<Vec<ConnId>>,
    used: Vec<u32>,
    accepted: Vec<Accepted>,
    numbers: u64,
    bus: Option<FakeBus>,
    coverage: Coverage,
}

/// A shard in its turn.
struct SimShard<'a> {
    shard: usize,
    sim: &'a mut Sim,
}

impl SimShard<'_> {
    fn rim(&mut self) -> &mut Rim {
        &mut self.sim.rims[self.shard]
    }

    fn outlet(&mut self) -> &mut Outlet {
        &mut self.sim.outlets[self.shard]
    }
}

impl Steps for SimShard<'_> {
    type Error = Infallible;
    type Queues = Outlet;

    fn hub(&mut self) -> (Micros, &mut Hub, &mut Outlet) {
        (self.sim.now, &mut self.sim.hubs[self.shard], &mut self.sim.outlets[self.shard])
    }

    fn turn_ring(&mut self) -> Result<usize, Infallible> {
        let waiting = self.rim().events.len();
        let ready = self.sim.rng.below(waiting + 1);
        self.rim().ready = ready;
        Ok(ready)
    }

    fn handle_events(&mut self) {
        for _ in 0..self.rim().ready {
            match self.rim().events.pop_front().expect("it was counted") {
                Event::Ask(client) => self.sim.ask(client),
                Event::Close(client) => self.sim.closed(client),
                Event::Say(client, say) => self.sim.say(client, say),
            }
        }
    }

    fn receive_batches(&mut self) {
        if self.sim.is_frozen {
            return;
        }
        let (mut messages, mut credits) = (0, 0);
        for from in 0..self.sim.hubs.len() {
            for _ in 0..self.sim.rng.below(3) {
                let Some(batch) = self.sim.channels[from][self.shard].pop_front() else { break };
                messages += batch.len();
                credits += batch.credits.iter().sum::<u64>();
                self.outlet().links.receive(ShardId(from as u16), batch);
            }
        }
        let waits = self.sim.left_undone(self.shard) != (0, 0, false);
        self.sim.coverage.credits_alone += u64::from(messages == 0 && credits > 0 && waits);
    }

    fn retry_stalled(&mut self) -> bool {
        let mut went_on = false;
        for client in 0..self.sim.clients.len() {
            if self.sim.clients[client].shard == self.shard
                && let Some(say) = self.sim.clients[client].stalled.take()
            {
                self.sim.say(client, say);
                went_on |= self.sim.clients[client].stalled.is_none();
            }
        }
        went_on
    }

    fn survey(&mut self) {}

    fn send(&mut self) {
        // A reader that is too slow is cut off.
        if !self.sim.is_over
            && !self.sim.is_frozen
            && self.sim.rng.one_in(100)
            && let Some(client) = self.sim.any_client()
            && self.sim.clients[client].shard == self.shard
            && self.sim.is_open(client)
        {
            self.sim.closed(client);
        }
        self.sim.bury_refused(self.shard);
    }

    fn send_batches(&mut self) -> bool {
        let mut sent = false;
        self.rim().was_full = false;
        for to in self.outlet().links.peers() {
            let Some(batch) = self.outlet().links.take_batch(to) else { continue };
            let channel = &mut self.sim.channels[self.shard][to.index()];
            if channel.len() < CHANNEL_BATCHES_MAX {
                channel.push_back(batch);
                sent = true;
            } else {
                self.sim.coverage.full_channels += 1;
                self.rim().was_full = true;
                self.outlet().links.return_batch(to, batch);
            }
        }
        sent
    }

    fn flush_bus(&mut self) -> bool {
        self.outlet().said = 0;
        self.outlet().port.as_mut().is_some_and(ShardPort::flush)
    }

    fn report(&mut self) {
        self.rim().is_quiet = self.sim.is_quiet(self.shard);
    }

    fn is_finished(&self) -> bool {
        false
    }

    fn has_more(&self) -> bool {
        false
    }

    fn ring_sleeps(&mut self) -> Result<bool, Infallible> {
        // Something may come in between.
        if !self.sim.is_over && !self.sim.is_frozen && self.sim.rng.one_in(6) {
            match self.sim.rng.one_in(2) {
                true => self.sim.bus_acts(self.shard),
                false => self.sim.speak(),
            }
        }
        Ok(self.rim().events.is_empty())
    }

    fn bus_sleeps(&mut self) -> bool {
        self.outlet().port.as_ref().is_none_or(ShardPort::before_park)
    }

    fn wake(&mut self) {
        self.outlet().port.iter().for_each(ShardPort::after_park);
    }
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let shards = 1 + rng.below(5);
        let config = HubConfig {
            shards: shards as u16,
            connections_max: 64,
            connects_per_address_max: if rng.one_in(2) { 0 } else { 1_000 },
            connects_per_address_window: Duration::from_secs(60),
            hasher: ahash::RandomState::with_seeds(seed, 2, 3, 4),
            has_bus: seed % 2 == 1,
        };
        let ids = (0..shards as u16).map(ShardId);
        let (shard_ports, bus_port) = ports(config.shards);
        let mut rims: Vec<Rim> = ids.clone().map(|_| Rim::default()).collect();
        let mut shard_ports: Vec<Option<ShardPort>> = shard_ports.into_iter().map(Some).collect();
        for ((rim, port), id) in rims.iter_mut().zip(&mut shard_ports).zip(ids.clone()) {
            let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
            ours.set_nonblocking(true).expect("a socket");
            rim.wake = Some(ours);
            port.take_if(|_| !config.has_bus);
            port.iter().for_each(|port| port.attach(id, theirs.try_clone().expect("a socket").into()));
        }
        Self {
            rng,
            rims,
            is_over: false,
            is_frozen: false,
            now: Micros(1),
            hubs: ids.clone().map(|id| Hub::new(id, &config, Box::leak(Box::default()))).collect(),
            outlets: ids
                .zip(shard_ports)
                .map(|(id, port)| Outlet {
                    rng: Rng((seed ^ u64::from(id.0) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
                    links: Links::new(id, config.shards),
                    port,
                    said: 0,
                    bus_has_room: true,
                    bus_takes_broadcasts: true,
                    overloaded: HashMap::new(),
                    answered: HashSet::new(),
                    takes_broadcasts: true,
                    postponed: VecDeque::new(),
                    open: HashSet::new(),
                    refused: Vec::new(),
                    received: HashMap::new(),
                })
                .collect(),
            channels: (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
            clients: Vec::new(),
            vacant: vec![Vec::new(); shards],
            used: vec![0; shards],
            accepted: Vec::new(),
            numbers: 0,
            bus: config.has_bus.then(|| FakeBus::new(bus_port)),
            coverage: Coverage::default(),
        }
    }

    fn run(mut self) -> Coverage {
        // Steps in which no client does anything: only what is under way keeps the shards up.
        let mut lull = 0_usize;
        for _ in 0..STEPS {
            self.now = Micros(self.now.0 + self.rng.next() % 1_000);
            let shard = self.rng.below(self.hubs.len());
            let kind = if lull == 0 { self.rng.below(20) } else { 12 + self.rng.below(8) };
            lull = lull.saturating_sub(1);
            match kind {
                0 if self.clients.iter().filter(|client| !client.gone).count() < 40 => self.connect(shard),
                1 if self.rng.one_in(4) => self.close(),
                2..=9 => self.speak(),
                10 if self.rng.one_in(4) => self.flood(),
                11 if self.rng.one_in(3) => {
                    self.outlets[shard].takes_broadcasts = !self.outlets[shard].takes_broadcasts;
                    self.rims[shard].is_tick_due = true;
                }
                12 | 13 if self.bus.is_some() => self.bus_acts(shard),
                // A shard that has no turns for a while: what goes to it fills its windows.
                15 if self.rng.one_in(10) => lull = 20 * self.hubs.len(),
                14 if self.rng.one_in(10) => self.rims[shard].is_stuck = !self.rims[shard].is_stuck,
                _ => {
                    // A tick wakes a shard now and then, but nothing depends on it.
                    if !self.rims[shard].is_stuck && (self.is_awake(shard) || self.rng.one_in(30)) {
                        self.turn(shard);
                    }
                }
            }
            self.check_bounds();
        }
        self.settle();
        self.check();
        self.coverage
    }

    fn connect(&mut self, shard: usize) {
        let conn = self.vacant[shard].pop().unwrap_or_else(|| {
            self.used[shard] += 1;
            ConnId { index: self.used[shard] - 1, generation: 0 }
        });
        let user = format!("user-{}", self.rng.next() % USERS);
        self.rims[shard].events.push_back(Event::Ask(self.clients.len()));
        self.clients.push(Client { shard, conn, user, stalled: None, gone: false });
    }

    fn ask(&mut self, client: usize) {
        let Client { shard, conn, ref user, .. } = self.clients[client];
        let address = IpAddr::from(Ipv4Addr::new(10, 0, 0, self.rng.below(9) as u8));
        let input = Input::Ask { conn, user: Some(user), address };
        self.hubs[shard].handle(self.now, input, &mut self.outlets[shard]);
    }

    /// Some of what a shard has said reaches the bus, and the bus does something.
    fn bus_acts(&mut self, shard: usize) {
        let Some(bus) = &mut self.bus else { return };
        let outlet = &mut self.outlets[shard];
        bus.drain();
        bus.take_some(ShardId(shard as u16), self.rng.below(6));
        if self.rng.one_in(6) {
            outlet.bus_has_room = !outlet.bus_has_room;
            self.rims[shard].is_tick_due = true;
        }
        if self.rng.one_in(6) {
            outlet.bus_takes_broadcasts = !outlet.bus_takes_broadcasts;
        }
        self.numbers += 1;
        if let Some((number, user)) = bus.act(&mut self.rng, self.numbers) {
            let must_get = (0..self.clients.len())
                .filter(|&client| self.is_open(client) && self.clients[client].user == user)
                .collect();
            self.accepted.push(Accepted { number, sender: FAR, target: Some(user), must_get });
        }
        if self.rng.one_in(2)
            && let Some(bus) = &mut self.bus
        {
            bus.hand_over();
        }
    }

    /// Connections that were refused are gone, without another word to the hub.
    fn bury_refused(&mut self, shard: usize) {
        for conn in std::mem::take(&mut self.outlets[shard].refused) {
            let client = self.clients.iter_mut().find(|client| client.shard == shard && client.conn == conn);
            if let Some(client) = client.filter(|client| !client.gone) {
                client.gone = true;
                self.vacant[shard].push(ConnId { index: conn.index, generation: conn.generation + 1 });
            }
        }
    }

    fn close(&mut self) {
        let Some(client) = self.any_client() else { return };
        self.rims[self.clients[client].shard].events.push_back(Event::Close(client));
    }

    fn closed(&mut self, client: usize) {
        let Client { shard, conn, gone, .. } = self.clients[client];
        if gone {
            return;
        }
        self.clients[client].gone = true;
        self.clients[client].stalled = None;
        self.outlets[shard].open.remove(&conn);
        self.hubs[shard].handle(self.now, Input::Gone { conn }, &mut self.outlets[shard]);
        self.vacant[shard].push(ConnId { index: conn.index, generation: conn.generation + 1 });
    }

    fn any_client(&mut self) -> Option<usize> {
        let present: Vec<usize> = (0..self.clients.len()).filter(|&at| !self.clients[at].gone).collect();
        (!present.is_empty()).then(|| present[self.rng.below(present.len())])
    }

    fn is_open(&self, client: usize) -> bool {
        let Client { shard, conn, gone, .. } = self.clients[client];
        !gone && self.outlets[shard].open.contains(&conn)
    }

    fn speak(&mut self) {
        let Some(client) = self.any_client().filter(|&client| self.is_open(client)) else { return };
        let target = (!self.rng.one_in(4)).then(|| format!("user-{}", self.rng.next() % (USERS + 2)));
        self.numbers += 1;
        let padding = if self.rng.one_in(3) { self.rng.next() % CONTENT_BYTES_MAX } else { self.rng.next() % 100 };
        let content = format!("\"{}/{}\"", self.numbers, "x".repeat(padding as usize));
        let say = Say { target, content, number: self.numbers };
        self.rims[self.clients[client].shard].events.push_back(Event::Say(client, say));
    }

    fn flood(&mut self) {
        for _ in 0..200 {
            self.speak();
        }
    }

    /// What a client says is handled, or waits in front of whatever it says next.
    fn say(&mut self, client: usize, say: Say) {
        if self.clients[client].stalled.is_some() || !self.is_open(client) {
            return;
        }
        let Client { shard, conn, .. } = self.clients[client];
        let command = match &say.target {
            Some(target) => Command::SendMessage { target: target.as_str().into(), content: &say.content },
            None => Command::Broadcast { content: &say.content },
        };
        let must_get: Vec<usize> = (0..self.clients.len())
            .filter(|&other| self.is_open(other))
            .filter(|&other| say.target.as_ref().is_none_or(|target| *target == self.clients[other].user))
            .collect();
        let input = Input::Said { conn, command: Ok(command) };
        let overloaded = |outlet: &Outlet| outlet.overloaded.get(&conn).copied().unwrap_or_default();
        let overloaded_before = overloaded(&self.outlets[shard]);
        match self.hubs[shard].handle(self.now, input, &mut self.outlets[shard]) {
            Outcome::Done if overloaded(&self.outlets[shard]) > overloaded_before => {
                // Told at once: it was not accepted.
                self.outlets[shard].overloaded.insert(conn, overloaded_before);
                self.coverage.overloaded += 1;
            }
            Outcome::Done => {
                self.accepted.push(Accepted { number: say.number, sender: client, target: say.target, must_get });
            }
            Outcome::NoRoom => {
                self.coverage.no_room += 1;
                self.clients[client].stalled = Some(say);
            }
        }
    }

    /// Whether a shard is to have a turn: it does not sleep, or something has woken it.
    fn is_awake(&mut self, shard: usize) -> bool {
        let rim = &mut self.rims[shard];
        let is_woken = rim.wake.as_mut().is_some_and(|wake| wake.read(&mut [0; 8]).is_ok());
        rim.is_tick_due |= is_woken;
        let has_arrived = self.channels.iter().any(|from| !from[shard].is_empty());
        !rim.is_asleep || rim.is_tick_due || has_arrived || !rim.events.is_empty()
    }

    fn turn(&mut self, shard: usize) {
        let next = self.turn_once(shard);
        if next == Next::Sleep && !self.rims[shard].is_tick_due {
            self.coverage.sleeps += 1;
            let before = self.left_undone(shard);
            self.is_frozen = true;
            let next = self.turn_once(shard);
            self.is_frozen = false;
            let after = self.left_undone(shard);
            assert_eq!((next, after), (Next::Sleep, before), "shard {shard} would have slept with something to do");
        }
    }

    fn turn_once(&mut self, shard: usize) -> Next {
        self.rims[shard].is_tick_due = false;
        let mut steps = SimShard { shard, sim: self };
        if std::mem::take(&mut steps.rim().is_asleep) {
            steps.wake();
        }
        let Ok(next) = turn::turn(&mut steps);
        let rim = &mut self.rims[shard];
        rim.is_asleep = next == Next::Sleep;
        // A full channel is tried again with the next tick.
        rim.is_tick_due |= rim.was_full;
        let outlet = &self.outlets[shard];
        assert_eq!(outlet.said, 0, "shard {shard} has not handed over what it said to the bus in this turn");
        assert!(!outlet.links.has_outbound() || rim.was_full, "shard {shard} has not sent what it had for others");
        assert_eq!(
            self.rims[shard].is_quiet,
            self.is_quiet(shard),
            "shard {shard} said before its turn was over what was on its way"
        );
        next
    }

    /// What waits for room.
    fn left_undone(&self, shard: usize) -> (usize, usize, bool) {
        let stalled = self.clients.iter().filter(|client| client.shard == shard && client.stalled.is_some()).count();
        (stalled, self.outlets[shard].postponed.len(), self.hubs[shard].is_leaving())
    }

    fn is_quiet(&self, shard: usize) -> bool {
        let outlet = &self.outlets[shard];
        let bus_is_quiet = outlet.port.as_ref().is_none_or(ShardPort::is_quiet);
        outlet.links.is_quiet() && bus_is_quiet && !self.hubs[shard].is_leaving()
    }

    /// Nobody speaks any more: everything has to come to rest, with nothing left anywhere, and no tick helps.
    fn settle(&mut self) {
        self.is_over = true;
        for (outlet, rim) in self.outlets.iter_mut().zip(&mut self.rims) {
            outlet.takes_broadcasts = true;
            outlet.bus_has_room = true;
            rim.is_tick_due = true;
            rim.is_stuck = false;
        }
        for _ in 0..20_000 {
            for shard in 0..self.hubs.len() {
                if self.is_awake(shard) {
                    self.turn(shard);
                }
            }
            if let Some(bus) = &mut self.bus {
                bus.drain();
                (0..self.hubs.len()).for_each(|shard| bus.take_some(ShardId(shard as u16), usize::MAX));
                bus.answer_one(&mut self.rng, 6);
                bus.hand_over();
            }
            if self.is_settled() {
                return;
            }
        }
        panic!("the shards are stuck: {} clients stalled", self.clients.iter().filter(|c| c.stalled.is_some()).count());
    }

    fn is_settled(&self) -> bool {
        self.clients.iter().all(|client| client.stalled.is_none())
            && self.channels.iter().flatten().all(VecDeque::is_empty)
            && self.rims.iter().all(|rim| rim.events.is_empty())
            && self.outlets.iter().all(|outlet| outlet.refused.is_empty())
            && self.outlets.iter().all(|outlet| outlet.port.as_ref().is_none_or(ShardPort::is_quiet))
            && self.bus.as_ref().is_none_or(FakeBus::is_quiet)
            && self.hubs.iter().all(|hub| !hub.is_leaving())
            && self.outlets.iter().all(|outlet| !outlet.links.has_inbound() && outlet.postponed.is_empty())
            && self.outlets.iter().all(|outlet| !outlet.links.has_outbound())
            && (0..self.clients.len()).all(|client| self.clients[client].gone || self.is_open(client))
    }

    fn check_bounds(&self) {
        let one_message = CONTENT_BYTES_MAX + MESSAGE_WEIGHT + 1_000;
        for outlet in &self.outlets {
            let bound = outlet.links.window_bytes() + one_message;
            for peer in outlet.links.peers() {
                for class in [Class::Home, Class::Owner, Class::Broadcast] {
                    let in_flight = outlet.links.in_flight_bytes(class, peer);
                    assert!(in_flight <= bound, "{in_flight} bytes of {class:?} in flight, {bound} allowed");
                }
            }
        }
    }

    fn check(&mut self) {
        self.check_bus();
        let refused = self.refused_later();
        let mut expected: BTreeMap<usize, HashSet<String>> = BTreeMap::new();
        for message in self.accepted.iter().filter(|message| !refused.contains(&message.number)) {
            let kind = if message.target.is_some() { "message" } else { "broadcast" };
            for &client in message.must_get.iter().filter(|&&client| !self.clients[client].gone) {
                expected.entry(client).or_default().insert(format!("{kind}-{}", message.number));
            }
        }
        let nothing = Vec::new();
        let senders: HashMap<String, (u64, usize)> = self
            .accepted
            .iter()
            .map(|message| {
                let kind = if message.target.is_some() { "message" } else { "broadcast" };
                (format!("{kind}-{}", message.number), (message.number, message.sender))
            })
            .collect();
        for (at, client) in self.clients.iter().enumerate() {
            let received = self.outlets[client.shard].received.get(&client.conn).unwrap_or(&nothing);
            let distinct: HashSet<&String> = received.iter().collect();
            assert_eq!(distinct.len(), received.len(), "client {at} got something twice");
            for missing in expected.get(&at).into_iter().flatten() {
                assert!(distinct.contains(missing), "client {at} never got {missing}");
                self.coverage.checked += 1;
            }
            // In order: of each sender, messages among themselves and broadcasts among themselves.
            let mut last: HashMap<(usize, &str), u64> = HashMap::new();
            for got in received {
                let (number, sender) = *senders.get(got).expect("nothing arrives that was not accepted");
                let kind = got.split('-').next().unwrap_or_default();
                let before = last.insert((sender, kind), number);
                assert!(before.is_none_or(|before| before < number), "client {at} got {got} after number {before:?}");
            }
        }
    }

    /// The messages that nobody got, neither here nor the bus, though they were accepted: for each their sender was told.
    fn refused_later(&mut self) -> HashSet<u64> {
        let Some(bus) = &self.bus else { return HashSet::new() };
        let received: HashSet<&String> = self.outlets.iter().flat_map(|o| o.received.values()).flatten().collect();
        let mut refused: HashMap<usize, Vec<u64>> = HashMap::new();
        for message in self.accepted.iter().filter(|message| message.target.is_some() && message.sender != FAR) {
            let name = format!("message-{}", message.number);
            if !received.contains(&name) && !bus.unicasts.contains_key(&name) {
                refused.entry(message.sender).or_default().push(message.number);
            }
        }
        let mut all = HashSet::new();
        for (sender, numbers) in refused {
            let Client { shard, conn, .. } = self.clients[sender];
            let told = self.outlets[shard].overloaded.get(&conn).copied().unwrap_or_default();
            // A message to a connection that was gone by then is lost with it, and nobody is told.
            let owed = self.accepted.iter().filter(|message| numbers.contains(&message.number));
            let owed = owed.filter(|message| message.must_get.iter().any(|&client| !self.clients[client].gone)).count();
            assert!(
                owed as u64 <= told,
                "client {sender}: {owed} messages of {numbers:?} are lost, {told} were refused"
            );
            self.coverage.overloaded += told;
            all.extend(numbers);
        }
        all
    }

    fn check_bus(&mut self) {
        let Some(bus) = &self.bus else { return };
        self.coverage.registrations += bus.registrations;
        self.coverage.refusals += bus.refusals;
        self.coverage.returned += bus.returned.len() as u64;
        self.coverage.with_bus += bus.unicasts.len() as u64;
        let present: HashSet<String> =
            self.clients.iter().filter(|client| !client.gone).map(|client| client.user.clone()).collect();
        assert_eq!(bus.users(), present, "the bus knows who is here");
        let received: HashSet<&String> = self.outlets.iter().flat_map(|o| o.received.values()).flatten().collect();
        for (name, delivered_here) in &bus.unicasts {
            assert!(
                *delivered_here || !received.contains(name),
                "{name} was delivered here, and the bus does not know"
            );
        }
        for name in &bus.returned {
            assert!(!received.contains(name), "{name} was delivered and handed back");
        }
        for message in self.accepted.iter().filter(|message| message.target.is_none()) {
            let times = bus.broadcasts.get(&format!("broadcast-{}", message.number));
            assert_eq!(times, Some(&1), "broadcast {}", message.number);
        }
    }
}
