//! What clients say and what they are told: commands, replies, and the reasons for which the gateway ends a connection.
//!
//! All of it is pure: text in, values out; values in, wire bytes out.

pub mod command;
pub mod disconnect;
pub mod reply;

pub use command::{Command, CommandError};
pub use disconnect::Disconnect;
