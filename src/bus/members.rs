//! Who lives: our lease, the other nodes' leases, and what becomes of the dead; and whether the directory is to be believed.
//!
//! A Redis that stalls for longer than a lease lets all leases lapse, and a failover takes longer than that. So a node
//! counts as dead only when its lease has been missing for longer than a renewal takes to come round, and when our own calls
//! have succeeded without a break for longer than a lease and its renewal last: by then a node that lives has renewed its
//! own.
//!
//! When Redis has lost data ([`Run`]), each node enters its users again, and then itself in the registry. Until all that
//! live are there, the directory is in doubt: it is not believed that a user is nowhere or that all holders are named.

use std::collections::HashSet;
use std::time::Duration;

use crate::hub::envelope::UserKey;
use crate::time::Micros;

use super::call::{Call, Incarnation, LINK_VERSION, LeaseState, NodeId, Reply, Run, Seen};
use super::later::Later;
use super::message::PeerId;
use super::state::{Bus, Effects, Fatal, Health, Purpose, RETRY_AFTER};

/// How long a lease lasts, and how often it is renewed.
pub const LEASE: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often the other nodes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long our own calls must have succeeded before anybody is declared dead.
const HEALTHY_FOR: Duration = Duration::from_secs(15);
/// How long a lease must have been missing: a renewal and a margin. A Redis whose clock was set forward lets all lapse at
/// once.
const MISSING_FOR: Duration = Duration::from_millis(3500);
const _: () = assert!(MISSING_FOR.as_millis() > RENEW_EVERY.as_millis());
/// How long a new node waits for the others to know it, at most.
const GREET_FOR: Duration = Duration::from_secs(2);
/// How soon a renewal and a look follow where a node's own entry is missing.
const ENTER_WITHIN: Duration = Duration::from_millis(10);
/// When a dead node's users are looked for once more: a command of its may have been under way.
const REAP_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long a bus that stops waits for its users to be taken off and its links to be acknowledged.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// Looks that do not see a node before it counts as gone: it enters itself with each renewal.
const LOOKS_UNTIL_GONE: u32 = 5;
const _: () = assert!(LOOKS_UNTIL_GONE as u128 * LOOK_EVERY.as_millis() > RENEW_EVERY.as_millis());

/// How far this node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    /// It has no lease.
    #[default]
    Outside,
    /// What earlier lives of it left behind is taken away.
    Clearing(u32),
    /// The others are told.
    Greeting(Micros),
    /// Its clients are served.
    Member,
}

/// Our place among the nodes.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// Our life; 0: none yet.
    incarnation: Incarnation,
    phase: Phase,
    /// A lease is being taken.
    is_acquiring: bool,
    /// Somebody else's life that had our lease when we asked first.
    held_by: Option<Incarnation>,
    /// The lease of this life has been renewed, and with it the node's entry in the registry: who dies before that would
    /// leave users behind whom nobody looks for.
    is_begun: bool,
    lease_until: Micros,
    has_lapsed: bool,
    renews_at: Micros,
    is_renewing: bool,
    looks_at: Micros,
    is_looking: bool,
    /// There was a look since Redis could be reached last.
    has_looked: bool,
    /// The run of Redis, and since when.
    run: Option<u64>,
    run_since: Micros,
    /// The last look said that it is young.
    is_young: bool,
    /// The run in which all users of this node are in the directory.
    entered_run: Option<u64>,
    /// The last look saw this node in the registry, in this run.
    is_entered: bool,
    /// Nodes that the last look took for foreign.
    foreign_at_last_look: Vec<NodeId>,
    /// Since when all our calls have succeeded.
    healthy_since: Option<Micros>,
    lost_at: Option<Micros>,
    /// Lives that this node has reaped, and looks for once more.
    reaped_once: HashSet<(NodeId, Incarnation)>,
    stopping: Option<Micros>,
    is_releasing: bool,
    is_released: bool,
}

