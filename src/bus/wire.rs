//! Envelopes: what one of our nodes publishes to another, as bytes.
//!
//! An envelope is a header of fixed size for its sender, and items behind each other. Numbers are little-endian.
//!
//! ```text
//! magic 4 | flags 1 | from: length 1, name | from incarnation 8 | to incarnation 8 | ack 8 | first seq 8 | count 4
//! item: kind 1 | flags 1 | user: length 2, name | number 8 | origin: length 1, name | stream 8 | place 8 | frame: length 4, bytes
//! ```
//!
//! All items have one shape, so that a node skips kinds that it does not know.

use bytes::{Bytes, BytesMut};
use compact_str::CompactString;

use super::call::{Incarnation, NodeId};

const MAGIC: [u8; 4] = *b"rmB2";
/// Bytes of a header beside the sender's name.
const HEADER_BYTES: usize = 4 + 1 + 1 + 8 + 8 + 8 + 8 + 4;
/// Bytes of an item beside its user, its origin and its frame.
pub const ITEM_BYTES: usize = 1 + 1 + 2 + 8 + 1 + 8 + 8 + 4;
/// The longest name of a node, in bytes: what its length field holds.
pub const NODE_ID_BYTES_MAX: usize = 255;

const FLAG_GAP: u8 = 1;

/// What stands before the items.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Who sends.
    pub from: NodeId,
    /// The sender's life.
    pub from_incarnation: Incarnation,
    /// The receiver's life, as the sender knows it; 0 when it does not.
    pub to_incarnation: Incarnation,
    /// The number of the last item of that life that the sender has handled, and all before it.
    pub ack: u64,
    /// Whether the sender has seen a later item than the one after `ack`.
    pub gap: bool,
    /// The number of the first item; they count from 1.
    pub first_seq: u64,
    /// How many items follow.
    pub count: u32,
}

/// What an item is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A message to a user; its number is the user's version as the sender knows it.
    Unicast = 1,
    /// A message to all users of the receiving node.
    Broadcast = 2,
    /// A message of the receiver's own that found nobody here; its number is the one it had on the way here.
    Bounce = 3,
    /// The sender wants to know when everything it sent for a user has been handled or has bounced; its number is the
    /// fence's.
    Fence = 4,
    /// The answer to a fence, with its number.
    Fenced = 5,
    /// The sender holds the user too, from now on; its number is a fence's, its frame the user's version as 8 bytes.
    Join = 6,
    /// The answer to a join: the receiver of the join holds the user, and passes on what comes for the user.
    Joined = 7,
    /// The answer to a join: it does not hold the user.
    NotJoined = 8,
    /// The sender is new, or has a new life.
    Hello = 9,
    /// Before the answer to a join, with its number: where one of the streams to the user begins for who joins. Its frame
    /// is a place as 8 bytes: what is from there to before the beginning has been delivered.
    Begins = 10,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        const KINDS: [Kind; 10] = [
            Kind::Unicast,
            Kind::Broadcast,
            Kind::Bounce,
            Kind::Fence,
            Kind::Fenced,
            Kind::Join,
            Kind::Joined,
            Kind::NotJoined,
            Kind::Hello,
            Kind::Begins,
        ];
        KINDS.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// A copy that a holder of the user passes on to the others: it goes no further.
pub const FORWARDED: u8 = 1;
/// The sending node holds the user and has delivered the message to its own connections.
pub const SENDER_HOLDS: u8 = 2;
/// A fence that waits for no answer: the directory says that the receiver holds the user, and the receiver does not.
pub const STALE: u8 = 4;
/// A fence for copies that a holder has passed on: who has it waits for no other node.
pub const RELAYED: u8 = 16;
/// A copy that is the only one: if it finds nobody, and the holder that passed it on has left, it follows the user.
pub const ONLY: u8 = 8;

