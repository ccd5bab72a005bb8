//! Servers beside each other: every round gives each one its turn, so that whatever else the machine does hits all alike.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::PeersArgs;
use crate::compare::median;
use crate::machine;
use crate::nats::Echoes;
use crate::report::Report;
use crate::results::Results;
use crate::suite::{self, SuiteError};

/// A question that every server is asked.
struct Workload {
    name: &'static str,
    /// The word by which a peer's command is told what to do.
    mode: &'static str,
    /// The scenario for the gateway's contract.
    ours: &'static str,
    /// The same for servers that know frames only.
    plain: &'static str,
    /// The same for NATS: connections, and messages of each under way.
    nats: Option<(u32, u32)>,
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "ping-500x1",
        mode: "echo",
        ours: "echo -c 500 -i 1",
        plain: "echo -c 500 -i 1 --raw",
        nats: Some((500, 1)),
    },
    Workload {
        name: "ping-500x16",
        mode: "echo",
        ours: "echo -c 500 -i 16",
        plain: "echo -c 500 -i 16 --raw",
        nats: Some((500, 16)),
    },
    Workload { name: "fanout-1000", mode: "fanout", ours: "fanout -c 1000", plain: "fanout -c 1000 --raw", nats: None },
    Workload {
        name: "fanout-1000-burst32",
        mode: "fanout",
        ours: "fanout -c 1000 --burst 32",
        plain: "fanout -c 1000 --burst 32 --raw",
        nats: None,
    },
    // From accept to the answer of one question: connections for each server CPU-second.
    Workload {
        name: "storm-15000",
        mode: "echo",
        ours: "storm -c 15000 --concurrency 64",
        plain: "storm -c 15000 --concurrency 64 --raw",
        nats: None,
    },
];

/// What a server understands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaks {
    /// The gateway's contract.
    Contract,
    /// WebSocket frames, whatever is in them.
    Frames,
    /// The protocol of NATS.
    Nats,
}

/// A server.
struct Peer {
    name: &'static str,
    command: String,
    speaks: Speaks,
}

/// Measures all servers that are there.
///
/// # Errors
/// When one of them does not start, or does not answer.
pub fn run(args: &PeersArgs) -> Result<Results, SuiteError> {
    let peers: Vec<_> = peers(args)?
        .into_iter()
        .filter(|peer| args.only.is_empty() || args.only.iter().any(|only| only == peer.name))
        .collect();
    let mut results = Results { machine: machine::describe(), runs: Vec::new() };
    for round in 1..=args.rounds {
        for workload in &WORKLOADS {
            for peer in &peers {
                let Some(report) = measure(workload, peer, args.duration)? else { continue };
                let name = &report.name;
                println!(
                    "round {round}  {name:<36} {:>12.0} messages for each server CPU-second  {}",
                    report.server.as_ref().map_or(0.0, |server| server.messages_per_cpu_second),
                    report.verdict
                );
                results.runs.push(report);
            }
        }
    }
    print!("{}", table(&results, &peers));
    Ok(results)
}

/// Asks one server one question; `None` when it has no answer to it.
fn measure(workload: &Workload, peer: &Peer, duration: Duration) -> Result<Option<Report>, SuiteError> {
    let name = format!("{}/{}", workload.name, peer.name);
    let command = peer.command.replace("{mode}", workload.mode);
    let arguments = match peer.speaks {
        Speaks::Contract => workload.ours,
        Speaks::Frames => workload.plain,
        Speaks::Nats => {
            let Some((connections, inflight)) = workload.nats else { return Ok(None) };
            return suite::measure_nats(&name, Echoes { connections, inflight, duration }, &command).map(Some);
        }
    };
    let arguments = format!("{arguments} -d {}ms --quiet", duration.as_millis());
    suite::measure_apart(&name, &arguments, &command).map(Some)
}

fn peers(args: &PeersArgs) -> Result<Vec<Peer>, SuiteError> {
    let own = std::env::current_exe()?;
    let mut peers = vec![
        Peer { name: "ringmesh", command: args.server_cmd.clone(), speaks: Speaks::Contract },
        Peer {
            name: "control",
            command: format!("{} control --listen {{listen}} --mode {{mode}}", own.display()),
            speaks: Speaks::Frames,
        },
    ];
    for (name, program) in [
        ("uwebsockets", "uwebsockets"),
        ("fastwebsockets", "release/peer-fastwebsockets"),
        ("tokio-tungstenite", "release/peer-tungstenite"),
    ] {
        let path = args.peers.join(program);
        add(&mut peers, name, &path, format!("{} {{port}} {{mode}}", path.display()));
    }
    let script = args.peers.join("node/ws-server.cjs");
    add(&mut peers, "node-ws", &script, format!("node {} {{port}} {{mode}}", script.display()));
    // Debian installs it outside of the usual user's path.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    match folders.find_map(|folder| Some(folder.join("nats-server")).filter(|program| program.is_file())) {
        Some(program) => peers.push(Peer {
            name: "nats-server",
            command: format!("{} -a 127.0.0.1 -p {{port}} -l /dev/null", program.display()),
            speaks: Speaks::Nats,
        }),
        None => eprintln!("nats-server: not in the path (Debian's package nats-server has it)"),
    }
    Ok(peers)
}

fn add(peers: &mut Vec<Peer>, name: &'static str, path: &Path, command: String) {
    if path.exists() {
        peers.push(Peer { name, command, speaks: Speaks::Frames });
    } else {
        eprintln!("{name}: {} is not there (bench/peers/build.sh builds it)", path.display());
    }
}

/// Medians over the rounds, and how they stand to ours.
fn table(results: &Results, peers: &[Peer]) -> String {
    let mut out =
        format!("\n{}\nmessages for each server CPU-second, median; ratio to ours\n\n", results.machine.line());
    let value = |workload: &Workload, peer: &str| {
        let name = format!("{}/{peer}", workload.name);
        let runs = results.runs.iter().filter(|run| run.name == name);
        median(&runs.filter_map(|run| Some(run.server.as_ref()?.messages_per_cpu_second)).collect::<Vec<_>>())
    };
    out += &format!("{:<20}", "server");
    for workload in &WORKLOADS {
        out += &format!(" {:>22}", workload.name);
    }
    for peer in peers {
        out += &format!("\n{:<20}", peer.name);
        for workload in &WORKLOADS {
            let (own, theirs) = (value(workload, peers[0].name), value(workload, peer.name));
            if peer.speaks == Speaks::Nats && workload.nats.is_none() {
                out += &format!(" {:>22}", "-");
                continue;
            }
            out += &format!(" {theirs:>14.0} {:>6.2}x", if own > 0.0 { theirs / own } else { 0.0 });
        }
    }
    out + "\n"
}
