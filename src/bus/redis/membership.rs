//! Calls about nodes: leases, the registry, who is there.

use std::collections::BTreeMap;

use redis::{Cmd, Value, cmd};

use super::super::call::{CAPABILITIES, Incarnation, LINK_VERSION, LeaseState, NodeId, Seen};
use super::super::keys::{self, is_node_id};
use super::super::scripts::Name;
use super::directory::array;
use super::open::{number, string};
use super::runs::{ASKED_MAX, Place};
use super::servers::{Request, Server, Servers};
use super::session::Rim;
use super::{Call, Reply};

/// How long a lease holds without a renewal; the counter of connections goes with it.
const LEASE_MS: u64 = 10_000;
/// How long it is remembered which incarnation was the last, and which were declared dead: a week.
const REMEMBERED_S: u64 = 7 * 24 * 3600;

/// Carries out a call about nodes; `None` when it failed.
pub(super) async fn run(rim: &Rim, call: Call) -> Option<Reply> {
    match call {
        Call::Acquire { after } => rim.acquire(after).await,
        Call::RenewLease { incarnation, connections, entered_run } => {
            rim.renew_lease(incarnation, connections, entered_run).await
        }
        Call::Release { incarnation } => rim.release(incarnation).await,
        Call::Look => rim.look().await,
        Call::DeclareDead { node, incarnation, again } => rim.declare_dead(&node, incarnation, again).await,
        // The others have their own ways.
        _ => None,
    }
}

impl Rim {
    /// Asks with a command whose keys are all in the slot of `key`.
    pub async fn ask(&self, key: &str, command: Cmd) -> Option<Value> {
        self.servers.ask(keys::slot(key.as_bytes()), command).await?.ok()
    }

    async fn acquire(&self, after: Incarnation) -> Option<Reply> {
        let lease = keys::lease(&self.node);
        let mut command =
            self.servers.scripts().call(Name::Acquire, &[&lease, &keys::last(&self.node), &keys::lives(&self.node)]);
        command.arg(&self.token).arg(LEASE_MS).arg(REMEMBERED_S).arg(after).arg(abilities());
        let parts = array(Some(Ok(self.ask(&lease, command).await?)))?;
        let incarnation = number(parts.get(1)?)?;
        if number(parts.first()?)? == 0 {
            return Some(Reply::Held { incarnation, lapses_ms: number(parts.get(2)?).unwrap_or(0) });
        }
        let earlier = parts[2..].iter().filter_map(number).collect();
        if !self.hear_link().await {
            return None;
        }
        Some(Reply::Acquired { incarnation, earlier })
    }

    /// Enters this node's life in the registry, whose users were all entered in that run, unless it has ended.
    async fn enrol(&self, incarnation: Incarnation, entered_run: u64) -> Option<()> {
        for _ in 0..ASKED_MAX {
            if self.runs.id() != entered_run {
                return Some(());
            }
            let marker = self.runs.marker(Place::Registry);
            let mut command = self.servers.scripts().call(Name::Enrol, &[keys::RUN, keys::REGISTRY]);
            command.arg(self.runs.new_text()).arg(self.node.as_str()).arg(incarnation);
            command.arg(marker.as_deref().unwrap_or_default()).arg(abilities());
            let parts = array(Some(Ok(self.ask(keys::REGISTRY, command).await?)))?;
            self.observe(Place::Registry, &parts)?;
            // Whoever did not know the marker has only learned it.
            if marker.is_some() {
                return Some(());
            }
        }
        Some(())
    }

    /// Strikes a life off the registry.
    pub async fn strike_off(&self, node: &str, incarnation: Incarnation) -> Option<()> {
        let mut command = self.servers.scripts().call(Name::StrikeOff, &[keys::REGISTRY]);
        command.arg(node).arg(incarnation);
        self.ask(keys::REGISTRY, command).await.map(drop)
    }

