//! The order of a shard's turn, pure: what is done when, and when the shard may sleep. What the steps do to the ring, to
//! sockets and to channels is the implementor's; the shard's loop has real ones, `tests/simulation.rs` has lists.
//!
//! # Rules, each of which closes a fault
//! - What waits for room is tried after this turn's credits were taken in: messages of the bus, departures, clients whose
//!   message stalled, and connections that were put off. Credits may come alone; then no message is handled, and the
//!   shard would sleep with room and with work.
//! - Departures go before what waits for the same room, or a flood keeps users registered whose connections are gone.
//! - Connections that were put off come after the mesh: an admission from there puts its connection off, and would cost it
//!   a turn more.
//! - Batches and what is for the bus go out after all that may say something, sending included: a reader that is cut off
//!   there is gone for its home. So what a turn says leaves with it, in one piece for each receiver.
//! - A message is handled before its credits go back. One without room stays the oldest and keeps its bytes; else they
//!   would be given back twice, and no bound would hold.
//! - Whether anything is on its way is reported last, or a stopping node would judge by what the turn has yet to say.
//! - The ring goes to sleep before the bus's bell: on its way it empties the eventfd, and with it a wake-up of the bus
//!   that has come in between would be lost.
//! - A shard that is brought something on its way to sleep is woken in full: else whoever brings the next thing makes a
//!   system call for a shard that is up.

use crate::hub::bus::FromBus;
use crate::hub::links::Links;
use crate::hub::{Effects, Hub, Input, Outcome};
use crate::ids::{ConnId, ShardId};
use crate::time::Micros;

/// What follows a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another turn, at once.
    Turn,
    /// Nothing is to be done, and everything that brings something wakes the shard: it may sleep, and then calls
    /// [`Steps::wake`].
    Sleep,
    /// The shard has ended.
    End,
}

/// What waits for a shard's hub beside its sockets.
pub trait Queues: Effects {
    /// Messages handled in one turn of each peer and class, and of each kind of the bus.
    fn messages_max(&mut self) -> usize;

    /// The ends of the mesh.
    fn links(&mut self) -> &mut Links;

    /// Takes in what the bus has handed over.
    fn pull_bus(&mut self);

    /// The oldest message of the bus, broadcasts aside; [`Self::handled_bus`] or [`Self::unhandled_bus`] follows.
    fn take_bus(&mut self) -> Option<FromBus>;

    /// It was handled: its bytes go back.
    fn handled_bus(&mut self, message: &FromBus);

    /// It could not be handled: it stays the oldest.
    fn unhandled_bus(&mut self, message: FromBus);

    /// The oldest broadcast of the bus; its bytes go back.
    fn take_bus_broadcast(&mut self) -> Option<FromBus>;

    /// How many connections were put off ([`Effects::postpone`]).
    fn postponed(&self) -> usize;

    /// The one that was put off first.
    fn take_postponed(&mut self) -> Option<ConnId>;
}

/// What a shard does in a turn, in the order in which [`turn`] does it.
pub trait Steps {
    /// What ends the shard.
    type Error;
    /// What waits for the hub.
    type Queues: Queues;

    /// The time of this turn, the hub, and what waits for it.
    fn hub(&mut self) -> (Micros, &mut Hub, &mut Self::Queues);

    /// Hands over what the last turn queued for the sockets, and takes what has completed: how many events.
    ///
    /// # Errors
    /// What the kernel refused.
    fn turn_ring(&mut self) -> Result<usize, Self::Error>;

    /// Handles these events.
    fn handle_events(&mut self);

    /// Takes in what other shards have sent.
    fn receive_batches(&mut self);

    /// Goes on with connections whose message had no room; whether any could.
    fn retry_stalled(&mut self) -> bool;

    /// Looks at what passes with time.
    fn survey(&mut self);

    /// Queues for the kernel what this turn has for the sockets.
    fn send(&mut self);

    /// Sends other shards what has gathered for them; whether anything went.
    fn send_batches(&mut self) -> bool;

    /// Hands the bus what has gathered for it; whether there was anything.
    fn flush_bus(&mut self) -> bool;

    /// Says whether anything of this shard is still on its way, now that the turn is over.
    fn report(&mut self);

    /// Whether the shard has ended.
    fn is_finished(&self) -> bool;

    /// Whether this turn has left something for the next, which nothing will announce.
    fn has_more(&self) -> bool;

