//! A user's way into the directory and out of it, and what this node and the user's other holders tell each other.

use std::time::Duration;

use crate::hub::bus::FromBus;
use crate::hub::envelope::UserKey;
use crate::ids::ShardId;

use super::call::{Call, Holder, Incarnation, Reply};
use super::deliveries::Receipt;
use super::directory::{ANSWERS_WITHIN, Held, HeldStage, Join, REGISTER_WITHIN};
use super::later::Later;
use super::message::{PeerId, Target, weight};
use super::state::{Answer, Bus, Effects, Purpose, RETRY_AFTER};
use super::wire::{Draft, Kind};

/// How soon a user is taken off whom the directory names and this node does not hold.
const TAKE_OFF_AFTER: Duration = Duration::from_millis(1);

impl Bus {
    /// The user's first connection of this node asks to open.
    pub(super) fn arrived(&mut self, user: UserKey, fx: &mut dyn Effects) {
        self.later(REGISTER_WITHIN, Later::RegisterDeadline(user.clone()));
        let deadline = self.now.after(REGISTER_WITHIN);
        match self.directory.get_mut(&user) {
            Some(held) => held.wants(deadline),
            None => _ = self.directory.users.insert(user.clone(), Held::new(deadline)),
        }
        self.step(&user, fx);
    }

    /// The user's last connection of this node is gone.
    pub(super) fn left(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let Some(held) = self.directory.get_mut(user) else { return };
        let was_here = held.is_here();
        let op = held.op();
        let (others, unpushed, waiting) = held.leaves();
        if was_here {
            for receipt in self.deliveries.doubles_of(self.home(user), user) {
                self.give_back_receipt(receipt);
            }
            for unpushed in unpushed {
                self.kept_bytes -= weight(&unpushed.frame);
                self.give_back_receipt(Receipt::Shared(unpushed.receipt));
            }
            self.give_back_waiting(waiting);
            for other in others.iter().filter(|other| self.peers.is_present(other.peer, other.life)).collect::<Vec<_>>()
            {
                self.peers.push(other.peer, &Draft::about(Kind::Left, &user.name, op, 0));
            }
        }
        if let Some(slot) = self.routes.slot_of(user) {
            self.routes.leave_own(slot);
        }
        self.departed.push(user.clone());
        self.step(user, fx);
    }

    /// Users have left. What has been delivered here is told before others hold them, and what waits goes on.
    pub(super) fn follow_departed(&mut self, fx: &mut dyn Effects) {
        if self.departed.is_empty() {
            return;
        }
        self.tell_settled(None);
        for user in std::mem::take(&mut self.departed) {
            self.send_waiting_of(&user, fx);
        }
    }

    /// The user should be open by now.
    pub(super) fn register_deadline(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let now = self.now;
        let Some(held) = self.directory.get(user).filter(|held| held.is_late(now)) else { return };
        // A node that has died, and is not known to be dead yet, must not keep its users out.
        let waits_for_unheard = held.stage() == HeldStage::Joining
            && held.unanswered().all(|join| self.peers.unheard_since(join.peer).is_some());
        if waits_for_unheard {
            return self.open(user, fx);
        }
        self.tell(self.home(user), FromBus::NotRegistered { user: user.clone() }, fx);
        self.left(user, fx);
    }

    /// Makes the call that the user's stage asks for, unless one is under way.
    pub(super) fn step(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let life = self.members.life();
        let can_call = self.connected && self.members.is_begun();
        let Some(held) = self.directory.get_mut(user).filter(|held| !held.is_busy()) else { return };
        match held.stage() {
            HeldStage::Leaving if held.entered_as() == 0 && !held.is_wanted() => _ = self.directory.users.remove(user),
            HeldStage::Leaving if held.entered_as() == 0 => {
                *held = Held::new(held.deadline());
                self.step(user, fx);
            }
            _ if !can_call => {}
            HeldStage::Leaving => {
                held.set_busy(true);
                let (op, grace_ms) = (self.next_number(), self.config.offline_grace_ms);
                let call = Call::Unregister { user: user.name.clone(), incarnation: life, op, grace_ms };
                self.call(Purpose::Unregister(user.clone()), call, fx);
            }
            HeldStage::Registering => self.enter(user, fx),
            HeldStage::Joining | HeldStage::Open if held.entered_as() != life => self.enter(user, fx),
            HeldStage::Joining | HeldStage::Open => {}
        }
    }

