//! What a run gave, drawn up from what the workers saw.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proc::MemorySample;
use crate::run::{Outcome, Usage};
use crate::scenario::Pairing;
use crate::stats::{Latencies, Summary};
use crate::threshold::Threshold;
use crate::timeline::Point;
use crate::verdict::{self, Verdict};

/// A run's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// A name that tells runs of a suite apart.
    pub name: String,
    /// The scenario.
    pub scenario: String,
    /// The command line that asked for it.
    pub command: Vec<String>,
    /// Connections wanted.
    pub connections_wanted: u32,
    /// Connections upgraded.
    pub connections_opened: u64,
    /// Connections that had gone and were upgraded again.
    pub connections_reopened: u64,
    /// Slow readers that the server gave up on.
    pub slow_closed: u64,
    /// Attempts that failed.
    pub connections_failed: u64,
    /// Connections that ended before the run did.
    pub connections_closed_early: u64,
    /// From the first connect until all were tried.
    pub connecting_seconds: f64,
    /// The measured window.
    pub window_seconds: f64,
    /// Messages received within the window.
    pub messages: u64,
    /// The same for each second.
    pub messages_per_second: f64,
    /// Their payloads, for each second.
    pub payload_bytes_per_second: f64,
    /// Messages a second that were asked for, in an open loop.
    pub rate_asked: Option<f64>,
    /// Messages a second that were sent on schedule, in an open loop.
    pub rate_sent: Option<f64>,
    /// Latencies by stage; stages without values are left out.
    pub latency: BTreeMap<String, Summary>,
    /// The message latencies' percentile curve: quantile and microseconds.
    pub curve: Vec<(f64, f64)>,
    /// One point a second.
    pub timeline: Vec<Point>,
    /// Loss, duplicates, order.
    pub truth: Truth,
    /// Who talks to whom, where that is a question.
    #[serde(default)]
    pub pairing: Option<Pairing>,
    /// What went wrong, and how often.
    pub errors: BTreeMap<String, u64>,
    /// All errors, lost, duplicated and reordered messages together: 0 in a good run.
    pub errors_total: u64,
    /// The server's CPU, when its process was named; with that of Redis, where there is one.
    pub server: Option<Server>,
    /// What of it Redis used.
    #[serde(default)]
    pub redis: Option<Server>,
    /// What the nodes' buses did, where a suite asked them.
    #[serde(default)]
    pub bus: Option<BusUse>,
    /// The generator's CPU.
    pub generator: Generator,
    /// Server and kernel memory.
    pub memory: Memory,
    /// Connections that the kernel dropped because a listener's queue was full.
    pub listen_drops: u64,
    /// What the run is worth.
    pub verdict: Verdict,
}

/// How a run was asked for, as far as its verdict depends on it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// A name that tells runs of a suite apart.
    pub name: String,
    /// The scenario.
    pub scenario: String,
    /// Connections.
    pub connections: u32,
    /// Messages a second that are to be sent, in an open loop.
    pub rate: Option<f64>,
    /// What must hold.
    pub thresholds: Vec<Threshold>,
}

/// What became of the messages of the whole run, warm-up and drain included.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Truth {
    /// Messages sent to one receiver each.
    pub sent: u64,
    /// Messages sent to everybody.
    pub broadcasts: u64,
    /// Different messages received.
    pub received: u64,
    /// Messages received by connections that come and go, or read slowly: none of them was counted on.
    pub received_extra: u64,
    /// Messages that never came.
    pub lost: u64,
    /// Messages that came again.
    pub duplicated: u64,
    /// Messages that came after a later one.
    pub reordered: u64,
    /// Messages whose content had changed.
    pub corrupt: u64,
    /// Messages of no use to the scenario.
    pub unexpected: u64,
    /// Pings of the server, all answered.
    pub server_pings: u64,
}

