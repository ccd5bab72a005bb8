//! One run: workers connect, traffic flows, a window of it is measured, what is under way may arrive, all say goodbye.

use std::io;
use std::ops::Range;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::handshake::Target;
use crate::net::{Driver, Net, NetConfig, Scratch};
use crate::proc::{self, MemorySample, ProcessSample};
use crate::stats::Tally;
use crate::sys;

/// How long a worker waits for events before it looks at the phase again.
const TURN_WAIT: Duration = Duration::from_millis(1);
/// How often the coordinator looks at the workers.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long the goodbyes may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// Descriptors that a worker needs beside its sockets.
const DESCRIPTORS_RESERVED: u64 = 64;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// From the first connect to the last connection's readiness.
    Connecting,
    /// A time of traffic, after the warm-up.
    Traffic,
}

/// Who is to receive each message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receivers {
    /// One connection.
    One,
    /// Every connection that was opened.
    All,
}

/// Everything about a run but the scenario's own behaviour.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// Connections in all.
    pub connections: u32,
    /// Cores that workers are pinned to in turn; none: not pinned.
    pub cpus: Vec<usize>,
    /// Connections under way at the same time, over all workers.
    pub concurrency: usize,
    /// A connection that is not ready by then has failed.
    pub connect_timeout: Duration,
    /// Traffic before the window.
    pub warmup: Duration,
    /// The window.
    pub duration: Duration,
    /// How long what is under way at the end may take.
    pub drain: Duration,
    /// What stands before the number in a user id.
    pub user_prefix: String,
    /// The server's processes, for CPU and memory.
    pub server_pids: Vec<u32>,
    /// What is measured.
    pub window: Window,
    /// Who is to receive each message.
    pub receivers: Receivers,
}

/// What one run gave.
#[derive(Debug)]
pub struct Outcome {
    /// What the workers saw.
    pub tally: Tally,
    /// Messages that were to arrive but did not, duplicates not counted.
    pub lost: u64,
    /// From the first connect until all were tried, in seconds.
    pub connecting_seconds: f64,
    /// The measured window, in seconds.
    pub window_seconds: f64,
    /// The server's use of CPU in the window; `None` without its process ids.
    pub server: Option<Usage>,
    /// Each generator thread's use of CPU in the window.
    pub workers: Vec<Usage>,
    /// Memory before the first connection.
    pub memory_before: MemorySample,
    /// Memory with all connections and no traffic yet.
    pub memory_connected: MemorySample,
    /// Memory at the end of the window.
    pub memory_end: MemorySample,
    /// Connections that the kernel dropped because a listener's queue was full.
    pub listen_drops: u64,
}

/// CPU used within a window.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The window, in seconds.
    pub seconds: f64,
    /// Seconds on a CPU.
    pub cpu_seconds: f64,
    /// Seconds ready to run, without a CPU.
    pub wait_seconds: f64,
}

impl Usage {
    fn between(before: ProcessSample, after: ProcessSample) -> Self {
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        Self {
            seconds: seconds(before.at_ns, after.at_ns),
            cpu_seconds: seconds(before.cpu_ns, after.cpu_ns),
            wait_seconds: seconds(before.wait_ns, after.wait_ns),
        }
    }
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not one connection was upgraded.
    #[error("no connection to {url} could be made: {reasons}")]
    Unreachable {
        /// The server's address.
        url: String,
        /// The errors seen, and how often.
        reasons: String,
    },
    /// A worker could not do its part.
    #[error("worker: {0}")]
    Worker(#[from] io::Error),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
#[repr(u8)]
enum Phase {
    Connect,
    Traffic,
    Drain,
    Close,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Connect, Self::Traffic, Self::Drain, Self::Close];
}

struct Shared {
    phase: AtomicU8,
    window_start_ns: AtomicU64,
    window_end_ns: AtomicU64,
    start: Barrier,
    workers: Vec<Progress>,
}

/// What a worker lets the coordinator see while it runs. On a cache line of its own: it is written every turn.
#[derive(Default)]
#[repr(align(64))]
struct Progress {
    thread: AtomicU32,
    /// When the last connection was tried and had its result, in nanoseconds; 0 before.
    settled_ns: AtomicU64,
    opened: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    busy: AtomicBool,
    done: AtomicBool,
}

impl Shared {
    fn new(workers: usize) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Connect as u8),
            window_start_ns: AtomicU64::new(u64::MAX),
            window_end_ns: AtomicU64::new(u64::MAX),
            start: Barrier::new(workers + 1),
            workers: (0..workers).map(|_| Progress::default()).collect(),
        }
    }

    fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn sum(&self, field: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.workers.iter().map(|worker| field(worker).load(Ordering::Relaxed)).sum()
    }

    fn all_done(&self) -> bool {
        self.workers.iter().all(|worker| worker.done.load(Ordering::Acquire))
    }
}

