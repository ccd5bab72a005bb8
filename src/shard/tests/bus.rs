//! Shards with a bus that the test plays: who is woken, what is answered, and what the bus hears at the end.

use std::collections::HashSet;
use std::sync::mpsc;

use bytes::Bytes;
use futures_lite::future::block_on;
use serde_json::json;

use crate::bus::status::BusStage;
use crate::hub::bus::{FromBus, ToBus};
use crate::shard::port::BusPort;

use super::support::{DEADLINE, HOUR, Shards};

const ROUNDS: usize = 500;

/// Plays the bus on a thread of its own; who came is said once all have left.
fn play_beside(bus: BusPort) -> mpsc::Receiver<HashSet<String>> {
    let (report, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens when the test has failed already.
        let _ = report.send(play(bus));
    });
    ended
}

/// A bus that registers everybody (but for `stranger`), and answers each message to `far` with one to `near`, until all
/// who have come have left again. Says who that was.
fn play(mut bus: BusPort) -> HashSet<String> {
    let mut present = HashSet::new();
    let mut all = HashSet::new();
    let mut near = None;
    while all.len() < 2 || !present.is_empty() {
        block_on(bus.ready());
        let mut said = Vec::new();
        bus.drain(|shard, message| said.push((shard, message)));
        for (shard, message) in said {
            match message {
                ToBus::Arrived { user } if user.name == "stranger" => {
                    bus.push(shard, FromBus::NotRegistered { user });
                }
                ToBus::Arrived { user } => {
                    assert!(present.insert(user.name.to_string()), "{user:?} arrives once");
                    all.insert(user.name.to_string());
                    if user.name == "near" {
                        near = Some((shard, user.clone()));
                    }
                    bus.push(shard, FromBus::Registered { user, elsewhere: false });
                }
                ToBus::Left { user } => assert!(present.remove(user.name.as_str()), "{user:?} leaves once"),
                ToBus::Unicast { target, delivered_here: false, .. } if target.name == "far" => {
                    let (home, target) = near.clone().expect("it has come");
                    let frame = Bytes::from_static(b"\x81\x0f{\"type\":\"back\"}");
                    bus.push(home, FromBus::Unicast { target, frame, ticket: 0, early: false });
                }
                ToBus::Broadcast { frame } => {
                    for shard in (0..bus.shards()).map(crate::ids::ShardId) {
                        bus.push(shard, FromBus::Broadcast { frame: frame.clone() });
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        bus.flush();
    }
    all
}

#[test]
fn the_bus_and_idle_shards_wake_each_other_with_the_ticker_off() {
    let (shards, bus) = Shards::start_with_bus(2, |config| config.tick = HOUR);
    shards.bus().set_stage(BusStage::Up);
    let bus = play_beside(bus);
    let mut near = shards.client(0, "near");
    let mut other = shards.client(1, "other");
    for _ in 0..ROUNDS {
        near.send_to("far", &json!(1));
        near.expect(&json!({"type": "back"}));
    }
    shards.bus().set_takes_broadcasts(true);
    near.send(&json!({"type": "broadcast", "content": 1}).to_string());
    for client in [&mut near, &mut other] {
        for _ in 0..2 {
            client.expect(&json!({"type": "broadcast", "from": "near", "content": 1}));
        }
    }
    let parks: u64 = shards.sum(|metrics| &metrics.parks);
    assert!(parks > ROUNDS as u64 / 10, "the shards slept {parks} times in {ROUNDS} rounds");
    drop((near, other));
    assert_eq!(bus.recv_timeout(DEADLINE).unwrap(), HashSet::from(["near".to_owned(), "other".to_owned()]));
    // Shards that wait for each other to finish need their tickers: these end with the process.
    std::mem::forget(shards);
}

#[test]
fn new_clients_wait_for_the_bus_and_open_ones_stay_when_it_is_lost() {
    let (shards, bus) = Shards::start_with_bus(2, |_| ());
    let bus = play_beside(bus);
    for (stage, name, status) in [(BusStage::Warming, "warming", 503), (BusStage::Up, "up", 200)] {
        shards.bus().set_stage(stage);
        assert_eq!(shards.get(0, "/ready").0, status, "{name}");
        let (health, body) = shards.get(1, "/health");
        assert!(health == 200 && body.contains(&format!(r#""bus":"{name}""#)), "{body}");
        if status == 503 {
            let (refused, head) = shards.get(0, "/ws?user_id=near");
            assert!(refused == 503 && head.contains("\r\nRetry-After: "), "{head}");
        }
    }
    let (refused, head) = shards.get(0, "/ws?user_id=stranger");
    assert!(refused == 503 && head.contains("\r\nRetry-After: ") && head.contains("registered"), "{head}");
    let mut near = shards.client(0, "near");
    let mut other = shards.client(1, "other");
    shards.bus().set_stage(BusStage::Lost);
    assert_eq!(
        (shards.get(0, "/ready").0, shards.get(0, "/ws?user_id=third").0, shards.get(0, "/health").0),
        (503, 503, 200)
    );
    near.send_to("other", &json!("still"));
    other.expect_from("near", &json!("still"));
    // Broadcasts have to reach the other nodes too: none are taken.
    near.send(&json!({"type": "broadcast", "content": 1}).to_string());
    assert_eq!(near.next_or_close().unwrap()["code"], "overloaded");
    drop((near, other));
    bus.recv_timeout(DEADLINE).unwrap();
}

#[test]
fn when_the_shards_end_the_bus_has_heard_that_everybody_left() {
    for _ in 0..10 {
        let (shards, bus) = Shards::start_with_bus(3, |_| ());
        shards.bus().set_stage(BusStage::Up);
        let bus = play_beside(bus);
        let clients: Vec<_> = (0..9).map(|at| shards.client(at % 3, &format!("user-{at}"))).collect();
        shards.tell_clients_to_go();
        for mut client in clients {
            client.expect_close(1012);
        }
        // It waits until all shards have ended.
        drop(shards);
        assert_eq!(bus.recv_timeout(DEADLINE).unwrap().len(), 9);
    }
}
