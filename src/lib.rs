//! ringmesh: a thread-per-core, io_uring WebSocket gateway.
#![warn(missing_docs)]

pub mod client;
pub mod config;
pub mod host;
pub mod http;
pub mod hub;
pub mod ids;
pub mod listeners;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod panics;
pub mod preflight;
pub mod shard;
pub mod time;
pub mod ws;
