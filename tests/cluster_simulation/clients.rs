//! The clients: who comes, moves, speaks and leaves, and what each has been told.

use ringmesh::client::Command;
use ringmesh::ids::ConnId;

use crate::process::{Process, Told};

use super::faults::Play;
use super::{MS, NODES, S, What, World};

pub(super) const USERS: usize = 6;

pub struct Client {
    pub process: usize,
    pub conn: ConnId,
    pub user: usize,
    pub asked_at: u64,
    pub opened_at: Option<u64>,
    /// Processes that have the user and could not be asked when this one was let in.
    pub let_in_past: Vec<usize>,
    pub refused: bool,
    pub closed_at: Option<u64>,
    /// Closes when this one is open.
    pub(super) closes: Option<usize>,
    pub received: Vec<(u64, u64)>,
    pub broadcasts: Vec<(u64, u64)>,
    pub overloaded: u64,
}

impl Client {
    pub fn is_open(&self) -> bool {
        self.opened_at.is_some() && self.closed_at.is_none()
    }
}

pub struct Message {
    /// `None`: a service said it.
    pub sender: Option<usize>,
    pub target: usize,
    pub sent_at: u64,
}

pub struct Broadcast {
    pub sender: usize,
    /// Its sender was answered that it was not taken.
    pub refused: bool,
    pub sent_at: u64,
}

impl World {
    /// What its clients were told.
    pub(super) fn hear(&mut self, at: usize) {
        for (conn, told) in self.processes[at].take_told() {
            let client = self.by_conn[&(at, conn.index)];
            self.note(|| format!("client {client} is told {told:?}"));
            let now = self.now;
            let past = if told == Told::Open { self.not_asked(client) } else { Vec::new() };
            let heard = &mut self.clients[client];
            match told {
                Told::Open => {
                    assert!(heard.opened_at.is_none() && !heard.refused, "client {client} gets two verdicts");
                    heard.opened_at = Some(now);
                    heard.let_in_past = past;
                    if let Some(before) = heard.closes.take() {
                        let long = if self.faults.play == Play::Mixed { 300 * MS } else { 20 * MS };
                        let most = if self.rng.one_in(2) { 3 * MS } else { long };
                        let delay = self.rng.below(most);
                        self.at(now + delay, What::Close(before));
                    }
                }
                Told::Unavailable => {
                    assert!(heard.opened_at.is_none() && !heard.refused, "client {client} gets two verdicts");
                    heard.refused = true;
                    heard.closed_at = Some(now);
                    self.processes[at].clients -= 1;
                }
                Told::Message(number) => heard.received.push((number, now)),
                Told::Broadcast(number) => heard.broadcasts.push((number, now)),
                Told::Overloaded => heard.overloaded += 1,
            }
            let heard = &self.clients[client];
            let since = heard.asked_at.max(self.processes[at].woke_at);
            if matches!(told, Told::Open | Told::Unavailable) {
                let waited = now.saturating_sub(since);
                let bound = 1_100 * MS + if self.faults.slow_shards { 2 * S } else { 0 };
                assert!(waited <= bound, "client {client} of process {at} waited for {waited} us");
            }
        }
    }

    /// Processes that have the user of a client, and cannot have been asked: they are out of reach, or have not answered for
    /// so long that nobody waits any more.
    fn not_asked(&self, client: usize) -> Vec<usize> {
        let Client { process, user, asked_at, .. } = self.clients[client];
        let has_waited = self.now - asked_at >= S;
        let cannot_be_asked = |other: usize| {
            let process = &self.processes[other];
            // It may have come back just now: too late to be asked.
            let was_out = self.outages.iter().any(|outage| outage.process == other && outage.until >= asked_at);
            was_out || !process.is_connected || process.suspended_until > self.now || self.is_declared(other)
        };
        let has_user = |other: usize| {
            let since = self.away_since(other, asked_at).map_or(asked_at, |since| since.saturating_sub(S));
            let of_user = |client: &Client| (client.process, client.user) == (other, user);
            self.clients.iter().any(|client| of_user(client) && client.closed_at.is_none_or(|closed| closed >= since))
        };
        let others = (0..self.processes.len()).filter(|&other| other != process);
        others.filter(|&other| (has_waited || cannot_be_asked(other)) && has_user(other)).collect()
    }

