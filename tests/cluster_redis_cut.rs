//! Goal: connections to Redis that break lose nothing between nodes.
//! Method: CLIENT KILL of all of them, again and again, while everybody sends to everybody.

mod support;

use std::time::Duration;

use support::{DEADLINE, DEADLINE_SLOW, Kind, Nodes, Traffic};

fn survives_cuts(kind: Kind) {
    let nodes = Nodes::start();
    let mut traffic = Traffic::connect(kind, nodes.all(), 2);
    traffic.run_until_all_pass(DEADLINE);
    for _ in 0..8 {
        nodes.redis.kill_clients();
        traffic.run_for(Duration::from_millis(250));
    }
    traffic.run_until_all_pass(DEADLINE_SLOW);
    traffic.settle(DEADLINE_SLOW);
    for node in nodes.all() {
        let reconnects = node.metrics().sum("ringmesh_bus_reconnects_total", &[]);
        assert!(reconnects > 0.0, "the connections of {} were never cut", node.node_id);
    }
}

#[test]
fn messages_survive() {
    survives_cuts(Kind::Unicast);
}

#[test]
fn broadcasts_survive() {
    survives_cuts(Kind::Broadcast);
}
