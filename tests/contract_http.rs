//! Goal: every line of the contract's HTTP table holds on the wire.
//! Method: requests written by hand, so that nothing stands between the test and the bytes.

mod support;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::json;
use support::client::message_from;
use support::http::{self, Response, upgrade_head, ws_target};
use support::{Client, DEADLINE, Gateway, RawClient, eventually};

/// Asks for an upgrade as `user` and returns the answer, whatever it is.
fn ask(gateway: &Gateway, user: &str) -> Response {
    http::request(gateway.addr, upgrade_head(&ws_target(user)))
}

/// Asks for an upgrade as `user` from a given address.
fn ask_from(gateway: &Gateway, source: IpAddr, user: &str) -> Response {
    let mut stream = http::open_from(Some(source), gateway.addr);
    stream.write_all(upgrade_head(&ws_target(user)).as_bytes()).expect("the head is taken");
    http::read_response(&mut stream)
}

#[test]
fn an_upgrade_is_answered_as_rfc_6455_says() {
    let gateway = Gateway::start();
    let response = ask(&gateway, "alice");
    assert_eq!(response.status, 101);
    // RFC 6455 1.3 gives this key with this answer.
    assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(response.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")), "{response:?}");
    assert!(response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")), "{response:?}");
    assert_eq!(response.header("sec-websocket-protocol"), None, "none was asked for");
    assert_eq!(response.header("sec-websocket-extensions"), None, "none was asked for");
}

#[test]
fn the_upgrade_headers_are_read_as_lists_without_regard_to_case() {
    let gateway = Gateway::start();
    // Firefox sends `keep-alive, Upgrade`, and a proxy may write names in any case.
    let head = "GET /ws?user_id=alice HTTP/1.1\r\nhost: localhost\r\nUPGRADE: WebSocket\r\n\
                connection: keep-alive, Upgrade\r\nsec-websocket-version: 13\r\n\
                sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://localhost\r\n\r\n";
    assert_eq!(http::request(gateway.addr, head).status, 101);
}

#[test]
fn the_connection_belongs_to_the_user_in_the_query() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    let mut bob = gateway.client("bob");
    alice.send_to("bob", "1");
    bob.expect(&message_from("alice", 1));
}

#[test]
fn a_user_id_is_percent_decoded() {
    let gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    for (query, user) in [
        ("/ws?user_id=b%6Fb", "bob"),
        ("/ws?other=1&user_id=carol&more=2", "carol"),
        ("/ws?user_id=a%26b%3Dc%3F", "a&b=c?"),
        ("/ws?user_id=two+words", "two words"),
        ("/ws?user_id=%E6%97%A5%E6%9C%AC", "日本"),
        ("/ws?user_id=%F0%9F%A6%80", "🦀"),
    ] {
        let mut stream = http::open(gateway.addr);
        stream.write_all(upgrade_head(query).as_bytes()).expect("the head is taken");
        assert_eq!(http::read_response(&mut stream).status, 101, "{query}");
        alice.send_to(user, "null");
        let text = read_text(&mut stream);
        assert_eq!(text, message_from("alice", ()), "{query} is {user}");
    }
}

/// The next frame of an upgraded stream, as JSON.
fn read_text(stream: &mut TcpStream) -> serde_json::Value {
    use std::io::Read;
    let mut header = [0; 2];
    stream.read_exact(&mut header).expect("a frame");
    assert_eq!(header[0], 0x81, "an unfragmented text");
    let mut payload = vec![0; usize::from(header[1])];
    stream.read_exact(&mut payload).expect("a payload");
    serde_json::from_slice(&payload).expect("JSON")
}

#[test]
fn a_missing_or_empty_user_id_is_upgraded_and_closed_with_4001() {
    let gateway = Gateway::start();
    for target in ["/ws", "/ws?", "/ws?user_id", "/ws?user_id=", "/ws?user=alice"] {
        let mut client = upgraded(&gateway, target);
        assert_eq!(client.expect_close(4001), "Missing user_id", "{target}");
    }
    gateway.wait_for_connections(0);
}

/// A raw client on any target that is answered with a 101.
fn upgraded(gateway: &Gateway, target: &str) -> RawClient {
    RawClient::upgrade_to(http::open(gateway.addr), target)
}

#[test]
fn a_user_id_is_bounded_in_bytes_after_decoding() {
    let gateway = Gateway::start();
    let two_bytes_each = "é".repeat(128);
    for user in ["u".repeat(256), two_bytes_each] {
        assert_eq!(ask(&gateway, &user).status, 101, "256 bytes: {user}");
    }
    for user in ["u".repeat(257), "é".repeat(129), "u".repeat(1000)] {
        assert_eq!(ask(&gateway, &user).status, 400, "{} bytes: {user}", user.len());
    }
    assert_eq!(http::request(gateway.addr, upgrade_head(&format!("/ws?user_id={}", "u".repeat(257)))).status, 400);
}

#[test]
fn a_user_id_that_is_not_utf8_is_a_bad_request() {
    let gateway = Gateway::start();
    // A lone byte, a cut sequence, an overlong slash and a surrogate.
    for id in ["%FF", "alice%C3", "%C0%AF", "%ED%A0%80"] {
        let response = http::request(gateway.addr, upgrade_head(&format!("/ws?user_id={id}")));
        assert_eq!(response.status, 400, "{id}");
    }
}

#[test]
fn ws_without_upgrade_headers_is_426() {
    let gateway = Gateway::start();
    let response = http::get(gateway.addr, "/ws?user_id=alice");
    assert_eq!(response.status, 426);
    // RFC 9110 15.5.22: a 426 must say which protocol is wanted.
    assert!(response.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")), "{response:?}");
    let text = response.text();
    assert!(!text.is_empty() && text.len() < 200, "a short text, not {text:?}");
}

#[test]
fn an_unknown_websocket_version_is_told_the_known_one() {
    let gateway = Gateway::start();
    let head = upgrade_head("/ws?user_id=alice").replace("Version: 13", "Version: 8");
    let response = http::request(gateway.addr, head);
    // RFC 6455 4.4.
    assert_eq!(response.status, 426);
    assert_eq!(response.header("sec-websocket-version"), Some("13"));
}

#[test]
fn a_malformed_upgrade_is_a_bad_request() {
    let gateway = Gateway::start();
    let good = upgrade_head("/ws?user_id=alice");
    for (what, head) in [
        ("no key", good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")),
        ("a key of no 16 bytes", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")),
        ("no HTTP", "hello\r\n\r\n".to_owned()),
        ("a header without a colon", good.replace("Upgrade: websocket", "Upgrade websocket")),
    ] {
        assert_eq!(http::request(gateway.addr, head).status, 400, "{what}");
    }
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let gateway = Gateway::start();
    let mut stream = http::open(gateway.addr);
    for byte in upgrade_head("/ws?user_id=alice").bytes() {
        stream.write_all(&[byte]).expect("the byte is taken");
    }
    assert_eq!(http::read_response(&mut stream).status, 101);
}

#[test]
fn frames_may_follow_the_head_at_once() {
    let gateway = Gateway::start();
    let mut stream = http::open(gateway.addr);
    let mut bytes = upgrade_head("/ws?user_id=alice").into_bytes();
    bytes.extend(support::raw::text(r#"{"type":"ping"}"#));
    bytes.extend(support::raw::text(r#"{"type":"send_message","target_user":"alice","content":7}"#));
    stream.write_all(&bytes).expect("the bytes are taken");
    let mut client = RawClient::after_head(stream);
    client.expect(&json!({"type": "pong"}));
    client.expect(&message_from("alice", 7));
}

#[test]
fn health_is_exact_and_counts_the_connections_of_all_shards() {
    let gateway = Gateway::start();
    let health = |connections: usize| json!({"status": "ok", "node_id": gateway.node_id, "connections": connections});
    let response = http::get(gateway.addr, "/health");
    assert_eq!(response.status, 200);
    assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{response:?}");
    assert_eq!(gateway.health(), health(0));
    // By the hash that spreads them, the chance that 32 connections all go to one of two shards is 2^-31.
    let mut clients = gateway.clients("user", 32);
    assert_eq!(gateway.health(), health(32), "a connection counts from its 101 on");
    for client in clients.drain(..12) {
        client.close();
    }
    for client in clients.drain(..12) {
        client.vanish();
    }
    gateway.wait_for_connections(8);
    assert_eq!(gateway.health(), health(8));
}

#[test]
fn ready_is_200_while_connections_are_taken() {
    let gateway = Gateway::start();
    assert_eq!(http::get(gateway.addr, "/ready").status, 200);
}

#[test]
fn other_paths_are_404_and_metrics_is_one_of_them_on_the_public_port() {
    let gateway = Gateway::start();
    for path in ["/", "/nothing", "/wss", "/ws/", "/healthy", "/metrics", "/metrics?x=1"] {
        assert_eq!(http::get(gateway.addr, path).status, 404, "{path}");
    }
    assert_eq!(http::get(gateway.admin, "/metrics").status, 200);
    assert_eq!(http::get(gateway.admin, "/nothing").status, 404);
}

#[test]
fn a_wrong_method_is_405() {
    let gateway = Gateway::start();
    for (path, method) in [("/health", "POST"), ("/ready", "DELETE"), ("/ws?user_id=alice", "PUT")] {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let response = http::request(gateway.addr, head);
        assert_eq!(response.status, 405, "{method} {path}");
        // RFC 9110 15.5.6: a 405 must name the methods that are allowed.
        assert!(response.header("allow").is_some_and(|allowed| allowed.contains("GET")), "{response:?}");
    }
    let post = upgrade_head("/ws?user_id=alice").replacen("GET", "POST", 1);
    assert_eq!(http::request(gateway.addr, post).status, 405, "an upgrade by POST");
}

#[test]
fn an_over_long_head_is_431() {
    let gateway = Gateway::start();
    let head = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(16 * 1024));
    assert_eq!(http::request(gateway.addr, head).status, 431);
    // The answer must not wait for an end of the head that may never come.
    let endless = format!("GET /health HTTP/1.1\r\nX-Long: {}", "x".repeat(16 * 1024));
    assert_eq!(http::request(gateway.addr, endless).status, 431);
    assert_eq!(http::request(gateway.addr, format!("GET /{} HTTP/1.1\r\n", "x".repeat(16 * 1024))).status, 431);
    let modest = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(4 * 1024));
    assert_eq!(http::request(gateway.addr, modest).status, 200, "cookies and tokens of 4 KiB are common");
}

#[test]
fn no_head_within_the_deadline_is_408_and_the_end() {
    let gateway = Gateway::with(&[("--handshake-timeout", "500ms")]);
    assert_ends_with_408(&mut halting_client(&gateway), "a client that stops within the head");
}

#[test]
fn a_client_that_says_nothing_gets_a_408_too() {
    let gateway = Gateway::with(&[("--handshake-timeout", "500ms")]);
    assert_ends_with_408(&mut http::open(gateway.addr), "a client that says nothing");
}

/// A client that stops within its head.
fn halting_client(gateway: &Gateway) -> TcpStream {
    let mut stream = http::open(gateway.addr);
    stream.write_all(b"GET /ws?user_id=alice HTTP/1.1\r\nHost:").expect("the bytes are taken");
    stream
}

/// Reads a 408 and then the end of the stream.
fn assert_ends_with_408(stream: &mut TcpStream, what: &str) {
    use std::io::Read;
    assert_eq!(http::read_response(stream).status, 408, "{what}");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the stream ends");
    assert!(rest.is_empty(), "{what}: {rest:?} after the 408");
}

#[test]
fn the_handshake_deadline_is_not_moved_by_each_byte() {
    let gateway = Gateway::with(&[("--handshake-timeout", "1s")]);
    let mut drip = http::open(gateway.addr);
    drip.write_all(b"GET / HTTP/1.1\r\nX: ").expect("the bytes are taken");
    // One byte each 50 ms up to the deadline of the test: an answer must come although there is never a pause.
    drip.set_read_timeout(Some(Duration::from_millis(50))).expect("a read timeout");
    eventually("an answer to a head that drips", DEADLINE, || {
        let mut byte = [0];
        let _ = drip.write_all(b"x");
        drip.peek(&mut byte).is_ok().then_some(())
    });
    assert_eq!(http::read_response(&mut drip).status, 408);
}

#[test]
fn a_connection_that_upgraded_in_time_outlives_the_handshake_deadline() {
    let gateway = Gateway::with(&[("--handshake-timeout", "500ms")]);
    let mut client = gateway.client("alice");
    // The 408 of a later connection is the sign that the deadline of the earlier one has passed.
    assert_ends_with_408(&mut halting_client(&gateway), "a client that stops within the head");
    client.expect_pong();
}

#[test]
fn at_the_cap_ws_is_503_and_health_still_answers() {
    let gateway = Gateway::with(&[("--connections-max", "6")]);
    let mut clients = gateway.clients("user", 6);
    for _ in 0..8 {
        let response = ask(&gateway, "late");
        assert_eq!(response.status, 503);
        assert!(response.retry_after() > 0);
        assert_eq!(gateway.connections(), 6);
    }
    // "Before any upgrade work": neither the user id nor the headers have been looked at.
    assert_eq!(http::request(gateway.addr, upgrade_head("/ws?user_id=%FF")).status, 503);
    for client in &mut clients {
        client.expect_pong();
    }
    clients.pop().expect("a client").close();
    gateway.wait_for_connections(5);
    let mut next = gateway.client("late");
    next.expect_pong();
    assert_eq!(ask(&gateway, "too late").status, 503);
}

#[test]
fn a_node_at_its_cap_is_not_ready() {
    let gateway = Gateway::with(&[("--connections-max", "2")]);
    let mut clients = gateway.clients("user", 2);
    assert_eq!(http::get(gateway.addr, "/ready").status, 503, "no new connections are taken");
    clients.pop().expect("a client").close();
    eventually("a node that is ready again", DEADLINE, || {
        (http::get(gateway.addr, "/ready").status == 200).then_some(())
    });
}

#[test]
fn the_cap_is_the_nodes_and_any_shard_may_fill_it() {
    let gateway = Gateway::with(&[("--connections-max", "9"), ("--shards", "4")]);
    let clients = gateway.clients("user", 9);
    assert_eq!(ask(&gateway, "late").status, 503, "9 connections on 4 shards, however they are spread");
    drop(clients);
}

#[test]
fn one_address_may_ask_so_often_over_all_shards() {
    let gateway = Gateway::with(&[("--connects-per-address-max", "10"), ("--connects-per-address-window", "60s")]);
    let source = |last| IpAddr::V4(Ipv4Addr::new(127, 9, 0, last));
    for at in 0..10 {
        assert_eq!(ask_from(&gateway, source(1), &format!("user{at}")).status, 101, "ask {at}");
    }
    for _ in 0..8 {
        let response = ask_from(&gateway, source(1), "late");
        assert_eq!(response.status, 429);
        // The window may slide in steps, and seconds are rounded up.
        assert!((1..=61).contains(&response.retry_after()), "{response:?}");
    }
    // Another address has its own count, and what is no `/ws` is not counted at all.
    assert_eq!(ask_from(&gateway, source(2), "bob").status, 101);
    assert_eq!(http::get(gateway.addr, "/health").status, 200);
    for _ in 0..20 {
        let mut stream = http::open_from(Some(source(3)), gateway.addr);
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the head is taken");
        assert_eq!(http::read_response(&mut stream).status, 200);
    }
    assert_eq!(ask_from(&gateway, source(3), "carol").status, 101);
}

#[test]
fn a_forwarded_address_of_an_untrusted_peer_is_ignored() {
    let gateway = Gateway::with(&[("--connects-per-address-max", "3")]);
    let ask_as = |claimed: &str| {
        let lines = format!("X-Forwarded-For: {claimed}\r\nX-Real-IP: {claimed}\r\nUpgrade: websocket");
        http::request(gateway.addr, upgrade_head("/ws?user_id=alice").replace("Upgrade: websocket", &lines)).status
    };
    let answers: Vec<u16> = (0..4).map(|at| ask_as(&format!("10.0.0.{at}"))).collect();
    assert_eq!(answers, [101, 101, 101, 429]);
}

#[test]
fn the_window_passes() {
    let gateway = Gateway::with(&[("--connects-per-address-max", "5"), ("--connects-per-address-window", "2s")]);
    let source = IpAddr::V4(Ipv4Addr::new(127, 9, 0, 4));
    let refused = loop {
        let response = ask_from(&gateway, source, "alice");
        if response.status != 101 {
            break response;
        }
    };
    assert_eq!(refused.status, 429);
    // The answer says how long to wait; a client that obeys is let in.
    // Being patient is what is tested.
    #[allow(clippy::disallowed_methods)]
    std::thread::sleep(Duration::from_secs(refused.retry_after()));
    let mut client = Client::connect_from(Some(source), gateway.addr, "alice");
    client.expect_pong();
}
