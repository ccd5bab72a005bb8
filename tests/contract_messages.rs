//! Goal: every line of the contract's table of client frames holds, and `content` comes out as it went in.
//! Method: tungstenite clients. That nothing arrives is shown by a later message, sent the same way, that comes next.

mod support;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use support::client::{broadcast_from, message_from};
use support::{Client, Gateway};
use tungstenite::Message;

/// A delivery with its `content` as the bytes that came.
#[derive(Deserialize)]
struct RawDelivery<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    from: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// Reads the next message as a delivery of this kind and returns the bytes of its content.
#[track_caller]
fn next_content(client: &mut Client, kind: &str, from: &str) -> String {
    let text = client.next_text();
    let delivery: RawDelivery<'_> =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in a delivery of {} bytes", text.len()));
    assert_eq!((delivery.kind, delivery.from.as_str()), (kind, from));
    delivery.content.get().to_owned()
}

#[test]
fn ping_is_answered_pong_to_the_asker_alone() {
    let gateway = Gateway::start();
    let [mut alice, mut bob] = ["alice", "bob"].map(|user| gateway.client(user));
    alice.expect_pong();
    alice.send_to("bob", r#""after""#);
    bob.expect(&message_from("alice", "after"));
}

#[test]
fn pongs_come_in_the_order_of_the_frames() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for _ in 0..50 {
        alice.send_text(r#"{"type":"ping"}"#);
        alice.send_text("nonsense");
    }
    for _ in 0..50 {
        alice.expect(&json!({"type": "pong"}));
        alice.expect(&json!({"type": "error", "message": "Invalid JSON"}));
    }
}

#[test]
fn send_message_reaches_its_target_and_nobody_else() {
    let gateway = Gateway::start();
    let mut clients = gateway.clients("user", 8);
    for target in 0..8 {
        clients[0].send_to(&format!("user{target}"), r#"{"text":"hi","n":[1,2]}"#);
    }
    clients[0].broadcast(r#""end""#);
    for client in &mut clients {
        // The two kinds have no order between them, so both are read before they are told apart.
        let mut got = [client.next_json(), client.next_json()];
        got.sort_by_key(|frame| frame["type"].as_str().map(str::to_owned));
        assert_eq!(got[0], broadcast_from("user0", "end"));
        assert_eq!(got[1], message_from("user0", json!({"text": "hi", "n": [1, 2]})));
        client.expect_pong();
    }
}

#[test]
fn missing_content_is_null() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    alice.send(&json!({"type": "send_message", "target_user": "alice"}));
    alice.expect(&message_from("alice", Value::Null));
    alice.send(&json!({"type": "broadcast"}));
    alice.expect(&broadcast_from("alice", Value::Null));
}

#[test]
fn broadcast_reaches_everybody_and_the_sender_too() {
    let gateway = Gateway::start();
    let mut clients = gateway.clients("user", 16);
    for at in 0..3 {
        clients[5].broadcast(&format!(r#"{{"at":{at}}}"#));
    }
    for client in &mut clients {
        for at in 0..3 {
            client.expect(&broadcast_from("user5", json!({"at": at})));
        }
        client.expect_pong();
    }
}

/// JSON texts without space between their tokens: what comes out must be the same bytes.
fn contents() -> Vec<String> {
    let mut contents: Vec<String> = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "0.1000",
        "1e400",
        "-1E-400",
        "1.0",
        "1E+2",
        "123456789012345678901234567890.123456789012345678901234567890",
        "18446744073709551616",
        r#""""#,
        r#""plain""#,
        r#""\u0041\/\b\f\n\r\t\"\\""#,
        r#""\ud83e\udd80""#,
        r#""\ud800""#,
        r#""\u0000""#,
        r#""日本 🦀 é \u202e \u2028""#,
        "\"\u{2028}\u{7f}\u{feff}\"",
        "[]",
        "{}",
        "[[],{},[null]]",
        r#"{"a":1,"a":2,"a":3}"#,
        r#"{"":{"":""}}"#,
        r#"{"z":1,"b":2,"y":3,"a":4}"#,
        r#"{"type":"ping"}"#,
        r#"{"from":"mallory","type":"message","content":0}"#,
        r#"["}","{","]","\"","\\"]"#,
    ]
    .map(str::to_owned)
    .into();
    // Nested deeper than any recursive parser's stack or limit would bear.
    contents.push(format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)));
    contents.push(format!("{}0{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000)));
    contents.push(format!("\"{}\"", "x".repeat(60_000)));
    // Around the lengths where a frame's header changes its form.
    contents.extend((60..140).chain(65_400..65_420).map(|length| format!("\"{}\"", "y".repeat(length))));
    contents
}

#[test]
fn content_of_any_kind_passes_through_byte_for_byte() {
    let gateway = Gateway::start();
    let [mut alice, mut bob] = ["alice", "bob"].map(|user| gateway.client(user));
    for content in contents() {
        alice.send_to("bob", &content);
        assert!(next_content(&mut bob, "message", "alice") == content, "to bob, altered: {content:.300}");
        alice.broadcast(&content);
        for client in [&mut alice, &mut bob] {
            assert!(next_content(client, "broadcast", "alice") == content, "broadcast, altered: {content:.300}");
        }
    }
}

#[test]
fn the_place_of_content_among_the_fields_does_not_matter() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for frame in [
        r#"{"content":[1e400],"target_user":"alice","type":"send_message"}"#,
        r#"{"content":[1e400],"type":"send_message","unknown":{"content":2},"target_user":"alice"}"#,
        "\t{ \"type\" : \"send_message\" ,\r\n \"target_user\" : \"alice\" , \"content\" : [1e400] } \n",
        r#"{"\u0074ype":"send\u005fmessage","target_\u0075ser":"\u0061lice","conten\u0074":[1e400]}"#,
    ] {
        alice.send_text(frame);
        assert_eq!(next_content(&mut alice, "message", "alice"), "[1e400]", "{frame}");
    }
}

#[test]
fn space_within_content_may_go_but_nothing_else() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    alice.send_to("alice", "{ \"a\" : [ 1 , 2.50 ] ,\n\t\"b c\" : \" d \" }");
    let mut content = next_content(&mut alice, "message", "alice");
    content.retain(|char| !char.is_ascii_whitespace());
    assert_eq!(content, r#"{"a":[1,2.50],"bc":"d"}"#);
}

#[test]
fn what_is_not_json_is_told_and_the_connection_stays() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    let not_json = [
        "",
        " ",
        "hello",
        "{",
        "}",
        r#"{"type":"ping""#,
        r#"{"type":"ping"}}"#,
        r#"{"type":"ping"} {"#,
        "{'type':'ping'}",
        r#"{"type":"ping",}"#,
        r#"{type:"ping"}"#,
        r#"{"type":"broadcast","content":NaN}"#,
        "\u{feff}{}",
        "\0",
        r#"{"type":"broadcast","content":01}"#,
        r#"{"type":"broadcast","content":[1,]}"#,
        "{\"type\":\"broadcast\",\"content\":\"\n\"}",
        r#"{"type":"broadcast","content":"\x"}"#,
        r#"{"type":"broadcast","content":}"#,
    ];
    for text in not_json {
        alice.send_text(text);
        let frame = alice.next_json();
        assert_eq!(frame, json!({"type": "error", "message": "Invalid JSON"}), "{text:?}");
        alice.expect_pong();
    }
}

#[test]
fn json_that_is_no_object_is_told_and_the_connection_stays() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    for text in ["null", "true", "1", "-1.5e3", r#""ping""#, r#"["type","ping"]"#, "[]", r#"[{"type":"ping"}]"#, &deep]
    {
        alice.send_text(text);
        let frame = alice.next_json();
        assert_eq!(frame, json!({"type": "error", "message": "Invalid JSON"}), "{text:.100}");
        alice.expect_pong();
    }
}

#[test]
fn unknown_types_and_wrong_fields_get_an_error_with_a_code() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for frame in [
        json!({}),
        json!({"content": 1}),
        json!({"type": "dance"}),
        json!({"type": "PING"}),
        json!({"type": ""}),
        json!({"type": 5}),
        json!({"type": null}),
        json!({"type": ["ping"]}),
        json!({"type": {"type": "ping"}}),
        json!({"type": "send_message"}),
        json!({"type": "send_message", "content": "for nobody"}),
        json!({"type": "send_message", "target_user": null, "content": 1}),
        json!({"type": "send_message", "target_user": 7, "content": 1}),
        json!({"type": "send_message", "target_user": ["alice"], "content": 1}),
        json!({"type": "send_message", "target_user": {"alice": 1}, "content": 1}),
    ] {
        alice.send(&frame);
        let (message, code) = alice.expect_error();
        assert!(!message.is_empty() && message != "Invalid JSON", "{message:?} for {frame}");
        assert!(code.as_ref().is_some_and(|code| !code.is_empty()), "no code for {frame}");
        alice.expect_pong();
    }
}

