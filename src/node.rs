//! A node: the process that holds the shards. Placement, start, signals, drain, watchdog.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant, SystemTime};

use ahash::RandomState;
use glommio::{LocalExecutorBuilder, Placement};

use crate::bus::BusConfig;
use crate::bus::redis::RedisConfig;
use crate::bus::status::{BusStage, BusStatus};
use crate::bus::thread::{BusSetup, BusThread};
use crate::config::{self, Config};
use crate::host;
use crate::http::forwarded::TrustedProxies;
use crate::http::head::HeadLimits;
use crate::hub::HubConfig;
use crate::hub::heartbeat::Heartbeat;
use crate::ids::ShardId;
use crate::listeners::{self, NodeListeners};
use crate::logging;
use crate::metrics::{self, BusMetrics, HostMetrics, NodeState, ShardMetrics};
use crate::panics;
use crate::shard::port::{BusPort, ShardPort, ports};
use crate::shard::{self, Audience, HANDSHAKES_MAX, LoneAddress, MeshTicket, ShardConfig, ShardError};
use crate::signals::{self, Order, Orders};
use crate::systemd::Supervisor;
use crate::time::Micros;
use crate::ws;

/// A shard that has done nothing for so long ends the process.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The tick that bounds what a wake-up lost in glommio 0.9.0 can cost: its executor may park with a task ready.
const TICK: Duration = Duration::from_millis(10);
/// glommio's default is 100 ms, which a busy host passes often.
const PREEMPT_NEVER: Duration = Duration::from_secs(3600);
/// How often the watchdog looks and the host is sampled.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the bus has given up.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Sockets beside the upgraded connections: heads coming in, responses and Close frames going out, accepts.
const SOCKETS_RESERVE: u32 = HANDSHAKES_MAX + 4096;
/// Slots of one ring, where the limit of open files would allow more.
const SLOTS_PER_RING_MAX: u64 = 131_072;

/// Why a node could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Somebody else listens there.
    #[error("{what} {addr}: address in use; another gateway, or another program, listens there (ss -ltnp shows which)")]
    AddressInUse {
        /// Which listener.
        what: &'static str,
        /// Its address.
        addr: SocketAddr,
    },
    /// A listener could not be opened.
    #[error("{what} {addr}: {error}")]
    Listen {
        /// Which listener.
        what: &'static str,
        /// Its address.
        addr: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Another process has this node's id.
    #[error(
        "node id {0:?} is in use: another process holds its lease in Redis; give each node an id of its own (--node-id), \
         or stop the other one first"
    )]
    IdTaken(String),
    /// Redis is required, and can't be reached.
    #[error("--redis-required: {0}; start Redis first, or leave the flag out to have the node wait for it")]
    RedisUnreachable(String),
    /// An executor could not be started.
    #[error("shard {shard} could not start on core {core}: {error}")]
    Spawn {
        /// Which shard.
        shard: usize,
        /// Which core.
        core: usize,
        /// What glommio said.
        error: String,
    },
    /// A shard has failed.
    #[error("shard {shard}: {error}")]
    Shard {
        /// Which shard.
        shard: usize,
        /// Why.
        error: ShardError,
    },
    /// A call to the system failed.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

impl NodeError {
    /// The exit code of the process, after sysexits.h.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::IdTaken(_) => 1,
            Self::AddressInUse { .. } | Self::Listen { .. } | Self::RedisUnreachable(_) => 69,
            Self::Spawn { .. } | Self::Shard { .. } | Self::Io(..) => 70,
        }
    }
}

/// Where a node is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Stage {
    /// Shards are coming up.
    Starting,
    /// Serving.
    Running,
    /// Not ready for load balancers, and serving on.
    Draining,
    /// Not accepting, and handling nothing that clients say; what was accepted before is brought to its receivers.
    Stopping,
    /// Clients are told to go.
    Closing,
    /// With a bus: no client is left, and the bus has been told so.
    Ended,
}

/// What the shards of a node share: numbers, each written without a lock.
#[derive(Debug)]
pub struct Node {
    id: String,
    started: Instant,
    started_at: SystemTime,
    stage: AtomicU8,
    shards_up: AtomicU32,
    connections_max: u32,
    /// Upgraded connections, and those that are being upgraded.
    reserved: AtomicU32,
    /// For each shard, while the node stops: since which of its turns nothing of it is on its way; 0 while something is.
    quiet_since: Vec<AtomicU64>,
    /// The same, while clients are told to go.
    finished_since: Vec<AtomicU64>,
    shards: Vec<&'static ShardMetrics>,
    host: HostMetrics,
    bus: Option<BusStatus>,
    /// Which address requests for `/ws` come from, if it is one.
    pub(crate) lone_address: LoneAddress,
    bus_metrics: Option<&'static BusMetrics>,
    /// Why the node has to end, if it has.
    given_up: OnceLock<GiveUp>,
}

