//! The hub: sessions of this shard's connections, and the decisions of a home shard.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;
use compact_str::CompactString;

use crate::client::{Command, CommandError, reply};
use crate::ids::{ConnId, ConnRef, ShardId};
use crate::metrics::ShardMetrics;
use crate::time::Micros;

use super::arrivals::Arrivals;
use super::bus::{FromBus, ToBus};
use super::effects::{COPY_BYTES_MAX, Effects, Origin, Verdict, Wire};
use super::envelope::{Broadcast, Class, Conns, ToHome, ToOwner, UserKey, home_of};
use super::homes::Homes;
use super::limiter::{AddressKey, Limiter};

use nodes::Registration;

/// What a hub needs to know.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Shards of the node.
    pub shards: u16,
    /// Connections this shard may come to hold.
    pub connections_max: usize,
    /// Asks for `/ws` of one address within the window; 0: no limit.
    pub connects_per_address_max: u32,
    /// The window they are counted over.
    pub connects_per_address_window: Duration,
    /// Hashes names and addresses; the same for all shards of a node.
    pub hasher: RandomState,
    /// Whether there may be other nodes: users are registered with the bus before they open.
    pub has_bus: bool,
}

/// What happened, as the hub is told it.
#[derive(Debug)]
pub enum Input<'a> {
    /// A connection asks for `/ws`, with a valid upgrade.
    Ask {
        /// Who asks.
        conn: ConnId,
        /// The user id, if the request gave one.
        user: Option<&'a str>,
        /// Where from.
        address: IpAddr,
    },
    /// The time to go on that [`Effects::postpone`] asked for.
    Proceed {
        /// Whose.
        conn: ConnId,
    },
    /// An open connection said something.
    Said {
        /// Who.
        conn: ConnId,
        /// What.
        command: Result<Command<'a>, CommandError>,
    },
    /// A connection is no longer open, or no longer asks.
    Gone {
        /// Whose.
        conn: ConnId,
    },
    /// From another shard, to this home.
    Home(&'a ToHome),
    /// From another shard, to connections here.
    Owner(ToOwner),
    /// From another shard, to all connections here.
    Broadcast(Broadcast),
    /// From the bus.
    Bus(&'a FromBus),
    /// Time has passed, or credits came back.
    Turn,
}

/// Whether an input was handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was.
    Done,
    /// There is no room towards a shard that it needs. Nothing has happened, or what has happened will not happen again:
    /// keep it, and try again.
    NoRoom,
}

/// One shard's users and connections.
pub struct Hub {
    shard: ShardId,
    shards: u16,
    hasher: RandomState,
    sessions: Vec<Session>,
    homes: Homes,
    has_bus: bool,
    /// Users whom the bus has not registered yet; nobody, without a bus.
    arrivals: Arrivals,
    limiter: Limiter,
    /// Connections that are gone and whose home could not be told yet.
    leaving: VecDeque<(UserKey, ConnRef)>,
    /// A frame being built; empty between inputs.
    scratch: Vec<u8>,
    metrics: &'static ShardMetrics,
}

/// What the hub keeps for a connection of this shard.
struct Session {
    user: CompactString,
    user_hash: u64,
    generation: u32,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody is here.
    Vacant,
    /// Waits for the limiter; `true` once it was asked.
    Admission(AddressKey, bool),
    /// Let in; waits for the home shard; `true` once it was told.
    Registration(bool),
    /// Messages come and go.
    Open,
}

impl Hub {
    /// An empty hub.
    pub fn new(shard: ShardId, config: &HubConfig, metrics: &'static ShardMetrics) -> Self {
        Self {
            shard,
            shards: config.shards,
            hasher: config.hasher.clone(),
            sessions: Vec::with_capacity(config.connections_max),
            homes: Homes::default(),
            has_bus: config.has_bus,
            arrivals: Arrivals::default(),
            limiter: Limiter::new(config.connects_per_address_max, config.connects_per_address_window),
            leaving: VecDeque::new(),
            scratch: Vec::with_capacity(4096),
            metrics,
        }
    }

