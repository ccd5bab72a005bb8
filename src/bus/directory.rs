//! The users that this node holds: how far each is with the directory, and who else holds the user.
//!
//! A user is entered when the first connection asks to open, and taken off when the last one is gone; one call of a user
//! is under way at a time, each with a greater number. The connections open once every other holder that the directory
//! names has been told, so that each of them pushes to this node what it gets for the user.

use std::time::Duration;

use crate::hub::envelope::UserKey;
use crate::time::Micros;

use super::call::Incarnation;
use super::message::{OriginId, PeerId, Relayed, Stamp, Target};
use super::renewal::Walk;
use super::table::UserTable;

/// How long a user may wait to be registered before the client is answered 503.
pub(super) const REGISTER_WITHIN: Duration = Duration::from_secs(1);
/// How long what is published for a node has reached nobody before a user no longer waits for that node's answer.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_millis(300);
const _: () = assert!(ANSWERS_WITHIN.as_millis() < REGISTER_WITHIN.as_millis());

/// All users that this node holds, is about to, or no longer does.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) users: UserTable<Held>,
    pub(super) walk: Walk,
    /// Users whose other holders have yet to answer; some have answered meanwhile.
    joining: Vec<UserKey>,
    /// How many of them are kept before the latter are forgotten.
    joining_max: usize,
}

/// How far a user is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeldStage {
    /// To be entered.
    Registering,
    /// Entered; other holders have yet to answer.
    Joining,
    /// Connections are open.
    Open,
    /// To be taken off.
    Leaving,
}

/// A user whom this node holds, or is about to, or no longer.
#[derive(Debug)]
pub(super) struct Held {
    stage: HeldStage,
    /// The user has connections here, which may wait.
    wanted: bool,
    /// A call is under way.
    busy: bool,
    /// The home knows that others hold the user.
    is_told_elsewhere: bool,
    /// The directory is being read for the other holders.
    is_reading: bool,
    /// For which life of this node a call may have entered the user; 0: none.
    entered_as: Incarnation,
    /// The number of the first call that may have entered the user in this holding, and of the last.
    first_op: u64,
    op: u64,
    /// In which run of Redis the directory had the user last.
    run: u64,
    /// When connections that wait are answered 503.
    deadline: Micros,
    /// The other holders. The list grows by what is read and heard, and shrinks only by what these say themselves, and by
    /// their death. Their registrations are those that they have said themselves, and 0 before: the directory may have gone
    /// back to earlier ones.
    others: Vec<Target>,
    /// Since which connection to Redis the list is sure: see [`Held::is_sure`].
    sure_since: u32,
    /// The last message of each origin that was delivered in this holding.
    last: Vec<(OriginId, u64)>,
    /// Rarely there.
    pending: Option<Box<Pending>>,
}

/// What is under way for a user.
#[derive(Debug, Default)]
struct Pending {
    /// Holders that have not answered yet.
    joins: Vec<Join>,
    /// Messages that peers sent before the connections were open, with the registrations that they are meant for.
    waiting: Vec<(u64, Relayed)>,
    /// Messages that were delivered here, and pushed to the other holders that were known, and wait until all are.
    unpushed: Vec<Unpushed>,
}

/// A question to a holder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Join {
    pub(super) number: u64,
    pub(super) peer: PeerId,
    pub(super) life: Incarnation,
    pub(super) asked_at: Micros,
}

/// A message that is yet to be pushed, but for the holders that were known when it came.
#[derive(Debug)]
pub(super) struct Unpushed {
    pub(super) stamp: Stamp,
    pub(super) frame: bytes::Bytes,
    pub(super) receipt: u64,
    pub(super) pushed_to: Vec<Target>,
}

impl Unpushed {
    pub(super) fn was_pushed_to(&self, other: &Target) -> bool {
        self.pushed_to.iter().any(|to| (to.peer, to.life) == (other.peer, other.life))
    }
}

impl Directory {
    pub(super) fn get(&self, user: &UserKey) -> Option<&Held> {
        self.users.get(user)
    }

    pub(super) fn get_mut(&mut self, user: &UserKey) -> Option<&mut Held> {
        self.users.get_mut(user)
    }

    /// A user's other holders are asked.
    pub(super) fn note_joining(&mut self, user: &UserKey) {
        if self.joining.len() > self.joining_max {
            self.forget_joined();
            self.joining_max = 64 + 2 * self.joining.len();
        }
        self.joining.push(user.clone());
    }

    fn forget_joined(&mut self) {
        let users = &self.users;
        self.joining.retain(|user| users.get(user).is_some_and(|held| held.stage == HeldStage::Joining));
    }

    /// Users who wait for an answer of this peer.
    pub(super) fn joining_with(&mut self, peer: PeerId) -> Vec<UserKey> {
        self.forget_joined();
        let waits =
            |user: &&UserKey| self.get(user).is_some_and(|held| held.unanswered().any(|join| join.peer == peer));
        self.joining.iter().filter(waits).cloned().collect()
    }

