//! Goal: it makes no difference which shards two users are on: every pair delivers, and order is kept.
//! Method: the per-shard metrics tell where a connection is owned; users of many names have their homes on either shard.

mod support;

use serde_json::json;
use support::client::message_from;
use support::raw::text;
use support::{Client, Crowd, DEADLINE_SLOW, Gateway};

#[test]
fn every_pair_of_users_delivers_whatever_their_shards() {
    for shards in [1, 2, 4] {
        let gateway = Gateway::with(&[("--shards", &shards.to_string())]);
        let mut clients: Vec<Client> = gateway.clients_on_each_shard("user", shards, 4).into_iter().flatten().collect();
        let users: Vec<String> = clients.iter().map(|client| client.user.clone()).collect();
        for (from, client) in clients.iter_mut().enumerate() {
            for user in &users {
                client.send_to(user, &format!(r#"[{from},"{user}"]"#));
            }
        }
        for client in &mut clients {
            // Senders have no order between them, so each sender's message is looked for among all.
            let mut senders: Vec<String> = users.clone();
            while !senders.is_empty() {
                let frame = client.next_json();
                let at = senders.iter().position(|user| frame["from"] == user.as_str());
                let from = senders.remove(at.unwrap_or_else(|| panic!("{frame} comes a second time")));
                let position = users.iter().position(|user| *user == from);
                assert_eq!(frame, message_from(&from, json!([position, client.user])));
            }
            client.expect_pong();
        }
    }
}

/// The order of `count` messages from one user to each of several others on the other shard.
fn assert_order_across(from: usize, to: usize, count: usize) {
    let gateway = Gateway::start();
    let mut by_shard = gateway.clients_on_each_shard("user", 2, 5);
    let mut targets = by_shard[to].split_off(1);
    let mut sender = by_shard[from].remove(0);
    let users: Vec<String> = targets.iter().map(|target| target.user.clone()).collect();
    let name = sender.user.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..count {
                for user in &users {
                    sender.send_to(user, &at.to_string());
                }
            }
        });
        for target in &mut targets {
            let (name, shown) = (&name, target.user.clone());
            scope.spawn(move || {
                for at in 0..count {
                    let frame = target.next_json();
                    assert_eq!(frame, message_from(name, at), "{shown}, message {at}");
                }
                target.expect_pong();
            });
        }
    });
}

#[test]
fn ten_thousand_messages_to_another_shard_stay_in_order() {
    assert_order_across(0, 1, 10_000);
}

#[test]
fn and_on_the_way_back() {
    assert_order_across(1, 0, 10_000);
}

#[test]
fn and_within_a_shard() {
    assert_order_across(1, 1, 2_500);
}

#[test]
fn ten_thousand_broadcasts_stay_in_order_on_every_shard() {
    let gateway = Gateway::with(&[("--shards", "3")]);
    let mut crowd = Crowd::connect(&gateway, "user", 16);
    let mut writer = crowd.writer(0, DEADLINE_SLOW);
    let count = 10_000;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let frames: Vec<u8> =
                (0..count).flat_map(|at| text(&format!(r#"{{"type":"broadcast","content":{at}}}"#))).collect();
            writer.write(&frames);
        });
        let mut next = [0; 16];
        crowd.read(16 * count, DEADLINE_SLOW, |member, text| {
            let expected = format!(r#"{{"type":"broadcast","from":"user0","content":{}}}"#, next[member]);
            assert!(same_json(text, &expected), "member {member}: {} is not {expected}", text.escape_ascii());
            next[member] += 1;
        });
    });
    crowd.expect_pongs(DEADLINE_SLOW);
}

/// Compares bytes first: parsing every delivery of a flood would make the reader the slow one.
fn same_json(got: &[u8], expected: &str) -> bool {
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    got == expected.as_bytes() || parse(got) == parse(expected.as_bytes())
}

#[test]
fn all_connections_of_a_user_see_the_same_order_of_one_sender() {
    let gateway = Gateway::start();
    let mut sender = gateway.client("sender");
    let mut alices: Vec<Client> = (0..16).map(|_| gateway.client("alice")).collect();
    let shards = gateway.connections_by_shard();
    assert!(shards.iter().all(|(_, count)| *count > 0.0), "not on both shards: {shards:?}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..2_000 {
                sender.send_to("alice", &at.to_string());
            }
        });
        for alice in &mut alices {
            scope.spawn(|| {
                for at in 0..2_000 {
                    alice.expect(&message_from("sender", at));
                }
            });
        }
    });
}
