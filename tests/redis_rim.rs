//! Goal: the directory and the leases in Redis hold against the races that their scripts name: each test is one.
//!
//! Method: rims of one or several nodes driven by hand against a real Redis; the calls are made in the order that a race
//! would bring about.

mod support;

use std::time::Duration;

use compact_str::CompactString;
use ringmesh::bus::call::{CAPABILITIES, Call, Holder, LINK_VERSION, LeaseState, Location, Reply, Run};
use ringmesh::bus::redis::Event;
use support::redis::RedisServer;
use support::rim::{Rim, on_one_thread};

#[test]
fn a_user_is_where_the_newest_holder_is_and_events_come_once() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&redis.url(), "a").await, Rim::connected(&redis.url(), "b").await);
        a.hear_events().await;
        assert!(a.register("alice").await.is_empty());
        assert_eq!(redis.ask(&["GET", "user:node:alice"]), "a");
        let ttl_s: u64 = redis.ask(&["TTL", "user:node:alice"]).parse().expect("seconds");
        assert!((3590..=3600).contains(&ttl_s), "{ttl_s}");
        let call = b.registration("alice");
        match b.call(call).await {
            Reply::Registered { others, .. } => {
                assert_eq!(others, [Holder { node: "a".into(), incarnation: a.incarnation, op: 1 }]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(redis.ask(&["GET", "user:node:alice"]), "b", "services are sent to the newest");
        assert_eq!(a.holders("alice").await, ["a", "b"], "the oldest comes first");
        b.unregister("alice", 0).await;
        assert_eq!(redis.ask(&["GET", "user:node:alice"]), "a", "the holder that is left takes his place");
        assert_eq!(a.user_events(&redis).await, ["online alice a"]);
        a.unregister("alice", 0).await;
        assert_eq!(redis.ask(&["EXISTS", "user:node:alice"]), "0");
        let Location { holders, foreign, .. } = a.locate("alice").await;
        assert!(holders.is_empty() && foreign.is_none());
        assert_eq!(a.user_events(&redis).await, ["offline alice a"]);
        assert_eq!(redis.ask(&["KEYS", "*:users:*"]), "", "nobody is listed any more");
    });
}

#[test]
fn late_commands_lose() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        a.hear_events().await;
        let early = a.registration("alice");
        assert!(matches!(a.call(early.clone()).await, Reply::Registered { .. }));
        let removal = a.removal("alice", 0);
        assert_eq!(a.call(removal.clone()).await, Reply::Unregistered);
        // The registration again, as a stalled connection would bring it.
        assert_eq!(a.call(early).await, Reply::Superseded);
        assert_eq!(redis.ask(&["EXISTS", "user:node:alice"]), "0");
        // The user has come back; the removal again.
        let again = a.registration("alice");
        assert!(matches!(a.call(again.clone()).await, Reply::Registered { .. }));
        a.call(removal).await;
        assert_eq!(a.holders("alice").await, ["a"]);
        assert_ne!(redis.ask(&["KEYS", "*:users:*"]), "", "and is listed for the case that the node dies");
        // The same registration twice is one.
        assert!(matches!(a.call(again).await, Reply::Registered { .. }));
        assert_eq!(a.user_events(&redis).await, ["online alice a", "offline alice a", "online alice a"]);
    });
}

#[test]
fn an_earlier_life_removes_nothing_of_the_one_after_it() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        let old = a.incarnation;
        a.register("alice").await;
        redis.ask(&["DEL", "rm2:{n:a}:lease"]);
        assert_eq!(a.acquire().await, [old], "the life before it is to be reaped");
        assert!(a.incarnation > old);
        a.register("alice").await;
        let stale = Call::Unregister { user: "alice".into(), incarnation: old, op: 1000, grace_ms: 0 };
        a.call(stale).await;
        assert_eq!(a.holders("alice").await, ["a"]);
        assert_eq!(a.call(Call::Reap { node: "a".into(), incarnation: old }).await, Reply::Reaped(true));
        let location = a.locate("alice").await;
        assert_eq!(location.holders.first().map(|holder| holder.incarnation), Some(a.incarnation));
        let stale = Call::Register { user: "alice".into(), incarnation: old, op: 2000 };
        assert_eq!(a.call(stale).await, Reply::Superseded);
        redis.ask(&["DEL", "rm2:{n:a}:lease"]);
        assert_eq!(a.acquire().await.len(), 1, "what is reaped is not named again");
    });
}