    /// Users of whom messages wait to be pushed.
    pub(super) fn with_unpushed(&self) -> Vec<UserKey> {
        let has_unpushed = |held: &Held| held.pending.as_ref().is_some_and(|pending| !pending.unpushed.is_empty());
        self.users.iter().filter(|(_, held)| has_unpushed(held)).map(|(user, _)| user.clone()).collect()
    }

    /// Whether connections of the user are open.
    pub(super) fn is_open(&self, user: &UserKey) -> bool {
        self.get(user).is_some_and(Held::is_open)
    }

    /// Whether connections of the user wait to be opened.
    pub(super) fn is_opening(&self, user: &UserKey) -> bool {
        self.get(user).is_some_and(|held| matches!(held.stage, HeldStage::Registering | HeldStage::Joining))
    }
}

impl Held {
    pub(super) fn new(deadline: Micros) -> Self {
        Self {
            stage: HeldStage::Registering,
            wanted: true,
            busy: false,
            is_told_elsewhere: false,
            is_reading: false,
            entered_as: 0,
            first_op: 0,
            op: 0,
            run: 0,
            deadline,
            others: Vec::new(),
            sure_since: 0,
            last: Vec::new(),
            pending: None,
        }
    }

    /// One that the directory names although this node does not hold the user.
    pub(super) fn unknown(now: Micros, life: Incarnation) -> Self {
        Self { stage: HeldStage::Leaving, wanted: false, entered_as: life, ..Self::new(now) }
    }

    pub(super) fn stage(&self) -> HeldStage {
        self.stage
    }

    pub(super) fn is_open(&self) -> bool {
        self.stage == HeldStage::Open
    }

    /// Whether messages for the user belong here.
    pub(super) fn is_here(&self) -> bool {
        self.stage != HeldStage::Leaving
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(super) fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
    }

    pub(super) fn op(&self) -> u64 {
        self.op
    }

    pub(super) fn entered_as(&self) -> Incarnation {
        self.entered_as
    }

    /// A call is about to enter the user.
    pub(super) fn enters(&mut self, life: Incarnation, op: u64, run: u64) {
        self.busy = true;
        // Until the answer says better.
        self.run = run;
        self.entered_as = life;
        self.op = op;
        if self.first_op == 0 {
            self.first_op = op;
        }
    }

    /// What was asked of the directory did not happen; it is asked again.
    pub(super) fn enters_again(&mut self) {
        (self.entered_as, self.run) = (0, 0);
    }

    pub(super) fn run(&self) -> u64 {
        self.run
    }

    pub(super) fn set_run(&mut self, run: u64) {
        self.run = run;
    }

    pub(super) fn is_late(&self, now: Micros) -> bool {
        self.wanted && !self.is_open() && self.deadline <= now
    }

    /// The user has come back while being taken off.
    pub(super) fn wants(&mut self, deadline: Micros) {
        self.wanted = true;
        self.deadline = deadline;
    }

    pub(super) fn deadline(&self) -> Micros {
        self.deadline
    }

    pub(super) fn joins(&mut self) {
        self.stage = HeldStage::Joining;
    }

    /// Opens; the messages that waited for it. The home is told of the others by the caller.
    pub(super) fn opens(&mut self) -> Vec<(u64, Relayed)> {
        self.stage = HeldStage::Open;
        self.is_told_elsewhere = !self.others.is_empty();
        self.pending.as_mut().map(|pending| std::mem::take(&mut pending.waiting)).unwrap_or_default()
    }

    /// Leaves: the other holders, and the messages that have found nobody.
    pub(super) fn leaves(&mut self) -> (Vec<Target>, Vec<Unpushed>, Vec<(u64, Relayed)>) {
        self.stage = HeldStage::Leaving;
        self.wanted = false;
        self.is_reading = false;
        let Pending { waiting, unpushed, .. } = self.pending.take().map(|pending| *pending).unwrap_or_default();
        (std::mem::take(&mut self.others), unpushed, waiting)
    }

    /// This node has a new life: what others gave the one before finds its way by them, and the others have forgotten
    /// this node.
    pub(super) fn begins_life(&mut self) {
        self.pending = None;
        self.is_reading = false;
        self.sure_since = 0;
        if self.stage == HeldStage::Joining {
            self.stage = HeldStage::Registering;
        }
    }

    // Messages.

    /// Whether a message comes for the first time, and later than all of its origin before it. It counts as delivered
    /// from here on.
    pub(super) fn take(&mut self, stamp: Stamp) -> bool {
        match self.last.iter_mut().find(|(origin, _)| *origin == stamp.origin) {
            Some((_, last)) => {
                let is_new = stamp.place > *last;
                *last = stamp.place.max(*last);
                is_new
            }
            None => {
                self.last.push((stamp.origin, stamp.place));
                true
            }
        }
    }

    /// The home had no room for a message: it comes again.
    pub(super) fn untake(&mut self, stamp: Stamp) {
        if let Some((_, last)) = self.last.iter_mut().find(|(origin, _)| *origin == stamp.origin) {
            *last = (*last).min(stamp.place - 1);
        }
    }

