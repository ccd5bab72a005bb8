//! What has to be true once everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use ringmesh::bus::call::{Incarnation, NodeId};

use crate::excuses::{Excuses, Said};
use crate::redis::Event;
use crate::world::{Broadcast, Client, MS, Message, S, World, name};

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
    /// Messages whose senders were told that links were full.
    pub refused: u64,
    /// Messages to a connection that was asked for while the user had none, which the user must not have had before.
    pub visits: u64,
    /// Runs of which everything that came to nobody had to be counted.
    pub counted: u64,
    /// Clients that had to be let in past nodes that cannot be reached.
    pub let_in: u64,
    pub violations: Vec<String>,
}

/// What `Checked::counts` counts.
pub const COUNTS: [&str; 14] = [
    "deliveries",
    "once",
    "ordered",
    "messages",
    "due",
    "musts",
    "broadcasts",
    "broadcast musts",
    "events",
    "entries",
    "refused",
    "visits",
    "counted",
    "let in",
];

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
            self.refused,
            self.visits,
            self.counted,
            self.let_in,
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
        self.refused += other.refused;
        self.visits += other.visits;
        self.counted += other.counted;
        self.let_in += other.let_in;
    }

    fn holds(&mut self, is_true: bool, text: impl FnOnce() -> String) {
        if !is_true {
            self.violations.push(text());
        }
    }
}

pub fn check(world: &World) -> Checked {
    let mut checked = Checked::default();
    let excuses = Excuses::new(world);
    check_order(world, &mut checked);
    check_visits(world, &excuses, &mut checked);
    check_let_in(world, &excuses, &mut checked);
    check_arrival(world, &excuses, &mut checked);
    check_broadcast_order(world, &mut checked);
    check_broadcast_arrival(world, &excuses, &mut checked);
    check_directory(world, &excuses, &mut checked);
    check_events(world, &excuses, &mut checked);
    check_restored(world, &mut checked);
    check_memory(world, &mut checked);
    check_counted(world, &mut checked);
    checked
}

fn said(world: &World, message: &Message) -> Said {
    let process = message.sender.map(|sender| world.clients[sender].process);
    Said { process, user: Some(message.target), sent_at: message.sent_at }
}

/// What one says to another comes once, and in order.
fn check_order(world: &World, checked: &mut Checked) {
    for (at, client) in world.clients.iter().enumerate() {
        let mut latest: BTreeMap<usize, u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for &(number, received_at) in &client.received {
            checked.deliveries += 1;
            let message = &world.messages[number as usize];
            checked
                .holds(message.target == client.user, || format!("TARGET: client {at} gets {number} of another user"));
            let who = message.sender.map_or("a service".to_owned(), |sender| format!("client {sender}"));
            let is_first = seen.insert(number);
            checked.once += 1;
            checked.holds(is_first, || {
                let process = client.process;
                format!("TWICE: client {at} of process {process} gets {number} of {who} again, at {received_at}")
            });
            let Some(sender) = message.sender.filter(|_| is_first) else { continue };
            let before = latest.get(&sender).copied().unwrap_or(0);
            checked.ordered += 1;
            checked.holds(before <= number, || {
                let process = client.process;
                format!(
                    "ORDER: client {at} of process {process} gets {number} of {who} after {before}, at {received_at}"
                )
            });
            latest.insert(sender, before.max(number));
        }
    }
}

/// What a user has had does not come again to a connection that is asked for when all have gone; but for what came just
/// before, of which the origin is yet to hear.
fn check_visits(world: &World, excuses: &Excuses<'_>, checked: &mut Checked) {
    let mut first: BTreeMap<u64, u64> = BTreeMap::new();
    for &(number, at) in world.clients.iter().flat_map(|client| &client.received) {
        let earliest = first.entry(number).or_insert(at);
        *earliest = at.min(*earliest);
    }
    for (at, client) in world.clients.iter().enumerate() {
        let before = world.clients.iter().filter(|other| other.user == client.user && other.asked_at < client.asked_at);
        // Since when the user has been there without a break, as far as that was before this connection was asked for.
        let gone_at = before.map(|other| other.closed_at.unwrap_or(u64::MAX)).max().unwrap_or(0);
        let heard_of_by = client.asked_at.saturating_sub(100 * MS + 20 * world.faults.latency);
        for &(number, received_at) in client.received.iter().filter(|_| gone_at < client.asked_at) {
            let said = said(world, &world.messages[number as usize]);
            if excuses.meets_nothing(&said, received_at) && !excuses.may_come_back(&said, number) {
                checked.visits += 1;
                checked.holds(first[&number] > gone_at.min(heard_of_by), || {
                    let had_at = first[&number];
                    format!("AGAIN: client {at} gets {number} at {received_at}, which came to the user at {had_at}")
                });
            }
        }
    }
}

