//! Goal: when all shards flood each other in both classes at once, nothing stands still, and all that was accepted arrives
//! exactly once and in order.
//! Method: as many writers as clients, each sending unicasts to all others and broadcasts, mixed, as fast as the gateway
//! reads; one thread reads everything. No client is closed, so each must get everything.

mod support;

use std::collections::HashMap;

use serde::Deserialize;
use support::random::Random;
use support::raw::text;
use support::{Crowd, DEADLINE_SLOW, Gateway};

/// What a client gets, less the content's padding.
#[derive(Deserialize)]
struct Delivery<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    from: &'a str,
    #[serde(borrow)]
    content: (usize, &'a str),
}

/// One client's part in the flood: frames in the order sent, in writes of random size.
fn flood_of(random: &mut Random, clients: usize, rounds: usize, padding: &str) -> Vec<Vec<u8>> {
    let mut writes = Vec::new();
    let mut bytes = Vec::new();
    for round in 0..rounds {
        let broadcast_at = random.below(clients);
        for target in 0..clients {
            let send =
                format!(r#"{{"type":"send_message","target_user":"user{target}","content":[{round},"{padding}"]}}"#);
            bytes.extend(text(&send));
            if target == broadcast_at {
                bytes.extend(text(&format!(r#"{{"type":"broadcast","content":[{round},"{padding}"]}}"#)));
            }
            if random.below(100) == 0 {
                writes.push(std::mem::take(&mut bytes));
            }
        }
    }
    writes.push(bytes);
    writes
}

/// `clients` clients on `shards` shards send `rounds` unicasts to each client, and as many broadcasts.
fn assert_flood_arrives(shards: &str, clients: usize, rounds: usize, padding: usize) {
    let mut random = Random::from_environment();
    // Room for all that one client gets: here nobody is to be closed because this machine's reader had to wait for a core.
    let gateway = Gateway::with(&[("--shards", shards), ("--send-queue-bytes-max", "64MiB")]);
    let mut crowd = Crowd::connect(&gateway, "user", clients);
    let padding = "p".repeat(padding);
    let senders: HashMap<String, usize> = (0..clients).map(|at| (crowd.user(at).to_owned(), at)).collect();
    std::thread::scope(|scope| {
        for at in 0..clients {
            let mut writer = crowd.writer(at, DEADLINE_SLOW);
            let writes = flood_of(&mut random, clients, rounds, &padding);
            scope.spawn(move || writes.iter().for_each(|bytes| writer.write(bytes)));
        }
        // The next number of each member, sender and kind.
        let mut next = vec![[0; 2]; clients * clients];
        crowd.read(2 * clients * clients * rounds, DEADLINE_SLOW, |member, text| {
            let delivery: Delivery<'_> = serde_json::from_slice(text)
                .unwrap_or_else(|error| panic!("{error} in {}", text[..text.len().min(200)].escape_ascii()));
            let kind = ["message", "broadcast"].iter().position(|kind| *kind == delivery.kind);
            let kind = kind.unwrap_or_else(|| panic!("no such kind was sent: {}", delivery.kind));
            let expected = &mut next[member * clients + senders[delivery.from]][kind];
            assert_eq!(
                delivery.content.0, *expected,
                "the next {} from {} to member {member}",
                delivery.kind, delivery.from
            );
            assert_eq!(delivery.content.1.len(), padding.len());
            *expected += 1;
        });
        assert!(next.iter().all(|kinds| *kinds == [rounds; 2]), "something is missing");
    });
    crowd.expect_pongs(DEADLINE_SLOW);
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("ringmesh_closes_total", &[]), 0.0, "a reader that keeps up is not closed");
    assert_eq!(metrics.sum("ringmesh_dropped_total", &[]), 0.0, "nothing is dropped");
}

#[test]
fn two_shards_flood_each_other() {
    assert_flood_arrives("2", 16, 500, 20);
}

#[test]
fn four_shards_flood_each_other() {
    assert_flood_arrives("4", 24, 150, 20);
}

#[test]
fn large_messages_flood_too() {
    assert_flood_arrives("2", 6, 100, 20_000);
}
