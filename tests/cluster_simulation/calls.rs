//! The ways between the processes and Redis: connections, calls, and what is published.

use bytes::Bytes;
use ringmesh::bus::Input as BusInput;
use ringmesh::bus::call::{Call, CallId, NodeId, Reply};

use crate::redis::Outcome;

use super::faults::Play;
use super::outages::Outage;
use super::{MS, S, What, World, story};

/// The rim gives an answer so long.
pub(super) const ANSWER_MAX: u64 = 3 * S;

pub(super) struct Flight {
    pub(super) process: usize,
    pub(super) id: CallId,
    pub(super) call: Call,
    /// Nobody waits for the answer any more.
    pub(super) is_orphan: bool,
    pub(super) is_executed: bool,
}

impl World {
    /// Of the calls under way, some are executed, now or later, and some never.
    pub(super) fn orphan_flights(&mut self, at: usize) {
        let under_way: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.process == at && !flight.is_orphan)
            .map(|(&number, _)| number)
            .collect();
        for number in under_way {
            let Some(flight) = self.flights.get_mut(&number) else { continue };
            flight.is_orphan = true;
            let id = flight.id;
            let was_executed = flight.is_executed;
            if self.processes[at].is_alive {
                self.processes[at].from_redis.push_back(BusInput::Reply(id, Reply::Failed));
            }
            if was_executed || self.rng.one_in(2) {
                self.flights.remove(&number);
            } else if self.rng.one_in(3) {
                // The entry that stands in the queue finds nothing; this one comes late.
                if let Some(flight) = self.flights.remove(&number) {
                    self.numbers += 1;
                    let late = self.numbers;
                    self.flights.insert(late, flight);
                    let delay = self.rng.below(20 * S);
                    self.at(self.now + delay, What::Exec(late));
                }
            }
        }
    }

    pub(super) fn connect(&mut self, at: usize) {
        if !self.processes[at].is_alive || self.processes[at].is_connected {
            return;
        }
        let opens_at = self.down_until.max(self.stalled_until);
        if opens_at > self.now || self.processes[at].suspended_until > self.now {
            let delay = MS + self.rng.below(400 * MS);
            let when = opens_at.max(self.processes[at].suspended_until).max(self.now) + delay;
            return self.at(when, What::Connect(at));
        }
        let process = &mut self.processes[at];
        process.is_connected = true;
        process.is_subscribed = true;
        let now = self.now;
        let of_process = self.outages.iter_mut().filter(|outage| outage.process == at && outage.until == u64::MAX);
        of_process.for_each(|outage| outage.until = now);
        let process = &mut self.processes[at];
        process.session += 1;
        process.from_redis.push_back(BusInput::Connected);
        self.note(|| format!("process {at} is connected"));
        self.wake_bus(at);
    }

    pub(super) fn lose(&mut self, at: usize) {
        if !self.processes[at].is_connected {
            return;
        }
        self.note(|| format!("process {at} has lost Redis"));
        self.outages.push(Outage { process: at, since: self.now, until: u64::MAX });
        self.processes[at].is_connected = false;
        self.processes[at].is_subscribed = false;
        self.processes[at].session += 1;
        self.orphan_flights(at);
        self.processes[at].from_redis.push_back(BusInput::Lost);
        self.wake_bus(at);
        // Long enough for somebody to be let in elsewhere.
        let most = if self.faults.play == Play::OneStays { 6 * S } else { 2 * S };
        let delay = 50 * MS + self.rng.below(most);
        self.at(self.now + delay, What::Connect(at));
    }

    pub(super) fn begin(&mut self, at: usize, id: CallId, call: Call) {
        if !self.processes[at].is_connected {
            self.processes[at].from_redis.push_back(BusInput::Reply(id, Reply::Failed));
            return self.wake_bus(at);
        }
        self.numbers += 1;
        let number = self.numbers;
        let mut when = self.now + 20 + self.rng.below(self.faults.latency.max(100));
        if matches!(call, Call::PublishLink { .. } | Call::PublishContract { .. }) {
            let last = self.publish_at.entry(at).or_default();
            when = when.max(*last + 1);
            *last = when;
        } else {
            self.note(|| format!("process {at} calls {id:?} {call:?}"));
        }
        self.flights.insert(number, Flight { process: at, id, call, is_orphan: false, is_executed: false });
        self.at(when, What::Exec(number));
        if self.stalled_until > self.now + ANSWER_MAX {
            let session = self.processes[at].session;
            self.at(self.now + ANSWER_MAX, What::Lost(at, session));
        }
    }

    pub(super) fn execute(&mut self, number: u64) {
        let Some(flight) = self.flights.get(&number).filter(|flight| !flight.is_executed) else { return };
        if self.stalled_until > self.now || self.down_until > self.now {
            let when = self.stalled_until.max(self.down_until) + 1 + self.rng.below(5 * MS);
            return self.at(when, What::Exec(number));
        }
        let (at, call) = (flight.process, flight.call.clone());
        let reply = match &call {
            Call::PublishLink { node, envelope } => self.publish(at, node, true, envelope),
            Call::PublishContract { node, json } => self.publish(at, node, false, json),
            _ => {
                let subscribed: Vec<NodeId> = self
                    .processes
                    .iter()
                    .filter(|process| process.is_subscribed)
                    .map(|process| process.node.clone())
                    .collect();
                let (node, token) = (self.processes[at].node.clone(), self.processes[at].token);
                let events = self.redis.events.len();
                match self.redis.execute(self.now, &node, token, &call, &subscribed) {
                    Outcome::Again(ms) => return self.at(self.now + ms * MS, What::Exec(number)),
                    Outcome::Answer(reply) => {
                        self.note(|| format!("of process {at} Redis has {call:?}: {reply:?}"));
                        for event in events..self.redis.events.len() {
                            let event = self.redis.events[event].clone();
                            self.note(|| format!("event: {} {}", event.user, event.is_online));
                        }
                        self.check_declared();
                        if matches!(reply, Reply::Acquired { .. }) {
                            self.processes[at].hears_link = true;
                            self.begins_life(at);
                        }
                        reply
                    }
                }
            }
        };
        let Some(flight) = self.flights.get_mut(&number) else { return };
        flight.is_executed = true;
        if flight.is_orphan {
            self.flights.remove(&number);
            return;
        }
        let delay = 20 + self.rng.below(self.faults.latency.max(100));
        self.at(self.now + delay, What::Reply(number, reply));
    }

    pub(super) fn publish(&mut self, _from: usize, node: &NodeId, is_link: bool, bytes: &Bytes) -> Reply {
        let subscribers: Vec<usize> = (0..self.processes.len())
            .filter(|&at| {
                let process = &self.processes[at];
                process.is_subscribed && process.node == *node && (process.hears_link || !is_link)
            })
            .collect();
        for &process in &subscribers {
            if self.faults.loses_one_in > 0 && self.rest_from > self.now && self.rng.one_in(self.faults.loses_one_in) {
                self.note(|| format!("what is published for process {process} is lost"));
                continue;
            }
            let when = self.now + 20 + self.rng.below(self.faults.latency.max(100));
            let last = self.deliver_at.entry(process).or_default();
            let when = when.max(*last + 1);
            *last = when;
            let session = self.processes[process].session;
            self.at(when, What::Published { process, session, is_link, bytes: bytes.clone() });
        }
        Reply::Published { receivers: subscribers.len() as u64 }
    }

    pub(super) fn deliver(&mut self, at: usize, session: u64, is_link: bool, bytes: Bytes) {
        let process = &mut self.processes[at];
        if !process.is_alive || process.session != session {
            return;
        }
        if is_link {
            process.from_redis.push_back(BusInput::Envelope(bytes.clone()));
            self.note(|| format!("process {at} gets {}", story(&bytes)));
        } else {
            process.contract(bytes);
            self.note(|| format!("process {at} gets an order"));
        }
        self.wake_bus(at);
    }
}
