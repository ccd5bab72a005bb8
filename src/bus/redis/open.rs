//! From a URL to connections: which servers there are, whether they are what we need, and what to do if not.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion, PushInfo,
    RedisConnectionInfo, RedisError, TlsCertificates, Value, cmd,
};

use crate::config::{RedisKind, RedisUrl};

use super::super::keys::SLOTS;
use super::NodeId;

/// How long a connection, with TLS and password, may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Redis 6 brought RESP3.
const MAJOR_MIN: u32 = 6;

/// What the README gives, too.
const ACL_LINE: &str = "ACL SETUSER ringmesh on >PASSWORD resetkeys ~user:node:* ~node:connections:* ~rm2:* resetchannels \
                        &node:* &user:events &rm2:* -@all +@read +@write +@pubsub +@scripting +@connection +time \
                        +cluster|slots -@dangerous +info";

/// A server: host and port.
pub(super) type Address = (String, u16);

/// Why there is no connection, for the log: what is wrong, and what to do.
pub(super) type Reason = String;

/// Masters, each with the slots that are its own.
pub(super) type Layout = Vec<(Address, Vec<(u16, u16)>)>;

/// Opens connections to the servers of one URL.
pub(super) struct Opener {
    url: RedisUrl,
    /// What `CLIENT LIST` calls us.
    name: String,
    /// The CA's certificates, if the URL names a file.
    ca: Option<Vec<u8>>,
}

