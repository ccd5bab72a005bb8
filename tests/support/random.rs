//! Random numbers from a seed that every failure names.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: small, and good enough to choose test inputs.
pub struct Random {
    state: u64,
}

impl Random {
    /// Numbers from this seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// A new seed, or the one in `TEST_SEED`; printed, and so part of the output of a test that fails.
    pub fn from_environment() -> Random {
        let seed = match std::env::var("TEST_SEED") {
            Ok(text) => text.parse().expect("TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos() as u64,
        };
        println!("to repeat: TEST_SEED={seed}");
        Random { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }
}
