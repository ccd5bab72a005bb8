//! The rim of a shard: its ring, its sockets, its ends of the mesh, and the loop that turns them.
//!
//! - [`engine`]: io_uring behind a safe interface, the only `unsafe` of the project
//! - [`chunk`]: bytes on their way to a socket
//! - `conn`: what is kept for a connection; `sockets`: all of them, and what the hub does to them
//! - `spread`: broadcasts on their way into the queues
//! - `receive`, `request`, `finish`: bytes in, HTTP heads in, connections out
//! - `lone_address`: whether all requests come from one address; `rare`: log lines that are not written each time
//! - `mesh`: the one file that names glommio's channels; `park`: waiting without losing a wake-up
//! - [`port`]: queues to the bus and from it; `queues`: what waits at the rim for the hub
//! - [`turn`]: the order of a turn's steps, pure; [`run`]: the loop, and the steps

pub mod chunk;
pub mod engine;
pub mod port;
pub mod turn;

mod conn;
mod finish;
mod lone_address;
mod mesh;
mod park;
mod queues;
mod rare;
mod receive;
mod request;
mod run;
mod sockets;
mod spread;
#[cfg(test)]
mod tests;

pub use conn::Audience;
pub use lone_address::LoneAddress;
pub use mesh::MeshTicket;
pub use run::{HANDSHAKES_MAX, ShardConfig, ShardError, run};
