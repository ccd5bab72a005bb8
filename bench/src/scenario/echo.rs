//! Questions and answers. Closed loop: every connection keeps `inflight` questions unanswered, and asks anew with each
//! answer. Open loop: a schedule says when the next connection in turn asks.

use std::collections::VecDeque;

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::pace::Pace;
use crate::scenario::{Load, Question, is_filler_whole, is_pong};
use crate::sequence::{Arrival, SequenceTracker};
use crate::stamp::{STAMP_BYTES, Stamp};
use crate::sys;

/// The driver of one worker.
pub struct Echo {
    question: Question,
    template: Template,
    load: Load,
    /// Users from this number on stay silent.
    active: u32,
    running: bool,
    pace: Option<Pace>,
    /// The connection that asks next, in an open loop.
    next: usize,
    connections: Vec<Stream>,
}

#[derive(Default)]
struct Stream {
    /// When the unanswered questions were to be sent and were, in nanoseconds of the monotonic clock, oldest first.
    asked_ns: VecDeque<(u64, u64)>,
    asked: u64,
    answers: SequenceTracker,
}

impl Echo {
    /// A driver for `connections` connections; only users below `active` ask.
    pub fn new(question: Question, load: Load, active: u32, connections: usize) -> Self {
        let connections = (0..connections).map(|_| Stream::default()).collect();
        let template = question.template();
        Self { question, template, load, active, running: false, pace: None, next: 0, connections }
    }

    fn next_asker(&mut self, net: &Net) -> Option<usize> {
        for _ in 0..net.len() {
            let index = self.next;
            self.next = if index + 1 == net.len() { 0 } else { index + 1 };
            if net.user(index) < self.active && net.is_open(index) {
                return Some(index);
            }
        }
        None
    }

    fn ask(&mut self, net: &mut Net, index: usize, intended_ns: u64, now_ns: u64) {
        let stream = &mut self.connections[index];
        match self.question {
            Question::Ping => self.template.append(net.out(index)),
            Question::Raw(_) => {
                let stamp = Stamp { sender: net.user(index), sequence: stream.asked, intended_ns, lag_us: 0 };
                self.template.append_with(0, &stamp.encode(), net.out(index));
            }
        }
        stream.asked += 1;
        stream.asked_ns.push_back((intended_ns, now_ns));
        net.tally.sent += 1;
    }

    /// Notes the answer; false when it is none.
    fn note(&mut self, net: &mut Net, index: usize, payload: &[u8]) -> bool {
        match self.question {
            Question::Ping if is_pong(payload) => true,
            Question::Ping => {
                net.unexpected(payload);
                false
            }
            Question::Raw(bytes) => {
                let stamp = Stamp::find(payload).filter(|(at, stamp)| {
                    *at == 0
                        && stamp.sender == net.user(index)
                        && payload.len() == bytes.max(STAMP_BYTES)
                        && is_filler_whole(payload, 0, bytes)
                });
                let Some((_, stamp)) = stamp else {
                    net.tally.corrupt += 1;
                    return false;
                };
                match self.connections[index].answers.note(stamp.sequence) {
                    Arrival::New => {}
                    Arrival::Late => net.tally.reordered += 1,
                    Arrival::Duplicate => {
                        net.tally.duplicated += 1;
                        return false;
                    }
                }
                true
            }
        }
    }
}

impl Driver for Echo {
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
            if net.user(index) < self.active && net.is_open(index) {
                let now_ns = sys::now_ns();
                (0..inflight).for_each(|_| self.ask(net, index, now_ns, now_ns));
                net.write(index);
            }
        }
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        if !self.note(net, index, payload) {
            return;
        }
        let Some((intended_ns, asked_ns)) = self.connections[index].asked_ns.pop_front() else {
            net.tally.duplicated += 1;
            return;
        };
        let age_ns = now_ns.saturating_sub(intended_ns);
        match self.load {
            Load::Open { .. } => net.received_paced(now_ns, age_ns, asked_ns - intended_ns, payload.len()),
            Load::Closed { .. } => {
                net.received(now_ns, age_ns, payload.len());
                if self.running {
                    self.ask(net, index, now_ns, now_ns);
                }
            }
        }
    }

    fn turn(&mut self, net: &mut Net, now_ns: u64) {
        while let Some(intended_ns) = self.pace.as_mut().and_then(|pace| pace.due(now_ns)) {
            if let Some(index) = self.next_asker(net) {
                self.ask(net, index, intended_ns, now_ns);
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
