//! What crosses from shard to shard, in the three classes of the mesh.
//!
//! *To-home* asks the shard that decides about a name; handling one may need room towards owners. *To-owner* ends at
//! sockets and never causes a message to another shard; that order keeps the mesh free of deadlock. *Broadcasts* end
//! at sockets too, and have a class of their own so that a shard that holds them back holds back nothing else.

use bytes::Bytes;
use compact_str::CompactString;

use crate::ids::{ConnId, ConnRef, ShardId};
use crate::time::Micros;

use super::effects::Origin;
use super::limiter::AddressKey;

/// A user id with its hash, computed once when the name arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserKey {
    /// Keyed by the node's own random seeds: no client can aim at a bucket.
    pub hash: u64,
    /// The user id.
    pub name: CompactString,
}

/// The shard that decides about a name with this hash.
pub fn home_of(hash: u64, shards: u16) -> ShardId {
    // The upper half spreads over the shards; the tables use the lower bits and the top seven.
    let spread = (hash >> 24) & 0xffff_ffff;
    ShardId(((spread * u64::from(shards)) >> 32) as u16)
}

/// A message to the shard that decides about a user or an address.
#[derive(Debug)]
pub enum ToHome {
    /// A client at this address asks for `/ws`.
    Admit {
        /// Whom to count it for.
        address: AddressKey,
        /// Who waits for the answer.
        conn: ConnRef,
    },
    /// The user has one more connection.
    Register {
        /// The user.
        user: UserKey,
        /// The connection, which waits for the answer.
        conn: ConnRef,
    },
    /// The connection of the user is gone.
    Unregister {
        /// The user.
        user: UserKey,
        /// The connection.
        conn: ConnRef,
    },
    /// A message to a user.
    Unicast {
        /// The user that gets it.
        target: UserKey,
        /// The server frame as it goes to each connection of the user.
        frame: Bytes,
        /// Who said it.
        sender: ConnRef,
        /// When the sender's bytes arrived.
        received: Micros,
    },
}

/// A message to the shard that owns a connection.
#[derive(Debug)]
pub enum ToOwner {
    /// The answer to [`ToHome::Admit`].
    Admitted {
        /// Who asked.
        conn: ConnId,
        /// When to try again, in seconds, if not now.
        refused_for: Option<u32>,
    },
    /// The answer to [`ToHome::Register`]: from here on deliveries come.
    Registered {
        /// Who asked.
        conn: ConnId,
    },
    /// A delivery.
    Deliver {
        /// The connections on this shard.
        conns: Conns,
        /// The server frame.
        frame: Bytes,
        /// Where it comes from.
        origin: Origin,
    },
    /// The other answer to [`ToHome::Register`]: the user could not be registered with the other nodes in time.
    Unavailable {
        /// Who asked.
        conn: ConnId,
    },
    /// A message of this connection could not be taken: the client is answered with the error `overloaded`.
    Refused {
        /// Who sent it.
        conn: ConnId,
    },
}

/// One connection, mostly, without an allocation.
#[derive(Debug)]
pub enum Conns {
    /// The user has one connection here.
    One(ConnId),
    /// The user has several.
    Many(Vec<ConnId>),
}

impl Conns {
    /// All of them.
    pub fn as_slice(&self) -> &[ConnId] {
        match self {
            Self::One(conn) => std::slice::from_ref(conn),
            Self::Many(conns) => conns,
        }
    }
}

/// A message to every connection of a shard.
#[derive(Clone, Debug)]
pub struct Broadcast {
    /// The server frame.
    pub frame: Bytes,
    /// When the sender's bytes arrived.
    pub received: Micros,
}

/// A class of the mesh; each pair of shards has credits for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Carries [`ToHome`].
    Home,
    /// Carries [`ToOwner`].
    Owner,
    /// Carries [`Broadcast`].
    Broadcast,
}

/// How many classes there are.
pub const CLASSES: usize = 3;

/// What a message counts for beside its frame, in bytes: about what it takes in an outbox.
pub const MESSAGE_WEIGHT: u64 = 96;

/// What a message counts for against the credits of its class, in bytes.
pub trait Weigh {
    /// Its weight, in bytes.
    fn weight(&self) -> u64;
}

impl Weigh for ToHome {
    fn weight(&self) -> u64 {
        match self {
            Self::Unicast { frame, .. } => MESSAGE_WEIGHT + frame.len() as u64,
            Self::Admit { .. } | Self::Register { .. } | Self::Unregister { .. } => MESSAGE_WEIGHT,
        }
    }
}

impl Weigh for ToOwner {
    fn weight(&self) -> u64 {
        match self {
            Self::Deliver { conns, frame, .. } => MESSAGE_WEIGHT + (frame.len() + size_of_val(conns.as_slice())) as u64,
            Self::Admitted { .. } | Self::Registered { .. } | Self::Unavailable { .. } | Self::Refused { .. } => {
                MESSAGE_WEIGHT
            }
        }
    }
}

impl Weigh for Broadcast {
    fn weight(&self) -> u64 {
        MESSAGE_WEIGHT + self.frame.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_spread_over_all_shards() {
        for shards in [1, 2, 3, 7, 64] {
            let mut counts = vec![0u32; usize::from(shards)];
            let mut hash = 1u64;
            for _ in 0..64_000 {
                hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                counts[home_of(hash, shards).index()] += 1;
            }
            let fair = 64_000 / u32::from(shards);
            assert!(counts.iter().all(|&count| count > fair / 2 && count < fair * 2), "{shards}: {counts:?}");
        }
    }
}
