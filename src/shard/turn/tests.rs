//! When a shard sleeps, takes another turn, or ends, and what has to be done within one turn. What else a wrong order of
//! the steps breaks, `tests/simulation.rs` sees.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use compact_str::CompactString;

use crate::hub::bus::ToBus;
use crate::hub::effects::{Origin, Verdict, Wire};
use crate::hub::envelope::{Broadcast, Class, Conns, ToHome, ToOwner, UserKey, home_of};
use crate::hub::limiter::AddressKey;
use crate::hub::links::Batch;
use crate::hub::{Effects, HubConfig};
use crate::ids::ConnRef;

use super::*;

const CONN: ConnId = ConnId { index: 0, generation: 0 };

/// A shard of two whose steps answer as they are told.
struct Fake {
    hub: Hub,
    queues: FakeQueues,
    events: usize,
    batch: Option<Batch>,
    went_on: bool,
    /// A client waits with a message to a home on the other shard.
    has_stalled: bool,
    sends: bool,
    says: bool,
    is_finished: bool,
    has_more: bool,
    has_completed: bool,
    bus_has_rung: bool,
    /// Parts that were told to wake the shard, as far as it was not woken since.
    asleep: Vec<&'static str>,
}

struct FakeQueues {
    links: Links,
    from_bus: Vec<FromBus>,
    bus_broadcast: Option<FromBus>,
    /// No outbox has room, and broadcasts wait.
    is_full: bool,
    postponed: VecDeque<ConnId>,
    /// What was pushed to the other shard, by name.
    pushed: Vec<&'static str>,
}

impl Fake {
    fn new() -> Self {
        let config = HubConfig {
            shards: 2,
            connections_max: 1,
            connects_per_address_max: 0,
            connects_per_address_window: Duration::from_secs(60),
            hasher: hasher(),
            has_bus: true,
        };
        let links = Links::new(ShardId(0), 2);
        Self {
            hub: Hub::new(ShardId(0), &config, Box::leak(Box::default())),
            queues: FakeQueues {
                links,
                from_bus: Vec::new(),
                bus_broadcast: None,
                is_full: false,
                postponed: VecDeque::new(),
                pushed: Vec::new(),
            },
            events: 0,
            batch: None,
            went_on: false,
            has_stalled: false,
            sends: false,
            says: false,
            is_finished: false,
            has_more: false,
            has_completed: false,
            bus_has_rung: false,
            asleep: Vec::new(),
        }
    }
}

impl Effects for FakeQueues {
    fn decide(&mut self, _: ConnId, _: Verdict) {}

    fn deliver(&mut self, _: ConnId, _: Wire<'_>, _: Origin) -> bool {
        false
    }

    fn deliver_all(&mut self, _: Wire<'_>, _: Micros) {}

    fn postpone(&mut self, conn: ConnId) {
        self.postponed.push_back(conn);
    }

    fn takes_broadcasts(&self) -> bool {
        !self.is_full
    }

    fn has_room(&self, class: Class, shard: ShardId) -> bool {
        !self.is_full && self.links.has_room(class, shard)
    }

    fn push_home(&mut self, shard: ShardId, message: ToHome) {
        self.pushed.push(match message {
            ToHome::Register { .. } => "register",
            ToHome::Unregister { .. } => "unregister",
            ToHome::Admit { .. } => "admit",
            ToHome::Unicast { .. } => "unicast",
        });
        self.links.push_home(shard, message);
    }

    fn push_owner(&mut self, shard: ShardId, message: ToOwner) {
        self.pushed.push("refused");
        self.links.push_owner(shard, message);
    }

    fn push_broadcast(&mut self, _: ShardId, _: Broadcast) {}

    fn bus_has_room(&self) -> bool {
        !self.is_full
    }

    fn push_bus(&mut self, _: ToBus) {}

    fn bus_takes_broadcasts(&self) -> bool {
        true
    }
}

impl Queues for FakeQueues {
    fn messages_max(&mut self) -> usize {
        10
    }

    fn links(&mut self) -> &mut Links {
        &mut self.links
    }

    fn pull_bus(&mut self) {}

    fn take_bus(&mut self) -> Option<FromBus> {
        self.from_bus.pop()
    }

    fn handled_bus(&mut self, _: &FromBus) {}

    fn unhandled_bus(&mut self, message: FromBus) {
        self.from_bus.push(message);
    }

    fn take_bus_broadcast(&mut self) -> Option<FromBus> {
        self.bus_broadcast.take()
    }

