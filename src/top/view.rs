//! What a node is doing, out of two scrapes: the model of what is shown. Pure.

use std::time::Duration;

use super::change::Change;

const LATENCY: &str = "ringmesh_receive_to_send_seconds";

/// A node between two scrapes. What a scrape does not say, or two do not say yet, is `None`. Rates are by the second.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Its id and its version.
    pub node: Option<(String, String)>,
    /// Time since its process started, by the clock of whoever looks.
    pub uptime: Option<Duration>,
    /// Whether it takes new connections.
    pub is_ready: Option<bool>,
    /// Upgraded connections at most.
    pub connections_max: Option<f64>,
    /// Cores that the process keeps busy.
    pub cpu: Option<f64>,
    /// Resident memory, in bytes.
    pub resident_bytes: Option<f64>,
    /// Memory that is still to be had, and that there is, in bytes.
    pub memory: Option<(f64, f64)>,
    /// Bytes from clients.
    pub bytes_in: Option<f64>,
    /// Connections accepted.
    pub accepts: Option<f64>,
    /// All shards together.
    pub total: Shard,
    /// Each shard, in the order of the scrape.
    pub shards: Vec<Shard>,
    /// Connections that ended, by cause.
    pub closes: Vec<(String, f64)>,
    /// Requests for `/ws` that got no connection, by reason.
    pub refused: Vec<(String, f64)>,
    /// Messages dropped, by reason.
    pub dropped: Vec<(String, f64)>,
    /// Listen queues of the host that were full: the rate, and since the host started.
    pub listen_overflows: (Option<f64>, Option<f64>),
    /// The bus between nodes; `None` when this node is alone.
    pub bus: Option<Bus>,
}

/// One shard, or all together.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// Its number, or `all`.
    pub name: String,
    /// Open connections.
    pub connections: Option<f64>,
    /// Users whose home it is.
    pub users: Option<f64>,
    /// Cores that it keeps busy: 1 is all that one shard can have.
    pub cpu: Option<f64>,
    /// Messages from clients.
    pub messages_in: Option<f64>,
    /// Deliveries to clients.
    pub messages_out: Option<f64>,
    /// Bytes to clients.
    pub bytes_out: Option<f64>,
    /// Median of receive-to-send, in seconds.
    pub p50: Option<f64>,
    /// Its 99th percentile.
    pub p99: Option<f64>,
    /// Bytes queued for clients.
    pub queued_bytes: Option<f64>,
    /// Connections whose last send is not finished.
    pub pending: Option<f64>,
    /// Connections whose reading waits for room.
    pub stalled: Option<f64>,
    /// Messages to and from other shards.
    pub mesh: Option<f64>,
    /// Deliveries in one send.
    pub deliveries_a_send: Option<f64>,
    /// Seconds since the loop's last sign of life; the longest of all shards.
    pub silence: Option<f64>,
}

/// What joins the node with others.
#[derive(Clone, Debug, PartialEq)]
pub struct Bus {
    /// Whether Redis answers.
    pub is_up: bool,
    /// From publish to receive, in seconds: median and 99th percentile.
    pub lag: (Option<f64>, Option<f64>),
    /// Messages in one envelope.
    pub batch: Option<f64>,
    /// Bytes sent to other nodes that they have not acknowledged.
    pub unacked_bytes: Option<f64>,
    /// Live nodes seen.
    pub nodes: Option<f64>,
    /// Users that this node has registered.
    pub registrations: Option<f64>,
    /// Seconds until this node's lease ends.
    pub lease: Option<f64>,
    /// Share of look-ups that the cache answered.
    pub cache_hits: Option<f64>,
    /// Messages that followed a user to another node.
    pub rerouted: Option<f64>,
    /// Messages refused to their senders.
    pub overloaded: Option<f64>,
    /// Times that Redis was reconnected to, since the process started.
    pub reconnects: Option<f64>,
    /// Messages known to be lost, since the process started.
    pub lost: Option<f64>,
}