/// One item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// What it is; `None` when this version does not know it.
    pub kind: Option<Kind>,
    /// [`FORWARDED`] and [`SENDER_HOLDS`], of messages.
    pub flags: u8,
    /// The user, where it is about one.
    pub user: CompactString,
    /// What it means depends on the kind.
    pub number: u64,
    /// Of messages to users, and of streams: the node whose clients say them; empty when that is the envelope's sender.
    pub origin: NodeId,
    /// Which of the origin's streams to the user it belongs to, and its place there ([`crate::hub::bus::Stamp`]).
    pub stream: u64,
    /// Its place in the stream.
    pub place: u64,
    /// The server frame, of messages.
    pub frame: Bytes,
}

/// An item to be written.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// What it is.
    pub kind: Kind,
    /// As in [`Item`], like all that follows.
    pub flags: u8,
    /// The user.
    pub user: &'a str,
    /// The number.
    pub number: u64,
    /// The origin.
    pub origin: &'a str,
    /// The stream.
    pub stream: u64,
    /// The place in it.
    pub place: u64,
    /// The frame.
    pub frame: &'a [u8],
}

impl<'a> Draft<'a> {
    /// An item that belongs to no stream.
    pub fn plain(kind: Kind, flags: u8, user: &'a str, number: u64, frame: &'a [u8]) -> Self {
        Self { kind, flags, user, number, origin: "", stream: 0, place: 0, frame }
    }
}

impl Item {
    /// The same, to be written again; `None` for an item of a later version.
    pub fn as_draft(&self) -> Option<Draft<'_>> {
        let Self { kind, flags, ref user, number, ref origin, stream, place, ref frame } = *self;
        Some(Draft { kind: kind?, flags, user, number, origin, stream, place, frame })
    }
}

/// Appends an item.
pub fn write_item(item: &Draft<'_>, out: &mut BytesMut) {
    let Draft { kind, flags, user, number, origin, stream, place, frame } = *item;
    out.reserve(ITEM_BYTES + user.len() + origin.len() + frame.len());
    out.extend_from_slice(&[kind as u8, flags]);
    out.extend_from_slice(&(user.len() as u16).to_le_bytes());
    out.extend_from_slice(user.as_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&[origin.len() as u8]);
    out.extend_from_slice(origin.as_bytes());
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&place.to_le_bytes());
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
    put(&[if header.gap { FLAG_GAP } else { 0 }, header.from.len() as u8]);
    put(header.from.as_bytes());
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
    let gap = rest.byte()? & FLAG_GAP != 0;
    let name_bytes = usize::from(rest.byte()?);
    let from = CompactString::from_utf8(rest.take(name_bytes)?).ok().filter(|name| !name.is_empty())?;
    let header = Header {
        from,
        from_incarnation: rest.number()?,
        to_incarnation: rest.number()?,
        ack: rest.number()?,
        gap,
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
    let number = rest.number()?;
    let origin_bytes = usize::from(rest.byte()?);
    let origin = CompactString::from_utf8(rest.take(origin_bytes)?).ok()?;
    let (stream, place) = (rest.number()?, rest.number()?);
    let frame_bytes = u32::from_le_bytes(rest.take(4)?.try_into().ok()?) as usize;
    rest.take(frame_bytes)?;
    let end = items.len() - rest.0.len();
    let frame = items.slice(end - frame_bytes..end);
    bytes::Buf::advance(items, end);
    Some(Item { kind, flags, user, number, origin, stream, place, frame })
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
            from_incarnation: 17,
            to_incarnation: u64::MAX,
            ack: 3,
            gap: true,
            first_seq: 4,
            count: 2,
        };
        let item = |kind, user: &str, frame: &'static [u8]| Item {
            kind: Some(kind),
            flags: FORWARDED,
            user: user.into(),
            number: 5,
            origin: "node-2".into(),
            stream: 6,
            place: 7,
            frame: Bytes::from_static(frame),
        };
        (header, vec![item(Kind::Unicast, "böb", b"\x81\x02{}"), item(Kind::Hello, "", b"")])
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
