//! Envelopes: what one of our nodes publishes to another, as bytes.
//!
//! An envelope is a header of fixed size for its sender, and items behind each other. Numbers are little-endian.
//!
//! ```text
//! magic 3 | link version 1 | flags 1 | from: length 1, name | from process 8 | from incarnation 8 | to incarnation 8
//!         | ack 8 | first seq 8 | count 4
//! item: kind 1 | flags 1 | user: length 2, name | number 8 | place 8 | origin: length 1, name, process 8 if there is a name
//!         | frame: length 4, bytes
//! ```
//!
//! All items have one shape, so that a node skips kinds that it does not know.

use bytes::{Bytes, BytesMut};
use compact_str::CompactString;

use super::call::{Incarnation, LINK_VERSION, NodeId};

const MAGIC: [u8; 4] = [b'r', b'm', b'L', LINK_VERSION as u8];
const _: () = assert!(LINK_VERSION <= u8::MAX as u16);
/// Bytes of a header beside the sender's name.
const HEADER_BYTES: usize = 4 + 1 + 1 + 8 + 8 + 8 + 8 + 8 + 4;
/// Bytes of an item beside its user, its origin and its frame.
pub const ITEM_BYTES: usize = 1 + 1 + 2 + 8 + 8 + 1 + 4;
/// The longest name of a node, in bytes: what its length field holds.
pub const NODE_ID_BYTES_MAX: usize = 255;

/// The sender has seen a later item than the one after `ack`.
const FLAG_GAP: u8 = 1;
/// Its items only settle others: to acknowledge them is not urgent.
const FLAG_LAZY: u8 = 2;

/// What stands before the items.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Who sends.
    pub from: NodeId,
    /// The sender's process: its first incarnation, which stays when it takes a new one.
    pub from_process: Incarnation,
    /// The sender's life.
    pub from_incarnation: Incarnation,
    /// The receiver's life, as the sender knows it; 0 when it does not.
    pub to_incarnation: Incarnation,
    /// The number of the last item of that life that the sender has handled, and all before it.
    pub ack: u64,
    /// Whether the sender has seen a later item than the one after `ack`.
    pub gap: bool,
    /// Whether to acknowledge these items is not urgent.
    pub lazy: bool,
    /// The number of the first item; they count from 1.
    pub first_seq: u64,
    /// How many items follow.
    pub count: u32,
}

/// What an item is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A message to a user, for the receiver to deliver and to push to the user's other holders. Its number is that of the
    /// registration that it is meant for; its place the origin's. Answered by [`Kind::Settled`] or [`Kind::Returned`].
    Unicast = 1,
    /// A message to a user that the user's relay pushes to another holder: it goes no further, and nothing answers it.
    Push = 2,
    /// A message to all users of the receiving node; its place is among the sender's broadcasts.
    Broadcast = 3,
    /// Unicasts of the receiver have been delivered, by the sender and by all other holders. Its frame is the ranges of their
    /// numbers on the link, first and last, 8 bytes each.
    Settled = 4,
    /// A unicast of the receiver found the user gone; its number is the one that it had on the link.
    Returned = 5,
    /// Unicasts of the receiver have been delivered by the sender, and other holders have yet to confirm them. Its frame is as
    /// that of [`Kind::Settled`].
    Delivered = 12,
    /// The sender holds the user too, from now on: by the registration `place`. Its number is the question's.
    Join = 6,
    /// The answer to a join, with its number: the receiver of the join holds the user, by the registration `place`, and
    /// pushes what comes for the user.
    Holds = 7,
    /// The answer to a join, with its number: it does not hold the user.
    HoldsNot = 8,
    /// The sender does not hold the user any more; its number is the last registration.
    Left = 9,
    /// The sender has a new life; its number is 1 when it is in the registry.
    Hello = 10,
    /// The sender is about to end; it holds nobody.
    Bye = 11,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        const KINDS: [Kind; 12] = [
            Kind::Unicast,
            Kind::Push,
            Kind::Broadcast,
            Kind::Settled,
            Kind::Returned,
            Kind::Delivered,
            Kind::Join,
            Kind::Holds,
            Kind::HoldsNot,
            Kind::Left,
            Kind::Hello,
            Kind::Bye,
        ];
        KINDS.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// The node on which a message began, and its process there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin<N> {
    /// The node; empty when it is the sender of the envelope.
    pub node: N,
    /// Its process; 0 when the node is empty.
    pub process: Incarnation,
}

