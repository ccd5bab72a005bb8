//! No byte and no event of one connection may reach the next user of its slot.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::support::*;
use crate::shard::chunk::Chunk;
use crate::shard::engine::EngineConfig;

fn one_slot() -> EngineConfig {
    EngineConfig { sockets_max: 1, slots_per_ring: 1, ..small() }
}

fn read_all(mut client: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("read up to FIN");
    all
}

#[test]
fn a_late_send_never_reaches_the_next_client() {
    let mut bed = Bed::new(one_slot(), 1);
    let (first, old) = bed.connect();
    bed.engine.close(old);
    assert!(bed.engine.send(old, Chunk::from_vec(b"secret".to_vec())).is_err(), "closing");
    bed.until("closed", |bed| bed.closed == [old]);
    let (second, new) = bed.connect();
    assert_eq!((new.index, new.generation), (old.index, old.generation + 1));
    assert!(bed.engine.send(old, Chunk::from_vec(b"secret".to_vec())).is_err(), "stale");
    bed.engine.cancel_send(old);
    bed.engine.shutdown_write(old);
    bed.engine.close(old);
    bed.send(new, b"yours");
    bed.until("sent", |bed| bed.sent.len() == 1);
    bed.engine.close(new);
    bed.until("closed", |bed| bed.closed == [old, new]);
    assert_eq!(read_all(first), b"");
    assert_eq!(read_all(second), b"yours");
}

#[test]
fn a_blocked_send_ends_before_its_slot_is_used_again() {
    let mut bed = Bed::new(one_slot(), 1);
    let (first, old) = bed.connect();
    let secret = pattern(16 << 20, 2);
    bed.send(old, &secret);
    bed.settle();
    assert!(bed.engine.is_sending(old), "nobody reads, so it must wait");
    bed.engine.close(old);
    bed.until("closed", |bed| bed.closed == [old]);
    let (of, _, result) = bed.sent.remove(0);
    let (second, new) = bed.connect();
    assert_eq!((of, new.index), (old, old.index));
    bed.send(new, b"yours");
    bed.until("sent", |bed| bed.sent.len() == 1);
    bed.engine.close(new);
    bed.until("closed", |bed| bed.closed == [old, new]);
    assert_eq!(read_all(second), b"yours");
    let taken = read_all(first);
    assert_eq!(Ok(taken.len()), result);
    assert!(taken == secret[..taken.len()]);
}

#[test]
fn a_slot_is_closed_after_its_send_even_without_a_recv() {
    let mut bed = Bed::new(one_slot(), 1);
    bed.read_at_once = false;
    let (_client, id) = bed.connect();
    bed.send(id, &pattern(16 << 20, 8));
    bed.settle();
    bed.engine.close(id);
    bed.until("closed", |bed| {
        assert!(bed.closed.is_empty() || bed.sent.len() == 1, "closed under a send");
        bed.closed == [id]
    });
}

#[test]
fn closing_under_an_armed_recv_sends_fin_and_waits_for_its_end() {
    let mut bed = Bed::new(small(), 4);
    let (client, id) = bed.connect();
    bed.settle();
    let accepts = 4;
    assert_eq!(bed.engine.rings[0].in_flight(), accepts + 1, "the recv is armed");
    bed.engine.close(id);
    bed.engine.close(id);
    bed.until("closed", |bed| {
        assert!(bed.closed.is_empty() || bed.engine.rings[0].in_flight() == accepts, "closed under a recv");
        bed.closed == [id]
    });
    assert_eq!(read_all(client), b"");
    bed.settle();
    assert_eq!(bed.closed, [id], "only one end");
    assert_eq!(bed.ended, [], "the user closed: it knows that nothing more comes");
}

#[test]
fn closing_while_bytes_arrive_tells_nothing_of_them() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    bed.settle();
    client.write_all(&pattern(20_000, 3)).expect("write");
    bed.engine.close(id);
    bed.until("closed", |bed| bed.closed == [id]);
    assert_eq!(bed.received(id), b"");
    bed.settle();
    bed.turn();
    assert_eq!(bed.engine.rings[0].buffers.available(), small().buffers_per_ring, "every buffer came home");
}

#[test]
fn completions_of_another_generation_only_give_their_buffer_back() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    bed.settle();
    let in_flight = bed.engine.rings[0].in_flight();
    bed.engine.rings[0].slots.of(id.index, id.generation).expect("open").generation += 1;
    for _ in 0..4 {
        client.write_all(&pattern(20_000, 4)).expect("write");
        bed.settle();
    }
    client.shutdown(std::net::Shutdown::Write).expect("FIN");
    bed.until("the end of the recv", |bed| bed.engine.rings[0].in_flight() == in_flight - 1);
    assert_eq!((bed.received(id), bed.ended.len()), (b"".as_slice(), 0));
    bed.turn();
    assert_eq!(bed.engine.rings[0].buffers.available(), small().buffers_per_ring, "every buffer came home");
    let (mut other, other_id) = bed.connect();
    other.write_all(b"hello").expect("write");
    bed.until("another's bytes", |bed| bed.received(other_id) == b"hello");
}
