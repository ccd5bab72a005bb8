//! Goal: a panic in the hub ends the process with exit code 70, and the log says where it was.
//! Method: this test program once more, as a child that runs a whole node; a message that only builds for tests know makes
//! it panic where the hub is called.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use super::PANICS_AT_THE_HUB;
use super::support::Client;
use crate::config::{self, Environment, LogFormat, Machine, Sources};
use crate::{logging, node};

/// Set for the child.
const IS_CHILD: &str = "TEST_IS_THE_NODE_THAT_PANICS";

#[test]
fn a_panic_in_the_hub_ends_the_process_with_70() {
    if std::env::var_os(IS_CHILD).is_some() {
        return run_node();
    }
    let name = "shard::tests::fatal::a_panic_in_the_hub_ends_the_process_with_70";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(IS_CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the node ended before it listened");
    }
    let addr = line.split_once("addr=").and_then(|(_, rest)| rest.split_whitespace().next());
    let addr: SocketAddr = addr.unwrap_or_else(|| panic!("no address in {line:?}")).parse().unwrap();
    let client = |user| Client::over(TcpStream::connect(addr).unwrap(), user);
    let (mut alice, mut mallory) = (client("alice"), client("mallory"));
    alice.expect_pong();
    mallory.send(PANICS_AT_THE_HUB);
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(70), "{rest}");
    assert!(rest.contains("panic: a test asked for this") && rest.contains("receive.rs"), "{rest}");
}

/// The child: what the program does.
fn run_node() {
    let words = ["ringmesh", "serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--shards", "1"];
    let invocation = config::parse_command_line(words.map(OsString::from)).unwrap();
    let sources = Sources::gather(&invocation, Environment::new([])).unwrap();
    let config = config::resolve(&sources, &Machine::read()).unwrap().config;
    logging::start("info", LogFormat::Text).unwrap();
    node::run(config).unwrap();
}