#[test]
fn a_reconnect_within_the_grace_is_silent_and_an_end_of_it_is_told_once() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&redis.url(), "a").await, Rim::connected(&redis.url(), "b").await);
        a.hear_events().await;
        a.register("alice").await;
        a.unregister("alice", 60_000).await;
        assert_eq!(redis.ask(&["EXISTS", "user:node:alice"]), "0", "nobody can reach the user meanwhile");
        b.register("alice").await;
        assert_eq!(a.user_events(&redis).await, ["online alice a"]);
        let ends = |rim: &Rim| Call::EndGrace { user: "alice".into(), incarnation: rim.incarnation };
        let end = ends(&a);
        assert_eq!(a.call(end).await, Reply::Done, "the user is elsewhere");
        assert_eq!(redis.ask(&["KEYS", "rm2:{n:a:*"]), "", "and not listed at the first node any more");
        b.unregister("alice", 300).await;
        // Asked for too early it waits.
        let end = ends(&b);
        assert_eq!(b.call(end.clone()).await, Reply::Done);
        assert_eq!(b.call(end).await, Reply::Done);
        assert_eq!(a.user_events(&redis).await, ["offline alice b"]);
        assert_eq!(redis.ask(&["KEYS", "*:users:*"]), "");
    });
}

#[test]
fn what_is_put_back_is_silent() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        a.hear_events().await;
        a.register("alice").await;
        let alice = a.op() - 1;
        assert_eq!(a.renew(&[("alice", alice)]).await, 0);
        // A foreign node's plain SET and DEL.
        redis.ask(&["SET", "user:node:alice", "foreign", "EX", "3600"]);
        assert_eq!(a.locate("alice").await.foreign.as_deref(), Some("foreign"));
        assert_eq!(a.renew(&[("alice", alice)]).await, 1);
        assert_eq!(redis.ask(&["GET", "user:node:alice"]), "a");
        redis.ask(&["DEL", "user:node:alice"]);
        assert_eq!(a.renew(&[("alice", alice)]).await, 1);
        assert_eq!(redis.ask(&["GET", "user:node:alice"]), "a");
        // Everything lost, the scripts too.
        redis.ask(&["FLUSHALL"]);
        redis.ask(&["SCRIPT", "FLUSH"]);
        assert_eq!(a.renew(&[("alice", alice)]).await, 1);
        assert_eq!(a.holders("alice").await, ["a"]);
        assert_ne!(redis.ask(&["KEYS", "*:users:*"]), "");
        // A renewal that was under way when the user left.
        a.unregister("alice", 0).await;
        let renewal = a.renewal(&[("alice", alice)]).await;
        assert_eq!((renewal.superseded, renewal.restored.len()), (vec![0], 0));
        assert_eq!(redis.ask(&["EXISTS", "user:node:alice"]), "0");
        assert_eq!(redis.ask(&["KEYS", "*:users:*"]), "");
        assert_eq!(a.user_events(&redis).await, ["online alice a", "offline alice a"]);
    });
}

#[test]
fn a_user_whom_a_foreign_node_took_over_stays_there() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        a.hear_events().await;
        a.register("alice").await;
        redis.ask(&["SET", "user:node:alice", "foreign", "EX", "3600"]);
        a.unregister("alice", 0).await;
        assert_eq!(redis.ask(&["GET", "user:node:alice"]), "foreign");
        let location = a.locate("alice").await;
        assert_eq!((location.holders.len(), location.foreign.as_deref()), (0, Some("foreign")));
        assert_eq!(a.user_events(&redis).await, ["online alice a"]);
    });
}