impl View {
    /// Makes one. `unix_now` is the time since 1970.
    pub fn new(change: Change<'_>, unix_now: Duration) -> View {
        let value = |name: &str| change.now.sum(name, &[]);
        let node = change.now.named("ringmesh_node_info").first().map(|info| {
            let label = |name| info.label(name).unwrap_or_default().to_owned();
            (label("node_id"), label("version"))
        });
        let started = value("process_start_time_seconds").filter(|seconds| *seconds > 0.0);
        let started = started.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let numbers = change.now.named("ringmesh_connections").iter().filter_map(|sample| sample.label("shard"));
        View {
            node,
            uptime: started.map(|started| unix_now.saturating_sub(started)),
            is_ready: value("ringmesh_ready").map(|ready| ready > 0.0),
            connections_max: value("ringmesh_connections_max"),
            cpu: change.rate("process_cpu_seconds_total", &[]),
            resident_bytes: value("process_resident_memory_bytes"),
            memory: value("ringmesh_memory_available_bytes").zip(value("ringmesh_memory_max_bytes")),
            bytes_in: change.rate("ringmesh_bytes_in_total", &[]),
            accepts: change.rate("ringmesh_accepts_total", &[]),
            total: Shard::new(change, "all", &[]),
            shards: numbers.map(|number| Shard::new(change, number, &[("shard", number)])).collect(),
            closes: change.rates_by("ringmesh_closes_total", "cause"),
            refused: change.rates_by("ringmesh_refused_total", "reason"),
            dropped: change.rates_by("ringmesh_dropped_total", "reason"),
            listen_overflows: (
                change.rate("ringmesh_listen_overflows_total", &[]),
                value("ringmesh_listen_overflows_total"),
            ),
            bus: value("ringmesh_bus_up").map(|up| Bus::new(change, up > 0.0)),
        }
    }
}

impl Shard {
    fn new(change: Change<'_>, name: &str, labels: &[(&str, &str)]) -> Shard {
        let value = |name: &str| change.now.sum(name, labels);
        let rate = |name: &str| change.rate(name, labels);
        let silences = change.now.with("ringmesh_shard_silence_seconds", labels).map(|sample| sample.value);
        let messages_out = rate("ringmesh_messages_out_total");
        let sends = rate("ringmesh_sends_total").filter(|sends| *sends > 0.0);
        Shard {
            name: name.to_owned(),
            connections: value("ringmesh_connections"),
            users: value("ringmesh_users"),
            cpu: rate("ringmesh_shard_cpu_seconds_total"),
            messages_in: rate("ringmesh_messages_in_total"),
            messages_out,
            bytes_out: rate("ringmesh_bytes_out_total"),
            p50: change.quantile(0.5, LATENCY, labels),
            p99: change.quantile(0.99, LATENCY, labels),
            queued_bytes: value("ringmesh_send_queue_bytes"),
            pending: value("ringmesh_backlogged_connections"),
            stalled: value("ringmesh_stalled_connections"),
            mesh: rate("ringmesh_mesh_messages_total"),
            deliveries_a_send: messages_out.zip(sends).map(|(messages, sends)| messages / sends),
            silence: silences.reduce(f64::max),
        }
    }
}