    /// The one door. Nothing has happened when the outcome is [`Outcome::NoRoom`].
    pub fn handle(&mut self, now: Micros, input: Input<'_>, fx: &mut impl Effects) -> Outcome {
        match input {
            Input::Said { conn, command } => return self.said(now, conn, command, fx),
            Input::Home(message) => return self.home(now, message, fx),
            Input::Bus(message) => return self.said_by_bus(now, message, fx),
            Input::Owner(message) => self.owner(now, message, fx),
            Input::Broadcast(Broadcast { frame, received }) => fx.deliver_all(Wire::Shared(&frame), received),
            Input::Ask { conn, user, address } => self.ask(now, conn, user, address, fx),
            Input::Proceed { conn } => self.proceed(now, conn, fx),
            Input::Gone { conn } => self.gone(conn, fx),
            Input::Turn => self.tell_homes(fx),
        }
        Outcome::Done
    }

    /// Whether a connection is gone whose home could not be told yet.
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Users whose home is here and who are online.
    pub fn users(&self) -> usize {
        self.homes.len()
    }

    /// The user of an open connection, for logs.
    pub fn user(&self, conn: ConnId) -> Option<&str> {
        self.sessions
            .get(conn.index as usize)
            .filter(|session| session.generation == conn.generation && session.stage != Stage::Vacant)
            .map(|session| session.user.as_str())
    }

    fn ask(&mut self, now: Micros, conn: ConnId, user: Option<&str>, address: IpAddr, fx: &mut impl Effects) {
        let index = conn.index as usize;
        if index >= self.sessions.len() {
            self.sessions.resize_with(index + 1, Session::vacant);
        }
        let user = CompactString::from(user.unwrap_or_default());
        self.sessions[index] = Session {
            user_hash: self.hasher.hash_one(user.as_str()),
            user,
            generation: conn.generation,
            stage: Stage::Admission(address.into(), false),
        };
        self.proceed(now, conn, fx);
    }

    /// Takes the next step of a connection that is not open yet.
    fn proceed(&mut self, now: Micros, conn: ConnId, fx: &mut impl Effects) {
        let here = self.reference(conn);
        let Some(session) = self.session(conn) else { return };
        match session.stage {
            Stage::Admission(address, false) => {
                let home = home_of(self.hasher.hash_one(address.bits()), self.shards);
                if home == self.shard {
                    let refused_for = self.limiter.ask(now, address).err();
                    if self.admitted(conn, refused_for, fx) {
                        self.proceed(now, conn, fx);
                    }
                    return;
                }
                if fx.has_room(Class::Home, home) {
                    fx.push_home(home, ToHome::Admit { address, conn: here });
                    self.set_stage(conn, Stage::Admission(address, true));
                } else {
                    fx.postpone(conn);
                }
            }
            Stage::Registration(false) => {
                let user = UserKey { hash: session.user_hash, name: session.user.clone() };
                let home = home_of(user.hash, self.shards);
                if home == self.shard {
                    self.set_stage(conn, Stage::Registration(true));
                    if self.register(user, here, fx) == Registration::Opens {
                        self.open(conn, fx);
                    }
                } else if fx.has_room(Class::Home, home) {
                    fx.push_home(home, ToHome::Register { user, conn: here });
                    self.set_stage(conn, Stage::Registration(true));
                } else {
                    fx.postpone(conn);
                }
            }
            Stage::Admission(_, true) | Stage::Registration(true) | Stage::Open | Stage::Vacant => {}
        }
    }

