//! The suite of several nodes: two with a Redis between them, beside one with the same Redis and as many shards.
//!
//! All of it shares the machine's cores. The two nodes have one shard each, on cores of their own; the one node has a
//! shard on each of those cores. Redis and the generator go where they like. What is compared is CPU: of the nodes and
//! Redis together, for each message.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::SuiteArgs;
use crate::launch;
use crate::redis::Redis;
use crate::report::{BusUse, Report};
use crate::results::Results;
use crate::server::{Server, free_address};
use crate::suite::{SuiteError, scenario};
use crate::verdict::Outcome;
use crate::{machine, sys, table};

/// What is put behind a command that is a path and nothing else.
const NODE_ARGUMENTS: &str = "serve --listen {listen} --admin-listen {admin} --node-id {node} --redis {redis} \
                              --shards {shards} --connects-per-address-max 0 --log-level warn";
/// How long nodes may take to be ready, and to know each other.
const READY_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a node may take to answer over HTTP.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// What the name of a run on one node ends with.
const ONE_NODE: &str = "/one-node";
/// A message through two nodes may cost so many times what it costs on one, where that is asked for.
const RATIO_MAX: f64 = 1.1;

/// One line of the suite.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    /// The scenario and its arguments.
    arguments: &'static str,
    /// What must hold with two nodes.
    thresholds: &'static str,
    /// One node is asked the same.
    beside_one: bool,
    /// How often, the two taking turns.
    rounds: u32,
    /// Two may cost [`RATIO_MAX`] times what one does.
    is_ratio_asked: bool,
}

const fn unicast(name: &'static str, arguments: &'static str, thresholds: &'static str) -> Case {
    Case { name, arguments, thresholds, beside_one: true, rounds: 1, is_ratio_asked: false }
}

const fn open_loop(name: &'static str, arguments: &'static str) -> Case {
    Case { name, arguments, thresholds: "p99<5ms,errors=0", beside_one: false, rounds: 1, is_ratio_asked: false }
}

const fn broadcast(name: &'static str, arguments: &'static str) -> Case {
    Case { name, arguments, thresholds: "errors=0", beside_one: true, rounds: 3, is_ratio_asked: true }
}

const CASES: &[Case] = &[
    unicast("unicast-500x1", "unicast -c 500 -i 1 -d 10s", "per_cpu>=100k,errors=0"),
    unicast("unicast-500x16", "unicast -c 500 -i 16 -d 10s", "per_cpu>=500k,errors=0"),
    open_loop("unicast-rate5k", "unicast -c 1000 -r 5k -d 30s"),
    open_loop("unicast-rate500", "unicast -c 1000 -r 500 -d 30s"),
    broadcast("broadcast-1000", "fanout -c 1000 -d 4s"),
    broadcast("broadcast-5000", "fanout -c 5000 -d 4s"),
    broadcast("broadcast-1000-burst32", "fanout -c 1000 --burst 32 -d 4s"),
    broadcast("broadcast-5000-burst32", "fanout -c 5000 --burst 32 -d 4s"),
];

/// Runs the suite, prints each table and at last the verdicts.
///
/// # Errors
/// When Redis or a node does not start, or nobody answers.
pub fn run(args: &SuiteArgs) -> Result<Results, SuiteError> {
    let mut results = Results { machine: machine::describe(), runs: Vec::new() };
    for case in
        CASES.iter().filter(|case| args.only.is_empty() || args.only.iter().any(|only| case.name.contains(only)))
    {
        for _ in 0..args.repeat * case.rounds {
            results.runs.push(measure(case.name, case.arguments, case.thresholds, &args.server_cmd, 2)?);
            if case.beside_one && !args.without_control {
                let name = format!("{}{ONE_NODE}", case.name);
                results.runs.push(measure(&name, case.arguments, "", &args.server_cmd, 1)?);
            }
        }
        if case.is_ratio_asked {
            judge_ratio(&mut results, case.name);
        }
    }
    print!("{}", verdicts(&results));
    Ok(results)
}

