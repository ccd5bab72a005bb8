//! ringmesh: a thread-per-core, io_uring WebSocket gateway. What it does and how it is run stands in the README; this is
//! where things are, and what they are called.
//!
//! # Layout
//! Pure, deciding without touching anything:
//! - [`ids`], [`time`]: names and instants
//! - [`http`]: request heads, routes, responses
//! - [`ws`]: RFC 6455, from bytes to messages and back
//! - [`client`]: what clients say, what they are told, why they are sent away
//! - [`hub`]: one shard's world of users and connections; [`shard::turn`]: what a shard does when
//! - [`bus`]: between the nodes; its rim is [`bus::redis`] and [`bus::thread`]
//!
//! The rim, which moves bytes and asks the system:
//! - [`shard`]: sockets, send queues, the mesh, and the loop that turns them; [`shard::engine`] is the only unsafe code
//! - [`node`]: placement, start, signals, drain, watchdog; [`listeners`], [`host`], [`panics`],
//!   [`logging`] and [`systemd`] serve it
//! - [`config`], [`preflight`]: what a node is told, and what its host must give
//! - [`doctor`], [`top`], [`cluster`]: the host, a running node and all nodes, looked at from outside
//! - [`metrics`]: what is counted; each cell has one writer, so the hub writes its own without being less pure
//!
//! Dependencies point one way, from right to left; a module may use what stands left of it:
//!
//! ```text
//! ids time <- http <- ws <- client <- hub <- shard <- bus <- node <- main
//!             metrics <---------------'                      |
//!             config <- preflight logging listeners <--------'
//!             node preflight <- doctor;  top by itself;  top bus <- cluster
//! ```
//!
//! Two things point back: shards and the bus read the node's stage and its counters through [`node::Node`], and
//! [`listeners`] says what failed as [`node::NodeError`].
//!
//! # Glossary
//! One name for one thing, in code, logs, metrics and documentation:
//! - **Node**: a process.
//! - **Shard**: a pinned executor with its sockets.
//! - **Hub**: one shard's world of users and connections. [`hub::Hub::handle`] is its one door.
//! - **Frame**: RFC 6455's only.
//! - **Message**: what a client sends or gets.
//! - **Delivery**: one message to one connection.
//! - **Home shard**: the shard that a user id, or an address, hashes to. It knows all connections of the user, and
//!   decides in what order things happen to them.
//! - **Owner shard**: the shard that accepted a connection. It never changes.
//! - **Bus**: what carries messages between nodes.
//! - **Link**: what one node sends another, numbered and acknowledged ([`bus::link`]).
//! - **Envelope**: what crosses from shard to shard, in one of three classes: to-home, to-owner, broadcast
//!   ([`hub::envelope`]); or what a node publishes for another, several messages in one ([`bus::wire`]).
//! - **Disconnect**: a close code with its reason and its retry rule ([`client::Disconnect`]).
//! - **Turn**: one pass of a shard's loop: take what the ring completed, handle it, handle what other shards sent, hand
//!   out sends and batches. What a turn gathers for one connection, or for one shard, leaves together.
#![warn(missing_docs)]

pub mod bus;
pub mod client;
pub mod cluster;
pub mod config;
pub mod doctor;
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
pub mod signals;
pub mod systemd;
pub mod time;
pub mod top;
pub mod ws;
