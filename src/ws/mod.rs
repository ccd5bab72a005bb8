//! RFC 6455, the server's side, as pure functions and one small state machine: no socket, no clock.
//!
//! Bytes come in as the shard's buffer holds them and go out into a buffer of the caller:
//!
//! | file | RFC 6455 | what |
//! |---|---|---|
//! | `handshake` | 4 | a request head becomes an upgrade or a refusal |
//! | `frame` | 5.2 | the header of one client frame |
//! | `mask` | 5.3 | unmasking in place |
//! | `decoder` | 5.4-5.6 | frames become messages, whole or in fragments |
//! | `utf8` | 8.1 | text checked as it arrives |
//! | `close` | 7.4 | close codes and the payload of a Close frame |
//! | `encode` | 5.2 | server frames |

pub mod close;
pub mod decoder;
pub mod encode;
mod frame;
pub mod handshake;
mod mask;
mod utf8;

pub use decoder::{Decoded, Decoder, Event};
pub use frame::{CONTROL_BYTES_MAX, Opcode};

/// What a client may send before it is told to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Payload bytes of one message, all its fragments together.
    pub message_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message_bytes_max: 64 * 1024 }
    }
}

/// The client broke RFC 6455: the connection is to be failed with this close code (RFC 6455 7.1.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason} ({code})")]
pub struct ProtocolError {
    /// [`close::PROTOCOL_ERROR`], [`close::INVALID_DATA`] or [`close::TOO_BIG`].
    pub code: u16,
    /// What was wrong, short enough for the reason of a Close frame.
    pub reason: &'static str,
}

impl ProtocolError {
    /// Bytes that no client may send: 1002.
    const fn violation(reason: &'static str) -> Self {
        Self { code: close::PROTOCOL_ERROR, reason }
    }

    /// Text that is not UTF-8: 1007.
    const fn invalid_data(reason: &'static str) -> Self {
        Self { code: close::INVALID_DATA, reason }
    }

    /// A message above the limit: 1009.
    const TOO_BIG: Self = Self { code: close::TOO_BIG, reason: "message too big" };
}