/// The server's CPU within the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    /// Seconds on a CPU.
    pub cpu_seconds: f64,
    /// Share of one CPU.
    pub cpu_percent: f64,
    /// Share of one CPU that its threads were ready for and did not get.
    pub wait_percent: f64,
    /// Messages for each second of CPU.
    pub messages_per_cpu_second: f64,
    /// CPU for each message.
    pub cpu_us_per_message: f64,
}

/// What nodes' metrics say of their buses, from the start of the nodes to the end of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BusUse {
    /// Envelopes with messages that were published from node to node.
    pub envelopes: f64,
    /// Messages in them.
    pub messages: f64,
    /// Messages that were sent again.
    pub resent: f64,
    /// Messages that the bus refused, its senders told.
    pub overloaded: f64,
}

/// The generator's CPU within the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generator {
    /// Its threads.
    pub threads: usize,
    /// Seconds on a CPU, all threads.
    pub cpu_seconds: f64,
    /// Share of one CPU, all threads.
    pub cpu_percent: f64,
    /// CPU and run-queue wait of the busiest thread, as a share of one CPU.
    pub busiest_thread_percent: f64,
}

/// Memory of the server and the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Before the first connection.
    pub before: MemorySample,
    /// With all connections, before the traffic.
    pub connected: MemorySample,
    /// At the end of the window.
    pub end: MemorySample,
    /// Server memory an open connection, at the end of the window.
    pub server_rss_bytes_per_connection: f64,
    /// Kernel slab an open connection, of both ends when they share a machine.
    pub slab_bytes_per_connection: f64,
}

impl Report {
    /// The latency that says most about a run, and which it is: that of messages, of coming back or of the one answer;
    /// where connecting is what the run is about, that of connecting.
    pub fn headline(&self) -> Option<(&'static str, Summary)> {
        let stages = match self.scenario.as_str() {
            "storm" | "ramp" => ["ready", "message", "resume", "first_reply"],
            _ => ["message", "resume", "ready", "first_reply"],
        };
        stages.into_iter().find_map(|stage| Some((stage, *self.latency.get(stage)?)))
    }

    /// Draws a run's result up.
    pub fn new(asked: &Asked, mut outcome: Outcome) -> Self {
        let lost = outcome.tally.lost();
        let tally = &mut outcome.tally;
        let curve = tally.message.curve();
        let stages: [(&str, &mut Latencies); 8] = [
            ("connect", &mut tally.connect),
            ("upgrade", &mut tally.upgrade),
            ("first_reply", &mut tally.first_reply),
            ("ready", &mut tally.ready),
            ("resume", &mut tally.resume),
            ("message", &mut tally.message),
            ("service", &mut tally.service),
            ("schedule_lag", &mut tally.lag),
        ];
        let latency = stages.into_iter().map(|(name, stage)| (name.to_owned(), stage.summary()));
        let latency = latency.filter(|(_, summary)| summary.count > 0).collect();
        let messages = tally.window_received;
        let per_second = |count: u64| count as f64 / outcome.window_seconds.max(1e-9);
        let truth = Truth {
            sent: tally.sent,
            broadcasts: tally.broadcasts,
            received: tally.received,
            received_extra: tally.received_extra,
            lost,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            corrupt: tally.corrupt,
            unexpected: tally.unexpected,
            server_pings: tally.server_pings,
        };
        let connection_errors = tally.failed + tally.closed_early;
        let message_errors = truth.lost + truth.duplicated + truth.reordered + truth.corrupt + truth.unexpected;
        let mut report = Self {
            name: asked.name.clone(),
            scenario: asked.scenario.clone(),
            command: std::env::args().collect(),
            connections_wanted: asked.connections,
            connections_opened: tally.opened,
            connections_reopened: tally.reopened,
            slow_closed: tally.slow_closed,
            connections_failed: tally.failed,
            connections_closed_early: tally.closed_early,
            connecting_seconds: outcome.connecting_seconds,
            window_seconds: outcome.window_seconds,
            messages,
            messages_per_second: per_second(messages),
            payload_bytes_per_second: per_second(tally.window_payload_bytes),
            rate_asked: asked.rate,
            rate_sent: asked.rate.map(|_| per_second(tally.window_sent)),
            latency,
            curve,
            timeline: std::mem::take(&mut outcome.timeline),
            truth,
            pairing: tally.pairing.take(),
            errors: std::mem::take(&mut tally.errors),
            errors_total: connection_errors + message_errors,
            server: together(outcome.server, outcome.redis).map(|usage| Server::new(usage, per_second(messages))),
            redis: outcome.redis.map(|usage| Server::new(usage, per_second(messages))),
            bus: None,
            generator: Generator::new(&outcome.workers),
            memory: Memory::new(&outcome),
            listen_drops: outcome.listen_drops,
            verdict: Verdict::default(),
        };
        report.verdict = verdict::judge(&report, &asked.thresholds);
        report
    }

