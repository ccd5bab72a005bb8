//! When to ping a connection, and when to give it up.

use std::time::Duration;

use crate::time::Micros;

/// The two settings of the heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    /// A ping goes out so often.
    pub ping_interval: Duration,
    /// A connection that has sent no byte for so long is closed.
    pub pong_timeout: Duration,
}

/// What follows from a look at a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Whether a ping is due now.
    pub ping: bool,
    /// When the next ping is due.
    pub next_ping: Micros,
    /// When to look again.
    pub again: Micros,
}

impl Heartbeat {
    /// The first look at a connection that opened `now`: somewhere within the ping interval, so that connections which
    /// came together do not beat together. `spread` is any number that differs from connection to connection.
    pub fn first(&self, now: Micros, spread: u32) -> Micros {
        let interval = self.ping_interval.as_micros();
        // Fibonacci hashing: neighbours land far apart.
        let part = u128::from(spread.wrapping_mul(0x9e37_79b9));
        Micros(now.0 + ((interval * part) >> 32) as u64)
    }

    /// Looks at a connection that sent its last byte at `heard`; `None` when it has been silent for too long.
    pub fn look(&self, now: Micros, heard: Micros, next_ping: Micros) -> Option<Look> {
        let deadline = heard.after(self.pong_timeout);
        if now >= deadline {
            return None;
        }
        let ping = now >= next_ping;
        let next_ping = if ping { now.after(self.ping_interval) } else { next_ping };
        Some(Look { ping, next_ping, again: next_ping.min(deadline) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const BEAT: Heartbeat = Heartbeat { ping_interval: Duration::from_secs(30), pong_timeout: Duration::from_secs(60) };

    #[test]
    fn first_pings_spread_over_the_interval() {
        let mut tenths = [0; 10];
        for spread in 0..10_000 {
            let first = BEAT.first(Micros(500), spread);
            tenths[((first.0 - 500) / 3_000_000) as usize] += 1;
        }
        assert!(tenths.iter().all(|&count| (900..1100).contains(&count)), "{tenths:?}");
    }

    #[test]
    fn silence_ends_it_and_any_byte_delays_that() {
        let second = |seconds: u64| Micros(seconds * 1_000_000);
        let look = BEAT.look(second(30), second(0), second(30)).unwrap();
        assert_eq!(look, Look { ping: true, next_ping: second(60), again: second(60) });
        assert_eq!(BEAT.look(second(60), second(0), second(60)), None);
        // Heard at 35: the deadline falls between two pings, and is met then and not at the next one.
        let look = BEAT.look(second(90), second(35), second(90)).unwrap();
        assert_eq!(look, Look { ping: true, next_ping: second(120), again: second(95) });
        assert_eq!(
            BEAT.look(second(95), second(40), second(120)),
            Some(Look { ping: false, next_ping: second(120), again: second(100) })
        );
        assert_eq!(BEAT.look(second(95), second(35), second(120)), None);
    }
}
