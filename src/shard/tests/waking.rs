//! What another shard sends wakes a shard that sleeps; the ticker is off, so that nothing else does.

use serde_json::json;

use super::support::{Client, HOUR, Shards};

const USERS: usize = 8;
const ROUNDS: usize = 1_000;

#[test]
fn a_message_wakes_an_idle_shard_with_the_ticker_off() {
    let shards = Shards::start(2, |config| config.tick = HOUR);
    let clients =
        |shard: usize| (0..USERS).map(|at| shards.client(shard, &format!("{shard}-{at}"))).collect::<Vec<Client>>();
    let (mut here, mut there) = (clients(0), clients(1));
    // Homes on both shards: every way that a message can take is among the pairs.
    assert!(shards.each(|metrics| &metrics.users).iter().all(|&users| users > 0));
    for round in 0..ROUNDS {
        let (near, far) = (&mut here[round % USERS], &mut there[(round / USERS) % USERS]);
        near.send_to(&far.user, &json!(["there", round]));
        far.expect_from(&near.user, &json!(["there", round]));
        far.send_to(&near.user, &json!(["back", round]));
        near.expect_from(&far.user, &json!(["back", round]));
    }
    let parks = shards.each(|metrics| &metrics.parks);
    assert!(
        parks.iter().all(|&parks| parks > ROUNDS as u64 / 10),
        "the shards slept {parks:?} times in {ROUNDS} rounds"
    );
}

#[test]
fn a_broadcast_wakes_every_idle_shard_with_the_ticker_off() {
    const SHARDS: usize = 4;
    let shards = Shards::start(SHARDS as u16, |config| config.tick = HOUR);
    let mut clients: Vec<Client> = (0..SHARDS).map(|shard| shards.client(shard, &format!("on-{shard}"))).collect();
    for round in 0..ROUNDS / SHARDS {
        let sender = round % SHARDS;
        clients[sender].send(&json!({"type": "broadcast", "content": round}).to_string());
        let from = clients[sender].user.clone();
        for client in &mut clients {
            client.expect(&json!({"type": "broadcast", "from": from, "content": round}));
        }
    }
}
