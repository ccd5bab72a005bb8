//! The head of a request: request line and header fields, RFC 9112.

use std::mem::MaybeUninit;

use httparse::{Error, Status};

/// What a request head may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadLimits {
    /// Bytes from the request line to the empty line, both included.
    pub bytes_max: usize,
    /// Header fields; more than [`HEADERS_MAX`] are never taken.
    pub headers_max: usize,
}

/// Most header fields that any [`HeadLimits`] can allow.
pub const HEADERS_MAX: usize = 128;

impl Default for HeadLimits {
    fn default() -> Self {
        Self { bytes_max: 8 * 1024, headers_max: 64 }
    }
}

/// What the bytes of a connection are so far.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// A head that may yet become valid: read on.
    Partial,
    /// More than the limits allow: 431.
    TooLong,
    /// No request, with what is wrong: 400.
    Malformed(&'static str),
    /// A whole head.
    Request(Request<'a>),
}

/// A request without a body. It borrows from the buffer it was read from.
#[derive(Debug)]
pub struct Request<'a> {
    /// As it came: methods are case-sensitive.
    pub method: &'a str,
    /// The target's path, not decoded.
    pub path: &'a str,
    /// What follows the first `?` of the target, not decoded.
    pub query: Option<&'a str>,
    /// Bytes of the head; what lies behind belongs to the protocol that follows.
    pub consumed: usize,
    version_minor: u8,
    headers: Vec<httparse::Header<'a>>,
}

/// Reads a head from the front of `buf`, which holds everything that has come on this connection.
pub fn parse<'a>(buf: &'a [u8], limits: &HeadLimits) -> Parsed<'a> {
    if let Some(reason) = other_protocol(buf) {
        return Parsed::Malformed(reason);
    }
    let mut storage = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let headers_max = limits.headers_max.min(HEADERS_MAX);
    let mut parser = httparse::Request::new(&mut []);
    let consumed = match parser.parse_with_uninit_headers(buf, &mut storage[..headers_max]) {
        Ok(Status::Complete(consumed)) if consumed <= limits.bytes_max => consumed,
        Ok(Status::Partial) if buf.len() < limits.bytes_max => return Parsed::Partial,
        Ok(_) | Err(Error::TooManyHeaders) => return Parsed::TooLong,
        Err(error) => return Parsed::Malformed(reason(error)),
    };
    let (Some(method), Some(target), Some(version_minor)) = (parser.method, parser.path, parser.version) else {
        return Parsed::Malformed("request line");
    };
    let Some((path, query)) = split_target(target) else { return Parsed::Malformed("request target") };
    let request = Request { method, path, query, consumed, version_minor, headers: parser.headers.to_vec() };
    if matches!(method, "GET" | "HEAD") && request.announces_body() {
        return Parsed::Malformed("body in a GET request");
    }
    Parsed::Request(request)
}

impl<'a> Request<'a> {
    /// The first header field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.header_all(name).next()
    }

    /// Every header field of that name, in any case, in the order they came.
    pub fn header_all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The elements of a comma-separated list, over all fields of that name; empty ones are left out (RFC 9110 5.6.1).
    pub fn list(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.header_all(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|element| !element.is_empty())
    }

    /// Whether a comma-separated list holds `token`, in any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The x of HTTP/1.x: 0 or 1.
    pub fn version_minor(&self) -> u8 {
        self.version_minor
    }

    /// RFC 9112 6: a body follows if and only if one of these fields says so. A length that is not `0` is taken for one.
    fn announces_body(&self) -> bool {
        self.header("transfer-encoding").is_some() || self.header_all("content-length").any(|value| value != b"0")
    }
}

/// Path and query of a target. RFC 9112 3.2: a server takes the origin form `/ws?a=b` and the absolute form
/// `http://host/ws?a=b`; `*` is a target of its own.
fn split_target(target: &str) -> Option<(&str, Option<&str>)> {
    let origin = match target.split_once("://") {
        _ if target.starts_with(['/', '*']) => target,
        Some((_scheme, rest)) => match rest.find(['/', '?']) {
            Some(at) => &rest[at..],
            None => "/",
        },
        None => return None,
    };
    Some(match origin.split_once('?') {
        Some(("", query)) => ("/", Some(query)),
        Some((path, query)) => (path, Some(query)),
        None => (origin, None),
    })
}

