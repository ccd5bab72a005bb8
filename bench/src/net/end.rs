//! Connections ended: by the scenario, by the end of the run, or by whatever went wrong.

use std::io;

use super::{Connection, Driver, Net, State};
use crate::frame::{self, Opcode};

impl Net {
    /// Ends this connection: with a Close and its answer, or as a crash would. [`Driver::left`] says when it is gone.
    pub fn leave<D: Driver>(&mut self, driver: &mut D, index: usize, politely: bool) {
        if self.connections[index].state != State::Open {
            return;
        }
        if politely {
            self.append_close(index);
            self.connections[index].state = State::Leaving;
        } else {
            self.drop_connection(index);
            driver.left(self, index);
        }
    }

    pub(super) fn append_close(&mut self, index: usize) {
        // RFC 6455 7.4.1: 1000, a normal closure.
        frame::encode(Opcode::Close, &1000_u16.to_be_bytes(), self.out(index));
    }

    /// Says goodbye on every connection, and begins no more.
    pub fn close_all(&mut self) {
        self.closing = true;
        self.next = self.connections.len();
        self.again.clear();
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Open if self.connections[index].slow => self.drop_connection(index),
                State::Open => {
                    self.append_close(index);
                    self.connections[index].state = State::Closing;
                }
                State::Connecting | State::Upgrading => self.drop_connection(index),
                State::Leaving => self.connections[index].state = State::Closing,
                State::Down | State::Closing => {}
            }
        }
    }

    /// A connection ended for this reason; while the run closes anyway, that is no error.
    pub(super) fn fail<D: Driver>(&mut self, driver: &mut D, index: usize, reason: &str) {
        let Connection { state, slow, again, .. } = self.connections[index];
        self.drop_connection(index);
        if self.closing {
            return;
        }
        match state {
            State::Down | State::Closing => {}
            State::Connecting | State::Upgrading => {
                self.tally.failed += 1;
                let stage = if state == State::Connecting { "connect" } else { "upgrade" };
                self.tally.error(&format!("{stage}: {reason}"));
                if again {
                    driver.closed(self, index);
                }
            }
            State::Leaving => driver.left(self, index),
            State::Open if slow => self.tally.slow_closed += 1,
            State::Open => {
                self.tally.closed_early += 1;
                self.tally.error(&format!("open: {reason}"));
                driver.closed(self, index);
            }
        }
    }

    pub(super) fn drop_connection(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.state == State::Down {
            return;
        }
        if matches!(connection.state, State::Open | State::Closing | State::Leaving) {
            self.open -= 1;
        }
        if !connection.ready {
            connection.ready = true;
            self.under_way -= 1;
        }
        connection.state = State::Down;
        connection.paused = false;
        connection.socket = None;
        connection.generation += 1;
        connection.out = Vec::new();
        connection.written = 0;
        connection.partial = Vec::new();
        connection.fragments = Vec::new();
    }
}

/// A name for the errors that load tests meet, rather than the platform's sentence.
pub(super) fn error_name(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused",
        Some(libc::ECONNRESET) => "reset",
        Some(libc::EPIPE) => "broken pipe",
        Some(libc::ETIMEDOUT) => "timed out",
        Some(libc::EADDRNOTAVAIL) => "no source port left",
        Some(libc::EADDRINUSE) => "source port in use",
        Some(libc::EMFILE | libc::ENFILE) => "no descriptor left",
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => "unreachable",
        _ => "other error",
    }
}
