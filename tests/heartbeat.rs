//! Goal: the server pings, and closes a client that sends nothing, and only such a one.
//! Method: short intervals; the server's own pings are the clock of the tests.

mod support;

use serde_json::json;
use support::raw::{FIN, frame, opcode, text};
use support::{DEADLINE, Gateway, RawClient};
use tungstenite::Message;

/// Pings after 200 ms, patience of 2 s.
fn gateway() -> Gateway {
    Gateway::with(&[("--ping-interval", "200ms"), ("--pong-timeout", "2s")])
}

/// So many pings take longer than the patience.
const PINGS: usize = 15;

/// Reads up to the next server ping and returns its payload.
fn next_ping(client: &mut RawClient) -> Vec<u8> {
    loop {
        let frame = client.next().expect("the connection stays");
        match frame.opcode() {
            opcode::PING => return frame.payload,
            opcode::TEXT => {}
            _ => panic!("a ping or a text, not {frame:?}, {:?}", frame.close()),
        }
    }
}

#[test]
fn a_client_that_answers_pings_stays() {
    let gateway = gateway();
    let mut client = gateway.raw("alice");
    for _ in 0..PINGS {
        let payload = next_ping(&mut client);
        client.send(&frame(FIN | opcode::PONG, &payload));
    }
    client.send(&text(r#"{"type":"ping"}"#));
    client.expect(&json!({"type": "pong"}));
}

#[test]
fn a_client_of_another_library_stays() {
    let gateway = gateway();
    let mut client = gateway.client("alice");
    let mut pings = 0;
    while pings < PINGS {
        match client.next_of_any_kind() {
            Ok(Message::Ping(_)) => pings += 1,
            other => panic!("a ping, not {other:?}"),
        }
    }
    client.expect_pong();
}

#[test]
fn a_client_that_sends_but_never_answers_pings_stays() {
    let gateway = gateway();
    let mut client = gateway.raw("alice");
    for _ in 0..PINGS {
        next_ping(&mut client);
        client.send(&text(r#"{"type":"send_message","target_user":"nobody"}"#));
    }
    client.send(&text(r#"{"type":"ping"}"#));
    client.expect(&json!({"type": "pong"}));
}

#[test]
fn a_client_that_sends_a_large_message_slowly_stays() {
    let gateway = gateway();
    let mut client = gateway.raw("alice");
    let message = text(&format!(r#"{{"type":"send_message","target_user":"alice","content":"{}"}}"#, "x".repeat(100)));
    // Any byte is a sign of life, also one in the middle of a frame.
    let (last, first) = message.split_last().expect("a message");
    for piece in first.chunks(first.len().div_ceil(PINGS)) {
        next_ping(&mut client);
        client.send(piece);
    }
    client.send(&[*last]);
    client.expect(&support::client::message_from("alice", "x".repeat(100)));
}

#[test]
fn a_client_that_sends_nothing_is_pinged_and_closed_with_4012() {
    let gateway = gateway();
    let mut silent = gateway.raw("silent");
    next_ping(&mut silent);
    silent.expect_close(4012);
    gateway.wait_for_connections(0);
}

#[test]
fn that_a_client_gets_messages_is_no_sign_of_life() {
    let gateway = gateway();
    let mut sender = gateway.client("sender");
    let mut reader = gateway.raw("reader");
    let close = loop {
        match sender.next_of_any_kind() {
            Ok(Message::Ping(_)) => sender.send_to("reader", "1"),
            other => panic!("a ping, not {other:?}"),
        }
        let frame = reader.next_but_pings().expect("a message or a Close");
        if frame.opcode() == opcode::CLOSE {
            break frame.close();
        }
    };
    assert_eq!(close.map(|(code, _)| code), Some(4012));
    gateway.wait_for_connections(1);
    sender.expect_pong();
}

#[test]
fn a_silent_client_that_does_not_close_either_is_gone() {
    let gateway = gateway();
    let silent = gateway.raw("silent");
    support::eventually("a node without connections", 2 * DEADLINE, || (gateway.connections() == 0).then_some(()));
    drop(silent);
}
