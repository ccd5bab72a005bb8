//! From being connected to the next loss, over and over.
//!
//! A server that is stopped, and a connection whose other end is gone, say nothing. So once a second a probe is published
//! on our own link, by the way that messages take: when none has come back for 3 s, everything is torn down.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisError, Value, cmd};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::super::keys::{self, Tags};
use super::super::scripts::Scripts;
use super::caller::{Channel, Publish, Shared};
use super::events::{Event, EventSender};
use super::open::{Opener, Reason};
use super::runs::Runs;
use super::servers::{ANSWER_MAX, Down, Servers, silent};
use super::{NodeId, PROBE, RedisConfig, directory, publish};

/// Between two attempts to connect: doubled each time, with jitter.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The same reason is told again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// Between two looks at probes, servers and what was dropped.
const TICK: Duration = Duration::from_millis(250);
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Pipelines of the directory under way: enough to keep a server busy, little enough for the lease to get through.
const CHUNKS_UNDER_WAY_MAX: usize = 8;

/// What the calls of a session share.
pub(super) struct Rim {
    pub node: NodeId,
    /// Tells this process from another with the same node id.
    pub token: String,
    pub tags: Tags,
    pub servers: Servers,
    pub runs: Rc<Runs>,
    /// A permit for each chunk of registrations, removals and renewals.
    pub gate: Semaphore,
    shared: Rc<Shared>,
    subscriber: MultiplexedConnection,
    echo: Arc<Echo>,
}

/// The probes that came back.
struct Echo {
    token: u64,
    /// What times are counted from.
    start: Instant,
    /// When the last one came back, in ns.
    heard_ns: AtomicU64,
    /// How long the slowest one took since somebody asked, in ns; 0: none has come back.
    slowest_ns: AtomicU64,
    heard: Notify,
}

/// Why a session ended.
enum End {
    /// Nobody calls any more.
    Closed,
    /// A connection was lost.
    Lost(Reason),
    /// A part of a cluster was lost, and is there again: what was written to it may be gone.
    Mended,
}

