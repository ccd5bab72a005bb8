//! What can be read in Redis about a cluster, by somebody who is no node of it. Data only; [`super::redis`] reads it.

use std::time::Duration;

use super::call::{Incarnation, NodeId};

/// What a server was asked for; `None` when it did not answer, which is not to say that there is nothing.
pub type Known<T> = Option<T>;

/// One look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// All that have an entry in the registry, or hear the contract's channel of a node; by name.
    pub nodes: Vec<NodeFound>,
    /// The masters that answer.
    pub servers: Vec<ServerFound>,
    /// Why others do not. What they have is not known.
    pub out_of_reach: Vec<String>,
}

/// What there is of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFound {
    /// Its name.
    pub node: NodeId,
    /// The life that the registry names; also `None` when the registry is not known.
    pub registered: Option<Incarnation>,
    /// Its lease.
    pub lease: Known<Option<Lease>>,
    /// Lives whose users may be in the directory; without any, a node that nobody knows otherwise is a foreign one.
    pub lives: Known<Vec<LifeFound>>,
    /// `node:connections:<node>`.
    pub connections: Known<Option<u64>>,
    /// What the node has written of its own probes.
    pub lag: Known<Option<Duration>>,
    /// Whether somebody hears its contract channel.
    pub hears_contract: Known<bool>,
    /// Whether somebody hears its link.
    pub hears_link: Known<bool>,
}

/// A lease that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The life that has it.
    pub incarnation: Incarnation,
    /// How long it holds unless it is renewed.
    pub left: Duration,
}

/// What there is of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifeFound {
    /// Which.
    pub incarnation: Incarnation,
    /// Whether it was declared dead.
    pub is_declared_dead: Known<bool>,
    /// Users that it has listed.
    pub users: Known<u64>,
}

/// A master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFound {
    /// `host:port`.
    pub address: String,
    /// How long messages to ourselves took through it, sorted; never empty.
    pub round_trips: Vec<Duration>,
}
