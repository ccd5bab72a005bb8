//! Goal: the limit of each address counts clients, not the proxies that speak for them; nobody else can name a client; and
//! a port that wants a PROXY header takes nothing else.
//!
//! Method: the limit itself tells addresses apart. A proxy is a socket from 127.0.0.1, anybody else one from 127.0.0.9.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::json;
use support::client::message_from;
use support::process::Process;
use support::{DEADLINE, Gateway, RawClient, eventually, http, raw};

const PROXY: &str = "127.0.0.1";
const ANYBODY: &str = "127.0.0.9";

/// What a request for `/ws` is answered, from this source, with these bytes in front and these header fields added.
fn ask(addr: SocketAddr, source: &str, in_front: &[u8], fields: &str) -> u16 {
    let mut stream = http::open_from(Some(source.parse().expect("an address")), addr);
    let head = http::upgrade_head("/ws?user_id=alice");
    let head = format!("{}{fields}\r\n", head.strip_suffix("\r\n").expect("a head ends with an empty line"));
    stream.write_all(&[in_front, head.as_bytes()].concat()).expect("the head is taken");
    http::read_response(&mut stream).status
}

fn v1(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 10.0.0.1 4711 80\r\n").into()
}

/// A version 2 header with an extension behind its addresses.
fn v2(command: u8, source: [u8; 4]) -> Vec<u8> {
    let fixed = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, 0x11, 0, 12 + 8]].concat();
    [&fixed[..], &source, &[10, 0, 0, 1, 0x12, 0x67, 0, 80], &[0x04, 0, 5], b"extra"].concat()
}

fn counted(gateway: &Gateway, result: &str) -> f64 {
    gateway.metrics().sum("ringmesh_forwarded_total", &[("result", result)])
}

fn without_header(gateway: &Gateway) -> f64 {
    gateway.metrics().sum("ringmesh_refused_total", &[("reason", "proxy_header")])
}

#[test]
fn forged_headers_are_ignored_and_counted() {
    let gateway = Gateway::with(&[("--connects-per-address-max", "3")]);
    let from = |number: usize| match number {
        0 => "X-Forwarded-For: 10.1.1.1\r\n",
        1 => "X-Real-IP: 10.1.1.2\r\n",
        _ => "X-Forwarded-For: 10.1.1.3, 10.1.1.4\r\nX-Forwarded-For: 10.1.1.5\r\n",
    };
    let answers: Vec<u16> = (0..4).map(|number| ask(gateway.addr, ANYBODY, b"", from(number))).collect();
    assert_eq!(answers, [101, 101, 101, 429]);
    assert_eq!((counted(&gateway, "untrusted"), counted(&gateway, "believed")), (4.0, 0.0));
}

#[test]
fn a_trusted_proxy_names_its_clients() {
    let flags = [("--connects-per-address-max", "1"), ("--trusted-proxies", "127.0.0.1,10.0.0.0/8")];
    let gateway = Gateway::with(&flags);
    let through_proxy = |fields: &str| ask(gateway.addr, PROXY, b"", fields);
    assert_eq!(through_proxy("X-Forwarded-For: 192.0.2.1\r\n"), 101);
    assert_eq!(through_proxy("X-Forwarded-For: 192.0.2.2\r\n"), 101);
    // Whatever the client put to the left, and whichever of our proxies stand to the right.
    assert_eq!(through_proxy("X-Forwarded-For: 192.0.2.99, 192.0.2.1\r\n"), 429);
    assert_eq!(through_proxy("X-Forwarded-For: 192.0.2.98\r\nX-Forwarded-For: 192.0.2.1, 10.7.7.7\r\n"), 429);
    assert_eq!(through_proxy("X-Forwarded-For: [2001:db8:0:1::1]:99\r\n"), 101);
    assert_eq!(through_proxy("X-Forwarded-For: 2001:db8:0:1::2\r\n"), 429, "the same /64");
    assert_eq!(through_proxy("X-Real-IP: 192.0.2.3\r\n"), 101);
    assert_eq!(through_proxy("X-Real-IP: 192.0.2.3\r\n"), 429);
    assert_eq!(counted(&gateway, "believed"), 8.0);
    // No header, and one that cannot be read: the proxy's own address.
    assert_eq!(through_proxy(""), 101);
    assert_eq!(through_proxy("X-Forwarded-For: 192.0.2.4, unknown\r\n"), 429);
    assert_eq!(counted(&gateway, "unreadable"), 1.0);
    assert_eq!(ask(gateway.addr, ANYBODY, b"", "X-Forwarded-For: 192.0.2.5\r\n"), 101);
    assert_eq!(ask(gateway.addr, ANYBODY, b"", "X-Forwarded-For: 192.0.2.6\r\n"), 429);
}

