//! A Redis of one thread: what each call does to the directory, the leases and the registry, as `src/bus/scripts` has it.

use std::collections::{BTreeMap, BTreeSet};

use compact_str::CompactString;
use ringmesh::bus::call::{
    CAPABILITIES, Call, Holder, Incarnation, LINK_VERSION, LeaseState, Location, NodeId, Reply, Run, Seen,
};

/// Where the server's clock starts, in microseconds.
const CLOCK_AT_START_US: u64 = 1_700_000_000_000_000;
const LEASE_US: u64 = 10_000_000;
const REMOVAL_KEPT_MS: u64 = 60_000;
const YOUNG_US: u64 = 3_000_000;

/// What an executed call leads to.
pub enum Outcome {
    /// It is answered.
    Answer(Reply),
    /// It is looked at again in so many milliseconds.
    Again(u64),
}

/// An event on `user:events`.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: u64,
    pub user: CompactString,
    pub is_online: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    incarnation: Incarnation,
    op: u64,
    since: u64,
}

impl Entry {
    fn is_later(&self, incarnation: Incarnation, op: u64) -> bool {
        (self.incarnation, self.op) > (incarnation, op)
    }
}

#[derive(Clone)]
struct Grace {
    ends_ms: u64,
    incarnation: Incarnation,
    node: NodeId,
}

#[derive(Clone, Default)]
struct User {
    named: Option<NodeId>,
    holders: BTreeMap<NodeId, Entry>,
    gone: BTreeMap<NodeId, (Incarnation, u64)>,
    grace: Option<Grace>,
    expires_ms: Option<u64>,
}

impl User {
    /// Since when somebody holds the user who does from now on.
    fn next_since(&self, clock: u64) -> u64 {
        self.holders.values().map(|entry| entry.since + 1).max().unwrap_or(0).max(clock)
    }

    fn by_age(&self) -> Vec<(NodeId, Entry)> {
        let mut holders: Vec<_> = self.holders.iter().map(|(node, entry)| (node.clone(), *entry)).collect();
        holders.sort_by_key(|(_, entry)| entry.since);
        holders
    }
}

/// What a failover may lose the last seconds of.
#[derive(Clone, Default)]
pub struct Data {
    users: BTreeMap<CompactString, User>,
    /// Incarnation, token, and when it lapses.
    leases: BTreeMap<NodeId, (Incarnation, u64, u64)>,
    last: BTreeMap<NodeId, Incarnation>,
    lives: BTreeMap<NodeId, BTreeSet<Incarnation>>,
    dead: BTreeSet<(NodeId, Incarnation)>,
    /// A life, and the marker under which it was entered.
    registry: BTreeMap<NodeId, (Incarnation, u64)>,
    /// The run's marker, when it was written, and by which server.
    marker: Option<Marker>,
    buckets: BTreeMap<(NodeId, Incarnation), BTreeMap<CompactString, u64>>,
}

#[derive(Clone, Copy)]
struct Marker {
    number: u64,
    written_at: u64,
    server: u64,
}

#[derive(Default)]
pub struct Redis {
    pub data: Data,
    /// Another one with each failover.
    server: u64,
    markers: u64,
    /// What the rim of each process keeps: the marker that it saw last, and how often that has changed.
    runs: BTreeMap<u64, (u64, u64)>,
    pub events: Vec<Event>,
    /// Lives that were declared dead by a call that has just been executed.
    pub declared: Vec<(NodeId, Incarnation)>,
    now: u64,
}

