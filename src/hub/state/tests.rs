//! One hub, and effects that only write down what they are asked for.

use super::*;

const NOW: Micros = Micros(1_000_000);

/// What the hub did, in order.
#[derive(Debug)]
enum Effect {
    Decided(ConnId, Verdict),
    Delivered(ConnId, Vec<u8>),
    DeliveredAll(Vec<u8>),
    Postponed(ConnId),
    Home(ShardId, ToHome),
    Owner(ShardId, ToOwner),
    Broadcast(ShardId, Bytes),
    Bus(ToBus),
}

#[derive(Default)]
struct Recorder {
    log: Vec<Effect>,
    /// Where there is no room.
    full: Vec<(Class, ShardId)>,
    holds_broadcasts: bool,
    bus_is_full: bool,
    bus_holds_broadcasts: bool,
}

impl Recorder {
    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.log)
    }
}

impl Effects for Recorder {
    fn decide(&mut self, conn: ConnId, verdict: Verdict) {
        self.log.push(Effect::Decided(conn, verdict));
    }

    fn deliver(&mut self, conn: ConnId, frame: Wire<'_>, _: Origin) -> bool {
        self.log.push(Effect::Delivered(conn, frame.as_slice().to_vec()));
        true
    }

    fn deliver_all(&mut self, frame: Wire<'_>, _: Micros) {
        self.log.push(Effect::DeliveredAll(frame.as_slice().to_vec()));
    }

    fn postpone(&mut self, conn: ConnId) {
        self.log.push(Effect::Postponed(conn));
    }

    fn takes_broadcasts(&self) -> bool {
        !self.holds_broadcasts
    }

    fn has_room(&self, class: Class, shard: ShardId) -> bool {
        !self.full.contains(&(class, shard))
    }

    fn push_home(&mut self, shard: ShardId, message: ToHome) {
        assert!(self.has_room(Class::Home, shard) && shard != HERE);
        self.log.push(Effect::Home(shard, message));
    }

    fn push_owner(&mut self, shard: ShardId, message: ToOwner) {
        assert!(self.has_room(Class::Owner, shard) && shard != HERE);
        self.log.push(Effect::Owner(shard, message));
    }

    fn push_broadcast(&mut self, shard: ShardId, message: Broadcast) {
        assert!(self.has_room(Class::Broadcast, shard) && shard != HERE);
        self.log.push(Effect::Broadcast(shard, message.frame));
    }

    fn bus_has_room(&self) -> bool {
        !self.bus_is_full
    }

    fn push_bus(&mut self, message: ToBus) {
        self.log.push(Effect::Bus(message));
    }

    fn bus_takes_broadcasts(&self) -> bool {
        !self.bus_holds_broadcasts
    }
}

/// The shard of the hub under test.
const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

/// A hub with what its shard would be.
struct World {
    hub: Hub,
    fx: Recorder,
    metrics: &'static ShardMetrics,
    config: HubConfig,
}

impl World {
    fn new(shards: u16) -> Self {
        Self::of(shards, false)
    }

    fn with_bus(shards: u16) -> Self {
        Self::of(shards, true)
    }

    fn of(shards: u16, has_bus: bool) -> Self {
        let config = HubConfig {
            shards,
            connections_max: 8,
            // Tests with a bus are not about the limit.
            connects_per_address_max: if has_bus { 0 } else { 1 },
            connects_per_address_window: Duration::from_secs(60),
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            has_bus,
        };
        // A test's counters live as long as its process.
        let metrics = &*Box::leak(Box::default());
        Self { hub: Hub::new(HERE, &config, metrics), fx: Recorder::default(), metrics, config }
    }

    fn handle(&mut self, input: Input<'_>) -> Outcome {
        self.hub.handle(NOW, input, &mut self.fx)
    }

    /// Handles it, and says what followed.
    fn effects(&mut self, input: Input<'_>) -> Vec<Effect> {
        assert_eq!(self.handle(input), Outcome::Done);
        self.fx.take()
    }

