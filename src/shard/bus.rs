//! What the bus brings to a shard, and what the shard has for the bus, once a turn.

use std::os::fd::AsFd;

use crate::hub::effects::Effects;
use crate::hub::{Input, Outcome};

use super::run::{Shard, ShardError};

/// Messages of the bus handled in one turn, of each kind.
const BUS_MESSAGES_MAX: usize = 512;

impl Shard {
    /// Tells the bus which shard has this port, and how to wake it.
    pub(super) fn attach_port(&self) -> Result<(), ShardError> {
        let Some(port) = &self.sockets.port else { return Ok(()) };
        let wake = self.engine.wake_fd().as_fd().try_clone_to_owned();
        port.attach(self.sockets.shard(), wake.map_err(|error| ShardError::Io("eventfd", error))?);
        Ok(())
    }

    /// Handles what the bus has brought; whether there was anything.
    pub(super) fn bus_in(&mut self) -> bool {
        let now = self.sockets.now;
        let Some(port) = &mut self.sockets.port else { return false };
        port.pull();
        let mut handled = false;
        for _ in 0..BUS_MESSAGES_MAX {
            let Some(message) = self.sockets.port.as_mut().and_then(|port| port.take()) else { break };
            // Only when every owner's outbox has room; else it stays the oldest, and its bytes stay out.
            let outcome = self.hub.handle(now, Input::Bus(&message), &mut self.sockets);
            let Some(port) = &mut self.sockets.port else { break };
            if outcome == Outcome::NoRoom {
                port.unhandled(message);
                break;
            }
            port.handled(&message);
            handled = true;
        }
        for _ in 0..BUS_MESSAGES_MAX {
            if !self.sockets.takes_broadcasts() {
                break;
            }
            let Some(message) = self.sockets.port.as_mut().and_then(|port| port.take_broadcast()) else { break };
            self.hub.handle(now, Input::Bus(&message), &mut self.sockets);
            handled = true;
        }
        handled
    }

    /// Hands the bus what this turn has for it; whether there was anything.
    pub(super) fn bus_out(&mut self) -> bool {
        self.sockets.port.as_mut().is_some_and(|port| port.flush())
    }

    /// Whether the shard may sleep: the bus has brought nothing, and wakes it when it does.
    pub(super) fn may_park(&self) -> bool {
        self.sockets.port.as_ref().is_none_or(|port| port.before_park())
    }

    /// Whether nothing waits between this shard and the bus.
    pub(super) fn bus_is_quiet(&self) -> bool {
        self.sockets.port.as_ref().is_none_or(|port| port.is_quiet())
    }
}
