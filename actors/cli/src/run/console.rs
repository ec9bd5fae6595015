//! What is shown: the answer on standard output, and nothing else there; the rest on standard error.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use crate::output;

/// Writes to both, so that a note stands on a line of its own.
#[derive(Debug)]
pub(super) struct Console {
    /// Whether the answer's last line has begun and not ended.
    within_line: bool,
    /// Whether the answer is seen on a screen, and the notes are.
    answer_seen: bool,
    notes_seen: bool,
    /// Whether notes are written fainter than the answer.
    faint: bool,
    /// Whether the last line of the model's thoughts has begun and not ended.
    within_thought: bool,
}

impl Console {
    pub(super) fn new() -> Self {
        let notes_seen = io::stderr().is_terminal();
        Self {
            within_line: false,
            answer_seen: io::stdout().is_terminal(),
            notes_seen,
            faint: notes_seen && output::may_be_colored(),
            within_thought: false,
        }
    }

    /// Shows a part of the answer, at once.
    pub(super) fn show(&mut self, text: &str) -> io::Result<()> {
        self.end_thought()?;
        let mut out = io::stdout().lock();
        out.write_all(harmless(text, self.answer_seen).as_bytes())?;
        out.flush()?;
        if !text.is_empty() {
            self.within_line = !text.ends_with('\n');
        }
        Ok(())
    }

    /// Shows a part of what the model thinks, at once: it is not of the answer.
    pub(super) fn think(&mut self, text: &str) -> io::Result<()> {
        let text = harmless(text, self.notes_seen);
        let mut out = io::stderr().lock();
        if self.faint {
            write!(out, "\x1b[2m{text}\x1b[0m")?;
        } else {
            write!(out, "{text}")?;
        }
        out.flush()?;
        self.within_thought = !text.ends_with('\n');
        Ok(())
    }

    /// Thoughts are over: whatever comes begins a line.
    fn end_thought(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.within_thought) { writeln!(io::stderr()) } else { Ok(()) }
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
        self.end_thought()?;
        let mut out = io::stderr().lock();
        if self.within_line && self.answer_seen && self.notes_seen {
            // Not of the answer, which may be kept.
            writeln!(out)?;
            self.within_line = false;
        }
        let text = harmless(text, self.notes_seen);
        if self.faint { writeln!(out, "\x1b[2m{text}\x1b[0m") } else { writeln!(out, "{text}") }
    }
}

/// What a terminal shows of a text and does not obey: a model, or a node, must not move the cursor, or set the
/// title or the clipboard. Files and other programs get the text as it is.
fn harmless(text: &str, on_terminal: bool) -> Cow<'_, str> {
    // Of C0, C1 and DEL, two are of the text.
    let commands = |c: char| c.is_control() && c != '\n' && c != '\t';
    if on_terminal && text.contains(commands) {
        Cow::Owned(text.replace(commands, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_given_no_commands() {
        for (text, shown) in [
            ("\x1b[2J\x1b]52;c;aGk=\x07", "\u{fffd}[2J\u{fffd}]52;c;aGk=\u{fffd}"),
            ("\u{9b}31m\u{9d}0;title\u{9c}", "\u{fffd}31m\u{fffd}0;title\u{fffd}"),
            ("a\rb\x08c\x7fd\0", "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"),
            (
                "One\n\ttwo: caf\u{e9}, \u{a0}\u{1f980}\n",
                "One\n\ttwo: caf\u{e9}, \u{a0}\u{1f980}\n",
            ),
        ] {
            assert_eq!(harmless(text, true), shown);
            assert_eq!(harmless(text, false), text, "it is kept as it is");
        }
    }
}
