//! The little of HTTP/1.1 that a WebSocket gateway needs, as pure functions: a request head in, a short response out.
//!
//! Every response closes its connection, so that no second request can hide behind the first.

pub mod forwarded;
pub mod head;
pub mod proxy_protocol;
pub mod query;
pub mod response;
pub mod routes;

pub use head::{HeadLimits, Parsed, Request};
pub use response::Response;
