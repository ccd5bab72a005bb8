//! Between the nodes: one bus thread for each node, which talks to Redis for all of its shards.
//!
//! - [`call`]: what the bus asks of Redis, and what it is answered
//! - [`wire`]: envelopes from node to node as bytes; [`link`]: nothing lost on the way, nothing twice
//! - [`status`]: how it stands with the bus, for the shards
//! - [`contract`]: the JSON that services and foreign nodes speak

pub mod call;
pub mod contract;
pub mod link;
pub mod status;
pub mod wire;

mod table;
