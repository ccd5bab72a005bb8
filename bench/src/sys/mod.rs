//! The kernel, as far as the generator needs it. The only module of this crate with unsafe code.
#![allow(unsafe_code)]

pub mod ring;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CpuSet, UnshareFlags};

/// Nanoseconds of CLOCK_MONOTONIC, the same for every process of a host.
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Gives the calling thread a descriptor table of its own, so that RLIMIT_NOFILE counts for this thread alone.
/// The thread must not use descriptors that other threads open afterwards, nor hand its own to them.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: the table is copied, so every descriptor that is open now stays valid here; workers share none later.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) }.map_err(io::Error::from)
}

/// The cores the calling thread may run on.
///
/// # Errors
/// Those of sched_getaffinity(2).
pub fn affinity() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Binds the calling thread to these cores; processes that it starts inherit that.
///
/// # Errors
/// Those of sched_setaffinity(2).
pub fn pin_to_all(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    rustix::thread::sched_setaffinity(None, &set).map_err(io::Error::from)
}

/// Binds the calling thread to one core.
///
/// # Errors
/// Those of sched_setaffinity(2), such as EINVAL for a core that does not exist.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(io::Error::from)
}

/// The kernel's id of the calling thread, the name of its folder under /proc/self/task.
pub fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// Raises the soft limit of descriptors to the hard one, and says what it is now.
pub fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // A refusal is not an error: the number returned is what the caller has to live with.
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The bytes of a page.
pub fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// Starts a connection without waiting for it.
///
/// # Errors
/// What socket(2), bind(2) or connect(2) said, but not EINPROGRESS.
pub fn connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = source {
        bind_address_no_port(&socket)?;
        rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Lets connect(2) pick the port, so that one port serves many destinations; bind(2) alone would reserve it for all.
fn bind_address_no_port(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is a live c_int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How a connection attempt ended.
///
/// # Errors
/// The pending error of the socket, such as ECONNREFUSED.
pub fn connect_result(socket: &OwnedFd) -> io::Result<()> {
    match sockopt::socket_error(socket) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) | Err(error) => Err(error.into()),
    }
}

/// Reads what is there. `None`: nothing yet; `Some(0)`: the peer has ended its side.
///
/// # Errors
/// Those of recv(2) other than EAGAIN and EINTR.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((read, _)) => return Ok(Some(read)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes what the socket takes. `None`: it takes nothing now.
///
/// # Errors
/// Those of send(2) other than EAGAIN and EINTR.
pub fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(written) => return Ok(Some(written)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// One readiness event of [`Epoll`].
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// What the descriptor was added with.
    pub token: u64,
    /// There is something to read, an end or an error among it.
    pub readable: bool,
    /// The socket takes bytes (again), or its connection attempt has ended.
    pub writable: bool,
    /// The peer has ended its side: the end may lie behind data that is there already.
    pub half_closed: bool,
    /// The connection is over in both directions, or broken.
    pub ended: bool,
}

/// An edge-triggered epoll set: one registration for a socket's whole life, no system call to change interest.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Epoll {
    /// A set that reports at most `events_max` events a wait.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new(events_max: usize) -> io::Result<Self> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { fd, events: Vec::with_capacity(events_max) })
    }

    /// Reports every edge of this socket with `token` until the socket is closed.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn add(&self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        use epoll::EventFlags;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.fd, socket, epoll::EventData::new_u64(token), flags).map_err(io::Error::from)
    }

    /// Waits for events, and puts them into `into` (which is cleared first).
    ///
    /// # Errors
    /// Those of epoll_wait(2) other than EINTR.
    pub fn wait(&mut self, timeout: Duration, into: &mut Vec<Readiness>) -> io::Result<()> {
        use epoll::EventFlags;
        into.clear();
        self.events.clear();
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        into.extend(self.events.iter().map(|event| {
            // The kernel's struct is packed: its fields are copied, not borrowed.
            let (flags, data) = (event.flags, event.data);
            let ended = EventFlags::HUP | EventFlags::ERR;
            Readiness {
                token: data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | ended),
                writable: flags.intersects(EventFlags::OUT | ended),
                half_closed: flags.intersects(EventFlags::RDHUP | ended),
                ended: flags.intersects(ended),
            }
        }));
        Ok(())
    }
}

/// A listener whose accepted sockets inherit TCP_NODELAY.
///
/// # Errors
/// Those of socket(2), setsockopt(2), bind(2) and listen(2).
pub fn listen(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}
