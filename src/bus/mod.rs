//! Between the nodes: one bus thread for each node, which talks to Redis for all of its shards.
//!
//! Pure:
//! - [`call`]: what the bus asks of Redis, and what it is answered
//! - [`wire`]: envelopes from node to node as bytes; [`link`]: nothing lost on the way, nothing twice
//! - [`status`]: how it stands with the bus, for the shards
//! - [`contract`]: the JSON that services and foreign nodes speak
//! - [`state`]: the bus itself; its parts are `directory`, `routes`, `deliveries`, `peers` and `members`, and what happens
//!   stands in `outgoing`, `relay`, `holding`, `incoming` and `renewal`
//! - [`keys`]: the names of keys and channels
//! - [`survey`]: what can be read about a cluster from outside
//!
//! The rim:
//! - [`thread`]: the thread, and its loop
//! - [`redis`]: connections, commands, scripts

pub mod call;
pub mod contract;
pub mod keys;
pub mod link;
pub mod redis;
pub mod state;
pub mod status;
pub mod survey;
pub mod thread;
pub mod wire;

mod deliveries;
mod directory;
mod holding;
mod inbound;
mod incoming;
mod later;
mod lives;
mod members;
mod message;
mod outgoing;
mod peers;
mod relay;
mod renewal;
mod routes;
mod scripts;
mod table;

pub use members::LEASE;
pub use state::{Bus, BusConfig, Counters, Effects, Fatal, Health, Input};
