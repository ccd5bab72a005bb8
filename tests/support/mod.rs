//! What the black-box tests share: a gateway process, clients of it, and what it says about itself.
//!
//! Every wait has a deadline and waits for an event; nothing sleeps and hopes. Absence is proven by a marker that is sent
//! the same way after the thing that must not arrive: when the marker comes next, nothing came before it.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of this")]

pub mod client;
pub mod cluster;
pub mod crowd;
pub mod fake_host;
pub mod gateway;
pub mod http;
pub mod metrics;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod python;
pub mod random;
pub mod raw;
pub mod redis;
pub mod resp;
pub mod rim;
pub mod terminal;
pub mod traffic;

use std::time::{Duration, Instant};

pub use client::Client;
pub use cluster::Nodes;
pub use crowd::Crowd;
pub use gateway::Gateway;
pub use raw::RawClient;
pub use traffic::{Kind, Traffic};

/// How long one awaited event may take before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The same for tests that move much data or wait for the gateway's own timers.
pub const DEADLINE_SLOW: Duration = Duration::from_secs(30);

/// Between two looks at something that has no event to wait for, such as a counter behind HTTP.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Asks `look` until it has an answer.
///
/// # Panics
/// When `deadline` passes first; `what` says what was waited for.
pub fn eventually<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        // What is waited for shows on no descriptor: a metric, a process, a log.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(LOOK_AGAIN);
    }
}