impl Redis {
    /// Executes a call of a process: its node, and the token that tells it from other processes of the same name.
    /// `subscribed` are the nodes that listen on the contract's channels.
    pub fn execute(&mut self, now: u64, node: &NodeId, token: u64, call: &Call, subscribed: &[NodeId]) -> Outcome {
        self.now = now;
        Outcome::Answer(match call {
            Call::Acquire { after } => self.acquire(node, token, *after),
            Call::RenewLease { incarnation, entered_run, .. } => {
                self.renew_lease(node, token, *incarnation, *entered_run)
            }
            Call::Release { incarnation } => self.release(node, token, *incarnation),
            Call::Register { user, incarnation, op } => {
                self.list(node, *incarnation, user, *op);
                self.register(node, token, user, *incarnation, *op)
            }
            Call::Unregister { user, incarnation, op, grace_ms } => {
                self.unregister(node, user, *incarnation, *op, *grace_ms)
            }
            Call::EndGrace { user, incarnation } => return self.end_grace(node, user, *incarnation),
            Call::Locate { user } => Reply::Located(self.locate(token, user)),
            Call::Renew { incarnation, users } => {
                let (mut restored, mut held_too, mut superseded) = (Vec::new(), Vec::new(), Vec::new());
                for (at, (user, op)) in users.iter().enumerate() {
                    self.list(node, *incarnation, user, *op);
                    match self.renew(node, user, *incarnation, *op) {
                        Renewal::There => {}
                        Renewal::PutBack => restored.push(at),
                        Renewal::Superseded => superseded.push(at),
                    }
                    let others = self.others(node, user);
                    if !superseded.contains(&at) && !others.is_empty() {
                        held_too.push((at, others));
                    }
                }
                Reply::Renewed { restored, others: held_too, superseded, run: self.run(token, true) }
            }
            Call::Look => self.look(node, token, subscribed),
            Call::DeclareDead { node, incarnation, again } => self.declare_dead(node, *incarnation, *again),
            Call::Reap { node, incarnation } => return self.reap(node, *incarnation),
            Call::HearEvents { .. } => Reply::Done,
            Call::PublishLink { .. } | Call::PublishContract { .. } => unreachable!("the world publishes"),
        })
    }

    /// Only the first half of a registration: the process died before the second.
    pub fn list(&mut self, node: &NodeId, incarnation: Incarnation, user: &CompactString, op: u64) {
        self.data.buckets.entry((node.clone(), incarnation)).or_default().insert(user.clone(), op);
    }

    /// What a service reads.
    pub fn named(&self, user: &str) -> Option<&NodeId> {
        self.data.users.get(user)?.named.as_ref()
    }

    /// Every user with holders or a name, for the check at the end.
    pub fn users(&self) -> impl Iterator<Item = (&CompactString, Vec<(NodeId, Incarnation)>, Option<&NodeId>)> {
        self.data.users.iter().map(|(user, entry)| {
            let holders = entry.holders.iter().map(|(node, entry)| (node.clone(), entry.incarnation)).collect();
            (user, holders, entry.named.as_ref())
        })
    }

    /// The registry.
    pub fn registry(&self) -> impl Iterator<Item = (&NodeId, Incarnation)> {
        self.data.registry.iter().map(|(node, &(incarnation, _))| (node, incarnation))
    }

    /// A replica takes over, which has no more than this.
    pub fn fail_over(&mut self, data: Data) {
        self.data = data;
        self.server += 1;
    }

    /// The run as the rim of a process tells it: the marker is written when it is missing, and, where the script looks at
    /// the server too, when it was written by another one.
    fn run(&mut self, token: u64, looks_at_server: bool) -> Run {
        let is_right = |marker: &Marker| !looks_at_server || marker.server == self.server;
        let marker = match self.data.marker.filter(is_right) {
            Some(marker) => marker,
            None => {
                self.markers += 1;
                let marker = Marker { number: self.markers, written_at: self.now, server: self.server };
                *self.data.marker.insert(marker)
            }
        };
        let (seen, id) = self.runs.entry(token).or_insert((marker.number, 1));
        if *seen != marker.number {
            (*seen, *id) = (marker.number, *id + 1);
        }
        Run { id: *id, is_young: self.now < marker.written_at + YOUNG_US }
    }

    fn others(&mut self, node: &NodeId, user: &CompactString) -> Vec<Holder> {
        let by_age = self.user(user).by_age();
        by_age.into_iter().filter(|(other, _)| other != node).map(holder).collect()
    }

    fn clock_us(&self) -> u64 {
        CLOCK_AT_START_US + self.now
    }

    fn clock_ms(&self) -> u64 {
        self.clock_us() / 1000
    }

