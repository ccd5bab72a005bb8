//! A flooded shard lets the other tasks of its executor run.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde_json::json;

use super::support::{Client, DEADLINE, Shards};

const CLIENTS: usize = 200;
/// What the kernel's buffers of one connection hold, questions and answers.
const PINGS_EACH: usize = 5_000;
const PINGS: u64 = (CLIENTS * PINGS_EACH) as u64;
/// Few against the turns that the flood takes, many against none.
const WAKES_MIN: u64 = 20;

#[test]
fn a_flood_does_not_starve_a_sleeping_sibling() {
    let (start, may_start) = mpsc::channel();
    let (hold, held) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let wakes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&wakes);
    let nap = || glommio::timer::sleep(Duration::from_millis(1));
    let shards = Shards::start_beside(
        1,
        |_| (),
        move |metrics| {
            let sibling = async move {
                while may_start.try_recv().is_err() {
                    nap().await;
                }
                // The whole executor stands still, until all of the flood is in the kernel's buffers: from then on the
                // loop has no turn without work, and is at rest only when it says so.
                hold.send(()).unwrap();
                may_go_on.recv_timeout(DEADLINE).unwrap();
                while metrics.messages_in_ping.value() < PINGS {
                    counted.fetch_add(u64::from(metrics.messages_in_ping.value() > 0), Relaxed);
                    nap().await;
                }
            };
            glommio::spawn_local(sibling).detach();
        },
    );
    let mut clients: Vec<Client> = (0..CLIENTS).map(|at| shards.client(0, &format!("client-{at}"))).collect();
    let flood = masked_ping().repeat(PINGS_EACH);
    start.send(()).unwrap();
    held.recv_timeout(DEADLINE).unwrap();
    for client in &clients {
        client.options().set_send_buffer_size(2 * flood.len()).unwrap();
        client.stream().write_all(&flood).unwrap();
    }
    go_on.send(()).unwrap();
    for client in &mut clients {
        for _ in 0..PINGS_EACH {
            client.expect(&json!({"type": "pong"}));
        }
    }
    let wakes = wakes.load(Relaxed);
    assert!(wakes >= WAKES_MIN, "while {PINGS} pings were answered, a sleeper woke {wakes} times");
}

/// The frame of a client's ping, with a mask that changes nothing.
fn masked_ping() -> Vec<u8> {
    let text = br#"{"type":"ping"}"#;
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    frame.extend(text);
    frame
}