fn measure(
    name: &str,
    arguments: &str,
    thresholds: &str,
    server_cmd: &str,
    nodes: usize,
) -> Result<Report, SuiteError> {
    let cluster = Cluster::start(server_cmd, nodes)?;
    let mut scenario = scenario(arguments);
    let load = scenario.load_mut();
    load.url = cluster.urls();
    load.server_pid = cluster.nodes.iter().map(|node| node.server.pid()).collect();
    load.redis_pid = vec![cluster.redis.pid()];
    load.name = Some(name.to_owned());
    thresholds.clone_into(&mut load.threshold);
    let mut report = launch::report(&scenario).map_err(|error| SuiteError::Launch(name.to_owned(), error))?;
    report.bus = Some(cluster.bus_use()?);
    println!("{}", table::render(&report));
    Ok(report)
}

/// Nodes and their Redis; the nodes end first.
pub struct Cluster {
    nodes: Vec<Node>,
    /// What is between them.
    pub redis: Redis,
}

struct Node {
    server: Server,
    admin: SocketAddr,
}

impl Cluster {
    /// Starts nodes on shares of the cores, and waits until they are ready and know each other.
    ///
    /// # Errors
    /// When Redis or a node does not start, or is not ready in time.
    pub fn start(server_cmd: &str, nodes: usize) -> Result<Self, SuiteError> {
        let redis = Redis::start()?;
        let cpus = sys::affinity()?;
        let bare = server_cmd.split_ascii_whitespace().count() == 1;
        let command = if bare { format!("{server_cmd} {NODE_ARGUMENTS}") } else { server_cmd.to_owned() };
        let share = cpus.len().div_ceil(nodes).max(1);
        let mut cluster = Self { nodes: Vec::new(), redis };
        for at in 0..nodes {
            let admin = free_address()?;
            let command = command
                .replace("{admin}", &admin.to_string())
                .replace("{node}", &format!("bench-{at}"))
                .replace("{redis}", &cluster.redis.url());
            // With more nodes than cores, they share.
            let own: Vec<usize> = cpus.iter().copied().cycle().skip(at * share).take(share).collect();
            let server = Server::start(&command, &own)?;
            cluster.nodes.push(Node { server, admin });
        }
        let deadline = Instant::now() + READY_WITHIN;
        for node in &cluster.nodes {
            while !node.knows(nodes) {
                if Instant::now() > deadline {
                    return Err(SuiteError::NotReady(node.server.address));
                }
                thread::sleep(LOOK_EVERY);
            }
        }
        Ok(cluster)
    }

    /// Where clients connect.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("ws://{}/ws", node.server.address)).collect()
    }

    /// What the nodes' metrics say, together.
    fn bus_use(&self) -> Result<BusUse, SuiteError> {
        let mut sum = BusUse::default();
        for node in &self.nodes {
            let page = fetch(node.admin, "/metrics").map_err(|error| SuiteError::Metrics(node.admin, error))?;
            sum.envelopes += value(&page, "ringmesh_bus_batch_messages_count");
            sum.messages += value(&page, "ringmesh_bus_batch_messages_sum");
            sum.resent += value(&page, "ringmesh_bus_resent_total");
            sum.overloaded += value(&page, "ringmesh_bus_overloaded_total");
        }
        Ok(sum)
    }
}

impl Node {
    /// Whether it takes clients, and knows of so many nodes.
    fn knows(&self, nodes: usize) -> bool {
        let is_ready = fetch(self.server.address, "/ready").is_ok_and(|page| page.starts_with("HTTP/1.1 200"));
        is_ready && fetch(self.admin, "/metrics").is_ok_and(|page| value(&page, "ringmesh_bus_nodes") == nodes as f64)
    }
}

fn fetch(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWERS_WITHIN)?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// A metric without labels; 0 when it is not there.
fn value(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
}

/// The median CPU of a message over the runs of that name, in microseconds.
fn cost_us(results: &Results, name: &str) -> Option<f64> {
    let runs = results.runs.iter().filter(|run| run.name == name);
    let mut costs: Vec<f64> = runs.filter_map(|run| Some(run.server.as_ref()?.cpu_us_per_message)).collect();
    costs.sort_by(f64::total_cmp);
    costs.get(costs.len() / 2).copied()
}

/// What a message costs through two nodes, over what it costs on one.
fn ratio(results: &Results, name: &str) -> Option<f64> {
    Some(cost_us(results, name)? / cost_us(results, &format!("{name}{ONE_NODE}"))?)
}