#[test]
fn an_error_goes_to_the_connection_that_made_it() {
    let gateway = Gateway::start();
    let [mut first, mut second] = ["alice", "alice"].map(|user| gateway.client(user));
    first.send_text("nonsense");
    first.expect_error();
    second.expect_pong();
}

#[test]
fn fields_that_a_frame_does_not_have_are_ignored() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    alice.send(&json!({"type": "ping", "content": {"a": [1]}, "more": null}));
    alice.expect(&json!({"type": "pong"}));
    alice.send(&json!({"type": "broadcast", "from": "mallory", "target_user": "bob", "content": 1}));
    alice.expect(&broadcast_from("alice", 1));
}

#[test]
fn a_binary_frame_is_ignored() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for payload in [b"".to_vec(), br#"{"type":"ping"}"#.to_vec(), vec![0xff; 40_000]] {
        alice.send_message(Message::binary(payload));
        alice.expect_pong();
    }
}

#[test]
fn a_message_to_nobody_is_silent() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for target in ["nobody", "ALICE", "alice ", "\u{0}", "日本", &"u".repeat(1000)] {
        alice.send_to(target, "1");
        alice.expect_pong();
    }
    // On one shard: what she sends to another one may still be on its way there when he is back.
    let gateway = Gateway::with(&[("--shards", "1")]);
    let mut alice = gateway.client("alice");
    let bob = gateway.client("bob");
    bob.close();
    gateway.wait_for_connections(1);
    alice.send_to("bob", "2");
    alice.expect_pong();
    // Nothing is kept for bob either: what he gets first is what is sent after he is back.
    let mut bob = gateway.client("bob");
    alice.send_to("bob", "3");
    bob.expect(&message_from("alice", 3));
}

