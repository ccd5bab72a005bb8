//! A link to another of our nodes: pub/sub loses silently, so what goes over a link is numbered, acknowledged, kept
//! until then, and sent again.
//!
//! Items are gathered into segments, each published as one envelope. A link that is idle sends at once. While a publish
//! is on its way to Redis, further items gather, for up to a millisecond; on a busy link they gather for the millisecond
//! also when Redis has answered, since an envelope costs as much as dozens of items. A receiver takes segments in order
//! and throws away what it has had already, and what comes after a gap.
//!
//! An acknowledgement of a link says that the peer has taken an item in. That a unicast has reached its user is said by
//! items of their own ([`Kind::Settled`]): with one acknowledgement for both, a node that waits for another's push would
//! hold up the acknowledgement of that push's own link.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::time::Micros;

use super::call::{Incarnation, NodeId};
use super::wire::{self, Draft, Header, Item, Kind};

/// How long items gather at most after an earlier envelope.
const FLUSH_WINDOW: Duration = Duration::from_millis(1);
/// A link is busy above this density: its items, each counting half as much after every window. Two items in each window
/// come to about so much.
const BUSY_DENSITY: f32 = 3.0;
/// A segment of so many bytes is published without waiting for more.
const SEGMENT_BYTES_MAX: usize = 64 << 10;
/// Bytes that were published and not acknowledged, beyond which a link waits: Redis closes a subscriber that lets 8 MB
/// pile up for a minute, and all links towards a node share its subscriber.
const WINDOW_BYTES: usize = 1 << 20;
/// How long an acknowledgement waits for an envelope that goes there anyway, or for more to acknowledge: alone it costs
/// as much as what it is for. …
const ACK_DELAY: Duration = Duration::from_millis(20);
/// …and how many envelopes at most.
const ACK_ENVELOPES_MAX: u32 = 16;
/// How long an acknowledgement may take before everything since is sent again; doubled each time.
const RESEND_AFTER: Duration = Duration::from_millis(250);
const RESEND_AFTER_MAX: Duration = Duration::from_secs(2);
/// The same where the items only settle others.
const LAZY_ACK_DELAY: Duration = Duration::from_millis(100);
const _: () = assert!(LAZY_ACK_DELAY.as_millis() * 2 < RESEND_AFTER.as_millis());
/// Ranges in one item.
const RANGES_MAX: usize = 256;
/// A receiver that sees a gap says so with each envelope; the sender goes back for it once in so long.
const GO_BACK_EVERY: Duration = Duration::from_millis(20);

/// What to do with an envelope that has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accept {
    /// Handle its items but for the first so many, and say so ([`Link::handled`]).
    Items {
        /// How many have been handled before.
        skip: u32,
    },
    /// Nothing: it came before, or too early.
    Nothing,
}

/// Our end of a link, both directions.
#[derive(Debug)]
pub struct Link {
    ends: Ends,

    /// Space for a header, and the items that gather behind it.
    gathering: BytesMut,
    gathered: u32,
    /// Of these: items that only settle others.
    gathered_lazy: u32,
    /// The number of the next item; they count from 1.
    next_seq: u64,
    /// What was gathered and is not acknowledged, in order.
    segments: VecDeque<Segment>,
    /// Which of them is to be published next; those before it were.
    next_segment: usize,
    /// Bytes of those that were published.
    published_bytes: usize,
    /// Bytes of all of them, and of those that gather.
    unacked_bytes: usize,
    /// Publishes that Redis has not answered.
    publishing: u32,
    published_at: Micros,
    /// How dense the items were, as of then: see [`BUSY_DENSITY`].
    density: f32,
    resend_at: Option<Micros>,
    resend_after: Duration,
    went_back_at: Micros,
    resent: u64,

    /// The number of the last item that was taken in; those up to `handled` were handled.
    accepted: u64,
    handled: u64,
    ack_at: Option<Micros>,
    ack_envelopes: u32,
    gap: bool,
    gaps: u64,
    /// Unicasts of the peer that have settled, which it was not told yet: ranges of their numbers, as they came.
    settled: Vec<(u64, u64)>,
    /// When the peer is to be told of them at the latest.
    settle_at: Option<Micros>,
}

/// Who speaks over a link with whom.
#[derive(Clone, Debug)]
pub struct Ends {
    /// This node.
    pub from: NodeId,
    /// Its process: its first incarnation.
    pub from_process: Incarnation,
    /// Its life.
    pub from_incarnation: Incarnation,
    /// The peer's life; 0 while it is not known.
    pub to_incarnation: Incarnation,
}

#[derive(Debug)]
struct Segment {
    first_seq: u64,
    count: u32,
    envelope: Bytes,
}

