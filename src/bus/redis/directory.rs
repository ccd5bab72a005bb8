//! Calls about users, as commands: many in one pipeline, and their answers as replies.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use compact_str::CompactString;
use redis::{Cmd, Value, cmd};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::super::call::{Holder, Incarnation, Location, Why};
use super::super::keys;
use super::super::scripts::Name;
use super::caller::Ticket;
use super::open::{number, string};
use super::servers::{Answer, Request};
use super::session::Rim;
use super::{Call, Reply, membership, reap};

/// How long a user stays in the directory without a renewal.
const USER_TTL_S: u64 = 3600;
/// How long the number of a removal is kept; a command is late by less.
pub(super) const REMOVAL_KEPT_MS: u64 = 60_000;
/// Users in one pipeline.
const CHUNK: usize = 500;
/// A grace that is said to end later than this is looked at again: the clock of Redis may have been set.
const GRACE_LOOK_MAX: Duration = Duration::from_secs(5);

/// A number that no operation has: greater than all.
const OP_MAX: u64 = (1 << 53) - 1;

struct Registration {
    user: CompactString,
    incarnation: Incarnation,
    op: u64,
    why: Why,
}

struct Removal {
    user: CompactString,
    incarnation: Incarnation,
    op: u64,
    grace_ms: u64,
}

struct GraceEnd {
    user: CompactString,
    incarnation: Incarnation,
}

/// Begins all calls that were handed over in one turn.
pub(super) fn begin(rim: &Rc<Rim>, tasks: &mut JoinSet<()>, calls: Vec<(Ticket, Call)>) {
    let (mut registrations, mut removals, mut ends, mut located) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (ticket, call) in calls {
        match call {
            Call::Register { user, incarnation, op, why } => {
                registrations.push((ticket, Registration { user, incarnation, op, why }));
            }
            Call::Unregister { user, incarnation, op, grace_ms } => {
                removals.push((ticket, Removal { user, incarnation, op, grace_ms }));
            }
            Call::EndGrace { user, incarnation } => ends.push((ticket, GraceEnd { user, incarnation })),
            Call::Locate { user } => located.push((ticket, user)),
            Call::Renew { incarnation, users } => {
                let rim = Rc::clone(rim);
                tasks.spawn_local(async move { rim.renew(ticket, incarnation, users).await });
            }
            Call::HearEvents { on } => {
                let rim = Rc::clone(rim);
                tasks.spawn_local(async move {
                    if rim.hear_events(on).await {
                        ticket.answer(Reply::Done);
                    }
                });
            }
            Call::Reap { node, incarnation } => {
                let rim = Rc::clone(rim);
                tasks.spawn_local(async move { reap::run(&rim, ticket, &node, incarnation).await });
            }
            call => {
                let rim = Rc::clone(rim);
                tasks.spawn_local(async move {
                    if let Some(reply) = membership::run(&rim, call).await {
                        ticket.answer(reply);
                    }
                });
            }
        }
    }
    in_chunks(rim, tasks, registrations, Rim::register);
    in_chunks(rim, tasks, removals, Rim::unregister);
    in_chunks(rim, tasks, ends, Rim::end_grace);
    in_chunks(rim, tasks, located, Rim::locate);
}

/// One task for each chunk of calls of one kind.
fn in_chunks<T: 'static>(
    rim: &Rc<Rim>,
    tasks: &mut JoinSet<()>,
    mut calls: Vec<(Ticket, T)>,
    run: impl AsyncFn(&Rim, Vec<(Ticket, T)>) + Copy + 'static,
) {
    while !calls.is_empty() {
        let rest = calls.split_off(calls.len().min(CHUNK));
        let (rim, chunk) = (Rc::clone(rim), std::mem::replace(&mut calls, rest));
        tasks.spawn_local(async move { run(&rim, chunk).await });
    }
}

impl Rim {
    /// A directory script's call for a user: node and incarnation are its first arguments.
    fn user_script(&self, name: Name, user: &str, incarnation: Incarnation) -> Request {
        let keys = self.tags.user(user);
        let mut command = self.servers.scripts().call(name, &[&keys.named, &keys.holders]);
        command.arg(self.node.as_str()).arg(incarnation);
        Request { slot: keys.slot, command }
    }

