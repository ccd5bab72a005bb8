//! What a shard keeps for one connection. An idle one is this struct and nothing else.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::client::Disconnect;
use crate::ids::ConnId;
use crate::time::Micros;
use crate::ws::Decoder;

use super::chunk::Chunk;

/// Where a connection is in its life. Each arrow goes down, some skip.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Phase {
    /// Nobody is here.
    Vacant,
    /// A request head is coming in.
    Head,
    /// The hub decides about a request for `/ws`.
    Waiting,
    /// Messages come and go.
    Open,
    /// The last bytes are queued: a response or a Close frame. What comes in is dropped.
    Flushing,
    /// The last bytes are out; the peer's Close frame or FIN is awaited.
    Draining,
    /// Given up; the engine frees the slot when nothing is in flight.
    Closing,
}

/// What follows when the last bytes of a connection are out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Farewell {
    /// Close: the peer has said all it had to say.
    Close,
    /// RFC 6455 7.1.1: wait for the peer's Close frame, and then close first.
    AwaitClose,
    /// FIN, and wait for the peer's. It may be sending still, and a socket closed under unread bytes resets the
    /// connection, which can take our last words with it. The kernel does this on a thread of its own: it is dear.
    HalfClose,
}

/// Who connects to a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Clients, and proxies that speak HTTP for them.
    Clients,
    /// Proxies that pass on a client's bytes, with a PROXY header in front of them.
    Proxies,
    /// Operators.
    Operators,
}

/// One connection.
pub(super) struct Conn {
    pub(super) generation: u32,
    pub(super) phase: Phase,
    /// In the list of connections to flush this turn.
    pub(super) dirty: bool,
    /// A send is in the kernel's hands.
    pub(super) sending: bool,
    /// In the list of connections whose send the kernel did not finish at once.
    pub(super) backlogged: bool,
    /// Counted among the readers that lag and keep reading all the same.
    pub(super) lagging: bool,
    /// Came to the admin listener: its bytes are not the clients'.
    pub(super) is_admin: bool,
    /// Holds one of the node's places for upgraded connections.
    pub(super) reserved: bool,
    /// What follows once everything queued is out, from phase `Flushing` on.
    pub(super) farewell: Farewell,
    /// The peer has finished sending, with a FIN or with a Close frame.
    pub(super) peer_finished: bool,
    /// Control frames within `control_second`.
    pub(super) control_frames: u32,
    pub(super) control_second: u32,
    /// Bytes in flight, in `pending` and in the backlog.
    pub(super) queued_bytes: u32,
    /// When the last byte came.
    pub(super) heard: Micros,
    pub(super) next_ping: Micros,
    /// When the last send was handed to the kernel: while one is in flight, since when it waits.
    pub(super) sent_at: Micros,
    pub(super) decoder: Decoder,
    /// The youngest bytes that are queued; frames are appended here.
    pub(super) pending: Option<Chunk>,
    pub(super) extra: Option<Box<Extra>>,
}

/// What only some connections need, and those not for long.
#[derive(Default)]
pub(super) struct Extra {
    /// In phases `Head` and `Waiting`.
    pub(super) request: Option<Request>,
    /// A message that waits for room in the mesh, and what came behind it.
    pub(super) stalled: Option<Stalled>,
    /// Queued chunks that are older than `Conn::pending`.
    pub(super) backlog: VecDeque<Chunk>,
    /// The send in flight was cancelled: the frame it had begun is finished, then the client is told this.
    pub(super) cut_off: Option<Disconnect>,
}

/// A request on its way in.
pub(super) struct Request {
    /// Whose it is, as far as is known: the peer's, until a proxy that is trusted names its client.
    pub(super) address: IpAddr,
    /// A proxy that is trusted named that address.
    pub(super) is_forwarded: bool,
    /// A PROXY header is to come first.
    pub(super) awaits_proxy_header: bool,
    /// The head as far as it has come, or the PROXY header; behind it, in phase `Waiting`, what came too early.
    pub(super) bytes: Vec<u8>,
    /// The 101 that a verdict of "open" sends.
    pub(super) response: Vec<u8>,
}

/// Where reading stopped.
#[derive(Default)]
pub(super) struct Stalled {
    /// The message that found no room; empty when reading stopped for another reason.
    pub(super) text: String,
    /// Bytes that came after it, not decoded yet.
    pub(super) rest: Vec<u8>,
}

impl Conn {
    pub(super) fn vacant() -> Self {
        Self {
            generation: u32::MAX,
            phase: Phase::Vacant,
            dirty: false,
            sending: false,
            backlogged: false,
            lagging: false,
            is_admin: false,
            reserved: false,
            farewell: Farewell::Close,
            peer_finished: false,
            control_frames: 0,
            control_second: 0,
            queued_bytes: 0,
            heard: Micros(0),
            next_ping: Micros(0),
            sent_at: Micros(0),
            decoder: Decoder::new(),
            pending: None,
            extra: None,
        }
    }

    pub(super) fn accepted(id: ConnId, now: Micros, peer: SocketAddr, audience: Audience) -> Self {
        let request = Request {
            address: peer.ip().to_canonical(),
            is_forwarded: false,
            awaits_proxy_header: audience == Audience::Proxies,
            bytes: Vec::new(),
            response: Vec::new(),
        };
        Self {
            generation: id.generation,
            phase: Phase::Head,
            is_admin: audience == Audience::Operators,
            heard: now,
            extra: Some(Box::new(Extra { request: Some(request), ..Extra::default() })),
            ..Self::vacant()
        }
    }

    pub(super) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.stalled.is_some())
    }

    /// Gives the box back once there is nothing in it, so that an idle connection holds none.
    pub(super) fn trim(&mut self) {
        if let Some(extra) = &self.extra
            && extra.request.is_none()
            && extra.stalled.is_none()
            && extra.backlog.is_empty()
            && extra.cut_off.is_none()
        {
            self.extra = None;
        }
    }
}

const _: () = assert!(size_of::<Conn>() <= 96, "an idle connection is meant to be small");