    /// Handles it in vain: nothing may follow.
    #[track_caller]
    fn no_room(&mut self, input: Input<'_>) {
        assert_eq!(self.handle(input), Outcome::NoRoom);
        assert!(self.fx.log.is_empty(), "nothing has happened: {:?}", self.fx.log);
    }

    fn user_at(&self, home: ShardId, number: usize) -> UserKey {
        let key = |number: usize| {
            let name = format!("user-{number}");
            UserKey { hash: self.config.hasher.hash_one(name.as_str()), name: name.into() }
        };
        (0..).map(key).filter(|user| home_of(user.hash, self.config.shards) == home).nth(number).unwrap()
    }

    fn address_at(&self, home: ShardId, number: usize) -> IpAddr {
        let is_there = |address: &IpAddr| {
            home_of(self.config.hasher.hash_one(AddressKey::from(*address).bits()), self.config.shards) == home
        };
        (0..u32::MAX).map(|bits| IpAddr::V4(bits.into())).filter(is_there).nth(number).unwrap()
    }

    /// Opens a connection of a user whose home is here.
    fn open(&mut self, conn: ConnId, user: &UserKey) {
        let address = self.address_at(HERE, conn.index as usize);
        let effects = self.effects(Input::Ask { conn, user: Some(&user.name), address });
        assert!(matches!(effects[..], [Effect::Decided(opened, Verdict::Open)] if opened == conn), "{effects:?}");
    }