#[test]
fn one_process_has_the_lease_of_an_id() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        let first = a.incarnation;
        assert!(a.acquire_after(0).await.is_empty(), "asked again, as after a lost answer");
        assert_eq!(a.incarnation, first);
        let mut twin = Rim::start(&redis.url(), "a");
        twin.reconnected().await;
        match twin.call(Call::Acquire { after: 0 }).await {
            Reply::Held { incarnation, lapses_ms } => {
                assert_eq!(incarnation, first);
                assert!((1..=10_000).contains(&lapses_ms), "{lapses_ms}");
            }
            other => panic!("{other:?}"),
        }
        let renewal = Call::RenewLease { incarnation: first, connections: 7, entered_run: Some(1) };
        assert_eq!(a.call(renewal.clone()).await, Reply::Lease(LeaseState::Ours));
        assert_eq!(redis.ask(&["GET", "node:connections:a"]), "7");
        assert_ne!(redis.ask(&["PTTL", "node:connections:a"]), "-1");
        // It lapses, and nobody minds: the node was not declared dead.
        redis.ask(&["DEL", "rm2:{n:a}:lease"]);
        assert_eq!(a.call(renewal.clone()).await, Reply::Lease(LeaseState::Ours));
        // It lapses, and the other process takes it.
        redis.ask(&["DEL", "rm2:{n:a}:lease"]);
        assert_eq!(twin.acquire().await, [first]);
        assert!(twin.incarnation > first);
        assert_eq!(a.call(renewal.clone()).await, Reply::Lease(LeaseState::Taken));
        // Also after that one's lease has lapsed as well: the newer life has the right.
        redis.ask(&["DEL", "rm2:{n:a}:lease"]);
        assert_eq!(a.call(renewal).await, Reply::Lease(LeaseState::Taken));
        assert_eq!(a.call(Call::Release { incarnation: first }).await, Reply::Done);
        let renewal = Call::RenewLease { incarnation: twin.incarnation, connections: 0, entered_run: Some(1) };
        assert_eq!(twin.call(renewal).await, Reply::Lease(LeaseState::Ours));
        assert_eq!(redis.ask(&["GET", "node:connections:a"]), "0");
        let release = Call::Release { incarnation: twin.incarnation };
        assert_eq!(twin.call(release).await, Reply::Done);
        redis.ask(&["DEL", "rm2:{nodes}:run"]);
        assert_eq!(redis.ask(&["KEYS", "*"]), "rm2:{n:a}:last", "nothing is left but the number");
    });
}

#[test]
fn a_lost_answer_is_given_again_and_a_life_that_is_over_never() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        let first = a.incarnation;
        let lease = redis.ask(&["GET", "rm2:{n:a}:lease"]);
        assert!(lease.starts_with(&format!("{first}:")), "{lease}");
        assert!(lease.ends_with(&format!(":{LINK_VERSION}:{CAPABILITIES}")), "{lease}");
        // Declared dead, it needs another life; its own lease is no hindrance.
        assert_eq!(a.acquire().await, [first]);
        let second = a.incarnation;
        assert!(second > first);
        // That answer was lost.
        assert_eq!(a.acquire_after(first).await, [first]);
        assert_eq!(a.incarnation, second);
        assert_eq!(a.acquire_after(second).await, [first, second]);
        assert!(a.incarnation > second);
        // Also when Redis has lost everything, and its clock went back.
        redis.ask(&["FLUSHALL"]);
        let far = u64::pow(10, 15) * 5;
        assert!(a.acquire_after(far).await.is_empty());
        assert_eq!(a.incarnation, far + 1);
        assert_eq!(redis.ask(&["EXISTS", "rm2:{nodes}:all"]), "0", "the registry is entered by renewals alone");
    });
}

#[test]
fn incarnations_grow_also_when_the_clock_went_back() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let far = u64::pow(10, 15) * 5;
        redis.ask(&["SET", "rm2:{n:a}:last", &far.to_string()]);
        let a = Rim::connected(&redis.url(), "a").await;
        assert_eq!(a.incarnation, far + 1);
    });
}

