//! The opening handshake, RFC 6455 4.2.

use tungstenite::handshake::derive_accept_key;

use crate::http::{Request, Response};

/// Why a request does not become a WebSocket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It doesn't ask for one: 426.
    NotAnUpgrade,
    /// It asks for another version than 13, or for none: 426.
    UnsupportedVersion,
    /// It asks for one, wrongly: 400, with what is wrong.
    Malformed(&'static str),
}

impl Refusal {
    /// The response that says so.
    pub fn response(self) -> Response<'static> {
        match self {
            Refusal::NotAnUpgrade => {
                Response::text(426, "this is a WebSocket endpoint\n").with_header("Upgrade", "websocket")
            }
            // RFC 6455 4.2.2: the versions that the server understands are named.
            Refusal::UnsupportedVersion => Response::text(426, "WebSocket version 13 is needed\n")
                .with_header("Upgrade", "websocket")
                .with_header("Sec-WebSocket-Version", "13"),
            Refusal::Malformed(reason) => Response::bad_request(reason),
        }
    }
}

/// A request that may become a WebSocket.
#[derive(Debug)]
pub struct Upgrade<'r> {
    /// The value of Sec-WebSocket-Accept, which proves that the request was understood.
    pub accept: String,
    request: &'r Request<'r>,
}

impl<'r> Upgrade<'r> {
    /// The subprotocols offered, the client's favourite first.
    pub fn protocols(&self) -> impl Iterator<Item = &'r str> {
        self.request.list("sec-websocket-protocol").filter_map(|element| str::from_utf8(element).ok())
    }

    /// The extensions offered, each with its parameters as in `permessage-deflate; client_max_window_bits`, the client's
    /// favourite first.
    pub fn extensions(&self) -> impl Iterator<Item = &'r str> {
        self.request.list("sec-websocket-extensions").filter_map(|element| str::from_utf8(element).ok())
    }
}

/// Checks a request against RFC 6455 4.2.1.
///
/// # Errors
/// Why the request is refused.
pub fn check<'r>(request: &'r Request<'r>) -> Result<Upgrade<'r>, Refusal> {
    let mut keys = request.header_all("sec-websocket-key");
    let key = keys.next();
    if !request.has_token("upgrade", "websocket") {
        // The key shows what was meant; Upgrade goes from hop to hop, and a proxy that isn't told to keeps it.
        return Err(match key {
            Some(_) => Refusal::Malformed("no Upgrade: websocket; does a proxy drop it?"),
            None => Refusal::NotAnUpgrade,
        });
    }
    if request.method != "GET" {
        return Err(Refusal::Malformed("an upgrade must be a GET"));
    }
    if request.version_minor() < 1 {
        return Err(Refusal::Malformed("an upgrade needs HTTP/1.1"));
    }
    if request.header_all("host").count() != 1 {
        return Err(Refusal::Malformed("one Host is needed"));
    }
    if !request.has_token("connection", "upgrade") {
        return Err(Refusal::Malformed("no Connection: Upgrade"));
    }
    if request.header("sec-websocket-version") != Some(b"13") {
        return Err(Refusal::UnsupportedVersion);
    }
    match key {
        Some(key) if is_key(key) && keys.next().is_none() => Ok(Upgrade { accept: derive_accept_key(key), request }),
        _ => Err(Refusal::Malformed("one Sec-WebSocket-Key of 16 bytes in base64 is needed")),
    }
}

