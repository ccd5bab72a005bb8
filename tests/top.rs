//! Goal: `ringmesh top` shows what a node does, survives a node that goes and comes back, gives the terminal back however
//! it ends, and is of use without a terminal, too.
//!
//! Method: a real node with real clients; the binary in a pseudo terminal, or with its output in a pipe.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use support::terminal::Terminal;
use support::{DEADLINE, DEADLINE_SLOW, Gateway};

fn once(admin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmesh"));
    command.args(["top", "--once", "--interval", "100ms", "--admin", admin]).output().expect("the program can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// An address on which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port")
}

/// The lines that begin with this label.
fn line(shown: &str, label: &str) -> String {
    let mut lines = shown.lines().filter(|line| line.trim_start().starts_with(label));
    lines.next().unwrap_or_else(|| panic!("no line {label} in\n{shown}")).to_owned()
}

#[test]
fn once_is_plain_text_with_every_shard() {
    let gateway = Gateway::with(&[("--connections-max", "8")]);
    let mut clients = gateway.clients_on_each_shard("user", 2, 2);
    clients[0][0].expect_pong();
    let output = once(&format!("http://{}", gateway.admin));
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!shown.contains('\x1b'), "{shown}");
    assert!(line(&shown, "node").contains(&format!("{}  ready", gateway.node_id)), "{shown}");
    assert!(line(&shown, "clients").contains("4 of 8 (50%)  users 4"), "{shown}");
    for (row, count) in [("0 ", 2), ("1 ", 2), ("all ", 4)] {
        let row = line(&shown, row);
        assert_eq!(row.split_whitespace().nth(1), Some(count.to_string().as_str()), "{shown}");
    }
    assert!(line(&shown, "bus").ends_with("this node is alone"), "{shown}");
    assert!(line(&shown, "closes/s").ends_with("none"), "{shown}");
}

#[test]
fn rates_are_those_of_the_interval() {
    let gateway = Gateway::start();
    let mut client = gateway.client("alice");
    let admin = gateway.admin.to_string();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let shown = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.expect_pong();
            }
        });
        // With an interval that pings are sure to fall into.
        let output = Command::new(env!("CARGO_BIN_EXE_ringmesh"))
            .args(["top", "--once", "--interval", "1s", "--admin", &admin])
            .output()
            .expect("the program can be run");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        text(&output.stdout)
    });
    let messages = line(&shown, "messages/s");
    assert!(!messages.contains("in 0 ") && !messages.contains("out 0 ") && !messages.contains("p99 -"), "{shown}");
}

#[test]
fn what_cannot_be_shown_is_told_with_its_reason() {
    let gateway = Gateway::start();
    for (admin, code, reason) in [
        (nobody().to_string(), 69, "no node answers there; is it its --admin-listen?"),
        (gateway.addr.to_string(), 69, "a node shows its metrics on --admin-listen, not on --listen"),
        (format!("http://{}/health", gateway.admin), 69, "not the metrics of a node: line 1"),
        ("https://127.0.0.1:8081".to_owned(), 64, "speaks plain HTTP, not TLS"),
    ] {
        let output = once(&admin);
        assert_eq!(output.status.code(), Some(code), "{admin}: {output:?}");
        assert!(text(&output.stderr).contains(reason), "{admin}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{admin}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_ringmesh")).arg("top").output().expect("the program can be run");
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(text(&output.stderr).contains("`ringmesh top --once` prints plain text"), "{output:?}");
}

fn live(admin: SocketAddr) -> Terminal {
    Terminal::start(&["top", "--interval", "100ms", "--admin", &admin.to_string()], 100, 30)
}

#[test]
fn a_terminal_shows_what_changes_until_q() {
    let gateway = Gateway::start();
    let mut terminal = live(gateway.admin);
    terminal.wait_for("0 of 100000", DEADLINE);
    let mut client = gateway.client("alice");
    client.expect_pong();
    terminal.wait_for("1 of 100000", DEADLINE);
    assert!(!terminal.is_as_before(), "keys would be echoed");
    terminal.press(b"x");
    terminal.forget();
    terminal.wait_for("1 of 100000", DEADLINE);
    terminal.press(b"q");
    assert_eq!(terminal.wait_for_end(DEADLINE).code(), Some(0));
}

#[test]
fn the_terminal_is_given_back_whatever_ends_it() {
    let gateway = Gateway::start();
    let mut by_key = live(gateway.admin);
    by_key.wait_for("of 100000", DEADLINE);
    // Ctrl-C
    by_key.press(&[3]);
    assert_eq!(by_key.wait_for_end(DEADLINE).code(), Some(0));
    let mut by_signal = live(gateway.admin);
    by_signal.wait_for("of 100000", DEADLINE);
    by_signal.signal(Signal::SIGTERM);
    assert_eq!(by_signal.wait_for_end(DEADLINE).code(), Some(128 + 15));
    let mut stopped = live(gateway.admin);
    stopped.wait_for("of 100000", DEADLINE);
    stopped.signal(Signal::SIGTSTP);
    support::eventually("a terminal that is given back", DEADLINE, || stopped.is_as_before().then_some(()));
    stopped.forget();
    stopped.signal(Signal::SIGCONT);
    stopped.wait_for("of 100000", DEADLINE);
    stopped.press(b"q");
    assert_eq!(stopped.wait_for_end(DEADLINE).code(), Some(0));
}

#[test]
fn a_node_that_goes_is_told_and_one_that_comes_back_is_shown() {
    let admin = nobody();
    let mut terminal = live(admin);
    terminal.wait_for("no node answers there", DEADLINE);
    let flags = [("--admin-listen", admin.to_string())];
    let flags = flags.each_ref().map(|(flag, value)| (*flag, value.as_str()));
    let first = Gateway::with(&flags);
    terminal.wait_for(&format!("{}  ready", first.node_id), DEADLINE_SLOW);
    drop(first);
    terminal.forget();
    terminal.wait_for("NO ANSWER, trying again; below is what it said last", DEADLINE);
    let second = Gateway::with(&flags);
    terminal.wait_for(&format!("{}  ready", second.node_id), DEADLINE_SLOW);
    terminal.press(b"q");
    assert_eq!(terminal.wait_for_end(DEADLINE).code(), Some(0));
}
