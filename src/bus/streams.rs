//! Streams: what one node sends to one user, numbered without a hole, whatever way each message takes.
//!
//! A message may reach a holder of the user by the link of the node that it began on, as a copy that another holder
//! passed on, or on a way round after a holder had left; each of these ways keeps its own order, but two of them may
//! overtake each other. So a holder looks at the numbers: it drops what it has had, and keeps what is too early until
//! what is missing has come, or for [`GAP_WITHIN`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::hub::bus::Stamp;
use crate::time::Micros;

/// How long a message waits for earlier ones. Where a node is cut off, or dies, what it was to pass on may never come.
pub(super) const GAP_WITHIN: Duration = Duration::from_secs(3);
/// Gaps that are remembered for a stream, so that what comes late is told from what comes twice.
const GAPS_MAX: usize = 32;
/// Ended streams of one node that are remembered, to the same end.
const ENDED_MAX: usize = 2;

/// The stream that this node sends to a user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    stream: u64,
    place: u64,
}

impl Sent {
    /// A new stream, of a number greater than any before of this node.
    pub(super) fn new(stream: u64) -> Self {
        Self { stream, place: 0 }
    }

    /// The mark of the next message.
    pub(super) fn next(&mut self, origin: u32) -> Stamp {
        self.place += 1;
        Stamp { origin, stream: self.stream, place: self.place }
    }
}

/// Where a stream begins for who joins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Begin {
    /// The first message.
    pub(super) stamp: Stamp,
    /// The holder that was there before has delivered all from this place to before that message.
    pub(super) vouched_from: u64,
}

impl Begin {
    /// It begins with this message at the latest.
    pub(super) fn not_after(&mut self, stamp: Stamp) {
        if (self.stamp.origin, self.stamp.stream) == (stamp.origin, stamp.stream) {
            self.stamp.place = self.stamp.place.min(stamp.place);
            self.vouched_from = self.vouched_from.min(stamp.place);
        }
    }
}

/// What a holder does with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Its turn has come.
    Deliver,
    /// It has been here.
    Duplicate,
    /// Earlier ones are missing.
    Early,
    /// A copy for an earlier stay of the user.
    Past,
}

/// The streams of the nodes that send to a user whom this node holds.
#[derive(Debug)]
pub(super) struct Streams<T> {
    /// One of each node.
    of: Vec<Incoming<T>>,
    /// Earlier ones, of which something may still come by ways round; nothing of them is waited for.
    ended: Vec<Incoming<T>>,
}

impl<T> Default for Streams<T> {
    fn default() -> Self {
        Self { of: Vec::new(), ended: Vec::new() }
    }
}

#[derive(Debug)]
struct Incoming<T> {
    origin: u32,
    stream: u64,
    /// The first message of this stay of the user.
    first: u64,
    /// All from here to before `next` have been delivered, by this holder or by the one that it has joined, but for the
    /// gaps.
    vouched_from: u64,
    next: u64,
    /// First and last place of what was not waited for: what was before the first message that came, and what was missing
    /// for too long.
    gaps: Vec<(u64, u64)>,
    early: BTreeMap<u64, T>,
    /// When the oldest of the early ones came.
    early_since: Micros,
}

impl<T> Streams<T> {
    /// What to do with a message, which may be a copy that another holder has passed on. The first message of another
    /// stream of the same node ends the earlier stream, whose early messages are in `freed`, in order.
    pub(super) fn judge(&mut self, stamp: Stamp, is_copy: bool, freed: &mut Vec<T>) -> Verdict {
        let Some(incoming) = self.of.iter_mut().find(|incoming| incoming.origin == stamp.origin) else {
            self.of.push(Incoming::new(stamp));
            return Verdict::Deliver;
        };
        if stamp.stream > incoming.stream {
            let mut ended = std::mem::replace(incoming, Incoming::new(stamp));
            freed.extend(ended.take_early());
            self.end_stream(ended);
            return Verdict::Deliver;
        }
        if stamp.stream < incoming.stream {
            return self.judge_ended(stamp);
        }
        if is_copy && stamp.place < incoming.first && incoming.is_in_gap(stamp.place) {
            return Verdict::Past;
        }
        if stamp.place < incoming.next {
            return if incoming.fill_gap(stamp.place) { Verdict::Deliver } else { Verdict::Duplicate };
        }
        if stamp.place > incoming.next {
            return if incoming.early.contains_key(&stamp.place) { Verdict::Duplicate } else { Verdict::Early };
        }
        incoming.next += 1;
        Verdict::Deliver
    }

