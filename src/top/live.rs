//! The view that goes on in a terminal.

use std::io::{IsTerminal, Read, stdin};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::draw::{self, Line, Tone};
use super::exposition::Scrape;
use super::fetch::{self, FetchError, Target};
use super::terminal::Terminal;
use super::view::View;
use super::{Options, Seen, TopError};

/// The first rates come sooner than the interval says.
const SECOND_SCRAPE_AFTER: Duration = Duration::from_millis(500);
/// How often the view is drawn while an answer is awaited.
const REDRAW_EVERY: Duration = Duration::from_millis(500);
/// A node that takes longer to answer is worth a word.
const ANSWER_EXPECTED_WITHIN: Duration = Duration::from_secs(1);

/// What the loop is told by its threads.
enum Event {
    Scraped(Result<Scrape, FetchError>),
    Key(u8),
    Signal(i32),
}

/// Shows the node until somebody ends it.
pub fn run(options: &Options) -> Result<(), TopError> {
    let (report, events) = mpsc::channel();
    let ask = spawn(options.target.clone(), report)?;
    let terminal = enter()?;
    Live { options, ask, terminal: Some(terminal), seen: None, view: None, trouble: None, asked: None }.run(&events)
}

fn enter() -> Result<Terminal, TopError> {
    Terminal::enter().map_err(|error| TopError::Io("the terminal", error))
}

/// A node that does not answer must not keep a key waiting, so asking has a thread of its own; so have keys and signals.
fn spawn(target: Target, report: Sender<Event>) -> Result<Sender<()>, TopError> {
    let io = |error| TopError::Io("watching signals and keys", error);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH]).map_err(io)?;
    let (ask, asked) = mpsc::channel();
    let (scraped, signalled) = (report.clone(), report.clone());
    let fetch = move || {
        let _ = asked.iter().try_for_each(|()| scraped.send(Event::Scraped(fetch::fetch(&target))));
    };
    let watch = move || {
        let _ = signals.forever().try_for_each(|signal| signalled.send(Event::Signal(signal)));
    };
    let read = move || {
        // Keys come from a terminal; whatever else standard input is, it is not ours to read.
        let keys = stdin().is_terminal().then(|| stdin().lock().bytes().map_while(Result::ok));
        let _ = keys.into_iter().flatten().try_for_each(|key| report.send(Event::Key(key)));
    };
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    thread("fetch").spawn(fetch).map_err(io)?;
    thread("signals").spawn(watch).map_err(io)?;
    thread("keys").spawn(read).map_err(io)?;
    Ok(ask)
}

struct Live<'a> {
    options: &'a Options,
    ask: Sender<()>,
    /// `None` once it was given back.
    terminal: Option<Terminal>,
    seen: Option<Seen>,
    view: Option<View>,
    /// Why the last scrape failed, if it did.
    trouble: Option<FetchError>,
    /// When the answer that is awaited was asked for.
    asked: Option<Instant>,
}

/// Whether to go on.
#[derive(PartialEq)]
enum Next {
    Go,
    Quit,
}

impl Live<'_> {
    fn run(&mut self, events: &Receiver<Event>) -> Result<(), TopError> {
        let mut next_at = Instant::now();
        loop {
            if self.asked.is_none() && Instant::now() >= next_at {
                self.asked = Some(Instant::now());
                next_at = Instant::now() + self.options.interval;
                let _ = self.ask.send(());
            }
            self.draw()?;
            let until_next = next_at.saturating_duration_since(Instant::now());
            let wait = if self.asked.is_some() { REDRAW_EVERY } else { until_next };
            let next = match events.recv_timeout(wait) {
                Ok(Event::Scraped(result)) => {
                    let is_first = self.seen.is_none() && result.is_ok();
                    self.take(result);
                    if is_first {
                        next_at = next_at.min(Instant::now() + SECOND_SCRAPE_AFTER);
                    }
                    Next::Go
                }
                // In some terminals Ctrl-C comes as a byte.
                Ok(Event::Key(b'q' | b'Q' | 0x03)) => Next::Quit,
                Ok(Event::Signal(signal)) => self.signal(signal)?,
                Ok(Event::Key(_)) | Err(RecvTimeoutError::Timeout) => Next::Go,
                Err(RecvTimeoutError::Disconnected) => Next::Quit,
            };
            if next == Next::Quit {
                return Ok(());
            }
        }
    }

    fn take(&mut self, result: Result<Scrape, FetchError>) {
        self.asked = None;
        match result {
            Ok(scrape) => {
                let seen = Seen::new(scrape);
                self.view = Some(seen.since(self.seen.as_ref()));
                self.seen = Some(seen);
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(error),
        }
    }

    fn signal(&mut self, signal: i32) -> Result<Next, TopError> {
        match signal {
            SIGINT => Ok(Next::Quit),
            // The next thing is to draw.
            SIGWINCH => Ok(Next::Go),
            SIGTSTP => {
                self.terminal = None;
                emulate_default_handler(SIGTSTP).map_err(|error| TopError::Io("stopping", error))?;
                // Somebody has brought us back.
                self.terminal = Some(enter()?);
                Ok(Next::Go)
            }
            _ => {
                self.terminal = None;
                Err(TopError::Signal(signal))
            }
        }
    }

    fn draw(&mut self) -> Result<(), TopError> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        let (columns, rows) = terminal.size();
        let mut lines = vec![heading(self.options)];
        lines.extend(state(self.trouble.as_ref(), self.view.is_some(), self.asked));
        if let Some(view) = &self.view {
            lines.extend(draw::lines(view, columns));
        }
        if lines.len() > rows {
            let hidden = lines.len() - rows + 1;
            lines.truncate(rows.saturating_sub(1));
            lines.push(Line::of(Tone::Faint, format!("… {hidden} more lines: make the window taller")));
        }
        terminal.show(&lines).map_err(|error| TopError::Io("the terminal", error))
    }
}

fn heading(options: &Options) -> Line {
    let Options { target, interval, .. } = options;
    Line::of(Tone::Faint, format!("ringmesh top  {target}  every {interval:?}  q quits"))
}

/// How it stands with the node's answers: one line, and a second one with what is wrong.
fn state(trouble: Option<&FetchError>, has_view: bool, asked: Option<Instant>) -> Vec<Line> {
    let stale = if has_view { "; below is what it said last" } else { "" };
    match (trouble, asked) {
        (Some(error), _) => vec![
            Line::of(Tone::Bad, format!("NO ANSWER, trying again{stale}")),
            Line::of(Tone::Warning, error.to_string()),
        ],
        (None, Some(asked)) if asked.elapsed() > ANSWER_EXPECTED_WITHIN => {
            vec![Line::of(Tone::Warning, format!("no answer for {:.0?}{stale}", asked.elapsed()))]
        }
        (None, _) if !has_view => vec![Line::of(Tone::Faint, "asking…")],
        (None, _) => vec![Line::default()],
    }
}
