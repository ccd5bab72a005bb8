//! Goal: where a stream is cut changes nothing, and another implementation reads the same out of it.
//! Method: streams of valid messages, of frames with any header, and of both with bytes flipped, are decoded whole and in
//! pieces; events and error must agree, also with tungstenite's own server side as far as it is as strict.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tungstenite::protocol::frame::{CloseFrame, Utf8Bytes};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message as Told, WebSocket};

use super::super::CONTROL_BYTES_MAX;
use super::tests::{LIMITS, frame};
use super::*;

/// Decodes `stream`, cut at the places `cuts`, until an error, a Close or the end.
fn decode(stream: &[u8], cuts: &[usize], limits: &Limits) -> (Vec<Told>, Option<ProtocolError>) {
    let mut decoder = Decoder::new();
    let mut told = vec![];
    let mut cuts: Vec<usize> = cuts.iter().copied().chain([stream.len()]).collect();
    cuts.sort_unstable();
    let mut at = 0;
    for cut in cuts {
        let mut piece = stream[at..cut].to_vec();
        at = cut;
        let mut rest = &mut piece[..];
        while !rest.is_empty() {
            let consumed = match decoder.decode(rest, limits) {
                Ok(Decoded { consumed, event }) => {
                    assert!(consumed > 0, "nothing taken of {} bytes", stream.len());
                    told.extend(event.map(owned));
                    consumed
                }
                Err(error) => return (told, Some(error)),
            };
            if let Some(Told::Close(_)) = told.last() {
                return (told, None);
            }
            rest = &mut rest[consumed..];
        }
        decoder.release();
        assert_eq!(decoder.is_idle(), decoder.heap_bytes() == 0, "memory is held by messages alone");
        let heap_bytes_max = size_of::<Partial>() + 2 * at + CONTROL_BYTES_MAX;
        assert!(decoder.heap_bytes() <= heap_bytes_max, "{} bytes of heap at {at}", decoder.heap_bytes());
    }
    (told, None)
}

fn owned(event: Event<'_>) -> Told {
    match event {
        Event::Text(text) => Told::text(text),
        Event::Binary(bytes) => Told::binary(bytes.to_vec()),
        Event::Ping(bytes) => Told::Ping(bytes.to_vec().into()),
        Event::Pong(bytes) => Told::Pong(bytes.to_vec().into()),
        Event::Close(close) => {
            Told::Close(close.map(|(code, reason)| CloseFrame { code: code.into(), reason: Utf8Bytes::from(reason) }))
        }
    }
}

/// What tungstenite reads: the events, and whether it found a fault. A stream that ends early is no fault.
fn referee(stream: &[u8], limits: &Limits) -> (Vec<Told>, Option<Error>) {
    struct Io<'a>(&'a [u8]);
    impl Read for Io<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() { Err(std::io::ErrorKind::WouldBlock.into()) } else { self.0.read(into) }
        }
    }
    impl Write for Io<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let max = Some(limits.message_bytes_max);
    let config = WebSocketConfig::default().read_buffer_size(4096).max_message_size(max).max_frame_size(max);
    let mut server = WebSocket::from_raw_socket(Io(stream), Role::Server, Some(config));
    let mut told = vec![];
    loop {
        match server.read() {
            Ok(message) => {
                let is_close = message.is_close();
                told.push(message);
                if is_close {
                    return (told, None);
                }
            }
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => return (told, None),
            Err(error) => return (told, Some(error)),
        }
    }
}

/// A part of a stream.
#[derive(Clone, Debug)]
enum Part {
    /// A message, cut into fragments, with control frames between them.
    Message { is_text: bool, payload: Vec<u8>, cuts: Vec<Index>, between: Vec<(bool, Vec<u8>)> },
    /// A frame with any first byte and any payload.
    Any { first: u8, payload: Vec<u8> },
}

