//! Several machines: agents wait for a coordinator, which tells each its part, starts them together, and merges what they
//! saw. Histograms travel as buckets, so that nothing is averaged.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;

use clap::Parser as _;
use serde::{Deserialize, Serialize};

use crate::cli::{AgentArgs, Cli, Command, CoordinateArgs, Scenario};
use crate::launch::{self, LaunchError};
use crate::report::Report;
use crate::run::Outcome;
use crate::scenario::Pairs;

/// Why the machines did not come together.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The network.
    #[error("{0}: {1}")]
    Network(SocketAddr, io::Error),
    /// The other side speaks something else.
    #[error("{0}: {1}")]
    Format(SocketAddr, serde_json::Error),
    /// An agent could not do its part.
    #[error("agent {0}: {1}")]
    Part(SocketAddr, String),
    /// The words behind -- are no scenario.
    #[error("{0}")]
    Arguments(String),
    /// The scenario cannot be split over machines.
    #[error("{0} runs in one process: its messages cross between all connections")]
    NotDivisible(&'static str),
    /// The coordinator's own part.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// One line of the conversation, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// Coordinator: do this, with so many connections from this user on.
    Part { arguments: Vec<String>, connections: u32, users_from: u32, rate: Option<f64> },
    /// Agent: every connection has been tried.
    Connected,
    /// Coordinator: begin.
    Begin,
    /// Agent: that is what I saw.
    Done(Box<Outcome>),
    /// Agent: I could not.
    Failed(String),
}

/// Waits for coordinators, one after the other, until the process is killed.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve(args: &AgentArgs) -> Result<(), AgentError> {
    let network = |error| AgentError::Network(args.listen, error);
    let listener = TcpListener::bind(args.listen).map_err(network)?;
    println!("agent: listening on {}", listener.local_addr().map_err(network)?);
    for stream in listener.incoming() {
        let stream = stream.map_err(network)?;
        let peer = stream.peer_addr().map_err(network)?;
        // A coordinator that goes wrong is its own matter: the next one is waited for.
        if let Err(error) = take_part(stream, peer) {
            eprintln!("agent: {error}");
        }
    }
    Ok(())
}

fn take_part(stream: TcpStream, peer: SocketAddr) -> Result<(), AgentError> {
    let talk = Mutex::new(Talk::new(stream, peer)?);
    let locked = || talk.lock().expect("one thread at a time talks, and none of them panics");
    let Line::Part { arguments, connections, users_from, rate } = locked().hear()? else {
        return Err(AgentError::Part(peer, "it did not say what to do".to_owned()));
    };
    let mut scenario = parse(&arguments)?;
    let load = scenario.load_mut();
    (load.connections, load.users_from, load.rate) = (connections, users_from, rate);
    let gate = || {
        let mut talk = locked();
        // A coordinator that is gone shows when the result is handed over.
        let _ = talk.say(&Line::Connected).and_then(|()| talk.hear());
    };
    let line = match launch::outcome(&scenario, &gate) {
        Ok(outcome) => Line::Done(Box::new(outcome)),
        Err(error) => Line::Failed(error.to_string()),
    };
    locked().say(&line)
}

/// Runs the scenario on all agents, and merges what they saw.
///
/// # Errors
/// When an agent cannot be reached or cannot do its part.
pub fn coordinate(args: &CoordinateArgs) -> Result<Report, AgentError> {
    let scenario = parse(&args.scenario)?;
    if matches!(scenario, Scenario::Fanout { .. } | Scenario::Slow { .. } | Scenario::Mixed { .. }) {
        return Err(AgentError::NotDivisible(scenario.name()));
    }
    if matches!(&scenario, Scenario::Unicast { pairing, .. } if pairing.pairs != Pairs::Mixed) {
        let reason = "--pairs same and other need a generator that connects alone";
        return Err(AgentError::Arguments(reason.to_owned()));
    }
    let asked = launch::asked(&scenario)?;
    let load = scenario.load();
    let agents = args.agents.len() as u32;
    // Pairs of users stay together, so that sender and receiver share a clock.
    let cut = |agent: u32| if agent == agents { load.connections } else { (load.connections / agents * agent) & !1 };
    let mut talks = Vec::new();
    for (agent, address) in (0..).zip(&args.agents) {
        let stream = TcpStream::connect(address).map_err(|error| AgentError::Network(*address, error))?;
        let mut talk = Talk::new(stream, *address)?;
        talk.say(&Line::Part {
            arguments: args.scenario.clone(),
            connections: cut(agent + 1) - cut(agent),
            users_from: load.users_from + cut(agent),
            rate: load.rate.map(|rate| rate / f64::from(agents)),
        })?;
        talks.push(talk);
    }
    for talk in &mut talks {
        match talk.hear()? {
            Line::Connected => {}
            Line::Failed(reason) => return Err(AgentError::Part(talk.peer, reason)),
            other => return Err(AgentError::Part(talk.peer, format!("unexpected {other:?}"))),
        }
    }
    talks.iter_mut().try_for_each(|talk| talk.say(&Line::Begin))?;
    let mut merged: Option<Outcome> = None;
    for talk in &mut talks {
        match talk.hear()? {
            Line::Done(outcome) => match &mut merged {
                None => merged = Some(*outcome),
                Some(merged) => merged.merge(*outcome),
            },
            Line::Failed(reason) => return Err(AgentError::Part(talk.peer, reason)),
            other => return Err(AgentError::Part(talk.peer, format!("unexpected {other:?}"))),
        }
    }
    let merged = merged.ok_or_else(|| AgentError::Arguments("no agents".to_owned()))?;
    Ok(Report::new(&asked, merged))
}

/// The scenario that these words of a command line ask for.
///
/// # Errors
/// When they are something else.
pub fn parse(words: &[String]) -> Result<Scenario, AgentError> {
    let words = std::iter::once("ringmesh-bench".to_owned()).chain(words.iter().cloned());
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Scenario(scenario) }) => Ok(*scenario),
        Ok(_) => Err(AgentError::Arguments("only a scenario can be run here".to_owned())),
        Err(error) => Err(AgentError::Arguments(error.to_string())),
    }
}

struct Talk {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    peer: SocketAddr,
}

impl Talk {
    fn new(stream: TcpStream, peer: SocketAddr) -> Result<Self, AgentError> {
        let writer = stream.try_clone().map_err(|error| AgentError::Network(peer, error))?;
        Ok(Self { reader: BufReader::new(stream), writer, peer })
    }

    fn say(&mut self, line: &Line) -> Result<(), AgentError> {
        let mut text = serde_json::to_string(line).map_err(|error| AgentError::Format(self.peer, error))?;
        text.push('\n');
        self.writer.write_all(text.as_bytes()).map_err(|error| AgentError::Network(self.peer, error))
    }

    fn hear(&mut self) -> Result<Line, AgentError> {
        let mut text = String::new();
        self.reader.read_line(&mut text).map_err(|error| AgentError::Network(self.peer, error))?;
        serde_json::from_str(&text).map_err(|error| AgentError::Format(self.peer, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_takes_scenarios_only() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(parse(&words("echo -c 5")).is_ok());
        assert!(matches!(parse(&words("control")), Err(AgentError::Arguments(_))));
        assert!(matches!(parse(&words("--version")), Err(AgentError::Arguments(_))));
    }
}
