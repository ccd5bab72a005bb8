//! The bus thread: one for each node, beside the shards. It waits for what shards, Redis and the clock have, lets the
//! bus decide, and hands out what follows; it never blocks on any of them.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::hub::bus::FromBus;
use crate::ids::ShardId;
use crate::metrics::{BusMetrics, Doing};
use crate::node::Node;
use crate::shard::port::BusPort;
use crate::time::Micros;

use super::call::{Call, CallId};
use super::redis::{self, Caller, Event, Events, RedisConfig};
use super::state::{Bus, BusConfig, Effects, Fatal, Health, Input};
use super::status::BusStage;

/// Events of Redis handled before the shards have their turn.
const EVENTS_MAX: usize = 1024;
/// How often gauges and counters are brought up to date.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// The longest that the thread sleeps: its pulse shows the watchdog that it lives.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// What the bus thread needs.
pub struct BusSetup {
    /// The bus' own part.
    pub bus: BusConfig,
    /// Where Redis is.
    pub redis: RedisConfig,
    /// Whether the node ends when Redis can't be reached at the start.
    pub is_required: bool,
    /// Its end of the queues.
    pub port: BusPort,
    /// The node.
    pub node: Arc<Node>,
}

/// The running thread.
pub struct BusThread {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Stop {
    is_asked: AtomicBool,
    notify: Notify,
}

impl BusThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread or no poll instance left.
    pub fn spawn(setup: BusSetup) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = Arc::new(Stop::default());
        let asked = Arc::clone(&stop);
        let run = move || LocalSet::new().block_on(&runtime, run(setup, &asked));
        let thread = std::thread::Builder::new().name("bus".into()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Has it bring what it has to other nodes, take what is left of the node's users off the directory, and end.
    /// It takes a few seconds at most.
    pub fn stop(self) {
        self.stop.is_asked.store(true, SeqCst);
        self.stop.notify.notify_one();
        // A panic was reported by the hook.
        let _ = self.thread.join();
    }
}

struct Outlets<'a> {
    caller: &'a mut Caller,
    port: &'a mut BusPort,
}

impl Effects for Outlets<'_> {
    fn call(&mut self, id: CallId, call: Call) {
        self.caller.call(id, call);
    }

    fn has_room(&self, shard: ShardId) -> bool {
        self.port.has_room(shard)
    }

    fn has_broadcast_room(&self, shard: ShardId) -> bool {
        self.port.has_broadcast_room(shard)
    }

    fn push(&mut self, shard: ShardId, message: FromBus) -> u64 {
        self.port.push(shard, message)
    }

    fn handled(&self, shard: ShardId) -> u64 {
        self.port.handled(shard)
    }
}

async fn run(setup: BusSetup, stop: &Stop) {
    let BusSetup { bus, redis, is_required, mut port, node } = setup;
    let (mut caller, mut events) = redis::start(redis);
    let mut world = World { bus: Bus::new(bus), node, was_connected: false, why_lost: None, reported: Micros(0) };
    let mut from_shards = Vec::new();
    let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        let first = world.wait(&mut events, &port, stop, sleep.as_mut()).await;
        port.drain(|shard, message| from_shards.push((shard, message)));
        let mut outlets = Outlets { caller: &mut caller, port: &mut port };
        let further = std::iter::from_fn(|| events.try_recv());
        for event in first.into_iter().chain(further).take(EVENTS_MAX) {
            world.event(event, &mut outlets);
        }
        let now = world.node.now();
        for (shard, message) in from_shards.drain(..) {
            world.bus.handle(now, Input::Shard(shard, message), &mut outlets);
        }
        if stop.is_asked.swap(false, SeqCst) {
            world.bus.handle(now, Input::Stop, &mut outlets);
        }
        world.bus.turn(world.node.now(), world.node.connections(), &mut outlets);
        port.flush();
        world.report();
        if world.bus.is_finished() {
            return;
        }
        if world.bus.fatal() == Some(Fatal::IdTaken) {
            world.node.id_taken();
        }
        if let Some(why) = world.why_lost.take()
            && is_required
            && !world.was_connected
        {
            world.node.redis_unreachable(why);
        }
    }
}

