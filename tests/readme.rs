//! Goal: the README does not go stale: its tables are those of the code, and its commands are understood.
//! Method: the tables are read out of the Markdown and compared with the code in both directions; the commands are given
//! to the built program. The commands of `ringmesh-bench` are looked at by that crate's own test of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use ringmesh::client::Disconnect;
use ringmesh::client::disconnect::Reconnect;
use ringmesh::config::SETTINGS;
use ringmesh::metrics::{BusMetrics, HostMetrics, NodeState, ShardMetrics, render, render_bus};

const README: &str = include_str!("../README.md");
const MAKEFILE: &str = include_str!("../Makefile");

/// The rows of the one table whose first column has this heading, each as its cells.
fn table(first_heading: &str) -> Vec<Vec<&'static str>> {
    let mut lines = README.lines().skip_while(|line| cells(line).first() != Some(&first_heading));
    let columns = cells(lines.next().unwrap_or_else(|| panic!("no table begins with {first_heading}"))).len();
    let rule = lines.next().expect("a heading is followed by a rule");
    assert!(rule.starts_with("|---"), "{first_heading}: {rule}");
    let rows: Vec<_> = lines.take_while(|line| line.starts_with('|')).map(cells).collect();
    for row in &rows {
        assert_eq!(row.len(), columns, "{row:?}");
    }
    rows
}

fn cells(line: &'static str) -> Vec<&'static str> {
    let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    inner.map_or_else(Vec::new, |line| line.split('|').map(str::trim).collect())
}

/// What stands in backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What stands in backticks outside of code blocks.
fn named_in_prose() -> impl Iterator<Item = &'static str> {
    README.split("```").step_by(2).flat_map(code_spans)
}

/// The lines of all code blocks marked `sh`, without their comments.
fn shell_lines() -> Vec<&'static str> {
    let mut in_shell = false;
    let mut found = Vec::new();
    for line in README.lines() {
        if let Some(language) = line.strip_prefix("```") {
            in_shell = language == "sh";
        } else if in_shell {
            found.push(line.split(" #").next().unwrap_or(line).trim());
        }
    }
    found
}

fn assert_same<T: Ord + std::fmt::Debug>(what: &str, documented: &BTreeSet<T>, real: &BTreeSet<T>) {
    let missing: Vec<_> = real.difference(documented).collect();
    let stale: Vec<_> = documented.difference(real).collect();
    assert!(missing.is_empty() && stale.is_empty(), "{what}: the README lacks {missing:?} and has, wrongly, {stale:?}");
}

#[test]
fn the_configuration_table_is_the_table_of_settings() {
    let documented = table("Flag").iter().map(|row| row[..4].iter().map(ToString::to_string).collect()).collect();
    let real = SETTINGS.iter().map(|setting| {
        let default = if setting.default.is_empty() { "\"\"" } else { setting.default };
        let names = [format!("--{}", setting.flag()), setting.variable(), setting.key.to_owned(), default.to_owned()];
        names.map(|name| format!("`{name}`")).to_vec()
    });
    assert_same("settings", &documented, &real.collect::<BTreeSet<Vec<String>>>());
    let order: Vec<&str> = table("Flag").iter().map(|row| row[2].trim_matches('`')).collect();
    assert!(order.iter().eq(SETTINGS.iter().map(|setting| &setting.key)), "in the order of the help: {order:?}");
}

#[test]
fn the_metrics_table_is_what_a_scrape_shows() {
    let text = render(&NodeState::default(), &[&ShardMetrics::default()], &HostMetrics::default())
        + &render_bus(&BusMetrics::default());
    let real: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let rows = table("Metric");
    let documented: BTreeSet<_> = rows.iter().map(|row| (row[0].trim_matches('`'), row[1])).collect();
    assert_eq!(documented.len(), rows.len(), "each metric has one row");
    assert_same("metrics", &documented, &real.clone().into_iter().collect());
    for row in rows {
        let name = row[0].trim_matches('`');
        let documented = code_spans(row[2]).map(str::to_owned).collect();
        assert_same(name, &documented, &labels(&text, name));
    }
}

/// The labels of a metric, and the values of those that are the same on every node.
fn labels(text: &str, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((sample, labels)) = line.split_once('{') else { continue };
        if sample != name && sample.strip_suffix("_bucket") != Some(name) {
            continue;
        }
        let labels = labels.split_once('}').expect("labels end").0;
        for label in labels.split(',') {
            let (label, value) = label.split_once('=').expect("a label has a value");
            found.insert(label.to_owned());
            if !["shard", "le", "node_id", "version"].contains(&label) {
                found.insert(value.trim_matches('"').to_owned());
            }
        }
    }
    found
}

/// All reasons to disconnect, one after the other. A new one does not compile here until it has its place.
fn next_disconnect(last: &Disconnect) -> Option<Disconnect> {
    match last {
        Disconnect::ProtocolError(_) => Some(Disconnect::InvalidText("")),
        Disconnect::InvalidText(_) => Some(Disconnect::MessageTooBig("")),
        Disconnect::MessageTooBig(_) => Some(Disconnect::InternalError),
        Disconnect::InternalError => Some(Disconnect::NodeStopping),
        Disconnect::NodeStopping => Some(Disconnect::MissingUserId),
        Disconnect::MissingUserId => Some(Disconnect::TooSlow),
        Disconnect::TooSlow => Some(Disconnect::RateLimited),
        Disconnect::RateLimited => Some(Disconnect::SilentTooLong),
        Disconnect::SilentTooLong => None,
    }
}

