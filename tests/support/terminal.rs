//! A program in a terminal of its own: what it shows, keys, size, and whether it leaves the terminal as it found it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

/// A pseudo terminal with a program that has it as its controlling terminal.
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Kept open so that the terminal's modes can be looked at after the program's end.
    slave: OwnedFd,
    before: Termios,
    output: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    /// Starts the gateway's binary with these arguments.
    pub fn start(arguments: &[&str], columns: u16, rows: u16) -> Terminal {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a pseudo terminal");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        // Of util-linux, which is everywhere: it makes standard input the controlling terminal, whose Ctrl-C is a signal.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_ringmesh")])
            .args(arguments)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid can be run");
        let before = tcgetattr(&slave).expect("the modes of a terminal");
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().expect("a descriptor");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keyboard, slave, before, output, shown: String::new() }
    }

    /// Waits until what was written since [`Terminal::forget`], without its codes, has `text` in it.
    ///
    /// # Panics
    /// When the deadline passes first.
    pub fn wait_for(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            if plain(&self.shown).contains(text) {
                return;
            }
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.shown += &String::from_utf8_lossy(&piece),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} is not shown within {deadline:?}: {}", plain(&self.shown))
                }
            }
        }
    }

    /// Forgets what was shown so far: what is waited for next must be written anew.
    pub fn forget(&mut self) {
        self.output.try_iter().for_each(drop);
        self.shown.clear();
    }

    /// Types.
    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal takes keys");
    }

    /// Signals the program, which has taken the place of `setsid`.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("the program is there");
    }

    /// Whether the terminal's modes are what they were.
    pub fn is_as_before(&self) -> bool {
        tcgetattr(&self.slave).expect("the modes of a terminal") == self.before
    }

    /// Waits for the end, and checks that the terminal was given back: its modes, its screen, its cursor.
    pub fn wait_for_end(mut self, deadline: Duration) -> ExitStatus {
        self.wait_for_raw("\x1b[?25h\x1b[?1049l", deadline);
        let status = super::eventually("the end of the program", deadline, || self.child.try_wait().expect("a child"));
        assert!(self.is_as_before(), "the terminal's modes were changed");
        status
    }

    fn wait_for_raw(&mut self, codes: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        while !self.shown.contains(codes) {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.shown += &String::from_utf8_lossy(&piece),
                Err(_) => panic!("{codes:?} is not written within {deadline:?}: {:?}", self.shown),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Only a test that failed leaves it running: the hang-up of its terminal ends the program.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text without the codes that place and colour it.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain += before;
        rest = after.trim_start_matches(|c: char| c == '?' || c == ';' || c.is_ascii_digit());
        rest = rest.get(1..).unwrap_or("");
    }
    plain + rest
}
