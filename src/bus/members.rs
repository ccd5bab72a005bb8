//! Who lives: our lease, the other nodes' leases, and what becomes of the dead.
//!
//! A Redis that stalls for longer than a lease lets all leases lapse, and a failover takes longer than that. So a node
//! counts as dead only when two looks, a second apart, see no lease of it, and when our own calls have succeeded
//! without a break for longer than a lease and its renewal last: by then a node that lives has renewed its own.

use std::collections::HashSet;
use std::time::Duration;

use crate::time::Micros;

use super::call::{Call, Incarnation, LeaseState, NodeId, Reply, Seen};
use super::held::Walk;
use super::state::{Bus, Effects, Fatal, Health, Later, Purpose, RETRY_AFTER};
use super::wire::Kind;

/// How long a lease lasts, and how often it is renewed.
pub const LEASE: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often the other nodes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long our own calls must have succeeded before anybody is declared dead.
const HEALTHY_FOR: Duration = Duration::from_secs(15);
/// How long a new node waits for the others to know it, at most.
const GREET_FOR: Duration = Duration::from_secs(2);
/// How long after Redis was out of reach the directory is not believed when it says that a user is nowhere: all nodes
/// have found Redis again by then, and have entered their users again where they had to.
const RESTORE_WITHIN: Duration = Duration::from_secs(3);
/// When a dead node's users are looked for once more: a command of its may have been under way.
const REAP_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long a bus that stops waits for its users to be taken off and its links to be acknowledged.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// Looks that do not see a node before it counts as gone.
const LOOKS_UNTIL_GONE: u32 = 2;

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
    pub(super) incarnation: Incarnation,
    phase: Phase,
    /// Somebody else's life that had our lease when we asked first.
    held_by: Option<Incarnation>,
    pub(super) lease_until: Micros,
    renewed_at: Option<Micros>,
    is_renewing: bool,
    looked_at: Option<Micros>,
    is_looking: bool,
    /// The last look saw this node in the registry.
    was_entered: bool,
    /// Nodes that the last look took for foreign.
    foreign_at_last_look: Vec<NodeId>,
    /// Since when all our calls have succeeded.
    healthy_since: Option<Micros>,
    lost_at: Option<Micros>,
    /// Redis was out of reach, and may have lost what nodes had written: until then they enter it again.
    pub(super) restored_at: Micros,
    /// Lives that this node has reaped, and looks for once more.
    reaped_once: HashSet<(NodeId, Incarnation)>,
    pub(super) walk: Walk,
    pub(super) stopping: Option<Micros>,
    is_releasing: bool,
    pub(super) is_released: bool,
}

impl Membership {
    /// A call has failed.
    pub(super) fn failed(&mut self, now: Micros) {
        self.healthy_since = self.healthy_since.map(|_| now);
    }

