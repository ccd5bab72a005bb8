//! What is sent arrives complete and in order, or its sender knows how far it got.

use std::io::Read;
use std::net::TcpStream;

use super::support::*;
use crate::shard::chunk::Chunk;
use crate::shard::engine::EngineConfig;

fn read_exact(client: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).expect("read");
    bytes
}

#[test]
fn blocked_sends_arrive_complete_and_in_order() {
    const CHUNK: usize = 64 << 10;
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    let bytes = pattern(8 << 20, 5);
    let mut chunks = bytes.chunks(CHUNK);
    bed.send(id, chunks.next().expect("first"));
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut piece = [0; 1000];
        while all.len() < 8 << 20 {
            let n = client.read(&mut piece).expect("read");
            assert_ne!(n, 0, "ended after {} bytes", all.len());
            all.extend_from_slice(&piece[..n]);
        }
        all
    });
    bed.until("all sent", |bed| {
        for (_, _, result) in bed.sent.drain(..) {
            assert_eq!(result, Ok(CHUNK));
        }
        if bed.engine.is_sending(id) {
            return false;
        }
        let Some(next) = chunks.next() else { return true };
        bed.send(id, next);
        false
    });
    assert!(reader.join().expect("reader") == bytes);
}

#[test]
fn a_second_send_is_refused_while_one_is_in_flight() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    let first = pattern(8 << 20, 6);
    bed.send(id, &first);
    let refused = bed.engine.send(id, Chunk::from_vec(b"between".to_vec())).expect_err("in flight, not submitted");
    assert_eq!(refused.as_slice(), b"between");
    bed.settle();
    let refused = bed.engine.send(id, refused).expect_err("in flight, waiting for space");
    let reader = std::thread::spawn(move || read_exact(&mut client, (8 << 20) + 7));
    bed.until("the first", |bed| bed.sent.len() == 1);
    bed.engine.send(id, refused).expect("none in flight");
    bed.until("the second", |bed| bed.sent.len() == 2);
    let all = reader.join().expect("reader");
    assert!(all[..8 << 20] == first);
    assert_eq!(&all[8 << 20..], b"between");
}

#[test]
fn a_cancelled_send_tells_how_many_bytes_went() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    let bytes = pattern(16 << 20, 7);
    bed.send(id, &bytes);
    bed.settle();
    bed.engine.cancel_send(id);
    bed.engine.cancel_send(id);
    bed.until("cancelled", |bed| bed.sent.len() == 1);
    let (_, chunk, result) = bed.sent.remove(0);
    let went = result.expect("cancelled is no error");
    assert!(went > 0 && went < chunk.len(), "{went}");
    // The socket is full now, so of the next send nothing goes.
    bed.send(id, &bytes);
    bed.settle();
    assert!(bed.engine.is_sending(id));
    bed.engine.cancel_send(id);
    bed.until("cancelled", |bed| bed.sent.len() == 1);
    assert_eq!(bed.sent.remove(0).2, Ok(0));
    let reader = std::thread::spawn(move || read_exact(&mut client, went + 3));
    bed.send(id, b"end");
    bed.until("sent", |bed| bed.sent.len() == 1);
    let all = reader.join().expect("reader");
    assert!(all[..went] == bytes[..went]);
    assert_eq!(&all[went..], b"end");
}

#[test]
fn a_send_cancelled_before_it_was_submitted_is_told_too() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    bed.send(id, b"quick");
    bed.engine.cancel_send(id);
    bed.until("ended", |bed| bed.sent.len() == 1);
    // It was small, and ran when it was submitted, before its cancellation.
    assert_eq!(bed.sent[0].2, Ok(5));
    assert_eq!(read_exact(&mut client, 5), b"quick");
}

#[test]
fn a_send_to_a_peer_that_is_gone_fails() {
    let mut bed = Bed::new(small(), 4);
    let (client, id) = bed.connect();
    socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).expect("linger");
    drop(client);
    bed.until("the reset", |bed| bed.ended.len() == 1);
    bed.send(id, b"anyone?");
    bed.until("failed", |bed| bed.sent.len() == 1);
    assert_eq!(bed.sent[0].2, Err(libc::EPIPE));
}

#[test]
fn full_batches_leave_before_the_turn_ends() {
    let mut bed = Bed::new(EngineConfig { submit_batch: 3, ..small() }, 4);
    let mut clients: Vec<_> = (0..3).map(|_| bed.connect()).collect();
    bed.settle();
    for (_, id) in &clients {
        bed.send(*id, b"early");
    }
    for (client, _) in &mut clients {
        assert_eq!(read_exact(client, 5), b"early", "without a turn");
    }
}

#[test]
fn flush_submits_without_taking_completions() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    bed.settle();
    bed.send(id, b"flushed");
    assert!(bed.engine.has_unsubmitted());
    bed.engine.flush().expect("flush");
    assert!(!bed.engine.has_unsubmitted());
    assert_eq!(read_exact(&mut client, 7), b"flushed");
    assert!(bed.engine.is_sending(id), "the completion is taken by a turn");
    bed.until("sent", |bed| bed.sent.len() == 1);
}

#[test]
fn more_operations_than_the_queues_hold_lose_none() {
    let tiny = EngineConfig { submission_entries: 4, completion_entries: 4, ..small() };
    let mut bed = Bed::new(tiny, 16);
    let mut clients: Vec<_> = (0..40).map(|_| bed.connect()).collect();
    for round in 0..5 {
        for (n, (_, id)) in clients.iter().enumerate() {
            bed.send(*id, &[n as u8, round]);
        }
        bed.until("all sent", |bed| bed.sent.len() == 40);
        for (n, (client, _)) in clients.iter_mut().enumerate() {
            assert_eq!(read_exact(client, 2), [n as u8, round]);
        }
        bed.sent.clear();
    }
    for (_, id) in &clients {
        bed.engine.close(*id);
    }
    bed.until("all closed", |bed| bed.closed.len() == 40);
}
