//! The opening handshake from the client's side (RFC 6455 4.1). Pure.

use std::net::{SocketAddr, ToSocketAddrs};

/// The nonce of every handshake. It is no secret, and a constant one makes the expected answer a constant too.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// RFC 6455 1.3: the answer to [`KEY`].
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A response head that is longer is refused.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Where to connect and what to ask for.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server's address.
    pub address: SocketAddr,
    /// The `Host` header.
    host: String,
    /// Path and query.
    path: String,
}

/// Why a URL is of no use here.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Only plain WebSocket: TLS would measure the generator's cryptography.
    #[error("{0}: only ws:// URLs are supported")]
    Scheme(String),
    /// The name has no address.
    #[error("{0}: no such host, or no address for it")]
    Host(String),
}

impl Target {
    /// Reads `ws://host[:port][/path[?query]]` and resolves the host.
    ///
    /// # Errors
    /// For other schemes, and for hosts without an address.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let rest = url.strip_prefix("ws://").ok_or_else(|| TargetError::Scheme(url.to_owned()))?;
        let (host, path) = rest.find(['/', '?']).map_or((rest, "/"), |at| rest.split_at(at));
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { host.to_owned() } else { format!("{host}:80") };
        let address = with_port.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        let address = address.ok_or_else(|| TargetError::Host(url.to_owned()))?;
        Ok(Self { address, host: host.to_owned(), path })
    }

    /// Appends the upgrade request of one user.
    pub fn append_request(&self, user: &str, out: &mut Vec<u8>) {
        let Self { host, path, .. } = self;
        let separator = if path.contains('?') { '&' } else { '?' };
        let request = format!(
            "GET {path}{separator}user_id={user} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        out.extend_from_slice(request.as_bytes());
    }
}

/// Why the server did not become a WebSocket.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Another status than 101.
    #[error("HTTP {0}")]
    Status(u16),
    /// RFC 6455 4.1, step 4: the accept header is missing or wrong.
    #[error("wrong Sec-WebSocket-Accept")]
    Accept,
    /// No HTTP response at all.
    #[error("no HTTP response")]
    Malformed,
}

/// Bytes of the response head at the start of `input`, or `None` when it is not complete.
///
/// # Errors
/// When the response is no upgrade.
pub fn parse_response(input: &[u8]) -> Result<Option<usize>, UpgradeError> {
    let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else {
        return if input.len() > HEAD_BYTES_MAX { Err(UpgradeError::Malformed) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&input[..end]).map_err(|_| UpgradeError::Malformed)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status = status.and_then(|line| line.get(..3)).and_then(|code| code.parse::<u16>().ok());
    match status.ok_or(UpgradeError::Malformed)? {
        101 => {}
        other => return Err(UpgradeError::Status(other)),
    }
    let accepted = lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| name.trim().eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT);
    if accepted { Ok(Some(end + 4)) } else { Err(UpgradeError::Accept) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_give_host_path_and_query() {
        let target = Target::parse("ws://127.0.0.1:8080/ws?room=a").expect("a plain URL");
        assert_eq!(target.address, "127.0.0.1:8080".parse().expect("an address"));
        let mut request = Vec::new();
        target.append_request("u1", &mut request);
        let request = String::from_utf8(request).expect("text");
        assert!(request.starts_with("GET /ws?room=a&user_id=u1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"), "{request}");
        assert_eq!(Target::parse("ws://127.0.0.1").expect("no port").address.port(), 80);
        assert!(matches!(Target::parse("wss://127.0.0.1"), Err(TargetError::Scheme(_))));
    }

    #[test]
    fn an_upgrade_is_taken_once_complete_and_only_with_the_right_answer() {
        let head = format!("HTTP/1.1 101 Switching\r\nsec-websocket-ACCEPT: {ACCEPT}\r\n\r\n");
        let mut input = head.clone().into_bytes();
        input.extend([0x81, 0x00]);
        assert_eq!(parse_response(&input), Ok(Some(head.len())));
        assert_eq!(parse_response(&input[..head.len() - 1]), Ok(None));
        assert_eq!(parse_response(b"HTTP/1.1 101 x\r\nA: b\r\n\r\n"), Err(UpgradeError::Accept));
        assert_eq!(parse_response(b"HTTP/1.1 429 Too Many\r\n\r\n"), Err(UpgradeError::Status(429)));
        assert_eq!(parse_response(b"SSH-2.0-x\r\n\r\n"), Err(UpgradeError::Malformed));
    }
}
