//! Many readers in one thread: they read whatever comes, as fast as it comes, and hand over each text.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::raw::{self, Frame, frame_bounds, opcode};
use super::{Gateway, http};

/// Connections whose texts are read together.
#[derive(Default)]
pub struct Crowd {
    members: Vec<Member>,
}

struct Member {
    user: String,
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Crowd {
    /// Connects `prefix0`, `prefix1` and so on.
    pub fn connect(gateway: &Gateway, prefix: &str, count: usize) -> Crowd {
        allow_descriptors(count as u64 + 256);
        let members = (0..count).map(|at| Member::connect(gateway, format!("{prefix}{at}"))).collect();
        Crowd { members }
    }

    /// Connects one more member, to any node.
    pub fn join(&mut self, gateway: &Gateway, user: &str) {
        self.members.push(Member::connect(gateway, user.to_owned()));
    }

    /// The user of a member.
    pub fn user(&self, member: usize) -> &str {
        &self.members[member].user
    }

    /// A second handle on the socket of a member, for a thread that writes; a write may take as long as `deadline`.
    pub fn writer(&self, member: usize, deadline: Duration) -> Writer {
        let stream = self.members[member].stream.try_clone().expect("a second handle on a socket");
        Writer { stream, deadline }
    }

    /// Reads until `texts` texts have come over all members together; `got` gets the member and the text.
    ///
    /// # Panics
    /// When a member is closed, or nothing comes for `deadline`.
    pub fn read(&mut self, texts: usize, deadline: Duration, mut got: impl FnMut(usize, &[u8])) {
        let mut count = 0;
        let mut piece = vec![0; 256 * 1024];
        while count < texts {
            let ready = self.readable(deadline);
            assert!(!ready.is_empty(), "{count} of {texts} texts have come, and no more within {deadline:?}");
            for at in ready {
                let member = &mut self.members[at];
                match member.stream.read(&mut piece) {
                    Ok(0) => panic!("{} is closed after {count} of {texts} texts", member.user),
                    Ok(bytes) => member.unread.extend_from_slice(&piece[..bytes]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => panic!("{} is closed after {count} of {texts} texts: {error}", member.user),
                }
                count += member.take_texts(|text| got(at, text));
            }
        }
        assert_eq!(count, texts, "more texts than were sent");
    }

    /// Sends a ping on each connection; its pong must be all that comes, and so nothing came twice or late.
    pub fn expect_pongs(&mut self, deadline: Duration) {
        for at in 0..self.members.len() {
            self.writer(at, deadline).write(&raw::text(r#"{"type":"ping"}"#));
        }
        let mut answered = vec![false; self.members.len()];
        self.read(answered.len(), deadline, |member, text| {
            assert_eq!(text, br#"{"type":"pong"}"#, "for member {member}");
            assert!(!std::mem::replace(&mut answered[member], true), "two pongs for member {member}");
        });
    }

    /// The members that have something to read, or none when nothing comes before the deadline.
    fn readable(&self, deadline: Duration) -> Vec<usize> {
        let mut waits: Vec<PollFd<'_>> =
            self.members.iter().map(|member| PollFd::new(member.stream.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(deadline).expect("a short deadline");
        poll(&mut waits, timeout).expect("poll");
        (0..waits.len()).filter(|&at| waits[at].any() == Some(true)).collect()
    }
}

impl Member {
    fn connect(gateway: &Gateway, user: String) -> Member {
        use std::io::Write;
        let mut stream = http::open(gateway.addr);
        stream.write_all(http::upgrade_head(&http::ws_target(&user)).as_bytes()).expect("the head is taken");
        let response = http::read_response(&mut stream);
        assert_eq!(response.status, 101, "{user}: {response:?}");
        stream.set_nonblocking(true).expect("a non-blocking socket");
        Member { user, stream, unread: response.rest }
    }

    /// Takes all whole frames out of what is unread and returns how many of them were texts.
    fn take_texts(&mut self, mut got: impl FnMut(&[u8])) -> usize {
        let mut at = 0;
        let mut texts = 0;
        while let Some((payload, end)) = frame_bounds(&self.unread[at..]) {
            let frame = &self.unread[at..at + end];
            match frame[0] & 0x0f {
                opcode::TEXT => {
                    got(&frame[payload]);
                    texts += 1;
                }
                opcode::PING => {}
                _ => {
                    let frame = Frame { first_byte: frame[0], payload: frame[payload].to_vec() };
                    panic!("{} waits for a text, and gets {frame:?}, {:?}", self.user, frame.close());
                }
            }
            at += end;
        }
        self.unread.drain(..at);
        texts
    }
}

/// The writing half of a member.
pub struct Writer {
    stream: TcpStream,
    deadline: Duration,
}

impl Writer {
    /// Writes all of `bytes`, waiting while the gateway has paused reading.
    ///
    /// # Panics
    /// When the gateway closes, or takes nothing for the deadline.
    pub fn write(&mut self, mut bytes: &[u8]) {
        use std::io::Write;
        let mut since = Instant::now();
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    since = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = self.deadline.saturating_sub(since.elapsed());
                    let mut waits = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
                    let ready = poll(&mut waits, PollTimeout::try_from(left).expect("a short deadline"));
                    assert!(ready.expect("poll") > 0, "the gateway takes no byte for {:?}", self.deadline);
                }
                Err(error) => panic!("the gateway closes a writer: {error}"),
            }
        }
    }
}

/// Raises the soft limit of descriptors of this test process where it is too low.
fn allow_descriptors(wanted: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if soft < wanted {
        assert!(hard >= wanted, "this test opens {wanted} descriptors, and the hard limit is {hard}: ulimit -Hn");
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).expect("the soft limit can be raised");
    }
}
