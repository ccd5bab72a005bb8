//! Goal: under systemd a node says when it is ready, that it lives, and that it stops; a service manager that is absent or
//! does not listen costs it nothing; and the unit that comes with it fits what the node does.
//! Method: NOTIFY_SOCKET names a socket of this test, on which the test plays systemd. The unit is read as text, and by
//! systemd-analyze where that is installed.

mod support;

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::gateway::serve_arguments;
use support::process::Process;
use support::{Client, DEADLINE_SLOW, eventually, http};

const UNIT: &str = include_str!("../tuning/systemd/ringmesh.service");
const ENVIRONMENT: &str = include_str!("../tuning/systemd/ringmesh.env");

/// A node that was told of this socket.
fn start(node_id: &str, socket: &OsStr, flags: &[(&str, &str)]) -> Process {
    Process::spawn_with(serve_arguments(node_id, flags), &[("NOTIFY_SOCKET", socket)])
}

/// What the node says next, as its lines.
fn next(systemd: &UnixDatagram) -> Vec<String> {
    let mut text = [0; 4096];
    let bytes = systemd.recv(&mut text).expect("the node says something in time");
    String::from_utf8_lossy(&text[..bytes]).lines().map(str::to_owned).collect()
}

/// Waits for something that the node says, however often it says other things before.
fn wait_for(systemd: &UnixDatagram, what: &str) -> Vec<String> {
    eventually(what, DEADLINE_SLOW, || Some(next(systemd)).filter(|lines| lines.iter().any(|line| line == what)))
}

/// The address in a record of the log.
fn address(record: &serde_json::Value) -> std::net::SocketAddr {
    record["addr"].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("addr in {record}"))
}

fn listening(node: &Process) -> std::net::SocketAddr {
    address(&node.wait_for("the record `listening`", DEADLINE_SLOW, |record| record["message"] == "listening"))
}

#[test]
fn a_node_says_that_it_is_ready_that_it_lives_and_that_it_stops() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("a socket in it");
    systemd.set_read_timeout(Some(DEADLINE_SLOW)).expect("a deadline");
    let mut node = start("systemd-life", path.as_os_str(), &[("--drain-delay", "2s"), ("--shutdown-timeout", "7s")]);

    assert_eq!(next(&systemd)[0], "READY=1", "the first that it says");
    let addr = listening(&node);
    assert_eq!(http::get(addr, "/ready").status, 200, "READY means that load balancers may come");

    let client = Client::connect(addr, "alice");
    // More than once, and each time with what is so then.
    for _ in 0..2 {
        let lines = wait_for(&systemd, "WATCHDOG=1");
        assert!(lines.iter().any(|line| line.starts_with("STATUS=")), "{lines:?}");
    }
    wait_for(&systemd, "STATUS=1 connections");
    client.close();
    wait_for(&systemd, "STATUS=0 connections");

    node.signal(Signal::SIGTERM);
    let lines = wait_for(&systemd, "STOPPING=1");
    // 2 s, 7 s, and the reserve of 10 s.
    assert!(lines.iter().any(|line| line == "EXTEND_TIMEOUT_USEC=19000000"), "{lines:?}");
    wait_for(&systemd, "WATCHDOG=1");
    assert_eq!(node.wait_for_exit(DEADLINE_SLOW).code(), Some(0));
}

#[test]
fn a_socket_outside_of_the_file_system_is_found() {
    let name = format!("ringmesh-test-{}", std::process::id());
    let addr = SocketAddr::from_abstract_name(&name).expect("a short name");
    let systemd = UnixDatagram::bind_addr(&addr).expect("nobody else has this name");
    systemd.set_read_timeout(Some(DEADLINE_SLOW)).expect("a deadline");
    let _node = start("systemd-abstract", OsStr::new(&format!("@{name}")), &[]);
    assert_eq!(next(&systemd)[0], "READY=1");
}

#[test]
fn a_manager_that_does_not_listen_stops_nobody() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("a socket in it");
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("an option");
    let full = loop {
        if let Err(error) = filler.send_to(b"x", &path) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock, "{full}");
    let mut node = start("systemd-deaf", path.as_os_str(), &[]);
    let addr = listening(&node);
    assert_eq!(http::get(addr, "/health").status, 200);
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait_for_exit(DEADLINE_SLOW).code(), Some(0));
    drop(systemd);
}

#[test]
fn a_manager_that_is_not_there_is_told_in_the_log_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("nobody");
    let node = start("systemd-gone", path.as_os_str(), &[]);
    let warning = |record: &serde_json::Value| {
        record["message"].as_str().is_some_and(|text| text.starts_with("NOTIFY_SOCKET cannot be reached"))
    };
    listening(&node);
    node.wait_for("the warning", DEADLINE_SLOW, warning);
}

/// The last value of a key of the unit.
fn unit(key: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.next_back().unwrap_or_else(|| panic!("the unit lacks {key}="))
}

fn unit_seconds(key: &str) -> Duration {
    Duration::from_secs(unit(key).parse().unwrap_or_else(|_| panic!("{key}= is in seconds")))
}

#[test]
fn the_unit_fits_the_node() {
    assert_eq!(unit("Type"), "notify");
    // The node's own watchdog, which can name the shard, comes first.
    assert!(unit_seconds("WatchdogSec") > Duration::from_secs(10));
    let default = |key| {
        let setting = ringmesh::config::SETTINGS.iter().find(|setting| setting.key == key).expect("a setting");
        let seconds = setting.default.strip_suffix('s').and_then(|text| text.parse().ok());
        Duration::from_secs(seconds.unwrap_or_else(|| panic!("{key} is {}", setting.default)))
    };
    assert!(unit_seconds("TimeoutStopSec") >= default("drain_delay") + default("shutdown_timeout"));
    // The documented exit codes after which a restart would end the same way.
    assert_eq!(unit("RestartPreventExitStatus"), "1 64 69");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        let allowed = UNIT.lines().filter(|line| line.starts_with("SystemCallFilter=") && !line.contains("=~"));
        assert!(allowed.flat_map(str::split_whitespace).any(|word| word == call), "the unit allows {call}");
    }
}

#[test]
fn the_environment_file_holds_settings_and_values_that_the_node_takes() {
    let variables: Vec<(&str, &str)> = ENVIRONMENT
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once('=').unwrap_or_else(|| panic!("{line}: NAME=VALUE")))
        .collect();
    assert!(variables.len() >= 5, "{variables:?}");
    for (name, _) in &variables {
        let known = ringmesh::config::SETTINGS.iter().any(|setting| setting.variable() == *name);
        assert!(known, "{name} is no setting");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_ringmesh")).arg("config").envs(variables).output();
    let output = output.expect("the program can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ringmesh.service");
    // It also looks whether the program is there.
    let text = UNIT.replace("/usr/local/bin/ringmesh", env!("CARGO_BIN_EXE_ringmesh"));
    std::fs::write(&path, text).expect("the temporary folder can be written");
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("ringmesh.service"), "{said}");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("systemd-analyze is not installed: not looked at")
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    }
}
