//! What this node learns of another node's lives.

use crate::time::Micros;

/// What looks at the registry have seen of a peer.
#[derive(Debug, Default)]
pub(super) struct SeenPeer {
    /// The last run of Redis in which it was entered.
    pub(super) entered_run: Option<u64>,
    /// Since when its lease is missing.
    pub(super) without_lease_since: Option<Micros>,
    /// Looks, one after the other, that did not see it at all.
    pub(super) looks_without_it: u32,
}

/// Whether what was published for a peer has reached anybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    Yes,
    /// The one before it did.
    NoLonger,
    /// Nor did the one before it.
    No,
}

/// What a life of a peer is to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meeting {
    /// One that is over.
    Past,
    /// The one that is known.
    Present,
    /// A later one.
    New,
}
