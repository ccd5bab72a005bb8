//! Goal: a node whose Redis is not as it should be says what is wrong and what to do, takes no clients, and starts to
//! as soon as it can; it never prints a password.
//! Method: Redis that is not there, that refuses the password, that allows too little, that is no Redis, and with TLS.

mod support;

use std::net::TcpListener;

use support::client::message_from;
use support::cluster::{is_ready, start_nodes, wait_until_ready};
use support::gateway::{new_node_id, serve_arguments};
use support::process::Process;
use support::redis::RedisServer;
use support::{DEADLINE, DEADLINE_SLOW, Gateway, eventually, http};

/// Waits until the node has logged a warning or an error that holds each of these, be it before it listened.
fn expect_logged(node: &Gateway, parts: &[&str]) -> String {
    let is_it =
        |line: &&str| (line.contains("WARN") || line.contains("ERROR")) && parts.iter().all(|part| line.contains(part));
    eventually(&format!("a warning with {parts:?}"), DEADLINE, || node.log().lines().find(is_it).map(str::to_owned))
}

/// How a message names this server.
fn address(redis: &RedisServer) -> String {
    format!("127.0.0.1:{}", redis.port())
}

/// A node that is up but takes no clients.
fn expect_warming(node: &Gateway) {
    assert!(!is_ready(node));
    let refused = http::request(node.addr, http::upgrade_head("/ws?user_id=alice"));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.retry_after() > 0);
    let health = node.health();
    assert_eq!((&health["status"], &health["bus"]), (&"ok".into(), &"warming".into()), "{health}");
}

#[test]
fn it_waits_for_a_redis_that_is_not_there_yet() {
    let mut redis = RedisServer::start();
    redis.kill();
    let node = Gateway::with(&[("--redis", &redis.url())]);
    expect_logged(&node, &[&address(&redis)]);
    expect_warming(&node);
    redis.start_again();
    wait_until_ready(&node);
    assert_eq!(node.health()["bus"], "up");
    let mut alice = node.client("alice");
    alice.send_to("alice", "1");
    alice.expect(&message_from("alice", 1));
}

#[test]
fn with_redis_required_it_ends_with_69() {
    let mut redis = RedisServer::start();
    redis.kill();
    let arguments = serve_arguments(&new_node_id(), &[("--redis", &redis.url()), ("--redis-required", "true")]);
    let mut process = Process::spawn(arguments);
    let status = process.wait_for_exit(DEADLINE_SLOW);
    let log = process.log();
    assert_eq!(status.code(), Some(69), "{status}: {log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(&address(&redis)), "the message names the address: {last}");
}

#[test]
fn a_wrong_password_is_called_one_and_not_printed() {
    let redis = RedisServer::with_password("right-secret");
    let url = |password: &str| format!("redis://{password}{}", address(&redis));
    for (password, what) in [(":wrong-secret@", "WRONGPASS"), ("", "NOAUTH")] {
        let node = Gateway::with(&[("--redis", &url(password))]);
        let told = expect_logged(&node, &["password"]);
        println!("{what}: {told}");
        expect_warming(&node);
        assert!(!node.log().contains("wrong-secret"), "{}", node.log());
    }
    let node = Gateway::with(&[("--redis", &url(":right-secret@"))]);
    wait_until_ready(&node);
    assert!(!node.log().contains("right-secret"), "{}", node.log());
}

#[test]
fn a_user_who_may_too_little_is_told_the_acl_that_it_takes() {
    let redis = RedisServer::start();
    // Since Redis 7 a new user may use no channel.
    redis.ask(&["ACL", "SETUSER", "gate", "on", ">secret", "~*", "+@all"]);
    let url = format!("redis://gate:secret@{}", address(&redis));
    let node = Gateway::with(&[("--redis", &url)]);
    expect_logged(&node, &["ACL", "&node:*"]);
    expect_warming(&node);
    redis.ask(&["ACL", "SETUSER", "gate", "&node:*", "&user:events", "&rm2:*"]);
    wait_until_ready(&node);
}

#[test]
fn what_is_no_redis_is_called_so() {
    // Accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_addr = silent.local_addr().expect("its address").to_string();
    let gateway = Gateway::start();
    for addr in [silent_addr, gateway.addr.to_string()] {
        let node = Gateway::with(&[("--redis", &format!("redis://{addr}"))]);
        expect_logged(&node, &[&addr]);
        expect_warming(&node);
    }
}

#[test]
fn a_redis_that_goes_away_and_comes_back_elsewhere_in_time_is_waited_for() {
    let mut redis = RedisServer::start();
    let nodes = start_nodes(&redis.url(), 2, &[]);
    let (mut alice, mut bob) = (nodes[0].client("alice"), nodes[1].client("bob"));
    redis.kill();
    for node in &nodes {
        eventually("a node that is not ready", DEADLINE_SLOW, || (!is_ready(node)).then_some(()));
        expect_logged(node, &[&address(&redis)]);
    }
    // Sockets that are open stay.
    alice.expect_pong();
    redis.start_again();
    nodes.iter().for_each(wait_until_ready);
    alice.send_to("bob", "1");
    bob.expect(&message_from("alice", 1));
}

#[test]
fn with_tls_it_trusts_the_ca_that_it_was_given_and_no_other() {
    let redis = RedisServer::with_tls();
    let nodes = start_nodes(&redis.url(), 2, &[]);
    let (mut alice, mut bob) = (nodes[0].client("alice"), nodes[1].client("bob"));
    alice.send_to("bob", "1");
    bob.expect(&message_from("alice", 1));
    let stranger = Gateway::with(&[("--redis", &format!("rediss://127.0.0.1:{}", redis.port()))]);
    expect_logged(&stranger, &["certificate"]);
    expect_warming(&stranger);
}
