//! Requests: the head of each new connection, answered, or turned into a question to the hub.

use std::net::IpAddr;
use std::time::Duration;

use crate::http::forwarded::{self, Told};
use crate::http::head::{self, Parsed};
use crate::http::proxy_protocol;
use crate::http::query::{self, UserIdError};
use crate::http::response::Response;
use crate::http::routes::{self, Route};
use crate::hub::Input;
use crate::hub::limiter::AddressKey;
use crate::ids::ConnId;
use crate::ws::handshake;

use super::conn::{Farewell, Phase, Request};
use super::finish::Cause;
use super::run::Shard;

/// When to come back to a node that is full, in seconds.
const FULL_RETRY_AFTER: u32 = 5;
/// When to come back to a node that takes no connections now, in seconds.
const NOT_READY_RETRY_AFTER: u32 = 1;

/// How often connections without the PROXY header that they should begin with are logged at most.
const NO_PROXY_HEADER_LOG_EVERY: Duration = Duration::from_secs(60);

/// What becomes of a request.
enum Answer {
    Respond(Vec<u8>, Farewell),
    /// A valid upgrade: the response that opens it, the user, and where the head ends.
    Ask {
        response: Vec<u8>,
        user: Option<String>,
        consumed: usize,
        /// Whose it is, and whether a proxy said so.
        address: IpAddr,
        is_forwarded: bool,
    },
}

impl Shard {
    /// Bytes of a request's head, or of the PROXY header in front of it.
    pub(super) fn request_bytes(&mut self, id: ConnId, mut data: &[u8]) {
        let Some(conn) = self.sockets.get(id) else { return };
        let is_admin = conn.is_admin;
        let Some(mut request) = conn.extra().request.take() else { return };
        if request.awaits_proxy_header {
            request.bytes.extend_from_slice(std::mem::take(&mut data));
            if let Err(reason) = self.take_proxy_header(&mut request) {
                return self.refuse_without_proxy_header(id, request.address, reason);
            }
            if request.awaits_proxy_header || request.bytes.is_empty() {
                if let Some(conn) = self.sockets.get(id) {
                    conn.extra().request = Some(request);
                }
                return;
            }
        }
        // Most heads arrive whole, and are read where they lie.
        let gathered = if request.bytes.is_empty() {
            data
        } else {
            request.bytes.extend_from_slice(data);
            &request.bytes
        };
        let answer = match head::parse(gathered, &self.sockets.config.head) {
            Parsed::Partial => {
                if request.bytes.is_empty() {
                    request.bytes = data.to_vec();
                }
                if let Some(conn) = self.sockets.get(id) {
                    conn.extra().request = Some(request);
                }
                return;
            }
            Parsed::TooLong => self.refuse(&Response::head_too_long()),
            Parsed::Malformed(reason) => self.refuse(&Response::bad_request(reason)),
            Parsed::Request(parsed) => self.answer(id, &parsed, is_admin, &request),
        };
        match answer {
            Answer::Respond(response, farewell) => self.respond(id, &response, farewell),
            Answer::Ask { response, user, consumed, address, is_forwarded } => {
                tracing::debug!(user, %address, is_forwarded, "asks for a connection");
                self.sockets.node.lone_address.ask(self.sockets.now, AddressKey::from(address));
                (request.address, request.is_forwarded) = (address, is_forwarded);
                request.response = response;
                request.bytes = gathered_behind(gathered, consumed);
                let Some(conn) = self.sockets.get(id) else { return };
                conn.phase = Phase::Waiting;
                conn.extra().request = Some(request);
                let input = Input::Ask { conn: id, user: user.as_deref(), address };
                self.hub.handle(self.sockets.now, input, &mut self.sockets);
            }
        }
    }

