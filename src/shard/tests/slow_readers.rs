//! Who goes when readers are slow: at the shard's bound the largest queue, after the stall time whoever has stopped.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Client, Shards};

/// Far more than a test's floods.
const QUEUE_BYTES_MAX: usize = 64 << 20;
const CONTENT_BYTES: usize = 60_000;

/// Content that carries a number.
fn large(number: usize) -> Value {
    json!([number, "x".repeat(CONTENT_BYTES)])
}

#[test]
fn at_the_shards_bound_the_largest_queue_goes_and_the_others_stay() {
    const SHARD_BYTES_MAX: u64 = 8 << 20;
    /// 3.4 MB: more than the kernel takes, and less than half of the bound.
    const SMALL_SHARE: usize = 56;
    let shards = Shards::start(1, |config| {
        config.send_queue_bytes_max = QUEUE_BYTES_MAX;
        config.shard_queue_bytes_max = SHARD_BYTES_MAX;
    });
    let mut small = shards.client_with_small_buffer(0, "small");
    let mut big = shards.client_with_small_buffer(0, "big");
    let (mut sender, mut keeper) = (shards.client(0, "sender"), shards.client(0, "keeper"));
    for number in 0..SMALL_SHARE {
        sender.send_to("small", &large(number));
    }
    sender.expect_pong();
    let mut sent = 0;
    while shards.sum(|metrics| &metrics.closes_too_slow) == 0 {
        assert!(sent * CONTENT_BYTES < 2 * SHARD_BYTES_MAX as usize, "twice the bound is queued, and nobody is closed");
        sender.send_to("big", &large(sent));
        sender.send_to("keeper", &large(sent));
        keeper.expect_from("sender", &large(sent));
        sender.expect_pong();
        sent += 1;
    }
    let got = expect_whole_then_4008(&mut big);
    assert!(got < sent, "{got} of {sent}: what was dropped was queued");
    for number in 0..SMALL_SHARE {
        small.expect_from("sender", &large(number));
    }
    small.expect_pong();
    keeper.expect_pong();
    assert_eq!(shards.sum(|metrics| &metrics.closes_too_slow), 1);
    assert!(shards.sum(|metrics| &metrics.dropped_too_slow) > 0);
}

#[test]
fn a_reader_that_stopped_is_closed_after_the_stall_time_though_its_queue_is_short() {
    /// 2.4 MB: more than the kernel takes.
    const MESSAGES: usize = 40;
    let shards = Shards::start(1, |config| {
        config.send_queue_bytes_max = QUEUE_BYTES_MAX;
        config.send_stall_max = Duration::from_millis(300);
    });
    let mut stopped = shards.client_with_small_buffer(0, "stopped");
    let (mut sender, mut keeper) = (shards.client(0, "sender"), shards.client(0, "keeper"));
    for number in 0..MESSAGES {
        sender.send_to("stopped", &large(number));
    }
    let end = std::time::Instant::now() + super::support::DEADLINE;
    while shards.sum(|metrics| &metrics.closes_too_slow) == 0 {
        assert!(std::time::Instant::now() < end, "a reader that stopped is never closed");
        sender.send_to("keeper", &json!("on and on"));
        keeper.expect_from("sender", &json!("on and on"));
    }
    let got = expect_whole_then_4008(&mut stopped);
    assert!(got < MESSAGES, "{got} of {MESSAGES}: the kernel took them all, and nothing was shown");
    sender.expect_pong();
    keeper.expect_pong();
    assert_eq!(shards.sum(|metrics| &metrics.closes_too_slow), 1);
}

/// Reads messages of the sender, whole and without a hole, up to Close 4008; returns how many they were.
fn expect_whole_then_4008(client: &mut Client) -> usize {
    for number in 0.. {
        match client.next_or_close() {
            Ok(message) => assert_eq!(message["content"], large(number)),
            Err(frame) => {
                assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(4008));
                return number;
            }
        }
    }
    unreachable!("the loop has no other end")
}
