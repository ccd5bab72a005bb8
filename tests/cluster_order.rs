//! Goal: one connection's messages to one user arrive in the order sent, and so do its broadcasts, across nodes.
//! Method: one user on each of three nodes; each sends ten thousand numbered messages to each, himself too, and none
//! may be missing, doubled or out of order. Senders stay a window ahead of the readers, so that no bound is met.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use support::raw::text;
use support::{Crowd, DEADLINE_SLOW, Nodes, eventually};

const COUNT: usize = 10_000;

/// How many numbers a sender may be ahead of its slowest reader.
const WINDOW: usize = 1_000;

/// How many numbers go out in one write.
const PIECE: usize = 100;

/// What a reader gets, read without building a tree: the reader must not be the slow one.
#[derive(Deserialize)]
struct Numbered<'a> {
    from: &'a str,
    content: usize,
}

/// `frames` makes what one user sends for one number: a frame that each of the users gets.
fn assert_order(frames: impl Fn(usize, &[String]) -> Vec<String> + Sync) {
    let nodes = Nodes::start();
    let mut crowd = Crowd::default();
    let users: Vec<String> = (0..nodes.count()).map(|at| format!("user{at}")).collect();
    for (node, user) in nodes.all().iter().zip(&users) {
        crowd.join(node, user);
    }
    // By sender, then by reader: the number that must come next.
    let next: Vec<Vec<AtomicUsize>> =
        users.iter().map(|_| users.iter().map(|_| AtomicUsize::new(0)).collect()).collect();
    std::thread::scope(|scope| {
        for (at, readers) in next.iter().enumerate() {
            let mut writer = crowd.writer(at, DEADLINE_SLOW);
            let (frames, users) = (&frames, &users);
            scope.spawn(move || {
                for start in (0..COUNT).step_by(PIECE) {
                    let read_by_all = || readers.iter().all(|next| next.load(Ordering::Relaxed) + WINDOW >= start);
                    eventually("readers who follow", DEADLINE_SLOW, || read_by_all().then_some(()));
                    let numbers = start..start + PIECE;
                    let bytes: Vec<u8> =
                        numbers.flat_map(|number| frames(number, users)).flat_map(|frame| text(&frame)).collect();
                    writer.write(&bytes);
                }
            });
        }
        crowd.read(users.len() * users.len() * COUNT, DEADLINE_SLOW, |reader, text| {
            let got: Numbered<'_> = match serde_json::from_slice(text) {
                Ok(got) => got,
                Err(error) => panic!("{error}: user{reader} gets {}", text.escape_ascii()),
            };
            let sender = users.iter().position(|user| user == got.from).expect("a known sender");
            let expected = next[sender][reader].fetch_add(1, Ordering::Relaxed);
            assert_eq!(got.content, expected, "from user{sender} to user{reader}");
        });
    });
    crowd.expect_pongs(DEADLINE_SLOW);
}

#[test]
fn messages_from_everybody_to_everybody() {
    assert_order(|number, users| {
        let frame = |user: &String| format!(r#"{{"type":"send_message","target_user":"{user}","content":{number}}}"#);
        users.iter().map(frame).collect()
    });
}

#[test]
fn broadcasts_of_everybody() {
    assert_order(|number, _| vec![format!(r#"{{"type":"broadcast","content":{number}}}"#)]);
}
