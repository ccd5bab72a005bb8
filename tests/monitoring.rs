//! Goal: what lies in tuning/monitoring works as it stands: rules and dashboard speak of metrics that a node has, every
//! alert is proven to fire and to keep quiet, and the README says what to do about each.
//!
//! Method: the files are read as text; Prometheus' own programs judge them, promtool the rules, their unit tests and a real
//! node's metrics, and a Prometheus server scrapes a node and answers every question of the dashboard.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ringmesh::metrics::{BusMetrics, HostMetrics, NodeState, ShardMetrics, render, render_bus};
use serde_json::Value;
use support::prometheus::{Prometheus, promtool};
use support::{DEADLINE_SLOW, Gateway, eventually, http};

const CONFIG: &str = include_str!("../tuning/monitoring/prometheus/prometheus.yml");
const RULES: &str = include_str!("../tuning/monitoring/prometheus/ringmesh.rules.yml");
const TESTS: &str = include_str!("../tuning/monitoring/prometheus/ringmesh.tests.yml");
const DASHBOARD: &str = include_str!("../tuning/monitoring/grafana/ringmesh.json");
const README: &str = include_str!("../README.md");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/monitoring/prometheus")
}

/// Every metric of a node, with its type.
fn metrics() -> BTreeMap<String, String> {
    let text = render(&NodeState::default(), &[&ShardMetrics::default()], &HostMetrics::default())
        + &render_bus(&BusMetrics::default());
    let of_type = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name.to_owned(), kind.to_owned()))
    };
    text.lines().filter_map(of_type).collect()
}

/// The names under which a metric's samples stand.
fn series(metrics: &BTreeMap<String, String>) -> BTreeSet<String> {
    let names = metrics.iter().flat_map(|(name, kind)| match kind.as_str() {
        "histogram" => ["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")).to_vec(),
        _ => vec![name.clone()],
    });
    // Prometheus' own.
    names.chain(["up".to_owned()]).collect()
}

/// The expressions of the rules, each as one line.
fn rule_expressions() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut in_expression = false;
    for line in RULES.lines() {
        let indent = line.len() - line.trim_start().len();
        match line.trim_start().strip_prefix("expr: ") {
            Some(expression) => {
                found.push(expression.trim_start_matches('>').to_owned());
                in_expression = true;
            }
            None if in_expression && indent > 8 => found.last_mut().expect("it has begun").push_str(line),
            None => in_expression = false,
        }
    }
    found
}

/// The values of a key that stands at the beginning of a list item or a line of the rules.
fn rule_values(key: &str) -> Vec<&'static str> {
    let value = |line: &'static str| line.trim_start().trim_start_matches("- ").strip_prefix(key)?.strip_prefix(": ");
    RULES.lines().filter_map(value).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).expect("the dashboard is JSON")
}

/// The panels of the dashboard that show something, each with its expressions as Prometheus gets them.
fn panels(selected: &str) -> Vec<(String, Vec<String>)> {
    let dashboard = dashboard();
    let filled = |expression: &Value| {
        let expression = expression.as_str().expect("an expression");
        expression.replace("$__rate_interval", "1m").replace("$cluster", selected).replace("$instance", selected)
    };
    let targets = |panel: &Value| -> Vec<String> {
        panel["targets"].as_array().into_iter().flatten().map(|target| filled(&target["expr"])).collect()
    };
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels.map(|panel| (panel["title"].as_str().expect("a title").to_owned(), targets(panel))).collect()
}

/// Words of an expression that name series: those before a selector, and all that look like ours.
fn named(expression: &str) -> BTreeSet<&str> {
    let outside_of_strings = expression.split('"').step_by(2);
    let belongs = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = outside_of_strings.flat_map(|part| part.split(move |c| !belongs(c)));
    let is_ours = |word: &&str| word.contains(':') || word.starts_with("ringmesh_") || word.starts_with("process_");
    words.filter(|word| is_ours(word) || *word == "up").collect()
}