    fn user(&mut self, user: &CompactString) -> &mut User {
        let now_ms = self.clock_ms();
        let entry = self.data.users.entry(user.clone()).or_default();
        if entry.expires_ms.is_some_and(|at| at <= now_ms) {
            *entry = User { named: entry.named.take(), ..User::default() };
        }
        entry
    }

    fn publish(&mut self, user: &CompactString, is_online: bool) {
        self.events.push(Event { at: self.now, user: user.clone(), is_online });
    }

    fn lease(&self, node: &NodeId) -> Option<(Incarnation, u64)> {
        let &(incarnation, token, until) = self.data.leases.get(node)?;
        (until > self.now).then_some((incarnation, token))
    }

    fn acquire(&mut self, node: &NodeId, token: u64, after: Incarnation) -> Reply {
        let held = self.lease(node);
        if let Some((incarnation, holder)) = held
            && holder != token
        {
            let lapses_ms = (self.data.leases[node].2 - self.now) / 1000;
            return Reply::Held { incarnation, lapses_ms };
        }
        let clock = self.clock_us();
        let lives = self.data.lives.entry(node.clone()).or_default();
        let incarnation = held.filter(|(incarnation, _)| *incarnation > after).map_or_else(
            || {
                let last = self.data.last.get(node).copied().unwrap_or(0);
                clock.max(last + 1).max(lives.last().copied().unwrap_or(0) + 1).max(after + 1)
            },
            |(incarnation, _)| incarnation,
        );
        let earlier = lives.iter().copied().filter(|&life| life < incarnation).collect();
        lives.insert(incarnation);
        self.data.leases.insert(node.clone(), (incarnation, token, self.now + LEASE_US));
        self.data.last.insert(node.clone(), incarnation);
        Reply::Acquired { incarnation, earlier }
    }

    fn enrol(&mut self, node: &NodeId, incarnation: Incarnation, marker: Option<u64>) {
        if self.data.registry.get(node).is_some_and(|(entered, _)| *entered > incarnation) {
            return;
        }
        match marker {
            Some(marker) => _ = self.data.registry.insert(node.clone(), (incarnation, marker)),
            None => _ = self.data.registry.remove(node),
        }
    }

    fn renew_lease(&mut self, node: &NodeId, token: u64, incarnation: Incarnation, entered_run: Option<u64>) -> Reply {
        if self.data.dead.contains(&(node.clone(), incarnation)) {
            return Reply::Lease(LeaseState::Dead);
        }
        let held = self.lease(node);
        let last = self.data.last.get(node).copied().unwrap_or(0);
        if held.is_some_and(|held| held != (incarnation, token)) || (held.is_none() && last > incarnation) {
            return Reply::Lease(LeaseState::Taken);
        }
        self.data.leases.insert(node.clone(), (incarnation, token, self.now + LEASE_US));
        self.data.last.insert(node.clone(), incarnation);
        self.data.lives.entry(node.clone()).or_default().insert(incarnation);
        // The rim enters the node by the marker that it knows.
        let known = self.runs.get(&token).copied();
        if let Some((marker, id)) = known
            && entered_run == Some(id)
        {
            self.enrol(node, incarnation, Some(marker));
        }
        Reply::Lease(LeaseState::Ours)
    }

    fn release(&mut self, node: &NodeId, token: u64, incarnation: Incarnation) -> Reply {
        let is_empty = self.data.buckets.get(&(node.clone(), incarnation)).is_none_or(BTreeMap::is_empty);
        if self.lease(node) == Some((incarnation, token)) {
            self.data.leases.remove(node);
        }
        if is_empty {
            self.data.lives.entry(node.clone()).or_default().remove(&incarnation);
            self.enrol(node, incarnation, None);
        }
        Reply::Done
    }