/// Why a node ends by itself.
#[derive(Clone, Debug)]
enum GiveUp {
    IdTaken,
    RedisUnreachable(String),
}

/// Whether all are quiet, now that `shard` says it is, or is not, since one of its turns.
fn all_quiet(since: &[AtomicU64], shard: ShardId, turn: u64) -> bool {
    since[shard.index()].store(turn, SeqCst);
    let look = || since.iter().map(|since| since.load(SeqCst)).collect::<Vec<_>>();
    // A shard that was quiet may have been woken by another that became quiet since: only two looks that see the
    // same prove that there was a moment at which all were quiet, and then all stay so.
    let first = look();
    !first.contains(&0) && first == look()
}

impl Node {
    pub(crate) fn new(id: String, shards: usize, connections_max: u32) -> Self {
        Self {
            id,
            started: Instant::now(),
            started_at: SystemTime::now(),
            stage: AtomicU8::new(Stage::Starting as u8),
            shards_up: AtomicU32::new(0),
            connections_max,
            reserved: AtomicU32::new(0),
            quiet_since: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            finished_since: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            bus: None,
            bus_metrics: None,
            given_up: OnceLock::new(),
            // The shards' counters live as long as the process.
            shards: (0..shards).map(|_| &*Box::leak(Box::default())).collect(),
            host: HostMetrics::default(),
            lone_address: LoneAddress::default(),
        }
    }

    /// The same node with a bus to others.
    pub(crate) fn with_bus(self) -> Self {
        // They live as long as the process, as the shards' do.
        Self { bus: Some(BusStatus::default()), bus_metrics: Some(Box::leak(Box::default())), ..self }
    }