/// How many workers a plan needs: each has a descriptor table, and so a limit, of its own.
pub fn workers_needed(threads: usize, connections: u32, descriptor_limit: u64) -> usize {
    let each = descriptor_limit.saturating_sub(DESCRIPTORS_RESERVED).max(1);
    threads.max(u64::from(connections).div_ceil(each) as usize).max(1)
}

/// The users of worker `worker`: even shares, pairs of users kept together.
fn share(connections: u32, workers: usize, worker: usize) -> Range<u32> {
    let cut = |worker: usize| {
        let at = (u64::from(connections) * worker as u64 / workers as u64) as u32;
        if worker == workers { connections } else { at & !1 }
    };
    cut(worker)..cut(worker + 1)
}

/// Carries out a plan. `driver` makes the driver of worker number n with so many connections.
///
/// # Errors
/// When no connection could be made, or a worker failed.
pub fn run<D: Driver>(plan: &Plan, workers: usize, driver: impl Fn(usize, usize) -> D) -> Result<Outcome, RunError> {
    let shared = Shared::new(workers);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let users = share(plan.connections, workers, worker);
                let driver = driver(worker, users.len());
                let shared = &shared;
                scope.spawn(move || {
                    let result = work(plan, shared, worker, users, driver);
                    shared.workers[worker].done.store(true, Ordering::Release);
                    result
                })
            })
            .collect();
        let mut outcome = coordinate(plan, &shared);
        for handle in handles {
            let tally = handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            outcome.tally.merge(tally);
        }
        if outcome.tally.opened == 0 {
            let reasons = outcome.tally.errors.iter().map(|(name, count)| format!("{name} ({count})"));
            let reasons = reasons.collect::<Vec<_>>().join(", ");
            return Err(RunError::Unreachable { url: plan.target.address.to_string(), reasons });
        }
        let receivers = match plan.receivers {
            Receivers::One => 1,
            Receivers::All => outcome.tally.opened,
        };
        outcome.lost = (outcome.tally.sent * receivers).saturating_sub(outcome.tally.received);
        Ok(outcome)
    })
}

/// The coordinator's side: leads the workers from phase to phase, and samples between them.
fn coordinate(plan: &Plan, shared: &Shared) -> Outcome {
    let pids = &plan.server_pids;
    let sample = || {
        let workers = shared.workers.iter();
        let own = workers.map(|worker| proc::sample_own_thread(worker.thread.load(Ordering::Relaxed)));
        (proc::sample_processes(pids), own.collect::<Vec<_>>())
    };
    let memory_before = proc::sample_memory(pids);
    let drops_before = proc::listen_drops();
    let connecting = plan.window == Window::Connecting;
    // Workers have said their thread ids once they stand at the barrier; they wait for this thread to begin.
    shared.start.wait();
    let mut before = sample();
    let started_ns = sys::now_ns();
    if connecting {
        shared.window_start_ns.store(started_ns, Ordering::Relaxed);
    }
    shared.start.wait();
    let settled = |worker: &Progress| worker.settled_ns.load(Ordering::Acquire) != 0;
    while !shared.workers.iter().all(settled) && !shared.all_done() {
        thread::sleep(LOOK_EVERY);
    }
    let settled_ns = shared.workers.iter().map(|worker| worker.settled_ns.load(Ordering::Acquire)).max().unwrap_or(0);
    let mut after = sample();
    let memory_connected = proc::sample_memory(pids);
    let mut window_ns = started_ns..settled_ns.max(started_ns);
    if shared.sum(|worker| &worker.opened) > 0 && !connecting {
        shared.enter(Phase::Traffic);
        let start_ns = sys::now_ns() + plan.warmup.as_nanos() as u64;
        window_ns = start_ns..start_ns + plan.duration.as_nanos() as u64;
        shared.window_end_ns.store(window_ns.end, Ordering::Relaxed);
        shared.window_start_ns.store(window_ns.start, Ordering::Relaxed);
        sleep_until(window_ns.start);
        before = sample();
        sleep_until(window_ns.end);
        after = sample();
    }
    let memory_end = proc::sample_memory(pids);
    shared.enter(Phase::Drain);
    drain(plan, shared);
    shared.enter(Phase::Close);
    let seconds = |range: Range<u64>| (range.end - range.start) as f64 / 1e9;
    let workers = before.1.into_iter().zip(after.1).map(|(before, after)| Usage::between(before, after)).collect();
    Outcome {
        tally: Tally::default(),
        lost: 0,
        connecting_seconds: seconds(started_ns..settled_ns.max(started_ns)),
        window_seconds: seconds(window_ns),
        server: (!pids.is_empty()).then(|| Usage::between(before.0, after.0)),
        workers,
        memory_before,
        memory_connected,
        memory_end,
        listen_drops: proc::listen_drops().saturating_sub(drops_before),
    }
}

