//! What the workers' connections do. Each scenario is a [`crate::net::Driver`].

mod crowd;
mod echo;
mod fanout;
mod flow;
mod idle;
mod pairing;
mod storm;
mod unicast;

pub use crowd::{Crowd, Roles};
pub use echo::Echo;
pub use fanout::{Fanout, Pacing};
pub use idle::Idle;
pub use pairing::{Pairing, Pairs};
pub use storm::Storm;
pub use unicast::Unicast;

use crate::frame::Template;
use crate::stamp;

/// The client's question in the gateway's contract.
const PING: &[u8] = br#"{"type":"ping"}"#;
/// Its answer as the gateway writes it.
const PONG: &[u8] = br#"{"type":"pong"}"#;

/// When one worker's connections send.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Load {
    /// Each keeps so many messages under way.
    Closed {
        /// Unanswered messages of each connection.
        inflight: u32,
    },
    /// By a schedule, whatever comes back.
    Open {
        /// Messages a second of this worker.
        per_second: f64,
        /// Where in the first interval the schedule begins, from 0 to 1.
        phase: f64,
    },
}

/// The question a scenario asks to see whether a connection lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// `{"type":"ping"}`, answered `{"type":"pong"}`.
    Ping,
    /// Text of so many bytes, answered with itself: what plain echo servers do.
    Raw(usize),
}

impl Question {
    fn template(self) -> Template {
        match self {
            Self::Ping => Template::text(PING),
            Self::Raw(bytes) => Template::text(&stamp::filled(bytes)),
        }
    }
}

/// `{"type":"pong"}`, however it is spelt.
fn is_pong(payload: &[u8]) -> bool {
    payload == PONG
        || serde_json::from_slice::<serde_json::Value>(payload)
            .is_ok_and(|value| value.get("type") == Some(&"pong".into()))
}

/// The content of the gateway's messages: a stamp, then filler, as a JSON string without escapes.
fn content_around(before: &str, payload_bytes: usize, after: &str) -> Vec<u8> {
    let mut payload = before.as_bytes().to_vec();
    payload.extend(stamp::filled(payload_bytes));
    payload.extend(after.as_bytes());
    payload
}

/// The filler behind a stamp at `at` is whole.
fn is_filler_whole(payload: &[u8], at: usize, payload_bytes: usize) -> bool {
    let filler = payload_bytes.max(stamp::STAMP_BYTES) - stamp::STAMP_BYTES;
    let start = at + stamp::STAMP_BYTES;
    payload.get(start..start + filler).is_some_and(|bytes| bytes.iter().all(|byte| *byte == b'x'))
        && payload.get(start + filler).is_none_or(|byte| *byte != b'x')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_is_known_in_any_spelling() {
        assert!(is_pong(PONG));
        assert!(is_pong(br#"{ "at": 1, "type": "pong" }"#));
        assert!(!is_pong(br#"{"type":"error","message":"pong"}"#));
        assert!(!is_pong(b"pong"));
    }

    #[test]
    fn cut_and_grown_fillers_are_seen() {
        let payload = content_around("\"", 30, "\"");
        assert!(is_filler_whole(&payload, 1, 30));
        assert!(!is_filler_whole(&payload[..payload.len() - 2], 1, 30));
        assert!(!is_filler_whole(&content_around("\"", 31, "\""), 1, 30));
    }
}
