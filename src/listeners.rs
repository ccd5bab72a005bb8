//! Listening sockets: one for each shard and address, with the options that accepted sockets inherit.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::config::{Config, ListenAddress};
use crate::node::NodeError;
use crate::shard::Audience;

/// Unsent bytes the kernel takes beyond what is on its way: a slow reader's backlog stays where it is counted.
const NOTSENT_LOWAT_BYTES: u32 = 128 << 10;
/// How long an address may be in use before that is an error, and how often it is tried again.
const IN_USE_MAX: Duration = Duration::from_secs(2);
const IN_USE_AGAIN: Duration = Duration::from_millis(10);
/// A peer that acknowledges nothing for so long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// All listeners of a node.
#[derive(Debug)]
pub struct NodeListeners {
    /// Where clients connect, with the ports that the kernel chose where none was asked for.
    pub public: Vec<ListenAddress>,
    /// Where operators do.
    pub admin: Option<SocketAddr>,
    /// The sockets of each shard.
    pub by_shard: Vec<Vec<(OwnedFd, Audience)>>,
}

/// Opens every listener that the configuration asks for.
///
/// # Errors
/// See [`open`].
pub fn open_all(config: &Config) -> Result<NodeListeners, NodeError> {
    let mut by_shard: Vec<Vec<(OwnedFd, Audience)>> = (0..config.shards).map(|_| Vec::new()).collect();
    let mut open_one = |what, addr, count, audience| -> Result<SocketAddr, NodeError> {
        let opened = open(what, addr, count, config.backlog)?;
        for (sockets, socket) in by_shard.iter_mut().zip(opened.sockets) {
            sockets.push((socket, audience));
        }
        Ok(opened.addr)
    };
    let mut public = Vec::new();
    for &ListenAddress { addr, proxy } in &config.listen {
        let audience = if proxy { Audience::Proxies } else { Audience::Clients };
        public.push(ListenAddress { addr: open_one("--listen", addr, config.shards, audience)?, proxy });
    }
    let admin = config.admin_listen.map(|addr| open_one("--admin-listen", addr, 1, Audience::Operators)).transpose()?;
    Ok(NodeListeners { public, admin, by_shard })
}

/// The sockets of one address.
#[derive(Debug)]
pub struct Listeners {
    /// The address, with the port that the kernel chose where none was asked for.
    pub addr: SocketAddr,
    /// As many as were asked for.
    pub sockets: Vec<OwnedFd>,
}

/// Opens `count` sockets on one address; connections spread over them.
///
/// # Errors
/// [`NodeError::AddressInUse`] when anybody listens there, one that would share the port included.
pub fn open(what: &'static str, addr: SocketAddr, count: usize, backlog: u32) -> Result<Listeners, NodeError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => NodeError::AddressInUse { what, addr },
        _ => NodeError::Listen { what, addr, error },
    };
    if addr.port() != 0 {
        // With SO_REUSEPORT on both sides a second gateway would take half of the connections, silently.
        bind_alone(addr).map_err(failed)?;
    }
    let first = bind(addr, true).map_err(failed)?;
    let addr = first.local_addr().and_then(|bound| bound.as_socket().ok_or(io::ErrorKind::Unsupported.into()));
    let addr = addr.map_err(failed)?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(bind(addr, true).map_err(failed)?);
    }
    for socket in &sockets {
        set_options(socket).map_err(failed)?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(failed)?;
    }
    Ok(Listeners { addr, sockets: sockets.into_iter().map(OwnedFd::from).collect() })
}

/// Binds an address that nobody else listens on, and lets it go.
///
/// A process that was killed leaves its rings to the kernel, which closes their listeners some 10 ms after the process has
/// gone: who starts it again at once finds the address in use.
fn bind_alone(addr: SocketAddr) -> io::Result<()> {
    let end = Instant::now() + IN_USE_MAX;
    loop {
        match bind(addr, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                // No shard runs yet.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(IN_USE_AGAIN);
            }
            result => return result.map(drop),
        }
    }
}

fn bind(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    // Connections of the last run that are in TIME_WAIT do not keep the address.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&addr.into())?;
    if !shared {
        // Of two sockets with SO_REUSEADDR both may bind; only one may listen.
        socket.listen(1)?;
    }
    Ok(socket)
}

/// io_uring's direct descriptors can't be given options on older kernels; accepted sockets inherit these.
fn set_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gateway_on_the_port_is_refused() {
        let any = "127.0.0.1:0".parse().unwrap();
        let first = open("--listen", any, 3, 16).unwrap();
        assert_eq!(first.sockets.len(), 3);
        let second = open("--listen", first.addr, 3, 16);
        assert!(matches!(second, Err(NodeError::AddressInUse { addr, .. }) if addr == first.addr), "{second:?}");
        drop(first);
        let again = open("--listen", any, 1, 16).unwrap();
        drop(again);
    }
}
