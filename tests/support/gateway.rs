//! A running gateway: one node with the embedded bus on free ports of the loopback.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::http;
use super::metrics::Metrics;
use super::process::Process;
use super::{Client, DEADLINE, DEADLINE_SLOW, RawClient, eventually};

/// Makes node ids differ within one test binary; the process id makes them differ between binaries.
static NODES: AtomicU32 = AtomicU32::new(0);

/// A gateway that has said where it listens. Dropping it kills the process.
pub struct Gateway {
    process: Process,
    /// The public port, the first if there are several.
    pub addr: SocketAddr,
    /// All public ports.
    pub listen: Vec<SocketAddr>,
    /// The admin port.
    pub admin: SocketAddr,
    /// What `--node-id` was set to.
    pub node_id: String,
}

impl Gateway {
    /// Two shards, no limit on connects per address, all else as it comes.
    pub fn start() -> Gateway {
        Gateway::with(&[])
    }

    /// As [`Gateway::start`], with these flags added, or put in the place of the usual ones.
    pub fn with(flags: &[(&str, &str)]) -> Gateway {
        let given = flags.iter().find(|(flag, _)| *flag == "--node-id").map(|(_, id)| (*id).to_owned());
        let node_id = given.unwrap_or_else(new_node_id);
        let process = Process::spawn(serve_arguments(&node_id, flags));
        let record =
            process.wait_for("the record `listening`", DEADLINE_SLOW, |record| record["message"] == "listening");
        let address = |key: &str| -> SocketAddr {
            record[key].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{key} in {record}"))
        };
        let listen = record["listen"].as_str().expect("all public ports").split(',').filter(|part| *part != "proxy");
        let listen = listen.map(|addr| addr.parse().expect("an address")).collect();
        Gateway { addr: address("addr"), listen, admin: address("admin"), process, node_id }
    }

    /// A client that has got its 101.
    pub fn client(&self, user: &str) -> Client {
        Client::connect(self.addr, user)
    }

    /// `count` clients named `prefix0`, `prefix1` and so on.
    pub fn clients(&self, prefix: &str, count: usize) -> Vec<Client> {
        (0..count).map(|at| self.client(&format!("{prefix}{at}"))).collect()
    }

    /// A client that writes its frames byte by byte and answers nothing on its own.
    pub fn raw(&self, user: &str) -> RawClient {
        RawClient::connect(self.addr, user)
    }

    /// What `/metrics` says now.
    pub fn metrics(&self) -> Metrics {
        let response = http::get(self.admin, "/metrics");
        assert_eq!(response.status, 200, "GET /metrics: {response:?}");
        Metrics::parse(&response.text())
    }

    /// The JSON of `/health`.
    pub fn health(&self) -> Value {
        let response = http::get(self.addr, "/health");
        assert_eq!(response.status, 200, "GET /health: {response:?}");
        serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error} in {response:?}"))
    }

    /// How many connections `/health` counts.
    pub fn connections(&self) -> u64 {
        self.health()["connections"].as_u64().expect("`connections` is a number")
    }

    /// Waits until `/health` counts so many connections.
    pub fn wait_for_connections(&self, count: u64) {
        let mut last = 0;
        let mut look = || {
            last = self.connections();
            (last == count).then_some(())
        };
        let what = format!("{count} connections in /health");
        eventually(&what, DEADLINE, &mut look);
    }

    /// How many connections each shard holds, by the shard's label.
    pub fn connections_by_shard(&self) -> Vec<(String, f64)> {
        let metrics = self.metrics();
        let samples = metrics.named("ringmesh_connections");
        samples.map(|sample| (sample.label("shard").unwrap_or_default().to_owned(), sample.value)).collect()
    }

    /// Connects clients until each of `shards` shards owns at least `each`, and returns them by shard.
    ///
    /// The kernel spreads connections over the shards by a hash of addresses and ports, so it takes a few more than needed.
    pub fn clients_on_each_shard(&self, prefix: &str, shards: usize, each: usize) -> Vec<Vec<Client>> {
        let mut placed: Vec<Vec<Client>> = (0..shards).map(|_| Vec::new()).collect();
        for at in 0..64 * shards * each {
            if placed.iter().all(|clients| clients.len() >= each) {
                break;
            }
            let before = self.connections_by_shard();
            let client = self.client(&format!("{prefix}{at}"));
            let grown = eventually("a shard that counts the new connection", DEADLINE, || {
                let after = self.connections_by_shard();
                after.iter().zip(&before).position(|(after, before)| after.1 > before.1)
            });
            if placed[grown].len() < each {
                placed[grown].push(client);
            } else {
                let before = self.connections();
                client.close();
                self.wait_for_connections(before - 1);
            }
        }
        assert!(placed.iter().all(|clients| clients.len() == each), "the kernel left a shard without connections");
        placed
    }
}

impl Deref for Gateway {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Gateway {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A node id that no other test uses.
pub fn new_node_id() -> String {
    format!("test-{}-{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed))
}

/// The arguments of `ringmesh serve`; a flag given in `flags` takes the place of the usual one.
pub fn serve_arguments(node_id: &str, flags: &[(&str, &str)]) -> Vec<String> {
    let usual = [
        ("--listen", "127.0.0.1:0"),
        ("--admin-listen", "127.0.0.1:0"),
        ("--node-id", node_id),
        ("--shards", "2"),
        ("--log-format", "json"),
        ("--connects-per-address-max", "0"),
    ];
    let mut arguments = vec!["serve".to_owned()];
    let usual = usual.iter().filter(|(flag, _)| !flags.iter().any(|(given, _)| given == flag));
    for (flag, value) in usual.chain(flags) {
        arguments.extend([(*flag).to_owned(), (*value).to_owned()]);
    }
    arguments
}
