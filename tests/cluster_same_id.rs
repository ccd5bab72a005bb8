//! Goal: two processes never live under one node id, and the id of a dead one is free.
//! Method: a second process with the id of one that lives, that was killed, and that has stopped in good order.

mod support;

use std::time::Instant;

use nix::sys::signal::Signal;
use support::client::message_from;
use support::gateway::serve_arguments;
use support::process::Process;
use support::{DEADLINE, DEADLINE_SLOW, Nodes};

#[test]
fn a_second_process_refuses_to_start_under_a_living_id() {
    let nodes = Nodes::with(2, &[]);
    let mut alice = nodes[0].client("alice");
    let mut bob = nodes[1].client("bob");
    let url = nodes.redis.url();
    let id = nodes[0].node_id.clone();
    let mut second = Process::spawn(serve_arguments(&id, &[("--redis", &url)]));
    let status = second.wait_for_exit(DEADLINE_SLOW);
    let log = second.log();
    assert_eq!(status.code(), Some(1), "{status}: {log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(&id) && last.contains("node-id"), "the message names the id and the flag: {last}");
    // The first one has not noticed.
    bob.send_to("alice", "1");
    alice.expect(&message_from("bob", 1));
    alice.send_to("bob", "2");
    bob.expect(&message_from("alice", 2));
    assert!(!nodes[0].log().contains("WARN"), "{}", nodes[0].log());
}

#[test]
fn the_id_of_a_killed_process_is_free() {
    let mut nodes = Nodes::with(2, &[]);
    let mut alice = nodes[0].client("alice");
    let lost = nodes[1].client("bob");
    nodes.kill(1);
    let start = Instant::now();
    nodes.restart(1);
    println!("ready after {:?}", start.elapsed());
    let mut bob = nodes[1].client("bob");
    alice.send_to("bob", "1");
    bob.expect(&message_from("alice", 1));
    drop(lost);
}

#[test]
fn the_id_of_a_stopped_process_is_free_at_once() {
    let mut nodes = Nodes::with(2, &[]);
    let mut alice = nodes[0].client("alice");
    nodes[1].signal(Signal::SIGTERM);
    assert_eq!(nodes.node(1).wait_for_exit(DEADLINE).code(), Some(0));
    let start = Instant::now();
    nodes.restart(1);
    println!("ready after {:?}", start.elapsed());
    let mut bob = nodes[1].client("bob");
    alice.send_to("bob", "1");
    bob.expect(&message_from("alice", 1));
}
