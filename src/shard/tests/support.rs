//! Shards, each on a thread and a port of its own, so that a test chooses who owns a connection; and a client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ahash::RandomState;
use glommio::Placement;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::bus::status::BusStatus;
use crate::http::forwarded::TrustedProxies;
use crate::http::head::HeadLimits;
use crate::hub::HubConfig;
use crate::hub::heartbeat::Heartbeat;
use crate::ids::ShardId;
use crate::listeners;
use crate::metrics::{Cell, ShardMetrics};
use crate::node::{Node, Stage, executor};
use crate::shard::port::{BusPort, ShardPort, ports};
use crate::shard::{Audience, MeshTicket, ShardConfig, ShardError, run};
use crate::ws;

/// What never takes so long has hung.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than any test.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// The shards of a node without the node's own thread: no signals, no watchdog, no admin listener.
pub(super) struct Shards {
    node: Arc<Node>,
    metrics: Vec<&'static ShardMetrics>,
    /// By the order of their start; which shard of the mesh listens there is the mesh's business.
    addrs: Vec<SocketAddr>,
    ended: mpsc::Receiver<Result<(), ShardError>>,
}

impl Shards {
    pub(super) fn start(shards: u16, change: impl FnOnce(&mut ShardConfig)) -> Self {
        Self::start_beside(shards, change, |_| ())
    }

    /// The same, with one more task in the executor of the last shard: `beside` is called there to spawn it.
    pub(super) fn start_beside(
        shards: u16,
        change: impl FnOnce(&mut ShardConfig),
        beside: impl FnOnce(&'static ShardMetrics) + Send + 'static,
    ) -> Self {
        let ports = (0..shards).map(|_| None).collect();
        Self::start_all(shards, change, beside, ports, Node::new("test".into(), usize::from(shards), 10_000))
    }

    /// The same with a bus, which the test plays; it is warming up.
    pub(super) fn start_with_bus(shards: u16, change: impl FnOnce(&mut ShardConfig)) -> (Self, BusPort) {
        let (ports, bus) = ports(shards);
        let ports = ports.into_iter().map(Some).collect();
        let change = |config: &mut ShardConfig| {
            config.hub.has_bus = true;
            change(config);
        };
        let node = Node::new("test".into(), usize::from(shards), 10_000).with_bus();
        (Self::start_all(shards, change, |_| (), ports, node), bus)
    }

    fn start_all(
        shards: u16,
        change: impl FnOnce(&mut ShardConfig),
        beside: impl FnOnce(&'static ShardMetrics) + Send + 'static,
        ports: Vec<Option<ShardPort>>,
        node: Node,
    ) -> Self {
        let node = Arc::new(node);
        let mut config = config(shards);
        change(&mut config);
        let config = Arc::new(config);
        let ticket = MeshTicket::new(shards);
        let metrics: Vec<_> = (0..shards).map(|shard| node.shard_metrics(ShardId(shard))).collect();
        let mut beside = Some(beside);
        let (report, ended) = mpsc::channel();
        let mut addrs = Vec::new();
        for (shard, port) in (0..shards).zip(ports) {
            let mut listeners = listeners::open("a test", "127.0.0.1:0".parse().unwrap(), 1, 1024).unwrap();
            addrs.push(listeners.addr);
            let public: OwnedFd = listeners.sockets.remove(0);
            let (config, node, ticket, report) =
                (Arc::clone(&config), Arc::clone(&node), ticket.clone(), report.clone());
            let beside = beside.take_if(|_| shard + 1 == shards).map(|beside| (beside, metrics[usize::from(shard)]));
            executor(Placement::Unbound, usize::from(shard))
                .spawn(move || async move {
                    if let Some((beside, metrics)) = beside {
                        beside(metrics);
                    }
                    let result = run(config, node, ticket, vec![(public, Audience::Clients)], port).await;
                    // Nobody listens when the test has failed already.
                    let _ = report.send(result);
                })
                .unwrap();
        }
        node.set_stage(Stage::Running);
        Self { node, metrics, addrs, ended }
    }

    /// A client of the shard that was started as number `shard`.
    pub(super) fn client(&self, shard: usize, user: &str) -> Client {
        Client::over(TcpStream::connect(self.addrs[shard]).unwrap(), user)
    }

    /// How it stands with the bus that the test plays.
    pub(super) fn bus(&self) -> &BusStatus {
        self.node.bus().unwrap()
    }

    /// Tells clients to go, as at the end of a node.
    pub(super) fn tell_clients_to_go(&self) {
        self.node.set_stage(Stage::Closing);
    }

    /// The status and the body of what is answered to a GET.
    pub(super) fn get(&self, shard: usize, target: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addrs[shard]).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let upgrade = if target.starts_with("/ws") { upgrade } else { "" };
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: test\r\n{upgrade}\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    /// A client whose kernel takes little before somebody reads.
    pub(super) fn client_with_small_buffer(&self, shard: usize, user: &str) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.connect(&self.addrs[shard].into()).unwrap();
        Client::over(socket.into(), user)
    }

    /// A counter or gauge, summed over the shards.
    pub(super) fn sum(&self, cell: fn(&ShardMetrics) -> &Cell) -> u64 {
        self.each(cell).into_iter().sum()
    }

    /// A counter or gauge of each shard.
    pub(super) fn each(&self, cell: fn(&ShardMetrics) -> &Cell) -> Vec<u64> {
        self.metrics.iter().map(|metrics| cell(metrics).value()).collect()
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        // Past the stage in which shards wait for each other, with their tickers for a clock.
        self.node.set_stage(Stage::Closing);
        let end = Instant::now() + DEADLINE;
        for _ in 0..self.addrs.len() {
            let result = loop {
                // With the ticker off, an idle shard looks at the stage only when a connection comes.
                for addr in &self.addrs {
                    drop(TcpStream::connect(addr));
                }
                match self.ended.recv_timeout(Duration::from_millis(10)) {
                    Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() < end => {}
                    result => break result,
                }
            };
            if !std::thread::panicking() {
                assert!(matches!(result, Ok(Ok(()))), "a shard hangs, has failed, or has panicked: {result:?}");
            }
        }
    }
}

pub(super) fn config(shards: u16) -> ShardConfig {
    ShardConfig {
        hub: HubConfig {
            shards,
            connections_max: 256,
            connects_per_address_max: 0,
            connects_per_address_window: Duration::from_secs(60),
            // The same homes in every run.
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            has_bus: false,
        },
        heartbeat: Heartbeat { ping_interval: HOUR, pong_timeout: HOUR },
        ws: ws::Limits { message_bytes_max: 64 << 10 },
        head: HeadLimits::default(),
        trusted_proxies: TrustedProxies::default(),
        sockets_max: 256,
        slots_per_ring: 256,
        handshake_timeout: HOUR,
        close_timeout: Duration::from_secs(5),
        send_queue_bytes_max: 1 << 20,
        shard_queue_bytes_max: 1 << 30,
        send_stall_max: HOUR,
        control_frames_max: 100,
        shutdown_timeout: Duration::from_secs(5),
        tick: Duration::from_millis(10),
    }
}

/// A client that blocks, for the deadline at most.
pub(super) struct Client {
    pub(super) user: String,
    socket: WebSocket<TcpStream>,
}

impl Client {
    pub(super) fn over(stream: TcpStream, user: &str) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let url = format!("ws://test/ws?user_id={user}");
        let (socket, _) = tungstenite::client::client(url, stream).unwrap_or_else(|error| panic!("{user}: {error}"));
        Self { user: user.to_owned(), socket }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    pub(super) fn options(&self) -> SockRef<'_> {
        SockRef::from(self.stream())
    }

