//! Goal: `ringmesh doctor` judges the settings it is given on the host it runs on: what keeps a node from starting is a
//! failure, what it will fall short by a warning, each with a remedy, and the exit code says which.
//!
//! Method: the binary, beside listeners and servers of the test's own; its JSON is looked at, since the host's own lacks
//! differ from machine to machine.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};

use serde_json::Value;
use support::Gateway;

/// Runs the doctor with ports that the kernel chooses, unless `flags` say otherwise.
fn doctor(flags: &[&str]) -> Output {
    let usual = [("--listen", "127.0.0.1:0"), ("--admin-listen", "127.0.0.1:0")];
    let usual = usual.iter().filter(|(flag, _)| !flags.contains(flag)).flat_map(|(flag, value)| [*flag, *value]);
    run(Command::new(env!("CARGO_BIN_EXE_ringmesh")).arg("doctor").args(usual).args(flags))
}

fn run(command: &mut Command) -> Output {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RINGMESH_") || text.starts_with("REDIS_") || text == "NODE_ID" {
            command.env_remove(&name);
        }
    }
    command.output().expect("the program can be run")
}

/// The report as JSON, after its exit code was compared with what it says.
fn examined(flags: &[&str]) -> Value {
    let output = doctor(&[flags, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("JSON, not {output:?}"));
    let code = match report["status"].as_str() {
        Some("ok") => 0,
        Some("warn") => 1,
        Some("fail") => 2,
        _ => panic!("{report}"),
    };
    assert_eq!(output.status.code(), Some(code), "{report}");
    report
}

fn finding(report: &Value, check: &str) -> Value {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check}: {report}")).clone()
}

/// Status, and all that is said about it.
fn judged(flags: &[&str], check: &str) -> (String, String) {
    let finding = finding(&examined(flags), check);
    let text = |key: &str| finding[key].as_str().expect("text").to_owned();
    (text("status"), format!("{}; {}; {}", text("found"), text("wanted"), text("remedy")))
}

#[test]
fn every_finding_has_a_status_and_every_lack_a_remedy() {
    let report = examined(&[]);
    let findings = report["findings"].as_array().expect("findings");
    assert!(findings.len() >= 15, "{report}");
    let mut worst = 0;
    for finding in findings {
        let status = ["ok", "warn", "fail"].iter().position(|status| finding["status"] == *status);
        let status = status.unwrap_or_else(|| panic!("{finding}"));
        worst = worst.max(status);
        for key in ["check", "found", "wanted"] {
            assert!(finding[key].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
        }
        assert_eq!(status == 0, finding["remedy"] == "", "{finding}");
    }
    assert_eq!(report["status"], ["ok", "warn", "fail"][worst]);
    for check in ["kernel", "io_uring", "memlock", "nofile", "rings", "cores", "memory", "backlog", "listen", "redis"] {
        finding(&report, check);
    }
}

#[test]
fn the_table_says_the_same_as_the_json() {
    let output = doctor(&[]);
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = |status: &str| table.lines().filter(|line| line.starts_with(status)).count();
    let findings = examined(&[])["findings"].as_array().map_or(0, Vec::len);
    assert_eq!(lines("ok  ") + lines("warn") + lines("fail"), findings, "{table}");
    assert_eq!(table.matches("remedy: ").count(), lines("warn") + lines("fail"), "{table}");
    assert!(table.contains(&format!("\n{findings} checks, ")) && !table.contains('\x1b'), "{table}");
}

#[test]
fn the_settings_that_are_given_are_what_is_judged() {
    let (status, said) = judged(&["--shards", "1024"], "cores");
    assert!(status == "warn" && said.contains("1024 for the shards") && said.contains("--shards "), "{said}");
    let (status, said) = judged(&["--connections-max", "10000000"], "memory");
    assert!(status == "warn" && said.contains("10000000 connections"), "{said}");
    let (status, said) = judged(&["--backlog", "16"], "listen_queue");
    assert!(status == "warn" && said.contains("16 for each of"), "{said}");
    let refused = doctor(&["--ping-interval", "30x"]);
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
}

#[test]
fn a_host_that_lacks_memlock_fails() {
    let command = format!(
        "ulimit -l 64 && exec {} doctor --listen 127.0.0.1:0 --admin-listen off",
        env!("CARGO_BIN_EXE_ringmesh")
    );
    let output = run(Command::new("sh").args(["-c", &command]));
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{table}");
    let lack: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("fail  memlock")).take(3).collect();
    assert!(lack.len() == 3 && lack[0].ends_with("64KiB"), "{table}");
    assert!(
        lack[1].trim().starts_with("wanted: 512KiB") && lack[2].trim().starts_with("remedy: LimitMEMLOCK="),
        "{table}"
    );
}

#[test]
fn a_port_that_another_program_holds_is_a_failure_that_names_it() {
    let held = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = held.local_addr().expect("an address").to_string();
    let (status, said) = judged(&["--listen", &addr], "listen");
    assert_eq!(status, "fail", "{said}");
    assert!(said.contains(&format!("(process {})", std::process::id())) && said.contains(&addr), "{said}");
    let (status, said) = judged(&["--admin-listen", &addr], "admin_listen");
    assert!(status == "fail" && said.contains("--admin-listen 127.0.0.1:PORT"), "{said}");
    drop(held);
    assert_eq!(judged(&["--listen", &addr], "listen").0, "ok");
}

#[test]
fn a_running_node_is_no_failure() {
    let gateway = Gateway::start();
    let report = examined(&["--listen", &gateway.addr.to_string(), "--admin-listen", &gateway.admin.to_string()]);
    for check in ["listen", "admin_listen"] {
        let finding = finding(&report, check);
        let names_it =
            finding["found"].as_str().is_some_and(|found| found.ends_with(&format!("(process {})", gateway.pid())));
        assert!(finding["status"] == "ok" && names_it, "{finding}");
    }
    gateway.client("alice").expect_pong();
}

#[test]
fn an_address_that_the_host_lacks_is_a_failure() {
    // RFC 5737: no host has it.
    let (status, said) = judged(&["--listen", "192.0.2.1:8080"], "listen");
    assert!(status == "fail" && said.contains("no interface of this host has that address"), "{said}");
}

/// A server that answers each connection with this line, whatever it is asked.
fn answering(line: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // Whoever asks reads what is answered, or has gone.
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(line.as_bytes());
        }
    });
    addr
}

#[test]
fn redis_is_asked_when_it_is_set() {
    assert!(judged(&[], "redis").1.contains("none set"));
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port");
    for (addr, status, says) in [
        (gone, "fail", "does not answer"),
        (answering("+PONG\r\n"), "ok", "answers in"),
        (answering("-NOAUTH Authentication required.\r\n"), "ok", "asks for a login"),
        (answering("-DENIED Redis is running in protected mode\r\n"), "fail", "refuses: DENIED"),
        (answering("HTTP/1.1 400 Bad Request\r\n"), "fail", "refuses: HTTP/1.1 400"),
    ] {
        let (found, said) = judged(&["--redis", &format!("redis://user:hunter2@{addr}")], "redis");
        assert!(found == status && said.contains(says) && said.contains(&addr.to_string()), "{found}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    let some = format!("redis+cluster://{gone},{}", answering("+PONG\r\n"));
    let (status, said) = judged(&["--redis", &some], "redis");
    assert!(status == "warn" && said.contains("does not answer") && said.contains("answers in"), "{said}");
}
