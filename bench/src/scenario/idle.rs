//! Connections that only answer the server's pings; at the end each one is asked, and has to answer.

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::scenario::{Question, is_pong};
use crate::sys;

/// Questions unanswered at the same time in one worker, so that the check at the end is no storm of its own.
const ASKED_MAX: usize = 256;

/// The driver of one worker.
pub struct Idle {
    question: Question,
    template: Template,
    stopped: bool,
    /// The next connection to ask.
    next: usize,
    unanswered: usize,
    /// When each connection was asked, in nanoseconds of the monotonic clock; 0: not asked, or answered.
    asked_ns: Vec<u64>,
}

impl Idle {
    /// A driver for `connections` connections.
    pub fn new(question: Question, connections: usize) -> Self {
        let template = question.template();
        Self { question, template, stopped: false, next: 0, unanswered: 0, asked_ns: vec![0; connections] }
    }

    fn pump(&mut self, net: &mut Net) {
        while self.stopped && self.unanswered < ASKED_MAX && self.next < net.len() {
            let index = self.next;
            self.next += 1;
            if net.is_open(index) {
                self.template.append(net.out(index));
                self.asked_ns[index] = sys::now_ns();
                self.unanswered += 1;
                net.tally.sent += 1;
            }
        }
    }
}

impl Driver for Idle {
    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        let asked_ns = self.asked_ns[index];
        let is_answer = matches!(self.question, Question::Raw(_)) || is_pong(payload);
        if asked_ns == 0 || !is_answer {
            return net.unexpected(payload);
        }
        self.asked_ns[index] = 0;
        self.unanswered -= 1;
        net.tally.first_reply.record(now_ns.saturating_sub(asked_ns));
        net.received(now_ns, now_ns.saturating_sub(asked_ns), payload.len());
        self.pump(net);
    }

    fn closed(&mut self, net: &mut Net, index: usize) {
        if std::mem::take(&mut self.asked_ns[index]) != 0 {
            self.unanswered -= 1;
        }
        self.pump(net);
    }

    fn stop(&mut self, net: &mut Net) {
        self.stopped = true;
        self.pump(net);
    }

    fn is_busy(&self) -> bool {
        self.next < self.asked_ns.len()
    }
}
