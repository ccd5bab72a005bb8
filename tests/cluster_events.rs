//! Goal: `user:events` says once that a user has come, and once that he has gone, however many connections he has on
//! however many nodes; and with a grace a reconnect is no news.
//! Method: a subscriber of `user:events`; the event of a marker proves that nothing came before it.

mod support;

use std::time::{Duration, Instant};

use support::resp::Reply;
use support::{Client, DEADLINE, DEADLINE_SLOW, Nodes, eventually};

#[test]
fn online_once_and_offline_once() {
    let nodes = Nodes::start();
    let mut events = nodes.events();
    for (round, user) in ["alice", "quote\" \\ {} 日本\n"].iter().enumerate() {
        let mut clients: Vec<Client> = (0..9).map(|at| nodes[(at + round) % nodes.count()].client(user)).collect();
        events.expect("online", user);
        let marker = nodes[0].client("marker");
        events.expect("online", "marker");
        marker.close();
        events.expect("offline", "marker");
        while clients.len() > 1 {
            clients.pop().expect("there is one").close();
        }
        let marker = nodes[1].client("marker");
        events.expect("online", "marker");
        marker.close();
        events.expect("offline", "marker");
        clients.clear();
        events.expect("offline", user);
    }
}

#[test]
fn who_comes_and_goes_quickly_is_told_in_order() {
    let nodes = Nodes::with(2, &[]);
    let mut events = nodes.events();
    for round in 0..50 {
        nodes[round % 2].client("alice").close();
        events.expect("online", "alice");
        events.expect("offline", "alice");
    }
}

#[test]
fn the_mapping_is_there_before_the_101_with_the_contracts_time_to_live() {
    let nodes = Nodes::with(2, &[]);
    let mut redis = nodes.service();
    for at in 0..100 {
        let user = format!("user{at}");
        let _client = nodes[at % 2].client(&user);
        let key = format!("user:node:{user}");
        assert_eq!(redis.get(&key).as_ref(), Some(&nodes[at % 2].node_id));
        let Reply::Number(ttl) = redis.call(&["TTL", &key]) else { panic!("TTL answers a number") };
        assert!((3590..=3600).contains(&ttl), "{ttl} s");
    }
    // The counter counts, with an end that is renewed.
    let _one = nodes[0].client("one");
    let counter = format!("node:connections:{}", nodes[0].node_id);
    eventually("the counter says 1 or 2", DEADLINE, || {
        redis.get(&counter).is_some_and(|count| count == "1" || count == "2").then_some(())
    });
    let Reply::Number(ttl) = redis.call(&["TTL", &counter]) else { panic!("TTL answers a number") };
    assert!(ttl > 0, "the counter of a node that dies has an end");
}

#[test]
fn a_reconnect_within_the_grace_is_silent() {
    let nodes = Nodes::with(2, &[("--offline-grace", "2s")]);
    let mut events = nodes.events();
    let alice = nodes[0].client("alice");
    events.expect("online", "alice");
    // On the same node, and on the other one.
    alice.close();
    let alice = nodes[0].client("alice");
    alice.close();
    let alice = nodes[1].client("alice");
    let first_marker = nodes[0].client("marker");
    events.expect("online", "marker");
    // The grace of the first goodbyes is over when that of a later one is.
    first_marker.close();
    events.expect("offline", "marker");
    let left = Instant::now();
    alice.close();
    events.expect("offline", "alice");
    println!("offline {:?} after the last connection", left.elapsed());
    let _alice = nodes[0].client("alice");
    events.expect("online", "alice");
}

#[test]
fn a_node_that_dies_within_the_grace_takes_no_offline_along() {
    let mut nodes = Nodes::with(2, &[("--offline-grace", "3s")]);
    let mut events = nodes.events();
    let alice = nodes[1].client("alice");
    events.expect("online", "alice");
    alice.close();
    let mut redis = nodes.service();
    eventually("alice has left", DEADLINE, || redis.get("user:node:alice").is_none().then_some(()));
    nodes.kill(1);
    let got = events.next(DEADLINE_SLOW).expect("an offline of alice");
    assert_eq!(got, ("offline".to_owned(), "alice".to_owned()));
    let _marker = nodes[0].client("marker");
    events.expect("online", "marker");
}

#[test]
fn a_killed_nodes_users_who_come_back_elsewhere_within_the_grace_are_silent() {
    let mut nodes = Nodes::with(2, &[("--offline-grace", "20s")]);
    let mut events = nodes.events();
    let lost = nodes[1].client("alice");
    events.expect("online", "alice");
    nodes.kill(1);
    let _alice = nodes[0].client("alice");
    // Longer than the dead node's users need to be taken off.
    let reaped = |nodes: &Nodes| nodes[0].metrics().sum("ringmesh_bus_reaped_total", &[]) > 0.0;
    eventually("a node that was reaped", DEADLINE_SLOW, || reaped(&nodes).then_some(()));
    assert_eq!(events.next(Duration::from_millis(500)), None);
    let _marker = nodes[0].client("marker");
    events.expect("online", "marker");
    drop(lost);
}
