//! Users of this node in the directory.
//!
//! A user is entered when the first connection asks to open, and taken off when the last one is gone; one call of a
//! user is under way at a time, each with a greater number. Before connections open, the oldest other holder is told
//! (*join*), so that it passes on what comes for the user, and what this node itself has sent the user elsewhere has
//! been handled or has come back.

mod copies;
mod renewal;

pub(super) use renewal::Walk;

use std::cmp::Ordering;
use std::time::Duration;

use bytes::Bytes;

use crate::hub::bus::{FromBus, Stamp, Via};
use crate::hub::envelope::UserKey;
use crate::time::Micros;

use super::call::{Call, Incarnation, Location, Reply};
use super::routes::{Route, weight};
use super::state::{Asked, Bus, Effects, Later, ORIGIN_SELF, Parcel, Purpose, REGISTER_WITHIN, RETRY_AFTER};
use super::streams::{Begin, Streams};

/// A user whom this node holds, or is about to, or no longer.
#[derive(Debug)]
pub(super) struct Held {
    stage: Stage,
    /// The user has connections here, which may wait.
    wanted: bool,
    /// A call is under way.
    busy: bool,
    /// Which life of this node a call may have entered the user for; 0: none.
    entered_as: Incarnation,
    /// The number of the call that entered the user last.
    entered_by: u64,
    /// When connections that wait are answered 503.
    deadline: Micros,
    version: u64,
    /// How many of `others` are older than this node's own entry.
    older: u32,
    /// The other holders, the oldest first.
    others: Vec<(u32, Incarnation)>,
    /// Where this node's own stream stood when the user's connections opened: what it has said since they have got.
    own_from: Stamp,
    /// Those who have joined, with the user's version by which they hold the user.
    joined: Vec<(u32, u64)>,
    /// The number of the join whose answer counts.
    join: u64,
    /// Messages whose copies wait until the holders are known again.
    unforwarded: Option<Vec<(Parcel, Via)>>,
    /// What came before this node knew where the streams begin.
    until_joined: Vec<(Parcel, Via)>,
    /// What other nodes have sent the user, of which something may wait for its turn.
    pub(super) streams: Streams<(Bytes, Via)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// To be entered.
    Registering,
    /// Entered; the oldest holder has yet to know.
    Joining,
    /// Joined; what this node has sent the user elsewhere is still under way.
    Settling,
    /// Connections are open.
    Open,
    /// To be taken off.
    Leaving,
}

impl Held {
    fn new(deadline: Micros) -> Self {
        Self {
            stage: Stage::Registering,
            wanted: true,
            busy: false,
            entered_as: 0,
            entered_by: 0,
            deadline,
            version: 0,
            older: 0,
            others: Vec::new(),
            own_from: Stamp { stream: u64::MAX, ..Stamp::default() },
            joined: Vec::new(),
            join: 0,
            unforwarded: None,
            until_joined: Vec::new(),
            streams: Streams::default(),
        }
    }

    /// The user's version, as far as this node knows it.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The other holders, the oldest first.
    pub(super) fn others(&self) -> &[(u32, Incarnation)] {
        &self.others
    }

    /// Where this node's own stream begins for who joins, when it stands at `stamp`.
    pub(super) fn own_begin(&self, stamp: Stamp) -> Begin {
        let vouched_from = match stamp.stream.cmp(&self.own_from.stream) {
            Ordering::Less => stamp.place,
            Ordering::Equal => self.own_from.place,
            Ordering::Greater => 1,
        };
        Begin { stamp, vouched_from }
    }

    /// Whether messages for the user belong here.
    pub(super) fn is_here(&self) -> bool {
        self.stage != Stage::Leaving && self.wanted
    }

    /// Whether connections are open, and nothing waits.
    pub(super) fn is_settled(&self) -> bool {
        self.is_open() && self.unforwarded.is_none() && self.has_handled_all()
    }

    /// Whether nothing waits for a message before it.
    pub(super) fn has_handled_all(&self) -> bool {
        self.until_joined.is_empty() && self.streams.is_settled()
    }

    /// Keeps a message if this node does not know yet where the streams begin.
    pub(super) fn keep_until_joined(&mut self, parcel: &Parcel, via: Via) -> bool {
        let keeps = matches!(self.stage, Stage::Registering | Stage::Joining);
        if keeps {
            self.until_joined.push((parcel.clone(), via));
        }
        keeps
    }

