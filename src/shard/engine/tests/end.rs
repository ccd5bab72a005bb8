//! Dropping an engine in the midst of everything.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::support::*;
use crate::shard::engine::{EngineConfig, Event, RecvBuf};

/// An engine of several rings with recvs, sends and accepts in flight, and a buffer that was taken from it.
fn in_the_midst() -> (Bed, Vec<TcpStream>, RecvBuf) {
    let mut bed = Bed::new(EngineConfig { slots_per_ring: 8, turn_bytes_max: 1024, ..small() }, 6);
    let mut clients: Vec<_> = (0..20).map(|_| bed.connect()).collect();
    for (_, id) in clients.iter().skip(10) {
        bed.send(*id, &pattern(8 << 20, 50));
    }
    bed.settle();
    clients[0].0.write_all(b"kept").expect("write");
    let mut kept = None;
    while kept.is_none() {
        bed.engine.turn().expect("turn");
        while let Some(event) = bed.engine.next_event() {
            if let Event::Received { data, .. } = event {
                kept = Some(data);
            }
        }
    }
    // Bytes put off, completions not taken, and operations not submitted.
    clients[1].0.write_all(&pattern(20_000, 51)).expect("write");
    bed.until("bytes put off", |bed| !bed.engine.deferred.is_empty());
    clients[2].0.write_all(b"not taken").expect("write");
    bed.engine.turn().expect("turn");
    bed.engine.close(clients[19].1);
    bed.send(clients[3].1, b"not submitted");
    (bed, clients.into_iter().map(|(client, _)| client).collect(), kept.expect("kept"))
}

#[test]
fn dropping_ends_everything_and_spares_what_was_taken() {
    let (bed, mut clients, kept) = in_the_midst();
    let address = bed.address;
    drop(bed);
    assert_eq!(&*kept, b"kept");
    TcpListener::bind(address).expect("nobody listens any more");
    for (n, client) in clients.iter_mut().enumerate() {
        let mut all = Vec::new();
        match client.read_to_end(&mut all) {
            Ok(_) => {}
            // Those whose bytes were not received.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "client {n}"),
        }
    }
}

#[test]
fn the_kernel_lets_go_of_all_memory_before_it_is_freed() {
    let (mut bed, _clients, _kept) = in_the_midst();
    let rings = bed.engine.rings();
    assert!(rings >= 3);
    while let Some(done) = bed.engine.deferred.pop_front().or_else(|| bed.engine.ready.pop_front()) {
        bed.engine.retire(done);
    }
    for ring in 0..rings {
        assert!(bed.engine.rings[ring].in_flight() > 0);
        bed.engine.drain(ring);
        assert_eq!(bed.engine.rings[ring].in_flight(), 0);
    }
}
