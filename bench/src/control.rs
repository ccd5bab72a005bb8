//! The control: the same system calls as the gateway's engine, and the least framing that a client accepts. Nothing of a
//! gateway is in it, so what it reaches is the limit that the interface sets.

use std::io;

use tungstenite::handshake::derive_accept_key;

use crate::cli::{ControlArgs, ControlMode};
use crate::sys;
use crate::sys::ring::{Completion, Ring};

/// Accepts outstanding, as in the gateway.
const ACCEPTS: u32 = 64;
/// Completions taken a turn, as in the gateway.
const TURN_EVENTS_MAX: usize = 128;
/// Sends queued before they are submitted, so that the first one leaves early.
const SUBMIT_BATCH: usize = 128;
/// Slots of one ring: as many as io_uring's table of descriptors takes.
const SLOTS_EACH_MAX: u64 = 1 << 20;
const BACKLOG: i32 = 4096;
const HEAD_BYTES_MAX: usize = 8 << 10;

/// `{"type":"pong"}` as a server's text frame.
const PONG_FRAME: &[u8] = b"\x81\x0f{\"type\":\"pong\"}";
/// RFC 6455 5.5.1: the answer to a Close, without a code.
const CLOSE_FRAME: &[u8] = b"\x88\x00";

/// Why the control server ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, io::Error),
    /// The core does not exist.
    #[error("cannot pin to core {0}: {1}")]
    Pin(usize, io::Error),
    /// No ring, or it failed.
    #[error("io_uring: {0}")]
    Ring(#[from] io::Error),
}

