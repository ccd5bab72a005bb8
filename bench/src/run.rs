//! One run: workers connect, traffic flows, a window of it is measured, what is under way may arrive, all say goodbye.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::handshake::Target;
use crate::net::{Driver, Net, NetConfig, Scratch};
use crate::proc::{self, MemorySample, ProcessSample};
use crate::stats::Tally;
use crate::sys;
use crate::timeline::{Counters, Interval, Point, Timeline};

/// How long a worker waits for events before it looks at the phase again.
const TURN_WAIT: Duration = Duration::from_millis(1);
/// How often the coordinator looks at the workers.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long the goodbyes may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// The distance of two points of the timeline.
const TICK_NS: u64 = 1_000_000_000;
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

/// Everything about a run but the scenario's own behaviour.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The servers, used in turn.
    pub targets: Vec<Target>,
    /// Connections in all.
    pub connections: u32,
    /// Cores that workers are pinned to in turn; none: not pinned.
    pub cpus: Vec<usize>,
    /// Connections under way at the same time, over all workers.
    pub concurrency: usize,
    /// Connections begun in a second at most, over all workers.
    pub connect_rate: Option<f64>,
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
    /// Those of the Redis between servers, for CPU.
    pub redis_pids: Vec<u32>,
    /// What is measured.
    pub window: Window,
    /// Show a line while the run goes on.
    pub live: bool,
    /// Where this generator's user numbers begin, when several share a run.
    pub users_from: u32,
}

/// What one run gave.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// What the workers saw.
    pub tally: Tally,
    /// One point a second.
    pub timeline: Vec<Point>,
    /// From the first connect until all were tried, in seconds.
    pub connecting_seconds: f64,
    /// The measured window, in seconds.
    pub window_seconds: f64,
    /// The server's use of CPU in the window; `None` without its process ids.
    pub server: Option<Usage>,
    /// The same of the Redis between servers.
    #[serde(default)]
    pub redis: Option<Usage>,
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
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Usage {
    /// The window, in seconds.
    pub seconds: f64,
    /// Seconds on a CPU.
    pub cpu_seconds: f64,
    /// Seconds ready to run, without a CPU.
    pub wait_seconds: f64,
}

impl Outcome {
    /// Adds what another generator saw of the same run. What is known of the server stays as this one saw it.
    pub fn merge(&mut self, other: Self) {
        self.tally.merge(other.tally);
        self.connecting_seconds = self.connecting_seconds.max(other.connecting_seconds);
        self.window_seconds = self.window_seconds.max(other.window_seconds);
        self.server = self.server.or(other.server);
        self.redis = self.redis.or(other.redis);
        self.workers.extend(other.workers);
        self.listen_drops += other.listen_drops;
    }
}

impl Usage {
    /// Share of one CPU, with the time that it was ready and had none.
    pub fn load_percent(&self) -> f64 {
        (self.cpu_seconds + self.wait_seconds) / self.seconds.max(1e-9) * 100.0
    }

    /// What two sets of processes used together, in one window.
    pub fn and(self, other: Self) -> Self {
        Self {
            seconds: self.seconds.max(other.seconds),
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            wait_seconds: self.wait_seconds + other.wait_seconds,
        }
    }

    /// What was used from one sample to a later one.
    pub fn between(before: ProcessSample, after: ProcessSample) -> Self {
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
    open: AtomicU64,
    sent: AtomicU64,
    broadcasts: AtomicU64,
    listeners: AtomicU64,
    received: AtomicU64,
    received_extra: AtomicU64,
    errors: AtomicU64,
    finished: AtomicBool,
    busy: AtomicBool,
    done: AtomicBool,
}

impl Progress {
    fn publish(&self, net: &Net) {
        let tally = &net.tally;
        let errors = tally.failed + tally.closed_early + tally.duplicated + tally.reordered + tally.corrupt;
        self.opened.store(tally.opened, Ordering::Relaxed);
        self.open.store(net.open() as u64, Ordering::Relaxed);
        self.sent.store(tally.sent, Ordering::Relaxed);
        self.broadcasts.store(tally.broadcasts, Ordering::Relaxed);
        self.listeners.store(tally.listeners, Ordering::Relaxed);
        self.received.store(tally.received, Ordering::Relaxed);
        self.received_extra.store(tally.received_extra, Ordering::Relaxed);
        self.errors.store(errors + tally.unexpected, Ordering::Relaxed);
    }
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

    /// Everything that has to arrive has.
    fn is_quiet(&self) -> bool {
        let busy = self.workers.iter().any(|worker| worker.busy.load(Ordering::Acquire));
        let listeners = self.sum(|worker| &worker.listeners);
        let expected = self.sum(|worker| &worker.sent) + self.sum(|worker| &worker.broadcasts) * listeners;
        !busy && self.sum(|worker| &worker.received) >= expected
    }

