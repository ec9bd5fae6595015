//! What the core computes, written into a response.

use std::sync::Arc;

use bytes::Bytes;
use planaria_telemetry::wall_clock::unix_seconds;

use super::memory::{Entry, Memory};
use crate::answer::{Counts, Finish, Piece};
use crate::error::ApiError;
use crate::writer::Writer;

/// Writes a response. Dropped before the end, it leaves a response that was cancelled; or none, if nobody was told of
/// it.
#[derive(Debug)]
pub(super) struct ReplyWriter {
    entry: Arc<Entry>,
    /// Where it is remembered, if it is.
    memory: Option<Arc<Memory>>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Whether somebody has its name.
    is_known: bool,
    /// Whether what the model says is shown.
    is_shown: bool,
}

/// What a client sees of a response while it grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Its events.
    Events,
    /// Nothing before its end.
    Whole,
    /// Its beginning and its end: it has no output.
    Ends,
}

impl ReplyWriter {
    /// Of a response that begins. It is remembered from here on, if it is not already.
    pub(super) fn new(
        entry: Arc<Entry>,
        memory: Option<Arc<Memory>>,
        prompt: usize,
        shown: Shown,
    ) -> Self {
        let is_known = entry.is_background;
        if let Some(memory) = memory.as_ref().filter(|_| !is_known) {
            memory.insert(Arc::clone(&entry));
        }
        if !is_known && shown == Shown::Whole {
            // Its client hears of it at its end, and others see it grow.
            entry.write(|reply| reply.begun(prompt));
        }
        Self { entry, memory, prompt, is_known, is_shown: shown != Shown::Ends }
    }

    /// Of a response that goes on from the disk and is remembered.
    pub(super) const fn again(entry: Arc<Entry>, memory: Arc<Memory>, prompt: usize) -> Self {
        Self { entry, memory: Some(memory), prompt, is_known: true, is_shown: true }
    }
}

impl Writer for ReplyWriter {
    fn opening(&mut self) -> Vec<Bytes> {
        // It bears the name.
        self.is_known = true;
        self.entry.write(|reply| reply.begun(self.prompt))
    }

    fn piece(&mut self, _answer: usize, piece: Piece) -> Vec<Bytes> {
        if !self.is_shown {
            return Vec::new();
        }
        self.entry.write(|reply| reply.piece(piece))
    }

    fn gathers(&mut self, piece: &Piece) {
        self.entry.write(|reply| reply.piece(piece.clone()));
    }

    fn finished(&mut self, _answer: usize, finish: &Finish) -> Vec<Bytes> {
        if !self.is_shown {
            return Vec::new();
        }
        self.entry.write(|reply| reply.finished(finish))
    }

    fn closing(&mut self, mut counts: Counts) -> Vec<Bytes> {
        if !self.is_shown {
            counts = Counts { answer: 0, reasoning: 0, ..counts };
        }
        let events = self.entry.write(|reply| reply.closing(counts, unix_seconds()));
        if let Some(memory) = &self.memory {
            memory.trim();
        }
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Bytes> {
        self.entry.write(|reply| reply.failed(error))
    }

    fn whole(&mut self, answers: Vec<(Piece, Finish)>, counts: Counts) -> String {
        // Its pieces were gathered.
        for (_, finish) in answers {
            self.finished(0, &finish);
        }
        self.closing(counts);
        self.entry.text()
    }
}

impl Drop for ReplyWriter {
    fn drop(&mut self) {
        if self.entry.is_over() {
            return;
        }
        self.entry.cancel();
        if let Some(memory) = self.memory.as_ref().filter(|_| !self.is_known) {
            memory.remove(&self.entry.id);
        }
    }
}