#[test]
fn the_registry_of_close_codes_is_the_codes() {
    let all = std::iter::successors(Some(Disconnect::ProtocolError("")), next_disconnect);
    let real: BTreeSet<_> = all
        .map(|why| {
            let reconnect = match why.reconnect() {
                Reconnect::Yes => "yes",
                Reconnect::No => "no",
            };
            (why.code().to_string(), reconnect.to_owned(), why.reason().to_owned())
        })
        .collect();
    let documented = table("Code").into_iter().map(|row| {
        // Where the reason says what was wrong with the bytes, it is not always the same.
        let varies = real.iter().any(|(code, _, reason)| code == row[0] && reason.is_empty());
        let reason = if varies { "" } else { row[1].trim_matches('`') };
        (row[0].to_owned(), row[3].to_owned(), reason.to_owned())
    });
    assert_same("close codes", &documented.collect(), &real);
}

#[test]
fn every_make_target_is_named_and_every_named_target_exists() {
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let real: BTreeSet<&str> = MAKEFILE
        .lines()
        .filter_map(|line| line.split_once(':').filter(|(name, rest)| is_name(name) && rest.contains("## ")))
        .map(|(name, _)| name)
        .collect();
    assert!(real.contains("help"), "{real:?}");
    let in_table: BTreeSet<&str> = table("Target").iter().filter_map(|row| row[0].strip_prefix("`make ")).collect();
    assert_same("make targets", &in_table.iter().map(|name| name.trim_end_matches('`')).collect(), &real);
    let commands = named_in_prose().chain(shell_lines());
    for command in commands.filter(|command| command.starts_with("make ")) {
        let target = command.split_whitespace().nth(1).expect("a target");
        assert!(real.contains(target), "{command}");
    }
}

#[test]
fn every_command_of_the_gateway_is_understood() {
    let mut seen = 0;
    for line in shell_lines() {
        let Some((_, arguments)) = line.split_once("target/release/ringmesh ") else { continue };
        let arguments: Vec<&str> = arguments.split_whitespace().take_while(|word| *word != "&").collect();
        // Installing it is no command of its own.
        if arguments[0].starts_with('/') {
            continue;
        }
        seen += 1;
        if arguments[0] == "top" {
            assert_flags_of_top(&arguments[1..]);
            continue;
        }
        // `config` takes the flags of every other verb, and refuses values that these would refuse.
        let output = Command::new(env!("CARGO_BIN_EXE_ringmesh"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .arg("config")
            .args(arguments[1..].iter().filter(|argument| !["--json", "--watch"].contains(argument)))
            .output()
            .expect("the program can be run");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(["serve", "config", "preflight", "doctor", "cluster"].contains(&arguments[0]), "{line}");
    }
    assert!(seen >= 4, "{seen} commands: are they still found?");
}

/// It looks at a node instead of taking settings, so only its flags can be checked.
fn assert_flags_of_top(arguments: &[&str]) {
    let help = Command::new(env!("CARGO_BIN_EXE_ringmesh")).args(["top", "--help"]).output();
    let help = String::from_utf8(help.expect("the program can be run").stdout).expect("help is UTF-8");
    for flag in arguments.iter().filter(|argument| argument.starts_with("--")) {
        assert!(help.contains(flag), "{flag}: {help}");
    }
}

#[test]
fn every_flag_in_the_text_is_one() {
    let help = Command::new(env!("CARGO_BIN_EXE_ringmesh")).args(["serve", "--help"]).output();
    let help = String::from_utf8(help.expect("the program can be run").stdout).expect("help is UTF-8");
    // Of the load generator, of Docker, of Redis' client, of `top`, `doctor` and `cluster`, of `tune` and of
    // tests/hosts/run.
    let others =
        ["--outstanding", "--burst", "--ulimit", "--latency", "--once", "--json", "--watch", "--profile", "--proxy"];
    for span in named_in_prose() {
        for flag in span.split_whitespace().filter(|word| word.starts_with("--")) {
            let known =
                [" <", " [<"].iter().any(|value| help.contains(&format!("{flag}{value}"))) || others.contains(&flag);
            assert!(known, "`{span}`: {flag} is no flag");
        }
    }
}

#[test]
fn every_file_and_every_heading_that_is_named_exists() {
    let headings: BTreeSet<String> = README
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-").replace(['.', ','], ""))
        .collect();
    let mut links = 0;
    for link in README.split("](").skip(1) {
        let target = link.split(')').next().expect("a link ends");
        links += 1;
        match target.strip_prefix('#') {
            Some(heading) => assert!(headings.contains(heading), "#{heading} is none of {headings:?}"),
            None => assert!(exists(target), "{target}"),
        }
    }
    assert!(links > 10, "{links} links: are they still found?");
    let folders = ["src/", "tests/", "bench/", "tuning/", ".ci/"];
    for span in named_in_prose().filter(|span| folders.iter().any(|folder| span.starts_with(folder))) {
        assert!(exists(span), "`{span}`");
    }
}

fn exists(path: &str) -> bool {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists()
}
