//! Goal: a node that is told to stop loses nothing that its clients were promised, and leaves nothing behind.
//! Method: SIGTERM right after its clients have sent; their messages must arrive on other nodes, and their users go
//! offline once.

mod support;

use nix::sys::signal::Signal;
use support::client::message_from;
use support::{DEADLINE, Nodes, eventually};

#[test]
fn what_its_clients_sent_arrives_and_its_users_go_offline_once() {
    let mut nodes = Nodes::with(2, &[]);
    let mut redis = nodes.service();
    let mut events = nodes.events();
    let mut senders = nodes[1].clients("sender", 20);
    let mut targets = nodes[0].clients("target", 4);
    let users = |prefix: &str, count: usize| -> Vec<String> { (0..count).map(|at| format!("{prefix}{at}")).collect() };
    events.expect_each(DEADLINE, "online", users("sender", 20).into_iter().chain(users("target", 4)));
    for at in 0..100 {
        for sender in &mut senders {
            for target in &targets {
                sender.send_to(&target.user, &at.to_string());
            }
        }
    }
    // The pong says that all of it was taken.
    senders.iter_mut().for_each(support::Client::expect_pong);
    nodes[1].signal(Signal::SIGTERM);
    for target in &mut targets {
        let mut next = [0; 20];
        for _ in 0..2_000 {
            let frame = target.next_json();
            let from = frame["from"].as_str().expect("a sender").to_owned();
            let at: usize = from.strip_prefix("sender").and_then(|at| at.parse().ok()).expect("its number");
            assert_eq!(frame, message_from(&from, next[at]));
            next[at] += 1;
        }
        target.expect_pong();
    }
    for sender in &mut senders {
        sender.expect_close(1012);
    }
    events.expect_each(DEADLINE, "offline", users("sender", 20));
    assert_eq!(nodes.node(1).wait_for_exit(DEADLINE).code(), Some(0));
    let counter = format!("node:connections:{}", nodes[1].node_id);
    assert_eq!(redis.get(&counter), None, "its counter has gone with it");
    for at in 0..20 {
        assert_eq!(redis.get(&format!("user:node:sender{at}")), None);
    }
    // Nobody takes it for dead afterwards.
    let _marker = nodes[0].client("marker");
    events.expect("online", "marker");
    eventually("one node left", DEADLINE, || (nodes[0].metrics().sum("ringmesh_bus_nodes", &[]) == 1.0).then_some(()));
    assert_eq!(nodes[0].metrics().sum("ringmesh_bus_reaped_total", &[]), 0.0);
}