/// Has the last run of a case fail when two nodes cost too much.
fn judge_ratio(results: &mut Results, name: &str) {
    let Some(ratio) = ratio(results, name).filter(|ratio| *ratio > RATIO_MAX) else { return };
    if let Some(run) = results.runs.iter_mut().rev().find(|run| run.name == name) {
        run.verdict.outcome = run.verdict.outcome.max(Outcome::Fail);
        run.verdict.reasons.push(format!("{ratio:.2} times what one node costs, {RATIO_MAX} at most"));
    }
}

/// The table at the end.
fn verdicts(results: &Results) -> String {
    let mut out = format!("{}\n\n", results.machine.line());
    let heads = ["run", "messages/s", "nodes %", "Redis %", "per CPU-second", "us a message", "of one node", "p50 ms"];
    let [run, rate, nodes, redis, per_cpu, cost, of, p50] = heads;
    out += &format!(
        "{run:<32} {rate:>10} {nodes:>8} {redis:>8} {per_cpu:>15} {cost:>13} {of:>12} {p50:>8} {:>8} {:>9}  verdict\n",
        "p99 ms", "envelope"
    );
    for run in &results.runs {
        let part = |server: &Option<crate::report::Server>| server.as_ref().map_or(0.0, |server| server.cpu_percent);
        let (all, redis) = (part(&run.server), part(&run.redis));
        let of = ratio(results, &run.name).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let latency = |value: fn(&crate::stats::Summary) -> f64| {
            run.headline().map_or("-".to_owned(), |(_, latency)| format!("{:.3}", value(&latency) / 1e3))
        };
        let envelope = run.bus.filter(|bus| bus.envelopes > 0.0).map(|bus| bus.messages / bus.envelopes);
        out += &format!(
            "{:<32} {:>10.0} {:>8.1} {:>8.1} {:>15.0} {:>13.3} {of:>12} {:>8} {:>8} {:>9}  {}\n",
            run.name,
            run.messages_per_second,
            all - redis,
            redis,
            run.server.as_ref().map_or(0.0, |server| server.messages_per_cpu_second),
            run.server.as_ref().map_or(0.0, |server| server.cpu_us_per_message),
            latency(|latency| latency.p50_us),
            latency(|latency| latency.p99_us),
            envelope.map_or_else(String::new, |messages| format!("{messages:.1}")),
            run.verdict
        );
    }
    let worst = results.runs.iter().map(|run| run.verdict.outcome).max().unwrap_or_default();
    out + &format!("\n{} runs, verdict {worst:?}\n", results.runs.len()).to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Server, fixture};

    #[test]
    fn every_case_is_a_valid_command_with_a_name_of_its_own() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
        for case in CASES {
            let mut scenario = scenario(case.arguments);
            case.thresholds.clone_into(&mut scenario.load_mut().threshold);
            launch::asked(&scenario).expect("thresholds that can be read");
        }
    }

    #[test]
    fn two_nodes_that_cost_too_much_fail() {
        let run = |name: &str, cost_us: f64| {
            let mut run = fixture();
            name.clone_into(&mut run.name);
            run.server = Some(Server {
                cpu_seconds: 1.0,
                cpu_percent: 100.0,
                wait_percent: 0.0,
                messages_per_cpu_second: 1e6 / cost_us,
                cpu_us_per_message: cost_us,
            });
            run
        };
        let judged = |two: [f64; 3]| {
            let mut runs: Vec<_> = two.iter().map(|cost_us| run("a", *cost_us)).collect();
            runs.extend([run("a/one-node", 1.0), run("b", 9.0)]);
            let mut results = Results { machine: machine::describe(), runs };
            judge_ratio(&mut results, "a");
            results.runs[2].verdict.outcome
        };
        assert_eq!(judged([1.05, 3.0, 0.9]), Outcome::Pass, "the median counts");
        assert_eq!(judged([1.2, 3.0, 1.15]), Outcome::Fail);
    }

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let page = "# HELP a b\nringmesh_bus_nodes_x 7\nringmesh_bus_nodes 2\n";
        assert_eq!(value(page, "ringmesh_bus_nodes"), 2.0);
        assert_eq!(value(page, "ringmesh_bus"), 0.0);
    }
}
