//! What the host must give before a node starts, each lack with its remedy.
//!
//! `host` looks (and raises the soft limits to the hard ones, which needs no privilege); everything here only judges.

mod host;

use std::fmt;

pub use host::{Host, Limit, RingRefusal};

use crate::config::{Config, size_text};

/// Looks at this host, raises its soft limits, and judges it.
pub fn run(config: &Config) -> Report {
    check(config, &Host::prepare())
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// A node starts, and will fall short of its settings under load.
    Warning,
    /// A node cannot start, or is never ready.
    Fatal,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What the host has.
    pub found: String,
    /// What the node needs.
    pub wanted: String,
    /// What to do about it; empty when nothing is to be done.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { what, found, wanted, remedy, .. } = self;
        write!(f, "{what}: {found}; wanted: {wanted}")?;
        if remedy.is_empty() { Ok(()) } else { write!(f, ": {remedy}") }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In the order in which a lack would bite.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst severity.
    pub fn severity(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    /// The findings of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity == severity)
    }
}

/// The table of `ringmesh preflight`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { what, severity, found, wanted, remedy } in &self.findings {
            let mark = match severity {
                Severity::Ok => "ok     ",
                Severity::Warning => "WARNING",
                Severity::Fatal => "FATAL  ",
            };
            writeln!(f, "{mark}  {what:12}  {found}\n{:23}wanted: {wanted}", "")?;
            if !remedy.is_empty() {
                writeln!(f, "{:23}remedy: {remedy}", "")?;
            }
        }
        Ok(())
    }
}

/// The oldest kernel with all that the ring needs: DEFER_TASKRUN came with it.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// glommio refuses to start an executor below it.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Descriptors that one shard needs beside its connections, which take none: rings, eventfds, timers, the listener.
const DESCRIPTORS_PER_SHARD: u64 = 16;
/// Descriptors of the process: standard streams, the admin listener and its clients, the bus.
const DESCRIPTORS_OF_PROCESS: u64 = 64;

/// Slots that a shard keeps for accepts in flight.
const SLOTS_IN_RESERVE: u64 = 64;

/// Bytes of an idle connection in the kernel: an established socket and what a ring keeps for its armed receive.
const KERNEL_BYTES_PER_CONNECTION: u64 = 4_300;
/// Bytes of an idle connection in this process.
const USER_BYTES_PER_CONNECTION: u64 = 512;

/// Judges a host by what a configuration needs of it.
pub fn check(config: &Config, host: &Host) -> Report {
    let findings = vec![
        kernel(host),
        io_uring(host),
        memlock(host),
        nofile(config, host),
        cores(config, host),
        memory(config, host),
    ];
    Report { findings: findings.into_iter().chain([backlog(config, host)]).chain(conntrack(config, host)).collect() }
}

fn kernel(host: &Host) -> Finding {
    let (major, minor) = KERNEL_MIN;
    let severity = match kernel_version(&host.kernel_release) {
        Some(version) if version < KERNEL_MIN => Severity::Fatal,
        Some(_) => Severity::Ok,
        // The ring that is set up below is the better witness.
        None => Severity::Warning,
    };
    let remedy = format!("boot a kernel of at least {major}.{minor}, such as that of Debian 12 or Ubuntu 24.04");
    judged("kernel", severity, host.kernel_release.clone(), format!("{major}.{minor} or newer"), remedy)
}