impl Membership {
    /// Our life; 0: none yet.
    pub(super) fn life(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether users may be entered in this life.
    pub(super) fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// The run of Redis, if it is known.
    pub(super) fn run(&self) -> Option<u64> {
        self.run
    }

    /// All users of this node are in the directory, in this run.
    pub(super) fn has_entered_all(&mut self, now: Micros) {
        if self.entered_run != self.run {
            self.entered_run = self.run;
            self.renews_at = now;
        }
    }

    /// Whether the lease has lapsed since this was asked last: the node may have been declared dead.
    pub(super) fn lapses(&mut self, now: Micros) -> bool {
        let had_lapsed = std::mem::replace(&mut self.has_lapsed, self.incarnation != 0 && now > self.lease_until);
        self.has_lapsed && !had_lapsed
    }

    pub(super) fn lease_until(&self) -> Micros {
        self.lease_until
    }

    pub(super) fn stop(&mut self, now: Micros) {
        self.stopping = Some(now);
    }

    pub(super) fn is_released(&self) -> bool {
        self.is_released
    }

    pub(super) fn released(&mut self) {
        self.is_released = true;
    }

    /// A call has failed.
    pub(super) fn failed(&mut self, now: Micros) {
        self.healthy_since = self.healthy_since.map(|_| now);
    }

    /// When there is something to do.
    pub(super) fn due(&self, now: Micros) -> Micros {
        let next = |at: Micros, is_under_way: bool| if is_under_way { now.after(LOOK_EVERY) } else { at };
        next(self.looks_at, self.is_looking)
            .min(next(self.renews_at, self.is_renewing))
            .max(now.after(Duration::from_millis(1)))
    }

    pub(super) fn health(&self, now: Micros, connected: bool, lost_after: Duration) -> Health {
        let is_lost = !connected && self.lost_at.is_some_and(|at| now.since(at) >= lost_after);
        match self.phase {
            Phase::Member if is_lost => Health::Lost,
            Phase::Member => Health::Up,
            _ => Health::Warming,
        }
    }
}

impl Bus {
    pub(super) fn reached(&mut self, fx: &mut dyn Effects) {
        self.connected = true;
        self.connection += 1;
        self.members.healthy_since = Some(self.now);
        self.members.lost_at = None;
        self.members.renews_at = self.now;
        self.members.looks_at = self.now;
        self.members.is_renewing = false;
        self.members.is_looking = false;
        self.members.has_looked = false;
        if self.members.incarnation == 0 {
            return self.acquire(fx);
        }
        self.peers.publish_again();
        if !self.foreign.is_empty() {
            self.call(Purpose::HearEvents, Call::HearEvents { on: true }, fx);
        }
        self.restore_held(true, fx);
        for slot in self.routes.busy() {
            self.resume_own_or_locate(slot, fx);
        }
        let unpushed: Vec<UserKey> = self.directory.with_unpushed();
        for user in unpushed {
            self.read_holders(&user, fx);
        }
    }

    pub(super) fn lost(&mut self) {
        self.connected = false;
        // From here on others may begin to hold users unheard.
        self.connection += 1;
        self.members.healthy_since = None;
        self.members.lost_at = Some(self.now);
        for peer in self.peers.ids() {
            self.peers.get_mut(peer).seen.without_lease_since = None;
        }
    }

    /// An answer came from this run of Redis. Another one than before has lost what was written.
    pub(super) fn note_run(&mut self, run: Run, fx: &mut dyn Effects) {
        let before = self.members.run;
        if before.is_some_and(|before| before >= run.id) {
            return;
        }
        self.members.run = Some(run.id);
        self.members.run_since = self.now;
        self.members.is_entered = false;
        if before.is_some() {
            self.members.entered_run = None;
            self.members.looks_at = self.now;
            // The lease is lost too, and with it what tells the node's next process of this life's users.
            self.members.renews_at = self.now;
            self.restore_held(false, fx);
        } else {
            self.members.has_entered_all(self.now);
        }
    }

    /// Whether the directory, as it answers in this run, may lack somebody who lives.
    pub(super) fn is_in_doubt(&self, run: Run) -> bool {
        run.is_young || Some(run.id) != self.members.run || self.is_somebody_missing()
    }

    fn is_somebody_missing(&self) -> bool {
        !self.members.has_looked || self.peers.live().any(|peer| self.peers.entered_run(peer) != self.members.run)
    }

    /// This life was declared dead, or reaped: another one is taken.
    pub(super) fn take_new_life(&mut self, fx: &mut dyn Effects) {
        self.acquire(fx);
    }

    pub(super) fn acquire(&mut self, fx: &mut dyn Effects) {
        if self.connected && !self.members.is_acquiring {
            self.members.is_acquiring = true;
            self.call(Purpose::Acquire, Call::Acquire { after: self.members.incarnation }, fx);
        }
    }

    pub(super) fn acquired(&mut self, reply: Reply, fx: &mut dyn Effects) {
        self.members.is_acquiring = false;
        match reply {
            // A life that was begun is not begun again: its links would number from 1 once more.
            Reply::Acquired { incarnation, .. } if incarnation <= self.members.incarnation => {
                self.later(RETRY_AFTER, Later::Acquire);
            }
            Reply::Acquired { incarnation, earlier } => {
                let is_first = self.members.incarnation == 0;
                self.members.incarnation = incarnation;
                self.members.lease_until = self.now.after(LEASE);
                // A renewal also writes the count of connections, which services find as soon as the node is there.
                self.members.renews_at = self.now;
                self.members.looks_at = self.now;
                self.members.is_entered = false;
                self.members.is_begun = false;
                self.members.held_by = None;
                self.begin_own_life(incarnation, fx);
                if is_first {
                    let lives: Vec<Incarnation> = earlier.into_iter().filter(|&life| life != incarnation).collect();
                    self.members.phase = Phase::Clearing(lives.len() as u32);
                    lives.into_iter().for_each(|life| self.reap_own(life, fx));
                }
            }
            Reply::Held { incarnation, lapses_ms } => {
                // It lapses unless somebody renews it; who died leaves a lease that nobody renews.
                if self.members.held_by == Some(incarnation) {
                    self.fatal = Some(Fatal::IdTaken);
                } else {
                    self.members.held_by = Some(incarnation);
                    self.later(Duration::from_millis(lapses_ms + 250), Later::Acquire);
                }
            }
            _ => self.later(RETRY_AFTER, Later::Acquire),
        }
    }

