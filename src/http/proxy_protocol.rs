//! The header of the PROXY protocol, versions 1 and 2: what a proxy that forwards TCP says about the client, in front of
//! the client's own bytes (HAProxy's `doc/proxy-protocol.txt`; sections are named after it).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a version 1 header at most, its line end included (2.1).
pub const V1_BYTES_MAX: usize = 107;
/// Bytes of a version 2 header at most, its extensions (TLVs) included. The format allows 64 KiB; proxies send some tens
/// to some hundreds, and so much is kept for a peer that has shown nothing else yet.
pub const V2_BYTES_MAX: usize = 4096;

/// What the bytes of a connection are so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// A header that may yet become valid: read on.
    Partial,
    /// No header, with what is wrong.
    Malformed(&'static str),
    /// A whole header.
    Header(Header),
}

/// A whole header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The client's address. None where the proxy speaks for itself (LOCAL, as in a health check), and where the client
    /// came over something else than TCP and IP: then the connection's own peer counts (2.1, 2.2).
    pub source: Option<IpAddr>,
    /// Bytes of the header; the client's own begin behind it.
    pub consumed: usize,
}

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_FIXED_BYTES: usize = 16;

/// Reads a header from the front of `bytes`, which hold everything that has come on this connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    if begins_like(bytes, V1_PREFIX) {
        parse_v1(bytes)
    } else if begins_like(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else {
        Parsed::Malformed("no PROXY header")
    }
}

/// Whether `bytes` and `prefix` agree as far as both go.
fn begins_like(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(byte, expected)| byte == expected)
}

/// 2.1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`
fn parse_v1(bytes: &[u8]) -> Parsed {
    let within = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memmem::find(within, b"\r\n") else {
        return if within.len() < V1_BYTES_MAX { Parsed::Partial } else { Parsed::Malformed("PROXY line too long") };
    };
    let Some(fields) = within[..end].strip_prefix(V1_PREFIX).and_then(|line| str::from_utf8(line).ok()) else {
        return Parsed::Malformed("PROXY line");
    };
    let consumed = end + 2;
    // What follows UNKNOWN is to be ignored.
    if fields == "UNKNOWN" || fields.starts_with("UNKNOWN ") {
        return Parsed::Header(Header { source: None, consumed });
    }
    let mut fields = fields.split(' ');
    let addresses = match fields.next() {
        Some("TCP4") => v1_addresses::<Ipv4Addr>(&mut fields).map(IpAddr::V4),
        Some("TCP6") => v1_addresses::<Ipv6Addr>(&mut fields).map(IpAddr::V6),
        _ => return Parsed::Malformed("PROXY protocol family"),
    };
    match addresses {
        Some(source) if fields.next().is_none() => Parsed::Header(Header { source: Some(source), consumed }),
        _ => Parsed::Malformed("PROXY addresses"),
    }
}

/// Source address, destination address, source port, destination port; the first of them.
fn v1_addresses<'a, A: std::str::FromStr>(fields: &mut impl Iterator<Item = &'a str>) -> Option<A> {
    let source = fields.next()?.parse().ok()?;
    let _destination: A = fields.next()?.parse().ok()?;
    for _ in 0..2 {
        let port = fields.next()?;
        // `parse` also takes a plus sign.
        let _: u16 = port.parse().ok().filter(|_| !port.starts_with('+'))?;
    }
    Some(source)
}