    /// CPU that the server used for each open connection, in microseconds a second.
    pub fn server_cpu_us_per_connection_second(&self) -> Option<f64> {
        let server = self.server.as_ref()?;
        Some(server.cpu_percent / 100.0 * 1e6 / self.connections_opened.max(1) as f64)
    }
}

/// The server's use and that of its Redis.
fn together(server: Option<Usage>, redis: Option<Usage>) -> Option<Usage> {
    match (server, redis) {
        (Some(server), Some(redis)) => Some(server.and(redis)),
        (server, redis) => server.or(redis),
    }
}

impl Server {
    fn new(usage: Usage, messages_per_second: f64) -> Self {
        // Rates, not counts: the samples may lie some microseconds beside the window.
        let share = usage.cpu_seconds / usage.seconds.max(1e-9);
        Self {
            cpu_seconds: usage.cpu_seconds,
            cpu_percent: share * 100.0,
            wait_percent: usage.wait_seconds / usage.seconds.max(1e-9) * 100.0,
            messages_per_cpu_second: if share > 0.0 { messages_per_second / share } else { 0.0 },
            cpu_us_per_message: if messages_per_second > 0.0 { share / messages_per_second * 1e6 } else { 0.0 },
        }
    }
}

impl Generator {
    fn new(workers: &[Usage]) -> Self {
        let cpu_seconds = workers.iter().map(|usage| usage.cpu_seconds).sum::<f64>();
        let seconds = workers.iter().map(|usage| usage.seconds).fold(1e-9, f64::max);
        Self {
            threads: workers.len(),
            cpu_seconds,
            cpu_percent: cpu_seconds / seconds * 100.0,
            busiest_thread_percent: workers.iter().map(Usage::load_percent).fold(0.0, f64::max),
        }
    }
}

impl Memory {
    fn new(outcome: &Outcome) -> Self {
        let open = (outcome.tally.opened - outcome.tally.closed_early).max(1) as f64;
        let (before, end) = (outcome.memory_before, outcome.memory_end);
        let grown = |from: u64, to: u64| (to as f64 - from as f64) / open;
        Self {
            before,
            connected: outcome.memory_connected,
            end,
            server_rss_bytes_per_connection: grown(before.rss_bytes, end.rss_bytes),
            slab_bytes_per_connection: grown(before.slab_bytes, end.slab_bytes),
        }
    }
}

/// A report in which nothing happened, for tests to change.
#[cfg(test)]
pub fn fixture() -> Report {
    let asked = Asked {
        name: "fixture".to_owned(),
        scenario: "echo".to_owned(),
        connections: 1,
        rate: None,
        thresholds: Vec::new(),
    };
    let outcome = Outcome {
        tally: crate::stats::Tally::default(),
        timeline: Vec::new(),
        connecting_seconds: 1.0,
        window_seconds: 1.0,
        server: None,
        redis: None,
        workers: Vec::new(),
        memory_before: MemorySample::default(),
        memory_connected: MemorySample::default(),
        memory_end: MemorySample::default(),
        listen_drops: 0,
    };
    Report::new(&asked, outcome)
}
