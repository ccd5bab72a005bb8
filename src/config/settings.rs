//! The one table of settings. The command line, the environment, the file, their help and what `ringmesh config`
//! prints are all made from it.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::addresses::{AdminAddress, ListenAddress, Networks, PublicAddresses};
use super::format::{Count, Format, GIB, HOUR_MS, KIB, LogDirectives, LogFormat, MIB, NodeName, Size, Switch, Time};
use super::redis_url::{RedisAddress, RedisUrl};
use super::sources::Reader;

/// One setting, as the command line, the environment, the file and the help see it.
pub struct Setting {
    /// Its name in the file; flag and variable follow from it.
    pub key: &'static str,
    /// The heading it stands under.
    pub group: &'static str,
    /// The text that is read when nobody says otherwise.
    pub default: &'static str,
    /// What the help calls its value.
    pub placeholder: &'static str,
    /// Whether TOML takes its value without quotes.
    pub bare: bool,
    /// Whether its flag may be given more than once.
    pub is_list: bool,
    /// What its flag says without a value, where it may stand alone; such a setting is a TOML boolean.
    pub alone: Option<&'static str>,
    /// Its explanation: the lines of its documentation.
    help_lines: &'static [&'static str],
    /// Its value in a configuration, as text that reads as the same value, without secrets.
    pub written: fn(&Config) -> String,
}

impl Setting {
    /// The flag without its dashes: `ping-interval`.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// The environment variable: `RINGMESH_PING_INTERVAL`.
    pub fn variable(&self) -> String {
        format!("RINGMESH_{}", self.key.to_ascii_uppercase())
    }

    /// Its explanation, as running text.
    pub fn help(&self) -> String {
        let lines: Vec<&str> = self.help_lines.iter().map(|line| line.trim()).collect();
        lines.join(" ")
    }
}

/// Writes the table out three times: as the struct, as the list of settings, and as the code that reads each in turn.
macro_rules! settings {
    ($($group:literal {$(
        $(#[doc = $doc:literal])+
        $name:ident: $type:ty, $format:ty, $default:literal;
    )+})+) => {
        /// What is in force. Nothing here is left to be looked up: zeros and empty texts that stand for a property of
        /// the machine were replaced by it.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {$($(
            $(#[doc = $doc])+
            pub $name: $type,
        )+)+}

        /// Every setting, in the order of the help.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            key: stringify!($name),
            group: $group,
            default: $default,
            placeholder: <$format as Format>::PLACEHOLDER,
            bare: <$format as Format>::BARE,
            is_list: <$format as Format>::LIST,
            alone: <$format as Format>::ALONE,
            help_lines: &[$($doc),+],
            written: |config| <$format as Format>::write(&config.$name),
        },)+)+];

        impl Config {
            /// Reads every setting once, in the order of the table.
            pub(super) fn read(reader: &mut Reader<'_>) -> Config {
                Config {$($($name: reader.read::<$format>(),)+)+}
            }
        }
    };
}

