//! Redis for one test: servers on free ports of the loopback, with a folder of their own, that never outlive the test.
//!
//! [`RedisServer`] is one server; [`Sentinels`] a master, a replica and three sentinels; [`RedisCluster`] masters with
//! or without replicas. Nothing is written to disk unless the test asks for it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::random::Random;
use super::{DEADLINE_SLOW, eventually};

/// Makes the ports that one process tries first differ.
static TRIES: AtomicU32 = AtomicU32::new(0);

/// A redis-server that has answered PING. Dropping it kills the process.
pub struct RedisServer {
    child: Option<Child>,
    port: u16,
    dir: TempDir,
    /// The command line without the port.
    arguments: Vec<String>,
    /// Between the scheme and the host: empty, or `user:password@`.
    user_info: String,
    tls: bool,
}

impl RedisServer {
    /// One that keeps nothing on disk.
    pub fn start() -> RedisServer {
        RedisServer::with(&[])
    }

    /// As [`RedisServer::start`], with more of the command line: `&["--appendonly", "yes"]`.
    pub fn with(arguments: &[&str]) -> RedisServer {
        RedisServer::build(arguments, String::new(), false)
    }

    /// One that wants a password.
    pub fn with_password(password: &str) -> RedisServer {
        RedisServer::build(&["--requirepass", password], format!(":{password}@"), false)
    }

    /// One that speaks TLS only, with a certificate for 127.0.0.1 from a CA of its own: [`RedisServer::ca_file`].
    pub fn with_tls() -> RedisServer {
        RedisServer::build(&["--tls-auth-clients", "no"], String::new(), true)
    }

