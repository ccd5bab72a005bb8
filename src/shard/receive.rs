//! Bytes in: through the decoder and the parser to the hub, and to a stop where the hub has no room.

use crate::client::Disconnect;
use crate::client::command::{self, Command, CommandError};
use crate::hub::{Input, Outcome};
use crate::ids::ConnId;
use crate::panics::{Panicked, contain};
use crate::ws::{self, Decoder, Event, ProtocolError, encode};

use super::conn::{Farewell, Phase, Stalled};
use super::engine::RecvBuf;
use super::finish::Cause;
use super::run::Shard;

/// Connections whose stalled message is tried again in one turn.
const RETRIES_MAX: usize = 256;

/// What one step of reading found.
enum Said<'a> {
    /// Not a whole message yet.
    Nothing,
    Command(&'a str, Result<Command<'a>, CommandError>),
    Binary,
    Ping(&'a [u8]),
    Pong,
    Close(Option<u16>),
}

/// How handling one step went.
enum Next {
    Read,
    Stall(String),
    Stop,
}

impl Shard {
    /// Bytes of any connection.
    pub(super) fn received(&mut self, id: ConnId, mut data: RecvBuf) {
        let now = self.sockets.now;
        let metrics = self.sockets.metrics;
        let early_bytes_max = self.sockets.config.ws.message_bytes_max;
        let Some(conn) = self.sockets.get(id) else { return };
        conn.heard = now;
        if !conn.is_admin {
            metrics.bytes_in.add(data.len() as u64);
        }
        match conn.phase {
            Phase::Open => match conn.extra.as_mut().and_then(|extra| extra.stalled.as_mut()) {
                Some(stalled) => stalled.rest.extend_from_slice(&data),
                None => self.messages(id, &mut data),
            },
            Phase::Head => self.request_bytes(id, &data),
            Phase::Waiting => {
                let Some(request) = &mut conn.extra().request else { return };
                request.bytes.extend_from_slice(&data);
                if request.bytes.len() > early_bytes_max {
                    self.end(id, Cause::PeerGone);
                }
            }
            Phase::Flushing | Phase::Draining if conn.farewell == Farewell::AwaitClose => {
                self.await_close(id, &mut data)
            }
            Phase::Flushing | Phase::Draining | Phase::Closing | Phase::Vacant => {}
        }
    }

    /// Reads on for nothing but the peer's Close frame.
    fn await_close(&mut self, id: ConnId, mut input: &mut [u8]) {
        let limits = self.sockets.config.ws;
        let Some(conn) = self.sockets.get(id) else { return };
        while !input.is_empty() && !conn.peer_finished {
            match contain(|| read_one(&mut conn.decoder, input, &limits)) {
                Ok(Ok((_, Said::Close(_))) | Err(_)) | Err(Panicked) => conn.peer_finished = true,
                Ok(Ok((consumed, _))) => input = &mut input[consumed..],
            }
        }
        if conn.peer_finished && conn.phase == Phase::Draining {
            self.close(id);
        }
    }

    /// Reads messages of an open connection until the bytes, the room or the connection end.
    fn messages(&mut self, id: ConnId, mut input: &mut [u8]) {
        let Some(conn) = self.sockets.get(id) else { return };
        let mut decoder = std::mem::take(&mut conn.decoder);
        let limits = self.sockets.config.ws;
        while !input.is_empty() {
            let step = contain(|| read_one(&mut decoder, input, &limits));
            let (consumed, next) = match step {
                Ok(Ok((consumed, said))) => (consumed, self.said(id, said)),
                Ok(Err(error)) => (0, self.refuse_protocol(id, &error)),
                Err(Panicked) => {
                    tracing::error!(user = self.hub.user(id), "reading a message panicked; its connection is closed");
                    (0, self.stop(id, Cause::Told(Disconnect::InternalError)))
                }
            };
            match next {
                Next::Read => input = &mut input[consumed..],
                Next::Stall(text) => {
                    self.stall(id, text, input[consumed..].to_vec());
                    break;
                }
                Next::Stop => break,
            }
        }
        // Between messages nothing is held.
        decoder.release();
        if let Some(conn) = self.sockets.get(id) {
            conn.decoder = decoder;
        }
    }

    fn said(&mut self, id: ConnId, said: Said<'_>) -> Next {
        match said {
            // A stopping node accepts nothing more, and so loses nothing that it accepted.
            Said::Command(..) if self.stop.is_some() => Next::Read,
            #[cfg(test)]
            Said::Command(super::tests::PANICS_AT_THE_HUB, _) => panic!("a test asked for this"),
            Said::Command(text, command) => {
                let input = Input::Said { conn: id, command };
                match self.hub.handle(self.sockets.now, input, &mut self.sockets) {
                    Outcome::Done => Next::Read,
                    Outcome::NoRoom => Next::Stall(text.to_owned()),
                }
            }
            Said::Nothing => Next::Read,
            Said::Binary => {
                self.sockets.metrics.messages_in_binary.add(1);
                Next::Read
            }
            Said::Ping(payload) => {
                if self.is_flood(id) {
                    return self.stop(id, Cause::Told(Disconnect::RateLimited));
                }
                self.scratch.clear();
                encode::pong(payload, &mut self.scratch);
                self.sockets.queue(id, &self.scratch);
                Next::Read
            }
            Said::Pong if self.is_flood(id) => self.stop(id, Cause::Told(Disconnect::RateLimited)),
            Said::Pong => Next::Read,
            Said::Close(code) => self.stop(id, Cause::PeerClosed(code)),
        }
    }

