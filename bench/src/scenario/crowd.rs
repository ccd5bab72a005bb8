//! A day's mixture: pairs that talk, one user that broadcasts, readers that are slow, a mass that is silent, and some of
//! that mass that leaves and comes back with the same identity, a few at a time or all at once.

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::pace::Pace;
use crate::scenario::{Question, Unicast, content_around, is_filler_whole, is_pong};
use crate::sequence::SequenceTracker;
use crate::stamp::Stamp;
use crate::sys;

/// How long slow readers are given to find out what became of them, once they read again.
const SLOW_READS_WITHIN_NS: u64 = 1_000_000_000;

/// Who does what, by user number: pairs first, slow readers last, those who come and go in between.
#[derive(Clone, Debug)]
pub struct Roles {
    /// Users below this talk in pairs, and stay connected.
    pub talkers: u32,
    /// Users from this number on do not read.
    pub slow_from: u32,
    /// Broadcasts a second of the first user, if this worker has it.
    pub broadcasts_per_second: f64,
    /// Connections of this worker that leave in each second; all of them at once when `storm` is set.
    pub leaves_per_second: f64,
    /// Everybody between talkers and slow readers is cut off at once, at the beginning of the traffic.
    pub storm: bool,
}

/// What a connection does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Stays and reads.
    Stable,
    /// Leaves and comes back.
    Churner,
    /// Stays and does not read.
    Slow,
}

/// The driver of one worker.
pub struct Crowd {
    roles: Roles,
    talk: Unicast,
    payload_bytes: usize,
    broadcast: Template,
    stamp_at: usize,
    ping: Template,
    sent: u64,
    broadcasts: Option<Pace>,
    leaves: Option<Pace>,
    next_leaver: usize,
    /// Connections of a reconnect storm that have not answered yet.
    away: usize,
    started: bool,
    stopped_ns: u64,
    connections: Vec<Member>,
}

#[derive(Default)]
struct Member {
    /// When this connection was to leave, in nanoseconds of the monotonic clock; 0 once it is back.
    left_ns: u64,
    /// The broadcasts of this life of the connection.
    broadcasts: Option<SequenceTracker>,
}

impl Crowd {
    /// A driver for `connections` connections; `talk` are the pairs among them.
    pub fn new(roles: Roles, talk: Unicast, payload_bytes: usize, connections: usize) -> Self {
        let before = r#"{"type":"broadcast","content":""#;
        Self {
            roles,
            talk,
            payload_bytes,
            broadcast: Template::text(&content_around(before, payload_bytes, "\"}")),
            stamp_at: before.len(),
            ping: Question::Ping.template(),
            sent: 0,
            broadcasts: None,
            leaves: None,
            next_leaver: 0,
            away: 0,
            started: false,
            stopped_ns: 0,
            connections: (0..connections).map(|_| Member::default()).collect(),
        }
    }

    fn role(&self, user: u32) -> Role {
        let churns = self.roles.storm || self.roles.leaves_per_second > 0.0;
        match user {
            _ if user >= self.roles.slow_from => Role::Slow,
            // The first user broadcasts, and so must stay.
            _ if churns && user != 0 && user >= self.roles.talkers => Role::Churner,
            _ => Role::Stable,
        }
    }

    fn leave(&mut self, net: &mut Net, index: usize, at_ns: u64, politely: bool) {
        self.connections[index].left_ns = at_ns;
        net.leave(self, index, politely);
    }

    /// The next connection in turn that may leave.
    fn next_leaver(&mut self, net: &Net) -> Option<usize> {
        for _ in 0..net.len() {
            let index = self.next_leaver;
            self.next_leaver = if index + 1 == net.len() { 0 } else { index + 1 };
            let is_back = self.connections[index].left_ns == 0;
            if self.role(net.user(index)) == Role::Churner && is_back && net.is_open(index) {
                return Some(index);
            }
        }
        None
    }

    fn broadcast_received(
        &mut self,
        net: &mut Net,
        index: usize,
        now_ns: u64,
        at: usize,
        payload: &[u8],
        stamp: Stamp,
    ) {
        if !is_filler_whole(payload, at, self.payload_bytes) {
            net.tally.corrupt += 1;
            return;
        }
        let role = self.role(net.user(index));
        let first = if role == Role::Stable { 0 } else { stamp.sequence };
        let tracker = self.connections[index].broadcasts.get_or_insert_with(|| SequenceTracker::joined_at(first));
        let arrival = tracker.note(stamp.sequence);
        if !net.tally.counts(arrival) {
            return;
        }
        match role {
            Role::Stable => {
                let lag_ns = u64::from(stamp.lag_us) * 1_000;
                net.received_paced(now_ns, stamp.age_ns(now_ns), lag_ns, payload.len());
            }
            Role::Churner => net.received_extra(now_ns, stamp.age_ns(now_ns), payload.len()),
            // What a slow reader finds when it reads at last says nothing about the server's latency.
            Role::Slow => net.tally.received_extra += 1,
        }
    }

