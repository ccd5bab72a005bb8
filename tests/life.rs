//! Goal: a node starts with a clear word, stops without losing what it took, and never lives on half dead.
//! Method: signals and exit codes from outside, as a supervisor sees them.

mod support;

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use support::client::message_from;
use support::gateway::serve_arguments;
use support::process::Process;
use support::proxy::OwnHosts;
use support::{DEADLINE, DEADLINE_SLOW, Gateway, eventually, http};

#[test]
fn sigterm_and_sigint_close_clients_with_1012_and_exit_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut gateway = Gateway::start();
        let mut clients = gateway.clients("user", 8);
        gateway.signal(signal);
        for client in &mut clients {
            client.expect_close(1012);
        }
        let status = gateway.wait_for_exit(DEADLINE);
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

#[test]
fn what_was_accepted_is_flushed_before_the_end() {
    let mut gateway = Gateway::start();
    let mut alice = gateway.client("alice");
    // Eight, so that some are on the other shard and some have their home there.
    let mut targets = gateway.clients("target", 8);
    for at in 0..500 {
        for target in &targets {
            alice.send_to(&target.user, &at.to_string());
        }
    }
    // The pong says that all of it was taken; none of it has been read yet.
    alice.expect_pong();
    gateway.signal(Signal::SIGTERM);
    for target in &mut targets {
        for at in 0..500 {
            target.expect(&message_from("alice", at));
        }
        target.expect_close(1012);
    }
    alice.expect_close(1012);
    assert_eq!(gateway.wait_for_exit(DEADLINE).code(), Some(0));
}

#[test]
fn during_the_drain_delay_it_is_not_ready_but_still_serves() {
    let mut gateway = Gateway::with(&[("--drain-delay", "60s")]);
    let mut alice = gateway.client("alice");
    assert_eq!(http::get(gateway.addr, "/ready").status, 200);
    gateway.signal(Signal::SIGTERM);
    eventually("a /ready that says 503", DEADLINE, || (http::get(gateway.addr, "/ready").status == 503).then_some(()));
    assert_eq!(gateway.connections(), 1);
    let mut bob = gateway.client("bob");
    bob.send_to("alice", r#""still here""#);
    alice.expect(&message_from("bob", "still here"));
    // Within a second it is the same order; after that it does not wait for the delay, nor for anything else.
    gateway.signal_until_it_ends(Signal::SIGTERM, 143);
}

#[test]
fn after_the_drain_delay_it_stops() {
    let mut gateway = Gateway::with(&[("--drain-delay", "300ms")]);
    let mut alice = gateway.client("alice");
    gateway.signal(Signal::SIGTERM);
    alice.expect_close(1012);
    assert_eq!(gateway.wait_for_exit(DEADLINE).code(), Some(0));
    assert!(std::net::TcpStream::connect(gateway.addr).is_err(), "nobody listens any more");
}

#[test]
fn clients_that_do_not_answer_the_close_do_not_keep_it_alive() {
    let mut gateway = Gateway::with(&[("--shutdown-timeout", "1s")]);
    let mut deaf = gateway.raw("deaf");
    let idle = http::open(gateway.addr);
    gateway.signal(Signal::SIGTERM);
    let close = deaf.next_but_pings().and_then(|frame| frame.close());
    assert_eq!(close.map(|(code, _)| code), Some(1012));
    // Neither the Close is answered nor the socket closed, and `idle` never sends a head.
    assert_eq!(gateway.wait_for_exit(DEADLINE).code(), Some(0));
    drop(idle);
}

#[test]
fn an_address_in_use_is_refused_with_a_clear_message() {
    let first = Gateway::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let foreign = listener.local_addr().expect("its address");
    for (who, flag, addr) in [
        ("a gateway", "--listen", first.addr),
        ("a gateway", "--admin-listen", first.admin),
        ("another program", "--listen", foreign),
    ] {
        let text = addr.to_string();
        let mut second = Process::spawn(serve_arguments("second", &[(flag, &text)]));
        let status = second.wait_for_exit(DEADLINE_SLOW);
        assert_eq!(status.code(), Some(69), "{flag} {text} is held by {who}: {status}");
        let log = second.log();
        assert!(log.to_lowercase().contains("address in use") || log.contains("already in use"), "{log}");
        assert!(log.contains(&text), "the message names the address: {log}");
    }
    // The first one has lost none of its connections to the second.
    first.clients("user", 32).iter_mut().for_each(support::Client::expect_pong);
}

#[test]
fn a_node_that_was_killed_starts_again_at_once_where_it_was() {
    // Nobody else has a port of this address, whatever else runs.
    let addr = format!("{}:8080", OwnHosts::next().node(0));
    let mut running = Gateway::with(&[("--listen", &addr)]);
    for _ in 0..5 {
        let _clients = running.clients("user", 20);
        running.signal(Signal::SIGKILL);
        running.wait_for_exit(DEADLINE);
        // The kernel may still be closing the listeners of the one before.
        running = Gateway::with(&[("--listen", &addr)]);
    }
    running.client("user").expect_pong();
}

/// The executor thread of a shard, and the number of that shard, both told by names such as `shard-1-2`.
///
/// An executor may have helper threads that inherit its name; it is older than they are.
fn a_shard_thread(pid: Pid) -> (Pid, String) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the threads of the process");
    let shards = tasks.map_while(Result::ok).filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let id: i32 = task.file_name().to_str()?.parse().ok()?;
        let number = name.trim().strip_prefix("shard-")?.split('-').next()?.to_owned();
        Some((Pid::from_raw(id), number))
    });
    shards.min().expect("a thread that is named after its shard")
}

/// A thread that a debugger holds; the process's other threads run on.
struct Stopped(Pid);

impl Stopped {
    fn stop(thread: Pid) -> Stopped {
        ptrace::seize(thread, ptrace::Options::empty()).expect("ptrace of a child (CAP_SYS_PTRACE in a container)");
        ptrace::interrupt(thread).expect("the thread is stopped");
        Stopped(thread)
    }

    /// Takes note of the thread's end; before its tracer has done that, the process can't be reaped.
    fn wait_for_end(&self) {
        let _ = waitpid(self.0, Some(WaitPidFlag::__WALL));
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A test that fails lets go, so that the process can be killed and reaped.
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn a_shard_that_stands_still_ends_the_process_with_a_message_that_names_it() {
    let mut gateway = Gateway::start();
    let client = gateway.client("alice");
    let (thread, number) = a_shard_thread(gateway.pid());
    let stopped = Stopped::stop(thread);
    gateway.wait_for_end_of_log(DEADLINE_SLOW);
    stopped.wait_for_end();
    let status = gateway.wait_for_exit(DEADLINE);
    assert!(status.code().is_some_and(|code| code != 0) || status.signal() == Some(6), "{status}");
    let log = gateway.log();
    let last_error = log.lines().rfind(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("no error in {log}"));
    assert!(last_error.contains(&format!("shard {number}")), "the message says where: {last_error}");
    drop(client);
}
