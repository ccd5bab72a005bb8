//! Messages at a holder of their user: to its own connections, and, where it is the relay, to the other holders.
//!
//! A relay pushes *everything* that it is given to all other holders, also what it has delivered before, and settles it
//! when its own home and all of them have it. A holder delivers what is later than all that it has had of the same
//! origin: so a message that comes by two ways is delivered once, and in order by whichever way comes first.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::hub::bus::FromBus;
use crate::hub::envelope::UserKey;
use crate::ids::ShardId;

use super::call::{Call, Reply};
use super::deliveries::Receipt;
use super::directory::Unpushed;
use super::later::Later;
use super::message::{OriginId, PeerId, Relayed, Source, Stamp, Target, weight};
use super::routes::{Relay, Way};
use super::state::{Bus, Effects, Purpose, RETRY_AFTER};
use super::wire::Item;

/// How soon the holders are read again while the directory is in doubt. Those that are known have the messages already.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);

impl Bus {
    /// A message of a peer's client, for which this node is the relay.
    pub(super) fn unicast_in(&mut self, from: PeerId, item: Item, fx: &mut dyn Effects) {
        self.counters.unicasts_in += 1;
        let (stamp, source) = (self.peers.stamp_of(from, &item), self.peers.source(from));
        let (user, op) = (self.key(&item.user), item.number);
        let message = Relayed { stamp, frame: item.frame, source, delivered_here: false };
        match self.directory.get_mut(&user) {
            Some(held) if held.is_meant(op) && held.is_open() => self.relay(&user, message, false, fx),
            // It is kept whatever else is: one that is sent back while a later one is taken would be lost.
            Some(held) if held.is_meant(op) => {
                self.kept_bytes += weight(&message.frame);
                held.keep_until_open(op, message);
            }
            Some(_) => self.give_back(source),
            None => {
                self.take_off_if_unknown(&user);
                self.give_back(source);
            }
        }
    }

    /// A message that the user's relay pushes.
    pub(super) fn push_in(&mut self, from: PeerId, item: Item, fx: &mut dyn Effects) {
        self.counters.unicasts_in += 1;
        let stamp = self.peers.stamp_of(from, &item);
        let user = self.key(&item.user);
        let Some(held) = self.directory.get_mut(&user).filter(|held| held.takes_push(item.number)) else { return };
        if !held.take(stamp) {
            self.counters.duplicates += 1;
            return;
        }
        let early = !held.is_open();
        let home = self.home(&user);
        self.tell(home, FromBus::Unicast { target: user, frame: item.frame, ticket: 0, early }, fx);
    }

    /// Delivers a message to this node's connections and pushes it to the other holders. `early`: the connections are about
    /// to open.
    pub(super) fn relay(&mut self, user: &UserKey, message: Relayed, early: bool, fx: &mut dyn Effects) {
        let Relayed { stamp, frame, source, delivered_here } = message;
        let connection = self.connection;
        let Some(held) = self.directory.get_mut(user) else { return };
        let is_first = held.take(stamp);
        if !is_first && matches!(source, Source::Peer { .. }) {
            self.counters.duplicates += 1;
        }
        if held.is_alone(connection) {
            return self.hand_over(user, frame, is_first, delivered_here, Receipt::Home(source), early, fx);
        }
        let receipt = self.deliveries.begin(source);
        let is_sure = held.is_sure(connection);
        let others = held.to_push_to(is_sure);
        if !is_sure {
            self.kept_bytes += weight(&frame);
            held.keep_unpushed(Unpushed { stamp, frame: frame.clone(), receipt, pushed_to: others.clone() });
        }
        if !delivered_here {
            self.deliveries.wait(receipt);
        }
        self.push_to_all(user, &others, stamp, &frame, receipt);
        self.hand_over(user, frame, is_first, delivered_here, Receipt::Shared(receipt), early, fx);
        if is_sure {
            self.done(receipt);
        } else {
            self.read_holders(user, fx);
        }
    }

