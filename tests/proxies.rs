//! Goal: behind nginx and HAProxy, as tuning/proxy sets them up, nobody notices that there are several nodes, one of them
//! may come and go, and each node knows who its clients are.
//!
//! Method: the real proxies with those files, in front of three nodes. Clients have source addresses of 127.0.0.0/8.

mod support;

use std::net::IpAddr;

use nix::sys::signal::Signal;
use serde_json::json;
use support::client::message_from;
use support::proxy::{Proxied, Route, check_with_every_alternative};
use support::{Client, DEADLINE, DEADLINE_SLOW, eventually, http};

/// Where clients come from, in these tests.
const ALICE: &str = "127.0.0.21";
const BOB: &str = "127.0.0.22";

fn connect(proxied: &Proxied, user: &str) -> Client {
    Client::connect_from(ALICE.parse::<IpAddr>().ok(), proxied.addr, user)
}

/// Clients that have connected one after the other.
fn clients(proxied: &Proxied, prefix: &str, count: usize) -> Vec<Client> {
    (0..count).map(|at| connect(proxied, &format!("{prefix}{at}"))).collect()
}

fn clients_are_spread_and_served(route: Route) {
    let proxied = Proxied::start(route, &[]);
    let mut clients = clients(&proxied, "user", 9);
    assert_eq!(proxied.connections(), [3, 3, 3], "the node with the fewest gets the next");
    let long = "x".repeat(40_000);
    for client in &mut clients {
        client.expect_pong();
        let user = client.user.clone();
        client.send_to(&user, &format!("\"{long}\""));
        client.expect(&message_from(&user, long.as_str()));
    }
    clients.into_iter().for_each(Client::close);
    for node in &proxied.nodes {
        node.gateway().wait_for_connections(0);
    }
}

#[test]
fn clients_are_spread_and_served_by_nginx_http() {
    clients_are_spread_and_served(Route::NginxHttp);
}

#[test]
fn clients_are_spread_and_served_by_nginx_stream() {
    clients_are_spread_and_served(Route::NginxStream);
}

#[test]
fn clients_are_spread_and_served_by_haproxy_http() {
    clients_are_spread_and_served(Route::HaproxyHttp);
}

#[test]
fn clients_are_spread_and_served_by_haproxy_tcp() {
    clients_are_spread_and_served(Route::HaproxyTcp);
}

/// The limit of each address counts the clients' addresses, whatever they write into their heads.
fn the_clients_address_is_seen(route: Route) {
    let limits = [("--connects-per-address-max", "2"), ("--log-level", "info,ringmesh::shard::request=debug")];
    let proxied = Proxied::start(route, &limits);
    let mut held = Vec::new();
    let mut ask = |source: &str, number: usize| {
        let forged =
            format!("X-Forwarded-For: 10.9.9.{number}\r\nX-Real-IP: 10.9.8.{number}\r\nForwarded: for=1.1.1.1\r\n");
        let (response, stream) = proxied.ask(source, &forged);
        held.push(stream);
        response
    };
    for number in 0..6 {
        assert_eq!(ask(ALICE, number).status, 101, "{number}");
    }
    let refused = ask(ALICE, 6);
    assert_eq!(refused.status, 429, "two for each node");
    assert!((1..=61).contains(&refused.retry_after()));
    assert_eq!(ask(BOB, 7).status, 101, "another address has a limit of its own");
    for node in &proxied.nodes {
        let is_asked = |record: &serde_json::Value| record["message"] == "asks for a connection";
        let record = node.gateway().wait_for("who asks", DEADLINE, is_asked);
        assert_eq!((&record["address"], &record["is_forwarded"]), (&json!(ALICE), &json!(true)), "{record}");
        let metrics = node.gateway().metrics();
        let counted = |result| metrics.sum("ringmesh_forwarded_total", &[("result", result)]);
        assert!(counted("believed") >= 2.0 && counted("unreadable") == 0.0, "{metrics:?}");
        // Who passes bytes on leaves in what a client wrote, and the node sees that it is the client that says it.
        assert_eq!(counted("untrusted") == 0.0, route.is_http(), "{metrics:?}");
    }
}

#[test]
fn the_clients_address_is_seen_behind_nginx_http() {
    the_clients_address_is_seen(Route::NginxHttp);
}

#[test]
fn the_clients_address_is_seen_behind_nginx_stream() {
    the_clients_address_is_seen(Route::NginxStream);
}

#[test]
fn the_clients_address_is_seen_behind_haproxy_http() {
    the_clients_address_is_seen(Route::HaproxyHttp);
}

#[test]
fn the_clients_address_is_seen_behind_haproxy_tcp() {
    the_clients_address_is_seen(Route::HaproxyTcp);
}

#[test]
fn only_websockets_are_upgraded_and_only_two_paths_are_open() {
    for route in [Route::NginxHttp, Route::HaproxyHttp] {
        let proxied = Proxied::start(route, &[]);
        assert_eq!(http::get(proxied.addr, "/ws?user_id=alice").status, 426, "{route:?}");
        // With a key, so that a node would answer 400 if it saw an upgrade to something else.
        let h2c = http::upgrade_head("/ws?user_id=alice").replace("Upgrade: websocket", "Upgrade: h2c");
        let plain = h2c.replace("Upgrade: h2c\r\n", "").replace("Connection: Upgrade\r\n", "");
        let h2c = http::request(proxied.addr, h2c);
        assert_eq!(h2c.status, http::request(proxied.addr, plain).status, "{route:?}: {h2c:?}");
        assert_eq!(http::get(proxied.addr, "/ready").status, 200, "{route:?}");
        for path in ["/health", "/metrics", "/", "/ws/", "/wss"] {
            assert_eq!(http::get(proxied.addr, path).status, 404, "{route:?} {path}");
        }
    }
}

