//! Requests: the head of each new connection, answered, or turned into a question to the hub.

use crate::http::head::{self, Parsed};
use crate::http::query::{self, UserIdError};
use crate::http::response::Response;
use crate::http::routes::{self, Route};
use crate::hub::Input;
use crate::ids::ConnId;
use crate::ws::handshake;

use super::conn::{Farewell, Phase};
use super::run::Shard;

/// When to come back to a node that is full, in seconds.
const FULL_RETRY_AFTER: u32 = 5;
/// When to come back to a node that takes no connections now, in seconds.
const NOT_READY_RETRY_AFTER: u32 = 1;

/// What becomes of a request.
enum Answer {
    Respond(Vec<u8>, Farewell),
    /// A valid upgrade: the response that opens it, the user, and where the head ends.
    Ask {
        response: Vec<u8>,
        user: Option<String>,
        consumed: usize,
    },
}

impl Shard {
    /// Bytes of a request's head.
    pub(super) fn request_bytes(&mut self, id: ConnId, data: &[u8]) {
        let Some(conn) = self.sockets.get(id) else { return };
        let is_admin = conn.is_admin;
        let Some(mut request) = conn.extra().request.take() else { return };
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
            Parsed::Request(parsed) => self.answer(id, &parsed, is_admin),
        };
        match answer {
            Answer::Respond(response, farewell) => self.respond(id, &response, farewell),
            Answer::Ask { response, user, consumed } => {
                let address = request.peer.ip();
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

    /// The answer to a whole head.
    fn answer(&mut self, id: ConnId, request: &head::Request<'_>, is_admin: bool) -> Answer {
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
            Route::Connect => self.connect(id, request),
        }
    }

    /// A GET of `/ws`.
    fn connect(&mut self, id: ConnId, request: &head::Request<'_>) -> Answer {
        if !request.has_token("upgrade", "websocket") && request.header("sec-websocket-key").is_none() {
            return self.refuse(&handshake::Refusal::NotAnUpgrade.response());
        }
        if !self.sockets.node.takes_connections() {
            self.sockets.metrics.refused_not_ready.add(1);
            return respond(request, &Response::retry_after(503, NOT_READY_RETRY_AFTER, "node is stopping\n"));
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
        Answer::Ask { response, user, consumed: request.consumed }
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
        self.sockets.metrics.refused_timeout.add(1);
        let Some(conn) = self.sockets.get(id) else { return };
        let phase = conn.phase;
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