    fn refuse_protocol(&mut self, id: ConnId, error: &ProtocolError) -> Next {
        let why = match error.code {
            1007 => Disconnect::InvalidText(error.reason),
            1009 => Disconnect::MessageTooBig(error.reason),
            _ => Disconnect::ProtocolError(error.reason),
        };
        self.stop(id, Cause::Told(why))
    }

    fn stop(&mut self, id: ConnId, cause: Cause) -> Next {
        self.end(id, cause);
        Next::Stop
    }

    /// Counts a control frame; whether it is one too many within its second.
    fn is_flood(&mut self, id: ConnId) -> bool {
        let second = (self.sockets.now.0 / 1_000_000) as u32;
        let frames_max = self.sockets.config.control_frames_max;
        let Some(conn) = self.sockets.get(id) else { return false };
        if conn.control_second != second {
            conn.control_second = second;
            conn.control_frames = 0;
        }
        conn.control_frames = conn.control_frames.saturating_add(1);
        conn.control_frames > frames_max
    }

    /// Keeps a message that found no room, and stops reading behind it.
    fn stall(&mut self, id: ConnId, text: String, rest: Vec<u8>) {
        let Some(conn) = self.sockets.get(id) else { return };
        conn.extra().stalled = Some(Stalled { text, rest });
        self.sockets.stalled.push_back(id);
        self.sockets.metrics.stalls.add(1);
        self.engine.pause_reading(id);
    }

    /// Goes on with connections whose message had no room, oldest first; whether any could.
    pub(super) fn go_on_with_stalled(&mut self) -> bool {
        let mut went_on = false;
        for _ in 0..self.sockets.stalled.len().min(RETRIES_MAX) {
            let Some(id) = self.sockets.stalled.pop_front() else { break };
            went_on |= self.go_on(id);
        }
        went_on
    }

    /// Pauses the reading of connections that fill the queue of a lagging reader, until the next survey.
    pub(super) fn pause_senders(&mut self) {
        for id in std::mem::take(&mut self.sockets.to_pause) {
            let Some(conn) = self.sockets.get(id).filter(|conn| conn.phase == Phase::Open) else { continue };
            if !conn.is_stalled() {
                conn.extra().stalled = Some(Stalled::default());
                self.sockets.paused.push(id);
                self.sockets.metrics.pauses.add(1);
                self.engine.pause_reading(id);
            }
        }
    }

    /// Goes on with connections that paused, and with those that opened with bytes waiting.
    pub(super) fn resume_paused(&mut self) {
        for id in std::mem::take(&mut self.sockets.paused) {
            self.go_on(id);
        }
    }

    fn go_on(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.sockets.get(id).filter(|conn| conn.phase == Phase::Open) else { return false };
        let Some(Stalled { text, mut rest }) = conn.extra().stalled.take() else { return false };
        if !text.is_empty() && self.stop.is_none() {
            // It was parsed before, without a panic.
            let input = Input::Said { conn: id, command: command::parse(&text) };
            if self.hub.handle(self.sockets.now, input, &mut self.sockets) == Outcome::NoRoom {
                if let Some(conn) = self.sockets.get(id) {
                    conn.extra().stalled = Some(Stalled { text, rest });
                }
                self.sockets.stalled.push_back(id);
                return false;
            }
        }
        self.messages(id, &mut rest);
        let now = self.sockets.now;
        let Some(conn) = self.sockets.get(id).filter(|conn| conn.phase == Phase::Open) else { return true };
        if !conn.is_stalled() {
            conn.heard = now;
            conn.trim();
            if conn.peer_finished {
                self.end(id, Cause::PeerGone);
            } else {
                self.engine.resume_reading(id);
            }
        }
        true
    }
}

/// Decodes and parses one step. It touches nothing but its arguments, so that a panic in it leaves all else sound.
fn read_one<'a>(
    decoder: &'a mut Decoder,
    input: &'a mut [u8],
    limits: &ws::Limits,
) -> Result<(usize, Said<'a>), ProtocolError> {
    let decoded = decoder.decode(input, limits)?;
    let said = match decoded.event {
        None => Said::Nothing,
        #[cfg(test)]
        Some(Event::Text(super::tests::PANICS)) => panic!("a test asked for this"),
        Some(Event::Text(text)) => Said::Command(text, command::parse(text)),
        Some(Event::Binary(_)) => Said::Binary,
        Some(Event::Ping(payload)) => Said::Ping(payload),
        Some(Event::Pong(_)) => Said::Pong,
        Some(Event::Close(close)) => Said::Close(close.map(|(code, _)| code)),
    };
    Ok((decoded.consumed, said))
}
