//! One rule of RFC 6455 a test. What holds for any stream is in `properties`.

use super::*;

pub(super) const LIMITS: Limits = Limits { message_bytes_max: 64 * 1024 };

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const TEXT: u8 = 0x81;
const TEXT_BEGINS: u8 = 0x01;
const GOES_ON: u8 = 0x00;
const ENDS: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;

/// A client frame with that first byte, masked.
pub(super) fn frame(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut wire = vec![first];
    match payload.len() {
        short @ 0..=125 => wire.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            wire.push(0x80 | 126);
            wire.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            wire.push(0x80 | 127);
            wire.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    wire.extend_from_slice(&key);
    wire.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    wire
}

fn frames(parts: &[(u8, &[u8])]) -> Vec<u8> {
    parts.iter().flat_map(|(first, payload)| frame(*first, payload, KEY)).collect()
}

/// What the frames give, each event as `{:?}`; the error at the end, if there is one.
fn told(parts: &[(u8, &[u8])]) -> Vec<String> {
    let mut decoder = Decoder::new();
    let mut wire = frames(parts);
    let mut rest = &mut wire[..];
    let mut told = vec![];
    while !rest.is_empty() {
        let consumed = match decoder.decode(rest, &LIMITS) {
            Ok(Decoded { consumed, event }) => {
                told.extend(event.map(|event| format!("{event:?}")));
                consumed
            }
            Err(error) => {
                told.push(error.to_string());
                break;
            }
        };
        rest = &mut rest[consumed..];
    }
    told
}

#[test]
fn examples_of_the_rfc() {
    // RFC 6455 5.7, those that a client sends.
    let mut decoder = Decoder::new();
    let mut hello = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    let expected = Decoded { consumed: 11, event: Some(Event::Text("Hello")) };
    assert_eq!(decoder.decode(&mut hello, &LIMITS), Ok(expected));
    let mut pong = *b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    let expected = Decoded { consumed: 11, event: Some(Event::Pong(b"Hello")) };
    assert_eq!(decoder.decode(&mut pong, &LIMITS), Ok(expected));
    // Its fragments and its long messages, masked.
    assert_eq!(told(&[(TEXT_BEGINS, b"Hel"), (ENDS, b"lo")]), [r#"Text("Hello")"#]);
    for payload_bytes in [256, 65536] {
        let payload = vec![7; payload_bytes];
        let mut wire = frame(0x82, &payload, KEY);
        let expected = Decoded { consumed: wire.len(), event: Some(Event::Binary(&payload)) };
        assert_eq!(decoder.decode(&mut wire, &LIMITS), Ok(expected));
    }
}

#[test]
fn a_whole_message_stays_where_it_is() {
    let mut decoder = Decoder::new();
    let mut wire = frames(&[(TEXT, b"one"), (TEXT, b"two")]);
    let place = wire.as_ptr_range();
    let decoded = decoder.decode(&mut wire, &LIMITS).expect("valid");
    assert_eq!((decoded.consumed, decoded.event), (9, Some(Event::Text("one"))));
    let Some(Event::Text(text)) = decoded.event else { panic!("a text") };
    assert!(place.contains(&text.as_ptr()));
    assert_eq!((decoder.heap_bytes(), decoder.is_idle()), (0, true));
}

#[test]
fn nothing_is_done_with_no_input() {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.decode(&mut [], &LIMITS), Ok(Decoded { consumed: 0, event: None }));
    assert_eq!((decoder.heap_bytes(), decoder.is_idle()), (0, true));
}

#[test]
fn a_cut_message_holds_memory_until_it_is_released() {
    let mut decoder = Decoder::new();
    let mut wire = frame(TEXT, b"hello", KEY);
    let (first, last) = wire.split_at_mut(8);
    assert_eq!(decoder.decode(first, &LIMITS), Ok(Decoded { consumed: 8, event: None }));
    assert!(!decoder.is_idle() && decoder.heap_bytes() > 0);
    decoder.release();
    assert!(!decoder.is_idle(), "a message that has begun is not forgotten");
    assert_eq!(decoder.decode(last, &LIMITS), Ok(Decoded { consumed: 3, event: Some(Event::Text("hello")) }));
    assert!(decoder.is_idle() && decoder.heap_bytes() > 0);
    decoder.release();
    assert_eq!((decoder.heap_bytes(), decoder.is_idle()), (0, true));
}

#[test]
fn a_cut_header_is_all_that_is_kept() {
    for cut in 1..6 {
        let mut decoder = Decoder::new();
        let mut wire = frame(TEXT, b"hello", KEY);
        let (first, last) = wire.split_at_mut(cut);
        assert_eq!(decoder.decode(first, &LIMITS), Ok(Decoded { consumed: cut, event: None }));
        assert!(!decoder.is_idle() && decoder.heap_bytes() > 0);
        let expected = Decoded { consumed: 11 - cut, event: Some(Event::Text("hello")) };
        assert_eq!(decoder.decode(last, &LIMITS), Ok(expected));
        assert_eq!((decoder.heap_bytes(), decoder.is_idle()), (0, true), "the payload was lent from the input");
    }
}

#[test]
fn control_frames_come_between_fragments() {
    let parts: [(u8, &[u8]); 5] = [(TEXT_BEGINS, b"a"), (PING, b"p"), (GOES_ON, b""), (0x8a, b""), (ENDS, b"b")];
    assert_eq!(told(&parts), ["Ping([112])", "Pong([])", r#"Text("ab")"#]);
    // One of them cut itself: the message goes on behind it.
    let mut decoder = Decoder::new();
    let mut wire = frames(&parts[..2]);
    let cut = wire.len() - 1;
    let (first, last) = wire.split_at_mut(cut);
    assert_eq!(decoder.decode(first, &LIMITS).map(|decoded| decoded.consumed), Ok(7));
    assert_eq!(decoder.decode(&mut first[7..], &LIMITS), Ok(Decoded { consumed: cut - 7, event: None }));
    assert_eq!(decoder.decode(last, &LIMITS), Ok(Decoded { consumed: 1, event: Some(Event::Ping(b"p")) }));
    decoder.release();
    assert!(!decoder.is_idle());
    let mut end = frame(ENDS, b"b", KEY);
    assert_eq!(decoder.decode(&mut end, &LIMITS), Ok(Decoded { consumed: 7, event: Some(Event::Text("ab")) }));
}

#[test]
fn fragments_in_the_wrong_order() {
    assert_eq!(told(&[(ENDS, b"x")]), ["continuation of no message (1002)"]);
    assert_eq!(told(&[(GOES_ON, b"")]), ["continuation of no message (1002)"]);
    assert_eq!(told(&[(TEXT, b"x"), (ENDS, b"x")]), [r#"Text("x")"#, "continuation of no message (1002)"]);
    assert_eq!(told(&[(TEXT_BEGINS, b"x"), (TEXT, b"x")]), ["new message inside a fragmented one (1002)"]);
    assert_eq!(told(&[(TEXT_BEGINS, b""), (0x02, b"x")]), ["new message inside a fragmented one (1002)"]);
}

#[test]
fn closes() {
    assert_eq!(told(&[(CLOSE, b"")]), ["Close(None)"]);
    assert_eq!(told(&[(CLOSE, b"\x03\xe8bye")]), [r#"Close(Some((1000, "bye")))"#]);
    assert_eq!(told(&[(CLOSE, b"\x03")]), ["close payload of one byte (1002)"]);
    assert_eq!(told(&[(CLOSE, b"\x03\xed")]), ["close code that must not be sent (1002)"]);
    assert_eq!(told(&[(CLOSE, b"\x03\xe8\xc3")]), ["close reason is not UTF-8 (1007)"]);
}

#[test]
fn text_is_utf8_over_all_its_fragments() {
    let euro = "€".as_bytes();
    assert_eq!(told(&[(TEXT_BEGINS, &euro[..1]), (GOES_ON, &euro[1..2]), (ENDS, &euro[2..])]), [r#"Text("€")"#]);
    assert_eq!(told(&[(TEXT, &euro[..2])]), ["text is not UTF-8 (1007)"]);
    assert_eq!(told(&[(TEXT_BEGINS, &euro[..2]), (ENDS, b"")]), ["text is not UTF-8 (1007)"]);
    // Told by the fragment that spoils it, though the message goes on.
    assert_eq!(told(&[(TEXT_BEGINS, b"\xc3"), (GOES_ON, b"(")]), ["text is not UTF-8 (1007)"]);
    assert_eq!(told(&[(0x02, b"\xff"), (ENDS, b"\xff")]), ["Binary([255, 255])"]);
}

#[test]
fn a_wrong_byte_fails_before_its_frame_has_come() {
    let mut decoder = Decoder::new();
    let mut wire = frame(TEXT, b"ab\xff and much that is to follow", KEY);
    assert_eq!(decoder.decode(&mut wire[..8], &LIMITS).map(|decoded| decoded.consumed), Ok(8));
    assert_eq!(decoder.decode(&mut wire[8..9], &LIMITS).map_err(|error| error.code), Err(1007));
}

#[test]
fn the_limit_is_read_off_the_header() {
    let limits = Limits { message_bytes_max: 10 };
    let code = |wire: &mut [u8]| Decoder::new().decode(wire, &limits).map_err(|error| error.code).map(|it| it.consumed);
    assert_eq!(code(&mut frame(TEXT, b"0123456789", KEY)), Ok(16));
    assert_eq!(code(&mut frame(TEXT, b"0123456789a", KEY)[..6]), Err(1009));
    assert_eq!(code(&mut frame(TEXT_BEGINS, b"0123456789a", KEY)[..6]), Err(1009));
    let mut huge = *b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xffABCD";
    assert_eq!(code(&mut huge), Err(1009));
    let mut decoder = Decoder::new();
    assert!(decoder.decode(&mut huge[..5], &limits).is_ok());
    let kept = decoder.heap_bytes();
    assert_eq!(decoder.decode(&mut huge[5..], &limits), Err(ProtocolError::TOO_BIG));
    assert_eq!(decoder.heap_bytes(), kept, "a claim takes no memory");
    // The fragments of a message count together, the control frames between them do not.
    assert_eq!(code(&mut frame(PING, b"0123456789a", KEY)), Ok(17));
    let mut decoder = Decoder::new();
    let mut wire = frames(&[(TEXT_BEGINS, b"012345"), (PING, b"0123456789a"), (GOES_ON, b"6789"), (ENDS, b"a")]);
    let ends = [12, 12 + 17, 12 + 17 + 10];
    let mut at = 0;
    for end in ends {
        at += decoder.decode(&mut wire[at..], &limits).expect("within the limit").consumed;
        assert_eq!(at, end);
    }
    assert_eq!(decoder.decode(&mut wire[at..], &limits), Err(ProtocolError::TOO_BIG));
}

#[test]
fn memory_is_taken_as_bytes_arrive() {
    let limits = Limits { message_bytes_max: 1 << 30 };
    let mut decoder = Decoder::new();
    let claimed = 1_usize << 29;
    let mut wire = b"\x82\xff\0\0\0\0\x20\0\0\0ABCD".to_vec();
    wire.extend_from_slice(&[0; 1000]);
    assert_eq!(decoder.decode(&mut wire, &limits), Ok(Decoded { consumed: 1014, event: None }));
    assert!(decoder.heap_bytes() < 2000, "{} bytes for 1000 of {claimed}", decoder.heap_bytes());
    // And what arrives in small pieces ends in a buffer of its own size.
    let mut decoder = Decoder::new();
    let mut wire = frame(0x82, &[1; 3000], KEY);
    for piece in wire.chunks_mut(7) {
        let mut piece = piece;
        while !piece.is_empty() {
            let consumed = decoder.decode(piece, &limits).expect("valid").consumed;
            piece = &mut piece[consumed..];
        }
    }
    assert_eq!(decoder.heap_bytes(), size_of::<Partial>() + 3000);
}