    fn counters(&self, pids: &[u32]) -> Counters {
        let mut generator = ProcessSample::default();
        for worker in &self.workers {
            generator.cpu_ns += proc::sample_own_thread(worker.thread.load(Ordering::Relaxed)).cpu_ns;
        }
        Counters {
            open: self.sum(|worker| &worker.open),
            sent: self.sum(|worker| &worker.sent) + self.sum(|worker| &worker.broadcasts),
            received: self.sum(|worker| &worker.received) + self.sum(|worker| &worker.received_extra),
            errors: self.sum(|worker| &worker.errors),
            server: proc::sample_processes(pids),
            generator,
        }
    }

    fn all_done(&self) -> bool {
        self.workers.iter().all(|worker| worker.done.load(Ordering::Acquire))
    }
}

/// One worker's part of a run.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which worker, from 0 on.
    pub worker: usize,
    /// Of how many.
    pub workers: usize,
    /// Its users.
    pub users: Range<u32>,
}

impl Part {
    /// How many of this worker's users have numbers from `from` to below `to`.
    pub fn users_within(&self, from: u32, to: u32) -> u32 {
        self.users.end.min(to).saturating_sub(self.users.start.max(from))
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

/// Carries out a plan. `driver` makes the driver of a worker; `gate` is passed when all connections have been tried and
/// before the traffic begins.
///
/// # Errors
/// When no connection could be made, or a worker failed.
pub fn run<D: Driver>(
    plan: &Plan,
    workers: usize,
    driver: impl Fn(Part) -> D,
    gate: &dyn Fn(),
) -> Result<Outcome, RunError> {
    let shared = Shared::new(workers);
    let (intervals, intervals_received) = mpsc::channel();
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let mut users = share(plan.connections, workers, worker);
                users = users.start + plan.users_from..users.end + plan.users_from;
                let driver = driver(Part { worker, workers, users: users.clone() });
                let (shared, intervals) = (&shared, intervals.clone());
                scope.spawn(move || {
                    let result = work(plan, shared, worker, users, driver, &intervals);
                    shared.workers[worker].done.store(true, Ordering::Release);
                    result
                })
            })
            .collect();
        let watch = Watch { plan, shared: &shared, intervals: intervals_received };
        let mut outcome = watch.coordinate(gate);
        for handle in handles {
            let tally = handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            outcome.tally.merge(tally);
        }
        if outcome.tally.opened == 0 {
            let reasons = outcome.tally.errors.iter().map(|(name, count)| format!("{name} ({count})"));
            let reasons = reasons.collect::<Vec<_>>().join(", ");
            return Err(RunError::Unreachable { url: plan.targets[0].address.to_string(), reasons });
        }
        Ok(outcome)
    })
}

/// What all sides had used at one moment.
struct Sample {
    server: ProcessSample,
    redis: ProcessSample,
    workers: Vec<ProcessSample>,
}

/// The coordinator's side: leads the workers from phase to phase, and samples between them.
struct Watch<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    intervals: mpsc::Receiver<Interval>,
}

