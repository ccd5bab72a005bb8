//! A look at a cluster from outside: who is there, and how long a message takes. It has no lease, calls no script, and
//! writes nothing; all that it publishes is a few bytes to itself.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, Value, cmd};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::config::RedisUrl;

use super::super::call::Incarnation;
use super::super::keys::{self, Tags};
use super::super::scripts::Scripts;
use super::super::survey::{Known, Lease, LifeFound, NodeFound, ServerFound, Survey};
use super::NodeId;
use super::membership::{heard_at, holder, registry};
use super::open::{Opener, Reason, at, number, string};
use super::servers::{ANSWER_MAX, Answer, Down, Request, Server, Servers, all_of, silent};

/// What `CLIENT LIST` calls us, behind `ringmesh-`.
const NAME: &str = "cluster-command";
/// Messages to ourselves through each server, one after the other.
const PROBES: usize = 9;
/// Until all servers are connected to that can be.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// Somebody who looks, connected to every master that can be reached.
pub struct Surveyor {
    servers: Servers,
    tags: Tags,
    listeners: Vec<Listener>,
    downs: UnboundedReceiver<Down>,
    out_of_reach: Vec<Reason>,
}

/// What hears our own probes at one server.
struct Listener {
    server: Rc<Server>,
    channel: String,
    publish: &'static str,
    /// Tells a probe from those of earlier looks that came too late.
    next: u64,
    heard: UnboundedReceiver<Vec<u8>>,
    /// The subscription lives as long as its connection.
    _subscriber: MultiplexedConnection,
}

impl Surveyor {
    /// Connects.
    ///
    /// # Errors
    /// No server can be reached: why, and what to do.
    pub async fn connect(url: RedisUrl) -> Result<Surveyor, String> {
        let connected = timeout(CONNECT_MAX, async {
            let (sender, downs) = unbounded_channel();
            let opener = Opener::new(url, &NodeId::from(NAME))?;
            let (servers, out_of_reach) = Servers::connect(opener, Scripts::none(), sender).await?;
            let mut surveyor = Surveyor { servers, tags: Tags::new(), listeners: Vec::new(), downs, out_of_reach };
            surveyor.listen().await?;
            Ok(surveyor)
        });
        connected
            .await
            .unwrap_or_else(|_| Err(format!("Redis took longer than {} s to connect to", CONNECT_MAX.as_secs())))
    }

    async fn listen(&mut self) -> Result<(), Reason> {
        let token = super::session::random();
        for server in self.servers.all() {
            let slots = 0..keys::SLOTS as u16;
            let is_its = |slot: &u16| self.servers.of_slot(*slot).is_some_and(|other| other.id == server.id);
            let Some(slot) = slots.into_iter().find(is_its) else { continue };
            let channel = self.tags.probe(slot, token);
            let listened = timeout(ANSWER_MAX, Listener::new(&self.servers, &server, channel)).await;
            match listened.unwrap_or_else(|_| Err(silent(&server.address))) {
                Ok(listener) => self.listeners.push(listener),
                Err(reason) => self.out_of_reach.push(reason),
            }
        }
        match self.listeners.is_empty() {
            true => Err(self.out_of_reach.first().cloned().unwrap_or_else(|| "Redis has no slots".to_owned())),
            false => Ok(()),
        }
    }

    /// Looks once.
    ///
    /// # Errors
    /// No server answers any more.
    pub async fn look(&mut self) -> Result<Survey, String> {
        let opener = self.servers.opener();
        let probed = all_of(self.listeners.iter_mut().map(|listener| listener.probe(opener)).collect()).await;
        let mut servers = Vec::new();
        for (listener, probed) in self.listeners.iter().zip(probed) {
            match probed {
                Ok(round_trips) => servers.push(ServerFound { address: at(&listener.server.address), round_trips }),
                Err(reason) => self.out_of_reach.push(reason),
            }
        }
        let nodes = self.nodes().await;
        while let Ok(down) = self.downs.try_recv() {
            self.out_of_reach.push(down.reason);
        }
        let mut told = BTreeSet::new();
        self.out_of_reach.retain(|reason| told.insert(reason.clone()));
        if servers.is_empty() || self.servers.all().is_empty() {
            return Err(self.out_of_reach.first().cloned().unwrap_or_else(|| "Redis does not answer".to_owned()));
        }
        Ok(Survey { nodes, servers, out_of_reach: self.out_of_reach.clone() })
    }