    /// The limiter has spoken. Whether the connection has a next step: a message to its user's home.
    fn admitted(&mut self, conn: ConnId, refused_for: Option<u32>, fx: &mut impl Effects) -> bool {
        let Some(session) = self.session(conn) else { return false };
        if !matches!(session.stage, Stage::Admission(..)) {
            return false;
        }
        let verdict = match refused_for {
            Some(retry_after) => Verdict::TooMany { retry_after },
            None if session.user.is_empty() => Verdict::Nameless,
            None => {
                self.set_stage(conn, Stage::Registration(false));
                return true;
            }
        };
        self.set_stage(conn, Stage::Vacant);
        fx.decide(conn, verdict);
        false
    }

    fn open(&mut self, conn: ConnId, fx: &mut impl Effects) {
        if self.session(conn).is_some_and(|session| matches!(session.stage, Stage::Registration(_))) {
            self.set_stage(conn, Stage::Open);
            fx.decide(conn, Verdict::Open);
        }
    }

    fn gone(&mut self, conn: ConnId, fx: &mut impl Effects) {
        let here = self.reference(conn);
        let Some(session) = self.session(conn) else { return };
        let registered = matches!(session.stage, Stage::Open | Stage::Registration(true));
        let session = &mut self.sessions[conn.index as usize];
        let user = UserKey { hash: session.user_hash, name: std::mem::take(&mut session.user) };
        session.stage = Stage::Vacant;
        if registered {
            self.leaving.push_back((user, here));
            self.tell_homes(fx);
        }
    }

    /// Tells the homes about connections that are gone, as far as there is room.
    fn tell_homes(&mut self, fx: &mut impl Effects) {
        for _ in 0..self.leaving.len() {
            let Some((user, conn)) = self.leaving.pop_front() else { break };
            let home = home_of(user.hash, self.shards);
            if home == self.shard {
                self.unregister(&user, conn, fx);
            } else if fx.has_room(Class::Home, home) {
                fx.push_home(home, ToHome::Unregister { user, conn });
            } else {
                self.leaving.push_back((user, conn));
            }
        }
    }

    fn said(
        &mut self,
        now: Micros,
        conn: ConnId,
        command: Result<Command<'_>, CommandError>,
        fx: &mut impl Effects,
    ) -> Outcome {
        match command {
            Ok(Command::Ping) => {
                self.metrics.messages_in_ping.add(1);
                self.metrics.messages_out_pong.add(1);
                fx.deliver(conn, Wire::Copy(reply::PONG), self.origin(conn, now));
                Outcome::Done
            }
            Ok(Command::SendMessage { target, content }) => self.unicast(now, conn, &target, content, fx),
            Ok(Command::Broadcast { content }) => self.broadcast(now, conn, content, fx),
            Err(error) => {
                self.metrics.messages_in_invalid.add(1);
                self.metrics.messages_out_error.add(1);
                self.scratch.clear();
                reply::error(&error, &mut self.scratch);
                fx.deliver(conn, Wire::Copy(&self.scratch), self.origin(conn, now));
                Outcome::Done
            }
        }
    }

    fn unicast(&mut self, now: Micros, conn: ConnId, target: &str, content: &str, fx: &mut impl Effects) -> Outcome {
        let hash = self.hasher.hash_one(target);
        let home = home_of(hash, self.shards);
        if !fx.has_room(Class::Home, home) {
            return Outcome::NoRoom;
        }
        let Some(from) = open_user(&self.sessions, conn) else { return Outcome::Done };
        self.scratch.clear();
        reply::message(from, content, &mut self.scratch);
        let target = UserKey { hash, name: target.into() };
        let origin = self.origin(conn, now);
        if home == self.shard {
            // The common case on one shard copies the frame straight into the receiver's buffer.
            let here = self.homes.reach(&target);
            if let [only] = here.conns
                && only.shard == self.shard
                && !here.elsewhere
                && self.arrivals.is_empty()
                && self.scratch.len() <= COPY_BYTES_MAX
            {
                let to = only.conn;
                self.metrics.messages_in_send_message.add(1);
                let delivered = fx.deliver(to, Wire::Copy(&self.scratch), origin);
                self.metrics.messages_out_message.add(u64::from(delivered));
                return Outcome::Done;
            }
            let frame = Bytes::copy_from_slice(&self.scratch);
            if self.route(&target, &frame, self.reference(conn), now, fx) == Outcome::NoRoom {
                return Outcome::NoRoom;
            }
        } else {
            let frame = Bytes::copy_from_slice(&self.scratch);
            fx.push_home(home, ToHome::Unicast { target, frame, sender: self.reference(conn), received: now });
        }
        self.metrics.messages_in_send_message.add(1);
        Outcome::Done
    }

