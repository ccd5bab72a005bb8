//! One shard's world of users and connections, pure: no socket, no clock, no channel.
//!
//! [`Hub::handle`] is the one door: what a client said, what another shard sent and what the rim saw all come in as
//! an [`Input`], and what follows leaves through [`Effects`]. The shard gives it real sockets, the simulation a list.
//!
//! - [`envelope`]: what crosses from shard to shard; [`bus`]: what crosses between the shards and other nodes
//! - [`links`]: outboxes, inboxes and credits of the mesh
//! - [`homes`]: which connections a user has, at the user's home shard; [`arrivals`]: users whom the bus registers yet
//! - [`limiter`]: how often an address may ask for `/ws`
//! - [`timers`]: the shard's timer wheel; [`heartbeat`]: when to ping, when to give up

pub mod arrivals;
pub mod bus;
pub mod effects;
pub mod envelope;
pub mod heartbeat;
pub mod homes;
pub mod limiter;
pub mod links;
pub mod state;
pub mod timers;

pub use effects::{Effects, Wire};
pub use state::{Hub, HubConfig, Input, Outcome};