    fn register(
        &mut self,
        node: &NodeId,
        token: u64,
        name: &CompactString,
        incarnation: Incarnation,
        op: u64,
    ) -> Reply {
        let run = self.run(token, true);
        let clock = self.clock_us();
        let user = self.user(name);
        let own = user.holders.get(node).copied();
        let gone = user.gone.get(node).copied();
        if own.is_some_and(|own| own.is_later(incarnation, op)) || gone.is_some_and(|gone| gone > (incarnation, op)) {
            return Reply::Superseded;
        }
        let next = user.next_since(clock);
        let since = own.filter(|own| own.incarnation == incarnation).map_or(next, |own| own.since);
        let others: Vec<(NodeId, Entry)> = user.by_age().into_iter().filter(|(other, _)| other != node).collect();
        let newest = others.iter().rfind(|(_, other)| other.since > since).map_or(node, |(other, _)| other);
        let is_online = user.holders.is_empty() && user.grace.is_none();
        user.named = Some(newest.clone());
        user.holders.insert(node.clone(), Entry { incarnation, op, since });
        user.gone.remove(node);
        user.grace = None;
        user.expires_ms = None;
        if is_online {
            self.publish(name, true);
        }
        Reply::Registered { others: others.into_iter().map(holder).collect(), run }
    }

    fn unregister(
        &mut self,
        node: &NodeId,
        name: &CompactString,
        incarnation: Incarnation,
        op: u64,
        grace_ms: u64,
    ) -> Reply {
        let user = self.user(name);
        if user.holders.get(node).is_some_and(|own| own.is_later(incarnation, op)) {
            return Reply::Unregistered;
        }
        if user.gone.get(node).is_none_or(|gone| (incarnation, op) > *gone) {
            self.remove(node, name, incarnation, op, grace_ms);
        }
        if grace_ms == 0 {
            self.unlist(node, incarnation, name, op);
        }
        Reply::Unregistered
    }

    fn unlist(&mut self, node: &NodeId, incarnation: Incarnation, user: &CompactString, op: u64) {
        if let Some(bucket) = self.data.buckets.get_mut(&(node.clone(), incarnation))
            && bucket.get(user).is_some_and(|&listed| listed <= op)
        {
            bucket.remove(user);
        }
    }

    fn remove(&mut self, node: &NodeId, name: &CompactString, incarnation: Incarnation, op: u64, grace_ms: u64) {
        let now_ms = self.clock_ms();
        let user = self.user(name);
        let held = user.holders.remove(node).is_some();
        user.gone.insert(node.clone(), (incarnation, op));
        if let Some((newest, _)) = user.by_age().pop() {
            user.named = Some(newest);
            user.expires_ms = None;
            return;
        }
        let named = user.named.clone();
        if named.as_ref() == Some(node) {
            user.named = None;
        }
        let kept = user.grace.as_ref().map_or(0, |grace| grace.ends_ms + REMOVAL_KEPT_MS);
        user.expires_ms = Some((now_ms + REMOVAL_KEPT_MS + grace_ms).max(kept));
        if (held && named.is_none()) || named.as_ref() == Some(node) {
            if grace_ms > 0 {
                user.grace = Some(Grace { ends_ms: now_ms + grace_ms, incarnation, node: node.clone() });
            } else {
                user.grace = None;
                self.publish(name, false);
            }
        }
    }

    /// How long the grace that this life left still runs, in milliseconds; 0 when it is over.
    fn grace_left(&mut self, node: &NodeId, name: &CompactString, incarnation: Incarnation) -> u64 {
        let now_ms = self.clock_ms();
        let user = self.user(name);
        let is_its = |grace: &&Grace| grace.node == *node && grace.incarnation <= incarnation;
        let Some(grace) = user.grace.as_ref().filter(is_its).filter(|_| user.holders.is_empty()) else { return 0 };
        let left = grace.ends_ms.saturating_sub(now_ms);
        if left == 0 {
            user.grace = None;
            self.publish(name, false);
        }
        left
    }

    fn end_grace(&mut self, node: &NodeId, name: &CompactString, incarnation: Incarnation) -> Outcome {
        if self.user(name).holders.contains_key(node) {
            return Outcome::Answer(Reply::Done);
        }
        match self.grace_left(node, name, incarnation) {
            0 => {
                let op = self.user(name).gone.get(node).map_or(u64::MAX, |gone| gone.1);
                self.unlist(node, incarnation, name, op);
                Outcome::Answer(Reply::Done)
            }
            left_ms => Outcome::Again(left_ms),
        }
    }

