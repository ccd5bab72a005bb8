//! Users in pairs. Closed loop: each keeps `inflight` messages under way to the other, and answers each one that comes
//! with one. Open loop: a schedule says when the next user in turn sends.

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::pace::Pace;
use crate::scenario::{Load, content_around, is_filler_whole};
use crate::sequence::{Arrival, SequenceTracker};
use crate::stamp::Stamp;
use crate::sys;

/// The pairs among one worker's connections; also a part of [`super::Crowd`].
pub struct Unicast {
    user_prefix: String,
    payload_bytes: usize,
    load: Load,
    /// Users from this number on stay silent; even, so that no pair is cut.
    active: u32,
    running: bool,
    pace: Option<Pace>,
    /// The connection that sends next, in an open loop.
    next: usize,
    connections: Vec<Stream>,
}

#[derive(Default)]
struct Stream {
    template: Option<Box<Template>>,
    /// Where the content begins in the template's payload.
    stamp_at: usize,
    sent: u64,
    received: SequenceTracker,
}

impl Unicast {
    /// A driver for `connections` connections; only users below `active` talk.
    pub fn new(user_prefix: &str, payload_bytes: usize, load: Load, active: u32, connections: usize) -> Self {
        let connections = (0..connections).map(|_| Stream::default()).collect();
        let user_prefix = user_prefix.to_owned();
        let active = active & !1;
        Self { user_prefix, payload_bytes, load, active, running: false, pace: None, next: 0, connections }
    }

    /// True for the users that talk.
    pub fn is_active(&self, user: u32) -> bool {
        user < self.active
    }

    fn send(&mut self, net: &mut Net, index: usize, intended_ns: u64, now_ns: u64) {
        let user = net.user(index);
        let stream = &mut self.connections[index];
        let template = stream.template.get_or_insert_with(|| {
            let peer = user ^ 1;
            let before = format!(r#"{{"type":"send_message","target_user":"{}{peer}","content":""#, self.user_prefix);
            stream.stamp_at = before.len();
            Box::new(Template::text(&content_around(&before, self.payload_bytes, "\"}")))
        });
        let lag_us = (now_ns.saturating_sub(intended_ns) / 1_000).try_into().unwrap_or(u32::MAX);
        let stamp = Stamp { sender: user, sequence: stream.sent, intended_ns, lag_us };
        template.append_with(stream.stamp_at, &stamp.encode(), net.out(index));
        stream.sent += 1;
        net.tally.sent += 1;
    }

    /// The next talking user in turn whose connection and whose partner's are open.
    fn next_sender(&mut self, net: &Net) -> Option<usize> {
        for _ in 0..net.len() {
            let index = self.next;
            self.next = if index + 1 == net.len() { 0 } else { index + 1 };
            if self.is_active(net.user(index)) && net.is_open(index) && net.is_open(index ^ 1) {
                return Some(index);
            }
            if !self.is_active(net.user(index)) {
                // The talking users come first in every worker's share.
                self.next = 0;
            }
        }
        None
    }
}

impl Driver for Unicast {
    fn start(&mut self, net: &mut Net) {
        self.running = true;
        let inflight = match self.load {
            Load::Closed { inflight } => inflight,
            Load::Open { per_second, phase } => {
                self.pace = (per_second > 0.0).then(|| Pace::new(per_second, sys::now_ns(), phase));
                return;
            }
        };
        for index in 0..net.len() {
            if self.is_active(net.user(index)) && net.is_open(index) {
                let now_ns = sys::now_ns();
                (0..inflight).for_each(|_| self.send(net, index, now_ns, now_ns));
                net.write(index);
            }
        }
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        let Some((at, stamp)) = Stamp::find(payload).filter(|(_, stamp)| stamp.sender == net.user(index) ^ 1) else {
            return net.unexpected(payload);
        };
        if !is_filler_whole(payload, at, self.payload_bytes) {
            net.tally.corrupt += 1;
            return;
        }
        match self.connections[index].received.note(stamp.sequence) {
            Arrival::New => {}
            Arrival::Late => net.tally.reordered += 1,
            Arrival::Duplicate => {
                net.tally.duplicated += 1;
                return;
            }
        }
        let age_ns = stamp.age_ns(now_ns);
        match self.load {
            Load::Open { .. } => net.received_paced(now_ns, age_ns, u64::from(stamp.lag_us) * 1_000, payload.len()),
            Load::Closed { .. } => {
                net.received(now_ns, age_ns, payload.len());
                if self.running {
                    self.send(net, index, now_ns, now_ns);
                }
            }
        }
    }

    fn turn(&mut self, net: &mut Net, now_ns: u64) {
        while let Some(intended_ns) = self.pace.as_mut().and_then(|pace| pace.due(now_ns)) {
            if let Some(index) = self.next_sender(net) {
                self.send(net, index, intended_ns, now_ns);
                net.sent_paced(intended_ns, now_ns);
            }
        }
    }

    fn next_due_ns(&self) -> u64 {
        self.pace.as_ref().map_or(u64::MAX, Pace::next_ns)
    }

    fn stop(&mut self, _net: &mut Net) {
        self.running = false;
        self.pace = None;
    }
}
