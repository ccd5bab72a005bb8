//! On which shard of the gateway a connection landed, as its `/metrics` tell whoever connects one at a time.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::{Duration, Instant};

/// The gauge, with the label that names the shard.
const GAUGE: &str = "ringmesh_connections{shard=\"";
/// How long the server may take to count a connection, and to stop counting those of a run before.
const COUNTS_WITHIN: Duration = Duration::from_secs(2);
/// How long it may take over an answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Between two readings that are to be equal.
const SETTLES_FOR: Duration = Duration::from_millis(50);

/// Why nothing is known of the shards.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// Not an address of metrics.
    #[error("--metrics-url: {0}: only http://host:port/path is supported")]
    Url(String),
    /// No connection, or no answer.
    #[error("--metrics-url: {0}: {1}")]
    Read(String, io::Error),
    /// Another page.
    #[error("--metrics-url: {0}: no ringmesh_connections{{shard=\"0\"}} there")]
    NoGauge(String),
    /// Nobody is on another shard.
    #[error("--pairs other: the server has one shard")]
    OneShard,
    /// Others connect as well, or the metrics are those of another server.
    #[error("the connections went from {0:?} to {1:?} by shard, where one more was expected")]
    Unclear(Vec<u64>, Vec<u64>),
}

/// Reads the metrics after each connect.
#[derive(Clone, Debug)]
pub struct Shards {
    url: String,
    host: String,
    path: String,
    counts: Vec<u64>,
}

impl Shards {
    /// Reads `http://host:port/path`, and the counts there before the first connection.
    ///
    /// # Errors
    /// When the URL makes no sense, nobody answers, or the counts do not come to rest.
    pub fn begin(url: &str) -> Result<Self, ShardsError> {
        let rest = url.strip_prefix("http://").ok_or_else(|| ShardsError::Url(url.to_owned()))?;
        let (host, path) = rest.find('/').map_or((rest, "/metrics"), |at| rest.split_at(at));
        if host.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err(ShardsError::Url(url.to_owned()));
        }
        let mut shards = Self { url: url.to_owned(), host: host.to_owned(), path: path.to_owned(), counts: Vec::new() };
        let deadline = Instant::now() + COUNTS_WITHIN;
        shards.counts = shards.read()?;
        loop {
            thread::sleep(SETTLES_FOR);
            let counts = shards.read()?;
            if counts == shards.counts {
                return Ok(shards);
            }
            if Instant::now() > deadline {
                return Err(ShardsError::Unclear(shards.counts, counts));
            }
            shards.counts = counts;
        }
    }

    /// How many shards the server has.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// The shard that has one connection more than at the last call.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn landed(&mut self) -> Result<usize, ShardsError> {
        let deadline = Instant::now() + COUNTS_WITHIN;
        loop {
            let counts = self.read()?;
            // The server may answer the upgrade before it counts it.
            if counts == self.counts && Instant::now() < deadline {
                continue;
            }
            let before = std::mem::replace(&mut self.counts, counts);
            return grown(&before, &self.counts).ok_or_else(|| ShardsError::Unclear(before, self.counts.clone()));
        }
    }

    fn read(&self) -> Result<Vec<u64>, ShardsError> {
        let page = self.fetch().map_err(|error| ShardsError::Read(self.url.clone(), error))?;
        Some(counts(&page)).filter(|counts| !counts.is_empty()).ok_or_else(|| ShardsError::NoGauge(self.url.clone()))
    }

    fn fetch(&self) -> io::Result<String> {
        let address = self.host.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut stream = TcpStream::connect_timeout(&address, ANSWERS_WITHIN)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        stream.set_write_timeout(Some(ANSWERS_WITHIN))?;
        let Self { host, path, .. } = self;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }
}

/// The gauge of each shard, from shard 0 on to the first one that is not there.
fn counts(page: &str) -> Vec<u64> {
    let lines = page.lines().filter_map(|line| line.strip_prefix(GAUGE)?.split_once("\"} "));
    let mut lines: Vec<(usize, u64)> =
        lines.filter_map(|(shard, count)| Some((shard.parse().ok()?, count.trim().parse().ok()?))).collect();
    lines.sort_unstable();
    lines.into_iter().enumerate().take_while(|(at, (shard, _))| at == shard).map(|(_, (_, count))| count).collect()
}

/// The one place in which `after` is one above `before`, when all others are equal.
fn grown(before: &[u64], after: &[u64]) -> Option<usize> {
    let changed: Vec<_> = (0..after.len()).filter(|at| before.get(*at) != after.get(*at)).collect();
    match *changed {
        [at] if before.len() == after.len() && after[at] == before[at] + 1 => Some(at),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_in_the_order_of_the_shards() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# TYPE ringmesh_connections gauge\nringmesh_connections{shard=\"1\"} 7\n\
                    ringmesh_connections{shard=\"0\"} 3\nringmesh_connections_total{shard=\"2\"} 9\n";
        assert_eq!(counts(page), [3, 7]);
        assert!(counts("HTTP/1.1 404 Not Found\r\n\r\n").is_empty());
    }

    #[test]
    fn only_one_more_connection_tells_its_shard() {
        assert_eq!(grown(&[3, 7], &[3, 8]), Some(1));
        for after in [&[3, 7][..], &[3, 9], &[4, 8], &[3, 6], &[3, 7, 1]] {
            assert_eq!(grown(&[3, 7], after), None, "{after:?}");
        }
    }

    #[test]
    fn urls_without_scheme_or_port_are_refused() {
        for url in ["127.0.0.1:8081", "https://127.0.0.1:8081/metrics", "http://127.0.0.1/metrics"] {
            assert!(matches!(Shards::begin(url), Err(ShardsError::Url(_))), "{url}");
        }
    }
}
