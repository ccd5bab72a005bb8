//! Calls about users, as commands: many in one pipeline, and their answers as replies.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use compact_str::CompactString;
use redis::{Cmd, Value, cmd};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::super::call::{Holder, Incarnation, Location, Run};
use super::super::keys::{self, UserKeys};
use super::super::scripts::Name;
use super::caller::Ticket;
use super::open::{number, string};
use super::runs::{ASKED_MAX, Place};
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

/// What a script says of a user.
struct UserAnswer {
    answer: Answer,
    /// Whether the run is young, of scripts that say so.
    is_young: bool,
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

    /// Where the marker of the run is that a slot's users belong to.
    fn place(&self, slot: u16) -> Place {
        if self.servers.is_cluster() { Place::Slot(slot) } else { Place::Registry }
    }

    fn run_key(&self, place: Place) -> String {
        match place {
            Place::Registry => keys::RUN.to_owned(),
            Place::Slot(slot) => self.tags.run(slot),
        }
    }

    /// Takes in the marker that an answer begins with; whether the run is young.
    pub fn observe(&self, place: Place, answer: &[Value]) -> Option<bool> {
        let server = |place| {
            let slot = match place {
                Place::Registry => keys::slot(keys::REGISTRY.as_bytes()),
                Place::Slot(slot) => slot,
            };
            self.servers.of_slot(slot).map(|server| server.id)
        };
        self.runs.observe(place, answer, |other| server(other) == server(place))
    }

