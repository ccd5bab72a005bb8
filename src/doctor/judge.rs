//! The judgement of what the survey saw. Pure.

use std::io::ErrorKind;

use crate::config::Config;
use crate::preflight::{Finding, Severity, judged};

use super::redis::Answer;
use super::survey::{Listener, ListenerState, Survey};

/// A node's process, by the kernel's name for it.
const OUR_NAME: &str = "ringmesh";
/// A burst of connects that a listen queue should hold for the milliseconds that a busy shard needs.
const BACKLOG_MIN: u64 = 1024;
/// Clocks that are read without a system call.
const CLOCKS_FAST: [&str; 4] = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"];
/// Beyond one in a thousand, full listen queues are a pattern.
const OVERFLOW_SHARE_MAX: f64 = 0.001;
/// Dropped packets cost their connections a retransmission of 200 ms and more.
const DROP_SHARE_MAX: f64 = 0.0001;

/// Judges a host by what a configuration needs of it.
pub fn judge(config: &Config, survey: &Survey) -> Vec<Finding> {
    let mut findings = vec![rings(config, survey)];
    findings.extend(survey.listeners.iter().map(|listener| a_listener(listener, survey)));
    findings.extend(listening_ports(survey));
    findings.extend(backlog_length(config, survey));
    findings.extend(kernel_settings(survey));
    findings.extend(tcp_memory(survey));
    findings.extend(listen_queues(survey));
    findings.extend(packet_queues(survey));
    findings.extend(clocksource(survey));
    findings.push(governor(survey));
    findings.extend(huge_pages(survey));
    findings.push(redis(survey));
    findings
}

/// `Ok` when it holds, a warning when not.
fn warn_unless(holds: bool) -> Severity {
    if holds { Severity::Ok } else { Severity::Warning }
}

fn fail_unless(holds: bool) -> Severity {
    if holds { Severity::Ok } else { Severity::Fatal }
}

fn rings(config: &Config, survey: &Survey) -> Finding {
    let (slots, sockets) = survey.slots;
    let wanted =
        format!("a ring of {slots} slots with its buffers, up to {} of them a shard", sockets.div_ceil(slots.max(1)));
    let found = survey.engine_refusal.clone().unwrap_or_else(|| "opened as a shard opens it".to_owned());
    let remedy = format!(
        "what the kernel says above tells which limit is meant; fewer slots: --connections-max below {}",
        config.connections_max
    );
    judged("rings", fail_unless(survey.engine_refusal.is_none()), found, wanted, remedy)
}

fn a_listener(listener: &Listener, survey: &Survey) -> Finding {
    let Listener { flag, addr, state } = listener;
    let what = if *flag == "--listen" { "listen" } else { "admin_listen" };
    let wanted = "an address that can be listened on, or a node that does".to_owned();
    let (severity, found, remedy) = match state {
        ListenerState::Free => (Severity::Ok, format!("{addr} is free"), String::new()),
        ListenerState::Held(Some(holder)) if holder.name == OUR_NAME => {
            (Severity::Ok, format!("{addr}: a node listens there (process {})", holder.pid), String::new())
        }
        ListenerState::Held(holder) => {
            let who = match holder {
                Some(holder) => format!("{} (process {})", holder.name, holder.pid),
                None => "a process of another user (as root, this shows which)".to_owned(),
            };
            let remedy = format!("stop it, or choose another address: {flag} {}:PORT", bracketed(addr));
            (Severity::Fatal, format!("{addr} is taken by {who}"), remedy)
        }
        ListenerState::Refused(kind, text) => {
            let first = survey.sysctls.get("net.ipv4.ip_unprivileged_port_start").copied().unwrap_or(1024);
            let remedy = match kind {
                ErrorKind::PermissionDenied => format!(
                    "ports below {first} are root's: AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, sysctl -w \
                     net.ipv4.ip_unprivileged_port_start={}, or a higher port",
                    addr.port()
                ),
                ErrorKind::AddrNotAvailable => {
                    format!("no interface of this host has that address (ip -brief address shows them): {flag}")
                }
                _ => format!("choose another address: {flag}"),
            };
            (Severity::Fatal, format!("{addr}: {text}"), remedy)
        }
    };
    judged(what, severity, found, wanted, remedy)
}

fn bracketed(addr: &std::net::SocketAddr) -> String {
    if addr.is_ipv6() { format!("[{}]", addr.ip()) } else { addr.ip().to_string() }
}

