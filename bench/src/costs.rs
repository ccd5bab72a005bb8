//! What the bus asks of Redis, each thing by itself: CPU of Redis for an envelope, a registration, a renewal, and memory
//! for a user. The scripts are the node's own; commands go out in pipelines as large as the node's.
//!
//! Then the same with real nodes: what idle ones cost Redis, what it takes to enter all users of one, and to enter them
//! again when Redis has lost everything.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::CostsArgs;
use crate::cluster::Cluster;
use crate::launch;
use crate::machine;
use crate::proc;
use crate::redis::{Answer, Client, Redis, RedisError, encode};
use crate::suite::{SuiteError, scenario};

const SHARED_LUA: &str = include_str!("../../src/bus/scripts/shared.lua");
const USER_LUA: &str = include_str!("../../src/bus/scripts/user.lua");
const RUN_LUA: &str = include_str!("../../src/bus/scripts/run.lua");
const REGISTER_LUA: &str = include_str!("../../src/bus/scripts/register.lua");
const RENEW_LUA: &str = include_str!("../../src/bus/scripts/renew.lua");
const LOCATE_LUA: &str = include_str!("../../src/bus/scripts/locate.lua");
const UNREGISTER_LUA: &str = include_str!("../../src/bus/scripts/unregister.lua");

/// Users in one pipeline, as the node has them.
const CHUNK: u32 = 500;
/// Users in one call of a script that takes many, as the node has them.
const SCRIPT_USERS: u32 = 50;
/// Parts of a node's list of users.
const BUCKETS: u32 = 64;
/// How long a user is kept, in seconds.
const TTL_S: &str = "3600";
const NODE: &str = "node-1";
/// Bytes of one message in an envelope: what it says beside the user's name and the frame, a name of 9 bytes, and the
/// frame of a message with 32 bytes of content.
const MESSAGE_BYTES: usize = 16 + 9 + 82;
/// Bytes of an envelope's head.
const HEAD_BYTES: usize = 46;
/// Envelopes published for each figure; large ones less often.
const ENVELOPES: usize = 20_000;
const ENVELOPE_BYTES_ALL: usize = 256 << 20;
/// Envelopes of one pipeline, where the bus is busy.
const PIPELINED: usize = 16;
/// How long idle nodes are watched.
const IDLE_FOR: Duration = Duration::from_secs(10);
/// How long all users may take to be in the directory again.
const BACK_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Measures, and says what came out.
///
/// # Errors
/// When Redis or a node does not start, or does not answer as it should.
pub fn run(args: &CostsArgs) -> Result<(), SuiteError> {
    println!("{}\n", machine::describe().line());
    envelopes()?;
    directory(args.users)?;
    if !args.without_nodes {
        idle_nodes(args)?;
        whole_node(args)?;
    }
    Ok(())
}

/// CPU of Redis from one moment to another.
struct Meter<'a> {
    redis: &'a Redis,
    cpu_ns: u64,
    start: Instant,
}

impl<'a> Meter<'a> {
    fn start(redis: &'a Redis) -> Self {
        let cpu_ns = proc::sample_processes(&[redis.pid()]).cpu_ns;
        Self { redis, cpu_ns, start: Instant::now() }
    }

    fn cpu_seconds(&self) -> f64 {
        proc::sample_processes(&[self.redis.pid()]).cpu_ns.saturating_sub(self.cpu_ns) as f64 / 1e9
    }

    fn line(&self, what: &str, count: u32) {
        let (cpu, wall) = (self.cpu_seconds(), self.start.elapsed().as_secs_f64());
        let each_us = cpu / f64::from(count) * 1e6;
        println!("{what:<52} {each_us:>8.2} us each; {count} in {wall:.2} s with {cpu:.2} s of Redis' CPU");
    }
}

fn envelopes() -> Result<(), RedisError> {
    println!("one PUBLISH, CPU of Redis in us, and of it for a message; messages of {MESSAGE_BYTES} bytes");
    println!(
        "{:>20} {:>18} {:>24} {:>24}",
        "messages in each", "one by one", "16 together to one", "16 together to 16"
    );
    for messages in [1, 4, 16, 64, 256] {
        let bytes = HEAD_BYTES + messages * MESSAGE_BYTES;
        print!("{messages:>20}");
        for (pipelined, subscribers, width) in [(1, 1, 9), (PIPELINED, 1, 15), (PIPELINED, PIPELINED, 15)] {
            let us = publish(bytes, pipelined, subscribers)?;
            print!(" {us:>width$.2} {:>8.3}", us / messages as f64);
        }
        println!();
    }
    println!();
    Ok(())
}

