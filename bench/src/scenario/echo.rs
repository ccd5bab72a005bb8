//! Questions and answers. Closed loop: every connection keeps `inflight` questions unanswered, and asks anew with each
//! answer. Open loop: a schedule says when the next connection in turn asks.

use std::collections::VecDeque;

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::scenario::flow::Flow;
use crate::scenario::{Load, Question, is_filler_whole, is_pong};
use crate::sequence::SequenceTracker;
use crate::stamp::{STAMP_BYTES, Stamp};
use crate::sys;

/// The driver of one worker.
pub struct Echo {
    question: Question,
    template: Template,
    flow: Flow,
    /// Users from this number on stay silent.
    active: u32,
    connections: Vec<Stream>,
}

#[derive(Default)]
struct Stream {
    /// When the unanswered pings were to be sent and were, in nanoseconds of the monotonic clock, oldest first.
    asked_ns: VecDeque<(u64, u64)>,
    asked: u64,
    answers: SequenceTracker,
}

impl Echo {
    /// A driver for `connections` connections; only users below `active` ask.
    pub fn new(question: Question, load: Load, active: u32, connections: usize) -> Self {
        let connections = (0..connections).map(|_| Stream::default()).collect();
        let template = question.template();
        Self { question, template, flow: Flow::new(load), active, connections }
    }

    fn ask(&mut self, net: &mut Net, index: usize, intended_ns: u64, now_ns: u64) {
        let stream = &mut self.connections[index];
        match self.question {
            Question::Ping => {
                self.template.append(net.out(index));
                stream.asked_ns.push_back((intended_ns, now_ns));
            }
            Question::Raw(_) => {
                let lag_us = (now_ns.saturating_sub(intended_ns) / 1_000).try_into().unwrap_or(u32::MAX);
                let stamp = Stamp { sender: net.user(index), sequence: stream.asked, intended_ns, lag_us };
                self.template.append_with(0, &stamp.encode(), net.out(index));
            }
        }
        stream.asked += 1;
        net.tally.sent += 1;
    }

    /// The answer's age and how late its question was, in nanoseconds; `None` when it is no answer.
    fn note(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) -> Option<(u64, u64)> {
        let bytes = match self.question {
            Question::Ping if is_pong(payload) => {
                // Pongs carry nothing: they come in the order of their pings.
                let Some((intended_ns, asked_ns)) = self.connections[index].asked_ns.pop_front() else {
                    net.tally.duplicated += 1;
                    return None;
                };
                return Some((now_ns.saturating_sub(intended_ns), asked_ns - intended_ns));
            }
            Question::Ping => {
                net.unexpected(payload);
                return None;
            }
            Question::Raw(bytes) => bytes,
        };
        let stamp = Stamp::find(payload).filter(|(at, stamp)| {
            *at == 0
                && stamp.sender == net.user(index)
                && payload.len() == bytes.max(STAMP_BYTES)
                && is_filler_whole(payload, 0, bytes)
        });
        let Some((_, stamp)) = stamp else {
            net.tally.corrupt += 1;
            return None;
        };
        let arrival = self.connections[index].answers.note(stamp.sequence);
        net.tally.counts(arrival).then(|| (stamp.age_ns(now_ns), u64::from(stamp.lag_us) * 1_000))
    }
}

impl Driver for Echo {
    fn start(&mut self, net: &mut Net) {
        let at_once = self.flow.start();
        for index in (0..net.users_below(self.active)).take_while(|_| at_once > 0) {
            if net.is_open(index) {
                let now_ns = sys::now_ns();
                (0..at_once).for_each(|_| self.ask(net, index, now_ns, now_ns));
                net.write(index);
            }
        }
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        let Some((age_ns, lag_ns)) = self.note(net, index, now_ns, payload) else { return };
        if self.flow.received(net, now_ns, age_ns, lag_ns, payload.len()) {
            self.ask(net, index, now_ns, now_ns);
        }
    }

    fn turn(&mut self, net: &mut Net, now_ns: u64) {
        while let Some(intended_ns) = self.flow.due(now_ns) {
            let asker = self.flow.next_in_turn(net.users_below(self.active), |index| net.is_open(index));
            if let Some(index) = asker {
                self.ask(net, index, intended_ns, now_ns);
                net.sent_paced(intended_ns, now_ns);
            }
        }
    }

    fn next_due_ns(&self) -> u64 {
        self.flow.next_due_ns()
    }

    fn stop(&mut self, _net: &mut Net) {
        self.flow.stop();
    }
}
