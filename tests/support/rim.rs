//! The Redis rim driven by hand: one node's calls and what it hears, without a gateway.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use compact_str::CompactString;
use ringmesh::bus::call::{Call, CallId, Holder, Incarnation, LeaseState, Location, Reply, Run, Seen};
use ringmesh::bus::redis::{Caller, Event, Events, RedisConfig, start};
use ringmesh::config::RedisUrl;
use tokio::time::{Instant, timeout_at};

use super::DEADLINE_SLOW;

/// Runs a test on one thread, as the bus does.
pub fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// One node's rim.
pub struct Rim {
    /// The node's id.
    pub id: String,
    /// Its life, once [`Rim::acquire`] was called.
    pub incarnation: Incarnation,
    caller: Caller,
    events: Events,
    /// What was heard while something else was waited for.
    heard: VecDeque<Event>,
    next_call: Cell<u64>,
    next_op: u64,
}

impl Rim {
    /// Starts one that may never come to be connected.
    pub fn start(url: &str, id: &str) -> Rim {
        let url = RedisUrl::parse(url).unwrap_or_else(|| panic!("{url} is well-formed"));
        let (caller, events) = start(RedisConfig { url, node: id.into() });
        let heard = VecDeque::new();
        Rim { id: id.to_owned(), incarnation: 0, caller, events, heard, next_call: Cell::new(0), next_op: 0 }
    }

    /// One that is connected and has its lease.
    pub async fn connected(url: &str, id: &str) -> Rim {
        let mut rim = Rim::start(url, id);
        rim.wait_for("being connected", |event| matches!(event, Event::Connected)).await;
        assert!(rim.acquire().await.is_empty());
        rim
    }

    /// Takes the lease, with another life than before; answers the earlier lives.
    pub async fn acquire(&mut self) -> Vec<Incarnation> {
        let after = self.incarnation;
        self.acquire_after(after).await
    }

    /// Takes the lease, with a life greater than that; answers the earlier lives.
    pub async fn acquire_after(&mut self, after: Incarnation) -> Vec<Incarnation> {
        match self.call(Call::Acquire { after }).await {
            Reply::Acquired { incarnation, earlier } => {
                self.incarnation = incarnation;
                earlier
            }
            other => panic!("{}: {other:?}", self.id),
        }
    }

    /// Hands a call over.
    pub fn hand_over(&mut self, call: Call) -> CallId {
        let id = CallId(self.next_call.replace(self.next_call.get() + 1));
        self.caller.call(id, call);
        id
    }