    /// Since when a process has been out of reach, if it was from a time on: it is still said to have the users that have left
    /// it meanwhile.
    fn away_since(&self, process: usize, from: u64) -> Option<u64> {
        let outages = self.outages.iter().filter(|outage| outage.process == process);
        let upheavals = self.upheavals.iter().filter(|upheaval| upheaval.process == process);
        let times = outages.map(|outage| (outage.since, outage.until));
        let times = times.chain(upheavals.map(|upheaval| (upheaval.since, upheaval.until)));
        let times = times.chain(self.stalls.iter().copied());
        times.filter(|(_, until)| until.saturating_add(S) >= from).map(|(since, _)| since).min()
    }

    pub(super) fn act(&mut self) {
        if self.actions_left == 0 {
            return;
        }
        self.actions_left -= 1;
        match self.faults.play {
            Play::Mixed => self.mixed(),
            Play::OneMoves => self.one_moves(),
            Play::ManyMove => self.many_move(),
            Play::OneOnMany => self.one_on_many(),
            Play::OneStays => self.one_stays(),
        }
        if self.actions_left == 0 {
            return self.rest();
        }
        let delay = 1 + self.pause();
        self.at(self.now + delay, What::Act);
    }

    /// How long it takes until the next action.
    fn pause(&mut self) -> u64 {
        if self.faults.play == Play::OneStays {
            let most = if self.rng.one_in(20) { 3 * S } else { 100 * MS };
            return self.rng.below(most);
        }
        let is_rush = self.faults.play != Play::Mixed;
        let most = if is_rush && self.faults.befall() && self.rng.one_in(if self.faults.kills { 50 } else { 150 }) {
            if self.rng.one_in(4) { 20 * S } else { 3 * S }
        } else if is_rush {
            if self.rng.one_in(20) { 30 * MS } else { 500 }
        } else if self.rng.one_in(3) {
            200
        } else if self.rng.one_in(60) {
            20 * S
        } else {
            60 * MS
        };
        self.rng.below(most)
    }

    fn mixed(&mut self) {
        match self.rng.below(16) {
            0 => {
                self.open(None);
            }
            1 => self.move_user(),
            2 => {
                if let Some(client) = self.any_open().filter(|_| self.rng.one_in(2)) {
                    self.close(client);
                }
            }
            3 => self.serve(),
            4 if self.rng.one_in(4) => self.broadcast(),
            _ => {
                for _ in 0..1 + self.rng.below(5) {
                    self.speak();
                }
            }
        }
    }

    /// Those who play without end are there.
    fn come(&mut self, users: usize) {
        for user in 0..users {
            if !self.clients.iter().any(|client| client.user == user && client.closed_at.is_none()) {
                self.open_for(user, None);
            }
        }
    }

    /// The connections of a user that are open, or wait.
    fn of_user(&self, user: usize) -> Vec<usize> {
        let is_of = |at: &usize| self.clients[*at].user == user && self.clients[*at].closed_at.is_none();
        (0..self.clients.len()).filter(is_of).collect()
    }

    /// Opens another connection of a user who has one, and closes the first one then, or before.
    fn moves(&mut self, user: usize, leaves: bool) -> bool {
        let &[client] = &self.of_user(user)[..] else { return false };
        if !self.clients[client].is_open() {
            return false;
        }
        if leaves {
            self.close(client);
            return true;
        }
        self.open_for(user, Some(client));
        true
    }

