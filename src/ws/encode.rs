//! Server frames, RFC 6455 5.2: unmasked and unfragmented, encoded once whatever the number of receivers.

use super::{CONTROL_BYTES_MAX, Opcode};

/// Bytes of the longest server header: two, and eight of length.
pub const HEADER_BYTES_MAX: usize = 10;

/// Appends a text message. The caller vouches that it is UTF-8.
#[inline]
pub fn text(payload: &[u8], out: &mut Vec<u8>) {
    frame(Opcode::Text, payload, out);
}

/// Appends a binary message.
#[inline]
pub fn binary(payload: &[u8], out: &mut Vec<u8>) {
    frame(Opcode::Binary, payload, out);
}

/// Appends a ping.
///
/// # Panics
/// Above [`CONTROL_BYTES_MAX`] bytes.
pub fn ping(payload: &[u8], out: &mut Vec<u8>) {
    control(Opcode::Ping, payload, out);
}

/// Appends a pong; RFC 6455 5.5.3 has it carry what the ping carried.
///
/// # Panics
/// Above [`CONTROL_BYTES_MAX`] bytes.
pub fn pong(payload: &[u8], out: &mut Vec<u8>) {
    control(Opcode::Pong, payload, out);
}

/// Appends a Close frame. Of the reason goes out what a control frame holds, cut between two characters.
pub fn close(code: u16, reason: &str, out: &mut Vec<u8>) {
    let reason_bytes_max = reason.len().min(CONTROL_BYTES_MAX - 2);
    let cut = (0..=reason_bytes_max).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
    let reason = &reason[..cut];
    header(Opcode::Close, 2 + reason.len(), out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends the header of an unfragmented frame, for payloads that the caller appends, or sends from where they are.
#[inline]
pub fn header(opcode: Opcode, payload_bytes: usize, out: &mut Vec<u8>) {
    const FIN: u8 = 0x80;
    let first = FIN | opcode as u8;
    // RFC 6455 5.2: the length takes its shortest form.
    if payload_bytes <= 125 {
        out.extend_from_slice(&[first, payload_bytes as u8]);
    } else if let Ok(short) = u16::try_from(payload_bytes) {
        let [a, b] = short.to_be_bytes();
        out.extend_from_slice(&[first, 126, a, b]);
    } else {
        let [a, b, c, d, e, f, g, h] = (payload_bytes as u64).to_be_bytes();
        out.extend_from_slice(&[first, 127, a, b, c, d, e, f, g, h]);
    }
}

/// Where the frame ends in which byte `at` lies; `at` itself when a frame begins there. `bytes` are server frames and start
/// with a whole one. The last of them may be cut; then its end lies behind `bytes`.
///
/// A sender that gives up a queue finishes the frame it has begun with this, so that the Close frame can follow.
pub fn frame_end(bytes: &[u8], at: usize) -> usize {
    let mut end = 0;
    while end < at {
        match frame_bytes(&bytes[end..]) {
            Some(frame_bytes) => end = end.saturating_add(frame_bytes),
            None => return bytes.len(),
        }
    }
    end
}

/// How many whole server frames lie in `bytes`, which start with the first of them.
pub fn count_frames(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut frames = 0;
    while let Some(frame_bytes) = frame_bytes(rest)
        && let Some(behind) = rest.get(frame_bytes..)
    {
        rest = behind;
        frames += 1;
    }
    frames
}

/// Header and payload bytes of the server frame at the front of `bytes`, if its header is there.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let &[_, length] = bytes.first_chunk()?;
    Some(match length {
        126 => 4 + usize::from(u16::from_be_bytes(*bytes[2..].first_chunk()?)),
        127 => usize::try_from(u64::from_be_bytes(*bytes[2..].first_chunk()?)).ok()?.saturating_add(10),
        short => 2 + usize::from(short),
    })
}

#[inline]
fn frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

fn control(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= CONTROL_BYTES_MAX, "a control frame of {} bytes", payload.len());
    frame(opcode, payload, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

    /// What tungstenite reads: opcode, payload.
    fn read(wire: &[u8]) -> (OpCode, &[u8]) {
        let mut cursor = Cursor::new(wire);
        let (header, payload_bytes) = FrameHeader::parse(&mut cursor).expect("valid").expect("complete");
        assert!(header.is_final && !header.rsv1 && header.mask.is_none());
        let payload = &wire[cursor.position() as usize..];
        assert_eq!(payload.len() as u64, payload_bytes);
        (header.opcode, payload)
    }

    #[test]
    fn another_implementation_reads_every_form() {
        for payload_bytes in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 300_000] {
            let payload = vec![b'x'; payload_bytes];
            let (mut a, mut b) = (vec![], vec![]);
            text(&payload, &mut a);
            binary(&payload, &mut b);
            assert_eq!(read(&a), (OpCode::Data(Data::Text), &payload[..]));
            assert_eq!(read(&b), (OpCode::Data(Data::Binary), &payload[..]));
            assert!(a.len() <= HEADER_BYTES_MAX + payload_bytes);
            if payload_bytes <= CONTROL_BYTES_MAX {
                let (mut a, mut b) = (vec![], vec![]);
                ping(&payload, &mut a);
                pong(&payload, &mut b);
                assert_eq!(read(&a), (OpCode::Control(Control::Ping), &payload[..]));
                assert_eq!(read(&b), (OpCode::Control(Control::Pong), &payload[..]));
            }
        }
    }

    #[test]
    fn rfc_examples() {
        // RFC 6455 5.7.
        let (mut hello, mut pings, mut long) = (vec![], vec![], vec![]);
        text(b"Hello", &mut hello);
        assert_eq!(hello, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        ping(b"Hello", &mut pings);
        assert_eq!(pings, [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        binary(&[7; 256], &mut long);
        assert_eq!(long[..4], [0x82, 0x7e, 0x01, 0x00]);
        long.clear();
        binary(&[7; 65536], &mut long);
        assert_eq!(long[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "a control frame of 126 bytes")]
    fn a_control_frame_too_long_is_a_bug_of_ours() {
        ping(&[0; 126], &mut vec![]);
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let mut out = vec![];
        close(4001, "Missing user_id", &mut out);
        assert_eq!(read(&out), (OpCode::Control(Control::Close), &b"\x0f\xa1Missing user_id"[..]));
        out.clear();
        // 122 bytes, then a character of two: the 123rd byte would be half of it.
        close(1000, &("x".repeat(122) + "é"), &mut out);
        assert_eq!(read(&out).1.len(), 2 + 122);
    }

    #[test]
    fn frames_are_found_from_any_byte() {
        let sizes = [0, 3, 125, 126, 70_000, 1];
        let (mut wire, mut ends) = (vec![], vec![0]);
        for size in sizes {
            text(&vec![b'x'; size], &mut wire);
            ends.push(wire.len());
        }
        for at in 0..=wire.len() {
            let expected = *ends.iter().find(|&&end| end >= at).expect("the last one");
            assert_eq!(frame_end(&wire, at), expected, "at {at}");
        }
        for (frames, &end) in ends.iter().enumerate() {
            assert_eq!(count_frames(&wire[end..]), sizes.len() - frames);
            assert_eq!(count_frames(&wire[..end]), frames);
        }
        // The last frame cut: not counted, and its end lies behind.
        assert_eq!(count_frames(&wire[..wire.len() - 1]), sizes.len() - 1);
        assert_eq!(frame_end(&wire[..ends[5] - 9], ends[4] + 20), ends[5]);
        // Not even a header.
        assert_eq!(frame_end(&[0x81, 126, 0], 1), 3);
        assert_eq!(count_frames(&[0x81, 126, 0]), 0);
        assert_eq!(count_frames(&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255, 0]), 0);
    }
}
