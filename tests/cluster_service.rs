//! Goal: a business service that knows the contract's keys and channels alone reaches every user.
//! Method: a service in Python that greets whoever comes online and tells everybody who has gone; and the contract's
//! channel by hand.

mod support;

use serde_json::{Value, json};
use support::python::Script;
use support::resp::Resp;
use support::{Client, DEADLINE, Nodes, eventually};

fn greeting(user: &str) -> Value {
    json!({"type": "greeting", "to": user, "kept as it stands": [1, 2.5, null, {"日本": "🦀"}]})
}

fn gone(user: &str) -> Value {
    json!({"type": "gone", "who": user})
}

/// Asks for a delivery on the channel of this node.
fn send_to_user(redis: &mut Resp, node_id: &str, user: &str, message: &Value) {
    let order = json!({"action": "send_to_user", "user_id": user, "message": message});
    assert_eq!(redis.publish(&format!("node:{node_id}"), order.to_string()), 1, "one node listens");
}

#[test]
fn a_service_greets_who_comes_and_tells_who_goes() {
    let nodes = Nodes::start();
    let mut service = Script::spawn("service.py", &[&nodes.redis.url()]);
    assert_eq!(service.line(), "ready");
    let mut clients: Vec<Client> = Vec::new();
    for (at, user) in ["alice", "bob", "quote\" and \\", "日本", "a:b}{c", "%2F?*"].iter().enumerate() {
        let mut client = nodes[at % nodes.count()].client(user);
        client.expect(&greeting(user));
        clients.push(client);
    }
    // A second connection, on another node, is no news; nor is the end of the first one.
    let mut alice = nodes[1].client("alice");
    clients[0].expect_pong();
    clients.swap_remove(0).close();
    alice.expect_pong();
    // The end of the last one is, once for each connection of each node.
    let bob_too = nodes[2].client("bob");
    clients.push(bob_too);
    alice.close();
    for client in &mut clients {
        client.expect(&gone("alice"));
        client.expect_pong();
    }
}

#[test]
fn a_message_for_a_user_reaches_all_connections_wherever_it_was_published() {
    let nodes = Nodes::start();
    let mut redis = nodes.service();
    let mut alices: Vec<Client> = [0, 1, 1].iter().map(|at| nodes[*at].client("alice")).collect();
    assert_eq!(redis.get("user:node:alice").as_ref(), Some(&nodes[1].node_id));
    // By the node that is named, by one that was named before, and by one that never was: a service may have looked
    // some time ago.
    for at in [1, 0, 2] {
        let message = json!({"via": at, "any": ["\u{0}", 1e300]});
        send_to_user(&mut redis, &nodes[at].node_id, "alice", &message);
        for alice in &mut alices {
            alice.expect(&message);
        }
    }
    // She moves; whoever looked before still reaches her.
    alices.drain(..).for_each(Client::close);
    eventually("alice is gone", DEADLINE, || redis.get("user:node:alice").is_none().then_some(()));
    let mut alice = nodes[2].client("alice");
    for at in [0, 1, 2] {
        send_to_user(&mut redis, &nodes[at].node_id, "alice", &json!({"n": at}));
        alice.expect(&json!({"n": at}));
    }
    alice.expect_pong();
}

#[test]
fn a_broadcast_stays_on_the_node_that_it_was_published_to() {
    let nodes = Nodes::with(2, &[]);
    let mut redis = nodes.service();
    let (mut alice, mut bob) = (nodes[0].client("alice"), nodes[1].client("bob"));
    let order = json!({"action": "broadcast", "message": {"n": 1}});
    redis.publish(&format!("node:{}", nodes[0].node_id), order.to_string());
    alice.expect(&json!({"n": 1}));
    alice.send_to("bob", "2");
    bob.expect(&support::client::message_from("alice", 2));
    bob.expect_pong();
}

#[test]
fn messages_of_a_service_keep_their_order() {
    let nodes = Nodes::with(2, &[]);
    let mut redis = nodes.service();
    let mut alice = nodes[1].client("alice");
    let channel = format!("node:{}", redis.get("user:node:alice").expect("alice is registered"));
    for at in 0..2_000 {
        let order = json!({"action": "send_to_user", "user_id": "alice", "message": {"n": at}});
        redis.send(&["PUBLISH".as_bytes(), channel.as_bytes(), order.to_string().as_bytes()]);
    }
    for at in 0..2_000 {
        alice.expect(&json!({"n": at}));
    }
}
