//! What is seen on this host beyond the preflight: the only part of the doctor that touches it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::str::FromStr;

use ahash::RandomState;

use crate::config::Config;
use crate::config::machine::{memory_info, read_value};
use crate::host;
use crate::listeners;
use crate::node::{self, NodeError};
use crate::shard::engine::Engine;

use super::ports::{Holder, holder};
use super::redis::{self, Answer};

/// What was found. What cannot be seen, or does not exist here, is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The rings of one shard, as a node opens them: why not, if not.
    pub engine_refusal: Option<String>,
    /// Slots of one of these rings, and sockets that one shard may come to hold.
    pub slots: (u32, u32),
    /// Each listener of the settings, and whether it can be opened.
    pub listeners: Vec<Listener>,
    /// Kernel settings that hold one number, by key.
    pub sysctls: BTreeMap<&'static str, u64>,
    /// Ports that outgoing connections take.
    pub local_ports: Option<(u16, u16)>,
    /// Ports that they leave alone: `8080,9000-9010`.
    pub reserved_ports: String,
    /// The clock that the kernel reads, and those that it could.
    pub clocksource: Option<(String, String)>,
    /// Frequency governors, with how many cores each has.
    pub governors: BTreeMap<String, usize>,
    /// `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
    /// Memory of all TCP sockets in pages, and where the kernel begins to press and refuses more.
    pub tcp_memory: Option<TcpMemory>,
    /// Memory of the host, in pages.
    pub memory_pages: Option<u64>,
    /// Connections that came in since the host started, and how many found their listen queue full.
    pub listen_queues: Option<(u64, u64)>,
    /// Packets handled since the host started, and how many were dropped because a core's queue was full.
    pub packet_queues: Option<(u64, u64)>,
    /// Each server of `--redis` and what it said; empty without one.
    pub redis: Vec<(String, Answer)>,
}

/// A listening address of the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// The setting's flag.
    pub flag: &'static str,
    /// The address.
    pub addr: SocketAddr,
    /// What became of opening it.
    pub state: ListenerState,
}

/// What became of opening a listener.
#[derive(Clone, Debug, PartialEq)]
pub enum ListenerState {
    /// It can be opened.
    Free,
    /// Somebody listens there.
    Held(Option<Holder>),
    /// The system refused.
    Refused(std::io::ErrorKind, String),
}

/// `net.ipv4.tcp_mem`, and what is used of it; all in pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TcpMemory {
    /// Used now.
    pub used: u64,
    /// Above it, the kernel holds sockets back.
    pub pressure: u64,
    /// Above it, it refuses.
    pub limit: u64,
}

/// Kernel settings that `judge` has an opinion about.
pub const SYSCTLS: [&str; 7] = [
    "net.core.somaxconn",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_sack",
    "net.ipv4.tcp_tw_recycle",
    "net.ipv4.ip_unprivileged_port_start",
];

impl Survey {
    /// Looks. Opens the listeners and the rings of a shard for a moment, and asks Redis.
    pub fn look(config: &Config) -> Survey {
        let engine = node::shard_config(config, &RandomState::new()).engine();
        let slots = (engine.slots_per_ring, engine.sockets_max);
        let clock = |file| read_text(&format!("/sys/devices/system/clocksource/clocksource0/{file}_clocksource"));
        let reserved = read_text("/proc/sys/net/ipv4/ip_local_reserved_ports");
        Survey {
            engine_refusal: Engine::new(engine).err().map(|error| error.to_string()),
            slots,
            listeners: wanted_listeners(config).into_iter().map(look_at_listener).collect(),
            sysctls: SYSCTLS.into_iter().filter_map(|key| Some((key, read_value(path_of(key))?))).collect(),
            local_ports: read_text("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| pair(&text)),
            reserved_ports: reserved.unwrap_or_default(),
            clocksource: clock("current").zip(clock("available")),
            governors: governors(),
            huge_pages: read_text("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| chosen(&text)),
            tcp_memory: tcp_memory(),
            memory_pages: memory_info("MemTotal").map(|bytes| bytes / rustix::param::page_size() as u64),
            listen_queues: host::listen_queues(),
            packet_queues: read_text("/proc/net/softnet_stat").map(|text| packet_queues(&text)),
            redis: config.redis.as_ref().map_or_else(Vec::new, redis::ask),
        }
    }
}

/// The listeners that a node would open.
fn wanted_listeners(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let public = config.listen.iter().map(|listener| ("--listen", listener.addr));
    public.chain(config.admin_listen.map(|addr| ("--admin-listen", addr))).collect()
}

fn look_at_listener((flag, addr): (&'static str, SocketAddr)) -> Listener {
    let state = match listeners::open(flag, addr, 1, 1) {
        Ok(_) => ListenerState::Free,
        Err(NodeError::AddressInUse { .. }) => ListenerState::Held(holder(addr)),
        Err(NodeError::Listen { error, .. }) => ListenerState::Refused(error.kind(), error.to_string()),
        Err(error) => ListenerState::Refused(std::io::ErrorKind::Other, error.to_string()),
    };
    Listener { flag, addr, state }
}

fn path_of(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

fn read_text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// `32768 60999`
fn pair<T: FromStr>(text: &str) -> Option<(T, T)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// `always [madvise] never` has chosen `madvise`.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn governors() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for core in fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        let governor = read_text(&core.path().join("cpufreq/scaling_governor").to_string_lossy());
        governor.into_iter().for_each(|governor| *found.entry(governor).or_default() += 1);
    }
    found
}

fn tcp_memory() -> Option<TcpMemory> {
    let used = tcp_pages(&read_text("/proc/net/sockstat")?)?;
    let limits = read_text("/proc/sys/net/ipv4/tcp_mem")?;
    let (pressure, limit) = pair(limits.split_once(char::is_whitespace)?.1)?;
    Some(TcpMemory { used, pressure, limit })
}

/// `TCP: inuse 2002 orphan 0 tw 39884 alloc 2002 mem 285`
fn tcp_pages(sockstat: &str) -> Option<u64> {
    let mut words = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

/// A line of hexadecimal numbers a core: packets, drops, and more.
fn packet_queues(softnet_stat: &str) -> (u64, u64) {
    let column = |line: &str, at| line.split_whitespace().nth(at).and_then(|text| u64::from_str_radix(text, 16).ok());
    let sum = |at| softnet_stat.lines().filter_map(|line| column(line, at)).sum();
    (sum(0), sum(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_understood() {
        assert_eq!(pair::<u16>("32768\t60999"), Some((32_768, 60_999)));
        assert_eq!(pair::<u16>("32768"), None);
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("always"), None);
        let sockstat = "sockets: used 9\nTCP: inuse 2 orphan 0 tw 3 alloc 2 mem 285\nUDP: inuse 0 mem 7\n";
        assert_eq!(tcp_pages(sockstat), Some(285));
        assert_eq!(packet_queues("0000000a 00000001 0\n00000010 00000002 0\n"), (26, 3));
        assert_eq!(path_of("net.ipv4.tcp_sack"), "/proc/sys/net/ipv4/tcp_sack");
    }
}
