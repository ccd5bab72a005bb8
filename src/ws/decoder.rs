//! From client bytes to messages, RFC 6455 5.4 to 5.6.
//!
//! A message that lies whole and unfragmented in the input is unmasked there and lent from there. All else (a frame that
//! was cut, a message in fragments) is gathered in a `Partial`, which lives on the heap no longer than that message.

use super::frame::{HEADER_BYTES_MAX, Header, Opcode};
use super::{Limits, ProtocolError, close, mask, utf8};

/// The receiving side of one connection.
#[derive(Default)]
pub struct Decoder {
    /// `None` between messages, and as long as each arrives whole.
    partial: Option<Box<Partial>>,
}

// A hundred thousand idle connections each hold one.
const _: () = assert!(size_of::<Decoder>() <= 16);

/// What one call of [`Decoder::decode`] did.
#[derive(PartialEq, Eq, Debug)]
pub struct Decoded<'a> {
    /// Bytes taken from the front of the input.
    pub consumed: usize,
    /// What those bytes completed, if anything.
    pub event: Option<Event<'a>>,
}

/// A message or a control frame, unmasked and checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// The client closes, with a code and a reason if it gave them. What follows is to be ignored.
    Close(Option<(u16, &'a str)>),
}

impl Decoder {
    /// A decoder at the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input`, unmasking in place, up to the end of the first message or control frame.
    ///
    /// Non-empty input always gives up at least one byte; call it again with the rest. An event of a message that arrived
    /// in pieces is lent out of the decoder: its memory goes with the next call, or with [`Decoder::release`].
    ///
    /// # Errors
    /// What the connection must be closed with; the decoder is of no use from then on. The same bytes give the same events
    /// and the same error wherever they are cut.
    #[inline]
    pub fn decode<'a>(&'a mut self, input: &'a mut [u8], limits: &Limits) -> Result<Decoded<'a>, ProtocolError> {
        self.release();
        if self.partial.is_none()
            && let Some(header) = Header::parse(input)?
        {
            let frame_end = admit(&header, None, limits)?.saturating_add(header.bytes);
            if header.fin && frame_end <= input.len() {
                let event = lend(&header, &mut input[header.bytes..frame_end])?;
                return Ok(Decoded { consumed: frame_end, event: Some(event) });
            }
        }
        self.decode_piece(input, limits)
    }

    /// Frees what the last event was lent from. To be called when a batch of input is through, so that an idle connection
    /// holds nothing.
    #[inline]
    pub fn release(&mut self) {
        if let Some(partial) = &mut self.partial
            && partial.release()
        {
            self.partial = None;
        }
    }

    /// Whether the stream stands between two messages, with no frame begun.
    pub fn is_idle(&self) -> bool {
        self.partial.as_ref().is_none_or(|partial| partial.is_idle())
    }

    /// Bytes on the heap, for the account of the shard.
    pub fn heap_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.heap_bytes())
    }

    /// Everything but a whole, unfragmented frame.
    #[inline(never)]
    fn decode_piece<'a>(&'a mut self, input: &'a mut [u8], limits: &Limits) -> Result<Decoded<'a>, ProtocolError> {
        if input.is_empty() {
            return Ok(Decoded { consumed: 0, event: None });
        }
        let (mut frame, mut consumed) = match self.partial.as_mut().and_then(|partial| partial.frame.take()) {
            Some(frame) => (frame, 0),
            None => {
                let partial = self.partial.get_or_insert_default();
                let Some((header, header_bytes)) = partial.head.parse(input)? else {
                    return Ok(Decoded { consumed: input.len(), event: None });
                };
                let payload_bytes = admit(&header, partial.message.as_ref(), limits)?;
                let frame_end = header_bytes.saturating_add(payload_bytes);
                let is_between_messages = partial.message.is_none();
                let is_whole = header.opcode.is_control() || (header.fin && is_between_messages);
                if is_whole && frame_end <= input.len() {
                    // A control frame between fragments, or a frame of which only the header was cut: no need to copy.
                    if is_between_messages {
                        self.partial = None;
                    }
                    let event = lend(&header, &mut input[header_bytes..frame_end])?;
                    return Ok(Decoded { consumed: frame_end, event: Some(event) });
                }
                (OpenFrame { header, payload_bytes, taken: 0 }, header_bytes)
            }
        };

        let payload = &mut input[consumed..];
        let piece_bytes = payload.len().min(frame.payload_bytes - frame.taken);
        let piece = &mut payload[..piece_bytes];
        mask::apply(piece, frame.header.key, frame.taken);
        frame.taken += piece_bytes;
        consumed += piece_bytes;
        let partial = self.partial.get_or_insert_default();
        let event = partial.gather(frame, piece, limits)?;
        Ok(Decoded { consumed, event })
    }
}

/// Checks a header against the message that is open and against the limits, before any memory is taken for its payload.
/// Returns the payload bytes.
#[inline(always)]
fn admit(header: &Header, open: Option<&Message>, limits: &Limits) -> Result<usize, ProtocolError> {
    // RFC 6455 5.4: control frames may come between the fragments of a message, and count for themselves.
    if header.opcode.is_control() {
        return Ok(header.payload_bytes as usize);
    }
    let gathered = match (header.opcode, open) {
        (Opcode::Continuation, None) => return Err(ProtocolError::violation("continuation of no message")),
        (Opcode::Continuation, Some(message)) => message.bytes.len(),
        (_, Some(_)) => return Err(ProtocolError::violation("new message inside a fragmented one")),
        (_, None) => 0,
    };
    let room = limits.message_bytes_max.saturating_sub(gathered);
    match usize::try_from(header.payload_bytes) {
        Ok(payload_bytes) if payload_bytes <= room => Ok(payload_bytes),
        _ => Err(ProtocolError::TOO_BIG),
    }
}

