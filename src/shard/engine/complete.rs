//! What follows from each completion.

use std::io;

use super::accept::ListenerState;
use super::ring::Completion;
use super::slot::{Fin, Phase, Recv};
use super::token::{Op, Token};
use super::{Engine, Event};

impl Engine {
    /// Draws the consequences of one completion; answers the event that the user is to know, if any.
    pub(super) fn complete(&mut self, done: Completion) -> Option<Event> {
        let token = Token::unpack(done.user_data)?;
        if matches!(token.op, Op::Recv | Op::CancelRecv) && self.has_its_bytes(&done, token) {
            self.deferred.push_back(done);
            return None;
        }
        match token.op {
            Op::Accept => self.accepted(done, token),
            Op::Recv => self.received(done, token),
            Op::Send => self.sent(done, token),
            Op::Shutdown => self.shut_down(done, token),
            Op::Close => self.closed(done, token),
            Op::CancelRecv | Op::CancelSend => self.cancelled(done, token),
            Op::CancelAccepts => self.accepts_cancelled(done, token),
            Op::CancelAll => None,
        }
    }

    fn accepted(&mut self, done: Completion, token: Token) -> Option<Event> {
        let ring = &mut self.rings[usize::from(done.ring)];
        ring.take_buffer(&done);
        let (listener, peer) = self.cells.give_back(token.generation);
        let listening = &mut self.listeners[listener.index()];
        listening.outstanding -= 1;
        self.accepts_due = true;
        if listening.state == ListenerState::Stopping && listening.outstanding == 0 {
            listening.fd = None;
        }
        if done.result >= 0 {
            let generation = ring.slots.opened(token.slot);
            return Some(Event::Accepted { id: self.id(done.ring, token.slot, generation), listener, peer });
        }
        ring.slots.not_opened(token.slot);
        match -done.result {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => None,
            error if is_of_the_peer(error) => {
                Some(Event::AcceptFailed { listener, error: io::Error::from_raw_os_error(error) })
            }
            // The system lacks something: trying again at once would fail again, as fast as the processor can.
            error if listening.state == ListenerState::Accepting => {
                listening.state = ListenerState::Resting;
                Some(Event::AcceptFailed { listener, error: io::Error::from_raw_os_error(error) })
            }
            _ => None,
        }
    }

    /// Whether the socket had the bytes of this turn. What concerns its recv is put off then, all of it, to stay in order.
    fn has_its_bytes(&self, done: &Completion, token: Token) -> bool {
        let slot = self.rings[usize::from(done.ring)].slots.get(token.slot, token.generation);
        slot.is_some_and(|s| s.phase == Phase::Open && s.bytes_in(self.turn) >= self.config.turn_bytes_max)
    }

    fn received(&mut self, done: Completion, token: Token) -> Option<Event> {
        let id = self.id(done.ring, token.slot, token.generation);
        let ring = &mut self.rings[usize::from(done.ring)];
        let (buffer, more) = ring.take_buffer(&done);
        let slot = ring.slots.of(token.slot, token.generation)?;
        if !more {
            slot.recv = Recv::Idle;
        }
        if slot.phase != Phase::Open {
            self.close_if_unused(id);
            return None;
        }
        match (done.result, buffer) {
            (1.., Some(data)) => {
                let greedy = slot.count_bytes(self.turn, data.len() as u32) >= self.config.turn_bytes_max;
                if !more {
                    self.rearm_later(done.ring, token);
                } else if greedy {
                    // Stopped here, it can't take the buffers of the others while it waits for its next turn.
                    self.cancel_recv(id);
                }
                Some(Event::Received { id, data })
            }
            (0.., _) => {
                slot.receive_ended = true;
                Some(Event::ReceiveEnded { id, error: None })
            }
            (error, _) => match -error {
                libc::ENOBUFS => {
                    if slot.reading && !slot.awaits_rearm {
                        slot.awaits_rearm = true;
                        ring.starved.push_back((token.slot, token.generation));
                    }
                    None
                }
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                    self.rearm_later(done.ring, token);
                    None
                }
                error => {
                    slot.receive_ended = true;
                    Some(Event::ReceiveEnded { id, error: Some(io::Error::from_raw_os_error(error)) })
                }
            },
        }
    }

    /// Arms a recv in the next turn, if the user still wants it then.
    fn rearm_later(&mut self, ring: u16, token: Token) {
        let id = self.id(ring, token.slot, token.generation);
        if let Some((_, slot)) = self.open_slot(id)
            && slot.reading
            && !slot.awaits_rearm
        {
            slot.awaits_rearm = true;
            self.rearm.push(id);
        }
    }

    fn sent(&mut self, done: Completion, token: Token) -> Option<Event> {
        let id = self.id(done.ring, token.slot, token.generation);
        let ring = &mut self.rings[usize::from(done.ring)];
        ring.take_buffer(&done);
        let slot = ring.slots.of(token.slot, token.generation)?;
        slot.cancelling_send = false;
        let chunk = slot.sending.take()?;
        if slot.phase == Phase::Open && slot.fin == Fin::Wanted {
            slot.fin = Fin::InFlight;
            ring.shutdown_write(token.slot, token.generation);
        }
        self.close_if_unused(id);
        let result = match done.result {
            bytes @ 0.. => Ok(bytes as usize),
            error if -error == libc::ECANCELED => Ok(0),
            error => Err(io::Error::from_raw_os_error(-error)),
        };
        Some(Event::Sent { id, chunk, result })
    }

    fn shut_down(&mut self, done: Completion, token: Token) -> Option<Event> {
        let id = self.id(done.ring, token.slot, token.generation);
        let slot = self.rings[usize::from(done.ring)].slots.of(token.slot, token.generation)?;
        slot.fin = Fin::Done;
        self.close_if_unused(id);
        None
    }

    fn closed(&mut self, done: Completion, token: Token) -> Option<Event> {
        let id = self.id(done.ring, token.slot, token.generation);
        let slots = &mut self.rings[usize::from(done.ring)].slots;
        slots.of(token.slot, token.generation)?;
        slots.closed(token.slot);
        self.accepts_due = true;
        for listener in &mut self.listeners {
            if listener.state == ListenerState::Resting {
                listener.state = ListenerState::Accepting;
            }
        }
        Some(Event::Closed { id })
    }

    /// A cancellation that found nothing, though the operation is still in flight, came while the kernel was about to
    /// run the operation: it has to be asked again.
    fn cancelled(&mut self, done: Completion, token: Token) -> Option<Event> {
        let ring = &mut self.rings[usize::from(done.ring)];
        let slot = ring.slots.of(token.slot, token.generation)?;
        let missed = done.result < 0
            && match token.op {
                Op::CancelRecv => slot.recv == Recv::Cancelling,
                _ => slot.cancelling_send,
            };
        if missed {
            ring.cancel(token.op, token.slot, token.generation);
        }
        None
    }

    /// Asks again until no accept is left: one that was about to run is not found.
    fn accepts_cancelled(&mut self, done: Completion, token: Token) -> Option<Event> {
        let listener = self.listeners.get(token.slot as usize)?;
        if let Some(fd) = &listener.fd {
            use std::os::fd::AsFd;
            self.rings[usize::from(done.ring)].cancel_accepts(fd.as_fd(), token.slot as u16);
        }
        None
    }
}

/// Errors of a connection that broke before it was accepted; accept(2) says to treat them like no connection.
fn is_of_the_peer(error: i32) -> bool {
    matches!(
        error,
        libc::ECONNABORTED
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::ECONNRESET
            | libc::ETIMEDOUT
            | libc::EPERM
    )
}
