//! Goal: a user may have connections on any nodes; each gets each message once, and the user is reachable until the last
//! has gone. `user:node:<id>` always names a node that holds the user.
//! Method: one user with two connections on each of three nodes, opened and closed in random order. The contract's
//! failings 3 and 4.

mod support;

use serde_json::json;
use support::client::{broadcast_from, message_from};
use support::random::Random;
use support::{Client, DEADLINE, Nodes, eventually};

/// A connection of alice, and the number of the node that it is on.
type Placed = (usize, Client);

/// `user:node:alice` must come to name a node of these.
fn expect_named(nodes: &Nodes, alices: &[Placed]) {
    let mut redis = nodes.service();
    eventually("user:node:alice names a node that holds her", DEADLINE, || {
        let named = redis.get("user:node:alice");
        let holds = |node: &String| alices.iter().any(|(at, _)| nodes[*at].node_id == *node);
        named.is_some_and(|node| holds(&node)).then_some(())
    });
}

/// Somebody on each node sends to alice, and each of her connections gets each message once.
fn expect_reached(others: &mut [Client], alices: &mut [Placed], content: &str) {
    for (at, other) in others.iter_mut().enumerate() {
        other.send_to("alice", &json!(content).to_string());
        for (node, alice) in alices.iter_mut() {
            println!("{content}: from node {at} to the connection on node {node}");
            alice.expect(&message_from(&other.user, content));
        }
    }
    alices.iter_mut().for_each(|(_, alice)| alice.expect_pong());
}

#[test]
fn each_connection_gets_each_message_once_until_it_closes() {
    let nodes = Nodes::start();
    let mut random = Random::from_environment();
    let mut redis = nodes.service();
    let mut others: Vec<Client> = (0..nodes.count()).map(|at| nodes[at].client(&format!("other{at}"))).collect();
    let mut alices: Vec<Placed> = Vec::new();
    let mut places: Vec<usize> = (0..nodes.count()).flat_map(|at| [at, at]).collect();
    while !places.is_empty() {
        let at = places.swap_remove(random.below(places.len()));
        let is_new_there = alices.iter().all(|(place, _)| *place != at);
        alices.push((at, nodes[at].client("alice")));
        if is_new_there {
            let named = redis.get("user:node:alice");
            assert_eq!(named.as_ref(), Some(&nodes[at].node_id), "the newest holder is named");
        }
        let count = alices.len();
        expect_reached(&mut others, &mut alices, &format!("the {count}. opens"));
    }

    // Her own messages reach all of her, and broadcasts come once to each connection.
    alices[0].1.send_to("alice", "\"to all of me\"");
    for (_, alice) in &mut alices {
        alice.expect(&message_from("alice", "to all of me"));
    }
    others[2].broadcast("\"all\"");
    for client in alices.iter_mut().map(|(_, alice)| alice).chain(&mut others) {
        client.expect(&broadcast_from("other2", "all"));
    }

    while alices.len() > 1 {
        let (_, leaver) = alices.swap_remove(random.below(alices.len()));
        match random.below(2) {
            0 => leaver.close(),
            _ => leaver.vanish(),
        }
        let count = alices.len();
        expect_reached(&mut others, &mut alices, &format!("{count} left"));
        expect_named(&nodes, &alices);
    }
    alices.clear();
    eventually("no user:node:alice", DEADLINE, || redis.get("user:node:alice").is_none().then_some(()));
    let mut back = nodes[1].client("alice");
    others[0].send_to("alice", "\"welcome back\"");
    back.expect(&message_from("other0", "welcome back"));
    back.expect_pong();
}
