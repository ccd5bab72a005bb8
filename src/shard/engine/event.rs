//! What the engine tells its user.

use std::io;
use std::net::SocketAddr;

use super::{ListenerId, RecvBuf};
use crate::ids::ConnId;
use crate::shard::chunk::Chunk;

/// What the engine has to tell.
#[derive(Debug)]
pub enum Event {
    /// A client has connected. Nothing is received from it before [`Engine::resume_reading`](super::Engine::resume_reading).
    Accepted {
        /// The new connection.
        id: ConnId,
        /// Where it came in.
        listener: ListenerId,
        /// Its address.
        peer: SocketAddr,
    },
    /// An accept failed. If the peer was at fault (it had gone already), accepting goes on; otherwise the listener rests
    /// until a connection closes or [`Engine::resume_listening`](super::Engine::resume_listening).
    AcceptFailed {
        /// The listener concerned.
        listener: ListenerId,
        /// What was wrong.
        error: io::Error,
    },
    /// Bytes came. They can be changed in place; dropping them gives the buffer back.
    Received {
        /// From whom.
        id: ConnId,
        /// At least one byte.
        data: RecvBuf,
    },
    /// Nothing more will be received: EOF, or the error that ended the connection. A pause doesn't cause this.
    ReceiveEnded {
        /// The connection, which stays open until it is closed.
        id: ConnId,
        /// None for EOF.
        error: Option<io::Error>,
    },
    /// The send in flight has ended. It is reported for a closing connection, too.
    Sent {
        /// The connection.
        id: ConnId,
        /// What was sent.
        chunk: Chunk,
        /// How many bytes the socket took: fewer than there were only when the send was cancelled or failed half-way.
        result: io::Result<usize>,
    },
    /// The connection has ended and its name is stale.
    Closed {
        /// The name.
        id: ConnId,
    },
}
