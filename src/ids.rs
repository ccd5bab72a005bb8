//! Names of things inside one node. Each is a newtype, so that one can't be passed for another.

/// A shard of this node: its position among the executors, `0..shards`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard as an index into a table that has a row for each shard.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One connection of a shard: a slab index, and the generation that tells it from earlier users of that index.
///
/// The generation has 24 bits, as many as fit beside the slot in a completion's user data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnId {
    /// Index into the shard's slabs.
    pub index: u32,
    /// How often that index has been used before, modulo 2^24.
    pub generation: u32,
}

/// A connection anywhere on this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnRef {
    /// The shard that owns its socket.
    pub shard: ShardId,
    /// Its place there.
    pub conn: ConnId,
}
