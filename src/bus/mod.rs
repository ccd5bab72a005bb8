//! Between the nodes: one bus thread for each node, which talks to Redis for all of its shards.
//!
//! - [`call`]: what the bus asks of Redis, and what it is answered

pub mod call;