    /// When there is something to do.
    pub(super) fn due(&self, now: Micros) -> Micros {
        let after = |last: Option<Micros>, every| last.map_or(now.after(LOOK_EVERY), |last: Micros| last.after(every));
        after(self.looked_at, LOOK_EVERY)
            .min(after(self.renewed_at, RENEW_EVERY))
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
    pub(super) fn connected(&mut self, fx: &mut dyn Effects) {
        self.connected = true;
        self.members.healthy_since = Some(self.now);
        self.members.lost_at = None;
        self.members.renewed_at = None;
        self.members.looked_at = None;
        self.members.is_renewing = false;
        self.members.is_looking = false;
        if self.members.incarnation == 0 {
            return self.acquire(fx);
        }
        self.members.restored_at = self.now.after(RESTORE_WITHIN);
        for peer in &mut self.peers {
            peer.link.publish_again();
        }
        if !self.foreign.is_empty() {
            self.call(Purpose::HearEvents, Call::HearEvents { on: true }, fx);
        }
        self.restore_held(fx);
    }

    pub(super) fn lost(&mut self) {
        self.connected = false;
        self.members.healthy_since = None;
        self.members.lost_at = Some(self.now);
        for peer in &mut self.peers {
            peer.looks_without_lease = 0;
        }
    }

    pub(super) fn acquire(&mut self, fx: &mut dyn Effects) {
        if self.connected {
            self.call(Purpose::Acquire, Call::Acquire, fx);
        }
    }

    pub(super) fn acquired(&mut self, reply: Reply, fx: &mut dyn Effects) {
        match reply {
            Reply::Acquired { incarnation, earlier } => {
                let is_first = self.members.incarnation == 0;
                self.members.incarnation = incarnation;
                self.members.lease_until = self.now.after(LEASE);
                // A renewal also writes the count of connections, which services find as soon as the node is there.
                self.members.renewed_at = None;
                self.members.held_by = None;
                self.begin_links_anew();
                if is_first {
                    let lives: Vec<Incarnation> = earlier.into_iter().filter(|&life| life != incarnation).collect();
                    self.members.phase = Phase::Clearing(lives.len() as u32);
                    lives.into_iter().for_each(|life| self.reap_own(life, fx));
                } else {
                    self.register_held_anew(fx);
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

    pub(super) fn reaped_own(&mut self, life: Incarnation, reply: &Reply, _fx: &mut dyn Effects) {
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

    pub(super) fn lease(&mut self, reply: &Reply, fx: &mut dyn Effects) {
        self.members.is_renewing = false;
        match reply {
            Reply::Lease(LeaseState::Ours) => self.members.lease_until = self.now.after(LEASE),
            Reply::Lease(LeaseState::Taken) => self.fatal = Some(Fatal::IdTaken),
            Reply::Lease(LeaseState::Dead) => self.acquire(fx),
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
        let is_due = |last: Option<Micros>, every| last.is_none_or(|last: Micros| self.now.since(last) >= every);
        let renews = !self.members.is_renewing && is_due(self.members.renewed_at, RENEW_EVERY);
        let looks = !self.members.is_looking && is_due(self.members.looked_at, LOOK_EVERY);
        if renews {
            self.members.is_renewing = true;
            self.members.renewed_at = Some(self.now);
            let call = Call::RenewLease { incarnation: self.members.incarnation, connections };
            self.call(Purpose::RenewLease, call, fx);
        }
        if looks {
            self.members.is_looking = true;
            self.members.looked_at = Some(self.now);
            self.call(Purpose::Look, Call::Look, fx);
        }
        if let Phase::Greeting(until) = self.members.phase {
            let all_know = self.peers.iter().all(|peer| {
                !peer.is_live || peer.is_unreachable || peer.hello.is_none_or(|hello| peer.link.is_acked(hello))
            });
            if all_know || self.now >= until {
                self.members.phase = Phase::Member;
            }
        }
    }

    pub(super) fn looked(&mut self, reply: Reply, fx: &mut dyn Effects) {
        self.members.is_looking = false;
        let Reply::Looked { nodes, foreign } = reply else { return };
        // Somebody has emptied Redis while it ran: what we wrote is gone, and so may the others' be.
        let is_entered = nodes.iter().any(|seen| seen.node == self.config.node_id);
        if !is_entered && std::mem::replace(&mut self.members.was_entered, is_entered) {
            self.members.restored_at = self.now.after(RESTORE_WITHIN);
            self.restore_held(fx);
        }
        self.members.was_entered = is_entered;
        for peer in &mut self.peers {
            peer.looks_without_it += 1;
        }
        for seen in &nodes {
            if seen.node != self.config.node_id {
                self.seen(seen, fx);
            }
        }
        // A Redis that came back empty knows a node again once that has found it too, which takes some longer than others.
        let restored_at = self.members.restored_at;
        let is_complete = restored_at == Micros::default() || self.now >= restored_at.after(HEALTHY_FOR);
        let gone: Vec<(u32, Incarnation)> = (0..)
            .zip(&self.peers)
            .filter(|(_, peer)| is_complete && peer.is_live && peer.looks_without_it >= LOOKS_UNTIL_GONE)
            .map(|(at, peer)| (at, peer.life))
            .collect();
        for (at, life) in gone {
            self.died(at, life, fx);
        }
        let had_foreign = !self.foreign.is_empty();
        // A node of our kind that is just starting listens before it stands in the registry: one look does not tell.
        let is_ours = |node: &NodeId| self.peer_index.contains_key(node);
        let met_before = std::mem::take(&mut self.members.foreign_at_last_look);
        self.foreign = foreign.iter().filter(|node| met_before.contains(node) && !is_ours(node)).cloned().collect();
        self.members.foreign_at_last_look = foreign;
        if had_foreign == self.foreign.is_empty() {
            self.call(Purpose::HearEvents, Call::HearEvents { on: !self.foreign.is_empty() }, fx);
        }
        if self.members.phase == Phase::Clearing(0) {
            self.greet();
        }
    }

    fn greet(&mut self) {
        for peer in self.peers.iter_mut().filter(|peer| peer.is_live) {
            peer.hello = Some(peer.link.push(Kind::Hello, 0, "", 0, b""));
        }
        self.members.phase = Phase::Greeting(self.now.after(GREET_FOR));
    }

    fn seen(&mut self, seen: &Seen, fx: &mut dyn Effects) {
        let at = self.peer(&seen.node);
        if seen.incarnation <= self.peers[at as usize].dead {
            // Declared dead, and still in the registry: whoever was to reap it may have died too.
            if !seen.has_lease && self.is_healthy() {
                self.declare_dead(at, seen.incarnation, fx);
            }
            return;
        }
        self.met(at, seen.incarnation, fx);
        let (now, healthy) = (self.now, self.is_healthy());
        let peer = &mut self.peers[at as usize];
        peer.looks_without_it = 0;
        if seen.has_lease {
            peer.looks_without_lease = 0;
            return;
        }
        if peer.looks_without_lease == 0 || now.since(peer.missed_at) >= LOOK_EVERY {
            peer.looks_without_lease += 1;
            peer.missed_at = now;
        }
        if peer.looks_without_lease >= 2 && healthy {
            peer.looks_without_lease = 1;
            self.declare_dead(at, seen.incarnation, fx);
        }
    }

    fn is_healthy(&self) -> bool {
        self.members.healthy_since.is_some_and(|since| self.now.since(since) >= HEALTHY_FOR)
    }

    fn declare_dead(&mut self, at: u32, life: Incarnation, fx: &mut dyn Effects) {
        let call = Call::DeclareDead { node: self.peers[at as usize].node.clone(), incarnation: life };
        self.call(Purpose::DeclareDead(at, life), call, fx);
    }

    pub(super) fn declared(&mut self, at: u32, life: Incarnation, reply: &Reply, fx: &mut dyn Effects) {
        if *reply == Reply::Declared(true) {
            self.died(at, life, fx);
            let node = self.peers[at as usize].node.clone();
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
        let is_quiet = self.held.is_empty()
            && self.waiting_bytes == 0
            && self.peers.iter().all(|peer| !peer.is_live || peer.is_unreachable || peer.link.unacked_bytes() == 0);
        if !self.connected || self.members.incarnation == 0 {
            self.members.is_released |= is_late || self.members.incarnation == 0;
        } else if is_quiet || is_late {
            self.members.is_releasing = true;
            let call = Call::Release { incarnation: self.members.incarnation };
            self.call(Purpose::Release, call, fx);
        }
    }
}
