//! The contract's JSON: what services and foreign nodes publish on `node:<id>`, what we publish to foreign nodes, and
//! what stands on `user:events`.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ws::{Opcode, encode};

/// What stood on `node:<id>`; `message` as it stands.
#[derive(Debug)]
pub enum Order<'a> {
    /// A message for a user.
    SendToUser {
        /// The user.
        user: Cow<'a, str>,
        /// JSON, unparsed.
        message: &'a str,
    },
    /// A message for all users of this node.
    Broadcast {
        /// JSON, unparsed.
        message: &'a str,
    },
}

#[derive(Deserialize)]
struct OrderFields<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow, default)]
    user_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: &'a RawValue,
}

/// Reads what stood on `node:<id>`; `None` when the contract knows no such thing.
///
/// A `message` must be an object, as the contract has it: clients tell messages by their `type`.
pub fn read_order(text: &[u8]) -> Option<Order<'_>> {
    let text = simdutf8::basic::from_utf8(text).ok()?;
    let fields: OrderFields<'_> = serde_json::from_str(text).ok()?;
    let message = fields.message.get();
    if !message.starts_with('{') {
        return None;
    }
    match (&*fields.action, fields.user_id) {
        ("send_to_user", Some(user)) if !user.is_empty() => Some(Order::SendToUser { user, message }),
        ("broadcast", _) => Some(Order::Broadcast { message }),
        _ => None,
    }
}

/// The server frame of a message that stood in an order.
pub fn frame_of(message: &str) -> Bytes {
    let mut frame = Vec::with_capacity(encode::HEADER_BYTES_MAX + message.len());
    encode::header(Opcode::Text, message.len(), &mut frame);
    frame.extend_from_slice(message.as_bytes());
    frame.into()
}

/// The order that has a foreign node send a frame's message to a user, or, without a user, to all of its users.
/// `None` for bytes that are no server frame with JSON in it.
pub fn write_order(user: Option<&str>, frame: &[u8]) -> Option<Bytes> {
    #[derive(Serialize)]
    struct Written<'a> {
        action: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<&'a str>,
        message: &'a RawValue,
    }
    let message = serde_json::from_slice(payload_of(frame)?).ok()?;
    let action = if user.is_some() { "send_to_user" } else { "broadcast" };
    serde_json::to_vec(&Written { action, user_id: user, message }).ok().map(Bytes::from)
}

/// The payload of a whole, unmasked server frame.
fn payload_of(frame: &[u8]) -> Option<&[u8]> {
    let (header_bytes, payload_bytes) = match frame.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes(frame.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(frame.get(2..10)?.try_into().ok()?)).ok()?),
        &short => (2, usize::from(short)),
    };
    frame.get(header_bytes..).filter(|payload| payload.len() == payload_bytes)
}

/// Whether a text is one whole server frame of ours: a final text frame of the length it says.
pub fn is_frame(frame: &[u8]) -> bool {
    frame.first() == Some(&0x81) && payload_of(frame).is_some()
}

/// The user of an event on `user:events` that no node of our kind published: those carry the node's name.
pub fn foreign_event(text: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        user_id: Cow<'a, str>,
        #[serde(default)]
        node_id: Option<serde::de::IgnoredAny>,
    }
    let fields: Fields<'_> = serde_json::from_slice(text).ok()?;
    fields.node_id.is_none().then_some(fields.user_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_the_contract_has_them() {
        let text = br#"{"action":"send_to_user","user_id":"al\"ice","message":{"type":"x", "n":1.0}}"#;
        let Some(Order::SendToUser { user, message }) = read_order(text) else { panic!("an order") };
        assert_eq!((&*user, message), ("al\"ice", r#"{"type":"x", "n":1.0}"#));
        assert!(matches!(
            read_order(br#"{"message":{},"action":"broadcast"}"#),
            Some(Order::Broadcast { message: "{}" })
        ));
        for junk in [
            &b"\xff\xfe"[..],
            b"",
            b"[]",
            br#"{"action":"send_to_user","message":{}}"#,
            br#"{"action":"send_to_user","user_id":"","message":{}}"#,
            br#"{"action":"send_to_user","user_id":7,"message":{}}"#,
            br#"{"action":"broadcast"}"#,
            br#"{"action":"broadcast","message":"text"}"#,
            br#"{"action":"dance","user_id":"a","message":{}}"#,
        ] {
            assert!(read_order(junk).is_none(), "{}", String::from_utf8_lossy(junk));
        }
    }

    #[test]
    fn frames_turn_into_orders_and_back() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let message = format!(r#"{{"a":"{}"}}"#, "x".repeat(len));
            let frame = frame_of(&message);
            assert!(is_frame(&frame));
            assert!(!is_frame(&frame[..frame.len() - 1]));
            let order = write_order(Some("b\"ob"), &frame).unwrap();
            let Some(Order::SendToUser { user, message: read }) = read_order(&order) else { panic!("an order") };
            assert_eq!((&*user, read), ("b\"ob", &*message));
            assert!(
                matches!(read_order(&write_order(None, &frame).unwrap()), Some(Order::Broadcast { message: m }) if m == message)
            );
        }
        assert_eq!(write_order(None, b"\x81\x05{}"), None);
        assert_eq!(write_order(None, b"\x81\x02{x"), None);
    }

    #[test]
    fn our_own_events_are_told_from_foreign_ones() {
        assert_eq!(foreign_event(br#"{"event":"online","user_id":"bob"}"#).as_deref(), Some("bob"));
        assert_eq!(foreign_event(br#"{"event":"online","user_id":"bob","node_id":"n1"}"#), None);
        assert_eq!(foreign_event(b"junk"), None);
    }
}
