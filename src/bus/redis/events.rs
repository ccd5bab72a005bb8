//! What the rim tells the bus, bounded in bytes: Redis closes a subscriber who does not read, so everything is read at
//! once, and what nobody takes is dropped here, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{CallId, Reply};

/// Bytes received from Redis and not yet taken, at most.
const HELD_BYTES_MAX: u64 = 64 << 20;

/// What a message costs beside its bytes.
const MESSAGE_BYTES: u64 = 64;

/// What the rim tells the bus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Subscriptions are confirmed, scripts are loaded, calls are carried out from now on.
    Connected,
    /// Calls fail from now on, and those under way have failed. The text says what is wrong and what to do.
    Lost(String),
    /// The answer to a call.
    Reply(CallId, Reply),
    /// Published on our link's channel. Beyond the bound they are dropped; the link sends again.
    Envelope(Bytes),
    /// Published on the contract's channel of this node.
    Contract(Bytes),
    /// Published on `user:events`.
    UserEvent(Bytes),
    /// From publishing to receiving, once a second.
    Lag(Duration),
    /// So many contract messages were dropped, since nobody took them.
    ContractDropped(u64),
}

impl Event {
    /// What it counts against the bound.
    fn weight(&self) -> u64 {
        match self {
            Self::Envelope(bytes) | Self::Contract(bytes) | Self::UserEvent(bytes) => {
                MESSAGE_BYTES + bytes.len() as u64
            }
            _ => 0,
        }
    }
}

/// Makes the two ends.
pub(super) fn channel() -> (EventSender, Events) {
    let (sender, receiver) = unbounded_channel();
    let held = Arc::new(Held::default());
    (EventSender { sender, held: Arc::clone(&held) }, Events { receiver, held })
}

#[derive(Default)]
struct Held {
    /// Weight of what was sent and not taken.
    bytes: AtomicU64,
    /// Contract messages dropped and not yet told.
    contract_dropped: AtomicU64,
}

/// The rim's end.
#[derive(Clone)]
pub(super) struct EventSender {
    sender: UnboundedSender<Event>,
    held: Arc<Held>,
}

impl EventSender {
    /// Sends an event, or drops it when too much is held.
    pub fn send(&self, event: Event) {
        let weight = event.weight();
        if weight > 0 {
            if self.held.bytes.load(Relaxed) + weight > HELD_BYTES_MAX {
                if matches!(event, Event::Contract(_)) {
                    self.held.contract_dropped.fetch_add(1, Relaxed);
                }
                return;
            }
            self.held.bytes.fetch_add(weight, Relaxed);
        }
        // With the bus gone there is nobody to tell.
        let _ = self.sender.send(event);
    }

    /// Tells what was dropped since the last time.
    pub fn tell_dropped(&self) {
        let dropped = self.held.contract_dropped.swap(0, Relaxed);
        if dropped > 0 {
            self.send(Event::ContractDropped(dropped));
        }
    }
}

/// The bus' end.
pub struct Events {
    receiver: UnboundedReceiver<Event>,
    held: Arc<Held>,
}

impl Events {
    /// The next event; `None` when the rim has ended.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await?;
        Some(self.taken(event))
    }

    /// The next event, if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        let event = self.receiver.try_recv().ok()?;
        Some(self.taken(event))
    }

    fn taken(&self, event: Event) -> Event {
        let weight = event.weight();
        if weight > 0 {
            self.held.bytes.fetch_sub(weight, Relaxed);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_dropped_beyond_the_bound_and_contract_messages_are_counted() {
        let (sender, mut events) = channel();
        let chunk = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..100 {
            sender.send(Event::Contract(chunk.clone()));
            sender.send(Event::Envelope(chunk.clone()));
        }
        // Answers are never dropped.
        sender.send(Event::Reply(CallId(1), Reply::Done));
        sender.tell_dropped();
        let (mut contract, mut envelopes, mut dropped, mut replies) = (0, 0, 0, 0);
        while let Some(event) = events.try_recv() {
            match event {
                Event::Contract(_) => contract += 1,
                Event::Envelope(_) => envelopes += 1,
                Event::ContractDropped(count) => dropped += count,
                Event::Reply(..) => replies += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((contract + envelopes, contract + dropped, replies), (63, 100, 1));
        sender.send(Event::Contract(chunk));
        assert!(matches!(events.try_recv(), Some(Event::Contract(_))), "there is room again");
    }
}
