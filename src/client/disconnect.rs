//! Why the gateway ends a connection: the close code, the reason that goes with it, and whether coming back makes sense.
//!
//! The README's registry of close codes is this table.

/// A reason to end a connection, as the client is told it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Disconnect {
    /// RFC 6455 7.4.1: a frame that breaks the protocol.
    ProtocolError(&'static str),
    /// RFC 6455 7.4.1: a text message that is not UTF-8.
    InvalidText(&'static str),
    /// RFC 6455 7.4.1: a message above the node's limit.
    MessageTooBig(&'static str),
    /// A fault of the gateway's own while it read this connection.
    InternalError,
    /// The node stops or drains; another one, or this one later, takes the client back.
    NodeStopping,
    /// `/ws` without a user id.
    MissingUserId,
    /// The client reads more slowly than messages to it arrive, beyond what the node keeps for it.
    TooSlow,
    /// More control frames than the node allows.
    RateLimited,
    /// Not one byte within the pong timeout.
    SilentTooLong,
}

/// What a client does after a disconnect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reconnect {
    /// The same again would end the same.
    No,
    /// Come back, with exponential backoff and jitter.
    Yes,
}

impl Disconnect {
    /// The close code: RFC 6455 7.4.1 below 4000, the gateway's own from there on.
    pub fn code(self) -> u16 {
        match self {
            Self::ProtocolError(_) => 1002,
            Self::InvalidText(_) => 1007,
            Self::MessageTooBig(_) => 1009,
            Self::InternalError => 1011,
            Self::NodeStopping => 1012,
            Self::MissingUserId => 4001,
            Self::TooSlow => 4008,
            Self::RateLimited => 4010,
            Self::SilentTooLong => 4012,
        }
    }

    /// The reason in the Close frame, for people who read logs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ProtocolError(reason) | Self::InvalidText(reason) | Self::MessageTooBig(reason) => reason,
            Self::InternalError => "internal error",
            Self::NodeStopping => "node stopping, reconnect with jitter",
            Self::MissingUserId => "Missing user_id",
            Self::TooSlow => "too slow",
            Self::RateLimited => "rate limited",
            Self::SilentTooLong => "silent too long",
        }
    }

    /// Whether a client library should come back.
    pub fn reconnect(self) -> Reconnect {
        match self {
            Self::ProtocolError(_) | Self::InvalidText(_) | Self::MessageTooBig(_) | Self::MissingUserId => {
                Reconnect::No
            }
            Self::InternalError | Self::NodeStopping | Self::TooSlow | Self::RateLimited | Self::SilentTooLong => {
                Reconnect::Yes
            }
        }
    }
}
