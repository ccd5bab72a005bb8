//! Both ends of the ports, without shards: order, bounds, and who is woken.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::hub::bus::{FromBus, ToBus};
use crate::ids::ShardId;

use super::bus_end::BATCHES_MAX;
use super::{BusPort, ShardPort, WINDOW_BYTES, ports};

/// What never takes so long has hung.
const DEADLINE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
const FRAME_BYTES: usize = 64 << 10;

/// One shard's port and the bus's, with the eventfd that wakes the shard.
fn pair() -> (ShardPort, BusPort, OwnedFd) {
    let (mut shards, bus) = ports(1);
    let shard = shards.pop().unwrap();
    let wake = attach(&shard, ShardId(0));
    (shard, bus, wake)
}

fn attach(port: &ShardPort, shard: ShardId) -> OwnedFd {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    port.attach(shard, wake.try_clone().unwrap());
    wake
}

fn is_woken(wake: &OwnedFd) -> bool {
    std::fs::File::from(wake.try_clone().unwrap()).read(&mut [0; 8]).is_ok()
}

fn fenced(bus: &mut BusPort) -> Vec<u64> {
    let mut found = Vec::new();
    bus.drain(|_, message| match message {
        ToBus::Fenced { fence } => found.push(fence),
        other => panic!("{other:?}"),
    });
    found
}

fn fences(shard: &mut ShardPort) -> Vec<u64> {
    shard.pull();
    let mut found = Vec::new();
    while let Some(message) = shard.take() {
        shard.handled(&message);
        match message {
            FromBus::Fence { fence } => found.push(fence),
            other => panic!("{other:?}"),
        }
    }
    found
}

fn large() -> ToBus {
    ToBus::Broadcast { frame: Bytes::from(vec![0; FRAME_BYTES]) }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A thread's sleep until its waker is called.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait_ready(bus: &BusPort) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut ready = pin!(bus.ready());
    while ready.as_mut().poll(&mut context).is_pending() {
        let began = std::time::Instant::now();
        std::thread::park_timeout(Duration::from_secs(20));
        assert!(began.elapsed() < Duration::from_secs(20), "the bus was not woken");
    }
}

#[test]
fn what_is_pushed_arrives_in_order_once_it_is_flushed() {
    let (mut shard, mut bus, _wake) = pair();
    shard.push(ToBus::Fenced { fence: 1 });
    shard.push(ToBus::Fenced { fence: 2 });
    assert!(fenced(&mut bus).is_empty());
    assert!(shard.flush());
    shard.push(ToBus::Fenced { fence: 3 });
    shard.flush();
    assert_eq!(fenced(&mut bus), [1, 2, 3]);
    assert!(!shard.flush(), "nothing is left to say");

    for fence in 1..=2 {
        bus.push(ShardId(0), FromBus::Fence { fence });
    }
    assert!(fences(&mut shard).is_empty());
    bus.flush();
    bus.push(ShardId(0), FromBus::Fence { fence: 3 });
    bus.flush();
    assert_eq!(fences(&mut shard), [1, 2, 3]);
}

#[test]
fn what_cannot_be_handled_stays_the_oldest() {
    let (mut shard, mut bus, _wake) = pair();
    for fence in 1..=2 {
        bus.push(ShardId(0), FromBus::Fence { fence });
    }
    bus.flush();
    shard.pull();
    let oldest = shard.take().unwrap();
    shard.unhandled(oldest);
    assert!(!shard.is_quiet());
    assert_eq!(fences(&mut shard), [1, 2]);
    assert!(shard.is_quiet());
}

#[test]
fn ports_are_found_by_the_shard_that_took_them() {
    let (mut shards, mut bus) = ports(3);
    // Said before a shard runs: it waits.
    bus.push(ShardId(2), FromBus::Fence { fence: 2 });
    bus.flush();
    let wakes: Vec<_> = shards.iter().zip([1, 2, 0]).map(|(port, id)| attach(port, ShardId(id))).collect();
    bus.flush();
    assert_eq!(shards.iter_mut().map(fences).collect::<Vec<_>>(), [vec![], vec![2], vec![]]);
    for (number, port) in shards.iter_mut().enumerate() {
        port.push(ToBus::Fenced { fence: number as u64 });
        port.flush();
    }
    let mut found = Vec::new();
    bus.drain(|shard, message| found.push((shard, format!("{message:?}"))));
    found.sort();
    let expected = [(0, 2), (1, 0), (2, 1)];
    assert_eq!(found, expected.map(|(id, fence)| (ShardId(id), format!("Fenced {{ fence: {fence} }}"))));
    drop(wakes);
}

