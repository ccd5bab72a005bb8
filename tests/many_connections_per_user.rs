//! Goal: a user may have any number of connections, each is a full one, and the user is there until the last has gone.
//! Method: connections of one user on both shards, opened and closed in every order. The contract's failing 3.

mod support;

use serde_json::json;
use support::client::{broadcast_from, message_from};
use support::random::Random;
use support::{Client, Gateway};

/// Opens connections of one user until both shards own some; gives them all.
fn connections_of(gateway: &Gateway, user: &str, count: usize) -> Vec<Client> {
    let clients: Vec<Client> = (0..count).map(|_| gateway.client(user)).collect();
    let shards = gateway.connections_by_shard();
    assert!(shards.iter().all(|(_, connections)| *connections > 0.0), "not on all shards: {shards:?}");
    clients
}

#[test]
fn every_connection_gets_every_message_once() {
    let gateway = Gateway::start();
    let mut bob = gateway.client("bob");
    let mut alices = connections_of(&gateway, "alice", 24);
    for at in 0..20 {
        bob.send_to("alice", &at.to_string());
    }
    bob.broadcast(r#""all""#);
    bob.expect(&broadcast_from("bob", "all"));
    for alice in &mut alices {
        let mut numbers = Vec::new();
        let mut broadcasts = 0;
        for _ in 0..21 {
            let frame = alice.next_json();
            match frame["type"].as_str() {
                Some("message") => numbers.push(frame["content"].as_u64()),
                _ => broadcasts += 1,
            }
        }
        assert_eq!(numbers, (0..20).map(Some).collect::<Vec<_>>());
        assert_eq!(broadcasts, 1, "a broadcast comes once for each connection, not once for each user and connection");
        alice.expect_pong();
    }
}

#[test]
fn answers_go_to_the_connection_that_asked() {
    let gateway = Gateway::start();
    let mut alices = connections_of(&gateway, "alice", 24);
    let asker = 7;
    alices[asker].send(&json!({"type": "ping"}));
    alices[asker].send_text("nonsense");
    alices[asker].expect(&json!({"type": "pong"}));
    alices[asker].expect(&json!({"type": "error", "message": "Invalid JSON"}));
    alices[asker].send_to("alice", r#""to all of me""#);
    for alice in &mut alices {
        alice.expect(&message_from("alice", "to all of me"));
    }
}

#[test]
fn when_one_closes_the_others_stay_reachable() {
    let gateway = Gateway::start();
    let mut random = Random::from_environment();
    let mut bob = gateway.client("bob");
    let mut alices = connections_of(&gateway, "alice", 32);
    while !alices.is_empty() {
        let leaver = alices.swap_remove(random.below(alices.len()));
        match random.below(2) {
            0 => leaver.close(),
            _ => leaver.vanish(),
        }
        gateway.wait_for_connections(alices.len() as u64 + 1);
        if alices.is_empty() {
            // What is sent now may find the one who comes back, or nobody.
            break;
        }
        bob.send_to("alice", &alices.len().to_string());
        for alice in &mut alices {
            alice.expect(&message_from("bob", alices_left(&gateway)));
            alice.expect_pong();
        }
    }
    bob.expect_pong();
    let mut back = gateway.client("alice");
    bob.send_to("alice", r#""welcome back""#);
    back.expect(&message_from("bob", "welcome back"));
}

/// All connections but bob's.
fn alices_left(gateway: &Gateway) -> u64 {
    gateway.connections() - 1
}

#[test]
fn a_user_who_reconnects_over_and_over_is_never_lost() {
    let gateway = Gateway::start();
    let mut bob = gateway.client("bob");
    let mut alice = gateway.client("alice");
    for round in 0..200 {
        // The new one is there before the old one goes, as when a phone changes its network.
        let mut next = gateway.client("alice");
        if round % 2 == 0 {
            alice.close();
        } else {
            alice.vanish();
        }
        bob.send_to("alice", &round.to_string());
        next.expect(&message_from("bob", round));
        alice = next;
    }
    gateway.wait_for_connections(2);
}
