//! Goal: on a Redis Cluster everything is as on one Redis, and the loss of a master touches the users of its slots only,
//! until its replica takes over.
//! Method: a cluster of three masters with a replica each; node ids and users are chosen by the master that serves them.

mod support;

use support::client::{broadcast_from, message_from};
use support::cluster::start_nodes;
use support::gateway::new_node_id;
use support::redis::RedisCluster;
use support::resp::Resp;
use support::{Client, DEADLINE, DEADLINE_SLOW, Gateway, Kind, Traffic, cluster, eventually};

/// A name that begins with `prefix` and whose key is served by this master, or by another than this one: not near a border
/// of slots, where what is written for one user may be on both.
fn name_on(redis: &RedisCluster, master: usize, is_on: bool, key: impl Fn(&str) -> String, prefix: &str) -> String {
    let names = (0..).map(|at| format!("{prefix}-{at}"));
    let mut fits = names.filter(|name| {
        let key = key(name);
        (redis.owner(&key) == master) == is_on && !redis.is_at_border(&key)
    });
    fits.next().expect("there is no end of names")
}

fn mapping(user: &str) -> String {
    format!("user:node:{user}")
}

#[test]
fn everybody_reaches_everybody_whatever_the_slots() {
    let redis = RedisCluster::start(3, 1);
    let nodes = start_nodes(&redis.url(), 2, &[]);
    let names = ["alice", "{", "}{", "{}", "{user:node:a}b}", "a{b}c", "node:{1}", "bob", "carol", "dave"];
    let mut clients: Vec<Client> = names.iter().enumerate().map(|(at, name)| nodes[at % 2].client(name)).collect();
    for at in 0..clients.len() {
        for name in names {
            clients[at].send_to(name, "1");
        }
        for client in &mut clients {
            client.expect(&message_from(names[at], 1));
        }
        clients[at].broadcast("2");
        for client in &mut clients {
            client.expect(&broadcast_from(names[at], 2));
        }
    }
    // The contract's keys are where a service finds them.
    for (at, name) in names.iter().enumerate() {
        let key = mapping(name);
        let mut master = Resp::connect(&redis.masters[redis.owner(&key)]);
        assert_eq!(master.get(&key).as_ref(), Some(&nodes[at % 2].node_id));
    }
}

#[test]
fn a_master_that_dies_takes_nobody_else_along() {
    let mut redis = RedisCluster::start(3, 1);
    let dead = redis.owner(&mapping("victim"));
    let link = |id: &str| format!("rm2:{{n:{id}}}:link");
    let ids: Vec<String> = (0..2).map(|_| name_on(&redis, dead, false, link, &new_node_id())).collect();
    let url = redis.url();
    let nodes: Vec<Gateway> =
        ids.iter().map(|id| Gateway::with(&[("--redis", url.as_str()), ("--node-id", id.as_str())])).collect();
    nodes.iter().for_each(cluster::wait_until_ready);
    let mut victim = nodes[1].client("victim");
    let mut traffic = Traffic::connect(Kind::Unicast, &nodes, 2);
    traffic.run_until_all_pass(DEADLINE);

    redis.masters[dead].kill();
    // Those who know each other go on, and newcomers of other slots are registered, found and reached.
    traffic.run_until_all_pass(DEADLINE_SLOW);
    let mut new = nodes[1].client(&name_on(&redis, dead, false, mapping, "new"));
    let mut newer = nodes[0].client(&name_on(&redis, dead, false, mapping, "newer"));
    newer.send_to(&new.user, "1");
    new.expect(&message_from(&newer.user, 1));

    // The replica takes over, and with it the users of the dead master's slots.
    eventually("a replica that was promoted", DEADLINE_SLOW, || {
        redis.replicas[dead][0].ask(&["ROLE"]).starts_with("master").then_some(())
    });
    traffic.run_until_all_pass(DEADLINE_SLOW);
    traffic.settle(DEADLINE_SLOW);
    nodes.iter().for_each(cluster::wait_until_ready);
    newer.send_to("victim", "2");
    victim.expect(&message_from(&newer.user, 2));
    let mut late = nodes[0].client(&name_on(&redis, dead, true, mapping, "late"));
    victim.send_to(&late.user, "3");
    late.expect(&message_from("victim", 3));
}
