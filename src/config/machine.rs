//! What the host is: the defaults that no table can know.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The properties of this host that settings default to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may use: its affinity, and the quota of its cgroup.
    pub cores: usize,
    /// Bytes of memory that this process may use: the host's, or what its cgroup allows.
    pub memory_bytes: u64,
    /// net.core.somaxconn: the bound of every accept queue.
    pub somaxconn: u32,
    /// The host's name.
    pub host_name: Option<String>,
}

impl Machine {
    /// Looks at the host. What cannot be read falls back to a small machine's value. Call it before any thread is
    /// pinned, or the affinity of that thread counts.
    pub fn read() -> Machine {
        let host_memory = memory_info("MemTotal").unwrap_or(GIB);
        let memory_bytes = cgroup_limits("memory.max").fold(host_memory, |least, limit| least.min(limit.bytes));
        Machine {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes,
            somaxconn: read_value("/proc/sys/net/core/somaxconn").unwrap_or(SOMAXCONN_DEFAULT),
            host_name: read_value("/proc/sys/kernel/hostname"),
        }
    }
}

const GIB: u64 = 1 << 30;

/// The kernel's own default since 5.4.
const SOMAXCONN_DEFAULT: u32 = 4096;

/// A file that holds one value, such as most of /proc/sys.
pub(crate) fn read_value<T: FromStr>(path: impl AsRef<Path>) -> Option<T> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn memory_info(name: &str) -> Option<u64> {
    parse_memory_info(&std::fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn parse_memory_info(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// A limit that a cgroup of this process sets.
pub(crate) struct CgroupLimit {
    /// The limit.
    pub(crate) bytes: u64,
    /// The folder of the cgroup.
    pub(crate) folder: PathBuf,
}

/// The limits of this process's cgroup and of all above it (version 2); `max` sets none.
pub(crate) fn cgroup_limits(file: &str) -> impl Iterator<Item = CgroupLimit> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| parse_cgroup(&text));
    let folders: Vec<PathBuf> = own.iter().flat_map(|own| own.ancestors()).map(Path::to_owned).collect();
    folders.into_iter().filter_map(move |folder| {
        let bytes = read_value(folder.join(file))?;
        Some(CgroupLimit { bytes, folder })
    })
}

/// The folder of the version 2 cgroup, whose line begins with `0::`.
fn parse_cgroup(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_info_is_in_bytes() {
        let text = "MemTotal:       24689372 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       0\n";
        assert_eq!(parse_memory_info(text, "MemTotal"), Some(24_689_372 * 1024));
        assert_eq!(parse_memory_info(text, "MemAvailable"), Some(20_000_000 * 1024));
        assert_eq!(parse_memory_info(text, "HugePages_Total"), None);
        assert_eq!(parse_memory_info(text, "Mem"), None);
    }

    #[test]
    fn only_the_unified_hierarchy_counts() {
        assert_eq!(parse_cgroup("4:memory:/a\n0::/b/c\n"), Some(PathBuf::from("/sys/fs/cgroup/b/c")));
        assert_eq!(parse_cgroup("0::/\n"), Some(PathBuf::from("/sys/fs/cgroup/")));
        assert_eq!(parse_cgroup("4:memory:/a\n"), None);
    }

    #[test]
    fn this_host_has_cores_and_memory() {
        let machine = Machine::read();
        assert!(machine.cores >= 1);
        assert!(machine.memory_bytes > 1 << 24, "{machine:?}");
        assert!(machine.somaxconn >= 1);
    }
}