    fn enter(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let (life, op) = (self.members.life(), self.next_number());
        if let Some(held) = self.directory.get_mut(user) {
            held.enters(life, op, self.members.run().unwrap_or_default());
        }
        let call = Call::Register { user: user.name.clone(), incarnation: life, op };
        self.call(Purpose::Register(user.clone(), self.connection), call, fx);
    }

    pub(super) fn registered(&mut self, user: &UserKey, connection: u32, reply: Reply, fx: &mut dyn Effects) {
        let life = self.members.life();
        let Some(held) = self.directory.get_mut(user) else { return };
        held.set_busy(false);
        let (others, run) = match reply {
            Reply::Registered { others, run } => (others, run),
            Reply::Superseded if held.is_here() && held.entered_as() == life => {
                // This life was reaped.
                held.enters_again();
                self.later(RETRY_AFTER, Later::Step(user.clone()));
                return self.take_new_life(fx);
            }
            Reply::Superseded => return self.step(user, fx),
            _ => {
                if held.is_here() && held.stage() != HeldStage::Registering {
                    held.enters_again();
                }
                return self.later(RETRY_AFTER, Later::Step(user.clone()));
            }
        };
        held.set_run(run.id);
        let stage = held.stage();
        self.note_run(run, fx);
        let Some(held) = self.directory.get_mut(user) else { return };
        if stage == HeldStage::Leaving || held.entered_as() != life {
            return self.step(user, fx);
        }
        if connection == self.connection {
            held.set_sure(connection);
        }
        if stage == HeldStage::Registering {
            held.joins();
            self.directory.note_joining(user);
        } else {
            self.counters.restored += 1;
        }
        self.learn_holders(user, &others, fx);
        let known: Vec<Target> = self.directory.get(user).map_or(&[][..], Held::others).to_vec();
        let named = others.iter().filter_map(|other| self.peers.usable(other)).collect::<Vec<_>>();
        let mut to_tell: Vec<Target> = known.into_iter().filter(|other| is_among(&named, other.peer)).collect();
        if self.is_in_doubt(run) {
            // Somebody may hold the user whom the directory does not know any more.
            let missing: Vec<PeerId> = self.peers.live().filter(|&peer| !is_among(&to_tell, peer)).collect();
            for peer in missing {
                let other = Target { peer, life: self.peers.life(peer), op: 0 };
                if let Some(held) = self.directory.get_mut(user) {
                    held.add_other(other);
                }
                to_tell.push(other);
            }
            self.tell_elsewhere(user, fx);
        }
        to_tell.into_iter().for_each(|other| self.ask_holder(user, other.peer));
        self.open_if_ready(user, fx);
        self.push_kept(user);
    }

    /// Notes who else holds the user, as the directory says. This node itself may be among them.
    pub(super) fn learn_holders(&mut self, user: &UserKey, holders: &[Holder], fx: &mut dyn Effects) {
        let own = self.config.node_id.clone();
        for holder in holders.iter().filter(|holder| holder.node != own) {
            let Some(target) = self.peers.usable(holder) else { continue };
            self.met(target.peer, target.life, fx);
            if let Some(held) = self.directory.get_mut(user) {
                held.add_other(Target { op: 0, ..target });
            }
        }
        self.tell_elsewhere(user, fx);
    }

    /// The same; those that were not known may not know of this node, and are asked.
    pub(super) fn learn_and_ask(&mut self, user: &UserKey, others: &[Holder], fx: &mut dyn Effects) {
        let Some(held) = self.directory.get(user).filter(|held| held.is_here()) else { return };
        let known = held.others().to_vec();
        self.learn_holders(user, others, fx);
        let now = self.directory.get(user).map_or(&[][..], Held::others).to_vec();
        for other in now.into_iter().filter(|other| !is_among(&known, other.peer)) {
            self.ask_holder(user, other.peer);
        }
    }