    /// Hands a call over, and waits for its answer.
    pub async fn call(&mut self, call: Call) -> Reply {
        let text = format!("{call:?}");
        let id = self.hand_over(call);
        match self.wait_for(&text, |event| matches!(event, Event::Reply(answered, _) if *answered == id)).await {
            Event::Reply(_, reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// The first event, of those not waited for yet, for which `matches` holds.
    pub async fn wait_for(&mut self, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        self.wait_until(what, DEADLINE_SLOW, matches).await
    }

    /// As [`Rim::wait_for`], with a deadline of one's own.
    pub async fn wait_until(&mut self, what: &str, within: Duration, matches: impl Fn(&Event) -> bool) -> Event {
        if let Some(at) = self.heard.iter().position(&matches) {
            return self.heard.remove(at).expect("it was found");
        }
        let deadline = Instant::now() + within;
        loop {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) if matches(&event) => return event,
                // Lags come once a second, and are of no interest but where they are waited for.
                Ok(Some(Event::Lag(_))) => {}
                Ok(Some(event)) => self.heard.push_back(event),
                Ok(None) => panic!("{what}: the rim has ended"),
                Err(_) => panic!("{}: {what}: not within {within:?}; heard {:?}", self.id, self.heard),
            }
        }
    }

    /// What the next loss says.
    pub async fn loss(&mut self) -> String {
        match self.wait_for("a loss", |event| matches!(event, Event::Lost(_))).await {
            Event::Lost(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until it is connected again.
    pub async fn reconnected(&mut self) {
        self.wait_for("being connected again", |event| matches!(event, Event::Connected)).await;
    }

    /// The number of the next operation.
    pub fn op(&mut self) -> u64 {
        self.next_op += 1;
        self.next_op
    }

    /// A registration with a number of its own.
    pub fn registration(&mut self, user: &str) -> Call {
        let op = self.op();
        Call::Register { user: user.into(), incarnation: self.incarnation, op }
    }

    /// A removal with a number of its own.
    pub fn removal(&mut self, user: &str, grace_ms: u64) -> Call {
        let op = self.op();
        Call::Unregister { user: user.into(), incarnation: self.incarnation, op, grace_ms }
    }

    /// Registers a user who has come; answers the other holders.
    pub async fn register(&mut self, user: &str) -> Vec<String> {
        let call = self.registration(user);
        match self.call(call).await {
            Reply::Registered { others, .. } => names(&others),
            other => panic!("{user} at {}: {other:?}", self.id),
        }
    }

    /// Takes a user off.
    pub async fn unregister(&mut self, user: &str, grace_ms: u64) {
        let call = self.removal(user, grace_ms);
        assert_eq!(self.call(call).await, Reply::Unregistered, "{user} at {}", self.id);
    }

    /// Where a user is.
    pub async fn locate(&mut self, user: &str) -> Location {
        match self.call(Call::Locate { user: user.into() }).await {
            Reply::Located(location) => location,
            other => panic!("{user}: {other:?}"),
        }
    }

    /// The holders of a user, the oldest first.
    pub async fn holders(&mut self, user: &str) -> Vec<String> {
        names(&self.locate(user).await.holders)
    }

    /// Renews users with the numbers that registered them.
    pub async fn renewal(&mut self, users: &[(&str, u64)]) -> Renewal {
        let users = users.iter().map(|(user, op)| (CompactString::from(*user), *op)).collect();
        match self.call(Call::Renew { incarnation: self.incarnation, users }).await {
            Reply::Renewed { restored, others, superseded, run } => Renewal { restored, others, superseded, run },
            other => panic!("{other:?}"),
        }
    }

    /// Renews users, none of which a later operation has taken off; answers how many were put back.
    pub async fn renew(&mut self, users: &[(&str, u64)]) -> usize {
        let renewal = self.renewal(users).await;
        assert!(renewal.superseded.is_empty(), "{renewal:?}");
        renewal.restored.len()
    }

    /// Renews the lease, with the run in which all users were entered.
    pub async fn renew_lease(&mut self, entered_run: Option<u64>) -> LeaseState {
        let call = Call::RenewLease { incarnation: self.incarnation, connections: 0, entered_run };
        match self.call(call).await {
            Reply::Lease(state) => state,
            other => panic!("{other:?}"),
        }
    }

    /// The registry, and the run.
    pub async fn look(&mut self) -> (Vec<Seen>, Run) {
        match self.call(Call::Look).await {
            Reply::Looked { nodes, run, .. } => (nodes, run),
            other => panic!("{other:?}"),
        }
    }

    /// Enters the node in the registry, in the present run.
    pub async fn enrol(&mut self) {
        let (_, run) = self.look().await;
        assert_eq!(self.renew_lease(Some(run.id)).await, LeaseState::Ours);
    }

    /// Hears `user:events` from now on.
    pub async fn hear_events(&mut self) {
        assert_eq!(self.call(Call::HearEvents { on: true }).await, Reply::Done);
    }

    /// Everything published on `user:events` so far, as `event user node`. The marker proves that nothing else came.
    pub async fn user_events(&mut self, redis: &super::redis::RedisServer) -> Vec<String> {
        let marker = format!("marker {}", self.op());
        redis.ask(&["PUBLISH", "user:events", &marker]);
        let is_marker = |event: &Event| matches!(event, Event::UserEvent(bytes) if bytes == marker.as_bytes());
        self.wait_for("the marker", is_marker).await;
        let (events, rest): (Vec<_>, Vec<_>) =
            self.heard.drain(..).partition(|event| matches!(event, Event::UserEvent(_)));
        self.heard = rest.into();
        events
            .into_iter()
            .map(|event| match event {
                Event::UserEvent(bytes) => {
                    let json: serde_json::Value = serde_json::from_slice(&bytes).expect("an event is JSON");
                    let text = |field: &str| json[field].as_str().expect("a text").to_owned();
                    format!("{} {} {}", text("event"), text("user_id"), text("node_id"))
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Publishes on a node's link channel.
    pub fn publish(&mut self, node: &str, envelope: impl Into<Bytes>) -> CallId {
        self.hand_over(Call::PublishLink { node: node.into(), envelope: envelope.into() })
    }

    /// The next envelope.
    pub async fn envelope(&mut self) -> Bytes {
        match self.wait_for("an envelope", |event| matches!(event, Event::Envelope(_))).await {
            Event::Envelope(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }
}

/// What a renewal answers.
#[derive(Debug)]
pub struct Renewal {
    /// What was put back.
    pub restored: Vec<usize>,
    /// Whom other nodes hold too.
    pub others: Vec<(usize, Vec<Holder>)>,
    /// What a later operation has taken off.
    pub superseded: Vec<usize>,
    /// The run of Redis.
    pub run: Run,
}

/// The holders' names.
pub fn names(holders: &[Holder]) -> Vec<String> {
    holders.iter().map(|holder| holder.node.to_string()).collect()
}
