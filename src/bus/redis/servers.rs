//! Which server has a slot, and commands to it in pipelines. One server has all slots, or the masters of a cluster share
//! them.
//!
//! A command is sent again only where the server said that it was not done: the slot has moved, or the script is not
//! known. When a connection fails nobody knows, so the call fails, and the bus decides.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, PushInfo, PushKind, RedisError, ServerError, Value};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep, timeout};

use super::super::keys::{self, SLOTS};
use super::super::scripts::Scripts;
use super::open::{Address, Layout, Opener, Reason, at};

/// How long a pipeline may stay unanswered before its server counts as lost.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(3);

/// How long a command may be turned away by a cluster that is moving its slot, or replacing its master.
const TURNED_AWAY_MAX: Duration = Duration::from_secs(1);
const TURNED_AWAY_PAUSE: Duration = Duration::from_millis(30);

/// In the table of slots: nobody has it.
const NOBODY: u16 = u16::MAX;

/// A connection that was lost.
pub(super) struct Down {
    /// The server's number; `None` for the subscriber.
    pub server: Option<u32>,
    /// What to tell.
    pub reason: Reason,
}

/// A command and the slot of its keys.
pub(super) struct Request {
    pub slot: u16,
    pub command: Cmd,
}

impl Request {
    /// One whose keys are all in the slot of `key`.
    pub fn of(key: &str, command: Cmd) -> Request {
        Request { slot: keys::slot(key.as_bytes()), command }
    }
}

/// A server's answer; `None` when it is not known whether the command was done.
pub(super) type Answer = Option<Result<Value, ServerError>>;

/// One master.
pub(super) struct Server {
    pub id: u32,
    pub address: Address,
    pub publishing: MultiplexedConnection,
    commands: MultiplexedConnection,
    is_down: Cell<bool>,
    downs: UnboundedSender<Down>,
}

impl Server {
    async fn open(
        opener: &Opener,
        scripts: &Scripts,
        address: &Address,
        id: u32,
        downs: &UnboundedSender<Down>,
    ) -> Result<Server, Reason> {
        let push = || {
            let (downs, reason) = (downs.clone(), format!("Redis at {} closed the connection", at(address)));
            move |info: PushInfo| {
                if info.kind == PushKind::Disconnection {
                    // With the session over nobody minds.
                    let _ = downs.send(Down { server: Some(id), reason: reason.clone() });
                }
            }
        };
        let mut commands = opener.open(address, push()).await?;
        let ready = timeout(ANSWER_MAX, async {
            opener.check(address, &mut commands, true).await?;
            load(&mut commands, scripts).await.map_err(|error| opener.reason(address, &error))
        });
        ready.await.unwrap_or_else(|_| Err(silent(address)))?;
        let publishing = opener.open(address, push()).await?;
        let (address, downs) = (address.clone(), downs.clone());
        Ok(Server { id, address, publishing, commands, is_down: Cell::new(false), downs })
    }

    /// Whether its connections are known to be lost.
    pub fn is_down(&self) -> bool {
        self.is_down.get()
    }

    /// Marks it lost.
    pub fn set_down(&self, reason: Reason) {
        if !self.is_down.replace(true) {
            let _ = self.downs.send(Down { server: Some(self.id), reason });
        }
    }

    /// Sends commands and waits for their answers; `None` when it is lost, or does not answer.
    async fn ask(&self, pipeline: Pipeline) -> Option<Vec<Value>> {
        if self.is_down() {
            return None;
        }
        let mut commands = self.commands.clone();
        match timeout(ANSWER_MAX, commands.send_packed_commands(&pipeline, 0, pipeline.len())).await {
            Ok(Ok(values)) => Some(values),
            Ok(Err(error)) => {
                self.set_down(format!("Redis at {}: {error}", at(&self.address)));
                None
            }
            Err(_) => {
                self.set_down(silent(&self.address));
                None
            }
        }
    }
}

/// What is told of a server that is there and silent.
pub(super) fn silent(address: &Address) -> Reason {
    format!(
        "Redis at {} does not answer for {} s; is it stopped, or the network cut?",
        at(address),
        ANSWER_MAX.as_secs()
    )
}

async fn load(connection: &mut MultiplexedConnection, scripts: &Scripts) -> Result<(), RedisError> {
    let mut pipeline = Pipeline::new();
    scripts.load().for_each(|command| {
        pipeline.add_command(command);
    });
    if pipeline.is_empty() {
        return Ok(());
    }
    let answers = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await?;
    answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop))
}

