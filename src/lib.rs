//! ringmesh: a thread-per-core, io_uring WebSocket gateway.
pub mod ids;
pub mod shard;
