//! One shard's rim: the sockets of one pinned thread and what moves their bytes.

pub mod chunk;
pub mod engine;