    /// Lists users in their buckets, so that they are found if this process dies; whether each is.
    async fn list(&self, users: &[(&str, Incarnation, u64)]) -> Vec<bool> {
        let mut buckets: BTreeMap<(Incarnation, usize), (Cmd, Vec<usize>)> = BTreeMap::new();
        for (place, (user, incarnation, op)) in users.iter().enumerate() {
            let bucket = keys::bucket_of(user);
            let (command, places) = buckets.entry((*incarnation, bucket)).or_insert_with(|| {
                (cmd("HSET").arg(keys::bucket(&self.node, *incarnation, bucket)).take(), Vec::new())
            });
            command.arg(*user).arg(*op);
            places.push(place);
        }
        let mut is_listed = vec![false; users.len()];
        let (requests, places): (Vec<_>, Vec<_>) = buckets
            .into_iter()
            .map(|((incarnation, bucket), (command, places))| {
                let slot = keys::slot(keys::bucket(&self.node, incarnation, bucket).as_bytes());
                (Request { slot, command }, places)
            })
            .unzip();
        for (answer, places) in self.servers.ask_all(requests).await.into_iter().zip(places) {
            if matches!(answer, Some(Ok(_))) {
                places.into_iter().for_each(|place| is_listed[place] = true);
            }
        }
        is_listed
    }

    /// Takes users off their buckets, unless a later operation listed them. What fails stays listed, and does no harm.
    async fn unlist(&self, users: &[(&str, Incarnation, u64)]) {
        let mut buckets: BTreeMap<(Incarnation, usize), Request> = BTreeMap::new();
        for (user, incarnation, op) in users {
            let bucket = keys::bucket_of(user);
            let request = buckets.entry((*incarnation, bucket)).or_insert_with(|| {
                let key = keys::bucket(&self.node, *incarnation, bucket);
                let command = self.servers.scripts().call(Name::Unlist, &[&key]);
                Request { slot: keys::slot(key.as_bytes()), command }
            });
            request.command.arg(*user).arg(*op);
        }
        self.servers.ask_all(buckets.into_values().collect()).await;
    }

    async fn register(&self, calls: Vec<(Ticket, Registration)>) {
        let _permit = self.gate.acquire().await;
        let users: Vec<_> = calls.iter().map(|(_, each)| (each.user.as_str(), each.incarnation, each.op)).collect();
        let is_listed = self.list(&users).await;
        // Those that are not listed fail, by dropping their tickets.
        let mut listed = is_listed.into_iter();
        let calls: Vec<_> = calls.into_iter().filter(|_| listed.next() == Some(true)).collect();
        let requests = calls.iter().map(|(_, each)| {
            let mut request = self.user_script(Name::Register, &each.user, each.incarnation);
            let online = match each.why {
                Why::Arrival => self.event("online", &each.user, &self.node),
                Why::Restore => String::new(),
            };
            request.command.arg(each.op).arg(USER_TTL_S).arg(online);
            request
        });
        let answers = self.servers.ask_all(requests.collect()).await;
        for ((ticket, _), answer) in calls.into_iter().zip(answers) {
            if let Some(reply) = array(answer).and_then(|parts| registered(&parts)) {
                ticket.answer(reply);
            }
        }
    }

    async fn unregister(&self, calls: Vec<(Ticket, Removal)>) {
        let _permit = self.gate.acquire().await;
        let requests = calls.iter().map(|(_, each)| {
            let mut request = self.user_script(Name::Unregister, &each.user, each.incarnation);
            let offline = self.event("offline", &each.user, &self.node);
            request.command.arg(each.op).arg(USER_TTL_S).arg(each.grace_ms).arg(offline).arg(REMOVAL_KEPT_MS);
            request
        });
        let answers = self.servers.ask_all(requests.collect()).await;
        let removed: Vec<_> = calls
            .iter()
            .zip(&answers)
            // During a grace the user stays listed, so that the offline is published also if this process dies.
            .filter(|((_, each), answer)| each.grace_ms == 0 && matches!(answer, Some(Ok(Value::Int(1)))))
            .map(|((_, each), _)| (each.user.as_str(), each.incarnation, each.op))
            .collect();
        self.unlist(&removed).await;
        for ((ticket, _), answer) in calls.into_iter().zip(answers) {
            if matches!(answer, Some(Ok(_))) {
                ticket.answer(Reply::Unregistered);
            }
        }
    }

