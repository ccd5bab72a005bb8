//! The shard's loop: turn the ring, handle what came, send what follows, and sleep when there is nothing.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::client::Disconnect;
use crate::http::forwarded::TrustedProxies;
use crate::http::head::HeadLimits;
use crate::hub::heartbeat::{Heartbeat, Look};
use crate::hub::{Hub, HubConfig};
use crate::ids::ConnId;
use crate::metrics::Doing;
use crate::node::{Node, Stage};
use crate::time::Micros;
use crate::ws;

use super::conn::{Audience, Conn, Phase};
use super::engine::{Engine, EngineConfig, EngineError, Event, ListenerId};
use super::finish::Cause;
use super::mesh::{Inbox, MeshEnd, MeshTicket};
use super::park::Watch;
use super::port::ShardPort;
use super::rare::Rare;
use super::sockets::{KEEPING_UP, Sockets};
use super::turn::{self, Next, Steps};

/// Timers that revive an executor whose ticker lost its own wake-up, and how often each fires.
const GUARDS: u32 = 4;
const GUARD_PERIOD: Duration = Duration::from_secs(2);
/// How often the loop lets the rest of its executor run while it is busy.
const YIELD_EVERY: Duration = Duration::from_micros(200);
/// How often a listener whose accept failed is tried again.
const ACCEPT_RETRY_EVERY: Duration = Duration::from_secs(1);
/// How often timers, backlogs and the node's stage are looked at.
const SURVEY_EVERY_US: u64 = 10_000;
/// Connections of a shard that have not opened yet; beyond that the oldest is given up.
pub const HANDSHAKES_MAX: u32 = 16_384;
/// Messages that were accepted before the node stopped have this part of the shutdown timeout to reach their receivers.
const SETTLE_PART: u32 = 4;

/// How far a stopping shard has come.
pub(super) struct Stop {
    /// When clients are told to go at the latest.
    close_at: Micros,
    /// When the shard ends at the latest.
    end_at: Micros,
    /// Since which turn nothing of this shard is on its way to another; 0 when something is.
    quiet_since: u64,
    /// Clients have been told to go.
    is_closing: bool,
}

/// What a shard needs to know, the same for all shards of a node.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The hub's part.
    pub hub: HubConfig,
    /// When to ping and when to give up.
    pub heartbeat: Heartbeat,
    /// Limits of messages.
    pub ws: ws::Limits,
    /// Limits of request heads.
    pub head: HeadLimits,
    /// Who is believed about whom it speaks for.
    pub trusted_proxies: TrustedProxies,
    /// Sockets this shard may come to hold.
    pub sockets_max: u32,
    /// Sockets of one ring: the soft limit of open files at most.
    pub slots_per_ring: u32,
    /// From accept to the end of the head.
    pub handshake_timeout: Duration,
    /// From the last byte sent to the peer's FIN.
    pub close_timeout: Duration,
    /// Bytes queued for one connection.
    pub send_queue_bytes_max: usize,
    /// Bytes queued for all connections of the shard.
    pub shard_queue_bytes_max: u64,
    /// Age of the oldest byte queued.
    pub send_stall_max: Duration,
    /// Control frames of one connection in a second.
    pub control_frames_max: u32,
    /// From the end of accepting to the end of the shard.
    pub shutdown_timeout: Duration,
    /// How often the loop turns though nothing has happened; what depends on time happens up to so much late.
    pub tick: Duration,
}

impl ShardConfig {
    /// The sizes of the shard's engine.
    pub fn engine(&self) -> EngineConfig {
        let ShardConfig { sockets_max, slots_per_ring, .. } = *self;
        EngineConfig { sockets_max, slots_per_ring, ..EngineConfig::default() }
    }
}

/// Why a shard could not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The ring could not be made.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A system call failed.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
}

