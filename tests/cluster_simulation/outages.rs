//! Which process could not be reached, and when: what the check excuses hangs on it.

use ringmesh::bus::call::NodeId;

use crate::process::Process;

use super::{S, World};

/// How long after its new life a node has entered its users again.
pub const ENTERED_WITHIN: u64 = 5 * S;

/// A lease, and a little.
const LEASE: u64 = 12 * S;

/// A process that died, or that was declared dead though it lived.
pub struct Upheaval {
    pub process: usize,
    /// Since when nothing may have reached it: of who died, the moment of its death.
    pub since: u64,
    /// When it took its new life, or, of who died, when the others knew; `u64::MAX`: not yet.
    pub until: u64,
    /// It lived.
    pub was_declared: bool,
}

/// Redis lost what was written since a time.
pub struct Loss {
    pub since: u64,
    pub at: u64,
}

/// A process that could not be reached for a while: cut off from Redis, or suspended.
pub struct Outage {
    pub process: usize,
    pub since: u64,
    pub until: u64,
}

impl World {
    pub(super) fn ends_outage(&mut self, at: usize) {
        let now = self.now;
        let of_process = self.outages.iter_mut().filter(|outage| outage.process == at && outage.until > now);
        of_process.for_each(|outage| outage.until = now);
        let of_process = self.upheavals.iter_mut().filter(|upheaval| upheaval.process == at && upheaval.until > now);
        of_process.filter(|upheaval| upheaval.was_declared).for_each(|upheaval| upheaval.until = now);
    }

    /// Whether a process was declared dead, lives, and has no new life yet, or has not entered its users again.
    pub(super) fn is_declared(&self, at: usize) -> bool {
        let is_now = |upheaval: &Upheaval| upheaval.until.saturating_add(ENTERED_WITHIN) > self.now;
        self.upheavals.iter().any(|upheaval| upheaval.process == at && upheaval.was_declared && is_now(upheaval))
    }

    /// The first life of a process is no upheaval, nor is the next one of a node whose process has died: that was.
    pub(super) fn begins_life(&mut self, at: usize) {
        let now = self.now;
        if let Some(upheaval) = self.upheavals.iter_mut().rfind(|upheaval| upheaval.process == at) {
            upheaval.until = now;
        }
        let node = self.processes[at].node.clone();
        self.is_known_dead(&node);
    }

    /// A process that has just taken a new life stands still: it enters its users again later.
    pub(super) fn enters_later(&mut self, at: usize, until: u64) {
        let now = self.now;
        let enters = |upheaval: &&mut Upheaval| {
            upheaval.process == at
                && upheaval.was_declared
                && upheaval.until <= now
                && upheaval.until.saturating_add(ENTERED_WITHIN) > now
        };
        self.upheavals.iter_mut().filter(enters).for_each(|upheaval| upheaval.until = until);
    }

    /// The others know that what died of this node is dead.
    pub(super) fn is_known_dead(&mut self, node: &NodeId) {
        let (now, processes) = (self.now, &self.processes);
        let died = self.upheavals.iter_mut().filter(|upheaval| {
            let process = &processes[upheaval.process];
            !upheaval.was_declared && process.node == *node && !process.is_alive
        });
        died.for_each(|upheaval| upheaval.until = upheaval.until.min(now));
    }

    /// A node is declared dead only if it is gone, or has been out of reach for long by its own fault.
    pub(super) fn check_declared(&mut self) {
        for (node, incarnation) in std::mem::take(&mut self.redis.declared) {
            self.note(|| format!("{node} of life {incarnation} is declared dead"));
            self.declared.push((node.clone(), self.now));
            let is_again = !self.dead_lives.insert((node.clone(), incarnation));
            // Who has been told to stop may have released its lease, and wait for the answer.
            let is_it = |process: &Process| {
                process.node == node
                    && process.is_alive
                    && process.stops_since.is_none()
                    && process.bus.incarnation() == incarnation
            };
            let alive = self.processes.iter().position(is_it);
            if alive.is_none() {
                self.is_known_dead(&node);
            }
            if let Some(process) = alive {
                let was_out =
                    |outage: &&Outage| outage.process == process && outage.until.saturating_add(2 * LEASE) > self.now;
                let since = self.outages.iter().filter(was_out).map(|outage| outage.since).min();
                let since = since.unwrap_or(self.now);
                self.upheavals.push(Upheaval { process, since, until: u64::MAX, was_declared: true });
            }
            let is_innocent = |process: &&Process| {
                is_it(process) && process.suspended_until + 25 * S < self.now && process.cut_off_at + 25 * S < self.now
            };
            let innocent = self.processes.iter().find(is_innocent);
            assert!(is_again || innocent.is_none(), "{node} lives, and is declared dead");
        }
    }
}
