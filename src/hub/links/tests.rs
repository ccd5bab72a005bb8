//! The links of two shards, one hand over the other.

use bytes::Bytes;

use super::*;
use crate::hub::envelope::{MESSAGE_WEIGHT, UserKey};
use crate::ids::ConnRef;
use crate::time::Micros;

const A: ShardId = ShardId(0);
const B: ShardId = ShardId(1);
const FRAME_BYTES: usize = 10_000;
const WEIGHT: u64 = MESSAGE_WEIGHT + FRAME_BYTES as u64;

fn pair() -> (Links, Links) {
    (Links::new(A, 2), Links::new(B, 2))
}

fn frame() -> Bytes {
    Bytes::from(vec![0; FRAME_BYTES])
}

fn conn(index: u32) -> ConnId {
    ConnId { index, generation: 0 }
}

/// A to-home message that carries a number and weighs [`WEIGHT`].
fn to_home(number: u64) -> ToHome {
    let target = UserKey { hash: number, name: "user".into() };
    ToHome::Unicast { target, frame: frame(), sender: ConnRef { shard: A, conn: conn(0) }, received: Micros(0) }
}

fn number_of(message: &ToHome) -> u64 {
    match message {
        ToHome::Unicast { target, .. } => target.hash,
        other => panic!("{other:?}"),
    }
}

fn broadcast() -> Broadcast {
    Broadcast { frame: frame(), received: Micros(0) }
}

/// Fills the to-home window towards B with numbered messages; returns how many they are.
fn fill(links: &mut Links) -> u64 {
    let mut count = 0;
    while links.has_room(Class::Home, B) {
        links.push_home(B, to_home(count));
        count += 1;
    }
    count
}

#[test]
fn a_window_is_passed_by_one_message_at_most() {
    let (mut a, _) = pair();
    let count = fill(&mut a);
    assert_eq!(a.in_flight_bytes(Class::Home, B), count * WEIGHT);
    assert!((a.window_bytes()..a.window_bytes() + WEIGHT).contains(&(count * WEIGHT)));
    // Each class has a window of its own, and to itself a shard has no window at all.
    assert!(a.has_room(Class::Owner, B) && a.has_room(Class::Broadcast, B) && a.has_room(Class::Home, A));
}

#[test]
fn windows_shrink_with_the_number_of_shards_and_stay_useful() {
    for (shards, window) in
        [(1, 1 << 20), (2, 1 << 20), (64, 1 << 20), (128, 512 << 10), (1024, 64 << 10), (4096, 64 << 10)]
    {
        assert_eq!(Links::new(A, shards).window_bytes(), window, "{shards} shards");
    }
}

#[test]
fn credits_come_back_when_a_message_is_handled_and_not_when_it_arrives() {
    let (mut a, mut b) = pair();
    let count = fill(&mut a);
    b.receive(A, a.take_batch(B).unwrap());
    assert!(b.take_batch(A).is_none(), "arrived is not handled");
    let first = b.take_home(A).unwrap();
    b.unhandled_home(A, first);
    assert!(b.take_batch(A).is_none(), "put back is not handled");
    for number in 0..count {
        let message = b.take_home(A).unwrap();
        assert_eq!(number_of(&message), number, "what was put back stays the oldest");
        b.handled_home(A, &message);
    }
    assert!(!b.has_inbound() && !a.has_room(Class::Home, B));
    a.receive(B, b.take_batch(A).unwrap());
    assert_eq!(a.in_flight_bytes(Class::Home, B), 0);
}

#[test]
fn each_class_gives_its_own_credits_back() {
    let (mut a, mut b) = pair();
    a.push_owner(B, ToOwner::Registered { conn: conn(1) });
    while a.has_room(Class::Broadcast, B) {
        a.push_broadcast(B, broadcast());
    }
    b.receive(A, a.take_batch(B).unwrap());
    while b.pop_broadcast(A).is_some() {}
    a.receive(B, b.take_batch(A).unwrap());
    assert_eq!(a.in_flight_bytes(Class::Broadcast, B), 0);
    assert_eq!(a.in_flight_bytes(Class::Owner, B), MESSAGE_WEIGHT, "still unhandled");
    assert!(matches!(b.pop_owner(A), Some(ToOwner::Registered { .. })));
    // So few credits wait for a message that goes the same way.
    assert!(b.take_batch(A).is_none());
    b.push_home(A, to_home(0));
    a.receive(B, b.take_batch(A).unwrap());
    assert_eq!(a.in_flight_bytes(Class::Owner, B), 0);
}

#[test]
fn credits_travel_alone_from_an_eighth_of_the_window_on() {
    let (mut a, mut b) = pair();
    fill(&mut a);
    b.receive(A, a.take_batch(B).unwrap());
    let mut owed = 0;
    let batch = loop {
        let message = b.take_home(A).unwrap();
        b.handled_home(A, &message);
        owed += message.weight();
        match b.take_batch(A) {
            Some(batch) => break batch,
            None => assert!(owed < b.window_bytes() / 8),
        }
    };
    assert!(batch.is_empty() && batch.credits[Class::Home as usize] == owed && owed >= b.window_bytes() / 8);
    // Fewer than all come back, and the sender goes on.
    a.receive(B, batch);
    assert!(a.has_room(Class::Home, B));
}

#[test]
fn a_batch_that_came_back_goes_in_front() {
    let (mut a, mut b) = pair();
    for number in [77, 78] {
        b.push_home(A, to_home(number));
    }
    a.receive(B, b.take_batch(A).unwrap());
    let handle_one = |a: &mut Links| {
        let handled = a.take_home(B).unwrap();
        a.handled_home(B, &handled);
    };
    handle_one(&mut a);
    a.push_home(B, to_home(0));
    a.push_pause(B, conn(5));
    let batch = a.take_batch(B).unwrap();
    a.push_home(B, to_home(1));
    a.push_pause(B, conn(6));
    handle_one(&mut a);
    a.return_batch(B, batch);
    let batch = a.take_batch(B).unwrap();
    assert_eq!(batch.home.iter().map(number_of).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(batch.pauses, [conn(5), conn(6)]);
    assert_eq!(batch.credits[Class::Home as usize], 2 * WEIGHT, "credits of both, none lost and none doubled");
    assert!(a.take_batch(B).is_none() && !a.has_outbound());
}

#[test]
fn advice_to_pause_travels_alone_and_names_each_connection_once() {
    let (mut a, _) = pair();
    for index in [1, 1, 2, 1] {
        a.push_pause(B, conn(index));
    }
    assert_eq!(a.take_batch(B).unwrap().pauses, [conn(1), conn(2)]);
    assert!(a.take_batch(B).is_none());
}