    fn locate(&mut self, token: u64, name: &CompactString) -> Location {
        let run = self.run(token, false);
        let user = self.user(name);
        let holders: Vec<Holder> = user.by_age().into_iter().map(holder).collect();
        let foreign = user.named.clone().filter(|named| !holders.iter().any(|holder| holder.node == *named));
        Location { holders, foreign, run }
    }

    fn renew(&mut self, node: &NodeId, name: &CompactString, incarnation: Incarnation, op: u64) -> Renewal {
        let clock = self.clock_us();
        let user = self.user(name);
        let own = user.holders.get(node).copied();
        let is_named = user.named.as_ref().is_some_and(|named| user.holders.contains_key(named));
        if is_named && own.is_some_and(|own| (own.incarnation, own.op) == (incarnation, op)) {
            return Renewal::There;
        }
        if own.is_some_and(|own| own.is_later(incarnation, op))
            || user.gone.get(node).is_some_and(|gone| *gone > (incarnation, op))
        {
            return Renewal::Superseded;
        }
        let mut newest = user.by_age().pop().map(|(newest, _)| newest);
        if own.is_none_or(|own| (incarnation, op) > (own.incarnation, own.op)) {
            let since = match own.filter(|own| own.incarnation == incarnation) {
                Some(own) => own.since,
                None => {
                    newest = Some(node.clone());
                    user.next_since(clock)
                }
            };
            user.holders.insert(node.clone(), Entry { incarnation, op, since });
            user.grace = None;
        }
        user.expires_ms = None;
        user.named = newest;
        Renewal::PutBack
    }

    fn look(&mut self, asking: &NodeId, token: u64, subscribed: &[NodeId]) -> Reply {
        let run = self.run(token, true);
        let marker = self.data.marker.map(|marker| marker.number);
        let nodes: Vec<Seen> = self
            .data
            .registry
            .iter()
            .map(|(node, &(incarnation, entered))| Seen {
                node: node.clone(),
                incarnation,
                has_lease: self.lease(node).is_some_and(|(holder, _)| holder == incarnation),
                is_entered: Some(entered) == marker,
                version: LINK_VERSION,
                capabilities: CAPABILITIES,
            })
            .collect();
        let is_foreign = |node: &&NodeId| *node != asking && !self.data.registry.contains_key(*node);
        let foreign: BTreeSet<NodeId> = subscribed.iter().filter(is_foreign).cloned().collect();
        Reply::Looked { nodes, foreign: foreign.into_iter().collect(), run }
    }

    fn declare_dead(&mut self, node: &NodeId, incarnation: Incarnation, again: bool) -> Reply {
        if !again && self.lease(node).is_some_and(|(holder, _)| holder <= incarnation) {
            return Reply::Declared(false);
        }
        if self.data.dead.insert((node.clone(), incarnation)) {
            self.declared.push((node.clone(), incarnation));
        }
        Reply::Declared(true)
    }

    fn reap(&mut self, node: &NodeId, incarnation: Incarnation) -> Outcome {
        let lives = self.data.lives.entry(node.clone()).or_default();
        let mut dead: Vec<Incarnation> = lives.iter().copied().filter(|&life| life < incarnation).collect();
        dead.push(incarnation);
        for life in dead {
            let listed = self.data.buckets.get(&(node.clone(), life)).cloned().unwrap_or_default();
            for user in listed.keys() {
                let own = self.user(user).holders.get(node).copied();
                if own.is_some_and(|own| own.incarnation > life) {
                    continue;
                }
                if own.is_some() || self.user(user).named.as_ref() == Some(node) {
                    self.remove(node, user, life, u64::MAX, 0);
                } else {
                    let left_ms = self.grace_left(node, user, life);
                    if left_ms > 0 {
                        return Outcome::Again(left_ms);
                    }
                }
            }
            self.data.buckets.remove(&(node.clone(), life));
            self.data.lives.entry(node.clone()).or_default().remove(&life);
        }
        self.enrol(node, incarnation, None);
        Outcome::Answer(Reply::Reaped(true))
    }
}

/// What a renewal has found.
enum Renewal {
    There,
    PutBack,
    Superseded,
}

fn holder((node, entry): (NodeId, Entry)) -> Holder {
    Holder { node, incarnation: entry.incarnation, op: entry.op }
}
