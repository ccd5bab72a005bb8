//! The model as lines of a terminal. Pure.

use super::view::{Bus, Shard, View};
use super::write::{NONE, bytes, maybe, number, percent, seconds, uptime};

/// How a piece of a line looks, where colours are shown at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As the terminal writes.
    Plain,
    /// Less important.
    Faint,
    /// A heading.
    Strong,
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Wrong.
    Bad,
}

impl Tone {
    /// The terminal's code for it.
    fn code(self) -> &'static str {
        match self {
            Tone::Plain => "",
            Tone::Faint => "2",
            Tone::Strong => "1",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "1;31",
        }
    }

    fn when(holds: bool, tone: Tone) -> Tone {
        if holds { tone } else { Tone::Plain }
    }

    fn above(value: Option<f64>, bound: f64, tone: Tone) -> Tone {
        Tone::when(value.is_some_and(|value| value > bound), tone)
    }
}

/// A line in pieces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line(pub Vec<(Tone, String)>);

impl Line {
    /// A line that looks the same throughout.
    pub fn of(tone: Tone, text: impl Into<String>) -> Line {
        Line(vec![(tone, text.into())])
    }

    fn push(&mut self, tone: Tone, text: impl Into<String>) {
        self.0.push((tone, text.into()));
    }

    /// `name value`, two spaces behind what stands before it.
    fn field(&mut self, name: &str, tone: Tone, value: impl Into<String>) {
        self.push(Tone::Faint, format!("  {name} "));
        self.push(tone, value);
    }

    /// The line as text, without spaces at its end.
    pub fn text(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect::<String>().trim_end().to_owned()
    }

    /// The line in at most `width` characters, with the terminal's codes for its tones.
    pub fn ansi(&self, width: usize) -> String {
        let mut out = String::new();
        let mut left = width;
        for (tone, text) in &self.0 {
            // What came over the network must not steer the terminal.
            let shown: String = text.chars().filter(|character| !character.is_control()).take(left).collect();
            left -= shown.chars().count();
            match tone.code() {
                "" => out.push_str(&shown),
                code => out.push_str(&format!("\x1b[{code}m{shown}\x1b[0m")),
            }
        }
        out
    }
}

/// p99 above it is beyond what the gateway is made for.
const P99_SECONDS_MAX: f64 = 0.1;
/// A loop that is silent for longer than its tick explains.
const SILENCE_SECONDS_MAX: f64 = 1.0;
/// A shard that has less than a tenth of its core left.
const CPU_SHARE_MAX: f64 = 0.9;
/// Connections by their cap.
const CONNECTIONS_SHARE_MAX: f64 = 0.85;
/// Memory that is still to be had, by all there is.
const MEMORY_SHARE_MIN: f64 = 0.1;
/// A lease is 10 s and renewed every 3 s.
const LEASE_SECONDS_MIN: f64 = 5.0;

/// The whole view, `width` characters wide.
pub fn lines(view: &View, width: usize) -> Vec<Line> {
    let mut lines = vec![node(view), clients(view), traffic(view), Line::default()];
    lines.extend(shards(view, width));
    lines.push(Line::default());
    lines.push(events("closes/s", &view.closes, &["too_slow", "internal_error", "silent", "rate_limited"]));
    lines.push(events("refused/s", &view.refused, &["capacity", "address_rate", "handshakes_full"]));
    lines.push(events("dropped/s", &view.dropped, &["too_slow"]));
    lines.push(host(view));
    match &view.bus {
        Some(bus) => lines.extend(self::bus(bus)),
        None => {
            let mut line = labelled("bus");
            line.push(Tone::Faint, "embedded: this node is alone");
            lines.push(line);
        }
    }
    lines
}

const LABEL_WIDTH: usize = 11;

fn labelled(label: &str) -> Line {
    Line::of(Tone::Strong, format!("{label:LABEL_WIDTH$}"))
}