    /// Tells a holder that this node holds the user too, and asks whether it still does.
    fn ask_holder(&mut self, user: &UserKey, peer: PeerId) {
        let join = Join { number: self.next_number(), peer, life: self.peers.life(peer), asked_at: self.now };
        let Some(held) = self.directory.get_mut(user) else { return };
        held.asks(join);
        self.peers.push(peer, &Draft::about(Kind::Join, &user.name, join.number, held.op()));
        if self.peers.unheard_since(peer).is_some() {
            self.later(ANSWERS_WITHIN, Later::OpenUnheard(user.clone()));
        }
    }

    /// Opens the user's connections once all holders have answered.
    pub(super) fn open_if_ready(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let is_ready =
            |held: &Held| held.stage() == HeldStage::Joining && held.is_wanted() && held.unanswered().next().is_none();
        if self.directory.get(user).is_some_and(is_ready) {
            self.open(user, fx);
        }
    }

    fn open(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let home = self.home(user);
        let Some(held) = self.directory.get_mut(user) else { return };
        let waiting = held.opens();
        let elsewhere = !held.others().is_empty();
        // What this node has said to the user goes in front of what the home has kept meanwhile, which was said later.
        let kept_from = self.deliveries.expected(home);
        if let Some(slot) = self.routes.slot_of(user) {
            let time = self.routes.go_own(slot);
            self.relay_own(slot, user, time, true, fx);
        }
        self.tell(home, FromBus::Registered { user: user.clone(), elsewhere }, fx);
        self.deliveries.arrive_with_last(home, kept_from);
        self.relay_waiting(user, waiting, fx);
        self.push_kept(user);
    }

    pub(super) fn unregistered(&mut self, user: UserKey, reply: Reply, fx: &mut dyn Effects) {
        let Some(held) = self.directory.get_mut(&user) else { return };
        held.set_busy(false);
        if reply == Reply::Failed {
            return self.later(RETRY_AFTER, Later::Step(user));
        }
        if self.config.offline_grace_ms > 0 && reply == Reply::Unregistered {
            let grace = Duration::from_millis(self.config.offline_grace_ms);
            self.later(grace, Later::EndGrace(user.clone()));
        }
        let Some(held) = self.directory.get_mut(&user) else { return };
        if held.is_wanted() {
            *held = Held::new(held.deadline());
            self.step(&user, fx);
        } else {
            self.directory.users.remove(&user);
        }
    }

    /// The directory says that this node holds the user. If it has not even begun to, Redis has lost a removal.
    pub(super) fn take_off_if_unknown(&mut self, user: &UserKey) {
        let life = self.members.life();
        if life == 0 || self.directory.get(user).is_some() {
            return;
        }
        self.directory.users.insert(user.clone(), Held::unknown(self.now, life));
        self.later(TAKE_OFF_AFTER, Later::Step(user.clone()));
    }

    /// This node has a new life: its users are entered again.
    pub(super) fn register_held_anew(&mut self, fx: &mut dyn Effects) {
        let users: Vec<UserKey> = self.directory.users.iter().map(|(user, _)| user.clone()).collect();
        for user in users {
            self.step(&user, fx);
        }
    }

    // What holders tell each other.

    /// A peer has begun to hold the user too.
    pub(super) fn join_in(&mut self, from: PeerId, user: UserKey, number: u64, op: u64, fx: &mut dyn Effects) {
        let life = self.peers.life(from);
        let Some(held) = self.directory.get_mut(&user).filter(|held| held.is_here()) else {
            self.peers.push(from, &Draft::about(Kind::HoldsNot, &user.name, number, 0));
            return;
        };
        held.add_other(Target { peer: from, life, op });
        let (is_open, own_op) = (held.is_open(), held.op());
        self.tell_elsewhere(&user, fx);
        if !is_open {
            self.tell_settled(Some(from));
            self.peers.push(from, &Draft::about(Kind::Holds, &user.name, number, own_op));
            return;
        }
        // What the home has delivered before it knew, it has not passed on: the peer's connections open after it.
        let (fence, home) = (self.next_number(), self.home(&user));
        self.tell(home, FromBus::Fence { fence }, fx);
        let (link, told) = (self.peers.link_number(from), self.deliveries.last_told(home));
        self.answers.insert(fence, Answer { peer: from, link, user, number, told });
    }

