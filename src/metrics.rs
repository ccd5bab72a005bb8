//! What the node counts, and its Prometheus text.
//!
//! Each shard writes its own counters and nobody else's, with plain loads and stores: no lock, no allocation, no
//! read-modify-write on the path of a message. A scrape reads them from whatever thread answers it.

mod bus;

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub use bus::{BusMetrics, Sizes, render_bus};

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds to it. Only its writer may.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    /// Takes from it. Only its writer may.
    #[inline]
    pub fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    /// Sets it. Only its writer may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Its value.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A metric's type in Prometheus' words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts by upper bound.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Where a shard keeps a cell.
type CellOf = fn(&ShardMetrics) -> &Cell;

/// One metric of the shards and the cells behind its label values.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    cells: &'static [(&'static str, CellOf)],
}

macro_rules! shard_metrics {
    ($($name:literal $kind:ident $help:literal { $($cell:ident = $label:literal),+ $(,)? })+) => {
        /// The cells of one shard, on cache lines of its own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct ShardMetrics {
            $($(#[doc = concat!("`", $name, "` ", $label)] pub $cell: Cell,)+)+
            /// `ringmesh_receive_to_send_seconds`
            pub receive_to_send: Latency,
            /// What the shard is at, for the watchdog.
            pub pulse: Pulse,
            /// Processor time of the shard's threads, in microseconds; the sampler of the host writes it.
            pub cpu_us: Cell,
        }

        const FAMILIES: &[Family] = &[
            $(Family { name: $name, kind: Kind::$kind, help: $help, cells: &[$(($label, |shard| &shard.$cell)),+] }),+
        ];
    };
}

shard_metrics! {
    "ringmesh_connections" Gauge "Open WebSocket connections." { connections = "" }
    "ringmesh_users" Gauge "Users with a connection whose home is this shard." { users = "" }
    "ringmesh_sockets" Gauge "Sockets in the shard's rings, whatever their state." { sockets = "" }
    "ringmesh_rings" Gauge "io_uring instances the shard has opened for its sockets." { rings = "" }
    "ringmesh_accepts_total" Counter "Connections accepted." { accepts = "" }
    "ringmesh_refused_total" Counter "Requests for /ws that got no connection, and heads that never became a request." {
        refused_capacity = "reason=\"capacity\"",
        refused_address_rate = "reason=\"address_rate\"",
        refused_not_ready = "reason=\"not_ready\"",
        refused_handshake = "reason=\"handshake\"",
        refused_timeout = "reason=\"handshake_timeout\"",
        refused_evicted = "reason=\"handshakes_full\"",
        refused_proxy_header = "reason=\"proxy_header\"",
    }
    "ringmesh_forwarded_total" Counter "Addresses of clients told by others than themselves, by what became of them." {
        forwarded_believed = "result=\"believed\"",
        forwarded_untrusted = "result=\"untrusted\"",
        forwarded_unreadable = "result=\"unreadable\"",
    }
    "ringmesh_http_requests_total" Counter "Plain HTTP requests answered." { http_requests = "" }
    "ringmesh_closes_total" Counter "Open connections that ended, by cause." {
        closes_peer_closed = "cause=\"peer_closed\"",
        closes_peer_gone = "cause=\"peer_gone\"",
        closes_protocol_error = "cause=\"protocol_error\"",
        closes_invalid_text = "cause=\"invalid_text\"",
        closes_message_too_big = "cause=\"message_too_big\"",
        closes_internal_error = "cause=\"internal_error\"",
        closes_node_stopping = "cause=\"node_stopping\"",
        closes_missing_user_id = "cause=\"missing_user_id\"",
        closes_too_slow = "cause=\"too_slow\"",
        closes_rate_limited = "cause=\"rate_limited\"",
        closes_silent = "cause=\"silent\"",
    }
    "ringmesh_messages_in_total" Counter "Messages from clients that were taken, by type." {
        messages_in_ping = "type=\"ping\"",
        messages_in_send_message = "type=\"send_message\"",
        messages_in_broadcast = "type=\"broadcast\"",
        messages_in_invalid = "type=\"invalid\"",
        messages_in_binary = "type=\"binary\"",
    }
    "ringmesh_messages_out_total" Counter "Deliveries queued for clients, by type." {
        messages_out_pong = "type=\"pong\"",
        messages_out_message = "type=\"message\"",
        messages_out_broadcast = "type=\"broadcast\"",
        messages_out_error = "type=\"error\"",
    }
    "ringmesh_bytes_in_total" Counter "Bytes received from clients." { bytes_in = "" }
    "ringmesh_bytes_out_total" Counter "Bytes the kernel took for clients." { bytes_out = "" }
    "ringmesh_sends_total" Counter "Send operations completed; deliveries divided by this is how well they coalesce." {
        sends = "",
    }
    "ringmesh_send_queue_bytes" Gauge "Bytes queued for sockets, in the kernel's hands or waiting." { send_queue_bytes = "" }
    "ringmesh_backlogged_connections" Gauge "Connections whose last send the kernel has not finished." { backlogged = "" }
    "ringmesh_stalled_connections" Gauge "Connections whose reading waits for room in the mesh." { stalled = "" }
    "ringmesh_stalls_total" Counter "Times a connection's reading had to wait for room." { stalls = "" }
    "ringmesh_pauses_total" Counter "Times a connection's reading paused because a receiver of its messages lagged." {
        pauses = "",
    }
    "ringmesh_broadcast_holds_total" Counter "Times the shard held broadcasts back because too many readers lagged." {
        broadcast_holds = "",
    }
    "ringmesh_mesh_batches_total" Counter "Batches from and to other shards." {
        mesh_batches_in = "direction=\"in\"",
        mesh_batches_out = "direction=\"out\"",
    }
    "ringmesh_mesh_messages_total" Counter "Messages from and to other shards." {
        mesh_messages_in = "direction=\"in\"",
        mesh_messages_out = "direction=\"out\"",
    }
    "ringmesh_dropped_total" Counter "Messages dropped, by reason." {
        dropped_offline = "reason=\"offline\"",
        dropped_too_slow = "reason=\"too_slow\"",
        dropped_closing = "reason=\"closing\"",
        dropped_overloaded = "reason=\"overloaded\"",
    }
    "ringmesh_turns_total" Counter "Turns of the shard's loop." { turns = "" }
    "ringmesh_parks_total" Counter "Times the shard's loop found nothing to do and slept." { parks = "" }
}

/// Upper bounds of the latency histogram, in microseconds.
const LATENCY_BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// Time from the arrival of a message's bytes until its deliveries were handed to the kernel.
#[derive(Debug, Default)]
pub struct Latency {
    counts: [Cell; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Cell,
}

impl Latency {
    /// Counts `deliveries` that took so long.
    pub fn record(&self, took: Duration, deliveries: u64) {
        let us = took.as_micros() as u64;
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        self.counts[bucket].add(deliveries);
        self.sum_us.add(us.saturating_mul(deliveries));
    }
}

/// When a shard last did anything, and what: the watchdog's view of it.
#[derive(Debug, Default)]
pub struct Pulse {
    at_us: AtomicU64,
    doing: AtomicU64,
}

/// What a shard is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Doing {
    /// Not running yet.
    Starting,
    /// Waiting for anything to do.
    Parked,
    /// Handing operations to the kernel and taking its completions.
    Turning,
    /// Handling bytes that clients sent.
    Receiving,
    /// Handling batches of other shards.
    Meshing,
    /// Handing deliveries to sockets.
    Sending,
}

impl Pulse {
    /// Says that the shard is alive, and at what.
    #[inline]
    pub fn beat(&self, now_us: u64, doing: Doing) {
        self.at_us.store(now_us, Relaxed);
        self.doing.store(doing as u64, Relaxed);
    }

    /// The last time, in microseconds since the process started, and what was begun then.
    pub fn last(&self) -> (u64, Doing) {
        let doing = match self.doing.load(Relaxed) {
            0 => Doing::Starting,
            1 => Doing::Parked,
            2 => Doing::Turning,
            3 => Doing::Receiving,
            4 => Doing::Meshing,
            _ => Doing::Sending,
        };
        (self.at_us.load(Relaxed), doing)
    }
}

/// What the whole host shows; one sampler writes it.
#[derive(Debug, Default)]
pub struct HostMetrics {
    /// Connections the kernel dropped because a listen queue was full (TcpExt ListenOverflows), host-wide.
    pub listen_overflows: Cell,
    /// SYNs to listeners that were dropped for any reason (TcpExt ListenDrops), host-wide.
    pub listen_drops: Cell,
    /// This process's resident memory, in bytes.
    pub resident_bytes: Cell,
    /// Processor time of this process, in microseconds.
    pub cpu_us: Cell,
    /// Memory that this process may use, in bytes: the host's, or what its cgroups allow.
    pub memory_bytes: Cell,
    /// Memory that is still to be had, in bytes, on the host or in the cgroup that has the least.
    pub memory_bytes_available: Cell,
}

/// What a scrape shows of the node itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeState<'a> {
    /// Its id.
    pub id: &'a str,
    /// Whether load balancers should send new connections.
    pub is_ready: bool,
    /// Upgraded connections at most.
    pub connections_max: u32,
    /// When the process started, in microseconds since 1970.
    pub started_unix_us: u64,
    /// Microseconds since then.
    pub now_us: u64,
    /// Log lines that found no room, or could not be written.
    pub log_dropped: u64,
}

