//! Where calls come in. Each is answered exactly once, also when the connection is lost: what drops a call unanswered
//! answers it with [`Reply::Failed`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::sync::Notify;

use super::events::{Event, EventSender};
use super::{Call, CallId, NodeId, Reply};

/// The bus' end: hands calls over, and never waits.
pub struct Caller {
    shared: Rc<Shared>,
}

impl Caller {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self { shared }
    }

    /// Hands a call over; [`Event::Reply`] answers it. What is handed over in one turn travels together. Publishing on
    /// one node's channels keeps its order.
    pub fn call(&mut self, id: CallId, call: Call) {
        let ticket = Ticket { id: Some(id), events: Rc::clone(&self.shared.events) };
        if !self.shared.is_connected.get() {
            // Dropping the ticket answers.
            return;
        }
        let publish = match call {
            Call::PublishLink { node, envelope } => {
                Publish { ticket: Some(ticket), node, channel: Channel::Link, bytes: envelope }
            }
            Call::PublishContract { node, json } => {
                Publish { ticket: Some(ticket), node, channel: Channel::Contract, bytes: json }
            }
            call => return self.shared.push_call(ticket, call),
        };
        self.shared.push_publish(publish);
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.shared.is_closed.set(true);
        self.shared.calling.notify_one();
    }
}

/// An unanswered call.
pub(super) struct Ticket {
    /// `None` once it is answered.
    id: Option<CallId>,
    events: Rc<EventSender>,
}

impl Ticket {
    /// Answers it.
    pub fn answer(mut self, reply: Reply) {
        self.reply(reply);
    }

    fn reply(&mut self, reply: Reply) {
        if let Some(id) = self.id.take() {
            self.events.send(Event::Reply(id, reply));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.reply(Reply::Failed);
    }
}

/// A channel of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Channel {
    /// Envelopes between our nodes.
    Link,
    /// A node's probes of itself.
    Echo,
    /// The contract's.
    Contract,
}

/// Something to publish.
pub(super) struct Publish {
    /// `None`: our own probe, which nobody waits for.
    pub ticket: Option<Ticket>,
    /// Whose channel.
    pub node: NodeId,
    /// Which one.
    pub channel: Channel,
    /// The message.
    pub bytes: Bytes,
}

/// What the caller and the session share; both live on one thread.
pub(super) struct Shared {
    /// To the bus.
    pub events: Rc<EventSender>,
    /// Calls are taken.
    pub is_connected: Cell<bool>,
    /// The caller is gone.
    pub is_closed: Cell<bool>,
    /// `user:events` is to be heard, also after a loss.
    pub hears_events: Cell<bool>,
    /// So is what is published for this node's link. Before the node has a life that would be a word that nobody heeds: who
    /// publishes would take the node for one that hears.
    pub hears_link: Cell<bool>,
    /// There are calls, or the caller is gone.
    pub calling: Notify,
    calls: RefCell<Vec<(Ticket, Call)>>,
    publishes: RefCell<Vec<Publish>>,
    /// The publisher, when it waits.
    publisher: RefCell<Option<Waker>>,
}

impl Shared {
    pub fn new(events: EventSender) -> Self {
        Self {
            events: Rc::new(events),
            is_connected: Cell::new(false),
            is_closed: Cell::new(false),
            hears_events: Cell::new(false),
            hears_link: Cell::new(false),
            calling: Notify::new(),
            calls: RefCell::default(),
            publishes: RefCell::default(),
            publisher: RefCell::default(),
        }
    }

    fn push_call(&self, ticket: Ticket, call: Call) {
        let mut calls = self.calls.borrow_mut();
        if calls.is_empty() {
            self.calling.notify_one();
        }
        calls.push((ticket, call));
    }

    /// Queues something to publish.
    pub fn push_publish(&self, publish: Publish) {
        self.publishes.borrow_mut().push(publish);
        if let Some(publisher) = self.publisher.borrow_mut().take() {
            publisher.wake();
        }
    }

    /// The calls handed over so far, but what is to be published.
    pub fn take_calls(&self) -> Vec<(Ticket, Call)> {
        self.calls.take()
    }

    /// What is to be published; when that is nothing, `context` is woken once there is.
    pub fn take_publishes(&self, context: &Context<'_>) -> Vec<Publish> {
        let publishes = self.publishes.take();
        if publishes.is_empty() {
            *self.publisher.borrow_mut() = Some(context.waker().clone());
        }
        publishes
    }

    /// Calls fail from now on, and so do those that nobody has begun.
    pub fn disconnect(&self) {
        self.is_connected.set(false);
        self.calls.take();
        self.publishes.take();
    }
}
