//! What every message carries, so that loss, duplicates, order and latency are known exactly: who sent it, its number
//! in the sender's stream, when it should have been sent, and how late it was. Pure.

/// Bytes of a stamp within a payload.
pub const STAMP_BYTES: usize = 24;

/// The first byte of a stamp. No frame of the gateway's own contains it.
const MARKER: u8 = b'~';

/// Six bits a character, all of them plain in JSON.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const VALUES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut index = 0;
    while index < 64 {
        values[ALPHABET[index] as usize] = index as u8;
        index += 1;
    }
    values
};

const SENDER_CHARS: usize = 4;
const SEQUENCE_CHARS: usize = 6;
const TIME_CHARS: usize = 8;
const LAG_CHARS: usize = 5;
const _: () = assert!(1 + SENDER_CHARS + SEQUENCE_CHARS + TIME_CHARS + LAG_CHARS == STAMP_BYTES);

const TIME_MASK: u64 = (1 << (6 * TIME_CHARS)) - 1;

/// One message's stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The sender's number, below 2^24.
    pub sender: u32,
    /// The message's number in its stream, from 0 on, below 2^36.
    pub sequence: u64,
    /// When it should have been sent, in nanoseconds of the monotonic clock, modulo 2^48 (78 hours).
    pub intended_ns: u64,
    /// How much later it really was sent, in microseconds, at most 2^30 - 1.
    pub lag_us: u32,
}

impl Stamp {
    /// The stamp as text.
    pub fn encode(self) -> [u8; STAMP_BYTES] {
        let mut out = [MARKER; STAMP_BYTES];
        let mut at = 1;
        let mut put = |value: u64, chars: usize| {
            for index in 0..chars {
                out[at + index] = ALPHABET[(value >> (6 * (chars - 1 - index))) as usize & 63];
            }
            at += chars;
        };
        put(u64::from(self.sender), SENDER_CHARS);
        put(self.sequence, SEQUENCE_CHARS);
        put(self.intended_ns & TIME_MASK, TIME_CHARS);
        put(u64::from(self.lag_us.min((1 << (6 * LAG_CHARS)) - 1)), LAG_CHARS);
        out
    }

    /// The first stamp within a payload, and where it begins.
    pub fn find(payload: &[u8]) -> Option<(usize, Self)> {
        let at = memchr::memchr(MARKER, payload)?;
        let mut rest = payload.get(at + 1..at + STAMP_BYTES)?;
        let mut wrong = 0;
        let mut take = |chars: usize| {
            let (head, tail) = rest.split_at(chars);
            rest = tail;
            head.iter().fold(0, |value, char| {
                let bits = VALUES[usize::from(*char)];
                wrong |= bits;
                value << 6 | u64::from(bits & 63)
            })
        };
        let stamp = Self {
            sender: take(SENDER_CHARS) as u32,
            sequence: take(SEQUENCE_CHARS),
            intended_ns: take(TIME_CHARS),
            lag_us: take(LAG_CHARS) as u32,
        };
        (wrong & 0xc0 == 0).then_some((at, stamp))
    }

    /// Nanoseconds from the intended send time until `now_ns`.
    pub fn age_ns(self, now_ns: u64) -> u64 {
        let age = now_ns.wrapping_sub(self.intended_ns) & TIME_MASK;
        // A clock read just before the message was stamped must not come out as 78 hours.
        if age > TIME_MASK / 2 { 0 } else { age }
    }
}

/// A payload of `bytes` bytes (at least a stamp's) with the stamp in front and a filler behind.
pub fn filled(bytes: usize) -> Vec<u8> {
    vec![b'x'; bytes.max(STAMP_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_from_anywhere_in_a_payload() {
        let stamp =
            Stamp { sender: (1 << 24) - 1, sequence: (1 << 36) - 2, intended_ns: TIME_MASK - 3, lag_us: 12_345 };
        let mut payload = br#"{"content":""#.to_vec();
        payload.extend(stamp.encode());
        payload.extend(b"\"}");
        assert_eq!(Stamp::find(&payload), Some((12, stamp)));
    }

    #[test]
    fn what_is_no_stamp_is_not_taken_for_one() {
        assert_eq!(Stamp::find(b"no marker at all, though it is long enough"), None);
        assert_eq!(Stamp::find(b"~short"), None);
        let mut broken = Stamp { sender: 1, sequence: 2, intended_ns: 3, lag_us: 4 }.encode();
        broken[7] = b'"';
        assert_eq!(Stamp::find(&broken), None);
    }

    #[test]
    fn ages_survive_the_clock_wrapping_and_a_clock_read_too_early() {
        let at = |intended_ns| Stamp { sender: 0, sequence: 0, intended_ns, lag_us: 0 };
        assert_eq!(at(TIME_MASK - 9).age_ns(TIME_MASK + 91), 100);
        assert_eq!(at(1_000).age_ns(900), 0);
    }
}