#[test]
fn a_dead_node_is_reaped_once_and_a_live_one_never() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&redis.url(), "a").await, Rim::connected(&redis.url(), "b").await);
        const USERS: usize = 3000;
        let calls: Vec<_> = (0..USERS).map(|at| a.registration(&format!("user-{at}"))).collect();
        let ids: Vec<_> = calls.into_iter().map(|call| a.hand_over(call)).collect();
        for id in ids {
            let reply =
                a.wait_for("a reply", |event| matches!(event, Event::Reply(answered, _) if *answered == id)).await;
            assert!(matches!(reply, Event::Reply(_, Reply::Registered { .. })), "{reply:?}");
        }
        b.register("user-0").await;
        a.register("in-grace").await;
        a.unregister("in-grace", 500).await;
        a.enrol().await;
        b.enrol().await;
        b.hear_events().await;
        let declare = Call::DeclareDead { node: "a".into(), incarnation: a.incarnation, again: false };
        assert_eq!(b.call(declare.clone()).await, Reply::Declared(false), "its lease is there");
        let Reply::Looked { nodes, foreign, .. } = b.call(Call::Look).await else { panic!("no look") };
        assert_eq!(
            nodes.iter().map(|seen| (seen.node.as_str(), seen.has_lease)).collect::<Vec<_>>(),
            [("a", true), ("b", true)]
        );
        assert!(foreign.is_empty());
        redis.ask(&["DEL", "rm2:{n:a}:lease"]);
        assert_eq!(b.call(declare.clone()).await, Reply::Declared(true));
        assert_eq!(b.call(declare).await, Reply::Declared(true));
        let renewal = Call::RenewLease { incarnation: a.incarnation, connections: 3, entered_run: Some(1) };
        assert_eq!(a.call(renewal).await, Reply::Lease(LeaseState::Dead));
        let reap = Call::Reap { node: "a".into(), incarnation: a.incarnation };
        // Another node is at it.
        let claim = format!("rm2:{{n:a}}:reap:{}", a.incarnation);
        redis.ask(&["SET", &claim, "another", "EX", "60"]);
        assert_eq!(b.call(reap.clone()).await, Reply::Reaped(false));
        redis.ask(&["DEL", &claim]);
        assert_eq!(b.call(reap.clone()).await, Reply::Reaped(true));
        let mut events = b.user_events(&redis).await;
        assert_eq!(events.len(), USERS, "one offline each, but for the one whom the other node holds");
        events.sort_unstable();
        events.dedup();
        assert_eq!(events.len(), USERS);
        assert!(events.contains(&"offline in-grace a".to_owned()) && !events.contains(&"offline user-0 a".to_owned()));
        assert_eq!(b.holders("user-0").await, ["b"]);
        assert_eq!(redis.ask(&["KEYS", "user:node:*"]), "user:node:user-0");
        assert_eq!(redis.ask(&["KEYS", "rm2:{*}:users:a:*"]), "", "no bucket is left");
        assert_eq!(redis.ask(&["EXISTS", "node:connections:a"]), "0");
        assert_eq!(b.look().await.0.len(), 1);
        // A user whom it registers after all is found by the second look.
        let late = Call::Register { user: "late".into(), incarnation: a.incarnation, op: 99_999 };
        assert!(matches!(a.call(late).await, Reply::Registered { .. }));
        assert_eq!(b.call(reap).await, Reply::Reaped(true));
        assert_eq!(b.user_events(&redis).await, ["online late a", "offline late a"]);
    });
}

#[test]
fn a_life_that_was_reaped_learns_it_from_its_renewals() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&redis.url(), "a").await, Rim::connected(&redis.url(), "b").await);
        a.register("alice").await;
        let alice = a.op() - 1;
        assert_eq!(b.call(Call::Reap { node: "a".into(), incarnation: a.incarnation }).await, Reply::Reaped(true));
        b.register("bob").await;
        // One that was never entered is put back all the same.
        let bob = a.op();
        let renewal = a.renewal(&[("bob", bob), ("alice", alice)]).await;
        assert_eq!(renewal.superseded, [1]);
        let holder = Holder { node: "b".into(), incarnation: b.incarnation, op: 1 };
        assert_eq!((renewal.restored, renewal.others), (vec![0], vec![(0, vec![holder.clone()])]));
        // Also of whom nothing had to be put back it is said who else holds the user.
        let renewal = a.renewal(&[("bob", bob)]).await;
        assert_eq!((renewal.restored, renewal.others), (vec![], vec![(0, vec![holder])]));
        assert!(a.holders("alice").await.is_empty());
        assert_eq!(a.holders("bob").await, ["b", "a"], "who is put back is the newest");
        let late = Call::Register { user: "alice".into(), incarnation: a.incarnation, op: 1000 };
        assert_eq!(a.call(late).await, Reply::Superseded);
        // In another life it is entered again.
        a.acquire().await;
        assert!(a.register("alice").await.is_empty());
    });
}

