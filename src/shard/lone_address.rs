//! Whether all requests for `/ws` of the node come from one address, which then is likely to be a proxy's.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::hub::limiter::AddressKey;
use crate::time::Micros;

/// So few requests of one minute say nothing about the others.
const ASKS_MIN: u64 = 16;
/// How long requests are looked at together, and how often the same is said at most.
const MINUTE: Duration = Duration::from_secs(60);

/// What the requests of one minute have in common. Every shard writes it; a race between two minutes costs no more than
/// a line of the log.
#[derive(Debug, Default)]
pub struct LoneAddress {
    /// The number of the minute, from 1.
    minute: AtomicU64,
    /// Requests in it.
    asks: AtomicU64,
    /// The address that they all came from, or [`SEVERAL`]; 0 before the first.
    address: AtomicU64,
    /// When it was last said, in microseconds from 1; 0: never.
    said_at: AtomicU64,
}

const SEVERAL: u64 = u64::MAX;

impl LoneAddress {
    /// An address asks.
    pub fn ask(&self, now: Micros, address: AddressKey) {
        let minute = now.0 / MINUTE.as_micros() as u64 + 1;
        if self.minute.load(Relaxed) != minute && self.minute.swap(minute, Relaxed) != minute {
            self.asks.store(0, Relaxed);
            self.address.store(0, Relaxed);
        }
        self.asks.fetch_add(1, Relaxed);
        let own = word(address);
        match self.address.load(Relaxed) {
            seen if seen == own || seen == SEVERAL => {}
            0 if self.address.compare_exchange(0, own, Relaxed, Relaxed).is_ok() => {}
            _ => self.address.store(SEVERAL, Relaxed),
        }
    }

    /// An address asked too often: whether nobody else has asked lately, and this was not said within the last minute.
    pub fn is_news(&self, now: Micros, address: AddressKey) -> bool {
        let is_alone = self.address.load(Relaxed) == word(address) && self.asks.load(Relaxed) >= ASKS_MIN;
        let said_at = self.said_at.load(Relaxed);
        let is_due = said_at == 0 || now.since(Micros(said_at - 1)) >= MINUTE;
        is_alone && is_due && self.said_at.compare_exchange(said_at, now.0 + 1, Relaxed, Relaxed).is_ok()
    }
}

/// The address as a number that is neither 0 nor [`SEVERAL`]: no client's address is multicast.
fn word(address: AddressKey) -> u64 {
    address.bits().saturating_add(1).min(SEVERAL - 1)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn key(text: &str) -> AddressKey {
        AddressKey::from(text.parse::<IpAddr>().unwrap())
    }

    fn at(seconds: u64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    #[test]
    fn one_address_is_told_once_a_minute() {
        for proxy in ["127.0.0.1", "::1"] {
            let lone = LoneAddress::default();
            let mut said = Vec::new();
            for second in 0..200 {
                lone.ask(at(second), key(proxy));
                said.extend(lone.is_news(at(second), key(proxy)).then_some(second));
            }
            // Within each minute, once it has been alone for sixteen requests.
            assert_eq!(said, [15, 75, 135, 195], "{proxy}");
        }
    }

    #[test]
    fn two_addresses_are_nothing_to_tell() {
        let lone = LoneAddress::default();
        for second in 0..59 {
            lone.ask(at(second), key(if second == 3 { "10.0.0.2" } else { "10.0.0.1" }));
            assert!(second < 3 || !lone.is_news(at(second), key("10.0.0.1")), "{second}");
        }
        for second in 60..76 {
            lone.ask(at(second), key("10.0.0.1"));
        }
        assert!(!lone.is_news(at(76), key("10.0.0.2")));
        assert!(lone.is_news(at(76), key("10.0.0.1")));
    }
}
