use proptest::prelude::*;

use super::*;

const MS: u64 = 1000;

fn pair() -> (Link, Link) {
    (Link::new("a".into(), 1, 2), Link::new("b".into(), 2, 1))
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
    a.push(Kind::Unicast, 0, "bob", 1, b"x");
    let first = a.poll(Micros(0)).unwrap();
    a.push(Kind::Unicast, 0, "bob", 2, b"x");
    a.push(Kind::Unicast, 0, "bob", 3, b"x");
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
    a.push(Kind::Unicast, 0, "bob", 1, b"x");
    assert!(a.poll(Micros(0)).is_some());
    a.push(Kind::Unicast, 0, "bob", 2, b"x");
    assert_eq!(a.poll(Micros(MS - 1)), None);
    assert!(a.poll(Micros(MS)).is_some());
}

#[test]
fn a_busy_link_gathers_for_a_millisecond_whether_redis_has_answered_or_not_and_an_idle_one_does_not() {
    let (mut a, _) = pair();
    let mut sends = |from_us: u64, every_us: u64, items: u64| {
        let mut envelopes = 0;
        for now in (0..items).map(|item| Micros(from_us + item * every_us)) {
            a.push(Kind::Unicast, 0, "bob", 1, b"x");
            while a.poll(now).is_some() {
                envelopes += 1;
                a.published();
            }
            let sent = a.last_seq() - u64::from(a.gathered);
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
    a.push(Kind::Unicast, 0, "bob", 1, b"x");
    let first = a.poll(Micros(0)).unwrap();
    a.push(Kind::Unicast, wire::FORWARDED, "eve", 2, b"y");
    a.push(Kind::Hello, 0, "", 3, b"");
    receive(Micros(0), &mut b, &first);
    let later = Micros(MS).after(ACK_DELAY);
    let ack = b.poll(later).unwrap();
    receive(later, &mut a, &ack);
    let unacked = a.into_unacked();
    assert_eq!(unacked.iter().map(|(seq, item)| (*seq, item.number)).collect::<Vec<_>>(), [(2, 2), (3, 3)]);
    assert_eq!(unacked[0].1.user, "eve");
}

#[test]
fn a_peer_that_acknowledges_nothing_stops_the_flow_at_the_window() {
    let (mut a, _) = pair();
    let frame = vec![0; 32 << 10];
    for number in 0..256 {
        a.push(Kind::Unicast, 0, "bob", number, &frame);
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
                    a.push(Kind::Unicast, 0, "bob", pushed, b"frame");
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
