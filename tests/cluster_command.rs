//! Goal: `ringmesh cluster` shows who is there, how it stands with each, and how long a message takes, on every form of
//! Redis; what it cannot know it does not make up; what is wrong it says, with what to do. It writes nothing.
//!
//! Method: the built program beside real nodes, rims driven by hand, and foreign nodes that are no more than a
//! subscription; its JSON, its table, its exit codes, and its view in a pseudo terminal.

mod support;

use std::process::{Command, Output};

use ringmesh::bus::call::{Call, Reply};
use ringmesh::bus::redis::Event;
use serde_json::{Value, json};
use support::gateway::new_node_id;
use support::redis::{RedisCluster, RedisServer, Sentinels};
use support::resp::Resp;
use support::rim::{Rim, on_one_thread};
use support::terminal::Terminal;
use support::{DEADLINE, DEADLINE_SLOW, Gateway, Nodes, eventually};

const README: &str = include_str!("../README.md");

/// `ringmesh cluster` with these arguments, and none of the variables that could configure it.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmesh"));
    command.arg("cluster").args(arguments);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RINGMESH_") || text.starts_with("REDIS_") || text == "NODE_ID" {
            command.env_remove(&name);
        }
    }
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The JSON of a look that ends with this exit code.
fn look_with_code(command: &mut Command, code: i32) -> Value {
    let output = run(command);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn look(url: &str) -> Value {
    look_with_code(&mut command(&["--json", "--redis", url]), 0)
}

/// What is told when there is nothing to show.
fn refusal(command: &mut Command, code: i32) -> String {
    let output = run(command);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), ""), "{output:?}");
    text(&output.stderr)
}

/// The rows of a node.
fn rows<'a>(seen: &'a Value, node: &str) -> Vec<&'a Value> {
    seen["nodes"].as_array().expect("an array").iter().filter(|row| row["node"] == node).collect()
}

/// The one row of a node.
#[track_caller]
fn row<'a>(seen: &'a Value, node: &str) -> &'a Value {
    match rows(seen, node)[..] {
        [row] => row,
        _ => panic!("one row of {node} in {seen:#}"),
    }
}

/// Looks until the node's one row is as it should be.
fn wait_for_row(url: &str, node: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let mut look = || {
        last = look(url);
        matches!(rows(&last, node)[..], [row] if is_it(row)).then_some(())
    };
    eventually(&format!("the row of {node}"), DEADLINE_SLOW, &mut look);
    last
}

#[test]
fn every_node_is_shown_with_its_lease_its_connections_and_its_lag() {
    let nodes = Nodes::with(2, &[]);
    let clients = (nodes[0].clients("here", 3), nodes[1].clients("there", 2));
    let url = nodes.redis.url();
    for (node, count) in [(&nodes[0], 3), (&nodes[1], 2)] {
        let seen = wait_for_row(&url, &node.node_id, |row| row["connections"] == count && row["lag_us"].is_u64());
        let row = row(&seen, &node.node_id);
        for (field, expected) in [
            ("kind", json!("ringmesh")),
            ("state", json!("up")),
            ("users", json!(count)),
            ("hears_contract", json!(true)),
            ("hears_link", json!(true)),
        ] {
            assert_eq!(row[field], expected, "{field} in {row}");
        }
        let lease_ms = row["lease_ms"].as_u64().expect("a lease");
        assert!((1..=10_000).contains(&lease_ms), "{row}");
        assert!(row["lag_us"].as_u64().is_some_and(|lag| lag > 0), "{row}");
        let lease = nodes.service().get(&format!("rm2:{{n:{}}}:lease", node.node_id)).expect("a lease");
        assert!(lease.starts_with(&format!("{}:", row["life"])), "{lease}: {row}");
    }
    let seen = look(&url);
    let totals = json!({"nodes": 2, "foreign_nodes": 0, "gone": 0, "connections": 5, "users": 5});
    assert_eq!(seen["totals"], totals);
    assert_eq!(seen["redis"], url);
    let server = &seen["servers"][0];
    assert_eq!(server["server"], format!("127.0.0.1:{}", nodes.redis.port()));
    let trip = |which: &str| server["round_trip_us"][which].as_u64().expect("a time");
    assert!(0 < trip("median") && trip("median") <= trip("max"), "{server}");

    let output = run(&mut command(&["--redis", &url]));
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!shown.contains('\x1b'), "no colours where there is no terminal: {shown}");
    let heading: Vec<&str> = shown.lines().next().expect("a heading").split_whitespace().collect();
    let columns = ["node", "kind", "state", "life", "lease", "connections", "users", "listens", "lag"];
    assert_eq!(heading, columns);
    for (node, count) in [(&nodes[0], "3"), (&nodes[1], "2")] {
        let line = shown.lines().find(|line| line.starts_with(&node.node_id)).expect("a line of the node");
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((&cells[1..3], &cells[5..8]), (&["ringmesh", "up"][..], &[count, count, "yes"][..]), "{shown}");
    }
    assert!(shown.contains("\nall    2 nodes, 5 connections, 5 users\n"), "{shown}");
    drop(clients);
}