    async fn nodes(&self) -> Vec<NodeFound> {
        let registered = registry(&self.servers).await.unwrap_or_default();
        let mut names: BTreeSet<NodeId> = registered.keys().map(|node| NodeId::from(node.as_str())).collect();
        for heard in all_of(self.servers.all().iter().map(|server| heard_at(&self.servers, server)).collect()).await {
            names.extend(heard.into_iter().flatten());
        }
        let names: Vec<NodeId> = names.into_iter().collect();
        let contracts = self.heard_contracts(&names).await;
        let asked = names.iter().zip(contracts).map(|(node, hears_contract)| {
            self.node(node, registered.get(node.as_str()).map(|entry| entry.incarnation), hears_contract)
        });
        all_of(asked.collect()).await
    }

    /// Whether each node's contract channel is heard, at whatever server.
    async fn heard_contracts(&self, names: &[NodeId]) -> Vec<Known<bool>> {
        if names.is_empty() {
            return Vec::new();
        }
        let channels: Vec<String> = names.iter().map(|node| keys::node_channel(node)).collect();
        let question = cmd("PUBSUB").arg("NUMSUB").arg(channels).take();
        let servers = self.servers.all();
        let answers =
            all_of(servers.iter().map(|server| self.servers.ask_server(server, question.clone())).collect()).await;
        let is_whole = self.servers.is_whole();
        let counts: Vec<Known<BTreeMap<String, u64>>> = answers.into_iter().map(subscribers).collect();
        let known = |node: &NodeId| {
            let channel = keys::node_channel(node);
            let mut heard =
                counts.iter().map(|counts| Some(counts.as_ref()?.get(&channel).is_some_and(|count| *count > 0)));
            if heard.clone().any(|heard| heard == Some(true)) {
                return Some(true);
            }
            // One that was not asked may be where it is heard.
            (is_whole && heard.all(|heard| heard.is_some())).then_some(false)
        };
        names.iter().map(known).collect()
    }

    async fn node(&self, node: &NodeId, registered: Option<Incarnation>, hears_contract: Known<bool>) -> NodeFound {
        let numsub = if self.servers.is_cluster() { "SHARDNUMSUB" } else { "NUMSUB" };
        let [lease, lives, link, lag, counter] =
            [keys::lease(node), keys::lives(node), keys::link(node), keys::lag(node), keys::node_connections(node)];
        let requests = vec![
            Request::of(&lease, cmd("GET").arg(&lease).take()),
            Request::of(&lease, cmd("PTTL").arg(&lease).take()),
            Request::of(&lives, cmd("SMEMBERS").arg(&lives).take()),
            Request::of(&lag, cmd("GET").arg(&lag).take()),
            Request::of(&counter, cmd("GET").arg(&counter).take()),
            Request::of(&link, cmd("PUBSUB").arg(numsub).arg(&link).take()),
        ];
        let mut answers = self.servers.ask_all(requests).await.into_iter();
        let mut next = || answers.next().flatten();
        let (holder, left, lives, lag, connections) =
            (answered(next()), answered(next()), answered(next()), answered(next()), answered(next()));
        let hears_link = subscribers(next()).map(|counts| counts.values().any(|count| *count > 0));
        let lease = holder.zip(left).map(|(held, left)| {
            Some(Lease { incarnation: self::holder(&held)?, left: Duration::from_millis(number(&left)?) })
        });
        let mut on_record: Known<BTreeSet<Incarnation>> = lives.map(|lives| members(&lives));
        if let Some(lives) = &mut on_record {
            lives.extend(registered);
            lives.extend(lease.flatten().map(|lease| lease.incarnation));
        }
        let lives = match on_record {
            Some(lives) => Some(all_of(lives.into_iter().map(|life| self.life(node, life)).collect()).await),
            None => None,
        };
        NodeFound {
            node: node.clone(),
            registered,
            lease,
            lives,
            connections: connections.map(|value| number(&value)),
            lag: lag.map(|value| number(&value).map(Duration::from_micros)),
            hears_contract,
            hears_link,
        }
    }