    fn push_to_all(&mut self, user: &UserKey, others: &[Target], stamp: Stamp, frame: &bytes::Bytes, receipt: u64) {
        for other in others.iter().filter(|other| self.peers.is_present(other.peer, other.life)).collect::<Vec<_>>() {
            self.counters.unicasts_out += 1;
            self.deliveries.wait(receipt);
            self.peers.push_copy(*other, &user.name, stamp, frame, receipt);
        }
    }

    /// To the user's home, which confirms it.
    #[expect(clippy::too_many_arguments, reason = "what a message needs at the end of its way")]
    fn hand_over(
        &mut self,
        user: &UserKey,
        frame: bytes::Bytes,
        is_first: bool,
        delivered_here: bool,
        receipt: Receipt,
        early: bool,
        fx: &mut dyn Effects,
    ) {
        let home = self.home(user);
        if delivered_here {
            if let Receipt::Home(source) = receipt {
                self.settle(source);
            }
        } else if is_first {
            let ticket = self.deliveries.ticket();
            self.tell(home, FromBus::Unicast { target: user.clone(), frame, ticket, early }, fx);
            self.deliveries.expect(home, ticket, receipt);
        } else {
            self.deliveries.expect_double(home, user, receipt);
        }
    }

    // What becomes of them.

    /// What the homes have handled has arrived, unless they have handed it back.
    pub(super) fn confirm(&mut self, fx: &mut dyn Effects) {
        if self.deliveries.waits_for_homes() {
            for shard in (0..self.config.shards).map(ShardId) {
                self.confirm_up_to(shard, fx.handled(shard));
            }
        }
        // What waited until it had been said what became of the messages before it.
        for slot in self.routes.take_answered() {
            if matches!(self.routes.way(slot), Way::Unknown) {
                self.send_waiting(slot, fx);
            }
        }
    }

    pub(super) fn confirm_up_to(&mut self, shard: ShardId, number: u64) {
        let mut arrived = std::mem::take(&mut self.arrived);
        self.deliveries.confirm(shard, number, &mut arrived);
        for receipt in arrived.drain(..) {
            let settled = match receipt {
                Receipt::Home(source) => Some(source),
                Receipt::Shared(receipt) => {
                    if let Some(Source::Own { route, place, .. }) = self.deliveries.source(Receipt::Shared(receipt)) {
                        self.routes.delivered(route, place);
                    }
                    self.deliveries.delivered(receipt)
                }
            };
            if let Some(source) = settled {
                self.settle(source);
            }
        }
        self.arrived = arrived;
    }

    /// Tells peers, or one of them, at once what has become of their messages: somebody begins to hold the user, and should
    /// not deliver again what was delivered here before.
    pub(super) fn tell_settled(&mut self, only: Option<PeerId>) {
        let mut delivered: BTreeMap<PeerId, Vec<(u32, u64)>> = BTreeMap::new();
        for source in self.deliveries.delivered_sources() {
            if let Source::Peer { peer, link, seq } = source {
                delivered.entry(peer).or_default().push((link, seq));
            }
        }
        for peer in self.peers.ids().filter(|peer| only.is_none_or(|only| only == *peer)) {
            self.peers.tell_settled(peer, delivered.get(&peer).map_or(&[], Vec::as_slice));
        }
    }

    /// A receipt has one of its confirmations.
    pub(super) fn done(&mut self, receipt: u64) {
        if let Some(source) = self.deliveries.done(receipt) {
            self.settle(source);
        }
    }

    fn settle(&mut self, source: Source) {
        match source {
            Source::Own { route, place, time } => self.routes.settled(route, place, Relay::Own(time)),
            Source::Peer { peer, link, seq } => self.peers.settle(self.now, peer, link, seq),
        }
    }