#[test]
fn a_window_to_the_bus_is_full_until_the_bus_has_taken() {
    let (mut shard, mut bus, _wake) = pair();
    let mut pushed = 0;
    while shard.has_room() {
        shard.push(large());
        pushed += FRAME_BYTES as u64;
    }
    assert!((WINDOW_BYTES - FRAME_BYTES as u64..=WINDOW_BYTES).contains(&pushed), "{pushed}");
    shard.flush();
    assert!(!shard.has_room(), "on its way is not taken");
    bus.drain(|_, _| ());
    assert!(shard.has_room());
}

#[test]
fn a_shard_that_sleeps_without_room_is_woken_when_there_is_some() {
    let (mut shard, mut bus, wake) = pair();
    shard.push(ToBus::Fenced { fence: 1 });
    shard.flush();
    assert!(shard.before_park());
    bus.drain(|_, _| ());
    assert!(!is_woken(&wake), "it had room");
    shard.after_park();
    while shard.has_room() {
        shard.push(large());
    }
    shard.flush();
    assert!(shard.before_park());
    bus.drain(|_, _| ());
    assert!(is_woken(&wake));
    shard.after_park();
    assert!(shard.has_room());
}

#[test]
fn broadcasts_that_a_shard_holds_back_leave_room_for_all_else() {
    let (mut shard, mut bus, _wake) = pair();
    let here = ShardId(0);
    bus.flush();
    bus.push(here, FromBus::Fence { fence: 0 });
    bus.flush();
    let frame = Bytes::from(vec![0; FRAME_BYTES]);
    while bus.has_broadcast_room(here) {
        bus.push(here, FromBus::Broadcast { frame: frame.clone() });
    }
    bus.flush();
    shard.pull();
    assert!(bus.has_room(here) && !bus.has_broadcast_room(here));
    assert_eq!(fences(&mut shard), [0]);
    // Handled, and told.
    while shard.take_broadcast().is_some() {}
    assert!(!bus.has_broadcast_room(here));
    shard.flush();
    assert!(bus.has_broadcast_room(here));
}

#[test]
fn a_sleeping_shard_is_woken_once_and_one_that_is_up_never() {
    let (mut shard, mut bus, wake) = pair();
    let say = |bus: &mut BusPort| {
        bus.push(ShardId(0), FromBus::Fence { fence: 0 });
        bus.flush();
    };
    say(&mut bus);
    assert!(!is_woken(&wake), "it was up");
    assert!(!shard.before_park(), "something came before it slept");
    fences(&mut shard);
    assert!(shard.before_park());
    say(&mut bus);
    assert!(is_woken(&wake));
    say(&mut bus);
    assert!(!is_woken(&wake), "it is on its way up already");
    shard.after_park();
    assert!(!shard.before_park(), "it has not looked");
    assert_eq!(fences(&mut shard).len(), 2);
    assert!(shard.before_park());
    // Woken by something else.
    shard.after_park();
    say(&mut bus);
    assert!(!is_woken(&wake), "it is up");
    assert_eq!(fences(&mut shard).len(), 1);
}

#[test]
fn the_bus_is_woken_by_what_is_said_and_by_room_that_it_lacked() {
    let (mut shard, mut bus, _wake) = pair();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let is_ready = |bus: &BusPort, context: &mut Context<'_>| pin!(bus.ready()).poll(context) == Poll::Ready(());
    bus.drain(|_, _| ());
    assert!(!is_ready(&bus, &mut context));
    {
        let mut ready = pin!(bus.ready());
        assert!(ready.as_mut().poll(&mut context).is_pending());
        shard.push(ToBus::Fenced { fence: 1 });
        assert_eq!(woken.0.load(SeqCst), 0);
        shard.flush();
        assert_eq!(woken.0.load(SeqCst), 1);
        assert!(ready.as_mut().poll(&mut context).is_ready());
    }
    assert!(is_ready(&bus, &mut context), "until it has drained");
    assert_eq!(fenced(&mut bus), [1]);
    assert!(!is_ready(&bus, &mut context));

    // Handling alone wakes nobody; but when there was no room, there is some again.
    let frame = Bytes::from(vec![0; FRAME_BYTES]);
    bus.push(ShardId(0), FromBus::Broadcast { frame: frame.clone() });
    bus.flush();
    shard.pull();
    while shard.take_broadcast().is_some() {}
    shard.flush();
    assert!(!is_ready(&bus, &mut context));
    while bus.has_broadcast_room(ShardId(0)) {
        bus.push(ShardId(0), FromBus::Broadcast { frame: frame.clone() });
    }
    bus.flush();
    shard.pull();
    shard.take_broadcast().unwrap();
    shard.flush();
    assert!(is_ready(&bus, &mut context), "there is room again");
}