/// A port among those of outgoing connections may be taken by one of them while the node restarts.
fn listening_ports(survey: &Survey) -> Option<Finding> {
    let (first, last) = survey.local_ports?;
    let exposed: Vec<String> = survey
        .listeners
        .iter()
        .map(|listener| listener.addr.port())
        .filter(|port| (first..=last).contains(port) && !is_reserved(&survey.reserved_ports, *port))
        .map(|port| port.to_string())
        .collect();
    let found = match exposed.is_empty() {
        true => format!("outgoing connections take {first} to {last}, and none of the listeners' ports"),
        false => format!("outgoing connections take {first} to {last}, {} among them", exposed.join(" and ")),
    };
    let reserved = [survey.reserved_ports.as_str(), &exposed.join(",")].map(str::to_owned);
    let reserved = reserved.into_iter().filter(|ports| !ports.is_empty()).collect::<Vec<_>>().join(",");
    let remedy = format!(
        "sysctl -w net.ipv4.ip_local_reserved_ports={reserved}, or a port outside: an outgoing connection may take it while \
         the node restarts"
    );
    let wanted = "listening ports outside of the range, or reserved".to_owned();
    Some(judged("port_range", warn_unless(exposed.is_empty()), found, wanted, remedy))
}

/// `8080,9000-9010`
fn is_reserved(list: &str, port: u16) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u16>().ok();
        number(first).zip(number(last)).is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}

/// The preflight compares the two; here it is whether the lesser of them will do.
fn backlog_length(config: &Config, survey: &Survey) -> Option<Finding> {
    let somaxconn = *survey.sysctls.get("net.core.somaxconn")?;
    let length = u64::from(config.backlog).min(somaxconn);
    let found = format!("{length} for each of {} shards", config.shards);
    let wanted = format!("{BACKLOG_MIN} or more");
    let remedy = match somaxconn < BACKLOG_MIN {
        true => {
            "sysctl -w net.core.somaxconn=4096, the kernel's own default (in a container: of its network namespace)"
        }
        false => "--backlog 0, which takes net.core.somaxconn",
    };
    Some(judged("listen_queue", warn_unless(length >= BACKLOG_MIN), found, wanted, remedy.to_owned()))
}

struct KernelSetting {
    key: &'static str,
    is_right: fn(u64) -> bool,
    wanted: &'static str,
    /// What a wrong value does.
    why: &'static str,
}

const fn setting(
    key: &'static str,
    is_right: fn(u64) -> bool,
    wanted: &'static str,
    why: &'static str,
) -> KernelSetting {
    KernelSetting { key, is_right, wanted, why }
}

#[rustfmt::skip]
const KERNEL_SETTINGS: [KernelSetting; 5] = [
    setting("net.ipv4.tcp_syncookies", |value| value > 0, "1", "without cookies a full queue drops every connect"),
    setting("net.ipv4.tcp_abort_on_overflow", |value| value == 0, "0", "a burst resets clients that a retry would let in"),
    setting("net.ipv4.tcp_timestamps", |value| value > 0, "1", "without them round trips are measured badly"),
    setting("net.ipv4.tcp_sack", |value| value > 0, "1", "without it one lost packet sends a whole window again"),
    setting("net.ipv4.tcp_tw_recycle", |value| value == 0, "0", "it drops clients behind one address"),
];

/// Settings that are right as the kernel has them, and are still found changed by old advice.
fn kernel_settings(survey: &Survey) -> Option<Finding> {
    let known: Vec<_> =
        KERNEL_SETTINGS.iter().filter_map(|setting| Some((setting, *survey.sysctls.get(setting.key)?))).collect();
    let wrong: Vec<_> = known.iter().filter(|(setting, value)| !(setting.is_right)(*value)).collect();
    let describe = |&&(setting, value): &&(&KernelSetting, u64)| {
        let KernelSetting { key, wanted, why, .. } = setting;
        (format!("{key} = {value}"), format!("sysctl -w {key}={wanted}: {why}"))
    };
    let (found, remedies): (Vec<_>, Vec<_>) = wrong.iter().map(describe).unzip();
    let found =
        if wrong.is_empty() { format!("{} settings as the kernel has them", known.len()) } else { found.join(", ") };
    let wanted = "tcp_syncookies, tcp_timestamps and tcp_sack on, tcp_abort_on_overflow off".to_owned();
    (!known.is_empty()).then(|| judged("sysctl", warn_unless(wrong.is_empty()), found, wanted, remedies.join("; ")))
}

/// The kernel sets these by the memory: 6 % of it for the first, 9 % for the second.
fn tcp_memory(survey: &Survey) -> Option<Finding> {
    let (memory, pages) = survey.tcp_memory.zip(survey.memory_pages)?;
    let share = |part: u64| part as f64 / pages.max(1) as f64;
    let found = format!(
        "TCP holds {:.1}% of memory; the kernel presses at {:.1}% and refuses at {:.1}%",
        share(memory.used) * 100.0,
        share(memory.pressure) * 100.0,
        share(memory.limit) * 100.0
    );
    let is_pressed = memory.used > memory.pressure / 10 * 8;
    let is_odd = share(memory.pressure) < 0.03 || share(memory.limit) > 0.5;
    let remedy = match is_pressed {
        true => "find what holds it (ss -tm shows buffers), lower --shard-queue-bytes-max, or add memory",
        false => {
            "net.ipv4.tcp_mem was set by hand: take the line out of sysctl.d, and the kernel sets it by the memory"
        }
    };
    let wanted = "below four fifths of where it presses, and limits that fit the memory".to_owned();
    Some(judged("tcp_memory", warn_unless(!is_pressed && !is_odd), found, wanted, remedy.to_owned()))
}

