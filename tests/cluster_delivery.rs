//! Goal: any user reaches any user, and a broadcast reaches everybody once, whatever node they are on.
//! Method: three nodes on one Redis; everybody sends to everybody, himself too.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::client::{broadcast_from, message_from};
use support::{Client, DEADLINE, Nodes, eventually};

/// Users whose names a key, a channel, a script or JSON could stumble over.
const NAMES: [&str; 12] = [
    "alice",
    "with space",
    "node:test-1",
    "a}b{c}",
    "{",
    "quote\" and \\",
    "line\nfeed\ttab\0nul",
    "日本🦀",
    "*?[a-z]",
    "%s%n%00",
    "user:node:alice",
    "-1",
];

/// The clients of `NAMES` and one of 256 bytes, spread over the nodes.
fn everybody(nodes: &Nodes) -> Vec<Client> {
    let long = "l".repeat(256);
    let names = NAMES.iter().copied().chain([long.as_str()]);
    names.enumerate().map(|(at, name)| nodes[at % nodes.count()].client(name)).collect()
}

/// Takes one frame from everybody for each sender, in any order.
#[track_caller]
fn expect_from_each(clients: &mut [Client], users: &[String], expected: impl Fn(&str, &str) -> Value) {
    for client in clients {
        let mut senders: BTreeSet<&str> = users.iter().map(String::as_str).collect();
        while !senders.is_empty() {
            let frame = client.next_json();
            let from = frame["from"].as_str().unwrap_or_else(|| panic!("{} gets {frame}", client.user));
            assert!(senders.remove(from), "{} gets {frame} a second time", client.user);
            assert_eq!(frame, expected(from, &client.user));
        }
    }
}

#[test]
fn everybody_reaches_everybody_once() {
    let nodes = Nodes::start();
    let mut clients = everybody(&nodes);
    let users: Vec<String> = clients.iter().map(|client| client.user.clone()).collect();
    let content = |from: &str, to: &str| json!({"to": to, "from": from, "any": [null, 1.5, {"日本": "🦀"}]});
    for client in &mut clients {
        for user in &users {
            client.send_to(user, &content(&client.user, user).to_string());
        }
    }
    expect_from_each(&mut clients, &users, |from, to| message_from(from, content(from, to)));
    for client in &mut clients {
        let content = Value::from(client.user.clone());
        client.broadcast(&content.to_string());
    }
    expect_from_each(&mut clients, &users, |from, _| broadcast_from(from, from));
    // A second copy of anything would come before what is sent now from each node.
    for at in 0..nodes.count() {
        let user = clients[at].user.clone();
        clients[at].broadcast("\"last\"");
        for client in &mut clients {
            client.expect(&broadcast_from(&user, "last"));
        }
    }
    clients.iter_mut().for_each(Client::expect_pong);
}

#[test]
fn content_of_the_largest_size_crosses_as_it_is() {
    let nodes = Nodes::with(2, &[]);
    let (mut alice, mut bob) = (nodes[0].client("alice"), nodes[1].client("bob"));
    let frame = r#"{"type":"send_message","target_user":"bob","content":""}"#;
    // Escapes and spaces are content as well: they arrive unparsed.
    let odd = r#"{ "a" : [ 1.0e+3,"\u00e9\/" ], "a":2 }"#;
    for at in 0..20 {
        let content = "x".repeat(65_536 - frame.len());
        alice.send_to("bob", &format!("\"{content}\""));
        assert!(bob.next_text().contains(&content), "message {at} is not what was sent");
        alice.send_to("bob", odd);
        let text = bob.next_text();
        assert!(text.contains(odd), "{text}");
    }
}

#[test]
fn a_user_who_is_nowhere_is_silent_and_reached_once_he_comes() {
    let nodes = Nodes::with(2, &[]);
    let mut alice = nodes[0].client("alice");
    alice.send_to("bob", "\"too early\"");
    alice.expect_pong();
    eventually("a message that was for nobody", DEADLINE, || {
        (nodes[0].metrics().sum("ringmesh_bus_offline_total", &[]) == 1.0).then_some(())
    });
    // Absence must not be remembered: the very next message finds him.
    for round in 0..20 {
        let mut bob = nodes[1].client("bob");
        alice.send_to("bob", &round.to_string());
        bob.expect(&message_from("alice", round));
        bob.close();
    }
}
