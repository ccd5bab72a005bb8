//! Goal: whatever a client sends, it costs a bounded amount and is answered with the right close code.
//! Method: hand-made frames. After each refusal another client shows that the gateway still serves.

mod support;

use std::io::Write;
use std::time::Duration;

use serde_json::json;
use support::client::message_from;
use support::raw::{FIN, frame, frame_of_close, header, opcode, text};
use support::{Gateway, RawClient};

/// Sends `bytes` as a new client and expects to be closed with `code`.
#[track_caller]
fn assert_closes(gateway: &Gateway, code: u16, what: &str, bytes: &[u8]) {
    println!("{what}");
    let mut client = gateway.raw("mallory");
    client.send_while_taken(bytes);
    client.expect_close(code);
}

/// A `send_message` to alice that is exactly so many bytes long.
fn message_of(length: usize) -> String {
    let empty = r#"{"type":"send_message","target_user":"alice","content":""}"#;
    let padding = "x".repeat(length - empty.len());
    format!(r#"{{"type":"send_message","target_user":"alice","content":"{padding}"}}"#)
}

#[test]
fn a_message_at_the_limit_passes_and_one_byte_more_closes_with_1009() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    alice.send_text(&message_of(65_536));
    alice.next_text();
    assert_closes(&gateway, 1009, "65,537 bytes", &text(&message_of(65_537)));
    alice.expect_pong();
}

#[test]
fn the_limit_can_be_set() {
    let gateway = Gateway::with(&[("--message-bytes-max", "1KiB")]);
    let mut alice = gateway.client("alice");
    alice.send_text(&message_of(1024));
    alice.next_text();
    assert_closes(&gateway, 1009, "1,025 bytes", &text(&message_of(1025)));
}

#[test]
fn the_header_alone_is_enough_to_refuse_a_message() {
    let gateway = Gateway::start();
    for claimed in [65_537, 1 << 20, 1 << 32, 1 << 62] {
        assert_closes(&gateway, 1009, "a header and nothing more", &header(FIN | opcode::TEXT, claimed));
        assert_closes(&gateway, 1009, "binary too", &header(FIN | opcode::BINARY, claimed));
    }
    let mut halves = frame(opcode::TEXT, &[b'x'; 40_000]);
    halves.extend(header(FIN | opcode::CONTINUATION, 25_537));
    assert_closes(&gateway, 1009, "the fragment that would pass the limit", &halves);
    gateway.wait_for_connections(0);
}

#[test]
fn text_that_is_not_utf8_closes_with_1007() {
    let gateway = Gateway::start();
    let bad: [(&str, &[u8]); 7] = [
        ("a lone byte", b"\"\xff\""),
        ("a lone continuation", b"\"\x80\""),
        ("an overlong form", b"\"\xc0\xaf\""),
        ("a surrogate", b"\"\xed\xa0\x80\""),
        ("above U+10FFFF", b"\"\xf4\x90\x80\x80\""),
        ("a sequence cut by the end", b"\"abc\xe6\x97"),
        ("far into a message", &[[b'x'; 5000].as_slice(), b"\xfe"].concat()),
    ];
    for (what, payload) in bad {
        assert_closes(&gateway, 1007, what, &frame(FIN | opcode::TEXT, payload));
    }
    // RFC 6455 8.1 allows to fail at once; a client that never sends the last fragment must not hold the bad bytes here.
    assert_closes(&gateway, 1007, "in a fragment that is not the last", &frame(opcode::TEXT, b"\"\xff"));
    let mut halves = frame(opcode::TEXT, b"\"\xe6");
    halves.extend(frame(opcode::CONTINUATION, b"\x28"));
    assert_closes(&gateway, 1007, "a sequence that goes wrong in the next fragment", &halves);
    let reason = [&1000u16.to_be_bytes()[..], b"\xff"].concat();
    assert_closes(&gateway, 1007, "the reason of a Close", &frame(FIN | opcode::CLOSE, &reason));
}