#[test]
fn user_ids_are_escaped_in_json() {
    let gateway = Gateway::start();
    let users = [
        r#"a"b"#,
        r"a\b",
        "a\nb\r\t",
        "\u{1}\u{1f}\u{7f}",
        "</script>",
        "é日本🦀",
        "\u{2028}",
        r#"","from":"x"#,
        "%41",
        "a b+c",
        "0",
    ];
    let mut alice = gateway.client("alice");
    for user in users {
        let mut client = gateway.client(user);
        client.send_to("alice", "1");
        alice.expect(&message_from(user, 1));
        alice.send_to(user, "2");
        client.expect(&message_from("alice", 2));
        client.broadcast("3");
        client.expect(&broadcast_from(user, 3));
        alice.expect(&broadcast_from(user, 3));
        client.close();
    }
}

#[test]
fn one_may_write_to_oneself() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for at in 0..100 {
        alice.send_to("alice", &at.to_string());
    }
    for at in 0..100 {
        alice.expect(&message_from("alice", at));
    }
}

#[test]
fn a_message_may_come_in_fragments_with_control_frames_between() {
    use support::raw::{FIN, frame, opcode};
    let gateway = Gateway::start();
    let mut alice = gateway.raw("alice");
    let text = r#"{"type":"send_message","target_user":"alice","content":"日本"}"#.as_bytes();
    let mut bytes = frame(opcode::TEXT, &text[..1]);
    for (at, byte) in text[1..].iter().enumerate() {
        if at % 10 == 0 {
            bytes.extend(frame(FIN | opcode::PING, &[at as u8]));
        }
        bytes.extend(frame(opcode::CONTINUATION, &[*byte]));
    }
    bytes.extend(frame(FIN | opcode::CONTINUATION, b""));
    alice.send(&bytes);
    for at in (0..text.len() - 1).step_by(10) {
        let pong = alice.next().expect("a pong");
        assert_eq!((pong.opcode(), pong.payload.as_slice()), (opcode::PONG, &[at as u8][..]));
    }
    alice.expect(&message_from("alice", "日本"));
}

#[test]
fn the_close_handshake_echoes_the_code() {
    let gateway = Gateway::start();
    for code in [1000, 1001, 3000, 4999] {
        let mut client = gateway.raw("alice");
        client.send(&support::raw::frame_of_close(code));
        client.expect_close(code);
    }
    let mut client = gateway.raw("alice");
    client.send(&support::raw::frame(support::raw::FIN | support::raw::opcode::CLOSE, b""));
    let answer = client.next_but_pings().expect("a Close");
    assert_eq!((answer.opcode(), answer.payload.len()), (support::raw::opcode::CLOSE, 0), "no code is echoed as none");
    assert_eq!(client.next(), None);
    gateway.wait_for_connections(0);
}
