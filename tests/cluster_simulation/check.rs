//! What has to be true once everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use ringmesh::bus::call::{Incarnation, NodeId};

use crate::redis::Event;
use crate::world::{Client, ENTERED_WITHIN, Message, Outage, S, Upheaval, World, name};

/// How long a message is on its way at most where everybody it concerns can be reached…
const ON_ITS_WAY: u64 = 5 * S;
/// …and where somebody can't, or Redis does not answer: until that node is back, or is known to be dead.
const HELD_UP: u64 = 40 * S;
/// How long what was held up is under way once everybody can be reached again.
const RECOVERS_WITHIN: u64 = 10 * S;

/// What was checked of a run, and what was found.
#[derive(Default, Debug)]
pub struct Checked {
    /// Messages that connections got.
    pub deliveries: u64,
    /// Of these: those that must not have come twice, and those that must have come in order.
    pub once: u64,
    pub ordered: u64,
    /// Messages that were said, those that somebody had to get, and how many deliveries that makes.
    pub messages: u64,
    pub due: u64,
    pub musts: u64,
    /// Broadcasts that connections got.
    pub broadcasts: u64,
    /// Broadcasts that connections had to get.
    pub broadcast_musts: u64,
    /// Events that were held against the truth, and entries of the directory and the registry.
    pub events: u64,
    pub entries: u64,
    pub violations: Vec<String>,
}

/// What `Checked::counts` counts.
pub const COUNTS: [&str; 10] =
    ["deliveries", "once", "ordered", "messages", "due", "musts", "broadcasts", "broadcast musts", "events", "entries"];

impl Checked {
    pub fn counts(&self) -> [u64; COUNTS.len()] {
        [
            self.deliveries,
            self.once,
            self.ordered,
            self.messages,
            self.due,
            self.musts,
            self.broadcasts,
            self.broadcast_musts,
            self.events,
            self.entries,
        ]
    }

    pub fn told(&self) -> String {
        let counts = COUNTS.iter().zip(self.counts()).map(|(count, asserted)| format!("{count} {asserted}"));
        counts.collect::<Vec<_>>().join(", ")
    }

    pub fn add(&mut self, other: &Self) {
        self.deliveries += other.deliveries;
        self.once += other.once;
        self.ordered += other.ordered;
        self.messages += other.messages;
        self.due += other.due;
        self.musts += other.musts;
        self.broadcasts += other.broadcasts;
        self.broadcast_musts += other.broadcast_musts;
        self.events += other.events;
        self.entries += other.entries;
    }

    fn holds(&mut self, is_true: bool, text: impl FnOnce() -> String) {
        if !is_true {
            self.violations.push(text());
        }
    }
}

pub fn check(world: &World) -> Checked {
    let mut checked = Checked::default();
    check_order(world, &mut checked);
    check_arrival(world, &mut checked);
    check_broadcasts(world, &mut checked);
    check_directory(world, &mut checked);
    check_events(world, &mut checked);
    check_gaps(world, &mut checked);
    check_restored(world, &mut checked);
    check_memory(world, &mut checked);
    checked
}

/// Whether a user had a connection on a process, or asked for one, between these times.
fn was_on(world: &World, user: usize, process: usize, since: u64, until: u64) -> bool {
    world.clients.iter().any(|client| {
        (client.process, client.user) == (process, user)
            && client.asked_at <= until
            && client.closed_at.is_none_or(|closed| closed >= since)
    })
}

/// What was said: by whom, when, and to which user; `None`: to all.
#[derive(Clone, Copy)]
struct Said {
    process: Option<usize>,
    user: Option<usize>,
    sent_at: u64,
}

impl Said {
    fn message(world: &World, message: &Message) -> Self {
        let process = message.sender.map(|sender| world.clients[sender].process);
        Self { process, user: Some(message.target), sent_at: message.sent_at }
    }

    /// Whether it was on its way from, to or through a process between these times.
    fn concerns(&self, world: &World, process: usize, since: u64, until: u64) -> bool {
        self.process == Some(process) || self.user.is_some_and(|user| was_on(world, user, process, since, until))
    }

