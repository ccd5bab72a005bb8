//! Goal: neither a Redis that stands still nor clients who flood make a node's memory grow without bound, or delay those
//! who only speak with their own node.
//! Method: Redis is stopped; clients send some hundred megabytes to users of another node, and broadcast.

mod support;

use std::time::Duration;

use serde_json::json;
use support::client::message_from;
use support::{Client, DEADLINE, DEADLINE_SLOW, Gateway, Nodes, eventually};

/// Sent to users of the other node while Redis stands still: many times of what a node may hold.
const FLOOD_BYTES: usize = 240 << 20;

/// How much a node may grow. The bound for what waits for another node is 16 MiB, each shard's queues to and from the
/// bus are bounded at some MiB, and the allocator keeps some.
const GROWTH_MAX: u64 = 96 << 20;

/// The resident memory of a node in bytes.
fn resident(node: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kib * 1024
}

/// Sends messages of 60 KB; each round is answered by a pong, after the errors for what was refused. Returns how many
/// were refused.
fn flood(sender: &mut Client, bytes: usize, mut send: impl FnMut(&mut Client, &str)) -> usize {
    let content = format!("\"{}\"", "x".repeat(60_000));
    let mut refused = 0;
    for _ in 0..bytes / content.len() / 10 {
        (0..10).for_each(|_| send(sender, &content));
        sender.send(&json!({"type": "ping"}));
        loop {
            let frame = sender.next_json();
            match frame["type"].as_str() {
                Some("pong") => break,
                Some("error") => {
                    assert_eq!(frame["code"], "overloaded", "{frame}");
                    refused += 1;
                }
                // The sender gets those of its broadcasts that are taken.
                _ => assert_eq!(frame["type"], "broadcast", "{frame}"),
            }
        }
    }
    refused
}

#[test]
fn a_flood_while_redis_stands_still_is_refused_and_not_kept() {
    // Who is not read for a while must not be closed for it.
    let nodes = Nodes::with(2, &[("--send-queue-bytes-max", "64MiB")]);
    let mut known: Vec<Client> = nodes[1].clients("known", 4);
    let mut senders = nodes[0].clients("sender", 4);
    for (at, sender) in senders.iter_mut().enumerate() {
        let user = sender.user.clone();
        sender.send_to(&format!("known{at}"), "1");
        known[at].expect(&message_from(&user, 1));
    }
    let before = resident(&nodes[0]);
    nodes.redis.stop();
    let mut refused = Vec::new();
    std::thread::scope(|scope| {
        let share = FLOOD_BYTES / senders.len();
        let threads: Vec<_> = senders
            .iter_mut()
            .enumerate()
            .map(|(at, sender)| {
                scope.spawn(move || match at {
                    // To a user whose node is known, to a user whom nobody knows, to many of these, and to all.
                    0 => flood(sender, share, |sender, content| sender.send_to("known0", content)),
                    1 => flood(sender, share, |sender, content| sender.send_to("unknown", content)),
                    2 => {
                        let mut number = 0;
                        flood(sender, share, |sender, content| {
                            number += 1;
                            sender.send_to(&format!("unknown{number}"), content);
                        })
                    }
                    // These fill the link by themselves, however late the others are.
                    _ => flood(sender, share / 3, Client::broadcast),
                })
            })
            .collect();
        refused.extend(threads.into_iter().map(|thread| thread.join().expect("a flood ends well")));
    });
    let after = resident(&nodes[0]);
    println!("{} MiB before, {} MiB after, refused: {refused:?}", before >> 20, after >> 20);
    assert!(after < before + GROWTH_MAX, "{before} bytes before, {after} after");
    assert!(refused.iter().all(|refused| *refused > 0), "each sender is told: {refused:?}");

    // Local traffic goes on.
    let (left, right) = senders.split_at_mut(1);
    let (left, right) = (&mut left[0], &mut right[0]);
    left.send_to(&right.user, "\"near\"");
    let mut frame = right.next_json();
    while frame["type"] != "message" {
        frame = right.next_json();
    }
    assert_eq!(frame, message_from(&left.user, "near"));

    // And when Redis goes on, so does everything.
    nodes.redis.cont();
    eventually("a message that passes", DEADLINE_SLOW, || {
        left.send_to("known3", "\"far\"");
        known[3].set_deadline(Duration::from_secs(1));
        match known[3].next_of_any_kind() {
            Ok(message) => message.to_text().is_ok_and(|text| text.contains("\"far\"")).then_some(()),
            Err(_) => None,
        }
    });
    eventually("memory that is given back or at least grows no more", DEADLINE, || {
        (resident(&nodes[0]) < before + GROWTH_MAX).then_some(())
    });
}