    async fn renew_lease(&self, incarnation: Incarnation, connections: u64, entered_run: Option<u64>) -> Option<Reply> {
        let lease = keys::lease(&self.node);
        let (last, lives, dead) =
            (keys::last(&self.node), keys::lives(&self.node), keys::dead(&self.node, incarnation));
        let mut command = self.servers.scripts().call(Name::RenewLease, &[&lease, &last, &lives, &dead]);
        command.arg(incarnation).arg(&self.token).arg(LEASE_MS).arg(REMEMBERED_S).arg(abilities());
        let state = match string(&self.ask(&lease, command).await?)?.as_str() {
            "ours" => LeaseState::Ours,
            "taken" => LeaseState::Taken,
            "dead" => LeaseState::Dead,
            _ => return None,
        };
        if state == LeaseState::Ours {
            let counter = keys::node_connections(&self.node);
            let count = cmd("SET").arg(&counter).arg(connections).arg("PX").arg(LEASE_MS).take();
            let mut numbers = vec![Request::of(&counter, count)];
            if let Some(lag) = self.take_slowest_probe() {
                let key = keys::lag(&self.node);
                let lag_us = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
                numbers.push(Request::of(&key, cmd("SET").arg(&key).arg(lag_us).arg("PX").arg(LEASE_MS).take()));
            }
            // The lease is what counts. The others are put right by the next renewal.
            self.servers.ask_all(numbers).await;
            if let Some(run) = entered_run {
                self.enrol(incarnation, run).await;
            }
        }
        Some(Reply::Lease(state))
    }

    async fn release(&self, incarnation: Incarnation) -> Option<Reply> {
        let is_empty = self.count_listed(&self.node, incarnation).await? == 0;
        let lease = keys::lease(&self.node);
        let mut command = self.servers.scripts().call(Name::Release, &[&lease, &keys::lives(&self.node)]);
        command.arg(incarnation).arg(&self.token).arg(u8::from(is_empty));
        self.ask(&lease, command).await?;
        // Whom this life has left in the directory, other nodes take off: they find it in the registry.
        if is_empty {
            self.strike_off(&self.node, incarnation).await?;
        }
        self.delete_numbers(&self.node).await?;
        Some(Reply::Done)
    }

    /// Users that a life has listed.
    pub async fn count_listed(&self, node: &str, incarnation: Incarnation) -> Option<u64> {
        let requests = (0..keys::BUCKETS).map(|bucket| {
            let key = self.tags.bucket(node, incarnation, bucket);
            Request::of(&key, cmd("HLEN").arg(&key).take())
        });
        let answers = self.servers.ask_all(requests.collect()).await;
        answers.into_iter().map(|answer| answer?.ok().as_ref().and_then(number)).sum()
    }

    /// Deletes a node's counter of connections and its lag, unless somebody has its lease: then they are of that life.
    pub async fn delete_numbers(&self, node: &str) -> Option<()> {
        let lease = keys::lease(node);
        if matches!(self.ask(&lease, cmd("GET").arg(&lease).take()).await?, Value::Nil) {
            let numbers = [keys::node_connections(node), keys::lag(node)];
            let requests = numbers.iter().map(|key| Request::of(key, cmd("DEL").arg(key).take()));
            for answer in self.servers.ask_all(requests.collect()).await {
                answer?.ok()?;
            }
        }
        Some(())
    }

    async fn look(&self) -> Option<Reply> {
        for _ in 0..ASKED_MAX {
            let asked_in = self.runs.id();
            let reply = self.look_once().await?;
            if self.runs.id() == asked_in {
                return Some(reply);
            }
        }
        None
    }