impl Opener {
    pub fn new(url: RedisUrl, node: &NodeId) -> Result<Opener, Reason> {
        let ca = match url.ca_file() {
            Some(path) => Some(std::fs::read(path).map_err(|error| {
                format!("--redis names the CA file {}: {error}; give a PEM file that can be read", path.display())
            })?),
            None => None,
        };
        if url.has_tls() {
            // Another may have been installed; it will do.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Ok(Opener { url, name: format!("ringmesh-{node}"), ca })
    }

    /// Whether the servers are a cluster.
    pub fn is_cluster(&self) -> bool {
        self.url.kind() == RedisKind::Cluster
    }

    /// A connection; `push` gets what the server sends unasked.
    pub async fn open(
        &self,
        address: &Address,
        push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, Reason> {
        let connection = self.connect(address, self.url.password().is_some(), self.url.database(), push).await;
        let mut connection = connection.map_err(|error| self.reason(address, &error))?;
        // Only a help for who reads CLIENT LIST.
        let _ = connection.send_packed_command(cmd("CLIENT").arg("SETNAME").arg(&self.name)).await;
        Ok(connection)
    }

    async fn connect(
        &self,
        (host, port): &Address,
        with_password: bool,
        database: u16,
        push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, RedisError> {
        let address = match self.url.has_tls() {
            true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host.clone(), *port),
        };
        let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if with_password {
            settings = settings.set_password(self.url.password().unwrap_or_default());
            if let Some(user) = self.url.user() {
                settings = settings.set_username(user);
            }
        }
        settings = settings.set_db(database.into());
        let info = address
            .into_connection_info()?
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = match &self.ca {
            Some(ca) => {
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(ca.clone()) })?
            }
            None => Client::open(info)?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            // The session watches how old the oldest unanswered pipeline is.
            .set_response_timeout(None)
            .set_push_sender(move |info: PushInfo| -> Result<(), redis::aio::SendError> {
                push(info);
                Ok(())
            });
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// The masters as they are now, and their slots.
    ///
    /// Of a cluster the servers `known` to be up are asked first.
    pub async fn layout(&self, known: &[Address]) -> Result<Layout, Reason> {
        match self.url.kind() {
            RedisKind::Single => Ok(vec![(self.url.hosts()[0].clone(), vec![(0, SLOTS as u16 - 1)])]),
            RedisKind::Sentinel => Ok(vec![(self.ask_sentinels().await?, vec![(0, SLOTS as u16 - 1)])]),
            RedisKind::Cluster => self.ask_cluster(known).await,
        }
    }

    async fn ask_sentinels(&self) -> Result<Address, Reason> {
        let question = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(self.url.service()).take();
        let mut reasons = Vec::new();
        for sentinel in self.url.hosts() {
            match self.ask_sentinel(sentinel, &question).await {
                Ok(Value::Nil) => reasons.push(format!("{} knows no master {:?}", at(sentinel), self.url.service())),
                Ok(answer) => match address(&answer) {
                    Some(master) => return Ok(master),
                    None => reasons.push(format!("{} answers what no sentinel does", at(sentinel))),
                },
                Err(reason) => reasons.push(reason),
            }
        }
        Err(format!("no sentinel of --redis names a master: {}", reasons.join("; ")))
    }

    async fn ask_sentinel(&self, sentinel: &Address, question: &Cmd) -> Result<Value, Reason> {
        let ask = async |with_password| {
            // A sentinel has no databases.
            let mut connection = self.connect(sentinel, with_password, 0, |_| {}).await?;
            connection.send_packed_command(question).await.and_then(Value::extract_error)
        };
        let answer = tokio::time::timeout(CONNECT_MAX, async {
            match ask(false).await {
                // Sentinels often have no password where their servers have one.
                Err(error) if error.code() == Some("NOAUTH") && self.url.password().is_some() => ask(true).await,
                answer => answer,
            }
        });
        match answer.await {
            Ok(answer) => answer.map_err(|error| self.reason(sentinel, &error)),
            Err(_) => Err(format!("{} does not answer", at(sentinel))),
        }
    }

    async fn ask_cluster(&self, known: &[Address]) -> Result<Layout, Reason> {
        let mut reasons = Vec::new();
        for host in known.iter().chain(self.url.hosts()) {
            let answer = tokio::time::timeout(CONNECT_MAX, async {
                let mut connection = self.open(host, |_| {}).await?;
                self.check(host, &mut connection, false).await?;
                let answer = connection.send_packed_command(cmd("CLUSTER").arg("SLOTS")).await;
                answer.and_then(Value::extract_error).map_err(|error| self.reason(host, &error))
            });
            match answer.await {
                Ok(Ok(answer)) => {
                    let layout = cluster_slots(&answer, host);
                    if !layout.is_empty() {
                        return Ok(layout);
                    }
                    reasons.push(format!("{} knows of no slots", at(host)));
                }
                Ok(Err(reason)) => reasons.push(reason),
                Err(_) => reasons.push(format!("{} does not answer", at(host))),
            }
        }
        Err(format!("no server of --redis tells the cluster's slots: {}", reasons.join("; ")))
    }

    /// Whether a server is what the URL says, new enough, and a master if it must be one.
    pub async fn check(
        &self,
        address: &Address,
        connection: &mut MultiplexedConnection,
        must_be_master: bool,
    ) -> Result<(), Reason> {
        let answer = connection.send_packed_command(&cmd("HELLO")).await.and_then(Value::extract_error);
        let answer = answer.map_err(|error| self.reason(address, &error))?;
        let text = |name: &str| match &answer {
            Value::Map(fields) => {
                fields.iter().find(|(key, _)| key == &bulk(name)).and_then(|(_, value)| string(value))
            }
            _ => None,
        };
        let version = text("version").unwrap_or_default();
        if version.split('.').next().and_then(|major| major.parse().ok()).is_some_and(|major: u32| major < MAJOR_MIN) {
            return Err(too_old(address));
        }
        match (self.is_cluster(), text("mode").as_deref()) {
            (true, Some("standalone")) => {
                return Err(format!("Redis at {} is no cluster: use redis:// in --redis", at(address)));
            }
            (false, Some("cluster")) => {
                return Err(format!("Redis at {} is part of a cluster: use redis+cluster:// in --redis", at(address)));
            }
            (_, Some("sentinel")) => {
                return Err(format!("{} is a sentinel: use redis+sentinel://…/SERVICE in --redis", at(address)));
            }
            _ => {}
        }
        match text("role").as_deref() {
            Some("replica" | "slave") if must_be_master => Err(format!(
                "Redis at {} is a replica, which takes no writes: give --redis the master, or redis+sentinel://",
                at(address)
            )),
            _ => Ok(()),
        }
    }

    /// What an error means to who runs the node.
    pub fn reason(&self, address: &Address, error: &RedisError) -> Reason {
        let place = at(address);
        match (error.code(), error.kind()) {
            (Some("NOPERM"), _) => {
                format!("Redis at {place} forbids what a node needs ({error}); as its administrator: {ACL_LINE}")
            }
            (Some("NOAUTH" | "WRONGPASS"), _) | (_, ErrorKind::AuthenticationFailed) => format!(
                "Redis at {place} refuses the user or the password ({error}); --redis redis://USER:PASSWORD@HOST, or \
                 redis://:PASSWORD@HOST without a user"
            ),
            (Some("NOPROTO"), _) | (_, ErrorKind::RESP3NotSupported) => too_old(address),
            (_, ErrorKind::Io) if self.url.has_tls() && error.to_string().contains("certificate") => {
                format!("Redis at {place}: {error}; a CA of your own is named by ?ca=FILE at the end of --redis")
            }
            (_, ErrorKind::Io) => {
                format!("Redis at {place} is out of reach ({error}); is it running, and --redis right?")
            }
            _ => format!("Redis at {place} refuses: {error}"),
        }
    }
}

fn too_old(address: &Address) -> Reason {
    format!("Redis at {} speaks no RESP3: a node needs Redis {MAJOR_MIN} or newer, with a cluster 7", at(address))
}

/// An address as it is written.
pub(super) fn at((host, port): &Address) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

/// A text of an answer.
pub(super) fn string(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// A number of an answer.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        _ => None,
    }
}

/// `[host, port, …]`.
fn address(value: &Value) -> Option<Address> {
    match value {
        Value::Array(parts) => {
            let host = parts.first().map(|host| string(host).unwrap_or_default())?;
            let port = number(parts.get(1)?).and_then(|port| u16::try_from(port).ok())?;
            Some((host, port))
        }
        _ => None,
    }
}

/// The answer to `CLUSTER SLOTS`: `[[first, last, [host, port, …], replica…], …]`. A server that does not know its own
/// name says none: then it is the one that was asked.
fn cluster_slots(answer: &Value, asked: &Address) -> Layout {
    let mut layout: Layout = Vec::new();
    let Value::Array(ranges) = answer else { return layout };
    for range in ranges {
        let Value::Array(parts) = range else { continue };
        let slot = |at: usize| parts.get(at).and_then(number).and_then(|slot| u16::try_from(slot).ok());
        let (Some(first), Some(last), Some((mut host, port))) = (slot(0), slot(1), parts.get(2).and_then(address))
        else {
            continue;
        };
        if host.is_empty() || host == "?" {
            host.clone_from(&asked.0);
        }
        match layout.iter_mut().find(|(known, _)| *known == (host.clone(), port)) {
            Some((_, ranges)) => ranges.push((first, last)),
            None => layout.push(((host, port), vec![(first, last)])),
        }
    }
    layout
}
