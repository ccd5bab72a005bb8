//! A message to a user on its way between nodes, and the names of those it comes from and goes to.

use bytes::Bytes;

use super::call::Incarnation;

/// Bytes that a message which waits counts for beside its frame.
const WAITING_BYTES: usize = 64;

/// The longest user id that a connection can have, in bytes; the contract's.
pub(super) const USER_ID_BYTES_MAX: usize = 256;

/// Another node of our kind, by its place in the list of peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct PeerId(pub(super) u32);

/// A process of a node whose clients send messages, by its place in the list of origins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct OriginId(pub(super) u32);

impl OriginId {
    /// This process.
    pub(super) const SELF: Self = Self(u32::MAX);
}

/// What tells a message from all others: the process that it began in, and that process' number of it. One process
/// numbers all its messages in one row, whoever they are for; a message that goes another way keeps its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub(super) origin: OriginId,
    pub(super) place: u64,
}

/// Who is told when a message has reached the user's connections everywhere, or has found the user gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// This node's queue of the user, which is in this slot of the routes; and the time, by its number, that the queue was
    /// sent this way: what comes of an earlier time does not count.
    Own { route: usize, place: u64, time: u32 },
    /// The peer from which it came as item `seq` of its link's state number `link`.
    Peer { peer: PeerId, link: u32, seq: u64 },
}

/// A message that this node relays: it delivers it to its own connections, and pushes it to the user's other holders.
#[derive(Clone, Debug)]
pub(super) struct Relayed {
    pub(super) stamp: Stamp,
    pub(super) frame: Bytes,
    pub(super) source: Source,
    /// The user's connections of this node have got it already.
    pub(super) delivered_here: bool,
}

/// A registration of a user at a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) peer: PeerId,
    pub(super) life: Incarnation,
    pub(super) op: u64,
}

/// What a message that waits counts for, in bytes.
pub(super) fn weight(frame: &Bytes) -> usize {
    WAITING_BYTES + frame.len()
}