    /// The home has handled everything before the answer.
    pub(super) fn fenced(&mut self, shard: ShardId, fence: u64) {
        let Some(Answer { peer, link, user, number, told }) = self.answers.remove(&fence) else { return };
        self.confirm_up_to(shard, told);
        if self.peers.link_number(peer) != link {
            return;
        }
        self.tell_settled(Some(peer));
        let answer = match self.directory.get(&user).filter(|held| held.is_here()) {
            Some(held) => Draft::about(Kind::Holds, &user.name, number, held.op()),
            None => Draft::about(Kind::HoldsNot, &user.name, number, 0),
        };
        self.peers.push(peer, &answer);
    }

    /// A holder has answered.
    pub(super) fn answer_in(
        &mut self,
        from: PeerId,
        user: &UserKey,
        number: u64,
        holds_by: Option<u64>,
        fx: &mut dyn Effects,
    ) {
        let life = self.peers.life(from);
        let Some(held) = self.directory.get_mut(user) else { return };
        if !held.answered(number) {
            return;
        }
        match holds_by {
            Some(op) => _ = held.add_other(Target { peer: from, life, op }),
            None => held.remove_other(from, life, u64::MAX),
        }
        self.tell_elsewhere(user, fx);
        self.open_if_ready(user, fx);
    }

    /// A peer does not hold the user any more.
    pub(super) fn left_in(&mut self, from: PeerId, user: &UserKey, op: u64, fx: &mut dyn Effects) {
        let life = self.peers.life(from);
        if let Some(held) = self.directory.get_mut(user) {
            held.remove_other(from, life, op);
            self.tell_elsewhere(user, fx);
        }
    }

    /// A life of a peer, and all before it, are over. Who waited for its answer asks its present one.
    pub(super) fn holder_ended(&mut self, peer: PeerId, life: Incarnation, fx: &mut dyn Effects) {
        let goes_on = self.peers.is_live(peer);
        let mut waited = Vec::new();
        let mut news = Vec::new();
        for (user, held) in self.directory.users.iter_mut() {
            if held.end_life(peer, life) {
                waited.push(user.clone());
            }
            if let Some(elsewhere) = held.news_for_home() {
                news.push((user.clone(), elsewhere));
            }
        }
        for (user, elsewhere) in news {
            self.tell(self.home(&user), FromBus::Elsewhere { user, elsewhere }, fx);
        }
        for user in waited {
            if goes_on && self.directory.get(&user).is_some_and(|held| held.stage() == HeldStage::Joining) {
                self.ask_holder(&user, peer);
            }
            self.open_if_ready(&user, fx);
        }
    }

    /// What is published for a peer has reached nobody for a while: users who wait for it may open.
    pub(super) fn open_without(&mut self, peer: PeerId, fx: &mut dyn Effects) {
        if self.peers.is_unheard(self.now, peer) {
            for user in self.directory.joining_with(peer) {
                self.open_if_given_up(&user, fx);
            }
        }
    }

    /// Opens the user's connections if all holders that have not answered cannot be heard.
    pub(super) fn open_if_given_up(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let (now, peers) = (self.now, &self.peers);
        let may_open = |held: &Held| {
            held.stage() == HeldStage::Joining
                && held.is_wanted()
                && held.unanswered().all(|join| peers.is_given_up(now, join.peer, join.asked_at))
        };
        if self.directory.get(user).is_some_and(may_open) {
            self.open(user, fx);
        }
    }

    fn tell_elsewhere(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        if let Some(elsewhere) = self.directory.get_mut(user).and_then(Held::news_for_home) {
            self.tell(self.home(user), FromBus::Elsewhere { user: user.clone(), elsewhere }, fx);
        }
    }
}

fn is_among(others: &[Target], peer: PeerId) -> bool {
    others.iter().any(|other| other.peer == peer)
}
