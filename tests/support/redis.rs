//! Redis servers of a test's own: one, a primary with a replica and three sentinels, or a Redis Cluster.
//!
//! Each has its port, its folder and its process; nothing is shared between tests, and nothing outlives them.

use std::cell::RefCell;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::resp::{Reply, Resp};
use super::{DEADLINE, DEADLINE_SLOW, eventually};

/// Where ports are looked for: below the kernel's ephemeral ones, so that no client's socket takes the port of a server
/// that is being restarted; and the port of a cluster's own bus is 10,000 higher.
const PORTS: std::ops::Range<u64> = 10_000..22_000;

/// Makes the ports that one process tries differ.
static TRIES: AtomicU64 = AtomicU64::new(0);

/// A running server. Dropping it kills the process, whatever state it is in.
pub struct RedisServer {
    child: RefCell<Child>,
    port: u16,
    dir: TempDir,
    program: &'static str,
    arguments: Vec<String>,
    /// User and password of the URL, with their `@`, and the password alone for commands of this harness.
    password: Option<String>,
}

impl RedisServer {
    /// A server on a free port that keeps nothing on disk.
    pub fn start() -> RedisServer {
        RedisServer::with(&[])
    }

    /// The same with further arguments of `redis-server`.
    pub fn with(arguments: &[&str]) -> RedisServer {
        RedisServer::launch("redis-server", arguments, None)
    }

    /// The same with a password.
    pub fn with_password(password: &str) -> RedisServer {
        RedisServer::launch("redis-server", &["--requirepass", password], Some(password.to_owned()))
    }

    fn launch(program: &'static str, arguments: &[&str], password: Option<String>) -> RedisServer {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        // A port can be taken between the look and the start; then the server ends at once, and another port is tried.
        for _ in 0..20 {
            let port = free_port();
            let dir = tempfile::tempdir().expect("a temporary folder");
            if let Some(child) = spawn(program, port, &dir, &arguments, password.as_deref()) {
                return RedisServer { child: RefCell::new(child), port, dir, program, arguments, password };
            }
        }
        panic!("{program} starts on none of twenty free ports");
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Its URL, with the password if it has one.
    pub fn url(&self) -> String {
        let user = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{user}{}", self.addr())
    }

    /// A connection to it.
    pub fn connect(&self) -> Resp {
        let mut resp = Resp::connect(self.addr());
        if let Some(password) = &self.password {
            resp.call(&["AUTH", password]);
        }
        resp
    }

    /// Stops the process as a stalled machine does: connections stay open, and nothing is answered.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets a stopped process go on.
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Ends the process as a power failure does, and waits until it is gone.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.child.borrow_mut().wait().expect("the child can be waited for");
    }

    /// Starts a killed one again on its port, with what it had saved; waits until it answers.
    pub fn start_again(&self) {
        let password = self.password.as_deref();
        let child = spawn(self.program, self.port, &self.dir, &self.arguments, password);
        *self.child.borrow_mut() = child.expect("the server starts again on its port");
    }

    /// Kills it and starts it again, empty.
    pub fn restart_empty(&self) {
        self.kill();
        self.start_again();
    }

    /// Saves, kills, and starts again with all that it had.
    pub fn restart_with_data(&self) {
        self.connect().call(&["SAVE"]);
        self.kill();
        self.start_again();
    }