/// One shard: everything that its loop turns.
pub(super) struct Shard {
    pub(super) engine: Engine,
    pub(super) hub: Hub,
    pub(super) sockets: Sockets,
    /// A frame being built; empty between uses.
    pub(super) scratch: Vec<u8>,
    listeners: Vec<ListenerId>,
    /// Who connects to each listener, in the order of [`ListenerId::index`].
    audiences: Vec<Audience>,
    /// Listeners whose accept failed; they are tried again every second.
    resting: Vec<ListenerId>,
    rested_at: Micros,
    mesh: MeshEnd,
    inbox: Rc<Inbox>,
    /// Connections that have not opened, oldest first; some have by now.
    unopened: VecDeque<ConnId>,
    due: Vec<u32>,
    surveyed: Micros,
    pub(super) too_slow_log: Rare,
    pub(super) no_proxy_header_log: Rare,
    /// Set while the node stops.
    pub(super) stop: Option<Stop>,
}

/// Runs a shard until the node stops. Called inside the shard's executor.
///
/// `listeners` are this shard's own; one shard of the node has the one for operators. Where there is a bus, each shard
/// has a `port` to it.
///
/// # Errors
/// See [`ShardError`].
pub async fn run(
    config: Arc<ShardConfig>,
    node: Arc<Node>,
    ticket: MeshTicket,
    listeners: Vec<(OwnedFd, Audience)>,
    port: Option<ShardPort>,
) -> Result<(), ShardError> {
    let inbox = Rc::new(Inbox::default());
    // Before the mesh forms: joining it waits for other threads, and a wake-up can be lost there too.
    spawn_ticker(config.tick, Rc::clone(&inbox));
    spawn_guards();
    let (shard, mesh) = ticket.join(&inbox).await.map_err(|error| ShardError::Io("joining the mesh", error))?;
    let metrics = node.shard_metrics(shard);
    let engine = Engine::new(config.engine())?;
    let now = node.now();
    let mut shard = Shard {
        engine,
        hub: Hub::new(shard, &config.hub, metrics),
        sockets: Sockets::new(now, config, Arc::clone(&node), shard, port),
        scratch: Vec::with_capacity(256),
        listeners: Vec::new(),
        audiences: Vec::new(),
        resting: Vec::new(),
        rested_at: now,
        mesh,
        inbox,
        unopened: VecDeque::new(),
        due: Vec::new(),
        surveyed: now,
        too_slow_log: Rare::default(),
        no_proxy_header_log: Rare::default(),
        stop: None,
    };
    shard.attach_port()?;
    shard.listen(listeners);
    node.shard_is_up();
    shard.run().await
}

/// A lost wake-up leaves every task that was ready where it is, the ticker included, until something else completes.
/// These timers see to it that one is always pending: all of them can be ready at once only after the thread was kept
/// from its core for most of their period, and then lost its wake-up as well.
pub(super) fn spawn_guards() {
    for guard in 0..GUARDS {
        glommio::spawn_local(async move {
            glommio::timer::sleep(GUARD_PERIOD / GUARDS * guard).await;
            loop {
                glommio::timer::sleep(GUARD_PERIOD).await;
            }
        })
        .detach();
    }
}

fn spawn_ticker(tick: Duration, inbox: Rc<Inbox>) {
    glommio::spawn_local(async move {
        loop {
            glommio::timer::sleep(tick).await;
            inbox.tick();
        }
    })
    .detach();
}

impl Shard {
    fn listen(&mut self, listeners: Vec<(OwnedFd, Audience)>) {
        for (socket, audience) in listeners {
            let accepts = if audience == Audience::Operators { 4 } else { 64 };
            self.listeners.push(self.engine.listen(socket, accepts));
            self.audiences.push(audience);
        }
    }

    async fn run(mut self) -> Result<(), ShardError> {
        let io = |what| move |error| ShardError::Io(what, error);
        let mut wakes = Watch::new(self.engine.wake_fd().as_fd()).map_err(io("watching the ring"))?;
        let mut breather = Watch::always_readable().map_err(io("eventfd"))?;
        let mut breathed = self.sockets.now;
        loop {
            match turn::turn(&mut self)? {
                Next::End => return Ok(()),
                Next::Sleep => {
                    self.beat(Doing::Parked);
                    self.sockets.metrics.parks.add(1);
                    let inbox = &self.inbox;
                    std::future::poll_fn(|context| match inbox.is_ready(context.waker()) {
                        true => Poll::Ready(()),
                        false => wakes.poll_readable(context),
                    })
                    .await;
                    breathed = self.sockets.node.now();
                    self.wake();
                }
                // Read once more: a turn that was full of messages takes milliseconds.
                Next::Turn if self.sockets.node.now().since(breathed) >= YIELD_EVERY => {
                    std::future::poll_fn(|context| breather.poll_readable(context)).await;
                    breathed = self.sockets.node.now();
                }
                Next::Turn => {}
            }
        }
    }