/// Appends the response that ends the handshake, RFC 6455 4.2.2, with the subprotocol and the extensions that were chosen.
pub fn write_101(out: &mut Vec<u8>, accept: &str, subprotocol: Option<&str>, extensions: Option<&str>) {
    const START: &str =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ";
    out.extend_from_slice(START.as_bytes());
    out.extend_from_slice(accept.as_bytes());
    for (field, value) in [("Protocol", subprotocol), ("Extensions", extensions)] {
        if let Some(value) = value {
            for part in ["\r\nSec-WebSocket-", field, ": ", value] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// RFC 6455 4.1: 16 bytes in base64, which are 22 digits and two signs of padding.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    matches!(key, [digits @ .., b'=', b'='] if digits.len() == 22 && digits.iter().all(is_digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{HeadLimits, Parsed, parse};

    /// The request of RFC 6455 1.2.
    const EXAMPLE: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n\
        Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn with_checked<T>(head: &str, then: impl FnOnce(Result<Upgrade<'_>, Refusal>) -> T) -> T {
        match parse(head.as_bytes(), &HeadLimits::default()) {
            Parsed::Request(request) => then(check(&request)),
            other => panic!("{head}: {other:?}"),
        }
    }

    /// The refusal of the example with `from` replaced by `to`.
    fn refusal(from: &str, to: &str) -> Option<Refusal> {
        assert!(EXAMPLE.contains(from));
        with_checked(&EXAMPLE.replace(from, to), |checked| checked.err())
    }

    fn is_malformed(refusal: Option<Refusal>) -> bool {
        matches!(refusal, Some(Refusal::Malformed(_)))
    }

    #[test]
    fn the_example_of_the_rfc() {
        with_checked(EXAMPLE, |checked| {
            let upgrade = checked.expect("an upgrade");
            assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            assert_eq!(upgrade.protocols().collect::<Vec<_>>(), ["chat", "superchat"]);
            assert_eq!(upgrade.extensions().count(), 0);
            let mut out = vec![];
            write_101(&mut out, &upgrade.accept, upgrade.protocols().next(), None);
            let expected = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
            assert_eq!(String::from_utf8_lossy(&out), expected);
        });
    }

    #[test]
    fn spellings_that_browsers_and_proxies_use() {
        assert_eq!(refusal("Connection: Upgrade", "connection: keep-alive, upgrade"), None);
        assert_eq!(refusal("Upgrade: websocket", "UPGRADE: h2c, WebSocket"), None);
        assert_eq!(refusal("GET /chat", "GET http://server.example.com/chat"), None);
        let offers = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits,x\r\n\
            sec-websocket-extensions: y\r\n\r\n";
        with_checked(&EXAMPLE.replace("\r\n\r\n", &format!("\r\n{offers}")), |checked| {
            let upgrade = checked.expect("an upgrade");
            let extensions: Vec<_> = upgrade.extensions().collect();
            assert_eq!(extensions, ["permessage-deflate; client_max_window_bits", "x", "y"]);
            let mut out = vec![];
            write_101(&mut out, "A", None, Some("permessage-deflate"));
            assert!(out.ends_with(b"Accept: A\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"));
        });
    }

    #[test]
    fn what_is_no_upgrade() {
        let plain = "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(with_checked(plain, |checked| checked.err()), Some(Refusal::NotAnUpgrade));
        let h2c = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        assert_eq!(with_checked(h2c, |checked| checked.err()), Some(Refusal::NotAnUpgrade));
        assert!(is_malformed(refusal("Upgrade: websocket\r\n", "")));
    }

    #[test]
    fn versions() {
        for version in ["8", "14", "013", "13, 8", "", "x"] {
            let field = format!("Sec-WebSocket-Version: {version}");
            assert_eq!(refusal("Sec-WebSocket-Version: 13", &field), Some(Refusal::UnsupportedVersion), "{version}");
        }
        assert_eq!(refusal("Sec-WebSocket-Version: 13\r\n", ""), Some(Refusal::UnsupportedVersion));
    }

    #[test]
    fn malformed_ones() {
        for (from, to) in [
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("Host: server.example.com\r\n", ""),
            ("Host: server.example.com\r\n", "Host: a\r\nHost: b\r\n"),
            ("Connection: Upgrade\r\n", ""),
            ("Connection: Upgrade", "Connection: close"),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
            ("dGhlIHNhbXBsZSBub25jZQ==", ""),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQA="),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j_Q=="),
            ("Origin:", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin:"),
        ] {
            assert!(is_malformed(refusal(from, to)), "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn refusals_name_their_remedy() {
        let written = |refusal: Refusal| {
            let mut out = vec![];
            refusal.response().write(false, &mut out);
            String::from_utf8(out).expect("text")
        };
        let plain = written(Refusal::NotAnUpgrade);
        assert!(plain.starts_with("HTTP/1.1 426 ") && plain.contains("\r\nUpgrade: websocket\r\n"), "{plain}");
        let version = written(Refusal::UnsupportedVersion);
        assert!(
            version.starts_with("HTTP/1.1 426 ") && version.contains("\r\nSec-WebSocket-Version: 13\r\n"),
            "{version}"
        );
        assert!(written(Refusal::Malformed("one Host is needed")).ends_with("bad request: one Host is needed\n"));
    }
}
