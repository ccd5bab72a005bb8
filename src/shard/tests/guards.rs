//! A wake-up that glommio loses costs its executor half a second and no more: the timers of the guards revive it.
//!
//! The fault is provoked as it was found, by a queue that matters for latency, whose task another thread wakes again and
//! again. Without the guards the executor comes to a stop for good, with that task ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::Duration;

use glommio::{Latency, Placement, Shares};

use super::support::DEADLINE;
use crate::node::executor;
use crate::shard::run::spawn_guards;

const WAKES: u32 = 50_000;

#[test]
fn a_lost_wake_up_is_made_good() {
    let (sleeper, asleep) = mpsc::channel::<Waker>();
    let woken = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&woken);
    executor(Placement::Unbound, 0)
        .spawn(move || async move {
            spawn_guards();
            let latency = Latency::Matters(Duration::from_millis(1));
            let queue = glommio::executor().create_task_queue(Shares::default(), latency, "matters");
            let sleeping = async move {
                for wake in 1..=WAKES {
                    std::future::poll_fn(|context| {
                        if seen.load(SeqCst) >= wake {
                            return Poll::Ready(());
                        }
                        // Nobody listens when the test has failed already.
                        let _ = sleeper.send(context.waker().clone());
                        Poll::Pending
                    })
                    .await;
                }
            };
            glommio::spawn_local_into(sleeping, queue).unwrap().await;
        })
        .unwrap();
    // Each waker comes from a task that is about to sleep; after the last one comes the end of the channel.
    loop {
        match asleep.recv_timeout(DEADLINE) {
            Ok(waker) => {
                woken.fetch_add(1, SeqCst);
                waker.wake();
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("asleep for good, woken {} times", woken.load(SeqCst)),
        }
    }
    assert_eq!(woken.load(SeqCst), WAKES);
}
