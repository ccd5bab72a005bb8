//! Signals of a node's process, heard from its first moment on.
//!
//! | Signal | Meaning |
//! |---|---|
//! | TERM, INT | stop: drain, tell the clients, end. Before the node has begun: end at once |
//! | the same, or the other, within a second | the same order, given twice |
//! | later | end at once, with 128 and the signal's number |
//! | HUP, USR1, USR2, QUIT | nothing; the log says so |
//! | PIPE, CHLD | nothing |

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::signal_name;

use crate::logging;

/// A supervisor that stops a process and its group, or a hand that presses twice, gives one order.
const ONE_ORDER: Duration = Duration::from_secs(1);

type Stop = Box<dyn Fn(i32) + Send + Sync>;

/// Who carries out TERM and INT, once somebody does.
static STOP: OnceLock<Stop> = OnceLock::new();

/// Begins to listen. Until [`on_stop`] an order to stop ends the process at once, with 0.
///
/// # Errors
/// The handlers, or their thread, could not be set up.
pub fn watch() -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])?;
    let listen = move || {
        for signal in signals.forever() {
            match signal {
                SIGTERM | SIGINT => order_to_stop(signal),
                _ => tracing::info!(signal = name(signal), "ignored; the settings are read at the start only"),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen)?;
    Ok(())
}

/// From here on `stop` carries out each order to stop.
pub fn on_stop(stop: impl Fn(i32) + Send + Sync + 'static) {
    // There is one node in a process.
    _ = STOP.set(Box::new(stop));
}

fn order_to_stop(signal: i32) {
    match STOP.get() {
        Some(stop) => stop(signal),
        None => {
            logging::last_words(&format_args!("stopped by {} before it had begun", name(signal)));
            std::process::exit(0);
        }
    }
}

/// As kill(1) calls it.
pub fn name(signal: i32) -> &'static str {
    signal_name(signal).unwrap_or("a signal")
}

/// The orders to stop that a node has been given.
#[derive(Debug, Default)]
pub struct Orders {
    first: Option<Instant>,
}

/// What an order to stop asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// To stop.
    Stop,
    /// What was asked for already.
    Again,
    /// To end at once.
    End,
}

impl Orders {
    /// What the order that came now asks for.
    pub fn take(&mut self, now: Instant) -> Order {
        match self.first {
            None => {
                self.first = Some(now);
                Order::Stop
            }
            Some(first) if now.saturating_duration_since(first) < ONE_ORDER => Order::Again,
            Some(_) => Order::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_order_within_a_second_is_one() {
        let (mut orders, begin) = (Orders::default(), Instant::now());
        let after = |ms| begin + Duration::from_millis(ms);
        let taken = [0, 1, 999, 1000, 1001].map(|ms| orders.take(after(ms)));
        assert_eq!(taken, [Order::Stop, Order::Again, Order::Again, Order::End, Order::End]);
    }
}