    /// Whether connections are open.
    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }
}

impl Bus {
    pub(super) fn arrived(&mut self, user: UserKey, fx: &mut dyn Effects) {
        self.later(REGISTER_WITHIN, Later::RegisterDeadline(user.clone()));
        let deadline = self.now.after(REGISTER_WITHIN);
        match self.held.get_mut(&user) {
            Some(held) => {
                held.wanted = true;
                held.deadline = deadline;
            }
            None => {
                self.held.insert(user.clone(), Held::new(deadline));
            }
        }
        self.fence_route(&user);
        self.step(&user, fx);
    }

    pub(super) fn left(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let Some(held) = self.held.get_mut(user) else { return };
        if held.stage == Stage::Registering {
            // The home hands back what it has kept of these.
            held.unforwarded = None;
        }
        held.wanted = false;
        held.stage = Stage::Leaving;
        self.drain_copies(user);
        let Some(held) = self.held.get_mut(user) else { return };
        let mut early = held.streams.end();
        early.extend(held.until_joined.drain(..).map(|(parcel, via)| (parcel.frame, via)));
        for (parcel, via) in held.unforwarded.take().unwrap_or_default() {
            self.go_back(user.clone(), parcel, Some(via), fx);
        }
        for (frame, via) in early {
            self.waiting_bytes -= weight(&frame);
            self.returned(user.clone(), frame, via, fx);
        }
        self.step(user, fx);
    }

    /// The user should be open by now.
    pub(super) fn register_deadline(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let now = self.now;
        let is_late = |held: &Held| held.wanted && held.stage != Stage::Open && held.deadline <= now;
        if self.held.get(user).is_some_and(is_late) {
            // A node that died, and is not known to be dead yet, must not keep its users out.
            if self.held.get(user).is_some_and(|held| held.stage == Stage::Settling) && self.waits_for_unreachable(user)
            {
                return self.open(user, fx);
            }
            let home = self.home(user);
            fx.push(home, FromBus::NotRegistered { user: user.clone() });
            self.left(user, fx);
        }
    }

    /// Makes the call that the user's stage asks for, unless one is under way.
    pub(super) fn step(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let op = self.next_number();
        let incarnation = self.members.incarnation;
        let can_call = self.connected && incarnation != 0;
        let grace_ms = self.config.offline_grace_ms;
        let Some(held) = self.held.get_mut(user).filter(|held| !held.busy) else { return };
        match held.stage {
            Stage::Leaving if held.entered_as == 0 && !held.wanted => {
                self.held.remove(user);
            }
            Stage::Leaving if held.entered_as == 0 => {
                held.stage = Stage::Registering;
                self.fence_route(user);
                self.step(user, fx);
            }
            _ if !can_call => {}
            Stage::Leaving => {
                held.busy = true;
                let call = Call::Unregister { user: user.name.clone(), incarnation, op, grace_ms };
                self.call(Purpose::Unregister(user.clone()), call, fx);
            }
            Stage::Registering => {
                held.busy = true;
                held.entered_as = incarnation;
                self.enter(user, op, Purpose::Register(user.clone()), fx);
            }
            // This node was declared dead and has a new life: the user is online again.
            Stage::Joining | Stage::Settling | Stage::Open if held.entered_as != incarnation => {
                held.busy = true;
                held.entered_as = incarnation;
                self.enter(user, op, Purpose::Restored(user.clone()), fx);
            }
            Stage::Joining | Stage::Settling | Stage::Open => {}
        }
    }

    fn enter(&mut self, user: &UserKey, op: u64, purpose: Purpose, fx: &mut dyn Effects) {
        if let Some(held) = self.held.get_mut(user) {
            held.entered_by = op;
        }
        let incarnation = self.members.incarnation;
        let call = Call::Register { user: user.name.clone(), incarnation, op };
        self.call(purpose, call, fx);
    }

    pub(super) fn registered(&mut self, user: &UserKey, reply: Reply, fx: &mut dyn Effects) {
        let Some(held) = self.held.get_mut(user) else { return };
        held.busy = false;
        match reply {
            Reply::Registered { version, others }
                if held.stage == Stage::Registering && held.entered_as == self.members.incarnation =>
            {
                held.version = version;
                held.stage = Stage::Joining;
                let location = Location { version, holders: others, foreign: None };
                self.learn_holders(user, &location, fx);
                self.forward_what_waited(user, fx);
                self.join_or_open(user, fx);
            }
            Reply::Registered { .. } => self.step(user, fx),
            _ => self.later(RETRY_AFTER, Later::Step(user.clone())),
        }
    }

