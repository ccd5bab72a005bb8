//! Listeners, and where the kernel writes the addresses of the peers it accepts.
#![allow(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;

/// A listener of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListenerId(pub(super) u16);

impl ListenerId {
    /// The listener as an index: listeners are numbered in the order of their [`listen`](super::Engine::listen).
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A listening socket and its accepts.
pub(super) struct Listener {
    /// None after the listener was stopped and its last accept has ended.
    pub(super) fd: Option<OwnedFd>,
    /// Accepts to keep in flight.
    pub(super) wanted: u16,
    pub(super) outstanding: u16,
    pub(super) state: ListenerState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ListenerState {
    Accepting,
    /// The system lacks something that an accept needs: none is armed until a socket closes or the user says so.
    Resting,
    Stopping,
}

/// Where the kernel writes the address of one accepted peer.
#[repr(C)]
pub(super) struct Cell {
    address: libc::sockaddr_storage,
    len: libc::socklen_t,
    pub(super) listener: ListenerId,
}

/// The cells of all outstanding accepts: boxed, because the kernel knows their addresses; reused.
pub(super) struct Cells {
    // A plain vector of cells would move them when it grows.
    #[expect(clippy::vec_box)]
    cells: Vec<Box<Cell>>,
    free: Vec<u32>,
}

impl Cells {
    pub(super) fn new() -> Cells {
        Cells { cells: Vec::new(), free: Vec::new() }
    }

    /// A cell for one accept of `listener`, and where the address and its length are to be written.
    pub(super) fn take(&mut self, listener: ListenerId) -> (u32, *mut libc::sockaddr, *mut libc::socklen_t) {
        let index = self.free.pop().unwrap_or_else(|| {
            // SAFETY: all bytes zero is a valid sockaddr_storage: an address of no family.
            let address = unsafe { std::mem::zeroed() };
            self.cells.push(Box::new(Cell { address, len: 0, listener }));
            self.cells.len() as u32 - 1
        });
        let cell = &mut self.cells[index as usize];
        cell.listener = listener;
        cell.len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        (index, (&raw mut cell.address).cast(), &raw mut cell.len)
    }

    /// What the accept of this cell left there; the cell is free after that.
    pub(super) fn give_back(&mut self, index: u32) -> (ListenerId, SocketAddr) {
        let cell = &self.cells[index as usize];
        let result = (cell.listener, peer(&cell.address));
        self.free.push(index);
        result
    }

    /// Keeps the cells for ever, because the kernel may still write to them.
    pub(super) fn leak(&mut self) {
        for cell in self.cells.drain(..) {
            Box::leak(cell);
        }
    }
}

/// A peer's address; unspecified for families other than IPv4 and IPv6.
fn peer(address: &libc::sockaddr_storage) -> SocketAddr {
    let storage: *const libc::sockaddr_storage = address;
    match i32::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is; sockaddr_storage is large and aligned enough for each.
            let v4 = unsafe { &*storage.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into()
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*storage.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into()
        }
        _ => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into(),
    }
}
