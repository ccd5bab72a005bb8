//! Which connections a user has: the table of a home shard.

use std::collections::HashMap;

use compact_str::CompactString;
use hashbrown::HashTable;

use crate::ids::ConnRef;

use super::envelope::UserKey;

/// The users whose home is this shard and who have a connection somewhere on the node.
#[derive(Debug, Default)]
pub struct Homes {
    users: HashTable<Home>,
}

#[derive(Debug)]
struct Home {
    name: CompactString,
    /// Kept for the day the table grows: cheaper than hashing every name again.
    hash: u64,
    conns: ConnSet,
}

/// Where a user can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach<'a> {
    /// The connections of this node; none when the user is not here.
    pub conns: &'a [ConnRef],
    /// Whether other nodes hold the user too, as far as the bus has said.
    pub elsewhere: bool,
}

/// Whether a user came, went, or neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// The first connection of the user.
    Online,
    /// The last connection of the user is gone.
    Offline,
    /// There were others, and there still are.
    Unchanged,
}

impl Homes {
    /// Adds a connection of a user.
    pub fn register(&mut self, user: UserKey, conn: ConnRef) -> Presence {
        match self.users.find_mut(user.hash, |home| home.name == user.name) {
            Some(home) => {
                home.conns.insert(conn);
                Presence::Unchanged
            }
            None => {
                let home = Home { name: user.name, hash: user.hash, conns: ConnSet::one(conn) };
                self.users.insert_unique(user.hash, home, |home| home.hash);
                Presence::Online
            }
        }
    }

    /// Removes a connection of a user; one that is not there is no error.
    pub fn unregister(&mut self, user: &UserKey, conn: ConnRef) -> Presence {
        let Ok(mut entry) = self.users.find_entry(user.hash, |home| home.name == user.name) else {
            return Presence::Unchanged;
        };
        match entry.get_mut().conns.remove(conn) {
            Remaining::Same | Remaining::Some => Presence::Unchanged,
            Remaining::None => {
                entry.remove();
                if self.users.capacity() > 1024 && self.users.len() < self.users.capacity() / 8 {
                    self.users.shrink_to(self.users.len() * 2, |home| home.hash);
                }
                Presence::Offline
            }
        }
    }

    /// Where a user can be reached.
    pub fn reach(&self, user: &UserKey) -> Reach<'_> {
        match self.users.find(user.hash, |home| home.name == user.name) {
            Some(home) => Reach { conns: home.conns.as_slice(), elsewhere: home.conns.elsewhere() },
            None => Reach { conns: &[], elsewhere: false },
        }
    }

    /// Notes whether other nodes hold the user too; nothing, when the user is not here.
    pub fn set_elsewhere(&mut self, user: &UserKey, elsewhere: bool) {
        if let Some(home) = self.users.find_mut(user.hash, |home| home.name == user.name) {
            *home.conns.elsewhere_mut() = elsewhere;
        }
    }

    /// How many users have a connection.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// The connections of one user: one, mostly, and then without an allocation. Never none.
#[derive(Debug)]
pub(super) enum ConnSet {
    One { conn: ConnRef, elsewhere: bool },
    Many(Box<Many>),
}

/// However many connections share a user id, adding and removing one costs the same.
#[derive(Debug, Default)]
pub(super) struct Many {
    conns: Vec<ConnRef>,
    positions: HashMap<ConnRef, usize>,
    elsewhere: bool,
}

/// What a removal leaves.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Remaining {
    /// The connection was not there.
    Same,
    /// Others are left.
    Some,
    /// It was the last.
    None,
}

// The flag stands where there was padding.
const _: () = assert!(size_of::<Home>() == 48);

impl ConnSet {
    pub(super) fn one(conn: ConnRef) -> Self {
        Self::One { conn, elsewhere: false }
    }

    pub(super) fn as_slice(&self) -> &[ConnRef] {
        match self {
            Self::One { conn, .. } => std::slice::from_ref(conn),
            Self::Many(many) => &many.conns,
        }
    }

    fn elsewhere(&self) -> bool {
        match self {
            Self::One { elsewhere, .. } => *elsewhere,
            Self::Many(many) => many.elsewhere,
        }
    }

    fn elsewhere_mut(&mut self) -> &mut bool {
        match self {
            Self::One { elsewhere, .. } => elsewhere,
            Self::Many(many) => &mut many.elsewhere,
        }
    }