/// `6.1.0-13-amd64` is (6, 1).
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn io_uring(host: &Host) -> Finding {
    let wanted = "a ring with SINGLE_ISSUER and DEFER_TASKRUN".to_owned();
    let Some(refusal) = &host.ring_refusal else {
        return judged("io_uring", Severity::Ok, "a ring was set up".to_owned(), wanted, String::new());
    };
    let found = match host.io_uring_disabled {
        Some(level) if level > 0 => format!("{refusal}; kernel.io_uring_disabled = {level}"),
        _ => refusal.to_string(),
    };
    let remedy = match (refusal.error.kind, host.io_uring_disabled) {
        (_, Some(1)) => "sysctl -w kernel.io_uring_disabled=0, or run the node in the group of \
                         kernel.io_uring_group"
            .to_owned(),
        (_, Some(level)) if level > 1 => "sysctl -w kernel.io_uring_disabled=0".to_owned(),
        (std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::Unsupported, _) => {
            "in a container, allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile, which \
             the default profiles of Docker and containerd forbid; in a unit, take them out of SystemCallFilter="
                .to_owned()
        }
        (std::io::ErrorKind::InvalidInput, _) => "boot a newer kernel".to_owned(),
        (std::io::ErrorKind::OutOfMemory, _) => {
            "give more memory, or a higher memlock limit: LimitMEMLOCK=8M in the unit".to_owned()
        }
        _ => "look at the kernel's log: the error is none that a setting explains".to_owned(),
    };
    judged("io_uring", Severity::Fatal, found, wanted, remedy)
}

fn memlock(host: &Host) -> Finding {
    let severity = if host.memlock.soft >= MEMLOCK_BYTES_MIN { Severity::Ok } else { Severity::Fatal };
    let wanted = format!("{} or more", size_text(MEMLOCK_BYTES_MIN));
    let remedy = "LimitMEMLOCK=8M in the unit, --ulimit memlock=8388608 in Docker, or ulimit -l 8192".to_owned();
    judged("memlock", severity, host.memlock.describe(size_text), wanted, remedy)
}

fn nofile(config: &Config, host: &Host) -> Finding {
    let least = DESCRIPTORS_OF_PROCESS + DESCRIPTORS_PER_SHARD * config.shards as u64;
    let severity = if host.nofile.soft >= least { Severity::Ok } else { Severity::Fatal };
    // A connection takes a slot of its shard's ring instead of a descriptor, but the same limit caps each ring's slots.
    let slots = u64::from(config.connections_max).div_ceil(config.shards as u64) + SLOTS_IN_RESERVE;
    let rings = slots.div_ceil(host.nofile.soft.max(1));
    let found = match rings {
        1 => host.nofile.describe(|limit| limit.to_string()),
        _ => {
            format!("{}, which makes {rings} rings a shard at the cap", host.nofile.describe(|limit| limit.to_string()))
        }
    };
    let wanted = format!("{least} or more; {slots} to have one ring a shard");
    let remedy = format!("LimitNOFILE={0} in the unit, --ulimit nofile={0} in Docker", slots.max(least));
    judged("nofile", severity, found, wanted, remedy)
}

fn cores(config: &Config, host: &Host) -> Finding {
    let severity = if config.shards <= host.cores { Severity::Ok } else { Severity::Warning };
    let remedy = format!("--shards {}: shards that share a core wait for each other", host.cores);
    judged("cores", severity, format!("{} usable", host.cores), format!("{} for the shards", config.shards), remedy)
}

