//! Several gateways on one Redis of their own.

use std::ops::Index;

use nix::sys::signal::Signal;

use super::redis::RedisServer;
use super::resp::{Events, Resp};
use super::{DEADLINE, DEADLINE_SLOW, Gateway, eventually, http};

/// Nodes that share a Redis. Dropping it ends all of them, and Redis.
pub struct Nodes {
    // Before `redis`: fields are dropped in this order, and a node that loses its Redis has much to say.
    nodes: Vec<Gateway>,
    /// Their Redis.
    pub redis: RedisServer,
}

impl Nodes {
    /// Three nodes of two shards that are ready.
    pub fn start() -> Nodes {
        Nodes::with(3, &[])
    }

    /// `count` nodes that are ready, with these flags beside the usual ones.
    pub fn with(count: usize, flags: &[(&str, &str)]) -> Nodes {
        Nodes::on(RedisServer::start(), count, flags)
    }

    /// The same on a Redis that runs.
    pub fn on(redis: RedisServer, count: usize, flags: &[(&str, &str)]) -> Nodes {
        redis.age();
        let nodes = start_nodes(&redis.url(), count, flags);
        Nodes { nodes, redis }
    }

    /// All nodes.
    pub fn all(&self) -> &[Gateway] {
        &self.nodes
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// A node, to be ended.
    pub fn node(&mut self, at: usize) -> &mut Gateway {
        &mut self.nodes[at]
    }

    /// A connection to their Redis, as a business service would open it.
    pub fn service(&self) -> Resp {
        Resp::connect(&self.redis)
    }

    /// A subscriber of `user:events` on their Redis.
    pub fn events(&self) -> Events {
        Events::subscribe(&self.redis)
    }

    /// Ends a node as a power failure does, and waits until it is gone.
    pub fn kill(&mut self, at: usize) {
        self.nodes[at].signal(Signal::SIGKILL);
        self.nodes[at].wait_for_exit(DEADLINE);
    }

    /// Starts a node anew under the id of one that has ended, and waits until it is ready.
    pub fn restart(&mut self, at: usize) {
        let node_id = self.nodes[at].node_id.clone();
        self.nodes[at] = Gateway::with(&[("--redis", &self.redis.url()), ("--node-id", &node_id)]);
        wait_until_ready(&self.nodes[at]);
    }
}

impl Index<usize> for Nodes {
    type Output = Gateway;
    fn index(&self, at: usize) -> &Gateway {
        &self.nodes[at]
    }
}

/// Starts `count` nodes on the Redis behind `url`, and waits until each is ready.
pub fn start_nodes(url: &str, count: usize, flags: &[(&str, &str)]) -> Vec<Gateway> {
    let flags = [&[("--redis", url)], flags].concat();
    let nodes: Vec<Gateway> = (0..count).map(|_| Gateway::with(&flags)).collect();
    nodes.iter().for_each(wait_until_ready);
    nodes
}

/// Waits until `/ready` answers 200: the bus is up, and clients are taken.
pub fn wait_until_ready(node: &Gateway) {
    eventually("a /ready that says 200", DEADLINE_SLOW, || is_ready(node).then_some(()));
}

/// Does `/ready` answer 200?
pub fn is_ready(node: &Gateway) -> bool {
    http::get(node.addr, "/ready").status == 200
}