/// One item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// What it is; `None` when this version does not know it.
    pub kind: Option<Kind>,
    /// None yet.
    pub flags: u8,
    /// The user, where it is about one.
    pub user: CompactString,
    /// What it means depends on the kind.
    pub number: u64,
    /// Of messages: the origin's number of it, among all that the origin's process sends.
    pub place: u64,
    /// Of messages that are pushed: where they began.
    pub origin: Origin<NodeId>,
    /// The server frame, of messages.
    pub frame: Bytes,
}

/// An item to be written.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// What it is.
    pub kind: Kind,
    /// As in [`Item`], like all that follows.
    pub user: &'a str,
    /// The number.
    pub number: u64,
    /// The place.
    pub place: u64,
    /// The origin.
    pub origin: Origin<&'a str>,
    /// The frame.
    pub frame: &'a [u8],
}

impl<'a> Draft<'a> {
    /// An item of this kind with a number, and nothing else.
    pub fn of(kind: Kind, number: u64) -> Self {
        Self { kind, user: "", number, place: 0, origin: Origin::default(), frame: b"" }
    }

    /// An item of this kind about a user.
    pub fn about(kind: Kind, user: &'a str, number: u64, place: u64) -> Self {
        Self { user, place, ..Self::of(kind, number) }
    }
}

impl Item {
    /// The same, to be written again; `None` for an item of a later version.
    pub fn as_draft(&self) -> Option<Draft<'_>> {
        let Self { kind, flags: _, ref user, number, place, ref origin, ref frame } = *self;
        let origin = Origin { node: origin.node.as_str(), process: origin.process };
        Some(Draft { kind: kind?, user, number, place, origin, frame })
    }
}

/// Appends an item.
pub fn write_item(item: &Draft<'_>, out: &mut BytesMut) {
    let Draft { kind, user, number, place, origin, frame } = *item;
    out.reserve(ITEM_BYTES + user.len() + origin.node.len() + 8 + frame.len());
    out.extend_from_slice(&[kind as u8, 0]);
    out.extend_from_slice(&(user.len() as u16).to_le_bytes());
    out.extend_from_slice(user.as_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&place.to_le_bytes());
    out.extend_from_slice(&[origin.node.len() as u8]);
    if !origin.node.is_empty() {
        out.extend_from_slice(origin.node.as_bytes());
        out.extend_from_slice(&origin.process.to_le_bytes());
    }
    out.extend_from_slice(&(frame.len() as u32).to_le_bytes());
    out.extend_from_slice(frame);
}

/// Bytes of the header of a node with this name.
pub fn header_bytes(from: &str) -> usize {
    HEADER_BYTES + from.len()
}

/// Writes a header into the first [`header_bytes`] bytes of `out`.
pub fn write_header(header: &Header, out: &mut [u8]) {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&MAGIC);
    let flags = if header.gap { FLAG_GAP } else { 0 } | if header.lazy { FLAG_LAZY } else { 0 };
    put(&[flags, header.from.len() as u8]);
    put(header.from.as_bytes());
    put(&header.from_process.to_le_bytes());
    put(&header.from_incarnation.to_le_bytes());
    put(&header.to_incarnation.to_le_bytes());
    put(&header.ack.to_le_bytes());
    put(&header.first_seq.to_le_bytes());
    put(&header.count.to_le_bytes());
}