    /// Tells the oldest holder that can be reached, or goes on when there is none.
    pub(super) fn join_or_open(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let Some(held) = self.held.get(user).filter(|held| held.stage == Stage::Joining) else { return };
        let oldest = held.others.iter().take(held.older as usize).find(|&&other| self.takes_messages(other));
        match oldest {
            Some(&(deciding, _)) => {
                let number = self.ask_peer(deciding, Asked::Join(user.clone()));
                self.tell_holders(user, number, Some(deciding));
            }
            None => {
                self.tell_holders(user, 0, None);
                self.joined(user, 0, fx);
            }
        }
    }

    /// The other older holders, who are cut off, learn of it when they are back.
    fn tell_holders(&mut self, user: &UserKey, join: u64, except: Option<u32>) {
        let Some(held) = self.held.get_mut(user) else { return };
        held.join = join;
        let cut_off: Vec<u32> =
            held.others.iter().map(|&(peer, _)| peer).filter(|&peer| Some(peer) != except).collect();
        for peer in cut_off {
            self.ask_peer(peer, Asked::Join(user.clone()));
        }
    }

    /// The oldest holder says where a stream begins for this node, before it answers the join.
    pub(super) fn stream_begins(&mut self, user: &UserKey, join: u64, begin: Begin) {
        if let Some(held) = self.held.get_mut(user)
            && held.stage == Stage::Joining
            && held.join == join
            // What this node says itself arrives in its order by its own route.
            && begin.stamp.origin != ORIGIN_SELF
        {
            held.streams.begin(begin);
        }
    }

    /// The oldest holder passes on what comes for the user.
    pub(super) fn joined(&mut self, user: &UserKey, join: u64, fx: &mut dyn Effects) {
        if let Some(held) = self.held.get_mut(user)
            && held.stage == Stage::Joining
            && held.join == join
        {
            held.stage = Stage::Settling;
            for (parcel, via) in std::mem::take(&mut held.until_joined) {
                self.waiting_bytes -= weight(&parcel.frame);
                self.deliver(user.clone(), parcel, via, fx);
            }
            self.open_if_ready(user, fx);
        }
    }

    /// The oldest holder does not hold the user any more: who does?
    pub(super) fn not_joined(&mut self, user: &UserKey, join: u64, fx: &mut dyn Effects) {
        if self.held.get(user).is_some_and(|held| held.stage == Stage::Joining && held.join == join) {
            let call = Call::Locate { user: user.name.clone() };
            self.call(Purpose::Rejoin(user.clone()), call, fx);
        }
    }

    pub(super) fn rejoin(&mut self, user: &UserKey, reply: Reply, fx: &mut dyn Effects) {
        if let Reply::Located(location) = reply {
            self.learn_holders(user, &location, fx);
            self.join_or_open(user, fx);
        }
        // Else the deadline decides.
    }

    /// Opens the user's connections, once nothing of this node's own is under way to another place of the user.
    pub(super) fn open_if_ready(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let is_settling = self.held.get(user).is_some_and(|held| held.stage == Stage::Settling && held.wanted);
        if is_settling && !self.routes.get(user).is_some_and(Route::is_unsettled) {
            self.open(user, fx);
        }
    }

    fn open(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let own_from = match self.sent.get(user) {
            Some(sent) => sent.clone().next(ORIGIN_SELF),
            None => self.new_stream().next(ORIGIN_SELF),
        };
        let Some(held) = self.held.get_mut(user) else { return };
        held.own_from = own_from;
        held.stage = Stage::Open;
        let elsewhere = !held.others.is_empty();
        let home = self.home(user);
        fx.push(home, FromBus::Registered { user: user.clone(), elsewhere });
    }