    async fn look_once(&self) -> Option<Reply> {
        let mut command = self.servers.scripts().call(Name::Look, &[keys::RUN, keys::REGISTRY]);
        command.arg(self.runs.new_text());
        let parts = array(Some(Ok(self.ask(keys::REGISTRY, command).await?)))?;
        let is_young = self.observe(Place::Registry, &parts)?;
        let marker = string(parts.first()?)?;
        let entries: BTreeMap<String, Entry> =
            parts[2..].chunks_exact(2).filter_map(|pair| entry(&pair[0], &pair[1])).collect();
        let requests = entries.keys().map(|node| {
            let key = keys::lease(node);
            Request::of(&key, cmd("GET").arg(&key).take())
        });
        let leases = self.servers.ask_all(requests.collect()).await;
        let mut nodes = Vec::with_capacity(entries.len());
        for ((node, entry), lease) in entries.iter().zip(leases) {
            // Not to know is no absence.
            let lease = lease?.ok()?;
            let &Entry { incarnation, version, capabilities, .. } = entry;
            let (has_lease, is_entered) = (holder(&lease) == Some(incarnation), entry.marker == marker);
            nodes.push(Seen { node: node.as_str().into(), incarnation, has_lease, is_entered, version, capabilities });
        }
        let mut foreign: Vec<NodeId> = Vec::new();
        for server in self.servers.all() {
            foreign.extend(heard_at(&self.servers, &server).await?);
        }
        foreign.retain(|node| !entries.contains_key(node.as_str()) && *node != self.node);
        foreign.sort_unstable();
        foreign.dedup();
        Some(Reply::Looked { nodes, foreign, run: self.runs.now(is_young) })
    }

    async fn declare_dead(&self, node: &str, incarnation: Incarnation, again: bool) -> Option<Reply> {
        let lease = keys::lease(node);
        let mut command = self.servers.scripts().call(Name::DeclareDead, &[&lease, &keys::dead(node, incarnation)]);
        command.arg(incarnation).arg(REMEMBERED_S).arg(u8::from(again));
        Some(Reply::Declared(number(&self.ask(&lease, command).await?)? == 1))
    }
}

/// What a node's lease and its entry in the registry say beside its life: the version of its links, and what it supports.
fn abilities() -> String {
    format!("{LINK_VERSION}:{CAPABILITIES}")
}

/// An entry of the registry.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub incarnation: Incarnation,
    /// Of the run in which all its users were entered.
    marker: String,
    /// 0 when it says none.
    version: u16,
    capabilities: u32,
}

/// `incarnation:marker:version:capabilities`; the marker has colons of its own.
fn entry(node: &Value, value: &Value) -> Option<(String, Entry)> {
    let (node, text) = (string(node).filter(|node| is_node_id(node))?, string(value)?);
    let (incarnation, rest) = text.split_once(':').unwrap_or((&text, ""));
    let mut parts = rest.rsplitn(3, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (capabilities, version, marker) = (next().parse().unwrap_or(0), next().parse().unwrap_or(0), next().to_owned());
    Some((node, Entry { incarnation: incarnation.parse().ok()?, marker, version, capabilities }))
}

/// The registry: the nodes of ours, and their lives.
pub(super) async fn registry(servers: &Servers) -> Option<BTreeMap<String, Entry>> {
    let question = cmd("HGETALL").arg(keys::REGISTRY).take();
    let entries = match servers.ask(keys::slot(keys::REGISTRY.as_bytes()), question).await?.ok()? {
        Value::Map(entries) => entries,
        _ => return None,
    };
    Some(entries.iter().filter_map(|(node, value)| entry(node, value)).collect())
}

/// The life that a lease is of.
pub(super) fn holder(lease: &Value) -> Option<Incarnation> {
    string(lease)?.split_once(':')?.0.parse().ok()
}

/// The nodes of any kind that hear their contract channel at this server.
pub(super) async fn heard_at(servers: &Servers, server: &Server) -> Option<Vec<NodeId>> {
    let pattern = format!("{}*", keys::NODE_CHANNEL_PREFIX);
    let question = cmd("PUBSUB").arg("CHANNELS").arg(pattern).take();
    let channels = array(servers.ask_server(server, question).await)?;
    Some(channels.iter().filter_map(string).filter_map(|name| keys::node_of_channel(&name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_which_life_which_run_and_what_its_links_speak() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let parsed = |value: &str| entry(&text("a"), &text(value)).map(|(_, entry)| entry);
        let marker = "1764201600000000:f00-1:abc";
        let entry = |marker: &str, version, capabilities| {
            Some(Entry { incarnation: 7, marker: marker.to_owned(), version, capabilities })
        };
        assert_eq!(parsed(&format!("7:{marker}:2:5")), entry(marker, 2, 5));
        assert_eq!(parsed("7"), entry("", 0, 0));
        assert_eq!(parsed("seven"), None);
    }
}