    /// Has the ring wake the shard from here on; false when something has completed.
    ///
    /// # Errors
    /// What the kernel refused.
    fn ring_sleeps(&mut self) -> Result<bool, Self::Error>;

    /// Has the bus wake the shard from here on; false when it has brought something.
    fn bus_sleeps(&mut self) -> bool;

    /// The shard is up: nothing needs to wake it.
    fn wake(&mut self);
}

/// One turn of a shard, and what follows.
///
/// # Errors
/// What ends the shard.
#[inline]
pub fn turn<S: Steps>(shard: &mut S) -> Result<Next, S::Error> {
    let events = shard.turn_ring()?;
    shard.handle_events();

    shard.receive_batches();
    let (now, hub, queues) = shard.hub();
    let meshed = handle_mesh(now, hub, queues);
    let brought = handle_bus(now, hub, queues);

    hub.handle(now, Input::Turn, queues);
    let went_on = shard.retry_stalled();
    let (now, hub, queues) = shard.hub();
    proceed_postponed(now, hub, queues);
    shard.survey();

    shard.send();
    let sent = shard.send_batches();
    // Nobody relies on which of the two comes first.
    let said = shard.flush_bus();
    shard.report();

    if shard.is_finished() {
        return Ok(Next::End);
    }
    let is_idle = events == 0 && !meshed && !brought && !went_on && !sent && !said && !shard.has_more();
    if !is_idle {
        return Ok(Next::Turn);
    }
    if shard.ring_sleeps()? && shard.bus_sleeps() {
        return Ok(Next::Sleep);
    }
    shard.wake();
    Ok(Next::Turn)
}

/// Handles what other shards sent; whether there was anything.
#[inline]
fn handle_mesh<Q: Queues>(now: Micros, hub: &mut Hub, queues: &mut Q) -> bool {
    let mut handled = false;
    for peer in queues.links().peers() {
        for _ in 0..queues.messages_max() {
            let Some(message) = queues.links().pop_owner(peer) else { break };
            hub.handle(now, Input::Owner(message), queues);
            handled = true;
        }
        for _ in 0..queues.messages_max() {
            if !queues.takes_broadcasts() {
                break;
            }
            let Some(broadcast) = queues.links().pop_broadcast(peer) else { break };
            hub.handle(now, Input::Broadcast(broadcast), queues);
            handled = true;
        }
        handled |= handle_homes(now, hub, queues, peer);
    }
    handled
}

/// Handles what a peer asks of this shard's homes.
#[inline]
fn handle_homes<Q: Queues>(now: Micros, hub: &mut Hub, queues: &mut Q, peer: ShardId) -> bool {
    let mut handled = false;
    for _ in 0..queues.messages_max() {
        let Some(message) = queues.links().take_home(peer) else { break };
        // Only when every owner's outbox has room; else it stays the oldest, and its credits stay out.
        if hub.handle(now, Input::Home(&message), queues) == Outcome::NoRoom {
            queues.links().unhandled_home(peer, message);
            break;
        }
        queues.links().handled_home(peer, &message);
        handled = true;
    }
    handled
}

/// Handles what the bus has brought; whether there was anything.
#[inline]
fn handle_bus<Q: Queues>(now: Micros, hub: &mut Hub, queues: &mut Q) -> bool {
    queues.pull_bus();
    let mut handled = false;
    for _ in 0..queues.messages_max() {
        let Some(message) = queues.take_bus() else { break };
        // Only when every owner's outbox has room; else it stays the oldest, and its bytes stay out.
        if hub.handle(now, Input::Bus(&message), queues) == Outcome::NoRoom {
            queues.unhandled_bus(message);
            break;
        }
        queues.handled_bus(&message);
        handled = true;
    }
    for _ in 0..queues.messages_max() {
        if !queues.takes_broadcasts() {
            break;
        }
        let Some(message) = queues.take_bus_broadcast() else { break };
        hub.handle(now, Input::Bus(&message), queues);
        handled = true;
    }
    handled
}

/// Has the connections that were put off take their next step, each once.
#[inline]
fn proceed_postponed<Q: Queues>(now: Micros, hub: &mut Hub, queues: &mut Q) {
    for _ in 0..queues.postponed() {
        let Some(conn) = queues.take_postponed() else { break };
        hub.handle(now, Input::Proceed { conn }, queues);
    }
}

#[cfg(test)]
mod tests;
