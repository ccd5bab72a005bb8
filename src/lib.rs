//! ringmesh: a thread-per-core, io_uring WebSocket gateway.
#![warn(missing_docs)]

pub mod client;
pub mod http;
pub mod hub;
pub mod ids;
pub mod metrics;
pub mod panics;
pub mod time;
pub mod ws;
