//! The shard's timer wheel: one timer a connection, linked through a table, so that an idle connection costs no task,
//! no allocation and twelve bytes.

use crate::time::Micros;

/// The wheel's resolution. Timers fire up to so much late, never early.
pub const TICK_US: u64 = 50_000;
const BUCKETS: usize = 2048;
const NONE: u32 = u32::MAX;
const _: () = assert!(BUCKETS.is_power_of_two());

/// Timers of connections, by slab index.
#[derive(Debug)]
pub struct Wheel {
    heads: Vec<u32>,
    links: Vec<Link>,
    /// The next tick to look at.
    tick: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    previous: u32,
    /// The tick it is due at; `NONE` when there is no timer.
    due: u32,
}

const UNSET: Link = Link { next: NONE, previous: NONE, due: NONE };

impl Wheel {
    /// A wheel that starts at `now` and has room for `timers_max` timers without moving (memory is touched as it is used).
    pub fn new(now: Micros, timers_max: usize) -> Self {
        Self { heads: vec![NONE; BUCKETS], links: Vec::with_capacity(timers_max), tick: tick_of(now) }
    }

    /// Sets the timer of `index`, in place of any it had.
    pub fn set(&mut self, index: u32, due: Micros) {
        let at = index as usize;
        if at >= self.links.len() {
            self.links.resize(at + 1, UNSET);
        }
        self.unlink(index);
        // Rounded up, so that no timer fires early; one already due fires at the next look.
        let due = (due.0.div_ceil(TICK_US).min(u64::from(NONE - 1)) as u32).max(self.tick);
        let head = &mut self.heads[due as usize % BUCKETS];
        let next = std::mem::replace(head, index);
        self.links[at] = Link { next, previous: NONE, due };
        if next != NONE {
            self.links[next as usize].previous = index;
        }
    }

    /// Takes the timer of `index` away, if it has one.
    pub fn cancel(&mut self, index: u32) {
        if (index as usize) < self.links.len() {
            self.unlink(index);
        }
    }

    fn unlink(&mut self, index: u32) {
        let link = std::mem::replace(&mut self.links[index as usize], UNSET);
        if link.due == NONE {
            return;
        }
        match link.previous {
            NONE => self.heads[link.due as usize % BUCKETS] = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        if link.next != NONE {
            self.links[link.next as usize].previous = link.previous;
        }
    }

    /// Takes out every timer that is due and puts its index into `due`.
    pub fn expire(&mut self, now: Micros, due: &mut Vec<u32>) {
        let end = tick_of(now);
        // A wheel that was not looked at for more than a round has every bucket to look at once.
        let ticks = (u64::from(end) + 1).saturating_sub(u64::from(self.tick)).min(BUCKETS as u64) as u32;
        for tick in (end + 1 - ticks)..=end {
            let mut index = self.heads[tick as usize % BUCKETS];
            while index != NONE {
                let link = self.links[index as usize];
                if link.due <= end {
                    self.unlink(index);
                    due.push(index);
                }
                index = link.next;
            }
        }
        self.tick = self.tick.max(end + 1);
    }
}

fn tick_of(now: Micros) -> u32 {
    (now.0 / TICK_US).min(u64::from(NONE - 2)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Against a table of due times: every timer fires once, never early, at most a tick and a look late.
        #[test]
        fn a_wheel_is_a_table_of_due_times(
            steps in prop::collection::vec((0u32..40, 0u64..400_000_000, 0u64..30_000_000, 0u8..4), 1..200)
        ) {
            let mut now = Micros(1_234_567);
            let mut wheel = Wheel::new(now, 4);
            let mut table = HashMap::<u32, u64>::new();
            for (index, ahead, passes, action) in steps {
                if action == 0 {
                    wheel.cancel(index);
                    table.remove(&index);
                } else {
                    wheel.set(index, Micros(now.0 + ahead));
                    table.insert(index, now.0 + ahead);
                }
                now = Micros(now.0 + passes);
                let mut due = Vec::new();
                wheel.expire(now, &mut due);
                for index in due {
                    let at = table.remove(&index);
                    prop_assert!(at.is_some_and(|at| at <= now.0), "{index} fired at {} for {at:?}", now.0);
                }
                for (index, at) in &table {
                    prop_assert!(at + TICK_US > now.0, "{index}, due at {at}, has not fired at {}", now.0);
                }
            }
        }
    }
}
