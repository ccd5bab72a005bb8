//! Whatever ends a recv, every byte arrives once, in order, and nobody is starved.

use std::io::Write;
use std::net::TcpStream;

use super::support::*;
use crate::shard::engine::{EngineConfig, Event};

/// Writes `bytes` from a thread of its own. The socket stays open as long as the answer.
fn write_from_elsewhere(client: &TcpStream, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    let mut client = client.try_clone().expect("clone");
    std::thread::spawn(move || client.write_all(&bytes).expect("write"))
}

#[test]
fn running_out_of_buffers_loses_nothing() {
    let mut bed = Bed::new(EngineConfig { buffers_per_ring: 4, buffer_bytes: 512, ..small() }, 4);
    let clients: Vec<_> = (0..3).map(|_| bed.connect()).collect();
    let bytes: Vec<_> = (0..3).map(|n| pattern(1 << 20, 10 + n)).collect();
    let writers: Vec<_> =
        clients.iter().zip(&bytes).map(|((client, _), bytes)| write_from_elsewhere(client, bytes.clone())).collect();
    bed.until("all bytes", |bed| clients.iter().all(|(_, id)| bed.received(*id).len() == 1 << 20));
    for ((_, id), bytes) in clients.iter().zip(&bytes) {
        assert!(bed.received(*id) == bytes);
    }
    writers.into_iter().for_each(|writer| writer.join().expect("writer"));
}

#[test]
fn a_backlog_makes_no_failures_of_its_own() {
    const CLIENTS: usize = 60;
    const ROUNDS: usize = 10;
    let config = EngineConfig { buffers_per_ring: 4, turn_events_max: 1, ..small() };
    let mut bed = Bed::new(config, 4);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| bed.connect()).collect();
    bed.settle();
    let mut completions = 0;
    for round in 1..=ROUNDS {
        // All of them have something before the engine looks: far more than it has buffers for, or takes in one turn.
        for (client, _) in &mut clients {
            client.write_all(b"message").expect("write");
        }
        while !clients.iter().all(|(_, id)| bed.received(*id).len() == round * 7) {
            completions += bed.turn();
        }
    }
    // Each message is one completion; it may have failed for want of a buffer before, hardly more than once.
    let messages = CLIENTS * ROUNDS;
    assert!(completions <= messages * 5 / 2, "{completions} completions for {messages} messages");
}

#[test]
fn held_buffers_only_delay_the_others() {
    let mut bed = Bed::new(EngineConfig { buffers_per_ring: 2, buffer_bytes: 512, ..small() }, 4);
    let (mut greedy, greedy_id) = bed.connect();
    let (mut other, other_id) = bed.connect();
    bed.settle();
    greedy.write_all(&pattern(1024, 20)).expect("write");
    let mut held = Vec::new();
    while held.len() < 2 {
        bed.engine.turn().expect("turn");
        while let Some(event) = bed.engine.next_event() {
            if let Event::Received { data, .. } = event {
                held.push(data);
            }
        }
    }
    other.write_all(b"waiting").expect("write");
    greedy.write_all(b"too").expect("write");
    bed.settle();
    assert_eq!(bed.received(other_id), b"", "there is no buffer");
    assert!(!bed.engine.has_unsubmitted(), "nothing to do until one is given back: no spinning");
    let whole: Vec<u8> = held.drain(..).flat_map(|data| data.to_vec()).collect();
    assert!(whole == pattern(1024, 20));
    assert!(bed.engine.has_unsubmitted(), "now there is");
    bed.until("both", |bed| bed.received(other_id) == b"waiting" && bed.received(greedy_id) == b"too");
}

#[test]
fn an_overflowing_completion_queue_loses_nothing() {
    let mut bed =
        Bed::new(EngineConfig { submission_entries: 4, completion_entries: 4, buffers_per_ring: 64, ..small() }, 4);
    let mut clients: Vec<_> = (0..40).map(|_| bed.connect()).collect();
    for round in 1..=20 {
        for (n, (client, _)) in clients.iter_mut().enumerate() {
            client.write_all(&[n as u8; 10]).expect("write");
        }
        bed.until("all of the round", |bed| clients.iter().all(|(_, id)| bed.received(*id).len() == round * 10));
    }
    for (n, (_, id)) in clients.iter().enumerate() {
        assert!(bed.received(*id).iter().all(|byte| usize::from(*byte) == n));
    }
}