/// The channel of a node's link.
fn link(node: usize) -> String {
    format!("rm2:{{n:node-{node}}}:link")
}

/// CPU of Redis for each PUBLISH of so many bytes, in microseconds: so many in one write, to the nodes in turn.
fn publish(bytes: usize, pipelined: usize, subscribers: usize) -> Result<f64, RedisError> {
    let redis = Redis::start()?;
    let mut readers = Vec::new();
    for node in 0..subscribers {
        let mut subscriber = redis.connect()?;
        subscriber.ask(&[b"SUBSCRIBE", link(node).as_bytes()])?;
        let stream = subscriber.into_stream();
        readers.push(thread::spawn(move || drain(stream)));
    }
    let mut client = redis.connect()?;
    let mut pipeline = Vec::new();
    for at in 0..pipelined {
        encode(&[b"PUBLISH", link(at % subscribers).as_bytes(), &vec![b'x'; bytes]], &mut pipeline);
    }
    let rounds = ENVELOPES.min(ENVELOPE_BYTES_ALL / bytes) / pipelined;
    let mut round = || -> Result<(), RedisError> {
        client.send(&pipeline)?;
        for _ in 0..pipelined {
            match client.answer()? {
                Answer::Integer(1) => {}
                other => return Err(RedisError::Answer(format!("{other:?}"), "PUBLISH".to_owned())),
            }
        }
        Ok(())
    };
    (0..rounds / 10).try_for_each(|_| round())?;
    let meter = Meter::start(&redis);
    (0..rounds).try_for_each(|_| round())?;
    let each_us = meter.cpu_seconds() * 1e6 / (rounds * pipelined) as f64;
    drop(redis);
    for reader in readers {
        // It ends with the connection.
        let _ = reader.join();
    }
    Ok(each_us)
}

/// Reads until the other side closes.
fn drain(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
}

/// The keys of a user, as long as the node's.
fn keys(user: u32) -> [String; 2] {
    [format!("user:node:bench-{user}"), format!("rm2:{{{:05}}}:loc:bench-{user}", user % 100_000)]
}

fn bucket(at: u32) -> String {
    format!("rm2:{{{at:05}}}:users:{NODE}:{INCARNATION}")
}

const INCARNATION: &str = "1764201600000000";
/// The run's marker, and the text for a new one.
const RUN: &str = "rm2:{nodes}:run";
const RUN_TEXT: &str = "0123456789abcdef-1";

struct Directory<'a> {
    redis: &'a Redis,
    client: Client,
    users: u32,
}

/// A script of the directory.
struct Script<'a> {
    hash: &'a str,
    /// Whether its first key is the run's marker.
    answers_run: bool,
    /// Users in one call.
    users: u32,
    /// Whether the node lists its users first.
    is_listed: bool,
    /// The arguments before those of the users.
    head: &'a [&'a str],
}