fn node(view: &View) -> Line {
    let mut line = labelled("node");
    let (id, version) = view.node.as_ref().map_or((NONE, NONE), |(id, version)| (id, version));
    line.push(Tone::Plain, format!("{id}  "));
    match view.is_ready {
        Some(true) => line.push(Tone::Good, "ready"),
        Some(false) => line.push(Tone::Bad, "NOT READY"),
        None => {}
    }
    line.field("up", Tone::Plain, view.uptime.map_or_else(|| NONE.to_owned(), uptime));
    line.field("cpu", Tone::Plain, maybe(view.cpu, percent));
    line.field("rss", Tone::Plain, maybe(view.resident_bytes, bytes));
    if let Some((available, all)) = view.memory.filter(|(_, all)| *all > 0.0) {
        let tone = Tone::when(available / all < MEMORY_SHARE_MIN, Tone::Bad);
        line.field("free", tone, format!("{} of {}", bytes(available), bytes(all)));
    }
    line.field("version", Tone::Faint, version);
    line
}

fn clients(view: &View) -> Line {
    let mut line = labelled("clients");
    let connections = view.total.connections;
    let share = connections.zip(view.connections_max).map(|(connections, max)| connections / max);
    let tone = Tone::above(share, CONNECTIONS_SHARE_MAX, Tone::Warning);
    let of = format!("{} of {}", whole(connections), whole(view.connections_max));
    line.push(tone, format!("{of} ({})", maybe(share, percent)));
    line.field("users", Tone::Plain, whole(view.total.users));
    line.field("accepts/s", Tone::Plain, maybe(view.accepts, number));
    line
}

fn traffic(view: &View) -> Line {
    let Shard { messages_in, messages_out, bytes_out, p50, p99, .. } = view.total;
    let mut line = labelled("messages/s");
    line.push(Tone::Plain, format!("in {} ({}/s)", maybe(messages_in, number), maybe(view.bytes_in, bytes)));
    line.push(Tone::Plain, format!("  out {} ({}/s)", maybe(messages_out, number), maybe(bytes_out, bytes)));
    line.field("p50", Tone::Plain, maybe(p50, seconds));
    line.field("p99", Tone::above(p99, P99_SECONDS_MAX, Tone::Bad), maybe(p99, seconds));
    line
}

/// A whole number with all its digits.
fn whole(value: Option<f64>) -> String {
    maybe(value, |value| format!("{value:.0}"))
}

