//! One answer of `/metrics`, over a connection of its own.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::exposition::{ParseError, Scrape};

/// Where a node's metrics are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port`, with an IPv6 address in brackets.
    authority: String,
    path: String,
}

/// The port of `--admin-listen`, unless an address names its own.
const PORT: u16 = 8081;

impl Target {
    /// Reads `http://host:port`, with `/metrics` or another path behind it or not, or `host:port` alone.
    ///
    /// # Errors
    /// What is wrong with it, and what it should be.
    pub fn parse(text: &str) -> Result<Target, String> {
        let refused = |why: &str| Err(format!("--admin {text}: {why}; expected a URL such as http://127.0.0.1:8081"));
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return refused("the admin listener speaks plain HTTP, not TLS"),
            Some(_) => return refused("not an http URL"),
            None => text,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.len() > 1 { path } else { "/metrics" };
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an address in brackets are its own.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port > 0)),
            _ => (authority, Some(PORT)),
        };
        let is_clean = !rest.chars().any(|c| c.is_whitespace() || c.is_control() || c == '@');
        match port {
            _ if host.is_empty() => refused("no host"),
            _ if !is_clean => refused("neither blanks nor user names belong in it"),
            None => refused("no port"),
            Some(port) => Ok(Target { authority: format!("{host}:{port}"), path: path.to_owned() }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// Why there is no scrape.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody answered.
    #[error("{target}: {error}: no node answers there; is it its --admin-listen?")]
    Unreachable {
        /// Where.
        target: Target,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody answered something else.
    #[error("{target}: answered {status:?}; a node shows its metrics on --admin-listen, not on --listen")]
    Refused {
        /// Where.
        target: Target,
        /// The status line.
        status: String,
    },
    /// An answer that cannot be read.
    #[error("{target}: not the metrics of a node: {why}")]
    Foreign {
        /// Where.
        target: Target,
        /// What is wrong with it.
        why: String,
    },
}

/// From the name to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A node of 1024 shards answers with about 8 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks once, within five seconds.
///
/// # Errors
/// See [`FetchError`].
pub fn fetch(target: &Target) -> Result<Scrape, FetchError> {
    let answer = ask(target).map_err(|error| FetchError::Unreachable { target: target.clone(), error })?;
    understand(target, answer)
}

fn understand(target: &Target, answer: Vec<u8>) -> Result<Scrape, FetchError> {
    let foreign = |why: &str| FetchError::Foreign { target: target.clone(), why: why.to_owned() };
    let text = String::from_utf8(answer).map_err(|_| foreign("the answer is not UTF-8"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| foreign("the answer is not HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    match status.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1)) {
        None => return Err(foreign("the answer is not HTTP")),
        Some("200") => {}
        Some(_) => return Err(FetchError::Refused { target: target.clone(), status: status.to_owned() }),
    }
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value.trim());
    if length.filter_map(|value| value.parse().ok()).any(|length: usize| length > body.len()) {
        return Err(foreign("the answer was cut off"));
    }
    let scrape = Scrape::parse(body).map_err(|error: ParseError| foreign(&error.to_string()))?;
    if scrape.named("ringmesh_node_info").is_empty() {
        return Err(foreign("it lacks ringmesh_node_info"));
    }
    Ok(scrape)
}

fn ask(target: &Target) -> io::Result<Vec<u8>> {
    let end = Instant::now() + TIMEOUT;
    let mut refusal = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in target.authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, left(end)?) {
            Ok(stream) => return converse(stream, target, end),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn converse(mut stream: TcpStream, target: &Target, end: Instant) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(left(end)?))?;
    // Version 1.0: the answer ends with the connection and comes in one piece.
    write!(stream, "GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", target.path, target.authority)?;
    let mut answer = Vec::new();
    let mut piece = [0; 64 * 1024];
    while answer.len() < ANSWER_BYTES_MAX {
        stream.set_read_timeout(Some(left(end)?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_late()),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"))
}

/// What is left until `end`: never nothing, which sockets would take for no limit.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(too_late()) } else { Ok(left) }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no whole answer within {TIMEOUT:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_usual_form() {
        for (text, shown) in [
            ("http://127.0.0.1:8081", "http://127.0.0.1:8081/metrics"),
            ("http://node-1:9000/", "http://node-1:9000/metrics"),
            ("http://node-1/a/metrics", "http://node-1:8081/a/metrics"),
            ("127.0.0.1:9999", "http://127.0.0.1:9999/metrics"),
            ("node-1", "http://node-1:8081/metrics"),
            ("http://[::1]:8081", "http://[::1]:8081/metrics"),
            ("[::1]", "http://[::1]:8081/metrics"),
        ] {
            assert_eq!(Target::parse(text).expect(text).to_string(), shown);
        }
        for (text, why) in [
            ("https://a:1", "plain HTTP, not TLS"),
            ("ftp://a:1", "not an http URL"),
            ("http://", "no host"),
            (":8081", "no host"),
            ("a:0", "no port"),
            ("a:http", "no port"),
            ("http://u:p@a:1", "neither blanks nor user names"),
            ("a b:1", "neither blanks nor user names"),
        ] {
            let told = Target::parse(text).expect_err(text);
            assert!(told.contains(why) && told.contains("expected a URL such as"), "{text}: {told}");
        }
    }

    #[test]
    fn what_is_no_node_is_told_apart() {
        let target = Target::parse("a").expect("right");
        let told = |answer: &str| understand(&target, answer.into()).map(drop).map_err(|error| error.to_string());
        let ok = "HTTP/1.1 200 OK\r\n\r\nringmesh_node_info{node_id=\"n\"} 1\n";
        assert_eq!(told(ok), Ok(()));
        for (answer, why) in [
            ("", "the answer is not HTTP"),
            ("SSH-2.0\r\n\r\n", "the answer is not HTTP"),
            ("HTTP/1.1 404 Not Found\r\n\r\n", "answered \"HTTP/1.1 404 Not Found\"; a node shows its metrics on"),
            ("HTTP/1.1 200 OK\r\n\r\nup 1\n", "lacks ringmesh_node_info"),
            ("HTTP/1.1 200 OK\r\n\r\n\n<html>\n", "line 2: no metric name"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nup 1\n", "was cut off"),
        ] {
            let error = told(answer).expect_err(answer);
            assert!(error.contains(why), "{answer}: {error}");
        }
    }
}