#[test]
fn a_pause_keeps_bytes_and_their_order() {
    let mut bed = Bed::new(small(), 4);
    let (client, id) = bed.connect();
    let bytes = pattern(4 << 20, 30);
    let writer = write_from_elsewhere(&client, bytes.clone());
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut dice = pattern(1 << 16, seed).into_iter().cycle();
    bed.until("all bytes", |bed| {
        match dice.next().expect("endless") % 6 {
            0 => bed.engine.pause_reading(id),
            1 => {
                bed.engine.pause_reading(id);
                bed.engine.resume_reading(id);
            }
            2 => {
                bed.engine.resume_reading(id);
                bed.engine.pause_reading(id);
                bed.settle();
                bed.engine.resume_reading(id);
            }
            _ => bed.engine.resume_reading(id),
        }
        // A paused socket brings no completion: don't sleep on it.
        bed.turn();
        bed.engine.resume_reading(id);
        bed.received(id).len() == bytes.len()
    });
    assert!(bed.received(id) == bytes);
    writer.join().expect("writer");
}

#[test]
fn a_paused_connection_receives_nothing_more() {
    let mut bed = Bed::new(EngineConfig { buffers_per_ring: 128, ..small() }, 4);
    bed.read_at_once = false;
    let (mut client, id) = bed.connect();
    let (mut other, other_id) = bed.connect();
    bed.engine.resume_reading(other_id);
    // With more bytes waiting than a recv takes at once (32 buffers), it is about to run again when the cancellation
    // looks for it, and is not found.
    client.write_all(&pattern(100_000, 31)).expect("write");
    while unsent_bytes(&client) > 0 {
        std::thread::yield_now();
    }
    bed.engine.resume_reading(id);
    bed.engine.pause_reading(id);
    bed.settle();
    let before = bed.received(id).to_vec();
    client.write_all(&pattern(100_000, 32)).expect("write");
    client.shutdown(std::net::Shutdown::Write).expect("FIN");
    other.write_all(b"ping").expect("write");
    bed.until("the other's", |bed| bed.received(other_id) == b"ping");
    bed.settle();
    assert_eq!(bed.received(id), before, "it is paused");
    assert_eq!(bed.ended, [], "so is the news of its end");
    bed.engine.resume_reading(id);
    bed.until("the end", |bed| bed.ended == [(id, None)]);
    assert!(bed.received(id) == [pattern(100_000, 31), pattern(100_000, 32)].concat());
}

#[test]
fn a_greedy_sender_gets_its_bytes_a_turn_and_leaves_buffers_to_others() {
    const TURN_BYTES: usize = 2 << 10;
    let config = EngineConfig { turn_bytes_max: TURN_BYTES, buffers_per_ring: 1024, buffer_bytes: 256, ..small() };
    let mut bed = Bed::new(config, 4);
    let (client, id) = bed.connect();
    let bytes = pattern(4 << 20, 40);
    let writer = write_from_elsewhere(&client, bytes.clone());
    let mut buffers_held_max = 0;
    bed.until("all bytes", |bed| {
        let before = bed.received(id).len();
        bed.turn();
        let in_turn = bed.received(id).len() - before;
        assert!(in_turn <= TURN_BYTES + 256, "{in_turn} bytes in one turn");
        buffers_held_max = buffers_held_max.max(bed.engine.deferred.len());
        bed.received(id).len() == bytes.len()
    });
    assert!(bed.received(id) == bytes);
    // What the kernel received before it knew, and no more.
    assert!((1..300).contains(&buffers_held_max), "{buffers_held_max} buffers held back for one socket");
    writer.join().expect("writer");
}

#[test]
fn closing_and_pausing_a_greedy_sender_works_while_its_bytes_are_put_off() {
    let config = EngineConfig { turn_bytes_max: 1024, buffers_per_ring: 64, ..small() };
    let mut bed = Bed::new(config, 4);
    let (mut client, id) = bed.connect();
    client.write_all(&pattern(40_000, 41)).expect("write");
    bed.until("bytes put off", |bed| !bed.engine.deferred.is_empty());
    bed.engine.pause_reading(id);
    bed.settle();
    let arrived = bed.received(id).len();
    assert!(bed.received(id) == &pattern(40_000, 41)[..arrived]);
    bed.engine.resume_reading(id);
    bed.until("the rest", |bed| bed.received(id).len() == 40_000);
    assert!(bed.received(id) == pattern(40_000, 41));
    client.write_all(&pattern(40_000, 42)).expect("write");
    bed.until("bytes put off", |bed| !bed.engine.deferred.is_empty());
    bed.engine.close(id);
    bed.until("closed", |bed| bed.closed == [id]);
    bed.settle();
    bed.turn();
    assert_eq!(bed.engine.rings[0].buffers.available(), 64, "every buffer came home");
}