fn directory(users: u32) -> Result<(), RedisError> {
    let redis = Redis::start()?;
    let client = redis.connect()?;
    let mut directory = Directory { redis: &redis, client, users };
    println!("the directory, {users} users in pipelines of {CHUNK}, each with its place in a list of the node's users");
    let empty = directory.used_bytes()?;
    let register = directory.load(&[SHARED_LUA, USER_LUA, RUN_LUA, REGISTER_LUA])?;
    let renew = directory.load(&[SHARED_LUA, USER_LUA, RUN_LUA, RENEW_LUA])?;
    let locate = directory.load(&[SHARED_LUA, USER_LUA, RUN_LUA, LOCATE_LUA])?;
    let unregister = directory.load(&[SHARED_LUA, USER_LUA, UNREGISTER_LUA])?;
    let event = |event: &str, user| format!(r#"{{"event":"{event}","user_id":"bench-{user}","node_id":"{NODE}"}}"#);
    let each_is = |expected: i64| move |answer: &Answer| matches!(answer, Answer::Array(parts) if parts.iter().all(|part| *part == Answer::Integer(expected)));
    // Behind the marker of the run.
    let each_begins_with = |expected: i64| {
        let is_right = move |answer: &Answer| matches!(answer, Answer::Array(parts) if parts.first() == Some(&Answer::Integer(expected)));
        move |answer: &Answer| matches!(answer, Answer::Array(parts) if parts.iter().skip(2).all(is_right))
    };
    let life = || INCARNATION.to_owned();
    let op = || "7".to_owned();
    directory.all(
        "registration",
        &Script {
            hash: &register,
            answers_run: true,
            users: SCRIPT_USERS,
            is_listed: true,
            head: &[RUN_TEXT, NODE, TTL_S],
        },
        |user| vec![life(), op(), event("online", user)],
        each_begins_with(1),
    )?;
    let full = directory.used_bytes()?;
    let renewal = Script {
        hash: &renew,
        answers_run: true,
        users: SCRIPT_USERS,
        is_listed: true,
        head: &[RUN_TEXT, NODE, TTL_S, INCARNATION],
    };
    directory.all("renewal", &renewal, |_| vec![op()], each_begins_with(0))?;
    directory.all(
        "look-up",
        &Script { hash: &locate, answers_run: true, users: 1, is_listed: false, head: &[RUN_TEXT, "0"] },
        |_| vec![],
        |answer| matches!(answer, Answer::Array(parts) if parts.len() == 6),
    )?;
    directory.client.ask(&[b"FLUSHALL"])?;
    // Script caches survive it.
    directory.all("renewal of what Redis has lost", &renewal, |_| vec![op()], each_begins_with(1))?;
    directory.all(
        "removal",
        &Script {
            hash: &unregister,
            answers_run: false,
            users: SCRIPT_USERS,
            is_listed: false,
            head: &[NODE, TTL_S, "60000"],
        },
        |user| vec![life(), op(), "0".into(), event("offline", user)],
        each_is(1),
    )?;
    let per_user = |bytes: u64| bytes as f64 / f64::from(users);
    println!("memory of Redis a user: {:.0} bytes\n", per_user(full.saturating_sub(empty)));
    Ok(())
}

impl Directory<'_> {
    fn load(&mut self, parts: &[&str]) -> Result<String, RedisError> {
        match self.client.ask(&[b"SCRIPT", b"LOAD", parts.concat().as_bytes()])? {
            Answer::Bulk(hash) => Ok(String::from_utf8_lossy(&hash).into_owned()),
            other => Err(RedisError::Answer(format!("{other:?}"), "SCRIPT LOAD".to_owned())),
        }
    }

    /// Calls a script for all users; `arguments` are those of one user.
    fn all(
        &mut self,
        what: &str,
        script: &Script<'_>,
        arguments: impl Fn(u32) -> Vec<String>,
        is_right: impl Fn(&Answer) -> bool,
    ) -> Result<(), RedisError> {
        let meter = Meter::start(self.redis);
        for first in (0..self.users).step_by(CHUNK as usize) {
            let chunk = first..self.users.min(first + CHUNK);
            let mut pipeline = Vec::new();
            let mut lists = 0;
            if script.is_listed {
                for at in 0..BUCKETS {
                    let users: Vec<String> =
                        chunk.clone().filter(|user| user % BUCKETS == at).map(|user| format!("bench-{user}")).collect();
                    let key = bucket(at);
                    let mut command: Vec<&[u8]> = vec![b"HSET", key.as_bytes()];
                    users.iter().for_each(|user| command.extend([user.as_bytes(), b"7"]));
                    if !users.is_empty() {
                        encode(&command, &mut pipeline);
                        lists += 1;
                    }
                }
            }
            let mut calls = 0;
            for first in chunk.clone().step_by(script.users as usize) {
                let users = first..chunk.end.min(first + script.users);
                let run = script.answers_run.then(|| RUN.to_owned());
                let keys: Vec<String> = run.into_iter().chain(users.clone().flat_map(keys)).collect();
                let arguments: Vec<String> = users.flat_map(&arguments).collect();
                let count = keys.len().to_string();
                let mut command: Vec<&[u8]> = vec![b"EVALSHA", script.hash.as_bytes(), count.as_bytes()];
                command.extend(keys.iter().map(String::as_bytes));
                command.extend(script.head.iter().map(|argument| argument.as_bytes()));
                command.extend(arguments.iter().map(String::as_bytes));
                encode(&command, &mut pipeline);
                calls += 1;
            }
            self.client.send(&pipeline)?;
            for at in 0..lists + calls {
                let answer = self.client.answer()?;
                let is_expected = if at < lists { matches!(answer, Answer::Integer(_)) } else { is_right(&answer) };
                if !is_expected {
                    return Err(RedisError::Answer(format!("{answer:?}"), what.to_owned()));
                }
            }
        }
        meter.line(what, self.users);
        Ok(())
    }

    fn used_bytes(&mut self) -> Result<u64, RedisError> {
        used_bytes(&mut self.client)
    }
}