    pub(super) fn insert(&mut self, conn: ConnRef) {
        match self {
            Self::One { conn: first, elsewhere } => {
                let mut many = Many { elsewhere: *elsewhere, ..Many::default() };
                many.insert(*first);
                many.insert(conn);
                *self = Self::Many(Box::new(many));
            }
            Self::Many(many) => many.insert(conn),
        }
    }

    /// Removes a connection. The last one stays in the set, which is then to be dropped.
    pub(super) fn remove(&mut self, conn: ConnRef) -> Remaining {
        match self {
            Self::One { conn: only, .. } if *only == conn => Remaining::None,
            Self::One { .. } => Remaining::Same,
            Self::Many(many) => {
                let was_there = many.remove(conn);
                if let [last] = many.conns[..] {
                    *self = Self::One { conn: last, elsewhere: many.elsewhere };
                }
                if was_there { Remaining::Some } else { Remaining::Same }
            }
        }
    }
}

impl Many {
    fn insert(&mut self, conn: ConnRef) {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.positions.entry(conn) {
            vacant.insert(self.conns.len());
            self.conns.push(conn);
        }
    }

    fn remove(&mut self, conn: ConnRef) -> bool {
        let Some(position) = self.positions.remove(&conn) else { return false };
        self.conns.swap_remove(position);
        if let Some(moved) = self.conns.get(position) {
            self.positions.insert(*moved, position);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnId, ShardId};

    fn user(name: &str) -> UserKey {
        UserKey { hash: name.len() as u64, name: name.into() }
    }

    fn conn(index: u32) -> ConnRef {
        ConnRef { shard: ShardId((index % 3) as u16), conn: ConnId { index, generation: 1 } }
    }

    #[test]
    fn presence_follows_the_first_and_the_last_connection() {
        let mut homes = Homes::default();
        assert_eq!(homes.register(user("alice"), conn(0)), Presence::Online);
        assert_eq!(homes.register(user("carol"), conn(9)), Presence::Online);
        for index in 1..5 {
            assert_eq!(homes.register(user("alice"), conn(index)), Presence::Unchanged);
        }
        assert_eq!(homes.reach(&user("alice")).conns.len(), 5);
        assert_eq!(homes.unregister(&user("alice"), conn(77)), Presence::Unchanged);
        for index in [2, 0, 4, 1] {
            assert_eq!(homes.unregister(&user("alice"), conn(index)), Presence::Unchanged);
            assert!(!homes.reach(&user("alice")).conns.contains(&conn(index)));
        }
        assert_eq!(homes.reach(&user("alice")).conns, &[conn(3)]);
        assert_eq!(homes.unregister(&user("alice"), conn(0)), Presence::Unchanged);
        assert_eq!(homes.unregister(&user("alice"), conn(3)), Presence::Offline);
        assert_eq!(homes.reach(&user("alice")).conns, &[]);
        assert_eq!(homes.reach(&user("carol")).conns, &[conn(9)], "same hash, other user");
    }

    #[test]
    fn elsewhere_is_said_of_a_user_and_outlasts_the_connections() {
        let mut homes = Homes::default();
        homes.set_elsewhere(&user("alice"), true);
        homes.register(user("alice"), conn(0));
        assert!(!homes.reach(&user("alice")).elsewhere, "nothing is known of who was not here");
        homes.set_elsewhere(&user("alice"), true);
        homes.register(user("carol"), conn(9));
        for index in 1..4 {
            homes.register(user("alice"), conn(index));
            assert!(homes.reach(&user("alice")).elsewhere);
        }
        for index in [3, 0, 1] {
            homes.unregister(&user("alice"), conn(index));
            assert!(homes.reach(&user("alice")).elsewhere);
        }
        homes.set_elsewhere(&user("alice"), false);
        assert!(!homes.reach(&user("alice")).elsewhere && !homes.reach(&user("carol")).elsewhere);
    }

    #[test]
    fn a_crowd_under_one_name_comes_and_goes() {
        let mut homes = Homes::default();
        for index in 0..50_000 {
            homes.register(user("anonymous"), conn(index));
        }
        for index in 0..50_000 {
            homes.unregister(&user("anonymous"), conn(index));
        }
        assert!(homes.is_empty());
    }
}
