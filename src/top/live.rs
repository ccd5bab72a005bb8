//! The view that goes on in a terminal.

use std::io::{IsTerminal, Read, stdin};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::TopError;
use super::draw::{Line, Tone};
use super::terminal::Terminal;

/// What is watched.
pub(crate) trait Subject {
    /// What one look brings.
    type Answer: Send + 'static;

    /// The first line.
    fn heading(&self) -> Line;

    /// Takes what a look has brought.
    fn take(&mut self, answer: Self::Answer);

    /// What is shown in so many columns; `None` before the first answer.
    fn lines(&self, columns: usize) -> Option<Vec<Line>>;
}

/// The first rates come sooner than the interval says.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(500);
/// How often the view is drawn while an answer is awaited.
const REDRAW_EVERY: Duration = Duration::from_millis(500);
/// Who takes longer to answer is worth a word.
const ANSWER_EXPECTED_WITHIN: Duration = Duration::from_secs(1);

/// What the loop is told by its threads.
enum Event<A> {
    Looked(Result<A, String>),
    Key(u8),
    Signal(i32),
}

/// Shows the subject until somebody ends it. `begin` is called on a thread of its own, and what it answers there for each
/// look.
pub(crate) fn run<S: Subject, L: FnMut() -> Result<S::Answer, String>>(
    subject: S,
    interval: Duration,
    begin: impl FnOnce() -> L + Send + 'static,
) -> Result<(), TopError> {
    let (report, events) = mpsc::channel();
    let ask = spawn(begin, report)?;
    let terminal = enter()?;
    Live { subject, interval, ask, terminal: Some(terminal), trouble: None, asked: None }.run(&events)
}

fn enter() -> Result<Terminal, TopError> {
    Terminal::enter().map_err(|error| TopError::Io("the terminal", error))
}

/// Who does not answer must not keep a key waiting, so asking has a thread of its own; so have keys and signals.
fn spawn<A: Send + 'static, L: FnMut() -> Result<A, String>>(
    begin: impl FnOnce() -> L + Send + 'static,
    report: Sender<Event<A>>,
) -> Result<Sender<()>, TopError> {
    let io = |error| TopError::Io("watching signals and keys", error);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH]).map_err(io)?;
    let (ask, asked) = mpsc::channel();
    let (looked, signalled) = (report.clone(), report.clone());
    let look = move || {
        let mut look = begin();
        let _ = asked.iter().try_for_each(|()| looked.send(Event::Looked(look())));
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
    thread("look").spawn(look).map_err(io)?;
    thread("signals").spawn(watch).map_err(io)?;
    thread("keys").spawn(read).map_err(io)?;
    Ok(ask)
}

struct Live<S> {
    subject: S,
    interval: Duration,
    ask: Sender<()>,
    /// `None` once it was given back.
    terminal: Option<Terminal>,
    /// Why the last look failed, if it did.
    trouble: Option<String>,
    /// When the answer that is awaited was asked for.
    asked: Option<Instant>,
}

/// Whether to go on.
#[derive(PartialEq)]
enum Next {
    Go,
    Quit,
}

impl<S: Subject> Live<S> {
    fn run(&mut self, events: &Receiver<Event<S::Answer>>) -> Result<(), TopError> {
        let mut next_at = Instant::now();
        loop {
            if self.asked.is_none() && Instant::now() >= next_at {
                self.asked = Some(Instant::now());
                next_at = Instant::now() + self.interval;
                let _ = self.ask.send(());
            }
            self.draw()?;
            let until_next = next_at.saturating_duration_since(Instant::now());
            let wait = if self.asked.is_some() { REDRAW_EVERY } else { until_next };
            let next = match events.recv_timeout(wait) {
                Ok(Event::Looked(result)) => {
                    let is_first = self.subject.lines(0).is_none() && result.is_ok();
                    self.take(result);
                    if is_first {
                        next_at = next_at.min(Instant::now() + SECOND_LOOK_AFTER);
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

    fn take(&mut self, result: Result<S::Answer, String>) {
        self.asked = None;
        self.trouble = result.map(|answer| self.subject.take(answer)).err();
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
        let mut lines = vec![self.subject.heading()];
        let shown = self.subject.lines(columns);
        lines.extend(state(self.trouble.as_deref(), shown.is_some(), self.asked));
        lines.extend(shown.into_iter().flatten());
        if lines.len() > rows {
            let hidden = lines.len() - rows + 1;
            lines.truncate(rows.saturating_sub(1));
            lines.push(Line::of(Tone::Faint, format!("… {hidden} more lines: make the window taller")));
        }
        terminal.show(&lines).map_err(|error| TopError::Io("the terminal", error))
    }
}

/// How it stands with the answers: one line, and a second one with what is wrong.
fn state(trouble: Option<&str>, has_view: bool, asked: Option<Instant>) -> Vec<Line> {
    let stale = if has_view { "; below is what it said last" } else { "" };
    match (trouble, asked) {
        (Some(error), _) => {
            vec![Line::of(Tone::Bad, format!("NO ANSWER, trying again{stale}")), Line::of(Tone::Warning, error)]
        }
        (None, Some(asked)) if asked.elapsed() > ANSWER_EXPECTED_WITHIN => {
            vec![Line::of(Tone::Warning, format!("no answer for {:.0?}{stale}", asked.elapsed()))]
        }
        (None, _) if !has_view => vec![Line::of(Tone::Faint, "asking…")],
        (None, _) => vec![Line::default()],
    }
}
