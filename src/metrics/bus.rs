//! What the bus thread counts. It is the only writer; without Redis none of it is shown.

use std::fmt::Write;
use std::time::Duration;

use super::{Cell, Kind, LATENCY_BOUNDS_US, Latency, Pulse, head, histogram};

/// One metric of the bus and the cells behind its label values.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    cells: &'static [(&'static str, CellOf)],
}

/// Where the bus keeps a cell.
type CellOf = fn(&BusMetrics) -> &Cell;

macro_rules! bus_metrics {
    ($($name:literal $kind:ident $help:literal { $($cell:ident = $label:literal),+ $(,)? })+) => {
        /// The cells of the bus, on cache lines of their own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct BusMetrics {
            $($(#[doc = concat!("`", $name, "` ", $label)] pub $cell: Cell,)+)+
            /// `ringmesh_bus_lag_seconds`
            pub lag: Latency,
            /// `ringmesh_bus_batch_messages`
            pub batch: Sizes,
            /// What the bus is at, for the watchdog. It has to beat every few seconds even when nothing happens.
            pub pulse: Pulse,
        }

        const FAMILIES: &[Family] = &[
            $(Family { name: $name, kind: Kind::$kind, help: $help, cells: &[$(($label, |bus| &bus.$cell)),+] }),+
        ];
    };
}

bus_metrics! {
    "ringmesh_bus_up" Gauge "1 while users can be registered with the other nodes." { up = "" }
    "ringmesh_bus_reconnects_total" Counter "Times the connection to Redis was made again." { reconnects = "" }
    "ringmesh_bus_messages_out_total" Counter "Messages for other nodes." {
        messages_out_unicast = "type=\"unicast\"",
        messages_out_broadcast = "type=\"broadcast\"",
        messages_out_contract = "type=\"contract\"",
    }
    "ringmesh_bus_messages_in_total" Counter "Messages from other nodes and from services." {
        messages_in_unicast = "type=\"unicast\"",
        messages_in_broadcast = "type=\"broadcast\"",
        messages_in_contract = "type=\"contract\"",
    }
    "ringmesh_bus_unacked_bytes" Gauge "Bytes sent to other nodes that have not acknowledged them." { unacked_bytes = "" }
    "ringmesh_bus_held_bytes" Gauge "Bytes of messages that have not arrived: they wait for the directory, or for another node's answer." { held_bytes = "" }
    "ringmesh_bus_resent_total" Counter "Messages sent to another node again." { resent = "" }
    "ringmesh_bus_overloaded_total" Counter "Messages of clients that the bus refused; their senders were told." {
        overloaded = "",
    }
    "ringmesh_bus_lost_total" Counter "Messages that were accepted and are known to be lost." { lost = "" }
    "ringmesh_bus_offline_total" Counter "Messages dropped because no node has their user." { offline = "" }
    "ringmesh_bus_invalid_total" Counter "What stood on channels and was no message." { invalid = "" }
    "ringmesh_bus_cache_hits_total" Counter "Messages whose user's node was known." { cache_hits = "" }
    "ringmesh_bus_cache_misses_total" Counter "Messages whose user's node had to be asked for." { cache_misses = "" }
    "ringmesh_bus_rerouted_total" Counter "Messages that followed a user to another node." { rerouted = "" }
    "ringmesh_bus_duplicates_total" Counter "Messages that came a second time by another way, and were dropped." {
        duplicates = "",
    }
    "ringmesh_bus_gaps_total" Counter "Envelopes of other nodes that came after one that was lost; that one is sent again." {
        gaps = "",
    }
    "ringmesh_bus_lease_remaining_seconds" Gauge "Until this node's lease lapses unless it is renewed." {
        lease_remaining = "",
    }
    "ringmesh_bus_nodes" Gauge "Nodes with a lease, this one included." { nodes = "" }
    "ringmesh_bus_foreign_nodes" Gauge "Nodes of other implementations." { foreign_nodes = "" }
    "ringmesh_bus_registrations" Gauge "Users of this node in the directory." { registrations = "" }
    "ringmesh_bus_reaped_total" Counter "Dead lives of nodes whose users this node took off the directory." { reaped = "" }
}

/// Upper bounds of [`Sizes`].
const SIZE_BOUNDS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096];

/// How many messages went together.
#[derive(Debug, Default)]
pub struct Sizes {
    counts: [Cell; SIZE_BOUNDS.len() + 1],
    sum: Cell,
}

impl Sizes {
    /// Counts one batch.
    pub fn record(&self, messages: u64) {
        self.counts[SIZE_BOUNDS.partition_point(|&bound| bound < messages)].add(1);
        self.sum.add(messages);
    }
}

impl BusMetrics {
    /// Sets how long the lease still lasts.
    pub fn set_lease_remaining(&self, remaining: Duration) {
        self.lease_remaining.set(remaining.as_secs());
    }
}

/// The Prometheus text of the bus.
pub fn render_bus(bus: &BusMetrics) -> String {
    let mut out = String::with_capacity(8192);
    for family in FAMILIES {
        head(&mut out, family.name, family.kind, family.help);
        for (label, cell) in family.cells {
            let _ = match label.is_empty() {
                true => writeln!(out, "{} {}", family.name, cell(bus).value()),
                false => writeln!(out, "{}{{{label}}} {}", family.name, cell(bus).value()),
            };
        }
    }
    let name = "ringmesh_bus_lag_seconds";
    head(&mut out, name, Kind::Histogram, "From publishing an envelope on one node until it was read on this one.");
    let bounds = LATENCY_BOUNDS_US.map(|bound| bound as f64 / 1e6);
    histogram(&mut out, name, "", &bounds, &bus.lag.counts, bus.lag.sum_us.value() as f64 / 1e6);
    let name = "ringmesh_bus_batch_messages";
    head(&mut out, name, Kind::Histogram, "Messages in an envelope to another node.");
    let bounds = SIZE_BOUNDS.map(|bound| bound as f64);
    histogram(&mut out, name, "", &bounds, &bus.batch.counts, bus.batch.sum.value() as f64);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_what_was_counted() {
        let bus = BusMetrics::default();
        bus.messages_out_contract.add(3);
        bus.lag.record(Duration::from_micros(300), 2);
        bus.batch.record(1);
        bus.batch.record(3);
        bus.batch.record(100_000);
        let text = render_bus(&bus);
        for line in [
            "ringmesh_bus_up 0",
            "ringmesh_bus_messages_out_total{type=\"contract\"} 3",
            "ringmesh_bus_lag_seconds_bucket{le=\"0.0002\"} 0",
            "ringmesh_bus_lag_seconds_bucket{le=\"0.0005\"} 2",
            "ringmesh_bus_lag_seconds_sum 0.0006",
            "ringmesh_bus_batch_messages_bucket{le=\"1\"} 1",
            "ringmesh_bus_batch_messages_bucket{le=\"4\"} 2",
            "ringmesh_bus_batch_messages_bucket{le=\"+Inf\"} 3",
            "ringmesh_bus_batch_messages_sum 100004",
            "ringmesh_bus_batch_messages_count 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