#[test]
fn the_redis_is_named_as_for_serve() {
    let redis = RedisServer::start();
    let port = redis.port().to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ringmesh.toml");
    std::fs::write(&file, format!("redis = \"{}\"\n", redis.url())).expect("a file");
    let empty = |command: &mut Command| {
        let seen = look_with_code(command, 0);
        assert_eq!((&seen["nodes"], &seen["totals"]["nodes"]), (&json!([]), &json!(0)), "{seen}");
    };
    empty(command(&["--json"]).env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", &port));
    empty(command(&["--json"]).env("RINGMESH_REDIS", redis.url()));
    empty(&mut command(&["--json", "--config", file.to_str().expect("UTF-8")]));
    let told = refusal(&mut command(&[]), 64);
    for way in ["--redis redis://", "RINGMESH_REDIS", "REDIS_HOST", "--config", "`ringmesh top`"] {
        assert!(told.contains(way), "{way}: {told}");
    }
    let told = refusal(&mut command(&["--redis", "http://h"]), 64);
    assert!(told.contains("redis://host:6379"), "{told}");
    let told = refusal(&mut command(&["--redis", &redis.url(), "--watch"]), 64);
    assert!(told.contains("without --watch"), "{told}");
    assert_eq!(redis.ask(&["KEYS", "*"]), "", "it has written nothing");
    assert_eq!(redis.ask(&["PUBSUB", "CHANNELS", "*"]), "", "and listens no more");
}

#[test]
fn a_life_that_has_ended_is_shown_until_its_users_are_taken_off() {
    let redis = RedisServer::start();
    let url = redis.url();
    let mut incarnation = 0;
    on_one_thread(async {
        let mut gone = Rim::connected(&url, "gone").await;
        for user in ["alice", "bob", "carol"] {
            gone.register(user).await;
        }
        gone.enrol().await;
        incarnation = gone.incarnation;
    });
    on_one_thread(async {
        let mut other = Rim::connected(&url, "other").await;
        other.enrol().await;
        // Its lease still holds, but nobody is there to listen.
        let seen = wait_for_row(&url, "gone", |row| row["hears_link"] == false && row["hears_contract"] == false);
        assert_eq!((&row(&seen, "gone")["state"], &seen["totals"]["users"]), (&json!("up"), &json!(3)));
        redis.ask(&["DEL", "rm2:{n:gone}:lease"]);
        let seen = look(&url);
        let lapsed = row(&seen, "gone");
        let expected = json!(["no_lease", incarnation, null, 3]);
        assert_eq!(json!([lapsed["state"], lapsed["life"], lapsed["lease_ms"], lapsed["users"]]), expected);
        assert_eq!(
            (&seen["totals"]["gone"], &seen["totals"]["nodes"], &seen["totals"]["users"]),
            (&1.into(), &1.into(), &0.into())
        );
        let call = Call::DeclareDead { node: "gone".into(), incarnation, again: false };
        assert_eq!(other.call(call).await, Reply::Declared(true));
        let seen = look(&url);
        assert_eq!((&row(&seen, "gone")["state"], &row(&seen, "gone")["users"]), (&json!("dead"), &json!(3)));
        let shown = text(&run(&mut command(&["--redis", &url])).stdout);
        assert!(shown.contains("gone   ringmesh  dead") && shown.contains("take its users off"), "{shown}");
        // It comes back: its earlier life has a row of its own, until others have seen to it.
        let mut back = Rim::start(&url, "gone");
        back.wait_for("being connected", |event| matches!(event, Event::Connected)).await;
        assert_eq!(back.acquire().await, [incarnation]);
        back.enrol().await;
        let seen = look(&url);
        let states: Vec<_> =
            rows(&seen, "gone").iter().map(|row| json!([row["state"], row["life"], row["users"]])).collect();
        assert_eq!(states, [json!(["up", back.incarnation, 0]), json!(["dead", incarnation, 3])]);
        assert_eq!(other.call(Call::Reap { node: "gone".into(), incarnation }).await, Reply::Reaped(true));
        let seen = look(&url);
        assert_eq!(row(&seen, "gone")["life"], back.incarnation);
        assert_eq!(other.call(Call::Release { incarnation: other.incarnation }).await, Reply::Done);
        // Its rim still listens, and nothing else is left of it.
        let seen = look(&url);
        let other = row(&seen, "other");
        let expected = json!(["ringmesh", "no_lease", null, null, true]);
        assert_eq!(
            json!([other["kind"], other["state"], other["life"], other["users"], other["hears_link"]]),
            expected
        );
    });
    eventually("nothing of who has ended", DEADLINE, || rows(&look(&url), "other").is_empty().then_some(()));
}

#[test]
fn a_killed_node_is_gone_once_another_has_seen_to_it() {
    let mut nodes = Nodes::with(2, &[]);
    let url = nodes.redis.url();
    let id = nodes[1].node_id.clone();
    let clients = nodes[1].clients("lost", 5);
    wait_for_row(&url, &id, |row| row["users"] == 5);
    nodes.kill(1);
    let seen = wait_for_row(&url, &id, |row| row["state"] != "up");
    let row = row(&seen, &id);
    assert!(["no_lease", "dead"].iter().any(|state| row["state"] == *state), "{row}");
    assert_eq!((&row["lease_ms"], &row["hears_link"]), (&Value::Null, &json!(false)), "{row}");
    eventually("its end", DEADLINE_SLOW, || rows(&look(&url), &id).is_empty().then_some(()));
    assert_eq!(look(&url)["totals"]["nodes"], 1);
    drop(clients);
}

#[test]
fn a_foreign_node_is_known_by_its_channel() {
    let nodes = Nodes::with(1, &[]);
    let url = nodes.redis.url();
    let mut service = nodes.service();
    let mut foreign = Resp::connect(&nodes.redis);
    foreign.call(&["SUBSCRIBE", "node:stranger {1}"]);
    service.call(&["SET", "node:connections:stranger {1}", "7"]);
    let seen = wait_for_row(&url, "stranger {1}", |_| true);
    let expected = json!({"node": "stranger {1}", "kind": "foreign", "state": "up", "life": null, "lease_ms": null,
        "connections": 7, "users": null, "hears_contract": true, "hears_link": null, "lag_us": null});
    assert_eq!(row(&seen, "stranger {1}"), &expected);
    assert_eq!((&seen["totals"]["foreign_nodes"], &seen["totals"]["connections"]), (&json!(1), &json!(7)));
    // A node of ours is none, also while the registry is lost.
    let own = &nodes[0].node_id;
    service.call(&["HDEL", "rm2:{nodes}:all", own]);
    assert_eq!(row(&look(&url), own)["kind"], "ringmesh");
    drop(foreign);
    eventually("its end", DEADLINE, || rows(&look(&url), "stranger {1}").is_empty().then_some(()));
}

#[test]
fn a_redis_that_cannot_be_asked_is_told_with_its_reason() {
    let mut redis = RedisServer::start();
    let address = format!("127.0.0.1:{}", redis.port());
    redis.stop();
    let told = refusal(&mut command(&["--redis", &redis.url()]), 69);
    assert!(told.contains(&address), "{told}");
    redis.cont();
    redis.kill();
    let told = refusal(&mut command(&["--json", "--redis", &redis.url()]), 69);
    assert!(told.starts_with(&format!("ringmesh: Redis at {address} is out of reach")), "{told}");
    let locked = RedisServer::with_password("right-secret");
    let port = locked.port();
    let told = refusal(&mut command(&["--redis", &format!("redis://:wrong-secret@127.0.0.1:{port}")]), 69);
    assert!(told.contains("refuses the user or the password") && !told.contains("wrong-secret"), "{told}");
    let seen = look(&locked.url());
    assert_eq!(seen["redis"], format!("redis://:***@127.0.0.1:{port}"));
    locked.ask(&["ACL", "SETUSER", "poor", "on", ">secret", "~*", "+@all", "-pubsub"]);
    let told = refusal(&mut command(&["--redis", &format!("redis://poor:secret@127.0.0.1:{port}")]), 69);
    assert!(told.contains("ACL SETUSER"), "{told}");
}

/// The README's line for the access control list, with this password.
fn acl_line(password: &str) -> Vec<String> {
    let line = README.lines().find(|line| line.starts_with("ACL SETUSER")).expect("a line");
    line.replace("PASSWORD", password).split(' ').map(str::to_owned).collect()
}

#[test]
fn the_rights_that_the_readme_gives_are_enough() {
    let line = acl_line("secret");
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let (redis, cluster) = (RedisServer::start(), RedisCluster::start(3, 0));
    let all: Vec<&RedisServer> = [&redis].into_iter().chain(&cluster.masters).collect();
    for server in &all {
        server.ask(&line);
    }
    for url in [redis.url(), cluster.url()] {
        let url = url.replace("://", &format!("://{}:secret@", line[2]));
        let node = Gateway::with(&[("--redis", &url)]);
        support::cluster::wait_until_ready(&node);
        let _client = node.client("alice");
        let is_all_there = |row: &Value| {
            row["connections"] == 1 && row["users"] == 1 && row["hears_link"] == true && row["lag_us"].is_u64()
        };
        wait_for_row(&url, &node.node_id, is_all_there);
    }
    for server in &all {
        assert_eq!(server.ask(&["ACL", "LOG"]), "", "nothing was denied");
    }
}

#[test]
fn every_form_of_redis_can_be_asked() {
    let sentinels = Sentinels::start();
    let tls = RedisServer::with_tls();
    for (url, port) in [(sentinels.url(), sentinels.master.port()), (tls.url(), tls.port())] {
        let node = Gateway::with(&[("--redis", &url)]);
        support::cluster::wait_until_ready(&node);
        let seen = wait_for_row(&url, &node.node_id, |row| row["lag_us"].is_u64());
        assert_eq!(
            (&seen["servers"][0]["server"], &row(&seen, &node.node_id)["hears_link"]),
            (&format!("127.0.0.1:{port}").into(), &true.into())
        );
    }
}

#[test]
fn of_a_cluster_every_master_is_measured_and_what_is_lost_is_told() {
    let mut cluster = RedisCluster::start(3, 0);
    let url = cluster.url();
    let id = new_node_id();
    let node = Gateway::with(&[("--redis", &url), ("--node-id", &id)]);
    support::cluster::wait_until_ready(&node);
    let _client = node.client("alice");
    let seen = wait_for_row(&url, &id, |row| row["connections"] == 1 && row["lag_us"].is_u64());
    let found = row(&seen, &id);
    let listens = json!([found["state"], found["users"], found["hears_contract"], found["hears_link"]]);
    assert_eq!(listens, json!(["up", 1, true, true]));
    let life = found["life"].clone();
    assert_eq!(seen["servers"].as_array().map(Vec::len), Some(3), "{seen}");
    // The master that has neither the registry nor the node's own slot.
    let kept = [cluster.owner("rm2:{nodes}:all"), cluster.owner(&format!("rm2:{{n:{id}}}:lease"))];
    let lost = (0..3).find(|master| !kept.contains(master)).expect("one of three");
    let address = format!("127.0.0.1:{}", cluster.masters[lost].port());
    cluster.masters[lost].kill();
    let seen = look_with_code(&mut command(&["--json", "--redis", &url]), 69);
    assert!(seen["out_of_reach"].to_string().contains(&address), "{seen}");
    assert_eq!(seen["servers"].as_array().map(Vec::len), Some(2), "{seen}");
    // Some of its users may be listed at the master that is lost; its lease is not.
    let partly = row(&seen, &id);
    assert_eq!((&partly["life"], &partly["state"], &partly["users"]), (&life, &json!("up"), &Value::Null), "{seen}");
    let output = run(&mut command(&["--redis", &url]));
    let shown = text(&output.stdout);
    assert!(output.status.code() == Some(69) && shown.contains("\nlost   ") && shown.contains(" ? "), "{shown}");
}

#[test]
fn a_terminal_shows_what_changes_until_q() {
    let mut redis = RedisServer::start();
    let url = redis.url();
    let mut terminal = Terminal::start(&["cluster", "--watch", "--redis", &url], 120, 30);
    terminal.wait_for("0 nodes, 0 connections, 0 users", DEADLINE);
    let node = Gateway::with(&[("--redis", &url)]);
    terminal.wait_for(&node.node_id, DEADLINE_SLOW);
    terminal.wait_for("1 node,", DEADLINE);
    redis.kill();
    terminal.wait_for("NO ANSWER, trying again; below is what it said last", DEADLINE);
    redis.start_again();
    terminal.forget();
    terminal.wait_for("1 node,", DEADLINE_SLOW);
    assert!(!terminal.is_as_before(), "keys would be echoed");
    terminal.press(b"q");
    assert_eq!(terminal.wait_for_end(DEADLINE).code(), Some(0));
}
