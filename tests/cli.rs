//! Goal: what the command line promises holds for the built program: its help is complete, its settings have one
//! precedence, its errors name their origin, and its exit codes are the documented ones.
//! Method: run the binary with an environment of which every variable that it reads was removed.

use std::path::Path;
use std::process::{Command, Output};

use ringmesh::config::{ConfigFile, Machine, SETTINGS, Sources, resolve};

const EXAMPLE: &str = include_str!("../tuning/ringmesh.toml");

fn ringmesh(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmesh"));
    command.args(arguments);
    clear_environment(&mut command);
    command
}

fn clear_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let read_by_us = ["NODE_ID", "REDIS_HOST", "REDIS_PORT"].iter().any(|other| name == *other);
        if read_by_us || name.to_string_lossy().starts_with("RINGMESH_") {
            command.env_remove(name);
        }
    }
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program can be run")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("output is UTF-8")
}

/// The value and the origin that `ringmesh config` prints for a setting.
fn in_force(command: &mut Command, key: &str) -> (String, String) {
    let output = run(command);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix("= "));
    let (value, origin) = line.and_then(|line| line.split_once("  # ")).expect("each setting has a line");
    (value.trim_end().to_owned(), origin.to_owned())
}

/// Runs a command line that must be refused, and returns what it says.
fn refusal(command: &mut Command) -> String {
    let output = run(command);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    stderr(&output)
}

fn write(folder: &Path, text: &str) -> String {
    let path = folder.join("gateway.toml");
    std::fs::write(&path, text).expect("the temporary folder can be written");
    path.to_str().expect("its name is UTF-8").to_owned()
}

#[test]
fn the_help_names_every_flag_with_its_default_and_variable() {
    for verb in ["serve", "config", "preflight", "doctor", "cluster"] {
        let output = run(&mut ringmesh(&[verb, "--help"]));
        assert_eq!(output.status.code(), Some(0));
        let help = stdout(&output);
        for setting in SETTINGS {
            // What may stand without a value has brackets around it.
            let flag = format!("--{}", setting.flag());
            let is_named = [" <", "[=<", " [<"].iter().any(|begins| help.contains(&format!("{flag}{begins}")));
            assert!(is_named, "{verb} --help lacks {}", setting.key);
            assert!(help.contains(&format!("[env: {}]", setting.variable())), "{verb} --help lacks {}", setting.key);
            assert!(help.contains(&format!("[default: {}", setting.default)), "{verb} --help lacks {}", setting.key);
        }
        assert!(help.contains("--config <FILE>") && help.contains("RINGMESH_CONFIG"), "{help}");
        assert!(help.contains("Exit codes:"), "{help}");
    }
}

#[test]
fn version_and_help_are_no_errors_and_an_empty_line_is_one() {
    let version = run(&mut ringmesh(&["--version"]));
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(stdout(&version), format!("ringmesh {}\n", env!("CARGO_PKG_VERSION")));
    let help = run(&mut ringmesh(&["help"]));
    assert_eq!(help.status.code(), Some(0));
    for verb in ["serve", "config", "preflight", "doctor", "cluster", "top"] {
        assert!(stdout(&help).contains(verb), "{}", stdout(&help));
    }
    assert!(refusal(&mut ringmesh(&[])).contains("Usage: ringmesh"));
}

#[test]
fn what_config_prints_can_be_given_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags =
        ["config", "--shards", "3", "--redis", "redis://h:1/2", "--ping-interval", "1500ms", "--admin-listen", "off"];
    let first = stdout(&run(&mut ringmesh(&flags)));
    let path = write(folder.path(), &first);
    let second = stdout(&run(&mut ringmesh(&["config", "--config", &path])));
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  #").next().unwrap_or(line).trim_end().to_owned()).collect()
    };
    assert_eq!(values(&first), values(&second));
    assert_eq!(first.lines().filter(|line| line.contains(" = ")).count(), SETTINGS.len());
    // Fed back, every value has a line of the file as its origin, and it is the line that it stands on.
    for (number, line) in second.lines().enumerate().filter(|(_, line)| line.contains(" = ")) {
        assert!(line.ends_with(&format!("{path}:{}", number + 1)), "{line}");
    }
}

#[test]
fn flag_before_environment_before_file_before_default() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), "# ours\nclose_timeout = \"7s\"\n");
    let of = |command: &mut Command| in_force(command, "close_timeout");
    let both = |value: &str, origin: &str| (format!("\"{value}\""), origin.to_owned());
    assert_eq!(of(&mut ringmesh(&["config"])), both("5s", "default"));
    assert_eq!(of(&mut ringmesh(&["config", "--config", &path])), both("7s", &format!("{path}:2")));
    assert_eq!(of(ringmesh(&["config"]).env("RINGMESH_CONFIG", &path)), both("7s", &format!("{path}:2")));
    let variable = ("RINGMESH_CLOSE_TIMEOUT", "8s");
    assert_eq!(
        of(ringmesh(&["config", "--config", &path]).env(variable.0, variable.1)),
        both("8s", "environment RINGMESH_CLOSE_TIMEOUT")
    );
    assert_eq!(
        of(ringmesh(&["config", "--config", &path, "--close-timeout", "9s"]).env(variable.0, variable.1)),
        both("9s", "flag --close-timeout")
    );
}

#[test]
fn every_setting_is_read_from_its_flag_and_from_its_variable() {
    for setting in SETTINGS {
        // No format takes this text, so whoever reads it complains.
        let by_flag = refusal(&mut ringmesh(&["serve", &format!("--{}", setting.flag()), "<bad>"]));
        assert!(by_flag.contains(&format!("flag --{}: \"<bad>\" is not a value of", setting.flag())), "{by_flag}");
        let by_variable = refusal(ringmesh(&["serve"]).env(setting.variable(), "<bad>"));
        assert!(by_variable.contains(&format!("environment {}: \"<bad>\"", setting.variable())), "{by_variable}");
    }
}