    /// Takes the PROXY header from the front of what has come, once it is whole. Else more is to come.
    fn take_proxy_header(&mut self, request: &mut Request) -> Result<(), &'static str> {
        let header = match proxy_protocol::parse(&request.bytes) {
            proxy_protocol::Parsed::Partial => return Ok(()),
            proxy_protocol::Parsed::Malformed(reason) => return Err(reason),
            proxy_protocol::Parsed::Header(header) => header,
        };
        request.bytes.drain(..header.consumed);
        request.awaits_proxy_header = false;
        let metrics = self.sockets.metrics;
        match header.source {
            None => {}
            Some(source) if self.sockets.config.trusted_proxies.contains(request.address) => {
                metrics.forwarded_believed.add(1);
                (request.address, request.is_forwarded) = (source.to_canonical(), true);
            }
            Some(_) => metrics.forwarded_untrusted.add(1),
        }
        Ok(())
    }

    /// Closes a connection that should have begun with a PROXY header.
    fn refuse_without_proxy_header(&mut self, id: ConnId, peer: IpAddr, reason: &'static str) {
        self.sockets.metrics.refused_proxy_header.add(1);
        if let Some(times) = self.no_proxy_header_log.due(self.sockets.now, NO_PROXY_HEADER_LOG_EVERY) {
            tracing::warn!(%peer, reason, times, "closing connections to a port with `,proxy` that begin without a PROXY header");
        }
        self.end(id, Cause::PeerGone);
    }

    /// The answer to a whole head, of a request that began as `from`.
    fn answer(&mut self, id: ConnId, request: &head::Request<'_>, is_admin: bool, from: &Request) -> Answer {
        match routes::route(request, is_admin) {
            Route::Respond(response) => {
                self.sockets.metrics.http_requests.add(1);
                respond(request, &response)
            }
            Route::Health => {
                self.sockets.metrics.http_requests.add(1);
                respond(request, &Response::json(self.sockets.node.health().into_bytes()))
            }
            Route::Ready => {
                self.sockets.metrics.http_requests.add(1);
                let response = match self.sockets.node.is_ready() {
                    true => Response::text(200, "ready\n"),
                    false => Response::retry_after(503, NOT_READY_RETRY_AFTER, "not taking connections\n"),
                };
                respond(request, &response)
            }
            Route::Metrics => {
                let text = self.sockets.node.metrics_text();
                respond(request, &Response::new(200, crate::http::response::METRICS, text.into_bytes()))
            }
            Route::Connect => self.connect(id, request, from),
        }
    }

    /// A GET of `/ws`.
    fn connect(&mut self, id: ConnId, request: &head::Request<'_>, from: &Request) -> Answer {
        if !request.has_token("upgrade", "websocket") && request.header("sec-websocket-key").is_none() {
            return self.refuse(&handshake::Refusal::NotAnUpgrade.response());
        }
        if let Some(why) = self.sockets.node.refusal() {
            self.sockets.metrics.refused_not_ready.add(1);
            return respond(request, &Response::retry_after(503, NOT_READY_RETRY_AFTER, why));
        }
        if !self.sockets.node.reserve_connection() {
            self.sockets.metrics.refused_capacity.add(1);
            return respond(request, &Response::retry_after(503, FULL_RETRY_AFTER, "node is full\n"));
        }
        if let Some(conn) = self.sockets.get(id) {
            conn.reserved = true;
        }
        let upgrade = match handshake::check(request) {
            Ok(upgrade) => upgrade,
            Err(refusal) => return self.refuse(&refusal.response()),
        };
        let user = match query::user_id(request.query) {
            Ok(user) => Some(user.into_owned()),
            Err(UserIdError::Missing) => None,
            Err(error @ (UserIdError::TooLong | UserIdError::NotUtf8)) => {
                return self.refuse(&Response::bad_request(&error.to_string()));
            }
        };
        let mut response = Vec::with_capacity(160);
        handshake::write_101(&mut response, &upgrade.accept, None, None);
        let (address, told) = forwarded::client(from.address, request, &self.sockets.config.trusted_proxies);
        let metrics = self.sockets.metrics;
        match told {
            Told::Nothing => {}
            Told::Believed => metrics.forwarded_believed.add(1),
            Told::Untrusted => metrics.forwarded_untrusted.add(1),
            Told::Unreadable => metrics.forwarded_unreadable.add(1),
        }
        let is_forwarded = from.is_forwarded || told == Told::Believed;
        Answer::Ask { response, user, consumed: request.consumed, address, is_forwarded }
    }

    fn refuse(&mut self, response: &Response<'_>) -> Answer {
        self.sockets.metrics.refused_handshake.add(1);
        let mut out = Vec::new();
        response.write(false, &mut out);
        Answer::Respond(out, Farewell::HalfClose)
    }

    /// Sends the one response of a connection that is none.
    fn respond(&mut self, id: ConnId, response: &[u8], farewell: Farewell) {
        self.sockets.queue(id, response);
        self.sockets.finish_request(id, farewell);
    }

    /// The deadline of a connection that has not opened has passed.
    pub(super) fn request_timed_out(&mut self, id: ConnId) {
        let Some(conn) = self.sockets.get(id) else { return };
        if let Some(request) = conn.extra().request.as_ref().filter(|request| request.awaits_proxy_header) {
            let peer = request.address;
            return self.refuse_without_proxy_header(id, peer, "no PROXY header in time");
        }
        let phase = conn.phase;
        self.sockets.metrics.refused_timeout.add(1);
        let mut out = Vec::new();
        match phase {
            Phase::Head => Response::head_timeout().write(false, &mut out),
            _ => {
                self.hub.handle(self.sockets.now, Input::Gone { conn: id }, &mut self.sockets);
                Response::retry_after(503, NOT_READY_RETRY_AFTER, "node is overloaded\n").write(false, &mut out);
            }
        }
        self.respond(id, &out, Farewell::HalfClose);
    }
}

/// The response to an address that asks for `/ws` too often.
pub(super) fn too_many_connects(retry_after: u32) -> Vec<u8> {
    let mut out = Vec::new();
    Response::retry_after(429, retry_after, "too many connections from this address\n").write(false, &mut out);
    out
}

/// The response to a user whom the other nodes could not be told of.
pub(super) fn not_registered() -> Vec<u8> {
    let mut out = Vec::new();
    Response::retry_after(503, NOT_READY_RETRY_AFTER, "the user could not be registered in time\n")
        .write(false, &mut out);
    out
}

fn respond(request: &head::Request<'_>, response: &Response<'_>) -> Answer {
    let mut out = Vec::new();
    response.write(request.method == "HEAD", &mut out);
    // A GET has no body: nothing is left unread.
    let farewell = if matches!(request.method, "GET" | "HEAD") { Farewell::Close } else { Farewell::HalfClose };
    Answer::Respond(out, farewell)
}

fn gathered_behind(bytes: &[u8], consumed: usize) -> Vec<u8> {
    bytes.get(consumed..).unwrap_or_default().to_vec()
}
