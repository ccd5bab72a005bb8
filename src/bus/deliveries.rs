//! What was handed to the homes of this node's users and whether it has arrived, and what each message still waits for
//! before its sender may forget it.
//!
//! A home handles what it is told in order, and says of each message that finds its user gone ([`ToBus::Returned`]); how
//! far it has come is a count that it leaves where the bus can read it ([`Effects::handled`]). So a message has arrived
//! once the count has passed it and it has not come back.
//!
//! [`ToBus::Returned`]: crate::hub::bus::ToBus::Returned
//! [`Effects::handled`]: super::state::Effects::handled

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;

use crate::hub::envelope::UserKey;
use crate::ids::ShardId;

use super::message::Source;

/// Who waits for a message to arrive at a home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receipt {
    /// Its source alone: nobody else holds the user.
    Home(Source),
    /// A receipt that waits for other holders too.
    Shared(u64),
}

/// A message that a home has not confirmed.
#[derive(Debug)]
struct Handed {
    /// Among all that the home was told.
    number: u64,
    ticket: u64,
    /// `None` once it has come back.
    receipt: Option<Receipt>,
}

/// A message that came a second time while the first one may not have arrived yet.
#[derive(Debug)]
struct Double {
    user: UserKey,
    ticket: u64,
}

/// A receipt of a message that goes to several holders.
#[derive(Debug)]
struct Shared {
    source: Source,
    /// How many are still to confirm it.
    waits: u32,
    /// This node's home has confirmed it.
    is_delivered: bool,
}

/// All that is on its way to homes, and all receipts.
#[derive(Debug)]
pub(super) struct Deliveries {
    homes: Vec<VecDeque<Handed>>,
    /// For each home the number of what it was told last.
    told: Vec<u64>,
    /// In the order of their tickets, for each home.
    doubles: Vec<VecDeque<Double>>,
    shared: HashMap<u64, Shared, RandomState>,
    next: u64,
}