    /// Until when it may have been on its way to a client, if `but_for` had not befallen: what goes to a node that is out of reach waits
    /// until that is back, or is known to be dead.
    fn is_under_way_until(&self, world: &World, client: Option<&Client>, but_for: &Upheaval) -> u64 {
        let (from, to) = (self.sent_at.saturating_sub(HELD_UP), self.sent_at + HELD_UP);
        let is_of = |process: usize| {
            client.is_some_and(|client| client.process == process) || self.concerns(world, process, from, to)
        };
        let outages = world.outages.iter().filter(|outage| is_of(outage.process));
        let upheavals = world.upheavals.iter().filter(|other| !std::ptr::eq(*other, but_for) && is_of(other.process));
        let spans: Vec<(u64, u64)> = outages
            .map(|outage| (outage.since, outage.until))
            .chain(upheavals.map(|upheaval| (upheaval.since, upheaval.until)))
            .chain(world.stalls.iter().copied())
            .filter(|(_, until)| until.saturating_add(RECOVERS_WITHIN) >= self.sent_at)
            .collect();
        let mut ends = self.sent_at + ON_ITS_WAY;
        loop {
            let held_up =
                spans.iter().filter(|(since, _)| *since <= ends).map(|(_, until)| to.min(*until) + ON_ITS_WAY);
            match held_up.max() {
                Some(later) if later > ends => ends = later,
                _ => return ends,
            }
        }
    }

    /// Whether it may have been lost with a node that died, or that was declared dead: what was on its way to or from its
    /// clients may. `client` is who did not get it; `None`: nobody did.
    fn may_be_lost(&self, world: &World, client: Option<&Client>) -> bool {
        let sent_at = self.sent_at;
        world.upheavals.iter().any(|upheaval| {
            let is_met = || self.is_under_way_until(world, client, upheaval) >= upheaval.since;
            if !upheaval.was_declared {
                let is_before = sent_at <= upheaval.since && upheaval.since - sent_at <= HELD_UP;
                return is_before
                    && self.concerns(world, upheaval.process, sent_at.saturating_sub(S), upheaval.since)
                    && is_met();
            }
            // Who lived after all still has what others are to get; it is what its own clients say and get that is lost.
            let until = upheaval.until.saturating_add(ENTERED_WITHIN);
            let is_its = self.process == Some(upheaval.process)
                || match (client, self.user) {
                    (Some(client), _) => client.process == upheaval.process,
                    (None, Some(user)) => was_on(world, user, upheaval.process, sent_at, until),
                    (None, None) => false,
                };
            is_its && sent_at <= until && is_met()
        })
    }
}

/// Whether a node that the user was on was declared dead between these times.
fn was_declared_dead(world: &World, user: usize, since: u64, until: u64) -> bool {
    world.declared.iter().any(|(node, at)| {
        since <= *at
            && *at <= until
            && (0..world.processes.len()).any(|process| {
                world.processes[process].node == *node
                    && was_on(world, user, process, since.saturating_sub(HELD_UP), *at)
            })
    })
}

fn check_order(world: &World, checked: &mut Checked) {
    for (at, client) in world.clients.iter().enumerate() {
        let mut latest: BTreeMap<usize, u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for &(number, received_at) in &client.received {
            checked.deliveries += 1;
            let message = &world.messages[number as usize];
            assert_eq!(message.target, client.user, "client {at} gets message {number}, which is for somebody else");
            // Who comes while the node that the user was on can't be reached is let in after a second, whatever is
            // under way to that node; and so are those who follow there. It may come late, and if that node was declared
            // dead meanwhile, twice.
            let was_let_in = let_in_at(world, client).is_some_and(|opened| message.sent_at < opened);
            let may_be_double = was_let_in && was_declared_dead(world, client.user, message.sent_at, received_at);
            let may_be_late = was_let_in || was_kept_for_a_refused(world, client.user, message.sent_at, received_at);
            checked.once += u64::from(!may_be_double);
            let is_first = seen.insert(number);
            checked.holds(is_first || may_be_double, || {
                let Client { process, .. } = client;
                let was_declared = world.upheavals.iter().any(|upheaval| {
                    (upheaval.process, upheaval.was_declared) == (*process, true)
                        && upheaval.since <= received_at
                        && message.sent_at <= upheaval.until.saturating_add(ENTERED_WITHIN)
                });
                let node = if was_declared { "that was declared dead" } else { "that lived" };
                let who = if message.sender.is_some() { "a client" } else { "a service" };
                format!(
                    "TWICE: client {at} of process {process}, {node}, gets {number} of {who} again, at {received_at}"
                )
            });
            let Some(sender) = message.sender.filter(|_| is_first) else { continue };
            let before = latest.get(&sender).copied();
            checked.ordered += u64::from(!may_be_late);
            checked.holds(before.is_none_or(|before| before <= number) || may_be_late, || {
                format!(
                    "ORDER: client {at} gets message {number} of client {sender} after {before:?}, at {received_at}"
                )
            });
            latest.insert(sender, before.unwrap_or(0).max(number));
        }
    }
}