    /// What to do with a message of a stream that another one has followed.
    fn judge_ended(&mut self, stamp: Stamp) -> Verdict {
        let is_of = |ended: &&mut Incoming<T>| (ended.origin, ended.stream) == (stamp.origin, stamp.stream);
        let Some(ended) = self.ended.iter_mut().find(is_of) else {
            self.end_stream(Incoming::new(stamp));
            return Verdict::Deliver;
        };
        if stamp.place < ended.next {
            return if ended.fill_gap(stamp.place) { Verdict::Deliver } else { Verdict::Duplicate };
        }
        ended.pass_over(stamp.place);
        ended.next += 1;
        Verdict::Deliver
    }

    fn end_stream(&mut self, ended: Incoming<T>) {
        let of_origin = |other: &Incoming<T>| other.origin == ended.origin;
        if self.ended.iter().filter(|other| of_origin(other)).count() == ENDED_MAX
            && let Some((oldest, _)) = self
                .ended
                .iter()
                .enumerate()
                .filter(|(_, other)| of_origin(other))
                .min_by_key(|(_, other)| other.stream)
        {
            self.ended.swap_remove(oldest);
        }
        self.ended.push(ended);
    }

    /// Where each stream begins for a holder that joins this one.
    pub(super) fn begins(&self) -> impl Iterator<Item = Begin> {
        self.of.iter().map(|&Incoming { origin, stream, next, vouched_from, .. }| Begin {
            stamp: Stamp { origin, stream, place: next },
            vouched_from,
        })
    }

    /// Begins a stream as another holder says, unless it has begun.
    pub(super) fn begin(&mut self, begin: Begin) {
        match self.of.iter_mut().find(|incoming| incoming.origin == begin.stamp.origin) {
            Some(incoming) if incoming.stream >= begin.stamp.stream => {}
            Some(incoming) => *incoming = Incoming::begin(begin),
            None => self.of.push(Incoming::begin(begin)),
        }
    }

    /// What waits for earlier messages.
    pub(super) fn early(&self) -> impl Iterator<Item = &T> {
        self.of.iter().flat_map(|incoming| incoming.early.values())
    }

    /// Keeps a message that [`Self::judge`] has called early.
    pub(super) fn keep(&mut self, now: Micros, stamp: Stamp, message: T) {
        if let Some(incoming) = self.of.iter_mut().find(|incoming| incoming.origin == stamp.origin) {
            if incoming.early.is_empty() {
                incoming.early_since = now;
            }
            incoming.early.insert(stamp.place, message);
        }
    }

    /// The next message of this node whose turn has come, of those that were kept.
    pub(super) fn take_ready(&mut self, now: Micros, origin: u32) -> Option<T> {
        let incoming = self.of.iter_mut().find(|incoming| incoming.origin == origin)?;
        let message = incoming.early.remove(&incoming.next)?;
        incoming.next += 1;
        incoming.early_since = now;
        Some(message)
    }

    /// Waits no longer for what is missing before messages that have waited for [`GAP_WITHIN`]; the origins whose next
    /// messages' turn has come.
    pub(super) fn give_up(&mut self, now: Micros) -> Vec<u32> {
        let mut ready = Vec::new();
        for incoming in &mut self.of {
            let Some((&place, _)) = incoming.early.first_key_value() else { continue };
            if now >= incoming.early_since.after(GAP_WITHIN) {
                incoming.pass_over(place);
                ready.push(incoming.origin);
            }
        }
        ready
    }

