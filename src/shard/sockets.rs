//! A shard's connections and their send queues, and what the hub does to them.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Disconnect;
use crate::hub::bus::ToBus;
use crate::hub::effects::{COPY_BYTES_MAX, Effects, Origin, Verdict, Wire};
use crate::hub::envelope::{Broadcast, Class, ToHome, ToOwner};
use crate::hub::heartbeat::Heartbeat;
use crate::hub::limiter::AddressKey;
use crate::hub::links::Links;
use crate::hub::timers::Wheel;
use crate::ids::{ConnId, ShardId};
use crate::metrics::ShardMetrics;
use crate::node::Node;
use crate::time::Micros;
use crate::ws::encode;

use super::chunk::Chunk;
use super::conn::{Conn, Farewell, Phase};
use super::port::ShardPort;
use super::run::ShardConfig;
use super::spread::Spreads;

/// Frames are gathered into one send up to this size; it is also what one slow send may hold in the kernel's hands.
pub(super) const COALESCE_BYTES_MAX: usize = 64 << 10;
/// A queued chunk that is shared is copied to gather more behind it only up to this size.
const SHARED_COPY_BYTES_MAX: usize = 16 << 10;
/// Vectors kept for reuse, and the largest that is.
const SPARE_BUFFERS_MAX: usize = 256;
const SPARE_BUFFER_BYTES_MAX: usize = 16 << 10;
/// A reader lags when its queue passes this part of its bound…
const LAGGING_PART: usize = 4;
/// …and keeps up, all the same, when the kernel took something for it within this time.
pub(super) const KEEPING_UP: Duration = Duration::from_secs(1);
/// So many lagging readers that keep up, and a tenth of all: the flood is the trouble, and broadcasts wait.
const CROWD_MIN: usize = 2;
const CROWD_PART: usize = 10;
/// How long broadcasts wait for the last of a crowd.
const CROWD_HOLD_MAX: Duration = Duration::from_secs(1);
/// How long, and how often at most, they wait for a single reader.
const STRAIN_HOLD_MAX: Duration = Duration::from_millis(200);
const STRAIN_HOLD_EVERY: Duration = Duration::from_millis(500);
/// Broadcasts that have not reached all connections take at most this part of a connection's queue.
const SPREAD_PART: usize = 8;
const _: () = assert!(SPREAD_PART > LAGGING_PART);
/// Connections that broadcasts are queued for in one turn: about a millisecond's sends.
const SPREAD_CONNECTIONS_MAX: u32 = 256;
const _: () = assert!(COPY_BYTES_MAX <= SHARED_COPY_BYTES_MAX && SHARED_COPY_BYTES_MAX <= COALESCE_BYTES_MAX);

/// The connections of a shard.
pub(super) struct Sockets {
    pub(super) now: Micros,
    shard: ShardId,
    pub(super) config: Arc<ShardConfig>,
    pub(super) node: Arc<Node>,
    pub(super) metrics: &'static ShardMetrics,
    pub(super) links: Links,
    /// The way to the bus, where there is one.
    pub(super) port: Option<ShardPort>,
    pub(super) wheel: Wheel,
    pub(super) heartbeat: Heartbeat,
    conns: Vec<Conn>,
    /// Connections with something to send or to finish at the end of this turn.
    pub(super) dirty: Vec<u32>,
    /// Connections whose last send the kernel has not finished at once.
    pub(super) backlogged: Vec<ConnId>,
    /// Connections to be cut off: their queue passed its bound.
    pub(super) too_slow: Vec<ConnId>,
    /// Connections whose message waits for room.
    pub(super) stalled: VecDeque<ConnId>,
    /// Connections whose next step before they open waits.
    pub(super) postponed: VecDeque<ConnId>,
    spreads: Spreads,
    /// When the messages came in whose deliveries were queued this turn, and how many deliveries each.
    pub(super) deliveries: Vec<(Micros, u64)>,
    pub(super) queued_bytes: u64,
    pub(super) open: u64,
    /// Readers that lag and keep reading all the same.
    lagging: usize,
    /// Set while broadcasts wait for lagging readers: until when at most.
    held_until: Option<Micros>,
    /// A reader that keeps up came close to its bound in this turn.
    strained: bool,
    /// When broadcasts may wait for a single reader again.
    strain_again_at: Micros,
    /// Connections whose reading pauses for a while: what they send piles up in front of a lagging reader.
    pub(super) to_pause: Vec<ConnId>,
    /// Connections whose reading goes on at the next survey.
    pub(super) paused: Vec<ConnId>,
    /// Connections that have not opened yet.
    pub(super) handshakes: u32,
    spare: Vec<Vec<u8>>,
}

