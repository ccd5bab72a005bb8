//! Every key and channel in Redis. Pure.
//!
//! The contract's names are read by services, and hold the bare id of a user or a node. Ours begin with `rm2:`, after
//! the version of the protocol between nodes ([`super::call::LINK_VERSION`]): nodes of another version have keys of their
//! own, and meet us as foreign nodes. On a Redis Cluster a script may touch keys of one slot only, so:
//! - `rm2:{TAG}:loc:<user>` carries a tag, a number, whose slot is that of `user:node:<user>`, whatever braces the user id
//!   holds; [`Tags`] has one for each slot, and every node must have the same;
//! - what belongs to a node carries `{n:<node>}`, which is safe since a node id holds no brace ([`is_node_id`]);
//! - the run's marker is there once for each slot of users, beside that of the registry ([`RUN`], [`Tags::run`]).

use std::fmt::Write;

use compact_str::CompactString;

use super::call::Incarnation;

/// Slots of a Redis Cluster.
pub const SLOTS: usize = 16384;

/// Parts of a node's set of users, each for a range of slots: a set of 100,000 is read in small steps, and what a user's
/// registration writes is on one master of a cluster, but for the few slots beside a border between two of them.
pub const BUCKETS: usize = 64;

/// The registry of our nodes: a hash, id -> `incarnation:marker:version:capabilities`; the marker is that of the run in
/// which all users of the node were entered.
pub const REGISTRY: &str = "rm2:{nodes}:all";

/// The marker of the run, in the registry's slot: `created:text:replication id`, created in µs. On one server the only
/// one; on a cluster there is one for each slot of users, too ([`Tags::run`]).
pub const RUN: &str = "rm2:{nodes}:run";

/// The contract's channel of online and offline.
pub const USER_EVENTS: &str = "user:events";

/// What the contract's channels of nodes begin with.
pub const NODE_CHANNEL_PREFIX: &str = "node:";

/// For services: the node that holds a user.
pub fn user_node(user: &str) -> String {
    format!("user:node:{user}")
}

/// For services: the connections of a node.
pub fn node_connections(node: &str) -> String {
    format!("node:connections:{node}")
}

/// The contract's channel of a node.
pub fn node_channel(node: &str) -> String {
    format!("{NODE_CHANNEL_PREFIX}{node}")
}

/// The channel of envelopes to one of our nodes.
pub fn link(node: &str) -> String {
    format!("rm2:{{n:{node}}}:link")
}

/// The channel of a node's probes of itself; on the same server of a cluster as its link.
pub fn echo(node: &str) -> String {
    format!("rm2:{{n:{node}}}:echo")
}

/// `incarnation:token:version:capabilities` of the process that has the id, as long as it renews it.
pub fn lease(node: &str) -> String {
    format!("rm2:{{n:{node}}}:lease")
}

/// The last incarnation given out under the id.
pub fn last(node: &str) -> String {
    format!("rm2:{{n:{node}}}:last")
}

/// The set of incarnations whose users may still be in the directory.
pub fn lives(node: &str) -> String {
    format!("rm2:{{n:{node}}}:lives")
}

/// How long the slowest of the node's last probes took through Redis, in µs.
pub fn lag(node: &str) -> String {
    format!("rm2:{{n:{node}}}:lag")
}

/// There when this life was declared dead.
pub fn dead(node: &str, incarnation: Incarnation) -> String {
    format!("rm2:{{n:{node}}}:dead:{incarnation}")
}

/// Who takes a dead life's users off the directory.
pub fn claim(node: &str, incarnation: Incarnation) -> String {
    format!("rm2:{{n:{node}}}:reap:{incarnation}")
}

/// The bucket of a user whose keys have this slot.
pub fn bucket_of(slot: u16) -> usize {
    usize::from(slot) / (SLOTS / BUCKETS)
}