/// What a server's refusal asks for.
enum Remedy {
    /// Its scripts are gone.
    LoadScripts,
    /// Ask again, when the slots were looked at again.
    LookAgain,
    /// It will not do it.
    None,
}

/// All masters.
pub(super) struct Servers {
    opener: Opener,
    scripts: Scripts,
    downs: UnboundedSender<Down>,
    masters: RefCell<Vec<Rc<Server>>>,
    /// Slot -> place in `masters`, or [`NOBODY`].
    slots: RefCell<Box<[u16]>>,
    next_id: Cell<u32>,
    is_looking: Cell<bool>,
    is_stale: Cell<bool>,
}

impl Servers {
    /// Connects to every master, which is given these scripts. Of a cluster some may be out of reach: answers why, too.
    pub async fn connect(
        opener: Opener,
        scripts: Scripts,
        downs: UnboundedSender<Down>,
    ) -> Result<(Servers, Vec<Reason>), Reason> {
        let servers = Servers {
            opener,
            scripts,
            downs,
            masters: RefCell::default(),
            slots: RefCell::new(vec![NOBODY; SLOTS].into_boxed_slice()),
            next_id: Cell::new(0),
            is_looking: Cell::new(false),
            is_stale: Cell::new(false),
        };
        let layout = servers.opener.layout(&[]).await?;
        let out_of_reach = servers.take_layout(layout).await;
        if servers.masters.borrow().is_empty() {
            return Err(out_of_reach.into_iter().next().unwrap_or_else(|| "Redis has no masters".to_owned()));
        }
        Ok((servers, out_of_reach))
    }

