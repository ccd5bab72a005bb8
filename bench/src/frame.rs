//! RFC 6455 frames from the client's side: masked ones out, unmasked ones in. Pure.

/// The mask of every frame. RFC 6455 5.3 asks for fresh random masks, against proxies that cache; a load generator on a
/// bench pre-encodes instead, and the server's work to unmask is the same for any mask other than zero.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a frame carries (RFC 6455 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opcode {
    /// The rest of a fragmented message.
    Continuation,
    /// UTF-8 text.
    Text,
    /// Bytes.
    Binary,
    /// The end, with a code.
    Close,
    /// A question that the endpoint itself answers.
    Ping,
    /// Its answer.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

/// A frame as it stands in the read buffer.
#[derive(PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// The last of its message.
    pub fin: bool,
    /// What it carries.
    pub opcode: Opcode,
    /// Its payload.
    pub payload: &'a [u8],
    /// Bytes of the whole frame, header included.
    pub bytes: usize,
}

/// What a server must not send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// RFC 6455 5.1: a server must not mask.
    #[error("the server's frame is masked")]
    Masked,
    /// RFC 6455 5.2: no extension was negotiated.
    #[error("a reserved bit or opcode is set")]
    Reserved,
    /// Longer than this generator is ready to hold.
    #[error("a frame of more than {FRAME_BYTES_MAX} bytes")]
    TooLong,
}

/// Frames above this are refused rather than collected.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// The first frame of `input`, or `None` when it is not complete.
///
/// # Errors
/// When no server may send what is there.
pub fn parse(input: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    let [first, second, ..] = *input else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err(FrameError::Masked);
    }
    if first & 0x70 != 0 {
        return Err(FrameError::Reserved);
    }
    let opcode = Opcode::from_bits(first & 0x0f).ok_or(FrameError::Reserved)?;
    let (length, header) = match second & 0x7f {
        126 => match input.get(2..4) {
            Some(bytes) => (usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4),
            None => return Ok(None),
        },
        127 => match input.get(2..10).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()) {
            Some(bytes) => (usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX), 10),
            None => return Ok(None),
        },
        short => (usize::from(short), 2),
    };
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong);
    }
    let Some(payload) = input.get(header..header + length) else { return Ok(None) };
    Ok(Some(Frame { fin: first & 0x80 != 0, opcode, payload, bytes: header + length }))
}

/// Appends one masked frame.
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode.bits());
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// A frame encoded beforehand, of which a few payload bytes change from message to message.
#[derive(Clone, Debug)]
pub struct Template {
    frame: Vec<u8>,
    payload_at: usize,
}

impl Template {
    /// A text frame with this payload.
    pub fn text(payload: &[u8]) -> Self {
        let mut frame = Vec::with_capacity(payload.len() + 14);
        encode(Opcode::Text, payload, &mut frame);
        Self { payload_at: frame.len() - payload.len(), frame }
    }

    /// Appends the frame as it is.
    pub fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.frame);
    }

    /// Appends the frame with `bytes` in the payload from offset `at` on.
    pub fn append_with(&self, at: usize, bytes: &[u8], out: &mut Vec<u8>) {
        let start = out.len() + self.payload_at + at;
        out.extend_from_slice(&self.frame);
        for (index, (slot, byte)) in out[start..start + bytes.len()].iter_mut().zip(bytes).enumerate() {
            *slot = byte ^ MASK[(at + index) & 3];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            length @ 0..=125 => frame.push(length as u8),
            length @ 126..=0xffff => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        frame
    }

    fn unmask(frame: &[u8]) -> Vec<u8> {
        let header = match frame[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let mask = &frame[header..header + 4];
        frame[header + 4..].iter().enumerate().map(|(index, byte)| byte ^ mask[index & 3]).collect()
    }

    #[test]
    fn every_length_form_is_read_and_no_prefix_is_taken_for_a_frame() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let frame = server_frame(1, &payload);
            for cut in [1, 2, 3, 9, frame.len() - 1] {
                if cut < frame.len() {
                    assert_eq!(parse(&frame[..cut]), Ok(None), "length {length}, cut at {cut}");
                }
            }
            let parsed = parse(&frame).expect("well formed").expect("complete");
            assert_eq!((parsed.payload.len(), parsed.bytes, parsed.fin), (length, frame.len(), true));
        }
    }

    #[test]
    fn what_no_server_may_send_is_refused() {
        assert_eq!(parse(&[0x81, 0x80]), Err(FrameError::Masked));
        assert_eq!(parse(&[0xc1, 0x00]), Err(FrameError::Reserved));
        assert_eq!(parse(&[0x83, 0x00]), Err(FrameError::Reserved));
        assert_eq!(parse(&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::TooLong));
    }

    #[test]
    fn a_template_changes_only_the_bytes_it_is_given() {
        for length in [8, 200, 70_000] {
            let template = Template::text(&vec![b'.'; length]);
            let mut out = vec![0xaa; 3];
            template.append_with(3, b"abc", &mut out);
            let payload = unmask(&out[3..]);
            assert_eq!(payload.len(), length);
            assert_eq!(&payload[..7], b"...abc.");
            out.clear();
            template.append(&mut out);
            assert!(unmask(&out).iter().all(|byte| *byte == b'.'));
        }
    }
}
