//! What goes wrong, and how everything comes to rest.

use ringmesh::bus::Input as BusInput;

use crate::redis::Data;

use super::calls::ANSWER_MAX;
use super::outages::{Loss, Outage};
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
    /// Processes that are told to stop, and start again later.
    pub stops: bool,
    /// Shards that handle what the bus brings late.
    pub slow_shards: bool,
    /// Little room on the links.
    pub small_links: bool,
    /// A user's offline waits for so long.
    pub grace_ms: u64,
    pub twins: bool,
    /// All data of Redis is deleted while everybody stays connected.
    pub flushes: bool,
    pub play: Play,
}

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Play {
    /// They come, move, speak and go, some pauses between.
    #[default]
    Mixed,
    /// One user moves from node to node as fast as can be, and others never stop speaking to that user.
    OneMoves,
    /// Several users move so, speak to each other, and often leave before they come back.
    ManyMove,
    /// One user has connections on many nodes, which come and go; they and others speak to that user.
    OneOnMany,
    /// The same, but most connections stay until the end: what is said has to reach each of them, whatever befell since.
    OneStays,
}

impl Faults {
    /// Whether something befalls at times, beside what is slow or lost all the time. Who rushes pauses then now and then:
    /// the faults are to meet the rush, and the rush is to meet their end.
    pub(super) fn befall(&self) -> bool {
        let Self { cuts, short_stalls, long_stalls, failovers, suspensions, kills, twins, flushes, stops, .. } = *self;
        [cuts, short_stalls, long_stalls, failovers, suspensions, kills, twins, flushes, stops].contains(&true)
    }

    /// When the first fault befalls.
    pub(super) fn first_at(&self) -> u64 {
        if self.play == Play::Mixed { 30 * S } else { 5 * S }
    }
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
            self.faults.flushes,
            self.faults.stops,
        ];
        let kinds: Vec<usize> = (0..kinds.len()).filter(|&kind| kinds[kind]).collect();
        if !kinds.is_empty() {
            let kind = kinds[self.rng.below(kinds.len() as u64) as usize];
            self.disturbances.push(self.now);
            self.fault_of(kind);
            if self.faults.play == Play::OneStays && !self.rng.one_in(4) {
                self.fault_of(kind);
            }
        }
        let (soon, most) = match self.faults {
            Faults { play: Play::Mixed, .. } => (3 * S, 20 * S),
            // What a fault has held up has arrived before the next one, now and then.
            Faults { play: Play::OneStays, .. } => (2 * S, 12 * S),
            Faults { kills: true, .. } | Faults { stops: true, .. } => (20 * S, 40 * S),
            _ => (300 * MS, 6 * S),
        };
        let most = if self.rng.one_in(3) { soon } else { most };
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
                self.losses.push(Loss { since, at: self.now });
                self.redis.fail_over(data);
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
                self.enters_later(at, until);
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
            6 => {
                let node = self.processes[at].node.clone();
                self.start(node);
            }
            7 => {
                self.note(|| "all data of Redis is deleted".to_owned());
                self.losses.push(Loss { since: 0, at: self.now });
                self.redis.data = Data::default();
            }
            _ => self.stop(at),
        }
    }

    /// As the node does it: its clients are gone first, and the bus has been told so.
    fn stop(&mut self, at: usize) {
        self.note(|| format!("process {at} is told to stop"));
        self.processes[at].stops_since = Some(self.now);
        let has_it = |client: &usize| self.clients[*client].process == at;
        let clients: Vec<usize> = (0..self.clients.len()).filter(has_it).collect();
        clients.into_iter().for_each(|client| self.close(client));
        self.processes[at].from_redis.push_back(BusInput::Stop);
        self.wake_bus(at);
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
        self.stalls.iter_mut().for_each(|stall| stall.1 = stall.1.min(now));
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