/// Waits until all that was sent has come, but not for ever.
fn drain(plan: &Plan, shared: &Shared) {
    let deadline_ns = sys::now_ns() + plan.drain.as_nanos() as u64;
    let receivers = match plan.receivers {
        Receivers::One => 1,
        Receivers::All => shared.sum(|worker| &worker.opened),
    };
    while sys::now_ns() < deadline_ns && !shared.all_done() {
        // Two looks at a distance: the first one makes sure that every worker has seen the phase.
        thread::sleep(LOOK_EVERY * 5);
        let busy = shared.workers.iter().any(|worker| worker.busy.load(Ordering::Acquire));
        if !busy && shared.sum(|worker| &worker.received) >= shared.sum(|worker| &worker.sent) * receivers {
            return;
        }
    }
}

fn sleep_until(at_ns: u64) {
    thread::sleep(Duration::from_nanos(at_ns.saturating_sub(sys::now_ns())));
}

/// A worker's side.
fn work<D: Driver>(plan: &Plan, shared: &Shared, worker: usize, users: Range<u32>, mut driver: D) -> io::Result<Tally> {
    let progress = &shared.workers[worker];
    progress.thread.store(sys::thread_id(), Ordering::Relaxed);
    let prepared = prepare(plan, shared, worker, users);
    // Both barriers are passed whatever happened, lest the others wait for ever.
    shared.start.wait();
    shared.start.wait();
    let mut net = prepared?;
    let mut scratch = Scratch::default();
    let mut phase = Phase::Connect;
    let mut close_by_ns = u64::MAX;
    loop {
        let window = shared.window_start_ns.load(Ordering::Relaxed)..shared.window_end_ns.load(Ordering::Relaxed);
        net.window = window;
        let now = shared.phase();
        while phase < now {
            phase = Phase::ALL[phase as usize + 1];
            match phase {
                Phase::Connect => {}
                Phase::Traffic => driver.start(&mut net),
                Phase::Drain => driver.stop(&mut net),
                Phase::Close => {
                    net.close_all();
                    close_by_ns = sys::now_ns() + CLOSE_WITHIN.as_nanos() as u64;
                }
            }
        }
        net.turn(&mut driver, &mut scratch, TURN_WAIT)?;
        progress.opened.store(net.tally.opened, Ordering::Relaxed);
        progress.sent.store(net.tally.sent, Ordering::Relaxed);
        progress.received.store(net.tally.received, Ordering::Relaxed);
        progress.busy.store(phase < Phase::Drain || driver.is_busy(), Ordering::Release);
        if progress.settled_ns.load(Ordering::Relaxed) == 0 && net.is_settled() {
            progress.settled_ns.store(sys::now_ns(), Ordering::Release);
        }
        if phase == Phase::Close && (net.open() == 0 || sys::now_ns() > close_by_ns) {
            return Ok(net.tally);
        }
    }
}

fn prepare(plan: &Plan, shared: &Shared, worker: usize, users: Range<u32>) -> io::Result<Net> {
    let workers = shared.workers.len();
    if !plan.cpus.is_empty() {
        sys::pin_to(plan.cpus[worker % plan.cpus.len()])?;
    }
    if workers > 1 {
        sys::unshare_descriptors()?;
    }
    Net::new(NetConfig {
        target: plan.target.clone(),
        users,
        user_prefix: plan.user_prefix.clone(),
        concurrency: plan.concurrency.div_ceil(workers),
        connect_timeout: plan.connect_timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_every_user_once_and_cut_no_pair() {
        for (connections, workers) in [(1, 1), (7, 3), (100_000, 6), (3, 4)] {
            let shares: Vec<_> = (0..workers).map(|worker| share(connections, workers, worker)).collect();
            assert_eq!(shares.iter().map(ExactSizeIterator::len).sum::<usize>(), connections as usize);
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % 2 == 0), "{shares:?}");
        }
    }

    #[test]
    fn workers_are_added_where_one_descriptor_table_is_too_small() {
        assert_eq!(workers_needed(1, 500, 20_000), 1);
        assert_eq!(workers_needed(1, 100_000, 20_000), 6);
        assert_eq!(workers_needed(8, 100_000, 20_000), 8);
    }
}
