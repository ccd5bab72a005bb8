//! Goal: the metrics say what happened, in a text that Prometheus reads.
//! Method: a known amount of traffic, and the difference between two scrapes.

mod support;

use std::time::Duration;

use support::metrics::Metrics;
use support::raw::{frame, text};
use support::{DEADLINE, Gateway, eventually, http};
use tungstenite::Message;

/// What every node exposes, with its type.
const FAMILIES: [(&str, &str); 13] = [
    ("ringmesh_connections", "gauge"),
    ("ringmesh_accepts_total", "counter"),
    ("ringmesh_refused_total", "counter"),
    ("ringmesh_closes_total", "counter"),
    ("ringmesh_messages_in_total", "counter"),
    ("ringmesh_messages_out_total", "counter"),
    ("ringmesh_bytes_in_total", "counter"),
    ("ringmesh_bytes_out_total", "counter"),
    ("ringmesh_send_queue_bytes", "gauge"),
    ("ringmesh_mesh_batches_total", "counter"),
    ("ringmesh_dropped_total", "counter"),
    ("ringmesh_receive_to_send_seconds", "histogram"),
    ("ringmesh_listen_overflows_total", "counter"),
];

/// Waits until `name` with `labels` has grown by `by` since `before`; shards may publish their counters a little later.
fn wait_for_growth(gateway: &Gateway, before: &Metrics, name: &str, labels: &[(&str, &str)], by: f64) {
    let mut grown = 0.0;
    let what = format!("{name}{labels:?} to grow by {by}");
    let look = || {
        grown = gateway.metrics().sum(name, labels) - before.sum(name, labels);
        assert!(grown <= by, "{name}{labels:?} grew by {grown}, not {by}");
        (grown == by).then_some(())
    };
    eventually(&what, DEADLINE, look);
}

#[test]
fn the_text_is_valid_and_complete() {
    let gateway = Gateway::start();
    gateway.client("alice").expect_pong();
    let response = http::get(gateway.admin, "/metrics");
    let kind = response.header("content-type").expect("a content type");
    assert!(kind.starts_with("text/plain"), "{kind}");
    let metrics = Metrics::parse(&response.text());
    for (name, kind) in FAMILIES {
        assert_eq!(metrics.types.get(name).map(String::as_str), Some(kind), "the type of {name}");
    }
    for sample in &metrics.samples {
        let family = metrics.family(sample);
        assert!(metrics.types.contains_key(family), "no TYPE for {}", sample.name);
        assert!(metrics.helps.get(family).is_some_and(|help| help.len() > 5), "no HELP for {family}");
        assert!(metrics.types[family] != "counter" || sample.value >= 0.0, "{sample:?}");
        assert!(metrics.types[family] != "counter" || family.ends_with("_total"), "{family} should end with _total");
    }
    let shards: Vec<_> = metrics.named("ringmesh_connections").map(|sample| sample.label("shard")).collect();
    assert_eq!(shards, [Some("0"), Some("1")]);
}

#[test]
fn samples_of_one_family_stand_together_and_none_comes_twice() {
    let gateway = Gateway::start();
    gateway.client("alice").expect_pong();
    let metrics = gateway.metrics();
    let mut seen = std::collections::HashSet::new();
    let mut families: Vec<&str> = Vec::new();
    for sample in &metrics.samples {
        assert!(seen.insert((&sample.name, &sample.labels)), "{sample:?} comes twice");
        let family = metrics.family(sample);
        if families.last() != Some(&family) {
            assert!(!families.contains(&family), "{family} stands in two places");
            families.push(family);
        }
    }
}

#[test]
fn messages_are_counted_by_type() {
    let gateway = Gateway::start();
    let before = gateway.metrics();
    let [mut alice, mut bob, mut bob_too] = ["alice", "bob", "bob"].map(|user| gateway.client(user));
    for _ in 0..5 {
        alice.expect_pong();
    }
    for at in 0..7 {
        alice.send_to("bob", &at.to_string());
        bob.next_json();
        bob_too.next_json();
    }
    for _ in 0..3 {
        bob.broadcast("null");
        for client in [&mut alice, &mut bob, &mut bob_too] {
            client.next_json();
        }
    }
    for frame in ["nonsense", "[]", r#"{"type":"dance"}"#, r#"{"type":"send_message"}"#] {
        alice.send_text(frame);
        alice.expect_error();
    }
    for _ in 0..2 {
        alice.send_message(Message::binary(vec![1, 2, 3]));
    }
    alice.expect_pong();
    let counted = [
        ("ringmesh_messages_in_total", "ping", 6.0),
        ("ringmesh_messages_in_total", "send_message", 7.0),
        ("ringmesh_messages_in_total", "broadcast", 3.0),
        ("ringmesh_messages_in_total", "binary", 2.0),
        ("ringmesh_messages_out_total", "pong", 6.0),
        ("ringmesh_messages_out_total", "message", 14.0),
        ("ringmesh_messages_out_total", "broadcast", 9.0),
        ("ringmesh_messages_out_total", "error", 4.0),
    ];
    for (name, kind, count) in counted {
        wait_for_growth(&gateway, &before, name, &[("type", kind)], count);
    }
    wait_for_growth(&gateway, &before, "ringmesh_messages_in_total", &[], 22.0);
    wait_for_growth(&gateway, &before, "ringmesh_messages_out_total", &[], 33.0);
}

