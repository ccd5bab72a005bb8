//! Users in pairs: each keeps `inflight` messages under way to the other, and answers each one that comes with one.

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::scenario::{content_around, is_filler_whole};
use crate::sequence::{Arrival, SequenceTracker};
use crate::stamp::Stamp;
use crate::sys;

/// The driver of one worker.
pub struct Unicast {
    user_prefix: String,
    payload_bytes: usize,
    inflight: u32,
    /// Users from this number on stay silent; even, so that no pair is cut.
    active: u32,
    running: bool,
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
    pub fn new(user_prefix: &str, payload_bytes: usize, inflight: u32, active: u32, connections: usize) -> Self {
        let connections = (0..connections).map(|_| Stream::default()).collect();
        let user_prefix = user_prefix.to_owned();
        Self { user_prefix, payload_bytes, inflight, active: active & !1, running: false, connections }
    }

    fn send(&mut self, net: &mut Net, index: usize, now_ns: u64) {
        let user = net.user(index);
        let stream = &mut self.connections[index];
        let template = stream.template.get_or_insert_with(|| {
            let peer = user ^ 1;
            let before = format!(r#"{{"type":"send_message","target_user":"{}{peer}","content":""#, self.user_prefix);
            stream.stamp_at = before.len();
            Box::new(Template::text(&content_around(&before, self.payload_bytes, "\"}")))
        });
        let stamp = Stamp { sender: user, sequence: stream.sent, intended_ns: now_ns, lag_us: 0 };
        template.append_with(stream.stamp_at, &stamp.encode(), net.out(index));
        stream.sent += 1;
        net.tally.sent += 1;
    }
}

impl Driver for Unicast {
    fn start(&mut self, net: &mut Net) {
        self.running = true;
        for index in 0..net.len() {
            if net.user(index) < self.active && net.is_open(index) {
                let now_ns = sys::now_ns();
                (0..self.inflight).for_each(|_| self.send(net, index, now_ns));
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
        net.received(now_ns, stamp.age_ns(now_ns), payload.len());
        if self.running {
            self.send(net, index, now_ns);
        }
    }

    fn stop(&mut self, _net: &mut Net) {
        self.running = false;
    }
}
