//! Goal: the rim gets along with Redis in all its forms, survives what happens to them, and says what is wrong in words
//! that help.
//!
//! Method: rims driven by hand against real servers that are stopped, killed, restarted and failed over.

mod support;

use std::time::Duration;

use ringmesh::bus::call::{Call, LeaseState, Reply};
use ringmesh::bus::redis::Event;
use support::redis::{RedisCluster, RedisServer, Sentinels};
use support::rim::{Rim, on_one_thread};

/// How long a failover may take that a test waits for.
const FAILOVER_MAX: Duration = Duration::from_secs(60);

/// Envelopes, contract messages and events arrive, and a user can be registered and taken off.
async fn all_works(rim: &mut Rim, user: &str) {
    let id = rim.id.clone();
    rim.publish(&id, "envelope");
    assert_eq!(rim.envelope().await, "envelope");
    rim.hand_over(Call::PublishContract { node: id.as_str().into(), json: "{}".into() });
    rim.wait_for("a contract message", |event| matches!(event, Event::Contract(_))).await;
    rim.hear_events().await;
    rim.register(user).await;
    assert_eq!(rim.holders(user).await, [id]);
    rim.unregister(user, 0).await;
    for word in ["online", "offline"] {
        let is_it =
            |event: &Event| matches!(event, Event::UserEvent(text) if String::from_utf8_lossy(text).contains(word));
        rim.wait_for(word, is_it).await;
    }
}

#[test]
fn a_killed_connection_comes_back_with_its_subscriptions() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        a.hear_events().await;
        for _ in 0..3 {
            redis.kill_clients();
            a.loss().await;
            a.reconnected().await;
            all_works(&mut a, "alice").await;
        }
    });
}

#[test]
fn a_stopped_server_is_noticed_and_every_call_is_answered() {
    let redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        redis.stop();
        let mut ids = Vec::new();
        for at in 0..2_000 {
            let call = a.registration(&format!("user-{at}"));
            ids.push(a.hand_over(call));
            ids.push(a.publish("a", "envelope"));
        }
        let reason = a.loss().await;
        assert!(reason.contains("is it stopped") || reason.contains("is Redis stopped"), "{reason}");
        for id in ids {
            a.wait_for("a failure", |event| *event == Event::Reply(id, Reply::Failed)).await;
        }
        assert_eq!(a.call(Call::Look).await, Reply::Failed, "at once, while there is no connection");
        redis.cont();
        a.reconnected().await;
        all_works(&mut a, "alice").await;
    });
}

#[test]
fn a_restarted_server_without_its_data_is_enough() {
    let mut redis = RedisServer::start();
    on_one_thread(async {
        let mut a = Rim::connected(&redis.url(), "a").await;
        redis.kill();
        a.loss().await;
        let reason = a.loss().await;
        assert!(reason.contains("out of reach") && reason.contains("--redis"), "{reason}");
        redis.start_again();
        a.reconnected().await;
        let before = a.incarnation;
        a.acquire().await;
        assert!(a.incarnation > before);
        all_works(&mut a, "alice").await;
    });
}

#[test]
fn a_server_that_comes_later_is_found() {
    let mut redis = RedisServer::start();
    redis.kill();
    on_one_thread(async {
        let mut a = Rim::start(&redis.url(), "a");
        assert!(a.loss().await.contains("out of reach"));
        redis.start_again();
        a.reconnected().await;
        a.acquire().await;
        all_works(&mut a, "alice").await;
    });
}

