//! Every connection keeps `inflight` questions unanswered, and asks anew with each answer.

use std::collections::VecDeque;

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::scenario::{Question, is_filler_whole, is_pong};
use crate::sequence::{Arrival, SequenceTracker};
use crate::stamp::{STAMP_BYTES, Stamp};
use crate::sys;

/// The driver of one worker.
pub struct Echo {
    question: Question,
    template: Template,
    inflight: u32,
    /// Users from this number on stay silent.
    active: u32,
    running: bool,
    connections: Vec<Stream>,
}

#[derive(Default)]
struct Stream {
    /// When the unanswered questions were sent, in nanoseconds of the monotonic clock, oldest first.
    asked_ns: VecDeque<u64>,
    asked: u64,
    answers: SequenceTracker,
}

impl Echo {
    /// A driver for `connections` connections; only users below `active` ask.
    pub fn new(question: Question, inflight: u32, active: u32, connections: usize) -> Self {
        let connections = (0..connections).map(|_| Stream::default()).collect();
        Self { question, template: question.template(), inflight, active, running: false, connections }
    }

    fn ask(&mut self, net: &mut Net, index: usize, now_ns: u64) {
        let stream = &mut self.connections[index];
        match self.question {
            Question::Ping => self.template.append(net.out(index)),
            Question::Raw(_) => {
                let stamp = Stamp { sender: net.user(index), sequence: stream.asked, intended_ns: now_ns, lag_us: 0 };
                self.template.append_with(0, &stamp.encode(), net.out(index));
            }
        }
        stream.asked += 1;
        stream.asked_ns.push_back(now_ns);
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
        for index in 0..net.len() {
            if net.user(index) < self.active && net.is_open(index) {
                let now_ns = sys::now_ns();
                (0..self.inflight).for_each(|_| self.ask(net, index, now_ns));
                net.write(index);
            }
        }
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        if !self.note(net, index, payload) {
            return;
        }
        match self.connections[index].asked_ns.pop_front() {
            Some(asked_ns) => net.received(now_ns, now_ns.saturating_sub(asked_ns), payload.len()),
            None => {
                net.tally.duplicated += 1;
                return;
            }
        }
        if self.running {
            self.ask(net, index, now_ns);
        }
    }

    fn stop(&mut self, _net: &mut Net) {
        self.running = false;
    }
}
