//! Goal: a node of another implementation that speaks only the contract's tables can sit in the same cluster.
//! Method: a small one in Python, which makes the mistakes that a plain reading of the contract makes, beside two of ours.

mod support;

use std::net::SocketAddr;

use serde_json::json;
use support::client::{broadcast_from, message_from};
use support::gateway::new_node_id;
use support::python::Script;
use support::{Client, DEADLINE_SLOW, Nodes, eventually};

/// The node in Python.
struct Foreign<'a> {
    _script: Script,
    nodes: &'a Nodes,
    addr: SocketAddr,
    node_id: String,
}

impl Foreign<'_> {
    /// Starts one beside `nodes`, and waits until they know it.
    fn join(nodes: &Nodes) -> Foreign<'_> {
        let node_id = format!("foreign-{}", new_node_id());
        let mut script = Script::spawn("foreign_node.py", &[&nodes.redis.url(), &node_id]);
        let port: u16 = script.line().parse().expect("a port");
        for node in nodes.all() {
            eventually("a foreign node that is known", DEADLINE_SLOW, || {
                (node.metrics().sum("ringmesh_bus_foreign_nodes", &[]) == 1.0).then_some(())
            });
        }
        Foreign { _script: script, nodes, addr: SocketAddr::from(([127, 0, 0, 1], port)), node_id }
    }

    /// A client of it; it answers 101 first, and enters the user in Redis later.
    fn client(&self, user: &str) -> Client {
        // Subscribed here: the user may have been online on one of ours before, and that event is not the one waited for.
        let mut events = self.nodes.events();
        let client = Client::connect(self.addr, user);
        events.wait_for("online", user);
        client
    }
}

#[test]
fn messages_and_broadcasts_pass_both_ways() {
    let nodes = Nodes::with(2, &[]);
    let foreign = Foreign::join(&nodes);
    let mut clients = vec![
        nodes[0].client("alice"),
        nodes[1].client("bob"),
        foreign.client("fiona"),
        foreign.client("frank"),
        nodes[1].client("quote\" {and} \\ 日本"),
    ];
    let users: Vec<String> = clients.iter().map(|client| client.user.clone()).collect();
    for from in 0..clients.len() {
        let sender = &users[from];
        for (to, user) in users.iter().enumerate() {
            let content = json!({"n": [1.5, null], "to": user, "s": "日本🦀"});
            clients[from].send_to(user, &content.to_string());
            clients[to].expect(&message_from(sender, content));
        }
        clients[from].broadcast(r#"["all"]"#);
        for client in &mut clients {
            client.expect(&broadcast_from(sender, json!(["all"])));
        }
    }
    clients.iter_mut().for_each(Client::expect_pong);
}

#[test]
fn order_is_kept_both_ways() {
    let nodes = Nodes::with(2, &[]);
    let foreign = Foreign::join(&nodes);
    let (mut alice, mut fiona) = (nodes[0].client("alice"), foreign.client("fiona"));
    for at in 0..500 {
        alice.send_to("fiona", &at.to_string());
        fiona.send_to("alice", &at.to_string());
    }
    for at in 0..500 {
        fiona.expect(&message_from("alice", at));
        alice.expect(&message_from("fiona", at));
    }
}

#[test]
fn what_it_does_to_our_users_mapping_is_put_right() {
    let nodes = Nodes::with(2, &[]);
    let foreign = Foreign::join(&nodes);
    let mut redis = nodes.service();
    let mut alice = nodes[0].client("alice");
    let mut events = nodes.events();
    let (mut bob, mut fiona) = (nodes[1].client("bob"), foreign.client("fiona"));
    let put_right = |redis: &mut support::resp::Resp| {
        eventually("user:node:alice names her node again", DEADLINE_SLOW, || {
            (redis.get("user:node:alice").as_ref() == Some(&nodes[0].node_id)).then_some(())
        });
    };
    // She comes to the foreign node as well, which overwrites our entry, and leaves it, which deletes it.
    let also = foreign.client("alice");
    put_right(&mut redis);
    fiona.send_to("alice", "1");
    alice.expect(&message_from("fiona", 1));
    also.close();
    events.wait_for("offline", "alice");
    put_right(&mut redis);
    fiona.send_to("alice", "2");
    alice.expect(&message_from("fiona", 2));
    bob.send_to("alice", "3");
    alice.expect(&message_from("bob", 3));
    alice.expect_pong();
}

#[test]
fn a_user_who_moves_between_the_kinds_is_reached() {
    let nodes = Nodes::with(2, &[]);
    let foreign = Foreign::join(&nodes);
    let mut redis = nodes.service();
    let mut bob = nodes[1].client("bob");
    let mut events = nodes.events();
    for round in 0..3 {
        let mut alice = nodes[0].client("alice");
        bob.send_to("alice", &round.to_string());
        alice.expect(&message_from("bob", round));
        alice.close();
        events.wait_for("offline", "alice");
        let mut alice = foreign.client("alice");
        assert_eq!(redis.get("user:node:alice").as_ref(), Some(&foreign.node_id));
        bob.send_to("alice", "\"over there\"");
        alice.expect(&message_from("bob", "over there"));
        alice.close();
        events.wait_for("offline", "alice");
    }
}

#[test]
fn its_counter_and_its_users_are_never_touched() {
    let nodes = Nodes::with(2, &[]);
    let foreign = Foreign::join(&nodes);
    let mut redis = nodes.service();
    let mut events = nodes.events();
    let fiona = foreign.client("fiona");
    events.expect("online", "fiona");
    drop(foreign);
    // It was killed: it has no lease, and so nobody may say that it is dead. What it wrote stands until its end of life.
    for node in nodes.all() {
        eventually("a foreign node that is gone", DEADLINE_SLOW, || {
            (node.metrics().sum("ringmesh_bus_foreign_nodes", &[]) == 0.0).then_some(())
        });
    }
    let _marker = nodes[0].client("marker");
    events.expect("online", "marker");
    assert!(redis.get("user:node:fiona").is_some());
    let mut alice = nodes[0].client("alice");
    alice.send_to("fiona", "\"nobody listens\"");
    alice.broadcast("1");
    alice.expect(&broadcast_from("alice", 1));
    drop(fiona);
}