/// Keeps a session up for as long as there is a caller.
pub(super) async fn run(config: RedisConfig, shared: Rc<Shared>) {
    let token = format!("{:016x}", random());
    let runs = Rc::new(Runs::new(&token));
    let mut pause = PAUSE_MIN;
    let mut told: Option<(Reason, Instant)> = None;
    while !shared.is_closed.get() {
        match Session::connect(&config, &token, &runs, &shared).await {
            Ok(mut session) => {
                let start = Instant::now();
                loop {
                    runs.reconnected();
                    shared.is_connected.set(true);
                    shared.events.send(Event::Connected);
                    let end = session.serve().await;
                    shared.disconnect();
                    let (reason, is_over) = match end {
                        End::Closed => return,
                        End::Lost(reason) => (reason, true),
                        End::Mended => ("a part of the Redis Cluster was lost, and is there again".to_owned(), false),
                    };
                    shared.events.send(Event::Lost(reason));
                    if is_over {
                        break;
                    }
                }
                // One that breaks down at once, over and over, is no reason to hurry.
                if start.elapsed() > PAUSE_MAX {
                    (pause, told) = (PAUSE_MIN, None);
                }
            }
            Err(reason) => {
                let is_known = told.as_ref().is_some_and(|(known, at)| *known == reason && at.elapsed() < TELL_AGAIN);
                if !is_known {
                    shared.events.send(Event::Lost(reason.clone()));
                    told = Some((reason, Instant::now()));
                }
            }
        }
        sleep(pause / 2 + pause.mul_f64((random() % 1000) as f64 / 1000.0) / 2).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A number that nobody can guess.
pub(super) fn random() -> u64 {
    ahash::RandomState::new().hash_one(0_u8)
}

struct Session {
    rim: Rc<Rim>,
    downs: UnboundedReceiver<Down>,
}

impl Session {
    async fn connect(
        config: &RedisConfig,
        token: &str,
        runs: &Rc<Runs>,
        shared: &Rc<Shared>,
    ) -> Result<Session, Reason> {
        let (sender, downs) = unbounded_channel();
        let opener = Opener::new(config.url.clone(), &config.node)?;
        let servers = Servers::connect(opener, Scripts::new(), sender.clone()).await?.0;
        let link = keys::link(&config.node);
        let home = servers.of_slot(keys::slot(link.as_bytes()));
        let home = home.ok_or("the part of the Redis Cluster that has this node's own channel is out of reach")?;
        let echo = Arc::new(Echo {
            token: random(),
            start: Instant::now(),
            heard_ns: AtomicU64::new(0),
            slowest_ns: AtomicU64::new(0),
            heard: Notify::new(),
        });
        let push = hear(&config.node, servers.is_cluster(), &echo, &shared.events, sender);
        let subscriber = servers.opener().open(&home.address, push).await?;
        let rim = Rim {
            node: config.node.clone(),
            token: token.to_owned(),
            tags: Tags::new(),
            servers,
            runs: Rc::clone(runs),
            gate: Semaphore::new(CHUNKS_UNDER_WAY_MAX),
            shared: Rc::clone(shared),
            subscriber,
            echo,
        };
        let tried = timeout(ANSWER_MAX, rim.begin()).await.unwrap_or_else(|_| Err(Failure::Silent));
        tried.map_err(|failure| match failure {
            Failure::Refused(error) => rim.servers.opener().reason(&home.address, &error),
            Failure::Silent => silent(&home.address),
        })?;
        Ok(Session { rim: Rc::new(rim), downs })
    }

    /// Carries out calls until the end.
    async fn serve(&mut self) -> End {
        let rim = Rc::clone(&self.rim);
        let mut tasks = JoinSet::new();
        tasks.spawn_local(publish::run(Rc::clone(&rim)));
        let end = self.turn(&rim, &mut tasks).await;
        // What is still unanswered fails before the loss is told.
        tasks.shutdown().await;
        end
    }

    async fn turn(&mut self, rim: &Rc<Rim>, tasks: &mut JoinSet<()>) -> End {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticked = Instant::now();
        let mut probed: Option<Instant> = None;
        let mut had_gaps = !rim.servers.is_whole();
        loop {
            tokio::select! {
                biased;
                Some(down) = self.downs.recv() => {
                    let is_current = down.server.is_none_or(|server| rim.servers.mark_down(server));
                    if is_current && !rim.goes_on_without(&down) {
                        return End::Lost(down.reason);
                    }
                    had_gaps |= is_current;
                }
                () = rim.shared.calling.notified() => {
                    if rim.shared.is_closed.get() {
                        return End::Closed;
                    }
                    directory::begin(rim, tasks, rim.shared.take_calls());
                }
                _ = tick.tick() => {
                    rim.shared.events.tell_dropped();
                    if had_gaps && rim.servers.is_whole() {
                        return End::Mended;
                    }
                    if rim.servers.is_stale() {
                        let rim = Rc::clone(rim);
                        tasks.spawn_local(async move { rim.servers.look_again().await });
                    }
                    // After a standstill of this thread what has come back was not read yet.
                    let was_still = ticked.elapsed() > ANSWER_MAX / 2;
                    ticked = Instant::now();
                    if !was_still && rim.echo.silent_for() > ANSWER_MAX {
                        return End::Lost(format!(
                            "nothing that this node publishes on {} has come back for {} s; is Redis stopped, or the \
                             network cut?",
                            keys::echo(&rim.node),
                            ANSWER_MAX.as_secs()
                        ));
                    }
                    if probed.is_none_or(|at| at.elapsed() >= PROBE_EVERY) {
                        probed = Some(Instant::now());
                        let (node, bytes) = (rim.node.clone(), rim.echo.probe());
                        rim.shared.push_publish(Publish { ticket: None, node, channel: Channel::Echo, bytes });
                    }
                }
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
        }
    }
}

/// Why a session could not begin.
enum Failure {
    Refused(RedisError),
    Silent,
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Refused(error)
    }
}

impl Rim {
    /// What is published for this node is heard from here on; proven by a probe, and by a script.
    async fn begin(&self) -> Result<(), Failure> {
        let mut subscriber = self.subscriber.clone();
        let echo = keys::echo(&self.node);
        self.hear_on_own_server(&echo).await?;
        if self.shared.hears_link.get() {
            self.hear_on_own_server(&keys::link(&self.node)).await?;
        }
        subscriber.subscribe(keys::node_channel(&self.node)).await?;
        if self.shared.hears_events.get() {
            subscriber.subscribe(keys::USER_EVENTS).await?;
        }
        let publish = if self.servers.is_cluster() { "SPUBLISH" } else { "PUBLISH" };
        let probe = cmd(publish).arg(&echo).arg(&self.echo.probe()[..]).take();
        self.must(keys::slot(echo.as_bytes()), probe).await?;
        self.echo.heard.notified().await;
        let nobody = self.tags.user("");
        match self.must(nobody.slot, self.locate_user(&nobody, true)).await {
            // Another part of a cluster than our own may be out of reach.
            Err(Failure::Silent) if self.servers.is_cluster() => Ok(()),
            other => other,
        }
    }

    /// Subscribes a channel of which a cluster tells only the server that has its slot.
    async fn hear_on_own_server(&self, channel: &str) -> Result<(), RedisError> {
        let mut subscriber = self.subscriber.clone();
        if self.servers.is_cluster() {
            subscriber.send_packed_command(cmd("SSUBSCRIBE").arg(channel)).await?.extract_error()?;
            return Ok(());
        }
        subscriber.subscribe(channel).await
    }

    /// Subscribes this node's link, also after losses from here on; `false` when that failed.
    pub async fn hear_link(&self) -> bool {
        self.shared.hears_link.set(true);
        matches!(timeout(ANSWER_MAX, self.hear_on_own_server(&keys::link(&self.node))).await, Ok(Ok(())))
    }

    async fn must(&self, slot: u16, command: redis::Cmd) -> Result<(), Failure> {
        match self.servers.ask(slot, command).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(Failure::Refused(error.into())),
            None => Err(Failure::Silent),
        }
    }

    /// Subscribes `user:events`, or unsubscribes; `false` when that failed.
    pub async fn hear_events(&self, on: bool) -> bool {
        self.shared.hears_events.set(on);
        let mut subscriber = self.subscriber.clone();
        let done = timeout(ANSWER_MAX, async {
            if on {
                subscriber.subscribe(keys::USER_EVENTS).await
            } else {
                subscriber.unsubscribe(keys::USER_EVENTS).await
            }
        });
        matches!(done.await, Ok(Ok(())))
    }

    /// Whether a lost connection is not the session's end: a cluster goes on without a part of it.
    fn goes_on_without(&self, down: &Down) -> bool {
        let home = keys::slot(keys::link(&self.node).as_bytes());
        let goes_on = down.server.is_some() && self.servers.is_cluster() && self.servers.of_slot(home).is_some();
        if goes_on {
            tracing::warn!(reason = down.reason, "a part of the Redis Cluster is lost; the others go on");
        }
        goes_on
    }

    /// How long the slowest probe took that has come back since the last call; `None` when none has.
    pub fn take_slowest_probe(&self) -> Option<Duration> {
        Some(self.echo.slowest_ns.swap(0, Relaxed)).filter(|ns| *ns > 0).map(Duration::from_nanos)
    }

    /// For the publisher.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Echo {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The next probe.
    fn probe(&self) -> Bytes {
        [PROBE, &self.token.to_le_bytes(), &self.now_ns().to_le_bytes()].concat().into()
    }

    /// Takes what came back; how long it took, if it is ours.
    fn hear(&self, probe: &[u8]) -> Option<Duration> {
        let (token, sent) = probe.get(PROBE.len()..)?.split_first_chunk::<8>()?;
        let sent = u64::from_le_bytes(sent.try_into().ok()?);
        (u64::from_le_bytes(*token) == self.token).then(|| {
            let now = self.now_ns();
            let took = now.saturating_sub(sent).max(1);
            self.heard_ns.store(now, Relaxed);
            self.slowest_ns.fetch_max(took, Relaxed);
            self.heard.notify_one();
            Duration::from_nanos(took)
        })
    }

    fn silent_for(&self) -> Duration {
        Duration::from_nanos(self.now_ns().saturating_sub(self.heard_ns.load(Relaxed)))
    }
}

/// What the subscriber's connection calls with what the server sends unasked.
fn hear(
    node: &NodeId,
    is_cluster: bool,
    echo: &Arc<Echo>,
    events: &EventSender,
    downs: UnboundedSender<Down>,
) -> impl Fn(PushInfo) + Send + Sync + 'static {
    let (echo, events) = (Arc::clone(echo), events.clone());
    let (link, own, contract) = (keys::link(node), keys::echo(node), keys::node_channel(node));
    move |info: PushInfo| {
        let ended = |reason: String| {
            // With the session over nobody minds.
            let _ = downs.send(Down { server: None, reason });
        };
        match info.kind {
            PushKind::Message | PushKind::SMessage => {
                let mut data = info.data.into_iter();
                let (Some(Value::BulkString(channel)), Some(Value::BulkString(bytes))) = (data.next(), data.next())
                else {
                    return;
                };
                if channel == link.as_bytes() {
                    events.send(Event::Envelope(bytes.into()));
                } else if channel == own.as_bytes() {
                    if let Some(lag) = echo.hear(&bytes) {
                        events.send(Event::Lag(lag));
                    }
                } else if channel == contract.as_bytes() {
                    events.send(Event::Contract(bytes.into()));
                } else {
                    events.send(Event::UserEvent(bytes.into()));
                }
            }
            PushKind::Disconnection => ended("Redis closed the connection that hears what is published".to_owned()),
            PushKind::SUnsubscribe if is_cluster => ended("the slot of this node's channel has moved".to_owned()),
            _ => {}
        }
    }
}
