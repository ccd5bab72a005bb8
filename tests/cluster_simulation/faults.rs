//! What goes wrong, and how everything comes to rest.

use super::calls::ANSWER_MAX;
use super::outages::Outage;
use super::{MS, S, What, World};

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Answers of Redis take up to so long.
    pub latency: u64,
    /// One published envelope in so many is lost; 0: none.
    pub loses_one_in: u64,
    pub cuts: bool,
    pub short_stalls: bool,
    pub long_stalls: bool,
    pub failovers: bool,
    pub suspensions: bool,
    pub kills: bool,
    /// Shards that handle what the bus brings late.
    pub slow_shards: bool,
    /// Little room on the links.
    pub small_links: bool,
    /// A user's offline waits for so long.
    pub grace_ms: u64,
    pub twins: bool,
    /// One user moves from node to node as fast as can be, and one on each node never stops speaking to that user.
    pub rush: bool,
}

impl World {
    pub(super) fn fault(&mut self) {
        if self.rest_from < u64::MAX {
            return;
        }
        let kinds = [
            self.faults.cuts,
            self.faults.short_stalls,
            self.faults.long_stalls,
            self.faults.failovers,
            self.faults.suspensions,
            self.faults.kills,
            self.faults.twins,
        ];
        let kinds: Vec<usize> = (0..kinds.len()).filter(|&kind| kinds[kind]).collect();
        if !kinds.is_empty() {
            let kind = kinds[self.rng.below(kinds.len() as u64) as usize];
            self.disturbances.push(self.now);
            self.fault_of(kind);
        }
        let most = if self.rng.one_in(3) { 3 * S } else { 20 * S };
        let delay = 100 * MS + self.rng.below(most);
        self.at(self.now + delay, What::Fault);
    }

    pub(super) fn fault_of(&mut self, kind: usize) {
        let Some(at) = self.up_process() else { return };
        match kind {
            0 => {
                self.processes[at].cut_off_at = self.now;
                self.lose(at);
            }
            1 => self.stall(1 + self.rng.0 % (2_500 * MS)),
            2 => {
                let stall = 4 * S + self.rng.below(16 * S);
                self.stall(stall);
            }
            3 => {
                let Some((since, data)) =
                    self.snapshots.get(self.rng.0 as usize % self.snapshots.len().max(1)).cloned()
                else {
                    return;
                };
                self.note(|| format!("a failover loses what was written since {since}"));
                self.losses.push(self.now);
                self.redis.data = data;
                let delay = self.rng.below(12 * S);
                self.down_until = self.now + delay;
                self.stalls.push((self.now, self.down_until));
                for at in 0..self.processes.len() {
                    self.lose(at);
                }
            }
            4 => {
                let most = if self.rng.one_in(2) { 3 * S } else { 30 * S };
                let until = self.now + self.rng.below(most);
                self.note(|| format!("process {at} is suspended until {until}"));
                let process = &mut self.processes[at];
                process.suspended_until = until;
                process.woke_at = until;
                self.outages.push(Outage { process: at, since: self.now, until });
                let process = &mut self.processes[at];
                process.runs_at = None;
                self.run_bus_at(at, until);
                self.processes[at].shard_runs_at = None;
                self.wake_shard(at);
            }
            5 => {
                self.note(|| format!("process {at} is killed"));
                self.end(at, false);
                let node = self.processes[at].node.clone();
                let most = if self.rng.one_in(2) { S } else { 40 * S };
                let delay = self.rng.below(most);
                self.at(self.now + delay, What::Restart(node));
            }
            _ => {
                let node = self.processes[at].node.clone();
                self.start(node);
            }
        }
    }

    pub(super) fn stall(&mut self, length: u64) {
        self.note(|| format!("Redis stalls for {length} us"));
        self.stalled_until = self.stalled_until.max(self.now + length);
        self.stalls.push((self.now, self.stalled_until));
        self.at(self.stalled_until, What::Stall);
        if length > ANSWER_MAX {
            for at in 0..self.processes.len() {
                if self.processes[at].is_connected {
                    let (session, jitter) = (self.processes[at].session, self.rng.below(S));
                    self.at(self.now + ANSWER_MAX + jitter, What::Lost(at, session));
                }
            }
        }
    }

    pub(super) fn rest(&mut self) {
        self.note(|| "everything comes to rest".to_owned());
        self.rest_from = self.now;
        for at in 0..self.processes.len() {
            let process = &mut self.processes[at];
            process.suspended_until = process.suspended_until.min(self.now);
            self.run_bus_at(at, self.now);
            self.processes[at].shard_runs_at = None;
            self.wake_shard(at);
        }
        let now = self.now;
        let suspensions = self.outages.iter_mut().filter(|outage| outage.until != u64::MAX);
        suspensions.for_each(|outage| outage.until = outage.until.min(now));
        self.stalled_until = self.stalled_until.min(self.now);
        self.down_until = self.down_until.min(self.now);
        self.faults.slow_shards = false;
        // Those who were waiting for the end of a stall.
        for at in 0..self.processes.len() {
            let delay = self.rng.below(S);
            self.at(self.now + delay, What::Connect(at));
        }
    }
}