/// The bus with what it is told and what it tells.
struct World {
    bus: Bus,
    node: Arc<Node>,
    was_connected: bool,
    /// What is wrong with Redis, since the last time it was asked for.
    why_lost: Option<String>,
    /// When the metrics were brought up to date.
    reported: Micros,
}

impl World {
    async fn wait(
        &mut self,
        events: &mut Events,
        port: &BusPort,
        stop: &Stop,
        mut sleep: std::pin::Pin<&mut tokio::time::Sleep>,
    ) -> Option<Event> {
        let until_due = self.bus.due().since(self.node.now()).min(SLEEP_MAX);
        sleep.as_mut().reset(Instant::now() + until_due);
        tokio::select! {
            event = events.recv() => event,
            () = port.ready() => None,
            () = sleep => None,
            () = stop.notify.notified() => None,
        }
    }

    fn event(&mut self, event: Event, outlets: &mut Outlets<'_>) {
        let input = match event {
            Event::Connected => {
                tracing::info!(again = self.was_connected, "Redis is connected");
                if self.was_connected
                    && let Some(metrics) = self.node.bus_metrics()
                {
                    metrics.reconnects.add(1);
                }
                self.was_connected = true;
                Input::Connected
            }
            Event::Lost(why) => {
                tracing::warn!("Redis is out of reach: {why}");
                self.why_lost = Some(why);
                Input::Lost
            }
            Event::Reply(id, reply) => Input::Reply(id, reply),
            Event::Envelope(envelope) => Input::Envelope(envelope),
            Event::Contract(text) => Input::Contract(text),
            Event::UserEvent(text) => Input::UserEvent(text),
            Event::Lag(lag) => {
                if let Some(metrics) = self.node.bus_metrics() {
                    metrics.lag.record(lag, 1);
                }
                return;
            }
            Event::ContractDropped(count) => return self.bus.contract_dropped(count),
        };
        self.bus.handle(self.node.now(), input, outlets);
    }

    /// Says how it stands.
    fn report(&mut self) {
        let (Some(status), Some(metrics)) = (self.node.bus(), self.node.bus_metrics()) else { return };
        status.set_stage(match self.bus.health() {
            Health::Warming => BusStage::Warming,
            Health::Up => BusStage::Up,
            Health::Lost => BusStage::Lost,
        });
        status.set_takes_broadcasts(self.bus.takes_broadcasts());
        let now = self.node.now();
        metrics.pulse.beat(now.0, Doing::Turning);
        self.bus.take_batches().for_each(|messages| metrics.batch.record(u64::from(messages)));
        if now.since(self.reported) >= REPORT_EVERY {
            self.reported = now;
            self.report_metrics(metrics);
        }
    }

    fn report_metrics(&self, metrics: &BusMetrics) {
        let counters = self.bus.counters();
        for (cell, value) in [
            (&metrics.messages_out_unicast, counters.unicasts_out),
            (&metrics.messages_out_broadcast, counters.broadcasts_out),
            (&metrics.messages_out_contract, counters.contract_out),
            (&metrics.messages_in_unicast, counters.unicasts_in),
            (&metrics.messages_in_broadcast, counters.broadcasts_in),
            (&metrics.messages_in_contract, counters.contract_in),
            (&metrics.resent, counters.resent),
            (&metrics.overloaded, counters.overloaded),
            (&metrics.lost, counters.lost),
            (&metrics.offline, counters.offline),
            (&metrics.invalid, counters.invalid),
            (&metrics.cache_hits, counters.cache_hits),
            (&metrics.cache_misses, counters.cache_misses),
            (&metrics.rerouted, counters.rerouted),
            (&metrics.duplicates, counters.duplicates),
            (&metrics.gaps, counters.gaps),
            (&metrics.reaped, counters.reaped),
        ] {
            cell.set(value);
        }
        let (live, foreign) = self.bus.nodes();
        let (unacked_bytes, held_bytes) = self.bus.kept_bytes();
        metrics.up.set(u64::from(self.bus.health() == Health::Up));
        metrics.nodes.set(live as u64 + 1);
        metrics.foreign_nodes.set(foreign as u64);
        metrics.unacked_bytes.set(unacked_bytes as u64);
        metrics.held_bytes.set(held_bytes as u64);
        metrics.registrations.set(self.bus.registrations() as u64);
        metrics.set_lease_remaining(self.bus.lease_remaining(self.node.now()));
    }
}
