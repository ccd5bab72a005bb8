//! What has to be true once everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use ringmesh::bus::call::{Incarnation, NodeId};

use crate::world::{Client, S, World, name};

/// How long before and after a node's death a message may be lost with it: in flight before, found dead after.
const BEFORE: u64 = 20 * S;
const AFTER: u64 = 60 * S;
/// How long a node is out of reach at most, and a little.
const LET_IN_KNOWN_WITHIN: u64 = 35 * S;

pub struct Checked {
    pub deliveries: u64,
    pub musts: u64,
}

pub fn check(world: &World) -> Checked {
    let deliveries = check_order(world);
    let musts = check_arrival(world);
    check_directory(world);
    check_events(world);
    check_gaps(world);
    check_restored(world);
    check_memory(world);
    Checked { deliveries, musts }
}

/// Whether no node died between these times, and no data was lost.
fn is_calm(world: &World, since: u64, until: u64) -> bool {
    !world.upheavals.iter().chain(&world.losses).any(|&at| since <= at && at <= until)
}

fn check_order(world: &World) -> u64 {
    let mut deliveries = 0;
    for (at, client) in world.clients.iter().enumerate() {
        let mut latest: BTreeMap<usize, u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for &(number, received_at) in &client.received {
            deliveries += 1;
            let message = &world.messages[number as usize];
            assert_eq!(message.target, client.user, "client {at} gets message {number}, which is for somebody else");
            // Who comes while the node that the user was on can't be reached is let in after a second, whatever is
            // under way to that node; and so are those who follow there.
            let was_let_in = let_in_at(world, client).is_some_and(|opened| message.sent_at < opened);
            let is_calm = is_calm(world, message.sent_at.saturating_sub(BEFORE), received_at)
                && !was_let_in
                && !was_kept_for_a_refused(world, client.user, message.sent_at, received_at);
            assert!(seen.insert(number) || !is_calm, "client {at} gets message {number} twice");
            let Some(sender) = message.sender else { continue };
            let before = latest.get(&sender).copied();
            assert!(
                before.is_none_or(|before| before <= number) || !is_calm,
                "client {at} gets message {number} of client {sender} after {before:?}"
            );
            latest.insert(sender, before.unwrap_or(0).max(number));
        }
        let mut broadcasts = BTreeSet::new();
        for number in &client.broadcasts {
            assert!(
                broadcasts.insert(number) || !world.upheavals.is_empty(),
                "client {at} gets broadcast {number} twice"
            );
        }
    }
    deliveries
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

fn check_arrival(world: &World) -> u64 {
    let has_faults = !world.disturbances.is_empty() || world.faults.loses_one_in > 0 || world.faults.slow_shards;
    let mut musts = 0;
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
        if !is_calm(world, message.sent_at.saturating_sub(BEFORE), message.sent_at + AFTER) {
            continue;
        }
        let until = if has_faults { u64::MAX } else { message.sent_at + 2 * S + 20 * world.faults.latency };
        let of_user = || world.clients.iter().enumerate().filter(|(_, client)| client.user == message.target);
        for (at, client) in of_user() {
            let was_open = client.opened_at.is_some_and(|opened| opened < message.sent_at);
            // What is said on the node that is cut off, to the user's connections there, does not reach those who were let
            // in elsewhere meanwhile.
            let is_unknown =
                let_in_at(world, client).is_some_and(|opened| message.sent_at < opened + LET_IN_KNOWN_WITHIN);
            if was_open && !is_unknown && client.closed_at.unwrap_or(u64::MAX) >= until {
                musts += 1;
                if !got[number].contains(&at) {
                    missing.entry(sender).or_default().push(format!("client {at} never gets message {number}"));
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
            musts += 1;
            if got[number].is_empty() {
                missing.entry(sender).or_default().push(format!("nobody gets message {number}"));
            }
        }
    }
    for (sender, missing) in missing {
        let refused = world.clients.get(sender).map_or(0, |client| client.overloaded);
        let distinct: BTreeSet<&str> = missing.iter().filter_map(|text| text.rsplit(' ').next()).collect();
        assert!(distinct.len() as u64 <= refused, "of client {sender}, {refused} refused: {missing:?}");
    }
    musts
}

fn check_directory(world: &World) {
    let mut holders: BTreeMap<String, BTreeSet<(NodeId, Incarnation)>> = BTreeMap::new();
    for (at, client) in world.clients.iter().enumerate() {
        assert!(client.opened_at.is_some() || client.closed_at.is_some(), "client {at} got no verdict");
        if client.is_open() {
            let process = &world.processes[client.process];
            let holder = (process.node.clone(), process.bus.incarnation());
            holders.entry(name(client.user)).or_default().insert(holder);
        }
    }
    for (user, held, named) in world.redis.users() {
        let held: BTreeSet<(NodeId, Incarnation)> = held.into_iter().collect();
        let truth = holders.remove(user.as_str()).unwrap_or_default();
        if world.losses.is_empty() {
            assert_eq!(held, truth, "the directory's holders of {user}, and the truth");
        } else {
            // A removal that was lost lasts until the entry's TTL has passed, or somebody writes to the user.
            assert!(held.is_superset(&truth), "the directory's holders of {user}: {held:?}, in truth: {truth:?}");
        }
        let is_right = named.map_or(held.is_empty(), |named| held.iter().any(|(node, _)| node == named));
        assert!(is_right, "user:node:{user} names {named:?}, the holders are {held:?}");
    }
    assert!(holders.is_empty(), "the directory lacks {holders:?}");
    for (node, &incarnation) in world.redis.registry() {
        let is_there = world
            .processes
            .iter()
            .any(|process| process.is_alive && process.node == *node && process.bus.incarnation() == incarnation);
        assert!(is_there, "the registry has {node} of life {incarnation}");
    }
}

fn check_events(world: &World) {
    if !world.losses.is_empty() {
        return;
    }
    let mut is_online: BTreeMap<&str, bool> = BTreeMap::new();
    for event in &world.redis.events {
        let before = is_online.insert(&event.user, event.is_online).unwrap_or(false);
        assert_ne!(before, event.is_online, "{} is said to be online={before} twice, at {}", event.user, event.at);
        let was_open = world.clients.iter().position(|client| {
            name(client.user) == event.user
                && client.opened_at.is_some_and(|opened| opened < event.at)
                && client.closed_at.is_none_or(|closed| closed > event.at)
        });
        if let Some(client) = was_open.filter(|_| !event.is_online) {
            let is_calm = is_calm(world, event.at.saturating_sub(AFTER), event.at);
            assert!(!is_calm, "{} goes offline at {} though client {client} is open", event.user, event.at);
        }
    }
    for (user, is_online) in is_online {
        let is_open = world.clients.iter().any(|client| client.is_open() && name(client.user) == user);
        assert_eq!(is_online, is_open, "the last event of {user}, and the truth");
    }
}

/// Where nothing goes wrong and Redis answers at once, nothing waits in vain for what comes before it.
fn check_gaps(world: &World) {
    let gaps: u64 = world.processes.iter().map(|process| process.bus.counters().gaps).sum();
    let is_calm = world.disturbances.is_empty()
        && world.faults.loses_one_in + world.faults.latency == 0
        && !world.faults.slow_shards;
    assert!(gaps == 0 || !is_calm, "{gaps} times messages waited in vain for earlier ones");
}

/// Where Redis has everything, a renewal writes nothing.
fn check_restored(world: &World) {
    let restored: u64 = world.processes.iter().map(|process| process.bus.counters().restored).sum();
    let is_calm = world.disturbances.is_empty() && world.losses.is_empty();
    assert!(restored == 0 || !is_calm, "{restored} users were entered again though Redis had them");
}

fn check_memory(world: &World) {
    for (at, process) in world.processes.iter().enumerate().filter(|(_, process)| process.is_alive) {
        assert!(process.is_up(), "process {at} is not up");
        assert_eq!(process.bus.kept_bytes(), (0, 0), "bytes that process {at} keeps");
        assert_eq!(process.bus.unsettled(), 0, "what process {at} waits for");
    }
}