#[test]
fn a_wrong_file_is_refused_with_its_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |text: &str| {
        let path = write(folder.path(), text);
        refusal(&mut ringmesh(&["serve", "--config", &path])).replace(&path, "FILE")
    };
    assert_eq!(
        refused("ping_intervall = 3\n"),
        "ringmesh: FILE:1: unknown key ping_intervall; did you mean ping_interval?\n"
    );
    assert!(
        refused("\n\nping_interval = \"30x\"\n")
            .starts_with("ringmesh: FILE:3: \"30x\" is not a value of ping_interval")
    );
    assert!(refused("shards = 1\nlisten 8080\n").starts_with("ringmesh: FILE:2: "));
    let missing = folder.path().join("missing.toml");
    let missing = missing.to_str().expect("its name is UTF-8");
    let told = refusal(&mut ringmesh(&["serve", "--config", missing]));
    assert!(told.starts_with(&format!("ringmesh: flag --config: cannot read {missing}: No such file")), "{told}");
    let told = refusal(ringmesh(&["serve"]).env("RINGMESH_CONFIG", missing));
    assert!(told.starts_with("ringmesh: environment RINGMESH_CONFIG: cannot read"), "{told}");
}

#[test]
fn bad_values_and_contradictions_are_usage_errors() {
    let told = refusal(&mut ringmesh(&["serve", "--ping-interval", "30x"]));
    assert!(told.contains("expected a duration such as 500ms, 30s, 2m or 1h"), "{told}");
    let told = refusal(&mut ringmesh(&["serve", "--ping-interval", "90s"]));
    assert!(told.contains("pong_timeout = 1m (default) must be longer than ping_interval = 90s"), "{told}");
    let told = refusal(ringmesh(&["serve"]).env("REDIS_PORT", "6379"));
    assert!(told.contains("REDIS_PORT is set without REDIS_HOST"), "{told}");
    let told = refusal(&mut ringmesh(&["serve", "--ping-intervall", "3"]));
    assert!(told.contains("'--ping-interval'"), "{told}");
    refusal(&mut ringmesh(&["fly"]));
}

#[test]
fn a_password_is_never_printed() {
    let secret = "redis://user:hunter2@h:6379";
    let (value, origin) = in_force(ringmesh(&["config"]).env("RINGMESH_REDIS", secret), "redis");
    assert_eq!((value.as_str(), origin.as_str()), ("\"redis://user:***@h:6379\"", "environment RINGMESH_REDIS"));
    let told = refusal(ringmesh(&["serve"]).env("RINGMESH_REDIS", "http://user:hunter2@h"));
    assert!(!told.contains("hunter2") && told.contains("user:***@h"), "{told}");
    // Fed back as printed it would log in with a wrong password, so it is refused where the reason is still known.
    let told = refusal(ringmesh(&["serve"]).env("RINGMESH_REDIS", "redis://user:***@h:6379"));
    assert!(told.contains("password itself where `ringmesh config` shows ***"), "{told}");
}

/// Runs the program where only 64 KiB may be locked: too little for any node to start.
fn with_little_memlock(arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 64 && exec \"$0\" \"$@\""]).arg(env!("CARGO_BIN_EXE_ringmesh")).args(arguments);
    clear_environment(&mut command);
    run(&mut command)
}

#[test]
fn a_host_that_lacks_memlock_is_told_so_by_preflight_and_by_serve() {
    let report = with_little_memlock(&["preflight"]);
    assert_eq!(report.status.code(), Some(1), "{}", stderr(&report));
    assert!(stdout(&report).contains("FATAL    memlock"), "{}", stdout(&report));
    let serve = with_little_memlock(&["serve"]);
    assert_eq!(serve.status.code(), Some(69), "{}", stderr(&serve));
    let told = stderr(&serve);
    assert!(told.contains("ringmesh: memlock: 64KiB; wanted: 512KiB or more: LimitMEMLOCK="), "{told}");
}

#[test]
fn logs_are_lines_or_json_and_heed_their_level() {
    // More shards than any host of these tests has cores: a warning, logged before the lack of memlock ends the run.
    let told = |flags: &[&str]| stderr(&with_little_memlock(&[&["serve", "--shards", "1024"], flags].concat()));
    let text = told(&[]);
    assert!(text.contains(" WARN ") && text.contains("wanted=\"1024 for the shards\""), "{text}");
    let json = told(&["--log-format", "json"]);
    let mut events = json.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let warning = events.find(|event| event["what"] == "cores").unwrap_or_else(|| panic!("no such event: {json}"));
    assert_eq!((&warning["level"], &warning["message"]), (&"WARN".into(), &"preflight".into()));
    assert!(!told(&["--log-level", "error"]).contains("for the shards"));
}

#[test]
fn the_example_file_holds_every_setting_with_its_default() {
    let machine = Machine { cores: 2, memory_bytes: 1 << 30, somaxconn: 128, host_name: Some("host".to_owned()) };
    let file = ConfigFile::parse("tuning/ringmesh.toml", EXAMPLE).unwrap_or_else(|problems| panic!("{problems:?}"));
    let example = resolve(&Sources { file: Some(file), ..Sources::default() }, &machine).expect("the example is right");
    let defaults = resolve(&Sources::default(), &machine).expect("the defaults are right");
    assert_eq!(example.config, defaults.config);
    for (setting, origin) in SETTINGS.iter().zip(&example.origins) {
        assert!(origin.to_string().starts_with("tuning/ringmesh.toml:"), "the example lacks {}", setting.key);
    }
}