#[test]
fn bytes_are_counted_as_they_are_on_the_wire() {
    let gateway = Gateway::start();
    let mut client = gateway.raw("alice");
    let before = gateway.metrics();
    let mut bytes_in = 0;
    let mut bytes_out = 0;
    let content = "x".repeat(50_000);
    for _ in 0..100 {
        let frame = text(&format!(r#"{{"type":"send_message","target_user":"alice","content":"{content}"}}"#));
        bytes_in += frame.len();
        client.send(&frame);
        // RFC 6455 5.2: four bytes of header, as a server's frame has no mask.
        bytes_out += 4 + client.next_but_pings().expect("a delivery").payload.len();
    }
    // The scrapes themselves may be counted or not; they are a few of these 5 MB.
    for (name, bytes) in [("ringmesh_bytes_in_total", bytes_in), ("ringmesh_bytes_out_total", bytes_out)] {
        let grown = || gateway.metrics().sum(name, &[]) - before.sum(name, &[]);
        eventually(name, DEADLINE, || (grown() >= bytes as f64).then_some(()));
        assert!(grown() < bytes as f64 * 1.05, "{name}: {} for {bytes} bytes", grown());
    }
}

#[test]
fn connections_closes_and_refusals_are_counted() {
    let gateway = Gateway::with(&[("--connections-max", "4")]);
    let before = gateway.metrics();
    let mut clients = gateway.clients("user", 4);
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("ringmesh_connections", &[]), 4.0);
    assert!(metrics.sum("ringmesh_accepts_total", &[]) - before.sum("ringmesh_accepts_total", &[]) >= 4.0);
    for _ in 0..3 {
        assert_eq!(http::request(gateway.addr, http::upgrade_head("/ws?user_id=late")).status, 503);
    }
    wait_for_growth(&gateway, &before, "ringmesh_refused_total", &[], 3.0);
    clients.pop().expect("a client").close();
    clients.pop().expect("a client").vanish();
    gateway.wait_for_connections(2);
    let mut mallory = gateway.raw("mallory");
    mallory.send(&frame(0x83, b""));
    mallory.expect_close(1002);
    gateway.wait_for_connections(2);
    wait_for_growth(&gateway, &before, "ringmesh_closes_total", &[], 3.0);
    let causes = gateway.metrics();
    let causes: Vec<_> = causes
        .named("ringmesh_closes_total")
        .filter(|sample| sample.value > 0.0)
        .map(|sample| sample.label("cause"))
        .collect();
    assert!(causes.len() >= 2 && causes.iter().all(Option::is_some), "by cause: {causes:?}");
    assert_eq!(gateway.metrics().sum("ringmesh_connections", &[]), 2.0);
}

#[test]
fn the_latency_histogram_counts_deliveries() {
    let gateway = Gateway::start();
    let mut clients = gateway.clients("user", 8);
    let before = gateway.metrics();
    for at in 0..80 {
        clients[0].send_to(&format!("user{}", at % 8), "1");
        clients[at % 8].next_json();
    }
    let name = "ringmesh_receive_to_send_seconds";
    let count = format!("{name}_count");
    eventually("a histogram that has grown", DEADLINE, || {
        (gateway.metrics().sum(&count, &[]) > before.sum(&count, &[])).then_some(())
    });
    let metrics = gateway.metrics();
    for shard in ["0", "1"] {
        let labels = [("shard", shard)];
        let bounds: Vec<(f64, f64)> = metrics
            .named(&format!("{name}_bucket"))
            .filter(|sample| sample.label("shard") == Some(shard))
            .map(|sample| {
                (sample.label("le").expect("a bound").replace("+Inf", "inf").parse().expect("a number"), sample.value)
            })
            .collect();
        if bounds.is_empty() {
            continue;
        }
        assert!(bounds.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "shard {shard}: {bounds:?}");
        let &(last, all) = bounds.last().expect("a bucket");
        assert_eq!((last, all), (f64::INFINITY, metrics.sum(&count, &labels)), "shard {shard}");
    }
    let sum = metrics.sum(&format!("{name}_sum"), &[]);
    assert!(sum > 0.0 && sum < Duration::from_secs(600).as_secs_f64(), "seconds, not another unit: {sum}");
}

#[test]
fn queues_are_empty_when_all_is_read() {
    let gateway = Gateway::start();
    let mut clients = gateway.clients("user", 8);
    clients[0].broadcast(&format!("\"{}\"", "x".repeat(50_000)));
    for client in &mut clients {
        client.next_json();
    }
    eventually("empty send queues", DEADLINE, || {
        (gateway.metrics().sum("ringmesh_send_queue_bytes", &[]) == 0.0).then_some(())
    });
}
