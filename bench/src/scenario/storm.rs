//! Connections as fast as they go: connect, upgrade, one question, its answer.

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::scenario::{Question, is_pong};
use crate::sys;

/// The driver of one worker.
pub struct Storm {
    question: Question,
    template: Template,
    /// When each connection asked, in nanoseconds of the monotonic clock; 0 once it has its answer.
    asked_ns: Vec<u64>,
}

impl Storm {
    /// A driver for `connections` connections.
    pub fn new(question: Question, connections: usize) -> Self {
        Self { question, template: question.template(), asked_ns: vec![0; connections] }
    }
}

impl Driver for Storm {
    fn opened(&mut self, net: &mut Net, index: usize) -> bool {
        self.template.append(net.out(index));
        self.asked_ns[index] = sys::now_ns();
        net.tally.sent += 1;
        false
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        let asked_ns = std::mem::take(&mut self.asked_ns[index]);
        let is_answer = matches!(self.question, Question::Raw(_)) || is_pong(payload);
        if asked_ns == 0 || !is_answer {
            self.asked_ns[index] = asked_ns;
            return net.unexpected(payload);
        }
        net.tally.first_reply.record(now_ns.saturating_sub(asked_ns));
        net.tally.ready.record(now_ns.saturating_sub(net.started_ns(index)));
        net.received(now_ns, now_ns.saturating_sub(asked_ns), payload.len());
        net.ready(index);
    }
}
