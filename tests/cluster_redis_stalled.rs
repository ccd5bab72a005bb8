//! Goal: a Redis that stands still for longer than any lease reaps nobody; local traffic goes on; what crosses nodes
//! arrives later or is refused to its sender; and the node says how it stands.
//! Method: SIGSTOP of Redis for 20 s while everybody sends to everybody.

mod support;

use std::time::{Duration, Instant};

use support::cluster::is_ready;
use support::{DEADLINE, DEADLINE_SLOW, Gateway, Kind, Nodes, Traffic, http};

/// Twice the time of a lease.
const STALL: Duration = Duration::from_secs(20);

/// Is Redis out of reach, as this node says?
fn says_lost(node: &Gateway) -> bool {
    let health = node.health();
    assert_eq!(health["status"], "ok", "{health}");
    if health["bus"] != "lost" {
        return false;
    }
    let refused = http::request(node.addr, http::upgrade_head("/ws?user_id=late"));
    assert_eq!(refused.status, 503, "{refused:?}");
    refused.retry_after() > 0 && !is_ready(node)
}

#[test]
fn nobody_is_reaped_and_nothing_is_lost_unseen() {
    let nodes = Nodes::start();
    let mut traffic = Traffic::connect(Kind::Unicast, nodes.all(), 2);
    let mut idle = nodes[1].clients("idle", 50);
    traffic.run_until_all_pass(DEADLINE);
    assert_eq!(nodes[0].health()["bus"], "up");
    let mut events = nodes.events();

    nodes.redis.stop();
    let end = Instant::now() + STALL;
    for node in nodes.all() {
        traffic.run_until("a node that says that Redis is lost", STALL, |_| says_lost(node));
    }
    while Instant::now() < end {
        traffic.run_until_local_pass(DEADLINE);
    }
    assert!(nodes.all().iter().all(says_lost));
    nodes.redis.cont();

    for node in nodes.all() {
        traffic.run_until("a node that is ready again", DEADLINE_SLOW, |_| is_ready(node));
    }
    traffic.run_until_all_pass(DEADLINE_SLOW);
    traffic.settle(DEADLINE_SLOW);
    assert_eq!(nodes[0].health()["bus"], "up");
    idle.iter_mut().for_each(support::Client::expect_pong);
    // Longer than a node that is taken for dead would need to be reaped, and nobody is offline.
    traffic.run_for(Duration::from_secs(3));
    let mut redis = nodes.service();
    for client in &idle {
        assert_eq!(redis.get(&format!("user:node:{}", client.user)).as_ref(), Some(&nodes[1].node_id));
    }
    let _marker = nodes[0].client("marker");
    events.expect("online", "marker");
}