/// A rate out of two counts, and whether it is below its bound.
fn share_below(part: u64, whole: u64, bound: f64) -> bool {
    part as f64 <= whole as f64 * bound
}

fn listen_queues(survey: &Survey) -> Option<Finding> {
    let (accepted, overflows) = survey.listen_queues?;
    let found = format!("{overflows} overflows by {accepted} connections of all programs, since the host started");
    let wanted = "none, or below one in a thousand".to_owned();
    let remedy =
        "see whether it grows (nstat -az TcpExtListenOverflows); then a longer --backlog, net.core.somaxconn with \
                  it, or more shards"
            .to_owned();
    let severity = warn_unless(share_below(overflows, accepted, OVERFLOW_SHARE_MAX));
    Some(judged("overflows", severity, found, wanted, remedy))
}

fn packet_queues(survey: &Survey) -> Option<Finding> {
    let (handled, dropped) = survey.packet_queues?;
    let found = format!("{dropped} of {handled} packets dropped at the cores' queues, since the host started");
    let wanted = "none, or below one in ten thousand".to_owned();
    let remedy = "sysctl -w net.core.netdev_max_backlog=10000, as tuning/host/tune apply does; on hardware, more receive queues or RPS".to_owned();
    let severity = warn_unless(share_below(dropped, handled, DROP_SHARE_MAX));
    Some(judged("packets", severity, found, wanted, remedy))
}

fn clocksource(survey: &Survey) -> Option<Finding> {
    let (current, available) = survey.clocksource.as_ref()?;
    let is_fast = CLOCKS_FAST.contains(&current.as_str());
    let better = available.split_whitespace().find(|name| CLOCKS_FAST.contains(name));
    let remedy = match better {
        Some(better) => {
            format!("echo {better} > /sys/devices/system/clocksource/clocksource0/current_clocksource")
        }
        None => {
            "boot with tsc=reliable if the processor's clock is invariant; the kernel's log says why it was given up"
                .to_owned()
        }
    };
    let wanted = "one that is read without a system call, such as tsc or kvm-clock".to_owned();
    Some(judged("clocksource", warn_unless(is_fast), current.clone(), wanted, remedy))
}

fn governor(survey: &Survey) -> Finding {
    let slow = survey.governors.keys().any(|governor| governor != "performance");
    let found = match survey.governors.is_empty() {
        true => "no frequency to be seen from here, as in most virtual machines".to_owned(),
        false => survey
            .governors
            .iter()
            .map(|(name, cores)| format!("{name} on {cores} cores"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let remedy =
        "cpupower frequency-set -g performance: a shard that wakes for one message runs at the lowest clock".to_owned();
    judged("governor", warn_unless(!slow), found, "performance".to_owned(), remedy)
}

fn huge_pages(survey: &Survey) -> Option<Finding> {
    let mode = survey.huge_pages.clone()?;
    let remedy =
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: with always, memory that is given back piece \
                  by piece stays, and compaction stops a shard for milliseconds"
            .to_owned();
    Some(judged("huge_pages", warn_unless(mode != "always"), mode, "madvise or never".to_owned(), remedy))
}

fn redis(survey: &Survey) -> Finding {
    let wanted = "none, or servers that answer".to_owned();
    if survey.redis.is_empty() {
        return judged("redis", Severity::Ok, "none set: the node is alone".to_owned(), wanted, String::new());
    }
    let found: Vec<String> = survey.redis.iter().map(|(server, answer)| format!("{server} {}", said(answer))).collect();
    let answers = |answer: &Answer| matches!(answer, Answer::Pong(_) | Answer::WantsLogin | Answer::Connected);
    let good = survey.redis.iter().filter(|(_, answer)| answers(answer)).count();
    let severity = match good {
        0 => Severity::Fatal,
        _ => warn_unless(good == survey.redis.len()),
    };
    let refuses = survey.redis.iter().any(|(_, answer)| matches!(answer, Answer::Refuses(_)));
    let remedy = match refuses {
        true => {
            "do what it says: DENIED is its protected mode (bind, requirepass), LOADING passes; HTTP is another server"
        }
        false => "start it, open the way to it (redis-cli -u URL ping from this host), or correct --redis",
    };
    judged("redis", severity, found.join("; "), wanted, remedy.to_owned())
}

fn said(answer: &Answer) -> String {
    match answer {
        Answer::Pong(took) => format!("answers in {took:.1?}"),
        Answer::WantsLogin => "answers, and asks for a login, which was not tried".to_owned(),
        Answer::Connected => "takes connections; TLS was not tried".to_owned(),
        Answer::Refuses(text) => format!("refuses: {text}"),
        Answer::Silent(text) => format!("does not answer: {text}"),
    }
}
