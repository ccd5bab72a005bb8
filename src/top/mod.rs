//! `ringmesh top`: what a node is doing, live in a terminal or once as text, all of it read from `/metrics`.
//!
//! `exposition` reads the text of a scrape; `change` compares two; `view` is what is shown, `draw` its lines, `write` its
//! numbers: all of that is pure. `fetch` asks the node, `terminal` is the screen, `live` the loop that joins them, also for
//! `ringmesh cluster`.

mod change;
mod draw;
mod exposition;
mod fetch;
mod live;
mod terminal;
mod view;
mod write;

use std::io::{self, IsTerminal, Write, stdout};
use std::time::{Duration, Instant, SystemTime};

pub(crate) use draw::{Line, Tone};
pub use fetch::{FetchError, Target};
pub(crate) use live::{Subject, run as watch};
pub(crate) use write::seconds;

use change::Change;
use exposition::Scrape;
use view::View;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The node.
    pub target: Target,
    /// From one scrape to the next.
    pub interval: Duration,
    /// Print once as plain text, instead of going on in the terminal.
    pub once: bool,
}

/// Why the view ended, other than by wish.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// There is nothing to draw on.
    #[error("standard output is no terminal: `ringmesh top --once` prints plain text")]
    NoTerminal,
    /// The node could not be asked. Only `--once` ends by it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The terminal, or a thread.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// A signal that ends programs.
    #[error("ended by signal {0}")]
    Signal(i32),
}

/// Shows a node until `q` or Ctrl-C, or once.
///
/// # Errors
/// See [`TopError`].
pub fn run(options: &Options) -> Result<(), TopError> {
    if options.once {
        once(options)
    } else if stdout().is_terminal() {
        let node = Watched { options: options.clone(), seen: None, view: None };
        let target = options.target.clone();
        live::run(node, options.interval, move || move || fetch::fetch(&target).map_err(|error| error.to_string()))
    } else {
        Err(TopError::NoTerminal)
    }
}

/// Two scrapes an interval apart, since one alone tells no rates.
fn once(options: &Options) -> Result<(), TopError> {
    let first = Seen::new(fetch::fetch(&options.target)?);
    #[expect(clippy::disallowed_methods, reason = "no shard runs in this process, and the interval was asked for")]
    std::thread::sleep(options.interval);
    let view = Seen::new(fetch::fetch(&options.target)?).since(Some(&first));
    let text: String = draw::lines(&view, usize::MAX).iter().map(|line| line.text() + "\n").collect();
    match stdout().write_all(text.as_bytes()) {
        // A reader that has gone, such as `head`, has what it wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(TopError::Io("standard output", error)),
        _ => Ok(()),
    }
}

/// A node that is watched.
struct Watched {
    options: Options,
    seen: Option<Seen>,
    view: Option<View>,
}

impl Subject for Watched {
    type Answer = Scrape;

    fn heading(&self) -> Line {
        let Options { target, interval, .. } = &self.options;
        Line::of(Tone::Faint, format!("ringmesh top  {target}  every {interval:?}  q quits"))
    }

    fn take(&mut self, scrape: Scrape) {
        let seen = Seen::new(scrape);
        self.view = Some(seen.since(self.seen.as_ref()));
        self.seen = Some(seen);
    }

    fn lines(&self, columns: usize) -> Option<Vec<Line>> {
        self.view.as_ref().map(|view| draw::lines(view, columns))
    }
}

/// A scrape and when it came.
struct Seen {
    scrape: Scrape,
    at: Instant,
}

impl Seen {
    fn new(scrape: Scrape) -> Seen {
        Seen { scrape, at: Instant::now() }
    }

    fn since(&self, before: Option<&Seen>) -> View {
        let before = before.map(|before| (&before.scrape, self.at.duration_since(before.at).as_secs_f64()));
        let unix_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        View::new(Change::new(before, &self.scrape), unix_now)
    }
}