    fn postponed(&self) -> usize {
        self.postponed.len()
    }

    fn take_postponed(&mut self) -> Option<ConnId> {
        self.postponed.pop_front()
    }
}

impl Steps for Fake {
    type Error = &'static str;
    type Queues = FakeQueues;

    fn hub(&mut self) -> (Micros, &mut Hub, &mut FakeQueues) {
        (Micros(1), &mut self.hub, &mut self.queues)
    }

    fn turn_ring(&mut self) -> Result<usize, &'static str> {
        Ok(self.events)
    }

    fn handle_events(&mut self) {}

    fn receive_batches(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.queues.links.receive(ShardId(1), batch);
        }
    }

    fn retry_stalled(&mut self) -> bool {
        if self.has_stalled && self.queues.has_room(Class::Home, ShardId(1)) {
            self.has_stalled = false;
            self.queues.push_home(ShardId(1), unicast());
        }
        self.went_on
    }

    fn survey(&mut self) {}

    fn send(&mut self) {}

    fn send_batches(&mut self) -> bool {
        self.sends
    }

    fn flush_bus(&mut self) -> bool {
        self.says
    }

    fn report(&mut self) {}

    fn is_finished(&self) -> bool {
        self.is_finished
    }

    fn has_more(&self) -> bool {
        self.has_more
    }

    fn ring_sleeps(&mut self) -> Result<bool, &'static str> {
        self.asleep.push("ring");
        Ok(!self.has_completed)
    }

    fn bus_sleeps(&mut self) -> bool {
        self.asleep.push("bus");
        !self.bus_has_rung
    }

    fn wake(&mut self) {
        self.asleep.clear();
    }
}

/// What follows the turn of a shard that was changed like this, and what would wake the shard then.
fn after(change: impl FnOnce(&mut Fake)) -> (Next, Vec<&'static str>) {
    let mut fake = Fake::new();
    change(&mut fake);
    let next = turn(&mut fake).unwrap();
    (next, fake.asleep)
}

fn batch_home(message: ToHome) -> Option<Batch> {
    Some(Batch { home: vec![message], ..Batch::default() })
}

fn somebody() -> (UserKey, ConnRef) {
    (UserKey { hash: 0, name: CompactString::from("a") }, ConnRef { shard: ShardId(1), conn: CONN })
}

#[test]
fn a_shard_sleeps_when_nothing_has_happened() {
    let everything = vec!["ring", "bus"];
    assert_eq!(after(|_| ()), (Next::Sleep, everything.clone()));
    // What only waits for room, or for readers, needs no turn.
    let (user, conn) = somebody();
    assert_eq!(
        after(|shard| {
            shard.queues.is_full = true;
            shard.queues.bus_broadcast = Some(FromBus::Broadcast { frame: Bytes::new() });
            shard.batch = batch_home(ToHome::Register { user, conn });
        }),
        (Next::Sleep, everything)
    );
}