    pub(super) fn reap_own(&mut self, life: Incarnation, fx: &mut dyn Effects) {
        let call = Call::Reap { node: self.config.node_id.clone(), incarnation: life };
        self.call(Purpose::ReapOwn(life), call, fx);
    }

    pub(super) fn reaped_own(&mut self, life: Incarnation, reply: &Reply) {
        if *reply == Reply::Failed {
            return self.later(RETRY_AFTER, Later::ReapOwn(life));
        }
        if let Phase::Clearing(left) = &mut self.members.phase {
            *left = left.saturating_sub(1);
        }
        if self.members.reaped_once.insert((self.config.node_id.clone(), life)) {
            self.later(REAP_AGAIN_AFTER, Later::ReapOwn(life));
        }
    }

    pub(super) fn lease(&mut self, life: Incarnation, reply: &Reply, fx: &mut dyn Effects) {
        self.members.is_renewing = false;
        if life != self.members.incarnation {
            // What became of an earlier life is known.
            return;
        }
        match reply {
            Reply::Lease(LeaseState::Ours) => {
                self.members.lease_until = self.now.after(LEASE);
                if !std::mem::replace(&mut self.members.is_begun, true) {
                    self.register_held_anew(fx);
                }
                if !self.members.is_entered && self.members.entered_run.is_some() {
                    self.members.looks_at = self.members.looks_at.min(self.now.after(ENTER_WITHIN));
                }
            }
            Reply::Lease(LeaseState::Taken) => self.fatal = Some(Fatal::IdTaken),
            Reply::Lease(LeaseState::Dead) => self.take_new_life(fx),
            _ => {}
        }
    }

    /// Renews, looks, greets, and says good-bye, each when its time has come.
    pub(super) fn keep_membership(&mut self, connections: u64, fx: &mut dyn Effects) {
        if self.members.stopping.is_some() {
            self.say_good_bye(fx);
        }
        if !self.connected || self.members.incarnation == 0 || self.members.is_releasing {
            return;
        }
        if !self.members.is_renewing && self.now >= self.members.renews_at {
            self.members.is_renewing = true;
            self.members.renews_at = self.now.after(RENEW_EVERY);
            let entered_run = self.members.entered_run;
            let call = Call::RenewLease { incarnation: self.members.incarnation, connections, entered_run };
            self.call(Purpose::RenewLease(self.members.incarnation), call, fx);
        }
        if !self.members.is_looking && self.now >= self.members.looks_at {
            self.members.is_looking = true;
            self.members.looks_at = self.now.after(LOOK_EVERY);
            self.call(Purpose::Look, Call::Look, fx);
        }
        if let Phase::Greeting(until) = self.members.phase {
            let all_know = self.peers.have_been_greeted() || self.now >= until;
            if all_know && !self.members.is_young && !self.is_somebody_missing() {
                self.members.phase = Phase::Member;
            }
        }
    }

    pub(super) fn looked(&mut self, reply: Reply, fx: &mut dyn Effects) {
        self.members.is_looking = false;
        let Reply::Looked { nodes, mut foreign, run } = reply else { return };
        self.note_run(run, fx);
        if Some(run.id) != self.members.run {
            // An answer of before Redis lost its data.
            self.members.looks_at = self.now.after(ENTER_WITHIN);
            return;
        }
        self.members.is_young = run.is_young;
        let is_own = |seen: &Seen| seen.node == self.config.node_id && seen.incarnation == self.members.incarnation;
        self.members.is_entered = nodes.iter().any(|seen| is_own(seen) && seen.is_entered);
        if !self.members.is_entered && self.members.entered_run == self.members.run {
            self.members.renews_at = self.members.renews_at.min(self.now.after(ENTER_WITHIN));
        }
        for peer in self.peers.ids() {
            self.peers.get_mut(peer).seen.looks_without_it += 1;
        }
        let own = self.config.node_id.clone();
        for seen in nodes.iter().filter(|seen| seen.node != own) {
            if seen.version == LINK_VERSION {
                self.seen(seen, fx);
            } else {
                foreign.push(seen.node.clone());
            }
        }
        self.members.has_looked = true;
        self.forget_gone(fx);
        let had_foreign = !self.foreign.is_empty();
        // A node of our kind that is just starting listens before it stands in the registry: one look does not tell.
        let met_before = std::mem::take(&mut self.members.foreign_at_last_look);
        let is_foreign = |node: &&NodeId| met_before.contains(node) && !self.peers.is_present_node(node);
        self.foreign = foreign.iter().filter(is_foreign).cloned().collect();
        self.members.foreign_at_last_look = foreign;
        if had_foreign == self.foreign.is_empty() {
            self.call(Purpose::HearEvents, Call::HearEvents { on: !self.foreign.is_empty() }, fx);
        }
        if self.members.phase == Phase::Clearing(0) && self.members.is_entered {
            self.peers.greet(true);
            self.members.phase = Phase::Greeting(self.now.after(GREET_FOR));
        }
    }