impl Bus {
    fn new(change: Change<'_>, is_up: bool) -> Bus {
        let value = |name: &str| change.now.sum(name, &[]);
        let rate = |name: &str| change.rate(name, &[]);
        let lag = |quantile| change.quantile(quantile, "ringmesh_bus_lag_seconds", &[]);
        let looked_up = rate("ringmesh_bus_cache_hits_total").zip(rate("ringmesh_bus_cache_misses_total"));
        Bus {
            is_up,
            lag: (lag(0.5), lag(0.99)),
            batch: change.mean("ringmesh_bus_batch_messages"),
            unacked_bytes: value("ringmesh_bus_unacked_bytes"),
            nodes: value("ringmesh_bus_nodes"),
            registrations: value("ringmesh_bus_registrations"),
            lease: value("ringmesh_bus_lease_remaining_seconds"),
            cache_hits: looked_up
                .filter(|(hits, misses)| hits + misses > 0.0)
                .map(|(hits, misses)| hits / (hits + misses)),
            rerouted: rate("ringmesh_bus_rerouted_total"),
            overloaded: rate("ringmesh_bus_overloaded_total"),
            reconnects: value("ringmesh_bus_reconnects_total"),
            lost: value("ringmesh_bus_lost_total"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::exposition::Scrape;
    use super::*;
    use crate::metrics::{HostMetrics, NodeState, ShardMetrics, render};

    const NODE: NodeState<'static> = NodeState {
        id: "n",
        is_ready: true,
        connections_max: 10,
        started_unix_us: 5_000_000,
        now_us: 3_000_000,
        log_dropped: 0,
    };

    #[test]
    fn what_a_node_counts_is_what_is_seen() {
        let (shards, host) = ([ShardMetrics::default(), ShardMetrics::default()], HostMetrics::default());
        let scrape = || Scrape::parse(&render(&NODE, &[&shards[0], &shards[1]], &host)).expect("our own text");
        let before = scrape();
        shards[0].connections.set(3);
        shards[1].connections.set(4);
        shards[1].messages_in_ping.add(20);
        shards[1].messages_out_pong.add(20);
        shards[1].sends.add(5);
        shards[1].closes_too_slow.add(2);
        shards[1].cpu_us.set(1_000_000);
        shards[1].receive_to_send.record(Duration::from_micros(40), 20);
        host.cpu_us.set(1_200_000);
        let now = scrape();
        let view = View::new(Change::new(Some((&before, 2.0)), &now), Duration::from_secs(65));
        assert_eq!(view.node, Some(("n".to_owned(), env!("CARGO_PKG_VERSION").to_owned())));
        assert_eq!((view.uptime, view.is_ready), (Some(Duration::from_secs(60)), Some(true)));
        assert_eq!((view.total.connections, view.connections_max), (Some(7.0), Some(10.0)));
        assert_eq!((view.cpu, view.total.cpu, view.shards[1].cpu), (Some(0.6), Some(0.5), Some(0.5)));
        assert_eq!((view.shards[0].messages_in, view.shards[1].messages_in), (Some(0.0), Some(10.0)));
        assert_eq!(view.shards[1].deliveries_a_send, Some(4.0));
        assert_eq!((view.shards[0].p99, view.shards[1].p50), (None, Some(0.000_025)));
        assert!(view.closes.contains(&("too_slow".to_owned(), 1.0)), "{:?}", view.closes);
        assert_eq!(view.bus, None);
        let first = View::new(Change::new(None, &now), Duration::ZERO);
        assert_eq!((first.total.connections, first.total.messages_in), (Some(7.0), None));
    }

    #[test]
    fn a_bus_is_seen_when_there_is_one() {
        let text = |hits: u32, lag: u32| {
            format!(
                "ringmesh_bus_up 1\nringmesh_bus_nodes 3\nringmesh_bus_cache_hits_total {hits}\n\
                 ringmesh_bus_cache_misses_total 2\nringmesh_bus_lag_seconds_bucket{{le=\"0.001\"}} {lag}\n\
                 ringmesh_bus_lag_seconds_bucket{{le=\"+Inf\"}} {lag}\n"
            )
        };
        let [before, now] = [text(0, 0), text(8, 10)].map(|text| Scrape::parse(&text).expect("the test's text"));
        let bus = View::new(Change::new(Some((&before, 1.0)), &now), Duration::ZERO).bus.expect("a bus");
        assert_eq!((bus.is_up, bus.nodes, bus.cache_hits), (true, Some(3.0), Some(1.0)));
        assert_eq!(bus.lag, (Some(0.0005), Some(0.00099)));
        assert_eq!(bus.lost, None);
    }
}
