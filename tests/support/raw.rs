//! A client that puts each byte on the wire itself, for all that a proper library refuses to send.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::{DEADLINE, http};

/// Opcodes of RFC 6455, section 5.2.
pub mod opcode {
    pub const CONTINUATION: u8 = 0x0;
    pub const TEXT: u8 = 0x1;
    pub const BINARY: u8 = 0x2;
    pub const CLOSE: u8 = 0x8;
    pub const PING: u8 = 0x9;
    pub const PONG: u8 = 0xa;
}

/// The FIN bit.
pub const FIN: u8 = 0x80;

/// The key that masks every frame of these tests; a fixed one makes failures readable.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame that came from the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN and RSV bits and the opcode.
    pub first_byte: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The opcode alone.
    pub fn opcode(&self) -> u8 {
        self.first_byte & 0x0f
    }

    /// The code and the reason of a Close frame.
    pub fn close(&self) -> Option<(u16, String)> {
        let (code, reason) = self.payload.split_first_chunk::<2>()?;
        let reason = String::from_utf8(reason.to_vec()).expect("a reason is UTF-8");
        (self.opcode() == opcode::CLOSE).then(|| (u16::from_be_bytes(*code), reason))
    }
}

/// A masked client frame whose first byte is given.
pub fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first_byte, payload.len() as u64);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// A whole text message.
pub fn text(payload: &str) -> Vec<u8> {
    frame(FIN | opcode::TEXT, payload.as_bytes())
}

/// The header of a masked frame that claims so many bytes, in the shortest form.
pub fn header(first_byte: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first_byte];
    match length {
        0..126 => bytes.push(0x80 | length as u8),
        126..0x1_0000 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes
}

/// A connection after its 101.
pub struct RawClient {
    /// The socket.
    pub stream: TcpStream,
    unread: Vec<u8>,
}

impl RawClient {
    /// Upgrades as `user`.
    pub fn connect(addr: SocketAddr, user: &str) -> RawClient {
        RawClient::upgrade(http::open(addr), user)
    }

    /// Upgrades as `user` on a socket that is connected.
    pub fn upgrade(stream: TcpStream, user: &str) -> RawClient {
        RawClient::upgrade_to(stream, &http::ws_target(user))
    }

    /// Upgrades with any target on a socket that is connected.
    pub fn upgrade_to(mut stream: TcpStream, target: &str) -> RawClient {
        stream.write_all(http::upgrade_head(target).as_bytes()).expect("the head is taken");
        RawClient::after_head(stream)
    }

    /// Reads the 101 on a socket where the head has been sent.
    pub fn after_head(mut stream: TcpStream) -> RawClient {
        let response = http::read_response(&mut stream);
        assert_eq!(response.status, 101, "{response:?}");
        RawClient { stream, unread: response.rest }
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the gateway takes the bytes");
    }

    /// Writes as much as the gateway takes; one that has closed the connection takes no more, and that is no failure.
    pub fn send_while_taken(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame, or `None` at the end of the stream, be it orderly or a reset.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            let mut piece = [0; 64 * 1024];
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    assert!(self.unread.is_empty(), "the stream ends within a frame");
                    return None;
                }
                Ok(count) => self.unread.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame within {DEADLINE:?}: {error}"),
            }
        }
    }

    /// The next frame that is not a Ping.
    pub fn next_but_pings(&mut self) -> Option<Frame> {
        loop {
            match self.next() {
                Some(frame) if frame.opcode() == opcode::PING => {}
                other => return other,
            }
        }
    }

    /// The next frame but pings must be a text with this JSON.
    #[track_caller]
    pub fn expect(&mut self, expected: &Value) {
        let frame = self.next_but_pings().unwrap_or_else(|| panic!("the stream ends, not {expected}"));
        assert_eq!(frame.first_byte, FIN | opcode::TEXT, "waiting for {expected}: {frame:?}");
        let got: Value = serde_json::from_slice(&frame.payload).expect("JSON");
        assert_eq!(&got, expected);
    }

    /// The next frame but pings must be a Close with this code, and the stream must end after it; returns the reason.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        let frame = self.next_but_pings().unwrap_or_else(|| panic!("the stream ends with no Close {code}"));
        let (got, reason) = frame.close().unwrap_or_else(|| panic!("a Close {code}, not {frame:?}"));
        assert_eq!(got, code, "the close code, with reason {reason:?}");
        assert!(reason.len() <= 123, "RFC 6455 5.5: at most 125 bytes with the code, {reason:?}");
        // RFC 6455 7.1.1: the server closes the TCP connection first; it may wait for our Close frame before it does.
        let _ = self.send_while_taken(&frame_of_close(code));
        assert_eq!(self.next_but_pings(), None, "nothing may follow a Close");
        reason
    }

    /// Takes the first frame out of `unread`, once it is whole.
    fn take_frame(&mut self) -> Option<Frame> {
        let (payload, end) = frame_bounds(&self.unread)?;
        let frame = Frame { first_byte: self.unread[0], payload: self.unread[payload].to_vec() };
        self.unread.drain(..end);
        Some(frame)
    }
}

/// Where the payload of the frame at the front of `bytes` begins and ends, once the frame is whole.
pub fn frame_bounds(bytes: &[u8]) -> Option<(std::ops::Range<usize>, usize)> {
    let (&[_, second], rest) = bytes.split_first_chunk::<2>()?;
    assert_eq!(second & 0x80, 0, "RFC 6455 5.1: a server must not mask");
    let (length, header_bytes) = match second {
        126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*rest.first_chunk()?), 10),
        short => (u64::from(short), 2),
    };
    let end = header_bytes + usize::try_from(length).expect("a length that fits");
    (bytes.len() >= end).then_some((header_bytes..end, end))
}

/// A Close frame with this code and no reason.
pub fn frame_of_close(code: u16) -> Vec<u8> {
    frame(FIN | opcode::CLOSE, &code.to_be_bytes())
}