    /// A connection of a user speaks to another user.
    fn says(&mut self, user: usize, target: usize) {
        let speaks = |at: &usize| {
            let client = &self.clients[*at];
            client.is_open() && self.processes[client.process].suspended_until <= self.now
        };
        let speakers: Vec<usize> = self.of_user(user).into_iter().filter(speaks).collect();
        if !speakers.is_empty() {
            let speaker = speakers[self.rng.below(speakers.len() as u64) as usize];
            self.say_to(speaker, target);
        }
    }

    /// User 0 moves, and those of the other numbers speak to that user.
    fn one_moves(&mut self) {
        self.come(NODES + 1);
        if self.rng.one_in(10) && self.moves(0, false) {
            return;
        }
        if self.rng.one_in(60) {
            self.broadcast();
        }
        for _ in 0..1 + self.rng.below(4) {
            let user = 1 + self.rng.below(NODES as u64) as usize;
            self.says(user, 0);
        }
    }

    fn many_move(&mut self) {
        let users = NODES as u64 + 1;
        if self.rng.one_in(3) {
            self.come(users as usize);
        }
        let (user, leaves) = (self.rng.below(users) as usize, self.rng.one_in(4));
        if self.rng.one_in(6) && self.moves(user, leaves) {
            return;
        }
        if self.rng.one_in(60) {
            self.broadcast();
        }
        for _ in 0..1 + self.rng.below(4) {
            let (user, target) = (self.rng.below(users) as usize, self.rng.below(users) as usize);
            self.says(user, target);
        }
    }

    fn one_on_many(&mut self) {
        self.come(NODES + 1);
        let own = self.of_user(0);
        if self.rng.one_in(12) && own.len() < 2 * NODES {
            return self.open_for(0, None);
        }
        if self.rng.one_in(20) && own.len() > 1 {
            let client = own[self.rng.below(own.len() as u64) as usize];
            if self.clients[client].is_open() {
                return self.close(client);
            }
        }
        if self.rng.one_in(60) {
            self.broadcast();
        }
        for _ in 0..1 + self.rng.below(3) {
            let user = self.rng.below(NODES as u64 + 1) as usize;
            self.says(user, 0);
        }
    }

    /// Opens while somebody cannot be asked, and closes while all is well.
    fn one_stays(&mut self) {
        self.come(NODES + 1);
        let own = self.of_user(0);
        let is_cut = |process: &Process| process.is_alive && !process.is_connected;
        let is_calm = !self.processes.iter().any(is_cut);
        if self.rng.one_in(if is_calm { 80 } else { 4 }) && own.len() < NODES {
            return self.open_for(0, None);
        }
        if is_calm && self.rng.one_in(20) && own.len() > 1 {
            let client = own[self.rng.below(own.len() as u64) as usize];
            return self.close(client);
        }
        for _ in 0..1 + self.rng.below(3) {
            let user = self.rng.below(NODES as u64 + 1) as usize;
            self.says(user, 0);
        }
    }

