//! Goal: from its 101 on, a user misses nothing.
//! Method: another user, on either shard, sends the moment the 101 has been read. The contract's failing 2.

mod support;

use std::io::Write;

use support::client::{broadcast_from, message_from};
use support::{Gateway, RawClient, http, raw};

#[test]
fn a_message_sent_right_after_the_101_arrives() {
    let gateway = Gateway::start();
    let mut senders: Vec<_> = gateway.clients_on_each_shard("sender", 2, 1).into_iter().flatten().collect();
    for round in 0..500 {
        let user = format!("user{round}");
        let mut target = gateway.client(&user);
        let sender = &mut senders[round % 2];
        sender.send_to(&user, &round.to_string());
        target.expect(&message_from(&sender.user, round));
    }
}

#[test]
fn a_broadcast_sent_right_after_the_101_arrives() {
    let gateway = Gateway::start();
    let mut senders: Vec<_> = gateway.clients_on_each_shard("sender", 2, 1).into_iter().flatten().collect();
    for round in 0..200 {
        let mut target = gateway.client("target");
        let sender = round % 2;
        senders[sender].broadcast(&round.to_string());
        let expected = broadcast_from(&senders[sender].user, round);
        target.expect(&expected);
        for client in &mut senders {
            client.expect(&expected);
        }
    }
}

#[test]
fn the_first_thing_after_the_101_is_not_a_delivery_from_before_it() {
    let gateway = Gateway::start();
    let mut sender = gateway.client("sender");
    for round in 0..100 {
        let user = format!("user{round}");
        let mut stream = http::open(gateway.addr);
        stream.write_all(http::upgrade_head(&http::ws_target(&user)).as_bytes()).expect("the head is taken");
        // These race with the registration: each may come or not, but what comes is in order and after the 101.
        for at in 0..20 {
            sender.send_to(&user, &at.to_string());
        }
        let mut target = RawClient::after_head(stream);
        sender.send_to(&user, "20");
        let mut last = None;
        while last != Some(20) {
            let frame = target.next_but_pings().expect("a delivery");
            let delivery: serde_json::Value = serde_json::from_slice(&frame.payload).expect("JSON");
            let number = delivery["content"].as_u64();
            assert!(number > last, "{number:?} after {last:?}");
            assert!(last.is_none_or(|last| number == Some(last + 1)), "a hole after {last:?}: {number:?}");
            last = number;
        }
    }
}

#[test]
fn what_one_sends_with_the_request_for_the_upgrade_counts() {
    let gateway = Gateway::start();
    let mut watcher = gateway.client("watcher");
    for round in 0..100 {
        let user = format!("user{round}");
        let mut bytes = http::upgrade_head(&http::ws_target(&user)).into_bytes();
        for target in [user.as_str(), "watcher"] {
            bytes
                .extend(raw::text(&format!(r#"{{"type":"send_message","target_user":"{target}","content":{round}}}"#)));
        }
        let mut stream = http::open(gateway.addr);
        stream.write_all(&bytes).expect("the bytes are taken");
        let mut client = RawClient::after_head(stream);
        client.expect(&message_from(&user, round));
        watcher.expect(&message_from(&user, round));
    }
}