    fn beat(&self, doing: Doing) {
        self.sockets.metrics.pulse.beat(self.sockets.now.0, doing);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Received { id, data } => self.received(id, data),
            Event::Sent { id, chunk, result } => self.sent(id, chunk, result),
            Event::Accepted { id, listener, peer } => {
                self.sockets.metrics.accepts.add(1);
                let now = self.sockets.now;
                let audience = self.audiences[listener.index()];
                self.sockets.insert(id, Conn::accepted(id, now, peer, audience));
                self.sockets.handshakes += 1;
                self.sockets.wheel.set(id.index, now.after(self.sockets.config.handshake_timeout));
                self.unopened.push_back(id);
                self.engine.resume_reading(id);
                self.give_up_oldest();
            }
            Event::ReceiveEnded { id, error } => self.receive_ended(id, error.as_ref()),
            Event::Closed { id } => self.sockets.remove(id),
            Event::AcceptFailed { listener, error } => {
                tracing::warn!(%error, "a connection could not be accepted; trying again");
                self.resting.push(listener);
            }
        }
    }

    /// Keeps connections that have not opened within their bound, so that slow heads cannot take every slot.
    fn give_up_oldest(&mut self) {
        while let Some(&id) = self.unopened.front() {
            let waits = self.sockets.get(id).is_some_and(|conn| matches!(conn.phase, Phase::Head | Phase::Waiting));
            if waits && self.sockets.handshakes <= HANDSHAKES_MAX {
                break;
            }
            self.unopened.pop_front();
            if waits {
                self.sockets.metrics.refused_evicted.add(1);
                self.end(id, Cause::PeerGone);
            }
        }
    }

    /// Queues for the kernel what this turn has for the sockets, one send for each connection.
    fn flush_sockets(&mut self) {
        self.sockets.spread_broadcasts();
        self.sockets.update_hold();
        self.pause_senders();
        for id in std::mem::take(&mut self.sockets.too_slow) {
            self.cut_off(id);
        }
        if self.sockets.queued_bytes > self.sockets.config.shard_queue_bytes_max {
            self.relieve();
        }
        let mut dirty = std::mem::take(&mut self.sockets.dirty);
        for &index in &dirty {
            if let Some((id, conn)) = self.sockets.at(index) {
                conn.dirty = false;
                self.send_next(id);
            }
        }
        dirty.clear();
        if self.sockets.dirty.is_empty() {
            self.sockets.dirty = dirty;
        }
    }

    /// At the shard's bound the largest queues that wait for a reader go first, until a tenth of the bound is free.
    fn relieve(&mut self) {
        let goal = self.sockets.config.shard_queue_bytes_max / 10 * 9;
        let mut waiting: Vec<(u32, ConnId)> = Vec::new();
        for id in self.sockets.backlogged.clone() {
            if let Some(conn) = self.sockets.get(id).filter(|conn| conn.sending && conn.phase == Phase::Open) {
                waiting.push((conn.queued_bytes, id));
            }
        }
        waiting.sort_unstable_by_key(|&(bytes, _)| std::cmp::Reverse(bytes));
        for (_, id) in waiting {
            if self.sockets.queued_bytes <= goal {
                break;
            }
            self.cut_off(id);
        }
    }

    /// The turn that has just begun handed what the last one queued to the kernel.
    fn record_latencies(&mut self) {
        let now = self.sockets.now;
        for (received, deliveries) in self.sockets.deliveries.drain(..) {
            self.sockets.metrics.receive_to_send.record(now.since(received), deliveries);
        }
    }

    /// Looks at timers, backlogs and the node's stage.
    fn survey_all(&mut self) {
        self.surveyed = self.sockets.now;
        let mut due = std::mem::take(&mut self.due);
        self.sockets.wheel.expire(self.sockets.now, &mut due);
        for index in due.drain(..) {
            self.timer(index);
        }
        self.due = due;
        if self.sockets.now.since(self.rested_at) >= ACCEPT_RETRY_EVERY {
            self.rested_at = self.sockets.now;
            for listener in std::mem::take(&mut self.resting) {
                self.engine.resume_listening(listener);
            }
        }
        self.survey_backlogs();
        self.resume_paused();
        self.follow_stage();
        let metrics = self.sockets.metrics;
        metrics.send_queue_bytes.set(self.sockets.queued_bytes);
        metrics.backlogged.set(self.sockets.backlogged.len() as u64);
        metrics.stalled.set(self.sockets.stalled.len() as u64);
        metrics.sockets.set(u64::from(self.engine.open_sockets()));
        metrics.rings.set(self.engine.rings() as u64);
    }

    fn timer(&mut self, index: u32) {
        let now = self.sockets.now;
        let heartbeat = self.sockets.heartbeat;
        let Some((id, conn)) = self.sockets.at(index) else { return };
        match conn.phase {
            Phase::Open => {
                // While its reading is paused, silence is not the client's.
                let heard = if conn.is_stalled() { now } else { conn.heard };
                match heartbeat.look(now, heard, conn.next_ping) {
                    None => self.end(id, Cause::Told(Disconnect::SilentTooLong)),
                    Some(Look { ping, next_ping, again }) => {
                        conn.next_ping = next_ping;
                        self.sockets.wheel.set(index, again);
                        if ping {
                            self.sockets.queue(id, &[0x89, 0]);
                        }
                    }
                }
            }
            Phase::Head | Phase::Waiting => self.request_timed_out(id),
            Phase::Flushing | Phase::Draining => self.close(id),
            Phase::Closing | Phase::Vacant => {}
        }
    }

    /// Which connections read too slowly, and which have stopped.
    fn survey_backlogs(&mut self) {
        let now = self.sockets.now;
        let config = Arc::clone(&self.sockets.config);
        let mut backlogged = std::mem::take(&mut self.sockets.backlogged);
        backlogged.retain(|&id| {
            let Some(conn) = self.sockets.get(id) else { return false };
            conn.backlogged = conn.sending && conn.phase == Phase::Open;
            if !conn.backlogged {
                return false;
            }
            let waited = now.since(conn.sent_at);
            if waited >= KEEPING_UP {
                self.sockets.no_longer_lags(id);
            }
            if waited > config.send_stall_max {
                self.sockets.too_slow.push(id);
            }
            true
        });
        self.sockets.backlogged = backlogged;
    }

    fn follow_stage(&mut self) {
        let stage = self.sockets.node.stage();
        let now = self.sockets.now;
        if self.stop.is_none() && stage >= Stage::Stopping {
            let timeout = self.sockets.config.shutdown_timeout;
            self.stop = Some(Stop {
                close_at: now.after(timeout / SETTLE_PART),
                end_at: now.after(timeout),
                quiet_since: 0,
                is_closing: false,
            });
            self.sockets.links.return_credits_at_once();
            for listener in std::mem::take(&mut self.listeners) {
                self.engine.stop_listening(listener);
            }
        }
        let Some(stop) = &mut self.stop else { return };
        if !stop.is_closing && (stage >= Stage::Closing || now >= stop.close_at) {
            stop.is_closing = true;
            stop.quiet_since = 0;
            self.sockets.node.tell_clients_to_go();
            self.close_all();
        }
    }

    fn close_all(&mut self) {
        for index in 0..self.sockets.places() {
            let Some((id, conn)) = self.sockets.at(index) else { continue };
            match conn.phase {
                Phase::Open => self.end(id, Cause::Told(Disconnect::NodeStopping)),
                Phase::Head | Phase::Waiting => self.end(id, Cause::PeerGone),
                Phase::Flushing | Phase::Draining | Phase::Closing | Phase::Vacant => {}
            }
        }
    }

    /// Says whether anything of this shard is on its way to another, or, once clients are told to go, whether any client
    /// is left either.
    fn report_quiet(&mut self) {
        let turns = self.sockets.metrics.turns.value();
        let is_quiet = self.sockets.links.is_quiet() && !self.sockets.is_spreading() && !self.hub.is_leaving();
        let is_quiet = is_quiet && self.bus_is_quiet();
        let sockets = self.engine.open_sockets();
        let Some(stop) = &mut self.stop else { return };
        let is_quiet = is_quiet && (!stop.is_closing || sockets == 0);
        stop.quiet_since = match stop.quiet_since {
            _ if !is_quiet => 0,
            0 => turns,
            since => since,
        };
        let (shard, since) = (self.sockets.shard(), stop.quiet_since);
        match stop.is_closing {
            false => self.sockets.node.set_quiet_since(shard, since),
            true => self.sockets.node.set_finished_since(shard, since),
        }
    }
}