    fn build(arguments: &[&str], user_info: String, tls: bool) -> RedisServer {
        let dir = tempfile::Builder::new().prefix("ringmesh-redis-").tempdir().expect("a temporary folder");
        let mut all: Vec<String> = ["--bind", "127.0.0.1", "--save", "", "--daemonize", "no"].map(String::from).into();
        if tls {
            make_certificates(dir.path());
            for (flag, file) in
                [("--tls-cert-file", "cert.pem"), ("--tls-key-file", "key.pem"), ("--tls-ca-cert-file", "ca.pem")]
            {
                all.extend([flag.to_owned(), dir.path().join(file).display().to_string()]);
            }
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let mut server = RedisServer { child: None, port: 0, dir, arguments: all, user_info, tls };
        // Between finding a port and its use another test may take it.
        for _ in 0..10 {
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("no redis-server came up; its log:\n{}", server.log());
    }

    /// Starts the process and waits until it, and no other, answers. `false` when it ended instead.
    fn launch(&mut self) -> bool {
        let port = self.port.to_string();
        let ports =
            if self.tls { ["--port", "0", "--tls-port", &port] } else { ["--port", &port, "--tcp-backlog", "511"] };
        let mut child = Command::new("redis-server")
            .args(ports)
            .args(["--dir", &self.dir.path().display().to_string()])
            .args(["--logfile", "redis.log"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed: tests/support/install-tools.sh");
        let own = format!("process_id:{}\r", child.id());
        let is_up = eventually("an answer to PING", DEADLINE_SLOW, || {
            if child.try_wait().expect("a child").is_some() {
                return Some(false);
            }
            self.asked(&["INFO", "server"])?.contains(&own).then_some(true)
        });
        self.child = is_up.then_some(child);
        is_up
    }

    /// The answer to a command as `redis-cli` prints it; `None` when there is no connection.
    fn asked(&self, command: &[&str]) -> Option<String> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some((user, password)) = self.user_info.trim_end_matches('@').split_once(':') {
            cli.args(["--no-auth-warning", "-a", password]);
            if !user.is_empty() {
                cli.args(["--user", user]);
            }
        }
        if self.tls {
            cli.args(["--tls", "--cacert", &self.ca_file().display().to_string()]);
        }
        let output = cli.args(command).stdin(Stdio::null()).output().expect("redis-cli is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes it one that has been in use for long: on a new one nodes wait for 3 s, since others may have been there before
    /// it lost its data. A test of nothing of that kind need not wait.
    pub fn age(&self) {
        let info = self.ask(&["INFO", "replication"]);
        let id = info.lines().find_map(|line| line.strip_prefix("master_replid:")).expect("a replication id");
        self.ask(&["SET", ringmesh::bus::keys::RUN, &format!("1:aged:{}", id.trim())]);
    }

    /// The answer to a command, as `redis-cli` prints it, without the line end.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn ask(&self, command: &[&str]) -> String {
        self.asked(command).unwrap_or_else(|| panic!("{command:?}: no answer")).trim_end().to_owned()
    }

    /// `redis://127.0.0.1:PORT`, with the password if it wants one; `rediss://…?ca=FILE` with TLS.
    pub fn url(&self) -> String {
        let (scheme, query) = match self.tls {
            true => ("rediss", format!("/?ca={}", self.ca_file().display())),
            false => ("redis", String::new()),
        };
        format!("{scheme}://{}127.0.0.1:{}{query}", self.user_info, self.port)
    }

    /// A connection of the test's own. Not to one with TLS; [`RedisServer::ask`] speaks to any.
    pub fn connect(&self) -> redis::Connection {
        redis::Client::open(self.url()).and_then(|client| client.get_connection()).expect("a connection")
    }

    /// The port of the loopback that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the CA that signed its own.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("the server runs").id().cast_signed())
    }

    /// CPU seconds that its main thread has used.
    pub fn cpu_s(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).expect("the process is there");
        let ns: u64 = text.split(' ').next().and_then(|field| field.parse().ok()).expect("nanoseconds");
        ns as f64 / 1e9
    }

    /// SIGSTOP: connections stay, nothing answers.
    pub fn stop(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("the server is there");
    }

    /// SIGCONT after [`RedisServer::stop`].
    pub fn cont(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("the server is there");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port after [`RedisServer::kill`]; with its data, if it was told to keep them.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        // What the dead one had accepted may hold the port for a moment.
        eventually("the same port again", DEADLINE_SLOW, || self.launch().then_some(()));
    }

    /// Ends all connections of clients.
    pub fn kill_clients(&self) {
        for kind in ["normal", "pubsub"] {
            self.ask(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if std::thread::panicking() && self.child.is_some() {
            eprintln!("--- log of redis-server {} ---\n{}\n---", self.port, self.log());
        }
        self.kill();
    }
}

/// A master, a replica of it, and three sentinels that replace the master when it was silent for 1 s.
pub struct Sentinels {
    /// The first master.
    pub master: RedisServer,
    /// The first replica.
    pub replica: RedisServer,
    sentinels: Vec<Sentinel>,
}

impl Sentinels {
    /// The service's name.
    pub const SERVICE: &str = "main";

    /// Starts all five, and waits until the sentinels know each other and the replica.
    pub fn start() -> Sentinels {
        let master = RedisServer::start();
        let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
        eventually("a replica in step", DEADLINE_SLOW, || {
            replica.ask(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
        });
        let sentinels: Vec<Sentinel> = (0..3).map(|_| Sentinel::start(master.port)).collect();
        for sentinel in &sentinels {
            eventually("sentinels that know each other", DEADLINE_SLOW, || {
                let state = sentinel.ask(&["SENTINEL", "MASTER", Self::SERVICE])?;
                let field = |name: &str| {
                    let mut lines = state.lines();
                    lines.find(|line| *line == name).and_then(|_| lines.next())
                };
                (field("num-other-sentinels") == Some("2") && field("num-slaves") == Some("1")).then_some(())
            });
        }
        Sentinels { master, replica, sentinels }
    }

    /// `redis+sentinel://…`, all three.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|each| format!("127.0.0.1:{}", each.port)).collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Self::SERVICE)
    }

    /// The port of the master, as the first sentinel has it.
    pub fn master_port(&self) -> Option<u16> {
        let answer = self.sentinels[0].ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::SERVICE])?;
        answer.lines().nth(1)?.trim().parse().ok()
    }
}

/// One redis-sentinel.
struct Sentinel {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Sentinel {
    fn start(master_port: u16) -> Sentinel {
        for _ in 0..10 {
            let dir = tempfile::Builder::new().prefix("ringmesh-sentinel-").tempdir().expect("a temporary folder");
            let port = free_port();
            let name = Sentinels::SERVICE;
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nlogfile sentinel.log\n\
                 sentinel monitor {name} 127.0.0.1 {master_port} 2\n\
                 sentinel down-after-milliseconds {name} 1000\n\
                 sentinel failover-timeout {name} 5000\nsentinel parallel-syncs {name} 1\n",
                dir.path().display()
            );
            let path = dir.path().join("sentinel.conf");
            std::fs::write(&path, text).expect("a configuration");
            let child = Command::new("redis-sentinel")
                .arg(&path)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-sentinel is installed: tests/support/install-tools.sh");
            let mut sentinel = Sentinel { child, port, _dir: dir };
            let own = format!("process_id:{}\r", sentinel.child.id());
            let is_up = eventually("a sentinel's answer", DEADLINE_SLOW, || {
                if sentinel.child.try_wait().expect("a child").is_some() {
                    return Some(false);
                }
                sentinel.ask(&["INFO", "server"])?.contains(&own).then_some(true)
            });
            if is_up {
                return sentinel;
            }
        }
        panic!("no redis-sentinel came up");
    }

    fn ask(&self, command: &[&str]) -> Option<String> {
        let port = self.port.to_string();
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &port])
            .args(command)
            .stdin(Stdio::null())
            .output()
            .expect("redis-cli is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Redis Cluster: masters that share the slots evenly, each with the same number of replicas. A master that falls
/// silent for 2 s is replaced by a replica; without one, its slots are gone and those of the others go on.
pub struct RedisCluster {
    /// The masters as they were made.
    pub masters: Vec<RedisServer>,
    /// `replicas[n]` follow `masters[n]`.
    pub replicas: Vec<Vec<RedisServer>>,
}

impl RedisCluster {
    /// Starts `masters` masters with `replicas` replicas each, and waits until every server sees the whole.
    pub fn start(masters: usize, replicas: usize) -> RedisCluster {
        let server = || {
            let bus_port = free_port().to_string();
            let flags = [
                ["--cluster-enabled", "yes"],
                ["--cluster-node-timeout", "2000"],
                ["--cluster-require-full-coverage", "no"],
                ["--cluster-port", &bus_port],
            ];
            (RedisServer::with(&flags.concat()), bus_port)
        };
        let (first, first_bus_port) = server();
        let first_port = first.port.to_string();
        let mut all = vec![first];
        for _ in 1..masters * (1 + replicas) {
            all.push(server().0);
        }
        for (at, master) in all.iter().enumerate().take(masters) {
            // Every master needs an epoch of its own before they meet, or two of them argue about it.
            master.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            let (from, to) = (at * 16384 / masters, (at + 1) * 16384 / masters - 1);
            master.ask(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
        }
        for other in &all[1..] {
            other.ask(&["CLUSTER", "MEET", "127.0.0.1", &first_port, &first_bus_port]);
        }
        let knows = format!("cluster_known_nodes:{}\r", all.len());
        for each in &all {
            eventually("servers that know each other", DEADLINE_SLOW, || {
                each.ask(&["CLUSTER", "INFO"]).contains(&knows).then_some(())
            });
        }
        let mut rest = all.split_off(masters);
        let replicas: Vec<Vec<RedisServer>> = all
            .iter()
            .map(|master| {
                let id = master.ask(&["CLUSTER", "MYID"]);
                let own: Vec<RedisServer> = rest.drain(..replicas).collect();
                for replica in &own {
                    // It must have heard of that master as one first.
                    eventually("a replica that follows", DEADLINE_SLOW, || {
                        (replica.ask(&["CLUSTER", "REPLICATE", &id]) == "OK").then_some(())
                    });
                }
                own
            })
            .collect();
        let cluster = RedisCluster { masters: all, replicas };
        let followers = cluster.replicas.iter().flatten().count();
        for each in cluster.masters.iter().chain(cluster.replicas.iter().flatten()) {
            eventually("a cluster without gaps", DEADLINE_SLOW, || {
                let info = each.ask(&["CLUSTER", "INFO"]);
                let is_whole = info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
                let seen = each.ask(&["CLUSTER", "NODES"]).lines().filter(|line| line.contains("slave")).count();
                (is_whole && seen == followers).then_some(())
            });
        }
        for each in cluster.replicas.iter().flatten() {
            eventually("a replica in step", DEADLINE_SLOW, || {
                each.ask(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
            });
        }
        cluster
    }

    /// `redis+cluster://…`, all masters as they were made.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.masters.iter().map(|each| format!("127.0.0.1:{}", each.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Which of `masters` has the slot of this key, as they were made.
    pub fn owner(&self, key: &str) -> usize {
        self.owner_of_slot(self.slot(key))
    }

    /// Whether the slots of another master are so near to that of this key that a user's bucket may be there.
    pub fn is_at_border(&self, key: &str) -> bool {
        let slot = self.slot(key);
        self.owner_of_slot(slot.saturating_sub(256)) != self.owner_of_slot((slot + 256).min(16383))
    }

    fn slot(&self, key: &str) -> usize {
        let asked = self.masters.iter().find(|each| each.child.is_some()).expect("a master that runs");
        asked.ask(&["CLUSTER", "KEYSLOT", key]).parse().expect("a slot")
    }

    fn owner_of_slot(&self, slot: usize) -> usize {
        (0..self.masters.len()).find(|at| slot < (at + 1) * 16384 / self.masters.len()).expect("a slot below 16384")
    }
}

/// Where ports are looked for: below those that the kernel gives to clients. One of these could take the port of a
/// server that is down, and a client that tries again and again would in the end connect to itself.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A port that nobody listens on now.
fn free_port() -> u16 {
    let mut random =
        Random::new(u64::from(std::process::id()) << 32 | u64::from(TRIES.fetch_add(1, Ordering::Relaxed)));
    loop {
        let port = PORTS.start + random.below(PORTS.len()) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// `ca.pem`, and `cert.pem` with `key.pem` for 127.0.0.1 and localhost, signed by it.
fn make_certificates(dir: &Path) {
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").current_dir(dir).args(arguments).output().expect("openssl is installed");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=test CA", "-keyout", "ca-key.pem", "-out", "ca.pem"];
    run(&[&ca[..], &key[..]].concat());
    let request = ["req", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem"];
    run(&[&request[..], &key[..]].concat());
    std::fs::write(dir.join("names.txt"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("a file");
    let signer = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "names.txt"];
    run(&[&["x509", "-req", "-in", "request.pem", "-out", "cert.pem"], &signer[..]].concat());
}