/// A column of the table of shards: its heading, its width, and what stands in it.
type Column = (&'static str, usize, fn(&Shard) -> (Tone, String));

/// The most telling ones first: a narrow terminal shows as many as fit.
const COLUMNS: [Column; 14] = [
    ("shard", 5, |shard| (Tone::Strong, shard.name.clone())),
    ("clients", 9, |shard| (Tone::Plain, whole(shard.connections))),
    ("cpu", 6, |shard| {
        let bound = if shard.name == ALL { f64::INFINITY } else { CPU_SHARE_MAX };
        (Tone::above(shard.cpu, bound, Tone::Warning), maybe(shard.cpu, percent))
    }),
    ("in/s", 8, |shard| (Tone::Plain, maybe(shard.messages_in, number))),
    ("out/s", 8, |shard| (Tone::Plain, maybe(shard.messages_out, number))),
    ("p50", 8, |shard| (Tone::Plain, maybe(shard.p50, seconds))),
    ("p99", 8, |shard| (Tone::above(shard.p99, P99_SECONDS_MAX, Tone::Bad), maybe(shard.p99, seconds))),
    ("queued", 9, |shard| (Tone::Plain, maybe(shard.queued_bytes, bytes))),
    ("stalled", 8, |shard| (Tone::above(shard.stalled, 0.0, Tone::Warning), maybe(shard.stalled, number))),
    ("pending", 8, |shard| (Tone::Plain, maybe(shard.pending, number))),
    ("mesh/s", 8, |shard| (Tone::Plain, maybe(shard.mesh, number))),
    ("per send", 9, |shard| (Tone::Plain, maybe(shard.deliveries_a_send, number))),
    ("users", 9, |shard| (Tone::Plain, whole(shard.users))),
    ("silent", 8, |shard| (Tone::above(shard.silence, SILENCE_SECONDS_MAX, Tone::Bad), maybe(shard.silence, seconds))),
];

const ALL: &str = "all";

fn shards(view: &View, width: usize) -> Vec<Line> {
    let mut used = 0;
    let fits = |column: &&Column| {
        used += column.1;
        used <= width
    };
    let columns: Vec<&Column> = COLUMNS.iter().take_while(fits).collect();
    let heading = columns.iter().map(|(heading, width, _)| format!("{heading:>width$}")).collect::<String>();
    let mut lines = vec![Line::of(Tone::Strong, heading)];
    let total = (view.shards.len() > 1).then_some(&view.total);
    for shard in view.shards.iter().chain(total) {
        let cells = columns.iter().map(|(_, width, cell)| {
            let (tone, text) = cell(shard);
            (tone, format!("{text:>width$}"))
        });
        lines.push(Line(cells.collect()));
    }
    lines
}

/// What happened, less what did not. What is named as `bad` should not happen at all.
fn events(label: &str, rates: &[(String, f64)], bad: &[&str]) -> Line {
    let mut line = labelled(label);
    let happened: Vec<_> = rates.iter().filter(|(_, rate)| *rate > 0.0).collect();
    if happened.is_empty() {
        line.push(Tone::Faint, if rates.is_empty() { NONE } else { "none" });
    }
    for (at, (name, rate)) in happened.into_iter().enumerate() {
        let gap = if at == 0 { "" } else { "  " };
        line.push(Tone::when(bad.contains(&name.as_str()), Tone::Warning), format!("{gap}{name} {}", number(*rate)));
    }
    line
}

fn host(view: &View) -> Line {
    let (rate, since_boot) = view.listen_overflows;
    let mut line = labelled("host");
    line.push(Tone::Faint, "listen overflows/s ");
    line.push(Tone::above(rate, 0.0, Tone::Bad), maybe(rate, number));
    line.push(Tone::Faint, format!(" ({} since it started)", maybe(since_boot, number)));
    line
}

/// Two lines: how it stands, and what it does.
fn bus(bus: &Bus) -> [Line; 2] {
    let mut state = labelled("bus");
    match bus.is_up {
        true => state.push(Tone::Good, "Redis answers"),
        false => state.push(Tone::Bad, "REDIS LOST"),
    }
    state.field("nodes", Tone::Plain, whole(bus.nodes));
    let is_short = bus.lease.is_some_and(|lease| lease < LEASE_SECONDS_MIN);
    state.field("lease", Tone::when(is_short, Tone::Bad), maybe(bus.lease, seconds));
    state.field("lag p50", Tone::Plain, maybe(bus.lag.0, seconds));
    state.field("p99", Tone::above(bus.lag.1, P99_SECONDS_MAX, Tone::Bad), maybe(bus.lag.1, seconds));
    state.field("reconnects", Tone::Plain, whole(bus.reconnects));
    state.field("lost", Tone::above(bus.lost, 0.0, Tone::Bad), whole(bus.lost));
    let mut work = labelled("");
    work.push(Tone::Faint, "unacked ");
    work.push(Tone::Plain, maybe(bus.unacked_bytes, bytes));
    work.field("an envelope", Tone::Plain, maybe(bus.batch, number));
    work.field("registered", Tone::Plain, whole(bus.registrations));
    work.field("cache", Tone::Plain, maybe(bus.cache_hits, percent));
    work.field("rerouted/s", Tone::Plain, maybe(bus.rerouted, number));
    work.field("overloaded/s", Tone::above(bus.overloaded, 0.0, Tone::Warning), maybe(bus.overloaded, number));
    [state, work]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::change::Change;
    use super::super::exposition::Scrape;
    use super::*;

    const TEXT: &str = "\
ringmesh_node_info{node_id=\"n1\",version=\"9.9\"} 1
ringmesh_ready 0
ringmesh_connections_max 100
ringmesh_connections{shard=\"0\"} 50
ringmesh_connections{shard=\"1\"} 40
ringmesh_closes_total{shard=\"0\",cause=\"too_slow\"} 5
ringmesh_closes_total{shard=\"0\",cause=\"silent\"} 0
ringmesh_shard_silence_seconds{shard=\"0\"} 0.004
ringmesh_shard_silence_seconds{shard=\"1\"} 7
ringmesh_listen_overflows_total 3
";

    fn view(text: &str) -> View {
        let before = "ringmesh_closes_total{shard=\"0\",cause=\"too_slow\"} 1\nringmesh_listen_overflows_total 3\n";
        let [before, now] = [before, text].map(|text| Scrape::parse(text).expect("the test's text is right"));
        View::new(Change::new(Some((&before, 2.0)), &now), Duration::ZERO)
    }

    fn line<'a>(lines: &'a [Line], label: &str) -> &'a Line {
        lines.iter().find(|line| line.text().trim_start().starts_with(label)).unwrap_or_else(|| panic!("{label}"))
    }

    fn tone_of(line: &Line, text: &str) -> Tone {
        line.0.iter().find(|(_, piece)| piece.contains(text)).unwrap_or_else(|| panic!("{text} in {line:?}")).0
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let shown = lines(&view(TEXT), 200);
        assert_eq!(tone_of(line(&shown, "node"), "NOT READY"), Tone::Bad);
        assert_eq!(line(&shown, "clients").text(), "clients    90 of 100 (90%)  users -  accepts/s -");
        assert_eq!(tone_of(line(&shown, "clients"), "90 of"), Tone::Warning);
        assert_eq!(line(&shown, "closes/s").text(), "closes/s   too_slow 2");
        assert_eq!(tone_of(line(&shown, "closes/s"), "too_slow"), Tone::Warning);
        assert_eq!(tone_of(line(&shown, "1 "), "7s"), Tone::Bad);
        assert_eq!(tone_of(line(&shown, "0 "), "4ms"), Tone::Plain);
        assert_eq!(line(&shown, "host").text(), "host       listen overflows/s 0 (3 since it started)");
        assert_eq!(line(&shown, "refused/s").text(), "refused/s  -");
        assert_eq!(line(&shown, "bus").text(), "bus        embedded: this node is alone");
        let lost = lines(&view(&[TEXT, "ringmesh_bus_up 0\nringmesh_bus_lease_remaining_seconds 2\n"].concat()), 200);
        assert_eq!(tone_of(line(&lost, "bus"), "REDIS LOST"), Tone::Bad);
        assert_eq!(tone_of(line(&lost, "bus"), "2s"), Tone::Bad);
    }

    #[test]
    fn the_table_has_a_row_for_each_shard_and_one_for_all() {
        let shown = lines(&view(TEXT), 200);
        let table: Vec<String> = shown.iter().skip(4).map(Line::text).take_while(|text| !text.is_empty()).collect();
        let first_two = |row: &String| row.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        assert_eq!(table.iter().map(first_two).collect::<Vec<_>>(), ["shard clients", "0 50", "1 40", "all 90"]);
        let alone = lines(&view(&TEXT.replace("ringmesh_connections{shard=\"1\"} 40\n", "")), 200);
        assert!(!alone.iter().any(|line| line.text().trim_start().starts_with("all")));
    }

    #[test]
    fn a_narrow_terminal_shows_whole_columns_and_no_line_is_longer() {
        for width in [1, 20, 60, 80, 100, 132] {
            for line in lines(&view(TEXT), width) {
                let shown = line.ansi(width);
                let visible = shown.split('\x1b').enumerate().map(|(at, piece)| match at {
                    0 => piece.chars().count(),
                    _ => piece.split_once('m').expect("a code ends with m").1.chars().count(),
                });
                assert!(visible.sum::<usize>() <= width, "{width}: {shown:?}");
            }
        }
        assert!(lines(&view(TEXT), 80).iter().any(|line| line.text().ends_with("stalled pending")));
    }

    #[test]
    fn a_node_cannot_steer_the_terminal() {
        let hostile = TEXT.replace("node_id=\"n1\"", "node_id=\"\x1b[2Jn\u{9b}1\"");
        let shown = lines(&view(&hostile), 80)[0].ansi(80);
        assert!(shown.contains("[2Jn1") && !shown.contains("\x1b[2J") && !shown.contains('\u{9b}'), "{shown:?}");
    }
}