impl Sockets {
    pub(super) fn new(
        now: Micros,
        config: Arc<ShardConfig>,
        node: Arc<Node>,
        shard: ShardId,
        port: Option<ShardPort>,
    ) -> Self {
        let metrics = node.shard_metrics(shard);
        let sockets_max = config.sockets_max as usize;
        Self {
            now,
            shard,
            links: Links::new(shard, config.hub.shards),
            port,
            wheel: Wheel::new(now, sockets_max),
            heartbeat: config.heartbeat,
            conns: Vec::with_capacity(sockets_max),
            config,
            node,
            metrics,
            dirty: Vec::new(),
            backlogged: Vec::new(),
            too_slow: Vec::new(),
            stalled: VecDeque::new(),
            postponed: VecDeque::new(),
            spreads: Spreads::default(),
            deliveries: Vec::new(),
            queued_bytes: 0,
            open: 0,
            handshakes: 0,
            lagging: 0,
            held_until: None,
            strained: false,
            strain_again_at: now,
            to_pause: Vec::new(),
            paused: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Which shard this is.
    pub(super) fn shard(&self) -> ShardId {
        self.shard
    }

    /// The connection, unless somebody else has its place by now.
    pub(super) fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.index as usize).filter(|conn| conn.generation == id.generation)
    }

    /// The connection in a place, with its id.
    pub(super) fn at(&mut self, index: u32) -> Option<(ConnId, &mut Conn)> {
        let conn = self.conns.get_mut(index as usize).filter(|conn| conn.phase != Phase::Vacant)?;
        Some((ConnId { index, generation: conn.generation }, conn))
    }

    /// Places that were ever used; some are vacant.
    pub(super) fn places(&self) -> u32 {
        self.conns.len() as u32
    }

    pub(super) fn insert(&mut self, id: ConnId, conn: Conn) {
        let index = id.index as usize;
        if index >= self.conns.len() {
            self.conns.resize_with(index + 1, Conn::vacant);
        }
        self.conns[index] = conn;
    }

    pub(super) fn remove(&mut self, id: ConnId) {
        self.no_longer_lags(id);
        if let Some(conn) = self.get(id) {
            *conn = Conn::vacant();
            self.wheel.cancel(id.index);
        }
    }