#[test]
fn passwords_and_access_lists() {
    let redis = RedisServer::with_password("pa@ss/wo%rd");
    let port = redis.port();
    on_one_thread(async {
        let mut a = Rim::start(&format!("redis://127.0.0.1:{port}"), "a");
        let reason = a.loss().await;
        assert!(reason.contains("password") && reason.contains("redis://USER:PASSWORD@HOST"), "{reason}");
        let mut a = Rim::start(&format!("redis://:wrong@127.0.0.1:{port}"), "a");
        let reason = a.loss().await;
        assert!(reason.contains("password") && !reason.contains("wrong@"), "{reason}");
        let good = format!("redis://:pa%40ss%2Fwo%25rd@127.0.0.1:{port}/5");
        let mut a = Rim::connected(&good, "a").await;
        all_works(&mut a, "alice").await;
        assert_eq!(redis.ask(&["-n", "5", "EXISTS", "rm2:{n:a}:lease"]), "1", "the database is the URL's");
        assert_eq!(redis.ask(&["EXISTS", "rm2:{n:a}:lease"]), "0");
        // Redis gives a user no channels unless told to. What is missing is told, and that line is enough for all calls.
        redis.ask(&["ACL", "SETUSER", "poor", "on", ">secret", "~*", "+@all"]);
        let mut poor = Rim::start(&format!("redis://poor:secret@127.0.0.1:{port}"), "b");
        let reason = poor.loss().await;
        let line = reason.split_once("ACL SETUSER ringmesh").expect("the ACL line").1.replace("PASSWORD", "secret");
        let rights: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(redis.ask(&[&["ACL", "SETUSER", "good"], &rights[..]].concat()), "OK");
        let mut b = Rim::connected(&format!("redis://good:secret@127.0.0.1:{port}/5"), "b").await;
        all_works(&mut b, "bob").await;
        b.register("bob").await;
        let op = b.op() - 1;
        assert_eq!(b.renew(&[("bob", op)]).await, 0);
        b.unregister("bob", 50).await;
        assert_eq!(b.call(Call::EndGrace { user: "bob".into(), incarnation: b.incarnation }).await, Reply::Done);
        a.enrol().await;
        b.enrol().await;
        assert_eq!(b.look().await.0.len(), 2);
        let marker = redis.ask(&["-n", "5", "GET", "rm2:{nodes}:run"]);
        assert!(marker.rsplit(':').next().is_some_and(|id| id.len() == 40), "the line allows INFO: {marker}");
        redis.ask(&["-n", "5", "DEL", "rm2:{n:a}:lease"]);
        let (node, incarnation) = ("a".into(), a.incarnation);
        assert_eq!(b.call(Call::DeclareDead { node, incarnation, again: false }).await, Reply::Declared(true));
        assert_eq!(b.call(Call::Reap { node: "a".into(), incarnation }).await, Reply::Reaped(true));
        assert_eq!(b.call(Call::Release { incarnation: b.incarnation }).await, Reply::Done);
    });
}

#[test]
fn tls_with_a_ca_of_ones_own() {
    let redis = RedisServer::with_tls();
    on_one_thread(async {
        let mut a = Rim::start(&format!("rediss://127.0.0.1:{}", redis.port()), "a");
        let reason = a.loss().await;
        assert!(reason.contains("certificate") && reason.contains("?ca=FILE"), "{reason}");
        let mut a = Rim::start(&format!("rediss://127.0.0.1:{}?ca=/nowhere/ca.pem", redis.port()), "a");
        let reason = a.loss().await;
        assert!(reason.contains("/nowhere/ca.pem"), "{reason}");
        let mut a = Rim::connected(&redis.url(), "a").await;
        all_works(&mut a, "alice").await;
    });
}

#[test]
fn the_wrong_kind_of_server_is_told() {
    let redis = RedisServer::start();
    let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &redis.port().to_string()]);
    let member = RedisServer::with(&["--cluster-enabled", "yes", "--cluster-port", &free_bus_port()]);
    on_one_thread(async {
        for (url, told) in [
            (replica.url(), "is a replica"),
            (member.url(), "use redis+cluster://"),
            (redis.url().replace("redis://", "redis+cluster://"), "is no cluster: use redis://"),
            (format!("redis+sentinel://127.0.0.1:{}/main", redis.port()), "no sentinel of --redis names a master"),
        ] {
            let reason = Rim::start(&url, "a").loss().await;
            assert!(reason.contains(told), "{url}: {reason}");
        }
    });
}

fn free_bus_port() -> String {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    socket.local_addr().expect("its address").port().to_string()
}

