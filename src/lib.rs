//! ringmesh: a thread-per-core, io_uring WebSocket gateway.
pub mod config;
pub mod ids;
pub mod logging;
pub mod node;
pub mod preflight;
