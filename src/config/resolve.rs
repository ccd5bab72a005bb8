//! From what was said and what the host is to what is in force.

use super::error::{ConfigError, InForce, Problem};
use super::format::is_node_id;
use super::machine::Machine;
use super::settings::{Config, SETTINGS};
use super::sources::{Origin, Reader, Sources};

/// A configuration, and where each of its values came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// What is in force.
    pub config: Config,
    /// The origin of each setting, in the order of [`SETTINGS`].
    pub origins: Vec<Origin>,
}

/// A node without a name of its own, on a host without one that can stand in Redis keys.
const NODE_ID_FALLBACK: &str = "node-1";

/// Reads every setting, lets the machine fill in what was left to it, and checks what settings ask of each other.
///
/// # Errors
/// Every value that cannot be read; when all can be read, every pair that contradicts itself.
pub fn resolve(sources: &Sources, machine: &Machine) -> Result<Effective, ConfigError> {
    let mut reader = Reader::new(sources);
    let mut config = Config::read(&mut reader);
    let Reader { origins, mut problems, .. } = reader;
    if problems.is_empty() {
        ask_machine(&mut config, machine);
        problems = contradictions(&config, &origins);
    }
    if problems.is_empty() { Ok(Effective { config, origins }) } else { Err(ConfigError { problems }) }
}

/// Replaces what stands for a property of the machine.
fn ask_machine(config: &mut Config, machine: &Machine) {
    if config.node_id.is_empty() {
        let host_name = machine.host_name.clone().filter(|name| is_node_id(name));
        config.node_id = host_name.unwrap_or_else(|| NODE_ID_FALLBACK.to_owned());
    }
    if config.shards == 0 {
        config.shards = machine.cores.clamp(1, SHARDS_MAX);
    }
    if config.backlog == 0 {
        config.backlog = machine.somaxconn.max(1);
    }
    if config.shard_queue_bytes_max == 0 {
        let share = machine.memory_bytes / 4 / config.shards as u64;
        // One connection may always queue what it is allowed to, however small the machine.
        config.shard_queue_bytes_max = usize::try_from(share).unwrap_or(usize::MAX).max(config.send_queue_bytes_max);
    }
}

/// As many as `shards` takes: a host with more cores leaves the rest to others.
const SHARDS_MAX: usize = 1024;

fn contradictions(config: &Config, origins: &[Origin]) -> Vec<Problem> {
    let rules = [
        (config.pong_timeout > config.ping_interval, "pong_timeout", "must be longer than", "ping_interval"),
        (
            config.send_queue_bytes_max >= config.message_bytes_max,
            "send_queue_bytes_max",
            "must have room for a message of",
            "message_bytes_max",
        ),
        (
            config.bus_link_bytes_max >= config.message_bytes_max,
            "bus_link_bytes_max",
            "must have room for a message of",
            "message_bytes_max",
        ),
        (
            config.shard_queue_bytes_max >= config.send_queue_bytes_max,
            "shard_queue_bytes_max",
            "must not be smaller than",
            "send_queue_bytes_max",
        ),
        (
            config.listen.iter().all(|public| public.addr.port() == 0 || config.admin_listen != Some(public.addr)),
            "admin_listen",
            "must differ from",
            "listen",
        ),
        (
            !config.listen.iter().any(|public| public.proxy) || !config.trusted_proxies.is_empty(),
            "listen",
            "needs the networks of its proxies in",
            "trusted_proxies",
        ),
    ];
    let broken = rules.into_iter().filter(|(holds, ..)| !holds);
    let problem = |(_, key, rule, other)| Problem::Contradiction {
        broken: Box::new(in_force(config, origins, key)),
        rule,
        other: Box::new(in_force(config, origins, other)),
    };
    broken.map(problem).collect()
}

