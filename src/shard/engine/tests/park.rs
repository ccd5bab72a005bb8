//! Nothing that comes while the engine parks is missed, and an engine that doesn't park is not signalled.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::support::*;
use crate::shard::engine::{EngineConfig, Event};

fn is_signalled(bed: &Bed) -> bool {
    wait_readable(bed.engine.wake_fd(), Duration::ZERO)
}

/// Turns without ever parking.
fn busy_until(bed: &mut Bed, mut done: impl FnMut(&mut Bed) -> bool) {
    let until = std::time::Instant::now() + DEADLINE;
    while !done(bed) {
        bed.turn();
        assert!(std::time::Instant::now() < until);
    }
}

#[test]
fn is_not_signalled_while_busy() {
    let mut bed = Bed::new(small(), 4);
    let mut client = connect(bed.address);
    busy_until(&mut bed, |bed| bed.accepted.len() == 1);
    let id = bed.accepted[0].0;
    client.write_all(b"hello").expect("write");
    busy_until(&mut bed, |bed| bed.received(id) == b"hello");
    assert!(!is_signalled(&bed), "before the first park");
    bed.settle();
    assert!(bed.engine.before_park().expect("before_park"), "nothing to do");
    bed.engine.after_park();
    client.write_all(b"!").expect("write");
    busy_until(&mut bed, |bed| bed.received(id) == b"hello!");
    assert!(!is_signalled(&bed), "after a park");
}

#[test]
fn is_signalled_while_parked() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    bed.settle();
    assert!(bed.engine.before_park().expect("before_park"));
    assert!(!is_signalled(&bed));
    client.write_all(b"wake").expect("write");
    assert!(wait_readable(bed.engine.wake_fd(), DEADLINE));
    bed.engine.after_park();
    busy_until(&mut bed, |bed| bed.received(id) == b"wake");
    bed.settle();
    assert!(bed.engine.before_park().expect("before_park"));
    assert!(!is_signalled(&bed), "the old signal is gone");
    bed.engine.after_park();
}

#[test]
fn what_came_just_before_parking_is_not_missed() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    for round in 1..=100 {
        bed.settle();
        client.write_all(b"x").expect("write");
        wait_until_delivered(&client);
        // The kernel has taken note by now, at a time when nobody was to be signalled.
        assert!(!bed.engine.before_park().expect("before_park"), "there is something to do");
        bed.take_events();
        assert_eq!(bed.received(id).len(), round);
    }
}

#[test]
fn unsubmitted_work_forbids_parking() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    bed.settle();
    bed.send(id, b"now");
    assert!(bed.engine.has_unsubmitted());
    assert!(!bed.engine.before_park().expect("before_park"), "its completion is there");
    bed.take_events();
    assert_eq!(bed.sent.len(), 1);
    let mut now = [0; 3];
    client.read_exact(&mut now).expect("read");
}

#[test]
fn a_ring_opened_on_the_way_to_a_park_signals_too() {
    let mut bed = Bed::new(EngineConfig { slots_per_ring: 1, sockets_max: 2, ..small() }, 1);
    let _first = connect(bed.address);
    while bed.accepted.is_empty() {
        bed.engine.turn().expect("turn");
        while let Some(event) = bed.engine.next_event() {
            if let Event::Accepted { id, peer, .. } = event {
                bed.accepted.push((id, peer));
            }
        }
    }
    assert_eq!(bed.engine.rings(), 1);
    assert!(bed.engine.before_park().expect("before_park"));
    assert_eq!(bed.engine.rings(), 2);
    let _second = connect(bed.address);
    assert!(wait_readable(bed.engine.wake_fd(), DEADLINE), "asleep for ever");
}

#[test]
fn no_wake_up_is_lost_in_many_short_sleeps() {
    const ROUNDS: u32 = 10_000;
    let mut bed = Bed::new(small(), 4);
    let (client, id) = bed.connect();
    let player = std::thread::spawn(move || {
        let mut client = client;
        for round in 0..ROUNDS {
            client.write_all(&round.to_le_bytes()).expect("write");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).expect("an answer");
            assert_eq!(answer, round.to_le_bytes());
        }
    });
    let mut answered = 0;
    bed.until("all rounds", |bed| {
        let received = bed.received(id).len();
        if received >= answered + 4 && !bed.engine.is_sending(id) {
            let ball = bed.received(id)[answered..answered + 4].to_vec();
            bed.send(id, &ball);
            answered += 4;
        }
        answered == ROUNDS as usize * 4
    });
    bed.until("the last answer", |bed| bed.sent.len() == ROUNDS as usize);
    player.join().expect("player");
}

/// Waits until the peer's kernel has all that was written.
fn wait_until_delivered(client: &TcpStream) {
    let until = std::time::Instant::now() + DEADLINE;
    while unsent_bytes(client) > 0 {
        assert!(std::time::Instant::now() < until);
        std::thread::yield_now();
    }
}