    fn broadcast(&mut self, now: Micros, conn: ConnId, content: &str, fx: &mut impl Effects) -> Outcome {
        let others = (0..self.shards).map(ShardId).filter(|&shard| shard != self.shard);
        let is_full = !fx.takes_broadcasts() || (self.has_bus && !fx.bus_has_room());
        if is_full || others.clone().any(|shard| !fx.has_room(Class::Broadcast, shard)) {
            return Outcome::NoRoom;
        }
        let Some(from) = open_user(&self.sessions, conn) else { return Outcome::Done };
        self.metrics.messages_in_broadcast.add(1);
        if self.has_bus && !fx.bus_takes_broadcasts() {
            self.tell_overloaded(now, conn, fx);
            return Outcome::Done;
        }
        self.scratch.clear();
        reply::broadcast(from, content, &mut self.scratch);
        if self.shards == 1 && !self.has_bus && self.scratch.len() <= COPY_BYTES_MAX {
            fx.deliver_all(Wire::Copy(&self.scratch), now);
            return Outcome::Done;
        }
        let frame = Bytes::copy_from_slice(&self.scratch);
        for shard in others {
            fx.push_broadcast(shard, Broadcast { frame: frame.clone(), received: now });
        }
        if self.has_bus {
            fx.push_bus(ToBus::Broadcast { frame: frame.clone() });
        }
        fx.deliver_all(Wire::Shared(&frame), now);
        Outcome::Done
    }

    /// What another shard asks of this home.
    fn home(&mut self, now: Micros, message: &ToHome, fx: &mut impl Effects) -> Outcome {
        match message {
            ToHome::Unicast { target, frame, sender, received } => self.route(target, frame, *sender, *received, fx),
            ToHome::Admit { address, conn } => {
                if !fx.has_room(Class::Owner, conn.shard) {
                    return Outcome::NoRoom;
                }
                let refused_for = self.limiter.ask(now, *address).err();
                fx.push_owner(conn.shard, ToOwner::Admitted { conn: conn.conn, refused_for });
                Outcome::Done
            }
            ToHome::Register { user, conn } => {
                if !fx.has_room(Class::Owner, conn.shard) {
                    return Outcome::NoRoom;
                }
                if self.register(user.clone(), *conn, fx) == Registration::Opens {
                    fx.push_owner(conn.shard, ToOwner::Registered { conn: conn.conn });
                }
                Outcome::Done
            }
            ToHome::Unregister { user, conn } => {
                self.unregister(user, *conn, fx);
                Outcome::Done
            }
        }
    }

    /// A message to a user whose home is here: to every connection of the user, here and elsewhere.
    fn route(
        &mut self,
        target: &UserKey,
        frame: &Bytes,
        sender: ConnRef,
        received: Micros,
        fx: &mut impl Effects,
    ) -> Outcome {
        let reach = self.homes.reach(target);
        if reach.conns.is_empty() {
            return self.pass_on(target, frame, sender, received, fx);
        }
        if self.arrivals.contains(target) {
            return self.keep(target, frame, sender, received, fx);
        }
        let elsewhere = reach.elsewhere;
        if elsewhere && !fx.bus_has_room() {
            return Outcome::NoRoom;
        }
        let outcome = self.deliver_here(target, frame, Origin { sender: Some(sender), received }, fx);
        if elsewhere && outcome == Outcome::Done {
            let (target, frame) = (target.clone(), frame.clone());
            fx.push_bus(ToBus::Unicast { target, frame, sender, delivered_here: true });
        }
        outcome
    }

