//! ringmesh: a thread-per-core, io_uring WebSocket gateway.
#![warn(missing_docs)]

pub mod http;
pub mod ids;
pub mod ws;
