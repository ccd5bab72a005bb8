//! Calls about users, as commands: many in one pipeline, and their answers as replies.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use compact_str::CompactString;
use redis::{Value, cmd};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::super::call::{Holder, Incarnation, Location};
use super::super::keys::{self, UserKeys};
use super::super::scripts::Name;
use super::caller::Ticket;
use super::open::{number, string};
use super::servers::{Answer, Request};
use super::session::Rim;
use super::{Call, Reply, membership, reap};

/// How long a user stays in the directory without a renewal, in seconds.
const USER_TTL_S: &str = "3600";
/// How long the number of a removal is kept, in milliseconds; a command is late by less.
const REMOVAL_KEPT_MS: &str = "60000";
/// Users in one pipeline.
const CHUNK: usize = 500;
/// Users in one call of a script: enough that the call itself does not count, and Redis does nothing else for less than
/// half a millisecond.
const SCRIPT_USERS_MAX: usize = 50;
/// A grace that is said to end later than this is looked at again: the clock of Redis may have been set.
const GRACE_LOOK_MAX: Duration = Duration::from_secs(5);

/// A number that no operation has: greater than all.
const OP_MAX: u64 = (1 << 53) - 1;

struct Registration {
    user: CompactString,
    incarnation: Incarnation,
    op: u64,
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

/// A user whom a script is to see to.
struct UserArgs {
    keys: UserKeys,
    /// What the script is told of this user.
    args: Vec<String>,
}

/// A user as a bucket lists it.
struct Listed<'a> {
    user: &'a str,
    /// Of the user's keys.
    slot: u16,
    incarnation: Incarnation,
    op: u64,
}

