//! Everybody sends numbered messages to everybody while something happens to the nodes or to Redis, and every single
//! one is accounted for: it arrives once and in order, or its sender is told `overloaded`.
//!
//! One thread drives all sockets. A member sends its next round when the pong after the one before has come back, so the
//! traffic slows down with the gateway and piles up nowhere.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;

use super::raw::{self, Frame, frame_bounds, opcode};
use super::{Gateway, http};

/// Between two rounds of one member at least: some thousand messages a second, which leaves two cores room for the nodes.
const ROUND: Duration = Duration::from_millis(5);

/// What members send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// In each round one message to each member, oneself too.
    Unicast,
    /// In each round one broadcast.
    Broadcast,
}

/// Members on several nodes who send to each other.
pub struct Traffic {
    kind: Kind,
    members: Vec<Member>,
}

/// One connection, of a user who has no other.
struct Member {
    user: String,
    node: usize,
    stream: TcpStream,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    /// Rounds sent so far; the number of the next one.
    sent: u64,
    /// Errors `overloaded` so far.
    refused: u64,
    /// By sender: how many messages came from it.
    received: Vec<u64>,
    /// By sender: one more than the number that came last.
    next: Vec<u64>,
    awaits_pong: bool,
    last_round: Instant,
}

/// The frames that may come.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    code: Option<&'a str>,
    /// The position of the sender among the members, and the number of its round.
    #[serde(default)]
    content: Option<(usize, u64)>,
}

impl Traffic {
    /// Connects `each` members to each of these nodes.
    pub fn connect<'a>(kind: Kind, nodes: impl IntoIterator<Item = &'a Gateway>, each: usize) -> Traffic {
        let mut members = Vec::new();
        for (at, node) in nodes.into_iter().enumerate() {
            members.extend((0..each).map(|number| Member::connect(node, at, format!("member-{at}-{number}"))));
        }
        let count = members.len();
        for member in &mut members {
            member.received = vec![0; count];
            member.next = vec![0; count];
        }
        Traffic { kind, members }
    }

    /// Exchanges messages for so long.
    pub fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn(true);
        }
    }

    /// Exchanges messages until `done` says so.
    ///
    /// # Panics
    /// When the deadline passes first.
    pub fn run_until(&mut self, what: &str, deadline: Duration, mut done: impl FnMut(&Traffic) -> bool) {
        let end = Instant::now() + deadline;
        while !done(self) {
            assert!(Instant::now() < end, "{what}: not within {deadline:?}; {}", self.account());
            self.turn(true);
        }
    }

    /// Exchanges messages until something sent after this call has come from everybody to everybody.
    pub fn run_until_all_pass(&mut self, deadline: Duration) {
        let marks: Vec<u64> = self.members.iter().map(|member| member.sent).collect();
        self.run_until("a message from everybody to everybody", deadline, |traffic| {
            traffic.members.iter().all(|to| to.next.iter().zip(&marks).all(|(next, mark)| next > mark))
        });
    }

    /// The same for pairs of members of one node.
    pub fn run_until_local_pass(&mut self, deadline: Duration) {
        let marks: Vec<(usize, u64)> = self.members.iter().map(|member| (member.node, member.sent)).collect();
        self.run_until("a message between all who are on one node", deadline, |traffic| {
            let passed = |to: &Member| {
                let mut senders = to.next.iter().zip(&marks);
                senders.all(|(next, (node, mark))| *node != to.node || next > mark)
            };
            traffic.members.iter().all(passed)
        });
    }

    /// Sends nothing more, and waits until each message has arrived or was refused.
    ///
    /// # Panics
    /// When nothing has come for `deadline` and some are missing: they are lost.
    pub fn settle(&mut self, deadline: Duration) {
        let mut end = Instant::now() + deadline;
        let mut last = 0;
        while self.missing() != 0 || self.members.iter().any(|member| member.awaits_pong) {
            self.turn(false);
            let now = self.received() + self.refused();
            if now != last {
                end = Instant::now() + deadline;
                last = now;
            }
            assert!(Instant::now() < end, "something is lost: {}", self.account());
        }
        println!("{}", self.account());
    }

    /// How many times a member was told `overloaded`.
    pub fn refused(&self) -> u64 {
        self.members.iter().map(|member| member.refused).sum()
    }

    /// How many messages have arrived.
    pub fn received(&self) -> u64 {
        self.members.iter().flat_map(|member| &member.received).sum()
    }

    /// How many messages have neither arrived nor been refused yet.
    fn missing(&self) -> i64 {
        let all = self.members.len() as u64;
        let refused = match self.kind {
            Kind::Unicast => self.refused(),
            Kind::Broadcast => self.refused() * all,
        };
        let sent: u64 = self.members.iter().map(|member| member.sent * all).sum();
        sent as i64 - self.received() as i64 - refused as i64
    }

    /// The sums, and between whom messages are missing.
    fn account(&self) -> String {
        let mut text = format!("{} received, {} refused", self.received(), self.refused());
        for (at, from) in self.members.iter().enumerate() {
            for to in self.members.iter().filter(|to| to.received[at] + from.refused < from.sent) {
                text += &format!("; {} to {}: {} of {}", from.user, to.user, to.received[at], from.sent);
                text += &format!(" (to all: {} refused)", from.refused);
            }
        }
        text
    }

    /// Sends what is due, waits a little for something to come, and takes it.
    fn turn(&mut self, sends: bool) {
        let users: Vec<String> = self.members.iter().map(|member| member.user.clone()).collect();
        let now = Instant::now();
        for (at, member) in self.members.iter_mut().enumerate() {
            if sends && !member.awaits_pong && now - member.last_round >= ROUND {
                member.queue_round(self.kind, at, &users);
                member.last_round = now;
            }
            member.write();
        }
        let wait = PollTimeout::try_from(ROUND).expect("a short wait");
        let mut waits: Vec<PollFd<'_>> =
            self.members.iter().map(|member| PollFd::new(member.stream.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut waits, wait).expect("poll");
        let ready: Vec<bool> = waits.iter().map(|wait| wait.any() == Some(true)).collect();
        for (member, _) in self.members.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            member.read();
        }
    }
}

