//! Goal: whatever is published on a node's channels, the node lives, counts it, and goes on with what makes sense.
//! Method: bytes of every wrong kind on the contract's channel, on the channel between our nodes, and on `user:events`;
//! and true envelopes of the nodes, cut short, twice, and with wrong bytes at their ends.

mod support;

use std::time::Duration;

use serde_json::json;
use support::client::message_from;
use support::random::Random;
use support::resp::{Reply, Resp};
use support::{Client, DEADLINE, Kind, Nodes, Traffic, eventually};

fn junk(random: &mut Random) -> Vec<Vec<u8>> {
    let deep = |text: &str| format!(r#"{{"action":"send_to_user","user_id":"nobody","message":{text}}}"#);
    let nested = "[".repeat(100_000) + &"]".repeat(100_000);
    let texts = [
        String::new(),
        " ".to_owned(),
        "nonsense".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "{\"action\":\"send_to_user\"".to_owned(),
        "[".repeat(1 << 20),
        "{\"action\":".repeat(100_000),
        nested.clone(),
        deep(&nested),
        deep("[1,2"),
        "x".repeat(8 << 20),
        json!({"action": 1}).to_string(),
        json!({"action": "fly"}).to_string(),
        json!({"action": "send_to_user"}).to_string(),
        json!({"action": "send_to_user", "user_id": "alice"}).to_string(),
        json!({"action": "send_to_user", "message": {}}).to_string(),
        json!({"action": "send_to_user", "user_id": 1, "message": {}}).to_string(),
        json!({"action": "send_to_user", "user_id": ["alice"], "message": {}}).to_string(),
        json!({"action": "send_to_user", "user_id": "", "message": {}}).to_string(),
        json!({"action": "send_to_user", "user_id": "u".repeat(100_000), "message": {}}).to_string(),
        json!({"action": "broadcast"}).to_string(),
        json!({"event": "online"}).to_string(),
        json!({"event": "offline", "user_id": null}).to_string(),
        json!({"event": 7, "user_id": "alice"}).to_string(),
        // A lone surrogate, and a control character that JSON forbids.
        r#"{"action":"send_to_user","user_id":"\ud800","message":{}}"#.to_owned(),
        "{\"action\":\"send_to_user\",\"user_id\":\"a\u{1}\",\"message\":{}}".to_owned(),
    ];
    let mut all: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    all.push(br#"{"action":"send_to_user","user_id":"alice","message":"not utf-8: "#.iter().copied().chain(*b"\xff\"}").collect());
    for length in [1, 7, 8, 16, 33, 100, 1_000, 100_000] {
        all.push((0..length).map(|_| random.bits() as u8).collect());
        all.push(vec![0; length]);
        all.push(vec![0xff; length]);
    }
    all
}

/// What is published between the nodes while members exchange messages.
fn captured(nodes: &Nodes, traffic: &mut Traffic) -> Vec<(String, Vec<u8>)> {
    let mut resp = nodes.service();
    resp.call(&["PSUBSCRIBE", "rm2:*"]);
    traffic.run_for(Duration::from_millis(500));
    traffic.run_until_all_pass(DEADLINE);
    traffic.settle(DEADLINE);
    let mut envelopes = Vec::new();
    while let Some(push) = resp.next(Duration::from_millis(200)) {
        if let [_, _, channel, Reply::Text(envelope)] = push.list().as_slice() {
            envelopes.push((channel.text(), envelope.clone()));
        }
        if envelopes.len() == 300 {
            break;
        }
    }
    assert!(envelopes.len() > 10, "the nodes have published {} envelopes", envelopes.len());
    envelopes
}

/// How much junk a node has counted.
fn invalid(nodes: &Nodes, at: usize) -> f64 {
    nodes[at].metrics().sum("ringmesh_bus_invalid_total", &[])
}

/// Both nodes serve, and nobody got anything that he should not have.
fn expect_alive(redis: &mut Resp, nodes: &Nodes, alice: &mut Client, bob: &mut Client) {
    alice.send_to("bob", "\"alive\"");
    bob.expect(&message_from("alice", "alive"));
    bob.send_to("alice", "\"alive\"");
    alice.expect(&message_from("bob", "alive"));
    let order = json!({"action": "send_to_user", "user_id": "alice", "message": {"served": true}});
    redis.publish(&format!("node:{}", nodes[0].node_id), order.to_string());
    alice.expect(&json!({"served": true}));
    alice.expect_pong();
    bob.expect_pong();
}

#[test]
fn junk_on_every_channel_is_counted_and_harms_nobody() {
    let mut random = Random::from_environment();
    let nodes = Nodes::with(2, &[]);
    let mut redis = nodes.service();
    let (mut alice, mut bob) = (nodes[0].client("alice"), nodes[1].client("bob"));
    let id = nodes[0].node_id.clone();
    for channel in [format!("node:{id}"), format!("rm2:{{n:{id}}}:link")] {
        let before = invalid(&nodes, 0);
        let junk = junk(&mut random);
        for piece in &junk {
            assert_eq!(redis.publish(&channel, piece), 1, "{channel} has one subscriber");
        }
        expect_alive(&mut redis, &nodes, &mut alice, &mut bob);
        // A deep message for nobody is no junk, and others may not be: but nearly all of it is.
        eventually("junk that is counted", DEADLINE, || {
            (invalid(&nodes, 0) - before >= junk.len() as f64 * 0.75).then_some(())
        });
    }
    for piece in junk(&mut random) {
        redis.publish("user:events", piece);
    }
    expect_alive(&mut redis, &nodes, &mut alice, &mut bob);
}

#[test]
fn envelopes_that_come_twice_or_cut_short_change_nothing() {
    let mut random = Random::from_environment();
    let nodes = Nodes::with(2, &[]);
    let mut redis = nodes.service();
    let mut traffic = Traffic::connect(Kind::Unicast, nodes.all(), 2);
    let envelopes = captured(&nodes, &mut traffic);
    for (channel, envelope) in &envelopes {
        redis.publish(channel, envelope);
        redis.publish(channel, &envelope[..random.below(envelope.len())]);
        let mut longer = envelope.clone();
        longer.extend((0..1 + random.below(40)).map(|_| random.bits() as u8));
        redis.publish(channel, longer);
        traffic.run_for(Duration::from_millis(1));
    }
    // Each message arrives once and in order, as it would have without all this.
    traffic.run_until_all_pass(DEADLINE);
    traffic.settle(DEADLINE);
    let counted: f64 = (0..nodes.count()).map(|at| invalid(&nodes, at)).sum();
    assert!(counted > 0.0, "envelopes that were cut are counted");
}