/// A gateway with a plain port and one that wants a PROXY header.
fn with_proxy_port(flags: &[(&str, &str)]) -> (Gateway, SocketAddr) {
    let usual = [("--listen", "127.0.0.1:0,127.0.0.1:0,proxy"), ("--trusted-proxies", PROXY)];
    let gateway = Gateway::with(&[&usual[..], flags].concat());
    let port = gateway.listen[1];
    (gateway, port)
}

#[test]
fn a_proxy_header_names_the_client() {
    let (gateway, port) = with_proxy_port(&[("--connects-per-address-max", "1")]);
    assert_eq!(ask(port, PROXY, &v1("192.0.2.1"), ""), 101);
    assert_eq!(ask(port, PROXY, &v2(1, [192, 0, 2, 1]), ""), 429);
    assert_eq!(ask(port, PROXY, &v2(1, [192, 0, 2, 2]), ""), 101);
    assert_eq!(ask(port, PROXY, &v1("192.0.2.2"), ""), 429);
    // The client's own words are a client's.
    assert_eq!(ask(port, PROXY, &v1("192.0.2.1"), "X-Forwarded-For: 192.0.2.3\r\n"), 429);
    assert_eq!(counted(&gateway, "believed"), 5.0);
    // The proxy speaks for itself, or for somebody without an address.
    assert_eq!(ask(port, PROXY, &v2(0, [192, 0, 2, 4]), ""), 101);
    assert_eq!(ask(port, PROXY, b"PROXY UNKNOWN\r\n", ""), 429);
    // From anybody else the header must be there all the same, and says nothing.
    let untrusted = counted(&gateway, "untrusted");
    assert_eq!(ask(port, ANYBODY, &v1("192.0.2.5"), ""), 101);
    assert_eq!(ask(port, ANYBODY, &v2(1, [192, 0, 2, 6]), ""), 429);
    assert_eq!(counted(&gateway, "untrusted") - untrusted, 2.0);
    assert_eq!(without_header(&gateway), 0.0);
}

#[test]
fn clients_of_all_ports_are_of_one_node_wherever_their_bytes_are_cut() {
    let (gateway, port) = with_proxy_port(&[]);
    let mut alice = gateway.client("alice");
    for header in [v1("192.0.2.1"), v2(1, [192, 0, 2, 1])] {
        let message = raw::text(r#"{"type":"send_message","target_user":"alice","content":1}"#);
        let head = http::upgrade_head("/ws?user_id=bob").into_bytes();
        let bytes = [&header[..], &head].concat();
        for cut in (1..header.len()).step_by(7).chain([header.len(), header.len() + 1]) {
            let mut stream = http::open(port);
            stream.write_all(&bytes[..cut]).expect("the first part is taken");
            // An answer to something later on the same thread says that the first part was read before the rest came.
            gateway.health();
            stream.write_all(&bytes[cut..]).expect("the rest is taken");
            let mut bob = RawClient::after_head(stream);
            bob.send(&message);
            alice.expect(&message_from("bob", 1));
        }
        // All at once, the first message too.
        let mut stream = http::open(port);
        stream.write_all(&[&bytes[..], &message].concat()).expect("all of it is taken");
        let _bob = RawClient::after_head(stream);
        alice.expect(&message_from("bob", 1));
    }
    assert_eq!(http::get(gateway.addr, "/ready").status, 200);
    let ready = [&v2(0, [0; 4])[..], b"GET /ready HTTP/1.1\r\n\r\n"].concat();
    assert_eq!(http::request(port, ready).status, 200);
}

/// Whether the gateway closes the connection without a word.
fn is_closed_silently(mut stream: TcpStream) -> bool {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset && answer.is_empty(),
    }
}