fn in_force(config: &Config, origins: &[Origin], key: &str) -> InForce {
    let rows = SETTINGS.iter().zip(origins);
    let mut named = rows.filter(|(setting, _)| setting.key == key);
    let (setting, origin) = named.next().expect("rules are about settings of the table");
    InForce { key: setting.key, value: (setting.written)(config), origin: origin.clone() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{ConfigFile, Environment, LogFormat};

    fn machine() -> Machine {
        Machine { cores: 4, memory_bytes: 16 << 30, somaxconn: 4096, host_name: Some("host-a".to_owned()) }
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::new(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    fn file(text: &str) -> Option<ConfigFile> {
        Some(ConfigFile::parse("gateway.toml", text).expect("the file of the test is right"))
    }

    fn effective(sources: &Sources) -> Effective {
        resolve(sources, &machine()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn origin_of(effective: &Effective, key: &str) -> String {
        in_force(&effective.config, &effective.origins, key).origin.to_string()
    }

    fn refusal(sources: &Sources) -> String {
        resolve(sources, &machine()).expect_err("the sources are wrong").to_string()
    }

    #[test]
    fn the_machine_fills_in_what_nobody_said() {
        let config = effective(&Sources::default()).config;
        assert_eq!(config.node_id, "host-a");
        assert_eq!(config.shards, 4);
        assert_eq!(config.backlog, 4096);
        assert_eq!(config.shard_queue_bytes_max, 1 << 30);
        assert_eq!(config.connections_max, 100_000);
        assert_eq!(config.ping_interval, Duration::from_secs(30));
        assert_eq!(config.message_bytes_max, 65_536);
        assert_eq!(config.log_format, LogFormat::Text);
        assert_eq!(config.redis, None);
    }

    #[test]
    fn a_host_name_that_cannot_be_a_key_gives_way() {
        for host_name in [None, Some("a b".to_owned()), Some(String::new())] {
            let machine = Machine { host_name, ..machine() };
            let effective = resolve(&Sources::default(), &machine).expect("defaults are right");
            assert_eq!(effective.config.node_id, "node-1");
        }
    }

    #[test]
    fn flag_before_environment_before_file_before_default() {
        let mut sources = Sources { file: file("\nshards = 3\n"), ..Sources::default() };
        assert_eq!(effective(&Sources::default()).config.shards, 4);
        assert_eq!(effective(&sources).config.shards, 3);
        assert_eq!(origin_of(&effective(&sources), "shards"), "gateway.toml:2");
        sources.environment = environment(&[("RINGMESH_SHARDS", "5")]);
        assert_eq!(effective(&sources).config.shards, 5);
        assert_eq!(origin_of(&effective(&sources), "shards"), "environment RINGMESH_SHARDS");
        sources.flags.insert("shards", "6".to_owned());
        assert_eq!(effective(&sources).config.shards, 6);
        assert_eq!(origin_of(&effective(&sources), "shards"), "flag --shards");
        assert_eq!(origin_of(&effective(&sources), "listen"), "default");
    }

    #[test]
    fn an_empty_variable_is_unset() {
        let sources = Sources { environment: environment(&[("RINGMESH_SHARDS", "")]), ..Sources::default() };
        assert_eq!(effective(&sources).config.shards, 4);
    }

    #[test]
    fn the_variables_of_existing_deployments_are_read() {
        let read = |variables| effective(&Sources { environment: environment(variables), ..Sources::default() });
        let redis = |variables| read(variables).config.redis.map(|url| url.with_secrets().to_owned());
        assert_eq!(read(&[("NODE_ID", "a")]).config.node_id, "a");
        assert_eq!(read(&[("NODE_ID", "a"), ("RINGMESH_NODE_ID", "b")]).config.node_id, "b");
        assert_eq!(redis(&[("REDIS_HOST", "r")]).as_deref(), Some("redis://r:6379"));
        assert_eq!(redis(&[("REDIS_HOST", "r"), ("REDIS_PORT", "7")]).as_deref(), Some("redis://r:7"));
        assert_eq!(redis(&[("REDIS_HOST", "::1"), ("REDIS_PORT", "7")]).as_deref(), Some("redis://[::1]:7"));
        assert_eq!(redis(&[("REDIS_HOST", "r"), ("RINGMESH_REDIS", "redis://s:1")]).as_deref(), Some("redis://s:1"));
    }

    #[test]
    fn a_lone_redis_port_is_refused_unless_kubernetes_set_it() {
        let with = |variables: &[_]| Sources { environment: environment(variables), ..Sources::default() };
        assert!(refusal(&with(&[("REDIS_PORT", "6379")])).contains("REDIS_PORT is set without REDIS_HOST"));
        let link = ("REDIS_PORT", "tcp://10.0.0.9:6380");
        assert_eq!(effective(&with(&[link])).config.redis, None);
        let url = effective(&with(&[link, ("REDIS_HOST", "r")])).config.redis.expect("a host was given");
        assert_eq!(url.with_secrets(), "redis://r:6380");
    }

    #[test]
    fn every_bad_value_is_told_with_origin_and_expectation() {
        let sources = Sources {
            flags: [("ping_interval", "30x".to_owned())].into(),
            environment: environment(&[("RINGMESH_MESSAGE_BYTES_MAX", "64KB"), ("RINGMESH_REDIS", "tcp://u:pw@h")]),
            file: file("# why\nlisten = \"nowhere\"\n"),
        };
        let told = refusal(&sources);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 4, "{told}");
        assert!(
            lines[0].starts_with("environment RINGMESH_REDIS: \"tcp://u:***@h\" is not a value of redis"),
            "{told}"
        );
        assert!(lines[1].starts_with("gateway.toml:2: \"nowhere\" is not a value of listen; expected an IP"), "{told}");
        assert_eq!(
            lines[2],
            "flag --ping-interval: \"30x\" is not a value of ping_interval; expected a duration such as 500ms, 30s, 2m \
             or 1h (a bare number is seconds), from 10ms to 1h"
        );
        assert!(lines[3].starts_with("environment RINGMESH_MESSAGE_BYTES_MAX: \"64KB\" is not"), "{told}");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let with = |flags: &[(&'static str, &str)]| Sources {
            flags: flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect(),
            ..Sources::default()
        };
        assert_eq!(
            refusal(&with(&[("ping_interval", "60")])),
            "pong_timeout = 1m (default) must be longer than ping_interval = 1m (flag --ping-interval)"
        );
        assert!(refusal(&with(&[("message_bytes_max", "2MiB")])).starts_with("send_queue_bytes_max = 1MiB"));
        assert!(refusal(&with(&[("shard_queue_bytes_max", "4k")])).starts_with("shard_queue_bytes_max = 4KiB"));
        assert!(refusal(&with(&[("listen", "127.0.0.1:8081")])).starts_with("admin_listen = 127.0.0.1:8081"));
        effective(&with(&[("listen", "127.0.0.1:0"), ("admin_listen", "127.0.0.1:0")]));
        assert!(refusal(&with(&[("listen", "9000,127.0.0.1:8081")])).starts_with("admin_listen = 127.0.0.1:8081"));
        assert_eq!(
            refusal(&with(&[("listen", "9000,proxy")])),
            "listen = 0.0.0.0:9000,proxy (flag --listen) needs the networks of its proxies in trusted_proxies = none \
             (default)"
        );
        effective(&with(&[("listen", "9000,proxy"), ("trusted_proxies", "10.0.0.0/8")]));
    }

    #[test]
    fn a_small_machine_still_has_room_for_one_connection() {
        let machine = Machine { memory_bytes: 1 << 20, ..machine() };
        let config = resolve(&Sources::default(), &machine).expect("defaults are right").config;
        assert_eq!(config.shard_queue_bytes_max, config.send_queue_bytes_max);
    }
}
