//! What a result was measured on: without it, the numbers mean little.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::sys;

/// Settings of the kernel that move results.
const SYSCTLS: [&str; 10] = [
    "net/core/somaxconn",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_tw_reuse",
    "fs/file-max",
    "fs/nr_open",
    "kernel/io_uring_disabled",
];

/// The machine, and the sources that were measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// When the measurement began, UTC, as 2026-01-31T12:00:00Z.
    pub date: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Cores that are online.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Open files a process may have.
    pub descriptor_limit: u64,
    /// The kernel's settings.
    pub sysctls: BTreeMap<String, String>,
    /// The revision in the working folder, with a + behind it when files were changed; empty outside of a repository.
    pub revision: String,
}

/// Looks around.
pub fn describe() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = read("/proc/meminfo");
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_ascii_whitespace().next());
    let sysctl = |name: &&str| {
        let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
        Some((name.replace('/', "."), value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")))
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Machine {
        date: iso_date(now),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: cpu.map_or("unknown", |(_, name)| name).to_owned(),
        cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        memory_bytes: memory.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024,
        descriptor_limit: sys::raise_descriptor_limit(),
        sysctls: SYSCTLS.iter().filter_map(sysctl).collect(),
        revision: revision(),
    }
}

impl Machine {
    /// The description in one line.
    pub fn line(&self) -> String {
        let gib = self.memory_bytes as f64 / (1u64 << 30) as f64;
        let Self { date, kernel, cpu, cores, revision, .. } = self;
        format!("{date}, {cpu}, {cores} cores, {gib:.0} GiB, Linux {kernel}, revision {revision}")
    }
}

fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    if changed { head + "+" } else { head }
}

/// Seconds since 1970 as a UTC date and time.
fn iso_date(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have the leap day at their end; 719,468 days lie between 0000-03-01 and 1970-01-01.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3_600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_survive_leap_years() {
        assert_eq!(iso_date(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso_date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(iso_date(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(iso_date(1_772_323_200), "2026-03-01T00:00:00Z");
    }

    #[test]
    fn this_machine_has_a_kernel_and_cores() {
        let machine = describe();
        assert!(!machine.kernel.is_empty() && machine.cores > 0 && machine.memory_bytes > 0, "{machine:?}");
    }
}
