//! What the bus asks of Redis, and what it is answered: the seam between deciding (pure) and talking (the rim).
//!
//! Nothing here names a key; that is the rim's business (`keys`, `scripts`). Several calls may be under way at once, and
//! they may be answered in any order; the bus sees to it that at most one directory call of a user is.
//!
//! # The directory
//! The truth about a user is a hash of the nodes that hold the user, each with the node's incarnation, the number of the
//! operation that wrote it, and a version; `user:node:<uid>`, which services read, names the newest holder. Operations
//! of one node are numbered by (incarnation, op), which only grow: one that comes late finds a greater number and does
//! nothing. The version of a user grows with every change of the hash.

use bytes::Bytes;
use compact_str::CompactString;

/// The name of a node in the cluster.
pub type NodeId = CompactString;

/// Which life of a node: greater than those before it, whatever happens to clocks and to Redis; never 0.
pub type Incarnation = u64;

/// The number of a call, by which its reply is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CallId(pub u64);

/// A node that holds a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
}

/// One call to Redis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// Takes the lease of this node's id, with a new incarnation, and enters the node in the registry.
    /// Answered [`Reply::Acquired`] or [`Reply::Held`].
    Acquire,
    /// Renews the lease (10 s) and `node:connections:<id>`. Takes a lease that has lapsed, unless this incarnation was
    /// declared dead or another has it. Answered [`Reply::Lease`].
    RenewLease {
        /// Ours.
        incarnation: Incarnation,
        /// Open connections of this node, all shards.
        connections: u64,
    },
    /// Gives up the lease, the registry's entry and the counter, if they are still this incarnation's. Answered
    /// [`Reply::Done`].
    Release {
        /// Ours.
        incarnation: Incarnation,
    },
    /// Enters this node as a holder of the user: bucket set first, then the directory. Answered [`Reply::Registered`]
    /// or [`Reply::Superseded`].
    Register {
        /// The user.
        user: CompactString,
        /// Ours.
        incarnation: Incarnation,
        /// The number of this operation.
        op: u64,
    },
    /// Takes this node off the user's holders (compare, then delete; a tombstone of 60 s carries the number), promotes
    /// another holder in `user:node:<uid>`, publishes offline when none is left, or, with a grace, leaves a deadline in
    /// the hash; then takes the user off the bucket set. Answered [`Reply::Unregistered`].
    Unregister {
        /// The user.
        user: CompactString,
        /// Ours.
        incarnation: Incarnation,
        /// The number of this operation.
        op: u64,
        /// How long to wait for a reconnect before the user counts as offline, in milliseconds; 0: not at all.
        grace_ms: u64,
    },
    /// The grace of a user should be over: publishes offline if nobody holds the user and the deadline has passed, and
    /// takes the user off the bucket set. Answered [`Reply::Done`].
    EndGrace {
        /// The user.
        user: CompactString,
        /// Ours.
        incarnation: Incarnation,
    },
    /// Where the user is. Answered [`Reply::Located`].
    Locate {
        /// The user.
        user: CompactString,
    },
    /// Renews the TTL (3600 s) of users that this node holds, and puts back, silently, what is missing or was
    /// overwritten (`user:node:<uid>` that names a node which is not among the holders). Answered [`Reply::Renewed`].
    Renew {
        /// Ours.
        incarnation: Incarnation,
        /// The users, each with the number of the operation that registered the user.
        users: Vec<(CompactString, u64)>,
    },
    /// Who is there: the registry with its leases, and, from `PUBSUB CHANNELS node:*`, foreign nodes. Answered
    /// [`Reply::Looked`].
    Look,
    /// Declares a node dead if its lease is still missing. Answered [`Reply::Declared`].
    DeclareDead {
        /// The node.
        node: NodeId,
        /// Its life.
        incarnation: Incarnation,
    },
    /// Takes all users of a dead life of a node off the directory, with their events, and then its buckets, counter and
    /// registry entry (if that names this life). Runs as long as it takes; one node at a time does it (a claim that
    /// expires). Answered [`Reply::Reaped`].
    Reap {
        /// The node.
        node: NodeId,
        /// The life that ended.
        incarnation: Incarnation,
    },
    /// Publishes an envelope on a node's link channel. Answered [`Reply::Published`].
    PublishLink {
        /// The node.
        node: NodeId,
        /// The bytes.
        envelope: Bytes,
    },
    /// Publishes JSON on the contract's channel `node:<id>`. Answered [`Reply::Published`].
    PublishContract {
        /// The node.
        node: NodeId,
        /// The text.
        json: Bytes,
    },
    /// Subscribes `user:events`, or unsubscribes. Answered [`Reply::Done`].
    HearEvents {
        /// Whether to hear them.
        on: bool,
    },
}

/// The answer to a [`Call`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The connection failed, or Redis refused: whether the call had an effect is not known.
    Failed,
    /// It was done.
    Done,
    /// The lease is ours.
    Acquired {
        /// Our new life.
        incarnation: Incarnation,
        /// Earlier lives of this id whose users are to be reaped.
        earlier: Vec<Incarnation>,
    },
    /// Another process has the lease.
    Held {
        /// Its life.
        incarnation: Incarnation,
        /// When the lease lapses unless it is renewed, in milliseconds.
        lapses_ms: u64,
    },
    /// How it stands with our lease.
    Lease(LeaseState),
    /// The user is registered.
    Registered {
        /// The user's version after it.
        version: u64,
        /// The other holders, the oldest first; dead ones may be among them.
        others: Vec<Holder>,
    },
    /// A later operation of this node came first, so this one did nothing.
    Superseded,
    /// The user is no longer held by us (also if it was not before).
    Unregistered,
    /// Where the user is.
    Located(Location),
    /// How many of the users had to be put back.
    Renewed {
        /// Their number.
        restored: u64,
    },
    /// Who is there.
    Looked {
        /// Our kind of nodes, ourselves among them.
        nodes: Vec<Seen>,
        /// Nodes that subscribe `node:<id>` and are not in the registry.
        foreign: Vec<NodeId>,
    },
    /// Whether it is dead now, by this call or an earlier one.
    Declared(bool),
    /// All users of that life are off the directory; `false` when another node is at it.
    Reaped(bool),
    /// Published, to so many subscribers. On a Redis Cluster the count of the server that was asked.
    Published {
        /// Subscribers.
        receivers: u64,
    },
}

/// How it stands with our lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseState {
    /// Ours, for another 10 s.
    Ours,
    /// Another life of this id has it.
    Taken,
    /// This life was declared dead.
    Dead,
}

/// Where a user is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Location {
    /// The user's version; 0 when nobody of our kind holds the user.
    pub version: u64,
    /// The holders of our kind, the oldest first: that one is the user's primary, who decides the order.
    pub holders: Vec<Holder>,
    /// What `user:node:<uid>` names, if that is none of the holders: a foreign node, or nothing.
    pub foreign: Option<NodeId>,
}

/// A node in the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The node.
    pub node: NodeId,
    /// Its life, as the registry has it.
    pub incarnation: Incarnation,
    /// Whether that life's lease is there.
    pub has_lease: bool,
}
