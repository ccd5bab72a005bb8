//! A process of the simulation: the real bus and the real hub of one shard, joined by queues.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use ringmesh::bus::call::{Call, CallId, NodeId};
use ringmesh::bus::{Bus, BusConfig, Effects as BusEffects, Health, Input as BusInput};
use ringmesh::client::Command;
use ringmesh::hub::bus::{FromBus, ToBus};
use ringmesh::hub::effects::{Effects, Origin, Verdict, Wire};
use ringmesh::hub::envelope::{Broadcast, Class, ToHome, ToOwner};
use ringmesh::hub::{Hub, HubConfig, Input, Outcome};
use ringmesh::ids::{ConnId, ShardId};
use ringmesh::metrics::ShardMetrics;
use ringmesh::time::Micros;

/// What a connection was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    Open,
    Unavailable,
    Message(u64),
    Broadcast(u64),
    Overloaded,
}

/// How it stands with a user, as the bus has said it to the home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    Arriving,
    Here,
}

pub struct Process {
    pub node: NodeId,
    /// Tells it from other processes of the same name.
    pub token: u64,
    pub bus: Bus,
    hub: Hub,
    outlet: Outlet,
    pub is_alive: bool,
    /// It does not run before.
    pub suspended_until: u64,
    /// When it ran last after it had not run for long.
    pub woke_at: u64,
    pub is_connected: bool,
    /// Since when it has been told to stop.
    pub stops_since: Option<u64>,
    /// Its subscriptions stand.
    pub is_subscribed: bool,
    /// It has had a life, and hears its link from then on.
    pub hears_link: bool,
    /// Grows with each connection.
    pub session: u64,
    /// When its own connection was last gone, though Redis was there.
    pub cut_off_at: u64,
    pub from_redis: VecDeque<BusInput>,
    calls: Calls,
    conns: u32,
    pub clients: u64,
    pub runs_at: Option<u64>,
    pub shard_runs_at: Option<u64>,
}

/// What the bus can do here.
struct Calls {
    calls: Vec<(CallId, Call)>,
    to_shard: VecDeque<FromBus>,
    /// Messages that the shard was told, broadcasts aside, and that it has handled.
    told: u64,
    handled: u64,
    has_room: bool,
    standing: BTreeMap<String, Standing>,
}

impl BusEffects for Calls {
    fn call(&mut self, id: CallId, call: Call) {
        self.calls.push((id, call));
    }

    fn has_room(&self, _shard: ShardId) -> bool {
        self.has_room
    }

    fn has_broadcast_room(&self, _shard: ShardId) -> bool {
        self.has_room
    }

    fn push(&mut self, _shard: ShardId, message: FromBus) -> u64 {
        match &message {
            FromBus::Registered { user, .. } => {
                let before = self.standing.insert(user.name.to_string(), Standing::Here);
                assert_eq!(before, Some(Standing::Arriving), "{} is registered without having arrived", user.name);
            }
            FromBus::NotRegistered { user } => {
                let before = self.standing.remove(&user.name.to_string());
                assert_eq!(before, Some(Standing::Arriving), "{} is refused without having arrived", user.name);
            }
            _ => {}
        }
        self.told += u64::from(!matches!(message, FromBus::Broadcast { .. }));
        let number = self.told;
        self.to_shard.push_back(message);
        number
    }

    fn handled(&self, _shard: ShardId) -> u64 {
        self.handled
    }
}

/// What the shard's rim would be.
struct Outlet {
    to_bus: VecDeque<ToBus>,
    told: Vec<(ConnId, Told)>,
    open: Vec<ConnId>,
    has_bus_room: bool,
    takes_broadcasts: bool,
}

impl Effects for Outlet {
    fn decide(&mut self, conn: ConnId, verdict: Verdict) {
        self.told.push(match verdict {
            Verdict::Open => {
                self.open.push(conn);
                (conn, Told::Open)
            }
            Verdict::Unavailable => (conn, Told::Unavailable),
            Verdict::Nameless | Verdict::TooMany { .. } => unreachable!("every client has a name, and none is limited"),
        });
    }

    fn deliver(&mut self, conn: ConnId, frame: Wire<'_>, _origin: Origin) -> bool {
        let is_open = self.open.contains(&conn);
        if is_open {
            self.told.push((conn, read(frame.as_slice())));
        }
        is_open
    }

    fn deliver_all(&mut self, frame: Wire<'_>, _received: Micros) {
        let told = read(frame.as_slice());
        self.told.extend(self.open.iter().map(|&conn| (conn, told.clone())));
    }

    fn postpone(&mut self, _conn: ConnId) {
        unreachable!("one shard has always room for itself");
    }

    fn takes_broadcasts(&self) -> bool {
        true
    }

    fn has_room(&self, _class: Class, _shard: ShardId) -> bool {
        true
    }

    fn push_home(&mut self, _shard: ShardId, _message: ToHome) {
        unreachable!("there is one shard");
    }

    fn push_owner(&mut self, _shard: ShardId, _message: ToOwner) {
        unreachable!("there is one shard");
    }

    fn push_broadcast(&mut self, _shard: ShardId, _message: Broadcast) {
        unreachable!("there is one shard");
    }

    fn bus_has_room(&self) -> bool {
        self.has_bus_room
    }

    fn push_bus(&mut self, message: ToBus) {
        self.to_bus.push_back(message);
    }

    fn bus_takes_broadcasts(&self) -> bool {
        self.takes_broadcasts
    }
}