    /// The counters of the bus, where there is one.
    pub fn bus_metrics(&self) -> Option<&'static BusMetrics> {
        self.bus_metrics
    }

    /// Said by the bus: another process has this node's id. Clients are told to go (1012), and the process ends.
    pub fn id_taken(&self) {
        self.give_up(GiveUp::IdTaken);
    }

    /// Said by the bus when it was required and Redis can't be reached at the start; `why` is for people.
    pub fn redis_unreachable(&self, why: String) {
        self.give_up(GiveUp::RedisUnreachable(why));
    }

    fn give_up(&self, why: GiveUp) {
        // Whatever came first is the reason.
        let _ = self.given_up.set(why);
    }

    /// How it stands with the bus, where there is one.
    pub fn bus(&self) -> Option<&BusStatus> {
        self.bus.as_ref()
    }

    /// Whether the bus takes broadcasts now.
    pub fn bus_takes_broadcasts(&self) -> bool {
        self.bus.as_ref().is_none_or(BusStatus::takes_broadcasts)
    }

    fn bus_is_up(&self) -> bool {
        self.bus.as_ref().is_none_or(|bus| bus.stage() == BusStage::Up)
    }

    /// Time since the process started.
    #[inline]
    pub fn now(&self) -> Micros {
        Micros(self.started.elapsed().as_micros() as u64)
    }

    /// The counters of a shard.
    pub fn shard_metrics(&self, shard: ShardId) -> &'static ShardMetrics {
        self.shards[shard.index()]
    }

    /// Where the node is in its life.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Relaxed) {
            0 => Stage::Starting,
            1 => Stage::Running,
            2 => Stage::Draining,
            3 => Stage::Stopping,
            4 => Stage::Closing,
            _ => Stage::Ended,
        }
    }

    /// Goes on to a later stage; there is no way back.
    pub(crate) fn set_stage(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Relaxed);
    }

    /// Said by a shard of a stopping node: since which of its turns (from 1) nothing of it is on its way to another
    /// shard; 0 when something is. Once that holds for all, clients are told to go.
    pub fn set_quiet_since(&self, shard: ShardId, turn: u64) {
        if all_quiet(&self.quiet_since, shard, turn) {
            self.tell_clients_to_go();
        }
    }

    /// The same of a shard whose clients were told to go: since when none is left, and nothing on its way.
    pub fn set_finished_since(&self, shard: ShardId, turn: u64) {
        if all_quiet(&self.finished_since, shard, turn) {
            self.set_stage(Stage::Ended);
        }
    }

    /// Begins the last stage.
    pub fn tell_clients_to_go(&self) {
        self.set_stage(Stage::Closing);
    }

    /// Said by each shard once it accepts.
    pub fn shard_is_up(&self) {
        self.shards_up.fetch_add(1, Relaxed);
    }

    /// Whether load balancers should send new connections. A full node wants none either.
    pub fn is_ready(&self) -> bool {
        self.stage() == Stage::Running && self.bus_is_up() && self.reserved.load(Relaxed) < self.connections_max
    }

    /// Why no new connection is taken now, if none is.
    pub fn refusal(&self) -> Option<&'static str> {
        if self.stage() >= Stage::Stopping {
            return Some("node is stopping\n");
        }
        match self.bus.as_ref().map(BusStatus::stage) {
            None | Some(BusStage::Up) => None,
            Some(BusStage::Warming) => Some("node is not connected to the others yet\n"),
            Some(BusStage::Lost) => Some("node has lost its connection to the others\n"),
        }
    }

    /// Takes one of the node's places for upgraded connections, if one is free.
    pub fn reserve_connection(&self) -> bool {
        let is_free = self.reserved.fetch_add(1, Relaxed) < self.connections_max;
        if !is_free {
            self.release_connection();
        }
        is_free
    }

    /// Gives a place back.
    pub fn release_connection(&self) {
        self.reserved.fetch_sub(1, Relaxed);
    }

    /// Open connections of all shards.
    pub fn connections(&self) -> u64 {
        self.shards.iter().map(|shard| shard.connections.value()).sum()
    }

    /// The body of `/health`.
    pub fn health(&self) -> String {
        let mut health = serde_json::json!({"status": "ok", "node_id": self.id, "connections": self.connections()});
        if let Some(bus) = &self.bus {
            health["bus"] = bus.stage().name().into();
        }
        health.to_string()
    }

    /// The body of `/metrics`.
    pub fn metrics_text(&self) -> String {
        let since_1970 = self.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let state = NodeState {
            id: &self.id,
            is_ready: self.is_ready(),
            connections_max: self.connections_max,
            started_unix_us: since_1970.as_micros() as u64,
            now_us: self.now().0,
            log_dropped: logging::dropped(),
        };
        let bus = self.bus_metrics.map(metrics::render_bus).unwrap_or_default();
        metrics::render(&state, &self.shards, &self.host) + &bus
    }
}

/// What the main thread waits for.
enum News {
    Signal(i32),
    ShardEnded(usize, Result<(), ShardError>),
}

/// Runs a node until a signal ends it.
///
/// # Errors
/// See [`NodeError`].
pub fn run(config: Config) -> Result<(), NodeError> {
    panics::install_hook(|| logging::exit(70));
    let NodeListeners { public, admin, by_shard } = listeners::open_all(&config)?;
    let node = Node::new(config.node_id.clone(), config.shards, config.connections_max);
    let (shard_ports, bus_port) = match config.redis {
        Some(_) => {
            let (shard_ports, bus_port) = ports(config.shards as u16);
            (shard_ports.into_iter().map(Some).collect(), Some(bus_port))
        }
        None => ((0..config.shards).map(|_| None).collect(), None),
    };
    let node = Arc::new(if bus_port.is_some() { node.with_bus() } else { node });
    let (report, news) = mpsc::channel();
    let hasher = RandomState::new();
    spawn_shards(&config, &node, &hasher, by_shard, shard_ports, &report)?;
    signals::on_stop({
        let report = report.clone();
        // Nobody listens any more when the process ends for another reason.
        move |signal| _ = report.send(News::Signal(signal))
    });
    let bus = spawn_bus(&config, &node, hasher, bus_port)?;
    let mut orders = Orders::default();
    while node.shards_up.load(Relaxed) < config.shards as u32 {
        match news.recv_timeout(Duration::from_millis(1)) {
            Ok(News::ShardEnded(shard, Err(error))) => return Err(NodeError::Shard { shard, error }),
            Ok(News::Signal(signal)) => {
                tracing::info!(signal = signals::name(signal), "stopped before it had begun");
                if let Some(bus) = bus {
                    bus.stop();
                }
                return Ok(());
            }
            Ok(News::ShardEnded(_, Ok(()))) | Err(_) => {}
        }
    }
    node.set_stage(Stage::Running);
    let (addr, listen) = (public[0].addr, config::joined(&public));
    let admin = admin.map(tracing::field::display);
    let bus_at = config.redis.as_ref().map_or_else(|| "embedded".to_owned(), ToString::to_string);
    tracing::info!(%addr, listen, admin, node_id = config.node_id, shards = config.shards, bus = bus_at, "listening");
    let supervisor = Supervisor::from_environment();
    supervisor.ready();
    let ended = serve(&config, &node, &news, &mut orders, &supervisor);
    // Last: the shards have told it that their users are gone.
    if let Some(bus) = bus {
        bus.stop();
    }
    tracing::info!("stopped");
    ended
}