/// Broadcasts come to all, once, and those of one client in order.
fn check_broadcasts(world: &World, checked: &mut Checked) {
    let mut got: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); world.broadcasts.len()];
    for (at, client) in world.clients.iter().enumerate() {
        let mut latest: BTreeMap<usize, u64> = BTreeMap::new();
        for &(number, received_at) in &client.broadcasts {
            checked.broadcasts += 1;
            let sender = world.broadcasts[number as usize].sender;
            let is_first = got[number as usize].insert(at);
            // What the sender's node does not know to have arrived it says again in its new life.
            let sent_at = world.broadcasts[number as usize].sent_at;
            let may_be_double = world.upheavals.iter().any(|upheaval| {
                upheaval.was_declared
                    && [world.clients[sender].process, client.process].contains(&upheaval.process)
                    && upheaval.since <= received_at
                    && sent_at <= upheaval.until
            });
            checked.holds(is_first || may_be_double, || {
                format!("BTWICE: client {at} gets broadcast {number} again, at {received_at}")
            });
            let before = latest.insert(sender, number).filter(|_| is_first);
            checked.holds(before.is_none_or(|before| before <= number), || {
                format!("BORDER: client {at} gets broadcast {number} after {before:?}, at {received_at}")
            });
        }
    }
    for (number, broadcast) in world.broadcasts.iter().enumerate() {
        let sender = &world.clients[broadcast.sender];
        if sender.overloaded > 0 {
            continue;
        }
        let said = Said { process: Some(sender.process), user: None, sent_at: broadcast.sent_at };
        for (at, client) in world.clients.iter().enumerate() {
            let was_open = client.opened_at.is_some_and(|opened| opened < broadcast.sent_at);
            let until = settled_by(world, &said, Some(client));
            if was_open && client.closed_at.unwrap_or(u64::MAX) >= until && !said.may_be_lost(world, Some(client)) {
                checked.broadcast_musts += 1;
                let is_there = got[number].contains(&at);
                checked.holds(is_there, || format!("BLOST: client {at} never gets broadcast {number}"));
            }
        }
    }
}

/// Whether a connection of the user was refused meanwhile, because another node could not be asked in time: what was kept
/// for it comes back late.
fn was_kept_for_a_refused(world: &World, user: usize, since: u64, until: u64) -> bool {
    let mut refused = world.clients.iter().filter(|other| other.user == user && other.refused);
    refused.any(|other| other.closed_at.is_some_and(|refused_at| since <= refused_at && refused_at <= until))
}

/// When the first connection on the client's node that is open beside it was let in without the answer of another node.
fn let_in_at(world: &World, client: &Client) -> Option<u64> {
    let beside = world.clients.iter().filter(|first| {
        (first.process, first.user) == (client.process, client.user) && first.opened_at <= client.opened_at
    });
    beside.filter(|first| first.was_let_in).filter_map(|first| first.opened_at).max()
}

/// What is said on a node that is cut off, to the user's connections there, does not reach those who were let in elsewhere
/// meanwhile.
fn stays_on_a_cut_off_node(world: &World, said: &Said, client: &Client) -> bool {
    let (Some(process), Some(user)) = (said.process, said.user) else { return false };
    let is_out = |outage: &&Outage| {
        outage.process == process
            && outage.since <= said.sent_at
            && said.sent_at <= outage.until.saturating_add(2 * S)
            && client.opened_at.is_some_and(|opened| outage.since.saturating_sub(S) <= opened)
    };
    client.process != process
        && was_on(world, user, process, said.sent_at, said.sent_at)
        && world.outages.iter().any(|outage| is_out(&outage))
}