settings! {
    "Node" {
        /// The name of this node, unlike any other in the cluster. Empty: the host's name, so two nodes of one host
        /// need one each. NODE_ID is read as well.
        node_id: String, NodeName, "";
        /// Shards: pinned executors, each with its own share of the connections. 0: one for each usable core.
        shards: usize, Count<usize, 0, 1024>, "0";
        /// Redis between the nodes; none: a cluster of this one node. REDIS_HOST and REDIS_PORT are read as well. A
        /// password belongs into the file or the environment, since everybody on the host can read flags.
        redis: Option<RedisUrl>, RedisAddress, "none";
    }
    "Between nodes (with Redis)" {
        /// Whether the node ends (69) when Redis can't be reached at the start; otherwise it waits for Redis, and
        /// answers /ws and /ready with 503 meanwhile.
        redis_required: bool, Switch, "false";
        /// How long Redis may be out of reach before /ws and /ready answer 503. Open connections stay, and messages
        /// within the node go on.
        bus_lost_after: Duration, Time<100, HOUR_MS>, "5s";
        /// Bytes kept for one other node until it acknowledges them, at most; beyond that senders are answered
        /// overloaded.
        bus_link_bytes_max: usize, Size<{ 128 * KIB }, GIB>, "16MiB";
        /// How long a user may be gone before user:events says offline. A reconnect within it says nothing.
        offline_grace: Duration, Time<0, HOUR_MS>, "0s";
    }
    "Listeners" {
        /// Where clients connect; more than one with commas between them, or by repeating the flag. A port alone is that
        /// port of every IPv4 address. With ,proxy behind it, each connection there must begin with a PROXY header
        /// (version 1 or 2).
        listen: Vec<ListenAddress>, PublicAddresses, "0.0.0.0:8080";
        /// Networks of the proxies that are believed when they name the client, in X-Forwarded-For (from the right),
        /// X-Real-IP or a PROXY header. From all others these are ignored.
        trusted_proxies: Vec<IpNet>, Networks, "none";
        /// Where operators read /metrics, or off. A port alone is that port of 127.0.0.1.
        admin_listen: Option<SocketAddr>, AdminAddress, "127.0.0.1:8081";
        /// Connections that may wait to be accepted, for each shard. 0: net.core.somaxconn, which also bounds it.
        backlog: u32, Count<u32, 0, 2_147_483_647>, "0";
    }
    "Admission" {
        /// Upgraded connections of the node at most; further ones are answered 503.
        connections_max: u32, Count<u32, 1, 10_000_000>, "100000";
        /// Connects from one address (IPv6: one /64) in the window at most; further ones are answered 429. 0: no limit.
        connects_per_address_max: u32, Count<u32, 0, 1_000_000>, "100";
        /// The sliding window of connects-per-address-max.
        connects_per_address_window: Duration, Time<1_000, HOUR_MS>, "60s";
    }
    "Connections" {
        /// How often each client is pinged.
        ping_interval: Duration, Time<10, HOUR_MS>, "30s";
        /// A client that has sent no byte for so long is closed (4012). Longer than ping-interval.
        pong_timeout: Duration, Time<10, HOUR_MS>, "60s";
        /// From accept to the whole request head at most; later ones are answered 408.
        handshake_timeout: Duration, Time<10, HOUR_MS>, "10s";
        /// How long the peer has to answer a Close before its socket is shut.
        close_timeout: Duration, Time<10, HOUR_MS>, "5s";
        /// Control frames from one connection in a second at most.
        control_frames_max: u32, Count<u32, 1, 1_000_000>, "100";
        /// Bytes of a message at most; a longer one closes its connection (1009).
        message_bytes_max: usize, Size<125, { 64 * MIB }>, "64KiB";
        /// Bytes of a request head at most; a longer one is answered 431.
        head_bytes_max: usize, Size<256, { 64 * KIB }>, "8KiB";
    }
    "Backpressure" {
        /// Bytes queued for one connection at most; a reader that lets more pile up is closed (4008).
        send_queue_bytes_max: usize, Size<{ 4 * KIB }, GIB>, "1MiB";
        /// Bytes queued in one shard at most; at the bound its largest queue is closed (4008). 0: a quarter of the
        /// memory over the shards.
        shard_queue_bytes_max: usize, Size<0, { 1024 * GIB }>, "0";
        /// Age of the oldest queued byte at most; a connection that takes nothing for so long is closed (4008).
        send_stall_max: Duration, Time<10, HOUR_MS>, "30s";
    }
    "Stopping" {
        /// After SIGTERM, how long clients are still accepted while /ready already answers 503, so that load balancers
        /// look away first.
        drain_delay: Duration, Time<0, HOUR_MS>, "0s";
        /// How long the connections then have to take what is queued for them and close (1012).
        shutdown_timeout: Duration, Time<0, HOUR_MS>, "10s";
    }
    "Logs (to standard error)" {
        /// What is logged: off, error, warn, info, debug, trace, or directives such as info,ringmesh::hub=debug.
        log_level: String, LogDirectives, "info";
        /// One line for a person, or one JSON object a line.
        log_format: LogFormat, LogFormat, "text";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_setting_explains_itself() {
        let keys: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert_eq!(keys.len(), SETTINGS.len());
        for setting in SETTINGS {
            let help = setting.help();
            assert!(help.len() > 20 && help.ends_with('.'), "{}: {help}", setting.key);
            assert!(!help.contains('`'), "{}: help is plain text", setting.key);
        }
    }

    #[test]
    fn flag_and_variable_follow_from_the_key() {
        let setting = SETTINGS.iter().find(|setting| setting.key == "ping_interval").expect("it is in the table");
        assert_eq!(setting.flag(), "ping-interval");
        assert_eq!(setting.variable(), "RINGMESH_PING_INTERVAL");
    }
}
