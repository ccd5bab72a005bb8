//! Logs: structured events to standard error, as lines for a person or as JSON.
//!
//! A thread of its own writes them, behind a bounded queue: who logs never waits for a disk, a pipe or a terminal. What
//! finds no room, or cannot be written, is counted and gone.

use std::io::{self, IsTerminal, Stderr, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use crate::panics;

/// Lines that wait to be written at most; some 4 MiB.
const LINES_MAX: usize = 16_384;
/// How long an end of the process waits for its last lines.
const FLUSH_WITHIN: Duration = Duration::from_millis(300);

/// To the thread that ends the log, with whom to tell.
static FINISH: OnceLock<mpsc::Sender<mpsc::Sender<()>>> = OnceLock::new();
static WITHOUT_ROOM: OnceLock<ErrorCounter> = OnceLock::new();
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The directives are no log level; the configuration refuses such directives before they come here.
    #[error("cannot read the log level: {0}")]
    Directives(#[from] tracing_subscriber::filter::ParseError),
    /// Another logger was installed before.
    #[error("cannot install the logger: {0}")]
    AlreadyInstalled(#[from] tracing_subscriber::util::TryInitError),
}

/// Standard error. What it does not take is counted.
struct Lines(Stderr);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            UNWRITTEN.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Installs the logger of this process. What glommio says through the `log` crate goes the same way.
///
/// # Errors
/// The directives cannot be read, or there is a logger already.
pub fn start(directives: &str, format: LogFormat) -> Result<(), LoggingError> {
    let filter = EnvFilter::builder().parse(directives)?;
    let writer = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).thread_name("log");
    let (writer, guard) = writer.finish(Lines(stderr()));
    let without_room = writer.error_counter();
    // The formatter says what went wrong with it on standard error, and dies if that fails too.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Text => lines.compact().with_ansi(stderr().is_terminal()).finish().try_init()?,
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init()?,
    }
    _ = WITHOUT_ROOM.set(without_room);
    let (finish, asked) = mpsc::channel::<mpsc::Sender<()>>();
    _ = FINISH.set(finish);
    let end = move || {
        let asked = asked.recv();
        // It waits for the writer, and complains on standard output when that is stuck.
        _ = panics::contain(|| drop(guard));
        // Nobody waits any more.
        _ = asked.map(|done| done.send(()));
    };
    // Without it the last lines may be lost.
    _ = std::thread::Builder::new().name("end of the log".into()).spawn(end);
    Ok(())
}

/// Lines that found no room, or could not be written.
pub fn dropped() -> u64 {
    WITHOUT_ROOM.get().map_or(0, ErrorCounter::dropped_lines) as u64 + UNWRITTEN.load(Relaxed)
}

/// Waits until the last lines are written, or that takes too long. Nothing is written after it.
pub fn finish() {
    let (done, is_done) = mpsc::channel();
    if FINISH.get().is_some_and(|finish| finish.send(done).is_ok()) {
        _ = is_done.recv_timeout(FLUSH_WITHIN);
    }
}

/// Ends the process, with its last lines if they can be written.
pub fn exit(code: i32) -> ! {
    finish();
    std::process::exit(code);
}

/// To standard error whatever the log level is, each line under our name, after all that was logged; nothing is logged
/// after it.
pub fn last_words(what: &dyn std::fmt::Display) {
    finish();
    let text: String = what.to_string().lines().map(|line| format!("ringmesh: {line}\n")).collect();
    within_reason(move || _ = stderr().write_all(text.as_bytes()));
}

/// Does what may take for ever, where nobody reads standard error, and gives it up then.
fn within_reason(what: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let run = move || {
        what();
        // Nobody waits any more.
        _ = done.send(());
    };
    if std::thread::Builder::new().name("last words".into()).spawn(run).is_ok() {
        _ = is_done.recv_timeout(FLUSH_WITHIN);
    }
}
