//! Full tables, several rings, listeners that fail and listeners that stop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::support::*;
use crate::shard::engine::{Engine, EngineConfig, EngineError};

#[test]
fn a_full_table_makes_clients_wait_and_drops_none() {
    let mut bed = Bed::new(EngineConfig { sockets_max: 4, slots_per_ring: 4, ..small() }, 64);
    let mut clients: Vec<TcpStream> = (0..12).map(|_| connect(bed.address)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(&[n as u8]).expect("write");
    }
    bed.until("a full table", |bed| bed.accepted.len() == 4);
    bed.settle();
    assert_eq!((bed.accepted.len(), bed.engine.open_sockets()), (4, 4));
    for n in 0..12 {
        bed.until("served", |bed| bed.accepted.len() > n && bed.received(bed.accepted[n].0).len() == 1);
        let id = bed.accepted[n].0;
        let byte = bed.received(id)[0];
        bed.send(id, &[byte]);
        bed.until("sent", |bed| bed.sent.len() == n + 1);
        assert!(bed.engine.open_sockets() <= 4);
        bed.engine.close(id);
    }
    bed.until("all closed", |bed| bed.closed.len() == 12);
    for (n, client) in clients.iter_mut().enumerate() {
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("read");
        assert_eq!(all, [n as u8], "client {n} was served");
    }
    assert!(bed.accepts_failed.is_empty(), "{:?}", bed.accepts_failed);
}

#[test]
fn further_rings_are_opened_as_sockets_need_them() {
    let mut bed = Bed::new(EngineConfig { sockets_max: 36, slots_per_ring: 8, ..small() }, 3);
    assert_eq!(bed.engine.rings(), 1);
    let mut clients: Vec<_> = (0..36).map(|_| bed.connect()).collect();
    assert_eq!(bed.engine.rings(), 5);
    let mut waiting = connect(bed.address);
    waiting.write_all(b"patient").expect("write");
    bed.settle();
    assert_eq!((bed.accepted.len(), bed.engine.open_sockets()), (36, 36));
    for (client, _) in &mut clients {
        client.write_all(b"ping").expect("write");
    }
    bed.until("all pings", |bed| clients.iter().all(|(_, id)| bed.received(*id) == b"ping"));
    for (n, (client, id)) in clients.iter_mut().enumerate() {
        bed.send(*id, &[n as u8; 3]);
        bed.engine.flush().expect("flush");
        let mut answer = [0; 3];
        client.read_exact(&mut answer).expect("read");
        assert_eq!(answer, [n as u8; 3]);
    }
    bed.until("all sent", |bed| bed.sent.len() == 36);
    for (_, id) in &clients {
        bed.engine.close(*id);
    }
    bed.until("the patient one", |bed| bed.accepted.len() == 37 && bed.received(bed.accepted[36].0) == b"patient");
    bed.until("all closed", |bed| bed.closed.len() == 36);
    assert_eq!((bed.engine.open_sockets(), bed.engine.rings()), (1, 5));
    assert!(bed.accepts_failed.is_empty(), "{:?}", bed.accepts_failed);
}

#[test]
fn a_busy_ring_leaves_the_others_their_share() {
    let config = EngineConfig {
        sockets_max: 2,
        slots_per_ring: 1,
        turn_events_max: 2,
        turn_bytes_max: usize::MAX,
        buffer_bytes: 64,
        ..small()
    };
    let mut bed = Bed::new(config, 2);
    let (busy, _) = bed.connect();
    let (mut quiet, quiet_id) = bed.connect();
    assert_eq!(bed.engine.rings(), 2);
    let writer = {
        let mut busy = busy.try_clone().expect("clone");
        // Ends with an error when the engine is gone.
        std::thread::spawn(move || while busy.write_all(&[0; 1 << 16]).is_ok() {})
    };
    bed.until("the busy one", |bed| bed.received.values().any(|bytes| bytes.len() > 1 << 16));
    quiet.write_all(b"ping").expect("write");
    bed.until("the quiet one", |bed| bed.received(quiet_id) == b"ping");
    drop(bed);
    busy.shutdown(std::net::Shutdown::Both).expect("shutdown");
    writer.join().expect("writer");
}