    pub(super) fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap_or_else(|error| panic!("{} can't send: {error}", self.user));
    }

    /// Sends JSON to a user.
    pub(super) fn send_to(&mut self, target: &str, content: &Value) {
        self.send(&json!({"type": "send_message", "target_user": target, "content": content}).to_string());
    }

    /// The next text message, or the Close frame in its place.
    #[track_caller]
    pub(super) fn next_or_close(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(frame)) => return Err(frame),
                Ok(Message::Ping(_)) => {}
                other => panic!("{} waits for a message, and gets {other:?}", self.user),
            }
        }
    }

    /// The next message is this JSON.
    #[track_caller]
    pub(super) fn expect(&mut self, expected: &Value) {
        let got = self.next_or_close();
        assert_eq!(got.as_ref(), Ok(expected), "what {} gets", self.user);
    }

    /// The next message is from this user, with this content.
    #[track_caller]
    pub(super) fn expect_from(&mut self, sender: &str, content: &Value) {
        self.expect(&json!({"type": "message", "from": sender, "content": content}));
    }

    /// Pings, and the pong is the next message: all that was said before has been handled.
    #[track_caller]
    pub(super) fn expect_pong(&mut self) {
        self.send(r#"{"type":"ping"}"#);
        self.expect(&json!({"type": "pong"}));
    }

    /// The next message is a Close with this code, and the stream ends behind it.
    #[track_caller]
    pub(super) fn expect_close(&mut self, code: u16) {
        match self.next_or_close() {
            Err(Some(frame)) => assert_eq!(u16::from(frame.code), code, "{}", self.user),
            other => panic!("{} waits for Close {code}, and gets {other:?}", self.user),
        }
        let end = self.socket.read();
        assert!(matches!(end, Err(tungstenite::Error::ConnectionClosed)), "{} waits for the end: {end:?}", self.user);
    }
}