    fn send(conn: ConnId, target: &UserKey, content: &'static str) -> Input<'static> {
        Input::Said { conn, command: Ok(Command::SendMessage { target: target.name.to_string().into(), content }) }
    }
}

fn conn(index: u32, generation: u32) -> ConnId {
    ConnId { index, generation }
}

fn on(shard: ShardId, index: u32) -> ConnRef {
    ConnRef { shard, conn: conn(index, 1) }
}

fn unicast(target: &UserKey, frame: &Bytes) -> ToHome {
    ToHome::Unicast { target: target.clone(), frame: frame.clone(), sender: on(THERE, 9), received: NOW }
}

#[test]
fn a_connection_opens_when_its_users_home_has_it_and_not_before() {
    let mut world = World::new(2);
    let user = world.user_at(THERE, 0);
    let address = world.address_at(HERE, 0);
    let asked = world.effects(Input::Ask { conn: conn(0, 1), user: Some(&user.name), address });
    let [Effect::Home(THERE, ToHome::Register { user: registered, conn: reference })] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!((registered, *reference), (&user, on(HERE, 0)));
    // Nothing that comes in between opens it, and it has no voice yet.
    assert!(world.effects(Input::Turn).is_empty());
    assert!(world.effects(Input::Proceed { conn: conn(0, 1) }).is_empty());
    assert!(world.effects(World::send(conn(0, 1), &user, "1")).is_empty());
    let opened = world.effects(Input::Owner(ToOwner::Registered { conn: conn(0, 1) }));
    assert!(matches!(opened[..], [Effect::Decided(_, Verdict::Open)]), "{opened:?}");
    assert!(world.effects(Input::Owner(ToOwner::Registered { conn: conn(0, 1) })).is_empty(), "it opens once");
}

#[test]
fn a_home_answers_once_deliveries_would_arrive() {
    let mut world = World::new(2);
    let user = world.user_at(HERE, 0);
    let register = ToHome::Register { user: user.clone(), conn: on(THERE, 4) };
    let answer = world.effects(Input::Home(&register));
    assert!(matches!(answer[..], [Effect::Owner(THERE, ToOwner::Registered { .. })]), "{answer:?}");
    let delivery = world.effects(Input::Home(&unicast(&user, &Bytes::from_static(b"frame"))));
    assert!(matches!(delivery[..], [Effect::Owner(THERE, ToOwner::Deliver { .. })]), "{delivery:?}");
}

#[test]
fn the_step_after_admission_is_put_off_since_a_to_owner_message_causes_no_other() {
    let mut world = World::new(2);
    let (user, address) = (world.user_at(THERE, 0), world.address_at(THERE, 0));
    let asked = world.effects(Input::Ask { conn: conn(0, 1), user: Some(&user.name), address });
    assert!(matches!(asked[..], [Effect::Home(THERE, ToHome::Admit { .. })]), "{asked:?}");
    let admitted = world.effects(Input::Owner(ToOwner::Admitted { conn: conn(0, 1), refused_for: None }));
    assert!(matches!(admitted[..], [Effect::Postponed(to)] if to == conn(0, 1)), "{admitted:?}");
    world.fx.full.push((Class::Home, THERE));
    let full = world.effects(Input::Proceed { conn: conn(0, 1) });
    assert!(matches!(full[..], [Effect::Postponed(to)] if to == conn(0, 1)), "{full:?}");
    world.fx.full.clear();
    let proceeded = world.effects(Input::Proceed { conn: conn(0, 1) });
    assert!(matches!(proceeded[..], [Effect::Home(THERE, ToHome::Register { .. })]), "{proceeded:?}");
}

#[test]
fn who_is_refused_is_told_and_gone() {
    let mut world = World::new(2);
    let user = world.user_at(HERE, 0);
    let address = world.address_at(THERE, 0);
    for (index, user, refused_for, verdict) in [
        (0, Some(user.name.as_str()), Some(7), Verdict::TooMany { retry_after: 7 }),
        (1, None, Some(7), Verdict::TooMany { retry_after: 7 }),
        (2, None, None, Verdict::Nameless),
    ] {
        let conn = conn(index, 1);
        world.effects(Input::Ask { conn, user, address });
        let told = world.effects(Input::Owner(ToOwner::Admitted { conn, refused_for }));
        assert!(matches!(told[..], [Effect::Decided(to, what)] if to == conn && what == verdict), "{told:?}");
        assert!(world.effects(Input::Gone { conn }).is_empty());
    }
    assert_eq!(world.hub.users(), 0);
}

#[test]
fn late_effects_for_an_index_that_is_used_again_do_nothing() {
    let mut world = World::new(2);
    let (old, new) = (conn(0, 1), conn(0, 2));
    let (first, second) = (world.user_at(THERE, 0), world.user_at(THERE, 1));
    let address = world.address_at(THERE, 0);
    world.effects(Input::Ask { conn: old, user: Some(&first.name), address });
    assert!(world.effects(Input::Gone { conn: old }).is_empty());
    world.effects(Input::Ask { conn: new, user: Some(&second.name), address });
    let late = |world: &mut World| {
        for input in [
            Input::Owner(ToOwner::Admitted { conn: old, refused_for: Some(1) }),
            Input::Owner(ToOwner::Admitted { conn: old, refused_for: None }),
            Input::Owner(ToOwner::Registered { conn: old }),
            Input::Proceed { conn: old },
            Input::Gone { conn: old },
            World::send(old, &first, "1"),
            Input::Said { conn: old, command: Ok(Command::Broadcast { content: "1" }) },
        ] {
            let what = format!("{input:?}");
            let effects = world.effects(input);
            assert!(effects.is_empty(), "{what} led to {effects:?}");
        }
        assert_eq!(world.hub.user(old), None);
    };
    late(&mut world);
    world.effects(Input::Owner(ToOwner::Admitted { conn: new, refused_for: None }));
    world.effects(Input::Proceed { conn: new });
    late(&mut world);
    let opened = world.effects(Input::Owner(ToOwner::Registered { conn: new }));
    assert!(matches!(opened[..], [Effect::Decided(to, Verdict::Open)] if to == new), "{opened:?}");
    late(&mut world);
    assert_eq!(world.hub.user(new), Some(second.name.as_str()));
}

#[test]
fn a_message_without_room_has_not_happened() {
    let mut world = World::new(3);
    let (sender, far) = (world.user_at(HERE, 0), world.user_at(THERE, 0));
    world.open(conn(0, 1), &sender);
    world.fx.full.push((Class::Home, THERE));
    world.no_room(World::send(conn(0, 1), &far, "[1]"));
    assert_eq!(world.metrics.messages_in_send_message.value(), 0);
    world.fx.full.clear();
    let sent = world.effects(World::send(conn(0, 1), &far, "[1]"));
    let [Effect::Home(THERE, ToHome::Unicast { target, frame, sender, .. })] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((target, *sender), (&far, on(HERE, 0)));
    assert!(frame.ends_with(br#""content":[1]}"#));
    assert_eq!(world.metrics.messages_in_send_message.value(), 1);
}

#[test]
fn a_user_of_several_shards_gets_a_message_everywhere_or_nowhere() {
    const ELSEWHERE: ShardId = ShardId(2);
    let mut world = World::new(3);
    let user = world.user_at(HERE, 0);
    for index in [0, 1] {
        world.open(conn(index, 1), &user);
    }
    for reference in [on(THERE, 5), on(ELSEWHERE, 6)] {
        world.effects(Input::Home(&ToHome::Register { user: user.clone(), conn: reference }));
    }
    let frame = Bytes::from_static(b"a frame");
    for full in [THERE, ELSEWHERE] {
        world.fx.full = vec![(Class::Owner, full)];
        world.no_room(Input::Home(&unicast(&user, &frame)));
        world.no_room(World::send(conn(0, 1), &user, "1"));
    }
    assert_eq!(world.metrics.messages_out_message.value(), 0);
    world.fx.full.clear();
    let effects = world.effects(Input::Home(&unicast(&user, &frame)));
    let mut reached = Vec::new();
    for effect in &effects {
        match effect {
            Effect::Delivered(to, bytes) => {
                assert_eq!(*bytes, frame);
                reached.push(ConnRef { shard: HERE, conn: *to });
            }
            Effect::Owner(shard, ToOwner::Deliver { conns, frame: shared, .. }) => {
                assert_eq!(shared.as_ptr(), frame.as_ptr(), "encoded once, and shared");
                reached.extend(conns.as_slice().iter().map(|&conn| ConnRef { shard: *shard, conn }));
            }
            other => panic!("{other:?}"),
        }
    }
    reached.sort_unstable_by_key(|to| (to.shard, to.conn.index));
    assert_eq!(reached, [on(HERE, 0), on(HERE, 1), on(THERE, 5), on(ELSEWHERE, 6)]);
}

#[test]
fn a_question_without_room_for_the_answer_is_not_counted() {
    let mut world = World::new(2);
    let user = world.user_at(HERE, 0);
    let admit = ToHome::Admit { address: world.address_at(HERE, 0).into(), conn: on(THERE, 0) };
    let register = ToHome::Register { user, conn: on(THERE, 0) };
    world.fx.full.push((Class::Owner, THERE));
    for _ in 0..3 {
        world.no_room(Input::Home(&admit));
        world.no_room(Input::Home(&register));
    }
    assert_eq!(world.hub.users(), 0);
    world.fx.full.clear();
    // One ask in a minute is allowed, and this is the first.
    let first = world.effects(Input::Home(&admit));
    assert!(matches!(first[..], [Effect::Owner(THERE, ToOwner::Admitted { refused_for: None, .. })]), "{first:?}");
    let second = world.effects(Input::Home(&admit));
    assert!(
        matches!(second[..], [Effect::Owner(THERE, ToOwner::Admitted { refused_for: Some(1..=61), .. })]),
        "{second:?}"
    );
    world.effects(Input::Home(&register));
    assert_eq!(world.hub.users(), 1);
}

#[test]
fn who_goes_before_registration_leaves_nothing_to_undo() {
    let mut world = World::new(2);
    let (user, address) = (world.user_at(THERE, 0), world.address_at(THERE, 0));
    let conn = conn(0, 1);
    // While the limiter is asked.
    world.effects(Input::Ask { conn, user: Some(&user.name), address });
    assert!(world.effects(Input::Gone { conn }).is_empty());
    assert!(world.effects(Input::Owner(ToOwner::Admitted { conn, refused_for: None })).is_empty());
    assert!(world.effects(Input::Proceed { conn }).is_empty());
    // Let in, and its home not told yet.
    world.effects(Input::Ask { conn, user: Some(&user.name), address });
    world.effects(Input::Owner(ToOwner::Admitted { conn, refused_for: None }));
    assert!(world.effects(Input::Gone { conn }).is_empty());
    assert!(world.effects(Input::Proceed { conn }).is_empty());
    assert!(world.effects(Input::Turn).is_empty());
}

#[test]
fn who_goes_during_registration_is_unregistered_behind_it() {
    let mut world = World::new(2);
    let (user, address) = (world.user_at(THERE, 0), world.address_at(HERE, 0));
    let asked = world.effects(Input::Ask { conn: conn(0, 1), user: Some(&user.name), address });
    assert!(matches!(asked[..], [Effect::Home(THERE, ToHome::Register { .. })]), "{asked:?}");
    let gone = world.effects(Input::Gone { conn: conn(0, 1) });
    let [Effect::Home(THERE, ToHome::Unregister { user: left, conn: reference })] = &gone[..] else {
        panic!("{gone:?}")
    };
    assert_eq!((left, *reference), (&user, on(HERE, 0)));
    assert!(world.effects(Input::Owner(ToOwner::Registered { conn: conn(0, 1) })).is_empty(), "nobody is left to open");
}

#[test]
fn a_home_without_room_hears_of_a_departure_later_and_once() {
    let mut world = World::new(2);
    let (user, address) = (world.user_at(THERE, 0), world.address_at(HERE, 0));
    world.effects(Input::Ask { conn: conn(0, 1), user: Some(&user.name), address });
    world.effects(Input::Owner(ToOwner::Registered { conn: conn(0, 1) }));
    world.fx.full.push((Class::Home, THERE));
    assert!(world.effects(Input::Gone { conn: conn(0, 1) }).is_empty());
    assert!(world.effects(Input::Turn).is_empty());
    world.fx.full.clear();
    let told = world.effects(Input::Turn);
    assert!(
        matches!(&told[..], [Effect::Home(THERE, ToHome::Unregister { user: left, .. })] if *left == user),
        "{told:?}"
    );
    assert!(world.effects(Input::Turn).is_empty(), "once is enough");
}

#[test]
fn messages_to_nobody_are_counted() {
    let mut world = World::new(2);
    let (sender, nobody) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
    world.open(conn(0, 1), &sender);
    let offline = world.metrics;
    assert!(world.effects(World::send(conn(0, 1), &nobody, "1")).is_empty());
    assert_eq!(offline.dropped_offline.value(), 1);
    assert!(world.effects(Input::Home(&unicast(&nobody, &Bytes::from_static(b"frame")))).is_empty());
    assert_eq!(offline.dropped_offline.value(), 2);
    world.open(conn(1, 1), &nobody);
    assert_eq!(world.effects(World::send(conn(0, 1), &nobody, "1")).len(), 1);
    assert_eq!(offline.dropped_offline.value(), 2);
    assert!(world.effects(Input::Gone { conn: conn(1, 1) }).is_empty());
    assert!(world.effects(World::send(conn(0, 1), &nobody, "1")).is_empty());
    assert_eq!(offline.dropped_offline.value(), 3);
}

#[test]
fn a_broadcast_goes_to_every_shard_or_to_none() {
    let mut world = World::new(3);
    let sender = world.user_at(HERE, 0);
    world.open(conn(0, 1), &sender);
    let said = || Input::Said { conn: conn(0, 1), command: Ok(Command::Broadcast { content: "1" }) };
    for full in [ShardId(1), ShardId(2)] {
        world.fx.full = vec![(Class::Broadcast, full)];
        world.no_room(said());
    }
    world.fx.full.clear();
    world.fx.holds_broadcasts = true;
    world.no_room(said());
    assert_eq!(world.metrics.messages_in_broadcast.value(), 0);
    world.fx.holds_broadcasts = false;
    let effects = world.effects(said());
    let [Effect::Broadcast(ShardId(1), first), Effect::Broadcast(ShardId(2), second), Effect::DeliveredAll(own)] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(first.as_ptr(), second.as_ptr(), "encoded once, and shared");
    assert_eq!(own, first);
    assert_eq!(world.metrics.messages_in_broadcast.value(), 1);
}

mod nodes;
