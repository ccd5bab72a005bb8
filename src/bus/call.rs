//! What the bus asks of Redis, and what it is answered: the seam between deciding (pure) and talking (the rim).
//!
//! Nothing here names a key; that is the rim's business (`keys`, `scripts`). Several calls may be under way at once, and
//! they may be answered in any order; the bus sees to it that at most one directory call of a user is.
//!
//! # The directory
//! The truth about a user is a hash of the nodes that hold the user, each with the node's incarnation and the number of
//! the operation that wrote it; `user:node:<uid>`, which services read, names the newest holder. Operations of one node
//! are numbered by (incarnation, op), which only grow: one that comes late finds a greater number and does nothing.
//!
//! # Runs
//! Redis can lose what was written: it is emptied, it restarts from an old file, a replica takes over that lacks the
//! newest writes. A *run* is the time between two such losses. A marker in Redis, random and with the time when it was
//! written, is written when it is missing or when the replication id beside it is not the server's; it comes with every
//! answer of the directory ([`Run`]). Who sees another run enters its users again, and then itself in the registry.

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
    /// The number of the operation that registered the user there last.
    pub op: u64,
}

/// The run of Redis that an answer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Run {
    /// Changes when Redis has lost data; numbered by the rim, from 1 on, for this process alone.
    pub id: u64,
    /// The run began less than 3 s ago, by Redis' clock: nodes may not have entered their users again yet.
    pub is_young: bool,
}

/// The version of the protocol that nodes speak over their links, and of their keys in Redis. A node of another version
/// is treated as a foreign node.
pub const LINK_VERSION: u16 = 2;

/// What nodes of one [`LINK_VERSION`] may support beyond it, one bit each; none yet.
pub const CAPABILITIES: u32 = 0;

/// One call to Redis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// Takes the lease of this node's id, with an incarnation greater than `after`: a new one, unless this process has
    /// the lease with such a one already, which an earlier call took whose answer was lost. Does not enter the node in
    /// the registry. Answered [`Reply::Acquired`] or [`Reply::Held`].
    Acquire {
        /// This process' life so far; 0: none yet.
        after: Incarnation,
    },
    /// Renews the lease (10 s) and `node:connections:<id>`. Takes a lease that has lapsed, unless this incarnation was
    /// declared dead or another has it. Answered [`Reply::Lease`].
    RenewLease {
        /// Ours.
        incarnation: Incarnation,
        /// Open connections of this node, all shards.
        connections: u64,
        /// The [`Run::id`] under which all users of this node are in the directory, if they are: with it the node is
        /// entered in the registry, unless the run has ended since.
        entered_run: Option<u64>,
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
    /// overwritten (`user:node:<uid>` that names a node which is not among the holders). What a later operation of this
    /// node has written stays. Answered [`Reply::Renewed`].
    Renew {
        /// Ours.
        incarnation: Incarnation,
        /// The users, each with the number of the operation that registered the user.
        users: Vec<(CompactString, u64)>,
    },
    /// Who is there: the registry with its leases, and, from `PUBSUB CHANNELS node:*`, foreign nodes. Answered
    /// [`Reply::Looked`].
    Look,
    /// Declares a life of a node dead if its lease is still missing. Answered [`Reply::Declared`].
    DeclareDead {
        /// The node.
        node: NodeId,
        /// Its life.
        incarnation: Incarnation,
        /// Although it has a lease: this life was declared dead before, and Redis has lost that.
        again: bool,
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
        /// The other holders, the oldest first; dead ones may be among them.
        others: Vec<Holder>,
        /// The run of Redis.
        run: Run,
    },
    /// A later operation of this node came first, so this one did nothing: this life was reaped.
    Superseded,
    /// The user is no longer held by us (also if it was not before).
    Unregistered,
    /// Where the user is.
    Located(Location),
    /// The users' entries are there.
    Renewed {
        /// Those that had to be put back, by their places in the call.
        restored: Vec<usize>,
        /// Those whom other nodes hold too, by their places in the call.
        others: Vec<(usize, Vec<Holder>)>,
        /// Those that a later operation has taken off, by their places in the call: this life was reaped.
        superseded: Vec<usize>,
        /// The run of Redis.
        run: Run,
    },
    /// Who is there.
    Looked {
        /// Our kind of nodes, ourselves among them.
        nodes: Vec<Seen>,
        /// Nodes that subscribe `node:<id>` and are not in the registry.
        foreign: Vec<NodeId>,
        /// The run of Redis.
        run: Run,
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
    /// The holders of our kind, the oldest first.
    pub holders: Vec<Holder>,
    /// What `user:node:<uid>` names, if that is none of the holders: a foreign node, or nothing.
    pub foreign: Option<NodeId>,
    /// The run of Redis.
    pub run: Run,
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
    /// Whether it was entered in this run of Redis; else its users may be missing in the directory.
    pub is_entered: bool,
    /// Its [`LINK_VERSION`].
    pub version: u16,
    /// Its [`CAPABILITIES`].
    pub capabilities: u32,
}
