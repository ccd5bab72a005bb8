//! One user broadcasts, and every connection, the sender's too, is to get each broadcast once and in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::pace::Pace;
use crate::scenario::{content_around, is_filler_whole};
use crate::sequence::SequenceTracker;
use crate::stamp::Stamp;
use crate::sys;

/// When the next broadcast goes out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pacing {
    /// As soon as fewer than so many are incomplete.
    Outstanding(u64),
    /// So many in one write, when the ones before are complete.
    Burst(u64),
    /// By a schedule, so many a second.
    Rate(f64),
}

/// How many broadcasts each worker's connections have all received, for the sender in another worker.
pub type FanoutProgress = Arc<Vec<AtomicU64>>;

/// The driver of one worker. The first user is the sender.
pub struct Fanout {
    payload_bytes: usize,
    template: Template,
    stamp_at: usize,
    pacing: Pacing,
    worker: usize,
    progress: FanoutProgress,
    running: bool,
    schedule: Option<Pace>,
    sent: u64,
    /// How many of this worker's connections have received the broadcasts from `complete` on.
    receipts: VecDeque<usize>,
    complete: u64,
    connections: Vec<SequenceTracker>,
}

impl Fanout {
    /// The driver of worker number `worker`. `raw`: the stamped text alone, for servers that copy what they get.
    pub fn new(
        payload_bytes: usize,
        raw: bool,
        pacing: Pacing,
        worker: usize,
        progress: FanoutProgress,
        connections: usize,
    ) -> Self {
        let before = if raw { "" } else { r#"{"type":"broadcast","content":""# };
        let after = if raw { "" } else { "\"}" };
        Self {
            payload_bytes,
            template: Template::text(&content_around(before, payload_bytes, after)),
            stamp_at: before.len(),
            pacing,
            worker,
            progress,
            running: false,
            schedule: None,
            sent: 0,
            receipts: VecDeque::new(),
            complete: 0,
            connections: vec![SequenceTracker::default(); connections],
        }
    }

    fn is_sender(&self) -> bool {
        self.worker == 0
    }

    /// Sends what the pacing allows, when this is the sender's worker.
    fn pump(&mut self, net: &mut Net) {
        if !self.running || !self.is_sender() || !net.is_open(0) {
            return;
        }
        if let Pacing::Rate(_) = self.pacing {
            let now_ns = sys::now_ns();
            while let Some(intended_ns) = self.schedule.as_mut().and_then(|schedule| schedule.due(now_ns)) {
                self.broadcast(net, intended_ns, now_ns);
                net.sent_paced(intended_ns, now_ns);
            }
            return;
        }
        let complete = self.progress.iter().map(|worker| worker.load(Ordering::Relaxed)).min().unwrap_or(0);
        let incomplete = self.sent.saturating_sub(complete);
        let allowed = match self.pacing {
            Pacing::Outstanding(limit) => limit.saturating_sub(incomplete),
            Pacing::Burst(size) if incomplete == 0 => size,
            Pacing::Burst(_) | Pacing::Rate(_) => 0,
        };
        for _ in 0..allowed {
            let now_ns = sys::now_ns();
            self.broadcast(net, now_ns, now_ns);
        }
    }

    fn broadcast(&mut self, net: &mut Net, intended_ns: u64, now_ns: u64) {
        let lag_us = (now_ns.saturating_sub(intended_ns) / 1_000).try_into().unwrap_or(u32::MAX);
        let stamp = Stamp { sender: net.user(0), sequence: self.sent, intended_ns, lag_us };
        self.template.append_with(self.stamp_at, &stamp.encode(), net.out(0));
        self.sent += 1;
        net.tally.broadcasts += 1;
    }

    /// Counts the broadcasts at the front that every connection of this worker has.
    fn advance(&mut self, net: &Net) {
        while self.receipts.front().is_some_and(|receipts| *receipts >= net.open()) {
            self.receipts.pop_front();
            self.complete += 1;
        }
        // A worker without connections holds nobody up.
        let complete = if net.open() == 0 { u64::MAX } else { self.complete };
        self.progress[self.worker].store(complete, Ordering::Relaxed);
    }
}

impl Driver for Fanout {
    fn start(&mut self, net: &mut Net) {
        self.running = true;
        net.tally.listeners = net.open() as u64;
        if let Pacing::Rate(per_second) = self.pacing {
            self.schedule = Some(Pace::new(per_second, sys::now_ns(), 0.0));
        }
        self.pump(net);
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        let Some((at, stamp)) = Stamp::find(payload).filter(|(_, stamp)| stamp.sender == 0) else {
            return net.unexpected(payload);
        };
        if !is_filler_whole(payload, at, self.payload_bytes) {
            net.tally.corrupt += 1;
            return;
        }
        if !net.tally.counts(self.connections[index].note(stamp.sequence)) {
            return;
        }
        let age_ns = stamp.age_ns(now_ns);
        if let Pacing::Rate(_) = self.pacing {
            // Nobody waits for the complete ones: they are not counted.
            return net.received_paced(now_ns, age_ns, u64::from(stamp.lag_us) * 1_000, payload.len());
        }
        net.received(now_ns, age_ns, payload.len());
        let Some(place) = stamp.sequence.checked_sub(self.complete) else { return };
        let place = place as usize;
        if place >= self.receipts.len() {
            self.receipts.resize(place + 1, 0);
        }
        self.receipts[place] += 1;
        if self.receipts[0] >= net.open() {
            self.advance(net);
            self.pump(net);
        }
    }

    fn closed(&mut self, net: &mut Net, _index: usize) {
        self.advance(net);
    }

    fn turn(&mut self, net: &mut Net, _now_ns: u64) {
        self.pump(net);
    }

    fn next_due_ns(&self) -> u64 {
        self.schedule.as_ref().filter(|_| self.is_sender()).map_or(u64::MAX, Pace::next_ns)
    }

    fn stop(&mut self, _net: &mut Net) {
        self.running = false;
        self.schedule = None;
    }
}
