//! The terminal: taken over when the view begins, and given back as it was, however the view ends.

use std::io::{self, Stdout, Write, stdout};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::draw::Line;

/// The other screen, no cursor, no wrapping.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// A terminal that is ours until this is dropped.
pub struct Terminal {
    out: Stdout,
    before: Termios,
}

impl Terminal {
    /// Takes the terminal that standard output is. Signals from its keys stay signals.
    ///
    /// # Errors
    /// Standard output is no terminal, or cannot be written.
    pub fn enter() -> io::Result<Terminal> {
        let out = stdout();
        let before = tcgetattr(&out)?;
        let mut ours = before.clone();
        ours.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(&out, OptionalActions::Now, &ours)?;
        let mut terminal = Terminal { out, before };
        terminal.write(ENTER)?;
        Ok(terminal)
    }

    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        match tcgetwinsize(&self.out) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (80, 24),
        }
    }

    /// Shows these lines, cut to the terminal's size, in the place of what was shown before.
    ///
    /// # Errors
    /// The terminal has gone.
    pub fn show(&mut self, lines: &[Line]) -> io::Result<()> {
        let (columns, rows) = self.size();
        let mut text = String::from("\x1b[H");
        for (at, line) in lines.iter().take(rows).enumerate() {
            let feed = if at == 0 { "" } else { "\r\n" };
            text += &format!("{feed}{}\x1b[K", line.ansi(columns));
        }
        text += "\x1b[J";
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = self.write(LEAVE);
        let _ = tcsetattr(&self.out, OptionalActions::Now, &self.before);
    }
}
