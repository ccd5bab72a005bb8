//! Renewals: a walk over all users of this node, so that none is forgotten in the directory, and what Redis has lost is put
//! back.

use std::time::Duration;

use super::super::call::{Call, Reply};
use super::super::state::{Bus, Effects, Purpose};
use super::{Held, Stage};
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

/// How far the walk over all users is that renews their entries.
#[derive(Debug, Default)]
pub(in crate::bus) struct Walk {
    cursor: usize,
    /// Renewals under way.
    under_way: u32,
    /// Set after a loss: from when on to go over all users as fast as Redis takes it.
    restore_at: Option<Micros>,
    stepped_at: Micros,
}

impl Bus {
    /// A foreign node has touched the user's entry.
    pub(in crate::bus) fn put_back(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        if self.can_renew(user) {
            self.renew(vec![user.clone()], fx);
        }
    }

    fn can_renew(&self, user: &UserKey) -> bool {
        let is_still = |held: &Held| matches!(held.stage, Stage::Open | Stage::Settling | Stage::Joining) && !held.busy;
        self.connected && self.held.get(user).is_some_and(is_still)
    }

    fn renew(&mut self, users: Vec<UserKey>, fx: &mut dyn Effects) {
        let mut renewed = Vec::with_capacity(users.len());
        for user in &users {
            if let Some(held) = self.held.get_mut(user) {
                held.busy = true;
                renewed.push((user.name.clone(), held.entered_by));
            }
        }
        self.members.walk.under_way += 1;
        let call = Call::Renew { incarnation: self.members.incarnation, users: renewed };
        self.call(Purpose::Renew(users), call, fx);
    }

    pub(in crate::bus) fn renewed(&mut self, users: &[UserKey], reply: &Reply, fx: &mut dyn Effects) {
        self.members.walk.under_way -= 1;
        if let &Reply::Renewed { restored } = reply {
            self.counters.restored += restored;
        }
        for user in users {
            if let Some(held) = self.held.get_mut(user) {
                held.busy = false;
                self.step(user, fx);
            }
        }
    }

    /// Redis can be reached again, and may have lost what was written: everything is gone over.
    pub(in crate::bus) fn restore_held(&mut self, fx: &mut dyn Effects) {
        let jitter = self.config.hasher.hash_one(&self.config.node_id) % RESTORE_JITTER_MAX_US;
        self.members.walk.cursor = 0;
        self.members.walk.restore_at = Some(self.now.after(Duration::from_micros(jitter)));
        let waiting: Vec<UserKey> = self
            .held
            .iter()
            .filter(|(_, held)| matches!(held.stage, Stage::Registering | Stage::Leaving))
            .map(|(user, _)| user.clone())
            .collect();
        for user in waiting {
            self.step(&user, fx);
        }
    }

    /// Renews the next users' entries, when their time has come.
    pub(in crate::bus) fn walk_held(&mut self, fx: &mut dyn Effects) {
        if !self.connected || self.members.incarnation == 0 {
            return;
        }
        let slots = self.held.slots();
        let count = match self.members.walk.restore_at {
            Some(at) if self.now < at => return,
            Some(_) if self.members.walk.cursor >= slots => {
                self.members.walk.restore_at = None;
                self.members.walk.cursor = 0;
                return;
            }
            Some(_) => RENEW_USERS_MAX,
            None => {
                let within = if self.foreign.is_empty() { RENEW_WITHIN } else { RENEW_WITHIN_BESIDE_FOREIGN };
                let since = self.now.since(self.members.walk.stepped_at);
                (slots as f64 * since.as_secs_f64() / within.as_secs_f64()) as usize
            }
        };
        let is_restoring = self.members.walk.restore_at.is_some();
        let mut left = count;
        while left > 0 && self.members.walk.under_way < RENEWALS_MAX {
            let begin = self.members.walk.cursor;
            let end = slots.min(begin + left.min(RENEW_USERS_MAX));
            let users: Vec<UserKey> =
                (begin..end).filter_map(|slot| self.held.at(slot)).map(|(user, _)| user.clone()).collect();
            let users: Vec<UserKey> = users.into_iter().filter(|user| self.can_renew(user)).collect();
            self.members.walk.stepped_at = self.now;
            self.members.walk.cursor = end;
            if !users.is_empty() {
                self.renew(users, fx);
            }
            if end >= slots {
                if !is_restoring {
                    self.members.walk.cursor = 0;
                }
                break;
            }
            if !is_restoring {
                left -= (end - begin).min(left);
            }
        }
    }
}