/// The slot of a key. Redis Cluster specification, "Hash tags": what stands between the first `{` and the first `}` after
/// it is hashed alone, unless it is empty.
pub fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        memchr::memchr(b'}', rest).filter(|length| *length > 0).map(|length| &rest[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS as u16
}

/// Whether a text can name a node of ours: no brace, colon or other character that has a meaning in a key.
pub fn is_node_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// For each slot the smallest number whose digits hash to it.
pub struct Tags {
    of_slot: Box<[u32]>,
}

impl Tags {
    /// Fills the table: some 300,000 checksums, a few milliseconds.
    pub fn new() -> Tags {
        const NONE: u32 = u32::MAX;
        let mut of_slot = vec![NONE; SLOTS].into_boxed_slice();
        let mut missing = SLOTS;
        let mut digits = itoa::Buffer::new();
        for number in 0.. {
            let place = &mut of_slot[usize::from(crc16(digits.format(number).as_bytes())) % SLOTS];
            if *place == NONE {
                *place = number;
                missing -= 1;
                if missing == 0 {
                    break;
                }
            }
        }
        Tags { of_slot }
    }

    /// The keys of a user, and their slot.
    pub fn user(&self, user: &str) -> UserKeys {
        let named = user_node(user);
        let slot = slot(named.as_bytes());
        let mut holders = String::with_capacity(user.len() + 20);
        let _ = write!(holders, "rm2:{{{}}}:loc:{user}", self.of_slot[usize::from(slot)]);
        UserKeys { named, holders, slot }
    }

    /// The users of one bucket of one life: a hash, user -> number of the operation that listed the user.
    pub fn bucket(&self, node: &str, incarnation: Incarnation, bucket: usize) -> String {
        let middle = (2 * bucket + 1) * (SLOTS / BUCKETS) / 2;
        format!("rm2:{{{}}}:users:{node}:{incarnation}", self.of_slot[middle])
    }

    /// The marker of the run, for the users of a slot of a cluster.
    pub fn run(&self, slot: u16) -> String {
        format!("rm2:{{{}}}:run", self.of_slot[usize::from(slot)])
    }

    /// A channel of that slot for somebody's own probes.
    pub fn probe(&self, slot: u16, token: u64) -> String {
        format!("rm2:{{{}}}:probe:{token:016x}", self.of_slot[usize::from(slot)])
    }
}

impl Default for Tags {
    fn default() -> Self {
        Self::new()
    }
}

/// The keys of a user: both in one slot.
pub struct UserKeys {
    /// The contract's string.
    pub named: String,
    /// The hash of the nodes that hold the user.
    pub holders: String,
    /// Their slot.
    pub slot: u16,
}

/// The node that a contract channel belongs to.
pub fn node_of_channel(channel: &str) -> Option<CompactString> {
    channel.strip_prefix(NODE_CHANNEL_PREFIX).filter(|node| !node.is_empty()).map(CompactString::from)
}

/// CRC-16/XMODEM, as Redis computes slots.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = (at as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // The check value of CRC-16/XMODEM, and slots as CLUSTER KEYSLOT of Redis 7.0 gives them.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, expected) in [
            ("somekey", 11058),
            ("foo{hash_tag}", 2515),
            ("{}foo", slot(b"{}foo")),
            ("foo{{bar}}zap", slot(b"{bar")),
            ("foo{bar}{zap}", slot(b"bar")),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_ne!(slot(b"{}foo"), slot(b""), "an empty tag is no tag");
    }

    #[test]
    fn both_keys_of_a_user_are_in_one_slot_whatever_the_user_is_called() {
        let tags = Tags::new();
        for user in
            ["alice", "", "{", "}", "{}", "{a}b", "a}b{c}", "{user:node:a}b}", "über{ü}", "a:b:c", "1}", "{{{}}}"]
        {
            let keys = tags.user(user);
            assert_eq!(slot(keys.named.as_bytes()), keys.slot, "{user}");
            assert_eq!(slot(keys.holders.as_bytes()), keys.slot, "{user}");
        }
        for slot_number in 0..SLOTS {
            let tag = tags.of_slot[slot_number].to_string();
            assert_eq!(usize::from(slot(tag.as_bytes())), slot_number);
            assert_eq!(usize::from(slot(tags.probe(slot_number as u16, 7).as_bytes())), slot_number);
            assert_eq!(usize::from(slot(tags.run(slot_number as u16).as_bytes())), slot_number);
        }
    }

    #[test]
    fn what_belongs_to_a_node_is_in_one_slot() {
        let slot = |key: String| slot(key.as_bytes());
        let all = [lease("a-1"), last("a-1"), lives("a-1"), dead("a-1", 7), claim("a-1", 7), link("a-1"), lag("a-1")];
        let all = all.map(slot);
        assert_eq!(all, [all[0]; 7]);
        assert_eq!(slot(REGISTRY.to_owned()), slot(RUN.to_owned()));
        assert!(is_node_id("node-1.eu_west") && !is_node_id("a:b") && !is_node_id("a{b}") && !is_node_id(""));
    }

    #[test]
    fn buckets_are_used_evenly_and_are_among_the_slots_of_their_users() {
        let tags = Tags::new();
        let mut users = [0; BUCKETS];
        for at in 0..64_000 {
            let of_user = tags.user(&format!("user-{at}")).slot;
            let bucket = bucket_of(of_user);
            users[bucket] += 1;
            let of_bucket = slot(tags.bucket("a-1", 7, bucket).as_bytes());
            assert!(bucket_of(of_bucket) == bucket && of_bucket.abs_diff(of_user) <= 128);
        }
        assert!(users.iter().all(|count| (800..1200).contains(count)), "{users:?}");
    }
}