fn memory(config: &Config, host: &Host) -> Finding {
    let per_connection = KERNEL_BYTES_PER_CONNECTION + USER_BYTES_PER_CONNECTION;
    let idle = u64::from(config.connections_max) * per_connection;
    let queued = (config.shard_queue_bytes_max as u64).saturating_mul(config.shards as u64);
    let wanted = idle.saturating_add(queued);
    let severity = if host.memory_bytes_available >= wanted { Severity::Ok } else { Severity::Warning };
    let found = match &host.memory_bounded_by {
        Some(bound) => format!("{} available, bounded by {bound}", mebibytes(host.memory_bytes_available)),
        None => format!("{} available", mebibytes(host.memory_bytes_available)),
    };
    let wanted = format!(
        "{}: {} connections x {per_connection} bytes when idle ({KERNEL_BYTES_PER_CONNECTION} of them in the kernel, seen \
         in neither RSS nor top), and {} of send queues at most",
        mebibytes(wanted),
        config.connections_max,
        mebibytes(queued)
    );
    let remedy = "more memory, or a lower --connections-max or --shard-queue-bytes-max".to_owned();
    judged("memory", severity, found, wanted, remedy)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn backlog(config: &Config, host: &Host) -> Finding {
    let severity = if config.backlog <= host.somaxconn { Severity::Ok } else { Severity::Warning };
    let remedy = format!(
        "sysctl -w net.core.somaxconn={} (in a container: of its network namespace), or a lower --backlog",
        config.backlog
    );
    let found = format!("net.core.somaxconn = {}, which silently bounds it", host.somaxconn);
    judged("backlog", severity, found, format!("{} a shard", config.backlog), remedy)
}

/// Only where the kernel tracks connections at all.
fn conntrack(config: &Config, host: &Host) -> Option<Finding> {
    let entries = host.conntrack_max?;
    let is_full = host.conntrack_count.is_some_and(|used| used > entries / 10 * 9);
    let has_room = entries > u64::from(config.connections_max) && !is_full;
    let severity = if has_room { Severity::Ok } else { Severity::Warning };
    let remedy = format!(
        "exempt the port (nft: notrack), or sysctl -w net.netfilter.nf_conntrack_max={}: at the limit the firewall drops \
         new connections",
        (u64::from(config.connections_max) * 5 / 2).max(if is_full { 2 * entries } else { 0 })
    );
    let used = host.conntrack_count.map_or_else(String::new, |used| format!(", {used} of them in use"));
    let found = format!("net.netfilter.nf_conntrack_max = {entries}{used}");
    let wanted = format!("more than {} connections, a tenth of it free", config.connections_max);
    Some(judged("conntrack", severity, found, wanted, remedy))
}

/// A finding; where nothing is wrong it has no remedy.
pub(crate) fn judged(what: &'static str, severity: Severity, found: String, wanted: String, remedy: String) -> Finding {
    let remedy = if severity == Severity::Ok { String::new() } else { remedy };
    Finding { what, severity, found, wanted, remedy }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::host::RingError;
    use super::*;
    use crate::config::{Machine, Sources, resolve};

    fn config(flags: &[(&'static str, &str)]) -> Config {
        let flags = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        let machine = Machine { cores: 4, memory_bytes: 8 << 30, somaxconn: 4096, host_name: None };
        resolve(&Sources { flags, ..Sources::default() }, &machine).expect("the flags are right").config
    }

    /// A host that lacks nothing.
    fn host() -> Host {
        Host {
            kernel_release: "6.1.0-13-amd64".to_owned(),
            io_uring_disabled: Some(0),
            ring_refusal: None,
            memlock: Limit { soft: 8 << 20, hard: 8 << 20, before: 8 << 20 },
            nofile: Limit { soft: 1 << 20, hard: 1 << 20, before: 1024 },
            cores: 4,
            memory_bytes_available: 8 << 30,
            memory_bounded_by: None,
            somaxconn: 4096,
            conntrack_max: None,
            conntrack_count: None,
        }
    }

    fn only_lack(host: &Host, flags: &[(&'static str, &str)]) -> Finding {
        let report = check(&config(flags), host);
        let lacks: Vec<_> = report.findings.into_iter().filter(|finding| finding.severity > Severity::Ok).collect();
        assert_eq!(lacks.len(), 1, "{lacks:?}");
        lacks.into_iter().next().expect("there is one")
    }

    fn refused(call: &'static str, kind: ErrorKind) -> Option<RingRefusal> {
        Some(RingRefusal { call, error: RingError { kind, text: "no".to_owned() } })
    }

    #[test]
    fn a_host_that_lacks_nothing_needs_no_remedy() {
        let report = check(&config(&[]), &host());
        assert_eq!(report.severity(), Severity::Ok, "{report}");
        assert!(report.findings.iter().all(|finding| finding.remedy.is_empty()));
        assert!(report.to_string().contains("soft limit raised from 1024"), "{report}");
    }

    #[test]
    fn kernels_before_6_1_are_refused() {
        for (release, severity) in [
            ("5.15.0-91-generic", Severity::Fatal),
            ("6.0.12", Severity::Fatal),
            ("6.1", Severity::Ok),
            ("7.0", Severity::Ok),
        ] {
            let report = check(&config(&[]), &Host { kernel_release: release.to_owned(), ..host() });
            assert_eq!(report.severity(), severity, "{release}");
        }
    }

    #[test]
    fn a_refused_ring_names_call_and_remedy() {
        let seccomp = Host { ring_refusal: refused("io_uring_setup", ErrorKind::PermissionDenied), ..host() };
        let finding = only_lack(&seccomp, &[]);
        assert_eq!(finding.severity, Severity::Fatal);
        assert!(finding.found.starts_with("io_uring_setup: no"), "{finding}");
        assert!(finding.remedy.contains("seccomp"), "{finding}");
        let disabled = Host { io_uring_disabled: Some(2), ..seccomp };
        let finding = only_lack(&disabled, &[]);
        assert_eq!(finding.remedy, "sysctl -w kernel.io_uring_disabled=0");
        assert!(finding.found.ends_with("kernel.io_uring_disabled = 2"), "{finding}");
    }

    #[test]
    fn too_little_memlock_is_fatal() {
        let host = Host { memlock: Limit { soft: 64 << 10, hard: 64 << 10, before: 64 << 10 }, ..host() };
        let finding = only_lack(&host, &[]);
        assert_eq!(finding.severity, Severity::Fatal);
        assert!(
            finding.to_string().starts_with("memlock: 64KiB; wanted: 512KiB or more: LimitMEMLOCK=8M"),
            "{finding}"
        );
    }

    #[test]
    fn a_low_nofile_makes_more_rings_and_only_a_tiny_one_is_fatal() {
        let with = |soft| Host { nofile: Limit { soft, hard: soft, before: soft }, ..host() };
        let report = check(&config(&[]), &with(20_000));
        assert_eq!(report.severity(), Severity::Ok);
        assert!(report.to_string().contains("20000, which makes 2 rings a shard at the cap"), "{report}");
        let finding = only_lack(&with(100), &[]);
        assert_eq!((finding.what, finding.severity), ("nofile", Severity::Fatal));
    }

    #[test]
    fn memory_counts_the_kernel_and_the_queues() {
        let host = Host { memory_bytes_available: 1 << 30, memory_bounded_by: Some("memory.max".to_owned()), ..host() };
        // 100,000 x 4,812 bytes are 458 MiB; 4 shards x 128 MiB are 512 MiB more.
        let flags = [("shard_queue_bytes_max", "128MiB")];
        assert_eq!(check(&config(&flags), &host).severity(), Severity::Ok);
        let finding = only_lack(&host, &[("shard_queue_bytes_max", "160MiB")]);
        assert_eq!((finding.what, finding.severity), ("memory", Severity::Warning));
        assert!(finding.wanted.starts_with("1098 MiB: 100000 connections x 4812 bytes"), "{finding}");
        assert!(finding.found.ends_with("bounded by memory.max"), "{finding}");
    }

    #[test]
    fn settings_beyond_the_host_are_warned_of() {
        assert_eq!(only_lack(&host(), &[("shards", "5"), ("shard_queue_bytes_max", "1MiB")]).what, "cores");
        assert_eq!(only_lack(&host(), &[("backlog", "5000")]).what, "backlog");
        let tracked = Host { conntrack_max: Some(65_536), ..host() };
        assert!(only_lack(&tracked, &[]).remedy.contains("nf_conntrack_max=250000"));
        let full = Host { conntrack_max: Some(300_000), conntrack_count: Some(290_000), ..host() };
        assert!(only_lack(&full, &[]).found.ends_with("300000, 290000 of them in use"));
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let host = Host::prepare();
        assert!(kernel_version(&host.kernel_release).is_some(), "{host:?}");
        assert_eq!(host.nofile.soft, host.nofile.hard, "the soft limit was raised");
        assert!(host.memory_bytes_available > 0);
    }
}