    pub(super) fn up_process(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.processes.len())
            .filter(|&at| self.processes[at].is_up() && self.processes[at].stops_since.is_none())
            .filter(|&at| self.processes[at].suspended_until <= self.now)
            .collect();
        (!up.is_empty()).then(|| up[self.rng.below(up.len() as u64) as usize])
    }

    pub(super) fn open(&mut self, closes: Option<usize>) {
        let open = self.clients.iter().filter(|client| client.closed_at.is_none()).count();
        if closes.is_none() && open >= 2 * USERS {
            return;
        }
        let user = closes.map_or_else(|| self.rng.below(USERS as u64) as usize, |before| self.clients[before].user);
        self.open_for(user, closes);
    }

    pub(super) fn open_for(&mut self, user: usize, closes: Option<usize>) {
        let Some(at) = self.up_process() else { return };
        let conn = self.processes[at].ask(self.now, &name(user));
        let client = self.clients.len();
        self.note(|| format!("client {client} of {} asks process {at}", name(user)));
        self.clients.push(Client {
            process: at,
            conn,
            user,
            asked_at: self.now,
            opened_at: None,
            let_in_past: Vec::new(),
            refused: false,
            closed_at: None,
            closes,
            received: Vec::new(),
            broadcasts: Vec::new(),
            overloaded: 0,
        });
        self.by_conn.insert((at, conn.index), client);
        self.hear(at);
        self.wake_bus(at);
    }

    /// To another connection, perhaps on another node: opened before the first one is closed, or after.
    pub(super) fn move_user(&mut self) {
        let Some(client) = self.any_open() else { return };
        if self.rng.one_in(4) {
            self.close(client);
            self.open(Some(client));
        } else {
            self.open(Some(client));
        }
    }

    pub(super) fn close(&mut self, client: usize) {
        let Client { process, conn, closed_at, .. } = self.clients[client];
        if closed_at.is_some() {
            return;
        }
        // A suspended process reads nothing; its clients are gone all the same once it does.
        if self.processes[process].suspended_until > self.now {
            return self.at(self.processes[process].suspended_until + 1, What::Close(client));
        }
        self.note(|| format!("client {client} of process {process} closes"));
        self.clients[client].closed_at = Some(self.now);
        self.processes[process].close(self.now, conn);
        self.hear(process);
        self.wake_bus(process);
    }

    pub(super) fn any_open(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.clients.len())
            .filter(|&at| {
                let client = &self.clients[at];
                client.is_open() && self.processes[client.process].suspended_until <= self.now
            })
            .collect();
        (!open.is_empty()).then(|| open[self.rng.below(open.len() as u64) as usize])
    }

    pub(super) fn speak(&mut self) {
        if let Some(client) = self.any_open() {
            let target = self.rng.below(USERS as u64) as usize;
            self.say_to(client, target);
        }
    }

    pub(super) fn say_to(&mut self, client: usize, target: usize) {
        let (at, conn) = (self.clients[client].process, self.clients[client].conn);
        let number = self.messages.len();
        let content = format!("\"{number}/{}\"", "x".repeat(self.rng.below(60) as usize));
        let said = Command::SendMessage { target: name(target).into(), content: &content };
        self.note(|| format!("client {client} of process {at} says {number} to {}", name(target)));
        assert!(self.processes[at].say(self.now, conn, said), "one shard has always room for itself");
        self.messages.push(Message { sender: Some(client), target, sent_at: self.now });
        self.hear(at);
        self.wake_bus(at);
    }

    pub(super) fn broadcast(&mut self) {
        let Some(client) = self.any_open() else { return };
        let (at, conn) = (self.clients[client].process, self.clients[client].conn);
        let content = format!("\"{}\"", self.broadcasts.len());
        let number = self.broadcasts.len();
        self.note(|| format!("client {client} of process {at} says {number} to all"));
        let is_taken = self.processes[at].say(self.now, conn, Command::Broadcast { content: &content });
        assert!(is_taken, "one shard has always room for itself");
        let overloaded = self.clients[client].overloaded;
        self.hear(at);
        let refused = self.clients[client].overloaded > overloaded;
        self.clients[client].overloaded = overloaded;
        self.broadcasts.push(Broadcast { sender: client, refused, sent_at: self.now });
        self.wake_bus(at);
    }

    /// A service sends a user something, as the contract has it: it reads the node, and publishes there.
    pub(super) fn serve(&mut self) {
        let target = self.rng.below(USERS as u64) as usize;
        if self.stalled_until > self.now || self.down_until > self.now {
            return;
        }
        let Some(node) = self.redis.named(&name(target)).cloned() else { return };
        let number = self.messages.len();
        self.note(|| format!("a service says {number} to {} on {node}", name(target)));
        let json = format!(
            r#"{{"action":"send_to_user","user_id":"{}","message":{{"type":"message","from":"service","content":"{number}"}}}}"#,
            name(target)
        );
        self.messages.push(Message { sender: None, target, sent_at: self.now });
        self.publish(usize::MAX, &node, false, &json.into());
    }
}

pub fn name(user: usize) -> String {
    format!("u{user}")
}