/// Whether the bus would not sleep now.
fn is_ready(bus: &BusPort) -> bool {
    pin!(bus.ready()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Pushes the fences with these numbers, and hands them over.
fn push_fences(bus: &mut BusPort, fences: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    let numbers = fences.map(|fence| bus.push(ShardId(0), FromBus::Fence { fence })).collect();
    bus.flush();
    numbers
}

/// Handles the oldest message, and answers it.
fn answer_one(shard: &mut ShardPort) {
    let message = shard.take().unwrap();
    let FromBus::Fence { fence } = message else { panic!("{message:?}") };
    shard.push(ToBus::Fenced { fence });
    shard.handled(&message);
}

#[test]
fn directed_messages_are_numbered_and_counted_when_they_are_handled() {
    let (mut shard, mut bus, _wake) = pair();
    assert_eq!(push_fences(&mut bus, 1..=2), [1, 2]);
    assert_eq!(bus.push(ShardId(0), FromBus::Broadcast { frame: Bytes::new() }), 0, "a broadcast has no number");
    assert_eq!(push_fences(&mut bus, 3..=3), [3]);
    shard.pull();
    shard.take_broadcast().unwrap();
    shard.flush();
    bus.drain(|_, _| ());
    assert_eq!(bus.handled(ShardId(0)), 0, "a broadcast is not counted");

    let message = shard.take().unwrap();
    shard.handled(&message);
    let message = shard.take().unwrap();
    shard.unhandled(message);
    bus.drain(|_, _| ());
    assert_eq!(bus.handled(ShardId(0)), 0, "nothing is published before the flush");
    assert!(!is_ready(&bus));
    assert!(!shard.flush(), "nothing was said");
    assert!(!is_ready(&bus), "the count alone does not wake the bus");
    assert_eq!(bus.handled(ShardId(0)), 0, "the bus has not drained since");
    bus.drain(|_, _| ());
    assert_eq!(bus.handled(ShardId(0)), 1, "the one that could not be handled is not counted");
}

#[test]
fn the_count_comes_with_what_was_said_and_without_it_by_the_next_drain() {
    let (mut shard, mut bus, _wake) = pair();
    push_fences(&mut bus, 1..=2);
    shard.pull();
    answer_one(&mut shard);
    shard.flush();
    let mut answers = 0;
    bus.drain(|_, _| {
        answers += 1;
        if answers == 1 {
            answer_one(&mut shard);
            shard.flush();
        }
    });
    assert_eq!((answers, bus.handled(ShardId(0))), (2, 2), "the second answer was drained too");
    bus.push(
        ShardId(0),
        FromBus::NotRegistered { user: crate::hub::envelope::UserKey { hash: 0, name: "bob".into() } },
    );
    bus.flush();
    shard.pull();
    let silent = shard.take().unwrap();
    shard.handled(&silent);
    shard.flush();
    assert_eq!(bus.handled(ShardId(0)), 2);
    bus.drain(|_, _| panic!("nothing was said"));
    assert_eq!(bus.handled(ShardId(0)), 3);
}

#[test]
fn a_drain_that_leaves_a_rest_counts_what_it_has_drained() {
    const BATCHES: u64 = BATCHES_MAX as u64;
    let (mut shard, mut bus, _wake) = pair();
    push_fences(&mut bus, 1..=BATCHES + 2);
    shard.pull();
    answer_one(&mut shard);
    shard.flush();
    assert_eq!(fenced(&mut bus), [1]);
    assert_eq!(bus.handled(ShardId(0)), 1);
    for _ in 0..=BATCHES {
        answer_one(&mut shard);
        shard.flush();
    }
    assert_eq!(fenced(&mut bus).len(), BATCHES_MAX, "one batch is left");
    assert_eq!(bus.handled(ShardId(0)), BATCHES + 1, "what was said while handling the last message was not drained");
    assert_eq!(fenced(&mut bus), [BATCHES + 2]);
    assert_eq!(bus.handled(ShardId(0)), BATCHES + 2);
}

/// The shard answers message by message on a thread of its own, and the bus never counts a message as handled whose
/// answer it has not drained.
#[test]
fn the_count_comes_after_what_was_said() {
    const ROUNDS: u64 = 100_000;
    let (mut shards, mut bus) = ports(1);
    let mut shard = shards.pop().unwrap();
    let _wake = attach(&shard, ShardId(0));
    push_fences(&mut bus, 1..=ROUNDS);
    let thread = std::thread::spawn(move || {
        shard.pull();
        for round in 0..ROUNDS {
            answer_one(&mut shard);
            shard.flush();
            // The bus keeps up, and so looks at any moment of the next flush.
            (0..round % 300).for_each(|_| std::hint::spin_loop());
        }
    });
    let (mut answered, mut handled) = (0, 0);
    let mut is_done = false;
    while handled < ROUNDS && !is_done {
        is_done = thread.is_finished() && !is_ready(&bus);
        bus.drain(|_, _| answered += 1);
        handled = bus.handled(ShardId(0));
        assert!(handled <= answered, "{handled} are handled, {answered} answers were drained");
    }
    thread.join().unwrap();
    assert_eq!((handled, answered), (ROUNDS, ROUNDS));
}

/// Two shards and the bus on threads of their own, each sleeping whenever it has nothing to do: all that is said
/// arrives, in order, and nobody sleeps through it. A seed decides how much is said at a time.
#[test]
fn nothing_is_lost_or_slept_through_between_threads() {
    const SHARDS: u16 = 2;
    const ROUNDS: u64 = 20_000;
    let seed = match std::env::var("RINGMESH_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => u64::from(std::process::id()),
    };
    println!("RINGMESH_SEED={seed}");
    let (ports, mut bus) = ports(SHARDS);
    let begin = Arc::new(Barrier::new(usize::from(SHARDS) + 1));
    let threads: Vec<_> = ports
        .into_iter()
        .zip(0..)
        .map(|(mut port, id)| {
            let begin = Arc::clone(&begin);
            std::thread::spawn(move || {
                let mut random = (seed ^ u64::from(id) << 32) | 1;
                let wake = attach(&port, ShardId(id));
                begin.wait();
                let (mut said, mut heard) = (0, 0);
                while said < ROUNDS || heard < ROUNDS {
                    port.pull();
                    while let Some(message) = port.take() {
                        let FromBus::Fence { fence } = message else { panic!("{message:?}") };
                        assert_eq!(fence, heard, "shard {id}");
                        heard += 1;
                        port.handled(&message);
                    }
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // It answers what it has heard, and so sleeps often; never further ahead than that.
                    for _ in 0..=(random >> 33) % 8 {
                        if said < ROUNDS && said <= heard {
                            port.push(ToBus::Fenced { fence: said });
                            said += 1;
                        }
                    }
                    let has_said = port.flush();
                    let is_done = said == ROUNDS && heard == ROUNDS;
                    if !has_said && !is_done && port.before_park() {
                        let is_woken = poll(&mut [PollFd::new(&wake.as_fd(), PollFlags::IN)], Some(&DEADLINE));
                        assert!(is_woken.unwrap() > 0, "shard {id} was not woken: said {said}, heard {heard}");
                        let _ = std::fs::File::from(wake.try_clone().unwrap()).read(&mut [0; 8]);
                    }
                    port.after_park();
                }
            })
        })
        .collect();
    begin.wait();
    let mut heard = [0; SHARDS as usize];
    while heard != [ROUNDS; SHARDS as usize] {
        wait_ready(&bus);
        let mut answers = Vec::new();
        bus.drain(|shard, message| {
            let ToBus::Fenced { fence } = message else { panic!("{message:?}") };
            assert_eq!(fence, heard[shard.index()], "{shard}");
            heard[shard.index()] += 1;
            answers.push((shard, fence));
        });
        for (shard, fence) in answers {
            bus.push(shard, FromBus::Fence { fence });
        }
        bus.flush();
    }
    for thread in threads {
        thread.join().unwrap();
    }
}
