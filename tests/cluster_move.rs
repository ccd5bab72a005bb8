//! Goal: a user who moves from node to node under traffic loses nothing, no connection gets anything twice, and each
//! sender's order is kept.
//! Method: alice opens on one node and then closes on another, over and over, while somebody on each node sends her
//! numbered messages as fast as they are answered. What a connection got rises, and what it lacks in between the
//! connection before it got: a new one may begin with some of what was said just before it opened.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use support::{Client, Nodes};
use tungstenite::Message;

const SENDERS: usize = 3;

/// How often she moves.
const MOVES: usize = 24;

/// What one connection got, by sender: the numbers, as they came.
type Got = [Vec<u64>; SENDERS];

/// Takes one text; the numbers of each sender must rise.
#[track_caller]
fn take(connection: usize, got: &mut Got, text: &str) {
    let frame: Value = serde_json::from_str(text).expect("JSON");
    let number = |at: usize| frame["content"][at].as_u64().unwrap_or_else(|| panic!("alice gets {frame}"));
    let (sender, number) = (number(0) as usize, number(1));
    let before = got[sender].last().copied();
    assert!(
        before.is_none_or(|before| before < number),
        "connection {connection} gets {number} of sender {sender} after {before:?}"
    );
    got[sender].push(number);
}

/// Reads until `done`.
fn read_until(connection: usize, alice: &mut Client, got: &mut Got, done: impl Fn(&Got) -> bool) {
    while !done(got) {
        let text = alice.next_text();
        take(connection, got, &text);
    }
}

/// Closes, and reads what is still on the way.
fn close(connection: usize, mut alice: Client, got: &mut Got) {
    alice.send_message(Message::Close(None));
    loop {
        match alice.next() {
            Message::Text(text) => take(connection, got, &text),
            Message::Close(_) => return,
            other => panic!("alice gets {other:?}"),
        }
    }
}

/// Sends alice numbered messages, a few ahead of the pongs, until `stop`; `sent` counts them.
fn flood(mut sender: Client, at: usize, stop: &AtomicBool, sent: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..10 {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            sender.send_to("alice", &json!([at, number]).to_string());
        }
        sender.expect_pong();
    }
}

/// Ends the senders also when the test fails, so that their scope can end.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nothing_is_lost_or_doubled_or_out_of_order() {
    let nodes = Nodes::start();
    let stop = AtomicBool::new(false);
    let sent: [AtomicU64; SENDERS] = Default::default();
    let mut all: Vec<Got> = Vec::new();
    std::thread::scope(|scope| {
        let mut alice = nodes[0].client("alice");
        let start = |(at, sent)| {
            let (sender, stop) = (nodes[at].client(&format!("sender{at}")), &stop);
            scope.spawn(move || flood(sender, at, stop, sent))
        };
        let senders: Vec<_> = sent.iter().enumerate().map(start).collect();
        let stop = StopAtEnd(&stop);
        let of_each = |got: &Got| got.iter().all(|of_sender| !of_sender.is_empty());
        let mut got: Got = Default::default();
        for step in 0..MOVES {
            read_until(step, &mut alice, &mut got, of_each);
            let mut next = Client::connect_patiently(nodes[(step + 1) % nodes.count()].addr, "alice");
            // Half of the time the new connection has got something before the old one closes, the other half maybe not.
            let mut next_got: Got = Default::default();
            if step % 2 == 0 {
                read_until(step + 1, &mut next, &mut next_got, of_each);
            }
            close(step, std::mem::replace(&mut alice, next), &mut got);
            all.push(std::mem::replace(&mut got, next_got));
        }
        drop(stop);
        senders.into_iter().for_each(|sender| sender.join().expect("a sender ends well"));
        let last = sent.each_ref().map(|sent| sent.load(Ordering::Relaxed));
        let all_came = |got: &Got| (0..SENDERS).all(|at| got[at].last().is_some_and(|&number| number + 1 >= last[at]));
        read_until(MOVES, &mut alice, &mut got, all_came);
        alice.expect_pong();
        all.push(got);
    });
    for sender in 0..SENDERS {
        let mut end = 0;
        for (connection, got) in all.iter().enumerate() {
            let numbers = &got[sender];
            let first = *numbers.first().expect("each connection got something of each sender");
            assert!(
                first <= end,
                "of sender {sender} connection {connection} got {first} first, and those before it got all up to {end}"
            );
            let before = connection.checked_sub(1).map_or(&[][..], |before| &all[before][sender][..]);
            for pair in numbers.windows(2) {
                let lacking = (pair[0] + 1..pair[1]).find(|number| before.binary_search(number).is_err());
                assert_eq!(lacking, None, "nobody got it of sender {sender}, at connection {connection}");
            }
            end = end.max(numbers.last().map_or(0, |last| last + 1));
        }
        assert_eq!(end, sent[sender].load(Ordering::Relaxed), "sender {sender}");
        println!("sender {sender}: {end} messages");
    }
}
