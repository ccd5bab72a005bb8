//! One stream's sequence numbers as its receiver sees them: exact counts of what was lost, came twice or came late. Pure.

use std::collections::BTreeSet;

/// What one number told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// The next one, or the first after a gap.
    New,
    /// It fills a gap: a later one had come before it.
    Late,
    /// It had come before.
    Duplicate,
}

/// The receiver's side of one stream whose numbers begin at 0.
#[derive(Clone, Debug, Default)]
pub struct SequenceTracker {
    /// One above the highest number that has come.
    next: u64,
    /// Numbers below `next` that have not come.
    missing: BTreeSet<u64>,
}

impl SequenceTracker {
    /// Notes that this number has come.
    pub fn note(&mut self, sequence: u64) -> Arrival {
        if sequence >= self.next {
            if sequence > self.next {
                self.missing.extend(self.next..sequence);
            }
            self.next = sequence + 1;
            return Arrival::New;
        }
        if self.missing.remove(&sequence) { Arrival::Late } else { Arrival::Duplicate }
    }

    /// A stream that is joined in the middle: nothing before `first` is missed.
    pub fn joined_at(first: u64) -> Self {
        Self { next: first, missing: BTreeSet::new() }
    }

    /// Numbers skipped so far and not made good.
    pub fn gaps(&self) -> u64 {
        self.missing.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_filled_later_is_late_and_no_loss() {
        let mut tracker = SequenceTracker::default();
        let arrivals: Vec<_> = [0, 1, 4, 2, 4, 5, 2].into_iter().map(|number| tracker.note(number)).collect();
        use Arrival::{Duplicate, Late, New};
        assert_eq!(arrivals, [New, New, New, Late, Duplicate, New, Duplicate]);
        assert_eq!(tracker.gaps(), 1);
    }

    #[test]
    fn a_stream_joined_in_the_middle_misses_nothing_from_before() {
        let mut tracker = SequenceTracker::joined_at(40);
        assert_eq!([tracker.note(40), tracker.note(42)], [Arrival::New, Arrival::New]);
        assert_eq!(tracker.gaps(), 1);
    }
}