    /// Queues wire bytes, copying them.
    pub(super) fn queue(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(id.index as usize).filter(|conn| conn.generation == id.generation) else {
            return;
        };
        let appended = conn.pending.as_mut().is_some_and(|chunk| chunk.try_append(bytes, COALESCE_BYTES_MAX));
        if !appended {
            let mut fresh = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(bytes.len().max(256)));
            match conn.pending.take() {
                // Small bytes that others share, a broadcast's: gathering takes a copy of one's own.
                Some(chunk) if chunk.len() + bytes.len() <= SHARED_COPY_BYTES_MAX => {
                    fresh.extend_from_slice(chunk.as_slice());
                }
                Some(full) => conn.extra().backlog.push_back(full),
                None => {}
            }
            fresh.extend_from_slice(bytes);
            conn.pending = Some(Chunk::from_vec(fresh));
        }
        self.queued(id, bytes.len());
    }

    /// Queues bytes that are shared with others or too large to copy.
    pub(super) fn queue_chunk(&mut self, id: ConnId, chunk: Chunk) {
        let Some(conn) = self.get(id) else { return };
        let len = chunk.len();
        match &mut conn.pending {
            None => conn.pending = Some(chunk),
            Some(_) if len <= SHARED_COPY_BYTES_MAX => return self.queue(id, chunk.as_slice()),
            pending => {
                let older = pending.replace(chunk);
                conn.extra().backlog.extend(older);
            }
        }
        self.queued(id, len);
    }

    /// Accounts for bytes that were queued just now.
    fn queued(&mut self, id: ConnId, len: usize) {
        let send_queue_bytes_max = self.config.send_queue_bytes_max;
        let now = self.now;
        let conn = &mut self.conns[id.index as usize];
        conn.queued_bytes = conn.queued_bytes.saturating_add(len as u32);
        self.queued_bytes += len as u64;
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id.index);
        }
        if conn.sending {
            if !conn.backlogged {
                conn.backlogged = true;
                self.backlogged.push(id);
            }
            if conn.queued_bytes as usize > send_queue_bytes_max && conn.phase == Phase::Open {
                self.too_slow.push(id);
            }
            let keeps_up = now.since(conn.sent_at) < KEEPING_UP;
            self.strained |= conn.lagging && conn.queued_bytes as usize > send_queue_bytes_max / 4 * 3;
            if !conn.lagging && conn.queued_bytes as usize > send_queue_bytes_max / LAGGING_PART && keeps_up {
                conn.lagging = true;
                self.lagging += 1;
            }
        }
    }

    /// Counts a connection among the lagging no longer: it has caught up, stopped reading, or gone.
    pub(super) fn no_longer_lags(&mut self, id: ConnId) {
        if let Some(conn) = self.get(id)
            && std::mem::take(&mut conn.lagging)
        {
            self.lagging -= 1;
        }
    }

    /// Whether broadcasts wait for lagging readers.
    ///
    /// For a crowd they wait until nobody lags, but not for long after the crowd has dispersed, since some readers are
    /// slow on any day. For a single reader close to its bound they wait briefly, and seldom: it may only have had its
    /// turn late, but it must not slow everybody else down.
    pub(super) fn update_hold(&mut self) {
        let now = self.now;
        let was_held = self.held_until.is_some();
        let is_strained = std::mem::take(&mut self.strained);
        if self.lagging >= CROWD_MIN.max(self.open as usize / CROWD_PART) {
            self.held_until = Some(now.after(CROWD_HOLD_MAX));
        } else if is_strained && !was_held && now >= self.strain_again_at {
            self.held_until = Some(now.after(STRAIN_HOLD_MAX));
            self.strain_again_at = now.after(STRAIN_HOLD_EVERY);
        } else if self.lagging == 0 || self.held_until.is_some_and(|until| now >= until) {
            self.held_until = None;
        }
        if self.held_until.is_some() && !was_held {
            self.metrics.broadcast_holds.add(1);
        }
    }

    /// Accounts for bytes that left a queue: sent, or dropped.
    pub(super) fn unqueued(&mut self, id: ConnId, len: usize) {
        self.queued_bytes = self.queued_bytes.saturating_sub(len as u64);
        let caught_up_bytes = self.config.send_queue_bytes_max / LAGGING_PART;
        let Some(conn) = self.get(id) else { return };
        conn.queued_bytes = conn.queued_bytes.saturating_sub(len as u32);
        if conn.queued_bytes as usize <= caught_up_bytes {
            self.no_longer_lags(id);
        }
    }

    /// The oldest chunk that waits, for sending.
    pub(super) fn take_chunk(&mut self, id: ConnId) -> Option<Chunk> {
        let conn = self.get(id)?;
        if let Some(extra) = &mut conn.extra
            && let Some(oldest) = extra.backlog.pop_front()
        {
            return Some(oldest);
        }
        conn.pending.take()
    }

    /// Drops all that waits, and what is in flight stays; returns how many frames that were.
    pub(super) fn drop_queue(&mut self, id: ConnId) -> u64 {
        let mut frames = 0;
        while let Some(chunk) = self.take_chunk(id) {
            frames += encode::count_frames(chunk.as_slice()) as u64;
            self.unqueued(id, chunk.len());
        }
        frames
    }

    /// Keeps a buffer for reuse.
    pub(super) fn recycle(&mut self, chunk: Chunk) {
        if self.spare.len() < SPARE_BUFFERS_MAX
            && let Some(buffer) = chunk.into_reusable()
            && buffer.capacity() <= SPARE_BUFFER_BYTES_MAX
        {
            self.spare.push(buffer);
        }
    }

    /// Puts broadcasts into the queues of open connections, as many as one turn may.
    pub(super) fn spread_broadcasts(&mut self) {
        let mut connections_left = SPREAD_CONNECTIONS_MAX;
        while connections_left > 0 {
            let Some(mut spread) = self.spreads.take() else { break };
            let reached_before = spread.reached;
            while spread.next < self.places() && connections_left > 0 {
                let index = spread.next;
                spread.next += 1;
                let conn = &self.conns[index as usize];
                if conn.phase == Phase::Open {
                    let id = ConnId { index, generation: conn.generation };
                    self.queue_chunk(id, spread.chunk.clone());
                    spread.reached += 1;
                    connections_left -= 1;
                }
            }
            let frames = spread.received.len() as u64;
            self.metrics.messages_out_broadcast.add(frames * (spread.reached - reached_before));
            if spread.next < self.places() {
                self.spreads.put_back(spread);
                break;
            }
            self.spreads.finished(&spread);
            for &received in &spread.received {
                self.delivered(received, spread.reached);
            }
        }
    }

    /// Whether a broadcast has not reached all connections yet.
    pub(super) fn is_spreading(&self) -> bool {
        self.spreads.bytes() > 0
    }

    /// Notes deliveries for the latency histogram.
    fn delivered(&mut self, received: Micros, deliveries: u64) {
        match self.deliveries.last_mut() {
            Some((same, count)) if *same == received => *count += deliveries,
            _ => self.deliveries.push((received, deliveries)),
        }
    }

    /// Opens a connection whose 101 goes out now.
    fn opened(&mut self, id: ConnId) {
        let now = self.now;
        let first_ping = self.heartbeat.first(now, id.index.wrapping_mul(7).wrapping_add(id.generation));
        let Some(conn) = self.get(id) else { return };
        conn.phase = Phase::Open;
        conn.heard = now;
        conn.next_ping = first_ping;
        let look = first_ping.min(now.after(self.heartbeat.pong_timeout));
        self.wheel.set(id.index, look);
        self.open += 1;
        self.handshakes -= 1;
        self.metrics.connections.set(self.open);
    }

    /// An address that asks too often, and is the only one that asks, may stand for many clients.
    fn log_too_many(&self, address: IpAddr, is_forwarded: bool) {
        tracing::debug!(%address, is_forwarded, "asks for too many connections");
        if !is_forwarded && self.node.lone_address.is_news(self.now, AddressKey::from(address)) {
            tracing::warn!(
                %address,
                "all requests for /ws come from one address, and are answered 429; if a proxy is there, name it in \
                 trusted_proxies, and let it say for whom it speaks (X-Forwarded-For, or a port with `,proxy`)"
            );
        }
    }

    /// Puts a Close frame behind what is queued; nothing follows it.
    pub(super) fn queue_close(&mut self, id: ConnId, why: Disconnect) {
        let mut frame = Vec::with_capacity(128);
        encode::close(why.code(), why.reason(), &mut frame);
        self.queue(id, &frame);
    }
}

