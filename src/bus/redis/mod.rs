//! The rim that talks to Redis: it carries out [`Call`]s, and brings what is published for this node. It decides nothing.
//!
//! - [`caller`]: where calls come in, and each is answered once
//! - [`events`]: what goes out, bounded in bytes
//! - [`session`]: from being connected to the next loss; subscriptions, and the echo that proves them alive
//! - [`open`]: from a URL to servers; what is wrong with them, and what to do
//! - [`servers`]: which server has a slot; commands in pipelines, sent again where that is safe
//! - [`publish`]: the hot path, in order for each server
//! - [`directory`], [`membership`], [`reap`]: calls as commands, and answers as replies
//! - [`runs`]: which run of Redis an answer comes from
//! - [`survey`]: a look from outside, for `ringmesh cluster`
//!
//! Each server has a connection for commands and one for publishing, so that a hundred thousand registrations don't
//! delay a message; one more, on the server that has the slot of our link, hears what is published.

mod caller;
mod directory;
mod events;
mod membership;
mod open;
mod publish;
mod reap;
mod runs;
mod servers;
mod session;
mod survey;

pub use caller::Caller;
pub use events::{Event, Events};
pub use survey::Surveyor;

use std::rc::Rc;

use crate::config::RedisUrl;

use super::call::{Call, CallId, NodeId, Reply};

/// What a node's probes of itself begin with.
pub const PROBE: &[u8] = b"\0ringmesh probe\0";

/// What the rim is told.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where Redis is.
    pub url: RedisUrl,
    /// This node; letters, digits, `.`, `_` and `-`.
    pub node: NodeId,
}

/// Starts it on this thread's `LocalSet`. It connects, and tries again for as long as the [`Caller`] is kept.
///
/// # Panics
/// Outside of a tokio `LocalSet`.
pub fn start(config: RedisConfig) -> (Caller, Events) {
    let (sender, events) = events::channel();
    let shared = Rc::new(caller::Shared::new(sender));
    tokio::task::spawn_local(session::run(config, Rc::clone(&shared)));
    (Caller::new(shared), events)
}