#[test]
fn a_life_that_was_declared_dead_is_declared_again_though_it_has_its_lease() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&redis.url(), "a").await, Rim::connected(&redis.url(), "b").await);
        let declare = |incarnation, again| Call::DeclareDead { node: "a".into(), incarnation, again };
        let first = a.incarnation;
        assert_eq!(b.call(declare(first, false)).await, Reply::Declared(false));
        assert_eq!(a.renew_lease(None).await, LeaseState::Ours);
        assert_eq!(b.call(declare(first, true)).await, Reply::Declared(true));
        assert_eq!(a.renew_lease(None).await, LeaseState::Dead);
        assert_eq!(a.acquire().await, [first]);
        // The life after it is none of this.
        assert_eq!(b.call(declare(first, true)).await, Reply::Declared(true));
        assert_eq!(a.renew_lease(None).await, LeaseState::Ours);
        assert_eq!(b.call(declare(a.incarnation, false)).await, Reply::Declared(false));
    });
}

const RUN: &str = "rm2:{nodes}:run";
/// As long as a run is young, and a little more.
const NO_MORE_YOUNG: Duration = Duration::from_millis(3_200);

#[test]
fn a_run_has_one_marker_and_another_one_is_another_run() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&redis.url(), "a").await, Rim::connected(&redis.url(), "b").await);
        let marker = redis.ask(&["GET", RUN]);
        assert_eq!(a.locate("alice").await.run, Run { id: 1, is_young: true });
        tokio::time::sleep(NO_MORE_YOUNG).await;
        let run = Run { id: 1, is_young: false };
        assert_eq!(a.locate("alice").await.run, run);
        let call = a.registration("alice");
        assert_eq!(a.call(call).await, Reply::Registered { others: Vec::new(), run });
        let alice = a.op() - 1;
        assert_eq!(a.renewal(&[("alice", alice)]).await.run, run);
        a.enrol().await;
        let (nodes, seen) = b.look().await;
        assert_eq!((seen, nodes.len(), nodes[0].is_entered), (run, 1, true));
        assert_eq!((nodes[0].version, nodes[0].capabilities), (LINK_VERSION, CAPABILITIES));
        assert_eq!(redis.ask(&["GET", RUN]), marker);
        assert_eq!(redis.ask(&["TTL", RUN]), "-1");

        redis.ask(&["FLUSHALL"]);
        // The node does not know it yet, and says what was true.
        assert_eq!(a.renew_lease(Some(1)).await, LeaseState::Ours);
        assert_eq!(redis.ask(&["EXISTS", "rm2:{nodes}:all"]), "0", "its users are not there in this run");
        let run = Run { id: 2, is_young: true };
        let renewal = a.renewal(&[("alice", alice)]).await;
        assert_eq!((renewal.run, renewal.restored), (run, vec![0]));
        assert_eq!(a.renew_lease(Some(1)).await, LeaseState::Ours);
        assert!(a.look().await.0.is_empty());
        assert_eq!(a.renew_lease(Some(2)).await, LeaseState::Ours);
        let (nodes, seen) = b.look().await;
        assert_eq!((seen, nodes.len(), nodes[0].is_entered), (run, 1, true), "the other counts its runs by itself");
        assert_ne!(redis.ask(&["GET", RUN]), marker);

        // Each call notices it by itself, and does what it has to in the new run.
        redis.ask(&["FLUSHALL"]);
        assert_eq!(a.locate("alice").await.run.id, 3);
        redis.ask(&["FLUSHALL"]);
        assert_eq!(a.look().await.1.id, 4);
        redis.ask(&["FLUSHALL"]);
        let call = a.registration("alice");
        assert_eq!(a.call(call).await, Reply::Registered { others: Vec::new(), run: Run { id: 5, is_young: true } });
        assert_ne!(redis.ask(&["KEYS", "*:users:a:*"]), "");
        redis.ask(&["FLUSHALL"]);
        let alice = a.op() - 1;
        let renewal = a.renewal(&[("alice", alice)]).await;
        assert_eq!((renewal.run.id, renewal.restored.len()), (6, 1));
    });
}

