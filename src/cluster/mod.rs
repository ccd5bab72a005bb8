//! `ringmesh cluster`: which nodes there are, how it stands with them, and how long a message takes, all of it asked of
//! Redis.
//!
//! [`crate::bus::redis::Surveyor`] reads; `view` concludes and `show` prints, both pure; `live` goes on in a terminal, by
//! the parts of `ringmesh top`.

mod live;
mod show;
mod view;

use std::io;

use crate::bus::redis::Surveyor;
use crate::config::RedisUrl;
use crate::top::TopError;

pub use live::watch;
pub use view::View;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The settings name no Redis.
    #[error(
        "no Redis is named, so there is no cluster to look at: give --redis redis://HOST:6379, or set RINGMESH_REDIS, or \
         REDIS_HOST and REDIS_PORT, or --config FILE with `redis` in it; a node without Redis is shown by `ringmesh top`"
    )]
    NoRedis,
    /// Redis cannot be asked.
    #[error("{0}")]
    OutOfReach(String),
    /// There is nothing to draw on.
    #[error("standard output is no terminal: `ringmesh cluster` without --watch prints plain text")]
    NoTerminal,
    /// The live view ended.
    #[error(transparent)]
    Watch(#[from] TopError),
    /// The system has no poll instance left.
    #[error("the runtime: {0}")]
    Runtime(#[from] io::Error),
}

/// Looks once.
///
/// # Errors
/// Redis, with all its servers, is out of reach.
pub fn look(redis: Option<&RedisUrl>) -> Result<View, ClusterError> {
    let redis = redis.ok_or(ClusterError::NoRedis)?.clone();
    let survey = runtime()?.block_on(async { Surveyor::connect(redis).await?.look().await });
    survey.map(View::new).map_err(ClusterError::OutOfReach)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The view as a table, with colours if wished for.
pub fn as_table(view: &View, colours: bool) -> String {
    let write = |line: &crate::top::Line| if colours { line.ansi(usize::MAX) } else { line.text() } + "\n";
    show::lines(view).iter().map(write).collect()
}

/// The view as one JSON object; `redis` is shown without its password.
pub fn as_json(view: &View, redis: &RedisUrl) -> String {
    format!("{:#}\n", show::as_json(view, &redis.to_string()))
}