/// Begins all calls that were handed over in one turn.
pub(super) fn begin(rim: &Rc<Rim>, tasks: &mut JoinSet<()>, calls: Vec<(Ticket, Call)>) {
    let (mut registrations, mut removals, mut ends, mut located) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (ticket, call) in calls {
        match call {
            Call::Register { user, incarnation, op } => {
                registrations.push((ticket, Registration { user, incarnation, op }));
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

    /// Runs a script that takes many users at once: `head` are its first arguments, and each user has own ones. The
    /// answer for each user, in order.
    async fn ask_users(&self, name: Name, head: &[&str], users: Vec<UserArgs>) -> Vec<Answer> {
        let mut answers: Vec<Answer> = users.iter().map(|_| None).collect();
        let all = (0..users.len()).collect();
        let singly = self.ask_groups(name, head, &users, self.groups(all, &users), &mut answers).await;
        // What the script could not do for one of them, such as overwrite a key of another type, it may for the others.
        let singly = singly.into_iter().map(|place| vec![place]).collect();
        self.ask_groups(name, head, &users, singly, &mut answers).await;
        answers
    }

    /// Users whose keys one script may touch together: any on one server, those of one slot on a cluster.
    fn groups(&self, mut places: Vec<usize>, users: &[UserArgs]) -> Vec<Vec<usize>> {
        if !self.servers.is_cluster() {
            return places.chunks(SCRIPT_USERS_MAX).map(<[usize]>::to_vec).collect();
        }
        places.sort_by_key(|place| users[*place].keys.slot);
        let of_slots = places.chunk_by(|one, other| users[*one].keys.slot == users[*other].keys.slot);
        of_slots.flat_map(|of_slot| of_slot.chunks(SCRIPT_USERS_MAX)).map(<[usize]>::to_vec).collect()
    }

    /// One call of the script for each group; the users of groups of several that failed.
    async fn ask_groups(
        &self,
        name: Name,
        head: &[&str],
        users: &[UserArgs],
        groups: Vec<Vec<usize>>,
        answers: &mut [Answer],
    ) -> Vec<usize> {
        let requests = groups.iter().map(|group| {
            let keys = group.iter().map(|place| &users[*place].keys);
            let names: Vec<&str> = keys.flat_map(|keys| [keys.named.as_str(), keys.holders.as_str()]).collect();
            let mut command = self.servers.scripts().call(name, &names);
            command.arg(head);
            for place in group {
                command.arg(&users[*place].args);
            }
            Request { slot: users[group[0]].keys.slot, command }
        });
        let all = self.servers.ask_all(requests.collect()).await;
        let mut failed = Vec::new();
        for (group, answer) in groups.into_iter().zip(all) {
            match answer {
                Some(Ok(Value::Array(parts))) if parts.len() == group.len() => {
                    group.into_iter().zip(parts).for_each(|(place, part)| answers[place] = Some(Ok(part)));
                }
                Some(Err(_)) if group.len() > 1 => failed.extend(group),
                Some(Err(error)) => answers[group[0]] = Some(Err(error)),
                _ => {}
            }
        }
        failed
    }

    /// Users by the buckets that list them, as places in `users`.
    fn by_bucket(&self, users: &[Listed]) -> BTreeMap<(Incarnation, usize), Vec<usize>> {
        let mut buckets: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (place, user) in users.iter().enumerate() {
            buckets.entry((user.incarnation, keys::bucket_of(user.slot))).or_default().push(place);
        }
        buckets
    }

    /// Lists users in their buckets, so that they are found if this process dies; whether each is.
    async fn list(&self, users: &[Listed<'_>]) -> Vec<bool> {
        let buckets = self.by_bucket(users);
        let requests = buckets.iter().map(|((incarnation, bucket), places)| {
            let key = self.tags.bucket(&self.node, *incarnation, *bucket);
            let mut command = cmd("HSET");
            command.arg(&key);
            for place in places {
                command.arg(users[*place].user).arg(users[*place].op);
            }
            Request::of(&key, command)
        });
        let answers = self.servers.ask_all(requests.collect()).await;
        let mut is_listed = vec![false; users.len()];
        for (answer, places) in answers.into_iter().zip(buckets.into_values()) {
            if matches!(answer, Some(Ok(_))) {
                places.into_iter().for_each(|place| is_listed[place] = true);
            }
        }
        is_listed
    }

    /// Takes users off their buckets, unless a later operation listed them. What fails stays listed, and does no harm.
    async fn unlist(&self, users: &[Listed<'_>]) {
        let requests = self.by_bucket(users).into_iter().map(|((incarnation, bucket), places)| {
            let key = self.tags.bucket(&self.node, incarnation, bucket);
            let mut command = self.servers.scripts().call(Name::Unlist, &[&key]);
            for place in places {
                command.arg(users[place].user).arg(users[place].op);
            }
            Request::of(&key, command)
        });
        self.servers.ask_all(requests.collect()).await;
    }

    /// How a user is listed.
    fn listed<'a>(&self, user: &'a str, incarnation: Incarnation, op: u64) -> Listed<'a> {
        let slot = keys::slot(keys::user_node(user).as_bytes());
        Listed { user, slot, incarnation, op }
    }

    async fn register(&self, calls: Vec<(Ticket, Registration)>) {
        let _permit = self.gate.acquire().await;
        let users: Vec<_> = calls.iter().map(|(_, each)| self.listed(&each.user, each.incarnation, each.op)).collect();
        let is_listed = self.list(&users).await;
        // Those that are not listed fail, by dropping their tickets.
        let mut listed = is_listed.into_iter();
        let calls: Vec<_> = calls.into_iter().filter(|_| listed.next() == Some(true)).collect();
        let users = calls.iter().map(|(_, each)| {
            let online = self.event("online", &each.user, &self.node);
            UserArgs {
                keys: self.tags.user(&each.user),
                args: vec![each.incarnation.to_string(), each.op.to_string(), online],
            }
        });
        let answers = self.ask_users(Name::Register, &[&self.node, USER_TTL_S], users.collect()).await;
        for ((ticket, _), answer) in calls.into_iter().zip(answers) {
            if let Some(reply) = array(answer).and_then(|parts| registered(&parts)) {
                ticket.answer(reply);
            }
        }
    }

    async fn unregister(&self, calls: Vec<(Ticket, Removal)>) {
        let _permit = self.gate.acquire().await;
        let users = calls.iter().map(|(_, each)| {
            let offline = self.event("offline", &each.user, &self.node);
            let (incarnation, op, grace_ms) = (each.incarnation, each.op, each.grace_ms);
            UserArgs {
                keys: self.tags.user(&each.user),
                args: vec![incarnation.to_string(), op.to_string(), grace_ms.to_string(), offline],
            }
        });
        let head = [self.node.as_str(), USER_TTL_S, REMOVAL_KEPT_MS];
        let answers = self.ask_users(Name::Unregister, &head, users.collect()).await;
        let removed: Vec<_> = calls
            .iter()
            .zip(&answers)
            // During a grace the user stays listed, so that the offline is published also if this process dies.
            .filter(|((_, each), answer)| each.grace_ms == 0 && matches!(answer, Some(Ok(Value::Int(1)))))
            .map(|((_, each), _)| self.listed(&each.user, each.incarnation, each.op))
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
                ended.iter().filter_map(|((_, each), op)| op.map(|op| self.listed(&each.user, each.incarnation, op)));
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
        let life = incarnation.to_string();
        for chunk in users.chunks(CHUNK) {
            let _permit = self.gate.acquire().await;
            let listed: Vec<_> = chunk.iter().map(|(user, op)| self.listed(user, incarnation, *op)).collect();
            let is_listed = self.list(&listed).await;
            let users = chunk
                .iter()
                .map(|(user, op)| UserArgs { keys: self.tags.user(user), args: vec![op.to_string()] })
                .collect();
            for answer in self.ask_users(Name::Renew, &[&self.node, &life, USER_TTL_S], users).await {
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