/// The Prometheus text of a node, version 0.0.4 of the format.
pub fn render(node: &NodeState<'_>, shards: &[&ShardMetrics], host: &HostMetrics) -> String {
    let mut out = String::with_capacity(4096 + shards.len() * 6144);
    head(&mut out, "ringmesh_node_info", Kind::Gauge, "Always 1; the node's id and version.");
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(out, "ringmesh_node_info{{node_id=\"{}\",version=\"{version}\"}} 1", node.id);
    for (name, help, value) in [
        ("ringmesh_ready", "Whether load balancers should send new connections.", u32::from(node.is_ready)),
        ("ringmesh_connections_max", "Upgraded connections of the node at most.", node.connections_max),
    ] {
        head(&mut out, name, Kind::Gauge, help);
        let _ = writeln!(out, "{name} {value}");
    }
    let help = "Log lines that found no room, or could not be written.";
    head(&mut out, "ringmesh_log_dropped_total", Kind::Counter, help);
    let _ = writeln!(out, "ringmesh_log_dropped_total {}", node.log_dropped);
    for family in FAMILIES {
        head(&mut out, family.name, family.kind, family.help);
        for (number, shard) in shards.iter().enumerate() {
            for (label, cell) in family.cells {
                let comma = if label.is_empty() { "" } else { "," };
                let _ = writeln!(out, "{}{{shard=\"{number}\"{comma}{label}}} {}", family.name, cell(shard).value());
            }
        }
    }
    seconds_by_shard(
        &mut out,
        ("ringmesh_shard_cpu_seconds_total", Kind::Counter, "Processor time of the shard's threads."),
        shards.iter().map(|shard| shard.cpu_us.value()),
    );
    seconds_by_shard(
        &mut out,
        ("ringmesh_shard_silence_seconds", Kind::Gauge, "Time since the shard's loop last showed a sign of life."),
        shards.iter().map(|shard| node.now_us.saturating_sub(shard.pulse.last().0)),
    );
    latency(&mut out, shards);
    for (name, kind, help, cell) in [
        (
            "ringmesh_listen_overflows_total",
            Kind::Counter,
            "Times any listen queue of this host was full.",
            &host.listen_overflows,
        ),
        ("ringmesh_listen_drops_total", Kind::Counter, "SYNs that listeners of this host dropped.", &host.listen_drops),
        ("ringmesh_memory_max_bytes", Kind::Gauge, "Memory that the process may use.", &host.memory_bytes),
        (
            "ringmesh_memory_available_bytes",
            Kind::Gauge,
            "Memory that is still to be had, on the host or in the process's cgroups.",
            &host.memory_bytes_available,
        ),
        ("process_resident_memory_bytes", Kind::Gauge, "Resident memory of the process.", &host.resident_bytes),
    ] {
        head(&mut out, name, kind, help);
        let _ = writeln!(out, "{name} {}", cell.value());
    }
    for (name, kind, help, us) in [
        ("process_cpu_seconds_total", Kind::Counter, "Processor time of the process.", host.cpu_us.value()),
        ("process_start_time_seconds", Kind::Gauge, "When the process started, since 1970.", node.started_unix_us),
    ] {
        head(&mut out, name, kind, help);
        let _ = writeln!(out, "{name} {}", us as f64 / 1e6);
    }
    out
}