impl Deliveries {
    pub(super) fn new(shards: u16, hasher: &RandomState) -> Self {
        let shards = usize::from(shards);
        Self {
            homes: (0..shards).map(|_| VecDeque::new()).collect(),
            told: vec![0; shards],
            doubles: (0..shards).map(|_| VecDeque::new()).collect(),
            shared: HashMap::with_hasher(hasher.clone()),
            next: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A number by which a home hands a message back.
    pub(super) fn ticket(&mut self) -> u64 {
        self.number()
    }

    /// A home was told something, which has this number.
    pub(super) fn told(&mut self, shard: ShardId, number: u64) {
        self.told[shard.index()] = number;
    }

    /// The message that was told last is one to be confirmed.
    pub(super) fn expect(&mut self, shard: ShardId, ticket: u64, receipt: Receipt) {
        let number = self.told[shard.index()];
        self.homes[shard.index()].push_back(Handed { number, ticket, receipt: Some(receipt) });
    }

    /// How many messages a home has not confirmed.
    pub(super) fn expected(&self, shard: ShardId) -> usize {
        self.homes[shard.index()].len()
    }

    /// Messages from the `from`th on were kept by the home until what it was told last: then they have arrived, or come
    /// back.
    pub(super) fn arrive_with_last(&mut self, shard: ShardId, from: usize) {
        let number = self.told[shard.index()];
        self.homes[shard.index()].range_mut(from..).for_each(|handed| handed.number = number);
    }

    /// A message has come that was handed over before: it arrives when that one does.
    pub(super) fn expect_double(&mut self, shard: ShardId, user: &UserKey, receipt: Receipt) {
        let ticket = self.ticket();
        self.expect(shard, ticket, receipt);
        self.doubles[shard.index()].push_back(Double { user: user.clone(), ticket });
    }

    /// The number of what a home was told last.
    pub(super) fn last_told(&self, shard: ShardId) -> u64 {
        self.told[shard.index()]
    }

    /// A home has handled all up to this number: what has arrived.
    pub(super) fn confirm(&mut self, shard: ShardId, number: u64, arrived: &mut Vec<Receipt>) {
        let handed = &mut self.homes[shard.index()];
        while let Some(first) = handed.front()
            && first.number <= number
        {
            let doubles = &mut self.doubles[shard.index()];
            while doubles.front().is_some_and(|double| double.ticket <= first.ticket) {
                doubles.pop_front();
            }
            arrived.extend(first.receipt);
            handed.pop_front();
        }
    }

    /// A home hands a message back.
    pub(super) fn returned(&mut self, shard: ShardId, ticket: u64) -> Option<Receipt> {
        let handed = &mut self.homes[shard.index()];
        let at = handed.binary_search_by_key(&ticket, |handed| handed.ticket).ok()?;
        handed[at].receipt.take()
    }

    /// The user has left this home: whether the first one of those that came twice has arrived is not known.
    pub(super) fn doubles_of(&mut self, shard: ShardId, user: &UserKey) -> Vec<Receipt> {
        let handed = &mut self.homes[shard.index()];
        let mut returned = Vec::new();
        for double in self.doubles[shard.index()].iter().filter(|double| double.user == *user) {
            if let Ok(at) = handed.binary_search_by_key(&double.ticket, |handed| handed.ticket) {
                returned.extend(handed[at].receipt.take());
            }
        }
        returned
    }

    /// Begins a receipt that waits for one confirmation.
    pub(super) fn begin(&mut self, source: Source) -> u64 {
        let id = self.number();
        self.shared.insert(id, Shared { source, waits: 1, is_delivered: false });
        id
    }

    /// A receipt waits for one more confirmation.
    pub(super) fn wait(&mut self, receipt: u64) {
        if let Some(shared) = self.shared.get_mut(&receipt) {
            shared.waits += 1;
        }
    }

    /// This node's home has confirmed a receipt, which is one of its confirmations.
    pub(super) fn delivered(&mut self, receipt: u64) -> Option<Source> {
        if let Some(shared) = self.shared.get_mut(&receipt) {
            shared.is_delivered = true;
        }
        self.done(receipt)
    }

    /// The messages of peers that were delivered here and wait for other holders.
    pub(super) fn delivered_sources(&self) -> impl Iterator<Item = Source> {
        self.shared.values().filter(|shared| shared.is_delivered).map(|shared| shared.source)
    }

    /// A receipt has one of its confirmations; its source, when that was the last.
    pub(super) fn done(&mut self, receipt: u64) -> Option<Source> {
        let shared = self.shared.get_mut(&receipt)?;
        shared.waits -= 1;
        if shared.waits > 0 {
            return None;
        }
        self.shared.remove(&receipt).map(|shared| shared.source)
    }

    /// Who waits for a receipt.
    pub(super) fn source(&self, receipt: Receipt) -> Option<Source> {
        match receipt {
            Receipt::Home(source) => Some(source),
            Receipt::Shared(receipt) => self.shared.get(&receipt).map(|shared| shared.source),
        }
    }

    /// Ends a receipt whose message found the user gone; its source, unless it has ended before.
    pub(super) fn cancel(&mut self, receipt: u64) -> Option<Source> {
        self.shared.remove(&receipt).map(|shared| shared.source)
    }

    /// This node has a new life: nobody waits any more.
    pub(super) fn forget_all(&mut self) {
        self.shared.clear();
        self.doubles.iter_mut().for_each(VecDeque::clear);
        self.homes.iter_mut().flatten().for_each(|handed| handed.receipt = None);
    }

    /// Messages that homes, or other holders, have not confirmed.
    pub(super) fn unconfirmed(&self) -> usize {
        self.homes.iter().map(VecDeque::len).sum::<usize>() + self.shared.len()
    }

    /// Whether a home has something to confirm.
    pub(super) fn waits_for_homes(&self) -> bool {
        self.homes.iter().any(|handed| !handed.is_empty())
    }
}