    /// To every connection that the user has on this node, or to none when a shard has no room.
    fn deliver_here(&mut self, target: &UserKey, frame: &Bytes, origin: Origin, fx: &mut impl Effects) -> Outcome {
        let conns = self.homes.reach(target).conns;
        if conns.iter().any(|to| !fx.has_room(Class::Owner, to.shard)) {
            return Outcome::NoRoom;
        }
        match *conns {
            [] => {}
            [only] => {
                let message = ToOwner::Deliver { conns: Conns::One(only.conn), frame: frame.clone(), origin };
                self.pass_to_owner(origin.received, only.shard, message, fx);
            }
            ref several => {
                let mut shards: Vec<Vec<ConnId>> = vec![Vec::new(); usize::from(self.shards)];
                for to in several {
                    shards[to.shard.index()].push(to.conn);
                }
                for (shard, conns) in (0..).map(ShardId).zip(shards).filter(|(_, conns)| !conns.is_empty()) {
                    let message = ToOwner::Deliver { conns: Conns::Many(conns), frame: frame.clone(), origin };
                    self.pass_to_owner(origin.received, shard, message, fx);
                }
            }
        }
        Outcome::Done
    }

    fn pass_to_owner(&mut self, now: Micros, shard: ShardId, message: ToOwner, fx: &mut impl Effects) {
        if shard == self.shard {
            self.owner(now, message, fx);
        } else {
            fx.push_owner(shard, message);
        }
    }

    /// What a home sends to connections of this shard.
    fn owner(&mut self, now: Micros, message: ToOwner, fx: &mut impl Effects) {
        match message {
            ToOwner::Deliver { conns, frame, origin } => {
                for &conn in conns.as_slice() {
                    let delivered = fx.deliver(conn, Wire::Shared(&frame), origin);
                    self.metrics.messages_out_message.add(u64::from(delivered));
                }
            }
            ToOwner::Registered { conn } => self.open(conn, fx),
            ToOwner::Unavailable { conn } => self.unavailable(conn, fx),
            ToOwner::Refused { conn } => self.tell_overloaded(now, conn, fx),
            ToOwner::Admitted { conn, refused_for } => {
                // The next step is a message to a home, which a to-owner message must not cause: it is put off.
                if self.admitted(conn, refused_for, fx) {
                    fx.postpone(conn);
                }
            }
        }
    }

    fn reference(&self, conn: ConnId) -> ConnRef {
        ConnRef { shard: self.shard, conn }
    }

    fn origin(&self, sender: ConnId, received: Micros) -> Origin {
        Origin { sender: Some(self.reference(sender)), received }
    }

    fn session(&self, conn: ConnId) -> Option<&Session> {
        self.sessions
            .get(conn.index as usize)
            .filter(|session| session.generation == conn.generation && session.stage != Stage::Vacant)
    }

    fn set_stage(&mut self, conn: ConnId, stage: Stage) {
        self.sessions[conn.index as usize].stage = stage;
    }
}

impl Session {
    fn vacant() -> Self {
        Self { user: CompactString::default(), user_hash: 0, generation: 0, stage: Stage::Vacant }
    }
}

mod nodes;

/// The user of an open connection. It borrows the sessions only, so that a frame can be built beside it.
fn open_user(sessions: &[Session], conn: ConnId) -> Option<&str> {
    sessions
        .get(conn.index as usize)
        .filter(|session| session.generation == conn.generation && session.stage == Stage::Open)
        .map(|session| session.user.as_str())
}

#[cfg(test)]
mod tests;
