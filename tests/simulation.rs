//! Goal: every accepted message is delivered exactly once and in order to every connection that was open throughout,
//! and no queue passes its bound, however the shards' turns fall.
//!
//! Method: the hubs of several shards on one thread, joined by lists instead of channels, with a virtual clock. A seed
//! decides every step: who connects, closes, speaks or floods, which batch arrives next, how much of an inbox is
//! handled, when a shard holds broadcasts back. Every second seed has a bus, which registers users late or not at all,
//! brings messages, and has no room at times: then a connection that waits is answered once, who sends what cannot be
//! taken is told, and what is not delivered here is with the bus. `RINGMESH_SEED=n` repeats one run.

#[path = "simulation/fake_bus.rs"]
mod fake_bus;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ringmesh::client::Command;
use ringmesh::hub::bus::{FromBus, ToBus};
use ringmesh::hub::effects::{Effects, Origin, Verdict, Wire};
use ringmesh::hub::envelope::{Broadcast, Class, MESSAGE_WEIGHT, ToHome, ToOwner};
use ringmesh::hub::links::{Batch, Links};
use ringmesh::hub::{Hub, HubConfig, Input, Outcome};
use ringmesh::ids::{ConnId, ShardId};
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
        let Coverage { registrations, refusals, returned, overloaded, with_bus, .. } = seen;
        for (what, count) in [
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
    links: Links,
    to_bus: VecDeque<ToBus>,
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
        self.bus_has_room
    }

    fn push_bus(&mut self, message: ToBus) {
        self.to_bus.push_back(message);
    }

    fn bus_takes_broadcasts(&self) -> bool {
        self.bus_takes_broadcasts
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
        Self {
            rng,
            now: Micros(1),
            hubs: ids.clone().map(|id| Hub::new(id, &config, Box::leak(Box::default()))).collect(),
            outlets: ids
                .map(|id| Outlet {
                    links: Links::new(id, config.shards),
                    to_bus: VecDeque::new(),
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
            bus: config.has_bus.then(|| FakeBus::new(config.shards)),
            coverage: Coverage::default(),
        }
    }

    fn run(mut self) -> Coverage {
        for _ in 0..STEPS {
            self.now = Micros(self.now.0 + self.rng.next() % 1_000);
            let shard = self.rng.below(self.hubs.len());
            match self.rng.below(20) {
                0 if self.clients.iter().filter(|client| !client.gone).count() < 40 => self.connect(shard),
                1 if self.rng.one_in(4) => self.close(),
                2..=9 => self.speak(),
                10 if self.rng.one_in(10) => self.flood(),
                11 if self.rng.one_in(3) => {
                    self.outlets[shard].takes_broadcasts = !self.outlets[shard].takes_broadcasts;
                }
                12 | 13 => self.send_batches(shard),
                14 | 15 => self.receive_batch(shard),
                16 | 17 if self.bus.is_some() => self.bus_acts(shard),
                _ => {
                    self.handle_inbox(shard);
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
        let address = IpAddr::from(Ipv4Addr::new(10, 0, 0, self.rng.below(9) as u8));
        let input = Input::Ask { conn, user: Some(&user), address };
        self.hubs[shard].handle(self.now, input, &mut self.outlets[shard]);
        self.clients.push(Client { shard, conn, user, stalled: None, gone: false });
    }

    /// Some of what a shard has said reaches the bus, and the bus does something.
    fn bus_acts(&mut self, shard: usize) {
        let Some(bus) = &mut self.bus else { return };
        let outlet = &mut self.outlets[shard];
        for _ in 0..self.rng.below(6) {
            let Some(message) = outlet.to_bus.pop_front() else { break };
            bus.take(ShardId(shard as u16), message);
        }
        if self.rng.one_in(6) {
            outlet.bus_has_room = !outlet.bus_has_room;
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
    }

    /// Some of what the bus has said is handled; whether anything was.
    fn handle_bus(&mut self, shard: usize) -> bool {
        let Some(bus) = &mut self.bus else { return false };
        let outlet = &mut self.outlets[shard];
        let mut moved = false;
        for _ in 0..self.rng.below(10) {
            let Some(message): Option<FromBus> = bus.out[shard].pop_front() else { break };
            if self.hubs[shard].handle(self.now, Input::Bus(&message), outlet) == Outcome::NoRoom {
                self.coverage.no_room += 1;
                bus.out[shard].push_front(message);
                break;
            }
            moved = true;
        }
        moved
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
        let Client { shard, conn, .. } = self.clients[client];
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
        self.say(client, Say { target, content, number: self.numbers });
    }

    fn flood(&mut self) {
        for _ in 0..200 {
            self.speak();
        }
    }

    /// What a client says is handled, or waits in front of whatever it says next.
    fn say(&mut self, client: usize, say: Say) {
        if self.clients[client].stalled.is_some() {
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

    fn send_batches(&mut self, from: usize) {
        for to in self.outlets[from].links.peers() {
            let Some(batch) = self.outlets[from].links.take_batch(to) else { continue };
            let channel = &mut self.channels[from][to.index()];
            if channel.len() < CHANNEL_BATCHES_MAX {
                channel.push_back(batch);
            } else {
                self.coverage.full_channels += 1;
                self.outlets[from].links.return_batch(to, batch);
            }
        }
    }

    fn receive_batch(&mut self, to: usize) {
        let from = self.rng.below(self.hubs.len());
        if let Some(batch) = self.channels[from][to].pop_front() {
            self.outlets[to].links.receive(ShardId(from as u16), batch);
        }
    }

    /// Some of what has arrived, then what waits for room, as the shard's loop does; whether anything moved.
    fn handle_inbox(&mut self, shard: usize) -> bool {
        let now = self.now;
        let mut moved = self.handle_bus(shard);
        let hub = &mut self.hubs[shard];
        let outlet = &mut self.outlets[shard];
        for peer in outlet.links.peers() {
            for _ in 0..self.rng.below(30) {
                let Some(message) = outlet.links.pop_owner(peer) else { break };
                hub.handle(now, Input::Owner(message), outlet);
                moved = true;
            }
            for _ in 0..self.rng.below(30) {
                if !outlet.takes_broadcasts {
                    break;
                }
                let Some(broadcast) = outlet.links.pop_broadcast(peer) else { break };
                hub.handle(now, Input::Broadcast(broadcast), outlet);
                moved = true;
            }
            for _ in 0..self.rng.below(30) {
                let Some(message) = outlet.links.take_home(peer) else { break };
                if hub.handle(now, Input::Home(&message), outlet) == Outcome::NoRoom {
                    self.coverage.no_room += 1;
                    outlet.links.unhandled_home(peer, message);
                    break;
                }
                outlet.links.handled_home(peer, &message);
                moved = true;
            }
        }
        hub.handle(now, Input::Turn, outlet);
        for _ in 0..outlet.postponed.len() {
            let Some(conn) = outlet.postponed.pop_front() else { break };
            hub.handle(now, Input::Proceed { conn }, outlet);
        }
        self.bury_refused(shard);
        for client in 0..self.clients.len() {
            if self.clients[client].shard == shard && self.clients[client].stalled.is_some() {
                let say = self.clients[client].stalled.take().expect("it was there");
                self.say(client, say);
                moved |= self.clients[client].stalled.is_none();
            }
        }
        moved
    }

    /// Nobody speaks any more: everything has to come to rest, with nothing left anywhere.
    fn settle(&mut self) {
        for outlet in &mut self.outlets {
            outlet.takes_broadcasts = true;
            outlet.bus_has_room = true;
        }
        for _ in 0..100_000 {
            for shard in 0..self.hubs.len() {
                self.send_batches(shard);
                self.receive_batch(shard);
                self.handle_inbox(shard);
                if let Some(bus) = &mut self.bus {
                    while let Some(message) = self.outlets[shard].to_bus.pop_front() {
                        bus.take(ShardId(shard as u16), message);
                    }
                    bus.answer_one(&mut self.rng, 6);
                }
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
            && self.outlets.iter().all(|outlet| outlet.to_bus.is_empty() && outlet.refused.is_empty())
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
