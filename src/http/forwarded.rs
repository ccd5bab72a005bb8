//! Whose request it is: the peer's, or that of the client for whom a trusted proxy speaks.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::head::Request;

/// The networks whose hosts are believed when they say for whom they speak.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Trusts the hosts of these networks and nobody else. A network of IPv4 addresses mapped to IPv6 is that of the
    /// IPv4 addresses.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().map(canonical).collect())
    }

    /// Whether what this host says is believed.
    pub fn contains(&self, host: IpAddr) -> bool {
        let host = host.to_canonical();
        self.0.iter().any(|network| network.contains(&host))
    }
}

/// The network itself, without the bits of a host in it, and as IPv4 where it is IPv4.
pub fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let network = network.trunc();
    let length = network.prefix_len().checked_sub(MAPPED_BITS);
    match (network, network.addr().to_canonical(), length) {
        (IpNet::V6(_), address @ IpAddr::V4(_), Some(length)) => IpNet::new_assert(address, length),
        _ => network,
    }
}

/// What became of an address that came with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// Nobody said anything.
    Nothing,
    /// A trusted proxy said it, and it is believed.
    Believed,
    /// Somebody else said it; it is ignored.
    Untrusted,
    /// A trusted proxy said it, and it is no address.
    Unreadable,
}

/// The client of a request, and what became of the header fields that name it.
///
/// `from` is the peer, or whom the peer's PROXY header names. `X-Forwarded-For` is read from the right, where each proxy
/// appends whom it speaks for: an element is believed as long as the host to its right is trusted, so what a client
/// wrote there itself is never reached. `X-Real-IP` counts where there is no `X-Forwarded-For`.
pub fn client(from: IpAddr, request: &Request<'_>, trusted: &TrustedProxies) -> (IpAddr, Told) {
    let from = from.to_canonical();
    let mut hops: Vec<&[u8]> = request.list("x-forwarded-for").collect();
    if hops.is_empty() {
        hops.extend(request.header("x-real-ip"));
    }
    if hops.is_empty() {
        return (from, Told::Nothing);
    }
    if !trusted.contains(from) {
        return (from, Told::Untrusted);
    }
    let mut client = from;
    for hop in hops.into_iter().rev() {
        let Some(address) = read_address(hop) else { return (client, Told::Unreadable) };
        client = address;
        if !trusted.contains(client) {
            break;
        }
    }
    (client, Told::Believed)
}

