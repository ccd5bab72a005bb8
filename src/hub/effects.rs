//! What the hub does to the world: the seam between deciding and moving bytes.

use bytes::Bytes;

use crate::ids::{ConnId, ConnRef, ShardId};
use crate::time::Micros;

use super::bus::ToBus;
use super::envelope::{Broadcast, Class, ToHome, ToOwner};

/// Frames up to this size are copied into a connection's send buffer; larger ones ride as `Bytes`.
///
/// Copying 1 KiB costs 19 ns, a reference count shared between cores 18 ns.
pub const COPY_BYTES_MAX: usize = 1024;

/// A server frame on its way to a connection.
#[derive(Clone, Copy, Debug)]
pub enum Wire<'a> {
    /// Bytes to copy.
    Copy(&'a [u8]),
    /// Bytes that may be shared instead.
    Shared(&'a Bytes),
}

impl Wire<'_> {
    /// The bytes of the frame.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Copy(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// Where a delivery comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Whose reading pauses for a while when the receiver lags; nobody's, when the bus brought it.
    pub sender: Option<ConnRef>,
    /// When the bytes arrived at this node.
    pub received: Micros,
}

/// The verdict about a connection that asked for `/ws`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// 101: the home shard has the connection; from here on it is open and broadcasts reach it.
    Open,
    /// 101, then Close 4001.
    Nameless,
    /// 429, and when to come back, in seconds.
    TooMany {
        /// For `Retry-After`, in seconds.
        retry_after: u32,
    },
    /// 503: the user could not be registered with the other nodes in time.
    Unavailable,
}

/// What a hub can do. A late effect for a connection that is gone does nothing.
pub trait Effects {
    /// Answers a connection that waits for its verdict.
    fn decide(&mut self, conn: ConnId, verdict: Verdict);
    /// Queues a frame for one connection; whether it was there to take it.
    fn deliver(&mut self, conn: ConnId, frame: Wire<'_>, origin: Origin) -> bool;
    /// Queues a frame for every open connection of this shard.
    fn deliver_all(&mut self, frame: Wire<'_>, received: Micros);
    /// Has [`super::Input::Proceed`] come again for this connection, later.
    fn postpone(&mut self, conn: ConnId);
    /// Whether this shard takes broadcasts now.
    fn takes_broadcasts(&self) -> bool;
    /// Whether one more message of this class may go to `shard`; always true for the shard itself.
    fn has_room(&self, class: Class, shard: ShardId) -> bool;
    /// Sends a to-home message. Only after `has_room`, and never to the shard itself.
    fn push_home(&mut self, shard: ShardId, message: ToHome);
    /// Sends a to-owner message. Only after `has_room`, and never to the shard itself.
    fn push_owner(&mut self, shard: ShardId, message: ToOwner);
    /// Sends a broadcast. Only after `has_room`, and never to the shard itself.
    fn push_broadcast(&mut self, shard: ShardId, message: Broadcast);
    /// Whether one more message may go to the bus. Arrivals, departures and answers need not ask: they always may.
    fn bus_has_room(&self) -> bool;
    /// Sends something to the bus. All that a shard sends arrives in order.
    fn push_bus(&mut self, message: ToBus);
    /// Whether the bus takes broadcasts now.
    fn bus_takes_broadcasts(&self) -> bool;
}
