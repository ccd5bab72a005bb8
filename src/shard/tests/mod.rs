//! Real shards in this process, tungstenite's client outside. Each test fails without the guard it is about.

mod contained;
mod neighbours;
mod slow_readers;
mod support;
mod waking;

/// A text message on which reading panics, in builds for tests only.
pub(super) const PANICS: &str = "a message that no parser survives";
