//! The harness counts what a server really did: a server that drops, repeats and swaps messages, and counts each time, has
//! to find its own counts in the report.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tungstenite::{Message, WebSocket};

/// What the server did wrong.
#[derive(Default)]
struct Deeds {
    dropped: AtomicU64,
    repeated: AtomicU64,
    swapped: AtomicU64,
    changed: AtomicU64,
}

/// An echo server on loopback; each of these counts of messages has something done to it, 0 for never.
#[derive(Clone, Copy, Default)]
struct Faults {
    drop_every: u64,
    repeat_every: u64,
    swap_every: u64,
    change_every: u64,
}

fn serve(faults: Faults) -> (SocketAddr, Arc<Deeds>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
    let address = listener.local_addr().expect("it is bound");
    let deeds = Arc::new(Deeds::default());
    let shared = Arc::clone(&deeds);
    // The threads end with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let deeds = Arc::clone(&shared);
            thread::spawn(move || {
                if let Ok(socket) = tungstenite::accept(stream) {
                    echo(socket, faults, &deeds);
                }
            });
        }
    });
    (address, deeds)
}

fn echo(mut socket: WebSocket<TcpStream>, faults: Faults, deeds: &Deeds) {
    let is_due = |every: u64, count: u64| count.is_multiple_of(every);
    let (mut count, mut held) = (0, None::<Message>);
    while let Ok(message) = socket.read() {
        let Message::Text(text) = &message else { continue };
        count += 1;
        let mut answers = vec![message.clone()];
        if is_due(faults.drop_every, count) {
            deeds.dropped.fetch_add(1, Ordering::Relaxed);
            answers.clear();
        } else if is_due(faults.repeat_every, count) {
            deeds.repeated.fetch_add(1, Ordering::Relaxed);
            answers.push(message.clone());
        } else if is_due(faults.change_every, count) {
            deeds.changed.fetch_add(1, Ordering::Relaxed);
            answers = vec![Message::text(format!("{text}!"))];
        } else if is_due(faults.swap_every, count) && held.is_none() {
            held = answers.pop();
        } else if let Some(late) = held.take() {
            deeds.swapped.fetch_add(1, Ordering::Relaxed);
            answers.push(late);
        }
        if answers.into_iter().any(|answer| socket.send(answer).is_err()) {
            return;
        }
    }
    // What was held to the end was never sent.
    deeds.dropped.fetch_add(u64::from(held.is_some()), Ordering::Relaxed);
}

/// Runs the harness, and gives its exit code and the first run of its result file.
fn bench(name: &str, address: SocketAddr, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let json = std::env::temp_dir().join(format!("ringmesh-bench-{name}-{}.json", std::process::id()));
    let status = Command::new(env!("CARGO_BIN_EXE_ringmesh-bench"))
        .args(arguments)
        .args(["--quiet", "--url", &format!("ws://{address}/"), "--json"])
        .arg(&json)
        .status()
        .expect("the harness starts");
    let text = fs::read_to_string(&json).expect("a result file");
    fs::remove_file(&json).expect("the result file goes");
    let results: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    (status.code(), results["runs"][0].clone())
}

const ECHO: [&str; 10] = ["echo", "--raw", "-c", "4", "-r", "2000", "-d", "500ms", "--drain", "500ms"];

#[test]
fn faults_are_counted_one_by_one() {
    let faults = Faults { drop_every: 7, repeat_every: 11, swap_every: 13, change_every: 17 };
    let (address, deeds) = serve(faults);
    let (code, run) = bench("faults", address, &ECHO);
    let truth = |name: &str| run["truth"][name].as_u64().expect("a count");
    let done = |count: &AtomicU64| count.load(Ordering::Relaxed);
    // A changed message is not the one that was sent: it counts as corrupt, and the one that was sent as lost.
    assert_eq!(truth("lost"), done(&deeds.dropped) + done(&deeds.changed), "{run}");
    assert_eq!(truth("duplicated"), done(&deeds.repeated), "{run}");
    assert_eq!(truth("reordered"), done(&deeds.swapped), "{run}");
    assert_eq!(truth("corrupt"), done(&deeds.changed), "{run}");
    for count in [&deeds.dropped, &deeds.repeated, &deeds.swapped, &deeds.changed] {
        assert!(done(count) > 10, "the server did too little for the test to mean anything: {run}");
    }
    // A broken threshold, unless the machine was so busy that the run is worth nothing.
    assert!(matches!(code, Some(1 | 2)), "{code:?}");
}

#[test]
fn a_faithful_server_has_no_errors() {
    let (address, _) = serve(Faults::default());
    let (code, run) = bench("faithful", address, &ECHO);
    assert_eq!(run["errors_total"], 0, "{run}");
    assert_eq!(run["truth"]["sent"], run["truth"]["received"], "{run}");
    assert!(matches!(code, Some(0 | 2)), "{code:?}");
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ringmesh-bench")).args(arguments).output();
        output.expect("the harness starts").status.code()
    };
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    assert_eq!(run(&["echo", "-c", "1", "--quiet", "--url", &format!("ws://{nobody}/")]), Some(3));
    assert_eq!(run(&["echo", "--threshold", "p98<1ms"]), Some(64));
    assert_eq!(run(&["echo", "--no-such-flag"]), Some(64));
    let (address, _) = serve(Faults::default());
    let url = format!("ws://{address}/");
    let broken = ["echo", "--raw", "-c", "1", "-d", "100ms", "--quiet", "--threshold", "rate>1000M", "--url", &url];
    assert_eq!(run(&broken), Some(1));
}
