//! Goal: a client that stops reading is closed at its byte limit, and nobody else notices; those who keep up are never closed.
//! Method: a socket that is not read while others go on exchanging messages, each step waiting for the one before. The
//! contract's failing 1.

mod support;

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;
use support::client::{broadcast_from, message_from};
use support::raw::{opcode, text};
use support::{Client, Crowd, DEADLINE_SLOW, Gateway, RawClient, http};

/// A connection whose own kernel buffer stays small: two of the loopback's segments, so that it still reads fast when it reads.
fn slow_client(gateway: &Gateway) -> RawClient {
    let stream = http::open(gateway.addr);
    SockRef::from(&stream).set_recv_buffer_size(128 * 1024).expect("a small receive buffer");
    RawClient::upgrade(stream, "slow")
}

/// Far more than the kernel's buffers of both ends and the send queue together: 64 MiB in messages of 60 KB.
const FLOOD: usize = 1_100;

/// Content of 60 KB that carries a number.
fn large(at: usize) -> String {
    format!(r#"[{at},"{}"]"#, "x".repeat(60_000))
}

/// Has the connection of the slow client been given up?
fn is_given_up(gateway: &Gateway) -> bool {
    let metrics = gateway.metrics();
    metrics.sum("ringmesh_dropped_total", &[]) > 0.0 || metrics.sum("ringmesh_closes_total", &[]) > 0.0
}

/// Each of these clients sends to the next one and waits for what the one before has sent.
fn exchange(clients: &mut [Client], round: usize) {
    let count = clients.len();
    for at in 0..count {
        let (user, target) = (clients[at].user.clone(), (at + 1) % count);
        let target_user = clients[target].user.clone();
        clients[at].send_to(&target_user, &round.to_string());
        clients[target].expect(&message_from(&user, round));
        clients[at].expect_pong();
    }
}

#[test]
fn one_client_that_stops_reading_is_gone_and_nobody_else_notices() {
    let gateway = Gateway::with(&[("--send-queue-bytes-max", "256KiB")]);
    let slow = slow_client(&gateway);
    let mut others: Vec<Client> = gateway.clients_on_each_shard("other", 2, 3).into_iter().flatten().collect();
    let before = gateway.metrics();
    let end = Instant::now() + DEADLINE_SLOW;
    for round in 0.. {
        if round < FLOOD {
            let content = large(round);
            // From both shards, since the slow client is on one of them.
            for sender in [0, 5] {
                others[sender].send_to("slow", &content);
            }
        }
        exchange(&mut others, round);
        if gateway.connections() == others.len() as u64 {
            break;
        }
        assert!(Instant::now() < end, "the slow client is still there after {round} rounds");
    }
    let after = gateway.metrics();
    let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    assert_eq!(grown("ringmesh_closes_total"), 1.0, "one connection was closed, and one only");
    assert!(grown("ringmesh_dropped_total") > 0.0, "what was dropped is counted");
    others[0].send_to("slow", "1");
    exchange(&mut others, usize::MAX >> 1);
    drop(slow);
}

#[test]
fn it_gets_whole_messages_without_a_hole_and_then_close_4008() {
    let gateway = Gateway::with(&[("--send-queue-bytes-max", "256KiB")]);
    let mut slow = slow_client(&gateway);
    let mut sender = gateway.client("sender");
    let mut sent = 0;
    while !is_given_up(&gateway) {
        assert!(sent < FLOOD, "{sent} messages of 60 KB, and the slow client is still there");
        sender.send_to("slow", &large(sent));
        sender.expect_pong();
        sent += 1;
    }
    let mut got = 0;
    let close = loop {
        let frame =
            slow.next_but_pings().unwrap_or_else(|| panic!("the stream ends after {got} messages with no Close"));
        if frame.opcode() == opcode::CLOSE {
            break frame.close();
        }
        let delivery: Value = serde_json::from_slice(&frame.payload).expect("a whole message");
        assert_eq!(delivery["content"][0], json!(got));
        got += 1;
    };
    assert_eq!(close.map(|(code, _)| code), Some(4008));
    assert!(got < sent, "what was beyond the limit is dropped");
    assert_eq!(slow.next(), None, "nothing may follow a Close");
    sender.expect_pong();
}

#[test]
fn broadcasts_go_on_past_one_that_stops_reading() {
    let gateway = Gateway::with(&[("--send-queue-bytes-max", "256KiB")]);
    let slow = slow_client(&gateway);
    let mut clients: Vec<Client> = gateway.clients_on_each_shard("other", 2, 2).into_iter().flatten().collect();
    let end = Instant::now() + DEADLINE_SLOW;
    for round in 0.. {
        let content = if round < FLOOD { large(round) } else { round.to_string() };
        clients[0].broadcast(&content);
        let expected = broadcast_from(&clients[0].user, serde_json::from_str::<Value>(&content).expect("JSON"));
        for client in &mut clients {
            client.expect(&expected);
        }
        if gateway.connections() == clients.len() as u64 {
            break;
        }
        assert!(Instant::now() < end, "the slow client is still there after {round} broadcasts");
    }
    drop(slow);
}

#[test]
fn a_client_that_reads_again_in_time_misses_nothing() {
    let gateway = Gateway::with(&[("--send-queue-bytes-max", "16MiB")]);
    let mut slow = slow_client(&gateway);
    let mut sender = gateway.client("sender");
    // 12 MB: more than the kernel's buffers hold, and less than the send queue does.
    for at in 0..200 {
        sender.send_to("slow", &large(at));
        sender.expect_pong();
    }
    for at in 0..200 {
        slow.expect(&message_from("sender", serde_json::from_str::<Value>(&large(at)).expect("JSON")));
    }
    slow.send(&text(r#"{"type":"ping"}"#));
    slow.expect(&json!({"type": "pong"}));
}

#[test]
fn a_client_that_asks_and_never_reads_the_answers_is_closed_or_paused() {
    let gateway = Gateway::with(&[("--send-queue-bytes-max", "64KiB")]);
    let mut other = gateway.client("other");
    let asker = slow_client(&gateway);
    asker.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a write timeout");
    let asks = text(r#"{"type":"ping"}"#).repeat(1_000);
    let mut bytes = 0;
    while !is_given_up(&gateway) {
        match (&asker.stream).write(&asks) {
            Ok(count) => bytes += count,
            Err(error) => {
                let refused = [ErrorKind::WouldBlock, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                assert!(refused.contains(&error.kind()), "{error}");
                break;
            }
        }
        assert!(bytes < 64 << 20, "the gateway takes 64 MiB of questions with nobody who reads its answers");
        other.expect_pong();
    }
    other.expect_pong();
}

#[test]
fn a_flood_of_broadcasts_closes_none_of_a_thousand_readers_that_keep_up() {
    const READERS: usize = 1_000;
    const SENDERS: usize = 4;
    const ROUNDS: usize = 300;
    let gateway = Gateway::start();
    let mut crowd = Crowd::connect(&gateway, "reader", READERS);
    let padding = "x".repeat(2_000);
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let mut writer = crowd.writer(sender, DEADLINE_SLOW);
            let padding = &padding;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    writer.write(&text(&format!(r#"{{"type":"broadcast","content":"{sender} {round} {padding}"}}"#)));
                }
            });
        }
        let mut next = vec![[0; SENDERS]; READERS];
        crowd.read(READERS * SENDERS * ROUNDS, DEADLINE_SLOW, |member, text| {
            let (sender, round) = numbers_of(text);
            assert_eq!(round, next[member][sender], "what member {member} gets next from sender {sender}");
            next[member][sender] += 1;
        });
    });
    assert_eq!(gateway.connections(), READERS as u64);
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("ringmesh_closes_total", &[]), 0.0);
    assert_eq!(metrics.sum("ringmesh_dropped_total", &[]), 0.0);
}

#[test]
fn readers_that_are_always_a_little_behind_have_not_stopped() {
    const READERS: usize = 300;
    const BROADCASTS: usize = 50_000;
    // Far longer than the time that a send may wait, and each send waits a moment.
    let gateway = Gateway::with(&[("--send-stall-max", "500ms")]);
    let mut crowd = Crowd::connect(&gateway, "reader", READERS);
    std::thread::scope(|scope| {
        let mut writer = crowd.writer(0, DEADLINE_SLOW);
        scope.spawn(move || {
            let padding = "x".repeat(100);
            for _ in 0..BROADCASTS {
                writer.write(&text(&format!(r#"{{"type":"broadcast","content":"{padding}"}}"#)));
            }
        });
        crowd.read(READERS * BROADCASTS, DEADLINE_SLOW, |_, _| {});
    });
    assert_eq!(gateway.metrics().sum("ringmesh_closes_total", &[]), 0.0);
    assert_eq!(gateway.connections(), READERS as u64);
}

/// The sender and the round in `…"content":"SENDER ROUND xxx…`, found without parsing all of it.
fn numbers_of(text: &[u8]) -> (usize, usize) {
    let text = std::str::from_utf8(text).expect("UTF-8");
    let (_, content) = text.split_once(r#""content":""#).unwrap_or_else(|| panic!("no broadcast: {text:.100}"));
    let mut numbers = content.split(' ').map_while(|number| number.parse().ok());
    (numbers.next().expect("a sender"), numbers.next().expect("a round"))
}