/// Starts the bus thread, where there is a bus.
fn spawn_bus(
    config: &Config,
    node: &Arc<Node>,
    hasher: RandomState,
    port: Option<BusPort>,
) -> Result<Option<BusThread>, NodeError> {
    let (Some(url), Some(port)) = (&config.redis, port) else { return Ok(None) };
    let setup = BusSetup {
        bus: BusConfig {
            node_id: config.node_id.as_str().into(),
            shards: config.shards as u16,
            hasher,
            offline_grace_ms: config.offline_grace.as_millis() as u64,
            link_bytes_max: config.bus_link_bytes_max,
            lost_after: config.bus_lost_after,
        },
        redis: RedisConfig { url: url.clone(), node: config.node_id.as_str().into() },
        is_required: config.redis_required,
        port,
        node: Arc::clone(node),
    };
    BusThread::spawn(setup).map(Some).map_err(|error| NodeError::Io("starting the bus thread", error))
}

/// Watches the shards until all have ended, and carries out what signals ask for.
fn serve(
    config: &Config,
    node: &Node,
    news: &mpsc::Receiver<News>,
    orders: &mut Orders,
    supervisor: &Supervisor,
) -> Result<(), NodeError> {
    let mut running = config.shards;
    let mut stop_at: Option<Instant> = None;
    let mut watched = Instant::now();
    while running > 0 {
        let until_stop = stop_at.map(|at| at.saturating_duration_since(Instant::now()));
        let until_watch = WATCH_EVERY.saturating_sub(watched.elapsed()).min(until_look(node));
        match news.recv_timeout(until_stop.unwrap_or(WATCH_EVERY).min(until_watch)) {
            Ok(News::Signal(signal)) => match orders.take(Instant::now()) {
                Order::Stop if node.stage() < Stage::Draining => {
                    node.set_stage(Stage::Draining);
                    supervisor.stopping(config.drain_delay + config.shutdown_timeout);
                    stop_at = Some(Instant::now() + config.drain_delay);
                    let (signal, drain_delay) = (signals::name(signal), config::duration_text(config.drain_delay));
                    tracing::info!(signal, drain_delay, "stopping; a signal after a second or more ends at once");
                }
                Order::Stop | Order::Again => {}
                Order::End => {
                    tracing::warn!(signal = signals::name(signal), "second signal: ending at once");
                    logging::exit(128 + signal);
                }
            },
            Ok(News::ShardEnded(shard, Err(error))) => return Err(NodeError::Shard { shard, error }),
            Ok(News::ShardEnded(_, Ok(()))) => running -= 1,
            Err(_) => {}
        }
        match node.given_up.get() {
            Some(GiveUp::RedisUnreachable(why)) => return Err(NodeError::RedisUnreachable(why.clone())),
            Some(GiveUp::IdTaken) if node.stage() < Stage::Stopping => {
                tracing::error!(node_id = config.node_id, "another process has this node's id; stopping");
                stop_at = Some(Instant::now());
            }
            Some(GiveUp::IdTaken) | None => {}
        }
        if stop_at.is_some_and(|at| Instant::now() >= at) {
            stop_at = None;
            node.set_stage(Stage::Stopping);
            tracing::info!(connections = node.connections(), "closing connections");
        }
        if watched.elapsed() >= WATCH_EVERY {
            watch(node, watched.elapsed());
            supervisor.alive(node.connections());
            watched = Instant::now();
        }
    }
    match node.given_up.get() {
        Some(GiveUp::IdTaken) => Err(NodeError::IdTaken(config.node_id.clone())),
        Some(GiveUp::RedisUnreachable(why)) => Err(NodeError::RedisUnreachable(why.clone())),
        None => Ok(()),
    }
}