/// How many items an envelope of the node with this name has.
pub fn count(from: &str, envelope: &[u8]) -> u32 {
    let end = header_bytes(from);
    envelope.get(end - 4..end).and_then(|count| count.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Reads an envelope: its header, and the bytes of its items. `None` when it is none of ours.
pub fn read(envelope: &Bytes) -> Option<(Header, Bytes)> {
    let mut rest = Reader(envelope);
    if rest.take(4)? != MAGIC {
        return None;
    }
    let flags = rest.byte()?;
    let name_bytes = usize::from(rest.byte()?);
    let from = CompactString::from_utf8(rest.take(name_bytes)?).ok().filter(|name| !name.is_empty())?;
    let header = Header {
        from,
        from_process: rest.number()?,
        from_incarnation: rest.number()?,
        to_incarnation: rest.number()?,
        ack: rest.number()?,
        gap: flags & FLAG_GAP != 0,
        lazy: flags & FLAG_LAZY != 0,
        first_seq: rest.number()?,
        count: u32::from_le_bytes(rest.take(4)?.try_into().ok()?),
    };
    let items = envelope.slice(envelope.len() - rest.0.len()..);
    Some((header, items))
}

/// Takes the first item off; `None` when what follows is no item.
pub fn take_item(items: &mut Bytes) -> Option<Item> {
    let mut rest = Reader(items);
    let kind = Kind::read(rest.byte()?);
    let flags = rest.byte()?;
    let user_bytes = usize::from(u16::from_le_bytes(rest.take(2)?.try_into().ok()?));
    let user = CompactString::from_utf8(rest.take(user_bytes)?).ok()?;
    let (number, place) = (rest.number()?, rest.number()?);
    let origin = match usize::from(rest.byte()?) {
        0 => Origin::default(),
        bytes => Origin { node: CompactString::from_utf8(rest.take(bytes)?).ok()?, process: rest.number()? },
    };
    let frame_bytes = u32::from_le_bytes(rest.take(4)?.try_into().ok()?) as usize;
    rest.take(frame_bytes)?;
    let end = items.len() - rest.0.len();
    let frame = items.slice(end - frame_bytes..end);
    bytes::Buf::advance(items, end);
    Some(Item { kind, flags, user, number, place, origin, frame })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope(header: &Header, items: &[Item]) -> Bytes {
        let mut out = BytesMut::zeroed(header_bytes(&header.from));
        for item in items {
            write_item(&item.as_draft().unwrap(), &mut out);
        }
        let header_end = header_bytes(&header.from);
        write_header(header, &mut out[..header_end]);
        out.freeze()
    }

    fn sample() -> (Header, Vec<Item>) {
        let header = Header {
            from: "node-1".into(),
            from_process: 16,
            from_incarnation: 17,
            to_incarnation: u64::MAX,
            ack: 3,
            gap: true,
            lazy: false,
            first_seq: 4,
            count: 2,
        };
        let item = |kind, user: &str, frame: &'static [u8]| Item {
            kind: Some(kind),
            flags: 0,
            user: user.into(),
            number: 5,
            place: 7,
            origin: if user.is_empty() { Origin::default() } else { Origin { node: "node-2".into(), process: 6 } },
            frame: Bytes::from_static(frame),
        };
        (header, vec![item(Kind::Push, "böb", b"\x81\x02{}"), item(Kind::Hello, "", b"")])
    }

    #[test]
    fn what_is_written_is_read() {
        let (header, items) = sample();
        let (read_header, mut rest) = read(&envelope(&header, &items)).unwrap();
        assert_eq!(read_header, header);
        for item in items {
            assert_eq!(take_item(&mut rest), Some(item));
        }
        assert!(rest.is_empty());
        assert_eq!(take_item(&mut rest), None);
    }

    #[test]
    fn an_item_of_a_later_version_is_passed_over() {
        let (header, items) = sample();
        let envelope = envelope(&header, &items);
        let mut changed = envelope.to_vec();
        changed[header_bytes("node-1")] = 200;
        let (_, mut rest) = read(&Bytes::from(changed)).unwrap();
        assert_eq!(take_item(&mut rest).unwrap().kind, None);
        assert_eq!(take_item(&mut rest).unwrap().kind, Some(Kind::Hello));
    }

    proptest! {
        #[test]
        fn junk_is_refused_without_harm(junk in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..120, with_magic: bool) {
            let (header, items) = sample();
            let whole = envelope(&header, &items);
            let mut bytes = whole[..cut.min(whole.len())].to_vec();
            if with_magic { bytes.extend(&junk) } else { bytes = junk }
            if let Some((_, mut rest)) = read(&Bytes::from(bytes)) {
                while let Some(item) = take_item(&mut rest) {
                    prop_assert!(item.frame.len() < 400);
                }
            }
        }
    }
}
