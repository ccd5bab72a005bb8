//! The address of Redis, with the password kept out of everything that is printed.

use std::fmt;

use super::format::Format;

/// How the servers behind a URL are organised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisKind {
    /// One server (`redis://`, `rediss://`).
    Single,
    /// A Redis Cluster, known by some of its servers (`redis+cluster://`).
    Cluster,
    /// Sentinels that know the current primary (`redis+sentinel://`).
    Sentinel,
}

/// A URL that was checked for its form; whether anyone answers there is not known yet.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    text: String,
    kind: RedisKind,
}

impl RedisUrl {
    /// Reads `scheme://[user[:password]@]host[:port][,host[:port]…][/path][?query]`.
    ///
    /// Several hosts are for a cluster and for sentinels only; sentinels need the service name as the path. `None` when
    /// the text has another form.
    pub fn parse(text: &str) -> Option<RedisUrl> {
        let (scheme, rest) = text.split_once("://")?;
        let kind = match scheme {
            "redis" | "rediss" => RedisKind::Single,
            "redis+cluster" => RedisKind::Cluster,
            "redis+sentinel" => RedisKind::Sentinel,
            _ => return None,
        };
        let (authority, path) = rest.split_once(['/', '?']).unwrap_or((rest, ""));
        let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let hosts: Vec<&str> = hosts.split(',').collect();
        let well_formed = user_info.split_once(':').is_none_or(|(_, password)| password != MASK)
            && !text.contains(char::is_whitespace)
            && hosts.iter().all(|host| is_host(host))
            && (hosts.len() == 1 || kind != RedisKind::Single)
            && (kind != RedisKind::Sentinel || !path.is_empty());
        well_formed.then(|| RedisUrl { text: text.to_owned(), kind })
    }

    /// The whole URL with its password: for the client library only.
    pub fn with_secrets(&self) -> &str {
        &self.text
    }

    /// How the servers behind it are organised.
    pub fn kind(&self) -> RedisKind {
        self.kind
    }

    /// Whether they speak TLS.
    pub fn is_encrypted(&self) -> bool {
        self.text.starts_with("rediss://")
    }

    /// Each server as `host:port`.
    pub fn servers(&self) -> Vec<String> {
        let rest = self.text.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        let port = if self.kind == RedisKind::Sentinel { 26379 } else { 6379 };
        let with_port = |host: &str| match host.rsplit_once(':') {
            // The colons of an address in brackets are its own.
            Some((_, after)) if !after.ends_with(']') => host.to_owned(),
            _ => format!("{host}:{port}"),
        };
        hosts.split(',').map(with_port).collect()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.text))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

/// The setting: a URL, or `none` for the embedded bus.
pub struct RedisAddress;

impl Format for RedisAddress {
    type Value = Option<RedisUrl>;
    const PLACEHOLDER: &'static str = "URL";

    fn expected() -> String {
        "none, or a URL such as redis://host:6379/0, rediss://:password@host:6380, redis+cluster://host1:6379,host2:6379 \
         or redis+sentinel://host1:26379,host2:26379/service, with the password itself where `ringmesh config` shows ***"
            .to_owned()
    }

    fn read(text: &str) -> Option<Option<RedisUrl>> {
        if text == "none" { Some(None) } else { RedisUrl::parse(text).map(Some) }
    }

    fn write(value: &Option<RedisUrl>) -> String {
        value.as_ref().map_or_else(|| "none".to_owned(), RedisUrl::to_string)
    }

    fn without_secrets(text: &str) -> String {
        masked(text)
    }
}

/// What stands in for a password. A URL that holds it is refused, so that printed settings that are fed back say what
/// they lack instead of failing at the first command.
const MASK: &str = "***";

/// Hides the password of a URL, and of a text that only looks like one; a password may hold `/`, `?`, `:` and `@`.
fn masked(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    let Some(end) = text.rfind('@').filter(|end| *end >= start) else { return text.to_owned() };
    match text[start..end].find(':') {
        Some(colon) => format!("{}:{MASK}{}", &text[..start + colon], &text[end..]),
        None => text.to_owned(),
    }
}

/// `name`, `name:port`, `1.2.3.4:port`, `[::1]:port`.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (address, after),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let has_port = port.strip_prefix(':').map(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let host_is_clean = host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'));
    !host.is_empty() && host_is_clean && has_port.unwrap_or(port.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_deployment_has_a_scheme() {
        for (text, kind) in [
            ("redis://localhost", RedisKind::Single),
            ("redis://10.0.0.1:6379/2", RedisKind::Single),
            ("rediss://user:secret@cache.example:6380/0?protocol=resp3", RedisKind::Single),
            ("redis://[::1]:6379", RedisKind::Single),
            ("redis+cluster://a:1,b:2,c", RedisKind::Cluster),
            ("redis+sentinel://:pw@s1:26379,s2:26379/main/0", RedisKind::Sentinel),
        ] {
            let url = RedisUrl::parse(text);
            assert_eq!(url.as_ref().map(RedisUrl::kind), Some(kind), "{text}");
            assert_eq!(url.as_ref().map(RedisUrl::with_secrets), Some(text));
        }
    }

    #[test]
    fn each_server_has_a_port() {
        for (text, servers) in [
            ("redis://localhost", vec!["localhost:6379"]),
            ("rediss://user:se:cr@t@[::1]/0", vec!["[::1]:6379"]),
            ("redis+cluster://a:1,b,[::1]:3", vec!["a:1", "b:6379", "[::1]:3"]),
            ("redis+sentinel://:pw@s1,s2:5/main", vec!["s1:26379", "s2:5"]),
        ] {
            assert_eq!(RedisUrl::parse(text).expect("well-formed").servers(), servers, "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            "",
            "localhost:6379",
            "http://localhost",
            "redis://",
            "redis://:6379",
            "redis://a:0",
            "redis://a:x",
            "redis://a:70000",
            "redis://a:1,b:2",
            "redis://a b",
            "redis://[nonsense]:1",
            "redis+sentinel://s1:26379",
            "redis://user:***@host",
        ] {
            assert_eq!(RedisUrl::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_way_of_printing_shows_the_password() {
        let text = "rediss://user:se:cr@t@host:6379/1";
        let url = RedisUrl::parse(text).expect("a well-formed URL");
        assert_eq!(url.to_string(), "rediss://user:***@host:6379/1");
        assert_eq!(format!("{url:?}"), "RedisUrl(rediss://user:***@host:6379/1)");
        assert_eq!(RedisAddress::write(&Some(url)), "rediss://user:***@host:6379/1");
        // Also where it was not even a URL.
        assert_eq!(RedisAddress::without_secrets("http://u:secret@host"), "http://u:***@host");
        assert_eq!(RedisAddress::without_secrets("u:sec/ret@host"), "u:***@host");
        assert_eq!(RedisAddress::without_secrets("redis://user@host"), "redis://user@host");
    }
}