impl Effects for Sockets {
    fn decide(&mut self, id: ConnId, verdict: Verdict) {
        let Some(conn) = self.get(id).filter(|conn| conn.phase == Phase::Waiting) else { return };
        let Some(request) = conn.extra().request.take() else { return };
        match verdict {
            Verdict::Open => {
                let early = request.bytes;
                if !early.is_empty() {
                    // Handled as a stalled message would be, with nothing to say first.
                    conn.extra().stalled = Some(super::conn::Stalled { text: String::new(), rest: early });
                    self.stalled.push_back(id);
                } else {
                    conn.trim();
                }
                self.opened(id);
                self.queue(id, &request.response);
            }
            Verdict::Nameless => {
                self.queue(id, &request.response);
                self.queue_close(id, Disconnect::MissingUserId);
                self.metrics.closes_missing_user_id.add(1);
                self.finish_request(id, Farewell::AwaitClose);
            }
            Verdict::TooMany { retry_after } => {
                self.metrics.refused_address_rate.add(1);
                self.log_too_many(request.address, request.is_forwarded);
                let response = super::request::too_many_connects(retry_after);
                self.queue(id, &response);
                self.finish_request(id, Farewell::Close);
            }
            Verdict::Unavailable => {
                self.metrics.refused_not_ready.add(1);
                let response = super::request::not_registered();
                self.queue(id, &response);
                self.finish_request(id, Farewell::Close);
            }
        }
    }

