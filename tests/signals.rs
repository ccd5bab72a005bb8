//! Goal: each signal does what the README's table says, at each stage of a node's life.
//! Method: every signal to a node that reads its settings, waits for Redis, runs, drains, and tells its clients to go.

mod support;

use nix::sys::signal::Signal::{self, SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::gateway::serve_arguments;
use support::process::Process;
use support::{DEADLINE, DEADLINE_SLOW, Gateway, eventually, http};

/// Those that change nothing, and are logged.
const LOGGED: [Signal; 4] = [SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
/// Those that change nothing, as in any program that leaves them alone.
const SILENT: [Signal; 2] = [SIGPIPE, SIGCHLD];

fn change_nothing(process: &Process) {
    for signal in SILENT.into_iter().chain(LOGGED) {
        process.signal(signal);
        if LOGGED.contains(&signal) {
            process.wait_for("a word about the signal", DEADLINE, |record| record["signal"] == signal.as_str());
        }
    }
}

/// Waits until the process hears what the kernel would else end it by.
fn listens(process: &Process) {
    let status = format!("/proc/{}/status", process.pid());
    eventually("a process that hears signals", DEADLINE_SLOW, || {
        let status = std::fs::read_to_string(&status).expect("the process is there");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
        let caught = u64::from_str_radix(caught.trim(), 16).expect("a hexadecimal number");
        let all = LOGGED.into_iter().chain([SIGTERM, SIGINT]);
        all.map(|signal| 1 << (signal as u64 - 1)).all(|bit: u64| caught & bit != 0).then_some(())
    });
}

#[test]
fn while_it_reads_its_settings() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("settings.toml");
    // Nobody writes to it: the process waits.
    mkfifo(&file, Mode::S_IRWXU).expect("a pipe with a name");
    for signal in [SIGTERM, SIGINT] {
        let file = file.to_str().expect("text");
        let mut process = Process::spawn(serve_arguments("early", &[("--config", file)]));
        listens(&process);
        SILENT.into_iter().chain(LOGGED).for_each(|signal| process.signal(signal));
        process.signal(signal);
        assert_eq!(process.wait_for_exit(DEADLINE).code(), Some(0));
        let expected = format!("ringmesh: stopped by {} before it had begun", signal.as_str());
        assert_eq!(process.log().lines().last(), Some(expected.as_str()));
    }
}

#[test]
fn while_it_waits_for_redis() {
    for signal in [SIGTERM, SIGINT] {
        let mut gateway = Gateway::with(&[("--redis", "redis://127.0.0.1:1")]);
        change_nothing(&gateway);
        assert_eq!(http::get(gateway.addr, "/ready").status, 503);
        gateway.signal(signal);
        assert_eq!(gateway.wait_for_exit(DEADLINE_SLOW).code(), Some(0));
    }
}

#[test]
fn while_it_runs() {
    for signal in [SIGTERM, SIGINT] {
        let mut gateway = Gateway::start();
        let mut alice = gateway.client("alice");
        change_nothing(&gateway);
        alice.expect_pong();
        gateway.signal(signal);
        alice.expect_close(1012);
        assert_eq!(gateway.wait_for_exit(DEADLINE).code(), Some(0));
    }
}

#[test]
fn while_it_drains() {
    for (signal, code) in [(SIGTERM, 143), (SIGINT, 130)] {
        let mut gateway = Gateway::with(&[("--drain-delay", "1h")]);
        let mut alice = gateway.client("alice");
        gateway.signal(SIGTERM);
        // The same order, given twice.
        gateway.signal(signal);
        let is_draining = || (http::get(gateway.addr, "/ready").status == 503).then_some(());
        eventually("a node that drains", DEADLINE, is_draining);
        change_nothing(&gateway);
        alice.expect_pong();
        gateway.signal_until_it_ends(signal, code);
    }
}

#[test]
fn while_it_tells_its_clients_to_go() {
    for (signal, code) in [(SIGTERM, 143), (SIGINT, 130)] {
        let mut gateway = Gateway::with(&[("--shutdown-timeout", "1h"), ("--close-timeout", "1h")]);
        let mut deaf = gateway.raw("deaf");
        gateway.signal(SIGTERM);
        let close = deaf.next_but_pings().and_then(|frame| frame.close());
        assert_eq!(close.map(|(code, _)| code), Some(1012));
        change_nothing(&gateway);
        gateway.signal_until_it_ends(signal, code);
    }
}
