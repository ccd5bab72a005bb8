use proptest::prelude::*;

use super::*;

const MS: u64 = 1000;

fn pair() -> (Link, Link) {
    let link = |from: &str, from_incarnation, to_incarnation| {
        Link::new(Ends { from: from.into(), from_process: from_incarnation, from_incarnation, to_incarnation })
    };
    (link("a", 1, 2), link("b", 2, 1))
}

/// A message to a user.
fn unicast<'a>(user: &'a str, number: u64, frame: &'a [u8]) -> Draft<'a> {
    Draft { frame, ..Draft::about(Kind::Unicast, user, number, 0) }
}

/// Takes an envelope in; the numbers (the items' own) of what was handed on.
fn receive(now: Micros, link: &mut Link, envelope: &Bytes) -> Vec<u64> {
    let (header, mut items) = wire::read(envelope).unwrap();
    link.acked(now, header.ack, header.gap);
    let mut got = Vec::new();
    if let Accept::Items { skip } = link.accept(now, &header) {
        for at in 0..header.count {
            let item = wire::take_item(&mut items).unwrap();
            if at >= skip {
                link.handled();
                got.push(item.number);
            }
        }
    }
    got
}

#[test]
fn an_idle_link_sends_at_once_and_a_busy_one_gathers() {
    let (mut a, mut b) = pair();
    a.push(&unicast("bob", 1, b"x"));
    let first = a.poll(Micros(0)).unwrap();
    a.push(&unicast("bob", 2, b"x"));
    a.push(&unicast("bob", 3, b"x"));
    assert_eq!(a.poll(Micros(10)), None, "the first publish is under way");
    assert_eq!(a.due(), Some(Micros(MS)));
    a.published();
    let second = a.poll(Micros(20)).unwrap();
    assert_eq!(receive(Micros(30), &mut b, &first), [1]);
    assert_eq!(receive(Micros(30), &mut b, &second), [2, 3]);
    assert!(!a.is_acked(1));
    let later = Micros(MS).after(ACK_DELAY);
    let ack = b.poll(later).unwrap();
    assert!(receive(later, &mut a, &ack).is_empty());
    assert!(a.is_acked(3) && a.unacked_bytes() == 0);
    assert_eq!(a.due(), None);
}

#[test]
fn a_publish_that_redis_does_not_answer_holds_items_back_for_a_millisecond_only() {
    let (mut a, _) = pair();
    a.push(&unicast("bob", 1, b"x"));
    assert!(a.poll(Micros(0)).is_some());
    a.push(&unicast("bob", 2, b"x"));
    assert_eq!(a.poll(Micros(MS - 1)), None);
    assert!(a.poll(Micros(MS)).is_some());
}

#[test]
fn a_busy_link_gathers_for_a_millisecond_whether_redis_has_answered_or_not_and_an_idle_one_does_not() {
    let (mut a, _) = pair();
    let mut sends = |from_us: u64, every_us: u64, items: u64| {
        let mut envelopes = 0;
        for now in (0..items).map(|item| Micros(from_us + item * every_us)) {
            a.push(&unicast("bob", 1, b"x"));
            while a.poll(now).is_some() {
                envelopes += 1;
                a.published();
            }
            let sent = a.next_seq - 1 - u64::from(a.gathered);
            a.acked(now, sent, false);
        }
        envelopes
    };
    assert_eq!(sends(0, 4000, 25), 25, "four milliseconds apart each goes at once");
    let envelopes = sends(100 * MS, 250, 400);
    assert!((90..=110).contains(&envelopes), "four in a millisecond: {envelopes} in a hundred milliseconds");
    assert_eq!(sends(201 * MS, 4000, 25), 25, "and at once again");
}

#[test]
fn what_is_not_acknowledged_is_kept_and_handed_back() {
    let (mut a, mut b) = pair();
    a.push(&unicast("bob", 1, b"x"));
    let first = a.poll(Micros(0)).unwrap();
    a.push(&unicast("eve", 2, b"y"));
    a.push(&Draft::of(Kind::Hello, 3));
    receive(Micros(0), &mut b, &first);
    let later = Micros(MS).after(ACK_DELAY);
    let ack = b.poll(later).unwrap();
    receive(later, &mut a, &ack);
    let unacked = a.into_unacked(Kind::Unicast);
    assert_eq!(unacked.iter().map(|item| (item.number, item.user.as_str())).collect::<Vec<_>>(), [(2, "eve")]);
}

