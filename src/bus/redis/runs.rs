//! Which run of Redis answers come from. Answers of the directory name a marker; another one than the last means that
//! Redis has lost data, and begins a new run ([`Run`]).
//!
//! One server has one marker. On a cluster each slot has one, for a script may touch keys of one slot only; what is lost
//! is lost by a master, with all its slots.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use redis::Value;

use super::super::call::Run;
use super::open::{number, string};

/// How often a call is asked: once more, if the run in which it was asked has ended since. What it wrote may be lost.
pub(super) const ASKED_MAX: usize = 2;

/// Markers of a place that are remembered as past.
const PAST_MAX: usize = 8;

/// What a marker is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Place {
    /// The registry; on one server everything.
    Registry,
    /// Users whose keys have this slot, on a cluster.
    Slot(u16),
}

/// What is known of a place.
struct Known {
    marker: String,
    /// Those before it: an answer that names one was overtaken by a later answer.
    past: Vec<String>,
    /// The server that has compared its replication id with the marker's, by its number.
    checked_by: Option<u32>,
}

/// The runs that this process has seen, over all its connections.
pub(super) struct Runs {
    /// Of this process alone.
    token: String,
    texts: Cell<u64>,
    id: Cell<u64>,
    known: RefCell<BTreeMap<Place, Known>>,
}

impl Runs {
    pub fn new(token: &str) -> Runs {
        Runs { token: token.to_owned(), texts: Cell::new(0), id: Cell::new(1), known: RefCell::default() }
    }

    /// The number of the present run.
    pub fn id(&self) -> u64 {
        self.id.get()
    }

    /// The present run.
    pub fn now(&self, is_young: bool) -> Run {
        Run { id: self.id(), is_young }
    }

    /// A text for a marker, should one have to be written: no other call has it.
    pub fn new_text(&self) -> String {
        self.texts.set(self.texts.get() + 1);
        format!("{}-{}", self.token, self.texts.get())
    }

    /// The marker of a place, if it is known.
    pub fn marker(&self, place: Place) -> Option<String> {
        self.known.borrow().get(&place).map(|known| known.marker.clone())
    }

    /// No answer of an earlier connection can come any more.
    pub fn reconnected(&self) {
        for known in self.known.borrow_mut().values_mut() {
            known.past.clear();
            known.checked_by = None;
        }
    }

    /// Takes in what an answer begins with: the marker, and whether the run is young, which is answered; `None` when the
    /// answer was overtaken. With another marker than before a new run begins, and the markers of other places that were
    /// lost together with this one are forgotten: theirs begin no further run.
    pub fn observe(&self, place: Place, answer: &[Value], is_lost_too: impl Fn(Place) -> bool) -> Option<bool> {
        let (marker, is_young) = (string(answer.first()?)?, number(answer.get(1)?)? == 1);
        let mut all = self.known.borrow_mut();
        let Some(known) = all.get_mut(&place) else {
            all.insert(place, Known { marker, past: Vec::new(), checked_by: None });
            return Some(is_young);
        };
        if known.marker == marker {
            return Some(is_young);
        }
        if known.past.contains(&marker) {
            return None;
        }
        if known.past.len() == PAST_MAX {
            known.past.remove(0);
        }
        known.past.push(std::mem::replace(&mut known.marker, marker));
        // The registry's stays: a node is entered only with a marker that was seen before its users were.
        all.retain(|other, _| matches!(other, Place::Registry) || *other == place || !is_lost_too(*other));
        self.id.set(self.id.get() + 1);
        Some(is_young)
    }

    /// Whether this server has compared its replication id with the marker's.
    pub fn is_checked(&self, place: Place, server: Option<u32>) -> bool {
        self.known.borrow().get(&place).is_some_and(|known| known.checked_by.is_some() && known.checked_by == server)
    }

    /// The server has done so.
    pub fn set_checked(&self, place: Place, server: Option<u32>) {
        if let Some(known) = self.known.borrow_mut().get_mut(&place) {
            known.checked_by = server;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(runs: &Runs, place: Place, marker: &str) -> (Option<bool>, u64) {
        let answer = [Value::BulkString(marker.as_bytes().to_vec()), Value::Int(0)];
        let master = |place| match place {
            Place::Registry => 0,
            Place::Slot(slot) => 1 + slot / 10,
        };
        let is_young = runs.observe(place, &answer, |other| master(other) == master(place));
        (is_young, runs.id())
    }

    #[test]
    fn another_marker_is_another_run_and_one_of_the_past_is_none() {
        let runs = Runs::new("token");
        assert_eq!(see(&runs, Place::Registry, "1:a:-"), (Some(false), 1));
        assert_eq!(see(&runs, Place::Registry, "1:a:-"), (Some(false), 1));
        assert_eq!(see(&runs, Place::Registry, "2:b:-"), (Some(false), 2));
        assert_eq!(see(&runs, Place::Registry, "1:a:-"), (None, 2), "an answer that was overtaken");
        assert_eq!(see(&runs, Place::Registry, "2:b:-"), (Some(false), 2));
        runs.reconnected();
        assert_eq!(see(&runs, Place::Registry, "1:a:-"), (Some(false), 3), "Redis has gone back to an old file");
    }

    #[test]
    fn a_master_with_many_slots_is_lost_once() {
        let runs = Runs::new("token");
        let slots = [1, 2, 3, 20].map(Place::Slot);
        slots.iter().for_each(|slot| assert_eq!(see(&runs, *slot, "1:a:-"), (Some(false), 1)));
        assert_eq!(see(&runs, Place::Registry, "1:a:-"), (Some(false), 1));
        slots[..3].iter().for_each(|slot| assert_eq!(see(&runs, *slot, "2:b:-"), (Some(false), 2)));
        assert_eq!(see(&runs, slots[3], "2:b:-"), (Some(false), 3), "that of another master is another loss");
        assert_eq!(see(&runs, slots[0], "3:c:-"), (Some(false), 4), "lost again");
        assert_eq!(see(&runs, Place::Registry, "3:c:-"), (Some(false), 5), "that of the registry is always known");
    }

    #[test]
    fn a_server_checks_a_marker_once_a_connection() {
        let runs = Runs::new("token");
        let place = Place::Slot(7);
        see(&runs, place, "1:a:-");
        assert!(!runs.is_checked(place, Some(1)) && !runs.is_checked(place, None));
        runs.set_checked(place, Some(1));
        assert!(runs.is_checked(place, Some(1)) && !runs.is_checked(place, Some(2)));
        runs.reconnected();
        assert!(!runs.is_checked(place, Some(1)));
        assert_ne!(runs.new_text(), runs.new_text());
    }
}