/// Peers that speak something else get told so, as soon as their first bytes show it.
fn other_protocol(buf: &[u8]) -> Option<&'static str> {
    match buf {
        [0x16, ..] => Some("TLS on a plain port"),
        [b'\r', b'\n', b'\r', b'\n', 0, ..] => {
            Some("PROXY protocol v2 header, which only a port with `--listen ADDR,proxy` takes")
        }
        _ if buf.starts_with(b"PROXY ") => {
            Some("PROXY protocol v1 header, which only a port with `--listen ADDR,proxy` takes")
        }
        _ if buf.starts_with(b"PRI * HTTP/2") => Some("HTTP/2, where HTTP/1.1 is spoken"),
        _ => None,
    }
}

fn reason(error: Error) -> &'static str {
    match error {
        Error::HeaderName => "header name",
        Error::HeaderValue => "header value",
        Error::NewLine => "line end",
        Error::Version => "HTTP version",
        Error::Token => "request line",
        Error::Status | Error::TooManyHeaders => "request head",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { bytes_max: 200, headers_max: 4 };

    fn request(head: &str) -> Request<'_> {
        match parse(head.as_bytes(), &LIMITS) {
            Parsed::Request(request) => request,
            other => panic!("{head:?}: {other:?}"),
        }
    }

    fn malformed(head: &[u8]) -> &'static str {
        match parse(head, &LIMITS) {
            Parsed::Malformed(reason) => reason,
            other => panic!("{head:?}: {other:?}"),
        }
    }

    #[test]
    fn a_head_and_what_lies_behind() {
        let head = "GET /ws?user_id=a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nconnection:foo\r\n\r\n";
        let with_more = format!("{head}\u{1}more");
        let request = request(&with_more);
        assert_eq!((request.method, request.path, request.query), ("GET", "/ws", Some("user_id=a")));
        assert_eq!((request.consumed, request.version_minor()), (head.len(), 1));
        assert_eq!(request.header("HOST"), Some(&b"x"[..]));
        assert_eq!(request.header("origin"), None);
        assert_eq!(request.header_all("Connection").collect::<Vec<_>>(), [&b"keep-alive, Upgrade"[..], b"foo"]);
        assert_eq!(request.list("connection").collect::<Vec<_>>(), [&b"keep-alive"[..], b"Upgrade", b"foo"]);
        assert!(request.has_token("connection", "upgrade") && request.has_token("connection", "FOO"));
        assert!(!request.has_token("connection", "keep") && !request.has_token("upgrade", "upgrade"));
        for cut in 0..head.len() {
            assert!(matches!(parse(&head.as_bytes()[..cut], &LIMITS), Parsed::Partial), "cut at {cut}");
        }
    }

    #[test]
    fn forms_of_the_target() {
        let cases = [
            ("/", ("/", None)),
            ("/a/b?", ("/a/b", Some(""))),
            ("/a?b?c", ("/a", Some("b?c"))),
            ("/a?u=http://x/y", ("/a", Some("u=http://x/y"))),
            ("*", ("*", None)),
            ("http://h:80/ws?x=1", ("/ws", Some("x=1"))),
            ("http://h", ("/", None)),
            ("http://h?x=/1", ("/", Some("x=/1"))),
        ];
        for (target, expected) in cases {
            let head = format!("OPTIONS {target} HTTP/1.0\r\n\r\n");
            let request = request(&head);
            assert_eq!((request.path, request.query), expected, "{target}");
            assert_eq!(request.version_minor(), 0);
        }
        assert_eq!(malformed(b"CONNECT host:443 HTTP/1.1\r\n\r\n"), "request target");
    }

    #[test]
    fn limits_hold_for_whole_and_for_cut_heads() {
        let head = |bytes: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(bytes - 23));
        assert_eq!(request(&head(200)).consumed, 200);
        assert!(matches!(parse(head(201).as_bytes(), &LIMITS), Parsed::TooLong));
        assert!(matches!(parse(&head(300).as_bytes()[..199], &LIMITS), Parsed::Partial));
        assert!(matches!(parse(&head(300).as_bytes()[..200], &LIMITS), Parsed::TooLong));
        let fields = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a:b\r\n".repeat(count));
        assert_eq!(request(&fields(4)).header_all("a").count(), 4);
        assert!(matches!(parse(fields(5).as_bytes(), &LIMITS), Parsed::TooLong));
        let wide = HeadLimits { bytes_max: 8192, headers_max: usize::MAX };
        assert!(matches!(parse(fields(HEADERS_MAX).as_bytes(), &wide), Parsed::Request(_)));
        assert!(matches!(parse(fields(HEADERS_MAX + 1).as_bytes(), &wide), Parsed::TooLong));
    }

    #[test]
    fn other_protocols_are_named_at_once() {
        assert_eq!(malformed(b"\x16"), "TLS on a plain port");
        assert_eq!(malformed(b"\x16\x03\x01\x02\x00"), "TLS on a plain port");
        assert_eq!(malformed(b"\r\n\r\n\0\r\nQUIT\n").split(',').next(), Some("PROXY protocol v2 header"));
        assert_eq!(malformed(b"PROXY TCP4 1.2.3.4").split(',').next(), Some("PROXY protocol v1 header"));
        assert_eq!(malformed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "HTTP/2, where HTTP/1.1 is spoken");
        assert_eq!(malformed(b"\x00"), "request line");
        assert_eq!(malformed(b"\xff\xfe"), "request line");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(malformed(b"GET / HTTP/3.0\r\n\r\n"), "HTTP version");
        assert_eq!(malformed(b"GET /\r\n\r\n"), "request line");
        assert_eq!(malformed(b"GET /\xff HTTP/1.1\r\n\r\n"), "request line");
        assert_eq!(malformed(b"GET / HTTP/1.1\r\nA B: c\r\n\r\n"), "header name");
        assert_eq!(malformed(b"GET / HTTP/1.1\r\nA: \x01\r\n\r\n"), "header value");
        assert_eq!(malformed(b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n"), "header name");
        assert_eq!(malformed(b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n"), "header value");
    }

    #[test]
    fn a_get_has_no_body() {
        for method in ["GET", "HEAD"] {
            for field in ["Content-Length: 1", "content-length: x", "Transfer-Encoding: chunked"] {
                let head = format!("{method} / HTTP/1.1\r\n{field}\r\n\r\n");
                assert_eq!(malformed(head.as_bytes()), "body in a GET request", "{head}");
            }
            assert_eq!(request(&format!("{method} / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")).method, method);
        }
        // Another method gets its answer from whoever knows the path: 404 or 405.
        assert_eq!(request("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").method, "POST");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

        /// Method: heads that are nearly right, with bytes replaced, read at every length. What was decided once stays so.
        #[test]
        fn a_verdict_never_changes_with_more_bytes(
            mut head in "(GET|HEAD|POST) (/|http://)[a-z?%/]{0,9} HTTP/1[.][01]\r\n([A-Za-z-]{1,9}:[ -~]{0,60}\r\n){0,5}\r\nmore"
                .prop_map(String::into_bytes),
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3),
        ) {
            for (at, byte) in flips {
                let at = at.index(head.len());
                head[at] = byte;
            }
            let verdict = |len: usize| match parse(&head[..len], &LIMITS) {
                Parsed::Partial => None,
                Parsed::TooLong => Some(Err("")),
                Parsed::Malformed(reason) => Some(Err(reason)),
                Parsed::Request(request) => Some(Ok(request.consumed)),
            };
            let mut first = None;
            for len in 0..=head.len() {
                let now = verdict(len);
                match (first, now) {
                    (None, _) => first = now,
                    (Some(Ok(_)), _) => prop_assert_eq!(now, first, "at {}", len),
                    // Which fault is told may change, that there is one may not.
                    (Some(Err(_)), _) => prop_assert!(matches!(now, Some(Err(_))), "{now:?} at {len}"),
                }
            }
        }
    }
}