impl Steps for Shard {
    type Error = ShardError;
    type Queues = Sockets;

    fn hub(&mut self) -> (Micros, &mut Hub, &mut Sockets) {
        (self.sockets.now, &mut self.hub, &mut self.sockets)
    }

    fn turn_ring(&mut self) -> Result<usize, ShardError> {
        self.sockets.metrics.turns.add(1);
        let events = self.engine.turn().map_err(|error| ShardError::Io("io_uring_enter", error))?;
        self.sockets.now = self.sockets.node.now();
        self.record_latencies();
        Ok(events)
    }

    fn handle_events(&mut self) {
        self.beat(Doing::Receiving);
        while let Some(event) = self.engine.next_event() {
            self.event(event);
        }
    }

    fn receive_batches(&mut self) {
        self.beat(Doing::Meshing);
        let metrics = self.sockets.metrics;
        for (peer, mut batch) in self.inbox.take() {
            self.sockets.to_pause.append(&mut batch.pauses);
            metrics.mesh_batches_in.add(1);
            metrics.mesh_messages_in.add(batch.len() as u64);
            self.sockets.links.receive(peer, batch);
        }
    }

    fn retry_stalled(&mut self) -> bool {
        self.go_on_with_stalled()
    }

    fn survey(&mut self) {
        if self.sockets.now.since(self.surveyed) >= Duration::from_micros(SURVEY_EVERY_US) {
            self.survey_all();
        }
    }

