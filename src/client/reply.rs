//! What the gateway says to clients, as wire bytes: a whole server frame each, appended to a buffer.
//!
//! Each function writes header and payload in one pass; the payload's length is known from its parts.

use std::borrow::Cow;

use crate::ws::{Opcode, encode};

use super::command::CommandError;

/// `{"type":"pong"}`, ready to send.
pub const PONG: &[u8] = b"\x81\x0f{\"type\":\"pong\"}";

/// `{"type":"message","from":…,"content":…}`; `content` is raw JSON.
pub fn message(from: &str, content: &str, out: &mut Vec<u8>) {
    text_of([r#"{"type":"message","from":""#, &escaped(from), r#"","content":"#, content, "}"], out);
}

/// `{"type":"broadcast","from":…,"content":…}`; `content` is raw JSON.
pub fn broadcast(from: &str, content: &str, out: &mut Vec<u8>) {
    text_of([r#"{"type":"broadcast","from":""#, &escaped(from), r#"","content":"#, content, "}"], out);
}

/// `{"type":"error","message":…}`, with `"code"` where the error has one.
pub fn error(error: &CommandError, out: &mut Vec<u8>) {
    let message = error.to_string();
    let message = escaped(&message);
    match error.code() {
        None => text_of([r#"{"type":"error","message":""#, &message, "\"}"], out),
        Some(code) => text_of([r#"{"type":"error","message":""#, &message, r#"","code":""#, code, "\"}"], out),
    }
}

/// The error of a message that was not taken because what it needs is overloaded. Nobody got it.
pub fn overloaded(out: &mut Vec<u8>) {
    text_of(
        [
            r#"{"type":"error","message":"overloaded: the message was not sent, send it again later","code":"overloaded"}"#,
        ],
        out,
    );
}

fn text_of<const PARTS: usize>(parts: [&str; PARTS], out: &mut Vec<u8>) {
    let payload_len = parts.iter().map(|part| part.len()).sum();
    out.reserve(encode::HEADER_BYTES_MAX + payload_len);
    encode::header(Opcode::Text, payload_len, out);
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// What stands between the quotes of a JSON string.
fn escaped(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        let quoted = serde_json::Value::from(name).to_string();
        Cow::Owned(quoted[1..quoted.len() - 1].to_owned())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(frame: &[u8]) -> serde_json::Value {
        assert_eq!(frame[0], 0x81);
        assert_eq!(usize::from(frame[1]), frame.len() - 2);
        serde_json::from_slice(&frame[2..]).unwrap()
    }

    #[test]
    fn replies_are_the_contracts() {
        let mut out = Vec::new();
        message("al\"ice\n", "[1.0]", &mut out);
        assert_eq!(payload(&out), serde_json::json!({"type":"message","from":"al\"ice\n","content":[1.0]}));
        out.clear();
        broadcast("bob", "null", &mut out);
        assert_eq!(payload(&out), serde_json::json!({"type":"broadcast","from":"bob","content":null}));
        out.clear();
        error(&CommandError::InvalidJson, &mut out);
        assert_eq!(payload(&out), serde_json::json!({"type":"error","message":"Invalid JSON"}));
        out.clear();
        error(&CommandError::UnknownType("a\"b".into()), &mut out);
        assert_eq!(payload(&out)["code"], "unknown_type");
        out.clear();
        overloaded(&mut out);
        assert_eq!((&payload(&out)["type"], &payload(&out)["code"]), (&"error".into(), &"overloaded".into()));
        assert_eq!(payload(PONG), serde_json::json!({"type":"pong"}));
    }
}
