//! What the host shows: limits, memory, the listen queues' overflows. Read from /proc, off the shards' threads.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::metrics::HostMetrics;

/// The soft limit of open files, which also caps the slots of a ring.
pub fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Writes what the host shows now.
pub fn sample(metrics: &HostMetrics) {
    if let Ok(netstat) = fs::read_to_string("/proc/net/netstat") {
        for (name, cell) in [("ListenOverflows", &metrics.listen_overflows), ("ListenDrops", &metrics.listen_drops)] {
            if let Some(value) = netstat_value(&netstat, "TcpExt:", name) {
                cell.set(value);
            }
        }
    }
    if let Some(resident_bytes) = fs::read_to_string("/proc/self/statm").ok().as_deref().and_then(resident_bytes) {
        metrics.resident_bytes.set(resident_bytes);
    }
}

/// Each protocol has a line of names and, below it, a line of values.
fn netstat_value(netstat: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with(protocol));
    let at = lines.next()?.split_whitespace().position(|found| found == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// proc(5): the second field counts resident pages.
fn resident_bytes(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netstat_is_two_lines_a_protocol() {
        let text = "TcpExt: A ListenOverflows B\nTcpExt: 1 23 4\nIpExt: X\nIpExt: 9\n";
        assert_eq!(netstat_value(text, "TcpExt:", "ListenOverflows"), Some(23));
        assert_eq!(netstat_value(text, "TcpExt:", "Absent"), None);
        assert_eq!(resident_bytes("100 2 3"), Some(2 * rustix::param::page_size() as u64));
    }

    #[test]
    fn this_host_can_be_sampled() {
        let metrics = HostMetrics::default();
        sample(&metrics);
        assert!(metrics.resident_bytes.value() > 0);
    }
}
