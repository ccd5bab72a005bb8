//! What a run gave, as a table for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::proc::MemorySample;
use crate::run::{Outcome, Usage};
use crate::stats::Summary;

/// A run's result.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// The command line that asked for it.
    pub command: Vec<String>,
    /// Connections wanted.
    pub connections_wanted: u32,
    /// Connections upgraded.
    pub connections_opened: u64,
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
    /// Latencies by stage; stages without values are left out.
    pub latency: BTreeMap<&'static str, Summary>,
    /// Loss, duplicates, order.
    pub truth: Truth,
    /// What went wrong, and how often.
    pub errors: BTreeMap<String, u64>,
    /// All errors, lost, duplicated and reordered messages together: 0 in a good run.
    pub errors_total: u64,
    /// The server's CPU, when its process was named.
    pub server: Option<Server>,
    /// The generator's CPU.
    pub generator: Generator,
    /// Server and kernel memory.
    pub memory: Memory,
    /// Connections that the kernel dropped because a listener's queue was full.
    pub listen_drops: u64,
}

/// What became of the messages of the whole run, warm-up and drain included.
#[derive(Debug, Serialize)]
pub struct Truth {
    /// Messages sent.
    pub sent: u64,
    /// Different messages received.
    pub received: u64,
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
#[derive(Debug, Serialize)]
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

/// The generator's CPU within the window.
#[derive(Debug, Serialize)]
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
#[derive(Debug, Serialize)]
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
    /// Draws a run's result up.
    pub fn new(scenario: &str, connections_wanted: u32, mut outcome: Outcome) -> Self {
        let tally = &mut outcome.tally;
        let stages = [
            ("connect", &mut tally.connect),
            ("upgrade", &mut tally.upgrade),
            ("first_reply", &mut tally.first_reply),
            ("ready", &mut tally.ready),
            ("message", &mut tally.message),
        ];
        let latency = stages.into_iter().map(|(name, stage)| (name, stage.summary()));
        let latency = latency.filter(|(_, summary)| summary.count > 0).collect();
        let messages = tally.window_received;
        let per_second = |count: u64| count as f64 / outcome.window_seconds.max(1e-9);
        let truth = Truth {
            sent: tally.sent,
            received: tally.received,
            lost: outcome.lost,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            corrupt: tally.corrupt,
            unexpected: tally.unexpected,
            server_pings: tally.server_pings,
        };
        let connection_errors = tally.failed + tally.closed_early;
        let message_errors = truth.lost + truth.duplicated + truth.reordered + truth.corrupt + truth.unexpected;
        Self {
            scenario: scenario.to_owned(),
            command: std::env::args().collect(),
            connections_wanted,
            connections_opened: tally.opened,
            connections_failed: tally.failed,
            connections_closed_early: tally.closed_early,
            connecting_seconds: outcome.connecting_seconds,
            window_seconds: outcome.window_seconds,
            messages,
            messages_per_second: per_second(messages),
            payload_bytes_per_second: per_second(tally.window_payload_bytes),
            latency,
            truth,
            errors: std::mem::take(&mut tally.errors),
            errors_total: connection_errors + message_errors,
            server: outcome.server.map(|usage| Server::new(usage, per_second(messages))),
            generator: Generator::new(&outcome.workers),
            memory: Memory::new(&outcome),
            listen_drops: outcome.listen_drops,
        }
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut out = String::new();
        self.write_table(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let Self { connections_wanted, connections_opened, connections_failed, connections_closed_early, .. } = self;
        writeln!(out, "scenario      {}", self.scenario)?;
        writeln!(
            out,
            "connections   {connections_opened} of {connections_wanted} in {:.2} s ({:.0}/s), {connections_failed} \
             failed, {connections_closed_early} closed early",
            self.connecting_seconds,
            *connections_opened as f64 / self.connecting_seconds.max(1e-9)
        )?;
        writeln!(
            out,
            "messages      {} in {:.2} s = {:.0}/s, {:.1} MB/s of payload",
            self.messages,
            self.window_seconds,
            self.messages_per_second,
            self.payload_bytes_per_second / 1e6
        )?;
        if let Some(server) = &self.server {
            writeln!(
                out,
                "server        {:.1} % CPU (+{:.1} % waiting), {:.3} CPU-seconds: {:.0} messages a CPU-second, \
                 {:.3} us a message",
                server.cpu_percent,
                server.wait_percent,
                server.cpu_seconds,
                server.messages_per_cpu_second,
                server.cpu_us_per_message
            )?;
            let memory = &self.memory;
            let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
            writeln!(
                out,
                "memory        server RSS {:.1} -> {:.1} -> {:.1} MiB, {:.0} B a connection; kernel slab {:.0} B a \
                 connection",
                mib(memory.before.rss_bytes),
                mib(memory.connected.rss_bytes),
                mib(memory.end.rss_bytes),
                memory.server_rss_bytes_per_connection,
                memory.slab_bytes_per_connection
            )?;
        }
        let generator = &self.generator;
        writeln!(
            out,
            "generator     {} thread(s), {:.1} % CPU, busiest thread {:.1} % with its waiting",
            generator.threads, generator.cpu_percent, generator.busiest_thread_percent
        )?;
        let truth = &self.truth;
        writeln!(
            out,
            "truth         sent {}, received {}, lost {}, duplicated {}, reordered {}, corrupt {}, unexpected {}",
            truth.sent, truth.received, truth.lost, truth.duplicated, truth.reordered, truth.corrupt, truth.unexpected
        )?;
        if self.listen_drops > 0 {
            writeln!(out, "listen drops  {}", self.listen_drops)?;
        }
        for (name, count) in &self.errors {
            writeln!(out, "error         {count} x {name}")?;
        }
        writeln!(out, "latency, ms        count       p50       p90       p99     p99.9    p99.99       max")?;
        for (name, summary) in &self.latency {
            write!(out, "  {name:<12} {:>9}", summary.count)?;
            let columns =
                [summary.p50_us, summary.p90_us, summary.p99_us, summary.p99_9_us, summary.p99_99_us, summary.max_us];
            for micros in columns {
                write!(out, " {:>9.3}", micros / 1_000.0)?;
            }
            writeln!(out)?;
        }
        Ok(())
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
        let busiest = workers.iter().map(|usage| (usage.cpu_seconds + usage.wait_seconds) / usage.seconds.max(1e-9));
        let cpu_seconds = workers.iter().map(|usage| usage.cpu_seconds).sum::<f64>();
        let seconds = workers.iter().map(|usage| usage.seconds).fold(1e-9, f64::max);
        Self {
            threads: workers.len(),
            cpu_seconds,
            cpu_percent: cpu_seconds / seconds * 100.0,
            busiest_thread_percent: busiest.fold(0.0, f64::max) * 100.0,
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