    /// Puts a layout in force; what is connected stays so. Answers why masters are out of reach.
    async fn take_layout(&self, layout: Layout) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut masters = Vec::with_capacity(layout.len());
        let mut slots = vec![NOBODY; SLOTS].into_boxed_slice();
        for (address, ranges) in layout {
            let known = self.masters.borrow().iter().find(|one| one.address == address && !one.is_down()).cloned();
            let master = match known {
                Some(master) => master,
                None => {
                    let id = self.next_id.replace(self.next_id.get() + 1);
                    match Server::open(&self.opener, &self.scripts, &address, id, &self.downs).await {
                        Ok(master) => Rc::new(master),
                        Err(reason) => {
                            reasons.push(reason);
                            continue;
                        }
                    }
                }
            };
            for (first, last) in ranges {
                if let Some(range) = slots.get_mut(usize::from(first)..=usize::from(last)) {
                    range.fill(masters.len() as u16);
                }
            }
            masters.push(master);
        }
        if !masters.is_empty() {
            *self.masters.borrow_mut() = masters;
            *self.slots.borrow_mut() = slots;
        }
        reasons
    }

    /// The server of a slot, if it is known and not lost.
    pub fn of_slot(&self, slot: u16) -> Option<Rc<Server>> {
        let place = self.slots.borrow()[usize::from(slot)];
        self.masters.borrow().get(usize::from(place)).filter(|server| !server.is_down()).cloned()
    }

    /// The masters that are not lost.
    pub fn all(&self) -> Vec<Rc<Server>> {
        self.masters.borrow().iter().filter(|server| !server.is_down()).cloned().collect()
    }

    /// Whether every slot has a server.
    pub fn is_whole(&self) -> bool {
        let masters = self.masters.borrow();
        let is_up: Vec<bool> = masters.iter().map(|master| !master.is_down()).collect();
        self.slots.borrow().iter().all(|place| is_up.get(usize::from(*place)) == Some(&true))
    }

    /// Whether a cluster's slots should be looked at again.
    pub fn is_stale(&self) -> bool {
        self.is_cluster() && (self.is_stale.get() || !self.is_whole())
    }

    /// Whether they are a cluster.
    pub fn is_cluster(&self) -> bool {
        self.opener.is_cluster()
    }

    /// What they are called by.
    pub fn opener(&self) -> &Opener {
        &self.opener
    }

    /// The scripts they know.
    pub fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    /// Marks a server lost by its number; `false` when it is none of them any more.
    pub fn mark_down(&self, id: u32) -> bool {
        let masters = self.masters.borrow();
        let server = masters.iter().find(|server| server.id == id);
        server.inspect(|server| server.is_down.set(true)).is_some()
    }

    /// One command.
    pub async fn ask(&self, slot: u16, command: Cmd) -> Answer {
        self.ask_all(vec![Request { slot, command }]).await.pop().flatten()
    }

    /// One command to a server, whatever its slots.
    pub async fn ask_server(&self, server: &Server, command: Cmd) -> Answer {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        Some(match server.ask(pipeline).await?.pop()? {
            Value::ServerError(error) => Err(error),
            value => Ok(value),
        })
    }

    /// Commands in one pipeline for each server, in order there; the answers in the order of the commands.
    pub async fn ask_all(&self, requests: Vec<Request>) -> Vec<Answer> {
        let mut answers: Vec<Answer> = requests.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..requests.len()).collect();
        let until = Instant::now() + TURNED_AWAY_MAX;
        while !open.is_empty() {
            let mut again = Vec::new();
            let mut must_look = false;
            let mut without_scripts = Vec::new();
            for (server, places, values) in self.ask_once(&requests, &open).await {
                for (place, value) in places.into_iter().zip(values) {
                    let Value::ServerError(error) = value else {
                        answers[place] = Some(Ok(value));
                        continue;
                    };
                    match self.remedy(&server, &error) {
                        Remedy::None => answers[place] = Some(Err(error)),
                        remedy => {
                            match remedy {
                                Remedy::LoadScripts => without_scripts.push(Rc::clone(&server)),
                                _ => must_look = true,
                            }
                            answers[place] = Some(Err(error));
                            again.push(place);
                        }
                    }
                }
            }
            if again.is_empty() || Instant::now() >= until {
                break;
            }
            without_scripts.dedup_by_key(|server| server.id);
            for server in without_scripts {
                if let Err(error) = load(&mut server.commands.clone(), &self.scripts).await {
                    server.set_down(self.opener.reason(&server.address, &error));
                }
            }
            if must_look {
                sleep(TURNED_AWAY_PAUSE).await;
                self.look_again().await;
            }
            // In their order, also when several servers turned some away.
            again.sort_unstable();
            open = again;
        }
        answers
    }

    /// Sends what is open, once; what has no server gets no answer.
    async fn ask_once(&self, requests: &[Request], open: &[usize]) -> Vec<(Rc<Server>, Vec<usize>, Vec<Value>)> {
        let mut groups: BTreeMap<u32, (Rc<Server>, Vec<usize>, Pipeline)> = BTreeMap::new();
        for place in open {
            let Some(server) = self.of_slot(requests[*place].slot) else { continue };
            let (_, places, pipeline) =
                groups.entry(server.id).or_insert_with(|| (server, Vec::new(), Pipeline::with_capacity(open.len())));
            places.push(*place);
            pipeline.add_command(requests[*place].command.clone());
        }
        let asked = groups.into_values().map(|(server, places, pipeline)| async move {
            let values = server.ask(pipeline).await.unwrap_or_default();
            (server, places, values)
        });
        all_of(asked.collect()).await
    }

    fn remedy(&self, server: &Server, error: &ServerError) -> Remedy {
        match error.code() {
            "NOSCRIPT" => Remedy::LoadScripts,
            "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" if self.is_cluster() => Remedy::LookAgain,
            _ => {
                self.heed(server, error);
                Remedy::None
            }
        }
    }

    /// Draws the consequence of a refusal that concerns the whole server.
    pub fn heed(&self, server: &Server, error: &ServerError) {
        match error.code() {
            // It became a replica, or we may not do what we must.
            "READONLY" | "NOPERM" | "NOAUTH" | "MASTERDOWN" | "LOADING" => {
                server.set_down(self.opener.reason(&server.address, &RedisError::from(error.clone())));
            }
            "MOVED" | "ASK" | "CLUSTERDOWN" => self.is_stale.set(true),
            code => tracing::debug!(code, %error, "Redis refused a command"),
        }
    }

    /// Reads a cluster's slots again. One at a time does it; the others have waited a moment, and look at what it found.
    pub async fn look_again(&self) {
        if !self.is_cluster() || self.is_looking.replace(true) {
            return;
        }
        let _looked = Looked(&self.is_looking);
        self.is_stale.set(false);
        let known: Vec<Address> = self.all().iter().map(|server| server.address.clone()).collect();
        if let Ok(layout) = self.opener.layout(&known).await {
            for reason in self.take_layout(layout).await {
                tracing::debug!(reason, "a master of the Redis Cluster is out of reach");
            }
        }
    }
}

/// Sets the mark back, also when the one who looks is cut off.
struct Looked<'a>(&'a Cell<bool>);

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Waits for all futures at once.
pub(super) async fn all_of<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut is_ready = true;
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *output = Some(value),
                    Poll::Pending => is_ready = false,
                }
            }
        }
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}
