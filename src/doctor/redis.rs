//! Whether Redis answers. The bus's own client knows more forms of it; this asks no more than a connection can tell
//! without a login: PING, whose refusals name what is wrong.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::config::RedisUrl;

/// What became of asking one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answered, after so long.
    Pong(Duration),
    /// It answers those who log in. The password was not tried.
    WantsLogin,
    /// It took the connection; what is said under TLS was not tried.
    Connected,
    /// It answers, and refuses: the first line of what it said.
    Refuses(String),
    /// There is no connection, or no answer.
    Silent(String),
}

/// For the name, the connection and the answer, each.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks each server of a URL, one after the other.
pub fn ask(url: &RedisUrl) -> Vec<(String, Answer)> {
    let ask = |server: String| {
        let answer = ping(&server, url.has_tls()).unwrap_or_else(|error| Answer::Silent(error.to_string()));
        (server, answer)
    };
    url.servers().into_iter().map(ask).collect()
}

fn ping(server: &str, is_encrypted: bool) -> io::Result<Answer> {
    let mut refusal = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in server.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, TIMEOUT) {
            Ok(_) if is_encrypted => return Ok(Answer::Connected),
            Ok(stream) => return converse(stream),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn converse(mut stream: TcpStream) -> io::Result<Answer> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let asked = Instant::now();
    stream.write_all(b"PING\r\n")?;
    let mut line = Vec::new();
    let mut piece = [0; 512];
    while !line.contains(&b'\n') && line.len() < 4096 {
        match stream.read(&mut piece) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed unanswered")),
            Ok(count) => line.extend_from_slice(&piece[..count]),
            // Rings that the survey has closed a moment ago interrupt this thread when the kernel is done with them.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {TIMEOUT:?}")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(understand(&String::from_utf8_lossy(&line), asked.elapsed()))
}

fn understand(answer: &str, took: Duration) -> Answer {
    let line = answer.lines().next().unwrap_or_default();
    match line {
        "+PONG" => Answer::Pong(took),
        _ if line.starts_with("-NOAUTH") || line.starts_with("-NOPERM") => Answer::WantsLogin,
        _ => Answer::Refuses(line.trim_start_matches('-').chars().take(120).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let took = Duration::from_millis(1);
        assert_eq!(understand("+PONG\r\n", took), Answer::Pong(took));
        assert_eq!(understand("-NOAUTH Authentication required.\r\n", took), Answer::WantsLogin);
        assert_eq!(
            understand("-LOADING Redis is loading the dataset in memory\r\n", took),
            Answer::Refuses("LOADING Redis is loading the dataset in memory".to_owned())
        );
        assert_eq!(understand("HTTP/1.1 400 Bad\r\n", took), Answer::Refuses("HTTP/1.1 400 Bad".to_owned()));
    }

    #[test]
    fn a_port_without_a_server_is_silent() {
        let addr = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port");
        let url = RedisUrl::parse(&format!("redis://{addr}")).expect("well-formed");
        let answers = ask(&url);
        assert!(matches!(&answers[..], [(server, Answer::Silent(_))] if *server == addr.to_string()), "{answers:?}");
    }
}
