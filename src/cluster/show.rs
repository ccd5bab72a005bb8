//! The view as a table for people and as JSON for programs. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::bus::survey::ServerFound;
use crate::top::{Line, Tone, seconds};

use super::view::{Kind, Row, Shown, State, View};

/// A message that takes longer is beyond what the gateway is made for.
const LAG_MAX: Duration = Duration::from_millis(100);
/// A lease is 10 s and renewed every 3 s.
const LEASE_MIN: Duration = Duration::from_secs(5);

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Ringmesh => "ringmesh",
            Kind::Foreign => "foreign",
            Kind::Unknown => "unknown",
        }
    }
}

impl State {
    /// The word of the JSON.
    fn word(self) -> &'static str {
        match self {
            State::Up => "up",
            State::NoLease => "no_lease",
            State::Dead => "dead",
            State::Unknown => "unknown",
        }
    }

    fn tone(self) -> Tone {
        match self {
            State::Up => Tone::Good,
            State::NoLease | State::Unknown => Tone::Warning,
            State::Dead => Tone::Bad,
        }
    }
}

/// A column: its heading, whether its values stand at the left, and what they are.
type Column = (&'static str, bool, fn(&Row) -> (Tone, String));

const COLUMNS: [Column; 9] = [
    ("node", true, |row| (Tone::Strong, row.node.chars().filter(|character| !character.is_control()).collect())),
    ("kind", true, |row| (Tone::Plain, row.kind.word().to_owned())),
    ("state", true, |row| (row.state.tone(), row.state.word().replace('_', " "))),
    ("life", false, |row| (Tone::Plain, text(row.life, |life| life.to_string()))),
    ("lease", false, |row| {
        let tone = if row.lease.value().is_some_and(|left| left < LEASE_MIN) { Tone::Warning } else { Tone::Plain };
        (tone, text(row.lease, |left| format!("{:.1}s", left.as_secs_f64())))
    }),
    ("connections", false, |row| (Tone::Plain, text(row.connections, |count| count.to_string()))),
    ("users", false, |row| (Tone::Plain, text(row.users, |count| count.to_string()))),
    ("listens", true, listens),
    ("lag", false, |row| {
        (lag_tone(row.lag.value().unwrap_or_default()), text(row.lag, |lag| seconds(lag.as_secs_f64())))
    }),
];

fn text<T>(value: Shown<T>, write: fn(T) -> String) -> String {
    match value {
        Shown::Is(value) => write(value),
        Shown::Nothing => "-".to_owned(),
        Shown::Unknown => "?".to_owned(),
    }
}

fn lag_tone(lag: Duration) -> Tone {
    if lag > LAG_MAX { Tone::Bad } else { Tone::Plain }
}

/// Whether somebody hears what is published for the node; a node that is up and not heard is cut off.
fn listens(row: &Row) -> (Tone, String) {
    let (tone, word) = match (row.hears_contract, row.hears_link) {
        (Shown::Nothing, _) => (Tone::Plain, "-"),
        (Shown::Unknown, _) | (_, Shown::Unknown) => (Tone::Warning, "?"),
        (Shown::Is(true), Shown::Is(true) | Shown::Nothing) => (Tone::Plain, "yes"),
        (Shown::Is(true), Shown::Is(false)) => (Tone::Bad, "contract only"),
        (Shown::Is(false), Shown::Is(true)) => (Tone::Bad, "links only"),
        (Shown::Is(false), _) if row.state == State::Up => (Tone::Bad, "no"),
        (Shown::Is(false), _) => (Tone::Plain, "no"),
    };
    (tone, word.to_owned())
}

/// The table, what the servers take, the sums, and what is out of reach.
pub fn lines(view: &View) -> Vec<Line> {
    let mut lines = table(&view.rows);
    lines.push(Line::default());
    lines.extend(view.servers.iter().map(server));
    lines.push(totals(view));
    if view.totals.gone > 0 {
        let what = "no lease: it may come back; dead: the other nodes take its users off the directory";
        lines.push(Line(vec![(Tone::Strong, label("gone")), (Tone::Warning, what.to_owned())]));
    }
    for reason in &view.out_of_reach {
        lines.push(Line(vec![(Tone::Strong, label("lost")), (Tone::Bad, reason.clone())]));
    }
    lines
}

fn table(rows: &[Row]) -> Vec<Line> {
    let cells: Vec<Vec<(Tone, String)>> = rows.iter().map(|row| COLUMNS.map(|(.., cell)| cell(row)).into()).collect();
    let heading = COLUMNS.map(|(heading, ..)| (Tone::Strong, heading.to_owned())).into();
    let all: Vec<Vec<(Tone, String)>> = [heading].into_iter().chain(cells).collect();
    let width = |at: usize| all.iter().map(|cells| cells[at].1.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let line = |cells: Vec<(Tone, String)>| {
        let placed = cells.into_iter().enumerate().map(|(at, (tone, text))| {
            let (width, gap) = (widths[at], if at == 0 { "" } else { "  " });
            let text = if COLUMNS[at].1 { format!("{gap}{text:width$}") } else { format!("{gap}{text:>width$}") };
            (tone, text)
        });
        Line(placed.collect())
    };
    all.into_iter().map(line).collect()
}

fn label(text: &str) -> String {
    format!("{text:7}")
}

/// The middle one, and the slowest.
fn round_trips(server: &ServerFound) -> (Duration, Duration) {
    let all = &server.round_trips;
    (all.get(all.len() / 2).copied().unwrap_or_default(), all.last().copied().unwrap_or_default())
}

fn server(server: &ServerFound) -> Line {
    let (median, max) = round_trips(server);
    Line(vec![
        (Tone::Strong, label("redis")),
        (Tone::Plain, format!("{}  a message takes ", server.address)),
        (lag_tone(median), seconds(median.as_secs_f64())),
        (Tone::Plain, format!(", the slowest of {} ", server.round_trips.len())),
        (lag_tone(max), seconds(max.as_secs_f64())),
    ])
}

fn totals(view: &View) -> Line {
    let totals = view.totals;
    let counted = |count: String, what: &str| format!("{count} {what}{}", if count == "1" { "" } else { "s" });
    let mut parts = vec![counted(totals.nodes.to_string(), "node")];
    if totals.foreign > 0 {
        parts.push(counted(totals.foreign.to_string(), "foreign node"));
    }
    parts.push(counted(text(totals.connections, |count| count.to_string()), "connection"));
    parts.push(counted(text(totals.users, |count| count.to_string()), "user"));
    Line(vec![(Tone::Strong, label("all")), (Tone::Plain, parts.join(", "))])
}

/// One object, with all that the table has; what is missing and what is not known are both `null`.
pub fn as_json(view: &View, redis: &str) -> Value {
    let milliseconds = |time: Shown<Duration>| time.value().map(|time| time.as_millis() as u64);
    let microseconds = |time: Duration| time.as_micros() as u64;
    let node = |row: &Row| {
        json!({
            "node": row.node.as_str(),
            "kind": row.kind.word(),
            "state": row.state.word(),
            "life": row.life.value(),
            "lease_ms": milliseconds(row.lease),
            "connections": row.connections.value(),
            "users": row.users.value(),
            "hears_contract": row.hears_contract.value(),
            "hears_link": row.hears_link.value(),
            "lag_us": row.lag.value().map(microseconds),
        })
    };
    let server = |server: &ServerFound| {
        let (median, max) = round_trips(server);
        json!({"server": server.address, "round_trip_us": {"median": microseconds(median), "max": microseconds(max)}})
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "redis": redis,
        "nodes": view.rows.iter().map(node).collect::<Vec<_>>(),
        "totals": {
            "nodes": view.totals.nodes,
            "foreign_nodes": view.totals.foreign,
            "gone": view.totals.gone,
            "connections": view.totals.connections.value(),
            "users": view.totals.users.value(),
        },
        "servers": view.servers.iter().map(server).collect::<Vec<_>>(),
        "out_of_reach": view.out_of_reach,
    })
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{foreign, view, well};
    use super::*;
    use crate::bus::survey::{LifeFound, NodeFound};

    fn shown(view: &View) -> Vec<String> {
        lines(view).iter().map(Line::text).collect()
    }

    #[test]
    fn the_table_stands_in_columns() {
        let dead = LifeFound { incarnation: 1_764_000_000_000_000, is_declared_dead: Some(true), users: Some(70) };
        let dead = NodeFound {
            registered: Some(dead.incarnation),
            lease: Some(None),
            lives: Some(vec![dead]),
            connections: Some(None),
            lag: Some(None),
            hears_contract: Some(false),
            hears_link: Some(false),
            ..well("a-long-name")
        };
        let expected = "\
node         kind      state              life  lease  connections  users  listens    lag
a            ringmesh  up                   20   8.2s            4      3  yes      300µs
a-long-name  ringmesh  dead   1764000000000000      -            -     70  no           -
f            foreign   up                    -      -            4      -  yes          -

redis  127.0.0.1:6379  a message takes 210µs, the slowest of 3 900µs
all    1 node, 1 foreign node, 8 connections, 3 users
gone   no lease: it may come back; dead: the other nodes take its users off the directory";
        assert_eq!(shown(&view(vec![well("a"), dead, foreign("f")])).join("\n"), expected);
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let deaf = NodeFound { hears_link: Some(false), lag: Some(Some(LAG_MAX * 2)), ..well("a") };
        let mut view = view(vec![deaf]);
        view.out_of_reach.push("Redis at b:1 is out of reach".to_owned());
        let lines = lines(&view);
        let tone = |text: &str| {
            let mut pieces = lines.iter().flat_map(|line| &line.0);
            pieces.find(|(_, piece)| piece.contains(text)).unwrap_or_else(|| panic!("{text} in {lines:?}")).0
        };
        assert_eq!(tone("contract only"), Tone::Bad);
        assert_eq!(tone("200ms"), Tone::Bad);
        assert_eq!(tone("up"), Tone::Good);
        assert_eq!(tone("b:1"), Tone::Bad);
    }

    #[test]
    fn a_node_cannot_steer_the_terminal() {
        let shown = shown(&view(vec![foreign("f\x1b[2J\u{9b}1")]));
        assert!(shown[1].starts_with("f[2J1  "), "{shown:?}");
    }

    #[test]
    fn json_has_all_of_it() {
        let json = as_json(&view(vec![well("a"), foreign("f")]), "redis://h:1");
        assert_eq!(
            json["nodes"][0],
            json!({"node": "a", "kind": "ringmesh", "state": "up", "life": 20, "lease_ms": 8200, "connections": 4,
                "users": 3, "hears_contract": true, "hears_link": true, "lag_us": 300})
        );
        assert_eq!(
            json["nodes"][1],
            json!({"node": "f", "kind": "foreign", "state": "up", "life": null, "lease_ms": null, "connections": 4,
                "users": null, "hears_contract": true, "hears_link": null, "lag_us": null})
        );
        let totals = json!({"nodes": 1, "foreign_nodes": 1, "gone": 0, "connections": 8, "users": 3});
        assert_eq!(json["totals"], totals);
        assert_eq!(json["servers"][0]["round_trip_us"], json!({"median": 210, "max": 900}));
        assert_eq!((&json["redis"], &json["out_of_reach"]), (&json!("redis://h:1"), &json!([])));
    }
}