    /// When something will have waited for [`GAP_WITHIN`].
    pub(super) fn waits_until(&self) -> Option<Micros> {
        let waiting = self.of.iter().filter(|incoming| !incoming.early.is_empty());
        waiting.map(|incoming| incoming.early_since.after(GAP_WITHIN)).min()
    }

    /// Does not wait for anything before this early message, for which there is no room: what goes before it.
    pub(super) fn skip_to(&mut self, stamp: Stamp) -> Vec<T> {
        let Some(incoming) = self.of.iter_mut().find(|incoming| incoming.origin == stamp.origin) else {
            return Vec::new();
        };
        let later = incoming.early.split_off(&stamp.place);
        let before = incoming.take_early().collect();
        incoming.early = later;
        incoming.pass_over(stamp.place);
        incoming.next += 1;
        before
    }

    /// Forgets everything; what was early, in order.
    pub(super) fn end(&mut self) -> Vec<T> {
        self.ended.clear();
        let streams = std::mem::take(&mut self.of);
        streams.into_iter().flat_map(|incoming| incoming.early.into_values()).collect()
    }

    /// Whether nothing waits.
    pub(super) fn is_settled(&self) -> bool {
        self.of.iter().all(|incoming| incoming.early.is_empty())
    }
}

impl<T> Incoming<T> {
    /// One whose first message has come.
    fn new(stamp: Stamp) -> Self {
        Self { next: stamp.place + 1, ..Self::begin(Begin { stamp, vouched_from: stamp.place }) }
    }

    /// One whose first message is yet to come.
    fn begin(Begin { stamp, vouched_from }: Begin) -> Self {
        let Stamp { origin, stream, place } = stamp;
        let gaps = if vouched_from > 1 { vec![(1, vouched_from - 1)] } else { Vec::new() };
        let (early, early_since) = (BTreeMap::new(), Micros(0));
        Self { origin, stream, first: place, vouched_from, next: place, gaps, early, early_since }
    }

    /// What is early, in order; what is missing before it is not waited for.
    fn take_early(&mut self) -> impl Iterator<Item = T> + use<T> {
        let early = std::mem::take(&mut self.early);
        for &place in early.keys() {
            self.pass_over(place);
            self.next += 1;
        }
        early.into_values()
    }

    fn pass_over(&mut self, to: u64) {
        if to <= self.next {
            return;
        }
        self.push_gap(self.next, to - 1);
        self.next = to;
    }

    fn push_gap(&mut self, first: u64, last: u64) {
        if self.gaps.len() == GAPS_MAX
            && let Some((oldest, _)) = self.gaps.iter().enumerate().min_by_key(|(_, gap)| gap.0)
        {
            self.gaps.swap_remove(oldest);
        }
        self.gaps.push((first, last));
    }

    fn is_in_gap(&self, place: u64) -> bool {
        self.gaps.iter().any(|&(first, last)| (first..=last).contains(&place))
    }