/// Serves until the process is killed.
///
/// # Errors
/// When it cannot begin, or the ring fails.
pub fn serve(args: &ControlArgs) -> Result<(), ControlError> {
    if let Some(cpu) = args.cpu {
        sys::pin_to(cpu).map_err(|error| ControlError::Pin(cpu, error))?;
    }
    let slots = args.connections_max + ACCEPTS;
    let slots_each_max = sys::raise_descriptor_limit().min(SLOTS_EACH_MAX) as u32;
    let listener = sys::listen(args.listen, BACKLOG).map_err(|error| ControlError::Listen(args.listen, error))?;
    let ring = Ring::new(listener, slots, slots_each_max)?;
    println!("control: {:?} on {}, pid {}", args.mode, args.listen, std::process::id());
    Ok(Server::new(ring, slots, args.mode).run()?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Accepting,
    Upgrading,
    Open,
    /// A Close was answered: the socket goes once that is sent.
    Leaving,
    /// The receive has ended: the slot is closed once no send is under way.
    Ended,
}

struct Client {
    state: State,
    dirty: bool,
    /// Bytes that wait for the send under way.
    queued: Vec<u8>,
    /// The beginning of a head or frame.
    partial: Vec<u8>,
}

struct Server {
    ring: Ring,
    mode: ControlMode,
    clients: Vec<Client>,
    free: Vec<u32>,
    accepts: u32,
    dirty: Vec<u32>,
    /// Slots that were upgraded; kept up to date for the fan-out only.
    open: Vec<u32>,
    /// A frame that is copied to all.
    copy: Vec<u8>,
}

impl Server {
    fn new(ring: Ring, slots: u32, mode: ControlMode) -> Self {
        let client = |_| Client { state: State::Free, dirty: false, queued: Vec::new(), partial: Vec::new() };
        let clients = (0..slots).map(client).collect();
        let free = (0..slots).rev().collect();
        Self { ring, mode, clients, free, accepts: 0, dirty: Vec::new(), open: Vec::new(), copy: Vec::new() }
    }

    fn run(mut self) -> io::Result<()> {
        let mut completions = Vec::with_capacity(TURN_EVENTS_MAX);
        loop {
            while self.accepts < ACCEPTS
                && let Some(slot) = self.free.pop()
            {
                self.ring.accept(slot)?;
                self.clients[slot as usize].state = State::Accepting;
                self.accepts += 1;
            }
            self.ring.turn(TURN_EVENTS_MAX, &mut completions)?;
            for completion in completions.drain(..) {
                self.handle(completion)?;
            }
            self.send_queued()?;
        }
    }

    fn send_queued(&mut self) -> io::Result<()> {
        for (count, slot) in self.dirty.drain(..).enumerate() {
            let client = &mut self.clients[slot as usize];
            client.dirty = false;
            if matches!(client.state, State::Upgrading | State::Open | State::Leaving) {
                self.ring.send(slot, &mut client.queued)?;
            }
            if (count + 1) % SUBMIT_BATCH == 0 {
                self.ring.submit()?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, completion: Completion) -> io::Result<()> {
        match completion {
            Completion::Accepted { slot, errno } => {
                self.accepts -= 1;
                if errno != 0 {
                    self.clients[slot as usize].state = State::Free;
                    self.free.push(slot);
                    return Ok(());
                }
                self.clients[slot as usize].state = State::Upgrading;
                self.ring.receive(slot)
            }
            Completion::Received { slot, buffer, bytes, more } => {
                self.received(slot, buffer, bytes);
                self.ring.recycle(buffer);
                if more { Ok(()) } else { self.ring.receive(slot) }
            }
            Completion::Ended { slot, errno: libc::ENOBUFS } => self.ring.receive(slot),
            Completion::Ended { slot, .. } => {
                self.clients[slot as usize].state = State::Ended;
                if self.mode == ControlMode::Fanout {
                    self.open.retain(|open| *open != slot);
                }
                if self.ring.is_sending(slot) { Ok(()) } else { self.ring.close(slot) }
            }
            Completion::Sent { slot } => {
                let client = &mut self.clients[slot as usize];
                match client.state {
                    State::Ended => self.ring.close(slot),
                    _ if !client.queued.is_empty() => {
                        self.mark(slot);
                        Ok(())
                    }
                    State::Leaving => self.ring.shutdown(slot),
                    _ => Ok(()),
                }
            }
            Completion::Closed { slot } => {
                let client = &mut self.clients[slot as usize];
                client.state = State::Free;
                client.queued.clear();
                client.partial.clear();
                self.free.push(slot);
                Ok(())
            }
        }
    }

    fn received(&mut self, slot: u32, buffer: u16, bytes: usize) {
        let index = slot as usize;
        let was_upgrading = self.clients[index].state == State::Upgrading;
        if self.clients[index].partial.is_empty() {
            let input = self.ring.received(buffer, bytes);
            let used = take(&mut self.clients[index], self.mode, input, &mut self.copy);
            self.clients[index].partial.extend_from_slice(&input[used..]);
        } else {
            let mut partial = std::mem::take(&mut self.clients[index].partial);
            partial.extend_from_slice(self.ring.received(buffer, bytes));
            let used = take(&mut self.clients[index], self.mode, &mut partial, &mut self.copy);
            partial.drain(..used);
            self.clients[index].partial = partial;
        }
        if self.mode == ControlMode::Fanout && was_upgrading && self.clients[index].state == State::Open {
            self.open.push(slot);
        }
        self.fan_out();
        if !self.clients[index].queued.is_empty() {
            self.mark(slot);
        }
    }

    fn fan_out(&mut self) {
        if self.copy.is_empty() {
            return;
        }
        let copy = std::mem::take(&mut self.copy);
        for at in 0..self.open.len() {
            let slot = self.open[at];
            self.clients[slot as usize].queued.extend_from_slice(&copy);
            self.mark(slot);
        }
        self.copy = copy;
        self.copy.clear();
    }

    fn mark(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        if !client.dirty {
            client.dirty = true;
            self.dirty.push(slot);
        }
    }
}

/// Takes whole heads and frames off `input`, queues the answers, and says how many bytes were taken.
fn take(client: &mut Client, mode: ControlMode, input: &mut [u8], copy: &mut Vec<u8>) -> usize {
    let mut used = 0;
    if client.state == State::Upgrading {
        let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else {
            return if input.len() > HEAD_BYTES_MAX { input.len() } else { 0 };
        };
        used = end + 4;
        client.queued.extend_from_slice(&upgrade_response(&input[..end]));
        client.state = State::Open;
    }
    while client.state == State::Open
        && let Some(frame) = parse_masked(&input[used..])
    {
        let bytes = &mut input[used..used + frame.bytes];
        used += frame.bytes;
        match (frame.opcode, mode) {
            (8, _) => {
                client.queued.extend_from_slice(CLOSE_FRAME);
                client.state = State::Leaving;
            }
            (1 | 2, ControlMode::Pong) => client.queued.extend_from_slice(PONG_FRAME),
            (1 | 2, ControlMode::Echo) => append_unmasked(frame, bytes, &mut client.queued),
            (1 | 2, ControlMode::Fanout) => append_unmasked(frame, bytes, copy),
            _ => {}
        }
    }
    if client.state == State::Leaving { input.len() } else { used }
}

fn upgrade_response(head: &[u8]) -> Vec<u8> {
    let head = String::from_utf8_lossy(head);
    let key = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let key = key.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, key)| key.trim()).next();
    let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

#[derive(Clone, Copy)]
struct MaskedFrame {
    opcode: u8,
    /// Bytes before the payload, the mask among them.
    header: usize,
    /// Bytes of the whole frame.
    bytes: usize,
}

fn parse_masked(input: &[u8]) -> Option<MaskedFrame> {
    let [first, second, ..] = *input else { return None };
    let (length, header) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*input.get(2..)?.first_chunk()?)), 8),
        127 => (u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize, 14),
        short => (usize::from(short), 6),
    };
    let bytes = header + length;
    (input.len() >= bytes).then_some(MaskedFrame { opcode: first & 0x0f, header, bytes })
}

/// Appends the frame without its mask, as a server sends it.
fn append_unmasked(frame: MaskedFrame, bytes: &[u8], out: &mut Vec<u8>) {
    let mask = &bytes[frame.header - 4..frame.header];
    out.push(bytes[0]);
    out.push(bytes[1] & 0x7f);
    out.extend_from_slice(&bytes[2..frame.header - 4]);
    out.extend(bytes[frame.header..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, Opcode};

    #[test]
    fn masked_frames_come_back_as_server_frames() {
        for length in [0, 3, 125, 126, 70_000] {
            let payload: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let (mut masked, mut out) = (Vec::new(), Vec::new());
            frame::encode(Opcode::Binary, &payload, &mut masked);
            assert!(parse_masked(&masked[..masked.len() - 1]).is_none());
            let parsed = parse_masked(&masked).expect("complete");
            append_unmasked(parsed, &masked, &mut out);
            let back = frame::parse(&out).expect("well formed").expect("complete");
            assert_eq!((back.payload, back.opcode), (&payload[..], Opcode::Binary));
        }
    }
}