/// Who comes from nodes that cannot be reached is let in without their answers, after 300 ms.
fn check_let_in(world: &World, excuses: &Excuses<'_>, checked: &mut Checked) {
    // Redis goes on for a while to deliver to a host that is gone, and to a process that does not run.
    let is_heard = world.faults.kills || world.faults.suspensions;
    let is_slow = is_heard || world.faults.loses_one_in > 0 || world.had_slow_shards;
    for (at, client) in world.clients.iter().enumerate().filter(|(_, client)| !client.let_in_past.is_empty()) {
        let Some(opened_at) = client.opened_at.filter(|_| !is_slow) else { continue };
        let is_out = |process: &usize| excuses.is_out_throughout(*process, client.asked_at, opened_at);
        if client.let_in_past.iter().all(is_out) && excuses.is_at_work(client.process, client.asked_at, opened_at) {
            let bound = 350 * MS + 20 * world.faults.latency;
            checked.let_in += 1;
            checked.holds(opened_at - client.asked_at <= bound, || {
                let past = &client.let_in_past;
                format!("LETIN: client {at} is let in past {past:?} after {} us", opened_at - client.asked_at)
            });
        }
    }
}

/// What one says to all comes once, and in order, and what was refused never does.
fn check_broadcast_order(world: &World, checked: &mut Checked) {
    for (at, client) in world.clients.iter().enumerate() {
        let mut latest: BTreeMap<usize, u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for &(number, received_at) in &client.broadcasts {
            checked.broadcasts += 1;
            let broadcast = &world.broadcasts[number as usize];
            checked.holds(!broadcast.refused, || format!("BREFUSED: client {at} gets broadcast {number} all the same"));
            let is_first = seen.insert(number);
            checked.holds(is_first, || format!("BTWICE: client {at} gets broadcast {number} again, at {received_at}"));
            let before = latest.get(&broadcast.sender).copied().unwrap_or(0);
            checked.holds(before <= number || !is_first, || {
                format!("BORDER: client {at} gets broadcast {number} after {before}, at {received_at}")
            });
            latest.insert(broadcast.sender, before.max(number));
        }
    }
}

fn to_all(world: &World, broadcast: &Broadcast) -> Said {
    Said { process: Some(world.clients[broadcast.sender].process), user: None, sent_at: broadcast.sent_at }
}

/// What was said to all comes to every connection that was open and stays so.
fn check_broadcast_arrival(world: &World, excuses: &Excuses<'_>, checked: &mut Checked) {
    for (number, broadcast) in world.broadcasts.iter().enumerate().filter(|(_, broadcast)| !broadcast.refused) {
        let said = to_all(world, broadcast);
        for (at, client) in world.clients.iter().enumerate() {
            let was_open = client.opened_at.is_some_and(|opened| opened < said.sent_at);
            let closed = client.closed_at.unwrap_or(u64::MAX);
            if was_open
                && closed > said.sent_at
                && closed >= excuses.arrives_by(&said, Some(client))
                && !excuses.may_be_lost(&said, Some(client))
            {
                checked.broadcast_musts += 1;
                let is_there = client.broadcasts.iter().any(|&(got, _)| got == number as u64);
                checked.holds(is_there, || {
                    let (to, from) = (client.process, broadcast.sender);
                    format!("BLOST: client {at} of process {to} never gets broadcast {number} of client {from}")
                });
            }
        }
    }
}