    /// Runs a script that takes many users at once: `head` are its first arguments, and each user has own ones. The
    /// answer for each user, in order.
    async fn ask_users(&self, name: Name, head: &[&str], users: Vec<UserArgs>) -> Vec<UserAnswer> {
        let mut answers: Vec<UserAnswer> = users.iter().map(|_| UserAnswer { answer: None, is_young: false }).collect();
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
        answers: &mut [UserAnswer],
    ) -> Vec<usize> {
        let requests = groups.iter().map(|group| {
            let slot = users[group[0]].keys.slot;
            let run = name.answers_run().then(|| self.run_key(self.place(slot)));
            let keys = group.iter().map(|place| &users[*place].keys);
            let names = keys.flat_map(|keys| [keys.named.as_str(), keys.holders.as_str()]);
            let mut command =
                self.servers.scripts().call(name, &run.as_deref().into_iter().chain(names).collect::<Vec<_>>());
            if run.is_some() {
                command.arg(self.runs.new_text());
            }
            command.arg(head);
            for place in group {
                command.arg(&users[*place].args);
            }
            Request { slot, command }
        });
        let all = self.servers.ask_all(requests.collect()).await;
        let mut failed = Vec::new();
        let head_parts = if name.answers_run() { 2 } else { 0 };
        for (group, answer) in groups.into_iter().zip(all) {
            match answer {
                Some(Ok(Value::Array(parts))) if parts.len() == head_parts + group.len() => {
                    let is_young = match name.answers_run() {
                        true => self.observe(self.place(users[group[0]].keys.slot), &parts),
                        false => Some(false),
                    };
                    let Some(is_young) = is_young else { continue };
                    for (place, part) in group.into_iter().zip(parts.into_iter().skip(head_parts)) {
                        answers[place] = UserAnswer { answer: Some(Ok(part)), is_young };
                    }
                }
                Some(Err(_)) if group.len() > 1 => failed.extend(group),
                Some(Err(error)) => answers[group[0]].answer = Some(Err(error)),
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

    async fn register(&self, mut calls: Vec<(Ticket, Registration)>) {
        let _permit = self.gate.acquire().await;
        for _ in 0..ASKED_MAX {
            let asked_in = self.runs.id();
            let users: Vec<_> =
                calls.iter().map(|(_, each)| self.listed(&each.user, each.incarnation, each.op)).collect();
            let is_listed = self.list(&users).await;
            // Those that are not listed fail, by dropping their tickets.
            let mut listed = is_listed.into_iter();
            calls.retain(|_| listed.next() == Some(true));
            let users = calls.iter().map(|(_, each)| {
                let online = self.event("online", &each.user, &self.node);
                UserArgs {
                    keys: self.tags.user(&each.user),
                    args: vec![each.incarnation.to_string(), each.op.to_string(), online],
                }
            });
            let answers = self.ask_users(Name::Register, &[&self.node, USER_TTL_S], users.collect()).await;
            if self.runs.id() != asked_in {
                continue;
            }
            for ((ticket, _), UserAnswer { answer, is_young }) in calls.into_iter().zip(answers) {
                if let Some(reply) = array(answer).and_then(|parts| registered(&parts, self.runs.now(is_young))) {
                    ticket.answer(reply);
                }
            }
            return;
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
            .filter(|((_, each), answer)| each.grace_ms == 0 && matches!(answer.answer, Some(Ok(Value::Int(1)))))
            .map(|((_, each), _)| self.listed(&each.user, each.incarnation, each.op))
            .collect();
        self.unlist(&removed).await;
        for ((ticket, _), answer) in calls.into_iter().zip(answers) {
            if matches!(answer.answer, Some(Ok(_))) {
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
        let all: Vec<(Place, Option<u32>, UserKeys)> = calls
            .iter()
            .map(|(_, user)| {
                let keys = self.tags.user(user);
                (self.place(keys.slot), self.servers.of_slot(keys.slot).map(|server| server.id), keys)
            })
            .collect();
        for _ in 0..ASKED_MAX {
            let asked_in = self.runs.id();
            let requests = all.iter().map(|(place, server, keys)| {
                let command = self.locate_user(keys, !self.runs.is_checked(*place, *server));
                Request { slot: keys.slot, command }
            });
            let answers = self.servers.ask_all(requests.collect()).await;
            let located: Vec<_> = answers
                .into_iter()
                .zip(&all)
                .map(|(answer, (place, server, _))| {
                    let parts = array(answer)?;
                    let is_young = self.observe(*place, &parts)?;
                    self.runs.set_checked(*place, *server);
                    Some((parts, is_young))
                })
                .collect();
            if self.runs.id() != asked_in {
                continue;
            }
            for ((ticket, _), located) in calls.into_iter().zip(located) {
                let location = located.and_then(|(parts, is_young)| location(&parts, self.runs.now(is_young)));
                if let Some(location) = location {
                    ticket.answer(Reply::Located(location));
                }
            }
            return;
        }
    }

    /// The command that reads where a user is; `checks`: whether the server's replication id is still the marker's, which
    /// need not be asked with every user.
    pub fn locate_user(&self, keys: &UserKeys, checks: bool) -> Cmd {
        let run = self.run_key(self.place(keys.slot));
        let mut command = self.servers.scripts().call(Name::Locate, &[&run, &keys.named, &keys.holders]);
        command.arg(self.runs.new_text()).arg(u8::from(checks));
        command
    }

    async fn renew(&self, ticket: Ticket, incarnation: Incarnation, users: Vec<(CompactString, u64)>) {
        // Also those that were put back in vain, or just before the run was seen to have ended.
        let (mut restored, mut others) = (BTreeSet::new(), BTreeMap::new());
        for _ in 0..ASKED_MAX {
            let asked_in = self.runs.id();
            let Some((superseded, is_young)) = self.renew_once(incarnation, &users, &mut restored, &mut others).await
            else {
                // Dropping the ticket fails the call.
                return;
            };
            if self.runs.id() == asked_in {
                restored.retain(|place| !superseded.contains(place));
                others.retain(|place, _| !superseded.contains(place));
                let reaped = superseded.iter().map(|place| &users[*place]);
                let reaped: Vec<_> = reaped.map(|(user, op)| self.listed(user, incarnation, *op)).collect();
                self.unlist(&reaped).await;
                let (restored, others) = (restored.into_iter().collect(), others.into_iter().collect());
                return ticket.answer(Reply::Renewed { restored, others, superseded, run: self.runs.now(is_young) });
            }
        }
    }

    /// Adds to `restored` what was put back, to `others` who else holds which users. Answers what a later operation has
    /// taken off, and whether the run is young.
    async fn renew_once(
        &self,
        incarnation: Incarnation,
        users: &[(CompactString, u64)],
        restored: &mut BTreeSet<usize>,
        others: &mut BTreeMap<usize, Vec<Holder>>,
    ) -> Option<(Vec<usize>, bool)> {
        let life = incarnation.to_string();
        let (mut superseded, mut is_any_young) = (Vec::new(), false);
        for (chunk, first) in users.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            let _permit = self.gate.acquire().await;
            let listed: Vec<_> = chunk.iter().map(|(user, op)| self.listed(user, incarnation, *op)).collect();
            let is_listed = self.list(&listed).await;
            let users = chunk
                .iter()
                .map(|(user, op)| UserArgs { keys: self.tags.user(user), args: vec![op.to_string()] })
                .collect();
            let answers = self.ask_users(Name::Renew, &[&self.node, USER_TTL_S, &life], users).await;
            for (place, UserAnswer { answer, is_young }) in (first..).zip(answers) {
                let parts = array(answer)?;
                is_any_young |= is_young;
                match number(parts.first()?)? {
                    0 => {}
                    1 => _ = restored.insert(place),
                    _ => superseded.push(place),
                }
                let holders = holders(&parts[1..])?;
                if !holders.is_empty() {
                    others.insert(place, holders);
                }
            }
            if is_listed.contains(&false) {
                return None;
            }
        }
        Some((superseded, is_any_young))
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

/// `node, incarnation, op, node, incarnation, op, …`.
fn holders(parts: &[Value]) -> Option<Vec<Holder>> {
    let each = parts.chunks_exact(3).map(|part| {
        Some(Holder { node: string(&part[0])?.into(), incarnation: number(&part[1])?, op: number(&part[2])? })
    });
    each.collect()
}

fn registered(parts: &[Value], run: Run) -> Option<Reply> {
    match number(parts.first()?)? {
        0 => Some(Reply::Superseded),
        _ => Some(Reply::Registered { others: holders(parts.get(1..)?)?, run }),
    }
}

fn location(parts: &[Value], run: Run) -> Option<Location> {
    let holders = holders(parts.get(3..)?)?;
    let named = string(parts.get(2)?).map(CompactString::from);
    let foreign = named.filter(|named| !holders.iter().any(|holder| holder.node == *named));
    Some(Location { holders, foreign, run })
}
