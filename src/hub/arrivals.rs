//! Users who have come and whom the bus has not registered yet: who waits to open, and what was said to them meanwhile.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashTable;

use crate::ids::ConnRef;
use crate::time::Micros;

use super::bus::Ticket;
use super::envelope::{MESSAGE_WEIGHT, UserKey};
use super::homes::{ConnSet, Remaining};

/// Bytes kept for one user who waits; one message may pass it.
pub const KEPT_BYTES_PER_USER_MAX: u64 = 4 << 20;
/// Bytes kept for all users of a shard who wait; one message may pass it.
pub const KEPT_BYTES_MAX: u64 = 16 << 20;
const _: () = assert!(KEPT_BYTES_PER_USER_MAX <= KEPT_BYTES_MAX);

/// A message of one of this node's clients to a user who waits.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The server frame.
    pub frame: Bytes,
    /// Who said it.
    pub sender: ConnRef,
    /// When the sender's bytes arrived.
    pub received: Micros,
}

impl Kept {
    fn weight(&self) -> u64 {
        MESSAGE_WEIGHT + self.frame.len() as u64
    }
}

/// A message that the bus brought for a user whom it is about to register.
#[derive(Clone, Debug)]
pub struct Early {
    /// The server frame.
    pub frame: Bytes,
    /// Handed back with it.
    pub ticket: Ticket,
}

impl Early {
    fn weight(&self) -> u64 {
        MESSAGE_WEIGHT + self.frame.len() as u64
    }
}

/// The users whose home is this shard and whose registration is under way.
///
/// A user stays among them until the bus has answered, even if all connections are gone by then: an answer that is on
/// its way to a user who has left could not be told from the answer to the same user's next arrival.
#[derive(Debug, Default)]
pub struct Arrivals {
    users: HashTable<Arrival>,
    kept_bytes: u64,
}

#[derive(Debug)]
struct Arrival {
    user: UserKey,
    waiting: Option<ConnSet>,
    /// They are in front of `kept`.
    early: VecDeque<Early>,
    kept: VecDeque<Kept>,
    /// What both weigh.
    kept_bytes: u64,
}

impl Arrivals {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether this user waits.
    pub fn contains(&self, user: &UserKey) -> bool {
        !self.users.is_empty() && self.find(user).is_some()
    }

    /// Adds a connection that waits; whether it is the first thing heard of the user.
    pub fn wait(&mut self, user: &UserKey, conn: ConnRef) -> bool {
        if let Some(arrival) = self.find_mut(user) {
            match &mut arrival.waiting {
                Some(waiting) => waiting.insert(conn),
                None => arrival.waiting = Some(ConnSet::one(conn)),
            }
            return false;
        }
        let waiting = Some(ConnSet::one(conn));
        let (early, kept) = (VecDeque::new(), VecDeque::new());
        let arrival = Arrival { user: user.clone(), waiting, early, kept, kept_bytes: 0 };
        self.users.insert_unique(user.hash, arrival, |arrival| arrival.user.hash);
        true
    }

    /// Takes away a connection, if it is there.
    pub fn stop_waiting(&mut self, user: &UserKey, conn: ConnRef) {
        let Some(arrival) = self.find_mut(user) else { return };
        if arrival.waiting.as_mut().is_some_and(|waiting| waiting.remove(conn) == Remaining::None) {
            arrival.waiting = None;
        }
    }

    /// A connection of the user that waits, if one does.
    pub fn waiting(&self, user: &UserKey) -> Option<ConnRef> {
        // The last: it is the cheapest to take away.
        self.find(user)?.waiting.as_ref()?.as_slice().last().copied()
    }

    /// Keeps a message of this node's for a user who waits; whether there was room for it.
    pub fn keep(&mut self, user: &UserKey, kept: Kept) -> bool {
        let Some(arrival) = self.room_for(user, kept.weight()) else { return false };
        arrival.kept.push_back(kept);
        true
    }

    /// Keeps a message of the bus for a user who waits; whether there was room for it.
    pub fn keep_early(&mut self, user: &UserKey, early: Early) -> bool {
        let Some(arrival) = self.room_for(user, early.weight()) else { return false };
        arrival.early.push_back(early);
        true
    }

    /// Where a message of this weight can be kept, with its weight counted; `None` when so much is kept already that it
    /// can't.
    fn room_for(&mut self, user: &UserKey, weight: u64) -> Option<&mut Arrival> {
        if self.kept_bytes >= KEPT_BYTES_MAX {
            return None;
        }
        let arrival = self.users.find_mut(user.hash, |arrival| arrival.user == *user)?;
        if arrival.kept_bytes >= KEPT_BYTES_PER_USER_MAX {
            return None;
        }
        arrival.kept_bytes += weight;
        self.kept_bytes += weight;
        Some(arrival)
    }

    /// The oldest message of the bus that is kept for the user.
    pub fn oldest_early(&self, user: &UserKey) -> Option<&Early> {
        self.find(user)?.early.front()
    }

    /// Takes the oldest message of the bus out.
    pub fn take_early(&mut self, user: &UserKey) -> Option<Early> {
        let arrival = self.find_mut(user)?;
        let early = arrival.early.pop_front()?;
        arrival.kept_bytes -= early.weight();
        self.kept_bytes -= early.weight();
        Some(early)
    }

    /// The oldest message of this node's that is kept for the user.
    pub fn oldest_kept(&self, user: &UserKey) -> Option<&Kept> {
        self.find(user)?.kept.front()
    }

    /// Takes the oldest message of this node's out.
    pub fn take_kept(&mut self, user: &UserKey) -> Option<Kept> {
        let arrival = self.find_mut(user)?;
        let kept = arrival.kept.pop_front()?;
        arrival.kept_bytes -= kept.weight();
        self.kept_bytes -= kept.weight();
        Some(kept)
    }

    /// The user waits no more. Connections that did and messages that were kept are dealt with.
    pub fn remove(&mut self, user: &UserKey) {
        if let Ok(entry) = self.users.find_entry(user.hash, |arrival| arrival.user == *user) {
            let (arrival, _) = entry.remove();
            let is_done = arrival.waiting.is_none() && arrival.early.is_empty() && arrival.kept.is_empty();
            debug_assert!(is_done, "{arrival:?} is forgotten");
        }
        // A storm of arrivals leaves no table behind it.
        if self.users.is_empty() && self.users.capacity() > 1024 {
            self.users = HashTable::new();
        }
    }

    fn find(&self, user: &UserKey) -> Option<&Arrival> {
        self.users.find(user.hash, |arrival| arrival.user == *user)
    }

    fn find_mut(&mut self, user: &UserKey) -> Option<&mut Arrival> {
        self.users.find_mut(user.hash, |arrival| arrival.user == *user)
    }
}