/// When what is said has arrived, for those who stay so long: soon, unless something goes wrong that it may have met.
fn settled_by(world: &World, said: &Said, client: Option<&Client>) -> u64 {
    let faults = &world.faults;
    let slow = if faults.loses_one_in > 0 { 15 * S } else { 0 } + if world.had_slow_shards { 5 * S } else { 0 };
    let soon = said.sent_at + 2 * S + 20 * faults.latency + slow;
    let is_met = |process: usize| {
        client.is_some_and(|client| client.process == process)
            || said.concerns(world, process, said.sent_at.saturating_sub(HELD_UP), soon)
    };
    let is_near = |since: u64, until: u64| since <= soon && said.sent_at <= until.saturating_add(RECOVERS_WITHIN);
    let is_late = world.outages.iter().any(|outage| is_near(outage.since, outage.until) && is_met(outage.process))
        || world.upheavals.iter().any(|upheaval| is_near(upheaval.since, upheaval.until) && is_met(upheaval.process))
        || world.stalls.iter().any(|&(since, until)| is_near(since, until))
        || world.losses.iter().any(|&at| is_near(at, at + HELD_UP));
    if is_late { u64::MAX } else { soon }
}

fn check_arrival(world: &World, checked: &mut Checked) {
    let has_faults = !world.disturbances.is_empty() || world.faults.loses_one_in > 0 || world.had_slow_shards;
    let mut missing: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut got: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); world.messages.len()];
    for (at, client) in world.clients.iter().enumerate() {
        client.received.iter().for_each(|&(number, _)| _ = got[number as usize].insert(at));
    }
    for (number, message) in world.messages.iter().enumerate() {
        // What a service publishes on a channel that nobody hears is lost; nothing is promised but once all is well.
        let sender = match message.sender {
            Some(sender) => sender,
            None if has_faults => continue,
            None => usize::MAX,
        };
        checked.messages += 1;
        let said = Said::message(world, message);
        let until = settled_by(world, &said, None);
        let musts = checked.musts;
        let of_user = || world.clients.iter().enumerate().filter(|(_, client)| client.user == message.target);
        for (at, client) in of_user() {
            let was_open = client.opened_at.is_some_and(|opened| opened < message.sent_at);
            if was_open
                && client.closed_at.unwrap_or(u64::MAX) >= until
                && !stays_on_a_cut_off_node(world, &said, client)
            {
                if !said.may_be_lost(world, Some(client)) {
                    checked.musts += 1;
                    if !got[number].contains(&at) {
                        missing.entry(sender).or_default().push(format!("client {at} never gets message {number}"));
                    }
                }
            }
        }
        let spans = of_user().filter_map(|(_, client)| Some((client.opened_at?, client.closed_at.unwrap_or(u64::MAX))));
        let mut spans: Vec<(u64, u64)> = spans.collect();
        spans.sort_unstable();
        let mut covered_to = message.sent_at;
        for (opened, closed) in spans {
            // A millisecond: before, the homes may not know that the user is open.
            if opened < covered_to && closed > covered_to {
                covered_to = closed;
            }
        }
        if covered_to >= until && covered_to > message.sent_at {
            if !said.may_be_lost(world, None) {
                checked.musts += 1;
                if got[number].is_empty() {
                    missing.entry(sender).or_default().push(format!("nobody gets message {number}"));
                }
            }
        }
        checked.due += u64::from(checked.musts > musts);
    }
    for (sender, missing) in missing {
        let refused = world.clients.get(sender).map_or(0, |client| client.overloaded);
        let distinct: BTreeSet<&str> = missing.iter().filter_map(|text| text.rsplit(' ').next()).collect();
        checked.holds(distinct.len() as u64 <= refused, || {
            format!("LOST: of client {sender}, {refused} refused: {missing:?}")
        });
    }
}

