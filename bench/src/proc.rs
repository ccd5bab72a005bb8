//! What /proc says about the server, the generator and the machine.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys;

/// What a set of processes had used up at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessSample {
    /// When, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// Time on a CPU of all threads, in nanoseconds; kernel workers of io_uring among them.
    pub cpu_ns: u64,
    /// Time that threads were ready and had no CPU.
    pub wait_ns: u64,
}

/// CPU use of these processes so far. Processes that are gone count nothing.
pub fn sample_processes(pids: &[u32]) -> ProcessSample {
    let mut sample = ProcessSample { at_ns: sys::now_ns(), ..ProcessSample::default() };
    for pid in pids {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let (cpu_ns, wait_ns) = read_schedstat(&task.path()).unwrap_or_default();
            sample.cpu_ns += cpu_ns;
            sample.wait_ns += wait_ns;
        }
    }
    sample
}

/// CPU use of one thread of this process so far.
pub fn sample_own_thread(thread: u32) -> ProcessSample {
    let at_ns = sys::now_ns();
    let (cpu_ns, wait_ns) = read_schedstat(Path::new(&format!("/proc/self/task/{thread}"))).unwrap_or_default();
    ProcessSample { at_ns, cpu_ns, wait_ns }
}

fn read_schedstat(task: &Path) -> Option<(u64, u64)> {
    parse_schedstat(&fs::read_to_string(task.join("schedstat")).ok()?)
}

fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace().map_while(|field| field.parse().ok());
    Some((fields.next()?, fields.next()?))
}

/// Memory at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct MemorySample {
    /// Resident memory of the processes asked about.
    pub rss_bytes: u64,
    /// Kernel slab of the whole machine: sockets of both ends are in there.
    pub slab_bytes: u64,
    /// What the cgroup of the first process is charged, kernel memory included; 0 where there is no cgroup v2 of its own.
    pub cgroup_bytes: u64,
}

/// Memory of these processes and of the kernel now, exactly: this walks the page tables of the processes.
pub fn sample_memory(pids: &[u32]) -> MemorySample {
    let exact = |pid: &u32| {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
        smaps.and_then(|text| kib_field(&text, "Rss:")).unwrap_or_else(|| statm_rss_bytes(*pid))
    };
    MemorySample { rss_bytes: pids.iter().map(exact).sum(), ..sample_kernel_memory(pids) }
}

/// The same without holding the processes up. The kernel's counters lag behind by some pages a thread.
pub fn sample_memory_cheaply(pids: &[u32]) -> MemorySample {
    MemorySample { rss_bytes: pids.iter().map(|pid| statm_rss_bytes(*pid)).sum(), ..sample_kernel_memory(pids) }
}

fn sample_kernel_memory(pids: &[u32]) -> MemorySample {
    let slab_bytes = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib_field(&text, "Slab:")).unwrap_or(0);
    let cgroup_bytes = pids.first().and_then(|pid| cgroup_bytes(*pid)).unwrap_or(0);
    MemorySample { rss_bytes: 0, slab_bytes, cgroup_bytes }
}

fn cgroup_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.current")).ok()?.trim().parse().ok()
}

fn statm_rss_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * sys::page_bytes()
}

/// The value of a `Name:   123 kB` line, in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Connections that the kernel of this machine dropped since boot because a listener's queue was full.
pub fn listen_drops() -> u64 {
    let text = fs::read_to_string("/proc/net/netstat").unwrap_or_default();
    parse_netstat(&text, "ListenOverflows").unwrap_or(0)
}

fn parse_netstat(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names.split_ascii_whitespace().position(|column| column == name)?;
    values.split_ascii_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_of_proc_are_read() {
        assert_eq!(parse_schedstat("37687687 659872 66\n"), Some((37_687_687, 659_872)));
        assert_eq!(parse_schedstat("x"), None);
        assert_eq!(kib_field("MemTotal: 9 kB\nSlab:  83764 kB\n", "Slab:"), Some(83_764 * 1024));
        let netstat = "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 1 7\nIpExt: a\nIpExt: 2\n";
        assert_eq!(parse_netstat(netstat, "ListenOverflows"), Some(7));
        assert_eq!(parse_netstat(netstat, "Nothing"), None);
    }

    #[test]
    fn this_process_is_seen_to_use_cpu_and_memory() {
        let own = std::process::id();
        assert!(sample_memory(&[own]).rss_bytes > 0);
        assert!(sample_processes(&[own]).cpu_ns > 0);
    }
}
