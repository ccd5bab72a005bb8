//! Connections out: told why, flushed, given time to answer, closed.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::client::Disconnect;
use crate::hub::Input;
use crate::ids::ConnId;
use crate::metrics::Cell;
use crate::ws::encode;

use super::chunk::Chunk;
use super::conn::{Farewell, Phase};
use super::run::Shard;
use super::sockets::Sockets;

/// Closed clients are logged so often at most.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Why a connection ends: who is at fault, and what follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// The peer sent Close, with this code if any; it is answered.
    PeerClosed(Option<u16>),
    /// The peer is gone without a Close, or is not worth one.
    PeerGone,
    /// The gateway ends it and says why.
    Told(Disconnect),
}

impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerClosed(Some(code)) => write!(f, "the client closed with {code}"),
            Self::PeerClosed(None) => f.write_str("the client closed"),
            Self::PeerGone => f.write_str("the client is gone"),
            Self::Told(disconnect) => write!(f, "{} {}", disconnect.code(), disconnect.reason()),
        }
    }
}

impl Shard {
    /// Ends a connection in whatever phase it is.
    pub(super) fn end(&mut self, id: ConnId, cause: Cause) {
        let Some(conn) = self.sockets.get(id) else { return };
        match conn.phase {
            Phase::Open => {
                tracing::debug!(user = self.hub.user(id), %cause, "connection ends");
                self.leave(id, cause);
            }
            Phase::Head | Phase::Waiting => {
                if conn.phase == Phase::Waiting {
                    self.hub.handle(self.sockets.now, Input::Gone { conn: id }, &mut self.sockets);
                }
                self.sockets.finish_request(id, Farewell::Close);
                return self.close(id);
            }
            Phase::Flushing | Phase::Draining | Phase::Closing | Phase::Vacant => return,
        }
        match cause {
            Cause::PeerGone => self.close(id),
            Cause::PeerClosed(code) => {
                // RFC 6455 5.5.1: the answer echoes the status code; without one it is empty.
                self.scratch.clear();
                match code {
                    Some(code) => encode::close(code, "", &mut self.scratch),
                    None => self.scratch.extend_from_slice(&[0x88, 0]),
                }
                self.sockets.queue(id, &self.scratch);
            }
            Cause::Told(why) => self.sockets.queue_close(id, why),
        }
    }

    /// Takes an open connection out of the hub's world. What is queued stays queued.
    fn leave(&mut self, id: ConnId, cause: Cause) {
        self.hub.handle(self.sockets.now, Input::Gone { conn: id }, &mut self.sockets);
        self.sockets.leave(id, farewell(cause));
        closes(&self.sockets, cause).add(1);
        // Reading goes on, so that the peer's FIN is seen.
        self.engine.resume_reading(id);
    }

    /// Ends a connection that reads too slowly: the frame begun is finished, the rest dropped and counted.
    pub(super) fn cut_off(&mut self, id: ConnId) {
        let Some(conn) = self.sockets.get(id).filter(|conn| conn.phase == Phase::Open) else { return };
        let queued_bytes = conn.queued_bytes;
        let sending = conn.sending;
        let why = Disconnect::TooSlow;
        self.log_too_slow(id, queued_bytes);
        self.leave(id, Cause::Told(why));
        let dropped = self.sockets.drop_queue(id);
        self.sockets.metrics.dropped_too_slow.add(dropped);
        if sending {
            if let Some(conn) = self.sockets.get(id) {
                conn.extra().cut_off = Some(why);
            }
            self.engine.cancel_send(id);
        } else {
            self.sockets.queue_close(id, why);
        }
    }

    /// One line a second, however many are closed.
    fn log_too_slow(&mut self, id: ConnId, queued_bytes: u32) {
        if let Some(clients) = self.too_slow_log.due(self.sockets.now, LOG_EVERY) {
            let user = self.hub.user(id);
            tracing::info!(user, queued_bytes, clients, "closing a client that reads too slowly");
        }
    }

    /// A send has ended.
    pub(super) fn sent(&mut self, id: ConnId, chunk: Chunk, result: std::io::Result<usize>) {
        let sent = result.as_ref().copied().unwrap_or(0);
        self.sockets.unqueued(id, chunk.len());
        let metrics = self.sockets.metrics;
        let Some(conn) = self.sockets.get(id) else { return };
        conn.sending = false;
        if !conn.is_admin {
            metrics.bytes_out.add(sent as u64);
            metrics.sends.add(1);
        }
        if let Some(why) = conn.extra.as_mut().and_then(|extra| extra.cut_off.take()) {
            return self.finish_frame(id, &chunk, sent, why);
        }
        if sent < chunk.len() {
            // The connection is broken: nothing that follows would arrive whole.
            if self.sockets.get(id).is_some_and(|conn| conn.phase == Phase::Open) {
                self.end(id, Cause::PeerGone);
            } else {
                self.close(id);
            }
        } else {
            self.sockets.recycle(chunk);
            self.send_next(id);
        }
    }

    /// After a cancelled send: the rest of the frame it had begun, then the Close frame.
    fn finish_frame(&mut self, id: ConnId, chunk: &Chunk, sent: usize, why: Disconnect) {
        let bytes = chunk.as_slice();
        let frames_from = head_len(bytes);
        if sent < frames_from {
            return self.close(id);
        }
        let frame_end = frames_from + encode::frame_end(&bytes[frames_from..], sent - frames_from);
        let dropped = encode::count_frames(&bytes[frame_end..]) as u64;
        self.sockets.metrics.dropped_too_slow.add(dropped);
        if frame_end > sent {
            self.sockets.queue(id, &bytes[sent..frame_end]);
        }
        self.sockets.queue_close(id, why);
        self.send_next(id);
    }

