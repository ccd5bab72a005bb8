//! Servers beside each other: every round gives each one its turn, so that whatever else the machine does hits all alike.

use std::path::Path;

use crate::cli::PeersArgs;
use crate::compare::median;
use crate::machine;
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
}

const WORKLOADS: [Workload; 4] = [
    Workload { name: "ping-500x1", mode: "echo", ours: "echo -c 500 -i 1", plain: "echo -c 500 -i 1 --raw" },
    Workload { name: "ping-500x16", mode: "echo", ours: "echo -c 500 -i 16", plain: "echo -c 500 -i 16 --raw" },
    Workload { name: "fanout-1000", mode: "fanout", ours: "fanout -c 1000", plain: "fanout -c 1000 --raw" },
    Workload {
        name: "fanout-1000-burst32",
        mode: "fanout",
        ours: "fanout -c 1000 --burst 32",
        plain: "fanout -c 1000 --burst 32 --raw",
    },
];

/// A server: its name, its command, and whether it speaks the gateway's contract.
struct Peer {
    name: &'static str,
    command: String,
    ours: bool,
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
                let arguments = if peer.ours { workload.ours } else { workload.plain };
                let arguments = format!("{arguments} -d {}ms --quiet", args.duration.as_millis());
                let name = format!("{}/{}", workload.name, peer.name);
                let command = peer.command.replace("{mode}", workload.mode);
                let report = suite::measure_apart(&name, &arguments, &command)?;
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

fn peers(args: &PeersArgs) -> Result<Vec<Peer>, SuiteError> {
    let own = std::env::current_exe()?;
    let mut peers = vec![
        Peer { name: "ringmesh", command: args.server_cmd.clone(), ours: true },
        Peer {
            name: "control",
            command: format!("{} control --listen {{listen}} --mode {{mode}}", own.display()),
            ours: false,
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
    Ok(peers)
}

fn add(peers: &mut Vec<Peer>, name: &'static str, path: &Path, command: String) {
    if path.exists() {
        peers.push(Peer { name, command, ours: false });
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
            out += &format!(" {theirs:>14.0} {:>6.2}x", if own > 0.0 { theirs / own } else { 0.0 });
        }
    }
    out + "\n"
}