    fn send(&mut self) {
        self.beat(Doing::Sending);
        self.flush_sockets();
    }

    fn send_batches(&mut self) -> bool {
        let mut sent = false;
        for peer in self.sockets.links.peers() {
            let Some(batch) = self.sockets.links.take_batch(peer) else { continue };
            match self.mesh.try_send(peer, batch) {
                Ok(()) => {
                    self.sockets.metrics.mesh_batches_out.add(1);
                    sent = true;
                }
                // The channel is full; the tick tries again at the latest.
                Err(batch) => self.sockets.links.return_batch(peer, batch),
            }
        }
        sent
    }

    fn flush_bus(&mut self) -> bool {
        self.sockets.port.as_mut().is_some_and(ShardPort::flush)
    }

    fn report(&mut self) {
        self.report_quiet();
        self.beat(Doing::Turning);
    }

    /// With a bus it stays until all have no client left: the homes of their users have to tell the bus.
    fn is_finished(&self) -> bool {
        let Some(stop) = self.stop.as_ref().filter(|stop| stop.is_closing) else { return false };
        let is_finished = match self.sockets.port {
            None => self.engine.open_sockets() == 0,
            Some(_) => self.sockets.node.stage() == Stage::Ended,
        };
        is_finished || self.sockets.now >= stop.end_at
    }

    fn has_more(&self) -> bool {
        self.engine.has_unsubmitted() || self.sockets.is_spreading()
    }

    fn ring_sleeps(&mut self) -> Result<bool, ShardError> {
        // A completion that came just before the eventfd was enabled did not signal it.
        self.engine.before_park().map_err(|error| ShardError::Io("io_uring_enter", error))
    }

    fn bus_sleeps(&mut self) -> bool {
        self.sockets.port.as_ref().is_none_or(ShardPort::before_park)
    }

    fn wake(&mut self) {
        self.engine.after_park();
        if let Some(port) = &self.sockets.port {
            port.after_park();
        }
    }
}
