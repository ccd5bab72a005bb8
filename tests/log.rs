//! Goal: whatever becomes of the log, the node serves, stops and says how much was lost.
//! Method: a disk that is full, a pipe that nobody reads, one whose reader has gone, and a log that says everything.

mod support;

use std::fs::OpenOptions;
use std::io::{Read, pipe};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;

use nix::sys::signal::Signal;
use support::gateway::serve_arguments;
use support::metrics::Metrics;
use support::process::Process;
use support::proxy::OwnHosts;
use support::{Client, DEADLINE, DEADLINE_SLOW, eventually, http};

/// A node whose addresses are known without its log: nobody else has them.
struct Node {
    process: Process,
    addr: SocketAddr,
    admin: SocketAddr,
}

impl Node {
    fn start(stderr: Stdio, flags: &[(&str, &str)]) -> Node {
        let host = OwnHosts::next().node(0);
        let (listen, admin) = (format!("{host}:8080"), format!("{host}:8081"));
        let own = [("--listen", listen.as_str()), ("--admin-listen", admin.as_str())];
        let flags: Vec<(&str, &str)> = flags.iter().copied().chain(own).collect();
        let process = Process::spawn_with_stderr(serve_arguments("unheard", &flags), stderr);
        let [addr, admin] = [&listen, &admin].map(|text| text.parse().expect("an address"));
        eventually("a node that listens", DEADLINE_SLOW, || TcpStream::connect(addr).ok());
        Node { process, addr, admin }
    }

    /// Has it log so much that some of it is lost.
    fn loses_lines(&self) {
        eventually("a count of what was lost", DEADLINE_SLOW, || {
            (0..100).for_each(|_| Client::connect(self.addr, "bob").expect_pong());
            let metrics = Metrics::parse(&http::get(self.admin, "/metrics").text());
            (metrics.sum("ringmesh_log_dropped_total", &[]) > 0.0).then_some(())
        });
    }

    /// Serves, says that some of the log is lost, and stops as it should.
    fn serves_and_stops(mut self) {
        let mut alice = Client::connect(self.addr, "alice");
        self.loses_lines();
        alice.expect_pong();
        self.process.signal(Signal::SIGTERM);
        alice.expect_close(1012);
        assert_eq!(self.process.wait_for_exit(DEADLINE).code(), Some(0));
    }
}

#[test]
fn a_full_disk_stops_nobody() {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    Node::start(full.into(), &[("--log-level", "debug")]).serves_and_stops();
}

#[test]
fn a_reader_that_has_gone_stops_nobody() {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    Node::start(writer.into(), &[("--log-level", "debug")]).serves_and_stops();
}

#[test]
fn a_pipe_that_nobody_reads_stops_nobody() {
    let (mut reader, writer) = pipe().expect("a pipe");
    Node::start(writer.into(), &[("--log-level", "trace")]).serves_and_stops();
    // What had been written before there was no room is whole lines.
    let mut log = String::new();
    reader.read_to_string(&mut log).expect("text");
    assert!(log.contains("listening"), "{log}");
}

#[test]
fn a_second_signal_does_not_wait_for_the_log() {
    let (_reader, writer) = pipe().expect("a pipe");
    let mut node = Node::start(writer.into(), &[("--log-level", "trace"), ("--drain-delay", "1h")]);
    node.loses_lines();
    node.process.signal_until_it_ends(Signal::SIGTERM, 143);
}
