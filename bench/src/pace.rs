//! The schedule of an open loop: when each message should be sent, whatever became of the ones before. Pure.

/// A steady schedule of one worker.
#[derive(Clone, Debug)]
pub struct Pace {
    interval_ns: f64,
    start_ns: u64,
    next: u64,
}

impl Pace {
    /// `per_second` messages from `start_ns` on, the first one after `phase` (0 to 1) of an interval: workers whose
    /// phases differ do not send at the same moments.
    pub fn new(per_second: f64, start_ns: u64, phase: f64) -> Self {
        let interval_ns = 1e9 / per_second.max(1e-6);
        Self { interval_ns, start_ns: start_ns + (interval_ns * phase) as u64, next: 0 }
    }

    /// When the next message is to be sent, in nanoseconds of the monotonic clock.
    pub fn next_ns(&self) -> u64 {
        self.start_ns + (self.next as f64 * self.interval_ns) as u64
    }

    /// The intended send time of the next message when it is due by `now_ns`; it counts as sent then.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let at_ns = self.next_ns();
        (at_ns <= now_ns).then(|| {
            self.next += 1;
            at_ns
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_look_finds_every_message_at_its_intended_time() {
        let mut pace = Pace::new(1_000.0, 5_000, 0.5);
        assert_eq!(pace.due(400_000), None);
        let due: Vec<_> = std::iter::from_fn(|| pace.due(3_600_000)).collect();
        assert_eq!(due, [505_000, 1_505_000, 2_505_000, 3_505_000]);
        assert_eq!(pace.next_ns(), 4_505_000);
    }

    #[test]
    fn the_schedule_does_not_drift() {
        let mut pace = Pace::new(30_000.0, 0, 0.0);
        let last = std::iter::from_fn(|| pace.due(60_000_000_000)).count();
        assert_eq!(last, 30_000 * 60 + 1);
    }
}
