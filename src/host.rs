//! What the host shows: limits, memory, processor time, the listen queues' overflows. Read from /proc, off the shards'
//! threads.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::config::machine::{Machine, cgroup_limits, memory_info, read_value};
use crate::metrics::{HostMetrics, ShardMetrics};

/// The soft limit of open files, which also caps the slots of a ring.
pub fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The least of what the host and each cgroup above this process still have, in bytes, and the file of the cgroup that
/// has it.
pub fn memory_available() -> (u64, Option<String>) {
    let host = (memory_info("MemAvailable").unwrap_or(0), None);
    let rooms = cgroup_limits("memory.max").filter_map(|limit| {
        let used: u64 = read_value(limit.folder.join("memory.current"))?;
        Some((limit.bytes.saturating_sub(used), Some(limit.folder.join("memory.max").display().to_string())))
    });
    rooms.fold(host, |least, room| if room.0 < least.0 { room } else { least })
}

/// Connections that came in since the host started, and how many found their listen queue full.
pub fn listen_queues() -> Option<(u64, u64)> {
    let snmp = fs::read_to_string("/proc/net/snmp").ok()?;
    let netstat = fs::read_to_string("/proc/net/netstat").ok()?;
    netstat_value(&snmp, "Tcp:", "PassiveOpens").zip(netstat_value(&netstat, "TcpExt:", "ListenOverflows"))
}

/// Writes what the host shows now, and the processor time of each shard.
pub fn sample(metrics: &HostMetrics, shards: &[&ShardMetrics]) {
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
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    metrics.cpu_us.set(cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1000);
    metrics.memory_bytes.set(Machine::read().memory_bytes);
    metrics.memory_bytes_available.set(memory_available().0);
    sample_shards(shards);
}

/// Sums up the threads of each shard. Without the scheduler's accounts in the kernel it stays 0.
fn sample_shards(shards: &[&ShardMetrics]) {
    let mut cpu_us = vec![0; shards.len()];
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if let Some(total) = shard_of_thread(&read("comm")).and_then(|shard| cpu_us.get_mut(shard)) {
            *total += run_time_us(&read("schedstat")).unwrap_or(0);
        }
    }
    for (shard, cpu_us) in shards.iter().zip(cpu_us) {
        // A counter never falls, not even when a helper thread of the executor has ended.
        shard.cpu_us.set(cpu_us.max(shard.cpu_us.value()));
    }
}

/// glommio puts a number behind the name of an executor: `shard-2-3` is one of shard 2.
fn shard_of_thread(name: &str) -> Option<usize> {
    name.trim_end().strip_prefix("shard-")?.split('-').next()?.parse().ok()
}

/// proc(5): the first field of schedstat is the time spent running, in nanoseconds.
fn run_time_us(schedstat: &str) -> Option<u64> {
    Some(schedstat.split_whitespace().next()?.parse::<u64>().ok()? / 1000)
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
        sample(&metrics, &[]);
        for cell in [&metrics.resident_bytes, &metrics.cpu_us, &metrics.memory_bytes, &metrics.memory_bytes_available] {
            assert!(cell.value() > 0, "{metrics:?}");
        }
        assert!(listen_queues().is_some());
    }

    #[test]
    fn threads_belong_to_the_shard_in_their_name() {
        for (name, shard) in
            [("shard-0-1\n", Some(0)), ("shard-12-13\n", Some(12)), ("signals\n", None), ("shard", None)]
        {
            assert_eq!(shard_of_thread(name), shard, "{name}");
        }
        assert_eq!(run_time_us("20873265 53405154 107\n"), Some(20_873));
        assert_eq!(run_time_us(""), None);
    }
}