    fn give_back(&mut self, source: Source) {
        match source {
            Source::Own { route, place, time } => self.came_back(route, place, Relay::Own(time)),
            Source::Peer { peer, link, seq } => self.peers.give_back(peer, link, seq),
        }
    }

    pub(super) fn give_back_receipt(&mut self, receipt: Receipt) {
        match receipt {
            Receipt::Home(source) => self.give_back(source),
            Receipt::Shared(receipt) => {
                if let Some(source) = self.deliveries.cancel(receipt) {
                    self.give_back(source);
                }
            }
        }
    }

    /// A home hands a message back.
    pub(super) fn returned(&mut self, shard: ShardId, ticket: u64) {
        let Some(receipt) = self.deliveries.returned(shard, ticket) else { return };
        if let Some(Source::Own { route, place, time }) = self.deliveries.source(receipt)
            && self.routes.is_sent(route, place, Relay::Own(time))
            && let Some(user) = self.routes.user(route)
            && let Some(held) = self.directory.get_mut(user)
        {
            // The user is still about to open: there was no room for it.
            held.untake(Stamp { origin: OriginId::SELF, place });
        }
        self.give_back_receipt(receipt);
    }

    /// Gives back what was kept for a user who does not open.
    pub(super) fn give_back_waiting(&mut self, waiting: Vec<(u64, Relayed)>) {
        for (_, message) in waiting {
            self.kept_bytes -= weight(&message.frame);
            self.give_back(message.source);
        }
    }

    /// The connections are open: what peers have sent meanwhile.
    pub(super) fn relay_waiting(&mut self, user: &UserKey, waiting: Vec<(u64, Relayed)>, fx: &mut dyn Effects) {
        for (_, message) in waiting {
            self.kept_bytes -= weight(&message.frame);
            self.relay(user, message, false, fx);
        }
    }

    // Until the other holders are sure.

    /// Reads who else holds the user, unless that is under way.
    pub(super) fn read_holders(&mut self, user: &UserKey, fx: &mut dyn Effects) {
        if !self.connected || self.members.life() == 0 {
            return;
        }
        let Some(held) = self.directory.get_mut(user).filter(|held| held.is_here() && !held.is_reading()) else {
            return;
        };
        held.set_reading(true);
        let call = Call::Locate { user: user.name.clone() };
        self.call(Purpose::Holders(user.clone(), self.connection), call, fx);
    }

    /// The directory has said who holds a user of this node.
    pub(super) fn holders_read(&mut self, user: &UserKey, connection: u32, reply: Reply, fx: &mut dyn Effects) {
        let Some(held) = self.directory.get_mut(user) else { return };
        held.set_reading(false);
        if !held.is_here() {
            return;
        }
        let Reply::Located(location) = reply else {
            return self.later(RETRY_AFTER, Later::ReadHolders(user.clone()));
        };
        self.note_run(location.run, fx);
        self.learn_and_ask(user, &location.holders, fx);
        if self.is_in_doubt(location.run) || connection != self.connection {
            return self.later(READ_AGAIN_AFTER, Later::ReadHolders(user.clone()));
        }
        if let Some(held) = self.directory.get_mut(user) {
            held.set_sure(connection);
        }
        self.push_kept(user);
    }

    /// Pushes what was kept, if the other holders are sure.
    pub(super) fn push_kept(&mut self, user: &UserKey) {
        let connection = self.connection;
        let Some(held) = self.directory.get_mut(user).filter(|held| held.is_open() && held.is_sure(connection)) else {
            return;
        };
        let (unpushed, others) = (held.take_unpushed(), held.others().to_vec());
        for kept in unpushed {
            self.kept_bytes -= weight(&kept.frame);
            let missing: Vec<Target> = others.iter().filter(|other| !kept.was_pushed_to(other)).copied().collect();
            self.push_to_all(user, &missing, kept.stamp, &kept.frame, kept.receipt);
            self.done(kept.receipt);
        }
    }
}
