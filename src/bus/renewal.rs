//! Renewals: a walk over all users of this node, so that none is forgotten in the directory, and what Redis has lost is put
//! back.

use std::time::Duration;

use super::call::{Call, Incarnation, Reply};
use super::directory::{Held, HeldStage};
use super::state::{Bus, Effects, Purpose};
use crate::hub::envelope::UserKey;
use crate::time::Micros;

/// The TTL of a user's entry is an hour; it is renewed three times in that time…
const RENEW_WITHIN: Duration = Duration::from_secs(1200);
/// …and more often beside foreign nodes, which overwrite and delete entries that are not theirs.
const RENEW_WITHIN_BESIDE_FOREIGN: Duration = Duration::from_secs(30);
/// Users in one renewal, and renewals under way.
const RENEW_USERS_MAX: usize = 500;
const RENEWALS_MAX: u32 = 4;
/// Nodes that find Redis back do not all begin in the same moment.
const RESTORE_JITTER_MAX_US: u64 = 300_000;
/// How soon a walk is repeated for users who were busy.
const REPEAT_AFTER: Duration = Duration::from_millis(20);

/// How far the walk over all users is that renews their entries.
#[derive(Debug, Default)]
pub(super) struct Walk {
    cursor: usize,
    /// Renewals under way.
    under_way: u32,
    /// Set after a loss: from when on to go over all users as fast as Redis takes it.
    restore_at: Option<Micros>,
    /// Not only users who are not in the present run of Redis.
    takes_all: bool,
    /// Somebody who is not in the present run could not be renewed.
    is_incomplete: bool,
    stepped_at: Micros,
}

impl Walk {
    /// Begins anew at this time.
    fn restore(&mut self, at: Micros, takes_all: bool) {
        self.cursor = 0;
        self.restore_at = Some(at);
        self.takes_all |= takes_all;
        self.is_incomplete = false;
    }
}

impl Bus {
    /// A foreign node has touched the user's entry.
    pub(super) fn put_back(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        let life = self.members.life();
        if self.connected && self.directory.get(user).is_some_and(|held| can_renew(held, life)) {
            self.renew(vec![user.clone()], fx);
        }
    }

    fn renew(&mut self, users: Vec<UserKey>, fx: &mut dyn Effects) {
        let mut renewed = Vec::with_capacity(users.len());
        for user in &users {
            if let Some(held) = self.directory.get_mut(user) {
                held.set_busy(true);
                renewed.push((user.name.clone(), held.op()));
            }
        }
        self.directory.walk.under_way += 1;
        let call = Call::Renew { incarnation: self.members.life(), users: renewed };
        self.call(Purpose::Renew(users, self.members.life()), call, fx);
    }

    pub(super) fn renewed(&mut self, users: &[UserKey], life: Incarnation, reply: Reply, fx: &mut dyn Effects) {
        self.directory.walk.under_way -= 1;
        for user in users {
            if let Some(held) = self.directory.get_mut(user) {
                held.set_busy(false);
            }
        }
        if let Reply::Renewed { restored, others, superseded, run } = reply {
            self.counters.restored += restored.len() as u64;
            for (_, user) in users.iter().enumerate().filter(|(at, _)| !superseded.contains(at)) {
                if let Some(held) = self.directory.get_mut(user) {
                    held.set_run(run.id);
                }
            }
            // While this node was cut off, or its entries were missing, others may have begun to hold its users unheard.
            for (user, others) in others.iter().filter_map(|(at, others)| Some((users.get(*at)?, others))) {
                self.learn_and_ask(user, others, fx);
            }
            self.note_run(run, fx);
            let is_here =
                |at: &usize| users.get(*at).and_then(|user| self.directory.get(user)).is_some_and(Held::is_here);
            if life == self.members.life() && superseded.iter().any(is_here) {
                // This life was reaped.
                self.take_new_life(fx);
            }
        } else {
            self.renewal_failed(users, fx);
        }
        for user in users {
            self.step(user, fx);
        }
    }