    async fn end_grace(&self, mut calls: Vec<(Ticket, GraceEnd)>) {
        while !calls.is_empty() {
            let requests = calls.iter().map(|(_, each)| {
                let mut request = self.user_script(Name::EndGrace, &each.user, each.incarnation);
                request.command.arg(self.event("offline", &each.user, &self.node));
                request
            });
            let answers = {
                let _permit = self.gate.acquire().await;
                self.servers.ask_all(requests.collect()).await
            };
            let (mut ended, mut too_early, mut left) = (Vec::new(), Vec::new(), Duration::ZERO);
            for (call, answer) in calls.into_iter().zip(answers) {
                let Some(parts) = array(answer) else { continue };
                match (parts.first().and_then(number), parts.get(1)) {
                    (Some(2), Some(ms)) => {
                        left = left.max(Duration::from_millis(number(ms).unwrap_or_default()));
                        too_early.push(call);
                    }
                    (Some(0), Some(op)) => ended.push((call, Some(number(op).unwrap_or(OP_MAX)))),
                    (Some(1), _) => ended.push((call, None)),
                    _ => {}
                }
            }
            let removed =
                ended.iter().filter_map(|((_, each), op)| op.map(|op| (each.user.as_str(), each.incarnation, op)));
            self.unlist(&removed.collect::<Vec<_>>()).await;
            ended.into_iter().for_each(|((ticket, _), _)| ticket.answer(Reply::Done));
            calls = too_early;
            sleep(left.min(GRACE_LOOK_MAX)).await;
        }
    }

    async fn locate(&self, calls: Vec<(Ticket, CompactString)>) {
        let requests = calls.iter().map(|(_, user)| {
            let keys = self.tags.user(user);
            let command = self.servers.scripts().call(Name::Locate, &[&keys.named, &keys.holders]);
            Request { slot: keys.slot, command }
        });
        let answers = self.servers.ask_all(requests.collect()).await;
        for ((ticket, _), answer) in calls.into_iter().zip(answers) {
            if let Some(location) = array(answer).and_then(|parts| location(&parts)) {
                ticket.answer(Reply::Located(location));
            }
        }
    }

    async fn renew(&self, ticket: Ticket, incarnation: Incarnation, users: Vec<(CompactString, u64)>) {
        let mut restored = 0;
        for chunk in users.chunks(CHUNK) {
            let _permit = self.gate.acquire().await;
            let listed: Vec<_> = chunk.iter().map(|(user, op)| (user.as_str(), incarnation, *op)).collect();
            let is_listed = self.list(&listed).await;
            let requests = chunk.iter().map(|(user, op)| {
                let mut request = self.user_script(Name::Renew, user, incarnation);
                request.command.arg(*op).arg(USER_TTL_S);
                request
            });
            for answer in self.servers.ask_all(requests.collect()).await {
                // Dropping the ticket fails the call.
                let Some(Ok(Value::Int(count))) = answer else { return };
                restored += count.cast_unsigned();
            }
            if is_listed.contains(&false) {
                return;
            }
        }
        ticket.answer(Reply::Renewed { restored });
    }

    /// The JSON of an event: the contract's fields, and the node that publishes it.
    pub fn event(&self, event: &str, user: &str, node: &str) -> String {
        let user = serde_json::to_string(user).unwrap_or_default();
        format!(r#"{{"event":"{event}","user_id":{user},"node_id":"{node}"}}"#)
    }

    /// The command that takes a dead life of `node` off a user.
    pub fn reap_user(&self, node: &str, user: &str, incarnation: Incarnation) -> Request {
        let keys = self.tags.user(user);
        let mut command = self.servers.scripts().call(Name::Reap, &[&keys.named, &keys.holders]);
        command.arg(node).arg(incarnation).arg(USER_TTL_S).arg(self.event("offline", user, node)).arg(REMOVAL_KEPT_MS);
        Request { slot: keys.slot, command }
    }
}

/// An answer that is an array.
pub(super) fn array(answer: Answer) -> Option<Vec<Value>> {
    match answer {
        Some(Ok(Value::Array(parts))) => Some(parts),
        _ => None,
    }
}

/// `node, incarnation, node, incarnation, …`.
fn holders(parts: &[Value]) -> Option<Vec<Holder>> {
    let pairs = parts.chunks_exact(2);
    pairs.map(|pair| Some(Holder { node: string(&pair[0])?.into(), incarnation: number(&pair[1])? })).collect()
}

fn registered(parts: &[Value]) -> Option<Reply> {
    match number(parts.first()?)? {
        0 => Some(Reply::Superseded),
        _ => Some(Reply::Registered { version: number(parts.get(1)?)?, others: holders(parts.get(2..)?)? }),
    }
}

fn location(parts: &[Value]) -> Option<Location> {
    let (version, holders) = (number(parts.first()?)?, holders(parts.get(2..)?)?);
    let named = string(parts.get(1)?).map(CompactString::from);
    let foreign = named.filter(|named| !holders.iter().any(|holder| holder.node == *named));
    Some(Location { version, holders, foreign })
}