/// What one says to another comes to every connection that was open and stays so, and to one of those of a user who is
/// there without a break.
fn check_arrival(world: &World, excuses: &Excuses<'_>, checked: &mut Checked) {
    let has_faults = !world.disturbances.is_empty() || world.faults.loses_one_in > 0 || world.had_slow_shards;
    let mut missing: BTreeMap<Option<usize>, BTreeMap<usize, String>> = BTreeMap::new();
    let mut got: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); world.messages.len()];
    for (at, client) in world.clients.iter().enumerate() {
        client.received.iter().for_each(|&(number, _)| _ = got[number as usize].insert(at));
    }
    let presence: BTreeMap<usize, Vec<(u64, u64)>> =
        world.messages.iter().map(|message| (message.target, excuses.presence(message.target))).collect();
    for (number, message) in world.messages.iter().enumerate() {
        // What a service publishes on a channel that nobody hears is lost; nothing is promised but once all is well.
        if message.sender.is_none() && has_faults {
            continue;
        }
        checked.messages += 1;
        let said = said(world, message);
        let musts = checked.musts;
        let mut lacks = |text: String| _ = missing.entry(message.sender).or_default().insert(number, text);
        for (at, client) in world.clients.iter().enumerate().filter(|(_, client)| client.user == message.target) {
            let was_open = client.opened_at.is_some_and(|opened| opened < said.sent_at);
            let closed = client.closed_at.unwrap_or(u64::MAX);
            if was_open
                && closed > said.sent_at
                && closed >= excuses.arrives_by(&said, Some(client))
                && !excuses.may_be_lost(&said, Some(client))
            {
                checked.musts += 1;
                if !got[number].contains(&at) {
                    lacks(format!("client {at} of process {}", client.process));
                }
            }
        }
        let mut there_until = said.sent_at;
        for &(opened, closed) in &presence[&message.target] {
            if opened < there_until {
                there_until = there_until.max(closed);
            }
        }
        if there_until > said.sent_at
            && there_until >= excuses.arrives_by(&said, None)
            && !excuses.may_be_lost(&said, None)
        {
            checked.musts += 1;
            if got[number].is_empty() {
                lacks("anybody".to_owned());
            }
        }
        checked.due += u64::from(checked.musts > musts);
    }
    checked.refused += world.clients.iter().map(|client| client.overloaded).sum::<u64>();
    for (sender, missing) in missing {
        let client = sender.map(|sender| &world.clients[sender]);
        let refused = client.map_or(0, |client| client.overloaded) + untold(world, client, &missing);
        checked.holds(missing.len() as u64 <= refused, || {
            let who =
                client.map_or("a service".to_owned(), |client| format!("client {sender:?} of {}", client.process));
            format!("LOST: of {who}, {refused} refused: {missing:?}")
        });
    }
}

/// Who leaves is not told any more that a link was full: what of the missing was said within a second before.
fn untold(world: &World, client: Option<&Client>, missing: &BTreeMap<usize, String>) -> u64 {
    let Some(closed) = client.and_then(|client| client.closed_at).filter(|_| world.faults.small_links) else {
        return 0;
    };
    missing.keys().filter(|&&number| closed - world.messages[number].sent_at <= S).count() as u64
}

/// In the end the directory has every connection that is open, and no other, and the registry every process that lives.
fn check_directory(world: &World, excuses: &Excuses<'_>, checked: &mut Checked) {
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
        let was_removed = |holder: &&(NodeId, Incarnation)| {
            world.clients.iter().filter(|client| name(client.user) == *user).any(|client| {
                let is_of_node = world.processes[client.process].node == holder.0;
                is_of_node && excuses.removal_was_lost(client)
            })
        };
        let is_right = held.is_superset(&truth) && held.difference(&truth).all(|holder| was_removed(&holder));
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
    let entered: BTreeMap<&NodeId, Incarnation> = world.redis.registry().collect();
    checked.entries += entered.len() as u64;
    checked.holds(entered == alive, || format!("REGISTRY: it has {entered:?}, in truth {alive:?}"));
}

/// Events tell the truth, in turn. Where data was lost, only until then.
fn check_events(world: &World, excuses: &Excuses<'_>, checked: &mut Checked) {
    let lost_at = world.losses.first().map_or(u64::MAX, |loss| loss.at);
    let mut is_online: BTreeMap<&str, bool> = BTreeMap::new();
    for event in world.redis.events.iter().filter(|event| event.at < lost_at) {
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
            let was_declared = excuses.is_out_of_the_directory(world.clients[client].process, *at);
            checked
                .holds(was_declared, || format!("EVENT: {user} goes offline at {at} though client {client} is open"));
        }
    }
    for (user, is_online) in is_online.into_iter().filter(|_| lost_at == u64::MAX) {
        let is_open = world.clients.iter().any(|client| client.is_open() && name(client.user) == user);
        checked.holds(is_online == is_open, || format!("EVENT: the last one of {user} says online={is_online}"));
    }
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

/// What came to nobody was refused, or some node has counted it; but for a few of a user who opens on one node while the last
/// connection elsewhere closes: a later one may be there before them, and they count as what comes twice. What died, or
/// stopped, with a process is counted nowhere.
fn check_counted(world: &World, checked: &mut Checked) {
    if !world.upheavals.is_empty() || world.faults.stops {
        return;
    }
    let got: BTreeSet<u64> =
        world.clients.iter().flat_map(|client| &client.received).map(|&(number, _)| number).collect();
    let is_missing =
        |(number, message): &(usize, &Message)| message.sender.is_some() && !got.contains(&(*number as u64));
    let missing: Vec<usize> = world.messages.iter().enumerate().filter(is_missing).map(|(number, _)| number).collect();
    let counters = world.processes.iter().map(|process| process.bus.counters());
    let counted: u64 = counters.map(|counters| counters.offline + counters.lost + counters.overloaded).sum();
    checked.counted += 1;
    let few = world.messages.len() as u64 / 50;
    checked.holds(missing.len() as u64 <= counted + few, || {
        format!("COUNTED: {counted} messages, but nobody got {missing:?}")
    });
}