    /// One key of another type fails a whole renewal: the halves are tried, and who fails alone does not keep this node out of
    /// the registry.
    fn renewal_failed(&mut self, users: &[UserKey], fx: &mut dyn Effects) {
        self.directory.walk.is_incomplete = true;
        if !self.connected {
            return;
        }
        match users {
            [user] => {
                let run = self.members.run().unwrap_or_default();
                self.counters.invalid += 1;
                if let Some(held) = self.directory.get_mut(user) {
                    held.set_run(run);
                }
            }
            _ => {
                let (one, other) = users.split_at(users.len() / 2);
                for half in [one, other] {
                    let life = self.members.life();
                    let may = |user: &&UserKey| self.directory.get(user).is_some_and(|held| can_renew(held, life));
                    let half: Vec<UserKey> = half.iter().filter(may).cloned().collect();
                    if !half.is_empty() {
                        self.renew(half, fx);
                    }
                }
            }
        }
    }

    /// Redis can be reached again, or has lost what was written: everything, or what it may lack, is gone over.
    pub(super) fn restore_held(&mut self, takes_all: bool, fx: &mut dyn Effects) {
        let jitter = self.config.hasher.hash_one(&self.config.node_id) % RESTORE_JITTER_MAX_US;
        self.directory.walk.restore(self.now.after(Duration::from_micros(jitter)), takes_all);
        let life = self.members.life();
        let is_stuck = |held: &Held| !can_renew(held, life) && !held.is_busy();
        let waiting: Vec<UserKey> =
            self.directory.users.iter().filter(|(_, held)| is_stuck(held)).map(|(user, _)| user.clone()).collect();
        for user in waiting {
            self.step(&user, fx);
        }
    }

    /// Renews the next users' entries, when their time has come.
    pub(super) fn walk_held(&mut self, fx: &mut dyn Effects) {
        if !self.connected || self.members.life() == 0 {
            return;
        }
        let slots = self.directory.users.slots();
        let walk = &mut self.directory.walk;
        let count = match walk.restore_at {
            Some(at) if self.now < at => return,
            Some(_) if walk.cursor >= slots => return self.end_restoring(),
            Some(_) => RENEW_USERS_MAX,
            None => {
                let within = if self.foreign.is_empty() { RENEW_WITHIN } else { RENEW_WITHIN_BESIDE_FOREIGN };
                let since = self.now.since(walk.stepped_at);
                (slots as f64 * since.as_secs_f64() / within.as_secs_f64()) as usize
            }
        };
        let is_restoring = walk.restore_at.is_some();
        let mut left = count;
        while left > 0 && self.directory.walk.under_way < RENEWALS_MAX {
            let begin = self.directory.walk.cursor;
            let end = slots.min(begin + left.min(RENEW_USERS_MAX));
            let users = self.take_next(begin, end, is_restoring);
            self.directory.walk.stepped_at = self.now;
            self.directory.walk.cursor = end;
            if !users.is_empty() {
                self.renew(users, fx);
            }
            if end >= slots {
                if !is_restoring {
                    self.directory.walk.cursor = 0;
                }
                break;
            }
            if !is_restoring {
                left -= (end - begin).min(left);
            }
        }
    }

    /// The users in these slots whose entries are to be renewed.
    fn take_next(&mut self, begin: usize, end: usize, is_restoring: bool) -> Vec<UserKey> {
        let run = self.members.run();
        let takes_all = !is_restoring || self.directory.walk.takes_all;
        let mut users = Vec::new();
        let mut is_incomplete = false;
        for (user, held) in (begin..end).filter_map(|slot| self.directory.users.at(slot)) {
            let is_missing = held.is_here() && run.is_some_and(|run| held.run() != run);
            if can_renew(held, self.members.life()) && (takes_all || is_missing) {
                users.push(user.clone());
            }
            is_incomplete |= is_missing;
        }
        // Also those who are renewed now may not be in the directory after all.
        self.directory.walk.is_incomplete |= is_incomplete;
        users
    }

    fn end_restoring(&mut self) {
        let walk = &mut self.directory.walk;
        if walk.under_way > 0 {
            return;
        }
        walk.takes_all = false;
        if walk.is_incomplete {
            walk.restore(self.now.after(REPEAT_AFTER), false);
            return;
        }
        walk.restore_at = None;
        walk.cursor = 0;
        self.members.has_entered_all(self.now);
    }

    /// When the walk goes on though nothing happens.
    pub(super) fn walk_due(&self) -> Option<Micros> {
        self.directory.walk.restore_at
    }
}

/// Whether a user is in the directory, by this life, as far as is known.
fn can_renew(held: &Held, life: Incarnation) -> bool {
    matches!(held.stage(), HeldStage::Open | HeldStage::Joining) && !held.is_busy() && held.entered_as() == life
}
