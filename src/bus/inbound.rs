//! What has come from a peer and waits for room in a shard.

use std::collections::VecDeque;

use bytes::Bytes;

use super::wire::{self, Item};

/// Bytes of one peer that wait for room in a shard; beyond that envelopes are not taken, and come again.
const BYTES_MAX: usize = 4 << 20;

/// Items of a peer, in order.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// The items of each envelope, and how many of them are left.
    envelopes: VecDeque<(Bytes, u32)>,
    /// The first item, for which there was no room.
    waiting: Option<Item>,
    bytes: usize,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    Item(Item),
    /// So many items were announced and are not there.
    Missing(u32),
    Nothing,
}

impl Inbound {
    pub(super) fn is_full(&self) -> bool {
        self.bytes > BYTES_MAX
    }

    /// Takes in the items of an envelope, but for the first `skip` of `count`.
    pub(super) fn take_in(&mut self, mut items: Bytes, skip: u32, count: u32) {
        for _ in 0..skip {
            wire::take_item(&mut items);
        }
        self.bytes += items.len();
        self.envelopes.push_back((items, count - skip));
    }

    /// The oldest item, taken out.
    pub(super) fn next(&mut self) -> Next {
        if let Some(item) = self.waiting.take() {
            return Next::Item(item);
        }
        let Some((items, left)) = self.envelopes.front_mut() else { return Next::Nothing };
        let before = items.len();
        let item = if *left > 0 { wire::take_item(items) } else { None };
        self.bytes -= before - items.len();
        let (rest, was_left) = (items.len(), *left);
        *left = left.saturating_sub(1);
        if item.is_none() || *left == 0 {
            self.bytes -= rest;
            self.envelopes.pop_front();
        }
        item.map_or(Next::Missing(was_left), Next::Item)
    }

    /// There is no room for the item: it stays the oldest.
    pub(super) fn put_back(&mut self, item: Item) {
        self.waiting = Some(item);
    }
}
