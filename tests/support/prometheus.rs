//! Prometheus' own programs: promtool, which checks files, and a server that scrapes a gateway.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;

use serde_json::Value;

use super::{DEADLINE_SLOW, eventually, http};

/// A program of Prometheus', from the PATH or from where tests/support/install-tools.sh puts it.
fn program(name: &str) -> PathBuf {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/usr/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain([PathBuf::from(unpacked)]);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    found.unwrap_or_else(|| panic!("{name} is needed: run `make test-tools`"))
}

/// Runs promtool in `folder`.
pub fn promtool(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let input_file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(input_file.path(), input).expect("it can be written");
    let input = fs::File::open(input_file.path()).expect("it can be read");
    let mut command = Command::new(program("promtool"));
    command.current_dir(folder).args(arguments).stdin(input).output().expect("promtool can be run")
}

/// A Prometheus server on a port of its own. Dropping it ends it.
pub struct Prometheus {
    child: Child,
    addr: SocketAddr,
    _data: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one with this configuration, in whose text paths are relative to `folder`.
    pub fn start(folder: &Path, config: &str) -> Prometheus {
        let data = tempfile::tempdir().expect("a temporary folder");
        let config_path = folder.join("prometheus.yml");
        fs::write(&config_path, config).expect("the configuration can be written");
        let mut child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", config_path.display()))
            .arg(format!("--storage.tsdb.path={}", data.path().display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus can be started");
        let log = BufReader::new(child.stderr.take().expect("its log is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut seen = Vec::new();
        let addr = loop {
            let line = lines.recv_timeout(DEADLINE_SLOW).unwrap_or_else(|_| panic!("it does not listen: {seen:#?}"));
            let addr = line.split_once("msg=\"Listening on\" address=").and_then(|(_, addr)| addr.trim().parse().ok());
            seen.push(line);
            if let Some(addr) = addr {
                break addr;
            }
        };
        // Whoever stops reading its log would stop it in the end.
        std::thread::spawn(move || lines.iter().for_each(drop));
        let ready = || (http::get(addr, "/-/ready").status == 200).then_some(());
        eventually("a Prometheus that is ready", DEADLINE_SLOW, ready);
        Prometheus { child, addr, _data: data }
    }

    /// `data` of what its API answers.
    pub fn api(&self, path: &str) -> Value {
        let response = http::get(self.addr, path);
        let is_chunked = response.header("transfer-encoding").is_some();
        let body = if is_chunked { joined(&response.body) } else { response.body };
        let parsed = serde_json::from_slice(&body);
        let mut answer: Value = parsed.unwrap_or_else(|_| panic!("{path}: {}", String::from_utf8_lossy(&body)));
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    /// What a query finds now.
    pub fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let mut data = self.api(&format!("/api/v1/query?query={encoded}"));
        match data["result"].take() {
            Value::Array(found) => found,
            other => panic!("{expression}: {other}"),
        }
    }
}

/// The chunks of a body as one (RFC 9112, 7.1): each has its length before it, in hexadecimal; the last is empty.
fn joined(body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    let mut rest = body;
    loop {
        let line = rest.windows(2).position(|pair| pair == b"\r\n").expect("a line with a length");
        let length = std::str::from_utf8(&rest[..line]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let length = length.expect("a length");
        if length == 0 {
            return whole;
        }
        let chunk = &rest[line + 2..];
        whole.extend_from_slice(&chunk[..length]);
        rest = &chunk[length + 2..];
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