/// In the end the directory has every connection that is open, and no other, and the registry every process that lives.
fn check_directory(world: &World, checked: &mut Checked) {
    let mut holders: BTreeMap<String, BTreeSet<(NodeId, Incarnation)>> = BTreeMap::new();
    for (at, client) in world.clients.iter().enumerate() {
        let has_verdict = client.opened_at.is_some() || client.closed_at.is_some();
        checked.holds(has_verdict, || format!("VERDICT: client {at} got none"));
        if client.is_open() {
            let process = &world.processes[client.process];
            let holder = (process.node.clone(), process.bus.incarnation());
            holders.entry(name(client.user)).or_default().insert(holder);
        }
    }
    for (user, held, named) in world.redis.users() {
        let held: BTreeSet<(NodeId, Incarnation)> = held.into_iter().collect();
        let truth = holders.remove(user.as_str()).unwrap_or_default();
        checked.entries += 1 + truth.len() as u64;
        // A removal that was lost lasts until the entry's TTL has passed, or somebody writes to the user.
        let is_right = if world.losses.is_empty() { held == truth } else { held.is_superset(&truth) };
        checked.holds(is_right, || format!("DIRECTORY: the holders of {user} are {held:?}, in truth {truth:?}"));
        let is_right = named.map_or(held.is_empty(), |named| held.iter().any(|(node, _)| node == named));
        checked.holds(is_right, || format!("DIRECTORY: user:node:{user} names {named:?}, the holders are {held:?}"));
    }
    checked.holds(holders.is_empty(), || format!("DIRECTORY: it lacks {holders:?}"));
    let alive: BTreeMap<&NodeId, Incarnation> = world
        .processes
        .iter()
        .filter(|process| process.is_alive)
        .map(|process| (&process.node, process.bus.incarnation()))
        .collect();
    let entered: BTreeMap<&NodeId, Incarnation> =
        world.redis.registry().iter().map(|(node, incarnation)| (node, *incarnation)).collect();
    checked.entries += entered.len() as u64;
    checked.holds(entered == alive, || format!("REGISTRY: it has {entered:?}, in truth {alive:?}"));
}

fn check_events(world: &World, checked: &mut Checked) {
    if !world.losses.is_empty() {
        return;
    }
    let mut is_online: BTreeMap<&str, bool> = BTreeMap::new();
    for event in &world.redis.events {
        let Event { at, user, is_online: is_now } = event;
        checked.events += 1;
        let before = is_online.insert(user, *is_now).unwrap_or(false);
        checked.holds(before != *is_now, || format!("EVENT: {user} is said to be online={before} twice, at {at}"));
        let was_open = world.clients.iter().position(|client| {
            name(client.user) == *user
                && client.opened_at.is_some_and(|opened| opened < *at)
                && client.closed_at.is_none_or(|closed| closed > *at)
        });
        if let Some(client) = was_open.filter(|_| !is_now) {
            // Its node was declared dead, and has not entered it again yet.
            let was_declared = world.upheavals.iter().any(|upheaval| {
                upheaval.was_declared
                    && upheaval.process == world.clients[client].process
                    && upheaval.since <= *at
                    && *at <= upheaval.until.saturating_add(ENTERED_WITHIN)
            });
            checked
                .holds(was_declared, || format!("EVENT: {user} goes offline at {at} though client {client} is open"));
        }
    }
    for (user, is_online) in is_online {
        let is_open = world.clients.iter().any(|client| client.is_open() && name(client.user) == user);
        checked.holds(is_online == is_open, || format!("EVENT: the last one of {user} says online={is_online}"));
    }
}

/// Where nothing goes wrong and Redis answers at once, nothing waits in vain for what comes before it.
fn check_gaps(world: &World, checked: &mut Checked) {
    let gaps: u64 = world.processes.iter().map(|process| process.bus.counters().gaps).sum();
    let is_calm = world.disturbances.is_empty()
        && world.faults.loses_one_in + world.faults.latency == 0
        && !world.had_slow_shards;
    checked.holds(gaps == 0 || !is_calm, || format!("GAPS: {gaps} times messages waited in vain for earlier ones"));
}

/// Where Redis has everything, a renewal writes nothing.
fn check_restored(world: &World, checked: &mut Checked) {
    let restored: u64 = world.processes.iter().map(|process| process.bus.counters().restored).sum();
    let is_calm = world.disturbances.is_empty() && world.losses.is_empty();
    checked.holds(restored == 0 || !is_calm, || format!("RESTORED: {restored} users, though Redis had them"));
}

/// Once everything is settled, nothing is kept.
fn check_memory(world: &World, checked: &mut Checked) {
    for (at, process) in world.processes.iter().enumerate().filter(|(_, process)| process.is_alive) {
        checked.holds(process.is_up(), || format!("MEMORY: process {at} is not up"));
        let kept = (process.bus.kept_bytes(), process.bus.unsettled());
        checked.holds(kept == ((0, 0), 0), || format!("MEMORY: process {at} keeps {kept:?}"));
    }
}
