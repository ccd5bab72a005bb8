//! The hot path: what is published goes out in pipelines, in order for each server, several of them under way at once.
//!
//! One task does it, without a task or a timer for each message: what the bus hands over in one turn is one pipeline.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use redis::{Pipeline, RedisResult, Value, cmd};
use tokio::time::Instant;

use super::super::keys;
use super::caller::{Channel, Publish, Ticket};
use super::servers::{ANSWER_MAX, Server, Servers, silent};
use super::session::Rim;
use super::{NodeId, Reply};

/// Pipelines under way to one server; the client library's queue holds 50, so that none of them waits in front of it.
const UNDER_WAY_MAX: usize = 16;
/// A pipeline's commands and bytes: what comes after it waits for so much at most.
const COMMANDS_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;
const _: () = assert!(UNDER_WAY_MAX < 50);

/// Publishes until the session ends.
pub(super) async fn run(rim: Rc<Rim>) {
    let home = keys::slot(keys::link(&rim.node).as_bytes());
    let mut publisher = Publisher { rim, home, lanes: Vec::new(), channels: hashbrown::HashMap::default() };
    poll_fn(|context| publisher.poll(context)).await;
}

/// What goes to one server.
struct Lane {
    server: Rc<Server>,
    waiting: VecDeque<(Rc<str>, Publish)>,
    under_way: VecDeque<Batch>,
}

/// One pipeline.
struct Batch {
    tickets: Vec<Option<Ticket>>,
    since: Instant,
    answer: Pin<Box<dyn Future<Output = RedisResult<Vec<Value>>>>>,
}

struct Publisher {
    rim: Rc<Rim>,
    /// The slot of our own link; contract channels, which are the whole cluster's, go to its server.
    home: u16,
    lanes: Vec<Lane>,
    /// A node's link: its channel and slot.
    channels: hashbrown::HashMap<NodeId, (Rc<str>, u16), ahash::RandomState>,
}

impl Publisher {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let handed_over = self.rim.shared().take_publishes(context);
            let is_idle = handed_over.is_empty();
            for publish in handed_over {
                self.queue(publish);
            }
            let is_cluster = self.rim.servers.is_cluster();
            for lane in &mut self.lanes {
                lane.send(is_cluster);
                lane.poll(&self.rim.servers, context);
            }
            self.lanes.retain(|lane| !lane.server.is_down());
            if is_idle && self.lanes.iter().all(|lane| !lane.can_send()) {
                return Poll::Pending;
            }
        }
    }

    /// Puts it into its server's lane; without one it fails.
    fn queue(&mut self, publish: Publish) {
        let (channel, slot) = match publish.channel {
            Channel::Link => {
                let (channel, slot) = self.channels.entry(publish.node.clone()).or_insert_with(|| {
                    let channel = keys::link(&publish.node);
                    let slot = keys::slot(channel.as_bytes());
                    (channel.into(), slot)
                });
                (Rc::clone(channel), *slot)
            }
            Channel::Echo => {
                let channel = keys::echo(&publish.node);
                let slot = keys::slot(channel.as_bytes());
                (channel.into(), slot)
            }
            Channel::Contract => (keys::node_channel(&publish.node).into(), self.home),
        };
        let Some(server) = self.rim.servers.of_slot(slot) else { return };
        let lane = match self.lanes.iter().position(|lane| lane.server.id == server.id) {
            Some(at) => &mut self.lanes[at],
            None => {
                self.lanes.push(Lane { server, waiting: VecDeque::new(), under_way: VecDeque::new() });
                let last = self.lanes.len() - 1;
                &mut self.lanes[last]
            }
        };
        lane.waiting.push_back((channel, publish));
    }
}

impl Lane {
    fn can_send(&self) -> bool {
        !self.waiting.is_empty() && self.under_way.len() < UNDER_WAY_MAX
    }

    /// Makes pipelines of what waits.
    fn send(&mut self, is_cluster: bool) {
        while self.can_send() {
            let mut pipeline = Pipeline::with_capacity(self.waiting.len().min(COMMANDS_MAX));
            let mut tickets = Vec::with_capacity(self.waiting.len().min(COMMANDS_MAX));
            let mut bytes = 0;
            while tickets.len() < COMMANDS_MAX && bytes < BYTES_MAX {
                let Some((channel, publish)) = self.waiting.pop_front() else { break };
                let name = if publish.channel != Channel::Contract && is_cluster { "SPUBLISH" } else { "PUBLISH" };
                bytes += publish.bytes.len();
                pipeline.add_command(cmd(name).arg(&*channel).arg(&publish.bytes[..]).take());
                tickets.push(publish.ticket);
            }
            let mut connection = self.server.publishing.clone();
            let answer = async move { connection.send_packed_commands(&pipeline, 0, pipeline.len()).await };
            self.under_way.push_back(Batch { tickets, since: Instant::now(), answer: Box::pin(answer) });
        }
    }

    /// Takes answers. Every batch is polled, the oldest first: the first poll of a batch is what sends it.
    fn poll(&mut self, servers: &Servers, context: &mut Context<'_>) {
        let mut at = 0;
        while let Some(batch) = self.under_way.get_mut(at) {
            let Poll::Ready(answer) = batch.answer.as_mut().poll(context) else {
                at += 1;
                continue;
            };
            let tickets = self.under_way.remove(at).map(|batch| batch.tickets).unwrap_or_default();
            match answer {
                Ok(values) => {
                    for (ticket, value) in tickets.into_iter().zip(values) {
                        match (value, ticket) {
                            (Value::Int(receivers), Some(ticket)) => {
                                ticket.answer(Reply::Published { receivers: receivers.cast_unsigned() });
                            }
                            (Value::ServerError(error), _) => servers.heed(&self.server, &error),
                            _ => {}
                        }
                    }
                }
                Err(error) => self.server.set_down(error.to_string()),
            }
        }
        // The session's probe comes by every second.
        if self.under_way.front().is_some_and(|oldest| oldest.since.elapsed() > ANSWER_MAX) {
            self.server.set_down(silent(&self.server.address));
        }
    }
}
