//! What is shown: the answer on standard output, and nothing else there; the rest on standard error.

use std::io::{self, IsTerminal as _, Write as _};

/// Writes to both, so that a note stands on a line of its own.
#[derive(Debug)]
pub(super) struct Voice {
    /// Whether the answer's last line has begun and not ended.
    within_line: bool,
    /// Whether answer and notes are seen on the same screen.
    on_terminal: bool,
    /// Whether notes are written fainter than the answer.
    faint: bool,
}

impl Voice {
    pub(super) fn new() -> Self {
        let notes_seen = io::stderr().is_terminal();
        Self {
            within_line: false,
            on_terminal: notes_seen && io::stdout().is_terminal(),
            faint: notes_seen && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Shows a part of the answer, at once.
    pub(super) fn show(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if !text.is_empty() {
            self.within_line = !text.ends_with('\n');
        }
        Ok(())
    }

    /// The answer is over: whatever comes begins a line.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.within_line { self.show("\n") } else { Ok(()) }
    }

    /// What was shown does not go on: says why, and begins a line.
    pub(super) fn break_off(&mut self, why: &str) -> io::Result<()> {
        self.end()?;
        self.say(why)
    }

    /// Tells the person something that is not the answer.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stderr().lock();
        if self.within_line && self.on_terminal {
            // Not of the answer, which may be kept.
            writeln!(out)?;
            self.within_line = false;
        }
        if self.faint { writeln!(out, "\x1b[2m{text}\x1b[0m") } else { writeln!(out, "{text}") }
    }
}