/// A node that drains gets no new clients and keeps those that it has; one that comes back gets its share.
fn a_draining_node_is_left_alone(route: Route) {
    let mut proxied = Proxied::start(route, &[("--drain-delay", "60s")]);
    let mut first = clients(&proxied, "first", 3);
    assert_eq!(proxied.connections(), [1, 1, 1]);
    proxied.nodes[0].gateway().signal(Signal::SIGTERM);
    // Between this and the next look of HAProxy clients may still come to it; they are served.
    connect(&proxied, "between").close();
    proxied.wait_for_status(0, "DOWN");
    let before = proxied.nodes[0].connections();
    let mut second = clients(&proxied, "second", 6);
    assert_eq!(proxied.nodes[0].connections(), before, "it has the fewest, and gets none");
    first.iter_mut().chain(&mut second).for_each(Client::expect_pong);
    proxied.nodes[0].end();
    let mut third = clients(&proxied, "third", 3);
    proxied.nodes[0].restart();
    proxied.wait_for_status(0, "UP");
    // At first it counts for little (slowstart).
    eventually("a client on the node that came back", DEADLINE_SLOW, || {
        third.push(connect(&proxied, "fourth"));
        (proxied.nodes[0].connections() > 0).then_some(())
    });
    third.iter_mut().chain(&mut second).for_each(Client::expect_pong);
}

#[test]
fn a_draining_node_is_left_alone_by_haproxy_http() {
    a_draining_node_is_left_alone(Route::HaproxyHttp);
}

#[test]
fn a_draining_node_is_left_alone_by_haproxy_tcp() {
    a_draining_node_is_left_alone(Route::HaproxyTcp);
}

/// nginx asks nobody how he is: it finds out when a connect fails, and goes on to the next.
fn a_stopped_node_is_passed_over(route: Route) {
    let mut proxied = Proxied::start(route, &[]);
    let mut told = connect(&proxied, "told");
    let stopped = proxied.connections().iter().position(|count| *count > 0).expect("a node has the client");
    let mut first = clients(&proxied, "first", 2);
    assert_eq!(proxied.connections(), [1, 1, 1]);
    let end = std::thread::spawn(move || {
        told.expect_close(1012);
    });
    proxied.nodes[stopped].stop(Signal::SIGTERM);
    end.join().expect("the client of that node is told why");
    let mut second = clients(&proxied, "second", 6);
    first.iter_mut().chain(&mut second).for_each(Client::expect_pong);
    proxied.nodes[stopped].restart();
    // It is left alone for fail_timeout, and has the fewest connections then.
    let mut third = Vec::new();
    eventually("a client on the node that came back", DEADLINE_SLOW, || {
        third.push(connect(&proxied, "third"));
        (proxied.nodes[stopped].connections() > 0).then_some(())
    });
    first.iter_mut().chain(&mut second).chain(&mut third).for_each(Client::expect_pong);
}

#[test]
fn a_stopped_node_is_passed_over_by_nginx_http() {
    a_stopped_node_is_passed_over(Route::NginxHttp);
}

#[test]
fn a_stopped_node_is_passed_over_by_nginx_stream() {
    a_stopped_node_is_passed_over(Route::NginxStream);
}

#[test]
fn a_full_node_costs_no_client_its_connection() {
    for route in [Route::NginxHttp, Route::HaproxyHttp] {
        let proxied = Proxied::start_each(route, [&[("--connections-max", "1")], &[], &[]]);
        // Straight to the node: for the proxy it still has the fewest.
        let mut first = proxied.nodes[0].gateway().client("first");
        let mut others = clients(&proxied, "other", 4);
        assert_eq!(proxied.connections(), [1, 2, 2], "{route:?}");
        others.iter_mut().for_each(Client::expect_pong);
        first.expect_pong();
    }
}

#[test]
fn every_alternative_in_the_files_is_valid() {
    for route in [Route::NginxHttp, Route::HaproxyHttp] {
        let (is_valid, said) = check_with_every_alternative(route);
        assert!(is_valid, "{route:?}: {said}");
    }
}

#[test]
fn every_server_line_of_haproxy_gives_up_on_a_host_that_has_vanished() {
    // What a client sends keeps `timeout tunnel` from passing, and HAProxy 2.6 takes `tcp-ut` on `default-server` but never
    // sets it: strace shows no TCP_USER_TIMEOUT. `make hosts` measures what follows from it.
    let config = include_str!("../tuning/proxy/haproxy/haproxy.cfg");
    let servers: Vec<&str> = config
        .lines()
        .map(|line| line.trim_start_matches([' ', '#']))
        .filter(|line| line.starts_with("server "))
        .collect();
    assert!(servers.len() >= 6, "three nodes, by HTTP and by TCP: {servers:?}");
    for server in servers {
        assert!(server.contains(" tcp-ut 30s"), "{server}");
    }
}
