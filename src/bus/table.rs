//! A table of users that can be walked piece by piece: a slab, and an index over it.

use hashbrown::HashTable;

use crate::hub::envelope::UserKey;

/// Something for each of some users.
#[derive(Debug)]
pub struct UserTable<T> {
    index: HashTable<u32>,
    slots: Vec<Option<(UserKey, T)>>,
    free: Vec<u32>,
}

impl<T> Default for UserTable<T> {
    fn default() -> Self {
        Self { index: HashTable::new(), slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> UserTable<T> {
    /// What there is for a user.
    pub fn get(&self, user: &UserKey) -> Option<&T> {
        let &at = self.index.find(user.hash, |&at| self.is_at(at, user))?;
        self.slots[at as usize].as_ref().map(|(_, value)| value)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, user: &UserKey) -> Option<&mut T> {
        let &at = self.index.find(user.hash, |&at| self.is_at(at, user))?;
        self.slots[at as usize].as_mut().map(|(_, value)| value)
    }

    /// The slot of a user.
    pub fn slot_of(&self, user: &UserKey) -> Option<usize> {
        self.index.find(user.hash, |&at| self.is_at(at, user)).map(|&at| at as usize)
    }

    /// Sets what there is for a user.
    pub fn insert(&mut self, user: UserKey, value: T) -> &mut T {
        let found = self.index.find(user.hash, |&at| self.is_at(at, &user)).copied();
        let at = match found {
            Some(at) => at,
            None => {
                let at = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(None);
                    (self.slots.len() - 1) as u32
                });
                let slots = &self.slots;
                self.index.insert_unique(user.hash, at, |&other| hash_at(slots, other));
                at
            }
        };
        let slot = &mut self.slots[at as usize];
        &mut slot.insert((user, value)).1
    }

    /// Takes out what there is for a user.
    pub fn remove(&mut self, user: &UserKey) -> Option<T> {
        let slots = &self.slots;
        let entry = self.index.find_entry(user.hash, |&at| is_user(slots, at, user)).ok()?;
        let (at, _) = entry.remove();
        self.free.push(at);
        let (_, value) = self.slots[at as usize].take()?;
        if self.index.is_empty() {
            *self = Self::default();
        }
        Some(value)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Slots that a walk has to look at; some are vacant.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The user in a slot.
    pub fn at(&self, slot: usize) -> Option<(&UserKey, &T)> {
        self.slots.get(slot)?.as_ref().map(|(user, value)| (user, value))
    }

    /// The same, to change it.
    pub fn at_mut(&mut self, slot: usize) -> Option<(&UserKey, &mut T)> {
        self.slots.get_mut(slot)?.as_mut().map(|(user, value)| (&*user, value))
    }

    /// All of them, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&UserKey, &mut T)> {
        self.slots.iter_mut().flatten().map(|(user, value)| (&*user, value))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&UserKey, &T)> {
        self.slots.iter().flatten().map(|(user, value)| (user, value))
    }

    fn is_at(&self, at: u32, user: &UserKey) -> bool {
        is_user(&self.slots, at, user)
    }
}

fn is_user<T>(slots: &[Option<(UserKey, T)>], at: u32, user: &UserKey) -> bool {
    slots[at as usize].as_ref().is_some_and(|(there, _)| there.name == user.name)
}

fn hash_at<T>(slots: &[Option<(UserKey, T)>], at: u32) -> u64 {
    slots[at as usize].as_ref().map_or(0, |(user, _)| user.hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_come_and_go_and_slots_are_used_again() {
        let user = |number: u64| UserKey { hash: number % 7, name: format!("user-{number}").into() };
        let mut table = UserTable::default();
        for number in 0..1000 {
            table.insert(user(number), number);
        }
        for number in (0..1000).step_by(2) {
            assert_eq!(table.remove(&user(number)), Some(number));
            assert_eq!(table.remove(&user(number)), None);
        }
        for number in 1000..1500 {
            table.insert(user(number), number);
        }
        assert_eq!((table.len(), table.slots()), (1000, 1000));
        assert_eq!(table.get(&user(1)), Some(&1));
        *table.get_mut(&user(1)).unwrap() = 5;
        assert_eq!(table.iter().filter(|(_, value)| **value == 5).count(), 2);
        assert_eq!((0..table.slots()).filter_map(|slot| table.at(slot)).count(), 1000);
    }
}