/// 2.2: signature, version and command, family and transport, length, addresses, extensions.
fn parse_v2(bytes: &[u8]) -> Parsed {
    let at = |index: usize| bytes.get(index).copied();
    let is_proxied = match at(12) {
        None => return Parsed::Partial,
        Some(0x20) => false,
        Some(0x21) => true,
        Some(_) => return Parsed::Malformed("PROXY version or command"),
    };
    let family_and_transport = match at(13) {
        None => return Parsed::Partial,
        // Families 0 to 3, transports 0 to 2; others are unassigned, and a receiver should drop the connection.
        Some(byte) if byte >> 4 <= 3 && byte & 0xf <= 2 => byte,
        Some(_) => return Parsed::Malformed("PROXY family or transport"),
    };
    let (Some(high), Some(low)) = (at(14), at(15)) else { return Parsed::Partial };
    let consumed = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if consumed > V2_BYTES_MAX {
        return Parsed::Malformed("PROXY header too long");
    }
    let Some(header) = bytes.get(..consumed) else { return Parsed::Partial };
    let addresses = &header[V2_FIXED_BYTES..];
    let source = match (is_proxied, family_and_transport) {
        // TCP over IPv4: two addresses and two ports.
        (true, 0x11) => match addresses.first_chunk::<12>() {
            Some(&[a, b, c, d, ..]) => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
            None => return Parsed::Malformed("PROXY addresses"),
        },
        // TCP over IPv6.
        (true, 0x21) => match addresses.first_chunk::<36>().and_then(|both| both.first_chunk::<16>()) {
            Some(&source) => Some(IpAddr::V6(Ipv6Addr::from(source))),
            None => return Parsed::Malformed("PROXY addresses"),
        },
        _ => None,
    };
    Parsed::Header(Header { source, consumed })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(bytes: &[u8]) -> Header {
        match parse(bytes) {
            Parsed::Header(header) => header,
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    fn malformed(bytes: &[u8]) -> &'static str {
        match parse(bytes) {
            Parsed::Malformed(reason) => reason,
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("a header is short").to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    /// Addresses and ports as version 2 has them.
    fn v2_addresses(source: IpAddr) -> Vec<u8> {
        match source {
            IpAddr::V4(v4) => [&v4.octets()[..], &[10, 0, 0, 1], &[0xdc, 0x04, 0, 80]].concat(),
            IpAddr::V6(v6) => [&v6.octets()[..], &[0xfd; 16], &[0xdc, 0x04, 0, 80]].concat(),
        }
    }

    #[test]
    fn version_1() {
        let cases: [(&str, Option<&str>); 6] = [
            ("PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n", Some("192.0.2.7")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 65535 0\r\n", Some("2001:db8::7")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", Some("::ffff:192.0.2.7")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 what ever\r\n", None),
            ("PROXY UNKNOWN \r\n", None),
        ];
        for (line, source) in cases {
            let source = source.map(|source| source.parse().unwrap());
            let bytes = format!("{line}GET / HTTP/1.1\r\n");
            assert_eq!(header(bytes.as_bytes()), Header { source, consumed: line.len() }, "{line}");
        }
    }

    #[test]
    fn what_is_no_version_1() {
        for (line, reason) in [
            ("PROXY TCP4 192.0.2.7 192.0.2.1 56324\r\n", "PROXY addresses"),
            ("PROXY TCP4 192.0.2.7 192.0.2.1 56324 443 9\r\n", "PROXY addresses"),
            ("PROXY TCP4 192.0.2.7 192.0.2.1 56324 65536\r\n", "PROXY addresses"),
            ("PROXY TCP4 192.0.2.7 192.0.2.1 +1 1\r\n", "PROXY addresses"),
            ("PROXY TCP4 192.0.2.7 192.0.2.1 56324 443 \r\n", "PROXY addresses"),
            ("PROXY TCP4  192.0.2.7 192.0.2.1 56324 443\r\n", "PROXY addresses"),
            ("PROXY TCP4 ::1 ::1 1 1\r\n", "PROXY addresses"),
            ("PROXY TCP6 192.0.2.7 192.0.2.1 1 1\r\n", "PROXY addresses"),
            ("PROXY TCP4 192.0.2.07 192.0.2.1 1 1\r\n", "PROXY addresses"),
            ("PROXY UDP4 192.0.2.7 192.0.2.1 1 1\r\n", "PROXY protocol family"),
            ("PROXY UNKNOWNS\r\n", "PROXY protocol family"),
            ("PROXY \r\n", "PROXY protocol family"),
            ("PROXY TCP4 192.0.2.7 192.0.2.1 1 1\n", "PROXY line too long"),
            ("GET / HTTP/1.1\r\n", "no PROXY header"),
            ("proxy TCP4", "no PROXY header"),
            ("\r\n\r\n\r", "no PROXY header"),
            ("\x16\x03", "no PROXY header"),
        ] {
            let bytes = format!("{line}{}", if reason.ends_with("long") { "x".repeat(107) } else { String::new() });
            assert_eq!(malformed(bytes.as_bytes()), reason, "{line:?}");
        }
        assert_eq!(malformed(b"PROXY \xff\xff\r\n"), "PROXY line");
    }

    #[test]
    fn a_line_is_bounded() {
        let line = |bytes: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(bytes - 16));
        assert_eq!(header(line(107).as_bytes()).consumed, 107);
        assert_eq!(malformed(line(108).as_bytes()), "PROXY line too long");
        assert_eq!(parse(&line(200).as_bytes()[..106]), Parsed::Partial);
    }

    #[test]
    fn version_2() {
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        let extensions = [0x20, 0, 3, 1, 2, 3, 0x04, 0, 0];
        for (bytes, source) in [
            (v2(0x21, 0x11, &v2_addresses(v4)), Some(v4)),
            (v2(0x21, 0x21, &v2_addresses(v6)), Some(v6)),
            (v2(0x21, 0x11, &[&v2_addresses(v4)[..], &extensions].concat()), Some(v4)),
            (v2(0x21, 0x21, &[&v2_addresses(v6)[..], &extensions].concat()), Some(v6)),
            // LOCAL: a health check. Its addresses are to be skipped, whatever they are.
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v2_addresses(v4)), None),
            (v2(0x20, 0x11, &[1, 2, 3]), None),
            // Unspecified, UDP, a Unix socket.
            (v2(0x21, 0x00, &extensions), None),
            (v2(0x21, 0x12, &v2_addresses(v4)), None),
            (v2(0x21, 0x31, &[7; 216]), None),
        ] {
            let consumed = bytes.len();
            let with_more = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(header(&with_more), Header { source, consumed }, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_version_2() {
        let v4 = v2_addresses("192.0.2.7".parse().unwrap());
        for (bytes, reason) in [
            (v2(0x11, 0x11, &v4), "PROXY version or command"),
            (v2(0x22, 0x11, &v4), "PROXY version or command"),
            (v2(0x21, 0x41, &v4), "PROXY family or transport"),
            (v2(0x21, 0x13, &v4), "PROXY family or transport"),
            (v2(0x21, 0x11, &v4[..11]), "PROXY addresses"),
            (v2(0x21, 0x21, &[0; 35]), "PROXY addresses"),
            (v2(0x21, 0x11, &[0; V2_BYTES_MAX - V2_FIXED_BYTES + 1]), "PROXY header too long"),
        ] {
            assert_eq!(malformed(&bytes), reason, "{}", bytes[..20.min(bytes.len())].escape_ascii());
        }
        assert_eq!(header(&v2(0x21, 0x11, &[0; V2_BYTES_MAX - V2_FIXED_BYTES])).consumed, V2_BYTES_MAX);
    }

    /// A valid header of either version, with its source.
    fn any_header() -> impl Strategy<Value = (Vec<u8>, IpAddr)> {
        let address = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
            any::<[u8; 16]>().prop_map(IpAddr::from)
        ];
        (address, any::<bool>(), any::<(u16, u16)>(), proptest::collection::vec(any::<u8>(), 0..300)).prop_map(
            |(source, is_text, ports, extensions)| {
                let bytes = match (is_text, source) {
                    (true, IpAddr::V4(_)) => format!("PROXY TCP4 {source} 10.0.0.1 {} {}\r\n", ports.0, ports.1).into(),
                    (true, IpAddr::V6(_)) => format!("PROXY TCP6 {source} fd00::1 {} {}\r\n", ports.0, ports.1).into(),
                    (false, IpAddr::V4(_)) => v2(0x21, 0x11, &[v2_addresses(source), extensions].concat()),
                    (false, IpAddr::V6(_)) => v2(0x21, 0x21, &[v2_addresses(source), extensions].concat()),
                };
                (bytes, source)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn a_valid_header_is_read_whole_and_never_before((bytes, source) in any_header(), behind in ".{0,40}") {
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Parsed::Partial, "cut at {}", cut);
            }
            let with_more = [&bytes[..], behind.as_bytes()].concat();
            prop_assert_eq!(header(&with_more), Header { source: Some(source), consumed: bytes.len() });
        }

        /// Method: headers that are nearly right, with bytes replaced, read at every length.
        #[test]
        fn a_verdict_never_changes_with_more_bytes_and_comes_within_the_bound(
            (mut bytes, _) in any_header(),
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
            behind in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.extend(behind);
            let mut first = None;
            for len in 0..=bytes.len() {
                let now = parse(&bytes[..len]);
                match first {
                    None if now != Parsed::Partial => first = Some(now),
                    None => prop_assert!(len < V2_BYTES_MAX),
                    Some(first) => prop_assert_eq!(now, first, "at {}", len),
                }
                if let Parsed::Header(header) = now {
                    prop_assert!(header.consumed <= len);
                }
            }
        }
    }
}