#[test]
fn what_has_settled_is_told_with_the_acknowledgement_in_ranges() {
    let (mut a, mut b) = pair();
    for number in 1..=6 {
        a.push(&unicast("bob", number, b"x"));
    }
    let envelope = a.poll(Micros(0)).unwrap();
    receive(Micros(0), &mut b, &envelope);
    for seq in [1, 2, 3, 5] {
        b.settle(Micros(MS), seq);
    }
    assert_eq!(b.poll(Micros(2 * MS)), None, "it waits for company");
    let later = Micros(MS).after(ACK_DELAY);
    let told = b.poll(later).unwrap();
    assert_eq!(b.poll(later), None, "the acknowledgement and it are one envelope");
    let (header, mut items) = wire::read(&told).unwrap();
    assert_eq!((header.ack, header.count, header.lazy), (6, 1, true));
    let item = wire::take_item(&mut items).unwrap();
    assert_eq!(item.kind, Some(Kind::Settled));
    let numbers: Vec<u64> = item.frame.chunks(8).map(|number| u64::from_le_bytes(number.try_into().unwrap())).collect();
    assert_eq!(numbers, [1, 3, 5, 5]);
    // To acknowledge it is not urgent.
    receive(later, &mut a, &told);
    assert_eq!(a.due(), Some(later.after(LAZY_ACK_DELAY)));
}

#[test]
fn what_has_settled_is_not_forgotten_when_an_envelope_is_full() {
    let (mut a, _) = pair();
    a.settle(Micros(0), 1);
    let frame = vec![0; SEGMENT_BYTES_MAX / 2];
    for number in 0..3 {
        a.push(&unicast("bob", number, &frame));
    }
    let mut settled = 0;
    let later = Micros(MS).after(ACK_DELAY);
    while let Some(envelope) = a.poll(later) {
        let (_, mut items) = wire::read(&envelope).unwrap();
        while let Some(item) = wire::take_item(&mut items) {
            settled += u32::from(item.kind == Some(Kind::Settled));
        }
        a.published();
    }
    assert_eq!(settled, 1);
}

#[test]
fn a_peer_that_acknowledges_nothing_stops_the_flow_at_the_window() {
    let (mut a, _) = pair();
    let frame = vec![0; 32 << 10];
    for number in 0..256 {
        a.push(&unicast("bob", number, &frame));
    }
    let mut published = 0;
    while let Some(envelope) = a.poll(Micros(2 * MS)) {
        published += envelope.len();
        a.published();
    }
    assert!((WINDOW_BYTES..WINDOW_BYTES + 2 * SEGMENT_BYTES_MAX).contains(&published), "{published}");
}

proptest! {
    /// Whatever is lost, doubled or delayed: each item is handed on once, in order.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        pushes in proptest::collection::vec(0usize..4, 1..60),
        fates in proptest::collection::vec(0u8..10, 60..200),
    ) {
        let (mut a, mut b) = pair();
        let (mut now, mut pushed, mut got) = (Micros(0), 0, Vec::new());
        let mut fates = fates.into_iter().chain(std::iter::repeat(9));
        let mut late: Vec<Bytes> = Vec::new();
        for round in 0..600 {
            if let Some(&count) = pushes.get(round) {
                for _ in 0..count {
                    pushed += 1;
                    a.push(&unicast("bob", pushed, b"frame"));
                }
            }
            while let Some(envelope) = a.poll(now) {
                a.published();
                match fates.next() {
                    Some(0..=2) => {}
                    Some(3) => late.push(envelope),
                    Some(4) => for _ in 0..2 { got.extend(receive(now, &mut b, &envelope)) },
                    _ => got.extend(receive(now, &mut b, &envelope)),
                }
            }
            while let Some(envelope) = b.poll(now) {
                b.published();
                if fates.next() > Some(3) {
                    receive(now, &mut a, &envelope);
                }
            }
            if round % 7 == 6 {
                for envelope in late.drain(..) {
                    got.extend(receive(now, &mut b, &envelope));
                }
            }
            now = now.after(Duration::from_millis(if round < 60 { 3 } else { 50 }));
        }
        prop_assert_eq!(got, (1..=pushed).collect::<Vec<u64>>());
        prop_assert_eq!(a.unacked_bytes(), 0);
    }
}