/// The event of a frame whose payload lies whole in the input.
#[inline(always)]
fn lend<'a>(header: &Header, payload: &'a mut [u8]) -> Result<Event<'a>, ProtocolError> {
    mask::apply(payload, header.key, 0);
    event(header.opcode, payload)
}

/// The event of an unmasked payload.
#[inline(always)]
fn event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, ProtocolError> {
    Ok(match opcode {
        Opcode::Text => Event::Text(utf8::whole(payload)?),
        Opcode::Binary | Opcode::Continuation => Event::Binary(payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => Event::Close(close::parse(payload)?),
    })
}

/// What must be kept from one input to the next.
#[derive(Default)]
struct Partial {
    /// A header that was cut.
    head: CutHead,
    /// A frame whose header is known and whose payload is still to come, at least in part.
    frame: Option<OpenFrame>,
    /// A data message that has begun, or the one that the last event was lent from.
    message: Option<Message>,
    /// The payload of a control frame that was cut, or the one that the last event was lent from.
    control: Vec<u8>,
    /// What the last event was lent from.
    lent: Lent,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Lent {
    #[default]
    Nothing,
    Message,
    Control,
}

/// 0 <= taken < payload_bytes while it is kept.
struct OpenFrame {
    header: Header,
    payload_bytes: usize,
    /// Payload bytes that have arrived.
    taken: usize,
}

impl Partial {
    /// Adds the unmasked `piece` to what `frame` belongs to; returns the event when it was the last one.
    fn gather(&mut self, frame: OpenFrame, piece: &[u8], limits: &Limits) -> Result<Option<Event<'_>>, ProtocolError> {
        let is_whole = frame.taken == frame.payload_bytes;
        let opcode = frame.header.opcode;
        if opcode.is_control() {
            append(&mut self.control, piece, frame.payload_bytes);
            if !is_whole {
                self.frame = Some(frame);
                return Ok(None);
            }
            self.lent = Lent::Control;
            return event(opcode, &self.control).map(Some);
        }
        let message = self.message.get_or_insert_with(|| Message::new(opcode));
        // Only the last frame of a message tells how long it gets.
        let message_bytes_max = if frame.header.fin {
            message.bytes.len() + piece.len() + (frame.payload_bytes - frame.taken)
        } else {
            limits.message_bytes_max
        };
        append(&mut message.bytes, piece, message_bytes_max);
        if is_whole && frame.header.fin {
            self.lent = Lent::Message;
            return event(message.opcode, &message.bytes).map(Some);
        }
        if !is_whole {
            self.frame = Some(frame);
        }
        message.check_so_far()?;
        Ok(None)
    }

    /// Frees what was lent; returns whether nothing is left to keep.
    fn release(&mut self) -> bool {
        match std::mem::take(&mut self.lent) {
            Lent::Nothing => return false,
            Lent::Message => self.message = None,
            Lent::Control => self.control = Vec::new(),
        }
        self.is_idle()
    }

    fn is_idle(&self) -> bool {
        let message_is_over = self.message.is_none() || self.lent == Lent::Message;
        self.head.len == 0 && self.frame.is_none() && message_is_over
    }

    fn heap_bytes(&self) -> usize {
        let message_bytes = self.message.as_ref().map_or(0, |message| message.bytes.capacity());
        size_of::<Self>() + message_bytes + self.control.capacity()
    }
}

/// The first bytes of a header, kept until the rest comes.
#[derive(Default)]
struct CutHead {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl CutHead {
    /// The header that ends in `input`, and where in `input` it ends; `None` when all of `input` was taken in.
    fn parse(&mut self, input: &[u8]) -> Result<Option<(Header, usize)>, ProtocolError> {
        let fill = input.len().min(HEADER_BYTES_MAX - self.len);
        self.bytes[self.len..self.len + fill].copy_from_slice(&input[..fill]);
        let Some(header) = Header::parse(&self.bytes[..self.len + fill])? else {
            // A header that is not complete has fewer than HEADER_BYTES_MAX bytes: `input` ended before the space did.
            self.len += fill;
            return Ok(None);
        };
        let from_input = header.bytes - self.len;
        self.len = 0;
        Ok(Some((header, from_input)))
    }
}

/// A data message that is being gathered.
struct Message {
    /// Text or binary.
    opcode: Opcode,
    bytes: Vec<u8>,
    /// How many of `bytes` are known to be UTF-8: all but a cut character at the end. 0 for binary.
    valid: usize,
}

impl Message {
    fn new(opcode: Opcode) -> Self {
        Self { opcode, bytes: Vec::new(), valid: 0 }
    }

    /// RFC 6455 8.1: text that can't become UTF-8 any more fails the connection, though its end is still to come.
    fn check_so_far(&mut self) -> Result<(), ProtocolError> {
        if self.opcode == Opcode::Text {
            self.valid = utf8::so_far(&self.bytes, self.valid)?;
        }
        Ok(())
    }
}

/// Appends, taking memory for what has arrived rather than for what a header claims: the buffer doubles, and never passes
/// `bytes_max`, which the bytes to come are known not to exceed.
fn append(buffer: &mut Vec<u8>, piece: &[u8], bytes_max: usize) {
    let needed = buffer.len() + piece.len();
    if needed > buffer.capacity() {
        let target = (buffer.capacity() * 2).clamp(needed, bytes_max.max(needed));
        buffer.reserve_exact(target - buffer.len());
    }
    buffer.extend_from_slice(piece);
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
