//! Real shards in this process, tungstenite's client outside. Each test fails without the guard it is about.

mod bus;
mod contained;
mod fatal;
mod guards;
mod holding;
mod neighbours;
mod slow_readers;
mod support;
mod waking;

/// A text message on which reading panics, in builds for tests only.
pub(super) const PANICS: &str = "a message that no parser survives";
/// A text message on which the shard panics where it would call the hub, in builds for tests only.
pub(super) const PANICS_AT_THE_HUB: &str = "a message that no hub survives";