impl Part {
    fn write(&self, key: [u8; 4], wire: &mut Vec<u8>) {
        match self {
            Part::Any { first, payload } => wire.extend(frame(*first, payload, key)),
            Part::Message { is_text, payload, cuts, between } => {
                let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
                ends.push(payload.len());
                ends.sort_unstable();
                let mut between = between.iter();
                let mut begin = 0;
                for (at, &end) in ends.iter().enumerate() {
                    let opcode = if at > 0 { 0 } else { 2 - u8::from(*is_text) };
                    let fin = u8::from(at + 1 == ends.len()) << 7;
                    wire.extend(frame(fin | opcode, &payload[begin..end], key));
                    begin = end;
                    // Behind the last fragment a control frame would be between messages, which is as good.
                    if let Some((is_ping, payload)) = between.next() {
                        wire.extend(frame(if *is_ping { 0x89 } else { 0x8a }, payload, key));
                    }
                }
            }
        }
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    // Around the places where the form of the length changes, and around the limits.
    let edge = select(vec![0, 1, 124, 125, 126, 127, 299, 300, 301, 65_535, 65_536, 65_537]);
    prop_oneof![4 => vec(any::<u8>(), 0..40), 1 => (edge, any::<u8>()).prop_map(|(bytes, fill)| vec![fill; bytes])]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let text = vec(prop_oneof![any::<char>(), prop::char::range(' ', '~')], 0..30).prop_map(String::from_iter);
    (text, select(vec![1, 1, 1, 1, 12, 900])).prop_map(|(text, times)| text.repeat(times).into_bytes())
}

fn message() -> impl Strategy<Value = Part> {
    let content = prop_oneof![text().prop_map(|text| (true, text)), payload().prop_map(|bytes| (false, bytes))];
    let between = vec((any::<bool>(), vec(any::<u8>(), 0..=CONTROL_BYTES_MAX)), 0..4);
    (content, vec(any::<Index>(), 0..4), between).prop_map(|((is_text, payload), cuts, between)| Part::Message {
        is_text,
        payload,
        cuts,
        between,
    })
}

fn any_frame() -> impl Strategy<Value = Part> {
    let known = select(vec![0x00, 0x80, 0x01, 0x81, 0x02, 0x82, 0x88, 0x89, 0x8a]);
    let first = prop_oneof![4 => known, 1 => any::<u8>()];
    (first, prop_oneof![payload(), text()]).prop_map(|(first, payload)| Part::Any { first, payload })
}

fn close() -> impl Strategy<Value = Part> {
    let code = prop_oneof![select(vec![1000, 1001, 1003, 1007, 1011, 3000, 4999]), 4000..4100_u16];
    let with_reason =
        (code, "[a-zé€]{0,30}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat());
    prop_oneof![Just(vec![]), with_reason].prop_map(|payload| Part::Any { first: 0x88, payload })
}

fn wire(parts: &[Part], keys: &[[u8; 4]]) -> Vec<u8> {
    let mut wire = vec![];
    for (part, key) in parts.iter().zip(keys.iter().cycle()) {
        part.write(*key, &mut wire);
    }
    wire
}

fn keys() -> impl Strategy<Value = Vec<[u8; 4]>> {
    vec(any::<[u8; 4]>(), 1..4)
}

fn places(cuts: &[Index], stream: &[u8]) -> Vec<usize> {
    cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn valid_streams_are_read_as_the_referee_reads_them(
        messages in vec(message(), 0..6), end in prop::option::of(close()), keys in keys(), cuts in vec(any::<Index>(), 0..12),
    ) {
        let parts: Vec<Part> = messages.into_iter().chain(end).collect();
        let stream = wire(&parts, &keys);
        let limits = Limits { message_bytes_max: 1 << 20 };
        let (told, error) = decode(&stream, &[], &limits);
        prop_assert_eq!(error, None);
        prop_assert_eq!(&decode(&stream, &places(&cuts, &stream), &limits), &(told.clone(), None));
        let (expected, fault) = referee(&stream, &limits);
        prop_assert!(fault.is_none(), "{fault:?}");
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn faulty_streams_end_alike_wherever_they_are_cut(
        parts in vec(prop_oneof![2 => message(), 2 => any_frame(), 1 => close()], 1..6),
        keys in keys(),
        flips in vec((any::<Index>(), any::<u8>()), 0..3),
        length in any::<Index>(),
        is_cut_off in any::<bool>(),
        limit in select(vec![300, 65_536, 1 << 20]),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let mut stream = wire(&parts, &keys);
        for (at, bits) in flips {
            let at = at.index(stream.len());
            stream[at] ^= bits;
        }
        if is_cut_off {
            stream.truncate(length.index(stream.len() + 1));
        }
        let limits = Limits { message_bytes_max: limit };
        let whole = decode(&stream, &[], &limits);
        prop_assert_eq!(&decode(&stream, &places(&cuts, &stream), &limits), &whole);
        if stream.len() < 3000 {
            let every_byte: Vec<usize> = (0..stream.len()).collect();
            prop_assert_eq!(&decode(&stream, &every_byte, &limits), &whole);
        }
        agrees_with_the_referee(&stream, &limits, &whole)?;
    }
}

/// tungstenite may be laxer, in the ways that stand here, but never stricter.
fn agrees_with_the_referee(
    stream: &[u8],
    limits: &Limits,
    (told, error): &(Vec<Told>, Option<ProtocolError>),
) -> Result<(), TestCaseError> {
    let (mut expected, mut fault) = referee(stream, limits);
    // It tells of a code that must not be sent by a Close of its own making, and doesn't know 1014.
    if let Some(Told::Close(Some(close))) = expected.last()
        && close.reason == "Protocol violation"
    {
        if let Some(Told::Close(Some(ours))) = told.last()
            && u16::from(ours.code) == 1014
        {
            return Ok(());
        }
        expected.pop();
        fault = Some(Error::ConnectionClosed);
    }
    match error {
        None => {
            prop_assert!(fault.is_none(), "only the referee found {fault:?}");
            prop_assert_eq!(told, &expected);
        }
        // It takes lengths in a longer form than need be, also for control frames, and reads on.
        Some(error) if ["length not in its shortest form", "control frame above 125 bytes"].contains(&error.reason) => {
            prop_assert!(expected.starts_with(told), "{told:?} {expected:?}");
        }
        // It may wait for the end of a frame where the fault is told at once, but gives no event more.
        Some(_) => prop_assert_eq!(told, &expected),
    }
    Ok(())
}

#[test]
fn random_bytes_never_panic() {
    let seed = match std::env::var("RINGMESH_TEST_SEED") {
        Ok(seed) => seed.parse().expect("RINGMESH_TEST_SEED is a number"),
        Err(_) => RandomState::new().hash_one(0),
    };
    println!("RINGMESH_TEST_SEED={seed}");
    let mut state = seed;
    // splitmix64
    let mut random = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize
    };
    let firsts = [0x00, 0x80, 0x01, 0x81, 0x02, 0x82, 0x88, 0x89, 0x8a];
    let mut faults = 0;
    for _ in 0..100_000 {
        let mut stream = vec![];
        // Some plausible frames, so that the bytes behind them meet a decoder in any state; then noise.
        for _ in 0..random() % 3 {
            let payload: Vec<u8> = (0..random() % 20).map(|_| random() as u8 & 0x7f).collect();
            stream.extend(frame(firsts[random() % firsts.len()], &payload, (random() as u32).to_ne_bytes()));
        }
        stream.extend((0..random() % 40).map(|_| random() as u8));
        let cuts: Vec<usize> = (0..random() % 4).map(|_| random() % (stream.len() + 1)).collect();
        let whole = decode(&stream, &[], &LIMITS);
        assert_eq!(decode(&stream, &cuts, &LIMITS), whole, "{stream:x?} cut at {cuts:?}");
        faults += usize::from(whole.1.is_some());
    }
    assert!((10_000..100_000).contains(&faults), "{faults} of 100000 streams were faulty: the generator is off");
}