impl Link {
    /// A link on which nothing was sent yet.
    pub fn new(ends: Ends) -> Self {
        let mut link = Self {
            ends,
            gathering: BytesMut::new(),
            gathered: 0,
            gathered_lazy: 0,
            next_seq: 1,
            segments: VecDeque::new(),
            next_segment: 0,
            published_bytes: 0,
            unacked_bytes: 0,
            publishing: 0,
            published_at: Micros::default(),
            density: 0.0,
            resend_at: None,
            resend_after: RESEND_AFTER,
            went_back_at: Micros::default(),
            resent: 0,
            accepted: 0,
            handled: 0,
            ack_at: None,
            ack_envelopes: 0,
            gap: false,
            gaps: 0,
            settled: Vec::new(),
            settle_at: None,
        };
        link.begin_segment();
        link
    }

    /// Bytes that the peer has not acknowledged.
    pub fn unacked_bytes(&self) -> usize {
        self.unacked_bytes
    }

    /// How many items were sent again, since this was asked last.
    pub fn take_resent(&mut self) -> u64 {
        std::mem::take(&mut self.resent)
    }

    /// How many envelopes came after a gap, since this was asked last.
    pub fn take_gaps(&mut self) -> u64 {
        std::mem::take(&mut self.gaps)
    }

    /// Whether the peer has handled the item of this number and all before it.
    pub fn is_acked(&self, seq: u64) -> bool {
        let first_unacked =
            self.segments.front().map_or(self.next_seq - u64::from(self.gathered), |oldest| oldest.first_seq);
        seq < first_unacked
    }