fn used_bytes(client: &mut Client) -> Result<u64, RedisError> {
    let answer = client.ask(&[b"INFO", b"memory"])?;
    let text = match &answer {
        Answer::Bulk(text) => String::from_utf8_lossy(text).into_owned(),
        _ => String::new(),
    };
    let used = text.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
    used.ok_or_else(|| RedisError::Answer(format!("{answer:?}"), "INFO memory".to_owned()))
}

/// What nodes without clients ask of Redis: leases, looks at each other, probes.
fn idle_nodes(args: &CostsArgs) -> Result<(), SuiteError> {
    let watch = |redis: &Redis| {
        let meter = Meter::start(redis);
        thread::sleep(IDLE_FOR);
        meter.cpu_seconds() / IDLE_FOR.as_secs_f64()
    };
    let alone = watch(&Redis::start()?);
    println!("idle nodes, CPU of Redis in us a second");
    println!("{:>6} {:>10.0}", "none", alone * 1e6);
    for nodes in [1, 2, 4, 8] {
        let cluster = Cluster::start(&args.server_cmd, nodes)?;
        let cpu = watch(&cluster.redis);
        println!("{nodes:>6} {:>10.0}; beyond none {:.0} a node", cpu * 1e6, (cpu - alone) * 1e6 / nodes as f64);
    }
    println!();
    Ok(())
}

/// All users of a real node, entered and entered again.
fn whole_node(args: &CostsArgs) -> Result<(), SuiteError> {
    let cluster = Cluster::start(&args.server_cmd, 1)?;
    let mut scenario = scenario("idle -d 1s --warmup 0s --connect-timeout 30s --drain 30s --quiet");
    let load = scenario.load_mut();
    load.connections = args.users;
    load.url = cluster.urls();
    let users = i64::from(args.users);
    println!("a real node with {users} users");
    let mut client = cluster.redis.connect()?;
    let before = used_bytes(&mut client)?;
    let entered = |client: &mut Client| -> Result<i64, RedisError> {
        match client.ask(&[b"DBSIZE"])? {
            Answer::Integer(keys) => Ok(keys / 2),
            other => Err(RedisError::Answer(format!("{other:?}"), "DBSIZE".to_owned())),
        }
    };
    let meter = Meter::start(&cluster.redis);
    let again = std::cell::RefCell::new(String::new());
    let gate = || {
        meter.line("users connect", args.users);
        let say = || -> Result<(), RedisError> {
            let full = used_bytes(&mut cluster.redis.connect()?)?;
            println!("memory of Redis a user: {:.0} bytes", full.saturating_sub(before) as f64 / users as f64);
            let mut client = cluster.redis.connect()?;
            client.ask(&[b"FLUSHALL"])?;
            let meter = Meter::start(&cluster.redis);
            while entered(&mut client)? < users {
                if meter.start.elapsed() > BACK_WITHIN {
                    let there = entered(&mut client)?;
                    return Err(RedisError::Answer(format!("{there} users after a minute"), "DBSIZE".to_owned()));
                }
                thread::sleep(LOOK_EVERY);
            }
            meter.line("entered again after FLUSHALL", args.users);
            Ok(())
        };
        if let Err(error) = say() {
            let _ = write!(again.borrow_mut(), "{error}");
        }
    };
    launch::outcome(&scenario, &gate).map_err(|error| SuiteError::Launch("idle".to_owned(), error))?;
    match again.into_inner() {
        text if text.is_empty() => Ok(()),
        text => Err(RedisError::Answer(text, "FLUSHALL".to_owned()).into()),
    }
}