    fn deliver(&mut self, id: ConnId, frame: Wire<'_>, origin: Origin) -> bool {
        let Origin { sender, received } = origin;
        let Some(conn) = self.get(id).filter(|conn| conn.phase == Phase::Open) else { return false };
        if conn.lagging
            && let Some(sender) = sender
            && sender.conn != id
        {
            if sender.shard == self.shard {
                self.to_pause.push(sender.conn);
            } else {
                self.links.push_pause(sender.shard, sender.conn);
            }
        }
        self.delivered(received, 1);
        match frame {
            Wire::Shared(bytes) if bytes.len() > COPY_BYTES_MAX => {
                self.queue_chunk(id, Chunk::from_bytes(bytes.clone()))
            }
            frame => self.queue(id, frame.as_slice()),
        }
        true
    }

    fn deliver_all(&mut self, frame: Wire<'_>, received: Micros) {
        if self.open > 0 {
            self.spreads.push(frame, received);
        }
    }

    fn postpone(&mut self, id: ConnId) {
        self.postponed.push_back(id);
    }

    fn takes_broadcasts(&self) -> bool {
        // What goes into every queue at once is bounded, so that a hold comes in time.
        let bytes_max = self.config.send_queue_bytes_max / SPREAD_PART;
        self.held_until.is_none() && (self.spreads.bytes() == 0 || self.spreads.bytes() < bytes_max)
    }

    fn has_room(&self, class: Class, shard: ShardId) -> bool {
        self.links.has_room(class, shard)
    }

    fn push_home(&mut self, shard: ShardId, message: ToHome) {
        self.metrics.mesh_messages_out.add(1);
        self.links.push_home(shard, message);
    }

    fn push_owner(&mut self, shard: ShardId, message: ToOwner) {
        self.metrics.mesh_messages_out.add(1);
        self.links.push_owner(shard, message);
    }

    fn push_broadcast(&mut self, shard: ShardId, message: Broadcast) {
        self.metrics.mesh_messages_out.add(1);
        self.links.push_broadcast(shard, message);
    }

    fn bus_has_room(&self) -> bool {
        self.port.as_ref().is_some_and(ShardPort::has_room)
    }

    fn push_bus(&mut self, message: ToBus) {
        if let Some(port) = &mut self.port {
            port.push(message);
        }
    }

    fn bus_takes_broadcasts(&self) -> bool {
        self.node.bus_takes_broadcasts()
    }
}
