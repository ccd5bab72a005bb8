//! What crosses between the shards and the bus: the seam to other nodes, as the hub sees it.
//!
//! Each shard has one queue to the bus and one from it, both in order and bounded in bytes. The hub knows nothing of
//! Redis, of nodes or of links: it asks the bus to have a user registered, hands over messages for users who are not
//! here (or not only here), and takes what the bus brings.

use bytes::Bytes;

use crate::ids::ConnRef;

use super::envelope::{MESSAGE_WEIGHT, UserKey, Weigh};

/// What a message of the bus is handed back by; 0 of one that nobody asks after.
pub type Ticket = u64;

/// From a shard to the bus.
#[derive(Debug)]
pub enum ToBus {
    /// The user's first connection of this node asks to open. Answered [`FromBus::Registered`] or
    /// [`FromBus::NotRegistered`]; until then the home keeps what comes for the user.
    Arrived {
        /// The user.
        user: UserKey,
    },
    /// The user's last connection of this node is gone. It cancels an [`ToBus::Arrived`] that was not answered yet,
    /// and then no answer comes.
    Left {
        /// The user.
        user: UserKey,
    },
    /// A message of one of this node's clients to a user whom other nodes may hold.
    Unicast {
        /// The user that gets it.
        target: UserKey,
        /// The server frame.
        frame: Bytes,
        /// Who is told when there is no room.
        sender: ConnRef,
        /// Whether the user's connections of this node have got it already.
        delivered_here: bool,
    },
    /// A message that the bus brought found its user gone.
    Returned {
        /// The message's.
        ticket: Ticket,
    },
    /// A message of one of this node's clients to all users of all other nodes.
    Broadcast {
        /// The server frame.
        frame: Bytes,
    },
    /// The answer to [`FromBus::Fence`].
    Fenced {
        /// Its number.
        fence: u64,
    },
}

/// From the bus to a shard.
#[derive(Debug)]
pub enum FromBus {
    /// To the user's home: the user can be reached from every node, and may open.
    Registered {
        /// The user.
        user: UserKey,
        /// Whether other nodes hold the user too.
        elsewhere: bool,
    },
    /// To the user's home: the user could not be registered in time. Connections that wait are answered 503, what was
    /// kept for the user goes to the bus, and the user counts as left, without a [`ToBus::Left`].
    NotRegistered {
        /// The user.
        user: UserKey,
    },
    /// To the user's home: whether other nodes hold the user too has changed.
    Elsewhere {
        /// The user.
        user: UserKey,
        /// Whether they do.
        elsewhere: bool,
    },
    /// To the user's home: a message for the user.
    Unicast {
        /// The user.
        target: UserKey,
        /// The server frame.
        frame: Bytes,
        /// Handed back in [`ToBus::Returned`] when nobody is here to take the message.
        ticket: Ticket,
        /// The bus is about to register the user, and the answer will follow: a home whose connections of the user
        /// still wait keeps the message, and delivers it before what it kept of this node's own. Without this mark the
        /// message is for an earlier stay of the user, and a home that waits hands it back. After
        /// [`FromBus::NotRegistered`], what was kept by this mark is handed back too.
        early: bool,
    },
    /// To every shard: a message for all of its connections.
    Broadcast {
        /// The server frame.
        frame: Bytes,
    },
    /// To the shard that owns the sender's connection: a message of its could not be taken. The client is answered
    /// with the error `overloaded`.
    Overloaded {
        /// The connection.
        sender: ConnRef,
    },
    /// To any shard: answer once everything before it was handled.
    Fence {
        /// Its number.
        fence: u64,
    },
}

impl Weigh for ToBus {
    fn weight(&self) -> u64 {
        match self {
            Self::Unicast { frame, .. } | Self::Broadcast { frame } => MESSAGE_WEIGHT + frame.len() as u64,
            Self::Arrived { .. } | Self::Left { .. } | Self::Returned { .. } | Self::Fenced { .. } => MESSAGE_WEIGHT,
        }
    }
}

impl Weigh for FromBus {
    fn weight(&self) -> u64 {
        match self {
            Self::Unicast { frame, .. } | Self::Broadcast { frame } => MESSAGE_WEIGHT + frame.len() as u64,
            Self::Registered { .. }
            | Self::NotRegistered { .. }
            | Self::Elsewhere { .. }
            | Self::Overloaded { .. }
            | Self::Fence { .. } => MESSAGE_WEIGHT,
        }
    }
}
