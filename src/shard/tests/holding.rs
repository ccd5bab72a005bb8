//! A reader that keeps reading and comes close to its bound is waited for, alone as it is: broadcasts stand still until it
//! has caught up, but briefly and seldom. The clock is the test's.

use std::sync::Arc;
use std::time::Duration;

use super::support::config;
use crate::hub::effects::Effects;
use crate::ids::{ConnId, ShardId};
use crate::node::Node;
use crate::shard::conn::{Audience, Conn, Phase};
use crate::shard::sockets::Sockets;
use crate::time::Micros;

const BOUND: usize = 1 << 20;
const START: Micros = Micros(1_000_000);
/// Enough that one reader is no crowd.
const READERS: u32 = 100;
const SLOW: ConnId = ConnId { index: 7, generation: 1 };

/// A shard's sockets with open readers, one of which has a send that waits in the kernel.
fn sockets() -> Sockets {
    let node = Arc::new(Node::new("test".into(), 1, 10_000));
    let mut config = config(1);
    config.send_queue_bytes_max = BOUND;
    let mut sockets = Sockets::new(START, Arc::new(config), node, ShardId(0), None);
    for index in 0..READERS {
        let id = ConnId { index, generation: 1 };
        let mut conn = Conn::accepted(id, START, "127.0.0.1:1".parse().unwrap(), Audience::Clients);
        (conn.phase, conn.sent_at) = (Phase::Open, START);
        sockets.insert(id, conn);
    }
    sockets.open = u64::from(READERS);
    sockets.get(SLOW).unwrap().sending = true;
    sockets
}

/// A turn that ends `after` the start, and queues so many hundredths of the bound for the slow reader.
fn turn(sockets: &mut Sockets, after: Duration, hundredths: usize) {
    sockets.now = START.after(after);
    for _ in 0..hundredths {
        sockets.queue(SLOW, &[0; BOUND / 100]);
    }
    sockets.update_hold();
}

/// The kernel has taken so many hundredths of the bound.
fn took(sockets: &mut Sockets, hundredths: usize) {
    let now = sockets.now;
    sockets.unqueued(SLOW, BOUND / 100 * hundredths);
    sockets.get(SLOW).unwrap().sent_at = now;
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_single_reader_close_to_its_bound_is_waited_for_until_it_has_caught_up() {
    let mut sockets = sockets();
    turn(&mut sockets, ms(0), 70);
    assert!(sockets.takes_broadcasts(), "one that merely lags holds nobody up");
    turn(&mut sockets, ms(1), 10);
    assert!(!sockets.takes_broadcasts(), "at four fifths of its bound it is waited for");
    turn(&mut sockets, ms(150), 0);
    assert!(!sockets.takes_broadcasts());
    took(&mut sockets, 60);
    turn(&mut sockets, ms(160), 0);
    assert!(sockets.takes_broadcasts(), "it has caught up");
    assert!(sockets.too_slow.is_empty(), "and is not closed");
    assert_eq!(sockets.metrics.broadcast_holds.value(), 1);
}

#[test]
fn it_is_waited_for_briefly_and_seldom_and_closed_at_its_bound() {
    let mut sockets = sockets();
    turn(&mut sockets, ms(0), 80);
    turn(&mut sockets, ms(199), 0);
    assert!(!sockets.takes_broadcasts());
    turn(&mut sockets, ms(200), 0);
    assert!(sockets.takes_broadcasts(), "200 ms are over");
    turn(&mut sockets, ms(499), 1);
    assert!(sockets.takes_broadcasts(), "it was waited for within these 500 ms");
    took(&mut sockets, 1);
    turn(&mut sockets, ms(500), 1);
    assert!(!sockets.takes_broadcasts(), "these are the next 500 ms");
    assert!(sockets.too_slow.is_empty());
    turn(&mut sockets, ms(501), 21);
    assert_eq!(sockets.too_slow.first(), Some(&SLOW));
}

#[test]
fn a_reader_that_has_stopped_is_not_waited_for() {
    let mut sockets = sockets();
    turn(&mut sockets, ms(1_000), 90);
    assert!(sockets.takes_broadcasts(), "nothing was taken for it for a second");
}
