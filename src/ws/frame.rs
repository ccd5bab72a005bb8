//! The header of a client frame, RFC 6455 5.2.

use super::ProtocolError;

/// Payload bytes of a control frame, RFC 6455 5.5.
pub const CONTROL_BYTES_MAX: usize = 125;

/// Bytes of the longest client header: two, eight of length, four of masking key.
pub(super) const HEADER_BYTES_MAX: usize = 14;

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// The kinds of frames that there are, RFC 6455 5.2. Reserved ones are no values of this type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message that is open.
    Continuation = 0x0,
    /// The first fragment of a text message, or all of it.
    Text = 0x1,
    /// The first fragment of a binary message, or all of it.
    Binary = 0x2,
    /// The end of the connection.
    Close = 0x8,
    /// A question for a sign of life.
    Ping = 0x9,
    /// The answer to a ping.
    Pong = 0xa,
}

impl Opcode {
    /// From the lower four bits of `first`.
    #[inline]
    fn of(first: u8) -> Option<Self> {
        Some(match first & 0x0f {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping or pong.
    #[inline]
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// What the first bytes of a client frame say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// The last frame of its message.
    pub(super) fin: bool,
    /// What the payload is.
    pub(super) opcode: Opcode,
    /// The masking key.
    pub(super) key: [u8; 4],
    /// Bytes of this header, 6 to [`HEADER_BYTES_MAX`].
    pub(super) bytes: usize,
    /// Payload bytes that are to follow, as claimed; below 2^63.
    pub(super) payload_bytes: u64,
}

impl Header {
    /// Reads a header from the front of `bytes`; `None` while it has not all arrived. Faults of the bytes that are there
    /// are told at once, always in the order of the bytes, so that it makes no difference where a stream was cut.
    ///
    /// # Errors
    /// 1002 for whatever no client may send in any state.
    // Forced, here and along the way to the event: results handed over through memory cost 4 of 21 ns a small message.
    #[inline(always)]
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        // RFC 6455 5.2: reserved bits are 0 unless an extension was negotiated. RFC 7692 6 would take RSV1 (0x40) here, on
        // the first frame of a data message.
        if first & RSV != 0 {
            return Err(ProtocolError::violation("reserved bit set"));
        }
        let fin = first & FIN != 0;
        let Some(opcode) = Opcode::of(first) else {
            return Err(ProtocolError::violation("unknown opcode"));
        };
        // RFC 6455 5.5: control frames must not be fragmented.
        if opcode.is_control() && !fin {
            return Err(ProtocolError::violation("fragmented control frame"));
        }

        let Some(&second) = bytes.get(1) else { return Ok(None) };
        // RFC 6455 5.1: a server closes the connection upon a frame that is not masked.
        if second & MASKED == 0 {
            return Err(ProtocolError::violation("frame is not masked"));
        }
        let length = second & LENGTH;
        if opcode.is_control() && usize::from(length) > CONTROL_BYTES_MAX {
            return Err(ProtocolError::violation("control frame above 125 bytes"));
        }

        let (payload_bytes, key_at) = match length {
            126 => {
                let Some(field) = bytes[2..].first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*field)), 4)
            }
            127 => {
                let Some(field) = bytes[2..].first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*field), 10)
            }
            short => (u64::from(short), 2),
        };
        if key_at > 2 {
            // RFC 6455 5.2: the most significant bit of a 64-bit length is 0, and the shortest form must be used.
            if payload_bytes >> 63 != 0 {
                return Err(ProtocolError::violation("length above 2^63"));
            }
            if payload_bytes <= if key_at == 4 { 125 } else { 0xffff } {
                return Err(ProtocolError::violation("length not in its shortest form"));
            }
        }
        let Some(key) = bytes[key_at..].first_chunk() else { return Ok(None) };
        Ok(Some(Self { fin, opcode, key: *key, bytes: key_at + 4, payload_bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(bytes: &[u8]) -> &'static str {
        let error = Header::parse(bytes).expect_err("a header that no client may send");
        assert_eq!(error.code, 1002);
        error.reason
    }

    #[test]
    fn lengths_in_their_three_forms() {
        let cases: [(&[u8], usize, u64); 6] = [
            (b"\x81\x80ABCD", 6, 0),
            (b"\x81\xfdABCD", 6, 125),
            (b"\x81\xfe\0\x7eABCD", 8, 126),
            (b"\x81\xfe\xff\xffABCD", 8, 0xffff),
            (b"\x81\xff\0\0\0\0\0\x01\0\0ABCD", 14, 0x1_0000),
            (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xffABCD", 14, u64::MAX >> 1),
        ];
        for (bytes, header_bytes, payload_bytes) in cases {
            let header = Header { fin: true, opcode: Opcode::Text, key: *b"ABCD", bytes: header_bytes, payload_bytes };
            assert_eq!(Header::parse(bytes), Ok(Some(header)));
            for cut in 0..bytes.len() {
                assert_eq!(Header::parse(&bytes[..cut]), Ok(None), "cut at {cut}");
            }
        }
    }

    #[test]
    fn faults_are_told_by_the_byte_that_makes_them() {
        assert_eq!(reason(b"\xc1"), "reserved bit set");
        assert_eq!(reason(b"\xa1"), "reserved bit set");
        assert_eq!(reason(b"\x91"), "reserved bit set");
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            assert_eq!(reason(&[0x80 | opcode]), "unknown opcode");
        }
        for opcode in [8, 9, 10] {
            assert_eq!(reason(&[opcode]), "fragmented control frame");
            assert_eq!(reason(&[0x80 | opcode, 0xfe]), "control frame above 125 bytes");
            assert_eq!(reason(&[0x80 | opcode, 0xff]), "control frame above 125 bytes");
        }
        assert_eq!(reason(b"\x81\x05"), "frame is not masked");
        assert_eq!(reason(b"\x81\xfe\0\x7d"), "length not in its shortest form");
        assert_eq!(reason(b"\x81\xff\0\0\0\0\0\0\xff\xff"), "length not in its shortest form");
        assert_eq!(reason(b"\x81\xff\x80\0\0\0\0\0\0\0"), "length above 2^63");
    }
}
