//! ringmesh: a thread-per-core, io_uring WebSocket gateway.
pub mod config;
pub mod ids;