#[test]
fn a_connection_without_its_header_is_closed_and_counted() {
    // Each shard logs for itself.
    let (gateway, port) = with_proxy_port(&[("--shards", "1")]);
    let plain = http::upgrade_head("/ws?user_id=alice");
    let too_long = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[7; 100]].concat();
    let bad: [&[u8]; 5] = [plain.as_bytes(), b"PROXY TCP4 nobody\r\n", &[b'P'; 200], &too_long, b"\x16\x03\x01"];
    for (count, bytes) in bad.into_iter().enumerate() {
        let mut stream = http::open(port);
        stream.write_all(bytes).expect("the bytes are taken");
        assert!(is_closed_silently(stream), "{}", bytes.escape_ascii());
        assert_eq!(without_header(&gateway), count as f64 + 1.0);
    }
    let record = gateway.wait_for("who is closed", DEADLINE, |record| record["level"] == "WARN");
    assert_eq!((&record["reason"], &record["peer"]), (&json!("no PROXY header"), &json!(PROXY)), "{record}");
    assert_eq!(gateway.log().matches("\"WARN\"").count(), 1, "and not one line for each: {}", gateway.log());
    // The plain port, in turn, says where such a header belongs.
    let answer = http::request(gateway.addr, v1("192.0.2.1"));
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("--listen ADDR,proxy"), "{}", answer.text());
}

#[test]
fn the_header_has_the_same_deadline_as_the_head() {
    let (gateway, port) = with_proxy_port(&[("--handshake-timeout", "200ms")]);
    for beginning in [&b""[..], b"PROXY TCP4 192.0.2.1 ", &v2(1, [192, 0, 2, 1])[..20]] {
        let before = without_header(&gateway);
        let mut stream = http::open(port);
        stream.write_all(beginning).expect("the bytes are taken");
        assert!(is_closed_silently(stream), "{}", beginning.escape_ascii());
        assert_eq!(without_header(&gateway), before + 1.0);
    }
    // Behind the header the client is late, and told so.
    assert_eq!(http::request(port, v1("192.0.2.1")).status, 408);
}

#[test]
fn an_address_that_is_all_that_asks_and_meets_the_limit_is_named_once() {
    let gateway = Gateway::with(&[("--connects-per-address-max", "20")]);
    let says_so = |record: &serde_json::Value| record["level"] == "WARN";
    for number in 0..60 {
        let answer = ask(gateway.addr, PROXY, b"", "X-Forwarded-For: 192.0.2.1\r\n");
        assert_eq!(answer, if number < 20 { 101 } else { 429 });
    }
    let record = gateway.wait_for("a word about the proxy", DEADLINE, says_so);
    assert_eq!(record["address"], PROXY, "{record}");
    assert!(record["message"].as_str().is_some_and(|text| text.contains("trusted_proxies")), "{record}");
    assert_eq!(gateway.log().matches("\"WARN\"").count(), 1, "{}", gateway.log());

    // Where others ask too, or a trusted proxy has named it, the address is just somebody who asks too often.
    let flags = [("--connects-per-address-max", "20"), ("--trusted-proxies", PROXY), ("--log-level", "debug")];
    let gateway = Gateway::with(&flags);
    for (source, fields) in [(PROXY, "X-Forwarded-For: 192.0.2.1\r\n"), (ANYBODY, "")] {
        for _ in 0..40 {
            ask(gateway.addr, source, b"", fields);
        }
    }
    // This record is written where the warning would be.
    let is_last = |record: &serde_json::Value| {
        record["message"] == "asks for too many connections" && record["address"] == ANYBODY
    };
    gateway.wait_for("the limit of the second address", DEADLINE, is_last);
    assert!(!gateway.log().contains("\"WARN\""), "{}", gateway.log());
}

#[test]
fn a_proxy_port_without_trusted_proxies_is_refused() {
    let mut process = Process::spawn(["serve", "--listen", "127.0.0.1:0,proxy", "--admin-listen", "off"]);
    assert_eq!(process.wait_for_exit(DEADLINE).code(), Some(64));
    assert!(process.log().contains("trusted_proxies"), "{}", process.log());
}

#[test]
fn the_flag_repeats_and_every_port_is_refused_when_taken() {
    let first = Gateway::with(&[("--listen", "127.0.0.1:0"), ("--listen", "127.0.0.1:0")]);
    assert_eq!(first.listen.len(), 2);
    for addr in &first.listen {
        eventually("a node on each port", DEADLINE, || (http::get(*addr, "/ready").status == 200).then_some(()));
    }
    let taken = first.listen[1].to_string();
    let mut second = Process::spawn(["serve", "--listen", "127.0.0.1:0", "--listen", &taken, "--admin-listen", "off"]);
    assert_eq!(second.wait_for_exit(DEADLINE).code(), Some(69));
    assert!(second.log().contains(&taken), "{}", second.log());
}
