//! What every user of the engine relies on.

use std::io::{Read, Write};

use super::support::*;
use crate::shard::chunk::Chunk;

#[test]
fn accepts_receives_sends_and_closes() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    assert_eq!(bed.engine.open_sockets(), 1);
    client.write_all(b"hello").expect("write");
    bed.until("hello", |bed| bed.received(id) == b"hello");
    bed.send(id, b"welcome");
    assert!(bed.engine.is_sending(id));
    bed.until("sent", |bed| bed.sent.len() == 1);
    let (of, chunk, result) = bed.sent.remove(0);
    assert_eq!((of, chunk.as_slice(), result), (id, b"welcome".as_slice(), Ok(7)));
    assert!(!bed.engine.is_sending(id));
    bed.engine.close(id);
    bed.until("closed", |bed| bed.closed == [id]);
    assert_eq!(bed.engine.open_sockets(), 0);
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("FIN after the bytes");
    assert_eq!(all, b"welcome");
}

#[test]
fn tells_eof_and_goes_on_sending() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    client.write_all(b"last words").expect("write");
    client.shutdown(std::net::Shutdown::Write).expect("FIN");
    bed.until("EOF", |bed| bed.ended == [(id, None)]);
    assert_eq!(bed.received(id), b"last words");
    bed.send(id, b"answer");
    bed.until("sent", |bed| bed.sent.len() == 1);
    bed.engine.close(id);
    bed.until("closed", |bed| bed.closed == [id]);
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("read");
    assert_eq!(all, b"answer");
}

#[test]
fn does_not_read_before_it_is_told_to() {
    let mut bed = Bed::new(small(), 4);
    bed.read_at_once = false;
    let (mut client, id) = bed.connect();
    client.write_all(b"early").expect("write");
    let (mut other, other_id) = bed.connect();
    bed.engine.resume_reading(other_id);
    other.write_all(b"later").expect("write");
    bed.until("the other", |bed| bed.received(other_id) == b"later");
    assert_eq!(bed.received(id), b"");
    bed.engine.resume_reading(id);
    bed.until("the first", |bed| bed.received(id) == b"early");
}

#[test]
fn shuts_down_writing_after_the_send_in_flight_and_reads_on() {
    let mut bed = Bed::new(small(), 4);
    let (mut client, id) = bed.connect();
    let bytes = pattern(16 << 20, 1);
    bed.send(id, &bytes);
    bed.engine.shutdown_write(id);
    assert!(bed.engine.send(id, Chunk::from_vec(vec![1])).is_err(), "nothing may follow FIN");
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("read up to FIN");
        client.write_all(b"still here").expect("write");
        (client, all)
    });
    bed.until("the answer after FIN", |bed| bed.received(id) == b"still here");
    let (client, all) = reader.join().expect("reader");
    assert!(all == bytes);
    bed.engine.close(id);
    bed.until("closed", |bed| bed.closed == [id]);
    drop(client);
}

#[test]
fn reports_a_reset() {
    let mut bed = Bed::new(small(), 4);
    let (client, id) = bed.connect();
    socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).expect("linger");
    drop(client);
    bed.until("the reset", |bed| bed.ended == [(id, Some(libc::ECONNRESET))]);
    bed.engine.close(id);
    bed.until("closed", |bed| bed.closed == [id]);
}

#[test]
fn works_over_ipv6_and_names_the_listener() {
    let mut bed = Bed::new(small(), 2);
    let listener = std::net::TcpListener::bind("[::1]:0").expect("IPv6 loopback");
    let address = listener.local_addr().expect("address");
    let second = bed.engine.listen(listener.into(), 2);
    assert_ne!(second, bed.listener);
    let client = connect(address);
    bed.until("accepted", |bed| bed.accepted.len() == 1);
    assert_eq!(bed.accepted[0].1, client.local_addr().expect("address"));
}

#[test]
fn names_of_nobody_are_refused() {
    let mut bed = Bed::new(small(), 2);
    for index in [0, 1, 63, 64, u32::MAX] {
        let id = crate::ids::ConnId { index, generation: 7 };
        assert!(bed.engine.send(id, Chunk::from_vec(vec![1])).is_err());
        assert!(!bed.engine.is_sending(id));
        bed.engine.resume_reading(id);
        bed.engine.pause_reading(id);
        bed.engine.cancel_send(id);
        bed.engine.shutdown_write(id);
        bed.engine.close(id);
    }
    bed.settle();
    assert!(bed.closed.is_empty());
}