    /// Who was in the registry and is not any more has left; who did not come back to it after a loss of data is dead.
    fn forget_gone(&mut self, fx: &mut dyn Effects) {
        let run = self.members.run;
        let is_complete = self.now >= self.members.run_since.after(HEALTHY_FOR);
        let live: Vec<PeerId> = self.peers.live().collect();
        for peer in live {
            let looks = self.peers.get_mut(peer).seen.looks_without_it;
            let was_entered = self.peers.entered_run(peer) == run;
            if looks < LOOKS_UNTIL_GONE {
                continue;
            }
            let life = self.peers.life(peer);
            if was_entered {
                self.died(peer, life, fx);
            } else if is_complete {
                // Nobody finds its users by the registry.
                self.declare_dead(peer, life, false, fx);
            }
        }
    }

    fn seen(&mut self, seen: &Seen, fx: &mut dyn Effects) {
        let peer = self.peers.id(&seen.node);
        if self.peers.was_declared_dead(peer, seen.incarnation) {
            // Redis has lost the declaration, or whoever was to take its users off has died too.
            if self.is_healthy() || seen.has_lease {
                self.declare_dead(peer, seen.incarnation, seen.has_lease, fx);
            }
            return;
        }
        if !self.met(peer, seen.incarnation, fx) {
            return;
        }
        let (now, healthy, run) = (self.now, self.is_healthy(), self.members.run);
        let state = &mut self.peers.get_mut(peer).seen;
        state.looks_without_it = 0;
        if seen.is_entered {
            state.entered_run = run;
        }
        if seen.has_lease {
            state.without_lease_since = None;
            return;
        }
        let since = *state.without_lease_since.get_or_insert(now);
        if now.since(since) >= MISSING_FOR && healthy {
            self.declare_dead(peer, seen.incarnation, false, fx);
        }
    }

    fn is_healthy(&self) -> bool {
        self.members.healthy_since.is_some_and(|since| self.now.since(since) >= HEALTHY_FOR)
    }

    fn declare_dead(&mut self, peer: PeerId, life: Incarnation, again: bool, fx: &mut dyn Effects) {
        let call = Call::DeclareDead { node: self.peers.node(peer).clone(), incarnation: life, again };
        self.call(Purpose::DeclareDead(peer, life), call, fx);
    }

    pub(super) fn declared(&mut self, peer: PeerId, life: Incarnation, reply: &Reply, fx: &mut dyn Effects) {
        if *reply == Reply::Declared(true) {
            self.died(peer, life, fx);
            let node = self.peers.node(peer).clone();
            let call = Call::Reap { node: node.clone(), incarnation: life };
            self.call(Purpose::Reap(node, life), call, fx);
        }
    }

    pub(super) fn reaped(&mut self, node: NodeId, life: Incarnation, reply: &Reply) {
        if *reply == Reply::Reaped(true) {
            self.counters.reaped += 1;
            if self.members.reaped_once.insert((node.clone(), life)) {
                self.later(REAP_AGAIN_AFTER, Later::ReapAgain(node, life));
            }
        }
    }

    /// Leaves once the users are taken off and the peers have acknowledged everything, or time is up.
    fn say_good_bye(&mut self, fx: &mut dyn Effects) {
        let Some(since) = self.members.stopping else { return };
        if self.members.is_releasing {
            return;
        }
        let is_late = self.now.since(since) >= STOP_WITHIN;
        let is_quiet = self.directory.users.is_empty()
            && self.routes.messages() == 0
            && self.deliveries.unconfirmed() == 0
            && self.peers.have_everything();
        if !self.connected || self.members.incarnation == 0 {
            self.members.is_released |= is_late || self.members.incarnation == 0;
        } else if is_quiet || is_late {
            self.members.is_releasing = true;
            self.peers.say_bye();
            let call = Call::Release { incarnation: self.members.incarnation };
            self.call(Purpose::Release, call, fx);
        }
    }
}
