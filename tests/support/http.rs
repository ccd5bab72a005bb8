//! Plain HTTP/1.1, written and read by hand so that a test sees what is on the wire.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::DEADLINE;

/// An answer as it came.
#[derive(Debug)]
pub struct Response {
    /// The number of the status line.
    pub status: u16,
    /// Names as they came, values trimmed.
    pub headers: Vec<(String, String)>,
    /// As many bytes as `Content-Length` says, else all up to the end of the stream; none after a 101.
    pub body: Vec<u8>,
    /// Bytes after the answer: the first frames after a 101.
    pub rest: Vec<u8>,
}

impl Response {
    /// The first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is UTF-8")
    }

    /// The seconds of `Retry-After`.
    pub fn retry_after(&self) -> u64 {
        let value = self.header("retry-after").unwrap_or_else(|| panic!("no Retry-After in {self:?}"));
        value.parse().unwrap_or_else(|_| panic!("Retry-After {value:?} is no number of seconds"))
    }
}

/// A connection to `addr` whose reads and writes fail after the usual deadline.
pub fn open(addr: SocketAddr) -> TcpStream {
    open_from(None, addr)
}

/// The same from a given source address, which on the loopback may be any of 127.0.0.0/8.
pub fn open_from(source: Option<IpAddr>, addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("a socket");
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into()).expect("a source address");
    }
    socket.connect_timeout(&addr.into(), DEADLINE).expect("the gateway accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).expect("a read timeout");
    stream.set_write_timeout(Some(DEADLINE)).expect("a write timeout");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// `GET path` on a connection of its own.
pub fn get(addr: SocketAddr, path: &str) -> Response {
    request(addr, format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"))
}

/// Sends `head` as it stands on a connection of its own, and reads the answer.
pub fn request(addr: SocketAddr, head: impl AsRef<[u8]>) -> Response {
    let mut stream = open(addr);
    stream.write_all(head.as_ref()).expect("the request is taken");
    read_response(&mut stream)
}

/// A well-formed upgrade request for `target`, for example `/ws?user_id=alice`.
pub fn upgrade_head(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// `/ws` with this user id in the query, every byte but letters and digits percent-encoded.
pub fn ws_target(user: &str) -> String {
    let mut target = String::from("/ws?user_id=");
    for byte in user.bytes() {
        if byte.is_ascii_alphanumeric() {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
    target
}

/// Reads one answer.
///
/// # Panics
/// When the stream ends or its read timeout passes before the answer is whole.
pub fn read_response(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        assert!(
            read_some(stream, &mut bytes) > 0,
            "the stream ended within a head: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).expect("a head is ASCII");
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("a status line, not {status_line:?}"));
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, headers, body: Vec::new(), rest: bytes.split_off(head_end) };
    if status == 101 {
        return response;
    }
    match response.header("content-length").map(|text| text.parse::<usize>().expect("a length")) {
        Some(length) => {
            while response.rest.len() < length {
                assert!(read_some(stream, &mut response.rest) > 0, "the stream ended within a body");
            }
            let rest = response.rest.split_off(length);
            response.body = std::mem::replace(&mut response.rest, rest);
        }
        None => {
            while read_some(stream, &mut response.rest) > 0 {}
            response.body = std::mem::take(&mut response.rest);
        }
    }
    response
}

/// Appends what one read gives; 0 at the end of the stream.
fn read_some(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> usize {
    let mut piece = [0; 16 * 1024];
    let count = stream.read(&mut piece).expect("an answer before the deadline");
    bytes.extend_from_slice(&piece[..count]);
    count
}