    pub(super) fn unregistered(&mut self, user: UserKey, reply: Reply, fx: &mut dyn Effects) {
        let Some(held) = self.held.get_mut(&user) else { return };
        held.busy = false;
        if reply == Reply::Failed {
            return self.later(RETRY_AFTER, Later::Step(user));
        }
        if self.config.offline_grace_ms > 0 && reply == Reply::Unregistered {
            let grace = Duration::from_millis(self.config.offline_grace_ms);
            self.later(grace, Later::EndGrace(user.clone()));
        }
        let Some(held) = self.held.get_mut(&user) else { return };
        if held.wanted {
            *held = Held::new(held.deadline);
            // Meanwhile the user was elsewhere.
            self.fence_route(&user);
            self.step(&user, fx);
        } else {
            self.held.remove(&user);
        }
    }

    /// Takes in who else holds the user, unless somebody has joined since the directory was read. `location` may name this
    /// node itself, at its place among the others.
    pub(super) fn learn_holders(&mut self, user: &UserKey, location: &Location, fx: &mut dyn Effects) {
        if self.held.get(user).is_some_and(|held| held.version > location.version) {
            return;
        }
        let own = self.config.node_id.clone();
        let own_place = location.holders.iter().position(|holder| holder.node == own);
        let mut others = Vec::new();
        let mut older = 0;
        for (place, holder) in location.holders.iter().enumerate() {
            if holder.node == own || !self.is_alive(holder) {
                continue;
            }
            let peer = self.peer(&holder.node);
            self.met(peer, holder.incarnation, fx);
            others.push((peer, holder.incarnation));
            older += u32::from(own_place.is_none_or(|own_place| place < own_place));
        }
        let Some(held) = self.held.get_mut(user) else { return };
        let was_elsewhere = !held.others.is_empty();
        held.version = held.version.max(location.version);
        held.joined.retain(|(joined, _)| others.iter().any(|(other, _)| other == joined));
        held.others = others;
        held.older = older;
        self.tell_elsewhere(user, was_elsewhere, fx);
    }

    fn tell_elsewhere(&mut self, user: &UserKey, was_elsewhere: bool, fx: &mut dyn Effects) {
        let Some(held) = self.held.get(user).filter(|held| held.is_open()) else { return };
        let elsewhere = !held.others.is_empty();
        if elsewhere != was_elsewhere {
            let home = self.home(user);
            fx.push(home, FromBus::Elsewhere { user: user.clone(), elsewhere });
        }
    }

    /// Whether this node is the oldest holder that can be reached.
    pub(super) fn acts_as_primary(&self, user: &UserKey) -> bool {
        self.held.get(user).is_some_and(|held| {
            held.is_here() && !held.others.iter().take(held.older as usize).any(|&other| self.takes_messages(other))
        })
    }

    fn takes_messages(&self, (peer, life): (u32, Incarnation)) -> bool {
        let peer = &self.peers[peer as usize];
        peer.life == life && peer.dead < life && !peer.is_unreachable
    }

    /// The directory says that this node holds the user. If it has not even begun to, Redis has lost a removal.
    pub(super) fn take_off_if_unknown(&mut self, user: &UserKey) {
        if self.held.get(user).is_some() || self.members.incarnation == 0 {
            return;
        }
        let mut held = Held::new(self.now);
        held.wanted = false;
        held.stage = Stage::Leaving;
        held.entered_as = self.members.incarnation;
        self.held.insert(user.clone(), held);
        self.later(Duration::ZERO, Later::Step(user.clone()));
    }

    /// This node has a new life: its users are entered again.
    pub(super) fn register_held_anew(&mut self, fx: &mut dyn Effects) {
        let users: Vec<UserKey> = self.held.iter().map(|(user, _)| user.clone()).collect();
        for user in users {
            self.step(&user, fx);
        }
    }

    pub(super) fn restored(&mut self, user: &UserKey, reply: Reply, fx: &mut dyn Effects) {
        let Some(held) = self.held.get_mut(user) else { return };
        held.busy = false;
        if reply == Reply::Failed {
            held.entered_as = 0;
            return self.later(RETRY_AFTER, Later::Step(user.clone()));
        }
        if let Reply::Registered { version, others } = reply {
            self.counters.restored += 1;
            let location = Location { version, holders: others, foreign: None };
            self.learn_holders(user, &location, fx);
            // They have forgotten this node with its earlier life.
            match self.held.get(user).map(|held| held.stage) {
                Some(Stage::Joining) => self.join_or_open(user, fx),
                Some(Stage::Settling | Stage::Open) => self.tell_holders(user, 0, None),
                _ => {}
            }
        }
        self.step(user, fx);
    }
}