#[test]
fn a_turn_takes_no_more_completions_than_allowed() {
    let mut bed = Bed::new(EngineConfig { turn_events_max: 8, ..small() }, 4);
    let mut clients: Vec<_> = (0..40).map(|_| bed.connect()).collect();
    bed.settle();
    for (client, _) in &mut clients {
        client.write_all(b"x").expect("write");
    }
    while !clients.iter().all(|(_, id)| bed.received(*id) == b"x") {
        assert!(bed.turn() <= 8);
    }
}

#[test]
fn a_listener_that_fails_rests_until_it_is_told() {
    let mut bed = Bed::new(small(), 4);
    let not_listening = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    let bad = bed.engine.listen(not_listening.into(), 8);
    bed.until("the failure", |bed| !bed.accepts_failed.is_empty());
    bed.settle();
    assert_eq!(bed.accepts_failed, [libc::EINVAL], "told once, not tried again and again");
    let (client, id) = bed.connect();
    bed.engine.resume_listening(bad);
    bed.until("the second failure", |bed| bed.accepts_failed.len() == 2);
    bed.settle();
    assert_eq!(bed.accepts_failed, [libc::EINVAL; 2]);
    bed.engine.close(id);
    bed.until("another try, since a socket was closed", |bed| bed.accepts_failed.len() == 3);
    drop(client);
}

#[test]
fn a_stopped_listener_closes_and_its_connections_stay() {
    let mut bed = Bed::new(small(), 8);
    let (mut client, id) = bed.connect();
    bed.settle();
    bed.engine.stop_listening(bed.listener);
    bed.until("the end of all accepts", |bed| bed.engine.listeners[0].fd.is_none());
    assert!(TcpStream::connect(bed.address).is_err(), "nobody listens");
    TcpListener::bind(bed.address).expect("the address is free");
    client.write_all(b"still here").expect("write");
    bed.until("bytes", |bed| bed.received(id) == b"still here");
    bed.settle();
    assert_eq!(bed.engine.rings[0].in_flight(), 1, "only the recv");
}

#[test]
fn stopping_amid_a_storm_drops_no_client_that_was_accepted() {
    for _ in 0..20 {
        let mut bed = Bed::new(EngineConfig { slots_per_ring: 5, ..small() }, 12);
        let mut clients: Vec<TcpStream> = (0..20).map(|_| connect(bed.address)).collect();
        bed.turn();
        bed.engine.stop_listening(bed.listener);
        bed.until("the end of all accepts", |bed| bed.engine.listeners[0].fd.is_none());
        let accepted = bed.accepted.clone();
        for (id, _) in &accepted {
            bed.send(*id, b"hi");
        }
        bed.until("sent", |bed| bed.sent.len() == accepted.len());
        for client in &mut clients {
            let local = client.local_addr().expect("address");
            let mut hi = [0; 2];
            assert_eq!(client.read_exact(&mut hi).is_ok(), accepted.iter().any(|(_, peer)| *peer == local));
        }
        assert_eq!(bed.engine.open_sockets() as usize, accepted.len());
    }
}

#[test]
fn a_table_larger_than_the_limit_of_files_is_refused_with_the_remedy() {
    let config = EngineConfig { slots_per_ring: 1 << 21, sockets_max: 1 << 21, ..small() };
    let error = Engine::new(config).err().expect("more than the kernel has");
    assert!(matches!(&error, EngineError::Kernel { call: "IORING_REGISTER_FILES2", .. }), "{error}");
    assert!(error.to_string().contains("LimitNOFILE"), "{error}");
}
