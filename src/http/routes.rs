//! What each path of the two listeners is.

use super::head::Request;
use super::response::Response;

/// Where a request goes.
#[derive(Debug)]
pub enum Route {
    /// `GET /ws`: a WebSocket, if it asks for one.
    Connect,
    /// `GET /health`
    Health,
    /// `GET /ready`
    Ready,
    /// `GET /metrics`, on the admin listener.
    Metrics,
    /// Nothing of the above: 404 or 405.
    Respond(Response<'static>),
}

/// The route of a request that came to the public or to the admin listener.
pub fn route(request: &Request<'_>, is_admin: bool) -> Route {
    let route = match (request.path, is_admin) {
        ("/ws", false) => {
            return match request.method {
                "GET" => Route::Connect,
                _ => Route::Respond(Response::method_not_allowed("GET")),
            };
        }
        ("/health", _) => Route::Health,
        ("/ready", _) => Route::Ready,
        ("/metrics", true) => Route::Metrics,
        _ => return Route::Respond(Response::not_found()),
    };
    match request.method {
        "GET" | "HEAD" => route,
        _ => Route::Respond(Response::method_not_allowed("GET, HEAD")),
    }
}