fn seconds_by_shard(out: &mut String, (name, kind, help): (&str, Kind, &str), us: impl Iterator<Item = u64>) {
    head(out, name, kind, help);
    for (number, us) in us.enumerate() {
        let _ = writeln!(out, "{name}{{shard=\"{number}\"}} {}", us as f64 / 1e6);
    }
}

fn head(out: &mut String, name: &str, kind: Kind, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
}

fn latency(out: &mut String, shards: &[&ShardMetrics]) {
    let name = "ringmesh_receive_to_send_seconds";
    head(out, name, Kind::Histogram, "From the arrival of a message until its deliveries were handed to the kernel.");
    let bounds = LATENCY_BOUNDS_US.map(|bound| bound as f64 / 1e6);
    for (number, shard) in shards.iter().enumerate() {
        let Latency { counts, sum_us } = &shard.receive_to_send;
        histogram(out, name, &format!("shard=\"{number}\""), &bounds, counts, sum_us.value() as f64 / 1e6);
    }
}

/// The samples of one histogram. `counts` has one more than `bounds`, for what is above all of them.
fn histogram(out: &mut String, name: &str, label: &str, bounds: &[f64], counts: &[Cell], sum: f64) {
    let comma = if label.is_empty() { "" } else { "," };
    let mut total = 0;
    for (bucket, count) in counts.iter().enumerate() {
        total += count.value();
        let bound = bounds.get(bucket).map_or_else(|| "+Inf".to_owned(), f64::to_string);
        let _ = writeln!(out, "{name}_bucket{{{label}{comma}le=\"{bound}\"}} {total}");
    }
    let labels = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
    let _ = writeln!(out, "{name}_sum{labels} {sum}\n{name}_count{labels} {total}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_metric_of_every_shard() {
        let shards = [ShardMetrics::default(), ShardMetrics::default()];
        shards[1].messages_in_ping.add(7);
        shards[0].connections.add(5);
        shards[0].connections.subtract(2);
        shards[0].receive_to_send.record(Duration::from_micros(50), 3);
        shards[0].receive_to_send.record(Duration::from_secs(60), 1);
        shards[1].cpu_us.set(1_500_000);
        shards[1].pulse.beat(2_000_000, Doing::Parked);
        let node = NodeState {
            id: "n",
            is_ready: true,
            connections_max: 9,
            started_unix_us: 0,
            now_us: 2_250_000,
            log_dropped: 3,
        };
        let text = render(&node, &[&shards[0], &shards[1]], &HostMetrics::default());
        for line in [
            "ringmesh_messages_in_total{shard=\"1\",type=\"ping\"} 7",
            "ringmesh_messages_in_total{shard=\"0\",type=\"ping\"} 0",
            "ringmesh_connections{shard=\"0\"} 3",
            "ringmesh_receive_to_send_seconds_bucket{shard=\"0\",le=\"0.00005\"} 3",
            "ringmesh_receive_to_send_seconds_bucket{shard=\"0\",le=\"30\"} 3",
            "ringmesh_receive_to_send_seconds_bucket{shard=\"0\",le=\"+Inf\"} 4",
            "ringmesh_receive_to_send_seconds_count{shard=\"0\"} 4",
            "# TYPE ringmesh_receive_to_send_seconds histogram",
            "ringmesh_ready 1",
            "ringmesh_log_dropped_total 3",
            "ringmesh_connections_max 9",
            "ringmesh_shard_cpu_seconds_total{shard=\"1\"} 1.5",
            "ringmesh_shard_silence_seconds{shard=\"1\"} 0.25",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