    /// Whether this place is in a gap; it is filled then.
    fn fill_gap(&mut self, place: u64) -> bool {
        let Some(at) = self.gaps.iter().position(|&(first, last)| (first..=last).contains(&place)) else {
            return false;
        };
        let (first, last) = self.gaps.swap_remove(at);
        if first < place {
            self.push_gap(first, place - 1);
        }
        if place < last {
            self.push_gap(place + 1, last);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A holder that notes what it delivers.
    #[derive(Default)]
    struct Holder {
        streams: Streams<u64>,
        delivered: Vec<u64>,
        now: Micros,
    }

    impl Holder {
        fn gets(&mut self, stream: u64, place: u64) -> Verdict {
            let stamp = Stamp { origin: 7, stream, place };
            let mut freed = Vec::new();
            let verdict = self.streams.judge(stamp, false, &mut freed);
            self.delivered.extend(freed);
            match verdict {
                Verdict::Deliver => {
                    self.delivered.push(place);
                    self.take_ready();
                }
                Verdict::Early => self.streams.keep(self.now, stamp, place),
                Verdict::Duplicate | Verdict::Past => {}
            }
            verdict
        }

        fn take_ready(&mut self) {
            while let Some(message) = self.streams.take_ready(self.now, 7) {
                self.delivered.push(message);
            }
        }
    }

    #[test]
    fn numbers_restore_the_order_and_what_comes_twice_is_dropped() {
        let mut holder = Holder::default();
        for place in [4, 6, 7, 6, 4, 5, 5, 8, 7] {
            holder.gets(1, place);
        }
        assert_eq!(holder.delivered, [4, 5, 6, 7, 8]);
        assert!(holder.streams.is_settled());
    }

    #[test]
    fn what_was_before_the_first_message_is_not_waited_for() {
        let mut holder = Holder::default();
        holder.gets(1, 4);
        let copy = Stamp { origin: 7, stream: 1, place: 2 };
        assert_eq!(holder.streams.judge(copy, true, &mut Vec::new()), Verdict::Past);
        assert_eq!(holder.gets(1, 2), Verdict::Deliver);
        assert_eq!(holder.gets(1, 2), Verdict::Duplicate);
        assert_eq!(holder.delivered, [4, 2]);
    }

    #[test]
    fn where_another_holder_says_that_a_stream_begins_its_first_message_is_waited_for() {
        let mut holder = Holder::default();
        let stamp = |stream, place| Stamp { origin: 7, stream, place };
        holder.streams.begin(Begin { stamp: stamp(2, 4), vouched_from: 3 });
        holder.streams.begin(Begin { stamp: stamp(1, 9), vouched_from: 1 });
        // The other holder has delivered 3, and knows nothing of those before.
        for place in [3, 5, 6, 2, 4, 2, 7] {
            holder.gets(2, place);
        }
        assert_eq!(holder.delivered, [2, 4, 5, 6, 7]);
        let begins = Begin { stamp: stamp(2, 8), vouched_from: 3 };
        assert_eq!(holder.streams.begins().collect::<Vec<_>>(), [begins]);
        let mut begins = begins;
        begins.not_after(stamp(1, 1));
        begins.not_after(stamp(2, 6));
        assert_eq!(begins, Begin { stamp: stamp(2, 6), vouched_from: 3 });
    }

    #[test]
    fn a_gap_is_given_up_and_may_be_filled_late_once() {
        let mut holder = Holder::default();
        for place in [1, 4, 5] {
            holder.gets(1, place);
        }
        let ends = Micros(0).after(GAP_WITHIN);
        assert_eq!(holder.streams.waits_until(), Some(ends));
        assert!(holder.streams.give_up(Micros(ends.0 - 1)).is_empty());
        assert_eq!(holder.streams.give_up(ends), [7]);
        holder.take_ready();
        assert_eq!(holder.delivered, [1, 4, 5]);
        assert_eq!(holder.gets(1, 3), Verdict::Deliver);
        assert_eq!(holder.gets(1, 3), Verdict::Duplicate);
        assert_eq!(holder.gets(1, 2), Verdict::Deliver);
        assert_eq!(holder.gets(1, 6), Verdict::Deliver);
    }

    #[test]
    fn without_room_nothing_is_waited_for() {
        let mut holder = Holder::default();
        for place in [1, 4, 6, 9] {
            holder.gets(1, place);
        }
        assert_eq!(holder.streams.skip_to(Stamp { origin: 7, stream: 1, place: 7 }), [4, 6]);
        assert_eq!(holder.gets(1, 8), Verdict::Deliver);
        assert_eq!(holder.delivered, [1, 8, 9]);
        assert_eq!(holder.gets(1, 5), Verdict::Deliver, "it was passed over");
        assert_eq!(holder.gets(1, 6), Verdict::Duplicate);
    }

    #[test]
    fn another_stream_ends_the_one_before() {
        let mut holder = Holder::default();
        // Of the first stream 2 comes late, and 3 and 2 come again.
        for (stream, place) in [(1, 1), (1, 3), (2, 1), (1, 2), (1, 3), (1, 2), (2, 2), (1, 5), (1, 4), (1, 5)] {
            holder.gets(stream, place);
        }
        assert_eq!(holder.delivered, [1, 3, 1, 2, 2, 5, 4]);
    }
}
