//! What the demo shows a person: steps, and text that is broken into lines as it comes.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Result;
use planaria_control::cluster_view::RecoveryView;

/// Says what comes next.
pub(crate) fn step(what: &str) {
    println!("\n{}", styled("1", what));
}

/// Text as a terminal shows it; plain where there is none.
pub(crate) fn styled(code: &str, text: &str) -> String {
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A recovery in one line.
pub(crate) fn recovery(recovery: &RecoveryView) -> String {
    format!(
        "{}: noticed after {} ms, replanned and loaded in {} ms, {} positions computed again in {} ms",
        recovery.cause,
        recovery.detect_ms,
        recovery.load_ms,
        recovery.replayed,
        recovery.rebuild_ms,
    )
}

pub(crate) fn indented(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", format!("  {line}").trim_end())).collect()
}

/// Writes text as it comes, word by word, in lines of at most 76 characters.
#[derive(Default)]
pub(crate) struct Wrapped {
    column: usize,
    word: String,
}

impl Wrapped {
    const WIDTH: usize = 76;

    pub(crate) fn push(&mut self, text: &str) -> Result<()> {
        for character in text.chars() {
            if character.is_whitespace() {
                self.finish()?;
            } else {
                self.word.push(character);
            }
        }
        Ok(())
    }

    /// Writes the word that was begun.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if self.word.is_empty() {
            return Ok(());
        }
        let length = self.word.chars().count();
        let gap = match self.column {
            0 => "  ",
            column if column + 1 + length > Self::WIDTH => {
                self.column = 0;
                "\n  "
            }
            _ => " ",
        };
        let mut out = std::io::stdout().lock();
        write!(out, "{gap}{}", self.word)?;
        out.flush()?;
        self.column += length + 1;
        self.word.clear();
        Ok(())
    }
}
