//! What comes: connections made, heads, frames, messages.

use super::end::error_name;
use super::{Driver, Net, State};
use crate::frame::{self, Opcode};
use crate::handshake;
use crate::sys::{self, Readiness};

impl Net {
    pub(super) fn handle<D: Driver>(&mut self, driver: &mut D, event: Readiness, buffer: &mut [u8]) {
        let index = (event.token & 0xffff_ffff) as usize;
        if self.connections[index].generation != (event.token >> 32) as u32 {
            return;
        }
        if self.connections[index].state == State::Connecting && event.writable {
            self.connected(driver, index);
        }
        if event.writable && !self.connections[index].out.is_empty() {
            self.flush(driver, index);
        }
        if !self.connections[index].paused {
            if event.readable {
                self.read(driver, index, buffer, event.half_closed);
            }
        } else if event.ended {
            self.fail(driver, index, "given up by the server");
        }
    }

    pub(super) fn connected<D: Driver>(&mut self, driver: &mut D, index: usize) {
        let Some(socket) = &self.connections[index].socket else { return };
        if let Err(error) = sys::connect_result(socket) {
            self.fail(driver, index, error_name(&error));
            return;
        }
        let now_ns = sys::now_ns();
        let user = format!("{}{}", self.config.user_prefix, self.user(index));
        let mut request = Vec::new();
        self.target(index).append_request(&user, &mut request);
        self.out(index).extend_from_slice(&request);
        let connection = &mut self.connections[index];
        connection.state = State::Upgrading;
        self.tally.connect.record(now_ns - connection.since_ns);
        connection.since_ns = now_ns;
    }

    /// Reads what is there; `to_the_end` when the end of the stream may be among it.
    pub(super) fn read<D: Driver>(&mut self, driver: &mut D, index: usize, buffer: &mut [u8], to_the_end: bool) {
        loop {
            let Some(socket) = &self.connections[index].socket else { return };
            let read = match sys::receive(socket, buffer) {
                Ok(None) => return,
                Ok(Some(0)) => return self.fail(driver, index, "closed by the server"),
                Ok(Some(read)) => read,
                Err(error) => return self.fail(driver, index, error_name(&error)),
            };
            let now_ns = sys::now_ns();
            if self.connections[index].partial.is_empty() {
                let used = self.take(driver, index, now_ns, &buffer[..read]);
                self.connections[index].partial.extend_from_slice(&buffer[used..read]);
            } else {
                let mut partial = std::mem::take(&mut self.connections[index].partial);
                partial.extend_from_slice(&buffer[..read]);
                let used = self.take(driver, index, now_ns, &partial);
                partial.drain(..used);
                if !partial.is_empty() {
                    self.connections[index].partial = partial;
                }
            }
            // A short read has emptied the socket: what comes later is a new edge.
            if read < buffer.len() && !to_the_end {
                return;
            }
        }
    }

    /// Takes whole heads and frames off `input`, and says how many bytes they were.
    pub(super) fn take<D: Driver>(&mut self, driver: &mut D, index: usize, now_ns: u64, input: &[u8]) -> usize {
        let mut used = 0;
        if self.connections[index].state == State::Upgrading {
            match handshake::parse_response(input) {
                Ok(None) => return 0,
                Ok(Some(head)) => {
                    used = head;
                    self.upgraded(driver, index, now_ns);
                }
                Err(error) => {
                    self.fail(driver, index, &error.to_string());
                    return input.len();
                }
            }
        }
        loop {
            match frame::parse(&input[used..]) {
                Ok(None) => return used,
                Ok(Some(frame)) => {
                    used += frame.bytes;
                    self.frame(driver, index, now_ns, &frame);
                    if self.connections[index].socket.is_none() {
                        return input.len();
                    }
                }
                Err(error) => {
                    self.fail(driver, index, &error.to_string());
                    return input.len();
                }
            }
        }
    }

    pub(super) fn upgraded<D: Driver>(&mut self, driver: &mut D, index: usize, now_ns: u64) {
        let connection = &mut self.connections[index];
        connection.state = State::Open;
        self.tally.upgrade.record(now_ns - connection.since_ns);
        self.tally.opened += u64::from(!connection.again);
        self.tally.reopened += u64::from(connection.again);
        self.open += 1;
        if driver.opened(self, index) {
            self.ready(index);
        }
    }

    pub(super) fn frame<D: Driver>(&mut self, driver: &mut D, index: usize, now_ns: u64, frame: &frame::Frame<'_>) {
        match frame.opcode {
            Opcode::Text | Opcode::Binary if frame.fin => driver.message(self, index, now_ns, frame.payload),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                let mut fragments = std::mem::take(&mut self.connections[index].fragments);
                fragments.extend_from_slice(frame.payload);
                if frame.fin {
                    driver.message(self, index, now_ns, &fragments);
                    fragments.clear();
                }
                self.connections[index].fragments = fragments;
            }
            Opcode::Ping => {
                self.tally.server_pings += 1;
                frame::encode(Opcode::Pong, frame.payload, self.out(index));
            }
            Opcode::Pong => {}
            Opcode::Close if self.connections[index].state == State::Closing => self.drop_connection(index),
            Opcode::Close if self.connections[index].state == State::Leaving => {
                self.drop_connection(index);
                driver.left(self, index);
            }
            Opcode::Close => {
                let code = frame.payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                let name = code.map_or("close without a code".to_owned(), |code| format!("close {code}"));
                self.fail(driver, index, &name);
            }
        }
    }
}