impl Watch<'_> {
    fn coordinate(&self, gate: &dyn Fn()) -> Outcome {
        let Self { plan, shared, .. } = self;
        let pids = &plan.server_pids;
        let mut timeline = Timeline::new(plan.live);
        let memory_before = proc::sample_memory(pids);
        let drops_before = proc::listen_drops();
        let connecting = plan.window == Window::Connecting;
        // Workers have said their thread ids once they stand at the barrier; they wait for this thread to begin.
        shared.start.wait();
        let mut before = self.sample();
        let started_ns = sys::now_ns();
        if connecting {
            shared.window_start_ns.store(started_ns, Ordering::Relaxed);
        }
        timeline.start(shared.counters(pids));
        shared.start.wait();
        let settled = |worker: &Progress| worker.settled_ns.load(Ordering::Acquire) != 0;
        let epoch_ns = if connecting { Some(started_ns) } else { None };
        self.watch(&mut timeline, started_ns, epoch_ns, u64::MAX, || shared.workers.iter().all(settled));
        let settled_ns = shared.workers.iter().map(|worker| worker.settled_ns.load(Ordering::Acquire)).max();
        let settled_ns = settled_ns.unwrap_or(0).max(started_ns);
        let mut after = self.sample();
        let memory_connected = proc::sample_memory(pids);
        let mut window_ns = started_ns..settled_ns;
        gate();
        if shared.sum(|worker| &worker.opened) > 0 && !connecting {
            let start_ns = sys::now_ns() + plan.warmup.as_nanos() as u64;
            window_ns = start_ns..start_ns + plan.duration.as_nanos() as u64;
            shared.window_end_ns.store(window_ns.end, Ordering::Relaxed);
            shared.window_start_ns.store(window_ns.start, Ordering::Relaxed);
            shared.enter(Phase::Traffic);
            self.watch(&mut timeline, started_ns, None, window_ns.start, || false);
            sleep_until(window_ns.start);
            before = self.sample();
            let finished = |worker: &Progress| worker.finished.load(Ordering::Acquire);
            let over = || shared.workers.iter().all(finished);
            self.watch(&mut timeline, started_ns, Some(window_ns.start), window_ns.end, over);
            if !shared.workers.iter().all(finished) {
                sleep_until(window_ns.end);
            }
            window_ns.end = window_ns.end.min(sys::now_ns());
            after = self.sample();
        }
        let memory_end = proc::sample_memory(pids);
        shared.enter(Phase::Drain);
        self.drain();
        shared.enter(Phase::Close);
        while !shared.all_done() {
            thread::sleep(LOOK_EVERY);
        }
        self.intervals.try_iter().for_each(|interval| timeline.add(interval));
        let seconds = |range: Range<u64>| (range.end - range.start) as f64 / 1e9;
        let workers = before.workers.into_iter().zip(after.workers);
        let used = |pids: &[u32], before, after| (!pids.is_empty()).then(|| Usage::between(before, after));
        Outcome {
            tally: Tally::default(),
            timeline: timeline.finish(),
            connecting_seconds: seconds(started_ns..settled_ns),
            window_seconds: seconds(window_ns),
            server: used(pids, before.server, after.server),
            redis: used(&plan.redis_pids, before.redis, after.redis),
            workers: workers.map(|(before, after)| Usage::between(before, after)).collect(),
            memory_before,
            memory_connected,
            memory_end,
            listen_drops: proc::listen_drops().saturating_sub(drops_before),
        }
    }

    fn sample(&self) -> Sample {
        let workers = self.shared.workers.iter();
        let own = workers.map(|worker| proc::sample_own_thread(worker.thread.load(Ordering::Relaxed)));
        Sample {
            server: proc::sample_processes(&self.plan.server_pids),
            redis: proc::sample_processes(&self.plan.redis_pids),
            workers: own.collect(),
        }
    }

    /// Adds a point a second until `until_ns`, or until `over` says so. Seconds of the window count from `window_ns`.
    fn watch(
        &self,
        timeline: &mut Timeline,
        started_ns: u64,
        window_ns: Option<u64>,
        until_ns: u64,
        over: impl Fn() -> bool,
    ) {
        let from_ns = window_ns.unwrap_or_else(sys::now_ns);
        let mut second = 0;
        while !over() && !self.shared.all_done() {
            let tick_ns = from_ns + (second + 1) * TICK_NS;
            if sys::now_ns() >= tick_ns && tick_ns <= until_ns {
                self.intervals.try_iter().for_each(|interval| timeline.add(interval));
                let memory = proc::sample_memory_cheaply(&self.plan.server_pids);
                let counters = self.shared.counters(&self.plan.server_pids);
                let at_seconds = tick_ns.saturating_sub(started_ns) as f64 / 1e9;
                timeline.tick(at_seconds, window_ns.map(|_| second), counters, memory);
                second += 1;
            } else if tick_ns > until_ns {
                return;
            }
            thread::sleep(LOOK_EVERY.min(Duration::from_nanos(tick_ns.saturating_sub(sys::now_ns()))));
        }
    }

    /// Waits until all that was sent has come, but not for ever.
    fn drain(&self) {
        let deadline_ns = sys::now_ns() + self.plan.drain.as_nanos() as u64;
        while sys::now_ns() < deadline_ns && !self.shared.all_done() {
            // Two looks at a distance: the first one makes sure that every worker has seen the phase.
            thread::sleep(LOOK_EVERY * 5);
            if self.shared.is_quiet() {
                return;
            }
        }
    }
}

fn sleep_until(at_ns: u64) {
    thread::sleep(Duration::from_nanos(at_ns.saturating_sub(sys::now_ns())));
}

/// A worker's side.
fn work<D: Driver>(
    plan: &Plan,
    shared: &Shared,
    worker: usize,
    users: Range<u32>,
    mut driver: D,
    intervals: &mpsc::Sender<Interval>,
) -> io::Result<Tally> {
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
    let mut second = 0;
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
        progress.publish(&net);
        progress.finished.store(driver.is_finished(), Ordering::Release);
        let now_second = sys::now_ns().saturating_sub(net.window.start) / TICK_NS;
        if now_second > second {
            // The coordinator listens until every worker is done.
            let _ = intervals.send(Interval { second, latencies: net.end_interval() });
            second = now_second;
        }
        progress.busy.store(phase < Phase::Drain || driver.is_busy(), Ordering::Release);
        if progress.settled_ns.load(Ordering::Relaxed) == 0 && net.is_settled() {
            progress.settled_ns.store(sys::now_ns(), Ordering::Release);
        }
        if phase == Phase::Close && (net.open() == 0 || sys::now_ns() > close_by_ns) {
            let latencies = net.end_interval();
            let _ = intervals.send(Interval { second, latencies });
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
        targets: plan.targets.clone(),
        users,
        user_prefix: plan.user_prefix.clone(),
        concurrency: plan.concurrency.div_ceil(workers),
        connect_interval_ns: plan.connect_rate.map_or(0, |rate| (workers as f64 * 1e9 / rate) as u64),
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