#[test]
fn a_shard_to_which_anything_has_happened_takes_another_turn_before_it_sleeps() {
    let (user, conn) = somebody();
    type Change<'a> = Box<dyn FnOnce(&mut Fake) + 'a>;
    let changes: [(&str, Change<'_>); 9] = [
        ("an event", Box::new(|shard| shard.events = 1)),
        ("a message of another shard", Box::new(|shard| shard.batch = batch_home(ToHome::Unregister { user, conn }))),
        ("a message of the bus", Box::new(|shard| shard.queues.from_bus.push(FromBus::Fence { fence: 1 }))),
        (
            "a broadcast of the bus",
            Box::new(|shard| shard.queues.bus_broadcast = Some(FromBus::Broadcast { frame: Bytes::new() })),
        ),
        ("a connection that went on", Box::new(|shard| shard.went_on = true)),
        ("a batch that went out", Box::new(|shard| shard.sends = true)),
        ("something said to the bus", Box::new(|shard| shard.says = true)),
        ("something left", Box::new(|shard| shard.has_more = true)),
        ("all of it", {
            Box::new(|shard| (shard.events, shard.went_on, shard.sends, shard.has_more) = (1, true, true, true))
        }),
    ];
    for (what, change) in changes {
        assert_eq!(after(change), (Next::Turn, vec![]), "{what}");
    }
}

#[test]
fn a_shard_that_was_brought_something_on_its_way_to_sleep_is_up_again() {
    assert_eq!(after(|shard| shard.has_completed = true), (Next::Turn, vec![]));
    assert_eq!(after(|shard| shard.bus_has_rung = true), (Next::Turn, vec![]));
}

#[test]
fn a_shard_that_has_ended_neither_sleeps_nor_turns() {
    assert_eq!(after(|shard| shard.is_finished = true), (Next::End, vec![]));
    assert_eq!(after(|shard| (shard.is_finished, shard.events) = (true, 1)), (Next::End, vec![]));
}

fn hasher() -> ahash::RandomState {
    ahash::RandomState::with_seeds(1, 2, 3, 4)
}

/// A user whose home is the other shard.
fn far_user() -> String {
    let mut names = (0..).map(|number| format!("user-{number}"));
    names.find(|name| home_of(hasher().hash_one(name.as_str()), 2) == ShardId(1)).unwrap()
}

/// An address that has its home on this shard.
fn address(home: ShardId) -> IpAddr {
    let mut addresses = (0..=255).map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
    addresses.find(|&address| home_of(hasher().hash_one(AddressKey::from(address).bits()), 2) == home).unwrap()
}

/// A message that fills a window.
fn unicast() -> ToHome {
    let (target, sender) = somebody();
    ToHome::Unicast { target, frame: Bytes::from(vec![0; 1 << 20]), sender, received: Micros(1) }
}

impl Fake {
    /// Fills the windows towards the other shard, and has everything wait for room that can: a departure, a message of a
    /// client, a connection that is not open yet, and a message of the bus.
    fn fill(&mut self) {
        let address = address(ShardId(0));
        self.hub.handle(Micros(1), Input::Ask { conn: CONN, user: Some(&far_user()), address }, &mut self.queues);
        while self.queues.has_room(Class::Home, ShardId(1)) {
            self.queues.push_home(ShardId(1), unicast());
        }
        self.hub.handle(Micros(1), Input::Gone { conn: CONN }, &mut self.queues);
        let conn = ConnId { index: 1, generation: 0 };
        self.hub.handle(Micros(1), Input::Ask { conn, user: Some(&far_user()), address }, &mut self.queues);
        let (_, conn) = somebody();
        let wide = ToOwner::Deliver {
            conns: Conns::One(CONN),
            frame: Bytes::from(vec![0; 1 << 20]),
            origin: Origin { sender: None, received: Micros(1) },
        };
        self.queues.push_owner(ShardId(1), wide);
        self.queues.from_bus.push(FromBus::Overloaded { sender: conn });
        self.has_stalled = true;
        self.queues.pushed.clear();
        assert!(self.hub.is_leaving() && self.queues.postponed.len() == 1);
    }

    /// All bytes on their way to the other shard, as credits that come back alone.
    fn credits(&self) -> Option<Batch> {
        let classes = [Class::Home, Class::Owner, Class::Broadcast];
        let credits = classes.map(|class| self.queues.links.in_flight_bytes(class, ShardId(1)));
        Some(Batch { credits, ..Batch::default() })
    }
}

#[test]
fn credits_that_come_alone_have_everything_go_on_that_waited_for_them() {
    let mut fake = Fake::new();
    fake.fill();
    assert_eq!(turn(&mut fake), Ok(Next::Sleep), "there is no room");
    assert_eq!(fake.queues.pushed, Vec::<&str>::new());
    fake.batch = fake.credits();
    turn(&mut fake).unwrap();
    // The message of the client leaves no room for the connection that is not open yet: that one has the next turn.
    assert_eq!(fake.queues.pushed, ["refused", "unregister", "unicast"]);
    fake.batch = fake.credits();
    turn(&mut fake).unwrap();
    assert_eq!(fake.queues.pushed, ["refused", "unregister", "unicast", "register"]);
    assert!(!fake.hub.is_leaving() && fake.queues.from_bus.is_empty() && fake.queues.postponed.is_empty());
}

#[test]
fn a_connection_that_is_admitted_proceeds_in_the_same_turn() {
    let mut fake = Fake::new();
    let input = Input::Ask { conn: CONN, user: Some(&far_user()), address: address(ShardId(1)) };
    fake.hub.handle(Micros(1), input, &mut fake.queues);
    fake.batch = Some(Batch { owner: vec![ToOwner::Admitted { conn: CONN, refused_for: None }], ..Batch::default() });
    turn(&mut fake).unwrap();
    assert_eq!(fake.queues.pushed, ["admit", "register"]);
}
