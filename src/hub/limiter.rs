//! How often one address may ask for `/ws`: a sliding window, counted at the address's home shard, so that it is the
//! node's and not a shard's.
//!
//! Asks are remembered by the 256th part of the window they fell into, so that the limit is never passed within a
//! window, and an ask is forgotten at most a 256th of one late. Only asks that were let in count: a client that keeps
//! trying does not lock itself out for longer.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Micros;

/// What asks are counted for: an IPv4 address, or the /64 that an IPv6 address is in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressKey(u64);

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            // Within 2001:db8::/32, the documentation prefix: no IPv6 client has it.
            IpAddr::V4(v4) => Self(0x2001_0db8_0000_0000 | u64::from(v4.to_bits())),
            IpAddr::V6(v6) => Self((v6.to_bits() >> 64) as u64),
        }
    }
}

impl AddressKey {
    /// The number behind it, for hashing.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// Parts of a window.
const PARTS: u64 = 256;
/// Addresses that have not asked for a window are forgotten when so many more have come.
const SWEEP_AFTER: usize = 4096;

/// The asks of the addresses whose home is this shard.
#[derive(Debug)]
pub struct Limiter {
    asks_max: u32,
    window: Duration,
    addresses: HashMap<AddressKey, Asks, ahash::RandomState>,
    sweep_at: usize,
}

/// The asks of one address within the window.
#[derive(Debug, Default)]
struct Asks {
    /// Each part of time with asks in it, oldest first, and how many.
    parts: VecDeque<(u64, u32)>,
    /// The sum of them.
    total: u32,
}

impl Limiter {
    /// At most `asks_max` asks of an address within `window`; 0 lets everybody in.
    pub fn new(asks_max: u32, window: Duration) -> Self {
        Self { asks_max, window, addresses: HashMap::default(), sweep_at: SWEEP_AFTER }
    }

    /// Counts an ask; or says for how many seconds to stay away.
    ///
    /// # Errors
    /// The address has asked too often.
    pub fn ask(&mut self, now: Micros, address: AddressKey) -> Result<(), u32> {
        if self.asks_max == 0 {
            return Ok(());
        }
        let part_us = (self.window.as_micros() as u64 / PARTS).max(1);
        let part = now.0 / part_us;
        self.sweep(part);
        let asks = self.addresses.entry(address).or_default();
        asks.forget(part);
        if asks.total < self.asks_max {
            asks.count(part);
            return Ok(());
        }
        let oldest = asks.parts.front().map_or(part, |&(oldest, _)| oldest);
        // The whole of the oldest part has to leave the window.
        let free_at = Micros((oldest + PARTS + 1) * part_us);
        let seconds = free_at.since(now).as_millis().div_ceil(1000);
        Err(u32::try_from(seconds).unwrap_or(u32::MAX).max(1))
    }

    fn sweep(&mut self, part: u64) {
        if self.addresses.len() >= self.sweep_at {
            self.addresses.retain(|_, asks| {
                asks.forget(part);
                asks.total > 0
            });
            self.sweep_at = self.addresses.len() * 2 + SWEEP_AFTER;
        }
    }
}

impl Asks {
    /// Forgets what has left the window that ends within `part`.
    fn forget(&mut self, part: u64) {
        while let Some(&(oldest, count)) = self.parts.front()
            && oldest + PARTS < part
        {
            self.parts.pop_front();
            self.total -= count;
        }
    }

    fn count(&mut self, part: u64) {
        self.total += 1;
        match self.parts.back_mut() {
            Some((newest, count)) if *newest == part => *count += 1,
            _ => self.parts.push_back((part, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn address(text: &str) -> AddressKey {
        AddressKey::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn the_window_slides() {
        let mut limiter = Limiter::new(100, Duration::from_secs(60));
        let start = 1_000 * SECOND;
        let mut let_in = Vec::new();
        let mut refused = 0;
        for ask in 0..2_000u64 {
            let now = start + ask * SECOND / 10;
            match limiter.ask(Micros(now), address("10.0.0.1")) {
                Ok(()) => let_in.push(now),
                Err(retry) => {
                    refused += 1;
                    assert!((1..=60).contains(&retry), "{retry}");
                }
            }
        }
        assert!(refused > 0);
        for (at, first) in let_in.iter().enumerate() {
            let within = let_in[at..].iter().take_while(|&&later| later < first + 60 * SECOND).count();
            assert!(within <= 100, "{within} within a window from {first}");
        }
        // 200 s at 100 each 60 s.
        assert!(let_in.len() >= 300, "{}", let_in.len());
    }

    #[test]
    fn who_waits_as_told_is_let_in() {
        let mut limiter = Limiter::new(3, Duration::from_secs(8));
        let mut now = 77 * SECOND + 5;
        for _ in 0..3 {
            limiter.ask(Micros(now), address("10.0.0.1")).unwrap();
            now += SECOND / 2;
        }
        let retry = limiter.ask(Micros(now), address("10.0.0.1")).unwrap_err();
        // A 256th of the window late at most.
        now += u64::from(retry) * SECOND + 8 * SECOND / 256;
        limiter.ask(Micros(now), address("10.0.0.1")).unwrap();
    }

    #[test]
    fn addresses_are_told_apart_and_v6_by_64() {
        let mut limiter = Limiter::new(1, Duration::from_secs(60));
        assert!(limiter.ask(Micros(0), address("10.0.0.1")).is_ok());
        assert!(limiter.ask(Micros(0), address("10.0.0.2")).is_ok());
        assert!(limiter.ask(Micros(0), address("::ffff:10.0.0.1")).is_err());
        assert!(limiter.ask(Micros(0), address("fd00::1")).is_ok());
        assert!(limiter.ask(Micros(0), address("fd00::2")).is_err());
        assert!(limiter.ask(Micros(0), address("fd00:0:0:1::1")).is_ok());
    }

    #[test]
    fn addresses_are_forgotten() {
        let mut limiter = Limiter::new(1, Duration::from_secs(1));
        for number in 0..200_000u32 {
            let key = AddressKey::from(IpAddr::from(number.to_be_bytes()));
            limiter.ask(Micros(u64::from(number) * 1_000), key).unwrap();
        }
        assert!(limiter.addresses.len() < 4 * SWEEP_AFTER, "{}", limiter.addresses.len());
    }
}