    async fn life(&self, node: &str, incarnation: Incarnation) -> LifeFound {
        let dead = keys::dead(node, incarnation);
        let count = |bucket| {
            let key = self.tags.bucket(node, incarnation, bucket);
            Request::of(&key, cmd("HLEN").arg(&key).take())
        };
        let declared = Request::of(&dead, cmd("EXISTS").arg(&dead).take());
        let requests = [declared].into_iter().chain((0..keys::BUCKETS).map(count));
        let mut answers = self.servers.ask_all(requests.collect()).await.into_iter().map(answered);
        let is_declared_dead = answers.next().flatten().as_ref().and_then(number).map(|there| there > 0);
        let users = answers.map(|answer| answer.as_ref().and_then(number)).sum();
        LifeFound { incarnation, is_declared_dead, users }
    }
}

impl Listener {
    async fn new(servers: &Servers, server: &Rc<Server>, channel: String) -> Result<Listener, Reason> {
        let (sender, heard) = unbounded_channel();
        let push = move |info: PushInfo| {
            if matches!(info.kind, PushKind::Message | PushKind::SMessage)
                && let Some(Value::BulkString(bytes)) = info.data.into_iter().nth(1)
            {
                // With the look over nobody minds.
                let _ = sender.send(bytes);
            }
        };
        let mut subscriber = servers.opener().open(&server.address, push).await?;
        let (subscribe, publish) = match servers.is_cluster() {
            true => ("SSUBSCRIBE", "SPUBLISH"),
            false => ("SUBSCRIBE", "PUBLISH"),
        };
        let answer = subscriber.send_packed_command(cmd(subscribe).arg(&channel)).await.and_then(Value::extract_error);
        answer.map_err(|error| servers.opener().reason(&server.address, &error))?;
        Ok(Listener { server: Rc::clone(server), channel, publish, next: 0, heard, _subscriber: subscriber })
    }

    /// How long messages take from us through the server to us, sorted.
    async fn probe(&mut self, opener: &Opener) -> Result<Vec<Duration>, Reason> {
        let mut round_trips = Vec::with_capacity(PROBES);
        for _ in 0..PROBES {
            let start = Instant::now();
            let took = timeout(ANSWER_MAX, self.send_and_hear(opener)).await;
            took.unwrap_or_else(|_| Err(silent(&self.server.address)))?;
            round_trips.push(start.elapsed());
        }
        round_trips.sort_unstable();
        Ok(round_trips)
    }

    async fn send_and_hear(&mut self, opener: &Opener) -> Result<(), Reason> {
        let probe = self.next.to_le_bytes();
        self.next += 1;
        let command = cmd(self.publish).arg(&self.channel).arg(&probe).take();
        let published = self.server.publishing.clone().send_packed_command(&command).await;
        published.and_then(Value::extract_error).map_err(|error| opener.reason(&self.server.address, &error))?;
        while self.heard.recv().await.ok_or_else(|| silent(&self.server.address))? != probe {}
        Ok(())
    }
}

/// What was answered; `None` also when that was a refusal.
fn answered(answer: Answer) -> Option<Value> {
    answer?.ok()
}

/// The answer to `NUMSUB`: channel, subscribers, channel, subscribers, ….
fn subscribers(answer: Answer) -> Known<BTreeMap<String, u64>> {
    match answered(answer)? {
        Value::Array(parts) => {
            Some(parts.chunks_exact(2).filter_map(|pair| Some((string(&pair[0])?, number(&pair[1])?))).collect())
        }
        _ => None,
    }
}

/// The numbers in a set.
fn members(set: &Value) -> BTreeSet<Incarnation> {
    match set {
        Value::Set(members) | Value::Array(members) => members.iter().filter_map(number).collect(),
        _ => BTreeSet::new(),
    }
}
