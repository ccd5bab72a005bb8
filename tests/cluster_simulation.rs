//! Goal: whatever befalls Redis, the nodes and the ways between them, nothing that was accepted is lost, repeated or out
//! of order, the directory tells the truth in the end, and nobody who lives is declared dead (cluster rules 1 to 10).
//!
//! Method: several processes, each with the real bus and a real hub, and a Redis that carries out every call, on one
//! thread with a virtual clock. A seed decides everything: who opens, moves, closes and speaks, how long each step
//! takes, what is lost, who stalls or dies. `RINGMESH_SEED=n` repeats one run, `RINGMESH_TRACE=1` tells its story.

#[path = "cluster_simulation/check.rs"]
mod check;
#[path = "cluster_simulation/process.rs"]
mod process;
#[path = "cluster_simulation/redis.rs"]
mod redis;
#[path = "cluster_simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use ringmesh::metrics::ShardMetrics;

use world::{Faults, MS, World};

const SEEDS: u64 = 40;
const ACTIONS: u64 = 700;
/// Lines of the story that are told of a failure.
const LINES: usize = 60;

fn run(faults: Faults) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let chosen = number("RINGMESH_SEED");
    let seeds = number("RINGMESH_SEEDS").unwrap_or(SEEDS);
    let metrics: &'static ShardMetrics = Box::leak(Box::default());
    let (mut deliveries, mut musts) = (0, 0);
    for seed in chosen.map_or(0..seeds, |seed| seed..seed + 1) {
        let mut world = World::new(seed, faults, ACTIONS, metrics, chosen.is_some());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            world.run();
            check::check(&world)
        }));
        match outcome {
            Ok(checked) => {
                deliveries += checked.deliveries;
                musts += checked.musts;
            }
            Err(panic) => {
                eprintln!("failed with RINGMESH_SEED={seed}");
                let trace = world.trace.unwrap_or_default();
                let lines = if number("RINGMESH_TRACE").is_some() { trace.len() } else { LINES.min(trace.len()) };
                trace[trace.len() - lines..].iter().for_each(|line| eprintln!("{line}"));
                resume_unwind(panic);
            }
        }
    }
    if chosen.is_none() && !faults.kills && !faults.failovers {
        // A simulation that never met what it is about proves nothing.
        assert!(deliveries > 500 * seeds, "{deliveries} deliveries");
        // Who moves without rest is nowhere for long, so nothing is due.
        assert!(faults.rush || musts > 100 * seeds, "{musts} deliveries were due");
    }
}

#[test]
fn users_come_move_and_go() {
    run(Faults::default());
}

#[test]
fn one_user_moves_as_fast_as_can_be() {
    run(Faults { rush: true, ..Faults::default() });
}

#[test]
fn one_user_moves_and_the_shards_lag() {
    run(Faults { latency: 2 * MS, slow_shards: true, rush: true, ..Faults::default() });
}

#[test]
fn with_a_slow_redis() {
    run(Faults { latency: 30 * MS, ..Faults::default() });
}

#[test]
fn with_envelopes_that_get_lost() {
    run(Faults { latency: 3 * MS, loses_one_in: 8, ..Faults::default() });
}

#[test]
fn with_shards_that_lag() {
    run(Faults { latency: 2 * MS, slow_shards: true, ..Faults::default() });
}

#[test]
fn with_connections_that_break() {
    run(Faults { latency: 3 * MS, cuts: true, ..Faults::default() });
}

#[test]
fn with_stalls_of_redis() {
    run(Faults { latency: 3 * MS, short_stalls: true, ..Faults::default() });
}

#[test]
fn with_stalls_longer_than_a_lease() {
    run(Faults { latency: 3 * MS, long_stalls: true, ..Faults::default() });
}

#[test]
fn with_processes_that_do_not_run_for_a_while() {
    run(Faults { latency: 3 * MS, suspensions: true, ..Faults::default() });
}

#[test]
fn with_processes_that_are_killed() {
    run(Faults { latency: 3 * MS, kills: true, ..Faults::default() });
}

#[test]
fn with_failovers_that_lose_data() {
    run(Faults { latency: 3 * MS, failovers: true, ..Faults::default() });
}

#[test]
fn with_two_processes_of_one_name() {
    run(Faults { latency: 3 * MS, twins: true, ..Faults::default() });
}

#[test]
fn with_an_offline_grace() {
    run(Faults { latency: 3 * MS, grace_ms: 700, cuts: true, ..Faults::default() });
}

#[test]
fn with_everything_at_once() {
    run(Faults {
        latency: 10 * MS,
        loses_one_in: 30,
        cuts: true,
        short_stalls: true,
        long_stalls: true,
        suspensions: true,
        kills: true,
        slow_shards: true,
        grace_ms: 500,
        ..Faults::default()
    });
}
