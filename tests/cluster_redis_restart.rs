//! Goal: a restart of Redis, with its data or without, loses no message between nodes and no user, and makes no events.
//! Method: everybody sends to everybody while Redis is killed and started again; each message is accounted for.

mod support;

use std::time::Duration;

use support::client::message_from;
use support::cluster::wait_until_ready;
use support::redis::RedisServer;
use support::{DEADLINE, DEADLINE_SLOW, Kind, Nodes, Traffic, eventually};

/// Users who neither send nor get anything while Redis is away.
const IDLE: usize = 300;

/// Three nodes with traffic and idle users; `restart` does its worst.
fn survives(redis: RedisServer, restart: impl Fn(&mut RedisServer)) {
    let mut nodes = Nodes::on(redis, 3, &[]);
    let mut traffic = Traffic::connect(Kind::Unicast, nodes.all(), 2);
    let mut idle = nodes[1].clients("idle", IDLE);
    traffic.run_until_all_pass(DEADLINE);
    restart(&mut nodes.redis);
    let mut events = nodes.events();
    traffic.run_until_all_pass(DEADLINE_SLOW);
    traffic.run_for(Duration::from_millis(500));
    traffic.settle(DEADLINE_SLOW);
    nodes.all().iter().for_each(wait_until_ready);

    // Everybody is in Redis again, on the right node.
    let mut redis = nodes.service();
    for client in &idle {
        let key = format!("user:node:{}", client.user);
        eventually("the mapping is back", DEADLINE_SLOW, || {
            (redis.get(&key).as_ref() == Some(&nodes[1].node_id)).then_some(())
        });
    }
    let counter = format!("node:connections:{}", nodes[1].node_id);
    let count = (IDLE + 2).to_string();
    eventually("the counter is back", DEADLINE, || (redis.get(&counter).as_ref() == Some(&count)).then_some(()));
    // And can be reached by somebody who never wrote to them; the newcomer is the first of whom there is an event.
    let mut new = nodes[2].client("new");
    events.expect("online", "new");
    for client in idle.iter_mut().step_by(IDLE / 10) {
        new.send_to(&client.user, "1");
        client.expect(&message_from("new", 1));
    }
}

#[test]
fn with_its_data() {
    let keeps = ["--appendonly", "yes", "--appendfsync", "always"];
    survives(RedisServer::with(&keeps), |redis| {
        redis.kill();
        redis.start_again();
    });
}

#[test]
fn without_its_data() {
    survives(RedisServer::start(), |redis| {
        redis.kill();
        redis.start_again();
    });
}