#[test]
fn a_sequence_may_be_cut_between_fragments_and_binary_need_not_be_utf8() {
    let gateway = Gateway::start();
    let mut alice = gateway.raw("alice");
    let text = r#"{"type":"send_message","target_user":"alice","content":"🦀"}"#.as_bytes();
    let crab = text.iter().position(|byte| *byte == 0xf0).expect("a crab");
    for cut in crab..crab + 4 {
        alice.send(&frame(opcode::TEXT, &text[..cut]));
        alice.send(&frame(FIN | opcode::CONTINUATION, &text[cut..]));
        alice.expect(&message_from("alice", "🦀"));
    }
    alice.send(&frame(FIN | opcode::BINARY, b"\xff\xfe\x80"));
    alice.send(&support::raw::text(r#"{"type":"ping"}"#));
    alice.expect(&json!({"type": "pong"}));
}

#[test]
fn a_protocol_error_closes_with_1002() {
    let gateway = Gateway::start();
    let ping = br#"{"type":"ping"}"#;
    let unmasked = [&[FIN | opcode::TEXT, ping.len() as u8][..], ping].concat();
    let first = frame(opcode::TEXT, b"{");
    let with_first = |next: Vec<u8>| [first.clone(), next].concat();
    let close = |payload: &[u8]| frame(FIN | opcode::CLOSE, payload);
    let mut cases = vec![
        ("an unmasked frame", unmasked),
        ("RSV1 with no extension", frame(FIN | 0x40 | opcode::TEXT, ping)),
        ("RSV2", frame(FIN | 0x20 | opcode::TEXT, ping)),
        ("RSV3", frame(FIN | 0x10 | opcode::TEXT, ping)),
        ("RSV1 on a ping", frame(FIN | 0x40 | opcode::PING, b"")),
        ("a ping of 126 bytes", frame(FIN | opcode::PING, &[0; 126])),
        ("a ping that claims 2^40 bytes", header(FIN | opcode::PING, 1 << 40)),
        ("a ping in fragments", frame(opcode::PING, b"")),
        ("a Close in fragments", frame(opcode::CLOSE, b"")),
        ("a continuation of nothing", frame(FIN | opcode::CONTINUATION, ping)),
        ("a continuation of a finished message", [text("1"), frame(FIN | opcode::CONTINUATION, b"")].concat()),
        ("a text within a message", with_first(text("1"))),
        ("a binary within a message", with_first(frame(FIN | opcode::BINARY, b""))),
        ("a length with its highest bit set", header(FIN | opcode::TEXT, 1 << 63)),
        ("a Close of one byte", close(b"\x03")),
    ];
    for reserved in (0x3..=0x7).chain(0xb..=0xf) {
        cases.push(("a reserved opcode", frame(FIN | reserved, b"")));
    }
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        cases.push(("a code that must not be sent", close(&code.to_be_bytes())));
    }
    for (what, bytes) in cases {
        println!("{what}: {}", bytes[..bytes.len().min(16)].escape_ascii());
        let mut client = gateway.raw("mallory");
        client.send_while_taken(&bytes);
        // A text that was whole before the error is still answered.
        let frame = std::iter::from_fn(|| client.next_but_pings()).find(|frame| frame.opcode() != opcode::TEXT);
        let (code, reason) =
            frame.as_ref().and_then(|frame| frame.close()).unwrap_or_else(|| panic!("{what}: {frame:?}"));
        assert_eq!(code, 1002, "{what}: {reason}");
        client.send_while_taken(&frame_of_close(1002));
        assert_eq!(client.next(), None, "{what}: nothing may follow a Close");
    }
    gateway.client("alice").expect_pong();
}

#[test]
fn what_follows_a_close_or_an_error_has_no_effect() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    let to_alice = text(r#"{"type":"send_message","target_user":"alice","content":"too late"}"#);
    for (code, bytes) in [(1000, frame_of_close(1000)), (1002, frame(FIN | 0x3, b""))] {
        let mut client = gateway.raw("mallory");
        client.send(&[bytes, to_alice.clone()].concat());
        client.expect_close(code);
        alice.expect_pong();
    }
    gateway.wait_for_connections(1);
    alice.expect_pong();
}

#[test]
fn pings_are_answered_with_their_payload() {
    let gateway = Gateway::start();
    let mut client = gateway.raw("alice");
    for payload in [&b""[..], b"hello", &[0xff; 125]] {
        client.send(&frame(FIN | opcode::PING, payload));
        let pong = client.next().expect("a pong");
        assert_eq!((pong.first_byte, pong.payload.as_slice()), (FIN | opcode::PONG, payload));
    }
    // RFC 6455 5.5.3: an unasked Pong is allowed, and not answered.
    client.send(&frame(FIN | opcode::PONG, b"unasked"));
    client.send(&text(r#"{"type":"ping"}"#));
    client.expect(&json!({"type": "pong"}));
}

#[test]
fn a_flood_of_control_frames_closes_with_4010() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for kind in [opcode::PING, opcode::PONG] {
        let mut client = gateway.raw("mallory");
        client.send_while_taken(&frame(FIN | kind, b"x").repeat(20_000));
        let close = std::iter::from_fn(|| client.next()).find_map(|frame| frame.close());
        let (code, reason) = close.expect("a Close");
        assert_eq!(code, 4010, "{reason}");
    }
    let mut modest = gateway.raw("bob");
    modest.send(&frame(FIN | opcode::PING, b"x").repeat(40));
    for _ in 0..40 {
        assert_eq!(modest.next().map(|frame| frame.opcode()), Some(opcode::PONG));
    }
    alice.expect_pong();
}

#[test]
fn a_flood_of_fragments_costs_no_more_than_a_message() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    let mut client = gateway.raw("mallory");
    client.stream.set_write_timeout(Some(Duration::from_secs(10))).expect("a write timeout");
    // Empty fragments never reach the limit of bytes. Either their number is limited too, or they cost nothing: then the
    // message, once it ends, is answered as any other.
    client.send_while_taken(&frame(opcode::TEXT, b"{"));
    let empty = frame(opcode::CONTINUATION, b"").repeat(10_000);
    let taken = (0..20).all(|_| client.send_while_taken(&empty));
    let ended = taken && client.send_while_taken(&frame(FIN | opcode::CONTINUATION, b"}"));
    alice.expect_pong();
    match client.next_but_pings() {
        Some(frame) if frame.opcode() == opcode::CLOSE => {
            let (code, reason) = frame.close().expect("a code");
            assert!([1002, 1008, 1009, 4010].contains(&code), "{code} {reason}");
        }
        Some(frame) => assert_eq!((ended, frame.opcode()), (true, opcode::TEXT), "{frame:?}"),
        None => assert!(!ended, "the whole flood was taken, and the stream ends with no answer"),
    }
}

#[test]
fn one_byte_fragments_up_to_the_limit_are_a_message() {
    let gateway = Gateway::with(&[("--message-bytes-max", "4KiB")]);
    let mut alice = gateway.raw("alice");
    let message = message_of(4096);
    let mut bytes = frame(opcode::TEXT, &message.as_bytes()[..1]);
    for byte in &message.as_bytes()[1..] {
        bytes.extend(frame(opcode::CONTINUATION, &[*byte]));
    }
    let mut over = bytes.clone();
    bytes.extend(frame(FIN | opcode::CONTINUATION, b""));
    alice.send(&bytes);
    let frame = alice.next_but_pings().expect("a delivery");
    assert_eq!(frame.opcode(), opcode::TEXT, "{frame:?}");
    over.extend(support::raw::frame(opcode::CONTINUATION, b"x"));
    alice.send_while_taken(&over);
    alice.expect_close(1009);
}

#[test]
fn frames_may_be_cut_anywhere_on_their_way() {
    let gateway = Gateway::start();
    let mut random = support::random::Random::from_environment();
    let mut alice = gateway.raw("alice");
    let mut bytes = Vec::new();
    let lengths: Vec<usize> = (0..60).map(|_| [0, 1, 60, 125, 126, 1000, 60_000][random.below(7)]).collect();
    for length in &lengths {
        let content = "c".repeat(*length);
        bytes.extend(text(&format!(r#"{{"type":"send_message","target_user":"alice","content":"{content}"}}"#)));
    }
    let mut writer = alice.stream.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let most = [1, 2, 7, 100, 20_000][random.below(5)];
                let (piece, after) = rest.split_at(rest.len().min(1 + random.below(most)));
                writer.write_all(piece).expect("the piece is taken");
                rest = after;
            }
        });
        for length in &lengths {
            alice.expect(&message_from("alice", "c".repeat(*length)));
        }
    });
}

#[test]
fn a_client_that_vanishes_within_a_frame_is_gone() {
    let gateway = Gateway::start();
    for cut in [1, 3, 6, 10] {
        let mut client: RawClient = gateway.raw("mallory");
        client.send(&text(r#"{"type":"ping"}"#)[..cut]);
        drop(client);
    }
    gateway.wait_for_connections(0);
    gateway.client("alice").expect_pong();
}
