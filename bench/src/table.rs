//! A report as a table for people.

use std::fmt::Write as _;

use crate::report::{Report, Server};
use crate::scenario::Pairs;

/// The table, with a line end behind every line.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    write_table(report, &mut out).expect("writing to a string does not fail");
    out
}

fn write_table(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(out, "scenario      {}", report.name)?;
    write!(
        out,
        "connections   {} of {} in {:.2} s ({:.0}/s), {} failed, {} closed early",
        report.connections_opened,
        report.connections_wanted,
        report.connecting_seconds,
        report.connections_opened as f64 / report.connecting_seconds.max(1e-9),
        report.connections_failed,
        report.connections_closed_early
    )?;
    if report.connections_reopened > 0 {
        write!(out, ", {} came back", report.connections_reopened)?;
    }
    if report.slow_closed > 0 {
        write!(out, ", {} slow readers given up by the server", report.slow_closed)?;
    }
    writeln!(out)?;
    write!(
        out,
        "messages      {} in {:.2} s = {:.0}/s, {:.1} MB/s of payload",
        report.messages,
        report.window_seconds,
        report.messages_per_second,
        report.payload_bytes_per_second / 1e6
    )?;
    if let (Some(asked), Some(sent)) = (report.rate_asked, report.rate_sent) {
        write!(out, "; asked {asked:.0}/s, sent {sent:.0}/s")?;
    }
    writeln!(out)?;
    if let Some(pairing) = &report.pairing {
        let pairs = match pairing.pairs {
            Pairs::Same => "of one shard",
            Pairs::Other => "of two shards",
            Pairs::Mixed => "mixed: on whichever shards chance put them",
        };
        write!(out, "pairs         {} {pairs}, {} connections alone", pairing.made, pairing.alone)?;
        if !pairing.by_shard.is_empty() {
            write!(out, "; connections by shard {:?}", pairing.by_shard)?;
        }
        writeln!(out)?;
    }
    write_machines(report, out)?;
    let truth = &report.truth;
    writeln!(
        out,
        "truth         sent {} and {} broadcasts, received {} and {} extra, lost {}, duplicated {}, reordered {}, \
         corrupt {}, unexpected {}",
        truth.sent,
        truth.broadcasts,
        truth.received,
        truth.received_extra,
        truth.lost,
        truth.duplicated,
        truth.reordered,
        truth.corrupt,
        truth.unexpected
    )?;
    if report.listen_drops > 0 {
        writeln!(out, "listen drops  {}", report.listen_drops)?;
    }
    for (name, count) in &report.errors {
        writeln!(out, "error         {count} x {name}")?;
    }
    writeln!(out, "latency, ms        count       p50       p90       p99     p99.9    p99.99       max")?;
    for (name, summary) in &report.latency {
        write!(out, "  {name:<12} {:>9}", summary.count)?;
        let columns =
            [summary.p50_us, summary.p90_us, summary.p99_us, summary.p99_9_us, summary.p99_99_us, summary.max_us];
        for micros in columns {
            write!(out, " {:>9.3}", micros / 1_000.0)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "verdict       {}", report.verdict)
}

/// Which part of the server's CPU was Redis', and what travelled through it.
fn write_redis(report: &Report, server: &Server, out: &mut String) -> std::fmt::Result {
    let Some(redis) = &report.redis else { return Ok(()) };
    writeln!(
        out,
        "of it         nodes {:.1} % CPU, {:.3} us a message; Redis {:.1} % CPU, {:.3} us a message",
        server.cpu_percent - redis.cpu_percent,
        server.cpu_us_per_message - redis.cpu_us_per_message,
        redis.cpu_percent,
        redis.cpu_us_per_message
    )?;
    match &report.bus {
        Some(bus) => writeln!(
            out,
            "bus           {:.0} messages in {:.0} envelopes, {:.1} in each; {:.0} sent again, {:.0} refused",
            bus.messages,
            bus.envelopes,
            bus.messages / bus.envelopes.max(1.0),
            bus.resent,
            bus.overloaded
        ),
        None => Ok(()),
    }
}

fn write_machines(report: &Report, out: &mut String) -> std::fmt::Result {
    if let Some(server) = &report.server {
        write!(
            out,
            "server        {:.1} % CPU (+{:.1} % waiting), {:.3} CPU-seconds",
            server.cpu_percent, server.wait_percent, server.cpu_seconds
        )?;
        if report.messages > 0 {
            write!(
                out,
                ": {:.0} messages a CPU-second, {:.3} us a message",
                server.messages_per_cpu_second, server.cpu_us_per_message
            )?;
        }
        let idle_us = report.server_cpu_us_per_connection_second().unwrap_or_default();
        writeln!(out, "; {idle_us:.2} us a connection and second")?;
        write_redis(report, server, out)?;
        let memory = &report.memory;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        writeln!(
            out,
            "memory        server RSS {:.1} -> {:.1} -> {:.1} MiB, {:.0} B a connection; kernel slab {:.0} B a \
             connection; cgroup {:.1} MiB",
            mib(memory.before.rss_bytes),
            mib(memory.connected.rss_bytes),
            mib(memory.end.rss_bytes),
            memory.server_rss_bytes_per_connection,
            memory.slab_bytes_per_connection,
            mib(memory.end.cgroup_bytes)
        )?;
    }
    let generator = &report.generator;
    writeln!(
        out,
        "generator     {} thread(s), {:.1} % CPU, busiest thread {:.1} % with its waiting",
        generator.threads, generator.cpu_percent, generator.busiest_thread_percent
    )
}
