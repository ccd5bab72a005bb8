//! A panic while one connection's bytes are read costs that connection, and nothing else of the shard.

use std::io::Write;

use serde_json::json;

use super::PANICS;
use super::support::Shards;

#[test]
fn a_panic_in_the_parser_closes_that_connection_with_1011_and_no_other() {
    let shards = Shards::start(1, |_| ());
    let (mut alice, mut bob) = (shards.client(0, "alice"), shards.client(0, "bob"));
    for round in 1..=3 {
        let mut mallory = shards.client(0, "mallory");
        bob.send_to("mallory", &json!(round));
        mallory.expect_from("bob", &json!(round));
        mallory.send(PANICS);
        mallory.expect_close(1011);
        assert_eq!(shards.sum(|metrics| &metrics.closes_internal_error), round);
        alice.send_to("bob", &json!(["still here", round]));
        bob.expect_from("alice", &json!(["still here", round]));
        alice.expect_pong();
    }
    assert_eq!(shards.sum(|metrics| &metrics.connections), 2);
}

#[test]
fn what_stands_behind_it_in_the_same_bytes_is_not_read() {
    let shards = Shards::start(1, |_| ());
    let (mut bob, mut mallory) = (shards.client(0, "bob"), shards.client(0, "mallory"));
    let mut bytes = masked(r#"{"type":"send_message","target_user":"bob","content":"before"}"#);
    bytes.extend(masked(PANICS));
    bytes.extend(masked(r#"{"type":"send_message","target_user":"bob","content":"behind"}"#));
    mallory.stream().write_all(&bytes).unwrap();
    mallory.expect_close(1011);
    bob.expect_from("mallory", &json!("before"));
    bob.expect_pong();
}

/// A short text message as a client frames it.
fn masked(text: &str) -> Vec<u8> {
    assert!(text.len() < 126);
    let key = [3, 1, 4, 1];
    let mut frame = vec![0x81, 0x80 | text.len() as u8];
    frame.extend(key);
    frame.extend(text.bytes().zip(key.into_iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}