    /// Hands the next chunk to the kernel, if nothing is in its hands; at the end of a finished connection, the FIN.
    pub(super) fn send_next(&mut self, id: ConnId) {
        let Some(conn) = self.sockets.get(id) else { return };
        if conn.sending {
            return;
        }
        let Some(chunk) = self.sockets.take_chunk(id) else { return self.finish(id) };
        let now = self.sockets.now;
        match self.engine.send(id, chunk) {
            Ok(()) => {
                if let Some(conn) = self.sockets.get(id) {
                    conn.sending = true;
                    conn.sent_at = now;
                }
            }
            Err(chunk) => {
                self.sockets.metrics.dropped_closing.add(encode::count_frames(chunk.as_slice()) as u64);
                self.sockets.unqueued(id, chunk.len());
            }
        }
    }

    fn finish(&mut self, id: ConnId) {
        let Some(conn) = self.sockets.get(id) else { return };
        if conn.phase != Phase::Flushing {
            return conn.trim();
        }
        conn.phase = Phase::Draining;
        match conn.farewell {
            _ if conn.peer_finished => self.close(id),
            Farewell::Close => self.close(id),
            Farewell::AwaitClose => {}
            Farewell::HalfClose => self.engine.shutdown_write(id),
        }
    }

    /// The peer has finished sending, or the connection broke.
    pub(super) fn receive_ended(&mut self, id: ConnId, error: Option<&std::io::Error>) {
        let Some(conn) = self.sockets.get(id) else { return };
        conn.peer_finished = true;
        match conn.phase {
            // What it said before waits for room and is handled first.
            Phase::Open if conn.is_stalled() => {}
            Phase::Open | Phase::Head | Phase::Waiting => self.end(id, Cause::PeerGone),
            Phase::Flushing if error.is_none() => {}
            Phase::Flushing | Phase::Draining => self.close(id),
            Phase::Closing | Phase::Vacant => {}
        }
    }

    /// Closes without another word; the slot is free when the engine says so.
    pub(super) fn close(&mut self, id: ConnId) {
        let Some(conn) = self.sockets.get(id) else { return };
        conn.phase = Phase::Closing;
        let dropped = self.sockets.drop_queue(id);
        self.sockets.metrics.dropped_closing.add(dropped);
        self.sockets.wheel.cancel(id.index);
        self.engine.close(id);
    }
}

impl Sockets {
    /// A request for which the last bytes are queued: no connection comes of it.
    pub(super) fn finish_request(&mut self, id: ConnId, farewell: Farewell) {
        let Some(conn) = self.get(id) else { return };
        conn.extra().request = None;
        self.handshakes -= 1;
        self.flush_and_close(id, farewell);
    }

    /// An open connection that ends.
    fn leave(&mut self, id: ConnId, farewell: Farewell) {
        self.open -= 1;
        self.metrics.connections.set(self.open);
        if let Some(extra) = self.get(id).and_then(|conn| conn.extra.as_mut()) {
            extra.stalled = None;
        }
        self.flush_and_close(id, farewell);
    }

    fn flush_and_close(&mut self, id: ConnId, farewell: Farewell) {
        let deadline = self.now.after(self.config.close_timeout);
        self.wheel.set(id.index, deadline);
        let Some(conn) = self.get(id) else { return };
        conn.phase = Phase::Flushing;
        conn.farewell = farewell;
        let reserved = std::mem::take(&mut conn.reserved);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id.index);
        }
        if reserved {
            self.node.release_connection();
        }
    }
}

/// Bytes of the 101 that a connection's first chunk may begin with.
fn head_len(bytes: &[u8]) -> usize {
    if !bytes.starts_with(b"HTTP/1.1 ") {
        return 0;
    }
    memchr::memmem::find(bytes, b"\r\n\r\n").map_or(bytes.len(), |at| at + 4)
}

fn farewell(cause: Cause) -> Farewell {
    match cause {
        Cause::PeerClosed(_) | Cause::PeerGone => Farewell::Close,
        // Its bytes can't be read any more, a Close frame among them included.
        Cause::Told(
            Disconnect::ProtocolError(_)
            | Disconnect::InvalidText(_)
            | Disconnect::MessageTooBig(_)
            | Disconnect::InternalError,
        ) => Farewell::HalfClose,
        Cause::Told(_) => Farewell::AwaitClose,
    }
}

fn closes(sockets: &Sockets, cause: Cause) -> &'static Cell {
    let metrics = sockets.metrics;
    match cause {
        Cause::PeerClosed(_) => &metrics.closes_peer_closed,
        Cause::PeerGone => &metrics.closes_peer_gone,
        Cause::Told(why) => match why {
            Disconnect::ProtocolError(_) => &metrics.closes_protocol_error,
            Disconnect::InvalidText(_) => &metrics.closes_invalid_text,
            Disconnect::MessageTooBig(_) => &metrics.closes_message_too_big,
            Disconnect::InternalError => &metrics.closes_internal_error,
            Disconnect::NodeStopping => &metrics.closes_node_stopping,
            Disconnect::MissingUserId => &metrics.closes_missing_user_id,
            Disconnect::TooSlow => &metrics.closes_too_slow,
            Disconnect::RateLimited => &metrics.closes_rate_limited,
            Disconnect::SilentTooLong => &metrics.closes_silent,
        },
    }
}