    fn pong_received(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        let left_ns = std::mem::take(&mut self.connections[index].left_ns);
        if left_ns == 0 {
            return net.unexpected(payload);
        }
        net.tally.ready.record(now_ns.saturating_sub(net.started_ns(index)));
        net.tally.resume.record(now_ns.saturating_sub(left_ns));
        // It counts as an answer, but not among the latencies of messages.
        net.tally.received += 1;
        net.ready(index);
        self.away = self.away.saturating_sub(1);
    }

    fn end_of_life(&mut self, net: &mut Net, index: usize) {
        let life = self.connections[index].broadcasts.take();
        if self.role(net.user(index)) == Role::Churner {
            net.tally.gaps += life.map_or(0, |tracker| tracker.gaps());
        }
    }
}

impl Driver for Crowd {
    fn opened(&mut self, net: &mut Net, index: usize) -> bool {
        if self.connections[index].left_ns == 0 {
            return true;
        }
        self.ping.append(net.out(index));
        net.tally.sent += 1;
        false
    }

    fn start(&mut self, net: &mut Net) {
        self.started = true;
        let now_ns = sys::now_ns();
        let pace = |per_second: f64| (per_second > 0.0).then(|| Pace::new(per_second, now_ns, 0.0));
        let has_sender = net.len() > 0 && net.user(0) == 0;
        self.broadcasts = if has_sender { pace(self.roles.broadcasts_per_second) } else { None };
        self.leaves = pace(if self.roles.storm { 0.0 } else { self.roles.leaves_per_second });
        for index in 0..net.len() {
            match self.role(net.user(index)) {
                _ if !net.is_open(index) => {}
                Role::Stable => net.tally.listeners += 1,
                Role::Slow => net.pause(index),
                Role::Churner if self.roles.storm => {
                    self.away += 1;
                    self.leave(net, index, now_ns, false);
                }
                Role::Churner => {}
            }
        }
        self.talk.start(net);
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        if is_pong_shaped(payload) {
            return self.pong_received(net, index, now_ns, payload);
        }
        match Stamp::find(payload) {
            Some((at, stamp)) if payload.starts_with(br#"{"type":"broadcast""#) => {
                self.broadcast_received(net, index, now_ns, at, payload, stamp);
            }
            Some(_) if self.talk.is_active(net.user(index)) => self.talk.message(net, index, now_ns, payload),
            _ => net.unexpected(payload),
        }
    }

    fn closed(&mut self, net: &mut Net, index: usize) {
        self.end_of_life(net, index);
        if std::mem::take(&mut self.connections[index].left_ns) != 0 {
            self.away = self.away.saturating_sub(1);
        }
    }

    fn left(&mut self, net: &mut Net, index: usize) {
        self.end_of_life(net, index);
        net.begin_again(index);
    }

    fn turn(&mut self, net: &mut Net, now_ns: u64) {
        self.talk.turn(net, now_ns);
        while let Some(intended_ns) = self.broadcasts.as_mut().and_then(|pace| pace.due(now_ns)) {
            let lag_us = (now_ns.saturating_sub(intended_ns) / 1_000).try_into().unwrap_or(u32::MAX);
            let stamp = Stamp { sender: 0, sequence: self.sent, intended_ns, lag_us };
            self.broadcast.append_with(self.stamp_at, &stamp.encode(), net.out(0));
            self.sent += 1;
            net.tally.broadcasts += 1;
            net.sent_paced(intended_ns, now_ns);
        }
        while let Some(intended_ns) = self.leaves.as_mut().and_then(|pace| pace.due(now_ns)) {
            if let Some(index) = self.next_leaver(net) {
                self.leave(net, index, intended_ns, true);
            }
        }
    }

    fn next_due_ns(&self) -> u64 {
        let paces = [&self.broadcasts, &self.leaves];
        let own = paces.into_iter().flatten().map(Pace::next_ns).min().unwrap_or(u64::MAX);
        own.min(self.talk.next_due_ns())
    }

    fn is_finished(&self) -> bool {
        self.roles.storm && self.roles.talkers == 0 && self.started && self.away == 0
    }

    fn stop(&mut self, net: &mut Net) {
        self.talk.stop(net);
        self.broadcasts = None;
        self.leaves = None;
        for index in 0..net.len() {
            if self.role(net.user(index)) == Role::Slow && net.is_open(index) {
                self.stopped_ns = sys::now_ns();
                net.resume(index);
            }
        }
    }

    fn is_busy(&self) -> bool {
        let reading = self.stopped_ns != 0 && sys::now_ns() < self.stopped_ns + SLOW_READS_WITHIN_NS;
        reading || self.away > 0
    }
}

/// A pong, told from the other messages without looking into each one.
fn is_pong_shaped(payload: &[u8]) -> bool {
    payload.len() < 64 && is_pong(payload)
}