/// `192.0.2.7`, `192.0.2.7:8080`, `2001:db8::7`, `[2001:db8::7]`, `[2001:db8::7]:8080`
fn read_address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?.trim();
    let address = text.parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    let address = address.or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok());
    Some(address?.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::head::{HeadLimits, Parsed, parse};

    fn trusted(networks: &[&str]) -> TrustedProxies {
        TrustedProxies::new(networks.iter().map(|text| text.parse().unwrap()))
    }

    /// The client of a request with these header fields that came from `from`.
    fn client_of(from: &str, fields: &[&str], trusted: &TrustedProxies) -> (String, Told) {
        let head = format!("GET /ws HTTP/1.1\r\n{}\r\n", fields.iter().map(|f| format!("{f}\r\n")).collect::<String>());
        let Parsed::Request(request) = parse(head.as_bytes(), &HeadLimits::default()) else { panic!("{head:?}") };
        let (client, told) = client(from.parse().unwrap(), &request, trusted);
        (client.to_string(), told)
    }

    #[test]
    fn who_is_trusted() {
        let some = trusted(&["10.0.0.9/8", "192.0.2.7/32", "fd00::/8", "::ffff:172.16.0.0/108", "2001:db8::1/128"]);
        let is_trusted = |host: &str| some.contains(host.parse().unwrap());
        for host in ["10.255.0.1", "::ffff:10.1.2.3", "192.0.2.7", "fd12::1", "172.31.255.255", "2001:db8::1"] {
            assert!(is_trusted(host), "{host}");
        }
        for host in ["11.0.0.1", "192.0.2.8", "fe80::1", "172.32.0.1", "2001:db8::2", "::1"] {
            assert!(!is_trusted(host), "{host}");
        }
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn addresses_are_counted_from_the_right() {
        let some = trusted(&["10.0.0.0/8", "fd00::/8"]);
        let cases: [(&str, &[&str], &str, Told); 17] = [
            ("10.0.0.1", &[], "10.0.0.1", Told::Nothing),
            ("::ffff:10.0.0.1", &[], "10.0.0.1", Told::Nothing),
            ("192.0.2.9", &["X-Forwarded-For: 192.0.2.1"], "192.0.2.9", Told::Untrusted),
            ("192.0.2.9", &["X-Real-IP: 192.0.2.1"], "192.0.2.9", Told::Untrusted),
            ("10.0.0.1", &["X-Forwarded-For: 192.0.2.1"], "192.0.2.1", Told::Believed),
            ("::ffff:10.0.0.1", &["x-forwarded-for: ::ffff:192.0.2.1"], "192.0.2.1", Told::Believed),
            // What the client wrote itself stands to the left of what the proxy saw.
            ("10.0.0.1", &["X-Forwarded-For: 1.1.1.1, 192.0.2.1"], "192.0.2.1", Told::Believed),
            ("10.0.0.1", &["X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 192.0.2.1"], "192.0.2.1", Told::Believed),
            ("10.0.0.1", &["X-Forwarded-For: 10.9.9.9, 192.0.2.1, fd00::3,10.0.0.2"], "192.0.2.1", Told::Believed),
            // All of them are ours: the client is inside.
            ("10.0.0.1", &["X-Forwarded-For: 10.0.0.3, 10.0.0.2"], "10.0.0.3", Told::Believed),
            ("10.0.0.1", &["X-Real-IP: 192.0.2.1"], "192.0.2.1", Told::Believed),
            ("10.0.0.1", &["X-Real-IP: 1.1.1.1", "X-Forwarded-For: 192.0.2.1"], "192.0.2.1", Told::Believed),
            ("10.0.0.1", &["X-Forwarded-For: 192.0.2.1:4711"], "192.0.2.1", Told::Believed),
            ("fd00::1", &["X-Forwarded-For: [2001:db8::7]:4711, [fd00::2]"], "2001:db8::7", Told::Believed),
            ("10.0.0.1", &["X-Forwarded-For: unknown"], "10.0.0.1", Told::Unreadable),
            ("10.0.0.1", &["X-Forwarded-For: 192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2", Told::Unreadable),
            ("10.0.0.1", &["X-Forwarded-For: ,", "X-Real-IP:"], "10.0.0.1", Told::Unreadable),
        ];
        for (from, fields, client, told) in cases {
            assert_eq!(client_of(from, fields, &some), (client.to_owned(), told), "{from} {fields:?}");
        }
    }

    #[test]
    fn networks_are_written_one_way() {
        for (text, written) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00::1/64", "fd00::/64"),
        ] {
            assert_eq!(canonical(text.parse().unwrap()).to_string(), written);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        /// Method: a chain of our proxies, each of which appends whom it saw; the client may have written anything before.
        #[test]
        fn nothing_that_a_client_writes_changes_who_it_is(
            forged in "[ -~]{0,60}",
            outside in any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
            proxies in proptest::collection::vec(any::<[u8; 3]>().prop_map(|[a, b, c]| format!("10.{a}.{b}.{c}")), 1..5),
        ) {
            let some = trusted(&["10.0.0.0/8"]);
            prop_assume!(!some.contains(outside));
            let hops: Vec<String> = std::iter::once(outside.to_string()).chain(proxies.iter().skip(1).cloned()).collect();
            let field = format!("X-Forwarded-For: {forged}, {}", hops.join(", "));
            prop_assert_eq!(client_of(&proxies[0], &[&field], &some), (outside.to_string(), Told::Believed));
        }
    }
}
