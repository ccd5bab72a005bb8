//! One hub with a bus: who waits for it, what it is told, and what it brings.

use super::*;
use crate::hub::arrivals::KEPT_BYTES_PER_USER_MAX;
use crate::hub::bus::Ticket;

const TICKET: Ticket = 7;

fn ask(world: &mut World, conn: ConnId, user: &UserKey) -> Vec<Effect> {
    let address = world.address_at(HERE, conn.index as usize);
    world.effects(Input::Ask { conn, user: Some(&user.name), address })
}

fn registered(user: &UserKey, elsewhere: bool) -> FromBus {
    FromBus::Registered { user: user.clone(), elsewhere }
}

/// Opens a connection of a user who is registered nowhere yet.
fn open(world: &mut World, conn: ConnId, user: &UserKey, elsewhere: bool) {
    ask(world, conn, user);
    let opened = world.effects(Input::Bus(&registered(user, elsewhere)));
    assert!(matches!(opened[..], [Effect::Decided(to, Verdict::Open)] if to == conn), "{opened:?}");
}

fn brought(user: &UserKey, frame: &'static [u8], early: bool) -> FromBus {
    FromBus::Unicast { target: user.clone(), frame: Bytes::from_static(frame), ticket: TICKET, early }
}

fn is_overloaded(effect: &Effect, conn: ConnId) -> bool {
    matches!(effect, Effect::Delivered(to, frame) if *to == conn && frame.ends_with(br#""code":"overloaded"}"#))
}

/// The contents of messages that were delivered to a connection, which must be all that has happened.
fn contents(effects: &[Effect], conn: ConnId) -> Vec<String> {
    let content = |effect: &Effect| match effect {
        Effect::Delivered(to, frame) if *to == conn => {
            let text = String::from_utf8_lossy(frame).into_owned();
            let at = text.find("\"content\":").map_or(0, |at| at + 10);
            text[at..].trim_end_matches('}').to_owned()
        }
        other => panic!("{other:?}"),
    };
    effects.iter().map(content).collect()
}

#[test]
fn connections_wait_until_the_user_is_registered_and_then_open_once() {
    let mut world = World::with_bus(2);
    let user = world.user_at(HERE, 0);
    let first = ask(&mut world, conn(0, 1), &user);
    assert!(matches!(&first[..], [Effect::Bus(ToBus::Arrived { user: told })] if *told == user), "{first:?}");
    assert!(ask(&mut world, conn(1, 1), &user).is_empty(), "told once");
    assert!(world.effects(Input::Home(&ToHome::Register { user: user.clone(), conn: on(THERE, 5) })).is_empty());
    assert_eq!(world.hub.users(), 0);
    let opened = world.effects(Input::Bus(&registered(&user, false)));
    let mut here: Vec<u32> = opened
        .iter()
        .filter_map(|effect| match effect {
            Effect::Decided(conn, Verdict::Open) => Some(conn.index),
            _ => None,
        })
        .collect();
    here.sort_unstable();
    let there = opened.iter().filter(|effect| matches!(effect, Effect::Owner(THERE, ToOwner::Registered { .. })));
    assert_eq!((here, there.count(), opened.len()), (vec![0, 1], 1, 3), "{opened:?}");
    assert!(world.effects(Input::Bus(&registered(&user, false))).is_empty(), "they open once");
    let later = ask(&mut world, conn(2, 1), &user);
    assert!(matches!(later[..], [Effect::Decided(_, Verdict::Open)]), "{later:?}");
    // Three of the four go, and then the last.
    for index in [0, 1, 2] {
        assert!(world.effects(Input::Gone { conn: conn(index, 1) }).is_empty());
    }
    let left = world.effects(Input::Home(&ToHome::Unregister { user: user.clone(), conn: on(THERE, 5) }));
    assert!(matches!(&left[..], [Effect::Bus(ToBus::Left { user: told })] if *told == user), "{left:?}");
}

#[test]
fn what_is_said_to_a_user_who_waits_follows_the_opening_in_order() {
    for elsewhere in [false, true] {
        let mut world = World::with_bus(1);
        let (sender, user) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
        open(&mut world, conn(0, 1), &sender, false);
        ask(&mut world, conn(1, 1), &user);
        assert!(world.effects(World::send(conn(0, 1), &user, "1")).is_empty());
        assert!(world.effects(Input::Bus(&brought(&user, b"\"content\":\"early\"", true))).is_empty());
        assert!(world.effects(World::send(conn(0, 1), &user, "2")).is_empty());
        let mut effects = world.effects(Input::Bus(&registered(&user, elsewhere)));
        assert!(matches!(effects.remove(0), Effect::Decided(_, Verdict::Open)));
        let to_bus = |effect: &Effect| matches!(effect, Effect::Bus(ToBus::Unicast { delivered_here: true, .. }));
        assert_eq!(effects.iter().filter(|effect| to_bus(effect)).count(), if elsewhere { 2 } else { 0 });
        effects.retain(|effect| !to_bus(effect));
        assert_eq!(contents(&effects, conn(1, 1)), ["\"early\"", "1", "2"]);
        // From here on at once.
        let mut next = world.effects(World::send(conn(0, 1), &user, "3"));
        assert_eq!(next.pop_if(|effect| to_bus(effect)).is_some(), elsewhere);
        assert_eq!(contents(&next, conn(1, 1)), ["3"]);
    }
}

#[test]
fn who_cannot_be_registered_is_told_and_nothing_kept_is_lost() {
    let mut world = World::with_bus(2);
    let (sender, user) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
    open(&mut world, conn(0, 1), &sender, false);
    ask(&mut world, conn(1, 1), &user);
    world.effects(Input::Home(&ToHome::Register { user: user.clone(), conn: on(THERE, 5) }));
    assert!(world.effects(World::send(conn(0, 1), &user, "1")).is_empty());
    assert!(world.effects(Input::Bus(&brought(&user, b"early", true))).is_empty());
    let refused = FromBus::NotRegistered { user: user.clone() };
    let effects = world.effects(Input::Bus(&refused));
    assert_eq!(effects.len(), 4, "{effects:?}");
    assert!(effects[..2].iter().any(|told| matches!(told, Effect::Decided(_, Verdict::Unavailable))), "{effects:?}");
    assert!(
        effects[..2].iter().any(|told| matches!(told, Effect::Owner(THERE, ToOwner::Unavailable { .. }))),
        "{effects:?}"
    );
    assert!(matches!(&effects[2], Effect::Bus(ToBus::Returned { ticket: TICKET })), "{effects:?}");
    assert!(matches!(&effects[3], Effect::Bus(ToBus::Unicast { delivered_here: false, .. })), "{effects:?}");
    // It counts as left: neither is it said again, nor does anything hold the next arrival up.
    assert!(world.effects(Input::Gone { conn: conn(1, 1) }).is_empty());
    assert!(world.effects(Input::Bus(&refused)).is_empty());
    let again = ask(&mut world, conn(2, 1), &user);
    assert!(matches!(again[..], [Effect::Bus(ToBus::Arrived { .. })]), "{again:?}");
}

#[test]
fn the_owner_of_a_connection_that_cannot_be_registered_answers_once() {
    let mut world = World::with_bus(2);
    let user = world.user_at(THERE, 0);
    ask(&mut world, conn(0, 1), &user);
    let told = world.effects(Input::Owner(ToOwner::Unavailable { conn: conn(0, 1) }));
    assert!(matches!(told[..], [Effect::Decided(_, Verdict::Unavailable)]), "{told:?}");
    assert!(world.effects(Input::Owner(ToOwner::Unavailable { conn: conn(0, 1) })).is_empty());
    assert!(world.effects(Input::Owner(ToOwner::Registered { conn: conn(0, 1) })).is_empty());
    assert!(world.effects(Input::Gone { conn: conn(0, 1) }).is_empty());
}

#[test]
fn who_leaves_while_waiting_is_said_to_have_left_when_the_answer_is_there() {
    let mut world = World::with_bus(1);
    let (sender, user) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
    open(&mut world, conn(0, 1), &sender, false);
    ask(&mut world, conn(1, 1), &user);
    world.effects(World::send(conn(0, 1), &user, "1"));
    assert!(world.effects(Input::Gone { conn: conn(1, 1) }).is_empty(), "the answer may be on its way");
    let effects = world.effects(Input::Bus(&registered(&user, false)));
    let [Effect::Bus(ToBus::Left { .. }), Effect::Bus(ToBus::Unicast { delivered_here: false, .. })] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    // Gone and come back in between: the answer is for whoever is there.
    ask(&mut world, conn(2, 1), &user);
    world.effects(Input::Gone { conn: conn(2, 1) });
    assert!(ask(&mut world, conn(3, 1), &user).is_empty(), "the bus has been told already");
    let opened = world.effects(Input::Bus(&registered(&user, false)));
    assert!(matches!(opened[..], [Effect::Decided(to, Verdict::Open)] if to == conn(3, 1)), "{opened:?}");
}

#[test]
fn an_answer_without_room_goes_on_where_it_stopped() {
    let mut world = World::with_bus(2);
    let (sender, user) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
    open(&mut world, conn(0, 1), &sender, false);
    ask(&mut world, conn(1, 1), &user);
    world.effects(Input::Home(&ToHome::Register { user: user.clone(), conn: on(THERE, 5) }));
    world.effects(World::send(conn(0, 1), &user, "1"));
    let mut all = Vec::new();
    for full in [true, true, false] {
        world.fx.full = if full { vec![(Class::Owner, THERE)] } else { Vec::new() };
        let outcome = world.handle(Input::Bus(&registered(&user, false)));
        assert_eq!(outcome, if full { Outcome::NoRoom } else { Outcome::Done });
        all.extend(world.fx.take());
        // What comes in between waits behind it; and who comes opens with the others.
        if full {
            assert!(world.effects(World::send(conn(0, 1), &user, "2")).is_empty());
        }
    }
    let opened = all.iter().filter(|effect| {
        matches!(effect, Effect::Decided(_, Verdict::Open) | Effect::Owner(THERE, ToOwner::Registered { .. }))
    });
    assert_eq!(opened.count(), 2, "{all:?}");
    let delivered: Vec<Effect> = all.into_iter().filter(|effect| matches!(effect, Effect::Delivered(..))).collect();
    assert_eq!(contents(&delivered, conn(1, 1)), ["1", "2", "2"]);
}

#[test]
fn what_is_kept_is_bounded_and_its_sender_told() {
    let mut world = World::with_bus(2);
    let (sender, user) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
    open(&mut world, conn(0, 1), &sender, false);
    ask(&mut world, conn(1, 1), &user);
    let frame = Bytes::from(vec![0; 60_000]);
    let mut kept = 0;
    while kept < KEPT_BYTES_PER_USER_MAX {
        assert!(world.effects(Input::Home(&unicast(&user, &frame))).is_empty());
        kept += frame.len() as u64 + 96;
    }
    world.fx.full = vec![(Class::Owner, THERE)];
    world.no_room(Input::Home(&unicast(&user, &frame)));
    world.fx.full.clear();
    let told = world.effects(Input::Home(&unicast(&user, &frame)));
    assert!(matches!(told[..], [Effect::Owner(THERE, ToOwner::Refused { .. })]), "{told:?}");
    let told = world.effects(World::send(conn(0, 1), &user, "1"));
    assert!(matches!(&told[..], [error] if is_overloaded(error, conn(0, 1))), "{told:?}");
    // What the bus brought goes back to it instead.
    let returned = world.effects(Input::Bus(&brought(&user, b"early", true)));
    assert!(matches!(returned[..], [Effect::Bus(ToBus::Returned { .. })]), "{returned:?}");
}

#[test]
fn a_message_to_a_user_of_other_nodes_goes_to_the_bus_or_waits_for_room() {
    let mut world = World::with_bus(2);
    let (sender, far) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
    open(&mut world, conn(0, 1), &sender, false);
    let sent = world.effects(World::send(conn(0, 1), &far, "1"));
    let [Effect::Bus(ToBus::Unicast { target, sender: from, delivered_here: false, .. })] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!((target, *from), (&far, on(HERE, 0)));
    world.fx.bus_is_full = true;
    world.no_room(World::send(conn(0, 1), &far, "2"));
    world.no_room(Input::Home(&unicast(&far, &Bytes::from_static(b"frame"))));
    assert_eq!(world.metrics.dropped_offline.value(), 0);
    // Local traffic goes on.
    assert_eq!(contents(&world.effects(World::send(conn(0, 1), &sender, "3")), conn(0, 1)), ["3"]);
    let told = world.effects(Input::Owner(ToOwner::Refused { conn: conn(0, 1) }));
    assert!(matches!(&told[..], [error] if is_overloaded(error, conn(0, 1))), "{told:?}");
    let told = world.effects(Input::Bus(&FromBus::Overloaded { sender: on(HERE, 0) }));
    assert!(matches!(&told[..], [error] if is_overloaded(error, conn(0, 1))), "{told:?}");
    assert_eq!(world.metrics.dropped_overloaded.value(), 2);
}

#[test]
fn a_user_who_is_elsewhere_too_gets_a_message_on_both_sides_or_on_none() {
    let mut world = World::with_bus(2);
    let user = world.user_at(HERE, 0);
    open(&mut world, conn(0, 1), &user, true);
    let sent = world.effects(World::send(conn(0, 1), &user, "1"));
    assert!(
        matches!(sent[..], [Effect::Delivered(..), Effect::Bus(ToBus::Unicast { delivered_here: true, .. })]),
        "{sent:?}"
    );
    world.fx.bus_is_full = true;
    world.no_room(World::send(conn(0, 1), &user, "2"));
    world.fx.bus_is_full = false;
    world.effects(Input::Home(&ToHome::Register { user: user.clone(), conn: on(THERE, 5) }));
    world.fx.full = vec![(Class::Owner, THERE)];
    world.no_room(World::send(conn(0, 1), &user, "3"));
    world.fx.full.clear();
    world.effects(Input::Bus(&FromBus::Elsewhere { user: user.clone(), elsewhere: false }));
    let sent = world.effects(World::send(conn(0, 1), &user, "4"));
    assert!(!sent.iter().any(|effect| matches!(effect, Effect::Bus(_))), "{sent:?}");
}

#[test]
fn what_the_bus_brings_is_delivered_or_goes_back_and_fences_stand_behind_it() {
    let mut world = World::with_bus(2);
    let (user, nobody) = (world.user_at(HERE, 0), world.user_at(HERE, 1));
    open(&mut world, conn(0, 1), &user, false);
    for early in [false, true] {
        let here = world.effects(Input::Bus(&brought(&user, b"\"content\":5", early)));
        assert_eq!(contents(&here, conn(0, 1)), ["5"]);
        let back = world.effects(Input::Bus(&brought(&nobody, b"frame", early)));
        assert!(matches!(back[..], [Effect::Bus(ToBus::Returned { ticket: TICKET })]), "{back:?}");
    }
    // An arrival that waits: without the mark the message is for an earlier stay.
    ask(&mut world, conn(1, 1), &nobody);
    let back = world.effects(Input::Bus(&brought(&nobody, b"frame", false)));
    assert!(matches!(back[..], [Effect::Bus(ToBus::Returned { .. })]), "{back:?}");
    let fenced = world.effects(Input::Bus(&FromBus::Fence { fence: 9 }));
    assert!(matches!(fenced[..], [Effect::Bus(ToBus::Fenced { fence: 9 })]), "{fenced:?}");
    let all = world.effects(Input::Bus(&FromBus::Broadcast { frame: Bytes::from_static(b"all") }));
    assert!(matches!(&all[..], [Effect::DeliveredAll(frame)] if frame == b"all"), "{all:?}");
    world.effects(Input::Home(&ToHome::Register { user: user.clone(), conn: on(THERE, 5) }));
    world.fx.full = vec![(Class::Owner, THERE)];
    world.no_room(Input::Bus(&brought(&user, b"frame", false)));
}

#[test]
fn a_broadcast_goes_to_the_bus_once_or_to_nobody() {
    let mut world = World::with_bus(2);
    let sender = world.user_at(HERE, 0);
    open(&mut world, conn(0, 1), &sender, false);
    let said = || Input::Said { conn: conn(0, 1), command: Ok(Command::Broadcast { content: "1" }) };
    world.fx.bus_is_full = true;
    world.no_room(said());
    world.fx.bus_is_full = false;
    world.fx.bus_holds_broadcasts = true;
    let told = world.effects(said());
    assert!(matches!(&told[..], [error] if is_overloaded(error, conn(0, 1))), "{told:?}");
    world.fx.bus_holds_broadcasts = false;
    let effects = world.effects(said());
    assert!(
        matches!(
            effects[..],
            [Effect::Broadcast(THERE, _), Effect::Bus(ToBus::Broadcast { .. }), Effect::DeliveredAll(_)]
        ),
        "{effects:?}"
    );
    // One that came from another shard of this node has gone to the bus there.
    let broadcast = Broadcast { frame: Bytes::from_static(b"all"), received: NOW };
    let effects = world.effects(Input::Broadcast(broadcast));
    assert!(matches!(effects[..], [Effect::DeliveredAll(_)]), "{effects:?}");
}
