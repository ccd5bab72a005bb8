//! Small plain responses. Each ends its connection.

use std::borrow::Cow;

/// A status, a few header fields and a short body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response<'a> {
    /// The status code.
    pub status: u16,
    /// The type of the body.
    pub content_type: &'static str,
    /// Further fields. Values must hold no line end.
    pub headers: Vec<(&'static str, Cow<'a, str>)>,
    /// The body.
    pub body: Cow<'a, [u8]>,
}

/// Type of a plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// Type of a JSON document.
pub const JSON: &str = "application/json";
/// Type of the metrics, as Prometheus wants it.
pub const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

impl<'a> Response<'a> {
    /// A response without further fields.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { status, content_type, headers: Vec::new(), body: body.into() }
    }

    /// A short text, for people.
    pub fn text(status: u16, body: &'a str) -> Self {
        Self::new(status, TEXT, body.as_bytes())
    }

    /// 200 with a JSON document.
    pub fn json(body: impl Into<Cow<'a, [u8]>>) -> Self {
        Self::new(200, JSON, body)
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::text(404, "not found\n")
    }

    /// 405, with the methods that are allowed, as in `GET, HEAD`.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self::text(405, "method not allowed\n").with_header("Allow", allow)
    }

    /// 408: no head within its deadline.
    pub fn head_timeout() -> Self {
        Self::text(408, "the request head did not arrive in time\n")
    }

    /// 431: the head passes its limits.
    pub fn head_too_long() -> Self {
        Self::text(431, "the request head is too long\n")
    }

    /// 400, with what is wrong.
    pub fn bad_request(reason: &str) -> Self {
        Self::new(400, TEXT, format!("bad request: {reason}\n").into_bytes())
    }

    /// 429 or 503, with the seconds after which it is worth trying again.
    pub fn retry_after(status: u16, seconds: u32, body: &'a str) -> Self {
        Self::text(status, body).with_header("Retry-After", seconds.to_string())
    }

    /// The same with one more field.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'a, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Appends the response. To a HEAD request goes all but the body (RFC 9110 9.3.2).
    pub fn write(&self, is_head: bool, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        put(out, &["HTTP/1.1 ", number.format(self.status), " ", reason_phrase(self.status), "\r\n"]);
        // RFC 9110 7.8: an Upgrade field is named by Connection as well.
        let upgrades = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("upgrade"));
        put(out, &["Connection: ", if upgrades { "upgrade, close" } else { "close" }, "\r\n"]);
        put(out, &["Cache-Control: no-store\r\nContent-Type: ", self.content_type, "\r\n"]);
        put(out, &["Content-Length: ", number.format(self.body.len()), "\r\n"]);
        for (name, value) in &self.headers {
            debug_assert!(!value.contains(['\r', '\n']), "a line end in {name}");
            put(out, &[name, ": ", value, "\r\n"]);
        }
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(&self.body);
        }
    }
}

fn put(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The phrase of RFC 9110 15; empty for a status that the gateway never gives.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(response: &Response<'_>, is_head: bool) -> String {
        let mut out = vec![];
        response.write(is_head, &mut out);
        // An independent reader finds it well-formed.
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parser = httparse::Response::new(&mut headers);
        assert!(parser.parse(&out).expect("well-formed").is_complete());
        assert_eq!(parser.code, Some(response.status));
        assert!(!parser.reason.unwrap_or_default().is_empty(), "{} has no phrase", response.status);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_get_and_a_head_differ_in_the_body_only() {
        let response = Response::json(br#"{"status":"ok"}"#.as_slice());
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-store\r\n\
                    Content-Type: application/json\r\nContent-Length: 15\r\n\r\n";
        assert_eq!(written(&response, true), head);
        assert_eq!(written(&response, false), format!("{head}{{\"status\":\"ok\"}}"));
    }

    #[test]
    fn the_responses_of_the_contract() {
        assert!(written(&Response::not_found(), false).starts_with("HTTP/1.1 404 Not Found\r\n"));
        assert!(written(&Response::head_timeout(), false).starts_with("HTTP/1.1 408 Request Timeout\r\n"));
        assert!(written(&Response::head_too_long(), false).starts_with("HTTP/1.1 431 "));
        assert!(written(&Response::method_not_allowed("GET, HEAD"), false).contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(written(&Response::retry_after(503, 7, "full\n"), false).contains("\r\nRetry-After: 7\r\n"));
        assert!(written(&Response::retry_after(429, 60, ""), false).starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
        assert!(
            written(&Response::bad_request("HTTP version"), false).ends_with("\r\n\r\nbad request: HTTP version\n")
        );
    }

    #[test]
    fn an_upgrade_is_named_by_connection() {
        let response = Response::text(426, "").with_header("Upgrade", "websocket");
        let text = written(&response, false);
        assert!(
            text.contains("\r\nConnection: upgrade, close\r\n") && text.contains("\r\nUpgrade: websocket\r\n"),
            "{text}"
        );
    }
}
