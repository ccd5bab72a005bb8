//! Goal: a node that dies is seen: its users go offline, once, within 15 s, and nothing of it is left in Redis. Users who
//! are on another node as well stay reachable, and hear nothing of it.
//! Method: SIGKILL; a subscriber counts the events. The contract's failing 5.

mod support;

use std::time::{Duration, Instant};

use support::client::message_from;
use support::gateway::serve_arguments;
use support::process::Process;
use support::resp::{Reply, Resp};
use support::{Client, DEADLINE, Nodes, eventually};

/// How soon the users of a dead node must be offline: 15 s, and 5 s more because nobody is declared dead by a node that has
/// not yet seen Redis healthy for 15 s, and these have just been started.
const OFFLINE: Duration = Duration::from_secs(20);

/// Users of the node that dies.
const USERS: usize = 50;

/// The keys that have no end and name the node or one of its users.
fn left_behind(redis: &mut Resp, node_id: &str) -> Vec<String> {
    let keys = redis.call(&["KEYS", "*"]).list();
    let keys = keys.iter().map(Reply::text).filter(|key| key.contains(node_id) || key.contains("lost"));
    keys.filter(|key| redis.call(&["PTTL", key]) == Reply::Number(-1)).collect()
}

#[test]
fn users_of_a_killed_node_go_offline_once() {
    let mut nodes = Nodes::start();
    let mut redis = nodes.service();
    let mut events = nodes.events();
    let mut clients = nodes[1].clients("lost", USERS);
    let users: Vec<String> = clients.iter().map(|client| client.user.clone()).collect();
    let mut here = nodes[0].client("here");
    // Half of her is on the node that dies, the newer half even.
    let mut alice = nodes[2].client("alice");
    clients.push(nodes[1].client("alice"));
    let all = users.iter().cloned().chain(["here".to_owned(), "alice".to_owned()]);
    events.expect_each(DEADLINE, "online", all);
    here.send_to("alice", "1");
    alice.expect(&message_from("here", 1));

    let killed = Instant::now();
    nodes.kill(1);
    // Messages to them are lost with it, and hold up nothing else.
    for user in &users {
        here.send_to(user, "\"lost\"");
    }
    here.send_to("alice", "2");
    alice.expect(&message_from("here", 2));
    events.expect_each(OFFLINE, "offline", users.iter().cloned());
    println!("offline after {:?}", killed.elapsed());

    let id = nodes[1].node_id.clone();
    for user in &users {
        assert_eq!(redis.get(&format!("user:node:{user}")), None, "{user}");
    }
    eventually("user:node:alice names the node that holds her", DEADLINE, || {
        (redis.get("user:node:alice").as_ref() == Some(&nodes[2].node_id)).then_some(())
    });
    let counter = format!("node:connections:{id}");
    eventually("no counter of the dead node", OFFLINE, || redis.get(&counter).is_none().then_some(()));
    assert!(redis.get(&format!("node:connections:{}", nodes[0].node_id)).is_some(), "the living keep theirs");
    let mut left = Vec::new();
    eventually("nothing without an end of the dead node or its users", OFFLINE, || {
        let now = left_behind(&mut redis, &id);
        if now != left {
            println!("left: {now:?}");
            left = now;
        }
        left.is_empty().then_some(())
    });
    here.send_to("alice", "3");
    alice.expect(&message_from("here", 3));

    // It starts again under its id, and its users come back: each is online once, and nothing came in between.
    nodes.restart(1);
    let mut back: Vec<Client> = nodes[1].clients("lost", USERS);
    events.expect_each(DEADLINE, "online", users.iter().cloned());
    here.send_to("lost7", "\"welcome back\"");
    let first = back[7].next_json();
    assert_eq!(first, message_from("here", "welcome back"));
    drop(alice);
    events.expect("offline", "alice");
}

#[test]
fn a_user_of_a_killed_node_is_let_in_elsewhere_while_its_next_process_waits_for_the_lease() {
    let mut nodes = Nodes::start();
    let _alice = nodes[1].client("alice");
    nodes.kill(1);
    // A supervisor starts it again at once. Until the lease of the process before has lapsed it has no life, and what is
    // published for it is not heard.
    let (id, url) = (nodes[1].node_id.clone(), nodes.redis.url());
    let next = Process::spawn(serve_arguments(&id, &[("--redis", &url)]));
    next.wait_for("being connected", DEADLINE, |record| record["message"] == "Redis is connected");
    // It is not let in by a later attempt: the first one is not refused.
    nodes[0].client("alice").expect_pong();
}