    /// Whether a message that names a registration is meant for this holding.
    pub(super) fn is_meant(&self, op: u64) -> bool {
        self.is_here() && self.first_op != 0 && op >= self.first_op
    }

    /// Whether a push belongs here that names the registration which its sender has from this node; 0: from the directory
    /// alone. One that is meant for connections that the user had here earlier may be followed by what was said before it.
    /// Who was let in past its sender takes all: there the new registration is not known yet.
    pub(super) fn takes_push(&self, op: u64) -> bool {
        self.is_open() || self.is_meant(op) || (op == 0 && self.is_here())
    }

    /// Keeps a message of a peer until the connections are open.
    pub(super) fn keep_until_open(&mut self, op: u64, message: Relayed) {
        self.pending.get_or_insert_default().waiting.push((op, message));
    }

    /// Keeps a message until the other holders are sure.
    pub(super) fn keep_unpushed(&mut self, unpushed: Unpushed) {
        self.pending.get_or_insert_default().unpushed.push(unpushed);
    }

    /// The other holders that a message is pushed to at once. While others wait to be pushed to a holder that became known
    /// since, a later one must not go ahead of them.
    pub(super) fn to_push_to(&self, is_sure: bool) -> Vec<Target> {
        let unpushed = self.pending.as_ref().and_then(|pending| pending.unpushed.last());
        match unpushed.filter(|_| !is_sure) {
            Some(last) => self.others.iter().filter(|other| last.was_pushed_to(other)).copied().collect(),
            None => self.others.clone(),
        }
    }

    /// Messages that wait to be pushed.
    pub(super) fn take_unpushed(&mut self) -> Vec<Unpushed> {
        self.pending.as_mut().map(|pending| std::mem::take(&mut pending.unpushed)).unwrap_or_default()
    }

    /// Whether anything is under way.
    pub(super) fn is_settled(&self) -> bool {
        let is_empty =
            |pending: &Pending| pending.joins.is_empty() && pending.waiting.is_empty() && pending.unpushed.is_empty();
        self.is_open() && !self.is_reading && self.pending.as_deref().is_none_or(is_empty)
    }

    // Other holders.

    pub(super) fn others(&self) -> &[Target] {
        &self.others
    }

    /// Whether all other holders are known: while this node is cut off somebody may begin to hold the user unheard. From a
    /// cut on the directory has to be read again. `connection` counts connections to Redis and their losses.
    pub(super) fn is_sure(&self, connection: u32) -> bool {
        self.sure_since == connection
    }

    pub(super) fn set_sure(&mut self, connection: u32) {
        self.sure_since = connection;
    }

    /// Whether a message that was delivered here goes to nobody else.
    pub(super) fn is_alone(&self, connection: u32) -> bool {
        self.others.is_empty() && self.is_sure(connection)
    }

    /// Notes another holder; whether it was not known in this life.
    pub(super) fn add_other(&mut self, other: Target) -> bool {
        match self.others.iter_mut().find(|known| known.peer == other.peer) {
            Some(known) => {
                let is_new = known.life != other.life;
                if (other.life, other.op) > (known.life, known.op) {
                    *known = other;
                }
                is_new
            }
            None => {
                self.others.push(other);
                true
            }
        }
    }

    /// A peer does not hold the user, by this registration or an earlier one.
    pub(super) fn remove_other(&mut self, peer: PeerId, life: Incarnation, op: u64) {
        self.others.retain(|other| other.peer != peer || (other.life, other.op) > (life, op));
    }

    /// A life of a peer, and all before it, are over; whether the user's connections waited for it.
    pub(super) fn end_life(&mut self, peer: PeerId, life: Incarnation) -> bool {
        self.others.retain(|other| other.peer != peer || other.life > life);
        let Some(pending) = &mut self.pending else { return false };
        let before = pending.joins.len();
        pending.joins.retain(|join| join.peer != peer || join.life > life);
        pending.joins.len() < before
    }

    /// Whether the home is to be told that others hold the user, or that nobody else does any more.
    pub(super) fn news_for_home(&mut self) -> Option<bool> {
        let elsewhere = !self.others.is_empty();
        let is_news = self.is_open() && elsewhere != self.is_told_elsewhere;
        is_news.then(|| {
            self.is_told_elsewhere = elsewhere;
            elsewhere
        })
    }

    /// A holder was asked.
    pub(super) fn asks(&mut self, join: Join) {
        self.pending.get_or_insert_default().joins.push(join);
    }

    /// An answer has come; whether it was waited for.
    pub(super) fn answered(&mut self, number: u64) -> bool {
        let Some(pending) = &mut self.pending else { return false };
        let before = pending.joins.len();
        pending.joins.retain(|join| join.number != number);
        pending.joins.len() < before
    }

    /// The questions whose answers are missing.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &Join> {
        self.pending.iter().flat_map(|pending| &pending.joins)
    }

    pub(super) fn is_reading(&self) -> bool {
        self.is_reading
    }

    pub(super) fn set_reading(&mut self, is_reading: bool) {
        self.is_reading = is_reading;
    }
}