#[test]
fn a_server_that_restarts_from_an_old_file_is_another_run_though_the_marker_is_there() {
    let mut redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        a.register("alice").await;
        a.enrol().await;
        for run in 2.. {
            redis.ask(&["SAVE"]);
            let marker = redis.ask(&["GET", RUN]);
            a.register("bob").await;
            let bob = a.op() - 1;
            redis.kill();
            a.loss().await;
            redis.start_again();
            a.reconnected().await;
            // Whichever call comes first.
            let seen = match run {
                2 => a.locate("bob").await.run,
                3 => a.renewal(&[("bob", bob)]).await.run,
                _ => break,
            };
            assert_eq!(seen, Run { id: run, is_young: true });
            assert_ne!(redis.ask(&["GET", RUN]), marker);
            let (nodes, seen) = a.look().await;
            assert_eq!((seen.id, nodes.len(), nodes[0].is_entered), (run, 1, false), "entered in the run before");
            a.enrol().await;
            let (nodes, _) = a.look().await;
            assert!(nodes[0].is_entered);
        }
    });
}

#[test]
fn without_the_right_to_read_the_replication_id_an_empty_redis_is_noticed() {
    let redis = RedisServer::start();
    redis.ask(&["ACL", "SETUSER", "poor", "on", ">secret", "~*", "&*", "+@all", "-info"]);
    let poor = format!("redis://poor:secret@127.0.0.1:{}", redis.port());
    on_one_thread(async {
        let mut a = Rim::connected(&poor, "a").await;
        a.register("alice").await;
        let marker = redis.ask(&["GET", RUN]);
        assert!(marker.ends_with(":-"), "{marker}");
        a.register("bob").await;
        assert_eq!(a.look().await.1.id, 1);
        redis.ask(&["FLUSHALL"]);
        assert_eq!(a.look().await.1.id, 2);
        // One that may reads it, and then it stays.
        let mut b = Rim::connected(&redis.url(), "b").await;
        b.register("bob").await;
        let marker = redis.ask(&["GET", RUN]);
        assert!(!marker.ends_with(":-"), "{marker}");
        assert_eq!(a.look().await.1.id, 3);
        assert_eq!(redis.ask(&["GET", RUN]), marker);
    });
}

#[test]
fn foreign_nodes_are_found_by_their_channel() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        let mut connection = redis.connect();
        let mut foreign = connection.as_pubsub();
        foreign.subscribe(&["node:other", "node:w:e{i}rd", "nodes"]).expect("a subscription");
        let Reply::Looked { foreign, .. } = a.call(Call::Look).await else { panic!("no look") };
        assert_eq!(foreign, ["other", "w:e{i}rd"]);
        let publish = Call::PublishContract { node: "w:e{i}rd".into(), json: "{}".into() };
        assert_eq!(a.call(publish).await, Reply::Published { receivers: 1 });
        let publish = Call::PublishContract { node: "nobody".into(), json: "{}".into() };
        assert_eq!(a.call(publish).await, Reply::Published { receivers: 0 });
    });
}