impl Member {
    fn connect(gateway: &Gateway, node: usize, user: String) -> Member {
        let mut stream = http::open(gateway.addr);
        stream.write_all(http::upgrade_head(&http::ws_target(&user)).as_bytes()).expect("the head is taken");
        let response = http::read_response(&mut stream);
        assert_eq!(response.status, 101, "{user}: {response:?}");
        stream.set_nonblocking(true).expect("a non-blocking socket");
        Member {
            user,
            node,
            stream,
            unread: response.rest,
            unsent: Vec::new(),
            sent: 0,
            refused: 0,
            received: Vec::new(),
            next: Vec::new(),
            awaits_pong: false,
            last_round: Instant::now(),
        }
    }

    /// One round and a ping after it.
    fn queue_round(&mut self, kind: Kind, at: usize, users: &[String]) {
        let number = self.sent;
        let mut queue = |frame: String| self.unsent.extend(raw::text(&frame));
        match kind {
            Kind::Unicast => {
                for user in users {
                    queue(format!(r#"{{"type":"send_message","target_user":"{user}","content":[{at},{number}]}}"#));
                }
            }
            Kind::Broadcast => queue(format!(r#"{{"type":"broadcast","content":[{at},{number}]}}"#)),
        }
        queue(r#"{"type":"ping"}"#.to_owned());
        self.sent += 1;
        self.awaits_pong = true;
    }

    fn write(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{} is closed: {error}", self.user),
            }
        }
    }

    fn read(&mut self) {
        let mut piece = [0; 64 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => panic!("{} is closed", self.user),
            Ok(bytes) => self.unread.extend_from_slice(&piece[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{} is closed: {error}", self.user),
        }
        let unread = std::mem::take(&mut self.unread);
        let mut at = 0;
        while let Some((payload, end)) = frame_bounds(&unread[at..]) {
            let frame = &unread[at..at + end];
            match frame[0] & 0x0f {
                opcode::TEXT => self.take(&frame[payload]),
                opcode::PING => self.unsent.extend(raw::frame(raw::FIN | opcode::PONG, &frame[payload])),
                _ => {
                    let frame = Frame { first_byte: frame[0], payload: frame[payload].to_vec() };
                    panic!("{} gets {frame:?}, {:?}", self.user, frame.close());
                }
            }
            at += end;
        }
        self.unread = unread[at..].to_vec();
    }

    fn take(&mut self, text: &[u8]) {
        let incoming: Incoming<'_> = match serde_json::from_slice(text) {
            Ok(incoming) => incoming,
            Err(error) => panic!("{error}: {} gets {}", self.user, text.escape_ascii()),
        };
        match (incoming.kind, incoming.content, incoming.code) {
            ("message" | "broadcast", Some((sender, number)), _) => {
                let next = &mut self.next[sender];
                assert!(number >= *next, "{} gets number {number} of {sender} after {}", self.user, *next - 1);
                *next = number + 1;
                self.received[sender] += 1;
            }
            ("pong", ..) => self.awaits_pong = false,
            ("error", _, Some("overloaded")) => self.refused += 1,
            _ => panic!("{} gets {}", self.user, text.escape_ascii()),
        }
    }
}
