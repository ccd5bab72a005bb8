//! Log lines for what may happen thousands of times a second.

use std::time::Duration;

use crate::time::Micros;

/// A line that is logged from time to time, with how often it was due.
#[derive(Default)]
pub(super) struct Rare {
    logged: Option<Micros>,
    unlogged: u32,
}

impl Rare {
    /// Counts one more reason for the line; the number of them since it was last logged, when `every` has passed since.
    pub(super) fn due(&mut self, now: Micros, every: Duration) -> Option<u32> {
        self.unlogged = self.unlogged.saturating_add(1);
        if self.logged.is_some_and(|logged| now.since(logged) < every) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_logged_is_counted() {
        let every = Duration::from_micros(10);
        let mut rare = Rare::default();
        let due: Vec<_> = [5, 6, 14, 15, 16, 40].map(|now| rare.due(Micros(now), every)).into();
        assert_eq!(due, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
