//! Who sends when among connections that talk: in a closed loop whoever got an answer, in an open loop whoever's turn it
//! is by the schedule.

use crate::net::Net;
use crate::pace::Pace;
use crate::scenario::Load;
use crate::sys;

/// One worker's flow of messages.
pub struct Flow {
    load: Load,
    running: bool,
    pace: Option<Pace>,
    /// The connection whose turn it is, in an open loop.
    next: usize,
}

impl Flow {
    /// A flow that has not begun.
    pub fn new(load: Load) -> Self {
        Self { load, running: false, pace: None, next: 0 }
    }

    /// Begins, and says how many messages each talking connection sends at once.
    pub fn start(&mut self) -> u32 {
        self.running = true;
        match self.load {
            Load::Closed { inflight } => inflight,
            Load::Open { per_second, phase } => {
                self.pace = (per_second > 0.0).then(|| Pace::new(per_second, sys::now_ns(), phase));
                0
            }
        }
    }

    /// Ends: nothing is sent any more.
    pub fn stop(&mut self) {
        self.running = false;
        self.pace = None;
    }

    /// The intended send time of the next message of an open loop that is due by `now_ns`; it counts as sent then.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        self.pace.as_mut()?.due(now_ns)
    }

    /// When the next message of an open loop is due, in nanoseconds of the monotonic clock.
    pub fn next_due_ns(&self) -> u64 {
        self.pace.as_ref().map_or(u64::MAX, Pace::next_ns)
    }

    /// The next of the first `talkers` connections in turn that may send.
    pub fn next_in_turn(&mut self, talkers: usize, may: impl Fn(usize) -> bool) -> Option<usize> {
        for _ in 0..talkers {
            let index = self.next % talkers;
            self.next = index + 1;
            if may(index) {
                return Some(index);
            }
        }
        None
    }

    /// Counts a message that came at `now_ns`, and says whether one is to be sent for it.
    pub fn received(&self, net: &mut Net, now_ns: u64, age_ns: u64, lag_ns: u64, payload_bytes: usize) -> bool {
        match self.load {
            Load::Open { .. } => {
                net.received_paced(now_ns, age_ns, lag_ns, payload_bytes);
                false
            }
            Load::Closed { .. } => {
                net.received(now_ns, age_ns, payload_bytes);
                self.running
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round_and_pass_those_over_that_may_not() {
        let mut flow = Flow::new(Load::Closed { inflight: 1 });
        let mut turns = |may: fn(usize) -> bool| [(); 5].map(|()| flow.next_in_turn(3, may));
        assert_eq!(turns(|_| true), [Some(0), Some(1), Some(2), Some(0), Some(1)]);
        assert_eq!(turns(|index| index != 1), [Some(2), Some(0), Some(2), Some(0), Some(2)]);
        assert_eq!(turns(|_| false), [None; 5]);
        assert_eq!(flow.next_in_turn(0, |_| true), None);
    }

    #[test]
    fn an_open_loop_sends_nothing_at_once_and_nothing_once_stopped() {
        let mut flow = Flow::new(Load::Open { per_second: 1e6, phase: 0.0 });
        assert_eq!((flow.start(), flow.due(0)), (0, None));
        assert!(flow.due(u64::MAX / 2).is_some());
        flow.stop();
        assert_eq!((flow.due(u64::MAX / 2), flow.next_due_ns()), (None, u64::MAX));
        assert_eq!(Flow::new(Load::Closed { inflight: 7 }).start(), 7);
    }
}