/// How soon to look whether the bus has given up.
fn until_look(node: &Node) -> Duration {
    if node.bus.is_some() { LOOK_EVERY } else { WATCH_EVERY }
}

/// Samples the host, and ends the process when a shard or the bus is stuck.
fn watch(node: &Node, since_last_look: Duration) {
    host::sample(&node.host, &node.shards);
    // A machine that slept or a process that was stopped is not a stuck shard: they get a look's time to catch up.
    if since_last_look > 2 * WATCH_EVERY {
        return;
    }
    for (number, shard) in node.shards.iter().enumerate() {
        let (at_us, doing) = shard.pulse.last();
        let silent = node.now().since(Micros(at_us));
        if silent > SILENCE_MAX {
            tracing::error!(shard = number, ?doing, ?silent, "shard {number} is stuck; ending the process");
            logging::exit(70);
        }
    }
    // Before its first sign of life it was not started.
    if let Some((at_us @ 1.., doing)) = node.bus_metrics.map(|bus| bus.pulse.last()) {
        let silent = node.now().since(Micros(at_us));
        if silent > SILENCE_MAX {
            tracing::error!(?doing, ?silent, "the bus is stuck; ending the process");
            logging::exit(70);
        }
    }
}

fn spawn_shards(
    config: &Config,
    node: &Arc<Node>,
    hasher: &RandomState,
    listeners: Vec<Vec<(OwnedFd, Audience)>>,
    ports: Vec<Option<ShardPort>>,
    report: &mpsc::Sender<News>,
) -> Result<(), NodeError> {
    // Before any thread is pinned: a pinned one sees its own core only.
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let shard_config = Arc::new(shard_config(config, hasher));
    let ticket = MeshTicket::new(config.shards as u16);
    for (shard, (listeners, port)) in listeners.into_iter().zip(ports).enumerate() {
        let core = cores.get(shard % cores.len().max(1)).copied().unwrap_or(0);
        let (shard_config, node, ticket, report) =
            (Arc::clone(&shard_config), Arc::clone(node), ticket.clone(), report.clone());
        executor(Placement::Fixed(core), shard)
            .spawn(move || async move {
                let ended = shard::run(shard_config, node, ticket, listeners, port).await;
                // Nobody listens any more when the process ends for another reason.
                let _ = report.send(News::ShardEnded(shard, ended));
            })
            .map_err(|error| NodeError::Spawn { shard, core, error: error.to_string() })?;
    }
    Ok(())
}

/// What a shard runs in.
pub(crate) fn executor(placement: Placement, shard: usize) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(placement)
        .name(&format!("shard-{shard}"))
        // Its own buffers serve files and its streams, which we do not use: 0.75 MB an executor instead of 10.9.
        .io_memory(0)
        .ring_depth(256)
        // A pre-emption that falls between polling and running is what loses wake-ups, and the loop yields by itself.
        .preempt_timer(PREEMPT_NEVER)
}

/// What its shards are told of a node's settings.
pub(crate) fn shard_config(config: &Config, hasher: &RandomState) -> ShardConfig {
    let open_files_max = host::open_files_max().min(SLOTS_PER_RING_MAX);
    let sockets_max = config.connections_max.saturating_add(SOCKETS_RESERVE);
    ShardConfig {
        hub: HubConfig {
            shards: config.shards as u16,
            connections_max: sockets_max as usize,
            connects_per_address_max: config.connects_per_address_max,
            connects_per_address_window: config.connects_per_address_window,
            hasher: hasher.clone(),
            has_bus: config.redis.is_some(),
        },
        heartbeat: Heartbeat { ping_interval: config.ping_interval, pong_timeout: config.pong_timeout },
        ws: ws::Limits { message_bytes_max: config.message_bytes_max },
        head: HeadLimits { bytes_max: config.head_bytes_max, ..HeadLimits::default() },
        trusted_proxies: TrustedProxies::new(config.trusted_proxies.iter().copied()),
        sockets_max,
        slots_per_ring: (open_files_max as u32).min(sockets_max),
        handshake_timeout: config.handshake_timeout,
        close_timeout: config.close_timeout,
        send_queue_bytes_max: config.send_queue_bytes_max,
        shard_queue_bytes_max: config.shard_queue_bytes_max as u64,
        send_stall_max: config.send_stall_max,
        control_frames_max: config.control_frames_max,
        shutdown_timeout: config.shutdown_timeout,
        tick: TICK,
    }
}