    /// Closes the connections of all its clients.
    pub fn cut_all_clients(&self) {
        let mut resp = self.connect();
        for kind in ["pubsub", "normal"] {
            resp.ask(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        }
    }

    /// A field of `INFO`.
    pub fn info(&self, field: &str) -> String {
        info(&mut self.connect(), field).unwrap_or_else(|| panic!("{field} in INFO"))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.borrow().id().cast_signed());
        kill(pid, signal).expect("the process is there to be signalled");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let mut child = self.child.borrow_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A primary, its replica, and three sentinels that agree within some seconds.
pub struct Sentinels {
    /// The primary at the start, and its replica.
    pub servers: [RedisServer; 2],
    sentinels: Vec<RedisServer>,
    // The sentinels write into their configuration.
    _configs: TempDir,
}

impl Sentinels {
    /// Starts them, and waits until each sentinel knows the replica and the others.
    pub fn start() -> Sentinels {
        let first = RedisServer::start();
        let port = first.port.to_string();
        let second = RedisServer::with(&["--replicaof", "127.0.0.1", &port]);
        eventually("a replica that follows", DEADLINE, || {
            (second.info("master_link_status") == "up").then_some(())
        });
        let configs = tempfile::tempdir().expect("a temporary folder");
        let config = |at: usize| {
            let path = configs.path().join(format!("{at}.conf"));
            let text = format!(
                "sentinel monitor main 127.0.0.1 {port} 2\nsentinel down-after-milliseconds main 1000\n\
                 sentinel failover-timeout main 3000\nsentinel parallel-syncs main 1\n"
            );
            std::fs::write(&path, text).expect("a configuration is written");
            path.to_str().expect("its name is UTF-8").to_owned()
        };
        let sentinels: Vec<RedisServer> =
            (0..3).map(|at| RedisServer::launch("redis-sentinel", &[&config(at)], None)).collect();
        for sentinel in &sentinels {
            let mut resp = sentinel.connect();
            eventually("a sentinel that knows the replica and the other sentinels", DEADLINE, || {
                let knows = |what: &str| resp.call(&["SENTINEL", what, "main"]).list().len();
                (knows("REPLICAS") == 1 && knows("SENTINELS") == 2).then_some(())
            });
        }
        Sentinels { servers: [first, second], sentinels, _configs: configs }
    }

    /// The URL of the primary, whoever that is.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
        format!("redis+sentinel://{}/main", addresses.join(","))
    }

    /// Waits until the replica has taken over.
    pub fn wait_for_failover(&self) {
        eventually("a replica that was promoted", DEADLINE_SLOW, || {
            (self.servers[1].info("role") == "master").then_some(())
        });
    }
}

/// A Redis Cluster of three masters with a replica each.
pub struct RedisCluster {
    /// The masters at the start, then their replicas.
    pub servers: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts them, and waits until every server takes all slots for served.
    pub fn start() -> RedisCluster {
        let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
        let servers: Vec<RedisServer> = (0..6).map(|_| RedisServer::with(&arguments)).collect();
        let addresses = servers.iter().map(|server| server.addr().to_string());
        let output = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let mut cluster = RedisCluster { servers };
        // Which of them became masters is redis-cli's choice.
        cluster.servers.sort_by_key(|server| server.info("role") != "master");
        for server in &cluster.servers {
            eventually("a cluster that is whole", DEADLINE_SLOW, || {
                let state = server.connect().call(&["CLUSTER", "INFO"]).text();
                (state.contains("cluster_state:ok") && state.contains("cluster_known_nodes:6")).then_some(())
            });
        }
        for replica in &cluster.servers[3..] {
            eventually("a replica that follows", DEADLINE_SLOW, || {
                (replica.info("master_link_status") == "up").then_some(())
            });
        }
        cluster
    }

    /// Its URL, by its masters.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.servers[..3].iter().map(|server| server.addr().to_string()).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    /// The position in `servers` of the master that serves this key at the start.
    pub fn master_of(&self, key: &str) -> usize {
        let answer = |server: &RedisServer| server.connect().ask(&["GET", key]);
        let served = |server: &RedisServer| !matches!(answer(server), Reply::Error(text) if text.starts_with("MOVED"));
        self.servers[..3].iter().position(served).expect("a master that serves the key")
    }
}

/// Starts a server; `None` when it ends at once, as it does when another has taken its port.
fn spawn(program: &str, port: u16, dir: &TempDir, arguments: &[String], password: Option<&str>) -> Option<Child> {
    let log = File::options().create(true).append(true).open(dir.path().join("log")).expect("a log");
    let mut command = Command::new(program);
    // A configuration file comes first, if there is one.
    let (file, rest) = arguments.split_at(usize::from(arguments.first().is_some_and(|first| !first.starts_with('-'))));
    command.args(file).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]).args(rest);
    if program == "redis-server" {
        command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
    }
    command.current_dir(dir).stdin(Stdio::null()).stdout(log);
    let mut child = command.spawn().expect("redis-server is installed: run `make test-tools`");
    let pid = child.id().to_string();
    let lives = eventually("a Redis that answers", DEADLINE, || {
        if child.try_wait().expect("the child can be waited for").is_some() {
            return Some(false);
        }
        // Another server may hold the port: only the process id tells them apart.
        (answering_pid(port, password).as_ref() == Some(&pid)).then_some(true)
    });
    lives.then_some(child)
}

/// The process id of whoever answers on the port, once he answers.
fn answering_pid(port: u16, password: Option<&str>) -> Option<String> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    drop(TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok()?);
    let mut resp = Resp::connect(addr);
    if let Some(password) = password {
        resp.ask(&["AUTH", password]);
    }
    info(&mut resp, "process_id")
}

/// A field of `INFO`, unless the server is still loading.
fn info(resp: &mut Resp, field: &str) -> Option<String> {
    let Reply::Text(text) = resp.ask(&["INFO"]) else { return None };
    let text = String::from_utf8_lossy(&text).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned())
}

/// A port that nobody has at this moment.
fn free_port() -> u16 {
    loop {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").subsec_nanos();
        let process = u64::from(std::process::id());
        let number = u64::from(nanos) / 1_000 + process * 7919 + TRIES.fetch_add(1, Ordering::Relaxed) * 104_729;
        let port = (PORTS.start + number % (PORTS.end - PORTS.start)) as u16;
        let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}
