//! Goal: a failover by Sentinel is survived without an operator and without a lost message between nodes.
//! Method: the primary is killed under traffic; the sentinels promote its replica.

mod support;

use support::client::message_from;
use support::cluster::{start_nodes, wait_until_ready};
use support::redis::Sentinels;
use support::resp::Resp;
use support::{DEADLINE, DEADLINE_SLOW, Kind, Traffic, eventually};

#[test]
fn the_replica_takes_over() {
    let mut redis = Sentinels::start();
    let nodes = start_nodes(&redis.url(), 2, &[]);
    let mut traffic = Traffic::connect(Kind::Unicast, &nodes, 2);
    let mut idle = nodes[1].clients("idle", 50);
    traffic.run_until_all_pass(DEADLINE);
    redis.master.kill();
    eventually("a replica that was promoted", DEADLINE_SLOW, || {
        redis.replica.ask(&["ROLE"]).starts_with("master").then_some(())
    });
    traffic.run_until_all_pass(DEADLINE_SLOW);
    traffic.settle(DEADLINE_SLOW);
    nodes.iter().for_each(wait_until_ready);
    let mut promoted = Resp::connect(&redis.replica);
    for client in &idle {
        let key = format!("user:node:{}", client.user);
        eventually("the mapping is there", DEADLINE, || {
            (promoted.get(&key).as_ref() == Some(&nodes[1].node_id)).then_some(())
        });
    }
    let mut new = nodes[0].client("new");
    for client in &mut idle {
        new.send_to(&client.user, "1");
        client.expect(&message_from("new", 1));
    }
}