/// What a frame of the simulation says.
fn read(frame: &[u8]) -> Told {
    let payload_at = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let payload: serde_json::Value = serde_json::from_slice(&frame[payload_at..]).expect("a frame of JSON");
    let number = || {
        let content = payload["content"].as_str().expect("the simulation's content is a string");
        content.split('/').next().and_then(|number| number.parse().ok()).expect("a number")
    };
    match payload["type"].as_str() {
        Some("message") => Told::Message(number()),
        Some("broadcast") => Told::Broadcast(number()),
        Some("error") => Told::Overloaded,
        other => panic!("{other:?}"),
    }
}

pub struct Shape {
    pub offline_grace_ms: u64,
    pub link_bytes_max: usize,
}

impl Process {
    pub fn new(node: NodeId, token: u64, shape: &Shape, metrics: &'static ShardMetrics) -> Self {
        let hasher = ahash::RandomState::with_seeds(token, 2, 3, 4);
        let hub = HubConfig {
            shards: 1,
            connections_max: 16,
            connects_per_address_max: 0,
            connects_per_address_window: Duration::from_secs(60),
            hasher: hasher.clone(),
            has_bus: true,
        };
        let bus = BusConfig {
            node_id: node.clone(),
            shards: 1,
            hasher,
            offline_grace_ms: shape.offline_grace_ms,
            link_bytes_max: shape.link_bytes_max,
            lost_after: Duration::from_secs(10),
        };
        Self {
            node,
            token,
            bus: Bus::new(bus),
            hub: Hub::new(ShardId(0), &hub, metrics),
            outlet: Outlet {
                to_bus: VecDeque::new(),
                told: Vec::new(),
                open: Vec::new(),
                has_bus_room: true,
                takes_broadcasts: true,
            },
            is_alive: true,
            suspended_until: 0,
            woke_at: 0,
            is_connected: false,
            stops_since: None,
            is_subscribed: false,
            hears_link: false,
            session: 0,
            cut_off_at: 0,
            from_redis: VecDeque::new(),
            calls: Calls {
                calls: Vec::new(),
                to_shard: VecDeque::new(),
                told: 0,
                handled: 0,
                has_room: true,
                standing: BTreeMap::new(),
            },
            conns: 0,
            clients: 0,
            runs_at: None,
            shard_runs_at: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.is_alive && self.bus.health() == Health::Up
    }

    /// A client asks for `/ws`; its connection.
    pub fn ask(&mut self, now: u64, user: &str) -> ConnId {
        let conn = ConnId { index: self.conns, generation: 0 };
        self.conns += 1;
        self.clients += 1;
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        self.hub.handle(Micros(now), Input::Ask { conn, user: Some(user), address }, &mut self.outlet);
        conn
    }

    pub fn close(&mut self, now: u64, conn: ConnId) {
        self.clients -= 1;
        self.outlet.open.retain(|open| *open != conn);
        self.hub.handle(Micros(now), Input::Gone { conn }, &mut self.outlet);
    }

    /// A client says something; whether it was taken.
    pub fn say(&mut self, now: u64, conn: ConnId, command: Command<'_>) -> bool {
        self.hub.handle(Micros(now), Input::Said { conn, command: Ok(command) }, &mut self.outlet) == Outcome::Done
    }

    pub fn take_told(&mut self) -> Vec<(ConnId, Told)> {
        std::mem::take(&mut self.outlet.told)
    }

    pub fn has_for_bus(&self) -> bool {
        !self.outlet.to_bus.is_empty() || !self.from_redis.is_empty()
    }

    pub fn has_for_shard(&self) -> bool {
        !self.calls.to_shard.is_empty()
    }

    /// The shard handles some of what the bus has said; it has room for more only when it has handled all.
    pub fn run_shard(&mut self, now: u64, most: usize) {
        for _ in 0..most {
            let Some(message) = self.calls.to_shard.pop_front() else { break };
            let outcome = self.hub.handle(Micros(now), Input::Bus(&message), &mut self.outlet);
            assert_eq!(outcome, Outcome::Done, "one shard has always room for itself");
            self.calls.handled += u64::from(!matches!(message, FromBus::Broadcast { .. }));
        }
        self.calls.has_room = self.calls.to_shard.len() < 64;
    }

    /// One turn of the bus' loop; the calls that it makes.
    pub fn run_bus(&mut self, now: u64) -> Vec<(CallId, Call)> {
        for input in self.from_redis.drain(..) {
            self.bus.handle(Micros(now), input, &mut self.calls);
        }
        for message in self.outlet.to_bus.drain(..) {
            match &message {
                ToBus::Arrived { user } => {
                    let before = self.calls.standing.insert(user.name.to_string(), Standing::Arriving);
                    assert_eq!(before, None, "{} arrives twice", user.name);
                }
                ToBus::Left { user } => {
                    self.calls.standing.remove(&user.name.to_string());
                }
                _ => {}
            }
            self.bus.handle(Micros(now), BusInput::Shard(ShardId(0), message), &mut self.calls);
        }
        self.calls.has_room = self.calls.to_shard.len() < 64;
        self.bus.turn(Micros(now), self.clients, &mut self.calls);
        self.outlet.takes_broadcasts = self.bus.takes_broadcasts();
        std::mem::take(&mut self.calls.calls)
    }

    /// When the bus is to run though nothing happens.
    pub fn due(&self) -> u64 {
        self.bus.due().0
    }

    pub fn contract(&mut self, text: Bytes) {
        self.from_redis.push_back(BusInput::Contract(text));
    }
}