#[test]
fn envelopes_keep_their_order_while_thousands_register() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&redis.url(), "a").await, Rim::connected(&redis.url(), "b").await);
        const ENVELOPES: u32 = 20_000;
        let mut ids = Vec::new();
        for at in 0..ENVELOPES {
            ids.push(a.publish("b", at.to_le_bytes().to_vec()));
            if at % 4 == 0 {
                let call = a.registration(&format!("user-{at}"));
                ids.push(a.hand_over(call));
            }
        }
        for at in 0..ENVELOPES {
            assert_eq!(b.envelope().await, at.to_le_bytes().to_vec());
        }
        for _ in ids {
            let reply = a.wait_for("a reply", |event| matches!(event, Event::Reply(..))).await;
            assert!(!matches!(reply, Event::Reply(_, Reply::Failed)), "{reply:?}");
        }
        // What others publish there comes through as it is; a service's text on the contract's channel, too.
        redis.ask(&["PUBLISH", "rm2:{n:b}:link", "junk"]);
        assert_eq!(b.envelope().await, "junk");
        redis.ask(&["PUBLISH", "node:b", "{\"action\":\"broadcast\"}"]);
        b.wait_for("JSON", |event| matches!(event, Event::Contract(text) if text.starts_with(b"{\"action\""))).await;
        b.wait_for("a lag", |event| matches!(event, Event::Lag(_))).await;
    });
}

/// `cargo test --release --test redis_rim -- --ignored --nocapture`: what a hundred thousand users, and a million
/// envelopes, cost.
#[test]
#[ignore = "a measurement"]
fn what_it_costs() {
    let redis = RedisServer::start();
    let own_cpu_s = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this thread");
        text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("nanoseconds") / 1e9
    };
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        const USERS: usize = 100_000;
        for what in ["register", "register again", "unregister"] {
            let (redis_cpu_s, cpu_s, start) = (redis.cpu_s(), own_cpu_s(), std::time::Instant::now());
            for at in 0..USERS {
                let user = format!("user-{at}");
                let call = if what == "unregister" { a.removal(&user, 0) } else { a.registration(&user) };
                a.hand_over(call);
            }
            for _ in 0..USERS {
                a.wait_for("a reply", |event| matches!(event, Event::Reply(..))).await;
            }
            let (redis_cpu_s, cpu_s) = (redis.cpu_s() - redis_cpu_s, own_cpu_s() - cpu_s);
            println!("{what} {USERS}: {:?}, Redis CPU {redis_cpu_s:.2} s, own {cpu_s:.2} s", start.elapsed());
            if what == "register again" {
                let users: Vec<_> = (0..USERS).map(|at| (format!("user-{at}"), (USERS + at + 1) as u64)).collect();
                let users: Vec<_> = users.iter().map(|(user, op)| (CompactString::from(user), *op)).collect();
                let (redis_cpu_s, cpu_s, start) = (redis.cpu_s(), own_cpu_s(), std::time::Instant::now());
                let reply = a.call(Call::Renew { incarnation: a.incarnation, users }).await;
                let (redis_cpu_s, cpu_s) = (redis.cpu_s() - redis_cpu_s, own_cpu_s() - cpu_s);
                println!(
                    "renew {USERS}: {:?} {reply:?}, Redis CPU {redis_cpu_s:.2} s, own {cpu_s:.2} s",
                    start.elapsed()
                );
                println!("memory {}", redis.ask(&["INFO", "memory"]).lines().nth(1).unwrap_or_default());
            }
        }
        for (batch, bytes) in [(1, 100), (16, 100), (64, 100), (16, 6_400)] {
            const TURNS: usize = 5_000;
            let envelope = bytes::Bytes::from(vec![7; bytes]);
            let (redis_cpu_s, cpu_s, start) = (redis.cpu_s(), own_cpu_s(), std::time::Instant::now());
            for _ in 0..TURNS {
                for _ in 0..batch {
                    a.publish("b", envelope.clone());
                }
                for _ in 0..batch {
                    a.wait_for("a reply", |event| matches!(event, Event::Reply(..))).await;
                }
            }
            let count = (TURNS * batch) as f64;
            let (redis_us, us) = ((redis.cpu_s() - redis_cpu_s) * 1e6 / count, (own_cpu_s() - cpu_s) * 1e6 / count);
            let rate = count / start.elapsed().as_secs_f64();
            println!(
                "publish {batch} x {bytes} B a turn: {rate:.0}/s, Redis CPU {redis_us:.2} us each, own {us:.2} us"
            );
        }
    });
}