    /// Adds an item; its number.
    pub fn push(&mut self, item: &Draft<'_>) -> u64 {
        if self.gathering.len() + item.frame.len() > SEGMENT_BYTES_MAX && self.gathered > 0 {
            self.seal();
        }
        let before = self.gathering.len();
        wire::write_item(item, &mut self.gathering);
        self.unacked_bytes += self.gathering.len() - before;
        self.gathered += 1;
        self.gathered_lazy += u32::from(item.kind == Kind::Settled);
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// A unicast of the peer has reached its user. It is told with the next envelope, or soon.
    pub fn settle(&mut self, now: Micros, seq: u64) {
        match self.settled.last_mut() {
            Some((_, last)) if *last + 1 == seq => *last = seq,
            _ => self.settled.push((seq, seq)),
        }
        self.settle_at.get_or_insert(now.after(ACK_DELAY));
    }

    /// Tells the peer what has settled, before what is pushed next.
    pub fn push_settled(&mut self) {
        self.settle_at = None;
        let settled = std::mem::take(&mut self.settled);
        self.push_ranges(Kind::Settled, &settled);
    }

    /// Adds items of numbers of the peer's items: ranges of them, first and last.
    pub fn push_ranges(&mut self, kind: Kind, ranges: &[(u64, u64)]) {
        for ranges in ranges.chunks(RANGES_MAX) {
            let numbers = ranges.iter().flat_map(|(first, last)| [first, last]);
            let frame: Vec<u8> = numbers.flat_map(|number| number.to_le_bytes()).collect();
            self.push(&Draft { frame: &frame, ..Draft::of(kind, 0) });
        }
    }

    /// The next envelope to publish, if one should go now. Asked again until there is none.
    pub fn poll(&mut self, now: Micros) -> Option<Bytes> {
        if self.resend_at.is_some_and(|at| now >= at) {
            self.resend_after = (self.resend_after * 2).min(RESEND_AFTER_MAX);
            self.go_back();
        }
        let has_window = self.published_bytes < WINDOW_BYTES;
        let gathers = self.publishing > 0 || self.density > BUSY_DENSITY;
        // An acknowledgement costs an envelope anyway: what is gathered goes along.
        let must_go = [self.ack_at, self.settle_at].into_iter().flatten().any(|at| now >= at);
        let waits = !must_go && gathers && now.since(self.published_at) < FLUSH_WINDOW;
        if self.next_segment == self.segments.len() && has_window && !waits {
            if self.gathered > 0 || must_go {
                self.push_settled();
            }
            self.seal();
        }
        if has_window && let Some(segment) = self.segments.get(self.next_segment) {
            let (envelope, count) = (segment.envelope.clone(), segment.count);
            self.next_segment += 1;
            self.published_bytes += envelope.len();
            self.resend_at.get_or_insert(now.after(self.resend_after));
            self.publishes(now, count);
            return Some(envelope);
        }
        if self.ack_at.is_some_and(|at| now >= at) {
            let mut envelope = vec![0; wire::header_bytes(&self.ends.from)];
            wire::write_header(&self.header(self.next_seq, 0), &mut envelope);
            self.says_ack();
            self.publishes(now, 0);
            return Some(envelope.into());
        }
        None
    }

    /// When [`Self::poll`] may have something though nothing else happens.
    pub fn due(&self) -> Option<Micros> {
        let flush =
            (self.gathered > 0 && self.published_bytes < WINDOW_BYTES).then(|| self.published_at.after(FLUSH_WINDOW));
        let settle = self.settle_at.filter(|_| self.published_bytes < WINDOW_BYTES);
        [flush, self.resend_at, self.ack_at, settle].into_iter().flatten().min()
    }

    /// Redis has answered a publish.
    pub fn published(&mut self) {
        self.publishing = self.publishing.saturating_sub(1);
    }

    /// What was published and not acknowledged may be lost: it goes again, at once.
    pub fn publish_again(&mut self) {
        self.resend_after = RESEND_AFTER;
        self.publishing = 0;
        self.go_back();
    }

    /// The peer has handled all items up to number `ack`, and may have missed what follows.
    pub fn acked(&mut self, now: Micros, ack: u64, gap: bool) {
        let mut progressed = false;
        while let Some(oldest) = self.segments.front()
            && oldest.first_seq + u64::from(oldest.count) <= ack.saturating_add(1)
        {
            let Some(done) = self.segments.pop_front() else { break };
            let bytes = done.envelope.len() - wire::header_bytes(&self.ends.from);
            self.unacked_bytes -= bytes;
            // What is to be sent again may be acknowledged before it was.
            if self.next_segment > 0 {
                self.next_segment -= 1;
                self.published_bytes -= done.envelope.len();
            }
            progressed = true;
        }
        if progressed {
            self.resend_after = RESEND_AFTER;
        }
        if self.next_segment == 0 {
            self.resend_at = None;
        } else if progressed {
            self.resend_at = Some(now.after(self.resend_after));
        }
        if gap && now.since(self.went_back_at) >= GO_BACK_EVERY {
            self.went_back_at = now;
            self.go_back();
        }
    }

    /// What to do with an envelope of the peer's present life to our present life.
    pub fn accept(&mut self, now: Micros, header: &Header) -> Accept {
        if header.count == 0 {
            return Accept::Nothing;
        }
        let end = header.first_seq.saturating_add(u64::from(header.count));
        self.ack_envelopes += u32::from(!header.lazy);
        let delay = if header.lazy { LAZY_ACK_DELAY } else { ACK_DELAY };
        let due = if self.ack_envelopes >= ACK_ENVELOPES_MAX { now } else { now.after(delay) };
        self.ack_at = Some(self.ack_at.map_or(due, |at| at.min(due)));
        if header.first_seq > self.accepted + 1 {
            self.gap = true;
            self.gaps += 1;
            self.ack_at = Some(now);
            return Accept::Nothing;
        }
        if end <= self.accepted + 1 {
            return Accept::Nothing;
        }
        let skip = (self.accepted + 1 - header.first_seq) as u32;
        self.accepted = end - 1;
        self.gap = false;
        Accept::Items { skip }
    }

    /// Has an acknowledgement go out at once.
    pub fn acknowledge_at(&mut self, now: Micros) {
        self.ack_at = Some(now);
    }

    /// The number of the item that is handled next.
    pub fn handling(&self) -> u64 {
        self.handled + 1
    }

    /// The next item that was taken in has been handled.
    pub fn handled(&mut self) {
        self.handled += 1;
    }

    /// Ends the link: the items of this kind that the peer has not acknowledged, in order.
    pub fn into_unacked(mut self, kind: Kind) -> Vec<Item> {
        self.seal();
        let header_bytes = wire::header_bytes(&self.ends.from);
        let mut unacked = Vec::new();
        for segment in self.segments {
            let mut items = segment.envelope.slice(header_bytes..);
            while let Some(item) = wire::take_item(&mut items) {
                if item.kind == Some(kind) {
                    unacked.push(item);
                }
            }
        }
        unacked
    }

    fn begin_segment(&mut self) {
        self.gathering.resize(wire::header_bytes(&self.ends.from), 0);
        self.gathered = 0;
        self.gathered_lazy = 0;
    }

    fn seal(&mut self) {
        if self.gathered == 0 {
            return;
        }
        let first_seq = self.next_seq - u64::from(self.gathered);
        let header = self.header(first_seq, self.gathered);
        let header_bytes = wire::header_bytes(&self.ends.from);
        wire::write_header(&header, &mut self.gathering[..header_bytes]);
        let envelope = self.gathering.split().freeze();
        self.segments.push_back(Segment { first_seq, count: self.gathered, envelope });
        self.says_ack();
        self.begin_segment();
    }

    fn header(&self, first_seq: u64, count: u32) -> Header {
        let Ends { from, from_process, from_incarnation, to_incarnation } = self.ends.clone();
        Header {
            from,
            from_process,
            from_incarnation,
            to_incarnation,
            ack: self.handled,
            gap: self.gap,
            lazy: count > 0 && self.gathered_lazy == count,
            first_seq,
            count,
        }
    }

    fn says_ack(&mut self) {
        self.ack_at = None;
        self.ack_envelopes = 0;
        self.gap = false;
    }

    fn publishes(&mut self, now: Micros, items: u32) {
        self.publishing += 1;
        let windows = now.since(self.published_at).as_secs_f32() / FLUSH_WINDOW.as_secs_f32();
        self.density = self.density * 0.5_f32.powf(windows) + items as f32;
        self.published_at = now;
    }

    fn go_back(&mut self) {
        self.resent += self.segments.range(..self.next_segment).map(|segment| u64::from(segment.count)).sum::<u64>();
        self.next_segment = 0;
        self.published_bytes = 0;
        self.resend_at = None;
    }
}

#[cfg(test)]
mod tests;
