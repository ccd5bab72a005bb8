//! Commands: one JSON object in each text message of a client.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What a client asks for. It borrows from the message, so that `content` leaves the gateway byte for byte as it came.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `{"type":"ping"}`
    Ping,
    /// `{"type":"send_message","target_user":…,"content":…}`
    SendMessage {
        /// The user that gets the message.
        target: Cow<'a, str>,
        /// Raw JSON; `null` when the client gave none.
        content: &'a str,
    },
    /// `{"type":"broadcast","content":…}`
    Broadcast {
        /// Raw JSON; `null` when the client gave none.
        content: &'a str,
    },
}

/// Why a message is no command. The connection stays; the client is told.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not JSON, or JSON that is no object. The text is the contract's, word for word.
    #[error("Invalid JSON")]
    InvalidJson,
    /// A field that the command can't do without.
    #[error("missing field \"{0}\"")]
    MissingField(&'static str),
    /// A field that has to be a string and is not.
    #[error("field \"{0}\" must be a string")]
    NotAString(&'static str),
    /// A type that this version does not know.
    #[error("unknown type \"{0}\"; known are ping, send_message and broadcast")]
    UnknownType(String),
}

impl CommandError {
    /// The machine-readable half of the error; the contract gives "Invalid JSON" none.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::InvalidJson => None,
            Self::MissingField(_) => Some("missing_field"),
            Self::NotAString(_) => Some("wrong_type"),
            Self::UnknownType(_) => Some("unknown_type"),
        }
    }
}

/// An unknown type is told back to the client up to this many bytes.
const ECHOED_TYPE_BYTES_MAX: usize = 64;

/// Reads one text message. Fields that the command does not know are ignored; of a repeated field the last one counts.
pub fn parse(text: &str) -> Result<Command<'_>, CommandError> {
    // The one message that every client repeats needs no parser.
    if text == r#"{"type":"ping"}"# {
        return Ok(Command::Ping);
    }
    let mut parser = serde_json::Deserializer::from_str(text);
    let fields = de::Deserializer::deserialize_map(&mut parser, FieldsVisitor)
        .and_then(|fields| parser.end().map(|()| fields))
        .map_err(|_| CommandError::InvalidJson)?;
    let kind = string_field("type", fields.kind)?;
    match kind.as_ref() {
        "ping" => Ok(Command::Ping),
        "send_message" => Ok(Command::SendMessage {
            target: string_field("target_user", fields.target)?,
            content: fields.content.map_or("null", RawValue::get),
        }),
        "broadcast" => Ok(Command::Broadcast { content: fields.content.map_or("null", RawValue::get) }),
        unknown => Err(CommandError::UnknownType(cut(unknown, ECHOED_TYPE_BYTES_MAX).to_owned())),
    }
}

/// The fields as they stand in the text; their types are checked when a command needs them.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a RawValue>,
    target: Option<&'a RawValue>,
    content: Option<&'a RawValue>,
}

enum Field {
    Kind,
    Target,
    Content,
    Other,
}

impl<'de> de::Deserialize<'de> for Field {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldVisitor;
        impl Visitor<'_> for FieldVisitor {
            type Value = Field;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "type" => Field::Kind,
                    "target_user" => Field::Target,
                    "content" => Field::Content,
                    _ => Field::Other,
                })
            }
        }
        deserializer.deserialize_identifier(FieldVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(field) = map.next_key()? {
            match field {
                Field::Kind => fields.kind = Some(map.next_value()?),
                Field::Target => fields.target = Some(map.next_value()?),
                Field::Content => fields.content = Some(map.next_value()?),
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

fn string_field<'a>(name: &'static str, value: Option<&'a RawValue>) -> Result<Cow<'a, str>, CommandError> {
    let raw = value.ok_or(CommandError::MissingField(name))?.get();
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let inner = inner.ok_or(CommandError::NotAString(name))?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner));
    }
    // Escapes that stand for no character (a lone surrogate) make it no string that could name anybody.
    serde_json::from_str(raw).map(Cow::Owned).map_err(|_| CommandError::NotAString(name))
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_the_contract() {
        assert_eq!(parse(r#"{"type":"ping"}"#), Ok(Command::Ping));
        assert_eq!(parse(" { \"type\" : \"ping\" , \"extra\" : [1,{}] } "), Ok(Command::Ping));
        assert_eq!(
            parse(r#"{"type":"send_message","target_user":"bob","content":{"a": 1e400}}"#),
            Ok(Command::SendMessage { target: "bob".into(), content: r#"{"a": 1e400}"# })
        );
        assert_eq!(
            parse(r#"{"target_user":"b\u00f6b\"","type":"send_message"}"#),
            Ok(Command::SendMessage { target: "böb\"".into(), content: "null" })
        );
        assert_eq!(parse(r#"{"type":"broadcast","content":[]}"#), Ok(Command::Broadcast { content: "[]" }));
        assert_eq!(parse(r#"{"ty\u0070e":"broadcast"}"#), Ok(Command::Broadcast { content: "null" }));
    }

    #[test]
    fn what_is_no_json_object_is_invalid() {
        for text in
            ["", "x", "[]", "[1]", "1", "null", "\"ping\"", "{", "{}x", "{\"type\":\"ping\"", "{\"type\":}", "{'a':1}"]
        {
            assert_eq!(parse(text), Err(CommandError::InvalidJson), "{text}");
        }
    }

    #[test]
    fn what_is_no_command_says_why() {
        assert_eq!(parse("{}"), Err(CommandError::MissingField("type")));
        assert_eq!(parse(r#"{"type":null}"#), Err(CommandError::NotAString("type")));
        assert_eq!(parse(r#"{"type":"send_message"}"#), Err(CommandError::MissingField("target_user")));
        assert_eq!(parse(r#"{"type":"send_message","target_user":7}"#), Err(CommandError::NotAString("target_user")));
        assert_eq!(
            parse(r#"{"type":"send_message","target_user":"\ud800"}"#),
            Err(CommandError::NotAString("target_user"))
        );
        assert_eq!(parse(r#"{"type":"dance"}"#), Err(CommandError::UnknownType("dance".into())));
        let long = format!(r#"{{"type":"{}"}}"#, "ü".repeat(1000));
        assert_eq!(parse(&long), Err(CommandError::UnknownType("ü".repeat(32))));
    }

    #[test]
    fn nesting_is_no_recursion() {
        let deep = format!(r#"{{"type":"broadcast","content":{}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
        assert!(matches!(parse(&deep), Ok(Command::Broadcast { content }) if content.len() == 60_000));
    }
}
