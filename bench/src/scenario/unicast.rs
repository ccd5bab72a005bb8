//! Users in pairs. Closed loop: each keeps `inflight` messages under way to the other, and answers each one that comes
//! with one. Open loop: a schedule says when the next user in turn sends.

use crate::frame::Template;
use crate::net::{Driver, Net};
use crate::scenario::flow::Flow;
use crate::scenario::pairing::{self, Pairing, Pairs};
use crate::scenario::{Load, content_around, is_filler_whole};
use crate::sequence::SequenceTracker;
use crate::shards::Shards;
use crate::stamp::Stamp;
use crate::sys;

/// The pairs among one worker's connections; also a part of [`super::Crowd`].
pub struct Unicast {
    user_prefix: String,
    payload_bytes: usize,
    flow: Flow,
    /// Users from this number on stay silent; even, so that no pair is cut.
    active: u32,
    by_shard: Option<ByShard>,
    connections: Vec<Stream>,
}

/// Pairs that are made once it is known on which shard each connection is.
struct ByShard {
    pairs: Pairs,
    /// `None` once a shard could not be told: what follows is no clearer.
    counts: Option<Shards>,
    shards: Vec<Option<usize>>,
    /// The index of each connection's partner, from the beginning of the traffic on.
    partners: Vec<Option<usize>>,
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
        let by_shard = None;
        Self { user_prefix, payload_bytes, flow: Flow::new(load), active, by_shard, connections }
    }

    /// The same with pairs made by shard; connections must be begun one at a time, and by this worker alone.
    pub fn paired_by_shard(mut self, pairs: Pairs, counts: Shards) -> Self {
        let shards = vec![None; self.connections.len()];
        self.by_shard = Some(ByShard { pairs, counts: Some(counts), shards, partners: Vec::new() });
        self
    }

    /// True for the users that talk.
    pub fn is_active(&self, user: u32) -> bool {
        user < self.active
    }

    /// The index of a connection's partner.
    fn partner(&self, index: usize) -> Option<usize> {
        partner(self.by_shard.as_ref(), index)
    }

    /// The user that this connection's user talks to.
    fn peer(&self, net: &Net, index: usize) -> Option<u32> {
        match self.by_shard {
            None => Some(net.user(index) ^ 1),
            Some(_) => self.partner(index).map(|partner| net.user(partner)),
        }
    }

    /// This connection's user has somebody to talk to, and is to.
    fn talks(&self, net: &Net, index: usize) -> bool {
        self.is_active(net.user(index)) && net.is_open(index) && self.partner(index).is_some()
    }

    /// Puts the talking users into pairs, now that all are connected.
    fn pair(&mut self, net: &mut Net) {
        let active = (0..net.len()).filter(|index| self.is_active(net.user(*index))).count();
        if active == 0 {
            return;
        }
        net.tally.pairing = Some(match &mut self.by_shard {
            Some(ByShard { pairs, shards, partners, .. }) => {
                let shards = &shards[..active];
                *partners = pairing::partners(*pairs, shards);
                Pairing::new(*pairs, shards, partners)
            }
            None => {
                Pairing { pairs: Pairs::Mixed, made: active as u64 / 2, alone: active as u64 % 2, by_shard: vec![] }
            }
        });
    }

    fn send(&mut self, net: &mut Net, index: usize, intended_ns: u64, now_ns: u64) {
        let user = net.user(index);
        let Some(peer) = self.peer(net, index) else { return };
        let stream = &mut self.connections[index];
        let template = stream.template.get_or_insert_with(|| {
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
        let Self { flow, by_shard, active, .. } = self;
        flow.next_in_turn(net.users_below(*active), |index| {
            net.is_open(index) && partner(by_shard.as_ref(), index).is_some_and(|partner| net.is_open(partner))
        })
    }
}

/// The index of a connection's partner.
fn partner(by_shard: Option<&ByShard>, index: usize) -> Option<usize> {
    match by_shard {
        None => Some(index ^ 1),
        Some(by_shard) => by_shard.partners.get(index).copied().flatten(),
    }
}

impl Driver for Unicast {
    fn opened(&mut self, net: &mut Net, index: usize) -> bool {
        if let Some(by_shard) = &mut self.by_shard {
            match by_shard.counts.as_mut().map(Shards::landed) {
                None => {}
                Some(Ok(shard)) => by_shard.shards[index] = Some(shard),
                Some(Err(error)) => {
                    by_shard.counts = None;
                    net.tally.failed += 1;
                    net.tally.error(&format!("shard unknown: {error}"));
                }
            }
        }
        true
    }

    fn start(&mut self, net: &mut Net) {
        self.pair(net);
        let at_once = self.flow.start();
        for index in (0..net.users_below(self.active)).take_while(|_| at_once > 0) {
            if self.talks(net, index) {
                let now_ns = sys::now_ns();
                (0..at_once).for_each(|_| self.send(net, index, now_ns, now_ns));
                net.write(index);
            }
        }
    }

    fn message(&mut self, net: &mut Net, index: usize, now_ns: u64, payload: &[u8]) {
        let peer = self.peer(net, index);
        let Some((at, stamp)) = Stamp::find(payload).filter(|(_, stamp)| Some(stamp.sender) == peer) else {
            return net.unexpected(payload);
        };
        if !is_filler_whole(payload, at, self.payload_bytes) {
            net.tally.corrupt += 1;
            return;
        }
        let arrival = self.connections[index].received.note(stamp.sequence);
        let lag_ns = u64::from(stamp.lag_us) * 1_000;
        if net.tally.counts(arrival) && self.flow.received(net, now_ns, stamp.age_ns(now_ns), lag_ns, payload.len()) {
            self.send(net, index, now_ns, now_ns);
        }
    }

    fn turn(&mut self, net: &mut Net, now_ns: u64) {
        while let Some(intended_ns) = self.flow.due(now_ns) {
            if let Some(index) = self.next_sender(net) {
                self.send(net, index, intended_ns, now_ns);
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