#[test]
fn sentinels_are_asked_again_after_a_failover() {
    let mut sentinels = Sentinels::start();
    on_one_thread(async {
        let mut a = Rim::connected(&sentinels.url(), "a").await;
        all_works(&mut a, "alice").await;
        sentinels.master.kill();
        a.loss().await;
        a.wait_until("the new master", FAILOVER_MAX, |event| matches!(event, Event::Connected)).await;
        let (_, run) = a.look().await;
        assert_eq!(run.id, 2, "what the replica lacks nobody knows");
        all_works(&mut a, "alice").await;
        a.enrol().await;
        assert_eq!(sentinels.replica.ask(&["EXISTS", "rm2:{nodes}:all"]), "1", "it is the replica now");
    });
}

/// Names that have misled implementations of hash tags.
const STRANGE_USERS: [&str; 9] = ["a}b", "{", "}", "{}", "{a}b", "a{b}c{d}", "{user:node:x}y}", "über{ü}", "a:b"];

#[test]
fn a_cluster_takes_any_user_id_and_its_links_are_sharded() {
    let cluster = RedisCluster::start(3, 0);
    on_one_thread(async {
        let (mut a, mut b) = (Rim::connected(&cluster.url(), "a").await, Rim::connected(&cluster.url(), "b").await);
        all_works(&mut a, "alice").await;
        for user in STRANGE_USERS {
            a.register(user).await;
            let op = a.op() - 1;
            assert_eq!(b.register(user).await, ["a"], "{user}");
            assert_eq!(a.renew(&[(user, op)]).await, 0, "{user}");
            assert_eq!(a.holders(user).await, ["a", "b"], "{user}");
            b.unregister(user, 0).await;
        }
        let many: Vec<_> = (0..1_000).map(|at| a.registration(&format!("user-{at}"))).collect();
        let ids: Vec<_> = many.into_iter().map(|call| a.hand_over(call)).collect();
        for id in ids {
            let is_it =
                |event: &Event| matches!(event, Event::Reply(answered, Reply::Registered { .. }) if *answered == id);
            a.wait_for("a registration", is_it).await;
        }
        for at in 0..2_000_u32 {
            a.publish("b", at.to_le_bytes().to_vec());
        }
        for at in 0..2_000_u32 {
            assert_eq!(b.envelope().await, at.to_le_bytes().to_vec());
        }
        // A service at whatever server.
        for master in &cluster.masters {
            master.ask(&["PUBLISH", "node:b", "{}"]);
            b.wait_for("a contract message", |event| matches!(event, Event::Contract(_))).await;
            assert_eq!(master.ask(&["PUBSUB", "CHANNELS", "rm2:*"]), "", "links are not flooded to every server");
        }
        cluster.masters[cluster.owner("rm2:{n:a}:lease")].ask(&["DEL", "rm2:{n:a}:lease"]);
        let (node, incarnation) = ("a".into(), a.incarnation);
        assert_eq!(b.call(Call::DeclareDead { node, incarnation, again: false }).await, Reply::Declared(true));
        assert_eq!(b.call(Call::Reap { node: "a".into(), incarnation }).await, Reply::Reaped(true));
        for user in STRANGE_USERS {
            assert!(b.holders(user).await.is_empty(), "{user}");
        }
        for master in &cluster.masters {
            assert_eq!(master.ask(&["KEYS", "user:node:*"]), "");
        }
        assert_eq!(b.call(Call::Release { incarnation: b.incarnation }).await, Reply::Done);
    });
}

