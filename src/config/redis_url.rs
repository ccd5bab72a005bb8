//! The address of Redis, with the password kept out of everything that is printed.

use std::fmt;
use std::path::{Path, PathBuf};

use super::format::Format;

/// How the servers behind a URL are organised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisKind {
    /// One server (`redis://`, `rediss://`).
    Single,
    /// A Redis Cluster, known by some of its servers (`redis+cluster://`, `rediss+cluster://`).
    Cluster,
    /// Sentinels that know the current master (`redis+sentinel://`, `rediss+sentinel://`).
    Sentinel,
}

/// A URL that was checked for its form; whether anyone answers there is not known yet.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    text: String,
    kind: RedisKind,
    has_tls: bool,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<(String, u16)>,
    service: String,
    database: u16,
    ca_file: Option<PathBuf>,
}

impl RedisUrl {
    /// Reads `scheme://[user[:password]@]host[:port][,host[:port]…][/path][?ca=FILE]`.
    ///
    /// Several hosts are for a cluster and for sentinels only. The path is the database; sentinels have the service's
    /// name before it. User, password and path may hold `%40` and the like. `None` when the text has another form.
    pub fn parse(text: &str) -> Option<RedisUrl> {
        let (scheme, rest) = text.split_once("://")?;
        let (scheme, has_tls) =
            scheme.strip_prefix("rediss").map_or((scheme.strip_prefix("redis")?, false), |s| (s, true));
        let kind = match scheme {
            "" => RedisKind::Single,
            "+cluster" => RedisKind::Cluster,
            "+sentinel" => RedisKind::Sentinel,
            _ => return None,
        };
        let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
        let (path, query) = rest[authority.len()..].split_once('?').unwrap_or((&rest[authority.len()..], ""));
        let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        let path = decoded(path.strip_prefix('/').unwrap_or_default())?;
        let (service, database) = match kind {
            RedisKind::Sentinel => path.split_once('/').unwrap_or((&path, "")),
            _ => ("", path.as_str()),
        };
        let default_port = if kind == RedisKind::Sentinel { 26379 } else { 6379 };
        let url = RedisUrl {
            text: text.to_owned(),
            kind,
            has_tls,
            user: Some(decoded(user)?).filter(|user| !user.is_empty()),
            password: Some(decoded(password)?).filter(|password| !password.is_empty()),
            hosts: hosts.split(',').map(|host| host_and_port(host, default_port)).collect::<Option<_>>()?,
            service: service.to_owned(),
            database: if database.is_empty() { 0 } else { database.parse().ok()? },
            ca_file: ca_file(query, has_tls)?,
        };
        let well_formed = password != MASK
            && !text.contains(char::is_whitespace)
            && (url.hosts.len() == 1 || kind != RedisKind::Single)
            && (url.database == 0 || kind != RedisKind::Cluster)
            && (kind == RedisKind::Sentinel) != url.service.is_empty();
        well_formed.then_some(url)
    }

    /// The whole URL with its password: for the client library only.
    pub fn with_secrets(&self) -> &str {
        &self.text
    }

    /// How the servers behind it are organised.
    pub fn kind(&self) -> RedisKind {
        self.kind
    }

    /// Whether the servers, and the sentinels, are spoken to by TLS.
    pub fn has_tls(&self) -> bool {
        self.has_tls
    }

    /// The user of the servers' access control list.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The servers' password; sentinels that want one are given the same.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The servers, or the sentinels; at least one.
    pub fn hosts(&self) -> &[(String, u16)] {
        &self.hosts
    }

    /// What the sentinels call the master; empty without sentinels.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The database's number; 0 with a cluster.
    pub fn database(&self) -> u16 {
        self.database
    }

    /// PEM certificates that the servers' are checked with, in place of the system's.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Each server as `host:port`.
    pub fn servers(&self) -> Vec<String> {
        let named = |(host, port): &(String, u16)| match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        self.hosts.iter().map(named).collect()
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
        "none, or a URL such as redis://host:6379/0, rediss://:password@host:6380?ca=/ca.pem, \
         redis+cluster://host1:6379,host2:6379 or redis+sentinel://host1:26379,host2:26379/service, with the password \
         itself where `ringmesh config` shows ***, and %40 for an @ in it"
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
fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(address, _)| address.parse::<std::net::Ipv6Addr>().is_ok())?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let host_is_clean = host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'));
    let port = match port.strip_prefix(':') {
        Some(digits) => digits.parse().ok().filter(|port| *port > 0)?,
        None => port.is_empty().then_some(default_port)?,
    };
    (!host.is_empty() && host_is_clean).then(|| (host.to_owned(), port))
}

/// The query holds `ca=FILE`, with TLS, or `protocol=resp3`, which is spoken anyway.
fn ca_file(query: &str, has_tls: bool) -> Option<Option<PathBuf>> {
    let mut file = None;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=')? {
            ("ca", path) if has_tls && !path.is_empty() => file = Some(PathBuf::from(decoded(path)?)),
            ("protocol", "resp3" | "3") => {}
            _ => return None,
        }
    }
    Some(file)
}

/// The text with each `%40` and the like put back; a `%` that no two hexadecimal digits follow stands for itself.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let byte = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digits =
                std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(digits, 16).ok()
        });
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
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
            ("rediss+sentinel://s1/main?ca=/etc/ca.pem", RedisKind::Sentinel),
            ("rediss+cluster://a:1,b:2", RedisKind::Cluster),
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
            "redis+sentinel://s1:26379/?ca=x",
            "redis+cluster://a/1",
            "redis://a/x",
            "redis://a?ca=/ca.pem",
            "rediss://a?insecure=1",
            "redisss://a",
            "redis://a:%ff@b",
            "redis://user:***@host",
        ] {
            assert_eq!(RedisUrl::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_part_is_taken_apart() {
        let url = |text| RedisUrl::parse(text).expect("a well-formed URL");
        let plain = url("redis://localhost");
        assert_eq!((plain.user(), plain.password(), plain.database(), plain.has_tls()), (None, None, 0, false));
        assert_eq!(plain.hosts(), [("localhost".to_owned(), 6379)]);
        let full = url("rediss://a%40b:p%2Fw:100%@[::1]:7/3?ca=/etc/my%20ca.pem&protocol=resp3");
        assert_eq!((full.user(), full.password(), full.database()), (Some("a@b"), Some("p/w:100%"), 3));
        assert_eq!((full.hosts(), full.has_tls()), (&[("::1".to_owned(), 7)][..], true));
        assert_eq!(full.ca_file(), Some(Path::new("/etc/my ca.pem")));
        let sentinels = url("redis+sentinel://:pw@s1,s2:5/main/2");
        assert_eq!((sentinels.service(), sentinels.database(), sentinels.user()), ("main", 2, None));
        assert_eq!(sentinels.hosts(), [("s1".to_owned(), 26379), ("s2".to_owned(), 5)]);
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
