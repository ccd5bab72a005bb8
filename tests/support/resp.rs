//! Redis as a business service sees it: a blocking connection that speaks RESP2 by hand, so that a test can send any bytes.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::DEADLINE;
use super::redis::RedisServer;

/// An answer of Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// No such thing.
    Nil,
    /// A number.
    Number(i64),
    /// A string, simple or bulk.
    Text(Vec<u8>),
    /// What Redis refused, and why.
    Error(String),
    /// Several answers.
    List(Vec<Reply>),
}

impl Reply {
    /// The text of a string.
    ///
    /// # Panics
    /// When it is something else.
    pub fn text(&self) -> String {
        match self {
            Reply::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("a string, not {other:?}"),
        }
    }

    /// The answers of a list.
    ///
    /// # Panics
    /// When it is something else.
    pub fn list(self) -> Vec<Reply> {
        match self {
            Reply::List(list) => list,
            other => panic!("a list, not {other:?}"),
        }
    }
}

/// A connection to Redis.
pub struct Resp {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Resp {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens there.
    pub fn connect(server: &RedisServer) -> Resp {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("Redis accepts");
        stream.set_nodelay(true).expect("no delay");
        stream.set_write_timeout(Some(DEADLINE)).expect("a write timeout");
        Resp { stream, unread: Vec::new() }
    }

    /// Runs one command.
    ///
    /// # Panics
    /// When Redis answers with an error, or not at all within the usual deadline.
    pub fn call<P: AsRef<[u8]>>(&mut self, parts: &[P]) -> Reply {
        match self.ask(parts) {
            Reply::Error(text) => panic!("{:?}: {text}", String::from_utf8_lossy(parts[0].as_ref())),
            reply => reply,
        }
    }

    /// The same, where an error is an answer as well.
    pub fn ask<P: AsRef<[u8]>>(&mut self, parts: &[P]) -> Reply {
        self.send(parts);
        self.next(DEADLINE).unwrap_or_else(|| panic!("no answer of Redis within {DEADLINE:?}"))
    }

    /// Sends one command, whose answer [`Resp::next`] reads.
    pub fn send<P: AsRef<[u8]>>(&mut self, parts: &[P]) {
        let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            let part = part.as_ref();
            bytes.extend(format!("${}\r\n", part.len()).into_bytes());
            bytes.extend(part);
            bytes.extend(b"\r\n");
        }
        self.stream.write_all(&bytes).expect("Redis takes a command");
    }

    /// The string at `key`, if there is one.
    pub fn get(&mut self, key: &str) -> Option<String> {
        match self.call(&["GET", key]) {
            Reply::Nil => None,
            reply => Some(reply.text()),
        }
    }

    /// Publishes; returns how many subscribers heard it.
    pub fn publish(&mut self, channel: &str, message: impl AsRef<[u8]>) -> i64 {
        match self.call(&["PUBLISH".as_ref(), channel.as_ref(), message.as_ref()]) {
            Reply::Number(count) => count,
            other => panic!("PUBLISH is answered {other:?}"),
        }
    }

    /// The next answer or pushed message, or `None` when the time is over.
    ///
    /// # Panics
    /// When Redis closes the connection.
    pub fn next(&mut self, deadline: Duration) -> Option<Reply> {
        let end = Instant::now() + deadline;
        loop {
            if let Some((reply, used)) = parse(&self.unread) {
                self.unread.drain(..used);
                return Some(reply);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).expect("a read timeout");
            let mut piece = [0; 16 * 1024];
            match self.stream.read(&mut piece) {
                Ok(0) => panic!("Redis closes the connection"),
                Ok(count) => self.unread.extend_from_slice(&piece[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("Redis closes the connection: {error}"),
            }
        }
    }
}

/// The first whole answer in `bytes`, and how many bytes it takes.
fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let line_end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let text = String::from_utf8_lossy(&bytes[1..line_end]).into_owned();
    let number = || text.parse::<i64>().unwrap_or_else(|_| panic!("a number in an answer of Redis, not {text:?}"));
    let after_line = line_end + 2;
    let reply = match bytes[0] {
        b'+' => Reply::Text(text.into_bytes()),
        b'-' => Reply::Error(text),
        b':' => Reply::Number(number()),
        b'$' | b'*' if number() < 0 => Reply::Nil,
        b'$' => {
            let end = after_line + number() as usize;
            let body = bytes.get(after_line..end + 2)?;
            return Some((Reply::Text(body[..body.len() - 2].to_vec()), end + 2));
        }
        b'*' => {
            let mut used = after_line;
            let mut list = Vec::new();
            for _ in 0..number() {
                let (item, length) = parse(&bytes[used..])?;
                list.push(item);
                used += length;
            }
            return Some((Reply::List(list), used));
        }
        other => panic!("an answer of Redis begins with {other}"),
    };
    Some((reply, after_line))
}

/// A subscriber of `user:events`.
pub struct Events {
    resp: Resp,
}

impl Events {
    /// Subscribes; what is published from now on is heard.
    pub fn subscribe(server: &RedisServer) -> Events {
        let mut resp = Resp::connect(server);
        resp.call(&["SUBSCRIBE", "user:events"]);
        Events { resp }
    }

    /// The next event as `(event, user_id)`, or `None` when the time is over.
    ///
    /// # Panics
    /// When it is not as the contract says.
    pub fn next(&mut self, deadline: Duration) -> Option<(String, String)> {
        let push = self.resp.next(deadline)?.list();
        let text = push[2].text();
        let event: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in the event {text:?}"));
        let field = |name: &str| match event[name].as_str() {
            Some(value) => value.to_owned(),
            None => panic!("{name} in the event {event}"),
        };
        Some((field("event"), field("user_id")))
    }

    /// The next event, and no other before it, must be this one.
    #[track_caller]
    pub fn expect(&mut self, event: &str, user: &str) {
        let got = self.next(DEADLINE).unwrap_or_else(|| panic!("no event {event} of {user}"));
        assert_eq!(got, (event.to_owned(), user.to_owned()));
    }

    /// Passes over events until this one has come.
    pub fn wait_for(&mut self, event: &str, user: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            let got = self.next(end.saturating_duration_since(Instant::now()));
            let (kind, whose) = got.unwrap_or_else(|| panic!("no event {event} of {user} within {DEADLINE:?}"));
            if (kind.as_str(), whose.as_str()) == (event, user) {
                return;
            }
        }
    }

    /// The next events must be these, once each, in any order.
    #[track_caller]
    pub fn expect_each(&mut self, deadline: Duration, event: &str, users: impl IntoIterator<Item = String>) {
        let end = Instant::now() + deadline;
        let mut missing: BTreeSet<String> = users.into_iter().collect();
        while !missing.is_empty() {
            let got = self.next(end.saturating_duration_since(Instant::now()));
            let (kind, user) = got.unwrap_or_else(|| panic!("no event {event} of {missing:?} within {deadline:?}"));
            assert!(
                kind == event && missing.remove(&user),
                "{kind} of {user} while waiting for {event} of {missing:?}"
            );
        }
    }
}
