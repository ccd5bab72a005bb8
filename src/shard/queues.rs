//! What waits at a shard's rim for its hub, messages of other shards and of the bus, and the shard's port to the bus.

use std::os::fd::AsFd;

use crate::hub::bus::FromBus;
use crate::hub::links::Links;
use crate::ids::ConnId;

use super::run::{Shard, ShardError};
use super::sockets::Sockets;
use super::turn::Queues;

/// Messages handled in one turn, of each peer and class, and of each kind of the bus.
const MESSAGES_MAX: usize = 512;

impl Queues for Sockets {
    fn messages_max(&mut self) -> usize {
        MESSAGES_MAX
    }

    fn links(&mut self) -> &mut Links {
        &mut self.links
    }

    fn pull_bus(&mut self) {
        if let Some(port) = &mut self.port {
            port.pull();
        }
    }

    fn take_bus(&mut self) -> Option<FromBus> {
        self.port.as_mut()?.take()
    }

    fn handled_bus(&mut self, message: &FromBus) {
        if let Some(port) = &mut self.port {
            port.handled(message);
        }
    }

    fn unhandled_bus(&mut self, message: FromBus) {
        if let Some(port) = &mut self.port {
            port.unhandled(message);
        }
    }

    fn take_bus_broadcast(&mut self) -> Option<FromBus> {
        self.port.as_mut()?.take_broadcast()
    }

    fn postponed(&self) -> usize {
        self.postponed.len()
    }

    fn take_postponed(&mut self) -> Option<ConnId> {
        self.postponed.pop_front()
    }
}

impl Shard {
    /// Tells the bus which shard has this port, and how to wake it.
    pub(super) fn attach_port(&self) -> Result<(), ShardError> {
        let Some(port) = &self.sockets.port else { return Ok(()) };
        let wake = self.engine.wake_fd().as_fd().try_clone_to_owned();
        port.attach(self.sockets.shard(), wake.map_err(|error| ShardError::Io("eventfd", error))?);
        Ok(())
    }

    /// Whether nothing waits between this shard and the bus.
    pub(super) fn bus_is_quiet(&self) -> bool {
        self.sockets.port.as_ref().is_none_or(|port| port.is_quiet())
    }
}