fn assert_tool(what: &str, arguments: &[&str], input: &str) {
    let output = promtool(&folder(), arguments, input);
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    // `check metrics` and `check rules` remark on what is unwise, too: nothing may be.
    assert!(output.status.success() && !said.contains("WARN") && !said.contains("ERROR"), "{what}: {said}");
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let known: BTreeSet<String> =
        series(&metrics()).into_iter().chain(rule_values("record").iter().map(ToString::to_string)).collect();
    let expressions = rule_expressions().into_iter().chain(panels(".*").into_iter().flat_map(|(_, targets)| targets));
    let mut seen = 0;
    for expression in expressions {
        for name in named(&expression) {
            assert!(known.contains(name), "{name} of `{expression}` is no metric of a node");
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen} names: are they still found?");
    let wrong = named("sum by (shard) (rate(ringmesh_accept_total{instance=~\"process_x\"}[5m]))");
    assert_eq!(wrong.into_iter().collect::<Vec<_>>(), ["ringmesh_accept_total"]);
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let shown = panels(".*").into_iter().flat_map(|(_, targets)| targets).collect::<Vec<_>>().join(" ");
    let shown = named(&shown);
    for (name, kind) in metrics() {
        let parts = if kind == "histogram" { vec!["_bucket", "_sum", "_count"] } else { vec![""] };
        assert!(parts.iter().any(|part| shown.contains(format!("{name}{part}").as_str())), "no panel shows {name}");
    }
}

#[test]
fn promtool_takes_configuration_rules_and_their_tests() {
    assert_tool("prometheus.yml", &["check", "config", "prometheus.yml"], "");
    assert_tool("ringmesh.rules.yml", &["check", "rules", "ringmesh.rules.yml"], "");
    assert_tool("ringmesh.tests.yml", &["test", "rules", "ringmesh.tests.yml"], "");
}

#[test]
fn every_alert_is_tested_to_fire_and_to_keep_quiet() {
    let alerts = rule_values("alert");
    assert!(alerts.len() > 20, "{alerts:?}");
    assert_eq!(rule_values("severity").len() + rule_values("labels").len(), alerts.len(), "each has a severity");
    for alert in alerts {
        let quiet = TESTS.contains(&format!("{{alertname: {alert}, eval_time: "))
            && TESTS
                .lines()
                .any(|line| line.contains(&format!("alertname: {alert},")) && line.contains("exp_alerts: []"));
        assert!(quiet, "no test sees {alert} keep quiet");
        let fires = TESTS
            .split_once(&format!("- alertname: {alert}\n"))
            .is_some_and(|(_, test)| test.lines().take(4).any(|line| line.trim_start().starts_with("- exp_labels: ")));
        assert!(fires, "no test sees {alert} fire");
    }
}

#[test]
fn the_readme_says_what_to_do_about_every_alert() {
    let rows = README.lines().skip_while(|line| !line.starts_with("| Alert |")).skip(2);
    let rows: Vec<Vec<&str>> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let documented: Vec<(&str, &str)> = rows.iter().map(|row| (row[0].trim_matches('`'), row[1])).collect();
    let severity = |line: &'static str| line.split_once("severity: ").map(|(_, rest)| rest.trim_end_matches('}'));
    let severities = RULES.lines().filter(|line| !line.starts_with('#')).filter_map(severity);
    let real: Vec<(&str, &str)> = rule_values("alert").into_iter().zip(severities).collect();
    assert_eq!(documented, real, "in the order of the rules");
    for row in rows {
        assert!(row.len() == 4 && row[3].len() > 40, "{row:?}");
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_shows() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{key} in {panel}"));
        assert!(at("x") + at("w") <= 24, "{} is wider than the page", panel["title"]);
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(taken.insert((x, y)), "{} lies upon another panel", panel["title"]);
        }
        if panel["type"] != "row" {
            assert!(
                panel["description"].as_str().is_some_and(|text| text.len() > 10),
                "{} explains nothing",
                panel["title"]
            );
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
    // One file of rules, in which each expression has to be one.
    let expressions = self::panels(".*").into_iter().flat_map(|(_, targets)| targets);
    let rule = |expression: String| format!("  - record: x\n    expr: {}\n", Value::from(expression));
    let rules: String =
        expressions.enumerate().map(|(at, it)| rule(it).replace("record: x", &format!("record: x{at}"))).collect();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("groups:\n- name: dashboard\n  rules:\n{rules}")).expect("it can be written");
    assert_tool("the dashboard's expressions", &["check", "rules", file.path().to_str().expect("UTF-8")], "");
}

#[test]
fn promtool_takes_the_metrics_of_a_node() {
    let gateway = Gateway::start();
    gateway.client("alice").expect_pong();
    assert_tool("/metrics", &["check", "metrics"], &http::get(gateway.admin, "/metrics").text());
}

#[test]
fn a_prometheus_with_this_configuration_answers_every_question_of_the_dashboard() {
    let gateway = Gateway::start();
    let clients = gateway.clients_on_each_shard("user", 2, 2);
    let mut clients: Vec<_> = clients.into_iter().flatten().collect();
    let scratch = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(scratch.path().join("ringmesh.rules.yml"), RULES).expect("the rules can be written");
    let mut config = CONFIG.to_owned();
    for (usual, quick) in [
        ("_interval: 15s", "_interval: 1s"),
        ("scrape_timeout: 5s", "scrape_timeout: 1s"),
        ("- 127.0.0.1:8081", &format!("- {}", gateway.admin)),
    ] {
        assert!(config.contains(usual), "{usual}");
        config = config.replacen(usual, quick, 2);
    }
    let prometheus = Prometheus::start(scratch.path(), &config);
    // Some panels divide by what happens, and show nothing where nothing does.
    let mut converse = || {
        clients[0].broadcast("1");
        clients.iter_mut().for_each(|client| drop(client.next_json()));
        clients[0].send_text("nonsense");
        clients[0].expect_error();
        clients[0].expect_pong();
    };
    for (title, expressions) in panels(".*") {
        for expression in expressions {
            let is_of_bus = expression.contains("ringmesh_bus_");
            eventually(&format!("{title}: {expression}"), DEADLINE_SLOW, || {
                let found = prometheus.query(&expression);
                converse();
                (is_of_bus || !found.is_empty()).then_some(())
            });
        }
    }
    let unhealthy = |rules: &Value| -> Vec<String> {
        let groups = rules["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        rules.filter(|rule| rule["health"] != "ok").map(ToString::to_string).collect()
    };
    let mut last = Vec::new();
    eventually("rules that are all evaluated", DEADLINE_SLOW, || {
        last = unhealthy(&prometheus.api("/api/v1/rules"));
        assert!(!last.iter().any(|rule| rule.contains("\"health\":\"err\"")), "{last:#?}");
        last.is_empty().then_some(())
    });
}
