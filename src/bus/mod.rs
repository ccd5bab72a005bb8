//! Between the nodes: one bus thread for each node, which talks to Redis for all of its shards.
//!
//! Pure:
//! - [`call`]: what the bus asks of Redis, and what it is answered
//! - [`wire`]: envelopes from node to node as bytes; [`link`]: nothing lost on the way, nothing twice
//! - [`status`]: how it stands with the bus, for the shards
//! - [`contract`]: the JSON that services and foreign nodes speak
//! - [`state`]: the bus itself; its parts are `held`, `routes`, `deliver`, `streams`, `peers`, `inbound` and
//!   `members`
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

mod deliver;
mod held;
mod inbound;
mod members;
mod peers;
mod routes;
mod scripts;
mod streams;
mod table;

pub use members::LEASE;
pub use state::{Bus, BusConfig, Counters, Effects, Fatal, Health, Input};
