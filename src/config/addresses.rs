//! Where a node listens, and which networks its proxies are in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::format::Format;

/// An address that clients connect to, by themselves or through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// Address and port.
    pub addr: SocketAddr,
    /// Whether each connection must begin with a PROXY header.
    pub proxy: bool,
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proxy = if self.proxy { ",proxy" } else { "" };
        write!(f, "{}{proxy}", self.addr)
    }
}

/// Addresses to listen on, each with `,proxy` behind it where PROXY headers are mandatory. A port alone (`8080`, `:8080`)
/// means that port of every IPv4 address.
pub struct PublicAddresses;

/// Each listener keeps 64 accepts in flight in every shard, and the node's reserve of sockets has room for so many.
const LISTENERS_MAX: usize = 16;

impl Format for PublicAddresses {
    type Value = Vec<ListenAddress>;
    const PLACEHOLDER: &'static str = "ADDR[,proxy]";
    const LIST: bool = true;

    fn expected() -> String {
        format!(
            "an IP address with its port, such as 0.0.0.0:8080 or [::]:8080, or a port alone, with ,proxy behind it where \
             connections begin with a PROXY header; up to {LISTENERS_MAX} different ones, with commas between them"
        )
    }

    fn read(text: &str) -> Option<Vec<ListenAddress>> {
        let mut listeners: Vec<ListenAddress> = Vec::new();
        for part in text.split(',').map(str::trim) {
            match listeners.last_mut() {
                Some(last) if part == "proxy" && !last.proxy => last.proxy = true,
                _ => listeners.push(ListenAddress { addr: address(part, Ipv4Addr::UNSPECIFIED)?, proxy: false }),
            }
        }
        let repeats = |at: usize| {
            listeners[at].addr.port() != 0 && {
                listeners[..at].iter().any(|earlier| earlier.addr == listeners[at].addr)
            }
        };
        let fits = listeners.len() <= LISTENERS_MAX && !(0..listeners.len()).any(repeats);
        fits.then_some(listeners)
    }

    fn write(value: &Vec<ListenAddress>) -> String {
        joined(value)
    }
}

/// The admin address, or `off`. A port alone means the loopback interface, so that nobody opens it to the world by
/// being brief.
pub struct AdminAddress;

impl Format for AdminAddress {
    type Value = Option<SocketAddr>;
    const PLACEHOLDER: &'static str = "ADDR";

    fn expected() -> String {
        "an IP address with its port, such as 127.0.0.1:8081, a port alone (of 127.0.0.1), or off".to_owned()
    }

    fn read(text: &str) -> Option<Option<SocketAddr>> {
        if text == "off" { Some(None) } else { address(text, Ipv4Addr::LOCALHOST).map(Some) }
    }

    fn write(value: &Option<SocketAddr>) -> String {
        value.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }
}

/// Networks, or single hosts; `none` for none.
pub struct Networks;

impl Format for Networks {
    type Value = Vec<IpNet>;
    const PLACEHOLDER: &'static str = "CIDR[,CIDR...]";
    const LIST: bool = true;

    fn expected() -> String {
        "networks or single addresses, such as 10.0.0.0/8,192.0.2.7,fd00::/8, or none".to_owned()
    }

    fn read(text: &str) -> Option<Vec<IpNet>> {
        if text == "none" {
            return Some(Vec::new());
        }
        text.split(',').map(|part| network(part.trim())).collect()
    }

    fn write(value: &Vec<IpNet>) -> String {
        if value.is_empty() { "none".to_owned() } else { joined(value) }
    }
}

fn network(text: &str) -> Option<IpNet> {
    let single_host = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>().ok().or_else(single_host)
}

fn address(text: &str, host_of_a_port_alone: Ipv4Addr) -> Option<SocketAddr> {
    match text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        Ok(port) => Some(SocketAddr::new(IpAddr::V4(host_of_a_port_alone), port)),
        Err(_) => text.parse().ok(),
    }
}

/// With commas between them.
pub(crate) fn joined<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_port_alone_is_enough() {
        for text in ["8080", ":8080", "0.0.0.0:8080"] {
            let addr = "0.0.0.0:8080".parse().expect("an address");
            assert_eq!(PublicAddresses::read(text), Some(vec![ListenAddress { addr, proxy: false }]), "{text}");
        }
        for text in ["8081", ":8081", "127.0.0.1:8081"] {
            assert_eq!(AdminAddress::read(text), Some("127.0.0.1:8081".parse().ok()), "{text}");
        }
        assert_eq!(AdminAddress::read("off"), Some(None));
        for bad in ["", ":", "localhost:80", "1.2.3.4", "65536", "off", "::1:8080:"] {
            assert_eq!(PublicAddresses::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn several_listeners_some_of_them_behind_proxies() {
        let written = |text: &str| PublicAddresses::read(text).map(|value| PublicAddresses::write(&value));
        for (text, expected) in [
            ("8080,proxy", "0.0.0.0:8080,proxy"),
            ("8080,9000", "0.0.0.0:8080,0.0.0.0:9000"),
            ("[::]:8080, 127.0.0.1:9000,proxy, :9001", "[::]:8080,127.0.0.1:9000,proxy,0.0.0.0:9001"),
            ("127.0.0.1:0,127.0.0.1:0,proxy", "127.0.0.1:0,127.0.0.1:0,proxy"),
        ] {
            assert_eq!(written(text).as_deref(), Some(expected), "{text}");
            assert_eq!(written(expected).as_deref(), Some(expected));
        }
        for bad in ["proxy", "8080,", "8080,proxies", "8080,proxy,proxy", "8080,8080,proxy", ",8080", "8080 proxy"] {
            assert_eq!(PublicAddresses::read(bad), None, "{bad}");
        }
        let many = |count: usize| vec!["127.0.0.1:0"; count].join(",");
        assert!(PublicAddresses::read(&many(LISTENERS_MAX)).is_some());
        assert_eq!(PublicAddresses::read(&many(LISTENERS_MAX + 1)), None);
    }

    #[test]
    fn networks_and_single_hosts() {
        let written = |text: &str| Networks::read(text).map(|value| Networks::write(&value));
        for (text, expected) in [
            ("none", "none"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8, 192.0.2.7 ,fd00::/8,::1", "10.0.0.0/8,192.0.2.7/32,fd00::/8,::1/128"),
        ] {
            assert_eq!(written(text).as_deref(), Some(expected), "{text}");
            assert_eq!(written(expected).as_deref(), Some(expected));
        }
        for bad in ["", "all", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/8,", "none,10.0.0.0/8", "proxy.local", "1.2.3.4:80"]
        {
            assert_eq!(Networks::read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_format_panic(text in "[0-9a-f:.,/proxy \\[\\]]{0,40}|.{0,40}") {
            let _ = PublicAddresses::read(&text);
            let _ = AdminAddress::read(&text);
            let _ = Networks::read(&text);
        }
    }
}