#[test]
fn a_master_that_loses_its_data_is_one_loss_for_all_its_slots() {
    let cluster = RedisCluster::start(3, 0);
    on_one_thread(async {
        let mut a = Rim::connected(&cluster.url(), "a").await;
        // Before it has seen the registry's marker.
        assert_eq!(a.renew_lease(Some(1)).await, LeaseState::Ours);
        let users: Vec<String> = (0..300).map(|at| format!("user-{at}")).collect();
        for user in &users {
            a.register(user).await;
        }
        let op = a.op();
        let renewed: Vec<(&str, u64)> =
            users.iter().zip(op - users.len() as u64..).map(|(user, op)| (user.as_str(), op)).collect();
        let renewal = a.renewal(&renewed).await;
        assert_eq!((renewal.run.id, renewal.restored.len()), (1, 0));
        let (nodes, run) = a.look().await;
        assert_eq!((run.id, nodes[0].is_entered), (1, true));
        let home = cluster.owner("rm2:{nodes}:run");
        let lost = (home + 1) % 3;
        let keys = cluster.masters[lost].ask(&["KEYS", "rm2:{*}:run"]);
        assert!(keys.lines().count() > 50 && !keys.contains("nodes"), "a marker for each slot: {keys}");
        cluster.masters[lost].ask(&["FLUSHALL"]);
        let renewal = a.renewal(&renewed).await;
        assert_eq!((renewal.run.id, renewal.run.is_young), (2, true));
        let owners = users.iter().map(|user| cluster.owner(&format!("user:node:{user}")));
        let of_lost: Vec<usize> = owners.enumerate().filter(|(_, owner)| *owner == lost).map(|(at, _)| at).collect();
        assert_eq!(renewal.restored, of_lost);
        assert_eq!(a.renewal(&renewed).await.run.id, 2);
        assert_eq!(a.look().await.1.id, 2, "the registry is at another master");
        cluster.masters[home].ask(&["FLUSHALL"]);
        let (nodes, run) = a.look().await;
        assert_eq!((run.id, nodes.len()), (3, 0));
        assert_eq!(a.renew_lease(Some(2)).await, LeaseState::Ours);
        assert!(a.look().await.0.is_empty(), "its users have to be entered again first");
        assert_eq!(a.renewal(&renewed).await.run.id, 3);
        assert_eq!(a.renew_lease(Some(3)).await, LeaseState::Ours);
        assert!(a.look().await.0[0].is_entered);
    });
}

#[test]
fn a_moved_slot_is_followed() {
    let cluster = RedisCluster::start(3, 0);
    on_one_thread(async {
        let mut a = Rim::connected(&cluster.url(), "a").await;
        a.register("alice").await;
        a.unregister("alice", 0).await;
        // The slot of another user changes hands.
        let key = "user:node:bob";
        let slot = cluster.masters[0].ask(&["CLUSTER", "KEYSLOT", key]);
        let (from, to) = (cluster.owner(key), (cluster.owner(key) + 1) % 3);
        let id = cluster.masters[to].ask(&["CLUSTER", "MYID"]);
        for master in [to, from, 3 - from - to] {
            cluster.masters[master].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        }
        a.register("bob").await;
        assert_eq!(cluster.masters[to].ask(&["GET", key]), "a");
    });
}

#[test]
fn a_part_of_a_cluster_is_lost_and_comes_back() {
    let mut cluster = RedisCluster::start(3, 1);
    on_one_thread(async {
        let mut a = Rim::connected(&cluster.url(), "a").await;
        let home = cluster.owner("rm2:{n:a}:link");
        let lost = (home + 1) % 3;
        let user_of = |cluster: &RedisCluster, owner| {
            (0..).map(|at| format!("user-{at}")).find(|user| cluster.owner(&format!("user:node:{user}")) == owner)
        };
        let user_lost = user_of(&cluster, lost).expect("one of many");
        a.publish("a", "before");
        assert_eq!(a.envelope().await, "before");
        cluster.masters[lost].kill();
        // Others go on, and that part is there again once its replica has taken over.
        a.publish("a", "meanwhile");
        assert_eq!(a.envelope().await, "meanwhile");
        let reason = match a.wait_until("the replica", FAILOVER_MAX, |event| matches!(event, Event::Lost(_))).await {
            Event::Lost(reason) => reason,
            other => panic!("{other:?}"),
        };
        assert!(reason.contains("is there again"), "{reason}");
        a.reconnected().await;
        a.register(&user_lost).await;
        all_works(&mut a, "alice").await;
        // Now the one that carries its own channel.
        cluster.masters[home].kill();
        a.loss().await;
        a.wait_until("the other replica", FAILOVER_MAX, |event| matches!(event, Event::Connected)).await;
        all_works(&mut a, "alice").await;
    });
}
