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
                let home = Home { name: user.name, hash: user.hash, conns: ConnSet::One(conn) };
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
            Remaining::Some => Presence::Unchanged,
            Remaining::None => {
                entry.remove();
                if self.users.capacity() > 1024 && self.users.len() < self.users.capacity() / 8 {
                    self.users.shrink_to(self.users.len() * 2, |home| home.hash);
                }
                Presence::Offline
            }
        }
    }

    /// The connections of a user; none when the user is offline.
    pub fn conns(&self, user: &UserKey) -> &[ConnRef] {
        self.users.find(user.hash, |home| home.name == user.name).map_or(&[], |home| home.conns.as_slice())
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

/// The connections of one user: one, mostly, and then without an allocation.
#[derive(Debug)]
enum ConnSet {
    One(ConnRef),
    Many(Box<Many>),
}

/// However many connections share a user id, adding and removing one costs the same.
#[derive(Debug, Default)]
struct Many {
    conns: Vec<ConnRef>,
    positions: HashMap<ConnRef, usize>,
}

enum Remaining {
    Some,
    None,
}

impl ConnSet {
    fn as_slice(&self) -> &[ConnRef] {
        match self {
            Self::One(conn) => std::slice::from_ref(conn),
            Self::Many(many) => &many.conns,
        }
    }

    fn insert(&mut self, conn: ConnRef) {
        match self {
            Self::One(first) => {
                let mut many = Many::default();
                many.insert(*first);
                many.insert(conn);
                *self = Self::Many(Box::new(many));
            }
            Self::Many(many) => many.insert(conn),
        }
    }

    fn remove(&mut self, conn: ConnRef) -> Remaining {
        match self {
            Self::One(only) if *only == conn => Remaining::None,
            Self::One(_) => Remaining::Some,
            Self::Many(many) => {
                many.remove(conn);
                if let [last] = many.conns[..] {
                    *self = Self::One(last);
                }
                Remaining::Some
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

    fn remove(&mut self, conn: ConnRef) {
        if let Some(position) = self.positions.remove(&conn) {
            self.conns.swap_remove(position);
            if let Some(moved) = self.conns.get(position) {
                self.positions.insert(*moved, position);
            }
        }
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
        assert_eq!(homes.conns(&user("alice")).len(), 5);
        assert_eq!(homes.unregister(&user("alice"), conn(77)), Presence::Unchanged);
        for index in [2, 0, 4, 1] {
            assert_eq!(homes.unregister(&user("alice"), conn(index)), Presence::Unchanged);
            assert!(!homes.conns(&user("alice")).contains(&conn(index)));
        }
        assert_eq!(homes.conns(&user("alice")), &[conn(3)]);
        assert_eq!(homes.unregister(&user("alice"), conn(0)), Presence::Unchanged);
        assert_eq!(homes.unregister(&user("alice"), conn(3)), Presence::Offline);
        assert_eq!(homes.conns(&user("alice")), &[]);
        assert_eq!(homes.conns(&user("carol")), &[conn(9)], "same hash, other user");
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
